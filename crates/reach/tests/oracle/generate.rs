//! Random rulesets over the whole vocabulary, as the tools take them.
mod native;
mod xtables;

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

    // --- nft ---
}
