//! Knocking from several vantages at once, under the eyes of this machine's kernel.

use super::proof::Engine;
use super::witnessed::{self, Witnessed};
use crate::commands::remark;
use crate::commands::vantage::{Ask, Vantage};
use crate::error::CliError;
use host::witness::{Notes, Witness};
use portcullis_core::expect;
use portcullis_core::host::Host;
use portcullis_core::text::clean;
use portcullis_core::zones;
use scan::{PortSet, Report};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// How often ports on which no knock arrived are knocked on again.
const AGAIN: usize = 3;
/// Longest list of ports that is named to the other side; beyond, all are knocked on again.
const LONGEST_LIST: usize = 32 * 1024;

/// A scan, and what was noted of it here.
pub struct Knocked {
    /// Where from, in words.
    pub from: String,
    /// A report that somebody brought.
    pub made_elsewhere: bool,
    /// What was seen there.
    pub report: Report,
    /// What was noted here, by address.
    pub witnessed: BTreeMap<IpAddr, Witnessed>,
}

/// Knocks from all of them at once; what failed comes back apart.
pub fn knock(
    mut vantages: Vec<Vantage>,
    ask: &Ask,
    watch: bool,
    host: &Host,
    engine: &Engine<'_>,
) -> (Vec<Knocked>, Vec<CliError>) {
    let witness = if watch {
        begin(vantages.len() * ask.targets.len())
    } else {
        None
    };
    let (mut knocks, mut failed) = (Vec::new(), Vec::new());
    let mut able = Vec::new();
    let first = each(&mut vantages, &|_, vantage| {
        Some(vantage.ends().and_then(|ends| {
            let ask = Ask {
                targets: targets(ask, ends, &vantage.name, host),
                ..ask.clone()
            };
            let mut report = vantage.knock(&ask)?;
            for target in report.targets.iter_mut().filter(|t| t.source.is_none()) {
                let theirs = ends.map(|(theirs, _)| zones::canonical(theirs));
                target.source = theirs.filter(|a| a.is_ipv4() == target.address.is_ipv4());
            }
            Ok(report)
        }))
    });
    for (vantage, answer) in vantages.into_iter().zip(first) {
        match answer {
            Some(Ok(report)) => {
                knocks.push(Knocked {
                    from: vantage.name.clone(),
                    made_elsewhere: false,
                    report,
                    witnessed: BTreeMap::new(),
                });
                able.push(vantage);
            }
            Some(Err(error)) => failed.push(error),
            None => {}
        }
    }
    if let Some(witness) = witness {
        look_again(&witness, &mut able, &mut knocks, ask, engine);
    }
    (knocks, failed)
}

/// Begins to watch, or says why not.
fn begin(scans: usize) -> Option<Witness> {
    match Witness::begin(scans) {
        Ok(witness) => Some(witness),
        Err(error) => {
            remark(&format!(
                "nobody watches on this side: {error}. Silence is judged by what the knocks \
                 measured on the way"
            ));
            None
        }
    }
}

/// What a vantage saw, or why it could not knock; nothing where it had nothing to ask.
type Answered = Option<Result<Report, CliError>>;

/// Every vantage that has something to ask, side by side.
fn each(
    vantages: &mut [Vantage],
    knock: &(dyn Fn(usize, &mut Vantage) -> Answered + Sync),
) -> Vec<Answered> {
    std::thread::scope(|scope| {
        let running: Vec<_> = vantages
            .iter_mut()
            .enumerate()
            .map(|(number, vantage)| scope.spawn(move || knock(number, vantage)))
            .collect();
        running
            .into_iter()
            .map(|thread| {
                let ended = || Some(Err(CliError::unsure("a knock ended before its time")));
                thread.join().unwrap_or_else(|_| ended())
            })
            .collect()
    })
}

/// What a vantage is to knock on. Behind a router the same private address is another machine: a
/// vantage on the Internet gets this machine's public addresses, and where it has none of its own,
/// the one that the vantage knows it by.
fn targets(ask: &Ask, ends: Option<(IpAddr, IpAddr)>, name: &str, host: &Host) -> Vec<IpAddr> {
    let Some((theirs, ours)) = ends else {
        return ask.targets.clone();
    };
    let far = ask.of_this_machine && expect::Vantage::of(host, theirs).zone == "internet";
    let private = zones::private();
    if !far || private.contains(zones::canonical(theirs)) {
        return ask.targets.clone();
    }
    let public: Vec<IpAddr> = ask
        .targets
        .iter()
        .copied()
        .filter(|address| !private.contains(*address))
        .collect();
    if !public.is_empty() {
        return public;
    }
    remark(&format!(
        "this machine has no public address of its own; {} knows it as {ours}",
        clean(name)
    ));
    vec![zones::canonical(ours)]
}

/// Knocks again where nothing arrived, as long as that brings something, and reads the notes.
fn look_again(
    witness: &Witness,
    vantages: &mut [Vantage],
    knocks: &mut [Knocked],
    ask: &Ask,
    engine: &Engine<'_>,
) {
    let mut missing = usize::MAX;
    for round in 0..=AGAIN {
        let notes = match witness.notes() {
            Ok(notes) => notes,
            Err(error) => {
                remark(&format!("what arrived here could not be read: {error}"));
                return;
            }
        };
        read(&notes, knocks, engine);
        let unseen: Vec<Option<Ask>> = knocks.iter().map(|knock| unseen(knock, ask)).collect();
        let left: usize = knocks
            .iter()
            .flat_map(|knock| knock.witnessed.values())
            .map(|witnessed| witnessed.unseen.len())
            .sum();
        if left == 0 || left >= missing || round == AGAIN {
            return;
        }
        missing = left;
        let answers = each(vantages, &|number, vantage| {
            let ask = unseen.get(number)?.as_ref()?;
            Some(vantage.knock(ask))
        });
        for (knock, again) in knocks.iter_mut().zip(answers) {
            match again {
                Some(Ok(again)) => witnessed::merge(&mut knock.report, &again),
                Some(Err(error)) => remark(error.render().trim_end()),
                None => {}
            }
        }
    }
}

fn read(notes: &Notes, knocks: &mut [Knocked], engine: &Engine<'_>) {
    let sources: Vec<BTreeSet<IpAddr>> = knocks
        .iter()
        .map(|knock| {
            knock
                .report
                .targets
                .iter()
                .filter_map(|t| t.source)
                .collect()
        })
        .collect();
    for (number, knock) in knocks.iter_mut().enumerate() {
        let others: BTreeSet<IpAddr> = sources
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != number)
            .flat_map(|(_, sources)| sources.iter().copied())
            .collect();
        for target in &knock.report.targets {
            let to = target.address;
            let listens = |proto, port| engine.listens(to, proto, port);
            match witnessed::look(notes, target, &others, &listens) {
                Some(found) => knock.witnessed.insert(to, found),
                None => knock.witnessed.remove(&to),
            };
        }
    }
}

/// What to ask once more: ports of any address on which nothing arrived.
fn unseen(knock: &Knocked, ask: &Ask) -> Option<Ask> {
    let of = |witnessed: &Witnessed| !witnessed.unseen.is_empty();
    let targets: Vec<IpAddr> = knock
        .witnessed
        .iter()
        .filter(|(_, witnessed)| of(witnessed))
        .map(|(address, _)| *address)
        .collect();
    if targets.is_empty() {
        return None;
    }
    let ports: BTreeSet<u16> = knock
        .witnessed
        .values()
        .flat_map(|witnessed| witnessed.unseen.iter().copied())
        .collect();
    let list = super::seen::ranges(&ports);
    let tcp = if list.len() > LONGEST_LIST {
        ask.tcp.clone()
    } else {
        PortSet::parse(&list).ok()?
    };
    Some(Ask {
        targets,
        tcp,
        udp: None,
        ..ask.clone()
    })
}
