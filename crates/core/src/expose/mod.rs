//! Endpoints: everything on this host that can be connected to, and who really can.
//!
//! [`endpoints`] lists them; each is asked about from every zone and family, at every address of
//! this host (Linux answers on any interface for any of its addresses, so a neighbour on the LAN
//! can ask for the public address and the other way round).

mod ask;
mod find;

pub(crate) use find::PROXIES;

use crate::finding::{Endpoint, EndpointId, Origin};
use crate::host::{Host, Uncertain};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All endpoints with their exposure, sorted by port, protocol and address.
pub fn endpoints(host: &Host) -> Vec<Endpoint> {
    let asker = ask::Asker::new(host);
    let mut endpoints: Vec<Endpoint> = find::candidates(host)
        .into_iter()
        .filter_map(|candidate| {
            let exposure = ask::exposure(&asker, &candidate);
            let open = exposure
                .iter()
                .any(|e| !e.admitted.is_empty() || !e.conditional.is_empty());
            // A DNAT rule that nobody's packets meet is no endpoint.
            if candidate.endpoint.origin == Origin::Dnat && !open {
                return None;
            }
            let mut endpoint = candidate.endpoint;
            endpoint.exposure = exposure;
            Some(endpoint)
        })
        .collect();
    endpoints.sort_by(|a, b| {
        let key = |e: &Endpoint| (e.origin == Origin::ContainerAddress, e.id.port, e.id.proto);
        (key(a), a.id.address, &a.container).cmp(&(key(b), b.id.address, &b.container))
    });
    endpoints
}

/// Something that may be connected to, before anybody asked from where.
struct Candidate {
    endpoint: Endpoint,
    /// It answers over IPv4.
    v4: bool,
    /// It answers over IPv6.
    v6: bool,
    /// SO_BINDTODEVICE.
    device: Option<String>,
    /// A container on a link of its own (macvlan, ipvlan): this host's filter never sees its packets.
    beside_host: bool,
}

impl Candidate {
    fn id(&self) -> EndpointId {
        self.endpoint.id.clone()
    }
    fn wildcard(&self) -> bool {
        self.endpoint.id.address.is_unspecified()
    }
    /// Widens a wildcard endpoint by the other family.
    fn widen(&mut self, v4: bool, v6: bool) {
        self.v4 |= v4;
        self.v6 |= v6;
        if self.wildcard() {
            self.endpoint.id.address = wildcard(self.v6);
        }
    }
}

/// `::` stands for "every address"; `0.0.0.0` for every IPv4 address.
fn wildcard(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

/// True when nothing may be called closed: rules, links or routes are missing.
pub fn blind(host: &Host) -> bool {
    host.unseen
        .iter()
        .any(|u| u.uncertain == Uncertain::Verdicts)
        || host.net.interfaces.is_empty()
}

/// True when something may listen that is not in the facts.
pub fn may_miss_endpoints(host: &Host) -> bool {
    host.unseen
        .iter()
        .any(|u| matches!(u.uncertain, Uncertain::Endpoints | Uncertain::Verdicts))
}
