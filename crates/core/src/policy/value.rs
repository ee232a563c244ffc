//! The values of a policy, as types that cannot hold a wrong one.

use crate::finding::Zone;
use ipnet::IpNet;
use reach::AddrSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

/// A port, 1…65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU16);

impl Port {
    /// A port of this number; `None` for 0.
    pub fn new(number: u16) -> Option<Port> {
        NonZeroU16::new(number).map(Port)
    }
    /// Its number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Host ports that an allow or a test is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortSpec {
    /// The ports that sshd really listens on.
    Ssh,
    /// One port.
    One(Port),
    /// First to last, both included, `first < last`.
    Range(Port, Port),
}

impl PortSpec {
    /// True when it includes `port`; `ssh_ports` is what "ssh" stands for.
    pub fn contains(&self, port: u16, ssh_ports: &[u16]) -> bool {
        match self {
            PortSpec::Ssh => ssh_ports.contains(&port),
            PortSpec::One(one) => one.get() == port,
            PortSpec::Range(first, last) => (first.get()..=last.get()).contains(&port),
        }
    }
    /// Its ports in ascending order; `ssh_ports` is what "ssh" stands for.
    pub fn ports(&self, ssh_ports: &[u16]) -> Vec<u16> {
        match self {
            PortSpec::Ssh => ssh_ports.to_vec(),
            PortSpec::One(one) => vec![one.get()],
            PortSpec::Range(first, last) => (first.get()..=last.get()).collect(),
        }
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortSpec::Ssh => f.write_str("ssh"),
            PortSpec::One(port) => port.fmt(f),
            PortSpec::Range(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// A zone as a policy names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ZoneRef {
    /// `internet`.
    Internet,
    /// `lan`: every on-link network; `lan:IFACE`: those of one interface.
    Lan(Option<String>),
    /// `vpn`: every VPN interface; `vpn:IFACE`: one.
    Vpn(Option<String>),
    /// `containers`: every container network; `containers:BRIDGE`: one.
    Containers(Option<String>),
}

impl ZoneRef {
    /// True when this zone (as [`crate::zones::zones`] makes them) is meant.
    pub fn matches(&self, zone: &Zone) -> bool {
        let kind = zone.id.split(':').next().unwrap_or("");
        let (want, only) = match self {
            ZoneRef::Internet => ("internet", &None),
            ZoneRef::Lan(only) => ("lan", only),
            ZoneRef::Vpn(only) => ("vpn", only),
            ZoneRef::Containers(only) => ("containers", only),
        };
        let interface = only
            .as_ref()
            .is_none_or(|name| zone.interfaces.contains(name));
        kind == want && interface
    }
}

impl fmt::Display for ZoneRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, only) = match self {
            ZoneRef::Internet => ("internet", &None),
            ZoneRef::Lan(only) => ("lan", only),
            ZoneRef::Vpn(only) => ("vpn", only),
            ZoneRef::Containers(only) => ("containers", only),
        };
        match only {
            Some(interface) => write!(f, "{word}:{interface}"),
            None => f.write_str(word),
        }
    }
}

/// Who may come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Everybody, of every zone and both families.
    Anywhere,
    /// Whoever arrives from this zone.
    Zone(ZoneRef),
    /// A network or a single address; no host bits set.
    Net(IpNet),
    /// First to last address, one family, `first <= last`.
    Range(IpAddr, IpAddr),
}

impl Source {
    /// The addresses of a [`Source::Net`] or [`Source::Range`]; everything for
    /// [`Source::Anywhere`]; `None` for a zone, which only a host can resolve.
    pub fn addresses(&self) -> Option<AddrSet> {
        match self {
            Source::Anywhere => Some(AddrSet::all_v4().union(&AddrSet::all_v6())),
            Source::Zone(_) => None,
            Source::Net(net) => Some((*net).into()),
            Source::Range(first, last) => Some(AddrSet::from_range(*first, *last)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Anywhere => f.write_str("anywhere"),
            Source::Zone(zone) => zone.fmt(f),
            Source::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Source::Net(net) => net.fmt(f),
            Source::Range(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// A duration as the policy writes it, in its largest whole unit: `90s`, `10m`, `1h`, `7d`.
pub fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    for (unit, size) in [("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60)] {
        if seconds >= size && seconds.is_multiple_of(size) {
            return format!("{}{unit}", seconds / size);
        }
    }
    format!("{seconds}s")
}

/// Reads a duration: a whole number and a unit, `s`, `m`, `h`, `d` or `w`; one second to a year.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let size: u64 = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds = digits.parse::<u64>().ok()?.checked_mul(size)?;
    (1..=366 * 86_400)
        .contains(&seconds)
        .then(|| Duration::from_secs(seconds))
}
