//! Real AI servers from the packages that people install: recognised with their versions, bound as they bind by
//! default, found exposed, closed, found closed. In the namespace lab; `real_services_machine` has the mends by unit.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use lab::{Host, Process, Server, World, address};
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PORTCULLIS: &str = env!("CARGO_BIN_EXE_portcullis");
const SOON: Duration = Duration::from_secs(3);
/// Python servers import for a long time on a busy machine.
const START: Duration = Duration::from_secs(300);
const LOOPBACKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Where the packages are.
struct Kit {
    python: PathBuf,
    mcp: PathBuf,
    llama: PathBuf,
    ollama: PathBuf,
    work: tempfile::TempDir,
}

impl Kit {
    fn new() -> Self {
        let mut say = |line: &str| println!("{line}");
        let mut ensure = |server: Server| {
            if server == Server::Ollama && !wanted("ollama") {
                return PathBuf::new();
            }
            server.ensure(&mut say).unwrap()
        };
        Kit {
            python: ensure(Server::Python),
            mcp: ensure(Server::Mcp),
            llama: ensure(Server::Llama),
            ollama: ensure(Server::Ollama),
            work: tempfile::tempdir().unwrap(),
        }
    }

    fn venv(&self, program: &str) -> String {
        format!("{}/bin/{program}", self.python.display())
    }

    fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.work.path().display())
    }

    /// The version that a package of the virtual environment says it has.
    fn of_python(&self, host: &Host, package: &str) -> String {
        let code = format!("import importlib.metadata as m; print(m.version('{package}'))");
        let told = host.ok(&[&self.venv("python"), "-c", &code]).unwrap();
        told.trim().to_owned()
    }
}

/// Whether a server takes part: all of them, unless PORTCULLIS_LIVE_SERVICES names some (`chroma,redis`).
fn wanted(service: &str) -> bool {
    match std::env::var("PORTCULLIS_LIVE_SERVICES") {
        Ok(names) => names.split(',').any(|name| name == service),
        Err(_) => true,
    }
}

/// One real server.
struct Case {
    service: &'static str,
    port: u16,
    version: Option<String>,
    /// Whether its default bind is this machine alone.
    local: bool,
    /// What it shows about keys.
    access: &'static str,
    /// Its command as documented, and what opens it to the network.
    argv: Vec<String>,
    open: Vec<String>,
    env: Vec<(String, String)>,
    open_env: Vec<(String, String)>,
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn pairs(text: &[(&str, &str)]) -> Vec<(String, String)> {
    text.iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

/// The word of a program's own version output that looks like one.
fn version_of(host: &Host, argv: &[&str]) -> Option<String> {
    let told = host.run(argv).unwrap();
    let text = told.stdout + &told.stderr;
    let version = |word: &str| {
        let word = word.trim_start_matches("v=").trim_end_matches(',');
        let sound = word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
        sound.then(|| word.to_owned())
    };
    text.split_whitespace().find_map(version)
}

fn cases(kit: &Kit, host: &Host) -> Vec<Case> {
    let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers");
    let case = |service, port, argv: &str, open: &str| Case {
        service,
        port,
        version: None,
        local: true,
        access: "open",
        argv: words(argv),
        open: words(open),
        env: Vec::new(),
        open_env: Vec::new(),
    };
    // A model of a few kilobytes, made on the spot, where llama-server's own root can see it.
    let model = kit.at("tiny.gguf");
    let script = servers.join("tiny_model.py").display().to_string();
    host.command(&[&kit.venv("python"), &script, &model])
        .timeout(START)
        .ok()
        .unwrap();
    let inside = format!("/tmp/tiny-{}.gguf", std::process::id());
    let copy = kit.llama.join(&inside[1..]).display().to_string();
    host.ok(&["cp", &model, &copy]).unwrap();
    let llama = kit.llama.display();
    let build = host
        .run(&[
            "chroot",
            &llama.to_string(),
            "/usr/bin/llama-server",
            "--version",
        ])
        .unwrap();
    let build = build.stdout + &build.stderr;
    // `version: 0.7.0 (build 11669, commit …)`; it was `version: 4242 (…)` before it had versions of its own.
    let told = |before: &str| {
        let (_, rest) = build.split_once(before)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()
    };
    let build = told("(build ").or_else(|| told("version: "));

    vec![
        Case {
            // Every 1.x tells 1.0.0 whatever it is, which is taken for no version.
            ..case(
                "chroma",
                8000,
                &format!("{} run --path {}", kit.venv("chroma"), kit.at("chroma")),
                "--host 0.0.0.0",
            )
        },
        Case {
            version: Some(kit.of_python(host, "mlflow")),
            env: pairs(&[(
                "PATH",
                &format!("{}/bin:/usr/bin:/bin", kit.python.display()),
            )]),
            ..case(
                "mlflow",
                5000,
                &format!(
                    "{} server --workers 1 --backend-store-uri sqlite:///{} --artifacts-destination {}",
                    kit.venv("mlflow"),
                    kit.at("mlflow.db"),
                    kit.at("artifacts")
                ),
                "--host 0.0.0.0",
            )
        },
        Case {
            version: Some(kit.of_python(host, "jupyter_server")),
            access: "locked",
            ..case(
                "jupyter",
                8888,
                &format!(
                    "{} --allow-root --no-browser --ServerApp.root_dir={}",
                    kit.venv("jupyter-server"),
                    kit.at("")
                ),
                "--ip=0.0.0.0",
            )
        },
        Case {
            version: Some(kit.of_python(host, "gradio")),
            env: pairs(&[("GRADIO_ANALYTICS_ENABLED", "False")]),
            open_env: pairs(&[("GRADIO_SERVER_NAME", "0.0.0.0")]),
            ..case(
                "gradio",
                7860,
                &format!(
                    "{} {}",
                    kit.venv("python"),
                    servers.join("gradio_app.py").display()
                ),
                "",
            )
        },
        Case {
            version: Some(kit.of_python(host, "ray")),
            env: pairs(&[
                (
                    "PATH",
                    &format!("{}/bin:/usr/bin:/bin", kit.python.display()),
                ),
                ("RAY_raylet_start_wait_time_s", "300"),
            ]),
            ..case(
                "ray",
                8265,
                // Its own store would want the port of Redis, which is here too.
                &format!(
                    "{} start --head --block --num-cpus 1 --port 6399 --object-store-memory 80000000 --disable-usage-stats --include-dashboard=true --temp-dir {}",
                    kit.venv("ray"),
                    kit.at("ray")
                ),
                "--dashboard-host=0.0.0.0",
            )
        },
        Case {
            version: version_of(host, &["redis-server", "--version"]),
            // Without protected mode, as people switch it off to get on with their work.
            ..case(
                "redis",
                6379,
                &format!(
                    "redis-server --dir {} --protected-mode no --bind 127.0.0.1",
                    kit.at("")
                ),
                "--bind 0.0.0.0",
            )
        },
        Case {
            version: version_of(host, &["prometheus-node-exporter", "--version"]),
            local: false,
            ..case("node-exporter", 9100, "prometheus-node-exporter", "")
        },
        Case {
            version: version_of(host, &["etcd", "--version"]),
            access: "unknown",
            ..case(
                "etcd",
                2379,
                &format!("etcd --data-dir {}", kit.at("etcd")),
                "--listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://127.0.0.1:2379",
            )
        },
        Case {
            local: false,
            env: pairs(&[("PORT", "3001")]),
            ..case(
                "mcp-server",
                3001,
                &format!(
                    "node {}/node_modules/.bin/mcp-server-everything streamableHttp",
                    kit.mcp.display()
                ),
                "",
            )
        },
        Case {
            version: build.map(str::to_owned),
            ..case(
                "llama-cpp",
                8080,
                &format!("chroot {llama} /usr/bin/llama-server -m {inside} --port 8080"),
                "--host 0.0.0.0",
            )
        },
        Case {
            version: Some(lab::OLLAMA_VERSION.to_owned()),
            open_env: pairs(&[("OLLAMA_HOST", "0.0.0.0")]),
            ..case(
                "ollama",
                11434,
                &format!("{}/ollama serve", kit.ollama.display()),
                "",
            )
        },
    ]
}

/// Starts them all and waits until each listens.
fn start(host: &Host, cases: &[Case], open: bool) -> Vec<Process> {
    let mut started: Vec<Process> = cases
        .iter()
        .map(|case| {
            let mut argv = case.argv.clone();
            if open {
                argv.extend(case.open.iter().cloned());
            }
            let mut program = host.command(&argv);
            for (name, value) in &case.env {
                program = program.env(name, value);
            }
            for (name, value) in case.open_env.iter().filter(|_| open) {
                program = program.env(name, value);
            }
            program.spawn().unwrap()
        })
        .collect();
    for (case, process) in cases.iter().zip(&mut started) {
        process
            .wait_until("to listen", START, |_| listens(host, case.port))
            .unwrap_or_else(|error| panic!("{}: {error}", case.service));
    }
    started
}

/// On this machine itself. `localhost` is an address of either family, as the program and the host please.
fn listens(host: &Host, port: u16) -> bool {
    LOOPBACKS
        .iter()
        .any(|ip| host.connect(*ip, port, SOON).unwrap())
}

/// Asks until every server is named and has shown whether it wants a key: a port listens before a server on a busy machine answers within a second.
fn audit(host: &Host, cases: &[Case]) -> Value {
    let begun = Instant::now();
    loop {
        let audit = host.run(&[PORTCULLIS, "audit", "--json"]).unwrap();
        let value: Value = serde_json::from_str(&audit.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}{}", audit.stdout, audit.stderr));
        let missing: Vec<String> = cases
            .iter()
            .filter(|case| {
                let found = endpoint(&value, case.port);
                found["confidence"] != "settled" || found["access"] != case.access
            })
            .map(|case| format!("{}: {}", case.service, endpoint(&value, case.port)))
            .collect();
        if missing.is_empty() {
            return value;
        }
        assert!(
            begun.elapsed() < START,
            "not recognised:\n{}",
            missing.join("\n")
        );
        std::thread::sleep(Duration::from_secs(2));
    }
}

fn endpoint(audit: &Value, port: u16) -> &Value {
    let endpoints = audit["endpoints"].as_array().unwrap();
    endpoints
        .iter()
        .find(|e| e["port"] == port && e["proto"] == "tcp")
        .unwrap_or(&Value::Null)
}

/// Names and versions are right, whoever can reach the port.
fn recognised(audit: &Value, cases: &[Case]) {
    for case in cases {
        let found = endpoint(audit, case.port);
        assert_eq!(found["service"], case.service, "{found}");
        let version = case.version.as_deref();
        match (version, found["version"].as_str()) {
            // llama-server tells its build with the commit.
            (Some(build), Some(told)) if case.service == "llama-cpp" => {
                assert!(told.contains(build), "{told} is not {build}");
            }
            (version, told) => assert_eq!(told, version, "{}", case.service),
        }
        assert_eq!(found["access"], case.access, "{}", case.service);
    }
}

#[test]
#[ignore = "gigabytes: run by cargo xtask services"]
fn real_servers_are_recognised_found_exposed_closed_and_found_closed() {
    lab::require_root();
    let kit = Kit::new();
    let world = World::new("services").unwrap();
    let server = &world.server;
    let mut cases = cases(&kit, server);
    cases.retain(|case| wanted(case.service));
    assert!(!cases.is_empty());

    // As they bind by default: most of them for this machine only, and two for everybody.
    let running = start(server, &cases, false);
    let first = audit(server, &cases);
    recognised(&first, &cases);
    for case in &cases {
        let found = endpoint(&first, case.port);
        let verdict = if case.local { "local" } else { "exposed" };
        assert_eq!(found["verdict"], verdict, "{found}");
    }
    // Nobody is asked when that is not wanted.
    let silent = server
        .run(&[PORTCULLIS, "audit", "--json", "--no-probe"])
        .unwrap();
    let silent: Value = serde_json::from_str(&silent.stdout).unwrap();
    for case in &cases {
        let found = endpoint(&silent, case.port);
        assert!(
            found["version"].is_null() && found["confidence"] != "settled",
            "{found}"
        );
    }
    drop(running);
    // Ray's daemons have sessions of their own.
    let stop = server.command(&[&kit.venv("ray"), "stop", "--force"]);
    stop.timeout(START).run().unwrap();
    for case in &cases {
        let begun = Instant::now();
        while listens(server, case.port) {
            assert!(begun.elapsed() < START, "{} does not end", case.service);
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    // As people open them.
    let _running = start(server, &cases, true);
    let open = audit(server, &cases);
    recognised(&open, &cases);
    for case in &cases {
        let found = endpoint(&open, case.port);
        assert_eq!(found["verdict"], "exposed", "{found}");
        let outside = world.stranger.connect(address::SERVER, case.port, SOON);
        assert!(outside.unwrap(), "{}", case.service);
        let findings = open["findings"].as_array().unwrap();
        let said = findings.iter().any(|f| {
            let at = f["endpoint"]
                .as_str()
                .is_some_and(|e| e.ends_with(&format!(":{}", case.port)));
            at && f["id"] == "exposed-to-internet"
        });
        assert!(said, "{}", case.service);
    }

    // Mended, and what was open stays in use on the machine itself.
    let policy = kit.at("policy.toml");
    fs::write(
        &policy,
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n",
    )
    .unwrap();
    let apply = server
        .command(&[
            PORTCULLIS,
            "apply",
            "--policy",
            &policy,
            "--yes",
            "--i-have-a-console",
        ])
        .timeout(Duration::from_secs(240))
        .run()
        .unwrap();
    assert!(apply.success(), "{}{}", apply.stdout, apply.stderr);
    let closed = audit(server, &cases);
    recognised(&closed, &cases);
    for case in &cases {
        let found = endpoint(&closed, case.port);
        assert_ne!(found["verdict"], "exposed", "{found}");
        let outside = world.stranger.connect(address::SERVER, case.port, SOON);
        assert!(!outside.unwrap(), "{}", case.service);
    }
}
