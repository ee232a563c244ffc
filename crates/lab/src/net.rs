//! Networks of hosts, and the world that most tests need.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::host::{Host, check_name};
use crate::process::Knock;
use crate::room::Room;

/// A lab of hosts. It and its hosts are gone when the last handle is dropped, or when this process ends.
#[derive(Debug, Clone)]
pub struct NetLab {
    room: Arc<Room>,
}

/// One end of a cable: a host, the interface's name there, and its addresses with prefix lengths (`192.0.2.1/24`).
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Where it is plugged in.
    pub host: &'a Host,
    /// The interface's name, up to 15 characters.
    pub interface: &'a str,
    /// Its addresses, IPv4 and IPv6.
    pub addresses: &'a [&'a str],
}

impl NetLab {
    /// A new, empty lab; `name` (a-z, 0-9, -) shows in the names of its folder and cgroup.
    pub fn new(name: &str) -> Result<Self> {
        crate::error::need_root()?;
        check_name(name)?;
        Ok(Self {
            room: Arc::new(Room::new(name)?),
        })
    }

    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// The lab's name among all labs of this machine, as [`crate::existing`] lists it.
    pub fn id(&self) -> &str {
        self.room.name()
    }

    /// A new host with a loopback interface and nothing else. Host names are unique within a lab.
    pub fn host(&self, name: &str) -> Result<Host> {
        check_name(name)?;
        if self.room.path().join(name).exists() {
            return Err(Error::Invalid(format!(
                "there is a host named {name} already"
            )));
        }
        Host::new(&self.room, name)
    }

    /// A cable between two hosts; both ends come up, and their addresses are usable at once.
    pub fn link(&self, a: End<'_>, b: End<'_>) -> Result<()> {
        plug(a, b.host.pid(), b.interface)?;
        b.host.ip(&configure(b.interface, b.addresses))
    }
}

/// Makes a veth pair from `a` into the network namespace of the process `other`, and configures `a`'s end.
pub(crate) fn plug(a: End<'_>, other: u32, interface: &str) -> Result<()> {
    a.host.ip(&format!(
        "link add {} type veth peer name {interface} netns {other}\n{}",
        a.interface,
        configure(a.interface, a.addresses)
    ))
}

/// `ip -batch` lines that give an interface its addresses and bring it up.
pub(crate) fn configure(interface: &str, addresses: &[&str]) -> String {
    let mut lines = String::new();
    for address in addresses {
        // Without duplicate address detection an IPv6 address is usable at once.
        let flag = if address.contains(':') { " nodad" } else { "" };
        lines += &format!("address add {address} dev {interface}{flag}\n");
    }
    lines + &format!("link set {interface} up\n")
}

/// Addresses of the world. Those on the Internet are from the blocks for documentation (RFC 5737, RFC 3849).
pub mod address {
    use super::{IpAddr, Ipv4Addr, Ipv6Addr};

    const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    }
    const fn v6(network: u16, host: u16) -> IpAddr {
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host))
    }

    /// The server on its Internet side (eth0, /24).
    pub const SERVER: IpAddr = v4(203, 0, 113, 10);
    /// The server on its Internet side, IPv6 (eth0, /64).
    pub const SERVER_V6: IpAddr = v6(0x113, 0x10);
    /// The server on its LAN (eth1, /24).
    pub const SERVER_LAN: IpAddr = v4(192, 168, 1, 10);
    /// The server on its LAN, IPv6 (eth1, /64, a unique local address).
    pub const SERVER_LAN_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd42, 1, 0, 0, 0, 0, 0, 0x10));
    /// The server's router.
    pub const GATEWAY: IpAddr = v4(203, 0, 113, 1);
    /// The server's router, IPv6.
    pub const GATEWAY_V6: IpAddr = v6(0x113, 1);
    /// A stranger somewhere on the Internet.
    pub const STRANGER: IpAddr = v4(198, 51, 100, 66);
    /// The stranger, IPv6.
    pub const STRANGER_V6: IpAddr = v6(0x51, 0x66);
    /// Whoever runs the server, on the Internet too.
    pub const OPERATOR: IpAddr = v4(192, 0, 2, 7);
    /// Whoever runs the server, IPv6.
    pub const OPERATOR_V6: IpAddr = v6(2, 7);
    /// A machine on the server's LAN.
    pub const NEIGHBOUR: IpAddr = v4(192, 168, 1, 20);
    /// A machine on the server's LAN, IPv6.
    pub const NEIGHBOUR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd42, 1, 0, 0, 0, 0, 0, 0x20));
}

/// How the server's interfaces are set up: `ip -batch` lines for eth0 (Internet) and eth1 (LAN).
pub(crate) const SERVER_NETWORK: &str = "\
link set lo up
address add 203.0.113.10/24 dev eth0
address add 2001:db8:113::10/64 dev eth0 nodad
address add 192.168.1.10/24 dev eth1
address add fd42:1::10/64 dev eth1 nodad
link set eth0 up
link set eth1 up
route add default via 203.0.113.1
route add default via 2001:db8:113::1
";

/// Everybody around a server: a router that stands for the Internet, with the stranger and the operator behind it, and
/// a neighbour on the server's LAN.
#[derive(Debug, Clone)]
pub struct Around {
    /// Routes between the server, the stranger and the operator; each is on a network of its own.
    pub internet: Host,
    /// Somebody on the Internet with no business here ([`address::STRANGER`]).
    pub stranger: Host,
    /// Whoever runs the server ([`address::OPERATOR`]).
    pub operator: Host,
    /// Another machine on the server's LAN ([`address::NEIGHBOUR`]).
    pub neighbour: Host,
}

impl Around {
    pub(crate) fn new(lab: &NetLab) -> Result<Self> {
        let around = Self {
            internet: lab.host("internet")?,
            stranger: lab.host("stranger")?,
            operator: lab.host("operator")?,
            neighbour: lab.host("neighbour")?,
        };
        around.internet.inside(|| {
            crate::host::write_file("/proc/sys/net/ipv4/ip_forward".as_ref(), b"1")?;
            crate::host::write_file("/proc/sys/net/ipv6/conf/all/forwarding".as_ref(), b"1")
        })??;
        let far = [
            (
                &around.stranger,
                "stranger",
                ["198.51.100.1/24", "2001:db8:51::1/64"],
                ["198.51.100.66/24", "2001:db8:51::66/64"],
                "route add default via 198.51.100.1\nroute add default via 2001:db8:51::1\n",
            ),
            (
                &around.operator,
                "operator",
                ["192.0.2.1/24", "2001:db8:2::1/64"],
                ["192.0.2.7/24", "2001:db8:2::7/64"],
                "route add default via 192.0.2.1\nroute add default via 2001:db8:2::1\n",
            ),
        ];
        for (host, port, near, addresses, routes) in far {
            lab.link(
                End {
                    host: &around.internet,
                    interface: port,
                    addresses: &near,
                },
                End {
                    host,
                    interface: "eth0",
                    addresses: &addresses,
                },
            )?;
            host.ip(routes)?;
        }
        Ok(around)
    }

    /// Waits until packets pass between everybody and the server: links and neighbour discovery take a moment after they
    /// were set up. An answer shows it, be it a refusal; so does, where a firewall is on, that the next hop has found
    /// the server's link-layer address.
    pub(crate) fn wait_for_paths(&self) -> Result<()> {
        const BOUND: Duration = Duration::from_secs(10);
        use address::{SERVER, SERVER_LAN, SERVER_LAN_V6, SERVER_V6};
        let paths = [
            (&self.stranger, SERVER, &self.internet),
            (&self.stranger, SERVER_V6, &self.internet),
            (&self.operator, SERVER, &self.internet),
            (&self.operator, SERVER_V6, &self.internet),
            (&self.neighbour, SERVER_LAN, &self.neighbour),
            (&self.neighbour, SERVER_LAN_V6, &self.neighbour),
        ];
        let start = Instant::now();
        for (host, to, next_hop) in paths {
            loop {
                let seen = host.knock(to, 9, Duration::from_millis(100))?;
                if matches!(seen, Knock::Open | Knock::Refused) || next_hop.knows(to)? {
                    break;
                }
                if start.elapsed() >= BOUND {
                    let what = format!("a way from {} to {to}", host.name());
                    return Err(Error::timeout(what, BOUND, &format!("{seen:?}")));
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Plugs eth0 (Internet) and eth1 (LAN) into the network namespace of the process `pid`.
    pub(crate) fn plug_into(&self, pid: u32) -> Result<()> {
        // The kernel takes the cables of a network that is gone away in its own time.
        for (host, interface) in [(&self.internet, "server"), (&self.neighbour, "eth0")] {
            if host.exists(&format!("/sys/class/net/{interface}"))? {
                // It may go just now by itself.
                let _ = host.ip(&format!("link delete {interface}"));
            }
        }
        plug(
            End {
                host: &self.internet,
                interface: "server",
                addresses: &["203.0.113.1/24", "2001:db8:113::1/64"],
            },
            pid,
            "eth0",
        )?;
        plug(
            End {
                host: &self.neighbour,
                interface: "eth0",
                addresses: &["192.168.1.20/24", "fd42:1::20/64"],
            },
            pid,
            "eth1",
        )
    }
}

/// A server made of namespaces, and everybody around it. Fields of [`Around`] can be used directly.
#[derive(Debug, Clone)]
pub struct World {
    /// The lab that the hosts are in; more can be added.
    pub lab: NetLab,
    /// The server: eth0 to the Internet with the default routes, eth1 to the LAN.
    pub server: Host,
    /// Everybody else.
    pub around: Around,
}

impl World {
    /// Makes the world; takes about a tenth of a second.
    pub fn new(name: &str) -> Result<Self> {
        let lab = NetLab::new(name)?;
        let around = Around::new(&lab)?;
        let server = lab.host("server")?;
        around.plug_into(server.pid())?;
        server.ip(SERVER_NETWORK)?;
        around.wait_for_paths()?;
        Ok(Self {
            lab,
            server,
            around,
        })
    }
}

impl std::ops::Deref for World {
    type Target = Around;

    fn deref(&self) -> &Around {
        &self.around
    }
}
