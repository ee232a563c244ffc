//! SSH: the way in that must stay, and must be slow for those who guess.

use super::words::{evidence, what};
use super::{APPLY, Case, Complete, finding};
use crate::finding::{Finding, Origin, Severity};
use crate::text::{clean, list};
use reach::{Proto, Verdict};

pub(super) fn findings(case: &Case<'_>, out: &mut Vec<Finding>) {
    if !case.blind {
        shut(case, out);
        unlimited(case, out);
    }
    lockout_ahead(case, out);
}

fn ssh_endpoints<'c>(case: &'c Case<'_>) -> impl Iterator<Item = &'c super::Judged> {
    case.endpoints.iter().filter(|j| {
        let id = &j.endpoint.id;
        id.proto == Proto::Tcp
            && case.intent.ssh_ports().contains(&id.port)
            && j.endpoint.origin != Origin::ContainerAddress
            && !id.address.is_loopback()
    })
}

/// Somebody whom the policy admits cannot open a new SSH connection.
fn shut(case: &Case<'_>, out: &mut Vec<Finding>) {
    for judged in ssh_endpoints(case) {
        let endpoint = &judged.endpoint;
        let shut = case.intent.shut_zones(endpoint);
        let Some((zone, family)) = shut.first() else {
            continue;
        };
        let admitted_somewhere = endpoint.exposure.iter().any(|e| {
            let allowed = case.intent.admitted(endpoint, &e.zone);
            !e.admitted
                .union(&e.conditional)
                .intersect(&allowed)
                .is_empty()
        });
        let labels: Vec<String> = case
            .zones
            .iter()
            .filter(|z| shut.iter().any(|(id, _)| *id == z.id))
            .map(|z| z.label.clone())
            .collect();
        let mut found = finding(
            "ssh-not-allowed",
            if admitted_somewhere {
                Severity::Medium
            } else {
                Severity::Critical
            },
            if admitted_somewhere {
                format!(
                    "{} is closed for {}{}, and the policy admits them.",
                    what(endpoint),
                    list(&labels),
                    if shut.iter().any(|(_, f)| *f == 4) {
                        ""
                    } else {
                        " over IPv6"
                    }
                )
            } else {
                format!(
                    "{} is closed for everybody: who is connected stays, but nobody gets in again.",
                    what(endpoint)
                )
            },
        );
        found.endpoint = Some(endpoint.id.clone());
        let exposure = endpoint
            .exposure
            .iter()
            .find(|e| (&e.zone, e.family) == (zone, *family));
        if let Some(exposure) = exposure
            && let Some(piece) = exposure.pieces.first()
            && let Some(zone) = case.zones.iter().find(|z| z.id == *zone)
        {
            found = found.shows(evidence(zone, exposure, piece));
        }
        out.push(found.mend(APPLY).rows(&["G4", "G14"]));
    }
}

/// The policy wants a limit, and strangers are let in without one.
fn unlimited(case: &Case<'_>, out: &mut Vec<Finding>) {
    for judged in ssh_endpoints(case) {
        let endpoint = &judged.endpoint;
        let wanted = case
            .policy
            .allows_for(Proto::Tcp, endpoint.id.port, case.intent.ssh_ports())
            .any(|a| a.rate_limit);
        if !wanted {
            continue;
        }
        let free = endpoint
            .exposure
            .iter()
            .filter(|e| e.zone == "internet")
            .find(|e| !e.admitted.is_empty());
        if let Some(exposure) = free {
            let mut found = finding(
                "ssh-not-rate-limited",
                Severity::Low,
                format!(
                    "{} lets anybody try passwords as fast as they can: nothing limits new connections.",
                    what(endpoint)
                ),
            );
            found.endpoint = Some(endpoint.id.clone());
            let piece = exposure
                .pieces
                .iter()
                .find(|p| p.verdict == Verdict::Accept);
            if let (Some(piece), Some(zone)) =
                (piece, case.zones.iter().find(|z| z.id == exposure.zone))
            {
                found = found.shows(evidence(zone, exposure, piece));
            }
            out.push(found.mend(APPLY).rows(&["G8", "NIST-SC-5"]));
        }
    }
}

/// UFW is off, and its rules do not allow SSH: `ufw enable` by hand would lock everybody out.
fn lockout_ahead(case: &Case<'_>, out: &mut Vec<Finding>) {
    let Some(ufw) = case.host.ufw.as_ref().filter(|u| !u.enabled) else {
        return;
    };
    if ufw.default_incoming == "allow" || case.host.sshd.is_none() {
        return;
    }
    let missing: Vec<String> = case
        .intent
        .ssh_ports()
        .iter()
        .filter(|port| {
            !ufw.rules.iter().any(|r| {
                matches!(r.action.as_str(), "allow" | "limit")
                    && !r.route
                    && r.direction != "out"
                    && matches!(r.proto.as_str(), "tcp" | "any")
                    && names_port(&r.port, **port)
            })
        })
        .map(u16::to_string)
        .collect();
    if missing.is_empty() {
        return;
    }
    let mut found = finding(
        "ssh-lockout-ahead",
        Severity::Medium,
        format!(
            "`ufw enable` would lock you out: no rule of UFW allows SSH on port {}.",
            list(&missing)
        ),
    );
    for session in case.host.sessions.iter().take(4) {
        found = found.shows(clean(&format!(
            "connected by SSH now: {} to port {}",
            session.peer, session.local_port
        )));
    }
    out.push(found.mend(APPLY).rows(&["G4", "G14"]));
}

/// Whether a UFW port field (`22`, `6000:6007`, `80,443`, `any`) names a port.
fn names_port(field: &str, port: u16) -> bool {
    field == "any"
        || field.split(',').any(|part| match part.split_once(':') {
            Some((first, last)) => match (first.parse::<u16>(), last.parse::<u16>()) {
                (Ok(first), Ok(last)) => (first..=last).contains(&port),
                _ => false,
            },
            None => part.parse() == Ok(port),
        })
}
