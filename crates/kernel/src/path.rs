//! The way that the kernel would send a packet: route, source address, and the kind of link.

use crate::Error;
use crate::netlink::{Attrs, Netlink, put, u16_ne};
use nix::sys::socket::SockProtocol;
use std::net::IpAddr;

const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
const RTN_LOCAL: u8 = 2;

/// The way to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Outgoing interface index.
    pub oif: u32,
    /// The next hop: the gateway, or the destination itself when on-link.
    pub next_hop: IpAddr,
    /// True when no router stands before the destination.
    pub on_link: bool,
    /// True when the destination is an address of this host.
    pub local: bool,
    /// The source address that the kernel would choose.
    pub source: Option<IpAddr>,
}

/// How frames are addressed on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLayer {
    /// Ethernet: a neighbour's 6-byte address is needed.
    Ethernet,
    /// Loopback: Ethernet framing with no neighbours.
    Loopback,
    /// No link-layer address (tun, WireGuard, PPP).
    None,
}

/// Asks the kernel how it would route a packet of this host to `dst` (RTM_GETROUTE).
///
/// # Errors
/// No route, or the kernel refused.
pub fn path_to(dst: IpAddr) -> Result<Path, Error> {
    let what = format!("route to {dst}");
    let mut nl = Netlink::open(SockProtocol::NetlinkRoute, &what)?;
    let (family, bytes) = octets(dst);
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
    let mut request = vec![
        family,
        (bytes.len() * 8) as u8,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    put(&mut request, RTA_DST, &bytes);
    let path = nl.get(&what, RTM_GETROUTE, &request, |message| {
        let kind = *message.body.get(7)?;
        let attrs = Attrs(message.body.get(12..)?);
        let gateway = attrs.find(RTA_GATEWAY).and_then(|a| a.ip()).or_else(|| {
            // RTA_VIA: a family, then the address of a gateway of the other family.
            attrs
                .find(RTA_VIA)
                .and_then(|a| a.data.get(2..).and_then(crate::netlink::ip))
        });
        Some(Path {
            oif: attrs.find(RTA_OIF)?.u32()?,
            next_hop: gateway.unwrap_or(dst),
            on_link: gateway.is_none(),
            local: kind == RTN_LOCAL,
            source: attrs.find(RTA_PREFSRC).and_then(|a| a.ip()),
        })
    })?;
    path.ok_or_else(|| Error::malformed(&what, "no interface in the answer"))
}

/// How frames are addressed on interface `index`.
///
/// # Errors
/// No such interface, or the kernel refused.
pub fn link_layer(index: u32) -> Result<LinkLayer, Error> {
    let what = format!("interface {index}");
    let mut nl = Netlink::open(SockProtocol::NetlinkRoute, &what)?;
    // struct ifinfomsg: family, pad, type, index, flags, change.
    let mut request = vec![0u8; 16];
    request[4..8].copy_from_slice(&index.to_ne_bytes());
    let kind = nl.get(&what, RTM_GETLINK, &request, |message| {
        message.body.get(2..4).map(u16_ne)
    })?;
    match kind {
        Some(ARPHRD_ETHER) => Ok(LinkLayer::Ethernet),
        Some(ARPHRD_LOOPBACK) => Ok(LinkLayer::Loopback),
        Some(_) => Ok(LinkLayer::None),
        None => Err(Error::malformed(&what, "no link in the answer")),
    }
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_oneself_is_loopback() {
        let path = path_to("127.0.0.1".parse().unwrap()).unwrap();
        assert!(path.local && path.on_link);
        assert_eq!(path.source, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(link_layer(path.oif).unwrap(), LinkLayer::Loopback);
        assert!(link_layer(u32::MAX >> 1).is_err());
    }
}
