//! Hosts made of namespaces: they reach one another, run the real programs, leave this machine alone, and go away.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use lab::{Host, Knock, NetLab, World, address};

const SOON: Duration = Duration::from_secs(2);

#[track_caller]
fn check(from: &Host, to: IpAddr, port: u16, expect: Knock) {
    let seen = from.knock(to, port, SOON).unwrap();
    assert_eq!(seen, expect, "{} knocks at {to} port {port}", from.name());
}

/// What a program of this machine (not of a host) prints.
fn here(argv: &[&str]) -> String {
    let output = Command::new(argv[0]).args(&argv[1..]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn everybody_reaches_a_listener_of_the_server() {
    lab::require_root();
    let world = World::new("reach").unwrap();
    let _listener = world.server.tcp_server(8080, "hello\n").unwrap();
    for (from, to) in [
        (&world.stranger, address::SERVER),
        (&world.stranger, address::SERVER_V6),
        (&world.operator, address::SERVER),
        (&world.operator, address::SERVER_V6),
        (&world.neighbour, address::SERVER_LAN),
        (&world.neighbour, address::SERVER_LAN_V6),
    ] {
        check(from, to, 8080, Knock::Open);
        check(from, to, 8081, Knock::Refused);
    }
    // The server sees who it is, as on the Internet.
    let seen = world.server.ok(&["ss", "-Htn"]).unwrap();
    assert!(!seen.contains("127.0.0.1:8080"), "{seen}");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_server_on_loopback_is_not_reached() {
    lab::require_root();
    let world = World::new("loopback").unwrap();
    let _ollama = world
        .server
        .http_server("ollama-stand-in", "127.0.0.1:11434", "Ollama is running")
        .unwrap();
    check(&world.stranger, address::SERVER, 11434, Knock::Refused);
    let own: IpAddr = "127.0.0.1".parse().unwrap();
    let answer = world.server.http_get(own, 11434, "/", SOON).unwrap();
    assert!(answer.contains("Ollama is running"), "{answer}");
    // Its process is visible by name, and no process of this machine is.
    let sockets = world.server.ok(&["ss", "-Hltnp"]).unwrap();
    assert!(sockets.contains("ollama-stand-in"), "{sockets}");
    let processes = world.server.ok(&["ps", "-e", "-o", "comm="]).unwrap();
    assert!(processes.lines().count() < 6, "{processes}");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn ufw_works_inside_and_does_not_touch_this_machine() {
    lab::require_root();
    let files = || {
        here(&[
            "find",
            "/etc/ufw",
            "/etc/default/ufw",
            "-printf",
            "%p %s %T@ %C@\n",
        ])
    };
    let rules = || here(&["iptables-save"]);
    let before = (files(), rules());

    let world = World::new("ufw").unwrap();
    let server = &world.server;
    let _listener = server.tcp_server(8080, "hello\n").unwrap();
    assert!(server.ok(&["ufw", "status"]).unwrap().contains("inactive"));
    server.ok(&["ufw", "allow", "9090/tcp"]).unwrap();
    server.ok(&["ufw", "--force", "enable"]).unwrap();
    assert!(server.ok(&["ufw", "status"]).unwrap().contains("9090/tcp"));
    check(&world.stranger, address::SERVER, 8080, Knock::Silent);
    check(&world.stranger, address::SERVER_V6, 8080, Knock::Silent);
    check(&world.stranger, address::SERVER, 9090, Knock::Refused);

    assert_eq!(before, (files(), rules()));
}

/// Not tried out: where it failed, the clock of this machine would move.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn nothing_in_a_host_may_set_the_clock() {
    const CAP_SYS_TIME: u64 = 1 << 25;
    lab::require_root();
    let lab = NetLab::new("clock").unwrap();
    let host = lab.host("one").unwrap();
    let held = |status: &str| {
        let of = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        ["CapPrm:", "CapEff:", "CapBnd:"]
            .map(|name| u64::from_str_radix(of(name).trim(), 16).unwrap())
    };
    let program = host.ok(&["cat", "/proc/self/status"]).unwrap();
    let holder = host.ok(&["cat", "/proc/1/status"]).unwrap();
    let thread = host
        .in_net(|| std::fs::read_to_string("/proc/thread-self/status"))
        .unwrap();
    for status in [program, holder, thread.unwrap()] {
        for set in held(&status) {
            assert_eq!(set & CAP_SYS_TIME, 0, "{status}");
            assert_ne!(set, 0, "everything else is kept: {status}");
        }
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn writes_stay_in_the_host() {
    lab::require_root();
    let lab = NetLab::new("writes").unwrap();
    let (one, two) = (lab.host("one").unwrap(), lab.host("two").unwrap());
    for path in [
        "/etc/portcullis/x",
        "/var/lib/x-lab",
        "/run/x",
        "/root/x",
        "/tmp/x-lab",
    ] {
        one.write(path, "mine").unwrap();
        assert_eq!(one.read_text(path).unwrap(), "mine");
        assert!(!two.exists(path).unwrap(), "{path}");
        assert!(!std::path::Path::new(path).exists(), "{path}");
    }
    // What is not private is read-only.
    assert!(one.write("/usr/lib/x-lab", "").is_err());
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_published_port_of_a_real_container_answers_in_spite_of_ufw() {
    lab::require_root();
    let world = World::new("docker").unwrap();
    world.server.ok(&["ufw", "--force", "enable"]).unwrap();
    let docker = world.server.dockerd().unwrap();
    docker
        .import_web_image("web:1", "Ollama is running")
        .unwrap();
    let container = docker.run("ollama", &["-p", "11434:80"], "web:1").unwrap();
    assert!(container.starts_with("172."), "{container}");
    world
        .stranger
        .wait_port(address::SERVER, 11434, SOON * 5)
        .unwrap();
    let answer = world
        .stranger
        .http_get(address::SERVER, 11434, "/", SOON)
        .unwrap();
    assert!(answer.contains("Ollama is running"), "{answer}");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn sshd_and_fail2ban_work_inside() {
    lab::require_root();
    let world = World::new("bans").unwrap();
    let sshd = world.server.sshd().unwrap();
    let output = world
        .operator
        .ssh(address::SERVER, &sshd.key, &["hostname"])
        .unwrap();
    assert_eq!(output.stdout, "server\n", "{}", output.stderr);
    assert!(
        world
            .stranger
            .ssh_password(address::SERVER, "root", sshd.password)
            .unwrap()
    );

    world
        .server
        .write(
            "/etc/fail2ban/jail.d/test.local",
            "[sshd]\nbackend = polling\nmaxretry = 3\nbanaction = nftables-allports\n",
        )
        .unwrap();
    let _fail2ban = world.server.fail2ban().unwrap();
    for _ in 0..3 {
        assert!(
            !world
                .stranger
                .ssh_password(address::SERVER, "root", "wrong")
                .unwrap()
        );
    }
    let start = std::time::Instant::now();
    while world
        .stranger
        .connect(address::SERVER, 22, SOON / 4)
        .unwrap()
    {
        let status = || {
            world
                .server
                .run(&["fail2ban-client", "status", "sshd"])
                .unwrap()
                .text()
        };
        let log = || world.server.read_text("/var/log/auth.log").unwrap();
        assert!(start.elapsed() < SOON * 5, "{}\n{}", status(), log());
    }
    check(&world.operator, address::SERVER, 22, Knock::Open);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_program_that_hangs_is_ended_in_time() {
    lab::require_root();
    let lab = NetLab::new("bounds").unwrap();
    let host = lab.host("host").unwrap();
    let start = std::time::Instant::now();
    let error = host
        .command(&["sh", "-c", "echo started; sleep 1000 & sleep 1000"])
        .timeout(SOON / 4)
        .run()
        .unwrap_err();
    assert!(start.elapsed() < SOON);
    assert!(error.to_string().contains("started"), "{error}");
    assert!(
        !host
            .ok(&["ps", "-e", "-o", "comm="])
            .unwrap()
            .contains("sleep")
    );
    // A daemon that keeps the output open does not hold the run up either.
    let start = std::time::Instant::now();
    host.ok(&["sh", "-c", "sleep 1000 & echo done"]).unwrap();
    assert!(start.elapsed() < SOON);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn everything_is_gone_afterwards() {
    lab::require_root();
    let (id, folder, pids) = {
        let world = World::new("gone").unwrap();
        let docker = world.server.dockerd().unwrap();
        docker.import_web_image("web:1", "x").unwrap();
        docker.run("web", &["-p", "8080:80"], "web:1").unwrap();
        let pids = inside(world.server.pid());
        assert!(
            pids.len() >= 4,
            "dockerd, containerd, a shim, the container: {pids:?}"
        );
        (
            world.lab.id().to_owned(),
            world.server.folder().to_owned(),
            pids,
        )
    };
    gone(&id, &folder, &pids);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn everything_is_gone_after_a_panic() {
    lab::require_root();
    let seen = std::sync::Mutex::new(None);
    let panic = std::panic::catch_unwind(|| {
        let world = World::new("panic").unwrap();
        let _sshd = world.server.sshd().unwrap();
        *seen.lock().unwrap() = Some((
            world.lab.id().to_owned(),
            world.server.folder().to_owned(),
            inside(world.server.pid()),
        ));
        panic!("as a failed assertion does");
    });
    assert!(panic.is_err());
    let (id, folder, pids) = seen.into_inner().unwrap().unwrap();
    gone(&id, &folder, &pids);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn everything_is_gone_after_a_kill() {
    lab::require_root();
    // The test binary runs itself as the victim, which makes a world, says so, and waits to be killed.
    const VICTIM: &str = "PORTCULLIS_LAB_TEST_VICTIM";
    if std::env::var_os(VICTIM).is_some() {
        let world = World::new("killed").unwrap();
        let _docker = world.server.dockerd().unwrap();
        let report = format!("{} {}", world.lab.id(), world.server.pid());
        std::fs::write(std::env::var_os(VICTIM).unwrap(), report).unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "everything_is_gone_after_a_kill"])
        .env(VICTIM, &report)
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    let text = loop {
        match std::fs::read_to_string(&report) {
            Ok(text) if text.contains(' ') => break text,
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
        assert!(start.elapsed() < SOON * 20, "the victim made no world");
    };
    let (id, holder) = text.split_once(' ').unwrap();
    let pids = inside(holder.parse().unwrap());
    assert!(pids.len() >= 2, "{pids:?}");
    victim.kill().unwrap();
    victim.wait().unwrap();

    lab::reap().unwrap();
    gone(id, &lab::base().join(id), &pids);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn ctrl_c_leaves_nothing_at_once() {
    lab::require_root();
    const VICTIM: &str = "PORTCULLIS_LAB_TEST_VICTIM";
    if let Some(report) = std::env::var_os(VICTIM) {
        lab::end_on_signals().unwrap();
        let world = World::new("interrupted").unwrap();
        let _docker = world.server.dockerd().unwrap();
        let text = format!("{} {}", world.lab.id(), world.server.pid());
        std::fs::write(report, text).unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "ctrl_c_leaves_nothing_at_once"])
        .env(VICTIM, &report)
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    let text = loop {
        match std::fs::read_to_string(&report) {
            Ok(text) if text.contains(' ') => break text,
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
        assert!(start.elapsed() < SOON * 20, "the victim made no world");
    };
    let (id, holder) = text.split_once(' ').unwrap();
    let pids = inside(holder.parse().unwrap());
    let victim_pid = nix::unistd::Pid::from_raw(victim.id().try_into().unwrap());
    nix::sys::signal::kill(victim_pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(victim.wait().unwrap().code(), Some(130));
    assert!(
        !lab::existing().iter().any(|lab| lab == id),
        "without a reaper"
    );
    gone(id, &lab::base().join(id), &pids);
}

/// The processes in the process-id namespace of `holder`, with the times when they started.
fn inside(holder: u32) -> Vec<(u32, String)> {
    let space = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = space(holder).unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| space(pid).as_ref() == Some(&wanted))
        .filter_map(|pid| Some((pid, started(pid)?)))
        .collect()
}

fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19).map(str::to_owned)
}

#[track_caller]
fn gone(id: &str, folder: &std::path::Path, pids: &[(u32, String)]) {
    let start = std::time::Instant::now();
    loop {
        let alive: Vec<_> = pids
            .iter()
            .filter(|(pid, since)| started(*pid).as_ref() == Some(since))
            .collect();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let cgroups = here(&["find", "/sys/fs/cgroup", "-name", id]);
        if alive.is_empty() && !folder.exists() && !mounts.contains(id) && cgroups.is_empty() {
            break;
        }
        assert!(
            start.elapsed() < SOON * 3,
            "left behind: {alive:?} {folder:?} exists: {} {cgroups}",
            folder.exists()
        );
        std::thread::sleep(Duration::from_millis(50));
        let _ = lab::reap();
    }
    assert!(!lab::existing().contains(&id.to_owned()));
    assert!(!here(&["ip", "link"]).contains("stranger"));
}
