//! Docker 20.10 behind UFW's default deny, host port 11434 published to a container's port 80: what is true, case by
//! case. Each case is a row of what people try; the truth was found with real Docker, ufw and packets.
#![allow(clippy::unwrap_used)] // A test may fail so.
mod host;
use host::{fate, host, piece, rules, tcp};
use reach::{Answer, Delivery, Engine, Net, World};

/// What a case adds to the stock rules.
#[derive(Default, Clone)]
struct Case<'a> {
    /// In DOCKER-USER, before Docker's RETURN.
    user: &'a str,
    /// In DOCKER-USER, after it.
    user_after: &'a str,
    /// At the end of INPUT.
    input: &'a str,
    /// In ufw-user-input and ufw-user-forward.
    ufw_input: &'a str,
    ufw_forward: &'a str,
    /// No jump from FORWARD to DOCKER-USER.
    user_unhooked: bool,
    forward_policy: Option<&'a str>,
    /// Raw table.
    raw: &'a str,
    /// Replaces the DNAT rule's match on the destination.
    bind: &'a str,
}

fn save(case: &Case<'_>) -> String {
    let jump = if case.user_unhooked {
        ""
    } else {
        "-A FORWARD -j DOCKER-USER\n"
    };
    format!(
        "*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
{raw}COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER {bind}! -i docker0 -p tcp -m tcp --dport 11434 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 9999 -j DNAT --to-destination 172.17.0.3:80
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD {policy} [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
:ufw-before-input - [0:0]
:ufw-user-input - [0:0]
:ufw-before-forward - [0:0]
:ufw-user-forward - [0:0]
-A INPUT -j ufw-before-input
{input}{jump}-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A FORWARD -j ufw-before-forward
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER -d 172.17.0.3/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
{user}-A DOCKER-USER -j RETURN
{user_after}-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -j ufw-user-input
{ufw_input}-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
{ufw_forward}COMMIT
",
        raw = case.raw,
        bind = case.bind,
        input = case.input,
        user = case.user,
        user_after = case.user_after,
        ufw_input = case.ufw_input,
        ufw_forward = case.ufw_forward,
        policy = case.forward_policy.unwrap_or("DROP"),
    )
}

fn ask(case: &Case<'_>, net: &Net, query: reach::Query) -> Answer {
    let rules = rules(&save(case));
    Engine::new(World { rules: &rules, net }).reach(&query)
}

const CLIENT: &str = "203.0.113.9";

fn check(case: Case<'_>, expect: &str) {
    check_from(case, CLIENT, expect);
}

fn check_from(case: Case<'_>, client: &str, expect: &str) {
    let answer = ask(&case, &host(), tcp("eth0", "192.0.2.10", 11434));
    assert_eq!(fate(&answer, client), expect, "{answer:#?}");
}

const UFW_DOCKER: &str = "-A DOCKER-USER -j ufw-user-forward
-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A DOCKER-USER -m conntrack --ctstate INVALID -j DROP
-A DOCKER-USER -i docker0 -o docker0 -j ACCEPT
-A DOCKER-USER -s 10.0.0.0/8 -j RETURN
-A DOCKER-USER -s 172.16.0.0/12 -j RETURN
-A DOCKER-USER -s 192.168.0.0/16 -j RETURN
-A DOCKER-USER -d 10.0.0.0/8 -m conntrack --ctstate NEW -j DROP
-A DOCKER-USER -d 172.16.0.0/12 -m conntrack --ctstate NEW -j DROP
-A DOCKER-USER -d 192.168.0.0/16 -m conntrack --ctstate NEW -j DROP
";

#[test]
fn case_1_ufw_deny_does_not_reach_a_published_port() {
    check(
        Case {
            ufw_input: "-A ufw-user-input -p tcp -m tcp --dport 11434 -j DROP\n",
            ..Case::default()
        },
        "open",
    );
}

#[test]
fn the_witness_names_docker_and_the_way_through_dnat() {
    let answer = ask(&Case::default(), &host(), tcp("eth0", "192.0.2.10", 11434));
    let piece = piece(&answer, CLIENT);
    let expect =
        "-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT";
    assert_eq!(piece.witness.rule, expect);
    let path: Vec<&str> = piece.witness.path.iter().map(|s| s.text.as_str()).collect();
    assert_eq!(
        path,
        [
            "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
            "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 11434 -j DNAT --to-destination 172.17.0.2:80",
            "routed to 172.17.0.2 by docker0",
            "-A FORWARD -o docker0 -j DOCKER",
        ]
    );
    let to = Delivery::Forwarded {
        address: "172.17.0.2".parse().unwrap(),
        port: 80,
        oif: "docker0".into(),
    };
    assert_eq!(piece.delivered, Some(to));
}

#[test]
fn case_5_the_folk_drop_in_input_is_useless() {
    check(
        Case {
            input: "-A INPUT -p tcp -m tcp --dport 11434 -j DROP\n-A INPUT -p tcp -m tcp --dport 11434 -j DROP\n",
            ..Case::default()
        },
        "open",
    );
}

#[test]
fn case_6_docker_user_sees_the_containers_port_not_the_hosts() {
    let drop = |rule| Case {
        user: rule,
        ..Case::default()
    };
    check(
        drop("-A DOCKER-USER -p tcp -m tcp --dport 11434 -j DROP\n"),
        "open",
    );
    check(
        drop("-A DOCKER-USER -p tcp -m tcp --dport 80 -j DROP\n"),
        "closed",
    );
    // ... and hits every container on that port.
    let case = drop("-A DOCKER-USER -p tcp -m tcp --dport 80 -j DROP\n");
    let other = ask(&case, &host(), tcp("eth0", "192.0.2.10", 9999));
    assert_eq!(fate(&other, CLIENT), "closed");
}

#[test]
fn case_8_the_original_destination_port_is_precise() {
    let case = Case {
        user: "-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 11434 --ctdir ORIGINAL -j DROP\n",
        ..Case::default()
    };
    check(case.clone(), "closed");
    let other = ask(&case, &host(), tcp("eth0", "192.0.2.10", 9999));
    assert_eq!(fate(&other, CLIENT), "open");
}

#[test]
fn cases_9_and_10_ufw_docker_wants_route_rules_with_the_containers_port() {
    let block = Case {
        user: UFW_DOCKER,
        ..Case::default()
    };
    check(
        Case {
            ufw_input: "-A ufw-user-input -p tcp -m tcp --dport 11434 -j ACCEPT\n",
            ..block.clone()
        },
        "closed",
    );
    check(
        Case {
            ufw_forward: "-A ufw-user-forward -p tcp -m tcp --dport 11434 -j ACCEPT\n",
            ..block.clone()
        },
        "closed",
    );
    let route_80 = Case {
        ufw_forward: "-A ufw-user-forward -p tcp -m tcp --dport 80 -j ACCEPT\n",
        ..block
    };
    check(route_80.clone(), "open");
    let other = ask(&route_80, &host(), tcp("eth0", "192.0.2.10", 9999));
    assert_eq!(fate(&other, CLIENT), "open");
}

#[test]
fn case_11_a_drop_behind_dockers_return_is_dead() {
    check(
        Case {
            user_after: "-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 11434 -j DROP\n",
            ..Case::default()
        },
        "open",
    );
}

#[test]
fn case_12_ufw_docker_trusts_every_private_source() {
    let case = Case {
        user: UFW_DOCKER,
        ..Case::default()
    };
    check_from(case.clone(), "192.168.44.5", "open");
    check_from(case.clone(), "10.9.9.9", "open");
    check_from(case, "203.0.113.9", "closed");
}

#[test]
fn case_13_a_container_network_outside_of_the_private_ranges_is_not_covered() {
    let mut net = host();
    net.interfaces.push(host::interface(
        9,
        "br-c",
        Some("bridge"),
        &["100.64.0.1/24"],
    ));
    net.routes.push(host::route("100.64.0.0/24", 9, None));
    let text = save(&Case {
        user: UFW_DOCKER,
        ..Case::default()
    });
    let text = text
        .replace("172.17.0.2", "100.64.0.2")
        .replace("docker0", "br-c");
    let rules = rules(&text);
    let answer = reach::reach(
        World {
            rules: &rules,
            net: &net,
        },
        &tcp("eth0", "192.0.2.10", 11434),
    );
    assert_eq!(fate(&answer, CLIENT), "open", "{answer:#?}");
}

#[test]
fn case_14_docker_user_without_a_jump_does_nothing() {
    check(
        Case {
            user: UFW_DOCKER,
            user_unhooked: true,
            ..Case::default()
        },
        "open",
    );
}

#[test]
fn case_16_a_ban_in_input_does_not_reach_the_container() {
    let ban = "-A INPUT -s 203.0.113.9/32 -j REJECT --reject-with icmp-port-unreachable\n";
    check(
        Case {
            input: ban,
            ..Case::default()
        },
        "open",
    );
    check(
        Case {
            user: "-A DOCKER-USER -s 203.0.113.9/32 -j REJECT --reject-with icmp-port-unreachable\n",
            ..Case::default()
        },
        "closed",
    );
}

#[test]
fn case_20_an_unpublished_port_is_open_by_routing_when_forward_accepts() {
    let direct = tcp("eth0", "172.17.0.2", 8080);
    let open = Case {
        forward_policy: Some("ACCEPT"),
        ..Case::default()
    };
    assert_eq!(fate(&ask(&open, &host(), direct.clone()), CLIENT), "open");
    assert_eq!(
        fate(&ask(&Case::default(), &host(), direct), CLIENT),
        "closed"
    );
}

#[test]
fn case_18_a_loopback_publish_is_reached_by_the_containers_own_address() {
    let bound = Case {
        bind: "-d 127.0.0.1/32 ",
        ..Case::default()
    };
    let by_host = ask(&bound, &host(), tcp("eth0", "192.0.2.10", 11434));
    assert_eq!(fate(&by_host, CLIENT), "closed");
    let direct = ask(&bound, &host(), tcp("eth0", "172.17.0.2", 80));
    assert_eq!(fate(&direct, "192.0.2.77"), "open");
    // Docker 28 drops it in raw.
    let with_raw = Case {
        raw: "-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP\n",
        ..bound
    };
    let direct = ask(&with_raw, &host(), tcp("eth0", "172.17.0.2", 80));
    assert_eq!(fate(&direct, "192.0.2.77"), "closed");
}

#[test]
fn case_34_a_container_does_not_reach_the_hosts_services_through_ufw() {
    let query = tcp("docker0", "172.17.0.1", 11434);
    let answer = ask(&Case::default(), &host(), query.clone());
    assert_eq!(fate(&answer, "172.17.0.5"), "closed");
    let allowed = Case {
        ufw_input: "-A ufw-user-input -i docker0 -p tcp -m tcp --dport 11434 -j ACCEPT\n",
        ..Case::default()
    };
    assert_eq!(fate(&ask(&allowed, &host(), query), "172.17.0.5"), "open");
}

#[test]
fn no_published_port_without_the_established_rule() {
    // NEW alone is let in; the answers of the container are, by `-i docker0 ! -o docker0`; but the client's later
    // packets need the DOCKER chain, whose rule does not ask for a state: open. With a NEW-only rule: closed.
    let text = save(&Case::default())
        .replace(
            "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n",
            "",
        )
        .replace(
            "-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n",
            "",
        );
    let only_new = text.replace(
        "-o docker0 -p tcp -m tcp --dport 80 -j ACCEPT",
        "-o docker0 -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW -j ACCEPT",
    );
    let net = host();
    for (text, expect) in [(text, "open"), (only_new, "closed")] {
        let rules = rules(&text);
        let answer = reach::reach(
            World {
                rules: &rules,
                net: &net,
            },
            &tcp("eth0", "192.0.2.10", 11434),
        );
        assert_eq!(fate(&answer, CLIENT), expect, "{answer:#?}");
    }
}
