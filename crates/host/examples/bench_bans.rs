//! Bans through portcullis's action next to fail2ban's own actions, in one run, with the real fail2ban
//! on hosts in namespaces:
//!
//!     cargo run -p portcullis-host --example bench_bans [BANS] [SAMPLE]
//!
//! As root. BANS (10000) go through portcullis's action; SAMPLE (100) through the others, whose time for
//! BANS is then extrapolated, and said to be. Measured for each: banning (`fail2ban-client set JAIL banip`
//! until it returns), a restart of fail2ban until the kernel has every ban again, the time from the
//! deciding log line to the kernel (the middle of five), and the memory of fail2ban's server at the end.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a bench")]

use lab::{Host, Process, World};
use portcullis_core::host::Host as Facts;
use portcullis_core::host::{Fail2ban, Sshd, Ufw};
use portcullis_core::plan::Action;
use portcullis_core::planner::{self, Options};
use portcullis_core::policy::Policy;
use std::time::{Duration, Instant};

/// An action, and the program whose output has every banned address.
struct Contender {
    name: &'static str,
    action: &'static str,
    listing: &'static [&'static str],
}

const CONTENDERS: [Contender; 4] = [
    Contender {
        name: "portcullis",
        action: "portcullis.py",
        listing: &[
            "/usr/sbin/nft",
            "list",
            "set",
            "inet",
            "portcullis",
            "sshd4",
        ],
    },
    Contender {
        name: "nftables",
        action: "nftables[type=allports]",
        listing: &["/usr/sbin/nft", "list", "table", "inet", "f2b-table"],
    },
    Contender {
        name: "ipset",
        action: "iptables-ipset-proto6-allports",
        listing: &["/usr/sbin/ipset", "save"],
    },
    Contender {
        name: "ufw",
        action: "ufw",
        listing: &["/usr/sbin/iptables-save"],
    },
];

fn main() {
    lab::require_root();
    let number = |at: usize, usual: usize| {
        std::env::args()
            .nth(at)
            .map_or(usual, |text| text.parse().expect("a number"))
    };
    let (bans, sample) = (number(1, 10_000), number(2, 100));
    println!(
        "{:<11} {:>6} {:>12} {:>16} {:>12} {:>10} {:>8}",
        "action", "bans", "banning", "for all", "restart", "line→ban", "memory"
    );
    for contender in &CONTENDERS {
        measure(
            contender,
            bans,
            if contender.name == "portcullis" {
                bans
            } else {
                sample
            },
        );
    }
    println!(
        "\n\"for all\" is measured where {bans} bans were made, else extrapolated from the sample (~).\n\
         \"restart\" ends when the kernel has every ban again; portcullis's never lose one meanwhile."
    );
}

fn measure(contender: &Contender, all: usize, bans: usize) {
    let world = World::new(&format!("bench-{}", contender.name)).expect("a world");
    let server = &world.server;
    for log in ["auth.log", "fail2ban.log"] {
        server
            .write(&format!("/var/log/{log}"), "")
            .expect("written");
    }
    write_plan(server);
    let jail = format!(
        "[sshd]\nenabled = true\nbackend = auto\nlogpath = /var/log/auth.log\nmaxretry = 3\nfindtime = 600\nbantime = 3600\naction = {}\n",
        contender.action
    );
    server
        .write("/etc/fail2ban/jail.d/portcullis.local", jail)
        .expect("written");
    if contender.name == "ufw" {
        server.ok(&["ufw", "--force", "enable"]).expect("ufw");
    }
    let fail2ban = server.fail2ban().expect("fail2ban");
    let mut times: Vec<Duration> = (0..5)
        .map(|n| deciding_line(server, contender, n))
        .collect();
    times.sort();

    let addresses: Vec<String> = (0..bans)
        .map(|n| format!("100.{}.{}.{}", 64 + (n >> 16), n >> 8 & 255, n & 255))
        .collect();
    let begin = Instant::now();
    for part in addresses.chunks(500) {
        let mut argv = vec!["fail2ban-client", "set", "sshd", "banip"];
        argv.extend(part.iter().map(String::as_str));
        server
            .command(&argv)
            .timeout(Duration::from_secs(3600))
            .ok()
            .expect("banned");
    }
    let banning = begin.elapsed();
    let wanted = bans + times.len();
    until(server, contender, "the bans", wanted);
    let memory = memory(&fail2ban);
    // The database is written in the background.
    std::thread::sleep(Duration::from_secs(3));
    let begin = Instant::now();
    fail2ban.stop(Duration::from_secs(3600)).expect("stops");
    let _fail2ban = server.fail2ban().expect("fail2ban");
    until(server, contender, "the bans after a restart", wanted);
    let restart = begin.elapsed();
    let exact = bans == all;
    let scaled = banning.mul_f64(all as f64 / bans as f64);
    println!(
        "{:<11} {bans:>6} {:>10.2} s {:>1}{:>13.1} s {:>10.2} s {:>7} ms {:>5} MB",
        contender.name,
        banning.as_secs_f64(),
        if exact { "" } else { "~" },
        scaled.as_secs_f64(),
        restart.as_secs_f64(),
        times[times.len() / 2].as_millis(),
        memory / 1024,
    );
}

/// Three failures in the log; until the kernel has the address.
fn deciding_line(server: &Host, contender: &Contender, number: u8) -> Duration {
    let address = format!("198.51.100.{}", 100 + number);
    let now = server
        .ok(&["/usr/bin/date", "+%Y-%m-%dT%H:%M:%S%:z"])
        .expect("the time");
    let lines: String = (0..3)
        .map(|n| {
            format!(
                "{} host sshd[{}]: Failed password for root from {address} port 4 ssh2\n",
                now.trim(),
                9_000_000 + u32::from(number) * 10 + n
            )
        })
        .collect();
    server
        .inside(|| {
            use std::io::Write;
            std::fs::OpenOptions::new()
                .append(true)
                .open("/var/log/auth.log")
                .and_then(|mut log| log.write_all(lines.as_bytes()))
        })
        .expect("inside")
        .expect("written");
    let begin = Instant::now();
    while !listing(server, contender).contains(&address) {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{address} is not banned"
        );
    }
    begin.elapsed()
}

fn listing(server: &Host, contender: &Contender) -> String {
    server
        .run(contender.listing)
        .map(|output| output.stdout)
        .unwrap_or_default()
}

fn until(server: &Host, contender: &Contender, what: &str, wanted: usize) {
    let end = Instant::now() + Duration::from_secs(3600);
    loop {
        let text = listing(server, contender);
        let found = text.matches("100.64.").count() + text.matches("198.51.100.").count();
        if found >= wanted {
            return;
        }
        assert!(Instant::now() < end, "{what}: {found} of {wanted}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Resident memory of fail2ban's server, kB.
fn memory(fail2ban: &Process) -> u64 {
    std::fs::read_to_string(format!("/proc/{}/status", fail2ban.id()))
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

/// Guard, action and jails as a plan writes them for a host without systemd.
fn write_plan(server: &Host) {
    let mut facts = Facts {
        privileged: true,
        fail2ban: Some(Fail2ban {
            sshd_log: Some("/var/log/auth.log".into()),
            ..Fail2ban::default()
        }),
        sshd: Some(Sshd {
            ports: vec![22],
            ..Sshd::default()
        }),
        ufw: Some(Ufw {
            ipv6: true,
            loaded: Some(false),
            ..Default::default()
        }),
        ..Facts::default()
    };
    for name in planner::PACKAGES {
        facts.packages.insert((*name).into(), Some("1".into()));
    }
    let plan = planner::make(&facts, &Policy::builtin(), &Options::default()).expect("a plan");
    for change in plan.changes {
        if let Action::WriteFile { path, content, .. } = change.action {
            server.write(&path, content).expect("written");
        }
    }
    server
        .ok(&["/usr/sbin/nft", "-f", "/etc/portcullis/guard.nft"])
        .expect("the guard loads");
}
