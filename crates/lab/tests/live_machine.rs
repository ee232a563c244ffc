//! Whole Debian machines: they boot, are reached, reboot, lose power, run Docker, and go away.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::{Duration, Instant};

use lab::{Knock, Machine, Release, address};

const SOON: Duration = Duration::from_secs(2);

#[track_caller]
fn answers(machine: &Machine, port: u16, expect: Knock) {
    for (from, to) in [
        (&machine.stranger, address::SERVER),
        (&machine.stranger, address::SERVER_V6),
        (&machine.operator, address::SERVER),
        (&machine.neighbour, address::SERVER_LAN),
        (&machine.neighbour, address::SERVER_LAN_V6),
    ] {
        let seen = from.knock(to, port, SOON).unwrap();
        assert_eq!(seen, expect, "{} knocks at {to} port {port}", from.name());
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn debian_12_as_it_ships() {
    lab::require_root();
    let mut machine = Machine::of(Release::Bookworm).boot("stock").unwrap();
    assert_eq!(
        machine
            .ok(&["ps", "-p", "1", "-o", "comm="])
            .unwrap()
            .trim(),
        "systemd"
    );
    // There is one clock, and it is not the machine's: neither its first process nor what is run in it has
    // CAP_SYS_TIME (bit 25).
    for process in ["1", "self"] {
        let status = machine
            .ok(&["cat", &format!("/proc/{process}/status")])
            .unwrap();
        let line = status.lines().find(|l| l.starts_with("CapBnd:")).unwrap();
        let set = u64::from_str_radix(line["CapBnd:".len()..].trim(), 16).unwrap();
        assert_eq!(set & 1 << 25, 0, "{process}: {line}");
    }
    assert!(
        machine
            .read_text("/etc/os-release")
            .unwrap()
            .contains("bookworm")
    );

    // sshd lets the operator in with the key, root and admin alike.
    answers(&machine, 22, Knock::Open);
    let output = machine
        .operator
        .ssh(address::SERVER, machine.key(), &["hostname"])
        .unwrap();
    assert_eq!(output.stdout, "server\n", "{}", output.stderr);
    let output = machine
        .operator
        .ssh_as(
            "admin",
            address::SERVER_V6,
            machine.key(),
            &["sudo", "id", "-u"],
        )
        .unwrap();
    assert_eq!(output.stdout, "0\n", "{}", output.stderr);
    assert!(
        !machine
            .stranger
            .ssh_password(address::SERVER, "root", "wrong")
            .unwrap()
    );
    let journal = machine.journal(Some("ssh")).unwrap();
    assert!(
        journal.contains("Failed password for root from 198.51.100.66"),
        "{journal}"
    );

    // UFW is off; fail2ban is installed, enabled, and dead.
    assert!(machine.ok(&["ufw", "status"]).unwrap().contains("inactive"));
    assert_eq!(
        machine
            .ok(&["systemctl", "is-enabled", "fail2ban"])
            .unwrap()
            .trim(),
        "enabled"
    );
    assert_eq!(
        machine
            .run(&["systemctl", "is-active", "fail2ban"])
            .unwrap()
            .stdout
            .trim(),
        "failed"
    );
    let journal = machine.journal(Some("fail2ban")).unwrap();
    assert!(
        journal.contains("Have not found any log file for sshd jail"),
        "{journal}"
    );

    // The guide's failure mode.
    machine.start_ai_services().unwrap();
    for port in [11434, 8265, 443] {
        answers(&machine, port, Knock::Open);
    }
    let page = machine
        .stranger
        .http_get(address::SERVER, 11434, "/", SOON)
        .unwrap();
    assert!(page.contains("Ollama is running"), "{page}");

    // Bound to loopback by a drop-in, as one does with the real one.
    machine
        .write(
            "/etc/systemd/system/ollama.service.d/override.conf",
            "[Service]\nEnvironment=OLLAMA_HOST=127.0.0.1:11434\n",
        )
        .unwrap();
    machine.ok(&["systemctl", "daemon-reload"]).unwrap();
    machine.ok(&["systemctl", "restart", "ollama"]).unwrap();
    answers(&machine, 11434, Knock::Refused);

    // A reboot: the disk and the network are as before; rules that nobody saved are gone.
    machine.write("/root/kept", "across a reboot").unwrap();
    machine
        .ok(&["nft", "add", "table", "inet", "unsaved"])
        .unwrap();
    machine.reboot().unwrap();
    assert_eq!(machine.read_text("/root/kept").unwrap(), "across a reboot");
    assert!(
        !machine
            .ok(&["nft", "list", "tables"])
            .unwrap()
            .contains("unsaved")
    );
    answers(&machine, 22, Knock::Open);
    answers(&machine, 8265, Knock::Open);
    answers(&machine, 11434, Knock::Refused);

    // A power cut.
    machine.write("/root/kept", "across a power cut").unwrap();
    machine.power_cut().unwrap();
    assert!(!machine.is_on());
    assert!(machine.run(&["true"]).is_err());
    assert!(
        !machine
            .stranger
            .connect(address::SERVER, 22, SOON / 4)
            .unwrap()
    );
    machine.boot().unwrap();
    assert_eq!(
        machine.read_text("/root/kept").unwrap(),
        "across a power cut"
    );
    answers(&machine, 22, Knock::Open);

    machine.power_off().unwrap();
    assert!(!machine.is_on());
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_bare_machine_installs_ufw_and_fail2ban_from_its_own_disk() {
    lab::require_root();
    let machine = Machine::of(Release::Bookworm).bare().boot("bare").unwrap();
    assert!(!machine.exists("/usr/sbin/ufw").unwrap());
    assert!(!machine.exists("/usr/bin/fail2ban-server").unwrap());
    machine.ok(&["apt-get", "update"]).unwrap();
    machine
        .command(&["apt-get", "install", "-y", "fail2ban", "ufw"])
        .unwrap()
        .env("DEBIAN_FRONTEND", "noninteractive")
        .ok()
        .unwrap();
    assert!(machine.ok(&["ufw", "status"]).unwrap().contains("inactive"));
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn debian_13_with_docker_as_it_ships() {
    lab::require_root();
    let machine = Machine::of(Release::Trixie)
        .with_docker()
        .boot("trixie")
        .unwrap();
    answers(&machine, 22, Knock::Open);
    assert!(
        machine
            .read_text("/etc/os-release")
            .unwrap()
            .contains("trixie")
    );
    // Unlike on Debian 12, fail2ban runs.
    assert_eq!(
        machine
            .ok(&["systemctl", "is-active", "fail2ban"])
            .unwrap()
            .trim(),
        "active"
    );
    machine
        .import_web_image("web:1", "Ollama is running")
        .unwrap();
    machine
        .ok(&[
            "docker", "run", "-d", "--name", "ollama", "-p", "11434:80", "web:1",
        ])
        .unwrap();
    machine
        .stranger
        .wait_port(address::SERVER, 11434, SOON * 10)
        .unwrap();
    let page = machine
        .stranger
        .http_get(address::SERVER, 11434, "/", SOON)
        .unwrap();
    assert!(page.contains("Ollama is running"), "{page}");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn docker_runs_in_a_machine_and_comes_back_after_a_reboot() {
    lab::require_root();
    let mut machine = Machine::of(Release::Bookworm)
        .with_docker()
        .boot("docker")
        .unwrap();
    machine
        .import_web_image("web:1", "Ollama is running")
        .unwrap();
    machine
        .ok(&[
            "docker",
            "run",
            "-d",
            "--restart=always",
            "--name",
            "ollama",
            "-p",
            "11434:80",
            "web:1",
        ])
        .unwrap();
    machine.ok(&["ufw", "--force", "enable"]).unwrap();
    for _ in 0..2 {
        machine
            .stranger
            .wait_port(address::SERVER, 11434, SOON * 10)
            .unwrap();
        let page = machine
            .stranger
            .http_get(address::SERVER, 11434, "/", SOON)
            .unwrap();
        assert!(page.contains("Ollama is running"), "{page}");
        machine.reboot().unwrap();
    }
    assert!(
        machine
            .ok(&["ufw", "status"])
            .unwrap()
            .contains("Status: active")
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn nothing_is_left_of_a_machine() {
    lab::require_root();
    let (id, leader) = {
        let machine = Machine::of(Release::Bookworm).boot("gone").unwrap();
        (machine.lab.id().to_owned(), machine.leader().unwrap())
    };
    gone(&id, leader);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn nothing_is_left_of_a_machine_whose_maker_was_killed() {
    lab::require_root();
    // The test binary runs itself as the victim, which boots a machine, says so, and waits to be killed.
    const VICTIM: &str = "PORTCULLIS_LAB_TEST_VICTIM";
    if let Some(report) = std::env::var_os(VICTIM) {
        let machine = Machine::of(Release::Bookworm).boot("killed").unwrap();
        let text = format!("{} {}", machine.lab.id(), machine.leader().unwrap());
        std::fs::write(report, text).unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--ignored",
            "nothing_is_left_of_a_machine_whose_maker_was_killed",
        ])
        .env(VICTIM, &report)
        .spawn()
        .unwrap();
    let start = Instant::now();
    let text = loop {
        match std::fs::read_to_string(&report) {
            Ok(text) if text.contains(' ') => break text,
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
        assert!(start.elapsed() < SOON * 60, "the victim booted no machine");
    };
    victim.kill().unwrap();
    victim.wait().unwrap();
    let (id, leader) = text.split_once(' ').unwrap();
    gone(id, leader.parse().unwrap());
}

#[track_caller]
fn gone(id: &str, leader: u32) {
    let start = Instant::now();
    loop {
        let _ = lab::reap();
        let cgroups = Command::new("find")
            .args(["/sys/fs/cgroup", "-name", id])
            .output()
            .unwrap()
            .stdout;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left = [
            !cgroups.is_empty(),
            mounts.contains(id),
            lab::existing().iter().any(|lab| lab == id),
            std::fs::read_to_string(format!("/proc/{leader}/comm"))
                .is_ok_and(|name| name == "systemd\n"),
        ];
        if left == [false; 4] {
            break;
        }
        assert!(
            start.elapsed() < SOON * 2,
            "cgroups, mounts, folder, systemd: {left:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
