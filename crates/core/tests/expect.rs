//! What a knock from outside must find.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod build;

use build::*;
use portcullis_core::expect::*;
use portcullis_core::policy::Policy;
use reach::Proto::{Tcp, Udp};

const POLICY: &str = "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\nrate_limit = true\n[[allow]]\nport = 443\nfrom = \"anywhere\"\n[[allow]]\nport = 8080\nfrom = \"lan\"\n[[allow]]\nport = 9000\nfrom = \"198.51.100.0/24\"\n";

fn check(from: &str, open: &[u16], said: &[(u16, bool)]) {
    let mut host = good();
    host.sockets.push(socket("web", "0.0.0.0", 8080));
    host.sockets.push(socket("api", "0.0.0.0", 9000));
    let policy = Policy::parse("p", POLICY).unwrap();
    let expected = expectation(&policy, &host);
    let vantage = Vantage::of(&host, from.parse().unwrap());
    let open: Vec<_> = open.iter().map(|p| (Tcp, *p)).collect();
    let found: Vec<_> = check_scan(&expected, &vantage, &open, |proto, _| proto == Tcp)
        .into_iter()
        .map(|d| (d.port, d.open))
        .collect();
    assert_eq!(found, said, "from {from}, open {open:?}");
}

#[test]
fn a_scan_is_held_against_the_policy_from_where_it_was_made() {
    check("8.8.8.8", &[22, 443], &[]);
    check("8.8.8.8", &[22, 443, 11434], &[(11434, true)]);
    check("8.8.8.8", &[22, 443, 8080], &[(8080, true)]);
    check("8.8.8.8", &[22], &[(443, false)]);
    check("198.51.100.9", &[22, 443, 9000], &[]);
    check("198.51.100.9", &[22, 443], &[(9000, false)]);
    check("192.168.1.7", &[22, 443, 8080], &[]);
    check("192.168.1.7", &[22, 443], &[(8080, false)]);
    check(
        "::ffff:192.168.1.7",
        &[22, 443, 8080, 3000],
        &[(3000, true)],
    );
    check("2600::1", &[22, 443], &[]);
}

#[test]
fn a_port_that_is_allowed_and_not_served_may_be_either() {
    let mut host = good();
    host.sockets.retain(|s| s.port != 443);
    let expected = expectation(&Policy::builtin(), &host);
    let https = expected.iter().find(|e| e.port == 443).unwrap();
    assert_eq!(
        https.for_source("8.8.8.8".parse().unwrap()),
        Expected::Either
    );
}

#[test]
fn ports_that_were_not_asked_are_not_missed() {
    let host = good();
    let expected = expectation(&Policy::builtin(), &host);
    let vantage = Vantage::of(&host, "8.8.8.8".parse().unwrap());
    assert_eq!(vantage.zone, "internet");
    let none = check_scan(&expected, &vantage, &[], |_, port| port > 1024);
    assert_eq!(none, []);
    let udp = check_scan(&expected, &vantage, &[(Udp, 53)], |_, port| port > 1024);
    assert_eq!(udp.len(), 1);
    let limited = check_scan(&expected, &vantage, &[(Tcp, 443)], |_, _| true);
    assert!(
        limited[0].text.contains("rate-limited"),
        "{}",
        limited[0].text
    );
}
