//! From the last change to a decision: a confirmation, or the wait for one.

use super::confirm::{Caller, proven};
use super::faults::{Faults, NoFaults};
use super::history::{entry, old_sessions, open_ones, phase, remaining};
use super::journal::{self, Record};
use super::recover::roll_back_unconfirmed;
use super::state::State;
use super::{ConfirmError, Phase, RollbackError, TransactionId, Why, clock, rollback};
use std::path::Path;
use std::time::Duration;

/// How often a waiting `apply` looks at the journal.
const LOOK: Duration = Duration::from_millis(100);

/// How a wait for the confirmation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Kept.
    Confirmed {
        /// By which way in.
        by: String,
    },
    /// Undone.
    RolledBack {
        /// Why.
        why: Why,
        /// What was left as it is.
        left: Vec<String>,
    },
}

/// Keeps the waiting transaction (`id`: that one and no other). Returns its number and the way in
/// that was proven.
pub fn confirm(
    state_dir: &Path,
    id: Option<TransactionId>,
    caller: &Caller,
) -> Result<(TransactionId, String), ConfirmError> {
    confirm_with(state_dir, id, caller, &NoFaults)
}

/// [`confirm`], with faults for tests.
#[doc(hidden)]
pub fn confirm_with(
    state_dir: &Path,
    id: Option<TransactionId>,
    caller: &Caller,
    faults: &dyn Faults,
) -> Result<(TransactionId, String), ConfirmError> {
    let state = State::existing(state_dir)
        .map_err(ConfirmError::Io)?
        .ok_or(ConfirmError::Nothing)?;
    let lock = state.lock("confirm", Duration::from_secs(2))?;
    let id = match id {
        Some(id) if state.journal(id).exists() => id,
        Some(id) => return Err(ConfirmError::Unknown(id)),
        None => match open_ones(&state).map_err(ConfirmError::Io)?.last() {
            Some((id, _)) => *id,
            None => return Err(ConfirmError::Nothing),
        },
    };
    let (mut journal, read) =
        journal::Journal::open(&state.journal(id)).map_err(ConfirmError::Io)?;
    let phase = phase(&read.records);
    if phase != Phase::Waiting {
        return Err(ConfirmError::NotWaiting { id, phase });
    }
    if remaining(&read.records).is_zero() {
        return Err(ConfirmError::TooLate(id));
    }
    let by = proven(caller, &old_sessions(&read.records))?;
    journal
        .append(
            &Record::Confirmed {
                by: by.clone(),
                at: clock::wall(),
            },
            faults,
        )
        .map_err(ConfirmError::Io)?;
    keep(&state, id, &read.records);
    drop(lock);
    Ok((id, by))
}

/// What follows a confirmation. All of it is tidying up: the journal has decided.
pub(super) fn keep(state: &State, id: TransactionId, records: &[Record]) {
    rollback::stand_down(records);
    let _ = std::fs::remove_file(state.transaction(id).join("ballast"));
}

/// Waits until a transaction is confirmed or rolled back. `each` is told the time left, about ten
/// times a second. When the watchdog is overdue, this process rolls back itself.
pub fn wait_for_confirm(
    state_dir: &Path,
    id: TransactionId,
    each: &mut dyn FnMut(Duration),
) -> Result<Settled, RollbackError> {
    let state = State::existing(state_dir)
        .map_err(RollbackError::Io)?
        .ok_or(RollbackError::Unknown(id))?;
    let mut overdue = 0_u32;
    loop {
        let read = journal::read(&state.journal(id)).map_err(RollbackError::Io)?;
        let entry = entry(id, &read);
        match entry.phase {
            Phase::Confirmed => {
                return Ok(Settled::Confirmed {
                    by: entry.confirmed_by.unwrap_or_default(),
                });
            }
            Phase::RolledBack => {
                return Ok(Settled::RolledBack {
                    why: entry.rolled_back.unwrap_or(Why::NotConfirmed),
                    left: entry.left,
                });
            }
            _ => {}
        }
        let left = remaining(&read.records);
        each(left);
        if left.is_zero() {
            overdue += 1;
            // Two seconds late: the watchdog is gone.
            if overdue > 20 {
                overdue = 0;
                let _ = roll_back_unconfirmed(&state, id, false);
            }
        }
        std::thread::sleep(LOOK);
    }
}
