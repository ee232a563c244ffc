//! Finding one's way in a ruleset.
use super::{Backend, Chain, Family, Match, Rule, Ruleset, SetRef, Statement, Table};
use crate::RuleRef;
use std::collections::HashSet;

/// All rules with their places, in the order of the tables and chains.
pub type Rules<'a> = Box<dyn Iterator<Item = (RuleRef, &'a Rule)> + 'a>;

impl Table {
    /// The place of the rule at `position` (1 for the first, 0 for the policy) of `chain`.
    pub fn place(&self, chain: &str, position: u32) -> RuleRef {
        RuleRef {
            family: self.family.as_str().to_string(),
            backend: self.backend,
            table: self.name.clone(),
            chain: chain.to_string(),
            position,
        }
    }
    /// Number of matches and statements that the reader did not know.
    fn unknowns(&self) -> usize {
        let rules = self.chains.iter().flat_map(|c| &c.rules);
        rules
            .flat_map(|r| &r.statements)
            .filter(|s| {
                matches!(
                    s,
                    Statement::Unknown { .. } | Statement::Match(Match::Unknown { .. })
                )
            })
            .count()
    }
}

impl Ruleset {
    /// True when there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.ipsets.is_empty()
    }
    /// Number of rules in all tables.
    pub fn rule_count(&self) -> usize {
        self.tables
            .iter()
            .flat_map(|t| &t.chains)
            .map(|c| c.rules.len())
            .sum()
    }
    /// The table of this family, name and backend.
    pub fn table(&self, family: Family, name: &str, backend: Backend) -> Option<&Table> {
        self.tables
            .iter()
            .find(|t| t.family == family && t.name == name && t.backend == backend)
    }
    /// The ipset of this name.
    pub fn ipset(&self, name: &str) -> Option<&super::IpSet> {
        self.ipsets.iter().find(|s| s.name == name)
    }
    /// The chain that a place lies in.
    pub fn chain_at(&self, at: &RuleRef) -> Option<&Chain> {
        self.table_at(at)?.chain(&at.chain)
    }
    /// The table that a place lies in.
    pub fn table_at(&self, at: &RuleRef) -> Option<&Table> {
        self.tables.iter().find(|t| {
            t.backend == at.backend && t.family.as_str() == at.family && t.name == at.table
        })
    }
    /// The rule at a place; `None` for a policy.
    pub fn rule_at(&self, at: &RuleRef) -> Option<&Rule> {
        let index = (at.position as usize).checked_sub(1)?;
        self.chain_at(at)?.rules.get(index)
    }
    /// All rules with their places.
    pub fn rules(&self) -> Rules<'_> {
        Box::new(self.tables.iter().flat_map(|table| {
            table.chains.iter().flat_map(move |chain| {
                chain
                    .rules
                    .iter()
                    .zip(1..)
                    .map(move |(rule, position)| (table.place(&chain.name, position), rule))
            })
        }))
    }

    /// Adds another reader's tables and ipsets to this ruleset.
    ///
    /// The same kernel table may come from two readers: `nft list ruleset` shows the tables of iptables-nft
    /// too, mostly without the arguments of their matches. Then one is kept: the one marked as
    /// iptables-nft, else the one with fewer unknown parts, else the one that was there first.
    pub fn merge(&mut self, other: Ruleset) {
        let kernel = |b: Backend| b == Backend::IptablesLegacy;
        for table in other.tables {
            let same = self.tables.iter_mut().find(|t| {
                t.family == table.family
                    && t.name == table.name
                    && kernel(t.backend) == kernel(table.backend)
            });
            let Some(mine) = same else {
                self.tables.push(table);
                continue;
            };
            let rank = |t: &Table| (t.backend == Backend::Nft, t.unknowns());
            if rank(&table) < rank(mine) {
                *mine = table;
            }
        }
        let mut names: HashSet<String> = self.ipsets.iter().map(|s| s.name.clone()).collect();
        for set in other.ipsets {
            if names.insert(set.name.clone()) {
                self.ipsets.push(set);
            }
        }
    }

    /// The same rules without what only one reader knows or what changes by itself: handles, texts, lines,
    /// counters, comments of rules stay. Two readers of one kernel state agree on this.
    pub fn bare(&self) -> Ruleset {
        let mut out = self.clone();
        for table in &mut out.tables {
            for rule in table.chains.iter_mut().flat_map(|c| &mut c.rules) {
                rule.handle = None;
                rule.text.clear();
                rule.line = 0;
                rule.counters = None;
                rule.statements.iter_mut().for_each(bare_statement);
            }
            table.sets.iter_mut().for_each(bare_set);
            table.sets.sort_by(|a, b| a.name.cmp(&b.name));
            table.objects.clear();
        }
        for entry in out.ipsets.iter_mut().flat_map(|s| &mut s.entries) {
            entry.expires = None;
        }
        out.tables
            .sort_by(|a, b| (a.family, &a.name, a.backend).cmp(&(b.family, &b.name, b.backend)));
        out.ipsets.sort_by(|a, b| a.name.cmp(&b.name));
        out
    }
}

fn bare_set(set: &mut super::NftSet) {
    if set.name.starts_with("__") {
        set.name.clear();
    }
    set.elements.iter_mut().for_each(|e| e.expires = None);
    set.elements.sort_by_cached_key(|e| format!("{:?}", e.key));
}

fn bare_statement(statement: &mut Statement) {
    let set = match statement {
        Statement::Match(Match::Lookup { set, .. }) => set,
        Statement::VerdictMap { map, .. } | Statement::ObjectMap { map, .. } => map,
        Statement::Match(Match::Conditional(c)) => return c.text.clear(),
        Statement::Match(Match::Unknown { text })
        | Statement::Unknown { text }
        | Statement::Other { text }
        | Statement::Synproxy { text }
        | Statement::Dup { text } => return text.clear(),
        _ => return,
    };
    if let SetRef::Anonymous(set) = set {
        set.constant = true;
        bare_set(set);
    }
}
