//! What iptables-save prints, taken apart, and a rule of it as a line for iptables-restore.

use std::fmt::Write as _;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) chain: String,
    /// `[packets:bytes]`, or empty.
    pub(super) counters: String,
    /// What follows `-A CHAIN `.
    pub(super) spec: String,
}

impl Rule {
    /// The chain that it leads to, or its target.
    fn target(&self) -> Option<&str> {
        let mut words = self.spec.split(' ');
        while let Some(word) = words.next() {
            // A comment may hold anything: step over quoted words.
            if word.starts_with('"') {
                let mut word = word;
                while !(word.len() > 1 && word.ends_with('"') && !word.ends_with("\\\"")) {
                    word = words.next()?;
                }
            } else if word == "-j" || word == "-g" {
                return words.next();
            }
        }
        None
    }
    pub(super) fn leads_to_ufw(&self) -> bool {
        self.target().is_some_and(is_ufw)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// `-` for a user chain.
    pub(super) policy: String,
    pub(super) counters: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) chains: Vec<Chain>,
    pub(super) rules: Vec<Rule>,
}

impl Table {
    pub(super) fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }
    pub(super) fn rules_of<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(move |rule| rule.chain == chain)
    }
}

pub(super) fn is_ufw(chain: &str) -> bool {
    chain.starts_with("ufw-") || chain.starts_with("ufw6-")
}

pub(super) fn parse(text: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = vec![];
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table {
                name: name.trim().to_owned(),
                ..Table::default()
            });
            continue;
        }
        let Some(table) = tables.last_mut() else {
            continue;
        };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let mut next = || words.next().unwrap_or_default().to_owned();
            table.chains.push(Chain {
                name: next(),
                policy: next(),
                counters: next(),
            });
            continue;
        }
        let (counters, rule) = match line.split_once("] ") {
            Some((counters, rule)) if line.starts_with('[') => (format!("{counters}]"), rule),
            _ => (String::new(), line),
        };
        if let Some((chain, spec)) = rule
            .strip_prefix("-A ")
            .map(|rule| rule.split_once(' ').unwrap_or((rule, "")))
        {
            table.rules.push(Rule {
                chain: chain.to_owned(),
                counters,
                spec: spec.to_owned(),
            });
        }
    }
    tables
}

pub(super) fn line(rule: &Rule, verb: &str, position: Option<usize>) -> String {
    let mut text = String::new();
    if verb != "-D" && !rule.counters.is_empty() {
        text.push_str(&rule.counters);
        text.push(' ');
    }
    text.push_str(verb);
    text.push(' ');
    text.push_str(&rule.chain);
    if let Some(position) = position {
        let _ = write!(text, " {position}");
    }
    if !rule.spec.is_empty() {
        text.push(' ');
        text.push_str(&rule.spec);
    }
    text
}
