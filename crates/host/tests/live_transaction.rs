//! Transactions on real ufw, nftables and sshd: whatever happens, the machine is as before or as
//! planned, and the way back needs nobody.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod transact;

use lab::{World, address};
use std::time::{Duration, Instant};
use transact::{Machine, Plan, STATE, allow, default, enable, guard, remove, write};

const SOON: Duration = Duration::from_secs(1);

/// The guide's end state, by the mechanisms that need no systemd.
fn guide() -> Plan {
    Plan::new(vec![
        write("/etc/portcullis/sub/policy.toml", "version = 1\n", 0o600),
        write(
            "/etc/fail2ban/jail.d/portcullis.local",
            "[DEFAULT]\n",
            0o644,
        ),
        write("/etc/legal", "changed\n", 0o640),
        remove("/etc/motd"),
        allow("limit", 22),
        allow("allow", 443),
        default("incoming", "deny"),
        guard("tcp dport 11434 drop"),
        enable(),
    ])
}

fn prepared(name: &str) -> World {
    lab::require_root();
    let world = World::new(name).unwrap();
    world.server.write("/etc/legal", "before\n").unwrap();
    world.server.ok(&["chmod", "604", "/etc/legal"]).unwrap();
    world.server.ok(&["chown", "1:2", "/etc/legal"]).unwrap();
    world.server.write("/etc/motd", "hello\n").unwrap();
    world
}

/// Of the places to crash at, each one in `every`; all with `PORTCULLIS_SWEEP=all` in the environment.
fn sample(every: usize) -> usize {
    match std::env::var("PORTCULLIS_SWEEP") {
        Ok(value) if value == "all" => 1,
        _ => every,
    }
}

/// States that UFW may be in before.
const BEFORE: [(&str, &[&[&str]]); 5] = [
    ("never used", &[]),
    (
        "on",
        &[
            &["ufw", "allow", "22/tcp"],
            &["ufw", "allow", "8080/tcp"],
            &["ufw", "--force", "enable"],
        ],
    ),
    (
        "on, then off: empty chains linger",
        &[
            &["ufw", "allow", "22/tcp"],
            &["ufw", "--force", "enable"],
            &["ufw", "disable"],
        ],
    ),
    (
        "off, and somebody flushed INPUT: enabling it alone would lock out",
        &[
            &["ufw", "allow", "22/tcp"],
            &["ufw", "--force", "enable"],
            &["ufw", "disable"],
            &["iptables", "-F", "INPUT"],
        ],
    ),
    (
        "off, with rules of somebody else",
        &[
            &["iptables", "-N", "mine"],
            &[
                "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "25", "-j", "mine",
            ],
            &["iptables", "-A", "mine", "-j", "DROP"],
            &["nft", "add", "table", "inet", "theirs"],
        ],
    ),
];

#[test]
#[ignore = "live: run by cargo xtask test"]
fn unconfirmed_is_rolled_back_on_time() {
    for (name, setup) in BEFORE {
        let world = prepared("unconfirmed");
        for command in setup {
            world.server.ok(command).unwrap();
        }
        let before = world.server.state();
        let _sshd = world.server.sshd().unwrap();
        let before = if before == world.server.state() {
            before
        } else {
            world.server.state()
        };
        let window = Duration::from_millis(3000);
        let said = world.server.apply(&guide(), window, "");
        assert!(said.contains("AwaitingConfirm"), "{name}: {said}");
        let applied = Instant::now();
        assert_ne!(world.server.state(), before, "{name}");
        // The way in is open, the closed port is closed.
        assert!(
            world.operator.connect(address::SERVER, 22, SOON).unwrap(),
            "{name}"
        );
        let end = applied + window + Duration::from_secs(1);
        while !world
            .server
            .transact(&["history", STATE])
            .contains("RolledBack")
        {
            assert!(Instant::now() < end, "{name}: not rolled back in time");
            std::thread::sleep(Duration::from_millis(50));
        }
        transact::same(&world.server.state(), &before, name);
        assert!(
            world.operator.connect(address::SERVER, 22, SOON).unwrap(),
            "{name}"
        );
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn confirmed_stays_and_can_be_rolled_back_later() {
    let world = prepared("confirmed");
    let before = world.server.state();
    let said = world.server.apply(&guide(), Duration::from_secs(3), "");
    assert!(said.contains("AwaitingConfirm"), "{said}");
    let said = world.server.transact(&["confirm", STATE]);
    assert!(said.contains("somebody who has a console"), "{said}");
    let after = world.server.state();
    std::thread::sleep(Duration::from_secs(4));
    transact::same(
        &world.server.state(),
        &after,
        "confirmed, and the deadline passed",
    );
    // Applying the same again: the second is a transaction of its own that changes nothing.
    world
        .server
        .write("/etc/legal", "by somebody else\n")
        .unwrap();
    let said = world.server.transact(&["rollback", STATE, "keep"]);
    assert!(
        said.contains("changed since transaction 1: /etc/legal"),
        "{said}"
    );
    world.server.write("/etc/legal", "changed\n").unwrap();
    let said = world.server.transact(&["rollback", STATE, "keep"]);
    assert!(!said.contains("error"), "{said}");
    transact::same(
        &world.server.state(),
        &before,
        "rolled back after the confirmation",
    );
    let said = world.server.transact(&["rollback", STATE, "keep"]);
    assert!(said.contains("nothing to roll back"), "{said}");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_second_apply_is_told_of_the_first() {
    let world = prepared("second");
    world.server.apply(&guide(), Duration::from_secs(30), "");
    let said = world.server.apply(&guide(), Duration::from_secs(30), "");
    assert!(said.contains("transaction 1 still waits"), "{said}");
    let said = world.server.transact(&["rollback", STATE, "keep"]);
    assert!(said.contains("(TransactionId(1)"), "{said}");
    // A lock that is held names its holder.
    let plan = world.server.put(&guide());
    let holder = world
        .server
        .spawn(&["flock", &format!("{STATE}/lock"), "sleep", "30"])
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let said = world.server.transact(&["apply", &plan, STATE, "3000"]);
    assert!(said.contains("is changing this machine"), "{said}");
    drop(holder);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn killed_anywhere_is_recovered() {
    let world = prepared("killed");
    world.server.ok(&["ufw", "allow", "22/tcp"]).unwrap();
    let before = world.server.state();
    let said = world
        .server
        .apply(&guide(), Duration::from_secs(60), "count");
    let places = transact::places(&said);
    assert!(places > 40, "{said}");
    world.server.transact(&["rollback", STATE, "keep"]);
    transact::same(&world.server.state(), &before, "rolled back");
    for place in (1..=places).step_by(sample(6)) {
        let name = format!("killed at place {place} of {places}");
        world
            .server
            .apply(&guide(), Duration::from_secs(60), &format!("kill:{place}"));
        // The watchdog notices that the process is gone; recovery itself is killed twice first.
        for fault in ["kill:3", "kill:7"] {
            world.server.transact(&["recover", STATE, fault]);
        }
        // Killed behind the last change the transaction waits, as it should.
        if world
            .server
            .transact(&["history", STATE])
            .contains("Waiting")
        {
            world.server.transact(&["rollback", STATE, "keep"]);
        }
        world.server.transact(&["recover", STATE]);
        transact::same(&world.server.state(), &before, &name);
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_killed_apply_is_undone_without_help() {
    let world = prepared("alone");
    let before = world.server.state();
    let places = {
        let said = world
            .server
            .apply(&guide(), Duration::from_secs(60), "count");
        world.server.transact(&["rollback", STATE, "keep"]);
        transact::places(&said)
    };
    for place in [places / 3, places / 2, places - 4] {
        world
            .server
            .apply(&guide(), Duration::from_secs(60), &format!("kill:{place}"));
        let end = Instant::now() + Duration::from_secs(4);
        while !world
            .server
            .transact(&["history", STATE])
            .lines()
            .all(|line| line.contains("RolledBack"))
        {
            assert!(Instant::now() < end, "place {place}: not undone");
            std::thread::sleep(Duration::from_millis(100));
        }
        transact::same(&world.server.state(), &before, &format!("place {place}"));
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn an_error_anywhere_is_rolled_back() {
    let world = prepared("errors");
    let before = world.server.state();
    let said = world
        .server
        .apply(&guide(), Duration::from_secs(60), "count");
    let places = transact::places(&said);
    world.server.transact(&["rollback", STATE, "keep"]);
    for place in (1..=places).step_by(sample(9)) {
        for kind in ["fail", "full"] {
            let said = world.server.apply(
                &guide(),
                Duration::from_secs(60),
                &format!("{kind}:{place}"),
            );
            // One error in the rollback itself leaves it to be tried again.
            world.server.transact(&["recover", STATE]);
            if said.contains("AwaitingConfirm") {
                world.server.transact(&["rollback", STATE, "keep"]);
            }
            transact::same(
                &world.server.state(),
                &before,
                &format!("{kind} at place {place}: {said}"),
            );
        }
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn what_docker_did_meanwhile_stays() {
    let world = prepared("docker");
    world.server.apply(&guide(), Duration::from_secs(60), "");
    let docker = world.server.dockerd().unwrap();
    docker.import_web_image("web:1", "model").unwrap();
    docker.run("web", &["-p", "8090:80"], "web:1").unwrap();
    let docker_rules = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| line.contains("DOCKER") || line.contains("MASQUERADE"))
            .map(str::to_owned)
            .collect()
    };
    let there = docker_rules(&world.server.rules());
    assert!(there.len() > 5, "{there:?}");
    world.server.transact(&["rollback", STATE, "keep"]);
    let rules = world.server.rules();
    assert_eq!(docker_rules(&rules), there);
    assert!(!rules.contains("ufw"), "{rules}");
    assert!(!rules.contains("banned4"), "{rules}");
    assert!(world.stranger.connect(address::SERVER, 8090, SOON).unwrap());
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn only_a_new_connection_confirms() {
    let world = prepared("confirming");
    let sshd = world.server.sshd().unwrap();
    let plan = world.server.put(&guide());
    let exe = transact::exe();
    let both = format!("{exe} apply {plan} {STATE} 30000; {exe} confirm-here {STATE}");
    let output = world
        .operator
        .ssh(
            address::SERVER,
            &sshd.key,
            &["sh", "-c", &format!("'{both}'")],
        )
        .unwrap();
    assert!(output.stdout.contains("AwaitingConfirm"), "{output:?}");
    assert!(
        output.stdout.contains("was open before the changes"),
        "{output:?}"
    );
    let output = world
        .operator
        .ssh(address::SERVER, &sshd.key, &[&exe, "confirm-here", STATE])
        .unwrap();
    assert!(
        output
            .stdout
            .contains("a new SSH connection from 192.0.2.7"),
        "{output:?}"
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_plan_that_locks_out_whoever_is_connected_is_refused() {
    let world = prepared("lockout");
    let sshd = world.server.sshd().unwrap();
    let exe = transact::exe();
    let before = world.server.state();
    let check = |changes: Vec<serde_json::Value>, words: &str| {
        let plan = world.server.put(&Plan::new(changes));
        let output = world
            .operator
            .ssh(
                address::SERVER,
                &sshd.key,
                &[&exe, "apply", &plan, STATE, "30000"],
            )
            .unwrap();
        assert!(output.stdout.contains(words), "{output:?}");
        transact::same(&world.server.state(), &before, words);
    };
    check(
        vec![enable()],
        "would lock out whoever is connected: 192.0.2.7",
    );
    check(
        vec![allow("allow", 2222), enable()],
        "no rule would let it in",
    );
    // What the plan's words do not show, the rules show once they are in the kernel.
    let trap = guard("tcp dport 22 ip saddr 192.0.2.7 drop");
    check(
        vec![allow("allow", 22), trap, enable()],
        "everything was rolled back",
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_stale_plan_is_refused() {
    let world = prepared("stale");
    let hash = world.server.transact(&["facts"]);
    world.server.ok(&["ufw", "allow", "1234/tcp"]).unwrap();
    let mut plan = guide();
    plan.made_from(hash.trim());
    let before = world.server.state();
    let said = world.server.apply(&plan, Duration::from_secs(3), "");
    assert!(
        said.contains("has changed since the plan was made"),
        "{said}"
    );
    transact::same(&world.server.state(), &before, "stale");
    plan.made_from(world.server.transact(&["facts"]).trim());
    let said = world.server.apply(&plan, Duration::from_secs(3), "");
    assert!(said.contains("AwaitingConfirm"), "{said}");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn what_somebody_else_changes_during_an_apply_is_noticed() {
    let world = prepared("foreign");
    let before = world.server.state();
    let mut changes = vec![write("/etc/legal", "changed\n", 0o640)];
    changes.extend((0..8).map(|n| allow("allow", 9000 + n)));
    // The last one would write over what somebody else did, and hide it.
    changes.push(write("/etc/legal", "changed again\n", 0o640));
    let plan = world.server.put(&Plan::new(changes));
    let mut tool = world
        .server
        .spawn(&[&transact::exe(), "apply", &plan, STATE, "30000"])
        .unwrap();
    tool.wait_until("the second change", Duration::from_secs(60), |tool| {
        tool.log().contains("2/10")
    })
    .unwrap();
    world.server.write("/etc/legal", "theirs\n").unwrap();
    tool.wait(Duration::from_secs(120)).unwrap();
    let said = tool.log();
    assert!(
        said.contains("somebody else changed /etc/legal meanwhile"),
        "{said}"
    );
    // As before, and their version is kept.
    transact::same(&world.server.state(), &before, "foreign");
    let theirs = format!("{STATE}/tx/1/foreign/etc_legal");
    assert_eq!(world.server.read_text(&theirs).unwrap(), "theirs\n");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_change_that_fails_undoes_those_before_it() {
    let world = prepared("failing");
    let before = world.server.state();
    let check = |plan: Plan, words: &str| {
        let said = world.server.apply(&plan, Duration::from_secs(3), "");
        assert!(said.contains(words), "{said}");
        transact::same(&world.server.state(), &before, words);
    };
    // Found by the dry run.
    let bad = vec![allow("allow", 22), guard("tcp dport nonsense drop")];
    check(Plan::new(bad), "nothing was changed");
    // Found only when made: a file where a folder has to be.
    let bad = vec![
        allow("allow", 22),
        enable(),
        write("/etc/hostname/x", "no\n", 0o644),
    ];
    check(Plan::new(bad), "everything was rolled back");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn history_tells_of_an_apply_that_died_before_its_first_change_and_the_next_one_tidies_up() {
    let world = prepared("died-early");
    let before = world.server.state();
    // Behind its first record: no watchdog is there yet.
    let said = world
        .server
        .apply(&guide(), Duration::from_secs(600), "kill:2");
    assert!(said.contains("dying"), "{said}");
    let history = world.server.transact(&["history", STATE]);
    assert!(
        history.starts_with("1 Applying made 0 interrupted"),
        "{history}"
    );
    transact::same(&world.server.state(), &before, "nothing was changed");
    let said = world.server.apply(&guide(), Duration::from_secs(600), "");
    assert!(said.contains("Recovering"), "{said}");
    assert!(said.contains("AwaitingConfirm"), "{said}");
    let history = world.server.transact(&["history", STATE]);
    assert!(history.starts_with("1 RolledBack made 0"), "{history}");
    assert!(!history.contains("interrupted"), "{history}");
    world.server.transact(&["rollback", STATE, "keep"]);
    transact::same(&world.server.state(), &before, "rolled back");
}

/// UFW comes up without a rule for SSH.
fn shut() -> Plan {
    Plan::new(vec![allow("allow", 443), enable(), allow("allow", 8443)])
}

fn enters(world: &World) -> bool {
    let soon = Duration::from_millis(200);
    world.operator.connect(address::SERVER, 22, soon).unwrap()
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_disk_that_turns_read_only_does_not_keep_the_door_shut() {
    let world = prepared("read-only");
    let server = &world.server;
    let _sshd = server.sshd().unwrap();
    let folders = [STATE, "/etc"];
    server.ok(&["mkdir", "-p", "-m", "700", STATE]).unwrap();
    for folder in folders {
        server.ok(&["mount", "--bind", folder, folder]).unwrap();
    }
    let before = server.state();
    let plan = server.put(&shut());
    let said = server.transact(&["apply-anyway", &plan, STATE, "30000"]);
    assert!(said.contains("AwaitingConfirm"), "{said}");
    let end = Instant::now() + Duration::from_secs(30 + 1);
    for folder in folders {
        server
            .ok(&["mount", "-o", "remount,bind,ro", folder])
            .unwrap();
    }
    assert!(!enters(&world), "{said}");
    while !enters(&world) {
        assert!(Instant::now() < end, "still shut");
    }
    let history = server.transact(&["history", STATE]);
    assert!(history.contains("1 Waiting"), "{history}");
    // It is tried again until it can be recorded, and the files put back.
    for folder in folders {
        server
            .ok(&["mount", "-o", "remount,bind,rw", folder])
            .unwrap();
    }
    let end = Instant::now() + Duration::from_secs(30);
    while !server.transact(&["history", STATE]).contains("RolledBack") {
        assert!(Instant::now() < end, "not recorded");
        std::thread::sleep(Duration::from_millis(100));
    }
    transact::same(&server.state(), &before, "written again");
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_program_that_hangs_behind_its_dead_tool_does_not_keep_the_door_shut() {
    let world = prepared("hangs");
    let server = &world.server;
    let _sshd = server.sshd().unwrap();
    let before = server.state();
    // The real ufw, but for the one command behind the change that shuts the door.
    server
        .ok(&["cp", "-p", "/usr/sbin/ufw", "/var/log/ufw"])
        .unwrap();
    server
        .write(
            "/var/log/hanging",
            "#!/bin/sh\ncase \"$*\" in *8443*) sleep 1000 ;; esac\nexec /usr/bin/python3 /var/log/ufw \"$@\"\n",
        )
        .unwrap();
    server.ok(&["chmod", "755", "/var/log/hanging"]).unwrap();
    server
        .ok(&["mount", "--bind", "/var/log/hanging", "/usr/sbin/ufw"])
        .unwrap();
    let plan = server.put(&shut());
    let mut tool = server
        .spawn(&[&transact::exe(), "apply-anyway", &plan, STATE, "30000"])
        .unwrap();
    // Time for the changes, on a machine that does much else as well.
    tool.wait_until("the watchdog", Duration::from_secs(60), |tool| {
        tool.log().contains("fires_in: 30s")
    })
    .unwrap();
    let armed = Instant::now();
    tool.wait_until("the command that hangs", Duration::from_secs(60), |_| {
        server
            .run(&["pgrep", "-x", "-f", "sleep 1000"])
            .unwrap()
            .success()
    })
    .unwrap();
    assert!(!enters(&world), "{}", tool.log());
    tool.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    let end = armed + Duration::from_secs(30 + 1);
    while !enters(&world) {
        assert!(Instant::now() < end, "still shut");
    }
    let end = Instant::now() + Duration::from_secs(20);
    while !server.transact(&["history", STATE]).contains("RolledBack") {
        assert!(Instant::now() < end, "not rolled back");
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = tool.wait(Duration::from_secs(5));
    server.ok(&["umount", "/usr/sbin/ufw"]).unwrap();
    transact::same(&server.state(), &before, "the program was ended");
}
