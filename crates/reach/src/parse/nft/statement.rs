//! Statements of nft's language, given the form that they have in JSON.
use super::block::{block_or_name, map_of};
use super::expr::{concat, concat_from, primary_from, relation};
use super::lex::{Kind, Lexer, Token};
use super::sets::seconds;
use super::tree::J;
use super::value;

/// One statement of a rule; `None` when it is not understood, with some of it consumed.
pub(super) fn statement<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    let token = lexer.peek()?;
    if token.kind != Kind::Word && !token.sign("(") {
        return None;
    }
    let simple = |lexer: &mut Lexer<'a>, name| {
        lexer.next();
        Some(J::one(name, J::Null))
    };
    match token.text {
        "accept" => simple(lexer, "accept"),
        "drop" => simple(lexer, "drop"),
        "return" => simple(lexer, "return"),
        "continue" => simple(lexer, "continue"),
        "notrack" => simple(lexer, "notrack"),
        "counter" => counter(lexer),
        "limit" => limit(lexer),
        "quota" => quota(lexer),
        "log" => log(lexer),
        "reject" => reject(lexer),
        "queue" => queue(lexer),
        "dnat" | "snat" | "masquerade" | "redirect" => nat(lexer),
        "tproxy" => tproxy(lexer),
        "xt" => xt(lexer),
        "synproxy" => {
            lexer.next();
            if lexer.take_word("name") {
                return Some(J::one("synproxy", J::str(lexer.take_text()?)));
            }
            Some(J::one("synproxy", J::Arr(words(lexer))))
        }
        "dup" | "fwd" => {
            lexer.next();
            let name = if token.text == "dup" { "dup" } else { "fwd" };
            let rest = words(lexer);
            // `dup to addr map …` and the like end in a block.
            if lexer.peek().is_some_and(|t| t.sign("{")) {
                return None;
            }
            Some(J::one(name, J::Arr(rest)))
        }
        "last" => {
            lexer.next();
            if lexer.take_word("used") {
                lexer.take_text();
            }
            Some(J::one("last", J::Null))
        }
        "flow" => {
            lexer.next();
            if !lexer.take_word("add") && !lexer.take_word("offload") {
                return None;
            }
            let name = lexer.take_text()?;
            Some(J::one("flow", J::obj([("flowtable", J::str(name))])))
        }
        "add" | "update" | "delete" => set_update(lexer),
        "meter" => meter(lexer),
        "reset" => {
            lexer.next();
            Some(J::one("reset", J::Arr(words(lexer))))
        }
        "secmark" => None,
        _ => relation(lexer),
    }
}

/// The words up to the end of the statement's line, a sign, or a verdict.
fn words<'a>(lexer: &mut Lexer<'a>) -> Vec<J<'a>> {
    let mut out = Vec::new();
    while let Some(token) = lexer.peek() {
        let more = token.is_text()
            && !matches!(
                token.text,
                "accept" | "drop" | "return" | "continue" | "jump" | "goto" | "comment"
            );
        if !more {
            break;
        }
        lexer.next();
        out.push(J::str(token.text));
    }
    out
}

pub(super) fn counter<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    lexer.next();
    if lexer.take_word("name") {
        if let Some(name) = lexer.take_text() {
            return Some(J::one("counter", J::str(name)));
        }
        // `counter name KEYS map …`
        return None;
    }
    let mut packets = 0;
    let mut bytes = 0;
    if lexer.take_word("packets") {
        packets = lexer.take_text()?.parse().unwrap_or(0);
    }
    if lexer.take_word("bytes") {
        bytes = lexer.take_text()?.parse().unwrap_or(0);
    }
    Some(J::one(
        "counter",
        J::obj([("packets", J::Num(packets)), ("bytes", J::Num(bytes))]),
    ))
}

/// `limit rate [over] 3[ mbytes]/minute [burst 5 packets]`, `limit name "x"`.
fn limit<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    lexer.next();
    if lexer.take_word("name") {
        return Some(J::one("limit", J::str(lexer.take_text()?)));
    }
    if !lexer.take_word("rate") {
        return None;
    }
    let over = lexer.take_word("over");
    let mut first = lexer.take_text()?;
    let mut unit = None;
    let mut rate = first;
    let per = loop {
        if let Some((before, per)) = first.split_once('/') {
            if unit.is_none() && value::number(before).is_some() {
                rate = before;
            } else {
                unit = Some(before);
            }
            break per;
        }
        if lexer.take_sign("/") {
            break lexer.take_text()?;
        }
        unit = Some("");
        first = lexer.take_text()?;
    };
    let mut burst = J::Num(if unit.is_some() { 0 } else { 5 });
    if lexer.take_word("burst") {
        burst = J::str(lexer.take_text()?);
        if lexer
            .peek()
            .is_some_and(|t| matches!(t.text, "packets" | "bytes" | "kbytes" | "mbytes"))
        {
            lexer.next();
        }
    }
    let mut members = vec![
        ("rate".into(), J::str(rate)),
        ("per".into(), J::str(per)),
        ("burst".into(), burst),
    ];
    if let Some(unit) = unit {
        members.push(("rate_unit".into(), J::str(unit)));
    }
    if over {
        members.push(("inv".into(), J::Bool(true)));
    }
    Some(J::one("limit", J::Obj(members)))
}

/// `quota [over|until] 25 mbytes [used 0 bytes]`, `quota name "x"`.
fn quota<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    lexer.next();
    if lexer.take_word("name") {
        return Some(J::one("quota", J::str(lexer.take_text()?)));
    }
    let over = lexer.take_word("over");
    lexer.take_word("until");
    let value = lexer.take_text()?;
    let unit = lexer.take_text()?;
    if lexer.take_word("used") {
        lexer.take_text();
        lexer.take_text();
    }
    Some(J::one(
        "quota",
        J::obj([
            ("val", J::str(value)),
            ("val_unit", J::str(unit)),
            ("inv", J::Bool(over)),
        ]),
    ))
}

fn log<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    lexer.next();
    let mut members = Vec::new();
    while let Some(token) = lexer.peek() {
        match token.text {
            "prefix" => {
                lexer.next();
                members.push(("prefix".into(), J::str(lexer.take_text()?)));
            }
            "level" | "group" | "snaplen" | "queue-threshold" => {
                lexer.next();
                lexer.take_text()?;
            }
            "flags" => {
                lexer.next();
                while lexer.take_text().is_some_and(|t| t == "tcp" || t == "ip")
                    || lexer.take_sign(",")
                {}
            }
            _ => break,
        }
    }
    Some(J::one("log", J::Obj(members)))
}

fn reject<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    lexer.next();
    if !lexer.take_word("with") {
        return Some(J::one("reject", J::Null));
    }
    let kind = lexer.take_text()?;
    if kind == "tcp" {
        lexer.take_word("reset");
        return Some(J::one("reject", J::obj([("type", J::str("tcp reset"))])));
    }
    lexer.take_word("type");
    let code = lexer.take_text()?;
    Some(J::one(
        "reject",
        J::obj([("type", J::str(kind)), ("expr", J::str(code))]),
    ))
}

/// `queue`, `queue num 1-3 bypass,fanout`, `queue flags bypass to 5`, `queue to numgen …`.
fn queue<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    lexer.next();
    let mut num = None;
    let mut flags = Vec::new();
    loop {
        if lexer.take_word("flags") {
            continue;
        }
        let Some(token) = lexer.peek() else { break };
        match token.text {
            "num" | "to" => {
                lexer.next();
                let next = lexer.peek()?;
                if value::number(next.text.split('-').next()?).is_some() {
                    lexer.next();
                    num = Some(J::str(next.text));
                } else {
                    concat(lexer, 0)?;
                    if lexer.take_word("map") {
                        block_or_name(lexer, 0)?;
                    }
                }
            }
            "bypass" | "fanout" => {
                lexer.next();
                flags.push(J::str(token.text));
            }
            "," => {
                lexer.next();
            }
            _ => break,
        }
    }
    let mut members = vec![("flags".into(), J::Arr(flags))];
    if let Some(num) = num {
        members.push(("num".into(), num));
    }
    Some(J::one("queue", J::Obj(members)))
}

fn xt<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    lexer.next();
    let kind = lexer.take_text()?;
    let name = lexer.take_text()?;
    Some(J::one(
        "xt",
        J::obj([("type", J::str(kind)), ("name", J::str(name))]),
    ))
}

/// `tproxy [ip|ip6] to [ADDR][:PORT]`.
fn tproxy<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    lexer.next();
    let _ = lexer.take_word("ip") || lexer.take_word("ip6");
    if !lexer.take_word("to") {
        return None;
    }
    let (addr, port) = endpoint(lexer.take_text()?);
    let mut members = Vec::new();
    if let Some(addr) = addr {
        members.push(("addr".into(), J::str(addr)));
    }
    if let Some(port) = port {
        members.push(("port".into(), J::str(port)));
    }
    Some(J::one("tproxy", J::Obj(members)))
}

/// `ADDR:PORT`, `[ADDR]:PORT`, `ADDR`, `:PORT` in two parts; brackets are taken away.
fn endpoint(text: &str) -> (Option<&str>, Option<&str>) {
    let (addr, port) =
        if let Some(port) = text.strip_prefix(':').filter(|_| !text.starts_with("::")) {
            ("", Some(port))
        } else if let Some(at) = text.rfind("]:") {
            (&text[..=at], Some(&text[at + 2..]))
        } else if text.matches(':').count() == 1 {
            match text.split_once(':') {
                Some((addr, port)) => (addr, Some(port)),
                None => (text, None),
            }
        } else {
            (text, None)
        };
    (Some(addr).filter(|a| !a.is_empty()), port)
}

/// An address or range without the brackets around its parts.
fn address(text: &str) -> J<'_> {
    let bare = |part: &'_ str| part.trim_matches(['[', ']']).to_string();
    if !text.contains('[') {
        return J::str(text);
    }
    let parts: Vec<String> = text.split("]-[").map(bare).collect();
    J::str(parts.join("-"))
}

/// `dnat [ip] [addr . port|prefix] [to …] [flags]`.
fn nat<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    let name = match lexer.next()?.text {
        "dnat" => "dnat",
        "snat" => "snat",
        "masquerade" => "masquerade",
        _ => "redirect",
    };
    let mut members = Vec::new();
    for family in ["ip", "ip6"] {
        if lexer.take_word(family) {
            members.push(("family".into(), J::str(family)));
        }
    }
    if lexer.take_word("prefix") {
        members.push(("type_flags".into(), J::str("prefix")));
    }
    if lexer.take_word("interval") {
        members.push(("type_flags".into(), J::str("interval")));
    }
    if lexer.take_word("addr") {
        lexer.take_sign(".");
        lexer.take_word("port");
    }
    if lexer.take_word("to") {
        // `:tcp dport map …` has its first word glued to the colon.
        let token = lexer.peek()?;
        let (addr, port) = endpoint(token.text);
        let plain =
            |t: &str| t.starts_with(|c: char| c.is_ascii_hexdigit() || c == '[' || c == ':');
        if token.kind == Kind::Word && (addr.is_none() || addr.is_some_and(plain)) && !is_key(token)
        {
            lexer.next();
            if let Some(addr) = addr {
                members.push(("addr".into(), address(addr)));
            }
            match port {
                Some(port) if port.starts_with(|c: char| c.is_ascii_digit()) => {
                    members.push(("port".into(), J::str(port)));
                }
                Some(word) => {
                    let key = primary_from(lexer, word, 0)?;
                    let key = concat_from(lexer, key, 0)?;
                    members.push(("port".into(), map_of(lexer, key)?));
                }
                None => {}
            }
        } else {
            let key = concat(lexer, 0)?;
            members.push(("addr".into(), map_of(lexer, key)?));
        }
    }
    let mut flags = Vec::new();
    while let Some(token) = lexer.peek() {
        match token.text {
            "random" | "fully-random" | "persistent" => {
                flags.push(J::str(token.text));
                lexer.next();
            }
            "," => {
                lexer.next();
            }
            _ => break,
        }
    }
    if !flags.is_empty() {
        members.push(("flags".into(), J::Arr(flags)));
    }
    Some(J::one(name, J::Obj(members)))
}

/// Whether the word begins a key (`tcp`, `numgen`) and not an address.
fn is_key(token: Token<'_>) -> bool {
    token.text.parse::<std::net::IpAddr>().is_err()
        && !token.text.contains([':', '.', '['])
        && value::number(token.text).is_none()
}

/// `add @s { KEY [timeout T] [statements] [: DATA] }`.
fn set_update<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    let op = lexer.next()?.text;
    let set = lexer.take_text()?;
    if !set.starts_with('@') || !lexer.take_sign("{") {
        return None;
    }
    let (elem, statements) = dynamic(lexer)?;
    Some(J::one(
        "set",
        J::obj([
            ("op", J::str(op)),
            ("elem", elem),
            ("set", J::str(set)),
            ("stmt", J::Arr(statements)),
        ]),
    ))
}

/// `meter NAME [size N] { KEY statements }`.
fn meter<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    lexer.next();
    let name = lexer.take_text()?;
    if lexer.take_word("size") {
        lexer.take_text()?;
    }
    if !lexer.take_sign("{") {
        return None;
    }
    let (key, statements) = dynamic(lexer)?;
    Some(J::one(
        "meter",
        J::obj([
            ("name", J::str(name)),
            ("key", key),
            ("stmt", J::Arr(statements)),
        ]),
    ))
}

/// Behind the brace of `add @s {`, up to its end: the element and its statements.
fn dynamic<'a>(lexer: &mut Lexer<'a>) -> Option<(J<'a>, Vec<J<'a>>)> {
    let mut key = concat(lexer, 0)?;
    let mut statements = Vec::new();
    loop {
        let token = lexer.peek()?;
        if token.sign("}") {
            lexer.next();
            return Some((key, statements));
        }
        if lexer.take_word("timeout") {
            let timeout = lexer.take_text()?;
            let timeout = seconds(timeout).and_then(|s| i64::try_from(s).ok())?;
            key = J::one("elem", J::obj([("val", key), ("timeout", J::Num(timeout))]));
            continue;
        }
        if lexer.take_sign(":") {
            // The data of a map: what it says does not matter, only that the element comes in.
            while !lexer.peek()?.sign("}") {
                if lexer.peek()?.kind == Kind::End {
                    return None;
                }
                lexer.next();
            }
            continue;
        }
        statements.push(statement(lexer)?);
    }
}
