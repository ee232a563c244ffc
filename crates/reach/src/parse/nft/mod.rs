//! `nft list ruleset`, as text and as JSON.
mod block;
mod expr;
mod field;
mod json;
mod keys;
mod lex;
mod print;
mod rule;
mod sets;
mod statement;
mod text;
mod tree;

use self::sets::Gives;
use self::tree::J;
use super::{MAX_ELEMENTS, MAX_RULES, MAX_TABLES, Note, Notes, anything, end_with_anything, value};
use crate::ir::{
    Base, Chain, ChainKind, Family, NamePattern, NfHook, NftSet, Object, Policy, Rule, Statement,
    Table,
};
use crate::parse::unknown_match;
use crate::{Backend, Ruleset};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Reads `nft -j list ruleset` or `nft list ruleset` output, told apart by its first character.
///
/// Tables that look as iptables-nft makes them get [`Backend::IptablesNft`]; nft shows most of their
/// matches without arguments, so give [`super::combine`] the output of `iptables-save` as well.
pub fn nft(text: &str) -> (Ruleset, Vec<Note>) {
    let (ruleset, mut notes, hidden) = read(text);
    notes.extend(hidden.iter().map(Hidden::note));
    (ruleset, notes)
}

/// Matches and targets of iptables that nft shows without their arguments.
pub(super) struct Hidden {
    pub(super) family: Family,
    pub(super) table: String,
    pub(super) count: usize,
}

impl Hidden {
    pub(super) fn note(&self) -> Note {
        Note {
            line: 0,
            text: format!(
                "table {} {}: nft shows {} matches or targets of iptables without their arguments; iptables-save has them",
                self.family, self.table, self.count
            ),
        }
    }
}

pub(super) fn read(text: &str) -> (Ruleset, Vec<Note>, Vec<Hidden>) {
    let mut reader = Reader::default();
    if text.trim_start().starts_with('{') {
        json::read(text, &mut reader);
    } else {
        text::read(text, &mut reader);
    }
    reader.finish()
}

/// Losses that are placed where they happened; beyond, every chain may do anything from its start.
const MAX_LOSSES: usize = 1000;

/// A place in the ruleset under construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    table: usize,
    chain: usize,
}

/// What both spellings are read into.
#[derive(Default)]
struct Reader {
    tables: Vec<Table>,
    names: HashMap<(Family, String), usize>,
    chains: HashMap<(usize, String), usize>,
    sets: HashMap<(usize, String), usize>,
    /// For each table the matches and targets of iptables that have only their name here.
    hidden: BTreeMap<usize, usize>,
    /// Types of the sets' keys, and what maps give.
    declared: HashMap<(usize, usize), (Vec<keys::Ty>, Gives)>,
    /// Sets that rules put elements into.
    updated: HashSet<(usize, String)>,
    notes: Notes,
    rules: usize,
    elements: usize,
    /// Chains with more rules than are kept.
    cut: HashSet<Place>,
    /// Rules whose text has a gap: a match that nft could not print.
    gaps: Vec<(Place, usize)>,
    /// Said by the dump itself: managed by iptables-nft.
    managed: HashSet<(Family, String)>,
    /// Chains on devices that the dump does not name.
    anywhere: Vec<Place>,
    /// Tables whose flags could not be read.
    flags: HashSet<usize>,
    /// Chains of each table, counted from the first, that have a rule for what was lost.
    tainted: Vec<usize>,
    /// How often something was lost.
    losses: usize,
    /// There were more tables than are kept.
    too_many: bool,
}

fn family(text: &str) -> Option<Family> {
    Some(match text {
        "ip" => Family::Ip,
        "ip6" => Family::Ip6,
        "inet" => Family::Inet,
        "arp" => Family::Arp,
        "bridge" => Family::Bridge,
        "netdev" => Family::Netdev,
        _ => return None,
    })
}

impl Reader {
    fn table(&mut self, family: Family, name: &str) -> usize {
        if let Some(&at) = self.names.get(&(family, name.to_string())) {
            return at;
        }
        if self.tables.len() >= MAX_TABLES {
            // No host has so many. What comes now goes to the last one, and everything is in doubt.
            if !self.too_many {
                self.notes.add(0, format!("more than {MAX_TABLES} tables"));
                self.too_many = true;
            }
            return self.tables.len() - 1;
        }
        self.tables.push(Table::new(family, name, Backend::Nft));
        let at = self.tables.len() - 1;
        self.names.insert((family, name.to_string()), at);
        at
    }

    fn chain(&mut self, table: usize, name: &str) -> Place {
        if let Some(&chain) = self.chains.get(&(table, name.to_string())) {
            return Place { table, chain };
        }
        self.tables[table].chains.push(Chain::new(name, None));
        let chain = self.tables[table].chains.len() - 1;
        self.chains.insert((table, name.to_string()), chain);
        Place { table, chain }
    }

    fn at(&mut self, place: Place) -> &mut Chain {
        &mut self.tables[place.table].chains[place.chain]
    }

    /// `dormant`, and what else stands behind `flags`.
    fn table_flag(&mut self, table: usize, flag: &str, line: u32) {
        match flag {
            "dormant" => self.tables[table].dormant = true,
            "owner" | "persist" => {}
            // nft 1.0.6 prints the table's name here (seen), so dormant or not is not told.
            _ => {
                self.flags.insert(table);
                let name = &self.tables[table].name;
                let text =
                    format!("table {name}: flag not understood, so it may be dormant: {flag}");
                self.notes.add(line, text);
            }
        }
    }

    fn base(&mut self, place: Place, mut base: Base) {
        if matches!(base.hook, NfHook::Ingress | NfHook::Egress) && base.devices.is_empty() {
            // nft 1.0.6 leaves the device out of its JSON (seen): it may be any.
            base.devices.push(NamePattern {
                name: String::new(),
                wildcard: true,
            });
            self.anywhere.push(place);
            let text = format!("chain {}: its devices are not shown", self.at(place).name);
            self.notes.add(0, text);
        }
        self.at(place).base = Some(base);
    }

    /// Something could not be read that may have been a rule of any chain: from here on each may do anything.
    fn lose(&mut self, line: u32) {
        self.losses += 1;
        if self.losses > MAX_LOSSES {
            return;
        }
        self.tainted.resize(self.tables.len(), 0);
        for (table, done) in self.tables.iter_mut().zip(&mut self.tainted) {
            for chain in &mut table.chains[*done..] {
                chain
                    .rules
                    .push(anything("(something here could not be read)", line));
            }
            *done = table.chains.len();
        }
    }

    /// Adds a rule of decoded statements.
    fn rule(&mut self, place: Place, statements: &[J<'_>], mut rule: Rule) -> usize {
        self.rules += 1;
        if self.rules > MAX_RULES {
            if self.rules == MAX_RULES + 1 {
                self.notes.add(
                    rule.line,
                    format!("more than {MAX_RULES} rules: the rest may do anything"),
                );
            }
            self.cut.insert(place);
            return usize::MAX;
        }
        let family = self.tables[place.table].family;
        let decoded = rule::decode(statements, family);
        for set in decoded.updates {
            self.updated.insert((place.table, set));
        }
        let line = rule.line;
        let chain = self.at(place).name.clone();
        for problem in decoded.problems {
            if problem.contains("not understood: xt ") {
                *self.hidden.entry(place.table).or_default() += 1;
                continue;
            }
            self.notes.add(line, format!("{chain}: {problem}"));
        }
        rule.statements = decoded.statements;
        rule.counters = rule.counters.or(decoded.counters);
        for text in decoded.texts {
            // JSON has no form for anonymous chains and falls back to the text.
            let (list, _) = text::chain::statements(&text, self, place);
            let decoded = rule::decode(&list, family);
            rule.statements.extend(decoded.statements);
        }
        let rules = &mut self.at(place).rules;
        rules.push(rule);
        rules.len() - 1
    }

    /// Declares a set or map.
    fn set(&mut self, table: usize, set: NftSet) -> usize {
        let key = (table, set.name.clone());
        let sets = &mut self.tables[table].sets;
        sets.push(set);
        let at = sets.len() - 1;
        self.sets.insert(key, at);
        at
    }

    fn elements(
        &mut self,
        table: usize,
        set: usize,
        items: &[J<'_>],
        types: &[keys::Ty],
        gives: Gives,
    ) {
        for item in items {
            self.elements += 1;
            let set = &mut self.tables[table].sets[set];
            if self.elements > MAX_ELEMENTS {
                if !set.incomplete {
                    let text = format!("set {}: more elements than are kept", set.name);
                    self.notes.add(0, text);
                }
                set.incomplete = true;
                return;
            }
            set.elements.push(sets::element(item, types, gives));
        }
    }

    fn object(&mut self, table: usize, kind: &str, name: &str, text: String) {
        self.tables[table].objects.push(Object {
            kind: kind.to_string(),
            name: name.to_string(),
            text,
        });
    }

    fn finish(mut self) -> (Ruleset, Vec<Note>, Vec<Hidden>) {
        for (table, name) in &self.updated {
            if let Some(&at) = self.sets.get(&(*table, name.clone())) {
                self.tables[*table].sets[at].dynamic = true;
            }
        }
        for place in std::mem::take(&mut self.anywhere) {
            let rule = anything("(its devices are not shown)", 0);
            self.at(place).rules.insert(0, rule);
        }
        for place in std::mem::take(&mut self.cut) {
            end_with_anything(self.at(place), 0);
        }
        for (at, table) in self.tables.iter_mut().enumerate() {
            let said = self.managed.contains(&(table.family, table.name.clone()));
            if said || managed(table) {
                table.backend = Backend::IptablesNft;
            }
            if self.losses > MAX_LOSSES || self.too_many {
                for chain in &mut table.chains {
                    chain
                        .rules
                        .insert(0, anything("(much here could not be read)", 0));
                }
            }
            if self.flags.contains(&at) {
                for chain in table.chains.iter_mut().filter(|c| c.base.is_some()) {
                    chain
                        .rules
                        .insert(0, anything("(the table may be dormant)", 0));
                }
            }
        }
        for (place, rule) in std::mem::take(&mut self.gaps) {
            let table = &mut self.tables[place.table];
            if table.backend == Backend::IptablesNft
                && let Some(rule) = table.chains[place.chain].rules.get_mut(rule)
            {
                const GAP: &str = "(a match of iptables that nft does not print)";
                rule.statements.insert(0, unknown_match(GAP));
                *self.hidden.entry(place.table).or_default() += 1;
            }
        }
        let hidden = self.hidden.iter().map(|(&at, &count)| Hidden {
            family: self.tables[at].family,
            table: self.tables[at].name.clone(),
            count,
        });
        let hidden = hidden.collect();
        let ruleset = Ruleset {
            tables: self.tables,
            ..Ruleset::default()
        };
        (ruleset, self.notes.finish(), hidden)
    }
}

/// Whether a table is one that iptables-nft would make: its name, and every base chain a built-in one.
fn managed(table: &Table) -> bool {
    if !matches!(table.family, Family::Ip | Family::Ip6) {
        return false;
    }
    let mut bases = 0;
    for chain in &table.chains {
        let built_in = Base::xtables(&table.name, &chain.name);
        match (&chain.base, built_in) {
            (None, _) => {}
            (Some(base), Some(known))
                if (base.kind, base.hook, base.priority)
                    == (known.kind, known.hook, known.priority) =>
            {
                bases += 1;
            }
            _ => return false,
        }
    }
    bases > 0 && table.sets.is_empty()
}

fn hook(text: &str) -> Option<NfHook> {
    Some(match text {
        "ingress" => NfHook::Ingress,
        "prerouting" => NfHook::Prerouting,
        "input" => NfHook::Input,
        "forward" => NfHook::Forward,
        "output" => NfHook::Output,
        "postrouting" => NfHook::Postrouting,
        "egress" => NfHook::Egress,
        _ => return None,
    })
}

fn kind(text: &str) -> Option<ChainKind> {
    Some(match text {
        "filter" => ChainKind::Filter,
        "nat" => ChainKind::Nat,
        "route" => ChainKind::Route,
        _ => return None,
    })
}

fn policy(text: &str) -> Option<Policy> {
    match text {
        "accept" => Some(Policy::Accept),
        "drop" => Some(Policy::Drop),
        _ => None,
    }
}

/// A base chain's place; `None` when a part is not known.
fn base_of(
    chain_kind: &str,
    hook_name: &str,
    priority: i64,
    policy_name: Option<&str>,
    devices: Vec<NamePattern>,
) -> Option<Base> {
    Some(Base {
        kind: kind(chain_kind)?,
        hook: hook(hook_name)?,
        priority: i32::try_from(priority).ok()?,
        policy: match policy_name {
            Some(name) => policy(name)?,
            None => Policy::Accept,
        },
        devices,
    })
}

/// NF_IP_PRI_* and NF_BR_PRI_* by nft's names.
fn priority(name: &str, family: Family) -> Option<i64> {
    let bridge = family == Family::Bridge;
    Some(match name {
        "raw" if !bridge => -300,
        "mangle" if !bridge => -150,
        "dstnat" => {
            if bridge {
                -300
            } else {
                -100
            }
        }
        "filter" => {
            if bridge {
                -200
            } else {
                0
            }
        }
        "security" if !bridge => 50,
        "out" if bridge => 100,
        "srcnat" => {
            if bridge {
                300
            } else {
                100
            }
        }
        _ => return None,
    })
}

/// A rule with one statement that is known to be a rule, but not which.
fn unread(text: &str, line: u32) -> Rule {
    Rule {
        text: text.to_string(),
        line,
        statements: vec![Statement::Unknown {
            text: text.to_string(),
        }],
        ..Rule::default()
    }
}
