//! The facts about links, addresses, routes and sysctls that decide a packet's way.
//!
//! Plain data as the kernel reports it over rtnetlink and `/proc/sys/net`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Everything about the network stack, apart from the packet filter, that decides a packet's way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// Links, sorted by index.
    pub interfaces: Vec<Interface>,
    /// Routes of every table, in the kernel's order.
    pub routes: Vec<Route>,
    /// Policy routing rules (`ip rule`), sorted by family, then priority.
    pub rules: Vec<PolicyRule>,
    /// Host-wide switches.
    pub sysctls: Sysctls,
}

/// Host-wide sysctls. `None`: could not be read, so both values must be considered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctls {
    /// `net.ipv4.ip_forward`.
    pub ipv4_forward: Option<bool>,
    /// `net.ipv6.conf.all.forwarding`.
    pub ipv6_forward: Option<bool>,
    /// `net.ipv4.conf.all.rp_filter`; the larger of this and the interface's own applies.
    pub rp_filter_all: Option<u8>,
    /// `net.bridge.bridge-nf-call-iptables`; false when br_netfilter is not loaded.
    pub bridge_nf_call_iptables: Option<bool>,
    /// `net.bridge.bridge-nf-call-ip6tables`; false when br_netfilter is not loaded.
    pub bridge_nf_call_ip6tables: Option<bool>,
}

/// One link with its addresses and per-interface sysctls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Kernel interface index (ifindex), 1 or more.
    pub index: u32,
    /// Name, at most 15 bytes. Untrusted text: whoever made the link chose it.
    pub name: String,
    /// `IFLA_INFO_KIND`: "veth", "bridge", "wireguard", "tun", "macvlan"…; `None` for hardware and loopback.
    pub kind: Option<String>,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// IFF_LOOPBACK.
    pub loopback: bool,
    /// IFF_POINTOPOINT.
    pub point_to_point: bool,
    /// Index of the bridge, bond or VRF that owns this link.
    pub master: Option<u32>,
    /// Addresses with their on-link prefix.
    pub addresses: Vec<InterfaceAddress>,
    /// `net.ipv4.conf.IFACE.rp_filter`: 0 off, 1 strict, 2 loose (RFC 3704).
    pub rp_filter: Option<u8>,
    /// `net.ipv4.conf.IFACE.accept_local`.
    pub accept_local: Option<bool>,
    /// `net.ipv4.conf.IFACE.route_localnet` (or `all`).
    pub route_localnet: Option<bool>,
    /// `net.ipv4.conf.IFACE.forwarding`.
    pub forwarding_v4: Option<bool>,
    /// `net.ipv6.conf.IFACE.forwarding`.
    pub forwarding_v6: Option<bool>,
    /// `net.ipv6.conf.IFACE.disable_ipv6`.
    pub disable_ipv6: Option<bool>,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// The address and its prefix length, host bits kept: `192.168.1.5/24`.
    pub net: IpNet,
    /// The peer of a point-to-point address.
    pub peer: Option<IpAddr>,
}

/// What a route does with a packet (RTN_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteKind {
    /// Forward or send on-link.
    Unicast,
    /// Deliver to this host.
    Local,
    /// Deliver as broadcast.
    Broadcast,
    /// Deliver as anycast.
    Anycast,
    /// Multicast.
    Multicast,
    /// Drop silently.
    Blackhole,
    /// Drop with ICMP host unreachable.
    Unreachable,
    /// Drop with ICMP administratively prohibited.
    Prohibit,
    /// Continue with the next policy rule.
    Throw,
    /// A kind this version does not know.
    Other,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Routing table number: 254 main, 255 local, 253 default.
    pub table: u32,
    /// Destination; `0.0.0.0/0` or `::/0` for the default route.
    pub dst: IpNet,
    /// What it does.
    pub kind: RouteKind,
    /// Metric; lower wins among equal prefixes.
    pub metric: u32,
    /// TOS selector, 0 for any.
    pub tos: u8,
    /// Preferred source.
    pub prefsrc: Option<IpAddr>,
    /// The ways out; more than one for multipath, empty for blackhole and friends.
    pub nexthops: Vec<NextHop>,
}

/// One way out of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Outgoing interface index; 0 when none.
    pub oif: u32,
    /// Gateway; `None` when on-link.
    pub gateway: Option<IpAddr>,
    /// RTNH_F_LINKDOWN or RTNH_F_DEAD.
    pub dead: bool,
}

/// What a policy routing rule does when it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum PolicyAction {
    /// Look the packet up in this table.
    Table {
        /// Table number.
        table: u32,
    },
    /// Continue at the rule with this priority.
    Goto {
        /// Priority of the target rule.
        priority: u32,
    },
    /// Do nothing.
    Nop,
    /// Drop silently.
    Blackhole,
    /// Drop, unreachable.
    Unreachable,
    /// Drop, prohibited.
    Prohibit,
    /// `l3mdev` (VRF) or something newer: not decided.
    Unknown,
}

/// A policy routing rule (`ip rule`, `ip -6 rule`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// True for IPv6.
    pub ipv6: bool,
    /// Priority; lower comes first.
    pub priority: u32,
    /// `not`: the selectors are inverted.
    pub invert: bool,
    /// Source prefix.
    pub src: Option<IpNet>,
    /// Destination prefix.
    pub dst: Option<IpNet>,
    /// Incoming interface name.
    pub iif: Option<String>,
    /// Outgoing interface name (sockets bound to a device).
    pub oif: Option<String>,
    /// Firewall mark as (value, mask).
    pub fwmark: Option<(u32, u32)>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Source port range, inclusive.
    pub sport: Option<(u16, u16)>,
    /// Destination port range, inclusive.
    pub dport: Option<(u16, u16)>,
    /// User id range, inclusive; matches only packets of local sockets.
    pub uid: Option<(u32, u32)>,
    /// TOS, 0 for any.
    pub tos: u8,
    /// `suppress_prefixlength`: results of this length or shorter are ignored.
    pub suppress_prefixlength: Option<u32>,
    /// A selector was present that this version does not know: the rule may or may not match.
    pub unknown_selector: bool,
    /// What happens.
    pub action: PolicyAction,
}

impl Net {
    /// The link of this name.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name == name)
    }
    /// The link with this index.
    pub fn interface_by_index(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.index == index)
    }
}
