//! Random rulesets over the whole vocabulary, as the tools take them.
use super::rng::Rng;
use super::world::PORTS;

/// A chain and its rules; the rules are what shrinking takes away.
#[derive(Debug, Clone)]
pub struct Chain {
    /// `INPUT`, or a chain's name in its nft table.
    pub name: String,
    /// iptables: the policy or `-`. nft: the `type … hook …` line, empty for a plain chain.
    pub head: String,
    pub rules: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    Nft,
    IptablesNft,
    IptablesLegacy,
}

#[derive(Debug, Clone)]
pub struct Table {
    pub tool: Tool,
    /// nft: `inet`, `ip`…; iptables: `ip` or `ip6`.
    pub family: String,
    pub name: String,
    /// nft: declarations of sets and maps.
    pub sets: Vec<String>,
    pub chains: Vec<Chain>,
}

/// A ruleset.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub tables: Vec<Table>,
    /// Lines of `ipset restore`.
    pub ipsets: Vec<String>,
    /// It has matches that no packet alone decides.
    pub conditional: bool,
}

impl Rules {
    /// The nft input for its native tables.
    pub fn nft(&self) -> String {
        let mut out = String::from("flush ruleset\n");
        for table in self.tables.iter().filter(|t| t.tool == Tool::Nft) {
            out += &format!("table {} {} {{\n", table.family, table.name);
            for set in &table.sets {
                out += set;
                out.push('\n');
            }
            for chain in &table.chains {
                out += &format!("chain {} {{\n{}\n", chain.name, chain.head);
                for rule in &chain.rules {
                    out += rule;
                    out.push('\n');
                }
                out += "}\n";
            }
            out += "}\n";
        }
        out
    }

    /// The input of iptables-restore for one tool and family.
    pub fn restore(&self, tool: Tool, family: &str) -> String {
        let mut out = String::new();
        for table in &self.tables {
            if table.tool != tool || table.family != family {
                continue;
            }
            out += &format!("*{}\n", table.name);
            for chain in &table.chains {
                out += &format!(":{} {} [0:0]\n", chain.name, chain.head);
            }
            for chain in &table.chains {
                for rule in &chain.rules {
                    out += &format!("-A {} {rule}\n", chain.name);
                }
            }
            out += "COMMIT\n";
        }
        out
    }

    pub fn has(&self, tool: Tool, family: &str) -> bool {
        self.tables
            .iter()
            .any(|t| t.tool == tool && (t.family == family || family.is_empty()))
    }
}

/// What one generation run keeps in mind.
pub struct Gen<'r> {
    pub rng: &'r mut Rng,
    conditional: bool,
    /// Percentage of rules with a match that is conditional by nature.
    conditions: usize,
}

const LINKS: [&str; 5] = ["wan0", "lan0", "dock0", "lo", "eth0"];

pub fn rules(rng: &mut Rng) -> Rules {
    let conditions = if rng.chance(15) { 8 } else { 0 };
    let mut g = Gen {
        rng,
        conditional: false,
        conditions,
    };
    let mut out = Rules::default();
    match g.rng.below(100) {
        0..50 => g.native(&mut out),
        50..68 => g.xtables(&mut out, Tool::IptablesNft),
        68..83 => g.xtables(&mut out, Tool::IptablesLegacy),
        83..89 => {
            g.xtables(&mut out, Tool::IptablesNft);
            g.native(&mut out);
        }
        89..95 => {
            g.xtables(&mut out, Tool::IptablesLegacy);
            g.native(&mut out);
        }
        _ => {
            g.xtables(&mut out, Tool::IptablesNft);
            g.xtables(&mut out, Tool::IptablesLegacy);
        }
    }
    out.conditional = g.conditional;
    out
}

impl Gen<'_> {
    pub fn address(&mut self, v6: bool) -> String {
        if v6 {
            let pool = [
                "2001:db8:5::1",
                "2001:db8:5::2",
                "2001:db8:5:0:8000::",
                "2001:db8:6::77",
                "fd00:9::5",
                "fd00:30::2",
                "2001:db8:1::2",
                "2001:db8:1::99",
                "fe80::1",
                "2400:cb00::1",
            ];
            return self.rng.text(&pool);
        }
        if self.rng.chance(60) {
            let pool = [
                "203.0.113.5",
                "203.0.113.6",
                "203.0.113.127",
                "203.0.113.128",
                "192.0.2.1",
                "10.1.2.3",
                "10.1.2.4",
                "10.9.0.7",
                "172.30.0.2",
                "198.51.100.2",
                "198.51.100.77",
                "8.8.8.8",
                "100.64.1.1",
            ];
            return self.rng.text(&pool);
        }
        format!("203.0.113.{}", self.rng.below(256))
    }

    pub fn prefix(&mut self, v6: bool) -> String {
        if self.rng.chance(25) {
            return self.address(v6);
        }
        let (pool, max) = if v6 {
            (
                &[
                    "2001:db8::",
                    "2001:db8:5::",
                    "fd00::",
                    "2000::",
                    "2001:db8:6::",
                ][..],
                [32, 48, 8, 3, 64],
            )
        } else {
            (
                &[
                    "203.0.113.0",
                    "10.0.0.0",
                    "10.1.2.0",
                    "192.0.0.0",
                    "128.0.0.0",
                ][..],
                [24, 8, 24, 2, 1],
            )
        };
        let at = self.rng.below(pool.len());
        if self.rng.chance(30) && !v6 {
            let len = 25 + self.rng.below(7);
            let host = (self.rng.below(256) as u32) & !((1u32 << (32 - len)) - 1) & 255;
            return format!("203.0.113.{host}/{len}");
        }
        format!("{}/{}", pool[at], max[at])
    }

    pub fn range(&mut self, v6: bool) -> String {
        if v6 {
            let (a, b) = (self.rng.below(200), self.rng.below(200));
            return format!("2001:db8:5::{:x}-2001:db8:5::{:x}", a.min(b), a.max(b));
        }
        let (a, b) = (self.rng.below(256), self.rng.below(256));
        if self.rng.chance(20) {
            return format!("10.0.{}.0-203.0.113.{}", a.min(b), a.max(b));
        }
        format!("203.0.113.{}-203.0.113.{}", a.min(b), a.max(b))
    }

    fn port(&mut self) -> u16 {
        *self.rng.pick(&PORTS)
    }

    fn ports(&mut self, join: char) -> String {
        match self.rng.below(5) {
            0 => format!("1{join}1023"),
            1 => format!("1024{join}65535"),
            2 => {
                let (a, b) = (self.port(), self.port());
                format!("{}{join}{}", a.min(b), a.max(b))
            }
            _ => self.port().to_string(),
        }
    }

    fn source_ports(&mut self, join: char) -> String {
        match self.rng.below(4) {
            0 => format!("1024{join}65535"),
            1 => format!("1{join}40000"),
            2 => format!("40000{join}40001"),
            _ => "40000".to_string(),
        }
    }

    fn not(&mut self, percent: usize) -> &'static str {
        if self.rng.chance(percent) { "! " } else { "" }
    }

    // --- iptables ---

    fn xtables(&mut self, out: &mut Rules, tool: Tool) {
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

    fn policy(&mut self) -> String {
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

    // --- nft ---

    fn native(&mut self, out: &mut Rules) {
        let tables = 1 + self.rng.below(2);
        for at in 0..tables {
            let family = self.rng.text(&["inet", "inet", "inet", "ip", "ip6"]);
            let name = format!("t{at}");
            let sets = self.nft_sets(&family);
            let mut chains = vec![];
            for name in ["u2", "u1"] {
                let mut rules = vec![];
                for _ in 0..self.rng.below(4) {
                    let rule = self.nft_rule(&family, "user", name == "u1", &[]);
                    rules.push(rule);
                }
                chains.push(Chain {
                    name: name.into(),
                    head: String::new(),
                    rules,
                });
            }
            let specs = [
                ("input", 85, "filter", -5..6),
                ("forward", 50, "filter", -5..6),
                ("output", 15, "filter", -5..6),
                ("prerouting", 30, "filter", -310..5),
                ("postrouting", 10, "filter", -5..6),
                ("prerouting", 30, "nat", -105..-95),
                ("postrouting", 15, "nat", 95..105),
            ];
            for (n, (hook, percent, kind, priorities)) in specs.into_iter().enumerate() {
                if !self.rng.chance(percent) {
                    continue;
                }
                let span = (priorities.end - priorities.start) as usize;
                let priority = priorities.start + self.rng.below(span) as i32;
                let policy = if kind == "nat" || matches!(hook, "output" | "postrouting") {
                    "accept".to_string()
                } else {
                    self.rng.text(&["accept", "accept", "drop"])
                };
                let mut rules = vec![];
                let early = hook == "prerouting" && priority < -200;
                if kind == "filter" && self.rng.chance(75) && !early {
                    rules.push("ct state established,related accept".to_string());
                }
                let place = match (kind, hook, early) {
                    ("nat", "prerouting", _) => "dstnat",
                    ("nat", ..) => "srcnat",
                    (_, "prerouting", true) => "raw",
                    (_, hook, _) => hook,
                };
                let count = 1 + self.rng.below(if hook == "input" { 7 } else { 4 });
                for _ in 0..count {
                    let rule = self.nft_rule(&family, place, true, &sets.1);
                    rules.push(rule);
                }
                chains.push(Chain {
                    name: format!("c{n}"),
                    head: format!("type {kind} hook {hook} priority {priority}; policy {policy};"),
                    rules,
                });
            }
            out.tables.push(Table {
                tool: Tool::Nft,
                family,
                name,
                sets: sets.0,
                chains,
            });
        }
        if self.rng.chance(8) {
            let mut rules = vec![];
            for _ in 0..1 + self.rng.below(2) {
                rules.push(format!(
                    "{} {}",
                    self.rng.text(&[
                        "ip saddr 203.0.113.0/25",
                        "ip saddr != 10.0.0.0/8",
                        "ip6 saddr 2001:db8:5::/64",
                        "tcp dport 22",
                        "meta protocol ip tcp dport { 80, 443 }",
                    ]),
                    self.rng.text(&["drop", "accept"])
                ));
            }
            let link = self.rng.text(&["wan0", "lan0"]);
            out.tables.push(Table {
                tool: Tool::Nft,
                family: "netdev".into(),
                name: "nd".into(),
                sets: vec![],
                chains: vec![Chain {
                    name: "ing".into(),
                    head: format!(
                        "type filter hook ingress device \"{link}\" priority 0; policy accept;"
                    ),
                    rules,
                }],
            });
        }
    }

    /// Declarations, and names with what they hold.
    fn nft_sets(&mut self, family: &str) -> (Vec<String>, Vec<(&'static str, &'static str)>) {
        let mut texts = vec![];
        let mut names = vec![];
        let v4 = family != "ip6";
        let v6 = family != "ip";
        if v4 && self.rng.chance(40) {
            let list: Vec<String> = (0..3).map(|_| self.prefix(false)).collect();
            texts.push(format!(
                "set s4 {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {} }}\n }}",
                list.join(", ")
            ));
            names.push(("s4", "v4"));
        }
        if v6 && self.rng.chance(40) {
            let list: Vec<String> = (0..3).map(|_| self.prefix(true)).collect();
            texts.push(format!(
                "set s6 {{ type ipv6_addr; flags interval; auto-merge; elements = {{ {} }}\n }}",
                list.join(", ")
            ));
            names.push(("s6", "v6"));
        }
        if v4 && self.rng.chance(25) {
            let list: Vec<String> = (0..3)
                .map(|_| format!("{} . {}", self.address(false), self.port()))
                .collect();
            texts.push(format!(
                "set cc {{ type ipv4_addr . inet_service; elements = {{ {} }}\n }}",
                unique(list)
            ));
            names.push(("cc", "v4port"));
        }
        if v4 && self.rng.chance(25) {
            let list: Vec<String> = (0..2)
                .map(|at| {
                    let net = if at == 0 {
                        "203.0.113.0/25"
                    } else {
                        "10.0.0.0/8"
                    };
                    format!("{net} . tcp . {}-{}", 20 + at, 500 + self.rng.below(9000))
                })
                .collect();
            texts.push(format!(
                "set ci {{ type ipv4_addr . inet_proto . inet_service; flags interval; elements = {{ {} }}\n }}",
                list.join(", ")
            ));
            names.push(("ci", "v4protoport"));
        }
        if v4 && self.rng.chance(30) {
            let verdicts = ["accept", "drop", "jump u1", "goto u2", "continue", "return"];
            let list: Vec<String> = ["203.0.113.0/26", "203.0.113.64-203.0.113.99", "10.0.0.0/8"]
                .iter()
                .map(|net| format!("{net} : {}", self.rng.text(&verdicts)))
                .collect();
            texts.push(format!(
                "map vm {{ type ipv4_addr : verdict; flags interval; elements = {{ {} }}\n }}",
                list.join(", ")
            ));
            names.push(("vm", "vmap4"));
        }
        if self.rng.chance(25) {
            let verdicts = ["accept", "drop", "jump u1", "goto u2", "return"];
            let list: Vec<String> = ["22", "80-90", "11434"]
                .iter()
                .map(|port| format!("{port} : {}", self.rng.text(&verdicts)))
                .collect();
            texts.push(format!(
                "map vp {{ type inet_service : verdict; flags interval; elements = {{ {} }}\n }}",
                list.join(", ")
            ));
            names.push(("vp", "vmapport"));
        }
        (texts, names)
    }

    fn nft_rule(
        &mut self,
        family: &str,
        place: &str,
        jumps: bool,
        sets: &[(&str, &str)],
    ) -> String {
        let mut parts = vec![];
        for _ in 0..1 + self.rng.below(3) {
            if let Some(m) = self.nft_match(family, place, sets) {
                // `nft list` prints `ip6 saddr … meta nfproto ipv4 reject` without the middle part (1.0.6, seen).
                let both = |word: &str| {
                    m.contains(word) && parts.iter().any(|p: &String| p.contains(word))
                };
                if both("nfproto") || both("saddr") && m.contains("ip6") {
                    continue;
                }
                // ... and `tcp dport < 80 tcp dport > 90` as `!= 80-90`, so that both are in doubt.
                let span = m.rsplit(' ').next().is_some_and(|last| last.contains('-'));
                self.conditional |= m.contains("!=") && span;
                self.conditional |= both("tcp dport") && m.contains(['<', '>']);
                if m.contains("nfproto")
                    && family == "inet"
                    && parts.iter().any(|p| p.contains("ip6"))
                {
                    continue;
                }
                parts.push(m);
            }
        }
        parts.push(self.nft_verdict(family, place, jumps, sets));
        parts.join(" ").trim().to_string()
    }

    fn version(&mut self, family: &str) -> bool {
        match family {
            "ip" => false,
            "ip6" => true,
            _ => self.rng.chance(35),
        }
    }

    fn nft_match(&mut self, family: &str, place: &str, sets: &[(&str, &str)]) -> Option<String> {
        if self.rng.chance(self.conditions) {
            self.conditional = true;
            return Some(self.rng.text(&[
                "limit rate 3/minute",
                "limit rate over 3/second",
                "ct count over 20",
                "quota over 10 mbytes",
                "numgen random mod 2 0",
                "meta cpu 0",
                // A client may ask for ECN in its first packet, which is then no bare SYN.
                "tcp flags == syn",
                "tcp flags != syn",
            ]));
        }
        let v6 = self.version(family);
        let l3 = if v6 { "ip6" } else { "ip" };
        let ne = if self.rng.chance(25) { "!= " } else { "" };
        let tracked = place != "raw";
        Some(match self.rng.below(30) {
            0..=3 => format!("{l3} saddr {ne}{}", self.prefix(v6)),
            4 => format!("{l3} saddr {ne}{}", self.range(v6)),
            5 => {
                let single = self.address(v6);
                let other = if v6 { "2400::/12" } else { "100.64.0.0/10" };
                if v6 && single.starts_with("2400") || !v6 && single.starts_with("100.64") {
                    return None;
                }
                format!("{l3} saddr {ne}{{ {single}, {other} }}")
            }
            6 => {
                let to = if v6 {
                    ["2001:db8:1::2", "fd00:9::/64", "fd00:30::/64"]
                } else {
                    ["198.51.100.2", "10.9.0.0/24", "172.30.0.0/24"]
                };
                format!("{l3} daddr {ne}{}", self.rng.text(&to))
            }
            7 | 8 => format!("tcp dport {ne}{}", self.ports('-')),
            9 => {
                let (a, b) = (self.port(), self.port());
                if a == b {
                    return None;
                }
                format!("tcp dport {ne}{{ {a}, {b}, 9000-9100 }}")
            }
            10 => {
                let port = self.port();
                format!(
                    "tcp dport {} {port}",
                    self.rng.text(&[">=", "<", ">", "<="])
                )
            }
            11 => format!("tcp sport {ne}{}", self.source_ports('-')),
            12 => self.rng.text(&[
                "meta l4proto tcp",
                "meta l4proto { tcp, udp }",
                "meta l4proto != udp",
                "meta l4proto udp",
                "th dport 22",
                "udp dport 53",
            ]),
            13 | 14 if tracked => self.rng.text(&[
                "ct state new",
                "ct state established",
                "ct state != new",
                "ct state { new, established }",
                "ct state new,established",
                "ct state invalid",
                "ct state untracked",
                "ct state == new",
            ]),
            15 if tracked => format!(
                "meta l4proto tcp ct original proto-dst {ne}{}",
                self.ports('-')
            ),
            16 if tracked => self.rng.text(&[
                "ct status dnat",
                "ct direction original",
                "ct direction reply",
                "ct status ! dnat",
                "ct mark 0x1",
                "ct mark & 0x3 != 0x0",
                "meta l4proto tcp ct reply proto-src 80",
            ]),
            17 if tracked => format!("ct original {l3} saddr {ne}{}", self.prefix(v6)),
            18 | 19 => {
                let link = self.rng.text(&LINKS);
                match place {
                    "output" | "postrouting" | "srcnat" => format!("oifname {ne}\"{link}\""),
                    "input" | "prerouting" | "raw" | "dstnat" => {
                        format!("iifname {ne}\"{link}\"")
                    }
                    _ => {
                        let key = self.rng.text(&["iifname", "oifname"]);
                        format!("{key} {ne}\"{link}\"")
                    }
                }
            }
            20 => match place {
                "input" | "prerouting" | "raw" | "dstnat" | "user" => self.rng.text(&[
                    "iifname { \"wan*\", \"lo\" }",
                    "iifname \"lan*\"",
                    "iif \"wan0\"",
                    "iif != \"lo\"",
                ]),
                _ => return None,
            },
            21 => self.rng.text(&[
                "meta mark 0x1",
                "meta mark != 0x0",
                "meta mark & 0x3 == 0x1",
                "meta mark { 0x1, 0x4 }",
            ]),
            22 => match place {
                "input" | "prerouting" | "raw" | "dstnat" => self.rng.text(&[
                    "fib daddr type local",
                    "fib daddr type != local",
                    "fib saddr type local",
                    "fib saddr . iif oif missing",
                    "fib saddr . iif oif exists",
                    "fib daddr . iif type local",
                ]),
                _ => return None,
            },
            23 => self.rng.text(&[
                "tcp flags syn",
                "tcp flags & (fin|syn|rst|ack) == syn",
                "tcp flags & (syn|ack) == (syn|ack)",
                "tcp flags ! ack",
            ]),
            24 => match self.rng.below(3) {
                0 if family != "ip6" => {
                    format!("ip saddr & 255.0.0.255 == 203.0.0.{}", self.rng.below(256))
                }
                1 => "meta nfproto ipv4".to_string(),
                _ => "meta pkttype host".to_string(),
            },
            25..=29 if !sets.is_empty() => {
                let (name, kind) = *self.rng.pick(sets);
                match kind {
                    "v4" => format!("ip saddr {ne}@{name}"),
                    "v6" => format!("ip6 saddr {ne}@{name}"),
                    "v4port" => format!("ip saddr . tcp dport {ne}@{name}"),
                    "v4protoport" => format!("ip saddr . meta l4proto . th dport {ne}@{name}"),
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    fn nft_verdict(
        &mut self,
        family: &str,
        place: &str,
        jumps: bool,
        sets: &[(&str, &str)],
    ) -> String {
        match place {
            "dstnat" => {
                let v6 = self.version(family);
                let (l3, host, bracket) = if v6 {
                    ("ip6", "fd00:30::2", "[fd00:30::2]")
                } else {
                    ("ip", "172.30.0.2", "172.30.0.2")
                };
                let l3 = if family == "inet" { format!(" {l3}") } else { String::new() };
                match self.rng.below(7) {
                    0 | 1 => format!("tcp dport {} dnat{l3} to {bracket}:80", self.port()),
                    2 => format!("tcp dport {} dnat{l3} to {host}", self.port()),
                    3 => format!("tcp dport {} redirect to :{}", self.port(), self.port()),
                    4 if !v6 && family != "ip6" => format!(
                        "dnat{l3} to tcp dport map {{ 80 : 172.30.0.2, 443 : 172.30.0.3, 22 : 198.51.100.2 }}"
                    ),
                    5 if !v6 && family != "ip6" => format!(
                        "dnat{l3} addr . port to tcp dport map {{ 80 : 172.30.0.2 . 8080, 5000 : 10.9.0.1 . 22 }}"
                    ),
                    _ => "accept".into(),
                }
            }
            "srcnat" => {
                let v6 = self.version(family);
                match self.rng.below(3) {
                    0 => "masquerade".into(),
                    1 if !v6 && family != "ip6" => {
                        let l3 = if family == "inet" { " ip" } else { "" };
                        format!("oifname \"dock0\" snat{l3} to 172.30.0.1")
                    }
                    _ => "accept".into(),
                }
            }
            "raw" => {
                let text = self
                    .rng
                    .text(&["notrack", "drop", "accept", "meta mark set 0x1", "return"]);
                // Conntrack picks up half a connection, or not.
                self.conditional |= text == "notrack";
                text
            }
            _ => match self.rng.below(22) {
                0..=4 => "accept".into(),
                5..=8 => "drop".into(),
                9 if matches!(place, "input" | "forward" | "output") => {
                    let text = self.rng.text(&["reject", "reject with tcp reset"]);
                    // Before a TCP reset nft's listing hides a test of the IP version.
                    self.conditional |= family == "inet" && text.ends_with("reset");
                    text
                }
                10 => "return".into(),
                11 => "continue".into(),
                12 => "meta mark set 0x1".into(),
                13 => "meta mark set mark or 0x4".into(),
                14 => self.rng.text(&["ct mark set 0x1", "ct mark set mark", "meta mark set ct mark"]),
                15 | 16 if jumps && place != "user" => self.rng.text(&["jump u1", "jump u2", "goto u1", "goto u2"]),
                17 if !sets.is_empty() && place != "user" => {
                    for (name, kind) in sets {
                        match *kind {
                            "vmap4" => return format!("ip saddr vmap @{name}"),
                            "vmapport" => return format!("tcp dport vmap @{name}"),
                            _ => {}
                        }
                    }
                    "accept".into()
                }
                18 if family != "ip6" => {
                    "ip saddr . tcp dport vmap { 203.0.113.5 . 80 : accept, 203.0.113.0/25 . 22-443 : drop }".into()
                }
                19 => "ct state vmap { established : accept, new : continue, invalid : drop }".into(),
                20 => "tcp dport vmap { 22 : accept, 80-443 : drop }".into(),
                _ => String::new(),
            },
        }
    }
}

fn unique(mut list: Vec<String>) -> String {
    list.sort();
    list.dedup();
    list.join(", ")
}
