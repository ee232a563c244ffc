//! UFW, through its own command: its rules stay visible in `ufw status`, and its chains are its own.

use super::rules::{self, Ip};
use super::{Context, Error, files};
use crate::exec::{self, Program};
use ipnet::IpNet;
use portcullis_core::plan::{UfwAdd, UfwOp};
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

/// The files that the `ufw` command writes.
pub(crate) const WRITTEN: [&str; 4] = [
    "/etc/ufw/user.rules",
    "/etc/ufw/user6.rules",
    "/etc/ufw/ufw.conf",
    "/etc/default/ufw",
];

/// A `ufw` call takes 0.1 to 0.2 s; enabling it on a slow machine a few.
const BOUND: Duration = Duration::from_secs(60);

/// True when `ufw` is installed.
pub(crate) fn installed() -> bool {
    exec::find("ufw").is_some()
}

/// A value of ufw.conf or /etc/default/ufw, without quotes. The last one counts, as in a shell.
fn setting(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    setting_in(&text, key)
}

pub(crate) fn setting_in(text: &str, key: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))
        .next_back()
        .map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
}

/// `ENABLED=yes` in ufw.conf.
pub(crate) fn claims_enabled() -> bool {
    setting("/etc/ufw/ufw.conf", "ENABLED").is_some_and(|value| value.eq_ignore_ascii_case("yes"))
}

fn ipv6() -> bool {
    setting("/etc/default/ufw", "IPV6").is_some_and(|value| value.eq_ignore_ascii_case("yes"))
}

/// The words after `ufw`.
fn words(op: &UfwOp) -> Vec<String> {
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    match op {
        UfwOp::Default { direction, policy } => own(&["default", policy, direction]),
        UfwOp::Add { rule } => {
            let mut words: Vec<String> = vec![];
            if rule.prepend {
                words.push("prepend".into());
            }
            words.extend(rule_words(rule));
            if !rule.comment.is_empty() {
                words.push("comment".into());
                words.push(rule.comment.clone());
            }
            words
        }
        UfwOp::Delete { rule } => {
            let mut words = own(&["--force", "delete"]);
            words.extend(rule_words(rule));
            words
        }
        UfwOp::Enable {} => own(&["--force", "enable"]),
        UfwOp::Reload {} => own(&["reload"]),
    }
}

fn rule_words(rule: &UfwAdd) -> Vec<String> {
    let mut words = vec![rule.action.clone()];
    if let Some(interface) = &rule.interface {
        words.extend(["in".into(), "on".into(), interface.clone()]);
    }
    words.push("from".into());
    words.push(rule.from.map_or("any".into(), |net| bare(&net)));
    words.extend([
        "to".into(),
        "any".into(),
        "port".into(),
        rule.port.to_string(),
        "proto".into(),
        rule.proto.clone(),
    ]);
    words
}

/// A network as ufw writes it: a single host without its prefix length.
fn bare(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.trunc().to_string()
    }
}

pub(super) fn check(op: &UfwOp, coming: &[String]) -> Result<(), Error> {
    let shown = words(op).join(" ");
    let refuse = |why: &str| Err(Error::refused(format!("ufw {shown}"), why));
    match op {
        UfwOp::Default { direction, policy } => {
            if !["incoming", "outgoing", "routed"].contains(&direction.as_str()) {
                return refuse("no such direction");
            }
            if !["allow", "deny", "reject"].contains(&policy.as_str()) {
                return refuse("no such policy");
            }
        }
        UfwOp::Add { rule } | UfwOp::Delete { rule } => {
            if !["allow", "deny", "limit", "reject"].contains(&rule.action.as_str()) {
                return refuse("no such action");
            }
            if !["tcp", "udp"].contains(&rule.proto.as_str()) {
                return refuse("no such protocol");
            }
            if rule.port == 0 {
                return refuse("port 0 cannot be reached");
            }
            if let Some(interface) = &rule.interface
                && !is_interface(interface)
            {
                return refuse("not an interface name that ufw takes");
            }
            // ufw refuses quotes; a line break would end the comment's line in user.rules.
            if rule.comment.chars().any(|c| c == '\'' || c.is_control()) || rule.comment.len() > 200
            {
                return refuse("the comment is not one that ufw takes");
            }
        }
        UfwOp::Enable {} | UfwOp::Reload {} => {}
    }
    if !installed() && !coming.iter().any(|name| name == "ufw") {
        return refuse("ufw is not installed");
    }
    Ok(())
}

/// The kernel's rule for interface names (dev_valid_name), less what ufw or iptables read as
/// something else.
fn is_interface(name: &str) -> bool {
    // What engines call the bridges of their networks; `+` stands for any ending.
    if matches!(name, "br-+" | "docker+" | "podman+") {
        return true;
    }
    (1..16).contains(&name.len())
        && name != "any"
        && !name.starts_with('-')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c))
}

pub(super) fn perform(op: &UfwOp, context: &Context) -> Result<(), Error> {
    if matches!(op, UfwOp::Enable {} | UfwOp::Reload {}) {
        rules::remove_unhooked(context)?;
    }
    run(&words(op), context)?;
    sync().map_err(|source| Error::io("write UFW's files to the disk", source))?;
    read_back(op)
}

fn run(words: &[String], context: &Context) -> Result<(), Error> {
    let _lent = context.lock.lend();
    let program = Program::new("ufw").args(words).timeout(BOUND);
    program
        .run()
        .map(drop)
        .map_err(|source| Error::program(format!("run {}", program.display()), source))
}

/// `ufw reload`, for a rollback.
pub(crate) fn reload(context: &Context) -> Result<(), Error> {
    rules::remove_unhooked(context)?;
    run(&words(&UfwOp::Reload {}), context)
}

/// ufw copies its files into place without a sync: after a power cut they could be empty.
fn sync() -> std::io::Result<()> {
    for path in WRITTEN {
        let path = Path::new(path);
        if path.exists() {
            File::open(path)?.sync_all()?;
            files::sync_parent(path)?;
        }
    }
    Ok(())
}

fn read_back(op: &UfwOp) -> Result<(), Error> {
    match op {
        UfwOp::Default { direction, policy } => {
            let key = match direction.as_str() {
                "incoming" => "DEFAULT_INPUT_POLICY",
                "outgoing" => "DEFAULT_OUTPUT_POLICY",
                _ => "DEFAULT_FORWARD_POLICY",
            };
            let wanted = match policy.as_str() {
                "allow" => "ACCEPT",
                "deny" => "DROP",
                _ => "REJECT",
            };
            let found = setting("/etc/default/ufw", key).unwrap_or_default();
            if found != wanted {
                return Err(Error::read_back(key, format!("is {found:?}, not {wanted}")));
            }
            if claims_enabled() { loaded() } else { Ok(()) }
        }
        UfwOp::Add { rule } => {
            for (path, six) in families(rule) {
                let text = fs::read_to_string(path).unwrap_or_default();
                if !text.lines().any(|line| is_tuple(line, rule, six)) {
                    return Err(Error::read_back(
                        path,
                        "does not hold the rule that was added",
                    ));
                }
            }
            if claims_enabled() {
                in_kernel(rule, true)
            } else {
                Ok(())
            }
        }
        UfwOp::Delete { rule } => {
            for (path, six) in families(rule) {
                let text = fs::read_to_string(path).unwrap_or_default();
                if text.lines().any(|line| is_tuple(line, rule, six)) {
                    return Err(Error::read_back(
                        path,
                        "still holds the rule that was deleted",
                    ));
                }
            }
            Ok(())
        }
        UfwOp::Enable {} | UfwOp::Reload {} => {
            if !claims_enabled() {
                return Err(Error::read_back("ufw", "is not enabled in ufw.conf"));
            }
            loaded()
        }
    }
}

/// The files that a rule goes into, and whether they are IPv6's.
fn families(rule: &UfwAdd) -> Vec<(&'static str, bool)> {
    let four = ("/etc/ufw/user.rules", false);
    let six = ("/etc/ufw/user6.rules", true);
    match rule.from {
        Some(IpNet::V4(_)) => vec![four],
        Some(IpNet::V6(_)) => vec![six],
        None if ipv6() => vec![four, six],
        None => vec![four],
    }
}

/// Whether a line of user.rules is the rule:
/// `### tuple ### limit tcp 22 0.0.0.0/0 any 192.168.1.0/24 in_eth0 comment=…`.
fn is_tuple(line: &str, rule: &UfwAdd, six: bool) -> bool {
    let Some(tuple) = line.strip_prefix("### tuple ### ") else {
        return false;
    };
    let any = if six { "::/0" } else { "0.0.0.0/0" };
    let from = rule.from.map_or(any.to_owned(), |net| bare(&net));
    let interface = rule
        .interface
        .as_ref()
        .map_or("in".to_owned(), |name| format!("in_{name}"));
    let port = rule.port.to_string();
    let wanted = [
        rule.action.as_str(),
        &rule.proto,
        &port,
        any,
        "any",
        &from,
        &interface,
    ];
    tuple
        .split_whitespace()
        .filter(|word| !word.starts_with("comment="))
        .eq(wanted)
}

/// UFW's chains are in the kernel and led to, with the policy that was asked for.
fn loaded() -> Result<(), Error> {
    let policy = match setting("/etc/default/ufw", "DEFAULT_INPUT_POLICY").as_deref() {
        Some("ACCEPT") => "ACCEPT",
        _ => "DROP",
    };
    for ip in Ip::BOTH {
        if ip == Ip::V6 && !ipv6() {
            continue;
        }
        let Some(now) = rules::saved(ip)? else {
            if ip == Ip::V6 {
                continue;
            }
            return Err(Error::read_back("ufw", "iptables is not installed"));
        };
        let part = rules::ufw_part(&now);
        if !part.hooked {
            return Err(Error::read_back(
                "ufw",
                "its chains are not in use: INPUT, FORWARD or OUTPUT does not lead to them",
            ));
        }
        if part.input_policy != policy {
            return Err(Error::read_back(
                "ufw",
                format!("the policy of INPUT is {}, not {policy}", part.input_policy),
            ));
        }
    }
    Ok(())
}

fn in_kernel(rule: &UfwAdd, wanted: bool) -> Result<(), Error> {
    for (_, six) in families(rule) {
        let ip = if six { Ip::V6 } else { Ip::V4 };
        let Some(now) = rules::saved(ip)? else {
            continue;
        };
        let port = format!("--dport {} ", rule.port);
        let found = rules::ufw_part(&now)
            .user_input
            .iter()
            .any(|spec| format!("{spec} ").contains(&port));
        if found != wanted {
            return Err(Error::read_back(
                "ufw",
                format!(
                    "the rule for port {} is in its file but not in the kernel",
                    rule.port
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(port: u16, from: Option<&str>, interface: Option<&str>) -> UfwAdd {
        UfwAdd {
            action: "limit".into(),
            prepend: false,
            proto: "tcp".into(),
            port,
            from: from.map(|net| net.parse().unwrap()),
            interface: interface.map(str::to_owned),
            comment: "portcullis: SSH".into(),
        }
    }

    #[test]
    fn as_typed() {
        let check = |op: UfwOp, text: &str| assert_eq!(words(&op).join(" "), text);
        check(
            UfwOp::Add {
                rule: rule(22, None, None),
            },
            "limit from any to any port 22 proto tcp comment portcullis: SSH",
        );
        let mut first = rule(8080, Some("192.168.1.7/24"), Some("eth0"));
        first.prepend = true;
        check(
            UfwOp::Add { rule: first },
            "prepend limit in on eth0 from 192.168.1.0/24 to any port 8080 proto tcp comment portcullis: SSH",
        );
        check(
            UfwOp::Delete {
                rule: rule(22, Some("2001:db8::1/128"), None),
            },
            "--force delete limit from 2001:db8::1 to any port 22 proto tcp",
        );
        check(
            UfwOp::Default {
                direction: "incoming".into(),
                policy: "deny".into(),
            },
            "default deny incoming",
        );
        check(UfwOp::Enable {}, "--force enable");
    }

    #[test]
    fn nonsense_is_refused() {
        let ufw = ["ufw".to_owned()];
        let check_add = |change: &dyn Fn(&mut UfwAdd), good: bool| {
            let mut rule = rule(22, None, None);
            change(&mut rule);
            assert_eq!(
                check(&UfwOp::Add { rule: rule.clone() }, &ufw).is_ok(),
                good,
                "{rule:?}"
            );
        };
        check_add(&|_| {}, true);
        check_add(&|rule| rule.port = 0, false);
        check_add(&|rule| rule.proto = "any".into(), false);
        check_add(&|rule| rule.action = "--force".into(), false);
        check_add(&|rule| rule.comment = "it's".into(), false);
        check_add(&|rule| rule.comment = "a\n*filter".into(), false);
        check_add(&|rule| rule.interface = Some("eth0:1".into()), false);
        check_add(&|rule| rule.interface = Some("-x".into()), false);
        check_add(&|rule| rule.interface = Some("ts0".into()), true);
        let default = |direction: &str, policy: &str| UfwOp::Default {
            direction: direction.into(),
            policy: policy.into(),
        };
        assert!(check(&default("incoming", "drop"), &ufw).is_err());
        assert!(check(&default("sideways", "deny"), &ufw).is_err());
    }

    #[test]
    fn tuples_are_recognised() {
        let check = |line: &str, rule: &UfwAdd, six: bool, same: bool| {
            assert_eq!(is_tuple(line, rule, six), same, "{line}");
        };
        let plain = rule(22, None, None);
        check(
            "### tuple ### limit tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=706f",
            &plain,
            false,
            true,
        );
        check(
            "### tuple ### limit tcp 22 ::/0 any ::/0 in",
            &plain,
            true,
            true,
        );
        check(
            "### tuple ### limit tcp 22 ::/0 any ::/0 in",
            &plain,
            false,
            false,
        );
        check(
            "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in",
            &plain,
            false,
            false,
        );
        check(
            "-A ufw-user-input -p tcp --dport 22 -j ACCEPT",
            &plain,
            false,
            false,
        );
        check(
            "### tuple ### limit tcp 22 0.0.0.0/0 any 10.0.0.0/8 in_eth0",
            &rule(22, Some("10.0.0.0/8"), Some("eth0")),
            false,
            true,
        );
    }

    #[test]
    fn settings_as_a_shell_reads_them() {
        let check = |text: &str, value: Option<&str>| {
            assert_eq!(setting_in(text, "IPV6").as_deref(), value);
        };
        check("IPV6=yes\n", Some("yes"));
        check("#IPV6=no\nIPV6=\"yes\"\n", Some("yes"));
        check("IPV6=yes\nIPV6=no\n", Some("no"));
        check("IPV6X=yes\n", None);
        check("", None);
    }
}
