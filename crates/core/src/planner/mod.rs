//! From facts and policy to a plan: which changes, in which order, and why.
//!
//! [`make`] is pure. It compares what should be with what [`Host`] says is, so a host that conforms
//! gets an empty plan. The order is the safe one: packages, then whatever keeps SSH open, then the
//! guard, services and bans, and the gate itself last; [`lint`] states that as rules and the tests hold every plan to it.

pub mod bans;
mod binds;
mod bridge;
mod command;
mod describe;
mod fail2ban;
mod files;
mod grants;
pub mod guard;
mod lint;
mod reload;
pub(crate) mod sources;
#[cfg(test)]
mod tests;
pub(crate) mod ufw;

pub use describe::{command, describe};
pub use files::{
    ACTION_FILE, GUARD_DROPIN, GUARD_FILE, GUARD_UNIT, GUARD_UNIT_FILE, JAIL_FILE, JAIL_LOCAL,
    dropin, managed_files,
};
pub use lint::{Fault, lint};

use crate::host::{Host, Uncertain};
use crate::plan::{Action, Change, Note, PLAN_SCHEMA, Plan};
use crate::policy::{Policy, PolicyErrors};
use crate::text::{clean, list};
use crate::zones;
use grants::Grant;
use reach::Proto;

/// What the operator asked for besides the policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Delete UFW rules that admit what the policy does not mention (else they are kept and named).
    pub prune: bool,
    /// Leave connections alone that the new rules forbid (else the plan cuts them).
    pub keep_connections: bool,
    /// Change compose files so that they publish on loopback what the policy does not allow.
    pub edit_compose: bool,
}

/// Why no plan can be made. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The facts were taken without root.
    #[error("the host was not looked at as root, so a plan would be a guess")]
    NotRoot,
    /// Rules, links or routes could not be read.
    #[error("{what} could not be read ({why}), so a plan would be a guess")]
    Unseen {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
    /// Somebody who is connected over SSH would not get in again.
    #[error("the policy would shut out who is connected by SSH now")]
    ShutsSsh(#[source] Box<PolicyErrors>),
    /// A session comes over IPv6, which UFW is set to drop altogether.
    #[error("{peer} is connected by SSH over IPv6, and UFW is set to drop all IPv6 (IPV6=no)")]
    SshOverIpv6 {
        /// The client.
        peer: String,
    },
    /// UFW's chains exist without the jumps to them: enabling it would set policy DROP and admit nobody.
    #[error(
        "UFW's chains are there but {chain} does not lead to them: enabling UFW now would shut SSH"
    )]
    JumpsGone {
        /// `INPUT` or `INPUT (IPv6)`.
        chain: String,
        /// Commands that put the jumps back.
        commands: Vec<String>,
    },
    /// UFW is set active, its rules are gone from the kernel, and they do not admit SSH: its command fails
    /// until it is enabled again, and enabling it first would shut SSH.
    #[error(
        "UFW says that it is active, the kernel has none of its rules, and among them is none for SSH"
    )]
    UfwFlushed,
    /// A needed package is missing and there is no apt to get it.
    #[error("{packages} not installed, and this is no Debian or Ubuntu where they could be had")]
    NoPackages {
        /// Names, as a list for people.
        packages: String,
    },
    /// A range of more ports than UFW gets rules for.
    #[error("the range {ports} has more than 64 ports")]
    RangeTooWide {
        /// The range.
        ports: String,
    },
    /// The policy names a zone that this host does not have.
    #[error("the policy allows zone {zone}, and this host has no such zone")]
    NoSuchZone {
        /// The zone.
        zone: String,
    },
    /// An interface has a name that must not get into rules.
    #[error("the interface name {name} has characters that mean something else in rules")]
    OddInterface {
        /// The name, made safe to print.
        name: String,
    },
}

impl Refusal {
    /// What the operator can do about it.
    pub fn hint(&self) -> String {
        match self {
            Refusal::NotRoot => "run it with sudo".into(),
            Refusal::Unseen { .. } => "run `portcullis audit` to see what is missing".into(),
            Refusal::ShutsSsh(_) => {
                "add their network to the policy's ssh rule, or connect from a network that it admits"
                    .into()
            }
            Refusal::SshOverIpv6 { .. } => {
                "set IPV6=yes in /etc/default/ufw, or connect over IPv4".into()
            }
            Refusal::JumpsGone { commands, .. } => {
                format!("put them back first:\n  {}", commands.join("\n  "))
            }
            Refusal::UfwFlushed => {
                "run `ufw disable` (it filters nothing now anyway), then plan again".into()
            }
            Refusal::NoPackages { .. } => {
                "install them by the means of this system, then plan again".into()
            }
            Refusal::RangeTooWide { .. } => "name the ports that are really used".into(),
            Refusal::NoSuchZone { .. } => {
                "bring the interface up first, or name networks instead of the zone".into()
            }
            Refusal::OddInterface { .. } => {
                "rename the interface, or name networks instead of the zone".into()
            }
        }
    }
}

/// The changes that bring `host` to `policy`, in the order in which they are to be made.
///
/// # Errors
/// See [`Refusal`]: facts too thin to plan on, or a plan that would shut somebody out.
pub fn make(host: &Host, policy: &Policy, options: &Options) -> Result<Plan, Refusal> {
    refuse_blind(host)?;
    policy
        .check_host(host)
        .map_err(|errors| Refusal::ShutsSsh(Box::new(errors)))?;
    let grants = grants::grants(host, policy)?;
    let chains = guard::chains(host, &grants, &policy.bans);

    let mut draft = Draft::default();
    packages(host, policy, &mut draft)?;
    ufw::plan(host, policy, &grants, options, &mut draft)?;
    let guard_changed = guard_changes(host, &chains, &mut draft);
    binds::plan(host, policy, &mut draft);
    sources::plan(host, &grants, options, &mut draft);
    fail2ban::plan(host, policy, &chains, &mut draft);
    gate_last(host, &mut draft.changes);
    if !options.keep_connections {
        cut(host, &grants, guard_changed, &mut draft);
    }
    reload::once(&mut draft.changes);
    Ok(Plan {
        schema: PLAN_SCHEMA,
        made_from: crate::facts_hash(host),
        changes: draft.changes,
        notes: draft.notes,
    })
}

/// Puts the enabling of UFW behind all that can be had without it. Of all changes it is the likeliest
/// to shut somebody out, so it comes when everything else has been made; and what was restarted before
/// it has had time to show that it stays up.
fn gate_last(host: &Host, changes: &mut Vec<Change>) {
    use crate::plan::UfwOp::Enable;
    // Where UFW is set active already its rules come back first: its command fails without them. And
    // with MANAGE_BUILTINS it flushes others' jumps, which fail2ban's start puts back.
    let early = |ufw: &crate::host::Ufw| ufw.enabled || ufw.manage_builtins;
    if host.ufw.as_ref().is_some_and(early) {
        return;
    }
    let is_gate = |change: &Change| matches!(change.action, Action::Ufw { op: Enable {} });
    if let Some(at) = changes.iter().position(is_gate) {
        let gate = changes.remove(at);
        changes.push(gate);
    }
}

fn systemd(unit: &str, verb: crate::plan::SystemdVerb) -> Action {
    Action::Systemd {
        unit: unit.to_owned(),
        verb,
    }
}

/// A plan in the making.
#[derive(Debug, Default)]
struct Draft {
    changes: Vec<Change>,
    notes: Vec<Note>,
}

impl Draft {
    fn change(&mut self, why: impl Into<String>, mends: &[&str], action: Action) {
        self.changes.push(Change {
            why: why.into(),
            mends: mends.iter().map(|id| (*id).to_owned()).collect(),
            action,
        });
    }

    fn note(&mut self, text: impl Into<String>, command: Option<String>) {
        let note = Note {
            text: text.into(),
            command,
        };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

fn refuse_blind(host: &Host) -> Result<(), Refusal> {
    if !host.privileged {
        return Err(Refusal::NotRoot);
    }
    match host
        .unseen
        .iter()
        .find(|u| u.uncertain == Uncertain::Verdicts)
    {
        Some(unseen) => Err(Refusal::Unseen {
            what: clean(&unseen.what),
            why: clean(&unseen.why),
        }),
        None => Ok(()),
    }
}

/// Debian packages that plans depend on; [`Host::packages`] must say of each whether it is installed.
pub const PACKAGES: &[&str] = &[
    "conntrack",
    "fail2ban",
    "nftables",
    "python3-systemd",
    "ufw",
];

/// Installs what is missing, before anything uses it.
fn packages(host: &Host, policy: &Policy, draft: &mut Draft) -> Result<(), Refusal> {
    let mut wanted = vec!["nftables", "ufw"];
    if policy.bans.ssh.is_some() {
        wanted.extend(["conntrack", "fail2ban"]);
        if host.systemd {
            wanted.push("python3-systemd");
        }
    }
    let missing = |name: &str| {
        let seen = match name {
            "ufw" => host.ufw.is_some(),
            "fail2ban" => host.fail2ban.is_some(),
            "python3-systemd" => host.fail2ban.as_ref().is_some_and(|f| f.python_systemd),
            // Only dpkg tells; where it does not know the package, loading the guard will tell.
            _ => !host.packages.contains_key(name),
        };
        !matches!(host.packages.get(name), Some(Some(_))) && !seen
    };
    let mut missing: Vec<String> = wanted
        .into_iter()
        .filter(|name| missing(name))
        .map(str::to_owned)
        .collect();
    missing.sort();
    if missing.is_empty() {
        return Ok(());
    }
    // Observation lists the packages that matter wherever dpkg answers.
    if host.packages.is_empty() {
        return Err(Refusal::NoPackages {
            packages: list(&missing),
        });
    }
    let mut mends = Vec::new();
    for (package, finding) in [
        ("fail2ban", "fail2ban-missing"),
        ("ufw", "ufw-not-installed"),
    ] {
        if missing.iter().any(|name| name == package) {
            mends.push(finding);
        }
    }
    draft.change(
        format!("needed and not installed: {}", list(&missing)),
        &mends,
        Action::InstallPackages { packages: missing },
    );
    Ok(())
}

/// The guard's file, its unit, and the table itself. Tells whether the table changes.
fn guard_changes(host: &Host, chains: &[guard::Desired], draft: &mut Draft) -> bool {
    let script = guard::script(chains);
    files::write(
        host,
        draft,
        GUARD_FILE,
        script.clone(),
        "the guard's rules, to be loaded at every boot",
        &[],
    );
    let mut reload = false;
    if host.systemd {
        reload |= files::write(
            host,
            draft,
            GUARD_UNIT_FILE,
            files::GUARD_UNIT_TEXT.to_owned(),
            "loads the guard before the network and Docker come up",
            &[],
        );
        reload |= files::write(
            host,
            draft,
            GUARD_DROPIN,
            files::GUARD_DROPIN_TEXT.to_owned(),
            "nftables.service flushes every table; this puts the guard back each time",
            &[],
        );
        if reload {
            draft.change(
                "systemd reads the new units",
                &[],
                Action::Systemd {
                    unit: String::new(),
                    verb: crate::plan::SystemdVerb::DaemonReload,
                },
            );
        }
    } else {
        draft.note(
            "this host does not run systemd, so nothing loads the guard at boot",
            Some(format!("/usr/sbin/nft -f {GUARD_FILE}")),
        );
    }
    let changed = !guard::loaded(host, chains);
    if changed {
        draft.change(
            "ports that containers publish obey the policy, whatever UFW and Docker do; bans live here",
            &[
                "bans-miss-published-ports",
                "container-address-reachable",
                "docker-past-ufw",
                "exposed-to-internet",
                "guard-altered",
                "guard-missing",
            ],
            Action::Guard { ruleset: script },
        );
    }
    if host.systemd {
        let unit = host.units.get(GUARD_UNIT);
        let enabled = unit.is_some_and(|u| u.enabled == "enabled" && u.active == "active");
        if !enabled {
            draft.change(
                "the guard holds after a reboot too",
                &["guard-not-at-boot"],
                Action::Systemd {
                    unit: GUARD_UNIT.to_owned(),
                    verb: crate::plan::SystemdVerb::EnableNow,
                },
            );
        }
    }
    changed
}

/// Connections that were let in before and would not be now: established ones pass UFW, so they are cut.
fn cut(host: &Host, grants: &[Grant], guard_changed: bool, draft: &mut Draft) {
    let closes = guard_changed
        || draft.changes.iter().any(|c| {
            use crate::plan::UfwOp::{Default, Delete, Enable};
            matches!(
                &c.action,
                Action::Ufw {
                    op: Enable {} | Default { .. } | Delete { .. }
                }
            )
        });
    if !closes {
        return;
    }
    let ports = cut_ports(host, grants, Proto::Tcp);
    let udp = cut_ports(host, grants, Proto::Udp);
    if ports.is_empty() && udp.is_empty() {
        return;
    }
    draft.change(
        "whoever is connected there already would stay connected: rules only meet new connections",
        &[],
        Action::CutConnections { ports, udp },
    );
}

/// Ports that not everybody may reach: the entries of admitted sources are made anew with their next packet.
fn cut_ports(host: &Host, grants: &[Grant], proto: Proto) -> Vec<u16> {
    let open_to_all = |port: u16| {
        let mut all = grants.iter();
        all.any(|g| (g.proto, g.port) == (proto, port) && g.way.anywhere())
    };
    // A VPN's datagrams may carry the operator's own session, and no port tells that it is one.
    let vpn = || zones::zones(host).iter().any(|z| z.id.starts_with("vpn"));
    let carries = proto == Proto::Udp && vpn();
    let listening = host
        .sockets
        .iter()
        .filter(|s| s.proto == proto && !s.in_container_netns && !s.address.is_loopback())
        .filter(|s| proto == Proto::Tcp || (!carries && s.process.is_some()))
        .map(|s| s.port);
    // The ports of a user's engine are held by processes here.
    let published = host
        .root_engines()
        .flat_map(|e| &e.containers)
        .flat_map(|c| &c.published)
        .filter(|p| p.proto == proto && !p.host_ip.is_loopback())
        .map(|p| p.host_port);
    let ssh = if proto == Proto::Tcp {
        Policy::ssh_ports(host)
    } else {
        Vec::new()
    };
    let mut ports: Vec<u16> = listening
        .chain(published)
        .filter(|port| !open_to_all(*port) && !ssh.contains(port))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}
