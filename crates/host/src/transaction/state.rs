//! The state folder: who may change the machine right now, and every transaction so far.
//!
//! ```text
//! /var/lib/portcullis/          0700
//!   lock                        flock(2), with the holder's name in it
//!   bin/portcullis-HASH         the copy of the program that watchdogs run
//!   tx/17/journal               what was done
//!   tx/17/snapshot-0/           how it was before
//!   tx/17/ballast               room on the disk that a rollback can free
//! ```

use super::{TransactionId, clock};
use crate::change::files;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the state is kept unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/portcullis";

/// The folder with everything that portcullis remembers.
#[derive(Debug, Clone)]
pub struct State {
    dir: PathBuf,
}

/// Who holds the lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Start time of that process in clock ticks since boot (proc(5), field 22 of stat): a process
    /// id alone may have been given to another.
    pub started: u64,
    /// What it does: "apply", "rollback 17".
    pub purpose: String,
    /// Since when, RFC 3339, UTC.
    pub since: String,
}

impl Holder {
    /// True while that very process exists (a zombie does not count).
    pub fn alive(&self) -> bool {
        process_start(self.pid) == Some(self.started)
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` (process {}, since {})",
            self.purpose, self.pid, self.since
        )
    }
}

/// Start time of a living process; `None` when there is none of that number or it is a zombie.
pub(crate) fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses; it may hold spaces and parentheses itself.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("{}", holder.as_ref().map_or_else(
        || "another portcullis is changing this machine".to_owned(),
        |holder| format!("{holder} is changing this machine")))]
    Held {
        /// Who, when that could be read.
        holder: Option<Holder>,
    },
    /// The lock file is out of reach.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// The right to change the machine. Ends with the value, or with the process.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// While the result lives, programs that are started keep the lock as well: if this process is
    /// killed while `ufw` runs, nobody starts a rollback before `ufw` has ended.
    pub(crate) fn lend(&self) -> Lent<'_> {
        let _ = fcntl(&self.file, FcntlArg::F_SETFD(FdFlag::empty()));
        Lent { lock: self }
    }
}

/// See [`Lock::lend`].
#[derive(Debug)]
pub(crate) struct Lent<'a> {
    lock: &'a Lock,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let _ = fcntl(&self.lock.file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

impl State {
    /// Opens the folder, and makes it (0700) if need be. It must belong to this user and be no
    /// link: what lies in it is run as root later.
    pub fn open(dir: &Path) -> io::Result<Self> {
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => files::sync_parent(dir)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Self::private(dir)?;
        for name in ["tx", "bin"] {
            let path = dir.join(name);
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => files::sync_parent(&path)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Opens the folder if it is there.
    pub fn existing(dir: &Path) -> io::Result<Option<Self>> {
        match fs::symlink_metadata(dir) {
            Ok(_) => {
                Self::private(dir)?;
                Ok(Some(Self {
                    dir: dir.to_owned(),
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn private(dir: &Path) -> io::Result<()> {
        let meta = fs::symlink_metadata(dir)?;
        let owner = nix::unistd::geteuid().as_raw();
        if !meta.is_dir() || meta.uid() != owner {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{} is no folder of user {owner}", dir.display()),
            ));
        }
        if meta.permissions().mode() & 0o7777 != 0o700 {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A transaction's folder.
    pub(crate) fn transaction(&self, id: TransactionId) -> PathBuf {
        self.dir.join("tx").join(id.to_string())
    }

    /// A transaction's journal.
    pub(crate) fn journal(&self, id: TransactionId) -> PathBuf {
        self.transaction(id).join("journal")
    }

    /// All transactions that have a journal, oldest first.
    pub fn ids(&self) -> io::Result<Vec<TransactionId>> {
        let mut ids: Vec<TransactionId> = self
            .numbers()?
            .into_iter()
            .filter(|id| self.journal(*id).exists())
            .collect();
        ids.sort();
        Ok(ids)
    }

    fn numbers(&self) -> io::Result<Vec<TransactionId>> {
        let entries = match fs::read_dir(self.dir.join("tx")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries?,
        };
        let mut numbers = vec![];
        for entry in entries {
            if let Some(id) = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                numbers.push(id);
            }
        }
        Ok(numbers)
    }

    /// Makes the folder of the next transaction. The caller holds the lock.
    pub(crate) fn begin(&self) -> io::Result<TransactionId> {
        let last = self.numbers()?.into_iter().max().map_or(0, |id| id.0);
        let id = TransactionId(last + 1);
        let path = self.transaction(id);
        DirBuilder::new().mode(0o700).create(&path)?;
        files::sync_parent(&path)?;
        Ok(id)
    }

    /// Takes the lock, waiting at most `wait` for it.
    pub fn lock(&self, purpose: &str, wait: Duration) -> Result<Lock, LockError> {
        let path = self.dir.join("lock");
        let io = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let opened = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let file = match opened {
            // Locked without a name, then: the way back must not depend on a disk that can be written.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&path),
            opened => opened,
        }
        .map_err(io)?;
        let end = Instant::now() + wait;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held {
                        holder: self.holder(),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
        }
        let me = std::process::id();
        let holder = Holder {
            pid: me,
            started: process_start(me).unwrap_or(0),
            purpose: purpose.to_owned(),
            since: clock::wall(),
        };
        // The name is a help for others; a full disk must not keep a rollback from its lock.
        if let Ok(text) = serde_json::to_vec(&holder) {
            let _ = file.set_len(0);
            let _ = file.write_all_at(&text, 0);
        }
        Ok(Lock { file })
    }

    /// True when nobody holds the lock. It is taken for that moment, without a name.
    pub(crate) fn free(&self) -> bool {
        File::open(self.dir.join("lock")).is_ok_and(|file| file.try_lock().is_ok())
    }

    /// Ends the programs that still hold a lock which was lent to them by a process that is gone:
    /// nobody else bounds them any more. Whoever merely waits for the lock is left alone.
    pub(crate) fn end_borrowers(&self) {
        let Ok(lock) = fs::canonicalize(self.dir.join("lock")) else {
            return;
        };
        let holds = |process: &Path| {
            let fds = fs::read_dir(process.join("fd")).into_iter().flatten();
            fds.flatten().any(|fd| {
                let info = process.join("fdinfo").join(fd.file_name());
                fs::read_link(fd.path()).is_ok_and(|to| to == lock)
                    // proc(5): a file whose locks are held by this very opening of it says so.
                    && fs::read_to_string(info)
                        .is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:")))
            })
        };
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = process
                .file_name()
                .to_str()
                .and_then(|pid| pid.parse().ok());
            let Some(pid) = pid.map(Pid::from_raw).filter(|pid| *pid != Pid::this()) else {
                continue;
            };
            if holds(&process.path()) {
                // With what it started itself: each program has a group of its own.
                if getpgid(Some(pid)) == Ok(pid) {
                    let _ = killpg(pid, Signal::SIGKILL);
                }
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }

    /// Whoever wrote his name into the lock last.
    pub(crate) fn holder(&self) -> Option<Holder> {
        let text = fs::read(self.dir.join("lock")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Copies the running program into the folder, for watchdogs: the one that the user started may
    /// be gone or replaced when they need it. Returns the copy. Other copies are removed, so the
    /// caller holds the lock, and no transaction is open.
    pub(crate) fn keep_program(&self, exe: &Path) -> io::Result<PathBuf> {
        let mut bytes = vec![];
        File::open(exe)?.read_to_end(&mut bytes)?;
        let name = format!("portcullis-{}", &files::sha256(&bytes)[..16]);
        let copy = self.dir.join("bin").join(name);
        let same = fs::read(&copy).is_ok_and(|old| old == bytes);
        if !same {
            let temporary = copy.with_extension("new");
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o700)
                .open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &copy)?;
            files::sync_parent(&copy)?;
        }
        // Copies of older versions: the caller holds the lock and no transaction is open.
        for entry in fs::read_dir(self.dir.join("bin"))?.flatten() {
            if entry.path() != copy {
                let _ = fs::remove_file(entry.path());
            }
        }
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o700))?;
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, State) {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(&folder.path().join("a/state")).unwrap();
        (folder, state)
    }

    #[test]
    fn the_folder_is_private() {
        let (_folder, state) = state();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(state.dir()), 0o700);
        fs::set_permissions(state.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        State::open(state.dir()).unwrap();
        assert_eq!(mode(state.dir()), 0o700);
        let link = state.dir().with_file_name("link");
        std::os::unix::fs::symlink(state.dir(), &link).unwrap();
        assert!(State::open(&link).is_err());
    }

    #[test]
    fn the_second_is_told_who_holds_the_lock() {
        let (_folder, state) = state();
        let lock = state.lock("apply", Duration::ZERO).unwrap();
        let error = state
            .lock("rollback 3", Duration::from_millis(30))
            .unwrap_err();
        let text = error.to_string();
        let LockError::Held {
            holder: Some(holder),
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(
            (holder.pid, holder.purpose.as_str()),
            (std::process::id(), "apply")
        );
        assert!(holder.alive());
        assert!(text.starts_with("`apply` (process "), "{text}");
        drop(lock);
        state.lock("rollback 3", Duration::ZERO).unwrap();
    }

    #[test]
    fn a_lent_lock_lives_as_long_as_the_program() {
        let (_folder, state) = state();
        let lock = state.lock("apply", Duration::ZERO).unwrap();
        let lent = lock.lend();
        let mut child = std::process::Command::new("/usr/bin/sleep")
            .arg("0.4")
            .spawn()
            .unwrap();
        drop(lent);
        let mut other = std::process::Command::new("/usr/bin/sleep")
            .arg("60")
            .spawn()
            .unwrap();
        drop(lock);
        assert!(matches!(
            state.lock("x", Duration::ZERO),
            Err(LockError::Held { .. })
        ));
        state.lock("x", Duration::from_secs(5)).unwrap();
        child.wait().unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn who_borrowed_the_lock_is_ended_and_who_waits_for_it_is_not() {
        let (_folder, state) = state();
        let lock = state.lock("apply", Duration::ZERO).unwrap();
        let lent = lock.lend();
        let mut borrower = std::process::Command::new("/usr/bin/sleep")
            .arg("60")
            .spawn()
            .unwrap();
        drop(lent);
        drop(lock);
        let waits = File::open(state.dir().join("lock")).unwrap();
        let mut waiting = std::process::Command::new("/usr/bin/sleep")
            .arg("60")
            .stdin(waits)
            .spawn()
            .unwrap();
        assert!(!state.free());
        state.end_borrowers();
        let _lock = state.lock("rollback", Duration::from_secs(5)).unwrap();
        assert!(!borrower.wait().unwrap().success());
        assert!(waiting.try_wait().unwrap().is_none());
        waiting.kill().unwrap();
        waiting.wait().unwrap();
    }

    #[test]
    fn numbers_go_up_and_are_not_used_again() {
        let (_folder, state) = state();
        assert_eq!(state.begin().unwrap(), TransactionId(1));
        assert_eq!(state.begin().unwrap(), TransactionId(2));
        fs::create_dir(state.dir().join("tx/rubbish")).unwrap();
        assert_eq!(state.begin().unwrap(), TransactionId(3));
        assert_eq!(state.ids().unwrap(), vec![]);
    }

    #[test]
    fn the_program_is_copied_once() {
        let (_folder, state) = state();
        let copy = state.keep_program(Path::new("/usr/bin/true")).unwrap();
        let inode = fs::metadata(&copy).unwrap().ino();
        assert_eq!(
            state.keep_program(Path::new("/usr/bin/true")).unwrap(),
            copy
        );
        assert_eq!(fs::metadata(&copy).unwrap().ino(), inode);
        // A damaged copy is mended.
        fs::write(&copy, "x").unwrap();
        state.keep_program(Path::new("/usr/bin/true")).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), fs::read("/usr/bin/true").unwrap());
    }
}
