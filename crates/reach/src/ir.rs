//! The packet filter as the kernel has it, whoever read it.
//!
//! Text parsers ([`crate::parse`]) and the netlink reader (crate `kernel`) fill the same types, and
//! for the same kernel state they must give the same value, up to [`Ruleset::bare`]. So there is
//! one spelling for each meaning:
//!
//! - **Dependencies are explicit.** nft prints `tcp dport 22`, the kernel holds two matches:
//!   [`Key::L4Proto`] is 6, then [`Key::Dport`] is 22. In `inet`, `bridge` and `netdev` tables
//!   `ip saddr` is preceded by [`Key::NfProto`] in the same way. Readers add what the printer left out,
//!   unless an earlier match of the same rule already says it.
//! - **Prefixes, ranges and single values are intervals** ([`Values`]). A mask is kept only when it
//!   is no prefix.
//! - **An anonymous set over one key without a mask is a plain match** on several values; only named
//!   sets, maps and concatenations are a [`Match::Lookup`].
//! - **"Any of these bits"** (`ct state new,related`, `ct status dnat`, nft's `tcp flags syn`) is
//!   [`Match::Bits`]; "masked equals" (`--tcp-flags SYN,ACK SYN`) is [`Match::Cmp`] with a mask.
//! - **iptables** rules are matches, then at most one target; nft rules interleave them. Both are one
//!   ordered list of [`Statement`]s. `-g` is [`RuleVerdict::Goto`]; a rule without target has none.
//! - **Counters** of a rule live in [`Rule::counters`], not among the statements.
//! - What a reader does not know is [`Match::Unknown`] or [`Statement::Unknown`] with its text: the
//!   engine then answers "maybe". Never leave a match out.

use serde::{Deserialize, Serialize};

mod expr;
mod find;
mod set;

pub use expr::*;
pub use find::Rules;
pub use set::*;

/// Which part of the kernel holds a table, and who speaks to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// A native nf_tables table.
    Nft,
    /// An nf_tables table written by iptables-nft.
    IptablesNft,
    /// An x_tables table (iptables-legacy).
    IptablesLegacy,
}

/// All packet-filter rules of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ruleset {
    /// The tables of every backend and family, in the order read.
    pub tables: Vec<Table>,
    /// The sets of the ipset subsystem, which iptables rules (both backends) refer to by name.
    pub ipsets: Vec<IpSet>,
}

/// Address family of a table (NFPROTO_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// IPv4 and IPv6.
    Inet,
    /// ARP.
    Arp,
    /// Frames that pass a Linux bridge.
    Bridge,
    /// Frames at a device's ingress or egress.
    Netdev,
}

impl Family {
    /// As nft spells it: `ip`, `ip6`, `inet`, `arp`, `bridge`, `netdev`.
    pub fn as_str(self) -> &'static str {
        match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Inet => "inet",
            Family::Arp => "arp",
            Family::Bridge => "bridge",
            Family::Netdev => "netdev",
        }
    }
    /// Whether IP packets of this version pass a table of this family on the IP hooks.
    pub fn sees(self, ip: Ipv) -> bool {
        match self {
            Family::Ip => ip == Ipv::V4,
            Family::Ip6 => ip == Ipv::V6,
            Family::Inet => true,
            Family::Arp | Family::Bridge | Family::Netdev => false,
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A table: chains, and the sets and objects that only they can name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Address family.
    pub family: Family,
    /// Name: `filter`, `nat`, or whatever the owner chose.
    pub name: String,
    /// Who holds it.
    pub backend: Backend,
    /// `flags dormant`: its chains are not hooked in, nothing of it applies.
    #[serde(default)]
    pub dormant: bool,
    /// Chains, in the order listed.
    #[serde(default)]
    pub chains: Vec<Chain>,
    /// Named sets, maps and verdict maps.
    #[serde(default)]
    pub sets: Vec<NftSet>,
    /// Named stateful objects.
    #[serde(default)]
    pub objects: Vec<Object>,
    /// Comment of the table itself (nft).
    #[serde(default)]
    pub comment: Option<String>,
}

impl Table {
    /// An empty table.
    pub fn new(family: Family, name: impl Into<String>, backend: Backend) -> Self {
        Table {
            family,
            name: name.into(),
            backend,
            dormant: false,
            chains: vec![],
            sets: vec![],
            objects: vec![],
            comment: None,
        }
    }
    /// The chain of this name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|c| c.name == name)
    }
    /// The named set or map of this name.
    pub fn set(&self, name: &str) -> Option<&NftSet> {
        self.sets.iter().find(|s| s.name == name)
    }
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Name, unique in its table.
    pub name: String,
    /// Where the kernel enters it; `None`: only by jumps.
    #[serde(default)]
    pub base: Option<Base>,
    /// Rules in order.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Comment of the chain itself (nft).
    #[serde(default)]
    pub comment: Option<String>,
}

impl Chain {
    /// A chain without rules.
    pub fn new(name: impl Into<String>, base: Option<Base>) -> Self {
        Chain {
            name: name.into(),
            base,
            rules: vec![],
            comment: None,
        }
    }
}

/// How a base chain hangs in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// What kind of chain: `nat` chains see only the first packet of a connection.
    pub kind: ChainKind,
    /// Where.
    pub hook: NfHook,
    /// Lower runs first. Conntrack runs at -200, DNAT at -100, filter at 0, SNAT at 100.
    pub priority: i32,
    /// What happens at its end.
    pub policy: Policy,
    /// Devices of an ingress or egress chain. A device list may hold wildcards (`eth*`) since nft 1.1.
    #[serde(default)]
    pub devices: Vec<NamePattern>,
}

impl Base {
    /// Where x_tables (legacy, and iptables-nft in the same way) hooks a built-in chain; policy ACCEPT.
    /// `None` when this table has no such built-in chain, so it is a user's.
    ///
    /// Source: `NF_IP_PRI_*` of `linux/netfilter_ipv4.h`, and the `valid_hooks` of `iptable_*.c`.
    pub fn xtables(table: &str, chain: &str) -> Option<Base> {
        use NfHook::*;
        let hook = match chain {
            "PREROUTING" => Prerouting,
            "INPUT" => Input,
            "FORWARD" => Forward,
            "OUTPUT" => Output,
            "POSTROUTING" => Postrouting,
            _ => return None,
        };
        let (kind, priority) = match (table, hook) {
            ("raw", Prerouting | Output) => (ChainKind::Filter, -300),
            ("mangle", Output) => (ChainKind::Route, -150),
            ("mangle", _) => (ChainKind::Filter, -150),
            ("nat", Prerouting | Output) => (ChainKind::Nat, -100),
            ("nat", Input | Postrouting) => (ChainKind::Nat, 100),
            ("filter", Input | Forward | Output) => (ChainKind::Filter, 0),
            ("security", Input | Forward | Output) => (ChainKind::Filter, 50),
            _ => return None,
        };
        Some(Base {
            kind,
            hook,
            priority,
            policy: Policy::Accept,
            devices: vec![],
        })
    }
}

/// The `type` of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a connection only.
    Nat,
    /// As filter; a changed mark makes the kernel route again (output only).
    Route,
}

/// Netfilter hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NfHook {
    /// Frames as a device hands them over (netdev family, and inet since 5.10).
    Ingress,
    /// Before the routing decision.
    Prerouting,
    /// For this host.
    Input,
    /// Routed through.
    Forward,
    /// Made by this host.
    Output,
    /// On the way out.
    Postrouting,
    /// Frames as they go to a device (netdev family, since 5.16).
    Egress,
}

/// Policy of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Packets that reach the end pass.
    Accept,
    /// Packets that reach the end are dropped.
    Drop,
}

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// The kernel's handle (nf_tables).
    pub handle: Option<u64>,
    /// As the tool prints it, for people: `-A INPUT -p tcp --dport 22 -j ACCEPT`, `tcp dport 22 accept`.
    /// Untrusted text.
    pub text: String,
    /// `-m comment`, nft `comment "…"`. Untrusted text.
    pub comment: Option<String>,
    /// Line in the input, 1 for the first; 0 when not from text.
    pub line: u32,
    /// Packets and bytes counted so far, where the rule counts.
    pub counters: Option<Counters>,
    /// What it does, in order.
    pub statements: Vec<Statement>,
}

/// A counter's reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// One step of a rule. Evaluation goes on to the next while matches hold and no verdict ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statement {
    /// Goes on only if it matches.
    Match(Match),
    /// Ends the rule (`continue` included).
    Verdict(RuleVerdict),
    /// `KEYS vmap MAP`: the verdict of the element that matches; the next rule if none does.
    VerdictMap {
        /// The key, concatenated from one or more operands.
        keys: Vec<Operand>,
        /// The map, with [`Data::Verdict`] elements.
        map: SetRef,
    },
    /// Writes a value into the packet's or the connection's metadata.
    Assign {
        /// Where to.
        target: Target,
        /// What.
        value: Expr,
    },
    /// Address translation; ends the rule (and the chain, as accept does).
    Nat(Nat),
    /// Hands the packet to a local transparent socket. Terminal in iptables (accepts); in nft it is not:
    /// readers of iptables add an explicit [`RuleVerdict::Accept`] after it.
    Tproxy {
        /// Address to deliver to; `None`: that of the incoming interface.
        addr: Option<std::net::IpAddr>,
        /// Port to deliver to; `None`: unchanged.
        port: Option<u16>,
        /// `--tproxy-mark` as (value, mask).
        mark: Option<(u32, u32)>,
    },
    /// `notrack`, `-j NOTRACK`, `-j CT --notrack`: no conntrack entry for this packet. Ends the rule in
    /// iptables only as far as any non-terminal target does: the next rule follows.
    NoTrack,
    /// Answers SYNs in the listener's place. Text as printed.
    Synproxy {
        /// Options as printed.
        text: String,
    },
    /// Logs (`log`, LOG, NFLOG, ULOG, AUDIT); no effect on the packet.
    Log {
        /// The prefix. Untrusted text.
        prefix: Option<String>,
    },
    /// Puts something into a set or takes it out (nft `add @s {…}`, `-j SET`).
    SetUpdate(SetUpdate),
    /// Refers to a named counter, quota, limit, helper, timeout… of the table.
    /// `limit` and `quota` objects may end the rule, so readers give [`Match::Conditional`] for these.
    Object {
        /// `counter`, `ct helper`, `ct timeout`, `secmark`, `synproxy`, `ct expectation`.
        kind: String,
        /// Name of the object.
        name: String,
    },
    /// `counter name KEYS map …`: picks an object by lookup; ends the rule when no element matches.
    ObjectMap {
        /// As for [`Statement::Object`].
        kind: String,
        /// The key.
        keys: Vec<Operand>,
        /// The map, with [`Data::Object`] elements.
        map: SetRef,
    },
    /// Offers the connection to a flow table: its later packets skip the hooks.
    FlowOffload {
        /// Name of the flow table.
        flowtable: String,
    },
    /// Sends a copy elsewhere (`dup`, TEE); the original goes on.
    Dup {
        /// As printed.
        text: String,
    },
    /// `fwd to DEVICE` (netdev): the packet leaves by another device and is gone from here.
    Forward {
        /// As printed.
        text: String,
    },
    /// Known to have no say in whether the packet passes: TCPMSS, DSCP, TTL, CLASSIFY, CHECKSUM, SECMARK,
    /// payload writes to such fields…
    Other {
        /// As printed.
        text: String,
    },
    /// Not known: may match or not, may end the rule with any verdict or none.
    Unknown {
        /// As printed.
        text: String,
    },
}

/// A verdict as a rule gives it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleVerdict {
    /// The packet leaves this base chain; the next base chain on the hook sees it.
    Accept,
    /// Gone.
    Drop,
    /// Refused with an answer.
    Reject {
        /// `icmp-port-unreachable`, `tcp-reset`…, as the tool spells it; empty when it prints none.
        with: String,
    },
    /// To a program in user space, which may accept or drop.
    Queue {
        /// First queue number.
        num: u16,
        /// Accept when no program listens.
        bypass: bool,
    },
    /// Back behind the jump that led here; in a base chain: the policy.
    Return,
    /// The next rule (nft `continue`).
    Continue,
    /// Call a chain of the same table.
    Jump {
        /// Its name.
        chain: String,
    },
    /// Go on in a chain of the same table without coming back here.
    Goto {
        /// Its name.
        chain: String,
    },
}

/// Address translation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// Which.
    pub kind: NatKind,
    /// New address: [`Expr::Addrs`], or [`Expr::Map`] whose data is an address, or address and port.
    /// `None`: unchanged, or implied (masquerade, redirect).
    #[serde(default)]
    pub addr: Option<Expr>,
    /// New port: [`Expr::Ports`] or [`Expr::Map`]. `None`: kept if possible.
    #[serde(default)]
    pub port: Option<Expr>,
    /// `random` or `fully-random` port choice.
    #[serde(default)]
    pub random: bool,
    /// `persistent`: the same client gets the same address of the range.
    #[serde(default)]
    pub persistent: bool,
    /// `netmap`, nft `dnat prefix to`: the host bits are kept, only the network part changes.
    #[serde(default)]
    pub netmap: bool,
}

/// Kinds of address translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NatKind {
    /// Destination.
    Dnat,
    /// Source.
    Snat,
    /// Source, to the address of the outgoing interface.
    Masquerade,
    /// Destination, to this host: the incoming interface's first address.
    Redirect,
}

/// What an [`Statement::Assign`] writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The packet's mark.
    Mark,
    /// The connection's mark.
    CtMark,
    /// The connection's zone.
    CtZone,
    /// `meta nftrace`, `-j TRACE`.
    Trace,
    /// `meta priority`.
    Priority,
    /// `meta pkttype`.
    PktType,
    /// The connection's helper, label, timeout, events, secmark…; the text says which.
    Ct(String),
    /// A field of the packet's headers; the text says which. Source and destination address and port
    /// writes are [`Statement::Unknown`], since they change what later rules see.
    Payload(String),
}

/// `add @set { … }` and its kin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUpdate {
    /// Name of the set: of the table (nft), or an ipset.
    pub set: String,
    /// True for an ipset (`-j SET`).
    pub ipset: bool,
    /// Add, update or delete.
    pub op: SetOp,
    /// The element's key. Empty for an ipset, where the directions say it.
    #[serde(default)]
    pub keys: Vec<Operand>,
    /// Directions of an ipset element.
    #[serde(default)]
    pub directions: Vec<Direction>,
    /// Timeout of the new element in seconds; `None`: the set's default.
    #[serde(default)]
    pub timeout: Option<u64>,
    /// Stateful expressions of the element that can end the rule (`limit`, `ct count`, `quota`).
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// What is done to the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetOp {
    /// Add if missing.
    Add,
    /// Add or refresh.
    Update,
    /// Remove.
    Delete,
}

/// A named stateful object of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// `counter`, `quota`, `limit`, `ct helper`, `ct timeout`, `ct expectation`, `secmark`, `synproxy`, `flowtable`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// What it holds, as printed.
    pub text: String,
}
