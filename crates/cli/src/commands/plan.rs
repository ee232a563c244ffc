//! `portcullis plan`: what apply would change.

use crate::args::{Global, Plan as Args};
use crate::commands::{print, print_json};
use crate::error::{CliError, Exit};
use crate::{input, render};
use portcullis_core::host::Host;
use portcullis_core::plan::Plan;
use portcullis_core::planner::{self, Options, Refusal};
use portcullis_core::policy::Policy;
use std::error::Error;

/// Prints the plan; exits 3 when there is something to do.
pub fn run(global: &Global, args: &Args) -> Result<Exit, CliError> {
    let (policy, name) = input::policy(&args.policy)?;
    let host = input::facts(&args.facts)?;
    let plan = make(&host, &policy, options(args.prune, args.edit_compose))?;
    if args.json {
        print_json(&plan)?;
    } else {
        print(&render::plan::text(&plan, &name, !global.quiet))?;
    }
    Ok(if plan.is_empty() {
        Exit::Clean
    } else {
        Exit::Pending
    })
}

/// What the flags ask of a plan.
pub fn options(prune: bool, edit_compose: bool) -> Options {
    Options {
        prune,
        edit_compose,
        ..Options::default()
    }
}

/// Makes a plan, or says why there can be none.
pub fn make(host: &Host, policy: &Policy, options: Options) -> Result<Plan, CliError> {
    planner::make(host, policy, &options).map_err(|refusal| refused(&refusal))
}

fn refused(refusal: &Refusal) -> CliError {
    let exit = match refusal {
        Refusal::NotRoot | Refusal::Unseen { .. } => Exit::Unsure,
        _ => Exit::Usage,
    };
    let mut error = CliError::new(exit, refusal.to_string())
        .hint(format!("{}\n  Nothing was changed.", refusal.hint()));
    if let Some(source) = refusal.source() {
        error = error.because(source);
    }
    error
}
