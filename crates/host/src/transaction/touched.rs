//! What a rollback goes by: how it was (the snapshot), and what may have been altered (the journal).

use super::journal::Record;
use super::snapshot::{self, Kept, Snapshot};
use crate::change::{Touch, files, ufw};
use portcullis_core::plan::SystemdVerb;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The snapshot's layers with what the journal says.
pub(super) struct Then {
    pub(super) folder: PathBuf,
    pub(super) layers: Vec<(u32, Snapshot)>,
}

impl Then {
    pub(super) fn read(folder: PathBuf, records: &[Record]) -> Result<Self, String> {
        let mut layers = vec![];
        for record in records {
            if let Record::Snapshot { layer, sha256 } = record {
                let snapshot = snapshot::load(&folder, *layer, sha256)
                    .map_err(|error| format!("cannot read the snapshot: {error}"))?;
                layers.push((*layer, snapshot));
            }
        }
        Ok(Self { folder, layers })
    }

    /// How it was before everything; `None`: the transaction never came that far.
    pub(super) fn first(&self) -> Option<&Snapshot> {
        self.layers.first().map(|(_, snapshot)| snapshot)
    }

    /// What a path should be again, and the layer that holds its copy. A file that a package brought
    /// stays as the package brought it, unless the package goes too.
    pub(super) fn wanted(&self, path: &str, purge: bool) -> Option<(u32, &Kept)> {
        let mut found: Option<(u32, &Kept)> = None;
        for (layer, snapshot) in &self.layers {
            match snapshot.files.get(path) {
                Some(kept) if matches!(found, None | Some((_, Kept::Absent))) => {
                    let later = found.is_some() && purge;
                    if !later {
                        found = Some((*layer, kept));
                    }
                }
                _ => {}
            }
        }
        found
    }

    pub(super) fn paths(&self) -> BTreeSet<&str> {
        self.layers
            .iter()
            .flat_map(|(_, snapshot)| snapshot.files.keys().map(String::as_str))
            .collect()
    }
}

/// All that the journal says may have been altered.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) files: BTreeSet<String>,
    pub(super) made_folders: BTreeSet<String>,
    pub(super) ufw: bool,
    pub(super) guard: bool,
    pub(super) units: BTreeMap<String, bool>,
    pub(super) reload: bool,
    pub(super) packages: BTreeSet<String>,
    pub(super) connections: bool,
    pub(super) any: bool,
}

impl Touched {
    pub(super) fn of(records: &[Record]) -> Self {
        let mut touched = Self::default();
        for record in records {
            let Record::Intent { touches, .. } = record else {
                continue;
            };
            touched.any = true;
            for touch in touches {
                match touch {
                    Touch::File { path, made_folders } => {
                        touched.files.insert(path.clone());
                        touched.made_folders.extend(made_folders.iter().cloned());
                    }
                    Touch::Ufw => touched.ufw = true,
                    Touch::Guard => touched.guard = true,
                    Touch::Unit { unit, verb } => {
                        if unit.is_empty() || *verb == SystemdVerb::DaemonReload {
                            touched.reload = true;
                        } else {
                            let restart = touched.units.entry(unit.clone()).or_default();
                            *restart |= *verb == SystemdVerb::Restart;
                        }
                    }
                    Touch::Packages { names } => touched.packages.extend(names.iter().cloned()),
                    Touch::Connections => touched.connections = true,
                }
            }
        }
        touched
    }

    /// Records are missing: whatever the snapshot knows may have been altered.
    pub(super) fn everything(mut self, then: &Then) -> Self {
        self.any = true;
        self.files
            .extend(then.paths().iter().map(|path| (*path).to_owned()));
        (self.ufw, self.guard, self.reload) = (true, true, true);
        if let Some(first) = then.first() {
            for unit in first.units.keys() {
                self.units.entry(unit.clone()).or_insert(true);
            }
            self.packages.extend(first.missing_packages.iter().cloned());
        }
        self
    }

    /// Files to put back: those written, and UFW's own when a `ufw` command ran.
    pub(super) fn all_files(&self, then: &Then) -> BTreeSet<String> {
        let mut all = self.files.clone();
        if self.ufw {
            all.extend(
                then.paths()
                    .into_iter()
                    .filter(|path| path.starts_with("/etc/ufw/") || *path == "/etc/default/ufw")
                    .map(str::to_owned),
            );
        }
        all
    }
}

/// The last known fingerprint of each file after the transaction's own changes; files whose change
/// was interrupted are missing.
pub(super) fn fingerprints(records: &[Record]) -> BTreeMap<String, Option<String>> {
    let mut last: BTreeMap<String, Option<String>> = BTreeMap::new();
    for record in records {
        match record {
            Record::Intent { touches, .. } => {
                for touch in touches {
                    match touch {
                        Touch::File { path, .. } => drop(last.remove(path)),
                        Touch::Ufw => {
                            for path in ufw::WRITTEN {
                                last.remove(path);
                            }
                        }
                        _ => {}
                    }
                }
            }
            Record::Done { after, .. } => last.extend(after.iter().cloned()),
            _ => {}
        }
    }
    last
}

/// Files that are no longer as the transaction left them.
pub(super) fn changed_since(records: &[Record]) -> Vec<String> {
    fingerprints(records)
        .into_iter()
        .filter(|(path, after)| files::fingerprint(Path::new(path)).is_ok_and(|now| now != *after))
        .map(|(path, _)| path)
        .collect()
}
