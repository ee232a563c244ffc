//! Compose files: what is changed, what is left alone, and that nothing else changes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use portcullis_core::compose::{Edit, Entry, LARGEST, apply, entries};
use proptest::prelude::*;

fn service(ports: &str) -> String {
    format!(
        "# the shop\nname: shop\nservices:\n  web:   # front\n    image: 'nginx:1'\n    ports:\n{ports}\n    restart: always\n"
    )
}

fn edits(entries: &[Entry]) -> Vec<Edit> {
    entries.iter().filter_map(|e| e.change.clone()).collect()
}

/// One entry in block style: what it becomes, or why it is left.
#[track_caller]
fn check(written: &str, expect: Result<&str, &str>) {
    let text = service(&format!("      - {written}  # why"));
    let found = entries(&text).unwrap();
    assert_eq!(found.len(), 1, "{written}");
    match (&found[0].change, expect) {
        (Some(_), Ok(new)) => {
            let after = apply(&text, &edits(&found)).unwrap();
            assert_eq!(after, service(&format!("      - {new}  # why")));
            let again = entries(&after).unwrap();
            assert!(again[0].host_ip.unwrap().is_loopback());
            assert_eq!(edits(&again), [], "a second time there is nothing to do");
            let same = |e: &Entry| (e.proto, e.published, e.target);
            assert_eq!(same(&again[0]), same(&found[0]));
        }
        (None, Ok("")) => assert_eq!(found[0].left, None, "{written}"),
        (None, Err(why)) => {
            let left = found[0].left.clone().unwrap_or_default();
            assert!(left.contains(why), "{written}: {left}");
        }
        (got, _) => panic!("{written}: {got:?}, {:?}", found[0]),
    }
}

#[test]
fn the_short_form() {
    check("11434:11434", Ok("\"127.0.0.1:11434:11434\""));
    check("\"8080:80\"", Ok("\"127.0.0.1:8080:80\""));
    check("'8080:80'", Ok("'127.0.0.1:8080:80'"));
    check("\"0.0.0.0:8080:80\"", Ok("\"127.0.0.1:8080:80\""));
    check("\"[::]:8080:80\"", Ok("\"127.0.0.1:8080:80\""));
    check("192.168.1.5:8080:80", Ok("\"127.0.0.1:8080:80\""));
    check("\"53:53/udp\"", Ok("\"127.0.0.1:53:53/udp\""));
    check("\"8000-8010:80-90\"", Ok("\"127.0.0.1:8000-8010:80-90\""));
    check("3000", Ok("\"127.0.0.1::3000\""));
    check("\"3000-3005\"", Ok("\"127.0.0.1::3000-3005\""));
    // There already.
    check("\"127.0.0.1:8080:80\"", Ok(""));
    check("127.0.0.1:8080:80", Ok(""));
    check("\"[::1]:8080:80\"", Ok(""));
    check("127.0.0.2::80", Ok(""));
}

#[test]
fn what_is_not_plainly_understood_is_left_alone() {
    check("\"${PORT}:80\"", Err("variables"));
    check("\"${BIND:-0.0.0.0:8080}:80\"", Err("variables"));
    check("$PORT:80", Err("variables"));
    check("\"80:80/quic\"", Err("protocol"));
    check("\"0:80\"", Err("ports"));
    check("\"80:99999\"", Err("ports"));
    check("\"90-80:80\"", Err("ports"));
    check("\"+80:80\"", Err("ports"));
    check("\"a:b\"", Err("ports"));
    check("\"example.org:80:80\"", Err("address"));
    check("\"::1:80:80\"", Err("ports"));
    check("\"8080\\x3a80\"", Err("unusual"));
    check("!!str 8080:80", Err("tag"));
    check("!override 8080:80", Err("tag"));
    check("[8080, 80]", Err("list"));
}

#[test]
fn the_long_form_gets_a_line() {
    let text = service(
        "      - target: 80   # inside\n        published: \"8080\"\n        protocol: tcp",
    );
    let found = entries(&text).unwrap();
    assert_eq!(
        (found[0].published, found[0].target),
        (Some((8080, 8080)), (80, 80))
    );
    let after = apply(&text, &edits(&found)).unwrap();
    assert_eq!(
        after,
        service(
            "      - host_ip: 127.0.0.1\n        target: 80   # inside\n        published: \"8080\"\n        protocol: tcp"
        )
    );
    assert_eq!(edits(&entries(&after).unwrap()), []);

    let text = service("      - {target: 80, published: 8080}");
    let after = apply(&text, &edits(&entries(&text).unwrap())).unwrap();
    assert_eq!(
        after,
        service("      - {host_ip: 127.0.0.1, target: 80, published: 8080}")
    );

    let text =
        service("      - host_ip: 0.0.0.0 # all\n        target: 80\n        published: 8080");
    let after = apply(&text, &edits(&entries(&text).unwrap())).unwrap();
    assert_eq!(
        after,
        service(
            "      - host_ip: \"127.0.0.1\" # all\n        target: 80\n        published: 8080"
        )
    );

    let text = service("      - target: 80\n        published: ${PORT}");
    assert_eq!(edits(&entries(&text).unwrap()), []);
}

#[test]
fn flow_style_several_services_and_line_ends() {
    let text = "services: {a: {ports: [\"80:80\", '81:81']}, b: {ports: [82:82]}}\r\n# end\r\n";
    let found = entries(text).unwrap();
    let after = apply(text, &edits(&found)).unwrap();
    assert_eq!(
        after,
        "services: {a: {ports: [\"127.0.0.1:80:80\", '127.0.0.1:81:81']}, b: {ports: [\"127.0.0.1:82:82\"]}}\r\n# end\r\n"
    );
    // Only some of them.
    let after = apply(text, &edits(&found)[1..2]).unwrap();
    assert_eq!(after.matches("127.0.0.1").count(), 1);
    let windows = service("      - target: 80\n        published: 1").replace('\n', "\r\n");
    let after = apply(&windows, &edits(&entries(&windows).unwrap())).unwrap();
    assert!(!after.replace("\r\n", "").contains('\n'), "{after:?}");
    // Text that is not ASCII before the place.
    let text = service("      - \"80:80\"").replace("# the shop", "# der Läden 店 🚪");
    let after = apply(&text, &edits(&entries(&text).unwrap())).unwrap();
    assert_eq!(after, text.replace("\"80:80\"", "\"127.0.0.1:80:80\""));
}

#[test]
fn what_an_anchor_shares_is_left_alone() {
    let shared =
        "x-ports: &p\n  - \"80:80\"\nservices:\n  a:\n    ports: *p\n  b:\n    ports: *p\n";
    let found = entries(shared).unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|e| e.change.is_none() && e.left.is_some()));
    let merged = "services:\n  a: &a\n    ports: [\"80:80\"]\n  b:\n    <<: *a\n    image: x\n";
    let found = entries(merged).unwrap();
    assert!(
        found[0].left.as_ref().unwrap().contains("anchor"),
        "{found:?}"
    );
    // An anchor that nobody uses shares nothing.
    let alone = "services:\n  a: &a\n    ports: &b [\"80:80\"]\n";
    assert_eq!(edits(&entries(alone).unwrap()).len(), 1);
    let item = "services:\n  a:\n    ports: [&one \"80:80\"]\n  b:\n    ports: [*one]\n";
    assert_eq!(edits(&entries(item).unwrap()), []);
}

#[test]
fn hostile_files_are_refused() {
    let refused = |text: &str, why: &str| {
        let error = entries(text).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    refused("", "empty");
    refused("- a\n", "no mapping");
    refused("services: []\n", "no mapping");
    refused("a: [\n", "no YAML");
    refused("services:\n\ta: b\n", "no YAML");
    refused("services: {a: {ports: [1], ports: [2]}}", "twice");
    refused("services: {a: {}, a: {}}", "twice");
    refused("services: {}\nservices: {}", "twice");
    refused(
        "services: {}\n---\nservices: {}\n",
        "more than one document",
    );
    refused(&"[".repeat(5000), "");
    refused(&format!("{}{}", "[".repeat(100), "]".repeat(100)), "deep");
    refused(&"#".repeat(LARGEST + 1), "larger");
    let mut laughs = "a: &a [x,x,x,x,x,x,x,x]\n".to_owned();
    for c in 'b'..='z' {
        let before = (c as u8 - 1) as char;
        laughs.push_str(&format!(
            "{c}: &{c} [*{before},*{before},*{before},*{before}]\n"
        ));
    }
    assert_eq!(entries(&laughs).unwrap(), []);
}

#[test]
fn a_file_that_changed_since_is_not_touched() {
    let text = service("      - \"80:80\"");
    let planned = edits(&entries(&text).unwrap());
    for other in [
        service("      - \"81:80\""),
        service("      - \"127.0.0.1:80:80\""),
        format!("# one line more\n{text}"),
        String::new(),
    ] {
        assert!(apply(&other, &planned).is_err(), "{other}");
    }
    let mut forged = planned.clone();
    forged[0].new = "\"80:80\"\n    privileged: true".into();
    assert!(apply(&text, &forged).is_err());
    let twice = [planned.clone(), planned].concat();
    assert!(apply(&text, &twice).is_err());
}

proptest! {
    /// Whatever the text: no panic, and a change that is made changes nothing else.
    #[test]
    fn any_text_is_survived(text in "[ \\-:\\[\\]{}&*!|>'\"#a-c0-9.,\n$/<\t\r%@`é]{0,200}") {
        if let Ok(found) = entries(&text) {
            let _ = apply(&text, &edits(&found));
        }
    }

    #[test]
    fn any_ports_in_a_file_like_people_have(
        ports in proptest::collection::vec(("[0-9.:/a-z$\\[\\]-]{1,24}", 0..4u8), 1..6),
    ) {
        let lines: Vec<String> = ports
            .iter()
            .map(|(text, style)| match style {
                0 => format!("      - {text}"),
                1 => format!("      - \"{text}\" # {text}"),
                2 => format!("      - '{text}'"),
                _ => format!("      - target: {text}\n        published: {text}"),
            })
            .collect();
        let text = service(&lines.join("\n"));
        if let Ok(found) = entries(&text) {
            let wanted = edits(&found);
            if let Ok(after) = apply(&text, &wanted) {
                prop_assert_eq!(edits(&entries(&after).unwrap()), []);
                prop_assert!(after.ends_with("    restart: always\n"));
            } else {
                prop_assert!(wanted.is_empty(), "refused its own change of {}", text);
            }
        }
    }
}
