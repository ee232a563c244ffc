//! Small facts: names, privilege, packages, managed files.

use super::disk::{self, Disk};
use super::gaps::{Gaps, words};
use crate::exec::Program;
use portcullis_core::host::{FileFact, Uncertain};
use portcullis_core::planner::managed_files;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Debian packages that matter.
const PACKAGES: [&str; 20] = [
    "conntrack",
    "containerd.io",
    "docker-ce",
    "docker.io",
    "fail2ban",
    "firewalld",
    "ipset",
    "iptables",
    "iptables-persistent",
    "netfilter-persistent",
    "nftables",
    "nginx",
    "openssh-server",
    "podman",
    "podman-docker",
    "python3-pyasyncore",
    "python3-systemd",
    "rsyslog",
    "systemd",
    "ufw",
];

/// Most bytes of a managed file that are hashed.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// `PRETTY_NAME` of os-release(5); empty when there is none.
pub(super) fn os(disk: &Disk) -> String {
    ["/etc/os-release", "/usr/lib/os-release"]
        .iter()
        .find_map(|path| disk.text(path).ok().flatten())
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("PRETTY_NAME="))
                .map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
        })
        .unwrap_or_default()
}

/// Host name and kernel release.
pub(super) fn names() -> (String, String) {
    match nix::sys::utsname::uname() {
        Ok(names) => (
            names.nodename().to_string_lossy().into_owned(),
            names.release().to_string_lossy().into_owned(),
        ),
        Err(_) => (String::new(), String::new()),
    }
}

/// Whether this process has CAP_NET_ADMIN, and the right to look into other users' processes.
pub(super) fn privileged() -> bool {
    let status = disk::read(Path::new("/proc/self/status"), 64 * 1024);
    let status = status.ok().flatten().unwrap_or_default();
    let set = effective_set(&String::from_utf8_lossy(&status));
    // Numbers of linux/capability.h.
    let has = |bit: u32| set & (1 << bit) != 0;
    let (net_admin, sys_ptrace) = (has(12), has(19));
    net_admin && sys_ptrace
}

fn effective_set(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// The current time, RFC 3339 in UTC, whole seconds.
pub(super) fn now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

/// dpkg's database (dpkg(1), FILES).
const STATUS: &str = "/var/lib/dpkg/status";
/// Changes that dpkg has not yet written into [`STATUS`]: files with numbers as names.
const UPDATES: &str = "/var/lib/dpkg/updates";
/// Most bytes of [`STATUS`] that are read.
const MAX_STATUS: u64 = 256 * 1024 * 1024;

/// Versions of [`PACKAGES`]; empty on a host without dpkg.
pub(super) fn packages(disk: &Disk) -> (BTreeMap<String, Option<String>>, Gaps) {
    // Reading the file takes a tenth of what starting dpkg-query does. It has the last word while
    // packages are being installed.
    let pending = std::fs::read_dir(disk.path(UPDATES)).map(|mut folder| folder.next().is_some());
    let read = |file: File| match file.metadata()?.len() {
        0..=MAX_STATUS => known(BufReader::with_capacity(64 * 1024, file.take(MAX_STATUS))),
        _ => Err(io::Error::from(io::ErrorKind::FileTooLarge)),
    };
    let read = disk
        .open(STATUS)
        .and_then(|file| file.map(read).transpose());
    match (read, pending) {
        (Ok(Some(found)), Ok(false)) => {
            let found = found.iter();
            let found = found.map(|(name, state, version)| (*name, &**state, &**version));
            (installed(found), Gaps::default())
        }
        (Ok(None), _) => Default::default(),
        _ if disk.is_real() => asked(),
        _ => Default::default(),
    }
}

/// What dpkg's database has of [`PACKAGES`]: name, state, version. It has some hundred thousand lines, nearly
/// all of them about other packages. A stanza begins with the package's name, and lines that go on begin with
/// a space (deb-control(5)).
fn known(mut status: impl BufRead) -> io::Result<Vec<(&'static str, String, String)>> {
    let mut found = Vec::new();
    let mut current = None;
    let mut line = Vec::new();
    while status.read_until(b'\n', &mut line)? > 0 {
        let value = |field: &str| {
            let value = line.strip_prefix(field.as_bytes())?;
            Some(String::from_utf8_lossy(value).trim().to_owned())
        };
        if line.starts_with(b"Package:") {
            let name = value("Package:").unwrap_or_default();
            current = PACKAGES.iter().find(|known| **known == name);
            found.extend(current.map(|name| (*name, String::new(), String::new())));
        } else if current.is_some()
            && let Some((_, state, version)) = found.last_mut()
        {
            // `install ok installed`: what is wanted, whether that went wrong, the state.
            if let Some(words) = value("Status:") {
                *state = words.split(' ').next_back().unwrap_or_default().to_owned();
            } else if let Some(value) = value("Version:") {
                *version = value;
            }
        }
        line.clear();
    }
    Ok(found)
}

/// As dpkg-query tells it.
fn asked() -> (BTreeMap<String, Option<String>>, Gaps) {
    let mut gaps = Gaps::default();
    let program = Program::new("dpkg-query")
        .args([
            "--show",
            "--showformat=${Package}\\t${db:Status-Status}\\t${Version}\\n",
        ])
        .args(PACKAGES)
        .timeout(Duration::from_secs(5))
        .max_output(1024 * 1024);
    // Exit code 1 says that some of them are not known.
    match program.output() {
        Ok(output) if matches!(output.code(), Some(0 | 1)) => {
            (installed(columns(&output.stdout_text())), gaps)
        }
        Err(error) if error.is_not_found() => (BTreeMap::new(), gaps),
        Ok(output) => {
            gaps.add(
                "packages",
                format!("dpkg-query: {}", output.stderr_text().trim()),
                Uncertain::Mechanism,
            );
            (BTreeMap::new(), gaps)
        }
        Err(error) => {
            gaps.add("packages", words(&error), Uncertain::Mechanism);
            (BTreeMap::new(), gaps)
        }
    }
}

/// dpkg-query's lines: name, state, version.
fn columns(table: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split('\t');
        Some((fields.next()?, fields.next()?, fields.next()?))
    })
}

fn installed<'t>(
    found: impl Iterator<Item = (&'t str, &'t str, &'t str)>,
) -> BTreeMap<String, Option<String>> {
    let mut packages: BTreeMap<String, Option<String>> = PACKAGES
        .iter()
        .map(|name| ((*name).to_owned(), None))
        .collect();
    for (name, state, version) in found {
        if state == "installed" {
            packages.insert(name.to_owned(), Some(version.to_owned()));
        }
    }
    packages
}

/// The line of nftables.conf that takes every table away, others' too.
pub(super) fn nftables_flush(disk: &Disk) -> Option<String> {
    let text = disk.text("/etc/nftables.conf").ok().flatten()?;
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .find(|line| line.split_whitespace().eq(["flush", "ruleset"]))
        .map(str::to_owned)
}

/// The files that portcullis may write. One that cannot be read is left out, and is a gap.
pub(super) fn files<'a>(
    disk: &Disk,
    units: impl IntoIterator<Item = &'a str>,
) -> (BTreeMap<String, Option<FileFact>>, Gaps) {
    let mut gaps = Gaps::default();
    let mut files = BTreeMap::new();
    for path in managed_files(units) {
        match file(disk, &path) {
            Ok(fact) => {
                files.insert(path, fact);
            }
            Err(error) => gaps.add("files", format!("{path}: {error}"), Uncertain::Mechanism),
        }
    }
    (files, gaps)
}

fn file(disk: &Disk, path: &str) -> io::Result<Option<FileFact>> {
    let Some(bytes) = disk.bytes(path, MAX_FILE)? else {
        return Ok(None);
    };
    let meta = std::fs::metadata(disk.path(path))?;
    Ok(Some(FileFact {
        sha256: Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        size: bytes.len() as u64,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn capabilities_of_a_status_file() {
        assert_eq!(
            effective_set("Name:\tx\nCapEff:\t0000000000081000\n"),
            0x81000
        );
        assert_eq!(effective_set("CapEff:\tzz\n"), 0);
        assert_eq!(effective_set(""), 0);
    }

    #[test]
    fn only_installed_packages_have_a_version() {
        let packages = installed(columns(
            "ufw\tinstalled\t0.36.2-1\nfail2ban\tconfig-files\t1.0.2-2\nx\n",
        ));
        assert_eq!(packages["ufw"].as_deref(), Some("0.36.2-1"));
        assert_eq!(packages["fail2ban"], None);
        assert_eq!(packages["podman"], None);
        assert_eq!(packages.len(), PACKAGES.len());
    }

    #[test]
    fn dpkgs_database_tells_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path());
        assert!(packages(&disk).0.is_empty(), "a host without dpkg");
        let status = "Package: ufw\nStatus: install ok installed\nPriority: optional\n\
             Description: a\n Version: 9\nVersion: 0.36.2-1\n\n\
             Package: fail2ban\nStatus: deinstall ok config-files\nVersion: 1.0.2-2\n\n\
             Package: zsh\nStatus: install ok installed\nVersion: 5\n\n\
             Package: nginx\nStatus: install reinstreq half-installed\nVersion: 1.22\n";
        std::fs::create_dir_all(disk.path(UPDATES)).unwrap();
        std::fs::write(disk.path(STATUS), status).unwrap();
        let (packages, gaps) = packages(&disk);
        assert!(gaps.list().is_empty());
        assert_eq!(packages["ufw"].as_deref(), Some("0.36.2-1"));
        assert_eq!((&packages["fail2ban"], &packages["nginx"]), (&None, &None));
        assert_eq!(packages.len(), PACKAGES.len());
    }

    /// On this machine, where it is a Debian.
    #[test]
    fn dpkgs_database_and_dpkg_agree() {
        let disk = Disk::new(Path::new("/"));
        if let (read, gaps) = packages(&disk)
            && !read.is_empty()
        {
            assert!(gaps.list().is_empty());
            assert_eq!(read, asked().0);
        }
    }

    #[test]
    fn managed_files_with_hash_and_owner() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path());
        let (facts, gaps) = files(&disk, ["ours.service", "../x.service"]);
        let managed: Vec<String> = managed_files(["ours.service"]).into_iter().collect();
        assert!(facts.keys().eq(&managed) && facts.values().all(Option::is_none));
        assert!(gaps.list().is_empty());
        let path = disk.path(&managed[0]);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "abc").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        // What is there and no file is a gap, not "missing".
        std::fs::create_dir_all(disk.path(&managed[1])).unwrap();
        let (facts, gaps) = files(&disk, ["ours.service"]);
        let fact = facts[&managed[0]].as_ref().unwrap();
        assert_eq!((fact.size, fact.mode), (3, 0o640));
        assert!(fact.sha256.starts_with("ba7816bf"));
        assert!(!facts.contains_key(&managed[1]));
        assert_eq!(gaps.list().len(), 1);
    }

    #[test]
    fn os_release() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path());
        assert_eq!(os(&disk), "");
        std::fs::create_dir_all(disk.path("/etc")).unwrap();
        std::fs::write(
            disk.path("/etc/os-release"),
            "ID=x\nPRETTY_NAME=\"Debian 12\"\n",
        )
        .unwrap();
        assert_eq!(os(&disk), "Debian 12");
    }

    #[test]
    fn the_time_is_in_whole_seconds_utc() {
        let now = now();
        assert!(now.len() == 20 && now.ends_with('Z'), "{now}");
    }
}
