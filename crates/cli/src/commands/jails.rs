//! The proof by injection, for `verify` and `apply`: does each jail really ban?

use host::bans::{Unproven, prove};
use portcullis_core::host::Host;
use portcullis_core::policy::Policy;
use serde::Serialize;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time for all jails together: while they are tried, a countdown to a rollback may run.
const ALL: Duration = Duration::from_secs(45);

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

/// Tries every jail that the policy wants, with one IPv4 and one IPv6 address; nothing where the
/// policy bans nobody.
pub fn all(host: &Host, policy: &Policy) -> Vec<Shown> {
    let mut out = Vec::new();
    let begin = Instant::now();
    for name in policy.bans.jails() {
        if begin.elapsed() > ALL {
            out.push(unproven(
                name,
                "not tried, for the others took too long",
                false,
            ));
            continue;
        }
        let running = host
            .fail2ban
            .iter()
            .flat_map(|f| &f.jails)
            .find(|jail| jail.name == name);
        let Some(jail) = running else {
            let alive = host.fail2ban.as_ref().is_some_and(|f| f.alive);
            out.push(unproven(
                name,
                if alive {
                    "fail2ban runs without it"
                } else {
                    "fail2ban does not run"
                },
                false,
            ));
            continue;
        };
        for ipv6 in [false, true] {
            out.push(match prove(host, jail, ipv6, policy.bans.ipv6_prefix) {
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
            });
            // The second family would only say the same again.
            if out.last().is_some_and(|shown| shown.unproven.is_some()) {
                break;
            }
        }
    }
    out
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
