//! The crash sweep: apply, confirm, rollback and recovery, killed or refused at their system calls, on
//! real ufw, nftables, fail2ban and sshd. After each blow and the recovery that follows, the machine
//! is as before or as planned, never in between, and the operator gets in.
//!
//! `PORTCULLIS_SWEEP=all` strikes at every call that changes something, `PORTCULLIS_SWEEP=N` at about
//! N of each kind; without it, a sample:
//!
//! ```text
//! PORTCULLIS_SWEEP=all cargo test -p portcullis-host --test live_sweep -- --ignored --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod sweep;
mod transact;

use lab::{World, address};
use std::time::{Duration, Instant};
use sweep::{Act, Blow, Sweep, spread};
use transact::{Plan, allow, enable, guard, remove, write};

const SOON: Duration = Duration::from_secs(3);

/// A change of every kind that needs no systemd, as few of each as possible: a point costs time.
fn small() -> Plan {
    Plan::new(vec![
        write("/etc/portcullis/sub/policy.toml", "version = 1\n", 0o600),
        write("/etc/legal", "changed\n", 0o640),
        remove("/etc/motd"),
        allow("allow", 22),
        guard("tcp dport 11434 drop"),
        enable(),
    ])
}

fn prepared(name: &str) -> World {
    lab::require_root();
    let world = World::new(name).unwrap();
    world.server.write("/etc/legal", "before\n").unwrap();
    world.server.ok(&["chmod", "604", "/etc/legal"]).unwrap();
    world.server.ok(&["chown", "1:2", "/etc/legal"]).unwrap();
    world.server.write("/etc/motd", "hello\n").unwrap();
    world.server.ok(&["ufw", "allow", "8080/tcp"]).unwrap();
    world
}

/// How many points of a kind: `usual` of them unless the environment says otherwise.
fn budget(usual: usize) -> usize {
    match std::env::var("PORTCULLIS_SWEEP") {
        Ok(value) if value == "all" => usize::MAX,
        Ok(value) => value.parse().unwrap(),
        Err(_) => usual,
    }
}

/// The way in: sshd's banner comes over a new connection from the operator's machine, and at every
/// tenth time a whole login.
fn enters(world: &World, key: &std::path::Path, count: &std::cell::Cell<u32>) -> bool {
    count.set(count.get() + 1);
    if count.get() % 10 == 1 {
        return world
            .operator
            .ssh(address::SERVER, key, &["true"])
            .unwrap()
            .success();
    }
    world.operator.connect(address::SERVER, 22, SOON).unwrap()
}

/// Strikes at the chosen calls of every act.
fn sweeps(name: &str, plan: Plan, kind: &str, usual: usize) {
    let world = prepared(name);
    let sshd = world.server.sshd().unwrap();
    let count = std::cell::Cell::new(0);
    let way = || enters(&world, &sshd.key, &count);
    let mut sweep = Sweep::new(&world.server, vec!["strace".into()], plan, &way);
    let begun = Instant::now();
    let mut failed: Vec<String> = vec![];
    for act in Act::ALL {
        // One act alone, for a long run in several processes.
        if std::env::var("PORTCULLIS_SWEEP_ACT").is_ok_and(|only| only != format!("{act:?}")) {
            continue;
        }
        if let Ok(folder) = std::env::var("PORTCULLIS_SWEEP_TRACES") {
            let trace = sweep.trace(act, &Blow::none(false));
            std::fs::write(format!("{folder}/{name}-{act:?}"), trace.text()).unwrap();
        }
        let blows: Vec<Blow> = match kind {
            "kill" => {
                let trace = sweep.trace(act, &Blow::none(false));
                spread(&trace.changing(), budget(usual))
                    .into_iter()
                    .map(|number| Blow::kill(&trace, number))
                    .collect()
            }
            "kill any" => {
                let trace = sweep.trace(act, &Blow::none(true));
                let all: Vec<usize> = (1..=trace.calls()).collect();
                // All of them would be tens of thousands.
                spread(&all, budget(usual).min(200))
                    .into_iter()
                    .map(|number| Blow::kill_any(&trace, number))
                    .collect()
            }
            "kill thread" => {
                let of_threads = sweep.trace(act, &Blow::none_of_threads()).of_threads();
                let all: Vec<usize> = (0..of_threads.len()).collect();
                spread(&all, budget(usual).min(100))
                    .into_iter()
                    .map(|index| Blow::kill_thread(&of_threads[index]))
                    .collect()
            }
            errno => {
                let trace = sweep.trace(act, &Blow::none(false));
                spread(&trace.can_fail(errno), budget(usual))
                    .into_iter()
                    .enumerate()
                    .map(|(index, number)| Blow::error(&trace, errno, number, index % 3 == 2))
                    .collect()
            }
        };
        for (done, blow) in blows.iter().enumerate() {
            if done % 25 == 24 {
                eprintln!("{name}: {act:?} {} of {}", done, blows.len());
            }
            // Each point starts from a saved state, so one that fails does not spoil the next.
            let point = std::panic::AssertUnwindSafe(|| sweep.strike(act, blow));
            if std::panic::catch_unwind(point).is_err() {
                failed.push(format!("{act:?}, {}", blow.name));
            }
        }
        eprintln!(
            "{name}: after {act:?}, {:?}: {}",
            begun.elapsed(),
            sweep.summary()
        );
    }
    assert!(
        failed.is_empty(),
        "{} points failed: {failed:#?}",
        failed.len()
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn killed_at_a_call_that_changes_something() {
    sweeps("sweep-kill", small(), "kill", 3);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn killed_at_any_call() {
    sweeps("sweep-any", small(), "kill any", 1);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn killed_at_a_call_of_another_thread() {
    sweeps("sweep-thread", small(), "kill thread", 1);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_full_disk_at_a_call() {
    sweeps("sweep-full", small(), "ENOSPC", 2);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_bad_disk_at_a_call() {
    sweeps("sweep-bad", small(), "EIO", 2);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn an_interrupted_call() {
    sweeps("sweep-interrupted", small(), "EINTR", 1);
}
