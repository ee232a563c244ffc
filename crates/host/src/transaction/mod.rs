//! A plan being applied: lock, snapshot, journal, watchdog, changes, confirmation, rollback.
//!
//! The order is the promise: no change is made before its undo is on the disk, and none at all
//! before a way back is armed outside this process. Nothing is kept until somebody who came in
//! after the changes says so. Everything else, anywhere, ends in a rollback.

mod apply;
mod asked;
pub(crate) mod clock;
mod confirm;
mod errors;
mod faults;
mod hidden;
mod history;
mod journal;
mod recover;
mod rollback;
mod snapshot;
mod state;
mod touched;
mod wait;
mod watchdog;
mod wayin;

pub use apply::{ApplyOptions, Outcome, apply, bears_on_access};
pub use asked::{RollbackOptions, remove, rollback, rollback_with};
pub use confirm::{Caller, Unproven};
pub use errors::{ApplyError, ConfirmError, RollbackError};
pub use faults::{Faults, NoFaults};
pub use hidden::{ENTRY, hidden};
pub use history::{Entry, history};
pub use journal::{JOURNAL_SCHEMA, Read, Record, Watchdog};
pub use recover::{recover, recover_with};
pub use state::{DEFAULT_STATE_DIR, Holder, Lock, LockError, State};
pub use wait::{Settled, confirm, confirm_with, wait_for_confirm};
pub use watchdog::BOOT_UNIT;
pub use wayin::{LockedOut, before as locked_out_by, now as locked_out};

use history::{phase, settled};
use portcullis_core::plan::Change;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Lowercase hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
/// A transaction's number: 1, 2, 3… on each machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransactionId(pub u32);
impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl std::str::FromStr for TransactionId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}
/// What a transaction waits for once its changes are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "confirm")]
pub enum Confirm {
    /// Somebody's confirmation within this time, else it is rolled back.
    Required {
        /// Milliseconds.
        within: u64,
    },
    /// Nothing: it is kept when all changes were read back.
    NotNeeded {
        /// Why, for the journal.
        why: String,
    },
}
impl Confirm {
    /// A confirmation within this time.
    pub fn within(time: Duration) -> Self {
        Confirm::Required {
            within: clock::millis(time),
        }
    }
}
/// Why a transaction is rolled back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "why")]
pub enum Why {
    /// Somebody asked for it.
    Asked,
    /// Nobody confirmed in time.
    NotConfirmed,
    /// A change could not be made, or did not do what it should.
    Failed {
        /// Which and how.
        what: String,
    },
    /// The process that made the changes ended in the middle.
    Interrupted,
    /// The machine went down before the confirmation.
    Reboot,
}
impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Asked => f.write_str("asked for"),
            Why::NotConfirmed => f.write_str("nobody confirmed in time"),
            Why::Failed { what } => f.write_str(what),
            Why::Interrupted => {
                f.write_str("the process that made the changes ended in the middle")
            }
            Why::Reboot => f.write_str("the machine went down before the confirmation"),
        }
    }
}
/// Where a transaction stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Changes are being made, or were when the process died.
    Applying,
    /// All changes are made; waiting for the confirmation.
    Waiting,
    /// Kept.
    Confirmed,
    /// A rollback has begun.
    RollingBack,
    /// Undone.
    RolledBack,
}
/// What happens while a plan is applied, for whoever shows it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// An unfinished transaction of an earlier run is rolled back first.
    Recovering(TransactionId),
    /// The snapshot is on the disk.
    Snapshot {
        /// Number of files copied.
        files: usize,
    },
    /// The way back is armed.
    Armed {
        /// How.
        watchdog: &'a Watchdog,
        /// It fires in this time.
        fires_in: Duration,
    },
    /// All changes passed their dry run.
    Checked,
    /// A change is about to be made.
    Changing {
        /// From 1.
        number: usize,
        /// Number of changes.
        of: usize,
        /// The change.
        change: &'a Change,
    },
    /// That change is made.
    Changed(&'a Change),
    /// All changes are made and read back.
    Applied,
    /// The rollback begins.
    RollingBack {
        /// Why.
        why: &'a Why,
    },
    /// Something the reader should know.
    Note(&'a str),
}
/// Shows what happens. Never asked anything.
pub trait Progress {
    /// Something happened.
    fn event(&mut self, event: Event<'_>);
}
/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;
impl Progress for Silent {
    fn event(&mut self, _event: Event<'_>) {}
}
