//! Services told to listen on loopback only, and the lines to change where portcullis cannot do it itself.
//!
//! A native service with a systemd unit gets a drop-in, never a new unit.

use super::command::with_argument;
use super::grants;
use super::{Draft, bridge, files, systemd};
use crate::catalog::{self, Loopback, Service};
use crate::host::{Host, Socket, Unit};
use crate::plan::{Action, SystemdVerb};
use crate::policy::{Policy, Reach, Source, ZoneRef};
use crate::text::clean;
use reach::Proto;
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(super) fn plan(host: &Host, policy: &Policy, draft: &mut Draft) {
    let mut restarts = Vec::new();
    let mut reload = false;
    let mut bridges = Vec::new();
    for rule in &policy.services {
        let Some(service) = catalog::service(&rule.kind) else {
            continue;
        };
        // Containers come to the bridge, where systemd listens for the service: it stays on loopback.
        let inside = matches!(&rule.reach, Reach::From(from)
            if from.iter().all(|s| matches!(s, Source::Zone(ZoneRef::Containers(_)))))
            && bridge::serves(host, service);
        let closed = inside || matches!(rule.reach, Reach::Loopback | Reach::Gateway);
        bridges.push((service, inside));
        match &service.loopback {
            Some(Loopback::Environment { key, value }) => {
                for name in &service.units {
                    let change = Bind {
                        service,
                        unit: name,
                        key,
                        value,
                    };
                    let (files, restart) = if closed {
                        change.close(host, draft)
                    } else {
                        change.open(host, draft)
                    };
                    reload |= files;
                    restarts.extend(restart.then(|| (name.clone(), service.name.clone())));
                }
                if closed {
                    outside_units(host, service, &format!("{key}={value}"), &[], draft);
                }
            }
            Some(Loopback::Argument { text, instead_of }) => {
                let mut settled = Vec::new();
                for name in units_of(host, service) {
                    let told = Told {
                        service,
                        unit: &name,
                        text,
                        instead_of,
                    };
                    let (files, restart) = if closed {
                        told.close(host, draft, &mut settled)
                    } else {
                        told.open(host, draft)
                    };
                    reload |= files;
                    restarts.extend(restart.then(|| (name.clone(), service.name.clone())));
                }
                if closed {
                    outside_units(host, service, text, &settled, draft);
                }
            }
            Some(Loopback::Setting { text }) if closed => {
                outside_units(host, service, text, &[], draft);
            }
            _ => {}
        }
    }
    if reload {
        draft.change(
            "systemd reads the changed units",
            &[],
            systemd("", SystemdVerb::DaemonReload),
        );
    }
    for (unit, name) in restarts {
        draft.change(
            format!("{name} listens where the policy says only after a restart"),
            &["exposed-to-internet"],
            systemd(&unit, SystemdVerb::Restart),
        );
    }
    // The service has left the bridge's address by then.
    for (service, inside) in bridges {
        let port = service.ports.first().copied().unwrap_or(0);
        bridge::plan(host, service, port, inside, draft);
    }
    bridge::forget(host, policy, draft);
}

struct Bind<'a> {
    service: &'static Service,
    unit: &'a str,
    key: &'a str,
    value: &'a str,
}

impl Bind<'_> {
    /// Loopback only. Tells whether a file changes and whether the unit must be restarted.
    fn close(&self, host: &Host, draft: &mut Draft) -> (bool, bool) {
        let Some(unit) = host.units.get(self.unit).filter(|u| u.load == "loaded") else {
            return (false, false);
        };
        let path = files::dropin(self.unit);
        let told = unit.environment.get(self.key);
        let told_wrong = told.is_some_and(|value| !is_loopback(value));
        let open_now = host.sockets.iter().any(|s| {
            s.proto == Proto::Tcp
                && !s.in_container_netns
                && s.unit.as_deref() == Some(self.unit)
                && !s.address.is_loopback()
        });
        let ours = files::exists(host, &path);
        if !(told_wrong || open_now || ours) {
            return (false, false);
        }
        let value = self
            .value
            .replace("{port}", &self.port(host, unit).to_string());
        let written = files::write(
            host,
            draft,
            &path,
            format!(
                "# Written by portcullis: the policy keeps {} on this machine.\n[Service]\nEnvironment=\"{}={value}\"\n",
                self.service.name, self.key,
            ),
            &format!(
                "{} listens on every address, so only the firewall stands between it and strangers",
                self.service.name
            ),
            &["exposed-to-internet"],
        );
        let stale = told_wrong || (open_now && written);
        if open_now && !written && !told_wrong {
            // Restarting once more would change nothing: the unit gets its address from somewhere else.
            draft.note(
                format!(
                    "{} listens on every address although its drop-in says {}={value}: an EnvironmentFile or an argument of its command sets another address; the firewall keeps strangers out",
                    self.service.name, self.key
                ),
                Some(format!("systemctl cat {}", self.unit)),
            );
        }
        let running = matches!(unit.active.as_str(), "active" | "activating" | "reloading");
        (written, running && (written || stale))
    }

    /// The policy admits networks now, so the drop-in of an earlier policy goes.
    fn open(&self, host: &Host, draft: &mut Draft) -> (bool, bool) {
        let path = files::dropin(self.unit);
        let unit = host.units.get(self.unit).filter(|u| u.load == "loaded");
        if files::exists(host, &path) {
            draft.change(
                format!("the policy lets others reach {}", self.service.name),
                &[],
                Action::RemoveFile { path },
            );
            let running = unit.is_some_and(|u| u.active == "active");
            return (true, running);
        }
        let open_now = host
            .sockets
            .iter()
            .any(|s| s.unit.as_deref() == Some(self.unit) && !s.address.is_loopback());
        if let Some(unit) = unit
            && unit.active == "active"
            && !open_now
        {
            let everywhere = self
                .value
                .replace("127.0.0.1", "0.0.0.0")
                .replace("{port}", &self.port(host, unit).to_string());
            draft.note(
                format!(
                    "the policy lets others reach {}, and it listens on loopback only: give its unit this line",
                    self.service.name
                ),
                Some(format!("Environment=\"{}={everywhere}\"", self.key)),
            );
        }
        (false, false)
    }

    /// The port that it is told to use, else the one it listens on, else its usual one.
    fn port(&self, host: &Host, unit: &Unit) -> u16 {
        let told = unit.environment.get(self.key).and_then(|v| port_of(v));
        let listening = || {
            host.sockets
                .iter()
                .find(|s| s.proto == Proto::Tcp && s.unit.as_deref() == Some(self.unit))
                .map(|s| s.port)
        };
        told.or_else(listening)
            .or_else(|| self.service.ports.first().copied())
            .unwrap_or(0)
    }
}

/// Units of a service: those that the catalog names, and those that hold its sockets whatever they are called.
fn units_of(host: &Host, service: &'static Service) -> BTreeSet<String> {
    let holding = grants::sockets_of(host, &service.id).filter(|s| s.container.is_none());
    service
        .units
        .iter()
        .cloned()
        .chain(holding.filter_map(|s| s.unit.clone()))
        .filter(|unit| host.units.contains_key(unit) && files::is_managed(&files::dropin(unit)))
        .collect()
}

/// A unit whose command gets an argument.
struct Told<'a> {
    service: &'static Service,
    unit: &'a str,
    text: &'a str,
    instead_of: &'a [String],
}

impl Told<'_> {
    /// As [`Bind::close`]; a unit that needs no word to the operator goes to `settled`.
    fn close(&self, host: &Host, draft: &mut Draft, settled: &mut Vec<String>) -> (bool, bool) {
        let Some(unit) = host.units.get(self.unit).filter(|u| u.load == "loaded") else {
            return (false, false);
        };
        let path = files::dropin(self.unit);
        let own = |s: &&Socket| s.unit.as_deref() == Some(self.unit);
        let sockets: Vec<&Socket> = grants::sockets_of(host, &self.service.id)
            .filter(own)
            .collect();
        let open_now = sockets.iter().any(|s| !s.address.is_loopback());
        let port = sockets.first().map(|s| s.port);
        let Some(port) = port.or_else(|| self.service.ports.first().copied()) else {
            return (false, false);
        };
        let text = self.text.replace("{port}", &port.to_string());
        // What could not be read of the file is not written over.
        let known = host.files.contains_key(&path);
        if !(known && (open_now || files::exists(host, &path))) {
            return (false, false);
        }
        let start = unit.start.as_deref();
        let Some(command) = start.and_then(|s| with_argument(s, &text, self.instead_of)) else {
            return (false, false);
        };
        let written = files::write(
            host,
            draft,
            &path,
            format!(
                "# Written by portcullis: the policy keeps {} on this machine.\n[Service]\nExecStart=\nExecStart={command}\n",
                self.service.name,
            ),
            &format!(
                "{} listens on every address, so only the firewall stands between it and strangers",
                self.service.name
            ),
            &["exposed-to-internet"],
        );
        if open_now && !written {
            draft.note(
                format!(
                    "{} listens beyond this machine although its drop-in says {}: something else sets another address; the firewall keeps strangers out",
                    self.service.name, text
                ),
                Some(format!("systemctl cat {}", self.unit)),
            );
        }
        settled.push(self.unit.to_owned());
        let running = matches!(unit.active.as_str(), "active" | "activating" | "reloading");
        (written, running && written)
    }

    /// The policy admits networks now, so the drop-in of an earlier policy goes.
    fn open(&self, host: &Host, draft: &mut Draft) -> (bool, bool) {
        let path = files::dropin(self.unit);
        if !files::exists(host, &path) {
            return (false, false);
        }
        draft.change(
            format!("the policy lets others reach {}", self.service.name),
            &[],
            Action::RemoveFile { path },
        );
        let unit = host.units.get(self.unit);
        (true, unit.is_some_and(|u| u.active == "active"))
    }
}

/// Sockets of the service that belong to no unit of it: started by hand, by another unit or another manager.
fn outside_units(
    host: &Host,
    service: &'static Service,
    how: &str,
    settled: &[String],
    draft: &mut Draft,
) {
    for socket in grants::sockets_of(host, &service.id) {
        let env = matches!(service.loopback, Some(Loopback::Environment { .. }));
        let own_unit = socket
            .unit
            .as_ref()
            .is_some_and(|unit| service.units.contains(unit));
        let bridge = socket.unit.as_deref() == Some(bridge::SOCKET);
        let done = socket
            .unit
            .as_ref()
            .is_some_and(|unit| settled.contains(unit));
        let elsewhere = socket.address.is_loopback() || socket.container.is_some() || bridge;
        if elsewhere || done || (env && own_unit) {
            continue;
        }
        let who = match &socket.unit {
            Some(unit) => format!("{} ({})", service.name, clean(unit)),
            None => service.name.clone(),
        };
        draft.note(
            format!(
                "{who} listens on {}:{}; the firewall keeps strangers out, and this makes it listen on loopback only",
                socket.address, socket.port
            ),
            Some(how.replace("{port}", &socket.port.to_string())),
        );
    }
}

/// The host part of `HOST`, `HOST:PORT`, `http://HOST:PORT`, `[V6]:PORT`. Ollama takes an empty host for
/// its default, which is loopback; a bare port or anything odd is not taken for loopback.
fn is_loopback(value: &str) -> bool {
    let host = host_of(value);
    match host {
        "" => port_of(value).is_none(),
        "localhost" => true,
        _ => host
            .parse::<IpAddr>()
            .is_ok_and(|a| a.to_canonical().is_loopback()),
    }
}

fn host_of(value: &str) -> &str {
    let authority = authority(value);
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        // More than one colon without brackets is a bare IPv6 address.
        None if authority.matches(':').count() == 1 => authority.split(':').next().unwrap_or(""),
        None => authority,
    }
}

fn port_of(value: &str) -> Option<u16> {
    let authority = authority(value);
    let after = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once("]:")?.1,
        None if authority.matches(':').count() == 1 => authority.split_once(':')?.1,
        None => return None,
    };
    after.parse().ok().filter(|port| *port != 0)
}

fn authority(value: &str) -> &str {
    let value = value.trim().trim_matches('"');
    let rest = value.split_once("://").map_or(value, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &str, loopback: bool, port: Option<u16>) {
        assert_eq!(
            (is_loopback(value), port_of(value)),
            (loopback, port),
            "{value:?}"
        );
    }

    #[test]
    fn where_ollama_host_listens() {
        check("127.0.0.1:11434", true, Some(11434));
        check("127.0.0.1", true, None);
        check("localhost:8080", true, Some(8080));
        check("http://127.0.0.1:11434/", true, Some(11434));
        check("[::1]:11434", true, Some(11434));
        check("::1", true, None);
        check("::ffff:127.0.0.1", true, None);
        check("", true, None);
        check("0.0.0.0", false, None);
        check("0.0.0.0:11434", false, Some(11434));
        check(":11434", false, Some(11434));
        check("[::]:11434", false, Some(11434));
        check("::", false, None);
        check("192.168.1.5:11434", false, Some(11434));
        check("http://0.0.0.0:80", false, Some(80));
        check("127.0.0.1.evil.example", false, None);
    }
}
