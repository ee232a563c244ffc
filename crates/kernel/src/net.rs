//! Links, addresses, routes and policy rules over rtnetlink; host-wide switches from /proc/sys.

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
    let mut routes = Vec::new();
    let mut rules = Vec::new();
    for family in [AF_INET, AF_INET6] {
        routes.extend(family_routes(&mut nl, family)?);
        rules.extend(family_rules(&mut nl, family)?);
    }
    rules.sort_by_key(|r: &PolicyRule| (r.ipv6, r.priority));
    Ok(Net {
        interfaces,
        routes,
        rules,
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

// ---- routes ----

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const RTM_F_CLONED: u32 = 0x200;
const RTNH_F_DEAD: u32 = 1;
const RTNH_F_LINKDOWN: u32 = 16;

fn family_routes(nl: &mut Netlink, family: u8) -> Result<Vec<Route>, Error> {
    let mut request = vec![0u8; 12];
    request[0] = family;
    let found = absent(nl.dump("routes", libc::RTM_GETROUTE, &request, |m| {
        (m.kind == libc::RTM_NEWROUTE)
            .then(|| route(m.body, family))
            .flatten()
    }))?;
    let hops = match found.iter().any(|(_, id)| id.is_some()) {
        true => nexthops(nl)?,
        false => HashMap::new(),
    };
    let with_hops = found.into_iter().map(|(mut route, id)| {
        if let Some(id) = id {
            route.nexthops = hops.get(&id).cloned().unwrap_or_default();
            if route.nexthops.is_empty() {
                // A nexthop object that is a blackhole, or that went away meanwhile.
                route.kind = RouteKind::Other;
            }
        }
        route
    });
    Ok(with_hops.collect())
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

/// The route, and the id of a nexthop object that has to be looked up.
fn route(body: &[u8], family: u8) -> Option<(Route, Option<u32>)> {
    // struct rtmsg
    let head = body.get(..12)?;
    let flags = u32_ne(&head[8..12]);
    // Without IPv6 in the kernel a request for it is answered with the IPv4 routes.
    if head[0] != family || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let any = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let mut dst = any;
    let mut nh_id = None;
    let mut only = NextHop {
        oif: 0,
        gateway: None,
        dead: flags & (RTNH_F_DEAD | RTNH_F_LINKDOWN) != 0,
    };
    let mut route = Route {
        table: head[4].into(),
        dst: IpNet::new(any, 0).ok()?,
        kind: kind(head[7]),
        metric: 0,
        tos: head[3],
        prefsrc: None,
        nexthops: Vec::new(),
    };
    for a in Attrs(&body[12..]) {
        match a.kind {
            RTA_DST => dst = a.ip()?,
            RTA_OIF => only.oif = a.u32()?,
            RTA_GATEWAY => only.gateway = a.ip(),
            RTA_VIA => only.gateway = via(a),
            RTA_PRIORITY => route.metric = a.u32()?,
            RTA_PREFSRC => route.prefsrc = a.ip(),
            RTA_TABLE => route.table = a.u32()?,
            RTA_MULTIPATH => route.nexthops = multipath(a.data),
            RTA_NH_ID => nh_id = a.u32(),
            _ => {}
        }
    }
    route.dst = IpNet::new(dst, head[1]).ok()?;
    if head[2] != 0 {
        // A source-specific route: the contract has no room for the source, so it may or may
        // not apply.
        route.kind = RouteKind::Other;
    }
    if route.nexthops.is_empty() && (only.oif != 0 || only.gateway.is_some()) {
        route.nexthops.push(only);
    }
    let leads_nowhere = matches!(
        route.kind,
        RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit | RouteKind::Throw
    );
    if leads_nowhere {
        // IPv6 gives these the loopback interface as a formality.
        route.nexthops.clear();
    }
    let look_up = nh_id.filter(|_| route.nexthops.is_empty() && !leads_nowhere);
    Some((route, look_up))
}

fn kind(rtn: u8) -> RouteKind {
    match rtn {
        libc::RTN_UNICAST => RouteKind::Unicast,
        libc::RTN_LOCAL => RouteKind::Local,
        libc::RTN_BROADCAST => RouteKind::Broadcast,
        libc::RTN_ANYCAST => RouteKind::Anycast,
        libc::RTN_MULTICAST => RouteKind::Multicast,
        libc::RTN_BLACKHOLE => RouteKind::Blackhole,
        libc::RTN_UNREACHABLE => RouteKind::Unreachable,
        libc::RTN_PROHIBIT => RouteKind::Prohibit,
        libc::RTN_THROW => RouteKind::Throw,
        _ => RouteKind::Other,
    }
}

/// struct rtvia: a gateway of the other address family.
fn via(a: Attr<'_>) -> Option<IpAddr> {
    crate::netlink::ip(a.data.get(2..)?)
}

/// A list of struct rtnexthop, each with its attributes.
fn multipath(mut data: &[u8]) -> Vec<NextHop> {
    let mut hops = Vec::new();
    while let Some(head) = data.get(..8) {
        let length = u16_ne(&head[..2]) as usize;
        let Some(attrs) = data.get(8..length) else {
            break;
        };
        let mut hop = NextHop {
            oif: u32_ne(&head[4..8]),
            gateway: None,
            dead: u32::from(head[2]) & (RTNH_F_DEAD | RTNH_F_LINKDOWN) != 0,
        };
        for a in Attrs(attrs) {
            match a.kind {
                RTA_GATEWAY => hop.gateway = a.ip(),
                RTA_VIA => hop.gateway = via(a),
                _ => {}
            }
        }
        hops.push(hop);
        data = data.get(crate::netlink::align(length)..).unwrap_or(&[]);
    }
    hops
}

/// Nexthop objects (`ip nexthop`) by id, groups resolved. Asked for only when a route names one
/// without spelling it out (`net.ipv4.nexthop_compat_mode` = 0).
fn nexthops(nl: &mut Netlink) -> Result<HashMap<u32, Vec<NextHop>>, Error> {
    const NHA_ID: u16 = 1;
    const NHA_GROUP: u16 = 2;
    const NHA_BLACKHOLE: u16 = 4;
    const NHA_OIF: u16 = 5;
    const NHA_GATEWAY: u16 = 6;
    let found = nl.dump("nexthops", RTM_GETNEXTHOP, &[0; 8], |m: Message<'_>| {
        let flags = m.body.get(4..8).map(u32_ne)?;
        let attrs = Attrs(m.body.get(8..)?);
        let id = attrs.find(NHA_ID)?.u32()?;
        let group: Vec<u32> = attrs
            .find(NHA_GROUP)
            .map(|g| g.data.chunks_exact(8).map(u32_ne).collect())
            .unwrap_or_default();
        let hop = NextHop {
            oif: attrs.find(NHA_OIF).and_then(|a| a.u32()).unwrap_or(0),
            gateway: attrs.find(NHA_GATEWAY).and_then(|a| a.ip()),
            dead: flags & (RTNH_F_DEAD | RTNH_F_LINKDOWN) != 0,
        };
        let blackhole = attrs.find(NHA_BLACKHOLE).is_some();
        Some((id, group, (!blackhole).then_some(hop)))
    })?;
    let single: HashMap<u32, NextHop> = found
        .iter()
        .filter(|(_, group, _)| group.is_empty())
        .filter_map(|(id, _, hop)| Some((*id, hop.clone()?)))
        .collect();
    let resolve = |(id, group, _): &(u32, Vec<u32>, Option<NextHop>)| {
        let ids = match group.is_empty() {
            true => std::slice::from_ref(id),
            false => group,
        };
        let hops = ids.iter().filter_map(|i| single.get(i).cloned()).collect();
        (*id, hops)
    };
    Ok(found.iter().map(resolve).collect())
}

// ---- policy rules ----

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FLOW: u16 = 11;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
const FIB_RULE_INVERT: u32 = 2;

fn family_rules(nl: &mut Netlink, family: u8) -> Result<Vec<PolicyRule>, Error> {
    let mut request = vec![0u8; 12];
    request[0] = family;
    absent(nl.dump("policy rules", libc::RTM_GETRULE, &request, |m| {
        (m.kind == libc::RTM_NEWRULE)
            .then(|| rule(m.body, family))
            .flatten()
    }))
}

fn rule(body: &[u8], family: u8) -> Option<PolicyRule> {
    // struct fib_rule_hdr
    let head = body.get(..12)?;
    if head[0] != family {
        return None;
    }
    let (dst_len, src_len) = (head[1], head[2]);
    let mut table: u32 = head[4].into();
    let mut target = None;
    let mut mark = None;
    let mut mask = None;
    let mut l3mdev = false;
    let mut r = PolicyRule {
        ipv6: family == AF_INET6,
        priority: 0,
        invert: u32_ne(&head[8..12]) & FIB_RULE_INVERT != 0,
        src: None,
        dst: None,
        iif: None,
        oif: None,
        fwmark: None,
        protocol: None,
        sport: None,
        dport: None,
        uid: None,
        tos: head[3],
        suppress_prefixlength: None,
        unknown_selector: !Attrs(&body[12..]).intact(),
        action: PolicyAction::Unknown,
    };
    let pair16 = |a: Attr<'_>| {
        let b = a.data.get(..4)?;
        Some((u16_ne(&b[..2]), u16_ne(&b[2..])))
    };
    for a in Attrs(&body[12..]) {
        match a.kind {
            FRA_DST => r.dst = IpNet::new(a.ip()?, dst_len).ok(),
            FRA_SRC => r.src = IpNet::new(a.ip()?, src_len).ok(),
            FRA_IIFNAME => r.iif = Some(a.text()),
            FRA_OIFNAME => r.oif = Some(a.text()),
            FRA_GOTO => target = a.u32(),
            FRA_PRIORITY => r.priority = a.u32()?,
            FRA_FWMARK => mark = a.u32(),
            FRA_FWMASK => mask = a.u32(),
            FRA_SUPPRESS_PREFIXLEN => {
                r.suppress_prefixlength = a.u32().filter(|v| *v != u32::MAX);
            }
            FRA_TABLE => table = a.u32()?,
            FRA_L3MDEV => l3mdev = a.u8() != Some(0),
            FRA_UID_RANGE => {
                r.uid = a.data.get(..8).map(|b| (u32_ne(&b[..4]), u32_ne(&b[4..])));
            }
            FRA_IP_PROTO => r.protocol = a.u8().filter(|p| *p != 0),
            FRA_SPORT_RANGE => r.sport = pair16(a),
            FRA_DPORT_RANGE => r.dport = pair16(a),
            // Realms and the routing daemon's mark do not select packets.
            FRA_FLOW | FRA_PAD | FRA_PROTOCOL => {}
            // Tunnel ids, DSCP, flow labels, port masks, and whatever comes next.
            _ => r.unknown_selector = true,
        }
    }
    if mark.is_some() || mask.is_some_and(|m| m != 0) {
        r.fwmark = Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX)));
    }
    r.action = match head[7] {
        1 if l3mdev => PolicyAction::Unknown,
        1 => PolicyAction::Table { table },
        2 => match target {
            Some(priority) => PolicyAction::Goto { priority },
            None => PolicyAction::Unknown,
        },
        3 => PolicyAction::Nop,
        libc::RTN_BLACKHOLE => PolicyAction::Blackhole,
        libc::RTN_UNREACHABLE => PolicyAction::Unreachable,
        libc::RTN_PROHIBIT => PolicyAction::Prohibit,
        _ => PolicyAction::Unknown,
    };
    Some(r)
}
