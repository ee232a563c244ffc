//! What routing says of the client's address: its type, its reverse path, whether the kernel takes it for a source.
use std::net::IpAddr;

use super::{Ask, LOCAL_TABLE, Routed, Routing, Way, loopback};
use crate::RouteKind;
use crate::engine::packet::Packet;
use crate::intervals::{self, Ivs, Unit};
use crate::ir::Ipv;

/// What the source check makes of the client addresses.
#[derive(Default)]
pub(in crate::engine) struct SourceCheck<T> {
    /// Surely dropped, with the reason.
    pub(in crate::engine) dropped: Vec<(Ivs<T>, &'static str)>,
    /// Perhaps dropped: a sysctl or a rule is not known.
    pub(in crate::engine) open: Vec<(Ivs<T>, &'static str)>,
}

impl<T: Unit> Routing<'_, T> {
    /// Addresses of one RTN_* type, optionally only those of one interface. Without rules: the local table decides,
    /// everything else is unicast (`inet_addr_type_dev_table`).
    pub(in crate::engine) fn of_type(&self, kind: u64, only: Option<&str>) -> Ivs<T> {
        let index = only
            .and_then(|name| self.net.interface(name))
            .map(|i| i.index);
        let special = |kind: RouteKind| -> Ivs<T> {
            let mut left: Ivs<T> = vec![(T::MIN, T::MAX)];
            let mut out = vec![];
            for entry in self.tables.get(&LOCAL_TABLE).into_iter().flatten() {
                let part = intervals::intersect(&left, &[entry.range]);
                left = intervals::subtract(&left, &part);
                if entry.kind == kind && (only.is_none() || entry.leaves_by(index)) {
                    out.extend(part);
                }
            }
            intervals::normalise(out)
        };
        let mut fixed = fixed_types::<T>();
        match kind {
            2 => intervals::subtract(
                &special(RouteKind::Local),
                &intervals::union(&fixed.0, &fixed.1),
            ),
            3 => intervals::union(&special(RouteKind::Broadcast), &fixed.0),
            4 => special(RouteKind::Anycast),
            5 => std::mem::take(&mut fixed.1),
            1 => {
                let others = [2, 3, 4, 5].map(|k| self.of_type(k, only));
                intervals::complement(
                    &others
                        .iter()
                        .fold(vec![], |all, s| intervals::union(&all, s)),
                )
            }
            _ => vec![],
        }
    }

    /// The RTN_* type of one address.
    pub(in crate::engine) fn type_of(&self, address: IpAddr, only: Option<&str>) -> u64 {
        let Some(at) = T::from_ip(address) else {
            return 0;
        };
        let is = |kind: &u64| intervals::contains(&self.of_type(*kind, only), at);
        [2, 3, 4, 5].into_iter().find(is).unwrap_or(1)
    }

    /// Client addresses whose reverse route leaves by `iif` (`strict`), or by any interface.
    pub(in crate::engine) fn reverse(
        &self,
        packet: &Packet,
        iif: &str,
        set: Ivs<T>,
        use_mark: bool,
    ) -> Vec<Routed<T>> {
        // fib_validate_source looks up as if the packet had been made here.
        let mark = match (use_mark, packet.mark) {
            (true, mark) => mark,
            // src_valid_mark decides whether the mark counts; it is not among the facts.
            (false, Some(0)) => Some(0),
            (false, _) => None,
        };
        let ask = Ask {
            to_far: true,
            near: packet.near,
            iif: if use_mark { iif } else { "lo" },
            mark,
            proto: packet.proto,
            ports: (packet.near_port, packet.far_port),
        };
        self.route(&ask, set)
    }

    /// The kernel's check of the source address of a packet that arrives on `packet.iif` (IPv4), and IPv6's few rules.
    pub(in crate::engine) fn check_source(
        &self,
        packet: &Packet,
        set: &[(T, T)],
    ) -> SourceCheck<T> {
        let mut check = SourceCheck {
            dropped: vec![],
            open: vec![],
        };
        let Some(interface) = packet.iif.name().and_then(|name| self.net.interface(name)) else {
            return check;
        };
        if interface.loopback {
            return check;
        }
        let mut left = set.to_vec();
        let mut sort = |left: &mut Ivs<T>, part: &[(T, T)], to: Option<bool>, why: &'static str| {
            let part = intervals::intersect(left, part);
            if part.is_empty() {
                return;
            }
            match to {
                Some(true) => {
                    *left = intervals::subtract(left, &part);
                    check.dropped.push((part, why));
                }
                None => check.open.push((part, why)),
                Some(false) => {}
            }
        };
        let fixed = fixed_types::<T>();
        sort(
            &mut left,
            &fixed.1,
            Some(true),
            "the source is a multicast address",
        );
        if packet.ip == Ipv::V6 {
            if let Some(lo) = loopback::<T>() {
                sort(
                    &mut left,
                    &[lo],
                    Some(true),
                    "loopback address from outside",
                );
            }
            return check;
        }
        sort(
            &mut left,
            &fixed.0,
            Some(true),
            "the source is no host's address",
        );
        if let Some(lo) = loopback::<T>() {
            let allowed = interface.route_localnet;
            sort(
                &mut left,
                &[lo],
                allowed.map(|yes| !yes),
                "loopback address from outside",
            );
        }
        let own = self.of_type(2, None);
        let accept_local = interface.accept_local;
        sort(
            &mut left,
            &own,
            accept_local.map(|yes| !yes),
            "this host's own address as source",
        );

        let rp = [self.net.sysctls.rp_filter_all, interface.rp_filter];
        let strictest = rp.iter().map(|v| v.unwrap_or(1)).max().unwrap_or(0);
        let known = rp.iter().all(Option::is_some);
        if strictest == 0 {
            return check;
        }
        // 1 is strict, 2 loose; the larger of the two settings holds.
        let loose = known && strictest >= 2;
        let routed = self.reverse(packet, &interface.name, left.clone(), false);
        for r in routed {
            let out = matches!(r.way, Way::Out(_));
            let own = r.way == Way::Local;
            let passes = if loose {
                out
            } else {
                self.leaves_by(&r.way, &interface.name)
            };
            if !passes && !own {
                let sure = known && !r.maybe;
                let why = "rp_filter: the way back to the source does not lead there";
                sort(&mut left, &r.set, if sure { Some(true) } else { None }, why);
            }
        }
        check
    }
}

/// Addresses that are no host's (0.0.0.0/8 and 255.255.255.255), and multicast ones.
pub(in crate::engine) fn fixed_types<T: Unit>() -> (Ivs<T>, Ivs<T>) {
    let nets = |texts: &[&str]| {
        texts
            .iter()
            .filter_map(|t| T::prefix(t.parse().ok()?))
            .collect()
    };
    if T::BITS == 32 {
        (
            // The rest of 0.0.0.0/8 is as good as any address since Linux 5.3 (ipv4_is_zeronet).
            nets(&["0.0.0.0/32", "255.255.255.255/32"]),
            nets(&["224.0.0.0/4"]),
        )
    } else {
        (vec![], nets(&["ff00::/8"]))
    }
}
