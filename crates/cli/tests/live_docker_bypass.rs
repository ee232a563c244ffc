//! Every way around UFW that the table of SPECIFICATION.md numbers and one daemon can show: what is open, that
//! the audit says so and why, and that one `apply` closes it. Where no daemon of that kind is at hand, its
//! rules are written as it writes them, and the kernel judges.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod engines;

use engines::spaces::{apply, audit, docker_world, shell, truth};
use engines::{check, has, ids};
use lab::{End, Host, World, address};
use std::net::IpAddr;

/// Puts rules in, knocks, looks for the finding, takes them out again.
#[track_caller]
fn with_rules(
    world: &World,
    case: &str,
    rules: &[&str],
    expect: &[(&Host, u16, bool)],
    finding: Option<&str>,
) {
    shell(&world.server, rules);
    for (who, port, open) in expect {
        let to = if who.name() == "stranger" {
            address::SERVER
        } else {
            address::SERVER_LAN
        };
        truth(world, who, to, *port, *open, case);
    }
    let audit = audit(&world.server);
    match finding {
        Some(id) => assert!(has(&audit, id), "{case}: no {id} among {:?}", ids(&audit)),
        None => assert!(
            !has(&audit, "docker-user-wrong-port"),
            "{case}: {:?}",
            ids(&audit)
        ),
    }
    for rule in rules.iter().rev() {
        let undo = rule.replace(" -I ", " -D ").replace(" -A ", " -D ");
        if undo != *rule {
            shell(&world.server, &[&undo]);
        }
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn rules_that_people_try_in_docker_user() {
    let (world, docker) = docker_world("docker-user", &[]);
    let (server, stranger, neighbour) = (&world.server, &world.stranger, &world.neighbour);
    docker.run("ollama", &["-p", "11434:80"], "web:1").unwrap();
    docker.run("other", &["-p", "9999:80"], "web:1").unwrap();

    // 1: a denial of UFW's own.
    shell(server, &["ufw deny 11434"]);
    truth(&world, stranger, address::SERVER, 11434, true, "1");
    // 2: over IPv6, without IPv6 in the network, the proxy listens: UFW decides.
    truth(&world, stranger, address::SERVER_V6, 11434, false, "2");
    shell(server, &["ufw delete deny 11434", "ufw allow 11434"]);
    truth(
        &world,
        stranger,
        address::SERVER_V6,
        11434,
        true,
        "2, allowed",
    );
    shell(server, &["ufw delete allow 11434"]);

    let both = |a: bool, b: bool| [(stranger, 11434, a), (stranger, 9999, b)];
    with_rules(
        &world,
        "6",
        &["iptables -I DOCKER-USER -p tcp --dport 11434 -j DROP"],
        &both(true, true),
        Some("docker-user-wrong-port"),
    );
    with_rules(
        &world,
        "7",
        &["iptables -I DOCKER-USER -p tcp --dport 80 -j DROP"],
        &both(false, false),
        Some("docker-user-wrong-port"),
    );
    with_rules(
        &world,
        "8",
        &[
            "iptables -I DOCKER-USER -p tcp -m conntrack --ctorigdstport 11434 --ctdir ORIGINAL -j DROP",
        ],
        &both(false, true),
        None,
    );
    with_rules(
        &world,
        "11",
        &["iptables -A DOCKER-USER -p tcp --dport 80 -j DROP"],
        &both(true, true),
        Some("docker-user-dead-rule"),
    );
    // ufw-docker's block, as it stands in after.rules.
    let block = [
        "iptables -I DOCKER-USER 1 -j ufw-user-forward",
        "iptables -I DOCKER-USER 2 -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
        "iptables -I DOCKER-USER 3 -s 10.0.0.0/8 -j RETURN",
        "iptables -I DOCKER-USER 4 -s 172.16.0.0/12 -j RETURN",
        "iptables -I DOCKER-USER 5 -s 192.168.0.0/16 -j RETURN",
        "iptables -I DOCKER-USER 6 -m conntrack --ctstate NEW -d 10.0.0.0/8 -j DROP",
        "iptables -I DOCKER-USER 7 -m conntrack --ctstate NEW -d 172.16.0.0/12 -j DROP",
        "iptables -I DOCKER-USER 8 -m conntrack --ctstate NEW -d 192.168.0.0/16 -j DROP",
    ];
    shell(server, &block);
    truth(
        &world,
        stranger,
        address::SERVER,
        11434,
        false,
        "ufw-docker",
    );
    truth(&world, neighbour, address::SERVER_LAN, 11434, true, "12");
    assert!(has(&audit(server), "ufw-docker-block"));
    shell(
        server,
        &["ufw route allow proto tcp from any to any port 11434"],
    );
    truth(&world, stranger, address::SERVER, 11434, false, "9");
    shell(
        server,
        &["ufw route allow proto tcp from any to any port 80"],
    );
    truth(&world, stranger, address::SERVER, 11434, true, "10");
    truth(
        &world,
        stranger,
        address::SERVER,
        9999,
        true,
        "10, another container too",
    );
    shell(
        server,
        &[
            "ufw route delete allow proto tcp from any to any port 80",
            "ufw route delete allow proto tcp from any to any port 11434",
        ],
    );
    // 13: a network outside of the ranges that the block knows.
    docker
        .cli(&["network", "create", "--subnet", "100.64.0.0/24", "wide"])
        .unwrap();
    docker
        .cli(&[
            "run",
            "-d",
            "--name",
            "wide",
            "--network",
            "wide",
            "-p",
            "9100:80",
            "web:1",
        ])
        .unwrap();
    truth(&world, stranger, address::SERVER, 9100, true, "13");
    // 14: nothing leads to DOCKER-USER any more.
    shell(server, &["iptables -D FORWARD -j DOCKER-USER"]);
    truth(&world, stranger, address::SERVER, 11434, true, "14");
    assert!(has(&audit(server), "ufw-docker-inert"));

    // One apply closes it all, whatever stands around.
    apply(server);
    for (who, to) in [
        (stranger, address::SERVER),
        (neighbour, address::SERVER_LAN),
    ] {
        for port in [11434, 9999, 9100] {
            truth(&world, who, to, port, false, "after apply");
        }
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn daemons_without_iptables_and_containers_on_the_hosts_network() {
    let (world, docker) = docker_world("docker-input", &["--iptables=false"]);
    let (server, stranger) = (&world.server, &world.stranger);
    docker.run("ollama", &["-p", "11434:80"], "web:1").unwrap();
    docker
        .cli(&[
            "run",
            "-d",
            "--name",
            "hostmode",
            "--network",
            "host",
            "web:1",
            "/bin/busybox",
            "httpd",
            "-f",
            "-p",
            "8090",
            "-h",
            "/www",
        ])
        .unwrap();
    for (case, port) in [("23", "11434"), ("24", "8090")] {
        let number: u16 = port.parse().unwrap();
        truth(&world, stranger, address::SERVER, number, false, case);
        shell(server, &[&format!("ufw allow {port}")]);
        truth(&world, stranger, address::SERVER, number, true, case);
        shell(server, &[&format!("ufw delete allow {port}")]);
    }
    assert!(has(&audit(server), "container-on-host-network"));
    apply(server);
    for port in [11434, 8090] {
        truth(
            &world,
            stranger,
            address::SERVER,
            port,
            false,
            "after apply",
        );
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn others_ahead_of_ufw() {
    lab::require_root();
    let world = World::new("ahead").unwrap();
    let (server, stranger) = (&world.server, &world.stranger);
    let _web = server.http_server("web", "[::]:443", "web").unwrap();
    let _admin = server.http_server("admin", "[::]:8000", "admin").unwrap();
    shell(
        server,
        &[
            "ufw allow 22/tcp",
            "ufw allow 443/tcp",
            "ufw deny 8000/tcp",
            "ufw --force enable",
        ],
    );
    truth(&world, stranger, address::SERVER, 443, true, "UFW alone");
    truth(&world, stranger, address::SERVER, 8000, false, "UFW alone");

    // 28: as Oracle's images come.
    let oracle = [
        "iptables -I INPUT 1 -m state --state RELATED,ESTABLISHED -j ACCEPT",
        "iptables -I INPUT 2 -p tcp -m state --state NEW -m tcp --dport 8000 -j ACCEPT",
        "iptables -I INPUT 3 -j REJECT --reject-with icmp-host-prohibited",
    ];
    shell(server, &oracle);
    truth(
        &world,
        stranger,
        address::SERVER,
        443,
        false,
        "28: closed despite allow",
    );
    truth(
        &world,
        stranger,
        address::SERVER,
        8000,
        true,
        "28: open despite deny",
    );
    let found = audit(server);
    assert!(
        has(&found, "rules-before-ufw") && has(&found, "ufw-behind-reject"),
        "{:?}",
        ids(&found)
    );
    for _ in &oracle {
        shell(server, &["iptables -D INPUT 1"]);
    }

    // 33: Tailscale's chain.
    let peer = world.lab.host("peer").unwrap();
    world
        .lab
        .link(
            End {
                host: server,
                interface: "tailscale0",
                addresses: &["100.64.0.1/10"],
            },
            End {
                host: &peer,
                interface: "ts",
                addresses: &["100.64.0.2/10"],
            },
        )
        .unwrap();
    let tailnet: IpAddr = [100, 64, 0, 1].into();
    check(&peer, tailnet, 8000, false, "33, before");
    shell(
        server,
        &[
            "iptables -N ts-input",
            "iptables -A ts-input -i tailscale0 -j ACCEPT",
            "iptables -I INPUT 1 -j ts-input",
        ],
    );
    check(&peer, tailnet, 8000, true, "33");
    let found = audit(server);
    assert!(has(&found, "tailscale-before-ufw"), "{:?}", ids(&found));
    assert!(has(&found, "exposed-to-vpn"), "{:?}", ids(&found));
    shell(server, &["iptables -D INPUT -j ts-input"]);

    // 29: IPV6=no drops IPv6 while UFW is on, and opens it when it is off.
    let defaults = server.read_text("/etc/default/ufw").unwrap();
    server
        .write("/etc/default/ufw", defaults.replace("IPV6=yes", "IPV6=no"))
        .unwrap();
    shell(server, &["ufw disable", "ufw --force enable"]);
    truth(&world, stranger, address::SERVER_V6, 443, false, "29");
    assert!(has(&audit(server), "ufw-ipv6-off"));
    shell(server, &["ufw disable"]);
    truth(
        &world,
        stranger,
        address::SERVER_V6,
        8000,
        true,
        "29, disabled",
    );
}

/// Rules as Docker 29's own backend, swarm, kube-proxy and netavark write them, before a web server in a namespace.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn published_by_others_than_docker() {
    lab::require_root();
    let world = World::new("others").unwrap();
    let (server, stranger) = (&world.server, &world.stranger);
    // A bridge with somebody behind it, as every engine makes one.
    let pod = world.lab.host("pod").unwrap();
    server
        .ip("link add cbr type bridge\naddress add 10.42.0.1/24 dev cbr\nlink set cbr up\n")
        .unwrap();
    world
        .lab
        .link(
            End {
                host: server,
                interface: "veth9",
                addresses: &[],
            },
            End {
                host: &pod,
                interface: "eth0",
                addresses: &["10.42.0.2/24"],
            },
        )
        .unwrap();
    server.ip("link set veth9 master cbr\n").unwrap();
    pod.ip("route add default via 10.42.0.1\n").unwrap();
    let _web = pod.http_server("web", "0.0.0.0:80", "pod").unwrap();
    server.write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    shell(server, &["ufw allow 22/tcp", "ufw --force enable"]);

    // 25, 26: tables of Docker's own; UFW's word on routed packets decides again.
    let docker29 = "\
table ip docker-bridges {
\tchain nat-prerouting-and-output {
\t\ttcp dport 11434 dnat to 10.42.0.2:80
\t}
\tchain nat-prerouting {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tfib daddr type local counter jump nat-prerouting-and-output
\t}
\tchain filter-forward {
\t\ttype filter hook forward priority filter; policy accept;
\t\toifname \"cbr\" ct state established,related counter accept
\t\toifname \"cbr\" ip daddr 10.42.0.2 tcp dport 80 counter accept
\t}
}
";
    server.write("/run/docker29.nft", docker29).unwrap();
    shell(server, &["nft -f /run/docker29.nft"]);
    truth(&world, stranger, address::SERVER, 11434, false, "25");
    shell(server, &["ufw default allow routed", "ufw reload"]);
    truth(&world, stranger, address::SERVER, 11434, true, "26");
    // 27: the chains of the backend that was there before filter until the next boot.
    let old = [
        "iptables -N DOCKER-USER",
        "iptables -A DOCKER-USER -p tcp --dport 80 -j DROP",
        "iptables -I FORWARD -j DOCKER-USER",
    ];
    shell(server, &old);
    truth(
        &world,
        stranger,
        address::SERVER,
        11434,
        false,
        "27, before",
    );
    shell(server, &["iptables -D FORWARD -j DOCKER-USER"]);
    truth(&world, stranger, address::SERVER, 11434, true, "27, after");

    // Swarm's routing mesh, its door a network namespace of its own.
    shell(
        server,
        &[
            "iptables -t nat -N DOCKER-INGRESS",
            "iptables -t nat -A DOCKER-INGRESS -p tcp -m tcp --dport 9600 -j DNAT --to-destination 10.42.0.2:80",
            "iptables -t nat -A DOCKER-INGRESS -j RETURN",
            "iptables -t nat -I PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS",
            "iptables -N DOCKER-INGRESS",
            "iptables -A DOCKER-INGRESS -p tcp -m tcp --dport 9600 -j ACCEPT",
            "iptables -A DOCKER-INGRESS -j RETURN",
            "iptables -I FORWARD -j DOCKER-INGRESS",
        ],
    );
    truth(&world, stranger, address::SERVER, 9600, true, "swarm");

    // k3s: node ports by kube-proxy's chains.
    shell(
        server,
        &[
            "iptables -t nat -N KUBE-NODEPORTS",
            "iptables -t nat -A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j DNAT --to-destination 10.42.0.2:80",
            "iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        ],
    );
    truth(&world, stranger, address::SERVER, 30080, true, "k3s");
    let found = audit(server);
    assert!(has(&found, "kube-node-ports"), "{:?}", ids(&found));

    // Podman's netavark, in its own table.
    let netavark = "\
table inet netavark {
\tchain NETAVARK-HOSTPORT-DNAT {
\t\ttcp dport 8080 dnat ip to 10.42.0.2:80
\t}
\tchain PREROUTING {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tfib daddr type local jump NETAVARK-HOSTPORT-DNAT
\t}
}
";
    server.write("/run/netavark.nft", netavark).unwrap();
    shell(server, &["nft -f /run/netavark.nft"]);
    truth(&world, stranger, address::SERVER, 8080, true, "netavark");
    let found = audit(server);
    assert!(has(&found, "podman-past-ufw"), "{:?}", ids(&found));

    apply(server);
    for port in [11434, 30080, 8080, 9600] {
        truth(
            &world,
            stranger,
            address::SERVER,
            port,
            false,
            "after apply",
        );
    }
}
