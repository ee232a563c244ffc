//! The packet filter's rules.

use super::RulesFrom;
use super::disk;
use super::gaps::{Gaps, words};
use crate::exec::{self, Program};
use portcullis_core::host::Uncertain;
use reach::Ruleset;
use reach::parse::{Dumps, combine};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

const WHAT: &str = "packet filter";
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads the rules of every backend: from the kernel itself, and if it answers in a way that is
/// not understood, through the tools.
pub(super) fn read(from: RulesFrom) -> (Ruleset, Gaps) {
    if from == RulesFrom::Tools {
        return by_tools();
    }
    let mut gaps = Gaps::default();
    match kernel::filter() {
        Ok(filter) => {
            for why in filter.unseen {
                gaps.add(WHAT, why, Uncertain::Verdicts);
            }
            (filter.ruleset, gaps)
        }
        // The tools would be refused as well.
        Err(error) if error.is_permission() => {
            gaps.add(WHAT, words(&error), Uncertain::Verdicts);
            (Ruleset::default(), gaps)
        }
        Err(error) => {
            let (ruleset, more) = by_tools();
            // What failed is told only with what it costs.
            if !more.is_empty() {
                gaps.add(WHAT, words(&error), Uncertain::Verdicts);
                gaps.extend(more);
            }
            (ruleset, gaps)
        }
    }
}

/// The rules as nft, iptables-save and ipset print them.
fn by_tools() -> (Ruleset, Gaps) {
    let mut gaps = Gaps::default();
    // The dumps are independent of each other, and each waits for the kernel most of its time.
    let (nft, v4, v6) = std::thread::scope(|scope| {
        let nft = scope.spawn(|| dump(&["nft"], &["-j", "list", "ruleset"]));
        let v4 = scope.spawn(|| dump(&["iptables-nft-save", "iptables-save"], &[]));
        let v6 = scope.spawn(|| dump(&["ip6tables-nft-save", "ip6tables-save"], &[]));
        (joined(nft.join()), joined(v4.join()), joined(v6.join()))
    });
    // nft lists every table but cannot say what is in those of iptables; what only it shows
    // is marked as unknown by the parser, so its absence alone makes a gap.
    let nft = seen(nft, &mut gaps);
    let mut optional = |dump: Result<String, exec::Error>| match dump {
        Err(error) if error.is_not_found() => None,
        other => seen(other, &mut gaps),
    };
    let v4 = optional(v4);
    let v6 = optional(v6);
    let legacy4 = legacy(
        "/proc/net/ip_tables_names",
        "iptables-legacy-save",
        &mut gaps,
    );
    let legacy6 = legacy(
        "/proc/net/ip6_tables_names",
        "ip6tables-legacy-save",
        &mut gaps,
    );
    // Only with the module loaded: asking would load it.
    let ipset = if Path::new("/sys/module/ip_set").exists() {
        dump(&["ipset"], &["save"]).ok()
    } else {
        None
    };
    let (ruleset, _) = combine(Dumps {
        iptables: v4.as_deref(),
        ip6tables: v6.as_deref(),
        iptables_legacy: legacy4.as_deref(),
        ip6tables_legacy: legacy6.as_deref(),
        nft: nft.as_deref(),
        ipset: ipset.as_deref(),
    });
    (ruleset, gaps)
}

fn joined(result: std::thread::Result<Result<String, exec::Error>>) -> Result<String, exec::Error> {
    result.unwrap_or_else(|_| {
        Err(exec::Error::Io {
            program: "the reader".to_owned(),
            source: ErrorKind::Other.into(),
        })
    })
}

/// The output of the first of `programs` that is installed.
fn dump(programs: &[&str], args: &[&str]) -> Result<String, exec::Error> {
    let name = programs
        .iter()
        .find(|name| exec::find(name).is_some())
        .or(programs.first())
        .copied()
        .unwrap_or_default();
    let output = Program::new(name)
        .args(args)
        .timeout(PATIENCE)
        .max_output(1024 * 1024 * 1024)
        .run()?;
    Ok(output.stdout_text())
}

fn seen(dump: Result<String, exec::Error>, gaps: &mut Gaps) -> Option<String> {
    match dump {
        Ok(text) => Some(text),
        Err(error) => {
            gaps.add(WHAT, words(&error), Uncertain::Verdicts);
            None
        }
    }
}

/// The legacy tables of one family, if there are any: the tool would make them by looking.
fn legacy(names: &str, program: &str, gaps: &mut Gaps) -> Option<String> {
    match names_of(names) {
        Ok(false) => None,
        Ok(true) => seen(dump(&[program], &[]), gaps),
        Err(error) => {
            gaps.add(WHAT, format!("{names}: {error}"), Uncertain::Verdicts);
            None
        }
    }
}

fn names_of(path: &str) -> std::io::Result<bool> {
    let names = disk::read(Path::new(path), disk::SETTINGS)?;
    Ok(names.is_some_and(|names| names.iter().any(|byte| !byte.is_ascii_whitespace())))
}
