//! From exposure and policy to findings: one room a topic.
//!
//! A finding's id is stable; [`crate::plan::Change::mends`] and users' filters refer to it.

mod asserted;
mod bypass;
mod docker;
mod engines;
mod exposed;
mod fail2ban;
mod guard;
mod intent;
mod services;
mod ssh;

mod ufw;
mod words;

pub(crate) use fail2ban::missing_bans;
pub use intent::Intent;

use crate::expose;
use crate::finding::{Endpoint, Finding, Severity, Zone};
use crate::host::{Host, Unseen};
use crate::policy::Policy;
use crate::zones;
use reach::AddrSet;
use serde::{Deserialize, Serialize};

/// What an audit found, with the values that rendering needs; [`crate::report`] has the wire form.
#[derive(Debug, Clone)]
pub struct Audit {
    /// Zones, the Internet first.
    pub zones: Vec<Zone>,
    /// Endpoints, each with its verdict.
    pub endpoints: Vec<Judged>,
    /// Findings, the worst first.
    pub findings: Vec<Finding>,
    /// What could not be read.
    pub unseen: Vec<Unseen>,
}

/// An endpoint next to what the policy wants for it.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The endpoint and who reaches it.
    pub endpoint: Endpoint,
    /// Whom the policy admits, as the policy says it; empty: nobody beyond this machine.
    pub intended: Vec<String>,
    /// For each entry of [`Endpoint::exposure`], the sources that get in and should not: surely, and maybe.
    pub beyond: Vec<Beyond>,
    /// The sum of it.
    pub verdict: EndpointVerdict,
}

/// Sources that get in and should not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beyond {
    /// Surely.
    pub surely: AddrSet,
    /// Maybe.
    pub maybe: AddrSet,
}

/// How an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointVerdict {
    /// Reached by those whom the policy admits, or by nobody.
    Ok,
    /// Reached by somebody whom the policy does not admit.
    Exposed,
    /// Maybe reached by somebody whom the policy does not admit.
    Maybe,
    /// The policy admits somebody who cannot reach it.
    ClosedButWanted,
    /// Bound to loopback: only this machine.
    Local,
}

impl EndpointVerdict {
    /// The word used in JSON and in text.
    pub fn word(self) -> &'static str {
        match self {
            EndpointVerdict::Ok => "ok",
            EndpointVerdict::Exposed => "exposed",
            EndpointVerdict::Maybe => "maybe",
            EndpointVerdict::ClosedButWanted => "closed-but-wanted",
            EndpointVerdict::Local => "local",
        }
    }
}

/// What every room works from.
struct Case<'a> {
    host: &'a Host,
    policy: &'a Policy,
    intent: Intent<'a>,
    zones: &'a [Zone],
    endpoints: &'a [Judged],
    /// Verdicts rest on missing facts: nothing is said with certainty.
    blind: bool,
}

/// Audits a host against a policy.
pub fn audit(host: &Host, policy: &Policy) -> Audit {
    let zones = zones::zones(host);
    let intent = Intent::new(host, policy, &zones);
    let endpoints: Vec<Judged> = expose::endpoints(host)
        .into_iter()
        .map(|endpoint| judge(endpoint, &intent))
        .collect();
    let case = Case {
        host,
        policy,
        intent: Intent::new(host, policy, &zones),
        zones: &zones,
        endpoints: &endpoints,
        blind: expose::blind(host),
    };
    let mut findings = Vec::new();
    for room in [
        exposed::findings,
        services::findings,
        docker::findings,
        engines::findings,
        ufw::findings,
        bypass::findings,
        ssh::findings,
        fail2ban::findings,
        guard::findings,
        asserted::findings,
    ] {
        room(&case, &mut findings);
    }
    // Among equals an open port comes before the state of a mechanism: it is what people ask for.
    findings.sort_by(|a, b| {
        let key = |f: &Finding| {
            (
                f.endpoint.is_none(),
                f.id.clone(),
                f.endpoint.clone(),
                f.title.clone(),
            )
        };
        (b.severity, key(a)).cmp(&(a.severity, key(b)))
    });
    findings.dedup();
    Audit {
        endpoints,
        findings,
        unseen: host.unseen.clone(),
        zones,
    }
}

fn judge(endpoint: Endpoint, intent: &Intent<'_>) -> Judged {
    let mut beyond = Vec::new();
    let (mut exposed, mut maybe) = (false, false);
    for exposure in &endpoint.exposure {
        let allowed = intent.admitted(&endpoint, &exposure.zone);
        let entry = Beyond {
            surely: exposure.admitted.subtract(&allowed),
            maybe: exposure.conditional.subtract(&allowed),
        };
        exposed |= !entry.surely.is_empty();
        maybe |= !entry.maybe.is_empty();
        beyond.push(entry);
    }
    let verdict = if exposed {
        EndpointVerdict::Exposed
    } else if maybe {
        EndpointVerdict::Maybe
    } else if endpoint.id.address.is_loopback() {
        EndpointVerdict::Local
    } else if !intent.shut_zones(&endpoint).is_empty() {
        EndpointVerdict::ClosedButWanted
    } else {
        EndpointVerdict::Ok
    };
    Judged {
        intended: intent.sources(&endpoint),
        endpoint,
        beyond,
        verdict,
    }
}

/// A finding without an endpoint, to be completed.
fn finding(id: &str, severity: Severity, title: impl Into<String>) -> Finding {
    Finding {
        id: id.to_owned(),
        severity,
        title: title.into(),
        endpoint: None,
        evidence: Vec::new(),
        fix: None,
        controls: Vec::new(),
    }
}

/// Small words to complete a finding with.
trait Complete: Sized {
    fn shows(self, evidence: impl Into<String>) -> Self;
    fn mend(self, command: impl Into<String>) -> Self;
    fn rows(self, controls: &[&str]) -> Self;
}

impl Complete for Finding {
    fn shows(mut self, evidence: impl Into<String>) -> Self {
        self.evidence.push(evidence.into());
        self
    }
    fn mend(mut self, command: impl Into<String>) -> Self {
        self.fix = Some(command.into());
        self
    }
    fn rows(mut self, controls: &[&str]) -> Self {
        self.controls = controls.iter().map(|c| (*c).to_owned()).collect();
        self
    }
}

/// The command that mends what the policy covers.
const APPLY: &str = "portcullis apply";
