//! Runs programs: argv only, absolute path, cleared environment, bounded time and output.
//!
//! ```no_run
//! use host::exec::Program;
//! use std::time::Duration;
//! let rules = Program::new("iptables-save").timeout(Duration::from_secs(5)).run()?;
//! println!("{}", rules.stdout_text());
//! # Ok::<(), host::exec::Error>(())
//! ```

mod pipes;
#[cfg(test)]
mod tests;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use pipes::{Pipes, Sink, Stop};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Where programs are looked for, in this order. `PATH` of the caller is never consulted.
pub const SEARCH: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Time that a program gets unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of standard output that are kept unless told otherwise.
pub const DEFAULT_MAX_OUTPUT: usize = 64 * 1024 * 1024;
/// Bytes of standard error that are kept; what follows is read and thrown away.
const MAX_STDERR: usize = 256 * 1024;
/// How long output is still read after the program ended while another process (a daemon that it
/// started) holds the pipe open.
const LINGER: Duration = Duration::from_millis(100);
/// Longest time between two looks at whether the program has ended.
const TICK: Duration = Duration::from_millis(10);
/// Why a program gave no usable result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No executable of that name in [`SEARCH`] (or at the absolute path given).
    #[error("{program} is not installed")]
    NotFound {
        /// Name or path asked for.
        program: String,
    },
    /// It could not be started, or its pipes could not be served.
    #[error("{program} could not be run")]
    Io {
        /// Path of the program.
        program: String,
        /// The system's words.
        source: io::Error,
    },
    /// It did not end in time; it and its process group were killed.
    #[error("{program} did not end within {} ms", after.as_millis())]
    TimedOut {
        /// Path of the program.
        program: String,
        /// The bound.
        after: Duration,
    },
    /// It wrote more than allowed to standard output; it and its process group were killed.
    #[error("{program} wrote more than {limit} bytes")]
    TooMuchOutput {
        /// Path of the program.
        program: String,
        /// The bound in bytes.
        limit: usize,
    },
    /// It ended with another status than 0 (only from [`Program::run`]).
    #[error("{program} ended with {status}{}", said(stderr))]
    Failed {
        /// Path of the program.
        program: String,
        /// Exit status or signal.
        status: ExitStatus,
        /// Standard error, bounded, as text.
        stderr: String,
    },
}
impl Error {
    /// True when the program is not installed.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. })
    }
}
/// The last line that says something, with control characters made harmless.
fn said(stderr: &str) -> String {
    let Some(line) = stderr.lines().rev().find(|line| !line.trim().is_empty()) else {
        return String::new();
    };
    let clean: String = line
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect();
    format!(": {clean}")
}
/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status or signal.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, at most 256 KiB of it.
    pub stderr: Vec<u8>,
    /// Standard output was cut at the bound (only with [`Program::truncate`]).
    pub truncated: bool,
}
impl Output {
    /// Exit status 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Exit code; `None` when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output as text; bytes that are no UTF-8 become U+FFFD.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text; bytes that are no UTF-8 become U+FFFD.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}
/// A program about to be run.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    timeout: Duration,
    max_output: usize,
    truncate: bool,
}
/// Path of an installed program, `None` when there is none: `name` is looked up in [`SEARCH`]; an
/// absolute path is taken as it is; anything else with a slash is refused.
pub fn find(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') {
        let path = PathBuf::from(name);
        return executable(&path).then_some(path);
    }
    if name.is_empty() || name.contains('/') || name.contains('\0') {
        return None;
    }
    SEARCH
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| executable(path))
}
fn executable(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
impl Program {
    /// A program by name (looked up in [`SEARCH`]) or absolute path. Nothing runs yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
            max_output: DEFAULT_MAX_OUTPUT,
            truncate: false,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds an environment variable to the two that every program gets (`PATH`, `LC_ALL=C`).
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Bytes for standard input; without them it is `/dev/null`.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Time it gets, from start to end ([`DEFAULT_TIMEOUT`]).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Bytes of standard output allowed ([`DEFAULT_MAX_OUTPUT`]).
    pub fn max_output(mut self, bytes: usize) -> Self {
        self.max_output = bytes;
        self
    }

    /// Output beyond the bound is cut off and flagged rather than an error.
    pub fn truncate(mut self) -> Self {
        self.truncate = true;
        self
    }

    /// The command as a person would type it, for messages and journals. Never executed.
    pub fn display(&self) -> String {
        let mut text = self.name.clone();
        for arg in &self.args {
            text.push(' ');
            text.push_str(&quoted(&arg.to_string_lossy()));
        }
        text
    }

    /// Runs it and requires exit status 0.
    pub fn run(&self) -> Result<Output, Error> {
        let output = self.output()?;
        if output.success() {
            return Ok(output);
        }
        Err(Error::Failed {
            program: self.name.clone(),
            status: output.status,
            stderr: output.stderr_text(),
        })
    }

    /// Runs it; any exit status is a result.
    pub fn output(&self) -> Result<Output, Error> {
        let path = find(&self.name).ok_or_else(|| Error::NotFound {
            program: self.name.clone(),
        })?;
        let io = |source| Error::Io {
            program: self.name.clone(),
            source,
        };
        let mut command = Command::new(&path);
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", SEARCH.join(":"))
            .env("LC_ALL", "C")
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir("/")
            .stdin(if self.stdin.is_empty() {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that a timeout ends its children too.
            .process_group(0);
        let deadline = Instant::now() + self.timeout;
        let mut child = command.spawn().map_err(io)?;
        let result = self.serve(&mut child, deadline);
        match result {
            Ok(output) => Ok(output),
            Err(stop) => {
                kill_group(&mut child);
                Err(match stop {
                    Stop::Io(source) => io(source),
                    Stop::TimedOut => Error::TimedOut {
                        program: self.name.clone(),
                        after: self.timeout,
                    },
                    Stop::TooMuchOutput => Error::TooMuchOutput {
                        program: self.name.clone(),
                        limit: self.max_output,
                    },
                })
            }
        }
    }

    /// Feeds and drains the pipes until the program ended. On an error the child is still there,
    /// not waited for.
    fn serve(&self, child: &mut Child, deadline: Instant) -> Result<Output, Stop> {
        let mut pipes = Pipes::take(child)?;
        let mut stdout = Sink::new(self.max_output);
        let mut stderr = Sink::new(MAX_STDERR);
        let mut unwritten = self.stdin.as_slice();
        let mut ended: Option<(ExitStatus, Instant)> = None;
        loop {
            let drained = pipes.exchange(&mut unwritten, &mut stdout, &mut stderr)?;
            if stdout.overflowed && !self.truncate {
                return Err(Stop::TooMuchOutput);
            }
            if stdout.overflowed && ended.is_none() {
                // Nothing more is wanted of it; its exit status would be that of the kill.
                kill_group(child);
                let status = child.wait().map_err(Stop::Io)?;
                return Ok(finish(status, stdout, stderr));
            }
            if ended.is_none() {
                ended = child
                    .try_wait()
                    .map_err(Stop::Io)?
                    .map(|status| (status, Instant::now()));
            }
            let now = Instant::now();
            if let Some((status, since)) = ended
                && (drained || now.duration_since(since) >= LINGER)
            {
                return Ok(finish(status, stdout, stderr));
            }
            if ended.is_none() && now >= deadline {
                return Err(Stop::TimedOut);
            }
            let wait = match ended {
                Some(_) => TICK,
                None => TICK.min(deadline.saturating_duration_since(now)),
            };
            pipes.wait(!unwritten.is_empty(), wait)?;
        }
    }
}
fn finish(status: ExitStatus, stdout: Sink, stderr: Sink) -> Output {
    Output {
        status,
        stdout: stdout.bytes,
        stderr: stderr.bytes,
        truncated: stdout.overflowed,
    }
}
/// Quotes a word when a shell would need it; for people only.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}
/// Kills the program's process group and waits for the program. The group id is still the
/// program's: it has not been waited for, so the number cannot have been given to another.
fn kill_group(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}
/// The words for an exit status: "exit code 1", "signal 9".
pub fn status_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}
