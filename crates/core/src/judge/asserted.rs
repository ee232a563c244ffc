//! The policy's own `[[test]]`s against what the kernel does.

use super::words::{evidence, what};
use super::{APPLY, Case, Complete, finding};
use crate::finding::{EndpointId, Exposure, Finding, Origin, Severity};
use crate::policy::{Expect, PolicyTest, Source};
use reach::{AddrSet, Proto};

/// What a test found.
enum Outcome {
    Holds,
    /// It fails, with an endpoint that shows it.
    Fails(Option<EndpointId>, String),
    /// The facts do not settle it.
    Unsure(Option<EndpointId>, String),
}

pub(super) fn findings(case: &Case<'_>, out: &mut Vec<Finding>) {
    for test in &case.policy.tests {
        let words = format!(
            "{}/{} {} for {}",
            test.proto,
            test.port,
            match test.expect {
                Expect::Blocked => "blocked",
                Expect::Admitted => "admitted",
            },
            test.from
        );
        let (id, severity, verb, endpoint, shown) = match outcome(case, test) {
            Outcome::Holds => continue,
            Outcome::Fails(endpoint, shown) => (
                "policy-test-failed",
                Severity::High,
                "fails",
                endpoint,
                shown,
            ),
            Outcome::Unsure(..) if case.blind => continue,
            Outcome::Unsure(endpoint, shown) => (
                "policy-test-unsure",
                Severity::Medium,
                "cannot be decided",
                endpoint,
                shown,
            ),
        };
        let mut found = finding(id, severity, format!("The policy's test ({words}) {verb}."));
        found.endpoint = endpoint;
        out.push(
            found
                .shows(format!(
                    "{}, line {}",
                    crate::text::clean(&case.policy.name),
                    line(&case.policy.text, test.span.start)
                ))
                .shows(shown)
                .mend(APPLY)
                .rows(&["G16", "NIST-SC-7"]),
        );
    }
}

fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|b| *b == b'\n').count() + 1
}

fn outcome(case: &Case<'_>, test: &PolicyTest) -> Outcome {
    let mut admitted: Option<(EndpointId, String)> = None;
    let mut maybe: Option<(EndpointId, String)> = None;
    let mut served = false;
    for judged in case.endpoints {
        let endpoint = &judged.endpoint;
        let id = &endpoint.id;
        if endpoint.origin == Origin::ContainerAddress
            || id.proto != test.proto
            || !test.port.contains(id.port, case.intent.ssh_ports())
        {
            continue;
        }
        served = true;
        for exposure in &endpoint.exposure {
            let asked = sources(case, &test.from, exposure);
            let zone = case.zones.iter().find(|z| z.id == exposure.zone);
            let show = |set: &AddrSet| {
                let piece = super::words::deciding(exposure, set);
                match (zone, piece) {
                    (Some(zone), Some(piece)) => evidence(zone, exposure, piece),
                    _ => what(endpoint),
                }
            };
            let open = exposure.admitted.intersect(&asked);
            if !open.is_empty() {
                admitted.get_or_insert_with(|| (id.clone(), show(&open)));
            }
            let perhaps = exposure.conditional.intersect(&asked);
            if !perhaps.is_empty() {
                maybe.get_or_insert_with(|| (id.clone(), show(&perhaps)));
            }
        }
    }
    match (test.expect, admitted, maybe) {
        (Expect::Blocked, Some((id, shown)), _) => Outcome::Fails(Some(id), shown),
        (Expect::Blocked, None, Some((id, shown))) => Outcome::Unsure(Some(id), shown),
        (Expect::Blocked, None, None)
            if !served && crate::expose::may_miss_endpoints(case.host) =>
        {
            Outcome::Unsure(
                None,
                "nothing is seen to serve this port, and not everything that listens could be seen"
                    .to_owned(),
            )
        }
        (Expect::Blocked, None, None) => Outcome::Holds,
        (Expect::Admitted, Some(_), _) => Outcome::Holds,
        // A rate limit admits those who keep to it.
        (Expect::Admitted, None, Some((id, shown))) => {
            let limited = test.proto == Proto::Tcp
                && case
                    .policy
                    .allows_for(test.proto, id.port, case.intent.ssh_ports())
                    .any(|a| a.rate_limit);
            if limited && !case.blind {
                Outcome::Holds
            } else {
                Outcome::Unsure(Some(id), shown)
            }
        }
        (Expect::Admitted, None, None) if served => {
            Outcome::Fails(None, "nobody of these sources gets in".to_owned())
        }
        (Expect::Admitted, None, None) => {
            Outcome::Fails(None, "nothing serves this port".to_owned())
        }
    }
}

/// The part of a test's sources that an exposure is about.
fn sources(case: &Case<'_>, from: &Source, exposure: &Exposure) -> AddrSet {
    case.zones
        .iter()
        .find(|z| z.id == exposure.zone)
        .map_or_else(AddrSet::empty, |zone| case.intent.resolve(from, zone))
}
