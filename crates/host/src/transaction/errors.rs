//! Why a plan was not applied, confirmed or rolled back.

use super::confirm::Unproven;
use super::state::LockError;
use super::wayin::LockedOut;
use super::{Phase, TransactionId};
use std::io;
use std::time::Duration;

/// Why a plan was not applied. Whatever had been changed was rolled back, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another process is at work.
    #[error(transparent)]
    Busy(#[from] LockError),
    /// A transaction waits for its confirmation.
    #[error(
        "transaction {id} still waits for its confirmation ({} s left): `portcullis confirm` keeps it, `portcullis rollback` undoes it",
        remaining.as_secs()
    )]
    Pending {
        /// Which.
        id: TransactionId,
        /// Time left.
        remaining: Duration,
    },
    /// An unfinished transaction of an earlier run could not be rolled back.
    #[error("an earlier transaction is unfinished")]
    Unfinished(#[source] RollbackError),
    /// The machine is not as it was when the plan was made.
    #[error("the machine has changed since the plan was made: make a new plan")]
    Stale,
    /// The plan would shut out who is connected.
    #[error("the plan would lock out whoever is connected: {}", sentences(.0))]
    LockOut(Vec<LockedOut>),
    /// Nothing was changed: the preparations failed.
    #[error("nothing was changed: cannot {doing}")]
    NotPrepared {
        /// What failed.
        doing: String,
        /// How.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A change failed; all were undone.
    #[error("{what}; everything was rolled back{}", and_left(left))]
    Failed {
        /// Which transaction.
        id: TransactionId,
        /// What failed and how.
        what: String,
        /// What was left as it is.
        left: Vec<String>,
    },
    /// A change failed, and the rollback has not succeeded either; the watchdog goes on trying.
    #[error("{what}; and the rollback is not complete: {}", problems.join("; "))]
    FailedOpen {
        /// Which transaction.
        id: TransactionId,
        /// What failed and how.
        what: String,
        /// What could not be put back yet.
        problems: Vec<String>,
    },
}

pub(super) fn sentences(locked: &[LockedOut]) -> String {
    locked
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

fn and_left(left: &[String]) -> String {
    if left.is_empty() {
        String::new()
    } else {
        format!(" ({})", left.join("; "))
    }
}

pub(super) fn not_prepared<E>(doing: &str) -> impl FnOnce(E) -> ApplyError + '_
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| ApplyError::NotPrepared {
        doing: doing.to_owned(),
        source: source.into(),
    }
}

/// Why a transaction was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum ConfirmError {
    /// Nothing waits.
    #[error("nothing waits for a confirmation")]
    Nothing,
    /// There is no such transaction.
    #[error("there is no transaction {0}")]
    Unknown(TransactionId),
    /// It does not wait (any more).
    #[error(
        "transaction {id} does not wait for a confirmation: {}",
        phase_words(phase)
    )]
    NotWaiting {
        /// Which.
        id: TransactionId,
        /// What it is instead.
        phase: Phase,
    },
    /// The time is over; the rollback is due.
    #[error("the time to confirm transaction {0} is over: it is being rolled back")]
    TooLate(TransactionId),
    /// The caller's way in proves nothing.
    #[error(transparent)]
    Unproven(#[from] Unproven),
    /// Somebody else changes the machine right now.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The state folder.
    #[error("cannot use the state folder")]
    Io(#[source] io::Error),
}

fn phase_words(phase: &Phase) -> &'static str {
    match phase {
        Phase::Applying => "its changes are still being made",
        Phase::Waiting => "it waits",
        Phase::Confirmed => "it is confirmed",
        Phase::RollingBack => "it is being rolled back",
        Phase::RolledBack => "it was rolled back",
    }
}

/// Why a rollback was refused, or did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// There is nothing to roll back.
    #[error("there is nothing to roll back")]
    Nothing,
    /// There is no such transaction.
    #[error("there is no transaction {0}")]
    Unknown(TransactionId),
    /// It was rolled back before.
    #[error("transaction {0} was rolled back before")]
    Already(TransactionId),
    /// A later one builds on it.
    #[error("transaction {later} came after {id}: roll that back first")]
    NotTheLatest {
        /// The one asked for.
        id: TransactionId,
        /// The last one that stands.
        later: TransactionId,
    },
    /// Files were changed after it.
    #[error("changed since transaction {id}: {}; these changes would be lost (--force rolls back all the same, and keeps a copy)", paths.join(", "))]
    ChangedSince {
        /// Which.
        id: TransactionId,
        /// The files.
        paths: Vec<String>,
    },
    /// Not everything could be put back; it can be tried again.
    #[error("transaction {id} could not be rolled back in full: {}", problems.join("; "))]
    Incomplete {
        /// Which.
        id: TransactionId,
        /// What could not be put back.
        problems: Vec<String>,
    },
    /// Somebody else changes the machine right now.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The state folder.
    #[error("cannot use the state folder")]
    Io(#[source] io::Error),
}
