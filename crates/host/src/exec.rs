//! Runs programs: argv only, absolute path, cleared environment, bounded time and output.
//!
//! ```no_run
//! use host::exec::Program;
//! use std::time::Duration;
//! let rules = Program::new("iptables-save").timeout(Duration::from_secs(5)).run()?;
//! println!("{}", rules.stdout_text());
//! # Ok::<(), host::exec::Error>(())
//! ```

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
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

enum Stop {
    Io(io::Error),
    TimedOut,
    TooMuchOutput,
}

impl From<nix::Error> for Stop {
    fn from(error: nix::Error) -> Self {
        Stop::Io(error.into())
    }
}

/// Keeps the first `limit` bytes.
struct Sink {
    bytes: Vec<u8>,
    limit: usize,
    overflowed: bool,
}

impl Sink {
    fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
            overflowed: false,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = self.limit.saturating_sub(self.bytes.len());
        let taken = bytes.len().min(room);
        self.bytes.extend_from_slice(&bytes[..taken]);
        self.overflowed |= taken < bytes.len();
    }
}

struct Pipes {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Pipes {
    fn take(child: &mut Child) -> Result<Self, Stop> {
        let pipes = Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
        };
        if let Some(pipe) = &pipes.stdin {
            nonblocking(pipe)?;
        }
        if let Some(pipe) = &pipes.stdout {
            nonblocking(pipe)?;
        }
        if let Some(pipe) = &pipes.stderr {
            nonblocking(pipe)?;
        }
        Ok(pipes)
    }

    /// Moves what can be moved without waiting; true when both outputs have ended.
    fn exchange(
        &mut self,
        unwritten: &mut &[u8],
        stdout: &mut Sink,
        stderr: &mut Sink,
    ) -> Result<bool, Stop> {
        if let Some(pipe) = &mut self.stdin {
            while !unwritten.is_empty() {
                match pipe.write(unwritten) {
                    Ok(written) => *unwritten = &unwritten[written..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // A program that does not read its input to the end is not at fault.
                    Err(_) => *unwritten = &[],
                }
            }
            if unwritten.is_empty() {
                self.stdin = None;
            }
        }
        drain(&mut self.stdout, stdout).map_err(Stop::Io)?;
        drain(&mut self.stderr, stderr).map_err(Stop::Io)?;
        Ok(self.stdout.is_none() && self.stderr.is_none())
    }

    /// Waits until a pipe can be served, or `longest` has passed.
    fn wait(&self, writing: bool, longest: Duration) -> Result<(), Stop> {
        let mut fds = Vec::with_capacity(3);
        if let Some(pipe) = &self.stdin
            && writing
        {
            fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLOUT));
        }
        if let Some(pipe) = &self.stdout {
            fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        if let Some(pipe) = &self.stderr {
            fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        if fds.is_empty() {
            // Both outputs are closed: the end of the program is near, and nothing else can
            // wake this thread.
            std::thread::sleep(longest.min(Duration::from_micros(300)));
            return Ok(());
        }
        let millis = u16::try_from(longest.as_millis().max(1)).unwrap_or(u16::MAX);
        match poll(&mut fds, PollTimeout::from(millis)) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn nonblocking(pipe: impl AsFd) -> Result<(), Stop> {
    let flags = OFlag::from_bits_retain(fcntl(&pipe, FcntlArg::F_GETFL)?);
    fcntl(&pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Reads what is there; the pipe becomes `None` at its end. One call reads a bounded amount, so
/// that the deadline is looked at even if the program writes without pause.
fn drain<R: Read>(pipe: &mut Option<R>, sink: &mut Sink) -> io::Result<()> {
    let Some(reader) = pipe else {
        return Ok(());
    };
    let mut buffer = [0; 64 * 1024];
    for _ in 0..64 {
        match reader.read(&mut buffer) {
            Ok(0) => {
                *pipe = None;
                return Ok(());
            }
            Ok(read) => sink.push(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The words for an exit status: "exit code 1", "signal 9".
pub fn status_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Program {
        Program::new("sh").args(["-c", script])
    }

    /// A program's (stdout, stderr, exit code).
    fn check(program: &Program, stdout: &str, stderr: &str, code: i32) {
        let output = program.output().unwrap();
        assert_eq!(output.stdout_text(), stdout);
        assert_eq!(output.stderr_text(), stderr);
        assert_eq!(output.code(), Some(code));
    }

    #[test]
    fn results() {
        check(&sh("echo out; echo err >&2; exit 3"), "out\n", "err\n", 3);
        check(&Program::new("cat"), "", "", 0);
        check(&Program::new("cat").stdin("abc"), "abc", "", 0);
        check(
            &Program::new("/bin/echo").arg("$HOME;`id`"),
            "$HOME;`id`\n",
            "",
            0,
        );
        // A program that ignores its input ends as it likes.
        check(&sh("exit 0").stdin(vec![b'x'; 1 << 20]), "", "", 0);
    }

    #[test]
    fn environment_is_cleared() {
        let output = Program::new("env").env("A", "b").run().unwrap();
        let mut lines: Vec<_> = output.stdout_text().lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(
            lines,
            ["A=b", "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        );
    }

    #[test]
    fn only_the_fixed_folders() {
        assert_eq!(find("sh"), Some(PathBuf::from("/usr/bin/sh")));
        for name in [
            "",
            "./sh",
            "../bin/sh",
            "bin/sh",
            "no-such-program",
            "/etc/passwd",
            "/usr",
        ] {
            assert_eq!(find(name), None, "{name:?}");
        }
        let error = Program::new("no-such-program").run().unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "no-such-program is not installed");
    }

    #[test]
    fn failure_says_the_last_line() {
        let error = sh("printf 'one\\ntwo \\033[31mred\\n\\n' >&2; exit 4")
            .run()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "sh ended with exit status: 4: two  [31mred"
        );
    }

    #[test]
    fn both_pipes_full_is_no_deadlock() {
        let mebi = 1 << 20;
        let input = vec![b'x'; 3 * mebi];
        let output = sh("head -c 2097152 /dev/zero >&2; cat; head -c 2097152 /dev/zero >&2")
            .stdin(input.clone())
            .run()
            .unwrap();
        assert_eq!(output.stdout, input);
        assert_eq!(output.stderr.len(), MAX_STDERR);
        assert!(!output.truncated);
    }

    #[test]
    fn output_is_bounded() {
        let endless = Program::new("cat").arg("/dev/zero").max_output(100_000);
        let error = endless.run().unwrap_err();
        assert!(matches!(error, Error::TooMuchOutput { limit: 100_000, .. }));
        let cut = endless.truncate().output().unwrap();
        assert_eq!((cut.stdout.len(), cut.truncated), (100_000, true));
        let exact = Program::new("echo").arg("abc").max_output(4).run().unwrap();
        assert_eq!(
            (exact.stdout_text().as_str(), exact.truncated),
            ("abc\n", false)
        );
    }

    #[test]
    fn a_timeout_ends_the_whole_group() {
        let begin = Instant::now();
        let error = sh("sleep 100 & echo $!; wait")
            .timeout(Duration::from_millis(200))
            .run()
            .unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
        // Closing its outputs does not let a program outlive the bound.
        let error = sh("exec >&- 2>&-; sleep 100")
            .timeout(Duration::from_millis(200))
            .run()
            .unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        // The child of the shell is gone too: it held the only other end of this pipe.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 100 & echo $! > {}; wait", file.display());
        sh(&script)
            .timeout(Duration::from_millis(300))
            .run()
            .unwrap_err();
        let pid = std::fs::read_to_string(file).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while alive(pid.trim()) {
            assert!(Instant::now() < deadline, "sleep {pid} still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Running, and not merely waiting to be buried.
    fn alive(pid: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
    }

    #[test]
    fn a_daemon_that_keeps_the_pipe_does_not_hold_us() {
        let begin = Instant::now();
        let output = sh("setsid sleep 2 & echo started").run().unwrap();
        assert_eq!(output.stdout_text(), "started\n");
        assert!(begin.elapsed() < Duration::from_millis(1500));
    }

    #[test]
    fn shown_as_typed() {
        let program = Program::new("ufw").args(["allow", "22/tcp", "comment", "it's a door"]);
        assert_eq!(
            program.display(),
            "ufw allow 22/tcp comment 'it'\\''s a door'"
        );
    }
}
