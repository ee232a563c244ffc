//! Files of the catalog: read, checked, put together.

use super::service::{Kind, Service};
use super::within;
use serde::Serialize;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// The embedded files: name and text.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/catalog.rs"));
/// The same as one JSON array, in the same order: it is read at each start, and JSON reads several times faster.
const JSON: &str = include_str!(concat!(env!("OUT_DIR"), "/catalog.json"));

/// What is wrong with a file of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The file.
    pub file: String,
    /// What, with line and column where the text itself is at fault.
    pub what: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.file, self.what)
    }
}

impl std::error::Error for Fault {}

/// The embedded services, by id.
pub(super) fn builtin() -> Vec<Service> {
    match serde_json::from_str(JSON) {
        Ok(services) => services,
        // The text is a constant of this program and the test `every_file_is_sound` reads it.
        Err(_) => unreachable!("the embedded catalog is sound"),
    }
}

/// The embedded catalog with the files of a user on top: (name, text), in the order in which they count.
///
/// A file with an id of its own adds a service; with a known one it replaces that; and with `extend = true` it changes
/// only what it names: lists grow, other values are replaced.
///
/// # Errors
/// Every fault of every file; nothing is taken then.
pub fn extend(files: &[(String, String)]) -> Result<Vec<Service>, Vec<Fault>> {
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    for (name, text) in FILES {
        if let Ok(table) = text.parse::<Table>() {
            tables.insert(name.trim_end_matches(".toml").to_owned(), table);
        }
    }
    let mut faults = Vec::new();
    for (file, text) in files {
        let fault = |what: String| Fault {
            file: file.clone(),
            what,
        };
        let mut table = match text.parse::<Table>() {
            Ok(table) => table,
            Err(error) => {
                faults.push(fault(error.to_string().trim_end().to_owned()));
                continue;
            }
        };
        let Some(id) = table.get("id").and_then(Value::as_str).map(str::to_owned) else {
            faults.push(fault("there is no `id = \"…\"`".to_owned()));
            continue;
        };
        let extends = table
            .remove("extend")
            .is_some_and(|v| v.as_bool() == Some(true));
        if extends {
            match tables.get(&id) {
                Some(below) => table = over(below.clone(), table),
                None => {
                    faults.push(fault(format!(
                        "it extends {id:?}, which the catalog does not have"
                    )));
                    continue;
                }
            }
        }
        match table.clone().try_into::<Service>() {
            Ok(service) => faults.extend(check(&service).into_iter().map(fault)),
            Err(error) => faults.push(fault(error.to_string().trim_end().to_owned())),
        }
        tables.insert(id, table);
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let services: Vec<Service> = tables
        .into_values()
        .filter_map(|table| table.try_into().ok())
        .collect();
    let faults = together(&services);
    if faults.is_empty() {
        Ok(services)
    } else {
        let file = files
            .last()
            .map_or_else(String::new, |(file, _)| file.clone());
        Err(faults
            .into_iter()
            .map(|what| Fault {
                file: file.clone(),
                what,
            })
            .collect())
    }
}

fn over(mut below: Table, above: Table) -> Table {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Array(list)), Value::Array(more)) => list.extend(more),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
    below
}

/// What is wrong with a service that has the right shape.
pub fn check(service: &Service) -> Vec<String> {
    let mut faults = Vec::new();
    let id = &service.id;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if id.is_empty() || !id.chars().all(plain) {
        faults.push(format!(
            "{id:?}: an id has lowercase letters, digits and dashes"
        ));
    }
    for (what, text) in [("name", &service.name), ("risk", &service.risk)] {
        if text.trim().is_empty() {
            faults.push(format!("`{what}` is empty"));
        }
    }
    let known = !(service.ports.is_empty()
        && service.weak_ports.is_empty()
        && service.processes.is_empty()
        && service.probes.is_empty());
    if !known && service.kind != Kind::System {
        faults.push("nothing to know it by: no port, process or probe".to_owned());
    }
    faults.check(
        service.ports.iter().chain(&service.weak_ports),
        |port| **port != 0,
        "port 0 is no port",
    );
    faults.check(
        &service.processes,
        |p| p.len() <= 15,
        "the kernel cuts command names after 15 bytes",
    );
    faults.check(
        &service.units,
        |u| u.ends_with(".service") || u.ends_with(".socket"),
        "units end with .service or .socket",
    );
    faults.check(
        &service.images,
        |i| !i.contains('@') && !i.starts_with("docker.io/"),
        "images have no tag, no digest and no docker.io/",
    );
    for probe in service
        .probes
        .iter()
        .chain(service.accesses.iter().map(|a| &a.open))
        .chain(service.hazards.iter().map(|h| &h.when))
    {
        probe.faults(&mut faults);
    }
    for hole in &service.holes {
        if within("1.0", &hole.affected).is_none() {
            faults.push(format!(
                "{}: {:?} is no range of versions",
                hole.id, hole.affected
            ));
        }
        if hole.source.trim().is_empty() || hole.lets.trim().is_empty() {
            faults.push(format!("{}: without `source` or `lets`", hole.id));
        }
    }
    if service.sources.is_empty() {
        faults.push("`sources` is empty: say where the facts are from".to_owned());
    }
    let date: Vec<&str> = service.checked.split('-').collect();
    let digits =
        |part: &&str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_digit());
    if !matches!(date.as_slice(), [y, m, d] if digits(y, 4) && digits(m, 2) && digits(d, 2)) {
        faults.push(format!(
            "`checked` is a day like 2026-01-31, not {:?}",
            service.checked
        ));
    }
    faults
}

/// What is wrong between services: what must name one names two.
fn together(services: &[Service]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen: BTreeMap<(&str, String), &str> = BTreeMap::new();
    for service in services {
        let ports = service.ports.iter().map(|p| ("port", p.to_string()));
        let words = [
            ("unit", &service.units),
            ("process", &service.processes),
            ("image", &service.images),
        ];
        let words = words
            .into_iter()
            .flat_map(|(what, all)| all.iter().map(move |w| (what, w.clone())));
        for key in ports.chain(words) {
            let text = format!("{} {}", key.0, key.1);
            if let Some(other) = seen.insert(key, &service.id) {
                faults.push(format!("{text} names both {other} and {}", service.id));
            }
        }
    }
    faults
}

/// A condition on each of several things.
pub(super) trait Checkable {
    /// Adds a fault for each that does not hold.
    fn check<T: std::fmt::Debug>(
        &mut self,
        things: impl IntoIterator<Item = T>,
        holds: impl Fn(&T) -> bool,
        what: &str,
    );
}

impl Checkable for Vec<String> {
    fn check<T: std::fmt::Debug>(
        &mut self,
        things: impl IntoIterator<Item = T>,
        holds: impl Fn(&T) -> bool,
        what: &str,
    ) {
        self.extend(
            things
                .into_iter()
                .filter(|thing| !holds(thing))
                .map(|thing| format!("{thing:?}: {what}")),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_sound() {
        let mut all = Vec::new();
        for (name, text) in FILES {
            let service: Service = toml::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(format!("{}.toml", service.id), *name);
            assert_eq!(check(&service), Vec::<String>::new(), "{name}");
            all.push(service);
        }
        assert_eq!(together(&all), Vec::<String>::new());
        assert_eq!(builtin(), all, "what the program reads");
        let others = all.iter().filter(|s| s.kind != Kind::System).count();
        assert!(
            others >= 60,
            "{others} services besides SSH and web servers"
        );
    }

    fn files(texts: &[&str]) -> Vec<(String, String)> {
        let name = |(i, text): (usize, &&str)| (format!("{i}.toml"), (*text).to_owned());
        texts.iter().enumerate().map(name).collect()
    }

    const OWN: &str = "id = 'our-thing'\nname = 'Our thing'\nkind = 'inference'\nports = [4711]\ndanger = 'high'\nrisk = 'use it'\nconfidence = 'docs'\nchecked = '2026-01-31'\nsources = ['https://wiki.example']\n";

    fn check_faults(texts: &[&str], expect: &[&str]) {
        let faults = extend(&files(texts)).unwrap_err();
        assert_eq!(faults.len(), expect.len(), "{faults:?}");
        for (fault, part) in faults.iter().zip(expect) {
            assert!(fault.to_string().contains(part), "{fault} has no {part:?}");
        }
    }

    #[test]
    fn a_file_of_the_user_adds_replaces_or_extends() {
        let count = FILES.len();
        let find = |all: &[Service], id: &str| all.iter().find(|s| s.id == id).unwrap().clone();
        let all = extend(&files(&[OWN])).unwrap();
        assert_eq!(all.len(), count + 1);
        assert_eq!(find(&all, "our-thing").ports, [4711]);
        let all = extend(&files(&[&OWN.replace("our-thing", "ollama")])).unwrap();
        assert_eq!((all.len(), find(&all, "ollama").ports), (count, vec![4711]));
        let before = find(&extend(&[]).unwrap(), "ollama");
        let all = extend(&files(&[
            "id = 'ollama'\nextend = true\nunits = ['ours.service']\ndanger = 'low'",
        ]))
        .unwrap();
        let after = find(&all, "ollama");
        assert_eq!(after.units.len(), before.units.len() + 1);
        assert_eq!(after.danger, crate::finding::Severity::Low);
        assert_eq!(after.ports, before.ports);
    }

    #[test]
    fn faults_are_told_all_at_once_and_nothing_is_taken() {
        check_faults(
            &["id = ", "name = 'x'", "id = 'a'\nextend = true"],
            &["TOML parse error at line 1", "no `id", "does not have"],
        );
        check_faults(
            &[&OWN.replace("ports", "prots")],
            &["unknown field `prots`"],
        );
        check_faults(
            &[&OWN.replace("2026-01-31", "today")],
            &["`checked` is a day"],
        );
        check_faults(
            &[&OWN.replace("our-thing", "../x")],
            &["an id has lowercase"],
        );
        check_faults(
            &[&OWN.replace("4711", "11434")],
            &["port 11434 names both ollama and our-thing"],
        );
        let probe = |text: &str| format!("{OWN}[[probe]]\n{text}");
        check_faults(&[&probe("path = '/x'")], &["a status alone"]);
        check_faults(
            &[&probe("path = '/-/quit'\nbody = ['x']")],
            &["sounds as if it did"],
        );
        check_faults(
            &[&probe("path = '/x y'\nbody = ['x']")],
            &["no path to ask for"],
        );
        check_faults(
            &[&probe("path = 'http://x'\nbody = ['x']")],
            &["no path to ask for"],
        );
        check_faults(&[&probe("body = ['x']")], &["either `path` or `talk`"]);
        check_faults(
            &[&probe("talk = 'flushall'")],
            &["unknown variant `flushall`"],
        );
    }
}
