//! What a knock proves next to the engine's answer, and which of the policy's tests it settles.

use super::seen::Seen;
use portcullis_core::expect::{Expectation, Expected, Vantage};
use portcullis_core::finding::{Endpoint, Origin};
use portcullis_core::host::Host;
use portcullis_core::judge::Intent;
use portcullis_core::policy::{Expect, Policy};
use portcullis_core::{expose, zones};
use reach::Proto;
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What somebody says about a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    Open,
    Closed,
    /// The policy: either is fine. The engine: it depends. The knock: it proves nothing.
    Unsure,
}

/// What became of a knock that was not answered, as this machine's kernel noted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nobody watched.
    Unknown,
    /// It arrived, and the rules here dropped it.
    Dropped,
    /// It never arrived.
    NeverArrived,
}

/// One port as policy, engine and knock have it.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Protocol.
    #[serde(serialize_with = "as_text")]
    pub proto: Proto,
    /// Port.
    pub port: u16,
    /// What the policy wants for this source.
    pub policy: Word,
    /// What the rules of this machine say.
    pub engine: Word,
    /// What the knock saw.
    pub knock: Word,
    /// What engine and knock disagree on, in words.
    pub disagreement: Option<String>,
}

fn as_text<S: serde::Serializer>(proto: &Proto, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(proto)
}

/// The facts that rows are made from.
pub struct Engine<'a> {
    host: &'a Host,
    endpoints: Vec<Endpoint>,
    blind: bool,
}

impl<'a> Engine<'a> {
    /// Asks the engine about every endpoint.
    pub fn new(host: &'a Host) -> Self {
        Engine {
            host,
            endpoints: expose::endpoints(host),
            blind: expose::may_miss_endpoints(host),
        }
    }

    /// Whether the rules admit `vantage` to a port of `to`. What no endpoint has is closed, unless
    /// endpoints may be missing from the facts.
    pub fn says(&self, vantage: &Vantage, to: IpAddr, proto: Proto, port: u16) -> Word {
        let source = zones::canonical(vantage.address);
        let (mut open, mut maybe) = (false, self.blind);
        for endpoint in &self.endpoints {
            let id = &endpoint.id;
            let here = id.address.is_unspecified() || id.address == to;
            if (id.proto, id.port) != (proto, port)
                || !here
                || endpoint.origin == Origin::ContainerAddress
            {
                continue;
            }
            for exposure in &endpoint.exposure {
                if exposure.zone != vantage.zone || exposure.to.is_ipv4() != to.is_ipv4() {
                    continue;
                }
                // The engine names the address where most gets in; another one may admit less.
                if exposure.admitted.contains(source) {
                    open |= exposure.to == to;
                    maybe |= exposure.to != to;
                }
                maybe |= exposure.conditional.contains(source);
            }
        }
        match (open, maybe) {
            (true, _) => Word::Open,
            (false, true) => Word::Unsure,
            (false, false) => Word::Closed,
        }
    }

    /// Whether something may be behind a port of `to`.
    pub fn listens(&self, to: IpAddr, proto: Proto, port: u16) -> bool {
        self.blind
            || self.endpoints.iter().any(|endpoint| {
                let id = &endpoint.id;
                (id.proto, id.port) == (proto, port)
                    && (id.address.is_unspecified() || id.address == to)
            })
    }

    /// Every port of one protocol that anybody has something to say about. `known`: the source
    /// address is known; `knock`: what was seen of a port, `None` where nobody knocked.
    #[allow(
        clippy::too_many_arguments,
        reason = "policy, engine and knock side by side are that many"
    )]
    pub fn rows(
        &self,
        proto: Proto,
        expectations: &[Expectation],
        vantage: &Vantage,
        (to, known): (IpAddr, bool),
        open: &BTreeSet<u16>,
        knock: &dyn Fn(u16) -> Option<Word>,
        fate: &dyn Fn(u16) -> Fate,
    ) -> Vec<Row> {
        let mine: Vec<&Expectation> = expectations
            .iter()
            .filter(|e| e.zone == vantage.zone && e.proto == proto)
            .collect();
        let ports: BTreeSet<u16> = mine
            .iter()
            .map(|e| e.port)
            .chain(open.iter().copied())
            .collect();
        let own = zones::own_addresses(self.host).contains(&to);
        ports
            .into_iter()
            .filter_map(|port| {
                let knock = knock(port)?;
                let expectation = mine.iter().find(|e| e.port == port);
                let policy = match expectation.map(|e| e.for_source(vantage.address)) {
                    Some(Expected::Open) => Word::Open,
                    Some(Expected::Either) => Word::Unsure,
                    Some(Expected::Closed) | None => Word::Closed,
                };
                let engine = if known && own {
                    self.says(vantage, to, proto, port)
                } else {
                    Word::Unsure
                };
                let limited = expectation.is_some_and(|e| e.rate_limited);
                // Nothing need answer behind a UDP port that is open, and nothing be there at all.
                let engine_of_tcp = match (proto, engine) {
                    (Proto::Udp, Word::Open) => Word::Unsure,
                    _ => engine,
                };
                Some(Row {
                    proto,
                    port,
                    policy,
                    engine,
                    knock,
                    disagreement: disagreement(port, engine_of_tcp, knock, limited, fate(port)),
                })
            })
            .collect()
    }
}

/// A knock and the engine cannot both be right, unless something stands between.
fn disagreement(port: u16, engine: Word, knock: Word, limited: bool, fate: Fate) -> Option<String> {
    match (engine, knock, fate) {
        (Word::Open, Word::Closed | Word::Unsure, Fate::NeverArrived) => Some(format!(
            "{port} is open by the rules here, and no knock on it arrived: something in between \
             takes it away (a cloud security group, a provider's filter, NAT). Do not rely on it \
             without knowing it"
        )),
        (Word::Open, Word::Closed, Fate::Dropped) if !limited => Some(format!(
            "{port} is open by the rules as they were read, and the kernel here dropped the knock: \
             the rules changed meanwhile, or they were read wrongly"
        )),
        (Word::Open, Word::Closed, _) if !limited => Some(format!(
            "{port} is open by the rules here, and the knock was not answered: something between \
             takes it away (a cloud security group, a provider's filter, NAT, a rate limit). Do \
             not rely on it without knowing it"
        )),
        (Word::Closed, Word::Open, _) => Some(format!(
            "{port} is closed by the rules here, and the knock was answered: something between \
             answers for it (a proxy, a load balancer, NAT to another machine), or the rules \
             changed meanwhile"
        )),
        _ => None,
    }
}

/// Whether a `[[test]]` of the policy holds, by what was knocked.
#[derive(Debug, Clone, Serialize)]
pub struct TestResult {
    /// The test in words.
    pub test: String,
    /// `None`: nobody knocked from there, or the knock proves nothing.
    pub holds: Option<bool>,
    /// What was seen, or what is missing.
    pub shown: String,
}

/// Holds the policy's tests against every knock.
pub fn tests(policy: &Policy, host: &Host, seen: &[Seen]) -> Vec<TestResult> {
    let all = zones::zones(host);
    let intent = Intent::new(host, policy, &all);
    policy
        .tests
        .iter()
        .map(|test| {
            let words = format!(
                "{}/{} {} for {}",
                test.proto,
                test.port,
                match test.expect {
                    Expect::Blocked => "blocked",
                    Expect::Admitted => "admitted",
                },
                test.from
            );
            let mut result = TestResult {
                test: words,
                holds: None,
                shown: "nobody knocked from there".into(),
            };
            let ports = test.port.ports(intent.ssh_ports());
            for knock in seen {
                let Some(source) = knock.source.map(zones::canonical) else {
                    continue;
                };
                let mut zones = all.iter().filter(|zone| zone.id == knock.zone);
                if !zones.any(|zone| intent.resolve(&test.from, zone).contains(source)) {
                    continue;
                }
                let who = format!("{source} to {}", knock.address);
                let is =
                    |word: Word| move |port: &&u16| knock.word(test.proto, **port) == Some(word);
                let (wanted, unwanted, word) = match test.expect {
                    Expect::Blocked => (Word::Closed, Word::Open, "open"),
                    Expect::Admitted => (Word::Open, Word::Closed, "not open"),
                };
                if let Some(port) = ports.iter().find(is(unwanted)) {
                    result.holds = Some(false);
                    result.shown = format!("{port} is {word} from {who}");
                    return result;
                }
                if !ports.is_empty() && ports.iter().all(|port| is(wanted)(&port)) {
                    result.holds = Some(true);
                    result.shown = format!("seen from {who}");
                } else if result.holds.is_none() {
                    result.shown = format!("the knock from {who} proves nothing");
                }
            }
            result
        })
        .collect()
}

#[cfg(test)]
mod tests_of_words {
    use super::*;

    fn check(engine: Word, knock: Word, limited: bool, expect: Option<&str>) {
        let said = disagreement(443, engine, knock, limited, Fate::Unknown);
        match expect {
            None => assert_eq!(said, None),
            Some(part) => assert!(said.clone().is_some_and(|s| s.contains(part)), "{said:?}"),
        }
    }

    #[test]
    fn engine_and_knock_disagree_only_when_both_are_sure() {
        check(
            Word::Open,
            Word::Closed,
            false,
            Some("cloud security group"),
        );
        check(Word::Open, Word::Closed, true, None);
        check(Word::Closed, Word::Open, false, Some("answers for it"));
        check(Word::Open, Word::Open, false, None);
        check(Word::Unsure, Word::Closed, false, None);
        check(Word::Open, Word::Unsure, false, None);
        check(Word::Unsure, Word::Open, false, None);
    }

    #[test]
    fn a_witness_says_on_which_side_a_knock_was_lost() {
        let said = |knock, fate| disagreement(443, Word::Open, knock, false, fate);
        for knock in [Word::Closed, Word::Unsure] {
            let never = said(knock, Fate::NeverArrived).unwrap();
            assert!(never.contains("no knock on it arrived"), "{never}");
        }
        let dropped = said(Word::Closed, Fate::Dropped).unwrap();
        assert!(dropped.contains("the kernel here dropped"), "{dropped}");
    }
}
