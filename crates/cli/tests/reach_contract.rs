//! `portcullis reach --json`: the contract that scripts depend on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use assert_cmd::Command;
use serde_json::{Value, json};

const FILTER: &str = "\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:trusted - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j trusted
-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 80 -m limit --limit 3/min -j ACCEPT
-A INPUT -p tcp -m tcp --dport 443 -j REJECT --reject-with icmp-port-unreachable
-A trusted -s 192.168.1.0/24 -j ACCEPT
-A trusted -s 192.168.2.7/32 -m somethingnew --very odd -j ACCEPT
COMMIT
";

#[track_caller]
fn ask(dump: &str, args: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules");
    std::fs::write(&file, dump).unwrap();
    let output = Command::cargo_bin("portcullis")
        .unwrap()
        .args(["reach", "--iptables-save"])
        .arg(&file)
        .args(["--hook", "input", "--json"])
        .args(args)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn sets_are_minimal_sorted_and_cover_the_family() {
    let answer = ask(FILTER, &["--dport", "22"]);
    assert_eq!(answer["schema"], 1);
    assert_eq!(answer["admitted"], json!(["192.168.1.0/24"]));
    // What is not understood is maybe open, never closed.
    assert_eq!(answer["conditional"], json!(["192.168.2.7/32"]));
    let blocked: Vec<ipnet::Ipv4Net> = serde_json::from_value(answer["blocked"].clone()).unwrap();
    let mut sorted = blocked.clone();
    sorted.sort();
    assert_eq!(blocked, sorted);
    assert_eq!(ipnet::Ipv4Net::aggregate(&blocked).len(), blocked.len());
    let addresses: u64 = blocked
        .iter()
        .map(|net| 1u64 << (32 - net.prefix_len()))
        .sum();
    assert_eq!(addresses, (1 << 32) - 256 - 1);
}

#[test]
fn every_part_names_the_rule_that_decided_and_the_way_there() {
    let answer = ask(FILTER, &["--dport", "22"]);
    let decided = answer["decided_by"].as_array().unwrap();
    let accept = decided
        .iter()
        .find(|part| part["verdict"] == "accept")
        .unwrap();
    assert_eq!(accept["sources"], json!(["192.168.1.0/24"]));
    assert!(
        accept["rule"]
            .as_str()
            .unwrap()
            .contains("-s 192.168.1.0/24")
    );
    assert!(
        accept["path"].to_string().contains("-j trusted"),
        "{accept}"
    );
    assert!(decided.iter().any(|part| part["verdict"] == "drop"));
    assert!(decided.iter().any(|part| part["verdict"] == "conditional"));
}

#[test]
fn a_limit_is_conditional_and_a_reject_is_blocked() {
    let limited = ask(FILTER, &["--dport", "80"]);
    assert_eq!(limited["admitted"], json!([]));
    assert_eq!(limited["conditional"], json!(["10.0.0.0/8"]));
    let rejected = ask(FILTER, &["--dport", "443"]);
    assert_eq!(rejected["blocked"], json!(["0.0.0.0/0"]));
    assert_eq!(rejected["decided_by"][0]["verdict"], "reject");
}

#[test]
fn state_and_interface_are_part_of_the_question() {
    let established = ask(FILTER, &["--dport", "9999", "--state", "established"]);
    assert_eq!(established["admitted"], json!(["0.0.0.0/0"]));
    let by_interface = FILTER.replace(
        "-A INPUT -p tcp -m tcp --dport 22",
        "-A INPUT -i eth0 -p tcp -m tcp --dport 22",
    );
    let inside = ask(&by_interface, &["--dport", "22", "--in", "eth0"]);
    assert_eq!(inside["admitted"], json!(["192.168.1.0/24"]));
    let elsewhere = ask(&by_interface, &["--dport", "22", "--in", "eth1"]);
    assert_eq!(elsewhere["admitted"], json!([]));
    let unknown = ask(&by_interface, &["--dport", "22"]);
    assert_eq!(unknown["admitted"], json!([]));
    assert_eq!(
        unknown["conditional"],
        json!(["192.168.1.0/24", "192.168.2.7/32"])
    );
}

#[test]
fn a_cut_or_binary_dump_is_answered_with_maybe() {
    let cut = &FILTER[..FILTER.len() / 2];
    let answer = ask(cut, &["--dport", "8080"]);
    assert_eq!(answer["admitted"], json!([]));
    assert_eq!(answer["blocked"], json!([]), "{answer}");
    let binary = ask("\u{0}\u{1}\u{2}*filter\n\u{7f}ELF", &["--dport", "8080"]);
    assert_eq!(binary["blocked"], json!([]), "{binary}");
}
