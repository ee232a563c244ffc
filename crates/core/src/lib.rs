//! The pure middle of portcullis: facts, policy, catalog, findings, plans. No IO, no clock.
pub mod catalog;
pub mod compose;
pub mod expect;
pub mod expose;
pub mod finding;
pub mod host;
pub mod judge;
pub mod plan;
pub mod planner;
pub mod policy;
pub mod report;
pub mod text;
pub mod why;
pub mod zones;

use sha2::{Digest, Sha256};

/// Hash of the facts a plan depends on: everything but when, by which version and by whose
/// sessions they were taken, and what changes by itself from one moment to the next (counters of
/// rules, bans and their timers, process ids). Lowercase hex SHA-256.
pub fn facts_hash(host: &host::Host) -> String {
    let mut facts = host.clone();
    facts.taken.clear();
    facts.portcullis.clear();
    facts.sessions.clear();
    facts.neighbours.clear();
    facts.rules = facts.rules.bare();
    for set in facts.rules.tables.iter_mut().flat_map(|t| &mut t.sets) {
        if set.timeout || set.dynamic {
            set.elements.clear();
        }
    }
    // Link-local and multicast routes come and go with duplicate address detection, seconds after a
    // link is up; no plan depends on them.
    facts.net.routes.retain(|route| match route.dst {
        ipnet::IpNet::V4(net) => !net.addr().is_multicast(),
        ipnet::IpNet::V6(net) => !net.addr().is_unicast_link_local() && !net.addr().is_multicast(),
    });
    if let Some(fail2ban) = &mut facts.fail2ban {
        // Words, which are not there where a busy machine takes too long to give them.
        fail2ban.why_dead = None;
    }
    for jail in facts.fail2ban.iter_mut().flat_map(|f| &mut f.jails) {
        jail.banned.clear();
        jail.since.clear();
        jail.failed_total = None;
        jail.unmatched = None;
    }
    // Clients of every kind hold UDP sockets for moments; all that a plan has of them is whose flows are to end.
    facts
        .sockets
        .retain(|socket| socket.proto != reach::Proto::Udp);
    for container in facts.engines.iter_mut().flat_map(|e| &mut e.containers) {
        container.pid = None;
    }
    if let Some(sshd) = &mut facts.sshd {
        sshd.ports_by_source.remove("session");
    }
    for process in facts.sockets.iter_mut().filter_map(|s| s.process.as_mut()) {
        process.pid = 0;
    }
    // Serialising plain data to a string cannot fail; an empty string would still differ from
    // every real hash input and so refuse the plan.
    let text = serde_json::to_string(&facts).unwrap_or_default();
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
