//! Lookups in sets, maps and ipsets: slices by the fixed fields, leaving a set of clients.
use std::collections::HashMap;
use std::rc::Rc;

use super::matching::{Holds, In, name_in};
use super::packet::{Got, Packet};
use super::walk::Walk;
use crate::intervals::{self, Ivs, Unit};
use crate::ir::{Direction, Element, Field, IntSet, IpSet, Key, NftSet, Operand, SetRef};

/// A lookup's result: who surely finds an element, and for whom it is open.
#[derive(Debug, Clone, Default)]
pub(super) struct Slice<T> {
    pub(super) sure: Ivs<T>,
    pub(super) maybe: Ivs<T>,
}

/// Results by (address of the set, the fixed fields).
pub(super) type Cache<T> = HashMap<(usize, Vec<Fixed>), Rc<Slice<T>>>;

/// A part of a key, ready to compare.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Fixed {
    Int(u64),
    FarPort(u16),
    Addr(std::net::IpAddr),
    Name(String),
    Far,
    Unknown,
}

/// Small sets are quicker to look through than to remember.
const WORTH_CACHING: usize = 16;

impl<'a, T: Unit> Walk<'a, T> {
    /// The parts of a key; `None` when the packet lacks one, so that nothing matches.
    pub(super) fn parts(&mut self, keys: &[Operand], packet: &Packet) -> Option<Vec<Fixed>> {
        let mut parts = Vec::with_capacity(keys.len());
        for operand in keys {
            let mask = operand.mask.map(|m| m as u64);
            parts.push(match packet.get(&operand.key, self.hook, self.net()) {
                Got::Absent => return None,
                Got::Int(value) => Fixed::Int(value & mask.unwrap_or(u64::MAX)),
                Got::Far if operand.mask.is_none() => Fixed::Far,
                Got::Addr(a) if operand.mask.is_none() => Fixed::Addr(a),
                Got::FarPort(port) if mask.is_none() => Fixed::FarPort(port),
                // An index is compared by the name that the reader put for it.
                Got::Name(name) => Fixed::Name(name.to_string()),
                _ => Fixed::Unknown,
            });
        }
        Some(parts)
    }

    /// Whether one field of an element takes a fixed part; `Ok(set)` for the client's address.
    pub(super) fn field(&mut self, field: &Field, part: &Fixed) -> Result<Ivs<T>, In> {
        Err(match (field, part) {
            (Field::Any, _) => In::Yes,
            (Field::Unknown(_), _) | (_, Fixed::Unknown) => In::Maybe,
            (Field::Addr(first, last), Fixed::Far) => {
                return Ok(match (T::from_ip(*first), T::from_ip(*last)) {
                    (Some(a), Some(b)) if a <= b => vec![(a, b)],
                    _ => vec![],
                });
            }
            (Field::Addr(first, last), Fixed::Addr(a)) => {
                In::of(first.is_ipv4() == a.is_ipv4() && first <= a && a <= last)
            }
            (Field::Int(first, last), Fixed::Int(value)) => In::of(first <= value && value <= last),
            (Field::Int(first, last), Fixed::FarPort(port)) => {
                self.int_in(Got::FarPort(*port), None, &IntSet::range(*first, *last))
            }
            (Field::Name(pattern), Fixed::Name(name)) => {
                name_in(name, std::slice::from_ref(pattern))
            }
            (Field::Int(first, last), Fixed::Name(name)) => {
                let index = self
                    .net()
                    .and_then(|n| n.interface(name))
                    .map(|i| u64::from(i.index));
                index.map_or(In::Maybe, |i| In::of(*first <= i && i <= *last))
            }
            _ => In::Maybe,
        })
    }

    /// Whom an element takes: `None` nobody; else its clients (`None`: all) and whether surely.
    pub(super) fn element(
        &mut self,
        element: &Element,
        parts: &[Fixed],
    ) -> Option<(Option<Ivs<T>>, bool)> {
        let mut sure = !element.conditional;
        let mut set: Option<Ivs<T>> = None;
        // A lone `*` stands for the whole key.
        let catch_all = matches!(element.key[..], [Field::Any]);
        if !catch_all && element.key.len() != parts.len() {
            return Some((None, false));
        }
        for (field, part) in element.key.iter().zip(parts) {
            match self.field(field, part) {
                Ok(clients) if clients.is_empty() => return None,
                Ok(clients) => {
                    set = Some(match set {
                        Some(known) => intervals::intersect(&known, &clients),
                        None => clients,
                    })
                }
                Err(In::Yes) => {}
                Err(In::No) => return None,
                Err(In::Maybe) => sure = false,
            }
        }
        Some((set, sure))
    }

    fn slice(&mut self, set: &'a NftSet, parts: Vec<Fixed>) -> Rc<Slice<T>> {
        let by_port = parts.iter().any(|p| matches!(p, Fixed::FarPort(_)));
        let cacheable = !by_port && set.elements.len() >= WORTH_CACHING;
        let id = (std::ptr::from_ref(set) as usize, parts);
        if cacheable && let Some(known) = self.cached(&id) {
            return known;
        }
        let all = (T::MIN, T::MAX);
        let (mut sure, mut maybe) = (Vec::new(), Vec::new());
        for element in &set.elements {
            if let Some((clients, certain)) = self.element(element, &id.1) {
                let into = if certain { &mut sure } else { &mut maybe };
                match clients {
                    Some(clients) => into.extend(clients),
                    None => into.push(all),
                }
            }
        }
        if set.incomplete {
            maybe = vec![all];
        }
        let sure = intervals::normalise(sure);
        let maybe = intervals::subtract(&intervals::normalise(maybe), &sure);
        let slice = Rc::new(Slice { sure, maybe });
        if cacheable {
            self.remember(id, slice.clone());
        }
        slice
    }

    /// `KEYS @set`.
    pub(super) fn lookup(
        &mut self,
        table: usize,
        keys: &[Operand],
        set: &'a SetRef,
        packet: &Packet,
        negate: bool,
    ) -> Holds<'a, T> {
        let Some(parts) = self.parts(keys, packet) else {
            return Holds::No;
        };
        let compiled = self.table(table);
        let Some(found) = compiled.resolve(set) else {
            return Holds::Maybe;
        };
        let (grow, shrink) = match set {
            SetRef::Named(name) => {
                let name = name.as_str();
                (
                    compiled.changes.grow.contains(name),
                    compiled.changes.shrink.contains(name),
                )
            }
            SetRef::Anonymous(_) => (false, false),
        };
        let slice = self.slice(found, parts);
        changing(&slice, grow, shrink).negate_if(negate)
    }

    /// `-m set --match-set`.
    pub(super) fn ipset(
        &mut self,
        name: &str,
        directions: &[Direction],
        packet: &Packet,
        depth: u8,
    ) -> Holds<'a, T> {
        let Some(set) = self.engine.rules.ipset(name) else {
            return Holds::Maybe;
        };
        let (grow, shrink) = self.engine.ipset_changes(name);
        if let Some(family) = set.family
            && family != packet.ip
        {
            return Holds::No;
        }
        if set.kind.starts_with("list:") {
            return self.list_set(set, directions, packet, depth);
        }
        let Some(parts) = self.ipset_parts(set, directions, packet) else {
            return Holds::No;
        };
        let slice = self.ipset_slice(set, parts);
        changing(&slice, grow, shrink)
    }

    /// A list of sets: the first member that has the element.
    fn list_set(
        &mut self,
        set: &'a IpSet,
        directions: &[Direction],
        packet: &Packet,
        depth: u8,
    ) -> Holds<'a, T> {
        let mut all = Slice {
            sure: vec![],
            maybe: vec![],
        };
        let everyone = vec![(T::MIN, T::MAX)];
        for entry in &set.entries {
            let member = match &entry.key[..] {
                [Field::Name(member)] if depth < 4 => {
                    self.ipset(&member.name, directions, packet, depth + 1)
                }
                _ => Holds::Maybe,
            };
            match member {
                Holds::Yes => all.sure = everyone.clone(),
                Holds::No => {}
                Holds::Maybe => all.maybe = everyone.clone(),
                Holds::For {
                    sure,
                    negate,
                    maybe,
                } => {
                    let sure = if negate {
                        intervals::complement(&sure)
                    } else {
                        sure.into_owned()
                    };
                    all.sure = intervals::union(&all.sure, &intervals::subtract(&sure, &maybe));
                    all.maybe = intervals::union(&all.maybe, &maybe);
                }
            }
        }
        if set.incomplete {
            all.maybe = everyone;
        }
        all.maybe = intervals::subtract(&all.maybe, &all.sure);
        changing(&all, false, false)
    }

    fn ipset_parts(
        &mut self,
        set: &IpSet,
        directions: &[Direction],
        packet: &Packet,
    ) -> Option<Vec<Fixed>> {
        let dimensions = set.kind.split_once(':').map_or("", |(_, d)| d);
        let mut parts = vec![];
        for (i, dimension) in dimensions.split(',').enumerate() {
            // ip_set_match.c: missing directions mean destination, extra ones are ignored.
            let src = directions.get(i) == Some(&Direction::Src);
            let ip = packet.ip;
            let key = match (dimension, src) {
                ("ip" | "net", true) => Key::Saddr(ip),
                ("ip" | "net", false) => Key::Daddr(ip),
                ("port", true) => Key::Sport,
                ("port", false) => Key::Dport,
                ("iface", true) => Key::IifName,
                ("iface", false) => Key::OifName,
                ("mark", _) => Key::Mark,
                _ => Key::Other(String::new()),
            };
            let mask = set.markmask.filter(|_| key == Key::Mark).map(u128::from);
            parts.extend(self.parts(&[Operand { key, mask }], packet)?);
        }
        // Ports are compared together with the protocol.
        parts.push(Fixed::Int(packet.proto.into()));
        Some(parts)
    }

    fn ipset_slice(&mut self, set: &'a IpSet, mut parts: Vec<Fixed>) -> Rc<Slice<T>> {
        let cacheable = set.entries.len() >= WORTH_CACHING
            && !parts.iter().any(|p| matches!(p, Fixed::FarPort(_)));
        let id = (std::ptr::from_ref(set) as usize, parts.clone());
        if cacheable && let Some(known) = self.cached(&id) {
            return known;
        }
        let proto = match parts.pop() {
            Some(Fixed::Int(proto)) => proto as u8,
            _ => 0,
        };
        let all = (T::MIN, T::MAX);
        let (mut sure, mut maybe, mut except) = (Vec::new(), Vec::new(), Vec::new());
        let mut scoped = false;
        // ip_set_hash_gen.h looks no further than the first prefix length with an entry for the address, of whatever
        // link: a narrower network of another link may hide a wider one of this (IP_SET_HASH_WITH_MULTI).
        let by_link = set.kind.ends_with(",iface");
        let mut others: Ivs<T> = Vec::new();
        for entry in &set.entries {
            let mut clients: Option<Ivs<T>> = None;
            let mut fits = if entry.key.len() == parts.len() {
                In::Yes
            } else {
                In::Maybe
            };
            let mut failed_at = 0;
            for (at, (field, part)) in entry.key.iter().zip(&parts).enumerate() {
                failed_at = at;
                let one = match (field, part) {
                    (Field::Port { proto: Some(p), .. }, _) if *p != proto => Err(In::No),
                    (Field::Port { first, last, .. }, part) => {
                        self.field(&Field::Int(u64::from(*first), u64::from(*last)), part)
                    }
                    (field, part) => self.field(&widen(field, set), part),
                };
                match one {
                    Ok(set) if set.is_empty() => fits = In::No,
                    Ok(set) => {
                        clients = Some(match clients {
                            Some(known) => intervals::intersect(&known, &set),
                            None => set,
                        })
                    }
                    Err(In::No) => fits = In::No,
                    Err(In::Maybe) if fits == In::Yes => fits = In::Maybe,
                    Err(_) => {}
                }
                if fits == In::No {
                    break;
                }
            }
            if fits == In::No {
                if by_link && failed_at > 0 {
                    others.extend(clients.unwrap_or_else(|| vec![all]));
                }
                continue;
            }
            scoped |= clients.is_none();
            let clients = clients.unwrap_or_else(|| vec![all]);
            if clients.is_empty() {
                continue;
            }
            if entry.nomatch {
                except.extend(clients);
            } else if fits == In::Yes {
                sure.push((clients, entry));
            } else {
                maybe.extend(clients);
            }
        }
        let others = intervals::normalise(others);
        if !others.is_empty() {
            for (clients, _) in &mut sure {
                maybe.extend(intervals::intersect(clients, &others));
                *clients = intervals::subtract(clients, &others);
            }
        }
        let except = intervals::normalise(except);
        let slice = finish(
            sure,
            maybe,
            except,
            scoped || parts.len() > 1,
            set.incomplete,
        );
        let slice = Rc::new(slice);
        if cacheable {
            self.remember(id, slice.clone());
        }
        slice
    }

    fn cached(&self, id: &(usize, Vec<Fixed>)) -> Option<Rc<Slice<T>>> {
        self.cache.borrow().get(id).cloned()
    }
    fn remember(&self, id: (usize, Vec<Fixed>), slice: Rc<Slice<T>>) {
        self.cache.borrow_mut().insert(id, slice);
    }
}

/// Applies `nomatch` entries: a narrower prefix overrules a wider one.
fn finish<T: Unit>(
    sure: Vec<(Ivs<T>, &crate::ir::IpSetEntry)>,
    maybe: Ivs<T>,
    except: Ivs<T>,
    many: bool,
    incomplete: bool,
) -> Slice<T> {
    let mut matched = Vec::new();
    let mut open = maybe;
    for (clients, _) in &sure {
        let overruled = if except.is_empty() {
            vec![]
        } else {
            intervals::intersect(clients, &except)
        };
        if overruled.is_empty() {
            matched.extend_from_slice(clients);
        } else if many {
            // With several dimensions the order of the prefix lengths decides, which is not modelled.
            matched.extend(intervals::subtract(clients, &except));
            open.extend(overruled);
        } else if overruled == *clients {
            // This entry lies within an exception. It is the narrower one unless it is the same prefix, and the
            // same prefix cannot be there twice.
            let equal = except.binary_search(&clients[0]).is_ok();
            if equal {
                open.extend(overruled)
            } else {
                matched.extend_from_slice(clients)
            }
        } else {
            matched.extend(intervals::subtract(clients, &except));
        }
    }
    let sure = intervals::normalise(matched);
    if incomplete {
        open = vec![(T::MIN, T::MAX)];
    }
    let maybe = intervals::subtract(&intervals::normalise(open), &sure);
    Slice { sure, maybe }
}

/// `netmask N`: the packet's address is cut before the lookup, so an entry stands for the whole network.
fn widen<'f>(field: &'f Field, set: &IpSet) -> std::borrow::Cow<'f, Field> {
    if let (Some(len), Field::Addr(first, last)) = (set.netmask, field)
        && first == last
        && let Ok(net) = ipnet::IpNet::new(*first, len)
    {
        return std::borrow::Cow::Owned(Field::Addr(net.network(), net.broadcast()));
    }
    std::borrow::Cow::Borrowed(field)
}

/// A set that rules add to: who is not in it may be by the time; one that they take from: who is in it may not be.
fn changing<'a, T: Unit>(slice: &Slice<T>, grow: bool, shrink: bool) -> Holds<'a, T> {
    let all = (T::MIN, T::MAX);
    match (grow, shrink) {
        (true, true) => return Holds::Maybe,
        (true, false) => {
            return Holds::For {
                sure: slice.sure.clone().into(),
                negate: false,
                maybe: intervals::complement(&slice.sure),
            };
        }
        (false, true) => {
            return Holds::For {
                sure: vec![].into(),
                negate: false,
                maybe: intervals::union(&slice.sure, &slice.maybe),
            };
        }
        (false, false) => {}
    }
    if slice.maybe.is_empty() && slice.sure.is_empty() {
        return Holds::No;
    }
    if slice.sure == [all] {
        return Holds::Yes;
    }
    if slice.maybe == [all] {
        return Holds::Maybe;
    }
    Holds::For {
        sure: slice.sure.clone().into(),
        negate: false,
        maybe: slice.maybe.clone(),
    }
}
