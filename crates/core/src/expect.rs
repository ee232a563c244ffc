//! What a knock from outside must find, and where it found something else.

use crate::expose::may_miss_endpoints;
use crate::finding::Origin;
use crate::host::Host;
use crate::judge::Intent;
use crate::policy::Policy;
use crate::zones;
use reach::{AddrSet, Proto};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Widest port range of the policy that is expected port by port; of a wider one only the ports
/// where something listens.
const WIDEST_RANGE: usize = 1024;

/// What one zone must find at one host port. Ports without an expectation must be closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// [`crate::finding::Zone::id`].
    pub zone: String,
    /// Protocol.
    pub proto: Proto,
    /// Host port.
    pub port: u16,
    /// The zone's sources that the policy admits; empty: closed for everybody.
    pub open_for: AddrSet,
    /// Something serves it beyond this machine, so for the admitted it must be open; else it may be.
    pub served: bool,
    /// Too many knocks are refused for a while.
    pub rate_limited: bool,
}

/// What a port must be for one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Open.
    Open,
    /// Closed.
    Closed,
    /// The policy opens it and nothing serves it: both are fine.
    Either,
}

impl Expectation {
    /// What the port must be for this source.
    pub fn for_source(&self, source: IpAddr) -> Expected {
        match (
            self.open_for.contains(zones::canonical(source)),
            self.served,
        ) {
            (false, _) => Expected::Closed,
            (true, true) => Expected::Open,
            (true, false) => Expected::Either,
        }
    }
}

/// What each zone must find: every port that the policy opens, and every port where something
/// listens, sorted by zone, protocol and port.
pub fn expectation(policy: &Policy, host: &Host) -> Vec<Expectation> {
    let zones = zones::zones(host);
    let intent = Intent::new(host, policy, &zones);
    let endpoints = crate::expose::endpoints(host);
    let served: Vec<_> = endpoints
        .iter()
        .filter(|e| e.origin != Origin::ContainerAddress && !e.id.address.is_loopback())
        .collect();
    let mut ports: BTreeSet<(Proto, u16)> =
        served.iter().map(|e| (e.id.proto, e.id.port)).collect();
    for allow in &policy.allows {
        let of_allow = allow.port.ports(intent.ssh_ports());
        if of_allow.len() <= WIDEST_RANGE {
            ports.extend(of_allow.into_iter().map(|p| (allow.proto, p)));
        }
    }
    let mut out = Vec::new();
    for zone in &zones {
        for &(proto, port) in &ports {
            let here: Vec<_> = served
                .iter()
                .filter(|e| (e.id.proto, e.id.port) == (proto, port))
                .collect();
            let service = here.iter().find_map(|e| e.service.as_deref());
            let open_for = intent
                .port_sources(proto, port, service)
                .fold(AddrSet::empty(), |set, source| {
                    set.union(&intent.resolve(source, zone))
                });
            out.push(Expectation {
                zone: zone.id.clone(),
                proto,
                port,
                open_for,
                served: !here.is_empty() && !may_miss_endpoints(host),
                rate_limited: policy
                    .allows_for(proto, port, intent.ssh_ports())
                    .any(|a| a.rate_limit),
            });
        }
    }
    out
}

/// Where a scan was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vantage {
    /// The zone that its packets arrive from.
    pub zone: String,
    /// Its address as the scanned host sees it.
    pub address: IpAddr,
}

impl Vantage {
    /// The vantage of a source address: the most particular zone of this host that has it (a LAN
    /// before the Internet).
    pub fn of(host: &Host, address: IpAddr) -> Vantage {
        let address = zones::canonical(address);
        let zone = zones::zones(host)
            .into_iter()
            .rev()
            .find(|z| z.networks.contains(address))
            .map_or_else(|| "internet".to_owned(), |z| z.id);
        Vantage { zone, address }
    }
}

/// A port that is not what the policy wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// Protocol.
    pub proto: Proto,
    /// Port.
    pub port: u16,
    /// What the policy wants.
    pub expected: Expected,
    /// True: the scan found it open.
    pub open: bool,
    /// In plain words.
    pub text: String,
}

/// Compares a scan with what it must find. `open`: the ports found open; `scanned`: whether a port
/// was asked at all. A port without an expectation that is open is a disagreement too.
pub fn check_scan(
    expectations: &[Expectation],
    vantage: &Vantage,
    open: &[(Proto, u16)],
    scanned: impl Fn(Proto, u16) -> bool,
) -> Vec<Disagreement> {
    let mut out = Vec::new();
    let of_zone: Vec<&Expectation> = expectations
        .iter()
        .filter(|e| e.zone == vantage.zone)
        .collect();
    let mut open: Vec<(Proto, u16)> = open.to_vec();
    open.sort_unstable();
    open.dedup();
    for &(proto, port) in &open {
        let expectation = of_zone.iter().find(|e| (e.proto, e.port) == (proto, port));
        let expected = expectation.map_or(Expected::Closed, |e| e.for_source(vantage.address));
        if expected == Expected::Closed {
            out.push(Disagreement {
                proto,
                port,
                expected,
                open: true,
                text: format!(
                    "{port}/{proto} is open for {}, and the policy closes it",
                    vantage.address
                ),
            });
        }
    }
    for expectation in of_zone {
        let key = (expectation.proto, expectation.port);
        let missing = expectation.for_source(vantage.address) == Expected::Open
            && scanned(key.0, key.1)
            && open.binary_search(&key).is_err();
        if missing {
            let limit = if expectation.rate_limited {
                " (it is rate-limited: who knocks 6 times within 30 seconds is refused)"
            } else {
                ""
            };
            out.push(Disagreement {
                proto: key.0,
                port: key.1,
                expected: Expected::Open,
                open: false,
                text: format!(
                    "{}/{} is closed for {}, and the policy opens it{limit}",
                    key.1, key.0, vantage.address
                ),
            });
        }
    }
    out.sort_by_key(|d| (d.proto, d.port));
    out
}
