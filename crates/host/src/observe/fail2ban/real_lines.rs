//! A filter tried with what this host's sshd really logged.
//!
//! fail2ban's expressions are Python's, so Python tries them. Lines and expressions go in as JSON;
//! nothing of them is run.

use crate::exec::Program;
use serde_json::{Value, json};
use std::time::Duration;

/// Prints the number of the first line that the filter matches, or nothing. A line counts as fail2ban
/// takes it: first the expression for the prefix, then any one for the failure, on what that left.
const TRY: &str = "\
import json, re, sys
asked = json.load(sys.stdin)
prefix = [re.compile(one) for one in asked['prefix']]
fails = [re.compile(one) for one in asked['fails']]
for number, line in enumerate(asked['lines']):
    rest = line
    for one in prefix:
        found = one.search(line)
        rest = found and found.groupdict().get('content', line)
    if rest is not None and any(one.search(rest) for one in fails):
        print(number)
        break
";

/// Most lines that are tried.
const LINES: &str = "200";

/// A line about a failed login that the filter does not match, where it matches none of them.
pub(super) fn unmatched(prefix: &[String], fails: &[String]) -> Option<String> {
    let lines = failures();
    let example = lines.first()?.clone();
    let asked = json!({ "prefix": prefix, "fails": fails, "lines": lines });
    let tried = Program::new("python3")
        .args(["-I", "-c", TRY])
        .stdin(asked.to_string())
        .timeout(Duration::from_secs(5))
        .max_output(4096)
        .run()
        .ok()?;
    tried.stdout_text().trim().is_empty().then_some(example)
}

/// What sshd said about wrong passwords within the last day, as fail2ban's journal backend hands it on.
fn failures() -> Vec<String> {
    let journal = Program::new("journalctl")
        .args([
            "--quiet",
            "--no-pager",
            "--output=json",
            "--since=-1d",
            "--lines",
            LINES,
            "_COMM=sshd",
            "_UID=0",
            "+",
            "_COMM=sshd-session",
            "_UID=0",
        ])
        .timeout(Duration::from_secs(2))
        .max_output(4 * 1024 * 1024)
        .run();
    let Ok(output) = journal else {
        return Vec::new();
    };
    output
        .stdout_text()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|entry| handed_on(&entry))
        .collect()
}

fn handed_on(entry: &Value) -> Option<String> {
    let text = |key: &str| entry[key].as_str();
    let message = text("MESSAGE")?;
    if !message.starts_with("Failed password for ") && !message.starts_with("Invalid user ") {
        return None;
    }
    Some(format!(
        "{} {}[{}]: {message}",
        text("_HOSTNAME").unwrap_or("host"),
        text("SYSLOG_IDENTIFIER").unwrap_or("sshd"),
        text("_PID").unwrap_or("1"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_as_fail2ban_gets_it() {
        let entry = json!({
            "_HOSTNAME": "server", "SYSLOG_IDENTIFIER": "sshd-session", "_PID": "7",
            "MESSAGE": "Failed password for root from 192.0.2.1 port 4 ssh2"
        });
        assert_eq!(
            handed_on(&entry).unwrap(),
            "server sshd-session[7]: Failed password for root from 192.0.2.1 port 4 ssh2"
        );
        assert!(handed_on(&json!({"MESSAGE": "Connection closed"})).is_none());
        assert!(handed_on(&json!({"MESSAGE": [1, 2]})).is_none());
    }
}
