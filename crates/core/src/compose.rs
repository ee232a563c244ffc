//! Compose files: where a port is published, and the change that publishes it on loopback.
//!
//! A file is never written anew from its values: the few characters that publish the port are replaced in
//! its text, so comments, quotes and layout stay. Whatever is not plainly understood (variables, lists
//! shared by an anchor, tags, values in an unusual spelling) is left alone, with the reason; and a changed
//! text is read again and must say the same as before but for the change (Compose Specification, `ports`;
//! YAML 1.2).

mod tree;

use reach::Proto;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use tree::{Event, Kind, Node};

/// Largest file that is read, bytes.
pub const LARGEST: usize = 1024 * 1024;

/// The address that a port is published on once mended.
pub const LOOPBACK: &str = "127.0.0.1";

/// One entry of a service's `ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The service.
    pub service: String,
    /// Line of the file, 1 for the first.
    pub line: u32,
    /// The entry as it is written; of the long form its port numbers.
    pub text: String,
    /// Protocol.
    pub proto: Proto,
    /// Address on the host; `None`: every address.
    pub host_ip: Option<IpAddr>,
    /// First and last port on the host; `None`: whatever is free.
    pub published: Option<(u16, u16)>,
    /// First and last port in the container; 0 where it is not known.
    pub target: (u16, u16),
    /// The change that puts it on loopback; `None` when it is there, or for the reason in `left`.
    pub change: Option<Edit>,
    /// Why it is left alone.
    pub left: Option<String>,
}

/// A change of a few characters in one line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Edit {
    /// Where it begins, in bytes.
    pub offset: usize,
    /// Line of the file, 1 for the first.
    pub line: u32,
    /// What stands there; empty for an addition.
    pub old: String,
    /// What is to stand there.
    pub new: String,
}

impl Entry {
    /// True when it publishes this port of the container at this port of the host, or may.
    pub fn publishes(&self, proto: Proto, host_port: u16, container_port: u16) -> bool {
        let Some((first, last)) = self.published else {
            return false;
        };
        let (from, to) = self.target;
        self.proto == proto
            && (first..=last).contains(&host_port)
            && (from..=to).contains(&container_port)
    }
}

/// The entries of every service's `ports`, in the order of the file.
///
/// # Errors
/// Why nothing can be said of the file, in one sentence.
pub fn entries(text: &str) -> Result<Vec<Entry>, String> {
    let events = tree::events(text)?;
    let root = tree::build(text, &events)?;
    let shared = tree::aliased(&events);
    let Kind::Map { pairs, .. } = &root.kind else {
        return Err("it is no mapping".into());
    };
    let mut out = Vec::new();
    let Some(services) = only(pairs, "services")? else {
        return Ok(out);
    };
    let Kind::Map { pairs, .. } = &services.kind else {
        return Err("`services` is no mapping".into());
    };
    for (key, service) in pairs {
        let Some(name) = key.scalar() else {
            return Err("a service's name is no word".into());
        };
        if pairs
            .iter()
            .filter(|(k, _)| k.scalar() == Some(name))
            .count()
            > 1
        {
            return Err("a service is there twice".into());
        }
        let Kind::Map { pairs, .. } = &service.kind else {
            continue;
        };
        let Some(ports) = only(pairs, "ports")? else {
            continue;
        };
        let above = [&root, services, service, ports];
        let is_shared = above.iter().any(|n| shared.contains(&n.anchor));
        match &ports.kind {
            Kind::Seq(items) => {
                for item in items {
                    let mut entry = entry(text, name, item);
                    let tagged = ports.tagged || item.tagged || service.tagged;
                    if is_shared || shared.contains(&item.anchor) {
                        leave(
                            &mut entry,
                            "an anchor shares it with another place of the file",
                        );
                    } else if tagged {
                        leave(&mut entry, "a tag gives it another meaning");
                    }
                    out.push(entry);
                }
            }
            Kind::Alias => {
                let mut entry = blank(name, ports.line);
                leave(
                    &mut entry,
                    "the list is an alias of one in another place of the file",
                );
                out.push(entry);
            }
            _ => {}
        }
    }
    Ok(out)
}

/// Makes `edits` in a file's text.
///
/// # Errors
/// When the text is not the one that they were made for, or the result would say anything else that is
/// different. Then nothing is to be written.
pub fn apply(text: &str, edits: &[Edit]) -> Result<String, String> {
    let mut sorted = edits.to_vec();
    sorted.sort();
    let known = entries(text)?;
    let mut out = String::with_capacity(text.len() + 64);
    let mut at = 0;
    for edit in &sorted {
        if !known.iter().any(|e| e.change.as_ref() == Some(edit)) {
            return Err(format!(
                "line {} is not as it was when the plan was made",
                edit.line
            ));
        }
        let before = text.get(at..edit.offset).ok_or("two changes overlap")?;
        out.push_str(before);
        out.push_str(&edit.new);
        at = edit.offset + edit.old.len();
    }
    out.push_str(text.get(at..).ok_or("a change goes beyond the end")?);
    let (before, after) = (tree::events(text)?, tree::events(&out)?);
    if says_the_same(&before, &after, &sorted) {
        Ok(out)
    } else {
        Err("the changed file would say something else as well".into())
    }
}

/// The events are the same but for what the edits replace or add.
fn says_the_same(before: &[Event], after: &[Event], edits: &[Edit]) -> bool {
    let mut new = after.iter();
    for old in before {
        let edit = edits
            .iter()
            .find(|e| e.offset == old.start && old.is_scalar());
        match edit {
            Some(edit) if edit.old.is_empty() => {
                let key = new.next().is_some_and(|e| e.says("host_ip"));
                let value = new.next().is_some_and(|e| e.says(LOOPBACK));
                if !(key && value && new.next().is_some_and(|e| e.same(old))) {
                    return false;
                }
            }
            Some(edit) => {
                let wanted = edit.new.trim_matches(['"', '\'']);
                if !new.next().is_some_and(|e| e.says(wanted)) {
                    return false;
                }
            }
            None => {
                if !new.next().is_some_and(|e| e.same(old)) {
                    return false;
                }
            }
        }
    }
    new.next().is_none()
}

/// The value of a key that may be there once.
fn only<'a>(pairs: &'a [(Node, Node)], key: &str) -> Result<Option<&'a Node>, String> {
    let mut found = pairs.iter().filter(|(k, _)| k.scalar() == Some(key));
    let first = found.next().map(|(_, value)| value);
    match found.next() {
        None => Ok(first),
        Some(_) => Err(format!("`{key}` is there twice")),
    }
}

fn blank(service: &str, line: u32) -> Entry {
    Entry {
        service: service.to_owned(),
        line,
        text: String::new(),
        proto: Proto::Tcp,
        host_ip: None,
        published: None,
        target: (0, 0),
        change: None,
        left: None,
    }
}

fn leave(entry: &mut Entry, why: &str) {
    entry.change = None;
    entry.left = Some(why.to_owned());
}

fn entry(text: &str, service: &str, node: &Node) -> Entry {
    let mut entry = blank(service, node.line);
    match &node.kind {
        Kind::Scalar { value, raw } => short(text, node, value, raw.clone(), &mut entry),
        Kind::Map { pairs, .. } => long(text, node, pairs, &mut entry),
        Kind::Alias => leave(&mut entry, "it is an alias"),
        Kind::Seq(_) => leave(&mut entry, "it is a list"),
    }
    if entry.host_ip.is_some_and(|ip| ip.is_loopback()) {
        entry.change = None;
    }
    entry
}

/// `"8080:80"`, `127.0.0.1:8080-8081:80-81/udp`, `[::]:80:80`, `3000`.
fn short(text: &str, node: &Node, value: &str, raw: std::ops::Range<usize>, entry: &mut Entry) {
    let written = text.get(raw.clone()).unwrap_or_default();
    entry.text = written.chars().take(80).collect();
    if value.contains('$') {
        return leave(entry, "it is made from variables");
    }
    let (ports, proto) = match value.split_once('/') {
        Some((ports, "tcp")) => (ports, Proto::Tcp),
        Some((ports, "udp")) => (ports, Proto::Udp),
        Some((ports, "sctp")) => (ports, Proto::Sctp),
        Some(_) => return leave(entry, "its protocol is none that is known"),
        None => (value, Proto::Tcp),
    };
    entry.proto = proto;
    let (ip, rest) = match ports.strip_prefix('[') {
        Some(inner) => match inner.split_once("]:") {
            Some((ip, rest)) => (Some(ip), rest),
            None => return leave(entry, "its address is not understood"),
        },
        None if ports.matches(':').count() == 2 => match ports.split_once(':') {
            Some((ip, rest)) => (Some(ip), rest),
            None => (None, ports),
        },
        None => (None, ports),
    };
    let (host, container) = rest.split_once(':').unwrap_or(("", rest));
    match ip.map(str::parse::<IpAddr>) {
        Some(Ok(ip)) => entry.host_ip = Some(ip),
        Some(Err(_)) if ip != Some("") => return leave(entry, "its address is not understood"),
        _ => {}
    }
    let (Some(target), Some(published)) = (range(container), optional(host)) else {
        return leave(entry, "its ports are not understood");
    };
    entry.target = target;
    entry.published = published;
    let suffix = value.strip_prefix(ports).unwrap_or_default();
    let wanted = format!("{LOOPBACK}:{host}:{container}{suffix}");
    let quoted = |q: char| written == format!("{q}{value}{q}");
    let new = if quoted('\'') {
        format!("'{wanted}'")
    } else if quoted('"') || written == value {
        // A plain one gets quotes: `a:b:c` may read as a number in base 60 for YAML 1.1.
        format!("\"{wanted}\"")
    } else {
        return leave(entry, "it is written in an unusual way");
    };
    entry.change = Some(Edit {
        offset: raw.start,
        line: node.line,
        old: written.to_owned(),
        new,
    });
}

/// `target: 80`, `published: "8080"`, `host_ip`, `protocol`.
fn long(text: &str, node: &Node, pairs: &[(Node, Node)], entry: &mut Entry) {
    let value = |key: &str| only(pairs, key);
    let parts = (
        value("target"),
        value("published"),
        value("host_ip"),
        value("protocol"),
    );
    let (Ok(target), Ok(published), Ok(host_ip), Ok(proto)) = parts else {
        return leave(entry, "a key is there twice");
    };
    let word = |node: Option<&Node>| node.map(|n| n.scalar().map(str::to_owned));
    let (target, published, address, proto) =
        (word(target), word(published), word(host_ip), word(proto));
    let mut shown = Vec::new();
    for (key, part) in [("target", &target), ("published", &published)] {
        if let Some(Some(text)) = part {
            shown.push(format!(
                "{key}: {}",
                text.chars().take(40).collect::<String>()
            ));
        }
    }
    entry.text = shown.join(", ");
    if pairs.iter().any(|(key, _)| key.scalar() == Some("<<")) {
        return leave(entry, "an anchor shares it with another place of the file");
    }
    if [&target, &published, &address, &proto].iter().any(|p| {
        p.as_ref()
            .is_some_and(|p| p.as_ref().is_none_or(|t| t.contains('$')))
    }) {
        return leave(entry, "it is made from variables");
    }
    entry.proto = match proto.flatten().as_deref() {
        None | Some("tcp") => Proto::Tcp,
        Some("udp") => Proto::Udp,
        Some("sctp") => Proto::Sctp,
        Some(_) => return leave(entry, "its protocol is none that is known"),
    };
    let numbers = (
        target.flatten().and_then(|t| range(&t)),
        optional(&published.flatten().unwrap_or_default()),
    );
    let (Some(target), Some(published)) = numbers else {
        return leave(entry, "its ports are not understood");
    };
    entry.target = target;
    entry.published = published;
    if let Some(Some(address)) = &address {
        match address.parse() {
            Ok(ip) => entry.host_ip = Some(ip),
            Err(_) => return leave(entry, "its address is not understood"),
        }
    }
    entry.change = match host_ip {
        Some(node) => {
            let Kind::Scalar { value, raw } = &node.kind else {
                return leave(entry, "its address is not understood");
            };
            let written = text.get(raw.clone()).unwrap_or_default();
            let plain = written == value || written.trim_matches(['"', '\'']) == value;
            if node.tagged || node.anchor != 0 || !plain {
                return leave(entry, "it is written in an unusual way");
            }
            Some(Edit {
                offset: raw.start,
                line: node.line,
                old: written.to_owned(),
                new: format!("\"{LOOPBACK}\""),
            })
        }
        None => addition(text, node, pairs),
    };
    if entry.change.is_none() {
        leave(entry, "it is written in an unusual way");
    }
}

/// `host_ip` in front of the first key, in the same style.
fn addition(text: &str, node: &Node, pairs: &[(Node, Node)]) -> Option<Edit> {
    let (first, _) = pairs.first()?;
    let Kind::Scalar { raw, .. } = &first.kind else {
        return None;
    };
    if first.tagged || first.anchor != 0 {
        return None;
    }
    let between = if matches!(node.kind, Kind::Map { flow: true, .. }) {
        ", ".to_owned()
    } else {
        let start = text.get(..raw.start)?.rfind('\n').map_or(0, |at| at + 1);
        let indent = text.get(start..raw.start)?;
        if !indent.chars().all(|c| matches!(c, ' ' | '-')) {
            return None;
        }
        let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
        format!("{end}{}", " ".repeat(indent.len()))
    };
    Some(Edit {
        offset: raw.start,
        line: first.line,
        old: String::new(),
        new: format!("host_ip: {LOOPBACK}{between}"),
    })
}

/// `80`, `8000-8010`.
fn range(text: &str) -> Option<(u16, u16)> {
    let number = |t: &str| {
        let digits = !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        t.parse::<u16>().ok().filter(|n| digits && *n != 0)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

/// As [`range`]; nothing said is nothing chosen.
fn optional(text: &str) -> Option<Option<(u16, u16)>> {
    if text.is_empty() {
        Some(None)
    } else {
        range(text).map(Some)
    }
}
