//! The answer's way back to the client.
use std::net::IpAddr;
use std::rc::Rc;

use super::is_loopback;
use crate::Verdict;
use crate::engine::packet::{Dev, Track};
use crate::engine::route::{Ask, Way, names};
use crate::engine::trace::What;
use crate::engine::walk::{Flow, Walk, merge};
use crate::intervals::{Ivs, Unit};
use crate::ir::{CtDir, NfHook, ct_state};

impl<'a, T: Unit> Walk<'a, T> {
    /// The answer to the first packet.
    pub(super) fn answer(&mut self, flow: Flow<T>, iif: &str) -> Vec<Flow<T>> {
        let mut packet = (*flow.packet).clone();
        let untracked = packet.track == Track::Untracked;
        let forwarded = packet
            .oif
            .name()
            .is_some_and(|name| name != iif || !is_loopback(self.net(), name));
        let local_client = is_loopback(self.net(), iif);
        packet.dir = CtDir::Reply;
        // An answer without an entry is not taken for the start of a connection.
        packet.state = if untracked {
            ct_state::INVALID
        } else {
            ct_state::ESTABLISHED
        };
        packet.track = Track::NotYet;
        packet.mark = Some(0);
        (packet.near, packet.near_port) = packet.target;
        packet.tproxy = None;
        packet.far_is_client = !(packet.snat && forwarded);
        let node = self
            .trace
            .step(flow.node, What::Fact("the answer".into()), &[]);
        let set = flow.set.into_intervals();
        let came_in = packet.oif.clone();
        if !forwarded {
            packet.iif = Dev::None;
            packet.oif = if local_client {
                Dev::is(iif)
            } else {
                Dev::Unknown
            };
            let flow = Flow::new(Rc::new(packet), set, node);
            let flows = if local_client {
                vec![flow]
            } else {
                self.route_answer_from(flow, iif)
            };
            let flows = self.stage(NfHook::Output, flows, false);
            flows.iter().for_each(|flow| self.half_tracked(flow));
            let flows = self.leave_by(flows);
            if !local_client {
                return flows;
            }
            let back = |mut flow: Flow<T>| {
                let packet = Rc::make_mut(&mut flow.packet);
                packet.iif = Dev::is(iif);
                packet.oif = Dev::None;
                flow
            };
            let flows = flows.into_iter().map(back).collect();
            let flows = self.stage(NfHook::Prerouting, flows, false);
            return self.stage(NfHook::Input, flows, false);
        }
        packet.iif = came_in;
        packet.oif = Dev::None;
        let mut out = vec![];
        for flow in self.stage(
            NfHook::Prerouting,
            vec![Flow::new(Rc::new(packet), set, node)],
            false,
        ) {
            self.half_tracked(&flow);
            let Some(routing) = self.routing else {
                continue;
            };
            let packet = flow.packet.clone();
            let interface = packet
                .iif
                .name()
                .and_then(|n| self.engine.net?.interface(n));
            for part in routing.route(&Ask::of(&packet), flow.set.into_intervals()) {
                match part.way {
                    Way::Local if local_client => {
                        let flow = Flow::new(packet.clone(), part.set, node);
                        out.extend(self.stage(NfHook::Input, vec![flow], false));
                    }
                    // On a bridge the answer goes back by the bridge itself.
                    Way::Out(oifs) if packet.iif == Dev::is(iif) => {
                        let _ = oifs;
                        out.push(Flow::new(packet.clone(), part.set, node));
                    }
                    Way::Out(oifs) => {
                        for (flow, next) in self.through(&packet, node, part.set, &oifs, interface)
                        {
                            out.extend(self.deliver(flow, next, false));
                        }
                    }
                    way => self.refuse_answer(node, part.set, &way, part.maybe),
                }
            }
        }
        merge(out)
    }

    pub(super) fn refuse_answer(&mut self, node: u32, set: Ivs<T>, way: &Way, maybe: bool) {
        let text = match way {
            Way::NoRoute => "no route back to the source".to_string(),
            Way::Refused(what) => format!("{what} back to the source"),
            Way::Local => "the source is this host's own address".into(),
            Way::Broadcast(_) | Way::Multicast => "the source is no single host's address".into(),
            Way::Out(_) => "routed elsewhere".into(),
        };
        self.fact(node, set, text, Verdict::Drop, !maybe);
    }

    /// Where this host's answers leave.
    pub(super) fn route_answer_from(&mut self, flow: Flow<T>, iif: &str) -> Vec<Flow<T>> {
        let scoped: Option<(T, T)> = "fe80::/10".parse().ok().and_then(T::prefix);
        let mut flow = flow;
        let link_local = flow.set.take(scoped.as_slice());
        let mut out = vec![];
        if !link_local.is_empty() {
            // A link-local client is answered on the link that it is on, if that has link-local addresses at all.
            let own = |a: &crate::InterfaceAddress| matches!(a.net.addr(), IpAddr::V6(a) if a.segments()[0] & 0xffc0 == 0xfe80);
            let link = self.net().and_then(|n| n.interface(iif));
            if !link.is_some_and(|i| i.addresses.iter().any(own)) {
                let text = "no link-local address to answer from".to_string();
                self.fact(flow.node, link_local.clone(), text, Verdict::Drop, false);
            }
            let mut packet = (*flow.packet).clone();
            packet.oif = Dev::is(iif);
            out.push(Flow::new(Rc::new(packet), link_local, flow.node));
        }
        out.extend(self.route_answer(flow));
        out
    }

    pub(super) fn route_answer(&mut self, flow: Flow<T>) -> Vec<Flow<T>> {
        let (Some(routing), Some(net)) = (self.routing, self.engine.net) else {
            return vec![flow];
        };
        let (packet, node) = (flow.packet, flow.node);
        if packet
            .oif
            .name()
            .is_some_and(|name| is_loopback(Some(net), name))
        {
            return vec![Flow::new(packet, flow.set.into_intervals(), node)];
        }
        let mut ask = Ask::of(&packet);
        ask.iif = "lo";
        let mut out = vec![];
        for part in routing.route(&ask, flow.set.into_intervals()) {
            match part.way {
                Way::Out(oifs) => {
                    for oif in names(net, &oifs) {
                        let mut packet = (*packet).clone();
                        packet.oif = oif;
                        out.push(Flow::new(Rc::new(packet), part.set.clone(), node));
                    }
                }
                // This host's own answer to a broadcast address goes out on its link as a broadcast: seen.
                Way::Broadcast(oif) => {
                    let mut packet = (*packet).clone();
                    if self.engine.tables.iter().any(|t| t.marks_connections) {
                        // A copy of it comes back in (ip_mc_output): as a looped packet of this connection, which
                        // rpfilter lets pass, it runs through prerouting and input and may be given another mark.
                        packet.ct_mark = None;
                    }
                    let link = oif.and_then(|oif| names(net, &[oif]).pop());
                    packet.oif = link.unwrap_or(Dev::Unknown);
                    out.push(Flow::new(Rc::new(packet), part.set, node));
                }
                way => self.refuse_answer(node, part.set, &way, part.maybe),
            }
        }
        merge(out)
    }
}
