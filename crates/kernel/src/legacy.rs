//! iptables-legacy: x_tables' own tables, by getsockopt (include/uapi/linux/netfilter_ipv4/ip_tables.h).
//!
//! Asking for a table that is not there makes the kernel load and register it, so the kernel's
//! list of tables is read first and only tables on it are asked for.

use crate::xt::{self, Blob, Place, SetNames};
use crate::{Error, sockopt};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use reach::ir::{Base, Counters, Table};
use reach::{Backend, Ruleset};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;

const SO_GET_INFO: libc::c_int = 64;
const SO_GET_ENTRIES: libc::c_int = 65;
const NAME: usize = 32;
const INFO: usize = 84;
/// struct ipt_get_entries: the name, the size, and padding before the entries.
const ENTRIES: usize = 40;
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Largest table that is taken, in bytes.
const MAX_SIZE: usize = 1 << 30;
const ATTEMPTS: u32 = 8;

/// Adds the legacy tables of both families.
pub(crate) fn read(sets: &SetNames, into: &mut Ruleset) -> Result<(), Error> {
    for ipv6 in [false, true] {
        for name in table_names(ipv6)? {
            if let Some(table) = table(&name, ipv6, sets)? {
                into.tables.push(table);
            }
        }
    }
    Ok(())
}

/// The tables that exist in this network namespace. No file: no legacy tables in this kernel.
fn table_names(ipv6: bool) -> Result<Vec<String>, Error> {
    let file = if ipv6 {
        "ip6_tables_names"
    } else {
        "ip_tables_names"
    };
    let path = format!("/proc/thread-self/net/{file}");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::File { path, source }),
    }
}

fn get(fd: &OwnedFd, ipv6: bool, option: libc::c_int, buffer: &mut [u8]) -> Result<usize, Errno> {
    let level = if ipv6 {
        libc::IPPROTO_IPV6
    } else {
        libc::IPPROTO_IP
    };
    sockopt::get(fd, level, option, buffer)
}

fn table(name: &str, ipv6: bool, sets: &SetNames) -> Result<Option<Table>, Error> {
    let (info, entries) = match raw(name, ipv6) {
        Ok(raw) => raw,
        // Gone meanwhile.
        Err(Error::Kernel {
            errno: Errno::ENOENT,
            ..
        }) => return Ok(None),
        Err(e) => return Err(e),
    };
    match decode(name, &info, &entries, ipv6, sets) {
        Some(table) => Ok(Some(table)),
        None => Err(Error::malformed(
            &format!("iptables-legacy table {name}"),
            "entries",
        )),
    }
}

/// struct ipt_getinfo and the entries of a table that is known to exist.
pub(crate) fn raw(name: &str, ipv6: bool) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let what = format!("iptables-legacy table {name}");
    let err = |e| Error::kernel(&what, e);
    if name.len() >= NAME {
        return Err(Error::malformed(&what, "name"));
    }
    let family = if ipv6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Raw, flags, SockProtocol::Raw).map_err(err)?;
    for _ in 0..ATTEMPTS {
        let mut info = vec![0u8; INFO];
        info[..name.len()].copy_from_slice(name.as_bytes());
        get(&fd, ipv6, SO_GET_INFO, &mut info).map_err(err)?;
        let size = Blob(&info).u32(80).map_or(0, |s| s as usize);
        if size > MAX_SIZE {
            return Err(Error::malformed(&what, "table beyond 1 GiB"));
        }
        let mut entries = vec![0u8; ENTRIES + size];
        entries[..name.len()].copy_from_slice(name.as_bytes());
        entries[NAME..NAME + 4].copy_from_slice(&(size as u32).to_ne_bytes());
        match get(&fd, ipv6, SO_GET_ENTRIES, &mut entries) {
            Ok(_) => return Ok((info, entries.split_off(ENTRIES))),
            // The table was replaced by one of another size.
            Err(Errno::EAGAIN) => {}
            Err(e) => return Err(err(e)),
        }
    }
    Err(Error::Unstable {
        what,
        attempts: ATTEMPTS,
    })
}

/// Where the parts of struct ipt_entry and ip6t_entry lie.
struct Layout {
    ipv6: bool,
    address: usize,
    interfaces: usize,
    proto: usize,
    flags: usize,
    inverted: usize,
    offsets: usize,
    counters: usize,
    matches: usize,
}

const IPV4: Layout = Layout {
    ipv6: false,
    address: 4,
    interfaces: 16,
    proto: 80,
    flags: 82,
    inverted: 83,
    offsets: 88,
    counters: 96,
    matches: 112,
};

const IPV6: Layout = Layout {
    ipv6: true,
    address: 16,
    interfaces: 64,
    proto: 128,
    flags: 131,
    inverted: 132,
    offsets: 140,
    counters: 152,
    matches: 168,
};

/// A chain while its rules are collected: name, first rule's offset, rules.
struct Chain {
    name: String,
    policy: Option<&'static str>,
    start: usize,
    rules: Vec<(String, Counters)>,
}

struct Entry<'a> {
    at: usize,
    bytes: &'a [u8],
    /// Where the target begins in it.
    target: usize,
}

/// Pure: the table out of what the kernel handed over. `None` when it does not hang together.
pub(crate) fn decode(
    name: &str,
    info: &[u8],
    entries: &[u8],
    ipv6: bool,
    sets: &SetNames,
) -> Option<Table> {
    let layout = if ipv6 { IPV6 } else { IPV4 };
    let info = Blob(info);
    let valid = info.u32(32)?;
    let hooks: Vec<(usize, usize, &str)> = (0..5)
        .filter(|h| valid >> h & 1 != 0)
        .map(|h| {
            let entry = info.u32(36 + 4 * h)? as usize;
            let underflow = info.u32(56 + 4 * h)? as usize;
            Some((entry, underflow, HOOKS[h]))
        })
        .collect::<Option<_>>()?;

    let list = split(entries, &layout)?;
    let starts = chain_starts(&list, &hooks, entries.len())?;
    let place = Place { ipv6, sets };
    let mut chains: Vec<Chain> = Vec::new();
    for entry in &list {
        let here = |(start, _): &&(usize, String)| *start == entry.at;
        if let Some((start, name)) = starts.iter().find(here) {
            chains.push(Chain {
                name: name.clone(),
                policy: None,
                start: *start,
                rules: Vec::new(),
            });
        }
        if target_name(entry)? == "ERROR" {
            continue;
        }
        let chain = chains.last_mut()?;
        let underflow = hooks
            .iter()
            .any(|(start, underflow, _)| *start == chain.start && *underflow == entry.at);
        if underflow {
            chain.policy = Some(match verdict(entry)? {
                -1 => "DROP",
                _ => "ACCEPT",
            });
            continue;
        }
        let blob = Blob(entry.bytes);
        let counters = Counters {
            packets: blob.u64(layout.counters)?,
            bytes: blob.u64(layout.counters + 8)?,
        };
        let line = rule(&chain.name, entry, &layout, place, &starts)?;
        chain.rules.push((line, counters));
    }
    // The last rule of a user's chain is the return that x_tables puts there.
    for chain in chains.iter_mut().filter(|c| c.policy.is_none()) {
        chain.rules.pop()?;
    }

    let mut text = format!("*{name}\n");
    for chain in &chains {
        let word = xt::chain_word(&chain.name)?;
        text += &format!(":{word} {} [0:0]\n", chain.policy.unwrap_or("-"));
    }
    for (line, _) in chains.iter().flat_map(|c| &c.rules) {
        text += line;
        text.push('\n');
    }
    text += "COMMIT\n";
    let mut table = crate::nft::parsed(&text, ipv6, Backend::IptablesLegacy)?;
    if table.chains.len() != chains.len() {
        return None;
    }
    for (out, raw) in table.chains.iter_mut().zip(&chains) {
        if out.rules.len() != raw.rules.len() || out.name != raw.name {
            return None;
        }
        // A built-in chain that the parser does not know would be left out of every hook.
        if raw.policy.is_some() && out.base.is_none() {
            out.base = Base::xtables("filter", &raw.name);
        }
        for (rule, (_, counters)) in out.rules.iter_mut().zip(&raw.rules) {
            rule.counters = Some(*counters);
            rule.line = 0;
        }
    }
    Some(table)
}

fn split<'a>(entries: &'a [u8], layout: &Layout) -> Option<Vec<Entry<'a>>> {
    let mut list = Vec::new();
    let mut at = 0;
    while at < entries.len() {
        let rest = Blob(&entries[at..]);
        let target = usize::from(rest.u16(layout.offsets)?);
        let next = usize::from(rest.u16(layout.offsets + 2)?);
        if target < layout.matches || next < target + 32 {
            return None;
        }
        list.push(Entry {
            at,
            bytes: rest.bytes(0, next)?,
            target,
        });
        at += next;
    }
    Some(list)
}

fn target_name(entry: &Entry<'_>) -> Option<String> {
    Blob(entry.bytes).text(entry.target + 2, 29)
}

fn verdict(entry: &Entry<'_>) -> Option<i32> {
    Some(Blob(entry.bytes).u32(entry.target + 32)? as i32)
}

/// First rule's offset and name of every chain. An ERROR entry names the chain behind it; the
/// last one ends the table.
fn chain_starts(
    list: &[Entry<'_>],
    hooks: &[(usize, usize, &str)],
    size: usize,
) -> Option<Vec<(usize, String)>> {
    let mut starts: Vec<(usize, String)> = hooks
        .iter()
        .map(|(start, _, name)| (*start, (*name).to_owned()))
        .collect();
    for entry in list {
        let next = entry.at + entry.bytes.len();
        if target_name(entry)? == "ERROR" && next < size {
            let name = Blob(entry.bytes).text(entry.target + 32, 30)?;
            starts.push((next, name));
        }
    }
    Some(starts)
}

fn rule(
    chain: &str,
    entry: &Entry<'_>,
    layout: &Layout,
    place: Place<'_>,
    starts: &[(usize, String)],
) -> Option<String> {
    let b = Blob(entry.bytes);
    let (flags, inverted) = (b.u8(layout.flags)?, b.u8(layout.inverted)?);
    let not = |bit: u8| if inverted & bit != 0 { " !" } else { "" };
    let mut out = format!("-A {}", xt::chain_word(chain)?);
    let width = layout.address;
    for (i, option, bit) in [(0, "-s", 0x08), (1, "-d", 0x10)] {
        let address = b.inet(i * width, layout.ipv6)?;
        let mask = b.bytes((2 + i) * width, width)?;
        if mask.iter().any(|m| *m != 0) || inverted & bit != 0 {
            let full = if layout.ipv6 { "/128" } else { "/32" };
            let mask = match xt::mask_text(mask) {
                m if m.is_empty() => full.to_owned(),
                m => m,
            };
            out += &format!("{} {option} {address}{mask}", not(bit));
        }
    }
    for (i, option, bit) in [(0, "-i", 0x01), (1, "-o", 0x02)] {
        let name = b.bytes(layout.interfaces + 16 * i, 16)?;
        let mask = b.bytes(layout.interfaces + 32 + 16 * i, 16)?;
        if mask.iter().any(|m| *m != 0) || inverted & bit != 0 {
            let name = xt::interface(name, mask)?;
            out += &format!("{} {option} {}", not(bit), xt::name_word(&name));
        }
    }
    let proto = b.u16(layout.proto)?;
    if proto != 0 {
        out += &format!("{} -p {}", not(0x40), crate::nft::protocol(proto.into()));
    }
    if layout.ipv6 {
        // A match on the traffic class, which no ip6tables ever wrote.
        if flags & 2 != 0 {
            out += " --traffic-class";
        }
    } else if flags & 1 != 0 || inverted & 0x20 != 0 {
        out += &format!("{} -f", not(0x20));
    }
    let mut at = layout.matches;
    while at < entry.target {
        let size = usize::from(b.u16(at)?);
        let m = Blob(b.bytes(at, size).filter(|_| size >= 32)?);
        let info = m.0.get(32..)?;
        out += &xt::match_text(&m.text(2, 29)?, m.u8(31)?.into(), info, place);
        at += size;
    }
    out += &target(entry, flags, layout, place, starts)?;
    Some(out)
}

fn target(
    entry: &Entry<'_>,
    flags: u8,
    layout: &Layout,
    place: Place<'_>,
    starts: &[(usize, String)],
) -> Option<String> {
    let name = target_name(entry)?;
    if !name.is_empty() {
        let b = Blob(entry.bytes);
        let revision = b.u8(entry.target + 31)?.into();
        let info = entry.bytes.get(entry.target + 32..)?;
        return Some(xt::target_text(&name, revision, info, place));
    }
    let verdict = verdict(entry)?;
    Some(match verdict {
        -1 => " -j DROP".to_owned(),
        -2 => " -j ACCEPT".to_owned(),
        -4 => " -j QUEUE".to_owned(),
        -5 => " -j RETURN".to_owned(),
        0.. => {
            let to = verdict as usize;
            // A rule without a target goes on with the next.
            if to == entry.at + entry.bytes.len() {
                return Some(String::new());
            }
            let goto = if layout.ipv6 { 4 } else { 2 };
            let option = if flags & goto != 0 { "-g" } else { "-j" };
            let (_, name) = starts.iter().find(|(start, _)| *start == to)?;
            format!(" {option} {}", xt::chain_word(name)?)
        }
        _ => " -j UNKNOWN --info verdict".to_owned(),
    })
}
