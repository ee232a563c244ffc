//! What `iptables-save` says, as the rule model has it.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use reach::ir::*;
use reach::parse::{Dumps, combine, ipset_save, iptables_save};
use reach::{Backend, Ruleset};

/// The rules of chain INPUT in a filter table made of these lines.
fn input(lines: &str, ipv6: bool) -> (Vec<Rule>, Vec<String>) {
    let dump = format!("*filter\n:INPUT DROP [0:0]\n:USER - [0:0]\n{lines}\nCOMMIT\n");
    let (ruleset, notes) = iptables_save(&dump, ipv6, Backend::IptablesNft);
    let notes = notes.into_iter().map(|n| n.text).collect();
    (
        ruleset.tables[0].chain("INPUT").unwrap().rules.clone(),
        notes,
    )
}

/// One rule's statements in short: what the tests compare.
fn short(rule: &Rule) -> String {
    let parts: Vec<String> = rule.statements.iter().map(brief).collect();
    parts.join(" ; ")
}

fn brief(s: &Statement) -> String {
    match s {
        Statement::Match(Match::Cmp { of, negate, values }) => {
            let mask = of.mask.map_or(String::new(), |m| format!("&{m:#x}"));
            let sign = if *negate { "!=" } else { "=" };
            let values = match values {
                Values::Addr(set) => set
                    .to_cidrs()
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(","),
                Values::Int(set) => set
                    .intervals()
                    .iter()
                    .map(|(a, b)| {
                        if a == b {
                            a.to_string()
                        } else {
                            format!("{a}-{b}")
                        }
                    })
                    .collect::<Vec<_>>()
                    .join(","),
                Values::Name(names) => names
                    .iter()
                    .map(|n| format!("{}{}", n.name, if n.wildcard { "*" } else { "" }))
                    .collect::<Vec<_>>()
                    .join(","),
                Values::Bytes(bytes) => format!("{bytes:x?}"),
            };
            format!("{:?}{mask}{sign}{values}", of.key)
        }
        Statement::Match(Match::Bits { key, negate, bits }) => {
            format!(
                "{key:?} {}{bits:#x}",
                if *negate { "none of " } else { "any of " }
            )
        }
        Statement::Match(Match::Unknown { text }) => format!("unknown<{text}>"),
        Statement::Match(Match::Conditional(c)) => format!("{:?}", c.kind),
        Statement::Match(other) => format!("{other:?}"),
        Statement::Verdict(v) => format!("{v:?}"),
        Statement::Unknown { text } => format!("anything<{text}>"),
        other => format!("{other:?}"),
    }
}

fn check(rule: &str, expect: &str) {
    check_family(rule, false, expect);
}

fn check6(rule: &str, expect: &str) {
    check_family(rule, true, expect);
}

fn check_family(rule: &str, ipv6: bool, expect: &str) {
    let (rules, notes) = input(&format!("-A INPUT {rule}"), ipv6);
    assert_eq!(rules.len(), 1, "{rule}: {notes:?}");
    assert_eq!(short(&rules[0]), expect, "{rule}");
    let doubtful = expect.contains("unknown<") || expect.contains("anything<");
    assert_eq!(!notes.is_empty(), doubtful, "{rule}: {notes:?}");
}

#[test]
fn addresses_and_links() {
    check("-s 10.0.0.0/8 -j ACCEPT", "Saddr(V4)=10.0.0.0/8 ; Accept");
    check("-s 10.1.2.3 -j ACCEPT", "Saddr(V4)=10.1.2.3/32 ; Accept");
    check(
        "! -s 10.0.0.0/255.0.0.0 -j DROP",
        "Saddr(V4)!=10.0.0.0/8 ; Drop",
    );
    check("-s ! 10.0.0.0/8 -j DROP", "Saddr(V4)!=10.0.0.0/8 ; Drop");
    check("-s 0.0.0.0/0 -j DROP", "Drop");
    check(
        "-s 1.2.3.4/255.255.0.255 -j DROP",
        "Saddr(V4)&0xffff00ff=1.2.0.4/32 ; Drop",
    );
    check(
        "-s 10.0.0.0/9,10.128.0.0/9 -j DROP",
        "Saddr(V4)=10.0.0.0/8 ; Drop",
    );
    check("-d 192.0.2.1/32 -j DROP", "Daddr(V4)=192.0.2.1/32 ; Drop");
    check(
        "-i eth+ ! -o lo -j DROP",
        "IifName=eth* ; OifName!=lo ; Drop",
    );
    check("-i + -j DROP", "Drop");
    check6("-s fe80::/10 -j ACCEPT", "Saddr(V6)=fe80::/10 ; Accept");
    check6("-s fe80::/ffc0:: -j ACCEPT", "Saddr(V6)=fe80::/10 ; Accept");
    check("-s example.org -j DROP", "unknown<-s example.org> ; Drop");
    check(
        "-s 2001:db8::/32 -j DROP",
        "unknown<-s 2001:db8::/32> ; Drop",
    );
    check(
        "-m iprange --src-range 10.0.0.0-10.0.0.3 -j DROP",
        "Saddr(V4)=10.0.0.0/30 ; Drop",
    );
    check(
        "-m iprange ! --dst-range 10.0.0.1-10.0.0.1 -j DROP",
        "Daddr(V4)!=10.0.0.1/32 ; Drop",
    );
}

#[test]
fn protocols_and_ports() {
    check(
        "-p tcp -m tcp --dport 22 -j ACCEPT",
        "L4Proto=6 ; Dport=22 ; Accept",
    );
    check(
        "-p tcp --dport 22 -j ACCEPT",
        "L4Proto=6 ; Dport=22 ; Accept",
    );
    check(
        "-m tcp -p tcp --dport ssh -j ACCEPT",
        "L4Proto=6 ; Dport=22 ; Accept",
    );
    check(
        "-p udp -m udp ! --sport 1024: --dport :53",
        "L4Proto=17 ; Sport!=1024-65535 ; Dport=0-53",
    );
    check("! -p icmp -j DROP", "L4Proto!=1 ; Drop");
    check("-p all -j DROP", "Drop");
    check("-p gre -j DROP", "L4Proto=47 ; Drop");
    check("-p nonsense -j DROP", "unknown<-p nonsense> ; Drop");
    check(
        "-p tcp -m multiport --dports 22,80:90,443 -j ACCEPT",
        "L4Proto=6 ; Dport=22,80-90,443 ; Accept",
    );
    check(
        "-p tcp -m multiport ! --ports 22 -j ACCEPT",
        "L4Proto=6 ; Sport!=22 ; Dport!=22 ; Accept",
    );
    check(
        "-p tcp -m multiport --ports 22 -j ACCEPT",
        "L4Proto=6 ; unknown<-m multiport --ports 22> ; Accept",
    );
    check("-p tcp --syn -j DROP", "L4Proto=6 ; TcpFlags&0x17=2 ; Drop");
    check(
        "-p tcp -m tcp ! --tcp-flags ALL NONE -j DROP",
        "L4Proto=6 ; TcpFlags&0x3f!=0 ; Drop",
    );
    check(
        "-p icmp -m icmp --icmp-type 3/4 -j ACCEPT",
        "L4Proto=1 ; IcmpType=3 ; IcmpCode=4 ; Accept",
    );
    check(
        "-p icmp -m icmp --icmp-type echo-request",
        "L4Proto=1 ; IcmpType=8",
    );
    check6(
        "-p ipv6-icmp -m icmp6 --icmpv6-type 135",
        "L4Proto=58 ; Icmp6Type=135",
    );
    check("-f -j DROP", "FragmentOffset!=0 ; Drop");
}

#[test]
fn connections() {
    check(
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "CtState any of 0x6 ; Accept",
    );
    check(
        "-m state ! --state NEW -j DROP",
        "CtState none of 0x8 ; Drop",
    );
    check("-m conntrack --ctstate NEW,DNAT", "CtState any of 0x20008");
    check(
        "-m conntrack --ctorigdstport 11434 --ctdir ORIGINAL -j DROP",
        "CtPort(Original, Dst)=11434 ; CtDirection=0 ; Drop",
    );
    check(
        "-m conntrack ! --ctorigsrc 10.0.0.0/8 --ctproto 6 -j DROP",
        "CtAddr(Original, Src, V4)!=10.0.0.0/8 ; CtProto=6 ; Drop",
    );
    check(
        "-m conntrack --ctstatus SEEN_REPLY,ASSURED",
        "CtStatus any of 0x6",
    );
    // For a packet without an entry the kernel asks for the state alone.
    check(
        "-m conntrack --ctstate UNTRACKED --ctdir ORIGINAL -j ACCEPT",
        "unknown<-m conntrack --ctstate UNTRACKED --ctdir ORIGINAL> ; Accept",
    );
    check("-m mark ! --mark 0x1/0x3", "Mark&0x3!=1");
    check("-m connmark --mark 0x10", "CtMark=16");
}

#[test]
fn matches_that_no_packet_decides() {
    check(
        "-m limit --limit 3/min --limit-burst 10 -j ACCEPT",
        "Limit { rate: 3, per: 60, burst: 10, bytes: false, over: false } ; Accept",
    );
    check(
        "-m recent --update --seconds 30 --hitcount 6 --name X --rsource -j DROP",
        "Recent { name: \"X\", op: Update, negate: false, seconds: Some(30), hitcount: Some(6) } ; Drop",
    );
    check(
        "-m hashlimit --hashlimit-above 5/sec --hashlimit-mode srcip --hashlimit-name h -j DROP",
        "HashLimit { name: \"h\", mode: \"srcip\", above: true } ; Drop",
    );
    check(
        "-m connlimit ! --connlimit-upto 3",
        "ConnLimit { count: 3, above: true }",
    );
    check(
        "-m string --string \"-j DROP\" --algo bm -j DROP",
        "Content ; Drop",
    );
    check("-m statistic --mode random --probability 0.5", "Statistic");
    check(
        "-m geoip --src-cc DE -j DROP",
        "unknown<-m geoip --src-cc DE> ; Drop",
    );
    check(
        "-m nonsense --x 1 2 3 -j DROP",
        "unknown<-m nonsense --x 1 2 3> ; Drop",
    );
    check("--nonsense -j DROP", "unknown<--nonsense> ; Drop");
    check(
        "-p tcp -m tcp --dport 22 --new-option x",
        "L4Proto=6 ; unknown<-m tcp --dport 22 --new-option x>",
    );
}

#[test]
fn a_client_can_leave_extension_headers_away() {
    check6("-m rt --rt-type 0 -j DROP", "NextHeader=43 ; Drop");
    check6(
        "-m rt --rt-type 0 -j ACCEPT",
        "unknown<-m rt --rt-type 0> ; Accept",
    );
}

#[test]
fn address_types_of_ipv6_are_not_those_of_ipv4() {
    let fib =
        "Fib(Fib { saddr: false, daddr: true, iif: false, oif: false, mark: false, result: Type })";
    check(
        "-m addrtype --dst-type LOCAL,BROADCAST",
        &format!("{fib}=2-3"),
    );
    check6("-m addrtype --dst-type LOCAL", &format!("{fib}=2"));
    check6("-m addrtype ! --src-type MULTICAST", "Saddr(V6)!=ff00::/8");
    check6(
        "-m addrtype --dst-type LOCAL,UNICAST",
        "unknown<-m addrtype --dst-type LOCAL,UNICAST>",
    );
}

#[test]
fn targets() {
    check("-j RETURN", "Return");
    check("-j USER", "Jump { chain: \"USER\" }");
    check("-g USER", "Goto { chain: \"USER\" }");
    check("-j NOWHERE", "anything<-j NOWHERE>");
    check(
        "-j REJECT --reject-with tcp-reset",
        "Reject { with: \"tcp-reset\" }",
    );
    check(
        "-j NFQUEUE --queue-num 3 --queue-bypass",
        "Queue { num: 3, bypass: true }",
    );
    check(
        "-j LOG --log-prefix \"[UFW BLOCK] \"",
        "Log { prefix: Some(\"[UFW BLOCK] \") }",
    );
    check(
        "-j MARK --set-xmark 0x1/0xff",
        "Assign { target: Mark, value: Bitwise { of: Key(Mark), and: 4294967040, xor: 1 } }",
    );
    check(
        "-j MARK --set-mark 5",
        "Assign { target: Mark, value: Int(5) }",
    );
    check(
        "-j CONNMARK --save-mark",
        "Assign { target: CtMark, value: Key(Mark) }",
    );
    check("-j CT --notrack", "NoTrack");
    check("-j TARPIT", "anything<-j TARPIT>");
    check(
        "-j MARK --set-mark 5 --unheard-of",
        "anything<-j MARK --set-mark 5 --unheard-of>",
    );
}

fn nat(rule: &str, ipv6: bool) -> Nat {
    let dump = format!("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp {rule}\nCOMMIT\n");
    let (ruleset, notes) = iptables_save(&dump, ipv6, Backend::IptablesNft);
    assert_eq!(notes, [], "{rule}");
    match ruleset.tables[0].chains[0].rules[0].statements.last() {
        Some(Statement::Nat(nat)) => nat.clone(),
        other => panic!("{rule}: {other:?}"),
    }
}

#[test]
fn translation() {
    let one = |text: &str| Some(Expr::Addrs(text.parse().unwrap(), text.parse().unwrap()));
    let n = nat("-j DNAT --to-destination 172.17.0.2:80", false);
    assert_eq!(
        (n.addr, n.port),
        (one("172.17.0.2"), Some(Expr::Ports(80, 80)))
    );
    let n = nat(
        "-j DNAT --to-destination 10.0.0.2-10.0.0.9:80-90 --random",
        false,
    );
    assert_eq!(n.port, Some(Expr::Ports(80, 90)));
    assert!(n.random);
    let n = nat("-j DNAT --to-destination [2001:db8::1]:80", true);
    assert_eq!(
        (n.addr, n.port),
        (one("2001:db8::1"), Some(Expr::Ports(80, 80)))
    );
    let n = nat("-j DNAT --to-destination 2001:db8::1", true);
    assert_eq!((n.addr, n.port), (one("2001:db8::1"), None));
    let n = nat("-j DNAT --to-destination :8080", false);
    assert_eq!((n.addr, n.port), (None, Some(Expr::Ports(8080, 8080))));
    let n = nat("-j REDIRECT --to-ports 8080", false);
    assert_eq!(
        (n.kind, n.port),
        (NatKind::Redirect, Some(Expr::Ports(8080, 8080)))
    );
    let n = nat("-j NETMAP --to 10.0.0.0/24", false);
    assert!(n.netmap && n.kind == NatKind::Dnat);
}

#[test]
fn a_comment_is_a_comment_whatever_it_says() {
    for text in ["-j", "--dport", "ACCEPT", "-A"] {
        let (rules, notes) = input(
            &format!("-A INPUT -m comment --comment {text} -j DROP"),
            false,
        );
        assert_eq!(short(&rules[0]), "Drop", "{notes:?}");
        assert_eq!(rules[0].comment.as_deref(), Some(text));
    }
    let (rules, _) = input(
        "-A INPUT -m comment --comment \"a \\\"b\\\" \\\\ c\nCOMMIT\n-A INPUT -j ACCEPT\" -j DROP\n-A INPUT -j RETURN",
        false,
    );
    assert_eq!(rules.len(), 2);
    assert_eq!(
        rules[0].comment.as_deref(),
        Some("a \"b\" \\ c\nCOMMIT\n-A INPUT -j ACCEPT")
    );
    assert_eq!(short(&rules[0]), "Drop");
    assert_eq!((rules[0].line, rules[1].line), (4, 7));
}

#[test]
fn lines_counters_and_texts_are_kept() {
    let (rules, notes) = input(
        "[3:120] -A INPUT -i lo -j ACCEPT\n-A INPUT -c 1 2 -j DROP",
        false,
    );
    assert_eq!(notes, [] as [String; 0]);
    assert_eq!(rules[0].text, "-A INPUT -i lo -j ACCEPT");
    assert_eq!(
        rules[0].counters,
        Some(Counters {
            packets: 3,
            bytes: 120
        })
    );
    assert_eq!(
        rules[1].counters,
        Some(Counters {
            packets: 1,
            bytes: 2
        })
    );
    assert_eq!((rules[0].line, rules[1].line), (4, 5));
}

#[test]
fn the_dump_says_which_tool_it_is_from() {
    let dump = |tool: &str| {
        format!("# Generated by {tool} on Sun\n*filter\n:INPUT DROP [0:0]\nCOMMIT\n# Completed\n")
    };
    let read = |tool: &str| {
        let (r, _) = iptables_save(&dump(tool), false, Backend::IptablesNft);
        (r.tables[0].family, r.tables[0].backend)
    };
    assert_eq!(
        read("iptables-save v1.8.9 (nf_tables)"),
        (Family::Ip, Backend::IptablesNft)
    );
    assert_eq!(
        read("iptables-save v1.8.9"),
        (Family::Ip, Backend::IptablesLegacy)
    );
    assert_eq!(
        read("ip6tables-save v1.8.9 (nf_tables)"),
        (Family::Ip6, Backend::IptablesNft)
    );
    let (_, notes) = iptables_save(
        "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n",
        false,
        Backend::IptablesNft,
    );
    assert!(notes[0].text.contains("iptables-legacy-save"), "{notes:?}");
}

#[test]
fn what_is_missing_may_do_anything() {
    let ends = |dump: &str| {
        let (r, notes) = iptables_save(dump, false, Backend::IptablesNft);
        let chain = r.tables[0].chain("INPUT").unwrap();
        let last = chain.rules.last().map(short).unwrap_or_default();
        (last.starts_with("anything<"), !notes.is_empty())
    };
    assert_eq!(
        ends("*filter\n:INPUT DROP [0:0]\n-A INPUT -s 10.0.0.0/8 -j ACCEPT\nCOMMIT\n"),
        (false, false)
    );
    assert_eq!(
        ends("*filter\n:INPUT DROP [0:0]\n-A INPUT -s 10.0.0.0/8 -j ACC"),
        (true, true)
    );
    assert_eq!(ends("*filter\n:INPUT DROP [0:0]\n"), (true, true));
    assert_eq!(
        ends("*filter\n:INPUT DROP [0:0]\ngarbage\nCOMMIT\n"),
        (true, true)
    );
    // The tables that would have followed may translate to what this one lets through.
    assert_eq!(
        ends("*filter\n:INPUT DROP [0:0]\nCOMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n"),
        (true, true)
    );
}

#[test]
fn scripts_are_read_too() {
    let (r, notes) = iptables_save(
        "-P INPUT DROP\n-N ours\n-A INPUT -j ours\n-A ours -p tcp --dport 22 -j ACCEPT\n-I INPUT -i lo -j ACCEPT\n",
        false,
        Backend::IptablesNft,
    );
    assert_eq!(notes, []);
    let chain = r.tables[0].chain("INPUT").unwrap();
    assert_eq!(chain.base.as_ref().unwrap().policy, Policy::Drop);
    assert_eq!(short(&chain.rules[0]), "IifName=lo ; Accept");
    assert_eq!(short(&chain.rules[1]), "Jump { chain: \"ours\" }");
}

#[test]
fn real_dumps_are_understood_whole() {
    for (file, ipv6, rules) in [
        ("docker20.iptables-save", false, 120),
        ("docker20.ip6tables-save", true, 110),
    ] {
        let text = std::fs::read_to_string(format!("tests/fixtures/{file}")).unwrap();
        let (r, notes) = iptables_save(&text, ipv6, Backend::IptablesNft);
        assert_eq!(notes, [], "{file}");
        assert_eq!(r.rule_count(), rules, "{file}");
    }
    let text = std::fs::read_to_string("tests/fixtures/vocabulary.iptables-save").unwrap();
    let (r, notes) = iptables_save(&text, false, Backend::IptablesNft);
    assert_eq!(r.rule_count(), 84);
    let odd: Vec<String> = notes.into_iter().map(|n| n.text).collect();
    assert_eq!(
        odd,
        [
            "INPUT: match not understood: -m tcp --tcp-option 5",
            "INPUT: match not understood: -m tos --tos 0x10/0xff",
            "INPUT: match not understood: -m socket --transparent",
            "INPUT: match not understood: -m helper --helper ftp",
            "INPUT: match not understood: -m policy --dir in --pol ipsec",
            "INPUT: match not understood: -m esp --espspi 5",
        ]
    );
}

fn tables(r: &Ruleset) -> Vec<(Family, &str, Backend)> {
    r.tables
        .iter()
        .map(|t| (t.family, t.name.as_str(), t.backend))
        .collect()
}

#[test]
fn a_table_seen_by_two_tools_counts_once() {
    let file = |name: &str| std::fs::read_to_string(format!("tests/fixtures/{name}")).unwrap();
    let save = file("docker20.iptables-save");
    let save6 = file("docker20.ip6tables-save");
    for nft in [file("docker20.nft"), file("docker20.nft.json")] {
        let (both, notes) = combine(Dumps {
            iptables: Some(&save),
            ip6tables: Some(&save6),
            nft: Some(&nft),
            ..Dumps::default()
        });
        assert_eq!(notes, []);
        let nft_backend = Backend::IptablesNft;
        assert_eq!(
            tables(&both),
            [
                (Family::Ip, "filter", nft_backend),
                (Family::Ip, "nat", nft_backend),
                (Family::Ip6, "filter", nft_backend)
            ]
        );
        // Without ip6tables-save, what nft shows of it is kept, and said to be doubtful.
        let (some, notes) = combine(Dumps {
            iptables: Some(&save),
            nft: Some(&nft),
            ..Dumps::default()
        });
        assert_eq!(some.tables.len(), 3);
        assert_eq!(notes.len(), 1, "{notes:?}");
        // A legacy dump is of other tables.
        let legacy = save.replace(" (nf_tables)", "");
        let (apart, _) = combine(Dumps {
            iptables_legacy: Some(&legacy),
            nft: Some(&nft),
            ..Dumps::default()
        });
        assert_eq!(apart.tables.len(), 5);
    }
    let (kept, _) = combine(Dumps {
        iptables: Some("# Table `filter' is incompatible, use 'nft' tool.\n"),
        nft: Some(
            "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n",
        ),
        ..Dumps::default()
    });
    assert_eq!(kept.tables.len(), 1);
}

#[test]
fn ipsets() {
    let (r, notes) = ipset_save(
        "create a hash:ip family inet hashsize 1024 maxelem 65536 timeout 300 bucketsize 12 initval 0x1\n\
         add a 203.0.113.5 timeout 12\nadd a 203.0.113.6 timeout 0 comment \"add b 1.2.3.4\"\n\
         create n hash:net,port family inet6 hashsize 64\nadd n 2001:db8::/32,tcp:80-90 nomatch\n\
         create p bitmap:port range 0-65535\nadd p 22\n\
         create l list:set size 8\nadd l a\nadd l n\n\
         create x hash:ip family inet wondrous\n\
         add l.nope q\n",
    );
    let set = |name: &str| r.ipset(name).unwrap();
    let ip = |text: &str| {
        let a: std::net::IpAddr = text.parse().unwrap();
        Field::Addr(a, a)
    };
    assert_eq!(set("a").entries.len(), 2);
    assert_eq!(set("a").entries[0].key, [ip("203.0.113.5")]);
    assert_eq!(set("a").entries[0].expires, Some(12));
    assert_eq!(set("a").entries[1].expires, None);
    assert_eq!(
        set("a").entries[1].comment.as_deref(),
        Some("add b 1.2.3.4")
    );
    assert!(set("n").entries[0].nomatch);
    assert_eq!(
        set("n").entries[0].key[1],
        Field::Port {
            proto: Some(6),
            first: 80,
            last: 90
        }
    );
    assert_eq!(
        set("p").entries[0].key,
        [Field::Port {
            proto: None,
            first: 22,
            last: 22
        }]
    );
    assert_eq!(
        set("l").entries[1].key,
        [Field::Name(NamePattern::exact("n"))]
    );
    assert!(set("x").incomplete && !set("a").incomplete);
    assert_eq!(notes.len(), 2, "{notes:?}");
}
