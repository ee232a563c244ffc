//! The operator is known however he came and whatever stands between him and the tool: sudo, an empty
//! environment, tmux, a port that nobody listens on any more, IPv6, socket activation, a jump host.
//! Whoever is known is not locked out, and only a new way in confirms.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod transact;

use lab::{Host, Output, Process, World, address};
use serde_json::Value;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use transact::{Machine, Plan, STATE, allow, enable, exe, write};

const LONG: Duration = Duration::from_secs(60);

/// Words of an ssh client that asks nobody anything.
fn ssh_words(key: &Path) -> Vec<String> {
    let mut words = vec!["/usr/bin/ssh".to_owned(), "-F".into(), "/dev/null".into()];
    for option in [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "ConnectTimeout=5",
    ] {
        words.extend(["-o".to_owned(), option.to_owned()]);
    }
    words.extend(["-i".to_owned(), key.to_string_lossy().into_owned()]);
    words
}

fn until(what: &str, mut yes: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !yes() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A way to come to the server, and what the command line is wrapped in there.
struct Way<'a> {
    name: &'static str,
    from: &'a Host,
    /// Options of ssh, and where to.
    words: Vec<String>,
    /// As whom the server sees him, and at which port.
    peer: IpAddr,
    port: u16,
    /// In front of the program.
    wrap: &'static str,
}

impl Way<'_> {
    fn run(&self, key: &Path, command: &str) -> Output {
        let mut argv = ssh_words(key);
        argv.extend(self.words.iter().cloned());
        argv.push(format!("{} {command}", self.wrap));
        self.from.command(&argv).timeout(LONG).run().unwrap()
    }
}

/// Peer, port and "this is me" of each session in facts.
fn sessions(facts: &str) -> Vec<(IpAddr, u64, bool)> {
    let facts: Value = serde_json::from_str(facts).unwrap_or_else(|_| panic!("{facts}"));
    facts["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|session| {
            (
                session["peer"].as_str().unwrap().parse().unwrap(),
                session["local_port"].as_u64().unwrap(),
                session["own"].as_bool().unwrap(),
            )
        })
        .collect()
}

fn root_at(address: IpAddr) -> String {
    format!("root@{address}")
}

/// UFW comes up without a rule for SSH, whatever its port.
fn shut() -> Plan {
    Plan::new(vec![allow("allow", 443), enable()])
}

/// Nothing that bears on anybody.
fn harmless() -> Plan {
    Plan::new(vec![write("/etc/portcullis/x", "x\n", 0o600)])
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn the_operator_is_known_and_not_locked_out_however_he_came() {
    lab::require_root();
    let world = World::new("way-in").unwrap();
    let server = &world.server;
    let sshd = server.sshd_with("Port 22\nPort 2200").unwrap();
    // The jump host lets the same key in.
    let jump_sshd = world.stranger.sshd().unwrap();
    let jump = format!(
        "ProxyCommand={} -W %h:%p {}",
        ssh_words(&jump_sshd.key).join(" "),
        root_at(address::STRANGER)
    );
    // Somebody else than sshd listens and starts one for each connection, as ssh.socket does; no
    // setting of sshd names this port.
    let _activated = server
        .spawn(&[
            "/usr/bin/systemd-socket-activate",
            "--listen=0.0.0.0:2222",
            "--accept",
            "--inetd",
            "/usr/sbin/sshd",
            "-i",
        ])
        .unwrap();
    until("nobody listens at 2222", || {
        server
            .connect(address::SERVER, 2222, Duration::from_secs(1))
            .unwrap()
    });
    let to = |address: IpAddr| vec![root_at(address)];
    let at = |port: &str| vec!["-p".to_owned(), port.to_owned(), root_at(address::SERVER)];
    let operator = |name, words, peer, port, wrap| Way {
        name,
        from: &world.operator,
        words,
        peer,
        port,
        wrap,
    };
    let four = address::OPERATOR;
    let ways = [
        operator("plain", to(address::SERVER), four, 22, ""),
        operator("env -i", to(address::SERVER), four, 22, "env -i"),
        operator("sudo", to(address::SERVER), four, 22, "sudo -n"),
        operator(
            "sudo in a new session without environment",
            to(address::SERVER),
            four,
            22,
            "sudo -n setsid -w env -i",
        ),
        operator(
            "IPv6",
            to(address::SERVER_V6),
            address::OPERATOR_V6,
            22,
            "sudo -n",
        ),
        operator("another port", at("2200"), four, 2200, "env -i"),
        operator(
            "socket activation",
            at("2222"),
            four,
            2222,
            "sudo -n env -i",
        ),
        operator(
            "jump host",
            vec!["-o".to_owned(), jump, root_at(address::SERVER)],
            address::STRANGER,
            22,
            "sudo -n env -i",
        ),
    ];
    let plan = server.put(&shut());
    for way in &ways {
        let name = way.name;
        let said = way.run(&sshd.key, &format!("{} facts json", exe()));
        assert!(said.success(), "{name}: {}", said.text());
        let found = sessions(&said.stdout);
        assert_eq!(found, [(way.peer, u64::from(way.port), true)], "{name}");
        // An apply that would shut him out is refused, by name, before anything is changed.
        let said = way.run(&sshd.key, &format!("{} apply {plan} {STATE} 60000", exe()));
        let refused = format!(
            "{} could not open a new SSH connection to port {}",
            way.peer, way.port
        );
        assert!(said.text().contains(&refused), "{name}: {}", said.text());
        assert!(!said.text().contains("Armed"), "{name}: {}", said.text());
    }
    let status = server.ok(&["ufw", "status"]).unwrap();
    assert!(status.contains("inactive"), "{status}");
}

/// An operator's connection that stays open.
fn stay(world: &World, key: &Path, command: &[&str]) -> Process {
    let mut argv = ssh_words(key);
    argv.extend(command.iter().map(|word| (*word).to_owned()));
    world.operator.spawn(&argv).unwrap()
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn below_tmux_the_operator_is_known_and_only_a_new_login_confirms() {
    lab::require_root();
    let world = World::new("tmux").unwrap();
    let server = &world.server;
    let sshd = server.sshd().unwrap();
    // Logged in, and everything is done below tmux's server, which is nobody's child.
    let root = root_at(address::SERVER);
    let session = stay(
        &world,
        &sshd.key,
        &["-tt", &root, "env TERM=screen tmux new-session -s work"],
    );
    until("tmux does not start", || {
        server
            .run(&["tmux", "has-session", "-t", "work"])
            .unwrap()
            .success()
    });
    // Typed into the window of tmux: there is no other way into it.
    let below = |command: &str, out: &str| -> String {
        server.write(out, "").unwrap();
        let line = format!(
            "env -u SSH_CONNECTION {} {command} > {out} 2>&1; echo over >> {out}",
            exe()
        );
        server
            .ok(&["tmux", "send-keys", "-t", "work", &line, "Enter"])
            .unwrap();
        until(&format!("{command} does not end"), || {
            server.read_text(out).unwrap().ends_with("over\n")
        });
        server.read_text(out).unwrap()
    };
    let facts = below("facts json", "/var/log/facts");
    let found = sessions(facts.strip_suffix("over\n").unwrap());
    assert_eq!(found, [(address::OPERATOR, 22, false)]);

    // Known is known: not locked out.
    let plan = server.put(&shut());
    let said = below(&format!("apply {plan} {STATE} 60000"), "/var/log/refused");
    assert!(
        said.contains("192.0.2.7 could not open a new SSH connection"),
        "{said}"
    );

    // What changes nobody's way in is applied from there, and confirmed only from elsewhere.
    let plan = server.put(&harmless());
    let said = below(&format!("apply {plan} {STATE} 120000"), "/var/log/applied");
    assert!(said.contains("AwaitingConfirm"), "{said}");
    let said = below(&format!("confirm-here {STATE}"), "/var/log/confirmed");
    assert!(
        said.contains("it cannot be seen that you came in after"),
        "{said}"
    );
    let said = world
        .operator
        .ssh(
            address::SERVER,
            &sshd.key,
            &["sudo", "-n", "env", "-i", &exe(), "confirm-here", STATE],
        )
        .unwrap();
    assert!(
        said.text().contains("a new SSH connection from 192.0.2.7"),
        "{}",
        said.text()
    );
    server.ok(&["tmux", "kill-server"]).unwrap();
    drop(session);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn an_old_connection_confirms_nothing_however_it_is_dressed() {
    lab::require_root();
    let world = World::new("old").unwrap();
    let server = &world.server;
    let sshd = server.sshd().unwrap();
    let root = root_at(address::SERVER);
    // One connection with a control socket: later commands over it are no new connection.
    let master = stay(
        &world,
        &sshd.key,
        &["-M", "-S", "/run/control", "-N", &root],
    );
    until("no control socket", || {
        world.operator.exists("/run/control").unwrap()
    });
    let over = |words: &str| {
        world
            .operator
            .command(&[
                "/usr/bin/ssh",
                "-F",
                "/dev/null",
                "-S",
                "/run/control",
                &root,
                words,
            ])
            .timeout(LONG)
            .run()
            .unwrap()
            .text()
    };
    let plan = server.put(&harmless());
    let said = over(&format!("sudo -n {} apply {plan} {STATE} 120000", exe()));
    assert!(said.contains("AwaitingConfirm"), "{said}");
    for wrap in [
        "",
        "sudo -n",
        "env -i",
        "sudo -n setsid -w env -i",
        "SSH_CONNECTION='192.0.2.7 1 203.0.113.10 22'",
    ] {
        let said = over(&format!("{wrap} {} confirm-here {STATE}", exe()));
        assert!(
            said.contains("was open before the changes"),
            "{wrap}: {said}"
        );
    }
    // New, but from the machine to itself: it met no rule that others meet.
    for here in [address::SERVER, "127.0.0.1".parse().unwrap()] {
        let said = server
            .ssh(here, &sshd.key, &[&exe(), "confirm-here", STATE])
            .unwrap();
        assert!(
            said.text().contains("comes from the machine itself"),
            "{}",
            said.text()
        );
    }
    // No SSH connection at all, and no console.
    let said = server.transact(&["confirm-here", STATE]);
    assert!(said.contains("it cannot be seen"), "{said}");
    // Over a jump host, and new: counts.
    let jump_sshd = world.stranger.sshd().unwrap();
    let jump = format!(
        "ProxyCommand={} -W %h:%p {}",
        ssh_words(&jump_sshd.key).join(" "),
        root_at(address::STRANGER)
    );
    let mut argv = ssh_words(&sshd.key);
    argv.extend([
        "-o".to_owned(),
        jump,
        root,
        format!("{} confirm-here {STATE}", exe()),
    ]);
    let said = world
        .operator
        .command(&argv)
        .timeout(LONG)
        .run()
        .unwrap()
        .text();
    assert!(
        said.contains("a new SSH connection from 198.51.100.66"),
        "{said}"
    );
    drop(master);
}
