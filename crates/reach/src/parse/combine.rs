//! Several dumps of one host made one ruleset.
use super::{Note, ipset_save, nft, xtables};
use crate::ir::{Family, Table};
use crate::{Backend, Ruleset};

/// Dumps of one host, taken at the same time. What was not taken is `None`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dumps<'a> {
    /// `iptables-save` (nft variant; a dump that says it is legacy is taken as that).
    pub iptables: Option<&'a str>,
    /// `ip6tables-save`.
    pub ip6tables: Option<&'a str>,
    /// `iptables-legacy-save`.
    pub iptables_legacy: Option<&'a str>,
    /// `ip6tables-legacy-save`.
    pub ip6tables_legacy: Option<&'a str>,
    /// `nft list ruleset` or `nft -j list ruleset`.
    pub nft: Option<&'a str>,
    /// `ipset save`.
    pub ipset: Option<&'a str>,
}

/// Reads several dumps of one host into one ruleset.
///
/// nft also lists the tables of iptables-nft, but mostly without the arguments of their matches. So
/// `iptables-save` is believed about such a table, and nft only where that dump is missing or says
/// that it cannot show the table (`# Table 'x' is incompatible`).
pub fn combine(dumps: Dumps<'_>) -> (Ruleset, Vec<Note>) {
    let mut ruleset = Ruleset::default();
    let mut notes = Vec::new();
    let mut incompatible = Vec::new();
    let xtables = [
        (dumps.iptables, false, Backend::IptablesNft),
        (dumps.ip6tables, true, Backend::IptablesNft),
        (dumps.iptables_legacy, false, Backend::IptablesLegacy),
        (dumps.ip6tables_legacy, true, Backend::IptablesLegacy),
    ];
    for (text, ipv6, backend) in xtables {
        if let Some(text) = text {
            let (other, found, cannot) = xtables::read(text, ipv6, backend);
            ruleset.merge(other);
            notes.extend(found);
            incompatible.extend(cannot);
        }
    }
    if let Some(text) = dumps.nft {
        let (mut other, found, hidden) = nft::read(text);
        notes.extend(found);
        other
            .tables
            .retain(|table| keep(table, &mut ruleset, &incompatible, &mut notes));
        let kept = |h: &&nft::Hidden| {
            let same = |t: &Table| t.family == h.family && t.name == h.table;
            other.tables.iter().any(same)
        };
        notes.extend(hidden.iter().filter(kept).map(nft::Hidden::note));
        ruleset.tables.extend(other.tables);
    }
    if let Some(text) = dumps.ipset {
        let (other, found) = ipset_save(text);
        ruleset.merge(other);
        notes.extend(found);
    }
    (ruleset, notes)
}

/// Whether nft's view of a table is to be kept.
fn keep(
    table: &Table,
    ruleset: &mut Ruleset,
    incompatible: &[(Family, String)],
    notes: &mut Vec<Note>,
) -> bool {
    let shared = |t: &Table| {
        t.family == table.family && t.name == table.name && t.backend == Backend::IptablesNft
    };
    if incompatible.contains(&(table.family, table.name.clone())) {
        ruleset.tables.retain(|t| !shared(t));
        return true;
    }
    let Some(saved) = ruleset.tables.iter().find(|t| shared(t)) else {
        return true;
    };
    let rules = |t: &Table| t.chains.iter().map(|c| c.rules.len()).sum::<usize>();
    let (of_save, of_nft) = (rules(saved), rules(table));
    if of_save != of_nft {
        notes.push(Note {
            line: 0,
            text: format!(
                "table {} {}: iptables-save lists {of_save} rules, nft {of_nft}; iptables-save is believed",
                table.family, table.name
            ),
        });
    }
    false
}
