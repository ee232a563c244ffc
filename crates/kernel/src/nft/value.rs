//! What nf_tables registers hold, and how their bytes read as values.

use crate::netlink::ip;
use reach::AddrSet;
use reach::ir::{Field, IntSet, Ipv, Key, NamePattern, Values};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Names of links by index.
pub(crate) type Links = HashMap<u32, String>;

/// How the bytes of a value are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    /// An address.
    Addr(Ipv),
    /// A number of up to 8 bytes: `big` in network byte order, else the host's.
    Int { len: usize, big: bool },
    /// `shift` low bits of a network-order number are another field's (DSCP).
    Shifted { len: usize, shift: u32 },
    /// An interface index, in host byte order.
    Index,
    /// NUL-padded text.
    Name,
    /// Anything else.
    Bytes(usize),
}

impl Type {
    /// Length in bytes.
    pub fn len(self) -> usize {
        match self {
            Type::Addr(Ipv::V4) | Type::Index => 4,
            Type::Addr(Ipv::V6) | Type::Name => 16,
            Type::Int { len, .. } | Type::Shifted { len, .. } | Type::Bytes(len) => len,
        }
    }

    /// The same type after a byte swap (nft sorts intervals in network byte order).
    pub fn swapped(self) -> Type {
        match self {
            Type::Int { len, big } => Type::Int { len, big: !big },
            Type::Index => Type::Int { len: 4, big: true },
            other => other,
        }
    }

    /// nft's number for a data type (include/datatype.h of nftables), for a field of `len` bytes.
    /// `None`: not a type that this reader knows.
    pub fn of_nft(number: u32, len: Option<usize>) -> Option<Type> {
        let host = |len| Type::Int { len, big: false };
        let net = |len| Type::Int { len, big: true };
        Some(match number {
            2 | 12 | 14..=17 | 27 | 29 | 31..=34 | 36 | 37 | 39 | 42 => net(1),
            4 => match len? {
                len @ 1..=8 => host(len),
                _ => return None,
            },
            7 => Type::Addr(Ipv::V4),
            8 => Type::Addr(Ipv::V6),
            9 => Type::Bytes(6),
            10 | 11 | 13 => net(2),
            18 => host(len.filter(|l| matches!(l, 4 | 8)).unwrap_or(8)),
            19 | 22..=26 | 28 | 35 | 38 | 40 => host(4),
            20 => Type::Index,
            21 => host(2),
            30 => Type::Bytes(16),
            41 => Type::Name,
            43 | 46 => host(8),
            44 => host(len.filter(|l| matches!(l, 4 | 8)).unwrap_or(4)),
            45 => net(1),
            _ => return None,
        })
    }

    /// The number in `bytes`; `None` when it is none.
    pub fn int(self, bytes: &[u8]) -> Option<u64> {
        let (big, shift) = match self {
            Type::Int { big, .. } => (big, 0),
            Type::Shifted { shift, .. } => (true, shift),
            Type::Index => (false, 0),
            _ => return None,
        };
        if bytes.is_empty() || bytes.len() > 8 {
            return None;
        }
        let fold = |v: u64, b: &u8| v << 8 | u64::from(*b);
        let value = match big || cfg!(target_endian = "big") {
            true => bytes.iter().fold(0, fold),
            false => bytes.iter().rev().fold(0, fold),
        };
        Some(value >> shift)
    }

    /// The interval from `first` to `last` as a field of a set element.
    pub fn field(self, first: &[u8], last: &[u8], links: &Links) -> Field {
        let unknown = || Field::Unknown(format!("0x{}-0x{}", hex(first), hex(last)));
        let len = self.len();
        let (Some(first), Some(last)) = (first.get(..len), last.get(..len)) else {
            return unknown();
        };
        match self {
            Type::Addr(_) => match (ip(first), ip(last)) {
                (Some(a), Some(b)) => Field::Addr(a, b),
                _ => unknown(),
            },
            Type::Index => match self.int(first) {
                Some(i) if first == last => match links.get(&(i as u32)) {
                    Some(name) => Field::Name(NamePattern::exact(name.clone())),
                    None => Field::Int(i, i),
                },
                _ => unknown(),
            },
            Type::Int { .. } | Type::Shifted { .. } => match (self.int(first), self.int(last)) {
                (Some(a), Some(b)) => Field::Int(a, b),
                _ => unknown(),
            },
            Type::Name => match name_range(first, last) {
                Some(name) => Field::Name(name),
                None => unknown(),
            },
            Type::Bytes(_) => Field::Bytes(first.to_vec(), last.to_vec()),
        }
    }
}

/// A name, or the names between `eth\0…` and `eth\xff…`.
fn name_range(first: &[u8], last: &[u8]) -> Option<NamePattern> {
    if first == last {
        return Some(NamePattern::exact(crate::netlink::text(first)));
    }
    let stem = first.iter().zip(last).take_while(|(a, b)| a == b).count();
    let open = first[stem..].iter().all(|b| *b == 0) && last[stem..].iter().all(|b| *b == 0xff);
    (open && stem > 0).then(|| NamePattern {
        name: String::from_utf8_lossy(&first[..stem]).into_owned(),
        wildcard: true,
    })
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut out, b| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// The fields of a single-key set as the values of a plain match; `None` when they are of mixed
/// kinds, or something in them is not known.
pub(crate) fn values_of(fields: &[Field], ty: Type) -> Option<Values> {
    match ty {
        Type::Addr(_) => {
            let ranges: Option<Vec<(IpAddr, IpAddr)>> = fields
                .iter()
                .map(|f| match f {
                    Field::Addr(a, b) => Some((*a, *b)),
                    _ => None,
                })
                .collect();
            Some(Values::Addr(AddrSet::from_ranges(ranges?)))
        }
        Type::Name => names_of(fields),
        // Links that are gone have no name, so the two kinds may meet; then there is no value.
        Type::Index => names_of(fields).or_else(|| ints_of(fields)),
        Type::Int { .. } | Type::Shifted { .. } => ints_of(fields),
        Type::Bytes(_) => {
            let ranges: Option<Vec<(Vec<u8>, Vec<u8>)>> = fields
                .iter()
                .map(|f| match f {
                    Field::Bytes(a, b) => Some((a.clone(), b.clone())),
                    _ => None,
                })
                .collect();
            let mut ranges = ranges?;
            ranges.sort();
            Some(Values::Bytes(ranges))
        }
    }
}

fn names_of(fields: &[Field]) -> Option<Values> {
    let names: Option<Vec<NamePattern>> = fields
        .iter()
        .map(|f| match f {
            Field::Name(n) => Some(n.clone()),
            _ => None,
        })
        .collect();
    Some(Values::names(names?))
}

fn ints_of(fields: &[Field]) -> Option<Values> {
    let ranges: Option<Vec<(u64, u64)>> = fields
        .iter()
        .map(|f| match f {
            Field::Int(a, b) => Some((*a, *b)),
            _ => None,
        })
        .collect();
    Some(Values::Int(IntSet::from(ranges?)))
}

/// All addresses that agree with `address` in the bits of `mask`, if `mask` is a prefix.
pub(crate) fn prefix_range(address: &[u8], mask: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let bits = |b: &[u8]| b.iter().fold(0u128, |v, b| v << 8 | u128::from(*b));
    let width = 8 * address.len() as u32;
    let (a, m) = (bits(address), bits(mask));
    let full = if width == 128 {
        u128::MAX
    } else {
        (1u128 << width) - 1
    };
    let host = !m & full;
    // A prefix: the host part is one less than a power of two.
    if host & host.wrapping_add(1) != 0 {
        return None;
    }
    let to_ip = |v: u128| match width {
        32 => Some(IpAddr::V4(Ipv4Addr::from_bits(v as u32))),
        128 => Some(IpAddr::V6(Ipv6Addr::from_bits(v))),
        _ => None,
    };
    Some((to_ip(a & m)?, to_ip((a & m) | host)?))
}

/// What a load expression reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    /// What is looked at.
    pub key: Key,
    /// How its bytes are read.
    pub ty: Type,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_common_beginning_are_a_wildcard() {
        let mut first = *b"eth\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let mut last = [0xff; 16];
        last[..3].copy_from_slice(b"eth");
        let pattern = name_range(&first, &last).unwrap();
        assert_eq!((pattern.name.as_str(), pattern.wildcard), ("eth", true));
        first[3] = b'0';
        assert!(name_range(&first, &last).is_none());
        let exact = name_range(&first, &first).unwrap();
        assert_eq!((exact.name.as_str(), exact.wildcard), ("eth0", false));
    }

    #[test]
    fn prefixes() {
        let range = |a: [u8; 4], m: [u8; 4]| {
            prefix_range(&a, &m).map(|(a, b)| (a.to_string(), b.to_string()))
        };
        let want = Some(("10.1.0.0".to_owned(), "10.1.255.255".to_owned()));
        assert_eq!(range([10, 1, 2, 3], [255, 255, 0, 0]), want);
        assert_eq!(range([10, 1, 2, 3], [255, 0, 255, 0]), None);
        let all = range([1, 1, 1, 1], [0, 0, 0, 0]).unwrap();
        assert_eq!(all.1, "255.255.255.255");
        let v6 = prefix_range(&[0xfe; 16], &[0xff; 16]).unwrap();
        assert_eq!(v6.0, v6.1);
    }

    #[test]
    fn numbers_by_byte_order() {
        let net = Type::Int { len: 2, big: true };
        assert_eq!(net.int(&[0x1f, 0x90]), Some(8080));
        assert_eq!(net.swapped().int(&8080u16.to_ne_bytes()), Some(8080));
        assert_eq!(Type::Shifted { len: 2, shift: 6 }.int(&[1, 0]), Some(4));
        assert_eq!(net.int(&[]), None);
        assert_eq!(net.int(&[0; 9]), None);
        assert_eq!(Type::Name.int(b"eth0"), None);
    }
}
