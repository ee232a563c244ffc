//! Hosts in network namespaces, with UFW and Docker, and what the audit says next to what a knock finds.

use super::{PORTCULLIS_HERE as PORTCULLIS, check, own, says_open};
use lab::{Docker, Host, World};
use std::net::IpAddr;
use std::time::Duration;

pub fn audit(server: &Host) -> serde_json::Value {
    let output = server
        .command(&[PORTCULLIS, "audit", "--json"])
        .timeout(Duration::from_secs(60))
        .run()
        .unwrap();
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{}", output.stdout, output.stderr))
}

pub fn apply(server: &Host) {
    apply_with(server, &[]);
}

/// Applies with more options, and gives what was said.
pub fn apply_with(server: &Host, options: &[&str]) -> String {
    let mut argv = vec![PORTCULLIS, "apply", "--yes", "--i-have-a-console"];
    argv.extend(options);
    let output = super::in_time(|| {
        let command = server.command(&argv);
        command.timeout(Duration::from_secs(120)).run().unwrap()
    });
    assert!(output.success(), "{}{}", output.stdout, output.stderr);
    output.stdout + &output.stderr
}

pub fn shell(host: &Host, commands: &[&str]) {
    for command in commands {
        let argv: Vec<&str> = command.split(' ').collect();
        host.ok(&argv).unwrap_or_else(|e| panic!("{command}: {e}"));
    }
}

/// A knock, next to what the audit says of it.
#[track_caller]
pub fn truth(world: &World, who: &Host, to: IpAddr, port: u16, open: bool, case: &str) {
    check(who, to, port, open, case);
    let audit = audit(&world.server);
    // From an interface that no zone is about there is nothing to compare.
    let said = says_open(&audit, to, port, own(who, to));
    assert!(
        said.is_none_or(|said| said == open),
        "{case}: the audit says {said:?}, the knock {open}"
    );
}

/// UFW on, and Docker: 11434 and 9999, both to port 80 of their container.
pub fn docker_world(name: &str, daemon: &[&str]) -> (World, Docker) {
    lab::require_root();
    let world = World::new(name).unwrap();
    let docker = world.server.dockerd_with(daemon).unwrap();
    docker.import_web_image("web:1", "model").unwrap();
    shell(&world.server, &["ufw allow 22/tcp", "ufw --force enable"]);
    (world, docker)
}
