//! `why`: the way to a port, and whose the rules on it are.
#![allow(clippy::unwrap_used)] // A test may fail so.
mod build;

use build::{UFW4, UFW6, docker, good, rules};
use portcullis_core::host::{Host, UfwRule};
use portcullis_core::why::{Question, ways, whose};
use reach::{Proto, Verdict};

fn ask(host: &Host, port: u16, from: &str) -> Vec<(Verdict, Vec<String>)> {
    let question = Question {
        port,
        proto: Proto::Tcp,
        from: Some(from.parse().unwrap()),
        to: None,
        ingress: Some("eth0".into()),
    };
    let ways = ways(host, &question).unwrap();
    let pieces = ways.iter().flat_map(|w| &w.answer.pieces);
    pieces
        .map(|piece| {
            let path = piece.witness.path.iter().filter_map(|s| s.at.as_ref());
            let steps = path.chain(&piece.witness.at);
            (piece.verdict, steps.map(|at| whose(host, at)).collect())
        })
        .collect()
}

fn ufw_rule(number: u32, action: &str, proto: &str, port: &str) -> UfwRule {
    UfwRule {
        number,
        action: action.into(),
        direction: "in".into(),
        proto: proto.into(),
        port: port.into(),
        from_port: "any".into(),
        ..UfwRule::default()
    }
}

#[test]
fn a_user_rule_of_ufw_has_the_number_that_ufw_gives_it() {
    let mut host = good();
    // `ufw deny 11434` makes two rules of the chain, `ufw limit 22/tcp` before it three.
    let more = "-A ufw-user-input -p tcp -m tcp --dport 11434 -j DROP\n-A ufw-user-input -p udp -m udp --dport 11434 -j DROP\n";
    host.rules = rules(
        &UFW4.replacen("COMMIT\n", &format!("{more}COMMIT\n"), 1),
        UFW6,
    );
    host.ufw.as_mut().unwrap().rules = vec![
        ufw_rule(1, "limit", "tcp", "22"),
        ufw_rule(2, "allow", "tcp", "443"),
        ufw_rule(3, "deny", "any", "11434"),
    ];
    let decided = |host: &Host, port| {
        let found = ask(host, port, "198.51.100.9");
        let (_, steps) = found.first().unwrap();
        steps.last().unwrap().clone()
    };
    assert_eq!(decided(&host, 443), "UFW user rule 2");
    assert_eq!(decided(&host, 11434), "UFW user rule 3");
    // A rule that UFW's files do not know: no number is better than a wrong one.
    host.ufw.as_mut().unwrap().rules.remove(0);
    assert_eq!(decided(&host, 11434), "a UFW user rule");
}

#[test]
fn dockers_rules_name_the_container_that_they_are_for() {
    let host = docker();
    let found = ask(&host, 11434, "198.51.100.9");
    let (verdict, steps) = found.first().unwrap();
    assert_eq!(*verdict, Verdict::Accept);
    let name = &host.engines[0].containers[0].name;
    assert_eq!(
        steps.last().unwrap(),
        &format!("Docker for container {name}")
    );
    assert!(steps.contains(&"Docker".to_owned()), "{steps:?}");
}

#[test]
fn a_containers_name_reaches_no_terminal_unescaped() {
    let mut host = docker();
    host.engines[0].containers[0].name = "x\u{1b}[2J".into();
    let found = ask(&host, 11434, "198.51.100.9");
    assert!(
        found
            .iter()
            .flat_map(|(_, s)| s)
            .all(|s| !s.contains('\u{1b}'))
    );
}
