//! fail2ban: its server asked over its own socket, and its files.

use super::disk::Disk;
use super::gaps::{Gaps, words};
use super::http::{self, dial, receive, send};
use super::pickle::{self, Value};
use crate::exec::Program;
use portcullis_core::host::{Fail2ban, Jail, Uncertain};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

mod copied;
mod real_lines;
mod self_test;

/// `CSPROTO` of `fail2ban/protocol.py`.
const END: &[u8] = b"<F2B_END_COMMAND>";
const CLOSE: &[u8] = b"<F2B_CLOSE_COMMAND><F2B_END_COMMAND>";
/// Most bytes of an answer.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Most jails that are asked about.
const MAX_JAILS: usize = 1000;

/// How to look.
pub(super) struct Given<'a> {
    /// The server's socket, where it is not to be looked up in the settings.
    pub socket: Option<&'a Path>,
    /// Time that the server gets altogether.
    pub patience: Duration,
    /// True when units and the journal can be asked.
    pub systemd: bool,
}

/// fail2ban, `None` when it is not installed.
pub(super) fn read(disk: &Disk, given: &Given<'_>) -> (Option<Fail2ban>, Gaps) {
    let mut gaps = Gaps::default();
    if !disk.exists("/usr/bin/fail2ban-server") {
        return (None, gaps);
    }
    let (jail_local_is_copy, jail_local_differs) = copied::read(disk);
    let mut fail2ban = Fail2ban {
        jail_local_is_copy,
        jail_local_differs,
        log_target: Some(
            setting(disk, "logtarget").unwrap_or_else(|| "/var/log/fail2ban.log".into()),
        ),
        python_systemd: disk.exists("/usr/lib/python3/dist-packages/systemd/journal.py"),
        sshd_log: ["/var/log/auth.log", "/var/log/secure"]
            .iter()
            .find(|path| disk.path(path).is_file())
            .map(|path| (*path).to_owned()),
        ..Fail2ban::default()
    };
    let socket = given
        .socket
        .map_or_else(|| disk.path(&socket_path(disk)), PathBuf::from);
    let mut server = Server {
        path: socket,
        deadline: Instant::now() + given.patience,
        stream: None,
    };
    match server.read(&mut fail2ban) {
        Ok(unread) => {
            fail2ban.alive = true;
            if given.systemd && disk.is_real() {
                server.try_filter(&mut fail2ban);
            }
            for jail in unread {
                gaps.add(
                    "fail2ban",
                    format!("the jail {jail:?} did not tell everything"),
                    Uncertain::Mechanism,
                );
            }
        }
        Err(http::Error::Io(error))
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            if disk.is_real() {
                fail2ban.why_dead = why_dead(given.systemd);
            }
        }
        Err(http::Error::Late) => {
            fail2ban.why_dead = Some(format!(
                "the server did not answer within {} ms",
                given.patience.as_millis()
            ));
        }
        Err(error) => gaps.add("fail2ban", words(&error), Uncertain::Mechanism),
    }
    (Some(fail2ban), gaps)
}

/// One command to the running server, as its client sends it; true when the server says that it is done.
pub(crate) fn does(words: &[&str], patience: Duration) -> bool {
    let disk = Disk::new(Path::new("/"));
    let mut server = Server {
        path: disk.path(&socket_path(&disk)),
        deadline: Instant::now() + patience,
        stream: None,
    };
    let answer = server.ask(words);
    if let Some(stream) = &mut server.stream {
        let _ = send(stream, CLOSE, server.deadline);
    }
    matches!(answer, Ok(Some(_)))
}

/// `socket` of the settings.
fn socket_path(disk: &Disk) -> String {
    setting(disk, "socket")
        .filter(|path| path.starts_with('/'))
        .unwrap_or_else(|| "/var/run/fail2ban/fail2ban.sock".to_owned())
}

/// A setting of fail2ban.conf and what overrides it (jail.conf(5), "Configuration files format").
fn setting(disk: &Disk, name: &str) -> Option<String> {
    let mut files = vec!["/etc/fail2ban/fail2ban.conf".to_owned()];
    files.extend(disk.list("/etc/fail2ban/fail2ban.d", ".conf"));
    files.push("/etc/fail2ban/fail2ban.local".to_owned());
    files.extend(disk.list("/etc/fail2ban/fail2ban.d", ".local"));
    let mut found = None;
    for file in files {
        let Ok(Some(text)) = disk.text(&file) else {
            continue;
        };
        for line in text.lines() {
            if let Some((key, value)) = line.split_once('=')
                && key.trim() == name
                && !value.trim().is_empty()
            {
                found = Some(value.trim().to_owned());
            }
        }
    }
    found
}

/// fail2ban's own words on why it does not run.
fn why_dead(systemd: bool) -> Option<String> {
    if systemd {
        let journal = Program::new("journalctl")
            .args([
                "--unit=fail2ban.service",
                "--lines=300",
                "--no-pager",
                "--output=cat",
                "--quiet",
            ])
            .timeout(Duration::from_secs(2))
            .max_output(1024 * 1024)
            .run();
        if let Ok(output) = journal
            && let Some(line) = complaint(&output.stdout_text())
        {
            return Some(line);
        }
    }
    self_test::said()
}

/// The first error of the last start, without time and process.
fn complaint(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let begin = lines
        .iter()
        .rposition(|line| line.starts_with("Started ") || line.starts_with("Starting "))
        .unwrap_or(0);
    let error = |lines: &[&str]| {
        lines.iter().find_map(|line| {
            let at = line.find("ERROR")?;
            let text = line[at + "ERROR".len()..].trim_start_matches([':', ' ', '\t']);
            let text = text
                .strip_prefix("Failed during configuration: ")
                .unwrap_or(text);
            let text: String = text.trim().chars().take(500).collect();
            (!text.is_empty()).then_some(text)
        })
    };
    error(&lines[begin..]).or_else(|| {
        // Restarted without errors so far, or a start whose errors came before its own line.
        let mut earlier = lines[..begin].to_vec();
        earlier.reverse();
        error(&earlier)
    })
}

/// The running server.
struct Server {
    path: PathBuf,
    deadline: Instant,
    stream: Option<UnixStream>,
}

impl Server {
    /// Asks for everything; the names of jails that did not answer every question.
    fn read(&mut self, fail2ban: &mut Fail2ban) -> Result<Vec<String>, http::Error> {
        if self.ask(&["ping"])?.as_ref().and_then(Value::text) != Some("pong") {
            return Err(http::Error::Malformed("no pong"));
        }
        if let Some(version) = self.ask(&["version"])? {
            fail2ban.version = version.text().unwrap_or_default().to_owned();
        }
        let status = self.ask(&["status"])?.unwrap_or(Value::None);
        let mut unread = Vec::new();
        for name in jail_names(&status).into_iter().take(MAX_JAILS) {
            let mut jail = Jail {
                name,
                ..Jail::default()
            };
            if self.jail(&mut jail).is_err() {
                unread.push(jail.name.clone());
            }
            fail2ban.jails.push(jail);
        }
        if let Some(stream) = &mut self.stream {
            let _ = send(stream, CLOSE, self.deadline);
        }
        Ok(unread)
    }

    fn jail(&mut self, jail: &mut Jail) -> Result<(), http::Error> {
        let name = jail.name.clone();
        let mut get = |what: &str| self.ask(&["get", &name, what]);
        let number = |value: Option<Value>| value.as_ref().and_then(Value::int);
        jail.max_retry = number(get("maxretry")?).and_then(|n| u32::try_from(n).ok());
        jail.find_time = number(get("findtime")?).and_then(|n| u64::try_from(n).ok());
        jail.ban_time = number(get("bantime")?);
        jail.ignore_ip = texts(get("ignoreip")?);
        jail.actions = texts(get("actions")?);
        jail.files = texts(get("logpath")?);
        // Only a journal backend knows the question; others answer with an error.
        jail.journal = get("journalmatch")?.as_ref().and_then(journal);
        jail.banned = texts(get("banip")?)
            .iter()
            .flat_map(|text| text.split_whitespace())
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .collect();
        if !jail.banned.is_empty() {
            jail.since = since(&texts(self.ask(&["get", &name, "banip", "--with-time"])?));
        }
        jail.failed_total = self
            .ask(&["status", &name])?
            .as_ref()
            .and_then(failed_total);
        jail.banned.sort();
        jail.banned.dedup();
        Ok(())
    }

    /// Whether the sshd jail's filter recognises this host's lines, tried only where it never did: with
    /// the regular expressions that the server uses, by the program that it uses.
    fn try_filter(&mut self, fail2ban: &mut Fail2ban) {
        let Some(jail) = fail2ban
            .jails
            .iter_mut()
            .find(|j| j.name == "sshd" && j.failed_total == Some(0))
        else {
            return;
        };
        let mut expressions = |what: &str| {
            let answer = self.ask(&["get", "sshd", what]).ok().flatten();
            texts(answer)
        };
        let prefix = expressions("prefregex");
        let fails = expressions("failregex");
        if !fails.is_empty() {
            jail.unmatched = real_lines::unmatched(&prefix, &fails);
        }
    }

    /// The answer; `None` when the server says that the question was wrong.
    fn ask(&mut self, words: &[&str]) -> Result<Option<Value>, http::Error> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => dial(&self.path, self.deadline)?,
        };
        let mut request = pickle::request(words);
        request.extend_from_slice(END);
        send(&mut stream, &request, self.deadline)?;
        let mut answer = Vec::new();
        let mut part = [0; 32 * 1024];
        while !answer.ends_with(END) {
            match receive(&mut stream, &mut part, self.deadline)? {
                0 => return Err(http::Error::Io(ErrorKind::UnexpectedEof.into())),
                read => answer.extend_from_slice(&part[..read]),
            }
            if answer.len() > MAX_ANSWER {
                return Err(http::Error::TooLarge(MAX_ANSWER));
            }
        }
        self.stream = Some(stream);
        answer.truncate(answer.len() - END.len());
        let answer = pickle::read(&answer).ok_or(http::Error::Malformed("a damaged pickle"))?;
        match answer {
            Value::List(mut pair) if pair.len() == 2 => {
                let value = pair.pop();
                let good = matches!(pair.first(), Some(Value::Int(0)));
                Ok(value.filter(|_| good))
            }
            _ => Err(http::Error::Malformed("not the shape of an answer")),
        }
    }
}

/// Out of `192.0.2.1 \t2026-11-22 10:00:00 + 3600 = 2026-11-22 11:00:00`, a line each.
fn since(lines: &[String]) -> BTreeMap<IpAddr, String> {
    lines
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| {
            let (address, times) = line.split_once('\t')?;
            let (since, _) = times.split_once(" + ")?;
            let plain = since.len() < 40
                && since
                    .chars()
                    .all(|c| c.is_ascii_digit() || " -:".contains(c));
            Some((
                address.trim().parse().ok()?,
                plain.then(|| since.trim().to_owned())?,
            ))
        })
        .collect()
}

/// Out of `[('Filter', [('Currently failed', 0), ('Total failed', 7), …]), …]`.
fn failed_total(status: &Value) -> Option<u64> {
    let pairs = status.items().iter().find_map(|part| {
        let part = part.items();
        (part.first()?.text()? == "Filter").then(|| part.get(1))?
    })?;
    pairs.items().iter().find_map(|pair| {
        let pair = pair.items();
        let total = pair.first()?.text()? == "Total failed";
        total.then(|| u64::try_from(pair.get(1)?.int()?).ok())?
    })
}

/// Jail names out of `[('Number of jail', 2), ('Jail list', 'sshd, web')]`, sorted.
fn jail_names(status: &Value) -> Vec<String> {
    let mut names: Vec<String> = status
        .items()
        .iter()
        .filter(|pair| pair.items().first().and_then(Value::text) == Some("Jail list"))
        .filter_map(|pair| pair.items().get(1)?.text())
        .flat_map(|list| list.split(','))
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// A list of texts, or one text.
fn texts(value: Option<Value>) -> Vec<String> {
    let one = |value: &Value| value.text().map(str::to_owned);
    match &value {
        Some(Value::List(items)) => items.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// `[['_SYSTEMD_UNIT=sshd.service', '+', '_COMM=sshd']]` as one line.
fn journal(value: &Value) -> Option<String> {
    let matches: Vec<String> = value
        .items()
        .iter()
        .map(|group| match group {
            Value::List(_) => texts(Some(group.clone())).join(" "),
            other => other.text().unwrap_or_default().to_owned(),
        })
        .filter(|text| !text.is_empty())
        .collect();
    (!matches.is_empty()).then(|| matches.join(" + "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    fn check(log: &str, expected: Option<&str>) {
        assert_eq!(complaint(log).as_deref(), expected, "{log}");
    }

    #[test]
    fn the_first_error_of_the_last_start() {
        check(
            "Started fail2ban.service - Fail2Ban Service.
2026-11-22 09:00:00,000 fail2ban                [70]: ERROR   Failed during configuration: While reading from '/etc/fail2ban/jail.local' [line 3]: section 'sshd' already exists
fail2ban.service: Main process exited, code=exited, status=255/EXCEPTION
Started fail2ban.service - Fail2Ban Service.
2026-11-22 10:00:00,000 fail2ban                [80]: ERROR   Failed during configuration: Have not found any log file for sshd jail
2026-11-22 10:00:00,010 fail2ban                [80]: ERROR   Async configuration of server failed
fail2ban.service: Failed with result 'exit-code'.
",
            Some("Have not found any log file for sshd jail"),
        );
        check(
            "x ERROR   one\ny ERROR   two\nStarted fail2ban.service - Fail2Ban Service.\nServer ready\n",
            Some("two"),
        );
        check("Server ready\n", None);
        check("", None);
        check("ERROR\n", None);
    }

    #[test]
    fn the_times_of_bans() {
        let lines = [
            "192.0.2.1 \t2026-11-22 10:00:00 + 3600 = 2026-11-22 11:00:00".to_owned(),
            "2001:db8::1 \t2026-11-22 10:00:01 + -1 = 9999-12-31 23:59:59".to_owned(),
            "nonsense".to_owned(),
            "192.0.2.2 \t\u{1b}[31m + 1 = x".to_owned(),
        ];
        let found = since(&lines);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            found[&"192.0.2.1".parse::<IpAddr>().unwrap()],
            "2026-11-22 10:00:00"
        );
    }

    #[test]
    fn the_socket_of_the_settings() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path());
        assert_eq!(socket_path(&disk), "/var/run/fail2ban/fail2ban.sock");
        let etc = folder.path().join("etc/fail2ban/fail2ban.d");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(
            etc.join("../fail2ban.conf"),
            "#socket = /no\nsocket = /run/a\n",
        )
        .unwrap();
        assert_eq!(socket_path(&disk), "/run/a");
        std::fs::write(etc.join("x.local"), "[DEFAULT]\n socket=/run/b\n").unwrap();
        assert_eq!(socket_path(&disk), "/run/b");
    }

    /// A server whose answers are given by the words asked.
    fn server(path: &Path, answer: impl Fn(&[String]) -> Vec<u8> + Send + 'static) {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut seen = Vec::new();
                let mut byte = [0];
                while matches!(stream.read(&mut byte), Ok(1)) {
                    seen.push(byte[0]);
                    if seen.ends_with(END) {
                        let Some(value) = pickle::read(&seen[..seen.len() - END.len()]) else {
                            break;
                        };
                        let asked: Vec<String> = texts(Some(value));
                        let reply = [answer(&asked), END.to_vec()].concat();
                        // In two parts, as a stream may deliver it.
                        let (first, second) = reply.split_at(reply.len() / 2);
                        stream.write_all(first).unwrap();
                        stream.flush().unwrap();
                        std::thread::sleep(Duration::from_millis(1));
                        stream.write_all(second).unwrap();
                        seen.clear();
                    }
                }
            }
        });
    }

    /// Pickle of `(0, …)` with the given inner opcodes.
    fn good(inner: &[u8]) -> Vec<u8> {
        [b"\x80\x04K\x00", inner, b"\x86."].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        [&[0x8c, text.len() as u8], text.as_bytes()].concat()
    }

    fn read_from(socket: &Path, patience: Duration) -> (Fail2ban, Gaps) {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("usr/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join("fail2ban-server"), "").unwrap();
        let given = Given {
            socket: Some(socket),
            patience,
            systemd: false,
        };
        let (fail2ban, gaps) = read(&Disk::new(folder.path()), &given);
        (fail2ban.unwrap(), gaps)
    }

    #[test]
    fn a_server_tells_its_jails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        server(&path, |words| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["ping"] => good(&text("pong")),
                ["version"] => good(&text("1.0.2")),
                ["status"] => {
                    let list = [
                        b"]".to_vec(),
                        text("Jail list"),
                        text("web, sshd"),
                        b"\x86a".to_vec(),
                    ];
                    good(&list.concat())
                }
                ["get", "sshd", "maxretry"] => good(b"K\x03"),
                ["get", "sshd", "findtime"] => good(b"M\x58\x02"),
                ["get", "sshd", "bantime"] => good(b"J\xff\xff\xff\xff"),
                ["get", "sshd", "ignoreip"] => good(
                    &[
                        b"](".to_vec(),
                        text("127.0.0.0/8"),
                        text("::1"),
                        b"e".to_vec(),
                    ]
                    .concat(),
                ),
                ["get", "sshd", "actions"] => {
                    good(&[b"]".to_vec(), text("portcullis"), b"a".to_vec()].concat())
                }
                ["get", "sshd", "banip"] => good(
                    &[
                        b"](".to_vec(),
                        text("203.0.113.9"),
                        text("2001:db8::1"),
                        text("x"),
                        b"e".to_vec(),
                    ]
                    .concat(),
                ),
                ["get", "sshd", "journalmatch"] => good(
                    &[
                        b"]](".to_vec(),
                        text("_SYSTEMD_UNIT=ssh.service"),
                        text("+"),
                        text("_COMM=sshd"),
                        b"ea".to_vec(),
                    ]
                    .concat(),
                ),
                // (1, 'no')
                _ => [b"\x80\x04K\x01".to_vec(), text("no"), b"\x86.".to_vec()].concat(),
            }
        });
        let (fail2ban, gaps) = read_from(&path, Duration::from_secs(5));
        assert!(fail2ban.alive);
        assert_eq!(fail2ban.version, "1.0.2");
        assert!(gaps.list().is_empty());
        let sshd = &fail2ban.jails[0];
        assert_eq!(
            sshd,
            &Jail {
                name: "sshd".to_owned(),
                max_retry: Some(3),
                find_time: Some(600),
                ban_time: Some(-1),
                ignore_ip: vec!["127.0.0.0/8".to_owned(), "::1".to_owned()],
                banned: vec![
                    "203.0.113.9".parse().unwrap(),
                    "2001:db8::1".parse().unwrap()
                ],
                actions: vec!["portcullis".to_owned()],
                files: vec![],
                journal: Some("_SYSTEMD_UNIT=ssh.service + _COMM=sshd".to_owned()),
                ..Jail::default()
            }
        );
        assert_eq!(fail2ban.jails[1].name, "web");
        assert_eq!(fail2ban.jails[1].max_retry, None);
    }

    #[test]
    fn a_server_that_hangs_or_lies_is_not_alive() {
        let folder = tempfile::tempdir().unwrap();
        let silent = folder.path().join("silent");
        let _listener = UnixListener::bind(&silent).unwrap();
        let (fail2ban, _) = read_from(&silent, Duration::from_millis(200));
        assert!(!fail2ban.alive);
        assert_eq!(
            fail2ban.why_dead.as_deref(),
            Some("the server did not answer within 200 ms")
        );
        let liar = folder.path().join("liar");
        server(&liar, |_| b"nonsense".to_vec());
        let (fail2ban, gaps) = read_from(&liar, Duration::from_secs(5));
        assert!(!fail2ban.alive);
        assert_eq!(
            gaps.list()[0].why,
            "the answer makes no sense: a damaged pickle"
        );
        // Not running: no gap, it is simply dead.
        let (fail2ban, gaps) = read_from(&folder.path().join("none"), Duration::from_secs(5));
        assert!(!fail2ban.alive && gaps.list().is_empty());
    }
}
