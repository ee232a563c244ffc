//! `ipset save`.
use super::xtables::words::{Lines, Word, words};
use super::{MAX_ELEMENTS, Note, Notes, value};
use crate::Ruleset;
use crate::ir::{Field, IpSet, IpSetEntry, Ipv, NamePattern};
use std::collections::HashMap;

/// Reads `ipset save` output.
///
/// A set with an option or an entry that is not understood is marked incomplete: whatever is not
/// listed may be in it or not.
pub fn ipset_save(text: &str) -> (Ruleset, Vec<Note>) {
    let mut reader = Reader::default();
    for (number, line) in Lines::new(text, |_| true) {
        reader.line(number, line.trim());
    }
    let ruleset = Ruleset {
        ipsets: reader.sets,
        ..Ruleset::default()
    };
    (ruleset, reader.notes.finish())
}

#[derive(Default)]
struct Reader {
    sets: Vec<IpSet>,
    names: HashMap<String, usize>,
    notes: Notes,
    elements: usize,
}

impl Reader {
    fn line(&mut self, number: u32, line: &str) {
        if line.is_empty() || line.starts_with('#') || line == "COMMIT" {
            return;
        }
        let (words, closed) = words(line);
        let text = |at: usize| words.get(at).map(|w| w.text.as_ref()).unwrap_or_default();
        let name = text(1);
        match text(0) {
            "create" | "-N" | "n" if closed && words.len() > 2 => {
                let (set, understood) = create(name, text(2), &words[3..]);
                if !understood {
                    self.notes
                        .add(number, format!("ipset option not understood: {line}"));
                }
                self.sets.push(set);
                self.names.insert(name.to_string(), self.sets.len() - 1);
            }
            "add" | "-A" | "a" if words.len() > 2 => {
                let Some(&at) = self.names.get(name) else {
                    self.notes.add(
                        number,
                        format!("entry of a set that is not declared: {line}"),
                    );
                    return;
                };
                let set = &mut self.sets[at];
                self.elements += 1;
                if self.elements > MAX_ELEMENTS {
                    if !set.incomplete {
                        self.notes
                            .add(number, format!("more entries than are kept: {name}"));
                    }
                    set.incomplete = true;
                    return;
                }
                match entry(set, text(2), &words[3..]) {
                    Some(entry) if closed => set.entries.push(entry),
                    _ => {
                        set.incomplete = true;
                        self.notes
                            .add(number, format!("entry not understood: {line}"));
                    }
                }
            }
            _ => {
                self.notes
                    .add(number, format!("not a line of ipset save: {line}"));
                if let Some(&at) = self.names.get(name) {
                    self.sets[at].incomplete = true;
                }
            }
        }
    }
}

fn create(name: &str, kind: &str, options: &[Word<'_>]) -> (IpSet, bool) {
    let addresses = kind.contains("ip") || kind.contains("net");
    let mut set = IpSet {
        name: name.to_string(),
        kind: kind.to_string(),
        family: (addresses && kind != "list:set").then_some(Ipv::V4),
        netmask: None,
        markmask: None,
        timeout: false,
        incomplete: false,
        entries: vec![],
    };
    let mut understood = true;
    let mut words = options.iter();
    while let Some(option) = words.next() {
        let mut argument = || words.next().map(|w| w.text.as_ref()).unwrap_or_default();
        match option.text.as_ref() {
            "family" => match argument() {
                "inet" => {}
                "inet6" if set.family.is_some() => set.family = Some(Ipv::V6),
                _ => understood = false,
            },
            "netmask" => match argument().parse() {
                Ok(len) => set.netmask = Some(len),
                Err(_) => understood = false,
            },
            "markmask" => match value::number32(argument()) {
                Some(mask) => set.markmask = Some(mask),
                None => understood = false,
            },
            "timeout" => {
                argument();
                set.timeout = true;
            }
            "range" => {
                // Only bounds what can be added; but a bitmap:ip range tells the family.
                argument();
            }
            "hashsize" | "maxelem" | "bucketsize" | "initval" | "size" => {
                argument();
            }
            "counters" | "comment" | "skbinfo" | "forceadd" => {}
            _ => understood = false,
        }
    }
    set.incomplete = !understood;
    (set, understood)
}

fn entry(set: &IpSet, text: &str, options: &[Word<'_>]) -> Option<IpSetEntry> {
    let mut out = IpSetEntry {
        key: key(set, text)?,
        ..IpSetEntry::default()
    };
    let mut words = options.iter();
    while let Some(option) = words.next() {
        let mut argument = || words.next().map(|w| w.text.as_ref()).unwrap_or_default();
        match option.text.as_ref() {
            "timeout" => out.expires = Some(value::number(argument())?).filter(|&t| t > 0),
            "nomatch" => out.nomatch = true,
            "comment" => out.comment = Some(argument().to_string()),
            "packets" | "bytes" | "skbmark" | "skbprio" | "skbqueue" => {
                argument();
            }
            _ => return None,
        }
    }
    Some(out)
}

fn key(set: &IpSet, text: &str) -> Option<Vec<Field>> {
    if set.kind == "list:set" {
        return Some(vec![Field::Name(NamePattern::exact(text))]);
    }
    let (_, dimensions) = set.kind.split_once(':')?;
    let mut parts = text.split(',');
    let mut out = Vec::new();
    for dimension in dimensions.split(',') {
        out.push(match (dimension, parts.next()) {
            // bitmap:ip,mac takes the first MAC it sees when none is given.
            ("mac", None) if set.kind == "bitmap:ip,mac" => Field::Unknown("mac".to_string()),
            (_, None) => return None,
            (dimension, Some(part)) => field(set, dimension, part)?,
        });
    }
    parts.next().is_none().then_some(out)
}

fn field(set: &IpSet, dimension: &str, text: &str) -> Option<Field> {
    let ipv6 = set.family == Some(Ipv::V6);
    Some(match dimension {
        "ip" | "net" => match value::address_range(text, ipv6) {
            Some((first, last)) => Field::Addr(first, last),
            None => match value::network(text, ipv6)? {
                value::Net::Range(first, last) => Field::Addr(first, last),
                value::Net::Masked(..) => return None,
            },
        },
        "port" => port(text)?,
        "mac" => {
            let bytes = value::mac(text)?;
            Field::Bytes(bytes.clone(), bytes)
        }
        "mark" => {
            let mark = value::number32(text)?;
            Field::Int(mark.into(), mark.into())
        }
        "iface" if text.starts_with("physdev:") => Field::Unknown(text.to_string()),
        "iface" => Field::Name(NamePattern::exact(text)),
        _ => return None,
    })
}

/// `80`, `tcp:80`, `udp:80-90`; ICMP's `icmp:echo-request` is no port.
fn port(text: &str) -> Option<Field> {
    let (proto, ports) = match text.split_once(':') {
        Some((proto, ports)) => (Some(value::protocol(proto)?), ports),
        None => (None, text),
    };
    match value::port_range(ports, '-') {
        Some((first, last)) => Some(Field::Port { proto, first, last }),
        None if matches!(proto, Some(1 | 58)) => Some(Field::Unknown(text.to_string())),
        None => None,
    }
}
