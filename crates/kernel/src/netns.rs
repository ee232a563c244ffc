//! Questions to another network namespace, such as a container's.

use crate::sockets::{Socket, sockets};
use crate::{Error, net};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::sync::mpsc;
use std::time::Duration;

/// Longest wait for the thread in the other namespace.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `ask` in the network namespace of process `pid`, on a thread of its own: the caller's
/// namespace does not change.
///
/// # Errors
/// [`Error::File`] when the process is gone or not ours to look at, [`Error::Permission`]
/// without CAP_SYS_ADMIN, [`Error::Timeout`] after 5 s (the thread is then left to itself), and
/// whatever `ask` returns.
pub fn in_netns_of<T: Send + 'static>(
    pid: u32,
    ask: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let path = format!("/proc/{pid}/ns/net");
    let file = |source| Error::File {
        path: path.clone(),
        source,
    };
    let ns = File::open(&path).map_err(file)?;
    let (send, receive) = mpsc::channel();
    let what = format!("network namespace of process {pid}");
    let thread_what = what.clone();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let answer = match setns(&ns, CloneFlags::CLONE_NEWNET) {
                Ok(()) => ask(),
                Err(nix::errno::Errno::EPERM) => Err(Error::Permission {
                    what: thread_what,
                    needs: "CAP_SYS_ADMIN",
                }),
                Err(errno) => Err(Error::Kernel {
                    what: thread_what,
                    errno,
                }),
            };
            // The caller may have stopped waiting.
            let _ = send.send(answer);
        })
        .map_err(file)?;
    receive.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        Err(Error::Timeout {
            what,
            seconds: PATIENCE.as_secs(),
        })
    })
}

/// [`sockets`](crate::sockets()) of the network namespace that process `pid` is in.
///
/// # Errors
/// As [`in_netns_of`].
pub fn sockets_in(pid: u32) -> Result<Vec<Socket>, Error> {
    in_netns_of(pid, sockets)
}

/// [`net`](crate::net()) of the network namespace that process `pid` is in.
///
/// # Errors
/// As [`in_netns_of`].
pub fn net_in(pid: u32) -> Result<reach::Net, Error> {
    in_netns_of(pid, net::net)
}
