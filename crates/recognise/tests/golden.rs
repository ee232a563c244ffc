//! Every service of the catalog against real HTTP servers: its golden reply, near misses, and every other service.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Golden, goldens, play};
use portcullis_core::catalog::{self, Kind, Service, Width};
use recognise::{Options, Recognition, Target, recognise};
use std::time::Duration;

/// Bounds that a loaded machine does not break; the bounds themselves are tested with hostile servers.
fn options() -> Options {
    Options {
        reply: Duration::from_secs(20),
        port: Duration::from_secs(60),
        at_once: 16,
        ..Options::default()
    }
}

fn services() -> impl Iterator<Item = &'static Service> {
    catalog::services()
        .iter()
        .filter(|s| s.kind != Kind::System)
}

fn talks(service: &Service) -> bool {
    service.probes.iter().any(|p| p.talk.is_some())
}

/// Asked as an unknown port; a service with a protocol of its own is asked only where its port or owner suggests it.
fn target(golden: &Golden, service: &'static Service) -> Target {
    Target {
        address: play(golden.replies.clone(), golden.raw.clone()).address,
        candidates: if talks(service) {
            vec![service]
        } else {
            vec![]
        },
    }
}

fn told(found: &Recognition) -> Option<&str> {
    found.identity.service.as_deref()
}

#[test]
fn every_service_has_a_golden_reply_and_two_near_misses() {
    let goldens = goldens();
    let with_probes: Vec<&str> = services().map(|s| s.id.as_str()).collect();
    let listed: Vec<&str> = goldens.keys().map(String::as_str).collect();
    assert_eq!(with_probes, listed);
    for (id, golden) in &goldens {
        assert!(golden.near.len() >= 2, "{id}");
    }
}

#[test]
fn golden_replies_are_named_with_their_version_on_any_port() {
    let goldens = goldens();
    let targets: Vec<Target> = services().map(|s| target(&goldens[&s.id], s)).collect();
    for (service, found) in services().zip(recognise(&targets, &options())) {
        let golden = &goldens[&service.id];
        assert_eq!(told(&found), Some(service.id.as_str()), "{found:?}");
        let identity = &found.identity;
        assert_eq!(identity.version, golden.version, "{}", service.id);
        assert_eq!(identity.hazards, golden.hazards, "{}", service.id);
        if let Some(access) = golden.access {
            assert_eq!(identity.access, access, "{}", service.id);
        }
    }
}

#[test]
fn near_misses_are_not_named() {
    let goldens = goldens();
    let mut targets = Vec::new();
    let mut cases = Vec::new();
    for service in services() {
        for near in &goldens[&service.id].near {
            targets.push(Target {
                address: play(near.reply.clone(), near.raw.clone()).address,
                candidates: vec![service],
            });
            cases.push((service, near));
        }
    }
    for ((service, near), found) in cases.iter().zip(recognise(&targets, &options())) {
        assert_eq!(
            told(&found),
            near.is.as_deref(),
            "{}: {}",
            service.id,
            near.what
        );
    }
}

/// Every golden reply is asked whether it is each of the other services, as if everything else spoke for that.
#[test]
fn no_service_is_taken_for_another() {
    let goldens = goldens();
    let only = Options {
        width: Width::Candidates,
        ..options()
    };
    let mut pairs = 0;
    for (id, golden) in &goldens {
        let Some(own) = catalog::service(id) else {
            panic!("{id} is not in the catalog");
        };
        let address = target(golden, own).address;
        let others: Vec<&'static Service> = services().filter(|s| s.id != *id).collect();
        let targets: Vec<Target> = others
            .iter()
            .map(|other| Target {
                address,
                candidates: vec![*other],
            })
            .collect();
        for (other, found) in others.iter().zip(recognise(&targets, &only)) {
            pairs += 1;
            // What is more general is right too, and loses to what is exact: see the golden test.
            let frame = other.generic && told(&found) == Some(other.id.as_str());
            assert!(
                told(&found).is_none() || frame,
                "{id} was taken for {}",
                other.id
            );
        }
    }
    assert!(pairs > 60 * 60, "{pairs}");
}

/// An answer from a plain web server is not what its port suggests.
#[test]
fn a_plain_web_server_on_a_known_port_is_not_that_service() {
    for service in services().filter(|s| !talks(s)) {
        let page = common::Reply {
            path: "/".into(),
            status: 200,
            headers: [("server".to_owned(), "nginx".to_owned())].into(),
            body: "<title>Welcome</title>".into(),
        };
        let found = recognise(
            &[Target {
                address: play(vec![page], None).address,
                candidates: vec![service],
            }],
            &options(),
        );
        assert_eq!(
            (told(&found[0]), found[0].identity.answered),
            (None, true),
            "{}",
            service.id
        );
    }
}
