//! Knocking with connect() through what a machine has: python3, bash's /dev/tcp, or nc.
//!
//! What was not seen open is no verdict here: nobody measured what was lost on the way. Such a
//! report is partial, and only a witness on this side turns its silence into an answer.

use super::Ask;
use scan::{PortReport, PortSet, PortState, Report, SCAN_SCHEMA, Summary, TargetReport};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

/// Names the tools that are there. A python3 may be there and not start.
pub const LOOK: &str = "python3 -I -c \"import resource, select, socket\" > /dev/null 2>&1 && \
    echo python3; for t in bash nc timeout; do command -v $t > /dev/null 2>&1 && echo $t; done; true";

/// What knocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    Python,
    Bash,
    Netcat,
}

/// Non-blocking connects, `-` being told apart by error number; one line a port that answered.
const PYTHON: &str = r#"
import errno, resource, select, socket, struct, sys, time
def numbers(text):
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
ports, targets = list(numbers(sys.argv[1])), sys.argv[2:]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))
except (ValueError, OSError):
    pass
room = max(16, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 32, 3000))
reset = struct.pack("ii", 1, 0)
WAIT = 0.8
for target in targets:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        probe = socket.socket(family, socket.SOCK_DGRAM)
        probe.connect((target, 9))
        print("source", target, probe.getsockname()[0])
    except OSError:
        pass
    left, silent = ports, []
    for attempt in range(3):
        queue, left = list(reversed(left)), []
        poll, open_ = select.poll(), {}
        def end(fd, code):
            port, sock, _ = open_.pop(fd)
            poll.unregister(fd)
            sock.close()
            if code == 0:
                print("open", target, port)
            elif code in (errno.ECONNREFUSED, errno.ECONNRESET):
                print("closed", target, port)
            else:
                left.append(port)
        while queue or open_:
            started = 0
            while queue and len(open_) < room and started < 200:
                started += 1
                port = queue.pop()
                try:
                    sock = socket.socket(family, socket.SOCK_STREAM)
                    sock.setblocking(False)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                    code = sock.connect_ex((target, port))
                except OSError:
                    left.append(port)
                    continue
                fd = sock.fileno()
                open_[fd] = (port, sock, time.monotonic() + WAIT)
                poll.register(fd, select.POLLOUT)
                if code not in (0, errno.EINPROGRESS):
                    end(fd, code)
            for fd, _ in poll.poll(5 if queue else 50):
                if fd in open_:
                    end(fd, open_[fd][1].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            now = time.monotonic()
            for fd in [f for f, o in open_.items() if o[2] < now]:
                end(fd, errno.ETIMEDOUT)
    print("asked", target)
sys.stdout.flush()
"#;

impl Tool {
    /// The best of those named, a line each.
    pub fn best(names: &str) -> Option<Tool> {
        let has = |name: &str| names.lines().any(|line| line.trim() == name);
        if has("python3") {
            return Some(Tool::Python);
        }
        if has("bash") && has("timeout") {
            return Some(Tool::Bash);
        }
        has("nc").then_some(Tool::Netcat)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Python => "python3",
            Tool::Bash => "bash",
            Tool::Netcat => "nc",
        }
    }

    /// Whether it can ask all ports in useful time.
    pub fn knows_every_port(self) -> bool {
        self == Tool::Python
    }

    fn ports(self, ask: &Ask) -> PortSet {
        if self.knows_every_port() {
            return ask.tcp.clone();
        }
        let likely = ask.likely.iter().filter(|port| ask.tcp.contains(*port));
        likely.collect()
    }

    /// The script for its standard input, and the remote words that run it.
    pub fn script(self, ask: &Ask) -> (String, Vec<String>) {
        let targets: Vec<String> = ask.targets.iter().map(ToString::to_string).collect();
        if self == Tool::Python {
            let mut words = vec!["python3".into(), "-I".into(), "-".into()];
            words.push(ask.tcp.to_string());
            words.extend(targets);
            return (PYTHON.to_owned(), words);
        }
        let knock = match self {
            Tool::Bash => "timeout 2 bash -c \"exec 3<>/dev/tcp/$1/$2\"",
            _ => "nc -z -w 2 $1 $2",
        };
        let mut script =
            format!("k() {{ {knock} < /dev/null > /dev/null 2>&1 && echo open $1 $2; }}\n");
        for target in targets {
            for (number, port) in self.ports(ask).iter().enumerate() {
                // Twice each, twenty at once.
                let _ = writeln!(script, "{{ k {target} {port} || k {target} {port}; }} &");
                if number % 20 == 19 {
                    script.push_str("wait\n");
                }
            }
            let _ = writeln!(script, "wait\necho asked {target}");
        }
        script.push_str("true\n");
        (script, vec!["sh".into(), "-s".into()])
    }

    /// Reads its lines. They come from another machine: what names no address and port that was
    /// asked about is left out.
    pub fn report(self, ask: &Ask, text: &str) -> Report {
        let asked = self.ports(ask);
        let targets = ask.targets.iter().map(|address| {
            let (mut open, mut closed) = (BTreeSet::new(), BTreeSet::new());
            let (mut source, mut whole) = (None, false);
            for line in text.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                if words.get(1).and_then(|w| w.parse().ok()) != Some(*address) {
                    continue;
                }
                let port = || -> Option<u16> {
                    let port = words.get(2)?.parse().ok()?;
                    asked.contains(port).then_some(port)
                };
                match words[0] {
                    "open" => open.extend(port()),
                    "closed" => closed.extend(port()),
                    "source" => source = words.get(2).and_then(|w| w.parse::<IpAddr>().ok()),
                    "asked" => whole = true,
                    _ => {}
                }
            }
            let note = if whole {
                "what was lost on the way is not known, so what was not seen open is not proven"
            } else {
                "the knock did not come to its end"
            };
            TargetReport {
                address: *address,
                source,
                asked: asked.to_string(),
                partial: true,
                summary: Summary {
                    open: open.len(),
                    closed: closed.len(),
                    rejected: 0,
                    filtered: asked.len() - open.len() - closed.difference(&open).count(),
                },
                ports: open.into_iter().map(found).collect(),
                udp: None,
                note: Some(format!(
                    "knocked with connect() through {}: {note}",
                    self.name()
                )),
            }
        });
        Report {
            schema: SCAN_SCHEMA,
            partial: true,
            targets: targets.collect(),
        }
    }
}

fn found(port: u16) -> PortReport {
    PortReport {
        proto: "tcp".into(),
        port,
        state: PortState::Open,
        reason: "connected".into(),
        service: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask() -> Ask {
        Ask {
            targets: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            of_this_machine: true,
            tcp: PortSet::parse("1-1000").unwrap(),
            likely: PortSet::parse("22,443,8443").unwrap(),
            udp: None,
        }
    }

    #[test]
    fn the_quickest_tool_is_taken() {
        assert_eq!(
            Tool::best("nc\nbash\ntimeout\npython3\n"),
            Some(Tool::Python)
        );
        assert_eq!(Tool::best("nc\nbash\ntimeout\n"), Some(Tool::Bash));
        // Without timeout, bash would hang on every silent port.
        assert_eq!(Tool::best("nc\nbash\n"), Some(Tool::Netcat));
        assert_eq!(Tool::best("welcome to python3\n"), None);
    }

    #[test]
    fn lines_of_the_other_side_are_taken_for_what_was_asked_and_nothing_else() {
        let said = "motd: hello\nsource 192.0.2.1 198.51.100.7\nopen 192.0.2.1 22\n\
            open 192.0.2.1 5000\nopen 203.0.113.9 23\nopen 192.0.2.1 x\nclosed 192.0.2.1 23\n\
            open\n\u{1b}[31m\nasked 192.0.2.1\n";
        let report = Tool::Python.report(&ask(), said);
        assert!(report.partial && report.inconclusive());
        let [first, second] = &report.targets[..] else {
            panic!("{report:?}");
        };
        let ports: Vec<u16> = first.ports.iter().map(|port| port.port).collect();
        assert_eq!(ports, [22]);
        assert_eq!(first.source, Some("198.51.100.7".parse().unwrap()));
        assert_eq!((first.summary.closed, first.summary.filtered), (1, 998));
        assert!(
            second
                .note
                .as_ref()
                .unwrap()
                .contains("did not come to its end")
        );
    }

    #[test]
    fn scripts_hold_numbers_and_addresses_only() {
        let (script, words) = Tool::Bash.script(&ask());
        assert_eq!(words, ["sh", "-s"]);
        assert!(
            script.contains("{ k 192.0.2.1 443 || k 192.0.2.1 443; } &"),
            "{script}"
        );
        assert!(!script.contains("8443"), "{script}");
        assert!(script.contains("echo asked 2001:db8::1"), "{script}");
        let (_, words) = Tool::Python.script(&ask());
        assert_eq!(words[3..], ["1-1000", "192.0.2.1", "2001:db8::1"]);
    }
}
