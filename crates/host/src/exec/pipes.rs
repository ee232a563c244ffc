//! The pipes of a running program: fed and drained without waiting on any one of them.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use std::time::Duration;

pub(super) enum Stop {
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
pub(super) struct Sink {
    pub(super) bytes: Vec<u8>,
    limit: usize,
    pub(super) overflowed: bool,
}

impl Sink {
    pub(super) fn new(limit: usize) -> Self {
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

pub(super) struct Pipes {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Pipes {
    pub(super) fn take(child: &mut Child) -> Result<Self, Stop> {
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
    pub(super) fn exchange(
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
    pub(super) fn wait(&self, writing: bool, longest: Duration) -> Result<(), Stop> {
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
