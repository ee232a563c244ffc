//! What changes something or ends the rule: writes, NAT, rejects, logs, x_tables.

use super::*;

impl Machine<'_> {
    /// The value in a register, as something of type `ty`.
    pub(super) fn value(&self, register: Option<u32>, ty: Type) -> Expr {
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

    pub(super) fn set_meta(&mut self, key: u32, register: Option<u32>) -> Option<()> {
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

    pub(super) fn set_ct(&mut self, key: u32, register: Option<u32>) -> Option<()> {
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

    pub(super) fn set_payload(&mut self, a: Attrs<'_>) -> Option<()> {
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

    pub(super) fn reject(&mut self, a: Attrs<'_>) -> Option<()> {
        let kind = a.find(1)?.be32()?;
        let code = a.find(2).and_then(|x| x.u8()).unwrap_or(0);
        let with = print::reject(kind, code, self.known.l3, self.scope.family);
        self.push(Statement::Verdict(RuleVerdict::Reject { with }));
        Some(())
    }

    /// A constant address, or a map with one; both registers.
    pub(super) fn nat_address(&self, min: Option<u32>, max: Option<u32>) -> Option<Expr> {
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
    pub(super) fn nat_port(&self, min: Option<u32>, max: Option<u32>) -> Option<Expr> {
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

    pub(super) fn nat(&mut self, a: Attrs<'_>) -> Option<()> {
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

    pub(super) fn ports_only(
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

    pub(super) fn tproxy(&mut self, a: Attrs<'_>) -> Option<()> {
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

    pub(super) fn log(&mut self, a: Attrs<'_>) {
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

    pub(super) fn extension(&mut self, target: bool, a: Attrs<'_>) -> Option<()> {
        let name = a.find(1)?.word();
        let revision = a.find(2).and_then(|x| x.be32()).unwrap_or(0);
        let info = a.find(3).map_or(&[][..], |x| x.data);
        let ipv6 = self.scope.family == Family::Ip6;
        let place = xt::Place {
            ipv6,
            sets: self.scope.ipsets,
        };
        let text = match target {
            true => xt::target_text(name, revision, info, place),
            false => xt::match_text(name, revision, info, place),
        };
        self.out.extensions.push(Extension {
            target,
            text,
            at: self.out.statements.len(),
            len: 0,
        });
        Some(())
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
