//! An audit as one calm page: the ports, then what is wrong, then the one command.

use super::style::{BAD, DIM, GOOD, HEAD, WARN, WIDTH, cell, fit, paint, wrap};
use anstyle::Style;
use portcullis_core::finding::{Endpoint, Exposure, Finding, Origin, Severity, Zone};
use portcullis_core::host::Host;
use portcullis_core::judge::{Audit, EndpointVerdict, Judged};
use portcullis_core::policy::Policy;
use portcullis_core::text::clean;
use std::fmt::Write as _;

/// Zones that get a column of their own; the rest are in `--json`.
const COLUMNS: usize = 3;
/// What stands before the way of a packet in a line of evidence.
const WAY: &str = "; the way there: ";
const PORT: usize = 12;
const WHO: usize = 24;
const ZONE: usize = 12;

/// The whole page.
pub fn text(host: &Host, policy: &Policy, audit: &Audit, advice: bool) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}",
        paint(
            HEAD,
            format!("{} · {}", clean(&host.hostname), clean(&host.os))
        )
    );
    ports(&mut out, audit);
    findings(&mut out, &audit.findings);
    unseen(&mut out, audit);
    if advice {
        closing(&mut out, host, policy, audit);
    }
    out
}

// ---- the ports ----

fn ports(out: &mut String, audit: &Audit) {
    let zones: Vec<&Zone> = audit.zones.iter().take(COLUMNS).collect();
    let shown: Vec<&Judged> = audit
        .endpoints
        .iter()
        .filter(|judged| judged.verdict != EndpointVerdict::Local)
        .collect();
    if shown.is_empty() {
        let _ = writeln!(out, "\nNothing listens beyond this machine itself.");
    } else {
        let _ = writeln!(out, "\nWho can open a connection\n");
        let mut head = format!("  {}{}", cell("PORT", PORT), cell("WHO ANSWERS", WHO));
        for zone in &zones {
            head.push_str(&cell(&zone_name(zone), ZONE));
        }
        let _ = writeln!(out, "{}", paint(DIM, head.trim_end()));
        for judged in &shown {
            row(out, judged, &zones);
        }
    }
    let local = audit.endpoints.len() - shown.len();
    if local > 0 {
        let ports = if local == 1 { "port" } else { "ports" };
        let _ = writeln!(
            out,
            "{}",
            paint(DIM, format!("  and {local} {ports} for this machine only"))
        );
    }
}

fn zone_name(zone: &Zone) -> String {
    match zone.id.as_str() {
        "internet" => "INTERNET".into(),
        "containers" => "CONTAINERS".into(),
        id => clean(id).to_uppercase(),
    }
}

fn row(out: &mut String, judged: &Judged, zones: &[&Zone]) {
    let endpoint = &judged.endpoint;
    let port = format!("{}/{}", endpoint.id.port, endpoint.id.proto);
    let mut line = format!("  {}{} ", cell(&port, PORT), cell(&who(endpoint), WHO - 1));
    for (index, zone) in zones.iter().enumerate() {
        let (word, style) = access(judged, zone);
        let last = index + 1 == zones.len();
        let shown = if last { word } else { cell(&word, ZONE) };
        let _ = write!(line, "{}", paint(style, shown));
    }
    let _ = writeln!(out, "{line}");
}

/// Who answers: the service, where it runs.
fn who(endpoint: &Endpoint) -> String {
    let service = endpoint.who().map(|service| service.id.as_str());
    let mut name = clean(service.or(endpoint.process.as_deref()).unwrap_or("?"));
    if let Some(version) = endpoint.version().filter(|v| v.len() <= 12) {
        name = format!("{name} {}", clean(version));
    }
    match (endpoint.origin, &endpoint.container) {
        (Origin::ContainerAddress, Some(container)) => {
            format!("{} at {}", clean(container), endpoint.id.address)
        }
        (_, Some(container)) if name == "?" || name == "docker-proxy" => {
            format!("container {}", clean(container))
        }
        (_, Some(container)) => format!("{name} in {}", clean(container)),
        _ => name,
    }
}

/// One word for a zone's access, and its colour: red for what the policy does not want.
fn access(judged: &Judged, zone: &Zone) -> (String, Style) {
    let mut sure: Vec<&Exposure> = Vec::new();
    let mut maybe: Vec<&Exposure> = Vec::new();
    let mut asked = false;
    let mut unwanted = false;
    for (index, exposure) in judged.endpoint.exposure.iter().enumerate() {
        if exposure.zone != zone.id {
            continue;
        }
        asked = true;
        if !exposure.admitted.is_empty() {
            sure.push(exposure);
        } else if !exposure.conditional.is_empty() {
            maybe.push(exposure);
        }
        unwanted |= judged
            .beyond
            .get(index)
            .is_some_and(|beyond| !beyond.surely.is_empty() || !beyond.maybe.is_empty());
    }
    // A container's own address is no address on the Internet: only who shares the link, or is
    // the provider, can send packets there.
    let beside = judged.endpoint.origin == Origin::ContainerAddress && zone.id == "internet";
    let (word, open) = match (sure.is_empty(), maybe.is_empty()) {
        (false, _) if beside => ("neighbours".to_owned(), true),
        (true, false) if beside => ("neighbours?".to_owned(), true),
        (false, _) => (families("open", &sure, judged, zone), true),
        (true, false) => (families("maybe open", &maybe, judged, zone), true),
        (true, true) if asked => ("closed".to_owned(), false),
        (true, true) => ("–".to_owned(), false),
    };
    let style = match (open, unwanted) {
        (true, true) if sure.is_empty() => WARN,
        (true, true) => BAD,
        (true, false) => Style::new(),
        (false, _) if asked => GOOD,
        (false, _) => DIM,
    };
    (word, style)
}

/// `open`, with the family when only one of the two that were asked is.
fn families(word: &str, of: &[&Exposure], judged: &Judged, zone: &Zone) -> String {
    let both_asked = [4, 6].iter().all(|family| {
        judged
            .endpoint
            .exposure
            .iter()
            .any(|e| e.zone == zone.id && e.family == *family)
    });
    let has = |family: u8| of.iter().any(|e| e.family == family);
    match (has(4), has(6)) {
        (true, false) if both_asked => format!("{word} v4"),
        (false, true) if both_asked => format!("{word} v6"),
        _ => word.to_owned(),
    }
}

// ---- the findings ----

fn findings(out: &mut String, findings: &[Finding]) {
    let serious: Vec<&Finding> = findings
        .iter()
        .filter(|finding| finding.severity > Severity::Info)
        .collect();
    if serious.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nWhat is wrong");
    for finding in serious {
        one(out, finding);
    }
    let infos = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Info)
        .count();
    if infos > 0 {
        let _ = writeln!(
            out,
            "\n{}",
            paint(
                DIM,
                format!("  and {infos} more for your information: --json")
            )
        );
    }
}

fn one(out: &mut String, finding: &Finding) {
    let (style, word) = match finding.severity {
        Severity::Critical => (BAD, "critical"),
        Severity::High => (BAD, "high"),
        Severity::Medium => (WARN, "medium"),
        Severity::Low => (WARN, "low"),
        Severity::Info => (DIM, "info"),
    };
    let _ = writeln!(out);
    for (index, line) in wrap(&finding.title, WIDTH - 12).iter().enumerate() {
        let head = if index == 0 { word } else { "" };
        let _ = writeln!(out, "  {} {line}", paint(style, cell(head, 9)));
    }
    if let Some(evidence) = finding.evidence.first() {
        // The whole way is a matter for `why`, all of it is in `--json`; here one line says what
        // decided.
        let short = evidence.split(WAY).next().unwrap_or(evidence);
        let _ = writeln!(out, "            {}", paint(DIM, fit(short, WIDTH - 12)));
    }
    // `portcullis apply` is said once, at the end.
    if let Some(fix) = &finding.fix
        && !mended_by_apply(fix)
    {
        for (index, line) in wrap(fix, WIDTH - 16).iter().enumerate() {
            let head = if index == 0 { "do: " } else { "    " };
            let _ = writeln!(out, "            {head}{line}");
        }
    }
}

fn mended_by_apply(fix: &str) -> bool {
    fix.contains("portcullis apply")
}

// ---- what is not known, and what to do ----

fn unseen(out: &mut String, audit: &Audit) {
    if audit.unseen.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nWhat could not be seen");
    let mut told: Vec<&str> = Vec::new();
    for gap in &audit.unseen {
        if told.contains(&gap.what.as_str()) {
            continue;
        }
        told.push(&gap.what);
        let more = audit
            .unseen
            .iter()
            .filter(|other| other.what == gap.what)
            .count()
            - 1;
        let mut text = format!("{}: {}", clean(&gap.what), clean(&gap.why));
        if more > 0 {
            let _ = write!(text, " (and {more} more)");
        }
        for line in wrap(&text, WIDTH - 4) {
            let _ = writeln!(out, "  {}", paint(WARN, line));
        }
    }
}

fn closing(out: &mut String, host: &Host, policy: &Policy, audit: &Audit) {
    let applies = audit
        .findings
        .iter()
        .any(|finding| finding.fix.as_deref().is_some_and(mended_by_apply));
    let _ = writeln!(out);
    if !host.privileged {
        let _ = writeln!(
            out,
            "Without root this is a guess. Look again: {}",
            paint(HEAD, "sudo portcullis")
        );
    } else if applies {
        let _ = writeln!(
            out,
            "Mend it: {}   {}",
            paint(HEAD, "sudo portcullis apply"),
            paint(DIM, "(see it first: portcullis plan)")
        );
    } else if audit
        .findings
        .iter()
        .all(|finding| finding.severity == Severity::Info)
    {
        let _ = writeln!(
            out,
            "{}",
            paint(GOOD, format!("This machine obeys {}.", clean(&policy.name)))
        );
    }
    if let Some(judged) = audit
        .endpoints
        .iter()
        .find(|judged| judged.verdict == EndpointVerdict::Exposed)
    {
        let id = &judged.endpoint.id;
        let port = if id.proto == reach::Proto::Tcp {
            id.port.to_string()
        } else {
            format!("{}/{}", id.port, id.proto)
        };
        let _ = writeln!(
            out,
            "{}",
            paint(DIM, format!("Why {port} is open: portcullis why {port}"))
        );
    }
}
