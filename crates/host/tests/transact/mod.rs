//! What tests of transactions share: plans, the helper program, and a machine's state as text.

use serde_json::{Value, json};
use std::time::Duration;

/// The state folder on hosts under test.
pub const STATE: &str = "/var/lib/portcullis";

/// The helper program (`examples/transact.rs`).
pub fn exe() -> String {
    let me = std::env::current_exe().unwrap();
    let target = me.parent().and_then(|deps| deps.parent()).unwrap();
    let exe = target.join("examples/transact");
    assert!(
        exe.exists(),
        "{exe:?} is missing: cargo build -p portcullis-host --example transact"
    );
    exe.to_string_lossy().into_owned()
}

/// A plan as JSON.
#[derive(Clone)]
pub struct Plan(Value);

impl Plan {
    /// A plan of these changes, made from whatever the facts are.
    pub fn new(changes: Vec<Value>) -> Self {
        Self(json!({"schema": 1, "made_from": "", "changes": changes, "notes": []}))
    }
    /// Made from facts of this hash.
    #[allow(dead_code)]
    pub fn made_from(&mut self, hash: &str) {
        self.0["made_from"] = hash.into();
    }
}

fn change(mut action: Value) -> Value {
    action["why"] = "a test".into();
    action["mends"] = json!([]);
    action
}

pub fn write(path: &str, content: &str, mode: u32) -> Value {
    change(json!({"kind": "write-file", "path": path, "content": content, "mode": mode}))
}

#[allow(dead_code)]
pub fn remove(path: &str) -> Value {
    change(json!({"kind": "remove-file", "path": path}))
}

pub fn allow(action: &str, port: u16) -> Value {
    change(json!({
        "kind": "ufw", "op": "add", "action": action, "prepend": false, "proto": "tcp",
        "port": port, "from": null, "interface": null, "comment": "portcullis: test",
    }))
}

#[allow(dead_code)]
pub fn delete(action: &str, port: u16) -> Value {
    let mut change = allow(action, port);
    change["op"] = "delete".into();
    change
}

#[allow(dead_code)]
pub fn default(direction: &str, policy: &str) -> Value {
    change(json!({"kind": "ufw", "op": "default", "direction": direction, "policy": policy}))
}

pub fn enable() -> Value {
    change(json!({"kind": "ufw", "op": "enable"}))
}

#[allow(dead_code)]
pub fn guard(rule: &str) -> Value {
    let ruleset = format!(
        "add table inet portcullis\ndelete table inet portcullis\ntable inet portcullis {{\n\
         \tset banned4 {{ type ipv4_addr; flags timeout; }}\n\
         \tchain in {{ type filter hook input priority filter - 1; policy accept;\n\
         \t\tip saddr @banned4 drop\n\t\t{rule}\n\t}}\n}}\n"
    );
    change(json!({"kind": "guard", "ruleset": ruleset}))
}

#[allow(dead_code)]
pub fn unit(unit: &str, verb: &str) -> Value {
    change(json!({"kind": "systemd", "unit": unit, "verb": verb}))
}

#[allow(dead_code)]
pub fn install(packages: &[&str]) -> Value {
    change(json!({"kind": "install-packages", "packages": packages}))
}

/// A host under test, of either kind.
pub trait Machine {
    /// Runs a program; standard output and error together.
    fn output(&self, argv: &[&str]) -> String;
    /// Writes a file.
    fn put_file(&self, path: &str, text: &str);
    /// The helper program's path there.
    fn helper(&self) -> String;

    /// Runs the helper.
    fn transact(&self, args: &[&str]) -> String {
        let exe = self.helper();
        let mut argv = vec![exe.as_str()];
        argv.extend(args);
        self.output(&argv)
    }

    /// Writes a plan to the host; returns its path.
    fn put(&self, plan: &Plan) -> String {
        self.put_file("/var/log/plan.json", &plan.0.to_string());
        "/var/log/plan.json".into()
    }

    /// Applies a plan.
    #[allow(dead_code)]
    fn apply(&self, plan: &Plan, window: Duration, fault: &str) -> String {
        let path = self.put(plan);
        let millis = window.as_millis().to_string();
        let mut args = vec!["apply", &path, STATE, &millis];
        if !fault.is_empty() {
            args.push(fault);
        }
        self.transact(&args)
    }

    /// All rules, without counters.
    fn rules(&self) -> String {
        let mut text = String::new();
        for tool in ["iptables-save", "ip6tables-save"] {
            let saved = self.output(&[tool]);
            for line in saved.lines().filter(|line| !line.starts_with('#')) {
                // `:INPUT ACCEPT [12:345]`
                text.push_str(line.split(" [").next().unwrap_or(line));
                text.push('\n');
            }
        }
        text.push_str(&self.output(&["nft", "-s", "list", "tables"]));
        text.push_str(&self.output(&["nft", "-s", "list", "table", "inet", "portcullis"]));
        text
    }

    /// Every file below /etc with mode, owner and content, and all rules.
    #[allow(dead_code)]
    fn state(&self) -> String {
        let list = "find /etc -xdev ! -name resolv.conf ! -path '/etc/ssh*' -printf '%p %y %m %U:%G %l\\n' | sort; \
                    find /etc -xdev -type f ! -name resolv.conf ! -path '/etc/ssh*' -print0 | sort -z | xargs -0 sha256sum";
        format!("{}{}", self.output(&["sh", "-c", list]), self.rules())
    }

    /// [`Machine::state`], and how these units stand.
    #[allow(dead_code)]
    fn state_with(&self, units: &[&str]) -> String {
        let show = "--property=Id,LoadState,ActiveState,UnitFileState,Environment,DropInPaths";
        let units = self.output(&[&["systemctl", "show", show], units].concat());
        // A service that a rollback stopped is as dead as one that failed by itself (stock fail2ban of Debian 12, half
        // a second after each start).
        let units = units.replace("ActiveState=failed", "ActiveState=inactive");
        format!("{}{units}", self.state())
    }
}

impl Machine for lab::Host {
    fn output(&self, argv: &[&str]) -> String {
        self.run(argv).unwrap().text()
    }
    fn put_file(&self, path: &str, text: &str) {
        self.write(path, text).unwrap();
    }
    fn helper(&self) -> String {
        exe()
    }
}

/// Where the helper is put on a whole machine.
#[allow(dead_code)]
pub const COPIED: &str = "/usr/local/bin/transact";

impl Machine for lab::Machine {
    fn output(&self, argv: &[&str]) -> String {
        self.run(argv).unwrap().text()
    }
    fn put_file(&self, path: &str, text: &str) {
        self.write(path, text).unwrap();
    }
    fn helper(&self) -> String {
        COPIED.into()
    }
}

/// Two states are the same; else the lines that differ.
#[allow(dead_code)]
#[track_caller]
pub fn same(now: &str, before: &str, what: &str) {
    if now == before {
        return;
    }
    let only = |one: &str, other: &str, sign: &str| -> String {
        let lines: std::collections::HashSet<&str> = other.lines().collect();
        one.lines()
            .filter(|line| !lines.contains(line))
            .map(|line| format!("{sign}{line}\n"))
            .collect()
    };
    panic!(
        "{what}: the state is not as before\n{}{}",
        only(before, now, "-"),
        only(now, before, "+")
    );
}

/// How many places the helper counted.
#[allow(dead_code)]
#[track_caller]
pub fn places(said: &str) -> u32 {
    said.lines()
        .find_map(|line| line.strip_prefix("places: "))
        .unwrap_or_else(|| panic!("{said}"))
        .parse()
        .unwrap()
}
