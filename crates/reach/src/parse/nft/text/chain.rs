//! Chains and their rules.
use super::{MAX_DEPTH, broken, rest_of_line, skip_block, skip_line};
use crate::ir::{Base, Family, NamePattern, Rule};
use crate::parse::nft::lex::{Kind, Lexer};
use crate::parse::nft::tree::J;
use crate::parse::nft::{Place, Reader, base_of, priority, statement, unread, value};

/// Behind the word `chain`.
pub(super) fn chain(lexer: &mut Lexer<'_>, reader: &mut Reader, table: usize) {
    let Some(name) = lexer.take_text() else {
        broken(lexer, reader);
        return;
    };
    let place = reader.chain(table, name);
    if !lexer.take_sign("{") {
        return;
    }
    if !rules(lexer, reader, place, 0) {
        broken(lexer, reader);
    }
}

/// The rules of a block up to its `}`; false when the text ends before.
fn rules(lexer: &mut Lexer<'_>, reader: &mut Reader, place: Place, depth: usize) -> bool {
    while let Some(token) = lexer.peek() {
        match (token.kind, token.text) {
            (Kind::End, _) => {
                lexer.next();
            }
            (Kind::Sign, "}") => {
                lexer.next();
                return true;
            }
            (Kind::Word, "type") if reader.at(place).rules.is_empty() => {
                lexer.next();
                base(lexer, reader, place);
            }
            (Kind::Word, "policy") if reader.at(place).rules.is_empty() => {
                lexer.next();
                let name = lexer.take_text().unwrap_or_default();
                let known = crate::parse::nft::policy(name);
                match (&mut reader.at(place).base, known) {
                    (Some(base), Some(policy)) => base.policy = policy,
                    _ => policy_unknown(reader, place, token.line),
                }
            }
            (Kind::Word, "flags") if reader.at(place).rules.is_empty() => skip_line(lexer),
            (Kind::Word, "comment") if reader.at(place).rules.is_empty() => {
                lexer.next();
                reader.at(place).comment = lexer.take_text().map(str::to_string);
            }
            _ => rule(lexer, reader, place, depth),
        }
    }
    false
}

fn policy_unknown(reader: &mut Reader, place: Place, line: u32) {
    reader.notes.add(line, "policy not understood");
    let rule = unread("(a policy that is not known)", line);
    reader.at(place).rules.push(rule);
}

/// Behind the word `type`: `filter hook input device "eth0" priority filter - 1`.
fn base(lexer: &mut Lexer<'_>, reader: &mut Reader, place: Place) {
    let line = lexer.line();
    let family = reader.tables[place.table].family;
    match base_line(lexer, family) {
        Some(base) => reader.base(place, base),
        None => {
            reader.notes.add(line, "base chain not understood");
            // Hooked in somewhere, so every packet may meet it.
            reader.lose(line);
            skip_line(lexer);
        }
    }
}

fn base_line(lexer: &mut Lexer<'_>, family: Family) -> Option<Base> {
    let kind = lexer.take_text()?;
    if !lexer.take_word("hook") {
        return None;
    }
    let hook = lexer.take_text()?;
    let mut devices = Vec::new();
    if lexer.take_word("device") {
        devices.push(NamePattern::nft(lexer.take_text()?));
    } else if lexer.take_word("devices") {
        lexer.take_sign("=");
        if !lexer.take_sign("{") {
            return None;
        }
        while !lexer.take_sign("}") {
            let token = lexer.next()?;
            if token.is_text() {
                devices.push(NamePattern::nft(token.text));
            }
        }
    }
    if !lexer.take_word("priority") {
        return None;
    }
    let priority = priority_value(lexer, family)?;
    base_of(kind, hook, priority, None, devices)
}

/// `0`, `-150`, `filter`, `filter - 1`, `dstnat + 5`.
fn priority_value(lexer: &mut Lexer<'_>, family: Family) -> Option<i64> {
    let signed = |text: &str| text.parse::<i64>().ok();
    if lexer.take_sign("-") {
        return signed(lexer.take_text()?).map(|n| -n);
    }
    let text = lexer.take_text()?;
    if let Some(n) = signed(text) {
        return Some(n);
    }
    let base = priority(text, family)?;
    if lexer.take_sign("-") {
        return base.checked_sub(signed(lexer.take_text()?)?);
    }
    if lexer.take_sign("+") {
        return base.checked_add(signed(lexer.take_text()?)?);
    }
    // Written together: `filter-1` does not occur, `-1` as one word does.
    match lexer.peek() {
        Some(token) if token.kind == Kind::Word => {
            let n = signed(token.text)?;
            lexer.next();
            base.checked_add(n)
        }
        _ => Some(base),
    }
}

/// One rule, up to the end of its line.
fn rule(lexer: &mut Lexer<'_>, reader: &mut Reader, place: Place, depth: usize) {
    let Some(first) = lexer.peek() else { return };
    let source = lexer.source;
    let (list, read) = statements_of(lexer, reader, place, depth);
    let end = read.end.max(first.start);
    let whole = source.get(first.start..end).unwrap_or_default();
    let mut text = String::new();
    let mut from = first.start;
    for (start, stop) in read.cuts {
        text.push_str(source.get(from..start).unwrap_or_default());
        from = stop;
    }
    text.push_str(source.get(from.min(end)..end).unwrap_or_default());
    let handle = lexer
        .peek()
        .and(lexer.comment)
        .filter(|(line, _)| *line == first.line)
        .and_then(|(_, c)| value::number(c.strip_prefix("# handle ")?));
    let gap = has_gap(source, first.start, whole);
    let rule = Rule {
        handle,
        text: text.split_whitespace().collect::<Vec<_>>().join(" "),
        comment: read.comment,
        line: first.line,
        ..Rule::default()
    };
    let at = reader.rule(place, &list, rule);
    if gap && at != usize::MAX {
        reader.gaps.push((place, at));
    }
}

/// nft leaves two spaces where a match of iptables has no spelling of its own.
fn has_gap(source: &str, start: usize, whole: &str) -> bool {
    if source[..start].ends_with("\t ") {
        return true;
    }
    let mut quoted = false;
    let mut space = false;
    for byte in whole.bytes() {
        match byte {
            b'"' => quoted = !quoted,
            b' ' if !quoted && space => return true,
            _ => {}
        }
        space = byte == b' ';
    }
    false
}

/// What a rule's line holds besides its statements.
#[derive(Default)]
pub(in crate::parse::nft) struct Line {
    comment: Option<String>,
    /// Byte ranges of counters, which are no part of the rule's text.
    cuts: Vec<(usize, usize)>,
    end: usize,
}

/// Statements of a text of its own, for rules that JSON holds as text.
pub(in crate::parse::nft) fn statements<'a>(
    text: &'a str,
    reader: &mut Reader,
    place: Place,
) -> (Vec<J<'a>>, Line) {
    let mut lexer = Lexer::new(text);
    statements_of(&mut lexer, reader, place, 1)
}

fn statements_of<'a>(
    lexer: &mut Lexer<'a>,
    reader: &mut Reader,
    place: Place,
    depth: usize,
) -> (Vec<J<'a>>, Line) {
    let mut list = Vec::new();
    let mut line = Line::default();
    while let Some(token) = lexer.peek() {
        if token.kind == Kind::End || token.sign("}") {
            break;
        }
        line.end = token.end;
        if token.word("comment") {
            lexer.next();
            if let Some(quoted) = lexer.peek() {
                line.cuts.push((token.start, quoted.end));
                line.end = quoted.end;
            }
            line.comment = lexer.take_text().map(str::to_string);
            continue;
        }
        if token.word("jump") || token.word("goto") {
            lexer.next();
            let target = match lexer.peek() {
                Some(open) if open.sign("{") => anonymous(lexer, reader, place, depth),
                _ => lexer.take_text().map(str::to_string),
            };
            let name = if token.word("jump") { "jump" } else { "goto" };
            list.push(match target {
                Some(target) => J::one(name, J::one("target", J::str(target))),
                None => J::one("unknown", J::str(rest_of_line(lexer, token))),
            });
        } else {
            match statement::statement(lexer) {
                Some(statement) => {
                    if statement
                        .get("counter")
                        .is_some_and(|c| c.get("packets").is_some())
                    {
                        let end = lexer.peek().map_or(lexer.source.len(), |t| t.start);
                        line.cuts.push((token.start, end));
                    }
                    list.push(statement);
                }
                None => list.push(J::one("unknown", J::str(rest_of_line(lexer, token)))),
            }
        }
        line.end = lexer.peek().map_or(lexer.source.len(), |t| t.start);
    }
    (list, line)
}

/// `{ rules }` behind jump or goto: a chain without a name.
fn anonymous(
    lexer: &mut Lexer<'_>,
    reader: &mut Reader,
    place: Place,
    depth: usize,
) -> Option<String> {
    lexer.next();
    if depth >= MAX_DEPTH {
        skip_block(lexer);
        return None;
    }
    let name = format!("__chain{}", reader.tables[place.table].chains.len());
    let inner = reader.chain(place.table, &name);
    rules(lexer, reader, inner, depth + 1).then_some(name)
}
