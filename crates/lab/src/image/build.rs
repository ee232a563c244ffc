//! How an image's folders come to be: debootstrap, a package repository on disk, the stand-ins, and layers of packages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use sha2::{Digest, Sha256};

use super::{BASE, BUILD, PASSWORD, PROTECTION, REPOSITORY, Release, SSHD, STAND_IN, UNITS, stack};
use crate::cell::{Cell, NONE};
use crate::error::{Context, Error, Result};
use crate::host::write_file;
use crate::mirror;
use crate::net::SERVER_NETWORK;
use crate::process::{Program, find, ok_here};

/// Runs programs of this machine in namespaces of their own, so that they end with us, and their mounts too.
struct Workshop {
    cell: Cell,
    logs: PathBuf,
    environment: Vec<(String, String)>,
}

impl Workshop {
    fn new(partial: &Path, arrange: impl FnOnce() -> Result<()> + Send) -> Result<Self> {
        let cell = Cell::new("image", CloneFlags::empty(), arrange)?;
        // Behind a proxy, debootstrap and apt find it in these.
        let environment = ["http_proxy", "https_proxy", "no_proxy"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
            .chain([
                ("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned()),
                ("LC_ALL".to_owned(), "C.UTF-8".to_owned()),
            ])
            .collect();
        Ok(Self {
            cell,
            logs: partial.to_owned(),
            environment,
        })
    }

    fn ok(&self, argv: &[&str]) -> Result<String> {
        let mut program =
            Program::new("the image", self.cell.spaces(), &self.logs, argv).timeout(BUILD);
        for (name, value) in &self.environment {
            program = program.env(name, value);
        }
        program.ok()
    }

    fn chroot(&self, root: &Path, argv: &[&str]) -> Result<String> {
        let root = root.to_string_lossy();
        let mut all = vec!["chroot", &root];
        all.extend(argv);
        self.ok(&all)
    }

    /// Installs packages without starting anything.
    fn install(&self, root: &Path, packages: &[&str]) -> Result<()> {
        let policy = root.join("usr/sbin/policy-rc.d");
        write_file(&policy, b"#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))
            .at("set the mode of", &policy)?;
        let mut argv = vec!["apt-get", "install", "-y", "-q"];
        argv.extend(packages);
        self.chroot(root, &argv)?;
        fs::remove_file(&policy).at("remove", &policy)
    }
}

/// Debian's minimum, what every machine has besides, and what makes it a lab machine; in `partial`/root.
pub(super) fn base(release: Release, partial: &Path) -> Result<()> {
    if find("debootstrap").is_none() {
        return Err(Error::Missing {
            program: "debootstrap".into(),
            package: "debootstrap".into(),
        });
    }
    let root = partial.join("root");
    fs::create_dir_all(&root).at("make", &root)?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).at("set the mode of", &root)?;
    let mirror = mirror::mirror()?;
    let shop = Workshop::new(partial, || Ok(()))?;
    shop.ok(&[
        "debootstrap",
        "--variant=minbase",
        &format!("--include={}", BASE.join(",")),
        release.suite(),
        &root.to_string_lossy(),
        &mirror,
    ])?;
    drop(shop);
    let proc = root.join("proc");
    let shop = Workshop::new(partial, || {
        mount(Some("proc"), &proc, Some("proc"), MsFlags::empty(), NONE).at("mount", &proc)
    })?;
    stock_repository(&shop, release, &root)?;
    furnish(&shop, &root)
}

/// Downloads what machines may want to install, and makes it the machine's only source of packages.
fn stock_repository(shop: &Workshop, release: Release, root: &Path) -> Result<()> {
    for file in ["etc/resolv.conf", "etc/hosts"] {
        let (from, to) = (Path::new("/").join(file), root.join(file));
        if from.exists() {
            fs::copy(&from, &to).at("write", &to)?;
        }
    }
    let archives = root.join("var/cache/apt/archives");
    shop.chroot(root, &["apt-get", "clean"])?;
    // A mirror that lags behind (a frozen snapshot, say) is as good for a lab; signatures are checked all the same.
    let old_too = "--option=Acquire::Check-Valid-Until=false";
    shop.chroot(root, &["apt-get", "update", "-q", old_too])?;
    let download = ["apt-get", "install", "-y", "-q", "--download-only"];
    shop.chroot(root, &[&download[..], PROTECTION].concat())?;
    // Docker's recommendations (git, AppArmor, …) are many and change nothing here.
    shop.chroot(
        root,
        &[
            &download[..],
            &["--no-install-recommends"],
            release.docker(),
            release.podman(),
        ]
        .concat(),
    )?;

    let repository = root.join(REPOSITORY.trim_start_matches('/'));
    fs::create_dir_all(&repository).at("make", &repository)?;
    let mut index = String::new();
    let mut packages: Vec<PathBuf> = fs::read_dir(&archives)
        .at("read", &archives)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    packages.sort();
    for package in packages {
        let name = package
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let bytes = fs::read(&package).at("read", &package)?;
        let fields = ok_here(
            &["dpkg-deb", "-f", &package.to_string_lossy()],
            b"",
            Duration::from_secs(30),
        )?;
        let hash: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        index += &format!(
            "{}\nFilename: ./{name}\nSize: {}\nSHA256: {hash}\n\n",
            fields.trim_end(),
            bytes.len()
        );
        let to = repository.join(&name);
        fs::rename(&package, &to).at("move", &package)?;
    }
    write_file(&repository.join("Packages"), index.as_bytes())?;

    let lists = root.join("var/lib/apt/lists");
    fs::remove_dir_all(&lists).at("remove", &lists)?;
    fs::create_dir_all(lists.join("partial")).at("make", &lists)?;
    for old in [
        "etc/apt/sources.list.d/debian.sources",
        "etc/apt/sources.list",
    ] {
        let _ = fs::remove_file(root.join(old));
    }
    write_file(
        &root.join("etc/apt/sources.list"),
        format!("deb [trusted=yes] file:{REPOSITORY} ./\n").as_bytes(),
    )?;
    shop.chroot(root, &["apt-get", "clean"])?;
    shop.chroot(root, &["apt-get", "update", "-q"])?;
    write_file(&root.join("etc/resolv.conf"), b"")
}

/// Name, users, addresses and stand-ins.
fn furnish(shop: &Workshop, root: &Path) -> Result<()> {
    let put = |path: &str, text: &str| write_file(&root.join(path), text.as_bytes());
    put("etc/hostname", "server\n")?;
    put(
        "etc/hosts",
        "127.0.0.1 localhost server\n::1 localhost server\n",
    )?;
    // A fixed identity: with an empty one, systemd takes every boot of a fresh overlay for the first ever.
    put("etc/machine-id", "6c616220706f727463756c6c69730a00\n")?;
    put("etc/ssh/sshd_config.d/lab.conf", SSHD)?;
    put("etc/lab-network", SERVER_NETWORK)?;
    for (name, text) in UNITS {
        put(&format!("etc/systemd/system/{name}"), text)?;
    }
    for name in ["ollama-stand-in", "ray-stand-in", "web-stand-in"] {
        let path = root.join("usr/local/bin").join(name);
        write_file(&path, STAND_IN.as_bytes())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .at("set the mode of", &path)?;
    }
    // As Ollama's installer does it.
    shop.chroot(
        root,
        &[
            "useradd",
            "-r",
            "-s",
            "/bin/false",
            "-U",
            "-m",
            "-d",
            "/usr/share/ollama",
            "ollama",
        ],
    )?;
    shop.chroot(
        root,
        &["useradd", "-m", "-s", "/bin/bash", "-G", "sudo", "admin"],
    )?;
    put("etc/sudoers.d/admin", "admin ALL=(ALL) NOPASSWD: ALL\n")?;
    let logins = format!("root:{PASSWORD}\nadmin:{PASSWORD}\n");
    Program::new(
        "the image",
        shop.cell.spaces(),
        &shop.logs,
        &["chroot", root.to_string_lossy().as_ref(), "chpasswd"],
    )
    .input(logins)
    .ok()?;
    shop.chroot(root, &["systemctl", "enable", "lab-network.service"])?;
    Ok(())
}

/// The changes that installing `packages` over the folders `below` makes; in `partial`/root.
pub(super) fn layer(below: &[PathBuf], partial: &Path, packages: &[&str]) -> Result<()> {
    let (upper, work, merged) = (
        partial.join("root"),
        partial.join("work"),
        partial.join("merged"),
    );
    for folder in [&upper, &work, &merged] {
        fs::create_dir_all(folder).at("make", folder)?;
    }
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).at("set the mode of", &upper)?;
    let shop = Workshop::new(partial, || {
        stack(below, &upper, &work, &merged)?;
        let proc = merged.join("proc");
        mount(Some("proc"), &proc, Some("proc"), MsFlags::empty(), NONE).at("mount", &proc)
    })?;
    shop.install(&merged, packages)
}
