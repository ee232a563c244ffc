//! What is wrong with a policy, where, and what to write instead.

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// The kind of a fault, for tests and scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Not TOML.
    Syntax,
    /// A key that no policy has.
    UnknownKey,
    /// A key that must be there.
    MissingKey,
    /// A value of another type.
    WrongType,
    /// `version` is not 1.
    Version,
    /// A port outside 1…65535, or a port range that runs backwards.
    BadPort,
    /// Not an address, network or range.
    BadAddress,
    /// A network with host bits set.
    HostBits,
    /// A zone or word that does not exist.
    UnknownName,
    /// A service that the catalog does not have.
    UnknownService,
    /// A number or duration out of its range, or a word that is not one of the choices.
    BadValue,
    /// The same port, protocol and source twice.
    Duplicate,
    /// Two parts of the policy want different things.
    Contradiction,
    /// The policy would shut SSH.
    ShutsSsh,
}

/// One fault of a policy.
#[derive(Debug, Clone)]
pub struct PolicyError {
    /// What kind.
    pub fault: Fault,
    message: String,
    label: String,
    span: Range<usize>,
    /// A second place that belongs to it.
    other: Option<(Range<usize>, String)>,
    hint: Option<String>,
    source: Arc<NamedSource<String>>,
}

impl PolicyError {
    pub(super) fn new(
        source: &Arc<NamedSource<String>>,
        fault: Fault,
        span: Range<usize>,
        message: String,
        label: &str,
    ) -> Self {
        // miette refuses to print a span outside its source.
        let end = source.inner().len();
        let span = span.start.min(end)..span.end.min(end);
        PolicyError {
            fault,
            message,
            label: label.to_owned(),
            span,
            other: None,
            hint: None,
            source: source.clone(),
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn also(mut self, span: Range<usize>, label: &str) -> Self {
        self.other = Some((span, label.to_owned()));
        self
    }

    /// Line of the fault, 1 for the first.
    pub fn line(&self) -> usize {
        self.source.inner()[..self.span.start]
            .bytes()
            .filter(|b| *b == b'\n')
            .count()
            + 1
    }

    /// Column of the fault in characters, 1 for the first.
    pub fn column(&self) -> usize {
        let before = &self.source.inner()[..self.span.start];
        before.rsplit('\n').next().unwrap_or("").chars().count() + 1
    }

    /// The text that the caret points at.
    pub fn excerpt(&self) -> &str {
        self.source.inner().get(self.span.clone()).unwrap_or("")
    }

    /// What to write instead, if known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PolicyError {}

impl Diagnostic for PolicyError {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&*self.source)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let main = LabeledSpan::new_primary_with_span(Some(self.label.clone()), self.span.clone());
        let other = self
            .other
            .iter()
            .map(|(span, label)| LabeledSpan::new_with_span(Some(label.clone()), span.clone()));
        Some(Box::new(std::iter::once(main).chain(other)))
    }
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.hint
            .as_ref()
            .map(|h| Box::new(h) as Box<dyn fmt::Display>)
    }
}

/// All faults of a policy; never empty.
#[derive(Debug, Clone, thiserror::Error, Diagnostic)]
#[error("{name} cannot be used: {} {}", errors.len(), if errors.len() == 1 { "fault" } else { "faults" })]
pub struct PolicyErrors {
    /// The policy's name.
    pub name: String,
    /// The faults, in the order of the text.
    #[related]
    pub errors: Vec<PolicyError>,
}

impl PolicyErrors {
    pub(super) fn new(name: &str, mut errors: Vec<PolicyError>) -> Self {
        errors.sort_by_key(|e| (e.span.start, e.span.end));
        PolicyErrors {
            name: name.to_owned(),
            errors,
        }
    }
}
