//! A second engine, made of binary decision diagrams and written without a look at the first, agrees on random
//! stateless rulesets. Exactly: the sets are compared as sets.
#![allow(clippy::unwrap_used)]
use biodivine_lib_bdd::{Bdd, BddVariable, BddVariableSet};
use proptest::prelude::*;
use reach::{AddrSet, Backend, CtState, Hook, HookQuery, Proto, parse, walk_hook};

/// One condition.
#[derive(Debug, Clone)]
enum Test {
    Source(u32, u8),
    SourceRange(u32, u32),
    Port(u16, u16),
    Ports(Vec<u16>),
    Link(u8),
    Tcp,
    Udp,
}

#[derive(Debug, Clone)]
enum Then {
    Accept,
    Drop,
    Return,
    Jump(usize),
    Goto(usize),
    Nothing,
}

#[derive(Debug, Clone)]
struct Rule {
    tests: Vec<(bool, Test)>,
    then: Then,
}

/// INPUT is chain 0; chain n calls only chains behind it.
#[derive(Debug, Clone)]
struct Rules {
    drop: bool,
    chains: Vec<Vec<Rule>>,
}

const LINKS: [&str; 4] = ["eth0", "eth1", "wg0", "docker0"];

fn test() -> impl Strategy<Value = Test> {
    // Few base addresses, so that prefixes nest and touch.
    let base = prop::sample::select(vec![
        0u32,
        0x0a00_0000,
        0x0a01_0200,
        0xc000_0200,
        0xcb00_7100,
        0xffff_ffff,
    ]);
    let port = prop::sample::select(vec![0u16, 22, 80, 443, 1023, 1024, 11434, 65535]);
    prop_oneof![
        4 => (base.clone(), 0..=32u8).prop_map(|(a, len)| Test::Source(a, len)),
        2 => (base, any::<u16>(), any::<u16>()).prop_map(|(a, x, y)| {
            let (x, y) = (a.wrapping_add(x.into()), a.wrapping_add(y.into()));
            Test::SourceRange(x.min(y), x.max(y))
        }),
        2 => (port.clone(), port.clone()).prop_map(|(a, b)| Test::Port(a.min(b), a.max(b))),
        1 => prop::collection::vec(port, 1..4).prop_map(Test::Ports),
        1 => (0..4u8).prop_map(Test::Link),
        1 => Just(Test::Tcp),
        1 => Just(Test::Udp),
    ]
}

fn rule(chain: usize, chains: usize) -> impl Strategy<Value = Rule> {
    let then = if chain + 1 < chains {
        prop_oneof![
            3 => Just(Then::Accept),
            3 => Just(Then::Drop),
            1 => Just(Then::Return),
            3 => (chain + 1..chains).prop_map(Then::Jump),
            2 => (chain + 1..chains).prop_map(Then::Goto),
            1 => Just(Then::Nothing),
        ]
        .boxed()
    } else {
        prop_oneof![Just(Then::Accept), Just(Then::Drop), Just(Then::Return)].boxed()
    };
    (
        prop::collection::vec((prop::bool::weighted(0.25), test()), 0..3),
        then,
    )
        .prop_map(|(tests, then)| Rule { tests, then })
}

fn rules() -> impl Strategy<Value = Rules> {
    let chain = |n| prop::collection::vec(rule(n, 4), 0..7);
    (any::<bool>(), (chain(0), chain(1), chain(2), chain(3))).prop_map(|(drop, (a, b, c, d))| {
        Rules {
            drop,
            chains: vec![a, b, c, d],
        }
    })
}

// --- the same rules as iptables-save would print them ---

fn dump(rules: &Rules) -> String {
    let name = |n: usize| {
        if n == 0 {
            "INPUT".to_string()
        } else {
            format!("C{n}")
        }
    };
    let mut out = format!(
        "*filter\n:INPUT {} [0:0]\n",
        if rules.drop { "DROP" } else { "ACCEPT" }
    );
    for n in 1..rules.chains.len() {
        out += &format!(":{} - [0:0]\n", name(n));
    }
    for (n, chain) in rules.chains.iter().enumerate() {
        for rule in chain {
            out += &format!("-A {}", name(n));
            for (not, test) in &rule.tests {
                out += &spelled(*not, test);
            }
            out += &match &rule.then {
                Then::Accept => " -j ACCEPT".to_string(),
                Then::Drop => " -j DROP".to_string(),
                Then::Return => " -j RETURN".to_string(),
                Then::Jump(to) => format!(" -j {}", name(*to)),
                Then::Goto(to) => format!(" -g {}", name(*to)),
                Then::Nothing => String::new(),
            };
            out.push('\n');
        }
    }
    out + "COMMIT\n"
}

fn spelled(not: bool, test: &Test) -> String {
    let not = if not { " !" } else { "" };
    let ip = |n: &u32| std::net::Ipv4Addr::from(*n);
    match test {
        Test::Source(a, len) => format!("{not} -s {}/{len}", ip(a)),
        Test::SourceRange(a, b) => format!(" -m iprange{not} --src-range {}-{}", ip(a), ip(b)),
        Test::Port(a, b) => format!(" -m tcp{not} --dport {a}:{b}"),
        Test::Ports(list) => {
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            format!(" -m multiport{not} --dports {}", list.join(","))
        }
        Test::Link(n) => format!("{not} -i {}", LINKS[usize::from(*n)]),
        Test::Tcp => format!("{not} -p tcp"),
        Test::Udp => format!("{not} -p udp"),
    }
}

// --- the second engine ---

struct Bits {
    set: BddVariableSet,
    source: Vec<BddVariable>,
    port: Vec<BddVariable>,
    link: Vec<BddVariable>,
    udp: BddVariable,
}

impl Bits {
    fn new() -> Bits {
        let set = BddVariableSet::new_anonymous(51);
        let all = set.variables();
        Bits {
            source: all[..32].to_vec(),
            port: all[32..48].to_vec(),
            link: all[48..50].to_vec(),
            udp: all[50],
            set,
        }
    }
    /// The first `len` bits of `value`, which has as many bits as `bits` has variables.
    fn prefix(&self, bits: &[BddVariable], value: u64, len: usize) -> Bdd {
        let width = bits.len();
        (0..len).fold(self.set.mk_true(), |all, n| {
            let bit = value >> (width - 1 - n) & 1 == 1;
            all.and(&self.set.mk_literal(bits[n], bit))
        })
    }
    fn at_most(&self, bits: &[BddVariable], value: u64) -> Bdd {
        let width = bits.len();
        let equal = self.prefix(bits, value, width);
        (0..width).fold(equal, |all, n| {
            if value >> (width - 1 - n) & 1 == 0 {
                return all;
            }
            let below = self
                .prefix(bits, value, n)
                .and(&self.set.mk_literal(bits[n], false));
            all.or(&below)
        })
    }
    fn between(&self, bits: &[BddVariable], first: u64, last: u64) -> Bdd {
        let upto = self.at_most(bits, last);
        match first.checked_sub(1) {
            None => upto,
            Some(before) => upto.and_not(&self.at_most(bits, before)),
        }
    }
    fn holds(&self, test: &Test) -> Bdd {
        match test {
            Test::Source(a, len) => self.prefix(&self.source, (*a).into(), (*len).into()),
            Test::SourceRange(a, b) => self.between(&self.source, (*a).into(), (*b).into()),
            Test::Port(a, b) => self.between(&self.port, (*a).into(), (*b).into()),
            Test::Ports(list) => list.iter().fold(self.set.mk_false(), |any, p| {
                any.or(&self.prefix(&self.port, (*p).into(), 16))
            }),
            Test::Link(n) => self.prefix(&self.link, (*n).into(), 2),
            Test::Tcp => self.set.mk_literal(self.udp, false),
            Test::Udp => self.set.mk_literal(self.udp, true),
        }
    }
    /// What is accepted of `packets` in chain `n`, and what comes out at its end.
    fn chain(&self, rules: &Rules, n: usize, packets: Bdd) -> (Bdd, Bdd) {
        let (mut accepted, mut back, mut here) =
            (self.set.mk_false(), self.set.mk_false(), packets);
        for rule in &rules.chains[n] {
            let hit = rule.tests.iter().fold(here.clone(), |all, (not, test)| {
                let holds = self.holds(test);
                all.and(&if *not { holds.not() } else { holds })
            });
            let miss = here.and_not(&hit);
            here = match &rule.then {
                Then::Accept => {
                    accepted = accepted.or(&hit);
                    miss
                }
                Then::Drop => miss,
                Then::Return => {
                    back = back.or(&hit);
                    miss
                }
                Then::Nothing => here,
                Then::Jump(to) => {
                    let (a, r) = self.chain(rules, *to, hit);
                    accepted = accepted.or(&a);
                    miss.or(&r)
                }
                Then::Goto(to) => {
                    let (a, r) = self.chain(rules, *to, hit);
                    accepted = accepted.or(&a);
                    back = back.or(&r);
                    miss
                }
            };
        }
        (accepted, back.or(&here))
    }
    fn sources(&self, set: &AddrSet) -> Bdd {
        set.ranges()
            .fold(self.set.mk_false(), |all, (first, last)| {
                let n = |a: std::net::IpAddr| match a {
                    std::net::IpAddr::V4(a) => u32::from(a).into(),
                    std::net::IpAddr::V6(_) => unreachable!("IPv4 was asked"),
                };
                all.or(&self.between(&self.source, n(first), n(last)))
            })
    }
}

fn check(rules: &Rules) {
    let bits = Bits::new();
    let (accepted, end) = bits.chain(rules, 0, bits.set.mk_true());
    let accepted = if rules.drop {
        accepted
    } else {
        accepted.or(&end)
    };
    let text = dump(rules);
    let (parsed, notes) = parse::iptables_save(&text, false, Backend::IptablesNft);
    assert_eq!(notes, [], "{text}");
    for (dport, link, proto) in [
        (22, 0, Proto::Tcp),
        (443, 1, Proto::Udp),
        (11434, 3, Proto::Tcp),
    ] {
        let answer = walk_hook(
            &parsed,
            &HookQuery {
                hook: Hook::Input,
                proto,
                dst: Some("192.0.2.10".parse().unwrap()),
                ipv6: false,
                dport,
                sport: Some(40000),
                iif: Some(LINKS[link].to_string()),
                oif: None,
                state: CtState::New,
            },
        );
        let concrete = bits
            .prefix(&bits.port, dport.into(), 16)
            .and(&bits.prefix(&bits.link, link as u64, 2))
            .and(&bits.set.mk_literal(bits.udp, proto == Proto::Udp));
        let truth = accepted.and(&concrete);
        let said = bits.sources(&answer.admitted).and(&concrete);
        assert!(
            answer.conditional.is_empty(),
            "{dport}: {answer:#?}\n{text}"
        );
        assert!(
            truth == said,
            "{dport} by {}: {answer:#?}\n{text}",
            LINKS[link]
        );
        let refused = bits.sources(&answer.blocked).and(&concrete);
        assert!(
            concrete.and_not(&truth) == refused,
            "{dport}: {answer:#?}\n{text}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn two_engines_agree(rules in rules()) {
        check(&rules);
    }
}
