//! What a walk decided, by whom and for whom: many small sets, kept in one place.
use std::rc::Rc;

use super::packet::Packet;
use super::trace::Node;
use crate::Verdict;

/// A decision on some clients.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Where [`Ledger::of`] finds them.
    from: usize,
    to: usize,
    pub(super) node: Node,
    pub(super) verdict: Verdict,
    /// An accepting rule, not a policy.
    pub(super) explicit: bool,
    /// The packet as it was accepted.
    pub(super) packet: Option<Rc<Packet>>,
}

/// All decisions of one walk, in its order.
pub(super) struct Ledger<T> {
    intervals: Vec<(T, T)>,
    pub(super) drops: Vec<Record>,
    pub(super) accepts: Vec<Record>,
}

impl<T: Copy> Ledger<T> {
    pub(super) fn new() -> Self {
        Ledger {
            intervals: vec![],
            drops: vec![],
            accepts: vec![],
        }
    }
    /// The clients that a record is about.
    pub(super) fn of(&self, record: &Record) -> &[(T, T)] {
        &self.intervals[record.from..record.to]
    }
    pub(super) fn drop(&mut self, set: &[(T, T)], node: Node, verdict: Verdict) {
        let record = self.record(set, node, verdict, true, None);
        self.drops.push(record);
    }
    pub(super) fn accept(&mut self, set: &[(T, T)], node: Node, explicit: bool, at: Rc<Packet>) {
        let record = self.record(set, node, Verdict::Accept, explicit, Some(at));
        self.accepts.push(record);
    }
    fn record(
        &mut self,
        set: &[(T, T)],
        node: Node,
        verdict: Verdict,
        explicit: bool,
        packet: Option<Rc<Packet>>,
    ) -> Record {
        let from = self.intervals.len();
        self.intervals.extend_from_slice(set);
        Record {
            from,
            to: self.intervals.len(),
            node,
            verdict,
            explicit,
            packet,
        }
    }
    /// Everybody who may be dropped, in no order.
    pub(super) fn dropped(&self) -> Vec<(T, T)> {
        let sets = self.drops.iter().flat_map(|r| self.of(r));
        sets.copied().collect()
    }
}
