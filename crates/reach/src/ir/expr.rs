//! What rules look at, and what they compare it with.
use crate::AddrSet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

use super::SetRef;

/// IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Ipv {
    /// IPv4.
    #[serde(rename = "4")]
    V4,
    /// IPv6.
    #[serde(rename = "6")]
    V6,
}

impl Ipv {
    /// The version of an address.
    pub fn of(address: IpAddr) -> Ipv {
        if address.is_ipv4() { Ipv::V4 } else { Ipv::V6 }
    }
}

/// Source or destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Source.
    Src,
    /// Destination.
    Dst,
}

/// Direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CtDir {
    /// As the client opened it; 0 as a number.
    Original,
    /// The answers; 1 as a number.
    Reply,
}

/// Something a rule can look at. The kind of [`Values`] that it has is in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// Source address \[addr\]; no match for packets of the other version, negated or not.
    Saddr(Ipv),
    /// Destination address \[addr\]; no match for packets of the other version, negated or not.
    Daddr(Ipv),
    /// Transport protocol behind any extension headers: `meta l4proto`, `-p`, and `ip protocol` \[int\].
    L4Proto,
    /// `ip6 nexthdr`: the first header, which may be an extension's \[int\].
    NextHeader,
    /// Layer 3 protocol as NFPROTO_*: 2 IPv4, 10 IPv6, 7 bridge (`meta nfproto`) \[int\].
    NfProto,
    /// EtherType (`meta protocol`, `ether type`) \[int\].
    EtherType,
    /// Source port of TCP, UDP, SCTP, DCCP, UDP-Lite \[int\].
    Sport,
    /// Destination port \[int\].
    Dport,
    /// TCP flags byte: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128 \[int\].
    TcpFlags,
    /// ICMP type \[int\].
    IcmpType,
    /// ICMP code \[int\].
    IcmpCode,
    /// ICMPv6 type \[int\].
    Icmp6Type,
    /// ICMPv6 code \[int\].
    Icmp6Code,
    /// Packet length in bytes (`meta length`, `-m length`) \[int\].
    Length,
    /// TTL or hop limit \[int\].
    Ttl,
    /// DSCP, 0-63 \[int\].
    Dscp,
    /// Fragment offset in 8-byte units, 0 for whole packets and first fragments (`-f`, `ip frag-off & 0x1fff`) \[int\].
    FragmentOffset,
    /// Source MAC address \[bytes, 6\].
    EtherSaddr,
    /// Destination MAC address \[bytes, 6\].
    EtherDaddr,

    /// Incoming interface by name (`meta iifname`, `-i`) \[name\].
    IifName,
    /// Outgoing interface by name (`meta oifname`, `-o`) \[name\].
    OifName,
    /// Incoming interface by index (`meta iif`): the name that the reader found for it \[name\], or the
    /// bare index when there is no such link any more \[int\].
    Iif,
    /// Outgoing interface by index, as [`Key::Iif`].
    Oif,
    /// Group of the incoming interface \[int\].
    IifGroup,
    /// Group of the outgoing interface \[int\].
    OifGroup,
    /// ARPHRD_* type of the incoming interface \[int\].
    IifType,
    /// ARPHRD_* type of the outgoing interface \[int\].
    OifType,
    /// Kind of the incoming interface (`bridge`, `wireguard`…) \[name\].
    IifKind,
    /// Kind of the outgoing interface \[name\].
    OifKind,
    /// Bridge that owns the incoming port (bridge family) \[name\].
    IbrName,
    /// Bridge that owns the outgoing port (bridge family) \[name\].
    ObrName,
    /// `--physdev-in`: bridge port it came in by, when bridge-netfilter shows bridged frames \[name\].
    PhysIn,
    /// `--physdev-out` \[name\].
    PhysOut,
    /// `--physdev-is-in` \[int 0/1\].
    PhysIsIn,
    /// `--physdev-is-out` \[int 0/1\].
    PhysIsOut,
    /// `--physdev-is-bridged` \[int 0/1\].
    PhysIsBridged,
    /// Packet mark \[int\].
    Mark,
    /// Packet type: 0 to us, 1 broadcast, 2 multicast, 3 other host \[int\].
    PktType,
    /// User id of the local socket's owner \[int\].
    SkUid,
    /// Group id of the local socket's owner \[int\].
    SkGid,
    /// cgroup of the local socket \[int\].
    Cgroup,
    /// Any other `meta` key, as nft spells it (`cpu`, `hour`, `day`, `time`, `priority`, `random`…).
    Meta(String),

    /// Conntrack state as [`ct_state`] bits, one of which is set \[int\].
    CtState,
    /// Conntrack status as [`ct_status`] bits \[int\].
    CtStatus,
    /// Direction of this packet: 0 original, 1 reply \[int\].
    CtDirection,
    /// Connection mark \[int\].
    CtMark,
    /// Conntrack zone \[int\].
    CtZone,
    /// Source or destination address of one of the connection's two tuples \[addr\].
    CtAddr(CtDir, Direction, Ipv),
    /// Source or destination port of one of the connection's two tuples \[int\].
    CtPort(CtDir, Direction),
    /// Transport protocol of the connection (`--ctproto`, `ct protocol`) \[int\].
    CtProto,
    /// Any other `ct` key, as nft spells it (`helper`, `expiration`, `label`, `bytes`…).
    Ct(String),

    /// `fib SELECTORS RESULT`, and `-m addrtype`: a routing lookup \[int for type and for oif (0: none),
    /// name for oifname\].
    Fib(Fib),
    /// `socket transparent|mark|wildcard…`, `-m socket`: the text says which.
    Socket(String),
    /// `rt nexthop|classid|mtu|ipsec`: the text says which.
    Rt(String),
    /// `numgen random|inc mod N offset M`: any value of `offset..offset+modulus` \[int\].
    NumGen {
        /// Number of values.
        modulus: u32,
        /// Smallest value.
        offset: u32,
    },
    /// `jhash`, `symhash`: any value of `offset..offset+modulus` \[int\]. Depends on fields of the packet.
    Hash {
        /// Number of values; 0: all 2^32.
        modulus: u32,
        /// Smallest value.
        offset: u32,
    },
    /// Raw bytes of the packet that no other key names.
    Payload {
        /// `link`, `network`, `transport` or `inner`.
        base: String,
        /// Offset in bits.
        offset: u32,
        /// Length in bits.
        len: u32,
    },
    /// Something else, as printed. Never decided.
    Other(String),
}

/// `fib` expression: which fields the lookup uses, and what it asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Fib {
    /// Looks the source address up.
    pub saddr: bool,
    /// Looks the destination address up.
    pub daddr: bool,
    /// Limited to the incoming interface (`--limit-iface-in`).
    pub iif: bool,
    /// Limited to the outgoing interface (`--limit-iface-out`).
    pub oif: bool,
    /// Uses the packet's mark.
    pub mark: bool,
    /// What is compared.
    pub result: FibResult,
}

/// What a `fib` expression gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FibResult {
    /// RTN_* number of the address: 1 unicast, 2 local, 3 broadcast, 4 anycast, 5 multicast, 6 blackhole,
    /// 7 unreachable, 8 prohibit. This is `-m addrtype`.
    #[default]
    Type,
    /// Index of the interface that the lookup gives, 0 when there is none.
    Oif,
    /// Its name; empty when there is none.
    OifName,
    /// 1 when the lookup gives an interface, 0 when not (`exists`, `missing`; also `oif missing`).
    Present,
}

/// Bits of [`Key::CtState`]: nft's NF_CT_STATE_BIT values.
pub mod ct_state {
    /// Not a packet conntrack could place.
    pub const INVALID: u64 = 1;
    /// Belongs to a connection seen in both directions.
    pub const ESTABLISHED: u64 = 2;
    /// Expected by a helper, or an ICMP error about a known connection.
    pub const RELATED: u64 = 4;
    /// Opens a connection.
    pub const NEW: u64 = 8;
    /// `notrack`.
    pub const UNTRACKED: u64 = 64;
    /// Not a state of the kernel: iptables' `--ctstate SNAT` in the same list.
    pub const SNAT: u64 = 1 << 16;
    /// Not a state of the kernel: iptables' `--ctstate DNAT` in the same list.
    pub const DNAT: u64 = 1 << 17;
}

/// Bits of [`Key::CtStatus`] (IPS_* of nf_conntrack_common.h).
pub mod ct_status {
    /// Expected by a helper.
    pub const EXPECTED: u64 = 1;
    /// Seen in both directions.
    pub const SEEN_REPLY: u64 = 2;
    /// Not dropped early under pressure.
    pub const ASSURED: u64 = 4;
    /// The first packet has left the host.
    pub const CONFIRMED: u64 = 8;
    /// Source translated.
    pub const SNAT: u64 = 16;
    /// Destination translated.
    pub const DNAT: u64 = 32;
}

/// A key, or some of its bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operand {
    /// What is looked at.
    pub key: Key,
    /// Bits that count; `None`: all. For addresses the address's own bits, IPv4 in the low 32.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex")]
    pub mask: Option<u128>,
}

/// Masks as hexadecimal text: not every format and buffer of serde carries 128-bit numbers.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(mask: &Option<u128>, s: S) -> Result<S::Ok, S::Error> {
        match mask {
            Some(mask) => s.collect_str(&format_args!("{mask:#x}")),
            None => s.serialize_none(),
        }
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u128>, D::Error> {
        Option::<String>::deserialize(d)?
            .map(|text| {
                u128::from_str_radix(text.trim_start_matches("0x"), 16).map_err(D::Error::custom)
            })
            .transpose()
    }
}

impl From<Key> for Operand {
    fn from(key: Key) -> Self {
        Operand { key, mask: None }
    }
}

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Match {
    /// The operand is one of the values (or, negated, is none of them).
    Cmp {
        /// What is looked at.
        of: Operand,
        /// `!`, `!=`.
        #[serde(default)]
        negate: bool,
        /// The values.
        values: Values,
    },
    /// At least one of these bits is set (or, negated, none is).
    Bits {
        /// What is looked at.
        key: Key,
        /// `!`, `== 0`.
        #[serde(default)]
        negate: bool,
        /// The bits.
        bits: u64,
    },
    /// The concatenated key is in a set of the table (a map's keys count too).
    Lookup {
        /// The parts of the key.
        keys: Vec<Operand>,
        /// `!= @set`.
        #[serde(default)]
        negate: bool,
        /// The set.
        set: SetRef,
    },
    /// `-m set --match-set NAME src,dst`.
    IpSet {
        /// Name of the ipset.
        set: String,
        /// One direction for each dimension of the set.
        directions: Vec<Direction>,
        /// `!`.
        #[serde(default)]
        negate: bool,
        /// `--return-nomatch`: an entry flagged nomatch counts as a match.
        #[serde(default)]
        return_nomatch: bool,
        /// Tests of the entry's counters (`--packets-gt 5`), as printed: makes the match undecidable.
        #[serde(default)]
        counters: Option<String>,
    },
    /// `-m rpfilter`: the reverse path check passes (or, negated, fails).
    RpFilter {
        /// `--loose`: any interface will do.
        #[serde(default)]
        loose: bool,
        /// `--validmark`.
        #[serde(default)]
        validmark: bool,
        /// `--accept-local`.
        #[serde(default)]
        accept_local: bool,
        /// `--invert`.
        #[serde(default)]
        negate: bool,
    },
    /// Not decided by the packet alone.
    Conditional(Condition),
    /// Not known: may match or not.
    Unknown {
        /// As printed.
        text: String,
    },
}

/// A match that depends on what happened before, on chance or on time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Which.
    pub kind: ConditionKind,
    /// As printed.
    pub text: String,
}

/// Kinds of [`Condition`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionKind {
    /// `limit rate R/UNIT burst B`, `-m limit`.
    Limit {
        /// Packets (or bytes) in one `per`.
        rate: u64,
        /// Seconds.
        per: u64,
        /// Burst; 5 when not printed.
        burst: u64,
        /// Bytes, not packets.
        bytes: bool,
        /// Matches above the rate (`over`), not below.
        over: bool,
    },
    /// `-m hashlimit`: a limit for each source, destination or pair.
    HashLimit {
        /// Name of the table.
        name: String,
        /// `srcip`, `srcip,dstport`…
        mode: String,
        /// Matches above the rate (`--hashlimit-above`), not up to it.
        above: bool,
    },
    /// `-m recent`. `--set` without `!` always matches.
    Recent {
        /// Name of the list.
        name: String,
        /// What is asked.
        op: RecentOp,
        /// `!`.
        negate: bool,
        /// `--seconds`.
        seconds: Option<u32>,
        /// `--hitcount`.
        hitcount: Option<u32>,
    },
    /// `-m connlimit`, `ct count`.
    ConnLimit {
        /// Number of connections.
        count: u32,
        /// Matches above it, not up to it.
        above: bool,
    },
    /// `quota`, `-m quota`.
    Quota {
        /// Bytes.
        bytes: u64,
        /// Matches once it is used up.
        over: bool,
    },
    /// `-m statistic`, `numgen random mod … <`.
    Statistic,
    /// `-m time`, `meta hour`.
    Time,
    /// `-m string`, `-m bpf`, `-m u32`, `-m l7`: looks into the packet.
    Content,
    /// A named `limit` or `quota` object of the table.
    Named {
        /// `limit` or `quota`.
        kind: String,
        /// Name of the object.
        name: String,
    },
    /// Something else that the reader knows to be a match without lasting effect.
    Other,
}

/// What `-m recent` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecentOp {
    /// Adds the source; always matches.
    Set,
    /// Is it in the list?
    Rcheck,
    /// Is it in the list? Then note this packet too.
    Update,
    /// Is it in the list? Then take it out.
    Remove,
}

/// A set of values of one type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Values {
    /// Addresses.
    Addr(AddrSet),
    /// Numbers.
    Int(IntSet),
    /// Names, sorted, without doubles.
    Name(Vec<NamePattern>),
    /// Byte strings of equal length as inclusive ranges, sorted.
    Bytes(Vec<(Vec<u8>, Vec<u8>)>),
}

impl Values {
    /// One number.
    pub fn int(value: u64) -> Values {
        Values::Int(IntSet::one(value))
    }
    /// Numbers `first..=last`.
    pub fn int_range(first: u64, last: u64) -> Values {
        Values::Int(IntSet::range(first, last))
    }
    /// One name, a trailing `*` (nft) being a wildcard.
    pub fn name(text: &str) -> Values {
        Values::Name(vec![NamePattern::nft(text)])
    }
    /// Names, put into canonical order.
    pub fn names(mut names: Vec<NamePattern>) -> Values {
        names.sort();
        names.dedup();
        Values::Name(names)
    }
}

/// A set of numbers: sorted, disjoint, not adjacent, inclusive intervals.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct IntSet(Vec<(u64, u64)>);

impl IntSet {
    /// One number.
    pub fn one(value: u64) -> Self {
        IntSet(vec![(value, value)])
    }
    /// `first..=last`; empty when `first > last`.
    pub fn range(first: u64, last: u64) -> Self {
        if first > last {
            return IntSet(vec![]);
        }
        IntSet(vec![(first, last)])
    }
    /// The intervals, sorted.
    pub fn intervals(&self) -> &[(u64, u64)] {
        &self.0
    }
    /// Membership.
    pub fn contains(&self, value: u64) -> bool {
        let at = self.0.partition_point(|&(_, last)| last < value);
        self.0.get(at).is_some_and(|&(first, _)| first <= value)
    }
    /// True when it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<(u64, u64)>> for IntSet {
    fn from(mut ranges: Vec<(u64, u64)>) -> Self {
        ranges.retain(|&(first, last)| first <= last);
        ranges.sort_unstable();
        let mut out: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match out.last_mut() {
                Some(end) if first <= end.1.saturating_add(1) => end.1 = end.1.max(last),
                _ => out.push((first, last)),
            }
        }
        IntSet(out)
    }
}
impl From<IntSet> for Vec<(u64, u64)> {
    fn from(set: IntSet) -> Self {
        set.0
    }
}
impl FromIterator<u64> for IntSet {
    fn from_iter<T: IntoIterator<Item = u64>>(values: T) -> Self {
        values
            .into_iter()
            .map(|v| (v, v))
            .collect::<Vec<_>>()
            .into()
    }
}

/// A name, or the beginning of names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamePattern {
    /// The name, or its beginning. Untrusted text.
    pub name: String,
    /// True: every name that begins so.
    #[serde(default)]
    pub wildcard: bool,
}

impl NamePattern {
    /// This name and no other.
    pub fn exact(name: impl Into<String>) -> Self {
        NamePattern {
            name: name.into(),
            wildcard: false,
        }
    }
    /// nft's spelling: `docker*` is a wildcard, `docker\*` is not.
    pub fn nft(text: &str) -> Self {
        if let Some(literal) = text.strip_suffix("\\*") {
            return Self::exact(format!("{literal}*"));
        }
        match text.strip_suffix('*') {
            Some(prefix) => NamePattern {
                name: prefix.into(),
                wildcard: true,
            },
            None => Self::exact(text),
        }
    }
    /// iptables' spelling: `docker+` is a wildcard.
    pub fn xtables(text: &str) -> Self {
        match text.strip_suffix('+') {
            Some(prefix) => NamePattern {
                name: prefix.into(),
                wildcard: true,
            },
            None => Self::exact(text),
        }
    }
    /// Whether `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        if self.wildcard {
            name.starts_with(&self.name)
        } else {
            name == self.name
        }
    }
}

/// A value that a statement computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expr {
    /// A number.
    Int(u64),
    /// A name (helper, object).
    Name(String),
    /// An address of `first..=last`, the kernel's choice.
    Addrs(IpAddr, IpAddr),
    /// A port of `first..=last`, the kernel's choice.
    Ports(u16, u16),
    /// The value of a key.
    Key(Key),
    /// `(x & and) ^ xor`, the one form that nf_tables knows. `mark | 4` is `and: !4, xor: 4`;
    /// `-j MARK --set-xmark V/M` is `and: !M, xor: V` over [`Key::Mark`].
    Bitwise {
        /// x.
        of: Box<Expr>,
        /// Mask, of 32 bits for marks.
        and: u64,
        /// Bits to flip.
        xor: u64,
    },
    /// `a ^ b`: CONNMARK save and restore with masks are
    /// `Xor(Bitwise{target, and: !ctmask}, Bitwise{source, and: nfmask})`.
    Xor(Box<Expr>, Box<Expr>),
    /// `x << bits`, or `x >> bits` when negative.
    Shift(Box<Expr>, i8),
    /// `KEYS map MAP`: ends the rule when no element matches.
    Map {
        /// The key.
        keys: Vec<Operand>,
        /// The map, with [`super::Data::Value`] elements.
        map: SetRef,
    },
    /// Something else, as printed.
    Unknown(String),
}
