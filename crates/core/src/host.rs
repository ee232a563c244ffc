//! The facts about a host, as `observe` found them: one serialisable value.
//!
//! Everything after observation works from this alone, so an audit of a snapshot file gives the
//! same answer as an audit on the host. A fact that could not be read is absent *and* named in
//! [`Host::unseen`]; absence alone is never evidence that something is closed.
//!
//! All text in here (names, labels, command lines, comments) is untrusted.

use crate::catalog::Identity;
use reach::{Net, Proto, Ruleset};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Version of the snapshot format; raised on every incompatible change.
pub const HOST_SCHEMA: u32 = 1;

/// Everything that was seen of a host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// [`HOST_SCHEMA`] of the writer.
    pub schema: u32,
    /// Version of portcullis that observed.
    pub portcullis: String,
    /// When it was observed, RFC 3339, UTC.
    pub taken: String,
    /// Host name.
    pub hostname: String,
    /// `PRETTY_NAME` of os-release.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Whether the observer had CAP_NET_ADMIN and could read other users' processes.
    pub privileged: bool,
    /// True when PID 1 is systemd (units, timers and drop-ins work).
    pub systemd: bool,
    /// Links, addresses, routes, sysctls.
    pub net: Net,
    /// Who is on the links, and whom this host answers for.
    #[serde(default)]
    pub neighbours: Vec<Neighbour>,
    /// Packet-filter rules of all backends.
    pub rules: Ruleset,
    /// Listening and bound sockets, of the host and of containers.
    pub sockets: Vec<Socket>,
    /// Docker and Podman engines.
    pub engines: Vec<Engine>,
    /// What ports answered when they were asked; empty when nobody asked.
    #[serde(default)]
    pub seen: Vec<Seen>,
    /// UFW; `None` when not installed.
    pub ufw: Option<Ufw>,
    /// fail2ban; `None` when not installed.
    pub fail2ban: Option<Fail2ban>,
    /// sshd; `None` when neither installed nor listening.
    pub sshd: Option<Sshd>,
    /// Who is connected over SSH right now.
    pub sessions: Vec<Session>,
    /// Units that matter here (AI services, fail2ban, ufw, docker, portcullis), by name.
    pub units: BTreeMap<String, Unit>,
    /// Files that portcullis may write, by absolute path. Missing files are listed as `None`.
    pub files: BTreeMap<String, Option<FileFact>>,
    /// Compose files that running containers come from, by absolute path.
    #[serde(default)]
    pub compose_files: BTreeMap<String, ComposeFile>,
    /// The line of /etc/nftables.conf that flushes every table, where nftables.service runs it.
    #[serde(default)]
    pub nftables_flush: Option<String>,
    /// Debian packages that matter, installed version or `None`.
    pub packages: BTreeMap<String, Option<String>>,
    /// Log files of nginx.
    #[serde(default)]
    pub web_logs: Vec<String>,
    /// What could not be read, and what that makes uncertain.
    pub unseen: Vec<Unseen>,
}

impl Host {
    /// Engines that root runs. Those of users answer what their users like, so that no link, network or port is
    /// taken for what they say of it.
    pub fn root_engines(&self) -> impl Iterator<Item = &Engine> {
        self.engines.iter().filter(|engine| !engine.rootless)
    }

    /// The jail of that name that fail2ban runs with.
    pub fn jail(&self, name: &str) -> Option<&Jail> {
        let mut jails = self.fail2ban.iter().flat_map(|f| &f.jails);
        jails.find(|jail| jail.name == name)
    }
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unseen {
    /// What: "packet filter", "docker", "processes of other users".
    pub what: String,
    /// Why, in one sentence.
    pub why: String,
    /// What it makes uncertain.
    pub uncertain: Uncertain,
}

/// What a gap in observation makes uncertain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Uncertain {
    /// Every verdict: rules, links or routes are missing. Nothing may be called closed.
    Verdicts,
    /// The list of endpoints: something may listen that is not shown.
    Endpoints,
    /// Only names and owners.
    Names,
    /// The state of one mechanism (ufw, fail2ban, docker).
    Mechanism,
}

/// An entry of the kernel's neighbour tables (ARP, NDP).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Neighbour {
    /// Interface name.
    pub device: String,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its link-layer address, `00:11:22:33:44:55`; `None` for addresses that this host answers
    /// for, and on links without such addresses.
    pub link_address: Option<String>,
    /// Put there by somebody, and not learned.
    pub permanent: bool,
    /// It says of itself that it is a router (IPv6).
    pub router: bool,
    /// Not a neighbour: this host answers for the address (proxy ARP or NDP for one address).
    pub proxy: bool,
}

/// A socket that accepts connections or datagrams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Protocol.
    pub proto: Proto,
    /// Local address; `0.0.0.0` or `::` for all.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// IPV6_V6ONLY; a `::` socket without it also accepts IPv4.
    pub v6only: bool,
    /// SO_BINDTODEVICE.
    pub device: Option<String>,
    /// Owner's uid.
    pub uid: Option<u32>,
    /// The process that holds it (the first one by pid), where visible.
    pub process: Option<Process>,
    /// systemd unit of that process; for socket activation the `.socket` unit.
    pub unit: Option<String>,
    /// Container id (full) when the process runs in one.
    pub container: Option<String>,
    /// True when it lives in a container's own network namespace: reached through the container's
    /// address, not the host's.
    pub in_container_netns: bool,
}

/// A process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id on the host.
    pub pid: u32,
    /// Command name, at most 15 bytes.
    pub comm: String,
    /// Executable path.
    pub exe: Option<String>,
    /// User name, or the uid in digits.
    pub user: Option<String>,
    /// What an interpreter runs: script (without folder) or module, and the application that it is told to serve.
    #[serde(default)]
    pub script: Option<String>,
    /// Names of arguments that carry a secret on the command line, where every user can read it. Never the secret.
    #[serde(default)]
    pub secrets: Vec<String>,
}

/// What a port answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The address that was asked: loopback, the host's, or a container's.
    pub address: IpAddr,
    /// Port at that address.
    pub port: u16,
    /// What the answers came to.
    #[serde(flatten)]
    pub identity: Identity,
}

/// A container engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// `docker` or `podman`.
    pub kind: String,
    /// Engine version.
    pub version: String,
    /// `FirewallBackend.Driver` of GET /info (28.1+): "iptables", "nftables", "iptables+firewalld".
    pub firewall_backend: Option<String>,
    /// Rootless mode.
    pub rootless: bool,
    /// daemon.json `iptables`; `None` unset (true).
    pub iptables: Option<bool>,
    /// daemon.json `ip6tables`; `None` unset.
    pub ip6tables: Option<bool>,
    /// daemon.json `userland-proxy`; `None` unset (true).
    pub userland_proxy: Option<bool>,
    /// daemon.json `ip`: default address for published ports of the default bridge.
    pub default_ip: Option<String>,
    /// daemon.json `default-network-opts`, driver bridge, `host_binding_ipv4`: the same for networks made
    /// later (Docker 24 and newer).
    #[serde(default)]
    pub default_network_ip: Option<String>,
    /// Where it keeps its data, as far as it was told; below `/var/snap` it is the snap package.
    #[serde(default)]
    pub root_dir: Option<String>,
    /// Part of a swarm.
    #[serde(default)]
    pub swarm: bool,
    /// Its API wants client certificates over TCP (`tlsverify` of daemon.json or of the command line);
    /// `None` where neither could be read.
    #[serde(default)]
    pub tls_verify: Option<bool>,
    /// Users besides root who may use its socket: members of group `docker`.
    #[serde(default)]
    pub trusted_users: Vec<String>,
    /// Any user of this machine may use its socket (permission bits of the file).
    #[serde(default)]
    pub open_socket: bool,
    /// Networks.
    pub networks: Vec<Network>,
    /// Running containers.
    pub containers: Vec<Container>,
}

/// A container network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Full id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Driver: bridge, host, macvlan, ipvlan, overlay, null.
    pub driver: String,
    /// Linux bridge that carries it.
    pub bridge: Option<String>,
    /// Subnets in CIDR form.
    pub subnets: Vec<ipnet::IpNet>,
    /// `internal`: no way out.
    pub internal: bool,
    /// `com.docker.network.bridge.gateway_mode_ipv4`.
    pub gateway_mode_ipv4: Option<String>,
    /// `com.docker.network.bridge.gateway_mode_ipv6`.
    pub gateway_mode_ipv6: Option<String>,
}

/// A running container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Full id, hex.
    pub id: String,
    /// Name without the leading slash.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// PID 1 of the container on the host.
    pub pid: Option<u32>,
    /// `HostConfig.NetworkMode`: "bridge", "host", "container:…", a network's name.
    pub network_mode: String,
    /// Addresses by network name.
    pub addresses: Vec<ContainerAddress>,
    /// Published ports.
    pub published: Vec<Publish>,
    /// Ports the image declares (EXPOSE) or the container listens on: (proto, port).
    pub exposed: Vec<(Proto, u16)>,
    /// Compose project and service, when compose made it.
    pub compose: Option<Compose>,
    /// Paths on the host that are mounted into it and lead to an engine's socket.
    #[serde(default)]
    pub engine_sockets: Vec<String>,
}

/// A container's address in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerAddress {
    /// Network name.
    pub network: String,
    /// Address.
    pub address: IpAddr,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Publish {
    /// Protocol.
    pub proto: Proto,
    /// Address on the host that it is published on; `0.0.0.0` or `::` for all.
    pub host_ip: IpAddr,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
}

/// Where a compose container comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compose {
    /// Project name.
    pub project: String,
    /// Service name.
    pub service: String,
    /// Config files as compose recorded them.
    pub files: Vec<String>,
}

/// What a compose file publishes. Of its text only the entries of `ports` are kept: the rest may hold
/// secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComposeFile {
    /// SHA-256 of the file, lowercase hex.
    pub sha256: String,
    /// The entries of `ports`, in order.
    pub ports: Vec<crate::compose::Entry>,
    /// Why none could be read, if so.
    pub unread: Option<String>,
}

/// UFW as its files and the kernel have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ufw {
    /// Package version.
    pub version: String,
    /// `ENABLED=yes` in ufw.conf: the claim.
    pub enabled: bool,
    /// True when the kernel's INPUT chain really leads to UFW's chains: the fact.
    /// `None` when the rules could not be read.
    pub loaded: Option<bool>,
    /// `IPV6=yes` in /etc/default/ufw.
    pub ipv6: bool,
    /// `DEFAULT_INPUT_POLICY` as ufw words it: allow, deny, reject.
    pub default_incoming: String,
    /// `DEFAULT_OUTPUT_POLICY`.
    pub default_outgoing: String,
    /// `DEFAULT_FORWARD_POLICY`.
    pub default_routed: String,
    /// `MANAGE_BUILTINS=yes`.
    pub manage_builtins: bool,
    /// Log level: off, low, medium, high, full.
    pub log_level: String,
    /// User rules in order, from user.rules and user6.rules.
    pub rules: Vec<UfwRule>,
    /// Lines in after.rules/before.rules (and 6) that the package does not ship, with their file.
    pub foreign_lines: Vec<(String, String)>,
}

/// One user rule of UFW (`### tuple ###` line).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UfwRule {
    /// Position, 1 for the first, as `ufw status numbered` counts (v4 rules first, then v6).
    pub number: u32,
    /// allow, deny, reject, limit.
    pub action: String,
    /// `route` rules go to FORWARD.
    pub route: bool,
    /// in or out.
    pub direction: String,
    /// any, tcp, udp…
    pub proto: String,
    /// Destination ports as written: `22`, `6000:6007`, `80,443`, `any`.
    pub port: String,
    /// Destination; `None` any.
    pub to: Option<ipnet::IpNet>,
    /// Source; `None` any.
    pub from: Option<ipnet::IpNet>,
    /// Source ports as written; `any`.
    pub from_port: String,
    /// Incoming interface.
    pub interface_in: Option<String>,
    /// Outgoing interface.
    pub interface_out: Option<String>,
    /// True for a rule of user6.rules.
    pub ipv6: bool,
    /// Comment, decoded.
    pub comment: Option<String>,
    /// The application profile it was made from, e.g. `OpenSSH`.
    pub application: Option<String>,
}

/// fail2ban as its files, its process and its sockets have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fail2ban {
    /// Package version.
    pub version: String,
    /// The server answers a ping.
    pub alive: bool,
    /// Why it is not alive, from its own words (journal, `-t`), where known.
    pub why_dead: Option<String>,
    /// Jails that run.
    pub jails: Vec<Jail>,
    /// jail.local is a copy of jail.conf.
    pub jail_local_is_copy: bool,
    /// Where jail.local says something else than jail.conf, in the order of its sections.
    #[serde(default)]
    pub jail_local_differs: Vec<Setting>,
    /// `logtarget`: a file, or SYSLOG, SYSTEMD-JOURNAL, STDOUT…; `None` where it could not be read.
    #[serde(default)]
    pub log_target: Option<String>,
    /// python3-systemd is present, so the journal backend works.
    pub python_systemd: bool,
    /// A log file with sshd lines exists (/var/log/auth.log).
    pub sshd_log: Option<String>,
}

/// One setting of a configuration file. Untrusted text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Section.
    pub section: String,
    /// Key.
    pub key: String,
    /// Value; several lines are joined by newlines.
    pub value: String,
}

/// A running jail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jail {
    /// Name.
    pub name: String,
    /// Failures before a ban.
    pub max_retry: Option<u32>,
    /// Window, seconds.
    pub find_time: Option<u64>,
    /// Ban time, seconds; negative: for ever.
    pub ban_time: Option<i64>,
    /// Ignored networks as fail2ban lists them.
    pub ignore_ip: Vec<String>,
    /// Addresses banned now.
    pub banned: Vec<IpAddr>,
    /// When each of them was banned, as fail2ban words it (local time); not of every version.
    #[serde(default)]
    pub since: BTreeMap<IpAddr, String>,
    /// Lines that matched its filter since it started.
    #[serde(default)]
    pub failed_total: Option<u64>,
    /// A line of this host that tells of a failed login and that the filter does not match.
    #[serde(default)]
    pub unmatched: Option<String>,
    /// Action names.
    pub actions: Vec<String>,
    /// Log files watched; empty with a journal match.
    pub files: Vec<String>,
    /// Journal match.
    pub journal: Option<String>,
}

/// sshd's ways in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sshd {
    /// Ports it really listens on, from sockets; the union with configured ones, sorted.
    pub ports: Vec<u16>,
    /// Ports per source of knowledge: "sshd -T", "ssh.socket", "listener", "session".
    pub ports_by_source: BTreeMap<String, Vec<u16>>,
    /// Password authentication is on (`sshd -T`).
    pub password_authentication: Option<bool>,
    /// `PermitRootLogin` of `sshd -T`.
    pub permit_root_login: Option<String>,
}

/// An established SSH connection into this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Session {
    /// The client, as this host sees it (after any NAT).
    pub peer: IpAddr,
    /// The client's port.
    pub peer_port: u16,
    /// Local address.
    pub local: IpAddr,
    /// Local port.
    pub local_port: u16,
    /// The sshd process, where visible.
    pub pid: Option<u32>,
    /// True when this very process runs below it.
    pub own: bool,
}

/// A systemd unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// LoadState: loaded, not-found, masked.
    pub load: String,
    /// ActiveState: active, inactive, failed…
    pub active: String,
    /// UnitFileState: enabled, disabled, static…
    pub enabled: String,
    /// Path of the unit file.
    pub fragment: Option<String>,
    /// Drop-in files.
    pub drop_ins: Vec<String>,
    /// Environment values of the catalog's known keys only.
    pub environment: BTreeMap<String, String>,
    /// First word of ExecStart.
    pub exec: Option<String>,
    /// ExecStart as the unit's files have it, without portcullis's own drop-in; absent when there is not exactly one, or
    /// when it may hold a secret.
    #[serde(default)]
    pub start: Option<String>,
}

/// A file that portcullis may write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFact {
    /// SHA-256 of its bytes, lowercase hex.
    pub sha256: String,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}
