//! Readers of rule dumps. None fails as a whole: what is not understood is kept as an unknown match.
use crate::{Backend, Ruleset};

/// What a reader could not make sense of, kept for the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Line in the input, 1 for the first.
    pub line: u32,
    /// What it was.
    pub text: String,
}

/// Reads `iptables-save` (or `ip6tables-save` with `ipv6`) output.
pub fn iptables_save(_text: &str, _ipv6: bool, _backend: Backend) -> (Ruleset, Vec<Note>) {
    (Ruleset::default(), vec![])
}

/// Reads `nft -j list ruleset` or `nft list ruleset` output, told apart by its first character.
pub fn nft(_text: &str) -> (Ruleset, Vec<Note>) {
    (Ruleset::default(), vec![])
}

/// Reads `ipset save` output.
pub fn ipset_save(_text: &str) -> (Ruleset, Vec<Note>) {
    (Ruleset::default(), vec![])
}
