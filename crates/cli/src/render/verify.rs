//! What the knocks saw, next to the policy.

use super::style::{BAD, DIM, GOOD, HEAD, WARN, WIDTH, paint, wrap};
use crate::commands::proof::TestResult;
use crate::commands::verify::Seen;
use portcullis_core::text::clean;
use std::fmt::Write as _;

/// One block a vantage and address, then the sum.
pub fn text(
    seen: &[Seen],
    tests: &[TestResult],
    unproven: &[String],
    policy: &str,
    advice: bool,
) -> String {
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
        for disagreement in knock.disagreements() {
            for line in wrap(disagreement, WIDTH - 4) {
                let _ = writeln!(out, "  {}", paint(BAD, line));
            }
        }
        if let Some(why) = &knock.inconclusive {
            for line in wrap(&format!("proves nothing: {why}"), WIDTH - 4) {
                let _ = writeln!(out, "  {}", paint(WARN, line));
            }
        }
    }
    for test in tests {
        let (style, word) = match test.holds {
            Some(true) => (GOOD, "holds"),
            Some(false) => (BAD, "fails"),
            None => (WARN, "unproven"),
        };
        let text = format!("test {}: {word}, {}", test.test, test.shown);
        for line in wrap(&clean(&text), WIDTH) {
            let _ = writeln!(out, "{}", paint(style, line));
        }
    }
    let _ = writeln!(out);
    let failed = tests.iter().any(|test| test.holds == Some(false));
    if failed || seen.iter().any(Seen::has_findings) {
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
