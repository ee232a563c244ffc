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
