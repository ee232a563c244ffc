//! Real services, and stand-ins, inside a namespace host.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::process::{Output, Process};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const START: Duration = Duration::from_secs(20);

/// A running sshd. It ends when dropped.
#[derive(Debug)]
pub struct Sshd {
    /// The private key, readable outside and inside every host of the lab, that opens root's account.
    pub key: PathBuf,
    /// The password of root.
    pub password: &'static str,
    daemon: Process,
    _log: Process,
}

impl Sshd {
    /// The daemon itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.daemon
    }
}

/// How somebody logs in.
#[derive(Debug, Clone)]
pub(crate) enum Credential<'a> {
    Key(&'a Path),
    Password(&'a str),
}

impl Host {
    /// A web server whose every page is `page`, as a process called `name` (15 characters show). `listen` is
    /// `ADDRESS:PORT`, `[V6]:PORT`; `[::]:PORT` takes both families.
    pub fn http_server(&self, name: &str, listen: &str, page: &str) -> Result<Process> {
        let listen: SocketAddr = listen
            .parse()
            .map_err(|_| Error::Invalid(format!("{listen:?} is not ADDRESS:PORT")))?;
        let site = tempfile::Builder::new()
            .prefix("site-")
            .tempdir_in(self.folder())
            .at("make a folder in", self.folder())?
            .keep();
        fs::write(site.join("index.html"), page).at("write", &site)?;
        // A copy under another name: the process is then called so.
        let program = site.join(name);
        fs::copy("/bin/busybox", &program).map_err(|_| Error::Missing {
            program: "busybox".into(),
            package: "busybox-static".into(),
        })?;
        let mut process = self
            .command(&[
                program.to_string_lossy().as_ref(),
                "-f",
                "-p",
                &listen.to_string(),
                "-h",
                &site.to_string_lossy(),
            ])
            .argv0("httpd")
            .spawn()?;
        let near = match listen.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => LOOPBACK,
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        };
        process.wait_until(&format!("{name} to listen on {listen}"), START, |_| {
            self.connect(near, listen.port(), Duration::from_millis(500))
                .unwrap_or(false)
        })?;
        Ok(process)
    }

    /// A TCP server on every address, both families, that sends `banner` to whoever connects and hangs up.
    pub fn tcp_server(&self, port: u16, banner: &str) -> Result<Process> {
        let script = self.folder().join(format!("banner-{port}"));
        fs::write(&script, banner).at("write", &script)?;
        let mut process = self.spawn(&[
            "/bin/busybox",
            "nc",
            "-ll",
            "-p",
            &port.to_string(),
            "-e",
            "/bin/cat",
            &script.to_string_lossy(),
        ])?;
        process.wait_until(&format!("a server on port {port}"), START, |_| {
            self.connect(LOOPBACK, port, Duration::from_millis(500))
                .unwrap_or(false)
        })?;
        Ok(process)
    }

    /// A syslog daemon on /dev/log that writes /var/log/auth.log, as rsyslog would.
    pub fn syslog(&self) -> Result<Process> {
        self.write("/var/log/auth.log", b"")?;
        let mut process = self.spawn(&[
            "/bin/busybox",
            "syslogd",
            "-n",
            "-S",
            "-O",
            "/var/log/auth.log",
        ])?;
        process.wait_until("a syslog daemon", START, |_| {
            self.exists("/dev/log").unwrap_or(false)
        })?;
        Ok(process)
    }

    /// The real sshd on port 22 (both families), root by key or password, with its own host keys, logging to
    /// /var/log/auth.log through a syslog daemon.
    pub fn sshd(&self) -> Result<Sshd> {
        self.sshd_with("")
    }

    /// As [`Host::sshd`], with more lines for sshd_config; they come first, so they win.
    pub fn sshd_with(&self, settings: &str) -> Result<Sshd> {
        const PASSWORD: &str = "correct horse battery staple";
        let log = self.syslog()?;
        let folder = self.folder().join("ssh");
        fs::create_dir_all(&folder).at("make", &folder)?;
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        for key in ["host_key", "operator_key"] {
            self.ok(&[
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-f",
                &path(key),
            ])?;
        }
        fs::copy(
            folder.join("operator_key.pub"),
            folder.join("authorized_keys"),
        )
        .at("write", &folder)?;
        self.command(&["chpasswd"])
            .input(format!("root:{PASSWORD}\n"))
            .ok()?;
        let config = format!(
            "{settings}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nUseDNS no\n\
             PermitRootLogin yes\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\n\
             PidFile /run/sshd.pid\nMaxStartups 100\n",
            path("host_key"),
            path("authorized_keys"),
        );
        self.write("/etc/ssh/sshd_config", config.as_bytes())?;
        self.inside(|| fs::create_dir_all("/run/sshd").at("make", "/run/sshd".as_ref()))??;
        let mut daemon = self.spawn(&["/usr/sbin/sshd", "-D"])?;
        daemon.wait_until("sshd to answer", START, |_| {
            self.exists("/run/sshd.pid").unwrap_or(false)
        })?;
        Ok(Sshd {
            key: folder.join("operator_key"),
            password: PASSWORD,
            daemon,
            _log: log,
        })
    }

    /// Runs `command` on another host over ssh from here, as root with a key, five minutes at most. ssh hands the words,
    /// joined by spaces, to the other host's shell.
    pub fn ssh(&self, to: IpAddr, key: &Path, command: &[&str]) -> Result<Output> {
        self.ssh_as("root", to, key, command)
    }

    /// As [`Host::ssh`], as `user`.
    pub fn ssh_as(&self, user: &str, to: IpAddr, key: &Path, command: &[&str]) -> Result<Output> {
        self.ssh_with(user, to, &Credential::Key(key), command)
    }

    /// Tries one password on another host's sshd from here; says whether it let us in. Who is banned meanwhile
    /// may get no answer at all: he is not in either.
    pub fn ssh_password(&self, to: IpAddr, user: &str, password: &str) -> Result<bool> {
        match self.ssh_with(user, to, &Credential::Password(password), &["true"]) {
            Err(Error::Timeout { .. }) => Ok(false),
            other => Ok(other?.success()),
        }
    }

    fn ssh_with(
        &self,
        user: &str,
        to: IpAddr,
        credential: &Credential<'_>,
        command: &[&str],
    ) -> Result<Output> {
        let target = format!("{user}@{to}");
        let mut argv = vec!["/usr/bin/ssh".to_owned(), "-F".into(), "/dev/null".into()];
        let mut options = vec![
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "GlobalKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=5",
            "NumberOfPasswordPrompts=1",
            "IdentityAgent=none",
        ];
        let mut env = Vec::new();
        // A command may install packages; a password is refused within seconds.
        let bound = match credential {
            Credential::Key(_) => Duration::from_secs(300),
            Credential::Password(_) => Duration::from_secs(40),
        };
        match credential {
            Credential::Key(key) => {
                options.extend(["BatchMode=yes", "IdentitiesOnly=yes"]);
                argv.extend(["-i".to_owned(), key.to_string_lossy().into_owned()]);
            }
            Credential::Password(password) => {
                options.extend([
                    "PubkeyAuthentication=no",
                    "PreferredAuthentications=password",
                ]);
                // ssh asks this program for the password.
                self.write(
                    "/run/askpass",
                    "#!/bin/sh\nprintf '%s\\n' \"$LAB_PASSWORD\"\n",
                )?;
                self.ok(&["chmod", "0755", "/run/askpass"])?;
                env = vec![
                    ("SSH_ASKPASS", "/run/askpass"),
                    ("SSH_ASKPASS_REQUIRE", "force"),
                    ("LAB_PASSWORD", *password),
                ];
            }
        }
        for option in options {
            argv.extend(["-o".to_owned(), option.to_owned()]);
        }
        argv.push(target);
        argv.extend(command.iter().map(|word| (*word).to_owned()));
        let mut program = self.command(&argv).timeout(bound);
        for (name, value) in env {
            program = program.env(name, value);
        }
        program.run()
    }

    /// The real fail2ban with the configuration that the host has, in the foreground; returns when it answers. Its log
    /// is /var/log/fail2ban.log. Debian 12 needs a log file first: see [`Host::syslog`].
    pub fn fail2ban(&self) -> Result<Process> {
        self.inside(|| fs::create_dir_all("/run/fail2ban").at("make", "/run/fail2ban".as_ref()))??;
        let mut daemon = self.spawn(&["fail2ban-server", "-xf", "start"])?;
        daemon.wait_until("fail2ban to answer", START, |_| {
            self.run(&["fail2ban-client", "ping"])
                .is_ok_and(|output| output.success())
        })?;
        Ok(daemon)
    }
}
