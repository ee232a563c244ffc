//! The walk: everything of the packet is concrete, apart from the client's address, which is a set of intervals.
use std::cell::RefCell;
use std::collections::HashSet;
use std::net::IpAddr;

use crate::intervals::{Ivs, Unit};
use crate::ir::{CtDir, Ipv, NfHook, Statement, Target, ct_state};
use crate::*;

mod answer;
mod compile;
mod ledger;
mod lookup;
mod map;
mod matching;
mod packet;
mod route;
mod trace;
mod walk;
mod way;

use answer::Best;
pub use answer::Decision;
use compile::{Changes, Compiled, Hooked};
use ledger::Ledger;
use lookup::Cache;
use packet::{Dev, Packet, Track};
use route::Routing;
use trace::Trace;
use walk::{Flow, Walk, Window};

/// Answers `query` for this host: the packet's whole way, the reply direction included.
///
/// For many questions about one host, [`Engine::new`] does the preparation once.
pub fn reach(world: World<'_>, query: &Query) -> Answer {
    Engine::new(world).reach(query)
}

/// Walks the base chains of one hook alone.
pub fn walk_hook(rules: &Ruleset, query: &HookQuery) -> Answer {
    Engine::build(rules, None).walk_hook(query)
}

/// A host made ready for questions.
pub struct Engine<'a> {
    rules: &'a Ruleset,
    net: Option<&'a Net>,
    tables: Vec<Compiled<'a>>,
    hooked: Vec<Hooked<'a>>,
    ipset_changes: Changes<'a>,
    next_header: bool,
    v4: Side<'a, u32>,
    v6: Side<'a, u128>,
}

/// What is kept for each address family.
struct Side<'a, T> {
    routing: Option<Routing<'a, T>>,
    cache: RefCell<Cache<T>>,
}

/// Rules looked at for one question before the engine gives up on exactness.
const BUDGET: u64 = 50_000_000;
/// Different source ports tried for one question; behind it the port counts as unknown.
const MAX_PORTS: usize = 24;

impl<'a> Engine<'a> {
    /// Prepares a host's rules, routes and addresses.
    pub fn new(world: World<'a>) -> Self {
        Self::build(world.rules, Some(world.net))
    }

    fn build(rules: &'a Ruleset, net: Option<&'a Net>) -> Self {
        let tables: Vec<Compiled<'a>> = rules.tables.iter().map(Compiled::new).collect();
        let hooked = compile::hooked(&tables);
        Engine {
            rules,
            net,
            hooked,
            ipset_changes: Changes::of_ipsets(rules),
            next_header: compile::looks_at_next_header(rules),
            v4: Side::new(net),
            v6: Side::new(net),
            tables,
        }
    }

    fn ipset_changes(&self, name: &str) -> (bool, bool) {
        (
            self.ipset_changes.grow.contains(name),
            self.ipset_changes.shrink.contains(name),
        )
    }

    /// Who can open the connection asked about, and why: everything in words.
    pub fn reach(&self, query: &Query) -> Answer {
        self.decide(query).answer()
    }

    /// Who can open the connection asked about; why, for whom one asks later.
    pub fn decide(&self, query: &Query) -> Decision<'_> {
        let tables = &self.short().tables;
        match query.dst {
            IpAddr::V4(_) => self.reach_side(&self.v4, query).decide(tables),
            IpAddr::V6(_) => self.reach_side(&self.v6, query).decide(tables),
        }
    }

    fn reach_side<T: Unit>(&self, side: &Side<'a, T>, query: &Query) -> Best<T> {
        let first = Packet {
            ip: Ipv::of(query.dst),
            proto: query.proto.number(),
            dir: CtDir::Original,
            near: Some(query.dst),
            near_port: Some(query.dport),
            orig: (Some(query.dst), Some(query.dport)),
            target: (Some(query.dst), Some(query.dport)),
            far_is_client: true,
            far_port: query.sport,
            iif: Dev::is(&query.ingress),
            oif: Dev::None,
            track: Track::NotYet,
            state: ct_state::NEW,
            mark: Some(0),
            ct_mark: Some(0),
            ct_zone: Some(0),
            dnat: Some(false),
            snat: false,
            nat_done: false,
            tproxy: None,
            extension: false,
            later: false,
            half: false,
        };
        self.best(
            side,
            first,
            T::half(&query.sources).to_vec(),
            |walk, packet, sources| walk.whole_way(packet, sources),
        )
    }

    /// Walks the base chains of one hook alone, as far as its question says what the packet is.
    pub fn walk_hook(&self, query: &HookQuery) -> Answer {
        let tables = &self.short().tables;
        let v4 = query.dst.map_or(!query.ipv6, |a| a.is_ipv4());
        let decision = if v4 {
            self.hook_side(&self.v4, query, Ipv::V4).decide(tables)
        } else {
            self.hook_side(&self.v6, query, Ipv::V6).decide(tables)
        };
        decision.answer()
    }

    fn hook_side<T: Unit>(&self, side: &Side<'a, T>, query: &HookQuery, ip: Ipv) -> Best<T> {
        let forward = query.hook == Hook::Forward;
        let device = |name: &Option<String>| name.as_deref().map_or(Dev::Unknown, Dev::is);
        let state = match query.state {
            CtState::New => ct_state::NEW,
            CtState::Established => ct_state::ESTABLISHED,
            CtState::Related => ct_state::RELATED,
            CtState::Untracked => ct_state::UNTRACKED,
            CtState::Invalid => ct_state::INVALID,
        };
        let here = (query.dst, Some(query.dport));
        // Rules on earlier hooks may have set marks.
        let mark = if self.sets_marks() { None } else { Some(0) };
        let first = Packet {
            ip,
            proto: query.proto.number(),
            dir: CtDir::Original,
            near: query.dst,
            near_port: Some(query.dport),
            // What is forwarded may have been DNATed, and then had another destination.
            orig: if forward { (None, None) } else { here },
            target: here,
            far_is_client: true,
            far_port: query.sport,
            iif: device(&query.iif),
            oif: if forward {
                device(&query.oif)
            } else {
                Dev::None
            },
            track: if query.state == CtState::Untracked {
                Track::Untracked
            } else {
                Track::Tracked
            },
            state,
            mark,
            ct_mark: mark,
            ct_zone: Some(0),
            dnat: if forward { None } else { Some(false) },
            snat: false,
            nat_done: false,
            tproxy: None,
            extension: false,
            later: false,
            half: false,
        };
        let hook = if forward {
            NfHook::Forward
        } else {
            NfHook::Input
        };
        self.best(
            side,
            first,
            vec![(T::MIN, T::MAX)],
            |walk, packet, sources| {
                let flow = Flow::new(packet.into(), sources, trace::ROOT);
                let passed = walk.stage(hook, vec![flow], true);
                let ivs = passed
                    .into_iter()
                    .flat_map(|f| f.set.into_intervals())
                    .collect();
                crate::intervals::normalise(ivs)
            },
        )
    }

    fn sets_marks(&self) -> bool {
        let chains = self.rules.tables.iter().flat_map(|t| &t.chains);
        chains
            .flat_map(|c| &c.rules)
            .flat_map(|r| &r.statements)
            .any(|s| {
                matches!(
                    s,
                    Statement::Unknown { .. }
                        | Statement::Assign {
                            target: Target::Mark | Target::CtMark,
                            ..
                        }
                )
            })
    }

    /// The client's best choice of source port and headers.
    fn best<T: Unit>(
        &self,
        side: &Side<'a, T>,
        first: Packet,
        universe: Ivs<T>,
        go: impl Fn(&mut Walk<'_, T>, Packet, Ivs<T>) -> Ivs<T>,
    ) -> Best<T> {
        let mut best = Best::new(universe);
        let shapes: &[bool] = if self.next_header && T::BITS == 128 {
            &[false, true]
        } else {
            &[false]
        };
        for &extension in shapes {
            let mut seen: Vec<(u64, u64)> = vec![];
            let mut port = first.far_port.unwrap_or(49_152);
            for tries in 0.. {
                let sources = best.open();
                let mut packet = first.clone();
                packet.extension = extension;
                let unknown = first.far_port.is_none() && tries >= MAX_PORTS;
                packet.far_port = if unknown { None } else { Some(port) };
                let mut walk = self.walk(side);
                let passed = go(&mut walk, packet, sources.clone());
                let found = walk.settle(&sources, &passed);
                let window = walk.window;
                best.add(walk, found, (tries > 0 && !unknown).then_some(port));
                if first.far_port.is_some() || unknown || best.open().is_empty() {
                    break;
                }
                seen.push((window.first.into(), window.last.into()));
                match unseen(&seen) {
                    Some(next) => port = next,
                    None => break,
                }
            }
        }
        best
    }

    fn walk<'w, T: Unit>(&'w self, side: &'w Side<'a, T>) -> Walk<'w, T> {
        Walk {
            engine: self.short(),
            routing: side.routing.as_ref(),
            cache: &side.cache,
            hook: NfHook::Prerouting,
            window: Window {
                first: 1,
                last: u16::MAX,
            },
            trace: Trace::new(),
            ledger: Ledger::new(),
            passes: vec![],
            budget: BUDGET,
        }
    }

    fn short(&self) -> &Engine<'_> {
        self
    }
}

impl<'a, T: Unit> Side<'a, T> {
    fn new(net: Option<&'a Net>) -> Self {
        Side {
            routing: net.map(Routing::new),
            cache: RefCell::default(),
        }
    }
}

/// The smallest port that no window has covered.
fn unseen(windows: &[(u64, u64)]) -> Option<u16> {
    let seen = crate::ir::IntSet::from(windows.to_vec());
    let candidates: HashSet<u64> = seen
        .intervals()
        .iter()
        .map(|iv| iv.1 + 1)
        .chain([1])
        .collect();
    let free = candidates
        .into_iter()
        .filter(|p| (1..=65535).contains(p) && !seen.contains(*p))
        .min();
    free.map(|p| p as u16)
}
