//! What the journals say: where each transaction stands, and all of them as a history.

use super::journal::{self, Read, Record};
use super::state::State;
use super::{Phase, TransactionId, Why, clock};
use portcullis_core::host::Session;
use portcullis_core::plan::Plan;
use std::io;
use std::path::Path;
use std::time::Duration;

/// One line of the history.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its number.
    pub id: TransactionId,
    /// When it began, RFC 3339, UTC; empty when that record is damaged.
    pub at: String,
    /// Where it stands.
    pub phase: Phase,
    /// The plan; `None` when that record is damaged.
    pub plan: Option<Plan>,
    /// Number of changes made.
    pub made: usize,
    /// Number of changes begun: all that were made, and the one at which it stopped.
    pub begun: usize,
    /// The process that made the changes is gone in the middle of them. Where changes were begun, the
    /// watchdog takes them back.
    pub interrupted: bool,
    /// How it was confirmed.
    pub confirmed_by: Option<String>,
    /// Why it was rolled back.
    pub rolled_back: Option<Why>,
    /// What a rollback left.
    pub left: Vec<String>,
    /// Time left to confirm; zero when over, `None` when it does not wait.
    pub remaining: Option<Duration>,
}

pub(super) fn phase(records: &[Record]) -> Phase {
    let mut phase = Phase::Applying;
    for record in records {
        phase = match record {
            Record::Applied { .. } => Phase::Waiting,
            Record::Confirmed { .. } => Phase::Confirmed,
            Record::RollingBack { .. } => Phase::RollingBack,
            Record::RolledBack { .. } => Phase::RolledBack,
            _ => continue,
        };
    }
    phase
}

/// The latest deadline: milliseconds since boot, and of which boot.
fn deadline(records: &[Record]) -> Option<(u64, &str)> {
    records.iter().rev().find_map(|record| match record {
        Record::Armed {
            deadline, boot_id, ..
        } => Some((*deadline, boot_id.as_str())),
        _ => None,
    })
}

/// Time left until the watchdog fires; zero when over or when the machine was booted since.
pub(super) fn remaining(records: &[Record]) -> Duration {
    match (deadline(records), clock::since_boot()) {
        (Some((deadline, boot)), Ok(now)) if boot == clock::boot_id() => {
            Duration::from_millis(deadline.saturating_sub(now))
        }
        _ => Duration::ZERO,
    }
}

/// Connections that cannot confirm: open before the changes, or when they were complete.
pub(super) fn old_sessions(records: &[Record]) -> Vec<Session> {
    records
        .iter()
        .filter_map(|record| match record {
            Record::Begin { sessions, .. } | Record::Applied { sessions, .. } => Some(sessions),
            _ => None,
        })
        .flatten()
        .cloned()
        .collect()
}

/// True when a transaction needs no watchdog any more. A journal that cannot be read right now does.
pub(super) fn settled(state: &State, id: TransactionId) -> bool {
    match journal::read(&state.journal(id)) {
        Ok(read) => matches!(phase(&read.records), Phase::Confirmed | Phase::RolledBack),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

pub(super) fn read_all(state: &State) -> io::Result<Vec<(TransactionId, Read)>> {
    let mut all = vec![];
    for id in state.ids()? {
        all.push((id, journal::read(&state.journal(id))?));
    }
    Ok(all)
}

/// The transaction that waits for a confirmation, or is being made or undone.
pub(super) fn open_ones(state: &State) -> io::Result<Vec<(TransactionId, Read)>> {
    let mut all = read_all(state)?;
    all.retain(|(_, read)| !matches!(phase(&read.records), Phase::Confirmed | Phase::RolledBack));
    Ok(all)
}

/// All transactions, oldest first. An absent state folder: none.
pub fn history(state_dir: &Path) -> io::Result<Vec<Entry>> {
    let Some(state) = State::existing(state_dir)? else {
        return Ok(vec![]);
    };
    let mut entries = vec![];
    for (id, read) in read_all(&state)? {
        let mut now = entry(id, &read);
        // Whoever makes changes holds the lock until the record that ends them, so look in this order.
        if now.phase == Phase::Applying && state.free() {
            now = entry(id, &journal::read(&state.journal(id))?);
            now.interrupted = now.phase == Phase::Applying;
        }
        entries.push(now);
    }
    Ok(entries)
}

pub(super) fn entry(id: TransactionId, read: &Read) -> Entry {
    let mut entry = Entry {
        id,
        at: String::new(),
        phase: phase(&read.records),
        plan: None,
        made: 0,
        begun: 0,
        interrupted: false,
        confirmed_by: None,
        rolled_back: None,
        left: vec![],
        remaining: None,
    };
    for record in &read.records {
        match record {
            Record::Begin { at, plan, .. } => {
                entry.at.clone_from(at);
                entry.plan = Some((**plan).clone());
            }
            Record::Intent { .. } => entry.begun += 1,
            Record::Done { .. } => entry.made += 1,
            Record::Confirmed { by, .. } => entry.confirmed_by = Some(by.clone()),
            Record::RollingBack { why, .. } => entry.rolled_back = Some(why.clone()),
            Record::RolledBack { left, .. } => entry.left.clone_from(left),
            _ => {}
        }
    }
    if entry.phase == Phase::Waiting {
        entry.remaining = Some(remaining(&read.records));
    }
    entry
}
