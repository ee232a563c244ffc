//! What to say to a UDP port so that a service there answers: a whole, harmless first message of
//! its protocol. Nothing here logs in, changes or subscribes to anything.

/// Ports with a payload of their own, which `--udp` asks about when it names none: name servers,
/// time, management, discovery, QUIC, TURN and tunnels as they are found on servers.
pub const USUAL: &str = "53,111,123,161,389,443,500,623,1194,1900,3478,4500,5060,5349,5353,8443,\
                         11211,41641,51820";

/// DNS: the name servers of the root (RFC 1035); whoever resolves nothing for us refuses at least.
const DNS: &[u8] = b"\x70\x63\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01";
/// `_services._dns-sd._udp.local` PTR, answer to the asker alone (RFC 6762, 5.4).
const MDNS: &[u8] = b"\x70\x63\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\
    \x09_services\x07_dns-sd\x04_udp\x05local\x00\x00\x0c\x80\x01";
/// ONC RPC call 0 of the port mapper, version 2 (RFC 5531, RFC 1833).
const PORTMAP: &[u8] = b"\x70\x63\x70\x63\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01\x86\xa0\
    \x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
/// SNMPv3 engine discovery, which needs no name or password (RFC 3414, 4).
const SNMP3: &[u8] =
    b"\x30\x3a\x02\x01\x03\x30\x0f\x02\x02\x4a\x69\x02\x03\x00\xff\xe3\x04\x01\x04\
    \x02\x01\x03\x04\x10\x30\x0e\x04\x00\x02\x01\x00\x02\x01\x00\x04\x00\x04\x00\x04\x00\
    \x30\x12\x04\x00\x04\x00\xa0\x0c\x02\x02\x37\xf0\x02\x01\x00\x02\x01\x00\x30\x00";
/// SNMPv1 for sysDescr.0 as `public`: who answers this tells everybody.
const SNMP1: &[u8] =
    b"\x30\x26\x02\x01\x00\x04\x06public\xa0\x19\x02\x01\x01\x02\x01\x00\x02\x01\x00\
    \x30\x0e\x30\x0c\x06\x08\x2b\x06\x01\x02\x01\x01\x01\x00\x05\x00";
/// Connectionless LDAP search of the root, attribute `namingContexts` (RFC 4511).
const CLDAP: &[u8] = b"\x30\x35\x02\x01\x01\x63\x30\x04\x00\x0a\x01\x00\x0a\x01\x00\x02\x01\x00\
    \x02\x01\x00\x01\x01\x00\x87\x0bobjectClass\x30\x10\x04\x0enamingContexts";
/// RMCP presence ping of a management controller (IPMI 2.0, 13.2.3).
const RMCP: &[u8] = b"\x06\x00\xff\x06\x00\x00\x11\xbe\x80\x00\x00\x00";
/// OpenVPN's P_CONTROL_HARD_RESET_CLIENT_V2 without tls-auth.
const OPENVPN: &[u8] = b"\x38\x70\x63\x70\x63\x70\x63\x70\x63\x00\x00\x00\x00\x00";
const SSDP: &[u8] =
    b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\n\
    MX: 1\r\nST: ssdp:all\r\n\r\n";
const SIP: &[u8] =
    b"OPTIONS sip:a@localhost SIP/2.0\r\nVia: SIP/2.0/UDP localhost;branch=z9hG4bKpc;rport\r\n\
    Max-Forwards: 70\r\nTo: <sip:a@localhost>\r\nFrom: <sip:b@localhost>;tag=pc\r\nCall-ID: pc\r\n\
    CSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n";
/// memcached's UDP frame around `version`.
const MEMCACHED: &[u8] = b"\x70\x63\x00\x00\x00\x01\x00\x00version\r\n";
/// STUN binding request (RFC 8489): TURN servers answer it too.
const STUN: &[u8] = b"\x00\x01\x00\x00\x21\x12\xa4\x42portcullis-1";

/// The message for `port` in the `attempt`th try, from 0.
pub fn of(port: u16, attempt: usize) -> Vec<u8> {
    match port {
        53 => DNS.to_vec(),
        111 => PORTMAP.to_vec(),
        123 => ntp(),
        161 if attempt % 2 == 1 => SNMP1.to_vec(),
        161 => SNMP3.to_vec(),
        389 => CLDAP.to_vec(),
        443 | 4433 | 8443 | 853 => quic(),
        500 => ike(false),
        4500 => ike(true),
        623 => RMCP.to_vec(),
        1194 => OPENVPN.to_vec(),
        1900 => SSDP.to_vec(),
        3478 | 5349 => STUN.to_vec(),
        5060 => SIP.to_vec(),
        5353 => MDNS.to_vec(),
        11211 => MEMCACHED.to_vec(),
        // Of other ports nothing is known; many a datagram service answers one of these.
        _ if attempt % 2 == 1 => DNS.to_vec(),
        _ => b"\r\n\r\n".to_vec(),
    }
}

/// A client's packet of NTP version 4 (RFC 5905, 7.3).
fn ntp() -> Vec<u8> {
    let mut packet = vec![0; 48];
    packet[0] = 0x23;
    packet
}

/// A QUIC long header with a version that nobody speaks, padded to what a first packet must have:
/// a server has to answer with the versions that it speaks (RFC 9000, 6.1 and 14.1; RFC 8999).
fn quic() -> Vec<u8> {
    let mut packet = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a];
    packet.extend(b"\x08portcull\x08isknocks");
    packet.resize(1200, 0);
    packet
}

/// IKEv1 main mode with one proposal (RFC 2408, RFC 2409); behind NAT four zero bytes come first.
fn ike(nat: bool) -> Vec<u8> {
    let transform = b"\x00\x00\x00\x18\x01\x01\x00\x00\x80\x01\x00\x07\x80\x02\x00\x02\
        \x80\x03\x00\x01\x80\x04\x00\x0e";
    let mut packet = Vec::new();
    if nat {
        packet.extend([0; 4]);
    }
    packet.extend(b"portcull\0\0\0\0\0\0\0\0\x01\x10\x02\0\0\0\0\0");
    packet.extend((28 + 12 + 8 + transform.len() as u32).to_be_bytes());
    // Security association: IPsec, identity only; in it one proposal for ISAKMP.
    packet.extend(b"\0\0\0");
    packet.push((12 + 8 + transform.len()) as u8);
    packet.extend(b"\0\0\0\x01\0\0\0\x01\0\0\0");
    packet.push((8 + transform.len()) as u8);
    packet.extend(b"\x01\x01\0\x01");
    packet.extend(transform);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_port_has_words_of_its_own() {
        let unknown = [of(9, 0), of(9, 1)];
        let tunnels_that_never_answer = [41641, 51820];
        for port in crate::PortSet::parse(USUAL).unwrap().iter() {
            let own = port == 53 || !unknown.contains(&of(port, 0));
            assert!(own || tunnels_that_never_answer.contains(&port), "{port}");
        }
    }

    /// ASN.1 lengths are where hand-made messages go wrong.
    #[test]
    fn lengths_inside_messages_agree_with_their_sizes() {
        for message in [SNMP1, SNMP3, CLDAP] {
            assert_eq!(usize::from(message[1]) + 2, message.len(), "{message:x?}");
        }
        for nat in [false, true] {
            let packet = ike(nat);
            let own = &packet[if nat { 4 } else { 0 }..];
            let length = u32::from_be_bytes(own[24..28].try_into().unwrap());
            assert_eq!(length as usize, own.len());
            assert_eq!(usize::from(own[31]) + 28, own.len());
        }
        assert_eq!(quic().len(), 1200);
        assert_eq!(STUN.len(), 20);
        assert_eq!(PORTMAP.len(), 40);
    }
}
