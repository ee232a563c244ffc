//! Values: addresses, ports, flags, sets.

use super::*;

pub(super) fn set(s: &SetRef) -> String {
    match s {
        SetRef::Named(name) => format!("@{name}"),
        SetRef::Anonymous(set) => {
            let mut out = String::from("{ ");
            for (i, e) in set.elements.iter().enumerate() {
                if i == 8 {
                    let _ = write!(out, ", … {} more", set.elements.len() - i);
                    break;
                }
                let key: Vec<String> = e.key.iter().map(field).collect();
                let sep = if i > 0 { ", " } else { "" };
                let data = e.data.as_ref().map(data).unwrap_or_default();
                let _ = write!(out, "{sep}{}{data}", key.join(" . "));
            }
            out + " }"
        }
    }
}

pub(super) fn data(d: &reach::ir::Data) -> String {
    use reach::ir::Data;
    match d {
        Data::Verdict(v) => format!(" : {}", verdict(v)),
        Data::Value(f) => format!(" : {}", f.iter().map(field).collect::<Vec<_>>().join(" . ")),
        Data::Object(name) => format!(" : \"{name}\""),
        Data::Unknown(text) => format!(" : {text}"),
    }
}

pub(super) fn field(f: &reach::ir::Field) -> String {
    use reach::ir::Field;
    match f {
        Field::Addr(a, b) => addresses(&reach::AddrSet::from_range(*a, *b)),
        Field::Int(a, b) if a == b => a.to_string(),
        Field::Int(a, b) => format!("{a}-{b}"),
        Field::Name(n) => format!("\"{}{}\"", n.name, if n.wildcard { "*" } else { "" }),
        Field::Bytes(a, _) => format!("0x{}", crate::nft::hex(a)),
        Field::Port { first, last, .. } => format!("{first}-{last}"),
        Field::Any => "*".to_owned(),
        Field::Unknown(text) => text.clone(),
    }
}

/// At most a few of many.
pub(super) fn listed(mut items: Vec<String>) -> String {
    const SHOWN: usize = 16;
    let count = items.len();
    items.truncate(SHOWN);
    if count > SHOWN {
        items.push(format!("… {} more", count - SHOWN));
    }
    match &items[..] {
        [one] => one.clone(),
        _ => format!("{{ {} }}", items.join(", ")),
    }
}

pub(super) fn addresses(set: &reach::AddrSet) -> String {
    let full = |n: &ipnet::IpNet| n.prefix_len() == n.max_prefix_len();
    let one = |(a, b): (std::net::IpAddr, std::net::IpAddr)| {
        let cidrs = reach::AddrSet::from_range(a, b).to_cidrs();
        match &cidrs[..] {
            [net] if full(net) => net.addr().to_string(),
            [net] => net.to_string(),
            _ => format!("{a}-{b}"),
        }
    };
    listed(set.ranges().take(64).map(one).collect())
}

pub(super) fn values_(key: &Key, values: &Values) -> String {
    match values {
        Values::Addr(set) => addresses(set),
        Values::Int(set) => ints(key, set),
        Values::Name(names) => listed(
            names
                .iter()
                .map(|n| format!("\"{}{}\"", n.name, if n.wildcard { "*" } else { "" }))
                .collect(),
        ),
        Values::Bytes(list) => listed(list.iter().map(|(a, _)| bytes(key, a)).collect()),
    }
}

pub(super) fn bytes(key: &Key, value: &[u8]) -> String {
    match key {
        Key::EtherSaddr | Key::EtherDaddr => {
            let parts: Vec<String> = value.iter().map(|b| format!("{b:02x}")).collect();
            parts.join(":")
        }
        _ => format!("0x{}", crate::nft::hex(value)),
    }
}

pub(super) fn ints(key: &Key, set: &IntSet) -> String {
    let one = |v: u64| match (key, v) {
        (Key::L4Proto | Key::NextHeader | Key::CtProto, v) => match v {
            1 => "icmp".to_owned(),
            2 => "igmp".to_owned(),
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            58 => "ipv6-icmp".to_owned(),
            132 => "sctp".to_owned(),
            v => v.to_string(),
        },
        (Key::NfProto, 2) => "ipv4".to_owned(),
        (Key::NfProto, 10) => "ipv6".to_owned(),
        (Key::EtherType, 0x0800) => "ip".to_owned(),
        (Key::EtherType, 0x86dd) => "ip6".to_owned(),
        (Key::EtherType, 0x0806) => "arp".to_owned(),
        (Key::CtState | Key::CtStatus, v) => bit_names(key, v),
        (Key::PktType, v @ 0..=3) => {
            ["host", "broadcast", "multicast", "other"][v as usize].to_owned()
        }
        (
            Key::Fib(Fib {
                result: FibResult::Type,
                ..
            }),
            v @ 1..=5,
        ) => ["unicast", "local", "broadcast", "anycast", "multicast"][v as usize - 1].to_owned(),
        (
            Key::Fib(Fib {
                result: FibResult::Present,
                ..
            }),
            v,
        ) => ["missing", "exists"][usize::from(v != 0)].to_owned(),
        (Key::Mark | Key::CtMark, v) => format!("{v:#x}"),
        (_, v) => v.to_string(),
    };
    let range = |(a, b): &(u64, u64)| match a == b {
        true => one(*a),
        false => format!("{}-{}", one(*a), one(*b)),
    };
    listed(set.intervals().iter().take(64).map(range).collect())
}

pub(super) fn bit_names(key: &Key, bits: u64) -> String {
    const STATES: [(u64, &str); 5] = [
        (ct_state::INVALID, "invalid"),
        (ct_state::ESTABLISHED, "established"),
        (ct_state::RELATED, "related"),
        (ct_state::NEW, "new"),
        (ct_state::UNTRACKED, "untracked"),
    ];
    const STATUS: [(u64, &str); 6] = [
        (1, "expected"),
        (2, "seen-reply"),
        (4, "assured"),
        (8, "confirmed"),
        (16, "snat"),
        (32, "dnat"),
    ];
    const FLAGS: [(u64, &str); 8] = [
        (1, "fin"),
        (2, "syn"),
        (4, "rst"),
        (8, "psh"),
        (16, "ack"),
        (32, "urg"),
        (64, "ecn"),
        (128, "cwr"),
    ];
    let names: &[(u64, &str)] = match key {
        Key::CtState => &STATES,
        Key::CtStatus => &STATUS,
        Key::TcpFlags => &FLAGS,
        _ => &[],
    };
    let known = names.iter().fold(0, |all, (bit, _)| all | bit);
    if bits == 0 || bits & !known != 0 {
        return format!("{bits:#x}");
    }
    let set = names.iter().filter(|(bit, _)| bits & bit != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}
