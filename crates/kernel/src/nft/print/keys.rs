//! What is looked at: fields of the packet and of its surroundings.

use super::*;

pub(super) fn key_(key: &Key) -> String {
    let text = match key {
        Key::Saddr(Ipv::V4) => "ip saddr",
        Key::Saddr(Ipv::V6) => "ip6 saddr",
        Key::Daddr(Ipv::V4) => "ip daddr",
        Key::Daddr(Ipv::V6) => "ip6 daddr",
        Key::L4Proto => "meta l4proto",
        Key::NextHeader => "ip6 nexthdr",
        Key::NfProto => "meta nfproto",
        Key::EtherType => "ether type",
        Key::Sport => "sport",
        Key::Dport => "dport",
        Key::TcpFlags => "flags",
        Key::IcmpType => "icmp type",
        Key::IcmpCode => "icmp code",
        Key::Icmp6Type => "icmpv6 type",
        Key::Icmp6Code => "icmpv6 code",
        Key::Length => "meta length",
        Key::Ttl => "ip ttl",
        Key::Dscp => "ip dscp",
        Key::FragmentOffset => "ip frag-off & 0x1fff",
        Key::EtherSaddr => "ether saddr",
        Key::EtherDaddr => "ether daddr",
        Key::IifName => "iifname",
        Key::OifName => "oifname",
        Key::Iif => "iif",
        Key::Oif => "oif",
        Key::IifGroup => "iifgroup",
        Key::OifGroup => "oifgroup",
        Key::IifType => "iiftype",
        Key::OifType => "oiftype",
        Key::IifKind => "iifkind",
        Key::OifKind => "oifkind",
        Key::IbrName => "ibrname",
        Key::ObrName => "obrname",
        Key::PhysIn => "physdev in",
        Key::PhysOut => "physdev out",
        Key::PhysIsIn => "physdev is-in",
        Key::PhysIsOut => "physdev is-out",
        Key::PhysIsBridged => "physdev is-bridged",
        Key::Mark => "meta mark",
        Key::PktType => "meta pkttype",
        Key::SkUid => "meta skuid",
        Key::SkGid => "meta skgid",
        Key::Cgroup => "meta cgroup",
        Key::Meta(name) => return format!("meta {name}"),
        Key::CtState => "ct state",
        Key::CtStatus => "ct status",
        Key::CtDirection => "ct direction",
        Key::CtMark => "ct mark",
        Key::CtZone => "ct zone",
        Key::CtProto => "ct protocol",
        Key::CtAddr(dir, way, ipv) => {
            let ip = if *ipv == Ipv::V4 { "ip" } else { "ip6" };
            return format!("ct {} {ip} {}", ct_dir(*dir), way_name(*way, "addr"));
        }
        Key::CtPort(dir, way) => {
            let way = match way {
                Direction::Src => "proto-src",
                Direction::Dst => "proto-dst",
            };
            return format!("ct {} {way}", ct_dir(*dir));
        }
        Key::Ct(name) => return format!("ct {name}"),
        Key::Fib(f) => return fib(f),
        Key::Socket(text) => return format!("socket {text}"),
        Key::Rt(text) => return format!("rt {text}"),
        Key::NumGen { modulus, .. } => return format!("numgen mod {modulus}"),
        Key::Hash { modulus, .. } => return format!("hash mod {modulus}"),
        Key::Payload { base, offset, len } => {
            let base = match base.as_str() {
                "link" => "ll",
                "network" => "nh",
                "transport" => "th",
                _ => "ih",
            };
            return format!("@{base},{offset},{len}");
        }
        Key::Other(text) => return text.clone(),
    };
    text.to_owned()
}

pub(super) fn ct_dir(dir: reach::ir::CtDir) -> &'static str {
    match dir {
        reach::ir::CtDir::Original => "original",
        reach::ir::CtDir::Reply => "reply",
    }
}

pub(super) fn way_name(way: Direction, suffix: &str) -> String {
    match way {
        Direction::Src => format!("s{suffix}"),
        Direction::Dst => format!("d{suffix}"),
    }
}

pub(super) fn fib(f: &Fib) -> String {
    let mut selectors = Vec::new();
    for (on, name) in [
        (f.saddr, "saddr"),
        (f.daddr, "daddr"),
        (f.mark, "mark"),
        (f.iif, "iif"),
        (f.oif, "oif"),
    ] {
        if on {
            selectors.push(name);
        }
    }
    let result = match f.result {
        FibResult::Type => "type",
        FibResult::Oif | FibResult::Present => "oif",
        FibResult::OifName => "oifname",
    };
    format!("fib {} {result}", selectors.join(" . "))
}
