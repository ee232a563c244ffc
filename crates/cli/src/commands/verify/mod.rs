//! `portcullis verify`: knock from outside, compare with the policy.

mod gather;
pub mod proof;
pub mod seen;
pub mod sides;
mod witnessed;

use crate::args::{Global, Verify};
use crate::commands::vantage::{Ask, Vantage};
use crate::commands::{jails, print, print_json, remark};
use crate::error::{CliError, Exit};
use crate::{input, render};
use gather::Knocked;
use portcullis_core::expect;
use portcullis_core::host::Host;
use portcullis_core::judge::Intent;
use portcullis_core::policy::Policy;
use portcullis_core::text::clean;
use portcullis_core::zones;
use proof::{Engine, TestResult};
use reach::Proto;
use scan::{PortSet, Report};
use seen::Seen;
use serde::Serialize;
use sides::Sides;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

/// UDP ports that a verify asks about at the most.
const MOST_UDP: usize = 1024;
/// Bytes that are read of a scan report at the most.
const REPORT_LIMIT: u64 = 64 << 20;

/// The result on the wire.
#[derive(Debug, Serialize)]
struct Wire<'a> {
    schema: u32,
    passed: bool,
    policy: &'a str,
    knocks: &'a [Seen],
    /// The policy's own tests.
    tests: &'a [TestResult],
    /// Ports that are open for some and closed for others.
    sides: &'a [Sides],
    /// Zones that nobody knocked from.
    unproven: &'a [String],
    /// Whether each jail bans, tried with a marked entry in its log.
    jails: &'a [jails::Shown],
}

/// Gathers scans, compares, prints. Exit 1: not as the policy wants; 5: nothing proven.
pub fn run(global: &Global, args: &Verify) -> Result<Exit, CliError> {
    let (policy, name) = input::policy(&args.policy)?;
    let host = input::facts(&args.facts)?;
    let expectations = expect::expectation(&policy, &host);
    let engine = Engine::new(&host);
    let addresses = addresses(&host, &args.address)?;
    let mut vantages = Vec::new();
    for vantage in &args.from {
        vantages.push(Vantage::parse(vantage)?);
    }
    if vantages.is_empty() && args.report.is_empty() {
        return Err(nobody_knocked(&addresses));
    }
    let mut knocks = reports(&args.report)?;
    let mut failed = Vec::new();
    if !vantages.is_empty() {
        let ask = Ask {
            of_this_machine: args.address.is_empty(),
            ..what_to_ask(&policy, &host, &expectations, &addresses)
        };
        // A snapshot is of another time or machine: what arrives here says nothing about it.
        let watch = args.facts.snapshot.is_none();
        let (knocked, missing) = gather::knock(vantages, &ask, watch, &host, &engine);
        knocks.extend(knocked);
        failed = missing;
        if knocks.is_empty()
            && let Some(first) = failed.pop()
        {
            return Err(first);
        }
        for error in &failed {
            remark(error.render().trim_end());
        }
    }
    let mut seen = Vec::new();
    for knock in &knocks {
        let from = &knock.from;
        if knock.report.targets.is_empty() {
            return Err(
                CliError::unsure(format!("the scan from {from} has no target in it"))
                    .hint("an empty report proves nothing; scan again"),
            );
        }
        for target in &knock.report.targets {
            // What was made elsewhere may be of another machine.
            let foreign = knock.made_elsewhere && !addresses.contains(&target.address);
            if foreign && args.address.is_empty() {
                return Err(CliError::usage(format!(
                    "the scan from {from} is of {}, which is no address of this machine",
                    target.address
                ))
                .hint("if a router translates it, say so: --address THAT-ADDRESS"));
            }
            // Who has no way to an address neither reaches it nor proves anything about it.
            if target.asked.is_empty() && knock.report.targets.iter().any(|t| !t.asked.is_empty()) {
                let note = target.note.as_deref().unwrap_or("no port was asked");
                remark(&clean(&format!("{from} to {}: {note}", target.address)));
                continue;
            }
            let witnessed = knock.witnessed.get(&target.address).cloned();
            let knock = seen::Knock {
                from,
                target,
                partial: knock.report.partial_of(target),
                witnessed,
            };
            seen.push(seen::compare(&engine, &host, &expectations, &knock));
        }
    }
    let result = Outcome {
        policy: &name,
        tests: proof::tests(&policy, &host, &seen),
        sides: sides::sides(&expectations, &zones::zones(&host), &seen),
        unproven: unproven(&host, &seen),
        failed: failed.len(),
        // Only the machine itself can write to its logs.
        jails: if args.facts.snapshot.is_none() && host.privileged {
            jails::all(&host, &policy)
        } else {
            Vec::new()
        },
        seen,
    };
    show(global, args, &result)
}

/// Everything that was found out.
pub struct Outcome<'a> {
    /// The policy's name.
    pub policy: &'a str,
    /// One entry a vantage and address.
    pub seen: Vec<Seen>,
    /// The policy's own tests.
    pub tests: Vec<TestResult>,
    /// Ports that are open for some and closed for others.
    pub sides: Vec<Sides>,
    /// Zones that nobody knocked from.
    pub unproven: Vec<String>,
    /// Vantages from which nothing came.
    pub failed: usize,
    /// Whether each jail bans.
    pub jails: Vec<jails::Shown>,
}

impl Outcome<'_> {
    /// Something is not as the policy wants it.
    pub fn findings(&self) -> bool {
        self.seen.iter().any(Seen::has_findings)
            || self.tests.iter().any(|test| test.holds == Some(false))
            || self.jails.iter().any(|jail| jail.failed)
    }

    /// Every knock proves something, and nothing is wrong.
    pub fn passed(&self) -> bool {
        !self.findings()
            && self.failed == 0
            && self.seen.iter().all(|knock| knock.inconclusive.is_none())
    }
}

fn show(global: &Global, args: &Verify, result: &Outcome<'_>) -> Result<Exit, CliError> {
    if let Some(path) = &args.junit {
        std::fs::write(path, render::junit::text(result)).map_err(|error| {
            CliError::unsure(format!("cannot write {}", path.display())).because(&error)
        })?;
    }
    if args.json {
        print_json(&Wire {
            schema: 1,
            passed: result.passed(),
            policy: result.policy,
            knocks: &result.seen,
            tests: &result.tests,
            sides: &result.sides,
            unproven: &result.unproven,
            jails: &result.jails,
        })?;
    } else {
        print(&render::verify::text(result, !global.quiet))?;
        if !result.jails.is_empty() {
            print(&format!("\n{}", render::bans::proofs(&result.jails)))?;
        }
    }
    Ok(if result.findings() {
        Exit::Findings
    } else if result.passed() {
        Exit::Clean
    } else {
        Exit::Unsure
    })
}

/// Scans that were made elsewhere.
fn reports(paths: &[PathBuf]) -> Result<Vec<Knocked>, CliError> {
    let mut knocks = Vec::new();
    for path in paths {
        let text = input::text(path, "scan report", REPORT_LIMIT)?;
        let report: Report = serde_json::from_str(&text).map_err(|error| {
            CliError::usage(format!("{} is no scan report", path.display()))
                .because(&error)
                .hint("make one elsewhere with: portcullis scan THIS-MACHINE --json > scan.json")
        })?;
        knocks.push(Knocked {
            from: path.display().to_string(),
            made_elsewhere: true,
            report,
            witnessed: BTreeMap::new(),
        });
    }
    Ok(knocks)
}

/// All TCP ports, and the UDP ports that somebody has something to say about.
fn what_to_ask(
    policy: &Policy,
    host: &Host,
    expectations: &[expect::Expectation],
    addresses: &[IpAddr],
) -> Ask {
    let all = zones::zones(host);
    let intent = Intent::new(host, policy, &all);
    let of = |proto: Proto| -> BTreeSet<u16> {
        let expected = expectations.iter().filter(|e| e.proto == proto);
        let tests = policy.tests.iter().filter(|test| test.proto == proto);
        expected
            .map(|e| e.port)
            .chain(tests.flat_map(|test| test.port.ports(intent.ssh_ports())))
            .take(MOST_UDP)
            .collect()
    };
    let udp: PortSet = of(Proto::Udp).into_iter().collect();
    Ask {
        targets: addresses.to_vec(),
        of_this_machine: false,
        tcp: PortSet::all(),
        likely: of(Proto::Tcp).into_iter().collect(),
        udp: (!udp.is_empty()).then_some(udp),
    }
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
        .filter(|address| !inner.contains(address) && !local_to_a_link(*address))
        .collect();
    if own.is_empty() {
        return Err(CliError::unsure("no address of this machine is known")
            .hint("say which: --address ADDR"));
    }
    Ok(own)
}

/// An address that nobody beyond the link can use, so no stranger tries it.
fn local_to_a_link(address: IpAddr) -> bool {
    let v4 = matches!(address, IpAddr::V4(v4) if v4.is_link_local());
    v4 || zones::is_link_local_v6(address)
}

fn nobody_knocked(addresses: &[IpAddr]) -> CliError {
    let targets: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    CliError::unsure("nobody knocked: a machine cannot see itself from outside").hint(format!(
        "knock from another machine of yours: portcullis verify --from ssh:USER@HOST, or run there\n  \
         portcullis scan --json {} > scan.json\nand here: portcullis verify --report scan.json",
        targets.join(" ")
    ))
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
