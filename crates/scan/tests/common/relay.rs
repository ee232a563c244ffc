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

/// Frames that one call to the kernel takes or gives.
const BATCH: usize = 64;
/// Bytes that a frame may have.
const LONGEST: usize = 2048;

/// A frame under way: the order is that of arrival at the far end.
type Waiting = Reverse<(Instant, u64, Vec<u8>)>;

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
    let mut waiting: BinaryHeap<Waiting> = BinaryHeap::new();
    let mut number = 0;
    let mut frames = vec![vec![0u8; LONGEST]; BATCH];
    // Memory of frames that are through, for the next ones.
    let mut spare: Vec<Vec<u8>> = Vec::new();
    let mut ripe: Vec<Vec<u8>> = Vec::with_capacity(BATCH);
    while !stop.load(Relaxed) {
        wait(from);
        // Now and then what is due has to go, however much comes.
        for _ in 0..8 {
            let lengths = receive(from, &mut frames);
            let now = Instant::now();
            for (frame, length) in frames.iter().zip(&lengths) {
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
                    let mut copy = spare.pop().unwrap_or_default();
                    copy.clear();
                    copy.extend_from_slice(&frame[..*length]);
                    waiting.push(Reverse((now + cable.delay + held, number, copy)));
                }
            }
            if lengths.len() < BATCH {
                break;
            }
        }
        let now = Instant::now();
        while waiting.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            while ripe.len() < BATCH
                && waiting.peek().is_some_and(|Reverse((due, ..))| *due <= now)
                && let Some(Reverse((_, _, frame))) = waiting.pop()
            {
                ripe.push(frame);
            }
            send(to, &ripe);
            passed(ripe.len() as u64);
            spare.append(&mut ripe);
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

/// The lengths of the frames that were there, as many as fit.
fn receive(fd: &OwnedFd, frames: &mut [Vec<u8>]) -> Vec<usize> {
    let mut parts: Vec<libc::iovec> = frames
        .iter_mut()
        .map(|frame| libc::iovec {
            iov_base: frame.as_mut_ptr().cast(),
            iov_len: frame.len(),
        })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = parts.iter_mut().map(header).collect();
    // SAFETY: each header points at a part, each part at a frame that is writable for its length;
    // all live across the call.
    let got = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            headers.len() as libc::c_uint,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    headers.truncate(usize::try_from(got).unwrap_or(0));
    headers.iter().map(|head| head.msg_len as usize).collect()
}

/// Sends what it can; what the far end does not take is lost, as on any cable.
fn send(fd: &OwnedFd, frames: &[Vec<u8>]) {
    let mut parts: Vec<libc::iovec> = frames
        .iter()
        .map(|frame| libc::iovec {
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = parts.iter_mut().map(header).collect();
    let mut left = headers.as_mut_slice();
    while !left.is_empty() {
        // SAFETY: each header points at a part, each part at a frame that is readable for its length;
        // all live across the call.
        let sent = unsafe {
            libc::sendmmsg(
                fd.as_raw_fd(),
                left.as_mut_ptr(),
                left.len() as libc::c_uint,
                0,
            )
        };
        // An error is the first one's: the others still have their chance.
        let sent = usize::try_from(sent).unwrap_or(1).max(1);
        left = &mut left[sent..];
    }
}

fn header(part: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: plain data, all zeroes is valid.
    let mut head: libc::mmsghdr = unsafe { std::mem::zeroed() };
    head.msg_hdr.msg_iov = part;
    head.msg_hdr.msg_iovlen = 1;
    head
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
