//! From may-pass and may-be-dropped to the answer, with a witness for every part.
use super::Engine;
use super::packet::Packet;
use super::trace::Node;
use super::walk::{Record, Walk};
use crate::intervals::{self, Ivs, Pending, Unit};
use crate::{Answer, Delivery, Piece, Verdict};

/// What one walk found, with the records it was found by.
pub(super) struct Found<T> {
    pub(super) admitted: Ivs<T>,
    pub(super) conditional: Ivs<T>,
    pub(super) blocked: Ivs<T>,
}

impl<T: Unit> Walk<'_, T> {
    /// Splits `universe` by what may happen. `passed`: who may get all the way through.
    pub(super) fn settle(&self, universe: &[(T, T)], passed: &[(T, T)]) -> Found<T> {
        let dropped: Ivs<T> = self
            .drops
            .iter()
            .flat_map(|r| r.set.iter().copied())
            .collect();
        let dropped = intervals::normalise(dropped);
        Found {
            admitted: intervals::subtract(passed, &dropped),
            conditional: intervals::intersect(passed, &dropped),
            blocked: intervals::subtract(universe, passed),
        }
    }

    /// Pieces for parts of what this walk found.
    pub(super) fn pieces(&self, found: &Found<T>, note: Option<&str>) -> Vec<Piece> {
        let mut out = Pieces {
            walk: self,
            note,
            list: vec![],
        };
        out.admitted(&found.admitted);
        out.conditional(&found.conditional);
        out.blocked(&found.blocked);
        out.join()
    }
}

struct Pieces<'w, 'a, T> {
    walk: &'w Walk<'a, T>,
    /// A step that goes before all others: the source port that the client has to choose.
    note: Option<&'w str>,
    list: Vec<(Ivs<T>, Verdict, Option<Delivery>, Node)>,
}

/// The last rule that accepted is the one that let it in; policies only where no rule did.
fn accepts<'w, T>(walk: &'w Walk<'_, T>) -> Vec<&'w Record<T>> {
    let rules = walk.accepts.iter().rev().filter(|r| r.explicit);
    rules
        .chain(walk.accepts.iter().rev().filter(|r| !r.explicit))
        .collect()
}

impl<T: Unit> Pieces<'_, '_, T> {
    fn admitted(&mut self, set: &[(T, T)]) {
        let mut left = Pending::new(set.to_vec());
        for record in accepts(self.walk) {
            if left.is_empty() {
                return;
            }
            let part = left.take(&record.set);
            if !part.is_empty() {
                let to = record.packet.as_deref().and_then(delivery);
                self.list.push((part, Verdict::Accept, to, record.node));
            }
        }
        let rest = left.into_intervals();
        if !rest.is_empty() {
            self.list
                .push((rest, Verdict::Accept, None, super::trace::ROOT));
        }
    }

    fn blocked(&mut self, set: &[(T, T)]) {
        let mut left = Pending::new(set.to_vec());
        for sure in [true, false] {
            for record in &self.walk.drops {
                if left.is_empty() {
                    return;
                }
                if self.walk.trace.is_sure(record.node) != sure {
                    continue;
                }
                let part = left.take(&record.set);
                if !part.is_empty() {
                    self.list.push((part, record.verdict, None, record.node));
                }
            }
        }
        let rest = left.into_intervals();
        if !rest.is_empty() {
            self.list
                .push((rest, Verdict::Drop, None, super::trace::ROOT));
        }
    }

    fn conditional(&mut self, set: &[(T, T)]) {
        let mut left = Pending::new(set.to_vec());
        let accepts = accepts(self.walk);
        let records: Vec<&Record<T>> = self
            .walk
            .drops
            .iter()
            .chain(accepts.iter().copied())
            .collect();
        // First what is undecided in itself, then what is only one of several ways.
        for sure in [false, true] {
            for record in &records {
                if left.is_empty() {
                    return;
                }
                if self.walk.trace.is_sure(record.node) != sure || left.is_disjoint(&record.set) {
                    continue;
                }
                let part = left.take(&record.set);
                let to = accepts
                    .iter()
                    .find(|a| !intervals::intersect(&a.set, &part).is_empty());
                let to = to.and_then(|a| a.packet.as_deref()).and_then(delivery);
                self.list
                    .push((part, Verdict::Conditional, to, record.node));
            }
        }
        let rest = left.into_intervals();
        if !rest.is_empty() {
            self.list
                .push((rest, Verdict::Conditional, None, super::trace::ROOT));
        }
    }

    /// Pieces with the same verdict, witness and delivery become one.
    fn join(self) -> Vec<Piece> {
        let mut index = std::collections::HashMap::new();
        let mut joined: Vec<(Ivs<T>, Verdict, Option<Delivery>, Node)> = vec![];
        for (set, verdict, to, node) in self.list {
            let key = (verdict, node, to.as_ref().map(|d| format!("{d:?}")));
            let at = *index.entry(key).or_insert(joined.len());
            match joined.get_mut(at) {
                Some(known) => known.0.extend(set),
                None => joined.push((set, verdict, to, node)),
            }
        }
        let tables = &self.walk.engine.tables;
        let piece = |(set, verdict, delivered, node)| {
            let mut witness = self.walk.trace.witness(node, tables);
            if let Some(note) = self.note {
                let step = crate::Step {
                    at: None,
                    text: note.to_string(),
                };
                witness.path.insert(0, step);
            }
            let conditions = match verdict {
                Verdict::Conditional => self.walk.trace.conditions(node),
                _ => vec![],
            };
            Piece {
                sources: T::into_set(intervals::normalise(set)),
                verdict,
                delivered,
                witness,
                conditions,
            }
        };
        joined.into_iter().map(piece).collect()
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

/// Adds up the answers for several choices of the client: it takes the best one.
pub(super) struct Best<T> {
    universe: Ivs<T>,
    admitted: Ivs<T>,
    conditional: Ivs<T>,
    /// Blocked ones are those of the first choice.
    pieces: Vec<Piece>,
    first: bool,
}

impl<T: Unit> Best<T> {
    pub(super) fn new(universe: Ivs<T>) -> Self {
        Best {
            universe,
            admitted: vec![],
            conditional: vec![],
            pieces: vec![],
            first: true,
        }
    }
    /// Whom no choice so far surely admits.
    pub(super) fn open(&self) -> Ivs<T> {
        intervals::subtract(&self.universe, &self.admitted)
    }
    pub(super) fn add(&mut self, walk: &Walk<'_, T>, found: Found<T>, note: Option<&str>) {
        let new = Found {
            conditional: intervals::subtract(&found.conditional, &self.conditional),
            blocked: if self.first { found.blocked } else { vec![] },
            admitted: found.admitted,
        };
        self.admitted = intervals::union(&self.admitted, &new.admitted);
        self.conditional = intervals::union(&self.conditional, &new.conditional);
        let pieces = walk.pieces(&new, note);
        if self.first {
            // Not copied: there may be 100,000 of them.
            self.pieces = pieces;
        } else {
            self.pieces.extend(pieces);
        }
        self.first = false;
    }
    pub(super) fn answer(self) -> Answer {
        let conditional = intervals::subtract(&self.conditional, &self.admitted);
        let open = intervals::union(&self.admitted, &conditional);
        let blocked = intervals::subtract(&self.universe, &open);
        let (admitted, conditional, blocked) = (
            T::into_set(self.admitted),
            T::into_set(conditional),
            T::into_set(blocked),
        );
        let mut pieces = self.pieces;
        pieces.retain_mut(|piece| {
            let whole = match piece.verdict {
                Verdict::Accept => &admitted,
                Verdict::Conditional => &conditional,
                Verdict::Drop | Verdict::Reject => &blocked,
            };
            if !piece.sources.is_subset(whole) {
                piece.sources = piece.sources.intersect(whole);
            }
            !piece.sources.is_empty()
        });
        pieces.sort_by_cached_key(|p| p.sources.first());
        Answer {
            admitted,
            conditional,
            blocked,
            pieces,
        }
    }
}

impl Engine<'_> {
    /// The text of a step that names the client's port.
    pub(super) fn port_note(port: u16) -> String {
        format!("from source port {port}, which the client may choose")
    }
}
