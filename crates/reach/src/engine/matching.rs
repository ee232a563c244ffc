//! Does a match hold? For which clients?
use std::borrow::Cow;
use std::net::IpAddr;

use super::packet::{Dev, Got, Packet};
use super::walk::Walk;
use crate::intervals::{self, Ivs, Unit};
use crate::ir::{
    ConditionKind, Fib, FibResult, IntSet, Ipv, Key, Match, NamePattern, NfHook, Operand, RecentOp,
    Values, ct_state,
};

/// For whom a match holds.
pub(super) enum Holds<'a, T: Clone> {
    /// For every client.
    Yes,
    /// For none.
    No,
    /// Not decided by what is known, for every client.
    Maybe,
    /// For the clients in `sure` (out of it, when `negate`), apart from those in `maybe`, where it is open.
    For {
        sure: Cow<'a, [(T, T)]>,
        negate: bool,
        maybe: Ivs<T>,
    },
}

impl<'a, T: Unit> Holds<'a, T> {
    pub(super) fn of(test: bool) -> Self {
        if test { Holds::Yes } else { Holds::No }
    }
    pub(super) fn exactly(sure: Ivs<T>) -> Self {
        Holds::For {
            sure: sure.into(),
            negate: false,
            maybe: vec![],
        }
    }
    pub(super) fn negate_if(self, negated: bool) -> Self {
        match self {
            _ if !negated => self,
            Holds::Yes => Holds::No,
            Holds::No => Holds::Yes,
            Holds::Maybe => Holds::Maybe,
            Holds::For {
                sure,
                negate,
                maybe,
            } => Holds::For {
                sure,
                negate: !negate,
                maybe,
            },
        }
    }
}

/// Three-valued membership of a fixed value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum In {
    Yes,
    No,
    Maybe,
}

impl In {
    pub(super) fn of(test: bool) -> In {
        if test { In::Yes } else { In::No }
    }
    fn all_or_none(mut tests: impl Iterator<Item = bool>) -> In {
        let Some(first) = tests.next() else {
            return In::Maybe;
        };
        if tests.all(|t| t == first) {
            In::of(first)
        } else {
            In::Maybe
        }
    }
}

impl<'a, T: Unit> Walk<'a, T> {
    /// Evaluates one match of a rule in table `table`.
    pub(super) fn holds(&mut self, table: usize, m: &'a Match, packet: &Packet) -> Holds<'a, T> {
        match m {
            Match::Cmp { of, negate, values } => self.compare(of, values, packet, *negate),
            Match::Bits { key, negate, bits } => match self.bits(key, *bits, packet) {
                Some(In::Yes) => Holds::of(!negate),
                Some(In::No) => Holds::of(*negate),
                Some(In::Maybe) => Holds::Maybe,
                None => Holds::No,
            },
            Match::Lookup { keys, negate, set } => self.lookup(table, keys, set, packet, *negate),
            Match::IpSet {
                set,
                directions,
                negate,
                return_nomatch,
                counters,
            } => {
                if *return_nomatch || counters.is_some() {
                    return Holds::Maybe;
                }
                self.ipset(set, directions, packet, 0).negate_if(*negate)
            }
            Match::RpFilter {
                loose,
                accept_local,
                negate,
                validmark,
            } => self
                .rpfilter(*loose, *accept_local, *validmark, false, packet)
                .negate_if(*negate),
            Match::Conditional(c) => match c.kind {
                ConditionKind::Recent {
                    op: RecentOp::Set,
                    negate,
                    ..
                } => Holds::of(!negate),
                _ => Holds::Maybe,
            },
            Match::Unknown { .. } => Holds::Maybe,
        }
    }

    fn bits(&mut self, key: &Key, bits: u64, packet: &Packet) -> Option<In> {
        Some(match packet.get(key, self.hook, self.net()) {
            Got::Absent => return None,
            Got::Int(value) if *key == Key::CtState => {
                let nat = if packet.dnat == Some(true) {
                    ct_state::DNAT
                } else {
                    0
                } | if packet.snat { ct_state::SNAT } else { 0 };
                match (value | nat) & bits != 0 {
                    false if packet.dnat.is_none() && bits & ct_state::DNAT != 0 => In::Maybe,
                    found => In::of(found),
                }
            }
            Got::Int(value) => In::of(value & bits != 0),
            Got::Flags { fixed, free } => {
                match (u64::from(fixed) & bits != 0, u64::from(free) & bits != 0) {
                    (true, _) => In::Yes,
                    (false, true) => In::Maybe,
                    (false, false) => In::No,
                }
            }
            Got::Status { set, open } => match (set & bits != 0, open & bits != 0) {
                (true, _) => In::Yes,
                (false, true) => In::Maybe,
                (false, false) => In::No,
            },
            _ => In::Maybe,
        })
    }

    fn compare(
        &mut self,
        of: &'a Operand,
        values: &'a Values,
        packet: &Packet,
        negate: bool,
    ) -> Holds<'a, T> {
        if let Key::Fib(fib) = &of.key {
            return self.fib(fib, values, packet).negate_if(negate);
        }
        let got = packet.get(&of.key, self.hook, self.net());
        match (got, values) {
            (Got::Absent, _) => Holds::No,
            (Got::Far, Values::Addr(set)) => match of.mask {
                None => Holds::For {
                    sure: Cow::Borrowed(T::half(set)),
                    negate,
                    maybe: vec![],
                },
                Some(mask) => match masked(T::half(set), mask) {
                    Some(set) => Holds::exactly(set).negate_if(negate),
                    None => Holds::Maybe,
                },
            },
            (Got::Addr(address), Values::Addr(set)) => {
                let address = of.mask.map_or(address, |mask| mask_address(address, mask));
                Holds::of(set.contains(address) != negate)
            }
            (got, values) => match self.fixed_in(got, &of.key, of.mask, values) {
                In::Yes => Holds::of(!negate),
                In::No => Holds::of(negate),
                In::Maybe => Holds::Maybe,
            },
        }
    }

    /// Membership of anything but an address.
    fn fixed_in(&mut self, got: Got<'_>, key: &Key, mask: Option<u128>, values: &Values) -> In {
        match (got, values) {
            (Got::Name(name), Values::Name(patterns)) => name_in(name, patterns),
            // Compared by index: a number that the reader found no name for is another link.
            (Got::Name(name), Values::Int(ints)) if matches!(key, Key::Iif | Key::Oif) => {
                let index = match (name, self.net()) {
                    ("", _) => Some(0),
                    (name, Some(net)) => net.interface(name).map(|i| i.index),
                    _ => None,
                };
                index.map_or(In::Maybe, |i| In::of(ints.contains(i.into())))
            }
            (got, Values::Int(ints)) => self.int_in(got, mask, ints),
            _ => In::Maybe,
        }
    }

    pub(super) fn int_in(&mut self, got: Got<'_>, mask: Option<u128>, ints: &IntSet) -> In {
        let mask = mask.map_or(u64::MAX, |m| m as u64);
        match got {
            Got::Int(value) => In::of(ints.contains(value & mask)),
            Got::FarPort(port) => {
                if mask != u64::MAX {
                    return In::Maybe;
                }
                self.window.narrow(port, ints);
                In::of(ints.contains(port.into()))
            }
            Got::Flags { fixed, free } => In::all_or_none(subsets(free).map(|extra| {
                let flags = u64::from(fixed | extra) & mask;
                ints.contains(flags)
            })),
            Got::Status { set, open } if open & mask == 0 => In::of(ints.contains(set & mask)),
            Got::IntIn(first, last) if mask == u64::MAX => {
                let touching: Vec<_> = ints
                    .intervals()
                    .iter()
                    .filter(|iv| iv.0 <= last && iv.1 >= first)
                    .collect();
                match touching[..] {
                    [] => In::No,
                    [iv] if iv.0 <= first && iv.1 >= last => In::Yes,
                    _ => In::Maybe,
                }
            }
            _ => In::Maybe,
        }
    }

    /// `-m rpfilter` (xt_rpfilter.c, ip6t_rpfilter.c).
    fn rpfilter(
        &mut self,
        loose: bool,
        accept_local: bool,
        validmark: bool,
        fib: bool,
        packet: &Packet,
    ) -> Holds<'a, T> {
        let (Some(routing), Some(iif)) = (self.routing, packet.iif.name()) else {
            return Holds::Maybe;
        };
        if !packet.original() {
            return Holds::Maybe;
        }
        let loopback = self
            .net()
            .and_then(|n| n.interface(iif))
            .is_some_and(|i| i.loopback);
        if loopback {
            return Holds::Yes;
        }
        let mut marked = packet.clone();
        if !validmark {
            marked.mark = Some(0);
        }
        let (mut sure, mut maybe) = (vec![], vec![]);
        if !fib && packet.ip == Ipv::V6 {
            // ip6t_rpfilter lets the unspecified address pass.
            sure.push((T::MIN, T::MIN));
        }
        for r in routing.reverse(&marked, iif, vec![(T::MIN, T::MAX)], true) {
            let passes = match &r.way {
                // nft_fib counts such a route when it is of this link.
                super::route::Way::Broadcast(oif) if fib => {
                    let here = self.net().and_then(|n| n.interface(iif)).map(|i| i.index);
                    oif.is_some() && *oif == here
                }
                super::route::Way::Local => accept_local,
                super::route::Way::Out(_) => loose || routing.leaves_by(&r.way, iif),
                _ => false,
            };
            if r.maybe {
                maybe.extend(r.set);
            } else if passes {
                sure.extend(r.set);
            }
        }
        let maybe = intervals::normalise(maybe);
        let sure = intervals::subtract(&intervals::normalise(sure), &maybe);
        Holds::For {
            sure: sure.into(),
            negate: false,
            maybe,
        }
    }

    /// `fib` and `-m addrtype`.
    fn fib(&mut self, fib: &Fib, values: &Values, packet: &Packet) -> Holds<'a, T> {
        let far = if packet.original() {
            fib.saddr
        } else {
            fib.daddr
        };
        let near = if packet.original() {
            fib.daddr
        } else {
            fib.saddr
        };
        if far == near || (far && !packet.far_is_client) {
            return Holds::Maybe;
        }
        let dev = match (fib.iif, fib.oif) {
            (true, false) => Some(&packet.iif),
            (false, true) => Some(&packet.oif),
            _ => None,
        };
        if matches!(dev, Some(Dev::Unknown)) {
            return Holds::Maybe;
        }
        let dev = dev.and_then(Dev::name);
        match (fib.result, values) {
            (FibResult::Type, Values::Int(types)) if far => self.far_type(types, dev),
            (FibResult::Type, Values::Int(types)) => match self.near_type(packet, dev) {
                Some(kind) => Holds::of(types.contains(kind)),
                None => Holds::Maybe,
            },
            (FibResult::Present, Values::Int(wanted)) if far && fib.iif && packet.original() => {
                let present = wanted.contains(1);
                if wanted.contains(0) == present {
                    return Holds::Maybe;
                }
                self.rpfilter(false, false, fib.mark, true, packet)
                    .negate_if(!present)
            }
            // `fib saddr . iif oif 0`, the older spelling of `missing`.
            (FibResult::Oif, Values::Int(wanted))
                if far && fib.iif && packet.original() && *wanted == IntSet::one(0) =>
            {
                self.rpfilter(false, false, fib.mark, true, packet)
                    .negate_if(true)
            }
            _ => Holds::Maybe,
        }
    }

    fn far_type(&mut self, types: &IntSet, dev: Option<&str>) -> Holds<'a, T> {
        let Some(routing) = self.routing else {
            // Without routes only the fixed ranges are sure.
            let fixed = super::route::fixed_types::<T>();
            let multicast = if types.contains(5) {
                fixed.1.clone()
            } else {
                vec![]
            };
            let broadcast = if types.contains(3) {
                fixed.0.clone()
            } else {
                vec![]
            };
            return Holds::For {
                sure: intervals::union(&multicast, &broadcast).into(),
                negate: false,
                maybe: intervals::complement(&intervals::union(&fixed.0, &fixed.1)),
            };
        };
        let kinds = (1..=5).filter(|k| types.contains(*k));
        let sure = kinds.fold(vec![], |all, k| {
            intervals::union(&all, &routing.of_type(k, dev))
        });
        Holds::exactly(sure)
    }

    fn near_type(&mut self, packet: &Packet, dev: Option<&str>) -> Option<u64> {
        let special = |a: IpAddr| match a {
            a if a.is_multicast() => Some(5),
            IpAddr::V4(a) if a.is_broadcast() => Some(3),
            _ => None,
        };
        if let Some(kind) = packet.near.and_then(special) {
            return Some(kind);
        }
        match (self.routing, packet.near) {
            (Some(routing), Some(near)) => Some(routing.type_of(near, dev)),
            // The hook itself says where the packet goes.
            _ if self.hook == NfHook::Input && dev.is_none() => Some(2),
            _ if self.hook == NfHook::Forward && dev.is_none() => Some(1),
            _ => None,
        }
    }
}

pub(super) fn name_in(name: &str, patterns: &[NamePattern]) -> In {
    In::of(patterns.iter().any(|p| p.matches(name)))
}

/// All bytes whose bits are among those of `bits`.
fn subsets(bits: u8) -> impl Iterator<Item = u8> {
    (0..=255u8).filter(move |b| b & !bits == 0)
}

fn mask_address(address: IpAddr, mask: u128) -> IpAddr {
    match address {
        IpAddr::V4(a) => IpAddr::V4((u32::from(a) & mask as u32).into()),
        IpAddr::V6(a) => IpAddr::V6((u128::from(a) & mask).into()),
    }
}

/// The addresses that give one of `values` under a mask that is no prefix; `None` when they are too many intervals.
fn masked<T: Unit>(values: &[(T, T)], mask: u128) -> Option<Ivs<T>> {
    const LIMIT: u32 = 16;
    let mask = mask & T::MAX.bits();
    let free = !mask & T::MAX.bits();
    let low = free.trailing_ones().min(T::BITS);
    let block = if low == 128 {
        u128::MAX
    } else {
        (1u128 << low) - 1
    };
    let holes = free & !block;
    if holes.count_ones() > LIMIT {
        return None;
    }
    let mut out = vec![];
    for &(first, last) in values {
        // A range of masked values is no single pattern.
        if first != last {
            return None;
        }
        let value = first.bits();
        if value & !mask != 0 {
            continue;
        }
        let mut extra = 0u128;
        loop {
            let start = value | extra;
            out.push((T::from_bits(start), T::from_bits(start | block)));
            // The next subset of the holes.
            extra = extra.wrapping_sub(holes) & holes;
            if extra == 0 {
                break;
            }
        }
    }
    Some(intervals::normalise(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_with_holes_gives_every_interval() {
        // x.x.0.x/255.255.255.0 with the third byte free in its lowest bit: 0xfffffe00 has no holes.
        let one = [(0x0a00_0000u32, 0x0a00_0000)];
        assert_eq!(
            masked(&one, 0xffff_ff00),
            Some(vec![(0x0a00_0000, 0x0a00_00ff)])
        );
        // The lowest bit counts, the second does not.
        assert_eq!(
            masked(&one, 0xffff_fffd),
            Some(vec![(0x0a00_0000, 0x0a00_0000), (0x0a00_0002, 0x0a00_0002)])
        );
        // 0.0.0.x under 0.0.0.255: 2^24 intervals are too many.
        assert_eq!(masked(&one, 0x0000_00ff), None);
        // A value outside of its own mask never compares equal.
        assert_eq!(masked(&[(1u32, 1)], 0xffff_fffe), Some(vec![]));
    }
}
