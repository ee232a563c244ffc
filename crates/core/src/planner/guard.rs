//! The guard: `table inet portcullis`, through which published ports obey the policy.
//!
//! How it works, and why so:
//! - A published port never meets INPUT: DNAT sends it to FORWARD. So the guard's `forward` chain,
//!   one step before everybody else's (`filter - 1`), asks conntrack for the port that the client
//!   wrote (`ct original proto-dst`), which is the host port, whatever the container's is.
//! - It is a table of its own. `ufw reload`, `iptables -F`, restarts of the engine and new networks
//!   do not touch it; a drop in any table is final, so nobody after it can let the packet in again.
//! - It looks at the packets that go with the connection's original direction, established ones too:
//!   a connection that a new policy forbids is cut. Answers pass.
//! - What goes to a container's own address without DNAT is dropped, whatever bridge it is: the kind of
//!   the link decides, so networks made later are covered from their first packet.
//! - Published ports are host ports for containers too: who asks for one from a container is of the zone
//!   `containers`. A bridge made later that carries a LAN has the kind of a container network, so its
//!   neighbours get no more than the policy gives containers; and its name tells it from the networks
//!   that engines name (`docker0`, `podman0`, `br-…`), to which it has no way. What is left until the next
//!   apply: such a bridge that is itself called `br-…`, and containers on networks with names of their own.
//!   The audit tells of such a bridge ([`unknown_bridges`]).
//! - Bans live in sets that a reload keeps (see [`bans`]), looked at before conntrack and DNAT, so that
//!   they hold for host ports, published ports and open connections alike; nothing more goes out to
//!   those who are banned either.
//!
//! Matches used (the engine `reach` must know these): `iifname`, `oifname` (also `NAME*`),
//! `meta iifkind`, `meta oifkind`, `meta l4proto`, `ip saddr`, `ip6 saddr`, `ip daddr`, `ip6 daddr`,
//! named sets of addresses, `ct direction`, `ct status dnat`, `ct state related`,
//! `ct original proto-dst`, and jumps.

use super::Refusal;
use super::bans;
use super::grants::{Grant, Way, grants, safe_interface};
use crate::host::Host;
use crate::policy::{Bans, Policy};
use crate::zones::is_default;
use ipnet::IpNet;
use reach::ir::{Chain, ChainKind, Family, NfHook, Rule, RuleVerdict, Statement};
use reach::{Backend, Interface, Proto};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Name of the table, in family `inet`.
pub const TABLE: &str = "portcullis";

/// Before conntrack (-200) and DNAT (-100), after defragmentation (-400): `raw - 10`.
const PREROUTING_PRIORITY: i32 = -310;
/// Before everybody's filter chains: `filter - 1`.
const FORWARD_PRIORITY: i32 = -1;

/// Before source NAT (100).
const DEPARTING_PRIORITY: i32 = 0;

/// Links of cluster networks. Their packets go to services by DNAT too, which is the cluster's matter.
const POD_LINKS: [&str; 6] = [
    "cali*",
    "cbr0",
    "cilium*",
    "cni0",
    "flannel*",
    "kube-bridge",
];
/// What Docker and Podman call their networks, which come and go, and the rules must not change with them. The
/// last of the names is also that of other people's bridges.
const ENGINE_BRIDGES: [&str; 3] = ["docker0", "podman*", "br-*"];
/// Bridges of virtual machines and system containers, which are hosts of their own.
const MACHINE_BRIDGES: [&str; 4] = ["virbr", "lxdbr", "incusbr", "lxcbr"];

/// The nft script that loads the guard for this policy: one transaction, to be run with one `nft -f`.
/// Bans survive it.
///
/// # Errors
/// A zone of the policy that this host does not have, an unusable interface name, or too wide a range.
pub fn ruleset(host: &Host, policy: &Policy) -> Result<String, Refusal> {
    Ok(script(&chains(host, &grants(host, policy)?, &policy.bans)))
}

/// True when the kernel has exactly this guard, rule for rule as far as can be compared.
///
/// # Errors
/// As [`ruleset`].
pub fn is_loaded(host: &Host, policy: &Policy) -> Result<bool, Refusal> {
    Ok(loaded(
        host,
        &chains(host, &grants(host, policy)?, &policy.bans),
    ))
}

pub(super) fn script(chains: &[Desired]) -> String {
    let stamp = stamp(chains);
    let mut out = format!(
        "# Written by portcullis: `portcullis apply` replaces it, `portcullis plan` shows what would change.\n\
         # One transaction: the rules are replaced, the banned addresses stay.\n\
         add table inet {TABLE}\n\
         flush table inet {TABLE}\n\
         table inet {TABLE} {{\n"
    );
    for set in sets(chains) {
        let kind = if set.ends_with('6') {
            "ipv6_addr"
        } else {
            "ipv4_addr"
        };
        let _ = writeln!(
            out,
            "\tset {set} {{\n\t\ttype {kind}\n\t\tflags timeout\n\t}}"
        );
    }
    for chain in chains {
        let _ = writeln!(out, "\tchain {} {{", chain.name);
        if let Some((hook, priority)) = chain.base {
            let hook = hook_word(hook);
            let _ = writeln!(
                out,
                "\t\ttype filter hook {hook} priority {priority}; policy accept;"
            );
        }
        for (n, rule) in chain.rules.iter().enumerate() {
            let comment = if n == 0 && chain.base.is_some_and(|(h, _)| h == NfHook::Prerouting) {
                format!(" comment \"{stamp}\"")
            } else {
                String::new()
            };
            let _ = writeln!(out, "\t\t{rule}{comment}");
        }
        out.push_str("\t}\n");
    }
    out.push_str("}\n");
    out
}

/// A chain as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Desired {
    name: &'static str,
    base: Option<(NfHook, i32)>,
    rules: Vec<String>,
}

/// The sets that the rules look at, sorted.
fn sets(chains: &[Desired]) -> BTreeSet<&str> {
    chains
        .iter()
        .flat_map(|chain| &chain.rules)
        .flat_map(|rule| rule.split(' '))
        .filter_map(|word| word.strip_prefix('@'))
        .collect()
}

pub(super) fn chains(host: &Host, grants: &[Grant], policy: &Bans) -> Vec<Desired> {
    let own = own_bridges(host);
    let mut forward = vec![
        "ct direction reply accept".to_owned(),
        // ICMP errors about a connection that was let in: path MTU discovery needs them.
        "meta l4proto { icmp, ipv6-icmp } ct state related accept".to_owned(),
    ];
    forward.extend(
        POD_LINKS
            .iter()
            .map(|link| format!("iifname \"{link}\" accept")),
    );
    forward.push("ct status dnat jump published".to_owned());
    for name in &own {
        forward.push(format!("iifname \"{name}\" jump incoming"));
        forward.push(format!("iifname \"{name}\" accept"));
    }
    // From a container: the way out, and to other containers, is the engine's matter. A bridge with another name
    // may carry a LAN, also one made later: it gets no way to containers.
    for name in ENGINE_BRIDGES {
        if !own.iter().any(|own| own == name) {
            forward.push(format!("meta iifkind \"bridge\" iifname \"{name}\" accept"));
        }
        forward.push(format!("meta iifkind \"bridge\" oifname \"{name}\" drop"));
    }
    forward.push("meta iifkind \"bridge\" accept".to_owned());
    forward.push("jump incoming".to_owned());

    let mut incoming: Vec<String> = Vec::new();
    incoming.extend(own.iter().map(|name| format!("oifname \"{name}\" return")));
    // Bridges of virtual machines made later.
    incoming.extend(
        MACHINE_BRIDGES
            .iter()
            .map(|prefix| format!("oifname \"{prefix}*\" return")),
    );
    incoming.push("meta oifkind \"bridge\" drop".to_owned());

    let mut published = admissions(grants);
    published.push("drop".to_owned());

    vec![
        Desired {
            name: "prerouting",
            base: Some((NfHook::Prerouting, PREROUTING_PRIORITY)),
            rules: ["iifname \"lo\" accept".to_owned()]
                .into_iter()
                .chain(bans::arriving(policy))
                .chain([
                    "ip daddr 127.0.0.0/8 drop".to_owned(),
                    "ip6 daddr ::1 drop".to_owned(),
                ])
                .collect(),
        },
        Desired {
            name: "departing",
            base: Some((NfHook::Postrouting, DEPARTING_PRIORITY)),
            // A reset is how a connection of theirs is ended at once.
            rules: ["oifname \"lo\" accept", "tcp flags rst accept"]
                .map(str::to_owned)
                .into_iter()
                .chain(bans::departing(policy))
                .collect(),
        },
        // Jumped to, so it must be known before the chain that jumps.
        Desired {
            name: "published",
            base: None,
            rules: published,
        },
        Desired {
            name: "incoming",
            base: None,
            rules: incoming,
        },
        Desired {
            name: "forward",
            base: Some((NfHook::Forward, FORWARD_PRIORITY)),
            rules: forward,
        },
    ]
}

/// One rule for each set of sources of each port.
fn admissions(grants: &[Grant]) -> Vec<String> {
    let mut ports: BTreeMap<(Proto, u16), Vec<&Way>> = BTreeMap::new();
    for grant in grants {
        ports
            .entry((grant.proto, grant.port))
            .or_default()
            .push(&grant.way);
    }
    let mut out = Vec::new();
    for ((proto, port), ways) in ports {
        let port = format!("meta l4proto {proto} ct original proto-dst {port} accept");
        if ways.iter().any(|w| w.anywhere()) {
            out.push(port);
            continue;
        }
        let mut groups: BTreeMap<(Option<&str>, Option<bool>), BTreeSet<IpNet>> = BTreeMap::new();
        for way in ways {
            let family = way.net.map(|n| n.addr().is_ipv6());
            let nets = groups
                .entry((way.interface.as_deref(), family))
                .or_default();
            nets.extend(way.net);
        }
        for ((interface, family), nets) in groups {
            let mut rule = String::new();
            if let Some(interface) = interface {
                // Grants spell patterns as iptables does.
                let _ = write!(rule, "iifname \"{}\" ", interface.replace('+', "*"));
            }
            if let Some(ipv6) = family {
                let family = if ipv6 { "ip6" } else { "ip" };
                // Merged, because the kernel refuses sets whose intervals overlap.
                let nets = IpNet::aggregate(&nets.into_iter().collect());
                let nets: Vec<String> = nets.iter().map(address_or_net).collect();
                let _ = write!(rule, "{family} saddr {{ {} }} ", nets.join(", "));
            }
            rule.push_str(&port);
            out.push(rule);
        }
    }
    out
}

fn address_or_net(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// Bridges that are no container network: they carry the host's own uplink, or virtual machines.
/// Packets that arrive by them come from outside, and packets into them are not for containers.
pub(super) fn own_bridges(host: &Host) -> Vec<String> {
    let mut out: Vec<String> = host
        .net
        .interfaces
        .iter()
        .filter(|i| i.kind.as_deref() == Some("bridge") && safe_interface(&i.name))
        .filter(|i| {
            let machines = MACHINE_BRIDGES.iter().any(|p| i.name.starts_with(p));
            machines || carries_uplink(host, i)
        })
        .map(|i| i.name.clone())
        .collect();
    out.sort();
    out.dedup();
    out
}

/// Own bridges that the guard in the kernel does not know, because they came after it: what arrives by them counts
/// as from a container there. Empty where no guard is loaded.
pub(crate) fn unknown_bridges(host: &Host) -> Vec<String> {
    let table = host.rules.table(Family::Inet, TABLE, Backend::Nft);
    let Some(forward) = table.and_then(|table| table.chain("forward")) else {
        return Vec::new();
    };
    let known = |name: &String| {
        let text = format!("iifname \"{name}\" ");
        forward.rules.iter().any(|rule| rule.text.contains(&text))
    };
    let mut own = own_bridges(host);
    own.retain(|name| !known(name));
    own
}

/// A router is behind it, or one of its ports is more than the end of a virtual cable. Inside a
/// container the uplink itself is such a cable, so that only the routes tell; default routes come in
/// halves too, and without a gateway.
fn carries_uplink(host: &Host, bridge: &Interface) -> bool {
    let routed = host.net.routes.iter().any(|r| {
        r.nexthops
            .iter()
            .any(|hop| hop.oif == bridge.index && (hop.gateway.is_some() || is_default(&r.dst)))
    });
    let port = host.net.interfaces.iter().any(|i| {
        i.master == Some(bridge.index)
            && !matches!(i.kind.as_deref(), Some("veth" | "tun" | "vxlan"))
    });
    routed || port
}

/// Names the rules: another policy, another stamp.
fn stamp(chains: &[Desired]) -> String {
    let mut hash = Sha256::new();
    for chain in chains {
        hash.update(chain.name);
        for rule in &chain.rules {
            hash.update("\n");
            hash.update(rule);
        }
        hash.update("\n\n");
    }
    let hex: String = hash
        .finalize()
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("portcullis {hex}")
}

/// True when the kernel has exactly this guard: the stamp, every chain where it belongs, and in each
/// as many rules with the same ends as there should be.
pub(super) fn loaded(host: &Host, chains: &[Desired]) -> bool {
    let Some(table) = host.rules.table(Family::Inet, TABLE, Backend::Nft) else {
        return false;
    };
    let stamp = stamp(chains);
    let stamped = table
        .chain("prerouting")
        .and_then(|c| c.rules.first())
        .and_then(|r| r.comment.as_deref())
        == Some(stamp.as_str());
    !table.dormant
        && stamped
        && sets(chains).iter().all(|set| table.set(set).is_some())
        && chains
            .iter()
            .all(|want| table.chain(want.name).is_some_and(|have| same(want, have)))
}

fn same(want: &Desired, have: &Chain) -> bool {
    let base = match (&want.base, &have.base) {
        (None, None) => true,
        (Some((hook, priority)), Some(base)) => {
            base.kind == ChainKind::Filter && base.hook == *hook && base.priority == *priority
        }
        _ => false,
    };
    base && want.rules.len() == have.rules.len()
        && want
            .rules
            .iter()
            .zip(&have.rules)
            .all(|(w, h)| same_end(w, h))
}

/// The verdict at the end of a rule is the same word.
fn same_end(want: &str, have: &Rule) -> bool {
    let verdict = have.statements.iter().find_map(|s| match s {
        Statement::Verdict(verdict) => Some(verdict),
        _ => None,
    });
    match verdict {
        Some(RuleVerdict::Accept) => want.ends_with("accept"),
        Some(RuleVerdict::Drop) => want.ends_with("drop"),
        Some(RuleVerdict::Return) => want.ends_with("return"),
        Some(RuleVerdict::Jump { chain }) => want.ends_with(&format!("jump {chain}")),
        _ => false,
    }
}

fn hook_word(hook: NfHook) -> &'static str {
    match hook {
        NfHook::Forward => "forward",
        NfHook::Postrouting => "postrouting",
        _ => "prerouting",
    }
}

/// True when the kernel has the table with both sets of bans and the chain that looks at them.
pub(super) fn has_sets(host: &Host, chains: &[Desired]) -> bool {
    host.rules
        .table(Family::Inet, TABLE, Backend::Nft)
        .is_some_and(|table| {
            sets(chains).iter().all(|set| table.set(set).is_some())
                && chains.iter().filter(|c| c.base.is_some()).all(|c| {
                    table
                        .chain(c.name)
                        .is_some_and(|have| !have.rules.is_empty())
                })
        })
}
