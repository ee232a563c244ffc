//! One error type for the whole command line: what happened, what it means, what to do.

use portcullis_core::text::{self, escape};
use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;

/// Exit codes, the contract with scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Nothing to complain about.
    Clean = 0,
    /// Findings at or above `--fail-on`, drift, a failed verify.
    Findings = 1,
    /// Usage, or input that cannot be read.
    Usage = 2,
    /// `plan`: changes are pending.
    Pending = 3,
    /// Changes were rolled back.
    RolledBack = 4,
    /// No sure answer: privilege missing, an inconclusive scan.
    Unsure = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// An error as the operator reads it.
#[derive(Debug)]
pub struct CliError {
    what: String,
    causes: Vec<String>,
    hint: Option<String>,
    exit: Exit,
}

impl CliError {
    /// Bad usage or unreadable input.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// Something that leaves the answer open.
    pub fn unsure(what: impl Into<String>) -> Self {
        Self::new(Exit::Unsure, what)
    }

    /// Any other failure, with its exit code.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        CliError {
            what: what.into(),
            causes: Vec::new(),
            hint: None,
            exit,
        }
    }

    /// Adds the chain of causes.
    pub fn because(mut self, source: &dyn Error) -> Self {
        let mut next = Some(source);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Adds one more cause in words.
    pub fn detail(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The text for standard error, escaped.
    pub fn render(&self) -> String {
        let mut text = format!("error: {}\n", clean(&self.what));
        for cause in &self.causes {
            let _ = writeln!(text, "  because: {}", clean(cause));
        }
        if let Some(hint) = &self.hint {
            // Our own words, and commands that are of no use when cut.
            let _ = writeln!(text, "  do: {}", lines(hint, escape));
        }
        text
    }
}

/// Escapes what could steer a terminal, and cuts what is long, line by line.
fn clean(text: &str) -> String {
    lines(text, text::clean)
}

fn lines(text: &str, safe: fn(&str) -> String) -> String {
    text.lines().map(safe).collect::<Vec<_>>().join("\n  ")
}
