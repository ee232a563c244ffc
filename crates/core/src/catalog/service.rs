//! What a file of the catalog may say.

use super::probe::Probe;
use crate::finding::Severity;
use serde::{Deserialize, Serialize};

/// A service of the catalog: one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Stable id, as `[[service]] kind` names it: lowercase letters, digits, dashes.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// What sort of thing it is.
    pub kind: Kind,
    /// Default ports that name it well enough by themselves.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Default ports that many other programs use too.
    #[serde(default)]
    pub weak_ports: Vec<u16>,
    /// Command names as `/proc/PID/comm` has them: at most 15 bytes.
    #[serde(default)]
    pub processes: Vec<String>,
    /// Scripts, modules or applications that an interpreter runs: `vllm` stands for `-m vllm.entrypoints…` and
    /// `/usr/bin/vllm serve` too.
    #[serde(default)]
    pub scripts: Vec<String>,
    /// systemd units.
    #[serde(default)]
    pub units: Vec<String>,
    /// Image repositories without tag; those of Docker Hub without a registry host. `/*` at the end takes everything
    /// below.
    #[serde(default)]
    pub images: Vec<String>,
    /// How bad it is when strangers reach it.
    pub danger: Severity,
    /// Completes "Whoever reaches it can …".
    pub risk: String,
    /// Made to face strangers.
    #[serde(default)]
    pub public: bool,
    /// A frame that others are built on, or a protocol that many speak: named only when nothing more exact fits.
    #[serde(default)]
    pub generic: bool,
    /// Where it listens by default, in words.
    #[serde(default)]
    pub bind: String,
    /// How it is guarded by default, in words.
    #[serde(default)]
    pub auth: String,
    /// Endpoints that change or leak something, in its own notation.
    #[serde(default)]
    pub dangerous: Vec<String>,
    /// Endpoints that a gateway may let through.
    #[serde(default)]
    pub gateway: Vec<String>,
    /// How it is told to listen on loopback only.
    #[serde(default)]
    pub loopback: Option<Loopback>,
    /// More that helps, in words: how to switch authentication on, what else to close.
    #[serde(default)]
    pub advice: String,
    /// Questions of which any one answered as expected names it.
    #[serde(default, rename = "probe")]
    pub probes: Vec<Probe>,
    /// Questions that show whether it lets strangers in without a key.
    #[serde(default, rename = "access")]
    pub accesses: Vec<AccessProbe>,
    /// Dangerous states that can be seen.
    #[serde(default, rename = "hazard")]
    pub hazards: Vec<Hazard>,
    /// Known holes.
    #[serde(default, rename = "hole")]
    pub holes: Vec<Hole>,
    /// How far the facts were checked.
    pub confidence: Checked,
    /// When, as YYYY-MM-DD.
    pub checked: String,
    /// Where the facts are from: addresses, or `owner/repository:file`.
    pub sources: Vec<String>,
}

/// What sort of thing a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Runs models.
    Inference,
    /// Makes pictures.
    Image,
    /// Hears or speaks.
    Speech,
    /// A face for people.
    Ui,
    /// Agents and workflows.
    Agent,
    /// Stands before models.
    Gateway,
    /// A notebook: code in a browser.
    Notebook,
    /// Experiments, models, training.
    Mlops,
    /// Machines that work together.
    Cluster,
    /// A vector database.
    Vector,
    /// Any other data.
    Data,
    /// A server of the Model Context Protocol.
    Mcp,
    /// Figures about machines.
    Metrics,
    /// What every server has: SSH, web servers.
    System,
}

/// How far the facts of a service were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checked {
    /// From fingerprints that others publish and use.
    Published,
    /// Read in the project's documentation.
    Docs,
    /// Read in the project's own code.
    Source,
    /// Its answers were taken from the real program.
    Tried,
}

/// How a service is told to listen on loopback only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum Loopback {
    /// An environment variable; `{port}` in the value stands for the port that it listens on.
    Environment {
        /// Variable.
        key: String,
        /// Value.
        value: String,
    },
    /// A command-line argument.
    Argument {
        /// As typed.
        text: String,
        /// Other names of the same argument, which would contradict it.
        #[serde(default)]
        instead_of: Vec<String>,
    },
    /// A line of its own configuration.
    Setting {
        /// As written there.
        text: String,
    },
}

impl Loopback {
    /// What to do, for people: `OLLAMA_HOST=127.0.0.1:11434`, `--host 127.0.0.1`.
    pub fn words(&self, port: u16) -> String {
        match self {
            Loopback::Environment { key, value } => {
                format!("{key}={}", value.replace("{port}", &port.to_string()))
            }
            Loopback::Argument { text, .. } | Loopback::Setting { text } => {
                text.replace("{port}", &port.to_string())
            }
        }
    }
}

/// A question that shows whether strangers are let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessProbe {
    /// The question, and the answer that means "open to everybody".
    pub open: Probe,
    /// Statuses that mean "asks for a key".
    #[serde(default = "refused")]
    pub locked: Vec<u16>,
    /// A text in the answer that means the same.
    #[serde(default)]
    pub locked_body: Option<String>,
}

fn refused() -> Vec<u16> {
    vec![401, 403]
}

/// A dangerous state that an answer shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hazard {
    /// Stable id; findings carry it: `first-visitor-becomes-admin`, `debug-endpoints`.
    pub id: String,
    /// How bad, where strangers reach it.
    pub severity: Severity,
    /// One sentence about what a stranger could do.
    pub says: String,
    /// What ends it.
    pub mend: String,
    /// The question, and the answer that shows it.
    pub when: Probe,
}

/// A known hole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hole {
    /// `CVE-…` or `GHSA-…`.
    pub id: String,
    /// Versions that have it: comparisons that must all hold, `>=0.3.0 <0.22.0`.
    pub affected: String,
    /// How bad, where strangers reach it.
    pub severity: Severity,
    /// What a stranger could do, completing "lets a stranger …".
    pub lets: String,
    /// Where the range is from.
    pub source: String,
}
