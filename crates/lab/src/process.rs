//! Programs inside a host: bounded runs, and guards for those that stay.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::cell::{self, Namespaces};
use crate::error::{Context, Error, Result};

/// How long a program may take unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// The most of a program's output that is kept, in bytes, per stream.
const MOST_OUTPUT: u64 = 16 << 20;

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, with U+FFFD for what is not UTF-8.
    pub stdout: String,
    /// Its standard error, likewise.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with exit code 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The exit code, unless a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output and standard error, one after the other.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A program to run inside a host; made by `Host::command` and `Machine::command`.
#[must_use = "nothing runs before run(), ok() or spawn()"]
#[derive(Debug)]
pub struct Program<'a> {
    pub(crate) host: &'a str,
    pub(crate) spaces: &'a Namespaces,
    pub(crate) logs: &'a Path,
    argv: Vec<String>,
    argv0: Option<String>,
    env: Vec<(String, String)>,
    input: Vec<u8>,
    timeout: Duration,
}

impl<'a> Program<'a> {
    pub(crate) fn new(
        host: &'a str,
        spaces: &'a Namespaces,
        logs: &'a Path,
        argv: &[impl AsRef<str>],
    ) -> Self {
        Self {
            host,
            spaces,
            logs,
            argv: argv.iter().map(|arg| arg.as_ref().to_owned()).collect(),
            argv0: None,
            env: Vec::new(),
            input: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Adds an environment variable; the environment has only PATH, HOME and LANG otherwise.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Shows another name than the file's as the program's own (`argv[0]`).
    pub fn argv0(mut self, name: &str) -> Self {
        self.argv0 = Some(name.to_owned());
        self
    }

    /// Gives the program bytes to read from its standard input (empty otherwise).
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Ends the program, and whatever it started, after this long (a minute otherwise).
    pub fn timeout(mut self, after: Duration) -> Self {
        self.timeout = after;
        self
    }

    fn start(&self, stdout: File, stderr: File) -> Result<Child> {
        let mut input = tempfile::tempfile().context(|| "cannot make a temporary file".into())?;
        input
            .write_all(&self.input)
            .and_then(|()| input.seek(SeekFrom::Start(0)))
            .context(|| "cannot write a temporary file".into())?;
        let Some(name) = self.argv.first() else {
            return Err(Error::Invalid("no program was named".into()));
        };
        self.spaces.within(cell::everything(), || {
            let path = find(name).ok_or_else(|| missing(name))?;
            let mut command = cell::clean(&path.to_string_lossy());
            command
                .args(self.argv.iter().skip(1))
                .envs(self.env.iter().map(|(name, value)| (name, value)))
                .current_dir("/")
                .stdin(input)
                .stdout(stdout)
                .stderr(stderr)
                // A group of its own: Ctrl-C in the terminal is for us, and a timeout ends the whole group.
                .process_group(0);
            if let Some(name) = &self.argv0 {
                command.arg0(name);
            }
            command
                .spawn()
                .context(|| format!("cannot run {} on {}", path.display(), self.host))
        })?
    }

    /// Runs it to its end. A failure of the program is no error here; running out of time is.
    pub fn run(self) -> Result<Output> {
        // Files rather than pipes: a daemon that keeps its output open does not hold us up.
        let scratch = || tempfile::tempfile().context(|| "cannot make a temporary file".into());
        let (mut stdout, mut stderr) = (scratch()?, scratch()?);
        let copy = |file: &File| file.try_clone().context(|| "cannot share a file".into());
        let mut child = self.start(copy(&stdout)?, copy(&stderr)?)?;
        match wait(&mut child, self.timeout) {
            Some(status) => Ok(Output {
                status,
                stdout: text(&mut stdout)?,
                stderr: text(&mut stderr)?,
            }),
            None => {
                end(&mut child);
                let seen = last_lines(&(text(&mut stdout)? + &text(&mut stderr)?));
                Err(Error::timeout(
                    format!("the end of `{}` on {}", self.argv.join(" "), self.host),
                    self.timeout,
                    &seen,
                ))
            }
        }
    }

    /// Runs it to its end and gives its standard output; a failure of the program is an error.
    pub fn ok(self) -> Result<String> {
        let (host, argv) = (self.host.to_owned(), self.argv.join(" "));
        let output = self.run()?;
        if output.success() {
            return Ok(output.stdout);
        }
        let said = if output.stderr.trim().is_empty() {
            &output.stdout
        } else {
            &output.stderr
        };
        Err(Error::Failed {
            host,
            argv,
            status: describe(output.status),
            stderr: last_lines(said),
        })
    }

    /// Starts it and returns at once; its output goes to a log.
    pub fn spawn(self) -> Result<Process> {
        let name = self
            .argv
            .first()
            .and_then(|program| Path::new(program).file_name())
            .map_or_else(
                || "program".into(),
                |name| name.to_string_lossy().into_owned(),
            );
        let log = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .suffix(".log")
            .tempfile_in(self.logs)
            .at("make a log in", self.logs)?;
        let (file, path) = log
            .keep()
            .map_err(|error| Error::io("cannot keep a log", error.error))?;
        let copy = file.try_clone().context(|| "cannot share a file".into())?;
        let child = self.start(file, copy)?;
        Ok(Process {
            what: format!("`{}` on {}", self.argv.join(" "), self.host),
            child,
            log: path,
        })
    }
}

/// A program that runs inside a host until this guard goes.
pub struct Process {
    what: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its process id, as this process (outside the host) sees it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output and standard error so far.
    pub fn log(&self) -> String {
        File::open(&self.log)
            .map_err(|error| Error::io("cannot open a log", error))
            .and_then(|mut file| text(&mut file))
            .unwrap_or_else(|error| error.to_string())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait(&mut self, bound: Duration) -> Result<ExitStatus> {
        wait(&mut self.child, bound).ok_or_else(|| {
            Error::timeout(
                format!("the end of {}", self.what),
                bound,
                &last_lines(&self.log()),
            )
        })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid(&self.child), signal).context(|| format!("cannot signal {}", self.what))
    }

    /// Asks it to end, and after `bound` makes it end.
    pub fn stop(mut self, bound: Duration) -> Result<()> {
        if self.is_running() {
            self.signal(Signal::SIGTERM)?;
            let _ = wait(&mut self.child, bound);
        }
        Ok(())
    }

    /// Waits until `ready` says yes; fails at once when the program ends before.
    pub fn wait_until(
        &mut self,
        what: &str,
        bound: Duration,
        mut ready: impl FnMut(&Self) -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            if ready(self) {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Error::Failed {
                    host: String::new(),
                    argv: self.what.clone(),
                    status: describe(status),
                    stderr: last_lines(&self.log()),
                });
            }
            if start.elapsed() >= bound {
                return Err(Error::timeout(what, bound, &last_lines(&self.log())));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Process {} ({})", self.child.id(), self.what)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

/// Kills a child and its group, and collects it.
pub(crate) fn end(child: &mut Child) {
    // While it has not been collected, neither its id nor that of its group can belong to anyone else.
    if matches!(child.try_wait(), Ok(None)) {
        let _ = killpg(pid(child), Signal::SIGKILL);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Waits up to `bound`; `None` when it still runs then.
pub(crate) fn wait(child: &mut Child, bound: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if start.elapsed() >= bound {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Runs a program of this machine (not of a host) to its end; for the lab's own needs.
pub(crate) fn run_here(argv: &[&str], input: &[u8], bound: Duration) -> Result<Output> {
    let scratch = || tempfile::tempfile().context(|| "cannot make a temporary file".into());
    let (mut stdin, mut stdout, mut stderr) = (scratch()?, scratch()?, scratch()?);
    stdin
        .write_all(input)
        .and_then(|()| stdin.seek(SeekFrom::Start(0)))
        .context(|| "cannot write a temporary file".into())?;
    let name = argv.first().copied().unwrap_or_default();
    let path = find(name).ok_or_else(|| missing(name))?;
    let copy = |file: &File| file.try_clone().context(|| "cannot share a file".into());
    let mut child = cell::clean(&path.to_string_lossy())
        .args(argv.iter().skip(1))
        .current_dir("/")
        .stdin(Stdio::from(stdin))
        .stdout(copy(&stdout)?)
        .stderr(copy(&stderr)?)
        .process_group(0)
        .spawn()
        .context(|| format!("cannot run {}", path.display()))?;
    match wait(&mut child, bound) {
        Some(status) => Ok(Output {
            status,
            stdout: text(&mut stdout)?,
            stderr: text(&mut stderr)?,
        }),
        None => {
            end(&mut child);
            let seen = last_lines(&(text(&mut stdout)? + &text(&mut stderr)?));
            Err(Error::timeout(
                format!("the end of `{}`", argv.join(" ")),
                bound,
                &seen,
            ))
        }
    }
}

/// As [`run_here`], where a failure of the program is an error.
pub(crate) fn ok_here(argv: &[&str], input: &[u8], bound: Duration) -> Result<String> {
    let output = run_here(argv, input, bound)?;
    if output.success() {
        return Ok(output.stdout);
    }
    Err(Error::Failed {
        host: "this machine".into(),
        argv: argv.join(" "),
        status: describe(output.status),
        stderr: last_lines(&output.text()),
    })
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The end of a text, for an error message.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.take(MOST_OUTPUT).read_to_end(&mut bytes))
        .context(|| "cannot read a program's output".into())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The file of a program, looked for in [`cell::PATH`] as the calling thread sees it.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name));
    }
    cell::PATH
        .split(':')
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
}

fn missing(program: &str) -> Error {
    let package = match program {
        "ip" => "iproute2",
        "dockerd" | "docker" => "docker.io",
        "sshd" => "openssh-server",
        "ssh" | "ssh-keygen" => "openssh-client",
        "busybox" => "busybox-static",
        "systemd-nspawn" => "systemd-container",
        "fail2ban-server" | "fail2ban-client" => "fail2ban",
        "nft" => "nftables",
        "iptables" | "iptables-save" | "iptables-restore" | "ip6tables" => "iptables",
        other => other,
    };
    Error::Missing {
        program: program.to_owned(),
        package: package.to_owned(),
    }
}

/// What came back from one connection attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knock {
    /// The connection was accepted.
    Open,
    /// A reset came back.
    Refused,
    /// Nothing came back in time.
    Silent,
    /// An ICMP error came back, or there is no route.
    Unreachable,
}

/// One TCP connection attempt from the calling thread's network.
pub(crate) fn knock(to: IpAddr, port: u16, bound: Duration) -> Knock {
    use std::io::ErrorKind;
    match std::net::TcpStream::connect_timeout(&(to, port).into(), bound) {
        Ok(_) => Knock::Open,
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Knock::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Knock::Silent,
            _ => Knock::Unreachable,
        },
    }
}
