//! From may-pass and may-be-dropped to the answer, with a witness for every part that is asked for.
use std::collections::HashMap;
use std::net::IpAddr;

use super::compile::Compiled;
use super::ledger::{Ledger, Record};
use super::packet::Packet;
use super::trace::{Entry, Node, Quick, ROOT, Trace};
use super::walk::Walk;
use crate::intervals::{self, Ivs, Pending, Unit};
use crate::{AddrSet, Answer, Delivery, Piece, Step, Verdict};

/// What one walk found.
pub(super) struct Found<T> {
    pub(super) admitted: Ivs<T>,
    pub(super) conditional: Ivs<T>,
    pub(super) blocked: Ivs<T>,
}

impl<T: Unit> Walk<'_, T> {
    /// Splits `universe` by what may happen. `passed`: who may get all the way through.
    pub(super) fn settle(&self, universe: &[(T, T)], passed: &[(T, T)]) -> Found<T> {
        let dropped = intervals::normalise(self.ledger.dropped());
        Found {
            admitted: intervals::subtract(passed, &dropped),
            conditional: intervals::intersect(passed, &dropped),
            blocked: intervals::subtract(universe, passed),
        }
    }
}

/// Adds up what is found for several choices of the client: it takes the best one.
pub(super) struct Best<T> {
    universe: Ivs<T>,
    admitted: Ivs<T>,
    conditional: Ivs<T>,
    walks: Vec<Walked<T>>,
}

/// A walk that is over: what it found and no walk before it, and why.
pub(super) struct Walked<T> {
    found: Found<T>,
    ledger: Ledger<T>,
    trace: Trace,
    /// The source port that the client has to choose.
    port: Option<u16>,
}

impl<T: Unit> Best<T> {
    pub(super) fn new(universe: Ivs<T>) -> Self {
        Best {
            universe,
            admitted: vec![],
            conditional: vec![],
            walks: vec![],
        }
    }
    /// Whom no choice so far surely admits.
    pub(super) fn open(&self) -> Ivs<T> {
        intervals::subtract(&self.universe, &self.admitted)
    }
    pub(super) fn add(&mut self, walk: Walk<'_, T>, found: Found<T>, port: Option<u16>) {
        let first = self.walks.is_empty();
        let found = Found {
            conditional: intervals::subtract(&found.conditional, &self.conditional),
            blocked: if first { found.blocked } else { vec![] },
            admitted: found.admitted,
        };
        self.admitted = intervals::union(&self.admitted, &found.admitted);
        self.conditional = intervals::union(&self.conditional, &found.conditional);
        if first || !found.admitted.is_empty() || !found.conditional.is_empty() {
            self.walks.push(Walked {
                found,
                ledger: walk.ledger,
                trace: walk.trace,
                port,
            });
        }
    }
    pub(super) fn decide<'e>(self, tables: &'e [Compiled<'e>]) -> Decision<'e>
    where
        Walks: From<Vec<Walked<T>>>,
    {
        let conditional = intervals::subtract(&self.conditional, &self.admitted);
        let open = intervals::union(&self.admitted, &conditional);
        Decision {
            admitted: T::into_set(self.admitted),
            conditional: T::into_set(conditional),
            blocked: T::into_set(intervals::subtract(&self.universe, &open)),
            tables,
            walks: self.walks.into(),
        }
    }
}

/// The walks of either family.
pub(super) enum Walks {
    V4(Vec<Walked<u32>>),
    V6(Vec<Walked<u128>>),
}

impl From<Vec<Walked<u32>>> for Walks {
    fn from(walks: Vec<Walked<u32>>) -> Self {
        Walks::V4(walks)
    }
}

impl From<Vec<Walked<u128>>> for Walks {
    fn from(walks: Vec<Walked<u128>>) -> Self {
        Walks::V6(walks)
    }
}

/// What the engine decided, before anything of it is put into words: the three sets at once, a witness for whom it is
/// asked. With 100,000 deciding rules the words cost more than the answer.
pub struct Decision<'e> {
    admitted: AddrSet,
    conditional: AddrSet,
    blocked: AddrSet,
    tables: &'e [Compiled<'e>],
    walks: Walks,
}

impl Decision<'_> {
    /// Sources that can surely open a connection.
    pub fn admitted(&self) -> &AddrSet {
        &self.admitted
    }
    /// Sources for which the rules leave it open; treat as "maybe open".
    pub fn conditional(&self) -> &AddrSet {
        &self.conditional
    }
    /// Sources that surely cannot.
    pub fn blocked(&self) -> &AddrSet {
        &self.blocked
    }
    /// Who decided about one source, and about whom else in the same way; `None` for one that was not asked about.
    pub fn piece(&self, source: IpAddr) -> Option<Piece> {
        match &self.walks {
            Walks::V4(walks) => self.piece_of(walks, source),
            Walks::V6(walks) => self.piece_of(walks, source),
        }
    }
    /// Everything in words: a piece for every part of the three sets.
    pub fn answer(self) -> Answer {
        let mut pieces = match &self.walks {
            Walks::V4(walks) => self.pieces(walks),
            Walks::V6(walks) => self.pieces(walks),
        };
        pieces.sort_by_cached_key(|p| p.sources.first());
        Answer {
            admitted: self.admitted,
            conditional: self.conditional,
            blocked: self.blocked,
            pieces,
        }
    }

    fn whole(&self, verdict: Verdict) -> &AddrSet {
        match verdict {
            Verdict::Accept => &self.admitted,
            Verdict::Conditional => &self.conditional,
            Verdict::Drop | Verdict::Reject => &self.blocked,
        }
    }

    /// What is left of a part when a later walk found better.
    fn left<T: Unit>(&self, part: &mut Part<T>, walks: &[Walked<T>]) {
        if walks.len() > 1 {
            let whole = T::half(self.whole(part.verdict));
            if !intervals::is_subset(&part.set, whole) {
                part.set = intervals::intersect(&part.set, whole);
            }
        }
    }

    fn pieces<T: Unit>(&self, walks: &[Walked<T>]) -> Vec<Piece> {
        let mut out = vec![];
        for walked in walks {
            for mut part in walked.parts() {
                self.left(&mut part, walks);
                if !part.set.is_empty() {
                    out.push(walked.tell(part, self.tables));
                }
            }
        }
        out
    }

    fn piece_of<T: Unit>(&self, walks: &[Walked<T>], source: IpAddr) -> Option<Piece> {
        let at = T::from_ip(source)?;
        walks.iter().find_map(|walked| {
            let mut part = walked.part_of(at)?;
            self.left(&mut part, walks);
            let held = intervals::contains(&part.set, at);
            held.then(|| walked.tell(part, self.tables))
        })
    }
}

/// Clients with the same fate for the same reason.
struct Part<T> {
    set: Ivs<T>,
    verdict: Verdict,
    delivered: Option<Delivery>,
    node: Node,
}

impl<T: Unit> Walked<T> {
    /// The part that one client is in, without looking at those of another fate.
    fn part_of(&self, at: T) -> Option<Part<T>> {
        let mut out = Parts::new(self);
        match &self.found {
            f if intervals::contains(&f.admitted, at) => out.admitted(),
            f if intervals::contains(&f.conditional, at) => out.conditional(),
            f if intervals::contains(&f.blocked, at) => out.blocked(),
            _ => return None,
        }
        let mine = out
            .list
            .iter()
            .position(|p| intervals::contains(&p.set, at))?;
        let mut part = out.list.swap_remove(mine);
        let reason = self.trace.entry(part.node);
        for other in out.list {
            if (other.verdict, &other.delivered) == (part.verdict, &part.delivered)
                && self.trace.entry(other.node) == reason
            {
                part.set.extend(other.set);
            }
        }
        part.set = intervals::normalise(part.set);
        Some(part)
    }

    fn parts(&self) -> Vec<Part<T>> {
        let mut out = Parts::new(self);
        out.admitted();
        out.conditional();
        out.blocked();
        out.join()
    }

    /// A part in words.
    fn tell(&self, part: Part<T>, tables: &[Compiled<'_>]) -> Piece {
        let mut witness = self.trace.witness(part.node, tables);
        if let Some(port) = self.port {
            let text = format!("from source port {port}, which the client may choose");
            witness.path.insert(0, Step { at: None, text });
        }
        let conditions = match part.verdict {
            Verdict::Conditional => self.trace.conditions(part.node),
            _ => vec![],
        };
        Piece {
            sources: T::into_set(part.set),
            verdict: part.verdict,
            delivered: part.delivered,
            witness,
            conditions,
        }
    }

    /// The last rule that accepted is the one that let it in; policies only where no rule did.
    fn accepts(&self) -> Vec<&Record> {
        let rules = self.ledger.accepts.iter().rev().filter(|r| r.explicit);
        rules
            .chain(self.ledger.accepts.iter().rev().filter(|r| !r.explicit))
            .collect()
    }
}

struct Parts<'w, T> {
    walked: &'w Walked<T>,
    list: Vec<Part<T>>,
}

impl<'w, T: Unit> Parts<'w, T> {
    fn new(walked: &'w Walked<T>) -> Self {
        Parts {
            walked,
            list: vec![],
        }
    }
    fn push(&mut self, set: Ivs<T>, verdict: Verdict, delivered: Option<Delivery>, node: Node) {
        if !set.is_empty() {
            self.list.push(Part {
                set,
                verdict,
                delivered,
                node,
            });
        }
    }

    fn admitted(&mut self) {
        let mut left = Pending::new(self.walked.found.admitted.clone());
        for record in self.walked.accepts() {
            if left.is_empty() {
                return;
            }
            let part = left.take(self.walked.ledger.of(record));
            if !part.is_empty() {
                let to = record.packet.as_deref().and_then(delivery);
                self.push(part, Verdict::Accept, to, record.node);
            }
        }
        self.push(left.into_intervals(), Verdict::Accept, None, ROOT);
    }

    fn blocked(&mut self) {
        let walked = self.walked;
        let mut left = Pending::new(walked.found.blocked.clone());
        for sure in [true, false] {
            for record in &walked.ledger.drops {
                if left.is_empty() {
                    return;
                }
                if walked.trace.is_sure(record.node) == sure {
                    let part = left.take(walked.ledger.of(record));
                    self.push(part, record.verdict, None, record.node);
                }
            }
        }
        self.push(left.into_intervals(), Verdict::Drop, None, ROOT);
    }

    fn conditional(&mut self) {
        let walked = self.walked;
        let mut left = Pending::new(walked.found.conditional.clone());
        let accepts = walked.accepts();
        let drops = walked.ledger.drops.iter();
        let records: Vec<&Record> = drops.chain(accepts.iter().copied()).collect();
        // First what is undecided in itself, then what is only one of several ways.
        for sure in [false, true] {
            for record in &records {
                if left.is_empty() {
                    return;
                }
                let set = walked.ledger.of(record);
                if walked.trace.is_sure(record.node) != sure || left.is_disjoint(set) {
                    continue;
                }
                let part = left.take(set);
                let to = accepts
                    .iter()
                    .find(|a| !intervals::intersect(walked.ledger.of(a), &part).is_empty());
                let to = to.and_then(|a| a.packet.as_deref()).and_then(delivery);
                self.push(part, Verdict::Conditional, to, record.node);
            }
        }
        self.push(left.into_intervals(), Verdict::Conditional, None, ROOT);
    }

    /// Parts with the same verdict, reason and delivery become one.
    fn join(self) -> Vec<Part<T>> {
        let mut index: HashMap<(Verdict, &Entry, Option<Delivery>), usize, Quick> =
            HashMap::with_capacity_and_hasher(self.list.len(), Quick::default());
        let mut joined: Vec<Part<T>> = vec![];
        for part in self.list {
            let reason = self.walked.trace.entry(part.node);
            let key = (part.verdict, reason, part.delivered.clone());
            let at = *index.entry(key).or_insert(joined.len());
            match joined.get_mut(at) {
                Some(known) => known.set.extend(part.set),
                None => joined.push(part),
            }
        }
        for part in &mut joined {
            part.set = intervals::normalise(std::mem::take(&mut part.set));
        }
        joined
    }
}

/// Where an accepted packet ends.
fn delivery(packet: &Packet) -> Option<Delivery> {
    let address = packet.near?;
    let port = packet.near_port?;
    if let Some((proxy, proxy_port)) = packet.tproxy {
        return Some(Delivery::Local {
            address: proxy.unwrap_or(address),
            port: proxy_port.unwrap_or(port),
        });
    }
    Some(match packet.oif.name() {
        Some(oif) => Delivery::Forwarded {
            address,
            port,
            oif: oif.to_string(),
        },
        None => Delivery::Local { address, port },
    })
}
