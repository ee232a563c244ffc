//! `portcullis reach`: an offline question to the engine.

use crate::args::{HookName, ProtoName, Reach, StateName};
use crate::commands::{print, print_json, remark};
use crate::error::{CliError, Exit};
use crate::input;
use crate::render;
use reach::parse;
use reach::{
    AddrSet, Answer, Backend, CtState, Hook, HookQuery, Proto, Ruleset, Verdict, walk_hook,
};
use serde::Serialize;
use std::net::IpAddr;

/// The answer on the wire, kept stable.
#[derive(Debug, Serialize)]
struct Wire {
    schema: u32,
    admitted: AddrSet,
    conditional: AddrSet,
    blocked: AddrSet,
    decided_by: Vec<Decision>,
}

#[derive(Debug, Serialize)]
struct Decision {
    sources: AddrSet,
    verdict: Verdict,
    rule: String,
    path: Vec<String>,
}

/// Reads the dumps, asks, prints.
pub fn run(args: &Reach) -> Result<Exit, CliError> {
    if args.dport == 0 {
        return Err(CliError::usage("--dport 0 is no port").hint("ports run from 1 to 65535"));
    }
    let rules = rules(args)?;
    let mut answer = Answer::default();
    for ipv6 in families(args)? {
        merge(&mut answer, walk_hook(&rules, &query(args, ipv6)));
    }
    let wire = Wire {
        schema: 1,
        decided_by: decisions(&answer),
        admitted: answer.admitted,
        conditional: answer.conditional,
        blocked: answer.blocked,
    };
    if args.json {
        print_json(&wire)?;
    } else {
        let parts = wire
            .decided_by
            .iter()
            .map(|part| (&part.sources, part.verdict, part.rule.as_str(), &part.path));
        print(&render::reach::text(parts))?;
    }
    Ok(Exit::Clean)
}

fn rules(args: &Reach) -> Result<Ruleset, CliError> {
    let read = |path: &Option<std::path::PathBuf>, what| -> Result<Option<String>, CliError> {
        path.as_deref()
            .map(|path| input::text(path, what, input::DUMP_LIMIT))
            .transpose()
    };
    let v4 = read(&args.iptables_save, "iptables-save dump")?;
    let v6 = read(&args.ip6tables_save, "ip6tables-save dump")?;
    let nft = read(&args.nft, "nft dump")?;
    let ipset = read(&args.ipset, "ipset dump")?;
    if v4.is_none() && v6.is_none() && nft.is_none() && args.snapshot.is_none() {
        return Err(CliError::usage("no rules were given")
            .hint("name a dump: --iptables-save F, --ip6tables-save F, --nft F or --snapshot F"));
    }
    let mut rules = match &args.snapshot {
        Some(path) => input::snapshot(path)?.rules,
        None => Ruleset::default(),
    };
    let parsed = [
        v4.map(|text| parse::iptables_save(&text, false, Backend::IptablesNft)),
        v6.map(|text| parse::iptables_save(&text, true, Backend::IptablesNft)),
        nft.map(|text| parse::nft(&text)),
        ipset.map(|text| parse::ipset_save(&text)),
    ];
    for (more, notes) in parsed.into_iter().flatten() {
        for note in notes.iter().take(5) {
            remark(&format!(
                "line {}: not understood, treated as \"maybe\": {}",
                note.line,
                portcullis_core::text::clean(&note.text)
            ));
        }
        if notes.len() > 5 {
            remark(&format!("… and {} more such lines", notes.len() - 5));
        }
        rules.merge(more);
    }
    Ok(rules)
}

/// The families asked about, IPv4 first; true is IPv6.
fn families(args: &Reach) -> Result<Vec<bool>, CliError> {
    let of_address = args.dst.map(|dst| dst.is_ipv6());
    let of_flag = match args.family {
        None => None,
        Some(4) => Some(false),
        Some(6) => Some(true),
        Some(_) => return Err(CliError::usage("--family is 4 or 6")),
    };
    Ok(match (of_address, of_flag) {
        (Some(address), Some(flag)) if address != flag => {
            return Err(CliError::usage("--dst and --family do not agree"));
        }
        (Some(ipv6), _) | (None, Some(ipv6)) => vec![ipv6],
        (None, None) => {
            let any_family = args.nft.is_some() || args.snapshot.is_some();
            let mut families = Vec::new();
            if any_family || args.iptables_save.is_some() {
                families.push(false);
            }
            if any_family || args.ip6tables_save.is_some() {
                families.push(true);
            }
            families
        }
    })
}

fn query(args: &Reach, ipv6: bool) -> HookQuery {
    HookQuery {
        hook: match args.hook {
            HookName::Input => Hook::Input,
            HookName::Forward => Hook::Forward,
        },
        proto: match args.proto {
            ProtoName::Tcp => Proto::Tcp,
            ProtoName::Udp => Proto::Udp,
            ProtoName::Sctp => Proto::Sctp,
        },
        dst: args.dst,
        ipv6,
        dport: args.dport,
        sport: args.sport,
        iif: args.ingress.clone(),
        oif: args.egress.clone(),
        state: match args.state {
            StateName::New => CtState::New,
            StateName::Established => CtState::Established,
            StateName::Related => CtState::Related,
            StateName::Untracked => CtState::Untracked,
            StateName::Invalid => CtState::Invalid,
        },
    }
}

fn merge(answer: &mut Answer, more: Answer) {
    answer.admitted = answer.admitted.union(&more.admitted);
    answer.conditional = answer.conditional.union(&more.conditional);
    answer.blocked = answer.blocked.union(&more.blocked);
    answer.pieces.extend(more.pieces);
}

fn decisions(answer: &Answer) -> Vec<Decision> {
    let mut parts: Vec<(Option<IpAddr>, Decision)> = answer
        .pieces
        .iter()
        .map(|piece| {
            let decision = Decision {
                sources: piece.sources.clone(),
                verdict: piece.verdict,
                rule: piece.witness.rule.clone(),
                path: piece
                    .witness
                    .path
                    .iter()
                    .map(|step| step.text.clone())
                    .collect(),
            };
            (piece.sources.first(), decision)
        })
        .collect();
    parts.sort_by_key(|part| part.0);
    parts.into_iter().map(|(_, decision)| decision).collect()
}
