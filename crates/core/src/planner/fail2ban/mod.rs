//! fail2ban: a jail for sshd that really runs, and an action that bans in the guard.
//!
//! Only `jail.d/*.local` and an action of our own are written: these are read last, and a copied
//! jail.conf is what breaks upgrades. The backend is stated, because `auto` finds no log file on a
//! Debian without rsyslog and then the server does not start at all.

mod jails;

use super::Draft;
use super::files::{self, ACTION_FILE, JAIL_FILE, JAIL_LOCAL};
use super::guard::{self, Desired};
use crate::host::{Host, Jail};
use crate::plan::{Action, SystemdVerb};
use crate::policy::{Limits, Never, Policy, WebKind};
use crate::text::{clean, list};
use crate::zones;
use ipnet::IpNet;
use jails::Log;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

const UNIT: &str = "fail2ban.service";
const JAIL: &str = "sshd";

/// Addresses kept in `ignoreip` from earlier applies, at most: an operator moves about.
const REMEMBERED: usize = 32;

/// Where fail2ban logs as Debian's package comes; the package makes the file.
const OWN_LOG: &str = "/var/log/fail2ban.log";

/// The log with sshd's lines.
fn sshd_log(host: &Host) -> Option<Log> {
    // Where systemd runs, the journal has every line; a log file may be the remains of a removed rsyslog.
    if host.systemd {
        return Some(Log::Journal);
    }
    let log = host.fail2ban.as_ref().and_then(|f| f.sshd_log.clone());
    log.map(Log::File)
}

/// fail2ban's own log; `None` when nothing of it can be read again.
fn own_log(host: &Host) -> Option<Log> {
    let target = host
        .fail2ban
        .as_ref()
        .and_then(|f| f.log_target.as_deref())
        .unwrap_or(OWN_LOG);
    if target.starts_with('/') {
        return Some(Log::File(target.to_owned()));
    }
    // What systemd's service writes to its output ends in the journal too.
    host.systemd.then_some(Log::Journal)
}

/// The jails that this host can have, of those that the policy wants.
fn wanted(
    host: &Host,
    policy: &Policy,
    ssh: Limits,
    draft: &mut Draft,
) -> Option<Vec<jails::Jail>> {
    let log = sshd_log(host)?;
    let mut wanted = vec![jails::sshd(ssh, &Policy::ssh_ports(host), &log)];
    if let Some(limits) = policy.bans.recidive {
        match own_log(host) {
            Some(log) => wanted.push(jails::recidive(limits, &log)),
            None => draft.note(
                "fail2ban keeps no log of its own, so nobody is banned longer for coming back",
                None,
            ),
        }
    }
    for web in &policy.bans.web {
        let missing = if web.kind == WebKind::Uvicorn {
            (!host.systemd).then_some("there is no systemd journal to read")
        } else {
            (!host.web_logs.contains(&web.source))
                .then_some("there is no such log file, and fail2ban would not start")
        };
        match missing {
            None => wanted.push(jails::web(web)),
            Some(why) => draft.note(
                format!(
                    "jail {} for {} is left out: {why}",
                    web.kind.jail(),
                    clean(&web.source)
                ),
                None,
            ),
        }
    }
    Some(wanted)
}

pub(super) fn plan(host: &Host, policy: &Policy, guard: &[Desired], draft: &mut Draft) {
    let Some(bans) = policy.bans.ssh else {
        return nobody_is_banned(host, draft);
    };
    let Some(wanted) = wanted(host, policy, bans, draft) else {
        draft.note(
            "fail2ban has nothing to read: no systemd journal and no log file with sshd's lines, so nobody will be banned",
            None,
        );
        return;
    };
    let jail = host.jail(JAIL);
    let ignore: Vec<String> = ignored(host, policy, jail).iter().map(net_text).collect();
    note_remembered(host, policy, jail, draft);
    let dead = !host.fail2ban.as_ref().is_some_and(|f| f.alive);
    let mends: &[&str] = if dead {
        &["fail2ban-dead", "fail2ban-no-sshd-jail"]
    } else if jail.is_none() {
        &["fail2ban-no-sshd-jail"]
    } else {
        &[
            "fail2ban-blind",
            "fail2ban-may-ban-you",
            "fail2ban-no-jail",
            "fail2ban-weaker",
        ]
    };

    let mut changed = files::write(
        host,
        draft,
        ACTION_FILE,
        jails::action(&policy.bans),
        "bans reach published ports and open connections, and survive `ufw reload`",
        &["bans-miss-published-ports", "bans-keep-connections"],
    );
    changed |= filters(host, &wanted, draft);
    changed |= files::write(
        host,
        draft,
        JAIL_FILE,
        jails::text(&wanted, &ignore.join(" ")),
        &format!(
            "{} failed logins in {} ban an address for {}; your own address is never banned",
            bans.max_retry,
            crate::policy::duration_text(bans.find_time),
            crate::policy::duration_text(bans.ban_time),
        ),
        mends,
    );
    changed |= uncopied(host, draft);
    if !host.systemd {
        if changed || dead {
            draft.note(
                "this host does not run systemd: start fail2ban by hand, or tell it to read its files again",
                Some("fail2ban-client restart || fail2ban-server start".to_owned()),
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
    let lost_bans = lost(host, guard);
    let missing: Vec<&str> = wanted
        .iter()
        .map(|jail| jail.name)
        .filter(|name| host.jail(name).is_none())
        .collect();
    let why = if dead {
        "fail2ban does not run".to_owned()
    } else if !missing.is_empty() {
        format!(
            "fail2ban runs without a jail for {}",
            list(&missing.iter().map(|m| (*m).to_owned()).collect::<Vec<_>>())
        )
    } else if changed || !jail.is_some_and(acts) {
        "fail2ban reads its files again".to_owned()
    } else if lost_bans {
        "fail2ban puts its bans into the new table".to_owned()
    } else {
        note_overrides(bans, jail, draft);
        return;
    };
    let mends: Vec<&str> = mends
        .iter()
        .copied()
        .chain(lost_bans.then_some("bans-lost"))
        .collect();
    restart(host, draft, &why, &mends);
}

/// The policy has no bans: what was written for them goes.
fn nobody_is_banned(host: &Host, draft: &mut Draft) {
    let filters = WebKind::ALL.map(jails::filter_file);
    let written = [JAIL_FILE, ACTION_FILE].into_iter().chain(filters);
    let mut removed = false;
    for path in written.filter(|path| files::exists(host, path)) {
        removed = true;
        draft.change(
            "the policy bans nobody any more",
            &[],
            Action::RemoveFile {
                path: path.to_owned(),
            },
        );
    }
    if removed {
        restart(host, draft, "fail2ban reads its files again", &[]);
    }
}

/// The filters of the jails that are wanted; others of ours go.
fn filters(host: &Host, wanted: &[jails::Jail], draft: &mut Draft) -> bool {
    let mut changed = false;
    for kind in WebKind::ALL {
        let path = jails::filter_file(kind);
        if wanted.iter().any(|jail| jail.name == kind.jail()) {
            changed |= files::write(
                host,
                draft,
                path,
                jails::filter(kind).to_owned(),
                &format!("what jail {} looks for", kind.jail()),
                &[],
            );
        } else if files::exists(host, path) {
            changed = true;
            draft.change(
                format!("the policy has no jail {} any more", kind.jail()),
                &[],
                Action::RemoveFile {
                    path: path.to_owned(),
                },
            );
        }
    }
    changed
}

/// jail.local as a copy of jail.conf: what differs is kept, the rest comes from the package again.
fn uncopied(host: &Host, draft: &mut Draft) -> bool {
    let Some(fail2ban) = host.fail2ban.as_ref().filter(|f| f.jail_local_is_copy) else {
        return false;
    };
    let mut text = String::from(
        "# jail.local was a copy of jail.conf. portcullis kept what differed from the packaged one.\n",
    );
    let mut section = "";
    for setting in &fail2ban.jail_local_differs {
        if setting.section != section {
            section = &setting.section;
            let _ = write!(text, "\n[{section}]\n");
        }
        // A value of several lines goes on with indented ones.
        let _ = writeln!(
            text,
            "{} = {}",
            setting.key,
            setting.value.replace('\n', "\n    ")
        );
    }
    files::write(
        host,
        draft,
        JAIL_LOCAL,
        text,
        &format!(
            "jail.local repeats all of jail.conf: the {} settings that differ stay, the rest comes from the package",
            fail2ban.jail_local_differs.len()
        ),
        &["fail2ban-jail-local-copy"],
    )
}

/// Bans that fail2ban believes in and the kernel does not have.
fn lost(host: &Host, guard: &[Desired]) -> bool {
    let jails = host.fail2ban.iter().flat_map(|f| &f.jails);
    let mut banning = jails.filter(|j| acts(j) && !j.banned.is_empty()).peekable();
    if banning.peek().is_some() && !guard::has_sets(host, guard) {
        return true;
    }
    banning.any(|jail| !crate::judge::missing_bans(host, jail).is_empty())
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
fn note_overrides(bans: Limits, jail: Option<&Jail>, draft: &mut Draft) {
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
