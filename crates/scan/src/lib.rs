//! Knocks on ports and says what the evidence shows.
//!
//! A verdict needs evidence: `open` a completed handshake, `closed` a reset, `rejected` an ICMP
//! error. Silence is `filtered`, and silence from *every* port proves nothing at all: such a scan is
//! [`Report::inconclusive`] and must never be read as "all closed".
//!
//! ```no_run
//! let ports = scan::PortSet::parse("1-65535")?;
//! let report = scan::connect::scan(&["192.0.2.1".parse()?], &ports, &scan::Options::default(), &mut |_| {})?;
//! assert!(!report.inconclusive());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
pub mod connect;
pub mod packet;
mod ports;
mod report;
pub mod udp;

pub use ports::{PortSet, PortSpecError};
pub use report::{PortReport, PortState, Report, SCAN_SCHEMA, Summary, TargetReport, UdpSummary};

use std::time::Duration;

/// How to knock.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long one attempt waits for an answer.
    pub timeout: Duration,
    /// Attempts on a silent port before it counts as filtered, 1 or more.
    pub attempts: u32,
    /// Connections under way at once; lowered to what RLIMIT_NOFILE allows.
    pub window: usize,
    /// Bound on the whole scan; what is left then makes the report partial.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            timeout: Duration::from_millis(700),
            attempts: 3,
            window: 8000,
            deadline: Duration::from_secs(600),
        }
    }
}

/// How far a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Ports with a verdict.
    pub settled: usize,
    /// Ports in all.
    pub total: usize,
}

/// A scan that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The kernel refused what a scan needs.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// There is no way to a target.
    #[error("no way to {target}: {why}")]
    NoRoute {
        /// The target.
        target: std::net::IpAddr,
        /// What is missing.
        why: String,
    },
}
