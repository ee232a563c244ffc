//! Where containers' ports are published: the exact change of the source, besides the guard that closes
//! the port meanwhile.

use super::Options;
use super::{Draft, grants::Grant};
use crate::catalog::{self, Sight};
use crate::compose::{Edit, Entry, LOOPBACK};
use crate::host::{Compose, Container, Engine, Host, Publish};
use crate::plan::Action;
use crate::text::clean;
use reach::Proto;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Ports that containers publish to the world and the policy does not allow, and what the guard cannot do for
/// containers.
pub(super) fn plan(host: &Host, grants: &[Grant], options: &Options, draft: &mut Draft) {
    for engine in &host.engines {
        for container in &engine.containers {
            note_beyond(engine, container, grants, draft);
        }
    }
    let mut edits: BTreeMap<&str, BTreeSet<Edit>> = BTreeMap::new();
    let mut again: BTreeSet<(&str, &str)> = BTreeSet::new();
    for engine in &host.engines {
        let mut beyond = false;
        for container in &engine.containers {
            for publish in unwanted(container, grants) {
                beyond = true;
                let source = source(host, container, publish);
                if options.edit_compose
                    && let Some((file, entry)) = source
                    && let Some(edit) = editable(entry, grants)
                {
                    edits.entry(file).or_default().insert(edit.clone());
                    again.insert((file, &entry.service));
                    continue;
                }
                note_publish(container, publish, source, grants, draft);
            }
        }
        if beyond {
            note_defaults(engine, draft);
        }
    }
    for (file, edits) in edits {
        let Some(known) = host.compose_files.get(file) else {
            continue;
        };
        draft.change(
            "the source is mended too: these ports are published on loopback from then on",
            &["docker-past-ufw"],
            Action::EditCompose {
                path: file.to_owned(),
                sha256: known.sha256.clone(),
                edits: edits.into_iter().collect(),
            },
        );
    }
    for (file, service) in again {
        draft.note(
            format!(
                "the running container of service {} keeps its ports until it is made anew; the guard closes them meanwhile",
                clean(service)
            ),
            Some(remake(file, service)),
        );
    }
}

/// Published ports of a container that no grant is for, each once.
fn unwanted<'a>(
    container: &'a Container,
    grants: &'a [Grant],
) -> impl Iterator<Item = &'a Publish> {
    let mut seen: Vec<(Proto, u16, u16)> = Vec::new();
    container.published.iter().filter(move |publish| {
        let key = (publish.proto, publish.host_port, publish.container_port);
        let granted = granted(grants, publish.proto, publish.host_port);
        // Docker lists the IPv4 and the IPv6 side of one publication.
        if publish.host_ip.is_loopback() || granted || seen.contains(&key) {
            return false;
        }
        seen.push(key);
        true
    })
}

fn granted(grants: &[Grant], proto: Proto, port: u16) -> bool {
    grants.iter().any(|g| (g.proto, g.port) == (proto, port))
}

/// The entry of a compose file that publishes a port, as far as the file could be read.
pub(crate) fn source<'a>(
    host: &'a Host,
    container: &'a Container,
    publish: &Publish,
) -> Option<(&'a str, &'a Entry)> {
    let compose = container.compose.as_ref()?;
    compose.files.iter().find_map(|file| {
        let entries = &host.compose_files.get(file)?.ports;
        let mut own = entries.iter().filter(|e| e.service == compose.service);
        let exact =
            |e: &&Entry| e.publishes(publish.proto, publish.host_port, publish.container_port);
        // Where none is, one that could not be read (variables) may be the one.
        let entry = own
            .clone()
            .find(exact)
            .or_else(|| own.find(|e| e.left.is_some() && e.published.is_none()))?;
        Some((file.as_str(), entry))
    })
}

/// The entry's change, unless it would also take a port away that the policy allows.
fn editable<'a>(entry: &'a Entry, grants: &[Grant]) -> Option<&'a Edit> {
    let (first, last) = entry.published?;
    if (first..=last).any(|port| granted(grants, entry.proto, port)) {
        return None;
    }
    entry.change.as_ref()
}

fn remake(file: &str, service: &str) -> String {
    format!("docker compose -f {} up -d {}", clean(file), clean(service))
}

fn note_beyond(engine: &Engine, container: &Container, grants: &[Grant], draft: &mut Draft) {
    let name = clean(&container.name);
    for address in &container.addresses {
        let network = engine.networks.iter().find(|n| n.name == address.network);
        if let Some(network) = network
            && matches!(network.driver.as_str(), "macvlan" | "ipvlan")
        {
            draft.note(
                format!(
                    "container {name} has {} by a {} network: its packets do not pass this host's packet filter, so no rule here can close its ports",
                    address.address, network.driver
                ),
                Some(format!("docker network disconnect {} {name}", clean(&network.name))),
            );
        }
    }
    for publish in &container.published {
        let limited =
            |g: &Grant| g.rate_limit && (g.proto, g.port) == (publish.proto, publish.host_port);
        if !publish.host_ip.is_loopback() && grants.iter().any(limited) {
            draft.note(
                format!(
                    "{}/{} is published by container {name}: the policy's rate limit holds for the host's own ports only",
                    publish.host_port, publish.proto
                ),
                None,
            );
        }
    }
}

fn note_publish(
    container: &Container,
    publish: &Publish,
    source: Option<(&str, &Entry)>,
    grants: &[Grant],
    draft: &mut Draft,
) {
    let name = clean(&container.name);
    let service = catalog::recognise(Sight {
        image: Some(&container.image),
        port: publish.container_port,
        ..Sight::default()
    })
    .map(|s| format!(" ({})", s.name))
    .unwrap_or_default();
    let head = format!(
        "container {name}{service}, image {}, publishes {}/{} on {}; the guard closes it, and the source is mended",
        clean(&container.image),
        publish.host_port,
        publish.proto,
        everywhere(publish.host_ip),
    );
    let suffix = match publish.proto {
        Proto::Tcp => String::new(),
        other => format!("/{other}"),
    };
    let line = format!(
        "{LOOPBACK}:{}:{}{suffix}",
        publish.host_port, publish.container_port
    );
    let (place, command) = match (source, &container.compose) {
        (Some((file, entry)), compose) => {
            let project = compose.as_ref().map_or("", |c| c.project.as_str());
            let at = format!(
                "in {} line {}, service {} of compose project {}",
                clean(file),
                entry.line,
                clean(&entry.service),
                clean(project)
            );
            in_entry(at, file, entry, grants, &line)
        }
        (None, Some(compose)) => (in_some_file(compose), format!("- \"{line}\"")),
        (None, None) => (
            "in the command that starts it".to_owned(),
            format!("-p {line}"),
        ),
    };
    draft.note(format!("{head} {place}"), Some(command));
}

/// Where and what to change, for an entry that was found.
fn in_entry(
    at: String,
    file: &str,
    entry: &Entry,
    grants: &[Grant],
    line: &str,
) -> (String, String) {
    if let Some(edit) = editable(entry, grants) {
        let mut diff = Vec::new();
        if !edit.old.is_empty() {
            diff.push(format!("- {}", edit.old));
        }
        // An addition stands in front of the key that is there.
        diff.push(format!("+ {}", edit.new.trim().trim_end_matches(',')));
        return (
            format!("{at} (`apply --edit-compose` does it)"),
            diff.join("\n"),
        );
    }
    if entry.host_ip.is_some_and(|ip| ip.is_loopback()) {
        return (
            format!("{at} already: make the container anew"),
            remake(file, &entry.service),
        );
    }
    let why = match (&entry.left, entry.published) {
        (Some(why), _) => why.clone(),
        (None, _) => "the policy allows some of the ports in its range".to_owned(),
    };
    (
        format!("{at}, by hand: {}", clean(&why)),
        format!("- \"{line}\""),
    )
}

fn in_some_file(compose: &Compose) -> String {
    let file = compose
        .files
        .first()
        .map_or_else(|| "its compose file".to_owned(), |f| clean(f));
    format!(
        "in {file}, service {} of compose project {}, under `ports:`",
        clean(&compose.service),
        clean(&compose.project)
    )
}

/// Settings of Docker that make loopback the usual place.
fn note_defaults(engine: &Engine, draft: &mut Draft) {
    if engine.kind != "docker" || engine.rootless {
        return;
    }
    let loopback = |ip: &Option<String>| {
        ip.as_deref()
            .and_then(|ip| ip.parse::<IpAddr>().ok())
            .is_some_and(|ip| ip.is_loopback())
    };
    let mut lines = Vec::new();
    if !loopback(&engine.default_ip) {
        lines.push(format!("\"ip\": \"{LOOPBACK}\""));
    }
    if major(&engine.version).is_none_or(|major| major >= 24)
        && !loopback(&engine.default_network_ip)
    {
        lines.push(format!(
            "\"default-network-opts\": {{\"bridge\": {{\"{BINDING}\": \"{LOOPBACK}\"}}}}"
        ));
    }
    if lines.is_empty() {
        return;
    }
    draft.note(
        "with this in /etc/docker/daemon.json, ports that name no address are published on loopback (for networks made after `systemctl restart docker`)",
        Some(lines.join(",\n")),
    );
}

const BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";

/// `28` of `28.5.2+dfsg1`.
pub(crate) fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

fn everywhere(address: IpAddr) -> String {
    if address.is_unspecified() {
        "every address".to_owned()
    } else {
        address.to_string()
    }
}
