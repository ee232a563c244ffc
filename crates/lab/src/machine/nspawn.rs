//! systemd-nspawn: how it is started, and how the machine's first process is found.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::cell::{self, Cell, Namespaces, everything};
use crate::error::{Context, Error, Result};
use crate::process;
use crate::room::cgroup_roots;

/// Where Docker and Podman keep images and containers, and the folder for it below [`Setup::storage`].
pub(super) const STORAGE: [(&str, &str); 2] = [
    ("docker", "/var/lib/docker"),
    ("podman", "/var/lib/containers"),
];

/// What a machine is started with.
pub(super) struct Setup<'a> {
    /// Its network, and where everything ends that it starts.
    pub(super) cell: &'a Cell,
    /// Its root folder, as seen in the cell.
    pub(super) root: &'a Path,
    /// A plain folder for each of [`STORAGE`]: engines' storage is an overlay, and the kernel allows none on an overlay.
    pub(super) storage: &'a Path,
    /// Where its console goes.
    pub(super) console: &'a Path,
    /// The name of its cgroup.
    pub(super) cgroup: &'a str,
}

/// A running systemd-nspawn; killed on drop.
#[derive(Debug)]
pub(super) struct Nspawn(Child);

impl Nspawn {
    pub(super) fn start(setup: &Setup<'_>) -> Result<Self> {
        let cgroups = cgroups(setup.cgroup)?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(setup.console)
            .at("open", setup.console)?;
        let copy = log.try_clone().context(|| "cannot share a file".into())?;
        let child = setup.cell.spaces().within(everything(), || {
            let mut command = cell::clean("/usr/bin/systemd-nspawn");
            command
                // Docker uses system calls that the filter would refuse.
                .env("SYSTEMD_SECCOMP", "0")
                // systemd from 257 on knows only the unified hierarchy.
                .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
                // UFW and Docker set network sysctls, which are the machine's own. The others are this machine's, and
                // stay read-only.
                .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
                .arg("--quiet")
                .arg("--boot")
                .arg("--directory")
                .arg(setup.root)
                .args(["--machine=server", "--hostname=server"])
                // No machine manager is asked, and a reboot is ours to do: the network must be a new one.
                .args(["--register=no", "--keep-unit"])
                .args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"])
                // For a network that it did not make itself, nspawn gives no rights over it.
                .args(["--capability=CAP_NET_ADMIN", "--property=DevicePolicy=auto"])
                // The cell's own network; the holder is its process 1.
                .arg("--network-namespace-path=/proc/1/ns/net")
                .arg("--console=pipe")
                .args(STORAGE.map(|(folder, path)| {
                    format!("--bind={}:{path}", setup.storage.join(folder).display())
                }))
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(copy)
                .process_group(0);
            // SAFETY: between fork and exec the closure does nothing but write(2) on descriptors opened before, which
            // is safe after a fork of a process with threads (signal-safety(7)).
            unsafe {
                command.pre_exec(move || {
                    for cgroup in &cgroups {
                        // 0 stands for the process that writes.
                        nix::unistd::write(cgroup.as_fd(), b"0")?;
                    }
                    Ok(())
                });
            }
            command
                .spawn()
                .context(|| "cannot run systemd-nspawn".into())
        })??;
        Ok(Self(child))
    }

    /// The machine's first process, as seen from here, and its namespaces, once it is systemd.
    pub(super) fn leader(&mut self, bound: Duration) -> Result<(u32, Namespaces)> {
        let start = Instant::now();
        loop {
            if let Some(pid) = child_that_is_systemd(self.0.id()) {
                return Ok((pid, Namespaces::of(pid)?));
            }
            let ended = self.0.try_wait().ok().flatten().is_some();
            if ended || start.elapsed() >= bound {
                return Err(Error::timeout(
                    "the start of systemd in a machine",
                    bound,
                    "",
                ));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for its end; `None` when it still runs after `bound`.
    pub(super) fn wait(&mut self, bound: Duration) -> Option<ExitStatus> {
        process::wait(&mut self.0, bound)
    }
}

impl Drop for Nspawn {
    fn drop(&mut self) {
        process::end(&mut self.0);
    }
}

/// A cgroup of the machine's own in the hierarchies that systemd uses, so that two machines do not share one: its
/// `cgroup.procs` files, open for writing.
fn cgroups(name: &str) -> Result<Vec<fs::File>> {
    cgroup_roots()
        .into_iter()
        .filter(|root| {
            root.file_name()
                .is_some_and(|name| name == "cgroup" || name == "systemd" || name == "unified")
        })
        .map(|root| {
            let path = root.join(name);
            fs::create_dir_all(&path).at("make", &path)?;
            let procs = path.join("cgroup.procs");
            fs::File::options()
                .write(true)
                .open(&procs)
                .at("open", &procs)
        })
        .collect()
}

/// systemd-nspawn's child that is the first process of a new process-id namespace and runs systemd.
fn child_that_is_systemd(parent: u32) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?;
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
                return false;
            };
            let field = |name: &str| {
                status
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                    .map_or("", str::trim)
            };
            field("PPid").parse() == Ok(parent)
                && field("NSpid").split_whitespace().next_back() == Some("1")
                && field("Name") == "systemd"
        })
}
