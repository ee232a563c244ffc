//! UFW: what it claims, and what the kernel has.

use super::{APPLY, Case, Complete, EndpointVerdict, finding};
use crate::finding::{Finding, Severity};
use crate::host::Uncertain;
use crate::planner::ufw::jumps;
use crate::text::clean;
use reach::ir::{Family, RuleVerdict, Statement};

pub(super) fn findings(case: &Case<'_>, out: &mut Vec<Finding>) {
    let exposed = case
        .endpoints
        .iter()
        .any(|j| j.verdict == EndpointVerdict::Exposed);
    let bad = if exposed {
        Severity::High
    } else {
        Severity::Medium
    };
    let Some(ufw) = &case.host.ufw else {
        // An unreadable mechanism is no missing one.
        let unread = case
            .host
            .unseen
            .iter()
            .any(|u| u.uncertain == Uncertain::Mechanism && u.what.contains("ufw"));
        if !unread {
            out.push(
                finding(
                    "ufw-not-installed",
                    bad,
                    "UFW is not installed: nobody manages the host's ports.",
                )
                .mend(APPLY)
                .rows(&["G2", "G7", "CIS-4.2.1", "STIG-V-260515"]),
            );
        }
        return;
    };
    if !ufw.enabled {
        let (severity, title) = match ufw.loaded {
            Some(true) => (
                Severity::Low,
                "UFW's rules are loaded, but it is disabled: after the next boot they are gone.",
            ),
            _ => (
                bad,
                "UFW is installed and not active: its rules do nothing.",
            ),
        };
        out.push(
            finding("ufw-inactive", severity, title)
                .shows("/etc/ufw/ufw.conf: ENABLED=no")
                .mend(APPLY)
                .rows(&["G2", "G7", "G13", "CIS-4.2.3", "STIG-V-260515"]),
        );
    } else if ufw.loaded == Some(false) {
        let mut found = finding(
            "ufw-not-loaded",
            Severity::High,
            "UFW says it is active, but the kernel never enters its rules.",
        )
        .shows("/etc/ufw/ufw.conf: ENABLED=yes");
        let lost = unentered(case);
        for chain in lost.iter().take(4) {
            found = found.shows(chain.clone());
        }
        if lost.is_empty() {
            found = found.shows("no chain of UFW is in the kernel");
        }
        // Enabling UFW again does not bring the jumps back, and would shut SSH: the plan names the
        // commands that do.
        let fix = if lost.is_empty() {
            APPLY
        } else {
            "portcullis plan"
        };
        out.push(
            found
                .mend(fix)
                .rows(&["G2", "G7", "CIS-4.2.3", "NIST-SC-7"]),
        );
    } else if let Some(lost) = unentered(case).first() {
        let jumps = jumps("FORWARD", "forward", lost.starts_with("ip6tables"));
        out.push(
            finding(
                "ufw-routed-not-loaded",
                Severity::Medium,
                "UFW says it is active, and the kernel does not enter its rules for routed packets: somebody flushed that chain, Docker's jumps in it too, and `ufw reload` does not bring them back.",
            )
            .shows(lost.clone())
            .mend(format!("{} ; systemctl restart docker", jumps.join(" ; ")))
            .rows(&["G2", "NIST-SC-7"]),
        );
    }
    if !matches!(ufw.default_incoming.as_str(), "deny" | "reject" | "drop") {
        out.push(
            finding(
                "ufw-default-incoming",
                if ufw.enabled { Severity::High } else { Severity::Medium },
                format!(
                    "UFW's default for incoming connections is \"{}\": every port is open that no rule closes.",
                    clean(&ufw.default_incoming)
                ),
            )
            .shows("/etc/default/ufw: DEFAULT_INPUT_POLICY")
            .mend("ufw default deny incoming")
            .rows(&["G3", "CIS-4.2.7", "NIST-SC-7(5)"]),
        );
    }
    if !ufw.ipv6 {
        out.push(
            finding(
                "ufw-ipv6-off",
                Severity::Low,
                "UFW does not manage IPv6 (IPV6=no): it drops all of it while active, and `ufw disable` opens all of it.",
            )
            .shows("/etc/default/ufw: IPV6=no")
            .rows(&["G3"]),
        );
    }
    if ufw.manage_builtins && !case.host.engines.is_empty() {
        out.push(
            finding(
                "ufw-manage-builtins",
                Severity::Medium,
                "UFW is set to flush the built-in chains (MANAGE_BUILTINS=yes): each reload wipes Docker's rules.",
            )
            .shows("/etc/default/ufw: MANAGE_BUILTINS=yes")
            .mend("sed -i 's/^MANAGE_BUILTINS=.*/MANAGE_BUILTINS=no/' /etc/default/ufw")
            .rows(&["G10"]),
        );
    }
}

/// Built-in chains of the filter tables that lead to none of UFW's chains, though these exist.
fn unentered(case: &Case<'_>) -> Vec<String> {
    let mut lost = Vec::new();
    for table in &case.host.rules.tables {
        let v6 = match (table.name.as_str(), table.family) {
            ("filter", Family::Ip) => false,
            ("filter", Family::Ip6) => true,
            _ => continue,
        };
        let prefix = if v6 { "ufw6-" } else { "ufw-" };
        if !table.chains.iter().any(|c| c.name.starts_with(prefix)) {
            continue;
        }
        for name in ["INPUT", "FORWARD"] {
            let enters = table.chain(name).is_some_and(|chain| {
                chain.rules.iter().flat_map(|r| &r.statements).any(|s| {
                    matches!(s, Statement::Verdict(RuleVerdict::Jump { chain } | RuleVerdict::Goto { chain })
                        if chain.starts_with(prefix))
                })
            });
            if !enters {
                lost.push(format!(
                    "{}: chain {name} leads to none of UFW's chains",
                    if v6 { "ip6tables" } else { "iptables" }
                ));
            }
        }
    }
    lost
}
