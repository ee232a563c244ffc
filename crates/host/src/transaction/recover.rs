//! Rollbacks that nobody asks for: after a crash, after a boot, and when the time to confirm is over.

use super::faults::{Faults, NoFaults};
use super::history::{open_ones, phase, remaining, settled};
use super::journal::{self, Record};
use super::rollback::{self, Manner};
use super::state::{Lock, LockError, State};
use super::{Phase, RollbackError, TransactionId, Why, apply, clock, watchdog};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Rolls back every transaction that nobody will finish: its process died, the machine was booted
/// since, or its time is over. One that waits for its confirmation is left alone. Returns the
/// numbers. `boot`: called by the boot unit, before the network is up.
pub fn recover(state_dir: &Path, boot: bool) -> Result<Vec<TransactionId>, RollbackError> {
    recover_with(state_dir, boot, &NoFaults)
}

/// [`recover`], with faults for tests.
#[doc(hidden)]
pub fn recover_with(
    state_dir: &Path,
    boot: bool,
    faults: &dyn Faults,
) -> Result<Vec<TransactionId>, RollbackError> {
    let Some(state) = State::existing(state_dir).map_err(RollbackError::Io)? else {
        return Ok(vec![]);
    };
    let lock = state.lock("recover", Duration::from_secs(20))?;
    let done = recover_locked(&state, &lock, boot, faults)?;
    if boot && done.is_empty() {
        let _ = watchdog::disarm_boot();
    }
    Ok(done)
}

pub(super) fn recover_locked(
    state: &State,
    lock: &Lock,
    boot: bool,
    faults: &dyn Faults,
) -> Result<Vec<TransactionId>, RollbackError> {
    let mut done = vec![];
    for (id, read) in open_ones(state)
        .map_err(RollbackError::Io)?
        .into_iter()
        .rev()
    {
        if phase(&read.records) == Phase::Waiting && !remaining(&read.records).is_zero() {
            continue;
        }
        let rebooted = !read.records.iter().any(|record| {
            matches!(record, Record::Begin { boot_id, .. } if *boot_id == clock::boot_id())
        });
        let why = match phase(&read.records) {
            _ if rebooted => Why::Reboot,
            Phase::Waiting => Why::NotConfirmed,
            _ => Why::Interrupted,
        };
        let manner = Manner {
            purge: false,
            early: boot && rebooted,
        };
        rollback::run(state, lock, id, &why, &manner, faults)
            .map_err(|problems| RollbackError::Incomplete { id, problems })?;
        done.push(id);
    }
    Ok(done)
}

/// What a watchdog does when it fires. `deadline_counts`: it does nothing before the latest
/// deadline of the journal (a later watchdog is in charge then).
pub(super) fn roll_back_unconfirmed(
    state: &State,
    id: TransactionId,
    deadline_counts: bool,
) -> Result<(), RollbackError> {
    let read = match journal::read(&state.journal(id)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(RollbackError::Io)?,
    };
    if matches!(phase(&read.records), Phase::Confirmed | Phase::RolledBack) {
        return Ok(());
    }
    // Timers may fire a little early; a twentieth of a second is none too early for anybody.
    if deadline_counts && remaining(&read.records) > Duration::from_millis(50) {
        return Ok(());
    }
    let lock = take_over(state, id)?;
    let Some(lock) = lock else { return Ok(()) };
    // Confirmed while this waited for the lock?
    if settled(state, id) {
        return Ok(());
    }
    let why = match phase(&read.records) {
        Phase::Applying => Why::Interrupted,
        _ => Why::NotConfirmed,
    };
    rollback::run(state, &lock, id, &why, &Manner::default(), &NoFaults)
        .map(drop)
        .map_err(|problems| RollbackError::Incomplete { id, problems })
}

/// The lock, for a watchdog: an `apply` that is still at it when its time is over hangs, and is
/// ended. `None`: whoever had the lock has settled the transaction.
fn take_over(state: &State, id: TransactionId) -> Result<Option<Lock>, RollbackError> {
    let purpose = format!("rollback of {id}, unconfirmed");
    match state.lock(&purpose, Duration::from_millis(300)) {
        Ok(lock) => return Ok(Some(lock)),
        Err(error @ LockError::Io { .. }) => return Err(error.into()),
        Err(LockError::Held { holder }) => {
            if let Some(holder) = holder
                && holder.purpose == apply::PURPOSE
                && holder.alive()
                && let Ok(pid) = i32::try_from(holder.pid)
            {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }
    // The programs that it started hold the lock until they end. Nobody bounds them any more, so they
    // get half a second; whatever they leave half done is put back.
    let mut wait = Duration::from_millis(500);
    for _ in 0..60 {
        match state.lock(&purpose, wait) {
            Ok(lock) => return Ok(Some(lock)),
            Err(error @ LockError::Io { .. }) => return Err(error.into()),
            Err(LockError::Held { .. }) if settled(state, id) => return Ok(None),
            Err(LockError::Held { holder }) => {
                if holder.is_some_and(|holder| holder.purpose == apply::PURPOSE && !holder.alive())
                {
                    state.end_borrowers();
                }
            }
        }
        wait = Duration::from_secs(2);
    }
    Ok(Some(state.lock(&purpose, Duration::from_secs(2))?))
}
