//! The wire form of a scan, kept stable: scripts and `verify --report` read it.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Version of the scan format.
pub const SCAN_SCHEMA: u32 = 1;

/// A whole scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCAN_SCHEMA`].
    pub schema: u32,
    /// True when the scan did not finish: what is missing is not closed.
    pub partial: bool,
    /// One entry a target address.
    pub targets: Vec<TargetReport>,
}

/// What was learnt of one address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetReport {
    /// The address knocked on.
    pub address: IpAddr,
    /// The address knocked from, as this machine chose it (before any NAT).
    #[serde(default)]
    pub source: Option<IpAddr>,
    /// The ports asked about, as a list: `1-65535`; empty when nothing can be sent there.
    #[serde(default)]
    pub asked: String,
    /// This target is why the report is partial.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Ports that are neither closed nor filtered.
    pub ports: Vec<PortReport>,
    /// Counts of all TCP ports.
    pub summary: Summary,
    /// Counts of the UDP ports, where any were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpSummary>,
    /// What a reader has to know about this result: why it is not sure, or that something answers
    /// for every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A port that answered in a way worth a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// `tcp` or `udp`.
    pub proto: String,
    /// Port.
    pub port: u16,
    /// The verdict.
    pub state: PortState,
    /// The evidence: `syn-ack`, `rst`, `icmp-…`.
    pub reason: String,
    /// What stands behind it, where it was recognised.
    pub service: Option<String>,
}

/// Verdict on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// A connection was accepted.
    Open,
    /// Refused by an ICMP error: a filter said no.
    Rejected,
    /// UDP: no answer either way.
    OpenOrFiltered,
}

/// How many ports met which fate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Accepted a connection.
    pub open: usize,
    /// Answered with a reset.
    pub closed: usize,
    /// Answered with an ICMP error.
    pub rejected: usize,
    /// Silent in every attempt.
    pub filtered: usize,
}

/// How many UDP ports met which fate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpSummary {
    /// The ports asked about, as a list.
    pub asked: String,
    /// Answered.
    pub open: usize,
    /// Answered with "port unreachable".
    pub closed: usize,
    /// Answered with another ICMP error.
    pub rejected: usize,
    /// Silent in every attempt: nobody can tell from outside which.
    pub open_or_filtered: usize,
}

impl Report {
    /// The open TCP ports of each address: what a recogniser of services is asked about.
    pub fn open_tcp(&self) -> Vec<(IpAddr, Vec<u16>)> {
        let open = |target: &TargetReport| {
            let ports = target.ports.iter();
            ports
                .filter(|port| port.state == PortState::Open && port.proto == "tcp")
                .map(|port| port.port)
                .collect()
        };
        self.targets
            .iter()
            .map(|target| (target.address, open(target)))
            .collect()
    }

    /// Notes what a recogniser found behind an open TCP port.
    pub fn name_service(&mut self, address: IpAddr, port: u16, service: String) {
        for target in self.targets.iter_mut().filter(|t| t.address == address) {
            for found in &mut target.ports {
                if found.port == port && found.proto == "tcp" {
                    found.service = Some(service.clone());
                }
            }
        }
    }

    /// True when this target's silence proves nothing. Reports of older versions only say so of
    /// the whole.
    pub fn partial_of(&self, target: &TargetReport) -> bool {
        self.partial && (target.partial || !self.targets.iter().any(|other| other.partial))
    }

    /// True when it must not be read as a result: unfinished, without targets, a target from which
    /// nothing at all came back (a wrong address looks just like a perfect firewall), or one where
    /// something answers for every port.
    pub fn inconclusive(&self) -> bool {
        self.partial
            || self.targets.is_empty()
            || self
                .targets
                .iter()
                .any(|target| !target.answered() || target.answers_for_all())
    }
}

/// Ports above which a report does not list each one that was refused.
const REFUSED_LISTED: usize = 512;
/// Ports that a scan has to ask before it can say that "every" port answers.
const MANY: usize = 1000;

impl TargetReport {
    /// Puts a sentence in place of thousands of lines that say the same.
    pub(crate) fn folded(mut self) -> Self {
        let asked = crate::PortSet::parse(&self.asked).map_or(0, |ports| ports.len());
        if asked >= MANY && self.summary.open > asked / 2 {
            self.ports.retain(|port| port.state != PortState::Open);
            self.add_note(format!(
                "{} of {asked} ports accepted a connection: something answers for all of them (a \
                 tarpit, a SYN proxy, a redirect of every port), so what is really open cannot be \
                 told from here",
                self.summary.open
            ));
        }
        if self.summary.rejected > REFUSED_LISTED {
            self.ports.retain(|port| port.state != PortState::Rejected);
            self.add_note(format!(
                "{} ports were refused with an ICMP error each; they are not listed",
                self.summary.rejected
            ));
        }
        self
    }

    fn add_note(&mut self, sentence: String) {
        self.note = Some(match self.note.take() {
            Some(before) => format!("{before}; {sentence}"),
            None => sentence,
        });
    }

    /// True when so many ports accepted that they are not listed: no single one is evidence.
    pub fn answers_for_all(&self) -> bool {
        let tcp = |port: &&PortReport| port.state == PortState::Open && port.proto == "tcp";
        self.summary.open > self.ports.iter().filter(tcp).count()
    }

    /// True when at least one port gave evidence that the host is there. "Unreachable" errors do
    /// not count: this machine makes the same ones up when nobody answers ARP or no route leads
    /// there.
    pub fn answered(&self) -> bool {
        self.summary.open + self.summary.closed > 0
    }
}
