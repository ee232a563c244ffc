//! Which way the packets go: targets grouped by interface, next hop and family.

use super::wire::Link;
use kernel::LinkLayer;
use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

/// How long a neighbour may take to answer ARP or neighbour discovery.
const NEIGHBOUR_PATIENCE: Duration = Duration::from_secs(3);

/// Targets that are knocked on at once: this bounds the memory of a scan.
const AT_ONCE: usize = 256;

/// Targets that are reached the same way.
#[derive(Debug, Clone)]
pub struct Group {
    /// Where frames go.
    pub link: Link,
    /// Our address.
    pub source: IpAddr,
    /// True when no router stands between.
    pub on_link: bool,
    /// The targets.
    pub targets: Vec<IpAddr>,
}

/// All targets, by how they are reached.
#[derive(Debug, Default)]
pub struct Plan {
    /// Those that are reached the same way, together.
    pub groups: Vec<Group>,
    /// Addresses of this very host.
    pub own: Vec<IpAddr>,
    /// Those that nothing can be sent to, and why.
    pub lost: Vec<(IpAddr, String)>,
}

/// A target with the way to it.
struct Way {
    target: IpAddr,
    source: IpAddr,
    index: u32,
    next_hop: IpAddr,
    on_link: bool,
}

/// Finds the way to each target. Neighbours are asked for all at once, so that a network with many
/// empty addresses costs no more time than one.
pub fn plan(targets: &[IpAddr]) -> Plan {
    let mut plan = Plan::default();
    let mut ways = Vec::new();
    for &target in targets {
        match way(target) {
            Ok(Some(way)) => ways.push(way),
            Ok(None) => plan.own.push(target),
            Err(why) => plan.lost.push((target, why)),
        }
    }
    let known = link_addresses(&ways);
    for way in ways {
        let Way {
            target,
            source,
            index,
            next_hop,
            on_link,
        } = way;
        let link = match known.get(&(index, next_hop)) {
            Some(Ok(address)) => Link {
                index,
                next_hop: address.clone(),
                ipv6: target.is_ipv6(),
            },
            Some(Err(why)) => {
                plan.lost.push((target, why.clone()));
                continue;
            }
            None => continue,
        };
        let same = plan.groups.iter_mut().find(|group| {
            group.link == link && group.source == source && group.targets.len() < AT_ONCE
        });
        match same {
            Some(group) => group.targets.push(target),
            None => plan.groups.push(Group {
                link,
                source,
                on_link,
                targets: vec![target],
            }),
        }
    }
    plan
}

/// The way to a target; `None` when it is this host itself.
fn way(target: IpAddr) -> Result<Option<Way>, String> {
    let path = kernel::path_to(target).map_err(|error| error.to_string())?;
    if path.local {
        return Ok(None);
    }
    let source = path
        .source
        .or_else(|| crate::connect::source_towards(target))
        .ok_or("no source address")?;
    Ok(Some(Way {
        target,
        source,
        index: path.oif,
        next_hop: path.next_hop,
        on_link: path.on_link,
    }))
}

/// Link addresses of all next hops, by interface and address.
fn link_addresses(ways: &[Way]) -> HashMap<(u32, IpAddr), Result<Vec<u8>, String>> {
    let mut known = HashMap::new();
    let mut wanted: HashMap<(u32, IpAddr), IpAddr> = HashMap::new();
    for way in ways {
        let key = (way.index, way.next_hop);
        match kernel::link_layer(way.index) {
            Ok(LinkLayer::Ethernet) => {
                wanted.entry(key).or_insert(way.target);
            }
            Ok(_) => {
                known.insert(key, Ok(Vec::new()));
            }
            Err(error) => {
                known.insert(key, Err(error.to_string()));
            }
        }
    }
    let end = Instant::now() + NEIGHBOUR_PATIENCE;
    let mut ask = true;
    while !wanted.is_empty() {
        wanted.retain(|(index, next_hop), target| {
            match kernel::neighbour(*index, *next_hop) {
                Ok(Some(address)) => known.insert((*index, *next_hop), Ok(address)),
                Err(error) => known.insert((*index, *next_hop), Err(error.to_string())),
                Ok(None) => {
                    if ask {
                        ask_for(*target);
                    }
                    return true;
                }
            };
            false
        });
        if Instant::now() >= end {
            break;
        }
        // Asked twice a second: the kernel repeats its own question once a second.
        std::thread::sleep(Duration::from_millis(20));
        ask = end.saturating_duration_since(Instant::now()).as_millis() % 500 < 25;
    }
    for (key, _) in wanted {
        let why = format!("{} does not answer on its link", key.1);
        known.insert(key, Err(why));
    }
    known
}

/// Makes the kernel resolve the neighbour: one empty datagram to the discard port.
fn ask_for(target: IpAddr) {
    let any: IpAddr = match target {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    if let Ok(socket) = UdpSocket::bind((any, 0)) {
        // Only its side effect counts.
        let _ = socket.send_to(&[], (target, 9));
    }
}
