//! What every plan must satisfy, whatever it was made from.

use super::files::{GUARD_FILE, GUARD_UNIT, is_managed};
use crate::host::Host;
use crate::plan::{Action, Plan, SystemdVerb, UfwOp};
use crate::policy::Policy;

/// A rule of safe plans that one breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Index of the change, 0 for the first.
    pub at: usize,
    /// The rule, in words.
    pub rule: &'static str,
}

/// The rules that `plan` breaks on `host`; empty for a safe plan.
///
/// The policy may state that SSH is to be shut (`no_ssh`): then `ssh_may_shut` drops the rules about it.
pub fn lint(plan: &Plan, host: &Host, ssh_may_shut: bool) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |at: usize, rule: &'static str| faults.push(Fault { at, rule });
    let changes: Vec<&Action> = plan.changes.iter().map(|c| &c.action).collect();
    let before = |at: usize, test: &dyn Fn(&Action) -> bool| changes[..at].iter().any(|a| test(a));
    let after =
        |at: usize, test: &dyn Fn(&Action) -> bool| changes[at + 1..].iter().any(|a| test(a));

    for (at, action) in changes.iter().enumerate() {
        match action {
            Action::InstallPackages { packages } => {
                if at != 0 {
                    fault(at, "packages are installed before anything else");
                }
                if packages.is_empty() || !packages.is_sorted() {
                    fault(at, "packages are named and sorted");
                }
            }
            Action::WriteFile {
                path,
                mode,
                content,
            } => {
                if !is_managed(path) {
                    fault(at, "only files that portcullis owns are written");
                }
                if mode & 0o022 != 0 || content.is_empty() {
                    fault(at, "files have content and only root may write them");
                }
                if path.starts_with("/etc/systemd/") && !after(at, &reloads) {
                    fault(at, "a unit file is followed by a reload of systemd");
                }
            }
            Action::RemoveFile { path } => {
                if !is_managed(path) {
                    fault(at, "only files that portcullis owns are removed");
                }
                if path.starts_with("/etc/systemd/") && !after(at, &reloads) {
                    fault(at, "a removed unit file is followed by a reload of systemd");
                }
            }
            Action::Ufw { op } => {
                if host.ufw.is_none() && !before(at, &|a| installs(a, "ufw")) {
                    fault(at, "ufw is installed before it is used");
                }
                if closes(op) && !ssh_may_shut && !ssh_is_open(host, &changes[..at]) {
                    fault(at, "SSH is allowed before anything is shut");
                }
                // Where UFW is active without its chains, its command works only after enable.
                let flushed = host
                    .ufw
                    .as_ref()
                    .is_some_and(|u| u.enabled && u.loaded != Some(true));
                if matches!(op, UfwOp::Enable {}) && after(at, &opens) && !flushed {
                    fault(at, "every rule is there before UFW is enabled");
                }
            }
            Action::Guard { ruleset } => {
                let written = |a: &Action| matches!(a, Action::WriteFile { path, content, .. } if path == GUARD_FILE && content == ruleset);
                if !before(at, &written) && !super::files::is(host, GUARD_FILE, ruleset) {
                    fault(
                        at,
                        "the guard's file is there before the guard, with the same rules",
                    );
                }
                if !ruleset.contains("flush table inet portcullis")
                    || ruleset.contains("delete table")
                {
                    fault(at, "the guard is replaced without losing its bans");
                }
            }
            Action::Systemd { unit, verb } => {
                if unit.is_empty() != (*verb == SystemdVerb::DaemonReload) {
                    fault(at, "daemon-reload has no unit, everything else has one");
                }
                if unit == GUARD_UNIT
                    && !before(at, &|a| matches!(a, Action::Guard { .. }))
                    && !host.units.contains_key(GUARD_UNIT)
                    && host.rules.is_empty()
                {
                    fault(at, "the guard's unit is started after the guard is loaded");
                }
                if unit == "fail2ban.service"
                    && after(
                        at,
                        &|a| matches!(a, Action::WriteFile { path, .. } if path.starts_with("/etc/fail2ban/")),
                    )
                {
                    fault(at, "fail2ban is restarted after its files");
                }
                if unit == "fail2ban.service" && after(at, &|a| matches!(a, Action::Guard { .. })) {
                    fault(at, "bans need the guard");
                }
            }
            Action::CutConnections { ports, .. } => {
                if at + 1 != changes.len() {
                    fault(at, "connections are cut last");
                }
                if ports.iter().any(|p| Policy::ssh_ports(host).contains(p)) {
                    fault(at, "no SSH connection is cut");
                }
            }
            Action::EditCompose {
                path,
                sha256,
                edits,
            } => {
                let known = host.compose_files.get(path);
                let there = |e: &crate::compose::Edit| {
                    known.is_some_and(|k| k.ports.iter().any(|p| p.change.as_ref() == Some(e)))
                };
                if edits.is_empty() || !edits.iter().all(there) {
                    fault(
                        at,
                        "only entries that were read are changed in a compose file",
                    );
                }
                if known.is_none_or(|k| k.sha256 != *sha256) {
                    fault(at, "a compose file is changed as the plan knows it");
                }
            }
            Action::RemoveGuard {} => {}
        }
    }
    faults
}

/// Enabling a unit reloads systemd too (systemctl(1)).
fn reloads(action: &Action) -> bool {
    matches!(
        action,
        Action::Systemd {
            verb: SystemdVerb::DaemonReload | SystemdVerb::EnableNow | SystemdVerb::Enable,
            ..
        }
    )
}

fn installs(action: &Action, name: &str) -> bool {
    matches!(action, Action::InstallPackages { packages } if packages.iter().any(|p| p == name))
}

fn opens(action: &Action) -> bool {
    matches!(action, Action::Ufw { op: UfwOp::Add { rule } } if rule.action != "deny")
}

fn closes(op: &UfwOp) -> bool {
    match op {
        UfwOp::Enable {} => true,
        UfwOp::Default { direction, policy } => direction == "incoming" && policy != "allow",
        _ => false,
    }
}

/// Some rule lets somebody in to a port of sshd: one that is there, or one that was added before.
fn ssh_is_open(host: &Host, earlier: &[&Action]) -> bool {
    let ports = Policy::ssh_ports(host);
    let there = host.ufw.iter().flat_map(|u| &u.rules).any(|rule| {
        matches!(rule.action.as_str(), "allow" | "limit")
            && !rule.route
            && rule.direction == "in"
            && matches!(rule.proto.as_str(), "tcp" | "any")
            && ports.iter().any(|p| super::ufw::mentions(&rule.port, *p))
    });
    let added = earlier.iter().any(|a| {
        matches!(a, Action::Ufw { op: UfwOp::Add { rule } }
            if ports.contains(&rule.port) && rule.proto == "tcp" && matches!(rule.action.as_str(), "allow" | "limit"))
    });
    there || added
}
