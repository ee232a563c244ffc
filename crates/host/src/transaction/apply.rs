//! From a plan to its last change read back.

use super::errors::{not_prepared, sentences};
use super::faults::{Faults, NoFaults};
use super::history::{open_ones, phase, remaining};
use super::journal::{Journal, Record};
use super::recover::recover_locked;
use super::rollback::{self, Manner};
use super::state::{Lock, State};
use super::touched::changed_since;
use super::wait::keep;
use super::{ApplyError, Confirm, Event, Phase, Progress, TransactionId, Why};
use super::{clock, snapshot, watchdog, wayin};
use crate::change::{self, Context, Touch, files, full, systemd, ufw};
use nix::fcntl::posix_fallocate;
use portcullis_core::facts_hash;
use portcullis_core::host::Host;
use portcullis_core::plan::{Action, Plan};
use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the lock says while changes are made.
pub(super) const PURPOSE: &str = "apply";
/// Installing packages may take this long before the watchdog fires.
const INSTALL: Duration = Duration::from_secs(900);
/// Making the changes may take this long at least, even if the window to confirm is shorter.
const CHANGES: Duration = Duration::from_secs(20);
/// Room on the disk that a rollback frees first, bytes, besides the size of what it restores.
const BALLAST: u64 = 1024 * 1024;
/// How a plan is applied.
#[derive(Clone)]
pub struct ApplyOptions<'a> {
    /// The state folder ([`super::DEFAULT_STATE_DIR`]).
    pub state_dir: PathBuf,
    /// The program that watchdogs run; its `main` calls [`super::hidden()`] first. It is copied into
    /// the state folder.
    pub exe: PathBuf,
    /// What the transaction waits for at its end.
    pub confirm: Confirm,
    /// Go on although the plan would lock out somebody who is connected.
    pub assume_console: bool,
    /// Faults for tests.
    pub faults: &'a dyn Faults,
}
impl ApplyOptions<'_> {
    /// The usual way: two minutes to confirm, this very program as watchdog.
    ///
    /// # Errors
    /// When the path of the running program cannot be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state_dir: super::DEFAULT_STATE_DIR.into(),
            exe: std::env::current_exe()?,
            confirm: Confirm::within(Duration::from_secs(120)),
            assume_console: false,
            faults: &NoFaults,
        })
    }
}
/// How an apply ended that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The plan is empty.
    NothingToDo,
    /// The changes are made; they last only if confirmed.
    AwaitingConfirm {
        /// Which.
        id: TransactionId,
        /// Time to confirm in.
        within: Duration,
    },
    /// The changes are made and kept: no confirmation was asked for.
    Kept {
        /// Which.
        id: TransactionId,
    },
}
/// Applies a plan. `observe` gives the facts as they are when it is called: before the changes
/// (against [`Plan::made_from`]) and after them.
pub fn apply(
    plan: &Plan,
    options: &ApplyOptions<'_>,
    observe: &dyn Fn() -> Host,
    progress: &mut dyn Progress,
) -> Result<Outcome, ApplyError> {
    if plan.is_empty() {
        return Ok(Outcome::NothingToDo);
    }
    let state = State::open(&options.state_dir).map_err(not_prepared("open the state folder"))?;
    let lock = state.lock(PURPOSE, Duration::from_millis(300))?;
    let open = open_ones(&state).map_err(not_prepared("read the state folder"))?;
    for (id, read) in &open {
        let remaining = remaining(&read.records);
        if phase(&read.records) == Phase::Waiting && !remaining.is_zero() {
            return Err(ApplyError::Pending { id: *id, remaining });
        }
        progress.event(Event::Recovering(*id));
    }
    recover_locked(&state, &lock, false, options.faults).map_err(ApplyError::Unfinished)?;
    let host = observe();
    if facts_hash(&host) != plan.made_from {
        return Err(ApplyError::Stale);
    }
    let locked = wayin::before(plan, &host);
    if !locked.is_empty() {
        if !options.assume_console {
            return Err(ApplyError::LockOut(locked));
        }
        let note = format!(
            "going on although {}: you have a console",
            sentences(&locked)
        );
        progress.event(Event::Note(&note));
    }
    let mut work = match prepare(plan, options, &state, &lock, &host, progress) {
        Ok(work) => work,
        Err((id, error)) => {
            if let Some(id) = id {
                abandon(&state, id);
            }
            return Err(error);
        }
    };
    let made = make(&mut work, observe, &host, progress);
    let id = work.id;
    let result = made.and_then(|()| work.finish());
    match result {
        Ok(outcome) => {
            progress.event(Event::Applied);
            Ok(outcome)
        }
        Err(what) => {
            drop(work);
            let why = Why::Failed { what: what.clone() };
            progress.event(Event::RollingBack { why: &why });
            match rollback::run(&state, &lock, id, &why, &Manner::default(), options.faults) {
                Ok(left) => Err(ApplyError::Failed { id, what, left }),
                Err(problems) => Err(ApplyError::FailedOpen { id, what, problems }),
            }
        }
    }
}
/// A transaction whose way back is armed.
struct Work<'a> {
    plan: &'a Plan,
    options: &'a ApplyOptions<'a>,
    state: &'a State,
    context: Context<'a>,
    id: TransactionId,
    folder: PathBuf,
    journal: Journal,
    exe: PathBuf,
    /// Watchdogs armed so far; the last one is in charge.
    armed: Vec<Record>,
    deadline: u64,
    /// Connections open when the changes were complete.
    sessions: Vec<portcullis_core::host::Session>,
}
type Unprepared = (Option<TransactionId>, ApplyError);
fn prepare<'a>(
    plan: &'a Plan,
    options: &'a ApplyOptions<'a>,
    state: &'a State,
    lock: &'a Lock,
    host: &Host,
    progress: &mut dyn Progress,
) -> Result<Work<'a>, Unprepared> {
    let early = |error| (None, error);
    let exe = state
        .keep_program(&options.exe)
        .map_err(not_prepared("copy this program for the watchdog"))
        .map_err(early)?;
    let id = state
        .begin()
        .map_err(not_prepared("begin a transaction"))
        .map_err(early)?;
    let late = |error| (Some(id), error);
    let folder = state.transaction(id);
    let journal = Journal::create(
        &state.journal(id),
        &Record::Begin {
            schema: super::JOURNAL_SCHEMA,
            id,
            at: clock::wall(),
            boot_id: clock::boot_id(),
            plan: Box::new(plan.clone()),
            sessions: host.sessions.clone(),
            confirm: options.confirm.clone(),
        },
        options.faults,
    )
    .map_err(not_prepared("write the journal"))
    .map_err(late)?;
    files::sync_parent(&state.journal(id))
        .map_err(not_prepared("write the journal"))
        .map_err(late)?;
    let mut work = Work {
        plan,
        options,
        state,
        context: Context {
            systemd: systemd::runs(),
            lock,
            faults: options.faults,
            started: RefCell::default(),
        },
        id,
        folder,
        journal,
        exe,
        armed: vec![],
        deadline: 0,
        sessions: vec![],
    };
    let count = work
        .snapshot(0)
        .map_err(not_prepared("make the snapshot"))
        .map_err(late)?;
    progress.event(Event::Snapshot { files: count });
    watchdog::arm_boot(state, &work.exe)
        .map_err(not_prepared("arm the rollback at boot"))
        .map_err(late)?;
    work.arm(work.time_for_changes(0), progress)
        .map_err(not_prepared("arm the watchdog"))
        .map_err(late)?;
    let mut coming: Vec<String> = vec![];
    for change in &plan.changes {
        change::check(&change.action, &coming, &work.context)
            .map_err(not_prepared("make a change of the plan"))
            .map_err(late)?;
        if let Action::InstallPackages { packages } = &change.action {
            coming.extend(packages.iter().cloned());
        }
    }
    progress.event(Event::Checked);
    Ok(work)
}
/// Leaves no trace of a transaction that changed nothing.
fn abandon(state: &State, id: TransactionId) {
    if let Ok(read) = super::journal::read(&state.journal(id)) {
        rollback::stand_down(&read.records);
    }
    let _ = watchdog::disarm_boot();
    let _ = fs::remove_dir_all(state.transaction(id));
}
/// Makes every change. An error says what failed.
fn make(
    work: &mut Work<'_>,
    observe: &dyn Fn() -> Host,
    before: &Host,
    progress: &mut dyn Progress,
) -> Result<(), String> {
    let plan = work.plan;
    let of = plan.changes.len();
    for (index, change) in plan.changes.iter().enumerate() {
        progress.event(Event::Changing {
            number: index + 1,
            of,
            change,
        });
        work.in_time()?;
        // Before each change, for the next one to the same files would hide it.
        work.still_as_made()?;
        work.one(index, &change.action)
            .map_err(|error| format!("change {} of {of}: {error}", index + 1))?;
        progress.event(Event::Changed(change));
        if matches!(change.action, Action::InstallPackages { .. }) {
            work.snapshot(1)
                .map_err(|error| format!("the snapshot after the installation: {error}"))?;
            work.arm(work.time_for_changes(index + 1), progress)
                .map_err(|error| format!("the watchdog: {error}"))?;
        }
    }
    work.in_time()?;
    // Whoever was connected can still open a new connection, as the rules now are in the kernel.
    let after = observe();
    let locked = wayin::now(&after, &before.sessions);
    if !locked.is_empty() {
        let text = sentences(&locked);
        if !work.options.assume_console {
            return Err(format!("after the changes {text}"));
        }
        progress.event(Event::Note(&text));
    }
    work.sessions = after.sessions;
    systemd::all_steady(&work.context).map_err(|error| full(&error))?;
    work.still_as_made()
}
impl Work<'_> {
    fn append(&mut self, record: &Record) -> io::Result<()> {
        self.journal.append(record, self.options.faults)
    }

    /// Time until the watchdog fires, for the changes from `next` on.
    fn time_for_changes(&self, next: usize) -> Duration {
        let rest = &self.plan.changes[next..];
        let installs = rest
            .iter()
            .any(|change| matches!(change.action, Action::InstallPackages { .. }));
        let window = match &self.options.confirm {
            Confirm::Required { within } => Duration::from_millis(*within),
            Confirm::NotNeeded { .. } => Duration::ZERO,
        };
        let each = Duration::from_secs(3) * u32::try_from(rest.len()).unwrap_or(u32::MAX);
        window.max(CHANGES).max(each) + if installs { INSTALL } else { Duration::ZERO }
    }

    /// Takes a layer of the snapshot (a second time: nothing). Returns the number of files.
    fn snapshot(&mut self, layer: u32) -> Result<usize, change::Error> {
        if snapshot::folder(&self.folder, layer).exists() {
            return Ok(0);
        }
        let (snapshot, sha256) = snapshot::take(&self.folder, layer, self.plan)?;
        if layer == 0 {
            self.ballast(&snapshot)
                .map_err(|source| change::Error::io("set room aside on the disk", source))?;
        }
        self.append(&Record::Snapshot { layer, sha256 })
            .map_err(|source| change::Error::io("write the journal", source))?;
        Ok(snapshot.files.len())
    }

    /// A file that takes up as much room as a rollback may need.
    fn ballast(&self, snapshot: &snapshot::Snapshot) -> io::Result<()> {
        let mut size = BALLAST;
        for kept in snapshot.files.values() {
            if let snapshot::Kept::File { copy, .. } = kept {
                size += fs::metadata(snapshot::folder(&self.folder, 0).join(copy))?.len();
            }
        }
        let file = File::create_new(self.folder.join("ballast"))?;
        posix_fallocate(&file, 0, i64::try_from(size).unwrap_or(i64::MAX)).map_err(io::Error::from)
    }

    /// Arms a watchdog that fires in `time`, then calls the one before it off.
    fn arm(&mut self, time: Duration, progress: &mut dyn Progress) -> Result<(), change::Error> {
        let doing = |source| change::Error::io("write the journal", source);
        let now =
            clock::since_boot().map_err(|source| change::Error::io("read the clock", source))?;
        let deadline = now + clock::millis(time);
        let turn = u32::try_from(self.armed.len()).unwrap_or(u32::MAX);
        let watchdog = watchdog::arm(self.state, self.id, turn, &self.exe, deadline)?;
        progress.event(Event::Armed {
            watchdog: &watchdog,
            fires_in: time,
        });
        let record = Record::Armed {
            watchdog,
            deadline,
            boot_id: clock::boot_id(),
        };
        self.append(&record).map_err(doing)?;
        self.deadline = deadline;
        for old in &self.armed {
            if let Record::Armed { watchdog, .. } = old {
                watchdog::disarm(watchdog);
            }
        }
        self.armed.push(record);
        Ok(())
    }

    fn in_time(&self) -> Result<(), String> {
        match clock::since_boot() {
            Ok(now) if now < self.deadline => Ok(()),
            Ok(_) => Err("the changes took too long".into()),
            Err(error) => Err(format!("cannot read the clock: {error}")),
        }
    }

    fn one(&mut self, index: usize, action: &Action) -> Result<(), String> {
        let touches = change::touches(action).map_err(|error| full(&error))?;
        let lines = |error: io::Error| format!("cannot write the journal: {error}");
        self.append(&Record::Intent {
            change: index,
            touches: touches.clone(),
        })
        .map_err(lines)?;
        let point = |error: io::Error| error.to_string();
        self.context.point("before a change").map_err(point)?;
        change::perform(action, &self.context).map_err(|error| full(&error))?;
        self.context.point("after a change").map_err(point)?;
        let after = fingerprints(&touches).map_err(|error| error.to_string())?;
        self.append(&Record::Done {
            change: index,
            after,
        })
        .map_err(lines)
    }

    /// Nobody else has changed the files of this transaction since it changed them.
    fn still_as_made(&self) -> Result<(), String> {
        let read = super::journal::read(&self.state.journal(self.id))
            .map_err(|error| format!("cannot read the journal: {error}"))?;
        if read.damaged > 0 || read.torn {
            return Err("the journal is damaged".into());
        }
        let changed = changed_since(&read.records);
        if changed.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "somebody else changed {} meanwhile",
                changed.join(", ")
            ))
        }
    }

    /// All changes are made: waits for the confirmation, or keeps them.
    fn finish(&mut self) -> Result<Outcome, String> {
        let lines = |error: io::Error| format!("cannot write the journal: {error}");
        let confirm = self.options.confirm.clone();
        let applied = Record::Applied {
            at: clock::wall(),
            sessions: std::mem::take(&mut self.sessions),
        };
        match confirm {
            Confirm::Required { within } => {
                let within = Duration::from_millis(within);
                self.arm(within, &mut super::Silent)
                    .map_err(|error| full(&error))?;
                self.append(&applied).map_err(lines)?;
                Ok(Outcome::AwaitingConfirm {
                    id: self.id,
                    within,
                })
            }
            Confirm::NotNeeded { why } => {
                self.append(&applied).map_err(lines)?;
                self.append(&Record::Confirmed {
                    by: why,
                    at: clock::wall(),
                })
                .map_err(lines)?;
                keep(self.state, self.id, &self.armed);
                Ok(Outcome::Kept { id: self.id })
            }
        }
    }
}
/// What the files touched hold now.
fn fingerprints(touches: &[Touch]) -> io::Result<Vec<(String, Option<String>)>> {
    let mut after = vec![];
    let mut add = |path: &str| -> io::Result<()> {
        after.push((path.to_owned(), files::fingerprint(Path::new(path))?));
        Ok(())
    };
    for touch in touches {
        match touch {
            Touch::File { path, .. } => add(path)?,
            Touch::Ufw => {
                for path in ufw::WRITTEN {
                    add(path)?;
                }
            }
            _ => {}
        }
    }
    Ok(after)
}
/// Whether a plan, once applied, may bear on who gets in over SSH. If not, a confirmation proves
/// nothing that was in doubt.
pub fn bears_on_access(plan: &Plan) -> bool {
    plan.changes.iter().any(|change| {
        matches!(
            change.action,
            Action::Ufw { .. } | Action::Guard { .. } | Action::RemoveGuard {}
        )
    })
}
