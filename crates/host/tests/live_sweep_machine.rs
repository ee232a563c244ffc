//! The crash sweep and the lock-outs on whole machines, Debian 12 and 13: systemd's timer and boot
//! unit, real fail2ban, reboots and power cuts. Nobody helps.
//!
//! `PORTCULLIS_SWEEP=N` kills at about N system calls of an apply on each release, and
//! `PORTCULLIS_LOCKOUTS=N` brings each machine down N times with the door shut (a sample without
//! them):
//!
//! ```text
//! PORTCULLIS_SWEEP=100 PORTCULLIS_LOCKOUTS=20 \
//!     cargo test -p portcullis-host --test live_sweep_machine -- --ignored --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod sweep;
mod transact;

use lab::{Machine as Debian, Release, address};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use sweep::{Blow, Trace, spread};
use transact::{COPIED, Machine, Plan, STATE, allow, enable, guard, unit, write};

const SOON: Duration = Duration::from_secs(2);
/// What the tool said on a machine that goes down.
const LOG: &str = "/var/log/tool";
const WINDOW: Duration = Duration::from_secs(900);

fn debian(release: Release, name: &str) -> Debian {
    lab::require_root();
    let machine = Debian::of(release).boot(name).unwrap();
    machine
        .copy_in(Path::new(&transact::exe()), COPIED)
        .unwrap();
    machine.start_ai_services().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let mut last = machine.transact(&["facts"]);
    loop {
        std::thread::sleep(Duration::from_millis(1500));
        let now = machine.transact(&["facts"]);
        if now == last {
            return machine;
        }
        assert!(Instant::now() < end, "the machine does not come to rest");
        last = now;
    }
}

/// A change of every kind: files, UFW, the guard, a unit, fail2ban.
fn all_kinds() -> Plan {
    Plan::new(vec![
        allow("allow", 22),
        write(
            "/etc/systemd/system/ollama.service.d/portcullis.conf",
            "[Service]\nEnvironment=OLLAMA_HOST=127.0.0.1:11434\n",
            0o644,
        ),
        unit("", "daemon-reload"),
        unit("ollama.service", "restart"),
        guard("tcp dport 8265 drop"),
        write(
            "/etc/fail2ban/jail.d/portcullis.local",
            "[DEFAULT]\nbackend = systemd\n[sshd]\nenabled = true\n",
            0o644,
        ),
        unit("fail2ban.service", "restart"),
        enable(),
    ])
}

/// Files, rules and units.
fn state(machine: &Debian) -> String {
    machine.state_with(&["ufw.service", "fail2ban.service", "ollama.service"])
}

/// This machine's strace with its libraries and its loader, which makes it run on any release.
fn carry_strace(machine: &Debian) -> Vec<String> {
    let listed = Command::new("ldd").arg("/usr/bin/strace").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut loader = String::new();
    for path in listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let name = Path::new(path).file_name().unwrap().to_string_lossy();
        let to = format!("/opt/strace/{name}");
        machine.copy_in(Path::new(path), &to).unwrap();
        if name.starts_with("ld-linux") {
            loader = to;
        }
    }
    machine
        .copy_in(Path::new("/usr/bin/strace"), "/opt/strace/strace")
        .unwrap();
    ["--library-path", "/opt/strace", "/opt/strace/strace"]
        .iter()
        .fold(vec![loader], |mut words, word| {
            words.push((*word).to_owned());
            words
        })
}

fn number(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap())
}

fn history(machine: &Debian) -> String {
    machine.transact(&["history", STATE])
}

fn killed_anywhere(release: Release, name: &str) {
    let machine = debian(release, name);
    let strace = carry_strace(&machine);
    let before = state(&machine);
    let plan = machine.put(&all_kinds());
    let window = WINDOW.as_millis().to_string();
    let run = |blow: &Blow| {
        let mut argv = blow.words(&strace);
        argv.extend([COPIED, "apply", &plan, STATE, &window].map(str::to_owned));
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        (machine.output(&argv), Trace::read(&machine))
    };
    let (said, trace) = run(&Blow::none(false));
    assert!(said.contains("AwaitingConfirm"), "{said}");
    assert!(said.contains("Timer"), "{said}");
    let after = state(&machine);
    machine.transact(&["rollback", STATE, "keep"]);
    transact::same(&state(&machine), &before, "rolled back");
    let (mut olds, mut news, mut unwatched) = (0, 0, 0);
    for place in spread(&trace.changing(), number("PORTCULLIS_SWEEP", 3)) {
        let blow = Blow::kill(&trace, place);
        let (_, struck) = run(&blow);
        let what = format!("{name}, {} ({})", blow.name, struck.last());
        // Whoever looks out for the dead undoes it. Where it died before that one had started, nothing
        // was changed but for the boot unit: `history` says so, and the next run tidies up.
        let open = || {
            let said = history(&machine);
            said.contains("Applying") || said.contains("RollingBack")
        };
        let end = Instant::now() + Duration::from_secs(90);
        while open() {
            let watchers = machine.output(&["systemctl", "list-units", "--all", "portcullis-*"]);
            let watched = ["portcullis-lookout-", "portcullis-rollback-"];
            if !watched.iter().any(|name| watchers.contains(name)) {
                let said = history(&machine);
                assert!(
                    said.contains("Applying made 0 interrupted"),
                    "{what}: {said}"
                );
                let tidied = machine.transact(&["recover", STATE]);
                assert!(tidied.contains("TransactionId"), "{what}: {tidied}");
                unwatched += 1;
                continue;
            }
            assert!(
                Instant::now() < end,
                "{what}: {}\n{watchers}",
                history(&machine)
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        if history(&machine).contains("Waiting") {
            news += 1;
            transact::same(&state(&machine), &after, &what);
            machine.transact(&["rollback", STATE, "keep"]);
        } else {
            olds += 1;
        }
        transact::same(&state(&machine), &before, &what);
        assert!(
            machine.operator.connect(address::SERVER, 22, SOON).unwrap(),
            "{what}: no way in"
        );
    }
    eprintln!(
        "{name}: {} points of {}: {olds} left the old state, {news} the new one; {unwatched} died before \
         anybody looked out, and before the first change",
        olds + news,
        trace.changing().len()
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn killed_anywhere_on_debian_12() {
    killed_anywhere(Release::Bookworm, "sweep-12");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn killed_anywhere_on_debian_13() {
    killed_anywhere(Release::Trixie, "sweep-13");
}

/// Shut, and the machine goes down before anybody confirms: in the middle of the changes, or after
/// them; by a reboot, or by a power cut.
fn down_while_shut(release: Release, name: &str, first: usize) {
    let mut machine = debian(release, name);
    let files = |machine: &Debian| -> String {
        state(machine)
            .lines()
            .filter(|line| line.starts_with("/etc") || line.contains("  /etc"))
            .map(|line| format!("{line}\n"))
            .collect()
    };
    let before = files(&machine);
    for round in first..first + number("PORTCULLIS_LOCKOUTS", 1) {
        let (reboot, middle) = (round % 2 == 1, round / 2 % 2 == 0);
        let what = format!(
            "{name}, round {round}: {} {}",
            if reboot { "reboot" } else { "power cut" },
            if middle {
                "in the middle"
            } else {
                "after the changes"
            }
        );
        let mut changes = vec![allow("allow", 443), enable()];
        changes.extend((0..4).map(|n| allow("allow", 9000 + n)));
        let plan = machine.put(&Plan::new(changes));
        let window = WINDOW.as_millis().to_string();
        // A service of the machine's own: it needs nothing from outside, and goes down with the machine.
        let unit = format!("--unit=tool-{round}");
        let log = format!("--property=StandardOutput=file:{LOG}");
        let both = format!("--property=StandardError=file:{LOG}");
        let mut argv = vec!["systemd-run", "--quiet", &unit, &log, &both, COPIED];
        argv.extend(["apply-anyway", &plan, STATE, &window]);
        // What the round before said must not be taken for this one's.
        machine.ok(&["rm", "-f", LOG]).unwrap();
        machine.ok(&argv).unwrap();
        let said = |machine: &Debian| machine.output(&["cat", LOG]);
        let end = Instant::now() + Duration::from_secs(120);
        // The second change is the one that shuts it.
        while !said(&machine).contains("\n3/6 ")
            || !middle && !said(&machine).contains("AwaitingConfirm")
        {
            assert!(Instant::now() < end, "{what}: {}", said(&machine));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(
            !machine.operator.connect(address::SERVER, 22, SOON).unwrap(),
            "{what}: not shut: {}",
            said(&machine)
        );
        if reboot {
            // The tool goes down with the machine.
            machine.reboot().unwrap();
        } else {
            machine.power_cut().unwrap();
            machine.boot().unwrap();
        }
        let now = history(&machine);
        assert!(
            now.lines()
                .last()
                .is_some_and(|line| line.contains("RolledBack")),
            "{what}: {now}"
        );
        assert!(
            machine.operator.connect(address::SERVER, 22, SOON).unwrap(),
            "{what}: no way in"
        );
        transact::same(&files(&machine), &before, &what);
        eprintln!("{what}: back");
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_machine_that_goes_down_with_the_door_shut_comes_up_with_it_open_on_debian_12() {
    down_while_shut(Release::Bookworm, "down-12", 0);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_machine_that_goes_down_with_the_door_shut_comes_up_with_it_open_on_debian_13() {
    down_while_shut(Release::Trixie, "down-13", 1);
}
