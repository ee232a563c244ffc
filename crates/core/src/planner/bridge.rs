//! A service on loopback that containers may use: systemd listens for it on the containers' bridge too.
//!
//! Ollama listens on one address. On loopback no container reaches it; told to listen on every address it is
//! open to whoever the firewall lets by. So a socket unit listens on the bridge's own address, which exists
//! on no other network, and hands connections on (systemd-socket-proxyd(8)). From a container the host is
//! `host.docker.internal` (with `--add-host host.docker.internal:host-gateway`) or the gateway's address.

use super::files;
use super::{Draft, systemd};
use crate::catalog::{self, Service};
use crate::host::Host;
use crate::plan::{Action, SystemdVerb};
use crate::policy::Policy;
use std::net::IpAddr;

/// Listens on the bridge for Ollama.
pub const SOCKET: &str = "portcullis-bridge-ollama.socket";
/// File of [`SOCKET`].
pub const SOCKET_FILE: &str = "/etc/systemd/system/portcullis-bridge-ollama.socket";
/// Hands its connections on.
pub const SERVICE_FILE: &str = "/etc/systemd/system/portcullis-bridge-ollama.service";

/// The service for which there is such a socket, by its id in the catalog.
const FOR: &str = "ollama";

/// True when there is such a socket for this service on this host: it runs as a unit beside the containers.
pub(super) fn serves(host: &Host, service: &Service) -> bool {
    let unit = |name: &String| host.units.get(name).is_some_and(|u| u.load == "loaded");
    service.id == FOR && host.systemd && address(host).is_some() && service.units.iter().any(unit)
}

/// Makes the socket where it is `wanted`, and takes it away where it is not.
pub(super) fn plan(host: &Host, service: &Service, port: u16, wanted: bool, draft: &mut Draft) {
    if service.id != FOR || !host.systemd {
        return;
    }
    match address(host).filter(|_| wanted) {
        Some(address) => make(host, &service.name, address, port, draft),
        None => remove(host, &service.name, draft),
    }
}

/// Takes the socket away where the policy says nothing of the service any more.
pub(super) fn forget(host: &Host, policy: &Policy, draft: &mut Draft) {
    if let Some(service) = catalog::service(FOR)
        && !policy.services.iter().any(|s| s.kind == FOR)
    {
        plan(host, service, 0, false, draft);
    }
}

/// The host's own address on the default bridge.
fn address(host: &Host) -> Option<IpAddr> {
    ["docker0", "podman0"].iter().find_map(|name| {
        let link = host.net.interfaces.iter().find(|i| i.name == *name)?;
        let own = link.addresses.iter().map(|a| a.net.addr());
        own.into_iter().find(IpAddr::is_ipv4)
    })
}

fn make(host: &Host, name: &str, address: IpAddr, port: u16, draft: &mut Draft) {
    let why = format!("containers reach {name} at the bridge's own address, {address}");
    let mut changed = files::write(
        host,
        draft,
        SOCKET_FILE,
        format!(
            "# Written by portcullis: the policy lets containers reach {name}.\n\
             [Unit]\nDescription={name} for containers\n\
             [Socket]\nListenStream={address}:{port}\nFreeBind=yes\n\
             [Install]\nWantedBy=sockets.target\n"
        ),
        &why,
        &["closed-but-wanted"],
    );
    changed |= files::write(
        host,
        draft,
        SERVICE_FILE,
        format!(
            "# Written by portcullis: the policy lets containers reach {name}.\n\
             [Unit]\nDescription={name} for containers\nRequires={SOCKET}\nAfter={SOCKET}\n\
             [Service]\nExecStart=/lib/systemd/systemd-socket-proxyd 127.0.0.1:{port}\n\
             DynamicUser=yes\nPrivateTmp=yes\nProtectSystem=strict\nProtectHome=yes\nNoNewPrivileges=yes\n"
        ),
        "hands those connections on to loopback",
        &[],
    );
    if changed {
        draft.change(
            "systemd reads the new units",
            &[],
            systemd("", SystemdVerb::DaemonReload),
        );
    }
    let unit = host.units.get(SOCKET);
    let on = unit.is_some_and(|u| u.enabled == "enabled" && u.active == "active");
    if changed && on {
        draft.change(why, &[], systemd(SOCKET, SystemdVerb::Restart));
    } else if !on {
        draft.change(why, &[], systemd(SOCKET, SystemdVerb::EnableNow));
    }
}

fn remove(host: &Host, name: &str, draft: &mut Draft) {
    let there: Vec<&str> = [SOCKET_FILE, SERVICE_FILE]
        .into_iter()
        .filter(|path| files::exists(host, path))
        .collect();
    if there.is_empty() {
        return;
    }
    let why = format!("the policy does not let containers reach {name} any more");
    if host.units.get(SOCKET).is_some_and(|u| u.load == "loaded") {
        draft.change(why.clone(), &[], systemd(SOCKET, SystemdVerb::DisableNow));
    }
    for path in there {
        draft.change(
            why.clone(),
            &[],
            Action::RemoveFile {
                path: path.to_owned(),
            },
        );
    }
    draft.change(
        "systemd forgets the units",
        &[],
        systemd("", SystemdVerb::DaemonReload),
    );
}
