//! Rows of the guide that the first gate's tests do not hold: ports for the local network, the
//! order that keeps SSH open, and the operator's own address under a ban.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use lab::{Host, Machine, Release, World, address};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const PORTCULLIS: &str = env!("CARGO_BIN_EXE_portcullis");
const SOON: Duration = Duration::from_secs(2);

fn reaches(from: &Host, to: IpAddr, port: u16) -> bool {
    from.connect(to, port, SOON).unwrap()
}

fn apply(server: &Host, policy: &str) {
    server.write("/etc/portcullis/policy.toml", policy).unwrap();
    let output = server
        .command(&[PORTCULLIS, "apply", "--yes", "--i-have-a-console"])
        .timeout(Duration::from_secs(120))
        .run()
        .unwrap();
    assert!(output.success(), "{}{}", output.stdout, output.stderr);
}

const LAN_ONLY: &str = r#"
version = 1
[[allow]]
port = "ssh"
from = "anywhere"
rate_limit = true
[[allow]]
port = 8080
from = "192.168.1.0/24"
[[service]]
kind = "ollama"
reach = ["192.168.1.0/24", "fd42:1::/64"]
"#;

#[test]
#[ignore = "live: run by cargo xtask test"]
fn g6_g9_a_port_for_the_local_network_is_open_there_and_closed_elsewhere() {
    lab::require_root();
    let world = World::new("lan-only").unwrap();
    let server = &world.server;
    let _web = server
        .http_server("web-stand-in", "[::]:8080", "only if needed")
        .unwrap();
    let _ollama = server
        .http_server("ollama-stand-in", "[::]:11434", "Ollama is running")
        .unwrap();
    let _sshd = server.sshd().unwrap();
    assert!(reaches(&world.stranger, address::SERVER, 11434));

    apply(server, LAN_ONLY);

    for (from, to, port, open) in [
        (&world.neighbour, address::SERVER_LAN, 8080, true),
        (&world.neighbour, address::SERVER_LAN, 11434, true),
        (&world.neighbour, address::SERVER_LAN_V6, 11434, true),
        (&world.neighbour, address::SERVER_LAN_V6, 8080, false),
        (&world.stranger, address::SERVER, 8080, false),
        (&world.stranger, address::SERVER, 11434, false),
        (&world.stranger, address::SERVER_V6, 11434, false),
        (&world.stranger, address::SERVER, 22, true),
        (&world.operator, address::SERVER_V6, 22, true),
    ] {
        assert_eq!(
            reaches(from, to, port),
            open,
            "{} to {to}:{port}",
            from.name()
        );
    }
    let plan = server.run(&[PORTCULLIS, "plan"]).unwrap();
    assert_eq!(plan.code(), Some(0), "{}{}", plan.stdout, plan.stderr);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn g4_g8_g14_ssh_is_allowed_and_limited_before_anything_closes() {
    lab::require_root();
    let world = World::new("order").unwrap();
    let _sshd = world.server.sshd().unwrap();
    let plan = world.server.run(&[PORTCULLIS, "plan"]).unwrap();
    assert_eq!(plan.code(), Some(3), "{}{}", plan.stdout, plan.stderr);
    let at = |what: &str| {
        plan.stdout
            .find(what)
            .unwrap_or_else(|| panic!("no {what:?} in {}", plan.stdout))
    };
    assert!(at("ufw limit 22/tcp") < at("ufw enable"), "{}", plan.stdout);

    apply(
        &world.server,
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\nrate_limit = true\n",
    );
    // G8: six attempts within 30 seconds, and the next ones are refused.
    let answered = (0..10)
        .filter(|_| reaches(&world.stranger, address::SERVER, 22))
        .count();
    assert_eq!(answered, 5);
    // The limit counts each source by itself.
    assert!(reaches(&world.operator, address::SERVER, 22));
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn g15_the_operator_is_never_banned_and_a_ban_of_his_address_is_a_finding() {
    lab::require_root();
    let machine = Machine::of(Release::Bookworm).boot("own-ban").unwrap();
    machine
        .copy_in(Path::new(PORTCULLIS), "/usr/local/bin/portcullis")
        .unwrap();
    let ssh = |command: &[&str]| {
        machine
            .operator
            .ssh(address::SERVER, machine.key(), command)
            .unwrap()
    };
    let applied = ssh(&["portcullis", "apply", "--yes", "--no-wait"]);
    assert!(applied.success(), "{}{}", applied.stdout, applied.stderr);
    let confirmed = ssh(&["portcullis", "confirm"]);
    assert!(confirmed.success(), "{}", confirmed.stderr);

    // The address that applied is on the ignore list: wrong passwords do not ban it.
    for guess in ["one", "two", "three", "four"] {
        assert!(
            !machine
                .operator
                .ssh_password(address::SERVER, "root", guess)
                .unwrap()
        );
    }
    // So many connections at once meet `ufw limit`, which lets go after 30 seconds; a ban would last.
    std::thread::sleep(Duration::from_secs(32));
    assert!(ssh(&["true"]).success());

    // Somebody bans it by hand all the same while the operator is connected: the console says so.
    let key = machine.key().display().to_string();
    let target = format!("root@{}", address::SERVER);
    let _session = machine
        .operator
        .spawn(&[
            "ssh",
            "-F",
            "/dev/null",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-i",
            &key,
            &target,
            "sleep",
            "60",
        ])
        .unwrap();
    let bound = Instant::now() + Duration::from_secs(20);
    while !machine
        .ok(&["ps", "-eo", "args"])
        .unwrap()
        .contains("sleep 60")
    {
        assert!(Instant::now() < bound, "the session did not come up");
        std::thread::sleep(Duration::from_millis(200));
    }
    machine
        .ok(&["fail2ban-client", "set", "sshd", "banip", "192.0.2.7"])
        .unwrap();
    // The client returns before the ban is in the kernel.
    let bound = Instant::now() + Duration::from_secs(20);
    let element = "{ 192.0.2.7 }";
    let get = [
        "nft",
        "get",
        "element",
        "inet",
        "portcullis",
        "sshd4",
        element,
    ];
    while !machine.run(&get).unwrap().success() {
        assert!(Instant::now() < bound, "the ban did not come");
        std::thread::sleep(Duration::from_millis(200));
    }
    let audit = machine.run(&["portcullis", "audit"]).unwrap();
    assert_eq!(audit.code(), Some(1), "{}{}", audit.stdout, audit.stderr);
    assert!(audit.stdout.contains("192.0.2.7"), "{}", audit.stdout);
    assert!(audit.stdout.contains("bann"), "{}", audit.stdout);
}
