//! Plans: immutable lists of typed changes, bound to the facts they were made from.
//!
//! A plan leaves execution no choice: every value is in it. Crate `host` has one executor a kind of
//! change, each with its undo.

use serde::{Deserialize, Serialize};

/// Version of the plan format.
pub const PLAN_SCHEMA: u32 = 1;

/// What is to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAN_SCHEMA`].
    pub schema: u32,
    /// Hash of the facts that it was made from ([`crate::facts_hash`]); another hash at apply: stale.
    pub made_from: String,
    /// The changes, in the order in which they are made.
    pub changes: Vec<Change>,
    /// Things the reader should know that are no change: kept foreign rules, container lines to edit.
    pub notes: Vec<Note>,
}

impl Plan {
    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// A remark of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// In plain words.
    pub text: String,
    /// A command or line to use, if any.
    pub command: Option<String>,
}

/// One change with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Why, in one sentence for the operator: "strangers could reach Ollama".
    pub why: String,
    /// Findings (ids) that it mends.
    pub mends: Vec<String>,
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
}

/// What a change does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Action {
    /// Install Debian packages that are not installed (`apt-get install --no-install-recommends`).
    InstallPackages {
        /// Package names, sorted.
        packages: Vec<String>,
    },
    /// Write a whole file (temp file, fsync, rename).
    WriteFile {
        /// Absolute path.
        path: String,
        /// Its whole new content.
        content: String,
        /// Permission bits.
        mode: u32,
    },
    /// Remove a file that portcullis wrote earlier.
    RemoveFile {
        /// Absolute path.
        path: String,
    },
    /// One `ufw` command.
    Ufw {
        /// The operation.
        #[serde(flatten)]
        op: UfwOp,
    },
    /// Replace the guard table `inet portcullis` atomically.
    Guard {
        /// The whole nft script, `add table … delete table … table … {}`; loaded with one `nft -f`.
        ruleset: String,
    },
    /// Remove the guard table.
    RemoveGuard {},
    /// A systemd operation.
    Systemd {
        /// Unit name; empty for daemon-reload.
        unit: String,
        /// What to do.
        verb: SystemdVerb,
    },
    /// Change lines of a compose file in place, so that it publishes on loopback. Takes effect when its
    /// service is made anew.
    EditCompose {
        /// Absolute path.
        path: String,
        /// SHA-256 of the file as the plan knows it, lowercase hex.
        sha256: String,
        /// The changes, by place.
        edits: Vec<crate::compose::Edit>,
    },
    /// Close connections that the new policy forbids, by deleting their conntrack entries.
    CutConnections {
        /// TCP host ports whose connections from non-allowed sources are cut.
        ports: Vec<u16>,
        /// UDP host ports, likewise.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        udp: Vec<u16>,
    },
}

/// What to do with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SystemdVerb {
    /// `systemctl daemon-reload`.
    DaemonReload,
    /// `systemctl enable --now`.
    EnableNow,
    /// `systemctl enable`.
    Enable,
    /// `systemctl disable --now`.
    DisableNow,
    /// `systemctl restart`.
    Restart,
}

/// One `ufw` operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub enum UfwOp {
    /// `ufw default POLICY DIRECTION`.
    Default {
        /// incoming, outgoing, routed.
        direction: String,
        /// allow, deny, reject.
        policy: String,
    },
    /// `ufw [prepend] ACTION [in on IFACE] [from NET] to any port PORT proto PROTO comment TEXT`.
    Add {
        /// The rule.
        #[serde(flatten)]
        rule: UfwAdd,
    },
    /// `ufw delete RULE`, the same words as the add.
    Delete {
        /// The rule.
        #[serde(flatten)]
        rule: UfwAdd,
    },
    /// `ufw --force enable`.
    Enable {},
    /// `ufw reload`.
    Reload {},
}

/// A user rule as portcullis writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UfwAdd {
    /// allow, deny, limit.
    pub action: String,
    /// Put before all other rules.
    pub prepend: bool,
    /// tcp or udp.
    pub proto: String,
    /// Port.
    pub port: u16,
    /// Source; `None` anywhere (both families).
    pub from: Option<ipnet::IpNet>,
    /// Incoming interface.
    pub interface: Option<String>,
    /// Comment shown in `ufw status`.
    pub comment: String,
}
