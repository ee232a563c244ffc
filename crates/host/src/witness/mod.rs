//! The witness: this machine's kernel notes which knocks arrived here, which of them its rules let
//! through, and what was answered. Then silence is no longer a guess: "it arrived, and nothing came
//! back" is seen, and what a filter in between swallowed is told from what this machine refused.
//!
//! The notes are sets in a table of its own that judges nothing and lets everything pass. The table
//! belongs to the netlink socket that made it: the kernel deletes it when that socket is closed, at
//! the end, after a crash and after `kill -9` alike, and nobody else can change it meanwhile. That
//! takes Linux 5.12; on an older kernel there is no witness rather than a table that might stay.

mod message;

use message::{Batch, REGISTER, Rule, Said};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

/// The table's name; another one that knocks at the same time has another number at its end.
const TABLE: &str = "portcullis-witness";
/// Before every filter: conntrack defragments at -400, the `raw` tables begin at -300.
const BEFORE_ALL: i32 = -390;
/// After every filter and translation.
const AFTER_ALL: i32 = 1_000_000_000;
/// Notes are forgotten by themselves after this long.
const KEPT_MILLIS: u64 = 30 * 60 * 1000;
/// Most notes of one kind, so that strangers cannot fill the kernel's memory. What finds no room
/// is not noted, and counts as not arrived.
const MOST: u32 = 2_000_000;
/// Notes that others who knock meanwhile may take up.
const SPARE: u32 = 100_000;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// SYN, and SYN with ACK, among FIN, SYN, RST, ACK.
const MASK: u8 = 0x17;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const RST: u8 = 0x04;

/// Why there is no witness.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// Only root (CAP_NET_ADMIN) may.
    #[error("the kernel lets only root note what arrives")]
    NotAllowed,
    /// The kernel cannot take the notes away by itself again.
    #[error("this kernel is older than Linux 5.12 and would keep the notes after a crash")]
    TooOld,
    /// Anything else.
    #[error("the kernel does not note what arrives: {0}")]
    Kernel(Errno),
}

/// What the kernel notes about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Note {
    /// A SYN reached this machine.
    Arrived,
    /// Every rule let it through: to a socket here, or on to where it is translated to.
    LetIn,
    /// A SYN-ACK left for it.
    Accepted,
    /// An RST left for it.
    Reset,
    /// A datagram reached this machine.
    UdpArrived,
    /// Every rule let the datagram through.
    UdpLetIn,
    /// A datagram left in answer.
    UdpAnswered,
}

impl Note {
    const ALL: [Note; 7] = [
        Note::Arrived,
        Note::LetIn,
        Note::Accepted,
        Note::Reset,
        Note::UdpArrived,
        Note::UdpLetIn,
        Note::UdpAnswered,
    ];

    fn set(self, ipv6: bool) -> String {
        let name = match self {
            Note::Arrived => "arrived",
            Note::LetIn => "let-in",
            Note::Accepted => "accepted",
            Note::Reset => "reset",
            Note::UdpArrived => "udp-arrived",
            Note::UdpLetIn => "udp-let-in",
            Note::UdpAnswered => "udp-answered",
        };
        format!("{name}{}", if ipv6 { 6 } else { 4 })
    }
}

/// A knock: who, on which address of this machine, on which port.
pub type Knock = (IpAddr, IpAddr, u16);

/// The notes so far.
#[derive(Debug, Default)]
pub struct Notes(HashSet<(Note, Knock)>);

impl Notes {
    /// Whether the kernel noted this.
    pub fn has(&self, note: Note, knock: Knock) -> bool {
        self.0.contains(&(note, knock))
    }

    /// How many ports of `to` each source knocked on by TCP, most first.
    pub fn knockers(&self, to: IpAddr) -> Vec<(IpAddr, usize)> {
        let mut counted = std::collections::BTreeMap::<IpAddr, usize>::new();
        for (note, (from, at, _)) in &self.0 {
            if *note == Note::Arrived && *at == to {
                *counted.entry(*from).or_default() += 1;
            }
        }
        let mut knockers: Vec<_> = counted.into_iter().collect();
        knockers.sort_by_key(|(_, ports)| std::cmp::Reverse(*ports));
        knockers
    }
}

impl FromIterator<(Note, Knock)> for Notes {
    fn from_iter<I: IntoIterator<Item = (Note, Knock)>>(notes: I) -> Self {
        Notes(notes.into_iter().collect())
    }
}

/// The kernel takes notes as long as this value lives.
#[derive(Debug)]
pub struct Witness {
    fd: OwnedFd,
    table: String,
}

impl Witness {
    /// Begins to note TCP and UDP knocks in the calling thread's network namespace, with room for
    /// `scans` scans of all ports.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, on a kernel without owned tables (before Linux 5.12) or without what
    /// the notes need (nf_tables with concatenated keys and dynamic sets).
    pub fn begin(scans: usize) -> Result<Witness, WitnessError> {
        let fd = open().map_err(WitnessError::Kernel)?;
        let scans = u32::try_from(scans).unwrap_or(u32::MAX);
        let room = scans.saturating_mul(65_536).saturating_add(SPARE).min(MOST);
        let table = format!("{TABLE}-{}", std::process::id());
        let mut batch = Batch::new();
        batch.owned_table(&table);
        for ipv6 in [false, true] {
            for note in Note::ALL {
                batch.set(&table, &note.set(ipv6), ipv6, room, KEPT_MILLIS);
            }
        }
        // Hooks: prerouting 0, input 1, postrouting 4.
        batch.chain(&table, "arrives", 0, BEFORE_ALL);
        batch.chain(&table, "is-let-in", 1, AFTER_ALL);
        batch.chain(&table, "leaves", 4, AFTER_ALL);
        for ipv6 in [false, true] {
            for (chain, rule) in rules(ipv6) {
                batch.rule(&table, chain, rule);
            }
        }
        let (bytes, owed) = batch.end();
        send(&fd, &bytes).map_err(WitnessError::Kernel)?;
        let mut buffer = vec![0; 256 * 1024];
        let mut heard = 0;
        while heard < owed {
            let length = receive(&fd, &mut buffer).map_err(WitnessError::Kernel)?;
            for said in message::read(&buffer[..length]) {
                match said {
                    Said::Answer(_, 0) => heard += 1,
                    // The whole batch is refused with its first fault.
                    Said::Answer(sequence, code) => return Err(refused(sequence, code)),
                    _ => {}
                }
            }
        }
        Ok(Witness { fd, table })
    }

    /// What was noted so far.
    ///
    /// # Errors
    /// The kernel's own, also when it does not answer within ten seconds.
    pub fn notes(&self) -> Result<Notes, WitnessError> {
        let mut notes = Notes::default();
        for ipv6 in [false, true] {
            for note in Note::ALL {
                self.read(note, ipv6, &mut notes)
                    .map_err(WitnessError::Kernel)?;
            }
        }
        Ok(notes)
    }

    fn read(&self, note: Note, ipv6: bool, notes: &mut Notes) -> Result<(), Errno> {
        let request = message::elements_of(&self.table, &note.set(ipv6), 1);
        let mut buffer = vec![0; 256 * 1024];
        // A dump that is disturbed is asked for again; a key noted twice is noted once.
        for _ in 0..16 {
            send(&self.fd, &request)?;
            let mut ended = None;
            while ended.is_none() {
                let length = receive(&self.fd, &mut buffer)?;
                for said in message::read(&buffer[..length]) {
                    match said {
                        Said::Keys(keys) => {
                            notes.0.extend(
                                keys.iter()
                                    .filter_map(|key| Some((note, knock_of(key, ipv6)?))),
                            );
                        }
                        Said::Done(code) | Said::Answer(_, code) => ended = Some(code),
                    }
                }
            }
            match ended.map(|code| Errno::from_raw(code.saturating_neg())) {
                Some(Errno::EINTR) => {}
                Some(errno) if errno != Errno::from_raw(0) => return Err(errno),
                _ => return Ok(()),
            }
        }
        Err(Errno::EINTR)
    }
}

/// The rules of one family, with their chains.
fn rules(ipv6: bool) -> Vec<(&'static str, Rule)> {
    let note = |rule: Rule, note: Note| rule.note(&note.set(ipv6), KEPT_MILLIS);
    let of = |protocol: u8| Rule::new().family(ipv6).protocol(protocol);
    let syn = || of(TCP).flags(MASK, SYN);
    let udp = || of(UDP);
    let seen = |rule: Rule, arrived: Note| rule.known(&arrived.set(ipv6));
    let mut rules = vec![
        ("arrives", note(knocked(syn(), ipv6), Note::Arrived)),
        ("arrives", note(knocked(udp(), ipv6), Note::UdpArrived)),
    ];
    for (arrived, let_in, begun) in [
        (Note::Arrived, Note::LetIn, syn()),
        (Note::UdpArrived, Note::UdpLetIn, udp()),
    ] {
        // By its own header, which is all that an untracked packet has, and by what it was before
        // it was translated.
        let by_header = seen(knocked(begun.clone(), ipv6), arrived);
        rules.push(("is-let-in", note(by_header, let_in)));
        let translated = seen(originally(begun, ipv6), arrived);
        rules.push(("is-let-in", note(translated.clone(), let_in)));
        rules.push(("leaves", note(translated, let_in)));
    }
    for (arrived, left, answer) in [
        (Note::Arrived, Note::Accepted, of(TCP).flags(MASK, SYN_ACK)),
        (Note::Arrived, Note::Reset, of(TCP).flags(RST, RST)),
        (Note::UdpArrived, Note::UdpAnswered, udp()),
    ] {
        rules.push(("leaves", note(seen(answered(answer, ipv6), arrived), left)));
    }
    rules
}

/// Bytes of the addresses in the network header (RFC 791, RFC 8200): source, destination, length.
fn addresses(ipv6: bool) -> (u32, u32, u32) {
    if ipv6 { (8, 24, 16) } else { (12, 16, 4) }
}

/// The key of a knock as the packet has it.
fn knocked(rule: Rule, ipv6: bool) -> Rule {
    let (source, destination, length) = addresses(ipv6);
    rule.load(1, source, length, REGISTER)
        .load(1, destination, length, REGISTER + length / 4)
        .load(2, 2, 2, REGISTER + length / 2)
}

/// The key of the knock that this packet answers.
fn answered(rule: Rule, ipv6: bool) -> Rule {
    let (source, destination, length) = addresses(ipv6);
    rule.load(1, destination, length, REGISTER)
        .load(1, source, length, REGISTER + length / 4)
        .load(2, 0, 2, REGISTER + length / 2)
}

/// The key of a knock as it arrived, whatever it was translated to since.
fn originally(rule: Rule, ipv6: bool) -> Rule {
    // NFT_CT_SRC_IP, NFT_CT_DST_IP, their IPv6 siblings, NFT_CT_PROTO_DST.
    let (source, destination, words) = if ipv6 { (21, 22, 4) } else { (19, 20, 1) };
    rule.original(source, REGISTER)
        .original(destination, REGISTER + words)
        .original(12, REGISTER + 2 * words)
}

fn knock_of(key: &[u8], ipv6: bool) -> Option<Knock> {
    let address = |at: usize| -> Option<IpAddr> {
        if ipv6 {
            let octets: [u8; 16] = key.get(at..at + 16)?.try_into().ok()?;
            Some(IpAddr::from(octets))
        } else {
            let octets: [u8; 4] = key.get(at..at + 4)?.try_into().ok()?;
            Some(IpAddr::from(octets))
        }
    };
    let length = if ipv6 { 16 } else { 4 };
    let port = key.get(2 * length..2 * length + 2)?.try_into().ok()?;
    Some((address(0)?, address(length)?, u16::from_be_bytes(port)))
}

/// The first message makes the table: what is refused there is its flag.
fn refused(sequence: u32, code: i32) -> WitnessError {
    match Errno::from_raw(code.saturating_neg()) {
        Errno::EPERM | Errno::EACCES => WitnessError::NotAllowed,
        Errno::EINVAL | Errno::EOPNOTSUPP if sequence <= 1 => WitnessError::TooOld,
        errno => WitnessError::Kernel(errno),
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
    // Answers to a whole batch come at once.
    let _ = setsockopt(&fd, sockopt::RcvBuf, &(1 << 20));
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(fd)
}

fn send(fd: &OwnedFd, bytes: &[u8]) -> Result<(), Errno> {
    let kernel = NetlinkAddr::new(0, 0);
    sendto(fd.as_raw_fd(), bytes, &kernel, MsgFlags::empty()).map(drop)
}

fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
            Ok(length) if length <= buffer.len() => return Ok(length),
            Ok(_) => return Err(Errno::EMSGSIZE),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_owner_flag_means_an_old_kernel() {
        assert!(matches!(refused(1, -22), WitnessError::TooOld));
        assert!(matches!(refused(1, -95), WitnessError::TooOld));
        assert!(matches!(refused(1, -1), WitnessError::NotAllowed));
        assert!(matches!(
            refused(9, -22),
            WitnessError::Kernel(Errno::EINVAL)
        ));
    }

    #[test]
    fn keys_are_source_destination_and_port() {
        let knock = ("192.0.2.1", "198.51.100.2", 443);
        let key = [192, 0, 2, 1, 198, 51, 100, 2, 1, 187, 0, 0];
        let (from, to, port) = knock_of(&key, false).unwrap();
        assert_eq!(
            (from.to_string().as_str(), to.to_string().as_str(), port),
            knock
        );
        assert_eq!(knock_of(&key, true), None);
        assert_eq!(knock_of(&[], false), None);
    }
}
