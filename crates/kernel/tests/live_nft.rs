//! The netlink reader against `nft list ruleset`, on native nf_tables rules.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
use common::*;

/// Loads a ruleset and compares both readers, rules and expressions counted.
fn check(text: &str) {
    let text = text.to_owned();
    in_new_namespace(move || {
        run("/usr/sbin/ip", &["link", "set", "lo", "up"], "");
        run(NFT, &["-f", "-"], &text);
        compare();
    });
}

/// What nft's listing does not tell is in doubt for a reader of text; the kernel's own answer is not. So the text is
/// compared without these doubts, and here is where each must be.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn what_the_text_leaves_open_the_kernel_tells() {
    for (rule, doubts) in [
        ("tcp dport != 10-20 drop", 1),
        // Never holds; listed as the one before.
        ("tcp dport < 10 tcp dport > 20 drop", 1),
        ("ip saddr 1.2.3.4 reject with tcp reset", 0),
        ("reject with tcp reset", 1),
        ("tcp dport 10-20 drop", 0),
    ] {
        in_new_namespace(move || {
            run(NFT, &["-f", "-"], &table(rule));
            assert_eq!(doubts_of(&kernel::filter().unwrap().ruleset), 0, "{rule}");
            assert_eq!(doubts_of(&by_text()), doubts, "{rule}");
        });
    }
    // The kernel's reader keeps apart what the text does not.
    in_new_namespace(|| {
        run(
            NFT,
            &["-f", "-"],
            &table("tcp dport != 10-20 drop\ntcp dport < 10 tcp dport > 20 drop"),
        );
        let ours = kernel::filter().unwrap().ruleset;
        let chain = ours.tables[0].chain("c").unwrap();
        assert_ne!(chain.rules[0].statements, chain.rules[1].statements);
        let text = by_text();
        let chain = text.tables[0].chain("c").unwrap();
        assert_eq!(chain.rules[0].statements, chain.rules[1].statements);
    });
}

/// Conditions that any rule of an inet filter chain may have, each with what it needs.
const MATCHES: &[&str] = &[
    "meta mark 1",
    "meta mark != 7",
    "meta mark 1-5",
    "meta mark != 1-5",
    "meta mark > 7",
    "meta mark < 7",
    "meta mark >= 7",
    "meta mark <= 7",
    "meta mark & 0xff == 4",
    "meta mark & 0xff != 4",
    "meta mark & 0xff == 0",
    "meta mark { 1, 3, 9 }",
    "meta mark { 1-4, 9 }",
    "meta mark @marks",
    "ip dscp 4",
    "ip6 dscp 4",
    "ip dscp != ef",
    "ip dscp { 4, 8 }",
    "ip6 dscp { 4, 8 }",
    "tcp dport 22",
    "tcp dport 10-20",
    "tcp dport != 10-20",
    "tcp dport > 1024",
    "tcp dport { 22, 80, 443 }",
    "tcp dport { 22, 80-90 }",
    "tcp dport != { 22, 80-90 }",
    "udp dport 53",
    "udp sport 53 udp dport 1024-65535",
    "tcp sport 5 tcp dport 6",
    "sctp dport 5",
    "ip saddr 1.2.3.4",
    "ip saddr 10.0.0.0/8",
    "ip saddr 10.1.0.0/17",
    "ip saddr != 10.0.0.0/8",
    "ip saddr 10.0.0.1-10.0.0.99",
    "ip saddr { 10.0.0.0/8, 192.168.1.7 }",
    "ip saddr & 0.0.0.255 == 0.0.0.7",
    "ip saddr 1.2.3.4 ip daddr 1.2.3.5",
    "ip daddr 224.0.0.0/4",
    "ip6 saddr 2001:db8::/32",
    "ip6 saddr fe80::/10",
    "ip6 daddr { ::1, 2001:db8::/33 }",
    "ip6 saddr != 2001:db8::5",
    "ether saddr 00:11:22:33:44:55",
    "icmp type echo-request",
    "icmp type { echo-request, echo-reply }",
    "icmp type echo-request icmp code 0",
    "icmpv6 type nd-neighbor-solicit",
    "icmpv6 type { nd-router-advert, nd-neighbor-advert }",
    "ct state new",
    "ct state established,related",
    "ct state { new, established }",
    "ct state == new",
    "ct state != new",
    "ct state invalid",
    "ct status dnat",
    "ct direction original",
    "ct mark 5",
    "ct mark & 0xf == 5",
    "ct zone 3",
    "meta l4proto tcp ct original proto-dst 80",
    "ct original ip saddr 10.0.0.0/8",
    "ct original ip daddr 1.2.3.4",
    "ct reply ip6 saddr 2001:db8::1",
    "tcp flags & (syn|ack) == syn",
    "tcp flags & (fin|syn|rst|ack) == syn",
    "tcp flags & (syn|ack) != syn",
    "tcp flags syn",
    "tcp flags syn,ack",
    "tcp flags & syn == 0",
    "fib saddr . iif oif missing",
    "fib saddr . iif oif exists",
    "fib daddr type local",
    "fib daddr type != local",
    "fib daddr type { local, broadcast }",
    "fib daddr . iif type local",
    "fib saddr . mark . iif oif 0",
    "iifname \"eth*\"",
    "iifname \"eth0\"",
    "iifname != \"eth0\"",
    "iifname { \"a\", \"b\" }",
    "iifname @names",
    "iifname \"verylongname012\"",
    "iif lo",
    "iif != lo",
    "iiftype ether",
    "iifgroup 5",
    "meta l4proto { tcp, udp } th dport 53",
    "meta l4proto tcp",
    "meta l4proto != icmp",
    "meta nfproto ipv6",
    "meta nfproto ipv4",
    "ip protocol tcp",
    "ip protocol igmp",
    "ip6 nexthdr tcp",
    "ip protocol { tcp, udp } th dport 53",
    "meta pkttype broadcast",
    "meta pkttype { broadcast, multicast }",
    "meta length 100-200",
    "meta length > 100",
    "ip length 5-9",
    "ip ttl 1",
    "ip6 hoplimit < 5",
    "ip frag-off & 0x1fff != 0",
    "meta cpu 0",
    "ip saddr . tcp dport @cc",
    "iifname . ip saddr . meta mark @cd",
    "ip saddr . tcp dport { 1.2.3.4 . 22, 1.2.3.5 . 80 }",
    "ip saddr . tcp dport { 10.0.0.0/8 . 22-25 }",
    "ip saddr @v4",
    "ip saddr != @v4",
    "ip6 saddr @v6",
    "tcp dport @ports",
    "limit rate 10/minute",
    "limit rate over 10/second burst 3 packets",
    "limit rate 1 mbytes/second",
    "ct count over 5",
    "ct count 5",
    "quota over 1000 bytes",
    "numgen random mod 2 == 0",
    "socket transparent 1",
    "meta skuid 1000",
    "@th,16,16 22",
    "@nh,96,32 0x0a000001",
    "exthdr frag exists",
    "rt ipsec exists",
    "meta ipsec exists",
    "tcp option maxseg size 5",
];

const ACTIONS: &[&str] = &[
    "accept",
    "drop",
    "return",
    "continue",
    "jump other",
    "goto other",
    "reject",
    "reject with tcp reset",
    "reject with icmpx admin-prohibited",
    "reject with icmp host-unreachable",
    "reject with icmp port-unreachable",
    "reject with icmpv6 port-unreachable",
    "reject with icmpv6 no-route",
    "counter",
    "counter accept",
    "log",
    "log prefix \"x y: \" accept",
    "log prefix \"g\" group 3 drop",
    "meta mark set 5",
    "meta mark set meta mark | 4",
    "meta mark set meta mark & 0xff",
    "meta mark set ct mark",
    "meta mark set ct mark & 0xff accept",
    "ct mark set meta mark",
    "ct mark set 7 drop",
    "meta nftrace set 1",
    "meta priority set 1:2",
    "ct state vmap { established : accept, related : accept, invalid : drop }",
    "tcp dport vmap { 22 : accept, 23-25 : drop }",
    "tcp dport vmap @verdicts",
    "iifname vmap { \"lo\" : accept, \"eth0\" : jump other }",
    "ip saddr vmap { 10.0.0.0/8 : jump other, 192.168.0.0/16 : drop }",
    "add @dyn { ip saddr }",
    "update @dyn { ip saddr timeout 1m limit rate 5/second } drop",
    "notrack",
    "counter name \"hits\" accept",
    "accept comment \"with a comment\"",
    "tcp option maxseg size set 1400",
    "limit rate 5/second accept",
];

const SETS: &str = r#"
    set marks { type mark; flags interval; elements = { 0x1-0x5, 0x9 } }
    set names { type ifname; flags interval; elements = { "eth*", "lo" } }
    set cc { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 22-25, 1.2.3.4 . 80 } }
    set cd { type ifname . ipv4_addr . mark; elements = { "eth0" . 10.0.0.1 . 7 } }
    set v4 { type ipv4_addr; flags interval; comment "networks"; elements = { 10.0.0.0/8, 192.168.1.1, 1.1.1.1-1.1.1.9 } }
    set v6 { type ipv6_addr; elements = { 2001:db8::1, ::1 } }
    set ports { type inet_service; flags interval; elements = { 22, 80-90, 65000-65535 } }
    set big { type ipv4_addr; flags interval; auto-merge; elements = { 0.0.0.0/1, 255.255.255.255 } }
    set dyn { type ipv4_addr; size 128; flags dynamic,timeout; timeout 5m; }
    map verdicts { type inet_service : verdict; elements = { 22 : accept, 80 : jump other } }
    counter hits { }
"#;

fn table(rules: &str) -> String {
    let chain = "chain other { }\n chain c { type filter hook input priority 0; policy drop;";
    format!("table inet t {{\n{SETS}\n {chain}\n{rules}\n}}\n}}\n")
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn every_match_and_statement_by_itself() {
    let matches = MATCHES.iter().map(|m| format!("{m} accept"));
    let actions = ACTIONS.iter().map(|a| (*a).to_owned());
    check_each(matches.chain(actions).map(|l| (l.clone(), l)), |line| {
        check(&table(line));
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn nat_rules() {
    let rules = [
        "ip daddr 1.1.1.1 tcp dport 81 dnat ip to 10.0.0.2",
        "tcp dport 81 dnat ip to 10.0.0.2:80",
        "tcp dport 81 dnat ip to 10.0.0.2:80-90",
        "tcp dport 81 dnat ip to 10.0.0.2-10.0.0.9 random,persistent",
        "tcp dport 81 dnat ip6 to [2001:db8::1]:80",
        "tcp dport 82 redirect to :83",
        "tcp dport 82 redirect",
        "dnat ip to tcp dport map { 80 : 10.0.0.1, 81 : 10.0.0.2 }",
        "dnat ip to tcp dport map @targets",
        "dnat ip to tcp dport map @ranges",
        "dnat ip to numgen inc mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }",
        "dnat ip to jhash ip saddr mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }",
        "dnat ip prefix to ip daddr map { 10.1.0.0/24 : 10.2.0.0/24 }",
        "tcp dport 99 dnat ip to 10.0.0.1:tcp dport map { 99 : 98 }",
    ];
    check_each(rules.map(|r| (r.to_owned(), r)), |rule| {
        check(&format!(
            "table inet n {{
                map targets {{ type inet_service : ipv4_addr . inet_service; elements = {{ 80 : 10.0.0.1 . 8080 }} }}
                map ranges {{ type inet_service : interval ipv4_addr; elements = {{ 80 : 10.0.0.1-10.0.0.9 }} }}
                chain pre {{ type nat hook prerouting priority dstnat; {rule};
 }}
            }}"
        ));
    });
    check(
        "table inet n { chain post { type nat hook postrouting priority srcnat;
            oifname \"eth0\" masquerade
            ip saddr 172.17.0.0/16 oifname != \"docker0\" masquerade random
            meta l4proto tcp masquerade to :1024-2048
            snat ip to 1.2.3.4
            ip protocol tcp snat ip to 1.2.3.4-1.2.3.9:1000-2000 fully-random
        }
        }",
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn families_hooks_and_flags() {
    let text =
        "table ip a { chain c { type filter hook input priority -10; policy accept; ip saddr 1.2.3.4 tcp dport 22 drop
         } }
         table ip6 a { chain c { type filter hook forward priority 5; ip6 saddr ::1 udp dport 53 drop; icmpv6 type echo-request accept
         } }
         table ip b { flags dormant; chain c { type filter hook output priority 0; } }
         table bridge br { chain c { type filter hook forward priority 0; ether type ip ip saddr 1.2.3.4 drop; iifname \"br0\" accept
         } }
         table arp ar { chain c { type filter hook input priority 0; } }
         table netdev nd { chain c { type filter hook ingress device lo priority -500; ip saddr 1.2.3.4 drop; tcp dport 22 drop
         } }
         table ip f { chain INPUT { type filter hook input priority filter; policy drop; tcp dport { 22, 80 } accept
         } }
         table ip r { chain c { type route hook output priority mangle; meta mark set 1
         } }";
    // nft wants a line break before the brace that ends a table.
    check(&text.replace("} }", "}\n}"));
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_native_table_named_like_one_of_iptables_stays_native() {
    in_new_namespace(|| {
        let text = "table ip filter {\nchain INPUT {\ntype filter hook input priority filter; policy drop;\ntcp dport { 22, 80 } counter accept\n}\n}\n";
        run(NFT, &["-f", "-"], text);
        let ours = kernel::filter().unwrap().ruleset;
        assert_eq!(ours.tables[0].backend, reach::Backend::Nft);
        let rule = &ours.tables[0].chains[0].rules[0];
        assert_eq!(rule.text, "tcp dport { 22, 80 } accept");
    });
}

/// A small table is asked for as a whole, a large one chain by chain; one's rules must not become the other's.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn tables_of_few_and_of_many_rules_side_by_side() {
    let chain = |name: &str, rules: usize| {
        let rules: String = (0..rules)
            .map(|n| format!("tcp dport {} accept comment \"{name}\"\n", n + 1))
            .collect();
        format!("chain {name} {{\n{rules}}}\n")
    };
    let table = |name: &str, sizes: [usize; 4]| {
        let [a, b, c, d] = sizes;
        let base =
            "chain in {\ntype filter hook input priority 0;\njump a\njump b\njump c\njump d\n}\n";
        let (a, b) = (chain("a", a), chain("b", b));
        let (c, d) = (chain("c", c), chain("d", d));
        format!("table ip {name} {{\n{a}{b}{c}{d}{base}}}\n")
    };
    check(&format!(
        "{}{}{}{}",
        table("few", [3, 0, 200, 5]),
        table("border", [0, 300, 0, 204]),
        table("many", [700, 1, 0, 2500]),
        table("empty", [0, 0, 0, 0]),
    ));
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn hundreds_of_random_rulesets() {
    let rulesets = seeds(200).map(|(name, mut random)| {
        let mut rules = String::new();
        for _ in 0..1 + random.below(12) {
            for _ in 0..random.below(3) {
                let m = random.pick(MATCHES);
                // Two that fix the protocol or the family differently are refused by nft.
                let fixed = [
                    "ip",
                    "ct ",
                    "ether",
                    "vlan",
                    "exthdr",
                    "rt",
                    "@",
                    "tcp option",
                    "icmp",
                ];
                let plain = !fixed.iter().any(|f| m.starts_with(f));
                let ports = [
                    "tcp",
                    "udp",
                    "sctp",
                    "meta l4proto",
                    "meta nfproto",
                    "iiftype",
                ];
                if plain && !ports.iter().any(|p| m.starts_with(p)) {
                    rules += &format!("{m} ");
                }
            }
            match random.below(6) {
                0 => rules += &format!("ip saddr {}/{} ", random.v4(), 1 + random.below(32)),
                1 => rules += &format!("ip6 saddr {}/{} ", random.v6(), 97 + random.below(32)),
                2 => rules += &format!("ip daddr != {} ", random.v4()),
                _ => {}
            }
            match random.below(5) {
                0 => rules += &format!("tcp dport {} ", random.port()),
                1 => {
                    let (a, b) = (random.port(), random.port());
                    if a < b {
                        rules += &format!("udp dport {a}-{b} ");
                    }
                }
                2 => {
                    let ports: std::collections::BTreeSet<u64> =
                        (0..1 + random.below(6)).map(|_| random.port()).collect();
                    let list: Vec<String> = ports.iter().map(u64::to_string).collect();
                    rules += &format!("tcp dport {{ {} }} ", list.join(", "));
                }
                _ => {}
            }
            let plain = [
                "accept",
                "drop",
                "return",
                "jump other",
                "counter accept",
                "log prefix \"x\"",
                "meta mark set 5",
            ];
            rules += random.pick(&plain);
            rules.push('\n');
        }
        let text = table(&rules);
        (format!("{name}:\n{text}"), text)
    });
    check_each(rulesets, |text| {
        // What nft itself refuses is no ruleset.
        let refused = {
            let text = text.clone();
            in_new_namespace(move || try_run(NFT, &["-c", "-f", "-"], &text).err())
        };
        assert!(refused.is_none(), "{refused:?}");
        check(text);
    });
}
