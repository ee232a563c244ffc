//! The packet's way to one port, from every place or from one.

use crate::expose;
use crate::host::Host;
use crate::zones::{self, Place};
use reach::{AddrSet, Answer, Engine, Proto, Query, World};
use std::collections::BTreeMap;
use std::net::IpAddr;

mod whose;
pub use whose::whose;

/// A question in the operator's terms.
#[derive(Debug, Clone)]
pub struct Question {
    /// Port as a client writes it.
    pub port: u16,
    /// Protocol.
    pub proto: Proto,
    /// Only this source.
    pub from: Option<IpAddr>,
    /// Only this destination address.
    pub to: Option<IpAddr>,
    /// Only packets that arrive on this interface.
    pub ingress: Option<String>,
}

/// The answer for one place and destination.
#[derive(Debug, Clone)]
pub struct Way {
    /// Zone id.
    pub zone: String,
    /// Zone label for people.
    pub label: String,
    /// Interface that the packets arrive on.
    pub interface: String,
    /// Destination addresses that share the answer.
    pub to: Vec<IpAddr>,
    /// The engine's answer for the first of them.
    pub answer: Answer,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoWay {
    /// Rules, links or routes are missing.
    #[error("the packet filter, links or routes could not be read, so there is no sure answer")]
    Blind,
    /// No such interface, or it is down.
    #[error("no interface {0} is up on this host")]
    Interface(String),
    /// From a source of one family to a destination of the other.
    #[error("source and destination are of different address families")]
    Families,
}

/// Every place's way to the port; places and destinations with nothing to say are left out.
///
/// # Errors
/// See [`NoWay`].
pub fn ways(host: &Host, question: &Question) -> Result<Vec<Way>, NoWay> {
    if expose::blind(host) {
        return Err(NoWay::Blind);
    }
    if let (Some(from), Some(to)) = (question.from, question.to)
        && from.is_ipv4() != to.is_ipv4()
    {
        return Err(NoWay::Families);
    }
    let labels: BTreeMap<String, String> = zones::zones(host)
        .into_iter()
        .map(|zone| (zone.id, zone.label))
        .collect();
    let mut places = zones::places(host);
    if let Some(ingress) = &question.ingress {
        places.retain(|place| place.interface == *ingress);
        if places.is_empty() {
            return Err(NoWay::Interface(ingress.clone()));
        }
    }
    // Its rules are made ready once for all places.
    let engine = Engine::new(World {
        rules: &host.rules,
        net: &host.net,
    });
    let mut ways: Vec<Way> = Vec::new();
    for place in &places {
        for to in destinations(host, question, place) {
            let sources = sources(question, place, to);
            if sources.is_empty() {
                continue;
            }
            let query = Query {
                ingress: place.interface.clone(),
                dst: to,
                proto: question.proto,
                dport: question.port,
                sport: None,
                sources,
            };
            let answer = engine.reach(&query);
            let twin = ways.iter_mut().find(|way| {
                way.zone == place.zone
                    && way.interface == place.interface
                    && same(&way.answer, &answer)
            });
            match twin {
                Some(way) => way.to.push(to),
                None => ways.push(Way {
                    zone: place.zone.clone(),
                    label: labels.get(&place.zone).cloned().unwrap_or_default(),
                    interface: place.interface.clone(),
                    to: vec![to],
                    answer,
                }),
            }
        }
    }
    Ok(ways)
}

/// The destination asked for, else this interface's own addresses, else all of the host's.
fn destinations(host: &Host, question: &Question, place: &Place) -> Vec<IpAddr> {
    if let Some(to) = question.to {
        return vec![to];
    }
    let near: Vec<IpAddr> = host
        .net
        .interfaces
        .iter()
        .filter(|interface| interface.name == place.interface)
        .flat_map(|interface| &interface.addresses)
        .map(|address| address.net.addr())
        .collect();
    let family = |address: &IpAddr| {
        question
            .from
            .is_none_or(|from| from.is_ipv4() == address.is_ipv4())
    };
    let mut found: Vec<IpAddr> = near.into_iter().filter(family).collect();
    if found.is_empty() {
        found = zones::own_addresses(host)
            .into_iter()
            .filter(|address| !address.is_loopback())
            .filter(family)
            .collect();
    }
    found
}

fn sources(question: &Question, place: &Place, to: IpAddr) -> AddrSet {
    let family = if to.is_ipv4() {
        AddrSet::all_v4()
    } else {
        AddrSet::all_v6()
    };
    match question.from {
        // With an interface named, the source is taken at its word: spoofed packets arrive too.
        Some(from) if question.ingress.is_some() => AddrSet::from_range(from, from),
        Some(from) => AddrSet::from_range(from, from).intersect(&place.networks),
        None => place.networks.clone(),
    }
    .intersect(&family)
}

/// The same fate for the same reasons; only the destination's own address may differ.
fn same(one: &Answer, other: &Answer) -> bool {
    let parts = |answer: &Answer| -> Vec<(AddrSet, reach::Verdict, String)> {
        answer
            .pieces
            .iter()
            .map(|piece| {
                (
                    piece.sources.clone(),
                    piece.verdict,
                    piece.witness.rule.clone(),
                )
            })
            .collect()
    };
    parts(one) == parts(other)
}
