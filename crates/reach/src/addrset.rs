//! Sets of IP addresses as sorted disjoint intervals.
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::net::IpAddr;

use crate::intervals::{self, Unit};

/// A set of IPv4 and IPv6 addresses. Serialises as its minimal sorted list of CIDRs, IPv4 first.
///
/// ```
/// use reach::AddrSet;
/// let private: AddrSet = ["10.0.0.0/8".parse()?, "192.168.0.0/16".parse()?].into_iter().collect();
/// let mine = AddrSet::from("10.1.0.0/16".parse::<ipnet::IpNet>()?);
/// assert!(mine.is_subset(&private));
/// assert_eq!(private.subtract(&mine).to_cidrs().len(), 9);
/// # Ok::<(), ipnet::AddrParseError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct AddrSet {
    /// Canonical: sorted, disjoint, not adjacent.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl AddrSet {
    /// The empty set.
    pub fn empty() -> Self {
        Self::default()
    }
    /// All IPv4 addresses.
    pub fn all_v4() -> Self {
        AddrSet {
            v4: vec![(0, u32::MAX)],
            v6: vec![],
        }
    }
    /// All IPv6 addresses.
    pub fn all_v6() -> Self {
        AddrSet {
            v4: vec![],
            v6: vec![(0, u128::MAX)],
        }
    }
    /// The addresses `first..=last`; empty when they are of two families or `first > last`.
    pub fn from_range(first: IpAddr, last: IpAddr) -> Self {
        match (first, last) {
            (IpAddr::V4(a), IpAddr::V4(b)) if a <= b => AddrSet {
                v4: vec![(a.into(), b.into())],
                v6: vec![],
            },
            (IpAddr::V6(a), IpAddr::V6(b)) if a <= b => AddrSet {
                v4: vec![],
                v6: vec![(a.into(), b.into())],
            },
            _ => Self::default(),
        }
    }
    /// All of these ranges together, in any order; those that [`AddrSet::from_range`] would find empty count as
    /// empty. Much faster than one union after another.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (IpAddr, IpAddr)>) -> Self {
        let mut set = Self::default();
        for (first, last) in ranges {
            match (first, last) {
                (IpAddr::V4(a), IpAddr::V4(b)) => set.v4.push((a.into(), b.into())),
                (IpAddr::V6(a), IpAddr::V6(b)) => set.v6.push((a.into(), b.into())),
                _ => {}
            }
        }
        Self::from_parts(set.v4, set.v6)
    }
    pub(crate) fn from_parts(v4: Vec<(u32, u32)>, v6: Vec<(u128, u128)>) -> Self {
        AddrSet {
            v4: intervals::normalise(v4),
            v6: intervals::normalise(v6),
        }
    }
    pub(crate) fn v4_intervals(&self) -> &[(u32, u32)] {
        &self.v4
    }
    pub(crate) fn v6_intervals(&self) -> &[(u128, u128)] {
        &self.v6
    }
    /// The intervals `first..=last`, sorted, IPv4 first; no two of them touch.
    pub fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> + '_ {
        let v4 = self
            .v4
            .iter()
            .map(|&(a, b)| (IpAddr::V4(a.into()), IpAddr::V4(b.into())));
        let v6 = self
            .v6
            .iter()
            .map(|&(a, b)| (IpAddr::V6(a.into()), IpAddr::V6(b.into())));
        v4.chain(v6)
    }
    /// True when it has no address.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
    /// Union.
    pub fn union(&self, other: &AddrSet) -> AddrSet {
        AddrSet {
            v4: intervals::union(&self.v4, &other.v4),
            v6: intervals::union(&self.v6, &other.v6),
        }
    }
    /// Intersection.
    pub fn intersect(&self, other: &AddrSet) -> AddrSet {
        AddrSet {
            v4: intervals::intersect(&self.v4, &other.v4),
            v6: intervals::intersect(&self.v6, &other.v6),
        }
    }
    /// Difference.
    pub fn subtract(&self, other: &AddrSet) -> AddrSet {
        AddrSet {
            v4: intervals::subtract(&self.v4, &other.v4),
            v6: intervals::subtract(&self.v6, &other.v6),
        }
    }
    /// Membership.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => intervals::contains(&self.v4, u32::from(a)),
            IpAddr::V6(a) => intervals::contains(&self.v6, u128::from(a)),
        }
    }
    /// True when every address of `self` is in `other`.
    pub fn is_subset(&self, other: &AddrSet) -> bool {
        intervals::is_subset(&self.v4, &other.v4) && intervals::is_subset(&self.v6, &other.v6)
    }
    /// The smallest address, IPv4 first.
    pub fn first(&self) -> Option<IpAddr> {
        self.ranges().next().map(|(first, _)| first)
    }
    /// Number of addresses; saturates (all of IPv6 is one more than fits).
    pub fn count(&self) -> u128 {
        fn of<T: Unit>(ivs: &[(T, T)]) -> u128 {
            let sizes = ivs
                .iter()
                .map(|iv| (iv.1.bits() - iv.0.bits()).saturating_add(1));
            sizes.fold(0, u128::saturating_add)
        }
        of(&self.v4).saturating_add(of(&self.v6))
    }
    /// The minimal sorted list of prefixes, IPv4 first.
    pub fn to_cidrs(&self) -> Vec<IpNet> {
        let mut out = vec![];
        intervals::cidrs(&self.v4, &mut out);
        intervals::cidrs(&self.v6, &mut out);
        out
    }
    /// The IPv4 part.
    pub fn v4(&self) -> AddrSet {
        AddrSet {
            v4: self.v4.clone(),
            v6: vec![],
        }
    }
    /// The IPv6 part.
    pub fn v6(&self) -> AddrSet {
        AddrSet {
            v4: vec![],
            v6: self.v6.clone(),
        }
    }
}

impl From<IpNet> for AddrSet {
    fn from(net: IpNet) -> Self {
        Self::from_range(net.network(), net.broadcast())
    }
}
impl From<IpAddr> for AddrSet {
    fn from(address: IpAddr) -> Self {
        Self::from_range(address, address)
    }
}
impl FromIterator<IpNet> for AddrSet {
    fn from_iter<T: IntoIterator<Item = IpNet>>(nets: T) -> Self {
        Self::from_ranges(nets.into_iter().map(|net| (net.network(), net.broadcast())))
    }
}
impl Serialize for AddrSet {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.to_cidrs().serialize(s)
    }
}
impl<'de> Deserialize<'de> for AddrSet {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Vec::<IpNet>::deserialize(d)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nets: &[&str]) -> AddrSet {
        nets.iter().map(|n| n.parse::<IpNet>().unwrap()).collect()
    }

    #[test]
    fn prefixes_that_meet_become_one() {
        assert_eq!(set(&["10.0.0.0/9", "10.128.0.0/9"]), set(&["10.0.0.0/8"]));
        assert_eq!(AddrSet::all_v4().to_cidrs(), ["0.0.0.0/0".parse().unwrap()]);
    }

    #[test]
    fn ipv4_comes_first_and_families_stay_apart() {
        let both = set(&["2001:db8::/32", "192.0.2.0/24"]);
        assert_eq!(both.first(), Some("192.0.2.0".parse().unwrap()));
        assert_eq!(both.v4().union(&both.v6()), both);
        assert!(both.intersect(&AddrSet::all_v6()).v4().is_empty());
        assert_eq!(both.count(), 256 + (1 << 96));
    }

    #[test]
    fn ranges_of_two_families_or_backwards_are_empty() {
        let (a, b) = ("10.0.0.1".parse().unwrap(), "::1".parse().unwrap());
        assert!(AddrSet::from_range(a, b).is_empty());
        assert!(AddrSet::from_ranges([(a, b), ("10.0.0.2".parse().unwrap(), a)]).is_empty());
    }

    #[test]
    fn json_is_the_list_of_prefixes() {
        let s = set(&["10.0.0.0/31", "10.0.0.2/32"]);
        let json = serde_json::to_string(&s).unwrap();
        assert_eq!(json, r#"["10.0.0.0/31","10.0.0.2/32"]"#);
        assert_eq!(serde_json::from_str::<AddrSet>(&json).unwrap(), s);
    }
}
