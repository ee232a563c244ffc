//! The operator's way in: those who are connected over SSH can open a new connection, before the
//! plan is made and after it.

use ipnet::IpNet;
use portcullis_core::host::{Host, Session, UfwRule};
use portcullis_core::plan::{Action, Plan, UfwAdd, UfwOp};
use reach::{AddrSet, Proto, Query, RouteKind, World};
use std::net::IpAddr;

/// A session whose client would not get in any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedOut {
    /// Who.
    pub session: Session,
    /// Why not, in one sentence.
    pub why: String,
}

impl std::fmt::Display for LockedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} could not open a new SSH connection to port {}: {}",
            self.session.peer, self.session.local_port, self.why
        )
    }
}

/// IPv4 clients of a dual-stack socket look like `::ffff:192.0.2.1`.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Those whom the plan would lock out, judged from the plan's own words and the facts it was made
/// from. Each client counts once.
pub fn before(plan: &Plan, host: &Host) -> Vec<LockedOut> {
    let mut locked: Vec<LockedOut> = vec![];
    for session in &host.sessions {
        let known = locked.iter().any(|other| {
            other.session.peer == session.peer && other.session.local_port == session.local_port
        });
        if known {
            continue;
        }
        if let Err(why) = planned(plan, host, session) {
            locked.push(LockedOut {
                session: session.clone(),
                why,
            });
        }
    }
    locked
}

fn planned(plan: &Plan, host: &Host, session: &Session) -> Result<(), String> {
    let peer = plain(session.peer);
    if peer.is_loopback() {
        return Ok(());
    }
    let ops: Vec<&UfwOp> = plan
        .changes
        .iter()
        .filter_map(|change| match &change.action {
            Action::Ufw { op } => Some(op),
            _ => None,
        })
        .collect();
    let on = ops.iter().any(|op| matches!(op, UfwOp::Enable {}))
        || host.ufw.as_ref().is_some_and(|ufw| ufw.enabled);
    if !on || ops.is_empty() {
        // Nothing of what UFW does changes; the engine's answer afterwards counts.
        return Ok(());
    }
    let incoming = ops
        .iter()
        .rev()
        .find_map(|op| match op {
            UfwOp::Default { direction, policy } if direction == "incoming" => {
                Some(policy.as_str())
            }
            _ => None,
        })
        .or(host.ufw.as_ref().map(|ufw| ufw.default_incoming.as_str()))
        .unwrap_or("deny");
    match first_match(&ops, host, session, peer) {
        Some(action) if action == "allow" || action == "limit" => Ok(()),
        Some(action) => Err(format!("a UFW rule would {action} it")),
        None if incoming == "allow" => Ok(()),
        None => Err(format!(
            "UFW would {incoming} incoming connections, and no rule would let it in"
        )),
    }
}

/// The action of the first UFW rule that would apply once the plan is made.
fn first_match(ops: &[&UfwOp], host: &Host, session: &Session, peer: IpAddr) -> Option<String> {
    let mut rules: Vec<(String, bool)> = host
        .ufw
        .iter()
        .flat_map(|ufw| &ufw.rules)
        .filter(|rule| !rule.route && rule.direction != "out" && rule.ipv6 == peer.is_ipv6())
        .filter(|rule| !ops.iter().any(|op| deletes(op, rule)))
        .map(|rule| {
            (
                rule.action.clone(),
                existing_applies(rule, host, session, peer),
            )
        })
        .collect();
    for op in ops {
        let UfwOp::Add { rule } = op else { continue };
        let entry = (
            rule.action.clone(),
            added_applies(rule, host, session, peer),
        );
        if rule.prepend {
            rules.insert(0, entry);
        } else {
            rules.push(entry);
        }
    }
    rules
        .into_iter()
        .find(|(_, applies)| *applies)
        .map(|(action, _)| action)
}

fn deletes(op: &UfwOp, rule: &UfwRule) -> bool {
    let UfwOp::Delete { rule: deleted } = op else {
        return false;
    };
    rule.action == deleted.action
        && rule.proto == deleted.proto
        && rule.port == deleted.port.to_string()
        && rule.from == deleted.from
        && rule.interface_in == deleted.interface
}

fn interface_fits(wanted: Option<&str>, host: &Host, session: &Session) -> bool {
    match wanted {
        None => true,
        // Unknown where it comes in: the rule is not counted on.
        Some(wanted) => ingress(host, plain(session.peer)).as_deref() == Some(wanted),
    }
}

fn added_applies(rule: &UfwAdd, host: &Host, session: &Session, peer: IpAddr) -> bool {
    rule.proto == "tcp"
        && rule.port == session.local_port
        && rule.from.is_none_or(|net| net.contains(&peer))
        && interface_fits(rule.interface.as_deref(), host, session)
}

fn existing_applies(rule: &UfwRule, host: &Host, session: &Session, peer: IpAddr) -> bool {
    let port = session.local_port;
    let ports = rule.port == "any"
        || rule.port.split(',').any(|part| match part.split_once(':') {
            Some((first, last)) => {
                matches!((first.parse(), last.parse()), (Ok::<u16, _>(first), Ok::<u16, _>(last)) if (first..=last).contains(&port))
            }
            None => part.parse() == Ok(port),
        });
    ports
        && matches!(rule.proto.as_str(), "any" | "tcp")
        && rule.from_port == "any"
        && rule.from.is_none_or(|net| net.contains(&peer))
        && rule
            .to
            .is_none_or(|net: IpNet| net.contains(&plain(session.local)))
        && interface_fits(rule.interface_in.as_deref(), host, session)
}

/// The interface that answers to `peer` leave by, which is where its packets come in on a host with
/// one way to each network.
fn ingress(host: &Host, peer: IpAddr) -> Option<String> {
    let route = host
        .net
        .routes
        .iter()
        .filter(|route| {
            matches!(route.kind, RouteKind::Unicast | RouteKind::Local) && route.dst.contains(&peer)
        })
        .max_by_key(|route| (route.dst.prefix_len(), u32::MAX - route.metric))?;
    if route.kind == RouteKind::Local {
        return Some("lo".into());
    }
    let index = route.nexthops.first()?.oif;
    host.net
        .interfaces
        .iter()
        .find(|interface| interface.index == index)
        .map(|interface| interface.name.clone())
}

/// Those whom the rules as they are now surely lock out, as the engine sees it. What it cannot
/// decide (a rate limit, an unknown match) is not counted as locked out.
pub fn now(host: &Host, sessions: &[Session]) -> Vec<LockedOut> {
    let world = World {
        rules: &host.rules,
        net: &host.net,
    };
    let mut locked: Vec<LockedOut> = vec![];
    for session in sessions {
        let peer = plain(session.peer);
        let known = locked.iter().any(|other| {
            other.session.peer == session.peer && other.session.local_port == session.local_port
        });
        let Some(ingress) = ingress(host, peer) else {
            continue;
        };
        if known || peer.is_loopback() {
            continue;
        }
        let answer = reach::reach(
            world,
            &Query {
                ingress,
                dst: plain(session.local),
                proto: Proto::Tcp,
                dport: session.local_port,
                sport: None,
                sources: AddrSet::from_range(peer, peer),
            },
        );
        if answer.blocked.contains(peer) {
            let rule = answer
                .pieces
                .iter()
                .find(|piece| piece.sources.contains(peer))
                .map_or_else(String::new, |piece| piece.witness.rule.clone());
            locked.push(LockedOut {
                session: session.clone(),
                why: format!("the rules drop it ({rule})"),
            });
        }
    }
    locked
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_core::host::Ufw;
    use portcullis_core::plan::{Change, PLAN_SCHEMA};

    fn session(peer: &str, port: u16) -> Session {
        Session {
            peer: peer.parse().unwrap(),
            peer_port: 50000,
            local: "192.0.2.1".parse().unwrap(),
            local_port: port,
            pid: None,
            own: true,
        }
    }

    fn add(action: &str, port: u16, from: Option<&str>, prepend: bool) -> UfwOp {
        UfwOp::Add {
            rule: UfwAdd {
                action: action.into(),
                prepend,
                proto: "tcp".into(),
                port,
                from: from.map(|net| net.parse().unwrap()),
                interface: None,
                comment: String::new(),
            },
        }
    }

    /// Whether `peer`, connected at `port`, keeps its way in through a plan of these `ufw` commands
    /// on a host where UFW is off.
    fn check(peer: &str, port: u16, ops: Vec<UfwOp>, kept: bool) {
        let plan = Plan {
            schema: PLAN_SCHEMA,
            made_from: String::new(),
            notes: vec![],
            changes: ops
                .into_iter()
                .map(|op| Change {
                    why: String::new(),
                    mends: vec![],
                    action: Action::Ufw { op },
                })
                .collect(),
        };
        let host = Host {
            sessions: vec![session(peer, port)],
            ufw: Some(Ufw {
                default_incoming: "deny".into(),
                ..Ufw::default()
            }),
            ..Host::default()
        };
        assert_eq!(
            before(&plan, &host).is_empty(),
            kept,
            "{peer} {port} {plan:?}"
        );
    }

    #[test]
    fn enabling_ufw_needs_a_rule_for_whoever_is_connected() {
        let on = || UfwOp::Enable {};
        let peer = "203.0.113.9";
        check(peer, 22, vec![on()], false);
        check(peer, 22, vec![add("allow", 22, None, false), on()], true);
        check(peer, 22, vec![add("limit", 22, None, false), on()], true);
        check(peer, 2222, vec![add("allow", 22, None, false), on()], false);
        check(
            peer,
            22,
            vec![add("allow", 22, Some("203.0.113.0/24"), false), on()],
            true,
        );
        check(
            peer,
            22,
            vec![add("allow", 22, Some("10.0.0.0/8"), false), on()],
            false,
        );
        check(
            "::ffff:203.0.113.9",
            22,
            vec![add("allow", 22, Some("203.0.113.0/24"), false), on()],
            true,
        );
        check(
            "2001:db8::9",
            22,
            vec![add("allow", 22, Some("203.0.113.0/24"), false), on()],
            false,
        );
        check("127.0.0.1", 22, vec![on()], true);
        // Without enabling it nothing is shut.
        check(peer, 22, vec![add("allow", 443, None, false)], true);
        // The first rule that fits decides.
        let deny_first = vec![
            add("allow", 22, None, false),
            add("deny", 22, None, true),
            on(),
        ];
        check(peer, 22, deny_first, false);
        let open = UfwOp::Default {
            direction: "incoming".into(),
            policy: "allow".into(),
        };
        check(peer, 22, vec![open, on()], true);
    }

    #[test]
    fn rules_that_exist_count_unless_deleted() {
        let mut host = Host {
            sessions: vec![session("203.0.113.9", 2222)],
            ufw: Some(Ufw {
                enabled: true,
                default_incoming: "deny".into(),
                rules: vec![UfwRule {
                    action: "allow".into(),
                    proto: "tcp".into(),
                    port: "2000:3000,22".into(),
                    from_port: "any".into(),
                    direction: "in".into(),
                    ..UfwRule::default()
                }],
                ..Ufw::default()
            }),
            ..Host::default()
        };
        let plan = |op: UfwOp| Plan {
            schema: PLAN_SCHEMA,
            made_from: String::new(),
            notes: vec![],
            changes: vec![Change {
                why: String::new(),
                mends: vec![],
                action: Action::Ufw { op },
            }],
        };
        let more = plan(add("allow", 443, None, false));
        assert_eq!(before(&more, &host), vec![]);
        if let Some(ufw) = &mut host.ufw {
            ufw.rules[0].port = "2222".into();
        }
        assert_eq!(before(&more, &host), vec![]);
        let UfwOp::Add { rule } = add("allow", 2222, None, false) else {
            unreachable!()
        };
        let gone = plan(UfwOp::Delete { rule });
        assert_eq!(before(&gone, &host).len(), 1);
        assert!(
            before(&gone, &host)[0]
                .to_string()
                .starts_with("203.0.113.9 could not")
        );
    }
}
