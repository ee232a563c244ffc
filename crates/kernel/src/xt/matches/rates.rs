//! Limits and lists that remember packets, chance and time.

use super::*;

pub(super) fn limit(b: Blob<'_>) -> Option<String> {
    let (avg, burst) = (b.u32(0)?, b.u32(4)?);
    Some(limit_text(avg.into(), burst.into()))
}

/// `-m limit`'s options; a burst of 5 is the default and not printed.
pub(crate) fn limit_text(avg: u64, burst: u64) -> String {
    let mut out = format!(" --limit {}", rate(avg, 10_000));
    if burst != 5 {
        out += &format!(" --limit-burst {burst}");
    }
    out
}

pub(super) fn hashlimit(b: Blob<'_>, revision: u32, ipv6: bool) -> Option<String> {
    // (name length, mode, avg, burst, size, max, gc, expire, masks), interval in revision 3.
    let (name_len, mode, avg, burst, table, masks) = match revision {
        1 => (16, b.u32(16)?, b.u32(20)?.into(), b.u32(24)?.into(), 28, 44),
        2 => (255, b.u32(272)?, b.u64(256)?, b.u64(264)?, 276, 292),
        _ => (255, b.u32(272)?, b.u64(256)?, b.u64(264)?, 276, 296),
    };
    if mode >> 7 != 0 {
        return None;
    }
    let scale = if revision == 1 { 10_000 } else { 1_000_000 };
    let bytes = mode & 0x20 != 0;
    let option = if mode & 0x10 != 0 { "above" } else { "upto" };
    let mut out = match bytes {
        // The kernel counts in units of 16 bytes; only that it is a limit matters here.
        true => format!(
            " --hashlimit-{option} {}b/s",
            u64::from(u32::MAX) / avg.max(1) * 16
        ),
        false => format!(" --hashlimit-{option} {}", rate(avg, scale)),
    };
    if !bytes {
        out += &format!(" --hashlimit-burst {burst}");
    }
    let modes: Vec<&str> = [(4, "srcip"), (8, "srcport"), (1, "dstip"), (2, "dstport")]
        .iter()
        .filter(|(bit, _)| mode & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    if !modes.is_empty() {
        out += &format!(" --hashlimit-mode {}", modes.join(","));
    }
    out += &format!(" --hashlimit-name {}", quoted(&b.text(0, name_len)?));
    for (i, option) in ["size", "max"].iter().enumerate() {
        match b.u32(table + 4 * i)? {
            0 => {}
            n => out += &format!(" --hashlimit-htable-{option} {n}"),
        }
    }
    match b.u32(table + 8)? {
        1000 => {}
        n => out += &format!(" --hashlimit-htable-gcinterval {n}"),
    }
    // The default is the unit of the rate.
    let unit = match rate(avg, scale).rsplit('/').next() {
        Some("sec") => 1_000,
        Some("min") => 60_000,
        Some("hour") => 3_600_000,
        _ => 86_400_000,
    };
    match b.u32(table + 12)? {
        n if n == unit && !bytes => {}
        n => out += &format!(" --hashlimit-htable-expire {n}"),
    }
    let full = if ipv6 { 128 } else { 32 };
    for (i, option) in ["srcmask", "dstmask"].iter().enumerate() {
        match b.u8(masks + i)? {
            n if n == full => {}
            n => out += &format!(" --hashlimit-{option} {n}"),
        }
    }
    if mode & 0x40 != 0 {
        out += " --hashlimit-rate-match";
        if revision == 3 {
            out += &format!(" --hashlimit-rate-interval {}", b.u32(292)?);
        }
    }
    Some(out)
}

pub(super) fn recent(b: Blob<'_>, revision: u32, ipv6: bool) -> Option<String> {
    let (seconds, hits, what, invert) = (b.u32(0)?, b.u32(4)?, b.u8(8)?, b.u8(9)?);
    let action = match what & 0xf {
        2 => "--set",
        1 => "--rcheck",
        4 => "--update",
        8 => "--remove",
        _ => return None,
    };
    let mut out = format!("{} {action}", not(invert != 0));
    if seconds != 0 {
        out += &format!(" --seconds {seconds}");
    }
    if what & 0x20 != 0 {
        out += " --reap";
    }
    if hits != 0 {
        out += &format!(" --hitcount {hits}");
    }
    if what & 0x10 != 0 {
        out += " --rttl";
    }
    out += &format!(" --name {}", quoted(&b.text(10, 200)?));
    if revision == 1 {
        out += &format!(" --mask {}", b.inet(212, ipv6)?);
    }
    out += match b.u8(210)? {
        0 => " --rsource",
        1 => " --rdest",
        _ => return None,
    };
    Some(out)
}

pub(super) fn connlimit(b: Blob<'_>, revision: u32, ipv6: bool) -> Option<String> {
    let (limit, flags) = (b.u32(16)?, b.u32(20)?);
    let option = if flags & 1 != 0 { "upto" } else { "above" };
    let mask = b.bytes(0, if ipv6 { 16 } else { 4 })?;
    let bits: u32 = mask.iter().map(|b| b.count_ones()).sum();
    let mut out = format!(" --connlimit-{option} {limit} --connlimit-mask {bits}");
    if revision == 1 {
        out += if flags & 2 != 0 {
            " --connlimit-daddr"
        } else {
            " --connlimit-saddr"
        };
    }
    Some(out)
}

pub(super) fn statistic(b: Blob<'_>) -> Option<String> {
    let not = not(b.u16(2)? & 1 != 0);
    match b.u16(0)? {
        0 => {
            let share = f64::from(b.u32(4)?) / f64::from(1u32 << 31);
            Some(format!(" --mode random{not} --probability {share:.11}"))
        }
        1 => {
            let every = u64::from(b.u32(4)?) + 1;
            let packet = b.u32(8)?;
            Some(format!(
                " --mode nth{not} --every {every} --packet {packet}"
            ))
        }
        _ => None,
    }
}

pub(super) fn time(b: Blob<'_>) -> Option<String> {
    let clock = |s: u32| format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
    let (start, stop) = (b.u32(8)?, b.u32(12)?);
    let mut out = String::new();
    if start != 0 || stop != 86_399 {
        out += &format!(" --timestart {} --timestop {}", clock(start), clock(stop));
    }
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let days = b.u8(20)?;
    if days != 0xfe {
        let set = DAYS.iter().enumerate();
        let set = set
            .filter(|(i, _)| days >> (i + 1) & 1 != 0)
            .map(|(_, d)| *d);
        out += &format!(" --weekdays {}", set.collect::<Vec<_>>().join(","));
    }
    Some(out)
}
