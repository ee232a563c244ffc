//! Sets: `lookup`, `dynset`, and objects picked by a map.

use super::*;

impl Machine<'_> {
    /// The operands of a key of `len` bytes that begins in a register, with their types.
    pub(super) fn operands(
        &self,
        register: Option<u32>,
        len: usize,
    ) -> Option<(Vec<Operand>, Vec<Type>)> {
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
            // Nothing loaded would never fill the key.
            if xor.iter().any(|b| *b != 0) || !(1..=rest).contains(loaded_len) {
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

    pub(super) fn lookup(&mut self, a: Attrs<'_>) -> Option<()> {
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
    pub(super) fn lost(&mut self, text: &str, destination: Option<u32>) -> Option<()> {
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

    pub(super) fn set_ref(&self, raw: &RawSet, types: &[Type]) -> SetRef {
        if raw.anonymous() {
            return SetRef::Anonymous(Box::new(raw.decode_as(Some(types), self.scope.links)));
        }
        SetRef::Named(raw.name.clone())
    }

    pub(super) fn lookup_match(
        &self,
        keys: Vec<Operand>,
        types: &[Type],
        negate: bool,
        set: SetRef,
    ) -> Match {
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

    pub(super) fn dynset(&mut self, a: Attrs<'_>) -> Option<()> {
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

    pub(super) fn objref(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        if let Some(kind) = be32(1) {
            let name = a.find(2)?.text();
            let kind = super::super::object_kind(kind).to_owned();
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
        let kind = super::super::object_kind(raw.object_type).to_owned();
        let map = self.set_ref(raw, &types);
        self.push(Statement::ObjectMap { kind, keys, map });
        Some(())
    }
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
