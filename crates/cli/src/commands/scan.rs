//! `portcullis scan`: the knocker itself.

use crate::args::{Global, Scan};
use crate::commands::{print, print_json, remark};
use crate::error::{CliError, Exit};
use crate::render;
use scan::packet::{self, PacketOptions};
use scan::{Options, PortSet, Progress, Report, ScanError};
use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant, SystemTime};

/// Targets that one call takes without a word on whose they are.
const UNASKED: usize = 256;
/// Targets that one call takes at the most.
const MOST: usize = 4096;
/// Seconds that a scan of one target may take.
const PATIENCE: u64 = 120;

/// Knocks and prints; exits 5 when the scan proves nothing.
pub fn run(global: &Global, args: &Scan) -> Result<Exit, CliError> {
    let ports = PortSet::parse(&args.ports).map_err(|error| {
        CliError::usage("cannot read -p")
            .because(&error)
            .hint("write ports like 22,80-90 or - for all")
    })?;
    let udp = args.udp.as_deref().map(udp_ports).transpose()?;
    let targets = resolve(&args.targets, args.i_own_these)?;
    let begun = SystemTime::now();
    let mut bar = Bar::new(!global.quiet);
    let report = knock(args, &targets, &ports, &mut |progress| bar.show(progress));
    let report = report.and_then(|mut report| {
        if let Some(udp) = &udp {
            let deadline = deadline(&targets);
            scan::udp::add(&mut report, udp, deadline, &mut |progress| {
                bar.show(progress)
            })?;
        }
        Ok(report)
    });
    bar.clear();
    let mut report = report.map_err(|error| CliError::unsure("cannot scan").because(&error))?;
    if args.services {
        name_services(&mut report);
    }
    if args.json {
        print_json(&report)?;
    } else if args.xml {
        print(&render::nmap_xml::text(&report, begun, SystemTime::now()))?;
    } else {
        print(&render::scan::text(&report))?;
    }
    if report.inconclusive() {
        remark(
            "no sure answer: what was not seen open is not proven closed. A wrong address looks \
             the same as a perfect firewall.",
        );
        return Ok(Exit::Unsure);
    }
    Ok(Exit::Clean)
}

/// Names what the recogniser knows behind open TCP ports; the others stay as they are.
fn name_services(report: &mut Report) {
    let open: Vec<SocketAddr> = report
        .open_tcp()
        .into_iter()
        .flat_map(|(address, ports)| {
            let at = move |port| SocketAddr::new(address, port);
            ports.into_iter().map(at)
        })
        .collect();
    for found in recognise::outside(&open, &recognise::Options::default()) {
        if let Some(name) = found.name() {
            report.name_service(found.address.ip(), found.address.port(), name);
        }
    }
}

fn udp_ports(text: &str) -> Result<PortSet, CliError> {
    let ports = PortSet::parse(text).map_err(|error| {
        CliError::usage("cannot read --udp")
            .because(&error)
            .hint("write ports like --udp=53,443, or --udp for the usual ones")
    })?;
    if ports.len() > scan::udp::MOST {
        return Err(CliError::usage(format!(
            "{} UDP ports: at most {} are taken",
            ports.len(),
            scan::udp::MOST
        ))
        .hint(
            "a silent UDP port looks like a filtered one, so that asking all of them tells little",
        ));
    }
    Ok(ports)
}

/// Knocks with packets where that is allowed, else with connect(), and says so.
fn knock(
    args: &Scan,
    targets: &[IpAddr],
    ports: &PortSet,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, ScanError> {
    if !args.connect && packet::available() {
        let mut options = PacketOptions {
            deadline: deadline(targets),
            ..PacketOptions::default()
        };
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
        deadline: deadline(targets) * 4,
        ..Options::default()
    };
    scan::connect::scan(targets, ports, &options, progress)
}

/// Time for a whole scan: ten minutes, or more for many targets.
fn deadline(targets: &[IpAddr]) -> Duration {
    Duration::from_secs((targets.len() as u64 * PATIENCE / 8).max(600))
}

/// Addresses of names, literals and networks, without repeats, in the order given.
fn resolve(targets: &[String], owned: bool) -> Result<Vec<IpAddr>, CliError> {
    let mut seen = BTreeSet::new();
    let mut addresses = Vec::new();
    for target in targets {
        // One more than the most is enough to see that it is too much.
        addresses.extend(
            addresses_of(target)?
                .take(MOST + 1)
                .filter(|address| seen.insert(*address)),
        );
        if addresses.len() > MOST {
            return Err(CliError::usage(format!(
                "more than {MOST} addresses are more than one scan takes"
            )));
        }
    }
    if addresses.len() > UNASKED && !owned {
        return Err(CliError::usage(format!(
            "{} addresses: this is a tool for one's own machines",
            addresses.len()
        ))
        .hint("if all of them are yours to knock on, say --i-own-these"));
    }
    Ok(addresses)
}

fn addresses_of(target: &str) -> Result<Box<dyn Iterator<Item = IpAddr>>, CliError> {
    let literal = target.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = literal.parse::<IpAddr>() {
        return Ok(Box::new(std::iter::once(address)));
    }
    if target.contains('/') {
        let network: ipnet::IpNet = target.parse().map_err(|error| {
            CliError::usage(format!("{target:?} is no network"))
                .because(&error)
                .hint("write networks like 192.0.2.0/28")
        })?;
        return Ok(Box::new(network.hosts()));
    }
    let found = (target, 0).to_socket_addrs().map_err(|error| {
        CliError::usage(format!("{target:?} is no address and no known name"))
            .because(&error)
            .hint("give an IPv4 or IPv6 address, a network, or a name that resolves")
    })?;
    Ok(Box::new(found.map(|address| address.ip())))
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

    fn check(targets: &[&str], owned: bool, expect: Result<usize, &str>) {
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        match (resolve(&targets, owned), expect) {
            (Ok(found), Ok(count)) => assert_eq!(found.len(), count, "{targets:?}"),
            (Err(error), Err(part)) => {
                let text = format!("{error:?}");
                assert!(text.contains(part), "{targets:?}: {text}");
            }
            (found, expect) => panic!("{targets:?}: {found:?}, not {expect:?}"),
        }
    }

    #[test]
    fn targets_are_resolved_once_each_within_bounds() {
        check(&["127.0.0.1", "[::1]", "127.0.0.1"], false, Ok(2));
        check(&["192.0.2.0/28", "192.0.2.1"], false, Ok(14));
        check(&["192.0.2.7/32"], false, Ok(1));
        check(&["198.18.0.0/24"], false, Ok(254));
        check(&["198.18.0.0/23"], false, Err("--i-own-these"));
        check(&["198.18.0.0/23"], true, Ok(510));
        check(&["10.0.0.0/8"], true, Err("more than 4096"));
        check(&["2001:db8::/64"], true, Err("more than 4096"));
        check(&["192.0.2.0/33"], true, Err("is no network"));
        check(&["no such host"], false, Err("no known name"));
    }
}
