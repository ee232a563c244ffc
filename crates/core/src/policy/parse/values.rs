//! The values of a policy text: ports, sources, durations and words, each with a hint when wrong.

use super::super::error::Fault;
use super::super::value::parse_duration;
use super::super::{Port, PortSpec, Source, ZoneRef};
use super::{Reader, Value};
use crate::text::clean;
use ipnet::IpNet;
use reach::Proto;
use std::net::IpAddr;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;
use toml::de::DeValue;

impl Reader {
    pub(super) fn target(&mut self, value: &Value<'_>) -> Option<(Proto, PortSpec)> {
        let text = self.string(value)?;
        let Some((proto, port)) = text.split_once('/') else {
            self.fault_hint(
                Fault::BadValue,
                value.span(),
                format!("`{}` names no protocol and port", clean(&text)),
                "not a target",
                "write it as \"tcp/11434\" or \"udp/53\"",
            );
            return None;
        };
        let proto = self.proto_word(proto, value.span())?;
        let port = self.port_text(port, value.span())?;
        Some((proto, port))
    }

    pub(super) fn proto(&mut self, value: &Value<'_>) -> Option<Proto> {
        let word = self.string(value)?;
        self.proto_word(&word, value.span())
    }

    pub(super) fn proto_word(&mut self, word: &str, span: Range<usize>) -> Option<Proto> {
        match word {
            "tcp" => Some(Proto::Tcp),
            "udp" => Some(Proto::Udp),
            word => {
                self.choice(word, span, &["tcp", "udp"]);
                None
            }
        }
    }

    pub(super) fn port_spec(&mut self, value: &Value<'_>) -> Option<PortSpec> {
        match value.get_ref() {
            DeValue::Integer(_) => match integer(value) {
                Some(number) => self.port_number(number, value.span()).map(PortSpec::One),
                None => {
                    self.bad_port(value.span(), "this number");
                    None
                }
            },
            DeValue::String(text) => self.port_text(text, value.span()),
            _ => {
                self.wrong_type(value, "a port number, \"ssh\" or a range \"8000-8010\"");
                None
            }
        }
    }

    pub(super) fn port_text(&mut self, text: &str, span: Range<usize>) -> Option<PortSpec> {
        if text == "ssh" {
            return Some(PortSpec::Ssh);
        }
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        // Digits too many for i64 are certainly no port.
        let number = |t: &str| t.parse::<i64>().unwrap_or(i64::MAX);
        if digits(text) {
            return self.port_number(number(text), span).map(PortSpec::One);
        }
        if let Some((first, last)) = text.split_once(['-', ':'])
            && digits(first)
            && digits(last)
        {
            let first = self.port_number(number(first), span.clone())?;
            let last = self.port_number(number(last), span.clone())?;
            if first < last {
                return Some(PortSpec::Range(first, last));
            }
            if first == last {
                return Some(PortSpec::One(first));
            }
            self.fault_hint(
                Fault::BadPort,
                span,
                "this port range runs backwards".into(),
                "backwards",
                format!("write \"{last}-{first}\""),
            );
            return None;
        }
        let hint = match text.to_ascii_lowercase().as_str() {
            "https" => "write the number: 443",
            "http" => "write the number: 80",
            "sshd" | "openssh" | "shh" => "did you mean \"ssh\"?",
            _ => "write a number, \"ssh\" or a range \"8000-8010\"",
        };
        let message = format!("`{}` is not a port", clean(text));
        self.fault_hint(Fault::BadPort, span, message, "not a port", hint);
        None
    }

    pub(super) fn port_number(&mut self, number: i64, span: Range<usize>) -> Option<Port> {
        let port = u16::try_from(number).ok().and_then(Port::new);
        if port.is_none() {
            self.bad_port(span, &number.to_string());
        }
        port
    }

    pub(super) fn bad_port(&mut self, span: Range<usize>, what: &str) {
        self.fault_hint(
            Fault::BadPort,
            span,
            format!("{what} is not a port"),
            "not a port",
            "ports are 1 to 65535",
        );
    }

    /// A value or a list of values; an empty list is a fault.
    pub(super) fn items<'v, 'i>(&mut self, value: &'v Value<'i>) -> Vec<&'v Value<'i>> {
        match value.get_ref() {
            DeValue::Array(array) => array.iter().collect(),
            _ => vec![value],
        }
    }

    pub(super) fn sources(&mut self, value: &Value<'_>) -> Vec<Source> {
        self.sources_or(value, &[])
    }

    pub(super) fn sources_or(&mut self, value: &Value<'_>, words: &[&str]) -> Vec<Source> {
        let items = self.items(value);
        if items.is_empty() {
            self.fault_hint(
                Fault::BadValue,
                value.span(),
                "an empty list admits nobody".into(),
                "nobody",
                "remove this entry: what is not allowed is closed",
            );
        }
        let mut sources = Vec::new();
        for item in items {
            if let Some(source) = self.source(item, words)
                && !sources.contains(&source)
            {
                sources.push(source);
            }
        }
        sources
    }

    /// One source; `words`: further words that this place knows, for the hint.
    pub(super) fn source(&mut self, value: &Value<'_>, words: &[&str]) -> Option<Source> {
        let text = self.string(value)?;
        let span = value.span();
        match text.as_str() {
            "anywhere" => return Some(Source::Anywhere),
            "internet" => return Some(Source::Zone(ZoneRef::Internet)),
            "lan" => return Some(Source::Zone(ZoneRef::Lan(None))),
            "vpn" => return Some(Source::Zone(ZoneRef::Vpn(None))),
            "containers" => return Some(Source::Zone(ZoneRef::Containers(None))),
            _ => {}
        }
        for (prefix, zone) in [
            ("lan:", ZoneRef::Lan as fn(Option<String>) -> ZoneRef),
            ("vpn:", ZoneRef::Vpn),
            ("containers:", ZoneRef::Containers),
        ] {
            if let Some(interface) = text.strip_prefix(prefix) {
                if interface_name(interface) {
                    return Some(Source::Zone(zone(Some(interface.to_owned()))));
                }
                self.fault_hint(
                    Fault::UnknownName,
                    span,
                    format!("`{}` is not an interface name", clean(interface)),
                    "not an interface",
                    format!("for example \"{prefix}eth0\""),
                );
                return None;
            }
        }
        let looks_numeric =
            text.contains(['.', ':', '/']) || text.starts_with(|c: char| c.is_ascii_digit());
        if looks_numeric {
            return self.address_text(&text, span);
        }
        let known = ["anywhere", "internet", "lan", "vpn", "containers"];
        let all = known.iter().chain(words).copied();
        let hint = match (text.as_str(), nearest(&text, all.clone())) {
            ("admin", _) => {
                "whoever is connected changes; write the network that the administrators come from"
                    .to_owned()
            }
            ("any" | "all" | "everywhere" | "world" | "public" | "*", _) => {
                "did you mean \"anywhere\"?".to_owned()
            }
            ("localhost" | "loopback" | "host", _) => {
                "programs on this machine are always admitted".to_owned()
            }
            ("docker" | "container" | "podman", _) => "did you mean \"containers\"?".to_owned(),
            (_, Some(near)) => format!("did you mean \"{near}\"?"),
            _ => format!(
                "zones are {}; or write an address, a network or a range",
                all.collect::<Vec<_>>().join(", ")
            ),
        };
        let message = format!("there is no zone `{}`", clean(&text));
        self.fault_hint(Fault::UnknownName, span, message, "unknown", hint);
        None
    }

    pub(super) fn address_text(&mut self, text: &str, span: Range<usize>) -> Option<Source> {
        let (bad, hint) = match address_source(text) {
            Ok(source) => return Some(source),
            Err(bad) => bad,
        };
        let (message, label) = match bad {
            Fault::HostBits => (
                format!(
                    "`{}` is an address inside a network, not a network",
                    clean(text)
                ),
                "host bits are set",
            ),
            _ => (
                format!("`{}` is not an address, network or range", clean(text)),
                "not an address",
            ),
        };
        self.fault_hint(bad, span, message, label, hint);
        None
    }

    pub(super) fn duration(&mut self, value: &Value<'_>) -> Option<Duration> {
        let bad = "not a duration";
        if let Some(seconds) = integer(value) {
            self.fault_hint(
                Fault::BadValue,
                value.span(),
                "a duration has a unit".into(),
                bad,
                format!("write \"{seconds}s\" for seconds"),
            );
            return None;
        }
        let text = self.string(value)?;
        let duration = parse_duration(&text);
        if duration.is_none() {
            self.fault_hint(
                Fault::BadValue,
                value.span(),
                format!("`{}` is not a duration", clean(&text)),
                bad,
                "write \"90s\", \"10m\", \"1h\", \"7d\" or \"2w\"; one second to a year",
            );
        }
        duration
    }

    pub(super) fn comment(&mut self, value: &Value<'_>) -> Option<String> {
        let text = self.string(value)?;
        // UFW keeps comments in one line of its rules file, and refuses a quote.
        let plain = text.chars().all(|c| !c.is_control() && c != '\'') && clean(&text) == text;
        if !plain || text.chars().count() > 80 {
            self.fault_hint(
                Fault::BadValue,
                value.span(),
                "this comment cannot be put into a firewall rule".into(),
                "unusable",
                "one line, at most 80 characters, no single quotes",
            );
            return None;
        }
        Some(text)
    }

    pub(super) fn choice(&mut self, word: &str, span: Range<usize>, choices: &[&str]) {
        let hint = match nearest(word, choices.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("write \"{}\"", choices.join("\" or \"")),
        };
        let message = format!("`{}` is not one of the choices", clean(word));
        self.fault_hint(Fault::BadValue, span, message, "unknown", hint);
    }

    pub(super) fn string(&mut self, value: &Value<'_>) -> Option<String> {
        match value.get_ref().as_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                self.wrong_type(value, "a text in quotes");
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, value: &Value<'_>) -> Option<bool> {
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.wrong_type(value, "true or false");
        }
        boolean
    }
}

/// Reads an address, a network or a range of addresses.
fn address_source(text: &str) -> Result<Source, (Fault, String)> {
    if let Ok(address) = IpAddr::from_str(text) {
        return Ok(Source::Net(address.into()));
    }
    if text.contains('/') {
        if let Ok(net) = IpNet::from_str(text) {
            if net.addr() == net.network() {
                return Ok(Source::Net(net));
            }
            let hint = format!(
                "write \"{}\" for the network, or \"{}\" for that one address",
                net.trunc(),
                net.addr()
            );
            return Err((Fault::HostBits, hint));
        }
        let (address, length) = text.rsplit_once('/').unwrap_or((text, ""));
        let hint = match (IpAddr::from_str(address), length.parse::<u32>()) {
            (Ok(IpAddr::V4(_)), Ok(_)) => "the length of an IPv4 network is 0 to 32".to_owned(),
            (Ok(IpAddr::V6(_)), Ok(_)) => "the length of an IPv6 network is 0 to 128".to_owned(),
            (Ok(_), Err(_)) => "write the length as a number: \"192.168.1.0/24\"".to_owned(),
            _ => "for example \"192.168.1.0/24\" or \"2001:db8::/32\"".to_owned(),
        };
        return Err((Fault::BadAddress, hint));
    }
    if let Some((first, last)) = text.split_once('-')
        && let (Ok(first), Ok(last)) = (
            IpAddr::from_str(first.trim()),
            IpAddr::from_str(last.trim()),
        )
    {
        return match first.is_ipv4() == last.is_ipv4() {
            false => Err((
                Fault::BadAddress,
                "both ends of a range are of one family".to_owned(),
            )),
            true if first > last => Err((Fault::BadAddress, format!("write \"{last}-{first}\""))),
            true => Ok(Source::Range(first, last)),
        };
    }
    Err((
        Fault::BadAddress,
        "for example \"192.168.1.7\", \"192.168.1.0/24\" or \"10.0.0.5-10.0.0.9\"".to_owned(),
    ))
}

/// The networks that make up a range, both ends included.
pub(super) fn subnets(first: IpAddr, last: IpAddr) -> Vec<IpNet> {
    use ipnet::{IpSubnets, Ipv4Subnets, Ipv6Subnets};
    match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => IpSubnets::from(Ipv4Subnets::new(a, b, 0)).collect(),
        (IpAddr::V6(a), IpAddr::V6(b)) => IpSubnets::from(Ipv6Subnets::new(a, b, 0)).collect(),
        _ => Vec::new(),
    }
}

/// A name that the kernel would take for an interface (dev_valid_name), in plain characters.
fn interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .chars()
            .all(|c| c.is_ascii_graphic() && c != '/' && c != ':')
}

pub(super) fn integer(value: &Value<'_>) -> Option<i64> {
    let integer = value.get_ref().as_integer()?;
    i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
}

/// The known word that was probably meant.
pub(super) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    known
        .map(|k| (strsim::damerau_levenshtein(&word, &k.replace('-', "_")), k))
        .filter(|(distance, k)| *distance <= 1 + k.len() / 4)
        .min()
        .map(|(_, k)| k)
}

pub(super) fn with_article(type_name: &str) -> String {
    match type_name {
        "integer" | "array" => format!("an {type_name}"),
        _ => format!("a {type_name}"),
    }
}
