//! Services that portcullis knows by sight: a data file, embedded.

use crate::finding::Severity;
use serde::Deserialize;
use std::sync::LazyLock;

/// A service of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Stable id, as `[[service]] kind` names it.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// Default ports that name it well enough by themselves.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Default ports that many other programs use too.
    #[serde(default)]
    pub weak_ports: Vec<u16>,
    /// Command names as `/proc/PID/comm` has them.
    #[serde(default)]
    pub processes: Vec<String>,
    /// systemd units.
    #[serde(default)]
    pub units: Vec<String>,
    /// Image repositories without tag; those of Docker Hub without a registry host.
    #[serde(default)]
    pub images: Vec<String>,
    /// How bad it is when strangers reach it.
    pub danger: Severity,
    /// Completes "Whoever reaches it can …".
    pub risk: String,
    /// Made to face strangers.
    #[serde(default)]
    pub public: bool,
    /// How it is told to listen on loopback only.
    pub loopback: Option<Loopback>,
}

/// How a service is told to listen on loopback only.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum Loopback {
    /// An environment variable; `{port}` in the value stands for the port that it listens on.
    Environment {
        /// Variable.
        key: String,
        /// Value.
        value: String,
    },
    /// A command-line argument.
    Argument {
        /// As typed.
        text: String,
    },
    /// A line of its own configuration.
    Setting {
        /// As written there.
        text: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    service: Vec<Service>,
}

static SERVICES: LazyLock<Vec<Service>> = LazyLock::new(|| {
    let file: Result<File, _> = toml::from_str(include_str!("../../data/services.toml"));
    match file {
        Ok(file) => file.service,
        // The text is a constant of this program and the test `the_data_file_is_sound` reads it.
        Err(_) => unreachable!("the embedded catalog is sound"),
    }
});

/// Every service, in the order of the data file.
pub fn services() -> &'static [Service] {
    &SERVICES
}

/// The service of this id.
pub fn service(id: &str) -> Option<&'static Service> {
    services().iter().find(|s| s.id == id)
}

/// What is known of the thing that listens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sight<'a> {
    /// Command name.
    pub process: Option<&'a str>,
    /// systemd unit.
    pub unit: Option<&'a str>,
    /// Container image reference.
    pub image: Option<&'a str>,
    /// Port where it listens: on the host, or in its container.
    pub port: u16,
}

/// Names the service, or does not: image first, then unit, then process, and last a telling port
/// when nothing better is known.
pub fn recognise(sight: Sight<'_>) -> Option<&'static Service> {
    if let Some(image) = sight.image {
        let repository = repository(image);
        if let Some(found) = services()
            .iter()
            .find(|s| s.images.iter().any(|i| i == repository))
        {
            return Some(found);
        }
    }
    if let Some(unit) = sight.unit
        && let Some(found) = services()
            .iter()
            .find(|s| s.units.iter().any(|u| u == unit))
    {
        return Some(found);
    }
    if let Some(process) = sight.process
        && let Some(found) = services()
            .iter()
            .find(|s| s.processes.iter().any(|p| p == process))
    {
        return Some(found);
    }
    services().iter().find(|s| s.ports.contains(&sight.port))
}

/// The repository of an image reference: no tag, no digest, no `docker.io/`.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    let image = match image.rsplit_once(':') {
        // A colon before the last slash belongs to a registry's port.
        Some((before, tag)) if !tag.contains('/') => before,
        _ => image,
    };
    image.strip_prefix("docker.io/").unwrap_or(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn check(sight: Sight<'_>, id: Option<&str>) {
        assert_eq!(recognise(sight).map(|s| s.id.as_str()), id, "{sight:?}");
    }

    #[test]
    fn the_data_file_is_sound() {
        let ids: BTreeSet<&str> = services().iter().map(|s| s.id.as_str()).collect();
        assert_eq!(ids.len(), services().len(), "an id twice");
        let mut ports = BTreeSet::new();
        for service in services() {
            for port in &service.ports {
                assert!(ports.insert(*port), "two services claim port {port}");
            }
            assert!(!service.risk.is_empty() && !service.name.is_empty());
            assert!(
                service.processes.iter().all(|p| p.len() <= 15),
                "{}",
                service.id
            );
        }
    }

    #[test]
    fn services_are_recognised_by_image_then_unit_then_process_then_port() {
        let some = |image, unit, process, port| Sight {
            image,
            unit,
            process,
            port,
        };
        check(
            some(Some("ollama/ollama:0.5"), None, None, 80),
            Some("ollama"),
        );
        check(
            some(Some("docker.io/ollama/ollama@sha256:00"), None, None, 80),
            Some("ollama"),
        );
        check(
            some(Some("localhost:5000/ollama/ollama"), None, None, 80),
            None,
        );
        check(
            some(Some("vllm/vllm-openai:latest"), None, None, 8000),
            Some("vllm"),
        );
        check(
            some(None, Some("ollama.service"), Some("python3"), 9999),
            Some("ollama"),
        );
        check(
            some(None, None, Some("llama-server"), 8080),
            Some("llama-cpp"),
        );
        check(some(None, None, None, 8265), Some("ray"));
        check(some(None, None, Some("python3"), 11434), Some("ollama"));
        check(some(None, None, Some("python3"), 8000), None);
        check(some(None, None, Some("sshd"), 2222), Some("sshd"));
    }
}
