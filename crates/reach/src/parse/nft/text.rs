//! `nft list ruleset` as text: nft(8).
use super::lex::{Kind, Lexer, Token};
use super::sets::{self, Gives};
use super::tree::J;
use super::{Place, Reader, base_of, expr, family, keys, priority, unread, value};
use crate::ir::{Base, Family, NamePattern, NftSet, Rule};

/// Blocks within blocks that are followed.
const MAX_DEPTH: usize = 8;

pub(super) fn read(text: &str, reader: &mut Reader) {
    let mut lexer = Lexer::new(text);
    while let Some(token) = lexer.next() {
        note_managed(&lexer, reader);
        match (token.kind, token.text) {
            (Kind::End, _) => {}
            (Kind::Word, "table") => table(&mut lexer, reader),
            // Harmless lines of a rules file.
            (Kind::Word, "flush" | "define" | "redefine" | "undefine") => skip_line(&mut lexer),
            _ => {
                let text = rest_of_line(&mut lexer, token);
                reader
                    .notes
                    .add(token.line, format!("not understood: {text}"));
                reader.lose(token.line);
            }
        }
    }
    note_managed(&lexer, reader);
}

/// `# Warning: table ip filter is managed by iptables-nft, do not touch!`
fn note_managed(lexer: &Lexer<'_>, reader: &mut Reader) {
    let Some((_, comment)) = lexer.comment else {
        return;
    };
    if let Some(rest) = comment.strip_prefix("# Warning: table ")
        && rest.contains("managed by iptables-nft")
    {
        let mut words = rest.split(' ');
        if let (Some(family), Some(name)) = (words.next().and_then(family), words.next()) {
            reader.managed.insert((family, name.to_string()));
        }
    }
}

fn skip_line(lexer: &mut Lexer<'_>) {
    let mut depth = 0usize;
    while let Some(token) = lexer.peek() {
        match token.text {
            _ if token.kind == Kind::End && depth == 0 => return,
            "{" if token.kind == Kind::Sign => depth += 1,
            "}" if token.kind == Kind::Sign => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return,
            },
            _ => {}
        }
        lexer.next();
    }
}

/// Skips to the end of the statement's line, whole blocks included, and gives its text.
fn rest_of_line<'a>(lexer: &mut Lexer<'a>, from: Token<'a>) -> &'a str {
    let mut end = from.end;
    if from.sign("{") {
        skip_block(lexer);
    }
    let mut depth = 0usize;
    while let Some(token) = lexer.peek() {
        match token.text {
            _ if token.kind == Kind::End && depth == 0 => break,
            "{" if token.kind == Kind::Sign => depth += 1,
            "}" if token.kind == Kind::Sign => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => break,
            },
            _ => {}
        }
        end = token.end;
        lexer.next();
    }
    lexer.source.get(from.start..end).unwrap_or_default()
}

/// Skips to behind the `}` of an open block; false when the text ends before.
fn skip_block(lexer: &mut Lexer<'_>) -> bool {
    let mut depth = 1usize;
    while let Some(token) = lexer.next() {
        if token.sign("{") {
            depth += 1;
        } else if token.sign("}") {
            depth -= 1;
            if depth == 0 {
                return true;
            }
        }
    }
    false
}

fn broken(lexer: &Lexer<'_>, reader: &mut Reader) {
    const TOLD: &str = "the dump breaks off: what is missing may do anything";
    let line = lexer.line();
    // Every block that is still open ends here: said once.
    if reader.notes.list.last().is_none_or(|n| n.text != TOLD) {
        reader.notes.add(line, TOLD);
    }
    reader.lose(line);
}

/// Behind the word `table`.
fn table(lexer: &mut Lexer<'_>, reader: &mut Reader) {
    let first = lexer.take_text();
    let (family, name) = match first.and_then(family) {
        Some(family) => (family, lexer.take_text()),
        None => (Family::Ip, first),
    };
    let Some(name) = name else {
        broken(lexer, reader);
        return;
    };
    let at = reader.table(family, name);
    if !lexer.take_sign("{") {
        // `table ip x` alone declares an empty one.
        return;
    }
    while let Some(token) = lexer.next() {
        match (token.kind, token.text) {
            (Kind::End, _) => {}
            (Kind::Sign, "}") => return,
            (Kind::Word, "flags") => {
                while let Some(flag) = lexer.take_text() {
                    reader.table_flag(at, flag, token.line);
                    lexer.take_sign(",");
                }
            }
            (Kind::Word, "comment") => {
                reader.tables[at].comment = lexer.take_text().map(str::to_string);
            }
            (Kind::Word, "chain") => chain(lexer, reader, at),
            (Kind::Word, "set" | "map" | "meter") => set(lexer, reader, at, token.text != "set"),
            (
                Kind::Word,
                "counter" | "quota" | "limit" | "ct" | "flowtable" | "secmark" | "synproxy"
                | "tunnel",
            ) => object(lexer, reader, at, token),
            _ => {
                let text = rest_of_line(lexer, token);
                reader
                    .notes
                    .add(token.line, format!("not understood: {text}"));
                reader.lose(token.line);
            }
        }
    }
    broken(lexer, reader);
}

fn object(lexer: &mut Lexer<'_>, reader: &mut Reader, table: usize, first: Token<'_>) {
    let kind = match (first.text, lexer.peek()) {
        ("ct", Some(token)) if token.is_text() => {
            lexer.next();
            format!("ct {}", token.text)
        }
        (other, _) => other.to_string(),
    };
    let name = lexer.take_text().unwrap_or_default().to_string();
    let start = lexer.peek().map_or(0, |t| t.end);
    if !lexer.take_sign("{") {
        return;
    }
    if !skip_block(lexer) {
        broken(lexer, reader);
    }
    let end = lexer.peek().map_or(lexer.source.len(), |t| t.start);
    let text = lexer.source.get(start..end).unwrap_or_default();
    let text = text
        .split_whitespace()
        .take(100)
        .collect::<Vec<_>>()
        .join(" ");
    let text = text.trim_end_matches(['}', ' ']).to_string();
    reader.object(table, &kind, &name, text);
}

/// Behind the word `set` or `map`.
fn set(lexer: &mut Lexer<'_>, reader: &mut Reader, table: usize, map: bool) {
    let name = lexer.take_text().unwrap_or_default().to_string();
    let family = reader.tables[table].family;
    let at = reader.set(
        table,
        NftSet {
            name,
            ..NftSet::default()
        },
    );
    if !lexer.take_sign("{") {
        reader.tables[table].sets[at].incomplete = true;
        return;
    }
    let mut types = Vec::new();
    let mut gives = if map { Gives::Any } else { Gives::Nothing };
    while let Some(token) = lexer.next() {
        let set = &mut reader.tables[table].sets[at];
        match (token.kind, token.text) {
            (Kind::End, _) => {}
            (Kind::Sign, "}") => return,
            (Kind::Word, "type") => (types, gives) = declared(lexer, map),
            (Kind::Word, "typeof") => (types, gives) = type_of(lexer, family, map),
            (Kind::Word, "flags") => {
                while let Some(flag) = lexer.take_text() {
                    match flag {
                        "constant" => set.constant = true,
                        "interval" => set.interval = true,
                        "dynamic" => set.dynamic = true,
                        "timeout" => set.timeout = true,
                        _ => set.incomplete = true,
                    }
                    lexer.take_sign(",");
                }
            }
            (Kind::Word, "timeout") => {
                set.timeout = true;
                lexer.next();
            }
            (Kind::Word, "comment") => set.comment = lexer.take_text().map(str::to_string),
            (Kind::Word, "gc-interval" | "size" | "policy") => {
                lexer.next();
            }
            (Kind::Word, "auto-merge") => {}
            // Statements that every element carries.
            (Kind::Word, "counter" | "last") => skip_line(lexer),
            (Kind::Word, "elements") => {
                lexer.take_sign("=");
                if !lexer.take_sign("{") || !elements(lexer, reader, table, at, &types, gives) {
                    reader.tables[table].sets[at].incomplete = true;
                }
            }
            _ => {
                set.incomplete = true;
                let text = rest_of_line(lexer, token);
                reader
                    .notes
                    .add(token.line, format!("set: not understood: {text}"));
            }
        }
    }
    reader.tables[table].sets[at].incomplete = true;
    broken(lexer, reader);
}

/// `ipv4_addr . inet_service : verdict`.
fn declared(lexer: &mut Lexer<'_>, map: bool) -> (Vec<keys::Ty>, Gives) {
    let mut sides: [Vec<&str>; 2] = [vec![], vec![]];
    let mut side = 0;
    while let Some(token) = lexer.peek() {
        match (token.kind, token.text) {
            (Kind::End, _) | (Kind::Sign, "}") => break,
            (Kind::Sign, ":") => side = 1,
            (Kind::Word, name) => sides[side].push(name),
            _ => {}
        }
        lexer.next();
    }
    let ty = |name: &&str| keys::Ty::named(name).unwrap_or(keys::Ty::Guess);
    let types = sides[0].iter().map(ty).collect();
    let gives = match &sides[1][..] {
        _ if !map => Gives::Nothing,
        ["verdict"] => Gives::Verdict,
        ["counter" | "quota" | "limit" | "secmark" | "synproxy"] | ["ct", _] => Gives::Object,
        [one] => Gives::Value(ty(one)),
        _ => Gives::Any,
    };
    (types, gives)
}

/// `ip saddr . tcp dport : meta mark`.
fn type_of(lexer: &mut Lexer<'_>, family: Family, map: bool) -> (Vec<keys::Ty>, Gives) {
    let types = |parsed: Option<J<'_>>| {
        parsed.map_or(vec![], |e| sets::types(&J::one("typeof", e), family))
    };
    let key = types(expr::concat(lexer, 0));
    let mut gives = if map { Gives::Any } else { Gives::Nothing };
    if lexer.take_sign(":") {
        if lexer.take_word("verdict") {
            gives = Gives::Verdict;
        } else if let [ty] = types(expr::concat(lexer, 0))[..] {
            gives = Gives::Value(ty);
        }
    }
    skip_line(lexer);
    (key, gives)
}

/// Behind `elements = {`; false when something was not understood.
fn elements(
    lexer: &mut Lexer<'_>,
    reader: &mut Reader,
    table: usize,
    set: usize,
    types: &[keys::Ty],
    gives: Gives,
) -> bool {
    let mut whole = true;
    loop {
        while lexer
            .peek()
            .is_some_and(|t| t.kind == Kind::End || t.sign(","))
        {
            lexer.next();
        }
        if lexer.take_sign("}") {
            return whole;
        }
        if lexer.peek().is_none() {
            return false;
        }
        match expr::element(lexer, 0) {
            Some(item) => reader.elements(table, set, &[item], types, gives),
            None => {
                whole = false;
                // On to the next element.
                while let Some(token) = lexer.peek() {
                    if token.sign(",") || token.sign("}") {
                        break;
                    }
                    lexer.next();
                    if token.sign("{") && !skip_block(lexer) {
                        return false;
                    }
                }
            }
        }
    }
}

/// Behind the word `chain`.
fn chain(lexer: &mut Lexer<'_>, reader: &mut Reader, table: usize) {
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
                let known = super::policy(name);
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
pub(super) struct Line {
    comment: Option<String>,
    /// Byte ranges of counters, which are no part of the rule's text.
    cuts: Vec<(usize, usize)>,
    end: usize,
}

/// Statements of a text of its own, for rules that JSON holds as text.
pub(super) fn statements<'a>(
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
            match expr::statement(lexer) {
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
