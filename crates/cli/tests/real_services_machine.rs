//! Mends by unit, on a real Debian with systemd: drop-ins tell services to listen on loopback, vendors' files stay as
//! they are, and a rollback puts everything back. Ollama, Redis and node_exporter are the real ones; the others, which
//! need a GPU or gigabytes, are stand-ins that take the same arguments.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use lab::{Machine, Release, Server, address};
use std::path::Path;
use std::time::{Duration, Instant};

const INSIDE: &str = "/usr/local/bin/portcullis";
const PATIENCE: Duration = Duration::from_secs(120);

/// Unit, port, command. `--stand-in-port` is the stand-in's own: the port is part of no mend.
const SERVICES: [(&str, u16, &str); 10] = [
    ("ollama.service", 11434, "/usr/local/bin/ollama serve"),
    (
        "redis-server.service",
        6379,
        "/usr/bin/redis-server --save \"\" --protected-mode no --bind 0.0.0.0",
    ),
    (
        "node_exporter.service",
        9100,
        "/usr/bin/prometheus-node-exporter",
    ),
    (
        "vllm.service",
        8000,
        "/opt/vllm serve --host 0.0.0.0 Qwen/Qwen3-4B --stand-in-port 8000",
    ),
    (
        "our-llama.service",
        8080,
        "/opt/llama-server -m /m.gguf --stand-in-port 8080",
    ),
    (
        "open-webui.service",
        8081,
        "/opt/open-webui serve --host=0.0.0.0 --stand-in-port 8081",
    ),
    (
        "comfyui.service",
        8188,
        "/opt/comfyui --listen 0.0.0.0 --stand-in-port 8188",
    ),
    (
        "jupyterlab.service",
        8888,
        "/opt/jupyter-lab --ip=0.0.0.0 --stand-in-port 8888",
    ),
    (
        "ray.service",
        8265,
        "/opt/raylet start --head --dashboard-host 0.0.0.0 --stand-in-port 8265",
    ),
    (
        "chroma.service",
        8001,
        "/opt/chroma run --host 0.0.0.0 --path /tmp --stand-in-port 8001",
    ),
];

/// Redis's command has quotes in it, which a drop-in does not take apart: the firewall and a note have to do.
const LEFT: &str = "redis-server.service";

const KINDS: [&str; 10] = [
    "ollama",
    "redis",
    "node-exporter",
    "vllm",
    "llama-cpp",
    "open-webui",
    "comfyui",
    "jupyter",
    "ray",
    "chroma",
];

fn unit_file(name: &str) -> String {
    format!("/etc/systemd/system/{name}")
}

fn machine() -> Machine {
    lab::require_root();
    let ollama = Server::Ollama
        .ensure(&mut |line| println!("{line}"))
        .unwrap();
    let machine = Machine::of(Release::Bookworm).boot("units").unwrap();
    let copy = |from: &Path, to: &str| machine.copy_in(from, to).unwrap();
    copy(Path::new(env!("CARGO_BIN_EXE_portcullis")), INSIDE);
    copy(&ollama.join("ollama"), "/usr/local/bin/ollama");
    copy(
        Path::new("/usr/bin/prometheus-node-exporter"),
        "/usr/bin/prometheus-node-exporter",
    );
    copy(Path::new("/usr/bin/redis-server"), "/usr/bin/redis-server");
    // What Redis links and the machine's minimal Debian does not have.
    for library in [
        "libatomic.so.1",
        "liblzf.so.1",
        "libjemalloc.so.2",
        "libstdc++.so.6",
        "libssl.so.3",
        "libcrypto.so.3",
    ] {
        let path = format!("/usr/lib/x86_64-linux-gnu/{library}");
        if !machine.exists(&path).unwrap() {
            copy(Path::new(&path), &path);
        }
    }
    let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/stand_in.py");
    for (unit, _, command) in SERVICES {
        let program = command.split(' ').next().unwrap();
        if program.starts_with("/opt/") {
            copy(&stand_in, program);
            machine.ok(&["chmod", "755", program]).unwrap();
        }
        let environment = match unit {
            "ollama.service" => "Environment=OLLAMA_HOST=0.0.0.0\nEnvironment=HOME=/root\n",
            _ => "",
        };
        let text = format!("[Service]\nExecStart={command}\n{environment}Restart=always\n");
        machine.write(&unit_file(unit), text).unwrap();
    }
    machine.ok(&["systemctl", "daemon-reload"]).unwrap();
    for (unit, ..) in SERVICES {
        machine.ok(&["systemctl", "restart", unit]).unwrap();
    }
    machine
}

/// The addresses at which a port is listened on, once something does.
fn listens(machine: &Machine, port: u16) -> String {
    let begun = Instant::now();
    loop {
        let filter = format!("sport = :{port}");
        let all = machine.ok(&["ss", "-Hltn", &filter]).unwrap();
        let addresses: Vec<&str> = all
            .lines()
            .filter_map(|l| l.split_whitespace().nth(3))
            .collect();
        if !addresses.is_empty() {
            return addresses.join(" ");
        }
        assert!(begun.elapsed() < PATIENCE, "nothing listens on {port}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn files(machine: &Machine) -> Vec<String> {
    SERVICES
        .iter()
        .map(|(unit, ..)| machine.read_text(&unit_file(unit)).unwrap())
        .collect()
}

#[test]
#[ignore = "gigabytes: run by cargo xtask services"]
fn services_are_told_to_listen_on_loopback_and_a_rollback_undoes_it() {
    let machine = machine();
    for (unit, port, _) in SERVICES {
        let found = listens(&machine, port);
        assert!(!found.contains("127.0.0.1"), "{unit}: {found}");
        machine
            .stranger
            .wait_port(address::SERVER, port, PATIENCE)
            .unwrap();
    }
    let before = files(&machine);
    let mut policy = "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n".to_owned();
    for kind in KINDS {
        policy += &format!("[[service]]\nkind = \"{kind}\"\nreach = \"loopback\"\n");
    }
    machine
        .write("/etc/portcullis/policy.toml", policy)
        .unwrap();

    // The plan says what it cannot do by itself.
    let plan = machine.run(&["portcullis", "plan"]).unwrap();
    assert_eq!(plan.code(), Some(3), "{}{}", plan.stdout, plan.stderr);
    assert!(
        plan.stdout.contains("--bind 127.0.0.1 -::1"),
        "{}",
        plan.stdout
    );

    let apply = machine
        .command(&["portcullis", "apply", "--yes", "--i-have-a-console"])
        .unwrap()
        .timeout(Duration::from_secs(240))
        .run()
        .unwrap();
    assert!(apply.success(), "{}{}", apply.stdout, apply.stderr);
    for (unit, port, _) in SERVICES {
        let found = listens(&machine, port);
        let own = found.split(' ').all(|a| a.starts_with("127.0.0.1:"));
        assert_eq!(own, unit != LEFT, "{unit}: {found}");
        let outside = machine
            .stranger
            .connect(address::SERVER, port, Duration::from_secs(2));
        assert!(!outside.unwrap(), "{unit}");
    }
    // By drop-ins: no vendor's file was touched, and the same again changes nothing.
    assert_eq!(files(&machine), before);
    let again = machine.run(&["portcullis", "plan"]).unwrap();
    assert_eq!(again.code(), Some(0), "{}{}", again.stdout, again.stderr);

    let back = machine
        .command(&["portcullis", "rollback"])
        .unwrap()
        .timeout(Duration::from_secs(240))
        .run()
        .unwrap();
    assert!(back.success(), "{}{}", back.stdout, back.stderr);
    for (unit, port, _) in SERVICES {
        let dropin = format!("{}.d/zz-portcullis.conf", unit_file(unit));
        assert!(!machine.exists(&dropin).unwrap(), "{dropin}");
        let begun = Instant::now();
        while listens(&machine, port).contains("127.0.0.1") {
            assert!(begun.elapsed() < PATIENCE, "{unit} stayed on loopback");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    assert_eq!(files(&machine), before);
}
