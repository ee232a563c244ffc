//! The Debian packages that the tests need: found with dpkg-query, installed with apt-get.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the labs and the live tests run, and a program by which it is recognised when it came by another way than
/// Debian's package.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox-static", ""),
    ("conntrack", "/usr/sbin/conntrack"),
    (
        "debian-archive-keyring",
        "/usr/share/keyrings/debian-archive-keyring.gpg",
    ),
    ("debootstrap", "/usr/sbin/debootstrap"),
    ("docker.io", "/usr/bin/dockerd"),
    ("fail2ban", "/usr/bin/fail2ban-server"),
    ("iproute2", "/usr/sbin/ip"),
    ("ipset", "/usr/sbin/ipset"),
    ("iptables", "/usr/sbin/iptables"),
    ("libfaketime", ""),
    ("nftables", "/usr/sbin/nft"),
    ("nginx-light", "/usr/sbin/nginx"),
    ("nmap", "/usr/bin/nmap"),
    ("openssh-client", "/usr/bin/ssh"),
    ("openssh-server", "/usr/sbin/sshd"),
    ("procps", "/usr/bin/ps"),
    ("python3-systemd", ""),
    ("strace", "/usr/bin/strace"),
    ("sudo", "/usr/bin/sudo"),
    ("systemd-container", "/usr/bin/systemd-nspawn"),
    ("tmux", "/usr/bin/tmux"),
    ("ufw", "/usr/sbin/ufw"),
];

/// What the tests with real AI servers need beside [`PACKAGES`].
const SERVERS: &[(&str, &str)] = &[
    ("etcd-server", "/usr/bin/etcd"),
    // Ollama is built with these four.
    ("g++", "/usr/bin/g++"),
    ("golang-go", "/usr/local/go/bin/go"),
    ("libstb-dev", "/usr/include/stb/stb_image.h"),
    ("nlohmann-json3-dev", "/usr/include/nlohmann/json.hpp"),
    ("nodejs", "/usr/bin/node"),
    ("npm", "/usr/bin/npm"),
    (
        "prometheus-node-exporter",
        "/usr/bin/prometheus-node-exporter",
    ),
    ("python3-venv", ""),
    ("redis-server", "/usr/bin/redis-server"),
];

/// Installs what is missing for the tests; an error names what could not be had.
pub(crate) fn ensure() -> Result<(), String> {
    ensure_all(PACKAGES)
}

/// The same for the tests with real AI servers.
pub(crate) fn ensure_for_servers() -> Result<(), String> {
    ensure_all(&[PACKAGES, SERVERS].concat())
}

fn ensure_all(packages: &[(&'static str, &'static str)]) -> Result<(), String> {
    remove_stale_policy()?;
    let missing = missing(packages)?;
    if missing.is_empty() {
        println!("xtask: every Debian package that the tests need is here");
        return Ok(());
    }
    println!("xtask: installing {}", missing.join(" "));
    let _quiet = Policy::refuse_starts()?;
    if install(&missing).is_err() {
        // The lists of a fresh machine are empty or old.
        apt(&["update", "-q"])?;
        install(&missing)?;
    }
    let still = self::missing(packages)?;
    if still.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "not installed although apt-get said so: {}",
            still.join(" ")
        ))
    }
}

fn missing(packages: &[(&'static str, &'static str)]) -> Result<Vec<&'static str>, String> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\\n"])
        .args(packages.iter().map(|(package, _)| package))
        .stderr(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run dpkg-query (the live tests need Debian): {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(packages
        .iter()
        .filter(|(package, program)| {
            let installed = text
                .lines()
                .any(|line| line.split_once(' ') == Some((package, "installed")));
            let otherwise = !program.is_empty() && Path::new(program).exists();
            !installed && !otherwise
        })
        .map(|(package, _)| *package)
        .collect())
}

fn install(packages: &[&str]) -> Result<(), String> {
    // Nothing of the developer's may go for it.
    let mut arguments = vec![
        "install",
        "-y",
        "-q",
        "--no-install-recommends",
        "--no-remove",
    ];
    arguments.extend(packages);
    apt(&arguments)
}

fn apt(arguments: &[&str]) -> Result<(), String> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run apt-get: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!(
            "apt-get {} ended with {status}",
            arguments.join(" ")
        ))
    }
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
const REFUSE: &str =
    "#!/bin/sh\n# Placed by portcullis's xtask while it installs packages.\nexit 101\n";

/// Keeps what is installed from starting on this machine (a firewall, a Docker daemon, …) for as long as it lives.
struct Policy {
    ours: bool,
}

impl Policy {
    fn refuse_starts() -> Result<Self, String> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, REFUSE)
            .and_then(|()| fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)))
            .map_err(|error| format!("cannot write {POLICY}: {error}"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("xtask: cannot remove {POLICY}: {error}");
        }
    }
}

/// What a run that was killed left.
fn remove_stale_policy() -> Result<(), String> {
    if fs::read_to_string(POLICY).is_ok_and(|text| text == REFUSE) {
        fs::remove_file(POLICY).map_err(|error| format!("cannot remove {POLICY}: {error}"))?;
    }
    Ok(())
}
