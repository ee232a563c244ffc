//! States that a host with Docker and UFW gets into: chains that somebody flushed, rules in the other backend of
//! iptables, services of the host that containers use, datagrams that flow already. Case numbers are those of the
//! table in SPECIFICATION.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod engines;

use engines::spaces::{apply, apply_with, audit, docker_world, shell, truth};
use engines::{PORTCULLIS_HERE, SOON, all_closed, check, has, ids, says_open};
use lab::{Docker, Host, address};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// A page of a service, fetched inside a container.
fn fetches(docker: &Docker, container: &str, to: &str, port: u16) -> bool {
    let get = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 2 {to} {port}");
    docker
        .cli(&["exec", container, "/bin/busybox", "sh", "-c", &get])
        .is_ok_and(|page| page.contains("200 OK"))
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn flushed_chains_the_other_backend_and_services_of_the_host() {
    let (world, docker) = docker_world("flushed", &[]);
    let (server, stranger, neighbour) = (&world.server, &world.stranger, &world.neighbour);
    let _ssh = server.http_server("ssh", "[::]:22", "ssh").unwrap();
    let at_docker0 = docker.run("ollama", &["-p", "11434:80"], "web:1").unwrap();
    docker
        .cli(&["network", "create", "--subnet", "172.30.0.0/24", "later"])
        .unwrap();
    let more = ["--network", "later", "--ip", "172.30.0.9"];
    docker.run("evening", &more, "web:1").unwrap();
    truth(&world, stranger, address::SERVER, 11434, true, "before");

    // 32: a rule that `iptables -S` does not show.
    let hidden = "iptables-legacy -I FORWARD -p tcp --dport 80 -j DROP";
    shell(server, &[hidden]);
    truth(&world, stranger, address::SERVER, 11434, false, "32");
    shell(server, &[&hidden.replace(" -I ", " -D ")]);
    truth(
        &world,
        stranger,
        address::SERVER,
        11434,
        true,
        "32, taken out",
    );

    // 34: UFW keeps containers from the host's services, and opens them bridge by bridge.
    let _service = server
        .http_server("service", "0.0.0.0:8000", "host")
        .unwrap();
    let from = [
        ("ollama", "172.17.0.1", at_docker0.as_str()),
        ("evening", "172.30.0.1", "172.30.0.9"),
    ];
    let services = |open: [bool; 2], case: &str| {
        let said = audit(server);
        for ((container, gateway, own), open) in from.into_iter().zip(open) {
            let seen = fetches(&docker, container, gateway, 8000);
            assert_eq!(seen, open, "{case}: {container}");
            let at = gateway.parse().unwrap();
            let said = says_open(&said, at, 8000, own.parse().unwrap());
            assert!(said.is_none_or(|said| said == open), "{case}: {said:?}");
        }
    };
    services([false, false], "34");
    let allow = "ufw allow in on docker0 to any port 8000 proto tcp";
    shell(server, &[allow]);
    services([true, false], "34, allowed on docker0");
    shell(server, &[&allow.replace("ufw allow", "ufw delete allow")]);

    // 31: FORWARD flushed while UFW is active.
    shell(server, &["iptables -F FORWARD"]);
    assert!(server.ok(&["ufw", "status"]).unwrap().contains("active"));
    truth(&world, stranger, address::SERVER, 11434, false, "31");
    let found = audit(server);
    assert!(has(&found, "ufw-routed-not-loaded"), "{:?}", ids(&found));

    // 30: INPUT flushed; enabling UFW would shut everybody out, and nobody gets that far.
    shell(server, &["ufw disable", "iptables -F INPUT"]);
    check(stranger, address::SERVER, 22, true, "30");
    let rules = || engines::bare(&server.ok(&["iptables-save"]).unwrap());
    let before = rules();
    let refused = server
        .run(&[PORTCULLIS_HERE, "apply", "--yes", "--i-have-a-console"])
        .unwrap();
    assert!(!refused.success(), "{}", refused.text());
    let words: Vec<&str> = refused.stderr.split_whitespace().collect();
    let told = words.join(" ");
    assert!(told.contains("does not lead to them"), "{told}");
    assert_eq!(rules(), before, "nothing was changed");
    check(stranger, address::SERVER, 22, true, "30, refused");
    // What it tells to do helps.
    let chains: Vec<&str> = words
        .iter()
        .filter(|word| word.starts_with("ufw-") && word.ends_with("-input"))
        .copied()
        .collect();
    assert_eq!(chains.len(), 6, "{told}");
    for chain in chains {
        shell(server, &[&format!("iptables -A INPUT -j {chain}")]);
    }
    let policy = "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n\
                  [[allow]]\nport = 8000\nfrom = \"containers\"\n";
    server.write("/etc/portcullis/policy.toml", policy).unwrap();
    apply(server);
    check(stranger, address::SERVER, 22, true, "after apply");
    all_closed(
        &[
            (stranger, address::SERVER, 11434),
            (stranger, address::SERVER_V6, 11434),
            (neighbour, address::SERVER_LAN, 11434),
            (neighbour, address::SERVER_LAN_V6, 11434),
            (stranger, address::SERVER, 8000),
            (neighbour, address::SERVER_LAN, 8000),
        ],
        "after apply",
    );
    services([true, true], "34, for containers by policy");
}

/// One flow of datagrams, from one port of its own.
struct Flow(UdpSocket);

impl Flow {
    fn open(who: &Host, to: IpAddr, port: u16) -> Flow {
        let socket = who
            .in_net(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(SocketAddr::new(to, port))?;
                socket.set_read_timeout(Some(Duration::from_millis(300)))?;
                Ok::<_, std::io::Error>(socket)
            })
            .unwrap()
            .unwrap();
        Flow(socket)
    }

    /// Sends until an answer is there; where none is to be, for three turns.
    fn answers(&self, expect: bool) -> bool {
        let end = Instant::now() + if expect { SOON } else { Duration::ZERO };
        let mut turns = 0;
        while Instant::now() < end || turns < 3 {
            turns += 1;
            let _ = self.0.send(b"ping");
            if self.0.recv(&mut [0; 64]).is_ok() {
                return true;
            }
        }
        false
    }
}

/// Connection tracking knows a flow by its ports, and rules of UFW's only meet new ones.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn datagrams_that_flow_already_end_too() {
    let (world, docker) = docker_world("datagrams", &[]);
    let (server, stranger, neighbour) = (&world.server, &world.stranger, &world.neighbour);
    docker.run("dns", &["-p", "5300:53/udp"], "web:1").unwrap();
    let pid = docker
        .cli(&["inspect", "--format", "{{.State.Pid}}", "dns"])
        .unwrap();
    let echo = |port: u16| {
        format!(
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             s.bind(('0.0.0.0', {port}))\nwhile True:\n d, a = s.recvfrom(64)\n s.sendto(d, a)\n"
        )
    };
    let inside = echo(53);
    let _published = server
        .spawn(&["nsenter", "-t", pid.trim(), "-n", "python3", "-c", &inside])
        .unwrap();
    let outside = echo(5301);
    let _own = server.spawn(&["python3", "-c", &outside]).unwrap();
    shell(server, &["ufw allow 5301/udp"]);

    let forbidden = [5300, 5301].map(|port| Flow::open(stranger, address::SERVER, port));
    let allowed = Flow::open(neighbour, address::SERVER_LAN, 5300);
    for flow in forbidden.iter().chain([&allowed]) {
        assert!(flow.answers(true), "before: {flow:?}", flow = flow.0);
    }
    let tracked = || {
        let entries = server.ok(&["conntrack", "-L", "-p", "udp"]).unwrap();
        let of = format!("src={} dst={} ", address::STRANGER, address::SERVER);
        entries.lines().filter(|line| line.contains(&of)).count()
    };
    assert_eq!(tracked(), 2);
    let policy = "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n\
                  [[allow]]\nport = 5300\nproto = \"udp\"\nfrom = \"lan\"\n";
    server.write("/etc/portcullis/policy.toml", policy).unwrap();
    let told = apply_with(server, &["--prune"]);
    let told: Vec<&str> = told.split_whitespace().collect();
    assert!(told.join(" ").contains("5300/udp, 5301/udp"), "{told:?}");
    assert_eq!(tracked(), 0, "entries of flows that the policy forbids");
    for flow in &forbidden {
        assert!(!flow.answers(false), "after apply: {flow:?}", flow = flow.0);
    }
    assert!(
        allowed.answers(true),
        "a flow that the policy allows goes on"
    );
    assert!(
        !has(&audit(server), "exposed-to-internet"),
        "{:?}",
        ids(&audit(server))
    );
}

/// What ufw-docker writes into after.rules, in one family's words.
fn ufw_docker(ipv6: bool) -> String {
    let (forward, ranges): (_, &[&str]) = match ipv6 {
        false => (
            "ufw-user-forward",
            &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"],
        ),
        true => ("ufw6-user-forward", &["fd00::/8"]),
    };
    let mut lines = vec![
        "*filter".to_owned(),
        format!(":{forward} - [0:0]"),
        ":DOCKER-USER - [0:0]".to_owned(),
        format!("-A DOCKER-USER -j {forward}"),
        "-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN".to_owned(),
    ];
    lines.extend(
        ranges
            .iter()
            .map(|range| format!("-A DOCKER-USER -s {range} -j RETURN")),
    );
    lines.extend(
        ranges
            .iter()
            .map(|range| format!("-A DOCKER-USER -m conntrack --ctstate NEW -d {range} -j DROP")),
    );
    lines.extend(["-A DOCKER-USER -j RETURN".to_owned(), "COMMIT".to_owned()]);
    lines.join("\n") + "\n"
}

/// Bans that containers do not notice, and what ufw-docker's block does and does not hold.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn bans_before_containers_and_the_block_of_ufw_docker() {
    let (world, docker) = docker_world("ufw-docker", &["--experimental", "--ip6tables"]);
    let (server, stranger) = (&world.server, &world.stranger);
    let _ssh = server.http_server("ssh", "[::]:22", "ssh").unwrap();
    let _own = server.http_server("own", "[::]:8091", "own").unwrap();
    docker.run("ollama", &["-p", "11434:80"], "web:1").unwrap();
    let six = [
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "fd00:d0c::/64",
        "six",
    ];
    docker.cli(&six).unwrap();
    let on_six = ["--network", "six", "-p", "9000:80"];
    docker.run("six", &on_six, "web:1").unwrap();
    let (v4, v6) = (address::SERVER, address::SERVER_V6);

    // 16: fail2ban's usual place. What is banned there still gets to containers.
    let ban = format!("iptables -A f2b-sshd -s {} -j REJECT", address::STRANGER);
    let jump = "iptables -I INPUT -p tcp -j f2b-sshd";
    shell(server, &["iptables -N f2b-sshd", &ban, jump]);
    check(stranger, v4, 22, false, "16, banned");
    check(stranger, v4, 11434, true, "16");
    shell(
        server,
        &[
            &jump.replace(" -I ", " -D "),
            "iptables -F f2b-sshd",
            "iptables -X f2b-sshd",
        ],
    );

    for (file, ipv6) in [("after.rules", false), ("after6.rules", true)] {
        let path = format!("/etc/ufw/{file}");
        let append = server.command(&["tee", "-a", &path]);
        append.input(ufw_docker(ipv6)).ok().unwrap();
    }
    shell(server, &["ufw reload"]);
    truth(&world, stranger, v4, 11434, false, "ufw-docker");
    truth(&world, stranger, v4, 8091, false, "UFW");
    // 4: this Docker makes no jump to DOCKER-USER over IPv6, so the block stands where nothing passes.
    truth(&world, stranger, v6, 9000, true, "4");

    // 17: the block is not UFW's, and stays when UFW goes.
    shell(server, &["ufw disable"]);
    truth(&world, stranger, v4, 11434, false, "17");
    truth(&world, stranger, v4, 8091, true, "17, the host's own");
    shell(server, &["ufw --force enable"]);
    truth(&world, stranger, v4, 8091, false, "UFW again");

    // 15: a reload empties DOCKER-USER, with the bans in it.
    shell(
        server,
        &[
            "ufw route allow proto tcp from any to any port 80",
            &format!("iptables -I DOCKER-USER -s {} -j DROP", address::STRANGER),
        ],
    );
    check(stranger, v4, 11434, false, "15, banned");
    shell(server, &["ufw reload"]);
    truth(&world, stranger, v4, 11434, true, "15");

    apply(server);
    for (to, port) in [(v4, 11434), (v4, 9000), (v4, 8091), (v6, 9000), (v6, 8091)] {
        truth(&world, stranger, to, port, false, "after apply");
    }
}
