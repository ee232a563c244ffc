//! What rolls back when nobody says that all is well. It is armed, and has said that it is ready,
//! before the first change; it needs nothing of the process that armed it, of its terminal or of
//! its SSH session.
//!
//! Where systemd runs: a transient timer. Elsewhere: a process in a session of its own, child of
//! init, deaf to signals, that waits for a deadline of the boot clock. And for the case that the
//! machine goes down meanwhile: a unit that runs before the network comes up.

use super::journal::Watchdog;
use super::state::State;
use super::{ENTRY, TransactionId, clock};
use crate::change::files::{self, Attributes};
use crate::change::{Error, systemd};
use crate::exec::Program;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The unit that rolls back after a crash of the machine.
pub const BOOT_UNIT: &str = "portcullis-recover.service";

const UNITS: &str = "/etc/systemd/system";

/// How often a waiting process looks whether it is still needed.
const LOOK: u64 = 250;

fn entry_args(state: &State, words: &[&str]) -> Vec<String> {
    let mut args = vec![ENTRY.to_owned()];
    args.push(words[0].to_owned());
    args.push(state.dir().to_string_lossy().into_owned());
    args.extend(words[1..].iter().map(|word| (*word).to_owned()));
    args
}

/// Arms a watchdog that fires at `deadline` (milliseconds since boot), and returns once it is
/// ready. `turn` tells the watchdogs of one transaction apart.
pub(crate) fn arm(
    state: &State,
    id: TransactionId,
    turn: u32,
    exe: &Path,
    deadline: u64,
) -> Result<Watchdog, Error> {
    if systemd::runs() {
        // Fall through to a process when systemd will not have it: any way back is better.
        match timer(state, id, turn, exe, deadline) {
            Ok(watchdog) => return Ok(watchdog),
            Err(error) => {
                return process(state, id, exe, deadline).map_err(|second| {
                    Error::refused(
                        "the watchdog",
                        format!("cannot be armed: {}; {}", error.full(), second.full()),
                    )
                });
            }
        }
    }
    process(state, id, exe, deadline)
}

fn timer(
    state: &State,
    id: TransactionId,
    turn: u32,
    exe: &Path,
    deadline: u64,
) -> Result<Watchdog, Error> {
    let unit = format!("portcullis-rollback-{id}-{turn}");
    if turn == 0 {
        // Ahead of the timer: if this process dies here already, somebody notices.
        look_out(state, id, exe, deadline);
    }
    let now = clock::since_boot().map_err(|source| Error::io("read the clock", source))?;
    let left = deadline.saturating_sub(now);
    Program::new("systemd-run")
        .args([
            "--quiet",
            "--no-ask-password",
            "--collect",
            &format!("--unit={unit}"),
            &format!("--description=Portcullis: roll back transaction {id} unless confirmed"),
            &format!("--on-active={left}ms"),
            "--timer-property=AccuracySec=50ms",
            // A rollback that fails is tried again, and again.
            "--property=Restart=on-failure",
            "--property=RestartSec=1s",
            "--property=StartLimitIntervalSec=0",
            "--property=OOMScoreAdjust=-900",
            "--",
        ])
        .arg(exe)
        .args(entry_args(state, &["rollback", &id.to_string()]))
        .run()
        .map_err(|source| Error::program("arm the timer", source))?;
    let shown = systemd::systemctl([
        "show",
        "--property=ActiveState,SubState",
        "--",
        &format!("{unit}.timer"),
    ])
    .run()
    .map_err(|source| Error::program("see whether the timer is armed", source))?
    .stdout_text();
    if shown.lines().any(|line| line == "ActiveState=active") {
        Ok(Watchdog::Timer { unit })
    } else {
        Err(Error::read_back(
            unit,
            format!("is not armed: {}", shown.trim()),
        ))
    }
}

/// Besides the timer, which alone is the guarantee: a service that notices when the process that
/// makes the changes dies, so that the way back need not wait for the deadline then.
fn look_out(state: &State, id: TransactionId, exe: &Path, deadline: u64) {
    let _ = Program::new("systemd-run")
        .args([
            "--quiet",
            "--no-ask-password",
            "--collect",
            &format!("--unit=portcullis-lookout-{id}"),
            &format!("--description=Portcullis: undo transaction {id} if its maker dies"),
            "--",
        ])
        .arg(exe)
        .args(entry_args(
            state,
            &["watch", &id.to_string(), &deadline.to_string()],
        ))
        .run();
}

fn process(state: &State, id: TransactionId, exe: &Path, deadline: u64) -> Result<Watchdog, Error> {
    let doing = |source: io::Error| Error::io("start the watchdog", source);
    let mut child = Command::new(exe)
        .args(entry_args(
            state,
            &["watchdog", &id.to_string(), &deadline.to_string()],
        ))
        .env_clear()
        .env("PATH", crate::exec::SEARCH.join(":"))
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(doing)?;
    // The first process ends as soon as the second one has said that it is ready.
    let mut said = String::new();
    let read = child
        .stdout
        .take()
        .map(|pipe| pipe.take(100).read_to_string(&mut said));
    let status = child.wait().map_err(doing)?;
    if let Some(Err(error)) = read {
        return Err(doing(error));
    }
    match said
        .trim()
        .strip_prefix("ready ")
        .and_then(|pid| pid.parse().ok())
    {
        Some(pid) if status.success() => Ok(Watchdog::Process { pid }),
        _ => Err(Error::read_back(
            "the watchdog",
            format!("did not say that it is ready, but {said:?} ({status})"),
        )),
    }
}

/// First stage of the process: starts the second, which outlives it, and passes on its word.
pub(crate) fn launch(words: &[String]) -> io::Result<()> {
    let me = std::env::current_exe()?;
    let mut child = Command::new(me)
        .arg(ENTRY)
        .arg("watch")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut pipe = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("no pipe"))?;
    // One line, then the pipe is left alone: the child keeps running.
    let mut said = vec![];
    let mut byte = [0];
    while said.len() < 100 && pipe.read(&mut byte)? == 1 {
        if byte[0] == b'\n' {
            break;
        }
        said.push(byte[0]);
    }
    if said != b"ready" {
        return Err(io::Error::other("the second stage did not start"));
    }
    println!("ready {}", child.id());
    Ok(())
}

/// Second stage: waits for the deadline, then becomes the rollback. Returns when it is not needed
/// any more.
pub(crate) fn watch(state: &State, id: TransactionId, deadline: u64) -> io::Result<()> {
    // A session of its own: no terminal, no SSH session takes it along. A service has one already.
    match nix::unistd::setsid() {
        Ok(_) | Err(nix::Error::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    let mut deaf = SigSet::empty();
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGPIPE,
        Signal::SIGALRM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ] {
        deaf.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&deaf), None).map_err(io::Error::from)?;
    // The last one that a machine without memory should end.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    let mut out = io::stdout();
    out.write_all(b"ready\n")?;
    out.flush()?;
    let mut deadline = deadline;
    loop {
        let now = clock::since_boot()?;
        if now >= deadline {
            // Another watchdog with a later deadline may be in charge by now; this one goes on looking
            // out for a process that dies.
            let left = super::journal::read(&state.journal(id)).map_or(Duration::ZERO, |read| {
                super::history::remaining(&read.records)
            });
            if left.is_zero() {
                break;
            }
            deadline = now + clock::millis(left);
        }
        std::thread::sleep(Duration::from_millis(LOOK.min(deadline - now)));
        if super::settled(state, id) {
            return Ok(());
        }
        if abandoned(state, id) {
            return Err(become_entry(state, &["recover", "now"]));
        }
    }
    Err(become_entry(state, &["rollback", &id.to_string()]))
}

/// Returns only when it failed.
fn become_entry(state: &State, words: &[&str]) -> io::Error {
    match std::env::current_exe() {
        Ok(me) => Command::new(me).args(entry_args(state, words)).exec(),
        Err(error) => error,
    }
}

/// The process that made the changes is gone in the middle of them: it holds the lock from before
/// its first record to behind its last. No need to wait for the deadline then.
fn abandoned(state: &State, id: TransactionId) -> bool {
    super::journal::read(&state.journal(id))
        .is_ok_and(|read| super::phase(&read.records) == super::Phase::Applying)
        && state.free()
}

/// Calls a watchdog off. It looks at the journal itself before it does anything, so an error here
/// costs nothing but a process that ends later.
pub(crate) fn disarm(watchdog: &Watchdog) {
    if let Watchdog::Timer { unit } = watchdog {
        let timer = format!("{unit}.timer");
        let _ = systemd::systemctl(["stop", "--", &timer]).run();
    }
    // A process sees in the journal that it is not needed, within a quarter of a second.
}

fn boot_unit_path() -> PathBuf {
    Path::new(UNITS).join(BOOT_UNIT)
}

fn boot_link_path() -> PathBuf {
    Path::new(UNITS)
        .join("sysinit.target.wants")
        .join(BOOT_UNIT)
}

/// A word of an ExecStart line (systemd.service(5), "Command lines").
fn word(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            '%' => quoted.push_str("%%"),
            '$' => quoted.push_str("$$"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn boot_unit(state: &State, exe: &Path) -> String {
    let command: Vec<String> = std::iter::once(exe.to_string_lossy().into_owned())
        .chain(entry_args(state, &["recover", "boot"]))
        .map(|text| word(&text))
        .collect();
    format!(
        "# Written by portcullis while a change waits for its confirmation; gone afterwards.\n\
         [Unit]\n\
         Description=Portcullis: take back changes that nobody confirmed\n\
         DefaultDependencies=no\n\
         RequiresMountsFor={dir}\n\
         After=local-fs.target\n\
         Before=network-pre.target ufw.service nftables.service netfilter-persistent.service portcullis-guard.service\n\
         Before=fail2ban.service docker.service shutdown.target\n\
         Wants=network-pre.target\n\
         Conflicts=shutdown.target\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart={command}\n\
         TimeoutStartSec=90\n",
        dir = word(&state.dir().to_string_lossy()),
        command = command.join(" "),
    )
}

/// Has the next boot roll back before the network is up. Only files: nothing is reloaded now.
pub(crate) fn arm_boot(state: &State, exe: &Path) -> io::Result<()> {
    if !systemd::runs() {
        return Ok(());
    }
    let ours = Attributes {
        mode: 0o644,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        mtime: None,
    };
    files::replace(&boot_unit_path(), boot_unit(state, exe).as_bytes(), &ours)?;
    let link = boot_link_path();
    if let Some(wants) = link.parent() {
        std::fs::create_dir_all(wants)?;
    }
    files::restore_link(&link, &boot_unit_path())
}

/// Takes the boot unit away.
pub(crate) fn disarm_boot() -> io::Result<()> {
    files::remove(&boot_link_path())?;
    files::remove(&files::waiting_name(&boot_link_path()))?;
    files::remove(&boot_unit_path())?;
    files::remove(&files::waiting_name(&boot_unit_path()))?;
    if let Some(wants) = boot_link_path().parent() {
        // Only if nothing else is in it.
        let _ = std::fs::remove_dir(wants);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_unit_quotes_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(&folder.path().join("a b%c\"$")).unwrap();
        let unit = boot_unit(&state, Path::new("/x/portcullis"));
        let line = unit
            .lines()
            .find(|line| line.starts_with("ExecStart="))
            .unwrap();
        assert!(line.starts_with("ExecStart=\"/x/portcullis\" \""), "{line}");
        assert!(line.contains("a b%%c\\\"$$"), "{line}");
        assert!(unit.contains("Before=network-pre.target"));
    }
}
