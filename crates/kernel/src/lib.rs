//! Reads the Linux kernel: links, addresses, routes, policy rules, sockets and their owners, and
//! the packet filter.
//!
//! Everything comes over netlink and `/proc`; no program is run and nothing is changed. All
//! functions look at the network namespace of the calling thread.
//!
//! What could not be read is reported, never guessed: an [`Error`] for a whole question, an
//! `unseen` line for a part of one.
mod cgroup;
mod error;
mod filter;
mod held;
mod ipset;
mod legacy;
mod net;
mod netlink;
mod netns;
mod nft;
mod path;
mod process;
mod procnet;
mod sockets;
mod sockopt;
mod xt;

pub use cgroup::{ContainerRef, Runtime, Unit, container_of_cgroup, unit_of_cgroup};
pub use error::Error;
pub use filter::{Filter, filter, ruleset};
pub use held::connections_of;
pub use net::{Neighbour, neighbour, neighbours, net};
pub use netns::{in_netns_of, net_in, sockets_in};
pub use nft::Stats;
pub use path::{LinkLayer, Path, link_layer, path_to};
pub use process::{Process, Processes, process, processes};
pub use sockets::{Connection, Socket, connections, sockets};
