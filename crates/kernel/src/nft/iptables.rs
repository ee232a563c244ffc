//! Tables that iptables-nft wrote, told apart from native ones and spelled as iptables-save does.
//!
//! iptables-nft writes `-s`, `-i`, `-p`, ports, `-m mark` and `-m limit` as native expressions and
//! the rest as xt matches and targets. What cannot be spelled so is not iptables' and the table
//! is then read as a native one.

use super::rule::Decoded;
use crate::xt;
use reach::ir::{
    Condition, ConditionKind, Expr, Key, Match, Operand, RuleVerdict, Statement, Target, Values,
};

/// What a rule of iptables looks like: options in the order of iptables-save.
#[derive(Default)]
struct Line {
    source: String,
    destination: String,
    input: String,
    output: String,
    protocol: String,
    fragment: String,
    matches: String,
    target: String,
    /// The single protocol that `-p` asks for.
    number: Option<u8>,
    /// Options of the protocol's own match that are still being collected, in the order that
    /// iptables-save prints them: source port, destination port, flags.
    transport: [String; 3],
}

/// `-A CHAIN …`; `None` when iptables could not have written the rule.
pub(crate) fn rule_line(chain: &str, rule: &Decoded, comment: Option<&str>) -> Option<String> {
    // Every rule of iptables counts.
    rule.counters?;
    let mut line = Line::default();
    let mut at = 0;
    let mut extensions = rule.extensions.iter().peekable();
    loop {
        if let Some(e) = extensions.next_if(|e| e.at == at) {
            line.extension(e.target, &e.text)?;
            at += e.len;
            continue;
        }
        let Some(statement) = rule.statements.get(at) else {
            break;
        };
        line.native(statement)?;
        at += 1;
    }
    line.flush()?;
    if let Some(comment) = comment {
        line.matches += &format!(" -m comment --comment {}", xt::quoted(comment));
    }
    let name = xt::chain_word(chain)?;
    Some(format!(
        "-A {name}{}{}{}{}{}{}{}{}",
        line.source,
        line.destination,
        line.input,
        line.output,
        line.protocol,
        line.fragment,
        line.matches,
        line.target
    ))
}

fn not(negate: bool) -> &'static str {
    if negate { " !" } else { "" }
}

impl Line {
    fn extension(&mut self, target: bool, text: &str) -> Option<()> {
        if !self.target.is_empty() {
            return None;
        }
        if target {
            self.target = text.to_owned();
        } else {
            self.flush()?;
            self.matches += text;
        }
        Some(())
    }

    fn native(&mut self, statement: &Statement) -> Option<()> {
        if !self.target.is_empty() {
            return None;
        }
        match statement {
            Statement::Match(m) => self.condition(m),
            Statement::Verdict(v) => {
                self.target = match v {
                    RuleVerdict::Accept => " -j ACCEPT".to_owned(),
                    RuleVerdict::Drop => " -j DROP".to_owned(),
                    RuleVerdict::Return => " -j RETURN".to_owned(),
                    RuleVerdict::Jump { chain } => format!(" -j {}", xt::chain_word(chain)?),
                    RuleVerdict::Goto { chain } => format!(" -g {}", xt::chain_word(chain)?),
                    _ => return None,
                };
                Some(())
            }
            Statement::Assign {
                target: Target::Trace,
                value: Expr::Int(1),
            } => {
                self.target = " -j TRACE".to_owned();
                Some(())
            }
            _ => None,
        }
    }

    fn condition(&mut self, m: &Match) -> Option<()> {
        match m {
            Match::Cmp { of, negate, values } => self.comparison(of, *negate, values),
            // `--tcp-flags MASK NONE` compares with zero.
            Match::Bits {
                key: Key::TcpFlags,
                negate,
                bits,
            } => self.tcp_flags(u8::try_from(*bits).ok()?, 0, !negate),
            Match::Bits {
                key: Key::Mark,
                negate,
                bits,
            } => self.mark(0, u32::try_from(*bits).ok()?, !negate),
            Match::Conditional(Condition {
                kind:
                    ConditionKind::Limit {
                        rate,
                        per,
                        burst,
                        bytes: false,
                        over: false,
                    },
                ..
            }) => {
                let avg = per.checked_mul(10_000)?.checked_div(*rate)?;
                self.flush()?;
                self.matches += &format!(" -m limit{}", xt::limit_text(avg, *burst));
                Some(())
            }
            _ => None,
        }
    }

    fn comparison(&mut self, of: &Operand, negate: bool, values: &Values) -> Option<()> {
        let not = not(negate);
        match (&of.key, values) {
            (Key::Saddr(_) | Key::Daddr(_), Values::Addr(set)) => {
                let text = match of.mask {
                    None => match &set.to_cidrs()[..] {
                        [net] => net.to_string(),
                        _ => return None,
                    },
                    Some(mask) => {
                        let address = set.first()?;
                        let mask = match address.is_ipv4() {
                            true => std::net::Ipv4Addr::from_bits(mask as u32).to_string(),
                            false => std::net::Ipv6Addr::from_bits(mask).to_string(),
                        };
                        format!("{address}/{mask}")
                    }
                };
                let (slot, option) = match of.key {
                    Key::Saddr(_) => (&mut self.source, "-s"),
                    _ => (&mut self.destination, "-d"),
                };
                put(slot, format!("{not} {option} {text}"))
            }
            (Key::IifName | Key::OifName, Values::Name(names)) if of.mask.is_none() => {
                let [name] = &names[..] else { return None };
                // A name that ends in + and is meant so cannot be spelled.
                if !name.wildcard && name.name.ends_with('+') {
                    return None;
                }
                let plus = if name.wildcard { "+" } else { "" };
                let (slot, option) = match of.key {
                    Key::IifName => (&mut self.input, "-i"),
                    _ => (&mut self.output, "-o"),
                };
                let text = xt::name_word(&format!("{}{plus}", name.name));
                put(slot, format!("{not} {option} {text}"))
            }
            (Key::L4Proto, Values::Int(set)) if of.mask.is_none() => {
                let number = single(set)?;
                if !negate {
                    self.number = u8::try_from(number).ok();
                }
                let name = protocol(number);
                put(&mut self.protocol, format!("{not} -p {name}"))
            }
            (Key::FragmentOffset, Values::Int(set)) if single(set)? == 0 => {
                // `-f` asks for any offset but zero.
                let not = if negate { "" } else { " !" };
                put(&mut self.fragment, format!("{not} -f"))
            }
            (Key::Sport | Key::Dport, Values::Int(set)) if of.mask.is_none() => {
                let [(first, last)] = *set.intervals() else {
                    return None;
                };
                let option = match of.key {
                    Key::Sport => "--sport",
                    _ => "--dport",
                };
                let (first, last) = (u16::try_from(first).ok()?, u16::try_from(last).ok()?);
                let text = match (first, last, negate) {
                    // An explicit full range is a match all the same.
                    (0, u16::MAX, false) => format!(" {option} 0:65535"),
                    _ => xt::port_option(option, first, last, negate),
                };
                self.transport(usize::from(of.key == Key::Dport), text)
            }
            (Key::TcpFlags, Values::Int(set)) => {
                let value = u8::try_from(single(set)?).ok()?;
                let mask = of.mask.map_or(Some(0xff), |m| u8::try_from(m).ok())?;
                self.tcp_flags(mask, value, negate)
            }
            (Key::Mark, Values::Int(set)) => {
                let value = u32::try_from(single(set)?).ok()?;
                let mask = of.mask.map_or(Some(u32::MAX), |m| u32::try_from(m).ok())?;
                self.mark(value, mask, negate)
            }
            _ => None,
        }
    }

    fn mark(&mut self, value: u32, mask: u32, negate: bool) -> Option<()> {
        self.flush()?;
        self.matches += &format!(" -m mark{}", xt::mark_text(value, mask, negate));
        Some(())
    }

    fn tcp_flags(&mut self, mask: u8, value: u8, negate: bool) -> Option<()> {
        if self.number != Some(6) {
            return None;
        }
        let (mask, value) = (xt::tcp_flags(mask)?, xt::tcp_flags(value)?);
        self.transport(2, format!("{} --tcp-flags {mask} {value}", not(negate)))
    }

    /// An option of the protocol's own match.
    fn transport(&mut self, slot: usize, text: String) -> Option<()> {
        if !self.transport[slot].is_empty() {
            self.flush()?;
        }
        self.transport[slot] = text;
        Some(())
    }

    /// Writes the protocol's own match, if any of its options came up.
    fn flush(&mut self) -> Option<()> {
        let options = std::mem::take(&mut self.transport).concat();
        if !options.is_empty() {
            let name = match self.number? {
                6 => "tcp",
                17 => "udp",
                _ => return None,
            };
            self.matches += &format!(" -m {name}{options}");
        }
        Some(())
    }
}

fn put(slot: &mut String, text: String) -> Option<()> {
    if !slot.is_empty() {
        return None;
    }
    *slot = text;
    Some(())
}

fn single(set: &reach::ir::IntSet) -> Option<u64> {
    match set.intervals() {
        [(first, last)] if first == last => Some(*first),
        _ => None,
    }
}

/// The names that every iptables prints; others as numbers.
pub(crate) fn protocol(number: u64) -> String {
    match number {
        1 => "icmp".to_owned(),
        2 => "igmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        47 => "gre".to_owned(),
        50 => "esp".to_owned(),
        51 => "ah".to_owned(),
        58 => "ipv6-icmp".to_owned(),
        132 => "sctp".to_owned(),
        136 => "udplite".to_owned(),
        n => n.to_string(),
    }
}
