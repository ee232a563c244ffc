//! What the policy admits, endpoint by endpoint.

use crate::catalog;
use crate::finding::{Endpoint, Origin, Zone};
use crate::host::Host;
use crate::policy::{Policy, Reach, Source};
use reach::{AddrSet, Proto};

/// The policy, resolved against one host's zones.
pub struct Intent<'a> {
    policy: &'a Policy,
    zones: &'a [Zone],
    ssh_ports: Vec<u16>,
}

impl<'a> Intent<'a> {
    /// Resolves a policy.
    pub fn new(host: &Host, policy: &'a Policy, zones: &'a [Zone]) -> Self {
        Intent {
            policy,
            zones,
            ssh_ports: Policy::ssh_ports(host),
        }
    }

    /// The ports that "ssh" stands for here.
    pub fn ssh_ports(&self) -> &[u16] {
        &self.ssh_ports
    }

    /// The policy's sources for a host port. `service`: what listens there, as the catalog names it.
    pub fn port_sources(
        &self,
        proto: Proto,
        port: u16,
        service: Option<&str>,
    ) -> impl Iterator<Item = &'a Source> {
        let policy = self.policy;
        let allows = policy
            .allows
            .iter()
            .filter(move |a| a.proto == proto && a.port.contains(port, &self.ssh_ports))
            .flat_map(|a| &a.from);
        let services = policy
            .services
            .iter()
            .filter(move |rule| {
                let known = catalog::service(&rule.kind);
                proto == Proto::Tcp
                    && (service == Some(rule.kind.as_str())
                        || known.is_some_and(|s| s.ports.contains(&port)))
            })
            .filter_map(|rule| match &rule.reach {
                Reach::From(from) => Some(from),
                Reach::Loopback | Reach::Gateway => None,
            })
            .flatten();
        let found: Vec<&'a Source> = allows.chain(services).collect();
        found.into_iter()
    }

    /// The sources of one zone that a source of the policy stands for.
    pub fn resolve(&self, source: &Source, zone: &Zone) -> AddrSet {
        match source {
            Source::Zone(name) if name.matches(zone) => zone.networks.clone(),
            Source::Zone(_) => AddrSet::empty(),
            other => match other.addresses() {
                Some(addresses) => addresses.intersect(&zone.networks),
                None => AddrSet::empty(),
            },
        }
    }

    /// Which sources of a zone the policy admits to an endpoint.
    pub fn admitted(&self, endpoint: &Endpoint, zone: &str) -> AddrSet {
        let Some(zone) = self.zones.iter().find(|z| z.id == zone) else {
            return AddrSet::empty();
        };
        if plumbing(endpoint) {
            return zone.networks.clone();
        }
        // Ports of the policy are host ports; nobody is meant to go around them.
        if endpoint.origin == Origin::ContainerAddress {
            return AddrSet::empty();
        }
        let id = &endpoint.id;
        self.port_sources(id.proto, id.port, endpoint.service.as_deref())
            .fold(AddrSet::empty(), |set, source| {
                set.union(&self.resolve(source, zone))
            })
    }

    /// Whom the policy admits to an endpoint, in its own words.
    pub fn sources(&self, endpoint: &Endpoint) -> Vec<String> {
        if endpoint.origin == Origin::ContainerAddress {
            return Vec::new();
        }
        let id = &endpoint.id;
        let mut words = Vec::new();
        for source in self.port_sources(id.proto, id.port, endpoint.service.as_deref()) {
            let word = source.to_string();
            if !words.contains(&word) {
                words.push(word);
            }
        }
        words
    }

    /// Zones (with the family) whom the policy admits and of whom nobody gets in. A zone counts in a
    /// family only if the endpoint answers there.
    pub fn shut_zones(&self, endpoint: &Endpoint) -> Vec<(String, u8)> {
        let mut shut = Vec::new();
        if plumbing(endpoint) {
            return shut;
        }
        for exposure in &endpoint.exposure {
            let key = (exposure.zone.clone(), exposure.family);
            if shut.contains(&key) {
                continue;
            }
            let allowed = self.admitted(endpoint, &exposure.zone);
            let of_family = |set: AddrSet| {
                if exposure.family == 4 {
                    set.v4()
                } else {
                    set.v6()
                }
            };
            let asked = endpoint
                .exposure
                .iter()
                .filter(|e| (&e.zone, e.family) == (&exposure.zone, exposure.family));
            let mut open = AddrSet::empty();
            for other in asked {
                open = open.union(&other.admitted).union(&other.conditional);
            }
            // fe80::/10 alone is no wish of anybody's.
            let wanted = of_family(allowed).subtract(&link_local());
            if !wanted.is_empty() && wanted.intersect(&open).is_empty() {
                shut.push(key);
            }
        }
        shut
    }
}

fn link_local() -> AddrSet {
    let first = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
    let last = std::net::Ipv6Addr::from(u128::from(first) | (u128::MAX >> 10));
    AddrSet::from_range(first.into(), last.into())
}

/// Ports at which a host must hear answers to get its address: DHCP (RFC 2131) and DHCPv6 (RFC 8415)
/// clients. No policy is about them.
fn plumbing(endpoint: &Endpoint) -> bool {
    endpoint.origin == Origin::Socket
        && endpoint.id.proto == Proto::Udp
        && matches!(endpoint.id.port, 68 | 546)
}
