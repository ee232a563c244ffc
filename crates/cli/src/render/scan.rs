//! A scan as text.

use super::style::{BAD, DIM, HEAD, WARN, WIDTH, cell, paint, wrap};
use portcullis_core::text::clean;
use scan::{PortState, Report};
use std::fmt::Write as _;

/// Lines for each target: the ports that answered, then the counts.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for target in &report.targets {
        let _ = writeln!(text, "{}", paint(HEAD, target.address));
        for port in &target.ports {
            let (style, word) = match port.state {
                PortState::Open => (BAD, "open"),
                PortState::Rejected => (WARN, "rejected"),
                PortState::OpenOrFiltered => (WARN, "open or filtered"),
            };
            let name = format!("{}/{}", port.port, port.proto);
            let _ = writeln!(
                text,
                "  {} {} {}",
                cell(&name, 11),
                paint(style, cell(word, 17)),
                paint(DIM, clean(port.service.as_ref().unwrap_or(&port.reason)))
            );
        }
        let summary = target.summary;
        let _ = writeln!(
            text,
            "  {}",
            paint(
                DIM,
                format!(
                    "{} open, {} closed, {} rejected, {} silent",
                    summary.open, summary.closed, summary.rejected, summary.filtered
                )
            )
        );
        if let Some(udp) = &target.udp {
            let counts = format!(
                "UDP: {} open, {} closed, {} rejected, {} silent (open or filtered)",
                udp.open, udp.closed, udp.rejected, udp.open_or_filtered
            );
            let _ = writeln!(text, "  {}", paint(DIM, counts));
        }
        if let Some(note) = &target.note {
            for line in wrap(&clean(note), WIDTH - 4) {
                let _ = writeln!(text, "  {}", paint(WARN, line));
            }
        }
    }
    text
}
