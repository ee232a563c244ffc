//! Questions to the engine, and its answers.

use crate::AddrSet;
use crate::{Net, Ruleset};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Transport protocol of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP, protocol 6.
    Tcp,
    /// UDP, protocol 17.
    Udp,
    /// SCTP, protocol 132.
    Sctp,
}

impl Proto {
    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Proto::Tcp => 6,
            Proto::Udp => 17,
            Proto::Sctp => 132,
        }
    }
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Sctp => "sctp",
        })
    }
}

/// Everything the engine needs to know of a host.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// All packet-filter rules, of every backend.
    pub rules: &'a Ruleset,
    /// Links, addresses, routes, sysctls.
    pub net: &'a Net,
}

/// "Which of `sources` can open a connection to `dst`:`dport`, arriving on `ingress`?"
#[derive(Debug, Clone)]
pub struct Query {
    /// Name of the interface that the packets arrive on.
    pub ingress: String,
    /// Destination address as the client writes it (before any DNAT).
    pub dst: IpAddr,
    /// Transport protocol.
    pub proto: Proto,
    /// Destination port as the client writes it (before any DNAT).
    pub dport: u16,
    /// The client's source port; `None`: any, the client's choice.
    pub sport: Option<u16>,
    /// The universe of source addresses asked about; only those of `dst`'s family count.
    pub sources: AddrSet,
}

/// A question about the chains of one hook alone, when links and routes are not known.
#[derive(Debug, Clone)]
pub struct HookQuery {
    /// Which hook's base chains are walked.
    pub hook: Hook,
    /// Transport protocol.
    pub proto: Proto,
    /// Destination address; `None`: any (rules that test it become conditional).
    pub dst: Option<IpAddr>,
    /// True: ask for IPv6 sources when `dst` is `None`.
    pub ipv6: bool,
    /// Destination port.
    pub dport: u16,
    /// Source port; `None`: any, the client's choice.
    pub sport: Option<u16>,
    /// Incoming interface; `None`: unknown (rules that test it become conditional).
    pub iif: Option<String>,
    /// Outgoing interface, for `forward`; `None`: unknown.
    pub oif: Option<String>,
    /// Conntrack state of the packet.
    pub state: CtState,
}

/// A hook that [`HookQuery`] can ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// Packets for this host.
    Input,
    /// Packets routed through it.
    Forward,
}

/// Conntrack state of a packet (nf_conntrack_common.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CtState {
    /// First packet of a connection.
    New,
    /// Packet of a connection seen in both directions.
    Established,
    /// Expected by a helper.
    Related,
    /// Not tracked.
    Untracked,
    /// Could not be classified.
    Invalid,
}

/// What happens to the connections of a set of sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// A connection can be opened.
    Accept,
    /// Silence.
    Drop,
    /// Refused with an ICMP error or a TCP reset.
    Reject,
    /// Depends on something that the rules alone do not settle (a rate limit, an unknown match).
    Conditional,
}

/// The answer: three disjoint sets that together are the sources asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Sources that can surely open a connection.
    pub admitted: AddrSet,
    /// Sources for which the rules leave it open; treat as "maybe open".
    pub conditional: AddrSet,
    /// Sources that surely cannot.
    pub blocked: AddrSet,
    /// Who decided what, for each part of the three sets.
    pub pieces: Vec<Piece>,
}

/// Sources that met the same fate for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The sources.
    pub sources: AddrSet,
    /// Their fate.
    pub verdict: Verdict,
    /// Where an admitted (or maybe admitted) connection ends.
    pub delivered: Option<Delivery>,
    /// The rule that decided and the way to it.
    pub witness: Witness,
    /// What a conditional verdict depends on, in the words of the rules: `limit: avg 6/min burst 5`,
    /// `recent: UPDATE seconds: 30 hit_count: 6`. Empty for a sure one.
    #[serde(default)]
    pub conditions: Vec<String>,
}

/// Where a connection ends up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "to")]
pub enum Delivery {
    /// A socket on this host.
    Local {
        /// Address after DNAT.
        address: IpAddr,
        /// Port after DNAT.
        port: u16,
    },
    /// Routed on to another host or container.
    Forwarded {
        /// Address after DNAT.
        address: IpAddr,
        /// Port after DNAT.
        port: u16,
        /// Outgoing interface.
        oif: String,
    },
}

/// Why: the deciding step and the steps that led to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// The rule, policy or fact that decided, as a reader would look it up:
    /// `-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT`, `policy drop`, `no route`.
    pub rule: String,
    /// Table, chain and position of `rule`, where it is a rule.
    pub at: Option<RuleRef>,
    /// The way there, outermost first: jumps taken, NAT applied, routing decided.
    pub path: Vec<Step>,
}

/// One step of a witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The rule of this step, where it is one.
    pub at: Option<RuleRef>,
    /// What it says or does, in the rule's own text.
    pub text: String,
}

/// A rule's place in the ruleset.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleRef {
    /// `ip`, `ip6`, `inet`, `bridge`, `netdev`.
    pub family: String,
    /// Which backend holds it.
    pub backend: crate::Backend,
    /// Table name.
    pub table: String,
    /// Chain name.
    pub chain: String,
    /// Position in the chain, 1 for the first; 0 stands for the chain's policy.
    pub position: u32,
}
