//! Numbers, addresses, and the names that iptables, nft and ipset print for them.
use crate::AddrSet;
use crate::ir::ct_state;
use std::net::IpAddr;

/// A number as C's `strtoul(…, 0)` reads it: decimal, `0x` hexadecimal, leading 0 octal.
pub(super) fn number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    if text.len() > 1 && text.starts_with('0') {
        return u64::from_str_radix(text, 8).ok();
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A number that fits 32 bits.
pub(super) fn number32(text: &str) -> Option<u32> {
    u32::try_from(number(text)?).ok()
}

/// `VALUE[/MASK]`; the mask is all ones when not given.
pub(super) fn masked32(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number32(value)?, number32(mask)?)),
        None => Some((number32(text)?, u32::MAX)),
    }
}

/// A port: a number, or the name that old tools and people write.
pub(super) fn port(text: &str) -> Option<u16> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok();
    }
    let found = SERVICES.iter().find(|(name, _)| *name == text)?;
    Some(found.1)
}

/// `PORT`, `FIRST:LAST`, `:LAST`, `FIRST:`, with another separator where given.
pub(super) fn port_range(text: &str, separator: char) -> Option<(u16, u16)> {
    let Some((first, last)) = text.split_once(separator) else {
        let one = port(text)?;
        return Some((one, one));
    };
    let first = if first.is_empty() { 0 } else { port(first)? };
    let last = if last.is_empty() {
        u16::MAX
    } else {
        port(last)?
    };
    Some((first, last))
}

/// IANA number of a transport protocol.
pub(super) fn protocol(text: &str) -> Option<u8> {
    if let Some(number) = number(text) {
        return u8::try_from(number).ok();
    }
    let text = text.to_ascii_lowercase();
    let found = PROTOCOLS.iter().find(|(name, _)| *name == text)?;
    Some(found.1)
}

/// An address with what its mask makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Net {
    /// A prefix, as its first and last address.
    Range(IpAddr, IpAddr),
    /// Address and mask, which is no prefix.
    Masked(IpAddr, u128),
}

/// `ADDR`, `ADDR/LEN`, `ADDR/MASK`, in the given family.
pub(super) fn network(text: &str, ipv6: bool) -> Option<Net> {
    let (address, mask) = match text.split_once('/') {
        Some((address, mask)) => (address, Some(mask)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    if address.is_ipv6() != ipv6 {
        return None;
    }
    let bits: u8 = if ipv6 { 128 } else { 32 };
    let Some(mask) = mask else {
        return Some(Net::Range(address, address));
    };
    let mask = if mask.bytes().all(|b| b.is_ascii_digit()) {
        let len: u8 = mask.parse().ok()?;
        (len <= bits).then(|| prefix_mask(len, bits))?
    } else {
        let mask: IpAddr = mask.parse().ok()?;
        if mask.is_ipv6() != ipv6 {
            return None;
        }
        to_bits(mask)
    };
    Some(masked(address, mask))
}

/// An address under a mask.
pub(super) fn masked(address: IpAddr, mask: u128) -> Net {
    let bits: u8 = if address.is_ipv6() { 128 } else { 32 };
    let len = mask.count_ones() as u8;
    let value = to_bits(address) & mask;
    let first = from_bits(value, address.is_ipv6());
    if mask != prefix_mask(len, bits) {
        return Net::Masked(first, mask);
    }
    let last = from_bits(value | (prefix_mask(bits, bits) & !mask), address.is_ipv6());
    Net::Range(first, last)
}

/// The upper `len` of `bits` bits set.
fn prefix_mask(len: u8, bits: u8) -> u128 {
    let full = if bits == 128 {
        u128::MAX
    } else {
        (1 << bits) - 1
    };
    let host = bits - len;
    if host >= 128 { 0 } else { full >> host << host }
}

/// The address as a number, IPv4 in the low 32 bits.
pub(super) fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

pub(super) fn from_bits(bits: u128, ipv6: bool) -> IpAddr {
    if ipv6 {
        IpAddr::V6(bits.into())
    } else {
        IpAddr::V4((bits as u32).into())
    }
}

/// `A-B`, or one address, in the given family.
pub(super) fn address_range(text: &str, ipv6: bool) -> Option<(IpAddr, IpAddr)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (IpAddr, IpAddr) = (first.parse().ok()?, last.parse().ok()?);
    (first.is_ipv6() == ipv6 && last.is_ipv6() == ipv6 && first <= last).then_some((first, last))
}

/// Six bytes in hexadecimal with colons.
pub(super) fn mac(text: &str) -> Option<Vec<u8>> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|b| {
            (b.len() <= 2)
                .then(|| u8::from_str_radix(b, 16).ok())
                .flatten()
        })
        .collect::<Option<_>>()?;
    (bytes.len() == 6).then_some(bytes)
}

/// All addresses of one family.
pub(super) fn all_addresses(ipv6: bool) -> AddrSet {
    if ipv6 {
        AddrSet::all_v6()
    } else {
        AddrSet::all_v4()
    }
}

/// A conntrack state by name, in either tool's spelling.
pub(super) fn ct_state_bit(text: &str) -> Option<u64> {
    Some(match text.to_ascii_lowercase().as_str() {
        "invalid" => ct_state::INVALID,
        "established" => ct_state::ESTABLISHED,
        "related" => ct_state::RELATED,
        "new" => ct_state::NEW,
        "untracked" => ct_state::UNTRACKED,
        "snat" => ct_state::SNAT,
        "dnat" => ct_state::DNAT,
        _ => return None,
    })
}

/// A TCP flag by name.
pub(super) fn tcp_flag(text: &str) -> Option<u64> {
    Some(match text.to_ascii_lowercase().as_str() {
        "fin" => 1,
        "syn" => 2,
        "rst" => 4,
        "psh" => 8,
        "ack" => 16,
        "urg" => 32,
        "ecn" | "ece" => 64,
        "cwr" => 128,
        _ => return None,
    })
}

/// RTN_* number of an address type (`linux/rtnetlink.h`).
pub(super) fn address_type(text: &str) -> Option<u64> {
    Some(match text.to_ascii_lowercase().as_str() {
        "unspec" => 0,
        "unicast" => 1,
        "local" => 2,
        "broadcast" => 3,
        "anycast" => 4,
        "multicast" => 5,
        "blackhole" => 6,
        "unreachable" => 7,
        "prohibit" => 8,
        "throw" => 9,
        "nat" => 10,
        "xresolve" => 11,
        _ => return None,
    })
}

/// ICMP type and, where the name has one, code.
pub(super) fn icmp(text: &str) -> Option<(u8, Option<u8>)> {
    let found = ICMP.iter().find(|(name, ..)| *name == text)?;
    Some((found.1, found.2))
}

/// ICMPv6 type and, where the name has one, code.
pub(super) fn icmp6(text: &str) -> Option<(u8, Option<u8>)> {
    let found = ICMP6.iter().find(|(name, ..)| *name == text)?;
    Some((found.1, found.2))
}

/// PACKET_* number (`linux/if_packet.h`).
pub(super) fn packet_type(text: &str) -> Option<u64> {
    Some(match text {
        "unicast" | "host" => 0,
        "broadcast" => 1,
        "multicast" => 2,
        "other" => 3,
        _ => return None,
    })
}

/// EtherType by nft's name or number.
pub(super) fn ether_type(text: &str) -> Option<u64> {
    Some(match text {
        "ip" => 0x0800,
        "arp" => 0x0806,
        "ip6" => 0x86dd,
        "vlan" | "8021q" => 0x8100,
        "8021ad" => 0x88a8,
        _ => return number(text),
    })
}

/// DSCP by class name or number.
pub(super) fn dscp(text: &str) -> Option<u64> {
    let value = match text.to_ascii_lowercase().as_str() {
        "be" | "cs0" => 0,
        "cs1" => 8,
        "af11" => 10,
        "af12" => 12,
        "af13" => 14,
        "cs2" => 16,
        "af21" => 18,
        "af22" => 20,
        "af23" => 22,
        "cs3" => 24,
        "af31" => 26,
        "af32" => 28,
        "af33" => 30,
        "cs4" => 32,
        "af41" => 34,
        "af42" => 36,
        "af43" => 38,
        "cs5" => 40,
        "va" | "voice-admit" => 44,
        "ef" => 46,
        "cs6" => 48,
        "cs7" => 56,
        "le" | "lephb" => 1,
        other => number(other)?,
    };
    (value < 64).then_some(value)
}

const PROTOCOLS: &[(&str, u8)] = &[
    ("tcp", 6),
    ("udp", 17),
    ("icmp", 1),
    ("icmpv6", 58),
    ("ipv6-icmp", 58),
    ("sctp", 132),
    ("dccp", 33),
    ("udplite", 136),
    ("esp", 50),
    ("ipv6-crypt", 50),
    ("ah", 51),
    ("ipv6-auth", 51),
    ("comp", 108),
    ("ipcomp", 108),
    ("gre", 47),
    ("igmp", 2),
    ("ipencap", 4),
    ("ipip", 94),
    ("ipv6", 41),
    ("ipv6-route", 43),
    ("ipv6-frag", 44),
    ("ipv6-nonxt", 59),
    ("ipv6-opts", 60),
    ("hopopt", 0),
    ("ip", 0),
    ("all", 0),
    ("mh", 135),
    ("ipv6-mh", 135),
    ("mobility-header", 135),
    ("ospf", 89),
    ("ospfigp", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("l2tp", 115),
    ("rsvp", 46),
    ("eigrp", 88),
    ("egp", 8),
    ("igp", 9),
    ("ggp", 3),
    ("st", 5),
    ("pup", 12),
    ("hmp", 20),
    ("xns-idp", 22),
    ("rdp", 27),
    ("iso-tp4", 29),
    ("xtp", 36),
    ("ddp", 37),
    ("idpr-cmtp", 38),
    ("rspf", 73),
    ("skip", 57),
    ("vmtp", 81),
    ("ax.25", 93),
    ("etherip", 97),
    ("encap", 98),
    ("isis", 124),
    ("fc", 133),
    ("hip", 139),
    ("manet", 138),
    ("mpls-in-ip", 137),
    ("shim6", 140),
    ("wesp", 141),
    ("rohc", 142),
    ("ethernet", 143),
];

/// Names of /etc/services that old nft versions print and that people write.
const SERVICES: &[(&str, u16)] = &[
    ("echo", 7),
    ("discard", 9),
    ("ftp-data", 20),
    ("ftp", 21),
    ("ssh", 22),
    ("telnet", 23),
    ("smtp", 25),
    ("time", 37),
    ("whois", 43),
    ("domain", 53),
    ("bootps", 67),
    ("bootpc", 68),
    ("tftp", 69),
    ("gopher", 70),
    ("finger", 79),
    ("http", 80),
    ("kerberos", 88),
    ("pop3", 110),
    ("sunrpc", 111),
    ("auth", 113),
    ("nntp", 119),
    ("ntp", 123),
    ("netbios-ns", 137),
    ("netbios-dgm", 138),
    ("netbios-ssn", 139),
    ("imap2", 143),
    ("imap", 143),
    ("snmp", 161),
    ("snmp-trap", 162),
    ("bgp", 179),
    ("irc", 194),
    ("ldap", 389),
    ("https", 443),
    ("microsoft-ds", 445),
    ("submissions", 465),
    ("isakmp", 500),
    ("syslog", 514),
    ("printer", 515),
    ("submission", 587),
    ("ipp", 631),
    ("ldaps", 636),
    ("domain-s", 853),
    ("rsync", 873),
    ("imaps", 993),
    ("pop3s", 995),
    ("socks", 1080),
    ("openvpn", 1194),
    ("ms-sql-s", 1433),
    ("radius", 1812),
    ("radius-acct", 1813),
    ("nfs", 2049),
    ("mysql", 3306),
    ("rdp", 3389),
    ("ms-wbt-server", 3389),
    ("nut", 3493),
    ("ipsec-nat-t", 4500),
    ("sip", 5060),
    ("sip-tls", 5061),
    ("xmpp-client", 5222),
    ("mdns", 5353),
    ("postgresql", 5432),
    ("amqp", 5672),
    ("x11", 6000),
    ("x11-1", 6001),
    ("redis", 6379),
    ("ircd", 6667),
    ("http-alt", 8080),
    ("zabbix-agent", 10050),
    ("zabbix-trapper", 10051),
];

const ICMP: &[(&str, u8, Option<u8>)] = &[
    ("echo-reply", 0, None),
    ("pong", 0, None),
    ("destination-unreachable", 3, None),
    ("network-unreachable", 3, Some(0)),
    ("host-unreachable", 3, Some(1)),
    ("protocol-unreachable", 3, Some(2)),
    ("port-unreachable", 3, Some(3)),
    ("fragmentation-needed", 3, Some(4)),
    ("source-route-failed", 3, Some(5)),
    ("network-unknown", 3, Some(6)),
    ("host-unknown", 3, Some(7)),
    ("network-prohibited", 3, Some(9)),
    ("host-prohibited", 3, Some(10)),
    ("communication-prohibited", 3, Some(13)),
    ("source-quench", 4, None),
    ("redirect", 5, None),
    ("echo-request", 8, None),
    ("ping", 8, None),
    ("router-advertisement", 9, None),
    ("router-solicitation", 10, None),
    ("time-exceeded", 11, None),
    ("ttl-exceeded", 11, None),
    ("ttl-zero-during-transit", 11, Some(0)),
    ("ttl-zero-during-reassembly", 11, Some(1)),
    ("parameter-problem", 12, None),
    ("timestamp-request", 13, None),
    ("timestamp-reply", 14, None),
    ("info-request", 15, None),
    ("info-reply", 16, None),
    ("address-mask-request", 17, None),
    ("address-mask-reply", 18, None),
];

const ICMP6: &[(&str, u8, Option<u8>)] = &[
    ("destination-unreachable", 1, None),
    ("no-route", 1, Some(0)),
    ("communication-prohibited", 1, Some(1)),
    ("address-unreachable", 1, Some(3)),
    ("port-unreachable", 1, Some(4)),
    ("packet-too-big", 2, None),
    ("time-exceeded", 3, None),
    ("ttl-exceeded", 3, None),
    ("ttl-zero-during-transit", 3, Some(0)),
    ("ttl-zero-during-reassembly", 3, Some(1)),
    ("parameter-problem", 4, None),
    ("bad-header", 4, Some(0)),
    ("unknown-header-type", 4, Some(1)),
    ("unknown-option", 4, Some(2)),
    ("echo-request", 128, None),
    ("ping", 128, None),
    ("echo-reply", 129, None),
    ("pong", 129, None),
    ("mld-listener-query", 130, None),
    ("mld-listener-report", 131, None),
    ("mld-listener-done", 132, None),
    ("mld-listener-reduction", 132, None),
    ("router-solicitation", 133, None),
    ("nd-router-solicit", 133, None),
    ("router-advertisement", 134, None),
    ("nd-router-advert", 134, None),
    ("neighbour-solicitation", 135, None),
    ("neighbor-solicitation", 135, None),
    ("nd-neighbor-solicit", 135, None),
    ("neighbour-advertisement", 136, None),
    ("neighbor-advertisement", 136, None),
    ("nd-neighbor-advert", 136, None),
    ("redirect", 137, None),
    ("nd-redirect", 137, None),
    ("router-renumbering", 138, None),
    ("ind-neighbor-solicit", 141, None),
    ("ind-neighbor-advert", 142, None),
    ("mld2-listener-report", 143, None),
];
