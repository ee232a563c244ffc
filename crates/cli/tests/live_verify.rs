//! `scan` and `verify` as a user meets them: what a knock proves, and what stands between.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lab::{Host, Output, World, address};
use std::net::{IpAddr, TcpListener};
use std::time::Duration;

const POLICY: &str = "version = 1\n[incoming]\ndefault = \"deny\"\nno_ssh = true\n\
    [[allow]]\nport = 443\nfrom = \"anywhere\"\n\
    [[allow]]\nport = 8443\nfrom = \"lan\"\n\
    [[test]]\nfrom = \"198.51.100.66\"\nto = \"tcp/11434\"\nexpect = \"blocked\"\n\
    [[test]]\nfrom = \"192.168.1.20\"\nto = \"tcp/8443\"\nexpect = \"admitted\"\n";

fn portcullis(host: &Host, command: &str) -> Output {
    let mut argv = vec![env!("CARGO_BIN_EXE_portcullis")];
    argv.extend(command.split(' '));
    host.command(&argv)
        .timeout(Duration::from_secs(120))
        .run()
        .unwrap()
}

/// A server with three services, and rules.
struct Server {
    /// Before the world: a host ends only when its processes were waited for.
    _services: Vec<lab::Process>,
    world: World,
}

fn server(rules: &str) -> Server {
    lab::require_root();
    let world = World::new("verify").unwrap();
    let services = [443, 8443, 11434].map(|port| {
        let listen = format!("[::]:{port}");
        world.server.http_server("web", &listen, "").unwrap()
    });
    nft(&world.server, rules);
    world.server.write("/root/policy.toml", POLICY).unwrap();
    Server {
        _services: services.into(),
        world,
    }
}

fn nft(host: &Host, rules: &str) {
    let table = format!(
        "flush ruleset\ntable inet rules {{ chain input {{ type filter hook input priority 0; policy drop;\n\
         iif lo accept\nct state established,related accept\nmeta l4proto ipv6-icmp accept\n{rules}\n}}\n}}\n"
    );
    host.command(&["nft", "-f", "-"]).input(table).ok().unwrap();
}

impl Server {
    /// A scan from `from` of one address of the server, handed to verify there.
    fn verify(&self, from: &Host, target: IpAddr, expect: i32, parts: &[&str]) -> Output {
        let scan = portcullis(from, &format!("scan --json {target}"));
        assert!(matches!(scan.code(), Some(0 | 5)), "{}", scan.text());
        self.world
            .server
            .write("/root/scan.json", scan.stdout)
            .unwrap();
        let verified = portcullis(
            &self.world.server,
            "verify --policy /root/policy.toml --report /root/scan.json --junit /root/junit.xml",
        );
        let text = verified.text();
        assert_eq!(verified.code(), Some(expect), "{text}");
        // Lines are wrapped; words are not.
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(words.contains(part), "{part:?} is not in\n{text}");
        }
        verified
    }

    fn junit(&self) -> String {
        self.world.server.read_text("/root/junit.xml").unwrap()
    }
}

const AS_WANTED: &str = "tcp dport 443 accept\nip saddr 192.168.1.0/24 tcp dport 8443 accept\n\
    ip6 saddr fd42:1::/64 tcp dport 8443 accept";

#[test]
#[ignore = "live: run by cargo xtask test"]
fn what_is_as_the_policy_wants_it_is_proven() {
    let server = server(AS_WANTED);
    let world = &server.world;
    server.verify(
        &world.stranger,
        address::SERVER,
        0,
        &[
            "Proven from outside",
            "tcp/11434 blocked for 198.51.100.66: holds",
            "tcp/8443 admitted for 192.168.1.20: unproven",
            "Nobody knocked from",
        ],
    );
    let junit = server.junit();
    assert!(junit.contains("name=\"tcp/443\"></testcase>"), "{junit}");
    assert!(
        junit.contains("<skipped message=\"nobody knocked from there\"/>"),
        "{junit}"
    );
    assert!(junit.contains("failures=\"0\""), "{junit}");
    server.verify(
        &world.neighbour,
        address::SERVER_LAN,
        0,
        &["tcp/8443 admitted for 192.168.1.20: holds"],
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_lan_port_open_to_the_stranger_and_an_ipv6_hole_are_found() {
    let server = server("tcp dport { 443, 8443 } accept\nmeta nfproto ipv6 tcp dport 11434 accept");
    let world = &server.world;
    server.verify(
        &world.stranger,
        address::SERVER,
        1,
        &["8443/tcp is open for 198.51.100.66"],
    );
    let junit = server.junit();
    assert!(
        junit.contains("the policy closes it, and it is open"),
        "{junit}"
    );
    server.verify(
        &world.stranger,
        address::SERVER_V6,
        1,
        &["11434/tcp is open for 2001:db8:51::66"],
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn an_allowed_port_that_is_closed_is_found() {
    let server = server("tcp dport 8443 accept");
    server.verify(
        &server.world.neighbour,
        address::SERVER_LAN,
        1,
        &["443/tcp is closed for 192.168.1.20, and the policy opens it"],
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_firewall_in_between_that_hides_an_open_port_is_found() {
    let server = server("tcp dport { 443, 11434 } accept");
    let world = &server.world;
    world
        .internet
        .command(&["nft", "-f", "-"])
        .input(
            "table inet cloud { chain forward { type filter hook forward priority 0;\n\
             tcp dport 11434 drop\n}\n}\n",
        )
        .ok()
        .unwrap();
    server.verify(
        &world.stranger,
        address::SERVER,
        1,
        &["11434 is open by the rules here", "a cloud security group"],
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_plain_user_finds_the_same_ports_and_is_told_how() {
    lab::require_root();
    let world = World::new("plain").unwrap();
    nft(&world.server, AS_WANTED);
    // With the accept queue that servers have: one of a single place loses knocks by itself.
    let listeners = world
        .server
        .in_net(|| [443, 8443, 11434].map(|port| TcpListener::bind(("::", port)).unwrap()))
        .unwrap();
    for listener in listeners {
        // They end with the test's process.
        std::thread::spawn(move || for _connection in listener.incoming() {});
    }
    let own = env!("CARGO_BIN_EXE_portcullis");
    // Where a plain user may read it.
    world.stranger.ok(&["cp", own, "/tmp/portcullis"]).unwrap();
    world
        .stranger
        .ok(&["chmod", "0755", "/tmp/portcullis"])
        .unwrap();
    let target = address::SERVER.to_string();
    let argv = ["/usr/sbin/runuser", "-u", "nobody", "--", "/tmp/portcullis"];
    let more = ["scan", "--json", "-p", "1-3000,8443,11434", &target];
    let scan = world
        .stranger
        .command(&[&argv[..], &more[..]].concat())
        .timeout(Duration::from_secs(120))
        .run()
        .unwrap();
    assert_eq!(scan.code(), Some(0), "{}", scan.text());
    assert!(
        scan.stderr.contains("without CAP_NET_RAW"),
        "{}",
        scan.stderr
    );
    let report: serde_json::Value = serde_json::from_str(&scan.stdout).unwrap();
    let ports = report["targets"][0]["ports"].as_array().unwrap();
    assert_eq!(ports.len(), 1, "{report}");
    assert_eq!(ports[0]["port"], 443);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn what_stands_behind_an_open_port_is_named_when_asked_for() {
    lab::require_root();
    let world = World::new("named").unwrap();
    let listen = "[::]:11434";
    let _ollama = world
        .server
        .http_server("ollama-stand-in", listen, "Ollama is running")
        .unwrap();
    let target = address::SERVER.to_string();
    let scan = |more: &str| portcullis(&world.stranger, &format!("scan -p 11434 {more} {target}"));
    let json = scan("--services --json").stdout;
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let service = &report["targets"][0]["ports"][0]["service"];
    assert!(service.as_str().unwrap().starts_with("Ollama"), "{json}");
    let xml = scan("--services --xml").stdout;
    assert!(xml.contains("<service name=\"Ollama"), "{xml}");
    // Nobody is asked unless that was wanted.
    let silent = scan("--json").stdout;
    assert!(silent.contains("\"service\": null"), "{silent}");
}
