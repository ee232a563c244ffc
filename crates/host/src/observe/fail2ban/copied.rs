//! A jail.local that is a copy of jail.conf: found, and reduced to what it says differently.
//!
//! Such a copy freezes the defaults of the day it was made, and an added `[sshd]` comes twice, which
//! fail2ban refuses to start with.

use super::Disk;
use portcullis_core::host::Setting;
use std::collections::BTreeSet;

/// Whether jail.local is such a copy, and its settings that are not as jail.conf has them.
pub(super) fn read(disk: &Disk) -> (bool, Vec<Setting>) {
    let read = |path: &str| disk.text(path).ok().flatten().unwrap_or_default();
    let (local, conf) = (
        read("/etc/fail2ban/jail.local"),
        read("/etc/fail2ban/jail.conf"),
    );
    if repeats(&local, &conf) {
        (true, differences(&local, &conf))
    } else {
        (false, Vec::new())
    }
}

/// True when `local` has (nearly) every line of `conf`.
fn repeats(local: &str, conf: &str) -> bool {
    let lines = |text: &str| -> BTreeSet<String> {
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
            .map(str::to_owned)
            .collect()
    };
    let (local, conf) = (lines(local), lines(conf));
    let shared = conf.intersection(&local).count();
    conf.len() >= 10 && shared * 10 >= conf.len() * 8
}

/// Settings of `local` that `conf` does not have, or has otherwise; of two in the same section the
/// last counts, as its author meant.
fn differences(local: &str, conf: &str) -> Vec<Setting> {
    let (local, conf) = (settings(local), settings(conf));
    local
        .into_iter()
        .filter(|setting| !conf.contains(setting))
        .collect()
}

/// Every setting once, with its last value, sections together in the order of their first mention.
/// Values go on in indented lines (Python's configparser, which fail2ban uses).
fn settings(text: &str) -> Vec<Setting> {
    let mut sections: Vec<String> = Vec::new();
    let mut found: Vec<Setting> = Vec::new();
    let mut section = String::new();
    let mut open = None;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with(['#', ';']) {
            continue;
        }
        if trimmed.is_empty() {
            open = None;
            continue;
        }
        if line.starts_with([' ', '\t'])
            && let Some(at) = open
        {
            let setting: &mut Setting = &mut found[at];
            setting.value.push('\n');
            setting.value.push_str(trimmed);
            continue;
        }
        if let Some(name) = trimmed
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = name.to_owned();
            if !sections.contains(&section) {
                sections.push(section.clone());
            }
            open = None;
            continue;
        }
        open = None;
        // The first of `=` and `:` divides key and value.
        let Some(at) = trimmed.find(['=', ':']) else {
            continue;
        };
        let (key, value) = (trimmed[..at].trim(), trimmed[at + 1..].trim());
        if key.is_empty() || section.is_empty() {
            continue;
        }
        let same = |s: &Setting| s.section == section && s.key == key;
        let place = found.iter().position(same).unwrap_or_else(|| {
            found.push(Setting {
                section: section.clone(),
                key: key.to_owned(),
                value: String::new(),
            });
            found.len() - 1
        });
        value.clone_into(&mut found[place].value);
        open = Some(place);
    }
    found.sort_by_key(|setting| sections.iter().position(|s| *s == setting.section));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = "\
[DEFAULT]
# how long
bantime  = 10m
ignorecommand =
action_mw = %(action_)s
            %(mta)s-whois[sender=\"%(sender)s\"]

[sshd]
port    = ssh
backend = %(sshd_backend)s
";

    fn check(local: &str, expected: &[(&str, &str, &str)]) {
        let found = differences(local, CONF);
        let found: Vec<(&str, &str, &str)> = found
            .iter()
            .map(|s| (s.section.as_str(), s.key.as_str(), s.value.as_str()))
            .collect();
        assert_eq!(found, expected, "{local}");
    }

    #[test]
    fn only_what_really_differs_is_kept() {
        check(CONF, &[]);
        check(&CONF.replace("10m", "1h"), &[("DEFAULT", "bantime", "1h")]);
        // The guide's way: a second section at the end.
        check(
            &format!("{CONF}\n[sshd]\nenabled = true\nport = 2222\n"),
            &[("sshd", "port", "2222"), ("sshd", "enabled", "true")],
        );
        check(
            &CONF.replace("whois[", "lookup["),
            &[(
                "DEFAULT",
                "action_mw",
                "%(action_)s\n%(mta)s-lookup[sender=\"%(sender)s\"]",
            )],
        );
        check("", &[]);
        check("garbage\n  more\n=\n[", &[]);
    }

    #[test]
    fn a_copied_jail_conf_is_recognised_with_additions() {
        let conf: String = (0..50)
            .map(|n| format!("[jail{n}]\n# c\nport = {n}\n\n"))
            .collect();
        assert!(repeats(&conf, &conf));
        assert!(repeats(&format!("{conf}\n[sshd]\nenabled = true\n"), &conf));
        assert!(!repeats("[sshd]\nenabled = true\nport = ssh\n", &conf));
        assert!(!repeats("", &conf));
        assert!(!repeats(&conf, ""));
    }
}
