//! Endpoints that somebody reaches who should not, and those that somebody should reach and cannot.

use super::services::how_to_bind;
use super::words::{deciding, evidence, strangers, what, who};
use super::{APPLY, Case, Complete, EndpointVerdict, Judged, finding};
use crate::catalog::Access;
use crate::finding::{Endpoint, Exposure, Finding, Origin, Severity, Zone};
use crate::text::{clean, list};
use reach::{AddrSet, Piece, Proto, Verdict};

pub(super) fn findings(case: &Case<'_>, out: &mut Vec<Finding>) {
    for judged in case.endpoints {
        match judged.verdict {
            EndpointVerdict::Exposed => out.extend(exposed(case, judged, true)),
            // With rules unread every endpoint is "maybe", which `unseen` says once.
            EndpointVerdict::Maybe if !case.blind => out.extend(exposed(case, judged, false)),
            _ => {}
        }
        if !case.blind {
            out.extend(closed_but_wanted(case, judged));
            out.extend(families_differ(case, judged));
        }
    }
    if !crate::expose::may_miss_endpoints(case.host) {
        not_listening(case, out);
    }
}

/// One way in that should not be.
struct Hole<'a> {
    zone: &'a Zone,
    exposure: &'a Exposure,
    set: &'a AddrSet,
    severity: Severity,
}

fn exposed(case: &Case<'_>, judged: &Judged, surely: bool) -> Option<Finding> {
    let endpoint = &judged.endpoint;
    let mut holes: Vec<Hole<'_>> = Vec::new();
    for (exposure, beyond) in endpoint.exposure.iter().zip(&judged.beyond) {
        let set = if surely {
            &beyond.surely
        } else {
            &beyond.maybe
        };
        let zone = case.zones.iter().find(|z| z.id == exposure.zone)?;
        if !set.is_empty() {
            let severity = severity(case, judged, zone, set, surely);
            holes.push(Hole {
                zone,
                exposure,
                set,
                severity,
            });
        }
    }
    // The worst zone names the finding; sorting is stable, so the Internet and IPv4 come first.
    holes.sort_by_key(|h| std::cmp::Reverse(h.severity));
    let worst = holes.first()?;
    let kind = worst.zone.id.split(':').next().unwrap_or("");
    let direct = endpoint.origin == Origin::ContainerAddress;
    let id = match (direct, surely) {
        (true, true) => "container-address-reachable".to_owned(),
        (true, false) => "container-address-maybe-reachable".to_owned(),
        (false, true) => format!("exposed-to-{kind}"),
        (false, false) => format!("maybe-exposed-to-{kind}"),
    };
    let piece = deciding(worst.exposure, worst.set);
    let only_v6 = worst.exposure.family == 6
        && !holes
            .iter()
            .any(|h| h.zone.id == worst.zone.id && h.exposure.family == 4);
    let title = format!(
        "{} can {}reach {}{}: {}.",
        who(case.host, worst.zone, worst.set),
        if surely { "" } else { "perhaps " },
        if direct {
            inside(endpoint)
        } else {
            what(endpoint)
        },
        if only_v6 { " over IPv6" } else { "" },
        why(case, judged, piece),
    );
    let mut found = finding(&id, worst.severity, title);
    found.endpoint = Some(endpoint.id.clone());
    if let Some(service) = endpoint.who() {
        let first = match endpoint.access() {
            Access::Open => "it asks for no key: whoever",
            Access::Locked => "it asks for a key; whoever has one and",
            Access::Unknown => "whoever",
        };
        found = found.shows(format!(
            "{first} reaches {} can {}",
            service.name, service.risk
        ));
        if let Some(how) = how_to_bind(case.host, endpoint, service) {
            found = found.shows(format!("for this machine only: {how}"));
        }
    }
    for hole in holes.iter().take(6) {
        if let Some(piece) = deciding(hole.exposure, hole.set) {
            found = found.shows(evidence(hole.zone, hole.exposure, piece));
        }
    }
    let rows: &[&str] = match endpoint.origin {
        Origin::Published => &["G1", "G10", "G11", "CIS-Docker-5.14", "NIST-SC-7"],
        Origin::ContainerAddress => &["G11", "CIS-Docker-5.14", "NIST-SC-7"],
        Origin::Socket | Origin::Dnat => {
            &["G1", "G3", "G9", "CIS-4.2.6", "NIST-SC-7", "NIST-SC-7(5)"]
        }
    };
    Some(found.mend(APPLY).rows(rows))
}

/// A container's endpoint: "Ollama in container ai at its own address (172.17.0.2 port 80/tcp)".
fn inside(endpoint: &Endpoint) -> String {
    let id = &endpoint.id;
    let service = endpoint.who();
    format!(
        "{}container {} at its own address ({} port {}/{})",
        service.map_or_else(String::new, |s| format!("{} in ", s.name)),
        clean(endpoint.container.as_deref().unwrap_or("")),
        id.address,
        id.port,
        id.proto
    )
}

/// How bad it is: what the service lets strangers do, less the farther they are from "everybody".
fn severity(
    case: &Case<'_>,
    judged: &Judged,
    zone: &Zone,
    set: &AddrSet,
    surely: bool,
) -> Severity {
    let endpoint = &judged.endpoint;
    let base = match (endpoint.who(), endpoint.id.proto) {
        // A key was really asked for: less than open, and more than nothing.
        (Some(service), _) if endpoint.access() == Access::Locked => lowered(service.danger, 1),
        (Some(service), _) => service.danger,
        (None, Proto::Udp) => Severity::Low,
        (None, _) => Severity::High,
    };
    lowered(base, steps(case, zone, set, surely))
}

/// How far sources are from "everybody": 0 for strangers on the Internet.
fn steps(case: &Case<'_>, zone: &Zone, set: &AddrSet, surely: bool) -> u8 {
    let strangers = zone.id == "internet" && !strangers(case.host, zone, set).is_empty();
    let steps = match zone.id.split(':').next() {
        Some("internet") if strangers => 0,
        Some("internet" | "lan") => 1,
        _ => 2,
    };
    steps + u8::from(!surely)
}

/// The nearest to "everybody" of all who get in or may, wanted or not; `None` when nobody beyond this machine does.
pub(super) fn distance(case: &Case<'_>, judged: &Judged) -> Option<u8> {
    let exposures = judged.endpoint.exposure.iter();
    exposures
        .flat_map(|exposure| {
            [
                (exposure, &exposure.admitted, true),
                (exposure, &exposure.conditional, false),
            ]
        })
        .filter(|(_, set, _)| !set.is_empty())
        .filter_map(|(exposure, set, surely)| {
            let zone = case.zones.iter().find(|z| z.id == exposure.zone)?;
            Some(steps(case, zone, set, surely))
        })
        .min()
}

/// A severity some steps lower, never below low.
pub(super) fn lowered(severity: Severity, steps: u8) -> Severity {
    (0..steps).fold(severity, |severity, _| match severity {
        Severity::Critical => Severity::High,
        Severity::High => Severity::Medium,
        _ => Severity::Low,
    })
}

/// Why it is open, in half a sentence.
fn why(case: &Case<'_>, judged: &Judged, piece: Option<&Piece>) -> String {
    let endpoint = &judged.endpoint;
    let ufw = case.host.ufw.as_ref();
    let active = ufw.is_some_and(|u| u.enabled && u.loaded != Some(false));
    let Some(piece) = piece else {
        return "nothing shows that it is closed".to_owned();
    };
    if piece.verdict == Verdict::Conditional {
        let conditions: Vec<String> = piece.conditions.iter().map(|c| clean(c)).collect();
        return if conditions.is_empty() {
            "the rules leave it open".to_owned()
        } else {
            format!("it depends on {}", list(&conditions))
        };
    }
    let chain = piece.witness.at.as_ref().map_or("", |at| at.chain.as_str());
    let policy = piece.witness.at.as_ref().is_some_and(|at| at.position == 0);
    let forwarded = matches!(piece.delivered, Some(reach::Delivery::Forwarded { .. }));
    match endpoint.origin {
        Origin::Published if forwarded => {
            let engine = case
                .host
                .engines
                .iter()
                .find(|e| {
                    e.containers
                        .iter()
                        .any(|c| Some(&c.name) == endpoint.container.as_ref())
                })
                .map_or("Docker", |e| {
                    if e.kind == "podman" {
                        "Podman"
                    } else {
                        "Docker"
                    }
                });
            if active {
                format!("{engine} publishes it past UFW")
            } else {
                format!("{engine} publishes it to everybody")
            }
        }
        Origin::ContainerAddress => {
            "nothing stops packets that are sent straight to the container".to_owned()
        }
        _ if chain.starts_with("ufw") && !policy => "a UFW rule lets it in".to_owned(),
        _ if ufw.is_some() && !active => "UFW is not active".to_owned(),
        _ if policy || chain.is_empty() => "no firewall rule stops it".to_owned(),
        _ => format!("a rule of chain {} lets it in", clean(chain)),
    }
}

fn closed_but_wanted(case: &Case<'_>, judged: &Judged) -> Option<Finding> {
    let endpoint = &judged.endpoint;
    let id = &endpoint.id;
    // SSH has a room of its own.
    if id.proto == Proto::Tcp && case.intent.ssh_ports().contains(&id.port) {
        return None;
    }
    if id.address.is_loopback() || endpoint.origin == Origin::ContainerAddress {
        return None;
    }
    let shut = case.intent.shut_zones(endpoint);
    let (zone, family) = shut.first()?;
    let mut found = finding(
        "closed-but-wanted",
        Severity::Medium,
        format!(
            "The policy admits {} to {}, and {} cannot reach it{}.",
            list(&judged.intended),
            what(endpoint),
            case.zones
                .iter()
                .find(|z| z.id == *zone)
                .map_or_else(|| clean(zone), |z| z.label.clone()),
            if shut.iter().any(|(_, f)| *f == 4) {
                ""
            } else {
                " over IPv6"
            },
        ),
    );
    found.endpoint = Some(id.clone());
    let blocked = endpoint
        .exposure
        .iter()
        .find(|e| (&e.zone, e.family) == (zone, *family));
    if let Some(exposure) = blocked
        && let Some(piece) = exposure.pieces.first()
        && let Some(zone) = case.zones.iter().find(|z| z.id == *zone)
    {
        found = found.shows(evidence(zone, exposure, piece));
    }
    Some(found.mend(APPLY).rows(&["G5", "CIS-4.2.6"]))
}

/// Closed over one family and open over the other, where the policy makes no difference.
fn families_differ(case: &Case<'_>, judged: &Judged) -> Option<Finding> {
    let endpoint = &judged.endpoint;
    for zone in case.zones {
        let way = |family: u8| {
            let mut asked = false;
            let mut open = AddrSet::empty();
            let mut beyond = false;
            for (exposure, b) in endpoint.exposure.iter().zip(&judged.beyond) {
                if exposure.zone == zone.id && exposure.family == family {
                    asked = true;
                    open = open.union(&exposure.admitted).union(&exposure.conditional);
                    beyond |= !b.surely.is_empty();
                }
            }
            (asked, !open.is_empty(), beyond)
        };
        let (v4, v6) = (way(4), way(6));
        if !v4.0 || !v6.0 || v4.1 == v6.1 {
            continue;
        }
        let (open, shut, beyond) = if v6.1 { (6, 4, v6.2) } else { (4, 6, v4.2) };
        if !beyond {
            continue;
        }
        let mut found = finding(
            "families-differ",
            Severity::Medium,
            format!(
                "{} is closed over IPv{shut} and open over IPv{open} for {}.",
                capital(&what(endpoint)),
                zone.label
            ),
        );
        found.endpoint = Some(endpoint.id.clone());
        for (exposure, _) in endpoint.exposure.iter().zip(&judged.beyond) {
            if exposure.zone == zone.id
                && let Some(piece) = exposure.pieces.first()
            {
                let set = exposure.admitted.union(&exposure.conditional);
                let piece = deciding(exposure, &set).unwrap_or(piece);
                found = found.shows(evidence(zone, exposure, piece));
            }
        }
        return Some(found.mend(APPLY).rows(&["G3", "NIST-SC-7"]));
    }
    None
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// Ports that the policy opens and nothing serves: no danger, but worth knowing.
fn not_listening(case: &Case<'_>, out: &mut Vec<Finding>) {
    for allow in &case.policy.allows {
        let ports = allow.port.ports(case.intent.ssh_ports());
        let serves = |port: &u16| {
            case.endpoints.iter().any(|j| {
                let id = &j.endpoint.id;
                j.endpoint.origin != Origin::ContainerAddress
                    && (id.proto, id.port) == (allow.proto, *port)
                    && !id.address.is_loopback()
            })
        };
        if ports.iter().any(serves) {
            continue;
        }
        out.push(
            finding(
                "wanted-not-listening",
                Severity::Info,
                format!(
                    "The policy opens {}/{}, and nothing serves it beyond this machine.",
                    allow.port, allow.proto
                ),
            )
            .rows(&["CIS-4.2.6"]),
        );
    }
}
