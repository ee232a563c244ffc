//! Links, addresses, routes and policy rules over rtnetlink; host-wide switches from /proc/sys.

mod neighbours;
mod routes;
mod rules;

pub use neighbours::{Neighbour, neighbour, neighbours};

use crate::Error;
use crate::netlink::{Attr, Attrs, Message, Netlink, put, u16_ne, u32_ne};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use reach::{
    Interface, InterfaceAddress, Net, NextHop, PolicyAction, PolicyRule, Route, RouteKind, Sysctls,
};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;
const RTM_GETNEXTHOP: u16 = 106;

/// Everything about the network stack, apart from the packet filter, that decides a packet's way.
///
/// Source: rtnetlink dumps (links, addresses, routes of all tables, rules) and `/proc/sys/net`.
/// Needs no privilege.
///
/// # Errors
/// When the kernel refuses a dump, or the tables change under every attempt to read them.
pub fn net() -> Result<Net, Error> {
    let mut nl = Netlink::open(SockProtocol::NetlinkRoute, "rtnetlink")?;
    let mut interfaces = links(&mut nl)?;
    addresses(&mut nl, &mut interfaces)?;
    let (mut all_routes, mut all_rules) = (Vec::new(), Vec::new());
    for family in [AF_INET, AF_INET6] {
        all_routes.extend(routes::family_routes(&mut nl, family)?);
        all_rules.extend(rules::family_rules(&mut nl, family)?);
    }
    all_rules.sort_by_key(|r: &PolicyRule| (r.ipv6, r.priority));
    Ok(Net {
        interfaces,
        routes: all_routes,
        rules: all_rules,
        sysctls: sysctls(),
    })
}

// ---- sysctls ----

/// The first number in a file of /proc/sys/net. `/proc/sys/net` shows the namespace of the
/// thread that looks, unlike `/proc/net`.
fn sysctl(path: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/sys/net/{path}")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// A switch that exists only with its module: when the file is not there, it is off.
fn module_sysctl(folder: &str, file: &str) -> Option<bool> {
    match std::fs::exists(format!("/proc/sys/net/{folder}")) {
        Ok(false) => Some(false),
        _ => sysctl(&format!("{folder}/{file}")).map(|v| v != 0),
    }
}

fn sysctls() -> Sysctls {
    Sysctls {
        ipv4_forward: sysctl("ipv4/ip_forward").map(|v| v != 0),
        ipv6_forward: module_sysctl("ipv6", "conf/all/forwarding"),
        rp_filter_all: sysctl("ipv4/conf/all/rp_filter").and_then(|v| v.try_into().ok()),
        bridge_nf_call_iptables: module_sysctl("bridge", "bridge-nf-call-iptables"),
        bridge_nf_call_ip6tables: module_sysctl("bridge", "bridge-nf-call-ip6tables"),
    }
}

// ---- links ----

const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
// Numbers of include/uapi/linux/ip.h count from 1, those of ipv6.h from 0.
const IPV4_DEVCONF_FORWARDING: usize = 1;
const IPV4_DEVCONF_RP_FILTER: usize = 8;
const IPV4_DEVCONF_ACCEPT_LOCAL: usize = 23;
const IPV4_DEVCONF_ROUTE_LOCALNET: usize = 26;
const DEVCONF_FORWARDING: usize = 0;
const DEVCONF_DISABLE_IPV6: usize = 26;

fn links(nl: &mut Netlink) -> Result<Vec<Interface>, Error> {
    let mut request = vec![0u8; 16];
    put(
        &mut request,
        IFLA_EXT_MASK,
        &RTEXT_FILTER_SKIP_STATS.to_ne_bytes(),
    );
    let mut out = nl.dump("links", libc::RTM_GETLINK, &request, |m| {
        (m.kind == libc::RTM_NEWLINK)
            .then(|| link(m.body))
            .flatten()
    })?;
    // These two hold when either the interface's own switch or `all` is on (IN_DEV_ORCONF).
    let all_local = sysctl("ipv4/conf/all/accept_local").map(|v| v != 0);
    let all_localnet = sysctl("ipv4/conf/all/route_localnet").map(|v| v != 0);
    for i in &mut out {
        i.accept_local = either(i.accept_local, all_local);
        i.route_localnet = either(i.route_localnet, all_localnet);
    }
    out.sort_by_key(|i| i.index);
    Ok(out)
}

/// Names of links by index.
pub(crate) fn link_names() -> Result<HashMap<u32, String>, Error> {
    let mut nl = Netlink::open(SockProtocol::NetlinkRoute, "links")?;
    let found = links(&mut nl)?;
    Ok(found.into_iter().map(|i| (i.index, i.name)).collect())
}

/// Three-valued or.
fn either(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (Some(false), Some(false)) => Some(false),
        _ => None,
    }
}

fn link(body: &[u8]) -> Option<Interface> {
    // struct ifinfomsg
    let index = body.get(4..8).map(u32_ne)?;
    let flags = body.get(8..12).map(u32_ne)?;
    let has = |f: libc::c_int| flags & f as u32 != 0;
    let mut i = Interface {
        index,
        up: has(libc::IFF_UP),
        loopback: has(libc::IFF_LOOPBACK),
        point_to_point: has(libc::IFF_POINTOPOINT),
        ..Interface::default()
    };
    for a in Attrs(body.get(16..)?) {
        match a.kind {
            IFLA_IFNAME => i.name = a.text(),
            IFLA_MASTER => i.master = a.u32().filter(|m| *m != 0),
            IFLA_LINKINFO => i.kind = a.nested().find(IFLA_INFO_KIND).map(|k| k.text()),
            IFLA_AF_SPEC => af_spec(&mut i, a),
            _ => {}
        }
    }
    Some(i)
}

/// The per-interface sysctls, which the kernel sends with each link.
fn af_spec(i: &mut Interface, spec: Attr<'_>) {
    // A link without an IPv6 part drops every IPv6 packet (ip6_rcv_core).
    i.disable_ipv6 = Some(true);
    for family in spec.nested() {
        let conf = |kind, at: usize| {
            let conf = family.nested().find(kind)?;
            conf.data.get(4 * at..4 * at + 4).map(u32_ne)
        };
        match family.kind as u8 {
            AF_INET => {
                let get = |n: usize| conf(IFLA_INET_CONF, n - 1);
                i.rp_filter = get(IPV4_DEVCONF_RP_FILTER).and_then(|v| v.try_into().ok());
                i.accept_local = get(IPV4_DEVCONF_ACCEPT_LOCAL).map(|v| v != 0);
                i.route_localnet = get(IPV4_DEVCONF_ROUTE_LOCALNET).map(|v| v != 0);
                i.forwarding_v4 = get(IPV4_DEVCONF_FORWARDING).map(|v| v != 0);
            }
            AF_INET6 => {
                i.forwarding_v6 = conf(IFLA_INET6_CONF, DEVCONF_FORWARDING).map(|v| v != 0);
                i.disable_ipv6 = conf(IFLA_INET6_CONF, DEVCONF_DISABLE_IPV6).map(|v| v != 0);
            }
            _ => {}
        }
    }
}

// ---- addresses ----

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

fn addresses(nl: &mut Netlink, interfaces: &mut [Interface]) -> Result<(), Error> {
    let found = nl.dump("addresses", libc::RTM_GETADDR, &[0; 8], |m| {
        (m.kind == libc::RTM_NEWADDR)
            .then(|| address(m.body))
            .flatten()
    })?;
    for (index, address) in found {
        if let Some(i) = interfaces.iter_mut().find(|i| i.index == index) {
            i.addresses.push(address);
        }
    }
    Ok(())
}

fn address(body: &[u8]) -> Option<(u32, InterfaceAddress)> {
    // struct ifaddrmsg
    let family = *body.first()?;
    let prefix = *body.get(1)?;
    let index = body.get(4..8).map(u32_ne)?;
    if family != AF_INET && family != AF_INET6 {
        return None;
    }
    let attrs = Attrs(body.get(8..)?);
    let far = attrs.find(IFA_ADDRESS).and_then(|a| a.ip());
    let local = attrs.find(IFA_LOCAL).and_then(|a| a.ip());
    // IFA_ADDRESS is the peer when IFA_LOCAL is there and differs.
    let own = local.or(far)?;
    let peer = far.filter(|far| *far != own);
    let net = IpNet::new(own, prefix).ok()?;
    Some((index, InterfaceAddress { net, peer }))
}

/// A kernel without IPv6 has no such table; that is an empty answer.
fn absent<T>(result: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match result {
        Err(Error::Kernel {
            errno: Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT,
            ..
        }) => Ok(Vec::new()),
        other => other,
    }
}
