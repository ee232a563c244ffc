//! Zones of hosts like the ones people have.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod build;

use build::*;
use portcullis_core::finding::Zone;
use portcullis_core::host::Host;
use portcullis_core::zones::{places, zones};
use reach::Net;

fn of(net: Net) -> Vec<Zone> {
    zones(&Host {
        net,
        ..Host::default()
    })
}

#[track_caller]
fn check(net: Net, ids: &[&str], inside: &[(&str, &str)]) {
    let zones = of(net);
    assert_eq!(zones.iter().map(|z| z.id.as_str()).collect::<Vec<_>>(), ids);
    for (address, id) in inside {
        let having: Vec<_> = zones
            .iter()
            .filter(|z| z.networks.contains(address.parse().unwrap()))
            .map(|z| z.id.as_str())
            .collect();
        assert!(
            having.contains(id),
            "{address} is in {having:?}, not in {id}"
        );
    }
}

#[test]
fn a_public_nic_a_lan_and_docker() {
    check(
        net(),
        &["internet", "lan", "containers"],
        &[
            ("8.8.8.8", "internet"),
            ("203.0.113.9", "internet"),
            ("10.9.8.7", "internet"),
            ("fe80::9", "internet"),
            ("192.168.1.7", "lan"),
            ("172.17.0.2", "containers"),
        ],
    );
    let zones = of(net());
    let labels: Vec<_> = zones.iter().map(|z| z.label.as_str()).collect();
    assert_eq!(
        labels,
        [
            "the Internet (eth0)",
            "LAN 192.168.1.0/24 (eth1)",
            "containers (docker0)"
        ]
    );
    let internet = &zones[0].networks;
    for martian in [
        "127.0.0.1",
        "0.1.2.3",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "ff02::1",
    ] {
        assert!(!internet.contains(martian.parse().unwrap()), "{martian}");
    }
}

#[test]
fn a_home_box_has_its_lan_and_the_internet_on_one_nic() {
    let mut net = net();
    net.interfaces = vec![interface(
        2,
        "eth0",
        None,
        &["192.168.1.5/24", "2001:db8::5/64", "fe80::5/64"],
    )];
    net.routes = vec![
        route("0.0.0.0/0", 2, Some("192.168.1.1")),
        route("192.168.1.0/24", 2, None),
        route("::/0", 2, Some("fe80::1")),
    ];
    check(
        net.clone(),
        &["internet", "lan"],
        &[
            ("192.168.1.7", "lan"),
            ("fe80::7", "lan"),
            ("8.8.8.8", "internet"),
            ("2001:db8::7", "internet"),
        ],
    );
    let internet = &of(net)[0].networks;
    assert!(!internet.contains("192.168.1.7".parse().unwrap()));
    assert!(!internet.contains("fe80::7".parse().unwrap()));
}

/// The neighbours on the link can connect over IPv6 though no way leads to the IPv6 Internet.
#[test]
fn public_ipv6_neighbours_count_without_an_ipv6_default_route() {
    let mut net = net();
    net.interfaces = vec![interface(
        2,
        "eth0",
        None,
        &[
            "203.0.113.10/24",
            "192.168.1.5/24",
            "2001:db8::5/64",
            "fe80::5/64",
        ],
    )];
    net.routes = vec![
        route("0.0.0.0/0", 2, Some("203.0.113.1")),
        route("2001:db8::/64", 2, None),
        route("2001:db8:7::/48", 2, Some("2001:db8::1")),
    ];
    check(
        net,
        &["internet", "lan"],
        &[
            ("2001:db8::77", "internet"),
            ("2001:db8:7::1", "internet"),
            ("192.168.1.77", "lan"),
            ("fe80::77", "lan"),
        ],
    );
}

#[test]
fn vpns_and_several_lans_are_told_apart() {
    let mut net = net();
    net.interfaces
        .push(interface(5, "wg0", Some("wireguard"), &["10.8.0.1/24"]));
    net.interfaces
        .push(interface(6, "tailscale0", Some("tun"), &["100.101.1.1/32"]));
    net.interfaces
        .push(interface(7, "eth2", None, &["10.20.0.1/16"]));
    net.routes.push(route("10.99.0.0/16", 5, None));
    check(
        net.clone(),
        &[
            "internet",
            "lan:eth1",
            "lan:eth2",
            "vpn:wg0",
            "vpn:tailscale0",
            "containers",
        ],
        &[
            ("10.8.0.7", "vpn:wg0"),
            ("10.99.1.1", "vpn:wg0"),
            ("100.64.3.4", "vpn:tailscale0"),
            ("10.20.3.4", "lan:eth2"),
        ],
    );
    net.interfaces[4].up = false;
    assert!(
        !of(net).iter().any(|z| z.id == "vpn:wg0"),
        "a link that is down brings nobody"
    );
}

#[test]
fn a_vpn_that_carries_the_default_route_faces_the_internet_too() {
    let mut net = net();
    net.interfaces
        .push(interface(5, "wg0", Some("wireguard"), &["10.8.0.1/24"]));
    let mut all = route("0.0.0.0/0", 5, None);
    all.table = 51820;
    net.routes.push(all);
    let host = Host {
        net,
        ..Host::default()
    };
    let places = places(&host);
    let internet: Vec<_> = places
        .iter()
        .filter(|p| p.zone == "internet")
        .map(|p| p.interface.as_str())
        .collect();
    assert_eq!(internet, ["eth0", "wg0"]);
}

#[test]
fn bridge_ports_are_not_places_and_unknown_masters_hide_nothing() {
    let mut net = net();
    let mut veth = interface(8, "veth1", Some("veth"), &["169.254.1.1/16"]);
    veth.master = Some(4);
    net.interfaces.push(veth);
    assert!(
        !of(net.clone())
            .iter()
            .any(|z| z.interfaces.contains(&"veth1".to_owned()))
    );
    net.interfaces.last_mut().unwrap().master = Some(99);
    assert!(
        of(net)
            .iter()
            .any(|z| z.interfaces.contains(&"veth1".to_owned()))
    );
}

#[test]
fn a_docker_network_with_a_name_of_its_own_is_known_by_the_engine() {
    let mut host = docker();
    host.net
        .interfaces
        .push(interface(9, "ai-net", Some("bridge"), &["10.5.0.1/24"]));
    host.engines[0]
        .networks
        .push(portcullis_core::host::Network {
            name: "ai".into(),
            driver: "bridge".into(),
            bridge: Some("ai-net".into()),
            subnets: vec!["10.5.0.0/24".parse().unwrap()],
            ..Default::default()
        });
    let zones = zones(&host);
    let containers = zones.iter().find(|z| z.id == "containers").unwrap();
    assert_eq!(containers.interfaces, ["docker0", "ai-net"]);
    assert!(containers.networks.contains("10.5.0.7".parse().unwrap()));
}
