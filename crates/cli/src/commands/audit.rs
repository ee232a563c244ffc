//! `portcullis audit`: who can reach what, and what is wrong.

use crate::args::{Audit, FailOn, Global};
use crate::commands::{print, print_json};
use crate::error::{CliError, Exit};
use crate::{input, render};
use portcullis_core::finding::{Finding, Severity};
use portcullis_core::host::Host;
use portcullis_core::{expose, judge, report};

/// Observes, judges, prints. The format never changes the exit code.
pub fn run(global: &Global, args: &Audit) -> Result<Exit, CliError> {
    let (policy, _) = input::policy(&args.policy)?;
    let host = input::probed_facts(&args.facts, &args.probe)?;
    let audit = judge::audit(&host, &policy);
    if args.json {
        print_json(&report::report(&host, &policy, &audit))?;
    } else {
        print(&render::audit::text(&host, &policy, &audit, !global.quiet))?;
    }
    Ok(exit(&host, &audit.findings, args.fail_on))
}

fn exit(host: &Host, findings: &[Finding], fail_on: FailOn) -> Exit {
    let level = match fail_on {
        FailOn::Info => Severity::Info,
        FailOn::Low => Severity::Low,
        FailOn::Medium => Severity::Medium,
        FailOn::High => Severity::High,
        FailOn::Critical => Severity::Critical,
        FailOn::Never if expose::blind(host) || !host.privileged => return Exit::Unsure,
        FailOn::Never => return Exit::Clean,
    };
    match report::exit_code(host, findings, level) {
        0 => Exit::Clean,
        1 => Exit::Findings,
        _ => Exit::Unsure,
    }
}
