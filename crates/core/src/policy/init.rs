//! The text that `portcullis init` writes.

use crate::catalog::{self, Sight};
use crate::host::Host;
use crate::text::clean;
use reach::Proto;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// A commented policy for this host; it always parses.
pub(super) fn text(host: &Host) -> String {
    let seen = listening(host);
    let mut out = String::from(
        "# Who may reach which port of this machine. Everything that is not allowed here is closed.\n\
         # `portcullis plan` shows what it would change, `portcullis apply` does it.\n\
         version = 1\n\n\
         [incoming]\n\
         default = \"deny\"                 # outgoing stays allowed\n\n\
         [[allow]]\n\
         port = \"ssh\"                     # the ports that sshd really listens on\n\
         from = \"anywhere\"\n\
         rate_limit = true                # 6 attempts in 30 s\n",
    );
    let https = seen.get(&(Proto::Tcp, 443));
    let lead = if https.is_some() { "" } else { "# " };
    let _ = writeln!(
        out,
        "\n{lead}[[allow]]{}\n{lead}port = 443\n{lead}from = \"anywhere\"",
        match https {
            Some(what) => format!("                        # {}", what.shown()),
            None => "                      # nothing serves HTTPS here yet".to_owned(),
        }
    );
    let ssh_ports = super::Policy::ssh_ports(host);
    let mut kinds: BTreeMap<&str, Vec<u16>> = BTreeMap::new();
    for ((proto, port), what) in &seen {
        if let (Proto::Tcp, Some(service)) = (proto, what.service)
            && !service.public
        {
            kinds.entry(&service.id).or_default().push(*port);
        }
    }
    for kind in kinds.keys() {
        let _ = writeln!(
            out,
            "\n[[service]]\nkind = \"{kind}\"\nreach = \"loopback\"               # or \"gateway\", or a list of networks: [\"192.168.1.0/24\"]"
        );
    }
    let mut others = String::new();
    for ((proto, port), what) in &seen {
        let known = what
            .service
            .is_some_and(|s| kinds.contains_key(s.id.as_str()));
        let ssh = *proto == Proto::Tcp && ssh_ports.contains(port);
        let https = *proto == Proto::Tcp && *port == 443;
        if known || ssh || https {
            continue;
        }
        let _ = writeln!(
            others,
            "# [[allow]]\n# port = {port}{}\n# from = \"lan\"                   # {}",
            if *proto == Proto::Udp {
                "\n# proto = \"udp\""
            } else {
                ""
            },
            what.shown()
        );
    }
    if !others.is_empty() {
        let _ = write!(
            out,
            "\n# These ports listen beyond this machine too, and this policy closes them. To open one, take\n\
             # the # away and say who may come: \"anywhere\", \"lan\", \"vpn\", \"containers\", or networks.\n{others}"
        );
    }
    out.push_str(
        "\n[bans]\n\
         ssh = { max_retry = 3, find_time = \"10m\", ban_time = \"1h\" }\n\
         never = [\"127.0.0.0/8\", \"::1\", \"admin\"]   # admin = whoever is connected by SSH at apply\n",
    );
    let ports: BTreeSet<u16> = kinds.into_values().flatten().collect();
    for port in ports {
        let _ = writeln!(
            out,
            "\n[[test]]                         # checked before apply and by `portcullis verify`\nfrom = \"203.0.113.9\"\nto = \"tcp/{port}\"\nexpect = \"blocked\""
        );
    }
    out
}

struct Seen {
    name: String,
    service: Option<&'static catalog::Service>,
}

impl Seen {
    fn shown(&self) -> String {
        clean(&self.name)
    }
}

/// Host ports that listen beyond loopback, with what is behind them.
fn listening(host: &Host) -> BTreeMap<(Proto, u16), Seen> {
    let mut seen = BTreeMap::new();
    for container in host.engines.iter().flat_map(|e| &e.containers) {
        for publish in container.published.iter().filter(|p| p.host_port != 0) {
            let sight = Sight {
                image: Some(&container.image),
                port: publish.container_port,
                ..Sight::default()
            };
            let service = catalog::recognise(sight);
            if publish.host_ip.is_loopback() && service.is_none() {
                continue;
            }
            let name = format!("container {} ({})", container.name, container.image);
            seen.entry((publish.proto, publish.host_port))
                .or_insert(Seen { name, service });
        }
    }
    for socket in host.sockets.iter().filter(|s| !s.in_container_netns) {
        let process = socket.process.as_ref().map(|p| p.comm.as_str());
        let sight = Sight {
            process,
            script: socket.process.as_ref().and_then(|p| p.script.as_deref()),
            unit: socket.unit.as_deref(),
            image: None,
            port: socket.port,
        };
        let service = catalog::recognise(sight);
        let loopback = crate::zones::canonical(socket.address).is_loopback();
        // Unconnected UDP sockets on high ports are clients waiting for answers, mostly.
        let client = socket.proto == Proto::Udp && socket.port >= 32768;
        if socket.port == 0 || client || (loopback && service.is_none_or(|s| s.public)) {
            continue;
        }
        let name = match (process, &socket.unit) {
            (Some(process), Some(unit)) => format!("{process}, {unit}"),
            (Some(process), None) => process.to_owned(),
            (None, Some(unit)) => unit.clone(),
            (None, None) => "unknown program".to_owned(),
        };
        seen.entry((socket.proto, socket.port))
            .or_insert(Seen { name, service });
    }
    seen
}
