//! The rounds: one thread sends at a paced rate, one reads answers, canaries tell what was lost.

use super::PacketOptions;
use super::cookie::Cookies;
use super::frame::{ACK, RST, Reply, SYN, Template, parse};
use super::plan::Group;
use super::risk::{SURE, loss_bound, risk};
use super::wire::{Receiver, Sender};
use crate::{PortSet, ScanError};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, socket};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// No answer yet.
pub const SILENT: u8 = 0;
/// SYN-ACK.
pub const OPEN: u8 = 1;
/// RST.
pub const CLOSED: u8 = 2;

/// Rounds after which an unsure scan gives up.
const MAX_ROUNDS: u32 = 16;
/// Packets per second that a directly connected link gets at the most.
const ON_LINK_RATE: f64 = 400_000.0;
/// Canary knocks a target and round.
const CANARIES: usize = 2048;
/// Ports of a target that serve as canaries at the most.
const CANARY_PORTS: usize = 16;
/// Canary knocks under way at once on one port: a listener's SYN queue is not flooded.
const CANARY_BACKLOG: u32 = 64;
/// First of our ports: above the range that Linux gives out by itself (ip_local_port_range).
const FIRST_PORT: u16 = 61_000;
const LAST_PORT: u16 = 65_535;
/// Longest first wait for any answer, until a round trip time is known.
const FIRST_WAIT: Duration = Duration::from_millis(1000);
/// Ports asked first, to find canaries: what servers like these listen on.
const LIKELY: [u16; 24] = [
    443, 80, 22, 8080, 8443, 11434, 8000, 3000, 5000, 7860, 8188, 8265, 8888, 6333, 6379, 5432,
    9090, 9100, 2222, 25, 53, 3389, 445, 1,
];

/// What became of every port of every target of a group.
pub struct Outcome {
    states: Vec<AtomicU8>,
    /// Per target: the risk of a missed open port is small enough.
    pub sure: Vec<bool>,
}

impl Outcome {
    /// State of a port: [`SILENT`], [`OPEN`], [`CLOSED`] or an `Unreachable` as number.
    pub fn state(&self, target: usize, port: u16) -> u8 {
        self.states[target << 16 | usize::from(port)].load(Relaxed)
    }
}

/// One canary knock of the round under way.
struct Canary {
    answered: AtomicBool,
}

struct Shared<'a> {
    group: &'a Group,
    index: HashMap<IpAddr, usize>,
    cookies: Cookies,
    sport: u16,
    states: Vec<AtomicU8>,
    /// Canary slots of each target, by our port minus the first canary port.
    canaries: Vec<Vec<Canary>>,
    /// The port that canary slot i of a target knocks on.
    canary_port: Vec<Vec<AtomicU32>>,
    round: AtomicU32,
    settled: AtomicU64,
    /// Microseconds since `start` at which the last packet for us came in.
    last_answer: AtomicU64,
    /// Longest round trip seen, microseconds.
    slowest: AtomicU64,
    /// When the first knocks of the calibration went out, microseconds since `start`.
    calibrating: AtomicU64,
    dropped: AtomicU64,
    stop: AtomicBool,
    start: Instant,
}

/// Knocks until it is sure, gives up, or `end` comes.
pub fn knock(
    group: &Group,
    ports: &PortSet,
    options: &PacketOptions,
    end: Instant,
    tell: &mut dyn FnMut(usize),
) -> Result<Outcome, ScanError> {
    let failed = |what| move |source| ScanError::Io { what, source };
    let (_reserved, sport) = reserve(group.source).map_err(failed("no free port to knock from"))?;
    let slots = usize::from(LAST_PORT - sport).min(CANARIES);
    let count = group.targets.len();
    let shared = Shared {
        group,
        index: group
            .targets
            .iter()
            .enumerate()
            .map(|(index, target)| (*target, index))
            .collect(),
        cookies: Cookies::default(),
        sport,
        states: (0..count << 16).map(|_| AtomicU8::new(SILENT)).collect(),
        canaries: (0..count)
            .map(|_| {
                (0..slots)
                    .map(|_| Canary {
                        answered: AtomicBool::new(false),
                    })
                    .collect()
            })
            .collect(),
        canary_port: (0..count)
            .map(|_| (0..slots).map(|_| AtomicU32::new(0)).collect())
            .collect(),
        round: AtomicU32::new(0),
        settled: AtomicU64::new(0),
        last_answer: AtomicU64::new(0),
        slowest: AtomicU64::new(0),
        calibrating: AtomicU64::new(u64::MAX),
        dropped: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        start: Instant::now(),
    };
    let last = sport + slots as u16;
    let receiver = Receiver::open(&group.link, (sport, last))
        .map_err(failed("packet sockets need CAP_NET_RAW"))?;
    let resetter = Sender::open(&group.link).map_err(failed("packet sockets need CAP_NET_RAW"))?;
    let sender = Sender::open(&group.link).map_err(failed("packet sockets need CAP_NET_RAW"))?;

    let sure = std::thread::scope(|scope| {
        let listener = scope.spawn(|| listen(&shared, receiver, resetter));
        let result = Rounds::new(&shared, sender, ports, options, end).run(tell);
        shared.stop.store(true, Relaxed);
        match listener.join() {
            Ok(heard) => heard.and(result),
            Err(_) => Err(std::io::Error::other("the listening thread failed")),
        }
    })
    .map_err(failed("knocking failed"))?;
    Ok(Outcome {
        states: shared.states,
        sure,
    })
}

/// Binds a port without listening on it, so that no program of this host gets it meanwhile.
fn reserve(source: IpAddr) -> std::io::Result<(OwnedFd, u16)> {
    let spread = usize::from(LAST_PORT - FIRST_PORT) - CANARIES;
    // Any spot will do; a different one each time keeps two scans apart.
    let offset = std::process::id() as usize % spread;
    for step in 0..spread {
        let port = FIRST_PORT + ((offset + step) % spread) as u16;
        let family = match source {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let bound = match source {
            IpAddr::V4(address) => bind(
                fd.as_raw_fd(),
                &SockaddrIn::from(SocketAddrV4::new(address, port)),
            ),
            IpAddr::V6(address) => bind(
                fd.as_raw_fd(),
                &SockaddrIn6::from(SocketAddrV6::new(address, port, 0, 0)),
            ),
        };
        if bound.is_ok() {
            return Ok((fd, port));
        }
    }
    Err(std::io::Error::from(std::io::ErrorKind::AddrInUse))
}

// ---- listening ----

fn listen(
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
        shared
            .dropped
            .fetch_add(u64::from(receiver.dropped()), Relaxed);
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
    let now = micros(shared.start);
    shared.last_answer.store(now, Relaxed);
    if own == shared.sport {
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
        }
        let sent = shared.calibrating.load(Relaxed);
        if sent != u64::MAX {
            shared.slowest.fetch_max(now.saturating_sub(sent), Relaxed);
        }
    } else if let Some(canary) = own
        .checked_sub(shared.sport + 1)
        .and_then(|slot| shared.canaries[target].get(usize::from(slot)))
    {
        canary.answered.store(true, Relaxed);
    }
    match (reply, state) {
        (Reply::Tcp { ack, .. }, OPEN) => Some((target, own, port, ack)),
        _ => None,
    }
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

// ---- sending ----

struct Rounds<'a> {
    shared: &'a Shared<'a>,
    sender: Sender,
    syns: Vec<Option<Template>>,
    ports: Vec<u16>,
    max_rate: f64,
    rate: f64,
    end: Instant,
    /// Bounds on the loss of the rounds so far, a list a target.
    bounds: Vec<Vec<f64>>,
    baseline: f64,
}

/// Where a round's canaries are, a target each.
struct CanaryPlan {
    /// Ports to knock on in turn; empty: the target has none.
    ports: Vec<u16>,
    sent: usize,
    /// When each slot was sent, microseconds.
    times: Vec<u64>,
    /// Slots before this one were judged for pacing.
    judged: usize,
}

impl<'a> Rounds<'a> {
    fn new(
        shared: &'a Shared<'a>,
        sender: Sender,
        ports: &PortSet,
        options: &PacketOptions,
        end: Instant,
    ) -> Self {
        let targets = &shared.group.targets;
        let max_rate = if shared.group.on_link {
            options.max_rate.max(ON_LINK_RATE)
        } else {
            options.max_rate
        };
        Rounds {
            shared,
            sender,
            syns: targets
                .iter()
                .map(|target| Template::syn(shared.group.source, *target))
                .collect(),
            ports: shuffled(ports),
            max_rate: max_rate.max(100.0),
            rate: options.rate.clamp(100.0, max_rate.max(100.0)),
            end,
            bounds: vec![Vec::new(); targets.len()],
            baseline: 0.05,
        }
    }

    fn run(mut self, tell: &mut dyn FnMut(usize)) -> std::io::Result<Vec<bool>> {
        self.calibrate()?;
        for round in 1..=MAX_ROUNDS {
            self.round(round, tell)?;
            if self.all_sure() || Instant::now() >= self.end {
                break;
            }
        }
        let sure = (0..self.bounds.len()).map(|t| self.sure(t)).collect();
        Ok(sure)
    }

    /// A target is sure when nothing is silent, or the rounds' losses leave too little risk.
    fn sure(&self, target: usize) -> bool {
        let silent = self
            .ports
            .iter()
            .any(|port| self.state(target, *port) == SILENT);
        !silent || (self.bounds[target].len() >= 2 && risk(&self.bounds[target]) <= SURE)
    }

    fn all_sure(&self) -> bool {
        (0..self.bounds.len()).all(|target| self.sure(target))
    }

    fn state(&self, target: usize, port: u16) -> u8 {
        self.shared.states[target << 16 | usize::from(port)].load(Relaxed)
    }

    /// Asks a few likely ports first: they give the round trip time and the first canaries.
    fn calibrate(&mut self) -> std::io::Result<()> {
        let likely: Vec<u16> = LIKELY
            .into_iter()
            .filter(|port| self.ports.contains(port))
            .chain(self.ports.iter().copied().take(40))
            .collect();
        let sent = micros(self.shared.start);
        self.shared.calibrating.store(sent, Relaxed);
        for port in likely {
            for target in 0..self.syns.len() {
                self.knock(target, port)?;
            }
        }
        self.sender.flush()?;
        let begun = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(2));
            let waited = begun.elapsed();
            let quiet = micros(self.shared.start)
                .saturating_sub(self.shared.last_answer.load(Relaxed).max(sent));
            let heard = self.shared.last_answer.load(Relaxed) >= sent;
            // Once something answered, twice its time without more is enough.
            let slowest = self.shared.slowest.load(Relaxed);
            if waited >= FIRST_WAIT || (heard && quiet > 2 * slowest + 10_000) {
                break;
            }
        }
        self.shared.calibrating.store(u64::MAX, Relaxed);
        Ok(())
    }

    /// Longest wait for an answer: what was seen, with room for a queue that fills.
    fn patience(&self) -> Duration {
        match self.shared.slowest.load(Relaxed) {
            0 => FIRST_WAIT,
            slowest => Duration::from_micros(2 * slowest + 20_000).min(FIRST_WAIT * 3),
        }
    }

    fn round(&mut self, round: u32, tell: &mut dyn FnMut(usize)) -> std::io::Result<()> {
        let mut plans = self.canary_plans(round);
        let pace_start = Instant::now();
        let mut due = 0.0f64;
        let mut sent = 0u64;
        let mut epoch = Instant::now();
        let canary_every = (self.ports.len() * self.syns.len() / CANARIES.max(1)).clamp(1, 32);
        let ports = std::mem::take(&mut self.ports);
        for (number, port) in ports.iter().enumerate() {
            for target in 0..self.syns.len() {
                if self.state(target, *port) != SILENT || self.sure_without(target) {
                    continue;
                }
                self.knock(target, *port)?;
                sent += 1;
                due += 1.0 / self.rate;
                if sent % 64 == 0 {
                    self.pace(pace_start, due);
                }
            }
            if number % canary_every == 0 {
                for (target, plan) in plans.iter_mut().enumerate() {
                    if self.canary(target, plan, round)? {
                        due += 1.0 / self.rate;
                    }
                }
            }
            if epoch.elapsed() >= Duration::from_millis(20) {
                epoch = Instant::now();
                self.adapt(&mut plans);
                tell(self.shared.settled.load(Relaxed) as usize);
                if Instant::now() >= self.end {
                    break;
                }
            }
        }
        self.ports = ports;
        self.sender.flush()?;
        self.finish_canaries(&mut plans, round)?;
        std::thread::sleep(self.patience());
        for (target, plan) in plans.iter().enumerate() {
            let bound = self.judge(target, plan);
            self.bounds[target].push(bound);
        }
        tell(self.shared.settled.load(Relaxed) as usize);
        Ok(())
    }

    fn sure_without(&self, target: usize) -> bool {
        self.bounds[target].len() >= 2 && risk(&self.bounds[target]) <= SURE
    }

    fn knock(&mut self, target: usize, port: u16) -> std::io::Result<()> {
        let address = self.shared.group.targets[target];
        let sport = self.shared.sport;
        let seq = self.shared.cookies.sequence(address, sport, port, 0);
        match &self.syns[target] {
            Some(syn) => self.sender.push(|out| syn.write(out, sport, port, seq)),
            None => Ok(()),
        }
    }

    fn pace(&self, start: Instant, due: f64) {
        let ahead = due - start.elapsed().as_secs_f64();
        if ahead > 0.0001 {
            std::thread::sleep(Duration::from_secs_f64(ahead.min(0.05)));
        }
    }

    // ---- canaries ----

    /// Picks each target's canary ports: open ones, else closed ones, found so far.
    fn canary_plans(&self, round: u32) -> Vec<CanaryPlan> {
        self.shared.round.store(round, Relaxed);
        (0..self.syns.len())
            .map(|target| {
                for canary in &self.shared.canaries[target] {
                    canary.answered.store(false, Relaxed);
                }
                let of = |wanted: u8| -> Vec<u16> {
                    self.ports
                        .iter()
                        .copied()
                        .filter(|port| self.state(target, *port) == wanted)
                        .take(CANARY_PORTS)
                        .collect()
                };
                let open = of(OPEN);
                CanaryPlan {
                    ports: if open.is_empty() { of(CLOSED) } else { open },
                    sent: 0,
                    times: Vec::new(),
                    judged: 0,
                }
            })
            .collect()
    }

    /// Sends a target's next canary, unless too many are under way.
    fn canary(
        &mut self,
        target: usize,
        plan: &mut CanaryPlan,
        round: u32,
    ) -> std::io::Result<bool> {
        let slots = &self.shared.canaries[target];
        if plan.ports.is_empty() || plan.sent >= slots.len() {
            return Ok(false);
        }
        let backlog = CANARY_BACKLOG as usize * plan.ports.len();
        let now = micros(self.shared.start);
        if plan.sent >= backlog {
            let oldest = plan.sent - backlog;
            let young = now.saturating_sub(plan.times[oldest])
                < u64::try_from(self.patience().as_micros()).unwrap_or(u64::MAX);
            if young && !slots[oldest].answered.load(Relaxed) {
                return Ok(false);
            }
        }
        let port = plan.ports[plan.sent % plan.ports.len()];
        let own = self.shared.sport + 1 + plan.sent as u16;
        self.shared.canary_port[target][plan.sent].store(u32::from(port), Relaxed);
        let address = self.shared.group.targets[target];
        let seq = self.shared.cookies.sequence(address, own, port, round);
        if let Some(syn) = &self.syns[target] {
            self.sender.push(|out| syn.write(out, own, port, seq))?;
        }
        plan.times.push(now);
        plan.sent += 1;
        Ok(true)
    }

    /// Sends what the round was too short for, slowly enough for the listeners' queues.
    fn finish_canaries(&mut self, plans: &mut [CanaryPlan], round: u32) -> std::io::Result<()> {
        let enough = 400;
        let stop = Instant::now() + self.patience() * 4;
        while Instant::now() < stop.min(self.end) {
            let mut waiting = false;
            for (target, plan) in plans.iter_mut().enumerate() {
                if !plan.ports.is_empty() && plan.sent < enough && !self.sure_without(target) {
                    waiting = true;
                    for _ in 0..16 {
                        if !self.canary(target, plan, round)? {
                            break;
                        }
                    }
                }
            }
            self.sender.flush()?;
            if !waiting {
                break;
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        Ok(())
    }

    /// Speeds up after a clean epoch, slows down when more is lost than the path loses anyway.
    fn adapt(&mut self, plans: &mut [CanaryPlan]) {
        let settled_before = micros(self.shared.start)
            .saturating_sub(u64::try_from(self.patience().as_micros()).unwrap_or(0));
        let (mut seen, mut lost) = (0u32, 0u32);
        for (target, plan) in plans.iter_mut().enumerate() {
            while plan.judged < plan.sent && plan.times[plan.judged] < settled_before {
                seen += 1;
                let answered = self.shared.canaries[target][plan.judged]
                    .answered
                    .load(Relaxed);
                lost += u32::from(!answered);
                plan.judged += 1;
            }
        }
        if seen < 8 {
            return;
        }
        let loss = f64::from(lost) / f64::from(seen);
        self.rate = if loss > self.baseline + 0.1 {
            (self.rate * 0.7).max(1000.0)
        } else {
            (self.rate * 1.25).min(self.max_rate)
        };
    }

    /// The bound on what this round lost. A port that answers far worse than the others limits its
    /// rate and tells nothing about the path.
    fn judge(&mut self, target: usize, plan: &CanaryPlan) -> f64 {
        let mut tally: HashMap<u32, (u32, u32)> = HashMap::new();
        for slot in 0..plan.sent {
            let port = self.shared.canary_port[target][slot].load(Relaxed);
            let answered = self.shared.canaries[target][slot].answered.load(Relaxed);
            let entry = tally.entry(port).or_default();
            entry.0 += 1;
            entry.1 += u32::from(!answered);
        }
        let rate = |(sent, lost): &(u32, u32)| f64::from(*lost) / f64::from((*sent).max(1));
        let best = tally.values().map(rate).fold(1.0, f64::min);
        let (sent, lost) = tally
            .values()
            .filter(|entry| rate(entry) <= 3.0 * best + 0.1)
            .fold((0, 0), |sum, entry| (sum.0 + entry.0, sum.1 + entry.1));
        if sent > 0 {
            let seen = f64::from(lost) / f64::from(sent);
            self.baseline = self.baseline.min(seen.max(0.005));
        }
        loss_bound(sent, lost)
    }
}

/// The ports in an order without pattern, so that neighbours are not hit in bursts and a burst of
/// loss does not take a whole range.
fn shuffled(ports: &PortSet) -> Vec<u16> {
    // Multiplying by an odd number permutes the 16-bit numbers (2^16 / golden ratio, made odd).
    let mut keyed: Vec<(u16, u16)> = ports
        .iter()
        .map(|port| (port.wrapping_mul(40_503), port))
        .collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, port)| port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffling_keeps_every_port_once() {
        let all = PortSet::all();
        let mut order = shuffled(&all);
        assert_ne!(order[..3], [1, 2, 3]);
        order.sort_unstable();
        assert!(order.iter().copied().eq(all.iter()));
    }
}
