//! What reading the packet filter costs, beside `iptables-save`, `nft list ruleset` and `nft -j`.
//!
//! As root: `cargo bench -p portcullis-kernel --bench rules [-- RULES CHAINS ROUNDS]`, without
//! arguments 10,000 rules in one chain, 10,000 in 100 chains, and 9 rounds of each. The rules are
//! made by `iptables-nft-restore` in a network namespace of the bench's own. The four programs run
//! in turns, in one run, each timed from its start to its end with its output thrown away; ours is
//! this program, which reads, decodes and counts. `-- read` looks at the namespace it is started
//! in, `-- print` prints the rules there.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A bench: it stops at the first fault.

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TOOLS: [&[&str]; 3] = [
    &["/usr/sbin/iptables-nft-save"],
    &["/usr/sbin/nft", "list", "ruleset"],
    &["/usr/sbin/nft", "-j", "list", "ruleset"],
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        // Given by cargo.
        .filter(|w| *w != "--bench")
        .collect();
    match words.as_slice() {
        ["read"] => read(false),
        ["print"] => read(true),
        ["peak", argv @ ..] => {
            took(argv);
            println!(
                "{}",
                getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss()
            );
        }
        [] => {
            compare(10_000, 1, 9);
            compare(10_000, 100, 9);
        }
        [rules, chains, rounds] => compare(
            rules.parse().unwrap(),
            chains.parse().unwrap(),
            rounds.parse().unwrap(),
        ),
        other => panic!("RULES CHAINS ROUNDS, read, print or nothing, not {other:?}"),
    }
}

fn read(print: bool) {
    let filter = kernel::filter().unwrap();
    assert_eq!(filter.unseen, Vec::<String>::new());
    if print {
        for (at, rule) in filter.ruleset.rules() {
            println!("{} {} {}: {}", at.family, at.table, at.chain, rule.text);
        }
    }
    println!("{:?}", filter.stats);
}

/// `rules` rules in `chains` chains of the filter table, as an operator's script would write them.
fn dump(rules: usize, chains: usize) -> String {
    let mut text =
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n".to_owned();
    for chain in 0..chains {
        text += &format!(":list-{chain} - [0:0]\n");
    }
    for chain in 0..chains {
        text += &format!("-A INPUT -j list-{chain}\n");
    }
    for n in 0..rules.saturating_sub(chains) {
        let (a, b, c) = (n >> 16 & 0xff, n >> 8 & 0xff, n & 0xff);
        let chain = n % chains;
        let port = 1 + n % 60_000;
        text += &format!(
            "-A list-{chain} -s 10.{a}.{b}.{c}/32 -p tcp -m tcp --dport {port} -j ACCEPT\n"
        );
    }
    text + "COMMIT\n"
}

fn compare(rules: usize, chains: usize, rounds: usize) {
    let measure = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap(); // As root.
        let mut restore = Command::new("/usr/sbin/iptables-nft-restore")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = restore.stdin.take().unwrap();
        stdin.write_all(dump(rules, chains).as_bytes()).unwrap();
        drop(stdin);
        assert!(restore.wait().unwrap().success());
        in_turns(rules, chains, rounds);
    };
    // The namespace is the thread's, and ends with it.
    std::thread::spawn(measure).join().unwrap();
}

fn in_turns(rules: usize, chains: usize, rounds: usize) {
    let this = std::env::current_exe().unwrap();
    let this = this.to_string_lossy();
    let ours = [&*this, "read"];
    let counted = Command::new(&*this).arg("read").output().unwrap();
    let counted = String::from_utf8_lossy(&counted.stdout).into_owned();
    assert!(counted.contains(&format!("rules: {rules},")), "{counted}");
    let all: Vec<&[&str]> = std::iter::once(&ours[..]).chain(TOOLS).collect();
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); all.len()];
    for round in 0..rounds {
        for at in 0..all.len() {
            // Who is first changes with every round.
            let at = (at + round) % all.len();
            times[at].push(took(all[at]).as_secs_f64());
        }
    }
    println!("{rules} rules in {chains} chains, medians of {rounds} rounds:");
    for (argv, list) in all.iter().zip(&times) {
        let name = argv.join(" ").replace(&*this, "kernel::filter");
        let ratios: Vec<f64> = list.iter().zip(&times[0]).map(|(t, o)| t / o).collect();
        println!(
            "  {name:<32} {:>9.1} ms  {:>6.2} x ours (pair by pair {:.2} to {:.2})  {:>6.1} MiB",
            median(list) * 1e3,
            median(&ratios),
            ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratios.iter().copied().fold(0.0, f64::max),
            peak(&this, argv)
        );
    }
}

fn median(list: &[f64]) -> f64 {
    let mut list = list.to_vec();
    list.sort_by(f64::total_cmp);
    list[list.len() / 2]
}

fn took(argv: &[&str]) -> Duration {
    let start = Instant::now();
    let status = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let took = start.elapsed();
    assert!(status.unwrap().success(), "{argv:?}");
    took
}

/// The largest resident size of a program in MiB: of all children of a process that has no other.
fn peak(this: &str, argv: &[&str]) -> f64 {
    let out = Command::new(this).arg("peak").args(argv).output().unwrap();
    let kib: f64 = String::from_utf8_lossy(&out.stdout).trim().parse().unwrap();
    kib / 1024.0
}
