//! Whether a confirmation proves that people still get in.

use nix::libc;
use portcullis_core::host::{Host, Session};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Where a `confirm` comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// SSH connections of this host right now; `own` marks the one that the caller runs below.
    pub sessions: Vec<Session>,
    /// The caller's terminal is one of the machine itself: `tty1`, `ttyS0`, `hvc0`.
    pub console: Option<String>,
    /// The caller says that there is a console (`--i-have-a-console`).
    pub assume_console: bool,
    /// This host's own addresses.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

impl Caller {
    /// This process, on a host as just observed.
    pub fn here(host: &Host, assume_console: bool) -> Self {
        Self {
            sessions: host.sessions.clone(),
            console: own_terminal().and_then(console_name),
            assume_console,
            addresses: host
                .net
                .interfaces
                .iter()
                .flat_map(|interface| &interface.addresses)
                .map(|address| address.net.addr())
                .collect(),
        }
    }

    /// Whether a connection comes from this very machine: then it never met what is in front of it.
    fn is_local(&self, session: &Session) -> bool {
        let peer = session.peer.to_canonical();
        peer.is_loopback() || self.addresses.contains(&peer)
    }
}

/// Device number of this process's terminal (proc(5), field 7 of stat); `None` without one.
fn own_terminal() -> Option<u32> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let after = stat.get(stat.rfind(')')? + 2..)?;
    let number: i64 = after.split(' ').nth(4)?.parse().ok()?;
    u32::try_from(number).ok().filter(|number| *number != 0)
}

/// The name of a terminal that hangs on the machine itself (Linux: admin-guide/devices.txt).
fn console_name(device: u32) -> Option<String> {
    let (major, minor) = (libc::major(device.into()), libc::minor(device.into()));
    match (major, minor) {
        (4, 0..=63) => Some(format!("tty{minor}")),
        (4, minor) => Some(format!("ttyS{}", minor - 64)),
        (5, 1) => Some("console".into()),
        (204, 64..) => Some(format!("ttyAMA{}", minor - 64)),
        (229, minor) => Some(format!("hvc{minor}")),
        _ => None,
    }
}

/// Why a confirmation does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// It came over a connection that was open before: such a one lives on behind a shut door.
    #[error(
        "this connection (from {} port {}) was open before the changes, so it proves nothing: log in anew and confirm there (with a shared connection: ssh -o ControlPath=none)",
        .0.peer, .0.peer_port
    )]
    OldConnection(Session),
    /// It came over a connection that this machine made to itself.
    #[error(
        "this connection comes from the machine itself ({}), so it proves nothing: log in from outside and confirm there (if you come in through a tunnel that ends here: with --i-have-a-console)",
        .0.peer
    )]
    FromHere(Session),
    /// This caller runs below no SSH connection and on no console. Nor does it help that nobody was
    /// connected over SSH at all: he may have come by a way that is not seen (mosh, a tunnel's own
    /// shell), and such a connection lives on behind a shut door too.
    #[error(
        "it cannot be seen that you came in after the changes: confirm from a new login, outside of tmux or screen (or from the console, with --i-have-a-console)"
    )]
    NoConnection,
}

fn same(one: &Session, other: &Session) -> bool {
    one.peer.to_canonical() == other.peer.to_canonical()
        && one.peer_port == other.peer_port
        && one.local_port == other.local_port
}

/// The way in that the caller has proven, in words. `old` are the connections that were open when
/// the changes were complete, or before.
pub(super) fn proven(caller: &Caller, old: &[Session]) -> Result<String, Unproven> {
    let own = || caller.sessions.iter().filter(|session| session.own);
    let stale = own().find(|session| old.iter().any(|before| same(before, session)));
    let local = own().find(|session| caller.is_local(session));
    match (own().next(), stale, local) {
        _ if caller.assume_console => {}
        (_, Some(stale), _) => return Err(Unproven::OldConnection(stale.clone())),
        (_, _, Some(local)) => return Err(Unproven::FromHere(local.clone())),
        (Some(own), None, None) => {
            return Ok(format!(
                "a new SSH connection from {} port {}",
                own.peer, own.peer_port
            ));
        }
        (None, None, None) => {}
    }
    if caller.assume_console {
        return Ok("somebody who has a console".into());
    }
    if let Some(console) = &caller.console {
        return Ok(format!("the console {console}"));
    }
    Err(Unproven::NoConnection)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(port: u16, own: bool) -> Session {
        Session {
            peer: "203.0.113.9".parse().unwrap(),
            peer_port: port,
            local: "192.0.2.1".parse().unwrap(),
            local_port: 22,
            pid: None,
            own,
        }
    }

    /// Whether a confirmation counts: connections open before, connections now (port, own).
    fn check(old: &[u16], now: &[(u16, bool)], console: Option<&str>, counts: bool) {
        let old: Vec<Session> = old.iter().map(|port| session(*port, false)).collect();
        let caller = Caller {
            sessions: now.iter().map(|(port, own)| session(*port, *own)).collect(),
            console: console.map(str::to_owned),
            ..Caller::default()
        };
        assert_eq!(proven(&caller, &old).is_ok(), counts, "{old:?} {caller:?}");
        // Who has a console may always confirm.
        let sure = Caller {
            assume_console: true,
            ..caller
        };
        assert!(proven(&sure, &old).is_ok());
    }

    #[test]
    fn only_a_new_way_in_counts() {
        check(&[1000], &[(1000, true)], None, false);
        check(&[1000], &[(1000, false), (1001, true)], None, true);
        // A new connection of somebody else proves nothing for the caller.
        check(&[1000], &[(1000, true), (1001, false)], None, false);
        // Below tmux nothing is known.
        check(&[1000], &[(1000, false), (1001, false)], None, false);
        check(&[1000], &[], Some("tty1"), true);
        check(&[1000], &[], None, false);
        // He came by a way that is not seen, so that nothing is known of its age.
        check(&[], &[], None, false);
        check(&[], &[], Some("tty1"), true);
        check(&[], &[(1001, true)], None, true);
        // An old connection stays one, even with a console's terminal.
        check(&[1000], &[(1000, true)], Some("tty1"), false);
    }

    #[test]
    fn a_connection_from_the_machine_to_itself_proves_nothing() {
        for peer in [
            "127.0.0.1",
            "::ffff:127.0.0.1",
            "::1",
            "192.0.2.1",
            "::ffff:192.0.2.1",
        ] {
            let mut own = session(2000, true);
            own.peer = peer.parse().unwrap();
            let caller = Caller {
                sessions: vec![own],
                addresses: vec!["192.0.2.1".parse().unwrap()],
                ..Caller::default()
            };
            let said = proven(&caller, &[session(1000, false)]);
            assert!(
                matches!(said, Err(Unproven::FromHere(_))),
                "{peer}: {said:?}"
            );
        }
    }

    #[test]
    fn a_variable_that_names_another_connection_does_not_make_an_old_one_new() {
        // Below the old connection 2000, with SSH_CONNECTION of the new one 1000.
        for (new, old) in [(1000, 2000), (2000, 1000)] {
            check(&[old], &[(new, true), (old, true)], None, false);
        }
    }

    #[test]
    fn an_old_connection_is_known_in_either_notation() {
        let mut mapped = session(1000, true);
        mapped.peer = "::ffff:203.0.113.9".parse().unwrap();
        let caller = Caller {
            sessions: vec![mapped],
            ..Caller::default()
        };
        assert!(proven(&caller, &[session(1000, false)]).is_err());
    }

    #[test]
    fn consoles_are_known_by_number() {
        let check = |major: u32, minor: u32, name: Option<&str>| {
            let device = u32::try_from(libc::makedev(major, minor)).unwrap();
            assert_eq!(console_name(device).as_deref(), name);
        };
        check(4, 1, Some("tty1"));
        check(4, 64, Some("ttyS0"));
        check(229, 0, Some("hvc0"));
        check(5, 1, Some("console"));
        check(136, 3, None);
        check(0, 0, None);
    }
}
