//! Time that nobody can set: deadlines are in milliseconds of `CLOCK_BOOTTIME`, which only goes
//! forward, at one speed, through suspend, and starts anew with each boot.

use nix::time::{ClockId, clock_gettime};
use std::io;
use std::time::Duration;

/// Milliseconds since boot, time asleep included (clock_gettime(2), CLOCK_BOOTTIME).
pub(crate) fn since_boot() -> io::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(io::Error::from)?;
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000;
    Ok(seconds * 1000 + millis)
}

/// The kernel's name for this boot (random(4)); inside systemd-nspawn, of the machine's own boot.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// A duration in whole milliseconds, as deadlines count.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Wall-clock time for people, RFC 3339, UTC. Never used for a decision.
pub(crate) fn wall() -> String {
    jiff::Timestamp::now()
        .round(jiff::Unit::Second)
        .unwrap_or_else(|_| jiff::Timestamp::now())
        .to_string()
}
