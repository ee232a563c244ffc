//! Situations one by one: what the plan does and says.

use super::*;
use crate::host::UfwRule;
use crate::planner::files::FILTER_UVICORN;
use crate::planner::{
    ACTION_FILE, GUARD_FILE, GUARD_UNIT_FILE, JAIL_FILE, JAIL_LOCAL, Refusal, guard,
};
use reach::Backend;
use reach::ir::{Chain, Family, Table};

const OLLAMA_DROPIN: &str = "/etc/systemd/system/ollama.service.d/zz-portcullis.conf";

fn rule(number: u32, action: &str, port: &str, proto: &str) -> UfwRule {
    UfwRule {
        number,
        action: action.into(),
        direction: "in".into(),
        proto: proto.into(),
        port: port.into(),
        from_port: "any".into(),
        ..UfwRule::default()
    }
}

fn twins(rules: &[UfwRule]) -> Vec<UfwRule> {
    let v6 = rules.iter().filter(|r| r.from.is_none()).map(|r| UfwRule {
        ipv6: true,
        number: r.number + rules.len() as u32,
        ..r.clone()
    });
    rules.iter().cloned().chain(v6).collect()
}

fn with_rules(rules: &[UfwRule]) -> Host {
    let mut host = debian12();
    let ufw = host.ufw.as_mut().unwrap();
    ufw.rules = twins(rules);
    ufw.enabled = true;
    ufw.loaded = Some(true);
    host
}

/// The `ufw` commands of a plan, without their reasons.
fn ufw_commands(plan: &Plan) -> Vec<String> {
    commands(plan)
        .lines()
        .filter(|l| l.starts_with("ufw "))
        .map(|l| l.split("  #").next().unwrap().to_owned())
        .collect()
}

#[track_caller]
fn check_ufw(host: &Host, options: &Options, expect: &[&str]) -> Plan {
    let plan = settled(host, &Policy::builtin(), options);
    assert_eq!(ufw_commands(&plan), expect, "{}", notes(&plan));
    plan
}

const CALM: Options = Options {
    prune: false,
    keep_connections: false,
    edit_compose: false,
};
const PRUNE: Options = Options {
    prune: true,
    keep_connections: false,
    edit_compose: false,
};

#[test]
fn the_guides_failure_mode_becomes_its_end_state() {
    let plan = settled(&debian12(), &Policy::builtin(), &CALM);
    insta::assert_snapshot!("guide_plan", commands(&plan));
    assert_eq!(notes(&plan), "");
}

#[test]
fn a_bare_debian_gets_its_packages_first() {
    let mut host = debian12();
    host.ufw = None;
    host.fail2ban = None;
    for name in PACKAGES {
        host.packages.insert((*name).into(), None);
    }
    host.units.remove("fail2ban.service");
    let plan = settled(&host, &Policy::builtin(), &CALM);
    assert!(commands(&plan).starts_with(
        "apt-get install --no-install-recommends conntrack fail2ban nftables python3-systemd ufw  #"
    ));
}

#[test]
fn published_ports_are_closed_and_the_line_to_change_is_shown() {
    let plan = settled(&docker(), &Policy::builtin(), &CALM);
    insta::assert_snapshot!("docker_notes", notes(&plan));
    assert!(commands(&plan).ends_with(
        "cut open connections to 8265, 11434  # whoever is connected there already would stay connected: rules only meet new connections"
    ));
}

#[test]
fn what_the_guard_cannot_do_is_said() {
    let mut host = docker();
    host.engines[0].networks = vec![Network {
        name: "lan".into(),
        driver: "macvlan".into(),
        ..Network::default()
    }];
    host.engines[0].containers[0].addresses = vec![ContainerAddress {
        network: "lan".into(),
        address: "192.168.1.77".parse().unwrap(),
    }];
    let limited = policy(
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[[allow]]\nport = 11434\nfrom = \"anywhere\"\nrate_limit = true\n",
    );
    let notes = notes(&settled(&host, &limited, &CALM));
    assert!(
        notes.contains("192.168.1.77 by a macvlan network"),
        "{notes}"
    );
    assert!(
        notes.contains("rate limit holds for the host's own ports only"),
        "{notes}"
    );
}

#[test]
fn ufw_rules_of_the_user_are_met_where_they_stand() {
    let limit = rule(1, "limit", "22", "tcp");
    let web = rule(2, "allow", "443", "tcp");
    // Everything is there.
    check_ufw(&with_rules(&[limit.clone(), web.clone()]), &CALM, &[]);
    // `ufw allow 22/tcp`: replaced in its place.
    check_ufw(
        &with_rules(&[rule(1, "allow", "22", "tcp"), web.clone()]),
        &CALM,
        &["ufw limit 22/tcp"],
    );
    // `ufw allow 22` and `ufw allow OpenSSH` would decide first.
    check_ufw(
        &with_rules(&[rule(1, "allow", "22", "any"), web.clone()]),
        &CALM,
        &["ufw prepend limit 22/tcp"],
    );
    let profile = UfwRule {
        application: Some("OpenSSH".into()),
        ..rule(1, "allow", "22", "tcp")
    };
    check_ufw(
        &with_rules(&[profile.clone(), web.clone()]),
        &CALM,
        &["ufw prepend limit 22/tcp"],
    );
    // Ours is there, but behind: ufw would skip the prepend, so it is taken out first.
    check_ufw(
        &with_rules(&[profile, rule(2, "limit", "22", "tcp"), web.clone()]),
        &CALM,
        &["ufw delete limit 22/tcp", "ufw prepend limit 22/tcp"],
    );
    // `ufw limit OpenSSH` is as good as ours.
    let profile = UfwRule {
        application: Some("OpenSSH".into()),
        ..limit.clone()
    };
    check_ufw(&with_rules(&[profile, web.clone()]), &CALM, &[]);
    // A range or a list that covers the port.
    check_ufw(
        &with_rules(&[limit.clone(), rule(2, "allow", "80,443", "tcp")]),
        &CALM,
        &[],
    );
    // A denial of everybody in front.
    check_ufw(
        &with_rules(&[rule(1, "deny", "443", "any"), limit.clone()]),
        &CALM,
        &["ufw prepend allow 443/tcp"],
    );
    // Half of it: made while IPV6=no.
    let mut host = with_rules(&[limit.clone(), web.clone()]);
    host.ufw.as_mut().unwrap().rules.retain(|r| !r.ipv6);
    check_ufw(&host, &CALM, &["ufw limit 22/tcp", "ufw allow 443/tcp"]);
}

#[test]
fn a_ban_of_the_users_keeps_its_force() {
    let ban = UfwRule {
        from: Some("198.51.100.0/24".parse().unwrap()),
        ..rule(1, "deny", "any", "any")
    };
    let host = with_rules(&[
        ban.clone(),
        rule(2, "limit", "22", "tcp"),
        rule(3, "allow", "443", "tcp"),
    ]);
    check_ufw(&host, &CALM, &[]);
    // An allow that shadows our limit stands behind the ban: going in front of both would lift it.
    let host = with_rules(&[
        ban,
        rule(2, "allow", "22", "any"),
        rule(3, "allow", "443", "tcp"),
    ]);
    let plan = make(&host, &Policy::builtin(), &CALM).unwrap();
    assert!(!commands(&plan).contains("prepend"), "{}", commands(&plan));
    assert!(
        notes(&plan).contains("[ufw insert 2 limit 22/tcp]"),
        "{}",
        notes(&plan)
    );
}

#[test]
fn rules_that_the_policy_does_not_mention_are_kept_and_named_or_pruned() {
    let rules = [
        rule(1, "limit", "22", "tcp"),
        rule(2, "allow", "443", "tcp"),
        rule(3, "allow", "8080", "tcp"),
        rule(4, "allow", "11434", "any"),
        UfwRule {
            comment: Some("portcullis: old".into()),
            ..rule(5, "allow", "9000", "tcp")
        },
    ];
    let plan = check_ufw(&with_rules(&rules), &CALM, &["ufw delete allow 9000/tcp"]);
    insta::assert_snapshot!("kept_rules_notes", notes(&plan));
    check_ufw(
        &with_rules(&rules),
        &PRUNE,
        &["ufw delete allow 8080/tcp", "ufw delete allow 9000/tcp"],
    );
}

#[test]
fn sources_and_zones_become_rules_of_both_mechanisms() {
    let policy = policy(
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n\
         [[allow]]\nport = 8080\nfrom = [\"192.168.1.0/24\", \"10.1.2.3\"]\ncomment = \"web (team A)\"\n\
         [[allow]]\nport = 9090\nfrom = \"lan\"\n\
         [[service]]\nkind = \"ollama\"\nreach = [\"192.168.1.0/24\"]\n",
    );
    let plan = settled(&debian12(), &policy, &CALM);
    insta::assert_snapshot!("sources_ufw", ufw_commands(&plan).join("\n"));
    let guard = file(&plan, GUARD_FILE);
    let published = guard.split("chain published {").nth(1).unwrap();
    insta::assert_snapshot!(
        "sources_guard",
        published.split('}').take(6).collect::<Vec<_>>().join("}")
    );
}

#[test]
fn the_guards_text() {
    let guard = guard::ruleset(&debian12(), &Policy::builtin()).unwrap();
    insta::assert_snapshot!("guard_text", guard);
}

#[test]
fn the_jail_has_the_policys_values_and_spares_the_operator() {
    let plan = settled(&debian12(), &Policy::builtin(), &CALM);
    insta::assert_snapshot!("jail", file(&plan, JAIL_FILE));
    // The action is one file of the repository, with the policy's part filled in.
    let action = file(&plan, ACTION_FILE);
    assert!(action.contains("PREFIX6 = 128\n"), "{action}");
    assert!(
        action.contains("SETS = {\"sshd\": \"sshd\", \"recidive\": \"recidive\"}\n"),
        "{action}"
    );
    for left in ["@PREFIX6@", "@SETS@"] {
        assert!(!action.contains(left), "{action}");
    }
}

const MORE_JAILS: &str = "
version = 1
[[allow]]
port = \"ssh\"
from = \"anywhere\"
[bans]
recidive = false
nginx_401 = { max_retry = 7 }
open_webui = true
uvicorn = { unit = \"vllm.service\", ban_time = \"2h\" }
ipv6_prefix = 64
";

#[test]
fn more_jails_each_with_its_log_and_filter() {
    let mut host = debian12();
    host.web_logs = vec!["/var/log/nginx/access.log".into()];
    let wanted = policy(MORE_JAILS);
    let plan = settled(&host, &wanted, &CALM);
    insta::assert_snapshot!("more_jails", file(&plan, JAIL_FILE));
    assert!(file(&plan, FILTER_UVICORN).contains("failregex"));
    assert!(file(&plan, ACTION_FILE).contains("PREFIX6 = 64\n"));
    assert!(
        file(&plan, GUARD_FILE).contains("ip6 saddr & ffff:ffff:ffff:ffff:: @nginx_4016 drop"),
        "{}",
        file(&plan, GUARD_FILE)
    );
    // Without the log fail2ban would not start at all.
    host.web_logs.clear();
    let plan = settled(&host, &wanted, &CALM);
    let text = file(&plan, JAIL_FILE);
    assert!(
        !text.contains("nginx") && text.contains("[uvicorn]"),
        "{text}"
    );
    assert!(notes(&plan).contains("nginx-401"), "{}", notes(&plan));
}

#[test]
fn a_jail_that_the_policy_drops_takes_its_filter_along() {
    let mut host = debian12();
    for change in settled(&host, &policy(MORE_JAILS), &CALM).changes {
        model::apply(&mut host, &change.action);
    }
    let text = commands(&settled(&host, &Policy::builtin(), &CALM));
    assert!(text.contains(&format!("rm {FILTER_UVICORN}")), "{text}");
    assert!(text.contains("systemctl restart fail2ban"), "{text}");
}

#[test]
fn a_copied_jail_conf_is_reduced_to_what_differs() {
    let mut host = debian12();
    let setting = |section: &str, key: &str, value: &str| Setting {
        section: section.into(),
        key: key.into(),
        value: value.into(),
    };
    let fail2ban = host.fail2ban.as_mut().unwrap();
    fail2ban.jail_local_is_copy = true;
    fail2ban.jail_local_differs = vec![
        setting("DEFAULT", "destemail", "ops@example.org"),
        setting("DEFAULT", "action", "%(action_)s\n%(mta)s[x=1]"),
        setting("vsftpd", "enabled", "true"),
    ];
    let plan = settled(&host, &Policy::builtin(), &CALM);
    assert!(
        file(&plan, JAIL_LOCAL).ends_with(
            "\n[DEFAULT]\ndestemail = ops@example.org\naction = %(action_)s\n    %(mta)s[x=1]\n\n[vsftpd]\nenabled = true\n"
        ),
        "{}",
        file(&plan, JAIL_LOCAL)
    );
}

#[test]
fn an_operator_of_an_earlier_apply_stays_spared() {
    let mut host = debian12();
    let first = settled(&host, &Policy::builtin(), &CALM);
    for change in &first.changes {
        model::apply(&mut host, &change.action);
    }
    host.sessions.clear();
    assert!(make(&host, &Policy::builtin(), &CALM).unwrap().is_empty());
    let mut session = debian12().sessions.remove(0);
    session.peer = "::ffff:198.51.100.9".parse().unwrap();
    host.sessions = vec![session];
    let plan = make(&host, &Policy::builtin(), &CALM).unwrap();
    assert!(file(&plan, JAIL_FILE).contains("ignoreip = 127.0.0.0/8 192.0.2.7 198.51.100.9 ::1\n"));
}

#[test]
fn without_systemd_the_jail_reads_the_log_file_or_says_that_there_is_none() {
    let mut host = docker();
    host.systemd = false;
    let plan = make(&host, &Policy::builtin(), &CALM).unwrap();
    assert!(notes(&plan).contains("nobody will be banned"));
    host.fail2ban.as_mut().unwrap().sshd_log = Some("/var/log/auth.log".into());
    let plan = make(&host, &Policy::builtin(), &CALM).unwrap();
    assert!(file(&plan, JAIL_FILE).contains("backend = auto\nlogpath = /var/log/auth.log\n"));
}

#[test]
fn bans_follow_a_guard_that_was_lost() {
    let mut host = debian12();
    for change in settled(&host, &Policy::builtin(), &CALM).changes {
        model::apply(&mut host, &change.action);
    }
    host.fail2ban.as_mut().unwrap().jails[0].banned = vec!["198.51.100.66".parse().unwrap()];
    host.rules = Default::default();
    let plan = make(&host, &Policy::builtin(), &CALM).unwrap();
    let text = commands(&plan);
    assert!(text.contains("load table inet portcullis"), "{text}");
    assert!(
        text.contains("systemctl restart fail2ban.service  # fail2ban puts its bans"),
        "{text}"
    );
}

/// Whoever was connected at some apply stays exempt from bans; that must not go unseen.
#[test]
fn who_is_spared_since_an_earlier_apply_is_named() {
    let mut host = debian12();
    for change in settled(&host, &Policy::builtin(), &CALM).changes {
        model::apply(&mut host, &change.action);
    }
    let told = |host: &Host| notes(&make(host, &Policy::builtin(), &CALM).unwrap());
    assert!(!told(&host).contains("earlier apply"), "{}", told(&host));
    let spared = &mut host.fail2ban.as_mut().unwrap().jails[0].ignore_ip;
    spared.push("198.51.100.77".into());
    assert!(told(&host).contains("198.51.100.77"), "{}", told(&host));
    assert!(told(&host).contains("earlier apply"), "{}", told(&host));
}

#[test]
fn a_guard_that_somebody_changed_is_loaded_again() {
    let mut host = debian12();
    for change in settled(&host, &Policy::builtin(), &CALM).changes {
        model::apply(&mut host, &change.action);
    }
    let reloads = |change: &dyn Fn(&mut Table)| {
        let mut host = host.clone();
        change(&mut host.rules.tables[0]);
        commands(&make(&host, &Policy::builtin(), &CALM).unwrap())
            .contains("load table inet portcullis")
    };
    assert!(!reloads(&|_| {}));
    assert!(reloads(&|t| t.dormant = true));
    assert!(reloads(&|t| t.sets.clear()));
    assert!(reloads(&|t| {
        t.chains.retain(|c| c.name != "published");
    }));
    assert!(reloads(&|t| {
        t.chains[1].rules.pop();
    }));
    assert!(reloads(&|t| {
        let last = t.chains[1].rules.last().unwrap().clone();
        t.chains[1].rules.insert(0, last);
    }));
    assert!(reloads(&|t| {
        let forward = t.chains.iter_mut().find(|c| c.name == "forward").unwrap();
        forward.base.as_mut().unwrap().priority = 10;
    }));
    assert!(reloads(&|t| {
        t.chains[0].rules[0].comment = Some("portcullis 0000000000000000".into());
    }));
}

#[test]
fn ollama_is_told_where_to_listen() {
    let mut host = debian12();
    let plan = settled(&host, &Policy::builtin(), &CALM);
    assert!(
        file(&plan, OLLAMA_DROPIN)
            .ends_with("[Service]\nEnvironment=\"OLLAMA_HOST=127.0.0.1:11434\"\n")
    );
    // On a port of its own.
    let unit = host.units.get_mut("ollama.service").unwrap();
    unit.environment
        .insert("OLLAMA_HOST".into(), "0.0.0.0:8800".into());
    let plan = settled(&host, &Policy::builtin(), &CALM);
    assert!(file(&plan, OLLAMA_DROPIN).contains("127.0.0.1:8800"));
    // Already there by the operator's own hand: nothing to do.
    let unit = host.units.get_mut("ollama.service").unwrap();
    unit.environment
        .insert("OLLAMA_HOST".into(), "127.0.0.1".into());
    host.sockets[1].address = "127.0.0.1".parse().unwrap();
    let plan = settled(&host, &Policy::builtin(), &CALM);
    assert!(!commands(&plan).contains("ollama"), "{}", commands(&plan));
    // Not running: told, and not started.
    let mut host = debian12();
    let unit = host.units.get_mut("ollama.service").unwrap();
    unit.environment
        .insert("OLLAMA_HOST".into(), "0.0.0.0".into());
    unit.active = "inactive".into();
    host.sockets.remove(1);
    let plan = settled(&host, &Policy::builtin(), &CALM);
    assert!(commands(&plan).contains(OLLAMA_DROPIN));
    assert!(
        !commands(&plan).contains("restart ollama"),
        "{}",
        commands(&plan)
    );
}

#[test]
fn a_policy_that_opens_ollama_takes_the_drop_in_away() {
    let mut host = debian12();
    for change in settled(&host, &Policy::builtin(), &CALM).changes {
        model::apply(&mut host, &change.action);
    }
    let open = policy(
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[[service]]\nkind = \"ollama\"\nreach = [\"192.168.1.0/24\"]\n",
    );
    let plan = make(&host, &open, &CALM).unwrap();
    let text = commands(&plan);
    assert!(text.contains(&format!("rm {OLLAMA_DROPIN}")), "{text}");
    assert!(text.contains("systemctl restart ollama.service"), "{text}");
    assert!(
        ufw_commands(&plan)
            .contains(&"ufw allow from 192.168.1.0/24 to any port 11434 proto tcp".to_owned())
    );
}

#[test]
fn the_folk_fix_is_explained_with_its_copies() {
    let mut host = with_rules(&[
        rule(1, "limit", "22", "tcp"),
        rule(2, "allow", "443", "tcp"),
    ]);
    let line = "-A INPUT -p tcp --dport 11434 -j DROP";
    host.ufw.as_mut().unwrap().foreign_lines = vec![("/etc/ufw/after.rules".into(), line.into())];
    let mut table = Table::new(Family::Ip, "filter", Backend::IptablesNft);
    let mut input = Chain::new("INPUT", None);
    for text in [line, line, "-A INPUT -p tcp --dport 114345 -j DROP"] {
        input.rules.push(reach::ir::Rule {
            text: text.into(),
            ..Default::default()
        });
    }
    table.chains.push(input);
    host.rules.tables.push(table);
    let plan = make(&host, &Policy::builtin(), &CALM).unwrap();
    let notes = notes(&plan);
    assert!(notes.contains("2 copies"), "{notes}");
    assert!(
        notes.contains("[iptables -D INPUT -p tcp --dport 11434 -j DROP]"),
        "{notes}"
    );
}

#[track_caller]
fn refused(host: &Host, policy: &Policy, words: &str) -> Refusal {
    let refusal = make(host, policy, &CALM).expect_err("refused");
    assert!(refusal.to_string().contains(words), "{refusal}");
    assert!(!refusal.hint().is_empty());
    refusal
}

#[test]
fn plans_that_could_lock_out_or_guess_are_refused() {
    let builtin = Policy::builtin();
    let mut host = debian12();
    host.privileged = false;
    refused(&host, &builtin, "root");

    let mut host = debian12();
    host.unseen.push(Unseen {
        what: "packet filter".into(),
        why: "nft is not there".into(),
        uncertain: Uncertain::Verdicts,
    });
    refused(&host, &builtin, "packet filter could not be read");

    let narrow = policy("version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"10.0.0.0/8\"\n");
    refused(&debian12(), &narrow, "connected by SSH now");

    let mut host = debian12();
    host.sessions[0].peer = "2001:db8:2::7".parse().unwrap();
    host.ufw.as_mut().unwrap().ipv6 = false;
    refused(&host, &builtin, "IPV6=no");

    let mut host = debian12();
    host.packages.clear();
    host.ufw = None;
    refused(&host, &builtin, "no Debian");

    let wide = policy(
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[[allow]]\nport = \"6000-7000\"\nfrom = \"anywhere\"\n",
    );
    refused(&debian12(), &wide, "6000-7000");

    let vpn = policy(
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[[allow]]\nport = 8080\nfrom = \"vpn\"\n",
    );
    refused(&debian12(), &vpn, "zone vpn");
}

/// docker-ufw.md, case 30: `iptables -F INPUT`, then `ufw enable`: policy DROP and no way in.
#[test]
fn ufw_chains_without_a_jump_to_them_are_refused() {
    let mut host = debian12();
    let mut table = Table::new(Family::Ip, "filter", Backend::IptablesNft);
    table.chains = vec![
        Chain::new("INPUT", None),
        Chain::new("ufw-before-input", None),
    ];
    host.rules.tables = vec![table];
    let refusal = refused(&host, &Policy::builtin(), "INPUT does not lead to them");
    assert!(
        refusal
            .hint()
            .contains("iptables -A INPUT -j ufw-before-input")
    );
}

/// `nft flush ruleset` under an active UFW: the `ufw` command fails until its chains are back.
#[test]
fn a_flushed_ufw_is_enabled_first_when_its_rules_admit_ssh() {
    let mut host = with_rules(&[rule(1, "allow", "22", "tcp")]);
    host.ufw.as_mut().unwrap().loaded = Some(false);
    check_ufw(
        &host,
        &CALM,
        &["ufw enable", "ufw limit 22/tcp", "ufw allow 443/tcp"],
    );
    host.ufw.as_mut().unwrap().rules.clear();
    refused(&host, &Policy::builtin(), "none for SSH");
}

#[test]
fn the_guards_unit_comes_after_what_flushes_and_before_what_forwards() {
    let plan = settled(&debian12(), &Policy::builtin(), &CALM);
    let unit = file(&plan, GUARD_UNIT_FILE);
    for line in ["After=", "Before="] {
        assert!(unit.contains(line));
    }
    let before = unit
        .lines()
        .find(|l| l.starts_with("Before=network-pre.target"))
        .unwrap();
    assert!(before.contains("docker.service"));
    assert!(
        unit.lines()
            .any(|l| l.starts_with("After=") && l.contains("nftables.service"))
    );
}

#[test]
fn hostile_names_stay_out_of_rules_and_are_shown_harmless() {
    let mut host = docker();
    host.engines[0].containers[0].name = "x\n\u{1b}[2J".into();
    host.engines[0].containers[0].compose = None;
    let plan = make(&host, &Policy::builtin(), &CALM).unwrap();
    assert!(
        notes(&plan).contains("container x\\u{a}\\u{1b}[2J"),
        "{}",
        notes(&plan)
    );

    let mut host = debian12();
    let mut evil = interface(9, "a\" accept;", &[]);
    evil.kind = Some("bridge".into());
    host.net.interfaces.push(evil);
    host.net.interfaces[1].master = Some(9);
    let guard = guard::ruleset(&host, &Policy::builtin()).unwrap();
    assert!(!guard.contains("a\" accept"), "{guard}");
    host.net.interfaces[1].master = None;
    host.net.interfaces[1].name = "eth1\"".into();
    let lan = policy(
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[[allow]]\nport = 8080\nfrom = \"lan\"\n",
    );
    refused(&host, &lan, "interface name");
}

/// A service that reads no variable gets its own command with one argument changed; the unit's file stays.
#[test]
fn vllm_is_told_where_to_listen_by_its_command() {
    let vllm = policy(
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[[service]]\nkind = \"vllm\"\nreach = \"loopback\"\n",
    );
    for (name, process) in [("vllm.service", "python3"), ("our-model.service", "vllm")] {
        let mut host = debian12();
        host.sockets.push(socket("0.0.0.0", 8000, process, name));
        host.files.insert(crate::planner::dropin(name), None);
        let start = "/opt/vllm/bin/vllm serve --host 0.0.0.0 Qwen/Qwen3-4B --port 8000";
        let fact = Unit {
            start: Some(start.into()),
            ..unit("active", "enabled")
        };
        host.units.insert(name.into(), fact.clone());
        let plan = settled(&host, &vllm, &CALM);
        assert_eq!(
            file(&plan, &crate::planner::dropin(name)),
            "# Written by portcullis: the policy keeps vLLM on this machine.\n[Service]\nExecStart=\nExecStart=/opt/vllm/bin/vllm serve Qwen/Qwen3-4B --port 8000 --host 127.0.0.1\n"
        );
        assert!(commands(&plan).contains(&format!("systemctl restart {name}")));
        // A command that a shell runs, or that was kept out of the facts, is shown and left.
        for start in [None, Some("/bin/sh -c vllm".to_owned())] {
            let fact = Unit {
                start,
                ..fact.clone()
            };
            host.units.insert(name.into(), fact);
            let plan = settled(&host, &vllm, &CALM);
            assert!(!commands(&plan).contains(name), "{}", commands(&plan));
            let said = plan
                .notes
                .iter()
                .any(|n| n.command.as_deref() == Some("--host 127.0.0.1"));
            assert!(said, "{:?}", plan.notes);
        }
    }
}

/// The engine can follow the guard: nothing in it is unknown, and it reads the verdicts that were meant.
/// Inside a container the uplink is a virtual cable like those of containers, and a VPN's client
/// writes the default route in halves.
#[test]
fn a_bridge_over_a_virtual_uplink_is_not_taken_for_containers() {
    let mut host = debian12();
    let mut bridge = interface(9, "br0", &["198.18.0.2/24"]);
    bridge.kind = Some("bridge".into());
    let mut cable = interface(10, "uplink", &[]);
    cable.kind = Some("veth".into());
    cable.master = Some(9);
    host.net.interfaces.extend([bridge, cable]);
    let own = |dst: &str, gateway: Option<&str>| {
        let mut host = host.clone();
        let mut route = host.net.routes[0].clone();
        route.dst = dst.parse().unwrap();
        for hop in &mut route.nexthops {
            hop.oif = 9;
            hop.gateway = gateway.map(|g| g.parse().unwrap());
        }
        host.net.routes.push(route);
        guard::own_bridges(&host).contains(&"br0".to_owned())
    };
    assert!(own("0.0.0.0/1", Some("198.18.0.1")));
    assert!(own("10.0.0.0/8", Some("198.18.0.1")));
    assert!(own("0.0.0.0/0", None));
    assert!(!own("198.18.0.0/24", None));
}

#[test]
fn the_engine_understands_the_guard() {
    let policy = policy(
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[[allow]]\nport = 8080\nfrom = [\"192.168.1.0/24\", \"10.1.2.3\", \"fd42:1::/64\"]\n[[allow]]\nport = 53\nproto = \"udp\"\nfrom = \"internet\"\n",
    );
    let mut host = debian12();
    let mut bridge = interface(9, "br0", &[]);
    bridge.kind = Some("bridge".into());
    host.net.interfaces.push(bridge);
    host.net.interfaces[1].master = Some(9);
    let text = guard::ruleset(&host, &policy).unwrap();
    // A listing has the table alone, without the commands before it.
    let listing = &text[text.find("table inet portcullis {").unwrap()..];
    let (rules, odd) = reach::parse::nft(listing);
    assert!(odd.is_empty(), "{odd:?}");
    let table = rules
        .table(Family::Inet, "portcullis", Backend::Nft)
        .expect("the table");
    for chain in &table.chains {
        for rule in &chain.rules {
            for statement in &rule.statements {
                let known = !matches!(
                    statement,
                    reach::ir::Statement::Unknown { .. }
                        | reach::ir::Statement::Match(reach::ir::Match::Unknown { .. })
                );
                assert!(known, "{rule:?}");
            }
        }
    }
    // Read back from its own text it is the guard that was wanted.
    host.rules = rules;
    assert!(guard::is_loaded(&host, &policy).unwrap());
}

/// Containers may use Ollama: it stays on loopback, and systemd listens on the bridge for it.
#[test]
fn ollama_for_containers_without_listening_everywhere() {
    let policy = policy(
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n\
         [[service]]\nkind = \"ollama\"\nreach = [\"containers\"]\n",
    );
    let mut host = debian12();
    host.net.interfaces.push(reach::Interface {
        index: 9,
        name: "docker0".into(),
        kind: Some("bridge".into()),
        up: true,
        addresses: vec![reach::InterfaceAddress {
            net: "172.17.0.1/16".parse().unwrap(),
            peer: None,
        }],
        ..reach::Interface::default()
    });
    host.units.insert(
        "ollama.service".into(),
        Unit {
            load: "loaded".into(),
            active: "active".into(),
            enabled: "enabled".into(),
            ..Unit::default()
        },
    );
    let plan = settled(&host, &policy, &CALM);
    let socket = file(&plan, crate::planner::bridge::SOCKET_FILE);
    assert!(
        socket.contains("ListenStream=172.17.0.1:11434\n"),
        "{socket}"
    );
    let commands = ufw_commands(&plan).join("\n");
    for rule in [
        "allow in on docker+ from any to any port 11434 proto tcp",
        "allow in on br-+ from 172.16.0.0/12 to any port 11434 proto tcp",
        "allow in on podman+ from any to any port 11434 proto tcp",
    ] {
        assert!(commands.contains(rule), "{commands}");
    }
    let published = file(&plan, GUARD_FILE);
    assert!(
        published.contains("iifname \"br-*\" ip saddr { 172.16.0.0/12 } meta l4proto tcp ct original proto-dst 11434 accept"),
        "{published}"
    );
    assert!(!published.contains("ct original proto-dst 11434 accept comment"));

    // Another policy later: the socket goes again.
    let mut after = host.clone();
    for change in &plan.changes {
        super::model::apply(&mut after, &change.action);
    }
    let plan = settled(&after, &Policy::builtin(), &CALM);
    let removed = plan.changes.iter().any(|c| {
        matches!(&c.action, Action::RemoveFile { path } if path == crate::planner::bridge::SOCKET_FILE)
    });
    assert!(removed, "{plan:?}");

    // Where a LAN hangs on a bridge of such a name, no pattern is used.
    host.net.interfaces.push(reach::Interface {
        index: 10,
        name: "br-lan".into(),
        kind: Some("bridge".into()),
        up: true,
        ..reach::Interface::default()
    });
    host.net.interfaces.push(reach::Interface {
        index: 11,
        name: "eth7".into(),
        up: true,
        master: Some(10),
        ..reach::Interface::default()
    });
    let plan = settled(&host, &policy, &CALM);
    let commands = ufw_commands(&plan).join("\n");
    assert!(!commands.contains("br-"), "{commands}");
}

/// A bridge made after the apply may carry a LAN: published ports ask who it is, and the addresses of
/// containers that are there are closed to it.
#[test]
fn a_bridge_made_later_gets_no_more_than_containers_do() {
    let mut host = debian12();
    host.engines = vec![Engine {
        kind: "docker".into(),
        networks: vec![Network {
            name: "bridge".into(),
            driver: "bridge".into(),
            bridge: Some("docker0".into()),
            ..Network::default()
        }],
        ..Engine::default()
    }];
    let text = guard::ruleset(&host, &Policy::builtin()).unwrap();
    let forward = text.split("chain forward {").nth(1).unwrap();
    let at = |rule: &str| {
        forward
            .find(rule)
            .unwrap_or_else(|| panic!("no {rule} in {forward}"))
    };
    let order = [
        "ct status dnat jump published",
        "meta iifkind \"bridge\" iifname \"docker0\" accept",
        "meta iifkind \"bridge\" oifname \"docker0\" drop",
        "meta iifkind \"bridge\" oifname \"podman*\" drop",
        "meta iifkind \"bridge\" iifname \"br-*\" accept",
        "meta iifkind \"bridge\" oifname \"br-*\" drop",
        "meta iifkind \"bridge\" accept\n",
    ];
    assert!(order.map(at).is_sorted(), "{forward}");
    // Networks come and go: the rules stay the same, and a plan stays empty.
    host.engines.clear();
    assert_eq!(guard::ruleset(&host, &Policy::builtin()).unwrap(), text);
}

/// A user may answer at his own engine's socket whatever he likes: no LAN becomes a container network, and no port
/// of others a service's.
#[test]
fn what_a_users_engine_says_opens_nothing() {
    let mut host = debian12();
    let policy = "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n\
                  [[service]]\nkind = \"ollama\"\nreach = [\"192.0.2.0/24\"]\n";
    let policy = Policy::parse("test", policy).unwrap();
    let zones = crate::zones::zones(&host);
    let links = host.net.interfaces.iter().map(|i| i.name.clone());
    let network = |bridge: String| Network {
        name: bridge.clone(),
        driver: "bridge".into(),
        bridge: Some(bridge),
        subnets: vec!["0.0.0.0/0".parse().unwrap()],
        ..Network::default()
    };
    let publish = Publish {
        proto: Proto::Tcp,
        host_ip: "0.0.0.0".parse().unwrap(),
        host_port: 5432,
        container_port: 11434,
    };
    host.engines = vec![Engine {
        kind: "podman".into(),
        rootless: true,
        networks: links.map(network).collect(),
        containers: vec![Container {
            name: "mine".into(),
            image: "ollama/ollama".into(),
            published: vec![publish],
            ..Container::default()
        }],
        ..Engine::default()
    }];
    assert_eq!(crate::zones::zones(&host), zones);
    let granted = |host: &Host| {
        let grants = super::super::grants::grants(host, &policy).unwrap();
        grants.iter().any(|g| g.port == 5432)
    };
    assert!(!granted(&host));
    // Where his proxy really listens, it is his port.
    host.sockets
        .push(socket("0.0.0.0", 5432, "rootlessport", "user@1000.service"));
    assert!(granted(&host));
}

/// `fail2ban-server -t` may take longer than a busy machine waits for it.
#[test]
fn a_plan_is_not_stale_because_fail2ban_gave_no_reason() {
    let mut host = debian12();
    let fail2ban = host.fail2ban.as_mut().unwrap();
    fail2ban.why_dead = Some("Have not found any log file for sshd jail".into());
    let before = crate::facts_hash(&host);
    host.fail2ban.as_mut().unwrap().why_dead = None;
    assert_eq!(crate::facts_hash(&host), before);
    host.fail2ban.as_mut().unwrap().alive ^= true;
    assert_ne!(crate::facts_hash(&host), before);
}
