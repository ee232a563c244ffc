//! From TOML to [`Policy`]: every fault is noted with its place, and reading goes on.

use super::error::{Fault, PolicyError, PolicyErrors};
use super::value::parse_duration;
use super::*;
use crate::text::clean;
use ipnet::IpNet;
use miette::NamedSource;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest policy text that is read, in bytes.
const MAX_TEXT: usize = 1 << 20;

type Value<'i> = Spanned<DeValue<'i>>;

pub(super) fn parse(name: &str, text: &str) -> Result<Policy, PolicyErrors> {
    let mut reader = Reader::new(name, text);
    if text.len() > MAX_TEXT {
        reader.fault(
            Fault::Syntax,
            0..0,
            "the policy is longer than 1 MiB".into(),
            "here",
        );
        return Err(PolicyErrors::new(name, reader.errors));
    }
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in syntax {
        let span = error.span().unwrap_or(0..0);
        let message = format!("not TOML: {}", clean(error.message()));
        reader.fault(Fault::Syntax, span, message, "here");
    }
    if !reader.errors.is_empty() {
        // What recovery made of a broken text would only add errors that are not the author's.
        return Err(PolicyErrors::new(name, reader.errors));
    }
    let policy = reader.policy(name, text, &document);
    if reader.errors.is_empty() {
        reader.errors = check::sound(&policy, &reader.source);
    }
    if reader.errors.is_empty() {
        Ok(policy)
    } else {
        Err(PolicyErrors::new(name, reader.errors))
    }
}

struct Reader {
    source: Arc<NamedSource<String>>,
    errors: Vec<PolicyError>,
}

impl Reader {
    fn new(name: &str, text: &str) -> Self {
        Reader {
            source: Arc::new(NamedSource::new(name, text.to_owned())),
            errors: Vec::new(),
        }
    }

    fn fault(&mut self, fault: Fault, span: Range<usize>, message: String, label: &str) {
        let error = PolicyError::new(&self.source, fault, span, message, label);
        self.errors.push(error);
    }

    fn fault_hint(
        &mut self,
        fault: Fault,
        span: Range<usize>,
        message: String,
        label: &str,
        hint: impl Into<String>,
    ) {
        let error = PolicyError::new(&self.source, fault, span, message, label).hint(hint);
        self.errors.push(error);
    }

    fn wrong_type(&mut self, value: &Value<'_>, want: &str) {
        let got = value.get_ref().type_str();
        let message = format!("{want} is wanted here, not {}", with_article(got));
        self.fault(Fault::WrongType, value.span(), message, "of the wrong type");
    }

    fn unknown_keys(&mut self, table: &DeTable<'_>, place: &str, known: &[&str]) {
        for key in table.keys() {
            let word = key.get_ref().as_ref();
            if known.contains(&word) {
                continue;
            }
            let hint = match nearest(word, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("{place} has the keys {}", known.join(", ")),
            };
            let message = format!("{place} has no key `{}`", clean(word));
            self.fault_hint(Fault::UnknownKey, key.span(), message, "unknown", hint);
        }
    }

    fn missing(&mut self, span: Range<usize>, place: &str, key: &str, example: &str) {
        let message = format!("{place} needs `{key}`");
        self.fault_hint(
            Fault::MissingKey,
            span,
            message,
            "missing here",
            format!("for example: {example}"),
        );
    }

    fn policy(&mut self, name: &str, text: &str, document: &Spanned<DeTable<'_>>) -> Policy {
        let table = document.get_ref();
        self.unknown_keys(
            table,
            "a policy",
            &["version", "incoming", "allow", "service", "bans", "test"],
        );
        self.version(table);
        Policy {
            name: name.to_owned(),
            text: text.to_owned(),
            incoming: self.incoming(table),
            allows: self.array(table, "allow", Self::allow),
            services: self.array(table, "service", Self::service),
            bans: self.bans(table),
            tests: self.array(table, "test", Self::test),
        }
    }

    fn version(&mut self, table: &DeTable<'_>) {
        let Some(value) = table.get("version") else {
            self.missing(0..0, "a policy", "version", "version = 1");
            return;
        };
        if integer(value) != Some(POLICY_VERSION) {
            self.fault_hint(
                Fault::Version,
                value.span(),
                "this policy version is not known".into(),
                "unknown version",
                format!("this portcullis reads `version = {POLICY_VERSION}`"),
            );
        }
    }

    /// The entries of an array of tables; `read` gets each with its span.
    fn array<T>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        read: fn(&mut Self, &DeTable<'_>, Range<usize>) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = table.get(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            let message = format!("`{key}` is a list of tables");
            self.fault_hint(
                Fault::WrongType,
                value.span(),
                message,
                "of the wrong type",
                format!("write `[[{key}]]` with two brackets"),
            );
            return Vec::new();
        };
        let mut entries = Vec::new();
        for entry in array.iter() {
            match entry.get_ref().as_table() {
                Some(table) => entries.extend(read(self, table, entry.span())),
                None => self.wrong_type(entry, "a table"),
            }
        }
        entries
    }

    fn incoming(&mut self, table: &DeTable<'_>) -> Incoming {
        let mut incoming = Incoming {
            default: DefaultIncoming::Deny,
            no_ssh: false,
        };
        let Some(value) = table.get("incoming") else {
            return incoming;
        };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(value, "a table");
            return incoming;
        };
        self.unknown_keys(table, "[incoming]", &["default", "no_ssh"]);
        if let Some(value) = table.get("default")
            && let Some(word) = self.string(value)
        {
            match word.as_str() {
                "deny" => incoming.default = DefaultIncoming::Deny,
                "reject" => incoming.default = DefaultIncoming::Reject,
                "allow" => self.fault_hint(
                    Fault::BadValue,
                    value.span(),
                    "a policy lists what is open; it cannot open everything".into(),
                    "opens every port",
                    "keep `default = \"deny\"` and add an [[allow]] for each port that may be reached",
                ),
                word => self.choice(word, value.span(), &["deny", "reject"]),
            }
        }
        if let Some(value) = table.get("no_ssh") {
            incoming.no_ssh = self.boolean(value).unwrap_or(false);
        }
        incoming
    }

    fn allow(&mut self, table: &DeTable<'_>, span: Range<usize>) -> Option<Allow> {
        const PLACE: &str = "[[allow]]";
        self.unknown_keys(
            table,
            PLACE,
            &["port", "proto", "from", "rate_limit", "comment"],
        );
        let port = match table.get("port") {
            Some(value) => self.port_spec(value),
            None => {
                self.missing(span.clone(), PLACE, "port", "port = 443");
                None
            }
        };
        let proto = match table.get("proto") {
            Some(value) => self.proto(value),
            None => Some(Proto::Tcp),
        };
        let from = match table.get("from") {
            Some(value) => self.sources(value),
            None => {
                let example = "from = \"anywhere\", or from = [\"192.168.1.0/24\", \"vpn\"]";
                self.missing(span.clone(), PLACE, "from", example);
                Vec::new()
            }
        };
        let rate_limit = match table.get("rate_limit") {
            Some(value) => self.boolean(value).unwrap_or(false),
            None => false,
        };
        if let (true, Some(value), Some(Proto::Udp | Proto::Sctp)) =
            (rate_limit, table.get("rate_limit"), proto)
        {
            self.fault(
                Fault::BadValue,
                value.span(),
                "only TCP connections can be rate-limited".into(),
                "not for this protocol",
            );
        }
        let comment = match table.get("comment") {
            Some(value) => self.comment(value),
            None => None,
        };
        let (port, proto) = (port?, proto?);
        if from.is_empty() {
            return None;
        }
        Some(Allow {
            port,
            proto,
            from,
            rate_limit,
            comment,
            span,
        })
    }

    fn service(&mut self, table: &DeTable<'_>, span: Range<usize>) -> Option<ServiceRule> {
        const PLACE: &str = "[[service]]";
        self.unknown_keys(table, PLACE, &["kind", "reach"]);
        let kind = match table.get("kind") {
            Some(value) => self.service_kind(value),
            None => {
                self.missing(span.clone(), PLACE, "kind", "kind = \"ollama\"");
                None
            }
        };
        let reach = match table.get("reach") {
            Some(value) => match value.get_ref().as_str() {
                Some("loopback") => Some(Reach::Loopback),
                Some("gateway") => Some(Reach::Gateway),
                _ => {
                    let from = self.sources_or(value, &["loopback", "gateway"]);
                    (!from.is_empty()).then_some(Reach::From(from))
                }
            },
            None => {
                self.missing(span.clone(), PLACE, "reach", "reach = \"loopback\"");
                None
            }
        };
        Some(ServiceRule {
            kind: kind?,
            reach: reach?,
            span,
        })
    }

    fn service_kind(&mut self, value: &Value<'_>) -> Option<String> {
        let word = self.string(value)?;
        if crate::catalog::service(&word).is_some() {
            return Some(word);
        }
        let ids = crate::catalog::services().iter().map(|s| s.id.as_str());
        let hint = match nearest(&word, ids.clone()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known: {}", ids.collect::<Vec<_>>().join(", ")),
        };
        let message = format!("no service `{}` is known", clean(&word));
        self.fault_hint(
            Fault::UnknownService,
            value.span(),
            message,
            "unknown",
            hint,
        );
        None
    }

    fn bans(&mut self, table: &DeTable<'_>) -> Bans {
        let mut bans = Bans {
            ssh: Some(SshBans::default()),
            never: vec![Never::Admin],
        };
        let Some(value) = table.get("bans") else {
            return bans;
        };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(value, "a table");
            return bans;
        };
        self.unknown_keys(table, "[bans]", &["ssh", "never"]);
        if let Some(value) = table.get("ssh") {
            match value.get_ref() {
                DeValue::Boolean(false) => bans.ssh = None,
                DeValue::Boolean(true) => {}
                DeValue::Table(table) => bans.ssh = Some(self.ssh_bans(table)),
                _ => self.wrong_type(value, "a table of limits, or false,"),
            }
        }
        if let Some(value) = table.get("never") {
            bans.never = Vec::new();
            for item in self.items(value) {
                bans.never.extend(self.never(item));
            }
        }
        bans
    }

    fn ssh_bans(&mut self, table: &DeTable<'_>) -> SshBans {
        let mut ssh = SshBans::default();
        self.unknown_keys(table, "bans.ssh", &["max_retry", "find_time", "ban_time"]);
        if let Some(value) = table.get("max_retry") {
            match integer(value) {
                Some(count @ 1..=100) => ssh.max_retry = count as u32,
                Some(_) => self.fault(
                    Fault::BadValue,
                    value.span(),
                    "max_retry is a number of failures, 1 to 100".into(),
                    "out of range",
                ),
                None => self.wrong_type(value, "a number"),
            }
        }
        if let Some(value) = table.get("find_time") {
            ssh.find_time = self.duration(value).unwrap_or(ssh.find_time);
        }
        if let Some(value) = table.get("ban_time") {
            ssh.ban_time = self.duration(value).unwrap_or(ssh.ban_time);
        }
        ssh
    }

    fn never(&mut self, value: &Value<'_>) -> Option<Never> {
        if value.get_ref().as_str() == Some("admin") {
            return Some(Never::Admin);
        }
        let whole = "would exempt everybody from bans";
        match self.source(value, &["admin"])? {
            Source::Anywhere | Source::Zone(ZoneRef::Internet) => {
                self.fault(Fault::BadValue, value.span(), whole.into(), "everybody");
                None
            }
            Source::Net(net) if net.prefix_len() == 0 => {
                self.fault(Fault::BadValue, value.span(), whole.into(), "everybody");
                None
            }
            Source::Zone(zone) => Some(Never::Zone(zone)),
            Source::Net(net) => Some(Never::Nets(vec![net])),
            Source::Range(first, last) => Some(Never::Nets(subnets(first, last))),
        }
    }

    fn test(&mut self, table: &DeTable<'_>, span: Range<usize>) -> Option<PolicyTest> {
        const PLACE: &str = "[[test]]";
        self.unknown_keys(table, PLACE, &["from", "to", "expect"]);
        let from = match table.get("from") {
            Some(value) => self.source(value, &[]),
            None => {
                self.missing(span.clone(), PLACE, "from", "from = \"203.0.113.9\"");
                None
            }
        };
        let to = match table.get("to") {
            Some(value) => self.target(value),
            None => {
                self.missing(span.clone(), PLACE, "to", "to = \"tcp/11434\"");
                None
            }
        };
        let expect = match table.get("expect") {
            Some(value) => self.string(value).and_then(|word| match word.as_str() {
                "blocked" => Some(Expect::Blocked),
                "admitted" => Some(Expect::Admitted),
                word => {
                    let hint = match word {
                        "open" | "allow" | "allowed" | "accept" => "write \"admitted\"",
                        "closed" | "deny" | "denied" | "drop" | "block" => "write \"blocked\"",
                        _ => "write \"blocked\" or \"admitted\"",
                    };
                    let message = format!("a test cannot expect `{}`", clean(word));
                    self.fault_hint(Fault::BadValue, value.span(), message, "unknown", hint);
                    None
                }
            }),
            None => {
                self.missing(span.clone(), PLACE, "expect", "expect = \"blocked\"");
                None
            }
        };
        let (proto, port) = to?;
        Some(PolicyTest {
            from: from?,
            proto,
            port,
            expect: expect?,
            span,
        })
    }

    fn target(&mut self, value: &Value<'_>) -> Option<(Proto, PortSpec)> {
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

    fn proto(&mut self, value: &Value<'_>) -> Option<Proto> {
        let word = self.string(value)?;
        self.proto_word(&word, value.span())
    }

    fn proto_word(&mut self, word: &str, span: Range<usize>) -> Option<Proto> {
        match word {
            "tcp" => Some(Proto::Tcp),
            "udp" => Some(Proto::Udp),
            word => {
                self.choice(word, span, &["tcp", "udp"]);
                None
            }
        }
    }

    fn port_spec(&mut self, value: &Value<'_>) -> Option<PortSpec> {
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

    fn port_text(&mut self, text: &str, span: Range<usize>) -> Option<PortSpec> {
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

    fn port_number(&mut self, number: i64, span: Range<usize>) -> Option<Port> {
        let port = u16::try_from(number).ok().and_then(Port::new);
        if port.is_none() {
            self.bad_port(span, &number.to_string());
        }
        port
    }

    fn bad_port(&mut self, span: Range<usize>, what: &str) {
        self.fault_hint(
            Fault::BadPort,
            span,
            format!("{what} is not a port"),
            "not a port",
            "ports are 1 to 65535",
        );
    }

    /// A value or a list of values; an empty list is a fault.
    fn items<'v, 'i>(&mut self, value: &'v Value<'i>) -> Vec<&'v Value<'i>> {
        match value.get_ref() {
            DeValue::Array(array) => array.iter().collect(),
            _ => vec![value],
        }
    }

    fn sources(&mut self, value: &Value<'_>) -> Vec<Source> {
        self.sources_or(value, &[])
    }

    fn sources_or(&mut self, value: &Value<'_>, words: &[&str]) -> Vec<Source> {
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
    fn source(&mut self, value: &Value<'_>, words: &[&str]) -> Option<Source> {
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

    fn address_text(&mut self, text: &str, span: Range<usize>) -> Option<Source> {
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

    fn duration(&mut self, value: &Value<'_>) -> Option<Duration> {
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

    fn comment(&mut self, value: &Value<'_>) -> Option<String> {
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

    fn choice(&mut self, word: &str, span: Range<usize>, choices: &[&str]) {
        let hint = match nearest(word, choices.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("write \"{}\"", choices.join("\" or \"")),
        };
        let message = format!("`{}` is not one of the choices", clean(word));
        self.fault_hint(Fault::BadValue, span, message, "unknown", hint);
    }

    fn string(&mut self, value: &Value<'_>) -> Option<String> {
        match value.get_ref().as_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                self.wrong_type(value, "a text in quotes");
                None
            }
        }
    }

    fn boolean(&mut self, value: &Value<'_>) -> Option<bool> {
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
fn subnets(first: IpAddr, last: IpAddr) -> Vec<IpNet> {
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

fn integer(value: &Value<'_>) -> Option<i64> {
    let integer = value.get_ref().as_integer()?;
    i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
}

/// The known word that was probably meant.
fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    known
        .map(|k| (strsim::damerau_levenshtein(&word, &k.replace('-', "_")), k))
        .filter(|(distance, k)| *distance <= 1 + k.len() / 4)
        .min()
        .map(|(_, k)| k)
}

fn with_article(type_name: &str) -> String {
    match type_name {
        "integer" | "array" => format!("an {type_name}"),
        _ => format!("a {type_name}"),
    }
}
