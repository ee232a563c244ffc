//! Where a port is published: compose files mended in place and back, Docker's own settings, its API.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod engines;

use engines::{Engine, PORTCULLIS, check, has, ids};
use lab::{Machine, Release, address};

const FILE: &str = "/srv/chat/compose.yml";
const TEXT: &str = "\
# Chat: the model, and the page before it.
services:
  model:            # do not touch the image
    image: web:1
    ports:
      - 11434:80    # all of the world!
      - target: 80
        published: \"8081\"
  page:
    image: 'web:1'
    ports: ['8080:80', \"${PAGE_PORT:-8088}:80\"]
";

#[test]
#[ignore = "live: run by cargo xtask test"]
fn compose_files_settings_and_the_api() {
    lab::require_root();
    let machine = Machine::of(Release::Trixie)
        .with_docker()
        .boot("sources")
        .unwrap();
    let engine = Engine::new(machine, "docker");
    let machine = &engine.machine;
    let stranger = &machine.stranger;
    machine.import_web_image("web:1", "model").unwrap();
    engine.ok(&["ufw", "allow", "22/tcp"]);
    engine.ok(&["ufw", "--force", "enable"]);

    // Case 35: "ip" covers the default bridge only. And the API, open to whoever reaches it.
    machine
        .write(
            "/etc/docker/daemon.json",
            r#"{"ip": "127.0.0.1", "hosts": ["unix:///run/docker.sock", "tcp://0.0.0.0:2375"]}"#,
        )
        .unwrap();
    // Debian's unit names a socket of its own, which "hosts" would clash with.
    machine
        .write(
            "/etc/systemd/system/docker.service.d/hosts.conf",
            "[Service]\nExecStart=\nExecStart=/usr/sbin/dockerd\n",
        )
        .unwrap();
    engine.ok(&["systemctl", "daemon-reload"]);
    engine.ok(&["systemctl", "restart", "docker"]);
    machine.write(FILE, TEXT).unwrap();
    let up = ["docker", "compose", "-f", FILE, "up", "-d"];
    engine.ok(&up);
    engine.serve("plain", &["-p", "7000:80"]);
    engine.serve(
        "keeper",
        &[
            "-p",
            "7001:80",
            "-v",
            "/run/docker.sock:/var/run/docker.sock",
        ],
    );
    engine.ok(&["gpasswd", "-a", "admin", "docker"]);
    check(
        stranger,
        address::SERVER,
        7000,
        false,
        "35, the default bridge",
    );
    for port in [11434, 8080, 8081, 8088] {
        check(
            stranger,
            address::SERVER,
            port,
            true,
            "35, a compose network",
        );
    }
    let audit = engine.audit();
    for id in [
        "docker-ip-default-bridge-only",
        "docker-past-ufw",
        "engine-api-open",
        "engine-socket-in-container",
        "docker-group",
    ] {
        assert!(has(&audit, id), "no {id} among {:?}", ids(&audit));
    }
    let text = audit.to_string();
    assert!(
        text.contains("compose project chat (/srv/chat/compose.yml line 6)"),
        "{text}"
    );

    // The plan names everything, and shows the exact change.
    let plan = engine.long(&[PORTCULLIS, "plan", "--edit-compose"]);
    assert_eq!(plan.code(), Some(3), "{}{}", plan.stdout, plan.stderr);
    for line in [
        "edit /srv/chat/compose.yml (line 6, 7, 11)",
        "- 11434:80",
        "+ \"127.0.0.1:11434:80\"",
        "+ host_ip: 127.0.0.1",
        "+ '127.0.0.1:8080:80'",
        "\"default-network-opts\"",
        "made from variables",
    ] {
        // Sentences are wrapped to the terminal's width.
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let told = words(&plan.stdout);
        assert!(told.contains(&words(line)), "no {line} in\n{}", plan.stdout);
    }
    engine.apply(&["--edit-compose"]);
    let mended = TEXT
        .replace("11434:80 ", "\"127.0.0.1:11434:80\" ")
        .replace(
            "      - target: 80",
            "      - host_ip: 127.0.0.1\n        target: 80",
        )
        .replace("'8080:80'", "'127.0.0.1:8080:80'");
    assert_eq!(machine.read_text(FILE).unwrap(), mended);
    for port in [11434, 8080, 8081, 8088] {
        check(stranger, address::SERVER, port, false, "after apply");
    }
    engine.nothing_to_do();
    // Compose reads it as it was meant.
    engine.ok(&up);
    let ports = engine.run(&["ps", "--format", "{{.Names}} {{.Ports}}"]);
    assert!(ports.contains("127.0.0.1:11434->80/tcp"), "{ports}");
    assert!(ports.contains("127.0.0.1:8081->80/tcp"), "{ports}");
    engine.nothing_to_do();

    // Undone: byte for byte.
    engine.ok(&[PORTCULLIS, "rollback"]);
    assert_eq!(machine.read_text(FILE).unwrap(), TEXT);

    // A file that cannot be read as one is left alone and named.
    machine.write(FILE, "services: [\n").unwrap();
    let plan = engine.long(&[PORTCULLIS, "plan", "--edit-compose"]);
    assert!(!plan.stdout.contains("edit /srv"), "{}", plan.stdout);
}
