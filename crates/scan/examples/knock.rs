//! The scanner as a library: `knock ADDRESS [PORTS]`, packets if allowed, else connect().

use scan::{Options, PortSet, packet};
use std::net::IpAddr;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let target: IpAddr = args.next().ok_or("knock ADDRESS [PORTS]")?.parse()?;
    let ports = PortSet::parse(&args.next().unwrap_or_else(|| "-".into()))?;
    let report = if packet::available() {
        packet::scan(
            &[target],
            &ports,
            &packet::PacketOptions::default(),
            &mut |_| {},
        )?
    } else {
        scan::connect::scan(&[target], &ports, &Options::default(), &mut |_| {})?
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
