//! Files that the user names: read with a bound, errors with a hint.

use crate::args::{FactsSource, PolicySource};
use crate::error::CliError;
use portcullis_core::host::{HOST_SCHEMA, Host};
use portcullis_core::policy::Policy;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Where a policy lives when nothing else is said.
pub const POLICY_PATH: &str = "/etc/portcullis/policy.toml";
/// Bytes that are read of a policy at the most.
const POLICY_LIMIT: u64 = 1 << 20;
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

/// Reads a snapshot file.
pub fn snapshot(path: &Path) -> Result<Host, CliError> {
    let text = text(path, "snapshot", DUMP_LIMIT)?;
    let unreadable = |error: &serde_json::Error| {
        CliError::usage(format!("{} is not a snapshot", path.display()))
            .because(error)
            .hint("make one with: portcullis snapshot > host.json")
    };
    #[derive(serde::Deserialize)]
    struct Versioned {
        schema: u32,
    }
    let version: Versioned = serde_json::from_str(&text).map_err(|error| unreadable(&error))?;
    if version.schema != HOST_SCHEMA {
        return Err(CliError::usage(format!(
            "{} has snapshot format {}, this portcullis reads {HOST_SCHEMA}",
            path.display(),
            version.schema
        ))
        .hint("make the snapshot again with this version of portcullis"));
    }
    serde_json::from_str(&text).map_err(|error| unreadable(&error))
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
