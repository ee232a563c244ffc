//! Netlink sockets, dumps and attributes (RFC 3549, include/uapi/linux/netlink.h).

use crate::Error;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recvmsg, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

const HEADER: usize = 16;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_MULTI: u16 = 2;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// How often a dump is repeated when the kernel says that the tables changed under it.
const ATTEMPTS: u32 = 16;
/// Longest wait for one datagram of an answer.
const PATIENCE: i64 = 10;
/// The kernel builds dump datagrams of up to 32 KiB, larger only for one message that needs it.
const BUFFER: usize = 64 * 1024;
/// Largest single datagram taken.
const BUFFER_MAX: usize = 16 * 1024 * 1024;

/// One message of an answer.
pub(crate) struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// What follows the netlink header.
    pub body: &'a [u8],
}

/// How an answer ended.
enum Answer {
    /// Complete.
    Whole,
    /// The kernel says that its tables changed while it answered.
    Interrupted,
    /// A datagram of this length did not fit in the buffer: part of it is lost.
    Cut(usize),
}

/// A netlink socket in the calling thread's network namespace.
pub(crate) struct Netlink {
    fd: OwnedFd,
    protocol: SockProtocol,
    seq: u32,
    port: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket of one netlink protocol.
    pub fn open(protocol: SockProtocol, what: &str) -> Result<Netlink, Error> {
        let (fd, port) = connect(protocol, what)?;
        Ok(Netlink {
            fd,
            protocol,
            seq: 0,
            port,
            buffer: vec![0; BUFFER],
        })
    }

    /// Makes room for a datagram of `length` bytes. The socket is a new one: the old one's answer
    /// was still under way, and until it ends the kernel takes no other question.
    fn grow(&mut self, what: &str, length: usize) -> Result<(), Error> {
        if length > BUFFER_MAX {
            return Err(Error::malformed(what, "datagram beyond 16 MiB"));
        }
        (self.fd, self.port) = connect(self.protocol, what)?;
        self.buffer.resize(length.next_power_of_two(), 0);
        Ok(())
    }

    /// Sends a dump request and hands every message of the answer to `parse`; what it returns is
    /// collected. Repeated from the start while the kernel marks the answer as interrupted, and
    /// with a larger buffer when a datagram did not fit.
    pub fn dump<T>(
        &mut self,
        what: &str,
        kind: u16,
        payload: &[u8],
        mut parse: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for attempt in 0..ATTEMPTS {
            let mut out = Vec::new();
            let answer = self.exchange(what, kind, NLM_F_DUMP, payload, &mut |m| {
                out.extend(parse(m));
            })?;
            match answer {
                Answer::Whole => return Ok(out),
                Answer::Cut(length) => {
                    self.grow(what, length)?;
                    continue;
                }
                Answer::Interrupted => {}
            }
            // Whoever is writing gets time to finish.
            std::thread::sleep(std::time::Duration::from_millis(1 << attempt.min(6)));
        }
        Err(Error::Unstable {
            what: what.to_owned(),
            attempts: ATTEMPTS,
        })
    }

    /// Sends a request that has a single message as its answer.
    pub fn get<T>(
        &mut self,
        what: &str,
        kind: u16,
        payload: &[u8],
        mut parse: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        for _ in 0..ATTEMPTS {
            let mut out = None;
            // The acknowledgement marks the end of the answer, whatever the subsystem sends.
            let answer = self.exchange(what, kind, NLM_F_ACK, payload, &mut |m| {
                if out.is_none() {
                    out = parse(m);
                }
            })?;
            match answer {
                Answer::Cut(length) => self.grow(what, length)?,
                Answer::Whole | Answer::Interrupted => return Ok(out),
            }
        }
        Err(Error::Unstable {
            what: what.to_owned(),
            attempts: ATTEMPTS,
        })
    }

    /// One request and its answer.
    fn exchange(
        &mut self,
        what: &str,
        kind: u16,
        flags: u16,
        payload: &[u8],
        each: &mut dyn FnMut(Message<'_>),
    ) -> Result<Answer, Error> {
        self.seq = self.seq.wrapping_add(1);
        let mut request = Vec::with_capacity(HEADER + payload.len());
        request.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend(self.seq.to_ne_bytes());
        request.extend(self.port.to_ne_bytes());
        request.extend(payload);
        sendto(
            self.fd.as_raw_fd(),
            &request,
            &NetlinkAddr::new(0, 0),
            MsgFlags::empty(),
        )
        .map_err(|e| Error::kernel(what, e))?;

        let mut end = Answer::Whole;
        loop {
            let length = self.receive(what)?;
            if length > self.buffer.len() {
                return Ok(Answer::Cut(length));
            }
            let mut rest = &self.buffer[..length];
            while !rest.is_empty() {
                let Some((header, message, next)) = split_message(rest) else {
                    return Err(Error::malformed(what, "netlink header"));
                };
                rest = next;
                if header.seq != self.seq || header.port != self.port {
                    // Left over from an earlier, abandoned question.
                    continue;
                }
                if header.flags & NLM_F_DUMP_INTR != 0 {
                    end = Answer::Interrupted;
                }
                match header.kind {
                    NLMSG_NOOP => {}
                    NLMSG_DONE => {
                        // A dump that fails half-way says so in its last message.
                        let code = message.get(..4).map_or(0, i32_ne);
                        return match code {
                            0.. => Ok(end),
                            _ => failed(what, code),
                        };
                    }
                    NLMSG_ERROR => {
                        let Some(code) = message.get(..4).map(i32_ne) else {
                            return Err(Error::malformed(what, "NLMSG_ERROR"));
                        };
                        if code == 0 {
                            return Ok(end);
                        }
                        return failed(what, code);
                    }
                    kind => {
                        each(Message {
                            kind,
                            body: message,
                        });
                        if header.flags & NLM_F_MULTI == 0 && flags & NLM_F_ACK == 0 {
                            return Ok(end);
                        }
                    }
                }
            }
        }
    }

    /// Receives one datagram from the kernel into the buffer. Returns its length, which is more
    /// than the buffer's when its end was cut off.
    fn receive(&mut self, what: &str) -> Result<usize, Error> {
        loop {
            let mut iov = [IoSliceMut::new(&mut self.buffer)];
            // With MSG_TRUNC the length is the datagram's, however much of it fits. Looking at it
            // with MSG_PEEK first would take twice the calls and copies.
            let flags = MsgFlags::MSG_TRUNC;
            match recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut iov, None, flags) {
                // Another root process could send to this port; only the kernel is believed.
                Ok(r) if r.address.is_some_and(|a| a.pid() == 0) => return Ok(r.bytes),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    return Err(Error::Timeout {
                        what: what.to_owned(),
                        seconds: PATIENCE as u64,
                    });
                }
                Err(e) => return Err(Error::kernel(what, e)),
            }
        }
    }
}

/// A socket of one netlink protocol and its port. Strict checking is asked for where the kernel
/// has it, so that a filter that it does not know is an error rather than ignored.
fn connect(protocol: SockProtocol, what: &str) -> Result<(OwnedFd, u32), Error> {
    let err = |e| Error::kernel(what, e);
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )
    .map_err(err)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE)).map_err(err)?;
    let one: libc::c_int = 1;
    // SAFETY: `fd` is an open socket, `one` lives across the call and its size is given.
    // A failure (kernels before 4.20) is harmless, so the result is ignored.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_GET_STRICT_CHK,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(err)?;
    let port = getsockname::<NetlinkAddr>(fd.as_raw_fd())
        .map_err(err)?
        .pid();
    Ok((fd, port))
}

/// EINTR from a dump means the same as NLM_F_DUMP_INTR (nf_tables since 4.19).
fn failed(what: &str, code: i32) -> Result<Answer, Error> {
    match Errno::from_raw(code.saturating_neg()) {
        Errno::EINTR => Ok(Answer::Interrupted),
        errno => Err(Error::kernel(what, errno)),
    }
}

struct Header {
    kind: u16,
    flags: u16,
    seq: u32,
    port: u32,
}

fn split_message(data: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = u32_ne(data.get(0..4)?) as usize;
    if length < HEADER {
        return None;
    }
    let message = data.get(HEADER..length)?;
    let header = Header {
        kind: u16_ne(data.get(4..6)?),
        flags: u16_ne(data.get(6..8)?),
        seq: u32_ne(data.get(8..12)?),
        port: u32_ne(data.get(12..16)?),
    };
    let next = data.get(align(length)..).unwrap_or(&[]);
    Some((header, message, next))
}

/// Netlink's alignment: 4 bytes.
pub(crate) fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// A netlink attribute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attr<'a> {
    /// `nla_type` without the nested and byte-order flags.
    pub kind: u16,
    /// The payload.
    pub data: &'a [u8],
}

impl<'a> Attr<'a> {
    /// Host byte order, 4 bytes (rtnetlink).
    pub fn u32(&self) -> Option<u32> {
        self.data.get(..4).map(u32_ne)
    }
    /// Network byte order, 4 bytes (nfnetlink).
    pub fn be32(&self) -> Option<u32> {
        self.data.get(..4).map(u32_be)
    }
    /// Network byte order, 2 bytes (nfnetlink).
    pub fn be16(&self) -> Option<u16> {
        self.data.get(..2).map(u16_be)
    }
    /// Network byte order, 8 bytes (nfnetlink).
    pub fn be64(&self) -> Option<u64> {
        let b: [u8; 8] = self.data.get(..8)?.try_into().ok()?;
        Some(u64::from_be_bytes(b))
    }
    /// One byte.
    pub fn u8(&self) -> Option<u8> {
        self.data.first().copied()
    }
    /// NUL-terminated text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        text(self.data)
    }
    /// NUL-terminated text without a copy; empty when it is not UTF-8.
    pub fn word(&self) -> &'a str {
        let end = self.data.iter().position(|b| *b == 0);
        let bytes = &self.data[..end.unwrap_or(self.data.len())];
        std::str::from_utf8(bytes).unwrap_or_default()
    }
    /// 4 or 16 bytes as an address.
    pub fn ip(&self) -> Option<IpAddr> {
        ip(self.data)
    }
    /// The attributes inside.
    pub fn nested(&self) -> Attrs<'a> {
        Attrs(self.data)
    }
}

/// NUL-terminated text.
pub(crate) fn text(data: &[u8]) -> String {
    let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    String::from_utf8_lossy(&data[..end]).into_owned()
}

/// 4 bytes: IPv4; 16 bytes: IPv6.
pub(crate) fn ip(data: &[u8]) -> Option<IpAddr> {
    if let Ok(b) = <[u8; 4]>::try_from(data) {
        return Some(IpAddr::V4(Ipv4Addr::from(b)));
    }
    let b = <[u8; 16]>::try_from(data).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(b)))
}

/// Iterates over the attributes in a buffer; stops at the first that is malformed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attrs<'a>(pub &'a [u8]);

impl<'a> Attrs<'a> {
    /// The first attribute of a kind.
    pub fn find(self, kind: u16) -> Option<Attr<'a>> {
        let mut it = self;
        Iterator::find(&mut it, |a| a.kind == kind)
    }

    /// True when the whole buffer is attributes: nothing would be skipped in silence.
    pub fn intact(self) -> bool {
        let mut it = self;
        while it.next().is_some() {}
        it.0.is_empty()
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let length = u16_ne(self.0.get(0..2)?) as usize;
        let kind = u16_ne(self.0.get(2..4)?) & 0x3fff;
        let data = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or(&[]);
        Some(Attr { kind, data })
    }
}

/// Appends an attribute to a request.
pub(crate) fn put(request: &mut Vec<u8>, kind: u16, data: &[u8]) {
    request.extend(((4 + data.len()) as u16).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(data);
    request.resize(align(request.len()), 0);
}

pub(crate) fn u16_ne(b: &[u8]) -> u16 {
    u16::from_ne_bytes([b[0], b[1]])
}
pub(crate) fn u32_ne(b: &[u8]) -> u32 {
    u32::from_ne_bytes([b[0], b[1], b[2], b[3]])
}
fn i32_ne(b: &[u8]) -> i32 {
    i32::from_ne_bytes([b[0], b[1], b[2], b[3]])
}
pub(crate) fn u16_be(b: &[u8]) -> u16 {
    u16::from_be_bytes([b[0], b[1]])
}
pub(crate) fn u32_be(b: &[u8]) -> u32 {
    u32::from_be_bytes([b[0], b[1], b[2], b[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_split_and_a_cut_one_is_noticed() {
        let mut data = Vec::new();
        put(&mut data, 1, b"abc");
        put(&mut data, 0x8002, &[1, 0, 0, 0]);
        let kinds: Vec<_> = Attrs(&data).map(|a| (a.kind, a.data.len())).collect();
        assert_eq!(kinds, [(1, 3), (2, 4)]);
        assert!(Attrs(&data).intact());
        for cut in 1..data.len() {
            // At byte 8 the first attribute ends, so what is left is whole.
            let whole = cut == 8 || cut == 7;
            assert_eq!(Attrs(&data[..cut]).intact(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn an_attribute_shorter_than_its_header_ends_the_list() {
        assert!(Attrs(&[2, 0, 1, 0, 9, 9]).next().is_none());
        assert!(Attrs(&[0, 0, 1, 0]).next().is_none());
        assert!(!Attrs(&[0, 0, 1, 0]).intact());
    }

    #[test]
    fn an_answer_that_does_not_fit_is_asked_for_again_in_a_larger_room() {
        let names = |buffer: usize| {
            let mut nl = Netlink::open(SockProtocol::NetlinkRoute, "links").unwrap();
            nl.buffer.resize(buffer, 0);
            // RTM_GETLINK with an empty struct ifinfomsg; IFLA_IFNAME.
            let found = nl.dump("links", 18, &[0; 16], |m| {
                Some(Attrs(m.body.get(16..)?).find(3)?.text())
            });
            (found.unwrap(), nl.buffer.len())
        };
        let (whole, _) = names(BUFFER);
        assert!(whole.iter().any(|name| name == "lo"));
        let (again, grown) = names(128);
        assert_eq!(again, whole);
        assert!(grown > 128);
    }

    #[test]
    fn a_message_longer_than_its_datagram_is_refused() {
        let mut m = vec![0u8; 20];
        m[..4].copy_from_slice(&24u32.to_ne_bytes());
        assert!(split_message(&m).is_none());
        m[..4].copy_from_slice(&20u32.to_ne_bytes());
        assert!(split_message(&m).is_some());
        m[..4].copy_from_slice(&3u32.to_ne_bytes());
        assert!(split_message(&m).is_none());
    }
}
