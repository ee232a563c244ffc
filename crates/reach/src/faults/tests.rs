use super::*;
use crate::parse;

/// Faults as "kind chain:position".
fn check(save: &str, expect: &[&str]) -> Vec<Fault> {
    let (rules, _) = parse::iptables_save(save, false, Backend::IptablesNft);
    let found = faults(&rules);
    let short: Vec<String> = found
        .iter()
        .map(|f| format!("{:?} {}:{}", f.kind, f.at.chain, f.at.position))
        .collect();
    assert_eq!(short, expect, "{found:#?}");
    found
}

#[test]
fn the_folk_fix_and_its_copies() {
    let found = check(
        "*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 11434 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:INPUT DROP [0:0]
:ufw-before-input - [0:0]
-A INPUT -j ufw-before-input
-A INPUT -p tcp -m tcp --dport 11434 -j DROP
-A INPUT -p tcp -m tcp --dport 11434 -j DROP
-A INPUT -p tcp -m tcp --dport 8443 -j DROP
-A ufw-before-input -i lo -j ACCEPT
COMMIT
",
        &[
            "InputForPublishedPort INPUT:2",
            "InputForPublishedPort INPUT:3",
            "Duplicate INPUT:3",
        ],
    );
    assert!(found[0].why.contains("172.17.0.2:80"));
}

#[test]
fn a_rule_behind_dockers_return_is_dead() {
    check(
        "*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -j RETURN
-A DOCKER-USER -s 203.0.113.0/24 -j DROP
COMMIT
",
        &["BehindDockerReturn DOCKER-USER:2"],
    );
}

#[test]
fn shadowed_by_a_wider_rule_only_when_that_is_sure() {
    check(
        "*filter
:INPUT DROP [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j REJECT --reject-with icmp-host-prohibited
-A INPUT -s 192.0.2.0/24 -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -s 10.0.0.0/8 -m limit --limit 3/min -j ACCEPT
-A INPUT -s 10.0.0.0/8 -j ACCEPT
-A INPUT -s 10.1.0.0/16 -p udp -j ACCEPT
-A INPUT ! -s 192.168.0.0/16 -j DROP
COMMIT
",
        &["Shadowed INPUT:2", "Shadowed INPUT:5"],
    );
}

#[test]
fn chains_that_nothing_leads_to() {
    check(
        "*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:DOCKER-USER - [0:0]
:f2b-sshd - [0:0]
:mine - [0:0]
:ufw-before-input - [0:0]
:ufw-user-input - [0:0]
-A DOCKER-USER -s 203.0.113.0/24 -j DROP
-A f2b-sshd -s 203.0.113.9/32 -j DROP
-A mine -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
",
        &[
            "NothingJumpsHere DOCKER-USER:0",
            "UfwUnhooked INPUT:0",
            "NothingJumpsHere f2b-sshd:0",
            "NothingJumpsHere mine:0",
        ],
    );
}

#[test]
fn a_drop_in_the_backend_that_nobody_looks_at() {
    let save = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 203.0.113.0/24 -j DROP\nCOMMIT\n";
    let (mut rules, _) = parse::iptables_save(save, false, Backend::IptablesNft);
    let (legacy, _) = parse::iptables_save(save, false, Backend::IptablesLegacy);
    assert_eq!(faults(&legacy), []);
    rules.merge(legacy);
    let found = faults(&rules);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].kind, FaultKind::OtherBackend);
    assert_eq!(found[0].at.backend, Backend::IptablesLegacy);
}
