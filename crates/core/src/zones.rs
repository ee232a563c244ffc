//! Zones: the classes of sources that people think in, and where their packets arrive.
//!
//! An interface with a default route faces the Internet: whatever source is not a private network
//! on its own link counts as the Internet there, private addresses of others included, because
//! that is where spoofed and provider-internal packets arrive too. Every other interface admits
//! the networks that are on its link or routed through it.

use crate::finding::Zone;
use crate::host::Host;
use crate::text::{clean, list};
use ipnet::IpNet;
use reach::{AddrSet, Interface, Route, RouteKind};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The sources of one zone that can arrive on one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// [`Zone::id`].
    pub zone: String,
    /// Interface; empty when links could not be read.
    pub interface: String,
    /// The sources.
    pub networks: AddrSet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Internet,
    Lan,
    Vpn,
    Containers,
}

/// The zones of this host, the Internet first, then LANs, VPNs and containers.
pub fn zones(host: &Host) -> Vec<Zone> {
    let mut zones: Vec<Zone> = Vec::new();
    for place in places(host) {
        match zones.iter_mut().find(|z| z.id == place.zone) {
            Some(zone) => {
                zone.interfaces.push(place.interface);
                zone.networks = zone.networks.union(&place.networks);
            }
            None => zones.push(Zone {
                id: place.zone,
                label: String::new(),
                interfaces: vec![place.interface],
                networks: place.networks,
            }),
        }
    }
    for zone in &mut zones {
        zone.interfaces.retain(|i| !i.is_empty());
        zone.label = label(zone);
    }
    zones
}

/// Every zone's sources by the interface that they arrive on, in the order of [`zones`].
pub fn places(host: &Host) -> Vec<Place> {
    let mut found: Vec<(Kind, String, AddrSet)> = Vec::new();
    for interface in &host.net.interfaces {
        if !interface.up || interface.loopback || carried_by_master(host, interface) {
            continue;
        }
        at_interface(host, interface, &mut found);
    }
    let internet_known = found.iter().any(|(kind, ..)| *kind == Kind::Internet);
    if host.net.interfaces.is_empty() && !internet_known {
        // Links could not be read: somebody out there exists all the same.
        found.push((
            Kind::Internet,
            String::new(),
            everybody_v4().union(&everybody_v6()),
        ));
    }
    found.sort_by_key(|(kind, ..)| *kind);
    let lans = found.iter().filter(|(k, ..)| *k == Kind::Lan).count();
    found
        .into_iter()
        .map(|(kind, interface, networks)| Place {
            zone: match kind {
                Kind::Internet => "internet".to_owned(),
                Kind::Lan if lans == 1 => "lan".to_owned(),
                Kind::Lan => format!("lan:{interface}"),
                Kind::Vpn => format!("vpn:{interface}"),
                Kind::Containers => "containers".to_owned(),
            },
            interface,
            networks,
        })
        .collect()
}

fn at_interface(host: &Host, interface: &Interface, found: &mut Vec<(Kind, String, AddrSet)>) {
    let name = &interface.name;
    let routes: Vec<&Route> = routes_through(host, interface.index).collect();
    let faces_v4 = routes
        .iter()
        .any(|r| r.dst.addr().is_ipv4() && is_default(&r.dst));
    let faces_v6 = routes
        .iter()
        .any(|r| r.dst.addr().is_ipv6() && is_default(&r.dst));
    let kind = kind(host, interface);

    let mut around = on_link(interface);
    for route in routes.iter().filter(|r| !is_default(&r.dst)) {
        around = around.union(&route.dst.into());
    }
    // Not the way to the Internet: what is routed through it arrives through it. Else neighbours with
    // public addresses are strangers, even on the same link.
    let faces = (faces_v4 || faces_v6) && kind == Kind::Lan;
    let mut near = if faces {
        on_link(interface).intersect(&private())
    } else {
        around.clone()
    };
    if name.starts_with("tailscale") {
        near = near.union(&tailnet());
    }
    if kind == Kind::Containers {
        for network in host.root_engines().flat_map(|e| &e.networks) {
            if network.bridge.as_deref() == Some(name) {
                near = near.union(&network.subnets.iter().copied().collect());
            }
        }
    }
    if !near.is_empty() {
        if has_v6(interface) {
            near = near.union(&net("fe80::", 10));
        }
        found.push((kind, name.clone(), near.clone()));
    }
    // Who is on the link or routed through it is there also in the family without a default route.
    let mut far = if faces { around } else { AddrSet::empty() };
    if faces_v4 {
        far = far.union(&everybody_v4());
    }
    if faces_v6 {
        far = far.union(&everybody_v6());
    } else if faces_v4 && has_v6(interface) && near.is_empty() {
        // No way to the IPv6 Internet, but the link's neighbours speak IPv6 with us.
        far = far.union(&net("fe80::", 10));
    }
    let far = far.subtract(&near);
    if !far.is_empty() {
        found.push((Kind::Internet, name.clone(), far));
    }
}

/// True for a port of a bridge or bond: its packets arrive on the master.
fn carried_by_master(host: &Host, interface: &Interface) -> bool {
    interface.master.is_some_and(|master| {
        let master = host.net.interfaces.iter().find(|i| i.index == master);
        // A VRF's ports keep their own addresses and names; an unknown master is no reason to
        // leave a way in out of sight.
        master.is_some_and(|m| m.kind.as_deref() != Some("vrf"))
    })
}

fn kind(host: &Host, interface: &Interface) -> Kind {
    let name = interface.name.as_str();
    let known = host
        .root_engines()
        .flat_map(|e| &e.networks)
        .any(|n| n.bridge.as_deref() == Some(name));
    let docker_bridge = name
        .strip_prefix("br-")
        .is_some_and(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    let bridge = matches!(interface.kind.as_deref(), Some("bridge") | None);
    let named = name.starts_with("docker")
        || docker_bridge
        || ["podman", "cni"].iter().any(|p| name.starts_with(p));
    if known || (bridge && named) {
        return Kind::Containers;
    }
    let tunnel = matches!(
        interface.kind.as_deref(),
        Some("wireguard" | "tun" | "xfrm" | "vti" | "ipip" | "gre" | "sit" | "ip6tnl" | "ovpn")
    );
    let vpn_name = ["wg", "tailscale", "tun", "tap", "zt", "nebula"]
        .iter()
        .any(|p| name.starts_with(p));
    if tunnel || vpn_name {
        Kind::Vpn
    } else {
        Kind::Lan
    }
}

/// The networks of an interface's own addresses, link-local ones left out.
fn on_link(interface: &Interface) -> AddrSet {
    let mut set = AddrSet::empty();
    for address in &interface.addresses {
        let near: IpNet = match address.peer {
            Some(peer) if peer != address.net.addr() => peer.into(),
            _ => address.net,
        };
        if !is_link_local_v6(near.addr()) {
            set = set.union(&near.into());
        }
    }
    set
}

fn routes_through(host: &Host, index: u32) -> impl Iterator<Item = &Route> {
    host.net.routes.iter().filter(move |route| {
        route.kind == RouteKind::Unicast
            && !is_link_local_v6(route.dst.addr())
            && !route.dst.addr().is_multicast()
            && route.nexthops.iter().any(|hop| hop.oif == index)
    })
}

/// The default route, also in the halves that VPN clients use and as `2000::/3`.
pub(crate) fn is_default(dst: &IpNet) -> bool {
    dst.prefix_len() <= if dst.addr().is_ipv4() { 1 } else { 3 }
}

fn has_v6(interface: &Interface) -> bool {
    interface.disable_ipv6 != Some(true)
        && interface.addresses.iter().any(|a| a.net.addr().is_ipv6())
}

/// An IPv6 address that only neighbours on one link can use.
pub fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}

fn label(zone: &Zone) -> String {
    let interfaces: Vec<String> = zone.interfaces.iter().map(|i| clean(i)).collect();
    let interfaces = list(&interfaces);
    let networks = || {
        let shown: Vec<String> = zone
            .networks
            .to_cidrs()
            .into_iter()
            .filter(|n| !is_link_local_v6(n.addr()))
            .map(|n| n.to_string())
            .collect();
        match shown.len() {
            0 => String::new(),
            1..=3 => format!(" {}", shown.join(", ")),
            more => format!(" {} and {} more networks", shown[..2].join(", "), more - 2),
        }
    };
    match zone.id.split(':').next() {
        Some("internet") if interfaces.is_empty() => "the Internet".to_owned(),
        Some("internet") => format!("the Internet ({interfaces})"),
        Some("lan") => format!("LAN{} ({interfaces})", networks()),
        Some("vpn") => format!("VPN{} ({interfaces})", networks()),
        _ => format!("containers ({interfaces})"),
    }
}

/// An IPv4 address in its own family, also when it came as `::ffff:a.b.c.d`.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Networks that are not routed on the Internet: RFC 1918, RFC 6598 (carrier NAT), RFC 3927,
/// RFC 4193, link-local IPv6.
pub fn private() -> AddrSet {
    [
        net("10.0.0.0", 8),
        net("172.16.0.0", 12),
        net("192.168.0.0", 16),
        net("100.64.0.0", 10),
        net("169.254.0.0", 16),
        net("fc00::", 7),
        net("fe80::", 10),
    ]
    .iter()
    .fold(AddrSet::empty(), |set, n| set.union(n))
}

/// Sources that a tailnet uses (Tailscale's documentation, "reserved IP addresses").
fn tailnet() -> AddrSet {
    net("100.64.0.0", 10).union(&net("fd7a:115c:a1e0::", 48))
}

/// Every IPv4 source that the kernel takes from a wire (ip_route_input_slow drops 0/8, loopback,
/// multicast and the limited broadcast as sources).
fn everybody_v4() -> AddrSet {
    let last = Ipv4Addr::new(255, 255, 255, 254);
    AddrSet::from_range(Ipv4Addr::new(1, 0, 0, 0).into(), last.into())
        .subtract(&net("127.0.0.0", 8))
        .subtract(&net("224.0.0.0", 4))
}

/// Every IPv6 source that the kernel takes from a wire (ip6_rcv drops `::1` and multicast).
fn everybody_v6() -> AddrSet {
    let first = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 2);
    let last = Ipv6Addr::from(u128::MAX);
    AddrSet::from_range(first.into(), last.into()).subtract(&net("ff00::", 8))
}

/// A constant network.
fn net(address: &str, length: u8) -> AddrSet {
    match address.parse::<IpAddr>().map(|a| IpNet::new(a, length)) {
        Ok(Ok(net)) => net.into(),
        // Only constants of this module come here; the test `constants_are_networks` reads them.
        _ => unreachable!("a constant network"),
    }
}

/// The networks on the links of these interfaces, public ones included: who is there can send to any
/// address of this host and of its containers.
pub fn links_of(host: &Host, interfaces: &[String]) -> AddrSet {
    host.net
        .interfaces
        .iter()
        .filter(|i| interfaces.contains(&i.name))
        .fold(AddrSet::empty(), |set, i| set.union(&on_link(i)))
}

/// All addresses of this host, by interface, loopback left out.
pub fn own_addresses(host: &Host) -> BTreeSet<IpAddr> {
    host.net
        .interfaces
        .iter()
        .filter(|i| i.up && !i.loopback)
        .flat_map(|i| i.addresses.iter().map(|a| a.net.addr()))
        .collect()
}
