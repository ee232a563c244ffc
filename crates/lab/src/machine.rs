//! A whole Debian with systemd as its first process, in the same world as a namespace host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;

use crate::cell::{Cell, Namespaces, everything};
use crate::error::{Context, Error, Result};
use crate::furnish::tmpfs;
use crate::host::write_file;
use crate::image::{Image, Release, stack};
use crate::net::{Around, NetLab};
use crate::process::{self, Output, Process, Program, last_lines, ok_here};
use crate::room::Room;

mod nspawn;

use nspawn::Nspawn;

/// How long a machine may take to boot or to shut down.
const BOOT: Duration = Duration::from_secs(120);

/// The units of the image's stand-ins, and their ports.
const STAND_INS: [(&str, u16); 3] = [
    ("ollama.service", 11434),
    ("ray.service", 8265),
    ("web.service", 443),
];

/// Podman limits the number of processes unless told otherwise; where this machine's hierarchy of cgroups is a hybrid
/// one, the lab machine's has no controller for that.
const PODMAN: &str = "[containers]\npids_limit = 0\n";

/// What systemd-nspawn ends with when the machine asked for a reboot (systemd-nspawn(1), `--keep-unit`).
const REBOOT: i32 = 133;

/// A Debian machine under systemd-nspawn, with the same interfaces and addresses as `World::server` and the same
/// people around it (`machine.stranger`, …). Root's and admin's password is [`Machine::password`], and
/// [`Machine::key`] opens root's and admin's account.
///
/// It is gone, with everything on its disk, when dropped or when this process ends.
#[derive(Debug)]
pub struct Machine {
    running: Option<Running>,
    image: Image,
    folders: Vec<PathBuf>,
    folder: PathBuf,
    logs: PathBuf,
    key: PathBuf,
    /// Everybody else.
    pub around: Around,
    /// The lab that the machine is in; more hosts can be added.
    pub lab: NetLab,
    /// Goes last.
    room: Arc<Room>,
}

#[derive(Debug)]
struct Running {
    spaces: Namespaces,
    leader: u32,
    nspawn: Nspawn,
    /// Its end is the end of everything that runs in it.
    _cell: Cell,
}

/// What a machine is to be.
#[derive(Debug, Clone, Copy)]
#[must_use = "nothing boots before boot()"]
pub struct MachineOptions {
    image: Image,
}

impl MachineOptions {
    /// With Docker installed and running.
    pub fn with_docker(mut self) -> Self {
        self.image.docker = true;
        self
    }

    /// With Podman installed.
    pub fn with_podman(mut self) -> Self {
        self.image.podman = true;
        self
    }

    /// Without UFW and fail2ban; `apt-get install` finds them on the machine's own disk.
    pub fn bare(mut self) -> Self {
        self.image.protection = false;
        self
    }

    /// Builds the image if need be (minutes, the first time), makes the world and boots (about ten seconds).
    pub fn boot(self, name: &str) -> Result<Machine> {
        self.boot_telling(name, &mut |line| eprintln!("lab: {line}"))
    }

    /// As [`MachineOptions::boot`], where `say` gets a line for each step that takes minutes (standard error otherwise).
    pub fn boot_telling(self, name: &str, say: &mut dyn FnMut(&str)) -> Result<Machine> {
        Machine::create(name, self.image, say)
    }
}

impl Machine {
    /// What to boot: `Machine::of(Release::Bookworm).with_docker().boot("name")`. UFW and fail2ban are installed as
    /// Debian installs them unless [`MachineOptions::bare`].
    pub fn of(release: Release) -> MachineOptions {
        MachineOptions {
            image: Image {
                release,
                protection: true,
                docker: false,
                podman: false,
            },
        }
    }

    fn create(name: &str, image: Image, say: &mut dyn FnMut(&str)) -> Result<Self> {
        if process::find("systemd-nspawn").is_none() {
            return Err(Error::Missing {
                program: "systemd-nspawn".into(),
                package: "systemd-container".into(),
            });
        }
        let folders = image.ensure(say)?;
        let lab = NetLab::new(name)?;
        let room = lab.room().clone();
        let around = Around::new(&lab)?;
        let folder = room.folder("machine")?;
        let storage = nspawn::STORAGE.map(|(part, _)| part);
        for part in ["changes", "work", "root", "logs"].iter().chain(&storage) {
            room.folder(Path::new("machine").join(part))?;
        }
        let changes = folder.join("changes");
        fs::set_permissions(&changes, fs::Permissions::from_mode(0o755))
            .at("set the mode of", &changes)?;
        let key = folder.join("operator_key");
        ok_here(
            &[
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-f",
                &key.to_string_lossy(),
            ],
            b"",
            Duration::from_secs(20),
        )?;
        let mut machine = Self {
            running: None,
            image,
            folders,
            logs: folder.join("logs"),
            folder,
            key,
            around,
            lab,
            room,
        };
        machine.boot()?;
        machine.around.wait_for_paths()?;
        let public = fs::read(machine.key.with_extension("pub")).at("read", &machine.key)?;
        for (home, owner) in [("/root", "root:root"), ("/home/admin", "admin:admin")] {
            let ssh = format!("{home}/.ssh");
            machine.write(&format!("{ssh}/authorized_keys"), &public)?;
            machine.ok(&["chown", "-R", owner, &ssh])?;
            machine.ok(&["chmod", "0700", &ssh])?;
        }
        if image.podman {
            machine.write("/etc/containers/containers.conf", PODMAN)?;
            // As udev has it (50-udev-default.rules): a user's own engine makes its network by it. The node is the
            // machine's own, with the mode of this machine's.
            machine.ok(&["chmod", "0666", "/dev/net/tun"])?;
        }
        Ok(machine)
    }

    /// The private key that opens root's and admin's account: a path that is the same outside and inside every
    /// namespace host of the lab.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// Root's and admin's password.
    pub fn password(&self) -> &'static str {
        crate::image::PASSWORD
    }

    /// Switches the machine on, with what is on its disk, and waits until it is ready. Its network comes up empty of
    /// rules, as on real hardware.
    pub fn boot(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Err(Error::Invalid("the machine is on already".into()));
        }
        let root = self.folder.join("root");
        let (changes, work) = (self.folder.join("changes"), self.folder.join("work"));
        let cell = Cell::new("machine", CloneFlags::CLONE_NEWNET, || {
            // Where systemd-nspawn keeps its locks: two machines have nothing to do with one another.
            tmpfs(Path::new("/run"), "mode=0755")?;
            stack(&self.folders, &changes, &work, &root)
        })?;
        self.around.plug_into(cell.pid())?;
        let mut nspawn = Nspawn::start(&nspawn::Setup {
            cell: &cell,
            root: &root,
            storage: &self.folder,
            console: &self.console(),
            cgroup: self.room.name(),
        })?;
        let (leader, spaces) = nspawn.leader(BOOT).map_err(|error| match error {
            Error::Timeout { what, after, .. } => Error::timeout(what, after, &self.console_end()),
            other => other,
        })?;
        self.running = Some(Running {
            spaces,
            leader,
            nspawn,
            _cell: cell,
        });
        if let Err(error) = self.wait_ready().and_then(|()| self.wait_for_stand_ins()) {
            self.running = None;
            return Err(error);
        }
        // What is on the disk now may well be meant to let nobody through.
        match self.around.wait_for_paths() {
            Err(Error::Timeout { .. }) => Ok(()),
            other => other,
        }
    }

    /// Waits until systemd says that the boot is over, well or (`degraded`) with failed units.
    pub fn wait_ready(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let left = BOOT
                .saturating_sub(start.elapsed())
                .max(Duration::from_secs(1));
            let state = self
                .command(&["systemctl", "is-system-running"])?
                .timeout(left)
                .run()?
                .stdout;
            if matches!(state.trim(), "running" | "degraded") {
                return Ok(());
            }
            if start.elapsed() >= BOOT {
                let jobs = self
                    .run(&["systemctl", "list-jobs"])
                    .map(|output| output.text());
                let seen = format!("{} {}", state.trim(), jobs.unwrap_or_default());
                return Err(Error::timeout("the end of a machine's boot", BOOT, &seen));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the stand-ins that start at boot listen: like the real services, they count as started before.
    fn wait_for_stand_ins(&self) -> Result<()> {
        const BOUND: Duration = Duration::from_secs(20);
        let start = Instant::now();
        for (unit, port) in STAND_INS {
            let is = |what: &str| {
                Ok::<_, Error>(self.run(&["systemctl", what, "--quiet", unit])?.success())
            };
            if !is("is-enabled")? {
                continue;
            }
            // One that fails is not waited for: a test may have broken it.
            while is("is-active")? && !self.listens(port)? && start.elapsed() < BOUND {
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Whether any TCP socket of the machine listens on a port.
    fn listens(&self, port: u16) -> Result<bool> {
        // `0A` is TCP_LISTEN; addresses and ports are hexadecimal (proc_net_tcp in the kernel's documentation).
        let suffix = format!(":{port:04X}");
        self.in_net(|| {
            ["tcp", "tcp6"].iter().any(|table| {
                fs::read_to_string(format!("/proc/thread-self/net/{table}")).is_ok_and(|text| {
                    text.lines().any(|line| {
                        let mut fields = line.split_whitespace();
                        fields.nth(1).is_some_and(|local| local.ends_with(&suffix))
                            && fields.nth(1) == Some("0A")
                    })
                })
            })
        })
    }

    /// `systemctl reboot`, and waits until the machine is ready again.
    pub fn reboot(&mut self) -> Result<()> {
        self.shut_down("reboot", Some(REBOOT))?;
        self.boot()
    }

    /// `systemctl poweroff`, and waits for its end. [`Machine::boot`] switches it on again.
    pub fn power_off(&mut self) -> Result<()> {
        self.shut_down("poweroff", Some(0))
    }

    fn shut_down(&mut self, how: &str, expect: Option<i32>) -> Result<()> {
        // The machine may be gone before systemctl has ended.
        let _ = self.command(&["systemctl", how])?.timeout(BOOT).run();
        let Some(mut running) = self.running.take() else {
            return Err(off());
        };
        match running.nspawn.wait(BOOT) {
            None => Err(Error::timeout(
                format!("the end of a machine's {how}"),
                BOOT,
                &self.console_end(),
            )),
            Some(status) if status.code() == expect => Ok(()),
            Some(status) => Err(Error::Failed {
                host: "this machine".into(),
                argv: format!("systemd-nspawn ({how})"),
                status: status.code().map_or_else(
                    || format!("signal {}", status.signal().unwrap_or_default()),
                    |code| format!("exit code {code}"),
                ),
                stderr: self.console_end(),
            }),
        }
    }

    /// Ends every process of the machine at once, as losing power does. What was written to its disk is there at the
    /// next [`Machine::boot`]; unlike with real power loss, also what was not synced.
    pub fn power_cut(&mut self) -> Result<()> {
        self.running.take().map(drop).ok_or_else(off)
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.running.is_some()
    }

    /// The process id of its systemd, outside: what `nsenter -t` takes.
    pub fn leader(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.leader)
    }

    fn spaces(&self) -> Result<&Namespaces> {
        self.running
            .as_ref()
            .map(|running| &running.spaces)
            .ok_or_else(off)
    }

    /// A program to run on the machine, as root.
    pub fn command<'a>(&'a self, argv: &[impl AsRef<str>]) -> Result<Program<'a>> {
        Ok(Program::new(
            "the machine",
            self.spaces()?,
            &self.logs,
            argv,
        ))
    }

    /// Runs a program to its end, a minute at most. That it fails is no error.
    pub fn run(&self, argv: &[impl AsRef<str>]) -> Result<Output> {
        self.command(argv)?.run()
    }

    /// Runs a program to its end, a minute at most, and gives its standard output. That it fails is an error.
    pub fn ok(&self, argv: &[impl AsRef<str>]) -> Result<String> {
        self.command(argv)?.ok()
    }

    /// Starts a program that runs until the guard is dropped.
    pub fn spawn(&self, argv: &[impl AsRef<str>]) -> Result<Process> {
        self.command(argv)?.spawn()
    }

    /// Runs `f` on a thread of its own inside the machine's network.
    pub fn in_net<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.spaces()?.within(CloneFlags::CLONE_NEWNET, f)
    }

    /// Runs `f` on a thread of its own inside the machine's network and filesystem.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.spaces()?.within(everything(), f)
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

    /// Whether a path exists on the machine.
    pub fn exists(&self, path: &str) -> Result<bool> {
        self.inside(|| Path::new(path).exists())
    }

    /// Copies a file of this machine into the lab machine, with its mode: for a program under test.
    pub fn copy_in(&self, from: &Path, to: &str) -> Result<()> {
        let bytes = fs::read(from).at("read", from)?;
        let mode = fs::metadata(from).at("look at", from)?.permissions();
        self.inside(|| {
            let to = Path::new(to);
            // A program that runs cannot be written over, but it can be replaced.
            let _ = fs::remove_file(to);
            write_file(to, &bytes)?;
            fs::set_permissions(to, mode).at("set the mode of", to)
        })?
    }

    /// The state that the guide warns of: stand-ins for Ollama on every address (`ollama.service`, port 11434), a Ray
    /// dashboard (`ray.service`, 8265) and a web server (`web.service`, 443), now and at every boot.
    pub fn start_ai_services(&self) -> Result<()> {
        let mut argv = vec!["systemctl", "enable", "--now"];
        argv.extend(STAND_INS.map(|(unit, _)| unit));
        self.ok(&argv)?;
        for (_, port) in STAND_INS {
            self.around.operator.wait_port(
                crate::net::address::SERVER,
                port,
                Duration::from_secs(20),
            )?;
        }
        Ok(())
    }

    /// Makes a Docker image, without a registry, whose container serves `page` on its port 80.
    pub fn import_web_image(&self, tag: &str, page: &str) -> Result<()> {
        self.import_image_into("docker", tag, page)
    }

    /// As [`Machine::import_web_image`], for `docker` or `podman`.
    pub fn import_image_into(&self, engine: &str, tag: &str, page: &str) -> Result<()> {
        let tar = crate::docker::web_image_tar(&self.folder.join("image"), page)?;
        self.copy_in(&tar, "/var/tmp/image.tar")?;
        let mut argv = vec![engine, "import"];
        argv.extend(crate::docker::WEB_IMAGE);
        argv.extend(["/var/tmp/image.tar", tag]);
        self.ok(&argv).map(drop)
    }

    /// Whether Docker is installed.
    pub fn has_docker(&self) -> bool {
        self.image.docker
    }

    /// The messages of one unit, or of all, in this boot.
    pub fn journal(&self, unit: Option<&str>) -> Result<String> {
        let mut argv = vec!["journalctl", "--no-pager", "-b", "-o", "short-iso"];
        if let Some(unit) = unit {
            argv.extend(["-u", unit]);
        }
        self.ok(&argv)
    }

    fn console(&self) -> PathBuf {
        self.logs.join("console")
    }

    fn console_end(&self) -> String {
        fs::read(self.console()).map_or_else(
            |_| String::new(),
            |bytes| last_lines(&String::from_utf8_lossy(&bytes)),
        )
    }
}

impl std::ops::Deref for Machine {
    type Target = Around;

    fn deref(&self) -> &Around {
        &self.around
    }
}

fn off() -> Error {
    Error::Invalid("the machine is off".into())
}
