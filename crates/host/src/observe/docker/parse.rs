//! The engines' JSON. Field by field and forgiving: one field of an unexpected shape does not
//! take the rest with it. Docker Engine API v1.24 to v1.51, and Podman's copy of it.

use crate::observe::http::Said;
use portcullis_core::host::{Compose, Container, ContainerAddress, Engine, Network, Publish};
use reach::Proto;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest text that is kept of a name, an image or a path, in characters.
const MAX_TEXT: usize = 4096;

/// An engine, and what belongs to its reading only.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub engine: Engine,
    /// `ID` of GET /info.
    pub id: Option<String>,
    pub unseen: Vec<String>,
}

fn text(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    text.chars().take(MAX_TEXT).collect()
}

/// Text, unless it is missing or empty.
fn some_text(value: &Value) -> Option<String> {
    Some(text(value)).filter(|text| !text.is_empty())
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn proto(name: &str) -> Option<Proto> {
    match name {
        "tcp" => Some(Proto::Tcp),
        "udp" => Some(Proto::Udp),
        "sctp" => Some(Proto::Sctp),
        _ => None,
    }
}

/// A port as a number or in digits; 0 is none.
fn port(value: &Value) -> Option<u16> {
    let number = match value {
        Value::Number(number) => u16::try_from(number.as_u64()?).ok()?,
        Value::String(text) => text.parse().ok()?,
        _ => return None,
    };
    Some(number).filter(|port| *port != 0)
}

/// `80/tcp`
fn port_proto(key: &str) -> Option<(Proto, u16)> {
    let (number, name) = key.split_once('/').unwrap_or((key, "tcp"));
    let number: u16 = number.parse().ok().filter(|port| *port != 0)?;
    Some((proto(name)?, number))
}

/// A container id: it becomes part of a request, so it has to be one.
fn id(value: &Value) -> Option<String> {
    let id = value.as_str()?;
    let fits = (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
    fits.then(|| id.to_owned())
}

/// What the head of any of Docker's answers tells as well as /version does; `None` when that has to
/// be asked.
pub(super) fn told_by_head(said: &Said) -> Option<Found> {
    let (name, version) = said.server.split_once('/')?;
    let kind = match name {
        "Docker" => "docker",
        "Libpod" => "podman",
        _ => return None,
    };
    let version = version.split(' ').next().filter(|v| !v.is_empty())?;
    Some(Found {
        engine: Engine {
            kind: kind.to_owned(),
            version: version.chars().take(MAX_TEXT).collect(),
            ..Engine::default()
        },
        ..Found::default()
    })
}

/// GET /version
pub(super) fn engine(version: &Value) -> Found {
    let podman = items(&version["Components"]).any(|component| {
        text(&component["Name"])
            .to_ascii_lowercase()
            .contains("podman")
    });
    Found {
        engine: Engine {
            kind: if podman { "podman" } else { "docker" }.to_owned(),
            version: text(&version["Version"]),
            ..Engine::default()
        },
        ..Found::default()
    }
}

/// Whether [`info`] would add nothing for a Docker of root's: one that is too old to have another
/// firewall backend than iptables (before 28.1), and is in no swarm. Who joins a swarm is given a network
/// of its own on every node.
pub(super) fn info_tells_nothing(found: &Found, networks: &Value) -> bool {
    let major = found.engine.version.split('.').next();
    let old = major
        .and_then(|major| major.parse::<u32>().ok())
        .is_some_and(|major| (1..28).contains(&major));
    let of_swarm = |network: &Value| {
        network["Scope"] != "local"
            || network["Ingress"] != false
            || network["Name"] == "docker_gwbridge"
    };
    found.engine.kind == "docker" && old && networks.is_array() && !items(networks).any(of_swarm)
}

/// GET /info
pub(super) fn info(info: &Value, found: &mut Found) {
    found.id = some_text(&info["ID"]);
    found.engine.firewall_backend = some_text(&info["FirewallBackend"]["Driver"]);
    found.engine.root_dir = some_text(&info["DockerRootDir"]);
    found.engine.swarm = info["Swarm"]["LocalNodeState"] == "active";
    found.engine.rootless = info["Rootless"].as_bool().unwrap_or(false)
        || items(&info["SecurityOptions"]).any(|option| text(option) == "name=rootless");
}

/// GET /networks
pub(super) fn networks(list: &Value, found: &mut Found) {
    let mut networks: Vec<Network> = items(list).map(network).collect();
    networks.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    // Where ports of the default bridge are published unless said otherwise.
    found.engine.default_ip = items(list)
        .filter(|network| network["Options"]["com.docker.network.bridge.default_bridge"] == "true")
        .find_map(|network| {
            some_text(&network["Options"]["com.docker.network.bridge.host_binding_ipv4"])
        })
        .filter(|address| address != "0.0.0.0");
    found.engine.networks = networks;
}

fn network(json: &Value) -> Network {
    let options = &json["Options"];
    let id = text(&json["Id"]);
    let driver = text(&json["Driver"]);
    let bridge = some_text(&options["com.docker.network.bridge.name"])
        // libnetwork's name for a bridge without a given one.
        .or_else(|| {
            (driver == "bridge" && id.len() >= 12 && id.bytes().all(|b| b.is_ascii_hexdigit()))
                .then(|| format!("br-{}", &id[..12]))
        });
    let mut subnets: Vec<ipnet::IpNet> = items(&json["IPAM"]["Config"])
        .filter_map(|config| config["Subnet"].as_str()?.parse().ok())
        .collect();
    subnets.sort();
    Network {
        name: text(&json["Name"]),
        bridge,
        subnets,
        internal: json["Internal"].as_bool().unwrap_or(false),
        gateway_mode_ipv4: some_text(&options["com.docker.network.bridge.gateway_mode_ipv4"]),
        gateway_mode_ipv6: some_text(&options["com.docker.network.bridge.gateway_mode_ipv6"]),
        id,
        driver,
    }
}

/// GET /containers/json
pub(super) fn containers(list: &Value, found: &mut Found) {
    let mut containers: Vec<Container> = items(list).filter_map(container).collect();
    containers.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    let unnamed = items(list).count() - containers.len();
    if unnamed > 0 {
        found
            .unseen
            .push(format!("{unnamed} containers without a usable id"));
    }
    found.engine.containers = containers;
}

fn container(json: &Value) -> Option<Container> {
    let mut published = Vec::new();
    let mut exposed = Vec::new();
    for entry in items(&json["Ports"]) {
        let (Some(private), Some(proto)) =
            (port(&entry["PrivatePort"]), proto(&text(&entry["Type"])))
        else {
            continue;
        };
        exposed.push((proto, private));
        if let Some(public) = port(&entry["PublicPort"]) {
            publish(&mut published, proto, &text(&entry["IP"]), public, private);
        }
    }
    let mut container = Container {
        id: id(&json["Id"])?,
        name: items(&json["Names"])
            .map(text)
            // `/other/alias` is a legacy link's name.
            .find(|name| !name.trim_start_matches('/').contains('/'))
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned(),
        image: text(&json["Image"]),
        pid: None,
        network_mode: text(&json["HostConfig"]["NetworkMode"]),
        addresses: addresses(&json["NetworkSettings"]["Networks"]),
        published,
        exposed,
        compose: compose(&json["Labels"]),
        engine_sockets: Vec::new(),
    };
    engine_sockets(json, &mut container);
    order(&mut container);
    Some(container)
}

/// Whether Docker's list told of a container all that [`inspect`] would but for its process. It leaves out what
/// an image declares where the network is not a bridge, and gives the id in place of a name that went to
/// another image.
pub(super) fn told_whole(container: &Container) -> bool {
    let hex = |text: &str| text.len() >= 12 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let named = !container.image.starts_with("sha256:") && !hex(&container.image);
    named && !container.exposed.is_empty() && !container.addresses.is_empty()
}

/// GET /containers/ID/json, added to what the list told.
pub(super) fn inspect(json: &Value, container: &mut Container) {
    container.pid = json["State"]["Pid"]
        .as_u64()
        .and_then(|pid| u32::try_from(pid).ok())
        .filter(|pid| *pid != 0);
    let config = &json["Config"];
    if let Some(image) = some_text(&config["Image"]) {
        container.image = image;
    }
    if let Some(mode) = some_text(&json["HostConfig"]["NetworkMode"]) {
        container.network_mode = mode;
    }
    container
        .addresses
        .extend(addresses(&json["NetworkSettings"]["Networks"]));
    container
        .exposed
        .extend(entries(&config["ExposedPorts"]).filter_map(|(key, _)| port_proto(key)));
    for (key, bindings) in entries(&json["NetworkSettings"]["Ports"]) {
        let Some((proto, private)) = port_proto(key) else {
            continue;
        };
        container.exposed.push((proto, private));
        for binding in items(bindings) {
            if let Some(public) = port(&binding["HostPort"]) {
                let ip = text(&binding["HostIp"]);
                publish(&mut container.published, proto, &ip, public, private);
            }
        }
    }
    if container.compose.is_none() {
        container.compose = compose(&config["Labels"]);
    }
    engine_sockets(json, container);
    order(container);
}

/// Mounts by which a container can talk to an engine: its socket, or a folder that holds it.
fn engine_sockets(json: &Value, container: &mut Container) {
    for mount in items(&json["Mounts"]) {
        let source = text(&mount["Source"]);
        let path = source.trim_end_matches('/');
        let socket = path.ends_with("/docker.sock")
            || path.ends_with("/podman.sock")
            || path.ends_with("/containerd.sock");
        let folder = matches!(
            path,
            "" | "/run" | "/var/run" | "/run/podman" | "/run/containerd"
        ) && !source.is_empty();
        if (socket || folder) && !container.engine_sockets.contains(&source) {
            container.engine_sockets.push(source);
        }
    }
}

fn order(container: &mut Container) {
    container.engine_sockets.sort();
    container.published.sort();
    container.published.dedup();
    container.exposed.sort();
    container.exposed.dedup();
    container
        .addresses
        .sort_by(|a, b| (&a.network, a.address).cmp(&(&b.network, b.address)));
    container.addresses.dedup();
}

/// Adds a published port. No address, or one that is none, means all of them: never nothing.
fn publish(published: &mut Vec<Publish>, proto: Proto, ip: &str, public: u16, private: u16) {
    let all = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    let given = ip.trim_matches(['[', ']']).parse::<IpAddr>();
    let addresses = match &given {
        Ok(address) => std::slice::from_ref(address),
        Err(_) => &all,
    };
    for address in addresses {
        published.push(Publish {
            proto,
            host_ip: *address,
            host_port: public,
            container_port: private,
        });
    }
}

fn addresses(networks: &Value) -> Vec<ContainerAddress> {
    let mut found = Vec::new();
    for (name, network) in entries(networks) {
        for key in ["IPAddress", "GlobalIPv6Address"] {
            let Some(address) = network[key].as_str().and_then(|a| a.parse().ok()) else {
                continue;
            };
            found.push(ContainerAddress {
                network: name.chars().take(MAX_TEXT).collect(),
                address,
            });
        }
    }
    found
}

/// Only these labels are kept: others may hold secrets.
fn compose(labels: &Value) -> Option<Compose> {
    let label = |name: &str| {
        some_text(&labels[format!("com.docker.compose.{name}")])
            .or_else(|| some_text(&labels[format!("io.podman.compose.{name}")]))
    };
    Some(Compose {
        project: label("project")?,
        service: label("service").unwrap_or_default(),
        files: label("project.config_files")
            .unwrap_or_default()
            .split(',')
            .filter(|file| !file.is_empty())
            .map(str::to_owned)
            .collect(),
    })
}

/// daemon.json
pub(super) fn settings(json: &Value, engine: &mut Engine) {
    engine.iptables = json["iptables"].as_bool();
    engine.ip6tables = json["ip6tables"].as_bool();
    engine.userland_proxy = json["userland-proxy"].as_bool();
    engine.default_ip = some_text(&json["ip"]).or(engine.default_ip.take());
    engine.default_network_ip = some_text(
        &json["default-network-opts"]["bridge"]["com.docker.network.bridge.host_binding_ipv4"],
    );
    engine.tls_verify = json["tlsverify"].as_bool();
    engine.root_dir = engine
        .root_dir
        .take()
        .or_else(|| some_text(&json["data-root"]));
}

/// What dockerd's command line tells, where its settings and its API did not.
pub(super) fn command_line(arguments: &[String], engine: &mut Engine) {
    let tls = |a: &String| matches!(a.as_str(), "--tlsverify" | "--tlsverify=true");
    let tls = arguments.iter().any(tls);
    engine.tls_verify = engine.tls_verify.or(Some(tls));
    let mut rest = arguments.iter();
    while engine.root_dir.is_none()
        && let Some(argument) = rest.next()
    {
        engine.root_dir = match argument.strip_prefix("--data-root") {
            Some("") => rest.next().cloned(),
            Some(more) => more.strip_prefix('=').map(str::to_owned),
            None => None,
        };
    }
}

/// Members of group `docker`, from the text of /etc/group.
pub(super) fn members(group: &str) -> Vec<String> {
    let line = group.lines().find_map(|line| line.strip_prefix("docker:"));
    let mut names: Vec<String> = line
        .and_then(|line| line.rsplit(':').next())
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty() && *name != "root")
        .map(|name| name.chars().take(64).collect())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests;
