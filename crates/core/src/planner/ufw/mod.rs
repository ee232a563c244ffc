//! UFW: the rules of host ports, through the `ufw` command.
//!
//! What UFW does with a rule decides how one is added (ufw 0.36, `backend_iptables.set_rule`):
//! adding a rule that is there with another action or comment replaces it in its place; prepending
//! one that is there is skipped without an error. Rules are tried in order and the first that matches
//! decides, so a wider rule before ours takes its effect away.

mod notes;
mod rule;
mod words;

pub(super) use rule::mentions;
pub(super) use words::words;

use super::grants::{Grant, service_ports};
use super::{Draft, Options, Refusal};
use crate::host::{Host, Ufw};
use crate::plan::{Action, UfwAdd, UfwOp};
use crate::policy::{Policy, Reach};
use notes::{IPV6_FIX, notes};
use reach::Backend;
use reach::ir::{Family, RuleVerdict, Statement};
use rule::{
    MARK, Need, Overlap, action, admitted_already, deletion, is_ours, need, overlap, ports, unasked,
};
use std::net::IpAddr;
use words::{delete_command, shown};

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
            return Err(Refusal::JumpsGone {
                chain: if ipv6 {
                    "INPUT (IPv6)".into()
                } else {
                    "INPUT".into()
                },
                commands: jumps("INPUT", "input", ipv6),
            });
        }
    }
    Ok(())
}

/// The commands that lead a built-in chain to UFW's chains of its direction again, in the order of
/// ufw-init-functions.
pub(crate) fn jumps(builtin: &str, direction: &str, ipv6: bool) -> Vec<String> {
    let (program, infix) = if ipv6 {
        ("ip6tables", "6")
    } else {
        ("iptables", "")
    };
    [
        "before-logging",
        "before",
        "after",
        "after-logging",
        "reject",
        "track",
    ]
    .iter()
    .map(|name| format!("{program} -A {builtin} -j ufw{infix}-{name}-{direction}"))
    .collect()
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
fn ufw_action(op: UfwOp) -> Action {
    Action::Ufw { op }
}
