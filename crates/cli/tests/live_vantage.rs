//! `verify --from ssh:`: other machines knock, this one's kernel watches.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lab::{Host, Output, World, address};
use nix::sys::signal::Signal;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

/// A server, and machines that it may log in to.
struct Scene {
    /// Before the world: a host ends only when its processes were waited for.
    _running: Vec<lab::Process>,
    _sshd: Vec<lab::Sshd>,
    world: World,
}

const POLICY: &str = "version = 1\n[incoming]\ndefault = \"deny\"\nno_ssh = true\n";

impl Scene {
    /// `served`: TCP ports of the server; `rules`: lines of its input chain, whose policy is drop.
    fn new(name: &str, served: &[u16], rules: &str, policy: &str) -> Scene {
        lab::require_root();
        let world = World::new(name).unwrap();
        let running = served
            .iter()
            .map(|port| {
                let listen = format!("[::]:{port}");
                world.server.http_server("web", &listen, "").unwrap()
            })
            .collect();
        nft(
            &world.server,
            &format!(
                "table inet rules {{ chain input {{ type filter hook input priority 0; policy drop;\n\
                 iif lo accept\nct state established,related accept\nmeta l4proto ipv6-icmp accept\n\
                 {rules}\n}}\n}}\n"
            ),
        );
        let text = format!("{POLICY}{policy}");
        world.server.write("/root/policy.toml", text).unwrap();
        Scene {
            _running: running,
            _sshd: Vec::new(),
            world,
        }
    }

    /// Lets the server log in to `host` as `name`, with these lines in sshd's configuration.
    fn vantage(&mut self, name: &str, address: IpAddr, settings: &str) {
        let host = match name {
            "stranger" => &self.world.stranger,
            _ => &self.world.neighbour,
        };
        let sshd = host.sshd_with(settings).unwrap();
        let server = &self.world.server;
        let key = format!("/root/key-{name}");
        server
            .write(&key, std::fs::read(&sshd.key).unwrap())
            .unwrap();
        server.ok(&["chmod", "0600", &key]).unwrap();
        server.ok(&["mkdir", "-p", "/root/.ssh"]).unwrap();
        let before = server.read_text("/root/.ssh/config").unwrap_or_default();
        let config = format!(
            "{before}Host {name}\n  HostName {address}\n  User root\n  IdentityFile {key}\n  \
             StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        );
        server.write("/root/.ssh/config", config).unwrap();
        self._sshd.push(sshd);
    }

    fn argv<'a>(&self, arguments: &'a str) -> Vec<&'a str> {
        let start = [env!("CARGO_BIN_EXE_portcullis"), "verify", "--policy"];
        let mut argv = start.to_vec();
        argv.push("/root/policy.toml");
        argv.extend(arguments.split(' '));
        argv
    }

    #[track_caller]
    fn verify(&self, arguments: &str, expect: i32, parts: &[&str]) -> Output {
        let output = self
            .world
            .server
            .command(&self.argv(arguments))
            .env("HOME", "/root")
            .timeout(Duration::from_secs(300))
            .run()
            .unwrap();
        let text = output.text();
        assert_eq!(output.code(), Some(expect), "{text}");
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(words.contains(part), "{part:?} is not in\n{text}");
        }
        let left = self.world.server.ok(&["nft", "list", "tables"]).unwrap();
        assert!(!left.contains("portcullis"), "{left}");
        output
    }
}

fn nft(host: &Host, rules: &str) {
    host.command(&["nft", "-f", "-"]).input(rules).ok().unwrap();
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn where_the_kernel_watches_a_wholly_silent_machine_is_proven_closed() {
    let mut scene = Scene::new("silent", &[11434], "", "");
    scene.vantage("stranger", address::STRANGER, "");
    let files = || scene.world.stranger.ok(&["ls", "/tmp"]).unwrap();
    let before = files();
    // No port answers, so that the scan by itself proves nothing.
    scene.verify(
        "--from ssh:stranger --address 203.0.113.10",
        0,
        &[
            "witnessed: the kernel here saw every knock",
            "Proven from outside",
        ],
    );
    // What was copied there is gone.
    assert_eq!(files(), before);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_filter_in_between_that_hides_an_open_port_is_told_from_a_closed_one() {
    let mut scene = Scene::new("hidden", &[443, 11434], "tcp dport 11434 accept", "");
    scene.vantage("stranger", address::STRANGER, "");
    nft(
        &scene.world.internet,
        "table inet cloud { chain forward { type filter hook forward priority 0;\n\
         iifname != \"server\" tcp dport { 11434, 5000-5009 } drop\n}\n}\n",
    );
    scene.verify(
        "--from ssh:stranger --address 203.0.113.10",
        1,
        &[
            "11434 is open by the rules here, and no knock on it arrived",
            "on ports 5000-5009,11434 no knock arrived here",
        ],
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn several_vantages_prove_a_lan_port_from_both_sides_and_settle_udp() {
    let mut scene = Scene::new(
        "sides",
        &[443, 8443],
        "tcp dport 443 accept\nip saddr 192.168.1.0/24 tcp dport 8443 accept\n\
         ip6 saddr fd42:1::/64 tcp dport 8443 accept\nudp dport { 51820, 9999 } accept",
        "[[allow]]\nport = 443\nfrom = \"anywhere\"\n[[allow]]\nport = 8443\nfrom = \"lan\"\n\
         [[allow]]\nport = 51820\nproto = \"udp\"\nfrom = \"anywhere\"\n\
         [[test]]\nfrom = \"198.51.100.66\"\nto = \"udp/5353\"\nexpect = \"blocked\"\n",
    );
    // Neither says a word: as from outside, only the witness can tell them apart.
    let _silent: Vec<UdpSocket> = scene
        .world
        .server
        .in_net(|| [51820, 5353].map(|port| UdpSocket::bind(("::", port)).unwrap()))
        .unwrap()
        .into();
    scene.vantage("stranger", address::STRANGER, "");
    scene.vantage("neighbour", address::NEIGHBOUR, "");
    scene.verify(
        "--from ssh:stranger --from ssh:neighbour --junit /root/junit.xml",
        0,
        &[
            "open: 443 51820/udp",
            "192.168.1.10 as lan",
            "open: 443 8443 51820/udp",
            "tcp/8443: open for 192.168.1.20, closed for 198.51.100.66, as it should be",
            "udp/5353 blocked for 198.51.100.66: holds",
            "Proven from outside",
        ],
    );
    let junit = scene.world.server.read_text("/root/junit.xml").unwrap();
    assert!(
        junit.contains("name=\"tcp/8443 from both sides\"></testcase>"),
        "{junit}"
    );
    // From one side only, the other stays unproven, and is named.
    scene.verify(
        "--from ssh:stranger",
        0,
        &["tcp/8443: closed for 198.51.100.66; unproven that it is open for those admitted"],
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn after_kill_9_nothing_of_the_witness_is_left() {
    let mut scene = Scene::new("killed", &[443], "tcp dport 443 accept", "");
    scene.vantage("stranger", address::STRANGER, "");
    let tables = || scene.world.server.ok(&["nft", "list", "tables"]).unwrap();
    let argv = scene.argv("--from ssh:stranger --address 203.0.113.10");
    let mut verify = scene
        .world
        .server
        .command(&argv)
        .env("HOME", "/root")
        .spawn()
        .unwrap();
    verify
        .wait_until("the witness", Duration::from_secs(60), |_| {
            tables().contains("portcullis-witness")
        })
        .unwrap();
    verify.signal(Signal::SIGKILL).unwrap();
    let _ = verify.wait(Duration::from_secs(20)).unwrap();
    assert!(!tables().contains("portcullis"), "{}", tables());
}

/// A machine of another kind: nobody has one at hand, so its `uname` says so, and only these
/// programs are there.
fn of_another_kind(host: &Host, programs: &[&str]) -> &'static str {
    host.ok(&["mkdir", "-p", "/opt/few"]).unwrap();
    // What this machine's owner puts into PATH at login is none of the other's.
    host.write("/root/.bashrc", "").unwrap();
    host.write("/opt/few/uname", "#!/bin/sh\necho Linux riscv64\n")
        .unwrap();
    host.ok(&["chmod", "0755", "/opt/few/uname"]).unwrap();
    for program in programs {
        let found = host.ok(&["/bin/sh", "-c", &format!("command -v {program}")]);
        let link = format!("/opt/few/{program}");
        host.ok(&["ln", "-sf", found.unwrap().trim(), &link])
            .unwrap();
    }
    "SetEnv PATH=/opt/few"
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn where_the_program_does_not_fit_it_knocks_through_what_is_there() {
    for (programs, said) in [
        (
            &["sh", "python3"][..],
            "knocking with connect() through its python3",
        ),
        (
            &["sh", "bash", "timeout"][..],
            "through its bash, which is slow",
        ),
    ] {
        let mut scene = Scene::new(
            "borrowed",
            &[443, 8443, 11434],
            "tcp dport { 443, 8443 } accept",
            "[[allow]]\nport = 443\nfrom = \"anywhere\"\n",
        );
        let settings = of_another_kind(&scene.world.stranger, programs);
        scene.vantage("stranger", address::STRANGER, settings);
        let all = programs.contains(&"python3");
        scene.verify(
            "--from ssh:stranger --address 203.0.113.10",
            1,
            &[said, "open: 443 8443", "8443/tcp is open for"],
        );
        nft(
            &scene.world.server,
            "flush ruleset\ntable inet rules { chain input { type filter hook input priority 0; policy drop;\nct state established accept\nmeta l4proto ipv6-icmp accept\ntcp dport 443 accept\n}\n}\n",
        );
        if all {
            // Every port was asked, and the kernel here saw each arrive.
            scene.verify(
                "--from ssh:stranger --address 203.0.113.10",
                0,
                &["witnessed", "Proven from outside"],
            );
        } else {
            scene.verify(
                "--from ssh:stranger --address 203.0.113.10",
                5,
                &[
                    "only ports 443,8443,11434 were knocked on",
                    "No sure answer",
                ],
            );
        }
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_vantage_that_cannot_be_reached_is_told_and_the_others_still_count() {
    let mut scene = Scene::new(
        "missing",
        &[443],
        "tcp dport 443 accept",
        "[[allow]]\nport = 443\nfrom = \"anywhere\"\n",
    );
    scene.verify(
        "--from ssh:nobody.invalid",
        5,
        &["cannot knock from ssh:nobody.invalid"],
    );
    scene.vantage("stranger", address::STRANGER, "");
    scene.verify(
        "--from ssh:nobody.invalid --from ssh:stranger --address 203.0.113.10",
        5,
        &[
            "cannot knock from ssh:nobody.invalid",
            "open: 443",
            "No sure answer",
        ],
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn apply_ends_with_a_knock_from_outside_or_says_that_nobody_knocked() {
    // The rules are UFW's own here.
    let mut scene = Scene::new("applied", &[443, 11434], "", "");
    let server = scene.world.server.clone();
    server.ok(&["nft", "flush", "ruleset"]).unwrap();
    let _sshd = server.sshd().unwrap();
    scene.vantage("stranger", address::STRANGER, "");
    let ssh = "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\nrate_limit = true\n";
    server.write("/root/policy.toml", ssh).unwrap();
    let apply = |more: &[&str]| {
        let start = [
            env!("CARGO_BIN_EXE_portcullis"),
            "apply",
            "--policy",
            "/root/policy.toml",
            "--yes",
            "--i-have-a-console",
        ];
        let output = server
            .command(&[&start[..], more].concat())
            .env("HOME", "/root")
            .timeout(Duration::from_secs(300))
            .run()
            .unwrap();
        let text = output.text();
        assert_eq!(output.code(), Some(0), "{text}");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    // Only a rate-limited port answers now: without the witness this would stay unproven.
    let said = apply(&["--verify-from", "ssh:stranger"]);
    for part in [
        "203.0.113.10 as internet (ssh:stranger",
        "2001:db8:113::10 as internet (ssh:stranger",
        "open: 22 witnessed",
        "Proven from outside",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!said.contains("192.168.1.10 as"), "{said}");

    let more = format!("{ssh}[[allow]]\nport = 443\nfrom = \"anywhere\"\n");
    server.write("/root/policy.toml", more).unwrap();
    let said = apply(&[]);
    for part in [
        "Nothing was knocked on from outside",
        "sudo portcullis verify --policy /root/policy.toml --from ssh:YOU@ANOTHER-MACHINE",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}
