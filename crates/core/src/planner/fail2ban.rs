//! fail2ban: a jail for sshd that really runs, and an action that bans in the guard.
//!
//! Only `jail.d/*.local` and an action of our own are written: these are read last, and a copied
//! jail.conf is what breaks upgrades. The backend is stated, because `auto` finds no log file on a
//! Debian without rsyslog and then the server does not start at all.

use super::Draft;
use super::files::{self, ACTION_FILE, GUARD_FILE, JAIL_FILE};
use super::guard::{self, BANNED4, BANNED6, Desired, TABLE};
use crate::host::{Host, Jail};
use crate::plan::{Action, SystemdVerb};
use crate::policy::{Never, Policy, SshBans};
use crate::text::{clean, list};
use crate::zones;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

const UNIT: &str = "fail2ban.service";
const JAIL: &str = "sshd";

/// Addresses kept in `ignoreip` from earlier applies, at most: an operator moves about.
const REMEMBERED: usize = 32;

/// fail2ban runs these lines with sh, with the tags (`<…>`) filled in; `<ip>` is an address that it parsed.
///
/// - `add, delete, add` in one transaction renews the timeout of an address that is there already, and
///   `add, delete` succeeds also when the ban has run out: neither leaves an error behind.
/// - No `actionflush`: several jails may share the sets, so each takes out its own.
/// - The kernel lets a ban run out by itself, should fail2ban not be there to do it.
fn action_text() -> String {
    format!(
        "\
# Written by portcullis: `portcullis apply` replaces it.
# Bans go into the sets of table inet {TABLE}: they hold for the host's own ports, for ports that
# containers publish and for connections that are open already, and no firewall reload loses them.

[Definition]
actionstart = <nft> list chain inet {TABLE} prerouting 2>/dev/null | grep -q '@<set> ' || <nft> -f {GUARD_FILE}
actionstop =
actioncheck = <nft> list chain inet {TABLE} prerouting | grep -q '@<set> '
actionban = <nft> 'add element inet {TABLE} <set> {{ <ip> }}; delete element inet {TABLE} <set> {{ <ip> }}; add element inet {TABLE} <set> {{ <ip> timeout <bantime>s }}'
actionunban = <nft> 'add element inet {TABLE} <set> {{ <ip> }}; delete element inet {TABLE} <set> {{ <ip> }}'

[Init]
nft = /usr/sbin/nft
set = {BANNED4}

[Init?family=inet6]
set = {BANNED6}
"
    )
}

/// The log that the jail reads.
enum Log<'a> {
    Journal,
    File(&'a str),
}

impl Log<'_> {
    fn of(host: &Host) -> Option<Log<'_>> {
        // Where systemd runs, the journal has every line; a log file may be the remains of a removed rsyslog.
        if host.systemd {
            return Some(Log::Journal);
        }
        host.fail2ban
            .as_ref()
            .and_then(|f| f.sshd_log.as_deref())
            .map(Log::File)
    }
}

fn jail_text(bans: SshBans, ports: &[u16], ignore: &[IpNet], log: &Log<'_>) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let ignore: Vec<String> = ignore.iter().map(net_text).collect();
    // OpenSSH 9.8 and later log as sshd-session; Debian's unit is ssh.service. fail2ban before 1.1.1
    // knows neither.
    let log = match log {
        Log::Journal => "\
backend = systemd
filter = sshd[mode=%(mode)s, _daemon=\"sshd(?:-session)?\", journalmatch=\"_SYSTEMD_UNIT=ssh.service + _SYSTEMD_UNIT=sshd.service + _COMM=sshd + _COMM=sshd-session\"]
"
        .to_owned(),
        Log::File(path) => format!(
            "\
backend = auto
logpath = {path}
filter = sshd[mode=%(mode)s, _daemon=\"sshd(?:-session)?\"]
"
        ),
    };
    format!(
        "\
# Written by portcullis: `portcullis apply` replaces it. The values come from [bans] of the policy.

[sshd]
enabled = true
port = {ports}
{log}maxretry = {retry}
findtime = {find}
bantime = {ban}
ignoreip = {ignore}
action = portcullis
",
        ports = ports.join(","),
        retry = bans.max_retry,
        find = bans.find_time.as_secs(),
        ban = bans.ban_time.as_secs(),
        ignore = ignore.join(" "),
    )
}

pub(super) fn plan(host: &Host, policy: &Policy, guard: &[Desired], draft: &mut Draft) {
    let Some(bans) = policy.bans.ssh else {
        if files::exists(host, JAIL_FILE) {
            draft.change(
                "the policy bans nobody any more",
                &[],
                Action::RemoveFile {
                    path: JAIL_FILE.to_owned(),
                },
            );
            restart(host, draft, "fail2ban reads its files again", &[]);
        }
        return;
    };
    let Some(log) = Log::of(host) else {
        draft.note(
            "fail2ban has nothing to read: no systemd journal and no log file with sshd's lines, so nobody will be banned",
            None,
        );
        return;
    };
    let jail = host
        .fail2ban
        .iter()
        .flat_map(|f| &f.jails)
        .find(|j| j.name == JAIL);
    let ignore = ignored(host, policy, jail);
    note_remembered(host, policy, jail, draft);
    let dead = !host.fail2ban.as_ref().is_some_and(|f| f.alive);
    let mends: &[&str] = if dead {
        &["fail2ban-dead", "fail2ban-no-sshd-jail"]
    } else if jail.is_none() {
        &["fail2ban-no-sshd-jail"]
    } else {
        &["fail2ban-may-ban-you", "fail2ban-weaker"]
    };

    let mut changed = files::write(
        host,
        draft,
        ACTION_FILE,
        action_text(),
        "bans reach published ports and open connections, and survive `ufw reload`",
        &["bans-miss-published-ports"],
    );
    changed |= files::write(
        host,
        draft,
        JAIL_FILE,
        jail_text(bans, &Policy::ssh_ports(host), &ignore, &log),
        &format!(
            "{} failed logins in {} ban an address for {}; your own address is never banned",
            bans.max_retry,
            crate::policy::duration_text(bans.find_time),
            crate::policy::duration_text(bans.ban_time),
        ),
        mends,
    );
    if !host.systemd {
        if changed || dead {
            draft.note(
                "this host does not run systemd: start fail2ban by hand, or tell it to read its files again",
                Some("fail2ban-client reload || fail2ban-server start".to_owned()),
            );
        }
        return;
    }

    let unit = host.units.get(UNIT);
    if unit.is_none_or(|u| u.enabled != "enabled") {
        draft.change(
            "fail2ban runs after a reboot too",
            mends,
            Action::Systemd {
                unit: UNIT.to_owned(),
                verb: SystemdVerb::Enable,
            },
        );
    }
    // Bans of a table that was lost are lost with it, and fail2ban does not know: it has to add them again.
    let lost_bans = jail.is_some_and(|j| !j.banned.is_empty()) && !guard::has_sets(host, guard);
    let why = if dead {
        "fail2ban does not run"
    } else if jail.is_none() {
        "fail2ban runs without a jail for sshd"
    } else if changed || !jail.is_some_and(acts) {
        "fail2ban reads its files again"
    } else if lost_bans {
        "fail2ban puts its bans into the new table"
    } else {
        note_overrides(bans, jail, draft);
        return;
    };
    restart(host, draft, why, mends);
}

fn acts(jail: &Jail) -> bool {
    jail.actions.iter().any(|a| a == "portcullis")
}

fn restart(host: &Host, draft: &mut Draft, why: &str, mends: &[&str]) {
    if host.systemd {
        draft.change(
            why,
            mends,
            Action::Systemd {
                unit: UNIT.to_owned(),
                verb: SystemdVerb::Restart,
            },
        );
    }
}

/// The files are as they should be and the jail has other values: a file that is read later says so.
fn note_overrides(bans: SshBans, jail: Option<&Jail>, draft: &mut Draft) {
    let Some(jail) = jail else { return };
    let differs = |have: Option<i128>, want: u64| have.is_some_and(|have| have != i128::from(want));
    let other = differs(jail.max_retry.map(i128::from), bans.max_retry.into())
        || differs(jail.find_time.map(i128::from), bans.find_time.as_secs())
        || differs(jail.ban_time.map(i128::from), bans.ban_time.as_secs());
    if other {
        draft.note(
            format!(
                "fail2ban's jail {JAIL} runs with other values than {JAIL_FILE} has: a file behind it in /etc/fail2ban/jail.d changes them"
            ),
            Some("fail2ban-client -d | grep -E \"'sshd', '(maxretry|findtime|bantime)'\"".to_owned()),
        );
    }
}

/// Who is never banned: loopback, the policy's networks and zones, whoever is connected by SSH now, and
/// whoever was at an earlier apply.
fn ignored(host: &Host, policy: &Policy, jail: Option<&Jail>) -> Vec<IpNet> {
    let mut nets: BTreeSet<IpNet> = BTreeSet::new();
    for text in ["127.0.0.0/8", "::1"] {
        nets.extend(parse(text));
    }
    let mut admin = false;
    for never in &policy.bans.never {
        match never {
            Never::Admin => admin = true,
            Never::Nets(list) => nets.extend(list.iter().map(IpNet::trunc)),
            Never::Zone(zone) => {
                for found in zones::zones(host).iter().filter(|z| zone.matches(z)) {
                    nets.extend(found.networks.to_cidrs());
                }
            }
        }
    }
    if admin {
        let now = host.sessions.iter().map(|s| zones::canonical(s.peer));
        let earlier = earlier(jail).take(REMEMBERED);
        let covered: Vec<IpNet> = nets.iter().copied().collect();
        nets.extend(
            now.chain(earlier)
                .filter(|a| !a.is_unspecified() && !covered.iter().any(|net| net.contains(a)))
                .map(IpNet::from),
        );
    }
    nets.into_iter().collect()
}

/// Single addresses that a jail of ours spares already.
fn earlier(jail: Option<&Jail>) -> impl Iterator<Item = IpAddr> {
    jail.filter(|j| acts(j))
        .into_iter()
        .flat_map(|j| &j.ignore_ip)
        .filter_map(|text| parse(text))
        .filter(|net| net.prefix_len() == net.max_prefix_len())
        .map(|net| net.addr())
}

/// Says who is spared only for having been connected at an earlier apply: a borrowed network or a
/// stolen account should not stay exempt unseen.
fn note_remembered(host: &Host, policy: &Policy, jail: Option<&Jail>, draft: &mut Draft) {
    if !policy.bans.never.contains(&Never::Admin) {
        return;
    }
    let wanted = ignored(host, policy, None);
    let only_earlier: BTreeSet<IpAddr> = earlier(jail)
        .take(REMEMBERED)
        .filter(|a| !a.is_unspecified() && !wanted.iter().any(|net| net.contains(a)))
        .collect();
    if only_earlier.is_empty() {
        return;
    }
    let names: Vec<String> = only_earlier.iter().map(IpAddr::to_string).collect();
    draft.note(
        format!(
            "fail2ban never bans {}: connected by SSH at an earlier apply, not now; to end that, take them out and apply again",
            list(&names)
        ),
        Some(
            names
                .iter()
                .map(|name| format!("fail2ban-client set {JAIL} delignoreip {name}"))
                .collect::<Vec<_>>()
                .join("
"),
        ),
    );
}

fn parse(text: &str) -> Option<IpNet> {
    let text = text.trim();
    text.parse::<IpNet>()
        .map(|net| net.trunc())
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .ok()
}

fn net_text(net: &IpNet) -> String {
    clean(&if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    })
}
