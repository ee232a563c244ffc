//! One rule: its words put in order, then decoded.
use super::options::{self, Spec};
use super::value::{self, Net};
use super::words::Word;
use super::{matches, targets};
use crate::AddrSet;
use crate::ir::{
    Counters, Ipv, Key, Match, NamePattern, NfHook, Operand, RuleVerdict, Statement, Values,
};
use crate::parse::{unknown_match, verdict};
use std::collections::HashMap;

/// Where a rule stands.
pub(super) struct Scope<'a> {
    pub(super) ipv6: bool,
    pub(super) hook: Option<NfHook>,
    pub(super) chains: &'a HashMap<String, usize>,
}

impl Scope<'_> {
    pub(super) fn ip(&self) -> Ipv {
        if self.ipv6 { Ipv::V6 } else { Ipv::V4 }
    }
}

/// What a rule's words say.
#[derive(Default)]
pub(super) struct Parsed {
    pub(super) statements: Vec<Statement>,
    pub(super) comment: Option<String>,
    pub(super) counters: Option<Counters>,
    /// False for a rule that its `-4` or `-6` keeps out of this family.
    pub(super) applies: bool,
}

/// An option of a match or target.
pub(super) struct Opt<'a> {
    pub(super) name: &'a str,
    pub(super) negate: bool,
    pub(super) args: Vec<&'a str>,
    /// It is one of its module's, with the right number of words.
    pub(super) known: bool,
}

impl<'a> Opt<'a> {
    /// The first word behind it.
    pub(super) fn arg(&self) -> &'a str {
        self.args.first().copied().unwrap_or_default()
    }
}

/// A match (`-m NAME`) or target (`-j NAME`) with its options.
pub(super) struct Module<'a> {
    pub(super) name: &'a str,
    pub(super) target: bool,
    goto: bool,
    pub(super) opts: Vec<Opt<'a>>,
    spec: Option<Spec>,
    /// Byte range in the line.
    span: (usize, usize),
}

impl<'a> Module<'a> {
    pub(super) fn opt(&self, name: &str) -> Option<&Opt<'a>> {
        self.opts.iter().find(|o| o.name == name)
    }
    pub(super) fn has(&self, name: &str) -> bool {
        self.opt(name).is_some()
    }
    fn arity(&self, option: &str) -> Option<usize> {
        let found = self.spec?.iter().find(|(name, _)| *name == option)?;
        Some(found.1)
    }
}

struct Reader<'a, 'w> {
    line: &'a str,
    words: &'w [Word<'a>],
    at: usize,
    ipv6: bool,
    statements: Vec<Statement>,
    modules: Vec<Module<'w>>,
    protocol: Option<&'w str>,
    counters: Option<Counters>,
    applies: bool,
}

/// Decodes the words behind `-A CHAIN`.
pub(super) fn parse(
    line: &str,
    words: &[Word<'_>],
    scope: &Scope<'_>,
    problems: &mut Vec<String>,
) -> Parsed {
    let mut reader = Reader {
        line,
        words,
        at: 0,
        ipv6: scope.ipv6,
        statements: vec![],
        modules: vec![],
        protocol: None,
        counters: None,
        applies: true,
    };
    while reader.at < words.len() {
        reader.option();
    }
    let mut out = Parsed {
        counters: reader.counters,
        applies: reader.applies,
        ..Parsed::default()
    };
    // A target ends the rule wherever it was written.
    let (targets, matches): (Vec<_>, Vec<_>) = reader.modules.into_iter().partition(|m| m.target);
    // What iptables tests by itself comes first, wherever it was written: ports make sense of a known protocol.
    out.statements = reader.statements;
    for module in &matches {
        let text = span(line, module.span);
        if module.name == "comment" && module.opts.iter().all(|o| o.known) {
            let comment = module.opt("--comment").map(|o| o.arg().to_string());
            out.comment = out.comment.or(comment);
            continue;
        }
        let drops = targets.iter().all(harmless);
        match matches::decode(module, scope, text, drops) {
            Some(decoded) => out
                .statements
                .extend(decoded.into_iter().map(Statement::Match)),
            None => {
                problems.push(format!("match not understood: {text}"));
                out.statements.push(unknown_match(text));
            }
        }
    }
    for statement in &out.statements {
        if let Statement::Match(Match::Unknown { text }) = statement
            && !problems.iter().any(|p| p.ends_with(text.as_str()))
        {
            problems.push(format!("match not understood: {text}"));
        }
    }
    for module in &targets {
        let text = span(line, module.span);
        if module.goto {
            out.statements
                .push(jump(module, scope, true, text, problems));
            continue;
        }
        match targets::decode(module, scope, text) {
            Some(decoded) => {
                if matches!(decoded[..], [Statement::Unknown { .. }]) {
                    problems.push(format!("target not understood: {text}"));
                }
                out.statements.extend(decoded);
            }
            None => out
                .statements
                .push(jump(module, scope, false, text, problems)),
        }
    }
    out
}

/// Whether a client gains nothing from meeting this target's rule.
fn harmless(target: &Module<'_>) -> bool {
    matches!(target.name, "DROP" | "REJECT" | "LOG" | "NFLOG" | "AUDIT")
}

fn span(line: &str, (start, end): (usize, usize)) -> &str {
    line.get(start..end).unwrap_or(line)
}

fn jump(
    module: &Module<'_>,
    scope: &Scope<'_>,
    goto: bool,
    text: &str,
    problems: &mut Vec<String>,
) -> Statement {
    if scope.chains.contains_key(module.name) && module.opts.is_empty() {
        let chain = module.name.to_string();
        return verdict(if goto {
            RuleVerdict::Goto { chain }
        } else {
            RuleVerdict::Jump { chain }
        });
    }
    problems.push(format!("target not understood: {text}"));
    Statement::Unknown {
        text: text.to_string(),
    }
}

impl<'a, 'w> Reader<'a, 'w> {
    fn peek(&self) -> Option<&'w Word<'a>> {
        self.words.get(self.at)
    }
    /// The next word as an argument; a bare `!` before it (the spelling of old versions) negates.
    fn argument(&mut self, negate: &mut bool) -> Option<&'w str> {
        if self.peek().is_some_and(|w| w.is("!")) {
            *negate = !*negate;
            self.at += 1;
        }
        let word = self.peek()?;
        self.at += 1;
        Some(&word.text)
    }
    fn unknown_from(&mut self, start: usize) {
        let from = self.words.get(start).map_or(0, |w| w.span.0);
        let to = self.words[..self.at]
            .last()
            .map_or(self.line.len(), |w| w.span.1);
        self.statements
            .push(unknown_match(span(self.line, (from, to))));
    }

    fn option(&mut self) {
        let start = self.at;
        let mut negate = false;
        while self.peek().is_some_and(|w| w.is("!")) {
            negate = !negate;
            self.at += 1;
        }
        let Some(word) = self.peek() else {
            self.unknown_from(start);
            return;
        };
        self.at += 1;
        if word.quoted {
            self.unknown_from(start);
            return;
        }
        let done = match word.text.as_ref() {
            "-s" | "--source" | "--src" => self.address(negate, Key::Saddr),
            "-d" | "--destination" | "--dst" => self.address(negate, Key::Daddr),
            "-i" | "--in-interface" => self.interface(negate, Key::IifName),
            "-o" | "--out-interface" => self.interface(negate, Key::OifName),
            "-p" | "--protocol" | "--proto" => self.protocol(negate),
            "-f" | "--fragment" => {
                self.statements.push(Statement::Match(Match::Cmp {
                    of: Key::FragmentOffset.into(),
                    negate: !negate,
                    values: Values::int(0),
                }));
                Some(())
            }
            "-4" | "--ipv4" => {
                self.applies &= !self.ipv6;
                Some(())
            }
            "-6" | "--ipv6" => {
                self.applies &= self.ipv6;
                Some(())
            }
            "-c" | "--set-counters" => self.set_counters(),
            "-m" | "--match" => self.module(start, false, false),
            "-j" | "--jump" => self.module(start, true, false),
            "-g" | "--goto" => self.module(start, true, true),
            _ => {
                self.extension(start, negate, &word.text);
                Some(())
            }
        };
        if done.is_none() {
            self.unknown_from(start);
        }
    }

    fn set_counters(&mut self) -> Option<()> {
        let packets = self.argument(&mut false)?.parse().ok()?;
        let bytes = self.argument(&mut false)?.parse().ok()?;
        self.counters = Some(Counters { packets, bytes });
        Some(())
    }

    fn module(&mut self, start: usize, target: bool, goto: bool) -> Option<()> {
        let name = self.argument(&mut false)?;
        let spec = if target {
            options::of_target(name)
        } else {
            options::of_match(name)
        };
        self.modules.push(Module {
            name,
            target,
            goto,
            opts: vec![],
            spec,
            span: (self.words[start].span.0, self.words[self.at - 1].span.1),
        });
        Some(())
    }

    fn address(&mut self, mut negate: bool, key: fn(Ipv) -> Key) -> Option<()> {
        let text = self.argument(&mut negate)?;
        let ip = if self.ipv6 { Ipv::V6 } else { Ipv::V4 };
        let mut ranges = Vec::new();
        for part in text.split(',') {
            match value::network(part, self.ipv6)? {
                Net::Range(first, last) => ranges.push((first, last)),
                Net::Masked(address, mask) => {
                    if text.contains(',') {
                        return None;
                    }
                    self.statements.push(Statement::Match(Match::Cmp {
                        of: Operand {
                            key: key(ip),
                            mask: Some(mask),
                        },
                        negate,
                        values: Values::Addr(AddrSet::from_range(address, address)),
                    }));
                    return Some(());
                }
            }
        }
        let set = AddrSet::from_ranges(ranges);
        if negate || set != value::all_addresses(self.ipv6) {
            self.statements.push(Statement::Match(Match::Cmp {
                of: key(ip).into(),
                negate,
                values: Values::Addr(set),
            }));
        }
        Some(())
    }

    fn interface(&mut self, mut negate: bool, key: Key) -> Option<()> {
        let name = NamePattern::xtables(self.argument(&mut negate)?);
        if negate || !(name.wildcard && name.name.is_empty()) {
            self.statements.push(Statement::Match(Match::Cmp {
                of: key.into(),
                negate,
                values: Values::Name(vec![name]),
            }));
        }
        Some(())
    }

    fn protocol(&mut self, mut negate: bool) -> Option<()> {
        let name = self.argument(&mut negate)?;
        let number = value::protocol(name)?;
        if !negate {
            self.protocol = Some(name);
        }
        // 0 and "all" mean any; "! all" is refused by the tool.
        if number != 0 {
            self.statements.push(Statement::Match(Match::Cmp {
                of: Key::L4Proto.into(),
                negate,
                values: Values::int(number.into()),
            }));
        } else if negate {
            return None;
        }
        Some(())
    }

    /// An option of a match or of the target: of the one named last, else of an earlier one, else of the
    /// protocol's own match, which `-p` loads by itself.
    fn extension(&mut self, start: usize, mut negate: bool, name: &'w str) {
        let known = |m: &Module<'_>| m.arity(name).is_some();
        let mut owner = self.modules.iter().rposition(known);
        if owner.is_none()
            && let Some(implied) = self.implied(name)
        {
            self.modules.push(implied);
            owner = Some(self.modules.len() - 1);
        }
        let arity = owner.and_then(|at| self.modules[at].arity(name));
        let mut args = Vec::new();
        match arity {
            Some(count) => {
                for _ in 0..count {
                    if let Some(arg) = self.argument(&mut negate) {
                        args.push(arg);
                    }
                }
            }
            None => {
                while let Some(word) = self.peek() {
                    if !word.quoted && (word.text.starts_with('-') || word.text == "!") {
                        break;
                    }
                    args.push(word.text.as_ref());
                    self.at += 1;
                }
            }
        }
        let known = arity.is_some_and(|n| n == args.len());
        let Some(at) = owner.or(self.modules.len().checked_sub(1)) else {
            self.unknown_from(start);
            return;
        };
        let end = self.words[self.at - 1].span.1;
        let module = &mut self.modules[at];
        module.span.1 = module.span.1.max(end);
        module.opts.push(Opt {
            name,
            negate,
            args,
            known,
        });
    }

    /// The match that `-p` implies, if it has this option.
    fn implied(&self, option: &str) -> Option<Module<'w>> {
        let name = match self.protocol?.to_ascii_lowercase().as_str() {
            "tcp" | "6" => "tcp",
            "udp" | "17" => "udp",
            "udplite" | "136" => "udplite",
            "sctp" | "132" => "sctp",
            "dccp" | "33" => "dccp",
            "icmp" | "1" => "icmp",
            "icmpv6" | "ipv6-icmp" | "58" => "icmp6",
            "esp" | "50" => "esp",
            "ah" | "51" => "ah",
            "mh" | "ipv6-mh" | "135" => "mh",
            _ => return None,
        };
        let module = Module {
            name,
            target: false,
            goto: false,
            opts: vec![],
            spec: options::of_match(name),
            span: self.words[self.at - 1].span,
        };
        module.arity(option).is_some().then_some(module)
    }
}
