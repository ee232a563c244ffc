//! A table as the engine takes it: as iptables-nft wrote it, or as a native one.

use super::rules::{RawRule, RawRules};
use super::*;
use reach::ir::Rule;

pub(super) fn finish(mut raw: RawTable, rules: RawRules, links: &Links) -> Table {
    if let Some(table) = as_iptables(&raw, &rules) {
        return table;
    }
    for name in &raw.set_order {
        if let Some(set) = raw.sets.get(name)
            && !set.anonymous()
        {
            raw.table.sets.push(set.decode(links));
        }
    }
    for (chain, rules) in raw.table.chains.iter_mut().zip(rules) {
        let ipv6 = raw.table.family == Family::Ip6;
        chain.rules = rules.into_iter().map(|r| native_rule(r, ipv6)).collect();
    }
    raw.table
}

fn native_rule(mut raw: RawRule, ipv6: bool) -> Rule {
    raw.decoded.expand(ipv6);
    let comment = raw.comment.or(raw.decoded.comment);
    Rule {
        handle: raw.handle,
        text: print::rule(&raw.decoded.statements, comment.as_deref()),
        comment,
        line: 0,
        counters: raw.decoded.counters,
        statements: raw.decoded.statements,
    }
}

impl RawTable {
    /// Whether its name and family are of a table that iptables-nft writes.
    pub(super) fn maybe_iptables(&self) -> bool {
        let known = ["filter", "nat", "mangle", "raw", "security"];
        matches!(self.table.family, Family::Ip | Family::Ip6)
            && known.contains(&self.table.name.as_str())
    }
}

/// The table as iptables-nft wrote it; `None` when it did not.
fn as_iptables(raw: &RawTable, rules: &RawRules) -> Option<Table> {
    let table = &raw.table;
    let ipv6 = table.family == Family::Ip6;
    if !raw.maybe_iptables() || table.dormant || table.chains.is_empty() {
        return None;
    }
    if raw.sets.values().any(|s| !s.anonymous()) || !table.objects.is_empty() {
        return None;
    }
    let mut text = format!("*{}\n", table.name);
    for chain in &table.chains {
        let name = crate::xt::chain_word(&chain.name)?;
        let expected = Base::xtables(&table.name, &chain.name);
        let same = match (&chain.base, &expected) {
            (None, None) => true,
            (Some(have), Some(want)) => {
                (have.kind, have.hook, have.priority) == (want.kind, want.hook, want.priority)
            }
            _ => false,
        };
        if !same {
            return None;
        }
        let policy = match chain.base.as_ref().map(|b| b.policy) {
            None => "-",
            Some(Policy::Accept) => "ACCEPT",
            Some(Policy::Drop) => "DROP",
        };
        text += &format!(":{name} {policy} [0:0]\n");
    }
    for rule in rules.iter().flatten() {
        text += rule.line.as_deref()?;
        text.push('\n');
    }
    text += "COMMIT\n";
    let mut out = parsed(&text, ipv6, Backend::IptablesNft)?;
    // Nothing may have been lost on the way through the text.
    let shape = |t: &Table| -> Vec<(String, usize)> {
        let chains = t.chains.iter();
        chains.map(|c| (c.name.clone(), c.rules.len())).collect()
    };
    let want: Vec<(String, usize)> = table
        .chains
        .iter()
        .zip(rules)
        .map(|(c, rules)| (c.name.clone(), rules.len()))
        .collect();
    if shape(&out) != want {
        return None;
    }
    for (chain, rules) in out.chains.iter_mut().zip(rules) {
        for (rule, raw) in chain.rules.iter_mut().zip(rules) {
            rule.handle = raw.handle;
            rule.counters = raw.decoded.counters;
            rule.line = 0;
        }
    }
    out.comment = table.comment.clone();
    // As iptables-save lists them: built-in chains in the order of the hooks, then the others.
    out.chains.sort_by_cached_key(|c| {
        (
            c.base.as_ref().map_or(u8::MAX, |b| b.hook as u8),
            c.name.clone(),
        )
    });
    Some(out)
}

/// The one table of a dump in iptables-save's words.
pub(crate) fn parsed(text: &str, ipv6: bool, backend: Backend) -> Option<Table> {
    let (ruleset, _) = reach::parse::iptables_save(text, ipv6, backend);
    match <[Table; 1]>::try_from(ruleset.tables) {
        Ok([table]) => Some(table),
        Err(_) => None,
    }
}
