#![no_main]
//! `ipset save`: never a panic, notes bounded.
use libfuzzer_sys::fuzz_target;
use reach::parse::{MAX_NOTES, ipset_save};

fuzz_target!(|data: &[u8]| {
    let (_, notes) = ipset_save(&String::from_utf8_lossy(data));
    assert!(notes.len() <= MAX_NOTES);
});
