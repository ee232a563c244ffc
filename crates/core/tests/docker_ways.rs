//! Every known way around UFW is a finding with its reason, its evidence and what mends it.
//! Rules are what the real programs wrote, with the lines of the case put in.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod build;

use build::*;
use portcullis_core::compose;
use portcullis_core::finding::{Finding, Severity};
use portcullis_core::host::*;
use portcullis_core::judge::audit;
use portcullis_core::policy::Policy;
use reach::Backend;

fn findings(host: &Host) -> Vec<Finding> {
    audit(host, &Policy::builtin()).findings
}

/// The finding that `change` brings, which the host did not have before.
#[track_caller]
fn check(change: impl FnOnce(&mut Host), id: &str, severity: Severity, says: &str) -> Finding {
    let mut host = docker();
    let before = findings(&host);
    assert!(!before.iter().any(|f| f.id == id), "{id} is there already");
    change(&mut host);
    let after = findings(&host);
    let ids: Vec<_> = after.iter().map(|f| f.id.as_str()).collect();
    let found = after
        .iter()
        .find(|f| f.id == id)
        .unwrap_or_else(|| panic!("no {id} among {ids:?}"));
    assert_eq!(found.severity, severity, "{found:?}");
    assert!(found.title.contains(says), "{}", found.title);
    assert!(!found.controls.is_empty(), "{id} names no control");
    found.clone()
}

fn engine(host: &mut Host) -> &mut Engine {
    &mut host.engines[0]
}

/// Docker's rules with lines put before the first line that begins with `before`.
fn with(lines: &str, before: &str) -> reach::Ruleset {
    let at = UFW_DOCKER4.find(before).expect("a place");
    let text = format!("{}{lines}{}", &UFW_DOCKER4[..at], &UFW_DOCKER4[at..]);
    rules(&text, UFW_DOCKER6)
}

fn evidence(found: &Finding) -> String {
    found.evidence.join("\n")
}

const USER_RETURN: &str = "-A DOCKER-USER -j RETURN";

#[test]
fn a_published_port_names_its_container_image_project_file_and_line() {
    let file = "# all\nservices:\n  ollama:\n    ports:\n      - \"11434:80\"\n";
    let mut host = docker();
    let container = &mut engine(&mut host).containers[0];
    container.compose = Some(Compose {
        project: "chat".into(),
        service: "ollama".into(),
        files: vec!["/srv/chat/compose.yml".into()],
    });
    host.compose_files.insert(
        "/srv/chat/compose.yml".into(),
        ComposeFile {
            sha256: "00".into(),
            ports: compose::entries(file).unwrap(),
            unread: None,
        },
    );
    let all = findings(&host);
    let found = all.iter().find(|f| f.id == "docker-past-ufw").unwrap();
    assert_eq!(
        found.evidence[0],
        "published and open: Ollama (11434/tcp): container ai, image ollama/ollama:latest, compose project chat (/srv/chat/compose.yml line 5)"
    );
}

#[test]
fn containers_beside_the_host_and_on_its_network() {
    for driver in ["macvlan", "ipvlan"] {
        let found = check(
            |h| {
                let engine = engine(h);
                engine.networks.push(Network {
                    name: "wire".into(),
                    driver: driver.into(),
                    ..Network::default()
                });
                engine.containers[0].addresses.push(ContainerAddress {
                    network: "wire".into(),
                    address: "192.168.1.77".parse().unwrap(),
                });
            },
            "container-beside-host",
            Severity::Medium,
            driver,
        );
        assert!(evidence(&found).contains("192.168.1.77"));
    }
    let found = check(
        |h| {
            engine(h).containers[1].network_mode = "host".into();
            let mut socket = socket("python3", "0.0.0.0", 8000);
            socket.container = Some(engine(h).containers[1].id.clone());
            h.sockets.push(socket);
        },
        "container-on-host-network",
        Severity::Info,
        "UFW decides",
    );
    assert!(evidence(&found).contains("8000"));
}

#[test]
fn settings_of_the_daemon() {
    let found = check(
        |h| {
            let engine = engine(h);
            engine.default_ip = Some("127.0.0.1".into());
            engine.containers[0].network_mode = "chat_default".into();
        },
        "docker-ip-default-bridge-only",
        Severity::Medium,
        "default bridge only",
    );
    assert!(evidence(&found).contains("container ai"), "{found:?}");
    let mut covered = docker();
    engine(&mut covered).default_ip = Some("127.0.0.1".into());
    engine(&mut covered).default_network_ip = Some("127.0.0.1".into());
    engine(&mut covered).containers[0].network_mode = "chat_default".into();
    assert!(
        !findings(&covered)
            .iter()
            .any(|f| f.id.starts_with("docker-ip"))
    );

    check(
        |h| engine(h).iptables = Some(false),
        "docker-iptables-off",
        Severity::Low,
        "UFW decides",
    );
    for (mode, says) in [
        ("nat-unprotected", "every port, published or not"),
        ("routed", "every published port"),
    ] {
        check(
            |h| engine(h).networks[0].gateway_mode_ipv6 = Some(mode.into()),
            "docker-gateway-mode",
            Severity::Medium,
            says,
        );
    }
    check(
        |h| engine(h).rootless = true,
        "engine-rootless",
        Severity::Info,
        "rootless",
    );
}

#[test]
fn the_swarms_mesh() {
    let lines =
        "-A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:8080\n";
    let found = check(
        |h| {
            engine(h).swarm = true;
            let text = UFW_DOCKER4
                .replace("*nat\n", "*nat\n:DOCKER-INGRESS - [0:0]\n")
                .replacen(
                    "-A DOCKER -i docker0 -j RETURN",
                    &format!("{lines}-A DOCKER -i docker0 -j RETURN"),
                    1,
                );
            h.rules = rules(&text, UFW_DOCKER6);
        },
        "docker-swarm-ingress",
        Severity::Medium,
        "every node",
    );
    assert!(evidence(&found).contains("--dport 8080"));
}

#[test]
fn rules_of_docker_user() {
    let found = check(
        |h| {
            h.rules = with(
                "-A DOCKER-USER -p tcp -m tcp --dport 11434 -j DROP\n",
                USER_RETURN,
            )
        },
        "docker-user-wrong-port",
        Severity::Medium,
        "does nothing",
    );
    assert!(evidence(&found).contains("--dport 11434"));
    check(
        |h| {
            engine(h).containers[1].published = vec![publish("0.0.0.0", 9999, 80)];
            h.rules = with(
                "-A DOCKER-USER -p tcp -m tcp --dport 80 -j DROP\n",
                USER_RETURN,
            );
        },
        "docker-user-wrong-port",
        Severity::Medium,
        "published as 9999 and 11434",
    );
    // The precise rule is no fault.
    let mut precise = docker();
    precise.rules = with(
        "-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 11434 --ctdir ORIGINAL -j DROP\n",
        USER_RETURN,
    );
    assert!(
        !findings(&precise)
            .iter()
            .any(|f| f.id.starts_with("docker-user"))
    );
    let text = UFW_DOCKER4.replace(
        USER_RETURN,
        "-A DOCKER-USER -j RETURN\n-A DOCKER-USER -p tcp -m tcp --dport 80 -j DROP",
    );
    let found = check(
        |h| h.rules = rules(&text, UFW_DOCKER6),
        "docker-user-dead-rule",
        Severity::Medium,
        "never reached",
    );
    assert!(evidence(&found).contains("--dport 80"));
}

const UFW_DOCKER: &str = "-A DOCKER-USER -j ufw-user-forward\n";
const TRUST: &str = "-A DOCKER-USER -s 10.0.0.0/8 -j RETURN\n-A DOCKER-USER -s 172.16.0.0/12 -j RETURN\n-A DOCKER-USER -s 192.168.0.0/16 -j RETURN\n";

#[test]
fn ufw_dockers_block() {
    check(
        |h| h.rules = with(UFW_DOCKER, USER_RETURN),
        "ufw-docker-block",
        Severity::Info,
        "decide",
    );
    let found = check(
        |h| h.rules = with(&format!("{UFW_DOCKER}{TRUST}"), USER_RETURN),
        "ufw-docker-block",
        Severity::Medium,
        "every private source",
    );
    assert!(evidence(&found).contains("192.168.0.0/16"));
    let inert = UFW_DOCKER4
        .replace(USER_RETURN, &format!("{UFW_DOCKER}{USER_RETURN}"))
        .replace("-A FORWARD -j DOCKER-USER\n", "");
    check(
        |h| h.rules = rules(&inert, UFW_DOCKER6),
        "ufw-docker-inert",
        Severity::High,
        "do nothing",
    );
    check(
        |h| {
            h.ufw.as_mut().unwrap().foreign_lines =
                vec![("/etc/ufw/after.rules".into(), ":DOCKER-USER - [0:0]".into())];
        },
        "docker-user-flushed-at-reload",
        Severity::Low,
        "ufw reload",
    );
}

#[test]
fn dockers_nftables_backend() {
    let nft = |h: &mut Host, routed: &str| {
        engine(h).version = "29.1.0".into();
        engine(h).firewall_backend = Some("nftables".into());
        h.ufw.as_mut().unwrap().default_routed = routed.into();
    };
    check(
        |h| nft(h, "deny"),
        "docker-nftables-ufw-routed",
        Severity::Low,
        "cannot reach out",
    );
    check(
        |h| nft(h, "allow"),
        "docker-nftables-ufw-routed",
        Severity::Medium,
        "is open",
    );
    let found = check(
        |h| nft(h, "deny"),
        "docker-stale-jump",
        Severity::Medium,
        "until the next boot",
    );
    assert!(evidence(&found).contains("DOCKER-USER"), "{found:?}");
}

#[test]
fn docker_in_the_other_backend_of_iptables() {
    check(
        |h| {
            engine(h).root_dir = Some("/var/snap/docker/common/var-lib-docker".into());
            let ufw = UFW4;
            let docker: String = UFW_DOCKER4
                .lines()
                .filter(|l| !l.contains("ufw") && !l.starts_with('#'))
                .map(|l| format!("{l}\n"))
                .collect();
            let mut all = rules(ufw, UFW6);
            let (legacy, _) = reach::parse::iptables_save(&docker, false, Backend::IptablesLegacy);
            all.merge(legacy);
            h.rules = all;
        },
        "docker-other-backend",
        Severity::Medium,
        "snap",
    );
}

#[test]
fn podman_whose_api_is_off() {
    let lines =
        "-A NETAVARK-DN-1D -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.88.0.2:80\n";
    let text = UFW_DOCKER4
        .replace("*nat\n", "*nat\n:NETAVARK-DN-1D - [0:0]\n")
        .replacen(
            "-A DOCKER -i docker0 -j RETURN",
            &format!("{lines}-A DOCKER -i docker0 -j RETURN"),
            1,
        );
    let found = check(
        |h| h.rules = rules(&text, UFW_DOCKER6),
        "podman-past-ufw",
        Severity::Medium,
        "Podman publishes",
    );
    assert_eq!(
        found.fix.as_deref(),
        Some("systemctl enable --now podman.socket")
    );
}

#[test]
fn others_that_come_before_ufw() {
    let before = "-A INPUT -j ufw-before-logging-input";
    let tailscale = "-A INPUT -j ts-input\n";
    let found = check(
        |h| {
            let text = UFW_DOCKER4
                .replacen(":DOCKER - [0:0]", ":DOCKER - [0:0]\n:ts-input - [0:0]", 1)
                .replacen(before, &format!("{tailscale}{before}"), 1)
                .replacen(
                    USER_RETURN,
                    &format!("-A ts-input -i tailscale0 -j ACCEPT\n{USER_RETURN}"),
                    1,
                );
            h.rules = rules(&text, UFW_DOCKER6);
        },
        "tailscale-before-ufw",
        Severity::Low,
        "tailnet",
    );
    assert!(evidence(&found).contains("-i tailscale0"), "{found:?}");

    // As Oracle's images come.
    let oracle = "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p icmp -j ACCEPT\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 8000 -j ACCEPT\n-A INPUT -j REJECT --reject-with icmp-host-prohibited\n";
    let found = check(
        |h| h.rules = with(oracle, before),
        "rules-before-ufw",
        Severity::Medium,
        "`ufw deny` has no effect",
    );
    assert!(evidence(&found).contains("8000") && !evidence(&found).contains("-i lo"));
    assert!(evidence(&found).contains("--dport 22"), "{found:?}");
    check(
        |h| h.rules = with(oracle, before),
        "ufw-behind-reject",
        Severity::Medium,
        "no `ufw allow`",
    );
}

#[test]
fn kubernetes_virtual_machines_and_flushes() {
    let nodeports = "-A KUBE-NODEPORTS -p tcp -m comment --comment \"default/web\" -m tcp --dport 30080 -j KUBE-EXT-X\n";
    let text = UFW_DOCKER4
        .replace(
            "*nat\n",
            "*nat\n:KUBE-NODEPORTS - [0:0]\n:KUBE-EXT-X - [0:0]\n",
        )
        .replacen(
            "-A DOCKER -i docker0 -j RETURN",
            &format!("{nodeports}-A DOCKER -i docker0 -j RETURN"),
            1,
        );
    let found = check(
        |h| h.rules = rules(&text, UFW_DOCKER6),
        "kube-node-ports",
        Severity::Medium,
        "ahead of UFW",
    );
    assert!(evidence(&found).contains("30080"));
    check(
        |h| {
            let text = UFW_DOCKER4.replacen(
                ":DOCKER - [0:0]",
                ":DOCKER - [0:0]\n:LIBVIRT_FWI - [0:0]",
                1,
            );
            h.rules = rules(&text, UFW_DOCKER6);
        },
        "libvirt-beside-ufw",
        Severity::Info,
        "libvirt",
    );
    check(
        |h| {
            let table = reach::ir::Table::new(reach::ir::Family::Inet, "lxd", Backend::Nft);
            h.rules.tables.push(table);
        },
        "lxd-beside-ufw",
        Severity::Info,
        "LXD",
    );
    check(
        |h| {
            h.nftables_flush = Some("flush ruleset".into());
            let on = Unit {
                enabled: "enabled".into(),
                ..Unit::default()
            };
            h.units.insert("nftables.service".into(), on);
        },
        "nftables-flushes-ufw",
        Severity::Medium,
        "flushes every table",
    );
    check(
        |h| h.ufw.as_mut().unwrap().manage_builtins = true,
        "ufw-manage-builtins",
        Severity::Medium,
        "MANAGE_BUILTINS",
    );
    check(
        |h| h.ufw.as_mut().unwrap().ipv6 = false,
        "ufw-ipv6-off",
        Severity::Low,
        "IPV6=no",
    );
}

#[test]
fn the_engines_api() {
    let listen = |h: &mut Host, address: &str| {
        h.sockets.push(socket("dockerd", address, 2375));
    };
    // UFW keeps strangers out, but every program of this machine is root.
    check(
        |h| listen(h, "127.0.0.1"),
        "engine-api-open",
        Severity::High,
        "every program of this machine",
    );
    let found = check(
        |h| listen(h, "0.0.0.0"),
        "engine-api-open",
        Severity::Critical,
        "is root on this machine",
    );
    assert!(evidence(&found).contains("tlsverify"));
    let mut tls = docker();
    engine(&mut tls).tls_verify = Some(true);
    listen(&mut tls, "0.0.0.0");
    assert!(!findings(&tls).iter().any(|f| f.id == "engine-api-open"));
    // Open to strangers with TLS: worth knowing.
    let mut open = bad();
    open.engines = docker().engines;
    engine(&mut open).tls_verify = Some(true);
    listen(&mut open, "0.0.0.0");
    let all = findings(&open);
    let found = all.iter().find(|f| f.id == "engine-api-open").unwrap();
    assert_eq!(found.severity, Severity::Medium);

    let held = |h: &mut Host, container: usize| {
        engine(h).containers[container].engine_sockets = vec!["/var/run/docker.sock".into()];
    };
    check(
        |h| held(h, 0),
        "engine-socket-in-container",
        Severity::High,
        "Container ai",
    );
    check(
        |h| held(h, 1),
        "engine-socket-in-container",
        Severity::Medium,
        "Container ui",
    );
    check(
        |h| engine(h).open_socket = true,
        "engine-socket-open",
        Severity::High,
        "Any user",
    );
    let found = check(
        |h| engine(h).trusted_users = vec!["zoe".into(), "adam".into()],
        "docker-group",
        Severity::Low,
        "zoe and adam",
    );
    assert_eq!(found.fix.as_deref(), Some("gpasswd -d zoe docker"));
}

#[test]
fn hostile_names_in_findings_are_shown_escaped() {
    let mut host = docker();
    let evil = "a\u{1b}[2Jb\nc";
    let engine = engine(&mut host);
    engine.containers[0].name = evil.into();
    engine.containers[0].image = evil.into();
    engine.containers[0].engine_sockets = vec![format!("/{evil}/docker.sock")];
    engine.containers[0].compose = Some(Compose {
        project: evil.into(),
        service: evil.into(),
        files: vec![evil.into()],
    });
    engine.trusted_users = vec![evil.into()];
    engine.networks[0].name = evil.into();
    engine.networks[0].gateway_mode_ipv4 = Some("routed".into());
    host.nftables_flush = Some(evil.into());
    for found in findings(&host) {
        let text = format!("{}{}{:?}", found.title, found.evidence.join(""), found.fix);
        assert!(!text.contains('\u{1b}') && !text.contains("b\nc"), "{text}");
    }
}
