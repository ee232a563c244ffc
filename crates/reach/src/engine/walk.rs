//! The walk through chains: the client's address is a set, everything else of the packet is concrete.
//!
//! A sure match takes its clients out of the flow; an undecided one leaves them and works on a copy. So in the end
//! "may pass" and "may be dropped" are both exact over-approximations: who is in one of them only is decided.
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::Engine;
use super::compile::{Compiled, Probe};
use super::ledger::Ledger;
use super::lookup::Cache;
use super::matching::Holds;
use super::packet::Packet;
use super::route::Routing;
use super::trace::{Node, Quick, Trace, What};
use crate::intervals::{self, Ivs, Pending, Unit};
use crate::ir::{Condition, IntSet, Match, NfHook, Policy, Rule, RuleVerdict, Statement};
use crate::{Net, Verdict};

mod act;

/// Clients whose packets share every other property.
#[derive(Debug, Clone)]
pub(super) struct Flow<T> {
    pub(super) packet: Rc<Packet>,
    pub(super) set: Pending<T>,
    /// The way here, outside of the current base chain.
    pub(super) node: Node,
    /// How many chains hold back a part of this flow until their end.
    lent: u32,
}

impl<T: Unit> Flow<T> {
    pub(super) fn new(packet: Rc<Packet>, set: Ivs<T>, node: Node) -> Self {
        Flow {
            packet,
            set: Pending::new(set),
            node,
            lent: 0,
        }
    }
}

/// Clients that leave a base chain alive.
pub(super) struct Pass<T> {
    pub(super) packet: Rc<Packet>,
    pub(super) set: Ivs<T>,
    pub(super) node: Node,
    /// Becomes [`Flow::node`]: changes with NAT.
    pub(super) path: Node,
    pub(super) explicit: bool,
}

/// The interval of client ports around the one walked with, for which every comparison gives the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) first: u16,
    pub(super) last: u16,
}

impl Window {
    pub(super) fn narrow(&mut self, port: u16, ints: &IntSet) {
        let ivs = ints.intervals();
        let port = u64::from(port);
        let at = ivs.partition_point(|iv| iv.1 < port);
        let clamp = |v: u64| v.min(65535) as u16;
        match ivs.get(at) {
            Some(iv) if iv.0 <= port => {
                self.first = self.first.max(clamp(iv.0));
                self.last = self.last.min(clamp(iv.1));
            }
            next => {
                if let Some(iv) = next {
                    self.last = self.last.min(clamp(iv.0 - 1));
                }
                if let Some(before) = at.checked_sub(1).and_then(|i| ivs.get(i)) {
                    self.first = self.first.max(clamp(before.1 + 1));
                }
            }
        }
    }
}

/// Where the walk is.
pub(super) struct Frame {
    pub(super) table: usize,
    pub(super) chain: usize,
    depth: u32,
    /// The jumps that led here.
    pub(super) node: Node,
    /// Of a base chain.
    policy: Option<Policy>,
    /// Whether NAT statements count.
    pub(super) nat: bool,
}

/// What one run through a chain has left over.
pub(super) struct Local<T> {
    /// Flows whose packet changed on the way, to go on at (rule, statement). Taken in that order, so that flows
    /// that have become equal are one before they go on: without it undecided marks would double them each time.
    todo: BTreeMap<(usize, usize), Vec<Flow<T>>>,
    /// Clients that returned early.
    returned: Ivs<T>,
    /// Changed flows that have left the chain.
    through: Vec<Flow<T>>,
}

/// Clients that a rule is about; `None`: all of the flow.
pub(super) type Part<'c, T> = Option<Cow<'c, [(T, T)]>>;

/// How the chain goes on.
#[derive(PartialEq)]
enum Go {
    Next,
    Leave,
}

/// Place of a statement, and how sure it is that the rule got there.
pub(super) struct At<'c> {
    pub(super) rule: usize,
    pub(super) statement: usize,
    pub(super) sure: bool,
    pub(super) conditions: Cow<'c, [String]>,
}

/// Deeper than the kernel allows (NFT_JUMP_STACK_SIZE 16, NF_MAX 512 in x_tables).
const MAX_DEPTH: u32 = 200;

pub(super) struct Walk<'a, T> {
    pub(super) engine: &'a Engine<'a>,
    pub(super) routing: Option<&'a Routing<'a, T>>,
    pub(super) cache: &'a RefCell<Cache<T>>,
    pub(super) hook: NfHook,
    pub(super) window: Window,
    pub(super) trace: Trace,
    pub(super) ledger: Ledger<T>,
    pub(super) passes: Vec<Pass<T>>,
    /// Rules still to be looked at before the walk gives up and says "maybe".
    pub(super) budget: u64,
}

impl<'a, T: Unit> Walk<'a, T> {
    pub(super) fn net(&self) -> Option<&'a Net> {
        self.engine.net
    }
    pub(super) fn table(&self, index: usize) -> &'a Compiled<'a> {
        &self.engine.tables[index]
    }
    fn rule_at(&self, frame: &Frame, index: usize) -> &'a Rule {
        &self.table(frame.table).chain(frame.chain).rules[index]
    }

    /// Runs `flow` through a base chain; what leaves it alive comes back, grouped by packet.
    pub(super) fn base(
        &mut self,
        table: usize,
        chain: usize,
        mut flow: Flow<T>,
        nat: bool,
        keep: bool,
    ) -> Vec<Flow<T>> {
        let Some(base) = &self.table(table).chain(chain).base else {
            return vec![flow];
        };
        if base.policy == Policy::Accept && self.table(table).chain(chain).rules.is_empty() {
            return vec![flow];
        }
        self.passes.clear();
        let frame = Frame {
            table,
            chain,
            depth: 0,
            node: flow.node,
            policy: Some(base.policy),
            nat,
        };
        let forks = self.call(&frame, &mut flow, None);
        for mut rest in std::iter::once(flow).chain(forks) {
            let set = std::mem::replace(&mut rest.set, Pending::new(vec![])).into_intervals();
            self.policy(&frame, &rest.packet, frame.node, rest.node, set);
        }
        let mut groups: HashMap<(Rc<Packet>, Node), Ivs<T>, Quick> = HashMap::default();
        let mut order = vec![];
        for pass in std::mem::take(&mut self.passes) {
            let key = (pass.packet, pass.path);
            let group = groups.entry(key.clone()).or_insert_with(|| {
                order.push(key.clone());
                vec![]
            });
            group.extend_from_slice(&pass.set);
            if keep {
                self.ledger
                    .accept(&pass.set, pass.node, pass.explicit, key.0);
            }
        }
        let flow = |key: (Rc<Packet>, Node)| {
            let set = intervals::normalise(groups.remove(&key).unwrap_or_default());
            Flow::new(key.0, set, key.1)
        };
        order.into_iter().map(flow).collect()
    }

    /// Runs a chain to its end. `flow` keeps what falls through unchanged; changed flows that fall through come back.
    fn call(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        scope: Option<Rc<[(T, T)]>>,
    ) -> Vec<Flow<T>> {
        let mut local = Local {
            todo: BTreeMap::new(),
            returned: vec![],
            through: vec![],
        };
        self.run(frame, flow, scope, (0, 0), &mut local);
        while let Some((start, flows)) = local.todo.pop_first() {
            for mut fork in merge(flows) {
                self.run(frame, &mut fork, None, start, &mut local);
                if !fork.set.is_empty() {
                    local.through.push(fork);
                }
            }
        }
        merge(local.through)
    }

    fn run(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        scope: Option<Rc<[(T, T)]>>,
        start: (usize, usize),
        local: &mut Local<T>,
    ) {
        let outer = std::mem::take(&mut local.returned);
        let guards = &self.table(frame.table).guards[frame.chain];
        let mut probe = Probe::of(&flow.packet);
        for (rule, guard) in guards.iter().enumerate().skip(start.0) {
            let statement = if rule == start.0 { start.1 } else { 0 };
            if statement == 0 && guard.fails(probe) {
                continue;
            }
            if flow.set.is_empty() {
                break;
            }
            if self.budget == 0 {
                let part = scope.as_deref().map(Cow::Borrowed);
                let reason = ["the rules take too many ways to follow".to_string()];
                let at = At {
                    rule,
                    statement,
                    sure: true,
                    conditions: Cow::Borrowed(&reason),
                };
                self.anything(frame, flow, &part, &at, true);
                break;
            }
            self.budget -= 1;
            let at = At {
                rule,
                statement,
                sure: true,
                conditions: Cow::Borrowed(&[]),
            };
            let part = scope.as_deref().map(Cow::Borrowed);
            if self.steps(frame, flow, &scope, part, at, local) == Go::Leave {
                break;
            }
            probe = Probe::of(&flow.packet);
            if scope
                .as_ref()
                .is_some_and(|s| s.len() <= 4 && flow.set.is_disjoint(s))
            {
                break;
            }
        }
        let returned = std::mem::replace(&mut local.returned, outer);
        if !returned.is_empty() {
            flow.lent -= 1;
            let rest = std::mem::replace(&mut flow.set, Pending::new(vec![])).into_intervals();
            flow.set = Pending::new(intervals::union(&rest, &intervals::normalise(returned)));
        }
    }

    /// The statements of one rule, from `at` on.
    fn steps<'p>(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        scope: &Option<Rc<[(T, T)]>>,
        mut part: Part<'p, T>,
        mut at: At<'_>,
        local: &mut Local<T>,
    ) -> Go
    where
        'a: 'p,
    {
        let rule = self.rule_at(frame, at.rule);
        for statement in rule.statements.iter().skip(at.statement) {
            at.statement += 1;
            match statement {
                Statement::Match(m) => match self.holds(frame.table, m, &flow.packet) {
                    Holds::Yes => {}
                    Holds::No => return Go::Next,
                    Holds::Maybe => self.doubt(&mut at, describe(m, rule)),
                    Holds::For {
                        sure,
                        negate,
                        maybe,
                    } => {
                        if !maybe.is_empty() {
                            let open = restrict(&part, &maybe, false);
                            let mut conditions = at.conditions.to_vec();
                            conditions.push(describe(m, rule));
                            let at = At {
                                rule: at.rule,
                                statement: at.statement,
                                sure: false,
                                conditions: conditions.into(),
                            };
                            if !open.is_empty() && !flow.set.is_disjoint(&open) {
                                self.steps(frame, flow, scope, Some(open), at, local);
                            }
                        }
                        let mut now = match (&part, negate) {
                            // The commonest case by far needs no copy.
                            (None, false) => match sure {
                                Cow::Borrowed(b) => Cow::Borrowed(b),
                                Cow::Owned(o) => Cow::Owned(o),
                            },
                            _ => restrict(&part, &sure, negate),
                        };
                        if !maybe.is_empty() {
                            now = Cow::Owned(intervals::subtract(&now, &maybe));
                        }
                        if now.is_empty() {
                            return Go::Next;
                        }
                        part = Some(now);
                    }
                },
                Statement::Verdict(verdict) => {
                    return self.verdict(frame, flow, scope, &part, &at, verdict, local);
                }
                Statement::VerdictMap { keys, map } => {
                    return self.verdict_map(frame, flow, scope, &part, &at, (keys, map), local);
                }
                Statement::Assign { target, value } => {
                    if !self.assign(frame, flow, &part, &at, (target, value), local) {
                        return Go::Next;
                    }
                }
                Statement::Nat(nat) => {
                    if frame.nat && self.translate(frame, flow, &part, &at, nat) {
                        return Go::Next;
                    }
                }
                Statement::NoTrack => {
                    let mut new = (*flow.packet).clone();
                    if new.track == super::packet::Track::NotYet {
                        new.track = super::packet::Track::Untracked;
                    }
                    if !self.change(flow, &part, &at, new, local) {
                        return Go::Next;
                    }
                }
                Statement::Tproxy { addr, port, mark } => {
                    let mut new = (*flow.packet).clone();
                    new.tproxy = Some((*addr, *port));
                    if let Some((value, mask)) = mark {
                        new.mark = new.mark.map(|m| (m & !mask) ^ value);
                    }
                    if !self.change(flow, &part, &at, new, local) {
                        return Go::Next;
                    }
                }
                Statement::SetUpdate(update) => {
                    // A full set, or a limit in the element, ends the rule here.
                    if !update.ipset {
                        let why = update
                            .conditions
                            .first()
                            .map_or_else(|| format!("room in @{}", update.set), text_of);
                        self.doubt(&mut at, why);
                    }
                }
                Statement::ObjectMap { .. } => self.doubt(&mut at, rule.text.clone()),
                Statement::Forward { .. } => {
                    return self.verdict(frame, flow, scope, &part, &at, &RuleVerdict::Drop, local);
                }
                Statement::Synproxy { .. } | Statement::Unknown { .. } => {
                    let mut conditions = at.conditions.to_vec();
                    conditions.push(rule.text.clone());
                    let open = At {
                        rule: at.rule,
                        statement: at.statement,
                        sure: false,
                        conditions: conditions.into(),
                    };
                    self.anything(frame, flow, &part, &open, false);
                    let mut new = (*flow.packet).clone();
                    new.mark = None;
                    new.ct_mark = None;
                    self.change(flow, &part, &open, new, local);
                }
                Statement::Log { .. }
                | Statement::Object { .. }
                | Statement::FlowOffload { .. }
                | Statement::Dup { .. }
                | Statement::Other { .. } => {}
            }
        }
        Go::Next
    }

    fn doubt(&self, at: &mut At<'_>, condition: String) {
        at.sure = false;
        at.conditions.to_mut().push(condition);
    }

    /// The clients concerned: taken out of the flow when it is sure, a copy when not.
    pub(super) fn grab(&self, flow: &mut Flow<T>, part: &Part<'_, T>, sure: bool) -> Ivs<T> {
        match (part, sure) {
            (None, true) => std::mem::replace(&mut flow.set, Pending::new(vec![])).into_intervals(),
            (None, false) => flow.set.intervals(),
            (Some(part), true) => flow.set.take(part),
            (Some(part), false) => flow.set.peek(part),
        }
    }

    pub(super) fn step(&mut self, frame: &Frame, at: &At<'_>) -> Node {
        let what = What::Rule {
            table: frame.table,
            chain: frame.chain,
            index: at.rule,
        };
        self.trace.step(frame.node, what, &at.conditions)
    }

    /// The step of a rule that decides: nothing comes after it.
    fn last_step(&mut self, frame: &Frame, at: &At<'_>) -> Node {
        let what = What::Rule {
            table: frame.table,
            chain: frame.chain,
            index: at.rule,
        };
        self.trace.leaf(frame.node, what, &at.conditions)
    }

    pub(super) fn pass(
        &mut self,
        packet: &Rc<Packet>,
        set: Ivs<T>,
        node: Node,
        path: Node,
        explicit: bool,
    ) {
        self.passes.push(Pass {
            packet: packet.clone(),
            set,
            node,
            path,
            explicit,
        });
    }

    pub(super) fn drop(&mut self, set: Ivs<T>, node: Node, verdict: Verdict) {
        self.ledger.drop(&set, node, verdict);
    }
}

/// Joins flows with the same packet and way.
pub(super) fn merge<T: Unit>(flows: Vec<Flow<T>>) -> Vec<Flow<T>> {
    if flows.len() < 2 {
        return flows;
    }
    let mut out: Vec<(Rc<Packet>, Node, Ivs<T>)> = vec![];
    let mut index: HashMap<(Rc<Packet>, Node), usize, Quick> = HashMap::default();
    for flow in flows {
        let key = (flow.packet.clone(), flow.node);
        let at = *index.entry(key).or_insert_with(|| {
            out.push((flow.packet.clone(), flow.node, vec![]));
            out.len() - 1
        });
        out[at].2.extend(flow.set.into_intervals());
    }
    let flow = |(packet, node, set)| Flow::new(packet, intervals::normalise(set), node);
    out.into_iter().map(flow).collect()
}

/// `part` within `set`, or outside of it.
pub(super) fn restrict<'c, T: Unit>(
    part: &Part<'_, T>,
    set: &[(T, T)],
    negate: bool,
) -> Cow<'c, [(T, T)]> {
    Cow::Owned(match (part, negate) {
        (None, false) => set.to_vec(),
        (None, true) => intervals::complement(set),
        (Some(part), false) => intervals::intersect(part, set),
        (Some(part), true) => intervals::subtract(part, set),
    })
}

fn text_of(condition: &Condition) -> String {
    condition.text.clone()
}

/// What an undecided match depends on, in words.
fn describe(m: &Match, rule: &Rule) -> String {
    match m {
        Match::Conditional(c) if !c.text.is_empty() => c.text.clone(),
        Match::Unknown { text } if !text.is_empty() => text.clone(),
        _ => rule.text.clone(),
    }
}
