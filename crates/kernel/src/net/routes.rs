//! Routes of every table, with their nexthop objects (rtnetlink(7), ip-nexthop(8)).

use super::*;

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

pub(super) fn family_routes(nl: &mut Netlink, family: u8) -> Result<Vec<Route>, Error> {
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
