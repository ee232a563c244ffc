//! From TOML to [`Policy`]: every fault is noted with its place, and reading goes on.

use super::error::{Fault, PolicyError, PolicyErrors};
use super::*;
use crate::text::clean;
use miette::NamedSource;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

mod values;

use values::{integer, nearest, subnets, with_article};

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
            ssh: Some(Limits::default()),
            recidive: Some(Limits::RECIDIVE),
            web: Vec::new(),
            ipv6_prefix: 128,
            never: vec![Never::Admin],
        };
        let Some(value) = table.get("bans") else {
            return bans;
        };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(value, "a table");
            return bans;
        };
        let mut keys = vec!["ssh", "recidive", "ipv6_prefix", "never"];
        keys.extend(WebKind::ALL.map(WebKind::key));
        self.unknown_keys(table, "[bans]", &keys);
        bans.ssh = self.jail(table, "ssh", Limits::default(), true);
        bans.recidive = self.jail(table, "recidive", Limits::RECIDIVE, true);
        for kind in WebKind::ALL {
            let Some(limits) = self.jail(table, kind.key(), kind.limits(), false) else {
                continue;
            };
            if let Some(source) = self.jail_source(table, kind) {
                bans.web.push(WebJail {
                    kind,
                    limits,
                    source,
                });
            }
        }
        if let Some(value) = table.get("ipv6_prefix") {
            match integer(value) {
                Some(bits @ (48..=64 | 128)) => bans.ipv6_prefix = bits as u8,
                Some(_) => self.fault_hint(
                    Fault::BadValue,
                    value.span(),
                    "ipv6_prefix is 128 (one address) or 48 to 64 (its network)".into(),
                    "out of range",
                    "64 bans the network that one host usually has to itself",
                ),
                None => self.wrong_type(value, "a number"),
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

    /// The limits of one jail: `true`, `false` or a table; `unset` says whether it is there when not named.
    fn jail(
        &mut self,
        table: &DeTable<'_>,
        key: &'static str,
        usual: Limits,
        unset: bool,
    ) -> Option<Limits> {
        let Some(value) = table.get(key) else {
            return unset.then_some(usual);
        };
        match value.get_ref() {
            DeValue::Boolean(on) => on.then_some(usual),
            DeValue::Table(table) => Some(self.limits(table, key, usual)),
            _ => {
                self.wrong_type(value, "a table of limits, or false,");
                None
            }
        }
    }

    fn limits(&mut self, table: &DeTable<'_>, key: &'static str, usual: Limits) -> Limits {
        let mut limits = usual;
        let mut keys = vec!["max_retry", "find_time", "ban_time"];
        match key {
            "ssh" | "recidive" => {}
            "uvicorn" => keys.push("unit"),
            _ => keys.push("log"),
        }
        let place = match key {
            "ssh" => "bans.ssh",
            "recidive" => "bans.recidive",
            "nginx_401" => "bans.nginx_401",
            "nginx_429" => "bans.nginx_429",
            "open_webui" => "bans.open_webui",
            _ => "bans.uvicorn",
        };
        self.unknown_keys(table, place, &keys);
        if let Some(value) = table.get("max_retry") {
            match integer(value) {
                Some(count @ 1..=1000) => limits.max_retry = count as u32,
                Some(_) => self.fault(
                    Fault::BadValue,
                    value.span(),
                    "max_retry is a number of failures, 1 to 1000".into(),
                    "out of range",
                ),
                None => self.wrong_type(value, "a number"),
            }
        }
        if let Some(value) = table.get("find_time") {
            limits.find_time = self.duration(value).unwrap_or(limits.find_time);
        }
        if let Some(value) = table.get("ban_time") {
            limits.ban_time = self.duration(value).unwrap_or(limits.ban_time);
        }
        limits
    }

    /// The log file or the unit that a jail reads. It gets into fail2ban's configuration, so only plain names do.
    fn jail_source(&mut self, table: &DeTable<'_>, kind: WebKind) -> Option<String> {
        let value = table.get(kind.key())?;
        let given = value.get_ref().as_table();
        let key = if kind == WebKind::Uvicorn {
            "unit"
        } else {
            "log"
        };
        let Some(named) = given.and_then(|table| table.get(key)) else {
            if kind.source().is_none() {
                self.missing(
                    value.span(),
                    "bans.uvicorn",
                    "unit",
                    "unit = \"vllm.service\"",
                );
            }
            return kind.source().map(str::to_owned);
        };
        let text = self.string(named)?;
        let plain = |more: &str| {
            text.len() < 200
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let good = if kind == WebKind::Uvicorn {
            text.ends_with(".service") && plain("-_.@:") && !text.starts_with(['-', '.'])
        } else {
            text.starts_with("/var/log/nginx/") && plain("-_./") && !text.contains("..")
        };
        if good {
            return Some(text);
        }
        let (what, hint) = if kind == WebKind::Uvicorn {
            (
                "a systemd service is wanted here",
                "unit = \"vllm.service\"",
            )
        } else {
            (
                "a log file of nginx is wanted here",
                "log = \"/var/log/nginx/access.log\"",
            )
        };
        self.fault_hint(Fault::BadValue, named.span(), what.into(), "not one", hint);
        None
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
}
