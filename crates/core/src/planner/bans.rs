//! Where bans live in the guard: a pair of sets for each jail, and one for bans by hand.
//!
//! A pair for each, so that the kernel itself says whose ban it is, and so that the end of one ban
//! leaves another jail's ban of the same address alone. Elements carry their timeout: a ban ends on
//! time whether fail2ban runs or not.

use super::guard::TABLE;
use crate::host::Host;
use crate::policy::Bans;
use crate::zones::canonical;
use ipnet::IpNet;
use reach::ir::Field;
use serde::Serialize;
use std::net::IpAddr;

/// The sets of bans by hand have this name, with 4 or 6 behind it.
pub const HAND: &str = "hand";

/// A jail's sets have this name, with 4 or 6 behind it.
pub fn set_name(jail: &str) -> String {
    jail.replace('-', "_")
}

/// The names of all sets that a policy wants, without the 4 or 6 behind them.
pub fn set_names(policy: &Bans) -> Vec<String> {
    let jails = policy.jails();
    jails
        .into_iter()
        .map(set_name)
        .chain([HAND.to_owned()])
        .collect()
}

/// The set and the element that ban an address: a whole network of IPv6 where the policy says so, by
/// its first address. An IPv4 address in IPv6 clothes is taken as what it is.
pub fn place(set: &str, address: IpAddr, ipv6_prefix: u8) -> (String, IpAddr) {
    match canonical(address) {
        IpAddr::V4(v4) => (format!("{set}4"), v4.into()),
        IpAddr::V6(v6) => {
            let masked = u128::from(v6) & mask(ipv6_prefix);
            (format!("{set}6"), IpAddr::V6(masked.into()))
        }
    }
}

/// Rules against packets from those who are banned.
pub(super) fn arriving(policy: &Bans) -> Vec<String> {
    rules(policy, "saddr")
}

/// Rules against packets to them: what a server still has to say on an open connection.
pub(super) fn departing(policy: &Bans) -> Vec<String> {
    rules(policy, "daddr")
}

fn rules(policy: &Bans, side: &str) -> Vec<String> {
    let masked = if policy.ipv6_prefix < 128 {
        format!(" & {}", std::net::Ipv6Addr::from(mask(policy.ipv6_prefix)))
    } else {
        String::new()
    };
    let names = set_names(policy);
    let mut rules = Vec::with_capacity(2 * names.len());
    for name in &names {
        rules.push(format!("ip {side} @{name}4 drop"));
    }
    for name in &names {
        rules.push(format!("ip6 {side}{masked} @{name}6 drop"));
    }
    rules
}

fn mask(bits: u8) -> u128 {
    u128::MAX
        .checked_shl(128 - u32::from(bits.min(128)))
        .unwrap_or(0)
}

/// A ban, as the kernel has it, or as fail2ban claims it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ban {
    /// Who: an address, or a whole network of IPv6.
    pub net: IpNet,
    /// The jail, or `by hand`.
    pub jail: String,
    /// Why: `3 failures`. Untrusted text.
    pub why: Option<String>,
    /// Since when, as fail2ban words it (local time).
    pub since: Option<String>,
    /// Seconds left; `None`: for ever, or not known.
    pub left: Option<u64>,
    /// The kernel drops its packets. False: fail2ban lists it, and nothing holds it.
    pub in_force: bool,
}

/// Every ban of this host, sorted by jail and address.
pub fn listed(host: &Host, policy: &Bans) -> Vec<Ban> {
    let mut out = Vec::new();
    let mut names = set_names(policy);
    // Sets of jails that the policy dropped hold on until their time is over, if rules still look at them.
    if let Some(table) = host
        .rules
        .table(reach::ir::Family::Inet, TABLE, reach::Backend::Nft)
    {
        for set in table.sets.iter().filter(|set| set.timeout) {
            let Some(name) = set.name.strip_suffix(['4', '6']) else {
                continue;
            };
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }
    for name in &names {
        let jail = if name == HAND {
            "by hand".to_owned()
        } else {
            name.replace('_', "-")
        };
        let known = host.jail(&jail);
        for ipv6 in [false, true] {
            let bits = if ipv6 { policy.ipv6_prefix } else { 32 };
            let elements = set_of(host, name, ipv6).map_or(&[][..], |set| &set.elements);
            for element in elements {
                let [Field::Addr(address, _)] = element.key.as_slice() else {
                    continue;
                };
                let Ok(net) = IpNet::new(*address, bits) else {
                    continue;
                };
                let since = known.and_then(|jail| {
                    let of = jail
                        .since
                        .iter()
                        .find(|(ip, _)| net.contains(&canonical(**ip)));
                    of.map(|(_, since)| since.clone())
                });
                out.push(Ban {
                    net,
                    jail: jail.clone(),
                    why: element.comment.clone().filter(|_| name != HAND),
                    since,
                    left: element.expires,
                    in_force: true,
                });
            }
        }
    }
    for jail in host.fail2ban.iter().flat_map(|f| &f.jails) {
        let ours = jail.actions.iter().any(|a| a == "portcullis");
        for address in &jail.banned {
            let address = canonical(*address);
            let held = out
                .iter()
                .any(|ban| ban.jail == jail.name && ban.net.contains(&address));
            if !held {
                out.push(Ban {
                    net: address.into(),
                    jail: jail.name.clone(),
                    why: None,
                    since: jail.since.get(&address).cloned(),
                    left: None,
                    // Other actions ban elsewhere, where this list does not look.
                    in_force: !ours,
                });
            }
        }
    }
    out.sort_by(|a, b| (&a.jail, a.net).cmp(&(&b.jail, b.net)));
    out.dedup();
    out
}

/// The set of a kernel's table that a jail's bans of a family should be in.
pub(crate) fn set_of<'h>(host: &'h Host, jail: &str, ipv6: bool) -> Option<&'h reach::ir::NftSet> {
    let name = format!("{}{}", set_name(jail), if ipv6 { 6 } else { 4 });
    host.rules
        .table(reach::ir::Family::Inet, TABLE, reach::Backend::Nft)?
        .set(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn check(address: &str, bits: u8, set: &str, element: &str) {
        let (name, found) = place("sshd", address.parse().unwrap(), bits);
        assert_eq!((name.as_str(), found.to_string().as_str()), (set, element));
    }

    #[test]
    fn the_element_of_an_address() {
        check("192.0.2.1", 64, "sshd4", "192.0.2.1");
        check("::ffff:192.0.2.1", 128, "sshd4", "192.0.2.1");
        check("2001:db8::5:6", 128, "sshd6", "2001:db8::5:6");
        check("2001:db8:1:2:3::6", 64, "sshd6", "2001:db8:1:2::");
        check("2001:db8:1:2:3::6", 48, "sshd6", "2001:db8:1::");
    }

    #[test]
    fn each_jail_has_sets_and_both_ways_are_shut() {
        let mut bans = Policy::builtin().bans;
        assert_eq!(set_names(&bans), ["sshd", "recidive", "hand"]);
        bans.ipv6_prefix = 64;
        let (arriving, departing) = (arriving(&bans), departing(&bans));
        assert!(arriving.contains(&"ip saddr @sshd4 drop".to_owned()));
        assert!(
            arriving.contains(&"ip6 saddr & ffff:ffff:ffff:ffff:: @sshd6 drop".to_owned()),
            "{arriving:?}"
        );
        assert!(departing.contains(&"ip daddr @hand4 drop".to_owned()));
        assert_eq!(arriving.len(), departing.len());
    }
}
