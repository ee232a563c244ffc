//! The packet under the engine's eye: all of it is concrete, apart from the client's address.
use std::net::IpAddr;
use std::rc::Rc;

use crate::Net;
use crate::ir::{CtDir, Direction, Ipv, Key, NfHook, ct_state, ct_status};

/// A device at a hook.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Dev {
    /// This hook has none (no outgoing device before routing).
    None,
    /// There is one; which is not known.
    Unknown,
    /// This one.
    Is(Rc<str>),
}

impl Dev {
    pub(super) fn is(name: &str) -> Dev {
        Dev::Is(name.into())
    }
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Dev::Is(name) => Some(name),
            _ => None,
        }
    }
}

/// How far conntrack is with the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Track {
    /// Before conntrack's hook.
    NotYet,
    /// `notrack` was said.
    Untracked,
    /// Tracked, in the state of [`Packet::state`].
    Tracked,
}

/// A packet of one connection attempt. "Near" is the end on (or behind) this host: the destination of the
/// client's packets and the source of the answers. "Far" is the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Packet {
    pub(super) ip: Ipv,
    pub(super) proto: u8,
    pub(super) dir: CtDir,
    /// The near address and port as they stand in the header now; `None`: not known.
    pub(super) near: Option<IpAddr>,
    pub(super) near_port: Option<u16>,
    /// As the client wrote them.
    pub(super) orig: (Option<IpAddr>, Option<u16>),
    /// As the connection ends up: source of the reply tuple.
    pub(super) target: (Option<IpAddr>, Option<u16>),
    /// False while the far address in the header is not the client's own (source NAT).
    pub(super) far_is_client: bool,
    /// The client's port; `None`: not known.
    pub(super) far_port: Option<u16>,
    pub(super) iif: Dev,
    pub(super) oif: Dev,
    pub(super) track: Track,
    /// One [`ct_state`] bit: the state once tracked.
    pub(super) state: u64,
    /// `None`: not known.
    pub(super) mark: Option<u32>,
    pub(super) ct_mark: Option<u32>,
    pub(super) ct_zone: Option<u32>,
    /// `None`: not known (a question about one hook alone).
    pub(super) dnat: Option<bool>,
    pub(super) snat: bool,
    /// A NAT mapping was set at this hook: later nat chains are not asked.
    pub(super) nat_done: bool,
    /// TPROXY named a local socket: its address and port where they were given.
    pub(super) tproxy: Option<(Option<IpAddr>, Option<u16>)>,
    /// The client puts an extension header before the transport header (IPv6).
    pub(super) extension: bool,
    /// A packet of the client's after the answer: no SYN any more.
    pub(super) later: bool,
    /// Conntrack missed a part of this connection: the state that it gives to later packets is not known.
    pub(super) half: bool,
}

/// What a key of the packet holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Got<'a> {
    Int(u64),
    /// Any number of the range, by chance or by hash.
    IntIn(u64, u64),
    /// The client's port, a number that the client chose.
    FarPort(u16),
    Addr(IpAddr),
    Name(&'a str),
    /// The client's address.
    Far,
    /// TCP flags: those fixed, and those that the client can set as it likes.
    Flags {
        fixed: u8,
        free: u8,
    },
    /// Status bits: those set, and those that may be.
    Status {
        set: u64,
        open: u64,
    },
    Unknown,
    /// The packet has no such thing: the rule does not match, negated or not.
    Absent,
}

impl Packet {
    /// True for the client's packets.
    pub(super) fn original(&self) -> bool {
        self.dir == CtDir::Original
    }
    /// The header's destination port when it is not the client's choice.
    pub(super) fn fixed_dport(&self) -> Option<u16> {
        if self.original() {
            self.near_port
        } else {
            None
        }
    }
    /// The `ct state` bit that a rule sees now.
    pub(super) fn seen_state(&self) -> u64 {
        match self.track {
            Track::NotYet => ct_state::INVALID,
            Track::Untracked => ct_state::UNTRACKED,
            Track::Tracked => self.state,
        }
    }
    /// All states that a rule may see now.
    pub(super) fn seen_states(&self) -> u64 {
        if self.half && self.track == Track::Tracked {
            ct_state::NEW | ct_state::ESTABLISHED | ct_state::RELATED | ct_state::INVALID
        } else {
            self.seen_state()
        }
    }
    fn tcp_flags(&self) -> Got<'static> {
        const FIXED_FREE: u8 = 8 | 32 | 64 | 128;
        if self.proto != 6 {
            return Got::Absent;
        }
        if !self.original() {
            return Got::Flags {
                fixed: 0x12,
                free: 64,
            };
        }
        let opening = self.state & (ct_state::NEW | ct_state::INVALID | ct_state::RELATED) != 0;
        Got::Flags {
            fixed: if opening && !self.later { 0x02 } else { 0x10 },
            free: FIXED_FREE,
        }
    }
    fn near_addr(&self, ip: Ipv) -> Got<'static> {
        if ip != self.ip {
            return Got::Absent;
        }
        self.near.map_or(Got::Unknown, Got::Addr)
    }
    fn far_addr(&self, ip: Ipv) -> Got<'static> {
        match (ip == self.ip, self.far_is_client) {
            (false, _) => Got::Absent,
            (true, true) => Got::Far,
            (true, false) => Got::Unknown,
        }
    }
    fn port(&self, far: bool) -> Got<'static> {
        if !matches!(self.proto, 6 | 17 | 33 | 132 | 136) {
            return Got::Absent;
        }
        if far {
            return self.far_port.map_or(Got::Unknown, Got::FarPort);
        }
        self.near_port.map_or(Got::Unknown, |p| Got::Int(p.into()))
    }
    fn ct(&self, value: Got<'static>) -> Got<'static> {
        // Without an entry neither nft_ct nor xt_conntrack matches, negated or not. (With --ctstate beside it
        // xt_conntrack does; the parser gives that as unknown.)
        if self.track == Track::Tracked && self.half {
            Got::Unknown
        } else if self.track == Track::Tracked && self.state != ct_state::INVALID {
            value
        } else {
            Got::Absent
        }
    }

    /// What `key` holds. Keys that need routes are answered by the caller.
    pub(super) fn get<'p>(&'p self, key: &Key, hook: NfHook, net: Option<&'p Net>) -> Got<'p> {
        let opt = |v: Option<u32>| v.map_or(Got::Unknown, |v| Got::Int(v.into()));
        match key {
            Key::Saddr(ip) if self.original() => self.far_addr(*ip),
            Key::Saddr(ip) => self.near_addr(*ip),
            Key::Daddr(ip) if self.original() => self.near_addr(*ip),
            Key::Daddr(ip) => self.far_addr(*ip),
            Key::L4Proto => Got::Int(self.proto.into()),
            Key::NextHeader if self.ip == Ipv::V4 => Got::Absent,
            // 60: destination options, the one that hosts and routers let through most readily.
            Key::NextHeader if self.extension && self.original() => Got::Int(60),
            Key::NextHeader => Got::Int(self.proto.into()),
            Key::NfProto => Got::Int(if self.ip == Ipv::V4 { 2 } else { 10 }),
            Key::EtherType => Got::Int(if self.ip == Ipv::V4 { 0x0800 } else { 0x86dd }),
            Key::Sport => self.port(self.original()),
            Key::Dport => self.port(!self.original()),
            Key::TcpFlags => self.tcp_flags(),
            Key::IcmpType | Key::IcmpCode | Key::Icmp6Type | Key::Icmp6Code => Got::Absent,
            Key::FragmentOffset => Got::Int(0),
            Key::IifName => dev_name(&self.iif),
            Key::OifName => dev_name(&self.oif),
            Key::Iif => dev_name(&self.iif),
            Key::Oif => dev_name(&self.oif),
            Key::IifKind => dev_kind(&self.iif, net),
            Key::OifKind => dev_kind(&self.oif, net),
            Key::PhysIn | Key::PhysOut if !self.may_be_bridged(net) => Got::Name(""),
            Key::PhysIsIn | Key::PhysIsOut | Key::PhysIsBridged if !self.may_be_bridged(net) => {
                Got::Int(0)
            }
            Key::Mark => opt(self.mark),
            Key::PktType => self.packet_type(),
            Key::SkUid | Key::SkGid | Key::Cgroup if hook == NfHook::Forward => Got::Absent,
            Key::CtState if self.half && self.track == Track::Tracked => Got::Unknown,
            Key::CtState => Got::Int(self.seen_state()),
            Key::CtStatus => self.ct(self.status()),
            Key::CtDirection => self.ct(Got::Int(if self.original() { 0 } else { 1 })),
            Key::CtMark => self.ct(opt(self.ct_mark)),
            Key::CtZone => self.ct(opt(self.ct_zone)),
            Key::CtProto => self.ct(Got::Int(self.proto.into())),
            Key::CtAddr(_, _, ip) if *ip != self.ip => Got::Absent,
            Key::CtAddr(dir, which, _) => self.ct(match (dir, which) {
                (CtDir::Original, Direction::Src) => Got::Far,
                (CtDir::Original, Direction::Dst) => self.orig.0.map_or(Got::Unknown, Got::Addr),
                (CtDir::Reply, Direction::Src) => self.target.0.map_or(Got::Unknown, Got::Addr),
                (CtDir::Reply, Direction::Dst) if self.snat => Got::Unknown,
                (CtDir::Reply, Direction::Dst) => Got::Far,
            }),
            Key::CtPort(dir, which) => self.ct(match (dir, which) {
                (CtDir::Original, Direction::Dst) => opt(self.orig.1.map(u32::from)),
                (CtDir::Reply, Direction::Src) => opt(self.target.1.map(u32::from)),
                (CtDir::Reply, Direction::Dst) if self.snat => Got::Unknown,
                (CtDir::Original, Direction::Src) | (CtDir::Reply, Direction::Dst) => {
                    self.port(true)
                }
            }),
            Key::NumGen { modulus, offset } | Key::Hash { modulus, offset } => {
                let (first, count) = (u64::from(*offset), u64::from(*modulus));
                Got::IntIn(
                    first,
                    first
                        + if count == 0 {
                            u32::MAX.into()
                        } else {
                            count - 1
                        },
                )
            }
            _ => Got::Unknown,
        }
    }

    fn packet_type(&self) -> Got<'static> {
        match (self.original(), self.near) {
            (_, None) => Got::Unknown,
            (true, Some(to)) if to.is_multicast() => Got::Int(2),
            (true, Some(IpAddr::V4(to))) if to.is_broadcast() => Got::Int(1),
            _ => Got::Int(0),
        }
    }
    /// NEW packets have no confirmed entry; later ones have. Assured comes at some time after.
    fn status(&self) -> Got<'static> {
        let mut set = if self.snat { ct_status::SNAT } else { 0 };
        let mut open = 0;
        match self.dnat {
            Some(true) => set |= ct_status::DNAT,
            Some(false) => {}
            None => open |= ct_status::DNAT,
        }
        if self.state != ct_state::NEW {
            set |= ct_status::CONFIRMED | ct_status::SEEN_REPLY;
            open |= ct_status::ASSURED;
        }
        Got::Status { set, open }
    }
    /// Bridged frames reach the IP hooks only with br_netfilter, and then look as if routed from the bridge.
    fn may_be_bridged(&self, net: Option<&Net>) -> bool {
        let Some(net) = net else { return true };
        let on = match self.ip {
            Ipv::V4 => net.sysctls.bridge_nf_call_iptables,
            Ipv::V6 => net.sysctls.bridge_nf_call_ip6tables,
        };
        let bridge = |dev: &Dev| match dev {
            Dev::Is(name) => net
                .interface(name)
                .is_none_or(|i| i.kind.as_deref() == Some("bridge")),
            Dev::Unknown => true,
            Dev::None => false,
        };
        on != Some(false) && (bridge(&self.iif) || bridge(&self.oif))
    }
}

/// A missing device has the empty name, as the kernel has it.
fn dev_name(dev: &Dev) -> Got<'_> {
    match dev {
        Dev::None => Got::Name(""),
        Dev::Unknown => Got::Unknown,
        Dev::Is(name) => Got::Name(name),
    }
}

fn dev_kind<'p>(dev: &Dev, net: Option<&'p Net>) -> Got<'p> {
    let interface = dev.name().and_then(|name| net?.interface(name));
    interface
        .and_then(|i| i.kind.as_deref())
        .map_or(Got::Unknown, Got::Name)
}
