//! One rule's statements.
use super::keys::{self, Looked, Ty};
use super::sets;
use super::tree::J;
use super::{print, value};
use crate::ir::{
    Condition, ConditionKind, Counters, Expr, Family, FibResult, Field, IntSet, Key, Match, Nat,
    NatKind, Operand, RuleVerdict, SetOp, SetRef, SetUpdate, Statement, Target, Values,
};
use crate::parse::{unknown_match, verdict};

/// What was read of a rule.
#[derive(Default)]
pub(super) struct Decoded {
    pub(super) statements: Vec<Statement>,
    pub(super) counters: Option<Counters>,
    /// What was not understood.
    pub(super) problems: Vec<String>,
    /// Sets that the rule puts elements into.
    pub(super) updates: Vec<String>,
    /// Statements that JSON holds as text (anonymous chains).
    pub(super) texts: Vec<String>,
}

/// Decodes a rule's `expr` list.
pub(super) fn decode(list: &[J<'_>], family: Family) -> Decoded {
    let mut rule = Rule {
        family,
        nfproto: None,
        l4: None,
        drops: list
            .iter()
            .all(|s| s.only().is_none_or(|(name, _)| harmless(name))),
        out: Decoded::default(),
    };
    for s in list {
        rule.statement(s);
    }
    rule.out
}

/// Whether a client gains nothing from meeting a rule with this statement.
fn harmless(name: &str) -> bool {
    matches!(
        name,
        "match" | "drop" | "reject" | "log" | "counter" | "limit" | "quota" | "ct count"
    )
}

struct Rule {
    family: Family,
    /// What the matches so far say about the packet.
    nfproto: Option<u64>,
    l4: Option<u64>,
    drops: bool,
    out: Decoded,
}

/// `@name` of a set.
fn set_name(value: &J<'_>) -> Option<String> {
    Some(value.text()?.strip_prefix('@')?.to_string())
}

pub(super) fn rule_verdict(value: &J<'_>) -> Option<RuleVerdict> {
    let (name, body) = value.only()?;
    let chain = || Some(body.get_text("target")?.to_string());
    Some(match name {
        "accept" => RuleVerdict::Accept,
        "drop" => RuleVerdict::Drop,
        "return" => RuleVerdict::Return,
        "continue" => RuleVerdict::Continue,
        "jump" => RuleVerdict::Jump { chain: chain()? },
        "goto" => RuleVerdict::Goto { chain: chain()? },
        "queue" => queue(body)?,
        _ => return None,
    })
}

fn queue(body: &J<'_>) -> Option<RuleVerdict> {
    let num = match body.get("num") {
        None => 0,
        Some(num) => match keys::field(num, Ty::Int(0xffff)) {
            Some(Field::Int(first, _)) => first,
            // Chosen by an expression: any queue.
            _ => 0,
        },
    };
    Some(RuleVerdict::Queue {
        num: u16::try_from(num).ok()?,
        bypass: body.has_flag("flags", "bypass"),
    })
}

impl Rule {
    fn push(&mut self, statement: Statement) {
        self.out.statements.push(statement);
    }
    fn unknown_match(&mut self, s: &J<'_>) {
        let text = print::statement(s);
        self.out
            .problems
            .push(format!("match not understood: {text}"));
        self.push(unknown_match(&text));
    }
    fn unknown(&mut self, s: &J<'_>) {
        let text = print::statement(s);
        self.out
            .problems
            .push(format!("statement not understood: {text}"));
        self.push(Statement::Unknown { text });
    }
    fn conditional(&mut self, kind: ConditionKind, s: &J<'_>) {
        let text = print::statement(s);
        self.push(Statement::Match(Match::Conditional(Condition {
            kind,
            text,
        })));
    }

    fn statement(&mut self, s: &J<'_>) {
        if let J::Str(text) = s {
            self.out.texts.push(text.to_string());
            return;
        }
        let Some((name, body)) = s.only() else {
            self.unknown(s);
            return;
        };
        let done = match name {
            "match" => {
                if self.comparison(body).is_none() {
                    self.unknown_match(s);
                }
                Some(())
            }
            "accept" | "drop" | "return" | "continue" | "jump" | "goto" | "queue" => {
                rule_verdict(s).map(|v| self.push(verdict(v)))
            }
            "reject" => {
                self.reject(body);
                Some(())
            }
            "vmap" => self.verdict_map(body),
            "counter" => self.object(body, "counter"),
            "limit" | "quota" => self.metered(name, body, s),
            "ct count" => self.conn_limit(body, s),
            "log" => {
                self.push(Statement::Log {
                    prefix: body.get_text("prefix").map(str::to_string),
                });
                Some(())
            }
            "dnat" | "snat" | "masquerade" | "redirect" => self.nat(name, body),
            "mangle" => self.mangle(body),
            "notrack" => {
                self.push(Statement::NoTrack);
                Some(())
            }
            "set" | "map" | "meter" => self.set_update(name, body),
            "tproxy" => self.tproxy(body),
            "synproxy" if body.text().is_none() => {
                self.push(Statement::Synproxy {
                    text: print::statement(s),
                });
                Some(())
            }
            "ct helper" | "ct timeout" | "ct expectation" | "secmark" | "synproxy" => {
                self.object(body, name)
            }
            "flow" => {
                self.push(Statement::FlowOffload {
                    flowtable: body.get("flowtable").and_then(set_name).unwrap_or_default(),
                });
                Some(())
            }
            "dup" => {
                self.push(Statement::Dup {
                    text: print::statement(s),
                });
                Some(())
            }
            "fwd" => {
                self.push(Statement::Forward {
                    text: print::statement(s),
                });
                Some(())
            }
            "last" | "reset" | "optstrip" => {
                self.push(Statement::Other {
                    text: print::statement(s),
                });
                Some(())
            }
            "xt" => self.xt(body, s),
            _ => None,
        };
        if done.is_none() {
            self.unknown(s);
        }
    }

    /// An extension of iptables, of which nft knows little more than the name.
    fn xt(&mut self, body: &J<'_>, s: &J<'_>) -> Option<()> {
        let name = body.get_text("name")?;
        match (body.get_text("type")?, name) {
            ("match", "comment") => {}
            ("match", _) => self.unknown_match(s),
            ("target" | "watcher", "LOG" | "NFLOG" | "ULOG" | "AUDIT") => {
                self.push(Statement::Log { prefix: None });
            }
            (
                "target",
                "TCPMSS" | "TCPOPTSTRIP" | "DSCP" | "TOS" | "TTL" | "HL" | "ECN" | "CLASSIFY"
                | "CHECKSUM" | "SECMARK" | "CONNSECMARK" | "IDLETIMER" | "LED" | "RATEEST",
            ) => self.push(Statement::Other {
                text: print::statement(s),
            }),
            _ => return None,
        }
        Some(())
    }

    fn object(&mut self, body: &J<'_>, kind: &str) -> Option<()> {
        match body {
            J::Str(name) => self.push(Statement::Object {
                kind: kind.to_string(),
                name: name.to_string(),
            }),
            J::Null => {}
            J::Obj(_) if body.get("map").is_some() => {
                let map = body.get("map")?;
                let (operands, types) = self.operands(map.get("key")?)?;
                let map = sets::reference(map.get("data")?, &types, sets::Gives::Object)?;
                self.push(Statement::ObjectMap {
                    kind: kind.to_string(),
                    keys: operands,
                    map,
                });
            }
            J::Obj(_) if kind == "counter" => {
                let number = |name| body.get(name).and_then(J::number).unwrap_or(0);
                self.out.counters = Some(Counters {
                    packets: number("packets"),
                    bytes: number("bytes"),
                });
            }
            _ => return None,
        }
        Some(())
    }

    fn metered(&mut self, kind: &str, body: &J<'_>, s: &J<'_>) -> Option<()> {
        let condition = match body {
            J::Str(name) => ConditionKind::Named {
                kind: kind.to_string(),
                name: name.to_string(),
            },
            J::Obj(_) if kind == "limit" && body.get("rate").is_some() => limit(body)?,
            J::Obj(_) if kind == "quota" && body.get("val").is_some() => ConditionKind::Quota {
                bytes: body
                    .get("val")?
                    .number()?
                    .checked_mul(unit(body.get_text("val_unit"))?)?,
                over: body.get("inv") == Some(&J::Bool(true)),
            },
            // Chosen by a map: undecided either way.
            J::Obj(_) => ConditionKind::Other,
            _ => return None,
        };
        self.conditional(condition, s);
        Some(())
    }

    fn conn_limit(&mut self, body: &J<'_>, s: &J<'_>) -> Option<()> {
        self.conditional(conn_limit(body)?, s);
        Some(())
    }

    fn reject(&mut self, body: &J<'_>) {
        // nft leaves `meta nfproto` out where the kind of answer implies it, and before a TCP reset too, where
        // nothing else tells it (1.0.6, seen).
        let both = matches!(self.family, Family::Inet | Family::Bridge | Family::Netdev);
        if both {
            match body.get_text("type") {
                Some("icmp") if self.nfproto == Some(2) => {}
                Some("icmpv6") if self.nfproto == Some(10) => {}
                Some("icmp") => self.push(Statement::Match(keys::equals(Key::NfProto, 2))),
                Some("icmpv6") => self.push(Statement::Match(keys::equals(Key::NfProto, 10))),
                Some("tcp reset") if self.nfproto.is_none() => self.push(unknown_match(
                    "(nft may hide a test of the IP version here)",
                )),
                _ => {}
            }
        }
        let with = match (body.get_text("type"), body.get("expr").map(print::expr)) {
            (None, _) => String::new(),
            (Some(kind), None) => kind.to_string(),
            // What a bare `reject` means.
            (Some("icmpx"), Some(code)) if code == "port-unreachable" => String::new(),
            (Some("icmp" | "icmpv6"), Some(code))
                if code == "port-unreachable"
                    && matches!(self.family, Family::Ip | Family::Ip6) =>
            {
                String::new()
            }
            (Some(kind), Some(code)) => format!("{kind} {code}"),
        };
        self.push(verdict(RuleVerdict::Reject { with }));
    }

    /// The conditions that nft leaves unsaid: `tcp dport` means TCP, `ip saddr` IPv4.
    fn require(&mut self, looked: &Looked) {
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
    fn learn(&mut self, key: &Key, negate: bool, values: &Values) {
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

    fn operand(&mut self, expr: &J<'_>) -> Option<(Operand, Ty)> {
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

    fn operands(&mut self, expr: &J<'_>) -> Option<(Vec<Operand>, Vec<Ty>)> {
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

    fn comparison(&mut self, body: &J<'_>) -> Option<()> {
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

    fn membership(
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
    fn refused_header(&self, key: &Key, negate: bool) -> Option<Match> {
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

    fn verdict_map(&mut self, body: &J<'_>) -> Option<()> {
        let (operands, types) = self.operands(body.get("key")?)?;
        let map = sets::reference(body.get("data")?, &types, sets::Gives::Verdict)?;
        self.push(Statement::VerdictMap {
            keys: operands,
            map,
        });
        Some(())
    }

    fn map_expr(&mut self, map: &J<'_>, gives: Ty) -> Option<Expr> {
        let (operands, types) = self.operands(map.get("key")?)?;
        let map = sets::reference(map.get("data")?, &types, sets::Gives::Value(gives))?;
        Some(Expr::Map {
            keys: operands,
            map,
        })
    }

    fn nat(&mut self, name: &str, body: &J<'_>) -> Option<()> {
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

    fn tproxy(&mut self, body: &J<'_>) -> Option<()> {
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

    fn mangle(&mut self, body: &J<'_>) -> Option<()> {
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
    fn value(&mut self, value: &J<'_>) -> Expr {
        self.computed(value)
            .unwrap_or_else(|| Expr::Unknown(print::expr(value)))
    }

    fn computed(&mut self, value: &J<'_>) -> Option<Expr> {
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

    fn set_update(&mut self, kind: &str, body: &J<'_>) -> Option<()> {
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

/// Bytes in a unit of rates and quotas.
fn unit(name: Option<&str>) -> Option<u64> {
    Some(match name.unwrap_or("bytes") {
        "bytes" | "packets" => 1,
        "kbytes" => 1024,
        "mbytes" => 1024 * 1024,
        "gbytes" => 1024 * 1024 * 1024,
        _ => return None,
    })
}

fn limit(body: &J<'_>) -> Option<ConditionKind> {
    let rate_unit = body.get_text("rate_unit");
    Some(ConditionKind::Limit {
        rate: body.get("rate")?.number()?.checked_mul(unit(rate_unit)?)?,
        per: match body.get_text("per").unwrap_or("second") {
            "second" => 1,
            "minute" => 60,
            "hour" => 3600,
            "day" => 86400,
            "week" => 604_800,
            _ => return None,
        },
        burst: body.get("burst").and_then(J::number).unwrap_or(5),
        bytes: rate_unit.is_some_and(|u| u != "packets"),
        over: body.get("inv") == Some(&J::Bool(true)),
    })
}

fn conn_limit(body: &J<'_>) -> Option<ConditionKind> {
    Some(ConditionKind::ConnLimit {
        count: u32::try_from(body.get("val")?.number()?).ok()?,
        above: body.get("inv") == Some(&J::Bool(true)),
    })
}
