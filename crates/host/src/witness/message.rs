//! nf_tables messages and expressions, as bytes (include/uapi/linux/netfilter/nf_tables.h).

/// nf_tables within nfnetlink.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP: u16 = 0x300;
const NESTED: u16 = 0x8000;
const INET: u8 = 1;
const HEADER: usize = 16;

/// The first of the sixteen 4-byte registers.
pub const REGISTER: u32 = 8;
/// A register that no key reaches.
const SCRATCH: u32 = REGISTER + 12;

/// Attributes one after another.
#[derive(Debug, Clone, Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    pub fn new() -> Self {
        Self::default()
    }

    fn put(mut self, kind: u16, data: &[u8]) -> Self {
        self.0.extend(((4 + data.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub fn long(self, kind: u16, value: u64) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    pub fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.put(kind | NESTED, &inner.0)
    }

    fn value(self, kind: u16, bytes: &[u8]) -> Self {
        // NFTA_DATA_VALUE
        self.nest(kind, Attributes::new().put(1, bytes))
    }
}

/// The expressions of a rule.
#[derive(Debug, Clone, Default)]
pub struct Rule(Attributes);

impl Rule {
    pub fn new() -> Self {
        Self::default()
    }

    fn expression(self, name: &str, data: Attributes) -> Self {
        let inner = Attributes::new().text(1, name).nest(2, data);
        Rule(self.0.nest(1, inner))
    }

    fn is(self, bytes: &[u8]) -> Self {
        let data = Attributes::new()
            .number(1, SCRATCH)
            .number(2, 0)
            .value(3, bytes);
        self.expression("cmp", data)
    }

    fn meta_is(self, key: u32, value: u8) -> Self {
        let load = Attributes::new().number(1, SCRATCH).number(2, key);
        self.expression("meta", load).is(&[value])
    }

    /// Only IPv4, or only IPv6.
    pub fn family(self, ipv6: bool) -> Self {
        self.meta_is(15, if ipv6 { 10 } else { 2 })
    }

    /// Only this transport protocol.
    pub fn protocol(self, number: u8) -> Self {
        self.meta_is(16, number)
    }

    /// Only TCP segments whose flags under `mask` are `flags`.
    pub fn flags(self, mask: u8, flags: u8) -> Self {
        self.load(2, 13, 1, SCRATCH)
            .expression(
                "bitwise",
                Attributes::new()
                    .number(1, SCRATCH)
                    .number(2, SCRATCH)
                    .number(3, 1)
                    .value(4, &[mask])
                    .value(5, &[0]),
            )
            .is(&[flags])
    }

    /// Loads `length` bytes at `offset` of a header: 1 network, 2 transport.
    pub fn load(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        let data = Attributes::new()
            .number(1, register)
            .number(2, base)
            .number(3, offset)
            .number(4, length);
        self.expression("payload", data)
    }

    /// Loads what connection tracking knows of the first packet: key of NFT_CT_*.
    pub fn original(self, key: u32, register: u32) -> Self {
        let data = Attributes::new()
            .number(1, register)
            .number(2, key)
            .put(3, &[0]);
        self.expression("ct", data)
    }

    /// Only what is in the set, by the key in the first registers.
    pub fn known(self, set: &str) -> Self {
        let data = Attributes::new().text(1, set).number(2, REGISTER);
        self.expression("lookup", data)
    }

    /// Adds the key in the first registers to the set, forgotten after `millis` milliseconds.
    pub fn note(self, set: &str, millis: u64) -> Self {
        let data = Attributes::new()
            .text(1, set)
            .number(3, 0)
            .number(4, REGISTER)
            .long(6, millis);
        self.expression("dynset", data)
    }
}

/// A batch that happens as a whole or not at all.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    /// Begins one. Every message asks for an answer, so that a refusal is known by its number.
    pub fn new() -> Self {
        let mut batch = Batch {
            bytes: Vec::new(),
            sequence: 0,
        };
        batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, &Attributes::new());
        batch
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: &Attributes) {
        self.bytes.extend(message(
            kind,
            NLM_F_REQUEST | flags,
            self.sequence,
            (family, resource),
            body,
        ));
        self.sequence += 1;
    }

    fn add(&mut self, kind: u16, flags: u16, body: &Attributes) {
        let kind = SUBSYSTEM << 8 | kind;
        self.message(kind, NLM_F_ACK | NLM_F_CREATE | flags, INET, 0, body);
    }

    /// A table that its socket owns: nobody else changes it, and the kernel deletes it when the
    /// socket is closed (NFT_TABLE_F_OWNER, Linux 5.12).
    pub fn owned_table(&mut self, table: &str) {
        self.add(0, 0, &Attributes::new().text(1, table).number(2, 2));
    }

    /// A set that rules fill: its key is source, destination and port.
    pub fn set(&mut self, table: &str, set: &str, ipv6: bool, size: u32, millis: u64) {
        // nft's numbers of its types, six bits each: ipv4_addr 7, ipv6_addr 8, inet_service 13.
        let (address, length) = if ipv6 { (8, 36) } else { (7, 12) };
        let body = Attributes::new()
            .text(1, table)
            .text(2, set)
            // NFT_SET_TIMEOUT and NFT_SET_EVAL.
            .number(3, 0x10 | 0x20)
            .number(4, address << 12 | address << 6 | 13)
            .number(5, length)
            .nest(9, Attributes::new().number(1, size))
            .number(10, self.sequence)
            .long(11, millis);
        self.add(9, 0, &body);
    }

    /// A chain that lets everything pass.
    pub fn chain(&mut self, table: &str, chain: &str, hook: u32, priority: i32) {
        let at = Attributes::new()
            .number(1, hook)
            .number(2, priority.cast_unsigned());
        let body = Attributes::new()
            .text(1, table)
            .text(3, chain)
            .nest(4, at)
            .number(5, 1)
            .text(7, "filter");
        self.add(3, 0, &body);
    }

    /// A rule at the end of a chain.
    pub fn rule(&mut self, table: &str, chain: &str, rule: Rule) {
        let body = Attributes::new()
            .text(1, table)
            .text(2, chain)
            .nest(4, rule.0);
        self.add(6, NLM_F_APPEND, &body);
    }

    /// Its bytes, and how many answers the kernel owes for them.
    pub fn end(mut self) -> (Vec<u8>, u32) {
        let owed = self.sequence - 1;
        self.message(BATCH_END, 0, 0, SUBSYSTEM, &Attributes::new());
        (self.bytes, owed)
    }
}

/// Asks for every element of a set.
pub fn elements_of(table: &str, set: &str, sequence: u32) -> Vec<u8> {
    let body = Attributes::new().text(1, table).text(2, set);
    let kind = SUBSYSTEM << 8 | 13;
    message(kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, (INET, 0), &body)
}

fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    (family, resource): (u8, u16),
    body: &Attributes,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 4 + body.0.len());
    bytes.extend(((HEADER + 4 + body.0.len()) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(&body.0);
    bytes
}

/// What the kernel said in one datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Done, or refused with this error number, to the message of that sequence number.
    Answer(u32, i32),
    /// Keys of a set.
    Keys(Vec<Vec<u8>>),
    /// The end of a dump, 0 or a negative error number; or it changed meanwhile.
    Done(i32),
}

/// Reads a datagram; what cannot be read is left out.
pub fn read(mut bytes: &[u8]) -> Vec<Said> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
    let mut said = Vec::new();
    while let Some(length) = word(bytes, 0).map(|length| length as usize) {
        let Some(body) = bytes.get(HEADER..length) else {
            break;
        };
        let kind = half(bytes, 4);
        let code = word(body, 0).map_or(0, u32::cast_signed);
        match kind {
            Some(ERROR) => said.push(Said::Answer(word(bytes, 8).unwrap_or(0), code)),
            Some(DONE) => said.push(Said::Done(code)),
            Some(NEW_ELEMENTS) => {
                let keys = body.get(4..).map(keys_of).unwrap_or_default();
                said.push(Said::Keys(keys));
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    said
}

/// NFTA_SET_ELEM_LIST_ELEMENTS (3), in it elements, in each NFTA_SET_ELEM_KEY (1) with
/// NFTA_DATA_VALUE (1).
fn keys_of(attributes: &[u8]) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    for (_, list) in each(attributes).filter(|(kind, _)| *kind == 3) {
        for (_, element) in each(list) {
            for (_, key) in each(element).filter(|(kind, _)| *kind == 1) {
                let values = each(key).filter(|(kind, _)| *kind == 1);
                keys.extend(values.map(|(_, value)| value.to_vec()));
            }
        }
    }
    keys
}

fn each(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let kind = half(bytes, 2)? & 0x3fff;
        let data = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, data))
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_what_is_cut_is_left_out() {
        let key = |bytes: &[u8]| Attributes::new().nest(1, Attributes::new().value(1, bytes));
        let list = Attributes::new().text(1, "table").nest(
            3,
            Attributes(key(b"abcd").0.into_iter().chain(key(b"efgh").0).collect()),
        );
        let datagram = message(SUBSYSTEM << 8 | 12, 2, 7, (INET, 0), &list);
        let whole = [Said::Keys(vec![b"abcd".to_vec(), b"efgh".to_vec()])];
        assert_eq!(read(&datagram), whole);
        for cut in 0..datagram.len() {
            assert_eq!(read(&datagram[..cut]), [], "{cut}");
        }
    }

    #[test]
    fn refusals_carry_the_number_of_their_message() {
        let mut datagram = message(2, 0, 3, (0, 0), &Attributes::new());
        datagram[16..20].copy_from_slice(&(-95i32).to_ne_bytes());
        assert_eq!(read(&datagram), [Said::Answer(3, -95)]);
        assert_eq!(read(&[0; 16]), []);
    }
}
