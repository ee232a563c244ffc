//! Knocking with connect(): works for everybody, needs no privilege.
//!
//! Non-blocking sockets under epoll in a sliding window. What fails for reasons of this machine
//! (EMFILE, ENOBUFS, EADDRNOTAVAIL, EAGAIN) is tried again and is never a verdict. Connections are
//! closed by reset (SO_LINGER 0), so that neither side keeps state.

use crate::{
    Options, PortReport, PortSet, PortState, Progress, Report, SCAN_SCHEMA, ScanError, Summary,
    TargetReport,
};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, connect, getsockopt,
    setsockopt, socket, sockopt,
};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Descriptors left for the rest of the process.
const SPARE_DESCRIPTORS: u64 = 64;
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
        report.partial |= knocked.unsettled > 0;
        let target = TargetReport {
            address,
            source: source_towards(address),
            asked: ports.to_string(),
            ports: knocked.ports,
            summary: knocked.summary,
            note: None,
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

struct Knocked {
    ports: Vec<PortReport>,
    summary: Summary,
    unsettled: usize,
}

struct Try {
    socket: OwnedFd,
    port: u16,
    attempt: u32,
    deadline: Instant,
}

enum Answer {
    Open,
    Closed,
    Rejected(&'static str),
    Silent,
    LocalFailure,
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
            result: Knocked {
                ports: Vec::new(),
                summary: Summary::default(),
                unsettled: 0,
            },
        })
    }

    fn run(mut self, tell: &mut dyn FnMut(usize)) -> Result<Knocked, ScanError> {
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
        let unanswered = self.tries.iter().flatten().count() + self.queue.len();
        self.result.unsettled = unanswered;
        self.result.ports.sort_by_key(|port| port.port);
        Ok(self.result)
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
        let family = match self.address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Stream, flags, None).map_err(classify)?;
        let reset_on_close = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&socket, sockopt::Linger, &reset_on_close).map_err(classify)?;
        let started = match self.address {
            IpAddr::V4(address) => {
                begin(&socket, &SockaddrIn::from(SocketAddrV4::new(address, port)))
            }
            IpAddr::V6(address) => begin(
                &socket,
                &SockaddrIn6::from(SocketAddrV6::new(address, port, 0, 0)),
            ),
        };
        match started {
            Ok(()) => return Err(Answer::Open),
            Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(classify(errno)),
        }
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
        match answer {
            Answer::Open => {
                self.result.summary.open += 1;
                self.result.ports.push(found(PortState::Open, "syn-ack"));
            }
            Answer::Closed => self.result.summary.closed += 1,
            Answer::Rejected(reason) => {
                self.result.summary.rejected += 1;
                self.result.ports.push(found(PortState::Rejected, reason));
            }
            Answer::Silent if attempt + 1 < self.options.attempts => {
                self.queue.push_back((port, attempt + 1));
            }
            Answer::Silent => self.result.summary.filtered += 1,
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

fn begin(socket: &OwnedFd, address: &dyn SockaddrLike) -> Result<(), Errno> {
    connect(socket.as_raw_fd(), address)
}

/// What an error of connect() says about the port (RFC 1122 4.2.3.9, tcp_v4_err in Linux).
fn classify(errno: Errno) -> Answer {
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
fn descriptor_budget() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    };
    usize::try_from(limit.saturating_sub(SPARE_DESCRIPTORS).max(16)).unwrap_or(1024)
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
                ports: vec![],
                summary: Summary {
                    filtered: 65535,
                    ..Summary::default()
                },
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
