//! Knocking from another machine through the system's ssh.
//!
//! The same binary is copied to a temporary folder there, run as `scan --json`, and removed with
//! the folder by the same remote command. The remote side gets fixed words and addresses only.

use crate::error::CliError;
use host::exec::Program;
use scan::Report;
use std::net::IpAddr;
use std::time::Duration;

/// How long the whole knock may take.
const BOUND: Duration = Duration::from_secs(300);
/// Bytes of JSON taken from the other side at the most.
const OUTPUT: usize = 64 << 20;

/// Runs a scan of `targets` on `ssh:USER@HOST`. Returns the report, and the address that the host
/// has towards this machine when the ssh connection tells.
pub fn knock(vantage: &str, targets: &[IpAddr]) -> Result<(Report, Option<IpAddr>), CliError> {
    let destination = destination(vantage)?;
    let system = ssh(destination, &["uname", "-sm"], &[])?;
    let here = format!("Linux {}", std::env::consts::ARCH);
    if system.trim() != here {
        return Err(CliError::unsure(format!(
            "{vantage} is {:?}, this program is built for {here}",
            portcullis_core::text::clean(system.trim())
        ))
        .hint(
            "run a portcullis of that system there: portcullis scan --json TARGET > scan.json, \
             and here: portcullis verify --report scan.json",
        ));
    }
    let binary = std::env::current_exe()
        .and_then(std::fs::read)
        .map_err(|error| CliError::unsure("cannot read this program's own file").because(&error))?;
    let addresses: Vec<String> = targets.iter().map(ToString::to_string).collect();
    // One line for the remote shell: every word in it is fixed, or an address printed by us.
    let script = format!(
        "umask 077 && d=$(mktemp -d) && trap 'rm -rf \"$d\"' EXIT HUP INT TERM && \
         cat > \"$d/portcullis\" && chmod 700 \"$d/portcullis\" && \
         {{ \"$d/portcullis\" scan --json {}; s=$?; [ $s = 5 ] && s=0; exit $s; }}",
        addresses.join(" ")
    );
    let output = ssh(destination, &[&script], &binary)?;
    let report: Report = serde_json::from_str(&output).map_err(|error| {
        CliError::unsure(format!("{vantage} did not send a scan report")).because(&error)
    })?;
    Ok((report, None))
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

fn ssh(destination: &str, words: &[&str], input: &[u8]) -> Result<String, CliError> {
    let mut command = Program::new("ssh")
        .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--"])
        .arg(destination)
        .args(words)
        .stdin(input.to_vec())
        .timeout(BOUND)
        .max_output(OUTPUT);
    // ssh needs the agent and the home folder of whoever runs this.
    for name in ["HOME", "SSH_AUTH_SOCK", "USER"] {
        if let Some(value) = std::env::var_os(name) {
            command = command.env(name, value);
        }
    }
    let output = command.run().map_err(|error| {
        CliError::unsure(format!("cannot knock from {destination}"))
            .because(&error)
            .hint("`ssh HOST true` must work without a question from here")
    })?;
    Ok(output.stdout_text())
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
