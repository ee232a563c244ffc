//! A program that does nothing but transactions: for tests of crate `host`, on hosts that the test
//! made. The command line of portcullis does the same and much more.
//!
//! ```text
//! transact apply PLAN.json STATE WITHIN_MS [FAULT]
//! transact apply-anyway …               the same, although it locks out who is connected
//! transact wait STATE ID
//! transact confirm STATE [FAULT]       (a caller with a console)
//! transact rollback STATE purge|keep [FAULT]
//! transact recover STATE [FAULT]
//! transact remove STATE
//! transact history STATE
//! transact facts                        hash of the facts
//! ```
//! FAULT is `kill:N` (SIGKILL at the Nth place), `fail:N` (an I/O error there), `full:N` (no room on
//! the disk from there on) or `count` (prints how many places there were). `TRANSACT_EXE` names
//! another program to be the watchdog.

use host::transaction::{
    self, ApplyOptions, Caller, Confirm, Event, Faults, NoFaults, Progress, RollbackOptions,
};
use portcullis_core::plan::Plan;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Kill,
    Fail,
    Full,
    Count,
}

struct At {
    kind: Kind,
    number: u32,
    seen: AtomicU32,
}

impl Faults for At {
    fn point(&self, place: &str) -> io::Result<()> {
        let now = self.seen.fetch_add(1, Ordering::SeqCst) + 1;
        match self.kind {
            Kind::Kill if now == self.number => {
                eprintln!("dying {place}");
                let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL);
                Ok(())
            }
            Kind::Fail if now == self.number => Err(io::Error::other(format!("injected {place}"))),
            Kind::Full if now == self.number => {
                Err(io::Error::from_raw_os_error(nix::libc::ENOSPC))
            }
            _ => Ok(()),
        }
    }
}

fn fault(text: Option<&String>) -> Option<At> {
    let text = text?;
    let (kind, number) = text.split_once(':').unwrap_or((text, "0"));
    Some(At {
        kind: match kind {
            "kill" => Kind::Kill,
            "fail" => Kind::Fail,
            "full" => Kind::Full,
            _ => Kind::Count,
        },
        number: number.parse().unwrap_or(0),
        seen: AtomicU32::new(0),
    })
}

struct Shown;

impl Progress for Shown {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Changing { number, of, change } => {
                eprintln!("{number}/{of} {}", change.why);
            }
            other => eprintln!("{other:?}"),
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = transaction::hidden(&args) {
        return code.into();
    }
    match run(&args) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut text = error.to_string();
            let mut next = error.source();
            while let Some(source) = next {
                text.push_str(&format!(": {source}"));
                next = source.source();
            }
            println!("error: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<String, Box<dyn std::error::Error>> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let text = match words.as_slice() {
        [word @ ("apply" | "apply-anyway"), plan, state, within, ..] => {
            let mut plan: Plan = serde_json::from_slice(&std::fs::read(plan)?)?;
            let observe = host::observe::observe;
            if plan.made_from.is_empty() {
                plan.made_from = portcullis_core::facts_hash(&observe());
            }
            let at = fault(args.get(4));
            let faults: &dyn Faults = at.as_ref().map_or(&NoFaults, |at| at);
            let outcome = transaction::apply(
                &plan,
                &ApplyOptions {
                    state_dir: Path::new(state).to_owned(),
                    confirm: match within.parse()? {
                        0 => Confirm::NotNeeded {
                            why: "the test says so".into(),
                        },
                        millis => Confirm::within(Duration::from_millis(millis)),
                    },
                    faults,
                    assume_console: *word == "apply-anyway",
                    exe: match std::env::var_os("TRANSACT_EXE") {
                        Some(exe) => exe.into(),
                        None => std::env::current_exe()?,
                    },
                },
                &observe,
                &mut Shown,
            );
            if let Some(at) = &at {
                eprintln!("places: {}", at.seen.load(Ordering::SeqCst));
            }
            format!("{:?}", outcome?)
        }
        ["wait", state, id] => {
            let settled =
                transaction::wait_for_confirm(Path::new(state), id.parse()?, &mut |_| ())?;
            format!("{settled:?}")
        }
        ["confirm", state, ..] => {
            let at = fault(args.get(2));
            let faults: &dyn Faults = at.as_ref().map_or(&NoFaults, |at| at);
            let caller = Caller {
                assume_console: true,
                ..Caller::default()
            };
            format!(
                "{:?}",
                transaction::confirm_with(Path::new(state), None, &caller, faults)?
            )
        }
        ["confirm-here", state] => {
            let caller = Caller::here(&host::observe::observe(), false);
            format!(
                "{:?}",
                transaction::confirm(Path::new(state), None, &caller)?
            )
        }
        ["rollback", state, packages, ..] => {
            let at = fault(args.get(3));
            let faults: &dyn Faults = at.as_ref().map_or(&NoFaults, |at| at);
            let options = RollbackOptions {
                purge_packages: *packages == "purge",
                force: false,
            };
            format!(
                "{:?}",
                transaction::rollback_with(Path::new(state), None, options, faults)?
            )
        }
        ["remove", state] => format!(
            "{:?}",
            transaction::remove(
                Path::new(state),
                RollbackOptions {
                    purge_packages: true,
                    force: false
                }
            )?
        ),
        ["recover", state, ..] => {
            let at = fault(args.get(2));
            let faults: &dyn Faults = at.as_ref().map_or(&NoFaults, |at| at);
            let done = transaction::recover_with(Path::new(state), false, faults);
            if let Some(at) = &at {
                eprintln!("places: {}", at.seen.load(Ordering::SeqCst));
            }
            format!("{:?}", done?)
        }
        ["history", state] => transaction::history(Path::new(state))?
            .iter()
            .map(|entry| {
                format!(
                    "{} {:?} made {} {}{:?} {:?} {:?}",
                    entry.id,
                    entry.phase,
                    entry.made,
                    if entry.interrupted {
                        "interrupted "
                    } else {
                        ""
                    },
                    entry.confirmed_by,
                    entry.rolled_back,
                    entry.left
                )
            })
            .collect::<Vec<_>>()
            .join("\n"),
        ["facts", "json"] => serde_json::to_string_pretty(&host::observe::observe())?,
        ["facts"] => portcullis_core::facts_hash(&host::observe::observe()),
        _ => return Err("unknown words".into()),
    };
    Ok(text)
}
