//! UFW: what its files claim, and whether the kernel has it.
//!
//! File formats: ufw 0.36, `backend_iptables.py` (`_read_rules`, `_write_rules`).

use super::disk::Disk;
use super::gaps::Gaps;
use portcullis_core::host::{Ufw, UfwRule, Uncertain};
use reach::Ruleset;
use reach::ir::{Family, NfHook, RuleVerdict, Statement};
use std::collections::BTreeMap;

/// Most user rules that are kept.
const MAX_RULES: usize = 100_000;

/// UFW, `None` when it is not installed. `version` and `loaded` are left open: see [`loaded`].
pub(super) fn read(disk: &Disk) -> (Option<Ufw>, Gaps) {
    let mut gaps = Gaps::default();
    if !["/usr/sbin/ufw", "/sbin/ufw"]
        .iter()
        .any(|path| disk.exists(path))
    {
        return (None, gaps);
    }
    let mut file = |path: &str| match disk.text(path) {
        Ok(text) => text.unwrap_or_default(),
        Err(error) => {
            gaps.add("ufw", format!("{path}: {error}"), Uncertain::Mechanism);
            String::new()
        }
    };
    let defaults = settings(&file("/etc/default/ufw"));
    let conf = settings(&file("/etc/ufw/ufw.conf"));
    // Where ufw keeps its rules since 0.36; before: /lib/ufw.
    let mut rules = Vec::new();
    for (path, ipv6) in [
        ("/etc/ufw/user.rules", false),
        ("/etc/ufw/user6.rules", true),
    ] {
        rules.extend(user_rules(&file(path), ipv6));
    }
    rules.truncate(MAX_RULES);
    for (rule, number) in rules.iter_mut().zip(1..) {
        rule.number = number;
    }
    let mut foreign_lines = Vec::new();
    for name in [
        "before.rules",
        "after.rules",
        "before6.rules",
        "after6.rules",
    ] {
        let path = format!("/etc/ufw/{name}");
        let now = file(&path);
        let mut shipped = String::new();
        for folder in ["/usr/share/ufw", "/usr/share/ufw/iptables"] {
            shipped.push_str(&file(&format!("{folder}/{name}")));
            shipped.push('\n');
        }
        if shipped.trim().is_empty() {
            // Nothing to compare with; every line would look foreign.
            continue;
        }
        foreign_lines.extend(
            foreign(&now, &shipped)
                .into_iter()
                .map(|line| (path.clone(), line)),
        );
    }
    let word =
        |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
    let yes =
        |map: &BTreeMap<String, String>, key: &str| word(map, key).eq_ignore_ascii_case("yes");
    let ufw = Ufw {
        version: String::new(),
        enabled: yes(&conf, "ENABLED"),
        loaded: None,
        ipv6: yes(&defaults, "IPV6"),
        default_incoming: policy(&word(&defaults, "DEFAULT_INPUT_POLICY")),
        default_outgoing: policy(&word(&defaults, "DEFAULT_OUTPUT_POLICY")),
        default_routed: policy(&word(&defaults, "DEFAULT_FORWARD_POLICY")),
        manage_builtins: yes(&defaults, "MANAGE_BUILTINS"),
        log_level: word(&conf, "LOGLEVEL").to_ascii_lowercase(),
        rules,
        foreign_lines,
    };
    (Some(ufw), gaps)
}

/// `KEY=value` lines, quotes stripped; the last one counts, as in a shell.
fn settings(text: &str) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        if let Some((key, value)) = line.split_once('=') {
            let value = value.trim();
            let value = value
                .strip_prefix('"')
                .and_then(|rest| rest.split_once('"'))
                .or_else(|| {
                    value
                        .strip_prefix('\'')
                        .and_then(|rest| rest.split_once('\''))
                })
                .map_or_else(
                    || value.split('#').next().unwrap_or_default().trim(),
                    |(quoted, _)| quoted,
                );
            map.insert(key.trim().to_owned(), value.to_owned());
        }
    }
    map
}

/// iptables' words in ufw's: ACCEPT is allow.
fn policy(target: &str) -> String {
    match target.to_ascii_uppercase().as_str() {
        "ACCEPT" => "allow".to_owned(),
        "DROP" => "deny".to_owned(),
        "REJECT" => "reject".to_owned(),
        _ => target.to_ascii_lowercase(),
    }
}

/// The rules of user.rules or user6.rules. Lines that ufw itself skips as malformed are skipped.
fn user_rules(text: &str, ipv6: bool) -> Vec<UfwRule> {
    text.lines()
        .filter_map(|line| line.strip_prefix("### tuple ###"))
        .filter_map(|line| tuple(line, ipv6))
        .collect()
}

/// `ACTION PROTO DPORT DST SPORT SRC [DAPP SAPP] [DIRECTION] [comment=HEX]`
fn tuple(line: &str, ipv6: bool) -> Option<UfwRule> {
    let (line, comment) = match line.split_once(" comment=") {
        Some((line, hex)) => (line, unhex(hex.trim())),
        None => (line, None),
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    if !(6..=9).contains(&words.len()) {
        return None;
    }
    let mut rule = UfwRule {
        ipv6,
        comment,
        direction: "in".to_owned(),
        proto: words[1].to_owned(),
        port: words[2].to_owned(),
        to: network(words[3])?,
        from_port: words[4].to_owned(),
        from: network(words[5])?,
        ..UfwRule::default()
    };
    let action = match words[0].split_once(':') {
        Some((_, action)) => {
            rule.route = true;
            action
        }
        None => words[0],
    };
    // `allow_log`, `limit_log-all`
    rule.action = action.split('_').next().unwrap_or_default().to_owned();
    if words.len() == 7 || words.len() == 9 {
        let way = words[words.len() - 1];
        let (first, second) = match way.split_once('!') {
            Some((first, second)) => (first, Some(second)),
            None => (way, None),
        };
        rule.direction = first.split('_').next().unwrap_or_default().to_owned();
        for part in [Some(first), second].into_iter().flatten() {
            match part.split_once('_') {
                Some(("in", name)) => rule.interface_in = Some(name.to_owned()),
                Some(("out", name)) => rule.interface_out = Some(name.to_owned()),
                Some(_) => return None,
                None => {}
            }
        }
    }
    if words.len() >= 8 {
        rule.application = [words[6], words[7]]
            .into_iter()
            .find(|name| *name != "-")
            .map(|name| name.replace("%20", " "));
    }
    Some(rule)
}

/// `None`: no address. `Some(None)`: any.
fn network(text: &str) -> Option<Option<ipnet::IpNet>> {
    if matches!(text, "any" | "0.0.0.0/0" | "::/0") {
        return Some(None);
    }
    if let Ok(net) = text.parse() {
        return Some(Some(net));
    }
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Some(Some(address.into()));
    }
    // `192.168.0.0/255.255.0.0`
    let (address, mask) = text.split_once('/')?;
    ipnet::IpNet::with_netmask(address.parse().ok()?, mask.parse().ok()?)
        .ok()
        .map(Some)
}

fn unhex(hex: &str) -> Option<String> {
    if hex.is_empty() || !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        return None;
    }
    let bytes: Option<Vec<u8>> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
        .collect();
    Some(String::from_utf8_lossy(&bytes?).into_owned())
}

/// Lines of `now` that `shipped` has not, comments and blank lines left out; each as often as it
/// occurs more than shipped.
fn foreign(now: &str, shipped: &str) -> Vec<String> {
    let lines = |text: &str| {
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect::<Vec<_>>()
    };
    let known: std::collections::BTreeSet<String> = lines(shipped).into_iter().collect();
    let mut seen = BTreeMap::<String, usize>::new();
    lines(now)
        .into_iter()
        .filter(|line| {
            let count = seen.entry(line.clone()).or_default();
            *count += 1;
            // COMMIT and the table lines come once for each table; a rule twice is a copy.
            !known.contains(line) || (*count > 1 && line.starts_with("-A"))
        })
        .take(10_000)
        .collect()
}

/// Whether the kernel's INPUT chain really leads to UFW's chains, in IPv4 and, where `ipv6`, in
/// IPv6 too. `None` when there were no rules to look at for want of permission.
pub(super) fn loaded(rules: &Ruleset, ipv6: bool) -> bool {
    let family = |family: Family, prefix: &str| {
        let wanted = format!("{prefix}-before-input");
        rules
            .tables
            .iter()
            .filter(|table| table.family == family && table.name == "filter" && !table.dormant)
            .any(|table| {
                table
                    .chain(&wanted)
                    .is_some_and(|chain| !chain.rules.is_empty())
                    && table
                        .chains
                        .iter()
                        .filter(|chain| {
                            chain
                                .base
                                .as_ref()
                                .is_some_and(|base| base.hook == NfHook::Input)
                        })
                        .flat_map(|chain| &chain.rules)
                        .flat_map(|rule| &rule.statements)
                        .any(|statement| {
                            matches!(
                                statement,
                                Statement::Verdict(
                                    RuleVerdict::Jump { chain } | RuleVerdict::Goto { chain }
                                ) if *chain == wanted
                            )
                        })
            })
    };
    family(Family::Ip, "ufw") && (!ipv6 || family(Family::Ip6, "ufw6"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: UfwRule) {
        let ipv6 = expected.ipv6;
        let rules = user_rules(&format!("*filter\n{line}\n-A x -j y\n"), ipv6);
        assert_eq!(rules, [expected], "{line}");
    }

    fn rule(action: &str, proto: &str, port: &str) -> UfwRule {
        UfwRule {
            action: action.to_owned(),
            direction: "in".to_owned(),
            proto: proto.to_owned(),
            port: port.to_owned(),
            from_port: "any".to_owned(),
            ..UfwRule::default()
        }
    }

    #[test]
    fn tuples() {
        check(
            "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in",
            rule("allow", "tcp", "22"),
        );
        check(
            "### tuple ### limit tcp 22 ::/0 any ::/0 in",
            UfwRule {
                ipv6: true,
                ..rule("limit", "tcp", "22")
            },
        );
        check(
            "### tuple ### allow any 11434 0.0.0.0/0 any 192.168.1.0/24 in comment=4c414e20e29c93",
            UfwRule {
                from: Some("192.168.1.0/24".parse().unwrap()),
                comment: Some("LAN ✓".to_owned()),
                ..rule("allow", "any", "11434")
            },
        );
        check(
            "### tuple ### allow_log-all udp 60000:61000 10.0.0.5 53 10.1.1.1 in_eth0",
            UfwRule {
                to: Some("10.0.0.5/32".parse().unwrap()),
                from: Some("10.1.1.1/32".parse().unwrap()),
                from_port: "53".to_owned(),
                interface_in: Some("eth0".to_owned()),
                ..rule("allow", "udp", "60000:61000")
            },
        );
        check(
            "### tuple ### route:deny tcp 80,443 0.0.0.0/0 any 0.0.0.0/0 in_br-1_a!out_eth0.5",
            UfwRule {
                route: true,
                interface_in: Some("br-1_a".to_owned()),
                interface_out: Some("eth0.5".to_owned()),
                ..rule("deny", "tcp", "80,443")
            },
        );
        check(
            "### tuple ### reject tcp any 0.0.0.0/0 any 0.0.0.0/0 out_wg0",
            UfwRule {
                direction: "out".to_owned(),
                interface_out: Some("wg0".to_owned()),
                ..rule("reject", "tcp", "any")
            },
        );
        check(
            "### tuple ### allow tcp 80,443 0.0.0.0/0 any 0.0.0.0/0 Nginx%20Full - in",
            UfwRule {
                application: Some("Nginx Full".to_owned()),
                ..rule("allow", "tcp", "80,443")
            },
        );
        // The format of ufw before 0.30 had no direction.
        check(
            "### tuple ### deny udp 53 0.0.0.0/0 any 192.168.0.0/255.255.0.0",
            UfwRule {
                from: Some("192.168.0.0/16".parse().unwrap()),
                ..rule("deny", "udp", "53")
            },
        );
    }

    #[test]
    fn malformed_tuples_are_skipped_as_ufw_does() {
        for line in [
            "",
            " allow tcp 22",
            " allow tcp 22 nowhere any 0.0.0.0/0 in",
            " allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 sideways_eth0",
            " allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 a b in too many",
        ] {
            assert_eq!(user_rules(&format!("### tuple ###{line}"), false), []);
        }
        let odd = user_rules(
            "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=zz",
            false,
        );
        assert_eq!(odd, [rule("allow", "tcp", "22")]);
    }

    #[test]
    fn settings_as_a_shell_reads_them() {
        let map = settings("# X=1\nA=\"b c\" # d\n B=no #x\nA='e'\nC=\nnothing\n");
        let pairs: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{v}")).collect();
        assert_eq!(pairs, ["A:e", "B:no", "C:"]);
    }

    #[test]
    fn foreign_lines_are_those_that_the_package_has_not() {
        let shipped = "# a\n*filter\n:ufw-x - [0:0]\n-A ufw-x -j ACCEPT\nCOMMIT\n";
        let now = "# b\n*filter\n:ufw-x - [0:0]\n-A  ufw-x -j ACCEPT\n-A INPUT -p tcp --dport 11434 -j DROP\n-A ufw-x -j ACCEPT\nCOMMIT\n*nat\nCOMMIT\n";
        assert_eq!(
            foreign(now, shipped),
            [
                "-A INPUT -p tcp --dport 11434 -j DROP",
                "-A ufw-x -j ACCEPT",
                "*nat"
            ]
        );
        assert!(foreign(shipped, shipped).is_empty());
    }

    /// The kernel's chains of a host: (family, chain, jumps to).
    fn rules(chains: &[(Family, &str, &str)]) -> Ruleset {
        let mut rules = Ruleset::default();
        for family in [Family::Ip, Family::Ip6] {
            let mut table = reach::ir::Table::new(family, "filter", reach::Backend::IptablesNft);
            for (_, name, target) in chains.iter().filter(|(f, _, _)| *f == family) {
                let mut chain =
                    reach::ir::Chain::new(*name, reach::ir::Base::xtables("filter", name));
                chain.rules.push(reach::ir::Rule {
                    statements: vec![Statement::Verdict(RuleVerdict::Jump {
                        chain: (*target).to_owned(),
                    })],
                    ..reach::ir::Rule::default()
                });
                table.chains.push(chain);
            }
            rules.tables.push(table);
        }
        rules
    }

    #[test]
    fn loaded_means_that_input_leads_there() {
        let v4 = [
            (Family::Ip, "INPUT", "ufw-before-input"),
            (Family::Ip, "ufw-before-input", "x"),
        ];
        let v6 = [
            (Family::Ip6, "INPUT", "ufw6-before-input"),
            (Family::Ip6, "ufw6-before-input", "x"),
        ];
        let both = [v4, v6].concat();
        assert!(loaded(&rules(&both), true));
        assert!(loaded(&rules(&v4), false));
        assert!(!loaded(&rules(&v4), true));
        assert!(!loaded(&rules(&[]), false));
        // Docker-UFW row 30: the chains are there, the jump is gone.
        assert!(!loaded(&rules(&both[1..]), true));
        // The jump is there, the chain is empty.
        assert!(!loaded(&rules(&v4[..1]), false));
    }
}
