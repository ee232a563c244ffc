//! Values, and blocks of them: the elements of sets and maps.
use super::expr::{MAX_DEPTH, relation};
use super::lex::{Kind, Lexer};
use super::sets::seconds;
use super::statement::{counter, statement};
use super::tree::J;

pub(super) fn map_of<'a>(lexer: &mut Lexer<'a>, key: J<'a>) -> Option<J<'a>> {
    if !lexer.take_word("map") {
        return None;
    }
    let data = block_or_name(lexer, 0)?;
    Some(J::one("map", J::obj([("key", key), ("data", data)])))
}

/// `{ … }` or `@name`.
pub(super) fn block_or_name<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    if lexer.peek()?.sign("{") {
        return block(lexer, depth);
    }
    let name = lexer.take_text()?;
    name.starts_with('@').then(|| J::str(name))
}

/// `{ a, b : c, … }` as `{"set": […]}`.
pub(super) fn block<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    if depth > MAX_DEPTH || !lexer.take_sign("{") {
        return None;
    }
    let mut items = Vec::new();
    loop {
        while lexer
            .peek()?
            .sign(",")
            .then_some(())
            .or(lexer.peek().filter(|t| t.kind == Kind::End).map(|_| ()))
            .is_some()
        {
            lexer.next();
        }
        if lexer.take_sign("}") {
            return Some(J::one("set", J::Arr(items)));
        }
        items.push(element(lexer, depth + 1)?);
    }
}

/// An element: key parts, attributes, and what a map gives.
pub(super) fn element<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    let key = values(lexer)?;
    let mut attributes = Vec::new();
    loop {
        let token = lexer.peek()?;
        match token.text {
            _ if token.kind == Kind::End => {
                lexer.next();
            }
            "timeout" | "expires" if token.kind == Kind::Word => {
                lexer.next();
                let name = if token.text == "timeout" {
                    "timeout"
                } else {
                    "expires"
                };
                let text = lexer.take_text()?;
                let seconds = seconds(text).and_then(|s| i64::try_from(s).ok());
                attributes.push((name.into(), seconds.map_or(J::str(text), J::Num)));
            }
            "comment" if token.kind == Kind::Word => {
                lexer.next();
                attributes.push(("comment".into(), J::str(lexer.take_text()?)));
            }
            "counter" if token.kind == Kind::Word => {
                counter(lexer)?;
            }
            "last" if token.kind == Kind::Word => {
                statement(lexer)?;
            }
            "limit" | "quota" if token.kind == Kind::Word => {
                let s = statement(lexer)?;
                attributes.push((
                    if token.text == "limit" {
                        "limit"
                    } else {
                        "quota"
                    }
                    .into(),
                    s,
                ));
            }
            "ct" if token.kind == Kind::Word => {
                let s = relation(lexer)?;
                attributes.push(("ct count".into(), s));
            }
            _ => break,
        }
    }
    let key = if attributes.is_empty() {
        key
    } else {
        attributes.push(("val".into(), key));
        J::one("elem", J::Obj(attributes))
    };
    if !lexer.take_sign(":") {
        return Some(key);
    }
    while lexer.peek()?.kind == Kind::End {
        lexer.next();
    }
    let data = data(lexer, depth)?;
    Some(J::Arr(vec![key, data]))
}

/// A verdict or a value on the right of a map.
pub(super) fn data<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    let token = lexer.peek()?;
    if token.kind == Kind::Word {
        match token.text {
            "accept" | "drop" | "return" | "continue" | "queue" => return statement(lexer),
            "jump" | "goto" => {
                lexer.next();
                let name = if token.text == "jump" { "jump" } else { "goto" };
                if lexer.peek()?.sign("{") {
                    return None;
                }
                return Some(J::one(name, J::one("target", J::str(lexer.take_text()?))));
            }
            _ => {}
        }
    }
    let _ = depth;
    values(lexer)
}

/// Values joined by dots: `1.2.3.4 . 80`. Flags joined by `|` are one value.
pub(super) fn values<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    let mut parts = Vec::new();
    loop {
        while lexer.peek()?.kind == Kind::End {
            lexer.next();
        }
        let mut value = scalar(lexer)?;
        if lexer.peek().is_some_and(|t| t.sign("|")) {
            let mut flags = vec![value];
            while lexer.take_sign("|") {
                flags.push(scalar(lexer)?);
            }
            value = J::one("|", J::Arr(flags));
        }
        parts.push(value);
        if !lexer.take_sign(".") {
            break;
        }
    }
    Some(match parts.len() {
        1 => parts.remove(0),
        _ => J::one("concat", J::Arr(parts)),
    })
}

/// A single value; quoted ranges (`"10:00"-"11:00"`) are put together.
pub(super) fn scalar<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    let text = lexer.take_text()?;
    match text {
        "missing" => return Some(J::Bool(false)),
        "exists" => return Some(J::Bool(true)),
        _ => {}
    }
    if let Some(token) = lexer.peek()
        && (token.sign("-") || token.kind == Kind::Word && token.text == "-")
    {
        lexer.next();
        let last = lexer.take_text()?;
        return Some(J::one("range", J::Arr(vec![J::str(text), J::str(last)])));
    }
    Some(J::str(text))
}
