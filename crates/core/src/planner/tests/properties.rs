//! Every policy on every starting state: safe order, nobody shut out, settled after one apply.

use super::*;
use crate::planner::grants::{Grant, grants};
use ipnet::IpNet;
use proptest::prelude::*;
use std::net::IpAddr;

fn sources() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("\"anywhere\"".to_owned()),
        1 => Just("\"192.168.1.0/24\"".to_owned()),
        1 => Just("[\"192.0.2.0/24\", \"10.0.0.0/8\"]".to_owned()),
        1 => Just("[\"fd42:1::/64\", \"192.0.2.7\"]".to_owned()),
        1 => Just("[\"lan\", \"192.0.2.7\"]".to_owned()),
        1 => Just("[\"192.0.2.1-192.0.2.9\", \"internet\"]".to_owned()),
    ]
}

fn policies() -> impl Strategy<Value = String> {
    let allow = (
        prop::sample::subsequence(vec!["443", "8080", "\"6000-6003\"", "53"], 0..4),
        sources(),
        any::<bool>(),
        any::<bool>(),
    );
    (sources(), any::<bool>(), allow, 0..4_u8, 0..3_u8, any::<bool>()).prop_map(
        |(ssh, limit, (ports, from, slow, udp), service, bans, reject)| {
            let mut text = format!(
                "version = 1\n[incoming]\ndefault = \"{}\"\n[[allow]]\nport = \"ssh\"\nfrom = {ssh}\nrate_limit = {limit}\n",
                if reject { "reject" } else { "deny" }
            );
            for port in ports {
                let udp = udp && port == "53";
                text += &format!(
                    "[[allow]]\nport = {port}\nproto = \"{}\"\nfrom = {from}\nrate_limit = {}\n",
                    if udp { "udp" } else { "tcp" },
                    slow && !udp
                );
            }
            match service {
                0 => {}
                1 => text += "[[service]]\nkind = \"ollama\"\nreach = \"loopback\"\n",
                2 => text += "[[service]]\nkind = \"ollama\"\nreach = \"gateway\"\n",
                _ => text += "[[service]]\nkind = \"ollama\"\nreach = [\"192.168.1.0/24\"]\n",
            }
            match bans {
                0 => text += "[bans]\nssh = false\n",
                1 => text += "[bans]\nnever = [\"admin\", \"lan\"]\n",
                _ => {}
            }
            text
        },
    )
}

fn user_rules() -> impl Strategy<Value = Vec<UfwRule>> {
    let rule = (
        prop::sample::select(vec!["allow", "limit", "deny", "reject"]),
        prop::sample::select(vec!["any", "tcp", "udp"]),
        prop::sample::select(vec!["22", "443", "80,443", "8080", "11434", "any", "20:30"]),
        prop::sample::select(vec![
            None,
            Some("192.168.1.0/24"),
            Some("192.0.2.0/30"),
            Some("203.0.113.5/32"),
        ]),
        prop::sample::select(vec![None, None, None, Some("eth0")]),
        prop::sample::select(vec!["", "", "portcullis: old", "mine"]),
        any::<bool>(),
    );
    prop::collection::vec(rule, 0..5).prop_map(|rules| {
        let mut out: Vec<UfwRule> = Vec::new();
        for (action, proto, port, from, interface, comment, application) in rules {
            for ipv6 in [false, true] {
                let from: Option<IpNet> = from.map(|n| n.parse().unwrap());
                if from.is_some() && ipv6 {
                    continue;
                }
                let rule = UfwRule {
                    number: 0,
                    action: action.into(),
                    direction: "in".into(),
                    proto: proto.into(),
                    port: port.into(),
                    from,
                    from_port: "any".into(),
                    interface_in: interface.map(str::to_owned),
                    ipv6,
                    comment: Some(comment.to_owned()).filter(|c| !c.is_empty()),
                    application: (application && proto == "tcp" && port == "22")
                        .then(|| "OpenSSH".into()),
                    ..UfwRule::default()
                };
                // ufw keeps one rule of a kind.
                let key = |r: &UfwRule| {
                    (
                        r.proto.clone(),
                        r.port.clone(),
                        r.from,
                        r.interface_in.clone(),
                        r.ipv6,
                        r.application.clone(),
                    )
                };
                if !out.iter().any(|r| key(r) == key(&rule)) {
                    out.push(rule);
                }
            }
        }
        out.sort_by_key(|r| r.ipv6);
        for (n, rule) in out.iter_mut().enumerate() {
            rule.number = n as u32 + 1;
        }
        out
    })
}

fn hosts() -> impl Strategy<Value = Host> {
    (any::<bool>(), user_rules(), any::<[bool; 7]>()).prop_map(
        |(native, rules, [ufw, active, f2b, allow, systemd, nft, flushed])| {
            let mut host = if native { debian12() } else { docker() };
            host.systemd = systemd || native;
            if !nft {
                host.packages.insert("nftables".into(), None);
            }
            if !f2b {
                host.fail2ban = None;
                host.packages.insert("fail2ban".into(), None);
                host.packages.insert("python3-systemd".into(), None);
                host.units.remove("fail2ban.service");
            }
            if !ufw {
                host.ufw = None;
                host.packages.insert("ufw".into(), None);
            } else if let Some(ufw) = &mut host.ufw {
                ufw.rules = rules;
                ufw.enabled = active;
                ufw.loaded = Some(active && !flushed);
                if allow {
                    ufw.default_incoming = "allow".into();
                }
            }
            host
        },
    )
}

/// A source that the grant is for, of this IP version.
fn probe(grant: &Grant, ipv6: bool) -> IpAddr {
    match (grant.way.net, ipv6) {
        (Some(net), _) => net.addr(),
        (None, false) => "198.51.100.66".parse().unwrap(),
        (None, true) => "2001:db8:51::66".parse().unwrap(),
    }
}

/// The first rule of UFW that meets such a packet.
fn first<'a>(ufw: &'a Ufw, grant: &Grant, ipv6: bool) -> Option<&'a UfwRule> {
    let from = probe(grant, ipv6);
    ufw.rules.iter().find(|r| {
        r.ipv6 == ipv6
            && (r.proto == "any" || r.proto == grant.proto.to_string())
            && crate::planner::ufw::mentions(&r.port, grant.port)
            && r.from.is_none_or(|n| n.contains(&from))
            && r.interface_in
                .as_deref()
                .is_none_or(|i| grant.way.interface.as_deref().is_none_or(|g| g == i))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 1_000_000, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn plans_are_safe_and_settle(host in hosts(), text in policies(), prune in any::<bool>()) {
        let policy = policy(&text);
        let options = Options { prune, ..Options::default() };
        // Somebody is connected whom this policy does not admit: refused, and rightly.
        prop_assume!(make(&host, &policy, &options).is_ok());
        let plan = settled(&host, &policy, &options);

        let mut after = host.clone();
        for change in &plan.changes {
            model::apply(&mut after, &change.action);
        }
        let ufw = after.ufw.as_ref().unwrap();
        prop_assert!(ufw.enabled && ufw.default_incoming != "allow");
        for grant in grants(&host, &policy).unwrap() {
            for ipv6 in [false, true].into_iter().filter(|v6| grant.way.sees(*v6)) {
                let rule = first(ufw, &grant, ipv6);
                let deny = rule.is_none_or(|r| matches!(r.action.as_str(), "deny" | "reject"));
                // Only a narrower denial of the user may stand before what the policy allows.
                let narrow = rule.is_some_and(|r| r.from.is_some() || r.interface_in.is_some());
                // Or the operator has to decide, because going in front would lift such a denial.
                let asked = notes(&plan).contains("[ufw insert ");
                prop_assert!(!deny || narrow || asked, "{grant:?} meets {rule:?}\n{}", commands(&plan));
            }
        }
    }

    #[test]
    fn the_guard_depends_on_the_policy_alone(text in policies()) {
        let policy = policy(&text);
        let mut host = debian12();
        let Ok(first) = crate::planner::guard::ruleset(&host, &policy) else { return Ok(()) };
        host.ufw = None;
        host.sessions.clear();
        prop_assert_eq!(first, crate::planner::guard::ruleset(&host, &policy).unwrap());
    }
}
