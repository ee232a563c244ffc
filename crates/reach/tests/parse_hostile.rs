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

/// Input that would take years if reading were quadratic. No clock decides but a very patient one.
#[test]
fn large() {
    let started = Instant::now();
    let sized = |unit: &str| unit.repeat(4_000_000 / unit.len());
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
        check(&sized(unit));
        check(&format!("*filter\n{}", sized(unit)));
        check(&format!("table ip t {{ chain c {{ {}", sized(unit)));
    }
    let many_chains: String = (0..40_000)
        .map(|n| format!(":c{n} - [0:0]\nnonsense\n"))
        .collect();
    check(&format!("*filter\n{many_chains}"));
    let many_chains: String = (0..40_000)
        .map(|n| format!("chain c{n} {{ }}\nnonsense\n"))
        .collect();
    check(&format!("table ip t {{ {many_chains}"));
    let many_tables: String = (0..20_000)
        .map(|n| format!("table ip t{n} {{ chain c {{ }} }}\nx\n"))
        .collect();
    check(&many_tables);
    check(&format!("*filter\n-A INPUT {}\n", sized("-s 1.2.3.4 ")));
    check(&format!(
        "*filter\n-A INPUT -m tcp {}\n",
        sized("--dport 1 ")
    ));
    check(&format!("*filter\n-A INPUT -s {}\n", sized("1.2.3.4,")));
    check(&format!(
        "table ip t {{ chain c {{ ip saddr {{ {}",
        sized("1.2.3.4, ")
    ));
    check(&format!(
        "table ip t {{ set s {{ type ipv4_addr; elements = {{ {}",
        sized("1.2.3.4, ")
    ));
    check(&format!("{{\"nftables\":[{}", sized("1,")));
    check(&format!(
        "{{\"nftables\":[{{\"set\":{{\"elem\":[{}",
        sized("1,")
    ));
    assert!(
        started.elapsed() < Duration::from_secs(300),
        "{:?}",
        started.elapsed()
    );
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
