//! Side by side with other scanners on the servers that exactness is shown on:
//! `cargo run --release -p portcullis-scan --example bench_scan [RUNS] [SERVER…] [--only TOOL]`, as
//! root. With 100 and `--only portcullis` it is the count of exact runs of a hundred.
//!
//! Everything happens in network namespaces made here. Each tool scans all 65,535 TCP ports;
//! "exact" counts the runs that found exactly the open ports and none else. CPU is that of the
//! scanner's process; packets are those that left the scanner's interface. A tool that takes longer
//! than the cap is ended and counts as not done; one that takes more than 40 s is run once. Tools
//! that are not in PATH (masscan, RustScan) are left out, and said to be. The last column is the
//! time of this scanner as a share of that tool's.

#![allow(clippy::unwrap_used, reason = "a bench ends by panicking")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use common::relay::Cable;
use common::{FEW, FOR_OTHERS, Listeners, Manner, Net, SERVER, many};
use scan::packet::{self, PacketOptions};
use scan::{PortSet, PortState};

/// Seconds that a tool gets for one scan.
const CAP: u64 = 130;

struct Run {
    wall: Duration,
    cpu: Duration,
    packets: u64,
    exact: bool,
}

fn main() {
    // Run as a scanner by itself, so that its CPU is its own.
    if std::env::args().nth(1).as_deref() == Some("--scan") {
        return scan_here();
    }
    lab::require_root();
    let mut args = std::env::args().skip(1);
    let runs: usize = args.next().map_or(5, |runs| runs.parse().unwrap());
    let mut wanted: Vec<String> = args.collect();
    let only = wanted.iter().position(|word| word == "--only").map(|at| {
        wanted.remove(at);
        wanted.remove(at)
    });
    let delay = Cable {
        delay: Duration::from_millis(10),
        lost: 10,
        ..Cable::default()
    };
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    let nmap = |more: &[&str]| -> Vec<String> {
        let fixed = ["nmap", "-sS", "-Pn", "-n", "-p-", "-oG", "-"];
        let all = fixed.iter().chain(more).chain(&[SERVER]);
        all.map(ToString::to_string).collect()
    };
    let masscan = |rate: &str| -> Vec<String> {
        let fixed = ["masscan", SERVER, "-p0-65535", "--rate", rate];
        let more = ["--wait", "1", "-oG", "-"];
        fixed.iter().chain(&more).map(ToString::to_string).collect()
    };
    let tools: Vec<(&str, Vec<String>)> = vec![
        (
            "portcullis scan",
            vec![own.into(), "--scan".into(), SERVER.into()],
        ),
        ("nmap -sS", nmap(&[])),
        ("nmap -T4", nmap(&["-T4"])),
        ("nmap --min-rate 50000", nmap(&["--min-rate", "50000"])),
        ("masscan --rate 100000", masscan("100000")),
        ("masscan --rate 1000000", masscan("1000000")),
        ("RustScan -b 15000", rustscan()),
    ];
    let tools: Vec<(&str, Vec<String>)> = tools
        .into_iter()
        .filter(|(tool, _)| {
            only.as_ref()
                .is_none_or(|only| tool.starts_with(only.as_str()))
        })
        .filter_map(|(tool, mut argv)| {
            let Some(path) = program(&argv[0]) else {
                eprintln!("not installed, so not measured: {tool}");
                return None;
            };
            argv[0] = path;
            Some((tool, argv))
        })
        .collect();
    println!(
        "| server | tool | median wall s | CPU s | packets | exact | ours/its |\n\
         |---|---|---|---|---|---|---|"
    );
    for (name, manner, open, cable) in [
        ("A: drops", Manner::Drops, FEW.to_vec(), None),
        ("B: resets", Manner::Resets, FEW.to_vec(), None),
        ("C: seldom resets", Manner::RareResets, FEW.to_vec(), None),
        (
            "D: A, 20 ms, 2 % loss",
            Manner::Drops,
            FEW.to_vec(),
            Some(delay),
        ),
        ("D200: D, 204 open", Manner::Drops, many(), Some(delay)),
    ] {
        if !wanted.is_empty() && !wanted.iter().any(|w| name.starts_with(w.as_str())) {
            continue;
        }
        let net = Net::new(cable);
        let mut served = open.clone();
        if manner != Manner::Resets {
            served.extend([FOR_OTHERS, 11434]);
        }
        let _listeners = Listeners::new(&net.server, &served);
        net.rules(manner, &open);
        // masscan sends everything to a router, so there has to be one.
        net.scanner
            .ip(&format!("route add default via {SERVER}"))
            .unwrap();
        let mut ours = None;
        for (tool, argv) in &tools {
            // What takes minutes is not waited for five times.
            let mut done: Vec<Run> = Vec::new();
            for _ in 0..runs {
                let run = measure(&net, argv, &open);
                let slow = run.wall > Duration::from_secs(40);
                done.push(run);
                if slow {
                    break;
                }
            }
            report(name, tool, &mut done, &mut ours);
        }
    }
}

fn report(server: &str, tool: &str, runs: &mut [Run], ours: &mut Option<f64>) {
    runs.sort_by_key(|run| run.wall);
    let median = &runs[runs.len() / 2];
    let capped = if median.wall.as_secs() >= CAP {
        " (ended)"
    } else {
        ""
    };
    let wall = median.wall.as_secs_f64();
    // The first tool is this one.
    let share = *ours.get_or_insert(wall) / wall;
    let share = if share > 0.1 {
        format!("{share:.2}")
    } else {
        format!("1/{:.0}", 1.0 / share)
    };
    println!(
        "| {server} | {tool} | {wall:.2}{capped} | {:.2} | {} | {}/{} | {share} |",
        median.cpu.as_secs_f64(),
        median.packets,
        runs.iter().filter(|run| run.exact).count(),
        runs.len()
    );
}

fn rustscan() -> Vec<String> {
    let words = [
        "rustscan",
        "--no-config",
        "--no-banner",
        "-g",
        "-a",
        SERVER,
        "-r",
        "1-65535",
        "-b",
        "15000",
        "-t",
        "1500",
        "--ulimit",
        "20000",
    ];
    words.iter().map(ToString::to_string).collect()
}

/// The path of a program, or of this one.
fn program(name: &str) -> Option<String> {
    if Path::new(name).is_absolute() {
        return Some(name.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .map(|file| file.to_string_lossy().into_owned())
}

fn measure(net: &Net, argv: &[String], open: &[u16]) -> Run {
    let sent = || -> u64 {
        let path = "/proc/net/dev";
        let text = net
            .scanner
            .in_net(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
        let text = text
            .unwrap()
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        text.lines()
            .find_map(|line| line.trim().strip_prefix("eth0:"))
            .and_then(|rest| rest.split_whitespace().nth(9))
            .unwrap()
            .parse()
            .unwrap()
    };
    let (packets, cpu, begun) = (sent(), children(), Instant::now());
    let mut bounded: Vec<String> = vec!["/usr/bin/timeout".into(), CAP.to_string()];
    bounded.extend(argv.iter().cloned());
    // In the scanner's network only, as a child of this process, so that its CPU can be counted.
    let output = net
        .scanner
        .in_net(|| {
            std::process::Command::new(&bounded[0])
                .args(&bounded[1..])
                .env_clear()
                .stdin(std::process::Stdio::null())
                .output()
        })
        .unwrap()
        .unwrap();
    let wall = begun.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    // Grepable output of nmap and masscan: "Ports: 22/open/tcp//…".
    let mut found: BTreeSet<u16> = text
        .split([' ', '\t', ',', '\n'])
        .filter_map(|word| word.split_once("/open/tcp")?.0.parse().ok())
        .collect();
    // RustScan: "10.7.0.2 -> [22,443]".
    if let Some((_, list)) = text.split_once("-> [") {
        let list = list.split(']').next().unwrap_or_default();
        found.extend(
            list.split(',')
                .filter_map(|port| port.trim().parse::<u16>().ok()),
        );
    }
    Run {
        wall,
        cpu: children() - cpu,
        packets: sent() - packets,
        exact: output.status.success() && found.iter().eq(open),
    }
}

/// CPU time of the children that have ended.
fn children() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    let usage = usage.unwrap();
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
    };
    of(usage.user_time()) + of(usage.system_time())
}

/// What a child of this program does: one scan, printed as nmap would grep it.
fn scan_here() {
    let target = std::env::args().nth(2).unwrap().parse().unwrap();
    let options = PacketOptions::default();
    let report = packet::scan(&[target], &PortSet::all(), &options, &mut |_| {}).unwrap();
    for port in &report.targets[0].ports {
        if port.state == PortState::Open {
            println!("{}/open/tcp", port.port);
        }
    }
    std::process::exit(i32::from(report.inconclusive()));
}
