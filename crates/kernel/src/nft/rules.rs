//! The rules of every chain, asked for and decoded by a few threads.
//!
//! The kernel walks a chain from its first rule for every datagram of a dump, so that a long chain
//! costs it far more than it costs us to understand it: whoever waits for the kernel hands over
//! what came, and somebody else decodes. Dumps of two chains over two sockets run side by side. Most
//! tables are small, though, and have more chains than rules: they are asked for at once.

use super::*;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Most rules that are taken from the kernel.
const MAX_RULES: usize = 4_000_000;
/// Bytes of messages that are handed over at once.
const BATCH: usize = 64 * 1024;
/// Most batches that wait for a decoder; whoever finds as many decodes his own.
const MAX_WAITING: usize = 64;
/// Most rules of a table that is asked for as a whole: a few datagrams of the kernel's.
const MAX_WHOLE: u64 = 512;
/// Most rules that one thread is quicker with than several.
const ONE_HAND: u64 = 2048;
/// Most threads that ask and decode.
const MAX_HANDS: usize = 4;

pub(super) struct RawRule {
    pub handle: Option<u64>,
    pub comment: Option<String>,
    pub decoded: rule::Decoded,
    /// How iptables spells it, where the table may be one of its own.
    pub line: Option<String>,
}

/// The rules of a table, chain by chain.
pub(super) type RawRules = Vec<Vec<RawRule>>;

/// A chain: index of its table, and of the chain in it.
type Place = (usize, usize);

/// What is asked for in one dump.
#[derive(Debug, Clone, Copy)]
enum Part {
    Chain(Place),
    /// All chains of the table with this index.
    Table(usize),
}

/// Messages of one chain, each with its length in 4 bytes before it.
struct Batch {
    place: Place,
    /// Those of one chain come in the order of their numbers.
    number: usize,
    messages: Vec<u8>,
}

/// What there is to do, and what was done.
#[derive(Default)]
struct Work {
    /// What nobody has asked for yet.
    parts: VecDeque<Part>,
    /// What came and is not decoded.
    batches: VecDeque<Batch>,
    /// Threads that are asking: more batches may come.
    asking: usize,
    done: Vec<(Place, usize, Vec<RawRule>)>,
    /// How many rules each chain has; what was decoded before them was from a dump that had to be
    /// repeated.
    counts: HashMap<Place, usize>,
    total: usize,
    failed: Option<Error>,
}

struct Shared<'a> {
    work: Mutex<Work>,
    changed: Condvar,
    tables: &'a [RawTable],
    links: &'a Links,
    ipsets: &'a SetNames,
}

/// Reads the rules of every chain; those of each table in the order of its chains.
pub(super) fn read(
    nl: &mut Netlink,
    tables: &[RawTable],
    links: &Links,
    ipsets: &SetNames,
) -> Result<Vec<RawRules>, Error> {
    let mut work = Work::default();
    for (t, table) in tables.iter().enumerate() {
        match table.uses {
            0..=MAX_WHOLE => work.parts.push_back(Part::Table(t)),
            _ => {
                let chains = (0..table.chains.len()).map(|at| Part::Chain((t, at)));
                work.parts.extend(chains);
            }
        }
    }
    let shared = Shared {
        work: Mutex::new(work),
        changed: Condvar::new(),
        tables,
        links,
        ipsets,
    };
    let uses: u64 = tables.iter().map(|table| table.uses).sum();
    let hands = match uses {
        0..=ONE_HAND => 1,
        _ => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_HANDS)),
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..hands)
            .map(|_| scope.spawn(|| shared.hand(None)))
            .collect();
        shared.hand(Some(nl));
        for other in others {
            // What one that panicked did not do is missed below.
            let _ = other.join();
        }
    });
    let work = shared.work.into_inner();
    collect(work.unwrap_or_else(PoisonError::into_inner), tables)
}

/// Puts the parts together.
fn collect(mut work: Work, tables: &[RawTable]) -> Result<Vec<RawRules>, Error> {
    if let Some(error) = work.failed {
        return Err(error);
    }
    let mut out: Vec<RawRules> = tables
        .iter()
        .map(|t| t.chains.iter().map(|_| Vec::new()).collect())
        .collect();
    work.done
        .sort_by_key(|(place, number, _)| (*place, *number));
    for ((table, chain), _, rules) in work.done {
        if let Some(whole) = out.get_mut(table).and_then(|t| t.get_mut(chain)) {
            whole.extend(rules);
        }
    }
    for (t, table) in out.iter_mut().enumerate() {
        for (at, rules) in table.iter_mut().enumerate() {
            let count = work.counts.get(&(t, at)).copied();
            let stale = count.and_then(|count| rules.len().checked_sub(count));
            let Some(stale) = stale else {
                return Err(Error::malformed("nf_tables rules", "a chain is incomplete"));
            };
            rules.drain(..stale);
        }
    }
    Ok(out)
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, Work> {
        // A hand that panicked leaves a chain incomplete, which `collect` notices.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until nothing is left: what came is decoded before more is asked for.
    fn hand(&self, nl: Option<&mut Netlink>) {
        let mut own = None;
        let mut nl = nl;
        let mut work = self.lock();
        loop {
            if let Some(batch) = work.batches.pop_front() {
                drop(work);
                self.decode(batch);
                work = self.lock();
            } else if let Some(part) = work.parts.pop_front() {
                work.asking += 1;
                drop(work);
                // Also when a fault of ours ends it.
                let asking = Asking(self);
                let answer = match &mut nl {
                    Some(nl) => self.ask(nl, part),
                    None => match own.take().map_or_else(socket, Ok) {
                        Ok(mut socket) => {
                            let answer = self.ask(&mut socket, part);
                            own = Some(socket);
                            answer
                        }
                        Err(error) => Err(error),
                    },
                };
                work = self.lock();
                match answer {
                    Ok(counts) => {
                        work.total += counts.iter().map(|(_, count)| count).sum::<usize>();
                        work.counts.extend(counts);
                        if work.total > MAX_RULES {
                            work.fail(Error::TooMuch {
                                what: "nf_tables rules".to_owned(),
                                limit: MAX_RULES,
                            });
                        }
                    }
                    Err(error) => work.fail(error),
                }
                drop(work);
                drop(asking);
                work = self.lock();
            } else if work.asking > 0 {
                work = self
                    .changed
                    .wait(work)
                    .unwrap_or_else(PoisonError::into_inner);
            } else {
                return;
            }
        }
    }

    /// Asks for the rules of a chain or of a whole table; how many each chain has.
    fn ask(&self, nl: &mut Netlink, part: Part) -> Result<Vec<(Place, usize)>, Error> {
        let (t, only) = match part {
            Part::Chain((t, at)) => (t, Some(at)),
            Part::Table(t) => (t, None),
        };
        let table = &self.tables[t];
        let mut payload = request(table.number);
        put_text(&mut payload, 1, &table.name);
        if let Some(at) = only {
            put_text(&mut payload, 2, &table.chains[at]);
        }
        let mut next = Batch {
            place: (t, only.unwrap_or(0)),
            number: 0,
            messages: Vec::new(),
        };
        let kind = SUBSYSTEM << 8 | GETRULE;
        let found = nl.dump("nf_tables rules", kind, &payload, |m: Message<'_>| {
            let a = Attrs(m.body.get(4..)?);
            // The kernel filters; a kernel that does not would mix the tables, or the chains.
            if name_slice(a.find(1)?) != table.name {
                return None;
            }
            let name = name_slice(a.find(2)?);
            // Chain after chain: it is most often that of the rule before.
            let at = match next.place.1 {
                at if table.chains.get(at).is_some_and(|chain| chain == name) => at,
                _ if only.is_some() => return None,
                _ => table.chains.iter().position(|chain| chain == name)?,
            };
            if at != next.place.1 || next.messages.len() > BATCH {
                let full = next.messages.len() > BATCH;
                let following = Batch {
                    place: (t, at),
                    number: next.number + 1,
                    messages: Vec::with_capacity(if full { BATCH + BATCH / 8 } else { 0 }),
                };
                let came = std::mem::replace(&mut next, following);
                match full {
                    true => self.hand_over(came),
                    false => self.decode(came),
                }
            }
            next.messages.extend((a.0.len() as u32).to_ne_bytes());
            next.messages.extend(a.0);
            Some(at)
        })?;
        // What is left is short.
        self.decode(next);
        let chains = match only {
            Some(at) => at..at + 1,
            None => 0..table.chains.len(),
        };
        let mut counts: Vec<(Place, usize)> = chains.map(|at| ((t, at), 0)).collect();
        let first = only.unwrap_or(0);
        for at in found {
            counts[at - first].1 += 1;
        }
        Ok(counts)
    }

    /// Leaves a batch to whoever has time.
    fn hand_over(&self, batch: Batch) {
        let mut work = self.lock();
        if work.batches.len() < MAX_WAITING {
            work.batches.push_back(batch);
            drop(work);
            self.changed.notify_one();
        } else {
            drop(work);
            self.decode(batch);
        }
    }

    fn decode(&self, batch: Batch) {
        if batch.messages.is_empty() {
            return;
        }
        let table = &self.tables[batch.place.0];
        let scope = rule::Scope {
            family: table.table.family,
            sets: &table.sets,
            links: self.links,
            ipsets: self.ipsets,
        };
        let chain = table.table.chains.get(batch.place.1);
        let chain = chain.filter(|_| table.maybe_iptables()).map(|c| &*c.name);
        let mut rules = Vec::new();
        let mut rest = &batch.messages[..];
        while let Some((head, tail)) = rest.split_at_checked(4) {
            let len = crate::netlink::u32_ne(head) as usize;
            let Some((message, tail)) = tail.split_at_checked(len) else {
                break;
            };
            rules.push(raw_rule(Attrs(message), &scope, chain));
            rest = tail;
        }
        self.lock().done.push((batch.place, batch.number, rules));
    }
}

impl Work {
    /// Nobody needs to ask for more.
    fn fail(&mut self, error: Error) {
        self.parts.clear();
        self.batches.clear();
        self.failed.get_or_insert(error);
    }
}

/// One thread that asks.
struct Asking<'a, 'b>(&'a Shared<'b>);

impl Drop for Asking<'_, '_> {
    fn drop(&mut self) {
        self.0.lock().asking -= 1;
        self.0.changed.notify_all();
    }
}

fn raw_rule(a: Attrs<'_>, scope: &rule::Scope<'_>, chain: Option<&str>) -> RawRule {
    let empty = Attr { kind: 4, data: &[] };
    let mut decoded = rule::decode(a.find(4).unwrap_or(empty), scope);
    if !a.intact() {
        let text = "[malformed rule]".to_owned();
        decoded
            .statements
            .insert(0, reach::ir::Statement::Unknown { text });
    }
    let comment = comment(a.find(7), 0);
    RawRule {
        handle: a.find(3).and_then(|h| h.be64()),
        line: chain.and_then(|c| iptables::rule_line(c, &decoded, comment.as_deref())),
        comment,
        decoded,
    }
}
