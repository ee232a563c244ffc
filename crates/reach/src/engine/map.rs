//! Maps: verdicts, marks and NAT targets picked by a key; and address translation itself.
use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use super::packet::{Got, Packet};
use super::walk::{At, Flow, Frame, Part, Walk, restrict};
use crate::intervals::{self, Ivs, Unit};
use crate::ir::{Data, Expr, Field, Ipv, Nat, NatKind, NfHook, Operand, SetRef};

/// Clients whose lookup gives the same data; `data` is `None` where the map's content is not known.
pub(super) struct Group<'a, T> {
    /// `None`: all.
    pub(super) clients: Option<Ivs<T>>,
    pub(super) sure: bool,
    pub(super) data: Option<&'a Data>,
}

/// A number by client.
pub(super) struct Valued<T> {
    pub(super) clients: Option<Ivs<T>>,
    pub(super) sure: bool,
    /// `None`: not known.
    pub(super) value: Option<u32>,
}

/// Where a translation leads: address and port, `None` for unknown ones.
type Targets = Vec<(Option<IpAddr>, Option<u16>)>;

/// A range of NAT targets is followed one by one up to this number; beyond it the target counts as unknown.
const MAX_TARGETS: usize = 16;

impl<'a, T: Unit> Walk<'a, T> {
    /// Parts of the clients by the element that their key finds. `None`: the packet lacks a part of the key.
    pub(super) fn partition(
        &mut self,
        table: usize,
        keys: &[Operand],
        map: &'a SetRef,
        packet: &Packet,
    ) -> Option<Vec<Group<'a, T>>> {
        let parts = self.parts(keys, packet)?;
        let compiled = self.table(table);
        let unknown = || Group {
            clients: None,
            sure: false,
            data: None,
        };
        let Some(set) = compiled.resolve(map) else {
            return Some(vec![unknown()]);
        };
        let mut found: Vec<(Option<Ivs<T>>, bool, &'a Data)> = vec![];
        let mut fallback = None;
        let mut index: HashMap<(*const Data, bool), usize> = HashMap::new();
        let mut by_verdict: HashMap<&crate::ir::RuleVerdict, usize> = HashMap::new();
        for element in &set.elements {
            let Some(data) = &element.data else { continue };
            if matches!(element.key[..], [Field::Any]) {
                fallback = Some(data);
                continue;
            }
            let Some((clients, sure)) = self.element(element, &parts) else {
                continue;
            };
            // Many elements share a verdict: one group is enough.
            let known = match (data, sure, &clients) {
                (Data::Verdict(v), true, Some(_)) => by_verdict.get(v).copied(),
                _ => index.get(&(std::ptr::from_ref(data), sure)).copied(),
            };
            match (known.and_then(|at| found.get_mut(at)), clients) {
                (Some((Some(all), _, _)), Some(clients)) => all.extend(clients),
                (_, clients) => {
                    if let (Data::Verdict(v), true, Some(_)) = (data, sure, &clients) {
                        by_verdict.insert(v, found.len());
                    } else {
                        index.insert((std::ptr::from_ref(data), sure), found.len());
                    }
                    found.push((clients, sure, data));
                }
            }
        }
        let mut groups: Vec<Group<'a, T>> = found
            .into_iter()
            .map(|(clients, sure, data)| Group {
                clients: clients.map(intervals::normalise),
                sure,
                data: Some(data),
            })
            .collect();
        if let Some(data) = fallback {
            let mut taken = groups.iter().filter(|g| g.sure);
            let rest = taken.try_fold(vec![(T::MIN, T::MAX)], |rest, group| {
                let clients = group.clients.as_ref()?;
                Some(intervals::subtract(&rest, clients))
            });
            // An exact element goes before the catch-all.
            if let Some(rest) = rest {
                let sure = groups.iter().all(|g| g.sure);
                groups.push(Group {
                    clients: Some(rest),
                    sure,
                    data: Some(data),
                });
            }
        }
        let grows =
            matches!(map, SetRef::Named(name) if compiled.changes.grow.contains(name.as_str()));
        let shrinks =
            matches!(map, SetRef::Named(name) if compiled.changes.shrink.contains(name.as_str()));
        if grows || shrinks {
            groups.iter_mut().for_each(|g| g.sure = false);
        }
        if set.incomplete || grows {
            groups.push(unknown());
        }
        Some(groups)
    }

    /// What a number expression gives, by client. Clients in no group find no element.
    pub(super) fn values(
        &mut self,
        table: usize,
        expr: &'a Expr,
        packet: &Packet,
    ) -> Vec<Valued<T>> {
        let Expr::Map { keys, map } = expr else {
            return vec![Valued {
                clients: None,
                sure: true,
                value: self.number(expr, packet),
            }];
        };
        let groups = self.partition(table, keys, map, packet).unwrap_or_default();
        let value = |group: Group<'a, T>| {
            let value = match group.data {
                Some(Data::Value(fields)) => match fields[..] {
                    [Field::Int(first, last)] if first == last => Some(first as u32),
                    _ => None,
                },
                _ => None,
            };
            Valued {
                clients: group.clients,
                sure: group.sure,
                value,
            }
        };
        groups.into_iter().map(value).collect()
    }

    fn number(&self, expr: &Expr, packet: &Packet) -> Option<u32> {
        match expr {
            Expr::Int(value) => Some(*value as u32),
            Expr::Key(key) => match packet.get(key, self.hook, self.net()) {
                Got::Int(value) => Some(value as u32),
                _ => None,
            },
            Expr::Bitwise { of, and, xor } => match self.number(of, packet) {
                Some(value) => Some((value & *and as u32) ^ *xor as u32),
                None if *and as u32 == 0 => Some(*xor as u32),
                None => None,
            },
            Expr::Xor(a, b) => Some(self.number(a, packet)? ^ self.number(b, packet)?),
            Expr::Shift(of, bits) => {
                let value = self.number(of, packet)?;
                let by = u32::from(bits.unsigned_abs());
                let shifted = if *bits < 0 {
                    value.checked_shr(by)
                } else {
                    value.checked_shl(by)
                };
                Some(shifted.unwrap_or(0))
            }
            _ => None,
        }
    }

    /// A NAT statement in a nat chain. False when it is not for packets of this family: the rule goes on.
    pub(super) fn translate(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        part: &Part<'_, T>,
        at: &At<'_>,
        nat: &'a Nat,
    ) -> bool {
        // nft_inet_nat: in an inet table, `dnat ip` says nothing to IPv6 packets.
        if let Some(Expr::Addrs(first, _)) = &nat.addr
            && Ipv::of(*first) != flow.packet.ip
        {
            return false;
        }
        if matches!(nat.kind, NatKind::Snat | NatKind::Masquerade) {
            let mut new = (*flow.packet).clone();
            new.snat = true;
            new.nat_done = true;
            self.leave(frame, flow, part, at, vec![new]);
            return true;
        }
        let (old_addr, old_port) = (flow.packet.near, flow.packet.near_port);
        let ports = match &nat.port {
            None => vec![old_port],
            Some(Expr::Ports(first, last))
                if usize::from(last.saturating_sub(*first)) < MAX_TARGETS =>
            {
                (*first..=*last).map(Some).collect()
            }
            Some(Expr::Map { keys, map }) => {
                return self.mapped(frame, flow, part, at, nat, (keys, map));
            }
            Some(_) => vec![None],
        };
        let addrs = match (nat.kind, &nat.addr) {
            (NatKind::Redirect, _) => self.redirect_address(&flow.packet),
            (_, None) => vec![old_addr],
            (_, Some(Expr::Addrs(first, last))) => {
                if nat.netmap {
                    vec![netmap(old_addr, *first, *last)]
                } else {
                    between(*first, *last)
                }
            }
            (_, Some(Expr::Map { keys, map })) => {
                return self.mapped(frame, flow, part, at, nat, (keys, map));
            }
            _ => vec![None],
        };
        let targets = addrs
            .iter()
            .flat_map(|a| ports.iter().map(|p| (*a, *p)))
            .collect();
        self.send(frame, flow, part, at, targets);
        true
    }

    /// Targets from a map: address, port, or both.
    fn mapped(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        part: &Part<'_, T>,
        at: &At<'_>,
        nat: &'a Nat,
        (keys, map): (&'a [Operand], &'a SetRef),
    ) -> bool {
        let packet = flow.packet.clone();
        let Some(groups) = self.partition(frame.table, keys, map, &packet) else {
            return true;
        };
        let other = |group: &Group<'_, T>| match group.data {
            Some(Data::Value(fields)) => {
                matches!(fields.first(), Some(Field::Addr(a, _)) if Ipv::of(*a) != packet.ip)
            }
            _ => false,
        };
        if groups.iter().any(other) {
            return false;
        }
        let fixed_addrs = match &nat.addr {
            Some(Expr::Addrs(first, last)) => between(*first, *last),
            _ if nat.kind == NatKind::Redirect => self.redirect_address(&packet),
            _ => vec![packet.near],
        };
        for group in groups {
            let narrowed = match &group.clients {
                None => part.clone(),
                Some(clients) => Some(restrict(part, clients, false)),
            };
            let targets: Targets = match group.data {
                Some(Data::Value(fields)) => match &fields[..] {
                    [Field::Addr(first, last), rest @ ..] => {
                        let ports = match rest {
                            [] => fixed_ports(nat, &packet),
                            [Field::Int(first, last)] => some_ports(*first, *last),
                            _ => vec![None],
                        };
                        let addrs = between(*first, *last);
                        addrs
                            .iter()
                            .flat_map(|a| ports.iter().map(|p| (*a, *p)))
                            .collect()
                    }
                    [Field::Int(first, last)] => {
                        let ports = some_ports(*first, *last);
                        fixed_addrs
                            .iter()
                            .flat_map(|a| ports.iter().map(|p| (*a, *p)))
                            .collect()
                    }
                    _ => vec![(None, None)],
                },
                _ => vec![(None, None)],
            };
            let mut conditions = at.conditions.to_vec();
            if !group.sure {
                conditions.push("the map's entry".into());
            }
            let here = At {
                rule: at.rule,
                statement: at.statement,
                sure: at.sure && group.sure,
                conditions: Cow::Owned(conditions),
            };
            self.send(frame, flow, &narrowed, &here, targets);
        }
        true
    }

    /// Sends the clients of `part` to each of the targets: the kernel picks one, so all are possible.
    fn send(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        part: &Part<'_, T>,
        at: &At<'_>,
        targets: Targets,
    ) {
        let new = |(addr, port): (Option<IpAddr>, Option<u16>)| {
            let mut new = (*flow.packet).clone();
            // A translation to what the packet says already is none (nf_nat_setup_info).
            let same = (addr, port) == (flow.packet.near, flow.packet.near_port);
            new.near = addr;
            new.near_port = port;
            new.target = (addr, port);
            new.dnat = if same && addr.is_some() && port.is_some() {
                flow.packet.dnat
            } else {
                Some(true)
            };
            new.nat_done = true;
            new
        };
        let packets = targets.into_iter().map(new).collect();
        self.leave(frame, flow, part, at, packets);
    }

    /// NAT ends the chain as accept does, with the packet changed.
    fn leave(
        &mut self,
        frame: &Frame,
        flow: &mut Flow<T>,
        part: &Part<'_, T>,
        at: &At<'_>,
        packets: Vec<Packet>,
    ) {
        let set = self.grab(flow, part, at.sure);
        if set.is_empty() {
            return;
        }
        let node = self.step(frame, at);
        for packet in packets {
            // Source NAT changes nothing of the way so far, and is no step of the explanation.
            let path = if packet.dnat == flow.packet.dnat && packet.near == flow.packet.near {
                flow.node
            } else {
                node
            };
            self.pass(&Rc::new(packet), set.clone(), node, path, true);
        }
    }

    /// nf_nat_redirect: the first address of the incoming interface; on output the loopback address.
    fn redirect_address(&self, packet: &Packet) -> Vec<Option<IpAddr>> {
        if self.hook == NfHook::Output {
            let lo: IpAddr = match packet.ip {
                Ipv::V4 => std::net::Ipv4Addr::LOCALHOST.into(),
                Ipv::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            return vec![Some(lo)];
        }
        let interface = packet
            .iif
            .name()
            .and_then(|name| self.net()?.interface(name));
        let mut own = interface
            .into_iter()
            .flat_map(|i| &i.addresses)
            .map(|a| a.net.addr());
        let found = match packet.ip {
            Ipv::V4 => own.find(IpAddr::is_ipv4),
            Ipv::V6 => {
                let all: Vec<IpAddr> = own.filter(IpAddr::is_ipv6).collect();
                let global =
                    |a: &&IpAddr| !matches!(a, IpAddr::V6(a) if a.segments()[0] & 0xffc0 == 0xfe80);
                all.iter().find(global).or(all.first()).copied()
            }
        };
        vec![found]
    }
}

fn fixed_ports(nat: &Nat, packet: &Packet) -> Vec<Option<u16>> {
    match &nat.port {
        None => vec![packet.near_port],
        Some(Expr::Ports(first, last)) => some_ports(u64::from(*first), u64::from(*last)),
        Some(_) => vec![None],
    }
}

fn some_ports(first: u64, last: u64) -> Vec<Option<u16>> {
    if last > 65535 || last < first || (last - first) as usize >= MAX_TARGETS {
        return vec![None];
    }
    (first..=last).map(|p| Some(p as u16)).collect()
}

fn between(first: IpAddr, last: IpAddr) -> Vec<Option<IpAddr>> {
    fn list<T: Unit>(first: T, last: T, back: impl Fn(T) -> IpAddr) -> Vec<Option<IpAddr>> {
        let count = last.bits().checked_sub(first.bits());
        match count {
            Some(count) if count < MAX_TARGETS as u128 => (0..=count)
                .map(|i| Some(back(T::from_bits(first.bits() + i))))
                .collect(),
            _ => vec![None],
        }
    }
    match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            list(u32::from(a), u32::from(b), |n| IpAddr::V4(n.into()))
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            list(u128::from(a), u128::from(b), |n| IpAddr::V6(n.into()))
        }
        _ => vec![None],
    }
}

/// Keeps the host bits, changes the network: the range's common prefix is the network part.
fn netmap(old: Option<IpAddr>, first: IpAddr, last: IpAddr) -> Option<IpAddr> {
    match (old?, first, last) {
        (IpAddr::V4(old), IpAddr::V4(a), IpAddr::V4(b)) => {
            let host = u32::from(a) ^ u32::from(b);
            Some(IpAddr::V4(
                (u32::from(a) & !host | u32::from(old) & host).into(),
            ))
        }
        (IpAddr::V6(old), IpAddr::V6(a), IpAddr::V6(b)) => {
            let host = u128::from(a) ^ u128::from(b);
            Some(IpAddr::V6(
                (u128::from(a) & !host | u128::from(old) & host).into(),
            ))
        }
        _ => None,
    }
}
