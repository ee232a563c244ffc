//! Random policies on a real host: after an apply the second plan is empty, and a rollback leaves files
//! and rules as they were.
//!
//! `PORTCULLIS_POLICIES=N` tries N of them (a sample without it), from `PORTCULLIS_SEED` on. All:
//!
//! ```text
//! PORTCULLIS_POLICIES=500 cargo test -p portcullis --test live_policies -- --ignored --nocapture
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use lab::{Host, Output, World, address};
use std::fmt::Write as _;
use std::time::Duration;

const PORTCULLIS: &str = env!("CARGO_BIN_EXE_portcullis");
const POLICY: &str = "/etc/portcullis/policy.toml";

/// Numbers that look random and are the same for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
    fn octet(&mut self) -> u64 {
        self.below(256)
    }
    /// A source as policies write it.
    fn source(&mut self) -> String {
        match self.below(9) {
            0 => "internet".into(),
            1 => "lan".into(),
            2 => format!("10.{}.0.0/16", self.octet()),
            3 => format!("192.168.1.{}", self.octet()),
            4 => format!("198.51.100.{}/28", self.below(16) * 16),
            5 => format!("2001:db8:{:x}::/48", self.below(0xffff)),
            6 => format!("fd42:1::{:x}", self.below(0xffff) + 1),
            7 => format!(
                "192.0.2.{}-192.0.2.{}",
                self.below(100),
                100 + self.below(100)
            ),
            _ => format!("172.{}.0.0/14", 16 + self.below(4) * 4),
        }
    }
    fn sources(&mut self) -> String {
        match self.below(3) {
            0 => "\"anywhere\"".into(),
            1 => format!("{:?}", self.source()),
            _ => {
                let list: Vec<String> = (0..=self.below(3)).map(|_| self.source()).collect();
                format!("{list:?}")
            }
        }
    }
    fn policy(&mut self) -> String {
        let mut text = format!(
            "version = 1\n[incoming]\ndefault = \"{}\"\n[[allow]]\nport = \"ssh\"\nfrom = {}\nrate_limit = {}\n",
            self.one(&["deny", "deny", "reject"]),
            self.one(&[
                "\"anywhere\"",
                "\"anywhere\"",
                "[\"192.0.2.0/24\", \"lan\", \"2001:db8:2::/64\"]"
            ]),
            self.below(2) == 0
        );
        let mut ports = vec![
            "443",
            "80",
            "8080",
            "53",
            "\"6000-6003\"",
            "3000",
            "9100",
            "65535",
            "1",
        ];
        for _ in 0..self.below(5) {
            let port = ports.swap_remove(usize::try_from(self.below(ports.len() as u64)).unwrap());
            let udp = self.below(4) == 0;
            let _ = write!(
                text,
                "[[allow]]\nport = {port}\nproto = \"{}\"\nfrom = {}\nrate_limit = {}\n",
                if udp { "udp" } else { "tcp" },
                self.sources(),
                !udp && self.below(3) == 0
            );
        }
        match self.below(4) {
            0 => {}
            1 => text += "[[service]]\nkind = \"ollama\"\nreach = \"loopback\"\n",
            2 => text += "[[service]]\nkind = \"ollama\"\nreach = \"gateway\"\n",
            _ => {
                let _ = write!(
                    text,
                    "[[service]]\nkind = \"ollama\"\nreach = [{:?}]\n",
                    self.source()
                );
            }
        }
        // fail2ban's own start takes longer than all the rest: one in ten.
        if self.below(10) == 0 {
            let _ = write!(
                text,
                "[bans]\nssh = {{ max_retry = {}, find_time = \"{}m\", ban_time = \"{}h\" }}\n",
                1 + self.below(9),
                1 + self.below(30),
                1 + self.below(48)
            );
        } else {
            text += "[bans]\nssh = false\n";
        }
        text
    }
}

/// Starting states, by the commands that make them.
const STARTS: [&[&str]; 6] = [
    &[],
    &["ufw allow 22/tcp", "ufw --force enable"],
    &["ufw allow OpenSSH", "ufw allow 443/tcp", "ufw deny 25"],
    &[
        "ufw limit 22/tcp",
        "ufw allow from 10.0.0.0/8 to any port 8080 proto tcp",
        "ufw --force enable",
    ],
    &["ufw allow 22", "ufw --force enable", "ufw disable"],
    &[
        "iptables -N mine",
        "iptables -A INPUT -p tcp --dport 25 -j mine",
        "iptables -A mine -j DROP",
        "nft add table inet theirs",
        "ufw allow 22/tcp",
    ],
];

fn run(host: &Host, argv: &[&str]) -> Output {
    host.command(argv)
        .timeout(Duration::from_secs(300))
        .run()
        .unwrap()
}

/// Files of every mechanism with mode, owner and time, and all rules without counters.
fn state(host: &Host) -> String {
    let files = "cd /; f='etc/ufw etc/default/ufw etc/fail2ban etc/portcullis'; \
         find $f -type f -printf '%p %m %U:%G %T@\\n' | sort; find $f ! -type f -printf '%p %y %m %U:%G %l\\n' | sort; \
         find $f -type f -print0 | sort -z | xargs -0 sha256sum";
    let mut text = host.ok(&["sh", "-c", files]).unwrap();
    for tool in ["iptables-save", "ip6tables-save"] {
        for line in host.ok(&[tool]).unwrap().lines() {
            if !line.starts_with('#') {
                text.push_str(line.split(" [").next().unwrap());
                text.push('\n');
            }
        }
    }
    text + &host.ok(&["nft", "-s", "list", "tables"]).unwrap()
}

fn differences(one: &str, other: &str) -> String {
    let lost = one
        .lines()
        .filter(|line| !other.lines().any(|l| l == *line));
    let new = other
        .lines()
        .filter(|line| !one.lines().any(|l| l == *line));
    lost.map(|line| format!("-{line}\n"))
        .chain(new.map(|line| format!("+{line}\n")))
        .collect()
}

fn start(host: &Host, commands: &[&str]) {
    let clean = "ufw --force reset >/dev/null; rm -f /etc/ufw/*.20*; nft flush ruleset; rm -rf /var/lib/portcullis";
    host.ok(&["sh", "-c", clean]).unwrap();
    for command in commands {
        let argv: Vec<&str> = command.split(' ').collect();
        host.ok(&argv).unwrap();
    }
}

/// One policy: what is wrong with it, if anything.
fn one(world: &World, policy: &str) -> Result<(), String> {
    let host = &world.server;
    host.write(POLICY, policy).unwrap();
    let before = state(host);
    let said = |what: &str, output: &Output| {
        format!("{what} ended with {:?}: {}", output.code(), output.text())
    };
    let applied = run(
        host,
        &[PORTCULLIS, "--quiet", "apply", "--yes", "--no-wait"],
    );
    if !applied.success() {
        return Err(said("apply", &applied));
    }
    let open = world
        .operator
        .connect(address::SERVER, 22, Duration::from_secs(2))
        .unwrap();
    if !open {
        return Err("the operator does not get in".into());
    }
    let again = run(host, &[PORTCULLIS, "plan"]);
    if again.code() != Some(0) {
        return Err(said("the second plan", &again));
    }
    if applied.stdout.contains("Nothing to do") {
        return Ok(());
    }
    let back = run(host, &[PORTCULLIS, "rollback"]);
    if !back.success() {
        return Err(said("rollback", &back));
    }
    let after = state(host);
    if before != after {
        return Err(format!("not as before:\n{}", differences(&before, &after)));
    }
    Ok(())
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn random_policies_settle_at_once_and_are_undone_as_a_whole() {
    lab::require_root();
    let number =
        |name: &str, usual: u64| std::env::var(name).map_or(usual, |value| value.parse().unwrap());
    let (wanted, seed) = (
        number("PORTCULLIS_POLICIES", 8),
        number("PORTCULLIS_SEED", 1),
    );
    let world = World::new("policies").unwrap();
    let _sshd = world.server.sshd().unwrap();
    let _ollama = world
        .server
        .http_server("ollama", "0.0.0.0:11434", "Ollama is running")
        .unwrap();
    let _web = world
        .server
        .http_server("web-stand-in", "[::]:8080", "hello")
        .unwrap();
    let mut wrong = vec![];
    let mut now = usize::MAX;
    for index in 0..wanted {
        let mut dice = Dice(seed + index);
        // A start serves for a few policies in a row: each leaves it as it was.
        let wanted_start = usize::try_from(index / 2).unwrap() % STARTS.len();
        if now != wanted_start || !wrong.is_empty() {
            start(&world.server, STARTS[wanted_start]);
            now = wanted_start;
        }
        let policy = dice.policy();
        if let Err(why) = one(&world, &policy) {
            eprintln!(
                "seed {} on {:?}:\n{policy}\n{why}",
                seed + index,
                STARTS[now]
            );
            wrong.push(seed + index);
        }
        if index % 20 == 19 {
            eprintln!("{} policies", index + 1);
        }
    }
    println!(
        "{wanted} policies from seed {seed} on, {} wrong",
        wrong.len()
    );
    assert!(wrong.is_empty(), "seeds {wrong:?}");
}
