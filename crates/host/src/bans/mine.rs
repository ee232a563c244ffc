//! From where somebody logged in lately: who locked himself out is among them.

use crate::exec::Program;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// Addresses of successful logins over SSH, of the last 30 days as far as the logs go.
pub fn logged_in() -> BTreeSet<IpAddr> {
    let journal = Program::new("journalctl")
        .args([
            "--quiet",
            "--no-pager",
            "--output=cat",
            "--since=-30d",
            "--grep=^Accepted ",
            "_COMM=sshd",
            "_UID=0",
            "+",
            "_COMM=sshd-session",
            "_UID=0",
        ])
        .timeout(Duration::from_secs(10))
        .truncate()
        .output();
    let mut found: BTreeSet<IpAddr> = journal
        .map(|output| output.stdout_text())
        .unwrap_or_default()
        .lines()
        .filter_map(accepted)
        .collect();
    for path in [
        "/var/log/auth.log",
        "/var/log/auth.log.1",
        "/var/log/secure",
    ] {
        let Ok(bytes) = std::fs::read(path) else {
            continue;
        };
        found.extend(
            String::from_utf8_lossy(&bytes)
                .lines()
                .filter_map(of_sshd)
                .filter_map(accepted),
        );
    }
    found
}

/// The message of a line that sshd wrote to a log file: the first `]: ` ends what syslog put before it,
/// and what clients sent comes later.
fn of_sshd(line: &str) -> Option<&str> {
    let (head, message) = line.split_once("]: ")?;
    let (head, pid) = head.rsplit_once('[')?;
    let name = head.rsplit(' ').next()?;
    let sshd = matches!(name, "sshd" | "sshd-session") && pid.bytes().all(|b| b.is_ascii_digit());
    sshd.then_some(message)
}

/// The address of `Accepted publickey for NAME from ADDRESS port N ssh2…`. A name could hold "from"; sshd
/// accepts only names of real accounts, and the address comes after the last one before " port ".
fn accepted(message: &str) -> Option<IpAddr> {
    let rest = message.strip_prefix("Accepted ")?;
    let (_, rest) = rest.split_once(" from ")?;
    let address = rest.split(' ').next()?;
    address.parse().ok().filter(|_| rest.contains(" port "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_successful_logins_count() {
        let check = |line: &str, expected: Option<&str>| {
            let expected: Option<IpAddr> = expected.map(|text| text.parse().unwrap());
            assert_eq!(of_sshd(line).and_then(accepted), expected, "{line}");
        };
        check(
            "Nov 26 10:00:00 host sshd[7]: Accepted publickey for root from 192.0.2.7 port 40000 ssh2: ED25519 SHA256:x",
            Some("192.0.2.7"),
        );
        check(
            "2026-11-26T10:00:00+00:00 host sshd-session[7]: Accepted password for a from 2001:db8::7 port 4 ssh2",
            Some("2001:db8::7"),
        );
        // Whoever gets text into the log does not get into this list.
        check(
            "Nov 26 10:00:00 host sshd[7]: Invalid user x]: Accepted password for a from 192.0.2.9 port 1 from 192.0.2.8 port 4",
            None,
        );
        check(
            "Nov 26 10:00:00 host other[7]: Accepted password for a from 192.0.2.9 port 1 ssh2",
            None,
        );
        check("Accepted password for a from 192.0.2.9 port 1 ssh2", None);
        check("", None);
    }
}
