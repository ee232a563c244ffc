//! A plan being applied: lock, snapshot, journal, watchdog, changes, confirmation, rollback.
//!
//! The order is the promise: no change is made before its undo is on the disk, and none at all
//! before a way back is armed outside this process. Nothing is kept until somebody who came in
//! after the changes says so. Everything else, anywhere, ends in a rollback.

mod apply;
pub(crate) mod clock;
mod confirm;
mod faults;
mod journal;
mod rollback;
mod snapshot;
mod state;
mod watchdog;
mod wayin;

pub use apply::{ApplyError, ApplyOptions, Outcome, apply, bears_on_access};
pub use confirm::{Caller, Unproven};
pub use faults::{Faults, NoFaults};
pub use journal::{JOURNAL_SCHEMA, Read, Record, Watchdog};
pub use state::{DEFAULT_STATE_DIR, Holder, Lock, LockError, State};
pub use watchdog::BOOT_UNIT;
pub use wayin::{LockedOut, before as locked_out_by, now as locked_out};

use portcullis_core::host::Session;
use portcullis_core::plan::{Change, Plan};
use rollback::Manner;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

/// First argument of the hidden commands that watchdogs run; see [`hidden`].
pub const ENTRY: &str = "__transaction";

/// How often a waiting `apply` looks at the journal.
const LOOK: Duration = Duration::from_millis(100);

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
    /// How it was confirmed.
    pub confirmed_by: Option<String>,
    /// Why it was rolled back.
    pub rolled_back: Option<Why>,
    /// What a rollback left.
    pub left: Vec<String>,
    /// Time left to confirm; zero when over, `None` when it does not wait.
    pub remaining: Option<Duration>,
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

/// How the user wants a rollback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RollbackOptions {
    /// Remove the packages that the transaction installed, with their configuration.
    pub purge_packages: bool,
    /// Overwrite files that somebody changed since; their versions are kept in the state folder.
    pub force: bool,
}

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

fn phase(records: &[Record]) -> Phase {
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
fn remaining(records: &[Record]) -> Duration {
    match (deadline(records), clock::since_boot()) {
        (Some((deadline, boot)), Ok(now)) if boot == clock::boot_id() => {
            Duration::from_millis(deadline.saturating_sub(now))
        }
        _ => Duration::ZERO,
    }
}

/// Connections that cannot confirm: open before the changes, or when they were complete.
fn old_sessions(records: &[Record]) -> Vec<Session> {
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

fn stand_down(records: &[Record]) {
    rollback::stand_down(records);
}

/// True when a transaction needs no watchdog any more. A journal that cannot be read right now does.
fn settled(state: &State, id: TransactionId) -> bool {
    match journal::read(&state.journal(id)) {
        Ok(read) => matches!(phase(&read.records), Phase::Confirmed | Phase::RolledBack),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn read_all(state: &State) -> io::Result<Vec<(TransactionId, Read)>> {
    let mut all = vec![];
    for id in state.ids()? {
        all.push((id, journal::read(&state.journal(id))?));
    }
    Ok(all)
}

/// The transaction that waits for a confirmation, or is being made or undone.
fn open_ones(state: &State) -> io::Result<Vec<(TransactionId, Read)>> {
    let mut all = read_all(state)?;
    all.retain(|(_, read)| !matches!(phase(&read.records), Phase::Confirmed | Phase::RolledBack));
    Ok(all)
}

/// All transactions, oldest first. An absent state folder: none.
pub fn history(state_dir: &Path) -> io::Result<Vec<Entry>> {
    let Some(state) = State::existing(state_dir)? else {
        return Ok(vec![]);
    };
    Ok(read_all(&state)?
        .into_iter()
        .map(|(id, read)| entry(id, &read))
        .collect())
}

fn entry(id: TransactionId, read: &Read) -> Entry {
    let mut entry = Entry {
        id,
        at: String::new(),
        phase: phase(&read.records),
        plan: None,
        made: 0,
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
    let by = confirm::proven(caller, &old_sessions(&read.records))?;
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
fn keep(state: &State, id: TransactionId, records: &[Record]) {
    stand_down(records);
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

/// Rolls a transaction back because somebody asks for it: the one named, else the one that waits,
/// else the last that stands. Returns its number and what was left as it is.
pub fn rollback(
    state_dir: &Path,
    id: Option<TransactionId>,
    options: RollbackOptions,
) -> Result<(TransactionId, Vec<String>), RollbackError> {
    rollback_with(state_dir, id, options, &NoFaults)
}

/// [`rollback`], with faults for tests.
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
        let paths = rollback::changed_since(&read.records);
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

fn recover_locked(
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
fn roll_back_unconfirmed(
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
    // The programs that it started hold the lock until they end, each within its bound.
    for _ in 0..60 {
        match state.lock(&purpose, Duration::from_secs(2)) {
            Ok(lock) => return Ok(Some(lock)),
            Err(error @ LockError::Io { .. }) => return Err(error.into()),
            Err(LockError::Held { .. }) if settled(state, id) => return Ok(None),
            Err(LockError::Held { .. }) => {}
        }
    }
    Ok(Some(state.lock(&purpose, Duration::from_secs(2))?))
}

/// Runs a hidden command: `args` are those of the process without its name. `None`: it is none of
/// ours. Else the process ends with this exit status. A program that calls [`apply`] must call this
/// first of all, for [`ApplyOptions::exe`] is started again with these arguments:
///
/// - `__transaction rollback STATE ID`: roll back unless settled; what timers run
/// - `__transaction watchdog STATE ID DEADLINE`: start a process that does so later
/// - `__transaction watch STATE ID DEADLINE`: that process
/// - `__transaction recover STATE boot|now`
pub fn hidden(args: &[String]) -> Option<u8> {
    if args.first().map(String::as_str) != Some(ENTRY) {
        return None;
    }
    let words: Vec<&str> = args[1..].iter().map(String::as_str).collect();
    let said = |result: Result<(), String>| match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("portcullis: {error}");
            1
        }
    };
    Some(match words.as_slice() {
        ["rollback", dir, id] => said(fire(dir, id)),
        ["watchdog", ..] => said(watchdog::launch(&args[2..]).map_err(|error| error.to_string())),
        ["watch", dir, id, deadline] => said(watch(dir, id, deadline)),
        ["recover", dir, when] => {
            said(again(|| recover(Path::new(dir), *when == "boot").map(drop)))
        }
        _ => {
            eprintln!("portcullis: no such hidden command");
            2
        }
    })
}

/// Tries until it works, for a minute: a full disk or a busy packet filter may be free again.
fn again(mut work: impl FnMut() -> Result<(), RollbackError>) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..60 {
        match work() {
            Ok(()) => return Ok(()),
            Err(error) => last = crate::change::full(&error),
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Err(last)
}

fn opened(dir: &str) -> Result<State, String> {
    match State::existing(Path::new(dir)) {
        Ok(Some(state)) => Ok(state),
        Ok(None) => Err(format!("{dir} does not exist")),
        Err(error) => Err(error.to_string()),
    }
}

fn fire(dir: &str, id: &str) -> Result<(), String> {
    let state = opened(dir)?;
    let id: TransactionId = id.parse().map_err(|_| format!("{id} is no number"))?;
    again(|| roll_back_unconfirmed(&state, id, true))
}

fn watch(dir: &str, id: &str, deadline: &str) -> Result<(), String> {
    let state = opened(dir)?;
    let id: TransactionId = id.parse().map_err(|_| format!("{id} is no number"))?;
    let deadline = deadline
        .parse()
        .map_err(|_| format!("{deadline} is no number"))?;
    watchdog::watch(&state, id, deadline).map_err(|error| error.to_string())
}
