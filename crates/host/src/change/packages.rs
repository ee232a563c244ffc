//! Debian packages, through apt-get and dpkg.

use super::{Error, Touch};
use crate::exec::Program;
use std::fs;
use std::time::Duration;

/// Fetching and unpacking on a slow line; apt itself waits for other package managers within it.
const SLOW: Duration = Duration::from_secs(600);

/// Debian Policy 5.6.1: lower case letters, digits, plus, minus and full stop, two or more, starting
/// with a letter or digit.
fn is_name(name: &str) -> bool {
    name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
}

/// Those of `packages` that are not installed.
pub(crate) fn missing(packages: &[String]) -> Result<Vec<String>, Error> {
    let mut missing = vec![];
    for name in packages {
        let output = Program::new("dpkg-query")
            .args(["-W", "-f", "${db:Status-Status}", "--", name])
            .output()
            .map_err(|source| Error::program("ask dpkg what is installed", source))?;
        if !output.success() || output.stdout_text().trim() != "installed" {
            missing.push(name.clone());
        }
    }
    Ok(missing)
}

fn apt_get() -> Program {
    Program::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        // needrestart (Ubuntu) would ask, or restart services on its own.
        .env("NEEDRESTART_SUSPEND", "1")
        .args([
            "-q",
            "-y",
            "-o",
            "DPkg::Lock::Timeout=120",
            "-o",
            "Dpkg::Options::=--force-confdef",
            "-o",
            "Dpkg::Options::=--force-confold",
        ])
        .timeout(SLOW)
        .truncate()
}

pub(super) fn check(packages: &[String]) -> Result<(), Error> {
    for name in packages {
        if !is_name(name) {
            return Err(Error::refused(name, "not a package name"));
        }
    }
    if crate::exec::find("apt-get").is_none() || crate::exec::find("dpkg-query").is_none() {
        return Err(Error::refused(
            packages.join(", "),
            "cannot be installed: this system has no apt",
        ));
    }
    Ok(())
}

pub(super) fn touches(packages: &[String]) -> Result<Vec<Touch>, Error> {
    Ok(vec![Touch::Packages {
        names: missing(packages)?,
    }])
}

pub(super) fn install(packages: &[String]) -> Result<(), Error> {
    let wanted = missing(packages)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let doing = format!("install {}", wanted.join(" "));
    let fetch = || {
        apt_get()
            .args(["install", "--no-install-recommends", "--"])
            .args(&wanted)
            .run()
    };
    let mut result = Ok(());
    if !has_lists() {
        result = apt_get().arg("update").run().map(drop);
    }
    // Lists that are old name files that the mirror no longer has: fetch them anew and try again.
    let result = match result.and_then(|()| fetch().map(drop)) {
        Err(crate::exec::Error::Failed { .. }) => apt_get()
            .arg("update")
            .run()
            .and_then(|_| fetch())
            .map(drop),
        other => other,
    };
    let still = missing(packages)?;
    if still.is_empty() {
        return Ok(());
    }
    result.map_err(|source| Error::program(doing, source))?;
    Err(Error::read_back(
        still.join(", "),
        "apt-get was content, but dpkg does not call it installed",
    ))
}

/// Removes packages with their configuration. Only on the user's own word.
pub(crate) fn purge(packages: &[String]) -> Result<(), Error> {
    for name in packages {
        if !is_name(name) {
            return Err(Error::refused(name, "not a package name"));
        }
    }
    let present: Vec<String> = {
        let gone = missing(packages)?;
        packages
            .iter()
            .filter(|name| !gone.contains(name))
            .cloned()
            .collect()
    };
    // A removed package can still have its configuration: purge all that were named.
    apt_get()
        .args(["purge", "--"])
        .args(packages)
        .run()
        .map_err(|source| Error::program(format!("remove {}", packages.join(" ")), source))?;
    let still: Vec<String> = {
        let gone = missing(&present)?;
        present
            .into_iter()
            .filter(|name| !gone.contains(name))
            .collect()
    };
    if still.is_empty() {
        Ok(())
    } else {
        Err(Error::read_back(still.join(", "), "still installed"))
    }
}

/// True when apt has package lists to choose from.
fn has_lists() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_names() {
        for good in [
            "ufw",
            "fail2ban",
            "python3-systemd",
            "g++",
            "0ad",
            "libc6.1",
        ] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            "u",
            "-y",
            "UFW",
            "ufw;id",
            "ufw=1",
            "a/b",
            "--reinstall",
            "+a",
            "ü2",
        ] {
            assert!(!is_name(bad), "{bad}");
            assert!(check(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
