//! Changes in one line each, as the operator would type them.

use super::ufw::words;
use crate::plan::{Action, Change, SystemdVerb, UfwOp};
use crate::text::clean;

/// A change in one line: the command or the file, then why.
/// `ufw limit 22/tcp  # SSH first, for anywhere; 6 or more attempts in 30 seconds are refused`.
pub fn describe(change: &Change) -> String {
    format!("{}  # {}", command(&change.action), clean(&change.why))
}

/// What a change does, in one line: the command or the file.
pub fn command(action: &Action) -> String {
    match action {
        Action::InstallPackages { packages } => {
            let names: Vec<String> = packages.iter().map(|p| clean(p)).collect();
            format!(
                "apt-get install --no-install-recommends {}",
                names.join(" ")
            )
        }
        Action::WriteFile { path, content, .. } => {
            format!("write {} ({} lines)", clean(path), content.lines().count())
        }
        Action::RemoveFile { path } => format!("rm {}", clean(path)),
        Action::Ufw { op } => match op {
            UfwOp::Default { direction, policy } => {
                format!("ufw default {} {}", clean(policy), clean(direction))
            }
            UfwOp::Add { rule } => format!("ufw {}", words(rule)),
            UfwOp::Delete { rule } => format!("ufw delete {}", words(rule)),
            UfwOp::Enable {} => "ufw enable".to_owned(),
            UfwOp::Reload {} => "ufw reload".to_owned(),
        },
        Action::Guard { ruleset } => {
            format!(
                "load table inet portcullis ({} lines)",
                ruleset.lines().count()
            )
        }
        Action::RemoveGuard {} => "nft delete table inet portcullis".to_owned(),
        Action::Systemd { unit, verb } => {
            let unit = clean(unit);
            match verb {
                SystemdVerb::DaemonReload => "systemctl daemon-reload".to_owned(),
                SystemdVerb::EnableNow => format!("systemctl enable --now {unit}"),
                SystemdVerb::Enable => format!("systemctl enable {unit}"),
                SystemdVerb::DisableNow => format!("systemctl disable --now {unit}"),
                SystemdVerb::Restart => format!("systemctl restart {unit}"),
            }
        }
        Action::EditCompose { path, edits, .. } => {
            let lines: Vec<String> = edits.iter().map(|e| e.line.to_string()).collect();
            format!("edit {} (line {})", clean(path), lines.join(", "))
        }
        Action::CutConnections { ports, udp } => {
            let tcp = ports.iter().map(u16::to_string);
            let udp = udp.iter().map(|port| format!("{port}/udp"));
            let ports: Vec<String> = tcp.chain(udp).collect();
            format!("cut open connections to {}", ports.join(", "))
        }
    }
}
