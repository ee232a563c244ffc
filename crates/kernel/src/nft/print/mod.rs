//! Rules in nft's words, for people. Not meant to be read back: the statements are the truth.

mod keys;
mod values;

use keys::*;
use reach::ir::{
    ConditionKind, Direction, Expr, Family, Fib, FibResult, IntSet, Ipv, Key, Match, NatKind,
    Operand, RuleVerdict, SetOp, SetRef, Statement, Target, Values, ct_state,
};
use std::fmt::Write;
use values::*;

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

/// What `reject` says behind `with`; empty for what nft takes a bare `reject` for: "port
/// unreachable" of the table's own family, in those of both families the one without a family.
pub(crate) fn reject(kind: u32, code: u8, l3: Option<Ipv>, family: Family) -> String {
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
            4 if family == Family::Ip6 => String::new(),
            4 => "icmpv6 port-unreachable".to_owned(),
            5 => "icmpv6 policy-fail".to_owned(),
            6 => "icmpv6 reject-route".to_owned(),
            code => format!("icmpv6 {code}"),
        },
        (0, _, 3) if family == Family::Ip => String::new(),
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
