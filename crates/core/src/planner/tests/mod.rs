//! Plans, held to their contracts on facts that a model of the mechanisms carries forward.

mod model;
mod properties;
mod table;

use crate::host::*;
use crate::plan::{Action, Plan};
use crate::planner::{Options, PACKAGES, describe, make};
use crate::policy::Policy;
use reach::{Interface, InterfaceAddress, NextHop, Proto, Route, RouteKind};
use std::collections::BTreeMap;

/// The guide's failure mode on a stock Debian 12: UFW off, Ollama open, something on 8265, fail2ban dead.
pub(super) fn debian12() -> Host {
    let mut host = Host {
        schema: HOST_SCHEMA,
        os: "Debian GNU/Linux 12 (bookworm)".into(),
        privileged: true,
        systemd: true,
        ufw: Some(Ufw {
            version: "0.36.2".into(),
            enabled: false,
            loaded: Some(false),
            ipv6: true,
            default_incoming: "deny".into(),
            default_outgoing: "allow".into(),
            default_routed: "deny".into(),
            ..Ufw::default()
        }),
        fail2ban: Some(Fail2ban {
            version: "1.0.2".into(),
            alive: false,
            python_systemd: true,
            ..Fail2ban::default()
        }),
        sshd: Some(Sshd {
            ports: vec![22],
            ..Sshd::default()
        }),
        sessions: vec![Session {
            peer: "192.0.2.7".parse().unwrap(),
            peer_port: 40_000,
            local: "203.0.113.10".parse().unwrap(),
            local_port: 22,
            pid: None,
            own: true,
        }],
        sockets: vec![
            socket("0.0.0.0", 22, "sshd", "ssh.service"),
            socket("0.0.0.0", 11434, "ollama", "ollama.service"),
            socket("0.0.0.0", 8265, "python3", "ray.service"),
        ],
        ..Host::default()
    };
    for name in PACKAGES {
        host.packages.insert((*name).into(), Some("1".into()));
    }
    for path in super::managed_files([]) {
        host.files.insert(path, None);
    }
    host.units = BTreeMap::from([
        ("ollama.service".into(), unit("active", "enabled")),
        ("fail2ban.service".into(), unit("failed", "enabled")),
    ]);
    host.net.interfaces = vec![
        interface(2, "eth0", &["203.0.113.10/24", "2001:db8:113::10/64"]),
        interface(3, "eth1", &["192.168.1.10/24", "fd42:1::10/64"]),
    ];
    host.net.routes = vec![
        route("0.0.0.0/0", 2),
        route("::/0", 2),
        route("192.168.1.0/24", 3),
    ];
    host
}

/// The same with a container that publishes Ollama past UFW.
pub(super) fn docker() -> Host {
    let mut host = debian12();
    host.sockets.remove(1);
    host.units.remove("ollama.service");
    host.engines = vec![Engine {
        kind: "docker".into(),
        version: "20.10.24".into(),
        containers: vec![Container {
            name: "ollama".into(),
            image: "ollama/ollama:latest".into(),
            published: ["0.0.0.0", "::"]
                .into_iter()
                .map(|ip| Publish {
                    proto: Proto::Tcp,
                    host_ip: ip.parse().unwrap(),
                    host_port: 11434,
                    container_port: 11434,
                })
                .collect(),
            compose: Some(Compose {
                project: "ai".into(),
                service: "ollama".into(),
                files: vec!["/srv/ai/compose.yml".into()],
            }),
            ..Container::default()
        }],
        ..Engine::default()
    }];
    host
}

fn socket(address: &str, port: u16, comm: &str, unit: &str) -> Socket {
    Socket {
        proto: Proto::Tcp,
        address: address.parse().unwrap(),
        port,
        v6only: false,
        device: None,
        uid: Some(0),
        process: Some(Process {
            pid: 1,
            comm: comm.into(),
            exe: None,
            user: None,
            ..Process::default()
        }),
        unit: Some(unit.into()),
        container: None,
        in_container_netns: false,
    }
}

fn unit(active: &str, enabled: &str) -> Unit {
    Unit {
        load: "loaded".into(),
        active: active.into(),
        enabled: enabled.into(),
        ..Unit::default()
    }
}

fn interface(index: u32, name: &str, addresses: &[&str]) -> Interface {
    Interface {
        index,
        name: name.into(),
        up: true,
        addresses: addresses
            .iter()
            .map(|net| InterfaceAddress {
                net: net.parse().unwrap(),
                peer: None,
            })
            .collect(),
        ..Interface::default()
    }
}

fn route(dst: &str, oif: u32) -> Route {
    Route {
        table: 254,
        dst: dst.parse().unwrap(),
        kind: RouteKind::Unicast,
        metric: 0,
        tos: 0,
        prefsrc: None,
        nexthops: vec![NextHop {
            oif,
            gateway: None,
            dead: false,
        }],
    }
}

fn policy(text: &str) -> Policy {
    match Policy::parse("test", text) {
        Ok(policy) => policy,
        Err(errors) => panic!("{errors:?}\n{text}"),
    }
}

/// A plan that satisfies the linter, and after which nothing is left to do.
#[track_caller]
fn settled(host: &Host, policy: &Policy, options: &Options) -> Plan {
    let plan = make(host, policy, options).expect("a plan");
    let faults = super::lint(&plan, host, policy.incoming.no_ssh);
    assert!(faults.is_empty(), "{faults:?}\n{}", commands(&plan));
    let mut after = host.clone();
    for change in &plan.changes {
        model::apply(&mut after, &change.action);
    }
    let again = make(&after, policy, options).expect("a second plan");
    assert!(
        again.is_empty(),
        "not settled; first\n{}\nthen\n{}",
        commands(&plan),
        commands(&again)
    );
    plan
}

fn commands(plan: &Plan) -> String {
    plan.changes
        .iter()
        .map(describe)
        .collect::<Vec<_>>()
        .join("\n")
}

fn notes(plan: &Plan) -> String {
    plan.notes
        .iter()
        .map(|n| match &n.command {
            Some(command) => format!("{} [{command}]", n.text),
            None => n.text.clone(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn file<'a>(plan: &'a Plan, path: &str) -> &'a str {
    plan.changes
        .iter()
        .find_map(|c| match &c.action {
            Action::WriteFile {
                path: p, content, ..
            } if p == path => Some(content.as_str()),
            _ => None,
        })
        .expect("the file is written")
}
