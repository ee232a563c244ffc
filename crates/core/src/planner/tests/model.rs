//! What the mechanisms do with a change, as far as facts show it.

use crate::host::*;
use crate::plan::{Action, SystemdVerb, UfwAdd, UfwOp};
use crate::planner::files::{JAIL_FILE, JAIL_LOCAL, sha256};
use ipnet::IpNet;
use reach::Backend;
use reach::ir::{
    Base, Chain, ChainKind, Family, NfHook, NftSet, Policy, Rule, RuleVerdict, Statement, Table,
};

pub(super) fn apply(host: &mut Host, action: &Action) {
    match action {
        Action::EditCompose { path, edits, .. } => {
            let file = host.compose_files.get_mut(path).unwrap();
            file.sha256 = "edited".into();
            for entry in &mut file.ports {
                if entry.change.take_if(|c| edits.contains(c)).is_some() {
                    entry.host_ip = Some([127, 0, 0, 1].into());
                }
            }
        }
        Action::InstallPackages { packages } => {
            for name in packages {
                host.packages.insert(name.clone(), Some("1".into()));
                match name.as_str() {
                    "ufw" => {
                        host.ufw = Some(Ufw {
                            loaded: Some(false),
                            ipv6: true,
                            default_incoming: "deny".into(),
                            default_outgoing: "allow".into(),
                            ..Ufw::default()
                        });
                    }
                    "fail2ban" => {
                        host.fail2ban = Some(Fail2ban::default());
                        host.units.insert(
                            "fail2ban.service".into(),
                            Unit {
                                load: "loaded".into(),
                                active: "failed".into(),
                                enabled: "enabled".into(),
                                ..Unit::default()
                            },
                        );
                    }
                    "python3-systemd" => {
                        if let Some(f) = &mut host.fail2ban {
                            f.python_systemd = true;
                        }
                    }
                    _ => {}
                }
            }
        }
        Action::WriteFile {
            path,
            content,
            mode,
        } => {
            let fact = FileFact {
                sha256: sha256(content),
                size: content.len() as u64,
                mode: *mode,
                uid: 0,
                gid: 0,
            };
            host.files.insert(path.clone(), Some(fact));
            if path == JAIL_FILE {
                let f = host.fail2ban.as_mut().expect("fail2ban is installed");
                f.jails = content.split("\n[").skip(1).map(jail).collect();
            }
            if path == JAIL_LOCAL
                && let Some(f) = &mut host.fail2ban
            {
                f.jail_local_is_copy = false;
            }
            // A drop-in sets a variable, or has a command of its own.
            let variable = content
                .lines()
                .find_map(|l| l.strip_prefix("Environment=\""))
                .and_then(|l| l.trim_end_matches('"').split_once('='));
            if let Some(unit) = dropin_of(path)
                && let Some((key, value)) = variable
            {
                let unit = host.units.get_mut(&unit).expect("the unit is there");
                unit.environment.insert(key.into(), value.into());
            }
        }
        Action::RemoveFile { path } => {
            host.files.insert(path.clone(), None);
            if let Some(unit) = dropin_of(path)
                && let Some(unit) = host.units.get_mut(&unit)
            {
                unit.environment.clear();
            }
            if path == JAIL_FILE
                && let Some(f) = &mut host.fail2ban
            {
                f.jails.clear();
            }
        }
        Action::Ufw { op } => ufw(host.ufw.as_mut().expect("ufw is installed"), op),
        Action::Guard { ruleset } => host.rules.tables = vec![table(ruleset)],
        Action::RemoveGuard {} => host.rules.tables.clear(),
        Action::Systemd { unit, verb } => systemd(host, unit, *verb),
        Action::CutConnections { .. } => {}
    }
}

/// A jail out of its section, from the name on.
fn jail(section: &str) -> Jail {
    let value = |key: &str| {
        section
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix(" = ").map(str::to_owned))
            .unwrap_or_default()
    };
    Jail {
        name: section.split(']').next().expect("a name").into(),
        max_retry: value("maxretry").parse().ok(),
        find_time: value("findtime").parse().ok(),
        ban_time: value("bantime").parse().ok(),
        ignore_ip: value("ignoreip").split(' ').map(str::to_owned).collect(),
        actions: vec!["portcullis".into()],
        ..Jail::default()
    }
}

fn dropin_of(path: &str) -> Option<String> {
    path.strip_prefix("/etc/systemd/system/")?
        .strip_suffix(".d/zz-portcullis.conf")
        .map(str::to_owned)
}

fn systemd(host: &mut Host, unit: &str, verb: SystemdVerb) {
    if verb == SystemdVerb::DaemonReload {
        return;
    }
    let fact = host.units.entry(unit.to_owned()).or_default();
    fact.load = "loaded".into();
    if matches!(verb, SystemdVerb::Enable | SystemdVerb::EnableNow) {
        fact.enabled = "enabled".into();
    }
    if matches!(verb, SystemdVerb::Restart | SystemdVerb::EnableNow) {
        fact.active = "active".into();
    }
    if verb == SystemdVerb::DisableNow {
        fact.enabled = "disabled".into();
        fact.active = "inactive".into();
    }
    if verb != SystemdVerb::Restart {
        return;
    }
    if unit == "fail2ban.service" {
        host.fail2ban.as_mut().expect("fail2ban is installed").alive = true;
    }
    // A drop-in of ours with a command of its own tells the service to listen on loopback.
    let ours = host
        .files
        .get(&crate::planner::dropin(unit))
        .is_some_and(Option::is_some);
    if ours && unit != "ollama.service" && host.units[unit].start.is_some() {
        for socket in &mut host.sockets {
            if socket.unit.as_deref() == Some(unit) {
                socket.address = "127.0.0.1".parse().expect("an address");
            }
        }
    }
    let told = host.units[unit].environment.get("OLLAMA_HOST").cloned();
    if unit == "ollama.service" {
        // As Ollama reads it: without the variable it listens on loopback.
        let told = told.unwrap_or_else(|| "127.0.0.1:11434".into());
        let (address, _) = told.rsplit_once(':').expect("HOST:PORT");
        for socket in &mut host.sockets {
            if socket.unit.as_deref() == Some(unit) {
                socket.address = address.parse().expect("an address");
            }
        }
    }
}

/// As ufw 0.36's `set_rule` does it, once for each IP version.
fn ufw(ufw: &mut Ufw, op: &UfwOp) {
    match op {
        UfwOp::Default { direction, policy } => match direction.as_str() {
            "incoming" => ufw.default_incoming = policy.clone(),
            "outgoing" => ufw.default_outgoing = policy.clone(),
            other => panic!("{other}"),
        },
        UfwOp::Enable {} => {
            ufw.enabled = true;
            ufw.loaded = Some(true);
        }
        UfwOp::Reload {} => {}
        UfwOp::Add { rule } | UfwOp::Delete { rule } => {
            let remove = matches!(op, UfwOp::Delete { .. });
            for ipv6 in [false, true] {
                if rule.from.is_some_and(|n| n.addr().is_ipv6() != ipv6) || (ipv6 && !ufw.ipv6) {
                    continue;
                }
                set_rule(&mut ufw.rules, rule, ipv6, remove);
            }
            ufw.rules.sort_by_key(|r| r.ipv6);
            for (n, rule) in ufw.rules.iter_mut().enumerate() {
                rule.number = n as u32 + 1;
            }
        }
    }
}

fn set_rule(rules: &mut Vec<UfwRule>, add: &UfwAdd, ipv6: bool, remove: bool) {
    let new = UfwRule {
        action: add.action.clone(),
        direction: "in".into(),
        proto: add.proto.clone(),
        port: add.port.to_string(),
        from: add.from.filter(|n: &IpNet| n.prefix_len() > 0),
        from_port: "any".into(),
        interface_in: add.interface.clone(),
        ipv6,
        comment: Some(add.comment.clone()).filter(|c| !c.is_empty()),
        ..UfwRule::default()
    };
    let same = |r: &UfwRule| {
        !r.route
            && r.ipv6 == ipv6
            && (&r.proto, &r.port, &r.from, &r.interface_in)
                == (&new.proto, &new.port, &new.from, &new.interface_in)
            && r.direction == "in"
            && r.to.is_none()
            && r.from_port == "any"
            && r.application.is_none()
    };
    let at = rules.iter().position(same);
    match (at, remove) {
        (Some(at), true) => {
            assert_eq!(rules[at].action, add.action, "ufw deletes by action too");
            rules.remove(at);
        }
        (None, true) => {}
        // "Skipping inserting existing rule".
        (Some(_), false) if add.prepend => {}
        (Some(at), false) => rules[at] = new,
        (None, false) if add.prepend => {
            let first = rules.iter().position(|r| r.ipv6 == ipv6);
            rules.insert(first.unwrap_or(rules.len()), new);
        }
        (None, false) => rules.push(new),
    }
}

/// Reads the guard's own script as the kernel would list it: chains, priorities, verdicts, the stamp.
fn table(script: &str) -> Table {
    let mut table = Table::new(Family::Inet, "portcullis", Backend::Nft);
    for line in script.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("set ") {
            table.sets.push(NftSet {
                name: name.trim_end_matches(" {").into(),
                timeout: true,
                ..NftSet::default()
            });
        } else if let Some(name) = line.strip_prefix("chain ") {
            table
                .chains
                .push(Chain::new(name.trim_end_matches(" {"), None));
        } else if let Some(rest) = line.strip_prefix("type filter hook ") {
            let words: Vec<&str> = rest.split([' ', ';']).collect();
            let chain = table.chains.last_mut().expect("in a chain");
            chain.base = Some(Base {
                kind: ChainKind::Filter,
                hook: match words[0] {
                    "forward" => NfHook::Forward,
                    "postrouting" => NfHook::Postrouting,
                    _ => NfHook::Prerouting,
                },
                priority: words[2].parse().expect("a number"),
                policy: Policy::Accept,
                devices: vec![],
            });
        } else if let Some(chain) = table.chains.last_mut()
            && line.len() > 1
        {
            let (rule, comment) = match line.split_once(" comment ") {
                Some((rule, comment)) => (rule, Some(comment.trim_matches('"').to_owned())),
                None => (line, None),
            };
            let verdict = match rule.rsplit(' ').next().expect("a word") {
                "accept" => RuleVerdict::Accept,
                "drop" => RuleVerdict::Drop,
                "return" => RuleVerdict::Return,
                chain => RuleVerdict::Jump {
                    chain: chain.into(),
                },
            };
            chain.rules.push(Rule {
                comment,
                text: rule.into(),
                statements: vec![Statement::Verdict(verdict)],
                ..Rule::default()
            });
        }
    }
    table
}
