//! The whole test run.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::{describe, packages, purity};

struct Step {
    name: &'static str,
    took: Duration,
    result: Result<(), String>,
}

/// Runs every step, also after one has failed, so that one run shows all; without the packages there is no point.
pub(crate) fn run(threads: u8) -> Result<(), String> {
    lab::need_root().map_err(|error| {
        format!("{error}; `cargo xtask test` is for root, `cargo test` for everybody else")
    })?;
    let mut steps = Vec::new();
    step(&mut steps, "Debian packages", packages::ensure);
    if steps.iter().all(|step| step.result.is_ok()) {
        step(&mut steps, "pure crates", purity::check);
        step(&mut steps, "cargo test", || {
            cargo(&["test", "--workspace", "--no-fail-fast"])
        });
        // Live tests outside the binary's own crate run it from the target folder.
        step(&mut steps, "build portcullis", || {
            cargo(&["build", "--package", "portcullis"])
        });
        step(&mut steps, "Debian images", || {
            use lab::Release::{Bookworm, Sid, Trixie};
            for (release, docker, podman) in [
                (Bookworm, false, false),
                (Bookworm, true, false),
                (Trixie, true, false),
                (Trixie, false, true),
                (Sid, true, false),
            ] {
                let image = lab::Image {
                    release,
                    protection: true,
                    docker,
                    podman,
                };
                image
                    .ensure(&mut |line| println!("lab: {line}"))
                    .map_err(describe)?;
            }
            Ok(())
        });
        step(&mut steps, "live tests", || {
            let threads = format!("--test-threads={threads}");
            cargo(&[
                "test",
                "--workspace",
                "--no-fail-fast",
                "--test",
                "live_*",
                "--",
                "--ignored",
                &threads,
            ])
        });
        step(&mut steps, "nothing left behind", nothing_left);
    }
    summary(&steps)
}

/// The tests with real AI servers: gigabytes to install and minutes to start, so apart from the others.
pub(crate) fn services() -> Result<(), String> {
    lab::need_root().map_err(|error| error.to_string())?;
    let mut steps = Vec::new();
    step(&mut steps, "Debian packages", packages::ensure_for_servers);
    step(&mut steps, "AI servers", || {
        for server in lab::Server::ALL {
            server
                .ensure(&mut |line| println!("lab: {line}"))
                .map_err(describe)?;
        }
        Ok(())
    });
    step(&mut steps, "tests", || {
        let mut all = vec!["test", "--package", "portcullis", "--no-fail-fast"];
        all.extend(["--test", "real_services", "--test", "real_services_machine"]);
        all.extend(["--", "--ignored", "--test-threads=1"]);
        cargo(&all)
    });
    summary(&steps)
}

fn step(steps: &mut Vec<Step>, name: &'static str, work: impl FnOnce() -> Result<(), String>) {
    println!("\nxtask: == {name} ==");
    let start = Instant::now();
    let result = work();
    if let Err(error) = &result {
        eprintln!("xtask: {name}: {error}");
    }
    steps.push(Step {
        name,
        took: start.elapsed(),
        result,
    });
}

fn cargo(arguments: &[&str]) -> Result<(), String> {
    let mut command: Command = purity::cargo();
    let status = command
        .args(arguments)
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("cargo {} ended with {status}", arguments.join(" ")))
    }
}

/// The tests' hosts are gone. Labs of other processes that still run are theirs.
fn nothing_left() -> Result<(), String> {
    let dead = lab::reap().map_err(describe)?;
    if dead.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "a test left its lab behind (removed now): {}",
            dead.join(", ")
        ))
    }
}

fn summary(steps: &[Step]) -> Result<(), String> {
    println!("\nxtask: summary");
    for step in steps {
        let word = if step.result.is_ok() { "ok" } else { "FAILED" };
        println!(
            "  {word:<7} {:>7.1} s  {}",
            step.took.as_secs_f32(),
            step.name
        );
    }
    let failed: Vec<&str> = steps
        .iter()
        .filter(|step| step.result.is_err())
        .map(|step| step.name)
        .collect();
    if failed.is_empty() {
        println!("xtask: all green");
        Ok(())
    } else {
        Err(format!("failed: {}", failed.join(", ")))
    }
}
