//! What a look at a whole host costs, beside the tools that an operator would use instead.
//!
//! As root: `cargo bench -p portcullis --bench observe [-- ROUNDS]` makes a lab host with 300
//! rules, 30 sockets and 10 containers, and times in turns, in one run:
//! `portcullis snapshot --no-probe` (a whole observe, written out), `portcullis audit` without and with
//! questions to the local ports (all of them web servers, on the host and in the containers), an
//! observe in a process that runs already, with and without sshd, and `iptables-save`, `nft list
//! ruleset`, `ss -lntup`, `ip addr`, `ip route`, `docker ps` one after the other. Every program writes to /dev/null and is timed from its start to its end. What each
//! costs in time of a processor is shown as well, since it does not depend on what else runs; it is
//! the program's own and that of the programs it starts, not what daemons spend on answering.
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

/// A copy of nginx under another name, since nginx is known and not asked anything.
const SERVICE: &str = "/etc/service/service";
const CONF: &str = "/etc/service/nginx.conf";
const CONF_ON_HOST: &str = "/etc/service/host.conf";

/// What the copy needs of the host in a container.
const MOUNTS: [&str; 6] = [
    "/usr:/usr:ro",
    "/lib:/lib:ro",
    "/lib64:/lib64:ro",
    "/etc/passwd:/etc/passwd:ro",
    "/etc/group:/etc/group:ro",
    "/etc/service:/etc/service:ro",
];

/// sshd's settings in effect, as an observe asks for them.
const SSHD: [&str; 2] = ["/usr/sbin/sshd", "-T"];

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
    server.write(CONF, nginx_conf(&[80])).unwrap();
    server.ok(&["cp", "/usr/sbin/nginx", SERVICE]).unwrap();
    for n in 0..CONTAINERS {
        let publish = format!("{}:80", 18_000 + n);
        let name = format!("web-{n}");
        let mut argv = vec!["run", "-d", "--name", &name, "-p", &publish];
        for mount in MOUNTS {
            argv.extend(["-v", mount]);
        }
        argv.extend(["--entrypoint", SERVICE, "web:1", "-c", CONF]);
        docker.cli(&argv).unwrap();
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
    let ports: Vec<u16> = (20_000..).take(SOCKETS - sockets()).collect();
    server.write(CONF_ON_HOST, nginx_conf(&ports)).unwrap();
    let mut nginx = server.spawn(&[SERVICE, "-c", CONF_ON_HOST]).unwrap();
    nginx
        .wait_until("nginx", Duration::from_secs(10), |_| sockets() == SOCKETS)
        .unwrap();
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
    let containers = || lines(&["docker", "ps", "-q"], &|_| true);
    let counted = (rules(), sockets(), containers());
    assert_eq!(
        counted,
        (RULES, SOCKETS, CONTAINERS),
        "rules, sockets, containers"
    );
    println!("host: {RULES} rules, {SOCKETS} sockets, {CONTAINERS} containers");
    let this = std::env::current_exe().unwrap();
    let argv = [&*this.to_string_lossy(), INSIDE, &rounds.to_string()].map(str::to_owned);
    let bound = Duration::from_secs(30 + 2 * rounds as u64);
    print!("{}", server.command(&argv).timeout(bound).ok().unwrap());
}

/// A web server like those of most AI services in what matters here: unknown to the catalog, so that it is asked
/// everything, and keeping connections open, as HTTP/1.1 servers do unless told otherwise (RFC 9112, section 9.3).
fn nginx_conf(ports: &[u16]) -> String {
    let listens: String = ports.iter().map(|p| format!("listen {p};")).collect();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("{what}_temp_path /tmp/{what};\n"))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\nuser root;\nerror_log /dev/null;\npid /tmp/nginx.pid;\nevents {{}}\n\
         http {{\naccess_log off;\n{temporary}server {{\n{listens}\nlocation = / {{ return 200 x; }}\n\
         location / {{ return 404; }}\n}}\n}}\n"
    )
}

/// Time on a clock, and time of a processor.
type Cost = (Duration, Duration);

/// What all children so far have cost.
fn processor() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let of = |t: nix::sys::time::TimeVal| {
        Duration::new(t.tv_sec() as u64, 0) + Duration::from_micros(t.tv_usec() as u64)
    };
    of(usage.user_time()) + of(usage.system_time())
}

/// Runs a program with its output thrown away; what it cost.
fn cost(argv: &[&str]) -> Cost {
    let before = processor();
    let start = Instant::now();
    let status = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let took = start.elapsed();
    // `audit` says with 1 that it found something, with 5 that something is in doubt.
    let code = status.unwrap_or_else(|e| panic!("{argv:?}: {e}")).code();
    assert!(matches!(code, Some(0 | 1 | 5)), "{argv:?}: {code:?}");
    (took, processor() - before)
}

/// What one round cost.
struct Row {
    /// portcullis, in the order of [`OURS`].
    ours: [Cost; 3],
    /// A whole observe in a process that runs already, without the making of a text.
    alone: Duration,
    /// The one program that an observe runs, by itself.
    sshd: Cost,
    /// The tools together.
    tools: Cost,
}

/// What portcullis is asked for.
const OURS: [&[&str]; 3] = [
    &["snapshot", "--no-probe"],
    &["audit", "--no-probe"],
    &["audit"],
];

fn inside(rounds: usize) {
    let portcullis = env!("CARGO_BIN_EXE_portcullis");
    let ours = OURS.map(|words| [&[portcullis], words].concat());
    let mut rows = Vec::new();
    let mut each: Vec<Vec<Cost>> = vec![Vec::new(); TOOLS.len()];
    for round in 0..=rounds {
        // In turns, and who is first changes.
        let tools = |each: &mut Vec<Vec<Cost>>| {
            let mut sum = Cost::default();
            for (tool, list) in TOOLS.iter().zip(each) {
                let c = cost(tool);
                list.push(c);
                sum = (sum.0 + c.0, sum.1 + c.1);
            }
            sum
        };
        let first = (round % 2 == 0).then(|| tools(&mut each));
        let costs = ours.each_ref().map(|argv| cost(argv));
        let start = Instant::now();
        drop(host::observe::observe());
        let row = Row {
            ours: costs,
            alone: start.elapsed(),
            sshd: cost(&SSHD),
            tools: first.unwrap_or_else(|| tools(&mut each)),
        };
        // The first round only warms caches.
        if round > 0 {
            rows.push(row);
        }
    }
    let without = without_sshd(rounds);
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let spread = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let most = values[values.len() - 1];
        (values[values.len() / 2], values[0], most)
    };
    println!("median of {rounds} rounds (least to most), and time of a processor");
    let show = |what: &str, costs: &[Cost]| {
        let (median, least, most) = spread(costs.iter().map(|c| ms(c.0)).collect());
        let (processor, ..) = spread(costs.iter().map(|c| ms(c.1)).collect());
        println!("{what:<34} {median:>7.1} ms ({least:.1} to {most:.1}) {processor:>7.1} ms");
    };
    for (at, words) in OURS.iter().enumerate() {
        let costs: Vec<Cost> = rows.iter().map(|row| row.ours[at]).collect();
        show(&format!("portcullis {}", words.join(" ")), &costs);
    }
    let sshd: Vec<Cost> = rows.iter().map(|row| row.sshd).collect();
    show("  of each: sshd -T", &sshd);
    let sums: Vec<Cost> = rows.iter().map(|row| row.tools).collect();
    show("the six tools, one after the other", &sums);
    for (tool, list) in TOOLS.iter().zip(&each) {
        show(&format!("  {}", tool.join(" ")), &list[1..]);
    }
    let ratio = |what: &str, pairs: Vec<(Duration, Duration)>| {
        let ratios = pairs.into_iter().map(|(tools, ours)| ms(tools) / ms(ours));
        let (median, least, most) = spread(ratios.collect());
        println!("tools / {what}, pair by pair: {median:.1} x ({least:.1} to {most:.1})");
    };
    let pairs = |of: fn(&Row) -> (Duration, Duration)| rows.iter().map(of).collect();
    ratio("snapshot", pairs(|r| (r.tools.0, r.ours[0].0)));
    ratio("observe alone", pairs(|r| (r.tools.0, r.alone)));
    ratio("observe alone, without sshd -T", without);
    ratio(
        "snapshot, time of a processor",
        pairs(|r| (r.tools.1, r.ours[0].1)),
    );
    println!("peak memory, MiB");
    let this = std::env::current_exe().unwrap();
    let this = this.to_string_lossy();
    for argv in ours.iter().map(Vec::as_slice).chain(TOOLS) {
        let mut words = vec![PEAK];
        words.extend(argv);
        let out = Command::new(&*this).args(words).output().unwrap();
        let kib: f64 = String::from_utf8_lossy(&out.stdout).trim().parse().unwrap();
        let name = argv.join(" ").replace(portcullis, "portcullis");
        println!("  {name:<32} {:>8.1}", kib / 1024.0);
    }
}

/// The tools and an observe where no sshd can be run: what an observe costs by itself.
fn without_sshd(rounds: usize) -> Vec<(Duration, Duration)> {
    // In the lab host's own view of the disk.
    let run = |argv: &[&str]| {
        let done = Command::new(argv[0]).args(&argv[1..]).status();
        assert!(done.unwrap().success(), "{argv:?}");
    };
    run(&["mount", "--bind", "/dev/null", SSHD[0]]);
    let tools = || TOOLS.iter().map(|tool| cost(tool).0).sum();
    let pair = |_| {
        let start = Instant::now();
        drop(host::observe::observe());
        let ours = start.elapsed();
        (tools(), ours)
    };
    let pairs = (0..rounds).map(pair).collect();
    // What is measured next has its sshd again.
    run(&["umount", SSHD[0]]);
    pairs
}

/// Prints the largest resident size of a program in KiB.
fn peak_of(argv: &[&str]) {
    cost(argv);
    println!(
        "{}",
        getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss()
    );
}
