//! What a rule compares: keys, values, and the conditions that nft leaves unsaid.
use super::{Rule, set_name};
use crate::ir::{
    Condition, ConditionKind, Family, FibResult, Field, IntSet, Key, Match, Operand, SetRef,
    Statement, Values,
};
use crate::parse::nft::keys::{self, Looked, Ty};
use crate::parse::nft::tree::J;
use crate::parse::nft::{print, sets, value};
use crate::parse::unknown_match;

impl Rule {
    /// The conditions that nft leaves unsaid: `tcp dport` means TCP, `ip saddr` IPv4.
    pub(super) fn require(&mut self, looked: &Looked) {
        let both = matches!(self.family, Family::Inet | Family::Bridge | Family::Netdev);
        if let Some(nfproto) = looked.nfproto
            && both
            && self.nfproto.is_none()
        {
            self.push(Statement::Match(keys::equals(Key::NfProto, nfproto)));
            self.nfproto = Some(nfproto);
        }
        if let Some(l4) = looked.l4
            && self.l4 != Some(l4)
        {
            self.push(Statement::Match(keys::equals(Key::L4Proto, l4)));
            self.l4 = Some(l4);
        }
    }

    /// Keeps in mind what a match says about the packet's protocols.
    pub(super) fn learn(&mut self, key: &Key, negate: bool, values: &Values) {
        let Values::Int(set) = values else { return };
        let &[(first, last)] = set.intervals() else {
            return;
        };
        if negate || first != last {
            return;
        }
        match key {
            Key::NfProto => self.nfproto = Some(first),
            Key::EtherType if first == 0x0800 => self.nfproto = Some(2),
            Key::EtherType if first == 0x86dd => self.nfproto = Some(10),
            Key::L4Proto => self.l4 = Some(first),
            _ => {}
        }
    }

    pub(super) fn operand(&mut self, expr: &J<'_>) -> Option<(Operand, Ty)> {
        if let Some(("&", sides)) = expr.only() {
            let [inner, mask] = sides.list()? else {
                return None;
            };
            let looked = keys::key(inner, self.family)?;
            let mask = match keys::field(mask, looked.ty)? {
                Field::Addr(a, b) if a == b => value::to_bits(a),
                Field::Int(a, b) if a == b => a.into(),
                _ => return None,
            };
            self.require(&looked);
            let ty = looked.ty;
            if looked.key == Key::Other("ip frag-off".to_string()) && mask == 0x1fff {
                return Some((Key::FragmentOffset.into(), ty));
            }
            let operand = Operand {
                key: looked.key,
                mask: Some(mask),
            };
            return Some((operand, ty));
        }
        let looked = keys::key(expr, self.family)?;
        self.require(&looked);
        Some((looked.key.into(), looked.ty))
    }

    pub(super) fn operands(&mut self, expr: &J<'_>) -> Option<(Vec<Operand>, Vec<Ty>)> {
        let parts = match expr.only() {
            Some(("concat", parts)) => parts.list()?,
            _ => std::slice::from_ref(expr),
        };
        let mut operands = Vec::new();
        let mut types = Vec::new();
        for part in parts {
            let (operand, ty) = self.operand(part)?;
            operands.push(operand);
            types.push(ty);
        }
        Some((operands, types))
    }

    pub(super) fn comparison(&mut self, body: &J<'_>) -> Option<()> {
        let op = body.get_text("op").unwrap_or("==");
        let (left, right) = (body.get("left")?, body.get("right")?);
        let negate = matches!(op, "!=" | "!");
        // `tcp flags syn / fin,syn` is masked equality; lists and `in` on bit sets mean "any of".
        let (operands, types) = self.operands(left)?;
        if let Some(set) = set_name(right) {
            self.push(Statement::Match(Match::Lookup {
                keys: operands,
                negate,
                set: SetRef::Named(set),
            }));
            return matches!(op, "==" | "in" | "!=").then_some(());
        }
        let ([operand], [ty]) = (&operands[..], &types[..]) else {
            if !matches!(op, "==" | "in" | "!=") {
                return None;
            }
            let set = sets::anonymous(right, &types, sets::Gives::Nothing)?;
            self.push(Statement::Match(Match::Lookup {
                keys: operands,
                negate,
                set: SetRef::Anonymous(Box::new(set)),
            }));
            return Some(());
        };
        let (operand, ty) = (operand.clone(), *ty);
        let found = match op {
            "in" | "!" if ty.is_bits() && right.get("set").is_none() => {
                bits(operand, right, ty, negate)?
            }
            "!" => return None,
            "<" | ">" | "<=" | ">=" => ordered(operand, op, right, ty)?,
            _ => self.membership(operand, negate, right, ty)?,
        };
        if let Match::Cmp {
            of: Operand { key, mask: None },
            negate,
            values,
        } = &found
        {
            self.learn(&key.clone(), *negate, &values.clone());
        }
        self.push(Statement::Match(found));
        if negate && keys::is_span(right, ty) {
            // Written `< 80 … > 5000`, which never holds, the rule is listed with the same words (1.0.6, seen).
            self.push(unknown_match(
                "(nft may hide that this never matches: `< A` and `> B` are listed as `!= A-B`)",
            ));
        }
        Some(())
    }

    pub(super) fn membership(
        &mut self,
        operand: Operand,
        negate: bool,
        right: &J<'_>,
        ty: Ty,
    ) -> Option<Match> {
        if let Key::Meta(name) = &operand.key
            && matches!(name.as_str(), "time" | "hour" | "day")
        {
            return Some(Match::Conditional(Condition {
                kind: ConditionKind::Time,
                text: format!("meta {name} {}", print::expr(right)),
            }));
        }
        if let Some(header) = self.refused_header(&operand.key, negate) {
            return Some(header);
        }
        let fields = match right.get("set") {
            Some(list) => {
                if operand.mask.is_some() {
                    let set = sets::anonymous(right, &[ty], sets::Gives::Nothing)?;
                    return Some(Match::Lookup {
                        keys: vec![operand],
                        negate,
                        set: SetRef::Anonymous(Box::new(set)),
                    });
                }
                list.items()
                    .iter()
                    .map(|item| keys::field(item, ty))
                    .collect::<Option<Vec<_>>>()?
            }
            None => vec![keys::field(right, ty)?],
        };
        let values = keys::values(fields)?;
        // `fib … oif missing` asks whether there is a route, not which.
        if let Key::Fib(fib) = &operand.key
            && fib.result == FibResult::Oif
            && operand.mask.is_none()
        {
            let present = match (right, &values) {
                (J::Bool(b), _) => Some(u64::from(*b)),
                (_, Values::Int(set)) if *set == IntSet::one(0) => Some(0),
                _ => None,
            };
            if let Some(present) = present {
                let mut fib = *fib;
                fib.result = FibResult::Present;
                return Some(Match::Cmp {
                    of: Key::Fib(fib).into(),
                    negate,
                    values: Values::int(present),
                });
            }
        }
        // `key & bits != 0` asks for any of the bits.
        if let Some(mask) = operand.mask
            && ty.is_bits()
            && values == Values::int(0)
        {
            return Some(Match::Bits {
                key: operand.key,
                negate: !negate,
                bits: u64::try_from(mask).ok()?,
            });
        }
        // A mask that is a prefix after all.
        if let (Some(mask), Values::Addr(set)) = (operand.mask, &values)
            && let Some(address) = set.first()
            && let value::Net::Range(first, last) = value::masked(address, mask)
            && first == address
            && set.ranges().eq([(address, address)])
        {
            return Some(Match::Cmp {
                of: operand.key.into(),
                negate,
                values: Values::Addr(crate::AddrSet::from_range(first, last)),
            });
        }
        Some(Match::Cmp {
            of: operand,
            negate,
            values,
        })
    }

    /// A test for an IPv6 extension header in a rule that refuses what has it. A client may leave such headers
    /// away, so for it the rule is one about packets with this header first. In rules that do more, the
    /// test stays undecided.
    pub(super) fn refused_header(&self, key: &Key, negate: bool) -> Option<Match> {
        let Key::Other(text) = key else { return None };
        if negate || !self.drops {
            return None;
        }
        let number = match text.split(' ').next()? {
            "rt" | "srh" => 43,
            "hbh" => 0,
            "frag" => 44,
            "dst" => 60,
            "mh" => 135,
            _ => return None,
        };
        Some(keys::equals(Key::NextHeader, number))
    }
}

/// "Any of these bits", as `in` and lists on bit sets mean.
fn bits(operand: Operand, right: &J<'_>, ty: Ty, negate: bool) -> Option<Match> {
    let Field::Int(bits, last) = keys::field(right, ty)? else {
        return None;
    };
    (bits == last && operand.mask.is_none()).then_some(Match::Bits {
        key: operand.key,
        negate,
        bits,
    })
}

fn ordered(operand: Operand, op: &str, right: &J<'_>, ty: Ty) -> Option<Match> {
    let values = match keys::field(right, ty)? {
        Field::Int(a, b) if a == b => {
            let max = ty.max();
            Values::Int(match op {
                "<" => IntSet::range(0, a.checked_sub(1)?),
                "<=" => IntSet::range(0, a),
                ">" => IntSet::range(a.checked_add(1)?, max),
                _ => IntSet::range(a, max),
            })
        }
        Field::Addr(a, b) if a == b => {
            let (bits, ipv6) = (value::to_bits(a), a.is_ipv6());
            let top = if ipv6 { u128::MAX } else { u32::MAX.into() };
            let (first, last) = match op {
                "<" => (0, bits.checked_sub(1)?),
                "<=" => (0, bits),
                ">" => (bits.checked_add(1).filter(|&n| n <= top)?, top),
                _ => (bits, top),
            };
            Values::Addr(crate::AddrSet::from_range(
                value::from_bits(first, ipv6),
                value::from_bits(last, ipv6),
            ))
        }
        _ => return None,
    };
    Some(Match::Cmp {
        of: operand,
        negate: false,
        values,
    })
}
