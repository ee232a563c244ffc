//! What can go wrong when the kernel is asked.

use nix::errno::Errno;

/// Why a question to the kernel has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel asks for a privilege that this process lacks (`EPERM`, `EACCES`).
    #[error("{what}: not permitted ({needs} is needed)")]
    Permission {
        /// What was asked.
        what: String,
        /// The capability that would allow it.
        needs: &'static str,
    },
    /// The kernel answered with an error number.
    #[error("{what}: {errno}")]
    Kernel {
        /// What was asked.
        what: String,
        /// The error number.
        errno: Errno,
    },
    /// The tables changed under every attempt to read them.
    #[error("{what}: kept changing while being read ({attempts} attempts)")]
    Unstable {
        /// What was asked.
        what: String,
        /// Number of attempts.
        attempts: u32,
    },
    /// The answer does not have the shape that the kernel's headers promise.
    #[error("{what}: malformed answer from the kernel: {detail}")]
    Malformed {
        /// What was asked.
        what: String,
        /// What was wrong.
        detail: String,
    },
    /// The answer is larger than this reader takes.
    #[error("{what}: more than {limit} entries")]
    TooMuch {
        /// What was asked.
        what: String,
        /// The limit.
        limit: usize,
    },
    /// No answer in time.
    #[error("{what}: no answer within {seconds} s")]
    Timeout {
        /// What was asked.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A file could not be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn kernel(what: &str, errno: Errno) -> Error {
        match errno {
            Errno::EPERM | Errno::EACCES => Error::Permission {
                what: what.to_owned(),
                needs: "CAP_NET_ADMIN",
            },
            _ => Error::Kernel {
                what: what.to_owned(),
                errno,
            },
        }
    }

    pub(crate) fn malformed(what: &str, detail: impl Into<String>) -> Error {
        Error::Malformed {
            what: what.to_owned(),
            detail: detail.into(),
        }
    }

    /// True when a missing privilege is the reason.
    pub fn is_permission(&self) -> bool {
        match self {
            Error::Permission { .. } => true,
            Error::File { source, .. } => source.kind() == std::io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }
}
