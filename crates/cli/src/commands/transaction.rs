//! `confirm`, `rollback`, `remove`, `history`: what happens to a transaction after apply.

use super::init::agreed;
use crate::args::{Confirm, Global, History, Remove, Rollback};
use crate::commands::{print, print_json, remark};
use crate::error::{CliError, Exit};
use crate::render::style::{DIM, GOOD, WARN, cell, paint};
use host::transaction::{
    self, Caller, ConfirmError, Entry, Phase, RollbackError, RollbackOptions, TransactionId,
};
use portcullis_core::planner::command;
use portcullis_core::text::clean;
use serde::Serialize;
use std::fmt::Write as _;

/// `portcullis confirm`.
pub fn confirm(global: &Global, args: &Confirm) -> Result<Exit, CliError> {
    need_root("confirm")?;
    let host = host::observe::observe();
    let caller = Caller::here(&host, args.i_have_a_console);
    match transaction::confirm(&global.state_dir, None, &caller) {
        Ok((id, by)) => {
            print(&format!(
                "{}\n",
                paint(
                    GOOD,
                    format!("Confirmed: transaction {id} is kept, over {}.", clean(&by))
                )
            ))?;
            Ok(Exit::Clean)
        }
        Err(error) => {
            let exit = match error {
                ConfirmError::TooLate(_) => Exit::RolledBack,
                _ => Exit::Usage,
            };
            Err(CliError::new(exit, error.to_string())
                .hint("portcullis history shows what waits and for how long"))
        }
    }
}

/// `portcullis rollback`.
pub fn rollback(global: &Global, args: &Rollback) -> Result<Exit, CliError> {
    need_root("rollback")?;
    let options = RollbackOptions {
        purge_packages: args.purge,
        force: args.force,
    };
    let id = args.id.map(TransactionId);
    match transaction::rollback(&global.state_dir, id, options) {
        Ok((id, left)) => {
            print(&format!(
                "{}\n",
                paint(GOOD, format!("Transaction {id} is rolled back."))
            ))?;
            for what in left {
                remark(&format!("left as it is: {}", clean(&what)));
            }
            Ok(Exit::Clean)
        }
        Err(error) => Err(not_rolled_back(&error)),
    }
}

/// `portcullis remove`.
pub fn remove(global: &Global, args: &Remove) -> Result<Exit, CliError> {
    need_root("remove")?;
    let standing = transaction::history(&global.state_dir)
        .map_err(|error| CliError::usage("cannot read the state folder").because(&error))?
        .iter()
        .filter(|entry| entry.phase != Phase::RolledBack)
        .count();
    let question = match standing {
        0 => "Forget the history?".to_owned(),
        1 => "Undo the one transaction that stands, and forget it?".to_owned(),
        more => format!("Undo all {more} transactions that stand, and forget them?"),
    };
    if !args.yes && !agreed(&question)? {
        remark("nothing was changed");
        return Ok(Exit::Clean);
    }
    let options = RollbackOptions {
        purge_packages: args.purge,
        force: args.force,
    };
    let left =
        transaction::remove(&global.state_dir, options).map_err(|error| not_rolled_back(&error))?;
    print(&format!(
        "{}\n",
        paint(GOOD, "This machine is as it was before the first apply.")
    ))?;
    for what in left {
        remark(&format!("left as it is: {}", clean(&what)));
    }
    Ok(Exit::Clean)
}

fn not_rolled_back(error: &RollbackError) -> CliError {
    let hint = match error {
        RollbackError::Nothing => "nothing was applied on this machine",
        RollbackError::ChangedSince { .. } => "look at these files first",
        RollbackError::Incomplete { .. } => {
            "mend the cause and run it again: it goes on where it stopped"
        }
        _ => "portcullis history lists the transactions",
    };
    CliError::usage(error.to_string()).hint(hint)
}

/// A transaction on the wire.
#[derive(Serialize)]
struct Wire {
    id: u32,
    at: String,
    state: &'static str,
    seconds_left: Option<u64>,
    changes: Vec<String>,
    made: usize,
    interrupted: bool,
    confirmed_by: Option<String>,
    rolled_back_because: Option<String>,
    left: Vec<String>,
}

/// `portcullis history`.
pub fn history(global: &Global, args: &History) -> Result<Exit, CliError> {
    let entries = transaction::history(&global.state_dir).map_err(|error| {
        CliError::unsure(format!("cannot read {}", global.state_dir.display()))
            .because(&error)
            .hint("run it with sudo")
    })?;
    if args.json {
        let wire: Vec<Wire> = entries.iter().map(wire).collect();
        print_json(&wire)?;
        return Ok(Exit::Clean);
    }
    if entries.is_empty() {
        remark("nothing was applied on this machine yet");
    }
    let mut out = String::new();
    for entry in &entries {
        line(&mut out, entry);
    }
    print(&out)?;
    Ok(Exit::Clean)
}

fn wire(entry: &Entry) -> Wire {
    Wire {
        id: entry.id.0,
        at: entry.at.clone(),
        state: words(&entry.phase),
        seconds_left: entry.remaining.map(|left| left.as_secs()),
        changes: entry
            .plan
            .iter()
            .flat_map(|plan| &plan.changes)
            .map(|change| command(&change.action))
            .collect(),
        made: entry.made,
        interrupted: entry.interrupted,
        confirmed_by: entry.confirmed_by.clone(),
        rolled_back_because: entry.rolled_back.as_ref().map(ToString::to_string),
        left: entry.left.clone(),
    }
}

fn words(phase: &Phase) -> &'static str {
    match phase {
        Phase::Applying => "applying",
        Phase::Waiting => "waits for confirm",
        Phase::Confirmed => "kept",
        Phase::RollingBack => "rolling back",
        Phase::RolledBack => "rolled back",
    }
}

fn line(out: &mut String, entry: &Entry) {
    let style = match entry.phase {
        Phase::Confirmed => GOOD,
        Phase::RolledBack => DIM,
        _ => WARN,
    };
    let state = match entry.interrupted {
        true => "interrupted",
        false => words(&entry.phase),
    };
    let detail = match (&entry.rolled_back, &entry.confirmed_by, entry.remaining) {
        _ if entry.interrupted && entry.begun == 0 => "before its first change".to_owned(),
        _ if entry.interrupted => "taken back by `portcullis rollback`, else by itself".to_owned(),
        (Some(why), _, _) => why.to_string(),
        (None, Some(by), _) => format!("by {by}"),
        (None, None, Some(left)) => format!("{} s left", left.as_secs()),
        _ => String::new(),
    };
    let _ = writeln!(
        out,
        "{} {} {} {}",
        cell(&entry.id.to_string(), 4),
        cell(&clean(&entry.at), 20),
        paint(style, cell(state, 18)),
        clean(&detail)
    );
}

fn need_root(what: &str) -> Result<(), CliError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(CliError::unsure(format!("{what} needs root")).hint(format!("sudo portcullis {what}")))
}
