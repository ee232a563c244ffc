//! What `nft list ruleset` says, as the rule model has it.
#![allow(clippy::unwrap_used)]
use reach::ir::*;
use reach::parse::{Note, nft};
use reach::{Backend, Ruleset};

/// A table with one rule in an input chain.
fn table(family: &str, rule: &str) -> String {
    format!(
        "table {family} t {{\n\tchain u {{\n\t}}\n\n\tchain in {{\n\t\ttype filter hook input priority filter - 1; policy drop;\n\
         \t\t{rule}\n\t}}\n}}\n"
    )
}

fn statements(family: &str, rule: &str) -> (Vec<Statement>, Vec<Note>) {
    let (ruleset, notes) = nft(&table(family, rule));
    let rules = &ruleset.tables[0].chain("in").unwrap().rules;
    assert_eq!(rules.len(), 1, "{rule}: {notes:?}");
    (rules[0].statements.clone(), notes)
}

/// A rule means these statements, nothing left in doubt.
fn check(family: &str, rule: &str, expect: &[Statement]) {
    let (found, notes) = statements(family, rule);
    assert_eq!(found, expect, "{rule}");
    assert_eq!(notes, [], "{rule}");
}

fn cmp(key: Key, negate: bool, values: Values) -> Statement {
    Statement::Match(Match::Cmp {
        of: key.into(),
        negate,
        values,
    })
}
fn is(key: Key, value: u64) -> Statement {
    cmp(key, false, Values::int(value))
}
fn bits(key: Key, negate: bool, bits: u64) -> Statement {
    Statement::Match(Match::Bits { key, negate, bits })
}
fn accept() -> Statement {
    Statement::Verdict(RuleVerdict::Accept)
}
fn net(text: &str) -> Values {
    Values::Addr(text.parse::<ipnet::IpNet>().unwrap().into())
}

#[test]
fn what_nft_leaves_unsaid_is_said() {
    let tcp = || is(Key::L4Proto, 6);
    let v4 = || is(Key::NfProto, 2);
    let port = |n| is(Key::Dport, n);
    let from = || cmp(Key::Saddr(Ipv::V4), false, net("10.0.0.0/8"));
    check("inet", "tcp dport 22 accept", &[tcp(), port(22), accept()]);
    check("ip", "ip saddr 10.0.0.0/8 accept", &[from(), accept()]);
    check(
        "inet",
        "ip saddr 10.0.0.0/8 tcp dport 22 accept",
        &[v4(), from(), tcp(), port(22), accept()],
    );
    // Said already: not twice.
    check(
        "inet",
        "meta nfproto ipv4 ip saddr 10.0.0.0/8 accept",
        &[v4(), from(), accept()],
    );
    check(
        "inet",
        "meta l4proto tcp tcp dport 22 accept",
        &[tcp(), port(22), accept()],
    );
    check("inet", "th dport 53 accept", &[port(53), accept()]);
    check(
        "inet",
        "ip6 nexthdr ipv6-icmp accept",
        &[is(Key::NfProto, 10), is(Key::NextHeader, 58), accept()],
    );
}

#[test]
fn comparisons() {
    let tcp = || is(Key::L4Proto, 6);
    let ports = |set: Vec<(u64, u64)>| Values::Int(set.into());
    check(
        "ip",
        "tcp dport { 22, 80-90 } accept",
        &[
            tcp(),
            cmp(Key::Dport, false, ports(vec![(22, 22), (80, 90)])),
            accept(),
        ],
    );
    check(
        "ip",
        "tcp dport != 22 accept",
        &[tcp(), cmp(Key::Dport, true, Values::int(22)), accept()],
    );
    check(
        "ip",
        "tcp dport >= 1024 accept",
        &[
            tcp(),
            cmp(Key::Dport, false, ports(vec![(1024, 65535)])),
            accept(),
        ],
    );
    check(
        "ip",
        "tcp dport < 1024 accept",
        &[
            tcp(),
            cmp(Key::Dport, false, ports(vec![(0, 1023)])),
            accept(),
        ],
    );
    check(
        "ip",
        "tcp dport ssh accept",
        &[tcp(), is(Key::Dport, 22), accept()],
    );
    check(
        "ip",
        "iifname { \"lo\", \"docker*\" } accept",
        &[
            cmp(
                Key::IifName,
                false,
                Values::names(vec![NamePattern::exact("lo"), NamePattern::nft("docker*")]),
            ),
            accept(),
        ],
    );
    check(
        "ip",
        "meta mark & 0x000000ff == 0x00000001 accept",
        &[
            Statement::Match(Match::Cmp {
                of: Operand {
                    key: Key::Mark,
                    mask: Some(0xff),
                },
                negate: false,
                values: Values::int(1),
            }),
            accept(),
        ],
    );
    check(
        "ip",
        "ip frag-off & 8191 != 0 accept",
        &[cmp(Key::FragmentOffset, true, Values::int(0)), accept()],
    );
}

#[test]
fn sets_of_bits() {
    let tcp = || is(Key::L4Proto, 6);
    check(
        "ip",
        "ct state established,related accept",
        &[bits(Key::CtState, false, 6), accept()],
    );
    check(
        "ip",
        "ct state new accept",
        &[bits(Key::CtState, false, 8), accept()],
    );
    check(
        "ip",
        "ct state != new accept",
        &[cmp(Key::CtState, true, Values::int(8)), accept()],
    );
    check(
        "ip",
        "ct status dnat accept",
        &[bits(Key::CtStatus, false, 32), accept()],
    );
    check(
        "ip",
        "tcp flags syn accept",
        &[tcp(), bits(Key::TcpFlags, false, 2), accept()],
    );
    check(
        "ip",
        "tcp flags ! syn accept",
        &[tcp(), bits(Key::TcpFlags, true, 2), accept()],
    );
    check(
        "ip",
        "tcp flags == syn accept",
        &[tcp(), is(Key::TcpFlags, 2), accept()],
    );
    let masked = Statement::Match(Match::Cmp {
        of: Operand {
            key: Key::TcpFlags,
            mask: Some(0x17),
        },
        negate: false,
        values: Values::int(2),
    });
    check(
        "ip",
        "tcp flags syn / fin,syn,rst,ack accept",
        &[tcp(), masked.clone(), accept()],
    );
    check(
        "ip",
        "tcp flags & (fin | syn | rst | ack) == syn accept",
        &[tcp(), masked, accept()],
    );
}

#[test]
fn connections_and_routing() {
    check(
        "inet",
        "ct direction original ct original proto-dst 11434 accept",
        &[
            is(Key::CtDirection, 0),
            is(Key::CtPort(CtDir::Original, Direction::Dst), 11434),
            accept(),
        ],
    );
    check(
        "inet",
        "ct original ip saddr 10.0.0.0/8 accept",
        &[
            cmp(
                Key::CtAddr(CtDir::Original, Direction::Src, Ipv::V4),
                false,
                net("10.0.0.0/8"),
            ),
            accept(),
        ],
    );
    let fib = |result| Fib {
        saddr: true,
        iif: true,
        result,
        ..Fib::default()
    };
    check(
        "inet",
        "fib saddr . iif oif missing accept",
        &[is(Key::Fib(fib(FibResult::Present)), 0), accept()],
    );
    check(
        "ip",
        "fib saddr . iif oif 0 accept",
        &[is(Key::Fib(fib(FibResult::Present)), 0), accept()],
    );
    let local = Fib {
        daddr: true,
        ..Fib::default()
    };
    check(
        "inet",
        "fib daddr type local accept",
        &[is(Key::Fib(local), 2), accept()],
    );
}

#[test]
fn maps() {
    let rule = "ip saddr . tcp dport vmap { 1.2.3.4 . 80 : accept, 10.0.0.0/8 . 1-1024 : jump u }";
    let (found, notes) = statements("ip", rule);
    assert_eq!(notes, []);
    let Some(Statement::VerdictMap {
        keys,
        map: SetRef::Anonymous(set),
    }) = found.last()
    else {
        panic!("{found:?}");
    };
    assert_eq!(keys.len(), 2);
    let range = |a: &str, b: &str| Field::Addr(a.parse().unwrap(), b.parse().unwrap());
    assert_eq!(
        set.elements[0].key,
        [range("1.2.3.4", "1.2.3.4"), Field::Int(80, 80)]
    );
    assert_eq!(
        set.elements[1].key,
        [range("10.0.0.0", "10.255.255.255"), Field::Int(1, 1024)]
    );
    assert_eq!(
        set.elements[1].data,
        Some(Data::Verdict(RuleVerdict::Jump { chain: "u".into() }))
    );
    let (found, _) = statements("ip", "meta mark set meta mark & 0xffffff01 | 0x00000001");
    let expect = Expr::Bitwise {
        of: Box::new(Expr::Key(Key::Mark)),
        and: 0xffff_ff00,
        xor: 1,
    };
    assert_eq!(
        found,
        [Statement::Assign {
            target: Target::Mark,
            value: expect
        }]
    );
}

#[test]
fn what_is_not_understood_stays() {
    for (rule, text) in [
        (
            "quantum entanglement 5 accept",
            "quantum entanglement 5 accept",
        ),
        ("ip daddr set 1.2.3.4", "ip daddr set 1.2.3.4"),
        (
            "tcp dport 22 frobnicate { 1, 2 } drop",
            "frobnicate { 1, 2 } drop",
        ),
    ] {
        let (found, notes) = statements("ip", rule);
        assert_eq!(
            found.last(),
            Some(&Statement::Unknown { text: text.into() }),
            "{rule}"
        );
        assert_eq!(notes.len(), 1, "{rule}: {notes:?}");
    }
    // A match that is not understood takes nothing from the rest of its rule.
    let (found, notes) = statements("ip", "tcp dport @nosuch . 5 accept");
    assert_eq!(notes.len(), 1);
    assert_eq!(found.last(), Some(&accept()));
    assert!(
        found
            .iter()
            .any(|s| matches!(s, Statement::Match(Match::Unknown { .. })))
    );
}

#[test]
fn chains_know_where_they_hang() {
    let (r, _) = nft(
        "table inet t {\n\tchain a {\n\t\ttype filter hook forward priority filter - 1; policy drop;\n\t\tcomment \"mine\"\n\t}\n\
        \tchain b {\n\t\ttype nat hook prerouting priority dstnat + 5; policy accept;\n\t}\n\tchain c {\n\t\ttype route hook output priority -150; policy accept;\n\t}\n}\n\
        table netdev n {\n\tchain i {\n\t\ttype filter hook ingress devices = { \"eth0\", \"eth1\" } priority -500; policy accept;\n\t}\n}\n\
        table ip d {\n\tflags dormant\n\tchain x {\n\t}\n}\n",
    );
    let base = |t: usize, c: &str| r.tables[t].chain(c).unwrap().base.clone().unwrap();
    assert_eq!(
        (base(0, "a").priority, base(0, "a").policy),
        (-1, Policy::Drop)
    );
    assert_eq!(
        (base(0, "b").priority, base(0, "b").kind),
        (-95, ChainKind::Nat)
    );
    assert_eq!(
        (base(0, "c").priority, base(0, "c").hook),
        (-150, NfHook::Output)
    );
    assert_eq!(
        base(1, "i").devices,
        [NamePattern::exact("eth0"), NamePattern::exact("eth1")]
    );
    assert!(r.tables[2].dormant && !r.tables[0].dormant);
    assert_eq!(
        r.tables[0].chain("a").unwrap().comment.as_deref(),
        Some("mine")
    );
}

fn fixture(name: &str) -> String {
    std::fs::read_to_string(format!("tests/fixtures/{name}")).unwrap()
}

/// Rules that the reader did not wholly understand.
fn doubtful(r: &Ruleset) -> Vec<String> {
    let unknown = |s: &Statement| {
        matches!(
            s,
            Statement::Unknown { .. } | Statement::Match(Match::Unknown { .. })
        )
    };
    r.rules()
        .filter(|(_, rule)| rule.statements.iter().any(unknown))
        .map(|(_, rule)| rule.text.clone())
        .collect()
}

/// nft 1.0.6 lists `tcp dport < 80 tcp dport > 5000`, which no packet meets, as `tcp dport != 80-5000`.
#[test]
fn a_rule_that_never_matches_is_not_taken_for_its_listing() {
    let doubt = "(nft may hide that this never matches: `< A` and `> B` are listed as `!= A-B`)";
    let outside = |set: Values, key: Key| {
        [
            cmp(key, true, set),
            Statement::Match(Match::Unknown { text: doubt.into() }),
        ]
    };
    let of = |rule: &str| {
        let (found, notes) = statements("ip", rule);
        assert_eq!(notes, [], "{rule}");
        found
            .into_iter()
            .skip_while(|s| *s == is(Key::L4Proto, 6))
            .collect::<Vec<_>>()
    };
    let ports = |first, last| Values::Int(IntSet::range(first, last));
    assert_eq!(
        of("tcp dport != 80-5000 drop")[..2],
        outside(ports(80, 5000), Key::Dport)
    );
    assert_eq!(
        of("tcp dport != 80-80 drop")[..2],
        outside(ports(80, 80), Key::Dport)
    );
    assert_eq!(
        of("meta mark != 0x00000001-0x00000005 drop")[..2],
        outside(ports(1, 5), Key::Mark)
    );
    let addresses = Values::Addr(reach::AddrSet::from_range(
        "10.0.0.1".parse().unwrap(),
        "10.0.0.9".parse().unwrap(),
    ));
    assert_eq!(
        of("ip saddr != 10.0.0.1-10.0.0.9 drop")[..2],
        outside(addresses, Key::Saddr(Ipv::V4))
    );
    let json = r#"{"nftables": [{"table": {"family": "ip", "name": "t"}}, {"chain": {"family": "ip", "table": "t", "name": "c"}},
        {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [{"match": {"op": "!=",
        "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": {"range": [80, 5000]}}}, {"drop": null}]}}]}"#;
    let (r, _) = nft(json);
    assert_eq!(
        r.tables[0].chains[0].rules[0].statements[1..3],
        outside(ports(80, 5000), Key::Dport)
    );
    // No ranges, and ranges that are none of two comparisons.
    for sure in [
        "tcp dport != 80",
        "ip saddr != 10.0.0.0/8",
        "tcp dport != { 22, 80-90 }",
        "tcp dport 80-90",
        "iifname != \"br-lan\"",
        "icmp type != echo-request",
    ] {
        let doubtful = |s: &Statement| matches!(s, Statement::Match(Match::Unknown { .. }));
        assert!(!of(&format!("{sure} drop")).iter().any(doubtful), "{sure}");
    }
}

/// A drop of everything outside of a range may as well drop nothing: never "closed".
#[test]
fn a_drop_outside_of_a_range_closes_nothing_for_sure() {
    let (rules, _) = nft(
        "table ip t {\n\tchain c {\n\t\ttype filter hook input priority filter; policy accept;\n\
         \t\ttcp dport != 80-5000 drop\n\t}\n}\n",
    );
    let ask = |dport| {
        reach::walk_hook(
            &rules,
            &reach::HookQuery {
                hook: reach::Hook::Input,
                proto: reach::Proto::Tcp,
                dst: None,
                ipv6: false,
                dport,
                sport: None,
                iif: None,
                oif: None,
                state: reach::CtState::New,
            },
        )
    };
    assert_eq!(ask(22).conditional, reach::AddrSet::all_v4());
    assert_eq!(ask(443).admitted, reach::AddrSet::all_v4());
}

#[test]
fn both_spellings_of_one_ruleset_say_the_same() {
    let (text, text_notes) = nft(&fixture("native.nft"));
    let (json, _) = nft(&fixture("native.nft.json"));
    // Before a TCP reset nft leaves out a test of the IP version, so its text is in doubt there.
    assert_eq!(
        doubtful(&text),
        [
            "ip daddr set 1.2.3.4",
            "meta l4proto tcp reject with tcp reset"
        ]
    );
    assert_eq!(text_notes.len(), 1);
    let (text, json) = (text.bare(), json.bare());
    for (a, b) in text.tables.iter().zip(&json.tables) {
        // JSON of 1.0.6 has neither the dormant flag nor the devices.
        if a.family != Family::Inet {
            continue;
        }
        assert_eq!(a.sets, b.sets);
        for chain in a.chains.iter().filter(|c| !c.name.starts_with("__")) {
            let other = b.chain(&chain.name).unwrap();
            assert_eq!(chain.base, other.base);
            assert_eq!(chain.rules.len(), other.rules.len());
            for (x, y) in chain.rules.iter().zip(&other.rules) {
                let odd = format!("{x:?}");
                // Seconds are a word in text; a chain without a name gets one.
                if odd.contains("expiration") || odd.contains("__chain") {
                    continue;
                }
                assert_eq!(x, y, "{}", chain.name);
            }
        }
    }
}

#[test]
fn a_chain_without_a_name_is_followed() {
    let (r, notes) = nft(&table(
        "inet",
        "jump {\n\t\t\ttcp dport 99 accept\n\t\t\tudp dport 98 drop\n\t\t}",
    ));
    assert_eq!(notes, []);
    let Some(Statement::Verdict(RuleVerdict::Jump { chain })) =
        r.tables[0].chain("in").unwrap().rules[0].statements.last()
    else {
        panic!("{r:?}");
    };
    assert_eq!(r.tables[0].chain(chain).unwrap().rules.len(), 2);
}

#[test]
fn tables_of_iptables_are_recognised() {
    for name in ["docker20.nft", "docker20.nft.json"] {
        let (r, notes) = nft(&fixture(name));
        assert!(
            r.tables.iter().all(|t| t.backend == Backend::IptablesNft),
            "{name}"
        );
        assert!(
            notes
                .iter()
                .all(|n| n.text.contains("iptables-save has them")),
            "{notes:?}"
        );
    }
    let (r, _) = nft(&table("ip", "accept"));
    assert_eq!(r.tables[0].backend, Backend::Nft);
    // Where nft prints nothing for a match there is a gap in its text.
    let (r, _) = nft(
        "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy drop;\n\
        \t\t counter packets 0 bytes 0 accept\n\t}\n}\n",
    );
    assert_eq!(doubtful(&r).len(), 1);
}

#[test]
fn what_breaks_off_may_do_anything() {
    let text = table("inet", "tcp dport 22 accept");
    let json = fixture("native.nft.json");
    // Whether all that may be missing counts as "may do anything", and what is said of it.
    let cut = |t: &str| {
        let (r, notes) = nft(t);
        let lost = doubtful(&r).iter().any(|t| t.contains("could not be read"));
        let said: Vec<String> = notes.into_iter().map(|n| n.text).collect();
        (lost, said)
    };
    assert_eq!(cut(&text), (false, vec![]));
    for cut_at in [
        &text[..text.len() - 4],
        &text[..text.len() - 30],
        &json[..json.len() / 2],
    ] {
        let (lost, said) = cut(cut_at);
        assert!(lost, "{cut_at}");
        // Once, beside what there is to say of the part that is there.
        let breaks = said.iter().filter(|t| t.contains("breaks off"));
        assert_eq!(breaks.count(), 1, "{said:?}");
    }
    let (lost, said) = cut(&json.replace("{\"chain\"", "{\"novelty\""));
    assert!(lost);
    assert!(
        said.iter()
            .any(|t| t.starts_with("not understood: ") && t.contains("novelty")),
        "{said:?}"
    );
}
