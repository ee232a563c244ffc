//! Deliberate lock-outs on real ufw, nftables and sshd: an operator who confirms nothing, can do
//! nothing, and is back in within the window plus one second.
//!
//! `PORTCULLIS_LOCKOUTS=N` makes N of them (a sample without it). All:
//!
//! ```text
//! PORTCULLIS_LOCKOUTS=200 cargo test -p portcullis-host --test live_lockouts -- --ignored --nocapture
//! ```
//!
//! Lock-outs in which the machine itself goes down are in `live_sweep_machine`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod transact;

use lab::{Process, Sshd, World, address};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use transact::{Machine, Plan, STATE, allow, default, delete, enable, exe, guard, write};

/// The window to confirm in. Where the blow falls in the middle of the changes it is one in which they
/// can all be made, as in real life; it is over long before its end then, which is counted too.
fn window(mishap: Mishap) -> Duration {
    Duration::from_secs(match mishap {
        Mishap::ToolKilled | Mishap::SessionCut => 40,
        _ => 3,
    })
}

/// What shuts the door.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Door {
    /// UFW comes up with no rule for SSH.
    NoRule,
    /// UFW comes up with a rule for a port at which no sshd listens.
    WrongPort,
    /// The rule for SSH is deleted while UFW is on.
    RuleDeleted,
    /// `ufw deny 22` ahead of everything.
    Denied,
    /// The guard drops SSH.
    Guard,
    /// The guard's set of banned addresses has the operator's.
    Banned,
    /// UFW was on, then off, and INPUT was flushed: UFW believes that it has started already.
    Flushed,
    /// IPv6 alone is shut.
    SixOnly,
}

/// What happens to whoever is to confirm.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mishap {
    /// Nothing: the apply ends, and nobody comes.
    NobodyConfirms,
    /// SIGKILL to the tool as soon as the door is shut.
    ToolKilled,
    /// The apply runs below the operator's SSH session; the session is cut as soon as the door is
    /// shut.
    SessionCut,
    /// Who started the apply and waits for the confirmation is killed with its whole group.
    ParentKilled,
    /// The wall clock of the tool and its watchdog goes a day back, and forth, and back.
    ClockBack,
    /// The wall clock goes a year forth, and back.
    ClockForth,
}

const DOORS: [Door; 8] = [
    Door::NoRule,
    Door::WrongPort,
    Door::RuleDeleted,
    Door::Denied,
    Door::Guard,
    Door::Banned,
    Door::Flushed,
    Door::SixOnly,
];
const MISHAPS: [Mishap; 6] = [
    Mishap::NobodyConfirms,
    Mishap::ToolKilled,
    Mishap::SessionCut,
    Mishap::ParentKilled,
    Mishap::ClockBack,
    Mishap::ClockForth,
];

impl Door {
    fn before(self) -> &'static [&'static [&'static str]] {
        match self {
            // Another rule than `22/tcp`: UFW would not put a second one of that ahead.
            Door::Denied => &[&["ufw", "allow", "22"], &["ufw", "--force", "enable"]],
            Door::RuleDeleted => &[
                &["ufw", "allow", "22/tcp"],
                &["ufw", "allow", "8080/tcp"],
                &["ufw", "--force", "enable"],
            ],
            Door::Flushed => &[
                &["ufw", "allow", "22/tcp"],
                &["ufw", "--force", "enable"],
                &["ufw", "disable"],
                &["iptables", "-F", "INPUT"],
                &["ip6tables", "-F", "INPUT"],
            ],
            _ => &[],
        }
    }

    fn plan(self) -> Plan {
        let mut changes = match self {
            Door::NoRule => vec![allow("allow", 443), default("incoming", "deny"), enable()],
            Door::WrongPort => vec![allow("limit", 2222), enable()],
            Door::RuleDeleted | Door::Flushed => vec![delete("allow", 22), enable()],
            Door::Denied => {
                let mut deny = allow("deny", 22);
                deny["prepend"] = true.into();
                vec![deny]
            }
            Door::Guard => vec![allow("allow", 22), guard("tcp dport 22 drop")],
            Door::Banned => vec![guard("ip saddr { 192.0.2.7 } drop")],
            Door::SixOnly => vec![guard("meta nfproto ipv6 tcp dport 22 drop")],
        };
        // Something still to be done when the door is shut.
        changes
            .extend((0..8).map(|n| write(&format!("/etc/portcullis/late/{n}"), "late\n", 0o600)));
        changes.push(allow("allow", 8443));
        Plan::new(changes)
    }

    fn address(self) -> IpAddr {
        match self {
            Door::SixOnly => address::SERVER_V6,
            _ => address::SERVER,
        }
    }
}

/// How it went.
struct Case {
    /// From the blow, or the end of the apply, until the door was open again.
    shut: Duration,
    /// The door was open again so long after the window.
    late: Duration,
    /// The whole rollback took so long, from the end of the window.
    whole: Duration,
}

struct Place {
    /// Goes first: a host waits for the end of what runs in it.
    sshd: Sshd,
    world: World,
}

impl Place {
    fn new(number: usize) -> Self {
        let world = World::new(&format!("lockout-{number}")).unwrap();
        let sshd = world.server.sshd().unwrap();
        world
            .server
            .write("/usr/local/bin/watchdog", clock_script())
            .unwrap();
        world
            .server
            .ok(&["chmod", "755", "/usr/local/bin/watchdog"])
            .unwrap();
        Self { sshd, world }
    }

    fn open(&self, door: Door) -> bool {
        let soon = Duration::from_millis(150);
        self.world
            .operator
            .connect(door.address(), 22, soon)
            .unwrap()
    }

    fn until(&self, what: &str, bound: Duration, mut yes: impl FnMut() -> bool) -> Instant {
        let end = Instant::now() + bound;
        while !yes() {
            assert!(
                Instant::now() < end,
                "{what}; {}",
                self.world.server.transact(&["history", STATE])
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Instant::now()
    }

    /// As a machine that portcullis has never seen.
    fn fresh(&self, door: Door) {
        let server = &self.world.server;
        server
            .ok(&["sh", "-c", "ufw --force reset >/dev/null; rm -f /etc/ufw/*.20*; rm -rf /etc/portcullis /var/lib/portcullis; nft flush ruleset"])
            .unwrap();
        for command in door.before() {
            server.ok(command).unwrap();
        }
    }

    fn start(&self, door: Door, mishap: Mishap, plan: &str) -> Process {
        let server = &self.world.server;
        let helper = exe();
        let millis = window(mishap).as_millis().to_string();
        let apply = [helper.as_str(), "apply-anyway", plan, STATE, &millis];
        match mishap {
            Mishap::NobodyConfirms | Mishap::ToolKilled => server.spawn(&apply),
            Mishap::SessionCut => self.world.operator.spawn(&[
                "ssh",
                "-tt",
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-i",
                &self.sshd.key.to_string_lossy(),
                &format!("root@{}", door.address()),
                &apply.join(" "),
            ]),
            Mishap::ParentKilled => server.spawn(&[
                "sh",
                "-c",
                &format!("{}; {helper} wait {STATE} 1; echo over", apply.join(" ")),
            ]),
            Mishap::ClockBack | Mishap::ClockForth => {
                server.write(CLOCK, "+0").unwrap();
                let mut command = server.command(&apply);
                for (name, value) in clock_settings() {
                    command = command.env(name, value);
                }
                command
                    .env("TRANSACT_EXE", "/usr/local/bin/watchdog")
                    .spawn()
            }
        }
        .unwrap()
    }

    fn case(&self, door: Door, mishap: Mishap) -> Case {
        let name = format!("{door:?}, {mishap:?}");
        self.fresh(door);
        let server = &self.world.server;
        let before = server.state();
        assert!(self.open(door), "{name}: shut from the start");
        let plan = server.put(&door.plan());
        let long = Duration::from_secs(120);
        let mut tool = self.start(door, mishap, &plan);
        loop {
            self.until(&name, long, || {
                tool.log().contains("Armed ") || !tool.is_running()
            });
            // What an operator does who is told so: the facts changed while he looked.
            if !tool.log().contains("make a new plan") {
                break;
            }
            tool = self.start(door, mishap, &plan);
        }
        let applied = |tool: &Process| tool.log().contains("AwaitingConfirm");
        let struck = match mishap {
            Mishap::ToolKilled | Mishap::SessionCut => {
                let at = self.until(&name, long, || {
                    assert!(tool.is_running(), "{name}: {}", tool.log());
                    !self.open(door)
                });
                tool.signal(Signal::SIGKILL).unwrap();
                at
            }
            _ => {
                let at = self.until(&name, long, || {
                    let done = applied(&tool);
                    assert!(done || tool.is_running(), "{name}: {}", tool.log());
                    done
                });
                assert!(
                    !self.open(door),
                    "{name}: the door is not shut: {}",
                    tool.log()
                );
                at
            }
        };
        match mishap {
            Mishap::ParentKilled => {
                let group = nix::unistd::Pid::from_raw(i32::try_from(tool.id()).unwrap());
                nix::sys::signal::killpg(group, Signal::SIGKILL).unwrap();
            }
            Mishap::ClockBack => self.turn_clock(&["-1d", "+1d", "-2d"]),
            Mishap::ClockForth => self.turn_clock(&["+365d", "+0", "+365d"]),
            _ => {}
        }
        let opened = self.until(&format!("{name}: still shut"), long, || self.open(door));
        let done = self.until(&format!("{name}: not rolled back"), long, || {
            server.transact(&["history", STATE]).contains("RolledBack")
        });
        let _ = tool.wait(Duration::from_secs(20));
        transact::same(&server.state(), &before, &name);
        let end = self.end_of_window(&name, mishap, struck);
        Case {
            shut: opened.saturating_duration_since(struck),
            late: opened.saturating_duration_since(end),
            whole: done.saturating_duration_since(end),
        }
    }

    /// When whoever confirms nothing has to be back: at the deadline in the journal where the changes
    /// were completed; else a window after the blow that stopped them in the middle.
    fn end_of_window(&self, name: &str, mishap: Mishap, struck: Instant) -> Instant {
        let path = format!("{STATE}/tx/1/journal");
        let journal = self.world.server.read(&path).unwrap();
        let records: Vec<Value> = journal
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line.get(26..)?).ok())
            .collect();
        let of = |kind: &str| records.iter().rfind(|record| record["record"] == kind);
        if of("applied").is_none() {
            return struck + window(mishap);
        }
        let deadline = of("armed").unwrap()["deadline"].as_u64().unwrap();
        let clock = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
        let (now, boot) = (Instant::now(), Duration::from(clock));
        let ago = boot
            .checked_sub(Duration::from_millis(deadline))
            .unwrap_or_else(|| panic!("{name}: rolled back before the deadline"));
        now.checked_sub(ago).unwrap()
    }

    fn turn_clock(&self, offsets: &[&str]) {
        for offset in offsets {
            self.world.server.write(CLOCK, offset).unwrap();
            // The machine's own clock stays: what the watched processes see is another.
            let seen = self.world.server.command(&["date", "+%s"]);
            let seen = clock_settings()
                .into_iter()
                .fold(seen, |command, (name, value)| command.env(name, value));
            let seen: i64 = seen.ok().unwrap().trim().parse().unwrap();
            let real: i64 = self
                .world
                .server
                .ok(&["date", "+%s"])
                .unwrap()
                .trim()
                .parse()
                .unwrap();
            assert_eq!((seen - real).abs() > 80_000, *offset != "+0", "{offset}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

const CLOCK: &str = "/var/log/clock";

/// A machine in the lab shares the kernel's clock with the machine that it is on, which no test may
/// move. So the wall clock that the processes see is moved, through libfaketime; the clocks that
/// nobody can set (CLOCK_MONOTONIC, CLOCK_BOOTTIME) are the kernel's own, as when a real clock is set.
fn clock_settings() -> [(&'static str, &'static str); 5] {
    [
        ("LD_PRELOAD", "libfaketime.so.1"),
        (
            "LD_LIBRARY_PATH",
            "/usr/lib/x86_64-linux-gnu/faketime:/usr/lib/aarch64-linux-gnu/faketime",
        ),
        ("FAKETIME_TIMESTAMP_FILE", CLOCK),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]
}

/// The watchdog starts with an empty environment; this gives it the same clock.
fn clock_script() -> String {
    let settings: String = clock_settings()
        .iter()
        .map(|(name, value)| format!("{name}={value} "))
        .collect();
    format!("#!/bin/sh\n{settings} exec {} \"$@\"\n", exe())
}

/// How many cases.
fn wanted() -> usize {
    std::env::var("PORTCULLIS_LOCKOUTS").map_or(12, |value| value.parse().unwrap())
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn every_lockout_is_over_within_the_window_and_a_second() {
    lab::require_root();
    // In an order in which any dozen in a row has every door and every mishap.
    let cases: Vec<(Door, Mishap)> = (0..wanted())
        .map(|n| (DOORS[(n + n / 24) % 8], MISHAPS[n % 6]))
        .collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let results = std::sync::Mutex::new(Vec::<(String, Case)>::new());
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (next, cases, results) = (&next, &cases, &results);
            scope.spawn(move || {
                let place = Place::new(number);
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    let Some((door, mishap)) = cases.get(index) else {
                        return;
                    };
                    let case = place.case(*door, *mishap);
                    let name = format!("{index}: {door:?}, {mishap:?}");
                    eprintln!(
                        "{name}: shut for {:?}; open {:?}, all back {:?} after the window",
                        case.shut, case.late, case.whole
                    );
                    results.lock().unwrap().push((name, case));
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    let worst = results.iter().map(|(_, case)| case.late).max().unwrap();
    let late: Vec<&str> = results
        .iter()
        .filter(|(_, case)| case.late > Duration::from_secs(1))
        .map(|(name, _)| name.as_str())
        .collect();
    println!(
        "{} lock-outs, {} recovered within the window plus one second, the worst {worst:?} after it",
        results.len(),
        results.len() - late.len(),
    );
    assert_eq!(results.len(), wanted());
    assert!(late.is_empty(), "later than that: {late:?}");
}
