//! What the knocks saw, next to the policy.

use super::style::{BAD, DIM, GOOD, HEAD, WARN, WIDTH, paint, wrap};
use crate::commands::verify::Outcome;
use crate::commands::verify::seen::Seen;
use anstyle::Style;
use portcullis_core::text::clean;
use std::fmt::Write as _;

/// One block a vantage and address, then the sum.
pub fn text(result: &Outcome<'_>, advice: bool) -> String {
    let mut out = String::new();
    for knock in &result.seen {
        block(&mut out, knock, advice);
    }
    for test in &result.tests {
        let (style, word) = match test.holds {
            Some(true) => (GOOD, "holds"),
            Some(false) => (BAD, "fails"),
            None => (WARN, "unproven"),
        };
        let text = format!("test {}: {word}, {}", test.test, test.shown);
        lines(&mut out, "", style, &clean(&text));
    }
    for side in &result.sides {
        let style = if side.proven() { GOOD } else { WARN };
        lines(&mut out, "", style, &side.text());
    }
    let _ = writeln!(out);
    let policy = clean(result.policy);
    let (style, sum) = if result.findings() {
        (BAD, format!("Not as {policy} wants it."))
    } else if result.passed() {
        (GOOD, format!("Proven from outside: as {policy} wants it."))
    } else {
        (WARN, "No sure answer.".to_owned())
    };
    let _ = writeln!(out, "{}", paint(style, sum));
    if advice {
        for zone in &result.unproven {
            let text = format!("Nobody knocked from {}.", clean(zone));
            lines(&mut out, "", DIM, &text);
        }
    }
    out
}

fn block(out: &mut String, knock: &Seen, advice: bool) {
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
    let tcp = knock.open.iter().map(u16::to_string);
    let udp = knock.open_udp.iter().map(|port| format!("{port}/udp"));
    let open: Vec<String> = tcp.chain(udp).collect();
    let open = if open.is_empty() {
        "nothing".to_owned()
    } else {
        open.join(" ")
    };
    let _ = writeln!(out, "  open: {open}");
    for wrong in &knock.wrong {
        lines(out, "  ", BAD, wrong);
    }
    for disagreement in knock.disagreements() {
        lines(out, "  ", BAD, disagreement);
    }
    if let Some(why) = &knock.inconclusive {
        lines(out, "  ", WARN, &format!("proves nothing: {why}"));
    }
    if advice {
        for remark in &knock.remarks {
            lines(out, "  ", DIM, remark);
        }
    }
}

fn lines(out: &mut String, indent: &str, style: Style, text: &str) {
    for line in wrap(text, WIDTH - 2 * indent.len()) {
        let _ = writeln!(out, "{indent}{}", paint(style, line));
    }
}
