//! `portcullis why`: the way of a packet, rule by rule.

use crate::args::Why;
use crate::commands::{print, print_json};
use crate::error::{CliError, Exit};
use crate::{input, render};
use portcullis_core::why::{NoWay, Question, Way, ways};
use reach::{AddrSet, Piece, Proto};
use serde::Serialize;
use std::net::IpAddr;

/// An answer on the wire.
#[derive(Serialize)]
struct Wire<'a> {
    schema: u32,
    ways: Vec<WireWay<'a>>,
}

#[derive(Serialize)]
struct WireWay<'a> {
    zone: &'a str,
    interface: &'a str,
    to: &'a [IpAddr],
    admitted: &'a AddrSet,
    conditional: &'a AddrSet,
    blocked: &'a AddrSet,
    pieces: &'a [Piece],
}

/// Asks and prints.
pub fn run(args: &Why) -> Result<Exit, CliError> {
    let (port, proto) = endpoint(&args.port)?;
    let host = input::facts(&args.facts)?;
    let question = Question {
        port,
        proto,
        from: args.from,
        to: args.to,
        ingress: args.ingress.clone(),
    };
    let ways = ways(&host, &question).map_err(|error| no_way(&error, &host))?;
    if args.json {
        print_json(&Wire {
            schema: 1,
            ways: ways.iter().map(wire).collect(),
        })?;
    } else if ways.is_empty() {
        print("No packet from there can ask for that port on any interface.\n")?;
    } else {
        print(&render::why::text(&host, &question, &ways))?;
    }
    Ok(Exit::Clean)
}

fn wire(way: &Way) -> WireWay<'_> {
    WireWay {
        zone: &way.zone,
        interface: &way.interface,
        to: &way.to,
        admitted: &way.answer.admitted,
        conditional: &way.answer.conditional,
        blocked: &way.answer.blocked,
        pieces: &way.answer.pieces,
    }
}

/// Reads `11434` or `53/udp`.
pub fn endpoint(text: &str) -> Result<(u16, Proto), CliError> {
    let wrong = || {
        CliError::usage(format!("{text:?} is no port")).hint(
            "write a port from 1 to 65535, with /tcp, /udp or /sctp if need be: 11434, 53/udp",
        )
    };
    let (port, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    let proto = match proto {
        "tcp" => Proto::Tcp,
        "udp" => Proto::Udp,
        "sctp" => Proto::Sctp,
        _ => return Err(wrong()),
    };
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((port, proto)),
        _ => Err(wrong()),
    }
}

fn no_way(error: &NoWay, host: &portcullis_core::host::Host) -> CliError {
    match error {
        NoWay::Blind => {
            let mut shown = CliError::unsure(error.to_string()).hint("run it with sudo");
            for gap in &host.unseen {
                shown = shown.detail(format!("{}: {}", gap.what, gap.why));
            }
            shown
        }
        NoWay::Interface(_) | NoWay::Families => CliError::usage(error.to_string())
            .hint("ip -br addr shows the interfaces and their addresses"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<(u16, Proto)>) {
        assert_eq!(endpoint(text).ok(), expect, "{text}");
    }

    #[test]
    fn ports_are_read_with_their_protocol() {
        check("11434", Some((11434, Proto::Tcp)));
        check("53/udp", Some((53, Proto::Udp)));
        check("0", None);
        check("70000", None);
        check("22/icmp", None);
        check("", None);
    }
}
