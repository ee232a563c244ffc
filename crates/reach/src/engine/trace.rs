//! Why: the steps that led to a decision, kept as a tree so that 100,000 decisions share their beginnings.
use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};

use super::compile::Compiled;
use crate::ir::Policy;
use crate::{RuleRef, Step, Witness};

/// Index of a step; [`ROOT`] has none before it.
pub(super) type Node = u32;
pub(super) const ROOT: Node = 0;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum What {
    Root,
    /// Rule `index` (from 0) of a chain.
    Rule {
        table: usize,
        chain: usize,
        index: usize,
    },
    Policy {
        table: usize,
        chain: usize,
        policy: Policy,
    },
    /// A fact outside of the rules: routing, a sysctl.
    Fact(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    parent: Node,
    what: What,
    /// What it depends on, where it is not sure.
    conditions: Vec<String>,
    /// Nothing on the way here is undecided.
    sure: bool,
}

/// The steps of one question.
pub(super) struct Trace {
    entries: Vec<Entry>,
    known: HashMap<Entry, Node, Quick>,
}

/// Steps are many and their keys are our own small numbers, so a cheap hash will do: that of the compiler (FxHash).
pub(super) type Quick = std::hash::BuildHasherDefault<QuickHasher>;

#[derive(Default)]
pub(super) struct QuickHasher(u64);

impl QuickHasher {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl std::hash::Hasher for QuickHasher {
    fn finish(&self) -> u64 {
        // The table takes the low bits, the multiplication mixes the high ones.
        self.0.rotate_left(26)
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.add(u64::from(*b)));
    }
    fn write_u8(&mut self, n: u8) {
        self.add(n.into());
    }
    fn write_u32(&mut self, n: u32) {
        self.add(n.into());
    }
    fn write_u64(&mut self, n: u64) {
        self.add(n);
    }
    fn write_usize(&mut self, n: usize) {
        self.add(n as u64);
    }
    fn write_isize(&mut self, n: isize) {
        self.add(n as u64);
    }
}

impl Trace {
    pub(super) fn new() -> Self {
        let root = Entry {
            parent: ROOT,
            what: What::Root,
            conditions: vec![],
            sure: true,
        };
        Trace {
            entries: vec![root],
            known: HashMap::default(),
        }
    }
    fn after(&self, parent: Node, what: What, conditions: &[String]) -> Entry {
        Entry {
            parent,
            what,
            sure: conditions.is_empty() && self.is_sure(parent),
            conditions: conditions.to_vec(),
        }
    }
    /// A last step, which no other comes after. It has a number of its own: not looked for, since they are many.
    pub(super) fn leaf(&mut self, parent: Node, what: What, conditions: &[String]) -> Node {
        let entry = self.after(parent, what, conditions);
        self.entries.push(entry);
        self.entries.len() as Node - 1
    }
    pub(super) fn entry(&self, node: Node) -> &Entry {
        &self.entries[node as usize]
    }
    /// The step after `parent`; the same step has the same number.
    pub(super) fn step(&mut self, parent: Node, what: What, conditions: &[String]) -> Node {
        let entry = self.after(parent, what, conditions);
        let node = self.entries.len() as Node;
        match self.known.entry(entry) {
            Occupied(known) => *known.get(),
            Vacant(new) => {
                self.entries.push(new.key().clone());
                new.insert(node);
                node
            }
        }
    }
    fn way(&self, node: Node) -> Vec<&Entry> {
        let mut way = vec![];
        let mut at = node;
        while at != ROOT {
            let entry = &self.entries[at as usize];
            way.push(entry);
            at = entry.parent;
        }
        way.reverse();
        way
    }
    /// True when the way to this step has no undecided match.
    pub(super) fn is_sure(&self, node: Node) -> bool {
        self.entries[node as usize].sure
    }
    /// What the way to this step depends on.
    pub(super) fn conditions(&self, node: Node) -> Vec<String> {
        let mut out: Vec<String> = vec![];
        for text in self.way(node).iter().flat_map(|e| &e.conditions) {
            if !out.contains(text) {
                out.push(text.clone());
            }
        }
        out
    }
    pub(super) fn witness(&self, node: Node, tables: &[Compiled<'_>]) -> Witness {
        let mut steps: Vec<Step> = self
            .way(node)
            .into_iter()
            .map(|e| tell(&e.what, tables))
            .collect();
        let Some(last) = steps.pop() else {
            return Witness {
                rule: "no rule stands in the way".into(),
                ..Witness::default()
            };
        };
        Witness {
            rule: last.text,
            at: last.at,
            path: steps,
        }
    }
}

fn tell(what: &What, tables: &[Compiled<'_>]) -> Step {
    let place = |table: usize, chain: usize, position: usize| -> RuleRef {
        let table = tables[table].table;
        table.place(&table.chains[chain].name, position as u32)
    };
    match what {
        What::Root => Step {
            at: None,
            text: String::new(),
        },
        What::Rule {
            table,
            chain,
            index,
        } => Step {
            at: Some(place(*table, *chain, index + 1)),
            text: tables[*table].table.chains[*chain].rules[*index]
                .text
                .clone(),
        },
        What::Policy {
            table,
            chain,
            policy,
        } => Step {
            at: Some(place(*table, *chain, 0)),
            text: match policy {
                Policy::Accept => "policy accept".into(),
                Policy::Drop => "policy drop".into(),
            },
        },
        What::Fact(text) => Step {
            at: None,
            text: text.clone(),
        },
    }
}
