//! Random rules of nft.
use super::{Chain, Gen, LINKS, Rules, Table, Tool};

impl Gen<'_> {
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

    pub(super) fn native(&mut self, out: &mut Rules) {
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
}

fn unique(mut list: Vec<String>) -> String {
    list.sort();
    list.dedup();
    list.join(", ")
}
