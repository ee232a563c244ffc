//! Files that the user names: read with a bound, errors with a hint.

use crate::args::{FactsSource, PolicySource, Probe};
use crate::error::CliError;
use host::observe::SnapshotError;
use portcullis_core::catalog;
use portcullis_core::host::{HOST_SCHEMA, Host};
use portcullis_core::policy::Policy;
use portcullis_core::text::clean;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Where a policy lives when nothing else is said.
pub const POLICY_PATH: &str = "/etc/portcullis/policy.toml";
/// Bytes that are read of a policy at the most.
const POLICY_LIMIT: u64 = 1 << 20;
/// Bytes that are read of a file of the catalog at the most.
const CATALOG_LIMIT: u64 = 256 << 10;
/// Files of the catalog's folder at the most.
const CATALOG_FILES: usize = 500;
/// Bytes that are read of a dump or snapshot at the most.
pub const DUMP_LIMIT: u64 = 512 << 20;

/// Reads a text file of at most `limit` bytes; `-` is standard input. Bytes that are no UTF-8 are
/// replaced: a dump with a strange comment is still a dump.
pub fn text(path: &Path, what: &str, limit: u64) -> Result<String, CliError> {
    let unreadable = |error: &std::io::Error| {
        CliError::usage(format!("cannot read {what} {}", path.display()))
            .because(error)
            .hint("name a file that exists and that you may read")
    };
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(limit + 1)
            .read_to_end(&mut bytes)
    } else {
        File::open(path)
            .map_err(|error| unreadable(&error))?
            .take(limit + 1)
            .read_to_end(&mut bytes)
    };
    read.map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > limit {
        return Err(CliError::usage(format!(
            "{what} {} is larger than {} MiB",
            path.display(),
            limit >> 20
        )));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

/// The facts: of a snapshot file, or of this machine.
pub fn facts(source: &FactsSource) -> Result<Host, CliError> {
    match &source.snapshot {
        Some(path) => snapshot(path),
        None => Ok(host::observe::observe()),
    }
}

/// The facts, and what the ports of this machine answer. A snapshot has the answers in it, if they were asked for.
pub fn probed_facts(source: &FactsSource, probe: &Probe) -> Result<Host, CliError> {
    let mut facts = facts(source)?;
    if source.snapshot.is_none() && !probe.no_probe {
        recognise::local(&mut facts, &recognise::Options::default());
    }
    Ok(facts)
}

/// Puts the files of a folder on top of the embedded catalog. Without the folder there is nothing to do.
pub fn catalog(folder: &Path) -> Result<(), CliError> {
    let unreadable = |error: &std::io::Error| {
        CliError::usage(format!(
            "cannot read the catalog's folder {}",
            folder.display()
        ))
        .because(error)
        .hint("it holds files NAME.toml, one a service; see: portcullis catalog ollama --json")
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(&error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| unreadable(&error))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
        if paths.len() > CATALOG_FILES {
            return Err(CliError::usage(format!(
                "more than {CATALOG_FILES} files in {}",
                folder.display()
            )));
        }
    }
    if paths.is_empty() {
        return Ok(());
    }
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        only_owners_write(&path)?;
        let text = text(&path, "catalog file", CATALOG_LIMIT)?;
        files.push((clean(&path.display().to_string()), text));
    }
    match catalog::extend(&files) {
        Ok(services) => {
            catalog::install(services);
            Ok(())
        }
        Err(faults) => {
            // A message of the TOML reader has several lines; each is made safe by itself.
            let lines = faults.iter().flat_map(|fault| {
                let mut lines = fault.what.lines().map(clean);
                let first = lines.next().unwrap_or_default();
                std::iter::once(format!("{}: {first}", fault.file)).chain(lines)
            });
            Err(CliError::usage(format!(
                "the catalog's own files were refused\n  {}",
                lines.collect::<Vec<_>>().join("\n  ")
            ))
            .hint("nothing was done; mend or remove these files and try again"))
        }
    }
}

/// What such a file says decides what is written for root, so nobody else may have a say in it.
fn only_owners_write(path: &Path) -> Result<(), CliError> {
    let about = std::fs::metadata(path).map_err(|error| {
        CliError::usage(format!("cannot look at {}", path.display())).because(&error)
    })?;
    let own = nix::unistd::geteuid().as_raw();
    if about.mode() & 0o022 == 0 && (about.uid() == 0 || about.uid() == own) {
        return Ok(());
    }
    Err(CliError::usage(format!(
        "others than its owner may change {}",
        path.display()
    ))
    .hint(format!(
        "chown root: {0} && chmod go-w {0}",
        clean(&path.display().to_string())
    )))
}

/// Reads a snapshot file.
pub fn snapshot(path: &Path) -> Result<Host, CliError> {
    let text = text(path, "snapshot", DUMP_LIMIT)?;
    host::observe::from_snapshot(&text).map_err(|error| {
        let path = path.display();
        match error {
            SnapshotError::Version { found } => CliError::usage(format!(
                "{path} has snapshot format {found}, this portcullis reads {HOST_SCHEMA}"
            ))
            .hint("make the snapshot again with this version of portcullis"),
            SnapshotError::Shape(why) => CliError::usage(format!("{path} is not a snapshot"))
                .because(&why)
                .hint("make one with: portcullis snapshot > host.json"),
            SnapshotError::Write(why) => {
                CliError::usage(format!("{path} is not a snapshot")).because(&why)
            }
        }
    })
}

/// The policy that counts: the file named, else the machine's, else the built-in one; with its name.
pub fn policy(source: &PolicySource) -> Result<(Policy, String), CliError> {
    let path = match &source.policy {
        Some(path) => path.as_path(),
        None if Path::new(POLICY_PATH).exists() => Path::new(POLICY_PATH),
        None => return Ok((Policy::builtin(), "built-in policy".into())),
    };
    let name = path.display().to_string();
    // The report below shows the text itself. TOML allows no control characters anyway, so nothing
    // that could steer a terminal is lost to a policy that means something.
    let text: String = text(path, "policy", POLICY_LIMIT)?
        .chars()
        .map(|c| match c {
            '\n' | '\t' | '\r' => c,
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect();
    match Policy::parse(&name, &text) {
        Ok(policy) => Ok((policy, name)),
        Err(errors) => {
            // The report carries file, line and caret itself.
            eprintln!("{:?}", miette::Report::new(errors));
            Err(CliError::usage(format!("the policy {name} was refused"))
                .hint("nothing was changed; mend the lines marked above and try again"))
        }
    }
}
