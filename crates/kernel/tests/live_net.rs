//! `kernel::net()` against iproute2, and sockets of another network namespace.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use serde_json::Value;
use std::process::Command;

/// Runs `test` on a thread in a network namespace of its own.
fn in_new_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root is needed");
        test()
    })
    .join()
    .unwrap()
}

fn ip(args: &str) -> Vec<u8> {
    let out = Command::new("/usr/sbin/ip")
        .args(args.split_whitespace())
        .output()
        .expect("iproute2 is needed");
    let why = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "ip {args}: {why}");
    out.stdout
}

fn ip_json(args: &str) -> Vec<Value> {
    serde_json::from_slice(&ip(&format!("-j -d -N {args}"))).unwrap_or_default()
}

fn sysctl(path: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
}

/// The same spelling for both sides: what `ip -j` prints, made from our types.
fn addresses_of(net: &reach::Net) -> Vec<String> {
    let mut out = Vec::new();
    for i in &net.interfaces {
        for a in &i.addresses {
            let peer = a.peer.map(|p| format!(" peer {p}")).unwrap_or_default();
            out.push(format!("{} {}{peer}", i.name, a.net));
        }
    }
    out.sort();
    out
}

fn addresses_of_ip() -> Vec<String> {
    let mut out = Vec::new();
    for i in ip_json("addr show") {
        for a in i["addr_info"].as_array().unwrap() {
            let text = |k: &str| a[k].as_str().unwrap_or("").to_owned();
            let peer = match text("address") {
                p if p.is_empty() => String::new(),
                p => format!(" peer {p}"),
            };
            let name = i["ifname"].as_str().unwrap();
            out.push(format!("{name} {}/{}{peer}", text("local"), a["prefixlen"]));
        }
    }
    out.sort();
    out
}

fn routes_of(net: &reach::Net) -> Vec<String> {
    let name = |index: u32| {
        let found = net.interfaces.iter().find(|i| i.index == index);
        found.map_or(String::new(), |i| i.name.clone())
    };
    let mut out = Vec::new();
    for r in &net.routes {
        let kind = serde_json::to_value(r.kind).unwrap();
        let hops: Vec<String> = r
            .nexthops
            .iter()
            .map(|h| {
                let gateway = h.gateway.map(|g| g.to_string()).unwrap_or_default();
                format!("[{gateway} {}]", name(h.oif))
            })
            .collect();
        out.push(format!(
            "{} {} table {} metric {} {}",
            kind.as_str().unwrap(),
            r.dst,
            r.table,
            r.metric,
            hops.join(" ")
        ));
    }
    out.sort();
    out
}

fn routes_of_ip() -> Vec<String> {
    const KINDS: [&str; 10] = [
        "",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
        "throw",
    ];
    let mut out = Vec::new();
    for family in ["-4", "-6"] {
        for r in ip_json(&format!("{family} route show table all")) {
            let text = |k: &str| match &r[k] {
                Value::String(s) => s.clone(),
                Value::Number(n) => n.to_string(),
                _ => String::new(),
            };
            let full = if family == "-4" { 32 } else { 128 };
            let dst = match text("dst") {
                d if d == "default" && full == 32 => "0.0.0.0/0".to_owned(),
                d if d == "default" => "::/0".to_owned(),
                d if d.contains('/') => d,
                d => format!("{d}/{full}"),
            };
            let kind = match text("type") {
                k if k.is_empty() => "unicast".to_owned(),
                k => k.parse::<usize>().map_or(k, |n| KINDS[n].to_owned()),
            };
            let hop = |h: &Value| {
                let text = |k: &str| h[k].as_str().unwrap_or("").to_owned();
                let via = h["via"]["host"].as_str().map(str::to_owned);
                format!("[{} {}]", via.unwrap_or(text("gateway")), text("dev"))
            };
            let hops = match r["nexthops"].as_array() {
                Some(hops) => hops.iter().map(hop).collect::<Vec<_>>().join(" "),
                None if ["blackhole", "unreachable", "prohibit", "throw"]
                    .contains(&kind.as_str()) =>
                {
                    String::new()
                }
                None => hop(&r),
            };
            let number = |k: &str, default: &str| match text(k) {
                v if v.is_empty() => default.to_owned(),
                v => v,
            };
            out.push(format!(
                "{kind} {dst} table {} metric {} {hops}",
                number("table", "254"),
                number("metric", "0"),
            ));
        }
    }
    out.sort();
    out
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn links_addresses_and_routes_are_those_of_iproute2() {
    in_new_namespace(|| {
        // Link-local addresses would otherwise come between our look and theirs.
        sysctl("ipv6/conf/default/accept_dad", "0");
        sysctl("ipv6/conf/all/accept_dad", "0");
        for line in [
            "link set lo up",
            "link add br0 type bridge",
            "link add veth0 type veth peer name veth1",
            "link add link veth0 name veth0.100 type macvlan",
            "link add dummy0 type bridge",
            "link set veth1 master br0",
            "link set br0 up",
            "link set veth0 up",
            "link set veth1 up",
            "link set dummy0 up",
            "addr add 192.0.2.1/24 dev veth0",
            "addr add 192.0.2.9/24 dev veth0 secondary",
            "addr add 198.51.100.1 peer 198.51.100.2/32 dev dummy0",
            "addr add 2001:db8::1/64 dev veth0 nodad",
            "addr add 2001:db8:1::1 peer 2001:db8:1::2/128 dev dummy0 nodad",
            "route add default via 192.0.2.254 metric 100",
            "route add 203.0.113.0/24 nexthop via 192.0.2.2 dev veth0 nexthop via 192.0.2.3 dev veth0 weight 2",
            "route add blackhole 10.66.0.0/16",
            "route add unreachable 10.67.0.0/16 metric 7",
            "route add prohibit 10.68.0.0/16 table 300",
            "route add throw 10.69.0.0/16 table 70000",
            "route add 10.70.0.0/16 via inet6 fe80::1 dev veth0",
            "-6 route add default via 2001:db8::ffff",
            "-6 route add 2001:db8:2::/48 nexthop via 2001:db8::2 dev veth0 nexthop via 2001:db8::3 dev veth0",
            "-6 route add blackhole 2001:db8:bad::/48",
            "nexthop add id 7 via 192.0.2.7 dev veth0",
            "nexthop add id 8 via 192.0.2.8 dev veth0",
            "nexthop add id 9 group 7/8",
            "route add 10.71.0.0/16 nhid 9",
            "route add 10.72.0.0/16 nhid 7",
        ] {
            ip(line);
        }
        let net = kernel::net().unwrap();
        assert_eq!(addresses_of(&net), addresses_of_ip());
        assert_eq!(routes_of(&net), routes_of_ip());
        assert!(net.routes.len() > 20);

        // Without compat mode the routes name only the nexthop object.
        let before = routes_of(&net);
        sysctl("ipv4/nexthop_compat_mode", "0");
        assert_eq!(routes_of(&kernel::net().unwrap()), before);

        let links = ip_json("link show");
        assert_eq!(net.interfaces.len(), links.len());
        for (mine, theirs) in net.interfaces.iter().zip(&links) {
            assert_eq!(mine.name, theirs["ifname"].as_str().unwrap());
            assert_eq!(u64::from(mine.index), theirs["ifindex"].as_u64().unwrap());
            assert_eq!(
                mine.kind.as_deref(),
                theirs["linkinfo"]["info_kind"].as_str()
            );
            let flags = theirs["flags"].as_array().unwrap();
            assert_eq!(mine.up, flags.iter().any(|f| f == "UP"), "{}", mine.name);
            assert_eq!(mine.loopback, flags.iter().any(|f| f == "LOOPBACK"));
        }
        let by_name = |name: &str| net.interfaces.iter().find(|i| i.name == name).unwrap();
        assert_eq!(by_name("veth1").master, Some(by_name("br0").index));
        assert_eq!(by_name("veth0").master, None);
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn neighbours_are_those_of_ip_neigh() {
    in_new_namespace(|| {
        for line in [
            "link add veth0 type veth peer name veth1",
            "link set veth0 up",
            "link set veth1 up",
            "addr add 192.0.2.1/24 dev veth0",
            "addr add 2001:db8::1/64 dev veth0 nodad",
            "neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 dev veth0",
            "neigh add 192.0.2.8 lladdr 02:00:00:00:00:08 dev veth0 nud stale",
            "neigh add 2001:db8::9 lladdr 02:00:00:00:00:09 dev veth0 nud stale router",
            // Nothing can be sent there.
            "neigh add 192.0.2.66 dev veth0 nud failed",
            // Of the kernel's kind: no neighbour.
            "neigh add 192.0.2.67 lladdr 02:00:00:00:00:67 dev veth0 nud noarp",
            "neigh add proxy 192.0.2.99 dev veth0",
            "neigh add proxy 2001:db8::99 dev veth0",
        ] {
            ip(line);
        }
        let net = kernel::net().unwrap();
        let veth0 = net.interfaces.iter().find(|i| i.name == "veth0").unwrap();
        let mut mine: Vec<String> = kernel::neighbours()
            .unwrap()
            .iter()
            .map(|n| {
                assert_eq!(n.oif, veth0.index);
                let hex: Vec<String> = n.link_address.iter().map(|b| format!("{b:02x}")).collect();
                let flag = |on: bool, word: &str| {
                    if on {
                        format!(" {word}")
                    } else {
                        String::new()
                    }
                };
                format!(
                    "{} {}{}{}",
                    n.address,
                    hex.join(":"),
                    flag(n.permanent, "permanent"),
                    flag(n.router, "router") + &flag(n.proxy, "proxy"),
                )
            })
            .collect();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let mut theirs = Vec::new();
        for (args, proxy) in [("neigh show", ""), ("neigh show proxy", " proxy")] {
            for n in ip_json(args) {
                let state = text(&n["state"][0]);
                if proxy.is_empty() && !["PERMANENT", "STALE"].contains(&state.as_str()) {
                    continue;
                }
                let permanent = if state == "PERMANENT" {
                    " permanent"
                } else {
                    ""
                };
                // Of a flag `ip -j` prints the name with null.
                let router = if n.get("router").is_some() {
                    " router"
                } else {
                    ""
                };
                let (address, link) = (text(&n["dst"]), text(&n["lladdr"]));
                theirs.push(format!("{address} {link}{permanent}{router}{proxy}"));
            }
        }
        mine.sort();
        theirs.sort();
        assert_eq!(mine, theirs);
        assert_eq!(mine.len(), 5);
        let known = |address: &str| kernel::neighbour(veth0.index, address.parse().unwrap());
        assert_eq!(known("192.0.2.8").unwrap(), Some(vec![2, 0, 0, 0, 0, 8]));
        assert_eq!(known("2001:db8::9").unwrap(), Some(vec![2, 0, 0, 0, 0, 9]));
        assert_eq!(known("192.0.2.66").unwrap(), None);
        assert_eq!(known("192.0.2.99").unwrap(), None);
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn switches_are_those_of_proc_sys() {
    in_new_namespace(|| {
        ip("link add dummy0 type bridge");
        ip("link add br0 type bridge");
        ip("link add tiny0 mtu 1000 type bridge");
        ip("link set tiny0 up");
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        sysctl("ipv4/conf/all/rp_filter", "2");
        sysctl("ipv4/conf/dummy0/rp_filter", "1");
        sysctl("ipv4/conf/dummy0/accept_local", "1");
        sysctl("ipv4/conf/dummy0/route_localnet", "1");
        sysctl("ipv6/conf/dummy0/disable_ipv6", "1");
        sysctl("ipv6/conf/br0/forwarding", "0");
        let net = kernel::net().unwrap();
        assert_eq!(net.sysctls.ipv4_forward, Some(true));
        assert_eq!(net.sysctls.ipv6_forward, Some(true));
        assert_eq!(net.sysctls.rp_filter_all, Some(2));
        for i in &net.interfaces {
            let read = |path: &str| {
                let path = format!("/proc/sys/net/{}", path.replace("IF", &i.name));
                let text = std::fs::read_to_string(path).ok()?;
                text.trim().parse::<u8>().ok()
            };
            let flag = |path: &str| read(path).map(|v| v != 0);
            assert_eq!(i.rp_filter, read("ipv4/conf/IF/rp_filter"), "{}", i.name);
            assert_eq!(i.accept_local, flag("ipv4/conf/IF/accept_local"));
            assert_eq!(i.route_localnet, flag("ipv4/conf/IF/route_localnet"));
            assert_eq!(i.forwarding_v4, flag("ipv4/conf/IF/forwarding"));
            assert_eq!(i.forwarding_v6, flag("ipv6/conf/IF/forwarding"));
            // A link too small for IPv6 has no switch and takes no packet.
            let disabled = flag("ipv6/conf/IF/disable_ipv6").unwrap_or(true);
            assert_eq!(i.disable_ipv6, Some(disabled), "{}", i.name);
        }
        sysctl("ipv4/conf/all/route_localnet", "1");
        let net = kernel::net().unwrap();
        assert!(
            net.interfaces
                .iter()
                .all(|i| i.route_localnet == Some(true))
        );
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn policy_rules_keep_every_selector() {
    use reach::PolicyAction::*;
    in_new_namespace(|| {
        for line in [
            "rule add pref 100 from 192.0.2.0/24 to 198.51.100.0/24 iif lo fwmark 0x10/0xf0 lookup 300",
            "rule add pref 200 not fwmark 0xca6c lookup 51820",
            "rule add pref 201 lookup main suppress_prefixlength 0",
            "rule add pref 202 ipproto tcp sport 1000-2000 dport 22 uidrange 1000-1999 oif lo tos 0x10 unreachable",
            "rule add pref 203 goto 32766",
            "rule add pref 204 nop",
            "rule add pref 205 blackhole",
            "rule add pref 206 prohibit",
            "rule add pref 207 tun_id 7 lookup 300",
            "-6 rule add pref 50 from 2001:db8::/32 lookup 400",
        ] {
            ip(line);
        }
        let rules = kernel::net().unwrap().rules;
        let theirs = ip_json("-4 rule show").len() + ip_json("-6 rule show").len();
        assert_eq!(rules.len(), theirs);
        let at = |p: u32| rules.iter().find(|r| r.priority == p).unwrap();

        let r = at(100);
        assert_eq!(r.src, Some("192.0.2.0/24".parse().unwrap()));
        assert_eq!(r.dst, Some("198.51.100.0/24".parse().unwrap()));
        assert_eq!(r.iif.as_deref(), Some("lo"));
        assert_eq!(r.fwmark, Some((0x10, 0xf0)));
        assert_eq!(r.action, Table { table: 300 });
        assert!(!r.unknown_selector);

        assert!(at(200).invert);
        assert_eq!(at(200).fwmark, Some((0xca6c, u32::MAX)));
        assert_eq!(at(200).action, Table { table: 51820 });
        assert_eq!(at(201).suppress_prefixlength, Some(0));
        assert_eq!(at(200).suppress_prefixlength, None);

        let r = at(202);
        assert_eq!(
            (r.protocol, r.sport, r.dport),
            (Some(6), Some((1000, 2000)), Some((22, 22)))
        );
        assert_eq!(
            (r.uid, r.tos, r.oif.as_deref()),
            (Some((1000, 1999)), 0x10, Some("lo"))
        );
        assert_eq!(r.action, Unreachable);

        assert_eq!(at(203).action, Goto { priority: 32766 });
        assert_eq!(at(204).action, Nop);
        assert_eq!(at(205).action, Blackhole);
        assert_eq!(at(206).action, Prohibit);
        assert!(at(207).unknown_selector);
        let r = at(50);
        assert!(r.ipv6 && r.src == Some("2001:db8::/32".parse().unwrap()));
        assert_eq!(at(0).action, Table { table: 255 });
        let order: Vec<_> = rules.iter().map(|r| (r.ipv6, r.priority)).collect();
        assert!(order.is_sorted());
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn sockets_of_another_namespace_are_read_without_leaving_this_one() {
    let (port, tid) = {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set lo up");
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            // A process of its own keeps the namespace findable by pid.
            let mut child = Command::new("/usr/bin/sleep").arg("20").spawn().unwrap();
            send.send((port, child.id())).unwrap();
            std::thread::sleep(std::time::Duration::from_secs(3));
            child.kill().unwrap();
            child.wait().unwrap();
            drop(listener);
        });
        receive.recv().unwrap()
    };
    let here = kernel::sockets().unwrap();
    let mut each = kernel::sockets_in(&[u32::MAX, tid]).into_iter();
    let gone = each.next().unwrap();
    assert!(matches!(gone, Err(kernel::Error::File { .. })), "{gone:?}");
    let there = each.next().unwrap().unwrap();
    assert_eq!(there.len(), 1);
    assert_eq!(there[0].port, port);
    assert_eq!(kernel::sockets().unwrap().len(), here.len());
    assert_eq!(kernel::net_in(tid).unwrap().interfaces.len(), 1);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_socket_bound_to_a_device_says_so() {
    in_new_namespace(|| {
        ip("link set lo up");
        ip("link add dummy0 type bridge");
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let name = std::ffi::OsString::from("dummy0");
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &name)
            .unwrap();
        let found = kernel::sockets().unwrap();
        let net = kernel::net().unwrap();
        let dummy = net.interfaces.iter().find(|i| i.name == "dummy0").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].device, Some(dummy.index));
    });
}
