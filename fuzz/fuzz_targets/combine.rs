#![no_main]
//! Several dumps at once: the input is cut at each `\0`.
use libfuzzer_sys::fuzz_target;
use reach::parse::{Dumps, combine};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let dumps = Dumps {
        iptables: parts.next(),
        ip6tables: parts.next(),
        iptables_legacy: parts.next(),
        ip6tables_legacy: parts.next(),
        nft: parts.next(),
        ipset: parts.next(),
    };
    let _ = combine(dumps);
});
