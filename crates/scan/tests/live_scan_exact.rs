//! A scan finds exactly what is open: no port missed, none made up, whatever the network does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::relay::Cable;
use common::{FEW, FOR_OTHERS, Listeners, Manner, Net, REFUSED, SERVER, SERVER_V6, many, ports};
use scan::PortState;

/// Scans both addresses of a server and compares with the truth.
#[track_caller]
fn check(manner: Manner, open: &[u16], cable: Option<Cable>, bound: Duration) {
    lab::require_root();
    let net = Net::new(cable);
    let mut served = open.to_vec();
    // Served, but not for us.
    if manner != Manner::Resets {
        served.extend([FOR_OTHERS, 11434]);
    }
    let _listeners = Listeners::new(&net.server, &served);
    net.rules(manner, open);
    for address in [SERVER, SERVER_V6] {
        let (report, took) = net.scan(&[address]);
        let target = &report.targets[0];
        eprintln!("{address} {took:?} {:?} {:?}", target.summary, target.note);
        assert_eq!(ports(target, PortState::Open), open, "{address}");
        assert!(!report.inconclusive(), "{address}: {:?}", target.note);
        let refused = ports(target, PortState::Rejected);
        match manner {
            // Errors are themselves limited and can be lost.
            Manner::Drops if cable.is_none() => assert_eq!(refused, REFUSED),
            Manner::Drops => assert!(refused.iter().all(|port| REFUSED.contains(port))),
            Manner::Resets | Manner::RareResets => assert_eq!(refused, [0u16; 0]),
        }
        if manner == Manner::Resets && cable.is_none() {
            assert_eq!(target.summary.closed, 65_535 - open.len());
        }
        assert!(took < bound, "{address}: {took:?}");
    }
}

const SOON: Duration = Duration::from_secs(30);
const LATER: Duration = Duration::from_secs(100);

fn cable(delay: u64, lost: u64) -> Option<Cable> {
    Some(Cable {
        delay: Duration::from_millis(delay),
        lost,
        ..Cable::default()
    })
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn on_a_server_that_drops() {
    check(Manner::Drops, &FEW, None, SOON);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn on_a_server_that_resets() {
    check(Manner::Resets, &FEW, None, SOON);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn on_a_server_that_seldom_resets() {
    check(Manner::RareResets, &FEW, None, SOON);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn behind_delay_and_loss() {
    check(Manner::Drops, &FEW, cable(20, 20), LATER);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn with_two_hundred_open_ports_behind_delay_and_loss() {
    check(Manner::Drops, &many(), cable(20, 20), LATER);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn behind_a_long_delay_and_five_percent_loss() {
    check(Manner::Drops, &many(), cable(100, 50), LATER);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn under_reordering_and_doubling() {
    let cable = Cable {
        delay: Duration::from_millis(2),
        lost: 10,
        reordered: 200,
        doubled: 200,
    };
    check(Manner::Drops, &many(), Some(cable), LATER);
}
