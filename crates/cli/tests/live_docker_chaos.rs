//! Twenty published ports that the policy forbids, knocked on every five milliseconds, while everything around
//! the guard is restarted, reloaded and replaced: nobody gets in. And a port that the policy allows stays open
//! while only portcullis acts.
//!
//! By default a sample of each disturbance; all of them with
//! `PORTCULLIS_CHAOS=full cargo test -p portcullis --test live_docker_chaos -- --ignored --nocapture`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod engines;

use engines::{Engine, check};
use lab::{Machine, Release, address};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

const FORBIDDEN: std::ops::RangeInclusive<u16> = 9001..=9020;
/// Twenty knockers, each with a knock every tenth of a second: one every five milliseconds.
const EACH: Duration = Duration::from_millis(100);

/// How often each thing is done.
struct Times {
    reload: u32,
    daemon: u32,
    container: u32,
    apply: u32,
    network: u32,
}

fn times() -> Times {
    if std::env::var("PORTCULLIS_CHAOS").is_ok_and(|v| v == "full") {
        Times {
            reload: 20,
            daemon: 10,
            container: 50,
            apply: 20,
            network: 20,
        }
    } else {
        Times {
            reload: 1,
            daemon: 1,
            container: 2,
            apply: 2,
            network: 1,
        }
    }
}

fn policy(engine: &Engine, more: &str) {
    let text = format!(
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[[allow]]\nport = 443\nfrom = \"anywhere\"\n{more}"
    );
    engine
        .machine
        .write("/etc/portcullis/policy.toml", text)
        .unwrap();
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn nobody_gets_in_whatever_is_restarted() {
    lab::require_root();
    let times = times();
    let machine = Machine::of(Release::Bookworm)
        .with_docker()
        .boot("chaos")
        .unwrap();
    let engine = Engine::new(machine, "docker");
    engine.machine.import_web_image("web:1", "model").unwrap();
    engine.ok(&["ufw", "allow", "22/tcp"]);
    engine.ok(&["ufw", "--force", "enable"]);
    let published: Vec<String> = FORBIDDEN.map(|port| format!("{port}:80")).collect();
    let mut options = vec!["--restart=always"];
    for port in &published {
        options.extend(["-p", port]);
    }
    engine.serve("forbidden", &options);
    engine.serve("allowed", &["--restart=always", "-p", "443:80"]);
    let stranger = &engine.machine.stranger;
    for port in FORBIDDEN {
        check(stranger, address::SERVER, port, true, "before");
    }
    policy(&engine, "");
    engine.apply(&[]);

    let (over, apply_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (knocks, opened) = (AtomicU32::new(0), AtomicU32::new(0));
    let (tries, failed) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for port in FORBIDDEN {
            let (over, knocks, opened) = (&over, &knocks, &opened);
            scope.spawn(move || {
                while !over.load(SeqCst) {
                    let start = Instant::now();
                    let open = stranger.connect(address::SERVER, port, EACH).unwrap();
                    knocks.fetch_add(1, SeqCst);
                    opened.fetch_add(u32::from(open), SeqCst);
                    std::thread::sleep(EACH.saturating_sub(start.elapsed()));
                }
            });
        }
        let (apply_over, tries, failed) = (&apply_over, &tries, &failed);
        scope.spawn(move || {
            while !apply_over.load(SeqCst) {
                // A lost first packet is sent again after a second.
                let open = stranger
                    .connect(address::SERVER, 443, Duration::from_secs(10))
                    .unwrap();
                tries.fetch_add(1, SeqCst);
                failed.fetch_add(u32::from(!open), SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        // A panic in here must still end the knockers.
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for turn in 0..times.apply {
                let more = "[[allow]]\nport = 9500\nfrom = \"anywhere\"\n";
                policy(&engine, if turn % 2 == 0 { more } else { "" });
                engine.apply(&[]);
            }
            apply_over.store(true, SeqCst);
            policy(&engine, "");
            engine.apply(&[]);
            for _ in 0..times.reload {
                engine.ok(&["ufw", "reload"]);
            }
            for _ in 0..times.container {
                engine.run(&["restart", "-t", "0", "forbidden"]);
            }
            for turn in 0..times.network {
                let name = format!("net-{turn}");
                engine.run(&["network", "create", &name]);
                engine.run(&["network", "connect", &name, "forbidden"]);
                engine.run(&["network", "disconnect", &name, "forbidden"]);
                engine.run(&["network", "rm", &name]);
            }
            for _ in 0..times.daemon {
                engine.ok(&["systemctl", "reset-failed", "docker"]);
                engine.ok(&["systemctl", "restart", "docker"]);
            }
        }));
        apply_over.store(true, SeqCst);
        over.store(true, SeqCst);
        if let Err(panic) = work {
            std::panic::resume_unwind(panic);
        }
    });
    let (knocks, opened) = (knocks.into_inner(), opened.into_inner());
    let (tries, failed) = (tries.into_inner(), failed.into_inner());
    println!(
        "{knocks} knocks on forbidden ports, {opened} opened; {tries} on the allowed one, {failed} failed"
    );
    assert!(
        knocks > 200 && tries > 10,
        "{knocks} and {tries} knocks prove nothing"
    );
    assert_eq!(opened, 0, "of {knocks} knocks");
    assert_eq!(failed, 0, "of {tries} knocks while only portcullis acted");
    check(stranger, address::SERVER, 443, true, "at the end");
    engine.nothing_to_do();
}
