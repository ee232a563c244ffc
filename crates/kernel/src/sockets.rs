//! Sockets over sock_diag (include/uapi/linux/inet_diag.h).
//!
//! Asking sock_diag makes the kernel load `tcp_diag` and `udp_diag` where they are modules (as `ss`
//! does). Nothing is to be loaded by looking, so that /proc/net is read there instead.

use crate::Error;
use crate::filter::present;
use crate::netlink::{Attrs, Message, Netlink, u16_be, u32_ne};
use crate::procnet;
use nix::sys::socket::SockProtocol;
use reach::Proto;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::OnceLock;

const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_CGROUP_ID: u16 = 21;
pub(crate) const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// A socket that strangers can reach: TCP in LISTEN, or UDP bound and not connected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Socket {
    /// TCP or UDP.
    pub proto: Proto,
    /// The bound address; `0.0.0.0` or `::` for all.
    pub address: IpAddr,
    /// The bound port, 1 to 65535.
    pub port: u16,
    /// IPV6_V6ONLY; false for IPv4 sockets. [`Socket::families`] says what it means.
    pub v6only: bool,
    /// Index of the interface that the socket is bound to (SO_BINDTODEVICE, or a VRF).
    pub device: Option<u32>,
    /// Effective user id of whoever made the socket.
    pub uid: u32,
    /// Inode in sockfs; 0 when no process holds it. The key of [`crate::Processes::owners`].
    pub inode: u64,
    /// Inode of the socket's cgroup v2 folder, where the kernel tells it.
    pub cgroup: Option<u64>,
}

impl Socket {
    /// Which families reach this socket: (IPv4, IPv6). A `::` socket without IPV6_V6ONLY takes
    /// both; one bound to `::ffff:a.b.c.d` takes IPv4 only.
    pub fn families(&self) -> (bool, bool) {
        match self.address {
            IpAddr::V4(_) => (true, false),
            IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => (true, false),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => (!self.v6only, true),
            IpAddr::V6(_) => (false, true),
        }
    }
}

/// An established TCP connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Connection {
    /// This end. An IPv4 client of a `::` socket is given as IPv4.
    pub local: IpAddr,
    /// Port of this end.
    pub local_port: u16,
    /// The other end.
    pub peer: IpAddr,
    /// Port of the other end.
    pub peer_port: u16,
    /// Index of the interface that the socket is bound to.
    pub device: Option<u32>,
    /// Effective user id of whoever made the socket.
    pub uid: u32,
    /// Inode in sockfs; 0 when no process holds it.
    pub inode: u64,
}

/// All TCP listeners and unconnected bound UDP sockets, IPv4 and IPv6, of the calling thread's
/// network namespace; sorted. Needs no privilege.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn sockets() -> Result<Vec<Socket>, Error> {
    sockets_from(Source::usual())
}

pub(crate) fn sockets_from(source: Source) -> Result<Vec<Socket>, Error> {
    let wanted = [(Proto::Tcp, 1 << TCP_LISTEN), (Proto::Udp, 1 << TCP_CLOSE)];
    let mut out: Vec<_> = source
        .ask(&wanted)?
        .into_iter()
        // A UDP socket that never bound has no port and receives nothing.
        .filter(|(_, e)| e.local_port != 0)
        .map(|(proto, e)| Socket {
            proto,
            address: e.local,
            port: e.local_port,
            v6only: e.v6only,
            device: e.device,
            uid: e.uid,
            inode: e.inode,
            cgroup: e.cgroup,
        })
        .collect();
    out.sort();
    Ok(out)
}

/// All established TCP connections of the calling thread's network namespace; sorted.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn connections() -> Result<Vec<Connection>, Error> {
    connections_from(Source::usual())
}

pub(crate) fn connections_from(source: Source) -> Result<Vec<Connection>, Error> {
    let mut out: Vec<_> = source
        .ask(&[(Proto::Tcp, 1 << TCP_ESTABLISHED)])?
        .into_iter()
        .map(|(_, e)| Connection {
            local: e.local.to_canonical(),
            local_port: e.local_port,
            peer: e.peer.to_canonical(),
            peer_port: e.peer_port,
            device: e.device,
            uid: e.uid,
            inode: e.inode,
        })
        .collect();
    out.sort();
    Ok(out)
}

/// What is known of a socket, whoever told.
pub(crate) struct Entry {
    pub local: IpAddr,
    pub local_port: u16,
    pub peer: IpAddr,
    pub peer_port: u16,
    pub device: Option<u32>,
    pub uid: u32,
    pub inode: u64,
    pub v6only: bool,
    pub cgroup: Option<u64>,
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// sock_diag.
    Diag,
    /// /proc/net.
    Proc,
}

impl Source {
    /// sock_diag where it is there already.
    fn usual() -> Source {
        // What is there once stays, and a host's containers are all asked one after the other.
        static THERE: OnceLock<()> = OnceLock::new();
        let modules = ["inet_diag", "tcp_diag", "udp_diag"];
        if THERE.get().is_none() && !modules.into_iter().all(present) {
            return Source::Proc;
        }
        THERE.get_or_init(|| ());
        Source::Diag
    }

    /// Sockets of each protocol that are in one of these states (a bit for each).
    fn ask(self, wanted: &[(Proto, u32)]) -> Result<Vec<(Proto, Entry)>, Error> {
        let mut diag = match self {
            Source::Diag => Some(Netlink::open(SockProtocol::NetlinkSockDiag, "sockets")?),
            Source::Proc => None,
        };
        let mut out = Vec::new();
        for (proto, states) in wanted {
            let found = match &mut diag {
                Some(nl) => by_diag(nl, *proto, *states)?,
                None => procnet::ask(*proto, *states)?,
            };
            out.extend(found.into_iter().map(|entry| (*proto, entry)));
        }
        Ok(out)
    }
}

fn by_diag(nl: &mut Netlink, proto: Proto, states: u32) -> Result<Vec<Entry>, Error> {
    if proto == Proto::Tcp {
        // Both families in one go: the kernel walks its whole table of connections for each question, which on a
        // machine with much memory costs more than all else, and the newer request takes one family at a time.
        // struct inet_diag_req
        let mut request = [0u8; 60];
        request[52..56].copy_from_slice(&states.to_ne_bytes());
        return nl.dump("sockets", TCPDIAG_GETSOCK, &request, entry);
    }
    let mut out = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // struct inet_diag_req_v2
        let mut request = vec![0u8; 56];
        request[0] = family as u8;
        request[1] = proto.number();
        request[4..8].copy_from_slice(&states.to_ne_bytes());
        out.extend(nl.dump("sockets", SOCK_DIAG_BY_FAMILY, &request, entry)?);
    }
    Ok(out)
}

/// struct inet_diag_msg and its attributes.
fn entry(m: Message<'_>) -> Option<Entry> {
    let b = m.body.get(..72)?;
    let ip = |at: usize| match i32::from(b[0]) {
        libc::AF_INET => crate::netlink::ip(&b[at..at + 4]),
        _ => crate::netlink::ip(&b[at..at + 16]),
    };
    let mut e = Entry {
        local_port: u16_be(&b[4..6]),
        peer_port: u16_be(&b[6..8]),
        local: ip(8)?,
        peer: ip(24)?,
        device: Some(u32_ne(&b[40..44])).filter(|i| *i != 0),
        uid: u32_ne(&b[64..68]),
        inode: u32_ne(&b[68..72]).into(),
        v6only: false,
        cgroup: None,
    };
    for a in Attrs(&m.body[72..]) {
        match a.kind {
            INET_DIAG_SKV6ONLY => e.v6only = a.u8() == Some(1),
            INET_DIAG_CGROUP_ID => {
                e.cgroup = a
                    .data
                    .get(..8)
                    .and_then(|b| b.try_into().ok())
                    .map(u64::from_ne_bytes);
            }
            _ => {}
        }
    }
    Some(e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    fn find(proto: Proto, port: u16) -> Vec<Socket> {
        let all = sockets().unwrap();
        all.into_iter()
            .filter(|s| s.proto == proto && s.port == port)
            .collect()
    }

    #[test]
    fn a_listener_is_seen_with_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = find(Proto::Tcp, port);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].address, "127.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(found[0].families(), (true, false));
        let who = crate::processes().unwrap();
        let owners = who.owners(found[0].inode);
        assert!(owners.iter().any(|p| p.pid == std::process::id()));
    }

    #[test]
    fn an_unspecified_ipv6_listener_takes_both_families() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let found = find(Proto::Tcp, listener.local_addr().unwrap().port());
        assert_eq!(found[0].families(), (true, true));
    }

    #[test]
    fn a_connected_udp_socket_is_no_endpoint() {
        let open = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = open.local_addr().unwrap().port();
        assert_eq!(find(Proto::Udp, port).len(), 1);
        open.connect("127.0.0.1:9").unwrap();
        assert_eq!(find(Proto::Udp, port), []);
    }

    #[test]
    fn a_connection_shows_both_ends() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let all = connections().unwrap();
        let mine = client.local_addr().unwrap();
        let of_server: Vec<_> = all
            .iter()
            .filter(|c| c.local_port == port && c.peer_port == mine.port())
            .collect();
        assert_eq!(of_server.len(), 1);
        assert_eq!(of_server[0].peer, mine.ip());
    }
}
