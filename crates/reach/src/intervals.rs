//! Operations on sorted, disjoint, non-adjacent inclusive intervals.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::AddrSet;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An address as a number: `u32` for IPv4, `u128` for IPv6.
pub(crate) trait Unit: Copy + Ord + std::hash::Hash + std::fmt::Debug + 'static {
    const MIN: Self;
    const MAX: Self;
    /// Width in bits.
    const BITS: u32;
    fn succ(self) -> Option<Self>;
    fn pred(self) -> Option<Self>;
    fn from_ip(address: IpAddr) -> Option<Self>;
    fn from_bits(bits: u128) -> Self;
    fn bits(self) -> u128;
    fn net(self, len: u8) -> Option<IpNet>;
    /// The part of `set` that is of this family.
    fn half(set: &AddrSet) -> &[(Self, Self)];
    fn into_set(intervals: Vec<(Self, Self)>) -> AddrSet;
    /// The interval of a prefix of this family.
    fn prefix(net: IpNet) -> Option<(Self, Self)> {
        Some((
            Self::from_ip(net.network())?,
            Self::from_ip(net.broadcast())?,
        ))
    }
}

impl Unit for u32 {
    const MIN: u32 = 0;
    const MAX: u32 = u32::MAX;
    const BITS: u32 = 32;
    fn succ(self) -> Option<u32> {
        self.checked_add(1)
    }
    fn pred(self) -> Option<u32> {
        self.checked_sub(1)
    }
    fn from_ip(address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(a) => Some(a.into()),
            IpAddr::V6(_) => None,
        }
    }
    fn from_bits(bits: u128) -> u32 {
        bits as u32
    }
    fn bits(self) -> u128 {
        self.into()
    }
    fn net(self, len: u8) -> Option<IpNet> {
        Ipv4Net::new(Ipv4Addr::from(self), len).ok().map(IpNet::V4)
    }
    fn half(set: &AddrSet) -> &[(u32, u32)] {
        set.v4_intervals()
    }
    fn into_set(intervals: Vec<(u32, u32)>) -> AddrSet {
        AddrSet::from_parts(intervals, vec![])
    }
}

impl Unit for u128 {
    const MIN: u128 = 0;
    const MAX: u128 = u128::MAX;
    const BITS: u32 = 128;
    fn succ(self) -> Option<u128> {
        self.checked_add(1)
    }
    fn pred(self) -> Option<u128> {
        self.checked_sub(1)
    }
    fn from_ip(address: IpAddr) -> Option<u128> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(a) => Some(a.into()),
        }
    }
    fn from_bits(bits: u128) -> u128 {
        bits
    }
    fn bits(self) -> u128 {
        self
    }
    fn net(self, len: u8) -> Option<IpNet> {
        Ipv6Net::new(Ipv6Addr::from(self), len).ok().map(IpNet::V6)
    }
    fn half(set: &AddrSet) -> &[(u128, u128)] {
        set.v6_intervals()
    }
    fn into_set(intervals: Vec<(u128, u128)>) -> AddrSet {
        AddrSet::from_parts(vec![], intervals)
    }
}

/// Intervals in canonical form.
pub(crate) type Ivs<T> = Vec<(T, T)>;

/// True when nothing lies between `a` and a following `b`, so that they are one interval.
fn touches<T: Unit>(a: T, b: T) -> bool {
    a >= b || a.succ() == Some(b)
}

/// Appends an interval that starts no earlier than the last one, merging where they meet.
pub(crate) fn push<T: Unit>(out: &mut Ivs<T>, next: (T, T)) {
    match out.last_mut() {
        Some(last) if touches(last.1, next.0) => last.1 = last.1.max(next.1),
        _ => out.push(next),
    }
}

/// Brings intervals in any order into canonical form.
pub(crate) fn normalise<T: Unit>(mut ivs: Ivs<T>) -> Ivs<T> {
    ivs.retain(|iv| iv.0 <= iv.1);
    let canonical = ivs
        .windows(2)
        .all(|w| w[0].1 < w[1].0 && !touches(w[0].1, w[1].0));
    if canonical {
        return ivs;
    }
    ivs.sort_unstable();
    let mut out = Vec::with_capacity(ivs.len());
    for iv in ivs {
        push(&mut out, iv);
    }
    out
}

pub(crate) fn union<T: Unit>(a: &[(T, T)], b: &[(T, T)]) -> Ivs<T> {
    if a.is_empty() {
        return b.to_vec();
    }
    if b.is_empty() {
        return a.to_vec();
    }
    let mut out = Vec::with_capacity(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        let left = j == b.len() || (i < a.len() && a[i].0 <= b[j].0);
        let next = if left { a[i] } else { b[j] };
        if left {
            i += 1
        } else {
            j += 1
        }
        push(&mut out, next);
    }
    out
}

/// Index of the first interval that does not end before `at`.
fn seek<T: Unit>(ivs: &[(T, T)], at: T) -> usize {
    ivs.partition_point(|iv| iv.1 < at)
}

pub(crate) fn intersect<T: Unit>(a: &[(T, T)], b: &[(T, T)]) -> Ivs<T> {
    let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let mut out = Vec::new();
    if few.len() * 16 < many.len() {
        for &(first, last) in few {
            let from = seek(many, first);
            for iv in many[from..].iter().take_while(|iv| iv.0 <= last) {
                out.push((iv.0.max(first), iv.1.min(last)));
            }
        }
        return out;
    }
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        let (first, last) = (a[i].0.max(b[j].0), a[i].1.min(b[j].1));
        if first <= last {
            out.push((first, last));
        }
        if a[i].1 < b[j].1 { i += 1 } else { j += 1 }
    }
    out
}

pub(crate) fn subtract<T: Unit>(a: &[(T, T)], b: &[(T, T)]) -> Ivs<T> {
    let mut out = Vec::with_capacity(a.len());
    let mut j = a.first().map_or(0, |iv| seek(b, iv.0));
    for &(mut first, last) in a {
        while j < b.len() && b[j].1 < first {
            j += 1;
        }
        let mut k = j;
        let mut whole = true;
        while k < b.len() && b[k].0 <= last {
            if let Some(end) = b[k].0.pred().filter(|&end| end >= first && b[k].0 > first) {
                out.push((first, end));
            }
            match b[k].1.succ() {
                Some(next) if b[k].1 < last => first = next,
                _ => {
                    whole = false;
                    break;
                }
            }
            k += 1;
        }
        j = k;
        if whole {
            out.push((first, last));
        }
    }
    out
}

pub(crate) fn complement<T: Unit>(a: &[(T, T)]) -> Ivs<T> {
    subtract(&[(T::MIN, T::MAX)], a)
}

pub(crate) fn contains<T: Unit>(a: &[(T, T)], at: T) -> bool {
    a.get(seek(a, at)).is_some_and(|iv| iv.0 <= at)
}

/// True when every address of `a` is in `b`.
pub(crate) fn is_subset<T: Unit>(a: &[(T, T)], b: &[(T, T)]) -> bool {
    a.iter().all(|iv| {
        let within = b.get(seek(b, iv.0));
        within.is_some_and(|w| w.0 <= iv.0 && iv.1 <= w.1)
    })
}

/// The minimal list of prefixes that cover exactly these intervals.
pub(crate) fn cidrs<T: Unit>(ivs: &[(T, T)], out: &mut Vec<IpNet>) {
    for &(first, last) in ivs {
        let (mut at, end) = (first.bits(), last.bits());
        loop {
            // The widest block that starts here and does not pass the end.
            let aligned = at.trailing_zeros().min(T::BITS);
            let room = (end - at).checked_add(1).map_or(128, |n| n.ilog2());
            let bits = aligned.min(room).min(T::BITS);
            out.extend(T::from_bits(at).net((T::BITS - bits) as u8));
            let size_less_one = if bits == 128 {
                u128::MAX
            } else {
                (1u128 << bits) - 1
            };
            let block_end = at + size_less_one;
            if block_end >= end {
                break;
            }
            at = block_end + 1;
        }
    }
}

/// A large set from which small parts are taken often: intervals in chunks, so that taking costs the logarithm
/// of its size and not the whole.
#[derive(Debug, Clone)]
pub(crate) struct Pending<T> {
    chunks: Vec<Ivs<T>>,
}

const CHUNK: usize = 96;

impl<T: Unit> Pending<T> {
    pub(crate) fn new(ivs: Ivs<T>) -> Self {
        if ivs.len() <= CHUNK {
            let chunks = if ivs.is_empty() { vec![] } else { vec![ivs] };
            return Pending { chunks };
        }
        Pending {
            chunks: ivs.chunks(CHUNK / 2).map(<[_]>::to_vec).collect(),
        }
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
    pub(crate) fn into_intervals(self) -> Ivs<T> {
        let mut chunks = self.chunks;
        if chunks.len() == 1 {
            return chunks.pop().unwrap_or_default();
        }
        chunks.concat()
    }
    pub(crate) fn intervals(&self) -> Ivs<T> {
        self.chunks.concat()
    }
    fn seek(&self, at: T) -> usize {
        self.chunks
            .partition_point(|c| c.last().is_some_and(|iv| iv.1 < at))
    }
    /// The part of the set that lies in `of`.
    pub(crate) fn peek(&self, of: &[(T, T)]) -> Ivs<T> {
        let mut out = Vec::new();
        if of.len() > CHUNK {
            for chunk in &self.chunks {
                out.extend(intersect(chunk, of));
            }
            return out;
        }
        for &(first, last) in of {
            for chunk in &self.chunks[self.seek(first)..] {
                if chunk.first().is_none_or(|iv| iv.0 > last) {
                    break;
                }
                let from = seek(chunk, first);
                for iv in chunk[from..].iter().take_while(|iv| iv.0 <= last) {
                    out.push((iv.0.max(first), iv.1.min(last)));
                }
            }
        }
        out
    }
    /// True when no address of `of` is in the set.
    pub(crate) fn is_disjoint(&self, of: &[(T, T)]) -> bool {
        if of.len() > CHUNK {
            return self.peek(of).is_empty();
        }
        of.iter().all(|&(first, last)| {
            let chunk = self.chunks.get(self.seek(first));
            let found = chunk.and_then(|c| c.get(seek(c, first)));
            found.is_none_or(|iv| iv.0 > last)
        })
    }
    /// Takes out and returns the part that lies in `of`.
    pub(crate) fn take(&mut self, of: &[(T, T)]) -> Ivs<T> {
        if of.len() > CHUNK {
            let all = std::mem::take(&mut self.chunks).concat();
            let taken = intersect(&all, of);
            *self = Pending::new(if taken.is_empty() {
                all
            } else {
                subtract(&all, of)
            });
            return taken;
        }
        let mut taken = Vec::new();
        for &(first, last) in of {
            self.take_one(first, last, &mut taken);
        }
        taken
    }
    fn take_one(&mut self, first: T, last: T, taken: &mut Ivs<T>) {
        let mut at = self.seek(first);
        let from = at;
        while let Some(chunk) = self.chunks.get_mut(at) {
            if chunk.first().is_none_or(|iv| iv.0 > last) {
                break;
            }
            let lo = seek(chunk, first);
            let hi = lo + chunk[lo..].partition_point(|iv| iv.0 <= last);
            if lo == hi {
                break;
            }
            let (head, tail) = (chunk[lo], chunk[hi - 1]);
            taken.extend(
                chunk[lo..hi]
                    .iter()
                    .map(|iv| (iv.0.max(first), iv.1.min(last))),
            );
            let before = first
                .pred()
                .filter(|_| head.0 < first)
                .map(|end| (head.0, end));
            let after = last
                .succ()
                .filter(|_| tail.1 > last)
                .map(|start| (start, tail.1));
            chunk.splice(lo..hi, before.into_iter().chain(after));
            if chunk.len() > CHUNK {
                let right = chunk.split_off(CHUNK / 2);
                self.chunks.insert(at + 1, right);
                at += 1;
            }
            at += 1;
        }
        let end = at.min(self.chunks.len());
        if self.chunks[from..end].iter().any(Vec::is_empty) {
            let mut i = from;
            for _ in from..end {
                if self.chunks[i].is_empty() {
                    self.chunks.remove(i);
                } else {
                    i += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Subsets of a 64-address universe, and the same as a bit mask to check against.
    fn small() -> impl Strategy<Value = (Ivs<u32>, u64)> {
        any::<u64>()
            .prop_flat_map(|a| any::<u64>().prop_map(move |b| a & b))
            .prop_map(|bits| (from_bits(bits), bits))
    }
    fn from_bits(bits: u64) -> Ivs<u32> {
        normalise(
            (0..64)
                .filter(|i| bits >> i & 1 == 1)
                .map(|i| (i, i))
                .collect(),
        )
    }

    proptest! {
        #[test]
        fn algebra_agrees_with_bit_masks((a, x) in small(), (b, y) in small()) {
            prop_assert_eq!(union(&a, &b), from_bits(x | y));
            prop_assert_eq!(intersect(&a, &b), from_bits(x & y));
            prop_assert_eq!(subtract(&a, &b), from_bits(x & !y));
            prop_assert_eq!(complement(&complement(&a)), a.clone());
            prop_assert_eq!(is_subset(&a, &b), x & !y == 0);
            for i in 0..64 {
                prop_assert_eq!(contains(&a, i), x >> i & 1 == 1);
            }
        }
        #[test]
        fn galloping_intersection_agrees_with_the_merge(a in prop::collection::vec((any::<u16>(), 0u32..9), 0..400), first: u16, len in 0u32..40000) {
            let a = normalise(a.into_iter().map(|(f, l)| (f as u32, f as u32 + l)).collect());
            let b = vec![(first as u32, first as u32 + len)];
            prop_assert_eq!(intersect(&a, &b), subtract(&a, &subtract(&a, &b)));
        }
        #[test]
        fn taking_parts_is_subtraction(start in prop::collection::vec((0u32..9000, 0u32..9), 0..1500), parts in prop::collection::vec((0u32..9000, 0u32..300), 0..40)) {
            let start = normalise(start.into_iter().map(|(f, l)| (f, f + l)).collect());
            let mut set = Pending::new(start.clone());
            let mut rest = start;
            for (first, len) in parts {
                let part = [(first, first + len)];
                prop_assert_eq!(set.is_disjoint(&part), intersect(&rest, &part).is_empty());
                prop_assert_eq!(set.peek(&part), intersect(&rest, &part));
                prop_assert_eq!(set.take(&part), intersect(&rest, &part));
                rest = subtract(&rest, &part);
                prop_assert_eq!(set.intervals(), rest.clone());
                prop_assert_eq!(set.is_empty(), rest.is_empty());
            }
        }
        #[test]
        fn prefixes_cover_exactly_and_cannot_be_joined(first: u32, len in 0u32..100000) {
            let iv = (first, first.saturating_add(len));
            let mut nets = vec![];
            cidrs(&[iv], &mut nets);
            let back = normalise(nets.iter().filter_map(|n| u32::prefix(*n)).collect());
            prop_assert_eq!(back, vec![iv]);
            prop_assert_eq!(IpNet::aggregate(&nets), nets);
        }
    }

    #[test]
    fn the_ends_of_the_universe() {
        let all = vec![(0u128, u128::MAX)];
        assert_eq!(complement(&all), vec![]);
        assert_eq!(complement::<u128>(&[]), all);
        assert_eq!(
            subtract(&all, &[(0, 0), (u128::MAX, u128::MAX)]),
            vec![(1, u128::MAX - 1)]
        );
        let mut nets = vec![];
        cidrs(&all, &mut nets);
        assert_eq!(nets, ["::/0".parse().unwrap()]);
        let mut set = Pending::new(all.clone());
        assert_eq!(set.take(&[(5, u128::MAX)]), vec![(5, u128::MAX)]);
        assert_eq!(set.into_intervals(), vec![(0, 4)]);
    }
}
