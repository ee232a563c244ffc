//! Rules from JSON, printed the way `nft list` would, for people to read.
use super::tree::J;

/// Longest text made; sets of thousands of elements are cut.
const MAX_TEXT: usize = 2000;

/// A rule's statements as one line.
pub(super) fn rule(statements: &[J<'_>]) -> String {
    let mut out = String::new();
    for s in statements {
        if s.get("counter").is_some_and(|c| c.get("packets").is_some())
            || matches!(s.only(), Some(("xt", x)) if x.get_text("name") == Some("comment"))
        {
            continue;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&statement(s));
        if out.len() > MAX_TEXT {
            break;
        }
    }
    cut(out)
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let mut at = MAX_TEXT;
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.truncate(at);
        text.push('…');
    }
    text
}

/// One statement.
pub(super) fn statement(s: &J<'_>) -> String {
    let Some((name, body)) = s.only() else {
        return expr(s);
    };
    let text = |key: &str| body.get(key).map(expr).unwrap_or_default();
    match name {
        "match" => {
            let op = match body.get_text("op") {
                Some("==" | "in") | None => String::new(),
                Some(op) => format!("{op} "),
            };
            format!("{} {op}{}", text("left"), text("right"))
        }
        "vmap" => format!("{} vmap {}", text("key"), text("data")),
        "mangle" => format!("{} set {}", text("key"), text("value")),
        "jump" | "goto" => format!("{name} {}", text("target")),
        "dnat" | "snat" | "masquerade" | "redirect" => nat(name, body),
        "reject" => match (body.get_text("type"), body.get("expr")) {
            (None, _) => "reject".to_string(),
            (Some(kind), None) => format!("reject with {kind}"),
            (Some(kind), Some(code)) => format!("reject with {kind} {}", expr(code)),
        },
        "log" => match body.get_text("prefix") {
            Some(prefix) => format!("log prefix \"{prefix}\""),
            None => "log".to_string(),
        },
        "limit" => match body {
            J::Obj(_) => {
                let over = if body.get("inv") == Some(&J::Bool(true)) {
                    "over "
                } else {
                    ""
                };
                let unit = match body.get_text("rate_unit") {
                    Some(unit) if unit != "packets" => format!(" {unit}"),
                    _ => String::new(),
                };
                format!("limit rate {over}{}{unit}/{}", text("rate"), text("per"))
            }
            other => format!("limit name {}", expr(other)),
        },
        "quota" => match body {
            J::Obj(_) => format!("quota {} {}", text("val"), text("val_unit")),
            other => format!("quota name {}", expr(other)),
        },
        "counter" => format!("counter name {}", expr(body)),
        "ct count" => {
            let over = if body.get("inv") == Some(&J::Bool(true)) {
                "over "
            } else {
                ""
            };
            format!("ct count {over}{}", text("val"))
        }
        "set" | "map" if body.get("op").is_some() => {
            format!("{} {} {{ {} }}", text("op"), text("set"), text("elem"))
        }
        "xt" => format!("xt {} {}", text("type"), text("name")),
        "queue" => match body {
            J::Null => "queue".to_string(),
            _ => format!("queue to {} {}", text("num"), text("flags"))
                .trim_end()
                .to_string(),
        },
        "unknown" => expr(body),
        _ => match body {
            J::Null => name.to_string(),
            _ => format!("{name} {}", expr(body)),
        },
    }
}

fn nat(name: &str, body: &J<'_>) -> String {
    let mut out = name.to_string();
    if let Some(family) = body.get_text("family") {
        out = format!("{out} {family}");
    }
    match (body.get("addr"), body.get("port")) {
        (None, None) => {}
        (Some(addr), None) => out = format!("{out} to {}", expr(addr)),
        (None, Some(port)) => out = format!("{out} to :{}", expr(port)),
        (Some(addr), Some(port)) => {
            let addr = expr(addr);
            out = if addr.contains(':') {
                format!("{out} to [{addr}]:{}", expr(port))
            } else {
                format!("{out} to {addr}:{}", expr(port))
            };
        }
    }
    if let Some(flags) = body.get("flags") {
        out = format!("{out} {}", join(flags.items(), ","));
    }
    out
}

fn join(items: &[J<'_>], separator: &str) -> String {
    let mut out = String::new();
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(separator);
        }
        out.push_str(&expr(item));
        if out.len() > MAX_TEXT {
            break;
        }
    }
    cut(out)
}

/// One expression.
pub(super) fn expr(e: &J<'_>) -> String {
    match e {
        J::Null => String::new(),
        J::Bool(true) => "exists".to_string(),
        J::Bool(false) => "missing".to_string(),
        J::Num(n) => n.to_string(),
        J::Str(text) => text.to_string(),
        J::Arr(items) => join(items, ","),
        J::Obj(members) => match e.only() {
            Some((name, body)) => object(name, body),
            None => {
                let parts: Vec<String> = members
                    .iter()
                    .take(50)
                    .map(|(k, v)| format!("{k} {}", expr(v)))
                    .collect();
                cut(parts.join(" "))
            }
        },
    }
}

fn object(name: &str, body: &J<'_>) -> String {
    let text = |key: &str| body.get(key).map(expr).unwrap_or_default();
    match name {
        "payload" => match body.get_text("base") {
            Some(base) => format!("@{base},{},{}", text("offset"), text("len")),
            None => format!("{} {}", text("protocol"), text("field")),
        },
        "meta" => match body.get_text("key").unwrap_or_default() {
            key @ ("iif" | "oif" | "iifname" | "oifname" | "iifgroup" | "oifgroup") => {
                key.to_string()
            }
            key => format!("meta {key}"),
        },
        "ct" => match body.get_text("dir") {
            Some(dir) => format!("ct {dir} {}", text("key")),
            None => format!("ct {}", text("key")),
        },
        "fib" => format!(
            "fib {} {}",
            join(body.get("flags").map(J::items).unwrap_or_default(), " . "),
            text("result")
        ),
        "prefix" => format!("{}/{}", text("addr"), text("len")),
        "range" => join(body.items(), "-"),
        "concat" => join(body.items(), " . "),
        "set" => {
            let mut out = String::from("{ ");
            for (at, item) in body.items().iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                out.push_str(&match item {
                    J::Arr(pair) if pair.len() == 2 => {
                        format!("{} : {}", expr(&pair[0]), statement(&pair[1]))
                    }
                    other => expr(other),
                });
                if out.len() > MAX_TEXT {
                    return cut(out);
                }
            }
            out.push_str(" }");
            out
        }
        "map" => format!("{} map {}", text("key"), text("data")),
        "elem" => text("val"),
        "&" | "|" | "^" | "<<" | ">>" => join(body.items(), &format!(" {name} ")),
        "numgen" => format!("numgen {} mod {}", text("mode"), text("mod")),
        "jhash" => format!("jhash {} mod {}", text("expr"), text("mod")),
        "symhash" => format!("symhash mod {}", text("mod")),
        "socket" => format!("socket {}", text("key")),
        "rt" => format!("rt {}", text("key")),
        "exthdr" => format!("{} {}", text("name"), text("field"))
            .trim_end()
            .to_string(),
        "tcp option" | "ip option" | "sctp chunk" | "dccp option" => {
            format!("{name} {} {}", text("name"), text("field"))
                .trim_end()
                .to_string()
        }
        "accept" | "drop" | "continue" | "return" if *body == J::Null => name.to_string(),
        _ => format!("{name} {}", expr(body)).trim_end().to_string(),
    }
}
