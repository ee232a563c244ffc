//! Docker and Podman, asked over their unix sockets.

mod parse;

use super::disk::Disk;
use super::gaps::{Gaps, words};
use super::http;
use kernel::Processes;
use portcullis_core::compose;
use portcullis_core::host::{ComposeFile, Container, Engine, Uncertain};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Most bytes of one answer.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Most containers of one engine that are asked for one by one.
const MAX_CONTAINERS: usize = 4096;
/// Most compose files that are read.
const MAX_FILES: usize = 64;
/// Connections over which an engine is asked about its containers at the most.
const CONNECTIONS: usize = 4;
/// Containers that are worth no connection of their own.
const ON_ONE_CONNECTION: usize = 12;
/// Most sockets that are asked.
const MAX_SOCKETS: usize = 16;

/// The usual places of engine sockets, those of rootless engines included.
pub(super) fn usual_sockets() -> Vec<PathBuf> {
    let mut paths = Vec::new();
    if let Ok(value) = std::env::var("DOCKER_HOST")
        && let Some(path) = value.strip_prefix("unix://")
        && path.starts_with('/')
    {
        paths.push(PathBuf::from(path));
    }
    paths.extend(
        [
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/run/podman/podman.sock",
        ]
        .map(PathBuf::from),
    );
    let mut homes: Vec<PathBuf> = std::fs::read_dir("/run/user")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    homes.sort();
    for home in homes {
        paths.push(home.join("docker.sock"));
        paths.push(home.join("podman/podman.sock"));
    }
    paths
}

/// Main processes by container id.
pub(super) type Mains = BTreeMap<String, u32>;

/// [`Mains`], which whoever asks first may have to wait for.
type Told<'m> = dyn Deref<Target = Mains> + Sync + 'm;

/// The main process of each container, as the processes themselves tell: the first that came from
/// outside. Who was sent in later (`docker exec`) came from outside too.
pub(super) fn mains(processes: &Processes) -> Mains {
    let mut first = BTreeMap::new();
    for process in processes.iter() {
        let parent = processes.get(process.parent);
        if let Some(container) = &process.container
            && parent.is_none_or(|parent| parent.container.as_ref() != Some(container))
        {
            let began = (process.started, process.pid);
            let earliest = first.entry(container.id.clone()).or_insert(began);
            *earliest = began.min(*earliest);
        }
    }
    let pid = |(id, (_, pid))| (id, pid);
    first.into_iter().map(pid).collect()
}

/// Asks every engine that has a socket at one of `paths`; each gets `patience` altogether. `mains` may
/// wait until the processes of this machine are known; engines are asked meanwhile.
pub(super) fn engines(
    disk: &Disk,
    paths: &[PathBuf],
    patience: Duration,
    mains: impl FnOnce() -> Mains + Send,
) -> (Vec<Engine>, Gaps) {
    let mut gaps = Gaps::default();
    let mut seen = BTreeSet::new();
    let mut sockets: Vec<PathBuf> = Vec::new();
    for path in paths {
        match std::fs::canonicalize(path) {
            Ok(real) if seen.insert(real.clone()) => sockets.push(path.clone()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => gaps.add(
                "container engine",
                format!("{} cannot be looked at: {error}", path.display()),
                Uncertain::Endpoints,
            ),
        }
    }
    if sockets.len() > MAX_SOCKETS {
        gaps.add(
            "container engine",
            format!(
                "{} sockets of container engines, of which only {MAX_SOCKETS} were asked",
                sockets.len()
            ),
            Uncertain::Endpoints,
        );
        sockets.truncate(MAX_SOCKETS);
    }
    let alone = sockets.len() == 1;
    let mains = LazyLock::new(mains);
    let mains: &Told = &mains;
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let threads: Vec<_> = sockets
            .iter()
            .map(|path| {
                let known = alone && is_roots(path);
                // Each by itself: one that hangs takes nothing from the others.
                let patience = patience + start_of(path);
                scope.spawn(move || ask(path, known, Instant::now() + patience, mains))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or(Answer::Failed("the reader failed".to_owned()))
            })
            .collect()
    });
    let mut engines = Vec::new();
    let mut ids = BTreeSet::new();
    for (path, answer) in sockets.iter().zip(answers) {
        match answer {
            Answer::Nobody => {}
            Answer::Failed(why) => gaps.add(
                "container engine",
                format!("{}: {why}", path.display()),
                Uncertain::Endpoints,
            ),
            Answer::Engine(found) => {
                // One engine may be reached through two sockets.
                if let Some(id) = &found.id
                    && !ids.insert(id.clone())
                {
                    continue;
                }
                let mut engine = found.engine;
                // An engine that cannot say it: these folders are those of users.
                engine.rootless |= path.starts_with("/run/user");
                if !engine.rootless && engine.kind == "docker" {
                    settings(disk, &mut engine, &mut gaps);
                    if let Ok(Some(group)) = disk.text("/etc/group") {
                        engine.trusted_users = parse::members(&group);
                    }
                }
                engine.open_socket = std::fs::metadata(path).is_ok_and(|m| m.mode() & 0o002 != 0);
                for why in found.unseen {
                    gaps.add(
                        &engine.kind,
                        format!("{}: {why}", path.display()),
                        Uncertain::Endpoints,
                    );
                }
                engines.push(engine);
            }
        }
    }
    engines.sort_by(|a, b| (&a.kind, a.rootless).cmp(&(&b.kind, b.rootless)));
    (engines, gaps)
}

/// Settings of the daemon that its API does not tell.
fn settings(disk: &Disk, engine: &mut Engine, gaps: &mut Gaps) {
    match disk.text("/etc/docker/daemon.json") {
        Ok(None) => {}
        Ok(Some(text)) => match serde_json::from_str::<Value>(&text) {
            Ok(json) => parse::settings(&json, engine),
            Err(error) => gaps.add(
                "docker",
                format!("/etc/docker/daemon.json is no JSON: {error}"),
                Uncertain::Mechanism,
            ),
        },
        Err(error) => gaps.add(
            "docker",
            format!("/etc/docker/daemon.json: {error}"),
            Uncertain::Mechanism,
        ),
    }
}

/// Adds what the command line of the system's dockerd tells, where there is one: root's, beside this process. Anybody
/// can call a program so.
pub(super) fn command_line(engines: &mut [Engine], processes: &Processes) {
    let daemon = processes
        .iter()
        .filter(|p| p.uid == 0 && processes.beside(p))
        .find(|p| p.comm == "dockerd" && !p.cmdline.is_empty());
    let ours = |engine: &&mut Engine| engine.kind == "docker" && !engine.rootless;
    if let Some(daemon) = daemon
        && let Some(engine) = engines.iter_mut().find(ours)
    {
        parse::command_line(&daemon.cmdline, engine);
    }
}

/// The ports that compose files publish, of those files that running containers name. The names are labels,
/// and anybody who makes an image can set those: only plain YAML files are looked at, and of them only the
/// entries of `ports` are kept.
pub(super) fn compose_files(disk: &Disk, engines: &[Engine]) -> BTreeMap<String, ComposeFile> {
    let named: BTreeSet<&String> = engines
        .iter()
        .flat_map(|e| &e.containers)
        .filter_map(|c| c.compose.as_ref())
        .flat_map(|c| &c.files)
        .filter(|f| f.starts_with('/') && (f.ends_with(".yml") || f.ends_with(".yaml")))
        .collect();
    named
        .into_iter()
        .take(MAX_FILES)
        .map(|file| (file.clone(), compose_file(disk, file)))
        .collect()
}

fn compose_file(disk: &Disk, file: &str) -> ComposeFile {
    let unread = |why: String| ComposeFile {
        unread: Some(why),
        ..ComposeFile::default()
    };
    let bytes = match disk.bytes(file, compose::LARGEST as u64) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return unread("it is not there".to_owned()),
        Err(error) => return unread(error.to_string()),
    };
    let Ok(text) = std::str::from_utf8(&bytes) else {
        return unread("it is no text".to_owned());
    };
    match compose::entries(text) {
        Ok(ports) => ComposeFile {
            sha256: crate::transaction::hex(&Sha256::digest(&bytes)),
            ports,
            unread: None,
        },
        Err(why) => unread(why),
    }
}

enum Answer {
    /// A socket file without a listener: no engine runs.
    Nobody,
    Failed(String),
    Engine(Box<parse::Found>),
}

/// How long it may take until anybody is there to answer: Podman has no daemon, systemd starts one for
/// whoever asks. Docker's runs, or is hung.
fn start_of(path: &Path) -> Duration {
    match path.file_name().is_some_and(|name| name == "podman.sock") {
        true => Duration::from_secs(3),
        false => Duration::ZERO,
    }
}

/// Whether the engine at this socket runs as root, as one without its own user namespace does.
fn is_roots(path: &Path) -> bool {
    !path.starts_with("/run/user") && std::fs::metadata(path).is_ok_and(|about| about.uid() == 0)
}

/// Asks one engine. `known`: that it is root's, and that no other is asked, so that its identity is
/// not wanted. `mains` may take a while, which is nothing that the engine is to blame for.
fn ask(path: &Path, known: bool, deadline: Instant, mains: &Told) -> Answer {
    let mut client = http::Client::new(path, deadline, MAX_ANSWER);
    // Whatever is asked first, the answer's head tells who answers.
    let networks = match get(&mut client, "/networks") {
        Err(http::Error::Io(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            return Answer::Nobody;
        }
        Err(error @ http::Error::Late) => return Answer::Failed(words(&error)),
        other => other,
    };
    let told = parse::told_by_head(client.said());
    let told_by_head = told.is_some();
    let mut found = match told.map_or_else(|| version(&mut client), Ok) {
        Ok(found) => found,
        Err(error) => return Answer::Failed(words(&error)),
    };
    let mut nothing_new = false;
    match networks {
        Ok(networks) => {
            nothing_new = known && told_by_head && parse::info_tells_nothing(&found, &networks);
            parse::networks(&networks, &mut found);
        }
        Err(error) => found.unseen.push(format!("/networks: {}", words(&error))),
    }
    if nothing_new {
        containers(client, &mut found, mains);
        return Answer::Engine(Box::new(found));
    }
    // Docker runs programs to answer this (`runc --version` among them), so that it takes longer
    // than all the rest: it is waited for meanwhile.
    let info = if told_by_head {
        let mut aside = client.again();
        std::thread::scope(|scope| {
            let info = scope.spawn(move || get(&mut aside, "/info"));
            containers(client, &mut found, mains);
            let failed = |_| Err(http::Error::Malformed("the reader failed"));
            info.join().unwrap_or_else(failed)
        })
    } else {
        let info = get(&mut client, "/info");
        containers(client, &mut found, mains);
        info
    };
    match info {
        Ok(info) => parse::info(&info, &mut found),
        Err(error) => found.unseen.push(format!("/info: {}", words(&error))),
    }
    Answer::Engine(Box::new(found))
}

fn version(client: &mut http::Client) -> Result<parse::Found, http::Error> {
    Ok(parse::engine(&get(client, "/version")?))
}

/// Asks for the containers.
fn containers(mut client: http::Client, found: &mut parse::Found, mains: &Told) {
    match get(&mut client, "/containers/json") {
        Ok(list) => {
            parse::containers(&list, found);
            let waiting = Instant::now();
            let mains: &Mains = mains;
            details(client.later(waiting.elapsed()), found, mains);
        }
        Err(error) => found
            .unseen
            .push(format!("/containers/json: {}", words(&error))),
    }
}

/// Asks about those containers of which the list and the processes did not tell all, one by one, on a
/// few connections side by side.
fn details(client: http::Client, found: &mut parse::Found, mains: &Mains) {
    let docker = found.engine.kind == "docker";
    let containers = &mut found.engine.containers;
    if containers.len() > MAX_CONTAINERS {
        found.unseen.push(format!(
            "{} containers, of which only {MAX_CONTAINERS} are shown",
            containers.len()
        ));
        containers.truncate(MAX_CONTAINERS);
    }
    for container in containers.iter_mut() {
        container.pid = mains.get(&container.id).copied();
    }
    let mut wanted: Vec<&mut Container> = containers
        .iter_mut()
        .filter(|container| !(docker && container.pid.is_some() && parse::told_whole(container)))
        .collect();
    let share = wanted.len().div_ceil(CONNECTIONS).max(ON_ONE_CONNECTION);
    let missing = std::thread::scope(|scope| {
        let mut client = Some(client);
        let threads: Vec<_> = wanted
            .chunks_mut(share)
            .filter_map(|part| {
                let mine = client.take()?;
                client = Some(mine.again());
                Some(scope.spawn(move || inspect_each(mine, part)))
            })
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| {
                thread
                    .join()
                    .unwrap_or(Some("the reader failed".to_owned()))
            })
            .next()
    });
    if let Some(why) = missing {
        found
            .unseen
            .push(format!("details of some containers are missing: {why}"));
    }
}

/// Why details of some are missing, if they are.
fn inspect_each(mut client: http::Client, containers: &mut [&mut Container]) -> Option<String> {
    let mut missing = None;
    for container in containers {
        match get(&mut client, &format!("/containers/{}/json", container.id)) {
            Ok(json) => parse::inspect(&json, container),
            // Gone between the two questions, or not answered: the list told most of it.
            Err(http::Error::Status { status: 404, .. }) => {}
            Err(error) => {
                missing = Some(words(&error));
                if matches!(error, http::Error::Late) {
                    break;
                }
            }
        }
    }
    missing
}

fn get(client: &mut http::Client, path: &str) -> Result<Value, http::Error> {
    let body = client.get(path)?;
    serde_json::from_slice(&body).map_err(|_| http::Error::Malformed("no JSON"))
}

#[cfg(test)]
mod tests;
