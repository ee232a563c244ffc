//! Disturbs one program at one system call, with strace's injector, and says where it struck.
//!
//! The main thread of the program is traced: it does all the changing; [`Blow::kill_thread`] strikes
//! where another thread is at work, or a child before it becomes another program. What it starts
//! (`ufw`, `iptables-restore`, `nft`) runs undisturbed, as when one process is killed.
//!
//! **Which calls.** SIGKILL at the entry of a call leaves the machine as the calls before it made
//! it. Between two calls that change something (files, locks, processes, the kernel) every place to
//! die leaves the same machine, so one place for each call that changes something stands for all of
//! them: [`Trace::changing`]. That a call missing from [`CALLS`] changes something would break the
//! argument, so a share of the points is taken from all calls whatever they are
//! ([`Blow::kill_any`]).

#![allow(dead_code, reason = "each test file uses its part")]

use crate::transact::{Machine, Plan, STATE};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

/// System calls that may change something outside the calling process; `?` where not every
/// architecture has it. `openat` counts only where it creates or truncates, `poll` and its like only
/// as a place inside another program's work.
const CALLS: &str = "?write,?pwrite64,?writev,?pwritev,?openat,?openat2,?open,?creat,?rename,?renameat,?renameat2,\
    ?unlink,?unlinkat,?mkdir,?mkdirat,?rmdir,?link,?linkat,?symlink,?symlinkat,?chmod,?fchmod,?fchmodat,?fchmodat2,\
    ?chown,?fchown,?lchown,?fchownat,?utimensat,?setxattr,?fsync,?fdatasync,?syncfs,?sync,?fallocate,?ftruncate,\
    ?truncate,?flock,?kill,?sendto,?sendmsg,?sendmmsg,?clone,?clone3,?vfork,?fork,?mount,?ioctl,?copy_file_range,\
    ?sendfile,?splice,?setsid,?poll,?ppoll,?wait4,?waitid";

/// Where strace writes.
const LOG: &str = "/var/log/trace";

/// What befalls the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blow {
    /// What is traced.
    set: &'static str,
    /// What is done: `fsync:signal=SIGKILL:when=3`. strace counts each call for itself.
    how: String,
    /// All threads are traced, and children until they become another program.
    threads: bool,
    /// In words.
    pub name: String,
}

impl Blow {
    /// SIGKILL at the entry of a call, by its number in a trace of [`CALLS`].
    pub fn kill(trace: &Trace, number: usize) -> Self {
        let (name, nth) = trace.nth(number);
        Self {
            set: CALLS,
            how: format!("{name}:signal=SIGKILL:when={nth}"),
            threads: false,
            name: format!("killed at call {number}, {name} {nth}"),
        }
    }
    /// SIGKILL at the entry of a thread's call, one of [`Trace::of_threads`].
    pub fn kill_thread((name, nth): &(String, usize)) -> Self {
        Self {
            set: "all",
            how: format!("{name}:signal=SIGKILL:when={nth}"),
            threads: true,
            name: format!("killed at a thread's {name} {nth}"),
        }
    }
    /// SIGKILL at the entry of a call, by its number in a trace of all calls.
    pub fn kill_any(trace: &Trace, number: usize) -> Self {
        Self {
            set: "all",
            ..Self::kill(trace, number)
        }
    }
    /// An error instead of a call; `lasting`: and instead of the next fifteen of its kind.
    pub fn error(trace: &Trace, errno: &str, number: usize, lasting: bool) -> Self {
        let (name, nth) = trace.nth(number);
        let until = match lasting {
            true => format!("..{}", nth + 15),
            false => String::new(),
        };
        Self {
            set: CALLS,
            how: format!("{name}:error={errno}:when={nth}{until}"),
            threads: false,
            name: format!("{errno} at call {number}, {name} {nth}{until}"),
        }
    }
    fn kills(&self) -> bool {
        self.how.contains("SIGKILL")
    }
    /// Only watches.
    pub fn none(all: bool) -> Self {
        Self {
            set: if all { "all" } else { CALLS },
            how: String::new(),
            threads: false,
            name: "undisturbed".into(),
        }
    }
    /// Only watches, all threads.
    pub fn none_of_threads() -> Self {
        Self {
            threads: true,
            ..Self::none(true)
        }
    }
    /// The words in front of a program.
    pub fn words(&self, strace: &[String]) -> Vec<String> {
        let mut words = strace.to_vec();
        if self.threads {
            words.extend(["-f", "-b", "execve"].map(str::to_owned));
        }
        words.extend(["-qq".into(), "-o".into(), LOG.into()]);
        words.extend(["-e".into(), format!("trace={}", self.set)]);
        words.extend(["-e".into(), "signal=none".into()]);
        if !self.how.is_empty() {
            words.extend(["-e".into(), format!("inject={}", self.how)]);
        }
        words
    }
}

/// About `count` of the numbers, spread evenly.
pub fn spread(numbers: &[usize], count: usize) -> Vec<usize> {
    let step = numbers.len().div_ceil(count.max(1)).max(1);
    numbers
        .iter()
        .copied()
        .skip(step / 2)
        .step_by(step)
        .collect()
}

/// What strace saw.
#[derive(Debug, Clone)]
pub struct Trace(Vec<String>);

impl Trace {
    /// What the last run left.
    pub fn read(machine: &dyn Machine) -> Self {
        let log = machine.output(&["cat", LOG]);
        Self(
            log.lines()
                .filter(|line| !line.starts_with("+++") && !line.starts_with("---"))
                .map(str::to_owned)
                .collect(),
        )
    }
    /// Number of calls.
    pub fn calls(&self) -> usize {
        self.0.len()
    }
    /// The numbers (from 1) of calls that change something, and of waits for a program.
    pub fn changing(&self) -> Vec<usize> {
        let mut last_wait = false;
        (1..=self.0.len())
            .filter(|number| {
                let line = &self.0[number - 1];
                let wait = is_wait(line);
                // Of a row of waits one is enough.
                let first = !(wait && last_wait);
                last_wait = wait;
                changes(line) || wait && first
            })
            .collect()
    }
    /// The name of a call, and how many of that name there were up to and with it.
    fn nth(&self, number: usize) -> (&str, usize) {
        let name = call(&self.0[number - 1]);
        let nth = self.0[..number]
            .iter()
            .filter(|line| call(line) == name)
            .count();
        (name, nth)
    }
    /// Calls that another than the main thread is the first to make so often: name and how often. Each
    /// thread counts for itself, as in strace.
    pub fn of_threads(&self) -> Vec<(String, usize)> {
        let mut made = BTreeMap::<(&str, &str), usize>::new();
        let mut most = BTreeMap::<&str, usize>::new();
        let main = self.0.first().map_or("", |line| thread(line));
        let mut found = vec![];
        for line in self.0.iter().filter(|line| !bare(line).starts_with('<')) {
            let (who, name) = (thread(line), call(line));
            if name.starts_with("+++") || name.starts_with("---") || name.starts_with("exit") {
                continue;
            }
            let nth = made.entry((who, name)).or_default();
            *nth += 1;
            let most = most.entry(name).or_default();
            if *nth > *most {
                *most = *nth;
                if who != main {
                    found.push((name.to_owned(), *nth));
                }
            }
        }
        found
    }
    /// Whether the program died at its last call.
    fn died(&self) -> bool {
        if self
            .0
            .iter()
            .any(|line| bare(line).starts_with("+++ killed by SIGKILL"))
        {
            return true;
        }
        self.0
            .last()
            .is_some_and(|line| line.ends_with("= ?") && call(line) != "exit_group")
    }
    /// How many calls that change something were made; the last may not have happened.
    pub fn reached(&self) -> usize {
        self.0.iter().filter(|line| changes(line)).count()
    }
    /// The numbers of calls that fail with this error in real life.
    pub fn can_fail(&self, errno: &str) -> Vec<usize> {
        const ROOM: [&str; 16] = [
            "write",
            "pwrite64",
            "openat",
            "mkdir",
            "mkdirat",
            "rename",
            "renameat2",
            "linkat",
            "symlink",
            "symlinkat",
            "fallocate",
            "fsync",
            "fdatasync",
            "syncfs",
            "ftruncate",
            "sendto",
        ];
        const SLOW: [&str; 9] = [
            "write",
            "pwrite64",
            "openat",
            "fsync",
            "fdatasync",
            "flock",
            "poll",
            "wait4",
            "waitid",
        ];
        (1..=self.0.len())
            .filter(|number| {
                let line = &self.0[number - 1];
                let name = call(line);
                match errno {
                    "ENOSPC" => ROOM.contains(&name) && changes(line),
                    "EINTR" => SLOW.contains(&name),
                    _ => changes(line) && !name.contains("clone") && !name.contains("fork"),
                }
            })
            .collect()
    }
    /// All calls, one a line.
    pub fn text(&self) -> String {
        self.0.join("\n")
    }
    /// The last call, for messages.
    pub fn last(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }
}

/// A line without the number of the thread.
fn bare(line: &str) -> &str {
    line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ')
}

fn thread(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

fn call(line: &str) -> &str {
    bare(line).split('(').next().unwrap_or_default()
}

fn is_wait(line: &str) -> bool {
    matches!(call(line), "poll" | "ppoll" | "wait4" | "waitid")
}

fn changes(line: &str) -> bool {
    match call(line) {
        "openat" | "open" | "openat2" => line.contains("O_CREAT") || line.contains("O_TRUNC"),
        // What it says to whoever watches.
        "write" | "writev" => !["write(1,", "write(2,"]
            .iter()
            .any(|own| bare(line).starts_with(own)),
        _ => !is_wait(line),
    }
}

/// A host on which the helper program is disturbed.
pub struct Sweep<'a> {
    machine: &'a dyn Machine,
    strace: Vec<String>,
    /// The state before everything, and with all changes made.
    old: String,
    new: String,
    plan: Plan,
    /// Whether the operator can log in.
    enters: &'a dyn Fn() -> bool,
    /// Points so far.
    pub points: usize,
    /// Of these, those that left everything undone, and those that left everything done.
    pub olds: usize,
    pub news: usize,
    /// Runs that ended before the blow fell.
    pub unharmed: usize,
    places: BTreeSet<(String, usize)>,
}

/// A program that is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// From the old state to the new one.
    Apply,
    /// With all changes made, waiting.
    Confirm,
    /// With all changes made, waiting.
    Rollback,
    /// After an apply that died behind its last change.
    Recover,
}

impl Act {
    pub const ALL: [Act; 4] = [Act::Apply, Act::Confirm, Act::Rollback, Act::Recover];
}

/// What is saved and put back between points: all that the plans here change, and the journal.
const SAVED: &str = "etc/ufw etc/default/ufw etc/fail2ban etc/portcullis etc/legal etc/motd \
    var/lib/portcullis/tx var/lib/portcullis/lock";

/// Long enough that no watchdog gets into a point by itself.
const WINDOW: Duration = Duration::from_secs(3 * 3600);

impl<'a> Sweep<'a> {
    /// Takes both states, and the two starting places in between, of a host at rest.
    pub fn new(
        machine: &'a dyn Machine,
        strace: Vec<String>,
        plan: Plan,
        enters: &'a dyn Fn() -> bool,
    ) -> Self {
        let mut sweep = Self {
            machine,
            strace,
            old: String::new(),
            new: String::new(),
            plan,
            enters,
            points: 0,
            olds: 0,
            news: 0,
            unharmed: 0,
            places: BTreeSet::new(),
        };
        // Once through, so that what the first use leaves (empty tables) is there on every round.
        sweep.machine.apply(&sweep.plan, WINDOW, "");
        sweep.machine.transact(&["rollback", STATE, "keep"]);
        sweep.old = sweep.state();
        sweep.save("old");
        let said = sweep.machine.apply(&sweep.plan, WINDOW, "count");
        assert!(said.contains("AwaitingConfirm"), "{said}");
        let places = crate::transact::places(&said);
        sweep.new = sweep.state();
        assert_ne!(sweep.old, sweep.new);
        sweep.save("waiting");
        sweep.machine.transact(&["rollback", STATE, "keep"]);
        sweep.check_old("the first rollback");
        // Dies after the last change, before the record that all are made; its watchdog as well, so
        // that the recovery under test is the only one.
        sweep.machine.output(&["sh", "-c", &script_restore("old")]);
        let mut place = places - 2;
        loop {
            let said = sweep
                .machine
                .apply(&sweep.plan, WINDOW, &format!("kill:{place}"));
            let history = sweep.machine.transact(&["history", STATE]);
            sweep.kill_watchdog(&said);
            if history
                .lines()
                .last()
                .is_some_and(|line| line.contains("Applying"))
            {
                break;
            }
            sweep.machine.transact(&["rollback", STATE, "keep"]);
            sweep.machine.output(&["sh", "-c", &script_restore("old")]);
            place -= 1;
        }
        sweep.save("died");
        sweep.machine.transact(&["recover", STATE]);
        sweep.check_old("the first recovery");
        sweep
    }

    /// The state, as cheaply as it can be had: names, modes, owners and content of all that may
    /// change (the rest of /etc shows through from the machine that the lab is on, where somebody may
    /// install something meanwhile), whatever has portcullis in its name, and rules.
    fn state(&self) -> String {
        let list = "cd /; f='etc/ufw etc/default/ufw etc/fail2ban etc/portcullis etc/legal etc/motd'; \
             find $f -printf '%p %y %m %U:%G %l\\n' 2>/dev/null | sort; find etc -xdev -name '*portcullis*' | sort; \
             find $f -type f -print0 2>/dev/null | sort -z | xargs -0 sha256sum";
        format!(
            "{}{}",
            self.machine.output(&["sh", "-c", list]),
            self.machine.rules()
        )
    }

    fn save(&self, name: &str) {
        self.machine.output(&[
            "sh",
            "-c",
            &format!(
                "d=/var/log/saved/{name}; rm -rf $d; mkdir -p $d; cd /; \
                 for f in {SAVED}; do [ -e $f ] && cp -a --parents $f $d; done; \
                 iptables-save -c > $d.v4; ip6tables-save -c > $d.v6; \
                 nft list table inet portcullis > $d.nft 2>/dev/null || :"
            ),
        ]);
    }

    /// The watchdog of an apply, by the number that the helper printed.
    fn kill_watchdog(&self, said: &str) {
        if let Some((_, rest)) = said.split_once("Process { pid: ") {
            let pid: String = rest.chars().take_while(char::is_ascii_digit).collect();
            self.machine.output(&["kill", "-9", &pid]);
        }
    }

    /// One program, undisturbed or not, from its starting place. Returns what it said, and the trace.
    fn run(&self, act: Act, blow: &Blow) -> (String, Trace) {
        let start = match act {
            Act::Apply => "old",
            Act::Confirm | Act::Rollback => "waiting",
            Act::Recover => "died",
        };
        self.machine.output(&["sh", "-c", &script_restore(start)]);
        let helper = self.machine.helper();
        let window = WINDOW.as_millis().to_string();
        let plan = self.machine.put(&self.plan);
        let words: Vec<&str> = match act {
            Act::Apply => vec!["apply", &plan, STATE, &window],
            Act::Confirm => vec!["confirm", STATE],
            Act::Rollback => vec!["rollback", STATE, "keep"],
            Act::Recover => vec!["recover", STATE],
        };
        let mut argv = blow.words(&self.strace);
        argv.push(helper);
        argv.extend(words.iter().map(|word| (*word).to_owned()));
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let said = self.machine.output(&argv);
        (said, Trace::read(self.machine))
    }

    /// The calls that an undisturbed run makes.
    pub fn trace(&self, act: Act, watch: &Blow) -> Trace {
        let (said, trace) = self.run(act, watch);
        assert!(trace.calls() > 10, "{act:?}: {said}");
        if act == Act::Apply {
            self.kill_watchdog(&said);
        }
        trace
    }

    /// One point: a blow, the recovery, and what is then.
    pub fn strike(&mut self, act: Act, blow: &Blow) {
        let (said, trace) = self.run(act, blow);
        let tail: Vec<&str> = said.lines().rev().take(2).collect();
        let what = format!("{act:?}, {} ({}): {tail:?}", blow.name, trace.last());
        if std::env::var_os("PORTCULLIS_SWEEP_TELL").is_some() {
            eprintln!(
                "{act:?}, {}: {} changes of {} calls, {}",
                blow.name,
                trace.reached(),
                trace.calls(),
                trace.last()
            );
        }
        // The watchdog of a dead apply may be at it as well: the lock lets one after the other.
        self.recover(&what);
        let history = self.machine.transact(&["history", STATE]);
        let last = history.lines().last().unwrap_or_default().to_owned();
        self.points += 1;
        if blow.kills() {
            // A run differs a little from the one before (it looks at other processes): one that makes
            // fewer calls than the blow counts goes unharmed, and is no point of this sweep.
            if trace.died() {
                self.places.insert((format!("{act:?}"), trace.reached()));
            } else {
                self.points -= 1;
                self.unharmed += 1;
            }
        }
        if last.contains(" Waiting ") || last.contains(" Confirmed ") {
            self.news += 1;
            crate::transact::same(&self.state(), &self.new, &what);
            assert!((self.enters)(), "{what}: no way in");
            // Confirmed or not, it can be undone as a whole.
            let undone = self.machine.transact(&["rollback", STATE, "keep"]);
            assert!(!undone.contains("error"), "{what}: {undone}");
        } else {
            self.olds += 1;
        }
        self.check_old(&what);
        assert!((self.enters)(), "{what}: no way in");
        if act == Act::Apply {
            self.kill_watchdog(&said);
        }
    }

    fn recover(&self, what: &str) {
        for _ in 0..3 {
            let said = self.machine.transact(&["recover", STATE]);
            if !said.contains("error") {
                return;
            }
            // It held the lock, or was disturbed itself: once more, as the watchdog does.
            eprintln!("{what}: recover said {said}");
        }
        panic!(
            "{what}: not recovered: {}",
            self.machine.transact(&["history", STATE])
        );
    }

    fn check_old(&self, what: &str) {
        crate::transact::same(&self.state(), &self.old, what);
    }

    /// Different places that were struck, by act.
    pub fn summary(&self) -> String {
        let mut text = format!(
            "{} points ({} runs went unharmed): {} ended in the old state, {} in the new one; died at",
            self.points, self.unharmed, self.olds, self.news
        );
        for act in Act::ALL {
            let name = format!("{act:?}");
            let places = self.places.iter().filter(|(a, _)| *a == name).count();
            if places > 0 {
                let _ = write!(text, " {places} different places of {name},");
            }
        }
        text.trim_end_matches(',').to_owned()
    }
}

/// Puts a saved state back, packet filter included.
fn script_restore(name: &str) -> String {
    format!(
        "d=/var/log/saved/{name}; cd /; rm -rf {SAVED}; cp -a $d/. /; nft flush ruleset; \
         [ -s $d.v4 ] && iptables-restore -c < $d.v4; [ -s $d.v6 ] && ip6tables-restore -c < $d.v6; \
         [ -s $d.nft ] && nft -f $d.nft; :"
    )
}
