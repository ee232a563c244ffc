//! The script that leads from the present rules back to those of a snapshot.

use super::dump::{Rule, Table, is_ufw, line, parse};
use std::fmt::Write as _;

/// The way from the present rules back to the snapshot's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WayBack {
    /// For `iptables-restore --counters --noflush`; `None` when there is nothing to do.
    pub script: Option<String>,
    /// Tables that the snapshot had not, and that are empty once the script has run.
    pub empty_tables: Vec<String>,
    /// What is left as it is, and why.
    pub left: Vec<String>,
}

/// Writes the way back from `now` to `then` for UFW's part. `foreign_too`: UFW was set up to flush
/// chains of others as well (MANAGE_BUILTINS=yes, IPV6=no), so their rules that are gone come back.
pub(crate) fn way_back(then: &str, now: &str, foreign_too: bool) -> WayBack {
    let (then, now) = (parse(then), parse(now));
    let mut way = WayBack::default();
    let mut script = String::new();
    for table in &now {
        let empty = Table {
            name: table.name.clone(),
            ..Table::default()
        };
        let before = then.iter().find(|old| old.name == table.name);
        let part = one_table(before.unwrap_or(&empty), table, foreign_too, &mut way.left);
        script.push_str(&part);
        let only_ufw = table
            .rules
            .iter()
            .all(|rule| is_ufw(&rule.chain) || rule.leads_to_ufw())
            && table
                .chains
                .iter()
                .all(|chain| chain.policy != "-" || is_ufw(&chain.name));
        if before.is_none() && only_ufw {
            way.empty_tables.push(table.name.clone());
        }
    }
    for table in &then {
        if !now.iter().any(|new| new.name == table.name) {
            let empty = Table {
                name: table.name.clone(),
                ..Table::default()
            };
            script.push_str(&one_table(table, &empty, foreign_too, &mut way.left));
        }
    }
    if !script.is_empty() {
        way.script = Some(script);
    }
    way
}

fn one_table(then: &Table, now: &Table, foreign_too: bool, left: &mut Vec<String>) -> String {
    let mut head = String::new();
    let mut body = String::new();
    let mut tail = String::new();
    policies(then, now, &mut head, left);
    // UFW's chains: as they were, counters included; new ones go.
    for chain in &then.chains {
        if is_ufw(&chain.name) && !same_rules(then, now, &chain.name) {
            let _ = writeln!(head, ":{} - [0:0]", chain.name);
            for rule in then.rules_of(&chain.name) {
                let _ = writeln!(body, "{}", line(rule, "-A", None));
            }
        }
    }
    for chain in &now.chains {
        if is_ufw(&chain.name) && then.chain(&chain.name).is_none() {
            // Declaring a chain empties it, so that nothing refers to another that goes.
            let _ = writeln!(head, ":{} - [0:0]", chain.name);
            let _ = writeln!(tail, "-X {}", chain.name);
        }
    }
    let mut jumps = String::new();
    for chain in &now.chains {
        if !is_ufw(&chain.name) {
            jumps.push_str(&foreign_chain(then, now, &chain.name, foreign_too));
        }
    }
    for chain in &then.chains {
        if is_ufw(&chain.name) || now.chain(&chain.name).is_some() {
            continue;
        }
        let builtin = chain.policy != "-";
        if foreign_too || builtin {
            if !builtin {
                let _ = writeln!(head, ":{} - [0:0]", chain.name);
            }
            for rule in then.rules_of(&chain.name) {
                if foreign_too || rule.leads_to_ufw() {
                    let _ = writeln!(jumps, "{}", line(rule, "-A", None));
                }
            }
        } else if then.rules_of(&chain.name).any(Rule::leads_to_ufw) {
            left.push(format!(
                "chain {} of table {} led into UFW's chains and is gone: somebody else removed it",
                chain.name, then.name
            ));
        }
    }
    if head.is_empty() && body.is_empty() && tail.is_empty() && jumps.is_empty() {
        return String::new();
    }
    format!("*{}\n{head}{jumps}{body}{tail}COMMIT\n", now.name)
}

fn policies(then: &Table, now: &Table, head: &mut String, left: &mut Vec<String>) {
    if now.name != "filter" {
        return;
    }
    for chain in &now.chains {
        if chain.policy == "-" {
            continue;
        }
        // The kernel's default where the table did not exist.
        let was = then
            .chain(&chain.name)
            .map_or("ACCEPT", |old| old.policy.as_str());
        if was == chain.policy {
            continue;
        }
        let docker = |table: &Table| table.chain("DOCKER").is_some();
        if chain.name == "FORWARD" && chain.policy == "DROP" && docker(now) && !docker(then) {
            left.push(
                "the FORWARD policy stays DROP: Docker, which started meanwhile, wants it".into(),
            );
            continue;
        }
        let _ = writeln!(head, ":{} {} {}", chain.name, was, chain.counters);
    }
}

fn same_rules(then: &Table, now: &Table, chain: &str) -> bool {
    now.chain(chain).is_some()
        && then
            .rules_of(chain)
            .map(|rule| &rule.spec)
            .eq(now.rules_of(chain).map(|rule| &rule.spec))
}

/// The edits of a chain of somebody else: UFW's jumps in it as they were; with `foreign_too`, also
/// lost rules.
fn foreign_chain(then: &Table, now: &Table, chain: &str, foreign_too: bool) -> String {
    let ours = |rule: &&Rule| rule.leads_to_ufw();
    let old: Vec<&Rule> = then.rules_of(chain).collect();
    let new: Vec<&Rule> = now.rules_of(chain).collect();
    let lost = foreign_too
        && old
            .iter()
            .any(|rule| !new.iter().any(|now| now.spec == rule.spec));
    let same_jumps = old
        .iter()
        .copied()
        .filter(ours)
        .map(|rule| &rule.spec)
        .eq(new.iter().copied().filter(ours).map(|rule| &rule.spec));
    if same_jumps && !lost {
        return String::new();
    }
    let mut script = String::new();
    // What the chain holds once UFW's present jumps are out.
    let mut there: Vec<&str> = vec![];
    for rule in &new {
        if rule.leads_to_ufw() {
            let _ = writeln!(script, "{}", line(rule, "-D", None));
        } else {
            there.push(&rule.spec);
        }
    }
    // Each of the old ones goes behind the nearest predecessor that is still there.
    let mut position = 0;
    for rule in &old {
        let present = there[position..]
            .iter()
            .position(|spec| *spec == rule.spec)
            .map(|found| found + position);
        match present {
            Some(found) if !rule.leads_to_ufw() => position = found + 1,
            _ if rule.leads_to_ufw() || foreign_too => {
                let _ = writeln!(script, "{}", line(rule, "-I", Some(position + 1)));
                there.insert(position, &rule.spec);
                position += 1;
            }
            _ => {}
        }
    }
    script
}

/// Whether `now` has UFW's part as `then` has it (counters aside), and if not, what is different.
pub(crate) fn difference(then: &str, now: &str) -> Option<String> {
    let way = way_back(then, now, false);
    way.script.map(|script| {
        let lines: Vec<&str> = script
            .lines()
            .filter(|line| !line.starts_with('*'))
            .collect();
        lines.iter().take(3).copied().collect::<Vec<_>>().join("; ")
    })
}
