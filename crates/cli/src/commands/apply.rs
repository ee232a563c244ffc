//! `portcullis apply`: the plan made real, with a way back.

use super::init::agreed;
use super::jails::UnderWay;
use super::plan;
use crate::args::{Apply, FactsSource, Global, Verify};
use crate::commands::{print, remark};
use crate::error::{CliError, Exit};
use crate::render::style::{DIM, GOOD, HEAD, WARN, paint};
use crate::{input, render};
use host::observe::observe;
use host::transaction::{
    self, ApplyError, ApplyOptions, Confirm, Event, Outcome, Progress, Settled, TransactionId,
    Watchdog,
};
use portcullis_core::host::Host;
use portcullis_core::plan::{Action, SystemdVerb};
use portcullis_core::planner::command;
use portcullis_core::policy::Policy;
use portcullis_core::text::clean;
use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Plans, asks, applies, waits for the confirmation.
pub fn run(global: &Global, args: &Apply) -> Result<Exit, CliError> {
    for vantage in &args.verify_from {
        // A word that is no vantage is better told before anything changes.
        super::vantage::Vantage::parse(vantage)?;
    }
    let (policy, name) = input::policy(&args.policy)?;
    let facts = input::facts(&FactsSource::default())?;
    let plan = plan::make(
        &facts,
        &policy,
        plan::options(args.prune, args.edit_compose),
    )?;
    print(&render::plan::text(&plan, &name, false))?;
    if plan.is_empty() {
        return Ok(Exit::Clean);
    }
    if !args.yes && !agreed("\nDo this?")? {
        remark("nothing was changed");
        return Ok(Exit::Pending);
    }
    let confirm = if args.i_have_a_console {
        Confirm::NotNeeded {
            why: "--i-have-a-console".into(),
        }
    } else if !transaction::bears_on_access(&plan) {
        Confirm::NotNeeded {
            why: "nothing in the plan bears on who gets in".into(),
        }
    } else {
        Confirm::within(args.confirm_within)
    };
    let options = ApplyOptions {
        state_dir: global.state_dir.clone(),
        confirm,
        assume_console: args.i_have_a_console,
        ..ApplyOptions::new()
            .map_err(|error| CliError::usage("cannot find this program's file").because(&error))?
    };
    let mut shown = Shown {
        quiet: global.quiet,
        facts: &facts,
        policy: &policy,
        jails: None,
    };
    let last = RefCell::new(None);
    let observe = || {
        let host = observe();
        last.replace(Some(host.clone()));
        host
    };
    let applied = transaction::apply(&plan, &options, &observe, &mut shown);
    let jails = shown.jails.take();
    let outcome = match applied {
        Ok(outcome) => outcome,
        Err(error) => {
            // Its test entries go away with it.
            if let Some(jails) = jails {
                jails.give_up();
            }
            return Err(failed(&error));
        }
    };
    // As it is after the changes.
    let now = last.take().unwrap_or_else(observe);
    match outcome {
        Outcome::NothingToDo => Ok(Exit::Clean),
        Outcome::Kept { id } => {
            print(&format!(
                "\n{}\n",
                paint(GOOD, format!("Done and kept, as transaction {id}."))
            ))?;
            let proven = proven(jails, &now, &policy)?;
            Ok(worse(prove(global, args)?, proven))
        }
        Outcome::AwaitingConfirm { id, within } => {
            print(&format!(
                "\n{}\nOpen a {} connection to this machine and type there:\n\n    sudo portcullis \
                 confirm\n\n",
                paint(
                    WARN,
                    format!(
                        "Applied, but only for {} s: then everything is rolled back.",
                        within.as_secs()
                    )
                ),
                paint(HEAD, "new"),
            ))?;
            let proven = proven(jails, &now, &policy)?;
            if args.no_wait {
                remark(&format!(
                    "Nothing was knocked on from outside: this only pays once it is kept. Then\n    {}",
                    verify_line(args)
                ));
                return Ok(proven);
            }
            Ok(worse(wait(global, args, id)?, proven))
        }
    }
}

/// What an end comes to with jails that do not ban.
fn worse(end: Exit, proven: Exit) -> Exit {
    if end == Exit::Clean { proven } else { end }
}

/// Tries each jail with a marked entry in its log, unless that is under way; exit 1 when one does not
/// ban.
fn proven(under_way: Option<UnderWay>, now: &Host, policy: &Policy) -> Result<Exit, CliError> {
    let jails = under_way
        .and_then(UnderWay::end)
        .unwrap_or_else(|| super::jails::all(now, policy));
    if jails.is_empty() {
        return Ok(Exit::Clean);
    }
    print(&format!("{}\n", render::bans::proofs(&jails)))?;
    Ok(if jails.iter().any(|jail| jail.failed) {
        Exit::Findings
    } else {
        Exit::Clean
    })
}

/// Shows the countdown until somebody confirms or the time is over.
fn wait(global: &Global, args: &Apply, id: TransactionId) -> Result<Exit, CliError> {
    let live = std::io::stderr().is_terminal() && !global.quiet;
    let mut shown = None;
    let mut countdown = |left: Duration| {
        let seconds = left.as_secs();
        if live && shown != Some(seconds) {
            shown = Some(seconds);
            // A courtesy; the watchdog counts for itself.
            let _ = write!(std::io::stderr(), "\r  {seconds:>4} s left ");
        }
    };
    let settled = transaction::wait_for_confirm(&global.state_dir, id, &mut countdown)
        .map_err(|error| CliError::new(Exit::RolledBack, error.to_string()));
    if live {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    match settled? {
        Settled::Confirmed { by } => {
            print(&format!(
                "{}\n",
                paint(GOOD, format!("Confirmed over {}. Kept.", clean(&by)))
            ))?;
            prove(global, args)
        }
        Settled::RolledBack { why, left } => {
            print(&format!(
                "{}\n",
                paint(WARN, format!("Rolled back: {}.", clean(&why.to_string())))
            ))?;
            for what in left {
                remark(&format!("left as it is: {}", clean(&what)));
            }
            Ok(Exit::RolledBack)
        }
    }
}

/// Proves the result from outside where somebody can knock, else says that nobody did and the line
/// that does it.
fn prove(global: &Global, args: &Apply) -> Result<Exit, CliError> {
    if args.verify_from.is_empty() {
        remark(&format!(
            "The kernel was read back. Nothing was knocked on from outside; prove it with\n    {}",
            verify_line(args)
        ));
        return Ok(Exit::Clean);
    }
    remark("The kernel was read back. Now the knock from outside:");
    let verify = Verify {
        policy: args.policy.clone(),
        from: args.verify_from.clone(),
        ..Verify::default()
    };
    super::verify::run(global, &verify)
}

/// The command that proves this policy from outside.
fn verify_line(args: &Apply) -> String {
    let policy = match &args.policy.policy {
        Some(path) => format!(" --policy {}", clean(&path.display().to_string())),
        None => String::new(),
    };
    let from = match args.verify_from.as_slice() {
        [] => " --from ssh:YOU@ANOTHER-MACHINE".to_owned(),
        vantages => vantages
            .iter()
            .map(|vantage| format!(" --from {vantage}"))
            .collect(),
    };
    format!("sudo portcullis verify{policy}{from}")
}

fn starts_fail2ban(action: &Action) -> bool {
    matches!(action, Action::Systemd { unit, verb: SystemdVerb::Restart | SystemdVerb::EnableNow }
        if unit == "fail2ban.service")
}

fn failed(error: &ApplyError) -> CliError {
    let (exit, hint) = match error {
        ApplyError::Busy(_) => (
            Exit::Usage,
            "wait until it is done, then run it again".to_owned(),
        ),
        ApplyError::Pending { .. } => (
            Exit::Usage,
            "decide about that one first: `portcullis confirm` or `portcullis rollback`".to_owned(),
        ),
        ApplyError::Unfinished(_) => (
            Exit::RolledBack,
            "see `portcullis history`, then `portcullis rollback`".to_owned(),
        ),
        ApplyError::Stale => (Exit::Usage, "run `portcullis apply` again".to_owned()),
        ApplyError::LockOut(_) => (
            Exit::Usage,
            "add their network to the policy's ssh rule. With a console at hand, \
             --i-have-a-console goes on all the same"
                .to_owned(),
        ),
        ApplyError::NotPrepared { .. } => (
            Exit::Usage,
            "nothing was changed; mend the cause and run it again".to_owned(),
        ),
        ApplyError::Failed { .. } => (
            Exit::RolledBack,
            "the machine is as it was before; mend the cause and run it again".to_owned(),
        ),
        ApplyError::FailedOpen { .. } => (
            Exit::RolledBack,
            "run `sudo portcullis rollback` when the cause is mended".to_owned(),
        ),
    };
    let mut shown = CliError::new(exit, error.to_string()).hint(hint);
    if let Some(source) = std::error::Error::source(error) {
        shown = shown.because(source);
    }
    shown
}

/// Tells each step on standard error, and has the jails tried as soon as fail2ban runs with them: a
/// ban takes about as long as the changes that come after.
struct Shown<'a> {
    quiet: bool,
    /// The machine before the changes.
    facts: &'a Host,
    policy: &'a Policy,
    jails: Option<UnderWay>,
}

impl Progress for Shown<'_> {
    fn event(&mut self, event: Event<'_>) {
        match &event {
            Event::Changed(change) if starts_fail2ban(&change.action) => {
                let (facts, policy) = (self.facts.clone(), self.policy.clone());
                self.jails = Some(UnderWay::begin(facts, policy));
            }
            Event::RollingBack { .. } => self.jails.iter().for_each(UnderWay::stop),
            _ => {}
        }
        let line = match event {
            Event::Recovering(id) => format!("an unfinished transaction {id} is rolled back first"),
            Event::Snapshot { files } => format!("snapshot taken ({files} files)"),
            Event::Armed { watchdog, fires_in } => {
                let how = match watchdog {
                    Watchdog::Timer { unit } => format!("systemd timer {unit}"),
                    Watchdog::Process { pid } => format!("process {pid}"),
                };
                format!(
                    "way back armed: {how}, in {} s unless confirmed",
                    fires_in.as_secs()
                )
            }
            Event::Checked => "every change passed its dry run".into(),
            Event::Changing { number, of, change } => {
                format!("{number}/{of} {}", command(&change.action))
            }
            Event::Applied => "all changes made and read back".into(),
            Event::RollingBack { why } => format!("rolling back: {why}"),
            Event::Note(note) => note.to_owned(),
            _ => return,
        };
        if !self.quiet {
            remark(&paint(DIM, format!("  {}", clean(&line))));
        }
    }
}
