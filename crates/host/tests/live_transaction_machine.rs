//! Transactions on whole Debian machines: systemd's timer, the boot unit, sessions that are cut,
//! power that fails, packages that come and go.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod transact;

use lab::{Machine as Debian, Release, address};
use std::path::Path;
use std::time::{Duration, Instant};
use transact::{COPIED, Machine, Plan, STATE, allow, default, enable, guard, install, unit, write};

const SOON: Duration = Duration::from_secs(1);

/// A machine with a service of its own to bind elsewhere, and the helper on it.
fn debian(options: lab::MachineOptions, name: &str) -> Debian {
    lab::require_root();
    let machine = options.boot(name).unwrap();
    machine
        .copy_in(Path::new(&transact::exe()), COPIED)
        .unwrap();
    machine.start_ai_services().unwrap();
    settle(&machine);
    machine
}

/// Waits until nothing changes by itself any more, as it does for seconds after a boot.
fn settle(machine: &Debian) {
    let end = Instant::now() + Duration::from_secs(30);
    let mut last = machine.transact(&["facts"]);
    loop {
        std::thread::sleep(Duration::from_millis(1500));
        let now = machine.transact(&["facts"]);
        if now == last {
            return;
        }
        assert!(Instant::now() < end, "the machine does not come to rest");
        last = now;
    }
}

fn stock(name: &str) -> Debian {
    debian(Debian::of(Release::Bookworm), name)
}

/// SSH and 443 open, all else shut, Ollama bound to loopback, the guard loaded, fail2ban mended.
fn guide() -> Plan {
    Plan::new(vec![
        allow("limit", 22),
        allow("allow", 443),
        default("incoming", "deny"),
        write(
            "/etc/systemd/system/ollama.service.d/portcullis.conf",
            "[Service]\nEnvironment=OLLAMA_HOST=127.0.0.1:11434\n",
            0o644,
        ),
        write(
            "/etc/systemd/system/portcullis-guard.service",
            "[Unit]\nDescription=stand-in\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
            0o644,
        ),
        unit("", "daemon-reload"),
        unit("ollama.service", "restart"),
        guard("tcp dport 8265 drop"),
        unit("portcullis-guard.service", "enable-now"),
        write(
            "/etc/fail2ban/jail.d/portcullis.local",
            "[DEFAULT]\nbackend = systemd\n[sshd]\nenabled = true\n",
            0o644,
        ),
        unit("fail2ban.service", "restart"),
        enable(),
    ])
}

/// Everything that a rollback has to bring back, units included.
fn state(machine: &Debian) -> String {
    machine.state_with(&[
        "ufw.service",
        "fail2ban.service",
        "ollama.service",
        "portcullis-guard.service",
    ])
}

fn wait_rolled_back(machine: &Debian, end: Instant, what: &str) {
    while !machine.transact(&["history", STATE]).contains("RolledBack") {
        assert!(
            Instant::now() < end,
            "{what}: not rolled back in time: {}\n{}",
            machine.transact(&["history", STATE]),
            machine.journal(None).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn the_timer_rolls_back_on_time() {
    let machine = stock("timer");
    let before = state(&machine);
    let window = Duration::from_secs(3);
    let said = machine.apply(&guide(), window, "");
    assert!(said.contains("AwaitingConfirm"), "{said}");
    assert!(said.contains("Timer"), "{said}");
    let end = Instant::now() + window + Duration::from_secs(1);
    assert!(machine.operator.connect(address::SERVER, 22, SOON).unwrap());
    assert!(
        !machine
            .stranger
            .connect(address::SERVER, 11434, SOON)
            .unwrap()
    );
    assert!(
        !machine
            .stranger
            .connect(address::SERVER, 8265, SOON)
            .unwrap()
    );
    // What opens the door again is done within the window and a second; services may take longer.
    while !machine
        .stranger
        .connect(address::SERVER, 8265, Duration::from_millis(200))
        .unwrap()
    {
        assert!(Instant::now() < end, "not open again in time");
    }
    wait_rolled_back(&machine, end + Duration::from_secs(5), "timer");
    transact::same(&state(&machine), &before, "rolled back by the timer");
    let timers = machine.output(&["systemctl", "list-units", "--all", "portcullis-rollback*"]);
    assert!(!timers.contains("portcullis-rollback"), "{timers}");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn confirmed_survives_a_reboot_and_leaves_no_boot_unit() {
    let mut machine = stock("confirmed");
    let before = state(&machine);
    machine.apply(&guide(), Duration::from_secs(60), "");
    assert!(
        machine
            .exists("/etc/systemd/system/portcullis-recover.service")
            .unwrap()
    );
    let said = machine.transact(&["confirm", STATE]);
    assert!(said.contains("TransactionId(1)"), "{said}");
    assert!(
        !machine
            .exists("/etc/systemd/system/portcullis-recover.service")
            .unwrap()
    );
    machine.reboot().unwrap();
    assert!(machine.operator.connect(address::SERVER, 22, SOON).unwrap());
    assert!(
        !machine
            .stranger
            .connect(address::SERVER, 8265, SOON)
            .unwrap()
    );
    assert!(
        !machine
            .stranger
            .connect(address::SERVER, 11434, SOON)
            .unwrap()
    );
    // Rolled back in another boot than it was made in: by what the files say.
    let said = machine.transact(&["rollback", STATE, "keep"]);
    assert!(!said.contains("error"), "{said}");
    let etc = |text: &str| -> String {
        text.lines()
            .filter(|line| line.starts_with("/etc") || line.contains("  /etc"))
            .map(|line| format!("{line}\n"))
            .collect()
    };
    transact::same(
        &etc(&state(&machine)),
        &etc(&before),
        "rolled back after a reboot",
    );
    assert!(
        machine
            .stranger
            .connect(address::SERVER, 8265, SOON)
            .unwrap()
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_power_cut_before_the_confirmation_is_undone_at_boot() {
    for (name, fault) in [("after the changes", ""), ("in the middle", "kill:40")] {
        let mut machine = stock("power");
        let before = state(&machine);
        let said = machine.apply(&guide(), Duration::from_secs(600), fault);
        assert!(said.contains("Applied") != said.contains("dying"), "{said}");
        machine.power_cut().unwrap();
        machine.boot().unwrap();
        std::thread::sleep(Duration::from_secs(2));
        let history = machine.transact(&["history", STATE]);
        assert!(
            history.contains("RolledBack") && history.contains("Reboot"),
            "{name}: {history}"
        );
        let rules = |text: &str| !text.contains("ufw-user-input") && !text.contains("banned4");
        let after = state(&machine);
        assert!(rules(&after), "{name}: {after}");
        assert!(
            machine
                .stranger
                .connect(address::SERVER, 8265, SOON)
                .unwrap(),
            "{name}"
        );
        assert!(
            machine.operator.connect(address::SERVER, 22, SOON).unwrap(),
            "{name}"
        );
        // Empty tables that a boot makes are no difference.
        let plain = |text: &str| -> String {
            text.lines()
                .filter(|line| {
                    line.starts_with("/etc") || line.contains("  /etc") || line.contains("State=")
                })
                .map(|line| format!("{line}\n"))
                .collect()
        };
        transact::same(&plain(&after), &plain(&before), name);
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_session_that_is_cut_changes_nothing_for_the_watchdog() {
    let machine = stock("session");
    let before = state(&machine);
    let plan = machine.put(&guide());
    // The client is killed while apply runs on the other side; a hang-up takes its processes along.
    let mut ssh = machine
        .operator
        .spawn(&[
            "ssh",
            "-tt",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-i",
            &machine.key().to_string_lossy(),
            "root@203.0.113.10",
            COPIED,
            "apply",
            &plan,
            STATE,
            "8000",
        ])
        .unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let at_work = || {
        let history = machine.transact(&["history", STATE]);
        history.contains("Applying made") && !history.contains("made 0")
    };
    while !at_work() {
        assert!(Instant::now() < end, "{}", ssh.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    ssh.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    let _ = ssh.wait(Duration::from_secs(5));
    wait_rolled_back(&machine, Instant::now() + Duration::from_secs(60), "cut");
    transact::same(&state(&machine), &before, "session cut");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn installed_packages_go_only_when_asked() {
    let machine = debian(Debian::of(Release::Bookworm).bare(), "bare");
    let plan = || {
        Plan::new(vec![
            install(&["fail2ban", "iptables", "nftables", "python3-systemd", "ufw"]),
            allow("limit", 22),
            write(
                "/etc/fail2ban/jail.d/portcullis.local",
                "[DEFAULT]\nbackend = systemd\n[sshd]\nenabled = true\n",
                0o644,
            ),
            unit("fail2ban.service", "restart"),
            unit("fail2ban.service", "enable-now"),
            enable(),
        ])
    };
    let said = machine.apply(&plan(), Duration::from_secs(4), "");
    assert!(said.contains("AwaitingConfirm"), "{said}");
    let alive = machine.output(&["fail2ban-client", "ping"]);
    assert!(alive.contains("pong"), "{alive}");
    // Nobody confirms: the packages stay, what they brought is off.
    wait_rolled_back(&machine, Instant::now() + Duration::from_secs(20), "bare");
    let active = machine.output(&["systemctl", "is-active", "fail2ban"]);
    assert!(!active.starts_with("active"), "{active}");
    let status = machine.output(&["ufw", "status"]);
    assert!(status.contains("inactive"), "{status}");
    assert!(!machine.rules().contains("ufw"));
    assert!(
        !machine
            .exists("/etc/fail2ban/jail.d/portcullis.local")
            .unwrap()
    );
    assert!(
        machine
            .exists("/etc/fail2ban/jail.d/defaults-debian.conf")
            .unwrap()
    );
    // Asked for: they go as well, and with them everything that they brought.
    let said = machine.apply(&plan(), Duration::from_secs(60), "");
    assert!(said.contains("AwaitingConfirm"), "{said}");
    machine.transact(&["confirm", STATE]);
    let said = machine.transact(&["remove", STATE]);
    assert!(!said.contains("error"), "{said}");
    assert!(!machine.exists(STATE).unwrap());
    assert!(!machine.exists("/etc/fail2ban").unwrap());
    let ufw = machine.output(&["dpkg-query", "-W", "-f", "${Status}", "ufw"]);
    assert!(!ufw.contains("ok installed"), "{ufw}");
}
