//! The packet's way in words.

use super::reach::{named, word};
use super::style::{DIM, HEAD, paint};
use portcullis_core::host::Host;
use portcullis_core::text::clean;
use portcullis_core::why::{Question, Way, whose};
use reach::{AddrSet, Delivery, Piece, RuleRef, Verdict};
use std::fmt::Write as _;

/// Prefixes that are named as an exception at the most.
const EXCEPT: usize = 4;

/// One block a place: what happens to whom, the rules on the way, and whose they are.
pub fn text(host: &Host, question: &Question, ways: &[Way]) -> String {
    let mut out = String::new();
    for (index, way) in ways.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let to: Vec<String> = way.to.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            out,
            "{}",
            paint(
                HEAD,
                format!(
                    "{}/{} from {}, on {}, to {}",
                    question.port,
                    question.proto,
                    clean(&way.label),
                    clean(&way.interface),
                    to.join(", ")
                )
            )
        );
        let everybody = way
            .answer
            .pieces
            .iter()
            .fold(AddrSet::empty(), |all, piece| all.union(&piece.sources));
        for piece in &way.answer.pieces {
            one(&mut out, host, piece, &everybody);
        }
    }
    out
}

/// The sources of a piece next to all that were asked about.
fn whom(sources: &AddrSet, everybody: &AddrSet) -> String {
    let rest = everybody.subtract(sources);
    if rest.is_empty() && sources.to_cidrs().len() > 1 {
        return "everybody there".into();
    }
    let few = rest.to_cidrs().len() <= EXCEPT;
    if few && sources.to_cidrs().len() > EXCEPT {
        return format!("everybody there except {}", named(&rest));
    }
    named(sources)
}

fn one(out: &mut String, host: &Host, piece: &Piece, everybody: &AddrSet) {
    let whom = whom(&piece.sources, everybody);
    let _ = writeln!(out, "  {} {whom}", word(piece.verdict));
    if let Some(delivered) = &piece.delivered
        && matches!(piece.verdict, Verdict::Accept | Verdict::Conditional)
    {
        let end = match delivered {
            Delivery::Local { address, port } => {
                format!("reaches this machine at {}", socket(*address, *port))
            }
            Delivery::Forwarded { address, port, oif } => format!(
                "is sent on to {} through {}",
                socket(*address, *port),
                clean(oif)
            ),
        };
        let _ = writeln!(out, "    {end}");
    }
    for step in &piece.witness.path {
        let _ = writeln!(
            out,
            "    {}",
            paint(DIM, line(host, step.at.as_ref(), &step.text))
        );
    }
    let _ = writeln!(
        out,
        "    decided by {}",
        line(host, piece.witness.at.as_ref(), &piece.witness.rule)
    );
}

fn socket(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// A rule with its place and its owner.
fn line(host: &Host, at: Option<&RuleRef>, text: &str) -> String {
    let Some(at) = at else {
        return clean(text);
    };
    let position = if at.position == 0 {
        "policy".to_owned()
    } else {
        format!("rule {}", at.position)
    };
    format!(
        "{} {} {} {position} ({}): {}",
        at.family,
        clean(&at.table),
        clean(&at.chain),
        whose(host, at),
        clean(text)
    )
}
