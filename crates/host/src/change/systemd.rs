//! systemd units; where no systemd runs, the init scripts of the same name.

use super::{Context, Error};
use crate::exec::{self, Program};
use crate::observe::fail2ban_does;
use portcullis_core::plan::SystemdVerb;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Starting a service includes its ExecStartPre; systemd's own bound is 90 s.
const SLOW: Duration = Duration::from_secs(100);

/// How long a service that was started must stay up. fail2ban on a stock Debian 12 dies after half
/// a second, long after systemctl has said that all is well.
const STEADY: Duration = Duration::from_millis(1200);

/// The same for fail2ban, from its first answer: it may answer for a moment and die.
const STEADY_ANSWERS: Duration = Duration::from_millis(400);

/// How long fail2ban may take to answer after a start.
const PONG: Duration = Duration::from_secs(15);

/// Whether systemd runs as the first process (sd_booted(3)).
pub(crate) fn runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// A unit as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnitState {
    /// LoadState: loaded, not-found, masked.
    pub load: String,
    /// ActiveState: active, inactive, failed…
    pub active: String,
    /// UnitFileState: enabled, disabled, static, masked, generated…
    pub enabled: String,
}

impl UnitState {
    /// Runs, or is on its way there.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.active.as_str(), "active" | "activating" | "reloading")
    }
    pub(crate) fn exists(&self) -> bool {
        self.load != "not-found"
    }
    pub(crate) fn is_enabled(&self) -> bool {
        matches!(self.enabled.as_str(), "enabled" | "enabled-runtime")
    }
}

/// A unit name that systemd accepts and that is no option (systemd.unit(5)).
pub(crate) fn is_unit(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 256
        && !name.starts_with('-')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c))
}

pub(crate) fn systemctl<'a>(args: impl IntoIterator<Item = &'a str>) -> Program {
    Program::new("systemctl")
        .args(["--no-ask-password", "--no-pager"])
        .args(args)
        .timeout(SLOW)
}

/// The states of units, by the names asked for.
pub(crate) fn states(units: &[String]) -> Result<BTreeMap<String, UnitState>, Error> {
    let mut states = BTreeMap::new();
    for unit in units {
        let state = if runs() { shown(unit)? } else { scripted(unit) };
        states.insert(unit.clone(), state);
    }
    Ok(states)
}

fn shown(unit: &str) -> Result<UnitState, Error> {
    let output = systemctl([
        "show",
        "--property=LoadState,ActiveState,UnitFileState",
        "--",
        unit,
    ])
    .run()
    .map_err(|source| Error::program(format!("ask systemd about {unit}"), source))?
    .stdout_text();
    let value = |key: &str| {
        output
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .unwrap_or_default()
            .to_owned()
    };
    Ok(UnitState {
        load: value("LoadState"),
        active: value("ActiveState"),
        enabled: value("UnitFileState"),
    })
}

/// The init script of a unit, where there is one.
fn script(unit: &str) -> Option<PathBuf> {
    let name = unit.strip_suffix(".service").unwrap_or(unit);
    if !is_unit(name) {
        return None;
    }
    exec::find(&format!("/etc/init.d/{name}"))
}

fn scripted(unit: &str) -> UnitState {
    let Some(script) = script(unit) else {
        return UnitState {
            load: "not-found".into(),
            active: "inactive".into(),
            enabled: String::new(),
        };
    };
    let up = Program::new(script.to_string_lossy())
        .arg("status")
        .output()
        .is_ok_and(|output| output.success());
    UnitState {
        load: "loaded".into(),
        active: if up { "active" } else { "inactive" }.into(),
        enabled: String::new(),
    }
}

fn run_script(unit: &str, word: &str) -> Result<(), Error> {
    let script = script(unit)
        .ok_or_else(|| Error::refused(unit, "no systemd runs here and there is no init script"))?;
    Program::new(script.to_string_lossy())
        .arg(word)
        .timeout(SLOW)
        .run()
        .map(drop)
        .map_err(|source| Error::program(format!("{word} {unit}"), source))
}

pub(super) fn check(unit: &str, coming: &[String], context: &Context) -> Result<(), Error> {
    if unit.is_empty() {
        return Ok(());
    }
    if !is_unit(unit) {
        return Err(Error::refused(unit, "not a unit name"));
    }
    let package = unit.strip_suffix(".service").unwrap_or(unit);
    if !context.systemd && script(unit).is_none() && !coming.iter().any(|name| name == package) {
        return Err(Error::refused(
            unit,
            "no systemd runs here and there is no init script",
        ));
    }
    Ok(())
}

pub(super) fn perform(unit: &str, verb: SystemdVerb, context: &Context) -> Result<(), Error> {
    if !context.systemd {
        return match verb {
            SystemdVerb::DaemonReload | SystemdVerb::Enable => Ok(()),
            SystemdVerb::EnableNow => {
                run_script(unit, "start")?;
                started(unit, context)
            }
            SystemdVerb::Restart => {
                run_script(unit, "restart")?;
                started(unit, context)
            }
            SystemdVerb::DisableNow => run_script(unit, "stop"),
        };
    }
    let result = match verb {
        SystemdVerb::DaemonReload => systemctl(["daemon-reload"]).run(),
        SystemdVerb::EnableNow => systemctl(["enable", "--now", "--", unit]).run(),
        SystemdVerb::Enable => systemctl(["enable", "--", unit]).run(),
        SystemdVerb::DisableNow => systemctl(["disable", "--now", "--", unit]).run(),
        SystemdVerb::Restart => {
            // A service that failed often may not start until its count is cleared.
            let _ = systemctl(["reset-failed", "--", unit]).run();
            systemctl(["restart", "--", unit]).run()
        }
    };
    result.map_err(|source| Error::program(format!("{} {unit}", words(verb)), source))?;
    match verb {
        SystemdVerb::DaemonReload => Ok(()),
        SystemdVerb::EnableNow => {
            enabled(unit)?;
            started(unit, context)
        }
        SystemdVerb::Enable => enabled(unit),
        SystemdVerb::Restart => started(unit, context),
        SystemdVerb::DisableNow => {
            let now = shown(unit)?;
            if now.is_up() || now.is_enabled() {
                return Err(Error::read_back(
                    unit,
                    format!("still {} and {}", now.active, now.enabled),
                ));
            }
            Ok(())
        }
    }
}

fn words(verb: SystemdVerb) -> &'static str {
    match verb {
        SystemdVerb::DaemonReload => "reload systemd",
        SystemdVerb::EnableNow => "enable and start",
        SystemdVerb::Enable => "enable",
        SystemdVerb::DisableNow => "disable and stop",
        SystemdVerb::Restart => "restart",
    }
}

fn enabled(unit: &str) -> Result<(), Error> {
    let now = shown(unit)?;
    // `static`, `generated` and the like need no enabling.
    if matches!(now.enabled.as_str(), "disabled" | "masked" | "bad" | "") {
        return Err(Error::read_back(unit, format!("is {:?}", now.enabled)));
    }
    Ok(())
}

/// A unit that was started and has to stay up.
#[derive(Debug)]
pub(crate) struct Started {
    unit: String,
    since: Instant,
    /// What systemd said of it right then.
    first: String,
}

/// Notes that a unit was started; whether it stays up shows later, while other changes are made
/// ([`all_steady`]). fail2ban has to answer now: other changes may build on it.
fn started(unit: &str, context: &Context) -> Result<(), Error> {
    if is_fail2ban(unit) {
        fail2ban_answers()?;
    }
    let first = life(unit)?;
    if failed(&first) {
        return Err(not_up(unit, &first));
    }
    context.started.borrow_mut().push(Started {
        unit: unit.to_owned(),
        since: Instant::now(),
        first,
    });
    Ok(())
}

/// Every unit that was started has been up for [`STEADY`] since its last start, without a restart.
pub(crate) fn all_steady(context: &Context) -> Result<(), Error> {
    let started = context.started.take();
    for (index, unit) in started.iter().enumerate() {
        // Started again later on: that start counts.
        if started[index + 1..]
            .iter()
            .any(|later| later.unit == unit.unit)
        {
            continue;
        }
        // A oneshot without RemainAfterExit is inactive when all went well.
        let oneshot = unit.first.lines().any(|line| line == "Type=oneshot");
        let enough = match is_fail2ban(&unit.unit) {
            true => STEADY_ANSWERS,
            false => STEADY,
        };
        if !oneshot {
            std::thread::sleep(enough.saturating_sub(unit.since.elapsed()));
        }
        let last = life(&unit.unit)?;
        let good = if oneshot {
            !failed(&last)
        } else {
            last.lines().any(|line| line == "ActiveState=active")
                && restarts(&unit.first) == restarts(&last)
        };
        if !good {
            return Err(not_up(&unit.unit, &last));
        }
        // On a busy machine one answer may be late.
        if is_fail2ban(&unit.unit) {
            fail2ban_answers()?;
        }
    }
    Ok(())
}

fn is_fail2ban(unit: &str) -> bool {
    unit.strip_suffix(".service").unwrap_or(unit) == "fail2ban"
}

fn not_up(unit: &str, said: &str) -> Error {
    Error::read_back(
        unit,
        format!("does not stay up ({})", said.trim().replace('\n', ", ")),
    )
}

/// How a unit fares, in systemd's words.
fn life(unit: &str) -> Result<String, Error> {
    if !runs() {
        return Ok(format!("ActiveState={}", scripted(unit).active));
    }
    let output = systemctl([
        "show",
        "--property=Type,ActiveState,SubState,NRestarts,Result",
        "--",
        unit,
    ])
    .run()
    .map_err(|source| Error::program(format!("ask systemd about {unit}"), source))?;
    Ok(output.stdout_text())
}

fn failed(text: &str) -> bool {
    text.lines().any(|line| line == "ActiveState=failed")
}

fn restarts(text: &str) -> &str {
    text.lines()
        .find(|line| line.starts_with("NRestarts="))
        .unwrap_or_default()
}

/// True when the fail2ban server answers a ping.
pub(crate) fn fail2ban_alive() -> bool {
    fail2ban_does(&["ping"], Duration::from_secs(5))
}

/// fail2ban answers once its jails are started.
fn fail2ban_answers() -> Result<(), Error> {
    let end = Instant::now() + PONG;
    while Instant::now() < end {
        if fail2ban_alive() {
            return Ok(());
        }
        if runs() && shown("fail2ban.service")?.active == "failed" {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Error::read_back(
        "fail2ban",
        format!(
            "its server does not answer a ping after the start {}",
            fail2ban_said()
        ),
    ))
}

/// Its last lines in the journal.
fn fail2ban_said() -> String {
    Program::new("journalctl")
        .args([
            "-u",
            "fail2ban.service",
            "-n",
            "4",
            "-o",
            "cat",
            "--no-pager",
            "-q",
        ])
        .truncate()
        .output()
        .map(|output| output.stdout_text().trim().replace('\n', " | "))
        .unwrap_or_default()
}

/// Puts a unit back to where it was. `stop_new`: a unit that did not exist before and does now (its
/// package was installed) is disabled and stopped. `early`: during boot, before services run; only
/// what is enabled is put back, and a start that is already queued is called off.
pub(crate) fn restore(
    unit: &str,
    was: &UnitState,
    restart: bool,
    early: bool,
) -> Result<(), Error> {
    if !runs() {
        return match (scripted(unit), was.is_up()) {
            (now, true) if restart || !now.is_up() => run_script(unit, "restart"),
            (now, false) if now.is_up() => run_script(unit, "stop"),
            _ => Ok(()),
        };
    }
    let now = shown(unit)?;
    if !now.exists() {
        return Ok(());
    }
    let call = |args: &[&str]| {
        systemctl(args.iter().copied())
            .run()
            .map(drop)
            .map_err(|source| Error::program(format!("put {unit} back"), source))
    };
    if was.is_enabled() && !now.is_enabled() {
        call(&["enable", "--", unit])?;
    }
    if !was.is_enabled() && now.is_enabled() {
        call(&["disable", "--", unit])?;
    }
    if early {
        if !was.is_enabled() && now.is_enabled() {
            call(&["stop", "--no-block", "--", unit])?;
        }
        return Ok(());
    }
    if was.is_up() {
        if restart || !now.is_up() {
            let _ = systemctl(["reset-failed", "--", unit]).run();
            call(&["restart", "--", unit])?;
        }
    } else if now.is_up() {
        call(&["stop", "--", unit])?;
    } else if was.active != "failed" && now.active == "failed" {
        call(&["reset-failed", "--", unit])?;
    }
    let after = shown(unit)?;
    if after.is_enabled() != was.is_enabled() || (was.is_up() && !after.is_up()) {
        return Err(Error::read_back(
            unit,
            format!("is {} and {}", after.active, after.enabled),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_names() {
        for good in [
            "ollama.service",
            "a@b.service",
            "dev-sda\\x2d1.device",
            "x:y.timer",
        ] {
            assert!(is_unit(good), "{good}");
        }
        for bad in [
            "",
            "--now",
            "a b.service",
            "a;b",
            "../x",
            "a/b.service",
            "é.service",
        ] {
            assert!(!is_unit(bad), "{bad}");
        }
    }
}
