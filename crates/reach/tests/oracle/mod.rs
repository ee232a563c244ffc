//! The kernel as the judge: random rulesets, real packets, and the engine's answer beside them.
pub mod generate;
pub mod rng;
pub mod world;

use generate::{Rules, Tool};
use reach::*;
use rng::Rng;
use std::net::IpAddr;
use world::{INGRESS, PORTS, Probe, World, run};

/// What came of many rulesets.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub rulesets: usize,
    pub refused: usize,
    pub packets: usize,
    pub open: usize,
    pub maybe: usize,
    /// "Maybe" in rulesets without matches that are conditional by nature.
    pub needless_maybe: usize,
    pub plain_packets: usize,
    pub false_closed: Vec<String>,
    pub false_open: Vec<String>,
    pub shy: Vec<String>,
    pub refusals: Vec<String>,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.rulesets += other.rulesets;
        self.refused += other.refused;
        self.packets += other.packets;
        self.open += other.open;
        self.maybe += other.maybe;
        self.needless_maybe += other.needless_maybe;
        self.plain_packets += other.plain_packets;
        self.false_closed.extend(other.false_closed);
        self.false_open.extend(other.false_open);
        self.shy.extend(other.shy);
        self.refusals.extend(other.refusals);
    }
}

const NFT: &str = "/usr/sbin/nft";

/// Loads a ruleset, without the rules that the tools refuse: a random conjunction may make no sense.
fn load_what_loads(rules: &mut Rules, legacy: &mut bool) -> Result<(), String> {
    for _ in 0..40 {
        let Err(refusal) = load(rules, legacy) else {
            return Ok(());
        };
        if !drop_line(rules, &refusal) {
            return Err(refusal);
        }
    }
    Err("too many refusals".into())
}

/// Takes away the rule that a tool complains of.
fn drop_line(rules: &mut Rules, refusal: &str) -> bool {
    let number = |before: &str| -> Option<usize> {
        let rest = &refusal[refusal.find(before)? + before.len()..];
        rest[..rest.find(|c: char| !c.is_ascii_digit())?]
            .parse()
            .ok()
    };
    let (text, line) = if refusal.starts_with(NFT) {
        (rules.nft(), number("/dev/stdin:"))
    } else {
        let tool = if refusal.contains("legacy") {
            Tool::IptablesLegacy
        } else {
            Tool::IptablesNft
        };
        let family = if refusal.contains("ip6tables") {
            "ip6"
        } else {
            "ip"
        };
        let line = number("at line: ").or_else(|| number("line "));
        (rules.restore(tool, family), line)
    };
    let Some(at) = line.and_then(|n| n.checked_sub(1)) else {
        return false;
    };
    let Some(mut found) = text.lines().nth(at) else {
        return false;
    };
    if found == "COMMIT" {
        // The kernel refused the table: some rule of it, which one is not told.
        let rule = text
            .lines()
            .take(at)
            .filter(|l| l.starts_with('-') || l.starts_with('*'))
            .last();
        match rule {
            Some(rule) if rule.starts_with('-') => found = rule,
            _ => return false,
        }
    }
    let mut dropped = false;
    for table in &mut rules.tables {
        for chain in &mut table.chains {
            let before = chain.rules.len();
            let name = &chain.name;
            chain
                .rules
                .retain(|r| r != found && format!("-A {name} {r}") != found);
            dropped |= chain.rules.len() != before;
        }
        let before = table.sets.len();
        table.sets.retain(|s| s != found);
        dropped |= table.sets.len() != before;
    }
    dropped
}

/// Loads a ruleset; the error is a tool's.
fn load(rules: &Rules, legacy: &mut bool) -> Result<(), String> {
    run(NFT, &["-f", "-"], "flush ruleset\n")?;
    if *legacy {
        let empty = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n\
            *nat\nCOMMIT\n*mangle\nCOMMIT\n*raw\nCOMMIT\n";
        for tool in [
            "/usr/sbin/iptables-legacy-restore",
            "/usr/sbin/ip6tables-legacy-restore",
        ] {
            run(tool, &["-w", "10"], empty)?;
        }
        *legacy = false;
    }
    // A list of sets holds on to its members; nf_tables lets go of sets a moment after the flush.
    run("/usr/sbin/ipset", &["flush"], "")?;
    for left in (0..50).rev() {
        match run("/usr/sbin/ipset", &["destroy"], "") {
            Ok(_) => break,
            Err(e) if left == 0 => return Err(e),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
        }
    }
    if !rules.ipsets.is_empty() {
        let mut text = rules.ipsets.join("\n");
        text.push('\n');
        run("/usr/sbin/ipset", &["restore"], &text)?;
    }
    if rules.has(Tool::Nft, "") {
        run(NFT, &["-f", "-"], &rules.nft())?;
    }
    for (tool, family, program) in [
        (Tool::IptablesNft, "ip", "/usr/sbin/iptables-nft-restore"),
        (Tool::IptablesNft, "ip6", "/usr/sbin/ip6tables-nft-restore"),
        (
            Tool::IptablesLegacy,
            "ip",
            "/usr/sbin/iptables-legacy-restore",
        ),
        (
            Tool::IptablesLegacy,
            "ip6",
            "/usr/sbin/ip6tables-legacy-restore",
        ),
    ] {
        if rules.has(tool, family) {
            *legacy |= tool == Tool::IptablesLegacy;
            run(program, &["-w", "10"], &rules.restore(tool, family))?;
        }
    }
    Ok(())
}

/// Reads back what the kernel has, by the same dumps that people have, and gives it to the parsers.
fn read(rules: &Rules, json: bool) -> Result<(Ruleset, Vec<parse::Note>), String> {
    let dump = |tool: Tool, family: &str, program: &str| {
        rules
            .has(tool, family)
            .then(|| run(program, &[], ""))
            .transpose()
    };
    let iptables = dump(Tool::IptablesNft, "ip", "/usr/sbin/iptables-nft-save")?;
    let ip6tables = dump(Tool::IptablesNft, "ip6", "/usr/sbin/ip6tables-nft-save")?;
    let legacy4 = dump(Tool::IptablesLegacy, "ip", "/usr/sbin/iptables-legacy-save")?;
    let legacy6 = dump(
        Tool::IptablesLegacy,
        "ip6",
        "/usr/sbin/ip6tables-legacy-save",
    )?;
    let nft = if rules.has(Tool::Nft, "") || rules.has(Tool::IptablesNft, "") {
        let args: &[&str] = if json {
            &["-j", "list", "ruleset"]
        } else {
            &["list", "ruleset"]
        };
        Some(run(NFT, args, "")?)
    } else {
        None
    };
    let ipset = if rules.ipsets.is_empty() {
        None
    } else {
        Some(run("/usr/sbin/ipset", &["save"], "")?)
    };
    Ok(parse::combine(parse::Dumps {
        iptables: iptables.as_deref(),
        ip6tables: ip6tables.as_deref(),
        iptables_legacy: legacy4.as_deref(),
        ip6tables_legacy: legacy6.as_deref(),
        nft: nft.as_deref(),
        ipset: ipset.as_deref(),
    }))
}

fn query(probe: &Probe) -> Query {
    Query {
        ingress: INGRESS[probe.ingress].into(),
        dst: probe.dst,
        proto: Proto::Tcp,
        dport: probe.dport,
        sport: Some(probe.sport),
        sources: if probe.dst.is_ipv4() {
            AddrSet::all_v4()
        } else {
            AddrSet::all_v6()
        },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Open,
    Maybe,
    Closed,
}

fn said(answer: &Answer, src: IpAddr) -> Said {
    match (
        answer.admitted.contains(src),
        answer.conditional.contains(src),
        answer.blocked.contains(src),
    ) {
        (true, false, false) => Said::Open,
        (false, true, false) => Said::Maybe,
        (false, false, true) => Said::Closed,
        other => panic!("{src} is in {other:?} of the three sets"),
    }
}

/// Addresses at the edges of the answer's intervals, and some others.
fn sources(answer: &Answer, v6: bool, count: usize, rng: &mut Rng) -> Vec<IpAddr> {
    let mut out = vec![];
    for set in [&answer.admitted, &answer.blocked, &answer.conditional] {
        let ranges: Vec<_> = set.ranges().collect();
        if ranges.is_empty() {
            continue;
        }
        for _ in 0..count / 3 + 1 {
            let (first, last) = *rng.pick(&ranges);
            out.push(*rng.pick(&[first, last]));
        }
    }
    let mut g_rng = Rng::new(rng.next());
    let mut g = Sources(&mut g_rng);
    while out.len() < count {
        out.push(g.any(v6));
    }
    out.sort();
    out.dedup();
    // Answers to these are routed to links where no client listens.
    let elsewhere = ["172.30.0.0/24", "fd00:30::/64", "169.254.77.0/24"].map(world::net);
    // A link without link-local addresses, as the lab's, is no place to decide about them.
    let link_local = world::net("fe80::/10");
    out.retain(|a| !link_local.contains(a) && !elsewhere.iter().any(|net| net.contains(a)));
    out.truncate(count);
    out
}

struct Sources<'r>(&'r mut Rng);

impl Sources<'_> {
    fn any(&mut self, v6: bool) -> IpAddr {
        if v6 {
            let n = u128::from(self.0.next()) % 300;
            let base: u128 = *self.0.pick(&[
                0x2001_0db8_0005_0000_0000_0000_0000_0000,
                0x2001_0db8_0006_0000_0000_0000_0000_0000,
                0x2400_cb00_0000_0000_0000_0000_0000_0000,
                0xfd00_0009_0000_0000_0000_0000_0000_0000,
            ]);
            return IpAddr::V6((base + n + 3).into());
        }
        let n = (self.0.next() % 256) as u32;
        let base: u32 = *self
            .0
            .pick(&[0xcb00_7100, 0x0a01_0200, 0x0808_0800, 0xc000_0200]);
        IpAddr::V4((base + n).into())
    }
}

/// Runs rulesets `seeds` in one world.
pub fn campaign(seeds: impl Iterator<Item = u64>, cpu: usize, packets: usize) -> Tally {
    let mut tally = Tally::default();
    let mut legacy = false;
    let mut world: Option<World> = None;
    for (count, seed) in seeds.enumerate() {
        if count % 500 == 0 {
            drop(world.take());
            let mut rng = Rng::new(seed ^ 0xabcd);
            world = Some(World::new(*rng.pick(&[0, 0, 1, 2]), cpu));
            legacy = false;
        }
        let Some(world) = world.as_mut() else {
            continue;
        };
        one(seed, world, &mut legacy, packets, &mut tally);
        if count % 500 == 499 {
            // A long run says how far it is.
            println!(
                "{} rulesets, {} packets, {} wrong, {} of {} maybe without need",
                tally.rulesets,
                tally.packets,
                tally.false_closed.len() + tally.false_open.len(),
                tally.needless_maybe,
                tally.plain_packets
            );
        }
        if tally.false_closed.len() + tally.false_open.len() >= 12 {
            break;
        }
    }
    tally
}

fn one(seed: u64, world: &mut World, legacy: &mut bool, packets: usize, tally: &mut Tally) {
    let mut rng = Rng::new(seed);
    let mut rules = generate::rules(&mut rng);
    if let Err(refusal) = load_what_loads(&mut rules, legacy) {
        tally.refused += 1;
        if tally.refusals.len() < 4 {
            tally.refusals.push(format!("seed {seed}: {refusal}"));
        }
        return;
    }
    tally.rulesets += 1;
    // nft 1.0.6 does not say in JSON which devices a netdev chain is on.
    let json = rng.chance(50) && !rules.tables.iter().any(|t| t.family == "netdev");
    let (ruleset, _) = read(&rules, json).expect("the tools must dump what they loaded");
    let net = world.net.clone();
    let engine = Engine::new(reach::World {
        rules: &ruleset,
        net: &net,
    });
    let mut probes = vec![];
    let mut expected = vec![];
    for n in 0..4 {
        let v6 = match (rules.has(Tool::Nft, ""), n % 2) {
            _ if rules.tables.iter().all(|t| t.family == "ip") => false,
            _ if rules.tables.iter().all(|t| t.family == "ip6") => true,
            (_, odd) => odd == 1,
        };
        let dst: IpAddr = rng
            .text(if v6 {
                &["2001:db8:1::2", "2001:db8:1::2", "fd00:9::1", "fd00:30::2"]
            } else {
                &["198.51.100.2", "198.51.100.2", "10.9.0.1", "172.30.0.2"]
            })
            .parse()
            .unwrap();
        let mut probe = Probe {
            ingress: usize::from(rng.chance(30)),
            src: dst,
            dst,
            sport: *rng.pick(&[40000, 40001, 50000, 1000]),
            dport: *rng.pick(&PORTS),
        };
        let answer = engine.reach(&query(&probe));
        for src in sources(&answer, v6, packets.div_ceil(4), &mut rng) {
            probe.src = src;
            // Two questions of one ruleset may coincide.
            if !probes.contains(&probe) {
                probes.push(probe);
                expected.push(said(&answer, src));
            }
        }
    }
    world.forget();
    world.listen();
    let open = world.knock(&probes);
    tally.packets += probes.len();
    // The answer to a link's broadcast address comes back in as a copy of the connection's: what that does to the
    // connection's mark the engine leaves open.
    let broadcasts = ["198.51.100.255", "10.9.0.255"].map(|a| a.parse::<IpAddr>().unwrap());
    let plain = |probe: &Probe| !rules.conditional && !broadcasts.contains(&probe.src);
    tally.plain_packets += probes.iter().filter(|p| plain(p)).count();
    let mut shy = false;
    for ((probe, said), open) in probes.iter().zip(&expected).zip(&open) {
        tally.open += usize::from(*open);
        let wrong = match (said, open) {
            (Said::Maybe, _) => {
                tally.maybe += 1;
                if plain(probe) {
                    tally.needless_maybe += 1;
                    if tally.shy.len() < 6 && !shy {
                        shy = true;
                        let small = shrink(&rules, |r| undecided(r, world, legacy, probe, json));
                        load(&small, legacy).ok();
                        if let Ok((ruleset, notes)) = read(&small, json) {
                            let text = report(seed, &small, probe, &ruleset, &notes);
                            tally.shy.push(text);
                        }
                    }
                }
                false
            }
            (Said::Open, open) => !open,
            (Said::Closed, open) => *open,
        };
        if !wrong {
            continue;
        }
        let again = |rules: &Rules, world: &mut World, legacy: &mut bool| {
            disagree(rules, world, legacy, probe, json, *said)
        };
        // Once more, alone: a lost packet is no disagreement.
        if !again(&rules, world, legacy) {
            continue;
        }
        let small = shrink(&rules, |rules| again(rules, world, legacy));
        load(&small, legacy).ok();
        let text = match read(&small, json) {
            Ok((ruleset, notes)) => report(seed, &small, probe, &ruleset, &notes),
            Err(e) => e,
        };
        match said {
            Said::Closed => tally.false_closed.push(text),
            _ => tally.false_open.push(text),
        }
        return;
    }
}

/// Whether the engine still does not decide.
fn undecided(rules: &Rules, world: &World, legacy: &mut bool, probe: &Probe, json: bool) -> bool {
    if load(rules, legacy).is_err() {
        return false;
    }
    let Ok((ruleset, _)) = read(rules, json) else {
        return false;
    };
    let world = reach::World {
        rules: &ruleset,
        net: &world.net,
    };
    said(&reach(world, &query(probe)), probe.src) == Said::Maybe
}

/// Whether kernel and engine still disagree in this way.
fn disagree(
    rules: &Rules,
    world: &mut World,
    legacy: &mut bool,
    probe: &Probe,
    json: bool,
    wrong: Said,
) -> bool {
    if load(rules, legacy).is_err() {
        return false;
    }
    let Ok((ruleset, _)) = read(rules, json) else {
        return false;
    };
    let net = world.net.clone();
    let answer = reach(
        reach::World {
            rules: &ruleset,
            net: &net,
        },
        &query(probe),
    );
    world.forget();
    world.listen();
    let open = world.knock(std::slice::from_ref(probe))[0];
    match said(&answer, probe.src) {
        Said::Closed if wrong == Said::Closed => open,
        Said::Open if wrong == Said::Open => !open,
        _ => false,
    }
}

/// Takes rules, chains and tables away as long as `fails` holds.
fn shrink(rules: &Rules, mut fails: impl FnMut(&Rules) -> bool) -> Rules {
    let mut best = rules.clone();
    loop {
        let mut smaller = false;
        for t in (0..best.tables.len()).rev() {
            let mut trial = best.clone();
            trial.tables.remove(t);
            if fails(&trial) {
                best = trial;
                smaller = true;
            }
        }
        for t in 0..best.tables.len() {
            for s in (0..best.tables[t].sets.len()).rev() {
                let mut trial = best.clone();
                trial.tables[t].sets.remove(s);
                if fails(&trial) {
                    best = trial;
                    smaller = true;
                }
            }
            for c in (0..best.tables[t].chains.len()).rev() {
                let mut trial = best.clone();
                trial.tables[t].chains.remove(c);
                if fails(&trial) {
                    best = trial;
                    smaller = true;
                    continue;
                }
                for r in (0..best.tables[t].chains[c].rules.len()).rev() {
                    let mut trial = best.clone();
                    trial.tables[t].chains[c].rules.remove(r);
                    if fails(&trial) {
                        best = trial;
                        smaller = true;
                    }
                }
            }
        }
        if !smaller {
            return best;
        }
    }
}

fn report(
    seed: u64,
    rules: &Rules,
    probe: &Probe,
    ruleset: &Ruleset,
    notes: &[parse::Note],
) -> String {
    let mut out = format!("seed {seed}: {probe:?}\n");
    if rules.has(Tool::Nft, "") {
        out += &rules.nft();
    }
    for tool in [Tool::IptablesNft, Tool::IptablesLegacy] {
        for family in ["ip", "ip6"] {
            if rules.has(tool, family) {
                out += &format!("# {tool:?} {family}\n{}", rules.restore(tool, family));
            }
        }
    }
    for line in &rules.ipsets {
        out += &format!("# ipset {line}\n");
    }
    for note in notes {
        out += &format!("# note {}: {}\n", note.line, note.text);
    }
    let unknown = ruleset.rules().filter(|(_, r)| {
        r.statements.iter().any(|s| {
            matches!(
                s,
                ir::Statement::Unknown { .. } | ir::Statement::Match(ir::Match::Unknown { .. })
            )
        })
    });
    for (_, rule) in unknown {
        out += &format!("# not understood: {}\n", rule.text);
    }
    out
}

/// Without any rule everything gets in, whatever the ports: the apparatus works.
pub fn sound(cpu: usize) {
    let mut world = World::new(0, cpu);
    run(NFT, &["-f", "-"], "flush ruleset\n").unwrap();
    let mut probes = vec![];
    for (src, dst) in [
        ("203.0.113.5", "198.51.100.2"),
        ("203.0.113.5", "10.9.0.1"),
        ("203.0.113.5", "172.30.0.2"),
        ("2001:db8:5::1", "2001:db8:1::2"),
        ("fd00:9::4", "fd00:9::1"),
        ("2001:db8:5::1", "fd00:30::2"),
    ] {
        for sport in [40000, 40001, 50000, 1000] {
            for dport in PORTS {
                for ingress in [0, 1] {
                    probes.push(Probe {
                        ingress,
                        src: src.parse().unwrap(),
                        dst: dst.parse().unwrap(),
                        sport: sport + ingress as u16 * 7,
                        dport,
                    });
                }
            }
        }
    }
    let open = world.knock(&probes);
    let shut: Vec<_> = probes.iter().zip(open).filter(|(_, o)| !o).collect();
    assert!(shut.is_empty(), "{shut:#?}");
    // One at a time, with fresh listeners each time.
    for probe in probes.iter().step_by(5) {
        world.forget();
        world.listen();
        let open = world.knock(std::slice::from_ref(probe));
        assert_eq!(open, [true], "{probe:?}");
    }
}
