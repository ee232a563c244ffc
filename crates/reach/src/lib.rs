//! Who can open a connection through this host's packet filter, and why.
mod addrset;
mod engine;
mod intervals;
pub mod ir;
mod net;
mod owner;
pub mod parse;
mod query;

pub use addrset::AddrSet;
pub use engine::{Engine, reach, walk_hook};
pub use ir::{Backend, Ruleset};
pub use net::*;
pub use owner::{Owner, owner};
pub use query::*;
