//! The rounds: one thread sends at a paced rate, one reads answers, canaries tell what was lost.

mod measure;

use super::PacketOptions;
use super::canary::Canaries;
use super::flow::{Flow, Pace};
use super::frame::{Template, Unreachable};
use super::listen::{CLOSED, OPEN, Shared, listen};
use super::plan::Group;
use super::risk::{SURE, risk};
use super::wire::{Receiver, Sender};
use crate::{PortSet, ScanError};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, socket};
use std::io;
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Rounds after which an unsure scan gives up.
const MAX_ROUNDS: u32 = 16;
/// Rounds that a target without any measure gets.
const BLIND_ROUNDS: usize = 2;
/// Packets per second that a directly connected link gets at the most.
const ON_LINK_RATE: f64 = 400_000.0;
/// Packets per second that a routed path gets at the most.
const ROUTED_RATE: f64 = 150_000.0;
/// Canary knocks a target and round.
const CANARIES: usize = 2048;
/// First of our ports: above the range that Linux gives out by itself (ip_local_port_range).
const FIRST_PORT: u16 = 61_000;
const LAST_PORT: u16 = 65_535;
/// Longest wait for an answer until a round trip time is known.
const FIRST_WAIT: Duration = Duration::from_millis(1000);
/// How often the rate is judged.
const EPOCH: Duration = Duration::from_millis(20);
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
    /// Per target: why it is not sure.
    pub excuses: Vec<Option<String>>,
}

impl Outcome {
    /// State of a port: silent, open, closed or an `Unreachable` as number.
    pub fn state(&self, target: usize, port: u16) -> u8 {
        self.states[target << 16 | usize::from(port)].load(Relaxed)
    }
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
    let shared = Shared::new(group, sport, slots);
    let last = sport + slots as u16;
    let privileged = "packet sockets need CAP_NET_RAW";
    let receiver = Receiver::open(&group.link, (sport, last)).map_err(failed(privileged))?;
    let resetter = Sender::open(&group.link).map_err(failed(privileged))?;
    let sender = Sender::open(&group.link).map_err(failed(privileged))?;

    let verdicts = std::thread::scope(|scope| {
        let listener = scope.spawn(|| listen(&shared, receiver, resetter));
        let result = Rounds::new(&shared, sender, ports, options, end).run(tell);
        shared.stop();
        match listener.join() {
            Ok(heard) => heard.and(result),
            Err(_) => Err(io::Error::other("the listening thread failed")),
        }
    })
    .map_err(failed("knocking failed"))?;
    let (sure, excuses) = verdicts.into_iter().unzip();
    Ok(Outcome {
        states: shared.states,
        sure,
        excuses,
    })
}

/// Binds a port without listening on it, so that no program of this host gets it meanwhile.
fn reserve(source: IpAddr) -> io::Result<(OwnedFd, u16)> {
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
    Err(io::Error::from(io::ErrorKind::AddrInUse))
}

/// True when a port need not be knocked on again. "Host unreachable" may be a neighbour that is
/// slow to answer ARP, and passes.
fn is_final(state: u8) -> bool {
    state == OPEN
        || state == CLOSED
        || [
            Unreachable::Port,
            Unreachable::Prohibited,
            Unreachable::Protocol,
        ]
        .iter()
        .any(|reason| *reason as u8 == state)
}

/// Upper bounds on what a round lost.
#[derive(Clone)]
struct Bounds {
    /// Should no round follow.
    as_last: f64,
    /// Once another one has followed.
    with_more: f64,
}

struct Rounds<'a> {
    shared: &'a Shared<'a>,
    sender: Sender,
    syns: Vec<Option<Template>>,
    ports: Vec<u16>,
    canaries: Vec<Canaries>,
    flow: Flow,
    end: Instant,
    /// Bounds on the loss of the rounds so far, a list a target; 1 for a round without canaries.
    bounds: Vec<Vec<Bounds>>,
    /// How long an answer may take.
    patience: Duration,
    /// Number of the trial or round under way.
    turn: u32,
    rests: u32,
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
        let max_rate = match options.max_rate {
            Some(rate) => rate,
            None if shared.group.on_link => ON_LINK_RATE,
            None => ROUTED_RATE,
        };
        Rounds {
            shared,
            sender,
            syns: targets
                .iter()
                .map(|target| Template::syn(shared.group.source, *target))
                .collect(),
            ports: shuffled(ports),
            canaries: targets.iter().map(|_| Canaries::default()).collect(),
            flow: Flow::new(options.rate, max_rate),
            end,
            bounds: vec![Vec::new(); targets.len()],
            patience: FIRST_WAIT,
            turn: 0,
            rests: 0,
        }
    }

    fn run(mut self, tell: &mut dyn FnMut(usize)) -> io::Result<Vec<(bool, Option<String>)>> {
        self.calibrate()?;
        self.trial()?;
        let mut rounds = 0;
        let mut cut_short = 0;
        while rounds < MAX_ROUNDS && !self.all_done() && Instant::now() < self.end {
            // A round without any canary is cut short as soon as a port can be one.
            if self.round(cut_short < 3, tell)? {
                rounds += 1;
            } else {
                cut_short += 1;
            }
            self.trial()?;
        }
        Ok((0..self.bounds.len())
            .map(|target| {
                let sure = self.sure(target);
                (sure, (!sure).then(|| self.excuse(target)))
            })
            .collect())
    }

    fn excuse(&self, target: usize) -> String {
        if self.canaries[target].perches.is_empty() {
            return self.canaries[target].excuse();
        }
        if Instant::now() >= self.end {
            return "the time for the scan was over before it was sure".into();
        }
        format!(
            "too much is lost on the way to be sure: the risk of a missed open port is still {:.0e}",
            self.risk(target)
        )
    }

    /// A target is sure when nothing is silent, or the rounds' losses leave too little risk.
    fn sure(&self, target: usize) -> bool {
        self.measured(target)
            || self
                .ports
                .iter()
                .all(|port| is_final(self.shared.state(target, *port)))
    }

    fn measured(&self, target: usize) -> bool {
        self.bounds[target].len() >= 2 && self.risk(target) <= SURE
    }

    /// Risk of a missed open port, should no round follow.
    fn risk(&self, target: usize) -> f64 {
        let Some((last, earlier)) = self.bounds[target].split_last() else {
            return risk(&[]);
        };
        let earlier = earlier.iter().map(|round| round.with_more);
        risk(&earlier.chain([last.as_last]).collect::<Vec<f64>>())
    }

    /// True when more rounds would tell nothing: there is no measure and none in sight.
    fn hopeless(&self, target: usize) -> bool {
        self.canaries[target].perches.is_empty()
            && self.bounds[target].len() >= BLIND_ROUNDS
            && self.candidates(target).is_empty()
    }

    fn done(&self, target: usize) -> bool {
        self.measured(target) || self.hopeless(target)
    }

    fn all_done(&self) -> bool {
        (0..self.bounds.len()).all(|target| self.done(target) || self.sure(target))
    }

    /// Asks a few likely ports first: they give the round trip time and the first canaries.
    fn calibrate(&mut self) -> io::Result<()> {
        let likely: Vec<u16> = LIKELY
            .into_iter()
            .filter(|port| self.ports.contains(port))
            .chain(self.ports.iter().copied().take(40))
            .collect();
        let sent = self.shared.now();
        for port in likely {
            for target in 0..self.syns.len() {
                self.knock(target, port)?;
            }
        }
        self.sender.flush()?;
        let begun = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(2));
            let last = self.shared.last_answer.load(Relaxed);
            let quiet = self.shared.now().wrapping_sub(last);
            // Once something answered, twice its time without more is enough.
            let far = last.wrapping_sub(sent);
            if begun.elapsed() >= FIRST_WAIT
                || (last != 0 && quiet > far.saturating_mul(2).saturating_add(10_000))
            {
                return Ok(());
            }
        }
    }

    /// One pass over what is silent; false when it was cut short because canaries can be had now.
    fn round(&mut self, may_cut: bool, tell: &mut dyn FnMut(usize)) -> io::Result<bool> {
        self.begin_turn();
        let mut pace = Pace::new();
        let mut epoch = Instant::now();
        let (mut cut, mut whole) = (false, true);
        let mut unpaced = 0;
        let answered = self.shared.last_answer.load(Relaxed);
        let canary_every = (self.ports.len() * self.syns.len() / CANARIES).clamp(1, 32);
        let ports = std::mem::take(&mut self.ports);
        let done: Vec<bool> = (0..self.syns.len()).map(|t| self.done(t)).collect();
        for (number, port) in ports.iter().enumerate() {
            for (target, done) in done.iter().enumerate() {
                if *done || is_final(self.shared.state(target, *port)) {
                    continue;
                }
                self.knock(target, *port)?;
                unpaced += 1;
                if unpaced >= 64 {
                    pace.take(unpaced, self.flow.rate);
                    unpaced = 0;
                }
            }
            if number % canary_every == 0 {
                for (target, done) in done.iter().enumerate() {
                    if !done {
                        unpaced += u32::from(self.canary(target)?);
                    }
                }
            }
            if epoch.elapsed() >= EPOCH {
                epoch = Instant::now();
                self.adapt()?;
                tell(self.shared.settled.load(Relaxed) as usize);
                if epoch >= self.end {
                    // Not every port was asked in this round: it adds nothing to what is sure.
                    whole = false;
                    break;
                }
                let blind = self.canaries.iter().all(|c| c.perches.is_empty());
                let news = self.shared.last_answer.load(Relaxed) != answered;
                if may_cut && blind && news && self.found_candidate(&ports) {
                    cut = true;
                    break;
                }
            }
        }
        self.ports = ports;
        self.sender.flush()?;
        if cut {
            return Ok(false);
        }
        self.finish_canaries(&done)?;
        std::thread::sleep(self.patience);
        for (target, done) in done.iter().enumerate() {
            if !done && whole {
                let bounds = self.judge(target);
                self.bounds[target].push(bounds);
            }
        }
        self.learn_patience();
        tell(self.shared.settled.load(Relaxed) as usize);
        Ok(true)
    }

    fn knock(&mut self, target: usize, port: u16) -> io::Result<()> {
        let address = self.shared.group.targets[target];
        let sport = self.shared.sport;
        let seq = self.shared.cookies.sequence(address, sport, port, 0);
        match &self.syns[target] {
            Some(syn) => self.sender.push(|out| syn.write(out, sport, port, seq)),
            None => Ok(()),
        }
    }
}

fn wait_micros(wait: Duration) -> u32 {
    u32::try_from(wait.as_micros()).unwrap_or(u32::MAX)
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
