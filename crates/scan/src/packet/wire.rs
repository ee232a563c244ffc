//! Packet sockets: frames out in batches, replies in through a shared ring (packet(7)).

use super::frame::MAX_PACKET;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Frames handed to the kernel in one call.
pub const BATCH: usize = 64;

const BLOCK: usize = 1 << 20;
const BLOCKS: usize = 16;
/// Milliseconds after which the kernel hands over a block that is not full.
const RETIRE: u32 = 2;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_QDISC_BYPASS: libc::c_int = 20;

/// Where frames go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Next hop's link address; empty where the link has none.
    pub next_hop: Vec<u8>,
    /// IPv6.
    pub ipv6: bool,
}

impl Link {
    fn ethertype(&self) -> u16 {
        let kind = if self.ipv6 {
            libc::ETH_P_IPV6
        } else {
            libc::ETH_P_IP
        };
        (kind as u16).to_be()
    }

    fn address(&self) -> libc::sockaddr_ll {
        // SAFETY: sockaddr_ll is plain data; all zeroes is a valid value of it.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = self.ethertype();
        address.sll_ifindex = self.index as i32;
        let length = self.next_hop.len().min(address.sll_addr.len());
        address.sll_halen = length as u8;
        address.sll_addr[..length].copy_from_slice(&self.next_hop[..length]);
        address
    }
}

fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: a plain system call without pointers; the result is checked before it is owned.
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0, // no protocol: this socket receives nothing until it is bound to one
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is readable for the length given during the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn bind(fd: &OwnedFd, address: &libc::sockaddr_ll) -> io::Result<()> {
    // SAFETY: `address` is a sockaddr_ll and its size is given.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends frames in batches.
pub struct Sender {
    fd: OwnedFd,
    address: libc::sockaddr_ll,
    frames: Box<[[u8; MAX_PACKET]; BATCH]>,
    lengths: [usize; BATCH],
    filled: usize,
    /// Frames that the kernel took.
    pub sent: u64,
}

impl Sender {
    /// Opens a sender; needs CAP_NET_RAW.
    pub fn open(link: &Link) -> io::Result<Sender> {
        let fd = packet_socket()?;
        // The queueing discipline would drop or delay what is already paced. Without the option
        // the scan is slower, nothing else.
        let _ = set(&fd, libc::SOL_PACKET, PACKET_QDISC_BYPASS, &1i32);
        Ok(Sender {
            fd,
            address: link.address(),
            frames: Box::new([[0; MAX_PACKET]; BATCH]),
            lengths: [0; BATCH],
            filled: 0,
            sent: 0,
        })
    }

    /// Room for one frame; `write` fills it and returns its length. Full batches are sent at once.
    pub fn push(&mut self, write: impl FnOnce(&mut [u8; MAX_PACKET]) -> usize) -> io::Result<()> {
        self.lengths[self.filled] = write(&mut self.frames[self.filled]).min(MAX_PACKET);
        self.filled += 1;
        if self.filled == BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// Frames pushed so far.
    pub fn pushed(&self) -> u64 {
        self.sent + self.filled as u64
    }

    /// Sends what is waiting. A full device queue is waited for, never taken as sent.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut done = 0;
        let mut refused = 0u32;
        while done < self.filled {
            match self.send(done) {
                Ok(count) => {
                    done += count;
                    self.sent += count as u64;
                    refused = 0;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS | Errno::EAGAIN) if refused < 2000 => {
                    refused += 1;
                    std::thread::sleep(Duration::from_micros(500));
                }
                Err(errno) => {
                    self.filled = 0;
                    return Err(errno.into());
                }
            }
        }
        self.filled = 0;
        Ok(())
    }

    fn send(&mut self, from: usize) -> Result<usize, Errno> {
        let count = self.filled - from;
        let mut parts: [libc::iovec; BATCH] = std::array::from_fn(|i| libc::iovec {
            iov_base: self.frames[i].as_mut_ptr().cast(),
            iov_len: self.lengths[i],
        });
        let mut messages: [libc::mmsghdr; BATCH] = std::array::from_fn(|i| {
            // SAFETY: mmsghdr is plain data; all zeroes is a valid value of it.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_name = (&raw mut self.address).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            message.msg_hdr.msg_iov = &raw mut parts[i];
            message.msg_hdr.msg_iovlen = 1;
            message
        });
        // SAFETY: the messages from `from` on are `count` initialised headers; they point at
        // `parts`, `frames` and `address`, which live and stay in place across the call.
        let result = unsafe {
            libc::sendmmsg(
                self.fd.as_raw_fd(),
                messages[from..].as_mut_ptr(),
                count as u32,
                0,
            )
        };
        if result < 0 {
            return Err(Errno::last());
        }
        Ok(result as usize)
    }
}

/// A ring of received packets (TPACKET_V3).
pub struct Receiver {
    fd: OwnedFd,
    ring: *mut u8,
    next: usize,
}

// SAFETY: the ring is a private mapping owned by this value alone, which is only moved as a whole.
unsafe impl Send for Receiver {}

impl Receiver {
    /// Opens the ring for TCP segments to our ports `ports.0..=ports.1` and ICMP; needs
    /// CAP_NET_RAW.
    pub fn open(link: &Link, ports: (u16, u16)) -> io::Result<Receiver> {
        let fd = packet_socket()?;
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        set(&fd, libc::SOL_PACKET, libc::PACKET_VERSION, &version)?;
        // Our own frames would fill the ring for nothing; older kernels lack the option.
        let _ = set(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32);
        attach_filter(&fd, link.ipv6, ports)?;
        let request = libc::tpacket_req3 {
            tp_block_size: BLOCK as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: 2048,
            tp_frame_nr: (BLOCK / 2048 * BLOCKS) as u32,
            tp_retire_blk_tov: RETIRE,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set(&fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a fresh mapping of the ring just set up, of exactly its size; checked below.
        let ring = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BLOCK * BLOCKS,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if ring == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let receiver = Receiver {
            fd,
            ring: ring.cast(),
            next: 0,
        };
        let mut address = link.address();
        address.sll_halen = 0;
        bind(&receiver.fd, &address)?;
        Ok(receiver)
    }

    /// Hands every packet that is there to `each`, from its IP header on; waits at most `wait` for
    /// the first.
    pub fn receive(&mut self, wait: Duration, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        if !self.ready() {
            let mut poll = libc::pollfd {
                fd: self.fd.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let millis = wait.as_millis().clamp(1, 1000) as libc::c_int;
            // SAFETY: one initialised pollfd that lives across the call.
            let result = unsafe { libc::poll(&raw mut poll, 1, millis) };
            if result < 0 && Errno::last() != Errno::EINTR {
                return Err(io::Error::last_os_error());
            }
        }
        while self.ready() {
            self.read_block(&mut each);
            self.next = (self.next + 1) % BLOCKS;
        }
        Ok(())
    }

    fn block(&self) -> *mut libc::tpacket_block_desc {
        // SAFETY: `next` is below BLOCKS, so the block lies inside the mapping.
        unsafe { self.ring.add(self.next * BLOCK).cast() }
    }

    fn ready(&self) -> bool {
        // SAFETY: the block is inside the mapping; the status word is shared with the kernel, so
        // it is read volatile, and the fence keeps the reads of its packets after it.
        let status =
            unsafe { std::ptr::read_volatile(&raw const (*self.block()).hdr.bh1.block_status) };
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        status & libc::TP_STATUS_USER != 0
    }

    fn read_block(&mut self, each: &mut impl FnMut(&[u8])) {
        let block = self.block();
        // SAFETY: the block belongs to user space now; the kernel wrote its header.
        let (count, first) = unsafe {
            (
                (*block).hdr.bh1.num_pkts,
                (*block).hdr.bh1.offset_to_first_pkt as usize,
            )
        };
        // SAFETY: exactly the bytes of this block, which the kernel leaves alone until it is
        // handed back below.
        let bytes = unsafe { std::slice::from_raw_parts(block.cast::<u8>(), BLOCK) };
        let mut at = first;
        for _ in 0..count {
            let word = |offset: usize| {
                bytes
                    .get(at + offset..at + offset + 4)
                    .and_then(|b| b.try_into().ok())
                    .map_or(0, u32::from_ne_bytes) as usize
            };
            // struct tpacket3_hdr: next offset, sec, nsec, snaplen, len, status, mac and net (16
            // bits each).
            let (next, length) = (word(0), word(12));
            let net = bytes
                .get(at + 26..at + 28)
                .and_then(|b| b.try_into().ok())
                .map_or(0, u16::from_ne_bytes) as usize;
            if let Some(packet) = bytes.get(at + net..at + net + length) {
                each(packet);
            }
            if next == 0 {
                break;
            }
            at += next;
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        // SAFETY: as in `ready`; this hands the block back to the kernel.
        unsafe {
            std::ptr::write_volatile(
                &raw mut (*block).hdr.bh1.block_status,
                libc::TP_STATUS_KERNEL,
            );
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`, of this size, used by nobody after this.
        unsafe {
            libc::munmap(self.ring.cast(), BLOCK * BLOCKS);
        }
    }
}

/// A classic BPF program: TCP to one of our ports, or ICMP. Offsets count from the IP header.
fn attach_filter(fd: &OwnedFd, ipv6: bool, ports: (u16, u16)) -> io::Result<()> {
    const LD_B: u16 = 0x30;
    const LD_H: u16 = 0x28;
    const LD_H_IND: u16 = 0x48;
    const LDX_IPLEN: u16 = 0xb1;
    const JEQ: u16 = 0x15;
    const JGE: u16 = 0x35;
    const JGT: u16 = 0x25;
    const RET: u16 = 0x06;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let (low, high) = (u32::from(ports.0), u32::from(ports.1));
    let program = if ipv6 {
        vec![
            op(LD_B, 0, 0, 6),
            op(JEQ, 4, 0, 58),
            op(JEQ, 0, 4, 6),
            op(LD_H, 0, 0, 42),
            op(JGE, 0, 2, low),
            op(JGT, 1, 0, high),
            op(RET, 0, 0, 0xffff),
            op(RET, 0, 0, 0),
        ]
    } else {
        vec![
            op(LD_B, 0, 0, 9),
            op(JEQ, 5, 0, 1),
            op(JEQ, 0, 5, 6),
            op(LDX_IPLEN, 0, 0, 0),
            op(LD_H_IND, 0, 0, 2),
            op(JGE, 0, 2, low),
            op(JGT, 1, 0, high),
            op(RET, 0, 0, 0xffff),
            op(RET, 0, 0, 0),
        ]
    };
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}
