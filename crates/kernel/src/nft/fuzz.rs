//! The decoders on damaged messages: no panic, no run-away memory, nothing left out in silence.

use super::*;
use crate::netlink::Attrs;
use reach::ir::{Match, Statement};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Messages of the kernel as they came: its length in 4 bytes, little-endian, before each.
const RULES: &[u8] = include_bytes!("../../tests/fixtures/rules.bin");
const SETS: &[u8] = include_bytes!("../../tests/fixtures/sets.bin");
const ELEMENTS: &[u8] = include_bytes!("../../tests/fixtures/elements.bin");
const LEGACY: &[u8] = include_bytes!("../../tests/fixtures/legacy.bin");
const IPSETS: &[u8] = include_bytes!("../../tests/fixtures/ipsets.bin");

/// Counts what each thread holds, so that run-away memory is noticed.
struct Counting;

/// Bytes that no thread may hold.
const MOST: isize = 1 << 30;

thread_local! {
    /// Bytes held now, and the most since [`peak_of`] began.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(change: isize) {
    // During the end of a thread nothing is counted.
    let _ = HELD.try_with(|held| {
        let now = held.get().0 + change;
        held.set((now, held.get().1.max(now)));
    });
}

// SAFETY: every call goes to the system's allocator with the very arguments; counting allocates
// nothing itself, since the thread's counter is made of constants and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        if HELD.try_with(|held| held.get().0 > MOST).unwrap_or(false) {
            // The test ends, rather than whatever else runs on the machine.
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise about `at` and `layout` is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What `f` gives, and the most memory in bytes that it held at once, what it gives included.
fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get().0;
    HELD.set((before, before));
    let out = f();
    (out, (HELD.get().1 - before) as usize)
}

/// Memory follows the input: at most this much for a message of so many bytes.
fn fits(peak: usize, input: usize) {
    assert!(peak <= 16 * 1024 + 256 * input, "{peak} bytes for {input}");
}

/// How many times as long as usual, for sweeps: `PORTCULLIS_FUZZ=100 cargo test --release -p
/// portcullis-kernel damaged`. Other numbers give other damage.
fn times() -> usize {
    let times = std::env::var("PORTCULLIS_FUZZ").ok();
    times.and_then(|n| n.parse().ok()).unwrap_or(1)
}

fn random(seed: u64) -> Random {
    Random(seed + 1_000 * (times() as u64 - 1))
}

pub(crate) fn messages(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    while let Some((head, rest)) = file.split_at_checked(4) {
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        out.push(rest[..len].to_vec());
        file = &rest[len..];
    }
    out
}

/// splitmix64: a failure can be repeated by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
    fn damage(&mut self, message: &[u8], other: &[u8]) -> Vec<u8> {
        let mut out = message.to_vec();
        for _ in 0..1 + self.below(4) {
            if out.is_empty() {
                break;
            }
            let at = self.below(out.len());
            match self.below(6) {
                0 => out[at] ^= 1 << self.below(8),
                1 => out[at] = self.next() as u8,
                2 => out.truncate(at),
                3 => {
                    let from = self.below(other.len());
                    out.extend_from_slice(&other[from..]);
                }
                4 => {
                    let value = [0, 1, 0x7f, 0x80, 0xff][self.below(5)];
                    let end = (at + 1 + self.below(8)).min(out.len());
                    out[at..end].fill(value);
                }
                _ => {
                    let from = self.below(other.len());
                    let len = self.below(32).min(other.len() - from);
                    let len = len.min(out.len() - at);
                    out[at..at + len].copy_from_slice(&other[from..from + len]);
                }
            }
        }
        out
    }
}

fn all_sets() -> HashMap<String, RawSet> {
    let mut sets: HashMap<String, RawSet> = messages(SETS)
        .iter()
        .filter_map(|m| RawSet::parse(m[0], Attrs(&m[4..])))
        .map(|s| (s.name.clone(), s))
        .collect();
    for m in messages(ELEMENTS) {
        let a = Attrs(&m[4..]);
        let name = a.find(2).unwrap().text();
        sets.get_mut(&name)
            .unwrap()
            .take_elements(a.find(3).unwrap());
    }
    sets
}

fn decode_rule(message: &[u8], sets: &HashMap<String, RawSet>) -> rule::Decoded {
    let (links, ipsets) = (Links::new(), SetNames::new());
    let number = message.first().copied().unwrap_or(0);
    let scope = rule::Scope {
        family: family(number).unwrap_or(Family::Inet),
        sets,
        links: &links,
        ipsets: &ipsets,
    };
    let a = Attrs(message.get(4..).unwrap_or(&[]));
    let empty = Attr { kind: 4, data: &[] };
    let mut decoded = rule::decode(a.find(4).unwrap_or(empty), &scope);
    decoded.expand(number == 10);
    decoded
}

fn unknowns(statements: &[Statement]) -> usize {
    let unknown = |s: &&Statement| {
        matches!(
            s,
            Statement::Unknown { .. } | Statement::Match(Match::Unknown { .. })
        )
    };
    statements.iter().filter(unknown).count()
}

#[test]
fn recorded_rules_are_understood_whole() {
    let sets = all_sets();
    let all = messages(RULES);
    assert!(all.len() > 150);
    for m in all {
        let mut decoded = decode_rule(&m, &sets);
        assert!(decoded.expressions > 0);
        let text = print::rule(&decoded.statements, None);
        // What an x_tables extension means is for the reader of its spelling to say.
        for e in decoded.extensions.iter().rev() {
            assert!(!e.text.contains("--info"), "{text}");
            decoded.statements.drain(e.at..e.at + e.len);
        }
        assert_eq!(unknowns(&decoded.statements), 0, "{text}");
    }
}

#[test]
fn damaged_rules_do_no_harm() {
    let sets = all_sets();
    let all = messages(RULES);
    let mut random = random(1);
    for round in 0..200 * times() {
        for (i, m) in all.iter().enumerate() {
            let other = &all[random.below(all.len())];
            let damaged = random.damage(m, other);
            let (decoded, peak) = peak_of(|| {
                let decoded = decode_rule(&damaged, &sets);
                let _ = print::rule(&decoded.statements, Some("x"));
                let _ = iptables::rule_line("INPUT", &decoded, None);
                decoded
            });
            fits(peak, damaged.len());
            assert!(decoded.statements.len() <= damaged.len(), "{round} {i}");
        }
    }
}

#[test]
fn a_key_that_loads_nothing_is_unknown() {
    let sets = all_sets();
    let mut found = 0;
    for mut m in messages(RULES) {
        let at = |m: &[u8], what: &[u8]| m.windows(what.len()).position(|w| w == what);
        // NFTA_PAYLOAD_LEN of a payload expression, and a lookup of what it loads after it.
        let Some(payload) = at(&m, b"payload\0") else {
            continue;
        };
        let (Some(len), Some(_)) = (
            at(&m[payload..], &[8, 0, 4, 0]),
            at(&m[payload..], b"lookup\0"),
        ) else {
            continue;
        };
        m[payload + len + 4..payload + len + 8].fill(0);
        let (decoded, peak) = peak_of(|| decode_rule(&m, &sets));
        fits(peak, m.len());
        assert!(unknowns(&decoded.statements) > 0);
        found += 1;
    }
    assert!(found > 5, "{found}");
}

#[test]
fn an_expression_that_does_not_exist_yet_is_unknown_not_nothing() {
    let sets = all_sets();
    for m in messages(RULES) {
        // The last byte of an expression's name makes it another name.
        for name in [
            &b"cmp\0"[..],
            b"lookup\0",
            b"match\0",
            b"immediate\0",
            b"range\0",
        ] {
            let Some(at) = m.windows(name.len()).position(|w| w == name) else {
                continue;
            };
            let mut damaged = m.clone();
            damaged[at + name.len() - 2] = b'?';
            let decoded = decode_rule(&damaged, &sets);
            let text = print::rule(&decoded.statements, None);
            assert!(unknowns(&decoded.statements) > 0, "{name:?}: {text}");
        }
    }
}

#[test]
fn damaged_sets_do_no_harm() {
    let (sets, elements) = (messages(SETS), messages(ELEMENTS));
    let links = Links::new();
    let mut random = random(2);
    for _ in 0..20_000 * times() {
        let s = &sets[random.below(sets.len())];
        let e = &elements[random.below(elements.len())];
        let s = random.damage(s, e);
        let e = random.damage(e, &s);
        let (decoded, peak) = peak_of(|| {
            let mut set = RawSet::parse(2, Attrs(s.get(4..).unwrap_or(&[])))?;
            if let Some(list) = Attrs(e.get(4..).unwrap_or(&[])).find(3) {
                set.take_elements(list);
            }
            Some(set.decode(&links))
        });
        fits(peak, s.len() + e.len());
        assert!(decoded.is_none_or(|d| d.elements.len() <= e.len()));
    }
}

#[test]
fn damaged_legacy_tables_do_no_harm() {
    let all = messages(LEGACY);
    let names = SetNames::new();
    let mut random = random(3);
    for pair in all.chunks(2) {
        let [info, entries] = pair else { panic!() };
        let ipv6 = info[0] == b'6';
        let info = &info[1..];
        let whole = crate::legacy::decode("filter", info, entries, ipv6, &names);
        assert!(whole.is_some_and(|t| t.chains.iter().any(|c| !c.rules.is_empty())));
        for _ in 0..7_500 * times() {
            let entries = random.damage(entries, info);
            let info = random.damage(info, &entries);
            let (_, peak) = peak_of(|| {
                crate::legacy::decode("filter", &info, &entries, ipv6, &names);
            });
            fits(peak, info.len() + entries.len());
        }
    }
}

#[test]
fn damaged_ipsets_do_no_harm() {
    let all = messages(IPSETS);
    let whole = crate::ipset::decode(all.iter().map(|m| &m[4..]));
    assert!(whole.0.iter().all(|s| !s.incomplete && !s.kind.is_empty()));
    let mut random = random(4);
    for _ in 0..15_000 * times() {
        let m = &all[random.below(all.len())];
        let other = &all[random.below(all.len())];
        let damaged = random.damage(m, other);
        let ((sets, _), peak) =
            peak_of(|| crate::ipset::decode([damaged.get(4..).unwrap_or(&[])].into_iter()));
        fits(peak, damaged.len());
        assert!(sets.iter().map(|s| s.entries.len()).sum::<usize>() <= damaged.len());
    }
}

/// Writes the fixtures anew, in a namespace of its own: `RECORD=1 cargo test -p portcullis-kernel
/// record -- --ignored`. The rules are those of tests/fixtures/rules.nft and rules.iptables.
#[test]
#[ignore = "writes the fixtures; needs root, nft, iptables and ipset"]
fn record() {
    if std::env::var_os("RECORD").is_none() {
        return;
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let run = |program: &str, args: &[&str], input: &str| {
        let file = std::fs::File::open(format!("{folder}/{input}")).unwrap();
        let status = std::process::Command::new(program)
            .args(args)
            .stdin(file)
            .status();
        assert!(status.unwrap().success(), "{program} {input}");
    };
    let write = |name: &str, parts: &[Vec<u8>]| {
        let mut out = Vec::new();
        for p in parts {
            out.extend((p.len() as u32).to_le_bytes());
            out.extend(p);
        }
        std::fs::write(format!("{folder}/{name}"), out).unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            run("/usr/sbin/nft", &["-f", "-"], "rules.nft");
            run("/usr/sbin/iptables-nft-restore", &[], "rules.iptables");
            run("/usr/sbin/ipset", &["restore"], "sets.ipset");
            let mut nl = Netlink::open(SockProtocol::NetlinkNetFilter, "record").unwrap();
            let mut all = |command: u16, payload: &[u8]| {
                nl.dump("record", SUBSYSTEM << 8 | command, payload, |m| {
                    Some(m.body.to_vec())
                })
                .unwrap()
            };
            write("rules.bin", &all(GETRULE, &request(0)));
            let sets = all(GETSET, &request(0));
            let mut elements = Vec::new();
            for s in &sets {
                let a = Attrs(&s[4..]);
                let mut payload = request(s[0]);
                put_text(&mut payload, 1, &name_bytes(a.find(1).unwrap()));
                put_text(&mut payload, 2, &name_bytes(a.find(2).unwrap()));
                elements.extend(all(GETSETELEM, &payload));
            }
            elements.retain(|e| Attrs(&e[4..]).find(3).is_some());
            write("sets.bin", &sets);
            write("elements.bin", &elements);
            let mut payload = request(0);
            put(&mut payload, 1, &[7]);
            let ipsets = nl
                .dump("record", 6 << 8 | 7, &payload, |m| Some(m.body.to_vec()))
                .unwrap();
            write("ipsets.bin", &ipsets);
        });
        scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            run("/usr/sbin/iptables-legacy-restore", &[], "rules.iptables");
            let (info, entries) = crate::legacy::raw("filter", false).unwrap();
            let head = [&b"4"[..], &info[..]].concat();
            write("legacy.bin", &[head, entries]);
        });
    });
}
