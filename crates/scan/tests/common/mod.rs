//! The servers that exactness is shown on, and the networks to them.

#![allow(dead_code, reason = "each test file takes what it needs")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod relay;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab::{End, Host, NetLab};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relay::{Cable, Relay, fill_checksums};
use scan::packet::{self, PacketOptions};
use scan::{PortSet, PortState, Report, TargetReport};

/// The server's addresses.
pub const SERVER: &str = "10.7.0.2";
pub const SERVER_V6: &str = "fd07::2";

/// Open on every server; 60123 is no port that anybody would guess.
pub const FEW: [u16; 4] = [22, 443, 8080, 60123];
/// Refused with an ICMP error on servers A and D.
pub const REFUSED: [u16; 2] = [25, 1433];
/// Open only for a source that is not the scanner.
pub const FOR_OTHERS: u16 = 5432;

/// How a server treats what it does not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Drops it, refuses two ports.
    Drops,
    /// Answers with a reset.
    Resets,
    /// Answers with a reset a hundred times a second, else drops.
    RareResets,
}

/// A scanner, a server, and a cable between.
pub struct Net {
    pub scanner: Host,
    pub server: Host,
    _relay: Option<Relay>,
    _lab: NetLab,
}

impl Net {
    /// A plain link, or one with a cable of that quality in between.
    pub fn new(cable: Option<Cable>) -> Net {
        let lab = NetLab::new("scan").unwrap();
        let scanner = lab.host("scanner").unwrap();
        let server = lab.host("server").unwrap();
        let near = ["10.7.0.1/24", "fd07::1/64"];
        let far = ["10.7.0.2/24", "fd07::2/64"];
        let end = |host, interface, addresses| End {
            host,
            interface,
            addresses,
        };
        let relay = match cable {
            None => {
                lab.link(end(&scanner, "eth0", &near), end(&server, "eth0", &far))
                    .unwrap();
                None
            }
            Some(cable) => {
                let middle = lab.host("middle").unwrap();
                // A bridge that itself never speaks.
                middle
                    .write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
                    .unwrap();
                lab.link(end(&scanner, "eth0", &near), end(&middle, "near", &[]))
                    .unwrap();
                lab.link(end(&server, "eth0", &far), end(&middle, "far", &[]))
                    .unwrap();
                for host in [&scanner, &server] {
                    host.in_net(|| fill_checksums("eth0")).unwrap().unwrap();
                }
                Some(Relay::new(&middle, "near", "far", cable).unwrap())
            }
        };
        Net {
            scanner,
            server,
            _relay: relay,
            _lab: lab,
        }
    }

    /// The server's rules.
    pub fn rules(&self, manner: Manner, open: &[u16]) {
        let ports = list(open);
        let rest = match manner {
            Manner::Resets => return,
            Manner::Drops => {
                format!(
                    "tcp dport {} reject with icmpx admin-prohibited",
                    REFUSED[0]
                ) + &format!(
                    "\ntcp dport {} reject with icmpx port-unreachable",
                    REFUSED[1]
                )
            }
            Manner::RareResets => "limit rate 100/second reject with tcp reset".into(),
        };
        self.nft(&format!(
            "table inet rules {{ chain input {{ type filter hook input priority 0; policy drop;\n\
             iif lo accept\nct state established,related accept\nmeta l4proto ipv6-icmp accept\n\
             tcp dport {{ {ports} }} accept\n\
             ip saddr 10.7.0.9 tcp dport {FOR_OTHERS} accept\n{rest}\n}}\n}}"
        ));
    }

    /// Loads an nftables ruleset on the server in place of what it has.
    pub fn nft(&self, rules: &str) {
        self.server
            .command(&["nft", "-f", "-"])
            .input(format!("flush ruleset\n{rules}\n"))
            .ok()
            .unwrap();
    }

    /// A scan of all ports from the scanner.
    pub fn scan(&self, targets: &[&str]) -> (Report, Duration) {
        let targets: Vec<IpAddr> = targets.iter().map(|t| t.parse().unwrap()).collect();
        scan_from(&self.scanner, &targets)
    }
}

pub fn scan_from(host: &Host, targets: &[IpAddr]) -> (Report, Duration) {
    host.in_net(|| {
        let begun = Instant::now();
        let options = PacketOptions {
            deadline: Duration::from_secs(120),
            ..PacketOptions::default()
        };
        let report = packet::scan(targets, &PortSet::all(), &options, &mut |_| {}).unwrap();
        (report, begun.elapsed())
    })
    .unwrap()
}

pub fn list(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    ports.join(", ")
}

/// Ports of one state.
pub fn ports(target: &TargetReport, state: PortState) -> Vec<u16> {
    let mut ports: Vec<u16> = target
        .ports
        .iter()
        .filter(|port| port.state == state)
        .map(|port| port.port)
        .collect();
    ports.sort_unstable();
    ports
}

/// Listening sockets of a host that accept and hang up.
pub struct Listeners {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listeners {
    /// Listens on these ports of `host`, both families.
    pub fn new(host: &Host, ports: &[u16]) -> Listeners {
        let sockets: Vec<TcpListener> = host
            .in_net(|| {
                ports
                    .iter()
                    .map(|port| {
                        let socket = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).unwrap();
                        socket.set_nonblocking(true).unwrap();
                        socket
                    })
                    .collect()
            })
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                let mut waiting: Vec<PollFd<'_>> = sockets
                    .iter()
                    .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
                    .collect();
                let _ = poll(&mut waiting, PollTimeout::from(100u16));
                for socket in &sockets {
                    while socket.accept().is_ok() {}
                }
            }
        });
        Listeners {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Two hundred and four open ports without pattern, the usual four among them.
pub fn many() -> Vec<u16> {
    let mut ports: BTreeSet<u16> = FEW.into();
    let mut random = 12_345u32;
    while ports.len() < 204 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let port = (random >> 16) as u16;
        if port > 1024 && port != FOR_OTHERS && !REFUSED.contains(&port) && port != 11434 {
            ports.insert(port);
        }
    }
    ports.into_iter().collect()
}
