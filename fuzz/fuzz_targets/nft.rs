#![no_main]
//! `nft list ruleset`, text and JSON: never a panic, notes bounded.
use libfuzzer_sys::fuzz_target;
use reach::parse::{MAX_NOTES, nft};

fuzz_target!(|data: &[u8]| {
    let (rules, notes) = nft(&String::from_utf8_lossy(data));
    assert!(notes.len() <= MAX_NOTES);
    let _ = rules.bare();
});
