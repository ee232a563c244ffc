#![no_main]
//! `iptables-save` and `ip6tables-save`: never a panic, notes bounded.
use libfuzzer_sys::fuzz_target;
use reach::Backend;
use reach::parse::{MAX_NOTES, iptables_save};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for ipv6 in [false, true] {
        let (rules, notes) = iptables_save(&text, ipv6, Backend::IptablesNft);
        assert!(notes.len() <= MAX_NOTES);
        let _ = rules.bare();
    }
});
