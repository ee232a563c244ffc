//! Questions to another network namespace, such as a container's.

use crate::sockets::{Socket, sockets};
use crate::{Error, net};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Longest wait for the thread in the other namespace.
const PATIENCE: Duration = Duration::from_secs(5);
/// Namespaces without an answer that are waited for.
const MOST_STUCK: u32 = 2;

/// Runs `ask` in the network namespace of process `pid`, on a thread of its own: the caller's
/// namespace does not change.
///
/// # Errors
/// [`Error::File`] when the process is gone or not ours to look at, [`Error::Permission`]
/// without CAP_SYS_ADMIN, [`Error::Timeout`] after 5 s (the thread is then left to itself), and
/// whatever `ask` returns.
pub fn in_netns_of<T: Send + 'static>(
    pid: u32,
    ask: impl Fn() -> Result<T, Error> + Send + Sync + 'static,
) -> Result<T, Error> {
    let mut answers = in_netns_of_each(&[pid], ask);
    answers.pop().unwrap_or_else(|| Err(late(pid)))
}

/// As [`in_netns_of`], in those of several processes one after the other; an answer for each.
fn in_netns_of_each<T: Send + 'static>(
    pids: &[u32],
    ask: impl Fn() -> Result<T, Error> + Send + Sync + 'static,
) -> Vec<Result<T, Error>> {
    let ask = Arc::new(ask);
    let mut answers = Vec::new();
    let mut stuck = 0;
    while let Some(rest) = pids.get(answers.len()..)
        && let Some(first) = rest.first()
    {
        if stuck == MOST_STUCK {
            answers.push(Err(Error::Timeout {
                what: format!("{}, not asked after others", what(*first)),
                seconds: PATIENCE.as_secs(),
            }));
            continue;
        }
        match visit(rest.to_vec(), ask.clone()) {
            Ok(visited) => {
                while answers.len() < pids.len()
                    && let Ok(answer) = visited.recv_timeout(PATIENCE)
                {
                    answers.push(answer);
                }
                // Whoever did not answer is left to itself; the others are asked by somebody else.
                if let Some(pid) = pids.get(answers.len()) {
                    answers.push(Err(late(*pid)));
                    stuck += 1;
                }
            }
            Err(errno) => answers.push(Err(Error::kernel(&what(*first), errno))),
        }
    }
    answers
}

/// Starts a thread that asks in one namespace after the other.
fn visit<T: Send + 'static>(
    pids: Vec<u32>,
    ask: Arc<impl Fn() -> Result<T, Error> + Send + Sync + 'static>,
) -> Result<mpsc::Receiver<Result<T, Error>>, Errno> {
    let (send, receive) = mpsc::channel();
    let visitor = move || {
        for pid in pids {
            // The caller may have stopped waiting.
            if send.send(enter(pid).and_then(|()| ask())).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(visitor)
        .map_err(|error| error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))?;
    Ok(receive)
}

fn late(pid: u32) -> Error {
    Error::Timeout {
        what: what(pid),
        seconds: PATIENCE.as_secs(),
    }
}

fn what(pid: u32) -> String {
    format!("network namespace of process {pid}")
}

/// Moves the calling thread.
fn enter(pid: u32) -> Result<(), Error> {
    let path = format!("/proc/{pid}/ns/net");
    let ns = File::open(&path).map_err(|source| Error::File { path, source })?;
    setns(&ns, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        Errno::EPERM => Error::Permission {
            what: what(pid),
            needs: "CAP_SYS_ADMIN",
        },
        errno => Error::Kernel {
            what: what(pid),
            errno,
        },
    })
}

/// [`sockets`](crate::sockets()) of the network namespaces that these processes are in.
///
/// # Errors
/// For each as [`in_netns_of`]; after two that were late no other is asked.
pub fn sockets_in(pids: &[u32]) -> Vec<Result<Vec<Socket>, Error>> {
    in_netns_of_each(pids, sockets)
}

/// [`net`](crate::net()) of the network namespace that process `pid` is in.
///
/// # Errors
/// As [`in_netns_of`].
pub fn net_in(pid: u32) -> Result<reach::Net, Error> {
    in_netns_of(pid, net::net)
}
