//! Hosts like the ones people have, for the tests of this folder. The rules are what the real
//! programs wrote (ufw 0.36.2, Docker 20.10.24, iptables-nft 1.8.9 on Debian 12).
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use portcullis_core::host::*;
use reach::{
    Backend, Interface, InterfaceAddress, Net, NextHop, Proto, Route, RouteKind, Ruleset, Sysctls,
};

pub const UFW4: &str = include_str!("../fixtures/ufw4.rules");
pub const UFW6: &str = include_str!("../fixtures/ufw6.rules");
pub const UFW_DOCKER4: &str = include_str!("../fixtures/ufw_docker4.rules");
pub const UFW_DOCKER6: &str = include_str!("../fixtures/ufw_docker6.rules");
/// As above, with the INPUT rule in after.rules and two reloads.
pub const FOLK4: &str = include_str!("../fixtures/folk4.rules");
/// As above, after `ufw disable`.
pub const OFF4: &str = include_str!("../fixtures/off4.rules");

pub fn rules(v4: &str, v6: &str) -> Ruleset {
    let (mut rules, notes) = reach::parse::iptables_save(v4, false, Backend::IptablesNft);
    assert_eq!(notes, []);
    let (six, notes) = reach::parse::iptables_save(v6, true, Backend::IptablesNft);
    assert_eq!(notes, []);
    rules.merge(six);
    rules
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
                net: a.parse().unwrap(),
                peer: None,
            })
            .collect(),
        rp_filter: Some(0),
        accept_local: Some(false),
        route_localnet: Some(false),
        forwarding_v4: Some(true),
        forwarding_v6: Some(false),
        disable_ipv6: Some(false),
        ..Interface::default()
    }
}

pub fn route(dst: &str, oif: u32, gateway: Option<&str>) -> Route {
    Route {
        table: 254,
        dst: dst.parse().unwrap(),
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

/// eth0 faces the Internet with 203.0.113.5 and 2001:db8::5, eth1 the LAN 192.168.1.0/24, docker0.
pub fn net() -> Net {
    Net {
        interfaces: vec![
            interface(1, "lo", None, &["127.0.0.1/8", "::1/128"]),
            interface(
                2,
                "eth0",
                None,
                &["203.0.113.5/24", "2001:db8::5/64", "fe80::5/64"],
            ),
            interface(3, "eth1", None, &["192.168.1.5/24"]),
            interface(4, "docker0", Some("bridge"), &["172.17.0.1/16"]),
        ],
        routes: vec![
            route("0.0.0.0/0", 2, Some("203.0.113.1")),
            route("203.0.113.0/24", 2, None),
            route("192.168.1.0/24", 3, None),
            route("172.17.0.0/16", 4, None),
            route("::/0", 2, Some("fe80::1")),
            route("2001:db8::/64", 2, None),
            route("fe80::/64", 2, None),
        ],
        rules: vec![],
        sysctls: Sysctls {
            ipv4_forward: Some(true),
            ipv6_forward: Some(false),
            rp_filter_all: Some(0),
            bridge_nf_call_iptables: Some(true),
            bridge_nf_call_ip6tables: Some(true),
        },
    }
}

pub fn socket(process: &str, address: &str, port: u16) -> Socket {
    let address: std::net::IpAddr = address.parse().unwrap();
    Socket {
        proto: Proto::Tcp,
        address,
        port,
        v6only: address.is_ipv6(),
        device: None,
        uid: Some(0),
        process: Some(Process {
            pid: 100,
            comm: process.into(),
            exe: None,
            user: Some("root".into()),
            ..Process::default()
        }),
        unit: None,
        container: None,
        in_container_netns: false,
    }
}

pub fn publish(host_ip: &str, host_port: u16, container_port: u16) -> Publish {
    Publish {
        proto: Proto::Tcp,
        host_ip: host_ip.parse().unwrap(),
        host_port,
        container_port,
    }
}

pub fn container(name: &str, image: &str, address: &str, published: Vec<Publish>) -> Container {
    Container {
        id: name.repeat(64)[..64].into(),
        name: name.into(),
        image: image.into(),
        network_mode: "bridge".into(),
        addresses: vec![ContainerAddress {
            network: "bridge".into(),
            address: address.parse().unwrap(),
        }],
        published,
        ..Container::default()
    }
}

fn ufw_rule(number: u32, action: &str, port: &str, ipv6: bool) -> UfwRule {
    UfwRule {
        number,
        action: action.into(),
        direction: "in".into(),
        proto: "tcp".into(),
        port: port.into(),
        from_port: "any".into(),
        ipv6,
        ..UfwRule::default()
    }
}

pub fn ufw(enabled: bool) -> Ufw {
    Ufw {
        version: "0.36.2".into(),
        enabled,
        loaded: Some(enabled),
        ipv6: true,
        default_incoming: "deny".into(),
        default_outgoing: "allow".into(),
        default_routed: "deny".into(),
        manage_builtins: false,
        log_level: "low".into(),
        rules: vec![
            ufw_rule(1, "limit", "22", false),
            ufw_rule(2, "allow", "443", false),
            ufw_rule(3, "limit", "22", true),
            ufw_rule(4, "allow", "443", true),
        ],
        foreign_lines: vec![],
    }
}

pub fn jail() -> Jail {
    Jail {
        name: "sshd".into(),
        max_retry: Some(3),
        find_time: Some(600),
        ban_time: Some(3600),
        ignore_ip: vec!["127.0.0.0/8".into(), "::1".into()],
        banned: vec![],
        actions: vec!["portcullis".into()],
        files: vec![],
        journal: Some("_SYSTEMD_UNIT=ssh.service + _COMM=sshd".into()),
        ..Jail::default()
    }
}

pub fn fail2ban() -> Fail2ban {
    Fail2ban {
        version: "1.0.2".into(),
        alive: true,
        why_dead: None,
        jails: vec![
            jail(),
            Jail {
                name: "recidive".into(),
                ..jail()
            },
        ],
        jail_local_is_copy: false,
        python_systemd: true,
        sshd_log: None,
        ..Fail2ban::default()
    }
}

/// sshd and HTTPS behind UFW, fail2ban well: the guide's end state without containers.
pub fn good() -> Host {
    Host {
        schema: HOST_SCHEMA,
        hostname: "ai-1".into(),
        os: "Debian GNU/Linux 12 (bookworm)".into(),
        privileged: true,
        systemd: true,
        net: net(),
        rules: rules(UFW4, UFW6),
        sockets: vec![
            socket("sshd", "0.0.0.0", 22),
            socket("sshd", "::", 22),
            socket("nginx", "0.0.0.0", 443),
            socket("nginx", "::", 443),
            socket("ollama", "127.0.0.1", 11434),
        ],
        ufw: Some(ufw(true)),
        fail2ban: Some(fail2ban()),
        sshd: Some(Sshd {
            ports: vec![22],
            ..Sshd::default()
        }),
        ..Host::default()
    }
}

/// UFW on, and Docker: Ollama published on every address, a web page on 127.0.0.1 only.
pub fn docker() -> Host {
    let mut host = good();
    host.rules = rules(UFW_DOCKER4, UFW_DOCKER6);
    host.sockets = vec![
        socket("sshd", "0.0.0.0", 22),
        socket("sshd", "::", 22),
        socket("nginx", "0.0.0.0", 443),
        socket("nginx", "::", 443),
        socket("docker-proxy", "0.0.0.0", 11434),
        socket("docker-proxy", "::", 11434),
        socket("docker-proxy", "127.0.0.1", 3000),
    ];
    host.engines = vec![Engine {
        kind: "docker".into(),
        version: "20.10.24".into(),
        networks: vec![Network {
            name: "bridge".into(),
            driver: "bridge".into(),
            bridge: Some("docker0".into()),
            subnets: vec!["172.17.0.0/16".parse().unwrap()],
            ..Network::default()
        }],
        containers: vec![
            container(
                "ai",
                "ollama/ollama:latest",
                "172.17.0.2",
                vec![publish("0.0.0.0", 11434, 80), publish("::", 11434, 80)],
            ),
            container(
                "ui",
                "web:1",
                "172.17.0.3",
                vec![publish("127.0.0.1", 3000, 8080)],
            ),
        ],
        ..Engine::default()
    }];
    host
}

/// The guide's failure mode: UFW off, Docker's ports open, Ollama on every address, fail2ban dead.
pub fn bad() -> Host {
    let mut host = docker();
    let flushed =
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
    host.rules = rules(OFF4, flushed);
    host.ufw = Some(ufw(false));
    host.engines.clear();
    host.sockets = vec![
        socket("sshd", "0.0.0.0", 22),
        socket("sshd", "::", 22),
        socket("ollama", "::", 11434),
        socket("ray", "0.0.0.0", 8265),
    ];
    host.sockets[2].v6only = false;
    host.fail2ban = Some(Fail2ban {
        alive: false,
        why_dead: Some(
            "ERROR   Failed during configuration: Have not found any log file for sshd jail".into(),
        ),
        jails: vec![],
        python_systemd: false,
        ..fail2ban()
    });
    host
}
