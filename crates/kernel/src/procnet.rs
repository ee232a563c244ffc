//! Sockets as /proc/net tells them, for kernels whose sock_diag would have to be loaded first
//! (proc_pid_net(5)).

use crate::Error;
use crate::sockets::Entry;
use reach::Proto;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest line taken: they have less than 200 bytes.
const MAX_LINE: u64 = 4096;

/// Sockets of the calling thread's network namespace in one of `states` (bits by number). Not
/// told are IPV6_V6ONLY, the device and the cgroup: the socket is then taken to be as open as it
/// could be.
pub(crate) fn ask(proto: Proto, states: u32) -> Result<Vec<Entry>, Error> {
    let name = match proto {
        Proto::Udp => "udp",
        _ => "tcp",
    };
    let mut out = Vec::new();
    for family in ["", "6"] {
        // Not /proc/net, which is that of the process's first thread.
        let path = format!("/proc/thread-self/net/{name}{family}");
        let file = |source| Error::File {
            path: path.clone(),
            source,
        };
        let mut lines = match File::open(&path) {
            Ok(open) => BufReader::new(open),
            // A kernel without IPv6.
            Err(error) if error.kind() == ErrorKind::NotFound && family == "6" => continue,
            Err(error) => return Err(file(error)),
        };
        // The first line has the names of the columns.
        let mut first = true;
        let mut line = String::new();
        loop {
            line.clear();
            let read = (&mut lines).take(MAX_LINE).read_line(&mut line);
            if read.map_err(file)? == 0 {
                break;
            }
            if std::mem::take(&mut first) {
                continue;
            }
            let Some((state, entry)) = entry(&line) else {
                return Err(Error::malformed("sockets", &path));
            };
            if state < 32 && states & 1 << state != 0 {
                out.push(entry);
            }
        }
    }
    Ok(out)
}

/// State and facts of a line.
fn entry(line: &str) -> Option<(u32, Entry)> {
    let columns: Vec<&str> = line.split_ascii_whitespace().take(10).collect();
    let [_, local, peer, state, _, _, _, uid, _, inode] = columns[..] else {
        return None;
    };
    let (local, local_port) = end(local)?;
    let (peer, peer_port) = end(peer)?;
    let entry = Entry {
        local,
        local_port,
        peer,
        peer_port,
        device: None,
        uid: uid.parse().ok()?,
        inode: inode.parse().ok()?,
        v6only: false,
        cgroup: None,
    };
    Some((u32::from_str_radix(state, 16).ok()?, entry))
}

/// `ADDRESS:PORT`: words of 32 bits as they lie in memory, printed as numbers.
fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockets::{self, Source};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses() {
        let check = |text: &str, expected: Option<(&str, u16)>| {
            let expected = expected.map(|(address, port)| (address.parse().unwrap(), port));
            assert_eq!(end(text), expected, "{text}");
        };
        check("0100007F:0016", Some(("127.0.0.1", 22)));
        check("00000000:1F90", Some(("0.0.0.0", 8080)));
        check(&format!("{}:0050", "0".repeat(32)), Some(("::", 80)));
        let mapped = "0000000000000000FFFF00000100007F:01BB";
        check(mapped, Some(("::ffff:127.0.0.1", 443)));
        check("0100007:0016", None);
        check("0100007F", None);
        check("0100007G:0016", None);
        check("ä00007F:0016", None);
    }

    /// Both sources tell the same of sockets of every kind, apart from what /proc does not have.
    #[test]
    fn the_same_sockets_as_sock_diag_tells() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::1]:0").unwrap();
        let both = TcpListener::bind("[::]:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp6 = UdpSocket::bind("[::]:0").unwrap();
        let port = both.local_addr().unwrap().port();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (_server, _) = both.accept().unwrap();
        let ports: Vec<u16> = [&v4, &v6, &both]
            .iter()
            .map(|s| s.local_addr().unwrap().port())
            .chain([&udp, &udp6].iter().map(|s| s.local_addr().unwrap().port()))
            .collect();

        let listening = |source| {
            let mut all = sockets::sockets_from(source).unwrap();
            all.retain(|s| ports.contains(&s.port));
            for socket in &mut all {
                (socket.v6only, socket.device, socket.cgroup) = (false, None, None);
            }
            all
        };
        let diag = listening(Source::Diag);
        assert_eq!(diag.len(), 5);
        assert_eq!(listening(Source::Proc), diag);

        let connected = |source| {
            let mut all = sockets::connections_from(source).unwrap();
            all.retain(|c| c.local_port == port || c.peer_port == port);
            all
        };
        let diag = connected(Source::Diag);
        assert_eq!(diag.len(), 2);
        assert_eq!(connected(Source::Proc), diag);
    }
}
