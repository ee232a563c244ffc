//! Published ports in the namespace lab: real dockerd, real UFW, real connections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use lab::{Host, World, address};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(2);
const PORTCULLIS: &str = env!("CARGO_BIN_EXE_portcullis");

fn reaches(from: &Host, to: std::net::IpAddr, port: u16) -> bool {
    from.connect(to, port, SOON).unwrap()
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn g9_g10_g11_published_ports_obey_the_policy() {
    lab::require_root();
    let world = World::new("published").unwrap();
    let server = &world.server;
    let docker = server.dockerd().unwrap();
    docker
        .import_web_image("web:1", "Ollama is running")
        .unwrap();
    docker.run("ollama", &["-p", "11434:80"], "web:1").unwrap();
    docker
        .run("local", &["-p", "127.0.0.1:3000:80"], "web:1")
        .unwrap();
    let own: std::net::IpAddr = docker.address("local").unwrap().parse().unwrap();
    for command in [
        &["ufw", "allow", "ssh"][..],
        &["ufw", "allow", "443/tcp"],
        &["ufw", "--force", "enable"],
    ] {
        server.ok(command).unwrap();
    }
    // The neighbour knows a way to the containers, as any neighbour may.
    world
        .neighbour
        .ip(&format!("route add {own}/32 via 192.168.1.10\n"))
        .unwrap();

    // Before: UFW is on, and yet.
    assert!(reaches(&world.stranger, address::SERVER, 11434));
    assert!(reaches(&world.neighbour, own, 80));
    let audit = server.run(&[PORTCULLIS, "audit"]).unwrap();
    assert_eq!(audit.code(), Some(1), "{}{}", audit.stdout, audit.stderr);
    assert!(audit.stdout.contains("11434"), "{}", audit.stdout);

    // G11: the folk fix does nothing.
    let rules = server.read_text("/etc/ufw/after.rules").unwrap();
    let folk = rules.replacen(
        "\nCOMMIT",
        "\n-A INPUT -p tcp --dport 11434 -j DROP\nCOMMIT",
        1,
    );
    server.write("/etc/ufw/after.rules", folk).unwrap();
    server.ok(&["ufw", "reload"]).unwrap();
    assert!(reaches(&world.stranger, address::SERVER, 11434));

    let apply = server
        .command(&[PORTCULLIS, "apply", "--yes", "--i-have-a-console"])
        .timeout(Duration::from_secs(120))
        .run()
        .unwrap();
    assert!(apply.success(), "{}{}", apply.stdout, apply.stderr);

    // After: closed to everybody outside, at every address.
    for (from, to, port) in [
        (&world.stranger, address::SERVER, 11434),
        (&world.stranger, address::SERVER_V6, 11434),
        (&world.neighbour, address::SERVER_LAN, 11434),
        (&world.neighbour, address::SERVER_LAN_V6, 11434),
        (&world.neighbour, own, 80),
    ] {
        assert!(!reaches(from, to, port), "{} to {to}:{port}", from.name());
    }
    // The host itself still uses both, and the containers still reach out.
    for port in [11434, 3000] {
        let page = server
            .http_get("127.0.0.1".parse().unwrap(), port, "/", SOON)
            .unwrap();
        assert!(page.contains("Ollama is running"), "{page}");
    }
    let _page = world
        .stranger
        .http_server("elsewhere", "0.0.0.0:8000", "the world outside")
        .unwrap();
    let out = docker
        .cli(&[
            "exec",
            "ollama",
            "/bin/busybox",
            "wget",
            "-qO-",
            "http://198.51.100.66:8000/",
        ])
        .unwrap();
    assert!(out.contains("the world outside"), "{out}");

    // It survives what others do to the firewall.
    server.ok(&["ufw", "reload"]).unwrap();
    assert!(!reaches(&world.stranger, address::SERVER, 11434));

    let plan = server.run(&[PORTCULLIS, "plan"]).unwrap();
    assert_eq!(plan.code(), Some(0), "{}{}", plan.stdout, plan.stderr);
}
