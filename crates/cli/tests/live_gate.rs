//! The first gate, end to end on a real Debian 12: from open AI ports to a server that is proven
//! closed. Rows of the guide (G1 to G16) that are held here are named in the tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use lab::{Machine, Output, Release, address};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const INSIDE: &str = "/usr/local/bin/portcullis";

/// The guide's failure mode: UFW inactive, AI ports on every address, fail2ban dead as shipped.
fn unprotected(name: &str) -> Machine {
    lab::require_root();
    let machine = Machine::of(Release::Bookworm).boot(name).unwrap();
    machine
        .copy_in(Path::new(env!("CARGO_BIN_EXE_portcullis")), INSIDE)
        .unwrap();
    machine.start_ai_services().unwrap();
    machine
}

fn operator(machine: &Machine, command: &str) -> Output {
    let argv: Vec<&str> = command.split(' ').collect();
    machine
        .operator
        .ssh(address::SERVER, machine.key(), &argv)
        .unwrap()
}

/// Ports that nmap finds open from the stranger's host, of all 65,535.
fn nmap(machine: &Machine, target: IpAddr) -> Vec<u16> {
    let target_text = target.to_string();
    let mut argv = vec![
        "nmap",
        "-n",
        "-Pn",
        "-sS",
        "-p-",
        "--min-rate",
        "8000",
        "--max-retries",
        "3",
        "-oG",
        "-",
    ];
    if target.is_ipv6() {
        argv.push("-6");
    }
    argv.push(&target_text);
    let output = machine
        .stranger
        .command(&argv)
        .timeout(Duration::from_secs(240))
        .run()
        .unwrap();
    assert!(output.success(), "{}{}", output.stdout, output.stderr);
    let mut open: Vec<u16> = output
        .stdout
        .split([' ', ',', '\t'])
        .filter_map(|word| word.split_once("/open/"))
        .map(|(port, _)| port.parse().unwrap())
        .collect();
    open.sort_unstable();
    open
}

#[track_caller]
fn only_ssh_and_https(machine: &Machine) {
    for target in [address::SERVER, address::SERVER_V6] {
        assert_eq!(nmap(machine, target), [22, 443], "open ports of {target}");
    }
}

fn apply_and_confirm(machine: &Machine) {
    let applied = operator(machine, "portcullis apply --yes --no-wait");
    assert!(applied.success(), "{}{}", applied.stdout, applied.stderr);
    let confirmed = operator(machine, "portcullis confirm");
    assert!(
        confirmed.success(),
        "{}{}",
        confirmed.stdout,
        confirmed.stderr
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn g1_g16_one_apply_closes_everything_but_ssh_and_https() {
    let mut machine = unprotected("gate");
    assert!(nmap(&machine, address::SERVER).contains(&11434));

    // G2, G13: the audit sees it.
    let audit = machine.run(&["portcullis", "audit"]).unwrap();
    assert_eq!(audit.code(), Some(1), "{}", audit.stderr);
    for port in ["11434", "8265"] {
        assert!(audit.stdout.contains(port), "{}", audit.stdout);
    }

    apply_and_confirm(&machine);

    // G16: nmap, IPv4 and IPv6, every port.
    only_ssh_and_https(&machine);

    // G2, G3, G7: UFW's own words.
    let status = machine.ok(&["ufw", "status", "verbose"]).unwrap();
    assert!(status.contains("Status: active"), "{status}");
    assert!(
        status.contains("deny (incoming), allow (outgoing)"),
        "{status}"
    );
    // G4, G5, G8.
    assert!(
        status.contains("22/tcp                     LIMIT IN"),
        "{status}"
    );
    assert!(
        status.contains("443/tcp                    ALLOW IN"),
        "{status}"
    );

    // Ollama is bound to loopback and still serves this machine.
    let local = machine
        .ok(&["curl", "-s", "-m", "5", "http://127.0.0.1:11434/"])
        .unwrap();
    assert!(local.contains("Ollama is running"), "{local}");
    let listeners = machine.ok(&["ss", "-Hltn", "sport", "=", "11434"]).unwrap();
    assert!(!listeners.contains("0.0.0.0:11434"), "{listeners}");

    // G12: fail2ban lives, with the policy's values.
    let values = ["maxretry", "findtime", "bantime"].map(|what| {
        machine
            .ok(&["fail2ban-client", "get", "sshd", what])
            .unwrap()
            .trim()
            .to_owned()
    });
    assert_eq!(values, ["3", "600", "3600"]);

    // The same again changes nothing.
    let plan = machine.run(&["portcullis", "plan"]).unwrap();
    assert_eq!(plan.code(), Some(0), "{}{}", plan.stdout, plan.stderr);
    let again = operator(&machine, "portcullis apply --yes");
    assert!(again.success(), "{}{}", again.stdout, again.stderr);
    assert!(again.stdout.contains("Nothing to do"), "{}", again.stdout);

    // The audit has nothing left to say, here or from a snapshot elsewhere, where there is no root.
    let audit = machine.run(&["portcullis", "audit"]).unwrap();
    assert_eq!(audit.code(), Some(0), "{}{}", audit.stdout, audit.stderr);
    let snapshot = machine.ok(&["portcullis", "snapshot"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("host.json");
    std::fs::write(&file, snapshot).unwrap();
    let elsewhere = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["audit", "--snapshot"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&elsewhere.stdout), audit.stdout);
    assert_eq!(elsewhere.status.code(), Some(0));

    // G16: portcullis's own proof, from the operator's machine.
    let scanned = machine
        .neighbour
        .command(&[
            env!("CARGO_BIN_EXE_portcullis"),
            "scan",
            "--json",
            &address::SERVER_LAN.to_string(),
        ])
        .timeout(Duration::from_secs(120))
        .run()
        .unwrap();
    assert!(scanned.success(), "{}", scanned.stderr);
    machine
        .write("/var/tmp/scan.json", &scanned.stdout)
        .unwrap();
    let verified = machine
        .run(&["portcullis", "verify", "--report", "/var/tmp/scan.json"])
        .unwrap();
    assert_eq!(
        verified.code(),
        Some(0),
        "{}{}",
        verified.stdout,
        verified.stderr
    );
    assert!(
        verified.stdout.contains("yes: tested with"),
        "the jail was not proven: {}",
        verified.stdout
    );

    // After a reboot the same.
    machine.reboot().unwrap();
    machine
        .operator
        .wait_port(address::SERVER, 443, Duration::from_secs(30))
        .unwrap();
    only_ssh_and_https(&machine);

    three_failed_logins_ban(&machine);
}

/// G12, G15: the attacker is banned from everything, the operator logs in throughout.
fn three_failed_logins_ban(machine: &Machine) {
    // The scans count as connection attempts for `ufw limit`, and every further attempt would
    // start its 30 seconds anew.
    std::thread::sleep(Duration::from_secs(32));
    for guess in ["123456", "letmein", "ollama"] {
        assert!(
            !machine
                .stranger
                .ssh_password(address::SERVER, "root", guess)
                .unwrap()
        );
    }
    let bound = Instant::now() + Duration::from_secs(15);
    loop {
        let reached = machine
            .stranger
            .connect(address::SERVER, 443, Duration::from_millis(500))
            .unwrap();
        if !reached {
            break;
        }
        assert!(Instant::now() < bound, "not banned");
    }
    let status = machine.ok(&["fail2ban-client", "status", "sshd"]).unwrap();
    assert!(status.contains("198.51.100.66"), "{status}");
    assert!(operator(machine, "true").success());
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn an_apply_that_nobody_confirms_is_rolled_back_on_time() {
    let machine = unprotected("unconfirmed");
    let facts = |machine: &Machine| {
        let files = machine
            .ok(&[
                "find",
                "/etc/ufw",
                "/etc/default/ufw",
                "/etc/fail2ban",
                "/etc/systemd/system",
                "/etc/portcullis",
                "-type",
                "f",
                "-exec",
                "sha256sum",
                "{}",
                "+",
            ])
            .unwrap_or_else(|error| {
                // /etc/portcullis is not there before: find says so and exits 1.
                error.to_string()
            });
        let mut files: Vec<String> = files.lines().map(str::to_owned).collect();
        files.sort();
        let rules: Vec<String> = ["iptables-save", "ip6tables-save"]
            .iter()
            .flat_map(|tool| {
                machine
                    .ok(&[*tool])
                    .unwrap()
                    .lines()
                    .filter(|line| !line.starts_with('#'))
                    .map(|line| line.split(" [").next().unwrap().to_owned())
                    .collect::<Vec<_>>()
            })
            .collect();
        let tables = machine.ok(&["nft", "list", "tables"]).unwrap();
        (files, rules, tables.contains("portcullis"))
    };
    let before = facts(&machine);
    let begun = Instant::now();
    let applied = operator(
        &machine,
        "portcullis apply --yes --no-wait --confirm-within 20s",
    );
    assert!(applied.success(), "{}{}", applied.stdout, applied.stderr);
    assert!(
        !machine
            .stranger
            .connect(address::SERVER, 8265, Duration::from_secs(1))
            .unwrap()
    );
    let bound = begun + Duration::from_secs(90);
    while !machine
        .stranger
        .connect(address::SERVER, 8265, Duration::from_secs(1))
        .unwrap()
    {
        assert!(Instant::now() < bound, "not rolled back");
    }
    // The restart of services is the last step of a rollback.
    std::thread::sleep(Duration::from_secs(5));
    let after = facts(&machine);
    assert_eq!(before.0, after.0, "files");
    assert_eq!(before.1, after.1, "rules");
    assert!(!after.2, "the guard's table is still there");
    assert!(operator(&machine, "true").success());
    let history = machine.ok(&["portcullis", "history"]).unwrap();
    assert!(history.contains("rolled back"), "{history}");
}
