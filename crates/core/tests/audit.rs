//! What an audit says of hosts like the ones people have.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod build;

use build::*;
use portcullis_core::finding::{Finding, Severity};
use portcullis_core::host::*;
use portcullis_core::judge::{Audit, EndpointVerdict, Judged, audit};
use portcullis_core::planner::guard;
use portcullis_core::policy::{Never, Policy};
use portcullis_core::report;
use reach::AddrSet;

fn look(host: &Host) -> Audit {
    audit(host, &Policy::builtin())
}

#[track_caller]
fn endpoint<'a>(audit: &'a Audit, name: &str) -> &'a Judged {
    let names: Vec<_> = audit
        .endpoints
        .iter()
        .map(|j| j.endpoint.id.to_string())
        .collect();
    audit
        .endpoints
        .iter()
        .find(|j| j.endpoint.id.to_string() == name)
        .unwrap_or_else(|| panic!("no {name} among {names:?}"))
}

fn ids(audit: &Audit) -> Vec<(&str, Severity)> {
    audit
        .findings
        .iter()
        .map(|f| (f.id.as_str(), f.severity))
        .collect()
}

#[track_caller]
fn finding<'a>(audit: &'a Audit, id: &str) -> &'a Finding {
    audit
        .findings
        .iter()
        .find(|f| f.id == id)
        .unwrap_or_else(|| panic!("no {id} among {:?}", ids(audit)))
}

/// Everybody who gets in over one family, surely or maybe.
fn open(judged: &Judged, zone: &str, family: u8) -> AddrSet {
    judged
        .endpoint
        .exposure
        .iter()
        .filter(|e| e.zone == zone && e.family == family)
        .fold(AddrSet::empty(), |set, e| {
            set.union(&e.admitted).union(&e.conditional)
        })
}

fn has(set: &AddrSet, address: &str) -> bool {
    set.contains(address.parse().unwrap())
}

#[test]
fn the_guides_end_state_is_clean() {
    let audit = look(&good());
    assert_eq!(ids(&audit), []);
    for judged in &audit.endpoints {
        let wanted = if judged.endpoint.id.address.is_loopback() {
            EndpointVerdict::Local
        } else {
            EndpointVerdict::Ok
        };
        assert_eq!(judged.verdict, wanted, "{}", judged.endpoint.id);
    }
    // sshd has two sockets and is one endpoint.
    let names: Vec<_> = audit
        .endpoints
        .iter()
        .map(|j| j.endpoint.id.to_string())
        .collect();
    assert_eq!(
        names,
        ["tcp/[::]:22", "tcp/[::]:443", "tcp/127.0.0.1:11434"]
    );
    let ssh = endpoint(&audit, "tcp/[::]:22");
    assert_eq!(ssh.intended, ["anywhere"]);
    assert!(has(&open(ssh, "internet", 4), "8.8.8.8"));
    assert!(has(&open(ssh, "internet", 6), "2600::1"));
    assert!(has(&open(ssh, "lan", 4), "192.168.1.7"));
    assert_eq!(
        report::exit_code(&good(), &audit.findings, Severity::Low),
        0
    );
}

#[test]
fn g10_a_port_that_docker_publishes_past_ufw_is_told_in_one_sentence() {
    let audit = look(&docker());
    let ollama = endpoint(&audit, "tcp/[::]:11434");
    assert_eq!(ollama.verdict, EndpointVerdict::Exposed);
    assert_eq!(ollama.endpoint.service.as_deref(), Some("ollama"));
    assert_eq!(ollama.endpoint.container.as_deref(), Some("ai"));
    assert!(has(&open(ollama, "internet", 4), "8.8.8.8"));
    assert!(has(&open(ollama, "lan", 4), "192.168.1.7"));
    assert!(
        open(ollama, "internet", 6).is_empty(),
        "over IPv6 the proxy listens and UFW filters"
    );
    let found = finding(&audit, "exposed-to-internet");
    assert_eq!(
        found.title,
        "Anyone on the Internet can reach Ollama (11434/tcp): Docker publishes it past UFW."
    );
    assert_eq!(found.severity, Severity::Critical);
    assert_eq!(found.fix.as_deref(), Some("portcullis apply"));
    assert!(found.controls.iter().any(|c| c == "G10"));
    let evidence = found.evidence.join("\n");
    assert!(
        evidence.contains("-A DOCKER -d 172.17.0.2/32"),
        "{evidence}"
    );
    assert!(evidence.contains("DNAT"), "{evidence}");
    finding(&audit, "docker-past-ufw");
    assert_eq!(
        finding(&audit, "families-differ").title,
        "Ollama (11434/tcp) is closed over IPv6 and open over IPv4 for the Internet (eth0)."
    );
    assert_eq!(
        report::exit_code(&docker(), &audit.findings, Severity::Low),
        1
    );
}

#[test]
fn g11_a_port_published_on_loopback_leaves_the_containers_own_address_open() {
    let audit = look(&docker());
    assert_eq!(
        endpoint(&audit, "tcp/127.0.0.1:3000").verdict,
        EndpointVerdict::Local
    );
    let own = endpoint(&audit, "tcp/172.17.0.3:8080");
    assert_eq!(own.verdict, EndpointVerdict::Exposed);
    assert!(has(&open(own, "lan", 4), "192.168.1.7"));
    let internet = open(own, "internet", 4);
    assert!(
        has(&internet, "203.0.113.9"),
        "a neighbour on the link can route there"
    );
    assert!(!has(&internet, "8.8.8.8"), "a stranger cannot");
    let found = audit
        .findings
        .iter()
        .find(|f| f.id == "container-address-reachable" && f.title.contains("ui"))
        .unwrap();
    assert!(found.severity < Severity::Critical);
    assert!(
        found.title.contains("at its own address"),
        "{}",
        found.title
    );
}

#[test]
fn g11_the_folk_rule_is_found_explained_and_its_copies_counted() {
    let mut host = docker();
    host.rules = rules(FOLK4, UFW_DOCKER6);
    host.ufw.as_mut().unwrap().foreign_lines = vec![(
        "/etc/ufw/after.rules".into(),
        "-A INPUT -p tcp --dport 11434 -j DROP".into(),
    )];
    let audit = look(&host);
    let ollama = endpoint(&audit, "tcp/[::]:11434");
    assert_eq!(
        ollama.verdict,
        EndpointVerdict::Exposed,
        "the rule does nothing"
    );
    let found = finding(&audit, "folk-input-rule");
    assert!(found.title.contains("does nothing"), "{}", found.title);
    assert!(found.title.contains("2 copies"), "{}", found.title);
    assert!(
        found.evidence[0].starts_with("/etc/ufw/after.rules: "),
        "{:?}",
        found.evidence
    );
}

#[test]
fn g13_ufw_off_and_everything_open() {
    let audit = look(&bad());
    let titles: Vec<_> = audit
        .findings
        .iter()
        .filter(|f| f.id == "exposed-to-internet")
        .map(|f| f.title.as_str())
        .collect();
    assert_eq!(
        titles,
        [
            "Anyone on the Internet can reach Ray (8265/tcp): UFW is not active.",
            "Anyone on the Internet can reach Ollama (11434/tcp): UFW is not active.",
        ]
    );
    let ollama = endpoint(&audit, "tcp/[::]:11434");
    assert!(has(&open(ollama, "internet", 4), "8.8.8.8"));
    assert!(has(&open(ollama, "internet", 6), "2600::1"));
    assert_eq!(finding(&audit, "ufw-inactive").severity, Severity::High);
    finding(&audit, "ssh-not-rate-limited");
    let dead = finding(&audit, "fail2ban-dead");
    assert!(dead.title.contains("log file"), "{}", dead.title);
    let test = finding(&audit, "policy-test-failed");
    assert!(
        test.title.contains("tcp/11434 blocked for 203.0.113.9"),
        "{}",
        test.title
    );
}

#[test]
fn g4_ufw_without_an_ssh_rule_is_a_lock_out_ahead_and_then_a_lock_out() {
    let mut host = bad();
    host.ufw.as_mut().unwrap().rules.clear();
    assert!(
        finding(&look(&host), "ssh-lockout-ahead")
            .title
            .contains("port 22")
    );
    let mut host = good();
    let without = |text: &str| {
        let lines: Vec<_> = text
            .lines()
            .filter(|l| !l.contains("--dport 22 "))
            .collect();
        lines.join("\n") + "\n"
    };
    host.rules = rules(&without(UFW4), &without(UFW6));
    let audit = look(&host);
    let shut = finding(&audit, "ssh-not-allowed");
    assert_eq!(shut.severity, Severity::Critical);
    assert_eq!(
        endpoint(&audit, "tcp/[::]:22").verdict,
        EndpointVerdict::ClosedButWanted
    );
}

#[test]
fn nothing_is_called_closed_when_the_rules_could_not_be_read() {
    let mut host = docker();
    host.privileged = false;
    host.rules = reach::Ruleset::default();
    host.unseen.push(Unseen {
        what: "packet filter".into(),
        why: "permission denied".into(),
        uncertain: Uncertain::Verdicts,
    });
    let audit = look(&host);
    for judged in &audit.endpoints {
        let loopback = judged.endpoint.id.address.is_loopback();
        let wanted = [22, 443].contains(&judged.endpoint.id.port);
        let expected = match (loopback, wanted) {
            (true, _) => EndpointVerdict::Local,
            // Whoever gets in is wanted there.
            (false, true) => EndpointVerdict::Ok,
            (false, false) => EndpointVerdict::Maybe,
        };
        assert_eq!(judged.verdict, expected, "{}", judged.endpoint.id);
        for exposure in &judged.endpoint.exposure {
            assert!(exposure.admitted.is_empty());
            assert!(!exposure.conditional.is_empty(), "{exposure:?}");
        }
    }
    assert!(!audit.findings.iter().any(|f| f.id.contains("exposed")));
    assert_eq!(report::exit_code(&host, &audit.findings, Severity::Low), 5);

    // Without links nothing is known of addresses either.
    host.net = reach::Net::default();
    let audit = look(&host);
    assert_eq!(audit.zones[0].id, "internet");
    let ollama = endpoint(&audit, "tcp/[::]:11434");
    assert_eq!(ollama.verdict, EndpointVerdict::Maybe);
    assert_eq!(report::exit_code(&host, &audit.findings, Severity::Low), 5);
}

#[test]
fn ufw_that_the_kernel_never_enters_is_found_out() {
    let mut host = good();
    host.ufw.as_mut().unwrap().loaded = Some(false);
    let flushed: String = UFW4
        .lines()
        .filter(|l| !l.starts_with("-A INPUT"))
        .map(|l| format!("{l}\n"))
        .collect();
    host.rules = rules(&flushed, UFW6);
    let audit = look(&host);
    let found = finding(&audit, "ufw-not-loaded");
    assert!(
        found.evidence.iter().any(|e| e.contains("chain INPUT")),
        "{found:?}"
    );
    assert_eq!(found.fix.as_deref(), Some("portcullis plan"));
    assert_eq!(
        finding(&audit, "ssh-not-allowed").severity,
        Severity::Medium,
        "IPv6 still works"
    );
}

#[test]
fn ufw_missing_open_by_default_or_half() {
    let mut host = good();
    host.ufw = None;
    finding(&look(&host), "ufw-not-installed");
    let mut host = good();
    host.ufw.as_mut().unwrap().default_incoming = "allow".into();
    finding(&look(&host), "ufw-default-incoming");
    let mut host = good();
    host.ufw.as_mut().unwrap().ipv6 = false;
    finding(&look(&host), "ufw-ipv6-off");
}

#[test]
fn g12_every_way_in_which_fail2ban_does_not_ban() {
    let check = |change: fn(&mut Host), id: &str| {
        let mut host = good();
        change(&mut host);
        let found = look(&host);
        assert_eq!(
            ids(&found).iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            [id]
        );
    };
    check(|h| h.fail2ban = None, "fail2ban-missing");
    check(
        |h| h.fail2ban.as_mut().unwrap().alive = false,
        "fail2ban-dead",
    );
    check(
        |h| h.fail2ban.as_mut().unwrap().jails.clear(),
        "fail2ban-no-sshd-jail",
    );
    check(
        |h| h.fail2ban.as_mut().unwrap().jails[0].max_retry = Some(5),
        "fail2ban-weaker",
    );
    check(
        |h| h.fail2ban.as_mut().unwrap().jails[0].ban_time = Some(600),
        "fail2ban-weaker",
    );
    check(
        |h| h.fail2ban.as_mut().unwrap().jails[0].find_time = Some(60),
        "fail2ban-weaker",
    );
    check(
        |h| h.fail2ban.as_mut().unwrap().jails[0].journal = None,
        "fail2ban-blind",
    );
    check(
        |h| h.fail2ban.as_mut().unwrap().python_systemd = false,
        "fail2ban-blind",
    );
    check(
        |h| h.fail2ban.as_mut().unwrap().jail_local_is_copy = true,
        "fail2ban-jail-local-copy",
    );
    check(
        |h| {
            let jail = &mut h.fail2ban.as_mut().unwrap().jails[0];
            jail.unmatched = Some("ai sshd-session[7]: Failed password for root".into());
        },
        "fail2ban-blind",
    );
    check(
        |h| {
            h.fail2ban.as_mut().unwrap().jails.pop();
        },
        "fail2ban-no-jail",
    );
    check(
        |h| h.fail2ban.as_mut().unwrap().jails[0].actions = vec!["ufw".into()],
        "bans-keep-connections",
    );
    let mut host = good();
    host.fail2ban.as_mut().unwrap().jails[0].ban_time = Some(-1);
    assert_eq!(ids(&look(&host)), [], "for ever is no milder than an hour");
}

#[test]
fn g15_the_own_address_banned_or_not_spared() {
    let mut host = good();
    host.sessions = vec![Session {
        peer: "::ffff:198.51.100.7".parse().unwrap(),
        peer_port: 50000,
        local: "203.0.113.5".parse().unwrap(),
        local_port: 22,
        pid: None,
        own: true,
    }];
    let audit = look(&host);
    assert!(
        finding(&audit, "fail2ban-may-ban-you")
            .title
            .contains("198.51.100.7")
    );
    let jail = &mut host.fail2ban.as_mut().unwrap().jails[0];
    jail.ignore_ip.push("198.51.100.0/24".into());
    assert_eq!(ids(&look(&host)), []);
    for (address, banned) in [
        ("198.51.100.7", true),
        ("203.0.113.1", true),
        ("203.0.113.5", true),
        ("192.0.2.66", false),
        // Spared, and its session cut by the ban.
        ("198.51.100.8", true),
    ] {
        host.fail2ban.as_mut().unwrap().jails[0].banned = vec![address.parse().unwrap()];
        let audit = look(&host);
        assert_eq!(
            audit.findings.iter().any(|f| f.id == "own-address-banned"),
            banned,
            "{address}"
        );
    }
}

/// Nobody of such a network need be connected: the policy says that it is never banned.
#[test]
fn g15_an_address_that_the_policy_never_bans_is_banned() {
    let mut host = good();
    let mut policy = Policy::builtin();
    policy.bans.never = vec![Never::Nets(vec!["192.0.2.0/24".parse().unwrap()])];
    for (address, told) in [("192.0.2.66", true), ("198.51.100.66", false)] {
        host.fail2ban.as_mut().unwrap().jails[0].banned = vec![address.parse().unwrap()];
        let audit = audit(&host, &policy);
        let about = |f: &&Finding| f.id == "own-address-banned" && f.title.contains(address);
        assert_eq!(audit.findings.iter().any(|f| about(&f)), told, "{address}");
    }
}

/// Somebody flushed the sets: fail2ban lists the ban, and the kernel lets him in.
#[test]
fn bans_that_the_kernel_lost() {
    let mut host = good();
    let mut table =
        reach::ir::Table::new(reach::ir::Family::Inet, "portcullis", reach::Backend::Nft);
    let address: std::net::IpAddr = "198.51.100.66".parse().unwrap();
    let set = |name: &str, elements: &[std::net::IpAddr]| reach::ir::NftSet {
        name: name.into(),
        timeout: true,
        elements: elements
            .iter()
            .map(|a| reach::ir::Element {
                key: vec![reach::ir::Field::Addr(*a, *a)],
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    table.sets = vec![set("sshd4", &[address]), set("sshd6", &[])];
    host.rules.tables.push(table);
    let lost = |host: &Host| look(host).findings.iter().any(|f| f.id == "bans-lost");
    host.fail2ban.as_mut().unwrap().jails[0].banned = vec![address];
    assert!(!lost(&host));
    // Another one's ban is not his, and a whole network's is.
    host.fail2ban.as_mut().unwrap().jails[0].banned = vec!["198.51.100.67".parse().unwrap()];
    assert!(lost(&host));
    host.fail2ban.as_mut().unwrap().jails[0].banned = vec!["2001:db8:1:2::9".parse().unwrap()];
    assert!(lost(&host));
    host.rules.tables.last_mut().unwrap().sets[1] =
        set("sshd6", &["2001:db8:1:2::".parse().unwrap()]);
    assert!(!lost(&host));
}

#[test]
fn bans_in_input_do_not_reach_published_ports() {
    let mut host = docker();
    host.fail2ban.as_mut().unwrap().jails[0].actions = vec!["iptables-multiport".into()];
    finding(&look(&host), "bans-miss-published-ports");
}

#[test]
fn a_socket_on_a_device_or_one_address_is_reached_only_there() {
    let mut host = bad();
    host.sockets = vec![
        socket("a", "192.168.1.5", 8000),
        socket("b", "0.0.0.0", 8001),
    ];
    host.sockets[1].device = Some("eth1".into());
    let audit = look(&host);
    let b = endpoint(&audit, "tcp/0.0.0.0:8001");
    assert!(open(b, "internet", 4).is_empty());
    assert!(has(&open(b, "lan", 4), "192.168.1.7"));
    // Linux answers for 192.168.1.5 on eth0 too; only who can send there gets in.
    let a = endpoint(&audit, "tcp/192.168.1.5:8000");
    assert!(has(&open(a, "lan", 4), "192.168.1.7"));
    assert!(has(&open(a, "internet", 4), "203.0.113.9"));
    assert!(!has(&open(a, "internet", 4), "8.8.8.8"));
    let found = audit
        .findings
        .iter()
        .find(|f| f.endpoint.as_ref().is_some_and(|e| e.port == 8000))
        .unwrap();
    assert!(
        found.title.starts_with("Neighbours on the Internet side"),
        "{}",
        found.title
    );
}

#[test]
fn somebody_elses_dnat_to_a_loopback_service_is_seen() {
    let mut host = good();
    let nat = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n-A PREROUTING -i eth0 -p tcp -m tcp --dport 9999 -j DNAT --to-destination 127.0.0.1:11434\nCOMMIT\n";
    host.rules = rules(nat, UFW6);
    for interface in &mut host.net.interfaces {
        interface.route_localnet = Some(true);
    }
    let audit = look(&host);
    let dnat = endpoint(&audit, "tcp/0.0.0.0:9999");
    assert_eq!(dnat.verdict, EndpointVerdict::Exposed);
    assert!(has(&open(dnat, "internet", 4), "8.8.8.8"));
    let filter = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n";
    host.rules = rules(&format!("{nat}{filter}"), UFW6);
    assert_eq!(
        endpoint(&look(&host), "tcp/0.0.0.0:9999").verdict,
        EndpointVerdict::Exposed
    );
    host.sockets.retain(|s| s.port != 11434);
    let audit = look(&host);
    let gone = !audit.endpoints.iter().any(|j| j.endpoint.id.port == 9999);
    assert!(gone, "nothing listens behind it");
}

/// A good host on which a guard was applied.
fn with_guard_file() -> Host {
    let mut host = good();
    let file = FileFact {
        sha256: String::new(),
        size: 1,
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
    host.files
        .insert("/etc/portcullis/guard.nft".into(), Some(file));
    host
}

#[test]
fn a_guard_that_was_applied_and_is_gone_is_told() {
    let mut host = with_guard_file();
    finding(&look(&host), "guard-missing");
    host.files.insert("/etc/portcullis/guard.nft".into(), None);
    assert_eq!(ids(&look(&host)), []);
}

/// A LAN's bridge that came after the guard: its neighbours count as containers there.
#[test]
fn a_bridge_that_the_guard_does_not_know_is_told() {
    let mut host = with_guard_file();
    let guard_of = |host: &Host| {
        let script = guard::ruleset(host, &Policy::builtin()).unwrap();
        let listed = script.split_once("flush table").unwrap().1;
        let (rules, notes) = reach::parse::nft(listed.split_once('\n').unwrap().1);
        assert_eq!(notes, []);
        rules.tables
    };
    let told = |host: &Host| {
        let mut all = look(host).findings.into_iter();
        all.find(|f| f.id == "guard-before-bridge")
    };
    let without = host.rules.tables.clone();
    let older = guard_of(&host);
    host.rules.tables.extend(older);
    assert_eq!(told(&host), None);
    host.net.interfaces.push(reach::Interface {
        index: 70,
        name: "vmbr0".into(),
        kind: Some("bridge".into()),
        up: true,
        ..reach::Interface::default()
    });
    host.net.interfaces.push(reach::Interface {
        index: 71,
        name: "eth7".into(),
        master: Some(70),
        up: true,
        ..reach::Interface::default()
    });
    assert!(told(&host).is_some_and(|f| f.title.contains("vmbr0")));
    // The next apply's guard knows it.
    let newer = guard_of(&host);
    host.rules.tables = without;
    host.rules.tables.extend(newer);
    assert_eq!(told(&host), None);
}

#[test]
fn hostile_names_are_shown_escaped() {
    let mut host = docker();
    let evil = "x\u{1b}[2J\u{202e}\nok";
    host.engines[0].containers[1].name = evil.into();
    host.engines[0].containers[1].published[0].host_ip = "0.0.0.0".parse().unwrap();
    host.sockets.push(socket(evil, "0.0.0.0", 7777));
    host.hostname = evil.into();
    host.fail2ban.as_mut().unwrap().alive = false;
    host.fail2ban.as_mut().unwrap().why_dead = Some(evil.into());
    let report = report::audit(&host, &Policy::builtin());
    let bad = |s: &str| s.chars().any(|c| c.is_control() || c == '\u{202e}');
    for finding in &report.findings {
        assert!(!bad(&finding.title), "{:?}", finding.title);
        assert!(
            !finding.evidence.iter().any(|e| bad(e)),
            "{:?}",
            finding.evidence
        );
    }
    for endpoint in &report.endpoints {
        assert!(!endpoint.process.as_deref().is_some_and(bad));
        assert!(!endpoint.container.as_deref().is_some_and(bad));
    }
    assert!(!bad(&report.host));
}

#[test]
fn the_json_keeps_its_contract() {
    let report = report::audit(&docker(), &Policy::builtin());
    let json = serde_json::to_value(&report).unwrap();
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    for key in ["schema", "host", "zones", "endpoints", "findings", "unseen"] {
        assert!(json.get(key).is_some(), "{key}");
    }
    assert_eq!(json["schema"], 1);
    assert_eq!(
        keys(&json["zones"][0]),
        ["id", "interfaces", "label", "networks"]
    );
    let endpoint = &json["endpoints"][0];
    for key in [
        "proto",
        "address",
        "port",
        "process",
        "unit",
        "container",
        "service",
        "exposure",
        "intended",
        "verdict",
    ] {
        assert!(endpoint.get(key).is_some(), "{key}");
    }
    for key in ["zone", "family", "admitted", "conditional", "witness"] {
        assert!(endpoint["exposure"][0].get(key).is_some(), "{key}");
    }
    for key in [
        "id", "severity", "title", "endpoint", "evidence", "fix", "controls",
    ] {
        assert!(json["findings"][0].get(key).is_some(), "{key}");
    }
    assert_eq!(json["findings"][0]["severity"], "critical");
    let back: report::AuditReport = serde_json::from_value(json).unwrap();
    assert_eq!(back, report);
}

#[test]
fn the_same_facts_give_the_same_answer_after_a_trip_through_a_file() {
    let host = docker();
    let file = serde_json::to_string(&host).unwrap();
    let again: Host = serde_json::from_str(&file).unwrap();
    let policy = Policy::builtin();
    assert_eq!(
        report::audit(&again, &policy),
        report::audit(&host, &policy)
    );
}

#[test]
fn exit_codes() {
    let low = [Finding {
        id: "x".into(),
        severity: Severity::Low,
        title: String::new(),
        endpoint: None,
        evidence: vec![],
        fix: None,
        controls: vec![],
    }];
    let mut host = good();
    assert_eq!(report::exit_code(&host, &low, Severity::Low), 1);
    assert_eq!(report::exit_code(&host, &low, Severity::Medium), 0);
    host.unseen.push(Unseen {
        what: "docker".into(),
        why: "x".into(),
        uncertain: Uncertain::Names,
    });
    assert_eq!(report::exit_code(&host, &[], Severity::Low), 0);
    host.unseen[0].uncertain = Uncertain::Endpoints;
    assert_eq!(report::exit_code(&host, &[], Severity::Low), 5);
    assert_eq!(report::exit_code(&host, &low, Severity::Low), 1);
    host.privileged = false;
    assert_eq!(report::exit_code(&host, &low, Severity::Low), 5);
}

#[test]
fn each_of_a_hundred_containers_is_an_endpoint_at_the_host_and_at_its_own_address() {
    let mut host = docker();
    for n in 0..100_u16 {
        let address = format!("172.17.1.{n}");
        let mut c = container(
            &format!("c{n}"),
            "web:1",
            &address,
            vec![publish("0.0.0.0", 20000 + n, 80)],
        );
        c.id = format!("{n:064}");
        host.engines[0].containers.push(c);
        host.sockets
            .push(socket("docker-proxy", "0.0.0.0", 20000 + n));
    }
    let start = std::time::Instant::now();
    let audit = look(&host);
    println!(
        "{} endpoints in {:?}",
        audit.endpoints.len(),
        start.elapsed()
    );
    assert_eq!(
        audit
            .endpoints
            .iter()
            .filter(|j| j.endpoint.container.is_some())
            .count(),
        204
    );
}

/// kube-proxy names a NodePort in one chain and translates in another; others hand on whole ranges,
/// or everything that arrives.
#[test]
fn a_dnat_whose_port_stands_elsewhere_or_in_a_wide_range_is_seen() {
    let check = |nat: &str, id: &str| {
        let mut host = good();
        let head = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n";
        let filter =
            "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
        host.rules = rules(&format!("{head}{nat}COMMIT\n{filter}"), UFW6);
        let audit = look(&host);
        let dnat = endpoint(&audit, id);
        assert_eq!(dnat.verdict, EndpointVerdict::Exposed, "{nat}");
        assert!(has(&open(dnat, "internet", 4), "8.8.8.8"), "{nat}");
    };
    let to = "-j DNAT --to-destination 192.168.1.77:80";
    check(
        &format!(
            ":NODES - [0:0]\n:POD - [0:0]\n-A PREROUTING -j NODES\n-A NODES -p tcp -m tcp --dport 30080 -j POD\n-A POD -p tcp -m tcp {to}\n"
        ),
        "tcp/0.0.0.0:30080",
    );
    check(
        &format!("-A PREROUTING -i eth0 -p tcp -m tcp --dport 20000:40000 {to}\n"),
        "tcp/0.0.0.0:20000",
    );
    check(
        &format!("-A PREROUTING -i eth0 -p tcp {to}\n"),
        "tcp/0.0.0.0:8188",
    );
}

/// Who could not see everything that listens cannot say that nobody gets in.
#[test]
fn a_blocked_test_does_not_hold_while_endpoints_are_unseen() {
    let policy = Policy::parse(
        "p.toml",
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[[test]]\nfrom = \"203.0.113.99\"\nto = \"tcp/11434\"\nexpect = \"blocked\"\n",
    )
    .unwrap();
    let mut host = good();
    host.sockets.retain(|s| s.port != 11434);
    let told = |host: &Host| {
        let audit = audit(host, &policy);
        audit.findings.iter().any(|f| f.id == "policy-test-unsure")
    };
    assert!(!told(&host));
    host.unseen.push(Unseen {
        what: "container engine".into(),
        why: "no answer".into(),
        uncertain: Uncertain::Endpoints,
    });
    assert!(told(&host));
}

/// UFW's before.rules let mDNS in whatever else is denied: who is on the link reaches a responder.
#[test]
fn a_responder_behind_ufw_is_reached_through_its_group() {
    let mut host = good();
    let mut socket = host.sockets.iter().find(|s| s.port == 22).unwrap().clone();
    socket.proto = reach::Proto::Udp;
    socket.port = 5353;
    socket.process = None;
    socket.unit = None;
    host.sockets.push(socket);
    let audit = look(&host);
    let mdns = audit
        .endpoints
        .iter()
        .find(|j| (j.endpoint.id.proto, j.endpoint.id.port) == (reach::Proto::Udp, 5353))
        .unwrap();
    assert_eq!(mdns.verdict, EndpointVerdict::Maybe);
    let maybe = |zone: &str, source: &str| {
        mdns.endpoint
            .exposure
            .iter()
            .any(|e| e.zone == zone && e.to.is_multicast() && has(&e.conditional, source))
    };
    assert!(maybe("lan", "192.168.1.20"));
    assert!(!maybe("internet", "8.8.8.8"), "groups are not routed");
    assert!(mdns.endpoint.exposure.iter().all(|e| e.admitted.is_empty()));
}
