//! `portcullis verify`: knock from outside, compare with the policy.

use crate::args::{Global, Verify};
use crate::commands::proof::{self, Engine, Knocked, Row, TestResult};
use crate::commands::{print, print_json};
use crate::error::{CliError, Exit};
use crate::{input, render};
use portcullis_core::expect::{self, Disagreement, Vantage, check_scan};
use portcullis_core::host::Host;
use portcullis_core::text::clean;
use portcullis_core::zones;
use reach::Proto;
use scan::{PortSet, PortState, Report, TargetReport};
use serde::Serialize;
use std::net::IpAddr;

/// Bytes that are read of a scan report at the most.
const REPORT_LIMIT: u64 = 64 << 20;

/// What one vantage saw at one address of this machine.
#[derive(Debug, Serialize)]
pub struct Seen {
    /// Where the scan came from, in words.
    pub from: String,
    /// Its source address, as far as known.
    pub source: Option<IpAddr>,
    /// The zone that it stands for.
    pub zone: String,
    /// The address knocked on.
    pub address: IpAddr,
    /// Ports found open.
    pub open: Vec<u16>,
    /// What is not as the policy wants it.
    pub wrong: Vec<String>,
    /// Why it proves nothing, if so.
    pub inconclusive: Option<String>,
    /// Policy, engine and knock side by side, a port each.
    pub rows: Vec<Row>,
    /// Ports that did not answer because of their rate limit.
    #[serde(skip)]
    pub limited: Vec<u16>,
    /// The ports that were asked.
    #[serde(skip)]
    asked: Option<PortSet>,
    #[serde(skip)]
    vantage: Vantage,
}

impl Seen {
    /// True when there is something to mend.
    pub fn has_findings(&self) -> bool {
        !self.wrong.is_empty() || self.disagreements().next().is_some()
    }

    /// What engine and knock disagree on.
    pub fn disagreements(&self) -> impl Iterator<Item = &str> {
        self.rows
            .iter()
            .filter_map(|row| row.disagreement.as_deref())
    }

    fn asked(&self, port: u16) -> bool {
        self.asked
            .as_ref()
            .is_some_and(|ports| ports.contains(port))
    }
}

/// The result on the wire.
#[derive(Debug, Serialize)]
struct Wire<'a> {
    schema: u32,
    passed: bool,
    policy: &'a str,
    knocks: &'a [Seen],
    /// The policy's own tests.
    tests: &'a [TestResult],
    /// Zones that nobody knocked from.
    unproven: &'a [String],
}

/// Gathers scans, compares, prints. Exit 1: not as the policy wants; 5: nothing proven.
pub fn run(global: &Global, args: &Verify) -> Result<Exit, CliError> {
    let (policy, name) = input::policy(&args.policy)?;
    let host = input::facts(&args.facts)?;
    let expectations = expect::expectation(&policy, &host);
    let engine = Engine::new(&host);
    let addresses = addresses(&host, &args.address)?;
    let mut scans = Vec::new();
    for path in &args.report {
        let text = input::text(path, "scan report", REPORT_LIMIT)?;
        let report: Report = serde_json::from_str(&text).map_err(|error| {
            CliError::usage(format!("{} is no scan report", path.display()))
                .because(&error)
                .hint("make one elsewhere with: portcullis scan THIS-MACHINE --json > scan.json")
        })?;
        scans.push((path.display().to_string(), None, report));
    }
    for vantage in &args.from {
        let (report, seen_as) = super::vantage::knock(vantage, &addresses)?;
        scans.push((vantage.clone(), seen_as, report));
    }
    if scans.is_empty() {
        return Err(nobody_knocked(&addresses));
    }
    let mut seen = Vec::new();
    for (from, seen_as, report) in &scans {
        if report.targets.is_empty() {
            return Err(
                CliError::unsure(format!("the scan from {from} has no target in it"))
                    .hint("an empty report proves nothing; scan again"),
            );
        }
        for target in &report.targets {
            if !addresses.contains(&target.address) && args.address.is_empty() {
                return Err(CliError::usage(format!(
                    "the scan from {from} is of {}, which is no address of this machine",
                    target.address
                ))
                .hint("if a router translates it, say so: --address THAT-ADDRESS"));
            }
            let source = seen_as.or(target.source);
            seen.push(compare(
                &engine,
                &host,
                &expectations,
                (from, source),
                target,
                report.partial,
            ));
        }
    }
    let unproven = unproven(&host, &seen);
    let asked: Vec<_> = seen
        .iter()
        .map(|knock| move |port| knock.asked(port))
        .collect();
    let knocked: Vec<Knocked<'_>> = seen
        .iter()
        .zip(&asked)
        .map(|(knock, asked)| Knocked {
            vantage: &knock.vantage,
            known: knock.source.is_some(),
            to: knock.address,
            open: &knock.open,
            sure: knock.inconclusive.is_none(),
            asked,
        })
        .collect();
    let tests = proof::tests(&policy, &host, &knocked);
    let findings =
        seen.iter().any(Seen::has_findings) || tests.iter().any(|test| test.holds == Some(false));
    let passed = !findings && seen.iter().all(|knock| knock.inconclusive.is_none());
    if let Some(path) = &args.junit {
        let junit = render::junit::text(&seen, &tests, &unproven);
        std::fs::write(path, junit).map_err(|error| {
            CliError::unsure(format!("cannot write {}", path.display())).because(&error)
        })?;
    }
    if args.json {
        print_json(&Wire {
            schema: 1,
            passed,
            policy: &name,
            knocks: &seen,
            tests: &tests,
            unproven: &unproven,
        })?;
    } else {
        print(&render::verify::text(
            &seen,
            &tests,
            &unproven,
            &name,
            !global.quiet,
        ))?;
    }
    Ok(if findings {
        Exit::Findings
    } else if passed {
        Exit::Clean
    } else {
        Exit::Unsure
    })
}

/// The addresses that strangers may try: those given, else this machine's own beyond loopback,
/// link-local and container bridges.
fn addresses(host: &Host, given: &[IpAddr]) -> Result<Vec<IpAddr>, CliError> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let inner: Vec<IpAddr> = host
        .net
        .interfaces
        .iter()
        .filter(|interface| {
            let containers = zones::places(host)
                .iter()
                .any(|place| place.interface == interface.name && place.zone == "containers");
            interface.loopback || containers
        })
        .flat_map(|interface| &interface.addresses)
        .map(|address| address.net.addr())
        .collect();
    let own: Vec<IpAddr> = zones::own_addresses(host)
        .into_iter()
        .filter(|address| !inner.contains(address) && !link_local(*address))
        .collect();
    if own.is_empty() {
        return Err(CliError::unsure("no address of this machine is known")
            .hint("say which: --address ADDR"));
    }
    Ok(own)
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn nobody_knocked(addresses: &[IpAddr]) -> CliError {
    let targets: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    CliError::unsure("nobody knocked: a machine cannot see itself from outside").hint(format!(
        "knock from another machine of yours: portcullis verify --from ssh:USER@HOST, or run there\n  \
         portcullis scan --json {} > scan.json\nand here: portcullis verify --report scan.json",
        targets.join(" ")
    ))
}

fn compare(
    engine: &Engine<'_>,
    host: &Host,
    expectations: &[expect::Expectation],
    (from, source): (&str, Option<IpAddr>),
    target: &TargetReport,
    partial: bool,
) -> Seen {
    let open: Vec<u16> = target
        .ports
        .iter()
        .filter(|port| port.state == PortState::Open && port.proto == "tcp")
        .map(|port| port.port)
        .collect();
    let asked = PortSet::parse(&target.asked).ok();
    let vantage = source.map_or_else(
        || Vantage {
            zone: "internet".into(),
            address: unspecified(target.address),
        },
        |source| Vantage::of(host, source),
    );
    let found: Vec<(Proto, u16)> = open.iter().map(|port| (Proto::Tcp, *port)).collect();
    let mut wrong = check_scan(expectations, &vantage, &found, |proto, port| {
        proto == Proto::Tcp && asked.as_ref().is_some_and(|ports| ports.contains(port))
    });
    // A knocker that was counted by a rate limit proves nothing about those who knock less.
    let limited = |wrong: &Disagreement| {
        !wrong.open
            && expectations.iter().any(|expectation| {
                expectation.zone == vantage.zone
                    && expectation.port == wrong.port
                    && expectation.proto == wrong.proto
                    && expectation.rate_limited
            })
    };
    let limited_ports: Vec<u16> = wrong
        .iter()
        .filter(|w| limited(w))
        .map(|w| w.port)
        .collect();
    wrong.retain(|w| !limited(w));
    let inconclusive = if partial {
        Some(
            target
                .note
                .clone()
                .map_or_else(|| "the scan did not finish".to_owned(), |note| clean(&note)),
        )
    } else if target.answers_for_all() {
        Some("something answers for every port there".to_owned())
    } else if !target.answered() {
        Some("nothing at all answered there, as it would at a wrong address".to_owned())
    } else if asked.as_ref().is_none_or(|ports| ports.len() < 65_535) {
        Some(format!("only ports {} were knocked on", target.asked))
    } else {
        limited_ports.first().map(|port| {
            format!(
                "{port} did not answer, as its rate limit refuses who knocks too often: knock \
                 again in 30 s"
            )
        })
    };
    let mut rows = engine.rows(
        expectations,
        &vantage,
        target.address,
        &open,
        (inconclusive.is_none(), source.is_some()),
        |port| asked.as_ref().is_some_and(|ports| ports.contains(port)),
    );
    // What the policy wants closed and the knock found open is said already.
    for row in &mut rows {
        if wrong
            .iter()
            .any(|wrong| wrong.port == row.port && wrong.open)
            && row.engine == proof::Word::Open
        {
            row.disagreement = None;
        }
    }
    Seen {
        from: from.to_owned(),
        source,
        zone: vantage.zone.clone(),
        address: target.address,
        open,
        wrong: wrong.into_iter().map(|wrong| wrong.text).collect(),
        inconclusive,
        rows,
        limited: limited_ports,
        asked,
        vantage,
    }
}

fn unspecified(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Zones of this machine that no scan came from; containers are not expected to scan.
fn unproven(host: &Host, seen: &[Seen]) -> Vec<String> {
    let zones: Vec<String> = zones::zones(host)
        .into_iter()
        .filter(|zone| zone.id != "containers")
        .filter(|zone| !seen.iter().any(|knock| knock.zone == zone.id))
        .map(|zone| zone.label)
        .collect();
    zones
}
