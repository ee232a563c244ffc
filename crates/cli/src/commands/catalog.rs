//! `portcullis catalog`: what is known about services, with sources and dates.

use crate::args::Catalog;
use crate::commands::{print, print_json};
use crate::error::{CliError, Exit};
use crate::render;
use portcullis_core::catalog::{self, Service};
use serde::Serialize;

/// What `catalog --json` prints.
#[derive(Serialize)]
struct CatalogReport<'a> {
    schema: u32,
    services: &'a [Service],
}

/// Prints one service, or the list of all.
pub fn run(args: &Catalog) -> Result<Exit, CliError> {
    let services = match &args.name {
        None => catalog::services(),
        Some(name) => one(name)?,
    };
    if args.json {
        print_json(&CatalogReport {
            schema: 1,
            services,
        })?;
    } else if let (Some(_), [service]) = (&args.name, services) {
        print(&render::catalog::one(service))?;
    } else {
        print(&render::catalog::all(services))?;
    }
    Ok(Exit::Clean)
}

/// The service of this id or name, in any case.
fn one(name: &str) -> Result<&'static [Service], CliError> {
    let all = catalog::services();
    let matches =
        |s: &&Service| s.id.eq_ignore_ascii_case(name) || s.name.eq_ignore_ascii_case(name);
    if let Some(found) = all.iter().find(matches) {
        return Ok(std::slice::from_ref(found));
    }
    let wanted = name.to_lowercase();
    let close: Vec<&str> = all
        .iter()
        .filter(|s| s.id.contains(&wanted) || s.name.to_lowercase().contains(&wanted))
        .map(|s| s.id.as_str())
        .take(5)
        .collect();
    let error = CliError::usage(format!("the catalog has no service {name:?}"));
    Err(match close.as_slice() {
        [] => error.hint("see all of them: portcullis catalog"),
        close => error.hint(format!("perhaps: {}", close.join(", "))),
    })
}
