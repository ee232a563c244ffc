//! What nft expressions look at.
pub(super) use super::field::{equals, field, is_span, values};
use super::tree::J;
use crate::ir::{CtDir, Direction, Family, Fib, FibResult, Ipv, Key};

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
