//! Ports that answer only a few knocks, as `ufw limit` has it: they are no measure of the path, and
//! must neither stall a scan nor be hammered.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lab::{Host, World, address};
use scan::packet::{self, PacketOptions};
use scan::{PortSet, PortState, Report};

/// A whole scan, and how long it took.
fn scan(from: &Host, targets: &[IpAddr]) -> (Report, Duration) {
    from.in_net(|| {
        let begun = Instant::now();
        let report = packet::scan(
            targets,
            &PortSet::all(),
            &PacketOptions::default(),
            &mut |_| {},
        )
        .unwrap();
        (report, begun.elapsed())
    })
    .unwrap()
}

fn open(report: &Report) -> Vec<Vec<u16>> {
    report
        .targets
        .iter()
        .map(|target| {
            target
                .ports
                .iter()
                .filter(|port| port.state == PortState::Open)
                .map(|port| port.port)
                .collect()
        })
        .collect()
}

fn ufw(server: &Host, rules: &[&[&str]]) {
    for rule in rules {
        let argv: Vec<&str> = ["ufw"].iter().chain(*rule).copied().collect();
        server.ok(&argv).unwrap();
    }
    server.ok(&["ufw", "--force", "enable"]).unwrap();
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_rate_limited_ssh_port_next_to_another_does_not_stall_the_scan() {
    lab::require_root();
    let world = World::new("limit").unwrap();
    let _ssh = world.server.tcp_server(22, "SSH-2.0-test\r\n").unwrap();
    let _web = world.server.tcp_server(443, "").unwrap();
    let _hidden = world.server.tcp_server(11434, "").unwrap();
    ufw(
        &world.server,
        &[&["limit", "22/tcp"], &["allow", "443/tcp"]],
    );
    let (report, took) = scan(&world.stranger, &[address::SERVER, address::SERVER_V6]);
    assert_eq!(open(&report), [[22, 443], [22, 443]], "{report:?}");
    assert!(!report.inconclusive(), "{report:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    // The scan itself knocked so little on 22 that whoever ran it still gets in.
    for target in [address::SERVER, address::SERVER_V6] {
        assert!(
            world
                .stranger
                .connect(target, 22, Duration::from_secs(2))
                .unwrap(),
            "{target}"
        );
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn where_only_a_rate_limited_port_answers_the_scan_says_soon_that_it_cannot_be_sure() {
    lab::require_root();
    for port in [22, 443] {
        let world = World::new("limit-only").unwrap();
        let _server = world.server.tcp_server(port, "").unwrap();
        ufw(&world.server, &[&["limit", &format!("{port}/tcp")]]);
        let (report, took) = scan(&world.stranger, &[address::SERVER]);
        assert_eq!(open(&report), [[port]]);
        assert!(report.inconclusive(), "{report:?}");
        let note = report.targets[0].note.clone().unwrap_or_default();
        assert!(note.contains("rate limit"), "{note}");
        assert!(took < Duration::from_secs(15), "{took:?}");
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn where_only_an_unlimited_ssh_port_answers_the_scan_is_sure() {
    lab::require_root();
    let world = World::new("ssh-only").unwrap();
    let _ssh = world.server.tcp_server(22, "").unwrap();
    ufw(&world.server, &[&["allow", "22/tcp"]]);
    let (report, took) = scan(&world.stranger, &[address::SERVER]);
    assert_eq!(open(&report), [[22]]);
    assert!(!report.inconclusive(), "{report:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
}
