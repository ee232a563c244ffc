//! What an audit says about the services behind the ports: exposure, what they showed, what their versions are known for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod build;

use build::*;
use portcullis_core::catalog::{Access, Identity};
use portcullis_core::finding::{Confidence, Finding, Severity};
use portcullis_core::host::*;
use portcullis_core::judge::{Audit, audit};
use portcullis_core::policy::Policy;
use portcullis_core::report;

fn open_ollama() -> Identity {
    Identity {
        service: Some("ollama".into()),
        version: Some("0.17.4".into()),
        access: Access::Open,
        answered: true,
        ..Identity::default()
    }
}

fn with(mut host: Host, port: u16, identity: Identity) -> Host {
    host.seen.push(Seen {
        address: "127.0.0.1".parse().unwrap(),
        port,
        identity,
    });
    host
}

fn look(host: &Host) -> Audit {
    audit(host, &Policy::builtin())
}

fn all<'a>(audit: &'a Audit, id: &str, port: u16) -> Vec<&'a Finding> {
    let at = |f: &&Finding| f.id == id && f.endpoint.as_ref().is_some_and(|e| e.port == port);
    audit.findings.iter().filter(at).collect()
}

#[track_caller]
fn one<'a>(audit: &'a Audit, id: &str, port: u16) -> &'a Finding {
    let found = all(audit, id, port);
    let ids: Vec<&str> = audit.findings.iter().map(|f| f.id.as_str()).collect();
    assert_eq!(found.len(), 1, "{id} among {ids:?}");
    found[0]
}

#[test]
fn an_open_service_is_named_with_its_version_and_what_strangers_can_do() {
    let audit = look(&with(bad(), 11434, open_ollama()));
    let found = one(&audit, "exposed-to-internet", 11434);
    assert_eq!(found.severity, Severity::Critical);
    assert!(
        found.title.contains("Ollama 0.17.4 (11434/tcp)"),
        "{}",
        found.title
    );
    let said = found.evidence.join("\n");
    assert!(
        said.contains("it asks for no key: whoever reaches Ollama can use the GPU"),
        "{said}"
    );
    assert!(
        said.contains("for this machine only: OLLAMA_HOST=127.0.0.1:11434"),
        "{said}"
    );
}

#[test]
fn a_key_that_was_really_asked_for_makes_it_less() {
    let locked = Identity {
        access: Access::Locked,
        ..open_ollama()
    };
    let audit = look(&with(bad(), 11434, locked));
    let found = one(&audit, "exposed-to-internet", 11434);
    assert_eq!(found.severity, Severity::High);
    assert!(
        found
            .evidence
            .iter()
            .any(|e| e.starts_with("it asks for a key;"))
    );
}

#[test]
fn known_holes_are_told_for_the_version_seen() {
    let old = Identity {
        version: Some("0.1.30".into()),
        ..open_ollama()
    };
    let audit = look(&with(bad(), 11434, old.clone()));
    let found = one(&audit, "known-hole", 11434);
    assert_eq!(found.severity, Severity::Critical);
    assert!(found.title.contains("CVE-2024-37032"), "{}", found.title);
    // The range of one of them names no first good version.
    assert_eq!(
        found.fix.as_deref(),
        Some("update Ollama to its newest version")
    );
    // On this machine alone it is worth mending, and no more.
    let audit = look(&with(good(), 11434, old));
    assert_eq!(one(&audit, "known-hole", 11434).severity, Severity::Low);
    let audit = look(&with(bad(), 11434, open_ollama()));
    assert!(all(&audit, "known-hole", 11434).is_empty());
    // Without a version nothing is claimed.
    let unknown = Identity {
        version: None,
        ..open_ollama()
    };
    assert!(all(&look(&with(bad(), 11434, unknown)), "known-hole", 11434).is_empty());
}

#[test]
fn the_first_visitor_becomes_administrator() {
    let mut host = bad();
    host.sockets.push(socket("open-webui", "0.0.0.0", 8080));
    let fresh = Identity {
        service: Some("open-webui".into()),
        version: Some("0.6.32".into()),
        access: Access::Locked,
        hazards: vec![
            "first-visitor-becomes-admin".into(),
            "no-such-hazard".into(),
        ],
        answered: true,
        ..Identity::default()
    };
    let audit = look(&with(host, 8080, fresh));
    let found = one(&audit, "first-visitor-becomes-admin", 8080);
    assert_eq!(found.severity, Severity::Critical);
    assert!(
        found.title.contains("the first stranger who opens it"),
        "{}",
        found.title
    );
}

#[test]
fn web_pages_from_everywhere() {
    let porous = Identity {
        any_origin: true,
        any_host: true,
        ..open_ollama()
    };
    let audit = look(&with(good(), 11434, porous));
    let found = one(&audit, "any-web-page", 11434);
    assert_eq!((found.severity, found.evidence.len()), (Severity::Low, 2));
    // Its owner said so himself.
    let mut host = good();
    host.sockets[4].unit = Some("ollama.service".into());
    let unit = host.units.entry("ollama.service".into()).or_default();
    unit.environment
        .insert("OLLAMA_ORIGINS".into(), "http://a,*".into());
    let audit = look(&host);
    let found = one(&audit, "any-web-page", 11434);
    assert_eq!(found.severity, Severity::Medium);
    assert!(found.fix.as_ref().unwrap().contains("OLLAMA_ORIGINS"));
}

#[test]
fn who_listens_everywhere_behind_the_firewall_is_told_how_not_to() {
    let mut host = good();
    host.sockets[4].address = "0.0.0.0".parse().unwrap();
    host.sockets[4].unit = Some("ollama.service".into());
    let audit = look(&host);
    let found = one(&audit, "listens-everywhere", 11434);
    assert_eq!(found.severity, Severity::Info);
    let how = found.fix.as_deref().unwrap();
    assert_eq!(
        how,
        "systemctl edit ollama.service: under [Service], Environment=OLLAMA_HOST=127.0.0.1:11434"
    );
}

#[test]
fn a_policy_that_lets_others_at_a_service_without_a_key() {
    let text = "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[[service]]\nkind = \"ollama\"\nreach = [\"internet\"]\n";
    let policy = Policy::parse("p", text).unwrap();
    let audit = audit(&with(bad(), 11434, open_ollama()), &policy);
    let found = one(&audit, "no-authentication", 11434);
    assert_eq!(found.severity, Severity::Critical);
    assert!(found.title.contains("asks for no key"), "{}", found.title);
}

#[test]
fn secrets_in_arguments_are_told_without_them() {
    let mut host = good();
    host.sockets[4].process.as_mut().unwrap().secrets = vec!["--api-key\u{1b}[31m".into()];
    let audit = look(&host);
    let found = audit
        .findings
        .iter()
        .find(|f| f.id == "secret-in-arguments")
        .unwrap();
    assert_eq!(found.severity, Severity::Low);
    assert!(
        found.evidence[0].contains("--api-key\\u{1b}[31m"),
        "{:?}",
        found.evidence
    );
}

/// A server that answers as something else is not called what its port suggests; an image or unit keeps its name.
#[test]
fn names_by_the_port_alone_give_way_to_answers() {
    let confidence = |host: &Host, port: u16| {
        let audit = look(host);
        let mut all = audit.endpoints.iter();
        let judged = all.find(|j| j.endpoint.id.port == port).unwrap();
        let named = judged.endpoint.named();
        named.map(|(service, confidence)| (service.id.clone(), confidence))
    };
    let mut host = bad();
    host.sockets[2].process.as_mut().unwrap().comm = "python3".into();
    assert_eq!(
        confidence(&host, 11434),
        Some(("ollama".into(), Confidence::Guess))
    );
    let plain = Identity {
        answered: true,
        ..Identity::default()
    };
    assert_eq!(confidence(&with(host, 11434, plain.clone()), 11434), None);
    assert_eq!(
        confidence(&with(bad(), 11434, plain), 11434),
        Some(("ollama".into(), Confidence::Named))
    );
    assert_eq!(
        confidence(&with(bad(), 11434, open_ollama()), 11434),
        Some(("ollama".into(), Confidence::Settled))
    );
}

/// Anybody could start a program that answers as Ollama does: the policy's ports do not open for that.
#[test]
fn an_answer_opens_no_port() {
    let text = "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[[service]]\nkind = \"ollama\"\nreach = [\"internet\"]\n";
    let policy = Policy::parse("p", text).unwrap();
    let mut host = bad();
    host.sockets.push(socket("python3", "0.0.0.0", 9999));
    let audit = audit(&with(host.clone(), 9999, open_ollama()), &policy);
    one(&audit, "exposed-to-internet", 9999);
    let options = portcullis_core::planner::Options::default();
    let plain = portcullis_core::planner::make(&host, &policy, &options);
    let claimed =
        portcullis_core::planner::make(&with(host, 9999, open_ollama()), &policy, &options);
    assert_eq!(
        format!("{:?}", plain.map(|p| p.changes)),
        format!("{:?}", claimed.map(|p| p.changes))
    );
}

#[test]
fn a_container_is_asked_at_its_own_address() {
    let mut host = docker();
    host.seen.push(Seen {
        address: "172.17.0.2".parse().unwrap(),
        port: 80,
        identity: open_ollama(),
    });
    let audit = look(&host);
    let found = one(&audit, "exposed-to-internet", 11434);
    assert!(found.title.contains("Ollama 0.17.4"), "{}", found.title);
    let line = "for this machine only: -p 127.0.0.1:11434:80 in the command that starts it";
    assert!(
        found.evidence.iter().any(|e| e == line),
        "{:?}",
        found.evidence
    );
}

#[test]
fn the_report_says_what_was_seen_and_how_sure_it_is() {
    let host = with(bad(), 11434, open_ollama());
    let report = report::audit(&host, &Policy::builtin());
    let json = serde_json::to_value(&report).unwrap();
    let all = json["endpoints"].as_array().unwrap();
    let found = all.iter().find(|e| e["port"] == 11434).unwrap();
    assert_eq!(
        (
            &found["service"],
            &found["version"],
            &found["confidence"],
            &found["access"]
        ),
        (
            &"ollama".into(),
            &"0.17.4".into(),
            &"settled".into(),
            &"open".into()
        )
    );
    // Facts go through a file and come back the same; those of older versions have no answers in them.
    let text = serde_json::to_string(&host).unwrap();
    assert_eq!(serde_json::from_str::<Host>(&text).unwrap(), host);
    let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
    old.as_object_mut().unwrap().remove("seen");
    assert!(serde_json::from_value::<Host>(old).unwrap().seen.is_empty());
}
