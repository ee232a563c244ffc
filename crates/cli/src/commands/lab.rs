//! `portcullis lab`: the whole story, told by real programs on a Debian machine made for it.

use crate::args::{Global, Lab};
use crate::commands::{print, remark};
use crate::error::{CliError, Exit};
use crate::render::style::{BAD, DIM, GOOD, HEAD, paint};
use lab::{Machine, Output, Release, address};
use scan::{PortSet, PortState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Where the machine finds this program.
const INSIDE: &str = "/usr/local/bin/portcullis";
/// The line of the folk remedy, as the guides have it.
const FOLK_FIX: &str = "-A INPUT -p tcp --dport 11434 -j DROP";
const SOON: Duration = Duration::from_secs(2);

/// Tells the story; exits 1 when a step did not end as it should.
pub fn run(global: &Global, args: &Lab) -> Result<Exit, CliError> {
    lab::need_root().map_err(|error| {
        CliError::unsure("the lab makes whole machines, and that needs root")
            .because(&error)
            .hint("run it with sudo; nothing on this machine is touched")
    })?;
    lab::end_on_signals().map_err(lab_failed)?;
    let begun = Instant::now();
    say(&paint(HEAD, "A server for AI, made for this story."))?;
    told(
        "A Debian 12 with systemd, Docker, sshd and fail2ban boots in a namespace, with a \
         stranger and its operator on an Internet of their own, and a neighbour on its LAN. The \
         first time it is built, which takes some minutes.",
    )?;
    let machine = Machine::of(Release::Bookworm)
        .with_docker()
        .boot("story")
        .map_err(lab_failed)?;
    let mut story = Story {
        machine: &machine,
        step: 0,
        wrong: Vec::new(),
    };
    story.tell().map_err(lab_failed)?;
    let wrong = story.wrong;
    if args.keep {
        remark("The hosts stay until you press Enter.");
        let mut line = String::new();
        // Without a terminal there is nobody to wait for.
        let _ = std::io::stdin().read_line(&mut line);
    }
    drop(machine);
    if wrong.is_empty() {
        say(&format!(
            "\n{}",
            paint(
                GOOD,
                format!(
                    "As promised, in {} s. The hosts are gone.",
                    begun.elapsed().as_secs()
                )
            )
        ))?;
        if !global.quiet {
            say("Your own machine: portcullis")?;
        }
        return Ok(Exit::Clean);
    }
    for what in &wrong {
        say(&paint(BAD, format!("Not as promised: {what}")))?;
    }
    Ok(Exit::Findings)
}

fn lab_failed(error: lab::Error) -> CliError {
    CliError::unsure("the lab could not go on")
        .because(&error)
        .hint("nothing on this machine was touched; run it again, or report this")
}

fn say(text: &str) -> Result<(), CliError> {
    print(&format!("{text}\n"))
}

fn told(text: &str) -> Result<(), CliError> {
    for line in crate::render::style::wrap(text, 78) {
        say(&paint(DIM, line))?;
    }
    Ok(())
}

struct Story<'a> {
    machine: &'a Machine,
    step: u32,
    wrong: Vec<String>,
}

type Told = Result<(), lab::Error>;

impl Story<'_> {
    fn tell(&mut self) -> Told {
        self.the_server_as_guides_leave_it()?;
        self.audit_says_why()?;
        self.the_folk_fix_does_nothing()?;
        self.plan_and_apply()?;
        self.proof_from_outside()?;
        self.brute_force()?;
        self.again()
    }

    fn the_server_as_guides_leave_it(&mut self) -> Told {
        self.head("A server as many guides leave it");
        let machine = self.machine;
        let exe = std::env::current_exe().map_err(|source| lab::Error::Io {
            what: "cannot find this program's own file".into(),
            source,
        })?;
        machine.copy_in(&exe, INSIDE)?;
        machine.ok(&["systemctl", "enable", "--now", "ray", "web"])?;
        machine.import_web_image("ollama-stand-in:1", "Ollama is running")?;
        for command in [
            "docker run -d --name ollama -p 11434:80 ollama-stand-in:1",
            "ufw allow ssh",
            "ufw allow 443/tcp",
            "ufw --force enable",
        ] {
            self.inside(command)?;
        }
        self.line("(the container is a stand-in that says what Ollama says)");
        machine.operator_waits(11434)?;
        let open = self.stranger_scans()?;
        self.expect(
            "the stranger reaches 11434 although UFW is on",
            open.contains(&11434),
        );
        Ok(())
    }

    fn audit_says_why(&mut self) -> Told {
        self.head("portcullis says what is open, and why");
        let output = self.inside("portcullis --color never")?;
        self.expect(
            "the audit names 11434",
            output.stdout.contains("11434") && output.code() == Some(1),
        );
        Ok(())
    }

    fn the_folk_fix_does_nothing(&mut self) -> Told {
        self.head("The folk fix: a DROP in UFW's after.rules");
        let rules = self.machine.read_text("/etc/ufw/after.rules")?;
        let mended = rules.replacen("\nCOMMIT", &format!("\n{FOLK_FIX}\nCOMMIT"), 1);
        self.machine.write("/etc/ufw/after.rules", mended)?;
        self.line(&format!("after.rules += {FOLK_FIX}"));
        self.inside("ufw reload")?;
        let open = self.stranger_reaches(11434)?;
        self.expect(
            "11434 is still open: that rule never sees a published port",
            open,
        );
        // What it leaves in the kernel, ufw does not take away again.
        self.machine.write("/etc/ufw/after.rules", rules)?;
        self.inside("iptables -D INPUT -p tcp --dport 11434 -j DROP")?;
        Ok(())
    }

    fn plan_and_apply(&mut self) -> Told {
        self.head("The plan, then apply over the operator's SSH session");
        let plan = self.inside("portcullis plan --color never")?;
        self.expect("changes are pending (exit 3)", plan.code() == Some(3));
        self.operator("portcullis apply --yes --no-wait --color never")?;
        self.line("…and over a new connection, because only that proves the way in:");
        let confirmed = self.operator("portcullis confirm --color never")?;
        self.expect("the operator confirmed", confirmed.success());
        Ok(())
    }

    fn proof_from_outside(&mut self) -> Told {
        self.head("Proof from outside: all 65,535 ports, IPv4 and IPv6");
        let open = self.stranger_scans()?;
        self.expect("only 22 and 443 answer", open == [22, 443]);
        let local = self
            .machine
            .run(&["curl", "-s", "-m", "5", "http://127.0.0.1:11434/"])?;
        self.expect(
            "on the server itself the container still answers",
            local.stdout.contains("Ollama is running"),
        );
        Ok(())
    }

    fn brute_force(&mut self) -> Told {
        self.head("A neighbour on the LAN guesses passwords");
        let neighbour = &self.machine.around.neighbour;
        for guess in ["123456", "letmein", "ollama"] {
            let lucky = neighbour.ssh_password(address::SERVER_LAN, "root", guess)?;
            self.line(&format!(
                "neighbour: password {guess}: {}",
                if lucky { "IN" } else { "denied" }
            ));
        }
        let begun = Instant::now();
        let mut banned = false;
        while !banned && begun.elapsed() < Duration::from_secs(15) {
            banned = !neighbour.connect(address::SERVER_LAN, 22, Duration::from_millis(500))?;
        }
        self.expect("the neighbour is banned", banned);
        let operator = self.operator("hostname")?;
        self.expect("the operator is not", operator.success());
        Ok(())
    }

    fn again(&mut self) -> Told {
        self.head("Apply again");
        let again = self.operator("portcullis apply --yes --color never")?;
        self.expect(
            "nothing to do",
            again.success() && again.stdout.contains("Nothing to do"),
        );
        Ok(())
    }

    // ---- what happens, and how it is shown ----

    fn head(&mut self, title: &str) {
        self.step += 1;
        self.line("");
        self.line(&paint(HEAD, format!("{}. {title}", self.step)));
    }

    /// One line; a reader that went away must not stop the clean-up.
    fn line(&self, text: &str) {
        let _ = say(&format!("   {text}"));
    }

    fn show(&self, output: &Output) {
        let text = format!("{}{}", output.stdout, output.stderr);
        for line in text.lines() {
            self.line(&format!("  {}", portcullis_core::text::clean(line)));
        }
    }

    fn expect(&mut self, what: &str, holds: bool) {
        let mark = if holds {
            paint(GOOD, "✓")
        } else {
            paint(BAD, "✗")
        };
        self.line(&format!("{mark} {what}"));
        if !holds {
            self.wrong.push(what.to_owned());
        }
    }

    fn inside(&self, command: &str) -> Result<Output, lab::Error> {
        self.line(&paint(DIM, format!("server# {command}")));
        let argv: Vec<&str> = command.split(' ').collect();
        let output = self
            .machine
            .command(&argv)?
            .timeout(Duration::from_secs(120))
            .run()?;
        if argv[0] == "portcullis" || !output.success() {
            self.show(&output);
        }
        Ok(output)
    }

    fn operator(&self, command: &str) -> Result<Output, lab::Error> {
        self.line(&paint(DIM, format!("operator$ ssh server {command}")));
        let argv: Vec<&str> = command.split(' ').collect();
        let output =
            self.machine
                .around
                .operator
                .ssh(address::SERVER, self.machine.key(), &argv)?;
        self.show(&output);
        Ok(output)
    }

    fn stranger_reaches(&self, port: u16) -> Result<bool, lab::Error> {
        self.machine
            .around
            .stranger
            .connect(address::SERVER, port, SOON)
    }

    /// Every TCP port of both addresses, knocked on from the stranger's host; ports open on either.
    fn stranger_scans(&mut self) -> Result<Vec<u16>, lab::Error> {
        let begun = Instant::now();
        let targets: [IpAddr; 2] = [address::SERVER, address::SERVER_V6];
        let scanned = self.machine.around.stranger.in_net(|| {
            scan::packet::scan(
                &targets,
                &PortSet::all(),
                &scan::packet::PacketOptions::default(),
                &mut |_| {},
            )
        })?;
        let report = match scanned {
            Ok(report) => report,
            Err(error) => {
                self.expect(&format!("the stranger's scan ran ({error})"), false);
                return Ok(Vec::new());
            }
        };
        let mut open: Vec<u16> = report
            .targets
            .iter()
            .flat_map(|target| &target.ports)
            .filter(|port| port.state == PortState::Open)
            .map(|port| port.port)
            .collect();
        open.sort_unstable();
        open.dedup();
        let list: Vec<String> = open.iter().map(u16::to_string).collect();
        self.line(&format!(
            "stranger: scanned 2 × 65535 ports in {:.1} s, open: {}",
            begun.elapsed().as_secs_f64(),
            paint(BAD, list.join(" "))
        ));
        if report.inconclusive() {
            self.expect("the stranger's scan was conclusive", false);
        }
        Ok(open)
    }
}

/// A port of the machine that the operator waits for.
trait Waits {
    fn operator_waits(&self, port: u16) -> Told;
}

impl Waits for Machine {
    fn operator_waits(&self, port: u16) -> Told {
        self.around
            .operator
            .wait_port(address::SERVER, port, Duration::from_secs(20))
    }
}
