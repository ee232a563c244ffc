//! `portcullis init`: a policy from what runs here.

use crate::args::Init;
use crate::commands::{print, remark};
use crate::error::{CliError, Exit};
use portcullis_core::policy::Policy;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

/// Writes the policy; asks before it does unless `--yes`.
pub fn run(args: &Init) -> Result<Exit, CliError> {
    let host = host::observe::observe();
    let text = Policy::init_text(&host);
    // What this program writes it must be able to read, for this very host.
    let policy = Policy::parse("the new policy", &text)
        .and_then(|policy| policy.check_host(&host).map(|()| policy));
    if let Err(errors) = policy {
        eprintln!("{:?}", miette::Report::new(errors));
        return Err(CliError::usage("no safe policy can be written for this machine").hint(
            "write one by hand from `portcullis init --output -` and check it with `portcullis plan`",
        ));
    }
    if args.output == Path::new("-") {
        print(&text)?;
        return Ok(Exit::Clean);
    }
    if args.output.exists() && !args.force {
        return Err(
            CliError::usage(format!("{} exists already", args.output.display()))
                .hint("look at it, or replace it with --force"),
        );
    }
    if !args.yes {
        print(&text)?;
        if !agreed(&format!("Write this to {}?", args.output.display()))? {
            remark("nothing was written");
            return Ok(Exit::Clean);
        }
    }
    crate::output::write(&args.output, text.as_bytes(), 0o644).map_err(|error| {
        CliError::usage(format!("cannot write {}", args.output.display()))
            .because(&error)
            .hint("run it with sudo, or choose another place with --output")
    })?;
    remark(&format!(
        "wrote {}; see what it would change: portcullis plan",
        args.output.display()
    ));
    Ok(Exit::Clean)
}

/// Asks on the terminal; without one the answer must be given by an option.
pub fn agreed(question: &str) -> Result<bool, CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::usage("there is no terminal to ask on")
            .hint("say --yes when you have seen what will happen"));
    }
    let mut err = std::io::stderr().lock();
    // If the question cannot be shown, the answer that follows is no yes.
    let _ = write!(err, "{question} [y/N] ");
    let _ = err.flush();
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| CliError::usage("cannot read the answer").because(&error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
