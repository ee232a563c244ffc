//! What is worked out once for a ruleset: where chains hang, names, and a cheap guard for each rule.
use std::collections::{HashMap, HashSet};

use super::packet::Packet;
use crate::Ruleset;
use crate::ir::{
    Base, Chain, Expr, Key, Match, NfHook, NftSet, Operand, SetOp, SetRef, Statement, Table,
    Target, Values, ct_state,
};

/// A table with its names looked up.
pub(super) struct Compiled<'a> {
    pub(super) table: &'a Table,
    pub(super) chains: HashMap<&'a str, usize>,
    pub(super) sets: HashMap<&'a str, &'a NftSet>,
    /// For each chain, a guard for each rule.
    pub(super) guards: Vec<Vec<Guard>>,
    pub(super) changes: Changes<'a>,
    /// Its rules change what rules of other tables see: marks, tracking, addresses.
    pub(super) writes: bool,
    /// Its rules may set the mark of a connection.
    pub(super) marks_connections: bool,
}

/// Sets that rules themselves change: what is not in them now may be in them when the packet comes.
#[derive(Default)]
pub(super) struct Changes<'a> {
    pub(super) grow: HashSet<&'a str>,
    pub(super) shrink: HashSet<&'a str>,
}

/// A base chain's place.
pub(super) struct Hooked<'a> {
    pub(super) table: usize,
    pub(super) chain: usize,
    pub(super) base: &'a Base,
}

/// Necessary conditions of a rule over fields that are always concrete. A rule whose guard fails cannot match.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guard {
    /// 0: any.
    proto: u8,
    /// Bits of the states that it takes.
    states: u8,
    dport: (u16, u16),
}

/// The packet's side of a [`Guard`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    proto: u8,
    state: u8,
    dport: Option<u16>,
}

impl Probe {
    pub(super) fn of(packet: &Packet) -> Probe {
        Probe {
            proto: packet.proto,
            state: packet.seen_states() as u8,
            dport: packet.fixed_dport(),
        }
    }
}

const ANY_STATE: u8 = u8::MAX;

impl Guard {
    #[inline]
    pub(super) fn fails(self, probe: Probe) -> bool {
        (self.proto != 0 && self.proto != probe.proto)
            || self.states & probe.state == 0
            || probe
                .dport
                .is_some_and(|p| p < self.dport.0 || p > self.dport.1)
    }
    fn of(statements: &[Statement]) -> Guard {
        let mut guard = Guard {
            proto: 0,
            states: ANY_STATE,
            dport: (0, u16::MAX),
        };
        for statement in statements {
            match statement {
                Statement::Match(m) => guard.narrow(m),
                // Later matches may look at what this statement changed.
                Statement::Log { .. } | Statement::Other { .. } => {}
                _ => break,
            }
        }
        guard
    }
    fn narrow(&mut self, m: &Match) {
        match m {
            Match::Cmp {
                of: Operand { key, mask: None },
                negate: false,
                values: Values::Int(ints),
            } => match (key, ints.intervals()) {
                (Key::L4Proto, &[(only, last)]) if only == last && only <= 255 => {
                    self.proto = only as u8
                }
                (Key::Dport, ivs) => {
                    let first = ivs.first().map_or(1, |iv| iv.0.min(65535));
                    let last = ivs.last().map_or(0, |iv| iv.1.min(65535));
                    self.dport = (
                        self.dport.0.max(first as u16),
                        self.dport.1.min(last as u16),
                    );
                }
                _ => {}
            },
            Match::Bits {
                key: Key::CtState,
                negate,
                bits,
            } if bits & (ct_state::SNAT | ct_state::DNAT) == 0 => {
                let bits = *bits as u8;
                self.states &= if *negate { !bits } else { bits };
            }
            _ => {}
        }
    }
}

impl<'a> Compiled<'a> {
    pub(super) fn new(table: &'a Table) -> Self {
        let mut changes = Changes::default();
        let statements = || {
            let rules = table.chains.iter().flat_map(|c| &c.rules);
            rules.flat_map(|r| &r.statements)
        };
        let writes = statements().any(|s| {
            matches!(
                s,
                Statement::Assign {
                    target: Target::Mark | Target::CtMark | Target::CtZone,
                    ..
                } | Statement::Nat(_)
                    | Statement::NoTrack
                    | Statement::Tproxy { .. }
                    | Statement::Unknown { .. }
            )
        });
        let marks_connections = statements().any(|s| {
            matches!(
                s,
                Statement::Assign {
                    target: Target::CtMark,
                    ..
                } | Statement::Unknown { .. }
            )
        });
        for update in statements().filter_map(|s| match s {
            Statement::SetUpdate(update) if !update.ipset => Some(update),
            _ => None,
        }) {
            changes.note(&update.set, update.op);
        }
        Compiled {
            table,
            chains: table
                .chains
                .iter()
                .enumerate()
                .map(|(i, c)| (c.name.as_str(), i))
                .collect(),
            sets: table.sets.iter().map(|s| (s.name.as_str(), s)).collect(),
            guards: table
                .chains
                .iter()
                .map(|c| c.rules.iter().map(|r| Guard::of(&r.statements)).collect())
                .collect(),
            changes,
            writes,
            marks_connections,
        }
    }
    pub(super) fn chain(&self, index: usize) -> &'a Chain {
        &self.table.chains[index]
    }
    pub(super) fn resolve(&self, set: &'a SetRef) -> Option<&'a NftSet> {
        match set {
            SetRef::Named(name) => self.sets.get(name.as_str()).copied(),
            SetRef::Anonymous(set) => Some(set),
        }
    }
}

impl<'a> Changes<'a> {
    pub(super) fn note(&mut self, set: &'a str, op: SetOp) {
        match op {
            SetOp::Add | SetOp::Update => self.grow.insert(set),
            SetOp::Delete => self.shrink.insert(set),
        };
    }
    /// ipsets that `-j SET` changes, in whatever table.
    pub(super) fn of_ipsets(rules: &'a Ruleset) -> Self {
        let mut changes = Changes::default();
        let chains = rules.tables.iter().flat_map(|t| &t.chains);
        for statement in chains.flat_map(|c| &c.rules).flat_map(|r| &r.statements) {
            if let Statement::SetUpdate(update) = statement
                && update.ipset
            {
                changes.note(&update.set, update.op);
            }
        }
        changes
    }
}

/// All base chains that are hooked in, in the order that the kernel runs them.
pub(super) fn hooked<'a>(tables: &[Compiled<'a>]) -> Vec<Hooked<'a>> {
    let mut out = vec![];
    for (t, compiled) in tables.iter().enumerate() {
        if compiled.table.dormant {
            continue;
        }
        for (c, chain) in compiled.table.chains.iter().enumerate() {
            if let Some(base) = &chain.base {
                out.push(Hooked {
                    table: t,
                    chain: c,
                    base,
                });
            }
        }
    }
    out.sort_by_key(|h| (h.base.hook, h.base.priority));
    out
}

/// True when a rule anywhere looks at the first IPv6 header's type, which a client can vary.
pub(super) fn looks_at_next_header(rules: &Ruleset) -> bool {
    let in_keys = |keys: &[Operand]| keys.iter().any(|k| k.key == Key::NextHeader);
    let mut statements = rules
        .tables
        .iter()
        .flat_map(|t| &t.chains)
        .flat_map(|c| &c.rules)
        .flat_map(|r| &r.statements);
    statements.any(|s| match s {
        Statement::Match(Match::Cmp { of, .. }) => of.key == Key::NextHeader,
        Statement::Match(Match::Lookup { keys, .. }) | Statement::VerdictMap { keys, .. } => {
            in_keys(keys)
        }
        Statement::Nat(nat) => [&nat.addr, &nat.port]
            .into_iter()
            .flatten()
            .any(|e| match e {
                Expr::Map { keys, .. } => in_keys(keys),
                _ => false,
            }),
        _ => false,
    })
}

/// True for hooks that a packet passes before the routing decision.
pub(super) fn before_routing(hook: NfHook) -> bool {
    matches!(hook, NfHook::Ingress | NfHook::Prerouting)
}
