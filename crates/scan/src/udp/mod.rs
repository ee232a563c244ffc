//! Knocking on UDP ports, with a message that the service there would answer.
//!
//! An answer is `open`, "port unreachable" is closed, another ICMP error `rejected`. Silence is
//! [`PortState::OpenOrFiltered`] and stays so: a service that does not like the message, a filter
//! that drops it and an ICMP error held back by its rate limit (Linux sends one a second to each
//! address, after a burst of six) look the same from outside. Only a witness on the target can
//! tell. Works without any privilege: the kernel reports errors to connected sockets.

mod payload;

use crate::{PortReport, PortSet, PortState, Progress, Report, ScanError, UdpSummary};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
pub use payload::USUAL;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Ports that one call takes at the most: with UDP, more would take hours and tell nothing.
pub const MOST: usize = 4096;
/// Sockets open at once.
const WINDOW: usize = 256;
/// Datagrams sent before a pause, so that no queue on the way is overrun.
const BURST: usize = 16;
const PAUSE: Duration = Duration::from_millis(2);
/// How long each try waits for an answer.
const WAITS: [Duration; 4] = [
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_millis(900),
    Duration::from_millis(1200),
];

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Open,
    Closed,
    Rejected(&'static str),
    Silent(&'static str),
}

struct Try {
    target: usize,
    port: u16,
    socket: Option<UdpSocket>,
    answer: Option<Answer>,
    /// This machine itself refused to send.
    unsent: bool,
}

/// Knocks on these UDP ports of every target of the report, and adds what was found to it.
///
/// # Errors
/// Too many ports, or no socket can be had.
pub fn add(
    report: &mut Report,
    ports: &PortSet,
    deadline: Duration,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), ScanError> {
    let failed = |what| move |source| ScanError::Io { what, source };
    if ports.len() > MOST {
        return Err(failed(
            "more than 4096 UDP ports cannot be told apart in useful time",
        )(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    let end = Instant::now() + deadline;
    let addresses: Vec<IpAddr> = report.targets.iter().map(|t| t.address).collect();
    for target in &mut report.targets {
        target.udp = Some(UdpSummary {
            asked: ports.to_string(),
            ..UdpSummary::default()
        });
    }
    let all: Vec<(usize, u16)> = (0..addresses.len())
        .flat_map(|target| ports.iter().map(move |port| (target, port)))
        .collect();
    let mut settled = 0;
    for window in all.chunks(WINDOW) {
        let mut tries = Vec::with_capacity(window.len());
        for &(target, port) in window {
            let socket = open(addresses[target], port);
            tries.push(Try {
                target,
                port,
                unsent: false,
                answer: match &socket {
                    Ok(_) => None,
                    Err(error) => of_error(error),
                },
                socket: match socket {
                    Ok(socket) => Some(socket),
                    // No route is an answer of this machine; out of descriptors is none.
                    Err(error) if of_error(&error).is_some() => None,
                    Err(error) => return Err(failed("no UDP socket to knock from")(error)),
                },
            });
        }
        let whole = knock(&mut tries, end);
        if !whole {
            report.partial = true;
            for target in &mut report.targets {
                target.partial = true;
            }
        }
        for knocked in tries {
            let unheard = if knocked.unsent {
                "not-sent"
            } else {
                "no-response"
            };
            let answer = knocked.answer.unwrap_or(Answer::Silent(unheard));
            report.targets[knocked.target].add_udp(knocked.port, answer);
        }
        settled += window.len();
        progress(Progress {
            settled,
            total: all.len(),
        });
    }
    Ok(())
}

fn open(target: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let any: IpAddr = match target {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((target, port))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sends and listens, try by try; false when the time was over before the last try was.
fn knock(tries: &mut [Try], end: Instant) -> bool {
    for (attempt, wait) in WAITS.into_iter().enumerate() {
        let mut sent = 0;
        for knocked in tries.iter_mut().filter(|t| t.answer.is_none()) {
            let Some(socket) = &knocked.socket else {
                continue;
            };
            let message = payload::of(knocked.port, attempt);
            // An error that is waiting on the socket is reported in place of sending.
            if let Err(error) = socket.send(&message) {
                knocked.answer = of_error(&error);
                knocked.unsent = knocked.answer.is_none();
            } else {
                knocked.unsent = false;
            }
            sent += 1;
            if sent % BURST == 0 {
                std::thread::sleep(PAUSE);
            }
        }
        let until = Instant::now() + wait;
        while tries.iter().any(|t| t.answer.is_none()) {
            let now = Instant::now();
            if now >= end {
                return false;
            }
            if now >= until {
                break;
            }
            listen(tries, (until - now).min(Duration::from_millis(100)));
        }
    }
    true
}

/// Takes in what is there, waiting at most `wait` for the first.
fn listen(tries: &mut [Try], wait: Duration) {
    let waiting: Vec<usize> = (0..tries.len())
        .filter(|n| tries[*n].answer.is_none() && tries[*n].socket.is_some())
        .collect();
    let ready: Vec<usize> = {
        let mut polled: Vec<PollFd<'_>> = waiting
            .iter()
            .filter_map(|n| tries[*n].socket.as_ref())
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        let millis = u16::try_from(wait.as_millis()).unwrap_or(100).max(1);
        if poll(&mut polled, PollTimeout::from(millis)).is_err() {
            return;
        }
        waiting
            .iter()
            .zip(&polled)
            .filter(|(_, fd)| fd.any() == Some(true))
            .map(|(n, _)| *n)
            .collect()
    };
    let mut buffer = [0; 2048];
    for n in ready {
        let Some(socket) = &tries[n].socket else {
            continue;
        };
        match socket.recv(&mut buffer) {
            Ok(_) => tries[n].answer = Some(Answer::Open),
            Err(error) => tries[n].answer = of_error(&error),
        }
    }
}

/// What an error on a connected socket says about the port (RFC 1122, 4.1.3.3); `None` for one of
/// this machine, which says nothing.
fn of_error(error: &io::Error) -> Option<Answer> {
    Some(match Errno::from_raw(error.raw_os_error()?) {
        Errno::ECONNREFUSED => Answer::Closed,
        Errno::EHOSTUNREACH => Answer::Rejected("icmp-host-unreachable"),
        Errno::ENETUNREACH => Answer::Rejected("icmp-net-unreachable"),
        Errno::EACCES => Answer::Rejected("icmp-admin-prohibited"),
        Errno::ENOPROTOOPT | Errno::EPROTO => Answer::Rejected("icmp-protocol-unreachable"),
        _ => return None,
    })
}

impl crate::TargetReport {
    fn add_udp(&mut self, port: u16, answer: Answer) {
        let summary = self.udp.get_or_insert_with(UdpSummary::default);
        let (state, reason) = match answer {
            Answer::Closed => {
                summary.closed += 1;
                return;
            }
            Answer::Open => {
                summary.open += 1;
                (PortState::Open, "udp-response")
            }
            Answer::Rejected(reason) => {
                summary.rejected += 1;
                (PortState::Rejected, reason)
            }
            Answer::Silent(reason) => {
                summary.open_or_filtered += 1;
                (PortState::OpenOrFiltered, reason)
            }
        };
        self.ports.push(PortReport {
            proto: "udp".into(),
            port,
            state,
            reason: reason.into(),
            service: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SCAN_SCHEMA, Summary, TargetReport};

    fn empty(address: &str) -> Report {
        Report {
            schema: SCAN_SCHEMA,
            partial: false,
            targets: vec![TargetReport {
                address: address.parse().unwrap(),
                source: None,
                asked: String::new(),
                partial: false,
                ports: vec![],
                summary: Summary::default(),
                udp: None,
                note: None,
            }],
        }
    }

    #[test]
    fn an_answer_is_open_a_refusal_closed_and_silence_neither() {
        for address in ["127.0.0.1", "::1"] {
            let any: IpAddr = address.parse().unwrap();
            let Ok(answers) = UdpSocket::bind((any, 0)) else {
                // This machine has no IPv6.
                assert_eq!(address, "::1");
                continue;
            };
            let silent = UdpSocket::bind((any, 0)).unwrap();
            let closed = UdpSocket::bind((any, 0)).unwrap();
            let port = |socket: &UdpSocket| socket.local_addr().unwrap().port();
            let ports = [port(&answers), port(&silent), port(&closed)];
            drop(closed);
            let echo = std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                let (length, from) = answers.recv_from(&mut buffer).unwrap();
                answers.send_to(&buffer[..length], from).unwrap();
            });
            let mut report = empty(address);
            let asked: PortSet = ports.into_iter().collect();
            add(&mut report, &asked, Duration::from_secs(60), &mut |_| {}).unwrap();
            echo.join().unwrap();
            let found = |wanted: u16| {
                let mut ports = report.targets[0].ports.iter();
                ports.find(|p| p.port == wanted).map(|p| p.state)
            };
            assert_eq!(found(ports[0]), Some(PortState::Open));
            assert_eq!(found(ports[1]), Some(PortState::OpenOrFiltered));
            assert_eq!(found(ports[2]), None);
            let counts = report.targets[0].udp.clone().unwrap();
            assert_eq!(
                (counts.open, counts.closed, counts.open_or_filtered),
                (1, 1, 1)
            );
        }
    }

    #[test]
    fn a_knock_that_this_machine_did_not_send_is_no_verdict() {
        let refused_here = io::Error::from_raw_os_error(Errno::EPERM as i32);
        assert_eq!(of_error(&refused_here), None);
        let full = io::Error::from_raw_os_error(Errno::ENOBUFS as i32);
        assert_eq!(of_error(&full), None);
    }

    #[test]
    fn a_knock_that_ran_out_of_time_makes_the_report_partial() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let asked: PortSet = [silent.local_addr().unwrap().port()].into_iter().collect();
        let mut report = empty("127.0.0.1");
        add(&mut report, &asked, Duration::ZERO, &mut |_| {}).unwrap();
        assert!(report.partial);
    }
}
