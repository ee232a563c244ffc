//! Where the kernel once disagreed: each case was found by the oracle, its truth is the kernel's.
#![allow(clippy::unwrap_used)]
mod host;

use host::{fate, host, tcp};
use reach::parse::{iptables_save, nft};
use reach::{Backend, Net, Query, Ruleset, World, reach};

fn check(rules: &Ruleset, net: &Net, query: Query, client: &str, expect: &str) {
    let answer = reach(World { rules, net }, &query);
    assert_eq!(fate(&answer, client), expect, "{client}: {answer:#?}");
}

fn text(dump: &str) -> Ruleset {
    let (rules, notes) = nft(dump);
    assert_eq!(notes, [], "{dump}");
    rules
}

#[test]
fn the_rest_of_net_zero_is_as_good_as_any_source() {
    let (rules, net) = (Ruleset::default(), host());
    let query = || tcp("eth0", "192.0.2.10", 22);
    check(&rules, &net, query(), "0.255.255.255", "open");
    check(&rules, &net, query(), "0.0.0.0", "closed");
    check(&rules, &net, query(), "255.255.255.255", "closed");
}

#[test]
fn without_rp_filter_a_broadcast_address_gets_its_answer() {
    let (rules, mut net) = (Ruleset::default(), host());
    let mut broadcast = host::route("192.168.7.255/32", 4, None);
    broadcast.table = 255;
    broadcast.kind = reach::RouteKind::Broadcast;
    net.routes.push(broadcast);
    let query = || tcp("eth0", "192.0.2.10", 22);
    check(&rules, &net, query(), "192.168.7.255", "open");
    net.sysctls.rp_filter_all = Some(1);
    check(&rules, &net, query(), "192.168.7.255", "closed");
}

#[test]
fn the_copy_of_a_broadcast_answer_may_mark_its_connection() {
    let save = "*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n\
        -A PREROUTING ! -s 10.1.2.0/24 -p tcp -m rpfilter --loose -j CONNMARK --set-xmark 0x1/0xffffffff\n\
        -A INPUT -p tcp -m connmark ! --mark 0x0/0xff -j DROP\nCOMMIT\n";
    let (rules, mut net) = (host::rules(save), host());
    let mut broadcast = host::route("192.168.7.255/32", 4, None);
    broadcast.table = 255;
    broadcast.kind = reach::RouteKind::Broadcast;
    net.routes.push(broadcast);
    let query = || tcp("eth0", "192.0.2.10", 22);
    // Its SYN has no reverse route and is not marked; the answer, sent to the link, is heard by the host itself.
    check(&rules, &net, query(), "192.168.7.255", "maybe");
    check(&rules, &net, query(), "203.0.113.5", "closed");
    // Without a test of the mark there is nothing to doubt.
    let (kept, _) = save.split_once("-A INPUT").unwrap();
    let rules = host::rules(&format!("{kept}COMMIT\n"));
    check(&rules, &net, query(), "192.168.7.255", "open");
}

#[test]
fn the_unspecified_address_reaches_the_host_but_is_not_forwarded() {
    let (rules, net) = (Ruleset::default(), host());
    check(&rules, &net, tcp("eth0", "2001:db8::10", 22), "::", "open");
    check(&rules, &net, tcp("eth0", "fd00:17::2", 22), "::", "closed");
}

#[test]
fn dnat_ip_in_an_inet_table_says_nothing_to_ipv6() {
    let net = host();
    for target in [
        "192.0.2.99",
        "tcp dport map { 22 : 192.0.2.99, 80 : 192.0.2.98 }",
    ] {
        let rules = text(&format!(
            "table inet t {{\n\tchain pre {{\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\
             \t\tdnat ip to {target}\n\t}}\n\tchain fwd {{\n\t\ttype filter hook forward priority filter; policy drop;\n\t}}\n}}\n"
        ));
        check(
            &rules,
            &net,
            tcp("eth0", "2001:db8::10", 22),
            "2001:db8:5::1",
            "open",
        );
        check(
            &rules,
            &net,
            tcp("eth0", "192.0.2.10", 22),
            "203.0.113.5",
            "closed",
        );
    }
}

#[test]
fn an_untracked_packet_has_nothing_of_a_connection() {
    let net = host();
    // ct keys do not match it, negated or not.
    for (test, expect) in [
        ("ct original proto-dst 22", "open"),
        ("ct original proto-dst != 22", "open"),
        ("ct direction original", "open"),
        ("ct state untracked", "closed"),
        ("ct state != untracked", "open"),
    ] {
        let rules = text(&format!(
            "table inet t {{\n\tchain raw {{\n\t\ttype filter hook prerouting priority raw; policy accept;\n\t\tnotrack\n\t}}\n\
             \tchain out {{\n\t\ttype filter hook output priority raw; policy accept;\n\t\tnotrack\n\t}}\n\
             \tchain in {{\n\t\ttype filter hook input priority filter; policy accept;\n\t\tmeta l4proto tcp {test} drop\n\t}}\n}}\n"
        ));
        check(
            &rules,
            &net,
            tcp("eth0", "192.0.2.10", 22),
            "203.0.113.5",
            expect,
        );
    }
}

#[test]
fn unicast_of_ipv6_is_every_unicast_address() {
    let net = host();
    let dump = |kind: &str| {
        format!(
            "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m addrtype --dst-type {kind} -j DROP\nCOMMIT\n"
        )
    };
    let (rules, _) = iptables_save(&dump("UNICAST"), true, Backend::IptablesNft);
    check(
        &rules,
        &net,
        tcp("eth0", "2001:db8::10", 22),
        "2001:db8:5::1",
        "closed",
    );
    // Of IPv4 it is what routing calls so, and the host's own address is local.
    let (rules, _) = iptables_save(&dump("UNICAST"), false, Backend::IptablesNft);
    check(
        &rules,
        &net,
        tcp("eth0", "192.0.2.10", 22),
        "203.0.113.5",
        "open",
    );
}

#[test]
fn a_chain_on_devices_that_json_does_not_name_may_be_on_any() {
    let net = host();
    let dump = r#"{"nftables": [
        {"table": {"family": "netdev", "name": "nd", "handle": 1}},
        {"chain": {"family": "netdev", "table": "nd", "name": "ing", "handle": 1, "type": "filter",
                   "hook": "ingress", "prio": 0, "policy": "accept"}},
        {"rule": {"family": "netdev", "table": "nd", "chain": "ing", "handle": 2, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                       "right": {"prefix": {"addr": "203.0.113.0", "len": 24}}}}, {"drop": null}]}}]}"#;
    let (rules, notes) = nft(dump);
    assert_eq!(notes.len(), 1, "{notes:?}");
    check(
        &rules,
        &net,
        tcp("eth0", "192.0.2.10", 22),
        "203.0.113.5",
        "maybe",
    );
}

#[test]
fn half_a_connection_in_conntrack_is_nobodys_promise() {
    let net = host();
    let rules = text(
        "table inet t {\n\tchain raw {\n\t\ttype filter hook prerouting priority raw; policy accept;\n\t\ttcp dport 22 notrack\n\t}\n}\n",
    );
    check(
        &rules,
        &net,
        tcp("eth0", "192.0.2.10", 22),
        "203.0.113.5",
        "maybe",
    );
    check(
        &rules,
        &net,
        tcp("eth0", "192.0.2.10", 23),
        "203.0.113.5",
        "open",
    );
}

#[test]
fn packets_behind_the_first_are_no_syns_tracked_or_not() {
    let net = host();
    let (rules, notes) = iptables_save(
        "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -m tcp --syn -j ACCEPT\nCOMMIT\n\
         *raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A PREROUTING -j CT --notrack\n-A OUTPUT -j CT --notrack\nCOMMIT\n",
        false,
        Backend::IptablesNft,
    );
    assert_eq!(notes, []);
    check(
        &rules,
        &net,
        tcp("eth0", "192.0.2.10", 22),
        "203.0.113.5",
        "closed",
    );
}

#[test]
fn a_translation_to_the_same_is_none() {
    let net = host();
    let rules = text(
        "table ip t {\n\tchain pre {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\t\ttcp dport 22 dnat to 192.0.2.10\n\t}\n\
         \tchain in {\n\t\ttype filter hook input priority filter; policy drop;\n\t\tct state established accept\n\t\tct status ! dnat accept\n\t}\n}\n",
    );
    check(
        &rules,
        &net,
        tcp("eth0", "192.0.2.10", 22),
        "203.0.113.5",
        "open",
    );
}

#[test]
fn of_equal_priorities_either_may_go_first() {
    let net = host();
    let table = |name: &str, rules: &str| {
        format!(
            "table inet {name} {{\n\tchain c {{\n\t\ttype filter hook input priority filter; policy accept;\n\t\t{rules}\n\t}}\n}}\n"
        )
    };
    let (marks, tests) = (
        table("a", "meta mark set 0x1"),
        table("b", "meta mark != 0x1 drop"),
    );
    for dump in [format!("{marks}{tests}"), format!("{tests}{marks}")] {
        check(
            &text(&dump),
            &net,
            tcp("eth0", "192.0.2.10", 22),
            "203.0.113.5",
            "maybe",
        );
    }
}

#[test]
fn the_kind_of_refusal_implies_the_version() {
    let net = host();
    let rules = |with: &str| {
        text_loose(&format!(
            "table inet t {{\n\tchain in {{\n\t\ttype filter hook input priority filter; policy accept;\n\t\treject{with}\n\t}}\n}}\n"
        ))
    };
    for (with, v4, v6) in [
        ("", "closed", "closed"),
        (" with icmpx admin-prohibited", "closed", "closed"),
        (" with icmp port-unreachable", "closed", "open"),
        (" with icmpv6 port-unreachable", "open", "closed"),
        // nft lists `meta nfproto ipv4 reject with tcp reset` so.
        (" with tcp reset", "maybe", "maybe"),
    ] {
        check(
            &rules(with),
            &net,
            tcp("eth0", "192.0.2.10", 22),
            "203.0.113.5",
            v4,
        );
        check(
            &rules(with),
            &net,
            tcp("eth0", "2001:db8::10", 22),
            "2001:db8:5::1",
            v6,
        );
    }
}

fn text_loose(dump: &str) -> Ruleset {
    nft(dump).0
}

#[test]
fn rpfilter_lets_the_unspecified_address_pass() {
    let net = host();
    let (rules, _) = iptables_save(
        "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m rpfilter --invert -j DROP\nCOMMIT\n",
        true,
        Backend::IptablesNft,
    );
    check(&rules, &net, tcp("eth0", "2001:db8::10", 22), "::", "open");
}

#[test]
fn the_state_of_half_a_connection_is_open() {
    let net = host();
    // The first packet is not tracked, the ones after it are: new, established or invalid, as conntrack likes.
    for state in ["invalid", "new", "established"] {
        let rules = text(&format!(
            "table inet t {{\n\tchain raw {{\n\t\ttype filter hook prerouting priority raw; policy accept;\n\t\ttcp flags ! ack notrack\n\t}}\n\
             \tchain in {{\n\t\ttype filter hook input priority filter; policy accept;\n\t\tct state {state} drop\n\t}}\n}}\n"
        ));
        check(
            &rules,
            &net,
            tcp("eth0", "192.0.2.10", 22),
            "203.0.113.5",
            "maybe",
        );
    }
}

#[test]
fn a_network_of_another_link_may_hide_a_wider_one_in_an_ipset() {
    let (rules, _) = reach::parse::combine(reach::parse::Dumps {
        iptables: Some(
            "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m set --match-set s src,src -j DROP\nCOMMIT\n",
        ),
        ipset: Some(
            "create s hash:net,iface family inet\nadd s 10.1.2.0/24,eth1\nadd s 10.0.0.0/8,eth0\n",
        ),
        ..Default::default()
    });
    let net = host();
    let query = || tcp("eth0", "192.0.2.10", 22);
    // The kernel finds 10.1.2.0/24 of eth1 first, and looks no further.
    check(&rules, &net, query(), "10.1.2.252", "maybe");
    check(&rules, &net, query(), "10.9.9.9", "closed");
    check(&rules, &net, query(), "203.0.113.5", "open");
}

#[test]
fn a_chain_at_conntracks_own_priority_runs_before_it_or_after_it() {
    for (priority, expect) in [(-201, "closed"), (-200, "maybe"), (-199, "open")] {
        let rules = text(&format!(
            "table ip t {{\n\tchain pre {{\n\t\ttype filter hook prerouting priority {priority}; policy accept;\n\t\tct state invalid drop\n\t}}\n}}\n"
        ));
        check(
            &rules,
            &host(),
            tcp("eth0", "192.0.2.10", 22),
            "203.0.113.5",
            expect,
        );
    }
}
