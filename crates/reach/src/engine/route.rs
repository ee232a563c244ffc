//! The routing decision, with one symbolic address: the client's.
//!
//! Sources: `fib_rules.c`, `ip_route_input_slow` and `__fib_validate_source` of the kernel.
use std::collections::HashMap;
use std::net::IpAddr;

use super::packet::{Dev, Packet};
use crate::intervals::{self, Ivs, Unit};
use crate::{Net, NextHop, PolicyAction, PolicyRule, Route, RouteKind};

mod source;
pub(super) use source::fixed_types;

const LOCAL_TABLE: u32 = 255;

/// Routes and policy rules of one address family, sorted for lookups.
pub(super) struct Routing<'a, T> {
    net: &'a Net,
    rules: Vec<PolicyRule>,
    /// Longest prefix first, then metric.
    tables: HashMap<u32, Vec<Entry<'a, T>>>,
}

struct Entry<'a, T> {
    range: (T, T),
    len: u8,
    kind: RouteKind,
    hops: &'a [NextHop],
    /// For a local address that only the link list told of.
    oif: Option<u32>,
}

/// What the routing tables say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Way {
    /// This host's own address.
    Local,
    /// Of the network on this interface, where that is known.
    Broadcast(Option<u32>),
    Multicast,
    /// Out by one of these interfaces (more than one: multipath).
    Out(Vec<u32>),
    /// blackhole, unreachable, prohibit.
    Refused(&'static str),
    NoRoute,
}

/// A part of the client addresses and what the tables say for it. `maybe`: an undecidable policy rule stands before,
/// so the same addresses may have another way too.
pub(super) struct Routed<T> {
    pub(super) set: Ivs<T>,
    pub(super) way: Way,
    pub(super) maybe: bool,
}

/// The question to the tables.
#[derive(Debug, Clone)]
pub(super) struct Ask<'q> {
    /// True: the destination is the client (answers, reverse path); false: it is `near`.
    pub(super) to_far: bool,
    pub(super) near: Option<IpAddr>,
    /// Incoming interface; `lo` for packets made here.
    pub(super) iif: &'q str,
    /// `None`: not known.
    pub(super) mark: Option<u32>,
    pub(super) proto: u8,
    /// Source and destination port as the packet has them.
    pub(super) ports: (Option<u16>, Option<u16>),
}

impl<'q> Ask<'q> {
    /// Where does this packet go?
    pub(super) fn of(packet: &'q Packet) -> Ask<'q> {
        let ports = (packet.far_port, packet.near_port);
        Ask {
            to_far: !packet.original(),
            near: packet.near,
            iif: packet.iif.name().unwrap_or("lo"),
            mark: packet.mark,
            proto: packet.proto,
            ports: if packet.original() {
                ports
            } else {
                (ports.1, ports.0)
            },
        }
    }
}

fn default_rules(ipv6: bool) -> Vec<PolicyRule> {
    let rule = |priority, table| PolicyRule {
        ipv6,
        priority,
        invert: false,
        src: None,
        dst: None,
        iif: None,
        oif: None,
        fwmark: None,
        protocol: None,
        sport: None,
        dport: None,
        uid: None,
        tos: 0,
        suppress_prefixlength: None,
        unknown_selector: false,
        action: PolicyAction::Table { table },
    };
    let mut rules = vec![rule(0, LOCAL_TABLE), rule(32766, 254)];
    if !ipv6 {
        rules.push(rule(32767, 253));
    }
    rules
}

/// Whether a selector takes the packet.
#[derive(Clone, Copy, PartialEq)]
enum Fit {
    Yes,
    No,
    Maybe,
}

impl Fit {
    fn of(test: Option<bool>) -> Fit {
        match test {
            Some(true) => Fit::Yes,
            Some(false) => Fit::No,
            None => Fit::Maybe,
        }
    }
    fn and(self, other: Fit) -> Fit {
        match (self, other) {
            (Fit::No, _) | (_, Fit::No) => Fit::No,
            (Fit::Yes, Fit::Yes) => Fit::Yes,
            _ => Fit::Maybe,
        }
    }
}

impl<'a, T: Unit> Routing<'a, T> {
    pub(super) fn new(net: &'a Net) -> Self {
        let ipv6 = T::BITS == 128;
        let mut rules: Vec<PolicyRule> = net
            .rules
            .iter()
            .filter(|r| r.ipv6 == ipv6)
            .cloned()
            .collect();
        rules.sort_by_key(|r| r.priority);
        if rules.is_empty() {
            rules = default_rules(ipv6);
        }
        let mut tables: HashMap<u32, Vec<Entry<'a, T>>> = HashMap::new();
        let mut sorted: Vec<&Route> = net.routes.iter().filter(|r| r.tos == 0).collect();
        sorted.sort_by_key(|r| (std::cmp::Reverse(r.dst.prefix_len()), r.metric));
        for route in sorted {
            let Some(range) = T::prefix(route.dst) else {
                continue;
            };
            tables.entry(route.table).or_default().push(Entry {
                range,
                len: route.dst.prefix_len(),
                kind: route.kind,
                hops: &route.nexthops,
                oif: None,
            });
        }
        let mut routing = Routing { net, rules, tables };
        routing.complete();
        routing
    }

    /// A host's addresses are local and its networks on-link even when the facts lack the kernel's own routes.
    fn complete(&mut self) {
        let bare = self.tables.is_empty();
        for interface in &self.net.interfaces {
            for address in &interface.addresses {
                let Some(own) = T::from_ip(address.net.addr()) else {
                    continue;
                };
                let local = self.tables.entry(LOCAL_TABLE).or_default();
                if !local
                    .iter()
                    .any(|e| e.kind == RouteKind::Local && e.range.0 <= own && own <= e.range.1)
                {
                    local.insert(
                        0,
                        Entry {
                            range: (own, own),
                            len: T::BITS as u8,
                            kind: RouteKind::Local,
                            hops: &[],
                            oif: Some(interface.index),
                        },
                    );
                }
                if let (true, Some(range)) = (bare, T::prefix(address.net)) {
                    let main = self.tables.entry(254).or_default();
                    main.push(Entry {
                        range,
                        len: address.net.prefix_len(),
                        kind: RouteKind::Unicast,
                        hops: &[],
                        oif: Some(interface.index),
                    });
                    main.sort_by_key(|e| std::cmp::Reverse(e.len));
                }
            }
        }
        let local = self.tables.entry(LOCAL_TABLE).or_default();
        if let Some(range) = loopback::<T>()
            && !local
                .iter()
                .any(|e| e.range.0 <= range.0 && range.1 <= e.range.1)
        {
            local.push(Entry {
                range,
                len: if T::BITS == 32 { 8 } else { 128 },
                kind: RouteKind::Local,
                hops: &[],
                oif: self
                    .net
                    .interfaces
                    .iter()
                    .find(|i| i.loopback)
                    .map(|i| i.index),
            });
        }
    }

    /// Parts of `set` by the way that their packets go.
    pub(super) fn route(&self, ask: &Ask<'_>, set: Ivs<T>) -> Vec<Routed<T>> {
        let mut out = vec![];
        self.walk_rules(0, ask, set, false, &mut out);
        out
    }

    fn walk_rules(
        &self,
        first: usize,
        ask: &Ask<'_>,
        mut set: Ivs<T>,
        mut maybe: bool,
        out: &mut Vec<Routed<T>>,
    ) {
        let mut emit = |set: Ivs<T>, way: Way, maybe: bool| {
            if !set.is_empty() {
                out.push(Routed { set, way, maybe });
            }
        };
        for (index, rule) in self.rules.iter().enumerate().skip(first) {
            if set.is_empty() {
                return;
            }
            let (fit, part) = self.selects(rule, ask, &set);
            if fit == Fit::No || part.is_empty() {
                continue;
            }
            let unsure = maybe || fit == Fit::Maybe;
            let refused = match rule.action {
                PolicyAction::Nop => continue,
                PolicyAction::Blackhole => Some("blackhole"),
                PolicyAction::Unreachable => Some("unreachable"),
                PolicyAction::Prohibit => Some("prohibit"),
                PolicyAction::Table { .. } | PolicyAction::Goto { .. } => None,
                PolicyAction::Unknown => {
                    // Any table may be meant: every later answer is one of several.
                    maybe = true;
                    continue;
                }
            };
            let mut found: Ivs<T> = vec![];
            if let Some(reason) = refused {
                found = part.clone();
                emit(part, Way::Refused(reason), unsure);
            } else if let PolicyAction::Goto { priority } = rule.action {
                let at = self.rules.partition_point(|r| r.priority < priority);
                found = part.clone();
                if at > index {
                    let mut inner = vec![];
                    self.walk_rules(at, ask, part, unsure, &mut inner);
                    inner.into_iter().for_each(|r| emit(r.set, r.way, r.maybe));
                }
            } else if let PolicyAction::Table { table } = rule.action {
                let floor = rule.suppress_prefixlength;
                for (set, way) in self.lookup(table, ask, part, floor) {
                    found = intervals::union(&found, &set);
                    emit(set, way, unsure);
                }
            }
            if fit == Fit::Yes {
                set = intervals::subtract(&set, &found);
            } else {
                maybe = true;
            }
        }
        emit(set, Way::NoRoute, maybe);
    }

    /// Which of `set` the rule's selectors take.
    fn selects(&self, rule: &PolicyRule, ask: &Ask<'_>, set: &[(T, T)]) -> (Fit, Ivs<T>) {
        let mut fit = Fit::Yes;
        let (far, near) = if ask.to_far {
            (rule.dst, rule.src)
        } else {
            (rule.src, rule.dst)
        };
        if let Some(net) = near {
            fit = fit.and(Fit::of(ask.near.map(|a| net.contains(&a))));
        }
        if let Some(name) = &rule.iif {
            fit = fit.and(Fit::of(Some(name == ask.iif)));
        }
        // Only sockets bound to a device have an outgoing one before the lookup.
        if rule.oif.is_some() {
            fit = fit.and(Fit::No);
        }
        if let Some((value, mask)) = rule.fwmark {
            fit = fit.and(Fit::of(ask.mark.map(|m| m & mask == value & mask)));
        }
        if let Some(proto) = rule.protocol {
            fit = fit.and(Fit::of(Some(proto == ask.proto)));
        }
        for (range, port) in [(rule.sport, ask.ports.0), (rule.dport, ask.ports.1)] {
            if let Some((first, last)) = range {
                fit = fit.and(Fit::of(port.map(|p| first <= p && p <= last)));
            }
        }
        if rule.uid.is_some() {
            fit = fit.and(if ask.iif == "lo" { Fit::Maybe } else { Fit::No });
        }
        // The client chooses the TOS of its packets.
        if rule.tos != 0 || rule.unknown_selector {
            fit = fit.and(Fit::Maybe);
        }
        let selected = match far.map(T::prefix) {
            None => None,
            Some(None) => Some(vec![]),
            Some(Some(range)) => Some(intervals::intersect(set, &[range])),
        };
        if !rule.invert {
            return (fit, selected.unwrap_or_else(|| set.to_vec()));
        }
        match (fit, selected) {
            (Fit::Yes, Some(part)) => (Fit::Yes, intervals::subtract(set, &part)),
            (Fit::Yes, None) => (Fit::No, vec![]),
            (Fit::No, _) => (Fit::Yes, set.to_vec()),
            (Fit::Maybe, _) => (Fit::Maybe, set.to_vec()),
        }
    }

    fn lookup(
        &self,
        table: u32,
        ask: &Ask<'_>,
        mut set: Ivs<T>,
        floor: Option<u32>,
    ) -> Vec<(Ivs<T>, Way)> {
        let mut out: Vec<(Ivs<T>, Way)> = vec![];
        let Some(entries) = self.tables.get(&table) else {
            return out;
        };
        let near = if ask.to_far {
            None
        } else {
            ask.near.and_then(T::from_ip)
        };
        for entry in entries {
            if set.is_empty() {
                break;
            }
            let part = if ask.to_far {
                let part = intervals::intersect(&set, &[entry.range]);
                if part.is_empty() {
                    continue;
                }
                set = intervals::subtract(&set, &part);
                part
            } else {
                if near.is_none_or(|n| n < entry.range.0 || n > entry.range.1) {
                    continue;
                }
                std::mem::take(&mut set)
            };
            let suppressed = floor.is_some_and(|floor| u32::from(entry.len) <= floor);
            if let (false, Some(way)) = (suppressed, entry.way()) {
                match out.iter_mut().find(|(_, w)| *w == way) {
                    Some((known, _)) => *known = intervals::union(known, &part),
                    None => out.push((part, way)),
                }
            }
        }
        out
    }

    fn index(&self, name: &str) -> Option<u32> {
        self.net.interface(name).map(|i| i.index)
    }

    /// Whether packets of these ways can be from the link `iif`; a VRF or bond above it counts as the link.
    pub(super) fn leaves_by(&self, way: &Way, iif: &str) -> bool {
        let Way::Out(oifs) = way else { return false };
        let index = self.index(iif);
        let master = self.net.interface(iif).and_then(|i| i.master);
        oifs.iter()
            .any(|oif| Some(*oif) == index || Some(*oif) == master)
    }
}

impl<T: Unit> Entry<'_, T> {
    fn way(&self) -> Option<Way> {
        Some(match self.kind {
            RouteKind::Local | RouteKind::Anycast => Way::Local,
            RouteKind::Broadcast => Way::Broadcast(self.hops.first().map(|h| h.oif).or(self.oif)),
            RouteKind::Multicast => Way::Multicast,
            RouteKind::Blackhole => Way::Refused("blackhole route"),
            RouteKind::Unreachable => Way::Refused("unreachable route"),
            RouteKind::Prohibit => Way::Refused("prohibit route"),
            RouteKind::Throw => return None,
            RouteKind::Unicast | RouteKind::Other => {
                let alive: Vec<u32> = self
                    .hops
                    .iter()
                    .filter(|h| !h.dead)
                    .map(|h| h.oif)
                    .collect();
                // A link may be down only until the container starts: then the route counts all the same.
                let hops = if alive.is_empty() {
                    self.hops.iter().map(|h| h.oif).collect()
                } else {
                    alive
                };
                Way::Out(if hops.is_empty() {
                    self.oif.into_iter().collect()
                } else {
                    hops
                })
            }
        })
    }
    fn leaves_by(&self, index: Option<u32>) -> bool {
        index.is_some() && (self.oif == index || self.hops.iter().any(|h| Some(h.oif) == index))
    }
}

/// 127.0.0.0/8 or ::1.
pub(super) fn loopback<T: Unit>() -> Option<(T, T)> {
    let net = if T::BITS == 32 {
        "127.0.0.0/8"
    } else {
        "::1/128"
    };
    net.parse().ok().and_then(T::prefix)
}

/// Names of the interfaces that a way leads out by.
pub(super) fn names(net: &Net, oifs: &[u32]) -> Vec<Dev> {
    let name = |index: &u32| {
        net.interface_by_index(*index)
            .map_or(Dev::Unknown, |i| Dev::is(&i.name))
    };
    if oifs.is_empty() {
        vec![Dev::Unknown]
    } else {
        oifs.iter().map(name).collect()
    }
}
