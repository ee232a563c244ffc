//! Readers of rule dumps: `iptables-save`, `nft list ruleset` (text and JSON), `ipset save`.
//!
//! None fails as a whole. What a reader does not understand stays in the ruleset as an unknown match
//! or statement with its text, so that the engine answers "maybe" there, and is told in a [`Note`].
//! Input may be truncated, hostile or huge: time is linear, and beyond [`MAX_RULES`] rules or
//! [`MAX_ELEMENTS`] set elements a dump counts as cut off there.
use crate::ir::{Chain, Match, Rule, RuleVerdict, Statement, Table};

mod combine;
mod ipset;
mod nft;
mod value;
mod xtables;

pub use combine::{Dumps, combine};
pub use ipset::ipset_save;
pub use nft::nft;
pub use xtables::iptables_save;

/// Rules read from one dump at most; of what follows only its existence is kept.
pub const MAX_RULES: usize = 1_000_000;
/// Set elements (of all sets) read from one dump at most; the sets are marked incomplete beyond.
pub const MAX_ELEMENTS: usize = 4_000_000;
/// Tables read from one dump at most; what follows may do anything.
pub const MAX_TABLES: usize = 2_000;
/// Notes of one dump at most; the last one then says how many more there were.
pub const MAX_NOTES: usize = 1_000;

/// What a reader could not make sense of, or what its input says about itself; kept for the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Line in the input, 1 for the first; 0 when it is about the whole input.
    pub line: u32,
    /// What it was. May quote the input, which is untrusted text.
    pub text: String,
}

/// Collects notes, a bounded number of bounded length.
#[derive(Debug, Default)]
struct Notes {
    list: Vec<Note>,
    more: usize,
}

impl Notes {
    fn add(&mut self, line: u32, text: impl Into<String>) {
        if self.list.len() < MAX_NOTES - 1 {
            self.list.push(Note {
                line,
                text: clip(text.into()),
            });
        } else {
            self.more += 1;
        }
    }
    fn finish(mut self) -> Vec<Note> {
        if self.more > 0 {
            let text = format!("{} more notes", self.more);
            self.list.push(Note { line: 0, text });
        }
        self.list
    }
}

/// At most 240 characters of a text.
fn clip(mut text: String) -> String {
    if let Some((at, _)) = text.char_indices().nth(240) {
        text.truncate(at);
        text.push('…');
    }
    text
}

/// A rule that stands for rules nobody could read: it may match or not, and do anything.
fn anything(text: &str, line: u32) -> Rule {
    Rule {
        text: text.to_string(),
        line,
        statements: vec![Statement::Unknown {
            text: text.to_string(),
        }],
        ..Rule::default()
    }
}

/// Ends every chain of the table with a rule that may do anything: the dump breaks off inside it.
fn cut_off(table: &mut Table, line: u32) {
    for chain in &mut table.chains {
        end_with_anything(chain, line);
    }
}

fn end_with_anything(chain: &mut Chain, line: u32) {
    const CUT: &str = "(the dump breaks off here)";
    if chain.rules.last().is_none_or(|r| r.text != CUT) {
        chain.rules.push(anything(CUT, line));
    }
}

fn verdict(v: RuleVerdict) -> Statement {
    Statement::Verdict(v)
}

fn unknown_match(text: &str) -> Statement {
    Statement::Match(Match::Unknown {
        text: text.to_string(),
    })
}
