//! What stands between scanner and server, or in its place: NAT, stateful filters, things that
//! answer for everything; many targets at once; nmap as referee.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use common::{FEW, Listeners, Manner, Net, SERVER, SERVER_V6, ports, scan_from};
use lab::{World, address};
use scan::packet::{self, PacketOptions};
use scan::{Options, PortSet, PortState};

#[test]
#[ignore = "live: run by cargo xtask test"]
fn through_nat_and_a_stateful_filter() {
    lab::require_root();
    let world = World::new("nat").unwrap();
    let _listeners = Listeners::new(&world.server, &[22, 443, 8080, 60123, 11434]);
    let rules = |host: &lab::Host, rules: &str| {
        host.command(&["nft", "-f", "-"]).input(rules).ok().unwrap();
    };
    rules(
        &world.internet,
        "table inet nat { chain post { type nat hook postrouting priority 100;\n\
         oifname \"server\" masquerade\n}\nchain forward { type filter hook forward priority 0; policy drop;\n\
         ct state established,related accept\nct state invalid drop\noifname \"server\" ct state new accept\n}\n}\n",
    );
    rules(
        &world.server,
        "table inet rules { chain input { type filter hook input priority 0; policy drop;\n\
         iif lo accept\nct state established,related accept\nmeta l4proto ipv6-icmp accept\n\
         tcp dport { 22, 443, 8080, 60123 } accept\n}\n}\n",
    );
    for target in [address::SERVER, address::SERVER_V6] {
        let (report, took) = scan_from(&world.stranger, &[target]);
        assert_eq!(ports(&report.targets[0], PortState::Open), FEW, "{target}");
        assert!(!report.inconclusive(), "{target}: {:?}", report.targets[0]);
        assert!(took < Duration::from_secs(60), "{took:?}");
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_target_that_answers_for_every_port_is_called_so() {
    lab::require_root();
    let net = Net::new(None);
    let _listeners = Listeners::new(&net.server, &[8080]);
    net.nft(
        "table inet tarpit { chain pre { type nat hook prerouting priority -100;\n\
         iifname \"eth0\" meta l4proto tcp redirect to :8080\n}\n}",
    );
    let (report, _) = net.scan(&[SERVER]);
    let target = &report.targets[0];
    assert!(target.ports.is_empty(), "{} lines", target.ports.len());
    assert!(target.summary.open > 60_000, "{:?}", target.summary);
    assert!(report.inconclusive());
    let note = target.note.clone().unwrap_or_default();
    assert!(note.contains("something answers for all of them"), "{note}");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn an_address_where_nobody_is_gives_no_verdict() {
    lab::require_root();
    let net = Net::new(None);
    net.nft(
        "table inet rules { chain input { type filter hook input priority 0; policy drop;\n\
         meta l4proto ipv6-icmp accept\n}\n}",
    );
    let (report, took) = net.scan(&[SERVER]);
    assert!(report.inconclusive(), "{report:?}");
    let note = report.targets[0].note.clone().unwrap_or_default();
    assert!(note.contains("no port answered"), "{note}");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn two_hundred_and_fifty_six_targets_in_a_hundred_mebibytes() {
    lab::require_root();
    let net = Net::new(None);
    let targets: Vec<IpAddr> = (0..=255u8).map(|n| IpAddr::from([10, 7, 1, n])).collect();
    let batch: String = targets
        .iter()
        .map(|target| format!("address add {target}/32 dev eth0\n"))
        .collect();
    net.server.ip(&batch).unwrap();
    net.scanner.ip("route add 10.7.1.0/24 dev eth0").unwrap();
    let _listeners = Listeners::new(&net.server, &[443, 1999]);
    net.rules(Manner::Drops, &[443, 1999]);
    let report = net
        .scanner
        .in_net(|| {
            packet::scan(
                &targets,
                &PortSet::parse("400-2000").unwrap(),
                &PacketOptions::default(),
                &mut |_| {},
            )
            .unwrap()
        })
        .unwrap();
    assert_eq!(report.targets.len(), 256);
    for target in &report.targets {
        assert_eq!(ports(target, PortState::Open), [443, 1999], "{target:?}");
    }
    assert!(!report.inconclusive());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap()
        .parse()
        .unwrap();
    assert!(peak < 100 << 10, "{peak} KiB");
}

/// Open TCP ports in nmap's XML.
fn nmap(net: &Net, address: &str, range: &str) -> BTreeSet<u16> {
    let mut argv = vec![
        "nmap",
        "-sS",
        "-Pn",
        "-n",
        "-p",
        range,
        "--min-rate",
        "5000",
    ];
    argv.extend(["--max-retries", "5", "-oX", "-"]);
    if address.contains(':') {
        argv.push("-6");
    }
    argv.push(address);
    let xml = net.scanner.ok(&argv).unwrap();
    assert!(xml.contains("<finished"), "{xml}");
    xml.split("<port ")
        .skip(1)
        .filter(|port| port.contains("state=\"open\""))
        .filter_map(|port| port.split("portid=\"").nth(1)?.split('"').next())
        .map(|port| port.parse().unwrap())
        .collect()
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn nmap_finds_the_same_on_fifty_random_servers() {
    lab::require_root();
    const RANGE: &str = "1-1500";
    let net = Net::new(None);
    let mut random = 2_463_534_242u32;
    let mut below = |bound: u32| {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random % bound
    };
    let begun = Instant::now();
    for number in 0..50 {
        let mut served: BTreeSet<u16> =
            (0..1 + below(12)).map(|_| 1 + below(1500) as u16).collect();
        served.insert(443);
        let served: Vec<u16> = served.into_iter().collect();
        let _listeners = Listeners::new(&net.server, &served);
        // 443 stays open, so that there is a measure; the rest is up to chance.
        let policy = ["drop", "accept"][below(2) as usize];
        let mut rules = String::from("tcp dport 443 accept\n");
        for _ in 0..below(8) {
            let first = 1 + below(1400);
            let family = ["", "meta nfproto ipv4 ", "meta nfproto ipv6 "][below(3) as usize];
            let verdict = ["accept", "drop", "reject with tcp reset"][below(3) as usize];
            let last = first + below(100);
            rules += &format!("{family}tcp dport {first}-{last} {verdict}\n");
        }
        net.nft(&format!(
            "table inet rules {{ chain input {{ type filter hook input priority 0; policy {policy};\n\
             ct state established,related accept\nmeta l4proto ipv6-icmp accept\n{rules}}}\n}}"
        ));
        let address = [SERVER, SERVER_V6][number % 2];
        let ours = net
            .scanner
            .in_net(|| {
                packet::scan(
                    &[address.parse().unwrap()],
                    &PortSet::parse(RANGE).unwrap(),
                    &PacketOptions::default(),
                    &mut |_| {},
                )
                .unwrap()
            })
            .unwrap();
        assert!(!ours.inconclusive(), "{number}: {ours:?}\n{rules}");
        let ours: BTreeSet<u16> = ports(&ours.targets[0], PortState::Open)
            .into_iter()
            .collect();
        assert_eq!(
            ours,
            nmap(&net, address, RANGE),
            "{number} {policy}\n{rules}"
        );
    }
    eprintln!("fifty servers in {:?}", begun.elapsed());
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn connect_finds_the_same_without_any_privilege() {
    lab::require_root();
    let net = Net::new(None);
    let listeners = Listeners::new(&net.server, &[22, 443, 8080, 60123, 11434]);
    net.rules(Manner::Drops, &FEW);
    let report = net
        .scanner
        .in_net(|| {
            scan::connect::scan(
                &[SERVER.parse().unwrap()],
                &PortSet::all(),
                &Options::default(),
                &mut |_| {},
            )
            .unwrap()
        })
        .unwrap();
    assert_eq!(ports(&report.targets[0], PortState::Open), FEW);
    assert!(!report.inconclusive(), "{:?}", report.targets[0].note);
    drop(listeners);
    // Without a port that answers often there is no measure, and no verdict.
    net.nft(
        "table inet rules { chain input { type filter hook input priority 0; policy drop;\n\
         meta l4proto ipv6-icmp accept\n}\n}",
    );
    let silent = net
        .scanner
        .in_net(|| {
            let ports = PortSet::parse("1-2000").unwrap();
            let target = SERVER.parse().unwrap();
            scan::connect::scan(&[target], &ports, &Options::default(), &mut |_| {}).unwrap()
        })
        .unwrap();
    assert!(silent.inconclusive() && silent.partial, "{silent:?}");
    assert!(silent.targets[0].note.is_some());
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn an_empty_address_in_a_network_neither_ends_nor_delays_the_scan_of_the_others() {
    lab::require_root();
    let net = Net::new(None);
    let _listeners = Listeners::new(&net.server, &[443]);
    // Nobody has any of these but one.
    let mut targets: Vec<IpAddr> = (3..=60u8).map(|n| IpAddr::from([10, 7, 0, n])).collect();
    targets.push(SERVER.parse().unwrap());
    let (report, took) = net
        .scanner
        .in_net(|| {
            let begun = Instant::now();
            let ports = PortSet::parse("400-500").unwrap();
            let options = PacketOptions::default();
            let report = packet::scan(&targets, &ports, &options, &mut |_| {}).unwrap();
            (report, begun.elapsed())
        })
        .unwrap();
    assert_eq!(report.targets.len(), targets.len());
    assert!(report.inconclusive());
    for target in &report.targets {
        let server = target.address == SERVER.parse::<IpAddr>().unwrap();
        let note = target.note.clone().unwrap_or_default();
        assert_eq!(report.partial_of(target), !server, "{target:?}");
        assert_eq!(note.contains("no way there"), !server, "{target:?}");
        assert_eq!(!ports(target, PortState::Open).is_empty(), server);
    }
    assert!(took < Duration::from_secs(25), "{took:?}");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn udp_services_are_asked_in_their_own_words() {
    lab::require_root();
    let net = Net::new(None);
    // Stand-ins that look at the question as closely as the real ones do, and answer no other.
    let sockets: Vec<std::net::UdpSocket> = net
        .server
        .in_net(|| {
            [53, 3478, 443, 51820]
                .map(|port| std::net::UdpSocket::bind(("::", port)).unwrap())
                .into()
        })
        .unwrap();
    let expects: [fn(&[u8]) -> bool; 4] = [
        // One question, no answer, root, NS, IN (RFC 1035, 4.1).
        |m| m.len() == 17 && m[2..12] == [1, 0, 0, 1, 0, 0, 0, 0, 0, 0] && m[13..] == [0, 2, 0, 1],
        // Binding request with the magic cookie (RFC 8489, 5).
        |m| m.len() == 20 && m[..8] == [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42],
        // A long header, an unknown version, at least 1200 bytes (RFC 9000, 14.1).
        |m| m.len() >= 1200 && m[0] & 0xc0 == 0xc0 && m[1..5] != [0, 0, 0, 1],
        // WireGuard never answers a stranger.
        |_| false,
    ];
    let threads: Vec<_> = sockets
        .into_iter()
        .zip(expects)
        .map(|(socket, expects)| {
            std::thread::spawn(move || {
                socket
                    .set_read_timeout(Some(Duration::from_secs(8)))
                    .unwrap();
                let mut message = [0; 2048];
                while let Ok((length, from)) = socket.recv_from(&mut message) {
                    if expects(&message[..length]) {
                        socket.send_to(b"yes", from).unwrap();
                    }
                }
            })
        })
        .collect();
    net.nft(
        "table inet rules { chain input { type filter hook input priority 0; policy accept;\n\
         udp dport 161 drop\nudp dport 500 reject with icmpx admin-prohibited\n}\n}",
    );
    for address in [SERVER, SERVER_V6] {
        let report = net
            .scanner
            .in_net(|| {
                let options = PacketOptions::default();
                let target = address.parse().unwrap();
                let tcp = PortSet::parse("1").unwrap();
                let mut report = packet::scan(&[target], &tcp, &options, &mut |_| {}).unwrap();
                let udp = PortSet::parse("53,123,161,443,500,3478,51820").unwrap();
                let bound = Duration::from_secs(60);
                scan::udp::add(&mut report, &udp, bound, &mut |_| {}).unwrap();
                report
            })
            .unwrap();
        let target = &report.targets[0];
        let of = |state| -> Vec<u16> {
            let udp = target.ports.iter().filter(|port| port.proto == "udp");
            udp.filter(|port| port.state == state)
                .map(|port| port.port)
                .collect()
        };
        assert_eq!(of(PortState::Open), [53, 443, 3478], "{target:?}");
        assert_eq!(of(PortState::OpenOrFiltered), [161, 51820], "{target:?}");
        assert_eq!(of(PortState::Rejected), [500], "{address}: {target:?}");
        let closed = target.udp.as_ref().unwrap().closed;
        assert_eq!(closed, 1, "{address}: {target:?}");
        assert!(!report.inconclusive(), "{report:?}");
    }
    for thread in threads {
        thread.join().unwrap();
    }
}
