//! The states that UFW and Docker get into together: other Docker versions and backends, IPv6, reloads, flushed
//! chains, other firewalls beside them; each with its truth. UFW's rules and Docker 20.10's are dumps of the real
//! programs, those of Docker 28 and 29 are the ones that moby documents.
#![allow(clippy::unwrap_used)] // A test may fail so.
mod host;

use host::{fate, host, interface, route, tcp};
use reach::parse::{Dumps, combine};
use reach::{
    CtState, FaultKind, Hook, HookQuery, Net, Proto, Query, Ruleset, World, faults, walk_hook,
};

/// UFW on, SSH limited, 443 allowed; no Docker.
const UFW: &str = include_str!("../../core/tests/fixtures/ufw4.rules");
const UFW6: &str = include_str!("../../core/tests/fixtures/ufw6.rules");
/// UFW and Docker 20.10: 11434 published to 172.17.0.2:80, 127.0.0.1:3000 to 172.17.0.3:8080.
const DOCKER20: &str = include_str!("../../core/tests/fixtures/ufw_docker4.rules");
/// The same host behind `ufw disable`.
const OFF: &str = include_str!("../../core/tests/fixtures/off4.rules");
/// Docker alone: 11434 published to 172.17.0.2:80.
const DOCKER28: &str = include_str!("fixtures/docker/docker28.iptables-save");
const DOCKER29_NFT: &str = include_str!("fixtures/docker/docker29.nft");

/// A stranger, in both families.
const CLIENT: &str = "203.0.113.9";
const CLIENT6: &str = "2001:db8:5::9";
const NEIGHBOUR: &str = "192.0.2.77";

/// The place in a dump behind a line, which is there.
fn behind(dump: &str, line: &str) -> usize {
    dump.find(line).unwrap_or_else(|| panic!("{line}")) + line.len()
}

/// Rules at the end of their chains in the filter table; chains (`:NAME`) come in where chains are.
fn append(dump: &str, lines: &str) -> String {
    append_to(dump, "filter", lines)
}

fn append_to(dump: &str, table: &str, lines: &str) -> String {
    let start = behind(dump, &format!("*{table}\n"));
    let end = start + dump[start..].find("COMMIT\n").unwrap();
    let (chains, rules): (Vec<&str>, Vec<&str>) = lines.lines().partition(|l| l.starts_with(':'));
    let join = |list: Vec<&str>| list.iter().map(|l| format!("{l}\n")).collect::<String>();
    let (head, body, tail) = (&dump[..start], &dump[start..end], &dump[end..]);
    format!("{head}{}{body}{}{tail}", join(chains), join(rules))
}

/// Rules before the first one that begins with `line`; chains come in where chains are.
fn before(dump: &str, line: &str, lines: &str) -> String {
    let at = behind(dump, &format!("\n{line}")) - line.len();
    let table = dump[..at].rfind('*').unwrap();
    let name = dump[table + 1..].lines().next().unwrap();
    let (chains, rules): (Vec<&str>, Vec<&str>) = lines.lines().partition(|l| l.starts_with(':'));
    let join = |list: Vec<&str>| list.iter().map(|l| format!("{l}\n")).collect::<String>();
    append_to(
        &format!("{}{}{}", &dump[..at], join(rules), &dump[at..]),
        name,
        &join(chains),
    )
}

/// A dump without the rules that begin so.
fn without(dump: &str, beginning: &str) -> String {
    let kept: Vec<&str> = dump.lines().filter(|l| !l.starts_with(beginning)).collect();
    assert!(kept.len() < dump.lines().count(), "{beginning}");
    kept.join("\n") + "\n"
}

/// Docker 28's rules beside UFW's, Docker's jumps first, as it inserts them.
fn docker28() -> String {
    let (head, filter) = DOCKER28.split_once("*filter\n").unwrap();
    let lines = |with: char| {
        let list = filter
            .lines()
            .filter(|l| l.starts_with(with) && !l.contains(" ACCEPT ["));
        list.map(|l| format!("{l}\n")).collect::<String>()
    };
    let ufw = before(UFW, "-A INPUT", &(lines(':') + &lines('-')));
    format!("{head}{ufw}")
}

fn load(dumps: Dumps<'_>) -> Ruleset {
    let (rules, notes) = combine(dumps);
    assert_eq!(notes, []);
    rules
}

fn v4(save: &str) -> Ruleset {
    load(Dumps {
        iptables: Some(save),
        ..Dumps::default()
    })
}

fn v6(save: &str) -> Ruleset {
    load(Dumps {
        ip6tables: Some(save),
        ..Dumps::default()
    })
}

/// Docker's nf_tables backend beside UFW's rules.
fn with_docker29(save: &str) -> Ruleset {
    load(Dumps {
        iptables: Some(save),
        nft: Some(DOCKER29_NFT),
        ..Dumps::default()
    })
}

fn check_on(net: &Net, rules: &Ruleset, query: Query, client: &str, expect: &str) {
    let answer = reach::reach(World { rules, net }, &query);
    assert_eq!(fate(&answer, client), expect, "{client}: {answer:#?}");
}

fn check(rules: &Ruleset, query: Query, client: &str, expect: &str) {
    check_on(&host(), rules, query, client, expect);
}

/// The published port, or any other of the host's, from the Internet.
fn at_host(port: u16) -> Query {
    tcp("eth0", "192.0.2.10", port)
}

fn at_host6(port: u16) -> Query {
    tcp("eth0", "2001:db8::10", port)
}

/// A port of the first container's own address.
fn direct(port: u16) -> Query {
    tcp("eth0", "172.17.0.2", port)
}

/// The block that ufw-docker writes into after.rules.
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

/// `DOCKER-USER` as ufw-docker leaves it.
fn ufw_docker(dump: &str) -> String {
    before(dump, "-A DOCKER-USER -j RETURN", UFW_DOCKER)
}

/// Docker's rules for IPv6 on docker0 beside UFW's; `user`: the jump to DOCKER-USER, which 23.0 brought.
fn docker_v6(user: bool) -> String {
    let jump = if user {
        "-A FORWARD -j DOCKER-USER\n"
    } else {
        ""
    };
    let filter = format!(
        ":DOCKER - [0:0]
:DOCKER-USER - [0:0]
{jump}-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d fd00:17::2/128 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
"
    );
    let nat = "*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d ::1/128 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s fd00:17::/64 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 11434 -j DNAT --to-destination [fd00:17::2]:80
COMMIT
";
    format!("{}{nat}", before(UFW6, "-A FORWARD", &filter))
}

#[test]
fn case_2_by_the_proxy_ipv6_meets_ufw_while_ipv4_does_not() {
    // A network without IPv6: docker-proxy listens on the host.
    let ufw6 = |rule: &str| v6(&append(UFW6, rule));
    let deny = "-A ufw6-user-input -p tcp -m tcp --dport 11434 -j DROP\n";
    let allow = "-A ufw6-user-input -p tcp -m tcp --dport 11434 -j ACCEPT\n";
    check(&v4(DOCKER20), at_host(11434), CLIENT, "open");
    check(&ufw6(""), at_host6(11434), CLIENT6, "closed");
    check(&ufw6(deny), at_host6(11434), CLIENT6, "closed");
    check(&ufw6(allow), at_host6(11434), CLIENT6, "open");
}

#[test]
fn case_3_a_network_with_ipv6_is_open_by_ipv6() {
    for user in [false, true] {
        check(&v6(&docker_v6(user)), at_host6(11434), CLIENT6, "open");
    }
}

#[test]
fn case_4_a_block_for_ipv6_is_dead_where_docker_user_is_not_jumped_to() {
    let block = "-A DOCKER-USER -j ufw6-user-forward
-A DOCKER-USER -s fe80::/10 -j RETURN
-A DOCKER-USER -s fd00::/8 -j RETURN
-A DOCKER-USER -d fd00::/8 -m conntrack --ctstate NEW -j DROP
";
    let docker20 = v6(&append(&docker_v6(false), block));
    check(&docker20, at_host6(11434), CLIENT6, "open");
    let found = faults(&docker20);
    let dead =
        |f: &reach::Fault| f.kind == FaultKind::NothingJumpsHere && f.at.chain == "DOCKER-USER";
    assert!(found.iter().any(dead), "{found:#?}");
    let docker23 = v6(&append(&docker_v6(true), block));
    check(&docker23, at_host6(11434), CLIENT6, "closed");
    assert!(!faults(&docker23).iter().any(dead));
}

#[test]
fn case_15_a_reload_of_ufw_loses_the_jump_to_the_ban() {
    let allowed = append(
        &ufw_docker(DOCKER20),
        "-A ufw-user-forward -p tcp -m tcp --dport 80 -j ACCEPT\n",
    );
    let ban = "-A f2b-ollama -s 203.0.113.9/32 -j REJECT --reject-with icmp-port-unreachable\n-A f2b-ollama -j RETURN\n";
    let reloaded = append(&allowed, &format!(":f2b-ollama - [0:0]\n{ban}"));
    let banned = before(
        &reloaded,
        "-A DOCKER-USER",
        "-A DOCKER-USER -p tcp -j f2b-ollama\n",
    );
    check(&v4(&banned), at_host(11434), CLIENT, "closed");
    check(&v4(&banned), at_host(11434), "203.0.113.10", "open");
    check(&v4(&reloaded), at_host(11434), CLIENT, "open");
    let found = faults(&v4(&reloaded));
    let dead =
        |f: &reach::Fault| f.kind == FaultKind::NothingJumpsHere && f.at.chain == "f2b-ollama";
    assert!(found.iter().any(dead), "{found:#?}");
}

#[test]
fn case_17_ufw_disable_opens_the_host_but_not_what_ufw_docker_blocks() {
    let off = without(OFF, "-A INPUT -p tcp -m tcp --dport 11434");
    let block = ufw_docker(&append(&off, ":ufw-user-forward - [0:0]\n"));
    check(&v4(&block), at_host(8000), CLIENT, "open");
    check(&v4(&block), at_host(11434), CLIENT, "closed");
    // Without the block Docker before 28 leaves unpublished ports to the policy.
    check(&v4(&off), at_host(11434), CLIENT, "open");
    check(&v4(&off), direct(8080), CLIENT, "open");
}

#[test]
fn case_19_the_raw_opt_out_of_docker_28_reopens_the_containers_address() {
    let loopback = docker28().replace(
        "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 11434 -j DNAT",
        "-A DOCKER -d 127.0.0.1/32 ! -i docker0 -p tcp -m tcp --dport 11434 -j DNAT",
    );
    check(&v4(&loopback), direct(80), NEIGHBOUR, "closed");
    // DOCKER_INSECURE_NO_IPTABLES_RAW=1
    let opted_out = without(
        &loopback,
        "-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP",
    );
    check(&v4(&opted_out), direct(80), NEIGHBOUR, "open");
    check(&v4(&opted_out), at_host(11434), NEIGHBOUR, "closed");
}

#[test]
fn case_20_docker_28_drops_unpublished_ports_whatever_the_policy() {
    check(&v4(OFF), direct(8080), CLIENT, "open");
    // The published port's own rule in raw is about the whole address; another container has none.
    let docker28 = v4(&docker28().replace(":FORWARD DROP", ":FORWARD ACCEPT"));
    check(&docker28, direct(8080), CLIENT, "closed");
    check(&docker28, tcp("eth0", "172.17.0.9", 8080), CLIENT, "closed");
    check(&docker28, at_host(11434), CLIENT, "open");
}

#[test]
fn case_21_other_gateway_modes_open_the_containers_address() {
    let routable = without(
        &docker28(),
        "-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP",
    );
    // nat-unprotected: all ports; its chain ends in ACCEPT.
    let unprotected = routable.replace(
        "-A DOCKER ! -i docker0 -o docker0 -j DROP",
        "-A DOCKER ! -i docker0 -o docker0 -j ACCEPT",
    );
    let unprotected = without(
        &unprotected,
        "-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0",
    );
    check(&v4(&unprotected), direct(80), CLIENT, "open");
    check(&v4(&unprotected), direct(8080), CLIENT, "open");
    check(&v4(&unprotected), at_host(11434), CLIENT, "open");
    // routed: the published ones; no DNAT.
    let routed = without(
        &routable,
        "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 11434 -j DNAT",
    );
    check(&v4(&routed), direct(80), CLIENT, "open");
    check(&v4(&routed), direct(8080), CLIENT, "closed");
    check(&v4(&routed), at_host(11434), CLIENT, "closed");
}

#[test]
fn case_22_a_publish_on_the_lan_address_is_reached_by_the_other_link() {
    let lan = v4(&DOCKER20.replace(
        "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 11434",
        "-A DOCKER -d 192.168.7.1/32 ! -i docker0 -p tcp -m tcp --dport 11434",
    ));
    check(
        &lan,
        tcp("eth1", "192.168.7.1", 11434),
        "192.168.7.9",
        "open",
    );
    check(&lan, tcp("eth0", "192.168.7.1", 11434), NEIGHBOUR, "open");
    check(&lan, at_host(11434), NEIGHBOUR, "closed");
}

#[test]
fn cases_23_and_24_without_dockers_rules_or_network_ufw_decides() {
    // `"iptables": false` with its proxy, and `--network host`: a socket of the host either way.
    check(&v4(UFW), at_host(11434), CLIENT, "closed");
    let allow = "-A ufw-user-input -p tcp -m tcp --dport 11434 -j ACCEPT\n";
    check(&v4(&append(UFW, allow)), at_host(11434), CLIENT, "open");
    // The container's own address lies behind UFW's policy for what is routed.
    check(&v4(&append(UFW, allow)), direct(80), CLIENT, "closed");
}

#[test]
fn case_25_ufw_blocks_what_dockers_nft_backend_publishes_and_the_way_out() {
    let rules = with_docker29(UFW);
    check(&rules, at_host(11434), CLIENT, "closed");
    let out = tcp("docker0", "198.51.100.7", 443);
    check(&rules, out.clone(), "172.17.0.2", "closed");
    // Without UFW both are open. Which address masquerading gives is not known, and the answers meet a test of it.
    let alone = load(Dumps {
        nft: Some(DOCKER29_NFT),
        ..Dumps::default()
    });
    check(&alone, at_host(11434), CLIENT, "open");
    check(&alone, direct(80), CLIENT, "closed");
    check(&alone, out, "172.17.0.2", "maybe");
}

#[test]
fn case_26_allowing_routed_traffic_exposes_it_in_spite_of_ufw_docker() {
    let routed = UFW.replace(":FORWARD DROP", ":FORWARD ACCEPT");
    let block = format!(":DOCKER-USER - [0:0]\n{UFW_DOCKER}-A DOCKER-USER -j RETURN\n");
    let rules = with_docker29(&append(&routed, &block));
    check(&rules, at_host(11434), CLIENT, "open");
    let dead =
        |f: &reach::Fault| f.kind == FaultKind::NothingJumpsHere && f.at.chain == "DOCKER-USER";
    assert!(faults(&rules).iter().any(dead));
}

#[test]
fn case_27_behind_the_upgrade_docker_user_holds_until_the_reboot() {
    let routed = UFW.replace(":FORWARD DROP", ":FORWARD ACCEPT");
    let block = format!(":DOCKER-USER - [0:0]\n{UFW_DOCKER}-A DOCKER-USER -j RETURN\n");
    let rebooted = append(&routed, &block);
    let upgraded = before(&rebooted, "-A FORWARD", "-A FORWARD -j DOCKER-USER\n");
    check(&with_docker29(&upgraded), at_host(11434), CLIENT, "closed");
    check(&with_docker29(&rebooted), at_host(11434), CLIENT, "open");
}

#[test]
fn case_28_rules_that_came_with_the_image_stand_before_ufw() {
    let prebaked = before(
        UFW,
        "-A INPUT",
        "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p udp -m udp --sport 123 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
",
    );
    let deny = "-A ufw-user-input -p tcp -m tcp --dport 22 -j DROP\n";
    let rules = v4(&before(&prebaked, "-A ufw-user-input", deny));
    check(&v4(UFW), at_host(443), CLIENT, "open");
    check(&rules, at_host(443), CLIENT, "closed");
    check(&rules, at_host(22), CLIENT, "open");
}

#[test]
fn case_29_without_ipv6_in_ufw_its_end_opens_ipv6() {
    // ufw-init with IPV6=no.
    let no = "*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
COMMIT
";
    check(&v6(no), at_host6(22), CLIENT6, "closed");
    check(&v6(no), at_host6(11434), CLIENT6, "closed");
    let disabled = "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
";
    check(&v6(disabled), at_host6(22), CLIENT6, "open");
    check(&v6(disabled), at_host6(11434), CLIENT6, "open");
}

#[test]
fn case_30_flushed_input_and_ufw_enable_lock_out() {
    let flushed = v4(&without(UFW, "-A INPUT"));
    check(&flushed, at_host(443), CLIENT, "closed");
    check(&flushed, at_host(22), CLIENT, "closed");
    // The answers to the host's own connections are lost as well.
    let answer = walk_hook(&flushed, &hook(22, CtState::Established));
    assert!(answer.admitted.is_empty() && answer.conditional.is_empty());
    let unhooked = |f: &reach::Fault| f.kind == FaultKind::UfwUnhooked && f.at.chain == "INPUT";
    assert!(
        faults(&flushed).iter().any(unhooked),
        "{:#?}",
        faults(&flushed)
    );
    // SSH is there, limited, before the flush.
    check(&v4(UFW), at_host(22), CLIENT, "maybe");
}

#[test]
fn case_31_flushed_forward_closes_what_is_published() {
    let flushed = v4(&without(DOCKER20, "-A FORWARD"));
    check(&v4(DOCKER20), at_host(11434), CLIENT, "open");
    check(&flushed, at_host(11434), CLIENT, "closed");
    let unhooked = |f: &reach::Fault| f.kind == FaultKind::UfwUnhooked && f.at.chain == "FORWARD";
    assert!(
        faults(&flushed).iter().any(unhooked),
        "{:#?}",
        faults(&flushed)
    );
}

#[test]
fn case_32_a_drop_in_the_other_backend_holds_though_nobody_sees_it() {
    let legacy = "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j DROP
COMMIT
";
    let rules = load(Dumps {
        iptables: Some(DOCKER20),
        iptables_legacy: Some(legacy),
        ..Dumps::default()
    });
    check(&rules, at_host(11434), CLIENT, "closed");
    let hidden = |f: &reach::Fault| f.kind == FaultKind::OtherBackend;
    assert!(faults(&rules).iter().any(hidden), "{:#?}", faults(&rules));
}

#[test]
fn case_33_tailscale_lets_its_own_in_ahead_of_ufw() {
    let mut net = host();
    net.interfaces.push(interface(
        7,
        "tailscale0",
        Some("tun"),
        &["100.101.102.103/32"],
    ));
    net.routes.push(route("100.64.0.0/10", 7, None));
    let dump = before(DOCKER20, "-A INPUT", "-A INPUT -j ts-input\n");
    let dump = before(&dump, "-A FORWARD", "-A FORWARD -j ts-forward\n");
    let dump = append(
        &dump,
        ":ts-forward - [0:0]
:ts-input - [0:0]
-A ts-forward -i tailscale0 -j MARK --set-xmark 0x40000/0xff0000
-A ts-forward -m mark --mark 0x40000/0xff0000 -j ACCEPT
-A ts-forward -s 100.64.0.0/10 -o tailscale0 -j DROP
-A ts-forward -o tailscale0 -j ACCEPT
-A ts-input -s 100.101.102.103/32 -i lo -j ACCEPT
-A ts-input -s 100.115.92.0/23 ! -i tailscale0 -j RETURN
-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP
-A ts-input -i tailscale0 -j ACCEPT
",
    );
    let dump = append_to(
        &dump,
        "nat",
        ":ts-postrouting - [0:0]
-A POSTROUTING -j ts-postrouting
-A ts-postrouting -m mark --mark 0x40000/0xff0000 -j MASQUERADE
",
    );
    let rules = v4(&dump);
    let peer = "100.64.0.9";
    let ask = |port| tcp("tailscale0", "100.101.102.103", port);
    check_on(&net, &rules, ask(8000), peer, "open");
    check_on(&net, &rules, ask(11434), peer, "open");
    check_on(&net, &rules, at_host(8000), CLIENT, "closed");
    // From another link that range is nobody's.
    check_on(&net, &rules, at_host(443), peer, "closed");
}

#[test]
fn case_34_a_container_reaches_no_service_of_the_host_by_any_bridge() {
    let mut net = host();
    net.interfaces.push(interface(
        9,
        "br-c0ffee",
        Some("bridge"),
        &["172.18.0.1/16"],
    ));
    net.routes.push(route("172.18.0.0/16", 9, None));
    let allow = "-A ufw-user-input -i docker0 -p tcp -m tcp --dport 11434 -j ACCEPT\n";
    let own = |ufw: &str, bridge: &str, to: &str, from: &str, expect| {
        check_on(&net, &v4(ufw), tcp(bridge, to, 11434), from, expect);
    };
    own(UFW, "docker0", "172.17.0.1", "172.17.0.5", "closed");
    own(UFW, "br-c0ffee", "172.18.0.1", "172.18.0.5", "closed");
    let allowed = append(UFW, allow);
    own(&allowed, "docker0", "172.17.0.1", "172.17.0.5", "open");
    own(&allowed, "br-c0ffee", "172.18.0.1", "172.18.0.5", "closed");
}

#[test]
fn case_35_the_daemons_own_bind_address_is_not_that_of_a_compose_network() {
    let mut net = host();
    net.interfaces.push(interface(
        9,
        "br-c0ffee",
        Some("bridge"),
        &["172.18.0.1/16"],
    ));
    net.routes.push(route("172.18.0.0/16", 9, None));
    // `"ip": "127.0.0.1"`: 11434 on the default bridge, 8081 on a compose network.
    let dump = DOCKER20.replace(
        "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 11434",
        "-A DOCKER -d 127.0.0.1/32 ! -i docker0 -p tcp -m tcp --dport 11434",
    );
    let dump = before(
        &dump,
        "-A FORWARD -o docker0",
        "-A FORWARD -o br-c0ffee -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br-c0ffee -j DOCKER
-A FORWARD -i br-c0ffee ! -o br-c0ffee -j ACCEPT
-A FORWARD -i br-c0ffee -o br-c0ffee -j ACCEPT
-A DOCKER -d 172.18.0.2/32 ! -i br-c0ffee -o br-c0ffee -p tcp -m tcp --dport 80 -j ACCEPT
",
    );
    let nat = "-A DOCKER ! -i br-c0ffee -p tcp -m tcp --dport 8081 -j DNAT --to-destination 172.18.0.2:80\n";
    let rules = v4(&append_to(&dump, "nat", nat));
    check_on(&net, &rules, at_host(11434), CLIENT, "closed");
    check_on(&net, &rules, at_host(8081), CLIENT, "open");
}

fn hook(dport: u16, state: CtState) -> HookQuery {
    HookQuery {
        hook: Hook::Input,
        proto: Proto::Tcp,
        dst: Some("192.0.2.10".parse().unwrap()),
        ipv6: false,
        dport,
        sport: None,
        iif: Some("eth0".into()),
        oif: None,
        state,
    }
}

#[test]
fn case_36_a_new_rule_leaves_the_streams_that_are_there() {
    let deny = "-A ufw-user-input -s 203.0.113.0/24 -j DROP\n";
    let rules = v4(&before(UFW, "-A ufw-user-input", deny));
    check(&rules, at_host(443), CLIENT, "closed");
    let client = CLIENT.parse().unwrap();
    assert!(
        walk_hook(&rules, &hook(443, CtState::New))
            .blocked
            .contains(client)
    );
    assert!(
        walk_hook(&rules, &hook(443, CtState::Established))
            .admitted
            .contains(client)
    );
}
