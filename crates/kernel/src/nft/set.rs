//! Sets, maps and their elements as the kernel sends them, and as the engine's model has them.

use super::value::{Links, Type};
use super::verdict;
use crate::netlink::{Attr, Attrs};
use reach::ir::{Data, Element, Field, NftSet, RuleVerdict};

pub(crate) const ANONYMOUS: u32 = 0x1;
const CONSTANT: u32 = 0x2;
const INTERVAL: u32 = 0x4;
pub(crate) const MAP: u32 = 0x8;
const TIMEOUT: u32 = 0x10;
const EVAL: u32 = 0x20;
pub(crate) const OBJECT: u32 = 0x40;
const DATA_VERDICT: u32 = 0xffff_ff00;
const ELEM_INTERVAL_END: u32 = 1;
const ELEM_CATCHALL: u32 = 2;

/// A set with undecoded elements: what their bytes mean may depend on the rule that looks them up.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawSet {
    /// nfgenmsg family.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// NFT_SET_*.
    pub flags: u32,
    /// nft's type number, several packed into one for a concatenation.
    key_type: u32,
    /// Bytes of a key, every part padded to 4.
    pub key_len: usize,
    data_type: u32,
    data_len: usize,
    /// Unpadded lengths of the parts of a concatenation, where the kernel tells them.
    parts: Vec<usize>,
    /// The data of a map are intervals.
    data_interval: bool,
    comment: Option<String>,
    /// NFT_OBJECT_* of an object map.
    pub object_type: u32,
    /// The elements.
    pub elements: Vec<RawElement>,
    /// Something about it could not be read.
    pub incomplete: bool,
}

/// An element.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawElement {
    key: Vec<u8>,
    key_end: Option<Vec<u8>>,
    flags: u32,
    data: Option<RawData>,
    expires: Option<u64>,
    comment: Option<String>,
    conditional: bool,
}

#[derive(Debug, Clone)]
enum RawData {
    Value(Vec<u8>),
    Verdict(RuleVerdict),
    Object(String),
    Unknown,
}

impl RawSet {
    /// NFTA_SET_* of one message.
    pub fn parse(family: u8, attrs: Attrs<'_>) -> Option<RawSet> {
        let mut set = RawSet {
            family,
            incomplete: !attrs.intact(),
            ..RawSet::default()
        };
        for a in attrs {
            match a.kind {
                1 => set.table = a.text(),
                2 => set.name = a.text(),
                3 => set.flags = a.be32()?,
                4 => set.key_type = a.be32()?,
                5 => set.key_len = a.be32()? as usize,
                6 => set.data_type = a.be32()?,
                7 => set.data_len = a.be32()? as usize,
                9 => set.parts = concat_lengths(a),
                13 => set.userdata(a.data),
                15 => set.object_type = a.be32()?,
                _ => {}
            }
        }
        (!set.name.is_empty()).then_some(set)
    }

    fn userdata(&mut self, data: &[u8]) {
        for (kind, value) in user_values(data) {
            match kind {
                6 => self.data_interval = value.iter().any(|b| *b != 0),
                7 => self.comment = Some(crate::netlink::text(value)),
                _ => {}
            }
        }
    }

    /// True for a set that belongs to one rule.
    pub fn anonymous(&self) -> bool {
        self.flags & ANONYMOUS != 0
    }

    /// Takes the elements of one NFT_MSG_NEWSETELEM message.
    pub fn take_elements(&mut self, list: Attr<'_>) {
        self.incomplete |= !list.nested().intact();
        for a in list.nested() {
            match RawElement::parse(a.nested()) {
                Some(e) => self.elements.push(e),
                None => self.incomplete = true,
            }
        }
    }

    /// Elements as (first, last, element), intervals put together from their ends.
    fn spans(&self) -> Vec<(Vec<u8>, Vec<u8>, &RawElement)> {
        let full = |e: &RawElement| e.key.len() == self.key_len;
        let ranged = self.elements.iter().any(|e| e.key_end.is_some());
        if self.flags & INTERVAL == 0 || ranged {
            let keyed = self
                .elements
                .iter()
                .filter(|e| full(e) && e.flags & ELEM_CATCHALL == 0);
            return keyed
                .map(|e| {
                    let last = e.key_end.clone().unwrap_or_else(|| e.key.clone());
                    (e.key.clone(), last, e)
                })
                .collect();
        }
        // An end lies one behind its interval and may coincide with the next beginning.
        let mut sorted: Vec<&RawElement> = self
            .elements
            .iter()
            .filter(|e| full(e) && e.flags & ELEM_CATCHALL == 0)
            .collect();
        let begins = |e: &RawElement| e.flags & ELEM_INTERVAL_END == 0;
        sorted.sort_by(|a, b| (&a.key, begins(a)).cmp(&(&b.key, begins(b))));
        let mut out = Vec::new();
        let mut open: Option<&RawElement> = None;
        for e in sorted {
            if let Some(begun) = open.take()
                && let Some(last) = before(&e.key)
                && last >= begun.key
            {
                out.push((begun.key.clone(), last, begun));
            }
            if begins(e) {
                open = Some(e);
            }
        }
        if let Some(begun) = open {
            out.push((begun.key.clone(), vec![0xff; self.key_len], begun));
        }
        out
    }

    /// The types of the key's parts by nft's numbers; `None` when they do not fit the length.
    fn key_types(&self) -> Option<Vec<Type>> {
        let concat = self.key_type >= 64;
        let types = types_of(self.key_type, self.key_len, &self.parts)?;
        // Only a concatenation keeps host byte order in an interval set: the others are compared
        // as one big number, so nft stores them in network byte order.
        let swap = self.flags & INTERVAL != 0 && !concat;
        let flip = |t: Type| match t {
            Type::Int { big: false, .. } | Type::Index if swap => t.swapped(),
            t => t,
        };
        Some(types.into_iter().map(flip).collect())
    }

    /// The set by its own types.
    pub fn decode(&self, links: &Links) -> NftSet {
        self.decode_as(self.key_types().as_deref(), links)
    }

    /// The set with keys read as `types`: those of the expressions that look it up.
    pub fn decode_as(&self, types: Option<&[Type]>, links: &Links) -> NftSet {
        let mut set = NftSet {
            // The kernel's name for a rule's own set says nothing.
            name: match self.anonymous() {
                true => String::new(),
                false => self.name.clone(),
            },
            constant: self.flags & CONSTANT != 0,
            interval: self.flags & INTERVAL != 0,
            dynamic: self.flags & EVAL != 0,
            timeout: self.flags & TIMEOUT != 0,
            incomplete: self.incomplete,
            comment: self.comment.clone(),
            elements: Vec::new(),
        };
        let usable = types
            .filter(|t| t.iter().map(|t| padded(t.len(), t, types)).sum::<usize>() == self.key_len);
        for (first, last, e) in self.spans() {
            let key = match usable {
                Some(types) => split(types, &first, &last, links),
                None => vec![Field::Unknown(format!(
                    "0x{}-0x{}",
                    super::value::hex(&first),
                    super::value::hex(&last)
                ))],
            };
            set.elements.push(self.element(key, e, links));
        }
        let everything = self
            .elements
            .iter()
            .filter(|e| e.flags & ELEM_CATCHALL != 0);
        for e in everything {
            set.elements.push(self.element(vec![Field::Any], e, links));
        }
        let unknown = |e: &Element| e.key.iter().any(|f| matches!(f, Field::Unknown(_)));
        let short = self
            .elements
            .iter()
            .any(|e| e.key.len() != self.key_len && e.flags & ELEM_CATCHALL == 0);
        set.incomplete |= short || set.elements.iter().any(unknown);
        set
    }

    fn element(&self, key: Vec<Field>, e: &RawElement, links: &Links) -> Element {
        let data = match &e.data {
            None if self.flags & (MAP | OBJECT) == 0 => None,
            None | Some(RawData::Unknown) => Some(Data::Unknown(String::new())),
            Some(RawData::Verdict(v)) => Some(Data::Verdict(v.clone())),
            Some(RawData::Object(name)) => Some(Data::Object(name.clone())),
            Some(RawData::Value(bytes)) => Some(self.data(bytes, links)),
        };
        Element {
            key,
            data,
            expires: e.expires,
            comment: e.comment.clone(),
            conditional: e.conditional,
        }
    }

    fn data(&self, bytes: &[u8], links: &Links) -> Data {
        let unknown = || Data::Unknown(format!("0x{}", super::value::hex(bytes)));
        if self.data_type == DATA_VERDICT {
            return unknown();
        }
        let half = match self.data_interval {
            true => bytes.len() / 2,
            false => bytes.len(),
        };
        let Some(types) = types_of(self.data_type, half, &[]) else {
            return unknown();
        };
        let (first, last) = match self.data_interval {
            true => bytes.split_at(half),
            false => (bytes, bytes),
        };
        Data::Value(split(&types, first, last, links))
    }

    /// The types of a map's data, as they lie in the registers after a lookup.
    pub fn data_types(&self) -> Option<Vec<Type>> {
        let len = match self.data_interval {
            true => self.data_len / 2,
            false => self.data_len,
        };
        types_of(self.data_type, len, &[])
    }
}

/// Bytes that a part takes in a key: a single one is not padded.
fn padded(len: usize, _ty: &Type, types: Option<&[Type]>) -> usize {
    match types {
        Some([_]) => len,
        _ => crate::netlink::align(len),
    }
}

fn split(types: &[Type], first: &[u8], last: &[u8], links: &Links) -> Vec<Field> {
    let mut at = 0;
    types
        .iter()
        .map(|t| {
            let from = first.get(at..).unwrap_or(&[]);
            let to = last.get(at..).unwrap_or(&[]);
            at += crate::netlink::align(t.len());
            t.field(from, to, links)
        })
        .collect()
}

/// The number before this one, in network byte order; `None` before zero.
fn before(key: &[u8]) -> Option<Vec<u8>> {
    let mut out = key.to_vec();
    for b in out.iter_mut().rev() {
        let (value, borrowed) = b.overflowing_sub(1);
        *b = value;
        if !borrowed {
            return Some(out);
        }
    }
    None
}

/// nft packs the type numbers of a concatenation into one, 6 bits each, the first highest.
fn types_of(number: u32, len: usize, parts: &[usize]) -> Option<Vec<Type>> {
    let mut numbers = Vec::new();
    let mut rest = number;
    while rest != 0 {
        numbers.insert(0, rest & 0x3f);
        rest >>= 6;
    }
    if let [only] = numbers[..] {
        let ty = Type::of_nft(only, Some(len))?;
        return (ty.len() == len).then(|| vec![ty]);
    }
    let types: Option<Vec<Type>> = numbers
        .iter()
        .enumerate()
        .map(|(i, n)| Type::of_nft(*n, parts.get(i).copied()))
        .collect();
    let types = types?;
    let sum: usize = types.iter().map(|t| crate::netlink::align(t.len())).sum();
    (sum == len && !types.is_empty()).then_some(types)
}

/// NFTA_SET_DESC: the lengths of the parts of a concatenation.
fn concat_lengths(desc: Attr<'_>) -> Vec<usize> {
    let Some(concat) = desc.nested().find(2) else {
        return Vec::new();
    };
    let length = |a: Attr<'_>| Some(a.nested().find(1)?.be32()? as usize);
    concat.nested().filter_map(length).collect()
}

impl RawElement {
    /// NFTA_SET_ELEM_*.
    fn parse(attrs: Attrs<'_>) -> Option<RawElement> {
        if !attrs.intact() {
            return None;
        }
        let mut e = RawElement::default();
        let value = |a: Attr<'_>| Some(a.nested().find(1)?.data.to_vec());
        for a in attrs {
            match a.kind {
                1 => e.key = value(a)?,
                2 => e.data = Some(data(a)),
                3 => e.flags = a.be32()?,
                5 => e.expires = a.be64().map(|ms| ms / 1000),
                6 => {
                    for (kind, value) in user_values(a.data) {
                        if kind == 0 {
                            e.comment = Some(crate::netlink::text(value));
                        }
                    }
                }
                7 => e.conditional |= can_fail(a.nested()),
                9 => e.data = Some(RawData::Object(a.text())),
                10 => e.key_end = Some(value(a)?),
                11 => {
                    for expr in a.nested() {
                        e.conditional |= can_fail(expr.nested());
                    }
                }
                _ => {}
            }
        }
        Some(e)
    }
}

/// Whether an element's stateful expression can make a lookup fail: a counter and `last` cannot.
fn can_fail(expr: Attrs<'_>) -> bool {
    let name = expr.find(1).map(|a| a.text()).unwrap_or_default();
    !matches!(name.as_str(), "counter" | "last")
}

fn data(a: Attr<'_>) -> RawData {
    let inside = a.nested();
    if let Some(value) = inside.find(1) {
        return RawData::Value(value.data.to_vec());
    }
    match inside.find(2).and_then(|v| verdict(v.nested())) {
        Some(v) => RawData::Verdict(v),
        None => RawData::Unknown,
    }
}

/// nftables' own notes: type, length, value (libnftnl's udata).
pub(crate) fn user_values(mut data: &[u8]) -> Vec<(u8, &[u8])> {
    let mut out = Vec::new();
    while let [kind, len, rest @ ..] = data {
        let Some(value) = rest.get(..usize::from(*len)) else {
            break;
        };
        out.push((*kind, value));
        data = &rest[usize::from(*len)..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval_set(elements: &[(u8, u32)]) -> RawSet {
        let element = |(key, flags): &(u8, u32)| RawElement {
            key: vec![*key],
            flags: *flags,
            ..RawElement::default()
        };
        RawSet {
            flags: INTERVAL,
            key_len: 1,
            key_type: 12,
            elements: elements.iter().map(element).collect(),
            ..RawSet::default()
        }
    }

    fn check(elements: &[(u8, u32)], want: &[(u64, u64)]) {
        let set = interval_set(elements).decode(&Links::new());
        let got: Vec<_> = set
            .elements
            .iter()
            .map(|e| match e.key[..] {
                [Field::Int(a, b)] => (a, b),
                _ => panic!("{e:?}"),
            })
            .collect();
        assert_eq!(got, want, "{elements:?}");
    }

    #[test]
    fn intervals_are_put_together_from_their_ends_in_any_order() {
        check(&[(0, 1), (5, 0), (9, 1)], &[(5, 8)]);
        check(&[(9, 1), (5, 0), (0, 1)], &[(5, 8)]);
        check(&[(5, 0), (9, 1), (9, 0), (12, 1)], &[(5, 8), (9, 11)]);
        check(&[(5, 0), (9, 0), (12, 1)], &[(5, 8), (9, 11)]);
        check(&[(250, 0)], &[(250, 255)]);
        check(&[(0, 0), (1, 1)], &[(0, 0)]);
        check(&[(0, 1)], &[]);
        check(&[], &[]);
    }

    #[test]
    fn packed_type_numbers() {
        let v4 = Type::Addr(reach::ir::Ipv::V4);
        let port = Type::Int { len: 2, big: true };
        assert_eq!(types_of(7 << 6 | 13, 8, &[]), Some(vec![v4, port]));
        assert_eq!(types_of(7 << 6 | 13, 9, &[]), None);
        assert_eq!(types_of(13, 2, &[]), Some(vec![port]));
        assert_eq!(types_of(13, 4, &[]), None);
        assert_eq!(types_of(0, 0, &[]), None);
        assert_eq!(types_of(63, 4, &[]), None);
    }

    #[test]
    fn notes_that_end_early_are_cut_there() {
        assert_eq!(user_values(&[0, 2, b'a', 0, 7, 9, 1]), [(0, &b"a\0"[..])]);
        assert!(user_values(&[1]).is_empty());
    }
}
