//! The packet's way through the host: hooks, conntrack, NAT, routing; there, back, and there again.
use std::net::IpAddr;
use std::rc::Rc;

use super::packet::{Dev, Packet, Track};
use super::route::{Ask, Way, names};
use super::trace::What;
use super::walk::{Flow, Walk, merge};
use crate::intervals::{self, Ivs, Unit};
use crate::ir::{CtDir, NfHook, ct_state};
use crate::{Interface, Verdict};

mod back;
mod forth;
mod hooks;

/// Where packets go after the routing decision.
enum Next {
    Here,
    Through(Vec<Dev>),
}

impl<'a, T: Unit> Walk<'a, T> {
    /// The whole question: who, of `sources`, gets through in every direction.
    pub(super) fn whole_way(&mut self, first: Packet, sources: Ivs<T>) -> Ivs<T> {
        let iif = first.iif.name().unwrap_or("").to_string();
        let flow = Flow::new(Rc::new(first), sources, super::trace::ROOT);
        let arrived = self.inbound(flow, &iif, true);
        let mut passed = vec![];
        for flow in arrived {
            // A datagram that got in has got in, whether or not an answer comes out.
            if flow.packet.proto == 17 {
                passed.extend(flow.set.into_intervals());
                continue;
            }
            for flow in self.answer(flow, &iif) {
                for done in self.inbound(established(flow, &iif), &iif, false) {
                    self.half_tracked(&done);
                    passed.extend(done.set.into_intervals());
                }
            }
        }
        intervals::normalise(passed)
    }

    /// When conntrack sees only some of a connection's packets it may pick the connection up, or not, and its
    /// translations may be missing.
    fn half_tracked(&mut self, flow: &Flow<T>) {
        let untracked = flow.packet.track == Track::Untracked;
        if untracked != (flow.packet.state == ct_state::INVALID) {
            let text = "one half of the connection is tracked, the other is not";
            let set = flow.set.intervals();
            self.fact(flow.node, set, text.into(), Verdict::Drop, false);
        }
    }

    /// One packet from the client: what arrives at a socket or leaves to a container.
    fn inbound(&mut self, flow: Flow<T>, iif: &str, first: bool) -> Vec<Flow<T>> {
        if flow.set.is_empty() {
            return vec![];
        }
        let interface = self.net().and_then(|n| n.interface(iif)).cloned();
        if interface.as_ref().is_some_and(|i| i.loopback) {
            return self.own_packets(flow, iif, first);
        }
        let flows = match &interface {
            Some(interface) => self.below(flow, interface),
            None => vec![flow],
        };
        let mut out = vec![];
        for flow in flows {
            if let Some(bridge) = interface
                .as_ref()
                .filter(|i| self.is_same_link(i, &flow.packet))
            {
                out.extend(self.bridged(flow, bridge, first));
                continue;
            }
            for flow in self.stage(NfHook::Prerouting, vec![flow], false) {
                for (flow, next) in self.decide(flow, first) {
                    out.extend(self.deliver(flow, next, first));
                }
            }
        }
        merge(out)
    }

    fn deliver(&mut self, flow: Flow<T>, next: Next, first: bool) -> Vec<Flow<T>> {
        let mut out = vec![];
        match next {
            Next::Here => {
                if first {
                    self.accept_fact(&flow);
                }
                out.extend(self.stage(NfHook::Input, vec![flow], first));
            }
            Next::Through(oifs) => {
                for oif in oifs {
                    let mut copy = flow.clone();
                    Rc::make_mut(&mut copy.packet).oif = oif;
                    if first {
                        self.accept_fact(&copy);
                    }
                    let flows = self.stage(NfHook::Forward, vec![copy], first);
                    out.extend(self.leave_by(flows));
                }
            }
        }
        out
    }

    /// Postrouting, and the bridge behind it where the way out is one.
    fn leave_by(&mut self, flows: Vec<Flow<T>>) -> Vec<Flow<T>> {
        let flows = self.stage(NfHook::Postrouting, flows, false);
        let mut out = vec![];
        for flow in flows {
            let bridge = flow
                .packet
                .oif
                .name()
                .and_then(|n| self.net()?.interface(n))
                .is_some_and(is_bridge);
            if !bridge {
                out.push(flow);
                continue;
            }
            let after = self.bridge_hook(NfHook::Output, vec![flow]);
            out.extend(self.bridge_hook(NfHook::Postrouting, after));
        }
        out
    }

    /// A connection of this machine to itself, or by its own DNAT to a container.
    fn own_packets(&mut self, mut flow: Flow<T>, iif: &str, first: bool) -> Vec<Flow<T>> {
        {
            let packet = Rc::make_mut(&mut flow.packet);
            packet.iif = Dev::None;
            packet.oif = Dev::is(iif);
        }
        let mut out = vec![];
        for mut flow in self.stage(NfHook::Output, vec![flow], false) {
            let near = flow.packet.near;
            let mut ask = Ask::of(&flow.packet);
            ask.iif = "lo";
            let set = flow.set.intervals();
            let routed = match self.routing {
                Some(routing) => routing.route(&ask, set),
                None => vec![],
            };
            for part in routed {
                let node = flow.node;
                match part.way {
                    Way::Local => {
                        let packet = Rc::make_mut(&mut flow.packet);
                        packet.oif = Dev::is(iif);
                        let copy = Flow::new(flow.packet.clone(), part.set, node);
                        for mut flow in self.stage(NfHook::Postrouting, vec![copy], false) {
                            let packet = Rc::make_mut(&mut flow.packet);
                            packet.iif = Dev::is(iif);
                            packet.oif = Dev::None;
                            // The conntrack entry comes along from output; no second DNAT.
                            packet.nat_done = true;
                            for flow in self.stage(NfHook::Prerouting, vec![flow], false) {
                                out.extend(self.deliver(flow, Next::Here, first));
                            }
                        }
                    }
                    Way::Out(oifs) => {
                        let text = "leaves this machine: its own packets pass output, not forward"
                            .to_string();
                        let node = self.trace.step(node, What::Fact(text), &[]);
                        for oif in self.net().map(|n| names(n, &oifs)).unwrap_or_default() {
                            let mut packet = (*flow.packet).clone();
                            packet.oif = oif;
                            let copy = Flow::new(Rc::new(packet), part.set.clone(), node);
                            if first {
                                self.accept_fact(&copy);
                            }
                            out.extend(self.leave_by(vec![copy]));
                        }
                    }
                    way => self.refuse(node, part.set, &way, near, part.maybe),
                }
            }
        }
        out
    }

    /// Records where clients get to, for those that no rule of the deciding hook says anything about.
    fn accept_fact(&mut self, flow: &Flow<T>) {
        let set = flow.set.intervals();
        self.ledger
            .accept(&set, flow.node, false, flow.packet.clone());
    }

    fn refuse(&mut self, node: u32, set: Ivs<T>, way: &Way, near: Option<IpAddr>, maybe: bool) {
        let to = near.map_or_else(|| "the destination".to_string(), |a| a.to_string());
        let (text, verdict) = match way {
            Way::NoRoute => (format!("no route to {to}"), Verdict::Reject),
            Way::Refused(what) => (
                format!("{what} to {to}"),
                if what.starts_with("blackhole") {
                    Verdict::Drop
                } else {
                    Verdict::Reject
                },
            ),
            Way::Broadcast(_) | Way::Multicast => {
                (format!("{to} is no single host's address"), Verdict::Drop)
            }
            Way::Local => ("the answer would stay on this host".into(), Verdict::Drop),
            Way::Out(_) => ("routed elsewhere".into(), Verdict::Drop),
        };
        self.fact(node, set, text, verdict, !maybe);
    }

    /// Clients dropped by something that is no rule.
    fn fact(&mut self, node: u32, set: Ivs<T>, text: String, verdict: Verdict, sure: bool) {
        if set.is_empty() {
            return;
        }
        let conditions = if sure { vec![] } else { vec![text.clone()] };
        let node = self.trace.leaf(node, What::Fact(text), &conditions);
        self.drop(set, node, verdict);
    }
}

/// The client's packets after the answer.
fn established<T: Unit>(flow: Flow<T>, iif: &str) -> Flow<T> {
    let mut packet = (*flow.packet).clone();
    let untracked = packet.state == ct_state::INVALID;
    packet.dir = CtDir::Original;
    packet.later = true;
    packet.half = untracked || packet.track == Track::Untracked;
    packet.state = if untracked {
        ct_state::INVALID
    } else {
        ct_state::ESTABLISHED
    };
    packet.track = Track::NotYet;
    packet.mark = Some(0);
    (packet.near, packet.near_port) = packet.orig;
    packet.far_is_client = true;
    packet.iif = Dev::is(iif);
    packet.oif = Dev::None;
    Flow::new(Rc::new(packet), flow.set.into_intervals(), flow.node)
}

fn is_bridge(interface: &Interface) -> bool {
    interface.kind.as_deref() == Some("bridge")
}

fn is_loopback(net: Option<&crate::Net>, name: &str) -> bool {
    net.and_then(|n| n.interface(name))
        .is_some_and(|i| i.loopback)
}
