//! What the operator wants: who may reach which port of this host. Nothing about mechanisms.
//!
//! [`Policy::parse`] reads the TOML text and reports every fault at once with its place. A value
//! of type [`Policy`] is sound by itself; [`Policy::check_host`] tests it against one host (would it
//! shut out somebody who is connected?).

mod check;
mod error;
mod init;
mod parse;
mod value;

pub use error::{Fault, PolicyError, PolicyErrors};
pub use value::{Port, PortSpec, Source, ZoneRef, duration_text};

use ipnet::IpNet;
use reach::Proto;
use std::ops::Range;
use std::time::Duration;

/// The version of the policy format that this program reads.
pub const POLICY_VERSION: i64 = 1;

/// The text of the built-in policy: the end state that the guide leads to.
pub const BUILTIN: &str = include_str!("builtin.toml");

/// A sound policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Where it was read from, for messages: a path, or `built-in policy`.
    pub name: String,
    /// Its text, for messages.
    pub text: String,
    /// What happens to everything that is not allowed.
    pub incoming: Incoming,
    /// What is allowed, in the order written.
    pub allows: Vec<Allow>,
    /// Services from the catalog, and how far each may be reached.
    pub services: Vec<ServiceRule>,
    /// Bans of those who fail to log in.
    pub bans: Bans,
    /// Assertions.
    pub tests: Vec<PolicyTest>,
}

/// `[incoming]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// What happens to the rest.
    pub default: DefaultIncoming,
    /// `no_ssh = true`: the operator states that SSH may be shut (there is a console).
    pub no_ssh: bool,
}

/// What happens to connections that nothing allows. There is no "allow": open ports are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultIncoming {
    /// Silence.
    Deny,
    /// Refused with an error.
    Reject,
}

impl DefaultIncoming {
    /// As UFW words it.
    pub fn word(self) -> &'static str {
        match self {
            DefaultIncoming::Deny => "deny",
            DefaultIncoming::Reject => "reject",
        }
    }
}

/// `[[allow]]`: a host port and who may reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// The host port or ports.
    pub port: PortSpec,
    /// Transport protocol; TCP unless said otherwise.
    pub proto: Proto,
    /// Who; never empty.
    pub from: Vec<Source>,
    /// Slow down those who connect too often: 6 or more attempts within 30 seconds are refused,
    /// as `ufw limit` counts.
    pub rate_limit: bool,
    /// The operator's remark, shown in `ufw status`.
    pub comment: Option<String>,
    /// Bytes of [`Policy::text`] that say it.
    pub span: Range<usize>,
}

/// `[[service]]`: how far a service of the catalog may be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRule {
    /// Catalog id: `ollama`.
    pub kind: String,
    /// How far.
    pub reach: Reach,
    /// Bytes of [`Policy::text`] that say it.
    pub span: Range<usize>,
}

/// How far a service may be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Programs on this machine only: bound to loopback, or published there.
    Loopback,
    /// Only through the HTTPS gateway; until there is one the same as loopback.
    Gateway,
    /// Also these sources; never empty.
    From(Vec<Source>),
}

/// `[bans]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bans {
    /// The sshd jail; `None`: `ssh = false`, no bans at all.
    pub ssh: Option<Limits>,
    /// The jail for those who are banned again and again; `None`: `recidive = false`.
    pub recidive: Option<Limits>,
    /// Jails for AI services and the proxy in front of them; none unless named.
    pub web: Vec<WebJail>,
    /// Bits of an IPv6 source that a ban takes in: 128, or 48 to 64 for the whole network of a host.
    pub ipv6_prefix: u8,
    /// Who is never banned.
    pub never: Vec<Never>,
}

/// When an address is banned, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Failures before a ban, 1 or more.
    pub max_retry: u32,
    /// The window in which they are counted.
    pub find_time: Duration,
    /// How long a ban lasts.
    pub ban_time: Duration,
}

impl Limits {
    const fn new(max_retry: u32, find_time: u64, ban_time: u64) -> Self {
        Limits {
            max_retry,
            find_time: Duration::from_secs(find_time),
            ban_time: Duration::from_secs(ban_time),
        }
    }

    /// Banned three times within a day: out for a week.
    pub const RECIDIVE: Limits = Limits::new(3, 86_400, 604_800);
}

impl Default for Limits {
    /// The guide's values: 3 failures in 10 minutes, banned for an hour.
    fn default() -> Self {
        Limits::new(3, 600, 3600)
    }
}

/// A jail that reads what a proxy or a service logs about its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebJail {
    /// What it looks for.
    pub kind: WebKind,
    /// When it bans.
    pub limits: Limits,
    /// The log file, or for [`WebKind::Uvicorn`] the systemd unit.
    pub source: String,
}

/// What a [`WebJail`] looks for. Ollama's own log is not among them: its client address can be forged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WebKind {
    /// 401 in nginx's access log: a wrong or missing key.
    Nginx401,
    /// 429 in nginx's access log: too many requests.
    Nginx429,
    /// Open WebUI's failed login, a 400, in the access log of the proxy before it.
    OpenWebui,
    /// 401 in what a service on uvicorn (vLLM and others) writes to the journal.
    Uvicorn,
}

impl WebKind {
    /// All of them.
    pub const ALL: [WebKind; 4] = [
        WebKind::Nginx401,
        WebKind::Nginx429,
        WebKind::OpenWebui,
        WebKind::Uvicorn,
    ];

    /// Its key in `[bans]`.
    pub fn key(self) -> &'static str {
        match self {
            WebKind::Nginx401 => "nginx_401",
            WebKind::Nginx429 => "nginx_429",
            WebKind::OpenWebui => "open_webui",
            WebKind::Uvicorn => "uvicorn",
        }
    }

    /// The name of its jail.
    pub fn jail(self) -> &'static str {
        match self {
            WebKind::Nginx401 => "nginx-401",
            WebKind::Nginx429 => "nginx-429",
            WebKind::OpenWebui => "open-webui",
            WebKind::Uvicorn => "uvicorn",
        }
    }

    /// Limits unless the policy has others: a client with an old key fails often at once.
    pub fn limits(self) -> Limits {
        match self {
            WebKind::Nginx401 | WebKind::Uvicorn => Limits::new(10, 600, 3600),
            WebKind::Nginx429 => Limits::new(30, 600, 3600),
            WebKind::OpenWebui => Limits::new(5, 600, 3600),
        }
    }

    /// The log that is read unless the policy names another; a unit has to be named.
    pub fn source(self) -> Option<&'static str> {
        (self != WebKind::Uvicorn).then_some("/var/log/nginx/access.log")
    }
}

impl Bans {
    /// The names of the jails that the policy wants, sshd first.
    pub fn jails(&self) -> Vec<&'static str> {
        if self.ssh.is_none() {
            return Vec::new();
        }
        let mut jails = vec!["sshd"];
        jails.extend(self.recidive.map(|_| "recidive"));
        jails.extend(self.web.iter().map(|web| web.kind.jail()));
        jails
    }
}

/// One entry of `bans.never`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Never {
    /// Whoever is connected by SSH when the policy is applied.
    Admin,
    /// These networks.
    Nets(Vec<IpNet>),
    /// The sources of a zone (never the Internet).
    Zone(ZoneRef),
}

/// `[[test]]`: an assertion, checked before apply and by `verify`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTest {
    /// Who knocks.
    pub from: Source,
    /// Protocol.
    pub proto: Proto,
    /// Where.
    pub port: PortSpec,
    /// What must happen.
    pub expect: Expect,
    /// Bytes of [`Policy::text`] that say it.
    pub span: Range<usize>,
}

/// What a [`PolicyTest`] expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// No connection.
    Blocked,
    /// A connection.
    Admitted,
}

impl Policy {
    /// Reads a policy; `name` is used in messages.
    ///
    /// # Errors
    /// Every fault of the text, each with its place and a hint.
    pub fn parse(name: &str, text: &str) -> Result<Policy, PolicyErrors> {
        parse::parse(name, text)
    }

    /// The built-in policy: SSH (rate-limited) and HTTPS from anywhere, everything else closed,
    /// Ollama on loopback, brute force on SSH banned.
    pub fn builtin() -> Policy {
        match Policy::parse("built-in policy", BUILTIN) {
            Ok(policy) => policy,
            // The text is a constant of this program and the test `builtin_is_sound` parses it.
            Err(_) => unreachable!("the built-in policy is sound"),
        }
    }

    /// The allows that concern a host port. `ssh_ports`: the ports that sshd listens on.
    pub fn allows_for<'a>(
        &'a self,
        proto: Proto,
        port: u16,
        ssh_ports: &'a [u16],
    ) -> impl Iterator<Item = &'a Allow> + 'a {
        self.allows
            .iter()
            .filter(move |a| a.proto == proto && a.port.contains(port, ssh_ports))
    }

    /// The rule for a service of the catalog.
    pub fn service(&self, kind: &str) -> Option<&ServiceRule> {
        self.services.iter().find(|s| s.kind == kind)
    }

    /// A commented policy text for this host, safe answers taken: SSH stays, HTTPS if somebody
    /// serves it, every recognised service on loopback, everything else that listens named in a
    /// comment, and a test for each port that must not be reached.
    pub fn init_text(host: &crate::host::Host) -> String {
        init::text(host)
    }

    /// Tests the policy against one host.
    ///
    /// # Errors
    /// Somebody who is connected over SSH now would not get in again.
    pub fn check_host(&self, host: &crate::host::Host) -> Result<(), PolicyErrors> {
        check::host(self, host)
    }

    /// The ports that `"ssh"` stands for on this host: those that sshd really listens on and those
    /// that the connected sessions use, never empty (22 when nothing is known).
    pub fn ssh_ports(host: &crate::host::Host) -> Vec<u16> {
        let mut ports: Vec<u16> = host
            .sshd
            .iter()
            .flat_map(|s| s.ports.iter().copied())
            .chain(host.sessions.iter().map(|s| s.local_port))
            .collect();
        ports.sort_unstable();
        ports.dedup();
        if ports.is_empty() {
            ports.push(22);
        }
        ports
    }
}
