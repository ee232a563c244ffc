//! Reads the machine into a [`Host`]: one room for each source, all independent, none able to
//! make the whole fail. What a room could not see becomes a line of [`Host::unseen`].
//!
//! Nothing is changed by looking: no module is loaded on purpose, no table made, no file written.
//! Everything that is read is bounded in size, everything that is waited for in time.

mod arguments;
mod disk;
mod docker;
mod facts;
mod fail2ban;
mod gaps;
mod http;
mod pickle;
mod rules;
mod snapshot;
mod sockets;
mod sshd;
mod start;
mod systemd;
mod ufw;

pub(crate) use fail2ban::does as fail2ban_does;
pub use snapshot::{SnapshotError, from_snapshot, snapshot};

use disk::Disk;
use gaps::{Gaps, words};
use kernel::{Processes, Runtime};
use portcullis_core::host::{Engine, Fail2ban, HOST_SCHEMA, Host, Neighbour, Socket, Uncertain};
use reach::Net;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

/// How to look. The default looks at this machine.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder in place of `/` for the settings files that are read. With another than `/` no
    /// program is run: it would tell about another host.
    pub root: PathBuf,
    /// Sockets of container engines; `None`: the usual places, `DOCKER_HOST` when it names a
    /// unix socket, and those of rootless engines.
    pub engine_sockets: Option<Vec<PathBuf>>,
    /// Time that each container engine gets for all its answers together; Podman gets some more, since
    /// systemd starts it when it is asked.
    pub engine_patience: Duration,
    /// fail2ban's socket; `None`: as its settings say.
    pub fail2ban_socket: Option<PathBuf>,
    /// Time that fail2ban's server gets for all its answers together.
    pub fail2ban_patience: Duration,
    /// Who is asked for the packet filter's rules.
    pub rules_from: RulesFrom,
}

/// Who is asked for the packet filter's rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RulesFrom {
    /// The kernel; the tools only when its answer is not understood.
    #[default]
    Kernel,
    /// `nft`, `iptables-save` and their kin: a second opinion.
    Tools,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
            engine_sockets: None,
            engine_patience: Duration::from_secs(2),
            fail2ban_socket: None,
            fail2ban_patience: Duration::from_secs(2),
            rules_from: RulesFrom::default(),
        }
    }
}

/// Observes the machine this runs on. Never fails: what cannot be read is in `unseen`.
pub fn observe() -> Host {
    observe_with(&Options::default())
}

/// Only fail2ban, as it is on this machine; `None` when it is not installed.
pub fn observe_fail2ban() -> Option<Fail2ban> {
    let disk = Disk::new(Path::new("/"));
    let given = fail2ban::Given {
        socket: None,
        patience: Options::default().fail2ban_patience,
        systemd: false,
    };
    fail2ban::read(&disk, &given).0
}

/// Observes as told. Never fails: what cannot be read is in `unseen`.
pub fn observe_with(options: &Options) -> Host {
    let disk = Disk::new(&options.root);
    let systemd = disk.is_real() && systemd::booted(&disk);
    let mut gaps = Gaps::default();
    let mut host = Host {
        schema: HOST_SCHEMA,
        portcullis: env!("CARGO_PKG_VERSION").to_owned(),
        taken: facts::now(),
        os: facts::os(&disk),
        privileged: facts::privileged(),
        systemd,
        ..Host::default()
    };
    (host.hostname, host.kernel) = facts::names();
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        // Whatever waits for others starts first, what takes longest before all.
        let settings = scope.spawn(|| (sshd::settings(&disk), Gaps::default()));
        let engines = scope.spawn({
            let disk = &disk;
            // Nobody tells when reading the processes failed.
            let mains = move || told.recv().unwrap_or_default();
            move || engines(disk, options, mains)
        });
        let fail2ban = scope.spawn(|| {
            let given = fail2ban::Given {
                socket: options.fail2ban_socket.as_deref(),
                patience: options.fail2ban_patience,
                systemd,
            };
            fail2ban::read(&disk, &given)
        });
        let rules = scope.spawn(|| rules::read(options.rules_from));
        let packages = scope.spawn(|| facts::packages(&disk));
        let processes = processes(&mut gaps);
        // The thread may have ended, if that failed.
        let _ = tell.send(docker::mains(&processes));
        host.net = net(&mut gaps);
        host.neighbours = neighbours(&host.net, &mut gaps);
        let passwd = disk.text("/etc/passwd").ok().flatten().unwrap_or_default();
        let users = sockets::users(&passwd);
        host.sockets = sockets::of_host(&processes, &host.net, &users, &mut gaps);
        let owners = owners(&host.sockets);
        let names = owners.iter().map(String::as_str);
        host.files = taken(facts::files(&disk, names), &mut gaps);
        let units = scope.spawn(move || match systemd {
            true => systemd::read(&owners),
            false => Default::default(),
        });
        host.web_logs = disk.list("/var/log/nginx", ".log");
        host.ufw = taken(ufw::read(&disk), &mut gaps);

        host.engines = room(
            "container engines",
            engines,
            Uncertain::Endpoints,
            &mut gaps,
        );
        host.compose_files = docker::compose_files(&disk, &host.engines);
        docker::command_line(&mut host.engines, &processes);
        host.nftables_flush = facts::nftables_flush(&disk);
        add_containers(&mut host, &processes, &users, &mut gaps);
        let units = room("systemd units", units, Uncertain::Names, &mut gaps);
        sockets::activated(&mut host.sockets, &processes, &units.listens);
        sockets::sort(&mut host.sockets);
        host.units = units.units;

        let settings = room("sshd", settings, Uncertain::Mechanism, &mut gaps);
        let listening = sshd::listening(&host.sockets, &processes);
        let ports = sshd::ways_in(settings.as_ref(), &listening, &units.listens);
        let variable = std::env::var("SSH_CONNECTION").ok();
        let hint = sshd::own_hint(variable.as_deref());
        let connections = sshd::connections(&processes, hint).unwrap_or_else(|error| {
            gaps.add("sessions", words(&error), Uncertain::Mechanism);
            Vec::new()
        });
        let apart = sshd::apart(&passwd);
        host.sessions = sshd::sessions(&connections, &processes, &ports, hint, apart, &mut gaps);
        host.sshd = sshd::sshd(
            settings.as_ref(),
            &listening,
            &units.listens,
            &host.sessions,
        );

        host.packages = room("packages", packages, Uncertain::Mechanism, &mut gaps);
        let version = |name: &str| host.packages.get(name).cloned().flatten();
        host.fail2ban = room("fail2ban", fail2ban, Uncertain::Mechanism, &mut gaps);
        if let Some(fail2ban) = &mut host.fail2ban {
            fail2ban.python_systemd |= version("python3-systemd").is_some();
            if let Some(version) = version("fail2ban") {
                fail2ban.version = version;
            }
        }
        let before = gaps.unsure();
        host.rules = room("packet filter", rules, Uncertain::Verdicts, &mut gaps);
        let rules_seen = gaps.unsure() == before;
        if let Some(ufw) = &mut host.ufw {
            ufw.version = version("ufw").unwrap_or_default();
            ufw.loaded = rules_seen.then(|| ufw::loaded(&host.rules, ufw.ipv6));
        }
    });
    host.unseen = gaps.finish();
    host
}

fn engines(
    disk: &Disk,
    options: &Options,
    mains: impl FnOnce() -> docker::Mains + Send,
) -> (Vec<Engine>, Gaps) {
    let usual;
    let paths = match &options.engine_sockets {
        Some(paths) => paths,
        None => {
            usual = docker::usual_sockets();
            &usual
        }
    };
    docker::engines(disk, paths, options.engine_patience, mains)
}

/// A room's facts; its gaps go to the others.
fn taken<T>((facts, more): (T, Gaps), gaps: &mut Gaps) -> T {
    gaps.extend(more);
    facts
}

/// The facts of a room that was looked at by a thread of its own. Even a fault of this program
/// there is only a gap.
fn room<T: Default>(
    what: &str,
    thread: ScopedJoinHandle<'_, (T, Gaps)>,
    uncertain: Uncertain,
    gaps: &mut Gaps,
) -> T {
    match thread.join() {
        Ok(facts) => taken(facts, gaps),
        Err(_) => {
            gaps.add(what, "reading it failed: a fault of portcullis", uncertain);
            T::default()
        }
    }
}

fn processes(gaps: &mut Gaps) -> Processes {
    match kernel::processes() {
        Ok(processes) => {
            for why in &processes.unseen {
                gaps.add("processes", why.clone(), Uncertain::Names);
            }
            processes
        }
        Err(error) => {
            gaps.add("processes", words(&error), Uncertain::Names);
            Processes::default()
        }
    }
}

fn net(gaps: &mut Gaps) -> Net {
    kernel::net().unwrap_or_else(|error| {
        gaps.add(
            "links, addresses and routes",
            words(&error),
            Uncertain::Verdicts,
        );
        Net::default()
    })
}

/// Who is on the links. No verdict depends on it.
fn neighbours(net: &Net, gaps: &mut Gaps) -> Vec<Neighbour> {
    let found = kernel::neighbours().unwrap_or_else(|error| {
        gaps.add("neighbours", words(&error), Uncertain::Names);
        Vec::new()
    });
    let link = |index: u32| net.interfaces.iter().find(|link| link.index == index);
    let hex = |bytes: &[u8]| {
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(":")
    };
    found
        .into_iter()
        .map(|n| Neighbour {
            device: link(n.oif).map_or_else(|| format!("if{}", n.oif), |link| link.name.clone()),
            address: n.address,
            link_address: (!n.link_address.is_empty()).then(|| hex(&n.link_address)),
            permanent: n.permanent,
            router: n.router,
            proxy: n.proxy,
        })
        .collect()
}

/// The system's units that own a listening socket.
fn owners(sockets: &[Socket]) -> BTreeSet<String> {
    sockets
        .iter()
        .filter_map(|socket| socket.unit.as_deref())
        .filter(|unit| unit.ends_with(".service") && !unit.contains('/'))
        .map(str::to_owned)
        .collect()
}

/// What runs inside containers, and what no engine told about.
fn add_containers(host: &mut Host, processes: &Processes, users: &sockets::Users, gaps: &mut Gaps) {
    let pids: Vec<(u32, String)> = host
        .engines
        .iter()
        .flat_map(|engine| &engine.containers)
        .filter_map(|container| Some((container.pid?, container.id.clone())))
        .collect();
    let inside = sockets::of_containers(processes, &pids, users, gaps);
    expose(&mut host.engines, &inside);
    host.sockets.extend(inside);
    bridges(&mut host.engines, &host.net);
    let known: BTreeSet<&str> = host
        .engines
        .iter()
        .flat_map(|engine| &engine.containers)
        .map(|container| container.id.as_str())
        .collect();
    let own = processes
        .get(std::process::id())
        .and_then(|process| process.container.as_ref())
        .map(|container| container.id.as_str());
    let mut strangers = BTreeMap::<Runtime, usize>::new();
    for (runtime, id) in sockets::containers_seen(processes) {
        if !known.contains(id.as_str()) && own != Some(id.as_str()) {
            *strangers.entry(runtime).or_default() += 1;
        }
    }
    for (runtime, count) in strangers {
        let name = match runtime {
            Runtime::Docker => "Docker",
            Runtime::Podman => "Podman",
            Runtime::Containerd => "containerd",
            Runtime::Kubernetes => "Kubernetes",
            Runtime::Lxc => "LXC",
            Runtime::Machined => "systemd-nspawn or a virtual machine",
        };
        gaps.add(
            "containers",
            format!("{count} running containers of {name} that no engine told about"),
            Uncertain::Endpoints,
        );
    }
}

/// A container exposes what its processes listen on, whatever its image declares.
fn expose(engines: &mut [Engine], sockets: &[Socket]) {
    let mut ports = BTreeMap::<&str, BTreeSet<_>>::new();
    for socket in sockets {
        if let Some(id) = &socket.container
            && !socket.address.is_loopback()
        {
            ports
                .entry(id)
                .or_default()
                .insert((socket.proto, socket.port));
        }
    }
    for container in engines.iter_mut().flat_map(|engine| &mut engine.containers) {
        if let Some(ports) = ports.get(container.id.as_str()) {
            container.exposed.extend(ports);
            container.exposed.sort();
            container.exposed.dedup();
        }
    }
}

/// Names the Linux bridge of networks whose engine does not: the one with an address in it.
fn bridges(engines: &mut [Engine], net: &Net) {
    let exists = |name: &str| net.interfaces.iter().any(|link| link.name == name);
    for network in engines.iter_mut().flat_map(|engine| &mut engine.networks) {
        if network.driver != "bridge" || network.bridge.as_deref().is_some_and(exists) {
            continue;
        }
        let found = net.interfaces.iter().find(|link| {
            link.kind.as_deref() == Some("bridge")
                && link.addresses.iter().any(|address| {
                    let addr = address.net.addr();
                    network.subnets.iter().any(|subnet| subnet.contains(&addr))
                })
        });
        if let Some(link) = found {
            network.bridge = Some(link.name.clone());
        }
    }
}
