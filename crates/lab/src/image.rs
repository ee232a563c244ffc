//! Debian root filesystems for machines, built once and kept in a cache.
//!
//! An image is a stack of folders, each the changes over the one below: the base (debootstrap, the stand-ins, and a
//! package repository on disk), then UFW and fail2ban as Debian installs them, then Docker. A machine's own changes are
//! one more folder on top, so images never change once built. A folder is named after a hash of everything that went
//! into it, appears whole (rename), and is built by one process at a time (lock).

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};
use crate::net::SERVER_NETWORK;
use crate::room::{check_owner, make_private};

mod build;

/// The environment variable that moves the cache of images (default `$XDG_CACHE_HOME/portcullis/images`, or
/// `~/.cache/portcullis/images`, or without a HOME `/var/cache/portcullis/images`). It must be on a real disk: the kernel allows no overlay on an overlay.
pub const CACHE_VARIABLE: &str = "PORTCULLIS_LAB_CACHE";

/// To be raised when the way in which images are built changes and nothing in [`recipe`] shows it.
const GENERATION: u32 = 1;

/// A Debian release to make a machine of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Release {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
    /// Debian unstable.
    Sid,
}

impl Release {
    /// Every release that the lab knows.
    pub const ALL: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::Sid];

    /// The suite's name in Debian's archive.
    pub fn suite(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }

    /// From Debian 13 on, the client is a package of its own.
    fn docker(self) -> &'static [&'static str] {
        match self {
            Self::Bookworm => &["docker.io"],
            Self::Trixie => &["docker.io", "docker-cli", "docker-compose"],
            Self::Sid => &["docker.io", "docker-cli"],
        }
    }

    /// Podman with what its networks need; the lab knows that of Debian 13.
    fn podman(self) -> &'static [&'static str] {
        match self {
            Self::Trixie => &["podman", "netavark", "aardvark-dns", "passt", "uidmap"],
            Self::Bookworm | Self::Sid => &[],
        }
    }
}

impl std::str::FromStr for Release {
    type Err = Error;

    fn from_str(suite: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|release| release.suite() == suite)
            .ok_or_else(|| Error::Invalid(format!("{suite:?} is none of bookworm, trixie, sid")))
    }
}

/// What is installed on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Image {
    /// The Debian release.
    pub release: Release,
    /// UFW and fail2ban as Debian installs them; otherwise `apt-get install` finds them on the machine's own disk.
    pub protection: bool,
    /// Docker as Debian installs it; likewise.
    pub docker: bool,
    /// Podman as Debian installs it; likewise. Debian 13 only.
    pub podman: bool,
}

const PROTECTION: &[&str] = &["ufw", "fail2ban"];

/// What every machine has besides Debian's minimum.
const BASE: &[&str] = &[
    "ca-certificates",
    "conntrack",
    "curl",
    "dbus",
    "iproute2",
    "iptables",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "netbase",
    "nftables",
    "openssh-client",
    "openssh-server",
    "procps",
    "python3",
    "python3-systemd",
    "sudo",
    "systemd",
    "systemd-sysv",
];

const STAND_IN: &str = include_str!("image/stand-in.py");
const UNITS: &[(&str, &str)] = &[
    (
        "lab-network.service",
        include_str!("image/lab-network.service"),
    ),
    ("ollama.service", include_str!("image/ollama.service")),
    ("ray.service", include_str!("image/ray.service")),
    ("web.service", include_str!("image/web.service")),
];

/// Root's password, and admin's, on every machine.
pub(crate) const PASSWORD: &str = "correct horse battery staple";

const SSHD: &str = "PermitRootLogin yes\nPasswordAuthentication yes\nUseDNS no\n";
const REPOSITORY: &str = "/opt/lab-packages";
const BUILD: Duration = Duration::from_secs(20 * 60);

impl Image {
    /// The image's folders, lowest first; those that do not exist yet are built, which takes a few minutes.
    pub fn ensure(&self, say: &mut dyn FnMut(&str)) -> Result<Vec<PathBuf>> {
        crate::error::need_root()?;
        let cache = cache()?;
        // An image has old set-uid programs that no user of this machine should find, and nobody else may change it.
        make_private(&cache)?;
        check_owner(&cache, CACHE_VARIABLE)?;
        let key = format!("{}-{}", self.release.suite(), &recipe(self.release)[..16]);
        let mut folders = vec![cache.join(&key)];
        let mut steps: Vec<&[&str]> = Vec::new();
        let mut name = key.clone();
        for (wanted, packages) in [
            (self.protection, PROTECTION),
            (self.docker, self.release.docker()),
            (self.podman, self.release.podman()),
        ] {
            if wanted && packages.is_empty() {
                let suite = self.release.suite();
                return Err(Error::Invalid(format!(
                    "the lab has no such packages for {suite}"
                )));
            }
            if wanted {
                name = format!("{name}-{}", packages.join("-"));
                folders.push(cache.join(&name));
                steps.push(packages);
            }
        }
        if folders.iter().all(|folder| folder.is_dir()) {
            return Ok(folders);
        }

        let _lock = lock(&cache.join(format!("{key}.lock")), say)?;
        if !folders[0].is_dir() {
            say(&format!(
                "building a Debian root filesystem ({}), once; this takes a few minutes",
                self.release.suite()
            ));
            build_whole(&folders[0], |partial| build::base(self.release, partial))?;
        }
        for (depth, packages) in (1..).zip(steps) {
            if !folders[depth].is_dir() {
                say(&format!("adding {} to it", packages.join(", ")));
                let below = &folders[..depth];
                build_whole(&folders[depth], |partial| {
                    build::layer(below, partial, packages)
                })?;
            }
        }
        Ok(folders)
    }
}

/// Everything that decides what a base image contains, as a hexadecimal hash.
fn recipe(release: Release) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    };
    add(&GENERATION.to_string());
    add(release.suite());
    let extra = release.docker().iter().chain(release.podman());
    for text in BASE.iter().chain(PROTECTION).chain(extra) {
        add(text);
    }
    for (name, text) in UNITS {
        add(name);
        add(text);
    }
    for text in [
        STAND_IN,
        SERVER_NETWORK,
        SSHD,
        PASSWORD,
        std::env::consts::ARCH,
    ] {
        add(text);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub(crate) fn cache() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let path = if let Some(path) = variable(CACHE_VARIABLE) {
        PathBuf::from(path)
    } else if let Some(path) = variable("XDG_CACHE_HOME") {
        PathBuf::from(path).join("portcullis/images")
    } else if let Some(home) = variable("HOME") {
        PathBuf::from(home).join(".cache/portcullis/images")
    } else {
        PathBuf::from("/var/cache/portcullis/images")
    };
    let plain = path.is_absolute() && !path.to_string_lossy().contains([':', ',', '\\']);
    if plain {
        Ok(path)
    } else {
        Err(Error::Invalid(format!(
            "the cache of images must be an absolute path without `:`, `,` and `\\`: {}",
            path.display()
        )))
    }
}

/// One builder at a time; the others wait.
fn lock(path: &Path, say: &mut dyn FnMut(&str)) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .at("open", path)?;
    let start = Instant::now();
    let mut said = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => {
                return Err(Error::io("cannot lock the cache of images", source));
            }
            Err(TryLockError::WouldBlock) if start.elapsed() >= BUILD => {
                return Err(Error::timeout(
                    "another process's build of a Debian image",
                    BUILD,
                    "",
                ));
            }
            Err(TryLockError::WouldBlock) => {
                if !said {
                    said = true;
                    say("another process builds that image; waiting for it");
                }
                thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

/// Builds into a folder next to the wanted one and renames it when it is whole. Under the lock, so what an interrupted
/// build left can go.
fn build_whole(folder: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name = folder.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    if partial.exists() {
        fs::remove_dir_all(&partial).at("remove", &partial)?;
    }
    fs::create_dir_all(&partial).at("make", &partial)?;
    let result = build(&partial)
        .and_then(|()| fs::rename(partial.join("root"), folder).at("finish", folder));
    // Of no use to anyone, and the next build removes it if this does not.
    let _ = fs::remove_dir_all(&partial);
    result
}

/// Mounts folders (lowest first) as one at `merged`; changes go to `upper`.
pub(crate) fn stack(below: &[PathBuf], upper: &Path, work: &Path, merged: &Path) -> Result<()> {
    let lower: Vec<String> = below
        .iter()
        .rev()
        .map(|folder| folder.to_string_lossy().into_owned())
        .collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    mount(Some("overlay"), merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).context(|| {
        format!(
            "cannot mount an overlay on {} (its folder and the cache of images must be on a real disk: set {} and {})",
            merged.display(),
            crate::room::DIR_VARIABLE,
            CACHE_VARIABLE
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{Release, recipe};

    #[test]
    fn another_release_is_another_recipe() {
        let mut keys: Vec<String> = Release::ALL.into_iter().map(recipe).collect();
        assert_eq!(
            keys,
            Release::ALL.map(recipe),
            "a recipe is the same every time"
        );
        keys.dedup();
        assert_eq!(keys.len(), 3);
    }

    #[test]
    fn releases_are_named_by_their_suite() {
        for release in Release::ALL {
            assert_eq!(release.suite().parse::<Release>().unwrap(), release);
        }
        assert!("jessie".parse::<Release>().is_err());
    }
}
