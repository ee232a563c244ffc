//! A whole machine with a real container engine, and questions to it from every side.
#![allow(dead_code)]

pub mod spaces;

use lab::{Host, Machine, Output, address};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// The program under test, where a lab host shares this machine's files.
pub const PORTCULLIS_HERE: &str = env!("CARGO_BIN_EXE_portcullis");
/// Its place on a whole machine.
pub const PORTCULLIS: &str = "/usr/local/bin/portcullis";
/// A knock that gets no answer.
pub const BOUND: Duration = Duration::from_millis(900);
/// What must come up.
pub const SOON: Duration = Duration::from_secs(30);

pub struct Engine {
    pub machine: Machine,
    /// `docker` or `podman`.
    pub cli: &'static str,
}

/// What changes by itself: counters, times, and the order in which `nft` numbers nothing.
pub fn bare(rules: &str) -> String {
    rules
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut line = line.to_owned();
            while let (Some(from), Some(to)) = (line.find('['), line.find(']')) {
                if from > to {
                    break;
                }
                line.replace_range(from..=to, "");
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let mut out: Vec<&str> = Vec::new();
            let mut skip = 0;
            for (at, word) in words.iter().enumerate() {
                if skip > 0 {
                    skip -= 1;
                    continue;
                }
                out.push(word);
                if *word == "counter" && words.get(at + 1) == Some(&"packets") {
                    skip = 4;
                }
            }
            out.join(" ")
        })
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

impl Engine {
    pub fn new(machine: Machine, cli: &'static str) -> Engine {
        machine
            .copy_in(Path::new(env!("CARGO_BIN_EXE_portcullis")), PORTCULLIS)
            .unwrap();
        Engine { machine, cli }
    }

    /// Runs the engine's own command, two minutes at most.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        let mut argv = vec![self.cli];
        argv.extend(arguments);
        let output = self.long(&argv);
        assert!(
            output.success(),
            "{argv:?}: {}{}",
            output.stdout,
            output.stderr
        );
        output.stdout
    }

    pub fn long(&self, argv: &[&str]) -> Output {
        self.machine
            .command(argv)
            .unwrap()
            .timeout(Duration::from_secs(180))
            .run()
            .unwrap()
    }

    #[track_caller]
    pub fn ok(&self, argv: &[&str]) -> String {
        let output = self.long(argv);
        assert!(
            output.success(),
            "{argv:?}: {}{}",
            output.stdout,
            output.stderr
        );
        output.stdout
    }

    /// Starts a container of the image `web:1`.
    #[track_caller]
    pub fn serve(&self, name: &str, options: &[&str]) {
        let mut arguments = vec!["run", "-d", "--name", name];
        arguments.extend(options);
        arguments.push("web:1");
        self.run(&arguments);
    }

    /// A container's address in a network.
    #[track_caller]
    pub fn address(&self, name: &str, network: &str, field: &str) -> IpAddr {
        let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").{field}}}}}");
        let text = self.run(&["inspect", "--format", &format, name]);
        text.trim()
            .parse()
            .unwrap_or_else(|_| panic!("{name}: no address but {text:?}"))
    }

    /// A page from inside a container.
    pub fn fetches(&self, container: &str, to: IpAddr, port: u16) -> bool {
        let get = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 3 {to} {port}");
        let argv = [
            self.cli,
            "exec",
            container,
            "/bin/busybox",
            "sh",
            "-c",
            &get,
        ];
        self.long(&argv).stdout.contains("200 OK")
    }

    #[track_caller]
    pub fn apply(&self, more: &[&str]) -> String {
        let mut argv = vec![PORTCULLIS, "apply", "--yes", "--i-have-a-console"];
        argv.extend(more);
        let output = in_time(|| self.long(&argv));
        assert!(output.success(), "{}{}", output.stdout, output.stderr);
        output.stdout
    }

    #[track_caller]
    pub fn nothing_to_do(&self) {
        let plan = self.long(&[PORTCULLIS, "plan"]);
        assert_eq!(plan.code(), Some(0), "{}{}", plan.stdout, plan.stderr);
    }

    /// An audit that could ask the engine: one that just starts may answer too late.
    pub fn audit(&self) -> serde_json::Value {
        let end = Instant::now() + SOON;
        loop {
            let audit = self.long(&[PORTCULLIS, "audit", "--json"]);
            let audit: serde_json::Value = serde_json::from_str(&audit.stdout)
                .unwrap_or_else(|e| panic!("{e}: {}{}", audit.stdout, audit.stderr));
            if audit["unseen"] == serde_json::json!([]) {
                return audit;
            }
            assert!(Instant::now() < end, "not seen: {}", audit["unseen"]);
        }
    }

    /// The machine's rules, each family and backend, as its tools list them.
    pub fn rules(&self) -> Vec<String> {
        [
            &["nft", "list", "ruleset"][..],
            &["iptables-save"],
            &["ip6tables-save"],
            &["ufw", "status", "verbose"],
        ]
        .iter()
        .map(|argv| bare(&self.ok(argv)))
        .collect()
    }
}

/// Applies, again where the watchdog ended it: on a machine under load its time for the changes may run out, and
/// then everything is as before.
pub fn in_time(apply: impl Fn() -> Output) -> Output {
    for _ in 0..2 {
        let output = apply();
        // Ended by a signal, or rolled back.
        if !matches!(output.code(), None | Some(4)) {
            return output;
        }
        eprintln!("not in time: {}", output.stderr);
    }
    apply()
}

/// True when some finding has this id.
pub fn has(audit: &serde_json::Value, id: &str) -> bool {
    let findings = audit["findings"].as_array().unwrap();
    findings.iter().any(|f| f["id"] == id)
}

pub fn ids(audit: &serde_json::Value) -> Vec<&str> {
    let findings = audit["findings"].as_array().unwrap();
    findings.iter().filter_map(|f| f["id"].as_str()).collect()
}

/// Whether the audit says that `from` surely reaches the port at `to`; `None` when it says "maybe".
pub fn says_open(audit: &serde_json::Value, to: IpAddr, port: u16, from: IpAddr) -> Option<bool> {
    let mut maybe = false;
    for endpoint in audit["endpoints"].as_array().unwrap() {
        let at: IpAddr = endpoint["address"].as_str().unwrap().parse().unwrap();
        if endpoint["port"] != port || !(at == to || at.is_unspecified()) {
            continue;
        }
        for exposure in endpoint["exposure"].as_array().unwrap() {
            let holds = |list: &serde_json::Value| {
                list.as_array().unwrap().iter().any(|net| {
                    let net: ipnet::IpNet = net.as_str().unwrap().parse().unwrap();
                    net.contains(&from)
                })
            };
            if holds(&exposure["admitted"]) {
                return Some(true);
            }
            maybe |= holds(&exposure["conditional"]);
        }
    }
    (!maybe).then_some(false)
}

/// The address that a host of the lab has in the family of `to`.
pub fn own(who: &Host, to: IpAddr) -> IpAddr {
    match (who.name(), to) {
        ("stranger", IpAddr::V4(_)) => address::STRANGER,
        ("stranger", IpAddr::V6(_)) => address::STRANGER_V6,
        (_, IpAddr::V4(_)) => address::NEIGHBOUR,
        (_, IpAddr::V6(_)) => address::NEIGHBOUR_V6,
    }
}

/// One knock; an open port may need a moment.
pub fn knock(who: &Host, to: IpAddr, port: u16, expect: bool) -> bool {
    let end = Instant::now() + if expect { SOON } else { BOUND };
    loop {
        let open = who.connect(to, port, BOUND).unwrap();
        if open == expect || Instant::now() > end {
            return open;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[track_caller]
pub fn check(who: &Host, to: IpAddr, port: u16, open: bool, case: &str) {
    let seen = knock(who, to, port, open);
    assert_eq!(seen, open, "{case}: {} -> {to}:{port}", who.name());
}

/// Knocks on all of them at once, since nothing tells a closed port but the time that passes.
#[track_caller]
pub fn all_closed(knocks: &[(&Host, IpAddr, u16)], case: &str) {
    let open: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = knocks
            .iter()
            .map(|&(who, to, port)| {
                scope.spawn(move || (who, to, port, knock(who, to, port, false)))
            })
            .collect();
        let answers = threads.into_iter().map(|t| t.join().unwrap());
        let open = answers.filter(|(.., open)| *open);
        open.map(|(who, to, port, _)| format!("{} -> {to}:{port}", who.name()))
            .collect()
    });
    assert!(open.is_empty(), "{case}: open: {}", open.join(", "));
}
