//! Whose a rule is, as its owner knows it: UFW's user rule 3, Docker's for a container.
//!
//! For people only, as [`reach::owner`] is: names in the rules and in the facts are claims.

use std::net::IpAddr;

use crate::host::{Host, UfwRule};
use crate::text::clean;
use reach::ir::{Expr, Key, Match, Rule, Statement, Values};
use reach::{Owner, RuleRef};

/// The owner of the rule at `at` in words, safe for a terminal: `UFW user rule 3`, `Docker for container ollama`,
/// `fail2ban jail sshd`, `yours`.
pub fn whose(host: &Host, at: &RuleRef) -> String {
    let owner = reach::owner(&host.rules, at);
    let text = match &owner {
        Owner::User => "yours".to_owned(),
        Owner::UfwUser => match ufw_number(host, at) {
            Some(number) => format!("UFW user rule {number}"),
            None => owner.to_string(),
        },
        Owner::Docker | Owner::Podman => match container(host, at) {
            Some(name) => format!("{owner} for container {name}"),
            None => owner.to_string(),
        },
        _ => owner.to_string(),
    };
    clean(&text)
}

/// The number that `ufw status numbered` gives to the rule; `None` where the chain is not what UFW makes of its
/// rules, so that counting would be a guess.
fn ufw_number(host: &Host, at: &RuleRef) -> Option<u32> {
    let ufw = host.ufw.as_ref()?;
    let chain = at.chain.rsplit('-').next()?;
    let in_chain = |rule: &&UfwRule| {
        let kind = match (rule.route, rule.direction.as_str()) {
            (true, _) => "forward",
            (false, "out") => "output",
            (false, _) => "input",
        };
        rule.ipv6 == (at.family == "ip6") && kind == chain
    };
    let mut numbers: Vec<u32> = vec![];
    for rule in ufw.rules.iter().filter(in_chain) {
        numbers.extend(std::iter::repeat_n(rule.number, in_kernel(rule)));
    }
    let rules = host.rules.chain_at(at)?.rules.len();
    let index = (at.position as usize).checked_sub(1)?;
    (numbers.len() == rules)
        .then(|| numbers.get(index).copied())
        .flatten()
}

/// How many rules of the chain one of UFW's becomes: one for each protocol where a port is named without one, three
/// where it is limited.
fn in_kernel(rule: &UfwRule) -> usize {
    let ports = [&rule.port, &rule.from_port];
    let named = ports.iter().any(|p| !p.is_empty() && *p != "any");
    let protocols = if named && rule.proto == "any" { 2 } else { 1 };
    if rule.action == "limit" {
        protocols * 3
    } else {
        protocols
    }
}

/// The container whose address the rule names.
fn container<'h>(host: &'h Host, at: &RuleRef) -> Option<&'h str> {
    let rule = host.rules.rule_at(at)?;
    let named = addresses(rule);
    let containers = host.engines.iter().flat_map(|e| &e.containers);
    let mut found = containers.filter(|c| c.addresses.iter().any(|a| named.contains(&a.address)));
    let first = found.next()?;
    found.next().is_none().then_some(first.name.as_str())
}

/// Single addresses that a rule is about, or translates to.
fn addresses(rule: &Rule) -> Vec<IpAddr> {
    let single = |statement: &Statement| match statement {
        Statement::Match(Match::Cmp {
            of,
            negate: false,
            values: Values::Addr(set),
        }) if matches!(of.key, Key::Saddr(_) | Key::Daddr(_)) && set.count() == 1 => set.first(),
        Statement::Nat(nat) => match nat.addr {
            Some(Expr::Addrs(first, last)) if first == last => Some(first),
            _ => None,
        },
        _ => None,
    };
    rule.statements.iter().filter_map(single).collect()
}
