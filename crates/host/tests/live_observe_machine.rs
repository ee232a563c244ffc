//! Observing a whole Debian with systemd.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use host::observe::{from_snapshot, observe, snapshot};
use lab::{Machine, Release, address};
use portcullis_core::host::{Host, Socket};
use std::time::Duration;

/// Where [`facts_of_this_machine`] leaves its snapshot.
const OUT: &str = "PORTCULLIS_TEST_SNAPSHOT";
/// This program on the machine, and its snapshot there.
const PROGRAM: &str = "/usr/local/bin/observer";
const INSIDE: &str = "/tmp/portcullis-snapshot.json";

/// Run by the others on the machine; needs no root.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn facts_of_this_machine() {
    let host = observe();
    assert_eq!(
        host.systemd,
        std::path::Path::new("/run/systemd/system").is_dir()
    );
    if let Some(path) = std::env::var_os(OUT) {
        std::fs::write(path, snapshot(&host).unwrap()).unwrap();
    }
}

fn observer() -> Vec<String> {
    [
        "/usr/bin/env",
        &format!("{OUT}={INSIDE}"),
        PROGRAM,
        "--exact",
        "facts_of_this_machine",
        "--include-ignored",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn read(machine: &Machine) -> Host {
    from_snapshot(&machine.read_text(INSIDE).unwrap()).unwrap()
}

/// Observes as `prefix` (sudo, setpriv…) would have it.
fn observe_in(machine: &Machine, prefix: &[&str]) -> Host {
    let mut argv: Vec<String> = prefix.iter().map(|word| (*word).to_owned()).collect();
    argv.extend(observer());
    machine.ok(&argv).unwrap();
    read(machine)
}

fn listeners(host: &Host, port: u16) -> Vec<&Socket> {
    let here = |s: &&Socket| !s.in_container_netns && s.port == port;
    host.sockets.iter().filter(here).collect()
}

fn ssh_sources(host: &Host) -> Vec<(String, Vec<u16>)> {
    host.sshd
        .clone()
        .unwrap()
        .ports_by_source
        .into_iter()
        .collect()
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_debian_12_server() {
    lab::require_root();
    let machine = Machine::of(Release::Bookworm)
        .with_docker()
        .boot("observe")
        .unwrap();
    machine
        .copy_in(&std::env::current_exe().unwrap(), PROGRAM)
        .unwrap();
    machine.start_ai_services().unwrap();
    machine
        .write(
            "/etc/systemd/system/ollama.service.d/x.conf",
            "[Service]\nEnvironment=OLLAMA_HOST=0.0.0.0 OPENAI_API_KEY=hunter2\nEnvironmentFile=-/etc/default/ollama\n",
        )
        .unwrap();
    machine
        .write(
            "/etc/default/ollama",
            "OLLAMA_ORIGINS=\"*\"\nHF_TOKEN=hunter3\n",
        )
        .unwrap();
    machine.ok(&["systemctl", "daemon-reload"]).unwrap();
    machine.import_web_image("web:1", "hello").unwrap();
    machine
        .ok(&[
            "docker", "run", "-d", "--name", "web", "-p", "8080:80", "web:1",
        ])
        .unwrap();

    // Through sudo, which forgets SSH_CONNECTION.
    let mut words = vec!["sudo".to_owned()];
    words.extend(observer());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = machine
        .operator
        .ssh_as("admin", address::SERVER, machine.key(), &words)
        .unwrap();
    assert!(output.success(), "{}", output.text());
    let host = read(&machine);

    assert_eq!(host.unseen, []);
    assert!(host.privileged && host.systemd);
    assert!(host.os.contains("bookworm"));
    let own: Vec<_> = host.sessions.iter().filter(|s| s.own).collect();
    assert_eq!(own.len(), 1, "{:?}", host.sessions);
    assert_eq!((own[0].peer, own[0].local_port), (address::OPERATOR, 22));

    let ollama = listeners(&host, 11434);
    assert!(!ollama.is_empty());
    for socket in ollama {
        assert_eq!(socket.unit.as_deref(), Some("ollama.service"));
    }
    let unit = &host.units["ollama.service"];
    assert_eq!(
        (unit.load.as_str(), unit.active.as_str()),
        ("loaded", "active")
    );
    assert_eq!(
        unit.drop_ins,
        ["/etc/systemd/system/ollama.service.d/x.conf"]
    );
    assert!(unit.fragment.is_some() && unit.exec.is_some());
    let environment: Vec<String> = unit
        .environment
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    assert_eq!(environment, ["OLLAMA_HOST=0.0.0.0", "OLLAMA_ORIGINS=*"]);
    let text = snapshot(&host).unwrap();
    assert!(!text.contains("hunter") && !text.contains("OPENAI_API_KEY"));
    assert_eq!(host.units["ssh.service"].active, "active");
    assert_eq!(host.units["docker.service"].active, "active");
    assert_eq!(host.units["fail2ban.service"].active, "failed");

    // As Debian 12 ships it.
    let fail2ban = host.fail2ban.as_ref().unwrap();
    assert!(!fail2ban.alive && fail2ban.python_systemd && fail2ban.sshd_log.is_none());
    assert_eq!(
        fail2ban.why_dead.as_deref(),
        Some("Have not found any log file for sshd jail")
    );
    let ufw = host.ufw.as_ref().unwrap();
    assert_eq!((ufw.enabled, ufw.loaded), (false, Some(false)));

    let web = &host.engines[0].containers[0];
    assert_eq!(
        (web.name.as_str(), web.published[0].host_port),
        ("web", 8080)
    );
    assert_eq!(web.exposed.len(), 1);

    assert_eq!(host.sshd.as_ref().unwrap().ports, [22]);

    // systemd listens for sshd, elsewhere too; sshd itself has not run since, so that `sshd -T`
    // finds no /run/sshd.
    machine
        .write(
            "/etc/systemd/system/ssh.socket.d/x.conf",
            "[Socket]\nListenStream=127.0.0.1:2222\n",
        )
        .unwrap();
    machine.ok(&["systemctl", "daemon-reload"]).unwrap();
    machine
        .ok(&["systemctl", "disable", "--now", "ssh.service"])
        .unwrap();
    machine
        .ok(&["systemctl", "enable", "--now", "ssh.socket"])
        .unwrap();
    machine.ok(&["rm", "-rf", "/run/sshd"]).unwrap();
    let host = observe_in(&machine, &[]);
    let of = |port: u16| listeners(&host, port)[0].unit.clone();
    assert_eq!(of(22).as_deref(), Some("ssh.socket"));
    assert_eq!(of(2222).as_deref(), Some("ssh.socket"));
    let sources = ssh_sources(&host);
    assert!(
        sources.contains(&("ssh.socket".to_owned(), vec![22, 2222])),
        "{sources:?}"
    );
    assert!(
        sources.contains(&("sshd_config".to_owned(), vec![22])),
        "{sources:?}"
    );
    assert_eq!(host.sshd.unwrap().ports, [22, 2222]);
    assert!(
        !machine.exists("/run/sshd").unwrap(),
        "looking made a folder"
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn who_can_claim_to_be_sshd() {
    lab::require_root();
    let machine = Machine::of(Release::Bookworm).boot("claim").unwrap();
    machine
        .copy_in(&std::env::current_exe().unwrap(), PROGRAM)
        .unwrap();
    machine
        .ok(&[
            "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-f",
            "/tmp/key",
        ])
        .unwrap();
    machine.ok(&["chown", "admin", "/tmp/key"]).unwrap();
    // The real program, run by an ordinary user on a high port; and a second one of root's.
    let _users = machine
        .spawn(&[
            "setpriv",
            "--reuid=admin",
            "--regid=admin",
            "--clear-groups",
            "/usr/sbin/sshd",
            "-D",
            "-p",
            "8080",
            "-f",
            "/dev/null",
            "-h",
            "/tmp/key",
            "-o",
            "UsePAM=no",
        ])
        .unwrap();
    let _roots = machine
        .spawn(&["/usr/sbin/sshd", "-D", "-p", "2200"])
        .unwrap();
    for port in [8080, 2200] {
        machine
            .operator
            .wait_port(address::SERVER, port, Duration::from_secs(20))
            .unwrap();
    }
    // Out of the session's process tree, as tmux does.
    let words = observer().join(" ");
    let away = format!("setsid -f {words}; while [ ! -s {INSIDE} ]; do sleep 0.1; done; sleep 1");
    let output = machine
        .operator
        .ssh(address::SERVER_V6, machine.key(), &[&away])
        .unwrap();
    assert!(output.success(), "{}", output.text());
    let host = read(&machine);
    assert_eq!(host.sshd.as_ref().unwrap().ports, [22, 2200]);
    // The session is listed whether or not this process still hangs below it.
    let peers: Vec<_> = host
        .sessions
        .iter()
        .map(|s| (s.peer, s.local_port))
        .collect();
    assert_eq!(peers, [(address::OPERATOR_V6, 22)]);

    // Without any privilege.
    machine.ok(&["rm", "-f", INSIDE]).unwrap();
    let nobody = [
        "setpriv",
        "--reuid=nobody",
        "--regid=nogroup",
        "--clear-groups",
    ];
    let host = observe_in(&machine, &nobody);
    assert!(host.sshd.unwrap().ports.contains(&22));
    assert_eq!(host.units["ssh.service"].active, "active");
}
