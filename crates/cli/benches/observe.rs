//! What a look at a whole host costs, beside the tools that an operator would use instead.
//!
//! As root: `cargo bench -p portcullis --bench observe [-- ROUNDS]` makes a lab host with 300
//! rules, 30 sockets and 10 containers, and times in turns, in one run:
//! `portcullis snapshot` (a whole observe, written out), `portcullis audit`, and
//! `iptables-save`, `nft list ruleset`, `ss -lntup`, `ip addr`, `ip route`, `docker ps` one after
//! the other. Every program writes to /dev/null and is timed from its start to its end.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A bench: it stops at the first fault.

use nix::sys::resource::{UsageWho, getrusage};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where the commands are timed: inside the host, so that entering it is nobody's cost.
const INSIDE: &str = "--inside";
/// One program by itself, for its peak of memory.
const PEAK: &str = "--peak";
const RULES: usize = 300;
const SOCKETS: usize = 30;
const CONTAINERS: usize = 10;

const TOOLS: [&[&str]; 6] = [
    &["/usr/sbin/iptables-save"],
    &["/usr/sbin/nft", "list", "ruleset"],
    &["/usr/bin/ss", "-lntup"],
    &["/usr/sbin/ip", "addr"],
    &["/usr/sbin/ip", "route"],
    &["/usr/bin/docker", "ps"],
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [INSIDE, rounds] => inside(rounds.parse().unwrap()),
        [PEAK, argv @ ..] => peak_of(argv),
        _ => outside(words.iter().find_map(|w| w.parse().ok()).unwrap_or(21)),
    }
}

/// Makes the host and starts this program in it.
fn outside(rounds: usize) {
    lab::require_root();
    let world = lab::World::new("bench-observe").unwrap();
    let server = &world.server;
    let _sshd = server.sshd().unwrap();
    let _fail2ban = server.fail2ban().unwrap();
    server.ok(&["ufw", "limit", "22/tcp"]).unwrap();
    server.ok(&["ufw", "allow", "443/tcp"]).unwrap();
    server.ok(&["ufw", "--force", "enable"]).unwrap();
    let docker = server.dockerd().unwrap();
    docker.import_web_image("web:1", "hello").unwrap();
    for n in 0..CONTAINERS {
        let publish = format!("{}:80", 18_000 + n);
        docker
            .run(&format!("web-{n}"), &["-p", &publish], "web:1")
            .unwrap();
    }
    let lines = |argv: &[&str], wanted: &dyn Fn(&str) -> bool| {
        server
            .ok(argv)
            .unwrap()
            .lines()
            .filter(|l| wanted(l))
            .count()
    };
    let sockets = || lines(&["ss", "-Hlntu"], &|_| true);
    let mut services = Vec::new();
    for n in sockets()..SOCKETS {
        let listen = format!("0.0.0.0:{}", 20_000 + n);
        services.push(server.http_server("service", &listen, "x").unwrap());
    }
    let rule = |l: &str| l.starts_with("-A");
    let rules = || lines(&["iptables-save"], &rule) + lines(&["ip6tables-save"], &rule);
    let mut batch = "*filter\n".to_owned();
    for n in rules()..RULES {
        let source = format!("10.{}.{}.0/24", n / 256, n % 256);
        batch += &format!("-A ufw-user-input -s {source} -p tcp -m tcp --dport 8080 -j ACCEPT\n");
    }
    batch += "COMMIT\n";
    server
        .command(&["iptables-restore", "-n"])
        .input(batch)
        .ok()
        .unwrap();
    println!(
        "host: {} rules, {} sockets, {} containers",
        rules(),
        sockets(),
        lines(&["docker", "ps", "-q"], &|_| true)
    );
    let this = std::env::current_exe().unwrap();
    let argv = [&*this.to_string_lossy(), INSIDE, &rounds.to_string()].map(str::to_owned);
    let bound = Duration::from_secs(30 + 2 * rounds as u64);
    print!("{}", server.command(&argv).timeout(bound).ok().unwrap());
}

/// Runs a program with its output thrown away; how long it took.
fn took(argv: &[&str]) -> Duration {
    let start = Instant::now();
    let status = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let took = start.elapsed();
    // `audit` says with 1 that it found something.
    let code = status.unwrap_or_else(|e| panic!("{argv:?}: {e}")).code();
    assert!(matches!(code, Some(0 | 1)), "{argv:?}: {code:?}");
    took
}

fn inside(rounds: usize) {
    let portcullis = env!("CARGO_BIN_EXE_portcullis");
    let (snapshot, audit) = ([portcullis, "snapshot"], [portcullis, "audit"]);
    let mut rows = Vec::new();
    let mut each: Vec<Vec<Duration>> = vec![Vec::new(); TOOLS.len()];
    for round in 0..=rounds {
        // In turns, and who is first changes.
        let tools = |each: &mut Vec<Vec<Duration>>| {
            let mut sum = Duration::ZERO;
            for (tool, list) in TOOLS.iter().zip(each) {
                let t = took(tool);
                list.push(t);
                sum += t;
            }
            sum
        };
        let row = if round % 2 == 0 {
            let sum = tools(&mut each);
            (took(&snapshot), took(&audit), sum)
        } else {
            let (s, a) = (took(&snapshot), took(&audit));
            (s, a, tools(&mut each))
        };
        // The first round only warms caches.
        if round > 0 {
            rows.push(row);
        }
    }
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let column = |get: &dyn Fn(&(Duration, Duration, Duration)) -> f64| {
        let mut values: Vec<f64> = rows.iter().map(get).collect();
        values.sort_by(f64::total_cmp);
        (
            values[values.len() / 2],
            values[0],
            values[values.len() - 1],
        )
    };
    let show = |what: &str, (median, least, most): (f64, f64, f64), unit: &str| {
        println!("{what:<34} {median:>8.1} {unit:<3} ({least:.1} to {most:.1})");
    };
    println!("median of {rounds} rounds (least to most)");
    show("portcullis snapshot", column(&|r| ms(r.0)), "ms");
    show("portcullis audit", column(&|r| ms(r.1)), "ms");
    show(
        "the six tools, one after the other",
        column(&|r| ms(r.2)),
        "ms",
    );
    for (tool, list) in TOOLS.iter().zip(&each) {
        let mut list: Vec<f64> = list[1..].iter().map(|d| ms(*d)).collect();
        list.sort_by(f64::total_cmp);
        let median = list[list.len() / 2];
        show(
            &format!("  {}", tool.join(" ")),
            (median, list[0], list[list.len() - 1]),
            "ms",
        );
    }
    let ratio = |r: &(Duration, Duration, Duration)| r.2.as_secs_f64() / r.0.as_secs_f64();
    show("tools / snapshot, pair by pair", column(&ratio), "x");
    println!("peak memory, MiB");
    let this = std::env::current_exe().unwrap();
    let this = this.to_string_lossy();
    for argv in [&snapshot[..], &audit].into_iter().chain(TOOLS) {
        let mut words = vec![PEAK];
        words.extend(argv);
        let out = Command::new(&*this).args(words).output().unwrap();
        let kib: f64 = String::from_utf8_lossy(&out.stdout).trim().parse().unwrap();
        let name = argv.join(" ").replace(portcullis, "portcullis");
        println!("  {name:<32} {:>8.1}", kib / 1024.0);
    }
}

/// Prints the largest resident size of a program in KiB.
fn peak_of(argv: &[&str]) {
    took(argv);
    println!(
        "{}",
        getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss()
    );
}
