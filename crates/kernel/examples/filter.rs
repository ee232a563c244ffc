//! Reads this namespace's packet filter and says how long that took; with `-v` prints the rules.
//! For figures beside `iptables-save` and `nft list ruleset`.
#![allow(clippy::print_stdout)]

use std::time::Instant;

fn main() -> Result<(), kernel::Error> {
    let start = Instant::now();
    let filter = kernel::filter()?;
    let took = start.elapsed();
    for unseen in &filter.unseen {
        println!("unseen: {unseen}");
    }
    if std::env::args().any(|a| a == "-v") {
        for (at, rule) in filter.ruleset.rules() {
            println!("{} {} {}: {}", at.family, at.table, at.chain, rule.text);
        }
    }
    let peak = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = peak.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("");
    println!("{:?} {took:?} {peak}", filter.stats);
    Ok(())
}
