//! The walk over sets against a plain interpreter that takes one client address at a time and tries every way that an
//! undecided match can go.
#![allow(clippy::unwrap_used)] // A test may fail so.
use proptest::prelude::*;
use reach::ir::*;
use reach::{AddrSet, Backend, CtState, Hook, HookQuery, Proto, Ruleset, Verdict, walk_hook};
use std::net::{IpAddr, Ipv4Addr};

const CLIENTS: u32 = 32;

fn address(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n))
}

fn a_set() -> impl Strategy<Value = AddrSet> {
    prop::collection::vec((0..CLIENTS, 0u32..9), 1..4).prop_map(|v| {
        AddrSet::from_ranges(
            v.into_iter()
                .map(|(first, len)| (address(first), address(first + len))),
        )
    })
}

fn a_source() -> impl Strategy<Value = Match> {
    (a_set(), any::<bool>()).prop_map(|(set, negate)| Match::Cmp {
        of: Key::Saddr(Ipv::V4).into(),
        negate,
        values: Values::Addr(set),
    })
}

fn a_mark() -> impl Strategy<Value = Match> {
    (
        0u64..4,
        prop::sample::select(vec![1u128, 2, 3]),
        any::<bool>(),
    )
        .prop_map(|(value, mask, negate)| Match::Cmp {
            of: Operand {
                key: Key::Mark,
                mask: Some(mask),
            },
            negate,
            values: Values::int(value & mask as u64),
        })
}

fn a_lookup() -> impl Strategy<Value = Match> {
    (
        prop::collection::vec((0..CLIENTS, 0u32..5, 79u64..82), 0..20),
        any::<bool>(),
    )
        .prop_map(|(list, negate)| {
            let element = |(first, len, port): (u32, u32, u64)| Element {
                key: vec![
                    Field::Addr(address(first), address(first + len)),
                    Field::Int(port, port),
                ],
                ..Element::default()
            };
            Match::Lookup {
                keys: vec![Key::Saddr(Ipv::V4).into(), Key::Dport.into()],
                negate,
                set: SetRef::Anonymous(Box::new(NftSet {
                    elements: list.into_iter().map(element).collect(),
                    ..NftSet::default()
                })),
            }
        })
}

fn a_match() -> impl Strategy<Value = Match> {
    prop_oneof![
        6 => a_source(),
        2 => a_mark(),
        1 => a_lookup(),
        1 => (79u64..82, any::<bool>()).prop_map(|(port, negate)| Match::Cmp { of: Key::Dport.into(), negate, values: Values::int(port) }),
        1 => Just(Match::Unknown { text: "something".into() }),
    ]
}

fn an_end(chain: usize) -> BoxedStrategy<Vec<Statement>> {
    let verdict = |v| vec![Statement::Verdict(v)];
    let plain = prop_oneof![
        3 => Just(RuleVerdict::Accept),
        3 => Just(RuleVerdict::Drop),
        2 => Just(RuleVerdict::Return),
        1 => Just(RuleVerdict::Continue),
    ]
    .prop_map(verdict);
    let mark = (0u64..4, 0u64..4).prop_map(|(and, xor)| {
        vec![Statement::Assign {
            target: Target::Mark,
            value: Expr::Bitwise {
                of: Box::new(Expr::Key(Key::Mark)),
                and,
                xor,
            },
        }]
    });
    let map = prop::collection::vec((a_set(), 0usize..3), 1..4).prop_map(|entries| {
        let mut left = AddrSet::all_v4();
        let mut elements = vec![];
        for (set, verdict) in entries {
            let verdict =
                [RuleVerdict::Accept, RuleVerdict::Drop, RuleVerdict::Return][verdict].clone();
            for (first, last) in set.intersect(&left).ranges() {
                elements.push(Element {
                    key: vec![Field::Addr(first, last)],
                    data: Some(Data::Verdict(verdict.clone())),
                    ..Element::default()
                });
            }
            left = left.subtract(&set);
        }
        vec![Statement::VerdictMap {
            keys: vec![Key::Saddr(Ipv::V4).into()],
            map: SetRef::Anonymous(Box::new(NftSet {
                elements,
                ..NftSet::default()
            })),
        }]
    });
    let mut all = vec![
        (4, plain.boxed()),
        (2, mark.boxed()),
        (1, map.boxed()),
        (1, Just(vec![]).boxed()),
    ];
    if chain + 1 < CHAINS {
        let jump = (chain + 1..CHAINS, any::<bool>()).prop_map(move |(to, goto)| {
            let chain = name(to);
            verdict(if goto {
                RuleVerdict::Goto { chain }
            } else {
                RuleVerdict::Jump { chain }
            })
        });
        all.push((4, jump.boxed()));
    }
    prop::strategy::Union::new_weighted(all).boxed()
}

const CHAINS: usize = 4;

fn name(chain: usize) -> String {
    format!("c{chain}")
}

fn a_rule(chain: usize) -> impl Strategy<Value = Rule> {
    let mixed = prop::option::weighted(0.2, a_match());
    (prop::collection::vec(a_match(), 0..3), an_end(chain), mixed).prop_map(
        |(matches, end, after)| {
            let mut statements: Vec<Statement> =
                matches.into_iter().map(Statement::Match).collect();
            let goes_on = matches!(end[..], [Statement::Assign { .. }]);
            statements.extend(end);
            if let (true, Some(after)) = (goes_on, after) {
                statements.push(Statement::Match(after));
                statements.push(Statement::Verdict(RuleVerdict::Drop));
            }
            Rule {
                text: "rule".into(),
                statements,
                ..Rule::default()
            }
        },
    )
}

fn base(priority: i32, policy: Policy) -> Option<Base> {
    Some(Base {
        kind: ChainKind::Filter,
        hook: NfHook::Input,
        priority,
        policy,
        devices: vec![],
    })
}

fn a_table() -> impl Strategy<Value = Table> {
    let chains: Vec<_> = (0..CHAINS)
        .map(|c| prop::collection::vec(a_rule(c), 0..5).boxed())
        .collect();
    (chains, any::<bool>(), -1i32..2).prop_map(|(chains, drop, priority)| {
        let mut table = Table::new(Family::Ip, "t", Backend::Nft);
        for (c, rules) in chains.into_iter().enumerate() {
            let policy = if drop { Policy::Drop } else { Policy::Accept };
            let hook = if c == 0 { base(priority, policy) } else { None };
            let mut chain = Chain::new(name(c), hook);
            chain.rules = rules;
            table.chains.push(chain);
        }
        table
    })
}

/// One packet from one client, with choices for what is not decided.
struct Packet<'c> {
    from: u32,
    mark: u64,
    choices: &'c mut Vec<bool>,
    used: usize,
}

#[derive(PartialEq, Clone, Copy)]
enum End {
    Accept,
    Drop,
    /// Back to the caller.
    Return,
}

impl Packet<'_> {
    fn choose(&mut self) -> bool {
        if self.used == self.choices.len() {
            self.choices.push(false);
        }
        self.used += 1;
        self.choices[self.used - 1]
    }
    fn holds(&mut self, m: &Match) -> bool {
        match m {
            Match::Cmp { of, negate, values } => {
                let found = match (&of.key, values) {
                    (Key::Saddr(_), Values::Addr(set)) => set.contains(address(self.from)),
                    (Key::Mark, Values::Int(v)) => v.contains(self.mark & of.mask.unwrap() as u64),
                    (Key::Dport, Values::Int(v)) => v.contains(80),
                    other => panic!("{other:?}"),
                };
                found != *negate
            }
            Match::Lookup {
                set: SetRef::Anonymous(set),
                negate,
                ..
            } => {
                let found = set.elements.iter().any(|e| match e.key[..] {
                    [Field::Addr(first, last), Field::Int(port, _)] => {
                        first <= address(self.from) && address(self.from) <= last && port == 80
                    }
                    _ => false,
                });
                found != *negate
            }
            Match::Unknown { .. } => self.choose(),
            other => panic!("{other:?}"),
        }
    }
    fn verdict(&mut self, table: &Table, verdict: &RuleVerdict) -> Option<End> {
        match verdict {
            RuleVerdict::Accept => Some(End::Accept),
            RuleVerdict::Drop => Some(End::Drop),
            RuleVerdict::Return => Some(End::Return),
            RuleVerdict::Jump { chain } => match self.chain(table, chain) {
                End::Return => None,
                end => Some(end),
            },
            RuleVerdict::Goto { chain } => Some(self.chain(table, chain)),
            _ => None,
        }
    }
    fn rule(&mut self, table: &Table, rule: &Rule) -> Option<End> {
        for statement in &rule.statements {
            match statement {
                Statement::Match(m) => {
                    if !self.holds(m) {
                        return None;
                    }
                }
                Statement::Verdict(v) => return self.verdict(table, v),
                Statement::Assign {
                    value: Expr::Bitwise { and, xor, .. },
                    ..
                } => self.mark = (self.mark & and) ^ xor,
                Statement::VerdictMap {
                    map: SetRef::Anonymous(map),
                    ..
                } => {
                    let found = map.elements.iter().find(|e| {
                        matches!(e.key[..], [Field::Addr(first, last)] if first <= address(self.from) && address(self.from) <= last)
                    });
                    return match found.and_then(|e| e.data.as_ref()) {
                        Some(Data::Verdict(v)) => self.verdict(table, v),
                        _ => None,
                    };
                }
                other => panic!("{other:?}"),
            }
        }
        None
    }
    fn chain(&mut self, table: &Table, chain: &str) -> End {
        for rule in &table.chain(chain).unwrap().rules {
            if let Some(end) = self.rule(table, rule) {
                return end;
            }
        }
        End::Return
    }
    fn passes(&mut self, tables: &[&Table]) -> bool {
        tables.iter().all(|table| {
            let policy = table.chains[0].base.as_ref().unwrap().policy;
            match self.chain(table, "c0") {
                End::Accept => true,
                End::Drop => false,
                End::Return => policy == Policy::Accept,
            }
        })
    }
}

/// Every way that the packet can go: (some way passes, some way is dropped). `None`: too many ways to try.
fn truth(tables: &[&Table], from: u32) -> Option<(bool, bool)> {
    let mut choices = vec![];
    let (mut pass, mut drop) = (false, false);
    for _ in 0..5000 {
        let mut packet = Packet {
            from,
            mark: 0,
            choices: &mut choices,
            used: 0,
        };
        if packet.passes(tables) {
            pass = true
        } else {
            drop = true
        }
        let used = packet.used;
        choices.truncate(used);
        // The next way: the last choice not yet turned.
        while choices.last() == Some(&true) {
            choices.pop();
        }
        match choices.last_mut() {
            Some(last) => *last = true,
            None => return Some((pass, drop)),
        }
    }
    None
}

fn query() -> HookQuery {
    HookQuery {
        hook: Hook::Input,
        proto: Proto::Tcp,
        dst: Some("192.0.2.1".parse().unwrap()),
        ipv6: false,
        dport: 80,
        sport: Some(40000),
        iif: Some("eth0".into()),
        oif: None,
        state: CtState::New,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sets_agree_with_one_packet_at_a_time(mut first in a_table(), mut second in a_table()) {
        first.name = "first".into();
        second.name = "second".into();
        // A rule that sets marks for nobody: the walk starts from mark 0 only where it knows that.
        let rules = Ruleset { tables: vec![first.clone(), second.clone()], ipsets: vec![] };
        let marked = rules.rules().any(|(_, r)| r.statements.iter().any(|s| matches!(s, Statement::Assign { .. })));
        let prelude = marked.then(|| {
            let mut table = Table::new(Family::Ip, "prelude", Backend::Nft);
            let mut chain = Chain::new("c0", base(-1000, Policy::Accept));
            chain.rules.push(Rule { statements: vec![Statement::Assign { target: Target::Mark, value: Expr::Int(0) }], ..Rule::default() });
            table.chains.push(chain);
            table
        });
        let rules = Ruleset { tables: prelude.into_iter().chain(rules.tables).collect(), ipsets: vec![] };
        let answer = walk_hook(&rules, &query());
        let mut order = [&first, &second];
        order.sort_by_key(|t| t.chains[0].base.as_ref().unwrap().priority);
        let all = answer.admitted.union(&answer.conditional).union(&answer.blocked);
        prop_assert_eq!(&all, &AddrSet::all_v4());
        prop_assert!(answer.admitted.intersect(&answer.conditional).is_empty());
        prop_assert!(answer.blocked.intersect(&answer.admitted.union(&answer.conditional)).is_empty());
        let mut covered = AddrSet::empty();
        for piece in &answer.pieces {
            prop_assert!(covered.intersect(&piece.sources).is_empty(), "pieces overlap");
            covered = covered.union(&piece.sources);
            let whole = match piece.verdict {
                Verdict::Accept => &answer.admitted,
                Verdict::Conditional => &answer.conditional,
                Verdict::Drop | Verdict::Reject => &answer.blocked,
            };
            prop_assert!(piece.sources.is_subset(whole));
        }
        prop_assert_eq!(covered, all);
        for from in 0..CLIENTS + 10 {
            let Some((mut pass, mut drop)) = truth(&order, from) else { continue };
            // Of equal priority either may go first.
            if first.chains[0].base.as_ref().map(|b| b.priority) == second.chains[0].base.as_ref().map(|b| b.priority) {
                let Some(other) = truth(&[order[1], order[0]], from) else { continue };
                pass |= other.0;
                drop |= other.1;
            }
            let expect = match (pass, drop) {
                (true, false) => &answer.admitted,
                (true, true) => &answer.conditional,
                _ => &answer.blocked,
            };
            prop_assert!(expect.contains(address(from)), "{} pass {} drop {}: {:#?}", address(from), pass, drop, answer);
        }
    }

    /// Making any rule's condition undecidable can only make the answer less sure.
    #[test]
    fn an_unknown_match_never_closes_what_may_be_open(table in a_table(), pick in any::<prop::sample::Index>()) {
        let rules = Ruleset { tables: vec![table], ipsets: vec![] };
        let places: Vec<(usize, usize)> = rules.tables[0].chains.iter().enumerate()
            .flat_map(|(c, chain)| (0..chain.rules.len()).map(move |r| (c, r))).collect();
        prop_assume!(!places.is_empty());
        let (c, r) = places[pick.index(places.len())];
        let before = walk_hook(&rules, &query());
        let mut doubtful = rules.clone();
        let unknown = Statement::Match(Match::Unknown { text: "?".into() });
        doubtful.tables[0].chains[c].rules[r].statements.insert(0, unknown);
        let after = walk_hook(&doubtful, &query());
        let open = |a: &reach::Answer| a.admitted.union(&a.conditional);
        prop_assert!(open(&before).is_subset(&open(&after)), "{:#?}\n{:#?}", before, after);
        prop_assert!(after.admitted.is_subset(&before.admitted.union(&before.conditional)));
    }
}
