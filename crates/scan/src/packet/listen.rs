//! The listening side: believes an answer only by its cookie, notes it, resets what was opened.

use super::cookie::Cookies;
use super::frame::{ACK, RST, Reply, SYN, Template, parse};
use super::plan::Group;
use super::wire::{Receiver, Sender};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// No answer yet.
pub const SILENT: u8 = 0;
/// SYN-ACK.
pub const OPEN: u8 = 1;
/// RST.
pub const CLOSED: u8 = 2;

/// What came back for one canary knock of the round under way.
#[derive(Default)]
pub struct Slot {
    /// When a TCP answer came, microseconds since the start; 0: none yet.
    pub answered: AtomicU32,
    /// An ICMP error came: a filter refused it.
    pub refused: AtomicBool,
}

/// What sender and listener share.
pub struct Shared<'a> {
    pub group: &'a Group,
    pub cookies: Cookies,
    /// The port that ordinary knocks come from; canaries use those after it.
    pub sport: u16,
    /// State of each port, 65,536 a target.
    pub states: Vec<AtomicU8>,
    /// Canary slots of each target, by our port minus the first canary port.
    pub slots: Vec<Vec<Slot>>,
    /// Which round the canaries under way belong to; part of their cookies.
    pub round: AtomicU32,
    /// Ports with an answer.
    pub settled: AtomicU64,
    /// When a port last gave its first answer, as [`Shared::now`]; 0: never.
    pub last_answer: AtomicU32,
    index: HashMap<IpAddr, usize>,
    stop: AtomicBool,
    start: Instant,
}

impl<'a> Shared<'a> {
    /// State for `slots` canaries a target and round.
    pub fn new(group: &'a Group, sport: u16, slots: usize) -> Self {
        let count = group.targets.len();
        Shared {
            group,
            cookies: Cookies::default(),
            sport,
            states: (0..count << 16).map(|_| AtomicU8::new(SILENT)).collect(),
            slots: (0..count)
                .map(|_| (0..slots).map(|_| Slot::default()).collect())
                .collect(),
            round: AtomicU32::new(0),
            settled: AtomicU64::new(0),
            last_answer: AtomicU32::new(0),
            index: group
                .targets
                .iter()
                .enumerate()
                .map(|(index, target)| (*target, index))
                .collect(),
            stop: AtomicBool::new(false),
            start: Instant::now(),
        }
    }

    /// Microseconds since the start, never 0; wraps after 71 minutes, so compare by difference.
    pub fn now(&self) -> u32 {
        (self.start.elapsed().as_micros() as u32).max(1)
    }

    /// State of a port.
    pub fn state(&self, target: usize, port: u16) -> u8 {
        self.states[target << 16 | usize::from(port)].load(Relaxed)
    }

    /// Ends the listening.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }
}

/// Reads replies until told to stop.
pub fn listen(
    shared: &Shared<'_>,
    mut receiver: Receiver,
    mut resetter: Sender,
) -> std::io::Result<()> {
    let resets: Vec<Option<Template>> = shared
        .group
        .targets
        .iter()
        .map(|target| Template::rst(shared.group.source, *target))
        .collect();
    while !shared.stop.load(Relaxed) {
        let mut failure = None;
        receiver.receive(Duration::from_millis(5), |packet| {
            if let Some((target, sport, dport, seq)) = parse(packet).and_then(|r| hear(shared, r))
                && let Some(reset) = &resets[target]
                && let Err(error) = resetter.push(|out| reset.write(out, sport, dport, seq))
            {
                failure = Some(error);
            }
        })?;
        // The kernel answers a SYN-ACK that it knows nothing of with a reset too, unless a local
        // firewall is in the way: half-open connections must not linger at the target.
        resetter.flush()?;
        if let Some(error) = failure {
            return Err(error);
        }
    }
    Ok(())
}

/// Takes note of a reply; an accepted SYN-ACK asks for a reset with these numbers.
fn hear(shared: &Shared<'_>, reply: Reply) -> Option<(usize, u16, u16, u32)> {
    let (from, port, own, state) = match reply {
        Reply::Tcp {
            from,
            sport,
            dport,
            flags,
            ..
        } => {
            let state = if flags & (SYN | ACK) == SYN | ACK && flags & RST == 0 {
                OPEN
            } else if flags & (RST | ACK) == RST | ACK {
                CLOSED
            } else {
                return None;
            };
            (from, sport, dport, state)
        }
        Reply::Icmp {
            reason,
            target,
            sport,
            dport,
            ..
        } => (target, dport, sport, reason as u8),
    };
    let target = *shared.index.get(&from)?;
    let round = if own == shared.sport {
        0
    } else {
        shared.round.load(Relaxed)
    };
    let expect = shared.cookies.sequence(from, own, port, round);
    let genuine = match reply {
        Reply::Tcp { ack, .. } => ack == expect.wrapping_add(1),
        Reply::Icmp { seq, .. } => seq == expect,
    };
    if !genuine {
        return None;
    }
    let now = shared.now();
    if own == shared.sport {
        note(shared, target, port, state, now);
    } else if let Some(slot) = own
        .checked_sub(shared.sport + 1)
        .and_then(|slot| shared.slots[target].get(usize::from(slot)))
    {
        match reply {
            // The first answer is the one that tells the round trip time.
            Reply::Tcp { .. } if slot.answered.load(Relaxed) == 0 => {
                slot.answered.store(now, Relaxed);
            }
            Reply::Tcp { .. } => {}
            Reply::Icmp { .. } => slot.refused.store(true, Relaxed),
        }
    }
    match (reply, state) {
        (Reply::Tcp { ack, .. }, OPEN) => Some((target, own, port, ack)),
        _ => None,
    }
}

fn note(shared: &Shared<'_>, target: usize, port: u16, state: u8, now: u32) {
    let cell = &shared.states[target << 16 | usize::from(port)];
    let before = cell.load(Relaxed);
    // An answer of the host itself outranks an ICMP error, an open port outranks all.
    let better = before == SILENT
        || (state == OPEN && before != OPEN)
        || (state == CLOSED && before > CLOSED);
    if better {
        cell.store(state, Relaxed);
    }
    if before == SILENT {
        shared.settled.fetch_add(1, Relaxed);
        // Errors may be this machine's own, seconds later; a host's answer tells its distance.
        if state == OPEN || state == CLOSED {
            shared.last_answer.store(now, Relaxed);
        }
    }
}
