//! Endpoints, sources and rules in plain words; all names in them are made safe to print.

use crate::finding::{Endpoint, Exposure, Origin, Zone};
use crate::host::Host;
use crate::text::{clean, list};
use crate::zones;
use ipnet::IpNet;
use reach::{AddrSet, Piece, Verdict};

/// "Ollama (11434/tcp)", "container web (3000/tcp)", "python3 (8000/tcp)", "port 8000/tcp".
pub(super) fn what(endpoint: &Endpoint) -> String {
    let id = &endpoint.id;
    let port = format!("{}/{}", id.port, id.proto);
    let at = match endpoint.origin {
        Origin::ContainerAddress => format!("{} port {port}", id.address),
        _ => port.clone(),
    };
    let service = endpoint.who();
    match (service, &endpoint.container, &endpoint.process) {
        (Some(service), ..) => match endpoint.version() {
            Some(version) => format!("{} {} ({at})", service.name, clean(version)),
            None => format!("{} ({at})", service.name),
        },
        (None, Some(container), _) => format!("container {} ({at})", clean(container)),
        (None, None, Some(process)) => format!("{} ({at})", clean(process)),
        (None, None, None) => format!("port {port}"),
    }
}

/// Who of a zone: "Anyone on the Internet", "10.0.0.5 on LAN 10.0.0.0/24 (eth0)".
pub(super) fn who(host: &Host, zone: &Zone, set: &AddrSet) -> String {
    let family = |s: &AddrSet| {
        let v4 = if set.v4().is_empty() {
            AddrSet::empty()
        } else {
            s.v4()
        };
        let v6 = if set.v6().is_empty() {
            AddrSet::empty()
        } else {
            s.v6()
        };
        v4.union(&v6)
    };
    let whole = family(&zone.networks);
    if zone.id == "internet" {
        let public = strangers(host, zone, set);
        if public.is_empty() {
            let links = zones::links_of(host, &zone.interfaces);
            let near = if set.is_subset(&links) { &links } else { set };
            return format!("Neighbours on the Internet side ({})", few(near));
        }
        let private = zones::private();
        return if mostly(&public, &whole.subtract(&private)) {
            "Anyone on the Internet".to_owned()
        } else {
            format!("{} on the Internet", few(&public))
        };
    }
    if set.is_empty() || mostly(set, &whole) {
        match zone.id.as_str() {
            "containers" => "Any container".to_owned(),
            _ => format!("Anyone on {}", zone.label),
        }
    } else {
        format!("{} on {}", few(set), zone.label)
    }
}

/// The part of a set that is beyond the links and the private networks of the Internet's side.
pub(super) fn strangers(host: &Host, zone: &Zone, set: &AddrSet) -> AddrSet {
    let near = zones::private().union(&zones::links_of(host, &zone.interfaces));
    set.subtract(&near)
}

/// True when what is missing is small: no hole as large as 1/256 of the family's space.
fn mostly(set: &AddrSet, whole: &AddrSet) -> bool {
    let large = |net: &IpNet| net.prefix_len() <= 8;
    let missing = whole.subtract(set).to_cidrs();
    if whole.to_cidrs().iter().any(large) {
        !missing.iter().any(large)
    } else {
        missing.is_empty()
    }
}

/// The first networks of a set.
pub(super) fn few(set: &AddrSet) -> String {
    let all = set.to_cidrs();
    let mut shown: Vec<String> = all.iter().take(3).map(net).collect();
    if all.len() > 3 {
        shown.push(format!("{} more networks", all.len() - 3));
    }
    list(&shown)
}

/// A network; a single address without its length.
pub(super) fn net(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// The piece that best explains the fate of `set`: one that overlaps it, sure ones first.
pub(super) fn deciding<'a>(exposure: &'a Exposure, set: &AddrSet) -> Option<&'a Piece> {
    let mut pieces: Vec<&Piece> = exposure
        .pieces
        .iter()
        .filter(|p| !p.sources.intersect(set).is_empty())
        .collect();
    pieces.sort_by_key(|p| match p.verdict {
        Verdict::Accept => 0,
        Verdict::Conditional => 1,
        Verdict::Drop | Verdict::Reject => 2,
    });
    pieces.first().copied()
}

/// A piece as evidence: the rule, where it stands, and the way there.
pub(super) fn evidence(zone: &Zone, exposure: &Exposure, piece: &Piece) -> String {
    let verb = match (piece.verdict, &piece.witness.at) {
        (Verdict::Accept, Some(_)) => "let in by ",
        (Verdict::Conditional, Some(_)) => "maybe let in by ",
        (Verdict::Conditional, None) => "not decided: ",
        (Verdict::Drop | Verdict::Reject, Some(_)) => "stopped by ",
        (Verdict::Drop | Verdict::Reject, None) => "stopped: ",
        (Verdict::Accept, None) => "let in: ",
    };
    let mut line = format!(
        "{} → {} over IPv{}: {verb}{}",
        clean(&zone.id),
        exposure.to,
        exposure.family,
        rule(piece)
    );
    let mut steps: Vec<String> = piece.witness.path.iter().map(|s| clean(&s.text)).collect();
    // Long ways are cut in the middle: how it began and how it ended explain it.
    if steps.len() > 8 {
        let cut = steps.len() - 6;
        steps.splice(3..3 + cut, [format!("… {cut} more steps …")]);
    }
    if !steps.is_empty() {
        line.push_str(&format!("; the way there: {}", steps.join(" → ")));
    }
    if !piece.conditions.is_empty() {
        let conditions: Vec<String> = piece.conditions.iter().map(|c| clean(c)).collect();
        line.push_str(&format!("; it depends on {}", list(&conditions)));
    }
    line
}

/// The deciding rule with its place.
pub(super) fn rule(piece: &Piece) -> String {
    let text = clean(&piece.witness.rule);
    match &piece.witness.at {
        Some(at) => format!(
            "`{text}` ({} {}, chain {}{})",
            clean(&at.family),
            clean(&at.table),
            clean(&at.chain),
            match at.position {
                0 => String::new(),
                position => format!(" rule {position}"),
            }
        ),
        None => text,
    }
}
