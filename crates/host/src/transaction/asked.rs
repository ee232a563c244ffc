//! Rollbacks that somebody asks for: of one transaction, or of all and every trace.

use super::faults::{Faults, NoFaults};
use super::history::{phase, read_all};
use super::journal::Read;
use super::rollback::{self, Manner};
use super::state::State;
use super::touched::changed_since;
use super::{Phase, RollbackError, TransactionId, Why};
use std::path::Path;
use std::time::Duration;

/// How the user wants a rollback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RollbackOptions {
    /// Remove the packages that the transaction installed, with their configuration.
    pub purge_packages: bool,
    /// Overwrite files that somebody changed since; their versions are kept in the state folder.
    pub force: bool,
}

/// Rolls a transaction back because somebody asks for it: the one named, else the one that waits,
/// else the last that stands. Returns its number and what was left as it is.
pub fn rollback(
    state_dir: &Path,
    id: Option<TransactionId>,
    options: RollbackOptions,
) -> Result<(TransactionId, Vec<String>), RollbackError> {
    rollback_with(state_dir, id, options, &NoFaults)
}

/// [`rollback()`], with faults for tests.
#[doc(hidden)]
pub fn rollback_with(
    state_dir: &Path,
    id: Option<TransactionId>,
    options: RollbackOptions,
    faults: &dyn Faults,
) -> Result<(TransactionId, Vec<String>), RollbackError> {
    let state = State::existing(state_dir)
        .map_err(RollbackError::Io)?
        .ok_or(RollbackError::Nothing)?;
    let lock = state.lock("rollback", Duration::from_secs(5))?;
    let all = read_all(&state).map_err(RollbackError::Io)?;
    let standing: Vec<&(TransactionId, Read)> = all
        .iter()
        .filter(|(_, read)| phase(&read.records) != Phase::RolledBack)
        .collect();
    let asked = match id {
        None => *standing.last().ok_or(RollbackError::Nothing)?,
        Some(id) => all
            .iter()
            .find(|(number, _)| *number == id)
            .ok_or(RollbackError::Unknown(id))?,
    };
    let (id, read) = (asked.0, &asked.1);
    if phase(&read.records) == Phase::RolledBack {
        return Err(RollbackError::Already(id));
    }
    if let Some((later, _)) = standing.last()
        && *later != id
    {
        return Err(RollbackError::NotTheLatest { id, later: *later });
    }
    if phase(&read.records) == Phase::Confirmed && !options.force {
        let paths = changed_since(&read.records);
        if !paths.is_empty() {
            return Err(RollbackError::ChangedSince { id, paths });
        }
    }
    let manner = Manner {
        purge: options.purge_packages,
        early: false,
    };
    rollback::run(&state, &lock, id, &Why::Asked, &manner, faults)
        .map(|left| (id, left))
        .map_err(|problems| RollbackError::Incomplete { id, problems })
}

/// Rolls back every transaction that stands, the latest first, and removes the state folder: the
/// machine is as before the first apply, but for what is returned. An error leaves the transactions
/// before the one concerned, and the folder, as they are.
pub fn remove(state_dir: &Path, options: RollbackOptions) -> Result<Vec<String>, RollbackError> {
    let mut left = vec![];
    loop {
        match rollback(state_dir, None, options) {
            Ok((_, more)) => {
                for line in more {
                    if !left.contains(&line) {
                        left.push(line);
                    }
                }
            }
            Err(RollbackError::Nothing) => break,
            Err(error) => return Err(error),
        }
    }
    let Some(state) = State::existing(state_dir).map_err(RollbackError::Io)? else {
        return Ok(left);
    };
    let _lock = state.lock("remove", Duration::from_secs(5))?;
    if options.purge_packages {
        // Rollbacks that nobody had asked for left the packages of their transactions.
        let installed = rollback::installed(&read_all(&state).map_err(RollbackError::Io)?);
        if !installed.is_empty() {
            crate::change::packages::purge(&installed).map_err(|error| {
                RollbackError::Incomplete {
                    id: TransactionId(0),
                    problems: vec![error.full()],
                }
            })?;
            left.retain(|line| !line.starts_with(rollback::PACKAGES_STAY));
        }
    }
    let foreign = state
        .ids()
        .map_err(RollbackError::Io)?
        .into_iter()
        .any(|id| state.transaction(id).join("foreign").exists());
    if foreign {
        left.push(format!(
            "{} stays: it holds files that somebody else had changed",
            state_dir.display()
        ));
    } else {
        std::fs::remove_dir_all(state_dir).map_err(RollbackError::Io)?;
    }
    Ok(left)
}
