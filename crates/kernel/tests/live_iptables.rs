//! The netlink reader against iptables-save, on what iptables-nft puts into the kernel.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
use common::*;

/// Loads dumps, and compares both readers: the same rules, and the same words.
fn check(v4: &str, v6: &str) {
    let (v4, v6) = (v4.to_owned(), v6.to_owned());
    in_new_namespace(move || {
        for (program, dump) in [(IPTABLES_RESTORE, &v4), (IP6TABLES_RESTORE, &v6)] {
            if !dump.is_empty() {
                run(program, &[], dump);
            }
        }
        compare_words();
    });
}

fn compare_words() {
    let ours = compare();
    for (program, family) in [
        (IPTABLES_SAVE, reach::ir::Family::Ip),
        (IP6TABLES_SAVE, reach::ir::Family::Ip6),
    ] {
        let theirs: Vec<String> = rule_lines(&run(program, &[], ""))
            .into_iter()
            .filter(|l| l.starts_with("-A"))
            .collect();
        let tables = ours.ruleset.tables.iter().filter(|t| t.family == family);
        let mine: Vec<String> = tables
            .flat_map(|t| &t.chains)
            .flat_map(|c| &c.rules)
            .map(|r| r.text.clone())
            .collect();
        let mut sorted = (mine.clone(), theirs.clone());
        sorted.0.sort();
        sorted.1.sort();
        for (a, b) in sorted.0.iter().zip(&sorted.1) {
            // iptables-save adds the end of the epoch to `-m time`.
            if !a.contains(" -m time ") {
                assert_eq!(a, b);
            }
        }
        assert_eq!(mine.len(), theirs.len());
    }
}

const VOCABULARY_4: &str = r#"*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:foo - [0:0]
:UPPER_lower-1 - [0:0]
-A INPUT -s 10.0.0.0/8 -d 192.168.1.0/25 -i eth0 -p tcp -m tcp --dport 22 -m comment --comment "hi there" -j ACCEPT
-A INPUT ! -s 10.0.0.1/32 -i eth+ -p udp -m udp --sport 53 --dport 1000:2000 -j foo
-A INPUT -s 10.0.0.1/255.0.0.255 ! -i lo -j foo
-A INPUT -p tcp -m tcp --tcp-flags SYN,ACK SYN -g foo
-A INPUT -p tcp -m tcp ! --dport 5:9 --tcp-flags FIN,SYN,RST,ACK SYN
-A INPUT -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE
-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j DROP
-A INPUT -p tcp -m tcp --dport 0:1023 -j DROP
-A INPUT -p tcp -m tcp --sport 1024:65535 -j DROP
-A INPUT -p tcp -m tcp --tcp-option 8
-A INPUT -p icmp -m icmp --icmp-type 8 -m limit --limit 3/min --limit-burst 7 -j LOG --log-prefix "x y" --log-level 7
-A INPUT -p icmp -m icmp --icmp-type 3/4 -j ACCEPT
-A INPUT -p icmp -m icmp ! --icmp-type 5 -j ACCEPT
-A INPUT -p icmp -m icmp --icmp-type any -j ACCEPT
-A INPUT -p tcp -m mark --mark 0x1/0xff -m connmark --mark 0x2 -j REJECT --reject-with tcp-reset
-A INPUT -m mark ! --mark 0x0 -m connmark ! --mark 0x0/0x1
-A INPUT ! -p tcp -f -j NFLOG --nflog-prefix a --nflog-group 2
-A INPUT ! -f -j NFLOG --nflog-prefix "a b" --nflog-group 3 --nflog-size 128 --nflog-threshold 5
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -m conntrack ! --ctstate INVALID,NEW,UNTRACKED,SNAT,DNAT -j ACCEPT
-A INPUT -m conntrack --ctorigsrc 10.0.0.0/8 -m conntrack ! --ctorigdstport 80
-A INPUT -m conntrack --ctproto 6 --ctorigsrc 10.0.0.0/8 --ctorigdst 1.2.3.4 ! --ctreplsrc 5.6.0.0/16 --ctrepldst 9.9.9.9 --ctorigsrcport 1:9 --ctorigdstport 80 --ctreplsrcport 7 --ctrepldstport 8:10 --ctstatus SEEN_REPLY,ASSURED --ctexpire 1:30 --ctdir REPLY
-A INPUT -m conntrack --ctstatus NONE
-A INPUT -p tcp -m state --state NEW -m multiport --dports 1,2,10:20 -j RETURN
-A INPUT -p tcp -m multiport ! --sports 1,2 -j RETURN
-A INPUT -p udp -m multiport --ports 500,4500 -j RETURN
-A INPUT -j NFQUEUE --queue-num 3 --queue-bypass
-A INPUT -j NFQUEUE --queue-balance 3:5 --queue-cpu-fanout
-A INPUT -m addrtype --dst-type LOCAL
-A INPUT -m addrtype ! --src-type UNICAST,BROADCAST --dst-type MULTICAST --limit-iface-in
-A INPUT -m hashlimit --hashlimit-upto 10/sec --hashlimit-burst 20 --hashlimit-mode srcip --hashlimit-name ssh -j ACCEPT
-A INPUT -m hashlimit --hashlimit-above 3/min --hashlimit-burst 5 --hashlimit-mode srcip,dstport --hashlimit-name two --hashlimit-srcmask 24 --hashlimit-htable-expire 30000 -j DROP
-A INPUT -p tcp -m conntrack --ctstate NEW -m recent --set --name DEFAULT --mask 255.255.255.255 --rsource
-A INPUT -p tcp -m recent --update --seconds 30 --hitcount 6 --name DEFAULT --mask 255.255.255.255 --rsource -j DROP
-A INPUT -m recent ! --rcheck --seconds 30 --reap --rttl --name "o-k" --mask 255.255.255.0 --rdest
-A INPUT -m recent --remove --name x --mask 255.255.255.255 --rsource
-A INPUT -p tcp -m connlimit --connlimit-above 5 --connlimit-mask 24 --connlimit-saddr -j DROP
-A INPUT -p tcp -m connlimit --connlimit-upto 5 --connlimit-mask 32 --connlimit-daddr
-A INPUT -m iprange --src-range 10.0.0.5-10.0.0.9 ! --dst-range 1.1.1.1-1.1.1.2
-A INPUT -m mac --mac-source 00:11:22:aa:bb:cc
-A INPUT -m mac ! --mac-source 00:11:22:aa:bb:cc
-A OUTPUT -m owner --uid-owner 1000 -j ACCEPT
-A OUTPUT -m owner ! --uid-owner 1000-2000 --gid-owner 5
-A OUTPUT -m owner --socket-exists
-A FORWARD -m physdev --physdev-in eth0 --physdev-out veth+ --physdev-is-bridged
-A INPUT -m physdev ! --physdev-is-in
-A INPUT -m pkttype --pkt-type broadcast
-A INPUT -m pkttype ! --pkt-type multicast
-A INPUT -m statistic --mode random --probability 0.50000000000
-A INPUT -m statistic --mode nth --every 3 --packet 1
-A INPUT -m length --length 100:200
-A INPUT -m length ! --length 5
-A INPUT -m ttl --ttl-eq 1
-A INPUT -m ttl ! --ttl-eq 1
-A INPUT -m ttl --ttl-lt 9
-A INPUT -m ttl --ttl-gt 9
-A INPUT -m dscp --dscp 0x2e
-A INPUT -m dscp ! --dscp 0x2e
-A INPUT -m tos --tos 0x10/0x3f
-A INPUT -m string --string "GET /" --algo bm --to 65535
-A INPUT -m time --timestart 10:00:00 --timestop 12:00:00
-A INPUT -m quota --quota 1000
-A INPUT -m helper --helper ftp
-A INPUT -m devgroup --src-group 0x5
-A INPUT -m comment --comment "quo\"te \\ back \'s" -j DROP
-A INPUT -p sctp -m sctp --dport 5
-A INPUT -p esp -j ACCEPT
-A INPUT -p ah -j ACCEPT
-A INPUT -p igmp -j ACCEPT
-A INPUT -p udplite -j ACCEPT
-A INPUT -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A INPUT -j REJECT --reject-with icmp-port-unreachable
-A INPUT -j REJECT --reject-with icmp-admin-prohibited
-A INPUT -j LOG --log-prefix "[UFW BLOCK] " --log-tcp-sequence --log-ip-options --log-uid --log-macdecode
-A INPUT
-A INPUT -j UPPER_lower-1
-A foo -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080
-A DOCKER -p tcp -j DNAT --to-destination 172.17.0.2-172.17.0.9
-A DOCKER -p tcp -j DNAT --to-destination 172.17.0.2:80-90 --random --persistent
-A DOCKER -p tcp -j DNAT --to-destination :99
-A DOCKER -p tcp -m tcp --dport 81 -j REDIRECT --to-ports 8080
-A DOCKER -p tcp -m tcp --dport 82 -j REDIRECT --to-ports 8080-8090 --random
-A DOCKER -j REDIRECT
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -p udp -j MASQUERADE --to-ports 1024-2048 --random-fully
-A POSTROUTING -o e -j SNAT --to-source 1.2.3.4-1.2.3.9
-A POSTROUTING -p tcp -j SNAT --to-source 1.2.3.4:100-200 --random --persistent
-A PREROUTING -d 10.1.0.0/16 -j NETMAP --to 10.2.0.0/16
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff
-A PREROUTING -j MARK --set-xmark 0x1/0xff
-A PREROUTING -j MARK --set-xmark 0x0/0xff
-A PREROUTING -j CONNMARK --set-xmark 0x5/0xffffffff
-A PREROUTING -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff00
-A PREROUTING -p tcp -m socket --transparent -j ACCEPT
-A PREROUTING -m socket
-A PREROUTING -p tcp -j TPROXY --on-port 1080 --on-ip 127.0.0.1 --tproxy-mark 0x1/0x1
-A PREROUTING -m rpfilter --loose --validmark --accept-local --invert -j DROP
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1400
-A POSTROUTING -j CLASSIFY --set-class 0001:0010
-A POSTROUTING -j DSCP --set-dscp 0x2e
-A POSTROUTING -j TOS --set-tos 0x10/0x3f
-A POSTROUTING -j TTL --ttl-set 64
-A POSTROUTING -p udp -m udp --dport 68 -j CHECKSUM --checksum-fill
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack
-A PREROUTING -p tcp -j CT --zone 5
-A PREROUTING -j NOTRACK
-A PREROUTING -j TRACE
COMMIT
"#;

const VOCABULARY_6: &str = r#"*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw6-before-input - [0:0]
-A INPUT -j ufw6-before-input
-A ufw6-before-input -i lo -j ACCEPT
-A ufw6-before-input -m rt --rt-type 0 -j DROP
-A ufw6-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw6-before-input -p ipv6-icmp -m icmp6 --icmpv6-type 129 -j ACCEPT
-A ufw6-before-input -p ipv6-icmp -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j ACCEPT
-A ufw6-before-input -s fe80::/10 -p ipv6-icmp -m icmp6 --icmpv6-type 130 -j ACCEPT
-A ufw6-before-input -s fe80::/10 -d fe80::/10 -p udp -m udp --sport 547 --dport 546 -j ACCEPT
-A ufw6-before-input -d ff02::fb/128 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw6-before-input ! -s 2001:db8::/33 ! -d ::1/128 -m recent --set --name DEFAULT --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource
-A ufw6-before-input -m iprange --src-range 2001:db8::1-2001:db8::5
-A ufw6-before-input -m conntrack --ctorigsrc 2001:db8::/32 --ctorigdst ::1
-A ufw6-before-input -p tcp -m connlimit --connlimit-above 3 --connlimit-mask 64 --connlimit-saddr -j DROP
-A ufw6-before-input -m hashlimit --hashlimit-upto 5/hour --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name h6 --hashlimit-srcmask 64
-A ufw6-before-input -p tcp -j REJECT --reject-with tcp-reset
-A ufw6-before-input -j REJECT --reject-with icmp6-adm-prohibited
-A ufw6-before-input -j REJECT --reject-with icmp6-port-unreachable
-A ufw6-before-input -m eui64
-A ufw6-before-input -m frag --fragid 5 --fragfirst
-A ufw6-before-input -m hbh --hbh-len 5
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd00::2]:8080
-A PREROUTING -j DNAT --to-destination fd00::2
-A PREROUTING -p tcp -j REDIRECT --to-ports 8080
-A POSTROUTING -s fd00::/64 ! -o br0 -j MASQUERADE
-A POSTROUTING -p tcp -j SNAT --to-source [fd00::2]:80-90
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -j TPROXY --on-port 1080 --on-ip ::1 --tproxy-mark 0x1/0x1
-A POSTROUTING -j HL --hl-set 64
COMMIT
"#;

#[test]
#[ignore = "live: run by cargo xtask test"]
fn the_whole_vocabulary_line_by_line() {
    let mut cases = Vec::new();
    for (text, v6) in [(VOCABULARY_4, false), (VOCABULARY_6, true)] {
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            }
            if line.starts_with("-A") {
                let chains = ":foo - [0:0]\n:UPPER_lower-1 - [0:0]\n:DOCKER - [0:0]\n:ufw6-before-input - [0:0]\n";
                let dump = format!("*{table}\n{chains}{line}\nCOMMIT\n");
                cases.push((line.to_owned(), (dump, v6)));
            }
        }
    }
    check_each(cases, |(dump, v6)| match v6 {
        false => check(dump, ""),
        true => check("", dump),
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn the_whole_vocabulary_at_once() {
    check(VOCABULARY_4, VOCABULARY_6);
}

/// A rule of the filter table, from what iptables-save itself would print.
fn random_rule(random: &mut Random, chains: &[String], v6: bool) -> String {
    let mut rule = String::new();
    let address = |random: &mut Random| match v6 {
        true => format!("{}/{}", random.v6(), 97 + random.below(32)),
        false => format!("{}/{}", random.v4(), 1 + random.below(32)),
    };
    for option in ["-s", "-d"] {
        if random.chance(25) {
            let not = if random.chance(20) { "! " } else { "" };
            rule += &format!(" {not}{option} {}", address(random));
        }
    }
    if random.chance(25) {
        let not = if random.chance(20) { "! " } else { "" };
        rule += &format!(
            " {not}-i {}",
            random.pick(&["lo", "eth0", "eth+", "br-0a1b+", "wg0"])
        );
    }
    let protocol = random.pick(&["", "", "tcp", "tcp", "udp", "icmp"]);
    let protocol = if v6 && protocol == "icmp" {
        "ipv6-icmp"
    } else {
        protocol
    };
    if !protocol.is_empty() {
        let not = if random.chance(10) { "! " } else { "" };
        rule += &format!(" {not}-p {protocol}");
        if not.is_empty() {
            rule += &match protocol {
                "tcp" | "udp" => match random.below(4) {
                    0 => format!(" -m {protocol} --dport {}", random.port()),
                    1 => {
                        let (a, b) = (random.port(), random.port());
                        let not = random.pick(&["", " !"]);
                        format!(" -m {protocol}{not} --sport {}:{}", a.min(b), a.max(b))
                    }
                    2 => format!(
                        " -m multiport --dports {},{},{}:{}",
                        random.port(),
                        random.port(),
                        100,
                        100 + random.below(500)
                    ),
                    _ => String::new(),
                },
                "icmp" => format!(" -m icmp --icmp-type {}", random.below(40)),
                _ => format!(" -m icmp6 --icmpv6-type {}", 1 + random.below(200)),
            };
        }
    }
    for _ in 0..random.below(3) {
        let mask = if v6 {
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        } else {
            "255.255.255.255"
        };
        let number = random.below(1 << 16);
        rule += &match random.below(12) {
            0 => format!(
                " -m conntrack --ctstate {}",
                random.pick(&[
                    "NEW",
                    "RELATED,ESTABLISHED",
                    "INVALID",
                    "UNTRACKED",
                    "NEW,SNAT"
                ])
            ),
            1 => format!(" -m mark --mark {number:#x}/0xffff"),
            2 => format!(" -m mark ! --mark {number:#x}"),
            3 => format!(" -m connmark --mark {number:#x}"),
            4 => format!(
                " -m limit --limit {}/{} --limit-burst {}",
                1 + random.below(50),
                random.pick(&["sec", "min", "hour", "day"]),
                1 + random.below(90)
            ),
            5 => format!(
                " -m recent --{} --seconds {} --hitcount {} --name n{} --mask {mask} --rsource",
                random.pick(&["rcheck", "update"]),
                1 + random.below(900),
                1 + random.below(9),
                random.below(3)
            ),
            6 => format!(
                " -m addrtype --{}-type {}",
                random.pick(&["src", "dst"]),
                random.pick(&["LOCAL", "MULTICAST", "UNICAST,LOCAL"])
            ),
            7 => format!(
                " -m length --length {}:{}",
                random.below(99),
                100 + random.below(900)
            ),
            8 => format!(
                " -m pkttype --pkt-type {}",
                random.pick(&["unicast", "broadcast", "multicast"])
            ),
            9 => format!(
                " -m comment --comment \"{}\"",
                random.pick(&["one", "two words", "it\\'s -j ACCEPT", "a \\\"b\\\" \\\\"])
            ),
            10 => format!(
                " -m statistic --mode nth --every {} --packet 0",
                2 + random.below(9)
            ),
            _ => format!(
                " -m hashlimit --hashlimit-upto {}/min --hashlimit-burst {} --hashlimit-mode srcip --hashlimit-name h{}",
                1 + random.below(60),
                1 + random.below(20),
                random.next() % 1_000_000
            ),
        };
    }
    let reject = if v6 {
        "icmp6-port-unreachable"
    } else {
        "icmp-port-unreachable"
    };
    rule += &match random.below(9) {
        0 | 1 => " -j ACCEPT".to_owned(),
        2 => " -j DROP".to_owned(),
        3 => " -j RETURN".to_owned(),
        4 => format!(" -j REJECT --reject-with {reject}"),
        5 => " -j LOG --log-prefix \"[UFW BLOCK] \"".to_owned(),
        6 => format!(
            " -{} {}",
            random.pick(&["j", "g"]),
            chains[random.below(chains.len() as u64) as usize]
        ),
        7 => String::new(),
        _ => format!(" -j NFLOG --nflog-group {}", 1 + random.below(9)),
    };
    rule
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn hundreds_of_random_rulesets() {
    let rulesets = seeds(150).map(|(name, mut random)| {
        let mut dump = |v6: bool| {
            let chains: Vec<String> = (0..1 + random.below(4))
                .map(|i| format!("user-{i}"))
                .collect();
            let mut text =
                "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
                    .to_owned();
            for chain in &chains {
                text += &format!(":{chain} - [0:0]\n");
            }
            for _ in 0..random.below(15) {
                // Jumps from the built-in chain alone make no loops.
                text += &format!("-A INPUT{}\n", random_rule(&mut random, &chains, v6));
            }
            text + "COMMIT\n"
        };
        let (v4, v6) = (dump(false), dump(true));
        (format!("{name}:\n{v4}{v6}"), (v4, v6))
    });
    check_each(rulesets, |(v4, v6)| check(v4, v6));
}
