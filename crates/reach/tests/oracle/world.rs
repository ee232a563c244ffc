//! Three network namespaces and what moves packets between them: a client that spoofs any source, the host under test, a
//! container behind it.
use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, listen,
    recv, send, sendto, socket,
};
use reach::*;

/// Ports that everything listens on.
pub const PORTS: [u16; 6] = [22, 80, 443, 5000, 8080, 11434];

/// A probe: one attempt to open a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Probe {
    /// 0: by wan0, 1: by lan0.
    pub ingress: usize,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub sport: u16,
    pub dport: u16,
}

pub const INGRESS: [&str; 2] = ["wan0", "lan0"];

pub struct World {
    host: OwnedFd,
    container: OwnedFd,
    /// The client's ends of wan0, lan0 and of the canary's link.
    wires: [OwnedFd; 3],
    macs: [[u8; 6]; 3],
    listeners: Vec<TcpListener>,
    flusher: OwnedFd,
    next_id: u64,
    pub net: Net,
}

fn own_namespace() -> OwnedFd {
    std::fs::File::open("/proc/thread-self/ns/net")
        .unwrap()
        .into()
}

/// Runs a tool with text on its standard input; its output, or what it complained of.
pub fn run(tool: &str, args: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(tool)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{tool}: {e}"))?;
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(format!(
        "{tool} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    ))
}

fn ip(args: &str) {
    let args: Vec<&str> = args.split(' ').collect();
    run("/usr/sbin/ip", &args, "").unwrap();
}

fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
}

/// A socket for whole frames on one link of the current namespace.
fn wire(name: &str) -> OwnedFd {
    let address = nix::ifaddrs::getifaddrs()
        .unwrap()
        .filter(|i| i.interface_name == name)
        .find_map(|i| i.address?.as_link_addr().copied())
        .unwrap();
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_NONBLOCK,
        SockProtocol::EthAll,
    )
    .unwrap();
    bind(fd.as_raw_fd(), &address).unwrap();
    fd
}

fn mac(name: &str) -> [u8; 6] {
    nix::ifaddrs::getifaddrs()
        .unwrap()
        .filter(|i| i.interface_name == name)
        .find_map(|i| i.address?.as_link_addr()?.addr())
        .unwrap()
}

fn listeners() -> Vec<TcpListener> {
    PORTS
        .iter()
        .map(|port| {
            // Another world's thread may be about to start a tool: until then its fork holds the old listener.
            let listener = (0..200)
                .find_map(|_| {
                    let bound = TcpListener::bind(("::", *port)).ok();
                    if bound.is_none() {
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    }
                    bound
                })
                .expect("the port comes free");
            listener.set_nonblocking(true).unwrap();
            listen(&listener, Backlog::new(4096).unwrap()).unwrap();
            listener
        })
        .collect()
}

pub fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

impl World {
    /// Builds the three namespaces; the calling thread stays in the host's. `rp_filter` as for the sysctl.
    pub fn new(rp_filter: u8, cpu: usize) -> World {
        // Everything of one world on one CPU: packets are then handled in the order sent.
        let this = nix::unistd::Pid::from_raw(0);
        let allowed = nix::sched::sched_getaffinity(this).unwrap();
        let usable: Vec<usize> = (0..1024)
            .filter(|&c| allowed.is_set(c).unwrap_or(false))
            .collect();
        let mut mine = nix::sched::CpuSet::new();
        mine.set(usable[cpu % usable.len()]).unwrap();
        nix::sched::sched_setaffinity(this, &mine).unwrap();

        let fresh = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            own_namespace()
        };
        let client = fresh();
        let container = fresh();
        let host = fresh();
        let park = |ns: &OwnedFd| {
            // A thread in that namespace: its id names the namespace to `ip`.
            let ns = ns.try_clone().unwrap();
            let (id_out, id_in) = std::sync::mpsc::channel();
            let (stop_out, stop_in) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::spawn(move || {
                setns(ns, CloneFlags::CLONE_NEWNET).unwrap();
                id_out.send(nix::unistd::gettid()).unwrap();
                stop_in.recv().ok();
            });
            let id = id_in.recv().unwrap();
            (id, stop_out, thread)
        };
        let (client_id, client_stop, client_thread) = park(&client);
        let (container_id, container_stop, container_thread) = park(&container);

        // IPv6 before the links, so that none makes addresses by itself.
        for ns in [&client, &container, &host] {
            setns(ns, CloneFlags::CLONE_NEWNET).unwrap();
            sysctl("ipv6/conf/default/addr_gen_mode", "1");
            sysctl("ipv6/conf/default/accept_ra", "0");
            sysctl("ipv6/conf/default/accept_dad", "0");
            ip("link set lo up");
        }
        ip(&format!(
            "link add wan0 type veth peer name p0 netns {client_id}"
        ));
        ip(&format!(
            "link add lan0 type veth peer name p1 netns {client_id}"
        ));
        ip(&format!(
            "link add can0 type veth peer name p2 netns {client_id}"
        ));
        ip(&format!(
            "link add dock0 type veth peer name c0 netns {container_id}"
        ));
        // No neighbour discovery: every source is right behind the wire.
        for link in ["wan0", "lan0"] {
            ip(&format!("link set {link} arp off up"));
        }
        ip("link set can0 up");
        ip("link set dock0 up");
        for address in [
            "198.51.100.2/24 dev wan0",
            "10.9.0.1/24 dev lan0",
            "172.30.0.1/24 dev dock0",
            "169.254.77.1/24 dev can0",
        ] {
            ip(&format!("addr add {address}"));
        }
        for address in [
            "2001:db8:1::2/64 dev wan0",
            "fd00:9::1/64 dev lan0",
            "fd00:30::1/64 dev dock0",
        ] {
            ip(&format!("-6 addr add {address} nodad"));
        }
        setns(&client, CloneFlags::CLONE_NEWNET).unwrap();
        for link in ["p0", "p1", "p2"] {
            ip(&format!("link set {link} arp off up"));
        }
        setns(&container, CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set c0 up");
        ip("addr add 172.30.0.2/24 dev c0");
        ip("addr add 172.30.0.3/24 dev c0");
        ip("-6 addr add fd00:30::2/64 dev c0 nodad");
        ip("-6 addr add fd00:30::3/64 dev c0 nodad");
        ip("route add default via 172.30.0.1");
        ip("-6 route add default via fd00:30::1");
        sysctl("ipv4/tcp_synack_retries", "0");
        sysctl("ipv4/conf/all/rp_filter", "0");
        sysctl("ipv4/conf/c0/rp_filter", "0");
        let mac_text = |m: [u8; 6]| m.map(|b| format!("{b:02x}")).join(":");
        let c0 = mac_text(mac("c0"));
        setns(&host, CloneFlags::CLONE_NEWNET).unwrap();
        let dock0 = mac_text(mac("dock0"));
        for address in ["172.30.0.2", "172.30.0.3", "fd00:30::2", "fd00:30::3"] {
            ip(&format!(
                "neigh replace {address} lladdr {c0} dev dock0 nud permanent"
            ));
        }
        ip("route add default via 198.51.100.1");
        ip("-6 route add default via 2001:db8:1::1");
        sysctl("ipv4/tcp_synack_retries", "0");
        sysctl("ipv4/tcp_max_syn_backlog", "8192");
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        sysctl("ipv4/conf/all/rp_filter", "0");
        sysctl("ipv4/icmp_ratelimit", "0");
        for link in ["wan0", "lan0", "dock0", "can0"] {
            let value = if link == "lan0" { rp_filter } else { 0 };
            sysctl(&format!("ipv4/conf/{link}/rp_filter"), &value.to_string());
        }
        setns(&container, CloneFlags::CLONE_NEWNET).unwrap();
        for address in ["172.30.0.1", "fd00:30::1"] {
            ip(&format!(
                "neigh replace {address} lladdr {dock0} dev c0 nud permanent"
            ));
        }
        client_stop.send(()).unwrap();
        container_stop.send(()).unwrap();
        client_thread.join().unwrap();
        container_thread.join().unwrap();

        setns(&client, CloneFlags::CLONE_NEWNET).unwrap();
        let wires = [wire("p0"), wire("p1"), wire("p2")];
        setns(&host, CloneFlags::CLONE_NEWNET).unwrap();
        let macs = [mac("wan0"), mac("lan0"), mac("can0")];
        let flusher = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::NetlinkNetFilter,
        )
        .unwrap();
        bind(flusher.as_raw_fd(), &NetlinkAddr::new(0, 0)).unwrap();
        let mut world = World {
            host,
            container,
            wires,
            macs,
            listeners: vec![],
            flusher,
            next_id: 1,
            net: facts(rp_filter),
        };
        world.listen();
        world
    }

    /// Fresh listeners; half-open connections of the old ones are gone with them.
    pub fn listen(&mut self) {
        self.listeners.clear();
        self.listeners = listeners();
        setns(&self.container, CloneFlags::CLONE_NEWNET).unwrap();
        self.listeners.extend(listeners());
        setns(&self.host, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Forgets all connections (`conntrack -F`).
    pub fn forget(&mut self) {
        // nlmsghdr, nfgenmsg: IPCTNL_MSG_CT_DELETE of ctnetlink, request with acknowledgement.
        for family in [2u8, 10] {
            let mut message = vec![20, 0, 0, 0, 2, 1, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0];
            message.extend([family, 0, 0, 0]);
            sendto(
                self.flusher.as_raw_fd(),
                &message,
                &NetlinkAddr::new(0, 0),
                MsgFlags::empty(),
            )
            .unwrap();
            let mut answer = [0u8; 256];
            recv(self.flusher.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        }
    }

    /// Waits until all packets sent before have been handled, answers of the container included: each round is an ARP
    /// request, which rules for IP never see, through the same queues.
    fn settle(&self, rounds: usize, caught: &mut Vec<(usize, Vec<u8>)>) {
        let wire = self.wires[2].as_raw_fd();
        for _ in 0..rounds {
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend([2, 0, 0, 0, 0, 9, 169, 254, 77, 2]);
            frame.extend([0, 0, 0, 0, 0, 0, 169, 254, 77, 1]);
            frame.resize(60, 0);
            send(wire, &frame, MsgFlags::empty()).unwrap();
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(2);
            let mut buffer = [0u8; 2048];
            loop {
                match recv(wire, &mut buffer, MsgFlags::empty()) {
                    Ok(n) if n >= 22 && buffer[12..14] == [8, 6] && buffer[21] == 2 => break,
                    Ok(_) => {}
                    Err(_) => {
                        assert!(
                            std::time::Instant::now() < deadline,
                            "the canary does not answer"
                        );
                        let fd = self.wires[2].as_fd();
                        let mut fds = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
                        nix::poll::poll(&mut fds, 100u16).ok();
                    }
                }
            }
        }
        self.catch(caught);
    }

    fn catch(&self, caught: &mut Vec<(usize, Vec<u8>)>) {
        let mut buffer = [0u8; 2048];
        for (at, wire) in self.wires[..2].iter().enumerate() {
            while let Ok(n) = recv(wire.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                caught.push((at, buffer[..n].to_vec()));
            }
        }
    }

    /// Tries to open a connection for each probe; tells which ones delivered a payload.
    pub fn knock(&mut self, probes: &[Probe]) -> Vec<bool> {
        let mut caught = vec![];
        self.catch(&mut caught);
        caught.clear();
        self.accept(&mut HashSet::new());
        let first = self.next_id;
        self.next_id += probes.len() as u64;
        let seq =
            |at: usize| ((first + at as u64).wrapping_mul(2_654_435_761) & 0xffff_ffff) as u32;
        let mut waiting = HashMap::new();
        for (at, probe) in probes.iter().enumerate() {
            let frame = segment(self.macs[probe.ingress], probe, seq(at), None, &[]);
            send(
                self.wires[probe.ingress].as_raw_fd(),
                &frame,
                MsgFlags::empty(),
            )
            .unwrap();
            waiting.insert((probe.src, probe.sport, seq(at).wrapping_add(1)), at);
        }
        self.settle(4, &mut caught);
        let mut open = vec![false; probes.len()];
        for (_, frame) in caught.drain(..) {
            let Some(answer) = syn_ack(&frame) else {
                continue;
            };
            let Some(&at) = waiting.get(&(answer.to, answer.port, answer.ack)) else {
                continue;
            };
            // The answer must come from where the client knocked.
            let probe = &probes[at];
            if (answer.from, answer.from_port) != (probe.dst, probe.dport) {
                continue;
            }
            let payload = (first + at as u64).to_be_bytes();
            let frame = segment(
                self.macs[probe.ingress],
                probe,
                seq(at).wrapping_add(1),
                Some(answer.seq.wrapping_add(1)),
                &payload,
            );
            send(
                self.wires[probe.ingress].as_raw_fd(),
                &frame,
                MsgFlags::empty(),
            )
            .unwrap();
        }
        self.settle(4, &mut caught);
        let mut seen = HashSet::new();
        self.accept(&mut seen);
        for (at, open) in open.iter_mut().enumerate() {
            *open = seen.contains(&(first + at as u64));
        }
        open
    }

    fn accept(&self, seen: &mut HashSet<u64>) {
        for listener in &self.listeners {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut payload = [0u8; 8];
                stream.set_nonblocking(true).ok();
                if stream.read_exact(&mut payload).is_ok() {
                    seen.insert(u64::from_be_bytes(payload));
                }
                let at_once = nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &at_once)
                    .ok();
            }
        }
    }
}

/// What the host's kernel would report.
fn facts(rp_filter: u8) -> Net {
    let link = |index, name: &str, addresses: &[&str], rp| Interface {
        index,
        name: name.into(),
        kind: (name != "lo").then(|| "veth".to_string()),
        up: true,
        loopback: name == "lo",
        addresses: addresses
            .iter()
            .map(|a| InterfaceAddress {
                net: net(a),
                peer: None,
            })
            .collect(),
        rp_filter: Some(rp),
        accept_local: Some(false),
        route_localnet: Some(false),
        forwarding_v4: Some(true),
        forwarding_v6: Some(true),
        disable_ipv6: Some(false),
        ..Interface::default()
    };
    let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
    let route = |dst: &str, oif, gateway: Option<&str>| Route {
        table: 254,
        dst: net(dst),
        kind: RouteKind::Unicast,
        metric: 0,
        tos: 0,
        prefsrc: None,
        nexthops: vec![NextHop {
            oif,
            gateway: gateway.map(|g| g.parse().unwrap()),
            dead: false,
        }],
    };
    let (wan, lan, dock, can) = (index("wan0"), index("lan0"), index("dock0"), index("can0"));
    let local = |dst: &str, kind, oif| Route {
        table: 255,
        kind,
        ..route(dst, oif, None)
    };
    // A forwarding host joins the anycast address of each of its prefixes.
    let any = RouteKind::Anycast;
    let (own, all) = (RouteKind::Local, RouteKind::Broadcast);
    Net {
        interfaces: vec![
            link(1, "lo", &["127.0.0.1/8", "::1/128"], 0),
            link(wan, "wan0", &["198.51.100.2/24", "2001:db8:1::2/64"], 0),
            link(lan, "lan0", &["10.9.0.1/24", "fd00:9::1/64"], rp_filter),
            link(dock, "dock0", &["172.30.0.1/24", "fd00:30::1/64"], 0),
            link(can, "can0", &["169.254.77.1/24"], 0),
        ],
        routes: vec![
            local("127.0.0.0/8", own, 1),
            local("127.0.0.1/32", own, 1),
            local("127.255.255.255/32", all, 1),
            local("198.51.100.2/32", own, wan),
            local("198.51.100.255/32", all, wan),
            local("10.9.0.1/32", own, lan),
            local("10.9.0.255/32", all, lan),
            local("172.30.0.1/32", own, dock),
            local("172.30.0.255/32", all, dock),
            local("169.254.77.1/32", own, can),
            local("169.254.77.255/32", all, can),
            local("2001:db8:1::/128", any, wan),
            local("fd00:9::/128", any, lan),
            local("fd00:30::/128", any, dock),
            local("::1/128", own, 1),
            local("2001:db8:1::2/128", own, wan),
            local("fd00:9::1/128", own, lan),
            local("fd00:30::1/128", own, dock),
            route("0.0.0.0/0", wan, Some("198.51.100.1")),
            route("198.51.100.0/24", wan, None),
            route("10.9.0.0/24", lan, None),
            route("172.30.0.0/24", dock, None),
            route("169.254.77.0/24", can, None),
            route("::/0", wan, Some("2001:db8:1::1")),
            route("2001:db8:1::/64", wan, None),
            route("fd00:9::/64", lan, None),
            route("fd00:30::/64", dock, None),
        ],
        rules: vec![],
        sysctls: Sysctls {
            ipv4_forward: Some(true),
            ipv6_forward: Some(true),
            rp_filter_all: Some(0),
            bridge_nf_call_iptables: Some(false),
            bridge_nf_call_ip6tables: Some(false),
        },
    }
}

fn sum(data: &[u8], mut total: u32) -> u32 {
    for pair in data.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    total
}

fn fold(mut total: u32) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// A SYN, or (with `ack`) an ACK with a payload, as a frame.
fn segment(to: [u8; 6], probe: &Probe, seq: u32, ack: Option<u32>, payload: &[u8]) -> Vec<u8> {
    let mut tcp = vec![];
    tcp.extend(probe.sport.to_be_bytes());
    tcp.extend(probe.dport.to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.unwrap_or(0).to_be_bytes());
    tcp.extend([
        0x50,
        if ack.is_some() { 0x18 } else { 0x02 },
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ]);
    tcp.extend(payload);
    let (mut pseudo, version) = match (probe.src, probe.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ([src.octets(), dst.octets()].concat(), 4),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ([src.octets(), dst.octets()].concat(), 6),
        _ => panic!("one family"),
    };
    let addresses = pseudo.clone();
    pseudo.extend((tcp.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 6]);
    let check = fold(sum(&tcp, sum(&pseudo, 0)));
    tcp[16..18].copy_from_slice(&check.to_be_bytes());
    let mut frame = to.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    if version == 4 {
        frame.extend([8, 0]);
        let mut header = vec![0x45, 0];
        header.extend((20 + tcp.len() as u16).to_be_bytes());
        header.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
        header.extend(addresses);
        let check = fold(sum(&header, 0));
        header[10..12].copy_from_slice(&check.to_be_bytes());
        frame.extend(header);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((tcp.len() as u16).to_be_bytes());
        frame.extend([6, 64]);
        frame.extend(addresses);
    }
    frame.extend(tcp);
    frame
}

struct SynAck {
    from: IpAddr,
    from_port: u16,
    to: IpAddr,
    port: u16,
    seq: u32,
    ack: u32,
}

fn syn_ack(frame: &[u8]) -> Option<SynAck> {
    let (from, to, tcp): (IpAddr, IpAddr, &[u8]) = match frame.get(12..14)? {
        [8, 0] => {
            let ip = &frame[14..];
            if ip.len() < 40 || ip[9] != 6 {
                return None;
            }
            let at = |o: usize| Ipv4Addr::new(ip[o], ip[o + 1], ip[o + 2], ip[o + 3]).into();
            (at(12), at(16), &ip[usize::from(ip[0] & 15) * 4..])
        }
        [0x86, 0xdd] => {
            let ip = &frame[14..];
            if ip.len() < 60 || ip[6] != 6 {
                return None;
            }
            let at = |o: usize| {
                let bytes: [u8; 16] = ip[o..o + 16].try_into().unwrap();
                Ipv6Addr::from(bytes).into()
            };
            (at(8), at(24), &ip[40..])
        }
        _ => return None,
    };
    let word = |o: usize| u32::from_be_bytes(tcp[o..o + 4].try_into().unwrap());
    (tcp.len() >= 20 && tcp[13] & 0x12 == 0x12).then(|| SynAck {
        from,
        from_port: u16::from_be_bytes([tcp[0], tcp[1]]),
        to,
        port: u16::from_be_bytes([tcp[2], tcp[3]]),
        seq: word(4),
        ack: word(8),
    })
}
