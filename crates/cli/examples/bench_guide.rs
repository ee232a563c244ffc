//! The guide by hand, one command after the other, against `portcullis apply`, on a whole Debian
//! machine: same start, same end state, timed in turns in one run.
//!
//! ```text
//! cargo build --release -p portcullis
//! cargo run --release -p portcullis --example bench_guide -- [PAIRS] [bookworm|trixie]
//! ```
//! As root. Prints each pair, both medians and their ratio. Both ways end with the same rules for the
//! same ports, the same three values in fail2ban, and Ollama on loopback, which is checked each time;
//! portcullis's end state has its guard besides, and its time has snapshot, watchdog and every read
//! back in it. By hand, the checks are the guide's own (`ufw status`, `iptables -L`, `fail2ban-client
//! status`). `PORTCULLIS_BENCH_STEPS=1` prints when each step of one more apply came.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench may panic")]

use lab::{Machine, Release, address};
use std::path::Path;
use std::time::{Duration, Instant};

const INSIDE: &str = "/usr/local/bin/portcullis";

const JAIL: &str = "[sshd]\nenabled = true\nbackend = systemd\nport = ssh\nmaxretry = 3\nbantime = 3600\nfindtime = 600\n";
const DROPIN: &str = "[Service]\nEnvironment=\"OLLAMA_HOST=127.0.0.1:11434\"\n";

/// The guide's lines in its order; where it is wrong, what works: the backend that Debian has.
const BY_HAND: [&str; 17] = [
    "ufw status verbose",
    "ufw default deny incoming",
    "ufw default allow outgoing",
    "ufw allow ssh",
    "ufw allow 443/tcp",
    "ufw limit 22/tcp",
    "ufw --force enable",
    "ufw status numbered",
    "iptables -L -n",
    "cp /srv/jail.local /etc/fail2ban/jail.local",
    "systemctl enable fail2ban",
    "systemctl restart fail2ban",
    "fail2ban-client status sshd",
    "mkdir -p /etc/systemd/system/ollama.service.d",
    "cp /srv/override.conf /etc/systemd/system/ollama.service.d/override.conf",
    "systemctl daemon-reload",
    "systemctl restart ollama",
];

/// Back to the start, for either way.
const RESET: &str = "portcullis rollback >/dev/null 2>&1; ufw --force disable >/dev/null; \
    rm -rf /etc/fail2ban/jail.local /etc/systemd/system/ollama.service.d; \
    cp -a /srv/saved/etc/. /etc/; nft flush ruleset; systemctl daemon-reload; \
    systemctl stop fail2ban; systemctl reset-failed; systemctl restart ollama; sleep 2";

fn by_hand(machine: &Machine) -> Duration {
    let begun = Instant::now();
    for line in BY_HAND {
        let argv: Vec<&str> = line.split(' ').collect();
        if line.contains("client status") {
            // Whoever types it a moment early types it again.
            let end = Instant::now() + Duration::from_secs(20);
            while !machine.run(&argv).unwrap().success() {
                assert!(Instant::now() < end, "fail2ban does not start");
            }
        } else {
            machine.ok(&argv).unwrap();
        }
    }
    begun.elapsed()
}

fn applied(machine: &Machine) -> Duration {
    let begun = Instant::now();
    let output = machine
        .command(&["portcullis", "apply", "--yes", "--no-wait"])
        .unwrap()
        .timeout(Duration::from_secs(180))
        .run()
        .unwrap();
    let took = begun.elapsed();
    assert!(output.success(), "{}", output.text());
    took
}

/// What both ways have to reach.
fn check(machine: &Machine) {
    let status = machine.ok(&["ufw", "status", "verbose"]).unwrap();
    for part in [
        "Status: active",
        "deny (incoming), allow (outgoing)",
        "LIMIT IN",
        "443/tcp",
    ] {
        assert!(status.contains(part), "{status}");
    }
    for (what, value) in [("maxretry", "3"), ("findtime", "600"), ("bantime", "3600")] {
        let said = machine
            .ok(&["fail2ban-client", "get", "sshd", what])
            .unwrap();
        assert_eq!(said.trim(), value, "{what}");
    }
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let listening = machine.ok(&["ss", "-Hltn", "sport", "=", "11434"]).unwrap();
        if listening.contains("127.0.0.1:11434") {
            break;
        }
        assert!(Instant::now() < end, "{listening}");
    }
    let soon = Duration::from_secs(1);
    let open = |port| {
        machine
            .stranger
            .connect(address::SERVER, port, soon)
            .unwrap()
    };
    assert_eq!([22, 443, 8265, 11434].map(open), [true, true, false, false]);
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

fn main() {
    lab::require_root();
    let mut args = std::env::args().skip(1);
    let pairs: usize = args.next().map_or(5, |text| text.parse().unwrap());
    let release: Release = args
        .next()
        .map_or(Release::Bookworm, |text| text.parse().unwrap());
    let me = std::env::current_exe().unwrap();
    let program = me
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("portcullis");
    assert!(
        program.exists(),
        "{program:?} is missing: cargo build --release -p portcullis"
    );
    let machine = Machine::of(release).boot("bench-guide").unwrap();
    machine.copy_in(&program, INSIDE).unwrap();
    machine.start_ai_services().unwrap();
    machine.write("/srv/jail.local", JAIL).unwrap();
    machine.write("/srv/override.conf", DROPIN).unwrap();
    machine
        .ok(&[
            "sh",
            "-c",
            "mkdir -p /srv/saved; cd /; cp -a --parents etc/ufw etc/default/ufw /srv/saved",
        ])
        .unwrap();
    let (mut hand, mut ours) = (vec![], vec![]);
    // The first round warms caches for both.
    for round in 0..=pairs {
        let one = |way: fn(&Machine) -> Duration| {
            machine.ok(&["sh", "-c", RESET]).unwrap();
            let took = way(&machine);
            check(&machine);
            took
        };
        let (a, b) = if round % 2 == 0 {
            let a = one(by_hand);
            (a, one(applied))
        } else {
            let b = one(applied);
            (one(by_hand), b)
        };
        println!(
            "pair {round}: by hand {:.2} s, apply {:.2} s",
            a.as_secs_f64(),
            b.as_secs_f64()
        );
        if round > 0 || pairs == 0 {
            hand.push(a);
            ours.push(b);
        }
    }
    let (hand, ours) = (median(&mut hand), median(&mut ours));
    println!(
        "medians of {} pairs on {}: by hand {hand:.2} s, apply {ours:.2} s, ratio {:.2}",
        pairs.max(1),
        release.suite(),
        ours / hand
    );
    if std::env::var_os("PORTCULLIS_BENCH_STEPS").is_some() {
        machine.ok(&["sh", "-c", RESET]).unwrap();
        let steps = "portcullis apply --yes --no-wait 2>&1 | while read -r line; do echo \"$(date +%s.%3N) $line\"; done";
        println!("{}", machine.ok(&["sh", "-c", steps]).unwrap());
    }
}
