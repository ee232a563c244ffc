//! Sequence numbers that prove an answer belongs to a knock.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

/// A keyed hash (SipHash) of addresses and ports; the key is fresh for every scan.
#[derive(Debug, Clone, Default)]
pub struct Cookies(RandomState);

impl Cookies {
    /// The sequence number of the knock from port `sport` on `target`:`dport`. `round` tells
    /// canaries of different rounds apart and is 0 for ordinary knocks, which repeat identically.
    pub fn sequence(&self, target: IpAddr, sport: u16, dport: u16, round: u32) -> u32 {
        let hash = self.0.hash_one((target, sport, dport, round));
        (hash ^ (hash >> 32)) as u32
    }
}
