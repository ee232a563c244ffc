//! Which way the packets go: targets grouped by interface, next hop and family.

use super::wire::Link;
use crate::ScanError;
use kernel::LinkLayer;
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

/// Groups the targets; those that are addresses of this host come back apart.
pub fn groups(targets: &[IpAddr]) -> Result<(Vec<Group>, Vec<IpAddr>), ScanError> {
    let mut groups: Vec<(IpAddr, Group)> = Vec::new();
    let mut own = Vec::new();
    for &target in targets {
        let path = kernel::path_to(target).map_err(|error| no_way(target, &error))?;
        if path.local {
            own.push(target);
            continue;
        }
        let Some(source) = path
            .source
            .or_else(|| crate::connect::source_towards(target))
        else {
            return Err(ScanError::NoRoute {
                target,
                why: "no source address".into(),
            });
        };
        let known = groups.iter_mut().find(|(next_hop, group)| {
            *next_hop == path.next_hop
                && group.link.index == path.oif
                && group.source == source
                && group.targets.len() < AT_ONCE
        });
        if let Some((_, group)) = known {
            group.targets.push(target);
            continue;
        }
        let next_hop = link_address(target, path.oif, path.next_hop)?;
        groups.push((
            path.next_hop,
            Group {
                link: Link {
                    index: path.oif,
                    next_hop,
                    ipv6: target.is_ipv6(),
                },
                source,
                on_link: path.on_link,
                targets: vec![target],
            },
        ));
    }
    Ok((groups.into_iter().map(|(_, group)| group).collect(), own))
}

fn link_address(target: IpAddr, oif: u32, next_hop: IpAddr) -> Result<Vec<u8>, ScanError> {
    let layer = kernel::link_layer(oif).map_err(|error| no_way(target, &error))?;
    if layer != LinkLayer::Ethernet {
        return Ok(Vec::new());
    }
    let end = Instant::now() + NEIGHBOUR_PATIENCE;
    loop {
        let known = kernel::neighbour(oif, next_hop).map_err(|error| no_way(target, &error))?;
        if let Some(address) = known {
            return Ok(address);
        }
        if Instant::now() >= end {
            return Err(ScanError::NoRoute {
                target,
                why: format!("{next_hop} does not answer on its link"),
            });
        }
        ask_for(target);
        std::thread::sleep(Duration::from_millis(20));
    }
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

fn no_way(target: IpAddr, error: &kernel::Error) -> ScanError {
    ScanError::NoRoute {
        target,
        why: error.to_string(),
    }
}
