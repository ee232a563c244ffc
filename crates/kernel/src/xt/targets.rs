//! Targets (include/uapi/linux/netfilter/xt_*.h, the save functions of iptables' libxt_*.c).

use super::matches::set_directions;
use super::{Blob, Place, quoted, undecoded};
use std::net::IpAddr;

/// ` -j NAME …` for a target with these parameters.
pub(crate) fn target_text(name: &str, revision: u32, info: &[u8], place: Place<'_>) -> String {
    match options(name, revision, Blob(info), place) {
        Some((shown, options)) => format!(" -j {shown}{options}"),
        None => undecoded("-j", name, revision, info),
    }
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
        ("LOG", 0) => ("LOG", log(b)?),
        ("NFLOG", 0) => {
            let size = b.u16(8)? & 1 != 0;
            let limit = b.u32(0)?;
            let text = nflog(
                &b.text(12, 64)?,
                b.u16(4)?,
                size.then_some(limit),
                b.u16(6)?,
            );
            ("NFLOG", text)
        }
        ("REJECT", 0) => ("REJECT", reject(b.u32(0)?, ipv6)?),
        ("DNAT", 0..=2) => {
            let range = Range::read(b, revision, ipv6, revision == 0)?;
            let mut out = range.to("--to-destination")?;
            out += range.random()?;
            if range.flags & 8 != 0 {
                out += " --persistent";
            }
            ("DNAT", out)
        }
        ("SNAT", 0..=2) => {
            let range = Range::read(b, revision, ipv6, revision == 0)?;
            let mut out = range.to("--to-source")?;
            out += range.random()?;
            if range.flags & 8 != 0 {
                out += " --persistent";
            }
            ("SNAT", out)
        }
        ("MASQUERADE", 0) => {
            let range = Range::read(b, revision, ipv6, !ipv6)?;
            ("MASQUERADE", range.ports_only()? + range.random()?)
        }
        ("REDIRECT", 0) => {
            let range = Range::read(b, revision, ipv6, !ipv6)?;
            ("REDIRECT", range.ports_only()? + range.random()?)
        }
        ("NETMAP", 0) => ("NETMAP", Range::read(b, revision, ipv6, !ipv6)?.netmap()?),
        ("MARK", 2) => ("MARK", xmark(b)?),
        ("CONNMARK", 1 | 2) => ("CONNMARK", connmark(b, revision)?),
        ("NFQUEUE", 0..=3) => ("NFQUEUE", nfqueue(b, revision)?),
        ("TPROXY", 0 | 1) => ("TPROXY", tproxy(b, revision, ipv6)?),
        ("CT", 0..=2) => conntrack(b, revision)?,
        ("NOTRACK", 0) => ("NOTRACK", String::new()),
        ("TRACE", 0) => ("TRACE", String::new()),
        ("SET", 1..=3) => ("SET", set(b, revision, place)?),
        ("TCPMSS", 0) => match b.u16(0)? {
            u16::MAX => ("TCPMSS", " --clamp-mss-to-pmtu".to_owned()),
            mss => ("TCPMSS", format!(" --set-mss {mss}")),
        },
        ("CLASSIFY", 0) => {
            let class = b.u32(0)?;
            let text = format!(" --set-class {:04x}:{:04x}", class >> 16, class & 0xffff);
            ("CLASSIFY", text)
        }
        ("DSCP", 0) => ("DSCP", format!(" --set-dscp 0x{:02x}", b.u8(0)?)),
        ("TOS", 1) => {
            let text = format!(" --set-tos 0x{:02x}/0x{:02x}", b.u8(0)?, b.u8(1)?);
            ("TOS", text)
        }
        ("TTL", 0) => ("TTL", hops(b, "ttl")?),
        ("HL", 0) => ("HL", hops(b, "hl")?),
        ("CHECKSUM", 0) => ("CHECKSUM", " --checksum-fill".to_owned()),
        ("TEE", 1) => {
            let mut out = format!(" --gateway {}", b.inet(0, ipv6)?);
            match b.text(16, 16)? {
                device if device.is_empty() => {}
                device => out += &format!(" --oif {}", quoted(&device)),
            }
            ("TEE", out)
        }
        // Their parameters do not matter to whether a packet passes.
        ("SYNPROXY", 0) => ("SYNPROXY", String::new()),
        ("SECMARK", 0 | 1) => ("SECMARK", String::new()),
        ("CONNSECMARK", 0) => ("CONNSECMARK", String::new()),
        ("IDLETIMER", 0 | 1) => ("IDLETIMER", String::new()),
        ("LED", 0) => ("LED", String::new()),
        ("RATEEST", 0) => ("RATEEST", String::new()),
        ("ECN", 0) => ("ECN", String::new()),
        ("TCPOPTSTRIP", 0) => ("TCPOPTSTRIP", String::new()),
        ("AUDIT", 0 | 1) => ("AUDIT", String::new()),
        _ => return None,
    })
}

fn log(b: Blob<'_>) -> Option<String> {
    const FLAGS: [(u8, &str); 5] = [
        (0x01, " --log-tcp-sequence"),
        (0x02, " --log-tcp-options"),
        (0x04, " --log-ip-options"),
        (0x08, " --log-uid"),
        (0x20, " --log-macdecode"),
    ];
    let (level, flags, prefix) = (b.u8(0)?, b.u8(1)?, b.text(2, 30)?);
    let mut out = String::new();
    if !prefix.is_empty() {
        out += &format!(" --log-prefix {}", quoted(&prefix));
    }
    if level != 4 {
        out += &format!(" --log-level {level}");
    }
    for (bit, option) in FLAGS {
        if flags & bit != 0 {
            out += option;
        }
    }
    Some(out)
}

/// NFLOG's options.
pub(crate) fn nflog(prefix: &str, group: u16, size: Option<u32>, threshold: u16) -> String {
    let mut out = String::new();
    if !prefix.is_empty() {
        out += &format!(" --nflog-prefix {}", quoted(prefix));
    }
    if group != 0 {
        out += &format!(" --nflog-group {group}");
    }
    if let Some(size) = size {
        out += &format!(" --nflog-size {size}");
    }
    if threshold > 1 {
        out += &format!(" --nflog-threshold {threshold}");
    }
    out
}

fn reject(with: u32, ipv6: bool) -> Option<String> {
    let name = match (ipv6, with) {
        (false, 0) => "icmp-net-unreachable",
        (false, 1) => "icmp-host-unreachable",
        (false, 2) => "icmp-proto-unreachable",
        (false, 3) => "icmp-port-unreachable",
        (false, 5) => "icmp-net-prohibited",
        (false, 6) => "icmp-host-prohibited",
        (false, 7) => "tcp-reset",
        (false, 8) => "icmp-admin-prohibited",
        (true, 0) => "icmp6-no-route",
        (true, 1) => "icmp6-adm-prohibited",
        (true, 3) => "icmp6-addr-unreachable",
        (true, 4) => "icmp6-port-unreachable",
        (true, 6) => "tcp-reset",
        (true, 7) => "icmp6-policy-fail",
        (true, 8) => "icmp6-reject-route",
        _ => return None,
    };
    Some(format!(" --reject-with {name}"))
}

/// What DNAT, SNAT, MASQUERADE, REDIRECT and NETMAP map to.
struct Range {
    flags: u32,
    addresses: Option<(IpAddr, IpAddr)>,
    ports: (u16, u16),
    base: u16,
}

impl Range {
    /// struct nf_nat_ipv4_multi_range_compat (`old`), nf_nat_range, or nf_nat_range2 (revision 2).
    fn read(b: Blob<'_>, revision: u32, ipv6: bool, old: bool) -> Option<Range> {
        if old {
            // More than one range died out with Linux 2.6.
            if b.u32(0)? != 1 {
                return None;
            }
            let flags = b.u32(4)?;
            return Some(Range {
                flags,
                addresses: Some((b.inet(8, false)?, b.inet(12, false)?)),
                ports: (b.be16(16)?, b.be16(18)?),
                base: 0,
            });
        }
        Some(Range {
            flags: b.u32(0)?,
            addresses: Some((b.inet(4, ipv6)?, b.inet(20, ipv6)?)),
            ports: (b.be16(36)?, b.be16(38)?),
            base: if revision == 2 { b.be16(40)? } else { 0 },
        })
    }

    fn port_text(&self) -> String {
        let (first, last) = self.ports;
        let mut out = first.to_string();
        if last != first {
            out += &format!("-{last}");
        }
        if self.flags & 32 != 0 {
            out += &format!("/{}", self.base);
        }
        out
    }

    fn to(&self, option: &str) -> Option<String> {
        let ported = self.flags & 2 != 0;
        let mut out = String::new();
        if self.flags & 1 != 0 {
            let (first, last) = self.addresses?;
            let brackets = first.is_ipv6() && ported;
            out += &match (first == last, brackets) {
                (true, false) => format!("{first}"),
                (true, true) => format!("[{first}]"),
                (false, false) => format!("{first}-{last}"),
                (false, true) => format!("[{first}]-[{last}]"),
            };
        }
        if ported {
            out += &format!(":{}", self.port_text());
        }
        (!out.is_empty()).then(|| format!(" {option} {out}"))
    }

    fn ports_only(&self) -> Option<String> {
        if self.flags & 1 != 0 {
            return None;
        }
        Some(match self.flags & 2 {
            0 => String::new(),
            _ => format!(" --to-ports {}", self.port_text()),
        })
    }

    fn random(&self) -> Option<&'static str> {
        match self.flags & (4 | 16) {
            0 => Some(""),
            4 => Some(" --random"),
            16 => Some(" --random-fully"),
            _ => Some(" --random --random-fully"),
        }
    }

    fn netmap(&self) -> Option<String> {
        let bytes = |a: IpAddr| match a {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        let (first, last) = self.addresses?;
        let (low, high) = (bytes(first), bytes(last));
        let mask: Vec<u8> = low.iter().zip(&high).map(|(a, b)| !(a ^ b)).collect();
        Some(format!(" --to {first}{}", super::mask_text(&mask)))
    }
}

fn xmark(b: Blob<'_>) -> Option<String> {
    Some(format!(" --set-xmark 0x{:x}/0x{:x}", b.u32(0)?, b.u32(4)?))
}

fn connmark(b: Blob<'_>, revision: u32) -> Option<String> {
    let (ctmark, ctmask, nfmask) = (b.u32(0)?, b.u32(4)?, b.u32(8)?);
    let (mode, shift) = match revision {
        1 => (b.u8(12)?, None),
        _ => (b.u8(14)?, Some((b.u8(12)?, b.u8(13)?))),
    };
    let mut out = match mode {
        0 => format!(" --set-xmark 0x{ctmark:x}/0x{ctmask:x}"),
        1 => format!(" --save-mark --nfmask 0x{nfmask:x} --ctmask 0x{ctmask:x}"),
        2 => format!(" --restore-mark --nfmask 0x{nfmask:x} --ctmask 0x{ctmask:x}"),
        _ => return None,
    };
    match shift {
        None | Some((_, 0)) => {}
        Some((0, bits)) => out += &format!(" --left-shift-mark {bits}"),
        Some((_, bits)) => out += &format!(" --right-shift-mark {bits}"),
    }
    Some(out)
}

fn nfqueue(b: Blob<'_>, revision: u32) -> Option<String> {
    let num = b.u16(0)?;
    let total = if revision >= 1 { b.u16(2)? } else { 1 };
    let mut out = match total {
        0 | 1 => format!(" --queue-num {num}"),
        _ => format!(" --queue-balance {num}:{}", num.checked_add(total - 1)?),
    };
    let flags = if revision >= 2 { b.u16(4)? } else { 0 };
    if flags & 1 != 0 {
        out += " --queue-bypass";
    }
    if revision >= 3 && flags & 2 != 0 {
        out += " --queue-cpu-fanout";
    }
    Some(out)
}

fn tproxy(b: Blob<'_>, revision: u32, ipv6: bool) -> Option<String> {
    let (mask, value) = (b.u32(0)?, b.u32(4)?);
    let (address, port) = match revision {
        0 => (b.inet(8, false)?, b.be16(12)?),
        _ => (b.inet(8, ipv6)?, b.be16(24)?),
    };
    let mut out = format!(" --on-port {port}");
    if !address.is_unspecified() {
        out += &format!(" --on-ip {address}");
    }
    if mask != 0 {
        out += &format!(" --tproxy-mark 0x{value:x}/0x{mask:x}");
    }
    Some(out)
}

fn conntrack(b: Blob<'_>, revision: u32) -> Option<(&'static str, String)> {
    let (flags, zone) = (b.u16(0)?, b.u16(2)?);
    if flags & 2 != 0 {
        return Some(("NOTRACK", String::new()));
    }
    let mut out = String::new();
    if flags & 1 != 0 {
        out += " --notrack";
    }
    let helper = b.text(12, 16)?;
    if !helper.is_empty() {
        out += &format!(" --helper {}", quoted(&helper));
    }
    if revision >= 1 {
        let timeout = b.text(28, 32)?;
        if !timeout.is_empty() {
            out += &format!(" --timeout {}", quoted(&timeout));
        }
    }
    for (at, option) in [(4, "--ctevents"), (8, "--expevents")] {
        let events = b.u32(at)?;
        if events != 0 {
            out += &format!(" {option} 0x{events:x}");
        }
    }
    let option = match flags & 12 {
        4 => "--zone-orig",
        8 => "--zone-reply",
        _ => "--zone",
    };
    if flags & 16 != 0 {
        out += &format!(" {option} mark");
    } else if zone != 0 {
        out += &format!(" {option} {zone}");
    }
    (flags >> 5 == 0).then_some(("CT", out))
}

fn set(b: Blob<'_>, revision: u32, place: Place<'_>) -> Option<String> {
    const NONE: u16 = 0xffff;
    let (flags, timeout) = match revision {
        1 => (0, u32::MAX),
        2 => (b.u32(8)?, b.u32(12)?),
        _ => (b.u32(12)?, b.u32(16)?),
    };
    let mut out = String::new();
    for (at, option) in [(0, "--add-set"), (4, "--del-set")] {
        let index = b.u16(at)?;
        if index == NONE {
            continue;
        }
        let name = place.sets.get(&index)?;
        let directions = set_directions(b.u8(at + 2)?, b.u8(at + 3)?)?;
        out += &format!(" {option} {} {directions}", quoted(name));
        if at == 0 {
            if flags & 1 != 0 {
                out += " --exist";
            }
            if timeout != u32::MAX && timeout != 0 {
                out += &format!(" --timeout {timeout}");
            }
        }
    }
    // Mapping a set's values onto the packet is not spelled.
    if revision == 3 && b.u16(8)? != NONE {
        return None;
    }
    Some(out)
}

fn hops(b: Blob<'_>, prefix: &str) -> Option<String> {
    let value = b.u8(1)?;
    Some(match b.u8(0)? {
        0 => format!(" --{prefix}-set {value}"),
        1 => format!(" --{prefix}-inc {value}"),
        2 => format!(" --{prefix}-dec {value}"),
        _ => return None,
    })
}
