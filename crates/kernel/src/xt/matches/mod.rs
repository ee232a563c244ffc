//! Matches (include/uapi/linux/netfilter/xt_*.h, the save functions of iptables' libxt_*.c).

mod fields;
mod rates;
mod state;

pub(crate) use fields::{interface, mark_text};
pub(crate) use rates::limit_text;
pub(super) use state::set_directions;

use super::{Blob, Place, mask_text, quoted, rate, undecoded};
use fields::*;
use rates::*;
use state::*;

/// ` -m NAME …` for a match with these parameters.
pub(crate) fn match_text(name: &str, revision: u32, info: &[u8], place: Place<'_>) -> String {
    let blob = Blob(info);
    match options(name, revision, blob, place) {
        Some((shown, options)) => format!(" -m {shown}{options}"),
        None => undecoded("-m", name, revision, info),
    }
}

fn not(invert: bool) -> &'static str {
    if invert { " !" } else { "" }
}

/// The name to print and the options; `None` when they are not understood.
fn options(
    name: &str,
    revision: u32,
    b: Blob<'_>,
    place: Place<'_>,
) -> Option<(&'static str, String)> {
    let ipv6 = place.ipv6;
    Some(match (name, revision) {
        ("tcp", 0) => ("tcp", tcp(b)?),
        ("udp", 0) => ("udp", ports(b, b.u8(8)?)?),
        ("udplite", 0) => ("udplite", ports(b, b.u8(8)?)?),
        ("sctp", 0) => ("sctp", sctp(b)?),
        ("comment", 0) => {
            let text = b.text(0, b.0.len().min(256))?;
            ("comment", format!(" --comment {}", quoted(&text)))
        }
        ("multiport", 0 | 1) => ("multiport", multiport(b, revision)?),
        ("state", 0) => {
            let mask = b.u32(0)?;
            let mask = mask & 0xf | if mask & 0x40 != 0 { 0x100 } else { 0 };
            ("state", format!(" --state {}", states(mask)?))
        }
        ("conntrack", 1..=3) => conntrack(b, revision, ipv6)?,
        ("addrtype", 0 | 1) => ("addrtype", addrtype(b, revision)?),
        ("set", 1..=4) => ("set", set(b, revision, place)?),
        ("limit", 0) => ("limit", limit(b)?),
        ("hashlimit", 1..=3) => ("hashlimit", hashlimit(b, revision, ipv6)?),
        ("recent", 0 | 1) => ("recent", recent(b, revision, ipv6)?),
        ("connlimit", 0 | 1) => ("connlimit", connlimit(b, revision, ipv6)?),
        ("mark", 1) => ("mark", mark(b)?),
        ("connmark", 1) => ("connmark", mark(b)?),
        ("iprange", 1) => ("iprange", iprange(b, ipv6)?),
        ("mac", 0) => {
            let bytes: Vec<String> = b.bytes(0, 6)?.iter().map(|b| format!("{b:02x}")).collect();
            let not = not(b.u32(8)? != 0);
            ("mac", format!("{not} --mac-source {}", bytes.join(":")))
        }
        ("owner", 1) => ("owner", owner(b)?),
        ("physdev", 0) => ("physdev", physdev(b)?),
        ("pkttype", 0) => {
            let kind = match b.u32(0)? {
                0 => "unicast",
                1 => "broadcast",
                2 => "multicast",
                _ => return None,
            };
            (
                "pkttype",
                format!("{} --pkt-type {kind}", not(b.u32(4)? != 0)),
            )
        }
        ("icmp", 0) => ("icmp", icmp(b, "--icmp-type")?),
        ("icmp6", 0) => ("icmp6", icmp(b, "--icmpv6-type")?),
        ("statistic", 0) => ("statistic", statistic(b)?),
        ("rpfilter", 0) => {
            let names = ["--loose", "--validmark", "--accept-local", "--invert"];
            ("rpfilter", flags(b.u8(0)?.into(), &names)?)
        }
        ("length", 0) => {
            let (min, max) = (b.u16(0)?, b.u16(2)?);
            let range = if min == max {
                min.to_string()
            } else {
                format!("{min}:{max}")
            };
            ("length", format!("{} --length {range}", not(b.u8(4)? != 0)))
        }
        ("socket", 0) => ("socket", String::new()),
        ("socket", 1..=3) => {
            let names = ["--transparent", "--nowildcard", "--restore-skmark"];
            ("socket", flags(b.u8(0)?.into(), &names)?)
        }
        ("ttl", 0) => ("ttl", hops(b, "ttl")?),
        ("hl", 0) => ("hl", hops(b, "hl")?),
        ("dscp", 0) => {
            let value = b.u8(0)?;
            (
                "dscp",
                format!("{} --dscp 0x{value:02x}", not(b.u8(1)? != 0)),
            )
        }
        ("tos", 1) => {
            let (mask, value) = (b.u8(0)?, b.u8(1)?);
            let not = not(b.u8(2)? != 0);
            ("tos", format!("{not} --tos 0x{value:02x}/0x{mask:02x}"))
        }
        ("quota", 0) => {
            let not = not(b.u32(0)? & 1 != 0);
            ("quota", format!("{not} --quota {}", b.u64(8)?))
        }
        ("string", 0 | 1) => ("string", string(b, revision)?),
        ("time", 0) => ("time", time(b)?),
        ("helper", 0) => {
            let text = quoted(&b.text(4, 30)?);
            ("helper", format!("{} --helper {text}", not(b.u32(0)? != 0)))
        }
        ("devgroup", 0) => ("devgroup", devgroup(b)?),
        ("rt", 0) => ("rt", routing_header(b)?),
        ("hbh", 0) => ("hbh", options_header(b, "hbh")?),
        ("dst", 0) => ("dst", options_header(b, "dst")?),
        ("frag", 0) => ("frag", fragment_header(b)?),
        ("eui64", 0) => ("eui64", String::new()),
        // What they look for does not matter to the engine, only that they look.
        ("bpf", 0 | 1) => ("bpf", String::new()),
        ("u32", 0) => ("u32", String::new()),
        ("tcpmss", 0) => ("tcpmss", String::new()),
        ("connbytes", 0) => ("connbytes", String::new()),
        ("rateest", 0) => ("rateest", String::new()),
        ("osf", 0) => ("osf", String::new()),
        ("cpu", 0) => ("cpu", String::new()),
        ("cluster", 0) => ("cluster", String::new()),
        _ => return None,
    })
}

/// Options without arguments by bit; `None` when a bit has no name.
fn flags(bits: u32, names: &[&str]) -> Option<String> {
    if bits >> names.len() != 0 {
        return None;
    }
    let set = names.iter().enumerate().filter(|(i, _)| bits >> i & 1 != 0);
    Some(set.map(|(_, name)| format!(" {name}")).collect())
}

pub(crate) fn port_option(option: &str, min: u16, max: u16, invert: bool) -> String {
    if min == 0 && max == u16::MAX && !invert {
        return String::new();
    }
    let range = if min == max {
        min.to_string()
    } else {
        format!("{min}:{max}")
    };
    format!("{} {option} {range}", not(invert))
}

fn ports(b: Blob<'_>, inverted: u8) -> Option<String> {
    let source = port_option("--sport", b.u16(0)?, b.u16(2)?, inverted & 1 != 0);
    let destination = port_option("--dport", b.u16(4)?, b.u16(6)?, inverted & 2 != 0);
    Some(source + &destination)
}

/// TCP flags by name; `None` for the two that iptables cannot name.
pub(crate) fn tcp_flags(bits: u8) -> Option<String> {
    const NAMES: [&str; 6] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
    if bits == 0 {
        return Some("NONE".to_owned());
    }
    if bits >> 6 != 0 {
        return None;
    }
    let set = NAMES
        .iter()
        .enumerate()
        .filter(|(i, _)| bits >> i & 1 != 0)
        .map(|(_, name)| *name);
    Some(set.collect::<Vec<_>>().join(","))
}

fn tcp(b: Blob<'_>) -> Option<String> {
    let (option, mask, value, inverted) = (b.u8(8)?, b.u8(9)?, b.u8(10)?, b.u8(11)?);
    let mut out = ports(b, inverted)?;
    if option != 0 || inverted & 8 != 0 {
        out += &format!("{} --tcp-option {option}", not(inverted & 8 != 0));
    }
    if mask != 0 || inverted & 4 != 0 {
        out += &format!(
            "{} --tcp-flags {} {}",
            not(inverted & 4 != 0),
            tcp_flags(mask)?,
            tcp_flags(value)?
        );
    }
    Some(out)
}

fn sctp(b: Blob<'_>) -> Option<String> {
    let (used, inverted) = (b.u32(284)?, b.u32(288)?);
    // Chunk types are not spelled.
    if used & 4 != 0 {
        return None;
    }
    let mut out = String::new();
    if used & 1 != 0 {
        out += &port_option("--sport", b.u16(4)?, b.u16(6)?, inverted & 1 != 0);
    }
    if used & 2 != 0 {
        out += &port_option("--dport", b.u16(0)?, b.u16(2)?, inverted & 2 != 0);
    }
    Some(out)
}

fn multiport(b: Blob<'_>, revision: u32) -> Option<String> {
    let option = match b.u8(0)? {
        0 => "--sports",
        1 => "--dports",
        2 => "--ports",
        _ => return None,
    };
    let count = usize::from(b.u8(1)?);
    if count > 15 {
        return None;
    }
    let mut list: Vec<String> = Vec::new();
    let mut at = 0;
    while at < count {
        let first = b.u16(2 + 2 * at)?;
        if revision == 1 && b.u8(32 + at)? != 0 {
            at += 1;
            list.push(format!("{first}:{}", b.u16(2 + 2 * at)?));
        } else {
            list.push(first.to_string());
        }
        at += 1;
    }
    let invert = revision == 1 && b.u8(47)? != 0;
    Some(format!("{} {option} {}", not(invert), list.join(",")))
}
