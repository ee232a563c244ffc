//! The part of the packet filter that UFW owns, saved and put back through iptables-save and
//! iptables-restore, without touching what others did meanwhile.
//!
//! UFW's part is: its own chains (`ufw-*`, `ufw6-*`), the rules elsewhere that lead into them, and
//! the policies of INPUT, FORWARD and OUTPUT. [`way_back`] writes the script that turns this part of
//! the present rules into what a snapshot holds. The script is committed by the kernel as a whole, a
//! second run of it changes nothing, and chains of Docker, fail2ban and others stay as they are.

use super::{Context, Error};
use crate::exec::{self, Program};
use std::fmt::Write as _;
use std::time::Duration;

/// IPv4 or IPv6 tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ip {
    V4,
    V6,
}

impl Ip {
    pub(crate) const BOTH: [Ip; 2] = [Ip::V4, Ip::V6];
    pub(crate) fn save(self) -> &'static str {
        match self {
            Ip::V4 => "iptables-save",
            Ip::V6 => "ip6tables-save",
        }
    }
    fn restore(self) -> &'static str {
        match self {
            Ip::V4 => "iptables-restore",
            Ip::V6 => "ip6tables-restore",
        }
    }
    fn nft_family(self) -> &'static str {
        match self {
            Ip::V4 => "ip",
            Ip::V6 => "ip6",
        }
    }
}

/// The rules as `iptables-save -c` prints them; `None` when the tool is not installed or the kernel
/// has no such tables.
pub(crate) fn saved(ip: Ip) -> Result<Option<String>, Error> {
    match Program::new(ip.save()).arg("-c").run() {
        Ok(output) => Ok(Some(output.stdout_text())),
        Err(error) if error.is_not_found() => Ok(None),
        // No IPv6 in this kernel.
        Err(exec::Error::Failed { .. }) if ip == Ip::V6 => Ok(None),
        Err(source) => Err(Error::program(format!("run {}", ip.save()), source)),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    chain: String,
    /// `[packets:bytes]`, or empty.
    counters: String,
    /// What follows `-A CHAIN `.
    spec: String,
}

impl Rule {
    /// The chain that it leads to, or its target.
    fn target(&self) -> Option<&str> {
        let mut words = self.spec.split(' ');
        while let Some(word) = words.next() {
            // A comment may hold anything: step over quoted words.
            if word.starts_with('"') {
                let mut word = word;
                while !(word.len() > 1 && word.ends_with('"') && !word.ends_with("\\\"")) {
                    word = words.next()?;
                }
            } else if word == "-j" || word == "-g" {
                return words.next();
            }
        }
        None
    }
    fn leads_to_ufw(&self) -> bool {
        self.target().is_some_and(is_ufw)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Chain {
    name: String,
    /// `-` for a user chain.
    policy: String,
    counters: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Table {
    name: String,
    chains: Vec<Chain>,
    rules: Vec<Rule>,
}

impl Table {
    fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }
    fn rules_of<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(move |rule| rule.chain == chain)
    }
}

fn is_ufw(chain: &str) -> bool {
    chain.starts_with("ufw-") || chain.starts_with("ufw6-")
}

fn parse(text: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = vec![];
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table {
                name: name.trim().to_owned(),
                ..Table::default()
            });
            continue;
        }
        let Some(table) = tables.last_mut() else {
            continue;
        };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let mut next = || words.next().unwrap_or_default().to_owned();
            table.chains.push(Chain {
                name: next(),
                policy: next(),
                counters: next(),
            });
            continue;
        }
        let (counters, rule) = match line.split_once("] ") {
            Some((counters, rule)) if line.starts_with('[') => (format!("{counters}]"), rule),
            _ => (String::new(), line),
        };
        if let Some((chain, spec)) = rule
            .strip_prefix("-A ")
            .map(|rule| rule.split_once(' ').unwrap_or((rule, "")))
        {
            table.rules.push(Rule {
                chain: chain.to_owned(),
                counters,
                spec: spec.to_owned(),
            });
        }
    }
    tables
}

/// Facts about the packet filter that UFW's executor asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UfwPart {
    /// Some chain of UFW's exists.
    pub chains: bool,
    /// INPUT, FORWARD and OUTPUT all lead into UFW's chains.
    pub hooked: bool,
    /// Policy of INPUT.
    pub input_policy: String,
    /// Rules of the user chain for input, without counters.
    pub user_input: Vec<String>,
}

/// What the present rules hold of UFW.
pub(crate) fn ufw_part(text: &str) -> UfwPart {
    let tables = parse(text);
    let Some(filter) = tables.iter().find(|table| table.name == "filter") else {
        return UfwPart::default();
    };
    UfwPart {
        chains: filter.chains.iter().any(|chain| is_ufw(&chain.name)),
        hooked: ["INPUT", "FORWARD", "OUTPUT"]
            .iter()
            .all(|chain| filter.rules_of(chain).any(Rule::leads_to_ufw)),
        input_policy: filter
            .chain("INPUT")
            .map(|chain| chain.policy.clone())
            .unwrap_or_default(),
        user_input: filter
            .rules
            .iter()
            .filter(|rule| matches!(rule.chain.as_str(), "ufw-user-input" | "ufw6-user-input"))
            .map(|rule| rule.spec.clone())
            .collect(),
    }
}

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

fn line(rule: &Rule, verb: &str, position: Option<usize>) -> String {
    let mut text = String::new();
    if verb != "-D" && !rule.counters.is_empty() {
        text.push_str(&rule.counters);
        text.push(' ');
    }
    text.push_str(verb);
    text.push(' ');
    text.push_str(&rule.chain);
    if let Some(position) = position {
        let _ = write!(text, " {position}");
    }
    if !rule.spec.is_empty() {
        text.push(' ');
        text.push_str(&rule.spec);
    }
    text
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

/// Puts UFW's part back as `then` has it. Returns what was left.
pub(crate) fn restore(
    ip: Ip,
    then: &str,
    foreign_too: bool,
    context: &Context,
) -> Result<Vec<String>, Error> {
    let Some(now) = saved(ip)? else {
        return Ok(vec![]);
    };
    let way = way_back(then, &now, foreign_too);
    if let Some(script) = &way.script {
        apply(ip, script, context)?;
        let after = saved(ip)?.unwrap_or_default();
        if let Some(difference) = difference(then, &after) {
            return Err(Error::read_back(
                ip.save(),
                format!("the rules are not as they were: {difference}"),
            ));
        }
    }
    for table in &way.empty_tables {
        // Only iptables-nft has tables that come and go; the legacy tool's are part of the kernel.
        let _ = drop_empty_table(ip, table);
    }
    Ok(way.left)
}

/// Runs a script of edits, committed as a whole.
pub(crate) fn apply(ip: Ip, script: &str, context: &Context) -> Result<(), Error> {
    let _lent = context.lock.lend();
    Program::new(ip.restore())
        .args(["--counters", "--noflush", "--wait", "5"])
        .stdin(script)
        .timeout(Duration::from_secs(15))
        .run()
        .map(drop)
        .map_err(|source| Error::program(format!("run {}", ip.restore()), source))
}

/// Deletes an nf_tables table that holds nothing but empty base chains. The kernel refuses to
/// delete a chain with rules, so a rule that came in between keeps the whole table.
fn drop_empty_table(ip: Ip, table: &str) -> Result<(), exec::Error> {
    let family = ip.nft_family();
    let listing = Program::new("nft")
        .args(["list", "table", family, table])
        .run()?
        .stdout_text();
    let mut script = String::new();
    for line in listing.lines() {
        if let Some(chain) = line.trim().strip_prefix("chain ") {
            let chain = chain.trim_end_matches('{').trim();
            let _ = writeln!(script, "delete chain {family} {table} {chain}");
        }
    }
    let _ = writeln!(script, "delete table {family} {table}");
    Program::new("nft")
        .args(["-f", "-"])
        .stdin(script)
        .run()
        .map(drop)
}

/// Removes UFW's chains that INPUT, FORWARD or OUTPUT no longer lead to. UFW takes their presence
/// for "already started" and does not hook them in again, but does set the policy to DROP: enabling
/// it then locks everybody out. It makes them anew, hooks included, when they are gone.
pub(crate) fn remove_unhooked(context: &Context) -> Result<(), Error> {
    for ip in Ip::BOTH {
        let Some(now) = saved(ip)? else { continue };
        let part = ufw_part(&now);
        if !part.chains || part.hooked {
            continue;
        }
        if let Some(script) = way_back(&without_ufw(&now), &now, false).script {
            apply(ip, &script, context)?;
        }
    }
    Ok(())
}

/// Takes UFW's part out of the packet filter.
pub(crate) fn remove_all(context: &Context) -> Result<(), Error> {
    for ip in Ip::BOTH {
        if let Some(now) = saved(ip)?
            && let Some(script) = way_back(&without_ufw(&now), &now, false).script
        {
            apply(ip, &script, context)?;
        }
    }
    Ok(())
}

/// The same rules as if UFW had never run.
fn without_ufw(text: &str) -> String {
    let mut result = String::new();
    for table in parse(text) {
        let _ = writeln!(result, "*{}", table.name);
        for chain in table.chains.iter().filter(|chain| !is_ufw(&chain.name)) {
            let policy = if table.name == "filter" && chain.policy != "-" {
                "ACCEPT"
            } else {
                &chain.policy
            };
            let _ = writeln!(result, ":{} {} {}", chain.name, policy, chain.counters);
        }
        for rule in &table.rules {
            if !is_ufw(&rule.chain) && !rule.leads_to_ufw() {
                let _ = writeln!(result, "{}", line(rule, "-A", None));
            }
        }
        result.push_str("COMMIT\n");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str =
        "*filter\n:INPUT ACCEPT [7:70]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
    const ON: &str = "\
*filter
:INPUT DROP [1:2]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-input - [0:0]
:ufw-user-input - [0:0]
[3:4] -A INPUT -j ufw-before-input
[0:0] -A FORWARD -j ufw-before-input
[0:0] -A OUTPUT -j ufw-before-input
[5:6] -A ufw-before-input -i lo -j ACCEPT
[0:0] -A ufw-before-input -j ufw-user-input
[0:0] -A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
";

    /// The script from `now` back to `then`, without the frame of the table.
    fn check(then: &str, now: &str, foreign_too: bool, script: &str) {
        let way = way_back(then, now, foreign_too);
        let found = way.script.unwrap_or_default();
        let found: Vec<&str> = found
            .lines()
            .filter(|line| !line.starts_with('*') && *line != "COMMIT")
            .collect();
        assert_eq!(found, script.lines().map(str::trim).collect::<Vec<_>>());
    }

    #[test]
    fn the_same_is_left_alone() {
        check(ON, ON, false, "");
        check(BARE, BARE, true, "");
        // Counters are no difference.
        check(ON, &ON.replace("[3:4]", "[9:9]"), false, "");
    }

    #[test]
    fn ufw_turned_on_is_taken_away() {
        check(
            BARE,
            ON,
            false,
            ":INPUT ACCEPT [1:2]
             :FORWARD ACCEPT [0:0]
             :ufw-before-input - [0:0]
             :ufw-user-input - [0:0]
             -D INPUT -j ufw-before-input
             -D FORWARD -j ufw-before-input
             -D OUTPUT -j ufw-before-input
             -X ufw-before-input
             -X ufw-user-input",
        );
        assert_eq!(way_back("", ON, false).empty_tables, ["filter"]);
        assert!(way_back(BARE, ON, false).empty_tables.is_empty());
    }

    #[test]
    fn ufw_flushed_comes_back() {
        check(
            ON,
            BARE,
            false,
            ":INPUT DROP [7:70]
             :FORWARD DROP [0:0]
             :ufw-before-input - [0:0]
             :ufw-user-input - [0:0]
             [3:4] -I INPUT 1 -j ufw-before-input
             [0:0] -I FORWARD 1 -j ufw-before-input
             [0:0] -I OUTPUT 1 -j ufw-before-input
             [5:6] -A ufw-before-input -i lo -j ACCEPT
             [0:0] -A ufw-before-input -j ufw-user-input
             [0:0] -A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT",
        );
    }

    #[test]
    fn only_the_changed_chain_is_rewritten() {
        let now = ON.replace("--dport 22 -j ACCEPT", "--dport 443 -j ACCEPT");
        check(
            ON,
            &now,
            false,
            ":ufw-user-input - [0:0]
             [0:0] -A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT",
        );
    }

    #[test]
    fn what_docker_did_meanwhile_stays() {
        let docker = ON
            .replace(
                ":ufw-user-input",
                ":DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n:ufw-user-input",
            )
            .replace(
                "[0:0] -A FORWARD",
                "[0:0] -A FORWARD -j DOCKER-USER\n[0:0] -A FORWARD",
            )
            .replace("COMMIT", "[0:0] -A DOCKER-USER -j RETURN\nCOMMIT");
        let way = way_back(BARE, &docker, false);
        let script = way.script.unwrap();
        assert!(!script.contains("DOCKER"), "{script}");
        assert!(!script.contains(":FORWARD"), "{script}");
        assert_eq!(way.left.len(), 1);
        assert!(way.empty_tables.is_empty());
        // The same with UFW on before: nothing to do at all.
        check(ON, &docker, false, "");
    }

    #[test]
    fn a_jump_goes_back_to_its_place() {
        let then = ON.replace(
            "[3:4] -A INPUT",
            "[0:0] -A INPUT -p tcp -m comment --comment \"a -j ufw-x b\" -j f2b\n[3:4] -A INPUT",
        );
        let now = then.replace("[3:4] -A INPUT -j ufw-before-input\n", "");
        check(&then, &now, false, "[3:4] -I INPUT 2 -j ufw-before-input");
        // Somebody put a rule in front meanwhile.
        let now = now.replace("[0:0] -A INPUT", "[0:0] -A INPUT -j new\n[0:0] -A INPUT");
        check(&then, &now, false, "[3:4] -I INPUT 3 -j ufw-before-input");
    }

    #[test]
    fn foreign_rules_come_back_only_when_ufw_flushes_them() {
        let then = "*filter\n:INPUT ACCEPT [0:0]\n:f2b - [0:0]\n[1:1] -A INPUT -j f2b\n[2:2] -A f2b -j RETURN\nCOMMIT\n";
        let now = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n";
        check(then, now, false, "");
        check(
            then,
            now,
            true,
            ":f2b - [0:0]
             [1:1] -I INPUT 1 -j f2b
             [2:2] -A f2b -j RETURN",
        );
    }

    #[test]
    fn hooks_are_seen() {
        let part = ufw_part(ON);
        assert!(part.chains && part.hooked);
        assert_eq!(part.input_policy, "DROP");
        assert_eq!(part.user_input, ["-p tcp -m tcp --dport 22 -j ACCEPT"]);
        let flushed = ON.replace("[3:4] -A INPUT -j ufw-before-input\n", "");
        assert!(!ufw_part(&flushed).hooked);
        let without = without_ufw(&flushed);
        assert!(
            !without.contains("ufw") && without.contains(":INPUT ACCEPT"),
            "{without}"
        );
    }
}
