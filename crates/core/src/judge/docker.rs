//! Containers: ports past UFW, and the rule that everybody tries against it.

use super::words::what;
use super::{APPLY, Case, Complete, EndpointVerdict, Judged, finding};
use crate::finding::{Finding, Origin, Severity};
use crate::host::{Container, Publish};
use crate::text::clean;
use reach::ir::{Key, Match, Rule, RuleVerdict, Statement, Values};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn findings(case: &Case<'_>, out: &mut Vec<Finding>) {
    past_ufw(case, out);
    folk_rule(case, out);
    docker_user(case, out);
    ufw_docker(case, out);
    reload_flushes(case, out);
}

fn past_ufw(case: &Case<'_>, out: &mut Vec<Finding>) {
    let active = case
        .host
        .ufw
        .as_ref()
        .is_some_and(|u| u.enabled && u.loaded == Some(true));
    let past: Vec<String> = case
        .endpoints
        .iter()
        .filter(|j| j.endpoint.origin == Origin::Published)
        .filter(|j| j.verdict == EndpointVerdict::Exposed)
        .map(|j| match publisher(case, j) {
            Some((container, publish)) => format!(
                "{}: {}",
                what(&j.endpoint),
                super::engines::origin(case, container, publish)
            ),
            None => what(&j.endpoint),
        })
        .collect();
    if !active || past.is_empty() {
        return;
    }
    let mut found = finding(
        "docker-past-ufw",
        Severity::High,
        "Docker publishes ports past UFW: `ufw status` says active and does not see them.",
    );
    for endpoint in past.iter().take(8) {
        found = found.shows(format!("published and open: {endpoint}"));
    }
    out.push(
        found
            .mend(APPLY)
            .rows(&["G10", "G11", "G13", "CIS-Docker-5.14", "NIST-SC-7"]),
    );
}

/// The container behind an endpoint, and its publication.
fn publisher<'a>(case: &Case<'a>, judged: &Judged) -> Option<(&'a Container, &'a Publish)> {
    let endpoint = &judged.endpoint;
    case.host
        .engines
        .iter()
        .flat_map(|e| &e.containers)
        .filter(|c| Some(&c.name) == endpoint.container.as_ref())
        .find_map(|c| {
            let publish = c
                .published
                .iter()
                .find(|p| (p.proto, p.host_port) == (endpoint.id.proto, endpoint.id.port))?;
            Some((c, publish))
        })
}

/// `-A INPUT -p tcp --dport N -j DROP` for a published port: packets to it never enter INPUT.
fn folk_rule(case: &Case<'_>, out: &mut Vec<Finding>) {
    let published: BTreeSet<u16> = case
        .host
        .engines
        .iter()
        .flat_map(|e| &e.containers)
        .flat_map(|c| &c.published)
        .map(|p| p.host_port)
        .collect();
    let mut copies: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for (at, rule) in case.host.rules.rules() {
        if at.table == "filter" && at.chain == "INPUT" {
            for port in blocked_ports(rule) {
                copies.entry(port).or_default().push(clean(&rule.text));
            }
        }
    }
    let mut lines: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for (file, line) in case.host.ufw.iter().flat_map(|u| &u.foreign_lines) {
        if let Some(port) = folk_line(line) {
            lines
                .entry(port)
                .or_default()
                .push(format!("{}: {}", clean(file), clean(line)));
        }
    }
    let ports: BTreeSet<u16> = lines.keys().chain(copies.keys()).copied().collect();
    for port in ports {
        let in_files = lines.get(&port).map_or(&[][..], Vec::as_slice);
        let in_kernel = copies.get(&port).map_or(&[][..], Vec::as_slice);
        let useless = published.contains(&port);
        // Without a container behind the port the rule may do its work; only the leak is a fault.
        if !useless && (in_files.is_empty() || in_kernel.len() < 2) {
            continue;
        }
        let mut title = if useless {
            format!(
                "The INPUT rule against port {port} does nothing: packets to a port that a container publishes never enter INPUT"
            )
        } else {
            format!("The INPUT rule against port {port} leaks a copy at every `ufw reload`")
        };
        match in_kernel.len() {
            0 | 1 => title.push('.'),
            copies => title.push_str(&format!(", and {copies} copies of it are loaded.")),
        }
        let mut found = finding("folk-input-rule", Severity::Medium, title);
        for line in in_files {
            found = found.shows(line.clone());
        }
        if let Some(rule) = in_kernel.first() {
            found = found.shows(format!("in the kernel {} times: {rule}", in_kernel.len()));
        }
        out.push(found.mend(APPLY).rows(&["G10", "G11"]));
    }
}

/// Ports that a rule of INPUT drops for everybody.
fn blocked_ports(rule: &Rule) -> Vec<u16> {
    let mut ports = Vec::new();
    let mut blocks = false;
    for statement in &rule.statements {
        match statement {
            Statement::Verdict(RuleVerdict::Drop | RuleVerdict::Reject { .. }) => blocks = true,
            Statement::Match(Match::Cmp {
                of,
                negate: false,
                values: Values::Int(values),
            }) => match of.key {
                Key::Dport => {
                    for (first, last) in values.intervals() {
                        if last - first < 16 {
                            ports.extend((*first..=*last).filter_map(|p| u16::try_from(p).ok()));
                        }
                    }
                }
                Key::L4Proto | Key::NfProto => {}
                _ => return Vec::new(),
            },
            Statement::Match(_) => return Vec::new(),
            _ => {}
        }
    }
    if blocks { ports } else { Vec::new() }
}

/// The port of a folk line: `-A INPUT … --dport N … -j DROP` (or REJECT).
fn folk_line(line: &str) -> Option<u16> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let chain = words
        .windows(2)
        .any(|w| matches!(w[0], "-A" | "-I") && w[1] == "INPUT");
    let stops = words
        .windows(2)
        .any(|w| w[0] == "-j" && matches!(w[1], "DROP" | "REJECT"));
    let port = words
        .windows(2)
        .find(|w| matches!(w[0], "--dport" | "--dports"))
        .and_then(|w| w[1].parse().ok());
    if chain && stops { port } else { None }
}

/// Rules in DOCKER-USER that do not what they look like: behind the final RETURN, or about a port that the
/// packet no longer has there.
fn docker_user(case: &Case<'_>, out: &mut Vec<Finding>) {
    let published: BTreeSet<(u16, u16)> = case
        .host
        .engines
        .iter()
        .flat_map(|e| &e.containers)
        .flat_map(|c| &c.published)
        .map(|p| (p.host_port, p.container_port))
        .collect();
    for table in &case.host.rules.tables {
        let Some(chain) = table
            .chain("DOCKER-USER")
            .filter(|_| table.name == "filter")
        else {
            continue;
        };
        let v6 = table.family == reach::ir::Family::Ip6;
        let program = if v6 { "ip6tables" } else { "iptables" };
        let mut returned = false;
        for rule in &chain.rules {
            let text = format!("{program}: {}", clean(&rule.text));
            if returned {
                out.push(
                    finding(
                        "docker-user-dead-rule",
                        Severity::Medium,
                        "A rule of DOCKER-USER stands behind its RETURN and is never reached (Docker before 28.3 puts that RETURN there, and `-A` appends behind it).",
                    )
                    .shows(text.clone())
                    .mend(APPLY)
                    .rows(&["G10", "G11"]),
                );
                continue;
            }
            returned = matches!(
                rule.statements.as_slice(),
                [Statement::Verdict(RuleVerdict::Return)]
            );
            for port in blocked_ports(rule) {
                let hosts: Vec<u16> = published
                    .iter()
                    .filter(|(h, c)| *h == port && *c != port)
                    .map(|(h, _)| *h)
                    .collect();
                let inner: Vec<u16> = published
                    .iter()
                    .filter(|(h, c)| *c == port && *h != port)
                    .map(|(h, _)| *h)
                    .collect();
                let title = if !hosts.is_empty() && inner.is_empty() {
                    format!(
                        "The DOCKER-USER rule against port {port} does nothing: there the packet has the container's port already, not the published one."
                    )
                } else if inner.len() > 1 {
                    let ports: Vec<String> = inner.iter().map(u16::to_string).collect();
                    format!(
                        "The DOCKER-USER rule against port {port} hits every container that listens on it (published as {}), not the one that was meant.",
                        crate::text::list(&ports)
                    )
                } else {
                    continue;
                };
                out.push(
                    finding("docker-user-wrong-port", Severity::Medium, title)
                        .shows(text.clone())
                        .mend(APPLY)
                        .rows(&["G10", "G11"]),
                );
            }
        }
    }
}

/// The block that ufw-docker puts into after.rules: there, entered, and whom it trusts.
fn ufw_docker(case: &Case<'_>, out: &mut Vec<Finding>) {
    for table in &case.host.rules.tables {
        let v6 = table.family == reach::ir::Family::Ip6;
        let forward = if v6 {
            "ufw6-user-forward"
        } else {
            "ufw-user-forward"
        };
        let Some(chain) = table
            .chain("DOCKER-USER")
            .filter(|_| table.name == "filter")
        else {
            continue;
        };
        let Some(first) = chain
            .rules
            .iter()
            .find(|r| super::engines::leads(r, |c| c == forward))
        else {
            continue;
        };
        let family = if v6 { "IPv6" } else { "IPv4" };
        let entered = table
            .chains
            .iter()
            .flat_map(|c| &c.rules)
            .any(|r| super::engines::leads(r, |c| c == "DOCKER-USER"));
        if !entered {
            out.push(
                finding(
                    "ufw-docker-inert",
                    Severity::High,
                    format!("ufw-docker's rules are there and do nothing for {family}: no chain leads to DOCKER-USER."),
                )
                .shows(format!("never reached: {}", clean(&first.text)))
                .mend(APPLY)
                .rows(&["G10", "G11"]),
            );
            continue;
        }
        let trusted: Vec<String> = chain
            .rules
            .iter()
            .filter(|r| returns_a_source(r))
            .map(|r| clean(&r.text))
            .collect();
        let (severity, title) = if trusted.is_empty() {
            (
                Severity::Info,
                format!("ufw-docker's rules decide about published ports over {family}."),
            )
        } else {
            (
                Severity::Medium,
                format!(
                    "ufw-docker's rules let every private source in over {family}: the LAN, the VPC and the provider's network reach all that Docker publishes."
                ),
            )
        };
        let mut found = finding("ufw-docker-block", severity, title).shows(clean(&first.text));
        for rule in trusted.into_iter().take(4) {
            found = found.shows(rule);
        }
        out.push(found.mend(APPLY).rows(&["G10", "G11"]));
    }
}

/// `-s NETWORK -j RETURN` and nothing else.
fn returns_a_source(rule: &Rule) -> bool {
    let source = |s: &Statement| {
        matches!(s, Statement::Match(Match::Cmp { of, negate: false, values: Values::Addr(_) })
            if matches!(of.key, Key::Saddr(_)))
    };
    let returns = |s: &Statement| matches!(s, Statement::Verdict(RuleVerdict::Return));
    rule.statements.iter().any(source)
        && rule.statements.iter().any(returns)
        && rule
            .statements
            .iter()
            .all(|s| source(s) || returns(s) || matches!(s, Statement::Other { .. }))
}

/// `:DOCKER-USER` in after.rules makes every `ufw reload` flush the chain: jumps that fail2ban put there go.
fn reload_flushes(case: &Case<'_>, out: &mut Vec<Finding>) {
    for (file, line) in case.host.ufw.iter().flat_map(|u| &u.foreign_lines) {
        if line.trim_start().starts_with(":DOCKER-USER") {
            out.push(
                finding(
                    "docker-user-flushed-at-reload",
                    Severity::Low,
                    "Every `ufw reload` empties DOCKER-USER: bans that fail2ban put there are gone until it starts again.",
                )
                .shows(format!("{}: {}", clean(file), clean(line)))
                .mend(APPLY)
                .rows(&["G10", "G12"]),
            );
        }
    }
}
