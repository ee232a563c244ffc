//! What listens on this machine: whom to ask, and where the answers go.

use crate::{Options, Target, recognise};
use portcullis_core::catalog::{self, Kind, Sight};
use portcullis_core::host::{Host, Seen, Socket};
use reach::Proto;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Programs that speak no HTTP and would log a stranger's question as an attack or a fault.
const NOT_ASKED: [&str; 28] = [
    "chronyd",
    "cupsd",
    "dnsmasq",
    "docker-proxy",
    "dovecot",
    "exim4",
    "inetd",
    "mariadbd",
    "master",
    "memcached",
    "mongod",
    "mysqld",
    "named",
    "nmbd",
    "ntpd",
    "postgres",
    "proftpd",
    "rpc.mountd",
    "rpc.statd",
    "rpcbind",
    "slapd",
    "smbd",
    "sshd",
    "sshd-session",
    "systemd",
    "systemd-resolve",
    "tor",
    "vsftpd",
];

/// Ports whose protocol is another one, whoever holds them.
const NOT_HTTP: [u16; 25] = [
    21, 22, 23, 25, 53, 110, 111, 139, 143, 389, 445, 465, 587, 636, 873, 993, 995, 1433, 1521,
    2049, 3306, 3389, 5432, 5672, 27017,
];

/// Asks what listens here and puts the answers into the facts. Containers are asked at their own address.
pub fn local(host: &mut Host, options: &Options) {
    let targets = targets(host);
    host.seen = recognise(&targets, options)
        .into_iter()
        .filter(|found| found.asked > 0)
        .map(|found| Seen {
            address: found.address.ip(),
            port: found.address.port(),
            identity: found.identity,
        })
        .collect();
}

/// The ports of a host that are worth a question.
pub fn targets(host: &Host) -> Vec<Target> {
    let mut found: BTreeMap<SocketAddr, Target> = BTreeMap::new();
    for socket in host.sockets.iter().filter(|s| s.proto == Proto::Tcp) {
        let Some(ip) = way_to(host, socket) else {
            continue;
        };
        let process = socket.process.as_ref();
        let comm = process.map(|p| p.comm.as_str());
        let image = socket.container.as_deref().and_then(|id| {
            let mut all = host.engines.iter().flat_map(|e| &e.containers);
            all.find(|c| c.id == id).map(|c| c.image.as_str())
        });
        let sight = Sight {
            process: comm,
            script: process.and_then(|p| p.script.as_deref()),
            unit: socket.unit.as_deref(),
            image,
            port: socket.port,
        };
        let known = catalog::recognise(sight);
        let spared = comm.is_some_and(|c| NOT_ASKED.contains(&c))
            || NOT_HTTP.contains(&socket.port)
            || known.is_some_and(|s| s.kind == Kind::System);
        if spared || socket.port == 0 {
            continue;
        }
        let address = SocketAddr::new(ip, socket.port);
        found.entry(address).or_insert_with(|| Target {
            address,
            candidates: catalog::candidates(sight),
        });
    }
    found.into_values().collect()
}

/// The address at which a socket answers this machine; `None` when it does not.
fn way_to(host: &Host, socket: &Socket) -> Option<IpAddr> {
    let address = socket.address.to_canonical();
    if socket.in_container_netns {
        let id = socket.container.as_deref()?;
        let mut containers = host.engines.iter().flat_map(|e| &e.containers);
        let container = containers.find(|c| c.id == id)?;
        let own = container.addresses.iter().map(|a| a.address);
        return match address {
            a if a.is_loopback() => None,
            a if a.is_unspecified() => own.into_iter().find(|o| o.is_ipv4() || socket.v6only),
            a => own.into_iter().find(|o| *o == a),
        };
    }
    Some(match address {
        IpAddr::V6(a) if a.is_unspecified() && socket.v6only => Ipv6Addr::LOCALHOST.into(),
        a if a.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        // Link-local addresses need an interface, which loopback questions do not have.
        IpAddr::V6(a) if a.is_unicast_link_local() => return None,
        a => a,
    })
}
