//! The whole way: routing, source checks, marks, NAT of every kind, and the way back.
#![allow(clippy::unwrap_used)] // A test may fail so.
mod host;
use host::{fate, host, interface, net, piece, route, rules, tcp};
use reach::*;

/// What becomes of `client` asking for `dst`:`dport` on `ingress`.
fn on(net: &Net, save: &str, ingress: &str, dst: &str, dport: u16, client: &str) -> &'static str {
    let rules = rules(save);
    fate(
        &reach::reach(World { rules: &rules, net }, &tcp(ingress, dst, dport)),
        client,
    )
}

fn check(save: &str, dport: u16, client: &str, expect: &str) {
    assert_eq!(
        on(&host(), save, "eth0", "192.0.2.10", dport, client),
        expect,
        "{client} {dport}\n{save}"
    );
}

fn filter(rules: &str) -> String {
    format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n"
    )
}

const CLIENT: &str = "203.0.113.9";

#[test]
fn without_rules_only_impossible_sources_are_blocked() {
    check("", 22, CLIENT, "open");
    check("", 22, "192.0.2.10", "closed");
    check("", 22, "127.0.0.1", "closed");
    check("", 22, "224.0.0.1", "closed");
    check("", 22, "0.0.0.0", "closed");
    // ipv4_is_zeronet is that one address since Linux 5.3.
    check("", 22, "0.0.0.1", "open");
}

#[test]
fn the_weak_host_model_delivers_to_any_own_address() {
    assert_eq!(on(&host(), "", "eth0", "192.168.7.1", 22, CLIENT), "open");
    assert_eq!(on(&host(), "", "eth0", "172.17.0.1", 22, CLIENT), "open");
    assert_eq!(on(&host(), "", "eth0", "127.0.0.1", 22, CLIENT), "closed");
    let mut localnet = host();
    localnet.interfaces[1].route_localnet = Some(true);
    assert_eq!(on(&localnet, "", "eth0", "127.0.0.1", 22, CLIENT), "open");
    localnet.interfaces[1].route_localnet = None;
    assert_eq!(on(&localnet, "", "eth0", "127.0.0.1", 22, CLIENT), "maybe");
}

#[test]
fn a_host_that_does_not_forward_forwards_nothing() {
    let mut still = host();
    still.interfaces[1].forwarding_v4 = Some(false);
    assert_eq!(on(&still, "", "eth0", "172.17.0.2", 80, CLIENT), "closed");
    still.interfaces[1].forwarding_v4 = None;
    still.sysctls.ipv4_forward = None;
    assert_eq!(on(&still, "", "eth0", "172.17.0.2", 80, CLIENT), "maybe");
    assert_eq!(on(&host(), "", "eth0", "172.17.0.2", 80, CLIENT), "open");
}

#[test]
fn strict_rp_filter_wants_the_way_back_to_lead_there() {
    let lan = "192.168.7.50";
    check("", 22, lan, "open");
    let mut strict = host();
    strict.interfaces[1].rp_filter = Some(1);
    assert_eq!(on(&strict, "", "eth0", "192.0.2.10", 22, lan), "closed");
    assert_eq!(on(&strict, "", "eth0", "192.0.2.10", 22, CLIENT), "open");
    // The larger value holds: loose wants any way back.
    strict.sysctls.rp_filter_all = Some(2);
    assert_eq!(on(&strict, "", "eth0", "192.0.2.10", 22, lan), "open");
    strict.sysctls.rp_filter_all = None;
    assert_eq!(on(&strict, "", "eth0", "192.0.2.10", 22, lan), "maybe");
}

#[test]
fn no_way_back_means_no_connection() {
    let mut island = host();
    island.routes.retain(|r| r.dst.prefix_len() != 0);
    assert_eq!(on(&island, "", "eth0", "192.0.2.10", 22, CLIENT), "closed");
    assert_eq!(
        on(&island, "", "eth0", "192.0.2.10", 22, "192.0.2.77"),
        "open"
    );
}

#[test]
fn policy_rules_choose_the_table_by_source_and_mark() {
    let mut two = host();
    let rule = |priority, src: Option<&str>, fwmark, action| PolicyRule {
        ipv6: false,
        priority,
        invert: false,
        src: src.map(net),
        dst: None,
        iif: None,
        oif: None,
        fwmark,
        protocol: None,
        sport: None,
        dport: None,
        uid: None,
        tos: 0,
        suppress_prefixlength: None,
        unknown_selector: false,
        action,
    };
    two.rules = vec![
        rule(0, None, None, PolicyAction::Table { table: 255 }),
        rule(100, Some("203.0.113.0/24"), None, PolicyAction::Blackhole),
        rule(200, None, Some((7, 0xff)), PolicyAction::Unreachable),
        rule(32766, None, None, PolicyAction::Table { table: 254 }),
    ];
    // To an own address the local table answers first.
    assert_eq!(on(&two, "", "eth0", "192.0.2.10", 22, CLIENT), "open");
    assert_eq!(on(&two, "", "eth0", "172.17.0.2", 80, CLIENT), "closed");
    assert_eq!(
        on(&two, "", "eth0", "172.17.0.2", 80, "198.51.100.1"),
        "open"
    );
    let mark = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -s 198.51.100.0/24 -j MARK --set-xmark 0x107/0xffffffff\nCOMMIT\n";
    assert_eq!(
        on(&two, mark, "eth0", "172.17.0.2", 80, "198.51.100.1"),
        "closed"
    );
    assert_eq!(
        on(&two, mark, "eth0", "172.17.0.2", 80, "198.51.101.1"),
        "open"
    );
    two.rules[1].unknown_selector = true;
    assert_eq!(on(&two, "", "eth0", "172.17.0.2", 80, CLIENT), "maybe");
}

#[test]
fn the_answer_has_to_get_out() {
    check(
        &filter("-A OUTPUT -p tcp -m tcp --sport 22 -j DROP\n"),
        22,
        CLIENT,
        "closed",
    );
    check(
        &filter("-A OUTPUT -p tcp -m tcp --sport 22 -j DROP\n"),
        23,
        CLIENT,
        "open",
    );
    check(
        &filter("-A OUTPUT -d 203.0.113.0/24 -j DROP\n"),
        22,
        CLIENT,
        "closed",
    );
    check(
        &filter("-A OUTPUT -d 203.0.113.0/24 -m conntrack --ctstate NEW -j DROP\n"),
        22,
        CLIENT,
        "open",
    );
    check(
        &filter("-A OUTPUT -o eth0 -m conntrack --ctstate ESTABLISHED -j DROP\n"),
        22,
        CLIENT,
        "closed",
    );
    check(&filter("-A OUTPUT -o eth1 -j DROP\n"), 22, CLIENT, "open");
}

#[test]
fn the_answer_tests_the_port_that_the_client_chose() {
    // Answers to low ports only are dropped: the client takes a high one.
    check(
        &filter("-A OUTPUT -p tcp -m tcp --dport 1:1023 -j DROP\n"),
        22,
        CLIENT,
        "open",
    );
    check(
        &filter("-A OUTPUT -p tcp -m tcp --dport 1024:65535 -j DROP\n"),
        22,
        CLIENT,
        "open",
    );
    check(
        &filter("-A OUTPUT -p tcp -m tcp --dport 0:65535 -j DROP\n"),
        22,
        CLIENT,
        "closed",
    );
}

#[test]
fn later_packets_have_to_get_in() {
    check(
        &filter("-A INPUT -p tcp -m conntrack --ctstate NEW -j ACCEPT\n-A INPUT -j DROP\n"),
        22,
        CLIENT,
        "closed",
    );
    let usual = "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n-A INPUT -j DROP\n";
    check(&filter(usual), 22, CLIENT, "open");
    check(&filter(usual), 23, CLIENT, "closed");
    let syn = "-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP\n";
    check(&filter(syn), 22, CLIENT, "closed");
}

#[test]
fn untracked_packets_are_neither_new_nor_established() {
    let half = "-A PREROUTING -s 203.0.113.0/24 -j CT --notrack\n";
    let raw = |rules: &str| {
        format!("*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n")
    };
    let both = raw(&format!(
        "{half}-A OUTPUT -d 203.0.113.0/24 -j CT --notrack\n"
    ));
    let stateful =
        filter("-A INPUT -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT\n-A INPUT -j DROP\n");
    check(&format!("{both}{stateful}"), 22, CLIENT, "closed");
    check(&format!("{both}{stateful}"), 22, "198.51.100.1", "open");
    let takes = filter("-A INPUT -m conntrack --ctstate UNTRACKED -j ACCEPT\n-A INPUT -j DROP\n");
    check(&format!("{both}{takes}"), 22, CLIENT, "open");
    check(&format!("{both}{takes}"), 22, "198.51.100.1", "closed");
    // With only one half untracked conntrack may pick the connection up by its answers, or not.
    check(&format!("{}{takes}", raw(half)), 22, CLIENT, "maybe");
}

#[test]
fn connection_marks_carry_a_decision_to_later_packets() {
    let save = "*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A PREROUTING -m mark ! --mark 0x0 -j ACCEPT
-A PREROUTING -s 203.0.113.0/24 -m conntrack --ctstate NEW -j MARK --set-xmark 0x5/0xffffffff
-A PREROUTING -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*filter
:INPUT DROP [0:0]
-A INPUT -m mark --mark 0x5/0xf -j ACCEPT
COMMIT
";
    check(save, 22, CLIENT, "open");
    check(save, 22, "198.51.100.1", "closed");
    let forgets = save.replace(
        "-A PREROUTING -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff\n",
        "",
    );
    check(&forgets, 22, CLIENT, "closed");
}

#[test]
fn redirect_and_dnat_to_this_host_are_delivered_here() {
    let nat = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080\nCOMMIT\n";
    let only = |port| {
        filter(&format!(
            "-A INPUT -p tcp -m tcp --dport {port} -j ACCEPT\n-A INPUT -j DROP\n"
        ))
    };
    check(&format!("{nat}{}", only(8080)), 80, CLIENT, "open");
    check(&format!("{nat}{}", only(80)), 80, CLIENT, "closed");
    let all = rules(nat);
    let answer = reach::reach(
        World {
            rules: &all,
            net: &host(),
        },
        &tcp("eth0", "192.0.2.10", 80),
    );
    let to = Delivery::Local {
        address: "192.0.2.10".parse().unwrap(),
        port: 8080,
    };
    assert_eq!(piece(&answer, CLIENT).delivered, Some(to));
    // To loopback it stays a martian, unless route_localnet is on.
    let lo = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:8080\nCOMMIT\n";
    check(lo, 80, CLIENT, "closed");
}

#[test]
fn a_balancer_may_pick_any_target() {
    let nat = "*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 80 -m statistic --mode random --probability 0.5 -j DNAT --to-destination 172.17.0.2:80
-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.3:80
COMMIT
";
    check(nat, 80, CLIENT, "open");
    let one = filter("-A FORWARD -d 172.17.0.2/32 -j DROP\n");
    check(&format!("{nat}{one}"), 80, CLIENT, "maybe");
    let both = filter("-A FORWARD -d 172.17.0.2/31 -j DROP\n");
    check(&format!("{nat}{both}"), 80, CLIENT, "closed");
    let range = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2-172.17.0.5:80\nCOMMIT\n";
    check(&format!("{range}{one}"), 80, CLIENT, "maybe");
}

#[test]
fn dnat_by_source_sends_each_client_its_own_way() {
    let nat = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -s 203.0.113.0/24 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080\nCOMMIT\n";
    let save = format!("{nat}{}", filter("-A INPUT -j DROP\n"));
    check(&save, 80, CLIENT, "open");
    check(&save, 80, "198.51.100.1", "closed");
}

#[test]
fn this_machine_reaches_its_own_ports() {
    let lo = |save: &str, dst: &str, client: &str| on(&host(), save, "lo", dst, 11434, client);
    assert_eq!(lo("", "127.0.0.1", "127.0.0.1"), "open");
    assert_eq!(lo("", "192.0.2.10", "192.0.2.10"), "open");
    assert_eq!(
        lo(
            &filter("-A INPUT -i lo -j ACCEPT\n-A INPUT -j DROP\n"),
            "127.0.0.1",
            "127.0.0.1"
        ),
        "open"
    );
    assert_eq!(
        lo(
            &filter("-A INPUT ! -i eth0 -j DROP\n"),
            "127.0.0.1",
            "127.0.0.1"
        ),
        "closed"
    );
    assert_eq!(
        lo(
            &filter("-A OUTPUT -o lo -j DROP\n"),
            "127.0.0.1",
            "127.0.0.1"
        ),
        "closed"
    );
    let nat = "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m addrtype --dst-type LOCAL -p tcp -m tcp --dport 11434 -j DNAT --to-destination 172.17.0.2:80\nCOMMIT\n";
    assert_eq!(
        lo(
            &format!(
                "{nat}{}",
                filter("-A FORWARD -j DROP\n-A INPUT -m conntrack --ctstate NEW -j DROP\n")
            ),
            "192.0.2.10",
            "192.0.2.10"
        ),
        "open"
    );
}

#[test]
fn a_bridge_is_filtered_only_by_br_netfilter() {
    let save = filter("-A FORWARD -i docker0 -o docker0 -j DROP\n");
    let of = |filtered| {
        let mut net = host();
        net.sysctls.bridge_nf_call_iptables = filtered;
        on(&net, &save, "docker0", "172.17.0.2", 80, "172.17.0.3")
    };
    assert_eq!(of(Some(true)), "closed");
    assert_eq!(of(Some(false)), "open");
    assert_eq!(of(None), "maybe");
}

#[test]
fn ipv6_takes_its_own_rules_and_routes() {
    let (v6, _) = parse::iptables_save(
        "*filter\n:INPUT DROP [0:0]\n-A INPUT -s 2001:db8:1::/48 -p tcp -m tcp --dport 22 -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\nCOMMIT\n",
        true,
        Backend::IptablesNft,
    );
    let mut all = rules(&filter("-A INPUT -j DROP\n"));
    all.merge(v6);
    let net = host();
    let world = World {
        rules: &all,
        net: &net,
    };
    let answer = reach::reach(world, &tcp("eth0", "2001:db8::10", 22));
    assert_eq!(fate(&answer, "2001:db8:1::5"), "open");
    assert_eq!(fate(&answer, "2001:db8:2::5"), "closed");
    let mut off = host();
    off.interfaces[1].disable_ipv6 = Some(true);
    let answer = reach::reach(
        World {
            rules: &Ruleset::default(),
            net: &off,
        },
        &tcp("eth0", "2001:db8::10", 22),
    );
    assert_eq!(fate(&answer, "2001:db8:1::5"), "closed");
    // A link-local address belongs to one link; its neighbours are answered there.
    let answer = reach::reach(
        World {
            rules: &Ruleset::default(),
            net: &net,
        },
        &tcp("eth0", "fe80::10", 22),
    );
    assert_eq!(fate(&answer, "fe80::77"), "open");
    let answer = reach::reach(
        World {
            rules: &Ruleset::default(),
            net: &net,
        },
        &tcp("docker0", "fe80::10", 22),
    );
    assert_eq!(fate(&answer, "fe80::77"), "closed");
}

#[test]
fn ipsets_with_exceptions_and_other_dimensions() {
    let set = "create s hash:net family inet hashsize 1024 maxelem 65536
add s 10.0.0.0/8
add s 10.1.0.0/16 nomatch
add s 10.1.2.0/24
create p hash:ip,port family inet hashsize 1024 maxelem 65536
add p 203.0.113.9,tcp:22
add p 203.0.113.10,udp:22
create l list:set size 8
add l s
add l p
";
    let (sets, _) = parse::ipset_save(set);
    let ask = |text: &str, client: &str| {
        let mut all = rules(&filter(text));
        all.merge(sets.clone());
        fate(
            &reach::reach(
                World {
                    rules: &all,
                    net: &host(),
                },
                &tcp("eth0", "192.0.2.10", 22),
            ),
            client,
        )
    };
    let drop = "-A INPUT -m set --match-set s src -j DROP\n";
    assert_eq!(ask(drop, "10.9.9.9"), "closed");
    assert_eq!(ask(drop, "10.1.9.9"), "open");
    assert_eq!(ask(drop, "10.1.2.9"), "closed");
    let ports = "-A INPUT -m set --match-set p src,dst -j DROP\n";
    assert_eq!(ask(ports, "203.0.113.9"), "closed");
    assert_eq!(ask(ports, "203.0.113.10"), "open");
    assert_eq!(
        ask("-A INPUT -m set ! --match-set s src -j DROP\n", "10.1.9.9"),
        "closed"
    );
    assert_eq!(
        ask(
            "-A INPUT -m set --match-set l src,dst -j DROP\n",
            "203.0.113.9"
        ),
        "closed"
    );
    assert_eq!(
        ask(
            "-A INPUT -m set --match-set gone src -j DROP\n",
            "203.0.113.9"
        ),
        "maybe"
    );
}

#[test]
fn a_set_that_rules_fill_may_hold_anyone_by_then() {
    let (nft, _) = parse::nft(
        "table inet t {
	set knocked {
		type ipv4_addr
		flags dynamic,timeout
		timeout 1m
	}
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established accept
		tcp dport 7000 add @knocked { ip saddr }
		tcp dport 22 ip saddr @knocked accept
	}
}
",
    );
    let answer = reach::reach(
        World {
            rules: &nft,
            net: &host(),
        },
        &tcp("eth0", "192.0.2.10", 22),
    );
    assert_eq!(fate(&answer, CLIENT), "maybe");
    let answer = reach::reach(
        World {
            rules: &nft,
            net: &host(),
        },
        &tcp("eth0", "192.0.2.10", 23),
    );
    assert_eq!(fate(&answer, CLIENT), "closed");
}

#[test]
fn docker_29_on_nftables_and_the_guard_before_it() {
    let (nft, notes) = parse::nft(
        "table ip docker-bridges {
	chain nat-prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local meta l4proto tcp dnat to meta l4proto . th dport map { tcp . 8080 : 172.17.0.2 . 80 }
	}
	chain filter-FORWARD {
		type filter hook forward priority filter; policy accept;
		oifname \"docker0\" jump filter-in
	}
	chain filter-in {
		ct state established,related accept
		iifname \"docker0\" accept
		ip daddr 172.17.0.2 tcp dport 80 accept
		drop
	}
}
",
    );
    let net = host();
    let answer = reach::reach(
        World {
            rules: &nft,
            net: &net,
        },
        &tcp("eth0", "192.0.2.10", 8080),
    );
    assert_eq!(fate(&answer, CLIENT), "open", "{notes:?} {answer:#?}");
    let (guard, _) = parse::nft(
        "table inet guard {
	chain forward {
		type filter hook forward priority -1; policy accept;
		iifname \"eth0\" ct direction original ct state new meta l4proto tcp ct original proto-dst 8080 ip saddr != 198.51.100.0/24 drop
	}
}
",
    );
    let mut both = nft.clone();
    both.merge(guard);
    let answer = reach::reach(
        World {
            rules: &both,
            net: &net,
        },
        &tcp("eth0", "192.0.2.10", 8080),
    );
    assert_eq!(fate(&answer, CLIENT), "closed");
    assert_eq!(fate(&answer, "198.51.100.9"), "open");
}

#[test]
fn netdev_ingress_comes_before_everything() {
    let (nft, _) = parse::nft(
        "table netdev early {
	chain in {
		type filter hook ingress device \"eth0\" priority -500; policy accept;
		ip saddr 203.0.113.0/24 drop
	}
}
",
    );
    let net = host();
    let world = World {
        rules: &nft,
        net: &net,
    };
    assert_eq!(
        fate(&reach::reach(world, &tcp("eth0", "192.0.2.10", 22)), CLIENT),
        "closed"
    );
    assert_eq!(
        fate(&reach::reach(world, &tcp("eth1", "192.0.2.10", 22)), CLIENT),
        "open"
    );
}

#[test]
fn tproxy_hands_the_packet_to_a_local_socket() {
    let mut proxied = host();
    let rule = |priority, fwmark, table| PolicyRule {
        ipv6: false,
        priority,
        invert: false,
        src: None,
        dst: None,
        iif: None,
        oif: None,
        fwmark,
        protocol: None,
        sport: None,
        dport: None,
        uid: None,
        tos: 0,
        suppress_prefixlength: None,
        unknown_selector: false,
        action: PolicyAction::Table { table },
    };
    proxied.rules = vec![
        rule(0, None, 255),
        rule(10, Some((1, 1)), 100),
        rule(32766, None, 254),
    ];
    let mut local = route("0.0.0.0/0", 1, None);
    local.table = 100;
    local.kind = RouteKind::Local;
    proxied.routes.push(local);
    proxied
        .interfaces
        .push(interface(8, "wg0", None, &["10.9.0.1/24"]));
    let save = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport 80 -j TPROXY --on-port 3129 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1\nCOMMIT\n";
    assert_eq!(
        on(&proxied, save, "eth0", "198.51.100.80", 80, CLIENT),
        "open"
    );
    assert_eq!(
        on(
            &proxied,
            &format!("{save}{}", filter("-A INPUT -j DROP\n")),
            "eth0",
            "198.51.100.80",
            80,
            CLIENT
        ),
        "closed"
    );
}

/// The witness for one client is the piece of the whole answer that has it.
#[test]
fn who_asks_for_one_client_gets_its_piece() {
    let rules = rules(
        "*filter\n:INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
         -A INPUT -s 203.0.113.0/24 -j DROP\n-A INPUT -s 198.51.100.0/24 -m limit --limit 3/min -j ACCEPT\n\
         -A INPUT -p tcp -m tcp --sport 53 -s 192.0.2.0/24 -j ACCEPT\n\
         -A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n",
    );
    let net = host();
    let engine = Engine::new(World {
        rules: &rules,
        net: &net,
    });
    let query = tcp("eth0", "192.0.2.10", 22);
    let answer = engine.reach(&query);
    let decision = engine.decide(&query);
    assert_eq!(decision.admitted(), &answer.admitted);
    assert_eq!(decision.conditional(), &answer.conditional);
    assert_eq!(decision.blocked(), &answer.blocked);
    for client in [
        "203.0.113.9",
        "198.51.100.9",
        "192.0.2.77",
        "10.1.2.3",
        "8.8.8.8",
        "127.0.0.1",
        "224.0.0.1",
    ] {
        let found = decision.piece(client.parse().unwrap());
        assert_eq!(found.as_ref(), Some(piece(&answer, client)), "{client}");
    }
    assert_eq!(decision.piece("2001:db8::1".parse().unwrap()), None);
}
