//! The guard in front of a real Docker: what gets through, from where, before and after.

#![allow(
    clippy::expect_used,
    reason = "a live test may panic: that is how it fails"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use lab::{Docker, Host, World, address};
use portcullis_core::host::Host as Facts;
use portcullis_core::planner::guard;
use portcullis_core::policy::Policy;
use reach::{Interface, NextHop, Route, RouteKind};

const BOUND: Duration = Duration::from_millis(700);
const SSH_AND_443: &str = r#"
version = 1
[[allow]]
port = "ssh"
from = "anywhere"
[[allow]]
port = 443
from = "anywhere"
"#;

fn policy(more: &str) -> Policy {
    match Policy::parse("test", &format!("{SSH_AND_443}{more}")) {
        Ok(policy) => policy,
        Err(errors) => panic!("{errors:?}"),
    }
}

fn load(server: &Host, facts: &Facts, policy: &Policy) {
    let script = guard::ruleset(facts, policy).expect("a guard");
    server
        .write("/etc/portcullis/guard.nft", script)
        .expect("written");
    server
        .ok(&["/usr/sbin/nft", "-f", "/etc/portcullis/guard.nft"])
        .expect("the guard loads");
}

/// A server with UFW on and a real dockerd; `server/eth1` is the LAN.
fn docker_world(name: &str) -> (World, Docker) {
    lab::require_root();
    let world = World::new(name).expect("a world");
    world.server.ok(&["ufw", "allow", "22/tcp"]).expect("ufw");
    world.server.ok(&["ufw", "--force", "enable"]).expect("ufw");
    let docker = world.server.dockerd().expect("dockerd");
    docker.import_web_image("web:1", "model").expect("image");
    (world, docker)
}

#[track_caller]
fn check(who: &Host, to: IpAddr, port: u16, open: bool) {
    let seen = who.connect(to, port, BOUND).expect("a knock");
    assert_eq!(seen, open, "{} -> {to}:{port}", who.name());
}

fn ip(text: &str) -> IpAddr {
    text.trim().parse().expect("an address")
}

/// A connection that is held open; the container's web server waits for a request.
struct Held(TcpStream);

impl Held {
    fn open(who: &Host, to: IpAddr, port: u16) -> Held {
        let stream = who
            .in_net(|| {
                TcpStream::connect_timeout(&SocketAddr::new(to, port), Duration::from_secs(3))
            })
            .expect("in the network")
            .expect("connects");
        Held(stream)
    }

    /// Asks for the page over it.
    fn works(mut self) -> bool {
        let _ = self.0.set_read_timeout(Some(Duration::from_millis(1500)));
        let _ = self.0.write_all(b"GET / HTTP/1.0\r\n\r\n");
        let mut page = String::new();
        let _ = self.0.read_to_string(&mut page);
        page.contains("model")
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn published_ports_obey_the_policy_on_real_docker() {
    let (world, docker) = docker_world("guard-docker");
    let (server, stranger, neighbour) = (&world.server, &world.stranger, &world.neighbour);
    docker
        .run("ollama", &["-p", "11434:80"], "web:1")
        .expect("runs");
    docker
        .run("https", &["-p", "443:80"], "web:1")
        .expect("runs");
    let private = docker
        .run("private", &["-p", "127.0.0.1:3000:80"], "web:1")
        .expect("runs");
    let private = ip(&private);
    neighbour
        .ok(&["ip", "route", "add", "172.16.0.0/12", "via", "192.168.1.10"])
        .expect("a route to the containers");

    // Before: UFW is on, and Docker publishes past it.
    check(stranger, address::SERVER, 11434, true);
    check(stranger, address::SERVER, 443, true);
    check(neighbour, private, 80, true);
    let forbidden = Held::open(stranger, address::SERVER, 11434);
    let allowed = Held::open(stranger, address::SERVER, 443);

    load(server, &Facts::default(), &policy(""));
    check(stranger, address::SERVER, 11434, false);
    check(neighbour, address::SERVER_LAN, 11434, false);
    check(stranger, address::SERVER, 443, true);
    check(neighbour, private, 80, false);
    assert!(
        !forbidden.works(),
        "a connection that the policy forbids goes on"
    );
    assert!(allowed.works(), "an admitted connection was cut");

    // The host itself, the way out, and from container to container.
    check(server, Ipv4Addr::LOCALHOST.into(), 11434, true);
    check(server, Ipv4Addr::LOCALHOST.into(), 3000, true);
    let _web = world
        .stranger
        .http_server("website", "0.0.0.0:80", "outside")
        .expect("serves");
    // Debian's static busybox has a wget that crashes on any name lookup.
    let fetch = |container: &str, from: &str| {
        let get = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 3 {from} 80");
        docker
            .cli(&["exec", container, "/bin/busybox", "sh", "-c", &get])
            .expect("fetches")
    };
    assert!(fetch("ollama", "198.51.100.66").contains("outside"));
    assert!(fetch("ollama", &private.to_string()).contains("model"));

    // A network made later, its published port and its container's own address.
    docker
        .cli(&["network", "create", "later"])
        .expect("a network");
    docker
        .cli(&[
            "network",
            "create",
            "-o",
            "com.docker.network.bridge.name=mynet0",
            "named",
        ])
        .expect("a network");
    for (network, port) in [("later", "9001:80"), ("named", "9002:80")] {
        docker
            .cli(&[
                "run",
                "-d",
                "--name",
                &format!("c-{network}"),
                "--network",
                network,
                "-p",
                port,
                "web:1",
            ])
            .expect("runs");
        let own = docker
            .cli(&[
                "inspect",
                "--format",
                "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
                &format!("c-{network}"),
            ])
            .expect("inspect");
        check(neighbour, ip(&own), 80, false);
    }
    check(stranger, address::SERVER, 9001, false);
    check(stranger, address::SERVER, 9002, false);

    // Whatever others do to their own rules.
    server.ok(&["ufw", "reload"]).expect("ufw reload");
    check(stranger, address::SERVER, 11434, false);
    server
        .ok(&["iptables", "-P", "FORWARD", "ACCEPT"])
        .expect("iptables");
    server
        .ok(&["iptables", "-F", "DOCKER-USER"])
        .expect("iptables");
    server
        .ok(&["iptables", "-I", "FORWARD", "-j", "ACCEPT"])
        .expect("iptables");
    check(stranger, address::SERVER, 11434, false);
    check(neighbour, private, 80, false);
    let docker = docker.restart(&[]).expect("dockerd again");
    docker.cli(&["start", "ollama", "https"]).expect("start");
    check(stranger, address::SERVER, 11434, false);
    server
        .wait_port(Ipv4Addr::LOCALHOST.into(), 443, Duration::from_secs(10))
        .expect("up");
    check(stranger, address::SERVER, 443, true);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn sources_of_a_published_port_are_kept_apart() {
    let (world, docker) = docker_world("guard-sources");
    docker
        .run("ollama", &["-p", "11434:80"], "web:1")
        .expect("runs");
    docker
        .run("dns", &["-p", "53:5353/udp", "-p", "54:5354/udp"], "web:1")
        .expect("runs");
    let more = r#"
[[allow]]
port = 11434
from = ["192.168.1.0/24", "fd42:1::/64"]
[[allow]]
port = 53
proto = "udp"
from = "anywhere"
"#;
    assert!(arrives(&world, 53, "5353") && arrives(&world, 54, "5354"));
    load(&world.server, &Facts::default(), &policy(more));
    check(&world.neighbour, address::SERVER_LAN, 11434, true);
    check(&world.stranger, address::SERVER, 11434, false);
    assert!(arrives(&world, 53, "5353"), "udp/53 is allowed");
    assert!(!arrives(&world, 54, "5354"), "udp/54 is not");
}

/// A datagram of the stranger to the server's port gets past the guard: Docker's rule behind it counts it.
fn arrives(world: &World, port: u16, in_container: &str) -> bool {
    let counted = || {
        let rules = world
            .server
            .ok(&["iptables", "-nvxL", "DOCKER"])
            .expect("iptables");
        let rule = rules
            .lines()
            .find(|line| line.ends_with(&format!("udp dpt:{in_container}")));
        let packets = rule.and_then(|line| line.split_whitespace().next());
        packets
            .expect("Docker's rule")
            .parse::<u64>()
            .expect("a number")
    };
    let before = counted();
    world
        .stranger
        .in_net(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            let to = SocketAddr::new(address::SERVER, port);
            socket.send_to(b"ping", to).expect("sends");
        })
        .expect("in the network");
    let end = Instant::now() + BOUND;
    while Instant::now() < end {
        if counted() > before {
            return true;
        }
    }
    false
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn ipv6_is_covered_on_real_docker() {
    lab::require_root();
    let world = World::new("guard-v6").expect("a world");
    world.server.ok(&["ufw", "--force", "enable"]).expect("ufw");
    let docker = world
        .server
        .dockerd_with(&[
            "--ipv6",
            "--fixed-cidr-v6",
            "fd00:d0c::/64",
            "--experimental",
            "--ip6tables",
        ])
        .expect("dockerd");
    docker.import_web_image("web:1", "model").expect("image");
    docker
        .run("ollama", &["-p", "11434:80"], "web:1")
        .expect("runs");
    docker
        .run("https", &["-p", "443:80"], "web:1")
        .expect("runs");
    let own = docker
        .cli(&[
            "inspect",
            "--format",
            "{{.NetworkSettings.GlobalIPv6Address}}",
            "ollama",
        ])
        .expect("inspect");
    world
        .neighbour
        .ok(&[
            "ip",
            "-6",
            "route",
            "add",
            "fd00:d0c::/64",
            "via",
            "fd42:1::10",
        ])
        .expect("a route");
    check(&world.stranger, address::SERVER_V6, 11434, true);
    check(&world.neighbour, ip(&own), 80, true);
    load(&world.server, &Facts::default(), &policy(""));
    check(&world.stranger, address::SERVER_V6, 11434, false);
    check(&world.neighbour, ip(&own), 80, false);
    check(&world.stranger, address::SERVER_V6, 443, true);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn bans_hold_for_every_port_and_open_connections_and_survive_a_reload() {
    let (world, docker) = docker_world("guard-bans");
    let server = &world.server;
    docker
        .run("https", &["-p", "443:80"], "web:1")
        .expect("runs");
    let _sshd = server
        .http_server("sshd-stand-in", "[::]:22", "ssh")
        .expect("serves");
    load(server, &Facts::default(), &policy(""));
    check(&world.stranger, address::SERVER, 22, true);
    check(&world.stranger, address::SERVER, 443, true);
    let held = Held::open(&world.stranger, address::SERVER, 443);
    for element in [
        "add element inet portcullis hand4 { 198.51.100.66 timeout 3600s }",
        "add element inet portcullis hand6 { 2001:db8:51::66 timeout 3600s }",
    ] {
        server.ok(&["/usr/sbin/nft", element]).expect("a ban");
    }
    for _ in 0..2 {
        check(&world.stranger, address::SERVER, 22, false);
        check(&world.stranger, address::SERVER, 443, false);
        check(&world.stranger, address::SERVER_V6, 22, false);
        check(&world.operator, address::SERVER, 22, true);
        check(&world.operator, address::SERVER, 443, true);
        load(
            server,
            &Facts::default(),
            &policy("[[allow]]\nport = 8443\nfrom = \"anywhere\"\n"),
        );
        server.ok(&["ufw", "reload"]).expect("ufw reload");
    }
    assert!(!held.works(), "a banned address keeps its connection");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn loopback_addresses_cannot_be_reached_from_the_wire() {
    lab::require_root();
    let world = World::new("guard-loopback").expect("a world");
    let (server, neighbour) = (&world.server, &world.neighbour);
    let _service = server
        .http_server("jupyter", "127.9.9.9:8888", "mine")
        .expect("serves");
    server
        .write("/proc/sys/net/ipv4/conf/eth1/route_localnet", "1")
        .expect("a sysctl");
    neighbour
        .write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1")
        .expect("a sysctl");
    neighbour
        .ip("route del local 127.0.0.0/8 dev lo table local\nroute add 127.9.9.9/32 via 192.168.1.10 src 192.168.1.20\n")
        .expect("routes");
    let target = IpAddr::from([127, 9, 9, 9]);
    check(neighbour, target, 8888, true);
    load(server, &Facts::default(), &policy(""));
    check(neighbour, target, 8888, false);
    check(server, target, 8888, true);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_bridge_that_carries_the_uplink_is_outside() {
    let (world, docker) = docker_world("guard-bridge");
    let server = &world.server;
    server
        .ip(
            "link add br-lan type bridge\naddress flush dev eth1\nlink set eth1 master br-lan\n\
             address add 192.168.1.10/24 dev br-lan\nlink set br-lan up\n",
        )
        .expect("a bridge");
    docker
        .run("ollama", &["-p", "11434:80"], "web:1")
        .expect("runs");
    check(&world.neighbour, address::SERVER_LAN, 11434, true);
    a_guard_that_is_older_than_the_bridge(&world, &docker);
    // Its port is a veth in this lab; on a real host it would be a network card.
    let mut facts = Facts::default();
    facts.net.interfaces = vec![
        Interface {
            index: 5,
            name: "br-lan".into(),
            kind: Some("bridge".into()),
            ..Interface::default()
        },
        Interface {
            index: 6,
            name: "eth1".into(),
            master: Some(5),
            ..Interface::default()
        },
    ];
    load(server, &facts, &policy(""));
    check(&world.neighbour, address::SERVER_LAN, 11434, false);
    // Or the default route goes through it.
    facts.net.interfaces.truncate(1);
    facts.net.routes = vec![Route {
        table: 254,
        dst: "0.0.0.0/0".parse().expect("a network"),
        kind: RouteKind::Unicast,
        metric: 0,
        tos: 0,
        prefsrc: None,
        nexthops: vec![NextHop {
            oif: 5,
            gateway: None,
            dead: false,
        }],
    }];
    load(server, &facts, &policy(""));
    check(&world.neighbour, address::SERVER_LAN, 11434, false);
    // A packet that is only routed through the host to that bridge is not the guard's matter.
    world
        .neighbour
        .ok(&["ip", "route", "add", "default", "via", "192.168.1.10"])
        .expect("a route");
    world
        .internet
        .ok(&[
            "ip",
            "route",
            "add",
            "192.168.1.0/24",
            "via",
            "203.0.113.10",
        ])
        .expect("a route");
    server
        .ok(&["iptables", "-I", "FORWARD", "-j", "ACCEPT"])
        .expect("iptables");
    let _web = world
        .neighbour
        .http_server("web", "0.0.0.0:8081", "lan")
        .expect("serves");
    check(&world.stranger, address::NEIGHBOUR, 8081, true);
}

/// Its neighbours get no way to containers by their own addresses, as long as it is not called as engines call
/// their networks.
fn a_guard_that_is_older_than_the_bridge(world: &World, docker: &Docker) {
    let (server, neighbour) = (&world.server, &world.neighbour);
    docker
        .cli(&["network", "create", "--subnet", "172.30.0.0/24", "later"])
        .expect("a network");
    let more = ["--network", "later", "--ip", "172.30.0.9", "-p", "9001:80"];
    docker.run("evening", &more, "web:1").expect("runs");
    let at_docker0 = ip(&docker.address("ollama").expect("an address"));
    let addresses = [at_docker0, ip("172.30.0.9")];
    for own in addresses {
        neighbour
            .ip(&format!("route replace {own} via 192.168.1.10\n"))
            .expect("a route");
        check(neighbour, own, 80, true);
    }
    let rename = |from: &str, to: &str| {
        server
            .ip(&format!(
                "link set {from} down\nlink set {from} name {to}\nlink set {to} up\n"
            ))
            .expect("another name");
    };
    load(server, &Facts::default(), &policy(""));
    rename("br-lan", "vmbr0");
    for own in addresses {
        check(neighbour, own, 80, false);
    }
    check(neighbour, address::SERVER_LAN, 11434, false);
    check(neighbour, address::SERVER_LAN, 9001, false);
    rename("vmbr0", "br-lan");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn replacing_the_guard_leaves_no_gap() {
    let (world, docker) = docker_world("guard-gap");
    docker
        .run("ollama", &["-p", "11434:80"], "web:1")
        .expect("runs");
    load(&world.server, &Facts::default(), &policy(""));
    let other = policy("[[allow]]\nport = 8443\nfrom = \"anywhere\"\n");
    let opened = std::thread::scope(|scope| {
        let knocker = scope.spawn(|| {
            let end = Instant::now() + Duration::from_secs(4);
            let mut opened = 0;
            let mut knocks = 0;
            while Instant::now() < end {
                knocks += 1;
                opened += u32::from(
                    world
                        .stranger
                        .connect(address::SERVER, 11434, Duration::from_millis(5))
                        .expect("a knock"),
                );
            }
            assert!(knocks > 50, "only {knocks} knocks");
            opened
        });
        for _ in 0..30 {
            load(&world.server, &Facts::default(), &other);
            load(&world.server, &Facts::default(), &policy(""));
        }
        knocker.join().expect("the knocker")
    });
    assert_eq!(opened, 0, "somebody got in while the guard was replaced");
}
