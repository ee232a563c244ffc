//! Policy routing rules (ip-rule(8), include/uapi/linux/fib_rules.h).

use super::*;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FLOW: u16 = 11;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
const FIB_RULE_INVERT: u32 = 2;

pub(super) fn family_rules(nl: &mut Netlink, family: u8) -> Result<Vec<PolicyRule>, Error> {
    let mut request = vec![0u8; 12];
    request[0] = family;
    absent(nl.dump("policy rules", libc::RTM_GETRULE, &request, |m| {
        (m.kind == libc::RTM_NEWRULE)
            .then(|| rule(m.body, family))
            .flatten()
    }))
}

fn rule(body: &[u8], family: u8) -> Option<PolicyRule> {
    // struct fib_rule_hdr
    let head = body.get(..12)?;
    if head[0] != family {
        return None;
    }
    let (dst_len, src_len) = (head[1], head[2]);
    let mut table: u32 = head[4].into();
    let mut target = None;
    let mut mark = None;
    let mut mask = None;
    let mut l3mdev = false;
    let mut r = PolicyRule {
        ipv6: family == AF_INET6,
        priority: 0,
        invert: u32_ne(&head[8..12]) & FIB_RULE_INVERT != 0,
        src: None,
        dst: None,
        iif: None,
        oif: None,
        fwmark: None,
        protocol: None,
        sport: None,
        dport: None,
        uid: None,
        tos: head[3],
        suppress_prefixlength: None,
        unknown_selector: !Attrs(&body[12..]).intact(),
        action: PolicyAction::Unknown,
    };
    let pair16 = |a: Attr<'_>| {
        let b = a.data.get(..4)?;
        Some((u16_ne(&b[..2]), u16_ne(&b[2..])))
    };
    for a in Attrs(&body[12..]) {
        match a.kind {
            FRA_DST => r.dst = IpNet::new(a.ip()?, dst_len).ok(),
            FRA_SRC => r.src = IpNet::new(a.ip()?, src_len).ok(),
            FRA_IIFNAME => r.iif = Some(a.text()),
            FRA_OIFNAME => r.oif = Some(a.text()),
            FRA_GOTO => target = a.u32(),
            FRA_PRIORITY => r.priority = a.u32()?,
            FRA_FWMARK => mark = a.u32(),
            FRA_FWMASK => mask = a.u32(),
            FRA_SUPPRESS_PREFIXLEN => {
                r.suppress_prefixlength = a.u32().filter(|v| *v != u32::MAX);
            }
            FRA_TABLE => table = a.u32()?,
            FRA_L3MDEV => l3mdev = a.u8() != Some(0),
            FRA_UID_RANGE => {
                r.uid = a.data.get(..8).map(|b| (u32_ne(&b[..4]), u32_ne(&b[4..])));
            }
            FRA_IP_PROTO => r.protocol = a.u8().filter(|p| *p != 0),
            FRA_SPORT_RANGE => r.sport = pair16(a),
            FRA_DPORT_RANGE => r.dport = pair16(a),
            // Realms and the routing daemon's mark do not select packets.
            FRA_FLOW | FRA_PAD | FRA_PROTOCOL => {}
            // Tunnel ids, DSCP, flow labels, port masks, and whatever comes next.
            _ => r.unknown_selector = true,
        }
    }
    if mark.is_some() || mask.is_some_and(|m| m != 0) {
        r.fwmark = Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX)));
    }
    r.action = match head[7] {
        1 if l3mdev => PolicyAction::Unknown,
        1 => PolicyAction::Table { table },
        2 => match target {
            Some(priority) => PolicyAction::Goto { priority },
            None => PolicyAction::Unknown,
        },
        3 => PolicyAction::Nop,
        libc::RTN_BLACKHOLE => PolicyAction::Blackhole,
        libc::RTN_UNREACHABLE => PolicyAction::Unreachable,
        libc::RTN_PROHIBIT => PolicyAction::Prohibit,
        _ => PolicyAction::Unknown,
    };
    Some(r)
}
