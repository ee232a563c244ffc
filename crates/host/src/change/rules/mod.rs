//! The part of the packet filter that UFW owns, saved and put back through iptables-save and
//! iptables-restore, without touching what others did meanwhile.
//!
//! UFW's part is: its own chains (`ufw-*`, `ufw6-*`), the rules elsewhere that lead into them, and
//! the policies of INPUT, FORWARD and OUTPUT. [`way_back`] writes the script that turns this part of
//! the present rules into what a snapshot holds. The script is committed by the kernel as a whole, a
//! second run of it changes nothing, and chains of Docker, fail2ban and others stay as they are.

mod dump;
#[cfg(test)]
mod tests;
mod way;

use super::{Context, Error};
use crate::exec::{self, Program};
use dump::{Rule, is_ufw, line, parse};
use std::fmt::Write as _;
use std::time::Duration;
pub(crate) use way::{difference, way_back};

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
