//! Observing real hosts: namespaces with the real ufw, dockerd, sshd and fail2ban.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use host::observe::{Options, RulesFrom, from_snapshot, observe_with, snapshot};
use lab::{World, address};
use portcullis_core::host::{Host, Publish, Socket, Uncertain};
use reach::Proto;
use std::net::IpAddr;
use std::time::Duration;

/// Where [`the_same_facts_come_back_from_a_snapshot`] leaves its snapshot.
const OUT: &str = "PORTCULLIS_TEST_SNAPSHOT";
/// Set when the rules are to be taken from the tools.
const TOOLS: &str = "PORTCULLIS_TEST_TOOLS";

/// Run wherever this program is started: on this machine as a test, inside lab hosts by the
/// other tests. Needs no root.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn the_same_facts_come_back_from_a_snapshot() {
    let mut options = Options::default();
    if std::env::var_os(TOOLS).is_some() {
        options.rules_from = RulesFrom::Tools;
    }
    let host = observe_with(&options);
    let text = snapshot(&host).unwrap();
    assert_eq!(from_snapshot(&text).unwrap(), host);
    if let Some(path) = std::env::var_os(OUT) {
        std::fs::write(path, text).unwrap();
    }
}

/// Where it is left inside a host: everybody there may write it.
const INSIDE: &str = "/tmp/portcullis-snapshot.json";

/// The command that observes, to be run inside a host.
fn observer() -> Vec<String> {
    let exe = std::env::current_exe().unwrap();
    [
        "/usr/bin/env",
        &format!("{OUT}={INSIDE}"),
        &exe.display().to_string(),
        "--exact",
        "the_same_facts_come_back_from_a_snapshot",
        "--include-ignored",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn read(server: &lab::Host) -> Host {
    from_snapshot(&server.read_text(INSIDE).unwrap()).unwrap()
}

/// The facts of a host, observed by a process of its own inside it.
fn observe_in(server: &lab::Host, prefix: &[&str]) -> Host {
    let words = observer();
    let argv: Vec<&str> = prefix
        .iter()
        .copied()
        .chain(words.iter().map(String::as_str))
        .collect();
    server.ok(&argv).unwrap();
    read(server)
}

/// The facts of a host, observed over an SSH session of the operator.
fn observe_over_ssh(world: &World, key: &std::path::Path, prefix: &[&str]) -> Host {
    let words = observer();
    let words = prefix
        .iter()
        .copied()
        .chain(words.iter().map(String::as_str));
    let words: Vec<&str> = words.collect();
    let output = world.operator.ssh(address::SERVER, key, &words).unwrap();
    assert!(output.success(), "{}", output.text());
    read(&world.server)
}

fn gaps(host: &Host) -> Vec<(&str, Uncertain)> {
    host.unseen
        .iter()
        .map(|gap| (gap.what.as_str(), gap.uncertain))
        .collect()
}

fn socket(host: &Host, address: &str, port: u16) -> Socket {
    let address: IpAddr = address.parse().unwrap();
    let found: Vec<_> = host
        .sockets
        .iter()
        .filter(|s| !s.in_container_netns && s.address == address && s.port == port)
        .collect();
    assert_eq!(found.len(), 1, "{address}:{port} in {:#?}", host.sockets);
    found[0].clone()
}

fn comm(socket: &Socket) -> &str {
    socket.process.as_ref().map_or("", |p| p.comm.as_str())
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_server_with_ufw_docker_and_an_operator() {
    lab::require_root();
    let world = World::new("observe").unwrap();
    let server = &world.server;
    let _ollama = server
        .http_server("ollama-stand-in", "0.0.0.0:11434", "Ollama is running")
        .unwrap();
    let _ray = server.http_server("ray", "[::]:8265", "ray").unwrap();
    let _local = server
        .http_server("local", "127.0.0.1:3000", "local")
        .unwrap();
    let sshd = server.sshd().unwrap();
    server
        .ok(&["ufw", "limit", "22/tcp", "comment", "a door"])
        .unwrap();
    server.ok(&["ufw", "--force", "enable"]).unwrap();
    let docker = server.dockerd().unwrap();
    docker.import_web_image("web:1", "hello").unwrap();
    let publish = ["-p", "8080:80", "-p", "127.0.0.1:8081:80"];
    let inside = docker.run("web", &publish, "web:1").unwrap();
    // Somebody else is logged in too, with a forwarding and without a session of commands.
    let key = sshd.key.display().to_string();
    let other = world
        .operator
        .spawn(&[
            "ssh",
            "-6",
            "-N",
            "-i",
            &key,
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-R",
            "9000:127.0.0.1:1",
            &format!("root@{}", address::SERVER_V6),
        ])
        .unwrap();
    server
        .wait_port("127.0.0.1".parse().unwrap(), 9000, Duration::from_secs(20))
        .unwrap();

    // A stranger holds a connection and never logs in: no operator.
    let _knocker = world
        .stranger
        .in_net(|| std::net::TcpStream::connect((address::SERVER, 22)))
        .unwrap()
        .unwrap();

    let host = observe_over_ssh(&world, &sshd.key, &[]);

    assert_eq!(gaps(&host), [], "{:#?}", host.unseen);
    assert!(host.privileged && !host.systemd);
    assert_eq!(host.hostname, "server");

    let ollama = socket(&host, "0.0.0.0", 11434);
    assert_eq!(
        (comm(&ollama), ollama.container.as_deref()),
        ("ollama-stand-in", None)
    );
    assert_eq!(ollama.process.unwrap().user.as_deref(), Some("root"));
    assert!(!socket(&host, "::", 8265).v6only);
    assert_eq!(comm(&socket(&host, "127.0.0.1", 3000)), "local");
    assert_eq!(comm(&socket(&host, "0.0.0.0", 8080)), "docker-proxy");
    assert_eq!(comm(&socket(&host, "127.0.0.1", 8081)), "docker-proxy");

    let engine = &host.engines[0];
    let version = docker.cli(&["version", "--format", "{{.Server.Version}}"]);
    assert_eq!(engine.version, version.unwrap().trim());
    assert_eq!(
        (host.engines.len(), engine.kind.as_str(), engine.rootless),
        (1, "docker", false)
    );
    let bridge = engine.networks.iter().find(|n| n.name == "bridge").unwrap();
    assert_eq!(bridge.bridge.as_deref(), Some("docker0"));
    assert!(!bridge.subnets.is_empty());
    let web = &engine.containers[0];
    assert_eq!((web.name.as_str(), web.image.as_str()), ("web", "web:1"));
    assert_eq!(web.addresses[0].address.to_string(), inside.trim());
    let published: Vec<Publish> = ["0.0.0.0:8080", "127.0.0.1:8081", "[::]:8080"]
        .iter()
        .map(|text| text.parse::<std::net::SocketAddr>().unwrap())
        .map(|at| Publish {
            proto: Proto::Tcp,
            host_ip: at.ip(),
            host_port: at.port(),
            container_port: 80,
        })
        .collect();
    assert_eq!(web.published, published);
    assert_eq!(web.exposed, [(Proto::Tcp, 80)]);
    let within: Vec<_> = host
        .sockets
        .iter()
        .filter(|s| s.in_container_netns)
        .collect();
    assert_eq!(within.len(), 1);
    assert_eq!(within[0].container.as_deref(), Some(web.id.as_str()));
    assert_eq!(
        (within[0].port, within[0].process.as_ref().map(|p| p.pid)),
        (80, web.pid)
    );

    let ufw = host.ufw.as_ref().unwrap();
    assert_eq!(
        (ufw.enabled, ufw.loaded, ufw.ipv6),
        (true, Some(true), true)
    );
    assert_eq!(
        (
            ufw.default_incoming.as_str(),
            ufw.default_outgoing.as_str(),
            ufw.log_level.as_str()
        ),
        ("deny", "allow", "low")
    );
    let rules: Vec<_> = ufw
        .rules
        .iter()
        .map(|r| {
            (
                r.number,
                r.action.as_str(),
                r.port.as_str(),
                r.ipv6,
                r.comment.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        rules,
        [
            (1, "limit", "22", false, Some("a door")),
            (2, "limit", "22", true, Some("a door"))
        ]
    );
    assert_eq!(ufw.foreign_lines, []);

    let ssh = host.sshd.as_ref().unwrap();
    // A listener of an SSH session, and no way in.
    assert_eq!(comm(&socket(&host, "127.0.0.1", 9000)), "sshd");
    assert_eq!(ssh.ports, [22], "{ssh:?}");
    let sources: Vec<_> = ssh.ports_by_source.keys().map(String::as_str).collect();
    assert_eq!(sources, ["listener", "session", "sshd -T"]);
    assert_eq!(ssh.password_authentication, Some(true));
    let sessions: Vec<_> = host
        .sessions
        .iter()
        .map(|s| (s.peer, s.local, s.local_port, s.pid.is_some(), s.own))
        .collect();
    assert_eq!(
        sessions,
        [
            (address::OPERATOR, address::SERVER, 22, true, true),
            (address::OPERATOR_V6, address::SERVER_V6, 22, true, false)
        ]
    );

    let chains: Vec<&str> = host
        .rules
        .tables
        .iter()
        .flat_map(|table| &table.chains)
        .map(|chain| chain.name.as_str())
        .collect();
    for chain in ["DOCKER-USER", "ufw-before-input", "ufw6-before-input"] {
        assert!(chains.contains(&chain), "{chain} in {chains:?}");
    }
    assert!(host.packages["ufw"].is_some());
    assert!(!host.files.is_empty() && host.files.values().all(Option::is_none));

    // Where sshd itself cannot be seen, as in a container, the caller is known by what sshd told him.
    let apart = ["unshare", "--pid", "--fork", "--mount-proc"];
    let host = observe_over_ssh(&world, &sshd.key, &apart);
    let own: Vec<_> = host.sessions.iter().filter(|s| s.own).collect();
    assert_eq!(own.len(), 1, "{:?}", host.sessions);
    assert_eq!((own[0].peer, own[0].pid), (address::OPERATOR, None));
    drop(other);
}

/// Docker is asked for all that it knows of itself only where its networks tell of something more.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_swarm_is_seen_from_the_moment_it_is_joined() {
    lab::require_root();
    let world = World::new("observe-swarm").unwrap();
    let docker = world.server.dockerd().unwrap();
    let swarm = || {
        let host = observe_in(&world.server, &[]);
        assert_eq!(gaps(&host), [], "{:#?}", host.unseen);
        host.engines[0].swarm
    };
    assert!(!swarm());
    let join = ["swarm", "init", "--advertise-addr", "127.0.0.1"];
    docker.cli(&join).unwrap();
    assert!(swarm());
    docker.cli(&["swarm", "leave", "--force"]).unwrap();
    assert!(!swarm());
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn ufw_files_and_kernel_are_told_apart() {
    lab::require_root();
    let world = World::new("observe").unwrap();
    let server = &world.server;
    let folk = "-A INPUT -p tcp --dport 11434 -j DROP";
    let after = server.read_text("/etc/ufw/after.rules").unwrap();
    server
        .write(
            "/etc/ufw/after.rules",
            after.replacen("\nCOMMIT", &format!("\n{folk}\nCOMMIT"), 1),
        )
        .unwrap();
    let ufw = observe_in(server, &[]).ufw.unwrap();
    assert_eq!((ufw.enabled, ufw.loaded), (false, Some(false)));
    assert_eq!(
        ufw.foreign_lines,
        [("/etc/ufw/after.rules".to_owned(), folk.to_owned())]
    );

    server.ok(&["ufw", "allow", "OpenSSH"]).unwrap();
    server
        .ok(&[
            "ufw", "route", "allow", "in", "on", "eth0", "out", "on", "eth1", "to", "10.0.0.5",
            "port", "80", "proto", "tcp",
        ])
        .unwrap();
    server.ok(&["ufw", "--force", "enable"]).unwrap();
    let ufw = observe_in(server, &[]).ufw.unwrap();
    assert_eq!((ufw.enabled, ufw.loaded), (true, Some(true)));
    let [ssh, route, ssh6] = ufw.rules.as_slice() else {
        panic!("{:#?}", ufw.rules);
    };
    assert_eq!(ssh.application.as_deref(), Some("OpenSSH"));
    assert_eq!((ssh.port.as_str(), ssh6.ipv6), ("22", true));
    assert!(route.route);
    assert_eq!(
        (
            route.interface_in.as_deref(),
            route.interface_out.as_deref()
        ),
        (Some("eth0"), Some("eth1"))
    );
    assert_eq!(route.to, Some("10.0.0.5/32".parse().unwrap()));

    // `ufw status` still says active then.
    server.ok(&["iptables", "-F", "INPUT"]).unwrap();
    let ufw = observe_in(server, &[]).ufw.unwrap();
    assert_eq!((ufw.enabled, ufw.loaded), (true, Some(false)));
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn fail2ban_alive_and_dead() {
    lab::require_root();
    let world = World::new("observe").unwrap();
    let server = &world.server;
    // As Debian 12 ships it: no log file of sshd.
    server.run(&["rm", "-f", "/var/log/auth.log"]).unwrap();
    let dead = observe_in(server, &[]).fail2ban.unwrap();
    assert!(!dead.alive);
    assert_eq!(dead.sshd_log, None);
    assert!(dead.why_dead.unwrap().contains("log file for sshd jail"));

    let _syslog = server.syslog().unwrap();
    server.run(&["touch", "/var/log/auth.log"]).unwrap();
    server
        .write(
            "/etc/fail2ban/jail.d/x.local",
            "[sshd]\nmaxretry = 4\nbantime = 1h\nfindtime = 10m\nignoreip = 192.168.1.0/24 ::1\n",
        )
        .unwrap();
    let _fail2ban = server.fail2ban().unwrap();
    server
        .ok(&[
            "fail2ban-client",
            "set",
            "sshd",
            "banip",
            "198.51.100.66",
            "2001:db8::66",
        ])
        .unwrap();
    let host = observe_in(server, &[]);
    let alive = host.fail2ban.unwrap();
    assert!(alive.alive, "{:?}", alive.why_dead);
    let jail = &alive.jails[0];
    assert_eq!(
        (
            jail.name.as_str(),
            jail.max_retry,
            jail.find_time,
            jail.ban_time
        ),
        ("sshd", Some(4), Some(600), Some(3600))
    );
    assert_eq!(jail.ignore_ip, ["192.168.1.0/24", "::1"]);
    assert_eq!(
        jail.banned,
        [address::STRANGER, "2001:db8::66".parse().unwrap()]
    );
    assert_eq!(jail.files, ["/var/log/auth.log"]);
    assert_eq!(jail.journal, None);
    assert!(!jail.actions.is_empty());
    assert!(!alive.jail_local_is_copy);
    assert_eq!(alive.sshd_log.as_deref(), Some("/var/log/auth.log"));

    server
        .run(&["cp", "/etc/fail2ban/jail.conf", "/etc/fail2ban/jail.local"])
        .unwrap();
    assert!(observe_in(server, &[]).fail2ban.unwrap().jail_local_is_copy);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn without_privilege_the_gaps_are_named() {
    lab::require_root();
    let world = World::new("observe").unwrap();
    let server = &world.server;
    let _ollama = server
        .http_server("ollama-stand-in", "0.0.0.0:11434", "Ollama is running")
        .unwrap();
    server.ok(&["ufw", "--force", "enable"]).unwrap();
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let host = observe_in(server, &nobody);
    assert!(!host.privileged);
    assert_eq!(host.ufw.as_ref().unwrap().loaded, None);
    let gaps = gaps(&host);
    assert!(
        gaps.contains(&("packet filter", Uncertain::Verdicts)),
        "{gaps:?}"
    );
    assert!(gaps.contains(&("processes", Uncertain::Names)), "{gaps:?}");
    // What listens is seen all the same, without its owner.
    let ollama = socket(&host, "0.0.0.0", 11434);
    assert_eq!((ollama.process, ollama.uid), (None, Some(0)));
    assert!(!host.net.interfaces.is_empty());
}

/// The rules are read; what belongs to others stays unseen, and is named with what it makes
/// uncertain.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn with_cap_net_admin_alone_the_rules_are_seen_and_the_rest_is_named() {
    lab::require_root();
    let world = World::new("observe").unwrap();
    let server = &world.server;
    let _ollama = server
        .http_server("ollama-stand-in", "0.0.0.0:11434", "Ollama is running")
        .unwrap();
    server.ok(&["ufw", "--force", "enable"]).unwrap();
    let _docker = server.dockerd().unwrap();
    let net_admin = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=+net_admin",
        "--ambient-caps=+net_admin",
    ];
    let host = observe_in(server, &net_admin);
    assert!(!host.privileged);
    assert!(host.rules.rule_count() > 50);
    let gaps = gaps(&host);
    for gap in [
        ("processes", Uncertain::Names),
        ("container engine", Uncertain::Endpoints),
    ] {
        assert!(gaps.contains(&gap), "{gap:?} in {gaps:?}");
    }
    // Only root may read whether there are tables of iptables-legacy, so that every verdict is in
    // doubt, and that alone is why.
    let doubts: Vec<&str> = host
        .unseen
        .iter()
        .filter(|gap| gap.uncertain == Uncertain::Verdicts)
        .map(|gap| gap.why.as_str())
        .collect();
    assert!(
        doubts.iter().all(|why| why.starts_with("iptables-legacy")),
        "{doubts:?}"
    );
    let loaded = host.ufw.as_ref().unwrap().loaded;
    assert_eq!(loaded, doubts.is_empty().then_some(true));
    assert_eq!(socket(&host, "0.0.0.0", 11434).process, None);
}

/// Addresses, routes, sockets and rules come from the kernel: no tool is asked about them.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn no_program_is_run_for_what_the_kernel_tells() {
    lab::require_root();
    let world = World::new("observe").unwrap();
    let server = &world.server;
    server.ok(&["ufw", "--force", "enable"]).unwrap();
    // Whatever is started leaves its name in the file, and does nothing else.
    let log = "/tmp/started";
    server.write(log, "").unwrap();
    for name in [
        "iptables-save",
        "ip6tables-save",
        "iptables-nft-save",
        "ip6tables-nft-save",
        "iptables-legacy-save",
        "ip6tables-legacy-save",
        "iptables",
        "ip6tables",
        "nft",
        "ipset",
        "ip",
        "ss",
        "netstat",
        "docker",
        "ufw",
        "fail2ban-client",
    ] {
        let folder = if name.starts_with("docker") {
            "/usr/bin"
        } else {
            "/usr/sbin"
        };
        let script = format!("#!/bin/sh\necho {name} >> {log}\n");
        let stand_in = format!("/tmp/stand-in-{name}");
        server.write(&stand_in, script).unwrap();
        server.ok(&["chmod", "755", &stand_in]).unwrap();
        for folder in [folder, "/usr/bin", "/sbin", "/bin"] {
            let path = format!("{folder}/{name}");
            if server.exists(&path).unwrap() {
                server.ok(&["mount", "--bind", &stand_in, &path]).unwrap();
            }
        }
    }
    server.run(&["nft", "list", "ruleset"]).unwrap();
    assert_eq!(
        server.read_text(log).unwrap(),
        "nft\n",
        "the stand-ins work"
    );
    let host = observe_in(server, &[]);
    assert_eq!(server.read_text(log).unwrap(), "nft\n");
    assert_eq!(host.ufw.unwrap().loaded, Some(true));
    assert!(host.rules.rule_count() > 50);
    assert!(host.unseen.is_empty(), "{:?}", host.unseen);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn the_kernel_and_the_tools_tell_the_same_rules() {
    lab::require_root();
    let world = World::new("observe").unwrap();
    let server = &world.server;
    server.ok(&["ufw", "limit", "22/tcp"]).unwrap();
    server.ok(&["ufw", "--force", "enable"]).unwrap();
    let docker = server.dockerd().unwrap();
    docker.import_web_image("web:1", "hello").unwrap();
    docker.run("web", &["-p", "8080:80"], "web:1").unwrap();
    let with_tools = ["/usr/bin/env", &format!("{TOOLS}=1")];
    let kernel = observe_in(server, &[]);
    let tools = observe_in(server, &with_tools);
    // Once links and neighbours have settled, one look after another finds the same in the same order.
    let look = || {
        let mut host = observe_in(server, &[]);
        host.taken.clear();
        host.rules = host.rules.bare();
        snapshot(&host).unwrap()
    };
    let mut before = look();
    let same = (0..15).any(|_| {
        std::thread::sleep(Duration::from_millis(500));
        let now = look();
        let same = now == before;
        before = now;
        same
    });
    assert!(same, "no two looks were the same");
    assert!(kernel.neighbours.iter().any(|n| n.device == "eth0"));
    assert_eq!((gaps(&kernel), gaps(&tools)), (vec![], vec![]));
    assert!(kernel.rules.rule_count() > 50);
    assert_eq!(lines(&kernel), lines(&tools));
    assert_eq!(kernel.ufw, tools.ufw);
}

/// What the rules mean, one line for each chain and rule: each reader has its own order of tables
/// and chains, and its own words.
fn lines(host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    for table in &host.rules.bare().tables {
        for chain in &table.chains {
            // iptables-save prints built-in chains that the kernel does not have yet.
            let accepts = |base: &reach::ir::Base| base.policy == reach::ir::Policy::Accept;
            if chain.rules.is_empty() && chain.base.as_ref().is_some_and(accepts) {
                continue;
            }
            let place = format!("{} {} {}", table.family, table.name, chain.name);
            lines.push(format!("{place} {:?}", chain.base));
            for (rule, number) in chain.rules.iter().zip(0..) {
                lines.push(format!("{place} {number:04} {:?}", rule.statements));
            }
        }
    }
    lines.sort();
    lines
}
