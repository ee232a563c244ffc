//! Helpers of the live tests.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use reach::ir::{Expr, Family, Key, Match, RuleVerdict, SetRef, Statement, Values};
use reach::parse::{Dumps, combine};
use reach::{Backend, Ruleset};
use std::io::Write;
use std::process::{Command, Stdio};

/// Runs `test` on a thread in a network namespace of its own.
pub fn in_new_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root is needed");
        test()
    })
    .join()
    .unwrap_or_else(|e| std::panic::resume_unwind(e))
}

/// Runs a program; what it prints, or what it complained about.
pub fn try_run(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let text = input.to_owned();
    let writer = std::thread::spawn(move || drop(stdin.write_all(text.as_bytes())));
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&out.stderr).into_owned())
}

pub fn run(program: &str, args: &[&str], input: &str) -> String {
    try_run(program, args, input).unwrap_or_else(|e| panic!("{program} {args:?}: {e}\n{input}"))
}

pub const IPTABLES_SAVE: &str = "/usr/sbin/iptables-nft-save";
pub const IP6TABLES_SAVE: &str = "/usr/sbin/ip6tables-nft-save";
pub const IPTABLES_RESTORE: &str = "/usr/sbin/iptables-nft-restore";
pub const IP6TABLES_RESTORE: &str = "/usr/sbin/ip6tables-nft-restore";
pub const NFT: &str = "/usr/sbin/nft";

/// What the tools' text says about this namespace.
pub fn by_text() -> Ruleset {
    let iptables = run(IPTABLES_SAVE, &[], "");
    let ip6tables = run(IP6TABLES_SAVE, &[], "");
    let nft = run(NFT, &["list", "ruleset"], "");
    let ipset = run("/usr/sbin/ipset", &["save"], "");
    let (ruleset, _) = combine(Dumps {
        iptables: Some(&iptables),
        ip6tables: Some(&ip6tables),
        nft: Some(&nft),
        ipset: Some(&ipset),
        ..Dumps::default()
    });
    ruleset
}

/// A doubt about what nft left out of its listing.
fn is_doubt(s: &Statement) -> bool {
    matches!(s, Statement::Match(Match::Unknown { text }) if text.starts_with("(nft may hide"))
}

/// How many of these doubts the rules have.
pub fn doubts_of(ruleset: &Ruleset) -> usize {
    let statements = ruleset.rules().flat_map(|(_, r)| &r.statements);
    statements.filter(|s| is_doubt(s)).count()
}

/// The rules as if nft's listing left nothing out.
pub fn without_doubts(mut ruleset: Ruleset) -> Ruleset {
    let chains = ruleset.tables.iter_mut().flat_map(|t| &mut t.chains);
    for rule in chains.flat_map(|c| &mut c.rules) {
        rule.statements.retain(|s| !is_doubt(s));
    }
    ruleset
}

/// Two readers, one truth, in this namespace: the netlink reader against the tools' text, apart from
/// what that leaves in doubt. No rule and no expression is dropped in silence. Gives what was read.
pub fn compare() -> kernel::Filter {
    let ours = kernel::filter().unwrap();
    assert_eq!(ours.unseen, Vec::<String>::new());
    // nft's own decoder shows every expression on a line of its own, below a line for each rule.
    let raw = run(NFT, &["--debug=netlink", "list", "ruleset"], "");
    let expressions = raw.lines().filter(|l| l.starts_with("  [ ")).count();
    assert_eq!(ours.stats.expressions, expressions, "expressions");
    let handles = run(NFT, &["-a", "list", "ruleset"], "");
    let lines = handles.lines().filter(|l| l.starts_with("\t\t"));
    let rules = lines.filter(|l| l.contains(" # handle ")).count();
    assert_eq!(ours.stats.rules, rules, "rules");
    if let Some(difference) = difference(&ours.ruleset, &without_doubts(by_text())) {
        panic!("{difference}");
    }
    ours
}

/// Checks cases one by one, so that all that fail are seen at once, each with what it was.
pub fn check_each<T>(cases: impl IntoIterator<Item = (String, T)>, check: impl Fn(&T)) {
    let mut wrong = Vec::new();
    for (name, case) in cases {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&case)));
        if let Err(e) = result {
            let text = e.downcast_ref::<String>().cloned().unwrap_or_default();
            wrong.push(format!("{name}\n{text}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n----\n")
    );
}

/// Rulesets made at random from the seeds 0 to `usually`, or as many as `RULESETS` says.
pub fn seeds(usually: u64) -> impl Iterator<Item = (String, Random)> {
    let count = std::env::var("RULESETS").ok().and_then(|n| n.parse().ok());
    (0..count.unwrap_or(usually)).map(|seed| (format!("seed {seed}"), Random(seed)))
}

/// What does not differ in meaning is made equal: see each step.
pub fn normal(ruleset: &Ruleset) -> Ruleset {
    let mut out = ruleset.bare();
    for table in &mut out.tables {
        table.comment = None;
        // iptables-save shows built-in chains that are not there: nothing hangs on such a hook.
        let iptables = table.backend == Backend::IptablesNft;
        table.chains.retain(|c| {
            let idle = |b: &reach::ir::Base| b.policy == reach::ir::Policy::Accept;
            !(iptables && c.rules.is_empty() && c.base.as_ref().is_some_and(idle))
        });
        // iptables-save lists built-in chains first; the order says nothing.
        table.chains.sort_by(|a, b| a.name.cmp(&b.name));
        for chain in &mut table.chains {
            chain.comment = None;
            for rule in &mut chain.rules {
                rule.statements.iter_mut().for_each(normal_statement);
                drop_implied(&mut rule.statements);
                if matches!(table.family, Family::Bridge | Family::Netdev) {
                    rule.statements.iter_mut().for_each(version_not_type);
                }
            }
        }
    }
    out
}

fn normal_statement(s: &mut Statement) {
    match s {
        Statement::Match(m) => normal_match(m),
        Statement::VerdictMap { map, .. } | Statement::ObjectMap { map, .. } => normal_set(map),
        Statement::Assign { value, .. } => normal_expr(value),
        Statement::Nat(nat) => {
            nat.addr.iter_mut().for_each(normal_expr);
            nat.port.iter_mut().for_each(normal_expr);
        }
        Statement::SetUpdate(u) => u.conditions.iter_mut().for_each(|c| c.text.clear()),
        _ => {}
    }
}

fn normal_match(m: &mut Match) {
    // "(x & bits) == 0" and "none of these bits" are one condition.
    if let Match::Cmp { of, negate, values } = m
        && let Some(mask) = of.mask
        && *values == Values::int(0)
    {
        *m = Match::Bits {
            key: of.key.clone(),
            negate: !*negate,
            bits: mask as u64,
        };
    }
    if let Match::Lookup { set, .. } = m {
        normal_set(set);
    }
}

fn normal_expr(e: &mut Expr) {
    if let Expr::Map { map, .. } = e {
        normal_set(map);
    }
}

/// The order of elements says nothing, nor do the flags of a rule's own set.
fn normal_set(set: &mut SetRef) {
    if let SetRef::Anonymous(set) = set {
        set.name.clear();
        set.constant = true;
        set.interval = false;
        set.elements.sort_by_cached_key(|e| format!("{:?}", e.key));
    }
}

/// On frames nft asks for the EtherType where it asks for the IP version elsewhere.
fn version_not_type(s: &mut Statement) {
    let Statement::Match(Match::Cmp { of, values, .. }) = s else {
        return;
    };
    for (ether, version) in [(0x0800, 2), (0x86dd, 10)] {
        if of.key == Key::EtherType && *values == Values::int(ether) {
            of.key = Key::NfProto;
            *values = Values::int(version);
        }
    }
}

/// nft adds matches that a later one needs, and does not print them: the IP version before ICMP,
/// before `reject with icmp…` and before extension headers, Ethernet before its addresses.
fn drop_implied(statements: &mut Vec<Statement>) {
    let key_of = |s: &Statement| match s {
        Statement::Match(Match::Cmp { of, .. }) => Some(of.key.clone()),
        Statement::Match(Match::Bits { key, .. }) => Some(key.clone()),
        _ => None,
    };
    let keys: Vec<Key> = statements.iter().filter_map(key_of).collect();
    let icmp = [Key::IcmpType, Key::IcmpCode, Key::Icmp6Type, Key::Icmp6Code];
    let rejects = statements.iter().any(|s| {
        matches!(s, Statement::Verdict(RuleVerdict::Reject { with }) if with.starts_with("icmp"))
    });
    let hashes = format!("{statements:?}").contains("Hash {");
    let other = keys.iter().any(|k| matches!(k, Key::Other(_)));
    let version = rejects || hashes || other || keys.iter().any(|k| icmp.contains(k));
    let ether = [Key::EtherSaddr, Key::EtherDaddr];
    let ether = keys.iter().any(|k| ether.contains(k));
    statements.retain(|s| {
        let Statement::Match(Match::Cmp {
            of,
            negate: false,
            values,
        }) = s
        else {
            return true;
        };
        let v4 = *values == Values::int(2) || *values == Values::int(10);
        let implied = (version && of.key == Key::NfProto && v4)
            || (ether && of.key == Key::IifType && *values == Values::int(1));
        !implied
    });
}

/// Where two rulesets differ, for a reader; `None` when nowhere.
pub fn difference(ours: &Ruleset, theirs: &Ruleset) -> Option<String> {
    let (a, b) = (normal(ours), normal(theirs));
    if a == b {
        return None;
    }
    let names = |r: &Ruleset| -> Vec<(Family, String, Backend)> {
        let all = r.tables.iter();
        all.map(|t| (t.family, t.name.clone(), t.backend)).collect()
    };
    if names(&a) != names(&b) {
        return Some(format!("tables: {:?} and {:?}", names(&a), names(&b)));
    }
    for (i, (x, y)) in a.tables.iter().zip(&b.tables).enumerate() {
        let place = format!("{} {}", x.family, x.name);
        if x.sets != y.sets {
            let sets = x.sets.iter().zip(&y.sets).find(|(a, b)| a != b);
            return Some(format!("{place} sets:\n{sets:#?}"));
        }
        for (c, d) in x.chains.iter().zip(&y.chains) {
            if (&c.name, &c.base, c.rules.len()) != (&d.name, &d.base, d.rules.len()) {
                return Some(format!(
                    "{place}: {} {:?} {} and {} {:?} {}",
                    c.name,
                    c.base,
                    c.rules.len(),
                    d.name,
                    d.base,
                    d.rules.len()
                ));
            }
            for (n, (r, s)) in c.rules.iter().zip(&d.rules).enumerate() {
                if r != s {
                    let text = |r: &Ruleset, backend: Backend| {
                        let table = r.table(x.family, &x.name, backend)?;
                        Some(table.chain(&c.name)?.rules.get(n)?.text.clone())
                    };
                    return Some(format!(
                        "{place} {} rule {}:\nkernel: {}\ntext:   {}\n{r:#?}\n{s:#?}",
                        c.name,
                        n + 1,
                        text(ours, a.tables[i].backend).unwrap_or_default(),
                        text(theirs, b.tables[i].backend).unwrap_or_default(),
                    ));
                }
            }
        }
        if x != y {
            let head = |t: &reach::ir::Table| format!("{} {:?}", t.dormant, t.chains.len());
            return Some(format!("{place}: {} and {}", head(x), head(y)));
        }
    }
    Some(format!("ipsets:\n{:#?}\n{:#?}", a.ipsets, b.ipsets))
}

/// The lines of iptables-save that say something.
pub fn rule_lines(save: &str) -> Vec<String> {
    let says = |l: &&str| l.starts_with("-A ") || l.starts_with('*') || l.starts_with(':');
    let line = |l: &str| match l.split_once(" [") {
        Some((chain, _)) if l.starts_with(':') => chain.to_owned(),
        _ => l.trim_end().to_owned(),
    };
    save.lines().filter(says).map(line).collect()
}

/// A small generator (splitmix64), so that a failure can be repeated by its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    pub fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len() as u64) as usize]
    }
    pub fn port(&mut self) -> u64 {
        match self.below(4) {
            0 => [22, 53, 80, 443, 11434, 1, 65535][self.below(7) as usize],
            _ => 1 + self.below(65535),
        }
    }
    pub fn v4(&mut self) -> String {
        let a = self.next() as u32;
        std::net::Ipv4Addr::from_bits(a).to_string()
    }
    pub fn v6(&mut self) -> String {
        let low = u128::from(self.next()) & 0xffff_ffff;
        std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | low).to_string()
    }
}
