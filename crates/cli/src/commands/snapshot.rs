//! `portcullis snapshot`: the facts as JSON.

use crate::commands::print_json;
use crate::error::{CliError, Exit};
use portcullis_core::host::Uncertain;

/// Prints the facts; exits 5 when the rules could not be read, since such a snapshot proves little.
pub fn run() -> Result<Exit, CliError> {
    let host = host::observe::observe();
    print_json(&host)?;
    let blind = host
        .unseen
        .iter()
        .any(|gap| gap.uncertain == Uncertain::Verdicts);
    Ok(if blind { Exit::Unsure } else { Exit::Clean })
}
