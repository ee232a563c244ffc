//! fail2ban: whether it really runs, bans as the policy wants, and spares its owner.

use super::{APPLY, Case, Complete, finding};
use crate::finding::{Finding, Origin, Severity};
use crate::host::{Fail2ban, Host, Jail, Uncertain};
use crate::planner::bans;
use crate::policy::{Limits, Never, duration_text};
use crate::text::{clean, list};
use crate::zones::{self, canonical};
use ipnet::IpNet;
use reach::AddrSet;
use std::net::IpAddr;
use std::time::Duration;

pub(super) fn findings(case: &Case<'_>, out: &mut Vec<Finding>) {
    // Whoever banned it, and whether fail2ban runs or not.
    spared_and_banned(case, out);
    let Some(bans) = case.policy.bans.ssh else {
        return;
    };
    let Some(fail2ban) = &case.host.fail2ban else {
        let unread = case
            .host
            .unseen
            .iter()
            .any(|u| u.uncertain == Uncertain::Mechanism && u.what.contains("fail2ban"));
        if !unread {
            out.push(
                finding(
                    "fail2ban-missing",
                    Severity::Medium,
                    "fail2ban is not installed: nobody bans those who guess passwords.",
                )
                .mend(APPLY)
                .rows(&["G12", "NIST-SC-5"]),
            );
        }
        return;
    };
    if fail2ban.jail_local_is_copy {
        out.push(
            finding(
                "fail2ban-jail-local-copy",
                Severity::Low,
                "jail.local is a copy of jail.conf: it freezes old defaults, and a second [sshd] section in it stops fail2ban.",
            )
            .shows(match fail2ban.jail_local_differs.as_slice() {
                [] => "it says nothing that jail.conf does not say".to_owned(),
                differs => format!(
                    "it differs in {}",
                    list(
                        &differs
                            .iter()
                            .take(6)
                            .map(|s| clean(&format!("[{}] {}", s.section, s.key)))
                            .collect::<Vec<_>>()
                    )
                ),
            })
            .mend(APPLY)
            .rows(&["G12"]),
        );
    }
    if !fail2ban.alive {
        out.push(dead(fail2ban));
        return;
    }
    match fail2ban.jails.iter().find(|j| j.name == "sshd") {
        Some(jail) => {
            weaker(jail, bans, out);
            blind_jail(jail, fail2ban, out);
            not_spared(case, jail, out);
        }
        None => out.push(
            finding(
                "fail2ban-no-sshd-jail",
                Severity::High,
                "fail2ban runs, but its sshd jail does not: nobody bans those who guess passwords.",
            )
            .shows(format!(
                "jails that run: {}",
                match fail2ban.jails.as_slice() {
                    [] => "none".to_owned(),
                    jails => list(&jails.iter().map(|j| clean(&j.name)).collect::<Vec<_>>()),
                }
            ))
            .mend(APPLY)
            .rows(&["G12", "NIST-SC-5"]),
        ),
    }
    other_jails_missing(case, fail2ban, out);
    lost(case, fail2ban, out);
    past_published(case, fail2ban, out);
    keeps_connections(fail2ban, out);
}

fn dead(fail2ban: &Fail2ban) -> Finding {
    let why = fail2ban.why_dead.as_deref().unwrap_or("");
    let mut title = "fail2ban is installed and not running".to_owned();
    if why.contains("log file") && fail2ban.sshd_log.is_none() {
        title.push_str(": it looks for a log file that this system does not write");
    } else if why.contains("already exists") {
        title.push_str(": a section stands twice in its configuration");
    } else if why.contains("asynchat") || why.contains("ModuleNotFoundError") {
        title.push_str(": this version does not work with the installed Python");
    }
    title.push('.');
    let mut found = finding("fail2ban-dead", Severity::High, title);
    if !why.is_empty() {
        found = found.shows(format!("fail2ban says: {}", clean(why)));
    }
    if !fail2ban.python_systemd {
        found = found.shows("python3-systemd is not installed, so it cannot read the journal");
    }
    found.mend(APPLY).rows(&["G12", "NIST-SC-5"])
}

/// Values that let more through than the policy wants.
fn weaker(jail: &Jail, bans: Limits, out: &mut Vec<Finding>) {
    let mut found = finding(
        "fail2ban-weaker",
        Severity::Low,
        "fail2ban's sshd jail is milder than the policy.",
    );
    let seconds = |s: u64| duration_text(Duration::from_secs(s));
    if let Some(is) = jail.max_retry.filter(|is| *is > bans.max_retry) {
        found = found.shows(format!(
            "maxretry is {is}, the policy says {}",
            bans.max_retry
        ));
    }
    if let Some(is) = jail.find_time.filter(|is| *is < bans.find_time.as_secs()) {
        found = found.shows(format!(
            "findtime is {}, the policy says {}",
            seconds(is),
            duration_text(bans.find_time)
        ));
    }
    if let Some(is) = jail.ban_time
        && let Ok(is) = u64::try_from(is)
        && is < bans.ban_time.as_secs()
    {
        found = found.shows(format!(
            "bantime is {}, the policy says {}",
            seconds(is),
            duration_text(bans.ban_time)
        ));
    }
    if !found.evidence.is_empty() {
        out.push(found.mend(APPLY).rows(&["G12", "NIST-SC-5"]));
    }
}

/// A jail that watches nothing looks healthy and never bans.
fn blind_jail(jail: &Jail, fail2ban: &Fail2ban, out: &mut Vec<Finding>) {
    let title = if jail.files.is_empty() && jail.journal.is_none() {
        "fail2ban's sshd jail watches neither a log file nor the journal: it will never ban anybody."
    } else if jail.files.is_empty() && !fail2ban.python_systemd {
        "fail2ban's sshd jail reads the journal, and python3-systemd is not installed: it will never ban anybody."
    } else if jail.unmatched.is_some() {
        "fail2ban's sshd jail does not recognise what this sshd logs: it will never ban anybody."
    } else if jail.actions.is_empty() {
        "fail2ban's sshd jail has no action: it notes failures and bans nobody."
    } else {
        return;
    };
    let mut found = finding("fail2ban-blind", Severity::High, title);
    if let Some(line) = &jail.unmatched {
        found = found.shows(format!("not matched: {}", clean(line)));
    }
    out.push(found.mend(APPLY).rows(&["G12", "NIST-SC-5"]));
}

/// Jails that the policy wants besides sshd's.
fn other_jails_missing(case: &Case<'_>, fail2ban: &Fail2ban, out: &mut Vec<Finding>) {
    let missing: Vec<String> = case
        .policy
        .bans
        .jails()
        .into_iter()
        .filter(|name| *name != "sshd" && !fail2ban.jails.iter().any(|j| j.name == *name))
        .map(str::to_owned)
        .collect();
    let none = !fail2ban.jails.iter().any(|j| j.name == "sshd");
    // That there is none at all for sshd says enough.
    if missing.is_empty() || none {
        return;
    }
    out.push(
        finding(
            "fail2ban-no-jail",
            Severity::Low,
            format!(
                "fail2ban runs without a jail that the policy wants: {}.",
                list(&missing)
            ),
        )
        .mend(APPLY)
        .rows(&["G12"]),
    );
}

/// Addresses that a jail of ours holds for banned and the kernel does not: somebody flushed the sets.
pub(crate) fn missing_bans(host: &Host, jail: &Jail) -> Vec<IpAddr> {
    if !jail.actions.iter().any(|a| a == "portcullis") {
        return Vec::new();
    }
    let sets = [false, true].map(|ipv6| bans::set_of(host, &jail.name, ipv6));
    jail.banned
        .iter()
        .copied()
        .filter(|address| {
            let address = canonical(*address);
            sets[usize::from(address.is_ipv6())].is_none_or(|set| {
                // A whole network is banned by its first address: any prefix that a policy can have counts.
                !set.incomplete
                    && ![128, 64, 60, 56, 52, 48].into_iter().any(|bits| {
                        let (_, element) = bans::place("", address, bits);
                        holds(set, element)
                    })
            })
        })
        .collect()
}

fn holds(set: &reach::ir::NftSet, address: IpAddr) -> bool {
    set.elements.iter().any(|element| {
        matches!(element.key.as_slice(), [reach::ir::Field::Addr(first, last)]
            if *first <= address && address <= *last && first.is_ipv6() == address.is_ipv6())
    })
}

/// fail2ban lists bans that the kernel lost.
fn lost(case: &Case<'_>, fail2ban: &Fail2ban, out: &mut Vec<Finding>) {
    // Without the kernel's sets every ban would seem lost.
    if !case.host.privileged {
        return;
    }
    for jail in &fail2ban.jails {
        let missing = missing_bans(case.host, jail);
        if missing.is_empty() {
            continue;
        }
        out.push(
            finding(
                "bans-lost",
                Severity::High,
                format!(
                    "fail2ban's jail {} lists {} banned, and the kernel lets them in.",
                    clean(&jail.name),
                    match missing.len() {
                        1 => "an address as".to_owned(),
                        n => format!("{n} addresses as"),
                    }
                ),
            )
            .shows(format!(
                "not in the guard's sets: {}",
                list(
                    &missing
                        .iter()
                        .take(5)
                        .map(IpAddr::to_string)
                        .collect::<Vec<_>>()
                )
            ))
            .mend(APPLY)
            .rows(&["G12", "NIST-SC-5"]),
        );
    }
}

/// Actions whose bans leave established connections alone.
fn keeps_connections(fail2ban: &Fail2ban, out: &mut Vec<Finding>) {
    let kept: Vec<String> = fail2ban
        .jails
        .iter()
        .filter(|jail| jail.actions.iter().any(|a| a == "ufw"))
        .map(|jail| clean(&jail.name))
        .collect();
    if kept.is_empty() {
        return;
    }
    out.push(
        finding(
            "bans-keep-connections",
            Severity::Low,
            format!(
                "fail2ban bans with UFW rules in jail {}: who is banned keeps the connections that he has.",
                list(&kept)
            ),
        )
        .shows("UFW accepts established connections before it looks at its rules")
        .mend(APPLY)
        .rows(&["G12"]),
    );
}

/// The policy's `never` that the jail does not ignore.
fn not_spared(case: &Case<'_>, jail: &Jail, out: &mut Vec<Finding>) {
    let ignored: AddrSet = jail.ignore_ip.iter().filter_map(|t| network(t)).collect();
    let mut missing = Vec::new();
    for never in &case.policy.bans.never {
        match never {
            // Loopback is nobody's address on a wire, and `ignoreself` covers it.
            Never::Nets(nets) => missing.extend(
                nets.iter()
                    .filter(|n| !n.addr().is_loopback())
                    .filter(|n| !AddrSet::from(**n).is_subset(&ignored))
                    .map(IpNet::to_string),
            ),
            Never::Zone(zone) => missing.extend(
                case.zones
                    .iter()
                    .filter(|z| zone.matches(z) && !z.networks.v4().is_subset(&ignored))
                    .map(|z| z.label.clone()),
            ),
            Never::Admin => {
                let mut peers: Vec<IpAddr> = case
                    .host
                    .sessions
                    .iter()
                    .map(|s| canonical(s.peer))
                    .filter(|p| !p.is_loopback() && !ignored.contains(*p))
                    .collect();
                peers.sort();
                peers.dedup();
                missing.extend(peers.iter().map(|p| format!("{p} (connected by SSH now)")));
            }
        }
    }
    if !missing.is_empty() {
        out.push(
            finding(
                "fail2ban-may-ban-you",
                Severity::Low,
                format!(
                    "fail2ban may ban addresses that the policy spares: {}.",
                    list(&missing)
                ),
            )
            .shows(format!(
                "ignoreip of jail sshd: {}",
                match jail.ignore_ip.as_slice() {
                    [] => "empty".to_owned(),
                    some => list(&some.iter().map(|t| clean(t)).collect::<Vec<_>>()),
                }
            ))
            .mend(APPLY)
            .rows(&["G15"]),
        );
    }
}

fn network(text: &str) -> Option<IpNet> {
    let text = text.trim();
    text.parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        .map(|n| n.trunc())
}

/// Every ban that is known, as the kernel's sets and fail2ban have it: the address (of a whole network
/// its first), the bits that count, and whose ban it is.
fn all_bans(case: &Case<'_>) -> Vec<(IpAddr, u8, String)> {
    let bits = case.policy.bans.ipv6_prefix;
    let mut out = Vec::new();
    for name in bans::set_names(&case.policy.bans) {
        for ipv6 in [false, true] {
            let Some(set) = bans::set_of(case.host, &name, ipv6) else {
                continue;
            };
            let whose = if name == bans::HAND {
                "by hand".to_owned()
            } else {
                format!("jail {}", name.replace('_', "-"))
            };
            for element in &set.elements {
                if let [reach::ir::Field::Addr(address, _)] = element.key.as_slice() {
                    out.push((*address, if ipv6 { bits } else { 32 }, whose.clone()));
                }
            }
        }
    }
    for jail in case.host.fail2ban.iter().flat_map(|f| &f.jails) {
        for banned in &jail.banned {
            let address = canonical(*banned);
            let bits = if address.is_ipv6() { 128 } else { 32 };
            out.push((address, bits, format!("jail {}", clean(&jail.name))));
        }
    }
    out
}

/// G15: behind NAT the operator's own address gets banned.
fn spared_and_banned(case: &Case<'_>, out: &mut Vec<Finding>) {
    let own = zones::own_addresses(case.host);
    // Once, not for each of what may be thousands of bans.
    let (never, ignored) = (never(case), ignored(case));
    let mut told: Vec<IpAddr> = Vec::new();
    for (banned, bits, whose) in all_bans(case) {
        let Ok(net) = IpNet::new(banned, bits).map(|net| net.trunc()) else {
            continue;
        };
        let session = case
            .host
            .sessions
            .iter()
            .map(|s| canonical(s.peer))
            .find(|peer| net.contains(peer));
        let (address, who) = if let Some(peer) = session {
            (peer, "the address that you are connected from")
        } else if let Some(own) = own.iter().find(|own| net.contains(*own)) {
            (*own, "an address of this host itself")
        } else if let Some(gateway) = gateways(case).find(|g| net.contains(g)) {
            (
                gateway,
                "this network's router: behind it is everybody whom it translates",
            )
        } else if let Some(spared) = never.intersect(&[net].into_iter().collect()).first() {
            (spared, "which the policy says is never banned")
        } else if let Some(spared) = ignored.intersect(&[net].into_iter().collect()).first() {
            // A ban cuts its connections, so the operator's session may be gone when this is asked.
            (spared, "which fail2ban is told to ignore")
        } else {
            continue;
        };
        if told.contains(&address) {
            continue;
        }
        told.push(address);
        out.push(
            finding(
                "own-address-banned",
                Severity::High,
                format!("{address} is banned, {who}."),
            )
            .shows(format!("banned: {net} ({whose})"))
            .mend(format!("portcullis unban {address}"))
            .rows(&["G15"]),
        );
    }
}

/// What the jails' `ignoreip` names as addresses and networks.
fn ignored(case: &Case<'_>) -> AddrSet {
    let jails = case.host.fail2ban.iter().flat_map(|f| &f.jails);
    jails
        .flat_map(|jail| &jail.ignore_ip)
        .filter_map(|text| network(text))
        .collect()
}

/// The networks of the policy's `never`.
fn never(case: &Case<'_>) -> AddrSet {
    let mut out = AddrSet::default();
    for never in &case.policy.bans.never {
        match never {
            Never::Admin => {}
            Never::Nets(nets) => out = out.union(&nets.iter().copied().collect()),
            Never::Zone(zone) => {
                for found in case.zones.iter().filter(|z| zone.matches(z)) {
                    out = out.union(&found.networks);
                }
            }
        }
    }
    out
}

fn gateways<'c>(case: &'c Case<'_>) -> impl Iterator<Item = IpAddr> + 'c {
    case.host
        .net
        .routes
        .iter()
        .filter(|r| r.dst.prefix_len() == 0)
        .flat_map(|r| r.nexthops.iter().filter_map(|h| h.gateway))
}

/// Bans in INPUT do not reach ports that containers publish.
fn past_published(case: &Case<'_>, fail2ban: &Fail2ban, out: &mut Vec<Finding>) {
    let published = case.endpoints.iter().any(|j| {
        let id = &j.endpoint.id;
        j.endpoint.origin == Origin::Published
            && !id.address.is_loopback()
            && j.endpoint
                .exposure
                .iter()
                .any(|e| !e.admitted.is_empty() || !e.conditional.is_empty())
    });
    let sshd = fail2ban.jails.iter().find(|j| j.name == "sshd");
    let covered = sshd.is_none_or(|j| {
        j.actions.is_empty() || j.actions.iter().any(|a| a.starts_with("portcullis"))
    });
    if !published || covered {
        return;
    }
    out.push(
        finding(
            "bans-miss-published-ports",
            Severity::Low,
            "fail2ban's bans do not reach ports that containers publish: who is banned still gets in there.",
        )
        .shows(format!(
            "actions of jail sshd: {}",
            list(
                &sshd
                    .map(|j| j.actions.iter().map(|a| clean(a)).collect::<Vec<_>>())
                    .unwrap_or_default()
            )
        ))
        .mend(APPLY)
        .rows(&["G10", "G12"]),
    );
}
