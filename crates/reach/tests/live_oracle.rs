//! The engine against the kernel.
//!
//! Needs root. A longer run:
//! `PORTCULLIS_ORACLE_RULESETS=10000 PORTCULLIS_ORACLE_SEED=1000000 cargo test -p portcullis-reach --test live_oracle -- --ignored --nocapture`
//! `PORTCULLIS_ORACLE_SEED` sets the first seed, `PORTCULLIS_ORACLE_THREADS` the number of worlds side by side.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod oracle;

use oracle::Tally;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}")),
        Err(_) => default,
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn everything_gets_in_where_no_rule_is() {
    std::thread::spawn(|| oracle::sound(0)).join().unwrap();
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn the_kernel_agrees() {
    let rulesets = number("PORTCULLIS_ORACLE_RULESETS", 200);
    let first = number("PORTCULLIS_ORACLE_SEED", 1);
    let threads = number("PORTCULLIS_ORACLE_THREADS", 1);
    let packets = number("PORTCULLIS_ORACLE_PACKETS", 32) as usize;
    let started = std::time::Instant::now();
    let mut total = Tally::default();
    let workers: Vec<_> = (0..threads)
        .map(|n| {
            std::thread::spawn(move || {
                let seeds = (first..first + rulesets).filter(move |s| s % threads == n);
                oracle::campaign(seeds, n as usize, packets)
            })
        })
        .collect();
    for worker in workers {
        total.add(worker.join().unwrap());
    }
    println!(
        "seeds {first}..{}: {} rulesets ({} refused by the tools), {} packets, {} got in, {} maybe; \
         of {} packets without conditional matches {} maybe; {:?}",
        first + rulesets,
        total.rulesets,
        total.refused,
        total.packets,
        total.open,
        total.maybe,
        total.plain_packets,
        total.needless_maybe,
        started.elapsed()
    );
    for refusal in &total.refusals {
        println!("refused: {refusal}");
    }
    for text in &total.shy {
        println!("--- maybe without need\n{text}");
    }
    for text in &total.false_open {
        println!("--- FALSE OPEN\n{text}");
    }
    for text in &total.false_closed {
        println!("--- FALSE CLOSED\n{text}");
    }
    assert_eq!(total.false_closed.len(), 0, "said closed, got in");
    assert_eq!(total.false_open.len(), 0, "said open, did not get in");
    assert!(
        total.rulesets > total.refused,
        "the generator writes nonsense"
    );
    assert!(
        total.needless_maybe * 1000 <= total.plain_packets,
        "{} of {} undecided without need",
        total.needless_maybe,
        total.plain_packets
    );
}
