//! Who can open a connection through this host's packet filter, and why.
//!
//! Give the engine the rules (nftables, iptables-nft, iptables-legacy, ipsets), the links, addresses and routes, and ask
//! about one endpoint and one ingress interface. It answers with three disjoint sets of source addresses: surely
//! admitted, surely blocked, and conditional: where a rate limit, a rule that it does not know or a fact that is
//! missing leaves it open. What is not understood is never called closed.
//!
//! Each part of the answer names the rule that decided and the jumps, NAT and routing that led to it.
//! Where a ruleset is huge, [`Engine::decide`] gives the sets first and puts into words only what one asks for.
//!
//! The crate does no IO. [`parse`] reads the text of `iptables-save`, `nft list ruleset` (also with `-j`) and
//! `ipset save`; other readers can fill [`ir`] and [`Net`] themselves.
//!
//! ```
//! use reach::*;
//!
//! let save = "*nat
//! :PREROUTING ACCEPT
//! -A PREROUTING -p tcp -m tcp --dport 11434 -j DNAT --to-destination 172.17.0.2:80
//! COMMIT
//! *filter
//! :INPUT DROP
//! :FORWARD ACCEPT
//! -A INPUT -p tcp -m tcp --dport 11434 -j DROP
//! -A FORWARD -s 198.51.100.0/24 -m conntrack --ctstate NEW -j DROP
//! COMMIT";
//! let (rules, unread) = parse::iptables_save(save, false, Backend::IptablesNft);
//! assert!(unread.is_empty());
//!
//! let link = |index, name: &str, net: &str| Interface {
//!     index,
//!     name: name.into(),
//!     addresses: vec![InterfaceAddress { net: net.parse().unwrap(), peer: None }],
//!     forwarding_v4: Some(true),
//!     rp_filter: Some(0),
//!     accept_local: Some(false),
//!     route_localnet: Some(false),
//!     ..Interface::default()
//! };
//! let on_link = |dst: &str, oif| Route {
//!     table: 254,
//!     dst: dst.parse().unwrap(),
//!     kind: RouteKind::Unicast,
//!     metric: 0,
//!     tos: 0,
//!     prefsrc: None,
//!     nexthops: vec![NextHop { oif, gateway: None, dead: false }],
//! };
//! let net = Net {
//!     interfaces: vec![link(2, "eth0", "192.0.2.10/24"), link(3, "docker0", "172.17.0.1/16")],
//!     routes: vec![on_link("0.0.0.0/0", 2), on_link("172.17.0.0/16", 3)],
//!     sysctls: Sysctls { rp_filter_all: Some(0), ..Sysctls::default() },
//!     ..Net::default()
//! };
//!
//! let answer = reach::reach(World { rules: &rules, net: &net }, &Query {
//!     ingress: "eth0".into(),
//!     dst: "192.0.2.10".parse().unwrap(),
//!     proto: Proto::Tcp,
//!     dport: 11434,
//!     sport: None,
//!     sources: AddrSet::all_v4(),
//! });
//! // The DROP in INPUT never sees what DNAT hands to the container.
//! assert!(answer.admitted.contains("203.0.113.9".parse().unwrap()));
//! assert!(answer.blocked.contains("198.51.100.7".parse().unwrap()));
//! ```
mod addrset;
mod engine;
mod faults;
mod intervals;
pub mod ir;
mod net;
mod owner;
pub mod parse;
mod query;

pub use addrset::AddrSet;
pub use engine::{Decision, Engine, reach, walk_hook};
pub use faults::{Fault, FaultKind, faults};
pub use ir::{Backend, Ruleset};
pub use net::*;
pub use owner::{Owner, owner};
pub use query::*;
