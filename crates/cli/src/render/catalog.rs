//! The catalog as a list, and one service as a page.

use super::style::{DIM, HEAD, WIDTH, cell, paint, wrap};
use portcullis_core::catalog::{Checked, Kind, Service};
use portcullis_core::text::clean;
use std::fmt::Write as _;

const ID: usize = 24;
const KIND: usize = 11;
const PORTS: usize = 19;
const LABEL: usize = 13;

/// One line a service.
pub fn all(services: &[Service]) -> String {
    let mut out = String::new();
    let head = format!(
        "{}{}{}{}",
        cell("NAME", ID),
        cell("KIND", KIND),
        cell("PORTS", PORTS),
        "FACTS FROM"
    );
    let _ = writeln!(out, "{}", paint(DIM, head));
    for service in services {
        let _ = writeln!(
            out,
            "{}{}{}{} {}",
            cell(&clean(&service.id), ID),
            cell(kind(service.kind), KIND),
            cell(&ports(service), PORTS),
            checked(service.confidence),
            clean(&service.checked)
        );
    }
    let _ = writeln!(
        out,
        "\n{}",
        paint(
            DIM,
            format!(
                "{} services. More about one: portcullis catalog NAME\nYour own: \
                 /etc/portcullis/catalog.d/NAME.toml",
                services.len()
            )
        )
    );
    out
}

/// All that is known about one.
pub fn one(service: &Service) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}",
        paint(
            HEAD,
            format!("{} ({})", clean(&service.name), clean(&service.id))
        )
    );
    let mut line = |label: &str, text: String| {
        if text.is_empty() {
            return;
        }
        for (index, part) in wrap(&text, WIDTH - LABEL - 2).iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            let _ = writeln!(out, "  {}{part}", paint(DIM, cell(label, LABEL)));
        }
    };
    let list = |texts: &[String]| {
        let texts: Vec<String> = texts.iter().map(|t| clean(t)).collect();
        texts.join(", ")
    };
    line("ports", ports(service));
    line("listens", clean(&service.bind));
    line("guarded by", clean(&service.auth));
    line(
        "strangers",
        format!("whoever reaches it can {}", clean(&service.risk)),
    );
    line("dangerous", list(&service.dangerous));
    line("gateway", list(&service.gateway));
    if let Some(loopback) = &service.loopback {
        let port = service.ports.first().or(service.weak_ports.first());
        line(
            "loopback",
            clean(&loopback.words(port.copied().unwrap_or_default())),
        );
    }
    line("advice", clean(&service.advice));
    line(
        "processes",
        list(&[&service.processes[..], &service.scripts[..]].concat()),
    );
    line("units", list(&service.units));
    line("images", list(&service.images));
    for probe in &service.probes {
        let asked = match probe.talk {
            Some(talk) => format!("{talk:?} (not HTTP)"),
            None => format!("GET {}", clean(&probe.path)),
        };
        line("asked", asked);
    }
    for hazard in &service.hazards {
        line("watched for", clean(&hazard.says));
    }
    for hole in &service.holes {
        line(
            "hole",
            clean(&format!(
                "{} in {}: lets a stranger {} ({})",
                hole.id, hole.affected, hole.lets, hole.source
            )),
        );
    }
    line(
        "facts from",
        format!(
            "{}, {}",
            checked(service.confidence),
            clean(&service.checked)
        ),
    );
    for source in &service.sources {
        line("", clean(source));
    }
    out
}

fn ports(service: &Service) -> String {
    let ports = service.ports.iter().chain(&service.weak_ports);
    let words: Vec<String> = ports.map(u16::to_string).collect();
    match words.as_slice() {
        many if many.len() > 3 => format!("{} …", many[..3].join(" ")),
        few => few.join(" "),
    }
}

fn checked(confidence: Checked) -> &'static str {
    match confidence {
        Checked::Published => "published",
        Checked::Docs => "manual",
        Checked::Source => "source code",
        Checked::Tried => "the program",
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Inference => "inference",
        Kind::Image => "image",
        Kind::Speech => "speech",
        Kind::Ui => "ui",
        Kind::Agent => "agent",
        Kind::Gateway => "gateway",
        Kind::Notebook => "notebook",
        Kind::Mlops => "mlops",
        Kind::Cluster => "cluster",
        Kind::Vector => "vector",
        Kind::Data => "data",
        Kind::Mcp => "mcp",
        Kind::Metrics => "metrics",
        Kind::System => "system",
    }
}
