//! The command line, as clap sees it.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Know who can really reach this server, close the rest without locking yourself out, prove it.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 clean · 1 findings, drift or a failed verify · 2 usage or \
unreadable input\n3 changes pending (plan) · 4 rolled back · 5 no sure answer"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
    /// Print results only, no advice
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Where files that add to the catalog of services are kept
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/etc/portcullis/catalog.d",
        hide = true
    )]
    pub catalog_dir: PathBuf,
    /// Where transactions are kept
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/var/lib/portcullis",
        hide = true
    )]
    pub state_dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Who can reach which port of this machine, and what is wrong (the default)
    Audit(Audit),
    /// The way of a packet to one port, rule by rule
    Why(Why),
    /// Write a policy from what runs here
    Init(Init),
    /// Show what `apply` would change; exits 3 when something would
    Plan(Plan),
    /// Make this machine obey the policy; rolls back unless confirmed
    Apply(Apply),
    /// Keep the changes of the last apply, said over a new connection
    Confirm(Confirm),
    /// Undo the last apply, or the one named
    Rollback(Rollback),
    /// List what was applied and undone
    History(History),
    /// Undo everything that was ever applied, and forget it
    Remove(Remove),
    /// Knock from outside and compare with the policy
    Verify(Verify),
    /// Who is banned: why, by which jail, since when, until when
    Bans(Bans),
    /// Ban an address from everything, now and after a reboot
    Ban(Ban),
    /// Let an address in again, whoever banned it
    Unban(Unban),
    /// Knock on the ports of a machine of yours
    Scan(Scan),
    /// What portcullis knows about a service, or about all, with sources and dates
    Catalog(Catalog),
    /// Print the facts about this machine as JSON
    Snapshot(Snapshot),
    /// Ask the engine about rule dumps: which sources get in
    Reach(Reach),
    /// The whole story on throw-away hosts; nothing on this machine is touched
    Lab(Lab),
}

#[derive(Debug, Clone, Default, Args)]
pub struct PolicySource {
    /// The policy; without it /etc/portcullis/policy.toml, else the built-in one
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Args)]
pub struct FactsSource {
    /// Work from this snapshot instead of this machine
    #[arg(long, value_name = "FILE")]
    pub snapshot: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Args)]
pub struct Audit {
    #[command(flatten)]
    pub policy: PolicySource,
    #[command(flatten)]
    pub facts: FactsSource,
    #[command(flatten)]
    pub probe: Probe,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Exit 1 from this severity on
    #[arg(long, value_name = "LEVEL", default_value = "medium")]
    pub fail_on: FailOn,
}

#[derive(Debug, Clone, Default, Args)]
pub struct Probe {
    /// Do not ask local ports what answers there (GET only, over loopback)
    #[arg(long)]
    pub no_probe: bool,
}

#[derive(Debug, Clone, Default, Args)]
pub struct Snapshot {
    #[command(flatten)]
    pub probe: Probe,
}

#[derive(Debug, Clone, Default, Args)]
pub struct Catalog {
    /// One service: ollama, vllm, …
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    Info,
    Low,
    #[default]
    Medium,
    High,
    Critical,
    Never,
}

#[derive(Debug, Args)]
pub struct Why {
    /// Port as a client writes it: 11434 or 53/udp
    #[arg(value_name = "PORT[/PROTO]")]
    pub port: String,
    /// Only for this source address
    #[arg(long, value_name = "ADDR")]
    pub from: Option<IpAddr>,
    /// Only to this address of the machine
    #[arg(long, value_name = "ADDR")]
    pub to: Option<IpAddr>,
    /// Only for packets arriving on this interface
    #[arg(long = "in", value_name = "IFACE")]
    pub ingress: Option<String>,
    #[command(flatten)]
    pub facts: FactsSource,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Init {
    /// Take the safe answers, ask nothing
    #[arg(long)]
    pub yes: bool,
    /// Where to write it; `-` prints it
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/portcullis/policy.toml"
    )]
    pub output: PathBuf,
    /// Replace an existing policy
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    pub policy: PolicySource,
    #[command(flatten)]
    pub facts: FactsSource,
    /// Also delete UFW rules that the policy does not mention
    #[arg(long)]
    pub prune: bool,
    /// Also change compose files, so that they publish on loopback what the policy does not allow
    #[arg(long)]
    pub edit_compose: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Apply {
    #[command(flatten)]
    pub policy: PolicySource,
    /// Ask nothing
    #[arg(long)]
    pub yes: bool,
    /// Roll back unless confirmed within this time
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    pub confirm_within: Duration,
    /// When it is kept, knock from there and compare, as verify does: ssh:USER@HOST
    #[arg(long, value_name = "VANTAGE")]
    pub verify_from: Vec<String>,
    /// Keep the changes without a confirmation: only with a console at hand
    #[arg(long)]
    pub i_have_a_console: bool,
    /// Do not wait: leave the countdown to the watchdog and return
    #[arg(long)]
    pub no_wait: bool,
    /// Also delete UFW rules that the policy does not mention
    #[arg(long)]
    pub prune: bool,
    /// Also change compose files, so that they publish on loopback what the policy does not allow
    #[arg(long)]
    pub edit_compose: bool,
}

#[derive(Debug, Args)]
pub struct Confirm {
    /// Confirm although it cannot be seen that you came in anew: only at a console
    #[arg(long)]
    pub i_have_a_console: bool,
}

#[derive(Debug, Args)]
pub struct Rollback {
    /// Which transaction (see history); the last one without it
    pub id: Option<u32>,
    /// Also remove the packages that it installed
    #[arg(long)]
    pub purge: bool,
    /// Overwrite files that somebody changed since (copies are kept)
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct Remove {
    /// Ask nothing
    #[arg(long)]
    pub yes: bool,
    /// Also remove the packages that were installed
    #[arg(long)]
    pub purge: bool,
    /// Overwrite files that somebody changed since (copies are kept)
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct History {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Default, Args)]
pub struct Verify {
    #[command(flatten)]
    pub policy: PolicySource,
    #[command(flatten)]
    pub facts: FactsSource,
    /// Knock from there: ssh:USER@HOST; several at once
    #[arg(long, value_name = "VANTAGE")]
    pub from: Vec<String>,
    /// Use a scan made elsewhere (`portcullis scan --json`)
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,
    /// Knock on this address instead of all of this machine's
    #[arg(long, value_name = "ADDR")]
    pub address: Vec<IpAddr>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Also write a JUnit report, for a CI system
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Bans {
    #[command(flatten)]
    pub policy: PolicySource,
    #[command(flatten)]
    pub facts: FactsSource,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Ban {
    #[command(flatten)]
    pub policy: PolicySource,
    /// Who
    #[arg(required = true, value_name = "ADDR")]
    pub addresses: Vec<IpAddr>,
    /// For how long; without it until `unban`
    #[arg(long = "for", value_name = "TIME", value_parser = long_duration)]
    pub lasts: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct Unban {
    #[command(flatten)]
    pub policy: PolicySource,
    /// Who
    #[arg(required_unless_present = "me", value_name = "ADDR")]
    pub addresses: Vec<IpAddr>,
    /// The banned addresses from which somebody is logged in, or did log in within 30 days
    #[arg(long, conflicts_with = "addresses")]
    pub me: bool,
}

#[derive(Debug, Args)]
pub struct Scan {
    /// Names, addresses or networks (192.0.2.0/28)
    #[arg(required = true, value_name = "TARGET")]
    pub targets: Vec<String>,
    /// More than 256 addresses, 4096 at the most: all of them are yours to knock on
    #[arg(long)]
    pub i_own_these: bool,
    /// Ports: 22,80-90 or - for all
    #[arg(
        short,
        long,
        value_name = "PORTS",
        default_value = "-",
        allow_hyphen_values = true
    )]
    pub ports: String,
    /// Knock on UDP ports too: these, or without a list those that servers usually have
    #[arg(
        long,
        value_name = "PORTS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = scan::udp::USUAL
    )]
    pub udp: Option<String>,
    /// Ask what stands behind the open TCP ports: a few harmless requests to each
    #[arg(long)]
    pub services: bool,
    /// Packets per second at the most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub rate: Option<u32>,
    /// Use connect() even where packets could be used
    #[arg(long)]
    pub connect: bool,
    /// With connect(): how long a silent port is waited for, each time
    #[arg(long, value_name = "TIME", default_value = "700ms", value_parser = duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print XML as nmap does
    #[arg(long, conflicts_with = "json")]
    pub xml: bool,
}

#[derive(Debug, Args)]
pub struct Reach {
    /// Output of iptables-save
    #[arg(long, value_name = "FILE")]
    pub iptables_save: Option<PathBuf>,
    /// Output of ip6tables-save
    #[arg(long, value_name = "FILE")]
    pub ip6tables_save: Option<PathBuf>,
    /// Output of nft list ruleset, with or without -j
    #[arg(long, value_name = "FILE")]
    pub nft: Option<PathBuf>,
    /// Output of ipset save
    #[arg(long, value_name = "FILE")]
    pub ipset: Option<PathBuf>,
    /// The rules of a snapshot
    #[arg(long, value_name = "FILE")]
    pub snapshot: Option<PathBuf>,
    /// Which hook
    #[arg(long)]
    pub hook: HookName,
    /// Destination port
    #[arg(long, value_name = "PORT")]
    pub dport: u16,
    /// Protocol
    #[arg(long, default_value = "tcp")]
    pub proto: ProtoName,
    /// Destination address
    #[arg(long, value_name = "ADDR")]
    pub dst: Option<IpAddr>,
    /// Incoming interface
    #[arg(long = "in", value_name = "IFACE")]
    pub ingress: Option<String>,
    /// Outgoing interface
    #[arg(long = "out", value_name = "IFACE")]
    pub egress: Option<String>,
    /// Source port
    #[arg(long, value_name = "PORT")]
    pub sport: Option<u16>,
    /// Conntrack state
    #[arg(long, default_value = "new")]
    pub state: StateName,
    /// Address family when no --dst says it; default: what the files are about
    #[arg(long, value_parser = clap::value_parser!(u8).range(4..=6))]
    pub family: Option<u8>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HookName {
    Input,
    Forward,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProtoName {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateName {
    New,
    Established,
    Related,
    Untracked,
    Invalid,
}

#[derive(Debug, Args)]
pub struct Lab {
    /// Keep the hosts until Enter is pressed, to look around
    #[arg(long)]
    pub keep: bool,
}

/// Reads `90s`, `2m`, `1h`, `7d`, `4w`: how long a ban lasts.
fn long_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write 90s, 2m, 1h, 7d or 4w");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    match number.checked_mul(seconds) {
        Some(total @ 1..=31_536_000) => Ok(Duration::from_secs(total)),
        _ => Err(format!(
            "{text:?} is out of range: 1s to 52w; without --for it has no end"
        )),
    }
}

/// Reads `700ms`, `90s`, `2m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write 700ms, 90s, 2m or 1h");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let total = number.checked_mul(millis).ok_or_else(wrong)?;
    if total == 0 || total > 24 * 3_600_000 {
        return Err(format!(
            "{text:?} is out of range: more than nothing, at most 24h"
        ));
    }
    Ok(Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn how_long_a_ban_lasts() {
        assert_eq!(long_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(long_duration("4w"), Ok(Duration::from_secs(2_419_200)));
        for wrong in [
            "",
            "w",
            "1",
            "0s",
            "-1h",
            "99w",
            "1é",
            "é",
            "99999999999999999999d",
        ] {
            assert!(long_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("700ms"), Ok(Duration::from_millis(700)));
        for wrong in [
            "",
            "m",
            "2",
            "2 m",
            "-1s",
            "0s",
            "25h",
            "99999999999999999999h",
            "2d",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
