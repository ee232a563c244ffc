//! The proof by injection, for `verify` and `apply`: does each jail really ban?

use host::bans::{Proof, Unproven, prove};
use host::observe::observe_fail2ban;
use portcullis_core::host::{Host, Jail};
use portcullis_core::policy::Policy;
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time that a fail2ban that answers gets to have its jails.
const JAILS: Duration = Duration::from_secs(5);
/// Time between two looks for them.
const LOOK: Duration = Duration::from_millis(20);

/// What the proof of one jail came to.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// The jail.
    pub jail: String,
    /// The address of the test entry.
    pub address: Option<IpAddr>,
    /// From the deciding entry to the kernel.
    pub milliseconds: Option<u128>,
    /// Why it is not proven.
    pub unproven: Option<String>,
    /// True where the jail was tried and does not ban.
    pub failed: bool,
}

/// Tries every jail that the policy wants, with one IPv4 and one IPv6 address, all at once: while they
/// are tried, a countdown to a rollback may run. Nothing where the policy bans nobody.
pub fn all(host: &Host, policy: &Policy) -> Vec<Shown> {
    tried(host, policy, &AtomicBool::new(false))
}

/// The proof under way beside other work.
pub struct UnderWay {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Shown>>,
}

impl UnderWay {
    /// Tries every jail that the policy wants as soon as fail2ban has it; it has just been started.
    /// `host`: the machine as it was before.
    pub fn begin(mut host: Host, policy: Policy) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let end = Instant::now() + JAILS;
            loop {
                host.fail2ban = observe_fail2ban();
                let mut wanted = policy.bans.jails().into_iter();
                let complete = wanted.all(|name| host.jail(name).is_some());
                if complete || stopped.load(Relaxed) || Instant::now() >= end {
                    break;
                }
                std::thread::sleep(LOOK);
            }
            tried(&host, &policy, &stopped)
        });
        Self { stop, thread }
    }

    /// Gives up what is not proven yet, soon.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Stops, and waits until the test entries are gone.
    pub fn give_up(self) {
        self.stop();
        self.end();
    }

    /// Waits for the outcome; `None` after a fault of this program.
    pub fn end(self) -> Option<Vec<Shown>> {
        self.thread.join().ok()
    }
}

fn tried(host: &Host, policy: &Policy, stop: &AtomicBool) -> Vec<Shown> {
    if stop.load(Relaxed) {
        return Vec::new();
    }
    let names = policy.bans.jails();
    let asked: Vec<(&Jail, bool)> = names
        .iter()
        .filter_map(|name| host.jail(name))
        .flat_map(|jail| [(jail, false), (jail, true)])
        .collect();
    let mut proofs = prove(host, &asked, policy.bans.ipv6_prefix, stop).into_iter();
    let mut out = Vec::new();
    for name in names {
        if host.jail(name).is_none() {
            let why = match host.fail2ban.as_ref().is_some_and(|f| f.alive) {
                true => "fail2ban runs without it",
                false => "fail2ban does not run",
            };
            out.push(unproven(name, why, false));
            continue;
        }
        let mut both: Vec<Shown> = proofs
            .by_ref()
            .take(2)
            .map(|one| shown(name, one))
            .collect();
        // The second family would only say the same again.
        if both.first().is_some_and(|first| first.unproven.is_some()) {
            both.truncate(1);
        }
        out.append(&mut both);
    }
    out
}

fn shown(name: &str, proof: Result<Proof, Unproven>) -> Shown {
    match proof {
        Ok(proof) => Shown {
            jail: proof.jail,
            address: Some(proof.address),
            milliseconds: Some(proof.took.as_millis()),
            unproven: None,
            failed: false,
        },
        Err(error) => {
            let failed = matches!(error, Unproven::NoBan { .. } | Unproven::Stuck(_));
            unproven(name, &error.to_string(), failed)
        }
    }
}

fn unproven(jail: &str, why: &str, failed: bool) -> Shown {
    Shown {
        jail: jail.to_owned(),
        address: None,
        milliseconds: None,
        unproven: Some(why.to_owned()),
        failed,
    }
}
