//! The policy format: what is read, what is refused, and where the caret stands.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use portcullis_core::host::{Container, Engine, Host, Process, Publish, Session, Socket, Sshd};
use portcullis_core::policy::*;
use reach::Proto;
use std::time::Duration;

/// A sound policy to which each case adds its own lines.
const BASE: &str = "version = 1\n[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n";

fn faults(text: &str) -> Vec<PolicyError> {
    match Policy::parse("policy.toml", text) {
        Ok(policy) => panic!("accepted: {policy:?}"),
        Err(errors) => errors.errors,
    }
}

/// The one fault of BASE + `lines`: its kind, what the caret covers, and a word of its hint.
#[track_caller]
fn refuse(lines: &str, fault: Fault, caret: &str, hint: &str) {
    let errors = faults(&format!("{BASE}{lines}"));
    let found: Vec<_> = errors.iter().map(|e| (e.fault, e.excerpt())).collect();
    assert_eq!(found, [(fault, caret)], "{lines}");
    let said = errors[0].hint_text().unwrap_or("");
    assert!(said.contains(hint), "hint of {lines}: {said}");
}

#[track_caller]
fn accept(lines: &str) -> Policy {
    Policy::parse("policy.toml", &format!("{BASE}{lines}")).unwrap_or_else(|e| {
        panic!(
            "{e}: {:?}",
            e.errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        )
    })
}

#[test]
fn builtin_is_sound() {
    let policy = Policy::builtin();
    assert_eq!(policy.incoming.default, DefaultIncoming::Deny);
    assert_eq!(policy.allows[0].port, PortSpec::Ssh);
    assert!(policy.allows[0].rate_limit);
    assert_eq!(
        policy.allows[1].port,
        PortSpec::One(Port::new(443).unwrap())
    );
    assert_eq!(policy.allows[1].from, [Source::Anywhere]);
    assert_eq!(policy.service("ollama").unwrap().reach, Reach::Loopback);
    assert_eq!(policy.bans.ssh, Some(Limits::default()));
    assert_eq!(policy.bans.never.len(), 3);
    assert_eq!(policy.bans.never[2], Never::Admin);
    assert_eq!(policy.tests.len(), 1);
}

#[test]
fn jails_are_named_one_by_one() {
    let bans = |lines: &str| accept(&format!("[bans]\n{lines}")).bans;
    let usual = bans("");
    assert_eq!(usual.jails(), ["sshd", "recidive"]);
    assert_eq!(usual.ipv6_prefix, 128);
    let more = bans(
        "recidive = false\nnginx_401 = true\nuvicorn = { unit = \"vllm.service\", max_retry = 4 }\nipv6_prefix = 56\n",
    );
    assert_eq!(more.jails(), ["sshd", "nginx-401", "uvicorn"]);
    assert_eq!(more.web[0].source, "/var/log/nginx/access.log");
    assert_eq!((more.web[1].limits.max_retry, more.ipv6_prefix), (4, 56));
    assert!(bans("ssh = false\n").jails().is_empty());
}

#[test]
fn what_a_jail_reads_gets_into_fail2bans_files_only_if_it_is_a_plain_name() {
    for lines in [
        "uvicorn = true",
        "uvicorn = { unit = \"vllm\" }",
        "uvicorn = { unit = \"a b.service\" }",
        "uvicorn = { unit = \"x.service\\naction = evil\" }",
        "uvicorn = { unit = \"-x.service\" }",
        "nginx_401 = { log = \"/etc/shadow\" }",
        "nginx_401 = { log = \"/var/log/nginx/../auth.log\" }",
        "nginx_401 = { log = \"/var/log/nginx/a\\nb\" }",
        "nginx_401 = { unit = \"x.service\" }",
        "nginx_401 = 5",
        "ipv6_prefix = 32",
        "ipv6_prefix = 65",
        "ollama = true",
    ] {
        let text = format!("{BASE}[bans]\n{lines}\n");
        assert!(Policy::parse("policy.toml", &text).is_err(), "{lines}");
    }
}

#[test]
fn every_form_of_a_source_is_read() {
    let from = |text: &str| {
        accept(&format!("[[allow]]\nport = 80\nfrom = {text}\n")).allows[1]
            .from
            .clone()
    };
    let shown = |text: &str| {
        from(text)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(shown("\"anywhere\""), ["anywhere"]);
    assert_eq!(shown("\"192.168.1.0/24\""), ["192.168.1.0/24"]);
    assert_eq!(shown("\"192.168.1.7\""), ["192.168.1.7"]);
    assert_eq!(shown("\"2001:db8::/32\""), ["2001:db8::/32"]);
    assert_eq!(shown("\"10.0.0.5-10.0.0.9\""), ["10.0.0.5-10.0.0.9"]);
    assert_eq!(
        shown("[\"lan\", \"vpn:wg0\", \"containers\", \"internet\"]"),
        ["lan", "vpn:wg0", "containers", "internet"]
    );
    assert_eq!(shown("[\"lan\", \"lan\"]"), ["lan"]);
}

#[test]
fn ports_and_protocols_are_read() {
    let allow =
        |text: &str| accept(&format!("[[allow]]\nfrom = \"lan\"\n{text}\n")).allows[1].clone();
    assert_eq!(allow("port = 443").port.ports(&[]), [443]);
    assert_eq!(allow("port = 443").proto, Proto::Tcp);
    assert_eq!(allow("port = \"443\"").port.ports(&[]), [443]);
    assert_eq!(
        allow("port = \"8000-8002\"").port.ports(&[]),
        [8000, 8001, 8002]
    );
    assert_eq!(allow("port = \"8000:8000\"").port.ports(&[]), [8000]);
    assert_eq!(allow("port = 53\nproto = \"udp\"").proto, Proto::Udp);
    assert_eq!(allow("port = 0x50").port.ports(&[]), [80]);
    assert_eq!(allow("port = 8_080").port.ports(&[]), [8080]);
    assert_eq!(PortSpec::Ssh.ports(&[22, 2222]), [22, 2222]);
}

#[test]
fn durations_are_read_and_written_back() {
    for (text, seconds) in [
        ("90s", 90),
        ("10m", 600),
        ("1h", 3600),
        ("7d", 604_800),
        ("2w", 1_209_600),
    ] {
        let policy = accept(&format!("[bans]\nssh = {{ ban_time = \"{text}\" }}\n"));
        let ssh = policy.bans.ssh.unwrap();
        assert_eq!(ssh.ban_time, Duration::from_secs(seconds));
        assert_eq!(ssh.max_retry, 3, "what is not said keeps the guide's value");
        let again = duration_text(ssh.ban_time);
        let policy = accept(&format!("[bans]\nssh = {{ ban_time = \"{again}\" }}\n"));
        assert_eq!(policy.bans.ssh.unwrap().ban_time, ssh.ban_time);
    }
    assert_eq!(accept("[bans]\nssh = false\n").bans.ssh, None);
}

#[test]
fn unknown_keys_are_refused_with_the_key_that_was_meant() {
    refuse(
        "[incomming]\ndefault = \"deny\"\n",
        Fault::UnknownKey,
        "incomming",
        "`incoming`",
    );
    refuse("[[alow]]\nport = 1\n", Fault::UnknownKey, "alow", "`allow`");
    refuse(
        "[[allow]]\nport = 80\nform = \"lan\"\nfrom = \"lan\"\n",
        Fault::UnknownKey,
        "form",
        "`from`",
    );
    refuse(
        "[[allow]]\nport = 80\nfrom = \"lan\"\nratelimit = true\n",
        Fault::UnknownKey,
        "ratelimit",
        "`rate_limit`",
    );
    refuse(
        "[bans]\nssh = { maxretry = 3 }\n",
        Fault::UnknownKey,
        "maxretry",
        "`max_retry`",
    );
    refuse(
        "[bans]\nssh = { colour = 3 }\n",
        Fault::UnknownKey,
        "colour",
        "max_retry, find_time, ban_time",
    );
}

#[test]
fn ports_outside_their_range_are_refused() {
    let port = |p: &str| format!("[[allow]]\nport = {p}\nfrom = \"lan\"\n");
    refuse(&port("0"), Fault::BadPort, "0", "1 to 65535");
    refuse(&port("70000"), Fault::BadPort, "70000", "1 to 65535");
    refuse(&port("-1"), Fault::BadPort, "-1", "1 to 65535");
    refuse(
        &port("99999999999999999999"),
        Fault::BadPort,
        "99999999999999999999",
        "1 to 65535",
    );
    refuse(&port("\"0-10\""), Fault::BadPort, "\"0-10\"", "1 to 65535");
    refuse(&port("\"20-10\""), Fault::BadPort, "\"20-10\"", "10-20");
    refuse(&port("\"https\""), Fault::BadPort, "\"https\"", "443");
    refuse(&port("true"), Fault::WrongType, "true", "");
}

#[test]
fn bad_addresses_are_refused() {
    let from = |s: &str| format!("[[allow]]\nport = 80\nfrom = \"{s}\"\n");
    refuse(
        &from("192.168.1.0/33"),
        Fault::BadAddress,
        "\"192.168.1.0/33\"",
        "0 to 32",
    );
    refuse(
        &from("2001:db8::/129"),
        Fault::BadAddress,
        "\"2001:db8::/129\"",
        "0 to 128",
    );
    refuse(
        &from("192.168.1"),
        Fault::BadAddress,
        "\"192.168.1\"",
        "for example",
    );
    refuse(
        &from("192.168.1.256"),
        Fault::BadAddress,
        "\"192.168.1.256\"",
        "for example",
    );
    refuse(
        &from("192.168.1.7/24"),
        Fault::HostBits,
        "\"192.168.1.7/24\"",
        "\"192.168.1.0/24\"",
    );
    refuse(
        &from("10.0.0.9-10.0.0.5"),
        Fault::BadAddress,
        "\"10.0.0.9-10.0.0.5\"",
        "10.0.0.5-10.0.0.9",
    );
    refuse(
        &from("10.0.0.9-::5"),
        Fault::BadAddress,
        "\"10.0.0.9-::5\"",
        "one family",
    );
    refuse(
        "[bans]\nnever = [\"127.0.0.1/8\"]\n",
        Fault::HostBits,
        "\"127.0.0.1/8\"",
        "\"127.0.0.0/8\"",
    );
}

#[test]
fn unknown_zones_and_services_are_refused() {
    let from = |s: &str| format!("[[allow]]\nport = 80\nfrom = \"{s}\"\n");
    refuse(
        &from("intranet"),
        Fault::UnknownName,
        "\"intranet\"",
        "internet",
    );
    refuse(&from("any"), Fault::UnknownName, "\"any\"", "anywhere");
    refuse(
        &from("office"),
        Fault::UnknownName,
        "\"office\"",
        "zones are",
    );
    refuse(&from("admin"), Fault::UnknownName, "\"admin\"", "network");
    refuse(
        &from("lan:eth0/../x"),
        Fault::UnknownName,
        "\"lan:eth0/../x\"",
        "eth0",
    );
    refuse(
        "[[service]]\nkind = \"olama\"\nreach = \"loopback\"\n",
        Fault::UnknownService,
        "\"olama\"",
        "`ollama`",
    );
    refuse(
        "[[service]]\nkind = \"ollama\"\nreach = \"loopbak\"\n",
        Fault::UnknownName,
        "\"loopbak\"",
        "\"loopback\"",
    );
}

#[test]
fn versions_types_and_values_are_checked() {
    let ssh = "[[allow]]\nport = \"ssh\"\nfrom = \"anywhere\"\n";
    assert_eq!(faults(ssh)[0].fault, Fault::MissingKey);
    let two = faults(&format!("version = 2\n{ssh}"));
    assert_eq!(
        (two[0].fault, two[0].line(), two[0].column()),
        (Fault::Version, 1, 11)
    );
    refuse(
        "[incoming]\ndefault = \"allow\"\n",
        Fault::BadValue,
        "\"allow\"",
        "[[allow]]",
    );
    refuse(
        "[incoming]\ndefault = \"drop\"\n",
        Fault::BadValue,
        "\"drop\"",
        "deny",
    );
    refuse("[allow]\nport = 80\n", Fault::Syntax, "allow", "");
    refuse(
        "[service]\nkind = \"ollama\"\n",
        Fault::WrongType,
        "[service]",
        "[[service]]",
    );
    refuse(
        "[[allow]]\nport = 80\nfrom = []\n",
        Fault::BadValue,
        "[]",
        "closed",
    );
    refuse(
        "[[allow]]\nport = 80\n",
        Fault::MissingKey,
        "[[allow]]",
        "from =",
    );
    refuse(
        "[[allow]]\nport = 53\nproto = \"upd\"\nfrom = \"lan\"\n",
        Fault::BadValue,
        "\"upd\"",
        "udp",
    );
    refuse(
        "[bans]\nssh = { ban_time = 3600 }\n",
        Fault::BadValue,
        "3600",
        "\"3600s\"",
    );
    refuse(
        "[bans]\nssh = { ban_time = \"0s\" }\n",
        Fault::BadValue,
        "\"0s\"",
        "1h",
    );
    refuse(
        "[bans]\nssh = { max_retry = 0 }\n",
        Fault::BadValue,
        "0",
        "",
    );
    refuse(
        "[bans]\nnever = [\"anywhere\"]\n",
        Fault::BadValue,
        "\"anywhere\"",
        "",
    );
    refuse(
        "[bans]\nnever = [\"0.0.0.0/0\"]\n",
        Fault::BadValue,
        "\"0.0.0.0/0\"",
        "",
    );
    refuse(
        "[[test]]\nfrom = \"10.0.0.1\"\nto = \"11434\"\nexpect = \"blocked\"\n",
        Fault::BadValue,
        "\"11434\"",
        "tcp/11434",
    );
    refuse(
        "[[test]]\nfrom = \"10.0.0.1\"\nto = \"tcp/80\"\nexpect = \"closed\"\n",
        Fault::BadValue,
        "\"closed\"",
        "blocked",
    );
    refuse(
        "[[allow]]\nport = 80\nfrom = \"lan\"\ncomment = \"it's\"\n",
        Fault::BadValue,
        "\"it's\"",
        "quotes",
    );
    refuse(
        "[[allow]]\nport = 80\nfrom = \"lan\"\ncomment = \"a\\nb\"\n",
        Fault::BadValue,
        "\"a\\nb\"",
        "one line",
    );
}

#[test]
fn duplicates_and_contradictions_are_refused() {
    let again =
        "[[allow]]\nport = 22\nfrom = \"lan\"\n[[allow]]\nport = 22\nfrom = [\"vpn\", \"lan\"]\n";
    refuse(again, Fault::Duplicate, "[[allow]]", "remove one");
    let open = "[[allow]]\nport = 11434\nfrom = \"lan\"\n[[service]]\nkind = \"ollama\"\nreach = \"loopback\"\n";
    refuse(open, Fault::Contradiction, "[[allow]]", "reach");
    let both = |a: &str, b: &str| {
        format!(
            "[[test]]\nfrom = \"10.0.0.1\"\nto = \"tcp/80\"\nexpect = \"{a}\"\n[[test]]\nfrom = \"10.0.0.1\"\nto = \"tcp/80\"\nexpect = \"{b}\"\n"
        )
    };
    refuse(
        &both("blocked", "blocked"),
        Fault::Duplicate,
        "[[test]]",
        "remove",
    );
    let errors = faults(&format!("{BASE}{}", both("blocked", "admitted")));
    assert!(errors.iter().all(|e| e.fault == Fault::Contradiction));
    let test = |from: &str, to: &str, expect: &str| {
        format!(
            "[[allow]]\nport = 443\nfrom = \"10.0.0.0/8\"\n[[test]]\nfrom = \"{from}\"\nto = \"{to}\"\nexpect = \"{expect}\"\n"
        )
    };
    accept(&test("10.1.2.3", "tcp/443", "admitted"));
    accept(&test("192.0.2.1", "tcp/443", "blocked"));
    accept(&test("lan", "tcp/443", "admitted"));
    accept(&test("lan", "tcp/443", "blocked"));
    accept(&test("0.0.0.0/0", "tcp/443", "blocked"));
    refuse(
        &test("10.1.2.3", "tcp/443", "blocked"),
        Fault::Contradiction,
        "[[test]]",
        "change one",
    );
    // sshd may listen on 443 here, and "ssh" is allowed from anywhere.
    accept(&test("192.0.2.1", "tcp/443", "admitted"));
    refuse(
        &test("192.0.2.1", "udp/443", "admitted"),
        Fault::Contradiction,
        "[[test]]",
        "[[allow]]",
    );
    refuse(
        &test("192.0.2.1", "tcp/ssh", "blocked"),
        Fault::Contradiction,
        "[[test]]",
        "change one",
    );
}

#[test]
fn a_policy_that_would_shut_ssh_is_refused_unless_it_says_so() {
    let errors = faults("version = 1\n[[allow]]\nport = 443\nfrom = \"anywhere\"\n");
    assert_eq!(errors[0].fault, Fault::ShutsSsh);
    let errors = faults("version = 1\n[incoming]\ndefault = \"deny\"\n");
    assert_eq!(
        (errors[0].fault, errors[0].line(), errors[0].excerpt()),
        (Fault::ShutsSsh, 2, "[incoming]")
    );
    Policy::parse("p", "version = 1\n[incoming]\nno_ssh = true\n").unwrap();
    Policy::parse("p", "version = 1\n[[allow]]\nport = 22\nfrom = \"lan\"\n").unwrap();
    let udp = faults("version = 1\n[[allow]]\nport = 22\nproto = \"udp\"\nfrom = \"lan\"\n");
    assert_eq!(udp[0].fault, Fault::ShutsSsh);
}

#[test]
fn all_faults_are_told_at_once_in_the_order_of_the_text() {
    let errors = faults(
        "version = 3\n[[allow]]\nport = 0\nfrom = \"intrnet\"\n[[service]]\nkind = \"x\"\nreach = 7\n",
    );
    let lines: Vec<_> = errors.iter().map(|e| (e.line(), e.fault)).collect();
    assert_eq!(
        lines,
        [
            (1, Fault::Version),
            (3, Fault::BadPort),
            (4, Fault::UnknownName),
            (6, Fault::UnknownService),
            (7, Fault::WrongType),
        ]
    );
}

#[test]
fn broken_toml_is_told_with_its_place() {
    let errors = faults("version = 1\n[[allow]\nport = 80\n");
    assert_eq!((errors[0].fault, errors[0].line()), (Fault::Syntax, 2));
    let twice = faults("version = 1\nversion = 1\n");
    assert_eq!((twice[0].fault, twice[0].line()), (Fault::Syntax, 2));
}

#[test]
fn the_caret_is_drawn_under_the_fault() {
    let text = format!(
        "{BASE}\n[[allow]]\nport = 70000                # API\nfrom = \"192.168.1.7/24\"\n"
    );
    let errors = Policy::parse("/etc/portcullis/policy.toml", &text).unwrap_err();
    let mut shown = String::new();
    let handler =
        miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor())
            .with_width(90);
    handler.render_report(&mut shown, &errors).unwrap();
    insta::assert_snapshot!(shown);
}

fn session(peer: &str, port: u16) -> Session {
    Session {
        peer: peer.parse().unwrap(),
        peer_port: 50000,
        local: "203.0.113.5".parse().unwrap(),
        local_port: port,
        pid: None,
        own: true,
    }
}

#[test]
fn a_policy_that_shuts_out_who_is_connected_is_refused_on_that_host() {
    let check = |policy: &str, sessions: &[Session], fine: bool| {
        let host = Host {
            sshd: Some(Sshd {
                ports: vec![22, 2222],
                ..Sshd::default()
            }),
            sessions: sessions.to_vec(),
            ..Host::default()
        };
        let policy = Policy::parse("p", &format!("version = 1\n[[allow]]\n{policy}\n")).unwrap();
        let checked = policy.check_host(&host);
        assert_eq!(checked.is_ok(), fine, "{policy:?}");
        if let Err(errors) = checked {
            assert_eq!(errors.errors[0].fault, Fault::ShutsSsh);
            assert_eq!(errors.errors[0].line(), 2);
        }
    };
    check(
        "port = \"ssh\"\nfrom = \"anywhere\"",
        &[session("198.51.100.7", 2222)],
        true,
    );
    check(
        "port = 22\nfrom = \"anywhere\"",
        &[session("198.51.100.7", 2222)],
        false,
    );
    check(
        "port = \"ssh\"\nfrom = \"10.0.0.0/8\"",
        &[session("198.51.100.7", 22)],
        false,
    );
    check(
        "port = \"ssh\"\nfrom = \"10.0.0.0/8\"",
        &[session("::ffff:10.1.1.1", 22)],
        true,
    );
    check(
        "port = \"ssh\"\nfrom = \"10.0.0.0/8\"",
        &[session("127.0.0.1", 22)],
        true,
    );
    check("port = \"ssh\"\nfrom = \"10.0.0.0/8\"", &[], true);
    check(
        "port = \"ssh\"\nfrom = \"10.0.0.0-10.0.0.9\""
            .replace("0.0-", "0.1-")
            .as_str(),
        &[session("10.0.0.10", 22)],
        false,
    );
}

#[test]
fn init_writes_a_policy_that_parses_whatever_runs_here() {
    let socket = |process: &str, address: &str, port| Socket {
        proto: Proto::Tcp,
        address: address.parse().unwrap(),
        port,
        v6only: false,
        device: None,
        uid: Some(0),
        process: Some(Process {
            pid: 1,
            comm: process.into(),
            exe: None,
            user: None,
            ..Process::default()
        }),
        unit: None,
        container: None,
        in_container_netns: false,
    };
    let host = Host {
        sockets: vec![
            socket("sshd", "0.0.0.0", 22),
            socket("ollama", "::", 11434),
            socket("evil\n[[allow]]\nport=1", "0.0.0.0", 6666),
            socket("postgres", "127.0.0.1", 5432),
        ],
        engines: vec![Engine {
            containers: vec![Container {
                name: "web\nfrom".into(),
                image: "ghcr.io/open-webui/open-webui:main".into(),
                published: vec![Publish {
                    proto: Proto::Tcp,
                    host_ip: "0.0.0.0".parse().unwrap(),
                    host_port: 3000,
                    container_port: 8080,
                }],
                ..Container::default()
            }],
            ..Engine::default()
        }],
        ..Host::default()
    };
    let text = Policy::init_text(&host);
    let policy = Policy::parse("init", &text).unwrap_or_else(|e| panic!("{text}\n{e:?}"));
    let kinds: Vec<_> = policy.services.iter().map(|s| s.kind.as_str()).collect();
    assert_eq!(kinds, ["ollama", "open-webui"]);
    assert_eq!(policy.allows.len(), 1, "only SSH; HTTPS is not served here");
    assert_eq!(policy.tests.len(), 2);
    assert!(text.contains("# port = 6666"));
    assert!(!text.contains("5432"), "loopback is nobody's business");
    Policy::parse("init", &Policy::init_text(&Host::default())).unwrap();
}
