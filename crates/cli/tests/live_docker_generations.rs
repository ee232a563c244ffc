//! Real engines of three generations of Docker, and Podman, on whole machines: where published ports are open
//! before, that the audit says the same, and that afterwards only what the policy allows is open, from the
//! Internet, from a neighbour with routes to the containers, and from a container. Case numbers are those of
//! the table in SPECIFICATION.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod engines;

use engines::{
    Engine, PORTCULLIS, SOON, all_closed, check, has, ids, knock, own as sender, says_open,
};
use lab::{Machine, Release, address};
use std::net::IpAddr;

/// What differs between generations.
struct Generation {
    release: Release,
    cli: &'static str,
    /// `docker version` begins with it.
    version: &'static str,
    daemon_json: &'static str,
    /// Containers' own addresses are open to neighbours with a route (Docker before 28).
    direct: bool,
    /// What only this engine has, when everything of portcullis is gone again.
    more: fn(&Engine),
}

const KEPT_BY_POLICY: &str = r#"
version = 1
[[allow]]
port = "ssh"
from = "anywhere"
[[allow]]
port = 443
from = "anywhere"
[[allow]]
port = 8080
from = "lan"
[[allow]]
port = 8000
from = "containers"
"#;

fn machine(generation: &Generation) -> Engine {
    lab::require_root();
    let of = Machine::of(generation.release);
    let podman = generation.cli == "podman";
    let of = if podman {
        of.with_podman()
    } else {
        of.with_docker()
    };
    let name = format!("gen-{}", generation.version.replace('.', "-"));
    let engine = Engine::new(of.boot(&name).unwrap(), generation.cli);
    if podman {
        engine.ok(&["systemctl", "enable", "--now", "podman.socket"]);
    } else {
        engine
            .machine
            .write("/etc/docker/daemon.json", generation.daemon_json)
            .unwrap();
        engine.ok(&["systemctl", "restart", "docker"]);
    }
    let version = engine.run(&["version", "--format", "{{.Server.Version}}"]);
    assert!(version.trim().starts_with(generation.version), "{version}");
    engine
        .machine
        .import_image_into(generation.cli, "web:1", "model")
        .unwrap();
    engine.ok(&["ufw", "allow", "22/tcp"]);
    engine.ok(&["ufw", "--force", "enable"]);
    engine
}

fn the_whole_way(generation: &Generation) {
    let engine = machine(generation);
    let podman = generation.cli == "podman";
    let default = if podman { "podman" } else { "bridge" };
    let (stranger, neighbour) = (&engine.machine.stranger, &engine.machine.neighbour);

    engine.serve("ollama", &["-p", "11434:80"]);
    engine.serve("https", &["-p", "443:80"]);
    engine.serve("intern", &["-p", "8080:80"]);
    engine.serve("local", &["-p", "127.0.0.1:3000:80"]);
    engine.serve("lan-only", &["-p", "192.168.1.10:3100:80"]);
    engine.serve("unpublished", &[]);
    engine.run(&[
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "fd00:d0c::/64",
        "six",
    ]);
    engine.serve("six", &["--network", "six", "-p", "9000:80"]);
    let local = engine.address("local", default, "IPAddress");
    let unpublished = engine.address("unpublished", default, "IPAddress");
    let six4 = engine.address("six", "six", "IPAddress");
    let six6 = engine.address("six", "six", "GlobalIPv6Address");
    // The neighbour knows a way to every container network, as any neighbour may.
    for (own, via) in [
        (local, "192.168.1.10"),
        (unpublished, "192.168.1.10"),
        (six4, "192.168.1.10"),
        (six6, "fd42:1::10"),
    ] {
        neighbour
            .ip(&format!("route replace {own} via {via}\n"))
            .unwrap();
    }

    // Before: UFW is on, and yet. Each knock next to what the audit says of it.
    if podman {
        // Podman lets routed packets in by rules ahead of UFW's, in a table of its own or not.
        engine.ok(&["ufw", "default", "allow", "routed"]);
    }
    let audit = engine.audit();
    as_inspected(&engine);
    let (server, server6) = (address::SERVER, address::SERVER_V6);
    let lan = address::SERVER_LAN;
    let direct = generation.direct;
    let mut wrong = Vec::new();
    for (case, who, to, port, open) in [
        ("1", stranger, server, 11434, Some(true)),
        ("1", neighbour, lan, 11434, Some(true)),
        ("1", stranger, server, 443, Some(true)),
        // No IPv6 in the network: Docker's proxy listens, and UFW filters INPUT.
        ("2", stranger, server6, 11434, (!podman).then_some(false)),
        ("3", stranger, server6, 9000, Some(true)),
        ("3", stranger, server, 9000, Some(true)),
        ("18", neighbour, local, 80, Some(direct)),
        ("18", stranger, server, 3000, Some(false)),
        ("22", stranger, lan, 3100, None),
        ("22", neighbour, lan, 3100, Some(true)),
        ("3", neighbour, six6, 80, None),
        ("20", neighbour, unpublished, 80, None),
    ] {
        let seen = match open {
            Some(open) => knock(who, to, port, open),
            None => knock(who, to, port, false),
        };
        let said = says_open(&audit, to, port, sender(who, to));
        let from = who.name();
        // Never a false "closed", and no "open" that is none.
        if said.is_some_and(|said| said != seen) {
            wrong.push(format!(
                "{case}: {from} -> {to}:{port}: audit {said:?}, knock {seen}"
            ));
        }
        if open.is_some_and(|open| open != seen) {
            wrong.push(format!("{case}: {from} -> {to}:{port}: knock {seen}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\n{}",
        wrong.join("\n"),
        engine.rules().join("\n")
    );
    let expected: &[&str] = if direct {
        &[
            "docker-past-ufw",
            "exposed-to-internet",
            "container-address-reachable",
        ]
    } else {
        &["docker-past-ufw", "exposed-to-internet"]
    };
    for id in expected {
        assert!(has(&audit, id), "no {id} among {:?}", ids(&audit));
    }
    // Case 20: UFW lets routed packets through, as `ufw disable` does too.
    engine.ok(&["ufw", "default", "allow", "routed"]);
    if !podman {
        check(neighbour, unpublished, 80, direct, "20");
    }
    engine.ok(&["ufw", "default", "deny", "routed"]);

    let before = engine.rules();
    engine
        .machine
        .write("/etc/portcullis/policy.toml", KEPT_BY_POLICY)
        .unwrap();
    let told = engine.apply(&[]);
    assert!(told.contains("127.0.0.1:11434:80"), "{told}");
    if podman {
        // Whatever others say about routed packets: the guard holds.
        engine.ok(&["ufw", "default", "allow", "routed"]);
    }

    // After: only what the policy allows, from each side.
    let closed = |case: &str| {
        let knocks = [
            (stranger, server, 11434),
            (stranger, server6, 11434),
            (neighbour, lan, 11434),
            (neighbour, address::SERVER_LAN_V6, 11434),
            (stranger, server, 8080),
            (stranger, server, 9000),
            (stranger, server6, 9000),
            (neighbour, address::SERVER_LAN_V6, 9000),
            (stranger, server, 3000),
            (stranger, lan, 3100),
            (neighbour, lan, 3100),
            (neighbour, local, 80),
            (neighbour, unpublished, 80),
            (neighbour, six4, 80),
            (neighbour, six6, 80),
        ];
        all_closed(&knocks, case);
    };
    closed("after apply");
    check(stranger, server, 443, true, "allowed for anywhere");
    check(neighbour, lan, 443, true, "allowed for anywhere");
    check(neighbour, lan, 8080, true, "allowed for the LAN");

    let _elsewhere = stranger
        .http_server("elsewhere", "0.0.0.0:8001", "outside")
        .unwrap();
    from_inside(&engine, local, six4);
    engine.nothing_to_do();

    // Networks, containers and firewalls come and go.
    engine.run(&["network", "create", "later"]);
    engine.serve("late", &["--network", "later", "-p", "9100:80"]);
    let late = engine.address("late", "later", "IPAddress");
    neighbour
        .ip(&format!("route replace {late} via 192.168.1.10\n"))
        .unwrap();
    engine.run(&["restart", "-t", "0", "ollama", "https", "intern"]);
    engine.ok(&["ufw", "reload"]);
    check(stranger, server, 9100, false, "a network made later");
    check(neighbour, late, 80, false, "a network made later");
    assert!(
        engine.fetches("late", "198.51.100.66".parse().unwrap(), 8001),
        "a container made later reaches out"
    );
    closed("after restarts and a reload");
    check(stranger, server, 443, true, "after restarts and a reload");
    engine.run(&["rm", "-f", "late"]);
    engine.run(&["network", "rm", "later"]);
    if podman {
        engine.ok(&["ufw", "default", "deny", "routed"]);
    }

    // Everything away again: nft, UFW and the engine as before.
    let removed = engine.long(&[PORTCULLIS, "remove", "--yes"]);
    assert!(removed.success(), "{}{}", removed.stdout, removed.stderr);
    // Containers that were restarted may have changed places in the engine's chains, with Podman their addresses too.
    let sorted = |rules: Vec<String>| -> Vec<Vec<String>> {
        let line = |line: &str| match line.split_once(" dnat ip to ") {
            Some((rule, _)) if podman => format!("{rule} dnat ip to somebody"),
            _ => line.to_owned(),
        };
        let lines = |text: String| {
            let mut lines: Vec<String> = text.lines().map(line).collect();
            lines.sort();
            lines
        };
        rules.into_iter().map(lines).collect()
    };
    assert_eq!(sorted(engine.rules()), sorted(before));
    if podman {
        engine.ok(&["ufw", "default", "allow", "routed"]);
    }
    check(stranger, server, 11434, true, "after remove");
    (generation.more)(&engine);
}

/// Of a container the engine is only asked what its list and the processes leave open; the facts are those that it would
/// have told.
fn as_inspected(engine: &Engine) {
    let snapshot = engine.ok(&[PORTCULLIS, "snapshot", "--no-probe"]);
    let host: serde_json::Value = serde_json::from_str(&snapshot).unwrap();
    let containers = host["engines"][0]["containers"].as_array().unwrap();
    assert!(containers.len() > 5, "{containers:?}");
    for container in containers {
        let name = container["name"].as_str().unwrap();
        let told = engine.run(&["inspect", name]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let told = &told[0];
        assert_eq!(container["id"], told["Id"], "{name}");
        assert_eq!(container["pid"], told["State"]["Pid"], "{name}");
        let image = told["Config"]["Image"].as_str().unwrap();
        assert!(
            image.ends_with(container["image"].as_str().unwrap()),
            "{name}: {image}"
        );
        let bindings = told["NetworkSettings"]["Ports"].as_object().unwrap();
        let published: usize = bindings
            .values()
            .filter_map(|b| Some(b.as_array()?.len()))
            .sum();
        let ours = container["published"].as_array().unwrap().len();
        // Podman tells of one binding for both families.
        assert!(ours >= published, "{name}: {container} {bindings:?}");
        for network in told["NetworkSettings"]["Networks"]
            .as_object()
            .unwrap()
            .values()
        {
            let address = &network["IPAddress"];
            let all = container["addresses"].as_array().unwrap();
            assert!(
                all.iter().any(|a| a["address"] == *address),
                "{name}: {container}"
            );
        }
    }
}

fn nothing_more(_: &Engine) {}

/// Docker 28 guards containers' own addresses, and has settings that take the guard away.
fn opt_outs_and_gateway_modes(engine: &Engine) {
    let machine = &engine.machine;
    let neighbour = &machine.neighbour;
    machine
        .write(
            "/etc/systemd/system/docker.service.d/raw.conf",
            "[Service]\nEnvironment=DOCKER_INSECURE_NO_IPTABLES_RAW=1\n",
        )
        .unwrap();
    engine.ok(&["systemctl", "daemon-reload"]);
    engine.ok(&["systemctl", "restart", "docker"]);
    engine.run(&["start", "local"]);
    for (network, mode, options) in [
        ("routed", "routed", &["-p", "80"][..]),
        ("bare", "nat-unprotected", &[]),
    ] {
        let mode = format!("com.docker.network.bridge.gateway_mode_ipv4={mode}");
        engine.run(&["network", "create", "-o", &mode, network]);
        engine.serve(network, &[&["--network", network][..], options].concat());
    }
    // On the wire itself.
    let wire = "network create -d macvlan --subnet 192.168.1.0/24 --gateway 192.168.1.1 \
                --ip-range 192.168.1.128/28 -o parent=eth1 wire";
    engine.run(&wire.split_whitespace().collect::<Vec<_>>());
    engine.serve("wire", &["--network", "wire"]);
    let local = engine.address("local", "bridge", "IPAddress");
    let routed = engine.address("routed", "routed", "IPAddress");
    let bare = engine.address("bare", "bare", "IPAddress");
    let wire = engine.address("wire", "wire", "IPAddress");
    for own in [local, routed, bare] {
        let route = format!("route replace {own} via 192.168.1.10\n");
        neighbour.ip(&route).unwrap();
    }
    let audit = engine.audit();
    for (case, own) in [
        ("19", local),
        ("21, routed", routed),
        ("21, nat-unprotected", bare),
        ("macvlan", wire),
    ] {
        check(neighbour, own, 80, true, case);
        let said = says_open(&audit, own, 80, sender(neighbour, own));
        assert_ne!(said, Some(false), "{case}: a false closed");
    }
    for id in ["docker-gateway-mode", "container-beside-host"] {
        assert!(has(&audit, id), "no {id} among {:?}", ids(&audit));
    }
    let told = engine.apply(&[]);
    let told: Vec<&str> = told.split_whitespace().collect();
    let words = "its packets do not pass this host's packet filter";
    assert!(told.join(" ").contains(words), "{told:?}");
    let closed = [local, routed, bare].map(|own| (neighbour, own, 80));
    all_closed(&closed, "after apply");
    // As the plan says.
    check(neighbour, wire, 80, true, "macvlan, after apply");
    engine.nothing_to_do();
}

/// A user's own Podman: a process of the user's holds the port, so that UFW decides.
fn rootless(engine: &Engine) {
    let machine = &engine.machine;
    let stranger = &machine.stranger;
    let id = engine.ok(&["id", "-u", "admin"]);
    let run = format!("/run/user/{}", id.trim());
    // What logind makes for who logs in.
    engine.ok(&[
        "install", "-d", "-m", "0700", "-o", "admin", "-g", "admin", &run,
    ]);
    machine
        .write(
            "/home/admin/.config/containers/storage.conf",
            "[storage]\ndriver = \"vfs\"\n",
        )
        .unwrap();
    machine
        .write(
            "/home/admin/.config/containers/containers.conf",
            "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n[containers]\npids_limit = 0\n",
        )
        .unwrap();
    engine.ok(&["chown", "-R", "admin:admin", "/home/admin/.config"]);
    let runtime = format!("XDG_RUNTIME_DIR={run}");
    let user = |arguments: &[&'static str]| {
        let mut argv = vec!["runuser", "-u", "admin", "--", "env", "-C", "/home/admin"];
        argv.extend([runtime.as_str(), "HOME=/home/admin"]);
        argv.extend(arguments);
        argv.into_iter().map(str::to_owned).collect::<Vec<String>>()
    };
    let user_ok = |arguments: &[&'static str]| {
        let argv = user(arguments);
        engine.ok(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    };
    engine.ok(&["chmod", "0644", "/var/tmp/image.tar"]);
    let cmd = "CMD [\"/bin/busybox\",\"httpd\",\"-f\",\"-p\",\"80\",\"-h\",\"/www\"]";
    let image = "/var/tmp/image.tar";
    user_ok(&["podman", "import", "--change", cmd, image, "web:1"]);
    user_ok(&[
        "podman", "run", "-d", "--name", "mine", "-p", "9700:80", "web:1",
    ]);
    engine.ok(&[
        "install",
        "-d",
        "-o",
        "admin",
        "-g",
        "admin",
        &format!("{run}/podman"),
    ]);
    // As a unit, so that it is in a cgroup of the machine's.
    let home = "--setenv=HOME=/home/admin";
    let own = format!("--setenv={runtime}");
    let api = format!("systemd-run --uid=admin {home} {own} podman system service --time=0");
    engine.ok(&api.split(' ').collect::<Vec<_>>());
    let socket = format!("{run}/podman/podman.sock");
    let end = std::time::Instant::now() + SOON;
    while !machine.exists(&socket).unwrap() {
        assert!(std::time::Instant::now() < end, "a user's podman.sock");
    }
    let case = "rootless";
    check(stranger, address::SERVER, 9700, false, case);
    engine.ok(&["ufw", "allow", "9700/tcp"]);
    check(stranger, address::SERVER, 9700, true, case);
    let audit = engine.audit();
    assert!(has(&audit, "engine-rootless"), "{:?}", ids(&audit));
    let said = says_open(&audit, address::SERVER, 9700, address::STRANGER);
    assert_eq!(said, Some(true), "{case}");
    engine.apply(&["--prune"]);
    let both = [address::SERVER, address::SERVER_V6].map(|to| (stranger, to, 9700));
    all_closed(&both, "rootless, after apply");
}

/// From a container: out, to others of its network, to the host's services, to published ports.
fn from_inside(engine: &Engine, local: IpAddr, six4: IpAddr) {
    let machine = &engine.machine;
    let stranger: IpAddr = address::STRANGER;
    assert!(
        engine.fetches("ollama", stranger, 8001),
        "container -> outside"
    );
    assert!(
        engine.fetches("ollama", local, 80),
        "container -> container"
    );
    assert!(!engine.fetches("ollama", six4, 80) || engine.cli == "podman");
    assert!(
        !engine.fetches("ollama", address::SERVER, 9000),
        "container -> a published port that the policy closes"
    );
    // A service of the host, allowed for containers only: also from a network made after the apply.
    let _service = machine
        .spawn(&["python3", "-m", "http.server", "8000", "--bind", "0.0.0.0"])
        .unwrap();
    let gateway: IpAddr = address::SERVER_LAN;
    let end = std::time::Instant::now() + SOON;
    while !engine.fetches("ollama", gateway, 8000) {
        assert!(std::time::Instant::now() < end, "container -> host service");
    }
    engine.run(&["network", "create", "evening"]);
    engine.serve("evening", &["--network", "evening"]);
    assert!(
        engine.fetches("evening", gateway, 8000),
        "a container of a network made later -> host service"
    );
    engine.run(&["rm", "-f", "evening"]);
    engine.run(&["network", "rm", "evening"]);
    check(
        &machine.stranger,
        address::SERVER,
        8000,
        false,
        "for containers only",
    );
    check(
        &machine.neighbour,
        gateway,
        8000,
        false,
        "for containers only",
    );
    // The host itself uses what it publishes.
    for port in ["11434", "3000"] {
        engine.ok(&[
            "curl",
            "-sf",
            "--max-time",
            "5",
            &format!("http://127.0.0.1:{port}/"),
        ]);
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn docker_20_10_of_debian_12() {
    the_whole_way(&Generation {
        release: Release::Bookworm,
        cli: "docker",
        version: "20.10",
        daemon_json: r#"{"ip6tables": true, "experimental": true}"#,
        direct: true,
        more: nothing_more,
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn docker_26_1_of_debian_13() {
    the_whole_way(&Generation {
        release: Release::Trixie,
        cli: "docker",
        version: "26.1",
        daemon_json: r#"{"ip6tables": true, "experimental": true}"#,
        direct: true,
        more: nothing_more,
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn docker_28_5_of_unstable() {
    the_whole_way(&Generation {
        release: Release::Sid,
        cli: "docker",
        version: "28.5",
        daemon_json: "{}",
        direct: false,
        more: opt_outs_and_gateway_modes,
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn podman_5_of_debian_13() {
    the_whole_way(&Generation {
        release: Release::Trixie,
        cli: "podman",
        version: "5.",
        daemon_json: "",
        direct: true,
        more: rootless,
    });
}
