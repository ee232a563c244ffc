//! What the policy admits on this host, mechanism by mechanism the same: one list of grants.

use super::Refusal;
use crate::catalog::{self, Sight};
use crate::expose;
use crate::finding::Zone;
use crate::host::{Container, Engine, Host, Process, Publish, Socket};
use crate::policy::{Policy, PortSpec, Reach, Source, ZoneRef};
use crate::zones;
use ipnet::IpNet;
use reach::{AddrSet, Proto};

/// UFW gets one rule a port; a wider range would make `plan` unreadable and `apply` slow.
pub(super) const WIDEST_RANGE: usize = 64;

/// One host port and one way that leads to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grant {
    /// Sorts first: what keeps the operator in.
    pub not_ssh: bool,
    pub proto: Proto,
    pub port: u16,
    pub way: Way,
    pub rate_limit: bool,
    /// Shown in `ufw status`; plain ASCII.
    pub label: String,
}

/// Where an admitted packet comes from; both `None`: anywhere, both families.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way {
    pub net: Option<IpNet>,
    pub interface: Option<String>,
}

impl Way {
    pub(super) fn anywhere(&self) -> bool {
        self.net.is_none() && self.interface.is_none()
    }

    /// True when packets of this IP version can come this way.
    pub(super) fn sees(&self, ipv6: bool) -> bool {
        self.net.is_none_or(|n| n.addr().is_ipv6() == ipv6)
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.net, &self.interface) {
            (None, None) => f.write_str("anywhere"),
            (Some(net), None) => net.fmt(f),
            (None, Some(interface)) => write!(f, "whoever arrives on {interface}"),
            (Some(net), Some(interface)) => write!(f, "{net} on {interface}"),
        }
    }
}

/// Everything that the policy admits on this host, SSH first, without doubles.
pub(super) fn grants(host: &Host, policy: &Policy) -> Result<Vec<Grant>, Refusal> {
    let ssh = Policy::ssh_ports(host);
    let places = zones::places(host);
    let zones = zones::zones(host);
    let mut out = Vec::new();
    for allow in &policy.allows {
        let ports = allow.port.ports(&ssh);
        if ports.len() > WIDEST_RANGE {
            return Err(Refusal::RangeTooWide {
                ports: allow.port.to_string(),
            });
        }
        let default = match allow.port {
            PortSpec::Ssh => "ssh".to_owned(),
            _ => allow
                .from
                .iter()
                .map(Source::to_string)
                .collect::<Vec<_>>()
                .join(" "),
        };
        let label = plain(allow.comment.as_deref().unwrap_or(&default));
        for way in ways(host, &allow.from, &zones, &places)? {
            for &port in &ports {
                out.push(Grant {
                    not_ssh: !(allow.proto == Proto::Tcp && ssh.contains(&port)),
                    proto: allow.proto,
                    port,
                    way: way.clone(),
                    rate_limit: allow.rate_limit,
                    label: label.clone(),
                });
            }
        }
    }
    for rule in &policy.services {
        let Reach::From(from) = &rule.reach else {
            continue;
        };
        for way in ways(host, from, &zones, &places)? {
            for port in service_ports(host, &rule.kind) {
                out.push(Grant {
                    not_ssh: true,
                    proto: Proto::Tcp,
                    port,
                    way: way.clone(),
                    rate_limit: false,
                    label: plain(&rule.kind),
                });
            }
        }
    }
    out.sort();
    // The same port and way twice: the sorted order puts the one without a limit first.
    out.dedup_by(|b, a| (a.proto, a.port, &a.way) == (b.proto, b.port, &b.way));
    Ok(out)
}

/// Host ports of a service of the catalog: its well-known ones, those that its processes hold, and
/// those that its containers publish.
pub(super) fn service_ports(host: &Host, kind: &str) -> Vec<u16> {
    let mut ports: Vec<u16> = catalog::service(kind)
        .map(|s| s.ports.clone())
        .unwrap_or_default();
    ports.extend(sockets_of(host, kind).map(|s| s.port));
    for (engine, container) in containers_of(host, kind) {
        let published = container.published.iter();
        let held = published.filter(|p| !engine.rootless || held_by_a_proxy(host, p));
        ports.extend(held.map(|p| p.host_port));
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// TCP sockets of a service on the host itself.
pub(super) fn sockets_of<'a>(host: &'a Host, kind: &'a str) -> impl Iterator<Item = &'a Socket> {
    host.sockets.iter().filter(move |s| {
        s.proto == Proto::Tcp
            && !s.in_container_netns
            && catalog::recognise(Sight {
                process: s.process.as_ref().map(|p| p.comm.as_str()),
                script: s.process.as_ref().and_then(|p| p.script.as_deref()),
                unit: s.unit.as_deref(),
                image: None,
                port: s.port,
            })
            .is_some_and(|found| found.id == kind)
            && s.process.as_ref().is_none_or(|p| p.comm != "docker-proxy")
    })
}

/// A user's engine may say that it publishes any port: it does where its proxy listens.
fn held_by_a_proxy(host: &Host, publish: &Publish) -> bool {
    host.sockets.iter().any(|s| {
        let proxy = |p: &Process| expose::PROXIES.contains(&p.comm.as_str());
        (s.proto, s.port) == (publish.proto, publish.host_port)
            && !s.in_container_netns
            && s.process.as_ref().is_some_and(proxy)
    })
}

/// Containers that run a service, each with its engine.
fn containers_of<'a>(
    host: &'a Host,
    kind: &'a str,
) -> impl Iterator<Item = (&'a Engine, &'a Container)> {
    host.engines
        .iter()
        .flat_map(|e| e.containers.iter().map(move |c| (e, c)))
        .filter(move |(_, c)| {
            let ports = c.published.iter().map(|p| p.container_port);
            ports
                .chain(c.exposed.iter().map(|(_, port)| *port))
                .chain([0])
                .any(|port| {
                    catalog::recognise(Sight {
                        image: Some(&c.image),
                        port,
                        ..Sight::default()
                    })
                    .is_some_and(|found| found.id == kind)
                })
        })
}

/// The ways that sources stand for. A zone is bound to the interfaces where its packets arrive, so
/// that nobody else gets in with a forged address.
fn ways(
    host: &Host,
    sources: &[Source],
    zones: &[Zone],
    places: &[zones::Place],
) -> Result<Vec<Way>, Refusal> {
    let mut out = Vec::new();
    for source in sources {
        match source {
            Source::Anywhere => return Ok(vec![Way::default()]),
            Source::Net(net) => out.push(net_way(*net)),
            Source::Range(first, last) => {
                out.extend(
                    AddrSet::from_range(*first, *last)
                        .to_cidrs()
                        .into_iter()
                        .map(net_way),
                );
            }
            Source::Zone(ZoneRef::Containers(None)) => out.extend(containers(host, places)?),
            Source::Zone(zone) => {
                let there = zones.iter().any(|z| zone.matches(z));
                if !there && !matches!(zone, ZoneRef::Containers(_)) {
                    return Err(Refusal::NoSuchZone {
                        zone: zone.to_string(),
                    });
                }
                for place in places.iter().filter(|p| in_zone(zone, zones, p)) {
                    if !safe_interface(&place.interface) {
                        return Err(Refusal::OddInterface {
                            name: crate::text::clean(&place.interface),
                        });
                    }
                    let interface = Some(place.interface.clone());
                    if matches!(zone, ZoneRef::Lan(_)) {
                        out.extend(place.networks.to_cidrs().into_iter().map(|net| Way {
                            net: Some(net),
                            interface: interface.clone(),
                        }));
                    } else {
                        out.push(Way {
                            net: None,
                            interface,
                        });
                    }
                }
            }
        }
    }
    out.sort();
    out.dedup();
    Ok(out)
}

/// Containers arrive by the bridges of their networks, and networks come and go: the rules name what the
/// engines call theirs, so that one made later is covered from its first packet.
///
/// `br-` is also how people name a bridge that carries their LAN. So those rules want a source from the
/// range that Docker takes its networks from (or from a network that is there), and where the host has a
/// `br-…` that is no container network, the bridges are named one by one.
fn containers(host: &Host, places: &[zones::Place]) -> Result<Vec<Way>, Refusal> {
    let way = |interface: &str, net: Option<IpNet>| Way {
        net,
        interface: Some(interface.to_owned()),
    };
    let mut out: Vec<Way> = CONTAINER_LINKS.iter().map(|l| way(l, None)).collect();
    let ambiguous = super::guard::own_bridges(host)
        .iter()
        .any(|name| name.starts_with("br-"));
    let docker = host.root_engines().any(|e| e.kind == "docker")
        || host.net.interfaces.iter().any(|i| i.name == "docker0");
    let by_pattern = docker && !ambiguous;
    if by_pattern {
        let mut nets: AddrSet = DOCKER_POOL.into();
        let subnets = host.root_engines().flat_map(|e| &e.networks);
        for network in subnets.filter(|n| n.bridge.as_deref().is_some_and(engine_bridge)) {
            nets = nets.union(&network.subnets.iter().copied().collect());
        }
        out.extend(nets.to_cidrs().into_iter().map(|n| way("br-+", Some(n))));
    }
    for place in places.iter().filter(|p| p.zone == "containers") {
        let name = place.interface.as_str();
        let named = CONTAINER_LINKS
            .iter()
            .any(|l| name.starts_with(l.trim_end_matches('+')));
        if named || (by_pattern && engine_bridge(name)) {
            continue;
        }
        if !safe_interface(name) {
            return Err(Refusal::OddInterface {
                name: crate::text::clean(name),
            });
        }
        out.push(way(name, None));
    }
    Ok(out)
}

/// What Docker and Podman call the links of their networks, besides `br-…`.
const CONTAINER_LINKS: [&str; 2] = ["docker+", "podman+"];

/// 172.16.0.0/12: Docker's own choice for its first fifteen networks (libnetwork/ipamutils).
const DOCKER_POOL: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(
    std::net::Ipv4Addr::new(172, 16, 0, 0),
    12,
));

/// Docker's name for a bridge: `br-` and the network's id, twelve digits of hexadecimal.
pub(super) fn engine_bridge(name: &str) -> bool {
    name.strip_prefix("br-")
        .is_some_and(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn in_zone(zone: &ZoneRef, zones: &[Zone], place: &zones::Place) -> bool {
    let matches = zones.iter().any(|z| z.id == place.zone && zone.matches(z));
    let only = match zone {
        ZoneRef::Internet => None,
        ZoneRef::Lan(only) | ZoneRef::Vpn(only) | ZoneRef::Containers(only) => only.as_deref(),
    };
    matches && only.is_none_or(|only| only == place.interface)
}

/// `0.0.0.0/0` stays a network of one family: it does not mean IPv6.
fn net_way(net: IpNet) -> Way {
    Way {
        net: Some(net.trunc()),
        interface: None,
    }
}

/// Interface names are chosen by whoever made the link. Only plain ones go into rules: others could
/// change what a rule means (a trailing `+` or `*` is a wildcard).
pub(super) fn safe_interface(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 15
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@'))
        && !name.starts_with('-')
}

/// As [`safe_interface`], or one of the patterns of [`containers`].
pub(super) fn safe_pattern(name: &str) -> bool {
    safe_interface(name) || name == "br-+" || CONTAINER_LINKS.contains(&name)
}

/// A remark reduced to what `ufw … comment` takes without quoting trouble, 48 characters at most.
pub(super) fn plain(text: &str) -> String {
    let kept: String = text
        .chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' => c,
            ' ' | '-' | '_' | '.' | ':' | '/' | ',' => c,
            _ => ' ',
        })
        .collect();
    let words: Vec<&str> = kept.split_whitespace().collect();
    words.join(" ").chars().take(48).collect()
}
