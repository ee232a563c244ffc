//! The filesystem of a namespace host: private copies, its own devices, and the configuration that packages ship.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::cell::NONE;
use crate::error::{Context, Error, Result};
use crate::host::write_file;

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

/// The mounts of a new host; runs on a thread that is already in its namespaces.
pub(crate) fn furnish(name: &str, folder: &Path, docker: &Path) -> Result<()> {
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
        fs::set_permissions(&to, fs::Permissions::from_mode(0o640)).at("set the mode of", &to)?;
    }
    for script in ["before.init", "after.init"] {
        let (from, to) = (
            Path::new("/usr/share/ufw").join(script),
            Path::new("/etc/ufw").join(script),
        );
        if from.exists() {
            fs::copy(&from, &to).at("write", &to)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o640))
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
