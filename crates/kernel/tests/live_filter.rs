//! What ufw, iptables-legacy and ipset put into the kernel; and what looking must not do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
use common::*;
use nix::mount::{MsFlags, mount};
use reach::Backend;
use reach::ir::Family;

fn names(ipv6: bool) -> String {
    let file = if ipv6 {
        "ip6_tables_names"
    } else {
        "ip_tables_names"
    };
    std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn looking_creates_no_legacy_table() {
    in_new_namespace(|| {
        assert_eq!(names(false), "");
        let filter = kernel::filter().unwrap();
        assert!(filter.ruleset.is_empty());
        assert_eq!(filter.unseen, Vec::<String>::new());
        assert_eq!(names(false), "");
        assert_eq!(names(true), "");
    });
}

const LEGACY_4: &str = r#"*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:foo - [0:0]
:empty - [0:0]
-A INPUT -s 10.0.0.0/8 -d 192.168.1.0/25 -i eth0 -p tcp -m tcp --dport 22 -m comment --comment "hi there" -j ACCEPT
-A INPUT ! -s 10.0.0.1/32 ! -i eth+ -p udp -m udp --sport 53 --dport 1000:2000 -j foo
-A OUTPUT -s 10.0.0.1/255.0.0.255 -o lo -g foo
-A INPUT -p tcp -m tcp ! --dport 5:9 --tcp-flags FIN,SYN,RST,ACK SYN
-A INPUT ! -p tcp -f -j DROP
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m multiport --dports 1,2,10:20 -j RETURN
-A INPUT -m limit --limit 3/min --limit-burst 7 -j LOG --log-prefix "x y"
-A INPUT -m addrtype --dst-type LOCAL -j REJECT --reject-with icmp-port-unreachable
-A INPUT -m mark --mark 0x1/0xff
-A INPUT -j empty
-A INPUT -j QUEUE
-A foo -j RETURN
-A foo -p icmp -m icmp --icmp-type 8 -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A PREROUTING -p tcp -m tcp --dport 81 -j REDIRECT --to-ports 8080
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -j MARK --set-xmark 0x1/0xff
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack
COMMIT
"#;

const LEGACY_6: &str = r#"*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:six - [0:0]
-A INPUT -s fe80::/10 -d ff02::fb/128 -i eth0 -p udp -m udp --dport 5353 -j ACCEPT
-A INPUT -m rt --rt-type 0 -j DROP
-A INPUT ! -s 2001:db8::/33 -g six
-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j ACCEPT
-A six -j REJECT --reject-with icmp6-port-unreachable
COMMIT
"#;

#[test]
#[ignore = "live: run by cargo xtask test"]
fn legacy_tables_are_those_of_iptables_legacy_save() {
    in_new_namespace(|| {
        run("/usr/sbin/iptables-legacy-restore", &[], LEGACY_4);
        run("/usr/sbin/ip6tables-legacy-restore", &[], LEGACY_6);
        let ours = kernel::filter().unwrap();
        assert_eq!(ours.unseen, Vec::<String>::new());
        for (program, ipv6, family) in [
            ("/usr/sbin/iptables-legacy-save", false, Family::Ip),
            ("/usr/sbin/ip6tables-legacy-save", true, Family::Ip6),
        ] {
            let text = run(program, &[], "");
            let (theirs, notes) = reach::parse::iptables_save(&text, ipv6, Backend::IptablesLegacy);
            assert_eq!(notes, []);
            let mut mine = ours.ruleset.clone();
            mine.tables.retain(|t| t.family == family);
            if let Some(difference) = difference(&mine, &theirs) {
                panic!("{difference}");
            }
            let mut lines: Vec<String> = rule_lines(&text)
                .into_iter()
                .filter(|l| l.starts_with("-A"))
                .collect();
            let mut texts: Vec<String> = mine.rules().map(|(_, r)| r.text.clone()).collect();
            lines.sort();
            texts.sort();
            assert_eq!(texts, lines);
        }
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn ipsets_are_those_of_ipset_save() {
    const SETS: &str =
        "create a hash:ip family inet hashsize 1024 maxelem 65536 timeout 300 comment
create b hash:net family inet6 hashsize 1024 maxelem 65536
create c hash:ip,port family inet hashsize 1024 maxelem 65536 counters
create d hash:net,port,net family inet hashsize 1024 maxelem 65536
create e bitmap:port range 0-1024
create f bitmap:ip range 10.0.0.0-10.0.0.255
create g hash:net,iface family inet hashsize 1024 maxelem 65536
create h hash:ip family inet hashsize 1024 maxelem 65536 netmask 24
create l list:set size 8
add a 10.0.0.1 timeout 0 comment \"why not\"
add a 10.0.0.2 timeout 100
add b 2001:db8::/32
add b 2001:db8:1::/48 nomatch
add c 10.0.0.1,tcp:80
add c 10.0.0.1,udp:53
add e 22
add e 80
add f 10.0.0.5
add g 10.0.0.0/8,eth0
add h 10.0.1.0
add l a
add l h
";
    in_new_namespace(|| {
        let refused = try_run("/usr/sbin/ipset", &["restore"], SETS).err();
        // A kernel need not have every type.
        if let Some(why) = refused {
            let less: String = SETS
                .lines()
                .filter(|l| !l.starts_with("create d"))
                .map(|l| format!("{l}\n"))
                .collect();
            try_run("/usr/sbin/ipset", &["destroy"], "").unwrap();
            run("/usr/sbin/ipset", &["restore"], &less);
            assert!(why.contains("line 4"), "{why}");
        }
        run(
            IPTABLES_RESTORE,
            &[],
            "*filter\n-A INPUT -m set --match-set a src -j DROP\n-A INPUT -m set ! --match-set c src,dst --return-nomatch -j DROP\n-A INPUT -p tcp -m set --match-set c src,dst --packets-gt 5 -j DROP\n-A INPUT -j SET --add-set a src --exist --timeout 60\n-A INPUT -j SET --del-set c src,dst\nCOMMIT\n",
        );
        let ours = kernel::filter().unwrap();
        assert!(ours.ruleset.ipsets.len() >= 8);
        assert!(ours.ruleset.ipsets.iter().all(|s| !s.incomplete));
        let sorted = |mut r: reach::Ruleset| {
            for set in r.ipsets.iter_mut().filter(|s| s.kind != "list:set") {
                set.entries.sort_by_cached_key(|e| format!("{:?}", e.key));
            }
            r
        };
        if let Some(difference) = difference(&sorted(ours.ruleset), &sorted(by_text())) {
            panic!("{difference}");
        }
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn what_real_ufw_writes() {
    // Copies of ufw's folders lie under these, on mounts of the test's thread alone.
    let places = ["/etc/ufw", "/lib/ufw"].map(|folder| {
        let name = format!(
            "kernel-test-{}{}",
            std::process::id(),
            folder.replace('/', "-")
        );
        (folder, std::env::temp_dir().join(name))
    });
    let inside = places.clone();
    let result = std::panic::catch_unwind(|| {
        in_new_namespace(move || {
            // Mounts of this thread alone: ufw's files and locks are copies.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            for (folder, copy) in &inside {
                std::fs::create_dir_all(copy).unwrap();
                mount(Some("tmpfs"), copy, Some("tmpfs"), MsFlags::empty(), none).unwrap();
                let copy = copy.to_str().unwrap();
                run("/usr/bin/cp", &["-a", &format!("{folder}/."), copy], "");
                mount(Some(copy), *folder, none, MsFlags::MS_BIND, none).unwrap();
            }
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            run("/usr/sbin/ip", &["link", "set", "lo", "up"], "");
            for args in [
                &["--force", "enable"][..],
                &["allow", "22/tcp"],
                &["limit", "ssh"],
                &[
                    "allow",
                    "from",
                    "10.0.0.0/8",
                    "to",
                    "any",
                    "port",
                    "11434",
                    "proto",
                    "tcp",
                    "comment",
                    "ollama for us",
                ],
                &["deny", "in", "on", "eth0", "from", "203.0.113.0/24"],
                &["reject", "out", "25/tcp"],
                &["route", "allow", "in", "on", "eth0", "out", "on", "eth1"],
                &["allow", "6000:6007/udp"],
                &["logging", "high"],
            ] {
                run("/usr/sbin/ufw", args, "");
            }
            let ours = compare();
            assert!(ours.stats.rules > 100, "{:?}", ours.stats);
            let unknown = format!("{:?}", ours.ruleset).matches("Unknown").count();
            assert_eq!(unknown, 0);
        })
    });
    for (_, copy) in places {
        let _ = std::fs::remove_dir(copy);
    }
    if let Err(e) = result {
        std::panic::resume_unwind(e);
    }
}

/// On one host, on top of ufw's rules: containers with published ports and a network of their own,
/// and bans of both of fail2ban's usual actions.
#[test]
#[ignore = "live: run by cargo xtask test"]
fn what_real_dockerd_and_fail2ban_write() {
    lab::require_root();
    let world = lab::World::new("kernel-rules").unwrap();
    let server = &world.server;
    server.ok(&["ufw", "limit", "22/tcp"]).unwrap();
    server.ok(&["ufw", "--force", "enable"]).unwrap();
    let docker = server.dockerd().unwrap();
    docker.import_web_image("web:1", "hello").unwrap();
    docker
        .cli(&["network", "create", "--internal", "inner"])
        .unwrap();
    docker
        .cli(&["network", "create", "--subnet", "10.77.0.0/24", "shop"])
        .unwrap();
    let published = [
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:8081:80",
        "-p",
        "5353:53/udp",
    ];
    docker.run("web", &published, "web:1").unwrap();
    let shop = ["--network", "shop", "-p", "9000-9001:9000-9001"];
    docker.run("db", &shop, "web:1").unwrap();
    let _syslog = server.syslog().unwrap();
    let jail = |name: &str, action: &str| {
        format!(
            "[{name}]\nenabled = true\nfilter = sshd\nport = ssh,8080\nlogpath = /var/log/auth.log\nbackend = polling\nbanaction = {action}\n"
        )
    };
    let jails = [
        "[DEFAULT]\nallowipv6 = yes\n[sshd]\nenabled = false\n".to_owned(),
        jail("one", "iptables-multiport"),
        jail("two", "nftables-multiport"),
        jail("three", "nftables-allports"),
        jail("four", "iptables-allports"),
    ];
    server
        .write("/etc/fail2ban/jail.d/x.local", jails.concat())
        .unwrap();
    let _fail2ban = server.fail2ban().unwrap();
    for jail in ["one", "two", "three", "four"] {
        let banned = ["198.51.100.66", "2001:db8::66"];
        let argv = [&["fail2ban-client", "set", jail, "banip"][..], &banned].concat();
        server.ok(&argv).unwrap();
    }
    // A ban is carried out by another thread of fail2ban than the one that answers.
    let wanted = ["f2b-one", "f2b-four", "addr6-set-two", "addr6-set-three"];
    let written = || server.ok(&["nft", "list", "ruleset"]).unwrap();
    for _ in 0..100 {
        if wanted.iter().all(|name| written().contains(name)) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let ours = server.in_net(compare).unwrap();
    let chains = ours.ruleset.tables.iter().flat_map(|t| &t.chains);
    let chains: Vec<&str> = chains.map(|c| c.name.as_str()).collect();
    for chain in [
        "DOCKER-USER",
        "ufw-user-input",
        "f2b-one",
        "f2b-four",
        "f2b-chain",
    ] {
        assert!(chains.contains(&chain), "{chain} in {chains:?}");
    }
    let sets = ours.ruleset.tables.iter().flat_map(|t| &t.sets);
    let banned = sets.filter(|s| s.elements.len() == 1).count();
    assert_eq!(banned, 4, "{:#?}", ours.ruleset.tables);
    let unknown = format!("{:?}", ours.ruleset).matches("Unknown").count();
    assert_eq!(unknown, 0);
}

/// The filter table of [`LEGACY_4`] without the target that nf_tables does not have.
fn filter_table() -> String {
    let table = LEGACY_4.split("*nat").next().unwrap();
    table.replace("-A INPUT -j QUEUE\n", "")
}

/// Forbids this thread to run programs: any execve or execveat fails from here on.
fn forbid_programs() {
    let stmt = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // Load the number of the call; two comparisons; refuse or allow.
    let load = stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0);
    let equal = |n: i64, jt| stmt(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, n as u32, jt, 0);
    let give = |value| stmt(libc::BPF_RET | libc::BPF_K, value, 0, 0);
    let mut code = [
        load,
        equal(libc::SYS_execve, 2),
        equal(libc::SYS_execveat, 1),
        give(libc::SECCOMP_RET_ALLOW),
        give(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ];
    let program = libc::sock_fprog {
        len: code.len() as u16,
        filter: code.as_mut_ptr(),
    };
    // SAFETY: both calls concern this thread alone; `program` points to `code`, which lives on.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program),
            0
        );
    }
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn no_program_is_run_to_read_anything() {
    in_new_namespace(|| {
        run(IPTABLES_RESTORE, &[], &filter_table());
        forbid_programs();
        assert!(
            std::process::Command::new("/usr/bin/true")
                .status()
                .is_err()
        );
        assert!(kernel::filter().unwrap().stats.rules > 10);
        kernel::net().unwrap();
        kernel::sockets().unwrap();
        kernel::connections().unwrap();
        let processes = kernel::processes().unwrap();
        let this = std::process::id();
        kernel::connections_of(processes.get(this).unwrap()).unwrap();
        assert!(kernel::sockets_in(&[this])[0].is_ok());
    });
}

/// Takes all capabilities from this thread but those in `keep`.
fn keep_capabilities(keep: u64) {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let word = |bits: u64| [bits as u32, bits as u32, 0];
    let data = [word(keep), word(keep >> 32)];
    // SAFETY: the structures are those of capset(2) version 3, and live across the call, which
    // changes this thread alone.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const data) };
    assert_eq!(result, 0);
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn with_cap_net_admin_alone_the_rules_are_read() {
    in_new_namespace(|| {
        run(IPTABLES_RESTORE, &[], &filter_table());
        keep_capabilities(1 << 12);
        let filter = kernel::filter().unwrap();
        assert!(filter.stats.rules > 10);
        let what: Vec<_> = kernel::processes().unwrap().unseen;
        assert!(
            what.iter().any(|u| u.contains("CAP_SYS_PTRACE")),
            "{what:?}"
        );
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn without_privilege_what_is_missing_is_said() {
    in_new_namespace(|| {
        keep_capabilities(0);
        let error = kernel::filter().unwrap_err();
        assert!(error.is_permission(), "{error}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"));
        // These are open to everyone.
        assert_eq!(kernel::net().unwrap().interfaces.len(), 1);
        kernel::sockets().unwrap();
        let theirs = kernel::sockets_in(&[1]).pop().unwrap().unwrap_err();
        assert!(theirs.is_permission(), "{theirs}");
        let first = kernel::process(1).unwrap();
        let theirs = kernel::connections_of(&first).unwrap_err();
        assert!(theirs.is_permission(), "{theirs}");
    });
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_ruleset_that_keeps_changing_is_read_whole_or_not_at_all() {
    in_new_namespace(|| {
        let table = |n: u32| {
            let rules = "tcp dport 22 accept\n".repeat(200);
            format!(
                "table ip t\ndelete table ip t\ntable ip t {{\nchain c{n} {{\ntype filter hook input priority 0;\n{rules}\n}}\n}}\n"
            )
        };
        run(NFT, &["-f", "-"], &table(0));
        let ns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let writer = std::thread::spawn(move || {
            nix::sched::setns(&ns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut n = 1;
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                run(NFT, &["-f", "-"], &table(n));
                n += 1;
            }
        });
        let mut read = 0;
        for _ in 0..100 {
            match kernel::filter() {
                Ok(f) => {
                    read += 1;
                    assert_eq!(f.ruleset.tables.len(), 1);
                    assert_eq!(f.ruleset.tables[0].chains.len(), 1);
                    assert_eq!(f.stats.rules, 200);
                }
                Err(e) => assert!(matches!(e, kernel::Error::Unstable { .. }), "{e}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap();
        assert!(read > 0);
    });
}
