//! Who put a rule there, judged by the names that each tool gives to its tables and chains.
//!
//! Names are a claim, not a proof: anybody can name a chain `ufw-user-input`. The answer is for explanations only;
//! no verdict may rest on it.
use serde::{Deserialize, Serialize};

use crate::ir::{Key, Match, Rule, RuleVerdict, Statement, Values};
use crate::{RuleRef, Ruleset};

/// Who put a rule there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// UFW's own scaffolding, and what `before.rules` and `after.rules` add to its chains.
    Ufw,
    /// A rule that somebody gave to `ufw`: `ufw allow 22`.
    UfwUser,
    /// Docker.
    Docker,
    /// A fail2ban jail; empty when the name does not tell which. Untrusted text.
    Fail2ban(String),
    /// portcullis's guard.
    Portcullis,
    /// Tailscale.
    Tailscale,
    /// kube-proxy, k3s and network plugins.
    Kubernetes,
    /// libvirt's networks.
    Libvirt,
    /// LXD and Incus.
    Lxd,
    /// firewalld.
    Firewalld,
    /// Podman (netavark or CNI).
    Podman,
    /// A CrowdSec bouncer.
    CrowdSec,
    /// sshguard.
    SshGuard,
    /// None of them: somebody's own rule.
    User,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Owner::Ufw => "UFW",
            Owner::UfwUser => "a UFW user rule",
            Owner::Docker => "Docker",
            Owner::Fail2ban(jail) if jail.is_empty() => "fail2ban",
            Owner::Fail2ban(jail) => return write!(f, "fail2ban jail {jail}"),
            Owner::Portcullis => "portcullis",
            Owner::Tailscale => "Tailscale",
            Owner::Kubernetes => "Kubernetes",
            Owner::Libvirt => "libvirt",
            Owner::Lxd => "LXD",
            Owner::Firewalld => "firewalld",
            Owner::Podman => "Podman",
            Owner::CrowdSec => "CrowdSec",
            Owner::SshGuard => "sshguard",
            Owner::User => "your own rule",
        })
    }
}

/// The owner that a chain's name tells of.
fn by_chain(name: &str) -> Option<Owner> {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|p| name.starts_with(p));
    if let Some(jail) = name
        .strip_prefix("f2b-")
        .or_else(|| name.strip_prefix("fail2ban-"))
    {
        return Some(Owner::Fail2ban(jail.to_string()));
    }
    if starts(&["ufw-user-", "ufw6-user-"]) {
        // The limit and logging chains below are scaffolding.
        let own = ["input", "output", "forward"]
            .iter()
            .any(|c| name.ends_with(&format!("-user-{c}")));
        return Some(if own { Owner::UfwUser } else { Owner::Ufw });
    }
    Some(match name {
        _ if starts(&["ufw-", "ufw6-"]) => Owner::Ufw,
        "DOCKER-USER" => return None,
        "DOCKER" => Owner::Docker,
        _ if starts(&["DOCKER-"]) => Owner::Docker,
        _ if starts(&["ts-"]) => Owner::Tailscale,
        _ if starts(&["KUBE-", "cali-", "CILIUM_", "FLANNEL-", "WEAVE-"]) => Owner::Kubernetes,
        _ if starts(&["LIBVIRT_"]) => Owner::Libvirt,
        _ if starts(&["NETAVARK", "CNI-"]) => Owner::Podman,
        _ if starts(&["CROWDSEC", "crowdsec"]) => Owner::CrowdSec,
        "sshguard" => Owner::SshGuard,
        _ => return None,
    })
}

/// The owner that a table's name tells of.
fn by_table(name: &str) -> Option<Owner> {
    Some(match name {
        "portcullis" => Owner::Portcullis,
        "firewalld" => Owner::Firewalld,
        "docker-bridges" => Owner::Docker,
        "kube-proxy" => Owner::Kubernetes,
        "libvirt_network" => Owner::Libvirt,
        "lxd" | "incus" => Owner::Lxd,
        "netavark" => Owner::Podman,
        "sshguard" => Owner::SshGuard,
        _ if name.starts_with("f2b-") => Owner::Fail2ban(String::new()),
        _ if name.starts_with("crowdsec") => Owner::CrowdSec,
        _ => return None,
    })
}

fn by_comment(comment: &str) -> Option<Owner> {
    Some(match comment {
        c if c.contains("generated for LXD") || c.contains("generated for Incus") => Owner::Lxd,
        c if c.starts_with("portcullis") => Owner::Portcullis,
        c if c.starts_with("kubernetes ")
            || c.starts_with("flanneld ")
            || c.starts_with("cali:") =>
        {
            Owner::Kubernetes
        }
        c if c.starts_with("CrowdSec") => Owner::CrowdSec,
        _ => return None,
    })
}

/// The chain that a rule jumps to, if it does.
pub(crate) fn target(rule: &Rule) -> Option<&str> {
    rule.statements.iter().find_map(|s| match s {
        Statement::Verdict(RuleVerdict::Jump { chain } | RuleVerdict::Goto { chain }) => {
            Some(chain.as_str())
        }
        _ => None,
    })
}

/// True for `docker0` and Docker's `br-` and twelve hexadecimal digits.
fn is_docker_bridge(name: &str) -> bool {
    let id = name.strip_prefix("br-");
    name == "docker0"
        || name == "docker_gwbridge"
        || id.is_some_and(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn names_docker_bridge(rule: &Rule) -> bool {
    rule.statements.iter().any(|s| match s {
        Statement::Match(Match::Cmp {
            of,
            values: Values::Name(names),
            ..
        }) if matches!(of.key, Key::IifName | Key::OifName) => names
            .iter()
            .any(|n| !n.wildcard && is_docker_bridge(&n.name)),
        _ => false,
    })
}

/// fail2ban's nftables action keeps a jail's addresses in a set `addr-set-JAIL`; its ipset action in `f2b-JAIL`.
fn by_set(rule: &Rule) -> Option<Owner> {
    rule.statements.iter().find_map(|s| match s {
        Statement::Match(Match::Lookup {
            set: crate::ir::SetRef::Named(name),
            ..
        }) => {
            let jail = ["addr6-set-", "addr-set-"]
                .iter()
                .find_map(|p| name.strip_prefix(p));
            jail.map(|jail| Owner::Fail2ban(jail.to_string()))
        }
        Statement::Match(Match::IpSet { set, .. }) if set.starts_with("crowdsec-") => {
            Some(Owner::CrowdSec)
        }
        Statement::Match(Match::IpSet { set, .. }) => {
            let jail = set
                .strip_prefix("f2b-")
                .or_else(|| set.strip_prefix("fail2ban-"));
            jail.map(|jail| Owner::Fail2ban(jail.trim_end_matches('6').to_string()))
        }
        _ => None,
    })
}

/// Who put the rule at `at` there. A policy belongs to whoever owns the chain; the policies of built-in chains count
/// as UFW's when UFW hooks its chains there.
pub fn owner(rules: &Ruleset, at: &RuleRef) -> Owner {
    let rule = rules.rule_at(at);
    let chain = rules.chain_at(at);
    if let Some(owner) = rule.and_then(by_set) {
        return owner;
    }
    if let Some(owner) = by_table(&at.table).or_else(|| by_chain(&at.chain)) {
        return owner;
    }
    let Some(rule) = rule else {
        let ufw = chain.is_some_and(|c| {
            c.rules
                .iter()
                .filter_map(target)
                .any(|t| t.starts_with("ufw"))
        });
        return if ufw { Owner::Ufw } else { Owner::User };
    };
    if let Some(owner) = rule.comment.as_deref().and_then(by_comment) {
        return owner;
    }
    if let Some(owner) = target(rule).and_then(by_chain) {
        // ufw-docker and people put jumps to ufw's chains into DOCKER-USER.
        return if at.chain == "DOCKER-USER" && matches!(owner, Owner::Ufw | Owner::UfwUser) {
            Owner::User
        } else {
            owner
        };
    }
    let jumps_to_docker_user = target(rule) == Some("DOCKER-USER");
    let only_return = matches!(
        rule.statements[..],
        [Statement::Verdict(RuleVerdict::Return)]
    );
    if jumps_to_docker_user || (at.chain == "DOCKER-USER" && only_return) {
        return Owner::Docker;
    }
    let masquerade = at.chain == "POSTROUTING"
        && rule
            .statements
            .iter()
            .any(|s| matches!(s, Statement::Nat(_)));
    if (at.chain == "FORWARD" || masquerade) && names_docker_bridge(rule) {
        return Owner::Docker;
    }
    Owner::User
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, parse};

    fn check(save: &str, expect: &[(&str, Owner)]) {
        let (rules, _) = parse::iptables_save(save, false, Backend::IptablesNft);
        let found: Vec<(String, Owner)> = rules
            .rules()
            .map(|(at, rule)| (rule.text.clone(), owner(&rules, &at)))
            .collect();
        let expect: Vec<(String, Owner)> = expect
            .iter()
            .map(|(t, o)| (t.to_string(), o.clone()))
            .collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn rules_are_told_apart_by_chain_and_jump() {
        check(
            "*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:f2b-sshd - [0:0]
:ufw-before-input - [0:0]
:ufw-user-input - [0:0]
:ufw-user-limit - [0:0]
:ts-input - [0:0]
-A INPUT -p tcp -j f2b-sshd
-A INPUT -j ts-input
-A INPUT -j ufw-before-input
-A INPUT -p tcp -m tcp --dport 11434 -j DROP
-A FORWARD -j DOCKER-USER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i br-lan -j ACCEPT
-A DOCKER-USER -s 192.0.2.0/24 -j DROP
-A DOCKER-USER -j RETURN
-A f2b-sshd -s 203.0.113.9/32 -j REJECT --reject-with icmp-port-unreachable
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
-A ufw-user-limit -j REJECT --reject-with icmp-port-unreachable
COMMIT
",
            &[
                (
                    "-A INPUT -p tcp -j f2b-sshd",
                    Owner::Fail2ban("sshd".into()),
                ),
                ("-A INPUT -j ts-input", Owner::Tailscale),
                ("-A INPUT -j ufw-before-input", Owner::Ufw),
                ("-A INPUT -p tcp -m tcp --dport 11434 -j DROP", Owner::User),
                ("-A FORWARD -j DOCKER-USER", Owner::Docker),
                (
                    "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
                    Owner::Docker,
                ),
                ("-A FORWARD -i br-lan -j ACCEPT", Owner::User),
                ("-A DOCKER-USER -s 192.0.2.0/24 -j DROP", Owner::User),
                ("-A DOCKER-USER -j RETURN", Owner::Docker),
                (
                    "-A f2b-sshd -s 203.0.113.9/32 -j REJECT --reject-with icmp-port-unreachable",
                    Owner::Fail2ban("sshd".into()),
                ),
                (
                    "-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT",
                    Owner::UfwUser,
                ),
                (
                    "-A ufw-user-limit -j REJECT --reject-with icmp-port-unreachable",
                    Owner::Ufw,
                ),
            ],
        );
    }
}
