//! Who can reach a candidate: the engine is asked from every place.

use super::{Candidate, blind, may_miss_endpoints};
use crate::finding::{Exposure, Origin};
use crate::host::Host;
use crate::zones::{self, Place, canonical, is_link_local_v6};
use reach::ir::{NatKind, Statement};
use reach::{
    AddrSet, Answer, Delivery, Engine, Interface, Piece, Proto, Query, Verdict, Witness, World,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Groups that services on a link are asked by: mDNS (RFC 6762), SSDP (UPnP Device Architecture 2.0)
/// and LLMNR (RFC 4795). UFW lets the first two in, whatever else it denies (before.rules).
const GROUPS: [IpAddr; 7] = [
    IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)),
    IpAddr::V4(Ipv4Addr::new(224, 0, 0, 252)),
    IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb)),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 3)),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xf)),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc)),
];

/// Asks the engine about one host; its rules are prepared once.
pub(super) struct Asker<'a> {
    host: &'a Host,
    places: Vec<Place>,
    /// `None` when the facts do not carry an answer.
    engine: Option<Engine<'a>>,
    /// Some rule may send a packet to another address or port than the one it asks for.
    translates: bool,
}

impl<'a> Asker<'a> {
    pub(super) fn new(host: &'a Host) -> Self {
        let world = World {
            rules: &host.rules,
            net: &host.net,
        };
        Asker {
            host,
            places: zones::places(host),
            engine: (!blind(host)).then(|| Engine::new(world)),
            translates: translates(host),
        }
    }
}

/// Every zone's and family's way to a candidate.
pub(super) fn exposure(asker: &Asker<'_>, candidate: &Candidate) -> Vec<Exposure> {
    let mut groups: BTreeMap<(usize, u8), Vec<Exposure>> = BTreeMap::new();
    let (host, places) = (asker.host, &asker.places);
    for (order, place) in places.iter().enumerate() {
        if candidate.endpoint.origin == Origin::ContainerAddress && place.zone == "containers" {
            // Containers of a network are there to talk to each other.
            continue;
        }
        if !device_fits(host, candidate, place) {
            continue;
        }
        let first = places.iter().position(|p| p.zone == place.zone);
        for to in destinations(host, candidate, place) {
            let family: u8 = if to.is_ipv4() { 4 } else { 6 };
            let sources = sources(host, place, to);
            if sources.is_empty() {
                continue;
            }
            let answer = ask(asker, candidate, place, to, sources);
            groups
                .entry((first.unwrap_or(order), family))
                .or_default()
                .push(Exposure {
                    zone: place.zone.clone(),
                    family,
                    to,
                    admitted: answer.admitted,
                    conditional: answer.conditional,
                    pieces: answer.pieces,
                });
        }
    }
    groups.into_values().flat_map(condense).collect()
}

/// The answers that say something of their own: an answer that another one includes is left out,
/// and of answers that are all "closed" one is kept, for its witness.
fn condense(all: Vec<Exposure>) -> Vec<Exposure> {
    let mut kept: Vec<Exposure> = Vec::new();
    for exposure in all {
        if kept.iter().any(|k| includes(k, &exposure)) {
            continue;
        }
        kept.retain(|k| !includes(&exposure, k));
        kept.push(exposure);
    }
    kept
}

fn includes(big: &Exposure, small: &Exposure) -> bool {
    let open = big.admitted.union(&big.conditional);
    small.admitted.is_subset(&big.admitted) && small.conditional.is_subset(&open)
}

fn device_fits(host: &Host, candidate: &Candidate, place: &Place) -> bool {
    let Some(device) = &candidate.device else {
        return true;
    };
    if *device == place.interface || place.interface.is_empty() {
        return true;
    }
    // A socket bound to a VRF takes what arrives on the VRF's ports.
    let master = interface(host, &place.interface).and_then(|i| i.master);
    host.net
        .interfaces
        .iter()
        .any(|i| Some(i.index) == master && i.name == *device)
}

fn interface<'a>(host: &'a Host, name: &str) -> Option<&'a Interface> {
    host.net.interfaces.iter().find(|i| i.name == name)
}

/// The addresses that a client in this place may ask for, the most natural one first.
fn destinations(host: &Host, candidate: &Candidate, place: &Place) -> Vec<IpAddr> {
    let address = candidate.endpoint.id.address;
    let near = interface(host, &place.interface);
    // Packets for 127.0.0.0/8 from a wire are dropped, unless this switch is on (ip_route_input_slow).
    let loopback_routed = near.is_some_and(|i| i.route_localnet != Some(false));
    if address.is_loopback() {
        return match address {
            IpAddr::V4(_) if loopback_routed || near.is_none() => vec![address],
            _ => Vec::new(),
        };
    }
    if !candidate.wildcard() {
        let elsewhere = is_link_local_v6(address)
            && !near.is_some_and(|i| i.addresses.iter().any(|a| a.net.addr() == address));
        return if elsewhere { Vec::new() } else { vec![address] };
    }
    let mut out = Vec::new();
    for interface in &host.net.interfaces {
        for own in &interface.addresses {
            let own_address = own.net.addr();
            let here = interface.name == place.interface;
            let family = if own_address.is_ipv4() {
                candidate.v4
            } else {
                candidate.v6
            };
            let usable = interface.up
                && family
                && !own_address.is_loopback()
                && (here || !is_link_local_v6(own_address));
            if usable {
                out.push((!here, is_link_local_v6(own_address), own_address));
            }
        }
    }
    out.sort();
    out.dedup();
    let mut out: Vec<IpAddr> = out.into_iter().map(|(.., address)| address).collect();
    if candidate.v4 && near.is_some_and(|i| i.route_localnet == Some(true)) {
        out.push(Ipv4Addr::LOCALHOST.into());
    }
    if candidate.endpoint.id.proto == Proto::Udp && near.is_some() {
        let family = |group: &&IpAddr| match group {
            IpAddr::V4(_) => candidate.v4,
            IpAddr::V6(_) => candidate.v6,
        };
        out.extend(GROUPS.iter().filter(family));
    }
    if out.is_empty() && near.is_none() {
        // Addresses could not be read; the question stands all the same.
        out.push(address);
    }
    out
}

/// The sources of a place that can ask for this address at all: nobody on the Internet can send to
/// a private address of another interface, but neighbours on the link and the provider's network can.
fn sources(host: &Host, place: &Place, to: IpAddr) -> AddrSet {
    let family = if to.is_ipv4() {
        place.networks.v4()
    } else {
        place.networks.v6()
    };
    let Some(interface) = interface(host, &place.interface) else {
        return family;
    };
    let here = interface.addresses.iter().any(|a| a.net.addr() == to);
    let routed = !to.is_loopback() && !to.is_multicast() && !zones::private().contains(to);
    if place.zone != "internet" || routed || (here && !is_link_local_v6(to)) {
        return family;
    }
    let on_link: AddrSet = interface.addresses.iter().map(|a| a.net.trunc()).collect();
    family.intersect(&on_link.union(&zones::private()))
}

fn ask(
    asker: &Asker<'_>,
    candidate: &Candidate,
    place: &Place,
    to: IpAddr,
    sources: AddrSet,
) -> Answer {
    let (Some(engine), false) = (&asker.engine, place.interface.is_empty()) else {
        return undecided(
            sources,
            "the packet filter, links or routes could not be read",
        );
    };
    if candidate.beside_host {
        return undecided(
            sources,
            "the container has a link of its own (macvlan or ipvlan): this host's packet filter does not see its packets",
        );
    }
    let id = candidate.id();
    let query = Query {
        ingress: place.interface.clone(),
        dst: to,
        proto: id.proto,
        dport: id.port,
        sport: None,
        sources,
    };
    let answer = nobody_listens(asker, engine.reach(&query), &query);
    if to.is_multicast() {
        joined(answer, to)
    } else {
        answer
    }
}

/// Packets to a group are taken only on interfaces where somebody here has joined it, which the facts
/// do not tell.
fn joined(mut answer: Answer, group: IpAddr) -> Answer {
    for piece in &mut answer.pieces {
        if piece.verdict == Verdict::Accept {
            piece.verdict = Verdict::Conditional;
            piece
                .conditions
                .push(format!("whether this host has joined the group {group}"));
        }
    }
    answer.conditional = answer.conditional.union(&answer.admitted);
    answer.admitted = AddrSet::empty();
    answer
}

fn undecided(sources: AddrSet, why: &str) -> Answer {
    Answer {
        admitted: AddrSet::empty(),
        conditional: sources.clone(),
        blocked: AddrSet::empty(),
        pieces: vec![Piece {
            sources,
            verdict: Verdict::Conditional,
            delivered: None,
            conditions: Vec::new(),
            witness: Witness {
                rule: why.to_owned(),
                at: None,
                path: Vec::new(),
            },
        }],
    }
}

/// The engine answers for the packet filter; a packet that gets through to a port of this host
/// where nothing listens opens no connection.
fn nobody_listens(asker: &Asker<'_>, mut answer: Answer, query: &Query) -> Answer {
    let host = asker.host;
    // Where no rule decides, the engine may name no end. It is the one that was asked for if this host
    // has the address and nothing translates.
    let own = |dst: IpAddr| dst.is_loopback() || dst.is_multicast() || is_own(host, dst);
    let plain = own(query.dst) && !asker.translates;
    for piece in &mut answer.pieces {
        let (address, port) = match &piece.delivered {
            Some(Delivery::Local { address, port }) => (*address, *port),
            None if plain => (query.dst, query.dport),
            _ => continue,
        };
        if !matches!(piece.verdict, Verdict::Accept | Verdict::Conditional)
            || listens(host, query.proto, address, port)
        {
            continue;
        }
        answer.admitted = answer.admitted.subtract(&piece.sources);
        if may_miss_endpoints(host) {
            piece.verdict = Verdict::Conditional;
            answer.conditional = answer.conditional.union(&piece.sources);
        } else {
            piece.witness.rule = format!(
                "nothing listens on {address} port {port} (the packet filter: {})",
                piece.witness.rule
            );
            piece.verdict = Verdict::Reject;
            answer.conditional = answer.conditional.subtract(&piece.sources);
            answer.blocked = answer.blocked.union(&piece.sources);
        }
    }
    answer
}

/// True when some rule may send a packet to another address or port than the one it asks for.
fn translates(host: &Host) -> bool {
    host.rules.rules().any(|(_, rule)| {
        rule.statements.iter().any(|s| match s {
            Statement::Nat(nat) => matches!(nat.kind, NatKind::Dnat | NatKind::Redirect),
            Statement::Tproxy { .. } | Statement::Unknown { .. } => true,
            _ => false,
        })
    })
}

fn is_own(host: &Host, address: IpAddr) -> bool {
    host.net
        .interfaces
        .iter()
        .any(|i| i.addresses.iter().any(|a| a.net.addr() == address))
}

fn listens(host: &Host, proto: reach::Proto, address: IpAddr, port: u16) -> bool {
    let address = canonical(address);
    host.sockets.iter().any(|s| {
        let at = canonical(s.address);
        let family = at.is_ipv4() == address.is_ipv4() || (at.is_ipv6() && !s.v6only);
        !s.in_container_netns
            && (s.proto, s.port) == (proto, port)
            && (at == address || (at.is_unspecified() && family))
    })
}
