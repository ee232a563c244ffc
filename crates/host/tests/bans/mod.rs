//! A host with the guard and fail2ban's files as a plan writes them, in namespaces.

#![allow(
    dead_code,
    reason = "not every test file that shares this room needs all of it"
)]

use lab::Host;
use portcullis_core::host::Host as Facts;
use portcullis_core::host::{Fail2ban, Sshd, Ufw};
use portcullis_core::plan::Action;
use portcullis_core::planner::{self, Options};
use portcullis_core::policy::Policy;
use std::time::{Duration, Instant};

pub fn policy(text: &str) -> Policy {
    match Policy::parse("test", text) {
        Ok(policy) => policy,
        Err(errors) => panic!("{errors:?}"),
    }
}

/// Every file that a plan writes, with its content.
pub fn files(facts: &Facts, policy: &Policy) -> Vec<(String, String)> {
    let plan = planner::make(facts, policy, &Options::default()).expect("a plan");
    plan.changes
        .into_iter()
        .filter_map(|change| match change.action {
            Action::WriteFile { path, content, .. } => Some((path, content)),
            _ => None,
        })
        .collect()
}

/// Writes the files of the plan and loads its guard, as far as a host without systemd goes.
pub fn write_plan(server: &Host, facts: &Facts, policy: &Policy) {
    for (path, content) in files(facts, policy) {
        server.write(&path, content).expect("written");
    }
    server
        .ok(&["/usr/sbin/nft", "-f", "/etc/portcullis/guard.nft"])
        .expect("the guard loads");
}

/// A host whose facts are enough for the jails: no systemd, sshd's lines in a file, an nginx.
pub fn facts() -> Facts {
    let mut facts = Facts {
        privileged: true,
        fail2ban: Some(Fail2ban {
            sshd_log: Some("/var/log/auth.log".into()),
            ..Fail2ban::default()
        }),
        sshd: Some(Sshd {
            ports: vec![22],
            ..Sshd::default()
        }),
        ufw: Some(Ufw {
            ipv6: true,
            loaded: Some(false),
            ..Default::default()
        }),
        web_logs: vec!["/var/log/nginx/access.log".into()],
        ..Facts::default()
    };
    for name in planner::PACKAGES {
        facts.packages.insert((*name).into(), Some("1".into()));
    }
    facts
}

pub fn banned(server: &Host, set: &str) -> String {
    server
        .ok(&["/usr/sbin/nft", "list", "set", "inet", "portcullis", set])
        .expect("the set")
}

#[track_caller]
pub fn wait_for(what: &str, mut test: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !test() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}
