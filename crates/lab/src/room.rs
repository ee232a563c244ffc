//! A lab's folder on disk, its lock, and the removal of what dead runs left behind.
//!
//! Processes, network namespaces and mounts need no removal: they hang on a holder process that ends with the process
//! that made the lab, however that ends (see [`crate::cell`]). What can outlive a killed run is this folder and a few
//! empty cgroup folders of the same name. The folder's lock is held by the living process (`flock`, which the kernel
//! lets go when the process ends), so the next run can tell for sure which folders are dead.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::ending;
use crate::error::{Context, Error, Result};

/// The environment variable that moves the labs' folder (default `/var/tmp/portcullis-lab`). It must be on a real disk:
/// a machine's root is an overlay, and the kernel allows no overlay on an overlay.
pub const DIR_VARIABLE: &str = "PORTCULLIS_LAB_DIR";

const DEFAULT_DIR: &str = "/var/tmp/portcullis-lab";
const PREFIX: &str = "portcullis-lab-";
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// The folder that holds the labs of every run.
pub fn base() -> PathBuf {
    std::env::var_os(DIR_VARIABLE)
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| DEFAULT_DIR.into(), PathBuf::from)
}

/// One lab's folder; removed on drop.
#[derive(Debug)]
pub(crate) struct Room {
    name: String,
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl Room {
    /// Makes a folder named after the lab, this process and a counter, and first removes those of dead runs.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let base = base();
        make_private(&base)?;
        check_owner(&base, DIR_VARIABLE)?;
        let _turn = take_turn(&base)?;
        reap_in(&base);
        let name = format!(
            "{PREFIX}{}-{}-{name}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        let path = base.join(&name);
        make_private(&path)?;
        let lock = open_lock(&path)?;
        lock.lock().at("lock", &path)?;
        ending::room_made(&name, path.clone());
        Ok(Self {
            name,
            path,
            _lock: lock,
        })
    }

    /// The lab's name among all runs: also that of its cgroup.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A sub-folder, made if need be.
    pub(crate) fn folder(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).at("make", &path)?;
        Ok(path)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        remove(&self.path, &self.name);
        ending::room_gone(&self.name);
    }
}

/// Removes the folders and cgroups of labs whose process is gone. Returns the names of those removed. Labs of living
/// processes are left alone.
pub fn reap() -> Result<Vec<String>> {
    let base = base();
    if !base.exists() {
        return Ok(Vec::new());
    }
    check_owner(&base, DIR_VARIABLE)?;
    let _turn = take_turn(&base)?;
    Ok(reap_in(&base))
}

/// The names of the labs that exist, alive or dead.
pub fn existing() -> Vec<String> {
    let Ok(entries) = fs::read_dir(base()) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    names.sort();
    names
}

fn reap_in(base: &Path) -> Vec<String> {
    existing()
        .into_iter()
        .filter(|name| {
            let path = base.join(name);
            let dead = open_lock(&path).is_ok_and(|lock| match lock.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
            });
            if dead {
                remove(&path, name);
            }
            dead
        })
        .collect()
}

/// Creating and reaping take turns, so that nobody reaps a folder between its creation and its lock.
fn take_turn(base: &Path) -> Result<File> {
    let turn = open_lock(base)?;
    for _ in 0..500 {
        match turn.try_lock() {
            Ok(()) => return Ok(turn),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::Error(source)) => {
                return Err(Error::io("cannot lock the labs' folder", source));
            }
        }
    }
    Err(Error::timeout(
        "the labs' folder to be free",
        Duration::from_secs(10),
        "",
    ))
}

fn open_lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .at("open", &path)
}

pub(crate) fn make_private(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .at("make", path)
}

/// The folder may be where everybody can write (/var/tmp): one that somebody else made beforehand is not ours to use.
pub(crate) fn check_owner(path: &Path, variable: &str) -> Result<()> {
    let metadata = path.symlink_metadata().at("look at", path)?;
    if metadata.is_dir() && metadata.uid() == 0 && metadata.mode() & 0o022 == 0 {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "{} is not a folder that only root can write; remove it, or set {variable}",
            path.display()
        )))
    }
}

/// Removes a lab's folder and cgroups; errors are of no use to anyone here, the next run tries again.
pub(crate) fn remove(path: &Path, name: &str) {
    remove_cgroups(name);
    for _ in 0..20 {
        if fs::remove_dir_all(path).is_ok() || !path.exists() {
            return;
        }
        // A dying mount namespace can keep a mount point busy for a moment.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The cgroup hierarchies of this machine: several in the v1 and hybrid layouts, one in the unified layout.
pub(crate) fn cgroup_roots() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut roots = Vec::new();
    if root.join("cgroup.procs").exists() {
        roots.push(root.to_owned());
    } else if let Ok(entries) = fs::read_dir(root) {
        for entry in entries.flatten() {
            let path = entry.path();
            // `cpu` and `cpu,cpuacct` may be links to one another.
            if path.join("cgroup.procs").exists() && !path.is_symlink() {
                roots.push(path);
            }
        }
    }
    roots
}

fn remove_cgroups(name: &str) {
    for root in cgroup_roots() {
        let top = root.join(name);
        for _ in 0..20 {
            if !top.exists() {
                break;
            }
            remove_cgroup_tree(&top);
            if top.exists() {
                std::thread::sleep(Duration::from_millis(25));
            }
        }
    }
}

/// A cgroup folder goes with `rmdir` once it has no processes and no children; its files cannot be removed.
fn remove_cgroup_tree(path: &Path) {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_cgroup_tree(&entry.path());
            }
        }
    }
    let _ = fs::remove_dir(path);
}
