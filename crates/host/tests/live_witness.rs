//! The witness: what the kernel notes of knocks, and that nothing of it stays.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use host::witness::{Note, Witness};
use lab::{World, address};
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

/// What `nft list tables` of the server names.
fn tables(world: &World) -> String {
    world.server.ok(&["nft", "list", "tables"]).unwrap()
}

fn rules(world: &World, rules: &str) {
    world
        .server
        .command(&["nft", "-f", "-"])
        .input(rules)
        .ok()
        .unwrap();
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn what_arrives_what_is_let_in_and_what_is_answered() {
    lab::require_root();
    let world = World::new("witness").unwrap();
    let _web = world.server.tcp_server(443, "").unwrap();
    let _inner = world.server.tcp_server(9000, "").unwrap();
    rules(
        &world,
        "table inet rules {\n\
         chain pre { type nat hook prerouting priority -100; tcp dport 8080 redirect to :9000; }\n\
         chain input { type filter hook input priority 0; policy drop;\n\
         meta l4proto ipv6-icmp accept\ntcp dport { 443, 444, 9000 } accept\n\
         udp dport 53 accept\n}\n}\n",
    );
    let before = tables(&world);
    let witness = world.server.in_net(|| Witness::begin(4)).unwrap().unwrap();
    assert!(tables(&world).contains("portcullis-witness"));
    let dns = world
        .server
        .in_net(|| UdpSocket::bind("[::]:53").unwrap())
        .unwrap();
    for (server, from) in [
        (address::SERVER, address::STRANGER),
        (address::SERVER_V6, address::STRANGER_V6),
    ] {
        for port in [443, 444, 445, 8080] {
            let _ = world
                .stranger
                .knock(server, port, Duration::from_millis(300));
        }
        world
            .stranger
            .in_net(|| {
                let any: IpAddr = if server.is_ipv6() {
                    "::".parse().unwrap()
                } else {
                    "0.0.0.0".parse().unwrap()
                };
                let socket = UdpSocket::bind((any, 0)).unwrap();
                for port in [53, 54] {
                    socket.send_to(b"?", (server, port)).unwrap();
                }
            })
            .unwrap();
        let mut question = [0; 8];
        let (_, asker) = dns.recv_from(&mut question).unwrap();
        dns.send_to(b"!", asker).unwrap();

        let notes = witness.notes().unwrap();
        let of =
            |port: u16, kinds: [Note; 4]| kinds.map(|kind| notes.has(kind, (from, server, port)));
        let tcp = |port| {
            of(
                port,
                [Note::Arrived, Note::LetIn, Note::Accepted, Note::Reset],
            )
        };
        assert_eq!(tcp(443), [true, true, true, false], "{server}: {notes:?}");
        assert_eq!(tcp(444), [true, true, false, true], "{server}: {notes:?}");
        assert_eq!(tcp(445), [true, false, false, false], "{server}: {notes:?}");
        // By the port that was knocked on, not the one it was translated to.
        assert_eq!(tcp(8080), [true, true, true, false], "{server}: {notes:?}");
        assert!(!notes.has(Note::Arrived, (from, server, 446)));
        let udp = |port| {
            of(
                port,
                [
                    Note::UdpArrived,
                    Note::UdpLetIn,
                    Note::UdpAnswered,
                    Note::Arrived,
                ],
            )
        };
        assert_eq!(udp(53), [true, true, true, false], "{server}: {notes:?}");
        assert_eq!(udp(54), [true, false, false, false], "{server}: {notes:?}");
        assert_eq!(notes.knockers(server), [(from, 4)]);
    }
    drop(witness);
    assert_eq!(tables(&world), before);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn others_cannot_take_it_away_and_a_reload_of_rules_does_not() {
    lab::require_root();
    let world = World::new("witness-owner").unwrap();
    let witness = world.server.in_net(|| Witness::begin(1)).unwrap().unwrap();
    let name = tables(&world).split_whitespace().last().unwrap().to_owned();
    let deleted = world
        .server
        .run(&["nft", "delete", "table", "inet", &name])
        .unwrap();
    assert!(!deleted.success());
    world.server.ok(&["nft", "flush", "ruleset"]).unwrap();
    let _ = world
        .stranger
        .knock(address::SERVER, 7, Duration::from_millis(200));
    let knock = (address::STRANGER, address::SERVER, 7);
    assert!(witness.notes().unwrap().has(Note::Arrived, knock));
}
