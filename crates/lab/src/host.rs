//! One host: a network namespace with a root filesystem that only it can write.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;

use crate::cell::{Cell, Namespaces, everything};
use crate::error::{Context, Error, Result};
use crate::furnish::furnish;
use crate::process::{Knock, Output, Process, Program, knock, ok_here};
use crate::room::Room;

/// A host made of namespaces: own network, own processes, own name, and every write to the filesystem its own. It sees
/// this machine's installed programs; its /etc, /var, /run, /root and /tmp start as copies (empty for /run) and are
/// forgotten with it. The rest of the filesystem is read-only.
///
/// A `Host` is a handle: clones are the same host, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    cell: Cell,
    folder: PathBuf,
    logs: PathBuf,
    /// After `cell`: fields drop in order, and the folder goes last.
    room: Arc<Room>,
}

impl Host {
    pub(crate) fn new(room: &Arc<Room>, name: &str) -> Result<Self> {
        check_name(name)?;
        let folder = room.folder(name)?;
        let logs = room.folder(format!("{name}/logs"))?;
        let docker = room.folder(format!("{name}/docker"))?;
        let kinds = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
        let cell = Cell::new(name, kinds, || furnish(name, &folder, &docker))?;
        let host = Self(Arc::new(Inner {
            name: name.to_owned(),
            cell,
            folder,
            logs,
            room: room.clone(),
        }));
        // Without duplicate address detection, IPv6 addresses (the link-local ones too) are usable at once.
        host.inside(|| {
            write_file(Path::new("/proc/sys/net/ipv6/conf/all/accept_dad"), b"0")?;
            write_file(
                Path::new("/proc/sys/net/ipv6/conf/default/accept_dad"),
                b"0",
            )
        })??;
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The process id, outside, of the process that keeps the host alive: what `nsenter -t` takes.
    pub fn pid(&self) -> u32 {
        self.0.cell.pid()
    }

    /// A folder of the host's own that has the same path inside and outside, on a real disk.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.0.room
    }

    pub(crate) fn spaces(&self) -> &Namespaces {
        self.0.cell.spaces()
    }

    /// A program to run here.
    pub fn command<'a>(&'a self, argv: &[impl AsRef<str>]) -> Program<'a> {
        Program::new(&self.0.name, self.spaces(), &self.0.logs, argv)
    }

    /// Runs a program to its end, a minute at most. That it fails is no error.
    pub fn run(&self, argv: &[impl AsRef<str>]) -> Result<Output> {
        self.command(argv).run()
    }

    /// Runs a program to its end, a minute at most, and gives its standard output. That it fails is an error.
    pub fn ok(&self, argv: &[impl AsRef<str>]) -> Result<String> {
        self.command(argv).ok()
    }

    /// Starts a program that runs until the guard is dropped.
    pub fn spawn(&self, argv: &[impl AsRef<str>]) -> Result<Process> {
        self.command(argv).spawn()
    }

    /// Runs `f` on a thread of its own inside the host's network: what it connects to or listens on is the host's.
    pub fn in_net<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.spaces().within(CloneFlags::CLONE_NEWNET, f)
    }

    /// Runs `f` on a thread of its own inside the host's network and filesystem.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.spaces().within(everything(), f)
    }

    /// Applies `ip -batch` lines (`link set eth0 up`, `route add …`), one per line.
    pub fn ip(&self, batch: &str) -> Result<()> {
        // Only the network: a process id in a line (`netns 123`) is then one of this machine.
        self.in_net(|| {
            ok_here(
                &["ip", "-batch", "-"],
                batch.as_bytes(),
                Duration::from_secs(20),
            )
        })?
        .map(drop)
    }

    /// Whether the host has found the link-layer address of an on-link neighbour.
    pub(crate) fn knows(&self, neighbour: IpAddr) -> Result<bool> {
        let argv = ["ip", "neighbour", "show", "to", &neighbour.to_string()];
        let entries = self.in_net(|| ok_here(&argv, b"", Duration::from_secs(20)))??;
        Ok(entries.contains("lladdr"))
    }

    /// Writes a file, making its folders.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        let bytes = bytes.as_ref();
        self.inside(|| write_file(Path::new(path), bytes))?
    }

    /// Reads a file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.inside(|| fs::read(path).at("read", Path::new(path)))?
    }

    /// Reads a file as text, with U+FFFD for what is not UTF-8.
    pub fn read_text(&self, path: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.read(path)?).into_owned())
    }

    /// Whether a path exists here.
    pub fn exists(&self, path: &str) -> Result<bool> {
        self.inside(|| Path::new(path).exists())
    }

    /// One TCP connection attempt from here.
    pub fn knock(&self, to: IpAddr, port: u16, bound: Duration) -> Result<Knock> {
        self.in_net(|| knock(to, port, bound))
    }

    /// Whether a TCP connection from here is accepted within `bound`.
    pub fn connect(&self, to: IpAddr, port: u16, bound: Duration) -> Result<bool> {
        Ok(self.knock(to, port, bound)? == Knock::Open)
    }

    /// Waits until a TCP connection from here is accepted.
    pub fn wait_port(&self, to: IpAddr, port: u16, bound: Duration) -> Result<()> {
        self.in_net(|| {
            let start = Instant::now();
            loop {
                let left = bound.saturating_sub(start.elapsed());
                let last = knock(
                    to,
                    port,
                    left.clamp(Duration::from_millis(10), Duration::from_secs(1)),
                );
                if last == Knock::Open {
                    return Ok(());
                }
                if start.elapsed() >= bound {
                    let what = format!("an open port {port} at {to}");
                    return Err(Error::timeout(what, bound, &format!("{last:?}")));
                }
                thread::sleep(Duration::from_millis(20));
            }
        })?
    }

    /// The answer to `GET path` over plain HTTP/1.0 from here: status line, headers and body, 64 KiB at most.
    pub fn http_get(&self, to: IpAddr, port: u16, path: &str, bound: Duration) -> Result<String> {
        self.in_net(|| http_get(to, port, path, bound))?
            .context(|| format!("no HTTP answer from {to} port {port}"))
    }
}

fn http_get(to: IpAddr, port: u16, path: &str, bound: Duration) -> std::io::Result<String> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&(to, port).into(), bound)?;
    stream.set_write_timeout(Some(bound))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: lab\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while answer.len() < 64 << 10 {
        let left = bound.saturating_sub(start.elapsed());
        if left.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(error) if answer.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).at("make", parent)?;
    }
    fs::write(path, bytes).at("write", path)
}

/// Names become host names, folders and cgroups.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let fine = !name.is_empty()
        && name.len() <= 32
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if fine {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "{name:?} is no name for a host: up to 32 of a-z, 0-9 and -, a letter first"
        )))
    }
}
