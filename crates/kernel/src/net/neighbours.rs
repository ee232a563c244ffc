//! Neighbours: who is where on the links (RFC 826, RFC 4861; include/uapi/linux/neighbour.h).

use super::*;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// NUD_REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT: states with a link address to use.
const NUD_USABLE: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | NUD_PERMANENT;
/// Made by the kernel itself for multicast, broadcast and links without neighbours.
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_PROXY: u8 = 0x08;
const NTF_ROUTER: u8 = 0x80;
/// Most neighbours that are kept.
const MAX_NEIGHBOURS: usize = 65_536;

/// An entry of the neighbour tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// Interface index.
    pub oif: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its link-layer address; empty for proxy entries and where the link has none.
    pub link_address: Vec<u8>,
    /// Put there by somebody, and not learned.
    pub permanent: bool,
    /// It says of itself that it is a router (IPv6).
    pub router: bool,
    /// Not a neighbour: this host answers for the address (`ip neigh add proxy`).
    pub proxy: bool,
}

/// The neighbours that packets can be sent to now, and the addresses that this host answers for;
/// sorted, of the calling thread's network namespace. Needs no privilege.
///
/// Entries of the kernel's own making (multicast, broadcast, links without neighbours) are left
/// out.
///
/// # Errors
/// The kernel refused the dump; [`Error::TooMuch`] beyond 65,536.
pub fn neighbours() -> Result<Vec<Neighbour>, Error> {
    let mut nl = Netlink::open(SockProtocol::NetlinkRoute, "neighbours")?;
    let mut out = Vec::new();
    for flags in [0, NTF_PROXY] {
        out.extend(dump(&mut nl, "neighbours", 0, flags)?);
    }
    out.retain(|(_, state)| state & NUD_NOARP == 0);
    let mut out: Vec<Neighbour> = out.into_iter().map(|(entry, _)| entry).collect();
    if out.len() > MAX_NEIGHBOURS {
        return Err(Error::TooMuch {
            what: "neighbours".to_owned(),
            limit: MAX_NEIGHBOURS,
        });
    }
    out.sort();
    out.dedup();
    Ok(out)
}

/// The link-layer address of a neighbour, when the kernel knows it now; `None` while it does not.
/// The caller makes the kernel look for it by sending any datagram that way.
///
/// # Errors
/// The kernel refused the dump.
pub fn neighbour(oif: u32, address: IpAddr) -> Result<Option<Vec<u8>>, Error> {
    let what = format!("neighbour {address}");
    let mut nl = Netlink::open(SockProtocol::NetlinkRoute, &what)?;
    let family = match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    };
    let found = dump(&mut nl, &what, family, 0)?.into_iter();
    let mut ours = found.filter(|(n, _)| n.oif == oif && n.address == address);
    Ok(ours
        .next()
        .map(|(n, _)| n.link_address)
        .filter(|link| !link.is_empty()))
}

/// The usable entries of a family (0: both), each with its state.
fn dump(
    nl: &mut Netlink,
    what: &str,
    family: u8,
    flags: u8,
) -> Result<Vec<(Neighbour, u16)>, Error> {
    const RTM_GETNEIGH: u16 = 30;
    // struct ndmsg: family, pad, pad, ifindex, state, flags, type.
    let mut request = [0u8; 12];
    request[0] = family;
    request[10] = flags;
    nl.dump(what, RTM_GETNEIGH, &request, |m| entry(m.body))
}

fn entry(body: &[u8]) -> Option<(Neighbour, u16)> {
    let head = body.get(..12)?;
    let state = u16_ne(&head[8..10]);
    let flags = head[10];
    let proxy = flags & NTF_PROXY != 0;
    if !proxy && state & NUD_USABLE == 0 {
        return None;
    }
    let attrs = Attrs(&body[12..]);
    let neighbour = Neighbour {
        oif: u32_ne(&head[4..8]),
        address: attrs.find(NDA_DST)?.ip()?,
        link_address: attrs
            .find(NDA_LLADDR)
            .map(|a| a.data.to_vec())
            .unwrap_or_default(),
        permanent: state & NUD_PERMANENT != 0,
        router: flags & NTF_ROUTER != 0,
        proxy,
    };
    Some((neighbour, if proxy { 0 } else { state }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_and_a_cut_one_is_none() {
        // struct ndmsg of link 3, reachable, a router; then NDA_DST and NDA_LLADDR.
        let mut body = vec![10, 0, 0, 0, 3, 0, 0, 0, 0x02, 0, NTF_ROUTER, 1];
        let address: Ipv6Addr = "fe80::1".parse().unwrap();
        put(&mut body, NDA_DST, &address.octets());
        put(&mut body, NDA_LLADDR, &[2, 0, 0, 0, 0, 7]);
        let (neighbour, _) = entry(&body).unwrap();
        assert_eq!((neighbour.oif, neighbour.address), (3, address.into()));
        assert_eq!(neighbour.link_address, [2, 0, 0, 0, 0, 7]);
        assert!(neighbour.router && !neighbour.proxy && !neighbour.permanent);
        for cut in 0..32 {
            assert!(entry(&body[..cut]).is_none(), "{cut}");
        }
        // NUD_FAILED: nothing can be sent there.
        body[8] = 0x20;
        assert!(entry(&body).is_none());
        // An address that is answered for has no state.
        body[8] = 0;
        body[10] = NTF_PROXY;
        assert!(entry(&body).unwrap().0.proxy);
    }
}
