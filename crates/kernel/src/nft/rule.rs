//! One rule: nf_tables' little register machine, followed to what its expressions mean.

use super::keys::{self, Part, Protocols};
use super::set::RawSet;
use super::value::{Links, Read, Type, hex, prefix_range, values_of};
use super::{print, verdict};
use crate::netlink::{Attr, Attrs, ip};
use crate::xt;
use reach::AddrSet;
use reach::ir::{
    Condition, ConditionKind, Counters, Expr, Family, Fib, FibResult, IntSet, Ipv, Key, Match,
    NamePattern, Nat, NatKind, Operand, RuleVerdict, SetOp, SetRef, SetUpdate, Statement, Target,
    Values,
};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

/// What a rule's expressions may refer to.
pub(crate) struct Scope<'a> {
    /// Family of the table.
    pub family: Family,
    /// Sets of the table by name.
    pub sets: &'a HashMap<String, RawSet>,
    /// Names of links.
    pub links: &'a Links,
    /// Names of ipsets.
    pub ipsets: &'a xt::SetNames,
}

/// A decoded rule.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    /// What it does.
    pub statements: Vec<Statement>,
    /// Its counter.
    pub counters: Option<Counters>,
    /// Number of expressions in the kernel's rule; every one of them is in the statements, in the
    /// counters, or a load that one of these uses.
    pub expressions: usize,
    /// The xt matches and targets, and what else iptables has its own spelling for.
    pub extensions: Vec<Extension>,
    /// `-m comment`.
    pub comment: Option<String>,
}

/// A match or target of x_tables inside an nf_tables rule.
#[derive(Debug)]
pub(crate) struct Extension {
    /// True for a target.
    pub target: bool,
    /// ` -m NAME …` or ` -j NAME …`.
    pub text: String,
    /// Statements of the rule that come before its own.
    pub at: usize,
    /// Number of its own statements.
    pub len: usize,
}

/// What a register holds.
#[derive(Debug)]
enum Loaded {
    /// Fields of the packet or of its metadata, with what was computed on them.
    Fields {
        parts: Vec<Part>,
        len: usize,
        /// `(x & mask) ^ xor` over the loaded bytes.
        mask: Vec<u8>,
        xor: Vec<u8>,
        /// Bits shifted to the right; negative to the left.
        shift: i64,
        /// For a payload: base, offset.
        payload: Option<(u32, u32)>,
    },
    /// A constant.
    Constant(Vec<u8>),
    /// The result of a map lookup.
    Map { keys: Vec<Operand>, map: SetRef },
    /// Something that is not followed, as printed.
    Opaque(String),
}

/// A `>=` that waits for its `<=`.
struct Lower {
    of: Rc<Loaded>,
    data: Vec<u8>,
    statements: usize,
}

struct Machine<'a> {
    scope: &'a Scope<'a>,
    known: Protocols,
    /// The 16 registers of 4 bytes: what lies there, and at which of its bytes this one begins.
    registers: [Option<(Rc<Loaded>, usize)>; 16],
    lower: Option<Lower>,
    out: Decoded,
}

/// Decodes NFTA_RULE_EXPRESSIONS. Never fails: what is not understood is in the statements as
/// unknown.
pub(crate) fn decode(expressions: Attr<'_>, scope: &Scope<'_>) -> Decoded {
    let mut machine = Machine {
        scope,
        known: Protocols::of(scope.family),
        registers: [const { None }; 16],
        lower: None,
        out: Decoded::default(),
    };
    let list = expressions.nested();
    for element in list {
        machine.out.expressions += 1;
        machine.expression(element.nested());
    }
    if !list.intact() {
        machine.unknown("[malformed expression list]");
    }
    machine.out
}

/// The condition of a stateful expression inside a set element or a dynset.
fn stateful(expr: Attrs<'_>) -> Option<Condition> {
    let name = expr.find(1)?.text();
    let attrs = expr.find(2).map_or(Attrs(&[]), |d| d.nested());
    match name.as_str() {
        "counter" | "last" => None,
        _ => Some(condition(&name, attrs).unwrap_or_else(|| Condition {
            kind: ConditionKind::Other,
            text: format!("[{name}]"),
        })),
    }
}

/// `limit`, `connlimit` and `quota`.
fn condition(name: &str, attrs: Attrs<'_>) -> Option<Condition> {
    let kind = match name {
        "limit" => {
            let bytes = attrs.find(4).and_then(|a| a.be32()) == Some(1);
            let burst = attrs.find(3).and_then(|a| a.be32()).unwrap_or(0);
            ConditionKind::Limit {
                rate: attrs.find(1)?.be64()?,
                per: attrs.find(2)?.be64()?,
                burst: burst.into(),
                bytes,
                over: attrs.find(5).and_then(|a| a.be32()).unwrap_or(0) & 1 != 0,
            }
        }
        "connlimit" => ConditionKind::ConnLimit {
            count: attrs.find(1)?.be32()?,
            above: attrs.find(2).and_then(|a| a.be32()).unwrap_or(0) & 1 != 0,
        },
        "quota" => ConditionKind::Quota {
            bytes: attrs.find(1)?.be64()?,
            over: attrs.find(2).and_then(|a| a.be32()).unwrap_or(0) & 1 != 0,
        },
        _ => return None,
    };
    let text = print::condition(&kind);
    Some(Condition { kind, text })
}

impl Machine<'_> {
    fn push(&mut self, statement: Statement) {
        self.out.statements.push(statement);
    }

    fn unknown(&mut self, text: impl Into<String>) {
        self.push(Statement::Unknown { text: text.into() });
    }

    fn slot(register: u32) -> Option<usize> {
        match register {
            1..=4 => Some((register as usize - 1) * 4),
            8..=23 => Some(register as usize - 8),
            _ => None,
        }
    }

    fn store(&mut self, register: Option<u32>, value: Loaded, len: usize) {
        let Some(slot) = register.and_then(Self::slot) else {
            return self.unknown("[load into a register that does not exist]");
        };
        let value = Rc::new(value);
        for (i, r) in self.registers[slot..]
            .iter_mut()
            .take(len.div_ceil(4).max(1))
            .enumerate()
        {
            *r = Some((value.clone(), 4 * i));
        }
    }

    /// What begins in a register.
    fn fetch(&self, register: Option<u32>) -> Option<Rc<Loaded>> {
        let slot = Self::slot(register?)?;
        match &self.registers[slot] {
            Some((value, 0)) => Some(value.clone()),
            _ => None,
        }
    }

    fn expression(&mut self, expr: Attrs<'_>) {
        let Some(name) = expr.find(1).map(|a| a.text()) else {
            return self.unknown("[expression without a name]");
        };
        let attrs = expr.find(2).map_or(Attrs(&[]), |d| d.nested());
        if !expr.intact() || !attrs.intact() || self.known_expression(&name, attrs).is_none() {
            self.opaque(&name, attrs);
        }
    }

    /// An expression that is not understood: its result is opaque, and it may itself be a match or
    /// a verdict.
    fn opaque(&mut self, name: &str, attrs: Attrs<'_>) {
        let text = format!("[{name}]");
        let loads = matches!(
            name,
            "payload"
                | "exthdr"
                | "meta"
                | "ct"
                | "rt"
                | "socket"
                | "fib"
                | "hash"
                | "numgen"
                | "xfrm"
                | "tunnel"
                | "osf"
                | "bitwise"
                | "byteorder"
                | "inner"
        );
        let destination = match name {
            "bitwise" | "byteorder" | "hash" => 2,
            "socket" => 2,
            "inner" => 0,
            _ => 1,
        };
        let register = attrs.find(destination).and_then(|a| a.be32());
        if loads && register.is_some() {
            // As long as the longest load: whatever lay behind is not relied upon either.
            self.store(register, Loaded::Opaque(text), 64);
        } else {
            self.unknown(text);
        }
    }

    fn known_expression(&mut self, name: &str, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        match name {
            "meta" if be32(3).is_some() => self.set_meta(be32(2)?, be32(3))?,
            "meta" => self.load(be32(1), keys::meta(be32(2)?)?),
            "ct" if be32(4).is_some() => self.set_ct(be32(2)?, be32(4))?,
            "ct" => {
                let direction = a.find(3).and_then(|x| x.u8());
                let read = keys::ct(be32(2)?, direction, self.known.l3)?;
                self.load(be32(1), read);
            }
            "fib" => self.load(be32(1), keys::fib(a)?),
            "rt" => self.load(be32(1), keys::rt(be32(2)?)?),
            "socket" => {
                let read = keys::socket(be32(1)?, be32(3).unwrap_or(0))?;
                self.load(be32(2), read);
            }
            "payload" if be32(5).is_some() => self.set_payload(a)?,
            "payload" => {
                let (base, offset, len) = (be32(2)?, be32(3)?, be32(4)?);
                let parts = keys::payload(base, offset, len, self.known);
                self.fields(be32(1), parts, len as usize, Some((base, offset)))?;
            }
            "exthdr" => self.exthdr(a)?,
            "numgen" => {
                let key = Key::NumGen {
                    modulus: be32(2)?,
                    offset: be32(4).unwrap_or(0),
                };
                let ty = Type::Int { len: 4, big: false };
                self.load(be32(1), Read { key, ty });
            }
            "hash" => {
                let key = Key::Hash {
                    modulus: be32(4).unwrap_or(0),
                    offset: be32(6).unwrap_or(0),
                };
                let ty = Type::Int { len: 4, big: false };
                self.load(be32(2), Read { key, ty });
            }
            "osf" => {
                let key = Key::Other("osf name".to_owned());
                let ty = Type::Name;
                self.load(be32(1), Read { key, ty });
            }
            "immediate" => self.immediate(a)?,
            "bitwise" => self.bitwise(a)?,
            "byteorder" => self.byteorder(a)?,
            "cmp" => self.cmp(a)?,
            "range" => self.range(a)?,
            "lookup" => self.lookup(a)?,
            "dynset" => self.dynset(a)?,
            "limit" | "connlimit" | "quota" => {
                let condition = condition(name, a)?;
                self.push(Statement::Match(Match::Conditional(condition)));
            }
            "counter" => {
                self.out.counters = Some(Counters {
                    bytes: a.find(1).and_then(|x| x.be64())?,
                    packets: a.find(2).and_then(|x| x.be64())?,
                });
            }
            "last" => self.push(Statement::Other {
                text: "last".to_owned(),
            }),
            "log" => self.log(a),
            "notrack" => self.push(Statement::NoTrack),
            "reject" => self.reject(a)?,
            "queue" => {
                if be32(4).is_some() {
                    return None;
                }
                self.push(Statement::Verdict(RuleVerdict::Queue {
                    num: a.find(1).and_then(|x| x.be16())?,
                    bypass: a.find(3).and_then(|x| x.be16()).unwrap_or(0) & 1 != 0,
                }));
            }
            "nat" => self.nat(a)?,
            "masq" => self.ports_only(NatKind::Masquerade, be32(1), be32(2), be32(3))?,
            "redir" => self.ports_only(NatKind::Redirect, be32(3), be32(1), be32(2))?,
            "tproxy" => self.tproxy(a)?,
            "objref" => self.objref(a)?,
            "flow_offload" => self.push(Statement::FlowOffload {
                flowtable: a.find(1)?.text(),
            }),
            "dup" => self.push(Statement::Dup {
                text: "dup".to_owned(),
            }),
            "fwd" => self.push(Statement::Forward {
                text: "fwd".to_owned(),
            }),
            "synproxy" => self.push(Statement::Synproxy {
                text: "synproxy".to_owned(),
            }),
            "match" | "target" => self.extension(name == "target", a)?,
            _ => return None,
        }
        Some(())
    }

    // ---- loads ----

    fn load(&mut self, register: Option<u32>, read: Read) {
        let len = read.ty.len();
        let part = Part { at: 0, len, read };
        // A register that does not exist is noted there.
        let _ = self.fields(register, vec![part], len, None);
    }

    fn fields(
        &mut self,
        register: Option<u32>,
        parts: Vec<Part>,
        len: usize,
        payload: Option<(u32, u32)>,
    ) -> Option<()> {
        // No register file holds more.
        if len > 64 {
            return None;
        }
        let value = Loaded::Fields {
            parts,
            len,
            mask: vec![0xff; len],
            xor: vec![0; len],
            shift: 0,
            payload,
        };
        self.store(register, value, len);
        Some(())
    }

    fn exthdr(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let kind = a.find(2)?.u8()?;
        let present = be32(5).unwrap_or(0) & 1 != 0;
        let text = keys::exthdr(be32(6).unwrap_or(0), kind, be32(3)?, be32(4)?, present);
        match be32(1) {
            Some(register) => {
                let len = if present { 1 } else { be32(4)? as usize };
                let key = Key::Other(text);
                let ty = if (1..=8).contains(&len) {
                    Type::Int { len, big: true }
                } else {
                    Type::Bytes(len)
                };
                let part = Part {
                    at: 0,
                    len,
                    read: Read { key, ty },
                };
                self.fields(Some(register), vec![part], len, None)?;
            }
            // A write into a TCP option, or its removal.
            None => self.push(Statement::Other {
                text: format!("{text} set"),
            }),
        }
        Some(())
    }

    fn immediate(&mut self, a: Attrs<'_>) -> Option<()> {
        let register = a.find(1)?.be32()?;
        let data = a.find(2)?.nested();
        if register == 0 {
            let verdict = verdict(data.find(2)?.nested())?;
            self.push(Statement::Verdict(verdict));
            return Some(());
        }
        let value = data.find(1)?.data.to_vec();
        let len = value.len();
        self.store(Some(register), Loaded::Constant(value), len);
        Some(())
    }

    fn bitwise(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let len = be32(3)? as usize;
        let loaded = self.fetch(be32(1))?;
        let Loaded::Fields {
            parts,
            len: loaded_len,
            mask,
            xor,
            shift,
            payload,
        } = &*loaded
        else {
            return None;
        };
        if *loaded_len != len {
            return None;
        }
        let value = |kind: u16| Some(a.find(kind)?.nested().find(1)?.data);
        let (mut new_mask, mut new_xor, mut new_shift) = (mask.clone(), xor.clone(), *shift);
        match be32(6).unwrap_or(0) {
            0 if *shift == 0 => {
                let (and, flip) = (value(4)?, value(5)?);
                if and.len() != len || flip.len() != len {
                    return None;
                }
                for i in 0..len {
                    new_mask[i] &= and[i];
                    new_xor[i] = (new_xor[i] & and[i]) ^ flip[i];
                }
            }
            op @ (1 | 2) => {
                let bits: [u8; 4] = value(7)?.try_into().ok()?;
                let bits = i64::from(u32::from_ne_bytes(bits));
                new_shift += if op == 2 { bits } else { -bits };
            }
            _ => return None,
        }
        let value = Loaded::Fields {
            parts: parts.clone(),
            len,
            mask: new_mask,
            xor: new_xor,
            shift: new_shift,
            payload: *payload,
        };
        self.store(be32(2), value, len);
        Some(())
    }

    fn byteorder(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let len = be32(4)? as usize;
        let size = be32(5)? as usize;
        let loaded = self.fetch(be32(1))?;
        let swapped = match &*loaded {
            Loaded::Fields {
                parts,
                len: loaded_len,
                mask,
                xor,
                shift: 0,
                payload,
            } if *loaded_len == len && size == len && parts.len() == 1 => {
                let mut parts = parts.clone();
                let mut mask = mask.clone();
                let mut xor = xor.clone();
                // What is known of a masked field must be kept before its bytes change places.
                if let Some(read) = self.masked(*payload, len, &mask) {
                    parts[0].read = read;
                    mask = vec![0xff; len];
                }
                parts[0].read.ty = parts[0].read.ty.swapped();
                mask.reverse();
                xor.reverse();
                Loaded::Fields {
                    parts,
                    len,
                    mask,
                    xor,
                    shift: 0,
                    payload: None,
                }
            }
            Loaded::Constant(bytes) if bytes.len() == len && size == len => {
                Loaded::Constant(bytes.iter().rev().copied().collect())
            }
            _ => return None,
        };
        self.store(be32(2), swapped, len);
        Some(())
    }

    fn masked(&self, payload: Option<(u32, u32)>, len: usize, mask: &[u8]) -> Option<Read> {
        let (base, offset) = payload?;
        keys::masked_payload(base, offset, len as u32, mask, self.known)
    }

    // ---- matches ----

    fn cmp(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let data = a.find(3)?.nested().find(1)?.data;
        let loaded = self.fetch(be32(1));
        let op = be32(2)?;
        let Some(loaded) = loaded else {
            self.push(unknown_match(
                "[comparison with a register that holds nothing known]",
            ));
            return Some(());
        };
        let lower = self.lower.take();
        if op == 3
            && let Some(lower) = lower
            && Rc::ptr_eq(&lower.of, &loaded)
            && lower.statements == self.out.statements.len()
        {
            self.out.statements.pop();
            self.between(&loaded, &lower.data, data, false);
            return Some(());
        }
        match op {
            0 | 1 => self.equal(&loaded, data, op == 1),
            2..=5 => self.ordered(&loaded, data, op),
            _ => return None,
        }
        if op == 5 {
            self.lower = Some(Lower {
                of: loaded,
                data: data.to_vec(),
                statements: self.out.statements.len(),
            });
        }
        Some(())
    }

    fn range(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let value = |kind: u16| Some(a.find(kind)?.nested().find(1)?.data);
        let (from, to) = (value(3)?, value(4)?);
        match self.fetch(be32(1)) {
            Some(loaded) => self.between(&loaded, from, to, be32(2)? == 1),
            None => self.push(unknown_match(
                "[range over a register that holds nothing known]",
            )),
        }
        Some(())
    }

    fn push_match(&mut self, m: Match) {
        if let Match::Cmp {
            of: Operand { key, mask: None },
            negate: false,
            values: Values::Int(values),
        } = &m
            && let [(first, last)] = values.intervals()
            && first == last
        {
            self.known.learn(key, *first);
        }
        self.push(Statement::Match(m));
    }

    fn equal(&mut self, loaded: &Loaded, data: &[u8], negate: bool) {
        let Loaded::Fields {
            parts,
            len,
            mask,
            xor,
            shift,
            payload,
        } = loaded
        else {
            return self.push(unknown_match(format!(
                "{} {} 0x{}",
                describe(loaded),
                if negate { "!=" } else { "==" },
                hex(data)
            )));
        };
        let data: Vec<u8> = data
            .iter()
            .take(*len)
            .zip(xor)
            .map(|(d, x)| d ^ x)
            .collect();
        if let Some(read) = self.masked(*payload, *len, mask)
            && *shift == 0
            && data.len() == *len
        {
            let full = vec![0xff; *len];
            let m = equal_part(&read, &data, &full, negate, self.scope.links);
            return self.push_match(m);
        }
        if *shift != 0 || (parts.len() > 1 && negate) {
            return self.push(unknown_match(format!(
                "{} 0x{}",
                describe(loaded),
                hex(&data)
            )));
        }
        // Bytes beyond the constant are not compared.
        let whole = vec![0xff; *len];
        for part in parts {
            let end = (part.at + part.len).min(data.len());
            let Some(bytes) = data.get(part.at..end).filter(|b| !b.is_empty()) else {
                break;
            };
            let mask = mask.get(part.at..end).unwrap_or(&whole[part.at..end]);
            let m = equal_part(&part.read, bytes, mask, negate, self.scope.links);
            self.push_match(m);
        }
    }

    /// The single number field of a load whose bytes compare like the number.
    fn sortable<'l>(&self, loaded: &'l Loaded) -> Option<(&'l Read, bool)> {
        let Loaded::Fields {
            parts,
            len,
            mask,
            xor,
            shift: 0,
            payload,
        } = loaded
        else {
            return None;
        };
        let [part] = &parts[..] else { return None };
        let plain = mask.iter().all(|b| *b == 0xff) && xor.iter().all(|b| *b == 0);
        if !plain || part.len != *len || part.len != part.read.ty.len() {
            // DSCP and the fragment offset keep their order under the mask.
            let masked = self.masked(*payload, *len, mask).is_some();
            return (masked && xor.iter().all(|b| *b == 0)).then_some((&part.read, true));
        }
        match part.read.ty {
            Type::Int { big: true, .. } | Type::Int { len: 1, .. } | Type::Addr(_) => {
                Some((&part.read, false))
            }
            _ => None,
        }
    }

    fn ordered(&mut self, loaded: &Loaded, data: &[u8], op: u32) {
        let len = data.len();
        let (zero, top) = (vec![0; len], vec![0xff; len]);
        // Written as a range: NFT_CMP_LT 2, LTE 3, GT 4, GTE 5.
        let range = match op {
            2 => step(data, false).map(|last| (zero, last)),
            3 => Some((zero, data.to_vec())),
            4 => step(data, true).map(|first| (first, top)),
            _ => Some((data.to_vec(), top)),
        };
        match range {
            Some((from, to)) => self.between(loaded, &from, &to, false),
            // Nothing is less than zero.
            None => self.push(unknown_match(format!(
                "{} op {op} 0x{}",
                describe(loaded),
                hex(data)
            ))),
        }
    }

    fn between(&mut self, loaded: &Loaded, from: &[u8], to: &[u8], negate: bool) {
        let found = self.sortable(loaded).and_then(|(read, masked)| {
            let read = match (masked, loaded) {
                (
                    true,
                    Loaded::Fields {
                        payload, len, mask, ..
                    },
                ) => self.masked(*payload, *len, mask)?,
                _ => read.clone(),
            };
            if from.len() != read.ty.len() || to.len() != from.len() {
                return None;
            }
            let values = match read.ty {
                Type::Addr(_) => Values::Addr(AddrSet::from_range(ip(from)?, ip(to)?)),
                ty => Values::Int(IntSet::range(ty.int(from)?, ty.int(to)?)),
            };
            Some(Match::Cmp {
                of: read.key.into(),
                negate,
                values,
            })
        });
        let m = found.unwrap_or_else(|| Match::Unknown {
            text: format!("{} 0x{}-0x{}", describe(loaded), hex(from), hex(to)),
        });
        self.push_match(m);
    }

    // ---- sets ----

    /// The operands of a key of `len` bytes that begins in a register, with their types.
    fn operands(&self, register: Option<u32>, len: usize) -> Option<(Vec<Operand>, Vec<Type>)> {
        let mut slot = Self::slot(register?)?;
        let mut operands = Vec::new();
        let mut types = Vec::new();
        let mut rest = len;
        while rest > 0 {
            let (loaded, 0) = self.registers.get(slot)?.as_ref()? else {
                return None;
            };
            let Loaded::Fields {
                parts,
                len: loaded_len,
                mask,
                xor,
                shift,
                payload,
            } = &**loaded
            else {
                return None;
            };
            if xor.iter().any(|b| *b != 0) || *loaded_len > rest {
                return None;
            }
            if *shift == 0
                && let Some(read) = self.masked(*payload, *loaded_len, mask)
            {
                operands.push(read.key.into());
                types.push(read.ty);
            } else if let [part] = &parts[..]
                && let Some(read) = shifted(part, self.masked(*payload, *loaded_len, mask), *shift)
            {
                operands.push(read.key.into());
                types.push(read.ty);
            } else if *shift == 0 {
                for part in parts {
                    if part.len != part.read.ty.len() {
                        return None;
                    }
                    let bits = mask.get(part.at..part.at + part.len)?;
                    operands.push(operand(&part.read, bits)?);
                    types.push(part.read.ty);
                }
            } else {
                return None;
            }
            slot += loaded_len.div_ceil(4);
            rest = rest.saturating_sub(crate::netlink::align(*loaded_len));
        }
        Some((operands, types))
    }

    fn lookup(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let name = a.find(1)?.text();
        let negate = be32(5).unwrap_or(0) & 1 != 0;
        let raw = self.scope.sets.get(&name);
        let Some(raw) = raw else {
            // The set was not read: the rule may match or not, and its verdict is not known.
            return self.lost(&format!("@{name}"), be32(3));
        };
        let Some((keys, types)) = self.operands(be32(2), raw.key_len) else {
            return self.lost(&format!("[key] @{name}"), be32(3));
        };
        let set = self.set_ref(raw, &types);
        match be32(3) {
            None => {
                let m = self.lookup_match(keys, &types, negate, set);
                self.push_match(m);
            }
            Some(0) => self.push(Statement::VerdictMap { keys, map: set }),
            Some(register) => {
                let types = raw.data_types();
                let len = types.as_ref().map_or(64, |t| {
                    t.iter().map(|t| crate::netlink::align(t.len())).sum()
                });
                let value = Loaded::Map { keys, map: set };
                // An interval of values lies twice in the registers.
                self.store(Some(register), value, len * 2);
            }
        }
        Some(())
    }

    /// A lookup that cannot be followed.
    fn lost(&mut self, text: &str, destination: Option<u32>) -> Option<()> {
        match destination {
            None => self.push(unknown_match(text)),
            Some(0) => self.unknown(format!("vmap {text}")),
            Some(register) => {
                // The rule ends when no element matches.
                self.push(unknown_match(format!("map {text}")));
                self.store(Some(register), Loaded::Opaque(format!("map {text}")), 64);
            }
        }
        Some(())
    }

    fn set_ref(&self, raw: &RawSet, types: &[Type]) -> SetRef {
        if raw.anonymous() {
            return SetRef::Anonymous(Box::new(raw.decode_as(Some(types), self.scope.links)));
        }
        SetRef::Named(raw.name.clone())
    }

    fn lookup_match(&self, keys: Vec<Operand>, types: &[Type], negate: bool, set: SetRef) -> Match {
        if let (SetRef::Anonymous(set), [only], [ty]) = (&set, &keys[..], types)
            && only.mask.is_none()
            && !set.incomplete
            && set.elements.iter().all(|e| !e.conditional)
        {
            let fields: Vec<_> = set
                .elements
                .iter()
                .filter_map(|e| e.key.first().cloned())
                .collect();
            if let Some(values) = values_of(&fields, *ty) {
                return Match::Cmp {
                    of: only.clone(),
                    negate,
                    values,
                };
            }
        }
        Match::Lookup { keys, negate, set }
    }

    fn dynset(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let set = a.find(1)?.text();
        let op = match be32(3)? {
            0 => SetOp::Add,
            1 => SetOp::Update,
            2 => SetOp::Delete,
            _ => return None,
        };
        // NFT_DYNSET_F_INV: goes on when the element was there already.
        if be32(9).unwrap_or(0) & 1 != 0 {
            return None;
        }
        let len = self.scope.sets.get(&set).map_or(0, |s| s.key_len);
        let keys = self.operands(be32(4), len).map(|(keys, _)| keys);
        let mut conditions = Vec::new();
        conditions.extend(a.find(7).and_then(|e| stateful(e.nested())));
        for e in a.find(10).map_or(Attrs(&[]), |l| l.nested()) {
            conditions.extend(stateful(e.nested()));
        }
        let timeout = a.find(6).and_then(|x| x.be64()).filter(|ms| *ms != 0);
        self.push(Statement::SetUpdate(SetUpdate {
            set,
            ipset: false,
            op,
            keys: keys.unwrap_or_default(),
            directions: vec![],
            timeout: timeout.map(|ms| ms / 1000),
            conditions,
        }));
        Some(())
    }

    fn objref(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        if let Some(kind) = be32(1) {
            let name = a.find(2)?.text();
            let kind = super::object_kind(kind).to_owned();
            self.push(match kind.as_str() {
                "limit" | "quota" | "ct count" => Statement::Match(Match::Conditional(Condition {
                    text: format!("{kind} name \"{name}\""),
                    kind: ConditionKind::Named { kind, name },
                })),
                _ => Statement::Object { kind, name },
            });
            return Some(());
        }
        let name = a.find(4)?.text();
        let raw = self.scope.sets.get(&name)?;
        let (keys, types) = self.operands(be32(3), raw.key_len)?;
        let kind = super::object_kind(raw.object_type).to_owned();
        let map = self.set_ref(raw, &types);
        self.push(Statement::ObjectMap { kind, keys, map });
        Some(())
    }

    // ---- writes ----

    /// The value in a register, as something of type `ty`.
    fn value(&self, register: Option<u32>, ty: Type) -> Expr {
        match self.fetch(register).as_deref() {
            Some(Loaded::Constant(bytes)) => match ty.int(bytes) {
                Some(v) => Expr::Int(v),
                None if ty == Type::Name => Expr::Name(crate::netlink::text(bytes)),
                None => Expr::Unknown(format!("0x{}", hex(bytes))),
            },
            Some(Loaded::Map { keys, map }) => Expr::Map {
                keys: keys.clone(),
                map: map.clone(),
            },
            Some(loaded @ Loaded::Fields { .. }) => {
                field_value(loaded).unwrap_or_else(|| Expr::Unknown(describe(loaded)))
            }
            Some(loaded) => Expr::Unknown(describe(loaded)),
            None => Expr::Unknown("[register]".to_owned()),
        }
    }

    fn set_meta(&mut self, key: u32, register: Option<u32>) -> Option<()> {
        let read = keys::meta(key)?;
        let target = match &read.key {
            Key::Mark => Target::Mark,
            Key::PktType => Target::PktType,
            Key::Meta(name) if name == "priority" => Target::Priority,
            Key::Meta(name) if name == "nftrace" => Target::Trace,
            Key::Meta(name) if name == "secmark" => Target::Ct("secmark".to_owned()),
            _ => return None,
        };
        let value = match (self.value(register, read.ty), &target) {
            // A traffic class, as nft and tc print it.
            (Expr::Int(class), Target::Priority) => {
                Expr::Name(format!("{:x}:{:x}", class >> 16, class & 0xffff))
            }
            (value, _) => value,
        };
        self.push(Statement::Assign { target, value });
        Some(())
    }

    fn set_ct(&mut self, key: u32, register: Option<u32>) -> Option<()> {
        let read = keys::ct(key, None, None)?;
        let target = match &read.key {
            Key::CtMark => Target::CtMark,
            Key::CtZone => Target::CtZone,
            Key::Ct(name) => Target::Ct(name.clone()),
            _ => return None,
        };
        let value = self.value(register, read.ty);
        self.push(Statement::Assign { target, value });
        Some(())
    }

    fn set_payload(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let (base, offset, len) = (be32(2)?, be32(3)?, be32(4)?);
        let target = keys::payload_target(base, offset, len, self.known);
        if keys::rewrites_addressing(base, offset, len, self.known) {
            self.unknown(format!("{target} set"));
            return Some(());
        }
        let len = len as usize;
        let ty = match len {
            1..=8 => Type::Int { len, big: true },
            _ => Type::Bytes(len),
        };
        let value = self.value(be32(5), ty);
        self.push(Statement::Assign {
            target: Target::Payload(target),
            value,
        });
        Some(())
    }

    // ---- verdicts ----

    fn reject(&mut self, a: Attrs<'_>) -> Option<()> {
        let kind = a.find(1)?.be32()?;
        let code = a.find(2).and_then(|x| x.u8()).unwrap_or(0);
        let with = print::reject(kind, code, self.known.l3, self.scope.family);
        self.push(Statement::Verdict(RuleVerdict::Reject { with }));
        Some(())
    }

    /// A constant address, or a map with one; both registers.
    fn nat_address(&self, min: Option<u32>, max: Option<u32>) -> Option<Expr> {
        let low = self.fetch(min)?;
        match &*low {
            Loaded::Constant(first) => {
                let last = match max.filter(|m| Some(*m) != min) {
                    None => first.clone(),
                    Some(max) => match &*self.fetch(Some(max))? {
                        Loaded::Constant(last) => last.clone(),
                        _ => return None,
                    },
                };
                Some(Expr::Addrs(ip(first)?, ip(&last)?))
            }
            Loaded::Map { keys, map } => Some(Expr::Map {
                keys: keys.clone(),
                map: map.clone(),
            }),
            fields @ Loaded::Fields { .. } => field_value(fields),
            Loaded::Opaque(_) => None,
        }
    }

    /// A constant port or range, or a map with one.
    fn nat_port(&self, min: Option<u32>, max: Option<u32>) -> Option<Expr> {
        let port = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?));
        let low = self.fetch(min)?;
        match &*low {
            Loaded::Constant(first) => {
                let last = match max.filter(|m| Some(*m) != min) {
                    None => first.clone(),
                    Some(max) => match &*self.fetch(Some(max))? {
                        Loaded::Constant(last) => last.clone(),
                        _ => return None,
                    },
                };
                Some(Expr::Ports(port(first)?, port(&last)?))
            }
            Loaded::Map { keys, map } => Some(Expr::Map {
                keys: keys.clone(),
                map: map.clone(),
            }),
            fields @ Loaded::Fields { .. } => field_value(fields),
            Loaded::Opaque(_) => None,
        }
    }

    fn nat(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let kind = match be32(1)? {
            0 => NatKind::Snat,
            1 => NatKind::Dnat,
            _ => return None,
        };
        let flags = be32(7).unwrap_or(0);
        let opaque = || Expr::Unknown("[register]".to_owned());
        let addr = be32(3).map(|min| self.nat_address(Some(min), be32(4)).unwrap_or_else(opaque));
        // `addr . port` out of one map lies in neighbouring registers.
        let in_map = be32(5).and_then(Self::slot).is_some_and(|slot| {
            matches!(&self.registers[slot], Some((v, at)) if *at > 0 && matches!(**v, Loaded::Map { .. }))
        });
        let port = match be32(5) {
            Some(_) if in_map && addr.is_some() => None,
            Some(min) => Some(self.nat_port(Some(min), be32(6)).unwrap_or_else(opaque)),
            None => None,
        };
        self.push(Statement::Nat(Nat {
            kind,
            addr,
            port,
            random: flags & (4 | 16) != 0,
            persistent: flags & 8 != 0,
            netmap: flags & 64 != 0,
        }));
        Some(())
    }

    fn ports_only(
        &mut self,
        kind: NatKind,
        flags: Option<u32>,
        min: Option<u32>,
        max: Option<u32>,
    ) -> Option<()> {
        let flags = flags.unwrap_or(0);
        let opaque = || Expr::Unknown("[register]".to_owned());
        let port = min.map(|min| self.nat_port(Some(min), max).unwrap_or_else(opaque));
        self.push(Statement::Nat(Nat {
            kind,
            addr: None,
            port,
            random: flags & (4 | 16) != 0,
            persistent: flags & 8 != 0,
            netmap: false,
        }));
        Some(())
    }

    fn tproxy(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let addr = match be32(2) {
            None => None,
            Some(r) => match self.nat_address(Some(r), None)? {
                Expr::Addrs(first, _) => Some(first),
                _ => return None,
            },
        };
        let port = match be32(3) {
            None => None,
            Some(r) => match self.nat_port(Some(r), None)? {
                Expr::Ports(first, _) => Some(first),
                _ => return None,
            },
        };
        self.push(Statement::Tproxy {
            addr,
            port,
            mark: None,
        });
        Some(())
    }

    fn log(&mut self, a: Attrs<'_>) {
        let prefix = a.find(2).map(|p| p.text()).unwrap_or_default();
        // iptables-nft writes NFLOG so: a log with a group.
        if let Some(group) = a.find(1).and_then(|x| x.be16()) {
            let size = a.find(3).and_then(|x| x.be32()).filter(|s| *s != 0);
            let threshold = a.find(4).and_then(|x| x.be16()).unwrap_or(0);
            let options = xt::nflog(&prefix, group, size, threshold);
            self.out.extensions.push(Extension {
                target: true,
                text: format!(" -j NFLOG{options}"),
                at: self.out.statements.len(),
                len: 1,
            });
        }
        self.push(Statement::Log {
            prefix: Some(prefix).filter(|p| !p.is_empty()),
        });
    }

    // ---- x_tables ----

    fn extension(&mut self, target: bool, a: Attrs<'_>) -> Option<()> {
        let name = a.find(1)?.text();
        let revision = a.find(2).and_then(|x| x.be32()).unwrap_or(0);
        let info = a.find(3).map_or(&[][..], |x| x.data);
        let ipv6 = self.scope.family == Family::Ip6;
        let place = xt::Place {
            ipv6,
            sets: self.scope.ipsets,
        };
        let text = match target {
            true => xt::target_text(&name, revision, info, place),
            false => xt::match_text(&name, revision, info, place),
        };
        let (statements, comment) = xt::statements(&text, ipv6, target);
        self.out.comment = self.out.comment.take().or(comment);
        self.out.extensions.push(Extension {
            target,
            text,
            at: self.out.statements.len(),
            len: statements.len(),
        });
        self.out.statements.extend(statements);
        Some(())
    }
}

fn unknown_match(text: impl Into<String>) -> Statement {
    Statement::Match(Match::Unknown { text: text.into() })
}

/// The next number in network byte order, up or down; `None` past the end.
fn step(data: &[u8], up: bool) -> Option<Vec<u8>> {
    let mut out = data.to_vec();
    for b in out.iter_mut().rev() {
        let (value, over) = if up {
            b.overflowing_add(1)
        } else {
            b.overflowing_sub(1)
        };
        *b = value;
        if !over {
            return Some(out);
        }
    }
    None
}

/// DSCP moved into the low bits before a lookup: 1 byte by 2, or 2 swapped bytes by 6.
fn shifted(part: &Part, masked: Option<Read>, shift: i64) -> Option<Read> {
    let read = masked.unwrap_or_else(|| part.read.clone());
    let Type::Shifted { len, shift: bits } = read.ty else {
        return None;
    };
    (shift == i64::from(bits)).then_some(Read {
        key: read.key,
        ty: Type::Int { len, big: false },
    })
}

/// A field with the bits that count; `None` when a mask cannot be said for its type.
fn operand(read: &Read, mask: &[u8]) -> Option<Operand> {
    if mask.iter().all(|b| *b == 0xff) {
        return Some(read.key.clone().into());
    }
    let bits = match read.ty {
        Type::Addr(_) => mask.iter().fold(0u128, |v, b| v << 8 | u128::from(*b)),
        ty @ Type::Int { .. } => ty.int(mask)?.into(),
        _ => return None,
    };
    Some(Operand {
        key: read.key.clone(),
        mask: Some(bits),
    })
}

/// A field compared with constant bytes under a mask.
fn equal_part(read: &Read, bytes: &[u8], mask: &[u8], negate: bool, links: &Links) -> Match {
    let unknown = || Match::Unknown {
        text: format!("{:?} & 0x{} == 0x{}", read.key, hex(mask), hex(bytes)),
    };
    let cmp = |of: Operand, values: Values| Match::Cmp { of, negate, values };
    let full = mask.iter().all(|b| *b == 0xff);
    match read.ty {
        Type::Addr(ipv) => {
            let width = read.ty.len();
            let mut address = bytes.to_vec();
            let mut mask = mask.to_vec();
            address.resize(width, 0);
            mask.resize(width, 0);
            // A bit set outside the mask can never be equal.
            if address.iter().zip(&mask).any(|(a, m)| a & !m != 0) {
                return unknown();
            }
            if let Some((first, last)) = prefix_range(&address, &mask) {
                let values = Values::Addr(AddrSet::from_range(first, last));
                return cmp(read.key.clone().into(), values);
            }
            let exact: IpAddr = match (ipv, ip(&address)) {
                (_, Some(a)) => a,
                (Ipv::V4, None) => Ipv4Addr::UNSPECIFIED.into(),
                (Ipv::V6, None) => Ipv6Addr::UNSPECIFIED.into(),
            };
            match operand(read, &mask) {
                Some(of) => cmp(of, Values::Addr(AddrSet::from_range(exact, exact))),
                None => unknown(),
            }
        }
        Type::Int { len, .. } | Type::Shifted { len, .. } if bytes.len() == len => {
            let Some(value) = read.ty.int(bytes) else {
                return unknown();
            };
            if full {
                return cmp(present(&read.key, value).into(), Values::int(value));
            }
            match operand(read, mask) {
                // "Any of these bits" has a spelling of its own.
                Some(Operand {
                    key,
                    mask: Some(bits),
                }) if value == 0 => Match::Bits {
                    key,
                    negate: !negate,
                    bits: bits as u64,
                },
                Some(of) => cmp(of, Values::int(value)),
                None => unknown(),
            }
        }
        Type::Index if full && bytes.len() == 4 => match read.ty.field(bytes, bytes, links) {
            reach::ir::Field::Name(name) => cmp(read.key.clone().into(), Values::names(vec![name])),
            reach::ir::Field::Int(i, _) => cmp(read.key.clone().into(), Values::int(i)),
            _ => unknown(),
        },
        Type::Name if full => {
            let end = bytes.iter().position(|b| *b == 0);
            let name = NamePattern {
                name: crate::netlink::text(bytes),
                // Without its end the name is only a beginning.
                wildcard: end.is_none() && bytes.len() < 16,
            };
            cmp(read.key.clone().into(), Values::names(vec![name]))
        }
        Type::Bytes(len) if full && bytes.len() <= len => {
            let (mut first, mut last) = (bytes.to_vec(), bytes.to_vec());
            first.resize(len, 0);
            last.resize(len, 0xff);
            cmp(read.key.clone().into(), Values::Bytes(vec![(first, last)]))
        }
        _ => unknown(),
    }
}

/// `fib … oif 0` is how old versions ask whether there is a route.
fn present(key: &Key, value: u64) -> Key {
    match key {
        Key::Fib(fib) if fib.result == FibResult::Oif && value == 0 => Key::Fib(Fib {
            result: FibResult::Present,
            ..*fib
        }),
        key => key.clone(),
    }
}

/// A single field with what was computed on it, as an expression.
fn field_value(loaded: &Loaded) -> Option<Expr> {
    let Loaded::Fields {
        parts,
        len,
        mask,
        xor,
        shift,
        ..
    } = loaded
    else {
        return None;
    };
    let [part] = &parts[..] else { return None };
    let ty = part.read.ty;
    let mut value = Expr::Key(part.read.key.clone());
    let plain = mask.iter().all(|b| *b == 0xff) && xor.iter().all(|b| *b == 0);
    if !plain {
        if ty.len() != *len {
            return None;
        }
        value = Expr::Bitwise {
            of: Box::new(value),
            and: ty.int(mask)?,
            xor: ty.int(xor)?,
        };
    }
    if *shift != 0 {
        value = Expr::Shift(Box::new(value), i8::try_from(-*shift).ok()?);
    }
    Some(value)
}

fn describe(loaded: &Loaded) -> String {
    match loaded {
        Loaded::Fields { parts, mask, .. } => {
            let keys: Vec<String> = parts.iter().map(|p| format!("{:?}", p.read.key)).collect();
            format!("{} & 0x{}", keys.join(" . "), hex(mask))
        }
        Loaded::Constant(bytes) => format!("0x{}", hex(bytes)),
        Loaded::Map { .. } => "map".to_owned(),
        Loaded::Opaque(text) => text.clone(),
    }
}
