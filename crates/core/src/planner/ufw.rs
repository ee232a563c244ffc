//! UFW: the rules of host ports, through the `ufw` command.
//!
//! What UFW does with a rule decides how one is added (ufw 0.36, `backend_iptables.set_rule`):
//! adding a rule that is there with another action or comment replaces it in its place; prepending
//! one that is there is skipped without an error. Rules are tried in order and the first that matches
//! decides, so a wider rule before ours takes its effect away.

use super::grants::{Grant, safe_interface, service_ports};
use super::{Draft, Options, Refusal};
use crate::host::{Host, Ufw, UfwRule};
use crate::plan::{Action, UfwAdd, UfwOp};
use crate::policy::{Policy, Reach};
use crate::text::clean;
use ipnet::IpNet;
use reach::Backend;
use reach::ir::{Family, RuleVerdict, Statement};
use std::net::IpAddr;

/// Starts the comment of every rule that portcullis writes: this is how it knows them again.
const MARK: &str = "portcullis";

pub(super) fn plan(
    host: &Host,
    policy: &Policy,
    grants: &[Grant],
    options: &Options,
    draft: &mut Draft,
) -> Result<(), Refusal> {
    let fresh = Ufw {
        ipv6: true,
        default_incoming: "deny".into(),
        default_outgoing: "allow".into(),
        loaded: Some(false),
        ..Ufw::default()
    };
    let ufw = host.ufw.as_ref().unwrap_or(&fresh);
    refuse_lockout(host, ufw)?;

    let flushed = ufw.enabled && ufw.loaded != Some(true);
    if flushed {
        // With ENABLED=yes the `ufw` command changes the kernel's chains with every rule, and fails
        // where there are none: they have to come back first, with the rules that UFW has now.
        if grants
            .iter()
            .any(|g| !g.not_ssh && !admitted_already(ufw, g))
        {
            return Err(Refusal::UfwFlushed);
        }
        draft.change(
            "UFW says that it is active, and the kernel has none of its rules",
            &["ufw-not-loaded"],
            ufw_action(UfwOp::Enable {}),
        );
    }
    // Grants come with SSH first, and everything that opens comes before whatever closes.
    // What is deleted afterwards must not be what a grant relies on.
    let mut staying = ufw.clone();
    staying
        .rules
        .retain(|r| deletion(r, grants, options).is_none());
    for grant in grants {
        admit(&staying, grant, draft);
    }
    leftovers(host, ufw, policy, grants, options, draft);
    defaults(ufw, policy, draft);
    if !ufw.enabled {
        draft.change(
            "nothing filters incoming connections",
            &["ufw-inactive"],
            ufw_action(UfwOp::Enable {}),
        );
    }
    notes(host, ufw, draft);
    Ok(())
}

fn refuse_lockout(host: &Host, ufw: &Ufw) -> Result<(), Refusal> {
    if !ufw.ipv6
        && let Some(session) = host
            .sessions
            .iter()
            .find(|s| matches!(s.peer.to_canonical(), IpAddr::V6(a) if !a.is_loopback()))
    {
        return Err(Refusal::SshOverIpv6 {
            peer: session.peer.to_string(),
        });
    }
    for ipv6 in [false, true] {
        if !ufw.ipv6 && ipv6 {
            continue;
        }
        if chains_without_jump(host, "INPUT", "input", ipv6) {
            let (program, infix) = if ipv6 {
                ("ip6tables", "6")
            } else {
                ("iptables", "")
            };
            return Err(Refusal::JumpsGone {
                chain: if ipv6 {
                    "INPUT (IPv6)".into()
                } else {
                    "INPUT".into()
                },
                // The order of ufw-init-functions.
                commands: [
                    "before-logging-input",
                    "before-input",
                    "after-input",
                    "after-logging-input",
                    "reject-input",
                    "track-input",
                ]
                .iter()
                .map(|chain| format!("{program} -A INPUT -j ufw{infix}-{chain}"))
                .collect(),
            });
        }
    }
    Ok(())
}

/// UFW's chains of this direction exist, and the built-in chain has no jump to them: `ufw enable` finds
/// its chains, takes itself for started, and never restores the jumps.
fn chains_without_jump(host: &Host, builtin: &str, direction: &str, ipv6: bool) -> bool {
    let (family, infix) = if ipv6 {
        (Family::Ip6, "6")
    } else {
        (Family::Ip, "")
    };
    let before = format!("ufw{infix}-before-{direction}");
    [Backend::IptablesNft, Backend::IptablesLegacy, Backend::Nft]
        .into_iter()
        .filter_map(|backend| host.rules.table(family, "filter", backend))
        .filter(|table| table.chain(&before).is_some())
        .any(|table| {
            let jumps = |s: &Statement| {
                matches!(s, Statement::Verdict(RuleVerdict::Jump { chain } | RuleVerdict::Goto { chain }) if *chain == before)
            };
            !table
                .chain(builtin)
                .is_some_and(|c| c.rules.iter().any(|r| r.statements.iter().any(jumps)))
        })
}

/// How a rule of UFW stands to a grant, for one IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overlap {
    /// Other packets.
    None,
    /// Some of its packets.
    Part,
    /// All of its packets, and more or otherwise written.
    Whole,
    /// The same rule but for action and comment.
    Same,
}

fn overlap(rule: &UfwRule, grant: &Grant, ipv6: bool) -> Overlap {
    if rule.route || rule.direction != "in" || rule.ipv6 != ipv6 {
        return Overlap::None;
    }
    let any_proto = matches!(rule.proto.as_str(), "any" | "");
    if !any_proto && rule.proto != grant.proto.to_string() {
        return Overlap::None;
    }
    let Some(ports) = ports(&rule.port) else {
        // Not understood: it may concern this port.
        return Overlap::Part;
    };
    if !ports.iter().any(|(a, b)| (*a..=*b).contains(&grant.port)) {
        return Overlap::None;
    }
    let rule_from = rule.from.filter(|n| n.prefix_len() > 0);
    let grant_net = grant.way.net.filter(|n| n.prefix_len() > 0);
    let mut whole = rule.to.is_none_or(|n| n.prefix_len() == 0) && any(&rule.from_port);
    match (rule_from, grant_net) {
        (None, _) => {}
        (Some(from), Some(net)) if from.contains(&net) => {}
        (Some(from), Some(net)) if !net.contains(&from) => return Overlap::None,
        (Some(_), _) => whole = false,
    }
    match (rule.interface_in.as_deref(), grant.way.interface.as_deref()) {
        (None, _) => {}
        (Some(rule), Some(grant)) if rule == grant => {}
        (Some(rule), Some(_)) if safe_interface(rule) => return Overlap::None,
        (Some(_), _) => whole = false,
    }
    let same = whole
        && !any_proto
        && rule.application.is_none()
        && rule.port == grant.port.to_string()
        && rule_from == grant_net
        && rule.interface_in == grant.way.interface;
    match (same, whole) {
        (true, _) => Overlap::Same,
        (_, true) => Overlap::Whole,
        _ => Overlap::Part,
    }
}

fn any(port: &str) -> bool {
    matches!(port, "any" | "")
}

/// `22`, `6000:6007`, `80,443`, `any` as inclusive ranges; `None` when it is something else.
fn ports(text: &str) -> Option<Vec<(u16, u16)>> {
    if any(text) {
        return Some(vec![(0, u16::MAX)]);
    }
    text.split(',')
        .map(|part| {
            let (first, last) = part.split_once(':').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?))
        })
        .collect()
}

fn action(grant: &Grant) -> &'static str {
    if grant.rate_limit { "limit" } else { "allow" }
}

/// What one IP version needs so that a grant holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Need<'a> {
    Nothing,
    /// Add, or replace in place.
    Add,
    /// A rule before takes our effect away: go before it. The one of ours that is there goes first.
    Prepend {
        shadow: &'a UfwRule,
        ours: Option<&'a UfwRule>,
    },
    /// As `Prepend`, but denials of the user stand first and must keep their force.
    Blocked {
        shadow: &'a UfwRule,
    },
}

fn need<'a>(ufw: &'a Ufw, grant: &Grant, ipv6: bool) -> Need<'a> {
    if !grant.way.sees(ipv6) || (ipv6 && !ufw.ipv6) {
        return Need::Nothing;
    }
    let mut denials = false;
    let mut rules = ufw.rules.iter();
    while let Some(rule) = rules.next() {
        match overlap(rule, grant, ipv6) {
            Overlap::None => {}
            Overlap::Part => denials |= closes(rule),
            Overlap::Same if rule.action == action(grant) => return Need::Nothing,
            Overlap::Same => return Need::Add,
            Overlap::Whole if rule.action == action(grant) => return Need::Nothing,
            Overlap::Whole if denials && !closes(rule) => return Need::Blocked { shadow: rule },
            Overlap::Whole => {
                let ours = rules.find(|r| overlap(r, grant, ipv6) == Overlap::Same);
                return Need::Prepend { shadow: rule, ours };
            }
        }
    }
    Need::Add
}

/// The rules that UFW has let in what the grant is for, be it with another action than ours.
fn admitted_already(ufw: &Ufw, grant: &Grant) -> bool {
    [false, true]
        .into_iter()
        .filter(|ipv6| grant.way.sees(*ipv6) && (ufw.ipv6 || !ipv6))
        .all(|ipv6| {
            let first = ufw
                .rules
                .iter()
                .find(|r| matches!(overlap(r, grant, ipv6), Overlap::Same | Overlap::Whole));
            first.is_some_and(|r| !closes(r))
        })
}

fn closes(rule: &UfwRule) -> bool {
    matches!(rule.action.as_str(), "deny" | "reject")
}

fn admit(ufw: &Ufw, grant: &Grant, draft: &mut Draft) {
    if grant.way.net.is_some_and(|n| n.addr().is_ipv6()) && !ufw.ipv6 {
        draft.note(
            format!(
                "port {} cannot be opened for {}: UFW is set to drop all IPv6",
                grant.port, grant.way
            ),
            Some(IPV6_FIX.to_owned()),
        );
        return;
    }
    let needs = [need(ufw, grant, false), need(ufw, grant, true)];
    for need in &needs {
        if let Need::Blocked { shadow } = need {
            draft.note(
                format!(
                    "port {}/{} is not as the policy says ({}): your rule `{}` comes first, behind denials of yours that a rule in front would undo",
                    grant.port, grant.proto, action(grant), shown(shadow)
                ),
                Some(format!("ufw insert {} {}", shadow.number, words(&add(grant, false)))),
            );
        }
    }
    let prepend = needs.iter().find_map(|n| match n {
        Need::Prepend { shadow, ours } => Some((*shadow, *ours)),
        _ => None,
    });
    let blocked = needs.iter().any(|n| matches!(n, Need::Blocked { .. }));
    let why = why(grant);
    if blocked {
        // A rule in front is in front for both IP versions.
    } else if let Some((shadow, _)) = prepend {
        let ours = needs.iter().find_map(|n| match n {
            Need::Prepend { ours, .. } => *ours,
            _ => None,
        });
        let ours = ours.or_else(|| {
            // The rule of the other IP version is one with it: ufw would skip the prepend for that one.
            [false, true]
                .into_iter()
                .flat_map(|ipv6| ufw.rules.iter().filter(move |r| r.ipv6 == ipv6))
                .find(|r| overlap(r, grant, r.ipv6) == Overlap::Same)
        });
        if let Some(ours) = ours {
            let mut old = add(grant, false);
            old.action = ours.action.clone();
            old.comment.clear();
            draft.change(
                format!(
                    "it goes before `{}`, which takes its effect away",
                    shown(shadow)
                ),
                &[],
                ufw_action(UfwOp::Delete { rule: old }),
            );
        }
        draft.change(
            format!(
                "{why}; before `{}`, which would decide first",
                shown(shadow)
            ),
            mends(grant),
            ufw_action(UfwOp::Add {
                rule: add(grant, true),
            }),
        );
    } else if needs.contains(&Need::Add) {
        draft.change(
            why,
            mends(grant),
            ufw_action(UfwOp::Add {
                rule: add(grant, false),
            }),
        );
    }
}

fn mends(grant: &Grant) -> &'static [&'static str] {
    match (grant.not_ssh, grant.rate_limit) {
        (false, true) => &["ssh-not-allowed", "ssh-not-rate-limited"],
        (false, false) => &["ssh-not-allowed"],
        (true, _) => &["closed-but-wanted"],
    }
}

fn why(grant: &Grant) -> String {
    let who = &grant.way;
    match (grant.not_ssh, grant.rate_limit) {
        (false, true) => {
            format!("SSH first, for {who}; 6 or more attempts in 30 seconds are refused")
        }
        (false, false) => format!("SSH first, for {who}"),
        (true, true) => {
            format!("the policy allows it for {who}; 6 or more attempts in 30 seconds are refused")
        }
        (true, false) => format!("the policy allows it for {who}"),
    }
}

fn add(grant: &Grant, prepend: bool) -> UfwAdd {
    UfwAdd {
        action: action(grant).into(),
        prepend,
        proto: grant.proto.to_string(),
        port: grant.port,
        from: grant.way.net,
        interface: grant.way.interface.clone(),
        comment: format!("{MARK}: {}", grant.label)
            .trim_end_matches([' ', ':'])
            .to_owned(),
    }
}

/// Rules that no grant asks for: ours of an earlier policy go; the user's stay and are named, or go
/// when asked to.
fn leftovers(
    host: &Host,
    ufw: &Ufw,
    policy: &Policy,
    grants: &[Grant],
    options: &Options,
    draft: &mut Draft,
) {
    let kept_closed: Vec<(u16, String)> = policy
        .services
        .iter()
        .filter(|s| !matches!(s.reach, Reach::From(_)))
        .flat_map(|s| {
            service_ports(host, &s.kind)
                .into_iter()
                .map(|port| (port, s.kind.clone()))
        })
        .collect();
    let mut done: Vec<UfwAdd> = Vec::new();
    for rule in &ufw.rules {
        if !unasked(rule, grants) {
            continue;
        }
        let opens: Vec<String> = kept_closed
            .iter()
            .filter(|(port, _)| {
                !rule.route
                    && ports(&rule.port)
                        .is_none_or(|p| p.iter().any(|(a, b)| (*a..=*b).contains(port)))
            })
            .map(|(port, kind)| format!("{kind} ({port})"))
            .collect();
        match deletion(rule, grants, options) {
            Some(delete) => {
                if !done.contains(&delete) {
                    let why = if is_ours(rule) {
                        "the policy does not ask for this rule any more"
                    } else {
                        "the policy does not mention what this rule admits"
                    };
                    draft.change(
                        why,
                        &[],
                        ufw_action(UfwOp::Delete {
                            rule: delete.clone(),
                        }),
                    );
                    done.push(delete);
                }
            }
            None => {
                let twin = ufw
                    .rules
                    .iter()
                    .any(|r| !r.ipv6 && rule.ipv6 && shown(r) == shown(rule));
                if twin {
                    continue;
                }
                let text = if rule.route {
                    format!(
                        "your rule `{}` lets routed packets through; the guard decides on published ports whatever it says",
                        shown(rule)
                    )
                } else if opens.is_empty() {
                    format!(
                        "your rule `{}` admits more than the policy mentions; it is kept",
                        shown(rule)
                    )
                } else {
                    format!(
                        "your rule `{}` opens {}, which the policy keeps closed; it is kept, and only the bind to loopback and the guard stand behind it",
                        shown(rule),
                        opens.join(", ")
                    )
                };
                draft.note(text, Some(delete_command(rule)));
            }
        }
    }
}

/// It admits something that no grant asks for in these words.
fn unasked(rule: &UfwRule, grants: &[Grant]) -> bool {
    let asked = |g: &Grant| {
        matches!(overlap(rule, g, rule.ipv6), Overlap::Same | Overlap::Whole) && within(rule, g)
    };
    rule.direction == "in" && !closes(rule) && !grants.iter().any(asked)
}

/// How it is deleted, if this plan deletes it.
fn deletion(rule: &UfwRule, grants: &[Grant], options: &Options) -> Option<UfwAdd> {
    (unasked(rule, grants) && (options.prune || is_ours(rule)))
        .then(|| expressible(rule))
        .flatten()
}

/// The rule admits nothing beyond the grant's port and sources: one that is wider stays worth a note.
fn within(rule: &UfwRule, grant: &Grant) -> bool {
    let port = ports(&rule.port).is_some_and(|p| p == [(grant.port, grant.port)]);
    let from = rule.from.filter(|n| n.prefix_len() > 0);
    let net = grant.way.net.filter(|n| n.prefix_len() > 0);
    port && from == net && rule.interface_in == grant.way.interface
}

fn is_ours(rule: &UfwRule) -> bool {
    rule.comment
        .as_deref()
        .is_some_and(|c| c == MARK || c.starts_with("portcullis: "))
}

/// The rule in the words of [`UfwAdd`], when these can say it.
fn expressible(rule: &UfwRule) -> Option<UfwAdd> {
    let plain_rule = !rule.route
        && rule.to.is_none_or(|n| n.prefix_len() == 0)
        && any(&rule.from_port)
        && rule.interface_out.is_none()
        && rule.application.is_none()
        && matches!(rule.proto.as_str(), "tcp" | "udp")
        && rule.interface_in.as_deref().is_none_or(safe_interface);
    if !plain_rule {
        return None;
    }
    Some(UfwAdd {
        action: rule.action.clone(),
        prepend: false,
        proto: rule.proto.clone(),
        port: rule.port.parse().ok()?,
        from: rule.from.filter(|n| n.prefix_len() > 0),
        interface: rule.interface_in.clone(),
        comment: String::new(),
    })
}

fn defaults(ufw: &Ufw, policy: &Policy, draft: &mut Draft) {
    let want = policy.incoming.default.word();
    if ufw.default_incoming != want {
        draft.change(
            "what no rule admits stays out",
            &["ufw-default-incoming"],
            ufw_action(UfwOp::Default {
                direction: "incoming".into(),
                policy: want.into(),
            }),
        );
    }
    if ufw.default_outgoing != "allow" {
        draft.change(
            "the policy leaves outgoing connections alone",
            &[],
            ufw_action(UfwOp::Default {
                direction: "outgoing".into(),
                policy: "allow".into(),
            }),
        );
    }
}

const IPV6_FIX: &str = "sed -i s/^IPV6=.*/IPV6=yes/ /etc/default/ufw && ufw reload";

fn notes(host: &Host, ufw: &Ufw, draft: &mut Draft) {
    if !ufw.ipv6 {
        draft.note(
            "UFW is set to drop all IPv6 (IPV6=no): closed while it is active, and open the moment it is disabled",
            Some(IPV6_FIX.to_owned()),
        );
    }
    if ufw.manage_builtins {
        draft.note(
            "MANAGE_BUILTINS=yes: each reload of UFW flushes the rules of Docker and everybody else, so containers lose their ports",
            Some("sed -i s/^MANAGE_BUILTINS=.*/MANAGE_BUILTINS=no/ /etc/default/ufw".to_owned()),
        );
    }
    if ufw.loaded == Some(true)
        && [false, true]
            .iter()
            .any(|v6| chains_without_jump(host, "FORWARD", "forward", *v6))
    {
        draft.note(
            "UFW's forward chains are not reached any more (somebody flushed FORWARD); the guard does not depend on them",
            None,
        );
    }
    folk_fix(host, ufw, draft);
}

/// The INPUT rule that the Internet recommends against Docker's published ports: it never sees them,
/// and each reload adds another copy.
fn folk_fix(host: &Host, ufw: &Ufw, draft: &mut Draft) {
    for (a, b) in &ufw.foreign_lines {
        let (file, line) = if a.starts_with('/') { (a, b) } else { (b, a) };
        let line = line.trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        let blocks = words.starts_with(&["-A", "INPUT"])
            && words.contains(&"--dport")
            && words.iter().any(|w| matches!(*w, "DROP" | "REJECT"));
        if !blocks {
            continue;
        }
        let copies = copies(
            host,
            &words,
            file.contains("after6") || file.contains("before6"),
        );
        let leaked = match copies {
            0 | 1 => String::new(),
            n => format!("; the kernel has {n} copies of it by now"),
        };
        let program = if file.contains('6') {
            "ip6tables"
        } else {
            "iptables"
        };
        draft.note(
            format!(
                "{} has `{}`: packets to a published port never pass INPUT, so it closes nothing, and every reload adds another copy{leaked}. Delete the line, and once for each copy:",
                clean(file),
                clean(line)
            ),
            Some(clean(&format!("{program} {}", line.replacen("-A", "-D", 1)))),
        );
    }
}

/// How many rules of INPUT drop or reject the port of this line.
fn copies(host: &Host, words: &[&str], ipv6: bool) -> usize {
    let port = words
        .iter()
        .position(|w| *w == "--dport")
        .and_then(|at| words.get(at + 1));
    let Some(port) = port else { return 0 };
    let needle = format!("--dport {port} ");
    let family = if ipv6 { Family::Ip6 } else { Family::Ip };
    [Backend::IptablesNft, Backend::IptablesLegacy]
        .into_iter()
        .filter_map(|backend| host.rules.table(family, "filter", backend))
        .filter_map(|table| table.chain("INPUT"))
        .flat_map(|chain| &chain.rules)
        .filter(|rule| {
            let text = format!("{} ", rule.text);
            text.contains(&needle) && (text.contains("-j DROP") || text.contains("-j REJECT"))
        })
        .count()
}

/// By its words, because the plan's own changes move the numbers.
fn delete_command(rule: &UfwRule) -> String {
    let net = |n: Option<IpNet>| {
        n.filter(|n| n.prefix_len() > 0)
            .map_or("any".to_owned(), net_text)
    };
    let simple = rule.interface_in.is_none()
        && rule.interface_out.is_none()
        && rule.from.is_none()
        && rule.to.is_none()
        && any(&rule.from_port)
        && !rule.route;
    if simple && !(any(&rule.port) && rule.application.is_none()) {
        return format!("ufw delete {}", shown(rule));
    }
    let mut out = String::from("ufw ");
    if rule.route {
        out.push_str("route ");
    }
    out.push_str(&format!("delete {}", rule.action));
    if let Some(interface) = &rule.interface_in {
        out.push_str(&format!(" in on {interface}"));
    }
    if let Some(interface) = &rule.interface_out {
        out.push_str(&format!(" out on {interface}"));
    }
    out.push_str(&format!(" from {}", net(rule.from)));
    if !any(&rule.from_port) {
        out.push_str(&format!(" port {}", rule.from_port));
    }
    out.push_str(&format!(" to {}", net(rule.to)));
    match &rule.application {
        Some(application) => out.push_str(&format!(" app {application}")),
        None if any(&rule.port) => {}
        None => out.push_str(&format!(" port {}", rule.port)),
    }
    if rule.application.is_none() && !matches!(rule.proto.as_str(), "any" | "") {
        out.push_str(&format!(" proto {}", rule.proto));
    }
    clean(&out)
}

/// A rule of the user in short, made safe to print.
fn shown(rule: &UfwRule) -> String {
    let mut out = String::new();
    if rule.route {
        out.push_str("route ");
    }
    out.push_str(&rule.action);
    if let Some(interface) = &rule.interface_in {
        out.push_str(&format!(" in on {interface}"));
    }
    if let Some(interface) = &rule.interface_out {
        out.push_str(&format!(" out on {interface}"));
    }
    if let Some(from) = rule.from.filter(|n| n.prefix_len() > 0) {
        out.push_str(&format!(" from {from}"));
    }
    if let Some(to) = rule.to.filter(|n| n.prefix_len() > 0) {
        out.push_str(&format!(" to {to}"));
    }
    match &rule.application {
        Some(application) => out.push_str(&format!(" {application}")),
        None if any(&rule.port) => {}
        None => out.push_str(&format!(" {}", rule.port)),
    }
    if rule.application.is_none() && !matches!(rule.proto.as_str(), "any" | "") {
        out.push_str(&format!("/{}", rule.proto));
    }
    clean(&out)
}

/// The words after `ufw` (and after `delete`) for a rule, as the plan shows them and as a user would type them.
pub(super) fn words(rule: &UfwAdd) -> String {
    let mut out = String::new();
    if rule.prepend {
        out.push_str("prepend ");
    }
    out.push_str(&rule.action);
    if rule.from.is_none() && rule.interface.is_none() {
        out.push_str(&format!(" {}/{}", rule.port, rule.proto));
    } else {
        if let Some(interface) = &rule.interface {
            out.push_str(&format!(" in on {}", clean(interface)));
        }
        let from = rule.from.map_or("any".to_owned(), net_text);
        out.push_str(&format!(
            " from {from} to any port {} proto {}",
            rule.port, rule.proto
        ));
    }
    out
}

fn net_text(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

fn ufw_action(op: UfwOp) -> Action {
    Action::Ufw { op }
}

/// True when the ports of a rule, as UFW writes them, include this one.
pub(super) fn mentions(text: &str, port: u16) -> bool {
    ports(text).is_some_and(|p| p.iter().any(|(a, b)| (*a..=*b).contains(&port)))
}
