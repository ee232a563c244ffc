//! Matches (include/uapi/linux/netfilter/xt_*.h, the save functions of iptables' libxt_*.c).

use super::{Blob, Place, mask_text, quoted, rate, undecoded};

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

/// XT_CONNTRACK_STATE_*.
fn states(mask: u32) -> Option<String> {
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

fn conntrack(b: Blob<'_>, revision: u32, ipv6: bool) -> Option<(&'static str, String)> {
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

fn addrtype(b: Blob<'_>, revision: u32) -> Option<String> {
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
pub(super) fn set_directions(dim: u8, flags: u8) -> Option<String> {
    if dim == 0 || dim > 6 {
        return None;
    }
    let way = |i: u8| if flags >> i & 1 != 0 { "src" } else { "dst" };
    Some((1..=dim).map(way).collect::<Vec<_>>().join(","))
}

fn set(b: Blob<'_>, revision: u32, place: Place<'_>) -> Option<String> {
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

fn limit(b: Blob<'_>) -> Option<String> {
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

fn hashlimit(b: Blob<'_>, revision: u32, ipv6: bool) -> Option<String> {
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

fn recent(b: Blob<'_>, revision: u32, ipv6: bool) -> Option<String> {
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

fn connlimit(b: Blob<'_>, revision: u32, ipv6: bool) -> Option<String> {
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

fn mark(b: Blob<'_>) -> Option<String> {
    Some(mark_text(b.u32(0)?, b.u32(4)?, b.u8(8)? != 0))
}

/// ` [!] --mark VALUE[/MASK]`.
pub(crate) fn mark_text(value: u32, mask: u32, invert: bool) -> String {
    match mask {
        u32::MAX => format!("{} --mark 0x{value:x}", not(invert)),
        mask => format!("{} --mark 0x{value:x}/0x{mask:x}", not(invert)),
    }
}

fn iprange(b: Blob<'_>, ipv6: bool) -> Option<String> {
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

fn owner(b: Blob<'_>) -> Option<String> {
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

fn physdev(b: Blob<'_>) -> Option<String> {
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

fn icmp(b: Blob<'_>, option: &str) -> Option<String> {
    let (kind, first, last, invert) = (b.u8(0)?, b.u8(1)?, b.u8(2)?, b.u8(3)?);
    let text = match (kind, first, last) {
        (0xff, 0, 0xff) if option == "--icmp-type" => "any".to_owned(),
        (kind, 0, 0xff) => kind.to_string(),
        (kind, code, last) if code == last => format!("{kind}/{code}"),
        _ => return None,
    };
    Some(format!("{} {option} {text}", not(invert & 1 != 0)))
}

fn statistic(b: Blob<'_>) -> Option<String> {
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

fn hops(b: Blob<'_>, prefix: &str) -> Option<String> {
    let value = b.u8(1)?;
    Some(match b.u8(0)? {
        0 => format!(" --{prefix}-eq {value}"),
        1 => format!(" ! --{prefix}-eq {value}"),
        2 => format!(" --{prefix}-lt {value}"),
        3 => format!(" --{prefix}-gt {value}"),
        _ => return None,
    })
}

fn string(b: Blob<'_>, revision: u32) -> Option<String> {
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

fn time(b: Blob<'_>) -> Option<String> {
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

fn devgroup(b: Blob<'_>) -> Option<String> {
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
fn routing_header(b: Blob<'_>) -> Option<String> {
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
fn options_header(b: Blob<'_>, name: &str) -> Option<String> {
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
fn fragment_header(b: Blob<'_>) -> Option<String> {
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
