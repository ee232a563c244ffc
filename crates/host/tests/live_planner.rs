//! Plans made from a real host's facts, carried out with the real programs: then nothing is left to do.

#![allow(
    clippy::expect_used,
    reason = "a live test may panic: that is how it fails"
)]

use host::observe::{from_snapshot, observe, snapshot};
use lab::{Host, World, address};
use portcullis_core::host::Host as Facts;
use portcullis_core::plan::{Action, Plan, UfwAdd, UfwOp};
use portcullis_core::planner::{Options, describe, lint, make};
use portcullis_core::policy::Policy;
use std::time::Duration;

/// Where [`facts_are_complete`] leaves them.
const OUT: &str = "PORTCULLIS_TEST_FACTS";
const INSIDE: &str = "/tmp/portcullis-facts.json";

/// Run on this machine as a test, and inside the lab's hosts by the others.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn facts_are_complete() {
    let text = snapshot(&observe()).expect("a snapshot");
    if let Some(path) = std::env::var_os(OUT) {
        std::fs::write(path, text).expect("written");
    }
}

fn facts(server: &Host) -> Facts {
    let exe = std::env::current_exe().expect("a path");
    server
        .ok(&[
            "/usr/bin/env",
            &format!("{OUT}={INSIDE}"),
            &exe.display().to_string(),
            "--exact",
            "facts_are_complete",
            "--include-ignored",
        ])
        .expect("observes");
    from_snapshot(&server.read_text(INSIDE).expect("facts")).expect("facts")
}

fn words(rule: &UfwAdd) -> Vec<String> {
    let mut words = vec![rule.action.clone()];
    if let Some(interface) = &rule.interface {
        words.extend(["in".into(), "on".into(), interface.clone()]);
    }
    let from = rule.from.map_or("any".into(), |n| n.to_string());
    words.extend(["from".into(), from]);
    words.extend(["to", "any", "port"].map(String::from));
    words.extend([rule.port.to_string(), "proto".into(), rule.proto.clone()]);
    words
}

/// Carries a plan out, as far as a host without systemd goes.
fn carry_out(server: &Host, plan: &Plan) {
    let ufw = |words: Vec<String>| {
        let argv: Vec<String> = ["ufw".to_owned()].into_iter().chain(words).collect();
        server.ok(&argv).expect("ufw");
    };
    for change in &plan.changes {
        match &change.action {
            Action::WriteFile { path, content, .. } => {
                server.write(path, content).expect("written");
            }
            Action::Guard { .. } => {
                server
                    .ok(&["/usr/sbin/nft", "-f", "/etc/portcullis/guard.nft"])
                    .expect("the guard loads");
            }
            Action::Ufw { op } => match op {
                UfwOp::Default { direction, policy } => {
                    ufw(vec!["default".into(), policy.clone(), direction.clone()]);
                }
                UfwOp::Add { rule } => {
                    let mut all: Vec<String> =
                        rule.prepend.then(|| "prepend".into()).into_iter().collect();
                    all.extend(words(rule));
                    all.extend(["comment".into(), rule.comment.clone()]);
                    ufw(all);
                }
                UfwOp::Delete { rule } => {
                    let mut all = vec!["--force".into(), "delete".into()];
                    all.extend(words(rule));
                    ufw(all);
                }
                UfwOp::Enable {} => ufw(vec!["--force".into(), "enable".into()]),
                UfwOp::Reload {} => ufw(vec!["reload".into()]),
            },
            Action::CutConnections { .. } => {}
            other => panic!("not expected without systemd: {other:?}"),
        }
    }
}

fn commands(plan: &Plan) -> String {
    plan.changes
        .iter()
        .map(describe)
        .collect::<Vec<_>>()
        .join("\n")
}

/// One starting state, one policy: safe, settled after one apply. Gives `ufw status`.
#[track_caller]
fn settles(server: &Host, before: &[&str], policy: &Policy, options: &Options) -> String {
    server.ok(&["ufw", "--force", "reset"]).expect("ufw");
    for command in before {
        let argv: Vec<&str> = command.split(' ').collect();
        server.ok(&argv).expect("a starting state");
    }
    let seen = facts(server);
    let plan = make(&seen, policy, options).expect("a plan");
    assert_eq!(lint(&plan, &seen, false), vec![], "{}", commands(&plan));
    carry_out(server, &plan);
    let again = make(&facts(server), policy, options).expect("a second plan");
    assert!(
        again.is_empty(),
        "{before:?}; first\n{}\nthen\n{}\n{:?}",
        commands(&plan),
        commands(&again),
        again.notes
    );
    server.ok(&["ufw", "status"]).expect("ufw")
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn every_starting_state_of_ufw_settles_in_one_apply() {
    lab::require_root();
    let world = World::new("planner-ufw").expect("a world");
    let server = &world.server;
    let _sshd = server.sshd().expect("sshd");
    let _ollama = server
        .http_server("ollama", "0.0.0.0:11434", "Ollama is running")
        .expect("serves");
    let builtin = Policy::builtin();
    let calm = Options::default();
    let prune = Options {
        prune: true,
        ..calm
    };
    let states: [&[&str]; 11] = [
        &[],
        &["ufw allow 22/tcp", "ufw --force enable"],
        &["ufw allow 22", "ufw --force enable"],
        &["ufw allow OpenSSH", "ufw allow 443/tcp"],
        &[
            "ufw allow OpenSSH",
            "ufw limit 22/tcp",
            "ufw --force enable",
        ],
        &["ufw limit OpenSSH", "ufw allow 80,443/tcp"],
        &["ufw deny 443", "ufw allow ssh", "ufw --force enable"],
        &["ufw default allow incoming", "ufw default deny outgoing"],
        &[
            "ufw deny from 198.51.100.0/24",
            "ufw allow 22/tcp",
            "ufw allow 8080/tcp",
        ],
        &[
            "ufw allow 11434",
            "ufw allow in on eth1 to any port 22 proto tcp",
            "ufw --force enable",
        ],
        &["ufw allow 22", "ufw --force enable", "nft flush ruleset"],
    ];
    for before in states {
        // Pruning matters where there is something that the policy does not mention.
        let more = before
            .iter()
            .any(|c| c.contains("8080") || c.contains("11434"));
        for options in [calm, prune].into_iter().take(1 + usize::from(more)) {
            let status = settles(server, before, &builtin, &options);
            assert!(status.contains("Status: active"), "{status}");
            let bound = Duration::from_millis(700);
            assert!(
                world
                    .operator
                    .connect(address::SERVER, 22, bound)
                    .expect("a knock"),
                "{before:?}"
            );
            let open = world
                .stranger
                .connect(address::SERVER, 11434, bound)
                .expect("a knock");
            assert_eq!(open, before.contains(&"ufw allow 11434"), "{before:?}");
        }
    }
    for command in [
        "ufw --force reset",
        "ufw --force enable",
        "nft flush ruleset",
    ] {
        let argv: Vec<&str> = command.split(' ').collect();
        server.ok(&argv).expect("a starting state");
    }
    let refusal = make(&facts(server), &builtin, &calm).expect_err("refused");
    assert!(refusal.hint().contains("ufw disable"), "{refusal}");
    server.ok(&["ufw", "disable"]).expect("the hint works");
    settles(server, &[], &builtin, &calm);
    let zones = Policy::parse(
        "test",
        "version = 1\n[incoming]\ndefault = \"reject\"\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\nrate_limit = true\n\
         [[allow]]\nport = 8080\nfrom = \"lan\"\n[[allow]]\nport = 8081\nfrom = [\"192.168.1.7\", \"10.0.0.0/8\", \"2001:db8::/32\"]\n\
         [[allow]]\nport = 53\nproto = \"udp\"\nfrom = \"internet\"\n\
         [[service]]\nkind = \"ollama\"\nreach = [\"192.168.1.0/24\"]\n",
    )
    .expect("a policy");
    for before in [states[0], states[2], states[4]] {
        settles(server, before, &zones, &calm);
        // And back: what the other policy asked for goes, because portcullis wrote it.
        let seen = facts(server);
        let plan = make(&seen, &builtin, &calm).expect("a plan");
        carry_out(server, &plan);
        let status = server.ok(&["ufw", "status"]).expect("ufw");
        assert!(
            !status.contains("808") && !status.contains("53/udp"),
            "{status}"
        );
        assert!(
            make(&facts(server), &builtin, &calm)
                .expect("a plan")
                .is_empty()
        );
    }
    // `ufw limit` is what meets SSH first, in both families.
    let status = server.ok(&["ufw", "status", "numbered"]).expect("ufw");
    let first = status
        .lines()
        .find(|l| l.contains("22/tcp"))
        .unwrap_or_default();
    assert!(first.contains("LIMIT"), "{status}");
}

/// docker-ufw.md, case 30, on real UFW: the plan is refused, and its hint mends it.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn chains_without_jumps_are_refused_and_the_hint_mends_them() {
    lab::require_root();
    let world = World::new("planner-jumps").expect("a world");
    let server = &world.server;
    let _sshd = server.sshd().expect("sshd");
    for command in [
        "ufw allow 22/tcp",
        "ufw --force enable",
        "ufw disable",
        "iptables -F INPUT",
    ] {
        let argv: Vec<&str> = command.split(' ').collect();
        server.ok(&argv).expect("a starting state");
    }
    let refusal =
        make(&facts(server), &Policy::builtin(), &Options::default()).expect_err("refused");
    let hint = refusal.hint();
    // One command a line.
    let (_, commands) = hint.split_once(":\n").expect("commands");
    for command in commands.lines() {
        let argv: Vec<&str> = command.split_whitespace().collect();
        server.ok(&argv).expect("the hint works");
    }
    let plan = make(&facts(server), &Policy::builtin(), &Options::default()).expect("a plan");
    carry_out(server, &plan);
    let bound = Duration::from_secs(1);
    assert!(
        world
            .operator
            .connect(address::SERVER, 22, bound)
            .expect("a knock")
    );
    assert!(
        !world
            .operator
            .connect(address::SERVER, 8265, bound)
            .expect("a knock")
    );
}
