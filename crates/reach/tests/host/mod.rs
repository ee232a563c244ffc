//! A host like the ones people have: one NIC, Docker's bridge, UFW.
#![allow(dead_code, clippy::unwrap_used)]
use reach::*;

pub fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

pub fn interface(index: u32, name: &str, kind: Option<&str>, addresses: &[&str]) -> Interface {
    Interface {
        index,
        name: name.into(),
        kind: kind.map(Into::into),
        up: true,
        loopback: name == "lo",
        addresses: addresses
            .iter()
            .map(|a| InterfaceAddress {
                net: net(a),
                peer: None,
            })
            .collect(),
        rp_filter: Some(0),
        accept_local: Some(false),
        route_localnet: Some(false),
        forwarding_v4: Some(true),
        forwarding_v6: Some(true),
        disable_ipv6: Some(false),
        ..Interface::default()
    }
}

pub fn route(dst: &str, oif: u32, gateway: Option<&str>) -> Route {
    Route {
        table: 254,
        dst: net(dst),
        kind: RouteKind::Unicast,
        metric: 0,
        tos: 0,
        prefsrc: None,
        nexthops: vec![NextHop {
            oif,
            gateway: gateway.map(|g| g.parse().unwrap()),
            dead: false,
        }],
    }
}

/// eth0 192.0.2.10/24 with a default route, eth1 on a LAN 192.168.7.0/24, docker0 172.17.0.1/16; IPv6 likewise.
pub fn host() -> Net {
    Net {
        interfaces: vec![
            interface(1, "lo", None, &["127.0.0.1/8", "::1/128"]),
            interface(
                2,
                "eth0",
                None,
                &["192.0.2.10/24", "2001:db8::10/64", "fe80::10/64"],
            ),
            interface(
                3,
                "docker0",
                Some("bridge"),
                &["172.17.0.1/16", "fd00:17::1/64"],
            ),
            interface(4, "eth1", None, &["192.168.7.1/24"]),
        ],
        routes: vec![
            route("0.0.0.0/0", 2, Some("192.0.2.1")),
            route("192.0.2.0/24", 2, None),
            route("172.17.0.0/16", 3, None),
            route("192.168.7.0/24", 4, None),
            route("::/0", 2, Some("fe80::1")),
            route("2001:db8::/64", 2, None),
            route("fd00:17::/64", 3, None),
        ],
        rules: vec![],
        sysctls: Sysctls {
            ipv4_forward: Some(true),
            ipv6_forward: Some(true),
            rp_filter_all: Some(0),
            bridge_nf_call_iptables: Some(true),
            bridge_nf_call_ip6tables: Some(true),
        },
    }
}

pub fn rules(save: &str) -> Ruleset {
    let (rules, notes) = parse::iptables_save(save, false, Backend::IptablesNft);
    assert_eq!(notes, [], "{save}");
    rules
}

/// TCP to `dst`:`dport` by `ingress` from anywhere.
pub fn tcp(ingress: &str, dst: &str, dport: u16) -> Query {
    let dst: std::net::IpAddr = dst.parse().unwrap();
    Query {
        ingress: ingress.into(),
        dst,
        proto: Proto::Tcp,
        dport,
        sport: None,
        sources: if dst.is_ipv4() {
            AddrSet::all_v4()
        } else {
            AddrSet::all_v6()
        },
    }
}

/// The fate of one client: "open", "maybe", "closed".
pub fn fate(answer: &Answer, client: &str) -> &'static str {
    let client = client.parse().unwrap();
    let found: Vec<&str> = [
        (&answer.admitted, "open"),
        (&answer.conditional, "maybe"),
        (&answer.blocked, "closed"),
    ]
    .iter()
    .filter(|(set, _)| set.contains(client))
    .map(|(_, name)| *name)
    .collect();
    assert_eq!(
        found.len(),
        1,
        "{client} must be in exactly one of the sets: {answer:#?}"
    );
    match found[0] {
        "open" => "open",
        "maybe" => "maybe",
        _ => "closed",
    }
}

/// The piece that holds a client.
pub fn piece<'a>(answer: &'a Answer, client: &str) -> &'a Piece {
    let client = client.parse().unwrap();
    let found: Vec<&Piece> = answer
        .pieces
        .iter()
        .filter(|p| p.sources.contains(client))
        .collect();
    assert_eq!(found.len(), 1, "one piece for {client}: {answer:#?}");
    found[0]
}
