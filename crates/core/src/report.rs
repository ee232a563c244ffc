//! `audit --json`: versioned wire structs, apart from the internal types.
//!
//! Fields are only ever added within a schema version. All text that came from the host is made
//! safe to print ([`crate::text::clean`]).

use crate::catalog::Access;
use crate::expose;
use crate::finding::{Confidence, Exposure, Finding, Origin, Severity};
use crate::host::{Host, Uncertain};
use crate::judge::{self, Audit, EndpointVerdict, Judged};
use crate::policy::Policy;
use crate::text::clean;
use reach::{AddrSet, Piece, Proto, Verdict};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Version of the report format.
pub const REPORT_SCHEMA: u32 = 1;

/// What `audit --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// [`REPORT_SCHEMA`].
    pub schema: u32,
    /// Version of portcullis that observed.
    pub portcullis: String,
    /// When the host was observed, RFC 3339, UTC.
    pub taken: String,
    /// Host name.
    pub host: String,
    /// Operating system.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Whether the observer was root.
    pub privileged: bool,
    /// The policy that it was held against.
    pub policy: String,
    /// Zones, the Internet first.
    pub zones: Vec<ZoneReport>,
    /// Endpoints, by port.
    pub endpoints: Vec<EndpointReport>,
    /// Findings, the worst first.
    pub findings: Vec<FindingReport>,
    /// What could not be read, and what that makes uncertain.
    pub unseen: Vec<UnseenReport>,
}

/// A zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneReport {
    /// `internet`, `lan`, `lan:eth1`, `vpn:wg0`, `containers`.
    pub id: String,
    /// For people.
    pub label: String,
    /// Where its packets arrive.
    pub interfaces: Vec<String>,
    /// Its sources, as minimal CIDRs.
    pub networks: AddrSet,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// Protocol.
    pub proto: Proto,
    /// Local address; `0.0.0.0`: every IPv4 address, `::`: every address (of both families, where
    /// `exposure` has both).
    pub address: IpAddr,
    /// Port as a client writes it.
    pub port: u16,
    /// `socket`, `published`, `container-address` or `dnat`.
    pub origin: Origin,
    /// Process name.
    pub process: Option<String>,
    /// systemd unit.
    pub unit: Option<String>,
    /// Container name.
    pub container: Option<String>,
    /// Catalog id.
    pub service: Option<String>,
    /// How sure that is: `guess` (the port), `named` (image, unit, process), `settled` (it answered so).
    #[serde(default)]
    pub confidence: Option<Confidence>,
    /// The version that it told.
    #[serde(default)]
    pub version: Option<String>,
    /// Whether it lets strangers in, as it showed: `open`, `locked`, `unknown`.
    #[serde(default)]
    pub access: Access,
    /// Who reaches it, one entry or more a zone and family.
    pub exposure: Vec<ExposureReport>,
    /// Whom the policy admits, in the policy's words; empty: nobody beyond this machine.
    pub intended: Vec<String>,
    /// `ok`, `exposed`, `maybe`, `closed-but-wanted` or `local`.
    pub verdict: EndpointVerdict,
}

/// Who of a zone reaches an endpoint over one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposureReport {
    /// [`ZoneReport::id`].
    pub zone: String,
    /// 4 or 6.
    pub family: u8,
    /// The address that was asked for.
    pub to: IpAddr,
    /// Sources that surely get in, as minimal CIDRs.
    pub admitted: AddrSet,
    /// Sources that maybe get in.
    pub conditional: AddrSet,
    /// Why, for the largest verdict: the piece that admits, else the one that may, else the one that stops.
    pub witness: Option<WitnessReport>,
}

/// The deciding rule and the way to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessReport {
    /// `accept`, `conditional`, `drop` or `reject`.
    pub verdict: Verdict,
    /// The rule.
    pub rule: String,
    /// `family table chain position`, where it is a rule; position 0 is the chain's policy.
    pub at: Option<String>,
    /// The way there, outermost first.
    pub path: Vec<String>,
    /// What a conditional verdict depends on.
    pub conditions: Vec<String>,
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingReport {
    /// Stable id.
    pub id: String,
    /// How bad.
    pub severity: Severity,
    /// One sentence.
    pub title: String,
    /// `tcp/0.0.0.0:11434`, `udp/[::]:53`.
    pub endpoint: Option<String>,
    /// What shows it.
    pub evidence: Vec<String>,
    /// The command that mends it.
    pub fix: Option<String>,
    /// Rows of the guide and of public benchmarks.
    pub controls: Vec<String>,
}

/// A gap in observation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnseenReport {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
    /// What it makes uncertain: `verdicts`, `endpoints`, `names`, `mechanism`.
    pub uncertain: Uncertain,
}

/// Audits a host against a policy, for the wire.
pub fn audit(host: &Host, policy: &Policy) -> AuditReport {
    report(host, policy, &judge::audit(host, policy))
}

/// An audit's wire form.
pub fn report(host: &Host, policy: &Policy, audit: &Audit) -> AuditReport {
    AuditReport {
        schema: REPORT_SCHEMA,
        portcullis: clean(&host.portcullis),
        taken: clean(&host.taken),
        host: clean(&host.hostname),
        os: clean(&host.os),
        kernel: clean(&host.kernel),
        privileged: host.privileged,
        policy: clean(&policy.name),
        zones: audit
            .zones
            .iter()
            .map(|zone| ZoneReport {
                id: clean(&zone.id),
                label: zone.label.clone(),
                interfaces: zone.interfaces.iter().map(|i| clean(i)).collect(),
                networks: zone.networks.clone(),
            })
            .collect(),
        endpoints: audit.endpoints.iter().map(endpoint).collect(),
        findings: audit.findings.iter().map(finding).collect(),
        unseen: audit
            .unseen
            .iter()
            .map(|unseen| UnseenReport {
                what: clean(&unseen.what),
                why: clean(&unseen.why),
                uncertain: unseen.uncertain,
            })
            .collect(),
    }
}

fn endpoint(judged: &Judged) -> EndpointReport {
    let endpoint = &judged.endpoint;
    let shown = |text: &Option<String>| text.as_deref().map(clean);
    EndpointReport {
        proto: endpoint.id.proto,
        address: endpoint.id.address,
        port: endpoint.id.port,
        origin: endpoint.origin,
        process: shown(&endpoint.process),
        unit: shown(&endpoint.unit),
        container: shown(&endpoint.container),
        service: endpoint.who().map(|service| service.id.clone()),
        confidence: endpoint.named().map(|(_, confidence)| confidence),
        version: endpoint.version().map(clean),
        access: endpoint.access(),
        exposure: endpoint
            .exposure
            .iter()
            .map(|exposure| ExposureReport {
                zone: clean(&exposure.zone),
                family: exposure.family,
                to: exposure.to,
                admitted: exposure.admitted.clone(),
                conditional: exposure.conditional.clone(),
                witness: leading(exposure).map(witness),
            })
            .collect(),
        intended: judged.intended.clone(),
        verdict: judged.verdict,
    }
}

/// The piece that says most: one that admits, else one that may, else one that stops.
pub fn leading(exposure: &Exposure) -> Option<&Piece> {
    exposure
        .pieces
        .iter()
        .min_by_key(|piece| match piece.verdict {
            Verdict::Accept => 0,
            Verdict::Conditional => 1,
            Verdict::Reject => 2,
            Verdict::Drop => 3,
        })
}

fn witness(piece: &Piece) -> WitnessReport {
    let witness = &piece.witness;
    WitnessReport {
        verdict: piece.verdict,
        rule: clean(&witness.rule),
        at: witness.at.as_ref().map(|at| {
            clean(&format!(
                "{} {} {} {}",
                at.family, at.table, at.chain, at.position
            ))
        }),
        path: witness.path.iter().map(|s| clean(&s.text)).collect(),
        conditions: piece.conditions.iter().map(|c| clean(c)).collect(),
    }
}

fn finding(finding: &Finding) -> FindingReport {
    FindingReport {
        id: finding.id.clone(),
        severity: finding.severity,
        title: finding.title.clone(),
        endpoint: finding.endpoint.as_ref().map(ToString::to_string),
        evidence: finding.evidence.clone(),
        fix: finding.fix.clone(),
        controls: finding.controls.clone(),
    }
}

/// Exit code of `audit`: 5 when the answer is not sure (links, routes or rules unread, or not looked
/// at as root), 1 for findings at or above `fail_on`, 5 again when only endpoints or a mechanism are
/// in the dark, 0 otherwise.
pub fn exit_code(host: &Host, findings: &[Finding], fail_on: Severity) -> u8 {
    if expose::blind(host) || !host.privileged {
        return 5;
    }
    if findings.iter().any(|f| f.severity >= fail_on) {
        return 1;
    }
    let dark = host.unseen.iter().any(|u| u.uncertain != Uncertain::Names);
    if dark { 5 } else { 0 }
}
