//! What an audit says.

use crate::catalog::{self, Access, Ground, Identity, Service};
use reach::{AddrSet, Piece, Proto};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Should be mended.
    Low,
    /// Mend soon.
    Medium,
    /// Mend today.
    High,
    /// Strangers can do harm now.
    Critical,
}

/// A difference between policy and exposure, or a known fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable id: `exposed-to-internet`, `fail2ban-dead`, `ufw-inactive`…
    pub id: String,
    /// How bad.
    pub severity: Severity,
    /// One sentence in plain words.
    pub title: String,
    /// The endpoint concerned, as [`EndpointId`] prints it.
    pub endpoint: Option<EndpointId>,
    /// What shows it: rules, paths, file lines.
    pub evidence: Vec<String>,
    /// The one command that mends it.
    pub fix: Option<String>,
    /// Rows of the guide and of public benchmarks: `G11`, `CIS-Docker-5.14`, `NIST-SC-7`.
    pub controls: Vec<String>,
}

/// An endpoint's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointId {
    /// Protocol.
    pub proto: Proto,
    /// Address; unspecified for "every address of this host".
    pub address: IpAddr,
    /// Port as a client writes it.
    pub port: u16,
}

/// A class of sources that people think in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// `internet`, `lan`, `lan:eth1`, `vpn:tailscale0`, `containers`, `host`.
    pub id: String,
    /// For people: "the Internet", "LAN 192.168.1.0/24 (eth0)".
    pub label: String,
    /// Interfaces that its packets arrive on.
    pub interfaces: Vec<String>,
    /// The sources.
    pub networks: AddrSet,
}

/// Something that can be connected to, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its name.
    pub id: EndpointId,
    /// How it comes to be.
    pub origin: Origin,
    /// Process name, where known.
    pub process: Option<String>,
    /// systemd unit.
    pub unit: Option<String>,
    /// Container name.
    pub container: Option<String>,
    /// Catalog id of the service by sight (image, unit, process, port): "ollama", "sshd". The policy goes by it. What
    /// it answers has no say there: any program could claim to be a service that the policy lets others reach.
    pub service: Option<String>,
    /// What `service` rests on.
    pub ground: Option<Ground>,
    /// What it answered when it was asked.
    pub seen: Option<Identity>,
    /// One entry a zone and family that has a way to it.
    pub exposure: Vec<Exposure>,
}

/// How sure the name of a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// Only the port suggests it.
    Guess,
    /// Image, unit or process has its name.
    Named,
    /// It answered as only this service does.
    Settled,
}

impl Endpoint {
    /// The service that is really there, as far as is known. What a server answers counts most; what only its port
    /// suggests is dropped when it answers as something else.
    pub fn named(&self) -> Option<(&'static Service, Confidence)> {
        let answered = self.seen.as_ref().is_some_and(|seen| seen.answered);
        let settled = self.seen.as_ref().and_then(|seen| seen.service.as_deref());
        if let Some(service) = settled.and_then(catalog::service) {
            return Some((service, Confidence::Settled));
        }
        let service = catalog::service(self.service.as_deref()?)?;
        match self.ground {
            Some(Ground::Name) => Some((service, Confidence::Named)),
            _ if answered => None,
            _ => Some((service, Confidence::Guess)),
        }
    }

    /// [`Endpoint::named`] without the confidence.
    pub fn who(&self) -> Option<&'static Service> {
        self.named().map(|(service, _)| service)
    }

    /// The version that it told.
    pub fn version(&self) -> Option<&str> {
        self.seen.as_ref()?.version.as_deref()
    }

    /// Whether it lets strangers in, as it showed.
    pub fn access(&self) -> Access {
        self.seen
            .as_ref()
            .map_or(Access::Unknown, |seen| seen.access)
    }
}

/// How an endpoint comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A socket of a process on the host.
    Socket,
    /// A port that a container publishes.
    Published,
    /// A container's own address and port.
    ContainerAddress,
    /// A DNAT rule of somebody else.
    Dnat,
}

/// Who of one zone gets in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// [`Zone::id`].
    pub zone: String,
    /// 4 or 6.
    pub family: u8,
    /// The address of this host (or container) that was asked about.
    pub to: IpAddr,
    /// Surely admitted.
    pub admitted: AddrSet,
    /// Maybe admitted.
    pub conditional: AddrSet,
    /// The parts with their witnesses; an unreadable packet filter makes one conditional piece.
    pub pieces: Vec<Piece>,
}

impl std::fmt::Display for EndpointId {
    /// `tcp/0.0.0.0:11434`, `udp/[::]:53`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = std::net::SocketAddr::new(self.address, self.port);
        write!(f, "{}/{at}", self.proto)
    }
}
