//! Throw-away hosts for tests and for `portcullis lab`.
//!
//! Two kinds, in the same world of a stranger on the Internet, an operator, and a neighbour on the LAN:
//! - [`World`]: a server made of namespaces, in a tenth of a second. Real ufw, fail2ban, sshd and dockerd run in it; it
//!   has no systemd.
//! - [`Machine`]: a whole Debian with systemd as its first process, in ten seconds, that can be rebooted and can
//!   lose its power.
//!
//! Nothing on this machine is touched: hosts see its programs, and every write of theirs is private. Everything is gone
//! when the values are dropped, also after a panic, and when the process is killed ([`reap`] then removes the folder, and
//! [`end_on_signals`] does so at once on Ctrl-C).
//! Every wait has a bound. Root is needed.
//!
//! Environment variables: [`DIR_VARIABLE`] moves the folder of running labs, [`CACHE_VARIABLE`] the cache of Debian
//! images, [`MIRROR_VARIABLE`] names the mirror that images are built from.
//!
//! ```no_run
//! use std::time::Duration;
//! use lab::{World, address};
//!
//! # fn main() -> lab::Result<()> {
//! let world = World::new("example")?;
//! let _ollama = world.server.http_server("ollama-stand-in", "0.0.0.0:11434", "Ollama is running")?;
//! let bound = Duration::from_secs(2);
//! assert!(world.stranger.connect(address::SERVER, 11434, bound)?);
//! world.server.ok(&["ufw", "--force", "enable"])?;
//! assert!(!world.stranger.connect(address::SERVER, 11434, bound)?);
//! # Ok(())
//! # }
//! ```

mod cell;
mod docker;
mod ending;
mod error;
mod furnish;
mod host;
mod image;
mod machine;
mod mirror;
mod net;
mod process;
mod room;
mod servers;
mod services;

pub use docker::Docker;
pub use ending::end_on_signals;
pub use error::{Error, Result, need_root};
pub use host::Host;
pub use image::{CACHE_VARIABLE, Image, Release};
pub use machine::{Machine, MachineOptions};
pub use mirror::MIRROR_VARIABLE;
pub use net::{Around, End, NetLab, World, address};
pub use process::{DEFAULT_TIMEOUT, Knock, Output, Process, Program};
pub use room::{DIR_VARIABLE, base, existing, reap};
pub use servers::{OLLAMA_VERSION, Server};
pub use services::Sshd;

/// For the first line of a live test: fails unless this process is root.
///
/// # Panics
/// When the process is not root: live tests are never skipped in silence.
pub fn require_root() {
    if let Err(error) = need_root() {
        panic!("{error}; run `cargo xtask test` as root");
    }
}
