//! sshd's ways in, and who came in by them.
//!
//! What is called an SSH port here gets opened by a policy that allows SSH, so only root's sshd
//! counts: a user can run a program called sshd, or the real one, on any high port.

use super::disk::Disk;
use super::gaps::Gaps;
use super::systemd::Listen;
use crate::exec::{self, Program};
use kernel::{Connection, Process, Processes};
use portcullis_core::host::{Session, Socket, Sshd, Uncertain};
use reach::Proto;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// What sshd's settings say, as `sshd -T` prints them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// Where they are from: `sshd -T`, or `sshd_config` when that gave no answer.
    pub source: &'static str,
    ports: BTreeSet<u16>,
    password_authentication: Option<bool>,
    permit_root_login: Option<String>,
}

/// Whether an sshd is installed.
pub(super) fn installed() -> bool {
    exec::find("sshd").is_some()
}

/// The settings in effect, `None` without an sshd.
pub(super) fn settings(disk: &Disk) -> Option<Settings> {
    if disk.is_real() && installed() {
        // Without /run/sshd (a socket-activated sshd that has not run yet) or without the right
        // to read the host keys it refuses; the files still tell most of it.
        let test = Program::new("sshd")
            .arg("-T")
            .timeout(Duration::from_secs(10))
            .max_output(1024 * 1024)
            .run();
        if let Ok(output) = test {
            return Some(Settings {
                source: "sshd -T",
                ..effective(&output.stdout_text())
            });
        }
    }
    let mut text = String::new();
    let mut budget = 1000;
    include(disk, "/etc/ssh/sshd_config", 0, &mut budget, &mut text);
    if text.is_empty() && !installed() {
        return None;
    }
    let mut settings = Settings {
        source: "sshd_config",
        ..effective(&text)
    };
    if settings.ports.is_empty() {
        settings.ports.insert(22);
    }
    Some(settings)
}

/// The lines of a configuration with what it includes, up to its first `Match` block.
fn include(disk: &Disk, path: &str, depth: u32, budget: &mut u32, text: &mut String) {
    if depth > 16 || *budget == 0 {
        return;
    }
    *budget -= 1;
    let Ok(Some(content)) = disk.text(path) else {
        return;
    };
    for line in content.lines() {
        let (key, value) = keyword(line);
        match key.as_str() {
            "match" => return,
            "include" => {
                for pattern in value.split_whitespace() {
                    let pattern = pattern.trim_matches('"');
                    let pattern = match pattern.starts_with('/') {
                        true => pattern.to_owned(),
                        false => format!("/etc/ssh/{pattern}"),
                    };
                    for path in glob(disk, &pattern) {
                        include(disk, &path, depth + 1, budget, text);
                    }
                }
            }
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
}

/// `FOLDER/*SUFFIX` or a plain path; other patterns are not used in practice.
fn glob(disk: &Disk, pattern: &str) -> Vec<String> {
    match pattern.rsplit_once('/') {
        Some((folder, name)) if name.starts_with('*') => disk.list(folder, &name[1..]),
        _ => vec![pattern.to_owned()],
    }
}

/// sshd_config(5): keyword and arguments, `=` allowed between, case of the keyword ignored.
fn keyword(line: &str) -> (String, &str) {
    let line = line.trim();
    let end = line
        .find(|c: char| c.is_whitespace() || c == '=')
        .unwrap_or(line.len());
    let value = line[end..].trim_start_matches(|c: char| c.is_whitespace() || c == '=');
    (line[..end].to_ascii_lowercase(), value.trim())
}

/// Reads settings; the first value of a keyword counts, ports add up.
fn effective(text: &str) -> Settings {
    let mut settings = Settings::default();
    for line in text.lines() {
        let (key, value) = keyword(line);
        match key.as_str() {
            "port" => settings.ports.extend(value.parse::<u16>().ok()),
            "listenaddress" => settings.ports.extend(port_of(value)),
            "passwordauthentication" if settings.password_authentication.is_none() => {
                settings.password_authentication = match value {
                    "yes" => Some(true),
                    "no" => Some(false),
                    _ => None,
                };
            }
            "permitrootlogin" if settings.permit_root_login.is_none() => {
                settings.permit_root_login = Some(value.chars().take(64).collect());
            }
            _ => {}
        }
    }
    settings.ports.remove(&0);
    settings
}

/// The port of `HOST:PORT` or `[V6]:PORT`; none in `HOST` or a bare IPv6 address.
fn port_of(address: &str) -> Option<u16> {
    let address = address.split_whitespace().next()?;
    let (host, port) = address.rsplit_once(':')?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    (bracketed || !host.contains(':')).then(|| port.parse().ok())?
}

/// An sshd run by root on this host (not in a container).
fn is_root_sshd(process: &Process, processes: &Processes) -> bool {
    let name = process
        .exe
        .as_deref()
        .map(|exe| exe.trim_end_matches(" (deleted)"))
        .and_then(|exe| exe.rsplit('/').next());
    process.uid == 0
        && processes.beside(process)
        && matches!(name, Some("sshd" | "sshd-session" | "sshd-auth"))
}

/// A process that serves one connection. It may listen too (for `ssh -R`, for X11), but not for
/// new SSH connections.
fn serves_one(process: &Process) -> bool {
    let title = process.cmdline.first().map_or("", String::as_str);
    let session = title.starts_with("sshd: ") || title.starts_with("sshd-session: ");
    let own_program = process
        .exe
        .as_deref()
        .is_some_and(|exe| exe.contains("/sshd-session") || exe.contains("/sshd-auth"));
    own_program || (session && !listener(&process.cmdline.join(" ")))
}

/// True for the title of an sshd that waits for connections: `sshd: /usr/sbin/sshd -D [listener] 0 of
/// 10-100 startups`. A title has only the room of the command line and the environment that the
/// process was started with (OpenSSH: openbsd-compat/setproctitle.c), so that its end may be cut
/// off; its beginning, the path of the program, tells it too: no user's name begins with a slash.
fn listener(title: &str) -> bool {
    title.contains("[listener]") || title.starts_with("sshd: /")
}

/// True when somebody is logged in over the connection that these processes hold. Before that, sshd's
/// processes are called `sshd: root [priv]`, `sshd: unknown [net]` or `sshd: [accepted]`; afterwards
/// one of them is `sshd: NAME@TTY`, or `sshd: NAME` where no session channel is open (`ssh -N`, a
/// jump to another host) (OpenSSH: sshd.c, auth2.c, session_proctitle). Whoever merely knocks must
/// never count as an operator: what operators get is not for attackers. Titles may be cut (see
/// [`listener`]) before the bracket that tells; what cannot be cut is that until the login, and only
/// until then, one of them runs as `apart`, the user `sshd` (OpenSSH: README.privsep).
fn logged_in(owners: &[&Process], apart: Option<u32>) -> bool {
    if apart.is_some() && owners.iter().any(|process| Some(process.uid) == apart) {
        return false;
    }
    owners.iter().any(|process| {
        let title = process.cmdline.join(" ");
        let who = title
            .strip_prefix("sshd: ")
            .or_else(|| title.strip_prefix("sshd-session: "))
            .map(str::trim);
        who.is_some_and(|who| {
            !who.is_empty() && who != "unknown" && !who.contains('[') && !who.starts_with('/')
        })
    })
}

/// Ports where root's sshd, or systemd for it, listens.
pub(super) fn listening(sockets: &[Socket], processes: &Processes) -> BTreeSet<u16> {
    sockets
        .iter()
        .filter(|socket| socket.proto == Proto::Tcp && !socket.in_container_netns)
        .filter(|socket| {
            if let Some(unit) = &socket.unit
                && matches!(unit.as_str(), "ssh.socket" | "sshd.socket")
            {
                return true;
            }
            let Some(process) = socket.process.as_ref().and_then(|p| processes.get(p.pid)) else {
                return false;
            };
            if process.exe.is_some() {
                return is_root_sshd(process, processes) && !serves_one(process);
            }
            // Without the right to see the program, the system's unit vouches for it.
            matches!(socket.unit.as_deref(), Some("ssh.service" | "sshd.service"))
        })
        .map(|socket| socket.port)
        .collect()
}

/// Everything known about sshd; `None` when there is none.
pub(super) fn sshd(
    settings: Option<&Settings>,
    listening: &BTreeSet<u16>,
    listens: &[Listen],
    sessions: &[Session],
) -> Option<Sshd> {
    let mut by_source = BTreeMap::new();
    let mut add = |source: &str, ports: BTreeSet<u16>| {
        if !ports.is_empty() {
            by_source.insert(source.to_owned(), ports.into_iter().collect::<Vec<_>>());
        }
    };
    let activated: BTreeSet<u16> = listens
        .iter()
        .filter(|listen| {
            listen.stream && matches!(listen.unit.as_str(), "ssh.socket" | "sshd.socket")
        })
        .map(|listen| listen.port)
        .collect();
    if let Some(settings) = settings {
        add(settings.source, settings.ports.clone());
    }
    add("ssh.socket", activated);
    add("listener", listening.clone());
    add(
        "session",
        sessions.iter().map(|session| session.local_port).collect(),
    );
    if by_source.is_empty() {
        return None;
    }
    let ports: BTreeSet<u16> = by_source.values().flatten().copied().collect();
    Some(Sshd {
        ports: ports.into_iter().collect(),
        ports_by_source: by_source,
        password_authentication: settings.and_then(|s| s.password_authentication),
        permit_root_login: settings.and_then(|s| s.permit_root_login.clone()),
    })
}

/// The ports that a connection may have come in by: those of the settings and the listeners.
pub(super) fn ways_in(
    settings: Option<&Settings>,
    listening: &BTreeSet<u16>,
    listens: &[Listen],
) -> BTreeSet<u16> {
    sshd(settings, listening, listens, &[])
        .map(|sshd| sshd.ports.into_iter().collect())
        .unwrap_or_default()
}

/// The user as whom sshd talks to clients that have not logged in, out of the text of /etc/passwd.
pub(super) fn apart(passwd: &str) -> Option<u32> {
    passwd
        .lines()
        .find(|line| line.starts_with("sshd:"))
        .and_then(|line| line.split(':').nth(2)?.parse().ok())
        .filter(|uid| *uid != 0)
}

/// Established TCP connections: of those that sshd holds, all. Where every process can be seen, only
/// sshd's are asked; anywhere else, and where the connection that this process came in by is none of
/// them, the kernel is asked for all that there are.
pub(super) fn connections(
    processes: &Processes,
    own_hint: Option<(IpAddr, u16)>,
) -> Result<Vec<Connection>, kernel::Error> {
    let held = || -> Option<Vec<Connection>> {
        if !processes.unseen.is_empty() {
            return None;
        }
        let mut held = BTreeSet::new();
        for process in processes.iter().filter(|p| is_root_sshd(p, processes)) {
            held.extend(kernel::connections_of(process).ok()?);
        }
        let known = own_hint.is_none_or(|(peer, port)| {
            let mut ends = held.iter().map(|c| (c.peer, c.peer_port));
            ends.any(|end| end == (peer, port))
        });
        known.then(|| held.into_iter().collect())
    };
    match held() {
        Some(held) => Ok(held),
        None => kernel::connections(),
    }
}

/// Who is connected. `ports` are those where sshd listens or is told to; `apart` is [`apart`]'s.
pub(super) fn sessions(
    connections: &[Connection],
    processes: &Processes,
    ports: &BTreeSet<u16>,
    own_hint: Option<(IpAddr, u16)>,
    apart: Option<u32>,
    gaps: &mut Gaps,
) -> Vec<Session> {
    let mut above: BTreeSet<u32> = processes
        .ancestors(std::process::id())
        .iter()
        .map(|process| process.pid)
        .collect();
    above.insert(std::process::id());
    // sshd processes whose connection came in by a port that nobody listens on any more (sshd
    // was told another port meanwhile): the first socket that they have is the client's.
    let mut oldest = BTreeMap::<u32, u64>::new();
    let mut found = BTreeSet::new();
    let mut unowned = 0usize;
    for connection in connections {
        let owners = processes.owners(connection.inode);
        let sshd = owners
            .iter()
            .filter(|process| is_root_sshd(process, processes))
            .copied()
            .collect::<Vec<_>>();
        let by_port = ports.contains(&connection.local_port);
        if sshd.is_empty() && !(by_port && owners.is_empty()) {
            continue;
        }
        if !by_port {
            for process in &sshd {
                let first = oldest.entry(process.pid).or_insert(connection.inode);
                *first = (*first).min(connection.inode);
            }
            continue;
        }
        if sshd.is_empty() {
            unowned += 1;
        }
        for process in &sshd {
            // Its client's connection is known.
            oldest.insert(process.pid, 0);
        }
        found.insert(connection.inode);
    }
    found.extend(oldest.into_values().filter(|inode| *inode != 0));
    if unowned > 0 && !nix::unistd::geteuid().is_root() {
        gaps.add(
            "sessions",
            "the processes of SSH connections cannot be seen",
            Uncertain::Names,
        );
    }
    // Without root the processes are not seen, so that only this one's own session is known.
    let mut sessions: Vec<Session> = connections
        .iter()
        .filter(|connection| found.contains(&connection.inode))
        .filter(|connection| connection.inode != 0 || ports.contains(&connection.local_port))
        .filter_map(|connection| {
            let owners = processes.owners(connection.inode);
            let own = owners.iter().any(|process| above.contains(&process.pid))
                || own_hint == Some((connection.peer, connection.peer_port));
            if !(own || logged_in(&owners, apart)) {
                return None;
            }
            let process = owners
                .iter()
                .find(|process| is_root_sshd(process, processes))
                .or(owners.first());
            Some(Session {
                peer: connection.peer.to_canonical(),
                peer_port: connection.peer_port,
                local: connection.local.to_canonical(),
                local_port: connection.local_port,
                pid: process.map(|process| process.pid),
                own,
            })
        })
        .collect();
    sessions.sort();
    sessions.dedup();
    sessions
}

/// The client named by `SSH_CONNECTION`; only a hint, matched against real connections.
pub(super) fn own_hint(value: Option<&str>) -> Option<(IpAddr, u16)> {
    let mut words = value?.split(' ');
    let address: IpAddr = words.next()?.split('%').next()?.parse().ok()?;
    Some((address.to_canonical(), words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, ports: &[u16], password: Option<bool>, root: Option<&str>) {
        let settings = effective(text);
        let got: Vec<u16> = settings.ports.into_iter().collect();
        assert_eq!(got, ports, "{text}");
        assert_eq!(settings.password_authentication, password, "{text}");
        assert_eq!(settings.permit_root_login.as_deref(), root, "{text}");
    }

    #[test]
    fn settings_in_effect() {
        check(
            "port 22\nport 2222\nlistenaddress [::]:22\nlistenaddress 0.0.0.0:2200\npasswordauthentication no\npermitrootlogin without-password\n",
            &[22, 2200, 2222],
            Some(false),
            Some("without-password"),
        );
        check("", &[], None, None);
        check(
            "# Port 1\n Port=23\nPORT 24 \nListenAddress ::1\nListenAddress 10.0.0.1\nPort many\nPort 0\n",
            &[23, 24],
            None,
            None,
        );
        check(
            "PasswordAuthentication yes\nPasswordAuthentication no\n",
            &[],
            Some(true),
            None,
        );
    }

    #[test]
    fn included_files_count_and_match_blocks_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let ssh = folder.path().join("etc/ssh/sshd_config.d");
        std::fs::create_dir_all(&ssh).unwrap();
        let write = |name: &str, text: &str| std::fs::write(ssh.join(name), text).unwrap();
        write("10-a.conf", "Port 2200\nMatch User x\nPort 1\n");
        write(
            "20-b.conf",
            "PermitRootLogin no\nInclude /etc/ssh/sshd_config\n",
        );
        write("c.txt", "Port 3\n");
        write(
            "../sshd_config",
            "Include sshd_config.d/*.conf\nPermitRootLogin yes\nMatch all\nPort 4\n",
        );
        let settings = settings(&Disk::new(folder.path())).unwrap();
        assert_eq!(settings.source, "sshd_config");
        assert_eq!(settings.ports, BTreeSet::from([2200]));
        // That 20-b includes everything again, itself too, is bounded.
        assert_eq!(settings.permit_root_login.as_deref(), Some("no"));
    }

    #[test]
    fn ports_are_the_union_of_what_is_known() {
        let settings = Settings {
            source: "sshd -T",
            ..effective("port 22\n")
        };
        let listens = [Listen {
            unit: "ssh.socket".to_owned(),
            address: None,
            port: 2022,
            stream: true,
        }];
        let session = Session {
            peer: "203.0.113.9".parse().unwrap(),
            peer_port: 50000,
            local: "192.0.2.1".parse().unwrap(),
            local_port: 8022,
            pid: None,
            own: true,
        };
        let sshd = sshd(Some(&settings), &[22, 2222].into(), &listens, &[session]).unwrap();
        assert_eq!(sshd.ports, [22, 2022, 2222, 8022]);
        let sources: Vec<_> = sshd.ports_by_source.keys().map(String::as_str).collect();
        assert_eq!(sources, ["listener", "session", "ssh.socket", "sshd -T"]);
    }

    #[test]
    fn a_session_that_listens_for_its_user_is_no_way_in() {
        let process = |title: &str, exe: &str| Process {
            pid: 7,
            exe: Some(exe.to_owned()),
            cmdline: vec![title.to_owned()],
            ..Process::default()
        };
        for (title, exe, expected) in [
            ("sshd: root@pts/0", "/usr/sbin/sshd", true),
            ("sshd: alice [priv]", "/usr/sbin/sshd", true),
            (
                "sshd-session: root@pts/0",
                "/usr/lib/openssh/sshd-session",
                true,
            ),
            (
                "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups",
                "/usr/sbin/sshd",
                false,
            ),
            ("/usr/sbin/sshd", "/usr/sbin/sshd", false),
        ] {
            assert_eq!(serves_one(&process(title, exe)), expected, "{title}");
        }
    }

    #[test]
    fn who_merely_knocks_is_no_operator() {
        let process = |title: &str| Process {
            cmdline: vec![title.to_owned()],
            ..Process::default()
        };
        for (titles, expected) in [
            (&["sshd: root@pts/0"][..], true),
            (&["sshd: admin [priv]", "sshd: admin@notty"], true),
            (&["sshd-session: root@notty"], true),
            (&["sshd: root"], true),
            (&["sshd: admin [priv]", "sshd: admin "], true),
            (&["sshd: unknown"], false),
            (&["sshd: "], false),
            (&["sshd: [net]"], false),
            (&["sshd: root [priv]", "sshd: root [net]"], false),
            (&["sshd: unknown [priv]", "sshd: unknown [net]"], false),
            (&["sshd: [accepted]"], false),
            (&["sshd-auth: root [net]"], false),
            // A user with an @ in the name, not yet logged in.
            (&["sshd: a@pts/0 [priv]", "sshd: a@pts/0 [net]"], false),
            (
                &["sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups"],
                false,
            ),
            (&[], false),
        ] {
            let owners: Vec<Process> = titles.iter().map(|title| process(title)).collect();
            let owners: Vec<&Process> = owners.iter().collect();
            assert_eq!(logged_in(&owners, None), expected, "{titles:?}");
        }
    }

    /// `env -i /usr/sbin/sshd` leaves a title the room of `/usr/sbin/sshd -R`.
    #[test]
    fn a_title_cut_before_its_bracket_makes_no_operator_and_hides_no_listener() {
        let process = |title: &str, uid: u32| Process {
            exe: Some("/usr/sbin/sshd".to_owned()),
            cmdline: vec![title.to_owned(), "R".to_owned()],
            uid,
            ..Process::default()
        };
        let apart = apart("root:x:0:0::/root:/bin/sh\nsshd:x:103:65534::/run/sshd:/bin/false\n");
        assert_eq!(apart, Some(103));
        let (monitor, before) = (
            process("sshd: administra", 0),
            process("sshd: administra", 103),
        );
        let after = process("sshd: administra", 1000);
        assert!(!logged_in(&[&monitor, &before], apart));
        assert!(logged_in(&[&monitor, &after], apart));
        let listener = process("sshd: /usr/s", 0);
        assert!(!logged_in(&[&listener], apart));
        assert!(!serves_one(&listener));
        assert_eq!(super::apart("sshdx:x:1:1:::\n"), None);
    }

    #[test]
    fn the_hint_of_the_environment() {
        let hint = |text| own_hint(Some(text)).map(|(a, p)| format!("{a} {p}"));
        assert_eq!(
            hint("203.0.113.9 50000 192.0.2.1 22").as_deref(),
            Some("203.0.113.9 50000")
        );
        assert_eq!(
            hint("::ffff:203.0.113.9 5 ::1 22").as_deref(),
            Some("203.0.113.9 5")
        );
        assert_eq!(hint("fe80::1%eth0 5 ::1 22").as_deref(), Some("fe80::1 5"));
        assert_eq!(hint("x y"), None);
        assert_eq!(own_hint(None), None);
    }
}
