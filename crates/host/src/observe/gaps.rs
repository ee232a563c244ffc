//! What could not be seen, collected while looking.

use portcullis_core::host::{Uncertain, Unseen};

/// The gaps of one room.
#[derive(Debug, Default)]
pub(super) struct Gaps(Vec<Unseen>);

impl Gaps {
    /// Notes one.
    pub fn add(&mut self, what: &str, why: impl Into<String>, uncertain: Uncertain) {
        self.0.push(Unseen {
            what: what.to_owned(),
            why: why.into(),
            uncertain,
        });
    }

    /// Takes over those of another room.
    pub fn extend(&mut self, other: Gaps) {
        self.0.extend(other.0);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many make every verdict uncertain.
    pub fn unsure(&self) -> usize {
        let count = |gap: &&Unseen| gap.uncertain == Uncertain::Verdicts;
        self.0.iter().filter(count).count()
    }

    /// In a fixed order, each once.
    pub fn finish(mut self) -> Vec<Unseen> {
        self.0.sort();
        self.0.dedup();
        self.0
    }

    #[cfg(test)]
    pub fn list(&self) -> &[Unseen] {
        &self.0
    }
}

/// An error with its causes, in one line.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
