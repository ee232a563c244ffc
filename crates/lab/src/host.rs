//! One host: a network namespace with a root filesystem that only it can write.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;

use crate::cell::{Cell, NONE, Namespaces, everything};
use crate::error::{Context, Error, Result};
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

/// Folders of which a host gets a private, writable copy (an overlay whose changes live in memory).
const PRIVATE: [&str; 9] = [
    "/etc",
    "/var/lib",
    "/var/log",
    "/var/cache",
    "/var/spool",
    "/root",
    "/opt",
    "/srv",
    "/usr/local",
];

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

/// The mounts of a new host; runs on a thread that is already in its namespaces.
fn furnish(name: &str, folder: &Path, docker: &Path) -> Result<()> {
    let memory = folder.join("memory");
    fs::create_dir_all(&memory).at("make", &memory)?;
    tmpfs(&memory, "mode=0700,size=2g")?;

    let private = PRIVATE.iter().copied().chain(["/tmp"]);
    for dir in private.filter(|dir| Path::new(dir).is_dir()) {
        if folder.starts_with(dir) {
            // Its own changes cannot be below an overlay's lower folder.
            if dir == "/tmp" {
                continue;
            }
            return Err(Error::Invalid(format!(
                "the labs' folder may not be under {dir}; set {} to another place",
                crate::room::DIR_VARIABLE
            )));
        }
        overlay(
            dir,
            &memory.join(dir.trim_start_matches('/').replace('/', "-")),
        )?;
    }

    // The folder itself stays writable when everything else is made read-only.
    bind(folder, folder)?;
    read_only("/")?;
    tmpfs(Path::new("/run"), "mode=0755")?;
    fresh_dev()?;
    fresh_sys(folder)?;
    stock_configuration(name)?;

    let data = Path::new("/var/lib/docker");
    fs::create_dir_all(data).at("make", data)?;
    bind(docker, data)
}

pub(crate) fn tmpfs(at: &Path, options: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options)).at("mount a tmpfs on", at)
}

fn overlay(dir: &str, changes: &Path) -> Result<()> {
    let (upper, work) = (changes.join("upper"), changes.join("work"));
    fs::create_dir_all(&upper).at("make", &upper)?;
    fs::create_dir_all(&work).at("make", &work)?;
    // The overlay's root takes its owner and mode from the upper folder.
    let metadata = fs::metadata(dir).at("look at", Path::new(dir))?;
    fs::set_permissions(&upper, metadata.permissions()).at("set the mode of", &upper)?;
    let options = format!(
        "lowerdir={dir},upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    mount(
        Some("overlay"),
        dir,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .at("mount an overlay on", Path::new(dir))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(
        Some(from),
        to,
        NONE,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NONE,
    )
    .at("bind a folder on", to)
}

fn read_only(path: &str) -> Result<()> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(NONE, path, NONE, flags, NONE).at("make read-only", Path::new(path))
}

/// A /dev with the usual devices and room for /dev/log, so that sshd's messages stay in the host.
fn fresh_dev() -> Result<()> {
    let staging = Path::new("/run/dev");
    fs::create_dir_all(staging).at("make", staging)?;
    mount(
        Some("tmpfs"),
        staging,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("mode=0755"),
    )
    .at("mount a tmpfs on", staging)?;
    for device in ["null", "zero", "full", "random", "urandom", "tty"] {
        let (from, to) = (Path::new("/dev").join(device), staging.join(device));
        if from.exists() {
            fs::write(&to, b"").at("make", &to)?;
            bind(&from, &to)?;
        }
    }
    for folder in ["pts", "shm"] {
        let to = staging.join(folder);
        fs::create_dir(&to).at("make", &to)?;
    }
    let pts = staging.join("pts");
    mount(
        Some("devpts"),
        &pts,
        Some("devpts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("newinstance,ptmxmode=0666,mode=0620,gid=5"),
    )
    .at("mount devpts on", &pts)?;
    tmpfs(&staging.join("shm"), "mode=1777")?;
    for (link, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let link = staging.join(link);
        std::os::unix::fs::symlink(target, &link).at("make", &link)?;
    }
    mount(Some(staging), "/dev", NONE, MsFlags::MS_MOVE, NONE).at("move", staging)
}

/// A /sys that shows the host's own network devices, with this machine's cgroups, which dockerd needs.
fn fresh_sys(folder: &Path) -> Result<()> {
    let cgroups = Path::new("/sys/fs/cgroup");
    let aside = folder.join("cgroup");
    fs::create_dir_all(&aside).at("make", &aside)?;
    bind(cgroups, &aside)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, NONE).at("mount", Path::new("/sys"))?;
    mount(Some(&aside), cgroups, NONE, MsFlags::MS_MOVE, NONE).at("move", &aside)
}

/// What the packages ship, whatever this machine's owner made of it: UFW off and without rules, fail2ban as installed,
/// no Docker settings, nothing of portcullis.
fn stock_configuration(name: &str) -> Result<()> {
    write_file(Path::new("/etc/hostname"), format!("{name}\n").as_bytes())?;
    write_file(
        Path::new("/etc/hosts"),
        format!("127.0.0.1 localhost {name}\n::1 localhost {name}\n").as_bytes(),
    )?;
    for gone in [
        "/etc/portcullis",
        "/var/lib/portcullis",
        "/var/log/portcullis",
        "/etc/docker",
        "/etc/fail2ban/jail.local",
        "/etc/fail2ban/fail2ban.local",
        "/var/lib/fail2ban",
        "/var/log/fail2ban.log",
        "/var/log/auth.log",
    ] {
        remove(Path::new(gone))?;
    }
    let state = Path::new("/var/lib/fail2ban");
    fs::create_dir_all(state).at("make", state)?;
    keep_only("/etc/fail2ban/jail.d", &["defaults-debian.conf"])?;
    keep_only("/etc/fail2ban/fail2ban.d", &[])?;
    stock_ufw()
}

fn stock_ufw() -> Result<()> {
    let templates = Path::new("/usr/share/ufw/iptables");
    if !templates.is_dir() || !Path::new("/etc/ufw").is_dir() {
        // Not installed: whoever runs ufw here is told so.
        return Ok(());
    }
    for entry in fs::read_dir(templates).at("read", templates)?.flatten() {
        let to = Path::new("/etc/ufw").join(entry.file_name());
        fs::copy(entry.path(), &to).at("write", &to)?;
        fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o640))
            .at("set the mode of", &to)?;
    }
    for script in ["before.init", "after.init"] {
        let (from, to) = (
            Path::new("/usr/share/ufw").join(script),
            Path::new("/etc/ufw").join(script),
        );
        if from.exists() {
            fs::copy(&from, &to).at("write", &to)?;
            fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o640))
                .at("set the mode of", &to)?;
        }
    }
    edit_settings(
        "/etc/ufw/ufw.conf",
        &[("ENABLED", "no"), ("LOGLEVEL", "low")],
    )?;
    edit_settings(
        "/etc/default/ufw",
        &[
            ("IPV6", "yes"),
            ("DEFAULT_INPUT_POLICY", "\"DROP\""),
            ("DEFAULT_OUTPUT_POLICY", "\"ACCEPT\""),
            ("DEFAULT_FORWARD_POLICY", "\"DROP\""),
            ("DEFAULT_APPLICATION_POLICY", "\"SKIP\""),
            ("MANAGE_BUILTINS", "no"),
            ("IPT_SYSCTL", "/etc/ufw/sysctl.conf"),
        ],
    )
}

/// Sets `NAME=value` lines of a shell-like settings file where the name is set already.
fn edit_settings(path: &str, settings: &[(&str, &str)]) -> Result<()> {
    let path = Path::new(path);
    let text = fs::read_to_string(path).at("read", path)?;
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            settings
                .iter()
                .find(|(name, _)| {
                    line.strip_prefix(name)
                        .is_some_and(|rest| rest.starts_with('='))
                })
                .map_or_else(
                    || line.to_owned(),
                    |(name, value)| format!("{name}={value}"),
                )
        })
        .collect();
    fs::write(path, lines.join("\n") + "\n").at("write", path)
}

fn keep_only(dir: &str, keep: &[&str]) -> Result<()> {
    let dir = Path::new(dir);
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(dir).at("read", dir)?.flatten() {
        if !keep.iter().any(|name| entry.file_name() == *name) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let Ok(metadata) = path.symlink_metadata() else {
        return Ok(());
    };
    if metadata.is_dir() {
        fs::remove_dir_all(path).at("remove", path)
    } else {
        fs::remove_file(path).at("remove", path)
    }
}
