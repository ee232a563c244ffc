//! Expressions of nft's language, given the form that they have in JSON: keys, comparisons, computed values.
use super::block::{block, block_or_name, scalar, values};
use super::lex::{Kind, Lexer, Token};
use super::tree::J;
use super::value;

/// Expressions within expressions that are followed.
pub(super) const MAX_DEPTH: usize = 16;

fn payload<'a>(protocol: &'a str, field: &'a str) -> J<'a> {
    J::one(
        "payload",
        J::obj([("protocol", J::str(protocol)), ("field", J::str(field))]),
    )
}

fn meta(key: &str) -> J<'_> {
    J::one("meta", J::obj([("key", J::str(key))]))
}

/// A match, vmap or assignment: what begins with an expression.
pub(super) fn relation<'a>(lexer: &mut Lexer<'a>) -> Option<J<'a>> {
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
pub(super) fn right<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
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

pub(super) fn concat_from<'a>(lexer: &mut Lexer<'a>, first: J<'a>, depth: usize) -> Option<J<'a>> {
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
pub(super) fn primary<'a>(lexer: &mut Lexer<'a>, depth: usize) -> Option<J<'a>> {
    let token = lexer.peek()?;
    if token.kind != Kind::Word {
        return None;
    }
    lexer.next();
    primary_from(lexer, token.text, depth)
}

/// Behind the first word of a key.
pub(super) fn primary_from<'a>(
    lexer: &mut Lexer<'a>,
    word: &'a str,
    depth: usize,
) -> Option<J<'a>> {
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
