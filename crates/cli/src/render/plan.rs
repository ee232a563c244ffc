//! A plan as a readable diff.

use super::style::{DIM, GOOD, HEAD, WARN, WIDTH, fit, paint, wrap};
use portcullis_core::plan::{Action, Change, Plan};
use portcullis_core::planner::command;
use portcullis_core::text::{clean, escape};
use std::fmt::Write as _;

/// Lines of a file that are shown of each change before the rest is counted.
const SHOWN_LINES: usize = 8;

/// The numbered changes with their reasons, then the remarks.
pub fn text(plan: &Plan, policy: &str, advice: bool) -> String {
    let mut out = String::new();
    if plan.is_empty() {
        let _ = writeln!(
            out,
            "{}",
            paint(GOOD, format!("Nothing to do: this machine obeys {policy}."))
        );
    } else {
        let _ = writeln!(
            out,
            "{}",
            paint(
                HEAD,
                format!(
                    "{} to obey {policy}, in this order:",
                    count(plan.changes.len())
                )
            )
        );
        for (index, change) in plan.changes.iter().enumerate() {
            one(&mut out, index + 1, change);
        }
    }
    for note in &plan.notes {
        let _ = writeln!(out);
        for (index, line) in wrap(&escape(&note.text), WIDTH - 6).iter().enumerate() {
            let head = if index == 0 { "note: " } else { "      " };
            let _ = writeln!(out, "{head}{line}");
        }
        if let Some(command) = &note.command {
            for line in command.lines() {
                let _ = writeln!(out, "        {}", escape(line));
            }
        }
    }
    if advice && !plan.is_empty() {
        let _ = writeln!(
            out,
            "\nDo it: {}   {}",
            paint(HEAD, "sudo portcullis apply"),
            paint(DIM, "(rolls back by itself unless you confirm)")
        );
    }
    out
}

fn count(changes: usize) -> String {
    match changes {
        1 => "1 change".into(),
        more => format!("{more} changes"),
    }
}

fn one(out: &mut String, number: usize, change: &Change) {
    let _ = writeln!(out, "\n{number:>3}. {}", command(&change.action));
    for line in wrap(&escape(&change.why), WIDTH - 5) {
        let _ = writeln!(out, "     {}", paint(DIM, line));
    }
    match &change.action {
        Action::WriteFile { content, .. } => added(out, content),
        Action::Guard { ruleset } => added(out, ruleset),
        Action::EditCompose { edits, .. } => {
            for edit in edits {
                let shown = |text: &str| fit(&clean(text.trim()), WIDTH - 7);
                if !edit.old.is_empty() {
                    let _ = writeln!(
                        out,
                        "     {}",
                        paint(WARN, format!("- {}", shown(&edit.old)))
                    );
                }
                let _ = writeln!(
                    out,
                    "     {}",
                    paint(GOOD, format!("+ {}", shown(&edit.new)))
                );
            }
        }
        _ => {}
    }
}

/// The first lines of new text, marked as added.
fn added(out: &mut String, text: &str) {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .collect();
    for line in lines.iter().take(SHOWN_LINES) {
        let shown = fit(&clean(&line.replace('\t', "  ")), WIDTH - 7);
        let _ = writeln!(out, "     {}", paint(GOOD, format!("+ {shown}")));
    }
    if lines.len() > SHOWN_LINES {
        let more = format!("  … {} more lines", lines.len() - SHOWN_LINES);
        let _ = writeln!(out, "     {}", paint(DIM, more));
    }
}
