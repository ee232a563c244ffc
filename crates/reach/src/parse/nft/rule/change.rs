//! What a rule changes: addresses, marks, sets.
use super::{Rule, conn_limit, limit, set_name};
use crate::ir::{
    Condition, ConditionKind, Expr, Field, Nat, NatKind, SetOp, SetUpdate, Statement, Target,
};
use crate::parse::nft::keys::{self, Ty};
use crate::parse::nft::tree::J;
use crate::parse::nft::{print, sets};

impl Rule {
    pub(super) fn map_expr(&mut self, map: &J<'_>, gives: Ty) -> Option<Expr> {
        let (operands, types) = self.operands(map.get("key")?)?;
        let map = sets::reference(map.get("data")?, &types, sets::Gives::Value(gives))?;
        Some(Expr::Map {
            keys: operands,
            map,
        })
    }

    pub(super) fn nat(&mut self, name: &str, body: &J<'_>) -> Option<()> {
        let kind = match name {
            "dnat" => NatKind::Dnat,
            "snat" => NatKind::Snat,
            "masquerade" => NatKind::Masquerade,
            _ => NatKind::Redirect,
        };
        let flag = |flag| body.has_flag("flags", flag);
        let addr = match body.get("addr") {
            None | Some(J::Null) => None,
            Some(addr) => Some(match (addr.get("map"), keys::field(addr, Ty::Guess)) {
                (Some(map), _) => self.map_expr(map, Ty::Guess)?,
                (None, Some(Field::Addr(first, last))) => Expr::Addrs(first, last),
                _ => Expr::Unknown(print::expr(addr)),
            }),
        };
        let port = match body.get("port") {
            None | Some(J::Null) => None,
            Some(port) => Some(match (port.get("map"), keys::field(port, Ty::Port)) {
                (Some(map), _) => self.map_expr(map, Ty::Port)?,
                (None, Some(Field::Int(first, last))) => {
                    Expr::Ports(u16::try_from(first).ok()?, u16::try_from(last).ok()?)
                }
                _ => Expr::Unknown(print::expr(port)),
            }),
        };
        self.push(Statement::Nat(Nat {
            kind,
            addr,
            port,
            random: flag("random") || flag("fully-random"),
            persistent: flag("persistent"),
            netmap: flag("netmap") || body.has_flag("type_flags", "prefix"),
        }));
        Some(())
    }

    pub(super) fn tproxy(&mut self, body: &J<'_>) -> Option<()> {
        let addr = match body.get_text("addr") {
            Some(text) => Some(text.trim_matches(['[', ']']).parse().ok()?),
            None => None,
        };
        let port = match body.get("port") {
            Some(port) => Some(u16::try_from(port.number()?).ok()?),
            None => None,
        };
        self.push(Statement::Tproxy {
            addr,
            port,
            mark: None,
        });
        Some(())
    }

    pub(super) fn mangle(&mut self, body: &J<'_>) -> Option<()> {
        let (key, value) = (body.get("key")?, body.get("value")?);
        let text = || format!("{} set {}", print::expr(key), print::expr(value));
        let target = match key.only()? {
            ("meta", meta) => match meta.get_text("key")? {
                "mark" => Target::Mark,
                "nftrace" => Target::Trace,
                "priority" => Target::Priority,
                "pkttype" => Target::PktType,
                _ => {
                    let text = text();
                    self.push(Statement::Other { text });
                    return Some(());
                }
            },
            ("ct", ct) => match ct.get_text("key")? {
                "mark" => Target::CtMark,
                "zone" => Target::CtZone,
                other => Target::Ct(other.to_string()),
            },
            ("payload", payload) => {
                let protocol = payload.get_text("protocol")?;
                let field = payload.get_text("field")?;
                if matches!(
                    field,
                    "saddr" | "daddr" | "sport" | "dport" | "protocol" | "nexthdr" | "type"
                ) {
                    return None;
                }
                Target::Payload(format!("{protocol} {field}"))
            }
            ("tcp option" | "exthdr" | "ip option" | "sctp chunk" | "dccp option", _) => {
                let text = text();
                self.push(Statement::Other { text });
                return Some(());
            }
            _ => return None,
        };
        let value = self.value(value);
        self.push(Statement::Assign { target, value });
        Some(())
    }

    /// A computed value.
    pub(super) fn value(&mut self, value: &J<'_>) -> Expr {
        self.computed(value)
            .unwrap_or_else(|| Expr::Unknown(print::expr(value)))
    }

    pub(super) fn computed(&mut self, value: &J<'_>) -> Option<Expr> {
        const WORD: u64 = u32::MAX as u64;
        if let Some(n) = value.number() {
            return Some(Expr::Int(n));
        }
        let Some((op, body)) = value.only() else {
            return Some(Expr::Name(value.text()?.to_string()));
        };
        match op {
            "map" => self.map_expr(body, Ty::Guess),
            "&" | "|" | "^" => {
                let [left, right] = body.list()? else {
                    return None;
                };
                let (left, constant) = match (left.number(), right.number()) {
                    (None, Some(n)) => (left, n),
                    (Some(n), None) => (right, n),
                    _ => return None,
                };
                let (of, and, xor) = match self.computed(left)? {
                    Expr::Bitwise { of, and, xor } => (of, and, xor),
                    other => (Box::new(other), WORD, 0),
                };
                Some(match op {
                    "&" => Expr::Bitwise {
                        of,
                        and: and & constant,
                        xor: xor & constant,
                    },
                    "|" => Expr::Bitwise {
                        of,
                        and: and & !constant,
                        xor: (xor & !constant) | constant,
                    },
                    _ => Expr::Bitwise {
                        of,
                        and,
                        xor: xor ^ constant,
                    },
                })
            }
            "<<" | ">>" => {
                let [left, right] = body.list()? else {
                    return None;
                };
                let by = i8::try_from(right.number()?).ok()?;
                let by = if op == "<<" { by } else { -by };
                Some(Expr::Shift(Box::new(self.computed(left)?), by))
            }
            _ => {
                let looked = keys::key(value, self.family)?;
                self.require(&looked);
                Some(Expr::Key(looked.key))
            }
        }
    }

    pub(super) fn set_update(&mut self, kind: &str, body: &J<'_>) -> Option<()> {
        let (set, op, elem) = if kind == "meter" {
            let name = body.get_text("name").unwrap_or_default();
            (name.to_string(), SetOp::Update, body.get("key")?)
        } else {
            let op = match body.get_text("op")? {
                "add" => SetOp::Add,
                "update" => SetOp::Update,
                "delete" => SetOp::Delete,
                _ => return None,
            };
            let set = body.get("set").or_else(|| body.get("map"))?;
            (set_name(set)?, op, body.get("elem")?)
        };
        let (key, timeout) = match elem.get("elem") {
            Some(inner) => (inner.get("val")?, inner.get("timeout").and_then(J::number)),
            None => (elem, None),
        };
        let (operands, _) = self.operands(key)?;
        let mut conditions = Vec::new();
        let statements = body
            .get("stmt")
            .map(J::items)
            .into_iter()
            .flatten()
            .chain(elem.get("elem").and_then(|e| e.get("limit").map(|_| e)));
        for s in statements {
            let kind = match (s.get("limit"), s.get("quota"), s.get("ct count")) {
                (Some(body), ..) => limit(body).unwrap_or(ConditionKind::Other),
                (_, Some(_), _) => ConditionKind::Other,
                (.., Some(body)) => conn_limit(body).unwrap_or(ConditionKind::Other),
                _ if s.get("counter").is_some() || s.get("last").is_some() => continue,
                _ => ConditionKind::Other,
            };
            conditions.push(Condition {
                kind,
                text: print::statement(s),
            });
        }
        self.out.updates.push(set.clone());
        self.push(Statement::SetUpdate(SetUpdate {
            set,
            ipset: false,
            op,
            keys: operands,
            directions: vec![],
            timeout,
            conditions,
        }));
        Some(())
    }
}
