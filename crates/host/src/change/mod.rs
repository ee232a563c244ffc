//! One executor a mechanism. Each can check a change without making it, name all that the change
//! may alter (so that its undo is recorded first), and make it; what the machine says afterwards
//! decides, not an exit code.

pub(crate) mod compose;
pub(crate) mod conntrack;
pub(crate) mod files;
pub(crate) mod guard;
pub(crate) mod packages;
pub(crate) mod rules;
pub(crate) mod systemd;
pub(crate) mod ufw;

use crate::exec;
use crate::transaction::{Faults, Lock};
use portcullis_core::plan::{Action, SystemdVerb};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::io;

/// Something that a change may alter, and a rollback puts back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "touch")]
pub enum Touch {
    /// One file.
    File {
        /// Absolute path.
        path: String,
        /// Folders above it that did not exist, outermost first.
        made_folders: Vec<String>,
    },
    /// UFW: its files and its part of the packet filter.
    Ufw,
    /// The table `inet portcullis`.
    Guard,
    /// Whether a unit runs and is enabled.
    Unit {
        /// Unit name; empty: only the manager's view of the unit files.
        unit: String,
        /// What is done to it.
        verb: SystemdVerb,
    },
    /// Packages that were not installed.
    Packages {
        /// Their names.
        names: Vec<String>,
    },
    /// Connections that are cut: nothing brings them back.
    Connections,
}

/// Why a change could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("could not {doing}")]
    Io {
        /// What was attempted.
        doing: String,
        /// The system's words.
        source: io::Error,
    },
    /// A program failed.
    #[error("could not {doing}")]
    Program {
        /// What was attempted.
        doing: String,
        /// How it failed.
        source: exec::Error,
    },
    /// The change is none that portcullis makes.
    #[error("{what}: {why}")]
    Refused {
        /// File, unit or rule.
        what: String,
        /// Why not.
        why: String,
    },
    /// The program said yes, the machine says no.
    #[error("{what}: {found}")]
    ReadBack {
        /// File, unit or rule.
        what: String,
        /// What was found instead.
        found: String,
    },
}

impl Error {
    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Error::Io {
            doing: doing.into(),
            source,
        }
    }
    pub(crate) fn program(doing: impl Into<String>, source: exec::Error) -> Self {
        Error::Program {
            doing: doing.into(),
            source,
        }
    }
    pub(crate) fn refused(what: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Refused {
            what: what.into(),
            why: why.into(),
        }
    }
    pub(crate) fn read_back(what: impl Into<String>, found: impl Into<String>) -> Self {
        Error::ReadBack {
            what: what.into(),
            found: found.into(),
        }
    }

    /// The message with all its causes, for a line of text.
    pub fn full(&self) -> String {
        full(self)
    }
}

/// An error with all its causes: "could not x: y: z".
pub(crate) fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// What an executor needs to know.
pub(crate) struct Context<'a> {
    /// PID 1 is systemd.
    pub systemd: bool,
    /// The lock, to be lent to short-lived programs.
    pub lock: &'a Lock,
    /// Places to fail or die at.
    pub faults: &'a dyn Faults,
    /// Units that were started and have to stay up.
    pub started: RefCell<Vec<systemd::Started>>,
}

impl Context<'_> {
    pub(crate) fn point(&self, place: &str) -> io::Result<()> {
        self.faults.point(place)
    }
}

/// Dry run: everything that can be known to fail without changing anything. `coming` are packages
/// that earlier changes of the plan install.
pub(crate) fn check(action: &Action, coming: &[String], context: &Context) -> Result<(), Error> {
    match action {
        Action::InstallPackages { packages } => packages::check(packages),
        Action::WriteFile { path, mode, .. } => files::check(path, Some(*mode)),
        Action::RemoveFile { path } => files::check(path, None),
        Action::Ufw { op } => ufw::check(op, coming),
        Action::Guard { ruleset } => guard::check(ruleset, coming),
        Action::RemoveGuard {} => Ok(()),
        Action::Systemd { unit, .. } => systemd::check(unit, coming, context),
        Action::EditCompose {
            path,
            sha256,
            edits,
        } => compose::check(path, sha256, edits),
        Action::CutConnections { ports, udp } => conntrack::check(ports, udp),
    }
}

/// All that `action` may alter, as the machine is now.
pub(crate) fn touches(action: &Action) -> Result<Vec<Touch>, Error> {
    match action {
        Action::InstallPackages { packages } => packages::touches(packages),
        Action::WriteFile { path, .. }
        | Action::RemoveFile { path }
        | Action::EditCompose { path, .. } => files::touches(path),
        Action::Ufw { .. } => Ok(vec![Touch::Ufw]),
        Action::Guard { .. } | Action::RemoveGuard {} => Ok(vec![Touch::Guard]),
        Action::Systemd { unit, verb } => Ok(vec![Touch::Unit {
            unit: unit.clone(),
            verb: *verb,
        }]),
        Action::CutConnections { .. } => Ok(vec![Touch::Connections]),
    }
}

/// Makes the change and reads it back.
pub(crate) fn perform(action: &Action, context: &Context) -> Result<(), Error> {
    match action {
        Action::InstallPackages { packages } => packages::install(packages),
        Action::WriteFile {
            path,
            content,
            mode,
        } => files::write(path, content, *mode, context),
        Action::RemoveFile { path } => files::delete(path),
        Action::Ufw { op } => ufw::perform(op, context),
        Action::Guard { ruleset } => guard::load(ruleset, context),
        Action::RemoveGuard {} => guard::remove(context),
        Action::Systemd { unit, verb } => systemd::perform(unit, *verb, context),
        Action::EditCompose {
            path,
            sha256,
            edits,
        } => compose::edit(path, sha256, edits),
        Action::CutConnections { ports, udp } => conntrack::cut(ports, udp),
    }
}
