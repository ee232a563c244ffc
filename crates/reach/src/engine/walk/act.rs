//! What a rule does to the clients that it takes: verdicts, jumps, maps of them, new marks.
use std::borrow::Cow;
use std::rc::Rc;

use super::{At, Flow, Frame, Go, Local, MAX_DEPTH, Node, Packet, Part, Walk, What, restrict};
use crate::Verdict;
use crate::intervals::{Ivs, Pending, Unit};
use crate::ir::{Data, Operand, Policy, RuleVerdict, SetRef, Target};

impl<'a, T: Unit> Walk<'a, T> {
    #[allow(clippy::too_many_arguments)] // One call site; the arguments are the state of the walk.
    pub(super) fn verdict(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        scope: &Option<Rc<[(T, T)]>>,
        part: &Part<'_, T>,
        at: &At<'_>,
        verdict: &RuleVerdict,
        local: &mut Local<T>,
    ) -> Go {
        match verdict {
            RuleVerdict::Continue => {}
            RuleVerdict::Accept => {
                let set = self.grab(flow, part, at.sure);
                if !set.is_empty() {
                    let node = self.last_step(frame, at);
                    self.pass(&flow.packet, set, node, flow.node, true);
                }
            }
            RuleVerdict::Drop | RuleVerdict::Reject { .. } => {
                let set = self.grab(flow, part, at.sure);
                if !set.is_empty() {
                    let node = self.last_step(frame, at);
                    let reject = matches!(verdict, RuleVerdict::Reject { .. });
                    self.drop(
                        set,
                        node,
                        if reject {
                            Verdict::Reject
                        } else {
                            Verdict::Drop
                        },
                    );
                }
            }
            RuleVerdict::Queue { .. } => {
                let mut conditions = at.conditions.to_vec();
                conditions.push("a program in user space decides (queue)".into());
                let open = At {
                    rule: at.rule,
                    statement: at.statement,
                    sure: at.sure,
                    conditions: conditions.into(),
                };
                self.anything(frame, flow, part, &open, at.sure);
            }
            RuleVerdict::Return => {
                if let Some(_policy) = frame.policy {
                    let set = self.grab(flow, part, at.sure);
                    let node = self.step(frame, at);
                    self.policy(frame, &flow.packet, node, flow.node, set);
                } else if at.sure && (part.is_none() || part.as_deref() == scope.as_deref()) {
                    return Go::Leave;
                } else {
                    let set = self.grab(flow, part, at.sure);
                    hold_back(flow, local, set);
                }
            }
            RuleVerdict::Jump { chain } => self.jump(frame, flow, part, at, chain, false, local),
            RuleVerdict::Goto { chain } => self.jump(frame, flow, part, at, chain, true, local),
        }
        Go::Next
    }

    /// `goto`: the calling chain is left for good.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn jump(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        part: &Part<'_, T>,
        at: &At<'_>,
        chain: &str,
        goto: bool,
        local: &mut Local<T>,
    ) {
        if part.as_ref().is_some_and(|p| flow.set.is_disjoint(p)) {
            return;
        }
        let known = self.table(frame.table).chains.get(chain).copied();
        let (Some(target), true) = (known, frame.depth < MAX_DEPTH) else {
            let mut conditions = at.conditions.to_vec();
            conditions.push(format!("chain {chain} is not known"));
            let open = At {
                rule: at.rule,
                statement: at.statement,
                sure: false,
                conditions: conditions.into(),
            };
            self.anything(frame, flow, part, &open, false);
            return;
        };
        let inner = Frame {
            table: frame.table,
            chain: target,
            depth: frame.depth + 1,
            node: self.step(frame, at),
            policy: None,
            nat: frame.nat,
        };
        let mut forks = if at.sure {
            self.call(&inner, flow, part.as_deref().map(Rc::from))
        } else {
            let mut copy = Flow::new(flow.packet.clone(), self.grab(flow, part, false), flow.node);
            let mut forks = self.call(&inner, &mut copy, None);
            // A copy that comes back as it went adds nothing to the flow that never left; a changed one does, and
            // one that leaves the caller for good.
            if !copy.set.is_empty() && (goto || copy.packet != flow.packet) {
                forks.push(copy);
            }
            forks
        };
        if !goto {
            if !forks.is_empty() {
                local
                    .todo
                    .entry((at.rule + 1, 0))
                    .or_default()
                    .extend(forks);
            }
            return;
        }
        if at.sure {
            let left = self.grab(flow, part, true);
            if frame.policy.is_some() {
                self.policy(frame, &flow.packet.clone(), inner.node, flow.node, left);
            } else {
                hold_back(flow, local, left);
            }
        }
        if frame.policy.is_none() {
            for fork in forks {
                if fork.packet == flow.packet {
                    hold_back(flow, local, fork.set.into_intervals());
                } else {
                    local.through.push(fork);
                }
            }
            return;
        }
        for fork in forks.drain(..) {
            self.policy(
                frame,
                &fork.packet,
                inner.node,
                fork.node,
                fork.set.into_intervals(),
            );
        }
    }

    /// Accept, drop or go on: all of it is possible.
    pub(super) fn anything(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        part: &Part<'_, T>,
        at: &At<'_>,
        take: bool,
    ) {
        let set = self.grab(flow, part, take);
        if set.is_empty() {
            return;
        }
        let node = self.last_step(frame, at);
        self.drop(set.clone(), node, Verdict::Drop);
        self.pass(&flow.packet, set, node, flow.node, true);
    }

    pub(super) fn policy(
        &mut self,
        frame: &Frame,
        packet: &Rc<Packet>,
        node: Node,
        path: Node,
        set: Ivs<T>,
    ) {
        let (Some(policy), false) = (frame.policy, set.is_empty()) else {
            return;
        };
        let what = What::Policy {
            table: frame.table,
            chain: frame.chain,
            policy,
        };
        let node = self.trace.leaf(node, what, &[]);
        match policy {
            Policy::Accept => self.pass(packet, set, node, path, false),
            Policy::Drop => self.drop(set, node, Verdict::Drop),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn verdict_map(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        scope: &Option<Rc<[(T, T)]>>,
        part: &Part<'_, T>,
        at: &At<'_>,
        (keys, map): (&'a [Operand], &'a SetRef),
        local: &mut Local<T>,
    ) -> Go {
        let Some(groups) = self.partition(frame.table, keys, map, &flow.packet) else {
            return Go::Next;
        };
        for group in groups {
            let narrowed = match &group.clients {
                None => part.clone(),
                Some(clients) => Some(restrict(part, clients, false)),
            };
            if narrowed.as_ref().is_some_and(|n| n.is_empty()) {
                continue;
            }
            let mut here = At {
                rule: at.rule,
                statement: at.statement,
                sure: at.sure,
                conditions: Cow::Borrowed(&at.conditions),
            };
            if !group.sure {
                let text = self.rule_at(frame, at.rule).text.clone();
                self.doubt(&mut here, text);
            }
            match group.data {
                Some(Data::Verdict(verdict)) => {
                    if self.verdict(frame, flow, scope, &narrowed, &here, verdict, local)
                        == Go::Leave
                    {
                        return Go::Leave;
                    }
                }
                _ => {
                    let text = self.rule_at(frame, at.rule).text.clone();
                    self.doubt(&mut here, text);
                    self.anything(frame, flow, &narrowed, &here, false);
                }
            }
        }
        Go::Next
    }

    /// Gives the packet of `part` another shape. True: the whole flow changed, and the rule goes on. False: the
    /// changed part goes on by itself, and this rule is over for the rest.
    pub(super) fn change(
        &mut self,
        flow: &mut Flow<T>,
        part: &Part<'_, T>,
        at: &At<'_>,
        new: Packet,
        local: &mut Local<T>,
    ) -> bool {
        if new == *flow.packet {
            return true;
        }
        let set = self.grab(flow, part, at.sure);
        if set.is_empty() {
            return false;
        }
        if at.sure && flow.set.is_empty() && flow.lent == 0 {
            flow.packet = Rc::new(new);
            flow.set = Pending::new(set);
            return true;
        }
        let fork = Flow::new(Rc::new(new), set, flow.node);
        local
            .todo
            .entry((at.rule, at.statement))
            .or_default()
            .push(fork);
        false
    }

    pub(super) fn assign(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        part: &Part<'_, T>,
        at: &At<'_>,
        (target, value): (&'a Target, &'a crate::ir::Expr),
        local: &mut Local<T>,
    ) -> bool {
        let set = |packet: &mut Packet, value: Option<u32>| match target {
            Target::Mark => packet.mark = value,
            Target::CtMark => packet.ct_mark = value,
            Target::CtZone => packet.ct_zone = value,
            _ => {}
        };
        if !matches!(target, Target::Mark | Target::CtMark | Target::CtZone) {
            return true;
        }
        let values = self.values(frame.table, value, &flow.packet);
        if let [one] = &values[..]
            && one.clients.is_none()
            && one.sure
        {
            let mut new = (*flow.packet).clone();
            set(&mut new, one.value);
            return self.change(flow, part, at, new, local);
        }
        for one in values {
            let narrowed = match &one.clients {
                None => part.clone(),
                Some(clients) => Some(restrict(part, clients, false)),
            };
            let mut new = (*flow.packet).clone();
            set(&mut new, one.value);
            let here = At {
                rule: at.rule,
                statement: at.statement,
                sure: at.sure && one.sure,
                conditions: Cow::Borrowed(&at.conditions),
            };
            let taken = self.grab(flow, &narrowed, here.sure);
            if !taken.is_empty() {
                let fork = Flow::new(Rc::new(new), taken, flow.node);
                local
                    .todo
                    .entry((at.rule, at.statement))
                    .or_default()
                    .push(fork);
            }
        }
        // Clients without an element: the rule is over for them.
        false
    }
}

/// Sets clients aside until the end of the chain.
fn hold_back<T: Unit>(flow: &mut Flow<T>, local: &mut Local<T>, set: Ivs<T>) {
    if set.is_empty() {
        return;
    }
    if local.returned.is_empty() {
        flow.lent += 1;
    }
    local.returned.extend(set);
}
