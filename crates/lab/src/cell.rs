//! A set of namespaces, kept alive by one holder process, and entered by threads.
//!
//! The holder is the first process of its process-id namespace and waits for the end of its standard input, a pipe
//! whose other end this process has. When this process ends, in whatever way, the kernel closes the pipe, the holder
//! ends, and with it every process inside, the network, and the mounts. Nothing has to be told to clean up.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::error::{Context, Error, Result};

/// No filesystem type or data for a mount.
pub(crate) const NONE: Option<&str> = None;

/// Open handles on the namespaces of one process.
#[derive(Debug)]
pub(crate) struct Namespaces {
    handles: Vec<(CloneFlags, OwnedFd)>,
}

/// The kinds in the order in which they are entered: the mount namespace last, because `/proc` changes with it.
const KINDS: [(CloneFlags, &str); 6] = [
    (CloneFlags::CLONE_NEWUTS, "uts"),
    (CloneFlags::CLONE_NEWIPC, "ipc"),
    (CloneFlags::CLONE_NEWNET, "net"),
    (CloneFlags::CLONE_NEWPID, "pid"),
    (CloneFlags::CLONE_NEWCGROUP, "cgroup"),
    (CloneFlags::CLONE_NEWNS, "mnt"),
];

impl Namespaces {
    /// Every namespace of the process `pid`.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let handles = KINDS
            .iter()
            .map(|&(kind, name)| {
                let path = format!("/proc/{pid}/ns/{name}");
                let file = File::open(&path).context(|| format!("cannot open {path}"))?;
                Ok((kind, OwnedFd::from(file)))
            })
            .collect::<Result<_>>()?;
        Ok(Self { handles })
    }

    /// Runs `f` on a thread of its own inside the chosen namespaces. `CLONE_NEWPID` holds for the programs that `f`
    /// starts, not for the thread.
    pub(crate) fn within<T: Send>(
        &self,
        which: CloneFlags,
        f: impl FnOnce() -> T + Send,
    ) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                leave_the_clock()?;
                if which.contains(CloneFlags::CLONE_NEWNS) {
                    // A thread that shares its root and working folder with others may not change its mounts.
                    unshare(CloneFlags::CLONE_FS)
                        .context(|| "cannot give a thread its own root folder".into())?;
                }
                for (kind, handle) in &self.handles {
                    if which.contains(*kind) {
                        setns(handle, *kind)
                            .context(|| format!("cannot enter a namespace ({kind:?})"))?;
                    }
                }
                Ok(f())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// Takes the right to set the clock from the calling thread and from whatever it starts: there is one clock, and it is
/// this machine's.
fn leave_the_clock() -> Result<()> {
    let all_but_time = || {
        if capability_is_in_bounding_set(CapabilitySet::SYS_TIME)? {
            remove_capability_from_bounding_set(CapabilitySet::SYS_TIME)?;
        }
        let mut sets = capabilities(None)?;
        sets.effective.remove(CapabilitySet::SYS_TIME);
        sets.permitted.remove(CapabilitySet::SYS_TIME);
        sets.inheritable.remove(CapabilitySet::SYS_TIME);
        set_capabilities(None, sets)
    };
    all_but_time()
        .map_err(std::io::Error::from)
        .context(|| "cannot give up the right to set the clock".into())
}

/// What every program of a cell runs in.
pub(crate) fn everything() -> CloneFlags {
    KINDS.iter().map(|&(kind, _)| kind).collect()
}

/// New namespaces with their holder.
#[derive(Debug)]
pub(crate) struct Cell {
    holder: Child,
    spaces: Namespaces,
}

impl Cell {
    /// Makes the namespaces of `kinds` (mount and process-id namespaces always), runs `arrange` inside before anything
    /// else (its mounts are private), and starts the holder.
    pub(crate) fn new(
        hostname: &str,
        kinds: CloneFlags,
        arrange: impl FnOnce() -> Result<()> + Send,
    ) -> Result<Self> {
        crate::error::need_root()?;
        let holder = thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<Child> {
                leave_the_clock()?;
                unshare(kinds | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
                    .context(|| "cannot make namespaces".into())?;
                mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
                    .context(|| "cannot make the mounts private".into())?;
                if kinds.contains(CloneFlags::CLONE_NEWUTS) {
                    nix::unistd::sethostname(hostname)
                        .context(|| format!("cannot name the host {hostname}"))?;
                }
                arrange()?;
                start_holder()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        crate::ending::holder_started(holder.id());
        let mut cell = Self {
            spaces: match Namespaces::of(holder.id()) {
                Ok(spaces) => spaces,
                Err(error) => {
                    end(holder);
                    return Err(error);
                }
            },
            holder,
        };
        cell.mount_proc()?;
        Ok(cell)
    }

    /// `/proc` shows the processes of the namespace of the process that mounts it, so a child has to do it.
    fn mount_proc(&mut self) -> Result<()> {
        let mut mounter = self.spaces.within(everything(), || {
            clean("/usr/bin/mount")
                .args(["-t", "proc", "proc", "/proc"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context(|| "cannot run mount".into())
        })??;
        let status = mounter.wait().context(|| "cannot wait for mount".into())?;
        if status.success() {
            Ok(())
        } else {
            Err(Error::Invalid(format!(
                "mounting /proc inside a new host ended with {status}"
            )))
        }
    }

    pub(crate) fn spaces(&self) -> &Namespaces {
        &self.spaces
    }

    /// The holder's process id, as this process sees it.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        crate::ending::holder_ends(self.holder.id());
        // The wait returns only when every process of the namespace is gone.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn end(mut child: Child) {
    crate::ending::holder_ends(child.id());
    let _ = child.kill();
    let _ = child.wait();
}

/// `cat` waits for its input to end. `env --ignore-signal=CHLD` has the kernel bury the orphans that end up with it:
/// as the first process of its namespace it inherits them all.
fn start_holder() -> Result<Child> {
    clean("/usr/bin/env")
        .args(["--ignore-signal=CHLD", "/usr/bin/cat"])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context(|| "cannot start the process that keeps a host alive (/usr/bin/env)".into())
}

/// A command with nothing of our environment.
pub(crate) fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("LANG", "C.UTF-8")
        .env("HOME", "/root");
    command
}

/// Where programs are looked for inside a host.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
