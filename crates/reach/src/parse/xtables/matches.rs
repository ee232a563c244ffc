//! The matches of iptables, as `iptables-extensions(8)` and the `xt_*.c` of the kernel have them.
use super::rule::{Module, Opt, Scope};
use super::value::{self, Net};
use crate::AddrSet;
use crate::ir::{
    Condition, ConditionKind, CtDir, Direction, Fib, FibResult, IntSet, Ipv, Key, Match,
    NamePattern, Operand, RecentOp, Values, ct_state, ct_status,
};

/// The conditions of one match, all of which must hold; `None` when it or an option is not known.
///
/// `text` is how the rule spells it. `drops`: the rule's target gives a client nothing.
pub(super) fn decode(
    module: &Module<'_>,
    scope: &Scope<'_>,
    text: &str,
    drops: bool,
) -> Option<Vec<Match>> {
    if module.opts.iter().any(|o| !o.known) {
        return None;
    }
    let conditional = |kind| {
        Some(vec![Match::Conditional(Condition {
            kind,
            text: text.to_string(),
        })])
    };
    match module.name {
        "tcp" | "udp" | "udplite" | "sctp" | "dccp" => each(module, transport),
        "multiport" => each(module, multiport),
        "icmp" => each(module, |o| icmp(o, false)),
        "icmp6" | "icmpv6" | "ipv6-icmp" => each(module, |o| icmp(o, true)),
        "state" => each(module, |o| states(o.arg(), o.negate)),
        "conntrack" => conntrack(module, scope),
        "addrtype" if scope.ipv6 => each(module, |o| addrtype6(o, module)),
        "addrtype" => addrtype(module),
        "iprange" => each(module, |o| iprange(o, scope)),
        "mark" => each(module, |o| mark(Key::Mark, o)),
        "connmark" => each(module, |o| mark(Key::CtMark, o)),
        "set" => set(module),
        "rpfilter" => Some(vec![Match::RpFilter {
            loose: module.has("--loose"),
            validmark: module.has("--validmark"),
            accept_local: module.has("--accept-local"),
            negate: module.has("--invert"),
        }]),
        "physdev" => each(module, physdev),
        "pkttype" => each(module, |o| {
            ints(
                Key::PktType,
                o,
                IntSet::one(value::packet_type(&o.arg().to_ascii_lowercase())?),
            )
        }),
        "mac" => each(module, |o| {
            let bytes = value::mac(o.arg())?;
            Some(vec![Match::Cmp {
                of: Key::EtherSaddr.into(),
                negate: o.negate,
                values: Values::Bytes(vec![(bytes.clone(), bytes)]),
            }])
        }),
        "owner" => each(module, owner),
        "cgroup" if module.has("--cgroup") => {
            each(module, |o| ints(Key::Cgroup, o, range(o.arg(), ':')?))
        }
        "length" => each(module, |o| ints(Key::Length, o, range(o.arg(), ':')?)),
        "ttl" | "hl" => each(module, ttl),
        "dscp" => each(module, |o| {
            ints(Key::Dscp, o, IntSet::one(value::dscp(o.arg())?))
        }),
        "devgroup" => each(module, devgroup),
        "limit" => limit(module, text),
        "hashlimit" => conditional(hashlimit(module)?),
        "recent" => conditional(recent(module)?),
        "connlimit" => conditional(connlimit(module)?),
        "quota" => {
            let o = module.opt("--quota")?;
            conditional(ConditionKind::Quota {
                bytes: value::number(o.arg())?,
                over: o.negate,
            })
        }
        "statistic" => conditional(ConditionKind::Statistic),
        "time" => conditional(ConditionKind::Time),
        "string" | "bpf" | "u32" | "tcpmss" => conditional(ConditionKind::Content),
        "connbytes" | "rateest" | "osf" | "cpu" | "cluster" => conditional(ConditionKind::Other),
        // These look at IPv6 extension headers, which a client may send or not. A rule that refuses such
        // packets takes nothing from a client that sends plain ones; any other rule may let it in.
        "rt" | "hbh" | "dst" | "frag" | "mh" if drops && !negated(module) => {
            Some(vec![Match::Cmp {
                of: Key::NextHeader.into(),
                negate: false,
                values: Values::int(match module.name {
                    "rt" => 43,
                    "hbh" => 0,
                    "dst" => 60,
                    "frag" => 44,
                    _ => 135,
                }),
            }])
        }
        _ => None,
    }
}

fn negated(module: &Module<'_>) -> bool {
    module.opts.iter().any(|o| o.negate)
}

fn each<'a>(
    module: &Module<'a>,
    mut option: impl FnMut(&Opt<'a>) -> Option<Vec<Match>>,
) -> Option<Vec<Match>> {
    let mut out = Vec::new();
    for o in &module.opts {
        out.extend(option(o)?);
    }
    Some(out)
}

fn ints(key: Key, o: &Opt<'_>, values: IntSet) -> Option<Vec<Match>> {
    Some(vec![Match::Cmp {
        of: key.into(),
        negate: o.negate,
        values: Values::Int(values),
    }])
}

/// `N` or `FIRST-LAST` with the given separator; an open end is as wide as 32 bits.
fn range(text: &str, separator: char) -> Option<IntSet> {
    let Some((first, last)) = text.split_once(separator) else {
        return Some(IntSet::one(value::number(text)?));
    };
    let first = if first.is_empty() {
        0
    } else {
        value::number(first)?
    };
    let last = if last.is_empty() {
        u32::MAX.into()
    } else {
        value::number(last)?
    };
    (first <= last).then(|| IntSet::range(first, last))
}

fn ports(text: &str) -> Option<IntSet> {
    let (first, last) = value::port_range(text, ':')?;
    (first <= last).then(|| IntSet::range(first.into(), last.into()))
}

fn transport(o: &Opt<'_>) -> Option<Vec<Match>> {
    match o.name {
        "--sport" | "--source-port" => ints(Key::Sport, o, ports(o.arg())?),
        "--dport" | "--destination-port" => ints(Key::Dport, o, ports(o.arg())?),
        "--syn" => flags(o, 1 | 2 | 4 | 16, 2),
        "--tcp-flags" => flags(o, flag_list(o.arg())?, flag_list(o.args.get(1)?)?),
        _ => None,
    }
}

fn flag_list(text: &str) -> Option<u64> {
    match text.to_ascii_uppercase().as_str() {
        "ALL" => Some(63),
        "NONE" => Some(0),
        _ => text
            .split(',')
            .try_fold(0, |bits, flag| Some(bits | value::tcp_flag(flag)?)),
    }
}

fn flags(o: &Opt<'_>, mask: u64, value: u64) -> Option<Vec<Match>> {
    Some(vec![Match::Cmp {
        of: Operand {
            key: Key::TcpFlags,
            mask: Some(mask.into()),
        },
        negate: o.negate,
        values: Values::int(value),
    }])
}

fn multiport(o: &Opt<'_>) -> Option<Vec<Match>> {
    let ranges: Option<Vec<(u64, u64)>> = o
        .arg()
        .split(',')
        .map(|part| {
            let (first, last) = value::port_range(part, ':')?;
            (first <= last).then_some((first.into(), last.into()))
        })
        .collect();
    let set = IntSet::from(ranges?);
    match o.name {
        "--sports" | "--source-ports" => ints(Key::Sport, o, set),
        "--dports" | "--destination-ports" => ints(Key::Dport, o, set),
        // Neither port is in the set: two conditions. Either is: no conjunction says that.
        "--ports" if o.negate => {
            let mut both = ints(Key::Sport, o, set.clone())?;
            both.extend(ints(Key::Dport, o, set)?);
            Some(both)
        }
        _ => None,
    }
}

fn icmp(o: &Opt<'_>, v6: bool) -> Option<Vec<Match>> {
    let text = o.arg();
    if text == "any" || text == "255" && !v6 {
        return (!o.negate).then(Vec::new);
    }
    let (kind, code) = match text.split_once('/') {
        Some((kind, code)) => (value::number(kind)?, Some(value::number(code)?)),
        None => match value::number(text) {
            Some(kind) => (kind, None),
            None if v6 => value::icmp6(text).map(|(t, c)| (t.into(), c.map(u64::from)))?,
            None => value::icmp(text).map(|(t, c)| (t.into(), c.map(u64::from)))?,
        },
    };
    let keys = if v6 {
        (Key::Icmp6Type, Key::Icmp6Code)
    } else {
        (Key::IcmpType, Key::IcmpCode)
    };
    let mut out = ints(keys.0, o, IntSet::one(kind))?;
    if let Some(code) = code {
        if o.negate {
            return None;
        }
        out.extend(ints(keys.1, o, IntSet::one(code))?);
    }
    Some(out)
}

fn states(text: &str, negate: bool) -> Option<Vec<Match>> {
    let bits = text
        .split(',')
        .try_fold(0, |bits, state| Some(bits | value::ct_state_bit(state)?))?;
    Some(vec![Match::Bits {
        key: Key::CtState,
        negate,
        bits,
    }])
}

fn conntrack(module: &Module<'_>, scope: &Scope<'_>) -> Option<Vec<Match>> {
    // For a packet without a conntrack entry xt_conntrack looks at --ctstate alone, if it is there.
    let mut without_entry = false;
    let out = each(module, |o| {
        let address = |dir, way| address(o, Key::CtAddr(dir, way, scope.ip()), scope);
        let port = |dir, way| ints(Key::CtPort(dir, way), o, ports(o.arg())?);
        match o.name {
            "--ctstate" => {
                let out = states(o.arg(), o.negate)?;
                if let [Match::Bits { bits, .. }] = out[..] {
                    let free = bits & (ct_state::UNTRACKED | ct_state::INVALID);
                    without_entry = free
                        != if o.negate {
                            ct_state::UNTRACKED | ct_state::INVALID
                        } else {
                            0
                        };
                }
                Some(out)
            }
            "--ctproto" => ints(
                Key::CtProto,
                o,
                IntSet::one(value::protocol(o.arg())?.into()),
            ),
            "--ctorigsrc" => address(CtDir::Original, Direction::Src),
            "--ctorigdst" => address(CtDir::Original, Direction::Dst),
            "--ctreplsrc" => address(CtDir::Reply, Direction::Src),
            "--ctrepldst" => address(CtDir::Reply, Direction::Dst),
            "--ctorigsrcport" => port(CtDir::Original, Direction::Src),
            "--ctorigdstport" => port(CtDir::Original, Direction::Dst),
            "--ctreplsrcport" => port(CtDir::Reply, Direction::Src),
            "--ctrepldstport" => port(CtDir::Reply, Direction::Dst),
            "--ctstatus" => status(o),
            "--ctdir" => {
                let reply = match o.arg().to_ascii_uppercase().as_str() {
                    "ORIGINAL" => 0,
                    "REPLY" => 1,
                    _ => return None,
                };
                ints(Key::CtDirection, o, IntSet::one(reply))
            }
            _ => None,
        }
    })?;
    (!without_entry || module.opts.len() == 1).then_some(out)
}

fn status(o: &Opt<'_>) -> Option<Vec<Match>> {
    let bits = o.arg().split(',').try_fold(0, |bits, name| {
        Some(
            bits | match name.to_ascii_uppercase().as_str() {
                "EXPECTED" => ct_status::EXPECTED,
                "SEEN_REPLY" => ct_status::SEEN_REPLY,
                "ASSURED" => ct_status::ASSURED,
                "CONFIRMED" => ct_status::CONFIRMED,
                _ => return None,
            },
        )
    })?;
    Some(vec![Match::Bits {
        key: Key::CtStatus,
        negate: o.negate,
        bits,
    }])
}

fn address(o: &Opt<'_>, key: Key, scope: &Scope<'_>) -> Option<Vec<Match>> {
    let (mask, set) = match value::network(o.arg(), scope.ipv6)? {
        Net::Range(first, last) => (None, AddrSet::from_range(first, last)),
        Net::Masked(address, mask) => (Some(mask), AddrSet::from_range(address, address)),
    };
    Some(vec![Match::Cmp {
        of: Operand { key, mask },
        negate: o.negate,
        values: Values::Addr(set),
    }])
}

fn addrtype(module: &Module<'_>) -> Option<Vec<Match>> {
    each(module, |o| {
        let saddr = o.name == "--src-type";
        if !saddr && o.name != "--dst-type" {
            return Some(vec![]);
        }
        let types: Option<IntSet> = o.arg().split(',').map(value::address_type).collect();
        let fib = Fib {
            saddr,
            daddr: !saddr,
            iif: module.has("--limit-iface-in"),
            oif: module.has("--limit-iface-out"),
            mark: false,
            result: FibResult::Type,
        };
        ints(Key::Fib(fib), o, types?)
    })
}

/// xt_addrtype asks other questions of IPv6 addresses: UNICAST, MULTICAST and UNSPEC by the address alone,
/// and of several types all must hold (match_type6).
fn addrtype6(o: &Opt<'_>, module: &Module<'_>) -> Option<Vec<Match>> {
    let types = o.arg().to_ascii_uppercase();
    let range = |first: &str, last: &str| Some((first.parse().ok()?, last.parse().ok()?));
    let (first, last) = match (o.name, types.as_str()) {
        ("--limit-iface-in" | "--limit-iface-out", _) => return Some(vec![]),
        (_, "LOCAL" | "ANYCAST" | "UNREACHABLE") => {
            let fib = Fib {
                saddr: o.name == "--src-type",
                daddr: o.name == "--dst-type",
                iif: module.has("--limit-iface-in"),
                oif: module.has("--limit-iface-out"),
                mark: false,
                result: FibResult::Type,
            };
            return ints(Key::Fib(fib), o, IntSet::one(value::address_type(&types)?));
        }
        (_, "UNICAST") => range("::1", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")?,
        (_, "MULTICAST") => range("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")?,
        (_, "UNSPEC") => range("::", "::")?,
        _ => return None,
    };
    let key = if o.name == "--src-type" {
        Key::Saddr(Ipv::V6)
    } else {
        Key::Daddr(Ipv::V6)
    };
    Some(vec![Match::Cmp {
        of: key.into(),
        negate: o.negate,
        values: Values::Addr(AddrSet::from_range(first, last)),
    }])
}

fn iprange(o: &Opt<'_>, scope: &Scope<'_>) -> Option<Vec<Match>> {
    let (first, last) = value::address_range(o.arg(), scope.ipv6)?;
    let key = if o.name == "--src-range" {
        Key::Saddr(scope.ip())
    } else {
        Key::Daddr(scope.ip())
    };
    Some(vec![Match::Cmp {
        of: key.into(),
        negate: o.negate,
        values: Values::Addr(AddrSet::from_range(first, last)),
    }])
}

fn mark(key: Key, o: &Opt<'_>) -> Option<Vec<Match>> {
    let (value, mask) = value::masked32(o.arg())?;
    Some(vec![Match::Cmp {
        of: Operand {
            key,
            mask: (mask != u32::MAX).then_some(mask.into()),
        },
        negate: o.negate,
        values: Values::int(value.into()),
    }])
}

/// `src,dst`.
pub(super) fn directions(text: &str) -> Option<Vec<Direction>> {
    text.split(',')
        .map(|d| match d {
            "src" => Some(Direction::Src),
            "dst" => Some(Direction::Dst),
            _ => None,
        })
        .collect()
}

fn set(module: &Module<'_>) -> Option<Vec<Match>> {
    let o = module.opt("--match-set").or_else(|| module.opt("--set"))?;
    let counters: Vec<String> = module
        .opts
        .iter()
        .filter(|o| o.name.starts_with("--packets") || o.name.starts_with("--bytes"))
        .map(|o| {
            let not = if o.negate { "! " } else { "" };
            format!("{not}{} {}", o.name, o.arg())
        })
        .collect();
    Some(vec![Match::IpSet {
        set: o.arg().to_string(),
        directions: directions(o.args.get(1)?)?,
        negate: o.negate,
        return_nomatch: module.has("--return-nomatch"),
        counters: (!counters.is_empty()).then(|| counters.join(" ")),
    }])
}

fn physdev(o: &Opt<'_>) -> Option<Vec<Match>> {
    let name = |key: Key| {
        Some(vec![Match::Cmp {
            of: key.into(),
            negate: o.negate,
            values: Values::Name(vec![NamePattern::xtables(o.arg())]),
        }])
    };
    match o.name {
        "--physdev-in" => name(Key::PhysIn),
        "--physdev-out" => name(Key::PhysOut),
        "--physdev-is-in" => ints(Key::PhysIsIn, o, IntSet::one(1)),
        "--physdev-is-out" => ints(Key::PhysIsOut, o, IntSet::one(1)),
        _ => ints(Key::PhysIsBridged, o, IntSet::one(1)),
    }
}

fn owner(o: &Opt<'_>) -> Option<Vec<Match>> {
    match o.name {
        "--uid-owner" => ints(Key::SkUid, o, range(o.arg(), '-')?),
        "--gid-owner" => ints(Key::SkGid, o, range(o.arg(), '-')?),
        _ => None,
    }
}

fn ttl(o: &Opt<'_>) -> Option<Vec<Match>> {
    let n = value::number(o.arg())?;
    let set = match o.name {
        "--ttl-eq" | "--hl-eq" => IntSet::one(n),
        "--ttl-lt" | "--hl-lt" => IntSet::range(0, n.checked_sub(1)?),
        _ => IntSet::range(n.checked_add(1)?, 255),
    };
    ints(Key::Ttl, o, set)
}

fn devgroup(o: &Opt<'_>) -> Option<Vec<Match>> {
    let (value, mask) = value::masked32(o.arg())?;
    if mask != u32::MAX {
        return None;
    }
    let key = if o.name == "--src-group" {
        Key::IifGroup
    } else {
        Key::OifGroup
    };
    ints(key, o, IntSet::one(value.into()))
}

/// `3/min`, `10/second`.
fn rate(text: &str) -> Option<(u64, u64)> {
    let (count, unit) = text.split_once('/').unwrap_or((text, "second"));
    let per = match unit.as_bytes().first()?.to_ascii_lowercase() {
        b's' => 1,
        b'm' => 60,
        b'h' => 3600,
        b'd' => 86400,
        _ => return None,
    };
    Some((value::number(count)?, per))
}

fn limit(module: &Module<'_>, text: &str) -> Option<Vec<Match>> {
    let (rate, per) = match module.opt("--limit") {
        Some(o) if o.negate => return None,
        Some(o) => rate(o.arg())?,
        None => (3, 3600),
    };
    let burst = match module.opt("--limit-burst") {
        Some(o) => value::number(o.arg())?,
        None => 5,
    };
    Some(vec![Match::Conditional(Condition {
        kind: ConditionKind::Limit {
            rate,
            per,
            burst,
            bytes: false,
            over: false,
        },
        text: text.to_string(),
    })])
}

fn hashlimit(module: &Module<'_>) -> Option<ConditionKind> {
    let arg = |name| module.opt(name).map(|o| o.arg().to_string());
    let above = module.opt("--hashlimit-above");
    let upto = module
        .opt("--hashlimit-upto")
        .or_else(|| module.opt("--hashlimit"));
    let negate = above.or(upto)?.negate;
    Some(ConditionKind::HashLimit {
        name: arg("--hashlimit-name").unwrap_or_default(),
        mode: arg("--hashlimit-mode").unwrap_or_default(),
        above: above.is_some() != negate,
    })
}

fn recent(module: &Module<'_>) -> Option<ConditionKind> {
    let (op, o) = [
        ("--set", RecentOp::Set),
        ("--rcheck", RecentOp::Rcheck),
        ("--update", RecentOp::Update),
        ("--remove", RecentOp::Remove),
    ]
    .into_iter()
    .find_map(|(name, op)| Some((op, module.opt(name)?)))?;
    let number = |name| match module.opt(name) {
        Some(o) => value::number32(o.arg()).map(Some),
        None => Some(None),
    };
    Some(ConditionKind::Recent {
        name: module
            .opt("--name")
            .map_or("DEFAULT", |o| o.arg())
            .to_string(),
        op,
        negate: o.negate,
        seconds: number("--seconds")?,
        hitcount: number("--hitcount")?,
    })
}

fn connlimit(module: &Module<'_>) -> Option<ConditionKind> {
    let above = module.opt("--connlimit-above");
    let o = above.or_else(|| module.opt("--connlimit-upto"))?;
    Some(ConditionKind::ConnLimit {
        count: value::number32(o.arg())?,
        above: above.is_some() != o.negate,
    })
}
