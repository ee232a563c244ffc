//! `portcullis scan`: the knocker itself.

use crate::args::{Global, Scan};
use crate::commands::{print, print_json, remark};
use crate::error::{CliError, Exit};
use crate::render;
use scan::packet::{self, PacketOptions};
use scan::{Options, PortSet, Progress, Report, ScanError};
use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, ToSocketAddrs};
use std::time::Instant;

/// Targets that one call takes at the most.
const MAX_TARGETS: usize = 256;

/// Knocks and prints; exits 5 when the scan proves nothing.
pub fn run(global: &Global, args: &Scan) -> Result<Exit, CliError> {
    let ports = PortSet::parse(&args.ports).map_err(|error| {
        CliError::usage("cannot read -p")
            .because(&error)
            .hint("write ports like 22,80-90 or - for all")
    })?;
    let targets = resolve(&args.targets)?;
    let mut bar = Bar::new(!global.quiet);
    let report = knock(args, &targets, &ports, &mut |progress| bar.show(progress));
    bar.clear();
    let report = report.map_err(|error| CliError::unsure("cannot scan").because(&error))?;
    if args.json {
        print_json(&report)?;
    } else {
        print(&render::scan::text(&report))?;
    }
    if report.inconclusive() {
        remark(
            "no sure answer: nothing at all answered there, or the scan did not finish. \
             A wrong address looks the same as a perfect firewall.",
        );
        return Ok(Exit::Unsure);
    }
    Ok(Exit::Clean)
}

/// Knocks with packets where that is allowed, else with connect(), and says so.
fn knock(
    args: &Scan,
    targets: &[IpAddr],
    ports: &PortSet,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, ScanError> {
    if !args.connect && packet::available() {
        let mut options = PacketOptions::default();
        if let Some(rate) = args.rate {
            options.rate = options.rate.min(f64::from(rate));
            options.max_rate = Some(f64::from(rate));
        }
        return packet::scan(targets, ports, &options, progress);
    }
    if !args.connect {
        remark(
            "without CAP_NET_RAW: knocking with connect(), which is slower and cannot tell a \
             refusal by a filter from a closed port",
        );
    }
    let options = Options {
        timeout: args.timeout,
        ..Options::default()
    };
    scan::connect::scan(targets, ports, &options, progress)
}

/// Addresses of names and literals, without repeats, in the order given.
pub fn resolve(targets: &[String]) -> Result<Vec<IpAddr>, CliError> {
    let mut seen = BTreeSet::new();
    let mut addresses = Vec::new();
    for target in targets {
        let literal = target.trim_start_matches('[').trim_end_matches(']');
        let found: Vec<IpAddr> = match literal.parse() {
            Ok(address) => vec![address],
            Err(_) => (target.as_str(), 0)
                .to_socket_addrs()
                .map_err(|error| {
                    CliError::usage(format!("{target:?} is no address and no known name"))
                        .because(&error)
                        .hint("give an IPv4 or IPv6 address or a name that resolves")
                })?
                .map(|address| address.ip())
                .collect(),
        };
        addresses.extend(found.into_iter().filter(|address| seen.insert(*address)));
    }
    if addresses.len() > MAX_TARGETS {
        return Err(CliError::usage(format!(
            "{} targets are more than one scan takes ({MAX_TARGETS})",
            addresses.len()
        )));
    }
    Ok(addresses)
}

/// One line of progress on a terminal, nothing elsewhere.
struct Bar {
    on: bool,
    last: Option<Instant>,
}

impl Bar {
    fn new(wanted: bool) -> Self {
        Bar {
            on: wanted && std::io::stderr().is_terminal(),
            last: None,
        }
    }

    fn show(&mut self, progress: Progress) {
        let due = self
            .last
            .is_none_or(|last| last.elapsed().as_millis() >= 100);
        if self.on && due {
            self.last = Some(Instant::now());
            // Progress is a courtesy.
            let _ = write!(
                std::io::stderr(),
                "\r{} of {} ports settled ",
                progress.settled,
                progress.total
            );
        }
    }

    fn clear(&self) {
        if self.on && self.last.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_resolved_once_each() {
        let targets = ["127.0.0.1", "[::1]", "127.0.0.1"].map(String::from);
        assert_eq!(
            resolve(&targets).unwrap(),
            ["127.0.0.1", "::1"].map(|t| t.parse::<IpAddr>().unwrap())
        );
        assert!(resolve(&["no such host".into()]).is_err());
    }
}
