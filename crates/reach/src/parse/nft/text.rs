//! `nft list ruleset` as text: nft(8).
use super::lex::{Kind, Lexer, Token};
use super::sets::{self, Gives};
use super::tree::J;
use super::{Reader, block, expr, family, keys};
use crate::ir::{Family, NftSet};

pub(super) mod chain;
use chain::chain;

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
        match block::element(lexer, 0) {
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
