//! `portcullis`: arguments in, one command run, an exit code out.

mod args;
mod commands;
mod error;
mod input;
mod output;
mod render;

use args::{Cli, Color, Command};
use clap::Parser;
use error::{CliError, Exit};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // What watchdogs run comes before everything else: it must not depend on any argument parsing.
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    if let Some(status) = host::transaction::hidden(&words) {
        return ExitCode::from(status);
    }
    let cli = Cli::parse();
    anstream::ColorChoice::write_global(match cli.global.color {
        Color::Auto => anstream::ColorChoice::Auto,
        Color::Always => anstream::ColorChoice::Always,
        Color::Never => anstream::ColorChoice::Never,
    });
    let exit = match run(&cli) {
        Ok(exit) => exit,
        Err(error) => {
            // Nobody to tell when standard error is gone; the exit code still says it.
            let _ = anstream::stderr().write_all(error.render().as_bytes());
            error.exit()
        }
    };
    exit.into()
}

fn run(cli: &Cli) -> Result<Exit, CliError> {
    let global = &cli.global;
    // Undoing must work whatever is in the way; what does not look at services does not read about them.
    let apart = matches!(
        &cli.command,
        Some(
            Command::Confirm(_)
                | Command::Rollback(_)
                | Command::History(_)
                | Command::Remove(_)
                | Command::Reach(_)
        )
    );
    if !apart {
        input::catalog(&global.catalog_dir)?;
    }
    match &cli.command {
        None => commands::audit::run(global, &args::Audit::default()),
        Some(Command::Audit(args)) => commands::audit::run(global, args),
        Some(Command::Why(args)) => commands::why::run(args),
        Some(Command::Init(args)) => commands::init::run(args),
        Some(Command::Plan(args)) => commands::plan::run(global, args),
        Some(Command::Apply(args)) => commands::apply::run(global, args),
        Some(Command::Confirm(args)) => commands::transaction::confirm(global, args),
        Some(Command::Rollback(args)) => commands::transaction::rollback(global, args),
        Some(Command::History(args)) => commands::transaction::history(global, args),
        Some(Command::Remove(args)) => commands::transaction::remove(global, args),
        Some(Command::Verify(args)) => commands::verify::run(global, args),
        Some(Command::Bans(args)) => commands::bans::list(global, args),
        Some(Command::Ban(args)) => commands::bans::ban(global, args),
        Some(Command::Unban(args)) => commands::bans::unban(global, args),
        Some(Command::Scan(args)) => commands::scan::run(global, args),
        Some(Command::Catalog(args)) => commands::catalog::run(args),
        Some(Command::Snapshot(args)) => commands::snapshot::run(args),
        Some(Command::Reach(args)) => commands::reach::run(args),
        Some(Command::Lab(args)) => commands::lab::run(global, args),
    }
}
