//! What a knock proves next to the engine's answer, and which of the policy's tests it settles.

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

/// One port as policy, engine and knock have it.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
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
    pub fn says(&self, vantage: &Vantage, to: IpAddr, port: u16) -> Word {
        let source = zones::canonical(vantage.address);
        let (mut open, mut maybe) = (false, self.blind);
        for endpoint in &self.endpoints {
            let id = &endpoint.id;
            let here = id.address.is_unspecified() || id.address == to;
            if (id.proto, id.port) != (Proto::Tcp, port)
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

    /// Every port that anybody has something to say about. `sure`: the scan proves something;
    /// `known`: the source address is known; `asked`: whether a port was knocked on.
    pub fn rows(
        &self,
        expectations: &[Expectation],
        vantage: &Vantage,
        to: IpAddr,
        open: &[u16],
        (sure, known): (bool, bool),
        asked: impl Fn(u16) -> bool,
    ) -> Vec<Row> {
        let mine: Vec<&Expectation> = expectations
            .iter()
            .filter(|e| e.zone == vantage.zone && e.proto == Proto::Tcp)
            .collect();
        let ports: BTreeSet<u16> = mine
            .iter()
            .map(|e| e.port)
            .chain(open.iter().copied())
            .filter(|port| asked(*port))
            .collect();
        let own = zones::own_addresses(self.host).contains(&to);
        ports
            .into_iter()
            .map(|port| {
                let expectation = mine.iter().find(|e| e.port == port);
                let policy = match expectation.map(|e| e.for_source(vantage.address)) {
                    Some(Expected::Open) => Word::Open,
                    Some(Expected::Either) => Word::Unsure,
                    Some(Expected::Closed) | None => Word::Closed,
                };
                let engine = if known && own {
                    self.says(vantage, to, port)
                } else {
                    Word::Unsure
                };
                let knock = match (open.contains(&port), sure) {
                    (true, _) => Word::Open,
                    (false, true) => Word::Closed,
                    (false, false) => Word::Unsure,
                };
                let limited = expectation.is_some_and(|e| e.rate_limited);
                Row {
                    port,
                    policy,
                    engine,
                    knock,
                    disagreement: disagreement(port, engine, knock, limited),
                }
            })
            .collect()
    }
}

/// A knock and the engine cannot both be right, unless something stands between.
fn disagreement(port: u16, engine: Word, knock: Word, limited: bool) -> Option<String> {
    match (engine, knock) {
        (Word::Open, Word::Closed) if !limited => Some(format!(
            "{port} is open by the rules here, and the knock was not answered: something between \
             takes it away (a cloud security group, a provider's filter, NAT, a rate limit). Do \
             not rely on it without knowing it"
        )),
        (Word::Closed, Word::Open) => Some(format!(
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

/// A knock as the tests see it.
pub struct Knocked<'a> {
    pub vantage: &'a Vantage,
    pub known: bool,
    pub to: IpAddr,
    pub open: &'a [u16],
    pub sure: bool,
    pub asked: &'a dyn Fn(u16) -> bool,
}

/// Holds the policy's tests against every knock.
pub fn tests(policy: &Policy, host: &Host, knocks: &[Knocked<'_>]) -> Vec<TestResult> {
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
            if test.proto != Proto::Tcp {
                result.shown = "only TCP is knocked on".into();
                return result;
            }
            let from_there = knocks.iter().filter(|knock| {
                knock.known
                    && all
                        .iter()
                        .filter(|zone| zone.id == knock.vantage.zone)
                        .any(|zone| {
                            intent
                                .resolve(&test.from, zone)
                                .contains(zones::canonical(knock.vantage.address))
                        })
            });
            for knock in from_there {
                let ports = test.port.ports(intent.ssh_ports());
                let who = format!("{} to {}", knock.vantage.address, knock.to);
                let open = ports.iter().find(|port| knock.open.contains(port));
                let shut = ports
                    .iter()
                    .find(|port| !knock.open.contains(port) && (knock.asked)(**port));
                let (wrong, proven) = match test.expect {
                    Expect::Blocked => (
                        open,
                        knock.sure && ports.iter().all(|port| (knock.asked)(*port)),
                    ),
                    Expect::Admitted => (shut.filter(|_| knock.sure), shut.is_none()),
                };
                if let Some(port) = wrong {
                    result.holds = Some(false);
                    let word = if open.is_some() { "open" } else { "not open" };
                    result.shown = format!("{port} is {word} from {who}");
                    return result;
                }
                if proven {
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
        let said = disagreement(443, engine, knock, limited);
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
}
