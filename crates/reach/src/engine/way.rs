//! The packet's way through the host: hooks, conntrack, NAT, routing; there, back, and there again.
use std::net::IpAddr;
use std::rc::Rc;

use super::compile::before_routing;
use super::packet::{Dev, Packet, Track};
use super::route::{Ask, Way, loopback, names};
use super::trace::What;
use super::walk::{Flow, Walk, merge};
use crate::intervals::{self, Ivs, Unit};
use crate::ir::{ChainKind, CtDir, Family, Ipv, NfHook, ct_state};
use crate::{Interface, Verdict};

/// Conntrack looks at packets at this priority (NF_IP_PRI_CONNTRACK).
const CONNTRACK: i32 = -200;
/// DNAT (NF_IP_PRI_NAT_DST) and SNAT (NF_IP_PRI_NAT_SRC).
const NAT_DST: i32 = -100;
const NAT_SRC: i32 = 100;

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
        self.accepts.push(super::walk::Record {
            set: flow.set.intervals(),
            node: flow.node,
            verdict: Verdict::Accept,
            explicit: false,
            packet: Some(flow.packet.clone()),
        });
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
        let node = self.trace.step(node, What::Fact(text), &conditions);
        self.drop(set, node, verdict);
    }

    /// Devices and bridges under the IP layer: netdev and bridge tables.
    fn below(&mut self, flow: Flow<T>, interface: &Interface) -> Vec<Flow<T>> {
        let flows = self.ingress(vec![flow], interface);
        if !is_bridge(interface) {
            return flows;
        }
        let flows = self.bridge_hook(NfHook::Prerouting, flows);
        self.bridge_hook(NfHook::Input, flows)
    }

    /// Ingress chains of the device itself, and of devices that may have handed the packet to it.
    fn ingress(&mut self, mut flows: Vec<Flow<T>>, interface: &Interface) -> Vec<Flow<T>> {
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
    fn bridge_hook(&mut self, hook: NfHook, mut flows: Vec<Flow<T>>) -> Vec<Flow<T>> {
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
    fn is_same_link(&self, bridge: &Interface, packet: &Packet) -> bool {
        let Some(near) = packet.near.filter(|_| is_bridge(bridge)) else {
            return false;
        };
        let own = bridge.addresses.iter().any(|a| a.net.addr() == near);
        !own && bridge.addresses.iter().any(|a| a.net.contains(&near))
    }

    /// From one port of a bridge to another: IP rules see it only with br_netfilter.
    fn bridged(&mut self, flow: Flow<T>, bridge: &Interface, first: bool) -> Vec<Flow<T>> {
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
    pub(super) fn stage(&mut self, hook: NfHook, flows: Vec<Flow<T>>, keep: bool) -> Vec<Flow<T>> {
        let tracks = before_routing(hook) || hook == NfHook::Output;
        let nat_at = if tracks { NAT_DST } else { NAT_SRC };
        let mut flows = flows;
        self.hook = hook;
        if tracks {
            flows = self.filters(hook, flows, i32::MIN, CONNTRACK - 1, keep);
            flows
                .iter_mut()
                .for_each(|flow| track(Rc::make_mut(&mut flow.packet)));
            flows = self.filters(hook, merge(flows), CONNTRACK, nat_at, keep);
        } else {
            flows = self.filters(hook, flows, i32::MIN, nat_at - 1, keep);
        }
        flows = self.nat(hook, flows, keep);
        if tracks {
            flows = self.filters(hook, flows, nat_at + 1, i32::MAX, keep);
        } else {
            flows = self.filters(hook, flows, nat_at, i32::MAX, keep);
        }
        flows
    }

    fn chains(
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
    fn orders(&self, chains: Vec<(usize, usize)>) -> Vec<Vec<(usize, usize)>> {
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
    fn nat(&mut self, hook: NfHook, flows: Vec<Flow<T>>, keep: bool) -> Vec<Flow<T>> {
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

    /// The routing decision on a packet from the client.
    fn decide(&mut self, flow: Flow<T>, first: bool) -> Vec<(Flow<T>, Next)> {
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
    fn through(
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

    /// The answer to the first packet.
    fn answer(&mut self, flow: Flow<T>, iif: &str) -> Vec<Flow<T>> {
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

    fn refuse_answer(&mut self, node: u32, set: Ivs<T>, way: &Way, maybe: bool) {
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
    fn route_answer_from(&mut self, flow: Flow<T>, iif: &str) -> Vec<Flow<T>> {
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

    fn route_answer(&mut self, flow: Flow<T>) -> Vec<Flow<T>> {
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

/// Conntrack's hook: from here on the state is known.
fn track(packet: &mut Packet) {
    if packet.track == Track::NotYet {
        packet.track = Track::Tracked;
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
