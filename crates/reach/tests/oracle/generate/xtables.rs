//! Random rules of iptables, and ipsets.
use super::{Chain, Gen, Rules, Table, Tool};

impl Gen<'_> {
    pub(super) fn xtables(&mut self, out: &mut Rules, tool: Tool) {
        let families: &[&str] = match self.rng.below(3) {
            0 => &["ip"],
            1 => &["ip6"],
            _ => &["ip", "ip6"],
        };
        for family in families {
            let v6 = *family == "ip6";
            if self.rng.chance(25) && out.ipsets.is_empty() {
                out.ipsets = self.ipsets();
            }
            let sets = !out.ipsets.is_empty();
            out.tables.push(self.filter_table(tool, v6, sets));
            for (name, percent) in [("raw", 25), ("mangle", 30), ("nat", 40)] {
                if self.rng.chance(percent) {
                    let table = self.other_table(tool, v6, name, sets);
                    out.tables.push(table);
                }
            }
        }
    }

    fn ipsets(&mut self) -> Vec<String> {
        let mut out = vec![
            "create s4ip hash:ip family inet".to_string(),
            "create s4net hash:net family inet".to_string(),
            "create s4np hash:net,port family inet".to_string(),
            "create s4ipp hash:ip,port,ip family inet".to_string(),
            "create sports bitmap:port range 0-65535".to_string(),
            "create s6net hash:net family inet6".to_string(),
            "create s4if hash:net,iface family inet".to_string(),
            "create s4bm bitmap:ip range 203.0.113.0-203.0.113.255 netmask 30".to_string(),
            "create slist list:set size 8".to_string(),
        ];
        for _ in 0..3 {
            out.push(format!("add -exist s4ip {}", self.address(false)));
            let flag = if self.rng.chance(30) { " nomatch" } else { "" };
            out.push(format!("add -exist s4net {}{flag}", self.prefix(false)));
            let flag = if self.rng.chance(30) { " nomatch" } else { "" };
            out.push(format!("add -exist s6net {}{flag}", self.prefix(true)));
            let port = self.port();
            out.push(format!("add -exist s4np {},tcp:{port}", self.prefix(false)));
            let port = self.port();
            let to = self.rng.text(&["198.51.100.2", "10.9.0.1", "172.30.0.2"]);
            out.push(format!(
                "add -exist s4ipp {},tcp:{port},{to}",
                self.address(false)
            ));
            out.push(format!("add -exist sports {}", self.port()));
            let link = self.rng.text(&["wan0", "lan0"]);
            out.push(format!("add -exist s4if {},{link}", self.prefix(false)));
            out.push(format!(
                "add -exist s4bm 203.0.113.{}",
                self.rng.below(64) * 4
            ));
        }
        for member in ["s4ip", "s4net"] {
            if self.rng.chance(60) {
                out.push(format!("add -exist slist {member}"));
            }
        }
        out
    }

    pub(super) fn policy(&mut self) -> String {
        self.rng.text(&["ACCEPT", "ACCEPT", "DROP"])
    }

    fn filter_table(&mut self, tool: Tool, v6: bool, sets: bool) -> Table {
        let mut chains = vec![];
        for name in ["INPUT", "FORWARD", "OUTPUT"] {
            let head = if name == "OUTPUT" && self.rng.chance(85) {
                "ACCEPT".to_string()
            } else {
                self.policy()
            };
            let mut rules = vec![];
            if self.rng.chance(75) {
                rules.push("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_string());
            }
            let count = match name {
                "INPUT" => 1 + self.rng.below(6),
                "FORWARD" => self.rng.below(5),
                _ => self.rng.below(10) / 7,
            };
            for _ in 0..count {
                let rule = self.xt_rule("filter", name, v6, sets, true);
                rules.push(rule);
            }
            chains.push(Chain {
                name: name.into(),
                head,
                rules,
            });
        }
        for name in ["U1", "U2"] {
            let mut rules = vec![];
            for _ in 0..self.rng.below(4) {
                // U1 may call U2.
                let rule = self.xt_rule("filter", name, v6, sets, name == "U1");
                rules.push(rule);
            }
            chains.push(Chain {
                name: name.into(),
                head: "-".into(),
                rules,
            });
        }
        Table {
            tool,
            family: if v6 { "ip6" } else { "ip" }.into(),
            name: "filter".into(),
            sets: vec![],
            chains,
        }
    }

    fn other_table(&mut self, tool: Tool, v6: bool, name: &str, sets: bool) -> Table {
        let hooks: &[&str] = match name {
            "raw" => &["PREROUTING", "OUTPUT"],
            "mangle" => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
            _ => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        };
        let chains = hooks
            .iter()
            .map(|hook| {
                let count = match (*hook, name) {
                    ("PREROUTING", _) => 1 + self.rng.below(3),
                    ("POSTROUTING", "nat") => self.rng.below(3),
                    _ => self.rng.below(10) / 7,
                };
                let mut rules = vec![];
                for _ in 0..count {
                    let rule = self.xt_rule(name, hook, v6, sets, false);
                    rules.push(rule);
                }
                Chain {
                    name: (*hook).into(),
                    head: "ACCEPT".into(),
                    rules,
                }
            })
            .collect();
        Table {
            tool,
            family: if v6 { "ip6" } else { "ip" }.into(),
            name: name.into(),
            sets: vec![],
            chains,
        }
    }

    fn xt_rule(&mut self, table: &str, chain: &str, v6: bool, sets: bool, jumps: bool) -> String {
        let mut tcp = self.rng.chance(45);
        let target = self.xt_target(table, chain, v6, jumps);
        let needs_tcp = target.contains("--to-ports")
            || target.contains("tcp-reset")
            || target.contains("]:")
            || target.contains("--to-destination") && target.matches(':').count() == 1;
        tcp |= needs_tcp;
        let mut parts = vec![];
        if self.rng.chance(45) {
            parts.push(format!("{}-s {}", self.not(20), self.prefix(v6)));
        }
        if self.rng.chance(12) {
            let to = if v6 {
                ["2001:db8:1::2", "fd00:9::1", "fd00:30::/64"]
            } else {
                ["198.51.100.2", "10.9.0.1", "172.30.0.0/24"]
            };
            parts.push(format!("{}-d {}", self.not(25), self.rng.text(&to)));
        }
        let input = matches!(chain, "PREROUTING" | "INPUT" | "FORWARD" | "U1" | "U2");
        let output = matches!(chain, "FORWARD" | "OUTPUT" | "POSTROUTING");
        if input && self.rng.chance(20) && !(table == "nat" && chain == "POSTROUTING") {
            let link = self
                .rng
                .text(&["wan0", "lan0", "dock0", "wan+", "+", "lo", "eth+"]);
            // iptables-legacy-save leaves `! -i +`, which never matches, out of its dump (seen).
            let not = if link == "+" { "" } else { self.not(25) };
            parts.push(format!("{not}-i {link}"));
        }
        if output && self.rng.chance(20) {
            let link = self.rng.text(&["wan0", "lan0", "dock0", "dock+", "eth0"]);
            parts.push(format!("{}-o {link}", self.not(25)));
        }
        if tcp {
            parts.push("-p tcp".to_string());
        } else if self.rng.chance(12) {
            let proto = self.rng.text(&["udp", "icmp", "sctp", "! udp", "! tcp"]);
            parts.push(match proto.strip_prefix("! ") {
                Some(p) => format!("! -p {p}"),
                None => format!("-p {proto}"),
            });
        }
        for _ in 0..self.rng.below(3) {
            if let Some(m) = self.xt_match(table, chain, v6, tcp, sets)
                // The same extension twice would need care with its options.
                && !parts.iter().any(|p| p.split(' ').nth(1) == m.split(' ').nth(1) && p.starts_with("-m"))
            {
                parts.push(m);
            }
        }
        parts.push(target);
        parts.join(" ").trim().to_string()
    }

    fn xt_match(
        &mut self,
        table: &str,
        chain: &str,
        v6: bool,
        tcp: bool,
        sets: bool,
    ) -> Option<String> {
        if self.rng.chance(self.conditions) {
            self.conditional = true;
            return Some(self.rng.text(&[
                "-m limit --limit 3/min",
                "-m recent --update --seconds 30 --hitcount 6 --name X",
                "-m statistic --mode random --probability 0.5",
                "-m connlimit --connlimit-above 30",
                "-m quota --quota 1000",
                "-m hashlimit --hashlimit-upto 5/sec --hashlimit-mode srcip --hashlimit-name h",
            ]));
        }
        let not = self.not(25);
        let prerouting = chain == "PREROUTING";
        Some(match self.rng.below(24) {
            0..=4 if tcp => format!("-m tcp {not}--dport {}", self.ports(':')),
            5 if tcp => format!("-m tcp {not}--sport {}", self.source_ports(':')),
            6 | 7 if tcp => {
                let (a, b) = (self.port(), self.ports(':'));
                format!("-m multiport {not}--dports {a},{b}")
            }
            8 if tcp => self.rng.text(&[
                "-m tcp --syn",
                "-m tcp ! --syn",
                "-m tcp --tcp-flags SYN,ACK SYN",
                "-m tcp --tcp-flags ALL NONE",
                "-m tcp --tcp-flags FIN,SYN FIN,SYN",
                "-m tcp --tcp-flags SYN,RST,ACK,FIN SYN",
            ]),
            9..=11 if table != "raw" => {
                let states = self.rng.text(&[
                    "NEW",
                    "NEW,ESTABLISHED",
                    "ESTABLISHED",
                    "INVALID",
                    "UNTRACKED",
                    "DNAT",
                    "NEW,UNTRACKED",
                    "RELATED,ESTABLISHED",
                ]);
                format!("-m conntrack {not}--ctstate {states}")
            }
            12 if table != "raw" => {
                let port = self.ports(':');
                let dir = self.rng.text(&["", " --ctdir ORIGINAL", " --ctdir REPLY"]);
                format!("-m conntrack {not}--ctorigdstport {port}{dir}")
            }
            13 if table != "raw" => {
                let what = self.rng.text(&["--ctorigsrc", "--ctrepldst"]);
                format!("-m conntrack {not}{what} {}", self.prefix(v6))
            }
            14 if table != "raw" => self.rng.text(&[
                "-m conntrack --ctstatus SEEN_REPLY",
                "-m conntrack --ctproto 6",
                "-m conntrack --ctdir ORIGINAL",
                "-m state --state NEW",
            ]),
            15 => {
                let kind = self.rng.text(&[
                    "--dst-type LOCAL",
                    "--dst-type UNICAST",
                    "--src-type LOCAL",
                    "--src-type UNICAST",
                    "--dst-type BROADCAST,MULTICAST",
                ]);
                format!("-m addrtype {not}{kind}")
            }
            16 | 17 => {
                let what = self
                    .rng
                    .text(&["--src-range", "--src-range", "--dst-range"]);
                format!("-m iprange {not}{what} {}", self.range(v6))
            }
            18 => format!(
                "-m mark {not}--mark {}",
                self.rng.text(&["0x1", "0x1/0x3", "0x0", "0x4/0x4"])
            ),
            19 if table != "raw" => {
                format!(
                    "-m connmark {not}--mark {}",
                    self.rng.text(&["0x1", "0x0/0xff"])
                )
            }
            20 | 21 if sets => {
                let set = if v6 {
                    "s6net src".to_string()
                } else {
                    self.rng.text(&[
                        "s4ip src",
                        "s4net src",
                        "s4net dst",
                        "s4np src,dst",
                        "s4ipp src,dst,dst",
                        "s4if src,src",
                        "s4bm src",
                        "slist src",
                    ])
                };
                if set.starts_with("s4if") && !matches!(chain, "INPUT" | "PREROUTING" | "FORWARD") {
                    return None;
                }
                format!("-m set {not}--match-set {set}")
            }
            22 if prerouting && matches!(table, "raw" | "mangle") => {
                self.rng
                    .text(&["-m rpfilter", "-m rpfilter --invert", "-m rpfilter --loose"])
            }
            23 => self.rng.text(&[
                "-m pkttype --pkt-type unicast",
                "-m pkttype --pkt-type broadcast",
                "-m comment --comment \"a -j DROP \\\"b\\\"\"",
            ]),
            _ => return None,
        })
    }

    fn xt_target(&mut self, table: &str, chain: &str, v6: bool, jumps: bool) -> String {
        let container = if v6 { "[fd00:30::2]" } else { "172.30.0.2" };
        let bare = if v6 { "fd00:30::2" } else { "172.30.0.2" };
        match (table, chain) {
            ("nat", "PREROUTING") => match self.rng.below(8) {
                0..=2 => format!("-j DNAT --to-destination {container}:80"),
                3 => format!("-j DNAT --to-destination {bare}"),
                4 => format!("-j REDIRECT --to-ports {}", self.port()),
                5 => {
                    let range = if v6 {
                        "fd00:30::2-fd00:30::3"
                    } else {
                        "172.30.0.2-172.30.0.3"
                    };
                    format!("-j DNAT --to-destination {range}")
                }
                6 => "-j ACCEPT".into(),
                _ => "-j RETURN".into(),
            },
            ("nat", "POSTROUTING") => match self.rng.below(3) {
                0 | 1 => "-j MASQUERADE".into(),
                _ => format!(
                    "-j SNAT --to-source {}",
                    if v6 { "fd00:30::1" } else { "172.30.0.1" }
                ),
            },
            ("nat", _) => self.rng.text(&["-j ACCEPT", "-j RETURN"]),
            ("raw", "PREROUTING" | "OUTPUT") => {
                let text = self.rng.text(&[
                    "-j CT --notrack",
                    "-j DROP",
                    "-j ACCEPT",
                    "-j RETURN",
                    "-j DROP",
                ]);
                self.conditional |= text.contains("notrack");
                text
            }
            ("mangle", _) => self.rng.text(&[
                "-j MARK --set-xmark 0x1/0xffffffff",
                "-j MARK --or-mark 0x4",
                "-j MARK --and-mark 0x2",
                "-j CONNMARK --set-xmark 0x1/0xffffffff",
                "-j CONNMARK --save-mark",
                "-j CONNMARK --restore-mark",
                "-j DROP",
                "-j ACCEPT",
                "-j RETURN",
            ]),
            _ => match self.rng.below(14) {
                0..=3 => "-j ACCEPT".into(),
                4..=6 => "-j DROP".into(),
                7 => "-j REJECT".into(),
                8 => "-j RETURN".into(),
                9 => String::new(),
                10 | 11 if jumps && chain != "U2" => {
                    let to = if chain == "U1" { "U2" } else { "U1" };
                    format!("-j {to}")
                }
                12 if jumps && chain != "U2" => "-g U2".into(),
                13 => "-j REJECT --reject-with tcp-reset".into(),
                _ => "-j ACCEPT".into(),
            },
        }
    }
}
