//! Rules of UFW in words: as a plan shows them, and as a user would type them.

use super::rule::{any, narrow};
use crate::host::UfwRule;
use crate::plan::UfwAdd;
use crate::text::clean;
use ipnet::IpNet;

/// By its words, because the plan's own changes move the numbers.
pub(super) fn delete_command(rule: &UfwRule) -> String {
    let net = |n: Option<IpNet>| narrow(n).map_or("any".to_owned(), net_text);
    let simple = rule.interface_in.is_none()
        && rule.interface_out.is_none()
        && rule.from.is_none()
        && rule.to.is_none()
        && any(&rule.from_port)
        && !rule.route;
    if simple && !(any(&rule.port) && rule.application.is_none()) {
        return format!("ufw delete {}", shown(rule));
    }
    let mut out = String::from("ufw ");
    if rule.route {
        out.push_str("route ");
    }
    out.push_str(&format!("delete {}", rule.action));
    on_interfaces(&mut out, rule);
    out.push_str(&format!(" from {}", net(rule.from)));
    if !any(&rule.from_port) {
        out.push_str(&format!(" port {}", rule.from_port));
    }
    out.push_str(&format!(" to {}", net(rule.to)));
    match &rule.application {
        Some(application) => out.push_str(&format!(" app {application}")),
        None if any(&rule.port) => {}
        None => out.push_str(&format!(" port {}", rule.port)),
    }
    if rule.application.is_none() && !any(&rule.proto) {
        out.push_str(&format!(" proto {}", rule.proto));
    }
    clean(&out)
}

/// ` in on eth0 out on eth1`, as far as the rule names interfaces.
fn on_interfaces(out: &mut String, rule: &UfwRule) {
    if let Some(interface) = &rule.interface_in {
        out.push_str(&format!(" in on {interface}"));
    }
    if let Some(interface) = &rule.interface_out {
        out.push_str(&format!(" out on {interface}"));
    }
}

/// A rule of the user in short, made safe to print.
pub(super) fn shown(rule: &UfwRule) -> String {
    let mut out = String::new();
    if rule.route {
        out.push_str("route ");
    }
    out.push_str(&rule.action);
    on_interfaces(&mut out, rule);
    if let Some(from) = narrow(rule.from) {
        out.push_str(&format!(" from {from}"));
    }
    if let Some(to) = narrow(rule.to) {
        out.push_str(&format!(" to {to}"));
    }
    match &rule.application {
        Some(application) => out.push_str(&format!(" {application}")),
        None if any(&rule.port) => {}
        None => out.push_str(&format!(" {}", rule.port)),
    }
    if rule.application.is_none() && !any(&rule.proto) {
        out.push_str(&format!("/{}", rule.proto));
    }
    clean(&out)
}

/// The words after `ufw` (and after `delete`) for a rule, as the plan shows them and as a user would type them.
pub(in crate::planner) fn words(rule: &UfwAdd) -> String {
    let mut out = String::new();
    if rule.prepend {
        out.push_str("prepend ");
    }
    out.push_str(&rule.action);
    if rule.from.is_none() && rule.interface.is_none() {
        out.push_str(&format!(" {}/{}", rule.port, rule.proto));
    } else {
        if let Some(interface) = &rule.interface {
            out.push_str(&format!(" in on {}", clean(interface)));
        }
        let from = rule.from.map_or("any".to_owned(), net_text);
        out.push_str(&format!(
            " from {from} to any port {} proto {}",
            rule.port, rule.proto
        ));
    }
    out
}

fn net_text(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}
