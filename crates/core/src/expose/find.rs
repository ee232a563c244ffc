//! What can be connected to: sockets, published ports, containers' own addresses, DNAT rules.

use super::{Candidate, wildcard};
use crate::catalog::{self, Ground, Identity, Sight};
use crate::finding::{Endpoint, EndpointId, Origin};
use crate::host::{Container, Host, Socket};
use crate::zones::canonical;
use reach::Proto;
use reach::ir::{Key, Match, NatKind, Rule, RuleVerdict, Statement, Values};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Programs that hold a published port for a container.
pub(crate) const PROXIES: [&str; 8] = [
    "docker-proxy",
    "rootlessport",
    "rootlesskit",
    "slirp4netns",
    "pasta",
    "pasta.avx2",
    "passt",
    "conmon",
];

/// Of a DNAT rule over more ports than this, some stand for all.
const MOST_DNAT_PORTS: u64 = 64;

pub(super) fn candidates(host: &Host) -> Vec<Candidate> {
    let mut found = Vec::new();
    published(host, &mut found);
    sockets(host, &mut found);
    dnat(host, &mut found);
    container_addresses(host, &mut found);
    for candidate in &mut found {
        candidate.endpoint.seen = seen(host, &candidate.endpoint);
    }
    found
}

fn containers(host: &Host) -> impl Iterator<Item = &Container> {
    host.engines.iter().flat_map(|e| &e.containers)
}

fn service(sight: Sight<'_>) -> (Option<String>, Option<Ground>) {
    match catalog::recognise_on(sight) {
        Some((service, ground)) => (Some(service.id.clone()), Some(ground)),
        None => (None, None),
    }
}

/// What was answered when an endpoint was asked: a container at its own address, everything else at loopback or at
/// the address it is bound to.
fn seen(host: &Host, endpoint: &Endpoint) -> Option<Identity> {
    let id = &endpoint.id;
    if id.proto != Proto::Tcp {
        return None;
    }
    let at = |address: IpAddr, port: u16| {
        let mut all = host.seen.iter();
        all.find(|s| (s.address, s.port) == (address, port))
            .map(|s| s.identity.clone())
    };
    match endpoint.origin {
        Origin::ContainerAddress => at(id.address, id.port),
        Origin::Published => {
            let container =
                containers(host).find(|c| Some(&c.name) == endpoint.container.as_ref())?;
            let mut published = container.published.iter();
            let publish = published.find(|p| (p.proto, p.host_port) == (id.proto, id.port))?;
            let mut own = container.addresses.iter();
            own.find_map(|a| at(a.address, publish.container_port))
        }
        Origin::Socket if id.address.is_unspecified() => at(Ipv4Addr::LOCALHOST.into(), id.port)
            .or_else(|| at(Ipv6Addr::LOCALHOST.into(), id.port)),
        Origin::Socket => at(id.address, id.port),
        Origin::Dnat => None,
    }
}

fn published(host: &Host, found: &mut Vec<Candidate>) {
    for container in containers(host) {
        for publish in container.published.iter().filter(|p| p.host_port != 0) {
            let address = canonical(publish.host_ip);
            let (v4, v6) = (address.is_ipv4(), address.is_ipv6());
            let name = Some(container.name.clone());
            let twin = found.iter_mut().find(|c| {
                let id = &c.endpoint.id;
                (id.proto, id.port) == (publish.proto, publish.host_port)
                    && c.endpoint.container == name
                    && (id.address == address || (c.wildcard() && address.is_unspecified()))
            });
            if let Some(twin) = twin {
                twin.widen(v4, v6);
                continue;
            }
            let (service, ground) = service(Sight {
                image: Some(&container.image),
                port: publish.container_port,
                ..Sight::default()
            });
            found.push(Candidate {
                endpoint: Endpoint {
                    id: EndpointId {
                        proto: publish.proto,
                        address,
                        port: publish.host_port,
                    },
                    origin: Origin::Published,
                    process: None,
                    unit: None,
                    container: name,
                    service,
                    ground,
                    seen: None,
                    exposure: Vec::new(),
                },
                v4,
                v6,
                device: None,
                beside_host: false,
            });
        }
    }
}

fn sockets(host: &Host, found: &mut Vec<Candidate>) {
    for socket in &host.sockets {
        if socket.in_container_netns || socket.port == 0 {
            continue;
        }
        let address = canonical(socket.address);
        let v6 = address.is_ipv6();
        let v4 = address.is_ipv4() || (address.is_unspecified() && !socket.v6only);
        if merge(socket, address, v4, v6, found) {
            continue;
        }
        let container = socket.container.as_deref().map(|id| {
            containers(host)
                .find(|c| c.id == id)
                .map_or_else(|| id.chars().take(12).collect(), |c| c.name.clone())
        });
        let image = socket
            .container
            .as_deref()
            .and_then(|id| containers(host).find(|c| c.id == id))
            .map(|c| c.image.as_str());
        let process = socket.process.as_ref().map(|p| p.comm.as_str());
        let (service, ground) = service(Sight {
            process,
            script: socket.process.as_ref().and_then(|p| p.script.as_deref()),
            unit: socket.unit.as_deref(),
            image,
            port: socket.port,
        });
        found.push(Candidate {
            endpoint: Endpoint {
                id: EndpointId {
                    proto: socket.proto,
                    address,
                    port: socket.port,
                },
                origin: Origin::Socket,
                process: process.map(str::to_owned),
                unit: socket.unit.clone(),
                container,
                service,
                ground,
                seen: None,
                exposure: Vec::new(),
            },
            v4,
            v6,
            device: socket.device.clone(),
            beside_host: false,
        });
    }
}

/// Puts a socket to the endpoint that it belongs to: the proxy of a published port, or the same
/// program's other wildcard socket (sshd has one a family).
fn merge(socket: &Socket, address: IpAddr, v4: bool, v6: bool, found: &mut [Candidate]) -> bool {
    let process = socket.process.as_ref().map(|p| p.comm.as_str());
    for candidate in found {
        let id = &candidate.endpoint.id;
        if (id.proto, id.port) != (socket.proto, socket.port) {
            continue;
        }
        let both_wild = candidate.wildcard() && address.is_unspecified();
        match candidate.endpoint.origin {
            // Without the right to see processes the holder of a published port is taken for its proxy.
            Origin::Published
                if process.is_none_or(|p| PROXIES.contains(&p))
                    && (both_wild || id.address == address) =>
            {
                candidate.widen(v4, v6);
                candidate.endpoint.process = process.map(str::to_owned);
                return true;
            }
            Origin::Socket => {
                let same = candidate.endpoint.process.as_deref() == process
                    && candidate.endpoint.unit == socket.unit
                    && candidate.device == socket.device;
                if same && (both_wild || id.address == address) {
                    candidate.widen(v4, v6);
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// Ports that somebody's DNAT or REDIRECT rule hands on and nothing above covers.
///
/// The rule that translates may stand in a chain of its own, and the port in the rule that jumps there
/// (kube-proxy writes it so). So every port counts that a rule names in a table that translates: what
/// nobody's packets meet drops out later.
fn dnat(host: &Host, found: &mut Vec<Candidate>) {
    let tables: BTreeSet<(String, String)> = host
        .rules
        .rules()
        .filter(|(_, rule)| translates(rule))
        .map(|(at, _)| (at.family, at.table))
        .collect();
    let mut ports: BTreeMap<(Proto, u16), (bool, bool)> = BTreeMap::new();
    for (at, rule) in host.rules.rules() {
        let (v4, v6) = (at.family != "ip6", at.family != "ip");
        if !tables.contains(&(at.family, at.table)) {
            continue;
        }
        for key in dnat_ports(rule) {
            let families = ports.entry(key).or_default();
            families.0 |= v4;
            families.1 |= v6;
        }
    }
    for ((proto, port), (v4, v6)) in ports {
        let covered = found.iter().any(|c| {
            (c.endpoint.id.proto, c.endpoint.id.port) == (proto, port)
                && c.wildcard()
                && (c.v4 || !v4)
                && (c.v6 || !v6)
                && c.device.is_none()
        });
        if covered {
            continue;
        }
        let (service, ground) = service(Sight {
            port,
            ..Sight::default()
        });
        found.push(Candidate {
            endpoint: Endpoint {
                id: EndpointId {
                    proto,
                    address: wildcard(v6),
                    port,
                },
                origin: Origin::Dnat,
                process: None,
                unit: None,
                container: None,
                service,
                ground,
                seen: None,
                exposure: Vec::new(),
            },
            v4,
            v6,
            device: None,
            beside_host: false,
        });
    }
}

fn translates(rule: &Rule) -> bool {
    rule.statements.iter().any(|s| {
        matches!(s, Statement::Nat(nat) if matches!(nat.kind, NatKind::Dnat | NatKind::Redirect))
    })
}

/// The destination ports that a rule names which translates or leads on to other rules.
fn dnat_ports(rule: &Rule) -> Vec<(Proto, u16)> {
    let leads_on = rule.statements.iter().any(|s| {
        matches!(
            s,
            Statement::Verdict(RuleVerdict::Jump { .. } | RuleVerdict::Goto { .. })
                | Statement::VerdictMap { .. }
        )
    });
    if !(leads_on || translates(rule)) {
        return Vec::new();
    }
    let mut protos = vec![Proto::Tcp, Proto::Udp];
    let mut ports: Vec<u16> = Vec::new();
    let mut named = false;
    for statement in &rule.statements {
        let Statement::Match(Match::Cmp {
            of,
            negate: false,
            values: Values::Int(values),
        }) = statement
        else {
            continue;
        };
        match of.key {
            Key::L4Proto => protos.retain(|p| values.contains(p.number().into())),
            Key::Dport => {
                named = true;
                for (first, last) in values.intervals() {
                    let first = u16::try_from(*first).unwrap_or(u16::MAX);
                    let last = u16::try_from(*last).unwrap_or(u16::MAX);
                    ports.extend(some_of(first, last));
                }
            }
            _ => {}
        }
    }
    if !named && translates(rule) {
        ports.extend(some_of(1, u16::MAX));
    }
    protos
        .into_iter()
        .flat_map(|proto| ports.iter().map(move |port| (proto, *port)))
        .collect()
}

/// All ports of a small range; of a wide one the first, and those of the services that matter here.
fn some_of(first: u16, last: u16) -> Vec<u16> {
    if u64::from(last.saturating_sub(first)) < MOST_DNAT_PORTS {
        return (first..=last).collect();
    }
    let known = catalog::services().iter().flat_map(|s| &s.ports).copied();
    std::iter::once(first)
        .chain(known.filter(|port| (first..=last).contains(port)))
        .collect()
}

fn container_addresses(host: &Host, found: &mut Vec<Candidate>) {
    for engine in &host.engines {
        for container in &engine.containers {
            if container.network_mode == "host" {
                continue;
            }
            for at in &container.addresses {
                let driver = engine
                    .networks
                    .iter()
                    .find(|n| n.name == at.network)
                    .map_or("", |n| n.driver.as_str());
                for (proto, port) in ports_of(host, container, at.address) {
                    let (service, ground) = service(Sight {
                        image: Some(&container.image),
                        port,
                        ..Sight::default()
                    });
                    found.push(Candidate {
                        endpoint: Endpoint {
                            id: EndpointId {
                                proto,
                                address: at.address,
                                port,
                            },
                            origin: Origin::ContainerAddress,
                            process: None,
                            unit: None,
                            container: Some(container.name.clone()),
                            service,
                            ground,
                            seen: None,
                            exposure: Vec::new(),
                        },
                        v4: at.address.is_ipv4(),
                        v6: at.address.is_ipv6(),
                        device: None,
                        beside_host: matches!(driver, "macvlan" | "ipvlan"),
                    });
                }
            }
        }
    }
}

/// Ports at which a container can be talked to: declared, published, and really listening.
fn ports_of(host: &Host, container: &Container, address: IpAddr) -> BTreeSet<(Proto, u16)> {
    let listening = host
        .sockets
        .iter()
        .filter(|s| s.in_container_netns && s.container.as_deref() == Some(&container.id))
        .filter(|s| {
            let at = canonical(s.address);
            at.is_unspecified() || at == address
        })
        .map(|s| (s.proto, s.port));
    container
        .exposed
        .iter()
        .copied()
        .chain(
            container
                .published
                .iter()
                .map(|p| (p.proto, p.container_port)),
        )
        .chain(listening)
        .filter(|(_, port)| *port != 0)
        .collect()
}
