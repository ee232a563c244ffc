//! `portcullis catalog`, and the files of a user on top of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use assert_cmd::Command;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("portcullis")
        .unwrap()
        .args(arguments)
        .arg("--catalog-dir")
        .arg(folder)
        .output()
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

const OWN: &str = "id = 'our-thing'\nname = 'Our thing'\nkind = 'inference'\nports = [4711]\ndanger = 'high'\nrisk = 'use it'\nconfidence = 'docs'\nchecked = '2026-01-31'\nsources = ['https://wiki.example']\n";

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    folder
}

#[test]
fn every_service_has_sources_and_a_date() {
    let none = Path::new("/nonexistent");
    let (code, out, _) = run(none, &["catalog", "--json"]);
    assert_eq!(code, 0);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["schema"], 1);
    let services = json["services"].as_array().unwrap();
    assert!(services.len() >= 60, "{}", services.len());
    for service in services {
        assert!(
            !service["sources"].as_array().unwrap().is_empty(),
            "{service}"
        );
        assert_eq!(service["checked"].as_str().unwrap().len(), 10, "{service}");
    }
    let (code, out, _) = run(none, &["catalog"]);
    assert_eq!(code, 0);
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
    let (code, out, _) = run(none, &["catalog", "Ollama"]);
    assert_eq!(code, 0);
    for part in [
        "OLLAMA_HOST=127.0.0.1:11434",
        "POST /api/pull",
        "CVE-2024-37032",
        "2026-11-22",
    ] {
        assert!(out.contains(part), "{part} in {out}");
    }
}

#[test]
fn a_name_that_is_not_there_gets_a_hint() {
    let (code, out, err) = run(Path::new("/nonexistent"), &["catalog", "llama"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        err.contains("perhaps: llama-cpp, llama-cpp-python"),
        "{err}"
    );
}

#[test]
fn files_of_the_user_count() {
    let own = folder(&[("our.toml", OWN), ("README", "not read")]);
    let (code, out, err) = run(own.path(), &["catalog", "our-thing"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.contains("4711") && out.contains("https://wiki.example"),
        "{out}"
    );
    let more = folder(&[("a.toml", "id = 'ollama'\nextend = true\nports = [11500]\n")]);
    let (_, out, _) = run(more.path(), &["catalog", "ollama", "--json"]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        json["services"][0]["ports"],
        serde_json::json!([11434, 11500])
    );
}

#[test]
fn a_bad_file_stops_everything_but_undoing() {
    let bad = folder(&[("bad.toml", "id = 'x'\nname = \u{1b}[31m")]);
    for command in [&["catalog"][..], &["audit", "--json"], &["plan"]] {
        let (code, out, err) = run(bad.path(), command);
        assert_eq!((code, out.as_str()), (2, ""), "{command:?}");
        assert!(err.contains("bad.toml") && err.contains("do: "), "{err}");
        assert!(!err.contains('\u{1b}'), "{err}");
    }
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let (_, _, err) = run(bad.path(), &["history", "--state-dir", state]);
    assert!(!err.contains("bad.toml"), "{err}");
}

#[test]
fn a_file_that_others_may_change_is_refused() {
    let open = folder(&[("our.toml", OWN)]);
    let path = open.path().join("our.toml");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (code, _, err) = run(open.path(), &["catalog"]);
    assert_eq!(code, 2);
    assert!(err.contains("chmod go-w"), "{err}");
}
