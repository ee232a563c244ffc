//! One connection attempt: how it is begun, and what its end says about the port.

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, connect, setsockopt,
    socket, sockopt,
};
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

/// Descriptors left for the rest of the process.
const SPARE_DESCRIPTORS: u64 = 64;

/// What a port said.
pub(super) enum Answer {
    Open,
    Closed,
    Rejected(&'static str),
    Silent,
    LocalFailure,
}

/// Begins a connection; the socket when an answer is still to come.
pub(super) fn dial(address: IpAddr, port: u16) -> Result<OwnedFd, Answer> {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None).map_err(classify)?;
    let reset_on_close = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&socket, sockopt::Linger, &reset_on_close).map_err(classify)?;
    let started = match address {
        IpAddr::V4(address) => begin(&socket, &SockaddrIn::from(SocketAddrV4::new(address, port))),
        IpAddr::V6(address) => begin(
            &socket,
            &SockaddrIn6::from(SocketAddrV6::new(address, port, 0, 0)),
        ),
    };
    match started {
        Ok(()) => Err(Answer::Open),
        Err(Errno::EINPROGRESS) => Ok(socket),
        Err(errno) => Err(classify(errno)),
    }
}

fn begin(socket: &OwnedFd, address: &dyn SockaddrLike) -> Result<(), Errno> {
    connect(socket.as_raw_fd(), address)
}

/// What an error of connect() says about the port (RFC 1122 4.2.3.9, tcp_v4_err in Linux).
pub(super) fn classify(errno: Errno) -> Answer {
    match errno {
        Errno::ECONNREFUSED | Errno::ECONNRESET => Answer::Closed,
        Errno::EHOSTUNREACH => Answer::Rejected("icmp-host-unreachable"),
        Errno::ENETUNREACH => Answer::Rejected("icmp-net-unreachable"),
        // EPERM is this machine's own firewall, so no verdict; EACCES is ICMPv6 type 1 code 1.
        Errno::EACCES => Answer::Rejected("icmp-admin-prohibited"),
        Errno::ENOPROTOOPT | Errno::EPROTO => Answer::Rejected("icmp-protocol-unreachable"),
        Errno::ETIMEDOUT => Answer::Silent,
        _ => Answer::LocalFailure,
    }
}

/// How many sockets may be open at once, after raising the soft limit to the hard one.
pub(super) fn descriptor_budget() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    };
    usize::try_from(limit.saturating_sub(SPARE_DESCRIPTORS).max(16)).unwrap_or(1024)
}
