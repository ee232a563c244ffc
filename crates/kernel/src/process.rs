//! Who holds which socket: `/proc/PID` (proc(5)).

use crate::Error;
use crate::cgroup::{ContainerRef, Unit, container_of_cgroup, unit_of_cgroup};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Most bytes of a command line that are kept.
const CMDLINE: u64 = 4096;
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

/// All processes with the sockets that they hold.
///
/// Processes that end meanwhile are left out. Without CAP_SYS_PTRACE the descriptors of other
/// users' processes stay unseen; [`Processes::unseen`] says how many.
///
/// # Errors
/// When `/proc` cannot be listed at all.
pub fn processes() -> Result<Processes, Error> {
    let mut out = Processes::default();
    let mut closed = 0usize;
    let folder = std::fs::read_dir("/proc").map_err(|source| Error::File {
        path: "/proc".to_owned(),
        source,
    })?;
    for entry in folder.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if out.by_pid.len() >= MAX_PROCESSES {
            out.unseen
                .push(format!("processes beyond the first {MAX_PROCESSES}"));
            break;
        }
        let Some(process) = process(pid) else {
            continue;
        };
        match &process.sockets {
            None => closed += 1,
            Some(inodes) => {
                for inode in inodes {
                    out.owners.entry(*inode).or_default().push(pid);
                }
            }
        }
        out.by_pid.insert(pid, process);
    }
    if hides_processes() {
        out.unseen
            .push("other users' processes (/proc is mounted with hidepid)".to_owned());
    }
    if closed > 0 {
        out.unseen.push(format!(
            "open sockets of {closed} processes (CAP_SYS_PTRACE is needed)"
        ));
    }
    for pids in out.owners.values_mut() {
        pids.sort_unstable();
    }
    Ok(out)
}

/// Process 1 always exists; when it cannot be seen, /proc hides processes.
fn hides_processes() -> bool {
    !Path::new("/proc/1/stat").exists()
}

/// One process; `None` when it is gone.
pub fn process(pid: u32) -> Option<Process> {
    let folder = format!("/proc/{pid}");
    let stat = read(&format!("{folder}/stat"), 4096)?;
    let Stat {
        comm,
        parent,
        kernel_thread,
        started,
    } = parse_stat(&stat)?;
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
    let status = read(&format!("{folder}/status"), 16 * 1024)?;
    let cgroup = read(&format!("{folder}/cgroup"), 64 * 1024)
        .map(|b| String::from_utf8_lossy(&b).into_owned());
    let cmdline = read(&format!("{folder}/cmdline"), CMDLINE).unwrap_or_default();
    let link = |name: &str| {
        let target = std::fs::read_link(format!("{folder}/{name}")).ok()?;
        Some(target.to_string_lossy().into_owned())
    };
    Some(Process {
        pid,
        parent,
        comm,
        exe: link("exe"),
        cmdline: arguments(&cmdline),
        uid: effective_uid(&String::from_utf8_lossy(&status))?,
        unit: cgroup.as_deref().and_then(unit_of_cgroup),
        container: cgroup.as_deref().and_then(container_of_cgroup),
        cgroup,
        net_ns: link("ns/net").and_then(|l| inode_of(&l, "net:[")),
        started,
        sockets: socket_inodes(&folder),
    })
}

/// At most `limit` bytes of a file.
fn read(path: &str, limit: u64) -> Option<Vec<u8>> {
    // Room from the start: /proc tells no size, and growing bit by bit would read bit by bit.
    let mut out = Vec::with_capacity(4096);
    File::open(path)
        .ok()?
        .take(limit)
        .read_to_end(&mut out)
        .ok()?;
    Some(out)
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

fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|l| l.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
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
fn inode_of(link: &str, prefix: &str) -> Option<u64> {
    link.strip_prefix(prefix)?.strip_suffix(']')?.parse().ok()
}

/// `None`: not permitted.
fn socket_inodes(folder: &str) -> Option<Vec<u64>> {
    let fds = match std::fs::read_dir(format!("{folder}/fd")) {
        Ok(fds) => fds,
        Err(e) if e.kind() == ErrorKind::PermissionDenied => return None,
        // Gone meanwhile.
        Err(_) => return Some(Vec::new()),
    };
    let mut out = Vec::new();
    for fd in fds.flatten().take(MAX_FDS) {
        match std::fs::read_link(fd.path()) {
            Ok(target) => {
                out.extend(target.to_str().and_then(|t| inode_of(t, "socket:[")));
            }
            Err(e) if e.kind() == ErrorKind::PermissionDenied => return None,
            Err(_) => {}
        }
    }
    out.sort_unstable();
    out.dedup();
    Some(out)
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
