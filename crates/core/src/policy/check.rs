//! Faults that only show when the parts of a policy are put together, or next to a host.

use super::error::{Fault, PolicyError, PolicyErrors};
use super::*;
use crate::host::Host;
use crate::text::{clean, list};
use miette::NamedSource;
use std::net::IpAddr;
use std::sync::Arc;

/// Faults of the policy by itself.
pub(super) fn sound(policy: &Policy, source: &Arc<NamedSource<String>>) -> Vec<PolicyError> {
    let mut errors = Vec::new();
    duplicates(policy, source, &mut errors);
    services(policy, source, &mut errors);
    tests(policy, source, &mut errors);
    ssh(policy, source, &mut errors);
    errors
}

fn duplicates(policy: &Policy, source: &Arc<NamedSource<String>>, errors: &mut Vec<PolicyError>) {
    for (n, allow) in policy.allows.iter().enumerate() {
        for earlier in &policy.allows[..n] {
            if earlier.proto != allow.proto || earlier.port != allow.port {
                continue;
            }
            let Some(shared) = allow.from.iter().find(|s| earlier.from.contains(s)) else {
                continue;
            };
            let message = format!(
                "{}/{} from {shared} is allowed twice",
                allow.proto, allow.port
            );
            errors.push(
                PolicyError::new(
                    source,
                    Fault::Duplicate,
                    allow.span.clone(),
                    message,
                    "again",
                )
                .also(earlier.span.clone(), "first here")
                .hint(if allow.rate_limit == earlier.rate_limit {
                    "remove one of the two"
                } else {
                    "keep the one whose `rate_limit` you want"
                }),
            );
            break;
        }
    }
    for (n, rule) in policy.services.iter().enumerate() {
        if let Some(earlier) = policy.services[..n].iter().find(|e| e.kind == rule.kind) {
            let message = format!("service {} is described twice", rule.kind);
            errors.push(
                PolicyError::new(
                    source,
                    Fault::Duplicate,
                    rule.span.clone(),
                    message,
                    "again",
                )
                .also(earlier.span.clone(), "first here")
                .hint("put both into one [[service]]"),
            );
        }
    }
}

/// An allow for a service's own port says something else than its [[service]].
fn services(policy: &Policy, source: &Arc<NamedSource<String>>, errors: &mut Vec<PolicyError>) {
    for rule in &policy.services {
        let Some(service) = crate::catalog::service(&rule.kind) else {
            continue;
        };
        for allow in &policy.allows {
            let PortSpec::One(port) = allow.port else {
                continue;
            };
            let agrees = matches!(&rule.reach, Reach::From(from) if *from == allow.from);
            if allow.proto != Proto::Tcp || !service.ports.contains(&port.get()) || agrees {
                continue;
            }
            let message = format!(
                "port {port} is {}'s, and its [[service]] says something else",
                service.name
            );
            errors.push(
                PolicyError::new(
                    source,
                    Fault::Contradiction,
                    allow.span.clone(),
                    message,
                    "opens it",
                )
                .also(rule.span.clone(), "keeps it")
                .hint("remove this [[allow]] and list the networks in the service's `reach`"),
            );
        }
    }
}

/// Two tests that cannot both hold, and tests that the policy's own allows break.
fn tests(policy: &Policy, source: &Arc<NamedSource<String>>, errors: &mut Vec<PolicyError>) {
    for (n, test) in policy.tests.iter().enumerate() {
        let same =
            |e: &&PolicyTest| e.from == test.from && e.proto == test.proto && e.port == test.port;
        if let Some(earlier) = policy.tests[..n].iter().find(same) {
            let (fault, message, hint) = if earlier.expect == test.expect {
                (
                    Fault::Duplicate,
                    "this test is there already",
                    "remove one of the two",
                )
            } else {
                (
                    Fault::Contradiction,
                    "these two tests cannot both hold",
                    "decide which of the two you want",
                )
            };
            errors.push(
                PolicyError::new(source, fault, test.span.clone(), message.into(), "this one")
                    .also(earlier.span.clone(), "and this one")
                    .hint(hint),
            );
            continue;
        }
        match (test.expect, admission(policy, test)) {
            (Expect::Blocked, Admission::Yes(span)) => errors.push(
                PolicyError::new(
                    source,
                    Fault::Contradiction,
                    test.span.clone(),
                    format!(
                        "this test wants {}/{} blocked for {}, and the policy admits it",
                        test.proto, test.port, test.from
                    ),
                    "wants it blocked",
                )
                .also(span, "admits it")
                .hint("change one of the two"),
            ),
            (Expect::Admitted, Admission::No) => errors.push(
                PolicyError::new(
                    source,
                    Fault::Contradiction,
                    test.span.clone(),
                    format!(
                        "this test wants {}/{} admitted for {}, and nothing in the policy admits it",
                        test.proto, test.port, test.from
                    ),
                    "wants it admitted",
                )
                .hint("add an [[allow]] for it, or expect \"blocked\""),
            ),
            _ => {}
        }
    }
}

/// Whether the policy's text alone admits what a test asks about.
enum Admission {
    Yes(Range<usize>),
    No,
    /// A zone is involved: only a host can tell.
    Open,
}

fn admission(policy: &Policy, test: &PolicyTest) -> Admission {
    let mut open = false;
    for allow in policy.allows.iter().filter(|a| a.proto == test.proto) {
        let same_ports = match (allow.port, test.port) {
            (a, b) if a == b => true,
            (PortSpec::Range(first, last), PortSpec::One(port)) => (first..=last).contains(&port),
            // Which ports "ssh" stands for is the host's matter, and a range may be covered in part.
            (a, b) if overlap(a, b) => false,
            _ => continue,
        };
        match (covers(&allow.from, &test.from), same_ports) {
            (Cover::Whole, true) => return Admission::Yes(allow.span.clone()),
            (Cover::None, _) => {}
            _ => open = true,
        }
    }
    for rule in &policy.services {
        // Where a service listens is the host's matter.
        if let Reach::From(from) = &rule.reach {
            open |= covers(from, &test.from) != Cover::None;
        }
    }
    if open { Admission::Open } else { Admission::No }
}

/// How much of a test's sources an allow names.
#[derive(PartialEq)]
enum Cover {
    Whole,
    /// A part, or a zone is involved.
    Perhaps,
    None,
}

fn covers(sources: &[Source], wanted: &Source) -> Cover {
    let mut best = Cover::None;
    for source in sources {
        match (source, wanted) {
            (Source::Anywhere, _) => return Cover::Whole,
            (a, b) if a == b => return Cover::Whole,
            (Source::Zone(_), _) | (_, Source::Zone(_) | Source::Anywhere) => best = Cover::Perhaps,
            (a, b) => match (span_of(a), span_of(b)) {
                (Some((a1, a2)), Some((b1, b2))) if a1 <= b1 && b2 <= a2 => return Cover::Whole,
                (Some((a1, a2)), Some((b1, b2))) if a1 <= b2 && b1 <= a2 => best = Cover::Perhaps,
                _ => {}
            },
        }
    }
    best
}

fn overlap(a: PortSpec, b: PortSpec) -> bool {
    let ends = |p| match p {
        PortSpec::Ssh => (1, u16::MAX),
        PortSpec::One(port) => (port.get(), port.get()),
        PortSpec::Range(first, last) => (first.get(), last.get()),
    };
    let ((a1, a2), (b1, b2)) = (ends(a), ends(b));
    a1 <= b2 && b1 <= a2
}

/// First and last address of a source that has them.
fn span_of(source: &Source) -> Option<(IpAddr, IpAddr)> {
    match source {
        Source::Net(net) => Some((net.network(), net.broadcast())),
        Source::Range(first, last) => Some((*first, *last)),
        Source::Anywhere | Source::Zone(_) => None,
    }
}

/// SSH must be allowed for somebody, or its closing stated.
fn ssh(policy: &Policy, source: &Arc<NamedSource<String>>, errors: &mut Vec<PolicyError>) {
    let allowed = policy
        .allows
        .iter()
        .any(|a| a.proto == Proto::Tcp && a.port.contains(22, &[22]));
    if allowed || policy.incoming.no_ssh {
        return;
    }
    let incoming = policy.text.find("[incoming]").map(|at| at..at + 10);
    errors.push(
        PolicyError::new(
            source,
            Fault::ShutsSsh,
            incoming.unwrap_or(0..0),
            "this policy would shut SSH, and you out".into(),
            "denies SSH like everything else",
        )
        .hint(
            "add [[allow]] with port = \"ssh\" and from = \"anywhere\" (or your network); if you have a console and mean it, put `no_ssh = true` into [incoming]",
        ),
    );
}

/// Faults of the policy on this host: people who are connected would not get in again.
pub(super) fn host(policy: &Policy, host: &Host) -> Result<(), PolicyErrors> {
    if policy.incoming.no_ssh {
        return Ok(());
    }
    let source = Arc::new(NamedSource::new(&policy.name, policy.text.clone()));
    let zones = crate::zones::zones(host);
    let ports = Policy::ssh_ports(host);
    let mut errors = Vec::new();
    let mut shut: Vec<String> = host
        .sessions
        .iter()
        .filter(|s| !s.peer.is_loopback())
        .filter(|session| {
            let peer = crate::zones::canonical(session.peer);
            !policy
                .allows_for(Proto::Tcp, session.local_port, &ports)
                .flat_map(|allow| &allow.from)
                .any(|from| admits(from, peer, &zones))
        })
        .map(|s| clean(&format!("{} (port {})", s.peer, s.local_port)))
        .collect();
    shut.sort();
    shut.dedup();
    if !shut.is_empty() {
        let place = policy
            .allows
            .iter()
            .find(|a| a.port == PortSpec::Ssh)
            .or_else(|| policy.allows.iter().find(|a| a.port.contains(22, &[22])))
            .map_or(0..0, |a| a.span.clone());
        errors.push(
            PolicyError::new(
                &source,
                Fault::ShutsSsh,
                place,
                format!(
                    "this policy would shut out who is connected by SSH now: {}",
                    list(&shut)
                ),
                "does not admit them",
            )
            .hint(
                "use port = \"ssh\" (every port that sshd listens on) and add their network to `from`",
            ),
        );
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(PolicyErrors::new(&policy.name, errors))
    }
}

fn admits(from: &Source, peer: IpAddr, zones: &[crate::finding::Zone]) -> bool {
    match (from, span_of(from)) {
        (Source::Anywhere, _) => true,
        (Source::Zone(zone), _) => zones
            .iter()
            .any(|z| zone.matches(z) && z.networks.contains(peer)),
        // Derived ordering of addresses puts IPv4 first, so a range never spans the families.
        (_, Some((first, last))) => first <= peer && peer <= last,
        (_, None) => false,
    }
}
