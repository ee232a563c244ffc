//! Comparisons: `cmp` and `range`.

use super::*;

impl Machine<'_> {
    pub(super) fn cmp(&mut self, a: Attrs<'_>) -> Option<()> {
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

    pub(super) fn range(&mut self, a: Attrs<'_>) -> Option<()> {
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

    pub(super) fn push_match(&mut self, m: Match) {
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

    pub(super) fn equal(&mut self, loaded: &Loaded, data: &[u8], negate: bool) {
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
    pub(super) fn sortable<'l>(&self, loaded: &'l Loaded) -> Option<(&'l Read, bool)> {
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

    pub(super) fn ordered(&mut self, loaded: &Loaded, data: &[u8], op: u32) {
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

    pub(super) fn between(&mut self, loaded: &Loaded, from: &[u8], to: &[u8], negate: bool) {
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
