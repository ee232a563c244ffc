//! Knocking with connect(): works for everybody, needs no privilege.
//!
//! Non-blocking sockets under epoll in a sliding window. What fails for reasons of this machine
//! (EMFILE, ENOBUFS, EADDRNOTAVAIL, EAGAIN) is tried again and is never a verdict. Connections are
//! closed by reset (SO_LINGER 0), so that neither side keeps state.

mod dial;
mod measure;

use crate::packet::canary::PERCHES;
use crate::{
    Options, PortReport, PortSet, PortState, Progress, Report, SCAN_SCHEMA, ScanError, Summary,
    TargetReport,
};
use dial::{Answer, classify, descriptor_budget, dial};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{getsockopt, sockopt};
use std::collections::VecDeque;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Connections started per turn, so that answers are read between bursts and the path's queues
/// are not overrun.
const BURST: usize = 256;
/// Local failures in a row after which the scan gives up as partial.
const LOCAL_FAILURES: u32 = 10_000;

/// Knocks on every port of every target.
///
/// # Errors
/// Only when epoll cannot be had. Everything else is part of the report.
pub fn scan(
    targets: &[IpAddr],
    ports: &PortSet,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, ScanError> {
    let end = Instant::now() + options.deadline;
    let mut report = Report {
        schema: SCAN_SCHEMA,
        partial: false,
        targets: Vec::new(),
    };
    let total = ports.len() * targets.len();
    for (index, &address) in targets.iter().enumerate() {
        let settled_before = index * ports.len();
        let mut tell = |settled: usize| {
            progress(Progress {
                settled: settled_before + settled,
                total,
            });
        };
        let knocked = Knocker::new(address, ports, options, end)?.run(&mut tell)?;
        let partial = knocked.unsettled > 0 || knocked.note.is_some();
        report.partial |= partial;
        let target = TargetReport {
            address,
            source: source_towards(address),
            asked: ports.to_string(),
            partial,
            ports: knocked.ports,
            summary: knocked.summary,
            udp: None,
            note: knocked.note,
        };
        report.targets.push(target.folded());
    }
    Ok(report)
}

/// The source address that this machine would use towards `target`; no packet is sent.
pub fn source_towards(target: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match target {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let probe = UdpSocket::bind((any, 0)).ok()?;
    probe.connect((target, 9)).ok()?;
    Some(probe.local_addr().ok()?.ip())
}

#[derive(Default)]
struct Knocked {
    ports: Vec<PortReport>,
    summary: Summary,
    unsettled: usize,
    /// Why silence proves nothing here.
    note: Option<String>,
    /// Ports that never answered, and some that did and may be canaries.
    silent: Vec<u16>,
    closed: Vec<u16>,
}

/// Canary knocks that were answered, and all.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    sent: u32,
    lost: u32,
}

struct Try {
    socket: OwnedFd,
    port: u16,
    attempt: u32,
    deadline: Instant,
}

struct Knocker<'a> {
    address: IpAddr,
    options: &'a Options,
    window: usize,
    end: Instant,
    epoll: Epoll,
    /// Ports to knock on, with the number of attempts already made.
    queue: VecDeque<(u16, u32)>,
    /// Tries under way by slot; `order` lists slots by deadline, oldest first.
    tries: Vec<Option<Try>>,
    free: Vec<usize>,
    order: VecDeque<(usize, Instant)>,
    local_failures: u32,
    /// While canaries are knocked on: what became of them.
    measuring: Option<Tally>,
    /// Attempts on a silent port so far decided on.
    attempts: u32,
    result: Knocked,
}

impl<'a> Knocker<'a> {
    fn new(
        address: IpAddr,
        ports: &PortSet,
        options: &'a Options,
        end: Instant,
    ) -> Result<Self, ScanError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| ScanError::Io {
            what: "epoll is needed to wait for answers",
            source: errno.into(),
        })?;
        let window = options.window.clamp(1, descriptor_budget());
        Ok(Knocker {
            address,
            options,
            window,
            end,
            epoll,
            queue: ports.iter().map(|port| (port, 0)).collect(),
            tries: (0..window).map(|_| None).collect(),
            free: (0..window).rev().collect(),
            order: VecDeque::new(),
            local_failures: 0,
            measuring: None,
            attempts: options.attempts.max(1),
            result: Knocked::default(),
        })
    }

    fn run(mut self, tell: &mut dyn FnMut(usize)) -> Result<Knocked, ScanError> {
        self.drain(tell)?;
        let silent = self.result.silent.len();
        if self.unsettled() == 0 && silent > 0 {
            self.make_sure(tell)?;
        }
        self.result.unsettled = self.unsettled();
        self.result.ports.sort_by_key(|port| port.port);
        Ok(self.result)
    }

    fn unsettled(&self) -> usize {
        self.tries.iter().flatten().count() + self.queue.len()
    }

    fn drain(&mut self, tell: &mut dyn FnMut(usize)) -> Result<(), ScanError> {
        let mut events = vec![EpollEvent::empty(); 1024];
        let mut settled = 0;
        loop {
            let under_way = self.window - self.free.len();
            if (self.queue.is_empty() && under_way == 0)
                || Instant::now() >= self.end
                || self.local_failures >= LOCAL_FAILURES
            {
                break;
            }
            for _ in 0..BURST {
                if !self.start_next() {
                    break;
                }
            }
            self.collect(&mut events)?;
            self.expire();
            let now_settled = self.result.settled();
            if now_settled != settled {
                settled = now_settled;
                tell(settled);
            }
        }
        Ok(())
    }

    /// Starts the next knock; false when there is none or no room.
    fn start_next(&mut self) -> bool {
        let Some(slot) = self.free.pop() else {
            return false;
        };
        let Some((port, attempt)) = self.queue.pop_front() else {
            self.free.push(slot);
            return false;
        };
        match self.start(slot, port, attempt) {
            Ok(()) => {
                self.local_failures = 0;
                true
            }
            Err(answer) => {
                self.free.push(slot);
                let go_on = !matches!(answer, Answer::LocalFailure);
                self.settle(port, attempt, answer);
                go_on
            }
        }
    }

    fn start(&mut self, slot: usize, port: u16, attempt: u32) -> Result<(), Answer> {
        let socket = dial(self.address, port)?;
        let interest = EpollEvent::new(
            EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP,
            slot as u64,
        );
        self.epoll.add(&socket, interest).map_err(classify)?;
        let deadline = Instant::now() + self.options.timeout;
        self.order.push_back((slot, deadline));
        self.tries[slot] = Some(Try {
            socket,
            port,
            attempt,
            deadline,
        });
        Ok(())
    }

    /// Reads the answers that are there, waiting at most until the oldest try expires.
    fn collect(&mut self, events: &mut [EpollEvent]) -> Result<(), ScanError> {
        let can_start = !self.queue.is_empty() && !self.free.is_empty();
        let wait = if can_start {
            Duration::from_millis(1)
        } else {
            self.order
                .front()
                .map_or(Duration::from_millis(1), |(_, deadline)| {
                    deadline.saturating_duration_since(Instant::now())
                })
                .clamp(Duration::from_millis(1), Duration::from_millis(100))
        };
        let millis = u16::try_from(wait.as_millis()).unwrap_or(100);
        let count = match self.epoll.wait(events, EpollTimeout::from(millis)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => {
                return Err(ScanError::Io {
                    what: "waiting for answers failed",
                    source: errno.into(),
                });
            }
        };
        for event in &events[..count] {
            let Ok(slot) = usize::try_from(event.data()) else {
                continue;
            };
            let Some(knock) = self.tries.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            let answer = match getsockopt(&knock.socket, sockopt::SocketError) {
                Ok(0) => Answer::Open,
                Ok(code) => classify(Errno::from_raw(code)),
                Err(errno) => classify(errno),
            };
            self.free.push(slot);
            self.settle(knock.port, knock.attempt, answer);
        }
        Ok(())
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(&(slot, deadline)) = self.order.front() {
            if deadline > now {
                break;
            }
            self.order.pop_front();
            // The slot may have been answered and taken again since: then its deadline differs.
            let expired = self.tries[slot]
                .as_ref()
                .is_some_and(|knock| knock.deadline == deadline);
            if expired && let Some(knock) = self.tries[slot].take() {
                self.free.push(slot);
                self.settle(knock.port, knock.attempt, Answer::Silent);
            }
        }
    }

    fn settle(&mut self, port: u16, attempt: u32, answer: Answer) {
        let found = |state, reason: &str| PortReport {
            proto: "tcp".into(),
            port,
            state,
            reason: reason.into(),
            service: None,
        };
        if let Some(tally) = &mut self.measuring {
            match answer {
                Answer::Open | Answer::Closed => tally.sent += 1,
                Answer::Rejected(_) | Answer::Silent => {
                    tally.sent += 1;
                    tally.lost += 1;
                }
                Answer::LocalFailure => {
                    self.local_failures += 1;
                    self.queue.push_back((port, attempt));
                }
            }
            return;
        }
        match answer {
            Answer::Open => {
                self.result.summary.open += 1;
                self.result.ports.push(found(PortState::Open, "syn-ack"));
            }
            Answer::Closed => {
                self.result.summary.closed += 1;
                if self.result.closed.len() < PERCHES {
                    self.result.closed.push(port);
                }
            }
            Answer::Rejected(reason) => {
                self.result.summary.rejected += 1;
                self.result.ports.push(found(PortState::Rejected, reason));
            }
            Answer::Silent if attempt + 1 < self.attempts => {
                self.queue.push_back((port, attempt + 1));
            }
            Answer::Silent => {
                self.result.summary.filtered += 1;
                self.result.silent.push(port);
            }
            Answer::LocalFailure => {
                self.local_failures += 1;
                self.queue.push_back((port, attempt));
            }
        }
    }
}

impl Knocked {
    fn settled(&self) -> usize {
        let summary = self.summary;
        summary.open + summary.closed + summary.rejected + summary.filtered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn check(ports: &str, expect_open: &[u16]) -> Report {
        let ports = PortSet::parse(ports).unwrap();
        let report = scan(
            &["127.0.0.1".parse().unwrap()],
            &ports,
            &Options::default(),
            &mut |_| {},
        )
        .unwrap();
        let open: Vec<u16> = report.targets[0].ports.iter().map(|p| p.port).collect();
        assert_eq!(open, expect_open);
        assert_eq!(
            report.targets[0].summary.open + report.targets[0].summary.closed,
            ports.len()
        );
        report
    }

    #[test]
    fn finds_the_listener_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let report = check(&format!("{port}"), &[port]);
        assert!(!report.inconclusive());
        assert_eq!(report.targets[0].source, Some("127.0.0.1".parse().unwrap()));
        drop(listener);
        check(&format!("{port}"), &[]);
    }

    #[test]
    fn a_report_without_any_answer_is_inconclusive() {
        let report = Report {
            schema: SCAN_SCHEMA,
            partial: false,
            targets: vec![TargetReport {
                address: "192.0.2.1".parse().unwrap(),
                source: None,
                asked: "1-65535".into(),
                partial: false,
                ports: vec![],
                summary: Summary {
                    filtered: 65535,
                    ..Summary::default()
                },
                udp: None,
                note: None,
            }],
        };
        assert!(report.inconclusive());
    }

    #[test]
    fn an_unfinished_scan_is_partial() {
        let options = Options {
            deadline: Duration::ZERO,
            ..Options::default()
        };
        let report = scan(
            &["127.0.0.1".parse().unwrap()],
            &PortSet::all(),
            &options,
            &mut |_| {},
        )
        .unwrap();
        assert!(report.partial && report.inconclusive());
    }
}
