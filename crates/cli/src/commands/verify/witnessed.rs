//! What this machine's kernel noted of a knock, held against what the knocker saw.

use super::proof::Word;
use host::witness::{Note, Notes};
use reach::Proto;
use scan::{PortSet, PortState, Report, TargetReport};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Ports that a source must have knocked on before it can be taken for a scanner whose address
/// was translated on the way.
const SCANNED: usize = 100;

/// What the notes say about one vantage at one address.
#[derive(Debug, Clone)]
pub struct Witnessed {
    /// The vantage as its packets arrive here, after any NAT.
    pub source: IpAddr,
    /// Ports that answered, but the answer did not get back: they are open.
    pub unheard: BTreeSet<u16>,
    /// Ports that every rule let in, where something listens and nothing answered: a full queue, a
    /// service that hangs. Not closed.
    pub mute: BTreeSet<u16>,
    /// Ports on which no knock ever arrived.
    pub unseen: BTreeSet<u16>,
    /// Ports whose knock arrived and was dropped by this machine's rules.
    pub dropped: BTreeSet<u16>,
    /// UDP ports that are settled now.
    pub udp: BTreeMap<u16, Word>,
}

/// The TCP ports of one state, as a knocker saw them.
fn tcp(target: &TargetReport, state: PortState) -> BTreeSet<u16> {
    let ports = target.ports.iter();
    ports
        .filter(|port| port.proto == "tcp" && port.state == state)
        .map(|port| port.port)
        .collect()
}

/// Reads the notes on one address; `None` when it cannot be told which source was this vantage.
/// `others`: sources of the other vantages. `listens`: whether something may be behind a port.
pub fn look(
    notes: &Notes,
    target: &TargetReport,
    others: &BTreeSet<IpAddr>,
    listens: &dyn Fn(Proto, u16) -> bool,
) -> Option<Witnessed> {
    let asked = PortSet::parse(&target.asked).ok()?;
    let to = target.address;
    let open = tcp(target, PortState::Open);
    let source = source_of(notes, target, &asked, &open, others)?;
    let has = |note, port| notes.has(note, (source, to, port));
    let mut seen = Witnessed {
        source,
        unheard: BTreeSet::new(),
        mute: BTreeSet::new(),
        unseen: BTreeSet::new(),
        dropped: BTreeSet::new(),
        udp: BTreeMap::new(),
    };
    for port in asked.iter().filter(|port| !open.contains(port)) {
        if has(Note::Accepted, port) {
            seen.unheard.insert(port);
        } else if !has(Note::Arrived, port) {
            seen.unseen.insert(port);
        } else if !has(Note::LetIn, port) {
            seen.dropped.insert(port);
        } else if !has(Note::Reset, port) && listens(Proto::Tcp, port) {
            seen.mute.insert(port);
        }
    }
    for port in target.ports.iter().filter(|port| port.proto == "udp") {
        if port.state != PortState::OpenOrFiltered || !has(Note::UdpArrived, port.port) {
            continue;
        }
        let let_in = has(Note::UdpLetIn, port.port);
        let answered = has(Note::UdpAnswered, port.port);
        let word = if answered || (let_in && listens(Proto::Udp, port.port)) {
            Word::Open
        } else {
            Word::Closed
        };
        seen.udp.insert(port.port, word);
    }
    Some(seen)
}

/// Which source the vantage is: the one that it knows itself, else, behind NAT, the only one that
/// scanned and to which every port that was seen open did answer.
fn source_of(
    notes: &Notes,
    target: &TargetReport,
    asked: &PortSet,
    open: &BTreeSet<u16>,
    others: &BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    let knockers: Vec<IpAddr> = notes
        .knockers(target.address)
        .into_iter()
        .filter(|(_, ports)| ports * 2 >= asked.len())
        .map(|(source, _)| source)
        .collect();
    if let Some(own) = target.source.filter(|own| knockers.contains(own)) {
        return Some(own);
    }
    let answered = |source: IpAddr| {
        let mut open = open.iter();
        open.all(|port| notes.has(Note::Accepted, (source, target.address, *port)))
    };
    let mut translated = knockers
        .into_iter()
        .filter(|source| !others.contains(source) && answered(*source));
    let only = translated.next()?;
    (translated.next().is_none() && asked.len() >= SCANNED && !open.is_empty()).then_some(only)
}

/// Adds what a second knock on some ports found.
pub fn merge(report: &mut Report, again: &Report) {
    for target in &mut report.targets {
        let Some(second) = again.targets.iter().find(|t| t.address == target.address) else {
            continue;
        };
        let known = tcp(target, PortState::Open);
        for port in &second.ports {
            if port.proto == "tcp" && port.state == PortState::Open && !known.contains(&port.port) {
                target
                    .ports
                    .retain(|old| old.proto != "tcp" || old.port != port.port);
                target.ports.push(port.clone());
                target.summary.open += 1;
                target.summary.filtered = target.summary.filtered.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: &str = "203.0.113.10";

    fn target(source: Option<&str>, asked: &str, open: &[u16]) -> TargetReport {
        let ports: Vec<String> = open
            .iter()
            .map(|port| {
                format!(
                    r#"{{"proto":"tcp","port":{port},"state":"open","reason":"","service":null}}"#
                )
            })
            .collect();
        let source = source.map_or("null".into(), |source| format!("{source:?}"));
        let text = format!(
            r#"{{"address":"{TO}","source":{source},"asked":"{asked}","ports":[{}],
            "summary":{{"open":0,"closed":0,"rejected":0,"filtered":9}}}}"#,
            ports.join(",")
        );
        serde_json::from_str(&text).unwrap()
    }

    fn notes(of: &[(&str, Note, std::ops::RangeInclusive<u16>)]) -> Notes {
        of.iter()
            .flat_map(|(from, note, ports)| {
                let from: IpAddr = from.parse().unwrap();
                ports
                    .clone()
                    .map(move |port| (*note, (from, TO.parse().unwrap(), port)))
            })
            .collect()
    }

    const ME: &str = "198.51.100.66";

    #[test]
    fn only_what_arrived_and_was_dropped_is_closed_by_silence() {
        let notes = notes(&[
            (ME, Note::Arrived, 1..=8),
            (ME, Note::LetIn, 1..=5),
            (ME, Note::Accepted, 1..=2),
            (ME, Note::Reset, 3..=3),
        ]);
        let target = target(Some(ME), "1-10", &[1]);
        let seen = look(&notes, &target, &BTreeSet::new(), &|_, port| port == 4).unwrap();
        assert_eq!(seen.unheard, [2].into());
        assert_eq!(seen.mute, [4].into());
        assert_eq!(seen.dropped, [6, 7, 8].into());
        assert_eq!(seen.unseen, [9, 10].into());
    }

    #[test]
    fn a_translated_source_is_known_by_what_it_knocked_on() {
        let nat = "192.0.2.77";
        let all = [
            (nat, Note::Arrived, 1..=200),
            (nat, Note::Accepted, 22..=22),
        ];
        let behind = target(Some("10.0.0.5"), "1-200", &[22]);
        let none = BTreeSet::new();
        let look = |notes: &[_], target: &TargetReport, others: &BTreeSet<IpAddr>| {
            look(&self::notes(notes), target, others, &|_, _| true).map(|seen| seen.source)
        };
        assert_eq!(look(&all, &behind, &none), Some(nat.parse().unwrap()));
        // Another vantage is that source.
        assert_eq!(look(&all, &behind, &[nat.parse().unwrap()].into()), None);
        // Two could be it.
        let other = "192.0.2.78";
        let two = [
            all[0].clone(),
            all[1].clone(),
            (other, Note::Arrived, 1..=200),
            (other, Note::Accepted, 22..=22),
        ];
        assert_eq!(look(&two, &behind, &none), None);
        // Somebody who scans at the same time answers to nothing that the vantage saw.
        let stranger = [(nat, Note::Arrived, 1..=200)];
        assert_eq!(look(&stranger, &behind, &none), None);
        assert_eq!(look(&stranger, &target(None, "1-200", &[]), &none), None);
    }

    #[test]
    fn udp_is_settled_where_the_datagram_arrived() {
        let mut target = target(Some(ME), "1-4", &[]);
        for port in 53..57 {
            target.ports.push(scan::PortReport {
                proto: "udp".into(),
                port,
                state: PortState::OpenOrFiltered,
                reason: "no-response".into(),
                service: None,
            });
        }
        let notes = notes(&[
            (ME, Note::Arrived, 1..=4),
            (ME, Note::UdpArrived, 53..=55),
            (ME, Note::UdpLetIn, 53..=54),
        ]);
        let listens = |proto, port| proto == Proto::Udp && port == 53;
        let seen = look(&notes, &target, &BTreeSet::new(), &listens).unwrap();
        let settled: Vec<_> = seen.udp.into_iter().collect();
        assert_eq!(
            settled,
            [(53, Word::Open), (54, Word::Closed), (55, Word::Closed)]
        );
    }

    #[test]
    fn a_second_knock_adds_what_the_first_missed() {
        let report = |open: &[u16]| Report {
            schema: 1,
            partial: false,
            targets: vec![target(Some(ME), "1-10", open)],
        };
        let mut first = report(&[1]);
        merge(&mut first, &report(&[1, 7]));
        assert_eq!(tcp(&first.targets[0], PortState::Open), [1, 7].into());
        assert_eq!(first.targets[0].summary.filtered, 8);
    }
}
