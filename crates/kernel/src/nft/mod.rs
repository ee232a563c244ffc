//! nf_tables over netlink (include/uapi/linux/netfilter/nf_tables.h).
//!
//! Tables, chains, sets with their elements, rules, objects and flowtables, all of one generation
//! of the ruleset. Rules are asked for by chain: the kernel walks a table from its beginning for
//! every datagram of a dump, so asking by table is quadratic in all its rules. Only a table of few
//! rules, which take a handful of datagrams, is asked for at once.

mod finish;
mod iptables;
mod keys;
mod print;
mod rule;
mod rules;
mod set;
mod value;

pub(crate) use finish::parsed;
pub(crate) use iptables::protocol;
pub(crate) use value::{Links, hex};

use crate::Error;
use crate::netlink::{Attr, Attrs, Message, Netlink, put, u16_be};
use crate::xt::SetNames;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use reach::ir::{
    Base, Chain, ChainKind, Family, NamePattern, NfHook, Object, Policy, RuleVerdict, Table,
};
use reach::{Backend, Ruleset};
use set::RawSet;
use std::collections::HashMap;

const SUBSYSTEM: u16 = 10;
const GETTABLE: u16 = 1;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;
const GETSET: u16 = 10;
const GETSETELEM: u16 = 13;
const GETGEN: u16 = 16;
const GETOBJ: u16 = 19;
const GETFLOWTABLE: u16 = 23;

/// How often the whole ruleset is read anew because it changed meanwhile.
const ATTEMPTS: u32 = 8;

/// What was counted while reading; for tests and figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Rules.
    pub rules: usize,
    /// Expressions of these rules.
    pub expressions: usize,
    /// Set elements, ends of intervals included.
    pub elements: usize,
}

/// One generation of nf_tables.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub ruleset: Ruleset,
    pub stats: Stats,
}

/// Reads the ruleset of the calling thread's network namespace.
pub(crate) fn read(links: &Links, ipsets: &SetNames) -> Result<Reading, Error> {
    let mut nl = socket()?;
    for _ in 0..ATTEMPTS {
        let before = generation(&mut nl)?;
        match snapshot(&mut nl, links, ipsets) {
            Ok(reading) if generation(&mut nl)? == before => return Ok(reading),
            // Changed meanwhile; so has, most likely, what is not there any more.
            Ok(_)
            | Err(Error::Kernel {
                errno: Errno::ENOENT,
                ..
            }) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Error::Unstable {
        what: "nf_tables".to_owned(),
        attempts: ATTEMPTS,
    })
}

fn socket() -> Result<Netlink, Error> {
    Netlink::open(SockProtocol::NetlinkNetFilter, "nf_tables")
}

/// struct nfgenmsg.
fn request(family: u8) -> Vec<u8> {
    vec![family, 0, 0, 0]
}

fn put_text(request: &mut Vec<u8>, kind: u16, text: &[u8]) {
    let mut data = text.to_vec();
    data.push(0);
    put(request, kind, &data);
}

fn generation(nl: &mut Netlink) -> Result<Option<u32>, Error> {
    let kind = SUBSYSTEM << 8 | GETGEN;
    nl.get("nf_tables generation", kind, &request(0), |m| {
        Attrs(m.body.get(4..)?).find(1)?.be32()
    })
}

/// A table of the kernel while it is put together.
struct RawTable {
    number: u8,
    name: Vec<u8>,
    table: Table,
    chains: Vec<Vec<u8>>,
    /// Rules of its chains, and jumps to them: no fewer than its rules.
    uses: u64,
    sets: HashMap<String, RawSet>,
    /// Names of its sets in the kernel's order.
    set_order: Vec<String>,
}

fn family(number: u8) -> Option<Family> {
    Some(match number {
        1 => Family::Inet,
        2 => Family::Ip,
        3 => Family::Arp,
        5 => Family::Netdev,
        7 => Family::Bridge,
        10 => Family::Ip6,
        _ => return None,
    })
}

/// Name bytes without the closing NUL: names need not be UTF-8, and are used to ask again.
fn name_bytes(a: Attr<'_>) -> Vec<u8> {
    name_slice(a).to_vec()
}

fn name_slice(a: Attr<'_>) -> &[u8] {
    let end = a.data.iter().position(|b| *b == 0).unwrap_or(a.data.len());
    &a.data[..end]
}

fn snapshot(nl: &mut Netlink, links: &Links, ipsets: &SetNames) -> Result<Reading, Error> {
    let mut tables = tables(nl)?;
    let mut stats = Stats::default();
    chains(nl, &mut tables)?;
    sets(nl, &mut tables, &mut stats)?;
    objects(nl, &mut tables)?;
    let rules = rules::read(nl, &tables, links, ipsets)?;
    for rules in rules.iter().flatten() {
        stats.rules += rules.len();
        stats.expressions += rules.iter().map(|r| r.decoded.expressions).sum::<usize>();
    }
    let tables = tables.into_iter().zip(rules);
    let tables = tables
        .map(|(t, rules)| finish::finish(t, rules, links))
        .collect();
    Ok(Reading {
        ruleset: Ruleset {
            tables,
            ..Ruleset::default()
        },
        stats,
    })
}

/// Dumps one kind of thing of all families; `parse` gets the family and the attributes.
fn dump<T>(
    nl: &mut Netlink,
    what: &str,
    command: u16,
    payload: &[u8],
    mut parse: impl FnMut(u8, Attrs<'_>) -> Option<T>,
) -> Result<Vec<T>, Error> {
    nl.dump(what, SUBSYSTEM << 8 | command, payload, |m: Message<'_>| {
        parse(*m.body.first()?, Attrs(m.body.get(4..)?))
    })
}

fn comment(userdata: Option<Attr<'_>>, kind: u8) -> Option<String> {
    set::user_values(userdata?.data)
        .into_iter()
        .find(|(k, _)| *k == kind)
        .map(|(_, value)| crate::netlink::text(value))
}

fn tables(nl: &mut Netlink) -> Result<Vec<RawTable>, Error> {
    let what = "nf_tables tables";
    let found = dump(nl, what, GETTABLE, &request(0), |number, a| {
        let name = name_bytes(a.find(1)?);
        let flags = a.find(2).and_then(|f| f.be32()).unwrap_or(0);
        let text = String::from_utf8_lossy(&name).into_owned();
        let mut table = Table::new(family(number)?, text, Backend::Nft);
        table.dormant = flags & 1 != 0;
        table.comment = comment(a.find(6), 0);
        Some(RawTable {
            number,
            name,
            table,
            chains: Vec::new(),
            uses: 0,
            sets: HashMap::new(),
            set_order: Vec::new(),
        })
    })?;
    Ok(found)
}

fn find<'t>(tables: &'t mut [RawTable], number: u8, name: &[u8]) -> Option<&'t mut RawTable> {
    tables
        .iter_mut()
        .find(|t| t.number == number && t.name == name)
}

/// A chain as dumped.
struct DumpedChain {
    family: u8,
    table: Vec<u8>,
    name: Vec<u8>,
    uses: u32,
    chain: Chain,
}

fn chains(nl: &mut Netlink, tables: &mut [RawTable]) -> Result<(), Error> {
    let what = "nf_tables chains";
    let found: Vec<DumpedChain> = dump(nl, what, GETCHAIN, &request(0), |number, a| {
        let table = name_bytes(a.find(1)?);
        let name = name_bytes(a.find(3)?);
        let text = String::from_utf8_lossy(&name).into_owned();
        let base = a.find(4).and_then(|hook| base(family(number)?, hook, a));
        let mut chain = Chain::new(text, base);
        chain.comment = comment(a.find(12), 0);
        if a.find(4).is_some() && chain.base.is_none() {
            // A hook that is not known: whatever hangs there may do anything, but not to the
            // packets that the known hooks see. The chain is kept as one that nothing calls.
            chain.comment = Some("hooked in a way that is not known".to_owned());
        }
        Some(DumpedChain {
            family: number,
            table,
            name,
            // NFTA_CHAIN_USE.
            uses: a.find(6).and_then(|uses| uses.be32()).unwrap_or(u32::MAX),
            chain,
        })
    })?;
    for found in found {
        if let Some(t) = find(tables, found.family, &found.table) {
            t.chains.push(found.name);
            t.uses += u64::from(found.uses);
            t.table.chains.push(found.chain);
        }
    }
    Ok(())
}

fn base(family: Family, hook: Attr<'_>, chain: Attrs<'_>) -> Option<Base> {
    use NfHook::*;
    let inside = hook.nested();
    let number = inside.find(1)?.be32()?;
    let hook = match (family, number) {
        (Family::Netdev, 0) => Ingress,
        (Family::Netdev, 1) => Egress,
        (Family::Arp, 0) => Input,
        (Family::Arp, 1) => Output,
        (Family::Arp, 2) => Forward,
        (Family::Arp | Family::Netdev, _) => return None,
        (_, 0) => Prerouting,
        (_, 1) => Input,
        (_, 2) => Forward,
        (_, 3) => Output,
        (_, 4) => Postrouting,
        (Family::Inet, 5) => Ingress,
        _ => return None,
    };
    let mut devices = Vec::new();
    if let Some(device) = inside.find(3) {
        devices.push(NamePattern::exact(device.text()));
    }
    for a in inside.find(4).map_or(Attrs(&[]), |l| l.nested()) {
        devices.push(NamePattern {
            name: a.text(),
            // NFTA_DEVICE_PREFIX.
            wildcard: a.kind == 2,
        });
    }
    devices.sort();
    devices.dedup();
    let kind = match chain.find(7).map(|t| t.text()).as_deref() {
        Some("nat") => ChainKind::Nat,
        Some("route") => ChainKind::Route,
        _ => ChainKind::Filter,
    };
    Some(Base {
        kind,
        hook,
        priority: inside.find(2)?.be32()? as i32,
        policy: match chain.find(5).and_then(|p| p.be32()) {
            Some(0) => Policy::Drop,
            _ => Policy::Accept,
        },
        devices,
    })
}

fn sets(nl: &mut Netlink, tables: &mut [RawTable], stats: &mut Stats) -> Result<(), Error> {
    let found = dump(nl, "nf_tables sets", GETSET, &request(0), |number, a| {
        let names = (name_bytes(a.find(1)?), name_bytes(a.find(2)?));
        Some((names, RawSet::parse(number, a)))
    })?;
    for ((table, name), raw) in found {
        let Some(mut raw) = raw else {
            // Without its shape it is as if it were not there: lookups in it become unknown.
            continue;
        };
        let Some(t) = find(tables, raw.family, &table) else {
            continue;
        };
        let mut payload = request(raw.family);
        put_text(&mut payload, 1, &table);
        put_text(&mut payload, 2, &name);
        let what = "nf_tables set elements";
        // Elements are taken into a fresh copy, since an interrupted dump starts anew.
        let parts: Vec<Vec<u8>> = dump(nl, what, GETSETELEM, &payload, |_, a| {
            a.find(3).map(|list| list.data.to_vec())
        })?;
        for part in parts {
            raw.take_elements(Attr {
                kind: 3,
                data: &part,
            });
        }
        stats.elements += raw.elements.len();
        t.set_order.push(raw.name.clone());
        t.sets.insert(raw.name.clone(), raw);
    }
    Ok(())
}

/// NFT_OBJECT_* as nft spells it.
pub(crate) fn object_kind(number: u32) -> &'static str {
    match number {
        1 => "counter",
        2 => "quota",
        3 => "ct helper",
        4 => "limit",
        5 => "ct count",
        6 => "tunnel",
        7 => "ct timeout",
        8 => "secmark",
        9 => "ct expectation",
        10 => "synproxy",
        _ => "object",
    }
}

fn objects(nl: &mut Netlink, tables: &mut [RawTable]) -> Result<(), Error> {
    let object = |number, a: Attrs<'_>, kind: String| {
        Some((
            number,
            name_bytes(a.find(1)?),
            Object {
                kind,
                name: a.find(2)?.text(),
                text: String::new(),
            },
        ))
    };
    let mut found = dump(nl, "nf_tables objects", GETOBJ, &request(0), |number, a| {
        let kind = object_kind(a.find(3)?.be32()?).to_owned();
        object(number, a, kind)
    })?;
    let what = "nf_tables flowtables";
    match dump(nl, what, GETFLOWTABLE, &request(0), |number, a| {
        object(number, a, "flowtable".to_owned())
    }) {
        Ok(more) => found.extend(more),
        // Kernels before 4.16 have none.
        Err(Error::Kernel {
            errno: Errno::EINVAL | Errno::EOPNOTSUPP,
            ..
        }) => {}
        Err(e) => return Err(e),
    }
    for (number, table, object) in found {
        if let Some(t) = find(tables, number, &table) {
            t.table.objects.push(object);
        }
    }
    Ok(())
}

/// NFTA_VERDICT_*.
pub(crate) fn verdict(a: Attrs<'_>) -> Option<RuleVerdict> {
    let code = a.find(1)?.be32()? as i32;
    let chain = || a.find(2).map(|c| c.text());
    Some(match code {
        -1 => RuleVerdict::Continue,
        // NFT_BREAK: on with the next rule.
        -2 => RuleVerdict::Continue,
        -3 => RuleVerdict::Jump { chain: chain()? },
        -4 => RuleVerdict::Goto { chain: chain()? },
        -5 => RuleVerdict::Return,
        // NF_* of include/uapi/linux/netfilter.h, the queue's number in the upper half.
        0 => RuleVerdict::Drop,
        1 => RuleVerdict::Accept,
        code if code & 0xff == 3 => RuleVerdict::Queue {
            num: u16_be(&code.to_be_bytes()),
            bypass: code & 0x8000 != 0,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod fuzz;
