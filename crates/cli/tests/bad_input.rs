//! Bad input: each gets a clear error with what to do next, exit 2, and nothing on standard output.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use assert_cmd::Command;
use std::path::PathBuf;

struct Case {
    folder: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        Case {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Runs it; all of `says` must be on standard error.
    #[track_caller]
    fn check(&self, args: &[&str], code: i32, says: &[&str]) {
        let output = Command::cargo_bin("portcullis")
            .unwrap()
            .current_dir(self.folder.path())
            .env_clear()
            .args(args)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        for what in says {
            assert!(stderr.contains(what), "{args:?}: no {what:?} in {stderr}");
        }
        assert!(
            output.stdout.is_empty(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(!stderr.contains('\u{1b}'), "{args:?}: escapes in {stderr}");
    }
}

#[track_caller]
fn policy(text: &str, says: &[&str]) {
    let case = Case::new();
    case.file("policy.toml", text);
    case.check(&["plan", "--policy", "policy.toml"], 2, says);
    case.check(&["apply", "--yes", "--policy", "policy.toml"], 2, says);
}

const SSH: &str = "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n";

#[test]
fn unknown_policy_keys_are_refused_with_file_line_and_caret() {
    policy(
        &format!("{SSH}[[allow]]\nprot = 443\nport = 443\nfrom = \"anywhere\"\n"),
        &["policy.toml:6:1", "─┬", "prot", "nothing was changed"],
    );
}

#[test]
fn a_bad_cidr_is_refused() {
    policy(
        &format!("{SSH}[[allow]]\nport = 443\nfrom = \"192.168.1.0/33\"\n"),
        &["policy.toml:7:8", "192.168.1.0/33"],
    );
}

#[test]
fn ports_0_and_70000_are_refused_at_once() {
    policy(
        &format!(
            "{SSH}[[allow]]\nport = 0\nfrom = \"lan\"\n[[allow]]\nport = 70000\nfrom = \"lan\"\n"
        ),
        &["policy.toml:6:8", "policy.toml:9:8", "ports are 1 to 65535"],
    );
}

#[test]
fn g4_g14_a_policy_that_would_shut_ssh_is_refused() {
    policy(
        "version = 1\n[[allow]]\nport = 443\nfrom = \"anywhere\"\n",
        &["policy.toml", "SSH"],
    );
}

#[test]
fn a_policy_that_is_no_toml_binary_or_missing_is_refused() {
    policy("version = = 1", &["policy.toml:1:"]);
    let case = Case::new();
    case.file("policy.toml", [0xff, 0xfe, 0x00, 0x1b, b'[', b'2', b'J']);
    case.check(&["plan", "--policy", "policy.toml"], 2, &["policy.toml"]);
    case.check(
        &["audit", "--policy", "gone.toml"],
        2,
        &["cannot read policy gone.toml", "do:"],
    );
}

#[test]
fn a_snapshot_that_is_none_is_refused() {
    let case = Case::new();
    case.file("empty.json", "");
    case.file("cut.json", "{\"schema\": 1, \"hostna");
    case.file("other.json", "{\"schema\": 999}");
    case.file("hostile.json", "\u{1b}[2J{}");
    for (file, says) in [
        ("empty.json", "not a snapshot"),
        ("cut.json", "not a snapshot"),
        ("other.json", "format 999"),
        ("hostile.json", "not a snapshot"),
        ("gone.json", "cannot read snapshot"),
    ] {
        case.check(&["audit", "--snapshot", file], 2, &[says, "do:"]);
        case.check(&["why", "22", "--snapshot", file], 2, &[says, "do:"]);
    }
}

#[test]
fn questions_that_make_no_sense_are_refused() {
    let case = Case::new();
    case.file("rules", "");
    case.check(&["why", "0"], 2, &["\"0\" is no port"]);
    case.check(&["why", "11434/icmp"], 2, &["is no port"]);
    case.check(
        &["reach", "--hook", "input", "--dport", "22"],
        2,
        &["no rules were given"],
    );
    case.check(
        &[
            "reach",
            "--iptables-save",
            "rules",
            "--hook",
            "input",
            "--dport",
            "0",
        ],
        2,
        &["--dport 0"],
    );
    case.check(
        &[
            "reach",
            "--iptables-save",
            "rules",
            "--hook",
            "input",
            "--dport",
            "22",
            "--dst",
            "::1",
            "--family",
            "4",
        ],
        2,
        &["do not agree"],
    );
    case.check(
        &["scan", "127.0.0.1", "-p", "70000"],
        2,
        &["cannot read -p"],
    );
    case.check(
        &["verify", "--from", "telnet:host"],
        2,
        &["only ssh vantages"],
    );
    case.check(
        &["verify", "--from", "ssh:-oProxyCommand=touch x"],
        2,
        &["this is no user and host"],
    );
    assert!(!case.folder.path().join("x").exists());
}

#[test]
fn a_scan_report_that_proves_nothing_is_no_pass() {
    let case = Case::new();
    case.file("empty.json", r#"{"schema":1,"partial":false,"targets":[]}"#);
    case.file("cut.json", r#"{"schema":1,"parti"#);
    case.check(
        &["verify", "--report", "empty.json", "--address", "192.0.2.1"],
        5,
        &["no target"],
    );
    case.check(&["verify", "--report", "cut.json"], 2, &["no scan report"]);
}
