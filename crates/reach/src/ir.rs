//! The packet filter as the kernel has it.
use serde::{Deserialize, Serialize};

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
pub struct Ruleset {}

impl Ruleset {
    /// Adds another reader's tables to this ruleset.
    pub fn merge(&mut self, _other: Ruleset) {}
}
