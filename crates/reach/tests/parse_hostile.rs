//! Readers of dumps meet anything: cut off, mangled, binary, huge. They answer all the same, in time and memory that
//! grow with the input at most.
#![allow(clippy::unwrap_used)]
use reach::parse::{Dumps, MAX_NOTES, MAX_RULES, Note, combine, ipset_save, iptables_save, nft};
use reach::{Backend, Ruleset};
use std::time::{Duration, Instant};

const FIXTURES: [&str; 9] = [
    "docker20.iptables-save",
    "docker20.ip6tables-save",
    "vocabulary.iptables-save",
    "docker20.nft",
    "docker20.nft.json",
    "vocabulary.nft",
    "vocabulary.nft.json",
    "native.nft",
    "native.nft.json",
];

fn fixture(name: &str) -> String {
    std::fs::read_to_string(format!("tests/fixtures/{name}")).unwrap()
}

/// Every reader reads it and comes back, with a bounded number of notes.
fn check(text: &str) {
    let results: [(Ruleset, Vec<Note>); 4] = [
        iptables_save(text, false, Backend::IptablesNft),
        iptables_save(text, true, Backend::IptablesLegacy),
        nft(text),
        ipset_save(text),
    ];
    for (_, notes) in &results {
        assert!(notes.len() <= MAX_NOTES);
    }
    let (all, _) = combine(Dumps {
        iptables: Some(text),
        nft: Some(text),
        ipset: Some(text),
        ..Dumps::default()
    });
    // What is read can be written and read again.
    let _ = all.bare();
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % n.max(1)
    }
}

#[test]
fn cut_off_anywhere() {
    let mut rng = Rng(1);
    for name in FIXTURES {
        let text = fixture(name);
        for _ in 0..25 {
            let mut at = rng.below(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            check(&text[..at]);
            check(&text[at..]);
        }
    }
}

#[test]
fn bytes_changed() {
    let mut rng = Rng(2);
    let odd = b"\"{}[]();:,.!-\n\t\\\0@#*/'=<>&|^+ \xff\xc3\x28";
    for name in FIXTURES {
        let text = fixture(name);
        for _ in 0..25 {
            let mut bytes = text.clone().into_bytes();
            for _ in 0..1 + rng.below(20) {
                let at = rng.below(bytes.len());
                let new = odd[rng.below(odd.len())];
                match rng.below(3) {
                    0 => bytes[at] = new,
                    1 => bytes.insert(at, new),
                    _ => {
                        bytes.remove(at);
                    }
                }
            }
            check(&String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn lines_shuffled_between_dumps() {
    let mut rng = Rng(3);
    let all: Vec<String> = FIXTURES
        .iter()
        .flat_map(|n| fixture(n).lines().map(str::to_string).collect::<Vec<_>>())
        .filter(|l| l.len() < 2000)
        .collect();
    for _ in 0..200 {
        let lines: Vec<&str> = (0..60)
            .map(|_| all[rng.below(all.len())].as_str())
            .collect();
        check(&lines.join("\n"));
    }
}

#[test]
fn binary() {
    let mut rng = Rng(4);
    for size in [0, 1, 100, 100_000] {
        let bytes: Vec<u8> = (0..size).map(|_| rng.below(256) as u8).collect();
        check(&String::from_utf8_lossy(&bytes));
    }
    check("\0");
    check("{");
    check("{\"nftables\":");
    check("*filter\n:INPUT");
    check("table");
}

/// Deep nesting must not end the stack.
#[test]
fn deep() {
    for unit in [
        "{",
        "(",
        "table ip t {",
        "jump { ",
        "[",
        "{\"nftables\":[",
        "ip saddr . ",
        "meta mark set (",
    ] {
        check(&unit.repeat(20_000));
        check(&format!(
            "table ip t {{ chain c {{ {} }} }}",
            unit.repeat(20_000)
        ));
    }
    check(&format!("{{\"nftables\":[{}", "[".repeat(100_000)));
    check(&format!("{{\"nftables\":[{}", "{\"a\":".repeat(100_000)));
}

/// Inputs that repeat one thing. `size` in bytes, about.
fn repeated(size: usize) -> Vec<String> {
    let sized = |unit: &str| unit.repeat(size / unit.len());
    let mut out = vec![];
    for unit in [
        "\n",
        " ",
        "\"",
        "-A \"\n",
        "-A X\n",
        "-I X\n",
        ":a ACCEPT [0:0]\n",
        "garbage\n",
        "*filter\n",
        "-A INPUT -s 1.2.3.4 -j DROP\n",
        "add a 1.2.3.4\n",
        "create a hash:ip\n",
        "# x\n",
        "{",
        "}",
        "; ",
    ] {
        out.push(sized(unit));
        out.push(format!("*filter\n{}", sized(unit)));
        out.push(format!("table ip t {{ chain c {{ {}", sized(unit)));
    }
    let numbered = |before: &str, after: &str| -> String {
        let count = size / (before.len() + after.len() + 5);
        (0..count).map(|n| format!("{before}{n}{after}")).collect()
    };
    out.push(format!(
        "*filter\n{}",
        numbered(":c", " - [0:0]\nnonsense\n")
    ));
    out.push(format!(
        "table ip t {{ {}",
        numbered("chain c", " { }\nnonsense\n")
    ));
    out.push(format!(
        "table ip t {{ {}",
        numbered("set s", " { type mark; }\n")
    ));
    out.push(numbered("table ip t", " { chain c { } }\nx\n"));
    out.push(numbered("*t", "\n:INPUT ACCEPT [0:0]\nCOMMIT\n"));
    out.push(numbered("create s", " hash:ip\n"));
    out.push(format!("*filter\n-A INPUT {}\n", sized("-s 1.2.3.4 ")));
    out.push(format!(
        "*filter\n-A INPUT -m tcp {}\n",
        sized("--dport 1 ")
    ));
    out.push(format!("*filter\n-A INPUT {}\n", sized("-m x ")));
    out.push(format!("*filter\n-A INPUT {}\n", sized("-j X ")));
    out.push(format!("*filter\n-A INPUT -s {}\n", sized("1.2.3.4,")));
    out.push(format!(
        "table ip t {{ chain c {{ {}",
        sized("tcp dport 1 ")
    ));
    out.push(format!(
        "table ip t {{ chain c {{ ip saddr {{ {}",
        sized("1.2.3.4, ")
    ));
    out.push(format!(
        "table ip t {{ set s {{ type mark; elements = {{ {}",
        sized("1, ")
    ));
    out.push(format!("{{\"nftables\":[{}", sized("1,")));
    out.push(format!(
        "{{\"nftables\":[{{\"set\":{{\"elem\":[{}",
        sized("1,")
    ));
    out
}

/// Reading is linear: sixteen times the input takes nowhere near the square of that. The factor is generous, and
/// what is over in a moment is not looked at.
#[test]
fn large() {
    // Time on a processor, so that a busy machine changes nothing: the first number of schedstat, in ns.
    let on_cpu = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let first = text.split_whitespace().next().unwrap();
        Duration::from_nanos(first.parse().unwrap())
    };
    let time = |text: &str| {
        let started = on_cpu();
        check(text);
        on_cpu() - started
    };
    for (small, large) in repeated(20_000).iter().zip(&repeated(320_000)) {
        let (small_time, large_time) = (time(small), time(large));
        let allowed = Duration::from_secs(3).max(small_time * 16 * 6);
        let begin: String = small.chars().take(60).collect();
        assert!(
            large_time <= allowed,
            "{begin:?}: {small_time:?}, {large_time:?}"
        );
    }
}

#[test]
fn too_many_rules_are_counted_as_cut_off() {
    let text = format!(
        "*filter\n:INPUT DROP [0:0]\n{}COMMIT\n",
        "-A INPUT\n".repeat(MAX_RULES + 10)
    );
    let (r, notes) = iptables_save(&text, false, Backend::IptablesNft);
    assert_eq!(r.rule_count(), MAX_RULES + 1);
    assert_eq!(notes.len(), 1);
}

/// 100 MB of one thing after the other: each is answered, and what is kept of it is bounded. Longer than a usual run:
/// `cargo test --release -p portcullis-reach --test parse_hostile -- --ignored --nocapture`;
/// `PORTCULLIS_HOSTILE_MB` says how much.
#[test]
#[ignore = "long: minutes and some GiB"]
fn a_hundred_megabytes_of_anything() {
    let megabytes: usize = match std::env::var("PORTCULLIS_HOSTILE_MB") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 100,
    };
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
        let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib / 1024
    };
    type Read = fn(&str) -> usize;
    let readers: [(&str, Read); 3] = [
        ("iptables-save", |t| {
            iptables_save(t, false, Backend::IptablesNft).1.len()
        }),
        ("nft", |t| nft(t).1.len()),
        ("ipset", |t| ipset_save(t).1.len()),
    ];
    for (before, unit) in [
        (
            "*filter\n:INPUT DROP [0:0]\n",
            "-A INPUT -s 1.2.3.4 -p tcp -m tcp --dport 22 -j DROP\n",
        ),
        (
            "table ip t { chain c {\n",
            "ip saddr 1.2.3.4 tcp dport 22 drop\n",
        ),
        (
            "table ip t { set s { type ipv4_addr; elements = { ",
            "1.2.3.4, ",
        ),
        ("{\"nftables\": [", "{\"rule\": 1}, "),
        ("create s hash:ip\n", "add s 1.2.3.4\n"),
        ("", "garbage \u{0}\u{1b}[2J\n"),
    ] {
        let text = format!("{before}{}", unit.repeat((megabytes << 20) / unit.len()));
        for (name, read) in readers {
            let started = Instant::now();
            assert!(read(&text) <= MAX_NOTES);
            println!(
                "{} MB of {unit:?} read as {name}: {:?}, peak so far {} MiB",
                text.len() >> 20,
                started.elapsed(),
                peak()
            );
        }
    }
    // Rules and elements are counted, and beyond their limits not kept.
    assert!(peak() < 2 * megabytes + 4 * 1024, "{} MiB", peak());
}
