//! Connection state, address types and ipsets.

use super::*;

/// XT_CONNTRACK_STATE_*.
pub(super) fn states(mask: u32) -> Option<String> {
    const NAMES: [(u32, &str); 7] = [
        (0x1, "INVALID"),
        (0x8, "NEW"),
        (0x4, "RELATED"),
        (0x2, "ESTABLISHED"),
        (0x100, "UNTRACKED"),
        (0x40, "SNAT"),
        (0x80, "DNAT"),
    ];
    let known = NAMES.iter().fold(0, |all, (bit, _)| all | bit);
    if mask & !known != 0 || mask == 0 {
        return None;
    }
    let set = NAMES.iter().filter(|(bit, _)| mask & bit != 0);
    Some(set.map(|(_, name)| *name).collect::<Vec<_>>().join(","))
}

pub(super) fn conntrack(b: Blob<'_>, revision: u32, ipv6: bool) -> Option<(&'static str, String)> {
    let (used, inverted) = (b.u16(146)?, b.u16(148)?);
    let (state, status) = match revision {
        1 => (b.u8(150)?.into(), b.u8(151)?.into()),
        _ => (b.u16(150)?, b.u16(152)?),
    };
    let alias = used & 1 << 13 != 0;
    if used >> 14 != 0 {
        return None;
    }
    let mut out = String::new();
    let no = |bit: u16| not(inverted & bit != 0);
    if used & 1 != 0 {
        let option = if alias { "--state" } else { "--ctstate" };
        out += &format!("{} {option} {}", no(1), states(state.into())?);
    }
    if used & 2 != 0 {
        out += &format!("{} --ctproto {}", no(2), b.u16(136)?);
    }
    let width = if ipv6 { 16 } else { 4 };
    for (i, option) in ["--ctorigsrc", "--ctorigdst", "--ctreplsrc", "--ctrepldst"]
        .iter()
        .enumerate()
    {
        let bit = 4u16 << i;
        if used & bit != 0 {
            let address = b.inet(32 * i, ipv6)?;
            let mask = mask_text(b.bytes(32 * i + 16, width)?);
            out += &format!("{} {option} {address}{mask}", no(bit));
        }
    }
    for (i, option) in [
        "--ctorigsrcport",
        "--ctorigdstport",
        "--ctreplsrcport",
        "--ctrepldstport",
    ]
    .iter()
    .enumerate()
    {
        let bit = 0x100u16 << i;
        if used & bit != 0 {
            let (first, last) = match revision {
                3 => (b.u16(138 + 2 * i)?, b.u16(154 + 2 * i)?),
                _ => (b.be16(138 + 2 * i)?, b.be16(138 + 2 * i)?),
            };
            let range = if first == last || last == 0 {
                first.to_string()
            } else {
                format!("{first}:{last}")
            };
            out += &format!("{} {option} {range}", no(bit));
        }
    }
    if used & 0x40 != 0 {
        const NAMES: [&str; 4] = ["EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED"];
        if status >> 4 != 0 {
            return None;
        }
        let set = NAMES.iter().enumerate();
        let set = set.filter(|(i, _)| status >> i & 1 != 0).map(|(_, n)| *n);
        let text = match status {
            0 => "NONE".to_owned(),
            _ => set.collect::<Vec<_>>().join(","),
        };
        out += &format!("{} --ctstatus {text}", no(0x40));
    }
    if used & 0x80 != 0 {
        let (min, max) = (b.u32(128)?, b.u32(132)?);
        let range = if min == max {
            min.to_string()
        } else {
            format!("{min}:{max}")
        };
        out += &format!("{} --ctexpire {range}", no(0x80));
    }
    if used & 0x1000 != 0 {
        let direction = match inverted & 0x1000 {
            0 => "ORIGINAL",
            _ => "REPLY",
        };
        out += &format!(" --ctdir {direction}");
    }
    Some((if alias { "state" } else { "conntrack" }, out))
}

pub(super) fn addrtype(b: Blob<'_>, revision: u32) -> Option<String> {
    const NAMES: [&str; 12] = [
        "UNSPEC",
        "UNICAST",
        "LOCAL",
        "BROADCAST",
        "ANYCAST",
        "MULTICAST",
        "BLACKHOLE",
        "UNREACHABLE",
        "PROHIBIT",
        "THROW",
        "NAT",
        "XRESOLVE",
    ];
    let (source, destination) = (b.u16(0)?, b.u16(2)?);
    let flags = match revision {
        0 => u32::from(b.u32(4)? != 0) | u32::from(b.u32(8)? != 0) << 1,
        _ => b.u32(4)?,
    };
    let types = |mask: u16| {
        if mask >> NAMES.len() != 0 {
            return None;
        }
        let set = NAMES.iter().enumerate();
        let set = set.filter(|(i, _)| mask >> i & 1 != 0).map(|(_, n)| *n);
        Some(set.collect::<Vec<_>>().join(","))
    };
    let mut out = String::new();
    if source != 0 {
        out += &format!("{} --src-type {}", not(flags & 1 != 0), types(source)?);
    }
    if destination != 0 {
        out += &format!("{} --dst-type {}", not(flags & 2 != 0), types(destination)?);
    }
    if flags & 4 != 0 {
        out += " --limit-iface-in";
    }
    if flags & 8 != 0 {
        out += " --limit-iface-out";
    }
    (flags >> 4 == 0).then_some(out)
}

/// `src,dst` of struct xt_set_info.
pub(in crate::xt) fn set_directions(dim: u8, flags: u8) -> Option<String> {
    if dim == 0 || dim > 6 {
        return None;
    }
    let way = |i: u8| if flags >> i & 1 != 0 { "src" } else { "dst" };
    Some((1..=dim).map(way).collect::<Vec<_>>().join(","))
}

pub(super) fn set(b: Blob<'_>, revision: u32, place: Place<'_>) -> Option<String> {
    let name = place.sets.get(&b.u16(0)?)?;
    let (dim, kopt) = (b.u8(2)?, b.u8(3)?);
    let flags = if revision >= 3 { b.u32(40)? } else { 0 };
    let mut out = format!(
        "{} --match-set {} {}",
        not(kopt & 1 != 0),
        quoted(name),
        set_directions(dim, kopt)?
    );
    if kopt & 0x80 != 0 || flags & 0x80 != 0 {
        out += " --return-nomatch";
    }
    if flags & 8 != 0 {
        out += " ! --update-counters";
    }
    if flags & 16 != 0 {
        out += " ! --update-subcounters";
    }
    let counters = match revision {
        3 => [
            ("packets", b.u8(8)?, b.u64(16)?),
            ("bytes", b.u8(24)?, b.u64(32)?),
        ],
        4 => [
            ("packets", b.u8(16)?, b.u64(8)?),
            ("bytes", b.u8(32)?, b.u64(24)?),
        ],
        _ => [("packets", 0, 0), ("bytes", 0, 0)],
    };
    for (what, op, value) in counters {
        out += &match op {
            0 => String::new(),
            1 => format!(" --{what}-eq {value}"),
            2 => format!(" ! --{what}-eq {value}"),
            3 => format!(" --{what}-lt {value}"),
            4 => format!(" --{what}-gt {value}"),
            _ => return None,
        };
    }
    Some(out)
}
