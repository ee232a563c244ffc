//! Rules in nft's words, for people. Not meant to be read back: the statements are the truth.

use reach::ir::{
    ConditionKind, Direction, Expr, Family, Fib, FibResult, IntSet, Ipv, Key, Match, NatKind,
    Operand, RuleVerdict, SetOp, SetRef, Statement, Target, Values, ct_state,
};
use std::fmt::Write;

/// A whole rule.
pub(crate) fn rule(statements: &[Statement], comment: Option<&str>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (i, s) in statements.iter().enumerate() {
        // `tcp dport 22` says the protocol by itself.
        let follows = statements[i + 1..].iter().find_map(port_key);
        if let Some(name) = single_protocol(s)
            && follows.is_some()
        {
            parts.push(name.to_owned());
            continue;
        }
        let text = statement(s);
        let after_protocol = i > 0 && single_protocol(&statements[i - 1]).is_some();
        match port_key(s) {
            Some(_) if !after_protocol => parts.push(format!("th {text}")),
            _ => parts.push(text),
        }
    }
    if let Some(comment) = comment {
        parts.push(format!("comment \"{comment}\""));
    }
    parts.join(" ")
}

fn port_key(s: &Statement) -> Option<()> {
    match s {
        Statement::Match(Match::Cmp { of, .. }) => {
            matches!(of.key, Key::Sport | Key::Dport | Key::TcpFlags).then_some(())
        }
        Statement::Match(Match::Bits { key, .. }) => (*key == Key::TcpFlags).then_some(()),
        _ => None,
    }
}

fn single_protocol(s: &Statement) -> Option<&'static str> {
    let Statement::Match(Match::Cmp {
        of: Operand {
            key: Key::L4Proto,
            mask: None,
        },
        negate: false,
        values: Values::Int(v),
    }) = s
    else {
        return None;
    };
    match v.intervals() {
        [(6, 6)] => Some("tcp"),
        [(17, 17)] => Some("udp"),
        [(132, 132)] => Some("sctp"),
        _ => None,
    }
}

fn statement(s: &Statement) -> String {
    match s {
        Statement::Match(m) => match_(m),
        Statement::Verdict(v) => verdict(v),
        Statement::VerdictMap { keys, map } => format!("{} vmap {}", operands(keys), set(map)),
        Statement::Assign { target, value } => format!("{} set {}", target_(target), expr(value)),
        Statement::Nat(n) => nat(n),
        Statement::Tproxy { addr, port, .. } => {
            let addr = addr.map(|a| a.to_string()).unwrap_or_default();
            let port = port.map(|p| format!(":{p}")).unwrap_or_default();
            format!("tproxy to {addr}{port}")
        }
        Statement::NoTrack => "notrack".to_owned(),
        Statement::Log { prefix: Some(p) } => format!("log prefix \"{p}\""),
        Statement::Log { prefix: None } => "log".to_owned(),
        Statement::SetUpdate(u) => {
            let op = match u.op {
                SetOp::Add => "add",
                SetOp::Update => "update",
                SetOp::Delete => "delete",
            };
            let mut inside = operands(&u.keys);
            for c in &u.conditions {
                inside = format!("{inside} {}", c.text);
            }
            format!("{op} @{} {{ {inside} }}", u.set)
        }
        Statement::Object { kind, name } => format!("{kind} name \"{name}\""),
        Statement::ObjectMap { kind, keys, map } => {
            format!("{kind} name {} map {}", operands(keys), set(map))
        }
        Statement::FlowOffload { flowtable } => format!("flow add @{flowtable}"),
        Statement::Synproxy { text }
        | Statement::Dup { text }
        | Statement::Forward { text }
        | Statement::Other { text }
        | Statement::Unknown { text } => text.clone(),
    }
}

fn verdict(v: &RuleVerdict) -> String {
    match v {
        RuleVerdict::Accept => "accept".to_owned(),
        RuleVerdict::Drop => "drop".to_owned(),
        RuleVerdict::Reject { with } if with.is_empty() => "reject".to_owned(),
        RuleVerdict::Reject { with } => format!("reject with {with}"),
        RuleVerdict::Queue { num, bypass: true } => format!("queue flags bypass to {num}"),
        RuleVerdict::Queue { num, bypass: false } => format!("queue to {num}"),
        RuleVerdict::Return => "return".to_owned(),
        RuleVerdict::Continue => "continue".to_owned(),
        RuleVerdict::Jump { chain } => format!("jump {chain}"),
        RuleVerdict::Goto { chain } => format!("goto {chain}"),
    }
}

fn match_(m: &Match) -> String {
    match m {
        Match::Cmp { of, negate, values } => {
            let op = if *negate { "!= " } else { "" };
            format!("{} {op}{}", operand(of), values_(&of.key, values))
        }
        Match::Bits { key, negate, bits } => {
            let op = if *negate { "! " } else { "" };
            format!("{} {op}{}", key_(key), bit_names(key, *bits))
        }
        Match::Lookup {
            keys,
            negate,
            set: s,
        } => {
            let op = if *negate { "!= " } else { "" };
            format!("{} {op}{}", operands(keys), set(s))
        }
        Match::IpSet { set, negate, .. } => {
            format!("{}ipset {set}", if *negate { "! " } else { "" })
        }
        Match::RpFilter { negate, .. } => {
            format!("{}rpfilter", if *negate { "! " } else { "" })
        }
        Match::Conditional(c) => c.text.clone(),
        Match::Unknown { text } => text.clone(),
    }
}

fn operands(list: &[Operand]) -> String {
    list.iter().map(operand).collect::<Vec<_>>().join(" . ")
}

fn operand(o: &Operand) -> String {
    match o.mask {
        Some(mask) => format!("{} & {mask:#x} ==", key_(&o.key)),
        None => key_(&o.key),
    }
}

fn set(s: &SetRef) -> String {
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

fn data(d: &reach::ir::Data) -> String {
    use reach::ir::Data;
    match d {
        Data::Verdict(v) => format!(" : {}", verdict(v)),
        Data::Value(f) => format!(" : {}", f.iter().map(field).collect::<Vec<_>>().join(" . ")),
        Data::Object(name) => format!(" : \"{name}\""),
        Data::Unknown(text) => format!(" : {text}"),
    }
}

fn field(f: &reach::ir::Field) -> String {
    use reach::ir::Field;
    match f {
        Field::Addr(a, b) => addresses(&reach::AddrSet::from_range(*a, *b)),
        Field::Int(a, b) if a == b => a.to_string(),
        Field::Int(a, b) => format!("{a}-{b}"),
        Field::Name(n) => format!("\"{}{}\"", n.name, if n.wildcard { "*" } else { "" }),
        Field::Bytes(a, _) => format!("0x{}", super::hex(a)),
        Field::Port { first, last, .. } => format!("{first}-{last}"),
        Field::Any => "*".to_owned(),
        Field::Unknown(text) => text.clone(),
    }
}

/// At most a few of many.
fn listed(mut items: Vec<String>) -> String {
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

fn addresses(set: &reach::AddrSet) -> String {
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

fn values_(key: &Key, values: &Values) -> String {
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

fn bytes(key: &Key, value: &[u8]) -> String {
    match key {
        Key::EtherSaddr | Key::EtherDaddr => {
            let parts: Vec<String> = value.iter().map(|b| format!("{b:02x}")).collect();
            parts.join(":")
        }
        _ => format!("0x{}", super::hex(value)),
    }
}

fn ints(key: &Key, set: &IntSet) -> String {
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

fn bit_names(key: &Key, bits: u64) -> String {
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

fn key_(key: &Key) -> String {
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

fn ct_dir(dir: reach::ir::CtDir) -> &'static str {
    match dir {
        reach::ir::CtDir::Original => "original",
        reach::ir::CtDir::Reply => "reply",
    }
}

fn way_name(way: Direction, suffix: &str) -> String {
    match way {
        Direction::Src => format!("s{suffix}"),
        Direction::Dst => format!("d{suffix}"),
    }
}

fn fib(f: &Fib) -> String {
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

fn target_(t: &Target) -> String {
    match t {
        Target::Mark => "meta mark".to_owned(),
        Target::CtMark => "ct mark".to_owned(),
        Target::CtZone => "ct zone".to_owned(),
        Target::Trace => "meta nftrace".to_owned(),
        Target::Priority => "meta priority".to_owned(),
        Target::PktType => "meta pkttype".to_owned(),
        Target::Ct(name) => format!("ct {name}"),
        Target::Payload(name) => name.clone(),
    }
}

fn expr(e: &Expr) -> String {
    match e {
        Expr::Int(v) => format!("{v:#x}"),
        Expr::Name(n) => format!("\"{n}\""),
        Expr::Addrs(a, b) if a == b => a.to_string(),
        Expr::Addrs(a, b) => format!("{a}-{b}"),
        Expr::Ports(a, b) if a == b => a.to_string(),
        Expr::Ports(a, b) => format!("{a}-{b}"),
        Expr::Key(k) => key_(k),
        Expr::Bitwise { of, and, xor } => format!("{} & {and:#x} ^ {xor:#x}", expr(of)),
        Expr::Xor(a, b) => format!("{} ^ {}", expr(a), expr(b)),
        Expr::Shift(of, bits) if *bits < 0 => format!("{} >> {}", expr(of), -bits),
        Expr::Shift(of, bits) => format!("{} << {bits}", expr(of)),
        Expr::Map { keys, map } => format!("{} map {}", operands(keys), set(map)),
        Expr::Unknown(text) => text.clone(),
    }
}

fn nat(n: &reach::ir::Nat) -> String {
    let mut out = match n.kind {
        NatKind::Dnat => "dnat",
        NatKind::Snat => "snat",
        NatKind::Masquerade => "masquerade",
        NatKind::Redirect => "redirect",
    }
    .to_owned();
    if n.netmap {
        out += " prefix";
    }
    if n.addr.is_some() || n.port.is_some() {
        out += " to ";
    }
    if let Some(addr) = &n.addr {
        let text = expr(addr);
        let brackets = n.port.is_some() && text.contains(':');
        out += &if brackets { format!("[{text}]") } else { text };
    }
    if let Some(port) = &n.port {
        let _ = write!(out, ":{}", expr(port));
    }
    if n.random {
        out += " random";
    }
    if n.persistent {
        out += " persistent";
    }
    out
}

/// A stateful condition.
pub(crate) fn condition(kind: &ConditionKind) -> String {
    match kind {
        ConditionKind::Limit {
            rate,
            per,
            burst,
            bytes,
            over,
        } => {
            let unit = match per {
                1 => "second".to_owned(),
                60 => "minute".to_owned(),
                3600 => "hour".to_owned(),
                86_400 => "day".to_owned(),
                604_800 => "week".to_owned(),
                n => format!("{n}s"),
            };
            let over = if *over { "over " } else { "" };
            match (bytes, burst) {
                (true, _) => format!("limit rate {over}{rate} bytes/{unit} burst {burst} bytes"),
                // nft's default.
                (false, 5) => format!("limit rate {over}{rate}/{unit}"),
                (false, burst) => format!("limit rate {over}{rate}/{unit} burst {burst} packets"),
            }
        }
        ConditionKind::ConnLimit { count, above } => {
            format!("ct count {}{count}", if *above { "over " } else { "" })
        }
        ConditionKind::Quota { bytes, over } => {
            format!("quota {}{bytes} bytes", if *over { "over " } else { "" })
        }
        other => format!("{other:?}"),
    }
}

/// What `reject` says behind `with`; empty where nft prints none.
pub(crate) fn reject(kind: u32, code: u8, l3: Option<Ipv>, _family: Family) -> String {
    let v4 = [
        "net-unreachable",
        "host-unreachable",
        "prot-unreachable",
        "port-unreachable",
    ];
    let x = [
        "no-route",
        "port-unreachable",
        "host-unreachable",
        "admin-prohibited",
    ];
    match (kind, l3, code) {
        (1, ..) => "tcp reset".to_owned(),
        (2, _, 1) => String::new(),
        (2, _, code) => match x.get(usize::from(code)) {
            Some(name) => format!("icmpx {name}"),
            None => format!("icmpx {code}"),
        },
        (0, Some(Ipv::V6), code) => match code {
            0 => "icmpv6 no-route".to_owned(),
            1 => "icmpv6 admin-prohibited".to_owned(),
            3 => "icmpv6 addr-unreachable".to_owned(),
            4 => String::new(),
            5 => "icmpv6 policy-fail".to_owned(),
            6 => "icmpv6 reject-route".to_owned(),
            code => format!("icmpv6 {code}"),
        },
        (0, _, 3) => String::new(),
        (0, _, 9) => "icmp net-prohibited".to_owned(),
        (0, _, 10) => "icmp host-prohibited".to_owned(),
        (0, _, 13) => "icmp admin-prohibited".to_owned(),
        (0, _, code) => match v4.get(usize::from(code)) {
            Some(name) => format!("icmp {name}"),
            None => format!("icmp {code}"),
        },
        (kind, _, code) => format!("type {kind} code {code}"),
    }
}
