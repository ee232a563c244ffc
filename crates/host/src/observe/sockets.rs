//! Who listens: sockets joined to process, unit and container, on the host and in containers.

use super::arguments;
use super::gaps::{Gaps, words};
use super::systemd::Listen;
use kernel::{Processes, Runtime};
use portcullis_core::host::{Process, Socket, Uncertain};
use reach::{Net, Proto};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Most network namespaces of containers that are entered.
const MAX_NAMESPACES: usize = 1024;

/// User names by id, from passwd(5).
pub(super) type Users = BTreeMap<u32, String>;

/// The sockets of this host.
pub(super) fn of_host(
    processes: &Processes,
    net: &Net,
    users: &Users,
    gaps: &mut Gaps,
) -> Vec<Socket> {
    match kernel::sockets() {
        Ok(sockets) => sockets
            .into_iter()
            .map(|socket| join(socket, processes, Some(net), users, None))
            .collect(),
        Err(error) => {
            gaps.add("sockets", words(&error), Uncertain::Endpoints);
            Vec::new()
        }
    }
}

/// A container's network namespace.
struct Namespace {
    /// A process in it.
    pid: u32,
    /// The containers that share it.
    containers: BTreeSet<String>,
}

/// The sockets inside the containers' own network namespaces. `engines` gives the main process
/// of containers whose cgroup does not tell (pid, container id).
pub(super) fn of_containers(
    processes: &Processes,
    engines: &[(u32, String)],
    users: &Users,
    gaps: &mut Gaps,
) -> Vec<Socket> {
    let by_pid: BTreeMap<u32, &str> = engines
        .iter()
        .map(|(pid, id)| (*pid, id.as_str()))
        .collect();
    let own = processes
        .get(std::process::id())
        .and_then(|process| process.net_ns);
    let Some(own) = own else {
        gaps.add(
            "containers",
            "the network namespaces of processes cannot be read",
            Uncertain::Endpoints,
        );
        return Vec::new();
    };
    let mut namespaces = BTreeMap::<u64, Namespace>::new();
    let mut hidden = 0usize;
    for process in processes.iter() {
        let container = by_pid
            .get(&process.pid)
            .copied()
            .or(process.container.as_ref().map(|c| c.id.as_str()));
        let Some(container) = container else {
            continue;
        };
        match process.net_ns {
            Some(ns) if ns == own => {}
            Some(ns) => {
                namespaces
                    .entry(ns)
                    .or_insert_with(|| Namespace {
                        pid: process.pid,
                        containers: BTreeSet::new(),
                    })
                    .containers
                    .insert(container.to_owned());
            }
            None => hidden += 1,
        }
    }
    if hidden > 0 {
        gaps.add(
            "containers",
            format!("{hidden} processes in containers may not be looked at"),
            Uncertain::Endpoints,
        );
    }
    if namespaces.len() > MAX_NAMESPACES {
        gaps.add(
            "containers",
            format!(
                "{} network namespaces of containers, of which only {MAX_NAMESPACES} were read",
                namespaces.len()
            ),
            Uncertain::Endpoints,
        );
    }
    let mut sockets = Vec::new();
    let pids: Vec<u32> = namespaces
        .values()
        .take(MAX_NAMESPACES)
        .map(|namespace| namespace.pid)
        .collect();
    for (namespace, found) in namespaces.values().zip(kernel::sockets_in(&pids)) {
        match found {
            Ok(found) => {
                // Of a shared namespace (a pod) the first container stands for all, unless the
                // socket's own process tells.
                let container = namespace.containers.first().map(String::as_str);
                sockets.extend(
                    found
                        .into_iter()
                        .map(|socket| join(socket, processes, None, users, container)),
                );
            }
            // The container ended meanwhile.
            Err(kernel::Error::File { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => gaps.add("containers", words(&error), Uncertain::Endpoints),
        }
    }
    sockets
}

/// Containers that processes run in: (runtime, id).
pub(super) fn containers_seen(processes: &Processes) -> BTreeSet<(Runtime, String)> {
    processes
        .iter()
        .filter_map(|process| process.container.as_ref())
        .map(|container| (container.runtime, container.id.clone()))
        .collect()
}

fn join(
    socket: kernel::Socket,
    processes: &Processes,
    net: Option<&Net>,
    users: &Users,
    namespace_of: Option<&str>,
) -> Socket {
    let owners = processes.owners(socket.inode);
    // systemd keeps the sockets that it hands over; the service says more.
    let owner = owners
        .iter()
        .find(|process| process.pid != 1)
        .or(owners.first())
        .copied();
    let device = socket.device.map(|index| {
        net.and_then(|net| net.interfaces.iter().find(|link| link.index == index))
            .map_or_else(|| format!("if{index}"), |link| link.name.clone())
    });
    Socket {
        proto: socket.proto,
        address: socket.address,
        port: socket.port,
        v6only: socket.v6only,
        device,
        uid: Some(socket.uid),
        process: owner.map(|process| Process {
            pid: process.pid,
            comm: process.comm.clone(),
            exe: process.exe.clone(),
            user: Some(
                users
                    .get(&process.uid)
                    .cloned()
                    .unwrap_or_else(|| process.uid.to_string()),
            ),
            script: arguments::script(&process.cmdline),
            secrets: arguments::secrets(&process.cmdline),
        }),
        unit: owner
            .and_then(|process| process.unit.as_ref())
            .map(unit_name),
        container: owner
            .and_then(|process| process.container.as_ref())
            .map(|container| container.id.clone())
            .or(namespace_of.map(str::to_owned)),
        in_container_netns: namespace_of.is_some(),
    }
}

/// A user's own unit is not the system's unit of the same name, so it gets its manager's name
/// in front.
fn unit_name(unit: &kernel::Unit) -> String {
    match unit.user {
        None => unit.name.clone(),
        Some(uid) => format!("user@{uid}.service/{}", unit.name),
    }
}

/// Sockets that systemd listens on belong to the `.socket` unit.
pub(super) fn activated(sockets: &mut [Socket], processes: &Processes, listens: &[Listen]) {
    if listens.is_empty() || processes.get(1).is_none() {
        return;
    }
    for socket in sockets.iter_mut().filter(|s| !s.in_container_netns) {
        let found = listens.iter().find(|listen| {
            listen.port == socket.port
                && listen.stream == (socket.proto == Proto::Tcp)
                && match listen.address {
                    None => socket.address.is_unspecified(),
                    Some(address) => address == socket.address.to_canonical(),
                }
        });
        if let Some(listen) = found {
            socket.unit = Some(listen.unit.clone());
        }
    }
}

/// Names of passwd(5) by user id; of several, the first.
pub(super) fn users(passwd: &str) -> Users {
    let mut users = Users::new();
    for line in passwd.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(_), Some(Ok(uid))) = (
            fields.next(),
            fields.next(),
            fields.next().map(str::parse::<u32>),
        ) {
            users.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    users
}

/// A fixed order.
pub(super) fn sort(sockets: &mut [Socket]) {
    let key = |socket: &Socket| {
        (
            socket.in_container_netns,
            socket
                .container
                .clone()
                .filter(|_| socket.in_container_netns),
            socket.proto,
            socket.port,
            matches!(socket.address, IpAddr::V6(_)),
            socket.address,
            socket.process.as_ref().map(|process| process.pid),
            socket.device.clone(),
        )
    };
    sockets.sort_by_cached_key(key);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names() {
        let users =
            users("root:x:0:0:r:/root:/bin/sh\ntoor:x:0:0\nbroken\na:b:c\nollama:x:998:998:::\n");
        let pairs: Vec<_> = users.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(pairs, ["0=root", "998=ollama"]);
    }

    #[test]
    fn a_unit_of_a_user_is_told_from_the_systems() {
        let unit = |user| kernel::Unit {
            name: "ollama.service".to_owned(),
            user,
        };
        assert_eq!(unit_name(&unit(None)), "ollama.service");
        assert_eq!(
            unit_name(&unit(Some(1000))),
            "user@1000.service/ollama.service"
        );
    }

    #[test]
    fn own_listener_is_found_with_its_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let processes = kernel::processes().unwrap();
        let net = kernel::net().unwrap();
        let mut gaps = Gaps::default();
        let sockets = of_host(&processes, &net, &Users::new(), &mut gaps);
        let found: Vec<_> = sockets.iter().filter(|s| s.port == port).collect();
        assert_eq!(found.len(), 1);
        let process = found[0].process.as_ref().unwrap();
        assert_eq!(process.pid, std::process::id());
        assert!(!found[0].in_container_netns);
        assert!(gaps.list().is_empty());
    }
}
