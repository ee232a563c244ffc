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

/// An error with its causes, in one line. A cause that the error has named already is not named again.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let named = cause.to_string();
        if !text.ends_with(&named) {
            text = format!("{text}: {named}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_named_once() {
        #[derive(Debug, thiserror::Error)]
        enum Fault {
            #[error("{path}: {source}")]
            Named {
                path: &'static str,
                source: std::io::Error,
            },
            #[error("no door")]
            Unnamed(#[source] std::io::Error),
        }
        let denied = || std::io::Error::other("denied");
        let named = Fault::Named {
            path: "/x",
            source: denied(),
        };
        assert_eq!(words(&named), "/x: denied");
        assert_eq!(words(&Fault::Unnamed(denied())), "no door: denied");
    }
}
