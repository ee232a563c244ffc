//! Knocking with packets built by hand: every port in a fraction of a second, and a stated risk.
//!
//! SYNs carry a keyed hash of their addresses and ports as sequence number, so that an answer is
//! believed only when it acknowledges exactly that. Nothing is remembered per knock. Silent ports
//! are knocked on again in rounds; *canaries*, knocks on ports that are known to answer, measure
//! what each round lost, and the scan ends only when the risk of a missed open port is at most
//! one in a million. Without canaries silence proves nothing and the scan says so.

pub(crate) mod canary;
mod cookie;
mod flow;
mod frame;
mod listen;
mod plan;
pub(crate) mod risk;
mod rounds;
mod wire;

use crate::{
    Options, PortReport, PortSet, PortState, Progress, Report, SCAN_SCHEMA, ScanError, Summary,
    TargetReport,
};
use frame::Unreachable;
use plan::{Group, Plan};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How to knock with packets.
#[derive(Debug, Clone)]
pub struct PacketOptions {
    /// Packets per second at the start.
    pub rate: f64,
    /// Packets per second at the most; `None`: by the path, more where no router stands between.
    pub max_rate: Option<f64>,
    /// Bound on the whole scan; what is not settled then makes the report partial.
    pub deadline: Duration,
}

impl Default for PacketOptions {
    fn default() -> Self {
        PacketOptions {
            rate: 50_000.0,
            max_rate: None,
            deadline: Duration::from_secs(600),
        }
    }
}

/// True when this process may open packet sockets (CAP_NET_RAW).
pub fn available() -> bool {
    let link = wire::Link {
        index: 0,
        next_hop: Vec::new(),
        ipv6: false,
    };
    wire::Sender::open(&link).is_ok()
}

/// Knocks on every port of every target. Addresses of this very host are knocked on with
/// connect(), since no packet of theirs crosses a wire.
///
/// # Errors
/// No way to the only target, no packet socket (CAP_NET_RAW), or the kernel failed while sending.
/// Of several targets, one without a way is part of the report.
pub fn scan(
    targets: &[IpAddr],
    ports: &PortSet,
    options: &PacketOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, ScanError> {
    let end = Instant::now() + options.deadline;
    let Plan { groups, own, lost } = plan::plan(targets);
    if let [(target, why)] = lost.as_slice()
        && targets.len() == 1
    {
        return Err(ScanError::NoRoute {
            target: *target,
            why: why.clone(),
        });
    }
    let mut report = Report {
        schema: SCAN_SCHEMA,
        partial: false,
        targets: Vec::new(),
    };
    let total = ports.len() * targets.len();
    let mut before = 0;
    for group in &groups {
        let outcome = rounds::knock(group, ports, options, end, &mut |settled| {
            progress(Progress {
                settled: before + settled,
                total,
            });
        })?;
        before += group.targets.len() * ports.len();
        for (index, target) in group.targets.iter().enumerate() {
            let sure = outcome.sure[index];
            report.partial |= !sure;
            let mut found = of_states(*target, group, ports, &outcome, index);
            found.partial = !sure;
            report.targets.push(found);
        }
    }
    if !own.is_empty() {
        let local = crate::connect::scan(
            &own,
            ports,
            &Options {
                deadline: end.saturating_duration_since(Instant::now()),
                ..Options::default()
            },
            &mut |_| {},
        )?;
        report.partial |= local.partial;
        report.targets.extend(local.targets);
    }
    for (address, why) in lost {
        report.partial = true;
        report.targets.push(TargetReport {
            address,
            source: None,
            asked: String::new(),
            partial: true,
            ports: Vec::new(),
            summary: Summary::default(),
            udp: None,
            note: Some(format!("no way there: {why}")),
        });
    }
    report.targets.sort_by_key(|target| {
        targets
            .iter()
            .position(|asked| *asked == target.address)
            .unwrap_or(usize::MAX)
    });
    Ok(report)
}

fn of_states(
    address: IpAddr,
    group: &Group,
    ports: &PortSet,
    outcome: &rounds::Outcome,
    index: usize,
) -> TargetReport {
    let mut summary = Summary::default();
    let mut found = Vec::new();
    for port in ports.iter() {
        let (state, reason) = match outcome.state(index, port) {
            listen::OPEN => {
                summary.open += 1;
                (PortState::Open, "syn-ack")
            }
            listen::CLOSED => {
                summary.closed += 1;
                continue;
            }
            listen::SILENT => {
                summary.filtered += 1;
                continue;
            }
            code => {
                summary.rejected += 1;
                (PortState::Rejected, reason_of(code).text())
            }
        };
        found.push(PortReport {
            proto: "tcp".into(),
            port,
            state,
            reason: reason.into(),
            service: None,
        });
    }
    TargetReport {
        address,
        source: Some(group.source),
        asked: ports.to_string(),
        partial: false,
        ports: found,
        summary,
        udp: None,
        note: outcome.excuses[index].clone(),
    }
    .folded()
}

fn reason_of(code: u8) -> Unreachable {
    match code {
        3 => Unreachable::Port,
        4 => Unreachable::Prohibited,
        6 => Unreachable::Net,
        7 => Unreachable::Protocol,
        _ => Unreachable::Host,
    }
}
