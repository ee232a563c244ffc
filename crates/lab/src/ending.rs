//! The end of every lab of this process when it is interrupted.
//!
//! The hosts themselves go with the process, whatever ends it (see [`crate::cell`]); this takes away the folders too.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Context, Result};

#[derive(Debug, Default)]
struct Alive {
    /// Name and folder of each lab.
    rooms: BTreeMap<String, PathBuf>,
    /// Process ids of holders that have not been collected.
    holders: Vec<u32>,
}

static ALIVE: Mutex<Alive> = Mutex::new(Alive {
    rooms: BTreeMap::new(),
    holders: Vec::new(),
});

fn alive() -> MutexGuard<'static, Alive> {
    // Whoever panicked with the lock left whole maps.
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn room_made(name: &str, folder: PathBuf) {
    alive().rooms.insert(name.to_owned(), folder);
}

pub(crate) fn room_gone(name: &str) {
    alive().rooms.remove(name);
}

pub(crate) fn holder_started(pid: u32) {
    alive().holders.push(pid);
}

/// To be called before the holder is collected: afterwards its process id can be another's.
pub(crate) fn holder_ends(pid: u32) {
    alive().holders.retain(|holder| *holder != pid);
}

/// From now on SIGINT (Ctrl-C), SIGTERM and SIGHUP end this process after the removal of all its labs, with the exit
/// code that shells give to that signal (130 for Ctrl-C). For `portcullis lab`; tests do not need it, since
/// [`crate::reap`] and the next lab take away what a killed run left.
pub fn end_on_signals() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context(|| "cannot be told of signals".into())?;
    thread::Builder::new()
        .name("lab-ending".into())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                // Kept locked to the end: no new lab comes up meanwhile.
                let alive = alive();
                for pid in &alive.holders {
                    if let Ok(pid) = i32::try_from(*pid) {
                        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                    }
                }
                for (name, folder) in &alive.rooms {
                    crate::room::remove(folder, name);
                }
                std::process::exit(128 + signal);
            }
        })
        .context(|| "cannot start a thread".into())?;
    Ok(())
}
