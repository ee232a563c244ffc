//! One rule: nf_tables' little register machine, followed to what its expressions mean.

mod arithmetic;
mod compare;
mod lookup;
mod write;

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
    /// Number of its own statements that are in the rule already: 1 for a native expression that
    /// iptables has its own spelling for, 0 for one of x_tables, see [`Decoded::expand`].
    pub len: usize,
}

impl Decoded {
    /// Puts the statements of x_tables' extensions in their places. Not needed for a table that
    /// is spelled as iptables' as a whole.
    pub fn expand(&mut self, ipv6: bool) {
        for e in self.extensions.iter_mut().rev().filter(|e| e.len == 0) {
            let (statements, comment) = xt::statements(&e.text, ipv6, e.target);
            e.len = statements.len();
            self.statements.splice(e.at..e.at, statements);
            self.comment = comment.or(self.comment.take());
        }
    }
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
        let end = (slot + len.div_ceil(4).max(1)).min(self.registers.len());
        for at in slot..end {
            // A value that loses some of its bytes is none any more.
            if let Some((old, _)) = self.registers[at].take() {
                for r in &mut self.registers {
                    if r.as_ref().is_some_and(|(v, _)| Rc::ptr_eq(v, &old)) {
                        *r = None;
                    }
                }
            }
        }
        for (i, r) in self.registers[slot..end].iter_mut().enumerate() {
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
        let Some(name) = expr.find(1).map(|a| a.word()) else {
            return self.unknown("[expression without a name]");
        };
        let attrs = expr.find(2).map_or(Attrs(&[]), |d| d.nested());
        if !expr.intact() || !attrs.intact() || self.known_expression(name, attrs).is_none() {
            self.opaque(name, attrs);
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
}

fn unknown_match(text: impl Into<String>) -> Statement {
    Statement::Match(Match::Unknown { text: text.into() })
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
