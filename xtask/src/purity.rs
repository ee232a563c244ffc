//! The pure crates stay pure: what they depend on is on a list, and they use nothing of std that does IO.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The pure crates: package name, folder.
const PURE: [(&str, &str); 2] = [
    ("portcullis-reach", "crates/reach"),
    ("portcullis-core", "crates/core"),
];

/// Every crate that the pure crates may link, directly or not. None of them opens files, sockets or processes, or asks
/// for the time.
const ALLOWED: &str = include_str!("../pure-dependencies.txt");

/// What in std does IO or asks the machine something.
const IMPURE: [&str; 12] = [
    "std::fs",
    "std::process",
    "std::env",
    "std::thread",
    "std::os::",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "std::time::SystemTime",
    "std::time::Instant",
    "TcpStream",
    "UdpSocket",
];

/// Checks both.
pub(crate) fn check() -> Result<(), String> {
    let root = workspace();
    let allowed: BTreeSet<&str> = ALLOWED
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .collect();
    let mut faults = Vec::new();
    for (package, folder) in PURE {
        for dependency in dependencies(&root, package)? {
            if !allowed.contains(dependency.as_str()) {
                faults.push(format!(
                    "{package} depends on {dependency}, which is not on xtask/pure-dependencies.txt"
                ));
            }
        }
        sources(&root.join(folder).join("src"), &mut faults)?;
    }
    if faults.is_empty() {
        println!("xtask: reach and core cannot do IO");
        Ok(())
    } else {
        Err(faults.join("\n"))
    }
}

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
        .to_owned()
}

pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// The names of everything that a package links, without itself and without what only runs in the compiler.
fn dependencies(root: &Path, package: &str) -> Result<BTreeSet<String>, String> {
    let output = cargo()
        .current_dir(root)
        .args(["tree", "--package", package])
        .args(["--edges", "normal,no-proc-macro", "--prefix", "none"])
        .output()
        .map_err(|error| format!("cannot run cargo tree: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "cargo tree failed: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != package)
        .map(str::to_owned)
        .collect())
}

fn sources(folder: &Path, faults: &mut Vec<String>) -> Result<(), String> {
    let cannot = |error| format!("cannot read {}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.is_dir() {
            sources(&path, faults)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).map_err(cannot)?;
            impurities(&text, |number, what| {
                faults.push(format!(
                    "{}:{number}: a pure crate uses {what}",
                    path.display()
                ));
            });
        }
    }
    Ok(())
}

/// Calls `found` with the line number of each use of [`IMPURE`] outside comments and outside a test module at the end.
fn impurities(text: &str, mut found: impl FnMut(usize, &str)) {
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("#[cfg(test)]") {
            return;
        }
        let code = line.split("//").next().unwrap_or_default();
        for what in IMPURE {
            if code.contains(what) {
                found(number, what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[track_caller]
    fn check(text: &str, expect: &[(usize, &str)]) {
        let mut seen = Vec::new();
        super::impurities(text, |number, what| seen.push((number, what.to_owned())));
        let seen: Vec<_> = seen
            .iter()
            .map(|(number, what)| (*number, what.as_str()))
            .collect();
        assert_eq!(seen, expect, "{text}");
    }

    #[test]
    fn io_is_found() {
        check("use std::fs;\n", &[(1, "std::fs")]);
        check(
            "fn f() {\n    std::env::var(\"X\");\n}\n",
            &[(2, "std::env")],
        );
        check("use std::net::{IpAddr, TcpStream};", &[(1, "TcpStream")]);
    }

    #[test]
    fn words_and_tests_are_left_alone() {
        check(
            "/// Unlike std::fs, …\n// std::env\nuse std::net::IpAddr;\n",
            &[],
        );
        check("fn f() {}\n#[cfg(test)]\nmod tests { use std::fs; }\n", &[]);
    }
}
