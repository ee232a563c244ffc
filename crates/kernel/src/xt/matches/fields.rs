//! Fields of the packet and of what the kernel knows of it.

use super::*;

pub(super) fn mark(b: Blob<'_>) -> Option<String> {
    Some(mark_text(b.u32(0)?, b.u32(4)?, b.u8(8)? != 0))
}

/// ` [!] --mark VALUE[/MASK]`.
pub(crate) fn mark_text(value: u32, mask: u32, invert: bool) -> String {
    match mask {
        u32::MAX => format!("{} --mark 0x{value:x}", not(invert)),
        mask => format!("{} --mark 0x{value:x}/0x{mask:x}", not(invert)),
    }
}

pub(super) fn iprange(b: Blob<'_>, ipv6: bool) -> Option<String> {
    let flags = b.u8(64)?;
    let mut out = String::new();
    for (at, bit, inverted, option) in [(0, 1, 16, "--src-range"), (32, 2, 32, "--dst-range")] {
        if flags & bit != 0 {
            let (first, last) = (b.inet(at, ipv6)?, b.inet(at + 16, ipv6)?);
            out += &format!("{} {option} {first}-{last}", not(flags & inverted != 0));
        }
    }
    Some(out)
}

pub(super) fn owner(b: Blob<'_>) -> Option<String> {
    let (used, inverted) = (b.u8(16)?, b.u8(17)?);
    if used >> 4 != 0 {
        return None;
    }
    let mut out = String::new();
    if used & 4 != 0 {
        out += &format!("{} --socket-exists", not(inverted & 4 != 0));
    }
    for (at, bit, option) in [(0, 1, "--uid-owner"), (8, 2, "--gid-owner")] {
        if used & bit != 0 {
            let (min, max) = (b.u32(at)?, b.u32(at + 4)?);
            let range = if min == max {
                min.to_string()
            } else {
                format!("{min}-{max}")
            };
            out += &format!("{} {option} {range}", not(inverted & bit != 0));
        }
    }
    if used & 8 != 0 {
        out += " --suppl-groups";
    }
    Some(out)
}

/// An interface name with `+` where its mask leaves the end open.
pub(crate) fn interface(name: &[u8], mask: &[u8]) -> Option<String> {
    let covered = mask.iter().take_while(|b| **b == 0xff).count();
    if mask[covered..].iter().any(|b| *b != 0) {
        return None;
    }
    let text = crate::netlink::text(name.get(..covered)?);
    // The end of the name lies under the mask: no wildcard.
    let exact = name[..covered].contains(&0) || covered == name.len();
    Some(if exact { text } else { format!("{text}+") })
}

pub(super) fn physdev(b: Blob<'_>) -> Option<String> {
    let (inverted, used) = (b.u8(64)?, b.u8(65)?);
    if used >> 5 != 0 {
        return None;
    }
    let no = |bit: u8| not(inverted & bit != 0);
    let mut out = String::new();
    if used & 8 != 0 {
        out += &format!("{} --physdev-is-in", no(8));
    }
    if used & 1 != 0 {
        let name = interface(b.bytes(0, 16)?, b.bytes(16, 16)?)?;
        out += &format!("{} --physdev-in {name}", no(1));
    }
    if used & 16 != 0 {
        out += &format!("{} --physdev-is-out", no(16));
    }
    if used & 2 != 0 {
        let name = interface(b.bytes(32, 16)?, b.bytes(48, 16)?)?;
        out += &format!("{} --physdev-out {name}", no(2));
    }
    if used & 4 != 0 {
        out += &format!("{} --physdev-is-bridged", no(4));
    }
    Some(out)
}

pub(super) fn icmp(b: Blob<'_>, option: &str) -> Option<String> {
    let (kind, first, last, invert) = (b.u8(0)?, b.u8(1)?, b.u8(2)?, b.u8(3)?);
    let text = match (kind, first, last) {
        (0xff, 0, 0xff) if option == "--icmp-type" => "any".to_owned(),
        (kind, 0, 0xff) => kind.to_string(),
        (kind, code, last) if code == last => format!("{kind}/{code}"),
        _ => return None,
    };
    Some(format!("{} {option} {text}", not(invert & 1 != 0)))
}

pub(super) fn hops(b: Blob<'_>, prefix: &str) -> Option<String> {
    let value = b.u8(1)?;
    Some(match b.u8(0)? {
        0 => format!(" --{prefix}-eq {value}"),
        1 => format!(" ! --{prefix}-eq {value}"),
        2 => format!(" --{prefix}-lt {value}"),
        3 => format!(" --{prefix}-gt {value}"),
        _ => return None,
    })
}

pub(super) fn string(b: Blob<'_>, revision: u32) -> Option<String> {
    let pattern = b.bytes(20, 128)?.get(..usize::from(b.u8(148)?))?;
    let flags = b.u8(149)?;
    let invert = flags & 1 != 0;
    let printable = |b: &u8| b.is_ascii_graphic() || *b == b' ';
    let mut out = match pattern.iter().all(printable) {
        true => {
            let text = quoted(&String::from_utf8_lossy(pattern));
            format!("{} --string {text}", not(invert))
        }
        false => {
            let hex = crate::nft::hex(pattern);
            format!("{} --hex-string \"|{hex}|\"", not(invert))
        }
    };
    out += &format!(" --algo {}", quoted(&b.text(4, 16)?));
    if b.u16(0)? != 0 {
        out += &format!(" --from {}", b.u16(0)?);
    }
    if !matches!(b.u16(2)?, 0 | u16::MAX) {
        out += &format!(" --to {}", b.u16(2)?);
    }
    if revision >= 1 && flags & 2 != 0 {
        out += " --icase";
    }
    Some(out)
}

pub(super) fn devgroup(b: Blob<'_>) -> Option<String> {
    let flags = b.u32(0)?;
    let mut out = String::new();
    for (bit, inverted, at, option) in [(1, 2, 4, "--src-group"), (4, 8, 12, "--dst-group")] {
        if flags & bit != 0 {
            let not = not(flags & inverted != 0);
            let (group, mask) = (b.u32(at)?, b.u32(at + 4)?);
            out += &match mask {
                u32::MAX => format!("{not} {option} 0x{group:x}"),
                _ => format!("{not} {option} 0x{group:x}/0x{mask:x}"),
            };
        }
    }
    Some(out)
}

/// struct ip6t_rt.
pub(super) fn routing_header(b: Blob<'_>) -> Option<String> {
    let (used, inverted) = (b.u8(16)?, b.u8(17)?);
    // Addresses inside the header are not spelled.
    if used & !0x7 != 0 {
        return None;
    }
    let mut out = String::new();
    if used & 1 != 0 {
        out += &format!("{} --rt-type {}", not(inverted & 1 != 0), b.u32(0)?);
    }
    if used & 2 != 0 {
        let (first, last) = (b.u32(4)?, b.u32(8)?);
        let range = if first == last {
            first.to_string()
        } else {
            format!("{first}:{last}")
        };
        out += &format!("{} --rt-segsleft {range}", not(inverted & 2 != 0));
    }
    if used & 4 != 0 {
        out += &format!("{} --rt-len {}", not(inverted & 4 != 0), b.u32(12)?);
    }
    Some(out)
}

/// struct ip6t_opts.
pub(super) fn options_header(b: Blob<'_>, name: &str) -> Option<String> {
    let (used, inverted) = (b.u8(4)?, b.u8(5)?);
    match used {
        0 => Some(String::new()),
        1 => Some(format!(
            "{} --{name}-len {}",
            not(inverted & 1 != 0),
            b.u32(0)?
        )),
        _ => None,
    }
}

/// struct ip6t_frag.
pub(super) fn fragment_header(b: Blob<'_>) -> Option<String> {
    let (used, inverted) = (b.u8(12)?, b.u8(13)?);
    let mut out = String::new();
    if used & 1 != 0 {
        let (first, last) = (b.u32(0)?, b.u32(4)?);
        let range = if first == last {
            first.to_string()
        } else {
            format!("{first}:{last}")
        };
        out += &format!("{} --fragid {range}", not(inverted & 1 != 0));
    }
    if used & 2 != 0 {
        out += &format!("{} --fraglen {}", not(inverted & 2 != 0), b.u32(8)?);
    }
    out += &flags(
        u32::from(used >> 2),
        &["--fragres", "--fragfirst", "--fragmore", "--fraglast"],
    )?;
    Some(out)
}
