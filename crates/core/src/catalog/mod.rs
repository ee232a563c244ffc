//! Services that portcullis knows: one data file each, embedded, extended or overridden by files of the user.

mod identify;
mod load;
mod probe;
mod range;
mod service;

pub use identify::{
    Access, Ask, FOREIGN_HOST, FOREIGN_ORIGIN, Identity, Question, Width, identify,
};
pub use load::{Fault, check, extend};
pub use probe::{Expected, Probe, Reply, Talk, VersionAt};
pub use range::{mended_in, within};
pub use service::{AccessProbe, Checked, Hazard, Hole, Kind, Loopback, Service};

use load::builtin;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// What counts in this process: the embedded files, or those with the user's on top.
static SERVICES: OnceLock<Vec<Service>> = OnceLock::new();

/// Every service, by id.
pub fn services() -> &'static [Service] {
    SERVICES.get_or_init(builtin)
}

/// Takes a catalog that [`extend`] made for what counts in this process. It has to come before the first look into
/// the catalog; `false` when that is over.
pub fn install(services: Vec<Service>) -> bool {
    SERVICES.set(services).is_ok()
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
    /// What an interpreter runs: script or module, and the application that it is told to serve.
    pub script: Option<&'a str>,
    /// systemd unit.
    pub unit: Option<&'a str>,
    /// Container image reference.
    pub image: Option<&'a str>,
    /// Port where it listens: on the host, or in its container.
    pub port: u16,
}

/// What a name by sight rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ground {
    /// The port alone.
    Port,
    /// Image, unit, process or script.
    Name,
}

/// Names the service, or does not: image first, then unit, then process and what it runs, and last a telling port
/// when nothing better is known.
pub fn recognise(sight: Sight<'_>) -> Option<&'static Service> {
    recognise_on(sight).map(|(service, _)| service)
}

/// [`recognise`], and what the name rests on.
pub fn recognise_on(sight: Sight<'_>) -> Option<(&'static Service, Ground)> {
    let find = |of: &dyn Fn(&Service) -> bool| services().iter().find(|s| of(s));
    let by_name = sight
        .image
        .and_then(|image| {
            let repository = repository(image);
            find(&|s| s.images.iter().any(|i| is_image(i, repository)))
        })
        .or_else(|| {
            let unit = sight.unit?;
            find(&|s| s.units.iter().any(|u| u == unit))
        })
        .or_else(|| {
            let process = sight.process?;
            find(&|s| s.processes.iter().any(|p| p == process))
        })
        .or_else(|| {
            let script = sight.script?;
            find(&|s| s.scripts.iter().any(|name| runs(script, name)))
        });
    if let Some(service) = by_name {
        return Some((service, Ground::Name));
    }
    find(&|s| s.ports.contains(&sight.port)).map(|s| (s, Ground::Port))
}

/// Whom to ask for first: what is known by sight, then those whose default port it is.
pub fn candidates(sight: Sight<'_>) -> Vec<&'static Service> {
    let mut found: Vec<&'static Service> = recognise(sight).into_iter().collect();
    let port = |s: &&Service| s.ports.contains(&sight.port) || s.weak_ports.contains(&sight.port);
    for service in services().iter().filter(port) {
        if !found.iter().any(|f| f.id == service.id) {
            found.push(service);
        }
    }
    found
}

/// `vllm` runs in `vllm.entrypoints.openai.api_server` and in `uvicorn vllm.app:app`, and is no part of `myvllm`.
fn runs(script: &str, name: &str) -> bool {
    script.split(' ').any(|word| {
        word.strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', ':']))
    })
}

fn is_image(known: &str, repository: &str) -> bool {
    match known.strip_suffix("/*") {
        Some(folder) => repository
            .strip_prefix(folder)
            .is_some_and(|rest| rest.starts_with('/')),
        None => known == repository,
    }
}

/// The repository of an image reference: no tag, no digest, no `docker.io/`.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    let image = match image.rsplit_once(':') {
        // A colon before the last slash belongs to a registry's port.
        Some((before, tag)) if !tag.contains('/') => before,
        _ => image,
    };
    let image = image.strip_prefix("docker.io/").unwrap_or(image);
    image.strip_prefix("library/").unwrap_or(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sight: Sight<'_>, id: Option<&str>) {
        assert_eq!(recognise(sight).map(|s| s.id.as_str()), id, "{sight:?}");
    }

    #[test]
    fn services_are_recognised_by_image_then_unit_then_process_then_port() {
        let some = |image, unit, process, port| Sight {
            image,
            unit,
            process,
            port,
            ..Sight::default()
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
        let script = |script, port| Sight {
            process: Some("python3"),
            script: Some(script),
            port,
            ..Sight::default()
        };
        check(
            script("vllm.entrypoints.openai.api_server", 9),
            Some("vllm"),
        );
        check(
            script("uvicorn mlflow.server.fastapi_app:app", 9),
            Some("mlflow"),
        );
        check(script("myvllm", 9), None);
        check(
            some(
                Some("nvcr.io/nim/meta/llama3-8b-instruct:1"),
                None,
                None,
                8000,
            ),
            Some("nvidia-nim"),
        );
        check(some(None, None, None, 8265), Some("ray"));
        check(some(None, None, Some("python3"), 11434), Some("ollama"));
        check(some(None, None, Some("python3"), 8000), None);
        check(some(None, None, Some("sshd"), 2222), Some("sshd"));
    }
}
