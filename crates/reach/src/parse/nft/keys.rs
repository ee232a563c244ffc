//! What nft expressions look at, and how the values beside them are written.
use super::tree::J;
use crate::ir::{
    CtDir, Direction, Family, Fib, FibResult, Field, Ipv, Key, Match, NamePattern, Values,
    ct_status,
};
use crate::parse::value;
use std::net::IpAddr;

/// How a value of a key is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ty {
    Addr(Ipv),
    Port,
    L4,
    NfProto,
    EtherType,
    /// Interface names, wildcards allowed.
    Name,
    /// An interface index, shown as its name.
    Index,
    /// A number up to this one.
    Int(u64),
    CtState,
    CtStatus,
    CtDir,
    TcpFlags,
    Icmp,
    IcmpCode,
    Icmp6,
    Icmp6Code,
    Mac,
    AddrType,
    PktType,
    Dscp,
    Hardware,
    /// Could be several of these; told by the value's looks.
    Guess,
}

impl Ty {
    /// Values of this type are sets of bits, so that naming some means "any of these".
    pub(super) fn is_bits(self) -> bool {
        matches!(self, Ty::CtState | Ty::CtStatus | Ty::TcpFlags)
    }
    /// The largest number.
    pub(super) fn max(self) -> u64 {
        match self {
            Ty::Int(max) => max,
            Ty::Port | Ty::EtherType | Ty::Hardware => 0xffff,
            Ty::L4 | Ty::NfProto | Ty::Icmp | Ty::IcmpCode | Ty::Icmp6 | Ty::Icmp6Code => 255,
            Ty::Dscp => 63,
            _ => u32::MAX.into(),
        }
    }
    /// The type of that name in a set declaration (`nft describe`).
    pub(super) fn named(name: &str) -> Option<Ty> {
        Some(match name {
            "ipv4_addr" => Ty::Addr(Ipv::V4),
            "ipv6_addr" => Ty::Addr(Ipv::V6),
            "inet_service" => Ty::Port,
            "inet_proto" => Ty::L4,
            "nf_proto" => Ty::NfProto,
            "ether_type" => Ty::EtherType,
            "ether_addr" => Ty::Mac,
            "ifname" => Ty::Name,
            "iface_index" => Ty::Index,
            "iface_type" => Ty::Hardware,
            "mark" | "uid" | "gid" | "devgroup" | "realm" | "classid" | "integer" | "ct_id" => {
                Ty::Int(u32::MAX.into())
            }
            "ct_state" => Ty::CtState,
            "ct_status" => Ty::CtStatus,
            "ct_dir" => Ty::CtDir,
            "tcp_flag" => Ty::TcpFlags,
            "icmp_type" => Ty::Icmp,
            "icmp_code" => Ty::IcmpCode,
            "icmpv6_type" => Ty::Icmp6,
            "icmpv6_code" => Ty::Icmp6Code,
            "pkt_type" => Ty::PktType,
            "fib_addrtype" => Ty::AddrType,
            "dscp" => Ty::Dscp,
            "string" => Ty::Name,
            _ => return None,
        })
    }
}

/// A key, the type of its values, and what must hold before it can be read.
pub(super) struct Looked {
    pub(super) key: Key,
    pub(super) ty: Ty,
    /// NFPROTO_* that the packet must have.
    pub(super) nfproto: Option<u64>,
    /// Transport protocol that the packet must have.
    pub(super) l4: Option<u64>,
}

fn plain(key: Key, ty: Ty) -> Option<Looked> {
    Some(Looked {
        key,
        ty,
        nfproto: None,
        l4: None,
    })
}

/// What an expression looks at; `None` when it is none that is known.
pub(super) fn key(expr: &J<'_>, family: Family) -> Option<Looked> {
    let (kind, body) = expr.only()?;
    match kind {
        "payload" => payload(body),
        "meta" => meta(body.get_text("key")?),
        "ct" => conntrack(body, family),
        "fib" => fib(body),
        "numgen" => plain(
            Key::NumGen {
                modulus: small(body, "mod")?,
                offset: small(body, "offset").unwrap_or(0),
            },
            Ty::Int(u32::MAX.into()),
        ),
        "jhash" | "symhash" => plain(
            Key::Hash {
                modulus: small(body, "mod")?,
                offset: small(body, "offset").unwrap_or(0),
            },
            Ty::Int(u32::MAX.into()),
        ),
        "socket" => plain(
            Key::Socket(body.get_text("key")?.to_string()),
            Ty::Int(u32::MAX.into()),
        ),
        "rt" => plain(Key::Rt(body.get_text("key")?.to_string()), Ty::Guess),
        "exthdr" | "tcp option" | "ip option" | "sctp chunk" | "dccp option" | "osf" | "ipsec" => {
            plain(
                Key::Other(super::print::expr(expr)),
                Ty::Int(u32::MAX.into()),
            )
        }
        _ => None,
    }
}

fn small(body: &J<'_>, name: &str) -> Option<u32> {
    u32::try_from(body.get(name)?.number()?).ok()
}

fn payload(body: &J<'_>) -> Option<Looked> {
    if let Some(base) = body.get_text("base") {
        let base = match base {
            "ll" => "link",
            "nh" => "network",
            "th" => "transport",
            _ => "inner",
        };
        let key = Key::Payload {
            base: base.to_string(),
            offset: small(body, "offset")?,
            len: small(body, "len")?,
        };
        return plain(key, Ty::Int(u64::MAX));
    }
    let (protocol, field) = (body.get_text("protocol")?, body.get_text("field")?);
    let byte = Ty::Int(255);
    let (key, ty) = match (protocol, field) {
        ("ip", "saddr") => (Key::Saddr(Ipv::V4), Ty::Addr(Ipv::V4)),
        ("ip", "daddr") => (Key::Daddr(Ipv::V4), Ty::Addr(Ipv::V4)),
        ("ip6", "saddr") => (Key::Saddr(Ipv::V6), Ty::Addr(Ipv::V6)),
        ("ip6", "daddr") => (Key::Daddr(Ipv::V6), Ty::Addr(Ipv::V6)),
        ("ip", "protocol") => (Key::L4Proto, Ty::L4),
        ("ip6", "nexthdr") => (Key::NextHeader, Ty::L4),
        ("ip", "ttl") | ("ip6", "hoplimit") => (Key::Ttl, byte),
        ("ip" | "ip6", "dscp") => (Key::Dscp, Ty::Dscp),
        ("ip", "frag-off") => (Key::Other("ip frag-off".to_string()), Ty::Int(0xffff)),
        ("tcp" | "udp" | "udplite" | "sctp" | "dccp" | "th", "sport") => (Key::Sport, Ty::Port),
        ("tcp" | "udp" | "udplite" | "sctp" | "dccp" | "th", "dport") => (Key::Dport, Ty::Port),
        ("tcp", "flags") => (Key::TcpFlags, Ty::TcpFlags),
        ("icmp", "type") => (Key::IcmpType, Ty::Icmp),
        ("icmp", "code") => (Key::IcmpCode, Ty::IcmpCode),
        ("icmpv6", "type") => (Key::Icmp6Type, Ty::Icmp6),
        ("icmpv6", "code") => (Key::Icmp6Code, Ty::Icmp6Code),
        ("ether", "saddr") => (Key::EtherSaddr, Ty::Mac),
        ("ether", "daddr") => (Key::EtherDaddr, Ty::Mac),
        ("ether", "type") => (Key::EtherType, Ty::EtherType),
        _ => (Key::Other(format!("{protocol} {field}")), Ty::Int(u64::MAX)),
    };
    let nfproto = match protocol {
        "ip" => Some(2),
        "ip6" => Some(10),
        _ => None,
    };
    let l4 = match protocol {
        "tcp" => Some(6),
        "udp" => Some(17),
        "udplite" => Some(136),
        "sctp" => Some(132),
        "dccp" => Some(33),
        "icmp" => Some(1),
        "icmpv6" => Some(58),
        "igmp" => Some(2),
        "esp" => Some(50),
        "ah" => Some(51),
        "comp" => Some(108),
        _ => None,
    };
    Some(Looked {
        key,
        ty,
        nfproto,
        l4,
    })
}

fn meta(name: &str) -> Option<Looked> {
    let number = Ty::Int(u32::MAX.into());
    let (key, ty) = match name {
        "l4proto" => (Key::L4Proto, Ty::L4),
        "nfproto" => (Key::NfProto, Ty::NfProto),
        "protocol" => (Key::EtherType, Ty::EtherType),
        "iifname" => (Key::IifName, Ty::Name),
        "oifname" => (Key::OifName, Ty::Name),
        "iif" => (Key::Iif, Ty::Index),
        "oif" => (Key::Oif, Ty::Index),
        "iifgroup" => (Key::IifGroup, number),
        "oifgroup" => (Key::OifGroup, number),
        "iiftype" => (Key::IifType, Ty::Hardware),
        "oiftype" => (Key::OifType, Ty::Hardware),
        "iifkind" => (Key::IifKind, Ty::Name),
        "oifkind" => (Key::OifKind, Ty::Name),
        "ibrname" | "ibridgename" => (Key::IbrName, Ty::Name),
        "obrname" | "obridgename" => (Key::ObrName, Ty::Name),
        "mark" => (Key::Mark, number),
        "pkttype" => (Key::PktType, Ty::PktType),
        "length" => (Key::Length, number),
        "skuid" => (Key::SkUid, number),
        "skgid" => (Key::SkGid, number),
        "cgroup" => (Key::Cgroup, number),
        other => (Key::Meta(other.to_string()), Ty::Guess),
    };
    plain(key, ty)
}

fn conntrack(body: &J<'_>, family: Family) -> Option<Looked> {
    let dir = match body.get_text("dir") {
        Some("original") => Some(CtDir::Original),
        Some("reply") => Some(CtDir::Reply),
        Some(_) => return None,
        None => None,
    };
    let key = body.get_text("key")?;
    let (version, name) = match key.split_once(' ') {
        Some(("ip", name)) => (Some(Ipv::V4), name),
        Some(("ip6", name)) => (Some(Ipv::V6), name),
        Some(_) => return None,
        None => (
            match body.get_text("family") {
                Some("ip") => Some(Ipv::V4),
                Some("ip6") => Some(Ipv::V6),
                _ => None,
            },
            key,
        ),
    };
    let version = version.unwrap_or(if family == Family::Ip6 {
        Ipv::V6
    } else {
        Ipv::V4
    });
    let number = Ty::Int(u32::MAX.into());
    let (key, ty) = match (name, dir) {
        ("state", None) => (Key::CtState, Ty::CtState),
        ("status", None) => (Key::CtStatus, Ty::CtStatus),
        ("direction", None) => (Key::CtDirection, Ty::CtDir),
        ("mark", None) => (Key::CtMark, number),
        ("zone", None) => (Key::CtZone, Ty::Int(0xffff)),
        ("protocol", _) => (Key::CtProto, Ty::L4),
        ("l3proto", _) => (Key::Ct("l3proto".to_string()), Ty::NfProto),
        ("saddr", Some(dir)) => (Key::CtAddr(dir, Direction::Src, version), Ty::Addr(version)),
        ("daddr", Some(dir)) => (Key::CtAddr(dir, Direction::Dst, version), Ty::Addr(version)),
        ("proto-src", Some(dir)) => (Key::CtPort(dir, Direction::Src), Ty::Port),
        ("proto-dst", Some(dir)) => (Key::CtPort(dir, Direction::Dst), Ty::Port),
        ("helper", _) => (Key::Ct("helper".to_string()), Ty::Name),
        (other, _) => (Key::Ct(other.to_string()), Ty::Guess),
    };
    plain(key, ty)
}

fn fib(body: &J<'_>) -> Option<Looked> {
    let flag = |name| body.has_flag("flags", name);
    let (result, ty) = match body.get_text("result")? {
        "type" => (FibResult::Type, Ty::AddrType),
        "oif" => (FibResult::Oif, Ty::Index),
        "oifname" => (FibResult::OifName, Ty::Name),
        // Newer versions call `exists` and `missing` so.
        "check" => (FibResult::Present, Ty::Int(1)),
        _ => return None,
    };
    let fib = Fib {
        saddr: flag("saddr"),
        daddr: flag("daddr"),
        iif: flag("iif"),
        oif: flag("oif"),
        mark: flag("mark"),
        result,
    };
    plain(Key::Fib(fib), ty)
}

/// One value, range or prefix.
pub(super) fn field(value: &J<'_>, ty: Ty) -> Option<Field> {
    match value {
        J::Num(_) | J::Bool(_) => {
            let n = value.number()?;
            Some(Field::Int(n, n))
        }
        J::Str(text) => scalar(text, ty),
        J::Arr(flags) => {
            let bits = flags
                .iter()
                .try_fold(0, |bits, flag| match field(flag, ty)? {
                    Field::Int(a, b) if a == b => Some(bits | a),
                    _ => None,
                })?;
            Some(Field::Int(bits, bits))
        }
        J::Obj(_) => match value.only()? {
            ("range", range) => match range.list()? {
                [first, last] => span(field(first, ty)?, field(last, ty)?),
                _ => None,
            },
            ("prefix", prefix) => {
                let (addr, len) = (prefix.get_text("addr")?, prefix.get("len")?.number()?);
                let ipv6 = addr.contains(':');
                match value::network(&format!("{addr}/{len}"), ipv6)? {
                    value::Net::Range(first, last) => Some(Field::Addr(first, last)),
                    value::Net::Masked(..) => None,
                }
            }
            ("|", flags) => field(&J::Arr(flags.list()?.to_vec()), ty),
            ("elem", elem) => field(elem.get("val")?, ty),
            _ => None,
        },
        J::Null => None,
    }
}

/// Whether a value is written as a range, `80-90`: not a prefix, not a name with a hyphen in it.
pub(super) fn is_span(value: &J<'_>, ty: Ty) -> bool {
    let Some(text) = value.text() else {
        return value.get("range").is_some();
    };
    let halves = text.split_once('-');
    halves.is_some_and(|(a, b)| scalar(a, ty).is_some() && scalar(b, ty).is_some())
        && !matches!(scalar(text, ty), None | Some(Field::Name(_)))
}

fn span(first: Field, last: Field) -> Option<Field> {
    Some(match (first, last) {
        (Field::Addr(a, _), Field::Addr(_, b)) if a.is_ipv4() == b.is_ipv4() && a <= b => {
            Field::Addr(a, b)
        }
        (Field::Int(a, _), Field::Int(_, b)) if a <= b => Field::Int(a, b),
        (Field::Bytes(a, _), Field::Bytes(_, b)) if a.len() == b.len() && a <= b => {
            Field::Bytes(a, b)
        }
        _ => return None,
    })
}

/// A value as text: `22`, `80-90`, `10.0.0.0/8`, `established`, `eth*`.
fn scalar(text: &str, ty: Ty) -> Option<Field> {
    let one = |n: u64| Some(Field::Int(n, n));
    if text == "*" {
        return Some(Field::Any);
    }
    match ty {
        Ty::Name => return Some(Field::Name(NamePattern::nft(text))),
        Ty::Index => {
            return match value::number(text) {
                Some(index) => one(index),
                None => Some(Field::Name(NamePattern::exact(text))),
            };
        }
        Ty::Guess => return guess(text),
        Ty::Addr(ip) => {
            let ipv6 = ip == Ipv::V6;
            if let Some((first, last)) = value::address_range(text, ipv6) {
                return Some(Field::Addr(first, last));
            }
            return match value::network(text, ipv6)? {
                value::Net::Range(first, last) => Some(Field::Addr(first, last)),
                value::Net::Masked(..) => None,
            };
        }
        Ty::Mac => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            return Some(Field::Bytes(value::mac(first)?, value::mac(last)?));
        }
        _ => {}
    }
    if let Some(n) = symbol(text, ty) {
        return one(n);
    }
    let (first, last) = text.split_once('-')?;
    let (first, last) = (symbol(first, ty)?, symbol(last, ty)?);
    (first <= last).then_some(Field::Int(first, last))
}

fn symbol(text: &str, ty: Ty) -> Option<u64> {
    if let Some(n) = value::number(text) {
        return Some(n);
    }
    match ty {
        Ty::Port => value::port(text).map(u64::from),
        Ty::L4 => value::protocol(text).map(u64::from),
        Ty::NfProto => match text {
            "ipv4" => Some(2),
            "ipv6" => Some(10),
            "bridge" => Some(7),
            "arp" => Some(3),
            "netdev" => Some(5),
            _ => None,
        },
        Ty::EtherType => value::ether_type(text),
        Ty::CtState => value::ct_state_bit(text).filter(|&b| b < 1 << 16),
        Ty::CtStatus => Some(match text {
            "expected" => ct_status::EXPECTED,
            "seen-reply" => ct_status::SEEN_REPLY,
            "assured" => ct_status::ASSURED,
            "confirmed" => ct_status::CONFIRMED,
            "snat" => ct_status::SNAT,
            "dnat" => ct_status::DNAT,
            "dying" => 512,
            _ => return None,
        }),
        Ty::CtDir => match text {
            "original" => Some(0),
            "reply" => Some(1),
            _ => None,
        },
        Ty::TcpFlags => value::tcp_flag(text),
        Ty::Icmp => value::icmp(text)
            .filter(|i| i.1.is_none())
            .map(|i| i.0.into()),
        Ty::Icmp6 => value::icmp6(text)
            .filter(|i| i.1.is_none())
            .map(|i| i.0.into()),
        Ty::IcmpCode => match text {
            "net-unreachable" => Some(0),
            "host-unreachable" => Some(1),
            "prot-unreachable" => Some(2),
            "port-unreachable" => Some(3),
            "frag-needed" => Some(4),
            "net-prohibited" => Some(9),
            "host-prohibited" => Some(10),
            "admin-prohibited" => Some(13),
            _ => None,
        },
        Ty::Icmp6Code => match text {
            "no-route" => Some(0),
            "admin-prohibited" => Some(1),
            "addr-unreachable" => Some(3),
            "port-unreachable" => Some(4),
            "policy-fail" => Some(5),
            "reject-route" => Some(6),
            _ => None,
        },
        Ty::AddrType => value::address_type(text),
        Ty::PktType => value::packet_type(text),
        Ty::Dscp => value::dscp(text),
        Ty::Hardware => match text {
            "ether" => Some(1),
            "ppp" => Some(512),
            "ipip" => Some(768),
            "ipip6" => Some(769),
            "loopback" => Some(772),
            "sit" => Some(776),
            "ipgre" => Some(778),
            "none" => Some(0xfffe),
            _ => None,
        },
        _ => match text {
            "true" | "exists" => Some(1),
            "false" | "missing" => Some(0),
            _ => None,
        },
    }
}

/// A value whose type is not known: address, number, or name.
fn guess(text: &str) -> Option<Field> {
    for ipv6 in [false, true] {
        if let Some((first, last)) = value::address_range(text, ipv6) {
            return Some(Field::Addr(first, last));
        }
        if text.contains('/')
            && let Some(value::Net::Range(first, last)) = value::network(text, ipv6)
        {
            return Some(Field::Addr(first, last));
        }
    }
    if let Some(bytes) = value::mac(text) {
        return Some(Field::Bytes(bytes.clone(), bytes));
    }
    if let Some(n) = value::number(text) {
        return Some(Field::Int(n, n));
    }
    if let Some((first, last)) = text.split_once('-')
        && let (Some(first), Some(last)) = (value::number(first), value::number(last))
        && first <= last
    {
        return Some(Field::Int(first, last));
    }
    Some(Field::Name(NamePattern::exact(text)))
}

/// Values of one type from the fields of an anonymous set, or one field.
pub(super) fn values(fields: Vec<Field>) -> Option<Values> {
    match fields.first()? {
        Field::Addr(..) => {
            let ranges: Option<Vec<(IpAddr, IpAddr)>> = fields
                .iter()
                .map(|f| match f {
                    Field::Addr(first, last) => Some((*first, *last)),
                    _ => None,
                })
                .collect();
            Some(Values::Addr(crate::AddrSet::from_ranges(ranges?)))
        }
        Field::Int(..) => {
            let ranges: Option<Vec<(u64, u64)>> = fields
                .iter()
                .map(|f| match f {
                    Field::Int(first, last) => Some((*first, *last)),
                    _ => None,
                })
                .collect();
            Some(Values::Int(ranges?.into()))
        }
        Field::Name(_) => {
            let names: Option<Vec<NamePattern>> = fields
                .into_iter()
                .map(|f| match f {
                    Field::Name(name) => Some(name),
                    _ => None,
                })
                .collect();
            Some(Values::names(names?))
        }
        Field::Bytes(..) => {
            let ranges: Option<Vec<(Vec<u8>, Vec<u8>)>> = fields
                .into_iter()
                .map(|f| match f {
                    Field::Bytes(first, last) => Some((first, last)),
                    _ => None,
                })
                .collect();
            let mut ranges = ranges?;
            ranges.sort();
            ranges.dedup();
            Some(Values::Bytes(ranges))
        }
        _ => None,
    }
}

/// A plain comparison.
pub(super) fn equals(key: Key, value: u64) -> Match {
    Match::Cmp {
        of: key.into(),
        negate: false,
        values: Values::int(value),
    }
}
