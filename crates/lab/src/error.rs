//! What can go wrong when hosts are made and driven.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a throw-away host could not be made or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces, mounts and Debian images need root.
    #[error("throw-away hosts need root (this process runs as user {uid})")]
    NotRoot {
        /// The effective user id of this process.
        uid: u32,
    },
    /// A program that the lab drives is not installed.
    #[error("{program} is not installed; it comes with the Debian package {package}")]
    Missing {
        /// The program looked for.
        program: String,
        /// The Debian package that has it, as far as the lab knows.
        package: String,
    },
    /// A system call or file operation failed.
    #[error("{what}")]
    Io {
        /// What was attempted, in words, with the path.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A program ended with a failure.
    #[error("`{argv}` on {host} ended with {status}: {stderr}")]
    Failed {
        /// The host it ran on.
        host: String,
        /// The program and its arguments.
        argv: String,
        /// `exit code N` or `signal N`.
        status: String,
        /// The last lines of its standard error, or of its output when that is empty.
        stderr: String,
    },
    /// Something did not happen in its time.
    #[error("{what} did not happen within {} s{detail}", after.as_secs_f32())]
    Timeout {
        /// What was waited for.
        what: String,
        /// The bound.
        after: Duration,
        /// What was seen instead, starting with `: `, or empty.
        detail: String,
    },
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// An [`Error::Io`] from anything that turns into an `io::Error`.
    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    pub(crate) fn timeout(what: impl Into<String>, after: Duration, seen: &str) -> Self {
        let seen = seen.trim();
        Self::Timeout {
            what: what.into(),
            after,
            detail: if seen.is_empty() {
                String::new()
            } else {
                format!(": {seen}")
            },
        }
    }
}

/// Adds what was attempted to an `io::Result` or a `nix::Result`.
pub(crate) trait Context<T> {
    /// Says what was attempted.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
    /// Says what was attempted with which path.
    fn at(self, verb: &str, path: &Path) -> Result<T>
    where
        Self: Sized,
    {
        let path: PathBuf = path.to_owned();
        self.context(|| format!("cannot {verb} {}", path.display()))
    }
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::io(what(), source))
    }
}

/// Errors unless this process may make namespaces and mounts.
pub fn need_root() -> Result<()> {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        Ok(())
    } else {
        Err(Error::NotRoot { uid: uid.as_raw() })
    }
}
