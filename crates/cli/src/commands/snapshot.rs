//! `portcullis snapshot`: the facts as JSON.

use crate::args::{FactsSource, Snapshot};
use crate::commands::print_json;
use crate::error::{CliError, Exit};
use crate::input;
use portcullis_core::host::Uncertain;

/// Prints the facts; exits 5 when the rules could not be read, since such a snapshot proves little.
pub fn run(args: &Snapshot) -> Result<Exit, CliError> {
    let host = input::probed_facts(&FactsSource::default(), &args.probe)?;
    print_json(&host)?;
    let blind = host
        .unseen
        .iter()
        .any(|gap| gap.uncertain == Uncertain::Verdicts);
    Ok(if blind { Exit::Unsure } else { Exit::Clean })
}
