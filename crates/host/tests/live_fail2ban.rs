//! The real fail2ban and the guard, on a host without systemd: who is banned, and what becomes of a ban.

#![allow(
    clippy::expect_used,
    reason = "a live test may panic: that is how it fails"
)]

mod bans;

use bans::{banned, facts, policy, wait_for, write_plan};
use lab::{Host, World, address};
use portcullis_core::policy::Policy;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_millis(700);

#[track_caller]
fn check(who: &Host, to: IpAddr, port: u16, open: bool) {
    let seen = who.connect(to, port, BOUND).expect("a knock");
    assert_eq!(seen, open, "{} -> {to}:{port}", who.name());
}

fn client(server: &Host, words: &str) -> String {
    let argv: Vec<&str> = ["fail2ban-client"]
        .into_iter()
        .chain(words.split(' '))
        .collect();
    server.ok(&argv).expect("fail2ban-client")
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn failed_logins_end_in_the_guards_sets_and_stay_until_their_time() {
    lab::require_root();
    let world = World::new("fail2ban-sets").expect("a world");
    let (server, stranger) = (&world.server, &world.stranger);
    let policy = Policy::builtin();
    let sshd = server.sshd().expect("sshd");
    server.write("/var/log/fail2ban.log", "").expect("written");
    write_plan(server, &facts(), &policy);
    let _web = server
        .http_server("website", "[::]:443", "hello")
        .expect("serves");
    let fail2ban = server.fail2ban().expect("fail2ban");
    let mut held = stranger
        .in_net(|| {
            TcpStream::connect_timeout(
                &SocketAddr::new(address::SERVER, 443),
                Duration::from_secs(3),
            )
        })
        .expect("in the network")
        .expect("connects");

    for _ in 0..3 {
        let _ = stranger.ssh_password(address::SERVER, "root", "wrong");
    }
    wait_for("a ban", || {
        banned(server, "sshd4").contains("198.51.100.66")
    });
    let set = banned(server, "sshd4");
    assert!(
        set.contains("timeout 1h") && set.contains("comment \"3 failures\""),
        "{set}"
    );
    check(stranger, address::SERVER, 22, false);
    check(stranger, address::SERVER, 443, false);
    let _ = held.set_read_timeout(Some(Duration::from_secs(2)));
    let _ = held.write_all(b"GET / HTTP/1.0\r\n\r\n");
    let mut page = String::new();
    let _ = held.read_to_string(&mut page);
    assert!(page.is_empty(), "a banned address keeps its connection");
    check(&world.operator, address::SERVER, 22, true);
    let shell = world
        .operator
        .ssh(address::SERVER, &sshd.key, &["true"])
        .expect("ssh");
    assert!(shell.success(), "the operator logs in");

    // The guard is replaced: bans stay.
    write_plan(server, &facts(), &policy);
    check(stranger, address::SERVER, 443, false);
    // An unban is one, and no other set's.
    client(server, "set sshd unbanip 198.51.100.66");
    wait_for("an unban", || {
        !banned(server, "sshd4").contains("198.51.100.66")
    });
    check(stranger, address::SERVER, 443, true);

    // Run out or taken out by hand, then unbanned by fail2ban: no error.
    client(server, "set sshd banip 203.0.113.77");
    server
        .ok(&["/usr/sbin/nft", "flush set inet portcullis sshd4"])
        .expect("nft");
    client(server, "set sshd unbanip 203.0.113.77");
    let log = server.read_text("/var/log/fail2ban.log").expect("a log");
    assert!(!log.contains("ERROR"), "{log}");

    // Deleted by somebody: the next ban puts the guard back, with every ban before it.
    client(server, "set sshd banip 198.51.100.66");
    wait_for("fail2ban to have written it down", || {
        on_record(server) == 1
    });
    server
        .ok(&["/usr/sbin/nft", "delete table inet portcullis"])
        .expect("nft");
    client(server, "set sshd banip 2001:db8:51::66");
    assert!(banned(server, "sshd4").contains("198.51.100.66"));
    assert!(banned(server, "sshd6").contains("2001:db8:51::66"));
    check(stranger, address::SERVER, 443, false);
    check(stranger, address::SERVER_V6, 443, false);

    // A reload keeps the action in its jail, and what it bans.
    client(server, "reload");
    assert!(client(server, "get sshd actions").contains("portcullis"));
    client(server, "set sshd banip 203.0.113.78");
    assert!(banned(server, "sshd4").contains("203.0.113.78"));

    // The end of fail2ban takes no ban along; its start brings back those that the kernel lost.
    wait_for("fail2ban to have written it down", || {
        on_record(server) == 3
    });
    fail2ban.stop(Duration::from_secs(20)).expect("stops");
    assert!(banned(server, "sshd4").contains("198.51.100.66"));
    server
        .ok(&["/usr/sbin/nft", "flush set inet portcullis sshd4"])
        .expect("nft");
    let _fail2ban = server.fail2ban().expect("fail2ban");
    wait_for("its bans", || {
        let set = banned(server, "sshd4");
        set.contains("198.51.100.66") && set.contains("203.0.113.78")
    });

    // All unbanned: gone from the kernel too.
    client(server, "unban --all");
    wait_for("an unban of all", || {
        !banned(server, "sshd4").contains("elements")
    });
    assert!(!banned(server, "sshd6").contains("elements"));
    check(stranger, address::SERVER_V6, 443, true);
    assert!(
        !server
            .exists("/etc/fail2ban/action.d/__pycache__")
            .expect("looks"),
        "a compiled copy of the action stays behind"
    );
    let log = server.read_text("/var/log/fail2ban.log").expect("a log");
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// Bans in fail2ban's database.
fn on_record(server: &Host) -> usize {
    let count = "import sqlite3; print(sqlite3.connect('/var/lib/fail2ban/fail2ban.sqlite3').execute('select count(*) from bips').fetchone()[0])";
    server
        .ok(&["/usr/bin/python3", "-c", count])
        .expect("counts")
        .trim()
        .parse()
        .expect("a number")
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn a_whole_ipv6_network_is_banned_where_the_policy_says_so() {
    lab::require_root();
    let world = World::new("fail2ban-wide").expect("a world");
    let server = &world.server;
    server.write("/var/log/auth.log", "").expect("written");
    server.write("/var/log/fail2ban.log", "").expect("written");
    let wide = policy(
        "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n[bans]\nipv6_prefix = 64\n",
    );
    write_plan(server, &facts(), &wide);
    let _web = server
        .http_server("website", "[::]:443", "hello")
        .expect("serves");
    let _fail2ban = server.fail2ban().expect("fail2ban");
    check(&world.stranger, address::SERVER_V6, 443, true);
    // Two neighbours of the stranger, in his network.
    client(server, "set sshd banip 2001:db8:51::1 2001:db8:51::2");
    assert!(banned(server, "sshd6").contains("2001:db8:51::"));
    check(&world.stranger, address::SERVER_V6, 443, false);
    check(&world.operator, address::SERVER_V6, 443, true);
    // The network is out for as long as any of it is.
    wait_for("fail2ban to have written it down", || {
        on_record(server) == 2
    });
    client(server, "set sshd unbanip 2001:db8:51::1");
    check(&world.stranger, address::SERVER_V6, 443, false);
    client(server, "set sshd unbanip 2001:db8:51::2");
    wait_for("an unban", || !banned(server, "sshd6").contains("elements"));
    check(&world.stranger, address::SERVER_V6, 443, true);
}

/// Real nginx, with an API behind a key, a rate limit and a login that fails with 400.
const NGINX: &str = "
worker_processes 1;
error_log /var/log/nginx/error.log;
pid /run/nginx.pid;
events {}
http {
  access_log /var/log/nginx/access.log combined;
  server {
    listen [::]:443 ipv6only=off;
    location /v1/ { return 401; }
    location /busy { return 429; }
    location /api/v1/auths/ { return 400; }
    location / { return 200 hello; }
  }
}
";

#[test]
#[ignore = "live: run by cargo xtask test"]
fn what_real_nginx_logs_bans_in_separate_jails() {
    lab::require_root();
    let world = World::new("fail2ban-nginx").expect("a world");
    let server = &world.server;
    for log in ["auth.log", "fail2ban.log", "nginx/access.log"] {
        server
            .write(&format!("/var/log/{log}"), "")
            .expect("written");
    }
    server
        .write("/etc/nginx/test.conf", NGINX)
        .expect("written");
    server
        .ok(&["/usr/bin/mkdir", "-p", "/var/lib/nginx"])
        .expect("mkdir");
    let _nginx = server
        .spawn(&[
            "/usr/sbin/nginx",
            "-c",
            "/etc/nginx/test.conf",
            "-g",
            "daemon off;",
        ])
        .expect("nginx");
    server
        .wait_port(
            "127.0.0.1".parse().expect("an address"),
            443,
            Duration::from_secs(20),
        )
        .expect("nginx serves");
    let all = policy(
        "version = 1
[[allow]]
port = \"ssh\"
from = \"anywhere\"
[[allow]]
port = 443
from = \"anywhere\"
[bans]
nginx_401 = { max_retry = 3 }
nginx_429 = { max_retry = 3 }
open_webui = { max_retry = 3 }
never = [\"192.0.2.0/24\"]
",
    );
    write_plan(server, &facts(), &all);
    let _fail2ban = server.fail2ban().expect("fail2ban");
    let ask = |from: &Host, to: IpAddr, request: &str| {
        from.in_net(|| {
            let mut stream =
                TcpStream::connect_timeout(&SocketAddr::new(to, 443), Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        })
        .expect("in the network")
    };
    // Names of users, paths and agents that try to name somebody else: 8.8.8.8 in the user's name.
    let hostile = "GET /x?8.8.8.8 HTTP/1.1\r\nHost: x\r\nAuthorization: Basic OC44LjguOCAtIC0gW10gIkdFVCAvIiA0MDEgOng=\r\nUser-Agent: 8.8.8.8 - - [] \"GET / HTTP/1.1\" 401 \r\nConnection: close\r\n\r\n";
    let plain = |method: &str, path: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    };
    for _ in 0..3 {
        assert!(
            ask(&world.stranger, address::SERVER, hostile)
                .expect("answers")
                .contains("200")
        );
        for who in [&world.stranger, &world.operator] {
            assert!(
                ask(who, address::SERVER, &plain("GET", "/v1/models"))
                    .expect("answers")
                    .contains(" 401 ")
            );
        }
    }
    wait_for("a ban for 401", || {
        banned(server, "nginx_4014").contains("198.51.100.66")
    });
    for _ in 0..3 {
        assert!(
            ask(&world.stranger, address::SERVER_V6, &plain("GET", "/busy"))
                .expect("answers")
                .contains(" 429 ")
        );
    }
    wait_for("a ban for 429", || {
        banned(server, "nginx_4296").contains("2001:db8:51::66")
    });
    for _ in 0..3 {
        assert!(
            ask(
                &world.neighbour,
                address::SERVER_LAN,
                &plain("POST", "/api/v1/auths/signin")
            )
            .expect("answers")
            .contains(" 400 ")
        );
    }
    wait_for("a ban for a failed login", || {
        banned(server, "open_webui4").contains("192.168.1.20")
    });
    check(&world.stranger, address::SERVER, 22, false);
    check(&world.operator, address::SERVER, 443, true);
    for set in ["nginx_4014", "nginx_4294", "open_webui4"] {
        let held = banned(server, set);
        assert!(
            !held.contains("8.8.8.8") && !held.contains("192.0.2.7"),
            "{held}"
        );
    }
    assert!(
        !banned(server, "nginx_4294").contains("198.51.100.66"),
        "jails are separate"
    );
}

#[test]
#[ignore = "live: run by cargo xtask test"]
fn ten_thousand_bans_come_back_in_one_batch() {
    lab::require_root();
    let world = World::new("fail2ban-10k").expect("a world");
    let server = &world.server;
    server.write("/var/log/auth.log", "").expect("written");
    server.write("/var/log/fail2ban.log", "").expect("written");
    write_plan(server, &facts(), &Policy::builtin());
    // A first start makes the database.
    let fail2ban = server.fail2ban().expect("fail2ban");
    fail2ban.stop(Duration::from_secs(20)).expect("stops");
    let fill = "
import sqlite3, time
db = sqlite3.connect('/var/lib/fail2ban/fail2ban.sqlite3')
now = int(time.time())
db.executemany('insert into bips(ip, jail, timeofban, bantime, bancount, data) values(?, ?, ?, 3600, 1, ?)',
    [('100.64.%d.%d' % (n >> 8, n & 255), 'sshd', now, '{\"failures\": 3}') for n in range(10000)])
db.commit()
";
    server.ok(&["/usr/bin/python3", "-c", fill]).expect("fills");
    let begin = Instant::now();
    server
        .ok(&[
            "/usr/bin/python3",
            "-I",
            "/etc/fail2ban/action.d/portcullis.py",
        ])
        .expect("restores");
    println!(
        "10,000 bans from the database to the kernel: {:?}",
        begin.elapsed()
    );
    let count = |set: &str| banned(server, set).matches(" timeout ").count();
    assert_eq!(count("sshd4"), 10_000);
    // The same at a start of fail2ban, in one batch and not one by one: the log says when each jail stood.
    server
        .ok(&["/usr/sbin/nft", "flush set inet portcullis sshd4"])
        .expect("nft");
    let _fail2ban = server.fail2ban().expect("fail2ban");
    wait_for("all of them", || count("sshd4") == 10_000);
}
