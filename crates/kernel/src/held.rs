//! The connections of one process, told by its sockets themselves.
//!
//! Whoever asks the kernel for connections makes it walk its whole table of them, which has half a
//! million rows on a machine with 24 GiB of memory, however few are taken. A socket that is borrowed
//! from its process (pidfd_getfd(2)) tells both its ends at once.

use crate::process::{self, Folder, Process};
use crate::sockets::{Connection, TCP_ESTABLISHED};
use crate::{Error, sockopt};
use nix::errno::Errno;
use rustix::fs::{CWD, fstat};
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, ipproto};
use rustix::net::{getpeername, getsockname, socket_with, sockopt as known};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Options that came with Linux 5.14 and 5.0 (include/uapi/asm-generic/socket.h).
const SO_NETNS_COOKIE: libc::c_int = 71;
const SO_BINDTOIFINDEX: libc::c_int = 62;

/// The established TCP connections of a process, of the calling thread's network namespace only;
/// sorted. Those that it closes meanwhile are left out, and all when it has ended.
///
/// # Errors
/// Whenever one may be missing: without the right to trace the process ([`Error::Permission`];
/// CAP_SYS_PTRACE gives it), where it has sockets of MPTCP, whose connections only the kernel's table
/// tells, and where the kernel is older than 5.14 and cannot tell whose namespace a socket is in.
/// [`connections`](crate::connections()) can be asked then.
pub fn connections_of(process: &Process) -> Result<Vec<Connection>, Error> {
    let pid = process.pid;
    let err = |errno: rustix::io::Errno| {
        let what = format!("sockets of process {pid}");
        match Errno::from_raw(errno.raw_os_error()) {
            Errno::EPERM | Errno::EACCES => Error::Permission {
                what,
                needs: "CAP_SYS_PTRACE",
            },
            errno => Error::kernel(&what, errno),
        }
    };
    let gone = |errno| matches!(errno, rustix::io::Errno::SRCH | rustix::io::Errno::NOENT);
    let flags = SocketFlags::CLOEXEC;
    let own = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).map_err(err)?;
    let own = namespace(&own).map_err(err)?;
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(Vec::new());
    };
    let holder = match pidfd_open(number, PidfdFlags::empty()) {
        Err(errno) if gone(errno) => return Ok(Vec::new()),
        holder => holder.map_err(err)?,
    };
    let folder = match Folder::open(CWD, format!("/proc/{pid}").as_str()) {
        Err(errno) if gone(errno) => return Ok(Vec::new()),
        folder => folder.map_err(err)?,
    };
    // The number may be another's since the process was seen. It is not, if it is the same now:
    // the descriptor came before this look.
    match process::started(&folder) {
        Some(started) if started == process.started => {}
        Some(_) => return Ok(Vec::new()),
        None => return Err(err(rustix::io::Errno::IO)),
    }
    let mut found = Vec::new();
    let mut refused = None;
    let walked = process::each_socket(&folder, |fd| {
        match pidfd_getfd(&holder, fd, PidfdGetfdFlags::empty()) {
            Ok(socket) => match connection(&socket, own) {
                Ok(connection) => found.extend(connection),
                Err(errno) => refused = Some(errno),
            },
            // Closed meanwhile, or the process has ended.
            Err(rustix::io::Errno::BADF) => {}
            Err(errno) if gone(errno) => {}
            Err(errno) => refused = Some(errno),
        }
    });
    match (walked, refused) {
        (_, Some(errno)) => return Err(err(errno)),
        (Err(errno), None) if !gone(errno) => return Err(err(errno)),
        _ => {}
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// A number for the network namespace that a socket is in (SO_NETNS_COOKIE).
fn namespace(socket: &OwnedFd) -> Result<[u8; 8], rustix::io::Errno> {
    sockopt::bytes(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE)
}

/// Both ends, if it is an established TCP connection of this namespace.
fn connection(socket: &OwnedFd, own: [u8; 8]) -> Result<Option<Connection>, rustix::io::Errno> {
    let family = known::socket_domain(socket)?;
    let inet = matches!(family, AddressFamily::INET | AddressFamily::INET6);
    if !inet || known::socket_type(socket)? != SocketType::STREAM {
        return Ok(None);
    }
    if namespace(socket)? != own {
        return Ok(None);
    }
    match known::socket_protocol(socket)? {
        Some(ipproto::TCP) => {}
        Some(ipproto::MPTCP) => return Err(rustix::io::Errno::OPNOTSUPP),
        // SCTP has no place in the kernel's table of TCP.
        _ => return Ok(None),
    }
    // The first byte of struct tcp_info is the state.
    let state: [u8; 1] = sockopt::bytes(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    if state != [TCP_ESTABLISHED as u8] {
        return Ok(None);
    }
    let peer = match getpeername(socket) {
        // It has just ended.
        Err(rustix::io::Errno::NOTCONN) => None,
        peer => peer?,
    };
    let (Some(local), Some(peer)) = (ip(getsockname(socket)?), peer.and_then(ip)) else {
        return Ok(None);
    };
    let device = sockopt::bytes(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX)?;
    let device = u32::from_ne_bytes(device);
    let about = fstat(socket)?;
    Ok(Some(Connection {
        local: local.ip().to_canonical(),
        local_port: local.port(),
        peer: peer.ip().to_canonical(),
        peer_port: peer.port(),
        device: (device != 0).then_some(device),
        uid: about.st_uid,
        inode: about.st_ino,
    }))
}

fn ip(address: SocketAddrAny) -> Option<SocketAddr> {
    address.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::process::{Command, Stdio};

    #[test]
    fn what_a_process_holds_is_as_the_kernels_table_tells_it() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _server = listener.accept().unwrap();
        let _no_connection = UdpSocket::bind("127.0.0.1:0").unwrap();
        let me = crate::process(std::process::id()).unwrap();
        let of_port = |all: Vec<Connection>| -> Vec<Connection> {
            all.into_iter()
                .filter(|c| c.local_port == port || c.peer_port == port)
                .collect()
        };
        let told = of_port(connections_of(&me).unwrap());
        assert_eq!(told.len(), 2);
        assert_eq!(told, of_port(crate::connections().unwrap()));
    }

    /// Its connections are in the kernel's table with this very inode, but the socket itself is no TCP.
    #[test]
    fn where_mptcp_is_spoken_somebody_else_is_to_be_asked() {
        let mptcp = Some(ipproto::MPTCP);
        let flags = SocketFlags::CLOEXEC;
        let Ok(mptcp) = socket_with(AddressFamily::INET, SocketType::STREAM, flags, mptcp) else {
            // A kernel without it has none of its connections.
            return;
        };
        let own = namespace(&mptcp).unwrap();
        assert!(connection(&mptcp, own).is_err());
    }

    #[test]
    fn another_process_is_asked_and_one_that_took_its_number_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mine = client.local_addr().unwrap();
        // `cat` holds the connection as its input until this end closes it.
        let (server, _) = listener.accept().unwrap();
        let mut other = Command::new("cat")
            .stdin(Stdio::from(OwnedFd::from(server)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = crate::process(other.id()).unwrap();
        let told = connections_of(&process).unwrap();
        let stranger = connections_of(&Process {
            started: process.started + 1,
            ..process.clone()
        });
        drop(client);
        other.wait().unwrap();
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].peer, told[0].peer_port), (mine.ip(), mine.port()));
        assert_eq!(process.sockets, Some(vec![told[0].inode]));
        assert_eq!(stranger.unwrap(), []);
        assert_eq!(connections_of(&process).unwrap(), [], "it has ended");
    }
}
