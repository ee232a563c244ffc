//! An answer of the engine as text.

use super::style::{BAD, DIM, GOOD, HEAD, WARN, cell, paint};
use portcullis_core::text::clean;
use reach::{AddrSet, Verdict};
use std::fmt::Write as _;

/// How many prefixes a line of text names before it counts the rest.
const NAMED: usize = 4;

/// One block a part: verdict, sources, the deciding rule, the way to it.
pub fn text<'a>(
    parts: impl Iterator<Item = (&'a AddrSet, Verdict, &'a str, &'a Vec<String>)>,
) -> String {
    let mut text = String::new();
    for (sources, verdict, rule, path) in parts {
        let _ = writeln!(text, "{} {}", word(verdict), paint(HEAD, named(sources)));
        for step in path {
            let _ = writeln!(text, "             {}", paint(DIM, clean(step)));
        }
        let _ = writeln!(text, "          by {}", clean(rule));
    }
    text
}

/// The verdict in its colour, ten columns wide.
pub fn word(verdict: Verdict) -> String {
    match verdict {
        Verdict::Accept => paint(BAD, cell("open", 12)),
        Verdict::Conditional => paint(WARN, cell("maybe open", 12)),
        Verdict::Drop => paint(GOOD, cell("closed", 12)),
        Verdict::Reject => paint(GOOD, cell("refused", 12)),
    }
}

/// A set of sources in words: everyone, a few prefixes, or a count.
pub fn named(sources: &AddrSet) -> String {
    if *sources == AddrSet::all_v4() {
        return "every IPv4 address".into();
    }
    if *sources == AddrSet::all_v6() {
        return "every IPv6 address".into();
    }
    let nets = sources.to_cidrs();
    let mut words: Vec<String> = nets
        .iter()
        .take(NAMED)
        .map(|net| {
            if net.prefix_len() == net.max_prefix_len() {
                net.addr().to_string()
            } else {
                net.to_string()
            }
        })
        .collect();
    if nets.len() > NAMED {
        words.push(format!("and {} more", nets.len() - NAMED));
    }
    words.join(", ")
}
