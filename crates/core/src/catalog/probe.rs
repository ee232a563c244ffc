//! Questions to a server and what their answers show: pure, so that golden replies test it without a network.

use super::load::Checkable;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Longest version that is taken for one, in bytes.
const LONGEST_VERSION: usize = 40;

/// A question and what its answer must look like. Conditions that are given must all hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What is asked with `GET`: it reads, costs nothing, and changes nothing.
    #[serde(default)]
    pub path: String,
    /// For servers that do not speak HTTP.
    #[serde(default)]
    pub talk: Option<Talk>,
    /// Statuses, any of them.
    #[serde(default = "ok")]
    pub status: Vec<u16>,
    /// The whole body, without space around it.
    #[serde(default)]
    pub is: Option<String>,
    /// Texts that are in the body, all of them.
    #[serde(default)]
    pub body: Vec<String>,
    /// Texts of which none is in the body.
    #[serde(default)]
    pub absent: Vec<String>,
    /// `name: value` of headers, lowercase; the header's value begins with it.
    #[serde(default)]
    pub header: Vec<String>,
    /// Places in a JSON body (RFC 6901) and what is there.
    #[serde(default)]
    pub json: BTreeMap<String, Expected>,
    /// Only tells the version: never enough to name the service.
    #[serde(default)]
    pub weak: bool,
    /// Where the version stands in the answer.
    #[serde(default)]
    pub version: Option<VersionAt>,
}

fn ok() -> Vec<u16> {
    vec![200]
}

/// What is said to servers that speak another protocol than HTTP. A closed list: each reads and changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Talk {
    /// `INFO server` of the Redis protocol.
    RedisInfo,
    /// `describe` of the Wyoming protocol.
    WyomingDescribe,
    /// Nothing: the server speaks first.
    Listen,
}

impl Talk {
    /// The bytes that are sent.
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Talk::RedisInfo => b"INFO server\r\n",
            Talk::WyomingDescribe => b"{\"type\": \"describe\"}\n",
            Talk::Listen => b"",
        }
    }
}

/// What is expected at a place of a JSON body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Expected {
    /// This truth value.
    Flag(bool),
    /// This number.
    Number(i64),
    /// This text; `*` stands for anything that is there, `!` for nothing there, `text*` for a text that begins so.
    Text(String),
}

impl Expected {
    fn holds(&self, found: Option<&Value>) -> bool {
        match self {
            Expected::Flag(flag) => found.and_then(Value::as_bool) == Some(*flag),
            Expected::Number(number) => found.and_then(Value::as_i64) == Some(*number),
            Expected::Text(text) if text == "*" => found.is_some(),
            Expected::Text(text) if text == "!" => found.is_none(),
            Expected::Text(text) => match (text.strip_suffix('*'), found.and_then(Value::as_str)) {
                (_, None) => false,
                (Some(begin), Some(found)) => found.starts_with(begin),
                (None, Some(found)) => found == text,
            },
        }
    }
}

/// Where the version stands in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionAt {
    /// A place in a JSON body.
    #[serde(default)]
    pub json: Option<String>,
    /// A header, lowercase.
    #[serde(default)]
    pub header: Option<String>,
    /// A text just before it, in the body or in what the two above name.
    #[serde(default)]
    pub after: Option<String>,
    /// Values that are no version: what every version of the program tells.
    #[serde(default)]
    pub except: Vec<String>,
}

/// An answer, as much of it as was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// Status; 0 for what is not HTTP.
    pub status: u16,
    /// Headers, names in lowercase.
    pub headers: Vec<(String, String)>,
    /// Body: bytes that are no UTF-8 replaced, cut at the reader's bound.
    pub body: String,
}

impl Reply {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name)?;
        Some(&found.1)
    }
}

impl Probe {
    /// Whether an answer is as expected.
    pub fn holds(&self, reply: &Reply) -> bool {
        let status = self.talk.is_some() || self.status.contains(&reply.status);
        let headers = self.header.iter().all(|wanted| {
            let (name, value) = wanted.split_once(':').unwrap_or((wanted, ""));
            let value = value.trim();
            reply.headers.iter().any(|(n, v)| {
                let v = v.to_ascii_lowercase();
                n == name && v.trim().starts_with(value)
            })
        });
        status
            && headers
            && self
                .is
                .as_ref()
                .is_none_or(|text| reply.body.trim() == text)
            && self
                .body
                .iter()
                .all(|text| reply.body.contains(text.as_str()))
            && !self
                .absent
                .iter()
                .any(|text| reply.body.contains(text.as_str()))
            && (self.json.is_empty() || self.json_holds(&reply.body))
    }

    fn json_holds(&self, body: &str) -> bool {
        let Ok(value) = serde_json::from_str::<Value>(body) else {
            return false;
        };
        self.json
            .iter()
            .all(|(place, expected)| expected.holds(value.pointer(place)))
    }

    /// The version in an answer. Made of letters, digits and `.+_-` only and short, whatever a server sends: it is
    /// safe to print.
    pub fn version(&self, reply: &Reply) -> Option<String> {
        let at = self.version.as_ref()?;
        let text = match (&at.json, &at.header) {
            (Some(place), _) => {
                let value: Value = serde_json::from_str(&reply.body).ok()?;
                value.pointer(place)?.as_str()?.to_owned()
            }
            (None, Some(name)) => reply.header(name)?.to_owned(),
            (None, None) => reply.body.clone(),
        };
        let text = match &at.after {
            Some(before) => text.split_once(before.as_str())?.1,
            None => text.as_str(),
        };
        tidy(text).filter(|version| !at.except.contains(version))
    }

    /// What one probe of the catalog must not be.
    pub(super) fn faults(&self, faults: &mut Vec<String>) {
        let path = &self.path;
        if self.talk.is_some() != path.is_empty() {
            faults.push("a probe has either `path` or `talk`".to_owned());
            return;
        }
        if self.talk.is_none() {
            let plain = path.starts_with('/')
                && !path.contains("..")
                && path.bytes().all(|b| b.is_ascii_graphic());
            if !plain {
                faults.push(format!("{path:?} is no path to ask for"));
            }
            let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or("");
            // Some programs change state for a GET.
            const ACTS: [&str; 14] = [
                "quit",
                "reload",
                "shutdown",
                "restart",
                "kill",
                "delete",
                "unload",
                "load",
                "logout",
                "reset",
                "stop",
                "terminate",
                "pull",
                "interrupt",
            ];
            if ACTS.contains(&last) {
                faults.push(format!("{path:?} sounds as if it did something"));
            }
        }
        let shape = self.is.is_some()
            || !self.body.is_empty()
            || !self.header.is_empty()
            || !self.json.is_empty();
        if !shape && !self.weak {
            faults.push(format!(
                "{path:?}: a status alone names nothing; add what is in the answer, or `weak`"
            ));
        }
        faults.check(
            self.body.iter().chain(&self.absent),
            |text| !text.is_empty(),
            "an empty text is everywhere",
        );
        faults.check(
            &self.header,
            |h| **h == h.to_ascii_lowercase() && h.contains(':'),
            "headers are `name: value`, lowercase",
        );
        faults.check(
            self.json.keys(),
            |p| p.is_empty() || p.starts_with('/'),
            "JSON places begin with a slash",
        );
    }
}

/// The version at the beginning of a text, or nothing that looks like one.
pub(super) fn tidy(text: &str) -> Option<String> {
    let text =
        text.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '='));
    let text = match text.strip_prefix('v') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_digit()) => rest,
        _ => text,
    };
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '_' | '-')))
        .unwrap_or(text.len());
    let version = text[..end].trim_end_matches(['.', '-', '+', '_']);
    let sound = (1..=LONGEST_VERSION).contains(&version.len())
        && version.bytes().any(|b| b.is_ascii_digit());
    sound.then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(text: &str) -> Probe {
        toml::from_str(text).unwrap()
    }

    fn reply(status: u16, headers: &[(&str, &str)], body: &str) -> Reply {
        Reply {
            status,
            headers: headers
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            body: body.to_owned(),
        }
    }

    fn check(text: &str, reply: &Reply, holds: bool, version: Option<&str>) {
        let probe = probe(text);
        assert_eq!(
            (probe.holds(reply), probe.version(reply).as_deref()),
            (holds, version),
            "{text}\n{reply:?}"
        );
    }

    #[test]
    fn every_condition_must_hold() {
        let ollama = "path = '/'\nis = 'Ollama is running'";
        check(ollama, &reply(200, &[], "Ollama is running\n"), true, None);
        check(ollama, &reply(404, &[], "Ollama is running"), false, None);
        check(
            ollama,
            &reply(200, &[], "<p>Ollama is running here"),
            false,
            None,
        );
        let json = "path = '/v'\nversion = { json = '/info/version' }\n[json]\n'/info/title' = 'X*'\n'/info/version' = '*'\n'/error' = '!'\n'/ok' = true\n'/n' = 3";
        let body = r#"{"info":{"title":"X server","version":"v1.2.3"},"ok":true,"n":3}"#;
        check(json, &reply(200, &[], body), true, Some("1.2.3"));
        check(
            json,
            &reply(200, &[], &body.replace("true", "false")),
            false,
            Some("1.2.3"),
        );
        check(json, &reply(200, &[], "no json"), false, None);
        check(
            json,
            &reply(200, &[], &body.replace("\"n\"", "\"error\"")),
            false,
            Some("1.2.3"),
        );
        let header = "path = '/'\nheader = ['server: llama.cpp']";
        check(
            header,
            &reply(200, &[("server", "Llama.cpp b1")], ""),
            true,
            None,
        );
        check(
            header,
            &reply(200, &[("via", "llama.cpp")], ""),
            false,
            None,
        );
        let texts = "path = '/'\nbody = ['a', 'b']\nabsent = ['c']";
        check(texts, &reply(200, &[], "b a"), true, None);
        check(texts, &reply(200, &[], "b a c"), false, None);
        check(texts, &reply(200, &[], "b"), false, None);
    }

    #[test]
    fn versions_are_safe_to_print() {
        let check = |text: &str, version: Option<&str>| {
            assert_eq!(tidy(text).as_deref(), version, "{text:?}");
        };
        check("0.9.2", Some("0.9.2"));
        check("\"v1.5.0-rc1\", …", Some("1.5.0-rc1"));
        check("  = '2.0'", Some("2.0"));
        check("b6869-5d195f17b", Some("b6869-5d195f17b"));
        check("1.0\u{1b}[31m", Some("1.0"));
        check("latest", None);
        check("", None);
        check("\u{1b}]0;x\u{7}1", None);
        check(&"9".repeat(41), None);
    }
}
