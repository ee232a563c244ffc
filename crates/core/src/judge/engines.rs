//! Container engines: settings and networks by which published ports get around UFW, and their own API.

use super::words::{evidence, what};
use super::{APPLY, Case, Complete, EndpointVerdict, Judged, finding};
use crate::finding::{Finding, Origin, Severity};
use crate::host::{Container, Engine, Publish};
use crate::planner::sources::source;
use crate::text::{clean, list};
use reach::ir::{Backend, Rule, RuleVerdict, Statement};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(super) fn findings(case: &Case<'_>, out: &mut Vec<Finding>) {
    for engine in &case.host.engines {
        beside(engine, out);
        on_the_hosts_network(case, engine, out);
        default_address(case, engine, out);
        without_iptables(engine, out);
        gateway_modes(engine, out);
        swarm(case, engine, out);
        rootless(engine, out);
        nftables_backend(case, engine, out);
        legacy_tables(case, engine, out);
        api(case, engine, out);
        socket(engine, out);
    }
    unasked_podman(case, out);
}

fn named(engine: &Engine) -> &'static str {
    if engine.kind == "podman" {
        "Podman"
    } else {
        "Docker"
    }
}

fn names<'a>(containers: impl Iterator<Item = &'a Container>) -> Vec<String> {
    containers.map(|c| clean(&c.name)).collect()
}

/// "container ai, image ollama/ollama, compose project chat (/srv/chat/compose.yml line 7)"
pub(super) fn origin(case: &Case<'_>, container: &Container, publish: &Publish) -> String {
    let mut text = format!(
        "container {}, image {}",
        clean(&container.name),
        clean(&container.image)
    );
    if let Some(compose) = &container.compose {
        text.push_str(&format!(", compose project {}", clean(&compose.project)));
        match (source(case.host, container, publish), compose.files.first()) {
            (Some((file, entry)), _) => {
                text.push_str(&format!(" ({} line {})", clean(file), entry.line));
            }
            (None, Some(file)) => text.push_str(&format!(" ({})", clean(file))),
            (None, None) => {}
        }
    }
    text
}

/// macvlan and ipvlan: the container is a machine of its own on the wire.
fn beside(engine: &Engine, out: &mut Vec<Finding>) {
    for network in &engine.networks {
        if !matches!(network.driver.as_str(), "macvlan" | "ipvlan") {
            continue;
        }
        let there: Vec<String> = engine
            .containers
            .iter()
            .flat_map(|c| c.addresses.iter().map(move |a| (c, a)))
            .filter(|(_, a)| a.network == network.name)
            .map(|(c, a)| format!("container {} has {}", clean(&c.name), a.address))
            .collect();
        if there.is_empty() {
            continue;
        }
        let mut found = finding(
            "container-beside-host",
            Severity::Medium,
            format!(
                "Containers in the {} network {} are on the wire themselves: no rule of this host, UFW's or another's, sees their packets.",
                network.driver,
                clean(&network.name)
            ),
        );
        for line in there.into_iter().take(8) {
            found = found.shows(line);
        }
        out.push(
            found
                .mend(format!(
                    "docker network disconnect {} CONTAINER",
                    clean(&network.name)
                ))
                .rows(&["G10", "NIST-SC-7"]),
        );
    }
}

fn on_the_hosts_network(case: &Case<'_>, engine: &Engine, out: &mut Vec<Finding>) {
    let there: Vec<&Container> = engine
        .containers
        .iter()
        .filter(|c| c.network_mode == "host")
        .collect();
    if there.is_empty() {
        return;
    }
    let mut found = finding(
        "container-on-host-network",
        Severity::Info,
        format!(
            "{} use the host's network: UFW decides about their ports as about the host's own, and `-p` means nothing for them.",
            list(&names(there.iter().copied()))
        ),
    );
    for judged in case.endpoints {
        let of = judged.endpoint.container.as_deref();
        if judged.endpoint.origin == Origin::Socket && there.iter().any(|c| of == Some(&c.name)) {
            found = found.shows(format!("listens: {}", what(&judged.endpoint)));
        }
    }
    out.push(found.rows(&["G10"]));
}

/// `"ip": "127.0.0.1"` covers the default bridge only; compose makes networks of its own.
fn default_address(case: &Case<'_>, engine: &Engine, out: &mut Vec<Finding>) {
    let loopback = |ip: &Option<String>| {
        ip.as_deref()
            .and_then(|ip| ip.parse::<IpAddr>().ok())
            .is_some_and(|ip| ip.is_loopback())
    };
    if engine.kind != "docker"
        || !loopback(&engine.default_ip)
        || loopback(&engine.default_network_ip)
    {
        return;
    }
    let mut missed = Vec::new();
    for container in &engine.containers {
        let default = matches!(container.network_mode.as_str(), "bridge" | "default" | "");
        let wide = container
            .published
            .iter()
            .find(|p| p.host_ip.is_unspecified());
        if let (false, Some(publish)) = (default, wide) {
            missed.push(format!(
                "{}/{} on every address: {}",
                publish.host_port,
                publish.proto,
                origin(case, container, publish)
            ));
        }
    }
    if missed.is_empty() {
        return;
    }
    let mut found = finding(
        "docker-ip-default-bridge-only",
        Severity::Medium,
        "Docker's setting \"ip\" covers the default bridge only: what compose and other networks publish is on every address.",
    )
    .shows(format!(
        "/etc/docker/daemon.json: \"ip\": \"{}\"",
        clean(engine.default_ip.as_deref().unwrap_or(""))
    ));
    for line in missed.into_iter().take(8) {
        found = found.shows(line);
    }
    out.push(found.mend(APPLY).rows(&["G10", "G11", "CIS-Docker-5.14"]));
}

/// `"iptables": false`: docker-proxy takes the connections, so they pass INPUT, and UFW decides.
fn without_iptables(engine: &Engine, out: &mut Vec<Finding>) {
    if engine.iptables != Some(false) {
        return;
    }
    out.push(
        finding(
            "docker-iptables-off",
            Severity::Low,
            "Docker makes no firewall rules (\"iptables\": false): UFW decides about published ports, containers cannot reach out, and every client looks like the bridge's own address.",
        )
        .shows("/etc/docker/daemon.json: \"iptables\": false")
        .rows(&["G10"]),
    );
}

/// `routed` and `nat-unprotected` open the containers' own addresses to whoever can route to them.
fn gateway_modes(engine: &Engine, out: &mut Vec<Finding>) {
    for network in &engine.networks {
        for (family, mode) in [
            ("IPv4", &network.gateway_mode_ipv4),
            ("IPv6", &network.gateway_mode_ipv6),
        ] {
            let what = match mode.as_deref() {
                Some("nat-unprotected") => "every port, published or not,",
                Some("routed") => "every published port",
                _ => continue,
            };
            out.push(
                finding(
                    "docker-gateway-mode",
                    Severity::Medium,
                    format!(
                        "Network {} has the {family} gateway mode {}: {what} is open at the containers' own addresses for whoever has a route there.",
                        clean(&network.name),
                        clean(mode.as_deref().unwrap_or(""))
                    ),
                )
                .shows(format!(
                    "docker network inspect {}: com.docker.network.bridge.gateway_mode_{}",
                    clean(&network.name),
                    family.to_lowercase()
                ))
                .mend(APPLY)
                .rows(&["G10", "NIST-SC-7"]),
            );
        }
    }
}

/// The routing mesh publishes on every node, whatever node the container runs on.
fn swarm(case: &Case<'_>, engine: &Engine, out: &mut Vec<Finding>) {
    let dnat: Vec<String> = case
        .host
        .rules
        .rules()
        .filter(|(at, rule)| {
            at.chain == "DOCKER-INGRESS"
                && rule
                    .statements
                    .iter()
                    .any(|s| matches!(s, Statement::Nat(_)))
        })
        .map(|(_, rule)| clean(&rule.text))
        .collect();
    if !engine.swarm || dnat.is_empty() {
        return;
    }
    let mut found = finding(
        "docker-swarm-ingress",
        Severity::Medium,
        "The swarm's routing mesh publishes services on every address of every node, past UFW, also where no container of theirs runs.",
    );
    for rule in dnat.into_iter().take(6) {
        found = found.shows(rule);
    }
    out.push(found.mend(APPLY).rows(&["G10", "G11", "NIST-SC-7"]));
}

fn rootless(engine: &Engine, out: &mut Vec<Finding>) {
    let published: Vec<&Container> = engine
        .containers
        .iter()
        .filter(|c| !c.published.is_empty())
        .collect();
    if !engine.rootless || published.is_empty() {
        return;
    }
    out.push(
        finding(
            "engine-rootless",
            Severity::Info,
            format!(
                "{} of a user (rootless): a process of the user's holds the ports of {}, so UFW decides about them, and the containers see no client's address.",
                named(engine),
                list(&names(published.into_iter()))
            ),
        )
        .rows(&["G10"]),
    );
}

/// With Docker's own nftables tables, UFW's rules for routed packets decide again, and DOCKER-USER is gone.
fn nftables_backend(case: &Case<'_>, engine: &Engine, out: &mut Vec<Finding>) {
    if engine.kind != "docker" || engine.firewall_backend.as_deref() != Some("nftables") {
        return;
    }
    let version = format!(
        "Docker {}, firewall backend nftables",
        clean(&engine.version)
    );
    let routed = case.host.ufw.as_ref().map(|u| u.default_routed.as_str());
    let active = case
        .host
        .ufw
        .as_ref()
        .is_some_and(|u| u.loaded == Some(true));
    let (severity, title) = match routed {
        Some("deny" | "drop" | "reject") if active => (
            Severity::Low,
            "Docker uses its nftables backend and UFW denies routed packets: published ports are closed and containers cannot reach out.",
        ),
        Some("allow" | "accept") => (
            Severity::Medium,
            "Docker uses its nftables backend and UFW allows routed packets: what Docker publishes is open, and rules in DOCKER-USER do nothing.",
        ),
        _ => return,
    };
    out.push(
        finding("docker-nftables-ufw-routed", severity, title)
            .shows(version.clone())
            .shows(format!(
                "/etc/default/ufw: DEFAULT_FORWARD_POLICY is {}",
                clean(routed.unwrap_or(""))
            ))
            .rows(&["G10"]),
    );
    let old: Vec<String> = case
        .host
        .rules
        .rules()
        .filter(|(at, rule)| {
            at.table == "filter"
                && at.chain == "FORWARD"
                && leads(rule, |c| c.starts_with("DOCKER"))
        })
        .map(|(_, rule)| clean(&rule.text))
        .collect();
    if let Some(rule) = old.first() {
        out.push(
            finding(
                "docker-stale-jump",
                Severity::Medium,
                "Docker changed to its nftables backend, and its old iptables chains are still in the way until the next boot: what is filtered now is open then.",
            )
            .shows(version)
            .shows(format!("still there: {rule}"))
            .mend(APPLY)
            .rows(&["G10", "G11"]),
        );
    }
}

pub(super) fn leads(rule: &Rule, to: impl Fn(&str) -> bool) -> bool {
    rule.statements.iter().any(|s| {
        matches!(s, Statement::Verdict(RuleVerdict::Jump { chain } | RuleVerdict::Goto { chain }) if to(chain))
    })
}

/// The snap brings its own iptables, which writes the old tables: `iptables -S` of the system shows none of
/// its rules, and DOCKER-USER of the one is not that of the other.
fn legacy_tables(case: &Case<'_>, engine: &Engine, out: &mut Vec<Finding>) {
    if engine.kind != "docker" {
        return;
    }
    let has =
        |backend: Backend, prefix: &str| {
            case.host.rules.tables.iter().any(|t| {
                t.backend == backend && t.chains.iter().any(|c| c.name.starts_with(prefix))
            })
        };
    let snap = engine
        .root_dir
        .as_deref()
        .is_some_and(|d| d.starts_with("/var/snap/"));
    let pairs = [
        (
            Backend::IptablesLegacy,
            Backend::IptablesNft,
            "iptables-legacy-save",
        ),
        (
            Backend::IptablesNft,
            Backend::IptablesLegacy,
            "iptables-nft-save",
        ),
    ];
    for (docker, ufw, command) in pairs {
        if has(docker, "DOCKER") && !has(ufw, "DOCKER") && has(ufw, "ufw") {
            out.push(
                finding(
                    "docker-other-backend",
                    Severity::Medium,
                    format!(
                        "Docker{} keeps its rules in another backend of iptables than UFW: each tool shows half of what the kernel does.",
                        if snap { " (the snap)" } else { "" }
                    ),
                )
                .shows(format!("Docker's rules: {command}"))
                .rows(&["G10"]),
            );
        }
    }
}

/// Podman is asked over a socket that is often off; its rules are there all the same.
fn unasked_podman(case: &Case<'_>, out: &mut Vec<Finding>) {
    if case.host.engines.iter().any(|e| e.kind == "podman") {
        return;
    }
    let dnat: Vec<String> = case
        .host
        .rules
        .rules()
        .filter(|(at, rule)| {
            let ours = at.chain.starts_with("NETAVARK")
                || at.table == "netavark"
                || at.chain.starts_with("CNI-");
            ours && rule
                .statements
                .iter()
                .any(|s| matches!(s, Statement::Nat(n) if n.kind == reach::ir::NatKind::Dnat))
        })
        .map(|(_, rule)| clean(&rule.text))
        .collect();
    if dnat.is_empty() {
        return;
    }
    let mut found = finding(
        "podman-past-ufw",
        Severity::Medium,
        "Podman publishes ports past UFW; their containers have no names here, because Podman's API is not running.",
    );
    for rule in dnat.into_iter().take(6) {
        found = found.shows(rule);
    }
    out.push(
        found
            .mend("systemctl enable --now podman.socket")
            .rows(&["G10", "G11"]),
    );
}

/// The engine's API over TCP: whoever reaches it without a client certificate is root here.
fn api(case: &Case<'_>, engine: &Engine, out: &mut Vec<Finding>) {
    if engine.rootless {
        return;
    }
    let program = if engine.kind == "podman" {
        "podman"
    } else {
        "dockerd"
    };
    let ours = |judged: &&Judged| {
        let endpoint = &judged.endpoint;
        let named = endpoint.process.as_deref() == Some(program);
        let usual = endpoint.process.is_none() && matches!(endpoint.id.port, 2375 | 2376);
        endpoint.origin == Origin::Socket
            && endpoint.id.proto == reach::Proto::Tcp
            && (named || usual)
            // Swarm's own ports want certificates always.
            && !matches!(endpoint.id.port, 2377 | 7946)
            && (named || engine.kind == "docker")
    };
    for judged in case.endpoints.iter().filter(ours) {
        let id = &judged.endpoint.id;
        let tls = engine.tls_verify == Some(true);
        let local = judged.verdict == EndpointVerdict::Local;
        let reached = judged.verdict == EndpointVerdict::Exposed;
        let (severity, title) = match (tls, local) {
            (true, true) => continue,
            (true, false) if !reached => continue,
            (true, false) => (
                Severity::Medium,
                "is reachable from outside; it wants a client certificate, and that is all that stands before root",
            ),
            (false, true) => (
                Severity::High,
                "answers every program of this machine without asking who it is: whoever runs one is root",
            ),
            (false, false) => (
                Severity::Critical,
                "answers without asking who it is: whoever reaches it is root on this machine",
            ),
        };
        let mut found = finding(
            "engine-api-open",
            severity,
            format!("{}'s API on port {} {title}.", named(engine), id.port),
        );
        found.endpoint = Some(id.clone());
        found = found.shows(format!("{program} listens on {id}"));
        if engine.tls_verify != Some(true) {
            found = found.shows("tlsverify is set neither in /etc/docker/daemon.json nor on the daemon's command line");
        }
        for (exposure, beyond) in judged.endpoint.exposure.iter().zip(&judged.beyond).take(6) {
            let zone = case.zones.iter().find(|z| z.id == exposure.zone);
            let piece = exposure
                .pieces
                .iter()
                .find(|p| !p.sources.intersect(&beyond.surely).is_empty());
            if let (Some(zone), Some(piece)) = (zone, piece) {
                found = found.shows(evidence(zone, exposure, piece));
            }
        }
        out.push(
            found
                .mend("take tcp:// out of \"hosts\" (or -H) and use ssh:// contexts instead: docker context create NAME --docker host=ssh://USER@HOST")
                .rows(&["G1", "CIS-Docker-2.6", "NIST-AC-3"]),
        );
    }
}

/// The engine's unix socket in other hands.
fn socket(engine: &Engine, out: &mut Vec<Finding>) {
    let holders: Vec<&Container> = engine
        .containers
        .iter()
        .filter(|c| !c.engine_sockets.is_empty())
        .collect();
    for container in holders {
        let published: BTreeSet<u16> = container
            .published
            .iter()
            .filter(|p| !p.host_ip.is_loopback())
            .map(|p| p.host_port)
            .collect();
        let severity = if published.is_empty() {
            Severity::Medium
        } else {
            Severity::High
        };
        let mut found = finding(
            "engine-socket-in-container",
            severity,
            format!(
                "Container {} holds the engine's socket: whoever breaks into it is root on this machine.",
                clean(&container.name)
            ),
        );
        for path in &container.engine_sockets {
            found = found.shows(format!("mounted: {}", clean(path)));
        }
        for port in published.into_iter().take(4) {
            found = found.shows(format!("and it publishes port {port}"));
        }
        out.push(
            found
                .mend("take the mount out, or put a socket proxy with the few calls that it needs between")
                .rows(&["CIS-Docker-5.32", "NIST-AC-6"]),
        );
    }
    if engine.open_socket && !engine.rootless {
        out.push(
            finding(
                "engine-socket-open",
                Severity::High,
                format!(
                    "Any user of this machine may use {}'s socket, and so is root.",
                    named(engine)
                ),
            )
            .shows("the socket's file is writable for others")
            .mend("chmod 660 /run/docker.sock")
            .rows(&["CIS-Docker-3.16", "NIST-AC-6"]),
        );
    }
    if !engine.trusted_users.is_empty() {
        let users: Vec<String> = engine.trusted_users.iter().map(|u| clean(u)).collect();
        out.push(
            finding(
                "docker-group",
                Severity::Low,
                format!(
                    "{} may use Docker without a password, which is as good as being root.",
                    list(&users)
                ),
            )
            .shows("/etc/group: members of docker")
            .mend(format!(
                "gpasswd -d {} docker",
                users.first().map_or("USER", String::as_str)
            ))
            .rows(&["CIS-Docker-1.1.2", "NIST-AC-6"]),
        );
    }
}
