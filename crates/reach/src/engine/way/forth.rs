//! The routing decision on what the client sends.
use std::net::IpAddr;
use std::rc::Rc;

use super::Next;
use crate::engine::packet::Packet;
use crate::engine::route::{Ask, Way, loopback, names};
use crate::engine::trace::What;
use crate::engine::walk::{Flow, Walk};
use crate::intervals::{self, Ivs, Unit};
use crate::ir::Ipv;
use crate::{Interface, Verdict};

impl<'a, T: Unit> Walk<'a, T> {
    /// The routing decision on a packet from the client.
    pub(super) fn decide(&mut self, flow: Flow<T>, first: bool) -> Vec<(Flow<T>, Next)> {
        let packet = flow.packet.clone();
        let node = flow.node;
        let mut set = flow.set.into_intervals();
        let (Some(routing), Some(net), Some(near)) = (self.routing, self.engine.net, packet.near)
        else {
            // Not known where to: it may get anywhere.
            let text = "the destination after NAT is not known".to_string();
            let node = self.trace.step(node, What::Fact(text.clone()), &[text]);
            self.drop(set.clone(), node, Verdict::Drop);
            return vec![(Flow::new(packet, set, node), Next::Here)];
        };
        let interface = packet.iif.name().and_then(|n| net.interface(n));
        if let Some(interface) = interface {
            let localnet = interface.route_localnet;
            let is_loopback = loopback::<T>()
                .zip(T::from_ip(near))
                .is_some_and(|(l, n)| l.0 <= n && n <= l.1);
            if is_loopback {
                let allowed = if packet.ip == Ipv::V4 {
                    localnet
                } else {
                    Some(false)
                };
                let text = format!("{near} from outside: a loopback address");
                match allowed {
                    Some(true) => {}
                    sysctl => {
                        self.fact(node, set.clone(), text, Verdict::Drop, sysctl.is_some());
                        if sysctl.is_some() {
                            return vec![];
                        }
                    }
                }
            }
            if packet.ip == Ipv::V6 && interface.disable_ipv6 == Some(true) {
                self.fact(
                    node,
                    set,
                    format!("IPv6 is off on {}", interface.name),
                    Verdict::Drop,
                    true,
                );
                return vec![];
            }
            let link_local = matches!(near, IpAddr::V6(a) if a.segments()[0] & 0xffc0 == 0xfe80);
            if link_local && !interface.addresses.iter().any(|a| a.net.addr() == near) {
                let text = format!("{near} is not an address of {}", interface.name);
                self.fact(node, set, text, Verdict::Drop, true);
                return vec![];
            }
        }
        if first {
            let check = routing.check_source(&packet, &set);
            for (part, why) in check.dropped {
                set = intervals::subtract(&set, &part);
                self.fact(node, part, why.into(), Verdict::Drop, true);
            }
            for (part, why) in check.open {
                self.fact(node, part, why.into(), Verdict::Drop, false);
            }
        }
        if packet.proto == 17 && packet.near.is_some_and(|near| near.is_multicast()) {
            // Groups are looked up before routes are (ip_route_input_rcu; IPv6 has ff00::/8 in its table).
            // Whether one was joined is not known here: it counts as joined.
            return vec![(Flow::new(packet, set, node), Next::Here)];
        }
        let mut out = vec![];
        for part in routing.route(&Ask::of(&packet), set) {
            match part.way {
                Way::Local => out.push((Flow::new(packet.clone(), part.set, node), Next::Here)),
                Way::Broadcast(_) | Way::Multicast if packet.proto == 17 => {
                    out.push((Flow::new(packet.clone(), part.set, node), Next::Here));
                }
                Way::Out(oifs) => {
                    out.extend(self.through(&packet, node, part.set, &oifs, interface))
                }
                way => self.refuse(node, part.set, &way, Some(near), part.maybe),
            }
        }
        out
    }

    /// Forwarding, where the host forwards.
    pub(super) fn through(
        &mut self,
        packet: &Rc<Packet>,
        node: u32,
        mut set: Ivs<T>,
        oifs: &[u32],
        interface: Option<&Interface>,
    ) -> Vec<(Flow<T>, Next)> {
        let Some(net) = self.engine.net else {
            return vec![];
        };
        let forwards = match packet.ip {
            Ipv::V4 => interface
                .and_then(|i| i.forwarding_v4)
                .or(net.sysctls.ipv4_forward),
            // ip6_forward asks for `all` only.
            Ipv::V6 => net.sysctls.ipv6_forward,
        };
        match forwards {
            Some(true) => {}
            sysctl => {
                let text = "this host does not forward".to_string();
                self.fact(node, set.clone(), text, Verdict::Drop, sysctl.is_some());
                if sysctl.is_some() {
                    return vec![];
                }
            }
        }
        if packet.ip == Ipv::V6 && packet.original() {
            // ip6_forward; the kernel delivers both to itself.
            let unspecified = intervals::intersect(&set, &[(T::MIN, T::MIN)]);
            set = intervals::subtract(&set, &unspecified);
            let why = "the unspecified address as source is not forwarded";
            self.fact(node, unspecified, why.into(), Verdict::Drop, true);
            let scoped: Option<(T, T)> = "fe80::/10".parse().ok().and_then(T::prefix);
            let part = intervals::intersect(&set, scoped.as_slice());
            set = intervals::subtract(&set, &part);
            self.fact(
                node,
                part,
                "a link-local source is not forwarded".into(),
                Verdict::Drop,
                true,
            );
        }
        let devices = names(net, oifs);
        let list: Vec<&str> = devices
            .iter()
            .map(|d| d.name().unwrap_or("an unknown link"))
            .collect();
        let to = packet.near.map_or_else(String::new, |a| format!(" to {a}"));
        let text = format!("routed{to} by {}", list.join(" or "));
        let node = if packet.original() {
            self.trace.step(node, What::Fact(text), &[])
        } else {
            node
        };
        vec![(Flow::new(packet.clone(), set, node), Next::Through(devices))]
    }
}
