//! Containers: ports past UFW, and the rule that everybody tries against it.

use super::words::what;
use super::{APPLY, Case, Complete, EndpointVerdict, finding};
use crate::finding::{Finding, Origin, Severity};
use crate::text::clean;
use reach::ir::{Key, Match, Rule, RuleVerdict, Statement, Values};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn findings(case: &Case<'_>, out: &mut Vec<Finding>) {
    past_ufw(case, out);
    folk_rule(case, out);
    daemon(case, out);
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
        .map(|j| what(&j.endpoint))
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

fn daemon(case: &Case<'_>, out: &mut Vec<Finding>) {
    for engine in &case.host.engines {
        let nft = engine.firewall_backend.as_deref() == Some("nftables");
        let routed = case.host.ufw.as_ref().map(|u| u.default_routed.as_str());
        if nft && matches!(routed, Some("deny" | "drop" | "reject")) {
            out.push(
                finding(
                    "docker-nftables-ufw-routed",
                    Severity::Low,
                    "Docker uses its nftables backend and UFW denies routed packets: containers cannot reach out.",
                )
                .shows(format!(
                    "Docker {}, firewall backend nftables; DEFAULT_FORWARD_POLICY is {}",
                    clean(&engine.version),
                    clean(routed.unwrap_or(""))
                ))
                .rows(&["G10"]),
            );
        }
    }
}
