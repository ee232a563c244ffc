//! What stands behind the ports: holes of the versions seen, states that are dangerous in themselves, and what web pages
//! and other users of this machine can do.

use super::exposed::{distance, lowered};
use super::words::what;
use super::{Case, Complete, Judged, finding};
use crate::catalog::{Access, Hole, Kind, Loopback, Service, mended_in, within};
use crate::finding::{Endpoint, Finding, Origin, Severity};
use crate::host::{Container, Host};
use crate::text::{clean, list};
use std::collections::BTreeSet;

pub(super) fn findings(case: &Case<'_>, out: &mut Vec<Finding>) {
    for judged in case.endpoints {
        if let Some(service) = judged.endpoint.who() {
            out.extend(holes(case, judged, service));
            hazards(case, judged, service, out);
            out.extend(let_in(case, judged, service));
            out.extend(web_pages(case, judged, service));
            out.extend(wildcard(case, judged, service));
        }
    }
    secrets(case, out);
}

/// Known holes of the version that it told.
fn holes(case: &Case<'_>, judged: &Judged, service: &'static Service) -> Option<Finding> {
    let endpoint = &judged.endpoint;
    let version = endpoint.version()?;
    let mut known: Vec<&Hole> = service
        .holes
        .iter()
        .filter(|hole| within(version, &hole.affected) == Some(true))
        .collect();
    known.sort_by_key(|hole| std::cmp::Reverse(hole.severity));
    let worst = known.first()?;
    let title = match known.len() - 1 {
        0 => format!(
            "{} has a known hole: {} lets a stranger {}.",
            what(endpoint),
            worst.id,
            worst.lets
        ),
        more => format!(
            "{} has {} known holes; the worst, {}, lets a stranger {}.",
            what(endpoint),
            more + 1,
            worst.id,
            worst.lets
        ),
    };
    let mut found = finding("known-hole", weigh(case, judged, worst.severity), title);
    found.endpoint = Some(endpoint.id.clone());
    for hole in &known {
        found = found.shows(format!(
            "{}: versions {}, from {}",
            hole.id, hole.affected, hole.source
        ));
    }
    let mended: Vec<&str> = known
        .iter()
        .filter_map(|h| mended_in(&h.affected))
        .collect();
    // The newest of them mends all.
    let newest = mended.iter().find(|a| {
        mended
            .iter()
            .all(|b| within(b, &format!("<={a}")) == Some(true))
    });
    let to = match newest {
        Some(version) if mended.len() == known.len() => format!("{version} or later"),
        _ => "its newest version".to_owned(),
    };
    Some(
        found
            .mend(format!("update {} to {to}", service.name))
            .rows(&["CIS-7.3", "NIST-SI-2"]),
    )
}

fn hazards(case: &Case<'_>, judged: &Judged, service: &'static Service, out: &mut Vec<Finding>) {
    let endpoint = &judged.endpoint;
    let seen = endpoint.seen.iter().flat_map(|s| &s.hazards);
    for hazard in seen.filter_map(|id| service.hazards.iter().find(|h| h.id == *id)) {
        let title = format!("{}: {}.", what(endpoint), decapitalised(&hazard.says));
        let mut found = finding(&hazard.id, weigh(case, judged, hazard.severity), title)
            .shows(format!("it answered so to GET {}", hazard.when.path))
            .mend(hazard.mend.clone())
            .rows(&["NIST-AC-3"]);
        found.endpoint = Some(endpoint.id.clone());
        out.push(found);
    }
}

/// The policy lets others reach it, and it asks nobody for a key.
fn let_in(case: &Case<'_>, judged: &Judged, service: &'static Service) -> Option<Finding> {
    let endpoint = &judged.endpoint;
    let steps = distance(case, judged)?;
    let grave = service.danger >= Severity::High && !service.public;
    if endpoint.access() != Access::Open || judged.intended.is_empty() || !grave {
        return None;
    }
    let mut found = finding(
        "no-authentication",
        lowered(service.danger, steps),
        format!(
            "{} asks for no key, and the policy lets {} reach it: whoever does can {}.",
            what(endpoint),
            list(&judged.intended),
            service.risk
        ),
    )
    .shows(format!(
        "authentication of {}: {}",
        service.name, service.auth
    ))
    .mend(match service.advice.as_str() {
        "" => "put a gateway with keys before it, or narrow the policy".to_owned(),
        advice => advice.to_owned(),
    })
    .rows(&["CIS-6.3", "NIST-IA-2"]);
    found.endpoint = Some(endpoint.id.clone());
    Some(found)
}

/// Pages from elsewhere that somebody here opens: CORS, a missing check of Host, OLLAMA_ORIGINS.
fn web_pages(case: &Case<'_>, judged: &Judged, service: &'static Service) -> Option<Finding> {
    let endpoint = &judged.endpoint;
    let unit = endpoint.unit.as_ref().and_then(|u| case.host.units.get(u));
    let origins = unit.and_then(|u| u.environment.get("OLLAMA_ORIGINS"));
    let told = origins.is_some_and(|o| o.split(',').any(|part| part.trim() == "*"));
    let seen = endpoint.seen.as_ref();
    let open = endpoint.access() == Access::Open;
    let any_origin = open && seen.is_some_and(|s| s.any_origin);
    let any_host = open && seen.is_some_and(|s| s.any_host);
    let published = endpoint.origin == Origin::ContainerAddress;
    if !(told || any_origin || any_host) || service.public || published {
        return None;
    }
    let mut found = finding(
        "any-web-page",
        if told {
            Severity::Medium
        } else {
            Severity::Low
        },
        format!(
            "Any web page that somebody with a way to it opens can use {}.",
            what(endpoint)
        ),
    );
    if told {
        found = found.shows("OLLAMA_ORIGINS has `*`: pages from everywhere may use it");
    }
    if any_origin {
        found = found.shows("it lets pages from any origin read its answers (CORS)");
    }
    if any_host {
        found = found.shows(
            "it answers to any Host name, so a page whose name is pointed at it gets in (DNS rebinding)",
        );
    }
    found.endpoint = Some(endpoint.id.clone());
    Some(
        found
            .mend(if told {
                "name the pages in OLLAMA_ORIGINS instead of `*`"
            } else {
                "a gateway that checks Host, Origin and a key"
            })
            .rows(&["NIST-SC-23"]),
    )
}

/// It listens on every address though nobody else is meant to reach it, and does not: one rule away from open.
fn wildcard(case: &Case<'_>, judged: &Judged, service: &'static Service) -> Option<Finding> {
    let endpoint = &judged.endpoint;
    let beyond = endpoint.id.address.is_unspecified() && endpoint.origin == Origin::Socket;
    let alone = judged.intended.is_empty() && distance(case, judged).is_none();
    if case.blind || !beyond || !alone || service.kind == Kind::System {
        return None;
    }
    let how = how_to_bind(case.host, endpoint, service)?;
    let mut found = finding(
        "listens-everywhere",
        Severity::Info,
        format!(
            "{} listens on every address, and only the firewall stands between it and strangers.",
            what(endpoint)
        ),
    )
    .mend(how)
    .rows(&["CIS-4.8", "NIST-CM-7"]);
    found.endpoint = Some(endpoint.id.clone());
    Some(found)
}

/// Secrets in arguments, which every user of this machine can read.
fn secrets(case: &Case<'_>, out: &mut Vec<Finding>) {
    let mut told = BTreeSet::new();
    for socket in &case.host.sockets {
        let Some(process) = &socket.process else {
            continue;
        };
        if process.secrets.is_empty() || !told.insert(process.pid) {
            continue;
        }
        let names: Vec<String> = process.secrets.iter().map(|s| clean(s)).collect();
        out.push(
            finding(
                "secret-in-arguments",
                Severity::Low,
                format!(
                    "{} (port {}) got a secret as an argument: every user of this machine can read it with ps.",
                    clean(&process.comm),
                    socket.port
                ),
            )
            .shows(format!("process {}: {}", process.pid, list(&names)))
            .mend("give it in a file or an environment variable that only its user can read")
            .rows(&["NIST-IA-5"]),
        );
    }
}

/// How it is told to listen on loopback only, for the way in which it is installed here.
pub(super) fn how_to_bind(host: &Host, endpoint: &Endpoint, service: &Service) -> Option<String> {
    let mut containers = host.engines.iter().flat_map(|e| &e.containers);
    let container = endpoint
        .container
        .as_ref()
        .and_then(|name| containers.find(|c| c.name == *name));
    if let Some(container) = container {
        return publish_line(endpoint, container);
    }
    let loopback = service.loopback.as_ref()?;
    let words = loopback.words(endpoint.id.port);
    let unit = endpoint.unit.as_deref().map(clean);
    Some(match (loopback, unit) {
        (Loopback::Environment { .. }, Some(unit)) => {
            format!("systemctl edit {unit}: under [Service], Environment={words}")
        }
        (Loopback::Argument { .. }, Some(unit)) => {
            format!("{words} in the command of {unit}")
        }
        (Loopback::Argument { .. }, None) => format!("start it with {words}"),
        (Loopback::Environment { .. }, None) => format!("{words} in its environment"),
        (Loopback::Setting { .. }, _) => words,
    })
}

fn publish_line(endpoint: &Endpoint, container: &Container) -> Option<String> {
    let id = &endpoint.id;
    let publish = container
        .published
        .iter()
        .find(|p| (p.proto, p.host_port) == (id.proto, id.port))?;
    let line = format!("127.0.0.1:{}:{}", publish.host_port, publish.container_port);
    Some(match &container.compose {
        Some(compose) => {
            let file = compose
                .files
                .first()
                .map_or("its compose file", String::as_str);
            format!(
                "\"{line}\" under ports of service {} in {}",
                clean(&compose.service),
                clean(file)
            )
        }
        None => format!("-p {line} in the command that starts it"),
    })
}

/// How bad it is from where it can be reached: on this machine alone, low.
fn weigh(case: &Case<'_>, judged: &Judged, severity: Severity) -> Severity {
    match distance(case, judged) {
        Some(steps) => lowered(severity, steps),
        None => severity.min(Severity::Low),
    }
}

fn decapitalised(text: &str) -> String {
    let mut chars = text.trim_end_matches('.').chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(chars).collect()
    })
}
