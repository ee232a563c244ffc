//! One file a command: gather, ask, print, exit code.

pub mod apply;
pub mod audit;
pub mod bans;
pub mod catalog;
pub mod init;
pub mod jails;
pub mod lab;
pub mod plan;
pub mod reach;
pub mod scan;
pub mod snapshot;
pub mod transaction;
pub mod vantage;
pub mod verify;
pub mod why;

use crate::error::CliError;
use std::io::{BufWriter, Write};

/// Writes data to standard output; a reader that went away is no error of ours.
pub fn print(text: &str) -> Result<(), CliError> {
    write(anstream::stdout().lock(), text)
}

fn write(mut out: impl Write, text: &str) -> Result<(), CliError> {
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

fn written(result: std::io::Result<()>) -> Result<(), CliError> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::usage("cannot write to standard output").because(&error))
        }
        _ => Ok(()),
    }
}

/// Writes a value as pretty JSON to standard output.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    // No colours to take out, and looking for them costs more than making the text. Written as it is made: the
    // facts of a host are a megabyte.
    let mut out = BufWriter::with_capacity(64 * 1024, std::io::stdout().lock());
    match serde_json::to_writer_pretty(&mut out, value) {
        Err(error) if !error.is_io() => {
            // Not flushed: half an answer helps nobody.
            let _ = out.into_parts();
            return Err(CliError::usage("cannot put the answer into JSON").because(&error));
        }
        Err(error) => return written(Err(error.into())),
        Ok(()) => {}
    }
    written(out.write_all(b"\n").and_then(|()| out.flush()))
}

/// Writes a remark to standard error.
pub fn remark(text: &str) {
    let mut err = anstream::stderr().lock();
    // Remarks are a courtesy: a closed standard error must not change the verdict.
    let _ = writeln!(err, "{text}");
}
