//! Knocking from another machine through the system's ssh.
//!
//! The same binary is copied to a temporary folder there, run as `scan --json`, and removed with
//! the folder by the same remote command, also when the connection breaks. Where it does not run
//! (another architecture, an older libc, a noexec /tmp) the knock goes through what is there: see
//! [`borrowed`]. The remote side gets fixed words, addresses and port numbers only.

mod borrowed;

use crate::commands::remark;
use crate::error::CliError;
use borrowed::Tool;
use host::exec::{self, Program};
use portcullis_core::text::clean;
use scan::{PortSet, Report};
use std::net::IpAddr;
use std::time::Duration;

/// How long the whole knock may take.
const BOUND: Duration = Duration::from_secs(600);
/// Bytes taken from the other side at the most.
const OUTPUT: usize = 64 << 20;
/// Exit code of the remote side for "this program does not run here".
const DOES_NOT_RUN: i32 = 97;

/// What is knocked on.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Addresses of this machine.
    pub targets: Vec<IpAddr>,
    /// They are this machine's own, rather than named by the operator.
    pub of_this_machine: bool,
    /// TCP ports.
    pub tcp: PortSet,
    /// The TCP ports that matter most: for tools that take a second for each.
    pub likely: PortSet,
    /// UDP ports.
    pub udp: Option<PortSet>,
}

/// How a vantage knocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// With this very program.
    Own,
    /// Through what is there.
    Borrowed(Tool),
}

/// A machine to knock from.
#[derive(Debug)]
pub struct Vantage {
    /// As it was named: `ssh:USER@HOST`.
    pub name: String,
    destination: String,
    how: Option<How>,
}

impl Vantage {
    /// Reads `ssh:USER@HOST`; nothing is sent yet.
    pub fn parse(name: &str) -> Result<Vantage, CliError> {
        Ok(Vantage {
            name: name.to_owned(),
            destination: destination(name)?.to_owned(),
            how: None,
        })
    }

    /// Knocks; says how where it is not with this program.
    pub fn knock(&mut self, ask: &Ask) -> Result<Report, CliError> {
        let how = match self.how {
            Some(how) => how,
            None => self.first_look()?,
        };
        self.how = Some(how);
        match how {
            How::Own => match self.with_own_program(ask)? {
                Some(report) => Ok(report),
                None => {
                    let why = "this program does not start there";
                    self.how = Some(self.borrow(why)?);
                    self.knock(ask)
                }
            },
            How::Borrowed(tool) => {
                let (script, words) = tool.script(ask);
                let output = self.ssh(&words, script.as_bytes())?;
                let text = String::from_utf8_lossy(&output.stdout);
                let report = tool.report(ask, &text);
                match output.success() {
                    true => Ok(report),
                    false => Err(self.failed(&output)),
                }
            }
        }
    }

    /// Its own address and this machine's, as it has them: what sshd there says about the
    /// connection (sshd(8), SSH_CONNECTION).
    pub fn ends(&self) -> Result<Option<(IpAddr, IpAddr)>, CliError> {
        let said = self.text(&["sh -c 'echo $SSH_CONNECTION'"])?;
        let words: Vec<&str> = said.split_whitespace().collect();
        let address = |at: usize| -> Option<IpAddr> {
            let word = words.get(at)?;
            // An IPv6 link-local address comes with its interface.
            word.split('%').next()?.parse().ok()
        };
        Ok(address(2).zip(address(0)))
    }

    /// What kind of machine it is.
    fn first_look(&self) -> Result<How, CliError> {
        let system = self.text(&["uname", "-sm"])?;
        let here = format!("Linux {}", std::env::consts::ARCH);
        if system.trim() == here {
            return Ok(How::Own);
        }
        let why = format!(
            "it is {}, this program is built for {here}",
            clean(system.trim())
        );
        self.borrow(&why)
    }

    fn borrow(&self, why: &str) -> Result<How, CliError> {
        // Words that any login shell passes on as they are.
        let tools = self.text(&[&format!("sh -c '{}'", borrowed::LOOK)])?;
        let Some(tool) = Tool::best(&tools) else {
            return Err(CliError::unsure(format!(
                "nothing to knock with on {}: {why}, and it has no python3, bash or nc",
                self.name
            ))
            .detail(format!("it named {:?}", clean(tools.trim())))
            .hint(
                "run a portcullis of that system there: portcullis scan --json TARGET > \
                 scan.json, and here: portcullis verify --report scan.json",
            ));
        };
        remark(&format!(
            "{}: {why}; knocking with connect() through its {}{}",
            clean(&self.name),
            tool.name(),
            if tool.knows_every_port() {
                ""
            } else {
                ", which is slow: only on the ports that matter here"
            }
        ));
        Ok(How::Borrowed(tool))
    }

    /// Copies this program there and runs it; `None` when it does not run.
    fn with_own_program(&self, ask: &Ask) -> Result<Option<Report>, CliError> {
        let binary = std::env::current_exe()
            .and_then(std::fs::read)
            .map_err(|error| {
                CliError::unsure("cannot read this program's own file").because(&error)
            })?;
        let mut words = format!("-p {}", ask.tcp);
        if let Some(udp) = &ask.udp {
            words += &format!(" --udp={udp}");
        }
        for target in &ask.targets {
            words += &format!(" {target}");
        }
        // One line for the remote shell: every word in it is fixed, or a number or an address
        // printed by us.
        let script = format!(
            "sh -c 'umask 077 && d=$(mktemp -d) && trap \"rm -rf $d\" EXIT HUP INT TERM && \
             cat > $d/portcullis && chmod 700 $d/portcullis && \
             {{ $d/portcullis --version > /dev/null 2>&1 || exit {DOES_NOT_RUN}; }} && \
             {{ $d/portcullis --quiet scan --json {words}; s=$?; [ $s = 5 ] && s=0; exit $s; }}'"
        );
        let output = self.ssh(&[&script], &binary)?;
        if output.status.code() == Some(DOES_NOT_RUN) {
            return Ok(None);
        }
        if !output.success() {
            return Err(self.failed(&output));
        }
        serde_json::from_slice(&output.stdout)
            .map(Some)
            .map_err(|error| {
                CliError::unsure(format!("{} did not send a scan report", self.name))
                    .because(&error)
            })
    }

    fn text(&self, words: &[impl AsRef<str>]) -> Result<String, CliError> {
        let output = self.ssh(words, &[])?;
        if !output.success() {
            return Err(self.failed(&output));
        }
        Ok(output.stdout_text())
    }

    fn failed(&self, output: &exec::Output) -> CliError {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        CliError::unsure(format!("cannot knock from {}", self.name))
            .detail(last.unwrap_or("ssh ended without a word").trim())
            .hint(format!(
                "`ssh {} true` must work without a question from here",
                self.destination
            ))
    }

    fn ssh(&self, words: &[impl AsRef<str>], input: &[u8]) -> Result<exec::Output, CliError> {
        let mut command = Program::new("ssh")
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--"])
            .arg(&self.destination)
            .args(words.iter().map(AsRef::as_ref))
            .stdin(input.to_vec())
            .timeout(BOUND)
            .max_output(OUTPUT);
        // ssh needs the agent and the home folder of whoever runs this.
        for name in ["HOME", "SSH_AUTH_SOCK", "USER"] {
            if let Some(value) = std::env::var_os(name) {
                command = command.env(name, value);
            }
        }
        command.output().map_err(|error| {
            CliError::unsure(format!("cannot knock from {}", self.name)).because(&error)
        })
    }
}

/// The part of `ssh:USER@HOST` that ssh gets; it must not look like an option.
fn destination(vantage: &str) -> Result<&str, CliError> {
    let wrong = |why: &str| {
        CliError::usage(format!("--from {vantage:?}: {why}")).hint("write --from ssh:USER@HOST")
    };
    let destination = vantage
        .strip_prefix("ssh:")
        .ok_or_else(|| wrong("only ssh vantages are known"))?;
    let fine = |c: char| c.is_ascii_alphanumeric() || "@.-_:[]%".contains(c);
    if destination.is_empty() || destination.starts_with('-') || !destination.chars().all(fine) {
        return Err(wrong("this is no user and host"));
    }
    Ok(destination)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_users_and_hosts_reach_ssh() {
        assert_eq!(
            destination("ssh:me@host.example").unwrap(),
            "me@host.example"
        );
        for wrong in [
            "me@host",
            "ssh:",
            "ssh:-oProxyCommand=x",
            "ssh:a b",
            "ssh:a;b",
            "ssh:$x",
        ] {
            assert!(destination(wrong).is_err(), "{wrong}");
        }
    }
}
