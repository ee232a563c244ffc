//! The hidden commands: what timers, the boot unit and watchdog processes start.

use super::recover::{recover, roll_back_unconfirmed};
use super::state::State;
use super::{RollbackError, TransactionId, watchdog};
use std::path::Path;
use std::time::Duration;

/// First argument of the hidden commands that watchdogs run; see [`hidden`].
pub const ENTRY: &str = "__transaction";

/// Runs a hidden command: `args` are those of the process without its name. `None`: it is none of
/// ours. Else the process ends with this exit status. A program that calls [`apply`](super::apply()) must call this
/// first of all, for [`ApplyOptions::exe`](super::ApplyOptions::exe) is started again with these arguments:
///
/// - `__transaction rollback STATE ID`: roll back unless settled; what timers run
/// - `__transaction watchdog STATE ID DEADLINE`: start a process that does so later
/// - `__transaction watch STATE ID DEADLINE`: that process
/// - `__transaction recover STATE boot|now`
pub fn hidden(args: &[String]) -> Option<u8> {
    if args.first().map(String::as_str) != Some(ENTRY) {
        return None;
    }
    let words: Vec<&str> = args[1..].iter().map(String::as_str).collect();
    let said = |result: Result<(), String>| match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("portcullis: {error}");
            1
        }
    };
    Some(match words.as_slice() {
        ["rollback", dir, id] => said(fire(dir, id)),
        ["watchdog", ..] => said(watchdog::launch(&args[2..]).map_err(|error| error.to_string())),
        ["watch", dir, id, deadline] => said(watch(dir, id, deadline)),
        ["recover", dir, when] => {
            said(again(|| recover(Path::new(dir), *when == "boot").map(drop)))
        }
        _ => {
            eprintln!("portcullis: no such hidden command");
            2
        }
    })
}

/// Tries until it works, for a minute: a full disk or a busy packet filter may be free again.
fn again(mut work: impl FnMut() -> Result<(), RollbackError>) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..60 {
        match work() {
            Ok(()) => return Ok(()),
            Err(error) => last = crate::change::full(&error),
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Err(last)
}

fn opened(dir: &str) -> Result<State, String> {
    match State::existing(Path::new(dir)) {
        Ok(Some(state)) => Ok(state),
        Ok(None) => Err(format!("{dir} does not exist")),
        Err(error) => Err(error.to_string()),
    }
}

fn fire(dir: &str, id: &str) -> Result<(), String> {
    let state = opened(dir)?;
    let id: TransactionId = id.parse().map_err(|_| format!("{id} is no number"))?;
    again(|| roll_back_unconfirmed(&state, id, true))
}

fn watch(dir: &str, id: &str, deadline: &str) -> Result<(), String> {
    let state = opened(dir)?;
    let id: TransactionId = id.parse().map_err(|_| format!("{id} is no number"))?;
    let deadline = deadline
        .parse()
        .map_err(|_| format!("{deadline} is no number"))?;
    watchdog::watch(&state, id, deadline).map_err(|error| error.to_string())
}
