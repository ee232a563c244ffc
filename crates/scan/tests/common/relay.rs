//! A cable that delays, loses, reorders and doubles frames: the kernels that tests run on often
//! lack netem.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab::Host;

/// What the cable does to frames, in each direction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cable {
    /// Delay of every frame.
    pub delay: Duration,
    /// Frames lost, in a thousand.
    pub lost: u64,
    /// Frames held back for up to 5 ms more, so that later ones overtake them, in a thousand.
    pub reordered: u64,
    /// Frames that arrive twice, in a thousand.
    pub doubled: u64,
}

/// A running cable between two interfaces of one host. It ends when dropped.
pub struct Relay {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Frames that came out at the far end of the first direction.
    pub passed: Arc<AtomicU64>,
}

impl Relay {
    /// Joins `a` and `b` of `host`, as a bridge would.
    pub fn new(host: &Host, a: &str, b: &str, cable: Cable) -> io::Result<Relay> {
        let open = |name: &str| host.in_net(|| port(name)).map_err(io::Error::other)?;
        let ends = [(open(a)?, open(b)?), (open(b)?, open(a)?)];
        let stop = Arc::new(AtomicBool::new(false));
        let passed = Arc::new(AtomicU64::new(0));
        let threads = ends
            .into_iter()
            .enumerate()
            .map(|(number, (from, to))| {
                let stop = stop.clone();
                let passed = passed.clone();
                std::thread::spawn(move || {
                    let count = |n| {
                        if number == 0 {
                            passed.fetch_add(n, Relaxed);
                        }
                    };
                    carry(&from, &to, cable, 0x9e37_79b9 + number as u64, &stop, count);
                })
            })
            .collect();
        Ok(Relay {
            stop,
            threads,
            passed,
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn carry(
    from: &OwnedFd,
    to: &OwnedFd,
    cable: Cable,
    seed: u64,
    stop: &AtomicBool,
    passed: impl Fn(u64),
) {
    let mut random = seed;
    let mut below = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let mut waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>> = BinaryHeap::new();
    let mut number = 0;
    let mut frame = [0u8; 2048];
    while !stop.load(Relaxed) {
        wait(from);
        for _ in 0..512 {
            let Some(length) = receive(from, &mut frame) else {
                break;
            };
            if below(1000) < cable.lost {
                continue;
            }
            let copies = 1 + u64::from(below(1000) < cable.doubled);
            for _ in 0..copies {
                let held = if below(1000) < cable.reordered {
                    Duration::from_micros(below(5000))
                } else {
                    Duration::ZERO
                };
                number += 1;
                waiting.push(Reverse((
                    Instant::now() + cable.delay + held,
                    number,
                    frame[..length].to_vec(),
                )));
            }
        }
        let now = Instant::now();
        while waiting.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            if let Some(Reverse((_, _, frame))) = waiting.pop() {
                send(to, &frame);
                passed(1);
            }
        }
    }
}

fn port(name: &str) -> io::Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(name)?;
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointers; the result is checked before it is owned.
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            i32::from(all),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    const IGNORE_OUTGOING: libc::c_int = 23;
    const QDISC_BYPASS: libc::c_int = 20;
    for (level, option, value) in [
        (libc::SOL_PACKET, IGNORE_OUTGOING, 1),
        (libc::SOL_PACKET, QDISC_BYPASS, 1),
        (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20),
    ] {
        // SAFETY: an int of its size.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: plain data, all zeroes is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index as i32;
    // SAFETY: a sockaddr_ll of its size.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

fn wait(fd: &OwnedFd) {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one initialised pollfd that lives across the call.
    unsafe { libc::poll(&raw mut poll, 1, 1) };
}

fn receive(fd: &OwnedFd, frame: &mut [u8]) -> Option<usize> {
    // SAFETY: the buffer is writable for its length.
    let length = unsafe { libc::recv(fd.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
    usize::try_from(length).ok()
}

fn send(fd: &OwnedFd, frame: &[u8]) {
    // SAFETY: the buffer is readable for its length.
    unsafe { libc::send(fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
}

/// Has an interface of this namespace finish checksums itself: on a veth they would stay unfilled,
/// and a frame that passes through user space is then wrong for whoever checks.
pub fn fill_checksums(interface: &str) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let mut value = [ETHTOOL_STXCSUM, 0];
    // SAFETY: plain data, all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(15)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an ifreq that names the interface and points at a struct ethtool_value; both live
    // across the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
