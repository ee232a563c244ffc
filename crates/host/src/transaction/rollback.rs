//! The way back. Everything in here can be stopped anywhere and done again: each step looks at the
//! machine and does what is still missing, and one step's failure does not keep the next from being
//! tried.
//!
//! What opens the door comes first (the packet filter), then files, then services.

use super::faults::Faults;
use super::journal::{self, Journal, Read, Record};
use super::snapshot::{self, Kept, Snapshot};
use super::state::{Lock, State};
use super::touched::{Then, Touched, fingerprints};
use super::{TransactionId, Why, clock, watchdog};
use crate::change::files::{self, Found};
use crate::change::rules::{self, Ip};
use crate::change::systemd::{self, UnitState};
use crate::change::{Context, full, guard, packages, ufw};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// How the line about packages begins that a rollback leaves.
pub(super) const PACKAGES_STAY: &str = "the installed packages stay";
/// Packages that some transaction installed and that are still there.
pub(super) fn installed(transactions: &[(TransactionId, Read)]) -> Vec<String> {
    let mut names: Vec<String> = transactions
        .iter()
        .flat_map(|(_, read)| Touched::of(&read.records).packages)
        .collect();
    names.sort();
    names.dedup();
    let missing = packages::missing(&names).unwrap_or_default();
    names.retain(|name| !missing.contains(name));
    names
}
/// How a rollback is done.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manner {
    /// Remove packages that the transaction installed.
    pub purge: bool,
    /// During boot, before the network: kernel state is fresh, services have not started.
    pub early: bool,
}
/// Collects what went wrong, what was left, and where the rollback may be stopped by a test.
struct Work<'a> {
    context: Context<'a>,
    left: Vec<String>,
    problems: Vec<String>,
}
impl Work<'_> {
    fn step<E: std::error::Error>(
        &mut self,
        what: &str,
        result: impl FnOnce(&Context) -> Result<(), E>,
    ) {
        let before = self.context.point(what);
        if let Err(error) = before {
            self.problems.push(format!("{what}: {error}"));
            return;
        }
        if let Err(error) = result(&self.context) {
            self.problems.push(format!("{what}: {}", full(&error)));
        }
    }
}
/// Rolls a transaction back under the lock. `Ok`: what was left as it is. `Err`: what could not be
/// put back; the transaction stays open and the rollback can be tried again.
pub(super) fn run(
    state: &State,
    lock: &Lock,
    id: TransactionId,
    why: &Why,
    manner: &Manner,
    faults: &dyn Faults,
) -> Result<Vec<String>, Vec<String>> {
    let lines = |error: std::io::Error| vec![format!("the journal: {error}")];
    let (mut journal, read) = Journal::open(&state.journal(id)).map_err(lines)?;
    // The room that was set aside for this moment.
    let _ = fs::remove_file(state.transaction(id).join("ballast"));
    // What an interrupted rollback had decided stays decided.
    let begun = read.records.iter().rev().find_map(|record| match record {
        Record::RollingBack { purge, .. } => Some(*purge),
        _ => None,
    });
    let purge = begun.unwrap_or(manner.purge);
    if begun.is_none() {
        let record = Record::RollingBack {
            why: why.clone(),
            purge,
            at: clock::wall(),
        };
        if let Err(error) = journal.append(&record, faults) {
            let confirmed = |record: &Record| matches!(record, Record::Confirmed { .. });
            if read.records.iter().any(confirmed) {
                return Err(lines(error));
            }
            // A record that cannot be written must not keep the door shut: go on without it, but let
            // nobody confirm what is undone.
            let _ = journal::note_aside(&state.journal(id), &record);
        }
    }
    let then = Then::read(state.transaction(id), &read.records).map_err(|error| vec![error])?;
    let mut work = Work {
        context: Context {
            systemd: systemd::runs(),
            lock,
            faults,
            started: std::cell::RefCell::default(),
        },
        left: vec![],
        problems: vec![],
    };
    if let Some(first) = then.first() {
        let touched = Touched::of(&read.records);
        let touched = if read.damaged > 0 {
            work.left.push(format!(
                "{} records of the journal were damaged: everything in the snapshot was restored",
                read.damaged
            ));
            touched.everything(&then)
        } else {
            touched
        };
        if touched.any {
            let manner = Manner {
                purge,
                ..manner.clone()
            };
            restore(&mut work, state, id, &read, &then, first, &touched, &manner);
        }
    }
    if !work.problems.is_empty() {
        return Err(work.problems);
    }
    journal
        .append(
            &Record::RolledBack {
                left: work.left.clone(),
                at: clock::wall(),
            },
            faults,
        )
        .map_err(lines)?;
    stand_down(&read.records);
    if manner.early {
        // The boot unit's file is gone, and this very unit is the one that systemd still knows.
        let _ = systemd::systemctl(["daemon-reload"]).run();
    }
    Ok(work.left)
}
#[allow(clippy::too_many_arguments)]
fn restore(
    work: &mut Work,
    state: &State,
    id: TransactionId,
    read: &Read,
    then: &Then,
    first: &Snapshot,
    touched: &Touched,
    manner: &Manner,
) {
    let same_boot = read.records.iter().any(
        |record| matches!(record, Record::Begin { boot_id, .. } if *boot_id == clock::boot_id()),
    );
    if touched.ufw && same_boot && !manner.early {
        packet_filter(work, then, first);
    }
    if touched.guard && !(manner.early && first.guard.is_some()) {
        work.step("the guard", |context| {
            guard::restore(first.guard.as_deref(), context)
        });
    }
    units_that_were_not(work, first, touched, manner);
    let known = fingerprints(&read.records);
    for path in touched.all_files(then) {
        let Some((layer, kept)) = then.wanted(&path, manner.purge) else {
            continue;
        };
        one_file(work, state, id, then, layer, &path, kept, known.get(&path));
    }
    for folder in touched.made_folders.iter().rev() {
        remove_folder(work, folder);
    }
    if touched.ufw && !same_boot && !manner.early {
        // The kernel has what this boot loaded from the files as they were until now.
        work.step("ufw", |context| match ufw::claims_enabled() {
            true => ufw::reload(context),
            false => rules::remove_all(context),
        });
    }
    let unit_files = touched
        .all_files(then)
        .iter()
        .any(|path| path.contains("/systemd/"));
    if work.context.systemd && (touched.reload || unit_files) {
        work.step("systemd", |_| {
            systemd::systemctl(["daemon-reload"]).run().map(drop)
        });
    }
    units_that_were(work, first, touched, manner, then);
    if touched.connections {
        work.left
            .push("connections that were cut stay cut; clients connect anew".into());
    }
    let installed: Vec<String> = touched.packages.iter().cloned().collect();
    if !installed.is_empty() {
        if manner.purge && !manner.early {
            work.step("packages", |_| packages::purge(&installed));
        } else {
            work.left.push(format!(
                "{PACKAGES_STAY}, their services are off: {} (`apt-get purge` removes them)",
                installed.join(" ")
            ));
        }
    }
}
fn packet_filter(work: &mut Work, then: &Then, first: &Snapshot) {
    // As UFW was set up before: what it flushes besides its own chains.
    let setting = |key: &str| {
        let Some((layer, Kept::File { copy, sha256, .. })) = then.wanted("/etc/default/ufw", false)
        else {
            return None;
        };
        let bytes = snapshot::copy(&then.folder, layer, copy, sha256).ok()?;
        ufw::setting_in(&String::from_utf8_lossy(&bytes), key)
    };
    let is =
        |key: &str, value: &str| setting(key).is_some_and(|now| now.eq_ignore_ascii_case(value));
    let foreign_too = is("MANAGE_BUILTINS", "yes") || is("IPV6", "no");
    for ip in Ip::BOTH {
        let before = first.rules(ip).unwrap_or_default();
        let mut left = vec![];
        work.step(ip.save(), |context| {
            left = rules::restore(ip, before, foreign_too, context)?;
            Ok::<(), crate::change::Error>(())
        });
        work.left.append(&mut left);
    }
}
/// Units that did not exist go first: their files are about to be removed.
fn units_that_were_not(work: &mut Work, first: &Snapshot, touched: &Touched, manner: &Manner) {
    let brought = if touched.packages.is_empty() {
        vec![]
    } else {
        first.units.keys().cloned().collect()
    };
    let units: BTreeSet<&String> = touched.units.keys().chain(&brought).collect();
    for unit in units {
        let was = first.units.get(unit).cloned().unwrap_or_default();
        // UFW's own unit does nothing while ufw.conf says no.
        if was.exists() && !was.load.is_empty() || unit == "ufw.service" {
            continue;
        }
        let off = UnitState {
            load: "not-found".into(),
            active: "inactive".into(),
            enabled: String::new(),
        };
        work.step(unit, |_| systemd::restore(unit, &off, false, manner.early));
    }
}
fn units_that_were(
    work: &mut Work,
    first: &Snapshot,
    touched: &Touched,
    manner: &Manner,
    then: &Then,
) {
    let mut units = touched.units.clone();
    let files = touched.all_files(then);
    if files.iter().any(|path| path.starts_with("/etc/fail2ban/")) {
        // Its jails read these files only at a start.
        units.insert("fail2ban.service".into(), true);
    }
    for (unit, restart) in units {
        let Some(was) = first.units.get(&unit) else {
            continue;
        };
        if was.exists() {
            work.step(&unit, |_| {
                systemd::restore(&unit, was, restart, manner.early)
            });
        }
    }
}
#[allow(clippy::too_many_arguments)]
fn one_file(
    work: &mut Work,
    state: &State,
    id: TransactionId,
    then: &Then,
    layer: u32,
    path: &str,
    kept: &Kept,
    after: Option<&Option<String>>,
) {
    let target = Path::new(path);
    let mut left = None;
    work.step(path, |_| {
        files::remove(&files::waiting_name(target))?;
        let now = files::look(target)?;
        if is_kept(&now, kept) {
            return Ok(());
        }
        if let (Some(after), Found::File(bytes, _)) = (after, &now)
            && *after != Some(files::sha256(bytes))
            && kept.fingerprint() != Some(files::sha256(bytes))
        {
            // Changed by somebody else: their version is kept beside the snapshot.
            let aside = set_aside(state, id, path, bytes)?;
            left = Some(format!(
                "{path} was changed by somebody else meanwhile; it is as before the transaction again, and their version is {}",
                aside.display()
            ));
        }
        match kept {
            Kept::Absent => files::remove(target),
            Kept::Link { target: to } => files::restore_link(target, to),
            Kept::File {
                copy,
                sha256,
                attributes,
            } => {
                let bytes = snapshot::copy(&then.folder, layer, copy, sha256)?;
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent)?;
                }
                files::restore(target, &bytes, attributes)
            }
        }?;
        if is_kept(&files::look(target)?, kept) {
            Ok(())
        } else {
            Err(std::io::Error::other("it is not as it was"))
        }
    });
    work.left.extend(left);
}
fn is_kept(now: &Found, kept: &Kept) -> bool {
    match (now, kept) {
        (Found::Absent, Kept::Absent) => true,
        (Found::Link(now), Kept::Link { target }) => now == target,
        (
            Found::File(bytes, now),
            Kept::File {
                sha256, attributes, ..
            },
        ) => now == attributes && files::sha256(bytes) == *sha256,
        _ => false,
    }
}
fn set_aside(
    state: &State,
    id: TransactionId,
    path: &str,
    bytes: &[u8],
) -> std::io::Result<PathBuf> {
    let folder = state.transaction(id).join("foreign");
    fs::create_dir_all(&folder)?;
    let aside = folder.join(path.trim_start_matches('/').replace('/', "_"));
    fs::write(&aside, bytes)?;
    Ok(aside)
}
fn remove_folder(work: &mut Work, folder: &str) {
    let path = Path::new(folder);
    match fs::remove_dir(path) {
        Ok(()) => {
            let _ = files::sync_parent(path);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => work
            .left
            .push(format!("{folder} stays: something else is in it")),
        Err(error) => work.problems.push(format!("{folder}: {error}")),
    }
}
/// Takes the boot unit and the timers of a settled transaction away.
pub(super) fn stand_down(records: &[Record]) {
    for record in records {
        if let Record::Armed { watchdog, .. } = record {
            watchdog::disarm(watchdog);
        }
    }
    let _ = watchdog::disarm_boot();
}
