//! The guard table: there, and as portcullis wrote it.

use super::{APPLY, Case, Complete, finding};
use crate::finding::{Finding, Severity};
use crate::planner::{GUARD_FILE, GUARD_UNIT, guard};
use crate::text::{clean, list};
use reach::ir::Family;

pub(super) fn findings(case: &Case<'_>, out: &mut Vec<Finding>) {
    // Where portcullis never applied anything there is no guard to miss.
    let applied = matches!(case.host.files.get(GUARD_FILE), Some(Some(_)));
    if !applied || case.blind {
        return;
    }
    let tables = &case.host.rules.tables;
    let Some(table) = tables
        .iter()
        .find(|t| t.family == Family::Inet && t.name == guard::TABLE)
    else {
        out.push(
            finding(
                "guard-missing",
                Severity::High,
                "The guard table is gone from the kernel: published ports and bans are as Docker and UFW leave them.",
            )
            .shows(format!("{GUARD_FILE} is there, table inet {} is not", guard::TABLE))
            .mend(APPLY)
            .rows(&["G11", "NIST-SC-7"]),
        );
        return;
    };
    let script = guard::ruleset(case.host, case.policy).ok();
    let stamp = script.as_deref().and_then(stamp);
    let has_stamp = stamp.is_some_and(|stamp| {
        table
            .chains
            .iter()
            .flat_map(|c| &c.rules)
            .any(|r| r.comment.as_deref() == Some(stamp))
    });
    let bridges = guard::unknown_bridges(case.host);
    if !bridges.is_empty() {
        let names: Vec<String> = bridges.iter().map(|name| clean(name)).collect();
        out.push(
            finding(
                "guard-before-bridge",
                Severity::Medium,
                format!(
                    "The guard is older than {}: what arrives there counts as from a container, and reaches what the policy gives containers.",
                    list(&names)
                ),
            )
            .shows("a bridge that carries the uplink, a network card or virtual machines, and that no rule of the guard names")
            .mend(APPLY)
            .rows(&["G11", "NIST-SC-7"]),
        );
    }
    if table.dormant || (stamp.is_some() && !has_stamp) {
        out.push(
            finding(
                "guard-altered",
                Severity::High,
                "The guard table is not the one that this policy makes: somebody changed it, or the policy changed since.",
            )
            .shows(if table.dormant {
                "the table is dormant: none of its rules apply".to_owned()
            } else {
                format!("no rule of table inet {} carries this policy's stamp", guard::TABLE)
            })
            .mend(APPLY)
            .rows(&["G11", "NIST-SC-7", "NIST-CM-7"]),
        );
    }
    let unit = case.host.units.get(GUARD_UNIT);
    if case.host.systemd && unit.is_some_and(|u| u.enabled != "enabled") {
        out.push(
            finding(
                "guard-not-at-boot",
                Severity::Medium,
                "The guard holds now and is not loaded at the next boot.",
            )
            .shows(format!("{GUARD_UNIT} is not enabled"))
            .mend(APPLY)
            .rows(&["G11"]),
        );
    }
}

/// The comment in which a guard script says which policy made it.
fn stamp(script: &str) -> Option<&str> {
    let (_, rest) = script.split_once("comment \"portcullis ")?;
    let end = rest.find('"')?;
    let start = script.len() - rest.len() - "portcullis ".len();
    script.get(start..start + "portcullis ".len() + end)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_stamp_is_read_from_a_script() {
        let script = "table inet x {\n\tip saddr @b drop comment \"portcullis 00ff\"\n}\n";
        assert_eq!(super::stamp(script), Some("portcullis 00ff"));
        assert_eq!(super::stamp("table inet x {}"), None);
    }
}
