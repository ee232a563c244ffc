//! What one vantage saw at one address, next to policy and engine.

use super::proof::{self, Engine, Fate, Row, Word};
use super::witnessed::Witnessed;
use portcullis_core::expect::{self, Disagreement, Vantage, check_scan};
use portcullis_core::host::Host;
use portcullis_core::text::clean;
use reach::Proto;
use scan::{PortSet, PortState, TargetReport};
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What one vantage saw at one address of this machine.
#[derive(Debug, Serialize)]
pub struct Seen {
    /// Where the scan came from, in words.
    pub from: String,
    /// Its source address, as this machine's kernel noted it, else as the scanner knows it.
    pub source: Option<IpAddr>,
    /// The zone that it stands for.
    pub zone: String,
    /// The address knocked on.
    pub address: IpAddr,
    /// TCP ports found open.
    pub open: Vec<u16>,
    /// UDP ports found open.
    pub open_udp: Vec<u16>,
    /// This machine's kernel noted what arrived and what it answered.
    pub witnessed: bool,
    /// TCP ports on which no knock arrived, as a list; empty: none, or nobody watched.
    pub never_arrived: String,
    /// What is not as the policy wants it.
    pub wrong: Vec<String>,
    /// Why it proves nothing, if so.
    pub inconclusive: Option<String>,
    /// What else a reader should know.
    pub remarks: Vec<String>,
    /// Policy, engine and knock side by side, a port each.
    pub rows: Vec<Row>,
    /// Ports that did not answer because of their rate limit.
    #[serde(skip)]
    pub limited: Vec<u16>,
    /// The TCP ports that were asked.
    #[serde(skip)]
    pub asked: Option<PortSet>,
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

    /// What the knock saw of a port; `None` when it was not knocked on.
    pub fn word(&self, proto: Proto, port: u16) -> Option<Word> {
        let mut rows = self.rows.iter();
        if let Some(row) = rows.find(|row| (row.proto, row.port) == (proto, port)) {
            return Some(row.knock);
        }
        let asked = proto == Proto::Tcp && self.asked.as_ref().is_some_and(|p| p.contains(port));
        asked.then_some(match self.inconclusive {
            None => Word::Closed,
            Some(_) => Word::Unsure,
        })
    }
}

/// A knock as it came in.
pub struct Knock<'a> {
    /// Where from, in words.
    pub from: &'a str,
    /// What was seen.
    pub target: &'a TargetReport,
    /// The scan did not come to a sure end.
    pub partial: bool,
    /// What the kernel here noted of it.
    pub witnessed: Option<Witnessed>,
}

impl Knock<'_> {
    fn source(&self) -> Option<IpAddr> {
        let witnessed = self.witnessed.as_ref().map(|w| w.source);
        witnessed.or(self.target.source)
    }

    fn asked(&self) -> Option<PortSet> {
        PortSet::parse(&self.target.asked).ok()
    }

    fn open(&self, proto: Proto) -> BTreeSet<u16> {
        let name = proto.to_string();
        let answered = self.target.ports.iter();
        let mut open: BTreeSet<u16> = answered
            .filter(|port| port.state == PortState::Open && port.proto == name)
            .map(|port| port.port)
            .collect();
        if let Some(witnessed) = &self.witnessed {
            match proto {
                Proto::Tcp => open.extend(&witnessed.unheard),
                _ => {
                    let settled = witnessed.udp.iter();
                    open.extend(settled.filter(|(_, w)| **w == Word::Open).map(|(p, _)| *p));
                }
            }
        }
        open
    }

    /// A UDP port: silence is an answer only where the witness settled it.
    fn udp(&self, port: u16) -> Option<Word> {
        let asked = PortSet::parse(&self.target.udp.as_ref()?.asked).ok()?;
        if !asked.contains(port) {
            return None;
        }
        let mut ports = self.target.ports.iter();
        let found = ports.find(|found| found.proto == "udp" && found.port == port);
        Some(match found.map(|found| found.state) {
            Some(PortState::Open) => Word::Open,
            Some(PortState::OpenOrFiltered) => {
                let settled = self.witnessed.as_ref().and_then(|w| w.udp.get(&port));
                settled.copied().unwrap_or(Word::Unsure)
            }
            Some(PortState::Rejected) => Word::Closed,
            // "Port unreachable" came back, unless the knock was cut off before.
            None if self.partial => Word::Unsure,
            None => Word::Closed,
        })
    }

    /// Why the silence of this knock proves nothing by itself.
    fn unsure(&self) -> Option<String> {
        let target = self.target;
        if self.partial {
            Some(
                target
                    .note
                    .clone()
                    .map_or_else(|| "the scan did not finish".to_owned(), |note| clean(&note)),
            )
        } else if !target.answered() {
            Some("nothing at all answered there, as it would at a wrong address".to_owned())
        } else {
            None
        }
    }

    /// The same, after the witness was heard.
    fn inconclusive(&self) -> Option<String> {
        if self.target.answers_for_all() {
            return Some("something answers for every port there".to_owned());
        }
        let asked = self.asked();
        if asked.as_ref().is_none_or(|ports| ports.len() < 65_535) {
            return Some(format!(
                "only ports {} were knocked on",
                clean(&self.target.asked)
            ));
        }
        let unsure = self.unsure();
        let Some(witnessed) = &self.witnessed else {
            return unsure;
        };
        if !witnessed.mute.is_empty() {
            return Some(format!(
                "{} was let in and did not answer (a service that hangs, a full queue): that is \
                 not closed",
                ports(&witnessed.mute)
            ));
        }
        if witnessed.unseen.is_empty() {
            return None;
        }
        unsure.map(|why| {
            format!(
                "{} of the ports never arrived here, and {why}",
                witnessed.unseen.len()
            )
        })
    }

    fn remarks(&self) -> Vec<String> {
        let Some(witnessed) = &self.witnessed else {
            return Vec::new();
        };
        let mut remarks = Vec::new();
        if witnessed.unseen.is_empty() {
            remarks.push(
                "witnessed: the kernel here saw every knock arrive, so silence is an answer".into(),
            );
        } else {
            remarks.push(format!(
                "on {} no knock arrived here: something in between takes them. What the rules \
                 here would do with them is the engine's word alone",
                ports(&witnessed.unseen)
            ));
        }
        if !witnessed.unheard.is_empty() {
            remarks.push(format!(
                "{} accepted the connection here, and the answer did not get back",
                ports(&witnessed.unheard)
            ));
        }
        if self
            .target
            .source
            .is_some_and(|own| own != witnessed.source)
        {
            remarks.push(format!(
                "it arrives as {}: its own address is translated on the way",
                witnessed.source
            ));
        }
        remarks
    }

    fn fate(&self, port: u16) -> Fate {
        match &self.witnessed {
            Some(witnessed) if witnessed.unseen.contains(&port) => Fate::NeverArrived,
            Some(witnessed) if witnessed.dropped.contains(&port) => Fate::Dropped,
            _ => Fate::Unknown,
        }
    }
}

/// Ports as a short text.
fn ports(ports: &BTreeSet<u16>) -> String {
    match ports.len() {
        1 => format!("port {}", ports.iter().copied().collect::<PortSet>()),
        2..=12 => format!("ports {}", ranges(ports)),
        many => format!("{many} ports"),
    }
}

/// Ports as a list of ranges.
pub fn ranges(ports: &BTreeSet<u16>) -> String {
    if ports.is_empty() {
        return String::new();
    }
    let list: Vec<String> = ports.iter().map(u16::to_string).collect();
    // Through the reader, which joins neighbours.
    PortSet::parse(&list.join(",")).map_or_else(|_| String::new(), |set| set.to_string())
}

/// Holds a knock against policy and engine.
pub fn compare(
    engine: &Engine<'_>,
    host: &Host,
    expectations: &[expect::Expectation],
    knock: &Knock<'_>,
) -> Seen {
    let target = knock.target;
    let source = knock.source();
    let asked = knock.asked();
    let (open, open_udp) = (knock.open(Proto::Tcp), knock.open(Proto::Udp));
    let vantage = source.map_or_else(
        || Vantage {
            zone: "internet".into(),
            address: unspecified(target.address),
        },
        |source| Vantage::of(host, source),
    );
    let of = |proto: Proto, ports: &BTreeSet<u16>| -> Vec<(Proto, u16)> {
        ports.iter().map(|port| (proto, *port)).collect()
    };
    let found = [of(Proto::Tcp, &open), of(Proto::Udp, &open_udp)].concat();
    let was_asked = |port: u16| asked.as_ref().is_some_and(|ports| ports.contains(port));
    let mut wrong = check_scan(expectations, &vantage, &found, |proto, port| match proto {
        Proto::Tcp => was_asked(port),
        _ => matches!(knock.udp(port), Some(Word::Open | Word::Closed)),
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
    let inconclusive = knock.inconclusive().or_else(|| {
        limited_ports.first().map(|port| {
            format!(
                "{port} did not answer, as its rate limit refuses who knocks too often: knock \
                 again in 30 s"
            )
        })
    });
    let sure = inconclusive.is_none();
    let tcp_word = |port: u16| {
        was_asked(port).then(|| match (open.contains(&port), &knock.witnessed) {
            (true, _) => Word::Open,
            (false, Some(witnessed)) if witnessed.mute.contains(&port) => Word::Unsure,
            // It arrived, and nothing came back: no need of any other port's certainty.
            (false, Some(witnessed)) if !witnessed.unseen.contains(&port) => Word::Closed,
            (false, _) if sure => Word::Closed,
            (false, _) => Word::Unsure,
        })
    };
    let mut rows = Vec::new();
    for (proto, open) in [(Proto::Tcp, &open), (Proto::Udp, &open_udp)] {
        rows.extend(engine.rows(
            proto,
            expectations,
            &vantage,
            (target.address, source.is_some()),
            open,
            &|port| match proto {
                Proto::Tcp => tcp_word(port),
                _ => knock.udp(port),
            },
            &|port| match proto {
                Proto::Tcp => knock.fate(port),
                _ => Fate::Unknown,
            },
        ));
    }
    // What the policy wants closed and the knock found open is said already.
    for row in &mut rows {
        let said = wrong
            .iter()
            .any(|wrong| wrong.port == row.port && wrong.proto == row.proto && wrong.open);
        if said && row.engine == proof::Word::Open {
            row.disagreement = None;
        }
    }
    Seen {
        from: knock.from.to_owned(),
        source,
        zone: vantage.zone,
        address: target.address,
        open: open.into_iter().collect(),
        open_udp: open_udp.into_iter().collect(),
        witnessed: knock.witnessed.is_some(),
        never_arrived: knock
            .witnessed
            .as_ref()
            .map_or_else(String::new, |witnessed| ranges(&witnessed.unseen)),
        wrong: wrong.into_iter().map(|wrong| wrong.text).collect(),
        inconclusive,
        remarks: knock.remarks(),
        rows,
        limited: limited_ports,
        asked,
    }
}

fn unspecified(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}
