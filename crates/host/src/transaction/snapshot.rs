//! How the machine was: copies on the disk, made before the first change.
//!
//! A layer is a folder: `manifest.json`, the copied files, and the packet filter's dumps. Its
//! manifest's hash goes into the journal, so that a damaged snapshot is noticed rather than
//! restored.

use super::clock;
use crate::change::files::{self, Attributes, Found};
use crate::change::rules::{self, Ip};
use crate::change::systemd::{self, UnitState};
use crate::change::{Error, guard, packages};
use crate::exec::Program;
use portcullis_core::plan::{Action, Plan};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Folders whose files are all kept: what the `ufw` command and portcullis write lies in them.
const FOLDERS: [&str; 3] = [
    "/etc/ufw",
    "/etc/ufw/applications.d",
    "/etc/fail2ban/jail.d",
];

/// Single files that are kept.
const FILES: [&str; 3] = [
    "/etc/default/ufw",
    "/etc/fail2ban/jail.local",
    "/etc/fail2ban/fail2ban.local",
];

/// Units whose state is kept besides those of the plan.
const UNITS: [&str; 2] = ["ufw.service", "fail2ban.service"];

/// A path as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "was")]
pub(crate) enum Kept {
    Absent,
    File {
        /// Name of the copy in the layer's folder.
        copy: String,
        sha256: String,
        attributes: Attributes,
    },
    Link {
        target: PathBuf,
    },
}

impl Kept {
    /// What [`files::fingerprint`] says of a path in this state.
    pub(crate) fn fingerprint(&self) -> Option<String> {
        match self {
            Kept::Absent => None,
            Kept::File { sha256, .. } => Some(sha256.clone()),
            Kept::Link { target } => Some(files::sha256(target.as_os_str().as_encoded_bytes())),
        }
    }
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// When, RFC 3339, UTC.
    pub at: String,
    pub files: BTreeMap<String, Kept>,
    pub units: BTreeMap<String, UnitState>,
    /// `iptables-save -c`, `None` without the tool.
    pub iptables: Option<String>,
    pub ip6tables: Option<String>,
    /// The guard's table without its bans.
    pub guard: Option<String>,
    /// fail2ban's server answered.
    pub fail2ban_alive: bool,
    /// Banned addresses by jail, for the record: a rollback never brings back a ban.
    pub bans: BTreeMap<String, Vec<String>>,
    /// Packages of the plan that were missing.
    pub missing_packages: Vec<String>,
}

impl Snapshot {
    pub(crate) fn rules(&self, ip: Ip) -> Option<&str> {
        match ip {
            Ip::V4 => self.iptables.as_deref(),
            Ip::V6 => self.ip6tables.as_deref(),
        }
    }
}

/// The folder of a layer.
pub(crate) fn folder(transaction: &Path, layer: u32) -> PathBuf {
    transaction.join(format!("snapshot-{layer}"))
}

/// Makes a layer and writes it to the disk. Returns it with its manifest's SHA-256.
pub(crate) fn take(
    transaction: &Path,
    layer: u32,
    plan: &Plan,
) -> Result<(Snapshot, String), Error> {
    let folder = folder(transaction, layer);
    let doing = |source: io::Error| Error::io("write the snapshot", source);
    DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .map_err(doing)?;
    let mut copies = 0_u32;
    let mut kept = BTreeMap::new();
    for path in paths(plan).map_err(doing)? {
        let state = keep(Path::new(&path), &folder, &mut copies)
            .map_err(|source| Error::io(format!("copy {path} into the snapshot"), source))?;
        if let Some(state) = state {
            kept.insert(path, state);
        }
    }
    let units: BTreeSet<String> = plan
        .changes
        .iter()
        .filter_map(|change| match &change.action {
            Action::Systemd { unit, .. } if !unit.is_empty() => Some(unit.clone()),
            _ => None,
        })
        .chain(UNITS.map(str::to_owned))
        .collect();
    let wanted: Vec<String> = plan
        .changes
        .iter()
        .filter_map(|change| match &change.action {
            Action::InstallPackages { packages } => Some(packages.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    let fail2ban_alive = systemd::fail2ban_alive();
    let snapshot = Snapshot {
        at: clock::wall(),
        files: kept,
        units: systemd::states(&units.into_iter().collect::<Vec<_>>())?,
        iptables: rules::saved(Ip::V4)?,
        ip6tables: rules::saved(Ip::V6)?,
        guard: guard::captured()?,
        fail2ban_alive,
        bans: if fail2ban_alive {
            bans()
        } else {
            BTreeMap::new()
        },
        missing_packages: packages::missing(&wanted)?,
    };
    let manifest = serde_json::to_vec_pretty(&snapshot).map_err(|error| doing(error.into()))?;
    write(&folder.join("manifest.json"), &manifest).map_err(doing)?;
    // One call instead of an fsync for each copy; the folder's own name as well.
    let handle = File::open(&folder).map_err(doing)?;
    nix::unistd::syncfs(&handle).map_err(|error| doing(error.into()))?;
    Ok((snapshot, files::sha256(&manifest)))
}

/// Reads a layer back. An error when it is not what the journal says.
pub(crate) fn load(transaction: &Path, layer: u32, sha256: &str) -> io::Result<Snapshot> {
    let manifest = fs::read(folder(transaction, layer).join("manifest.json"))?;
    if files::sha256(&manifest) != sha256 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the snapshot's manifest is damaged",
        ));
    }
    Ok(serde_json::from_slice(&manifest)?)
}

/// The bytes of a copied file; an error when they are not those that were copied.
pub(crate) fn copy(
    transaction: &Path,
    layer: u32,
    name: &str,
    sha256: &str,
) -> io::Result<Vec<u8>> {
    let bytes = fs::read(folder(transaction, layer).join(name))?;
    if files::sha256(&bytes) != sha256 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the copy in the snapshot is damaged",
        ));
    }
    Ok(bytes)
}

/// Every path whose state is kept.
fn paths(plan: &Plan) -> io::Result<BTreeSet<String>> {
    let mut paths: BTreeSet<String> = FILES.map(str::to_owned).into();
    paths.extend(crate::change::ufw::WRITTEN.map(str::to_owned));
    for change in &plan.changes {
        if let Action::WriteFile { path, .. }
        | Action::RemoveFile { path }
        | Action::EditCompose { path, .. } = &change.action
        {
            paths.insert(path.clone());
        }
    }
    for folder in FOLDERS {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            // A name that is no UTF-8 is none that anybody here writes.
            if let Some(path) = path.to_str() {
                paths.insert(path.to_owned());
            }
        }
    }
    Ok(paths)
}

fn keep(path: &Path, folder: &Path, copies: &mut u32) -> io::Result<Option<Kept>> {
    Ok(match files::look(path)? {
        Found::Absent => Some(Kept::Absent),
        Found::Link(target) => Some(Kept::Link { target }),
        Found::Other => None,
        Found::File(bytes, attributes) => {
            let copy = format!("file-{copies}");
            *copies += 1;
            write(&folder.join(&copy), &bytes)?;
            Some(Kept::File {
                copy,
                sha256: files::sha256(&bytes),
                attributes,
            })
        }
    })
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?
        .write_all(bytes)
}

/// Banned addresses by jail, as fail2ban lists them; nothing when it does not say.
fn bans() -> BTreeMap<String, Vec<String>> {
    // [{'sshd': ['192.0.2.1', …]}, …], Python's own notation.
    let Ok(output) = Program::new("fail2ban-client").arg("banned").run() else {
        return BTreeMap::new();
    };
    let mut bans: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let text = output.stdout_text();
    let mut jail = String::new();
    for (index, quoted) in text.split('\'').enumerate() {
        if index % 2 == 0 {
            continue;
        }
        if quoted.parse::<std::net::IpAddr>().is_ok() {
            bans.entry(jail.clone())
                .or_default()
                .push(quoted.to_owned());
        } else {
            jail = quoted.to_owned();
        }
    }
    bans
}
