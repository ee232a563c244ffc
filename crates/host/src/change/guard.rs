//! The guard: the table `inet portcullis`, replaced as a whole in one nft batch.

use super::{Context, Error};
use crate::exec::{self, Program};
use serde_json::Value;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

/// Family and name, as nft spells them.
pub(crate) const TABLE: &str = "inet portcullis";

/// Makes the table go, whether it is there or not.
const GONE: &str = "add table inet portcullis\ndelete table inet portcullis\n";

const BOUND: Duration = Duration::from_secs(30);

/// Ends an nft statement only outside of braces: the statements at the outermost level.
fn statements(script: &str) -> Vec<String> {
    let mut found = vec![];
    let mut now = String::new();
    let mut depth = 0_u32;
    let mut quoted = false;
    for line in script.lines() {
        let line = match line.trim_start().starts_with('#') {
            true if !quoted => "",
            _ => line,
        };
        for c in line.chars() {
            match c {
                '"' => quoted = !quoted,
                '{' if !quoted => depth += 1,
                '}' if !quoted => depth = depth.saturating_sub(1),
                _ => {}
            }
            if c == ';' && depth == 0 && !quoted {
                found.push(std::mem::take(&mut now));
            } else {
                now.push(c);
            }
        }
        if depth == 0 && !quoted {
            found.push(std::mem::take(&mut now));
        } else {
            now.push(' ');
        }
    }
    found.push(now);
    found
        .into_iter()
        .map(|statement| statement.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|statement| !statement.is_empty())
        .collect()
}

/// Refuses a script that touches anything but the guard's own table.
fn only_ours(script: &str) -> Result<(), Error> {
    for statement in statements(script) {
        let ours = [
            "add table inet portcullis",
            "delete table inet portcullis",
            "destroy table inet portcullis",
            "flush table inet portcullis",
        ]
        .contains(&statement.as_str())
            || statement.starts_with("table inet portcullis {")
            || statement.starts_with("add element inet portcullis ");
        if !ours {
            return Err(Error::refused(
                statement.chars().take(60).collect::<String>(),
                "the guard's script may touch nothing but the table inet portcullis",
            ));
        }
    }
    Ok(())
}

fn nft(args: &[&str]) -> Program {
    Program::new("nft").args(args).timeout(BOUND)
}

pub(super) fn check(ruleset: &str, coming: &[String]) -> Result<(), Error> {
    only_ours(ruleset)?;
    if exec::find("nft").is_none() {
        if coming.iter().any(|name| name == "nftables") {
            return Ok(());
        }
        return Err(Error::refused("the guard", "nft is not installed"));
    }
    nft(&["-c", "-f", "-"])
        .stdin(ruleset)
        .run()
        .map(drop)
        .map_err(|source| Error::program("try the guard's rules", source))
}

/// The table as nft lists it; `None` when there is none.
fn listed(args: &[&str]) -> Result<Option<String>, Error> {
    let mut all = args.to_vec();
    all.extend(["list", "table", "inet", "portcullis"]);
    match nft(&all).run() {
        Ok(output) => Ok(Some(output.stdout_text())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(exec::Error::Failed { stderr, .. }) if stderr.contains("No such file") => Ok(None),
        Err(source) => Err(Error::program("list the guard's rules", source)),
    }
}

/// The table for a snapshot: without the elements of sets that expire. Those are bans: a rollback
/// must not bring back old ones, and must not lose those made since.
pub(crate) fn captured() -> Result<Option<String>, Error> {
    Ok(listed(&[])?.map(|text| without_dynamic(&text)))
}

fn without_dynamic(text: &str) -> String {
    let mut result = String::new();
    let mut block: Vec<&str> = vec![];
    let mut in_set = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if !in_set && (trimmed.starts_with("set ") || trimmed.starts_with("map ")) {
            in_set = true;
        }
        if !in_set {
            result.push_str(line);
            result.push('\n');
            continue;
        }
        block.push(line);
        // A set ends with a brace on a line of its own; its elements end with one behind them.
        if trimmed == "}" {
            for kept in set_without_elements(&block) {
                result.push_str(kept);
                result.push('\n');
            }
            block.clear();
            in_set = false;
        }
    }
    result
}

fn set_without_elements<'a>(block: &[&'a str]) -> Vec<&'a str> {
    let dynamic = block.iter().any(|line| {
        line.trim()
            .strip_prefix("flags ")
            .is_some_and(|flags| flags.contains("timeout") || flags.contains("dynamic"))
    });
    if !dynamic {
        return block.to_vec();
    }
    let mut kept = vec![];
    let mut inside = false;
    for line in block {
        inside |= line.trim().starts_with("elements = {");
        if !inside {
            kept.push(*line);
        }
        inside &= !line.trim_end().ends_with('}');
    }
    kept
}

/// `add element` statements for what the live table's expiring sets hold, for those sets that
/// `script` declares again.
fn carried(script: &str) -> Result<String, Error> {
    let Some(text) = listed(&["-j"])? else {
        return Ok(String::new());
    };
    let listing: Value = serde_json::from_str(&text).unwrap_or_default();
    let mut result = String::new();
    for object in listing["nftables"].as_array().into_iter().flatten() {
        let set = &object["set"];
        let Some(name) = set["name"].as_str() else {
            continue;
        };
        let flags = set["flags"].as_array().into_iter().flatten();
        let expiring = flags
            .filter_map(Value::as_str)
            .any(|flag| matches!(flag, "timeout" | "dynamic"));
        let again = script.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("set") && words.next() == Some(name)
        });
        // Only plain address sets: meters of rates start anew.
        if !expiring || !again || !matches!(set["type"].as_str(), Some("ipv4_addr" | "ipv6_addr")) {
            continue;
        }
        let elements: Vec<String> = set["elem"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(element)
            .collect();
        if !elements.is_empty() {
            let _ = writeln!(
                result,
                "add element {TABLE} {name} {{ {} }}",
                elements.join(", ")
            );
        }
    }
    Ok(result)
}

/// One element as nft reads it: `192.0.2.1 timeout 3600s expires 3590s`.
fn element(value: &Value) -> Option<String> {
    let (plain, times) = match value.get("elem") {
        Some(inner) => (&inner["val"], Some(inner)),
        None => (value, None),
    };
    let address = |value: &Value| value.as_str()?.parse::<IpAddr>().ok();
    let mut text = if let Some(address) = address(plain) {
        address.to_string()
    } else if let Some(prefix) = plain.get("prefix") {
        format!("{}/{}", address(&prefix["addr"])?, prefix["len"].as_u64()?)
    } else {
        let ends = plain["range"].as_array()?;
        format!("{}-{}", address(ends.first()?)?, address(ends.get(1)?)?)
    };
    for word in ["timeout", "expires"] {
        if let Some(seconds) = times.and_then(|times| times[word].as_u64()) {
            // An element with no second left would be one without an end.
            if word == "expires" && seconds == 0 {
                return None;
            }
            let _ = write!(text, " {word} {seconds}s");
        }
    }
    Some(text)
}

fn batch(script: &str, context: &Context) -> Result<(), Error> {
    let _lent = context.lock.lend();
    nft(&["-f", "-"])
        .stdin(script)
        .run()
        .map(drop)
        .map_err(|source| Error::program("load the guard's rules", source))
}

pub(super) fn load(ruleset: &str, context: &Context) -> Result<(), Error> {
    let script = format!("{ruleset}\n{}", carried(ruleset)?);
    check(&script, &[])?;
    batch(&script, context)?;
    let Some(live) = listed(&["-t"])? else {
        return Err(Error::read_back(TABLE, "the kernel does not have it"));
    };
    let declared = |text: &str| -> Vec<String> {
        let mut names: Vec<String> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let kind = words
                    .next()
                    .filter(|word| ["chain", "set", "map"].contains(word))?;
                Some(format!("{kind} {}", words.next()?))
            })
            .collect();
        names.sort();
        names.dedup();
        names
    };
    let (wanted, found) = (declared(ruleset), declared(&live));
    match wanted.iter().find(|name| !found.contains(name)) {
        None => Ok(()),
        Some(lacking) => Err(Error::read_back(
            TABLE,
            format!("the kernel's table has no {lacking}"),
        )),
    }
}

pub(super) fn remove(context: &Context) -> Result<(), Error> {
    restore(None, context)
}

/// Puts the table back as [`captured`] found it; bans of the live table stay where the old one has
/// a set for them.
pub(crate) fn restore(then: Option<&str>, context: &Context) -> Result<(), Error> {
    if exec::find("nft").is_none() {
        return Ok(());
    }
    match then {
        None => {
            if listed(&["-t"])?.is_none() {
                return Ok(());
            }
            batch(GONE, context)?;
        }
        Some(then) => {
            let now = listed(&[])?.map(|text| without_dynamic(&text));
            if now.is_some_and(|now| bare(&now) == bare(then)) {
                return Ok(());
            }
            batch(&format!("{GONE}{then}\n{}", carried(then)?), context)?;
        }
    }
    let now = listed(&[])?.map(|text| bare(&without_dynamic(&text)));
    if now == then.map(bare) {
        Ok(())
    } else {
        Err(Error::read_back(TABLE, "is not as it was"))
    }
}

/// Without what changes by itself: counters.
fn bare(text: &str) -> String {
    let mut words: Vec<&str> = vec![];
    let mut all = text.split_whitespace().peekable();
    while let Some(word) = all.next() {
        words.push(word);
        if word == "counter" && all.peek() == Some(&"packets") {
            // packets N bytes N
            for _ in 0..4 {
                all.next();
            }
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "\
table inet portcullis {
\tset banned4 {
\t\ttype ipv4_addr
\t\tflags timeout
\t\telements = { 192.0.2.1 timeout 1h expires 59m58s,
\t\t\t     192.0.2.2 timeout 1h expires 2s }
\t}

\tset office {
\t\ttype ipv4_addr
\t\tflags interval
\t\telements = { 10.0.0.0/8 }
\t}

\tchain forward {
\t\ttype filter hook forward priority filter - 1; policy accept;
\t\tip saddr @banned4 counter packets 7 bytes 420 drop
\t}
}
";

    #[test]
    fn bans_are_no_part_of_a_snapshot() {
        let text = without_dynamic(LISTED);
        assert!(!text.contains("192.0.2"), "{text}");
        assert!(text.contains("10.0.0.0/8") && text.contains("flags timeout"));
        assert_eq!(text.lines().count(), LISTED.lines().count() - 2);
    }

    #[test]
    fn counters_are_no_difference() {
        let later = LISTED.replace("packets 7 bytes 420", "packets 8 bytes 480");
        assert_eq!(bare(LISTED), bare(&later));
        assert_ne!(bare(LISTED), bare(&LISTED.replace("drop", "accept")));
    }

    #[test]
    fn only_the_guards_own_table() {
        let check = |script: &str, good: bool| {
            assert_eq!(only_ours(script).is_ok(), good, "{script}");
        };
        check(GONE, true);
        check(&format!("{GONE}{LISTED}"), true);
        check(
            "add table inet portcullis; delete table inet portcullis\n",
            true,
        );
        check("# flush ruleset\nadd table inet portcullis", true);
        check("flush ruleset", false);
        check(&format!("{GONE}{LISTED}\nflush ruleset"), false);
        check("include \"/etc/x\"\n", false);
        check("table inet portcullis2 { }", false);
        check("table inet portcullis { }; table ip filter { }", false);
        check("add table inet portcullis; flush ruleset", false);
        check("define x = 1\n", false);
    }

    #[test]
    fn elements_as_nft_reads_them() {
        let check = |json: &str, text: Option<&str>| {
            let value: Value = serde_json::from_str(json).unwrap();
            assert_eq!(element(&value).as_deref(), text, "{json}");
        };
        check("\"192.0.2.1\"", Some("192.0.2.1"));
        check(
            r#"{"elem":{"val":"2001:db8::1","timeout":3600,"expires":12}}"#,
            Some("2001:db8::1 timeout 3600s expires 12s"),
        );
        check(
            r#"{"elem":{"val":{"prefix":{"addr":"10.0.0.0","len":8}},"timeout":5}}"#,
            Some("10.0.0.0/8 timeout 5s"),
        );
        check(
            r#"{"range":["10.0.0.1","10.0.0.9"]}"#,
            Some("10.0.0.1-10.0.0.9"),
        );
        check(
            r#"{"elem":{"val":"192.0.2.1","timeout":3600,"expires":0}}"#,
            None,
        );
        check("\"1; flush ruleset\"", None);
        check("{}", None);
    }
}
