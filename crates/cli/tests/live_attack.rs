//! Attempts to make the audit say "closed" for what is open, or a plan lock somebody out: each test is
//! named after a fault that was there once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use lab::{Host, World, address};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(2);
const PORTCULLIS: &str = env!("CARGO_BIN_EXE_portcullis");

fn has(nets: &[ipnet::IpNet], address: std::net::IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

/// Sources that the audit says are let in, or may be, to a port from a zone.
fn open_to(server: &Host, proto: &str, port: u16, zone: &str) -> Vec<ipnet::IpNet> {
    let audit = server.run(&[PORTCULLIS, "audit", "--json"]).unwrap();
    let report: serde_json::Value = serde_json::from_str(&audit.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", audit.stdout, audit.stderr));
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let mut out = Vec::new();
    for endpoint in list(&report["endpoints"]) {
        if endpoint["port"] != port || endpoint["proto"] != proto {
            continue;
        }
        for exposure in list(&endpoint["exposure"]) {
            if exposure["zone"] == zone {
                let (sure, maybe) = (&exposure["admitted"], &exposure["conditional"]);
                let both = list(sure).into_iter().chain(list(maybe));
                out.extend(both.filter_map(|net| net.as_str()?.parse::<ipnet::IpNet>().ok()));
            }
        }
    }
    out
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_public_neighbour_without_an_ipv6_default_route_was_called_closed() {
    lab::require_root();
    let world = World::new("attack-v6").unwrap();
    let server = &world.server;
    let _page = server.http_server("page", "[::]:8000", "hello").unwrap();
    server
        .ip("route del default via 2001:db8:113::1\n")
        .unwrap();
    for rule in [
        "-A INPUT -s 2001:db8:113::/64 -p tcp --dport 8000 -j ACCEPT",
        "-A INPUT -p tcp --dport 8000 -j DROP",
    ] {
        let words: Vec<&str> = ["ip6tables"].into_iter().chain(rule.split(' ')).collect();
        server.ok(&words).unwrap();
    }
    // The router is on the link; anybody else there would get in as well.
    assert!(
        world
            .internet
            .connect(address::SERVER_V6, 8000, SOON)
            .unwrap()
    );
    let open = open_to(server, "tcp", 8000, "internet");
    assert!(has(&open, address::GATEWAY_V6), "{open:?}");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_responder_that_ufw_lets_groups_reach_was_called_closed() {
    lab::require_root();
    let world = World::new("attack-mdns").unwrap();
    let server = &world.server;
    server.ok(&["ufw", "--force", "enable"]).unwrap();
    let script = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 5353))
member = socket.inet_aton('224.0.0.251') + socket.inet_aton('192.168.1.10')
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
print('ready', flush=True)
print('heard', s.recvfrom(9)[1][0], flush=True)
s.recvfrom(9)
";
    let mut responder = server.spawn(&["/usr/bin/python3", "-c", script]).unwrap();
    responder
        .wait_until("the responder", SOON * 5, |p| p.log().contains("ready"))
        .unwrap();
    world
        .neighbour
        .in_net(|| {
            let socket = std::net::UdpSocket::bind("192.168.1.20:0").unwrap();
            socket.send_to(b"who?", "224.0.0.251:5353").unwrap();
        })
        .unwrap();
    responder
        .wait_until("a question", SOON * 5, |p| {
            p.log().contains("heard 192.168.1.20")
        })
        .unwrap();
    let open = open_to(server, "udp", 5353, "lan");
    assert!(has(&open, address::NEIGHBOUR), "{open:?}");
}

/// Started with an empty environment, sshd's title has no room for `[listener]`: its port was not in
/// the plan, and connections to it were to be cut.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn an_sshd_whose_title_is_cut_was_locked_out() {
    lab::require_root();
    let world = World::new("attack-title").unwrap();
    let server = &world.server;
    let key = "/root/attack-key";
    server
        .ok(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
        .unwrap();
    let dir = "import os; os.makedirs('/run/sshd', exist_ok=True)";
    server.ok(&["/usr/bin/python3", "-c", dir]).unwrap();
    let _sshd = server
        .spawn(&[
            "/usr/bin/env",
            "-i",
            "/usr/sbin/sshd",
            "-D",
            "-f",
            "/dev/null",
            "-h",
            key,
            "-p",
            "2222",
        ])
        .unwrap();
    server
        .wait_port("127.0.0.1".parse().unwrap(), 2222, SOON * 5)
        .unwrap();
    let snapshot = server.run(&[PORTCULLIS, "snapshot"]).unwrap();
    let host: serde_json::Value = serde_json::from_str(&snapshot.stdout).unwrap();
    let ports = host["sshd"]["ports"].to_string();
    assert!(ports.contains("2222"), "{ports}");
    let plan = server.run(&[PORTCULLIS, "plan"]).unwrap();
    assert!(
        plan.stdout.contains("ufw limit 2222/tcp"),
        "{}",
        plan.text()
    );
}
