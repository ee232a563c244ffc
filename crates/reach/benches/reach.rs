//! What an answer costs. Rulesets are made, not read, so that only the engine is timed.
#![allow(clippy::unwrap_used)] // Nothing but timing depends on it.
use divan::{Bencher, black_box};
use reach::ir::*;
use reach::{
    AddrSet, Backend, Engine, Interface, InterfaceAddress, Net, NextHop, Proto, Query, Route,
    RouteKind, Ruleset, Sysctls, World,
};
use std::net::{IpAddr, Ipv4Addr};

fn main() {
    divan::main();
}

fn cmp(key: Key, values: Values) -> Statement {
    Statement::Match(Match::Cmp {
        of: key.into(),
        negate: false,
        values,
    })
}

fn rule(mut matches: Vec<Statement>, verdict: RuleVerdict) -> Rule {
    matches.push(Statement::Verdict(verdict));
    Rule {
        text: "-A INPUT …".into(),
        statements: matches,
        ..Rule::default()
    }
}

fn from(first: u32, last: u32) -> Statement {
    let ip = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
    cmp(
        Key::Saddr(Ipv::V4),
        Values::Addr(AddrSet::from_range(ip(first), ip(last))),
    )
}

/// A cheap scatter of the address space, the same every time.
fn scatter(n: u32) -> u32 {
    n.wrapping_mul(2_654_435_761) & !0xff
}

fn filter(chains: Vec<Chain>) -> Ruleset {
    let mut table = Table::new(Family::Ip, "filter", Backend::IptablesNft);
    table.chains = chains;
    Ruleset {
        tables: vec![table],
        ipsets: vec![],
    }
}

fn input(rules: Vec<Rule>) -> Chain {
    let mut base = Base::xtables("filter", "INPUT").unwrap();
    base.policy = Policy::Drop;
    let mut chain = Chain::new("INPUT", Some(base));
    let states = Statement::Match(Match::Bits {
        key: Key::CtState,
        negate: false,
        bits: ct_state::ESTABLISHED | ct_state::RELATED,
    });
    chain.rules.push(rule(vec![states], RuleVerdict::Accept));
    chain.rules.extend(rules);
    chain
}

fn host() -> Net {
    let interface = |index, name: &str, net: &str| Interface {
        index,
        name: name.into(),
        up: true,
        loopback: name == "lo",
        addresses: vec![InterfaceAddress {
            net: net.parse().unwrap(),
            peer: None,
        }],
        rp_filter: Some(0),
        accept_local: Some(false),
        route_localnet: Some(false),
        forwarding_v4: Some(true),
        ..Interface::default()
    };
    let route = |dst: &str, oif| Route {
        table: 254,
        dst: dst.parse().unwrap(),
        kind: RouteKind::Unicast,
        metric: 0,
        tos: 0,
        prefsrc: None,
        nexthops: vec![NextHop {
            oif,
            gateway: None,
            dead: false,
        }],
    };
    Net {
        interfaces: vec![
            interface(1, "lo", "127.0.0.1/8"),
            interface(2, "eth0", "192.0.2.10/24"),
        ],
        routes: vec![route("0.0.0.0/0", 2), route("10.244.0.0/16", 3)],
        rules: vec![],
        sysctls: Sysctls {
            ipv4_forward: Some(true),
            rp_filter_all: Some(0),
            ..Sysctls::default()
        },
    }
}

fn query(dport: u16) -> Query {
    Query {
        ingress: "eth0".into(),
        dst: "192.0.2.10".parse().unwrap(),
        proto: Proto::Tcp,
        dport,
        sport: None,
        sources: AddrSet::all_v4(),
    }
}

fn ask(bencher: Bencher<'_, '_>, rules: &Ruleset, ports: std::ops::Range<u16>) {
    let net = host();
    bencher.bench_local(|| {
        let engine = Engine::new(World { rules, net: &net });
        for port in ports.clone() {
            black_box(engine.reach(&query(port)));
        }
    });
}

/// 100,000 rules `-s NET -p tcp --dport PORT -j ACCEPT` over 200 ports; one question for each port.
#[divan::bench(sample_count = 5)]
fn flat_100k_rules_200_endpoints(bencher: Bencher<'_, '_>) {
    let rules = (0..100_000u32).map(|n| {
        let net = scatter(n);
        let port = 1000 + u64::from(n % 200);
        let matches = vec![
            from(net, net | 0xff),
            cmp(Key::L4Proto, Values::int(6)),
            cmp(Key::Dport, Values::int(port)),
        ];
        rule(
            matches,
            if n % 3 == 0 {
                RuleVerdict::Drop
            } else {
                RuleVerdict::Accept
            },
        )
    });
    ask(bencher, &filter(vec![input(rules.collect())]), 1000..1200);
}

/// 100,000 rules `-s NET -j DROP`, then one that accepts.
fn prefixes_only() -> Ruleset {
    let mut rules: Vec<Rule> = (0..100_000u32)
        .map(|n| rule(vec![from(scatter(n), scatter(n) | 0xff)], RuleVerdict::Drop))
        .collect();
    rules.push(rule(vec![], RuleVerdict::Accept));
    filter(vec![input(rules)])
}

/// One question to 100,000 prefixes, of a host made ready: the three sets, and the witness of one client.
#[divan::bench(sample_count = 5)]
fn prefixes_only_100k_one_endpoint(bencher: Bencher<'_, '_>) {
    let (rules, net) = (prefixes_only(), host());
    let engine = Engine::new(World {
        rules: &rules,
        net: &net,
    });
    let client: IpAddr = "203.0.113.9".parse().unwrap();
    bencher.bench_local(|| {
        let decision = engine.decide(&query(80));
        black_box(decision.piece(client));
        black_box(decision.admitted().count());
    });
}

/// Making a host of 100,000 rules ready, once for all questions.
#[divan::bench(sample_count = 5)]
fn prefixes_only_100k_made_ready(bencher: Bencher<'_, '_>) {
    let (rules, net) = (prefixes_only(), host());
    bencher.bench_local(|| {
        black_box(Engine::new(World {
            rules: &rules,
            net: &net,
        }));
    });
}

/// The same, with the witness of each of the 100,000 deciding rules in words.
#[divan::bench(sample_count = 5)]
fn prefixes_only_100k_and_every_witness(bencher: Bencher<'_, '_>) {
    ask(bencher, &prefixes_only(), 80..81);
}

/// 50,000 rules and up: twice as many may cost about twice as much (10,000 still fit into a processor's cache).
#[divan::bench(sample_count = 5, args = [10_000, 50_000, 100_000, 200_000])]
fn flat_rules_one_endpoint(bencher: Bencher<'_, '_>, count: u32) {
    let rules = (0..count).map(|n| {
        let port = cmp(Key::Dport, Values::int(1000 + u64::from(n % 200)));
        let net = scatter(n);
        rule(
            vec![
                from(net, net | 0xff),
                cmp(Key::L4Proto, Values::int(6)),
                port,
            ],
            RuleVerdict::Accept,
        )
    });
    ask(bencher, &filter(vec![input(rules.collect())]), 1000..1001);
}

/// A set of 100,000 networks dropped, then 1,000 jumps of half of the Internet each; one question.
#[divan::bench(sample_count = 5)]
fn set_100k_and_1000_broad_jumps_one_endpoint(bencher: Bencher<'_, '_>) {
    let ip = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
    let element = |n: u32| Element {
        key: vec![Field::Addr(ip(scatter(n)), ip(scatter(n) | 0x7f))],
        ..Element::default()
    };
    let lookup = Statement::Match(Match::Lookup {
        keys: vec![Key::Saddr(Ipv::V4).into()],
        negate: false,
        set: SetRef::Named("blocked".into()),
    });
    let mut rules = vec![rule(vec![lookup], RuleVerdict::Drop)];
    let jump = |chain: &str| RuleVerdict::Jump {
        chain: chain.into(),
    };
    for n in 0..1000u32 {
        let half = (n % 2) << 31;
        rules.push(rule(
            vec![from(half, half | 0x7fff_ffff)],
            jump(&format!("c{}", n % 10)),
        ));
    }
    rules.push(rule(vec![], RuleVerdict::Accept));
    let mut chains = vec![input(rules)];
    for n in 0..10u32 {
        let mut chain = Chain::new(format!("c{n}"), None);
        chain.rules.push(rule(
            vec![from(n << 20, n << 20 | 0xffff)],
            RuleVerdict::Drop,
        ));
        chain.rules.push(rule(
            vec![from(n << 24, n << 24 | 0xffff)],
            RuleVerdict::Return,
        ));
        chains.push(chain);
    }
    let mut rules = filter(chains);
    rules.tables[0].sets.push(NftSet {
        name: "blocked".into(),
        interval: true,
        elements: (0..100_000).map(element).collect(),
        ..NftSet::default()
    });
    ask(bencher, &rules, 80..81);
}

/// kube-proxy: 10,000 services with a chain each, and a chain for each of their endpoints; one question.
#[divan::bench(sample_count = 5)]
fn kube_proxy_20k_chains_one_endpoint(bencher: Bencher<'_, '_>) {
    let ip = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
    let jump = |chain: String| RuleVerdict::Jump { chain };
    let mut table = Table::new(Family::Ip, "nat", Backend::IptablesNft);
    let mut prerouting = Chain::new("PREROUTING", Base::xtables("nat", "PREROUTING"));
    prerouting
        .rules
        .push(rule(vec![], jump("KUBE-SERVICES".into())));
    let mut services = Chain::new("KUBE-SERVICES", None);
    let mut ports = Chain::new("KUBE-NODEPORTS", None);
    for n in 0..10_000u32 {
        let port = 20_000 + n as u16;
        let cluster = AddrSet::from_range(ip(0x0a60_0000 + n), ip(0x0a60_0000 + n));
        let to_cluster = vec![
            cmp(Key::Daddr(Ipv::V4), Values::Addr(cluster)),
            cmp(Key::L4Proto, Values::int(6)),
            cmp(Key::Dport, Values::int(80)),
        ];
        services
            .rules
            .push(rule(to_cluster, jump(format!("KUBE-SVC-{n}"))));
        let node_port = vec![
            cmp(Key::L4Proto, Values::int(6)),
            cmp(Key::Dport, Values::int(port.into())),
        ];
        ports
            .rules
            .push(rule(node_port, jump(format!("KUBE-SVC-{n}"))));
        let mut service = Chain::new(format!("KUBE-SVC-{n}"), None);
        service
            .rules
            .push(rule(vec![], jump(format!("KUBE-SEP-{n}"))));
        let mut endpoint = Chain::new(format!("KUBE-SEP-{n}"), None);
        let to = ip(0x0af4_0000 + n);
        endpoint.rules.push(Rule {
            text: "-A KUBE-SEP -j DNAT".into(),
            statements: vec![Statement::Nat(Nat {
                kind: NatKind::Dnat,
                addr: Some(Expr::Addrs(to, to)),
                port: Some(Expr::Ports(8080, 8080)),
                random: false,
                persistent: false,
                netmap: false,
            })],
            ..Rule::default()
        });
        table.chains.extend([service, endpoint]);
    }
    services
        .rules
        .push(rule(vec![], jump("KUBE-NODEPORTS".into())));
    table.chains.extend([prerouting, services, ports]);
    let rules = Ruleset {
        tables: vec![table],
        ipsets: vec![],
    };
    ask(bencher, &rules, 25_000..25_001);
}

/// A usual host as people have it: UFW, Docker and fail2ban as they dump themselves (some 250 rules of both
/// families), five links, 20 ports asked about from each; one engine, as an audit has it.
#[divan::bench]
fn usual_host_20_endpoints_5_zones(bencher: Bencher<'_, '_>) {
    let file = |name: &str| {
        let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    };
    let (save, save6) = (
        file("docker20.iptables-save"),
        file("docker20.ip6tables-save"),
    );
    let (rules, _) = reach::parse::combine(reach::parse::Dumps {
        iptables: Some(&save),
        ip6tables: Some(&save6),
        ..Default::default()
    });
    let mut net = host();
    let mut links = vec!["eth0".to_string()];
    for (index, name, address) in [
        (3, "docker0", "172.17.0.1/16"),
        (4, "br-43a007d9a37e", "172.18.0.1/16"),
        (5, "tailscale0", "100.64.0.5/32"),
        (6, "eth1", "192.168.7.1/24"),
    ] {
        let mut link = net.interfaces[1].clone();
        (link.index, link.name) = (index, name.to_string());
        let address: ipnet::IpNet = address.parse().unwrap();
        link.addresses[0].net = address;
        let mut route = net.routes[0].clone();
        (route.dst, route.nexthops[0].oif) = (address.trunc(), index);
        net.interfaces.push(link);
        net.routes.push(route);
        links.push(name.to_string());
    }
    net.routes
        .sort_by_key(|r| std::cmp::Reverse(r.dst.prefix_len()));
    let ports = [
        22, 80, 443, 2222, 3000, 3306, 5000, 5432, 6000, 6379, 8000, 8080, 8081, 8265, 8888, 9000,
        9090, 9100, 11434, 27017,
    ];
    bencher.bench_local(|| {
        let engine = Engine::new(World {
            rules: &rules,
            net: &net,
        });
        for ingress in &links {
            for port in ports {
                let mut query = query(port);
                query.ingress.clone_from(ingress);
                black_box(engine.reach(&query));
            }
        }
    });
}
