//! What the reader should know of UFW's state that no change of the plan mends.

use super::chains_without_jump;
use crate::host::{Host, Ufw};
use crate::planner::Draft;
use crate::text::clean;
use reach::Backend;
use reach::ir::Family;

pub(super) const IPV6_FIX: &str = "sed -i s/^IPV6=.*/IPV6=yes/ /etc/default/ufw && ufw reload";

pub(super) fn notes(host: &Host, ufw: &Ufw, draft: &mut Draft) {
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
