//! A scan as nmap's XML (nmap.dtd, output version 1.05), so that what reads nmap reads this.

use super::xml_escape;
use scan::{PortSet, PortState, Report, TargetReport};
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// The whole document. Closed and silent ports are in `extraports`, as nmap has them; a target
/// without a sure answer has a status of `unknown`, and the run ends with exit `error`.
pub fn text(report: &Report, begun: SystemTime, ended: SystemTime) -> String {
    let (begun, ended) = (seconds(begun), seconds(ended));
    let asked = report.targets.first().map_or("", |target| &target.asked);
    let count = PortSet::parse(asked).map_or(0, |ports| ports.len());
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE nmaprun>\n");
    let _ = writeln!(
        out,
        "<nmaprun scanner=\"portcullis\" start=\"{begun}\" version=\"{}\" \
         xmloutputversion=\"1.05\">\n<scaninfo type=\"syn\" protocol=\"tcp\" numservices=\"{count}\" \
         services=\"{}\"/>",
        env!("CARGO_PKG_VERSION"),
        xml_escape(asked),
    );
    let udp = report.targets.first().and_then(|t| t.udp.as_ref());
    if let Some(udp) = udp {
        let count = PortSet::parse(&udp.asked).map_or(0, |ports| ports.len());
        let _ = writeln!(
            out,
            "<scaninfo type=\"udp\" protocol=\"udp\" numservices=\"{count}\" services=\"{}\"/>",
            xml_escape(&udp.asked)
        );
    }
    for target in &report.targets {
        host(&mut out, target, begun, ended);
    }
    let up = report.targets.iter().filter(|t| t.answered()).count();
    let total = report.targets.len();
    let end = if report.inconclusive() {
        "exit=\"error\" errormsg=\"no sure answer: what is not open here is not proven closed\""
    } else {
        "exit=\"success\""
    };
    let _ = writeln!(
        out,
        "<runstats><finished time=\"{ended}\" elapsed=\"{}\" {end}/>\
         <hosts up=\"{up}\" down=\"{}\" total=\"{total}\"/></runstats>\n</nmaprun>",
        ended.saturating_sub(begun),
        total - up,
    );
    out
}

fn host(out: &mut String, target: &TargetReport, begun: u64, ended: u64) {
    let family = if target.address.is_ipv6() {
        "ipv6"
    } else {
        "ipv4"
    };
    let status = if target.answered() { "up" } else { "unknown" };
    let _ = writeln!(
        out,
        "<host starttime=\"{begun}\" endtime=\"{ended}\"><status state=\"{status}\" \
         reason=\"user-set\" reason_ttl=\"0\"/>\n<address addr=\"{}\" addrtype=\"{family}\"/>",
        target.address
    );
    if let Some(note) = &target.note {
        // Two hyphens would end the comment.
        let _ = writeln!(out, "<!-- {} -->", xml_escape(note).replace("--", "- -"));
    }
    let _ = writeln!(out, "<ports>");
    let summary = target.summary;
    let tcp = |p: &&scan::PortReport| p.proto == "tcp";
    let listed = |wanted: PortState| {
        let ports = target.ports.iter().filter(tcp);
        ports.filter(|p| p.state == wanted).count()
    };
    let closed_udp = target.udp.as_ref().map_or(0, |udp| udp.closed);
    for (state, reason, count) in [
        ("closed", "reset", summary.closed),
        ("closed", "port-unreach", closed_udp),
        ("filtered", "no-response", summary.filtered),
        (
            "filtered",
            "admin-prohibited",
            summary.rejected.saturating_sub(listed(PortState::Rejected)),
        ),
        (
            "open",
            "syn-ack",
            summary.open.saturating_sub(listed(PortState::Open)),
        ),
    ] {
        if count > 0 {
            let _ = writeln!(
                out,
                "<extraports state=\"{state}\" count=\"{count}\"><extrareasons reason=\"{reason}\" \
                 count=\"{count}\"/></extraports>"
            );
        }
    }
    for port in &target.ports {
        let state = match port.state {
            PortState::Open => "open",
            PortState::Rejected => "filtered",
            PortState::OpenOrFiltered => "open|filtered",
        };
        let service = port.service.as_deref().map_or_else(String::new, |name| {
            format!(
                "<service name=\"{}\" method=\"probed\" conf=\"10\"/>",
                xml_escape(name)
            )
        });
        let _ = writeln!(
            out,
            "<port protocol=\"{}\" portid=\"{}\"><state state=\"{state}\" reason=\"{}\" \
             reason_ttl=\"0\"/>{service}</port>",
            xml_escape(&port.proto),
            port.port,
            xml_escape(&port.reason),
        );
    }
    let _ = writeln!(out, "</ports>\n</host>");
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_reads_like_nmaps() {
        let report: Report = serde_json::from_str(
            r#"{"schema":1,"partial":false,"targets":[{"address":"192.0.2.1","asked":"1-65535",
            "ports":[{"proto":"tcp","port":22,"state":"open","reason":"syn-ack","service":"a<b\"&"},
            {"proto":"tcp","port":25,"state":"rejected","reason":"icmp-admin-prohibited","service":null}],
            "summary":{"open":1,"closed":2,"rejected":1,"filtered":65531},"note":"a -- b"}]}"#,
        )
        .unwrap();
        let xml = text(&report, UNIX_EPOCH, UNIX_EPOCH);
        for part in [
            "numservices=\"65535\" services=\"1-65535\"",
            "<address addr=\"192.0.2.1\" addrtype=\"ipv4\"/>",
            "<port protocol=\"tcp\" portid=\"22\"><state state=\"open\"",
            "<service name=\"a&lt;b&quot;&amp;\"",
            "<extraports state=\"filtered\" count=\"65531\">",
            "<!-- a - - b -->",
            "exit=\"success\"",
        ] {
            assert!(xml.contains(part), "{part}\n{xml}");
        }
    }

    #[test]
    fn an_unsure_scan_ends_in_error_for_whoever_reads_it() {
        let report = Report {
            schema: 1,
            partial: true,
            targets: vec![],
        };
        assert!(text(&report, UNIX_EPOCH, UNIX_EPOCH).contains("exit=\"error\""));
    }
}
