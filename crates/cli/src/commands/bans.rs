//! `portcullis bans`, `ban` and `unban`.

use crate::args::{Ban, Bans, FactsSource, Global, Unban};
use crate::commands::{print, print_json, remark};
use crate::error::{CliError, Exit};
use crate::{input, render};
use host::bans::{self, HandBan, HandFile};
use portcullis_core::host::Host;
use portcullis_core::planner::bans as sets;
use portcullis_core::policy::{Never, Policy};
use portcullis_core::zones;
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

/// The list on the wire.
#[derive(Serialize)]
struct Wire<'a> {
    schema: u32,
    bans: &'a [sets::Ban],
}

/// Who is banned. Exit 5 when the kernel could not be read.
pub fn list(global: &Global, args: &Bans) -> Result<Exit, CliError> {
    let (policy, _) = input::policy(&args.policy)?;
    let facts = input::facts(&args.facts)?;
    let mut all = sets::listed(&facts, &policy.bans);
    if args.facts.snapshot.is_none() {
        by_hand_since(global, &mut all);
    }
    if args.json {
        print_json(&Wire {
            schema: 1,
            bans: &all,
        })?;
    } else {
        print(&render::bans::text(&all, !global.quiet))?;
    }
    if facts.privileged {
        return Ok(Exit::Clean);
    }
    remark("without root the kernel's list of bans cannot be read: this may be incomplete");
    Ok(Exit::Unsure)
}

/// The kernel does not keep since when; the list of bans by hand does.
fn by_hand_since(global: &Global, all: &mut [sets::Ban]) {
    let Ok(hand) = HandFile::in_folder(&global.state_dir).read(now()) else {
        return;
    };
    for ban in all.iter_mut().filter(|ban| ban.jail == "by hand") {
        ban.since = hand
            .iter()
            .find(|hand| ban.net.contains(&hand.address))
            .map(|hand| bans::local_time(hand.since));
    }
}

/// Bans by hand: written down first, then in the kernel.
pub fn ban(global: &Global, args: &Ban) -> Result<Exit, CliError> {
    let (policy, _) = input::policy(&args.policy)?;
    let facts = root(input::facts(&FactsSource::default())?)?;
    for address in &args.addresses {
        if let Some(why) = spared(&facts, &policy, zones::canonical(*address)) {
            return Err(CliError::usage(format!("{address} is not banned: {why}"))
                .hint("nothing was changed; ban another address, or change [bans] never"));
        }
    }
    let lasts = args.lasts.map(|lasts| lasts.as_secs());
    let file = HandFile::in_folder(&global.state_dir);
    for address in &args.addresses {
        let address = zones::canonical(*address);
        let since = now();
        let until = lasts.map(|seconds| since + seconds);
        file.alter(since, |list| {
            list.retain(|ban| ban.address != address);
            list.push(HandBan {
                address,
                since,
                until,
            });
        })
        .map_err(|error| unwritable(&error))?;
        if let Err(error) = bans::ban(address, policy.bans.ipv6_prefix, lasts) {
            // Half a ban would come at the next boot only.
            let _ = file.alter(since, |list| list.retain(|ban| ban.address != address));
            return Err(CliError::unsure(format!("{address} is not banned"))
                .because(&error)
                .hint("bans live in the guard: run `sudo portcullis apply` first"));
        }
        print(&format!(
            "{address} is banned from every port of this machine.\n"
        ))?;
    }
    Ok(Exit::Clean)
}

/// Lets addresses in again.
pub fn unban(global: &Global, args: &Unban) -> Result<Exit, CliError> {
    let (policy, _) = input::policy(&args.policy)?;
    let facts = root(input::facts(&FactsSource::default())?)?;
    let known = sets::listed(&facts, &policy.bans);
    let addresses: Vec<IpAddr> = if args.me {
        me(&facts, &known)
    } else {
        args.addresses
            .iter()
            .copied()
            .map(zones::canonical)
            .collect()
    };
    if addresses.is_empty() {
        print("No address that logged in here is banned.\n")?;
        return Ok(Exit::Clean);
    }
    let mut names = sets::set_names(&policy.bans);
    for ban in &known {
        let name = if ban.jail == "by hand" {
            sets::HAND.to_owned()
        } else {
            sets::set_name(&ban.jail)
        };
        // fail2ban's other jails have no sets of ours.
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if plain && !names.contains(&name) {
            names.push(name);
        }
    }
    let file = HandFile::in_folder(&global.state_dir);
    for address in addresses {
        let mut listed = false;
        file.alter(now(), |list| {
            let before = list.len();
            list.retain(|ban| {
                sets::place("", ban.address, policy.bans.ipv6_prefix)
                    != sets::place("", address, policy.bans.ipv6_prefix)
            });
            listed = list.len() != before;
        })
        .map_err(|error| unwritable(&error))?;
        let freed = bans::unban(address, policy.bans.ipv6_prefix, &names).map_err(|error| {
            CliError::unsure(format!("{address} is still banned")).because(&error)
        })?;
        print(&if freed.fail2ban || listed || !freed.sets.is_empty() {
            format!("{address} may connect again.\n")
        } else {
            format!("{address} was not banned.\n")
        })?;
    }
    Ok(Exit::Clean)
}

/// Banned addresses from which somebody is connected, or logged in within 30 days.
fn me(facts: &Host, known: &[sets::Ban]) -> Vec<IpAddr> {
    let mut mine: BTreeSet<IpAddr> = bans::logged_in();
    mine.extend(facts.sessions.iter().map(|session| session.peer));
    mine.into_iter()
        .map(zones::canonical)
        .filter(|address| known.iter().any(|ban| ban.net.contains(address)))
        .collect()
}

/// Why an address is never banned.
fn spared(facts: &Host, policy: &Policy, address: IpAddr) -> Option<String> {
    let (_, element) = sets::place("", address, policy.bans.ipv6_prefix);
    let takes_in = |other: IpAddr| {
        sets::place("", other, policy.bans.ipv6_prefix).1 == element
            && zones::canonical(other).is_ipv6() == address.is_ipv6()
    };
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Some("it is no address of another machine".into());
    }
    if zones::own_addresses(facts).into_iter().any(takes_in) {
        return Some("it is an address of this machine".into());
    }
    if facts.sessions.iter().any(|s| takes_in(s.peer)) {
        return Some("somebody is connected from there by SSH, maybe you".into());
    }
    let router = facts
        .net
        .routes
        .iter()
        .flat_map(|route| &route.nexthops)
        .any(|hop| hop.gateway.is_some_and(takes_in));
    if router {
        return Some(
            "it is this network's router: behind it is everybody whom it translates".into(),
        );
    }
    let never = policy.bans.never.iter().any(|never| match never {
        Never::Admin => false,
        Never::Nets(nets) => nets.iter().any(|net| net.contains(&address)),
        Never::Zone(zone) => zones::zones(facts)
            .iter()
            .any(|found| zone.matches(found) && found.networks.contains(address)),
    });
    never.then(|| "the policy says so ([bans] never)".into())
}

fn root(facts: Host) -> Result<Host, CliError> {
    if facts.privileged {
        return Ok(facts);
    }
    Err(CliError::usage("only root can change bans").hint("run it with sudo"))
}

fn unwritable(error: &std::io::Error) -> CliError {
    CliError::usage("the list of bans by hand cannot be written")
        .because(error)
        .hint("nothing was changed; it is kept in /var/lib/portcullis/bans")
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
