//! The proof that a jail bans: a marked failure of a documentation address goes in where the jail
//! reads, and the kernel's set is watched. "Running" proves nothing.

use super::inject::Injector;
use super::{is_banned, nft, remove};
use crate::exec::Program;
use crate::observe::fail2ban_does;
use portcullis_core::host::{Host, Jail};
use portcullis_core::planner::bans::{place, set_name};
use portcullis_core::zones;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Time from the deciding entry to the kernel, at most. fail2ban looks at a log file once a second at
/// the least often, and a machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time that taking a ban out may take.
const UNBAN: Duration = Duration::from_secs(10);
/// Time between two looks: each is a program a set, and fail2ban needs the processor too.
const TICK: Duration = Duration::from_millis(50);

/// A jail that bans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The jail.
    pub jail: String,
    /// The address that was banned for a moment.
    pub address: IpAddr,
    /// From the deciding entry to the kernel's set.
    pub took: Duration,
}

/// Why a jail is not proven to ban.
#[derive(Debug, thiserror::Error)]
pub enum Unproven {
    /// It has no log that an entry could be written to.
    #[error("its log cannot be written to ({0})")]
    NoLog(String),
    /// Its ban is not in the guard: only those can be watched.
    #[error("it bans by {0}, not in the guard")]
    OtherAction(String),
    /// Every address for tests is spared or used here.
    #[error("no documentation address is free for a test here")]
    NoAddress,
    /// The entry was written and nothing happened.
    #[error("the test entry for {address} was written {written} times, and within {} s no ban was in the kernel", .after.as_secs())]
    NoBan {
        /// The address.
        address: IpAddr,
        /// How often.
        written: u32,
        /// How long it was waited for.
        after: Duration,
    },
    /// The ban does not go away.
    #[error("the test ban of {0} does not go away: portcullis unban {0}")]
    Stuck(IpAddr),
}

/// One jail with a test entry in its log.
struct Trial<'a> {
    jail: &'a Jail,
    address: IpAddr,
    set: String,
    element: IpAddr,
    count: u32,
    written: Instant,
    took: Option<Duration>,
    /// journald asks for this program's name when it takes an entry, not when it is sent: so it stays
    /// until all is over.
    _injector: Injector<'a>,
}

/// Proves running jails, all at once, each with an address of one family (`true`: IPv6); the bans are
/// taken out again. One answer for each that was asked for. Once `stop` is set, what is not proven yet
/// counts as no ban.
///
/// # Errors
/// See [`Unproven`]; the test ban is gone in every case but [`Unproven::Stuck`].
pub fn prove(
    host: &Host,
    asked: &[(&Jail, bool)],
    ipv6_prefix: u8,
    stop: &AtomicBool,
) -> Vec<Result<Proof, Unproven>> {
    let mut taken = vec![];
    let mut trials: Vec<Result<Trial<'_>, Unproven>> = vec![];
    for (jail, ipv6) in asked {
        let trial = begin(host, jail, *ipv6, ipv6_prefix, &taken);
        taken.extend(trial.iter().map(|trial| trial.address));
        trials.push(trial);
    }
    loop {
        let mut waiting = false;
        for trial in trials.iter_mut().flatten() {
            if trial.took.is_some() || trial.written.elapsed() >= PATIENCE {
                continue;
            }
            match is_banned(&trial.set, trial.element) {
                true => trial.took = Some(trial.written.elapsed()),
                false => waiting = true,
            }
        }
        if !waiting || stop.load(Relaxed) {
            break;
        }
        std::thread::sleep(TICK);
    }
    for trial in trials.iter().flatten() {
        forget(&trial.jail.name, trial.address);
    }
    trials
        .into_iter()
        .map(|trial| {
            let trial = trial?;
            take_out(trial.address, &trial.set, trial.element)?;
            match trial.took {
                Some(took) => Ok(Proof {
                    jail: trial.jail.name.clone(),
                    address: trial.address,
                    took,
                }),
                None => Err(Unproven::NoBan {
                    address: trial.address,
                    written: trial.count,
                    after: trial.written.elapsed(),
                }),
            }
        })
        .collect()
}

/// Writes the entries that a ban takes.
fn begin<'a>(
    host: &Host,
    jail: &'a Jail,
    ipv6: bool,
    ipv6_prefix: u8,
    taken: &[IpAddr],
) -> Result<Trial<'a>, Unproven> {
    if !jail.actions.iter().any(|action| action == "portcullis") {
        return Err(Unproven::OtherAction(jail.actions.join(", ")));
    }
    let address = free_address(host, jail, ipv6, taken).ok_or(Unproven::NoAddress)?;
    let (set, element) = place(&set_name(&jail.name), address, ipv6_prefix);
    let unwritable = |error: std::io::Error| Unproven::NoLog(error.to_string());
    let injector = Injector::open(jail)
        .map_err(unwritable)?
        .ok_or_else(|| Unproven::NoLog("no such jail of portcullis".into()))?;
    let count = jail.max_retry.unwrap_or(5).max(1);
    // Beyond every real process id (pid_max is at most 4194304).
    let process = 5_000_000 + now() % 1_000_000_000;
    for number in 0..count {
        let process = u32::try_from(process).unwrap_or(0) + number;
        injector.failure(address, process).map_err(unwritable)?;
    }
    Ok(Trial {
        jail,
        address,
        set,
        element,
        count,
        written: Instant::now(),
        took: None,
        _injector: injector,
    })
}

/// Out of fail2ban.
fn forget(jail: &str, address: IpAddr) {
    let address = address.to_string();
    let words = ["set", jail, "unbanip", &address];
    // The server itself, or else by its client, which is half a second of Python.
    if !fail2ban_does(&words, UNBAN) {
        let _ = Program::new("fail2ban-client")
            .args(words)
            .timeout(UNBAN)
            .output();
    }
}

/// Out of the kernel, should it be there still.
fn take_out(address: IpAddr, set: &str, element: IpAddr) -> Result<(), Unproven> {
    let end = Instant::now() + Duration::from_secs(2);
    while is_banned(set, element) && Instant::now() < end {
        std::thread::sleep(TICK);
    }
    if is_banned(set, element) {
        let _ = nft(remove(set, element));
    }
    if is_banned(set, element) {
        return Err(Unproven::Stuck(address));
    }
    Ok(())
}

/// An address for documentation (RFC 5737, RFC 3849) that nobody uses here and the jail does not spare.
fn free_address(host: &Host, jail: &Jail, ipv6: bool, taken: &[IpAddr]) -> Option<IpAddr> {
    let spared: Vec<ipnet::IpNet> = jail
        .ignore_ip
        .iter()
        .filter_map(|text| {
            text.parse()
                .ok()
                .or_else(|| text.parse::<IpAddr>().ok().map(ipnet::IpNet::from))
        })
        .collect();
    let used = |address: IpAddr| {
        taken.contains(&address)
            || spared.iter().any(|net| net.contains(&address))
            || host
                .sessions
                .iter()
                .any(|s| zones::canonical(s.peer) == address)
            || host
                .net
                .interfaces
                .iter()
                .flat_map(|i| &i.addresses)
                .any(|a| a.net.contains(&address))
            || host
                .net
                .routes
                .iter()
                .flat_map(|r| &r.nexthops)
                .any(|hop| hop.gateway == Some(address))
            || host
                .fail2ban
                .iter()
                .flat_map(|f| &f.jails)
                .any(|j| j.banned.contains(&address))
    };
    let seed = now();
    (0..2000)
        .map(|step| documentation(seed.wrapping_add(step * 7919), ipv6))
        .find(|a| !used(*a))
}

/// A number that the last run most likely did not have.
fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |since| u64::from(since.subsec_nanos()) ^ since.as_secs())
}

fn documentation(number: u64, ipv6: bool) -> IpAddr {
    if ipv6 {
        // A network of its own, for a jail may ban a /64; short enough to be read.
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let part = |shift: u32| u16::try_from(mixed >> shift & 0xffff).unwrap_or(0);
        return Ipv6Addr::new(0x2001, 0xdb8, 0, part(48), 0, 0, part(32), 0x77).into();
    }
    let last = u8::try_from(number % 254).unwrap_or(0) + 1;
    match number / 254 % 3 {
        0 => [192, 0, 2, last].into(),
        1 => [198, 51, 100, last].into(),
        _ => [203, 0, 113, last].into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_core::host::Session;

    #[test]
    fn only_documentation_addresses_that_nobody_uses() {
        let mut host = Host::default();
        let jail = Jail {
            ignore_ip: vec!["192.0.2.0/24".into(), "198.51.100.9".into()],
            ..Jail::default()
        };
        host.sessions = (1..=254)
            .map(|last| Session {
                peer: [198, 51, 100, last].into(),
                peer_port: 1,
                local: [203, 0, 113, 1].into(),
                local_port: 22,
                pid: None,
                own: false,
            })
            .collect();
        for _ in 0..50 {
            let four = free_address(&host, &jail, false, &[]).unwrap();
            assert!(four.to_string().starts_with("203.0.113."), "{four}");
            let six = free_address(&host, &jail, true, &[]).unwrap();
            assert!(six.to_string().starts_with("2001:db8:"), "{six}");
        }
        let everything = Jail {
            ignore_ip: vec!["0.0.0.0/0".into()],
            ..Jail::default()
        };
        assert_eq!(free_address(&host, &everything, false, &[]), None);
    }
}
