//! Others whose rules come before UFW's, or take them away.

use super::engines::leads;
use super::{Case, Complete, finding};
use crate::finding::{Finding, Severity};
use crate::text::clean;
use reach::ir::{Family, Key, Match, Rule, RuleVerdict, Statement, Table, Values, ct_state};

pub(super) fn findings(case: &Case<'_>, out: &mut Vec<Finding>) {
    ahead_of_ufw(case, out);
    node_ports(case, out);
    other_managers(case, out);
    flush(case, out);
}

/// Rules of INPUT that decide before UFW is asked: Tailscale's, a cloud image's, anybody's.
fn ahead_of_ufw(case: &Case<'_>, out: &mut Vec<Finding>) {
    for table in &case.host.rules.tables {
        let (v6, program) = match table.family {
            Family::Ip => (false, "iptables"),
            Family::Ip6 => (true, "ip6tables"),
            _ => continue,
        };
        let prefix = if v6 { "ufw6-" } else { "ufw-" };
        let Some(chain) = table.chain("INPUT").filter(|_| table.name == "filter") else {
            continue;
        };
        let Some(first) = chain
            .rules
            .iter()
            .position(|r| leads(r, |c| c.starts_with(prefix)))
        else {
            continue;
        };
        let before = &chain.rules[..first];
        tailscale(table, program, before, out);
        let mut opens = Vec::new();
        let mut shuts = None;
        for rule in before {
            match verdict(rule) {
                Some(RuleVerdict::Accept) if opens_something(rule) => {
                    opens.push(format!("{program}: {}", clean(&rule.text)));
                }
                Some(RuleVerdict::Drop | RuleVerdict::Reject { .. }) if unconditional(rule) => {
                    shuts = Some(format!("{program}: {}", clean(&rule.text)));
                    break;
                }
                _ => {}
            }
        }
        if !opens.is_empty() {
            let mut found = finding(
                "rules-before-ufw",
                Severity::Medium,
                "Rules that stand before UFW's let packets in whatever UFW says: `ufw deny` has no effect on them.",
            );
            for rule in opens.into_iter().take(8) {
                found = found.shows(rule);
            }
            out.push(
                found
                    .mend(format!("{program} -S INPUT   # then take the rules out where they are made: cloud image, /etc/iptables/rules.v4"))
                    .rows(&["G2", "NIST-SC-7"]),
            );
        }
        if let Some(rule) = shuts {
            out.push(
                finding(
                    "ufw-behind-reject",
                    Severity::Medium,
                    "A rule that refuses everything stands before UFW's: no `ufw allow` has any effect.",
                )
                .shows(rule)
                .mend(format!("{program} -S INPUT   # then take the rule out where it is made: cloud image, /etc/iptables/rules.v4"))
                .rows(&["G2", "G5"]),
            );
        }
    }
}

fn tailscale(table: &Table, program: &str, before: &[Rule], out: &mut Vec<Finding>) {
    let Some(jump) = before.iter().find(|r| leads(r, |c| c == "ts-input")) else {
        return;
    };
    let mut found = finding(
        "tailscale-before-ufw",
        Severity::Low,
        "Tailscale's rules come before UFW's: whoever is in the tailnet (and whom its own access rules let) reaches every port, whatever UFW denies.",
    )
    .shows(format!("{program}: {}", clean(&jump.text)));
    let accepts = table.chain("ts-input").into_iter().flat_map(|c| &c.rules);
    for rule in accepts
        .filter(|r| verdict(r) == Some(&RuleVerdict::Accept))
        .take(4)
    {
        found = found.shows(format!("{program}: {}", clean(&rule.text)));
    }
    out.push(
        found
            .mend("tailscale set --netfilter-mode=nodivert   # or say what the tailnet may in its access controls")
            .rows(&["G2", "NIST-SC-7"]),
    );
}

fn verdict(rule: &Rule) -> Option<&RuleVerdict> {
    rule.statements.iter().find_map(|s| match s {
        Statement::Verdict(verdict) => Some(verdict),
        _ => None,
    })
}

fn unconditional(rule: &Rule) -> bool {
    !rule
        .statements
        .iter()
        .any(|s| matches!(s, Statement::Match(_) | Statement::Unknown { .. }))
}

/// It admits new connections of others: not loopback's, not those that are known.
fn opens_something(rule: &Rule) -> bool {
    !rule.statements.iter().any(|s| match s {
        Statement::Match(Match::Cmp { of, values, negate }) => match of.key {
            Key::CtState => {
                let new = matches!(values, Values::Int(states) if states.contains(ct_state::NEW));
                new == *negate
            }
            Key::IifName => rule.text.contains(" lo ") || rule.text.contains("\"lo\""),
            // ICMP opens no port.
            Key::L4Proto => rule.text.contains("icmp"),
            _ => false,
        },
        Statement::Match(Match::Bits { key, negate, bits }) => {
            *key == Key::CtState && (bits & ct_state::NEW != 0) == *negate
        }
        _ => false,
    })
}

/// kube-proxy hands node ports on in nat PREROUTING, so INPUT never sees them.
fn node_ports(case: &Case<'_>, out: &mut Vec<Finding>) {
    let rules: Vec<String> = case
        .host
        .rules
        .rules()
        .filter(|(at, _)| at.chain == "KUBE-NODEPORTS")
        .filter(|(at, _)| at.table == "nat")
        .map(|(_, rule)| clean(&rule.text))
        .collect();
    if rules.is_empty() {
        return;
    }
    let mut found = finding(
        "kube-node-ports",
        Severity::Medium,
        "Kubernetes (k3s, kube-proxy) opens node ports and load-balancer ports ahead of UFW: `ufw status` does not see them.",
    );
    for rule in rules.into_iter().take(6) {
        found = found.shows(rule);
    }
    out.push(found.rows(&["G10", "NIST-SC-7"]));
}

/// Programs that keep rules of their own beside UFW's.
fn other_managers(case: &Case<'_>, out: &mut Vec<Finding>) {
    let tables = &case.host.rules.tables;
    let has = |test: &dyn Fn(&Table) -> bool| tables.iter().find(|t| test(t));
    let chain = |t: &Table, prefix: &str| t.chains.iter().any(|c| c.name.starts_with(prefix));
    let libvirt = has(&|t| chain(t, "LIBVIRT_") || t.name.starts_with("libvirt"));
    let lxd = has(&|t| matches!(t.name.as_str(), "lxd" | "incus"));
    for (table, id, who) in [
        (libvirt, "libvirt-beside-ufw", "libvirt"),
        (lxd, "lxd-beside-ufw", "LXD or Incus"),
    ] {
        let Some(table) = table else { continue };
        out.push(
            finding(
                id,
                Severity::Info,
                format!("{who} keeps rules of its own for its machines: what it forwards to them, UFW does not see."),
            )
            .shows(format!("table {} {}", table.family, clean(&table.name)))
            .rows(&["G10"]),
        );
    }
}

/// Debian's nftables.conf begins with `flush ruleset`: with its unit on, UFW's rules go at its next start.
fn flush(case: &Case<'_>, out: &mut Vec<Finding>) {
    let unit = case.host.units.get("nftables.service");
    let on = unit.is_some_and(|u| u.enabled == "enabled" || u.active == "active");
    if let (Some(line), true) = (&case.host.nftables_flush, on) {
        out.push(
            finding(
                "nftables-flushes-ufw",
                Severity::Medium,
                "nftables.service flushes every table when it starts, UFW's and Docker's too: what comes up before it is open afterwards, while `ufw status` says active.",
            )
            .shows(format!("/etc/nftables.conf: {}", clean(line)))
            .mend("systemctl disable nftables.service   # or replace `flush ruleset` by `flush table …` of your own tables")
            .rows(&["G2", "CIS-4.2.2", "NIST-SC-7"]),
        );
    }
}
