//! systemd units, asked with one `systemctl show`.

use super::disk::Disk;
use super::gaps::{Gaps, words};
use crate::exec::Program;
use portcullis_core::catalog::{self, Loopback};
use portcullis_core::host::{Uncertain, Unit};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Units that matter whatever listens.
const UNITS: [&str; 16] = [
    "containerd.service",
    "docker.service",
    "docker.socket",
    "fail2ban.service",
    "firewalld.service",
    "netfilter-persistent.service",
    "nftables.service",
    "podman.service",
    "podman.socket",
    "portcullis-bridge-ollama.socket",
    "portcullis-guard.service",
    "portcullis-rollback.service",
    "ssh.service",
    "ssh.socket",
    "sshd.service",
    "ufw.service",
];

/// Where units and their drop-ins are (systemd.unit(5), "Unit File Load Path").
const FOLDERS: [&str; 13] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
];

/// Most units that are asked about.
const MAX_UNITS: usize = 1000;

/// Environment variables of which the value is kept, besides those of the catalog. Everything
/// else may be a secret and is never stored.
const KNOWN_KEYS: [&str; 3] = ["OLLAMA_HOST", "OLLAMA_ORIGINS", "LLAMA_ARG_HOST"];

/// What systemd told.
#[derive(Debug, Default)]
pub(super) struct Units {
    pub units: BTreeMap<String, Unit>,
    /// Listening sockets of `.socket` units.
    pub listens: Vec<Listen>,
}

/// A socket that systemd itself listens on for a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listen {
    pub unit: String,
    /// `None`: every address.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub stream: bool,
}

/// Whether systemd runs this host (sd_booted(3)).
pub(super) fn booted(disk: &Disk) -> bool {
    disk.path("/run/systemd/system").is_dir()
}

/// The units that matter, those in `more`, and all sockets.
pub(super) fn read(more: &BTreeSet<String>) -> (Units, Gaps) {
    let mut gaps = Gaps::default();
    let mut names: BTreeSet<&str> = UNITS.into();
    // The catalog knows many; each one that is not here would cost systemd a search of its folders.
    let here = files();
    names.extend(
        catalog::services()
            .iter()
            .flat_map(|service| &service.units)
            .map(String::as_str)
            .filter(|name| has_file(&here, name)),
    );
    names.extend(more.iter().map(String::as_str));
    names.retain(|name| is_unit_name(name));
    let program = Program::new("systemctl")
        .args(["show", "--no-pager"])
        .arg("--property=Id,LoadState,ActiveState,UnitFileState,FragmentPath,DropInPaths,Environment,EnvironmentFiles,ExecStart,Listen")
        .arg("--")
        .args(names.iter().take(MAX_UNITS))
        .arg("*.socket")
        .timeout(Duration::from_secs(5))
        .max_output(16 * 1024 * 1024);
    match program.run() {
        Ok(output) => (parse(&output.stdout_text()), gaps),
        Err(error) => {
            gaps.add("systemd units", words(&error), Uncertain::Names);
            (Units::default(), gaps)
        }
    }
}

/// Names in systemd's folders: units, links to units, folders of drop-ins.
fn files() -> BTreeSet<String> {
    FOLDERS
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Whether a unit, its template or a drop-in of either is among these names.
fn has_file(names: &BTreeSet<String>, unit: &str) -> bool {
    let there = |name: &str| names.contains(name) || names.contains(&format!("{name}.d"));
    let template = unit.split_once('@').and_then(|(name, instance)| {
        let (_, kind) = instance.rsplit_once('.')?;
        Some(format!("{name}@.{kind}"))
    });
    there(unit) || template.is_some_and(|template| there(&template))
}

/// As systemd.unit(5) has it; nothing that could be an option or a pattern.
fn is_unit_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    name.len() < 256 && !name.starts_with('-') && name.contains('.') && name.bytes().all(plain)
}

/// Blocks of `KEY=value`, one a unit, with blank lines between.
fn parse(text: &str) -> Units {
    let mut out = Units::default();
    for block in text.split("\n\n") {
        let mut name = String::new();
        let mut unit = Unit::default();
        let mut listens = Vec::new();
        let mut files = Vec::new();
        for line in block.lines() {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let value = value.trim();
            match key {
                "Id" => name = value.to_owned(),
                "LoadState" => unit.load = value.to_owned(),
                "ActiveState" => unit.active = value.to_owned(),
                "UnitFileState" => unit.enabled = value.to_owned(),
                "FragmentPath" => {
                    unit.fragment = Some(value.to_owned()).filter(|path| !path.is_empty());
                }
                "DropInPaths" => {
                    unit.drop_ins = value.split_whitespace().map(str::to_owned).collect();
                }
                "Environment" => unit.environment.extend(environment(value)),
                "EnvironmentFiles" => files.extend(environment_file(value)),
                "ExecStart" if unit.exec.is_none() => unit.exec = exec_path(value),
                "Listen" => listens.extend(listen(value)),
                _ => {}
            }
        }
        for path in files {
            // What a file sets wins over `Environment=` (systemd.exec(5)).
            if let Ok(Some(bytes)) = super::disk::read(path.as_ref(), super::disk::SETTINGS) {
                let text = String::from_utf8_lossy(&bytes);
                unit.environment
                    .extend(text.lines().filter_map(assignment_line));
            }
        }
        if name.ends_with(".service") && unit.load == "loaded" {
            let own = unit.fragment.iter().chain(&unit.drop_ins);
            unit.start = super::start::start(own.map(String::as_str));
        }
        let there = unit.load != "not-found"
            || !matches!(unit.active.as_str(), "inactive" | "")
            || !unit.drop_ins.is_empty();
        if name.is_empty() || !there {
            continue;
        }
        if unit.active == "active" {
            out.listens.extend(listens.into_iter().map(|listen| Listen {
                unit: name.clone(),
                ..listen
            }));
        }
        let of_interest = !name.ends_with(".socket")
            || UNITS.contains(&name.as_str())
            || out.listens.iter().any(|listen| listen.unit == name);
        if of_interest {
            out.units.insert(name, unit);
        }
    }
    out
}

fn is_known(key: &str) -> bool {
    KNOWN_KEYS.contains(&key)
        || catalog::services().iter().any(|service| {
            matches!(&service.loopback, Some(Loopback::Environment { key: known, .. }) if known == key)
        })
}

/// The known variables of `A=b "C=d e" F=$'g\n'`.
fn environment(value: &str) -> Vec<(String, String)> {
    split_quoted(value)
        .iter()
        .filter_map(|word| word.split_once('='))
        .filter(|(key, _)| is_known(key))
        .map(|(key, value)| (key.to_owned(), bounded(value)))
        .collect()
}

/// A line of an environment file.
fn assignment_line(line: &str) -> Option<(String, String)> {
    let (key, value) = line.trim().split_once('=')?;
    let key = key.trim();
    is_known(key).then(|| {
        let value = split_quoted(value).join(" ");
        (key.to_owned(), bounded(&value))
    })
}

fn bounded(value: &str) -> String {
    value.chars().take(1024).collect()
}

/// Words as systemd quotes them in `show`: double or single quotes, `$'…'`, backslash escapes.
fn split_quoted(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut inside = false;
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, ' ' | '\t') => {
                if inside {
                    words.push(std::mem::take(&mut word));
                }
                inside = false;
            }
            (None, '$') if chars.peek() == Some(&'\'') => {}
            (None, '"' | '\'') => {
                quote = Some(c);
                inside = true;
            }
            (Some(open), _) if c == open => quote = None,
            (_, '\\') => {
                inside = true;
                match chars.next() {
                    Some('n') => word.push('\n'),
                    Some('t') => word.push('\t'),
                    Some(other) => word.push(other),
                    None => {}
                }
            }
            _ => {
                inside = true;
                word.push(c);
            }
        }
    }
    if inside {
        words.push(word);
    }
    words
}

/// `/etc/default/ollama (ignore_errors=yes)`
fn environment_file(value: &str) -> Option<String> {
    let path = value.split(" (ignore_errors=").next()?.trim();
    path.starts_with('/').then(|| path.to_owned())
}

/// `{ path=/usr/bin/ollama ; argv[]=… ; … }`: the path.
fn exec_path(value: &str) -> Option<String> {
    let rest = value.split_once("path=")?.1;
    let path = rest.split(" ;").next()?.trim();
    (!path.is_empty()).then(|| path.to_owned())
}

/// `[::]:22 (Stream)`, `0.0.0.0:22 (Stream)`, `/run/x.sock (Stream)`; a port alone is shown as
/// `[::]:22`, which takes both families unless BindIPv6Only says otherwise.
fn listen(value: &str) -> Option<Listen> {
    let (address, kind) = value.rsplit_once(' ')?;
    let stream = match kind {
        "(Stream)" => true,
        "(Datagram)" => false,
        _ => return None,
    };
    let (host, port) = address.rsplit_once(':')?;
    // `[fe80::1%eth0]:22`
    let host = host.trim_matches(['[', ']']).split('%').next()?;
    let address: IpAddr = host.parse().ok()?;
    Some(Listen {
        unit: String::new(),
        address: (address != IpAddr::V6(Ipv6Addr::UNSPECIFIED)).then_some(address),
        port: port.parse().ok()?,
        stream,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_with_a_file_a_template_or_a_drop_in_are_asked_about() {
        let names = ["ollama.service", "vllm@.service", "tgi.service.d"]
            .map(str::to_owned)
            .into();
        let check = |unit: &str, there: bool| assert_eq!(has_file(&names, unit), there, "{unit}");
        check("ollama.service", true);
        check("vllm@a.b.service", true);
        check("tgi.service", true);
        check("caddy.service", false);
        check("vllm.service", false);
    }

    #[test]
    fn show() {
        let text = "\
ExecStart={ path=/usr/local/bin/ollama ; argv[]=/usr/local/bin/ollama serve ; ignore_errors=no ; pid=1 }
Environment=PATH=/usr/bin OLLAMA_HOST=0.0.0.0:11434 \"OLLAMA_ORIGINS=a b\" OPENAI_API_KEY=sk-secret
Id=ollama.service
LoadState=loaded
ActiveState=active
FragmentPath=/etc/systemd/system/ollama.service
DropInPaths=/etc/systemd/system/ollama.service.d/a.conf /run/x.conf
UnitFileState=enabled

Id=vllm.service
LoadState=not-found
ActiveState=inactive
FragmentPath=
UnitFileState=
DropInPaths=

Listen=[::]:22 (Stream)
Listen=127.0.0.1:2222 (Stream)
Listen=/run/x (Stream)
Id=ssh.socket
LoadState=loaded
ActiveState=active
UnitFileState=enabled

Listen=/run/dbus (Stream)
Id=dbus.socket
LoadState=loaded
ActiveState=active
";
        let units = parse(text);
        let names: Vec<_> = units.units.keys().map(String::as_str).collect();
        assert_eq!(names, ["ollama.service", "ssh.socket"]);
        let ollama = &units.units["ollama.service"];
        assert_eq!(
            ollama,
            &Unit {
                load: "loaded".to_owned(),
                active: "active".to_owned(),
                enabled: "enabled".to_owned(),
                fragment: Some("/etc/systemd/system/ollama.service".to_owned()),
                drop_ins: vec![
                    "/etc/systemd/system/ollama.service.d/a.conf".to_owned(),
                    "/run/x.conf".to_owned()
                ],
                environment: [
                    ("OLLAMA_HOST".to_owned(), "0.0.0.0:11434".to_owned()),
                    ("OLLAMA_ORIGINS".to_owned(), "a b".to_owned())
                ]
                .into(),
                exec: Some("/usr/local/bin/ollama".to_owned()),
                start: None,
            }
        );
        let listens: Vec<_> = units
            .listens
            .iter()
            .map(|l| (l.unit.as_str(), l.address.map(|a| a.to_string()), l.port))
            .collect();
        assert_eq!(
            listens,
            [
                ("ssh.socket", None, 22),
                ("ssh.socket", Some("127.0.0.1".to_owned()), 2222)
            ]
        );
    }

    fn check(text: &str, words: &[&str]) {
        assert_eq!(split_quoted(text), words, "{text}");
    }

    #[test]
    fn quoting() {
        check("", &[]);
        check("A=b  C=d", &["A=b", "C=d"]);
        check("\"A=b c\" $'D=\\'e\\n' F=\"\"", &["A=b c", "D='e\n", "F="]);
        check("A=\\", &["A="]);
        check("\"open", &["open"]);
    }

    #[test]
    fn names_that_could_be_options_or_patterns_are_not_asked() {
        for name in [
            "-x.service",
            "a*.service",
            "a b.service",
            "noext",
            "a?.service",
            "a/b.service",
        ] {
            assert!(!is_unit_name(name), "{name}");
        }
        for name in ["a@b\\x2dc.service", "docker-0a.scope"] {
            assert!(is_unit_name(name), "{name}");
        }
    }

    #[test]
    fn environment_files() {
        assert_eq!(
            environment_file("/etc/default/ollama (ignore_errors=yes)").as_deref(),
            Some("/etc/default/ollama")
        );
        assert_eq!(
            assignment_line(" OLLAMA_HOST = \"0.0.0.0\" "),
            Some(("OLLAMA_HOST".to_owned(), "0.0.0.0".to_owned()))
        );
        assert_eq!(assignment_line("TOKEN=x"), None);
        assert_eq!(assignment_line("# OLLAMA_HOST=x"), None);
    }
}
