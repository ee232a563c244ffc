//! What the knocks saw, next to the policy.

use super::style::{BAD, DIM, GOOD, HEAD, WARN, WIDTH, paint, wrap};
use crate::commands::verify::Seen;
use portcullis_core::text::clean;
use std::fmt::Write as _;

/// One block a vantage and address, then the sum.
pub fn text(seen: &[Seen], unproven: &[String], policy: &str, advice: bool) -> String {
    let mut out = String::new();
    for knock in seen {
        let source = knock
            .source
            .map(|source| format!(", from {source}"))
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "{} {}",
            paint(HEAD, format!("{} as {}", knock.address, clean(&knock.zone))),
            paint(DIM, format!("({}{source})", clean(&knock.from)))
        );
        let open: Vec<String> = knock.open.iter().map(u16::to_string).collect();
        let open = if open.is_empty() {
            "nothing".to_owned()
        } else {
            open.join(" ")
        };
        let _ = writeln!(out, "  open: {open}");
        for wrong in &knock.wrong {
            for line in wrap(wrong, WIDTH - 4) {
                let _ = writeln!(out, "  {}", paint(BAD, line));
            }
        }
        if let Some(why) = &knock.inconclusive {
            for line in wrap(&format!("proves nothing: {why}"), WIDTH - 4) {
                let _ = writeln!(out, "  {}", paint(WARN, line));
            }
        }
    }
    let _ = writeln!(out);
    if seen.iter().any(|knock| !knock.wrong.is_empty()) {
        let _ = writeln!(
            out,
            "{}",
            paint(BAD, format!("Not as {} wants it.", clean(policy)))
        );
    } else if seen.iter().any(|knock| knock.inconclusive.is_some()) {
        let _ = writeln!(out, "{}", paint(WARN, "No sure answer."));
    } else {
        let _ = writeln!(
            out,
            "{}",
            paint(
                GOOD,
                format!("Proven from outside: as {} wants it.", clean(policy))
            )
        );
    }
    if advice {
        for zone in unproven {
            let _ = writeln!(
                out,
                "{}",
                paint(DIM, format!("Nobody knocked from {}.", clean(zone)))
            );
        }
    }
    out
}
