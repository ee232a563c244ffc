//! How a rule that UFW has stands to a grant: the same, wider, in its way, ours, unasked.

use crate::host::{Ufw, UfwRule};
use crate::plan::UfwAdd;
use crate::planner::Options;
use crate::planner::grants::{Grant, safe_interface, safe_pattern};
use ipnet::IpNet;

/// Starts the comment of every rule that portcullis writes: this is how it knows them again.
pub(super) const MARK: &str = "portcullis";

/// How a rule of UFW stands to a grant, for one IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overlap {
    /// Other packets.
    None,
    /// Some of its packets.
    Part,
    /// All of its packets, and more or otherwise written.
    Whole,
    /// The same rule but for action and comment.
    Same,
}

pub(super) fn overlap(rule: &UfwRule, grant: &Grant, ipv6: bool) -> Overlap {
    if rule.route || rule.direction != "in" || rule.ipv6 != ipv6 {
        return Overlap::None;
    }
    let any_proto = any(&rule.proto);
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
    let rule_from = narrow(rule.from);
    let grant_net = narrow(grant.way.net);
    let mut whole = narrow(rule.to).is_none() && any(&rule.from_port);
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

/// UFW's word for every port or protocol, or nothing said.
pub(super) fn any(word: &str) -> bool {
    matches!(word, "any" | "")
}

/// The network, unless it is everybody (`0.0.0.0/0`, `::/0`).
pub(super) fn narrow(net: Option<IpNet>) -> Option<IpNet> {
    net.filter(|net| net.prefix_len() > 0)
}

/// `22`, `6000:6007`, `80,443`, `any` as inclusive ranges; `None` when it is something else.
pub(super) fn ports(text: &str) -> Option<Vec<(u16, u16)>> {
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

pub(super) fn action(grant: &Grant) -> &'static str {
    if grant.rate_limit { "limit" } else { "allow" }
}

/// What one IP version needs so that a grant holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Need<'a> {
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

pub(super) fn need<'a>(ufw: &'a Ufw, grant: &Grant, ipv6: bool) -> Need<'a> {
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
pub(super) fn admitted_already(ufw: &Ufw, grant: &Grant) -> bool {
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

pub(super) fn closes(rule: &UfwRule) -> bool {
    matches!(rule.action.as_str(), "deny" | "reject")
}

/// It admits something that no grant asks for in these words.
pub(super) fn unasked(rule: &UfwRule, grants: &[Grant]) -> bool {
    let asked = |g: &Grant| {
        matches!(overlap(rule, g, rule.ipv6), Overlap::Same | Overlap::Whole) && within(rule, g)
    };
    rule.direction == "in" && !closes(rule) && !grants.iter().any(asked)
}

/// How it is deleted, if this plan deletes it.
pub(super) fn deletion(rule: &UfwRule, grants: &[Grant], options: &Options) -> Option<UfwAdd> {
    (unasked(rule, grants) && (options.prune || is_ours(rule)))
        .then(|| expressible(rule))
        .flatten()
}

/// The rule admits nothing beyond the grant's port and sources: one that is wider stays worth a note.
fn within(rule: &UfwRule, grant: &Grant) -> bool {
    let port = ports(&rule.port).is_some_and(|p| p == [(grant.port, grant.port)]);
    let from = narrow(rule.from);
    let net = narrow(grant.way.net);
    port && from == net && rule.interface_in == grant.way.interface
}

pub(super) fn is_ours(rule: &UfwRule) -> bool {
    rule.comment
        .as_deref()
        .is_some_and(|c| c == MARK || c.starts_with("portcullis: "))
}

/// The rule in the words of [`UfwAdd`], when these can say it.
fn expressible(rule: &UfwRule) -> Option<UfwAdd> {
    let plain_rule = !rule.route
        && narrow(rule.to).is_none()
        && any(&rule.from_port)
        && rule.interface_out.is_none()
        && rule.application.is_none()
        && matches!(rule.proto.as_str(), "tcp" | "udp")
        && rule.interface_in.as_deref().is_none_or(safe_pattern);
    if !plain_rule {
        return None;
    }
    Some(UfwAdd {
        action: rule.action.clone(),
        prepend: false,
        proto: rule.proto.clone(),
        port: rule.port.parse().ok()?,
        from: narrow(rule.from),
        interface: rule.interface_in.clone(),
        comment: String::new(),
    })
}

/// True when the ports of a rule, as UFW writes them, include this one.
pub(in crate::planner) fn mentions(text: &str, port: u16) -> bool {
    ports(text).is_some_and(|p| p.iter().any(|(a, b)| (*a..=*b).contains(&port)))
}
