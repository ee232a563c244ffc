//! Marked log entries, written to where a jail reads.

use portcullis_core::host::Jail;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// The mark: the user name, the path or the jail of a test entry.
pub(super) const MARK: &str = "portcullis-proof";

const JOURNAL: &str = "/run/systemd/journal/socket";
const COMM: &str = "/proc/self/comm";

/// A way to write failures of an address into a jail's log.
#[derive(Debug)]
pub(super) struct Injector<'a> {
    jail: &'a str,
    to: To<'a>,
    /// This program's own name, to be put back.
    comm: Option<String>,
}

#[derive(Debug)]
enum To<'a> {
    Journal(UnixDatagram),
    File(&'a Path),
}

impl<'a> Injector<'a> {
    /// `None` for a jail whose lines are not known here.
    pub fn open(jail: &'a Jail) -> io::Result<Option<Self>> {
        let known = [
            "sshd",
            "recidive",
            "nginx-401",
            "nginx-429",
            "open-webui",
            "uvicorn",
        ];
        if !known.contains(&jail.name.as_str()) {
            return Ok(None);
        }
        let to = match jail.files.first() {
            Some(file) => To::File(Path::new(file)),
            // Only fail2ban's own unit can write what this one reads.
            None if jail.name == "recidive" => return Ok(None),
            None if jail.journal.is_some() => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(JOURNAL)?;
                To::Journal(socket)
            }
            None => return Ok(None),
        };
        let mut injector = Self {
            jail: &jail.name,
            to,
            comm: None,
        };
        if injector.jail == "sshd" && matches!(injector.to, To::Journal(_)) {
            // The jail reads what root's processes of that name say; journald takes the name from the kernel.
            injector.comm = std::fs::read_to_string(COMM).ok();
            std::fs::write(COMM, daemon())?;
        }
        Ok(Some(injector))
    }

    /// One failure of `address`. fail2ban takes lines of one `process` for one connection, so that no
    /// two entries may have the same.
    pub fn failure(&self, address: IpAddr, process: u32) -> io::Result<()> {
        match &self.to {
            To::Journal(socket) => socket
                .send(self.entry(address, process).as_bytes())
                .map(drop),
            To::File(path) => {
                let line = self.line(address, process);
                // The file must be there: making it would hide that the jail reads nothing.
                let mut file = OpenOptions::new().append(true).open(path)?;
                file.write_all(line.as_bytes())
            }
        }
    }

    /// In the journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a field a line.
    fn entry(&self, address: IpAddr, process: u32) -> String {
        let (name, message) = match self.jail {
            "sshd" => (daemon(), ssh_message(address)),
            _ => ("uvicorn", uvicorn_message(address)),
        };
        format!(
            "PRIORITY=6\nSYSLOG_IDENTIFIER={name}\nSYSLOG_PID={process}\nPORTCULLIS_PROOF={}\nMESSAGE={message}\n",
            self.jail,
        )
    }

    fn line(&self, address: IpAddr, process: u32) -> String {
        let now = jiff::Zoned::now();
        match self.jail {
            "sshd" => format!(
                "{} localhost sshd[{process}]: {}\n",
                now.strftime("%Y-%m-%dT%H:%M:%S%:z"),
                ssh_message(address)
            ),
            "recidive" => format!(
                "{},000 fail2ban.actions        [{process}]: NOTICE  [{MARK}] Ban {address}\n",
                now.strftime("%Y-%m-%d %H:%M:%S"),
            ),
            "nginx-401" => nginx(address, &now, "GET", "/portcullis-proof", 401),
            "nginx-429" => nginx(address, &now, "GET", "/portcullis-proof", 429),
            "open-webui" => nginx(
                address,
                &now,
                "POST",
                "/api/v1/auths/signin?portcullis-proof",
                400,
            ),
            _ => uvicorn_message(address) + "\n",
        }
    }
}

impl Drop for Injector<'_> {
    fn drop(&mut self) {
        if let Some(comm) = &self.comm {
            let _ = std::fs::write(COMM, comm.trim_end());
        }
    }
}

/// What sshd's processes for one connection are called on this host (OpenSSH 9.8 split them off).
fn daemon() -> &'static str {
    let split = [
        "/usr/lib/openssh/sshd-session",
        "/usr/libexec/openssh/sshd-session",
        "/usr/lib/ssh/sshd-session",
    ];
    if split.iter().any(|path| Path::new(path).exists()) {
        "sshd-session"
    } else {
        "sshd"
    }
}

fn ssh_message(address: IpAddr) -> String {
    format!("Failed password for invalid user {MARK} from {address} port 9 ssh2")
}

fn uvicorn_message(address: IpAddr) -> String {
    format!("INFO:     {address}:9 - \"GET /{MARK} HTTP/1.1\" 401 Unauthorized")
}

fn nginx(address: IpAddr, now: &jiff::Zoned, method: &str, path: &str, status: u16) -> String {
    format!(
        "{address} - - [{}] \"{method} {path} HTTP/1.1\" {status} 0 \"-\" \"{MARK}\"\n",
        now.strftime("%d/%b/%Y:%H:%M:%S %z")
    )
}
