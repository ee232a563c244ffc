//! How values are written.
use super::keys::Ty;
use super::tree::J;
use crate::ir::{Field, Ipv, Key, Match, NamePattern, Values, ct_status};
use crate::parse::value;
use std::net::IpAddr;

/// One value, range or prefix.
pub(super) fn field(value: &J<'_>, ty: Ty) -> Option<Field> {
    match value {
        J::Num(_) | J::Bool(_) => {
            let n = value.number()?;
            Some(Field::Int(n, n))
        }
        J::Str(text) => scalar(text, ty),
        J::Arr(flags) => {
            let bits = flags
                .iter()
                .try_fold(0, |bits, flag| match field(flag, ty)? {
                    Field::Int(a, b) if a == b => Some(bits | a),
                    _ => None,
                })?;
            Some(Field::Int(bits, bits))
        }
        J::Obj(_) => match value.only()? {
            ("range", range) => match range.list()? {
                [first, last] => span(field(first, ty)?, field(last, ty)?),
                _ => None,
            },
            ("prefix", prefix) => {
                let (addr, len) = (prefix.get_text("addr")?, prefix.get("len")?.number()?);
                let ipv6 = addr.contains(':');
                match value::network(&format!("{addr}/{len}"), ipv6)? {
                    value::Net::Range(first, last) => Some(Field::Addr(first, last)),
                    value::Net::Masked(..) => None,
                }
            }
            ("|", flags) => field(&J::Arr(flags.list()?.to_vec()), ty),
            ("elem", elem) => field(elem.get("val")?, ty),
            _ => None,
        },
        J::Null => None,
    }
}

/// Whether a value is written as a range, `80-90`: not a prefix, not a name with a hyphen in it.
pub(super) fn is_span(value: &J<'_>, ty: Ty) -> bool {
    let Some(text) = value.text() else {
        return value.get("range").is_some();
    };
    let halves = text.split_once('-');
    halves.is_some_and(|(a, b)| scalar(a, ty).is_some() && scalar(b, ty).is_some())
        && !matches!(scalar(text, ty), None | Some(Field::Name(_)))
}

fn span(first: Field, last: Field) -> Option<Field> {
    Some(match (first, last) {
        (Field::Addr(a, _), Field::Addr(_, b)) if a.is_ipv4() == b.is_ipv4() && a <= b => {
            Field::Addr(a, b)
        }
        (Field::Int(a, _), Field::Int(_, b)) if a <= b => Field::Int(a, b),
        (Field::Bytes(a, _), Field::Bytes(_, b)) if a.len() == b.len() && a <= b => {
            Field::Bytes(a, b)
        }
        _ => return None,
    })
}

/// A value as text: `22`, `80-90`, `10.0.0.0/8`, `established`, `eth*`.
fn scalar(text: &str, ty: Ty) -> Option<Field> {
    let one = |n: u64| Some(Field::Int(n, n));
    if text == "*" {
        return Some(Field::Any);
    }
    match ty {
        Ty::Name => return Some(Field::Name(NamePattern::nft(text))),
        Ty::Index => {
            return match value::number(text) {
                Some(index) => one(index),
                None => Some(Field::Name(NamePattern::exact(text))),
            };
        }
        Ty::Guess => return guess(text),
        Ty::Addr(ip) => {
            let ipv6 = ip == Ipv::V6;
            if let Some((first, last)) = value::address_range(text, ipv6) {
                return Some(Field::Addr(first, last));
            }
            return match value::network(text, ipv6)? {
                value::Net::Range(first, last) => Some(Field::Addr(first, last)),
                value::Net::Masked(..) => None,
            };
        }
        Ty::Mac => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            return Some(Field::Bytes(value::mac(first)?, value::mac(last)?));
        }
        _ => {}
    }
    if let Some(n) = symbol(text, ty) {
        return one(n);
    }
    let (first, last) = text.split_once('-')?;
    let (first, last) = (symbol(first, ty)?, symbol(last, ty)?);
    (first <= last).then_some(Field::Int(first, last))
}

fn symbol(text: &str, ty: Ty) -> Option<u64> {
    if let Some(n) = value::number(text) {
        return Some(n);
    }
    match ty {
        Ty::Port => value::port(text).map(u64::from),
        Ty::L4 => value::protocol(text).map(u64::from),
        Ty::NfProto => match text {
            "ipv4" => Some(2),
            "ipv6" => Some(10),
            "bridge" => Some(7),
            "arp" => Some(3),
            "netdev" => Some(5),
            _ => None,
        },
        Ty::EtherType => value::ether_type(text),
        Ty::CtState => value::ct_state_bit(text).filter(|&b| b < 1 << 16),
        Ty::CtStatus => Some(match text {
            "expected" => ct_status::EXPECTED,
            "seen-reply" => ct_status::SEEN_REPLY,
            "assured" => ct_status::ASSURED,
            "confirmed" => ct_status::CONFIRMED,
            "snat" => ct_status::SNAT,
            "dnat" => ct_status::DNAT,
            "dying" => 512,
            _ => return None,
        }),
        Ty::CtDir => match text {
            "original" => Some(0),
            "reply" => Some(1),
            _ => None,
        },
        Ty::TcpFlags => value::tcp_flag(text),
        Ty::Icmp => value::icmp(text)
            .filter(|i| i.1.is_none())
            .map(|i| i.0.into()),
        Ty::Icmp6 => value::icmp6(text)
            .filter(|i| i.1.is_none())
            .map(|i| i.0.into()),
        Ty::IcmpCode => match text {
            "net-unreachable" => Some(0),
            "host-unreachable" => Some(1),
            "prot-unreachable" => Some(2),
            "port-unreachable" => Some(3),
            "frag-needed" => Some(4),
            "net-prohibited" => Some(9),
            "host-prohibited" => Some(10),
            "admin-prohibited" => Some(13),
            _ => None,
        },
        Ty::Icmp6Code => match text {
            "no-route" => Some(0),
            "admin-prohibited" => Some(1),
            "addr-unreachable" => Some(3),
            "port-unreachable" => Some(4),
            "policy-fail" => Some(5),
            "reject-route" => Some(6),
            _ => None,
        },
        Ty::AddrType => value::address_type(text),
        Ty::PktType => value::packet_type(text),
        Ty::Dscp => value::dscp(text),
        Ty::Hardware => match text {
            "ether" => Some(1),
            "ppp" => Some(512),
            "ipip" => Some(768),
            "ipip6" => Some(769),
            "loopback" => Some(772),
            "sit" => Some(776),
            "ipgre" => Some(778),
            "none" => Some(0xfffe),
            _ => None,
        },
        _ => match text {
            "true" | "exists" => Some(1),
            "false" | "missing" => Some(0),
            _ => None,
        },
    }
}

/// A value whose type is not known: address, number, or name.
fn guess(text: &str) -> Option<Field> {
    for ipv6 in [false, true] {
        if let Some((first, last)) = value::address_range(text, ipv6) {
            return Some(Field::Addr(first, last));
        }
        if text.contains('/')
            && let Some(value::Net::Range(first, last)) = value::network(text, ipv6)
        {
            return Some(Field::Addr(first, last));
        }
    }
    if let Some(bytes) = value::mac(text) {
        return Some(Field::Bytes(bytes.clone(), bytes));
    }
    if let Some(n) = value::number(text) {
        return Some(Field::Int(n, n));
    }
    if let Some((first, last)) = text.split_once('-')
        && let (Some(first), Some(last)) = (value::number(first), value::number(last))
        && first <= last
    {
        return Some(Field::Int(first, last));
    }
    Some(Field::Name(NamePattern::exact(text)))
}

/// Values of one type from the fields of an anonymous set, or one field.
pub(super) fn values(fields: Vec<Field>) -> Option<Values> {
    match fields.first()? {
        Field::Addr(..) => {
            let ranges: Option<Vec<(IpAddr, IpAddr)>> = fields
                .iter()
                .map(|f| match f {
                    Field::Addr(first, last) => Some((*first, *last)),
                    _ => None,
                })
                .collect();
            Some(Values::Addr(crate::AddrSet::from_ranges(ranges?)))
        }
        Field::Int(..) => {
            let ranges: Option<Vec<(u64, u64)>> = fields
                .iter()
                .map(|f| match f {
                    Field::Int(first, last) => Some((*first, *last)),
                    _ => None,
                })
                .collect();
            Some(Values::Int(ranges?.into()))
        }
        Field::Name(_) => {
            let names: Option<Vec<NamePattern>> = fields
                .into_iter()
                .map(|f| match f {
                    Field::Name(name) => Some(name),
                    _ => None,
                })
                .collect();
            Some(Values::names(names?))
        }
        Field::Bytes(..) => {
            let ranges: Option<Vec<(Vec<u8>, Vec<u8>)>> = fields
                .into_iter()
                .map(|f| match f {
                    Field::Bytes(first, last) => Some((first, last)),
                    _ => None,
                })
                .collect();
            let mut ranges = ranges?;
            ranges.sort();
            ranges.dedup();
            Some(Values::Bytes(ranges))
        }
        _ => None,
    }
}

/// A plain comparison.
pub(super) fn equals(key: Key, value: u64) -> Match {
    Match::Cmp {
        of: key.into(),
        negate: false,
        values: Values::int(value),
    }
}
