//! The hooks that a packet passes, under IP and in it, with the chains on each in the kernel's order.
use std::rc::Rc;

use super::is_bridge;
use crate::Interface;
use crate::engine::compile::before_routing;
use crate::engine::packet::{Dev, Packet, Track};
use crate::engine::trace::What;
use crate::engine::walk::{Flow, Walk, merge};
use crate::intervals::Unit;
use crate::ir::{ChainKind, Family, Ipv, NfHook, ct_state};

/// Conntrack looks at packets at this priority (NF_IP_PRI_CONNTRACK).
const CONNTRACK: i32 = -200;
/// DNAT (NF_IP_PRI_NAT_DST) and SNAT (NF_IP_PRI_NAT_SRC).
const NAT_DST: i32 = -100;
const NAT_SRC: i32 = 100;

impl<'a, T: Unit> Walk<'a, T> {
    /// Devices and bridges under the IP layer: netdev and bridge tables.
    pub(super) fn below(&mut self, flow: Flow<T>, interface: &Interface) -> Vec<Flow<T>> {
        let flows = self.ingress(vec![flow], interface);
        if !is_bridge(interface) {
            return flows;
        }
        let flows = self.bridge_hook(NfHook::Prerouting, flows);
        self.bridge_hook(NfHook::Input, flows)
    }

    /// Ingress chains of the device itself, and of devices that may have handed the packet to it.
    pub(super) fn ingress(
        &mut self,
        mut flows: Vec<Flow<T>>,
        interface: &Interface,
    ) -> Vec<Flow<T>> {
        let lower = |name: &str| {
            let net = self.engine.net;
            let other = net.and_then(|n| n.interface(name));
            other.is_some_and(|o| o.master == Some(interface.index))
        };
        let bound: Vec<(usize, bool)> = self
            .engine
            .hooked
            .iter()
            .enumerate()
            .filter(|(_, h)| h.base.hook == NfHook::Ingress)
            .filter_map(|(i, h)| {
                let here = h.base.devices.iter().any(|d| d.matches(&interface.name));
                let under = self.engine.net.is_some_and(|n| {
                    let mut ports = n.interfaces.iter().filter(|i| lower(&i.name));
                    ports.any(|p| h.base.devices.iter().any(|d| d.matches(&p.name)))
                });
                (here || under).then_some((i, here))
            })
            .collect();
        self.hook = NfHook::Ingress;
        for (index, here) in bound {
            let hooked = &self.engine.hooked[index];
            let (table, chain) = (hooked.table, hooked.chain);
            let mut next = vec![];
            for flow in flows {
                // By another port it may not pass this chain at all.
                if !here {
                    next.push(flow.clone());
                }
                next.extend(self.base(table, chain, flow, false, false));
            }
            flows = merge(next);
        }
        flows
    }

    /// Bridge tables: which port a frame takes is not known, so ports are unknown devices there.
    pub(super) fn bridge_hook(&mut self, hook: NfHook, mut flows: Vec<Flow<T>>) -> Vec<Flow<T>> {
        let chains: Vec<(usize, usize)> = self
            .engine
            .hooked
            .iter()
            .filter(|h| {
                h.base.hook == hook && self.engine.tables[h.table].table.family == Family::Bridge
            })
            .map(|h| (h.table, h.chain))
            .collect();
        self.hook = hook;
        for (table, chain) in chains {
            let mut next = vec![];
            for flow in flows {
                let (iif, oif) = (flow.packet.iif.clone(), flow.packet.oif.clone());
                let mut inside = flow;
                {
                    let packet = Rc::make_mut(&mut inside.packet);
                    packet.iif = Dev::Unknown;
                    packet.oif = Dev::Unknown;
                }
                for mut flow in self.base(table, chain, inside, false, false) {
                    let packet = Rc::make_mut(&mut flow.packet);
                    packet.iif = iif.clone();
                    packet.oif = oif.clone();
                    next.push(flow);
                }
            }
            flows = merge(next);
        }
        flows
    }

    /// True when the destination is on the very link that the packet comes from: a bridge passes it on itself.
    pub(super) fn is_same_link(&self, bridge: &Interface, packet: &Packet) -> bool {
        let Some(near) = packet.near.filter(|_| is_bridge(bridge)) else {
            return false;
        };
        let own = bridge.addresses.iter().any(|a| a.net.addr() == near);
        !own && bridge.addresses.iter().any(|a| a.net.contains(&near))
    }

    /// From one port of a bridge to another: IP rules see it only with br_netfilter.
    pub(super) fn bridged(
        &mut self,
        flow: Flow<T>,
        bridge: &Interface,
        first: bool,
    ) -> Vec<Flow<T>> {
        let net = self.engine.net;
        let filtered = net.and_then(|n| match flow.packet.ip {
            Ipv::V4 => n.sysctls.bridge_nf_call_iptables,
            Ipv::V6 => n.sysctls.bridge_nf_call_ip6tables,
        });
        let text = format!("stays on the bridge {}", bridge.name);
        let node = self.trace.step(flow.node, What::Fact(text), &[]);
        let mut out = vec![];
        if filtered != Some(true) {
            let mut copy = Flow::new(flow.packet.clone(), flow.set.intervals(), node);
            Rc::make_mut(&mut copy.packet).oif = Dev::is(&bridge.name);
            if first {
                self.accept_fact(&copy);
            }
            out.extend(self.bridge_hook(NfHook::Forward, vec![copy]));
        }
        if filtered != Some(false) {
            for flow in self.stage(NfHook::Prerouting, vec![flow], false) {
                let mut flow = Flow::new(flow.packet, flow.set.into_intervals(), node);
                Rc::make_mut(&mut flow.packet).oif = Dev::is(&bridge.name);
                let flows = self.stage(NfHook::Forward, vec![flow], first);
                out.extend(self.bridge_hook(NfHook::Forward, flows));
            }
        }
        out
    }

    /// All IP chains of a hook, in the kernel's order, with conntrack and NAT in their places.
    pub(in crate::engine) fn stage(
        &mut self,
        hook: NfHook,
        flows: Vec<Flow<T>>,
        keep: bool,
    ) -> Vec<Flow<T>> {
        let tracks = before_routing(hook) || hook == NfHook::Output;
        let nat_at = if tracks { NAT_DST } else { NAT_SRC };
        self.hook = hook;
        let mut from = i32::MIN;
        let mut flows = flows;
        if tracks {
            flows = self.filters(hook, flows, from, CONNTRACK - 1, keep);
            flows = self.beside(hook, flows, CONNTRACK, keep, |_, mut flows| {
                flows
                    .iter_mut()
                    .for_each(|flow| track(Rc::make_mut(&mut flow.packet)));
                merge(flows)
            });
            from = CONNTRACK + 1;
        }
        flows = self.filters(hook, flows, from, nat_at - 1, keep);
        flows = self.beside(hook, flows, nat_at, keep, |walk, flows| {
            walk.nat(hook, flows, keep)
        });
        self.filters(hook, flows, nat_at + 1, i32::MAX, keep)
    }

    /// The kernel's own step at a priority, and the chains that share it: whichever was registered last goes
    /// first, which no dump tells.
    fn beside(
        &mut self,
        hook: NfHook,
        flows: Vec<Flow<T>>,
        at: i32,
        keep: bool,
        step: impl Fn(&mut Self, Vec<Flow<T>>) -> Vec<Flow<T>>,
    ) -> Vec<Flow<T>> {
        let Some(ip) = flows.first().map(|f| f.packet.ip) else {
            return flows;
        };
        let shared = |kind, priority| kind != ChainKind::Nat && priority == at;
        if self.chains(hook, ip, shared).is_empty() {
            return step(self, flows);
        }
        let before = self.filters(hook, flows.clone(), at, at, keep);
        let mut out = step(self, before);
        let after = step(self, flows);
        out.extend(self.filters(hook, after, at, at, keep));
        merge(out)
    }

    pub(super) fn chains(
        &self,
        hook: NfHook,
        ip: Ipv,
        pick: impl Fn(ChainKind, i32) -> bool,
    ) -> Vec<(usize, usize)> {
        let tables = &self.engine.tables;
        let hooked = self.engine.hooked.iter().filter(|h| {
            h.base.hook == hook
                && tables[h.table].table.family.sees(ip)
                && pick(h.base.kind, h.base.priority)
        });
        hooked.map(|h| (h.table, h.chain)).collect()
    }

    pub(super) fn filters(
        &mut self,
        hook: NfHook,
        flows: Vec<Flow<T>>,
        from: i32,
        to: i32,
        keep: bool,
    ) -> Vec<Flow<T>> {
        let Some(ip) = flows.first().map(|f| f.packet.ip) else {
            return flows;
        };
        let chains = self.chains(hook, ip, |kind, priority| {
            kind != ChainKind::Nat && (from..=to).contains(&priority)
        });
        let mut out = vec![];
        for order in self.orders(chains) {
            let mut passing = flows.clone();
            for (table, chain) in order {
                let mut next = vec![];
                for flow in passing {
                    let mark = flow.packet.mark;
                    for flow in self.base(table, chain, flow, false, keep) {
                        // ip_route_me_harder: a mark set on output has the packet routed again.
                        if hook == NfHook::Output
                            && flow.packet.mark != mark
                            && !flow.packet.original()
                        {
                            next.extend(self.route_answer(flow));
                        } else {
                            next.push(flow);
                        }
                    }
                }
                passing = merge(next);
            }
            out.extend(passing);
        }
        merge(out)
    }

    /// The orders in which chains may run: at equal priority the one registered last goes first, which no dump
    /// tells. It matters where one changes what the other sees.
    pub(super) fn orders(&self, chains: Vec<(usize, usize)>) -> Vec<Vec<(usize, usize)>> {
        let tables = &self.engine.tables;
        let priority = |&(table, chain): &(usize, usize)| {
            let base = &tables[table].chain(chain).base;
            base.as_ref().map(|b| b.priority)
        };
        let open = chains
            .windows(2)
            .filter(|pair| priority(&pair[0]) == priority(&pair[1]))
            .flatten()
            .any(|(table, _)| tables[*table].writes);
        if !open {
            return vec![chains];
        }
        let groups = chains.chunk_by(|a, b| priority(a) == priority(b));
        let other = groups.flat_map(|g| g.iter().rev().copied()).collect();
        vec![chains, other]
    }

    /// The nat chains of a hook: for the first packet only; later ones follow the mapping.
    pub(super) fn nat(&mut self, hook: NfHook, flows: Vec<Flow<T>>, keep: bool) -> Vec<Flow<T>> {
        let Some(ip) = flows.first().map(|f| f.packet.ip) else {
            return flows;
        };
        let chains = self.chains(hook, ip, |kind, _| kind == ChainKind::Nat);
        let mut out = vec![];
        for order in self.orders(chains) {
            let mut passing = flows.clone();
            for (table, chain) in order {
                let mut next = vec![];
                for flow in passing {
                    let packet = &flow.packet;
                    let asked = packet.track == Track::Tracked
                        && packet.state == ct_state::NEW
                        && !packet.nat_done;
                    if asked && packet.original() {
                        next.extend(self.base(table, chain, flow, true, keep));
                    } else {
                        next.push(flow);
                    }
                }
                passing = merge(next);
            }
            out.extend(passing);
        }
        let mut flows = merge(out);
        for flow in &mut flows {
            let packet = Rc::make_mut(&mut flow.packet);
            packet.nat_done = false;
            let source_nat = matches!(hook, NfHook::Postrouting | NfHook::Input);
            if packet.original()
                && packet.track == Track::Tracked
                && !source_nat
                && packet.dnat == Some(true)
            {
                (packet.near, packet.near_port) = packet.target;
            }
            if packet.snat {
                // Translated on the way out, and back before an answer is routed.
                packet.far_is_client = !(packet.original() && source_nat);
            }
        }
        merge(flows)
    }
}

/// Conntrack's hook: from here on the state is known.
pub(super) fn track(packet: &mut Packet) {
    if packet.track == Track::NotYet {
        packet.track = Track::Tracked;
    }
}
