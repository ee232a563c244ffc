//! Scripts between dumps of the rules.

use super::*;

const BARE: &str =
    "*filter\n:INPUT ACCEPT [7:70]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
const ON: &str = "\
*filter
:INPUT DROP [1:2]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-input - [0:0]
:ufw-user-input - [0:0]
[3:4] -A INPUT -j ufw-before-input
[0:0] -A FORWARD -j ufw-before-input
[0:0] -A OUTPUT -j ufw-before-input
[5:6] -A ufw-before-input -i lo -j ACCEPT
[0:0] -A ufw-before-input -j ufw-user-input
[0:0] -A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
";

/// The script from `now` back to `then`, without the frame of the table.
fn check(then: &str, now: &str, foreign_too: bool, script: &str) {
    let way = way_back(then, now, foreign_too);
    let found = way.script.unwrap_or_default();
    let found: Vec<&str> = found
        .lines()
        .filter(|line| !line.starts_with('*') && *line != "COMMIT")
        .collect();
    assert_eq!(found, script.lines().map(str::trim).collect::<Vec<_>>());
}

#[test]
fn the_same_is_left_alone() {
    check(ON, ON, false, "");
    check(BARE, BARE, true, "");
    // Counters are no difference.
    check(ON, &ON.replace("[3:4]", "[9:9]"), false, "");
}

#[test]
fn ufw_turned_on_is_taken_away() {
    check(
        BARE,
        ON,
        false,
        ":INPUT ACCEPT [1:2]
             :FORWARD ACCEPT [0:0]
             :ufw-before-input - [0:0]
             :ufw-user-input - [0:0]
             -D INPUT -j ufw-before-input
             -D FORWARD -j ufw-before-input
             -D OUTPUT -j ufw-before-input
             -X ufw-before-input
             -X ufw-user-input",
    );
    assert_eq!(way_back("", ON, false).empty_tables, ["filter"]);
    assert!(way_back(BARE, ON, false).empty_tables.is_empty());
}

#[test]
fn ufw_flushed_comes_back() {
    check(
        ON,
        BARE,
        false,
        ":INPUT DROP [7:70]
             :FORWARD DROP [0:0]
             :ufw-before-input - [0:0]
             :ufw-user-input - [0:0]
             [3:4] -I INPUT 1 -j ufw-before-input
             [0:0] -I FORWARD 1 -j ufw-before-input
             [0:0] -I OUTPUT 1 -j ufw-before-input
             [5:6] -A ufw-before-input -i lo -j ACCEPT
             [0:0] -A ufw-before-input -j ufw-user-input
             [0:0] -A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT",
    );
}

#[test]
fn only_the_changed_chain_is_rewritten() {
    let now = ON.replace("--dport 22 -j ACCEPT", "--dport 443 -j ACCEPT");
    check(
        ON,
        &now,
        false,
        ":ufw-user-input - [0:0]
             [0:0] -A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT",
    );
}

#[test]
fn what_docker_did_meanwhile_stays() {
    let docker = ON
        .replace(
            ":ufw-user-input",
            ":DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n:ufw-user-input",
        )
        .replace(
            "[0:0] -A FORWARD",
            "[0:0] -A FORWARD -j DOCKER-USER\n[0:0] -A FORWARD",
        )
        .replace("COMMIT", "[0:0] -A DOCKER-USER -j RETURN\nCOMMIT");
    let way = way_back(BARE, &docker, false);
    let script = way.script.unwrap();
    assert!(!script.contains("DOCKER"), "{script}");
    assert!(!script.contains(":FORWARD"), "{script}");
    assert_eq!(way.left.len(), 1);
    assert!(way.empty_tables.is_empty());
    // The same with UFW on before: nothing to do at all.
    check(ON, &docker, false, "");
}

#[test]
fn a_jump_goes_back_to_its_place() {
    let then = ON.replace(
        "[3:4] -A INPUT",
        "[0:0] -A INPUT -p tcp -m comment --comment \"a -j ufw-x b\" -j f2b\n[3:4] -A INPUT",
    );
    let now = then.replace("[3:4] -A INPUT -j ufw-before-input\n", "");
    check(&then, &now, false, "[3:4] -I INPUT 2 -j ufw-before-input");
    // Somebody put a rule in front meanwhile.
    let now = now.replace("[0:0] -A INPUT", "[0:0] -A INPUT -j new\n[0:0] -A INPUT");
    check(&then, &now, false, "[3:4] -I INPUT 3 -j ufw-before-input");
}

#[test]
fn foreign_rules_come_back_only_when_ufw_flushes_them() {
    let then = "*filter\n:INPUT ACCEPT [0:0]\n:f2b - [0:0]\n[1:1] -A INPUT -j f2b\n[2:2] -A f2b -j RETURN\nCOMMIT\n";
    let now = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n";
    check(then, now, false, "");
    check(
        then,
        now,
        true,
        ":f2b - [0:0]
             [1:1] -I INPUT 1 -j f2b
             [2:2] -A f2b -j RETURN",
    );
}

#[test]
fn hooks_are_seen() {
    let part = ufw_part(ON);
    assert!(part.chains && part.hooked);
    assert_eq!(part.input_policy, "DROP");
    assert_eq!(part.user_input, ["-p tcp -m tcp --dport 22 -j ACCEPT"]);
    let flushed = ON.replace("[3:4] -A INPUT -j ufw-before-input\n", "");
    assert!(!ufw_part(&flushed).hooked);
    let without = without_ufw(&flushed);
    assert!(
        !without.contains("ufw") && without.contains(":INPUT ACCEPT"),
        "{without}"
    );
}
