//! Bans: put an address out at once, let it in again, and prove that fail2ban does so.
//!
//! The kernel's sets are what counts (`portcullis_core::planner::bans`); fail2ban and the list of bans
//! by hand are what puts them back after a reboot.

mod hand;
mod inject;
mod mine;
mod proof;

pub use hand::{HandBan, HandFile};
pub use mine::logged_in;
pub use proof::{Proof, Unproven, prove};

use crate::change::{Error, guard::TABLE};
use crate::exec::{self, Program};
use portcullis_core::planner::bans::{HAND, place};
use std::net::IpAddr;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(30);

fn nft(batch: String) -> Result<(), exec::Error> {
    Program::new("nft")
        .args(["-f", "-"])
        .stdin(batch)
        .timeout(BOUND)
        .run()
        .map(drop)
}

/// Seconds since 1970 as fail2ban words times: `2026-11-22 10:00:00`, local time.
pub fn local_time(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|s| jiff::Timestamp::from_second(s).ok())
        .map(|at| {
            at.to_zoned(jiff::tz::TimeZone::system())
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string()
        })
        .unwrap_or_default()
}

/// True when the kernel has the element, asked for by itself: a set may have many.
pub fn is_banned(set: &str, address: IpAddr) -> bool {
    Program::new("nft")
        .args(["get", "element", "inet", "portcullis", set])
        .arg(format!("{{ {address} }}"))
        .timeout(BOUND)
        .output()
        .is_ok_and(|output| output.success())
}

/// Statements that add an element with its timeout, or give it another one.
fn renew(set: &str, element: IpAddr, seconds: Option<u64>, comment: &str) -> String {
    let timeout = seconds.map_or_else(String::new, |s| format!(" timeout {}s", s.max(1)));
    format!(
        "add element {TABLE} {set} {{ {element} }}\n\
         delete element {TABLE} {set} {{ {element} }}\n\
         add element {TABLE} {set} {{ {element}{timeout} comment \"{comment}\" }}\n"
    )
}

/// Statements that take an element out and succeed also when it is not there.
fn remove(set: &str, element: IpAddr) -> String {
    format!(
        "add element {TABLE} {set} {{ {element} }}\n\
         delete element {TABLE} {set} {{ {element} }}\n"
    )
}

/// Bans an address by hand; `seconds`: for how long, `None` for ever. Its connections are cut.
///
/// # Errors
/// The guard is not loaded, or the kernel does not have the element afterwards.
pub fn ban(address: IpAddr, ipv6_prefix: u8, seconds: Option<u64>) -> Result<(), Error> {
    let (set, element) = place(HAND, address, ipv6_prefix);
    nft(renew(&set, element, seconds, "by hand"))
        .map_err(|source| Error::program(format!("ban {address}"), source))?;
    if !is_banned(&set, element) {
        return Err(Error::read_back(set, format!("the kernel lacks {element}")));
    }
    cut(element, ipv6_prefix);
    Ok(())
}

/// Ends the connections of an address or of its network. Its packets are dropped already; this frees
/// what the server still holds, so that a tool that is missing is no error.
fn cut(element: IpAddr, ipv6_prefix: u8) {
    let bits = match element {
        IpAddr::V6(_) if ipv6_prefix < 128 => format!("/{ipv6_prefix}"),
        _ => String::new(),
    };
    let tracked = format!("{element}{bits}");
    let peer = match element {
        IpAddr::V4(_) => tracked.clone(),
        IpAddr::V6(_) => format!("[{element}]{bits}"),
    };
    for (program, args) in [
        ("conntrack", ["-D", "-s", &tracked]),
        ("ss", ["-K", "dst", &peer]),
    ] {
        let _ = Program::new(program).args(args).timeout(BOUND).output();
    }
}

/// What an unban did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freed {
    /// Sets that had the address.
    pub sets: Vec<String>,
    /// fail2ban knew a ban of it.
    pub fail2ban: bool,
}

/// Lets an address in again, whoever banned it: out of fail2ban's jails first, or they would put it
/// back, then out of each of the sets `names`.
///
/// # Errors
/// The kernel still has it afterwards.
pub fn unban(address: IpAddr, ipv6_prefix: u8, names: &[String]) -> Result<Freed, Error> {
    let mut freed = Freed {
        fail2ban: fail2ban_unban(address),
        ..Freed::default()
    };
    for name in names {
        let (set, element) = place(name, address, ipv6_prefix);
        if !is_banned(&set, element) {
            continue;
        }
        nft(remove(&set, element))
            .map_err(|source| Error::program(format!("unban {address}"), source))?;
        if is_banned(&set, element) {
            return Err(Error::read_back(set, format!("still has {element}")));
        }
        freed.sets.push(name.clone());
    }
    Ok(freed)
}

/// `fail2ban-client unban ADDR`: in all jails; says how many it freed.
fn fail2ban_unban(address: IpAddr) -> bool {
    Program::new("fail2ban-client")
        .args(["unban", &address.to_string()])
        .timeout(BOUND)
        .output()
        .is_ok_and(|output| {
            output.success()
                && output
                    .stdout_text()
                    .trim()
                    .parse::<u64>()
                    .is_ok_and(|n| n > 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_renew_and_remove() {
        let address = "192.0.2.1".parse().unwrap();
        assert!(renew("hand4", address, Some(60), "by hand").ends_with(
            "add element inet portcullis hand4 { 192.0.2.1 timeout 60s comment \"by hand\" }\n"
        ));
        assert!(
            renew("hand4", address, None, "by hand")
                .ends_with("{ 192.0.2.1 comment \"by hand\" }\n")
        );
        assert!(remove("hand4", address).starts_with("add element inet portcullis hand4"));
    }
}
