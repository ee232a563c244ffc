//! What nf_tables load expressions read: `meta`, `ct`, `payload`, `fib`, `rt`, `socket`…
//! (include/uapi/linux/netfilter/nf_tables.h).

use super::value::{Read, Type};
use crate::netlink::Attrs;
use reach::ir::{CtDir, Direction, Family, Fib, FibResult, Ipv, Key};

/// What the matches so far say about the packet, as far as it decides what a payload offset means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Protocols {
    /// IP version, from the table's family or a match on it.
    pub l3: Option<Ipv>,
    /// Transport protocol, from a match on a single one.
    pub l4: Option<u8>,
}

impl Protocols {
    /// What the family of a table says.
    pub fn of(family: Family) -> Protocols {
        let l3 = match family {
            Family::Ip => Some(Ipv::V4),
            Family::Ip6 => Some(Ipv::V6),
            _ => None,
        };
        Protocols { l3, l4: None }
    }

    /// Takes note of a match on one number.
    pub fn learn(&mut self, key: &Key, value: u64) {
        match (key, value) {
            (Key::NfProto, 2) | (Key::EtherType, 0x0800) => self.l3 = Some(Ipv::V4),
            (Key::NfProto, 10) | (Key::EtherType, 0x86dd) => self.l3 = Some(Ipv::V6),
            (Key::L4Proto | Key::NextHeader, p) => self.l4 = u8::try_from(p).ok(),
            _ => {}
        }
    }
}

const fn host(len: usize) -> Type {
    Type::Int { len, big: false }
}
const fn net(len: usize) -> Type {
    Type::Int { len, big: true }
}

/// NFT_META_*.
pub(crate) fn meta(key: u32) -> Option<Read> {
    let (key, ty) = match key {
        0 => (Key::Length, host(4)),
        1 => (Key::EtherType, net(2)),
        2 => (Key::Meta("priority".into()), host(4)),
        3 => (Key::Mark, host(4)),
        4 => (Key::Iif, Type::Index),
        5 => (Key::Oif, Type::Index),
        6 => (Key::IifName, Type::Name),
        7 => (Key::OifName, Type::Name),
        8 => (Key::IifType, host(2)),
        9 => (Key::OifType, host(2)),
        10 => (Key::SkUid, host(4)),
        11 => (Key::SkGid, host(4)),
        12 => (Key::Meta("nftrace".into()), net(1)),
        13 => (Key::Meta("rtclassid".into()), host(4)),
        14 => (Key::Meta("secmark".into()), host(4)),
        15 => (Key::NfProto, net(1)),
        16 => (Key::L4Proto, net(1)),
        17 => (Key::IbrName, Type::Name),
        18 => (Key::ObrName, Type::Name),
        19 => (Key::PktType, net(1)),
        20 => (Key::Meta("cpu".into()), host(4)),
        21 => (Key::IifGroup, host(4)),
        22 => (Key::OifGroup, host(4)),
        23 => (Key::Cgroup, host(4)),
        24 => (Key::Meta("random".into()), host(4)),
        25 => (Key::Meta("ipsec".into()), net(1)),
        26 => (Key::IifKind, Type::Name),
        27 => (Key::OifKind, Type::Name),
        28 => (Key::Meta("ibrpvid".into()), host(2)),
        29 => (Key::Meta("ibrvproto".into()), net(2)),
        30 => (Key::Meta("time".into()), host(8)),
        31 => (Key::Meta("day".into()), net(1)),
        32 => (Key::Meta("hour".into()), host(4)),
        33 => (Key::Meta("sdif".into()), Type::Index),
        34 => (Key::Meta("sdifname".into()), Type::Name),
        _ => return None,
    };
    Some(Read { key, ty })
}

/// NFT_CT_*, with the direction where the expression has one.
pub(crate) fn ct(key: u32, direction: Option<u8>, l3: Option<Ipv>) -> Option<Read> {
    let dir = match direction {
        None => None,
        Some(0) => Some(CtDir::Original),
        Some(1) => Some(CtDir::Reply),
        Some(_) => return None,
    };
    let named = |name: &str| Key::Ct(name.to_owned());
    let addr = |which, ipv| {
        let key = match dir {
            Some(dir) => Key::CtAddr(dir, which, ipv),
            None => return None,
        };
        Some((key, Type::Addr(ipv)))
    };
    let port = |which| dir.map(|dir| (Key::CtPort(dir, which), net(2)));
    let (key, ty) = match key {
        0 => (Key::CtState, host(4)),
        1 => (Key::CtDirection, net(1)),
        2 => (Key::CtStatus, host(4)),
        3 => (Key::CtMark, host(4)),
        4 => (named("secmark"), host(4)),
        5 => (named("expiration"), host(4)),
        6 => (named("helper"), Type::Name),
        7 => (named("l3proto"), net(1)),
        8 => addr(Direction::Src, l3?)?,
        9 => addr(Direction::Dst, l3?)?,
        10 => (Key::CtProto, net(1)),
        11 => port(Direction::Src)?,
        12 => port(Direction::Dst)?,
        13 => (named("label"), Type::Bytes(16)),
        14 => (named("packets"), host(8)),
        15 => (named("bytes"), host(8)),
        16 => (named("avgpkt"), host(8)),
        17 => (Key::CtZone, host(2)),
        18 => (named("event"), host(4)),
        19 => addr(Direction::Src, Ipv::V4)?,
        20 => addr(Direction::Dst, Ipv::V4)?,
        21 => addr(Direction::Src, Ipv::V6)?,
        22 => addr(Direction::Dst, Ipv::V6)?,
        23 => (named("id"), host(4)),
        _ => return None,
    };
    Some(Read { key, ty })
}

/// A header field that has a key of its own: (offset, length, key, type), in bytes.
type HeaderField = (u32, u32, fn() -> Key, Type);

const LINK: &[HeaderField] = &[
    (0, 6, || Key::EtherDaddr, Type::Bytes(6)),
    (6, 6, || Key::EtherSaddr, Type::Bytes(6)),
    (12, 2, || Key::EtherType, net(2)),
];
// Fields that nothing decides on are named as nft names them.
const IPV4: &[HeaderField] = &[
    (2, 2, || Key::Other("ip length".into()), net(2)),
    (4, 2, || Key::Other("ip id".into()), net(2)),
    (8, 1, || Key::Ttl, net(1)),
    (9, 1, || Key::L4Proto, net(1)),
    (10, 2, || Key::Other("ip checksum".into()), net(2)),
    (12, 4, || Key::Saddr(Ipv::V4), Type::Addr(Ipv::V4)),
    (16, 4, || Key::Daddr(Ipv::V4), Type::Addr(Ipv::V4)),
];
const IPV6: &[HeaderField] = &[
    (4, 2, || Key::Other("ip6 length".into()), net(2)),
    (6, 1, || Key::NextHeader, net(1)),
    (7, 1, || Key::Ttl, net(1)),
    (8, 16, || Key::Saddr(Ipv::V6), Type::Addr(Ipv::V6)),
    (24, 16, || Key::Daddr(Ipv::V6), Type::Addr(Ipv::V6)),
];
const ICMP: &[HeaderField] = &[
    (0, 1, || Key::IcmpType, net(1)),
    (1, 1, || Key::IcmpCode, net(1)),
];
const ICMPV6: &[HeaderField] = &[
    (0, 1, || Key::Icmp6Type, net(1)),
    (1, 1, || Key::Icmp6Code, net(1)),
];
const PORTS: &[HeaderField] = &[(0, 2, || Key::Sport, net(2)), (2, 2, || Key::Dport, net(2))];
const TCP: &[HeaderField] = &[
    (0, 2, || Key::Sport, net(2)),
    (2, 2, || Key::Dport, net(2)),
    (4, 4, || Key::Other("tcp sequence".into()), net(4)),
    (8, 4, || Key::Other("tcp ackseq".into()), net(4)),
    (13, 1, || Key::TcpFlags, net(1)),
    (14, 2, || Key::Other("tcp window".into()), net(2)),
    (16, 2, || Key::Other("tcp checksum".into()), net(2)),
    (18, 2, || Key::Other("tcp urgptr".into()), net(2)),
];
const UDP: &[HeaderField] = &[
    (0, 2, || Key::Sport, net(2)),
    (2, 2, || Key::Dport, net(2)),
    (4, 2, || Key::Other("udp length".into()), net(2)),
    (6, 2, || Key::Other("udp checksum".into()), net(2)),
];

/// The fields of the header that a payload base points to, as far as the protocols are known.
fn fields(base: u32, known: Protocols) -> &'static [HeaderField] {
    match (base, known.l3, known.l4) {
        (0, _, _) => LINK,
        (1, Some(Ipv::V4), _) => IPV4,
        (1, Some(Ipv::V6), _) => IPV6,
        (2, _, Some(1)) => ICMP,
        (2, _, Some(58)) => ICMPV6,
        (2, _, Some(6)) => TCP,
        (2, _, Some(17)) => UDP,
        // Port numbers sit in the same place wherever there are any. Without a known protocol
        // (`th dport`, after `meta l4proto { tcp, udp }`) they are read as ports too.
        (2, _, None | Some(33 | 132 | 136)) => PORTS,
        _ => &[],
    }
}

/// A part of a payload load: where it lies in the loaded bytes, and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// First byte in the load.
    pub at: usize,
    /// Number of bytes of the load.
    pub len: usize,
    /// What is read. The type may be longer than `len`: nft loads only the leading bytes of an
    /// address when it compares a prefix of whole bytes.
    pub read: Read,
}

/// Splits a payload load of `len` bytes at `offset` into the header fields that it covers; nft
/// and iptables-nft merge neighbours into one load.
pub(crate) fn payload(base: u32, offset: u32, len: u32, known: Protocols) -> Vec<Part> {
    let fields = fields(base, known);
    let mut parts = Vec::new();
    let mut at = 0;
    while at < len {
        let here = offset.saturating_add(at);
        let Some((_, size, key, ty)) = fields.iter().find(|f| f.0 == here) else {
            break;
        };
        let taken = (*size).min(len - at);
        // Only addresses may be cut.
        if taken < *size && !matches!(ty, Type::Addr(_)) {
            break;
        }
        parts.push(Part {
            at: at as usize,
            len: taken as usize,
            read: Read {
                key: key(),
                ty: *ty,
            },
        });
        at += taken;
    }
    if at == len && !parts.is_empty() {
        return parts;
    }
    vec![Part {
        at: 0,
        len: len as usize,
        read: Read {
            key: raw_payload(base, offset, len),
            ty: if (1..=8).contains(&len) {
                net(len as usize)
            } else {
                Type::Bytes(len as usize)
            },
        },
    }]
}

fn raw_payload(base: u32, offset: u32, len: u32) -> Key {
    let base = match base {
        0 => "link",
        1 => "network",
        2 => "transport",
        3 => "inner",
        4 => "tunnel",
        _ => return Key::Other(format!("payload base {base} offset {offset} length {len}")),
    };
    Key::Payload {
        base: base.to_owned(),
        offset: offset.saturating_mul(8),
        len: len.saturating_mul(8),
    }
}

/// Fields that are only some bits of the bytes loaded: (key, type) for a load of `len` bytes at
/// `offset` with `mask`.
pub(crate) fn masked_payload(
    base: u32,
    offset: u32,
    len: u32,
    mask: &[u8],
    known: Protocols,
) -> Option<Read> {
    let (key, ty) = match (base, known.l3, offset, len, mask) {
        (1, Some(Ipv::V4), 1, 1, [0xfc]) => (Key::Dscp, Type::Shifted { len: 1, shift: 2 }),
        (1, Some(Ipv::V6), 0, 2, [0x0f, 0xc0]) => (Key::Dscp, Type::Shifted { len: 2, shift: 6 }),
        (1, Some(Ipv::V4), 6, 2, [0x1f, 0xff]) => (Key::FragmentOffset, net(2)),
        _ => return None,
    };
    Some(Read { key, ty })
}

/// The name of a payload write's target.
pub(crate) fn payload_target(base: u32, offset: u32, len: u32, known: Protocols) -> String {
    let parts = payload(base, offset, len, known);
    let name = |k: &Key| match k {
        Key::Saddr(Ipv::V4) => "ip saddr".to_owned(),
        Key::Daddr(Ipv::V4) => "ip daddr".to_owned(),
        Key::Saddr(Ipv::V6) => "ip6 saddr".to_owned(),
        Key::Daddr(Ipv::V6) => "ip6 daddr".to_owned(),
        Key::Sport => "th sport".to_owned(),
        Key::Dport => "th dport".to_owned(),
        Key::EtherSaddr => "ether saddr".to_owned(),
        Key::EtherDaddr => "ether daddr".to_owned(),
        Key::EtherType => "ether type".to_owned(),
        Key::Ttl => "ip ttl".to_owned(),
        Key::Payload { base, offset, len } => {
            let base = match base.as_str() {
                "link" => "ll",
                "network" => "nh",
                "transport" => "th",
                _ => "ih",
            };
            format!("@{base},{offset},{len}")
        }
        other => format!("{other:?}"),
    };
    let names: Vec<String> = parts.iter().map(|p| name(&p.read.key)).collect();
    names.join(" . ")
}

/// True for a write that changes what later address and port matches see.
pub(crate) fn rewrites_addressing(base: u32, offset: u32, len: u32, known: Protocols) -> bool {
    let end = offset.saturating_add(len);
    let overlaps = |first: u32, last: u32| offset <= last && end > first;
    match base {
        0 => false,
        1 => match known.l3 {
            Some(Ipv::V4) => overlaps(9, 9) || overlaps(12, 19),
            Some(Ipv::V6) => overlaps(6, 6) || overlaps(8, 39),
            None => true,
        },
        2 => overlaps(0, 3),
        _ => true,
    }
}

/// The `fib` expression: NFTA_FIB_RESULT 2, NFTA_FIB_FLAGS 3.
pub(crate) fn fib(attrs: Attrs<'_>) -> Option<Read> {
    let result = attrs.find(2)?.be32()?;
    let flags = attrs.find(3)?.be32()?;
    let mut fib = Fib {
        saddr: flags & 1 != 0,
        daddr: flags & 2 != 0,
        mark: flags & 4 != 0,
        iif: flags & 8 != 0,
        oif: flags & 16 != 0,
        result: FibResult::Type,
    };
    let ty;
    (fib.result, ty) = match (result, flags & 32 != 0) {
        (_, true) => (FibResult::Present, net(1)),
        (1, _) => (FibResult::Oif, host(4)),
        (2, _) => (FibResult::OifName, Type::Name),
        (3, _) => (FibResult::Type, host(4)),
        _ => return None,
    };
    if flags >= 64 {
        return None;
    }
    Some(Read {
        key: Key::Fib(fib),
        ty,
    })
}

/// The `rt` expression: NFT_RT_*.
pub(crate) fn rt(key: u32) -> Option<Read> {
    let (name, ty) = match key {
        0 => ("classid", host(4)),
        1 => ("ip nexthop", Type::Addr(Ipv::V4)),
        2 => ("ip6 nexthop", Type::Addr(Ipv::V6)),
        3 => ("mtu", host(2)),
        4 => ("ipsec", net(1)),
        _ => return None,
    };
    Some(Read {
        key: Key::Rt(name.to_owned()),
        ty,
    })
}

/// The `socket` expression: NFT_SOCKET_*, with the level of cgroupv2.
pub(crate) fn socket(key: u32, level: u32) -> Option<Read> {
    let (name, ty) = match key {
        0 => ("transparent".to_owned(), net(1)),
        1 => ("mark".to_owned(), host(4)),
        2 => ("wildcard".to_owned(), net(1)),
        3 => (format!("cgroupv2 level {level}"), host(8)),
        _ => return None,
    };
    Some(Read {
        key: Key::Socket(name),
        ty,
    })
}

/// The `exthdr` expression as printed: NFT_EXTHDR_OP_*.
pub(crate) fn exthdr(op: u32, kind: u8, offset: u32, len: u32, present: bool) -> String {
    let header = match (op, kind) {
        (0, 0) => "hbh".to_owned(),
        (0, 43) => "rt".to_owned(),
        (0, 44) => "frag".to_owned(),
        (0, 60) => "dst".to_owned(),
        (0, 135) => "mh".to_owned(),
        (0, k) => format!("{k}"),
        (1, k) => return option("tcp option", k, offset, len, present),
        (2, k) => return option("ip option", k, offset, len, present),
        (3, k) => return option("sctp chunk", k, offset, len, present),
        (4, k) => return option("dccp option", k, offset, len, present),
        (op, k) => format!("op {op} {k}"),
    };
    match present {
        true => header,
        false => format!(
            "exthdr {header} @{},{}",
            offset.saturating_mul(8),
            len.saturating_mul(8)
        ),
    }
}

fn option(what: &str, kind: u8, offset: u32, len: u32, present: bool) -> String {
    let name = match (what, kind) {
        ("tcp option", 0) => "eol".to_owned(),
        ("tcp option", 1) => "nop".to_owned(),
        ("tcp option", 2) => "maxseg".to_owned(),
        ("tcp option", 3) => "window".to_owned(),
        ("tcp option", 4) => "sack-perm".to_owned(),
        ("tcp option", 5) => "sack".to_owned(),
        ("tcp option", 8) => "timestamp".to_owned(),
        ("tcp option", 30) => "mptcp".to_owned(),
        (_, kind) => kind.to_string(),
    };
    let field = match (what, kind, offset, len) {
        ("tcp option", 2, 2, 2) => "size".to_owned(),
        ("tcp option", 3, 2, 1) => "count".to_owned(),
        _ => format!("@{},{}", offset.saturating_mul(8), len.saturating_mul(8)),
    };
    match present {
        true => format!("{what} {name}"),
        false => format!("{what} {name} {field}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(base: u32, offset: u32, len: u32, l3: Option<Ipv>, l4: Option<u8>) -> Vec<Key> {
        let parts = payload(base, offset, len, Protocols { l3, l4 });
        parts.into_iter().map(|p| p.read.key).collect()
    }

    #[test]
    fn a_load_over_neighbouring_fields_is_split() {
        let v4 = Some(Ipv::V4);
        assert_eq!(keys(2, 0, 4, v4, Some(6)), [Key::Sport, Key::Dport]);
        assert_eq!(
            keys(1, 12, 8, v4, None),
            [Key::Saddr(Ipv::V4), Key::Daddr(Ipv::V4)]
        );
        assert_eq!(keys(2, 0, 2, v4, Some(1)), [Key::IcmpType, Key::IcmpCode]);
        assert_eq!(keys(1, 12, 3, v4, None), [Key::Saddr(Ipv::V4)]);
    }

    #[test]
    fn bytes_of_an_unknown_header_stay_bytes() {
        let raw = |base: &str, offset, len| Key::Payload {
            base: base.to_owned(),
            offset,
            len,
        };
        // In an inet table without a match on the version.
        assert_eq!(keys(1, 12, 4, None, None), [raw("network", 96, 32)]);
        assert_eq!(keys(2, 0, 3, None, Some(6)), [raw("transport", 0, 24)]);
        // ESP has no ports.
        assert_eq!(keys(2, 0, 2, None, Some(50)), [raw("transport", 0, 16)]);
        let odd = keys(9, u32::MAX, u32::MAX, None, None);
        assert!(matches!(odd[0], Key::Other(_)));
    }

    #[test]
    fn writes_over_addresses_and_ports_are_noticed() {
        let known = Protocols {
            l3: Some(Ipv::V4),
            l4: Some(6),
        };
        assert!(rewrites_addressing(1, 12, 4, known));
        assert!(rewrites_addressing(1, 10, 4, known));
        assert!(rewrites_addressing(2, 2, 2, known));
        assert!(!rewrites_addressing(1, 8, 1, known));
        assert!(!rewrites_addressing(2, 4, 4, known));
        assert!(!rewrites_addressing(0, 0, 6, known));
    }
}
