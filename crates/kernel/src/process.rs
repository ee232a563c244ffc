//! Who holds which socket: `/proc/PID` (proc(5)).

use crate::Error;
use crate::cgroup::{ContainerRef, Unit, container_of_cgroup, unit_of_cgroup};
use rustix::buffer::spare_capacity;
use rustix::fs::{CWD, Mode, OFlags, RawDir, fstat, openat, readlinkat_raw};
use rustix::io::{Errno, retry_on_intr};
use rustix::path::Arg;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

/// Most bytes of a command line that are kept.
const CMDLINE: usize = 4096;
/// Most processes that are looked at.
const MAX_PROCESSES: usize = 131_072;
/// Most descriptors of one process that are looked at.
const MAX_FDS: usize = 1_048_576;

/// A process. All texts are untrusted: the process chose them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in this process's pid namespace.
    pub pid: u32,
    /// Parent's process id, 0 for none.
    pub parent: u32,
    /// The kernel's name for it, at most 15 bytes.
    pub comm: String,
    /// Target of `/proc/PID/exe`; `None` for kernel threads or without permission.
    pub exe: Option<String>,
    /// Arguments, at most 4096 bytes altogether. May hold secrets: not for snapshots.
    pub cmdline: Vec<String>,
    /// Effective user id.
    pub uid: u32,
    /// The text of `/proc/PID/cgroup`.
    pub cgroup: Option<String>,
    /// The systemd unit that owns it.
    pub unit: Option<Unit>,
    /// The container that it runs in.
    pub container: Option<ContainerRef>,
    /// Inode of its network namespace; `None` without permission.
    pub net_ns: Option<u64>,
    /// Start time in clock ticks after boot: with the pid, an identity that is not reused.
    pub started: u64,
    /// Inodes of the sockets that it holds, sorted; `None` without permission.
    pub sockets: Option<Vec<u64>>,
}

/// All processes that could be seen.
#[derive(Debug, Clone, Default)]
pub struct Processes {
    by_pid: BTreeMap<u32, Process>,
    owners: BTreeMap<u64, Vec<u32>>,
    /// What could not be seen, as sentences for a reader.
    pub unseen: Vec<String>,
}

impl Processes {
    /// The process with this id.
    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.by_pid.get(&pid)
    }

    /// All of them, by ascending id.
    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.by_pid.values()
    }

    /// Who holds the socket with this inode, by ascending id. Several when a service forks, or
    /// when systemd keeps the socket that it handed over.
    pub fn owners(&self, inode: u64) -> Vec<&Process> {
        let pids = self.owners.get(&inode).map_or(&[][..], Vec::as_slice);
        pids.iter().filter_map(|p| self.by_pid.get(p)).collect()
    }

    /// Whether a process runs beside this one: in no container, or in this process's own.
    pub fn beside(&self, process: &Process) -> bool {
        let own = self.get(std::process::id());
        process.container.is_none() || own.is_some_and(|own| own.container == process.container)
    }

    /// The parents of a process, nearest first; bounded, and safe against cycles.
    pub fn ancestors(&self, pid: u32) -> Vec<&Process> {
        let mut out = Vec::new();
        let mut at = self.get(pid).map_or(0, |p| p.parent);
        while let Some(p) = self.get(at) {
            out.push(p);
            if out.len() > 64 || p.parent == at {
                break;
            }
            at = p.parent;
        }
        out
    }
}

impl FromIterator<Process> for Processes {
    fn from_iter<T: IntoIterator<Item = Process>>(all: T) -> Self {
        let mut out = Processes::default();
        for process in all {
            for inode in process.sockets.iter().flatten() {
                out.owners.entry(*inode).or_default().push(process.pid);
            }
            out.by_pid.insert(process.pid, process);
        }
        for pids in out.owners.values_mut() {
            pids.sort_unstable();
        }
        out
    }
}

/// All processes with the sockets that they hold.
///
/// Processes that end meanwhile are left out. Without CAP_SYS_PTRACE the descriptors of other
/// users' processes stay unseen; [`Processes::unseen`] says how many.
///
/// # Errors
/// When `/proc` cannot be listed at all.
pub fn processes() -> Result<Processes, Error> {
    let failed = |errno: Errno| Error::File {
        path: "/proc".to_owned(),
        source: errno.into(),
    };
    let all = Folder::open(CWD, c"/proc").map_err(failed)?;
    let mut unseen = Vec::new();
    let mut found = Vec::new();
    let mut reader = Reader::default();
    let mut room = room();
    let mut entries = RawDir::new(&all.0, room.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().ok().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if found.len() >= MAX_PROCESSES {
            unseen.push(format!("processes beyond the first {MAX_PROCESSES}"));
            break;
        }
        let folder = Folder::open(&all.0, name).ok();
        found.extend(folder.and_then(|folder| reader.process(pid, &folder)));
    }
    if hides_processes() {
        unseen.push("other users' processes (/proc is mounted with hidepid)".to_owned());
    }
    let closed = found.iter().filter(|p| p.sockets.is_none()).count();
    if closed > 0 {
        unseen.push(format!(
            "open sockets of {closed} processes (CAP_SYS_PTRACE is needed)"
        ));
    }
    Ok(Processes {
        unseen,
        ..found.into_iter().collect()
    })
}

/// Process 1 always exists; when it cannot be seen, /proc hides processes.
fn hides_processes() -> bool {
    !Path::new("/proc/1/stat").exists()
}

/// One process; `None` when it is gone.
pub fn process(pid: u32) -> Option<Process> {
    let folder = Folder::open(CWD, format!("/proc/{pid}").as_str()).ok()?;
    Reader::default().process(pid, &folder)
}

/// Room for entries of a folder: some hundred at a time.
fn room() -> Vec<u8> {
    Vec::with_capacity(8192)
}

/// A folder below /proc, held open: whatever is read through it is of one process, even when the
/// kernel gives its number to another meanwhile.
pub(crate) struct Folder(OwnedFd);

impl Folder {
    pub(crate) fn open<P: Arg>(below: impl AsFd, path: P) -> Result<Folder, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(below, path, flags, Mode::empty()).map(Folder)
    }
}

/// Reads processes one after the other. A busy host has thousands, with tens of thousands of
/// descriptors, so that what reading one takes is taken once.
struct Reader {
    text: Vec<u8>,
    link: Vec<u8>,
    descriptors: Vec<u8>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            text: Vec::new(),
            // The kernel makes no longer target where pages have 4 KiB (fs/proc/base.c: do_proc_readlink).
            link: Vec::with_capacity(4096),
            descriptors: room(),
        }
    }
}

impl Reader {
    fn process(&mut self, pid: u32, folder: &Folder) -> Option<Process> {
        // The owner of this folder, unlike that of what is in it, is always the effective user
        // (fs/proc/base.c: task_dump_owner). It is root's once the process has ended; what is read
        // next shows that it has not.
        let uid = fstat(&folder.0).ok()?.st_uid;
        let Stat {
            comm,
            parent,
            kernel_thread,
            started,
        } = parse_stat(self.read(folder, c"stat", 4096)?)?;
        if kernel_thread {
            // Half of a quiet host's processes; they have no program, no descriptors and no container.
            return Some(Process {
                pid,
                parent,
                comm,
                started,
                sockets: Some(Vec::new()),
                ..Process::default()
            });
        }
        let cgroup = self
            .read(folder, c"cgroup", 64 * 1024)
            .map(|text| String::from_utf8_lossy(text).into_owned());
        let cmdline = match self.read(folder, c"cmdline", CMDLINE) {
            Some(text) => arguments(text),
            None => Vec::new(),
        };
        let exe = self.link(folder, c"exe").ok();
        let exe = exe.map(|path| String::from_utf8_lossy(path).into_owned());
        let net_ns = self.link(folder, c"ns/net").ok();
        Some(Process {
            pid,
            parent,
            comm,
            exe,
            cmdline,
            uid,
            unit: cgroup.as_deref().and_then(unit_of_cgroup),
            container: cgroup.as_deref().and_then(container_of_cgroup),
            cgroup,
            net_ns: net_ns.and_then(|target| inode_of(target, "net:[")),
            started,
            sockets: self.sockets(folder),
        })
    }

    /// At most `limit` bytes of a file.
    fn read(&mut self, folder: &Folder, name: &CStr, limit: usize) -> Option<&[u8]> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&folder.0, name, flags, Mode::empty()).ok()?;
        self.text.clear();
        loop {
            // /proc tells no size, and little room would mean many reads.
            self.text.reserve(4096);
            let room = self.text.capacity() - self.text.len();
            let read = || rustix::io::read(&file, spare_capacity(&mut self.text));
            let read = retry_on_intr(read).ok()?;
            // These files have one record: what does not fill the room is the end.
            if read < room || self.text.len() >= limit {
                break;
            }
        }
        self.text.truncate(limit);
        Some(&self.text)
    }

    /// What a link points to.
    fn link(&mut self, folder: &Folder, name: &CStr) -> Result<&[u8], Errno> {
        target(&mut self.link, folder, name)
    }

    /// Inodes of the sockets that a process holds, sorted. `None`: not permitted.
    fn sockets(&mut self, folder: &Folder) -> Option<Vec<u64>> {
        let mut inodes = Vec::new();
        let walked = self.each_socket(folder, |_, inode| inodes.push(inode));
        // Whatever else goes wrong, the process has ended.
        if matches!(walked, Err(Errno::ACCESS | Errno::PERM)) {
            return None;
        }
        inodes.sort_unstable();
        inodes.dedup();
        Some(inodes)
    }

    /// Names each of a process's descriptors that is a socket, with the socket's inode.
    fn each_socket(
        &mut self,
        folder: &Folder,
        mut each: impl FnMut(&CStr, u64),
    ) -> Result<(), Errno> {
        let folder = Folder::open(&folder.0, c"fd")?;
        let mut entries = RawDir::new(&folder.0, self.descriptors.spare_capacity_mut());
        let mut seen = 0;
        let mut refused = Ok(());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes().first() == Some(&b'.') {
                continue;
            }
            seen += 1;
            if seen > MAX_FDS {
                break;
            }
            match target(&mut self.link, &folder, name) {
                Ok(target) => {
                    if let Some(inode) = inode_of(target, "socket:[") {
                        each(name, inode);
                    }
                }
                Err(errno @ (Errno::ACCESS | Errno::PERM)) => refused = Err(errno),
                // Closed meanwhile.
                Err(_) => {}
            }
        }
        refused
    }
}

/// What a link points to, read into `room`.
fn target<'r>(room: &'r mut Vec<u8>, folder: &Folder, name: &CStr) -> Result<&'r [u8], Errno> {
    room.clear();
    readlinkat_raw(&folder.0, name, spare_capacity(room))?;
    Ok(room)
}

/// When a process started, as [`Process::started`].
pub(crate) fn started(folder: &Folder) -> Option<u64> {
    let mut reader = Reader::default();
    Some(parse_stat(reader.read(folder, c"stat", 4096)?)?.started)
}

/// Names each of a process's descriptors that is a socket.
pub(crate) fn each_socket(folder: &Folder, mut each: impl FnMut(RawFd)) -> Result<(), Errno> {
    Reader::default().each_socket(folder, |name, _| {
        if let Some(fd) = name.to_str().ok().and_then(|n| n.parse().ok()) {
            each(fd);
        }
    })
}

/// What is taken of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    comm: String,
    parent: u32,
    /// `PF_KTHREAD` (include/linux/sched.h), which no program can set.
    kernel_thread: bool,
    started: u64,
}

const PF_KTHREAD: u32 = 0x0020_0000;

/// The name may hold spaces and brackets, so the last bracket ends it.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let text = String::from_utf8_lossy(stat);
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let comm = text.get(open + 1..close)?.to_owned();
    let mut fields = text.get(close + 1..)?.split_whitespace();
    // Field 3 (state) is the first here; 4 is the parent, 9 the flags, 22 the start time.
    let parent = fields.nth(1)?.parse().ok()?;
    let flags: u32 = fields.nth(4)?.parse().ok()?;
    let started = fields.nth(12)?.parse().ok()?;
    Some(Stat {
        comm,
        parent,
        kernel_thread: flags & PF_KTHREAD != 0,
        started,
    })
}

fn arguments(cmdline: &[u8]) -> Vec<String> {
    let trimmed = cmdline.strip_suffix(&[0]).unwrap_or(cmdline);
    if trimmed.is_empty() {
        return Vec::new();
    }
    let part = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    trimmed.split(|b| *b == 0).map(part).collect()
}

/// `socket:[123]` → 123.
fn inode_of(target: &[u8], prefix: &str) -> Option<u64> {
    let number = target.strip_prefix(prefix.as_bytes())?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = b"42 (a) b (c) S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99 1 2";
        let expected = Stat {
            comm: "a) b (c".to_owned(),
            parent: 7,
            kernel_thread: false,
            started: 99,
        };
        assert_eq!(parse_stat(stat), Some(expected));
        let kthreadd = b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 1 0";
        assert!(parse_stat(kthreadd).is_some_and(|stat| stat.kernel_thread));
        assert_eq!(parse_stat(b"42 (x"), None);
        assert_eq!(parse_stat(b""), None);
        assert_eq!(parse_stat(b")("), None);
    }

    #[test]
    fn arguments_are_split_at_nul() {
        assert_eq!(arguments(b"sshd\0-D\0\0"), ["sshd", "-D", ""]);
        assert_eq!(arguments(b"one"), ["one"]);
        assert!(arguments(b"").is_empty());
        assert!(arguments(b"\0").is_empty());
    }

    #[test]
    fn this_process_is_seen() {
        let me = process(std::process::id()).unwrap();
        assert_eq!(me.parent, std::os::unix::process::parent_id());
        assert_eq!(me.uid, nix::unistd::geteuid().as_raw());
        assert!(me.net_ns.is_some());
        assert!(me.cmdline[0].contains("kernel"));
        let all = processes().unwrap();
        assert!(all.ancestors(me.pid).iter().any(|p| p.pid == me.parent));
        assert!(process(u32::MAX).is_none());
    }
}
