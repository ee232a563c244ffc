//! nf_tables over netlink (include/uapi/linux/netfilter/nf_tables.h).
//!
//! Tables, chains, sets with their elements, rules chain by chain, objects and flowtables, all of
//! one generation of the ruleset. Rules are asked for by chain: the kernel walks a table from its
//! beginning for every datagram of a dump, so asking by table is quadratic in all its rules.

mod iptables;
mod keys;
mod print;
mod rule;
mod set;
mod value;

pub(crate) use iptables::protocol;
pub(crate) use value::{Links, hex};

use crate::Error;
use crate::netlink::{Attr, Attrs, Message, Netlink, put, u16_be};
use crate::xt::SetNames;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use reach::ir::{
    Base, Chain, ChainKind, Family, NamePattern, NfHook, Object, Policy, Rule, RuleVerdict, Table,
};
use reach::{Backend, Ruleset};
use set::RawSet;
use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, SyncSender};

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
/// Most rules that are taken from the kernel.
const MAX_RULES: usize = 4_000_000;

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
    let mut nl = Netlink::open(SockProtocol::NetlinkNetFilter, "nf_tables")?;
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
    sets: HashMap<String, RawSet>,
    /// Names of its sets in the kernel's order.
    set_order: Vec<String>,
}

struct RawRule {
    handle: Option<u64>,
    comment: Option<String>,
    decoded: rule::Decoded,
    /// How iptables spells it, where the table may be one of its own.
    line: Option<String>,
}

/// The rules of a table, chain by chain.
type RawRules = Vec<Vec<RawRule>>;

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
    let rules = all_rules(nl, &tables, links, ipsets)?;
    for rules in rules.iter().flatten() {
        stats.rules += rules.len();
        stats.expressions += rules.iter().map(|r| r.decoded.expressions).sum::<usize>();
    }
    let tables = tables.into_iter().zip(rules);
    let tables = tables.map(|(t, rules)| finish(t, rules, links)).collect();
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

/// A chain as dumped: family, table, name, chain.
type DumpedChain = (u8, Vec<u8>, Vec<u8>, Chain);

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
        Some((number, table, name, chain))
    })?;
    for (number, table, name, chain) in found {
        if let Some(t) = find(tables, number, &table) {
            t.chains.push(name);
            t.table.chains.push(chain);
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

/// What goes from the thread that asks to the one that decodes.
enum Job {
    /// Rules of this chain of this table follow.
    Chain(usize, usize),
    /// Messages, each with its length in 4 bytes before it.
    Rules(Vec<u8>),
    /// The chain is complete with so many rules; what came before them was from a dump that had
    /// to be repeated.
    Done(usize),
}

/// Bytes of messages that are handed over at once.
const BATCH: usize = 64 * 1024;

/// Asks for the rules of every chain. They are decoded while the kernel works on the next: most
/// of the time goes into its walks over long chains.
fn all_rules(
    nl: &mut Netlink,
    tables: &[RawTable],
    links: &Links,
    ipsets: &SetNames,
) -> Result<Vec<RawRules>, Error> {
    let (send, receive) = mpsc::sync_channel::<Job>(64);
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || decode_all(receive, tables, links, ipsets));
        let mut total = 0;
        for (t, table) in tables.iter().enumerate() {
            for at in 0..table.chains.len() {
                // The worker ends only when this end closes.
                let _ = send.send(Job::Chain(t, at));
                let count = chain_rules(nl, table, at, &send)?;
                let _ = send.send(Job::Done(count));
                total += count;
                if total > MAX_RULES {
                    return Err(Error::TooMuch {
                        what: "nf_tables rules".to_owned(),
                        limit: MAX_RULES,
                    });
                }
            }
        }
        drop(send);
        worker
            .join()
            .map_err(|_| Error::malformed("nf_tables rules", "decoder ended early"))
    })
}

/// Sends the rules of one chain to the decoder; their number.
fn chain_rules(
    nl: &mut Netlink,
    table: &RawTable,
    at: usize,
    send: &SyncSender<Job>,
) -> Result<usize, Error> {
    let mut payload = request(table.number);
    put_text(&mut payload, 1, &table.name);
    put_text(&mut payload, 2, &table.chains[at]);
    let mut batch = Vec::new();
    let kind = SUBSYSTEM << 8 | GETRULE;
    let found = nl.dump("nf_tables rules", kind, &payload, |m: Message<'_>| {
        let a = Attrs(m.body.get(4..)?);
        // The kernel filters; a kernel that does not would mix the chains.
        if name_slice(a.find(2)?) != table.chains[at] || name_slice(a.find(1)?) != table.name {
            return None;
        }
        batch.extend((a.0.len() as u32).to_ne_bytes());
        batch.extend(a.0);
        if batch.len() > BATCH {
            let _ = send.send(Job::Rules(std::mem::take(&mut batch)));
        }
        Some(())
    })?;
    let _ = send.send(Job::Rules(batch));
    Ok(found.len())
}

fn decode_all(
    jobs: Receiver<Job>,
    tables: &[RawTable],
    links: &Links,
    ipsets: &SetNames,
) -> Vec<RawRules> {
    let mut out: Vec<RawRules> = tables.iter().map(|_| Vec::new()).collect();
    let mut here = (0, 0);
    let mut rules = Vec::new();
    for job in jobs {
        match job {
            Job::Chain(table, chain) => here = (table, chain),
            Job::Rules(batch) => {
                let Some(table) = tables.get(here.0) else {
                    continue;
                };
                let scope = rule::Scope {
                    family: table.table.family,
                    sets: &table.sets,
                    links,
                    ipsets,
                };
                let chain = table.table.chains.get(here.1);
                let chain = chain.filter(|_| table.maybe_iptables()).map(|c| &*c.name);
                let mut rest = &batch[..];
                while let Some((head, tail)) = rest.split_at_checked(4) {
                    let len = crate::netlink::u32_ne(head) as usize;
                    let Some((message, tail)) = tail.split_at_checked(len) else {
                        break;
                    };
                    rules.push(raw_rule(Attrs(message), &scope, chain));
                    rest = tail;
                }
            }
            Job::Done(count) => {
                let stale = rules.len().saturating_sub(count);
                let kept = rules.split_off(stale);
                rules.clear();
                if let Some(table) = out.get_mut(here.0) {
                    table.push(kept);
                }
            }
        }
    }
    out
}

fn raw_rule(a: Attrs<'_>, scope: &rule::Scope<'_>, chain: Option<&str>) -> RawRule {
    let empty = Attr { kind: 4, data: &[] };
    let mut decoded = rule::decode(a.find(4).unwrap_or(empty), scope);
    if !a.intact() {
        let text = "[malformed rule]".to_owned();
        decoded
            .statements
            .insert(0, reach::ir::Statement::Unknown { text });
    }
    let comment = comment(a.find(7), 0);
    RawRule {
        handle: a.find(3).and_then(|h| h.be64()),
        line: chain.and_then(|c| iptables::rule_line(c, &decoded, comment.as_deref())),
        comment,
        decoded,
    }
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

fn finish(mut raw: RawTable, rules: RawRules, links: &Links) -> Table {
    if let Some(table) = as_iptables(&raw, &rules) {
        return table;
    }
    for name in &raw.set_order {
        if let Some(set) = raw.sets.get(name)
            && !set.anonymous()
        {
            raw.table.sets.push(set.decode(links));
        }
    }
    for (chain, rules) in raw.table.chains.iter_mut().zip(rules) {
        let ipv6 = raw.table.family == Family::Ip6;
        chain.rules = rules.into_iter().map(|r| native_rule(r, ipv6)).collect();
    }
    raw.table
}

fn native_rule(mut raw: RawRule, ipv6: bool) -> Rule {
    raw.decoded.expand(ipv6);
    let comment = raw.comment.or(raw.decoded.comment);
    Rule {
        handle: raw.handle,
        text: print::rule(&raw.decoded.statements, comment.as_deref()),
        comment,
        line: 0,
        counters: raw.decoded.counters,
        statements: raw.decoded.statements,
    }
}

impl RawTable {
    /// Whether its name and family are of a table that iptables-nft writes.
    fn maybe_iptables(&self) -> bool {
        let known = ["filter", "nat", "mangle", "raw", "security"];
        matches!(self.table.family, Family::Ip | Family::Ip6)
            && known.contains(&self.table.name.as_str())
    }
}

/// The table as iptables-nft wrote it; `None` when it did not.
fn as_iptables(raw: &RawTable, rules: &RawRules) -> Option<Table> {
    let table = &raw.table;
    let ipv6 = table.family == Family::Ip6;
    if !raw.maybe_iptables() || table.dormant || table.chains.is_empty() {
        return None;
    }
    if raw.sets.values().any(|s| !s.anonymous()) || !table.objects.is_empty() {
        return None;
    }
    let mut text = format!("*{}\n", table.name);
    for chain in &table.chains {
        let name = crate::xt::chain_word(&chain.name)?;
        let expected = Base::xtables(&table.name, &chain.name);
        let same = match (&chain.base, &expected) {
            (None, None) => true,
            (Some(have), Some(want)) => {
                (have.kind, have.hook, have.priority) == (want.kind, want.hook, want.priority)
            }
            _ => false,
        };
        if !same {
            return None;
        }
        let policy = match chain.base.as_ref().map(|b| b.policy) {
            None => "-",
            Some(Policy::Accept) => "ACCEPT",
            Some(Policy::Drop) => "DROP",
        };
        text += &format!(":{name} {policy} [0:0]\n");
    }
    for rule in rules.iter().flatten() {
        text += rule.line.as_deref()?;
        text.push('\n');
    }
    text += "COMMIT\n";
    let mut out = parsed(&text, ipv6, Backend::IptablesNft)?;
    // Nothing may have been lost on the way through the text.
    let shape = |t: &Table| -> Vec<(String, usize)> {
        let chains = t.chains.iter();
        chains.map(|c| (c.name.clone(), c.rules.len())).collect()
    };
    let want: Vec<(String, usize)> = table
        .chains
        .iter()
        .zip(rules)
        .map(|(c, rules)| (c.name.clone(), rules.len()))
        .collect();
    if shape(&out) != want {
        return None;
    }
    for (chain, rules) in out.chains.iter_mut().zip(rules) {
        for (rule, raw) in chain.rules.iter_mut().zip(rules) {
            rule.handle = raw.handle;
            rule.counters = raw.decoded.counters;
            rule.line = 0;
        }
    }
    out.comment = table.comment.clone();
    // As iptables-save lists them: built-in chains in the order of the hooks, then the others.
    out.chains.sort_by_cached_key(|c| {
        (
            c.base.as_ref().map_or(u8::MAX, |b| b.hook as u8),
            c.name.clone(),
        )
    });
    Some(out)
}

/// The one table of a dump in iptables-save's words.
pub(crate) fn parsed(text: &str, ipv6: bool, backend: Backend) -> Option<Table> {
    let (ruleset, _) = reach::parse::iptables_save(text, ipv6, backend);
    match <[Table; 1]>::try_from(ruleset.tables) {
        Ok([table]) => Some(table),
        Err(_) => None,
    }
}

#[cfg(test)]
mod fuzz;
