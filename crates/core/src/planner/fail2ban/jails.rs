//! The texts of fail2ban's files: jails, filters, and the action.
//!
//! Every filter begins at the start of the line with the address that the kernel or the proxy saw, so
//! that nothing a client sends can name another address.

use crate::planner::{bans, files};
use crate::policy::{Bans, Limits, WebJail, WebKind};
use std::fmt::Write as _;

const ACTION: &str = include_str!("portcullis.py");

/// The action's file for this policy.
pub(super) fn action(policy: &Bans) -> String {
    let sets: Vec<String> = policy
        .jails()
        .into_iter()
        .map(|jail| format!("\"{jail}\": \"{}\"", bans::set_name(jail)))
        .collect();
    ACTION
        .replace("@PREFIX6@", &policy.ipv6_prefix.to_string())
        .replace("@SETS@", &format!("{{{}}}", sets.join(", ")))
}

/// Where a jail's lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Log {
    Journal,
    File(String),
}

/// A jail to be written.
pub(super) struct Jail {
    pub name: &'static str,
    pub limits: Limits,
    /// `backend`, `logpath`, `filter` and the like, a line each.
    pub lines: String,
}

/// fail2ban's own sshd filter. Only its parameters are set: OpenSSH 9.8 and later log as sshd-session,
/// and Debian's unit is ssh.service; fail2ban before 1.1.1 knows neither. `_UID=0`: anybody can call a
/// program sshd, and would otherwise ban whom he likes; sshd logs as root.
pub(super) fn sshd(limits: Limits, ports: &[u16], log: &Log) -> Jail {
    const DAEMON: &str = "filter = sshd[mode=%(mode)s, _daemon=\"sshd(?:-session)?\"";
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let source = match log {
        Log::Journal => format!(
            "backend = systemd\n{DAEMON}, journalmatch=\"_SYSTEMD_UNIT=ssh.service _UID=0 + _SYSTEMD_UNIT=sshd.service _UID=0 + _COMM=sshd _UID=0 + _COMM=sshd-session _UID=0\"]\n"
        ),
        Log::File(path) => format!("backend = auto\nlogpath = {path}\n{DAEMON}]\n"),
    };
    Jail {
        name: "sshd",
        limits,
        lines: format!("port = {}\n{source}", ports.join(",")),
    }
}

/// fail2ban's own recidive filter, which reads fail2ban's own log.
pub(super) fn recidive(limits: Limits, log: &Log) -> Jail {
    let source = match log {
        // The filter brings its journal match along.
        Log::Journal => "backend = systemd\n".to_owned(),
        Log::File(path) => format!("backend = auto\nlogpath = {path}\n"),
    };
    Jail {
        name: "recidive",
        limits,
        lines: format!("{source}filter = recidive\n"),
    }
}

pub(super) fn web(jail: &WebJail) -> Jail {
    let name = jail.kind.jail();
    let source = if jail.kind == WebKind::Uvicorn {
        // The second match is for the proof by injection, and only root can write such an entry.
        format!(
            "backend = systemd\njournalmatch = _SYSTEMD_UNIT={} + PORTCULLIS_PROOF={name} _UID=0\n",
            jail.source
        )
    } else {
        format!("backend = auto\nlogpath = {}\n", jail.source)
    };
    Jail {
        name,
        limits: jail.limits,
        lines: format!("{source}filter = portcullis-{name}\n"),
    }
}

/// `jail.d/portcullis.local`.
pub(super) fn text(jails: &[Jail], ignore: &str) -> String {
    let mut out = String::from(
        "# Written by portcullis: `portcullis apply` replaces it. The values come from [bans] of the policy.\n",
    );
    for jail in jails {
        let _ = write!(
            out,
            "\n[{}]\nenabled = true\n{}maxretry = {}\nfindtime = {}\nbantime = {}\nignoreip = {ignore}\naction = portcullis.py\n",
            jail.name,
            jail.lines,
            jail.limits.max_retry,
            jail.limits.find_time.as_secs(),
            jail.limits.ban_time.as_secs(),
        );
    }
    out
}

/// The file of a filter of ours.
pub(super) fn filter_file(kind: WebKind) -> &'static str {
    match kind {
        WebKind::Nginx401 => files::FILTER_NGINX_401,
        WebKind::Nginx429 => files::FILTER_NGINX_429,
        WebKind::OpenWebui => files::FILTER_OPEN_WEBUI,
        WebKind::Uvicorn => files::FILTER_UVICORN,
    }
}

/// The text of a filter of ours.
pub(super) fn filter(kind: WebKind) -> &'static str {
    match kind {
        WebKind::Nginx401 => include_str!("filter/nginx-401.conf"),
        WebKind::Nginx429 => include_str!("filter/nginx-429.conf"),
        WebKind::OpenWebui => include_str!("filter/open-webui.conf"),
        WebKind::Uvicorn => include_str!("filter/uvicorn.conf"),
    }
}
