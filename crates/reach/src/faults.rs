//! Rules that do not do what whoever wrote them thinks.
//!
//! Found from the rules alone, so they are hints for people; no verdict rests on them. A fault is only named where it is
//! sure: rules with matches that are not understood are never called dead.
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};

use crate::ir::{
    Backend, Base, Chain, Data, Expr, Key, Match, NatKind, NfHook, Rule, RuleVerdict, SetRef,
    Statement, Table, Values,
};
use crate::owner::{Owner, owner, target};
use crate::{RuleRef, Ruleset};

/// A rule, or a chain, that does not do what it looks like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// The rule; position 0 stands for the chain itself.
    pub at: RuleRef,
    /// The rule's own text, or the chain's name. Untrusted text.
    pub rule: String,
    /// Why, in one sentence.
    pub why: String,
}

/// Kinds of [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// An earlier rule of the chain ends the packet's way for everything that this one takes.
    Shadowed,
    /// Behind an unconditional RETURN of DOCKER-USER: Docker's, before 28.3.
    BehindDockerReturn,
    /// In INPUT, on a port that DNAT hands on before INPUT is reached.
    InputForPublishedPort,
    /// The same rule twice in one chain, without sense: left over from reloads.
    Duplicate,
    /// A chain with rules that nothing jumps to.
    NothingJumpsHere,
    /// UFW's chains are there, but the built-in chain no longer jumps to them.
    UfwUnhooked,
    /// Filters in x_tables while the other rules are in nf_tables (or the other way round): tools show one of them.
    OtherBackend,
}

/// All faults of a ruleset, by place.
pub fn faults(rules: &Ruleset) -> Vec<Fault> {
    let mut out = vec![];
    for table in rules.tables.iter().filter(|t| !t.dormant) {
        for chain in &table.chains {
            shadowed(table, chain, &mut out);
            duplicates(rules, table, chain, &mut out);
        }
        orphans(rules, table, &mut out);
    }
    published(rules, &mut out);
    other_backend(rules, &mut out);
    out.sort_by(|a, b| (&a.at, a.kind).cmp(&(&b.at, b.kind)));
    out
}

fn fault(kind: FaultKind, at: RuleRef, rule: &str, why: String) -> Fault {
    Fault {
        kind,
        at,
        rule: rule.to_string(),
        why,
    }
}

/// The matches of a rule that ends in a verdict, when it is nothing but matches and that verdict; what only notes or
/// counts may stand between.
fn ending(rule: &Rule) -> Option<(Vec<&Match>, &RuleVerdict)> {
    let mut matches = vec![];
    for statement in &rule.statements {
        match statement {
            Statement::Match(m) => matches.push(m),
            Statement::Verdict(verdict) => return Some((matches, verdict)),
            Statement::Log { .. } | Statement::Other { .. } => {}
            _ => return None,
        }
    }
    None
}

fn matches(rule: &Rule) -> Vec<&Match> {
    let list = rule.statements.iter();
    list.filter_map(|s| match s {
        Statement::Match(m) => Some(m),
        _ => None,
    })
    .collect()
}

/// True when it always gives the same for the same packet.
fn settled(m: &Match) -> bool {
    matches!(m, Match::Cmp { .. } | Match::Bits { .. })
}

/// True when whatever `narrow` takes, `wide` takes too.
fn implies(narrow: &Match, wide: &Match) -> bool {
    if narrow == wide {
        return true;
    }
    match (narrow, wide) {
        (
            Match::Cmp {
                of: a,
                negate: false,
                values: x,
            },
            Match::Cmp {
                of: b,
                negate: false,
                values: y,
            },
        ) if a == b => match (x, y) {
            (Values::Addr(x), Values::Addr(y)) => x.is_subset(y),
            (Values::Int(x), Values::Int(y)) => x
                .intervals()
                .iter()
                .all(|iv| y.intervals().iter().any(|w| w.0 <= iv.0 && iv.1 <= w.1)),
            (Values::Name(x), Values::Name(y)) => x.iter().all(|n| {
                y.iter()
                    .any(|p| p == n || (p.wildcard && n.name.starts_with(&p.name)))
            }),
            _ => false,
        },
        (
            Match::Bits {
                key: a,
                negate: false,
                bits: x,
            },
            Match::Bits {
                key: b,
                negate: false,
                bits: y,
            },
        ) => a == b && x & !y == 0,
        _ => false,
    }
}

/// Earlier rules that end everything that they take, and the later rules that so can never match.
fn shadowed(table: &Table, chain: &Chain, out: &mut Vec<Fault>) {
    // Comparing every pair is quadratic: long chains are checked against their widest rules only.
    const MANY: usize = 64;
    let mut walls: Vec<(usize, Vec<&Match>)> = vec![];
    for (index, rule) in chain.rules.iter().enumerate() {
        let own = matches(rule);
        let wall = walls
            .iter()
            .find(|(_, wall)| wall.iter().all(|w| own.iter().any(|m| implies(m, w))));
        if let Some((by, wall)) = wall {
            let before = &chain.rules[*by];
            let docker = chain.name == "DOCKER-USER" && wall.is_empty();
            let (kind, why) = if docker {
                (
                    FaultKind::BehindDockerReturn,
                    format!("`{}` comes first, so nothing gets here", before.text),
                )
            } else {
                (
                    FaultKind::Shadowed,
                    format!(
                        "`{}` before it takes all that this rule is about",
                        before.text
                    ),
                )
            };
            // The same rule once more is a duplicate, which says more.
            if before.statements != rule.statements {
                out.push(fault(
                    kind,
                    table.place(&chain.name, index as u32 + 1),
                    &rule.text,
                    why,
                ));
            }
            continue;
        }
        let Some((conditions, verdict)) = ending(rule) else {
            continue;
        };
        let ends = match verdict {
            RuleVerdict::Accept
            | RuleVerdict::Drop
            | RuleVerdict::Reject { .. }
            | RuleVerdict::Return => true,
            RuleVerdict::Goto { .. } => true,
            RuleVerdict::Queue { .. } | RuleVerdict::Continue | RuleVerdict::Jump { .. } => false,
        };
        if ends && walls.len() < MANY && conditions.iter().all(|m| settled(m)) {
            walls.push((index, conditions));
        }
    }
}

/// True when a second copy of the rule changes nothing.
fn repeatable(rule: &Rule) -> bool {
    let harmless = |s: &Statement| match s {
        Statement::Match(m) => {
            settled(m) || matches!(m, Match::Lookup { .. } | Match::IpSet { .. })
        }
        Statement::Verdict(_) => true,
        _ => false,
    };
    !rule.statements.is_empty() && rule.statements.iter().all(harmless)
}

fn duplicates(rules: &Ruleset, table: &Table, chain: &Chain, out: &mut Vec<Fault>) {
    let mut seen: HashMap<String, u32> = HashMap::new();
    for (rule, position) in chain.rules.iter().zip(1..) {
        if !repeatable(rule) {
            continue;
        }
        let at = table.place(&chain.name, position);
        // Kubernetes and friends look after themselves.
        if matches!(owner(rules, &at), Owner::Kubernetes) {
            continue;
        }
        let same = format!("{:?}", rule.statements);
        match seen.get(&same) {
            Some(first) => {
                let why = format!(
                    "the same as rule {first} of this chain; reloads that append leave such copies"
                );
                out.push(fault(FaultKind::Duplicate, at, &rule.text, why));
            }
            None => {
                seen.insert(same, position);
            }
        }
    }
}

/// Chains that a rule of the chain may lead to.
fn targets(rule: &Rule) -> Vec<&str> {
    let mut out: Vec<&str> = target(rule).into_iter().collect();
    for statement in &rule.statements {
        if let Statement::VerdictMap {
            map: SetRef::Anonymous(map),
            ..
        } = statement
        {
            out.extend(
                map.elements
                    .iter()
                    .filter_map(|e| verdict_target(e.data.as_ref())),
            );
        }
    }
    out
}

fn verdict_target(data: Option<&Data>) -> Option<&str> {
    match data {
        Some(Data::Verdict(RuleVerdict::Jump { chain } | RuleVerdict::Goto { chain })) => {
            Some(chain)
        }
        _ => None,
    }
}

fn orphans(rules: &Ruleset, table: &Table, out: &mut Vec<Fault>) {
    let index: HashMap<&str, &Chain> = table.chains.iter().map(|c| (c.name.as_str(), c)).collect();
    let mut reached: HashSet<&str> = HashSet::new();
    let mut todo: Vec<&str> = table
        .chains
        .iter()
        .filter(|c| c.base.is_some())
        .map(|c| c.name.as_str())
        .collect();
    // Named verdict maps may be looked up from anywhere.
    todo.extend(
        table
            .sets
            .iter()
            .flat_map(|s| &s.elements)
            .filter_map(|e| verdict_target(e.data.as_ref())),
    );
    while let Some(name) = todo.pop() {
        if reached.insert(name) {
            let next = index
                .get(name)
                .into_iter()
                .flat_map(|c| &c.rules)
                .flat_map(targets);
            todo.extend(next);
        }
    }
    let mut ufw = BTreeSet::new();
    for chain in table
        .chains
        .iter()
        .filter(|c| !reached.contains(c.name.as_str()))
    {
        let at = table.place(&chain.name, 0);
        let name = chain.name.as_str();
        if let Some(hook) = ufw_hook(name) {
            if !chain.rules.is_empty() {
                ufw.insert(hook);
            }
            continue;
        }
        let ours =
            matches!(owner(rules, &at), Owner::User | Owner::Fail2ban(_)) || name == "DOCKER-USER";
        let called = index
            .values()
            .flat_map(|c| &c.rules)
            .any(|r| targets(r).contains(&name));
        if ours && !chain.rules.is_empty() && !called && has_say(chain) {
            let why = "no rule jumps to this chain, so it does nothing".to_string();
            out.push(fault(FaultKind::NothingJumpsHere, at, name, why));
        }
    }
    for hook in ufw {
        let at = table.place(hook, 0);
        let why = format!(
            "UFW's chains exist but {hook} does not jump to them: its rules do not apply there"
        );
        out.push(fault(FaultKind::UfwUnhooked, at, hook, why));
    }
}

/// A chain of nothing but RETURN is Docker's empty DOCKER-USER.
fn has_say(chain: &Chain) -> bool {
    chain
        .rules
        .iter()
        .any(|r| !matches!(r.statements[..], [Statement::Verdict(RuleVerdict::Return)]))
}

/// The built-in chain that should jump to a chain of UFW's.
fn ufw_hook(name: &str) -> Option<&'static str> {
    let rest = name
        .strip_prefix("ufw-")
        .or_else(|| name.strip_prefix("ufw6-"))?;
    match rest {
        "before-input" | "after-input" | "reject-input" => Some("INPUT"),
        "before-forward" | "after-forward" | "reject-forward" => Some("FORWARD"),
        "before-output" | "after-output" | "reject-output" => Some("OUTPUT"),
        // Called by those, or spare parts that UFW always makes.
        _ => None,
    }
}

/// Ports that a DNAT rule hands on.
fn published_ports(rules: &Ruleset) -> Vec<(u64, u64, String)> {
    let mut out = vec![];
    for (_, rule) in rules.rules() {
        let dnat = rule.statements.iter().any(|s| match s {
            Statement::Nat(nat) => nat.kind == NatKind::Dnat && !is_loopback(nat.addr.as_ref()),
            _ => false,
        });
        let Some(ports) = dnat.then(|| dports(rule)).flatten() else {
            continue;
        };
        out.extend(
            ports
                .into_iter()
                .map(|(first, last)| (first, last, rule.text.clone())),
        );
    }
    out
}

fn is_loopback(addr: Option<&Expr>) -> bool {
    matches!(addr, Some(Expr::Addrs(first, _)) if first.is_loopback())
}

/// The destination ports that a rule asks for.
fn dports(rule: &Rule) -> Option<Vec<(u64, u64)>> {
    matches(rule).into_iter().find_map(|m| match m {
        Match::Cmp {
            of,
            negate: false,
            values: Values::Int(ports),
        } if of.key == Key::Dport && of.mask.is_none() => Some(ports.intervals().to_vec()),
        _ => None,
    })
}

/// Chains reached from base chains on `hook`, with the base chain's name.
fn hooked<'a>(table: &'a Table, hook: NfHook) -> Vec<&'a Chain> {
    let index: HashMap<&str, &Chain> = table.chains.iter().map(|c| (c.name.as_str(), c)).collect();
    let is_base = |c: &&Chain| matches!(&c.base, Some(Base { hook: h, .. }) if *h == hook);
    let mut todo: Vec<&str> = table
        .chains
        .iter()
        .filter(is_base)
        .map(|c| c.name.as_str())
        .collect();
    let mut seen = HashSet::new();
    let mut out: Vec<&'a Chain> = vec![];
    while let Some(name) = todo.pop() {
        let Some(chain) = index.get(name).copied().filter(|_| seen.insert(name)) else {
            continue;
        };
        out.push(chain);
        todo.extend(chain.rules.iter().flat_map(targets));
    }
    out
}

/// People's rules in INPUT about a port that never gets there.
fn published(rules: &Ruleset, out: &mut Vec<Fault>) {
    let ports = published_ports(rules);
    if ports.is_empty() {
        return;
    }
    for table in rules.tables.iter().filter(|t| !t.dormant) {
        for chain in hooked(table, NfHook::Input) {
            for (rule, position) in chain.rules.iter().zip(1..) {
                let at = table.place(&chain.name, position);
                let refuses = rule.statements.iter().any(|s| {
                    matches!(
                        s,
                        Statement::Verdict(RuleVerdict::Drop | RuleVerdict::Reject { .. })
                    )
                });
                if !refuses
                    || !matches!(owner(rules, &at), Owner::User | Owner::UfwUser | Owner::Ufw)
                {
                    continue;
                }
                let Some(own) = dports(rule) else { continue };
                let met = |iv: &(u64, u64)| ports.iter().find(|p| p.0 <= iv.1 && iv.0 <= p.1);
                if let Some((_, _, dnat)) = own.iter().find_map(met) {
                    let why = format!(
                        "`{dnat}` hands this port on before INPUT is reached: packets from outside go through FORWARD"
                    );
                    out.push(fault(FaultKind::InputForPublishedPort, at, &rule.text, why));
                }
            }
        }
    }
}

/// Filters in both x_tables and nf_tables.
fn other_backend(rules: &Ruleset, out: &mut Vec<Fault>) {
    let filters = |t: &&Table| {
        let closed = |c: &Chain| {
            c.base
                .as_ref()
                .is_some_and(|b| b.policy == crate::ir::Policy::Drop)
        };
        !t.dormant && t.chains.iter().any(|c| !c.rules.is_empty() || closed(c))
    };
    let nft = rules
        .tables
        .iter()
        .filter(|t| t.backend == Backend::IptablesNft)
        .any(|t| filters(&t));
    if !nft {
        return;
    }
    for table in rules
        .tables
        .iter()
        .filter(|t| t.backend == Backend::IptablesLegacy)
        .filter(filters)
    {
        let chain = table
            .chains
            .iter()
            .find(|c| !c.rules.is_empty())
            .or(table.chains.first());
        let Some(chain) = chain else { continue };
        let why = format!(
            "table {} of {} lies in x_tables (iptables-legacy) while the other rules are in nf_tables: `iptables -S` shows \
             only one of the two, and both apply",
            table.name, table.family
        );
        out.push(fault(
            FaultKind::OtherBackend,
            table.place(&chain.name, 0),
            &table.name,
            why,
        ));
    }
}

#[cfg(test)]
mod tests;
