//! Building SYN and RST segments, reading what comes back (RFC 791, 8200, 9293, 792, 4443).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// TCP flag bits: SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// ACK.
pub const ACK: u8 = 0x10;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// TCP header with one MSS option.
const SYN_LENGTH: usize = 24;
const RST_LENGTH: usize = 20;
/// Longest packet built here: IPv6 header and a SYN.
pub const MAX_PACKET: usize = 40 + SYN_LENGTH;

/// A packet of one source and target with everything but ports and numbers filled in.
#[derive(Debug, Clone)]
pub struct Template {
    ip: Vec<u8>,
    tcp: [u8; SYN_LENGTH],
    length: usize,
    /// One's complement sum of the pseudo header and the fixed TCP fields.
    sum: u32,
}

impl Template {
    /// A SYN from `source` to `target`; both of one family, else `None`.
    pub fn syn(source: IpAddr, target: IpAddr) -> Option<Template> {
        // Without an MSS option some stacks and scrubbers treat the SYN as an attack tool's.
        let mss: u16 = if target.is_ipv6() { 1440 } else { 1460 };
        let [high, low] = mss.to_be_bytes();
        let mut tcp = [0u8; SYN_LENGTH];
        tcp[12] = (SYN_LENGTH as u8 / 4) << 4;
        tcp[13] = SYN;
        tcp[14..16].copy_from_slice(&64240u16.to_be_bytes());
        tcp[20..24].copy_from_slice(&[2, 4, high, low]);
        Template::new(source, target, tcp, SYN_LENGTH)
    }

    /// An RST from `source` to `target`.
    pub fn rst(source: IpAddr, target: IpAddr) -> Option<Template> {
        let mut tcp = [0u8; SYN_LENGTH];
        tcp[12] = (RST_LENGTH as u8 / 4) << 4;
        tcp[13] = RST;
        Template::new(source, target, tcp, RST_LENGTH)
    }

    fn new(
        source: IpAddr,
        target: IpAddr,
        tcp: [u8; SYN_LENGTH],
        length: usize,
    ) -> Option<Template> {
        let (ip, pseudo) = match (source, target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => (ipv4(source, target, length), {
                words(&source.octets()) + words(&target.octets())
            }),
            (IpAddr::V6(source), IpAddr::V6(target)) => (ipv6(source, target, length), {
                words(&source.octets()) + words(&target.octets())
            }),
            _ => return None,
        };
        let sum = pseudo + u32::from(TCP) + length as u32 + words(&tcp[..length]);
        Some(Template {
            ip,
            tcp,
            length,
            sum,
        })
    }

    /// Writes the packet with these ports and this sequence number; returns its length.
    pub fn write(&self, out: &mut [u8; MAX_PACKET], sport: u16, dport: u16, seq: u32) -> usize {
        let at = self.ip.len();
        out[..at].copy_from_slice(&self.ip);
        let tcp = &mut out[at..at + self.length];
        tcp.copy_from_slice(&self.tcp[..self.length]);
        tcp[0..2].copy_from_slice(&sport.to_be_bytes());
        tcp[2..4].copy_from_slice(&dport.to_be_bytes());
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        let sum = self.sum + u32::from(sport) + u32::from(dport) + (seq >> 16) + (seq & 0xffff);
        tcp[16..18].copy_from_slice(&(!fold(sum)).to_be_bytes());
        at + self.length
    }
}

fn ipv4(source: Ipv4Addr, target: Ipv4Addr, length: usize) -> Vec<u8> {
    let mut ip = vec![0u8; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
    // Don't fragment, so that identification may stay 0 (RFC 6864).
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = TCP;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&target.octets());
    let checksum = !fold(words(&ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    ip
}

fn ipv6(source: Ipv6Addr, target: Ipv6Addr, length: usize) -> Vec<u8> {
    let mut ip = vec![0u8; 40];
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    ip[6] = TCP;
    ip[7] = 64;
    ip[8..24].copy_from_slice(&source.octets());
    ip[24..40].copy_from_slice(&target.octets());
    ip
}

fn words(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// What a packet says to this scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A TCP segment.
    Tcp {
        /// Sender.
        from: IpAddr,
        /// Its port.
        sport: u16,
        /// Our port.
        dport: u16,
        /// Flags.
        flags: u8,
        /// Acknowledgement number.
        ack: u32,
    },
    /// An ICMP error that quotes a segment of ours.
    Icmp {
        /// What it says.
        reason: Unreachable,
        /// Destination of the quoted segment.
        target: IpAddr,
        /// Its source port.
        sport: u16,
        /// Its destination port.
        dport: u16,
        /// Its sequence number.
        seq: u32,
    },
}

/// ICMP destination unreachable, as far as a verdict needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Unreachable {
    /// Type 3 code 3, ICMPv6 type 1 code 4.
    Port = 3,
    /// Codes 9, 10, 13; ICMPv6 codes 1, 5, 6.
    Prohibited = 4,
    /// Codes 1 and others; ICMPv6 code 3.
    Host = 5,
    /// Code 0; ICMPv6 code 0.
    Net = 6,
    /// Code 2.
    Protocol = 7,
}

impl Unreachable {
    /// As a scan report words it.
    pub fn text(self) -> &'static str {
        match self {
            Unreachable::Port => "icmp-port-unreachable",
            Unreachable::Prohibited => "icmp-admin-prohibited",
            Unreachable::Host => "icmp-host-unreachable",
            Unreachable::Net => "icmp-net-unreachable",
            Unreachable::Protocol => "icmp-protocol-unreachable",
        }
    }
}

/// Reads a packet from its IP header on; `None` when it is nothing for us.
pub fn parse(packet: &[u8]) -> Option<Reply> {
    let ip = header(packet)?;
    let body = packet.get(ip.length..)?;
    match ip.protocol {
        TCP => Some(Reply::Tcp {
            from: ip.source,
            sport: be16(body, 0)?,
            dport: be16(body, 2)?,
            ack: be32(body, 8)?,
            flags: *body.get(13)?,
        }),
        ICMP | ICMPV6 => {
            let reason = unreachable(ip.protocol, *body.first()?, *body.get(1)?)?;
            let quoted = body.get(8..)?;
            let inner = header(quoted)?;
            if inner.protocol != TCP {
                return None;
            }
            let segment = quoted.get(inner.length..)?;
            Some(Reply::Icmp {
                reason,
                target: inner.target,
                sport: be16(segment, 0)?,
                dport: be16(segment, 2)?,
                seq: be32(segment, 4)?,
            })
        }
        _ => None,
    }
}

struct Header {
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    length: usize,
}

fn header(packet: &[u8]) -> Option<Header> {
    match packet.first()? >> 4 {
        4 => {
            let address = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(octets).into())
            };
            // A later fragment has no transport header.
            if be16(packet, 6)? & 0x1fff != 0 {
                return None;
            }
            Some(Header {
                source: address(12)?,
                target: address(16)?,
                protocol: *packet.get(9)?,
                length: usize::from(packet.first()? & 0x0f) * 4,
            })
        }
        6 => {
            let address = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(octets).into())
            };
            Some(Header {
                source: address(8)?,
                target: address(24)?,
                protocol: *packet.get(6)?,
                length: 40,
            })
        }
        _ => None,
    }
}

fn unreachable(protocol: u8, kind: u8, code: u8) -> Option<Unreachable> {
    match (protocol, kind, code) {
        (ICMP, 3, 0) => Some(Unreachable::Net),
        (ICMP, 3, 2) => Some(Unreachable::Protocol),
        (ICMP, 3, 3) => Some(Unreachable::Port),
        (ICMP, 3, 9 | 10 | 13) => Some(Unreachable::Prohibited),
        (ICMP, 3, _) => Some(Unreachable::Host),
        (ICMPV6, 1, 0) => Some(Unreachable::Net),
        (ICMPV6, 1, 1 | 5 | 6) => Some(Unreachable::Prohibited),
        (ICMPV6, 1, 4) => Some(Unreachable::Port),
        (ICMPV6, 1, _) => Some(Unreachable::Host),
        _ => None,
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet is right when the sum over pseudo header and segment, checksum included, is all
    /// ones (RFC 9293, 3.1).
    fn check(source: &str, target: &str, sport: u16, dport: u16, seq: u32) {
        let (source, target) = (source.parse().unwrap(), target.parse().unwrap());
        for template in [
            Template::syn(source, target).unwrap(),
            Template::rst(source, target).unwrap(),
        ] {
            let mut out = [0u8; MAX_PACKET];
            let length = template.write(&mut out, sport, dport, seq);
            let header_length = if target.is_ipv6() { 40 } else { 20 };
            let segment = &out[header_length..length];
            let addresses = match (source, target) {
                (IpAddr::V4(s), IpAddr::V4(t)) => words(&s.octets()) + words(&t.octets()),
                (IpAddr::V6(s), IpAddr::V6(t)) => words(&s.octets()) + words(&t.octets()),
                _ => unreachable!(),
            };
            let sum = addresses + 6 + segment.len() as u32 + words(segment);
            assert_eq!(fold(sum), 0xffff);
            if !target.is_ipv6() {
                assert_eq!(fold(words(&out[..20])), 0xffff);
            }
            let Some(Reply::Tcp {
                from,
                sport: s,
                dport: d,
                ..
            }) = parse(&out[..length])
            else {
                panic!("not read back");
            };
            assert_eq!((from, s, d), (source, sport, dport));
        }
    }

    #[test]
    fn checksums_hold_for_any_port_and_sequence() {
        check("192.0.2.1", "198.51.100.9", 61000, 22, 0);
        check("192.0.2.1", "198.51.100.9", 65535, 65535, u32::MAX);
        check("2001:db8::1", "2001:db8:ffff::2", 61000, 11434, 0xdead_beef);
        assert!(Template::syn("192.0.2.1".parse().unwrap(), "::1".parse().unwrap()).is_none());
    }

    #[test]
    fn an_icmp_error_is_traced_to_its_knock() {
        let (source, target) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut knock = [0u8; MAX_PACKET];
        let length = Template::syn(source, target)
            .unwrap()
            .write(&mut knock, 61000, 8080, 77);
        let mut error = ipv4(
            "192.0.2.2".parse().unwrap(),
            "192.0.2.1".parse().unwrap(),
            8 + 28,
        );
        error[9] = 1;
        error.extend([3, 13, 0, 0, 0, 0, 0, 0]);
        error.extend(&knock[..length.min(28)]);
        assert_eq!(
            parse(&error),
            Some(Reply::Icmp {
                reason: Unreachable::Prohibited,
                target,
                sport: 61000,
                dport: 8080,
                seq: 77
            })
        );
        // Cut anywhere, it is nothing rather than a panic or a guess.
        for cut in 0..error.len() - 1 {
            assert_eq!(
                parse(&error[..cut]).is_some(),
                cut >= 20 + 8 + 20 + 8,
                "{cut}"
            );
        }
    }
}
