//! Expressions and statements of nft's language, given the form that they have in JSON.
use super::lex::{Kind, Lexer, Token};
use super::sets::seconds;
use super::tree::J;
use super::value;

/// Expressions within expressions that are followed.
const MAX_DEPTH: usize = 16;

fn payload<'a>(protocol: &'a str, field: &'a str) -> J<'a> {
    J::one(
        "payload",
        J::obj([("protocol", J::str(protocol)), ("field", J::str(field))]),
    )
}

fn meta(key: &str) -> J<'_> {
    J::one("meta", J::obj([("key", J::str(key))]))
}

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

fn counter<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
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

fn map_of<'a>(lexer: &mut Lexer<'a>, key: J<'a>) -> Option<J<'a>> {
    if !lexer.take_word("map") {
        return None;
    }
    let data = block_or_name(lexer, 0)?;
    Some(J::one("map", J::obj([("key", key), ("data", data)])))
}

/// `{ … }` or `@name`.
fn block_or_name<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    if lexer.peek()?.sign("{") {
        return block(lexer, depth);
    }
    let name = lexer.take_text()?;
    name.starts_with('@').then(|| J::str(name))
}

/// `{ a, b : c, … }` as `{"set": […]}`.
fn block<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
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
fn data<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
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
fn values<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
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
fn scalar<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
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

/// A match, vmap or assignment: what begins with an expression.
fn relation<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    let first = lexer.peek()?;
    let left = concat(lexer, 0)?;
    if let Some((name @ "ct count", body)) = left.only() {
        let _ = name;
        return Some(J::one("ct count", body.clone()));
    }
    if lexer.take_word("vmap") {
        let data = block_or_name(lexer, 0)?;
        return Some(J::one("vmap", J::obj([("key", left), ("data", data)])));
    }
    if lexer.take_word("set") {
        return assignment(lexer, left, first);
    }
    let mut op = "==";
    let mut written = false;
    for sign in ["==", "!=", "<=", ">=", "<", ">", "!"] {
        if lexer.take_sign(sign) {
            op = sign;
            written = true;
            break;
        }
    }
    if !written {
        for (word, sign) in [
            ("eq", "=="),
            ("ne", "!="),
            ("lt", "<"),
            ("gt", ">"),
            ("le", "<="),
            ("ge", ">="),
        ] {
            if lexer.take_word(word) {
                op = sign;
                written = true;
                break;
            }
        }
    }
    let mut left = left;
    let right = if lexer.peek()?.sign("{") {
        block(lexer, 0)?
    } else {
        let mut value = right(lexer, 0)?;
        if lexer.peek().is_some_and(|t| t.sign(",")) {
            let mut flags = vec![value];
            while lexer.take_sign(",") {
                flags.push(scalar(lexer)?);
            }
            value = J::Arr(flags);
        }
        // `tcp flags syn / fin,syn,rst,ack`: the mask comes last.
        if lexer.take_sign("/") {
            let mut mask = vec![scalar(lexer)?];
            while lexer.take_sign(",") {
                mask.push(scalar(lexer)?);
            }
            left = J::one("&", J::Arr(vec![left, J::Arr(mask)]));
            written = true;
        }
        value
    };
    // Without a sign, values of bit sets mean "any of these".
    let op = if !written
        && right.get("set").is_none()
        && right.text().is_none_or(|t| !t.starts_with('@'))
    {
        "in"
    } else {
        op
    };
    Some(J::one(
        "match",
        J::obj([("op", J::str(op)), ("left", left), ("right", right)]),
    ))
}

/// The right side of a comparison.
fn right<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    if depth > MAX_DEPTH {
        return None;
    }
    if lexer.take_sign("(") {
        let mut flags = vec![right(lexer, depth + 1)?];
        while lexer.take_sign("|") {
            flags.push(right(lexer, depth + 1)?);
        }
        if !lexer.take_sign(")") {
            return None;
        }
        return Some(J::one("|", J::Arr(flags)));
    }
    values(lexer)
}

/// Behind `KEY set`.
fn assignment<'a>(lexer: &mut Lexer<'a>, key: J<'a>, first: Token<'a>) -> Option<J<'a>> {
    if first.word("ct") {
        // `ct helper set "x"` names an object.
        let kind = key.get("ct").and_then(|ct| ct.get_text("key"));
        let object = match kind {
            Some("helper") => Some("ct helper"),
            Some("timeout") => Some("ct timeout"),
            Some("expectation") => Some("ct expectation"),
            _ => None,
        };
        if let Some(object) = object {
            return Some(J::one(object, J::str(lexer.take_text()?)));
        }
    }
    let value = computed(lexer, 0)?;
    Some(J::one("mangle", J::obj([("key", key), ("value", value)])))
}

/// A value that is written: `0x1`, `ct mark`, `meta mark & 0xff | 0x1`, `ip saddr map { … }`.
fn computed<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    if depth > MAX_DEPTH {
        return None;
    }
    let token = lexer.peek()?;
    let constant = token.kind == Kind::Quoted
        || value::number(token.text).is_some()
        || !starts_key(token.text);
    let mut out = if lexer.take_sign("(") {
        let inner = computed(lexer, depth + 1)?;
        if !lexer.take_sign(")") {
            return None;
        }
        inner
    } else if constant {
        scalar(lexer)?
    } else {
        concat(lexer, depth)?
    };
    if lexer.take_word("map") {
        let data = block_or_name(lexer, 0)?;
        return Some(J::one("map", J::obj([("key", out), ("data", data)])));
    }
    while let Some(op) = binary(lexer) {
        let right = if lexer.take_sign("(") {
            let inner = computed(lexer, depth + 1)?;
            if !lexer.take_sign(")") {
                return None;
            }
            inner
        } else {
            operand(lexer, depth + 1)?
        };
        out = J::one(op, J::Arr(vec![out, right]));
    }
    Some(out)
}

fn operand<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    let token = lexer.peek()?;
    if starts_key(token.text) && token.kind == Kind::Word {
        return primary(lexer, depth);
    }
    scalar(lexer)
}

/// A binary operator, in signs or words.
fn binary(lexer: &mut Lexer<'_>) -> Option<&'static str> {
    for (sign, word, op) in [
        ("&", "and", "&"),
        ("|", "or", "|"),
        ("^", "xor", "^"),
        ("<<", "lshift", "<<"),
        (">>", "rshift", ">>"),
    ] {
        if lexer.take_sign(sign) || lexer.take_word(word) {
            return Some(op);
        }
    }
    None
}

fn starts_key(word: &str) -> bool {
    matches!(
        word,
        "meta"
            | "ct"
            | "ip"
            | "ip6"
            | "tcp"
            | "udp"
            | "udplite"
            | "sctp"
            | "dccp"
            | "th"
            | "icmp"
            | "icmpv6"
            | "igmp"
            | "ether"
            | "vlan"
            | "arp"
            | "ah"
            | "esp"
            | "comp"
            | "fib"
            | "exthdr"
            | "rt"
            | "hbh"
            | "dst"
            | "frag"
            | "mh"
            | "srh"
            | "socket"
            | "osf"
            | "numgen"
            | "jhash"
            | "symhash"
            | "ipsec"
            | "mark"
            | "iif"
            | "oif"
            | "iifname"
            | "oifname"
            | "skuid"
            | "skgid"
    ) || word.starts_with('@')
}

/// Keys joined by dots, each perhaps under a mask.
pub(super) fn concat<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    let first = masked(lexer, depth)?;
    concat_from(lexer, first, depth)
}

fn concat_from<'a>(lexer: &mut Lexer<'a>, first: J<'a>, depth: usize) -> Option<J<'a>> {
    let mut parts = vec![first];
    while lexer.take_sign(".") {
        parts.push(masked(lexer, depth)?);
    }
    Some(match parts.len() {
        1 => parts.remove(0),
        _ => J::one("concat", J::Arr(parts)),
    })
}

fn masked<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut out = if lexer.take_sign("(") {
        let inner = masked(lexer, depth + 1)?;
        if !lexer.take_sign(")") {
            return None;
        }
        inner
    } else {
        primary(lexer, depth)?
    };
    while let Some(op) = binary(lexer) {
        let right = if lexer.peek()?.sign("(") {
            right(lexer, depth + 1)?
        } else {
            scalar(lexer)?
        };
        out = J::one(op, J::Arr(vec![out, right]));
    }
    Some(out)
}

/// A single key.
fn primary<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    let token = lexer.peek()?;
    if token.kind != Kind::Word {
        return None;
    }
    lexer.next();
    primary_from(lexer, token.text, depth)
}

/// Behind the first word of a key.
fn primary_from<'a>(lexer: &mut Lexer<'a>, word: &'a str, depth: usize) -> Option<J<'a>> {
    if depth > MAX_DEPTH {
        return None;
    }
    match word {
        "meta" => Some(meta(lexer.take_text()?)),
        "iif" | "oif" | "iifname" | "oifname" | "iifgroup" | "oifgroup" | "iiftype" | "oiftype"
        | "iifkind" | "oifkind" | "mark" | "skuid" | "skgid" | "pkttype" | "cgroup" | "cpu"
        | "rtclassid" | "nftrace" | "ibrname" | "obrname" | "ibriport" | "obriport" => {
            Some(meta(word))
        }
        "ct" => conntrack(lexer),
        "fib" => fib(lexer),
        "ip" | "tcp" if lexer.peek().is_some_and(|t| t.word("option")) => {
            lexer.next();
            let name = lexer.take_text()?;
            let kind = if word == "ip" {
                "ip option"
            } else {
                "tcp option"
            };
            let mut members = vec![("name".into(), J::str(name))];
            if let Some(token) = lexer.peek()
                && token.kind == Kind::Word
                && matches!(
                    token.text,
                    "kind"
                        | "length"
                        | "size"
                        | "count"
                        | "left"
                        | "right"
                        | "tsval"
                        | "tsecr"
                        | "type"
                        | "ptr"
                        | "addr"
                        | "value"
                )
            {
                lexer.next();
                members.push(("field".into(), J::str(token.text)));
            }
            Some(J::one(kind, J::Obj(members)))
        }
        "ip" | "ip6" | "tcp" | "udp" | "udplite" | "sctp" | "dccp" | "th" | "icmp" | "icmpv6"
        | "igmp" | "ether" | "vlan" | "arp" | "ah" | "esp" | "comp" => {
            let field = lexer.take_text()?;
            if word == "sctp" && field == "chunk" {
                let name = lexer.take_text()?;
                return Some(J::one("sctp chunk", J::obj([("name", J::str(name))])));
            }
            if word == "arp"
                && lexer
                    .peek()
                    .is_some_and(|t| t.word("ip") || t.word("ether"))
            {
                lexer.next();
                lexer.take_text()?;
            }
            Some(payload(word, field))
        }
        "exthdr" => {
            let name = lexer.take_text()?;
            Some(J::one("exthdr", J::obj([("name", J::str(name))])))
        }
        "rt" if lexer.peek().is_some_and(|t| {
            matches!(
                t.text,
                "nexthop" | "classid" | "mtu" | "ipsec" | "ip" | "ip6"
            )
        }) =>
        {
            let mut key = lexer.take_text()?;
            if matches!(key, "ip" | "ip6") {
                key = lexer.take_text()?;
            }
            Some(J::one("rt", J::obj([("key", J::str(key))])))
        }
        "rt" | "hbh" | "dst" | "frag" | "mh" | "srh" => {
            let field = lexer.take_text()?;
            Some(J::one(
                "exthdr",
                J::obj([("name", J::str(word)), ("field", J::str(field))]),
            ))
        }
        "socket" => {
            let mut key = lexer.take_text()?.to_string();
            if key == "cgroupv2" {
                lexer.take_word("level");
                key = format!("cgroupv2 level {}", lexer.take_text()?);
            }
            Some(J::one("socket", J::obj([("key", J::str(key))])))
        }
        "osf" => {
            let key = lexer.take_text()?;
            Some(J::one("osf", J::obj([("key", J::str(key))])))
        }
        "numgen" => {
            let mode = lexer.take_text()?;
            let (modulus, offset) = modulus(lexer)?;
            Some(J::one(
                "numgen",
                J::obj([
                    ("mode", J::str(mode)),
                    ("mod", J::str(modulus)),
                    ("offset", J::str(offset)),
                ]),
            ))
        }
        "symhash" => {
            let (modulus, offset) = modulus(lexer)?;
            Some(J::one(
                "symhash",
                J::obj([("mod", J::str(modulus)), ("offset", J::str(offset))]),
            ))
        }
        "jhash" => {
            let key = concat(lexer, depth + 1)?;
            let (modulus, offset) = modulus(lexer)?;
            Some(J::one(
                "jhash",
                J::obj([
                    ("expr", key),
                    ("mod", J::str(modulus)),
                    ("offset", J::str(offset)),
                ]),
            ))
        }
        "ipsec" => {
            lexer.take_text()?;
            if lexer.take_word("spnum") {
                lexer.take_text()?;
            }
            let mut key = lexer.take_text()?;
            if matches!(key, "ip" | "ip6") {
                key = lexer.take_text()?;
            }
            Some(J::one("ipsec", J::obj([("key", J::str(key))])))
        }
        _ => {
            let raw = word.strip_prefix('@')?;
            let mut parts = raw.split(',');
            let (base, offset, len) = (parts.next()?, parts.next()?, parts.next()?);
            Some(J::one(
                "payload",
                J::obj([
                    ("base", J::str(base)),
                    ("offset", J::str(offset)),
                    ("len", J::str(len)),
                ]),
            ))
        }
    }
}

/// `mod N [seed S] [offset O]`.
fn modulus<'a>(lexer: &mut Lexer<'a>) -> Option<(&'a str, &'a str)> {
    if !lexer.take_word("mod") {
        return None;
    }
    let modulus = lexer.take_text()?;
    let mut offset = "0";
    if lexer.take_word("seed") {
        lexer.take_text()?;
    }
    if lexer.take_word("offset") {
        offset = lexer.take_text()?;
    }
    Some((modulus, offset))
}

fn conntrack<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    let mut word = lexer.take_text()?;
    let mut members = Vec::new();
    if matches!(word, "original" | "reply") {
        members.push(("dir".into(), J::str(word)));
        word = lexer.take_text()?;
    }
    if matches!(word, "ip" | "ip6") {
        members.push(("family".into(), J::str(word)));
        word = lexer.take_text()?;
    }
    if word == "count" {
        let over = lexer.take_word("over");
        let count = lexer.take_text()?;
        return Some(J::one(
            "ct count",
            J::obj([("val", J::str(count)), ("inv", J::Bool(over))]),
        ));
    }
    members.push(("key".into(), J::str(word)));
    Some(J::one("ct", J::Obj(members)))
}

/// `fib saddr . iif oif`.
fn fib<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
    let mut flags = vec![J::str(lexer.take_text()?)];
    while lexer.take_sign(".") {
        flags.push(J::str(lexer.take_text()?));
    }
    let result = lexer.take_text()?;
    Some(J::one(
        "fib",
        J::obj([("flags", J::Arr(flags)), ("result", J::str(result))]),
    ))
}
