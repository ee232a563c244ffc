//! One rule's statements.
use super::keys::{self, Ty};
use super::print;
use super::sets;
use super::tree::J;
use crate::ir::{
    Condition, ConditionKind, Counters, Family, Field, Key, Match, RuleVerdict, Statement,
};
use crate::parse::{unknown_match, verdict};

mod change;
mod compare;

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

    fn verdict_map(&mut self, body: &J<'_>) -> Option<()> {
        let (operands, types) = self.operands(body.get("key")?)?;
        let map = sets::reference(body.get("data")?, &types, sets::Gives::Verdict)?;
        self.push(Statement::VerdictMap {
            keys: operands,
            map,
        });
        Some(())
    }
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
