//! The packet filter: nf_tables, ipsets and iptables-legacy, as one ruleset.

use crate::nft::{self, Links, Stats};
use crate::{Error, ipset, legacy, net};
use nix::errno::Errno;
use reach::Ruleset;
use std::path::Path;

/// What was read of the packet filter.
#[derive(Debug, Default)]
pub struct Filter {
    /// The rules of all backends, and the ipsets.
    pub ruleset: Ruleset,
    /// What was read of nf_tables.
    pub stats: Stats,
    /// What could not be read, as sentences for a reader. Anything in here makes every verdict
    /// uncertain.
    pub unseen: Vec<String>,
}

/// The packet filter of the calling thread's network namespace. Needs CAP_NET_ADMIN.
///
/// Nothing is loaded or created by looking: a kernel part that is not there holds no rules.
/// Parts that cannot be read are named in [`Filter::unseen`].
///
/// # Errors
/// When nf_tables, the part that holds the rules on today's hosts, cannot be read:
/// [`Error::Permission`] without CAP_NET_ADMIN, [`Error::Unstable`] when it keeps changing.
pub fn filter() -> Result<Filter, Error> {
    let mut out = Filter::default();
    let links: Links = match net::link_names() {
        Ok(links) => links,
        Err(e) => {
            out.unseen.push(format!("names of links: {e}"));
            Links::new()
        }
    };
    let mut names = crate::xt::SetNames::new();
    if present("ip_set") {
        match ipset::read() {
            Ok((sets, found)) => {
                out.ruleset.ipsets = sets;
                names = found;
            }
            Err(e) if absent(&e) => {}
            Err(e) => out.unseen.push(format!("ipsets: {e}")),
        }
    }
    if present("nf_tables") {
        match nft::read(&links, &names) {
            Ok(reading) => {
                out.ruleset.tables = reading.ruleset.tables;
                out.stats = reading.stats;
            }
            Err(e) if absent(&e) => {}
            Err(e) => return Err(e),
        }
    }
    if let Err(e) = legacy::read(&names, &mut out.ruleset) {
        out.unseen.push(format!("iptables-legacy: {e}"));
    }
    Ok(out)
}

/// [`filter`] reduced to its rules, for callers that take all or nothing.
///
/// # Errors
/// As [`filter`], and when any part could not be read.
pub fn ruleset() -> Result<Ruleset, Error> {
    let filter = filter()?;
    match filter.unseen.into_iter().next() {
        None => Ok(filter.ruleset),
        Some(detail) => Err(Error::Malformed {
            what: "packet filter".to_owned(),
            detail,
        }),
    }
}

/// nfnetlink says EINVAL for a subsystem that the kernel does not have, EPROTONOSUPPORT when it
/// is itself missing.
fn absent(e: &Error) -> bool {
    matches!(
        e,
        Error::Kernel {
            errno: Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT,
            ..
        }
    )
}

/// Whether a part of the kernel is there already, so that asking it loads nothing. When that
/// cannot be told, it is taken to be there: rules that are not seen would be worse.
pub(crate) fn present(module: &str) -> bool {
    // Without loadable modules nothing can be loaded.
    let Ok(loaded) = std::fs::read_to_string("/proc/modules") else {
        return true;
    };
    let named = |l: &str| l.split(' ').next() == Some(module);
    if loaded.lines().any(named) || Path::new("/sys/module").join(module).exists() {
        return true;
    }
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else {
        return true;
    };
    let builtin = format!("/lib/modules/{}/modules.builtin", release.trim());
    match std::fs::read_to_string(builtin) {
        Ok(list) => list.contains(&format!("/{module}.ko")),
        Err(_) => true,
    }
}
