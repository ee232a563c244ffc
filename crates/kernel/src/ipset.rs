//! ipsets over netlink (include/uapi/linux/netfilter/ipset/ip_set.h).

use crate::Error;
use crate::netlink::{Attr, Attrs, Message, Netlink, put};
use crate::xt::SetNames;
use nix::sys::socket::SockProtocol;
use reach::ir::{Field, IpSet, IpSetEntry, Ipv, NamePattern};
use std::net::IpAddr;

const SUBSYSTEM: u16 = 6;
const CMD_LIST: u16 = 7;
const PROTOCOL: u8 = 7;

const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_FAMILY: u16 = 5;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
const ATTR_INDEX: u16 = 11;

/// All ipsets, with their names by the kernel's index.
pub(crate) fn read() -> Result<(Vec<IpSet>, SetNames), Error> {
    let mut nl = Netlink::open(SockProtocol::NetlinkNetFilter, "ipsets")?;
    let mut request = vec![0u8, 0, 0, 0];
    put(&mut request, ATTR_PROTOCOL, &[PROTOCOL]);
    let messages = nl.dump(
        "ipsets",
        SUBSYSTEM << 8 | CMD_LIST,
        &request,
        |m: Message<'_>| Some(m.body.get(4..)?.to_vec()),
    )?;
    Ok(decode(messages.iter().map(Vec::as_slice)))
}

/// Pure: sets out of the attributes of each message. A set takes as many messages as it needs;
/// only its first has the header.
pub(crate) fn decode<'m>(messages: impl Iterator<Item = &'m [u8]>) -> (Vec<IpSet>, SetNames) {
    let parts = messages.filter_map(|m| part(Attrs(m)));
    let mut sets: Vec<IpSet> = Vec::new();
    let mut names = SetNames::new();
    for part in parts {
        if let Some(index) = part.index {
            names.insert(index, part.name.clone());
        }
        let at = match sets.iter().position(|s| s.name == part.name) {
            Some(at) => at,
            None => {
                sets.push(empty(&part.name));
                sets.len() - 1
            }
        };
        let set = &mut sets[at];
        set.incomplete |= part.malformed;
        if let Some(head) = part.head {
            let entries = std::mem::take(&mut set.entries);
            let incomplete = set.incomplete;
            *set = head;
            set.entries = entries;
            set.incomplete |= incomplete;
        }
        for raw in part.entries {
            match entry(set, Attrs(&raw)) {
                Some(e) => set.entries.push(e),
                None => set.incomplete = true,
            }
        }
    }
    for set in &mut sets {
        // The header of a set never came: nothing is known about it.
        set.incomplete |= set.kind.is_empty();
    }
    (sets, names)
}

fn empty(name: &str) -> IpSet {
    IpSet {
        name: name.to_owned(),
        kind: String::new(),
        family: None,
        netmask: None,
        markmask: None,
        timeout: false,
        incomplete: false,
        entries: Vec::new(),
    }
}

struct Part {
    name: String,
    index: Option<u16>,
    head: Option<IpSet>,
    entries: Vec<Vec<u8>>,
    malformed: bool,
}

fn part(a: Attrs<'_>) -> Option<Part> {
    let name = a.find(ATTR_SETNAME)?.text();
    let head = a.find(ATTR_TYPENAME).map(|kind| {
        let mut set = empty(&name);
        set.kind = kind.text();
        let family = match a.find(ATTR_FAMILY).and_then(|f| f.u8()) {
            Some(2) => Some(Ipv::V4),
            Some(10) => Some(Ipv::V6),
            _ => None,
        };
        let addresses = set.kind.contains("ip") || set.kind.contains("net");
        set.family = family.filter(|_| addresses && set.kind != "list:set");
        header(
            &mut set,
            a.find(ATTR_DATA).map_or(Attrs(&[]), |d| d.nested()),
        );
        set
    });
    let list = a.find(ATTR_ADT).map_or(Attrs(&[]), |l| l.nested());
    let entries = list.map(|e| e.data.to_vec()).collect();
    Some(Part {
        name,
        index: a.find(ATTR_INDEX).and_then(|i| i.be16()),
        head,
        entries,
        malformed: !a.intact() || !list.intact(),
    })
}

/// The options that a set was created with.
fn header(set: &mut IpSet, a: Attrs<'_>) {
    set.incomplete |= !a.intact();
    for option in a {
        match option.kind {
            6 => set.timeout = true,
            11 => match option.be32() {
                Some(u32::MAX) => {}
                mask => set.markmask = mask,
            },
            // NETMASK
            20 => {
                let full = if set.family == Some(Ipv::V6) { 128 } else { 32 };
                set.netmask = option.u8().filter(|m| *m != full);
            }
            // BITMASK (6.3): a mask that need not be a prefix.
            12 => set.incomplete = true,
            // IP and IP_TO and CIDR, PORT and PORT_TO: the range of a bitmap. CADT_FLAGS: counters,
            // comments and forceadd. From 17 on: sizes, references, memory.
            1..=5 | 8 | 17..=19 | 21..=26 => {}
            _ => set.incomplete = true,
        }
    }
}

fn address(a: Attr<'_>) -> Option<IpAddr> {
    a.nested().next()?.ip()
}

/// The last address of a network.
fn network(first: IpAddr, prefix: Option<u8>) -> Option<Field> {
    let full = if first.is_ipv4() { 32 } else { 128 };
    let net = ipnet::IpNet::new(first, prefix.unwrap_or(full)).ok()?;
    Some(Field::Addr(net.network(), net.broadcast()))
}

/// One entry; `None` when it is not understood.
fn entry(set: &IpSet, a: Attrs<'_>) -> Option<IpSetEntry> {
    if !a.intact() {
        return None;
    }
    let get = |kind: u16| a.find(kind);
    let flags = get(8).and_then(|f| f.be32()).unwrap_or(0);
    let mut out = IpSetEntry {
        // 0 means for ever.
        expires: get(6)
            .and_then(|t| t.be32())
            .filter(|t| *t > 0)
            .map(u64::from),
        comment: get(26).map(|c| c.text()),
        nomatch: flags & 4 != 0,
        key: Vec::new(),
    };
    if set.kind == "list:set" {
        let name = get(18)?.text();
        out.key.push(Field::Name(NamePattern::exact(name)));
        return Some(out);
    }
    let (_, dimensions) = set.kind.split_once(':')?;
    let mut addresses = 0;
    for dimension in dimensions.split(',') {
        let field = match dimension {
            "ip" | "net" => {
                addresses += 1;
                // IP and CIDR, then IP2 and CIDR2.
                let (ip, to, cidr) = match addresses {
                    1 => (1, 2, 3),
                    _ => (20, 22, 21),
                };
                let first = address(get(ip)?)?;
                match get(to).and_then(address) {
                    Some(last) => Field::Addr(first, last),
                    None => network(first, get(cidr).and_then(|c| c.u8()))?,
                }
            }
            "port" => {
                let first = get(4)?.be16()?;
                let last = get(5).and_then(|p| p.be16()).unwrap_or(first);
                Field::Port {
                    proto: get(7).and_then(|p| p.u8()),
                    first,
                    last,
                }
            }
            "mac" => match get(17) {
                Some(mac) => {
                    let bytes = mac.data.get(..6)?.to_vec();
                    Field::Bytes(bytes.clone(), bytes)
                }
                // bitmap:ip,mac takes the first that it sees.
                None => Field::Unknown("mac".to_owned()),
            },
            "mark" => {
                let mark = get(10)?.be32()?.into();
                Field::Int(mark, mark)
            }
            "iface" => {
                let name = get(23)?.text();
                // PHYSDEV, or a wildcard (5.5).
                match flags & (2 | 128) {
                    0 => Field::Name(NamePattern::exact(name)),
                    2 => Field::Unknown(format!("physdev:{name}")),
                    _ => Field::Unknown(format!("{name}*")),
                }
            }
            _ => return None,
        };
        out.key.push(field);
    }
    Some(out)
}
