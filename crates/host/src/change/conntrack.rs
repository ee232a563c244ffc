//! Connections that outlive the rule that let them in.
//!
//! A rule that forbids new connections leaves those that are established alone: their packets pass
//! as such. Deleting a connection's conntrack entry makes its next packet count as new, so that the
//! rules decide again: those still allowed go on, the others end. Done over netlink, because the
//! `conntrack` tool is on few machines (linux/netfilter/nfnetlink_conntrack.h).

use super::Error;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
/// Nested and byte-order flags of an attribute's type.
const TYPE_MASK: u16 = 0x3fff;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// A busy flow that is still admitted is tracked anew at once, now and then in the same place of the kernel's
/// memory and so under the same id.
const ROUNDS: u32 = 5;

/// One connection as the kernel tracks it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    /// AF_INET or AF_INET6.
    family: u8,
    to: IpAddr,
    /// [`TCP`] or [`UDP`].
    proto: u8,
    port: u16,
    /// The attributes that name it: original tuple, id, zone. Given back as they came.
    name: Vec<u8>,
}

pub(super) fn check(tcp: &[u16], udp: &[u16]) -> Result<(), Error> {
    if tcp.contains(&0) || udp.contains(&0) {
        return Err(Error::refused("port 0", "no connection has it"));
    }
    Ok(())
}

/// Deletes the entries of connections to one of this host's own addresses at one of these ports.
pub(super) fn cut(tcp: &[u16], udp: &[u16]) -> Result<(), Error> {
    let doing = |source: io::Error| Error::io("cut the connections to closed ports", source);
    let socket = match open() {
        Ok(socket) => socket,
        // Nothing is tracked: then there is nothing that passes as established either.
        Err(error) if error.raw_os_error() == Some(nix::libc::EPROTONOSUPPORT) => return Ok(()),
        Err(error) => return Err(doing(error)),
    };
    let own = own_addresses().map_err(doing)?;
    let hit = |entry: &Entry| {
        let ports = if entry.proto == TCP { tcp } else { udp };
        ports.contains(&entry.port) && own.contains(&entry.to)
    };
    let mut left: Vec<Entry> = dump(&socket)
        .map_err(doing)?
        .into_iter()
        .filter(hit)
        .collect();
    for _ in 0..ROUNDS {
        for entry in &left {
            delete(&socket, entry).map_err(doing)?;
        }
        if left.is_empty() {
            return Ok(());
        }
        // The name holds the entry's id: one that was made anew is another.
        let after: HashSet<Entry> = dump(&socket).map_err(doing)?.into_iter().collect();
        left.retain(|entry| after.contains(entry));
    }
    match left.first() {
        None => Ok(()),
        Some(entry) => Err(Error::read_back(
            format!("connection to {} port {}", entry.to, entry.port),
            "the kernel still tracks it",
        )),
    }
}

fn own_addresses() -> io::Result<HashSet<IpAddr>> {
    let mut own = HashSet::new();
    for interface in nix::ifaddrs::getifaddrs().map_err(io::Error::from)? {
        let Some(address) = interface.address else {
            continue;
        };
        if let Some(four) = address.as_sockaddr_in() {
            own.insert(IpAddr::V4(four.ip()));
        } else if let Some(six) = address.as_sockaddr_in6() {
            own.insert(IpAddr::V6(six.ip()));
        }
    }
    Ok(own)
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .map_err(io::Error::from)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0)).map_err(io::Error::from)?;
    Ok(socket)
}

fn request(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(20 + attributes.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&1_u32.to_ne_bytes());
    message.extend_from_slice(&0_u32.to_ne_bytes());
    // nfgenmsg: family, version 0, resource id 0.
    message.extend_from_slice(&[family, 0, 0, 0]);
    message.extend_from_slice(attributes);
    message
}

fn send(socket: &OwnedFd, message: &[u8]) -> io::Result<()> {
    sendto(
        socket.as_raw_fd(),
        message,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )
    .map(drop)
    .map_err(io::Error::from)
}

/// Receives messages until `each` says that it was the last.
fn receive(
    socket: &OwnedFd,
    mut each: impl FnMut(u16, &[u8]) -> io::Result<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(nix::Error::EINTR) => continue,
            result => result.map_err(io::Error::from)?,
        };
        let mut rest = &buffer[..length];
        while let Some((kind, body, next)) = message(rest) {
            if each(kind, body)? {
                return Ok(());
            }
            rest = next;
        }
    }
}

/// The first message: type, body, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, next))
}

fn failure(body: &[u8]) -> io::Result<()> {
    let code = body
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(-nix::libc::EIO, i32::from_ne_bytes);
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

fn dump(socket: &OwnedFd) -> io::Result<Vec<Entry>> {
    send(socket, &request(GET, REQUEST | DUMP, 0, &[]))?;
    let mut entries = vec![];
    receive(socket, |kind, body| match kind {
        NLMSG_DONE => Ok(true),
        NLMSG_ERROR => failure(body).map(|()| true),
        _ => {
            entries.extend(entry(body));
            Ok(false)
        }
    })?;
    Ok(entries)
}

fn delete(socket: &OwnedFd, entry: &Entry) -> io::Result<()> {
    send(
        socket,
        &request(DELETE, REQUEST | ACK, entry.family, &entry.name),
    )?;
    receive(socket, |kind, body| match kind {
        NLMSG_ERROR => match failure(body) {
            // It ended by itself meanwhile.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => Ok(true),
            result => result.map(|()| true),
        },
        _ => Ok(false),
    })
}

/// Type, whole attribute (header and padding included) and payload of each attribute.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8], &[u8])> {
    let mut found = vec![];
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & TYPE_MASK;
        let (Some(payload), padded) = (bytes.get(4..length), length.next_multiple_of(4)) else {
            break;
        };
        let end = padded.min(bytes.len());
        found.push((kind, &bytes[..end], payload));
        bytes = &bytes[end..];
    }
    found
}

fn nested<'a>(list: &[(u16, &'a [u8], &'a [u8])], kind: u16) -> Option<&'a [u8]> {
    list.iter()
        .find(|(found, _, _)| *found == kind)
        .map(|(_, _, payload)| *payload)
}

fn entry(body: &[u8]) -> Option<Entry> {
    let family = *body.first()?;
    let all = attributes(body.get(4..)?);
    let tuple = attributes(nested(&all, CTA_TUPLE_ORIG)?);
    let ip = attributes(nested(&tuple, 1)?);
    let proto = attributes(nested(&tuple, 2)?);
    let port = u16::from_be_bytes(nested(&proto, 3)?.try_into().ok()?);
    let proto = *nested(&proto, 1)?.first()?;
    if !matches!(proto, TCP | UDP) {
        return None;
    }
    let to = match (nested(&ip, 2), nested(&ip, 4)) {
        (Some(four), _) => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(four).ok()?)),
        (_, Some(six)) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(six).ok()?)),
        _ => return None,
    };
    let name = all
        .iter()
        .filter(|(kind, _, _)| matches!(*kind, CTA_TUPLE_ORIG | CTA_ID | CTA_ZONE))
        .flat_map(|(_, whole, _)| whole.iter().copied())
        .collect();
    Some(Entry {
        family,
        to,
        proto,
        port,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(payload.len() + 4)
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tracked(proto: u8, port: u16) -> Vec<u8> {
        let ip = [
            attribute(1, &[203, 0, 113, 9]),
            attribute(2, &[192, 0, 2, 1]),
        ]
        .concat();
        let ports = [
            attribute(1, &[proto]),
            attribute(2, &40000_u16.to_be_bytes()),
            attribute(3, &port.to_be_bytes()),
        ]
        .concat();
        let tuple = [attribute(0x8001, &ip), attribute(0x8002, &ports)].concat();
        [
            vec![2, 0, 0, 0],
            attribute(0x8001, &tuple),
            attribute(0x8002, &tuple),
            attribute(12, &[1, 2, 3, 4]),
        ]
        .concat()
    }

    #[test]
    fn a_connection_is_read() {
        let entry = entry(&tracked(6, 11434)).unwrap();
        assert_eq!(
            (entry.to, entry.port),
            ("192.0.2.1".parse().unwrap(), 11434)
        );
        // Tuple and id go back, the reply tuple does not.
        assert!(entry.name.ends_with(&attribute(12, &[1, 2, 3, 4])));
        assert_eq!(
            entry.name.len(),
            tracked(6, 11434).len() - 4 - (tracked(6, 1).len() - 12) / 2
        );
    }

    #[test]
    fn datagrams_count_as_connections() {
        let entry = entry(&tracked(UDP, 53)).unwrap();
        assert_eq!((entry.proto, entry.port), (UDP, 53));
    }

    #[test]
    fn others_are_not_touched() {
        assert_eq!(entry(&tracked(132, 11434)), None, "SCTP");
        for cut in 0..tracked(6, 11434).len() {
            // Cut anywhere: no panic.
            let _ = entry(&tracked(6, 11434)[..cut]);
        }
        assert!(check(&[0], &[]).is_err() && check(&[], &[0]).is_err());
    }

    #[test]
    fn messages_never_read_beyond_their_end() {
        assert!(message(&[]).is_none());
        assert!(message(&[255; 16]).is_none());
        let good = request(GET, REQUEST, 0, &[]);
        let (kind, body, rest) = message(&good).unwrap();
        assert_eq!((kind, body.len(), rest.len()), (GET, 4, 0));
    }
}
