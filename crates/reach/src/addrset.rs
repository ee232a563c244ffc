//! Sets of IP addresses as sorted disjoint intervals.
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::net::IpAddr;

/// A set of IPv4 and IPv6 addresses. Serialises as its minimal sorted list of CIDRs, IPv4 first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct AddrSet {
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
    /// True when it has no address.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
    /// Union.
    pub fn union(&self, _other: &AddrSet) -> AddrSet {
        self.clone()
    }
    /// Intersection.
    pub fn intersect(&self, _other: &AddrSet) -> AddrSet {
        self.clone()
    }
    /// Difference.
    pub fn subtract(&self, _other: &AddrSet) -> AddrSet {
        self.clone()
    }
    /// Membership.
    pub fn contains(&self, _address: IpAddr) -> bool {
        false
    }
    /// True when every address of `self` is in `other`.
    pub fn is_subset(&self, other: &AddrSet) -> bool {
        self.subtract(other).is_empty()
    }
    /// The smallest address, IPv4 first.
    pub fn first(&self) -> Option<IpAddr> {
        None
    }
    /// The minimal sorted list of prefixes, IPv4 first.
    pub fn to_cidrs(&self) -> Vec<IpNet> {
        vec![]
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
impl FromIterator<IpNet> for AddrSet {
    fn from_iter<T: IntoIterator<Item = IpNet>>(nets: T) -> Self {
        nets.into_iter()
            .fold(Self::default(), |set, net| set.union(&net.into()))
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
