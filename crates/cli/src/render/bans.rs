//! The list of bans, and what the proof of the jails came to.

use crate::commands::jails::Shown;
use crate::render::style::{DIM, GOOD, HEAD, WARN, paint};
use portcullis_core::planner::bans::Ban;
use portcullis_core::text::clean;
use std::fmt::Write as _;

/// The bans as a table; a jail's are together.
pub fn text(bans: &[Ban], advice: bool) -> String {
    if bans.is_empty() {
        return "Nobody is banned.\n".to_owned();
    }
    let rows: Vec<[String; 5]> = bans.iter().map(row).collect();
    let head = ["WHO", "JAIL", "WHY", "SINCE", "STILL"].map(str::to_owned);
    let mut width = head.clone().map(|word| word.len());
    for row in &rows {
        for (width, cell) in width.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; 5]| {
        let mut out = String::from(" ");
        for (cell, width) in cells.iter().zip(width) {
            let _ = write!(out, " {cell:width$} ");
        }
        out.trim_end().to_owned()
    };
    let mut out = format!("{}\n", paint(HEAD, line(&head)));
    for row in &rows {
        let _ = writeln!(out, "{}", line(row));
    }
    let lost = bans.iter().filter(|ban| !ban.in_force).count();
    if lost > 0 {
        let _ = write!(
            out,
            "\n{}\n",
            paint(
                WARN,
                format!(
                    "{lost} of them only fail2ban knows: the kernel lets them in. Mend it: sudo portcullis apply"
                )
            )
        );
    }
    if advice {
        let _ = write!(
            out,
            "\n{}\n",
            paint(DIM, "Let one in again: sudo portcullis unban ADDR")
        );
    }
    out
}

fn row(ban: &Ban) -> [String; 5] {
    let who = if ban.net.prefix_len() == ban.net.max_prefix_len() {
        ban.net.addr().to_string()
    } else {
        ban.net.to_string()
    };
    let still = match (ban.in_force, ban.left) {
        (false, _) => "not in force".to_owned(),
        (true, Some(seconds)) => left(seconds),
        (true, None) => "no end".to_owned(),
    };
    [
        who,
        clean(&ban.jail),
        ban.why.as_deref().map(clean).unwrap_or_default(),
        ban.since.as_deref().map(clean).unwrap_or_default(),
        still,
    ]
}

/// `59 min`, `6 d 3 h`: coarse, since it changes while it is read.
fn left(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// What the proof of each jail came to.
pub fn proofs(jails: &[Shown]) -> String {
    let mut out = format!("{}\n", paint(HEAD, "Do the jails ban? The kernel says:"));
    for jail in jails {
        let line = match (&jail.unproven, jail.milliseconds) {
            (None, Some(ms)) => paint(
                GOOD,
                format!(
                    "  {:<11} yes: tested with {}, banned after {ms} ms",
                    clean(&jail.jail),
                    jail.address
                        .map(|address| address.to_string())
                        .unwrap_or_default()
                ),
            ),
            (why, _) => paint(
                WARN,
                format!(
                    "  {:<11} {}: {}",
                    clean(&jail.jail),
                    if jail.failed { "no" } else { "not proven" },
                    clean(why.as_deref().unwrap_or(""))
                ),
            ),
        };
        let _ = writeln!(out, "{line}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_fits_a_line() {
        let jail = Shown {
            jail: "open-webui".into(),
            address: Some("2001:db8:0:ffff::ffff:77".parse().unwrap()),
            milliseconds: Some(19_999),
            unproven: None,
            failed: false,
        };
        for line in proofs(&[jail]).lines() {
            assert!(
                anstream::adapter::strip_str(line).to_string().len() <= 80,
                "{line}"
            );
        }
    }

    #[test]
    fn hostile_words_and_long_lists_stay_calm() {
        let ban = Ban {
            net: "2001:db8:1:2::/64".parse().unwrap(),
            jail: "sshd\u{1b}[31m".into(),
            why: Some("3 failures\nx".into()),
            since: Some("2026-11-22 10:00:00".into()),
            left: Some(3590),
            in_force: true,
        };
        let text = text(&[ban], true);
        assert!(
            !text.contains("\u{1b}[31m") && !text.contains("s\nx"),
            "{text}"
        );
        assert!(
            text.contains("2001:db8:1:2::/64") && text.contains("59 min"),
            "{text}"
        );
    }
}
