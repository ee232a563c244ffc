//! Answers of real engines, whole and damaged.

use super::*;
use serde_json::json;

#[test]
fn the_command_line_tells_what_the_settings_did_not() {
    let after = |line: &str, mut engine: Engine| {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        command_line(&arguments, &mut engine);
        (engine.tls_verify, engine.root_dir)
    };
    let none = Engine::default;
    assert_eq!(after("dockerd -H fd://", none()), (Some(false), None));
    let snap = "dockerd --group docker --data-root=/var/snap/docker/common/var-lib-docker";
    let folder = Some("/var/snap/docker/common/var-lib-docker".to_owned());
    assert_eq!(after(snap, none()), (Some(false), folder));
    let apart = after("dockerd --tlsverify --data-root /srv", none());
    assert_eq!(apart, (Some(true), Some("/srv".to_owned())));
    assert_eq!(after("dockerd --data-root", none()), (Some(false), None));
    let told = Engine {
        tls_verify: Some(false),
        root_dir: Some("/told".to_owned()),
        ..Engine::default()
    };
    let told = after("dockerd --tlsverify --data-root=/srv", told);
    assert_eq!(told, (Some(false), Some("/told".to_owned())));
}

#[test]
fn an_old_docker_in_no_swarm_has_nothing_more_to_tell() {
    let engine = |kind: &str, version: &str| Found {
        engine: Engine {
            kind: kind.to_owned(),
            version: version.to_owned(),
            ..Engine::default()
        },
        ..Found::default()
    };
    let bridge = json!({"Name": "bridge", "Scope": "local", "Ingress": false});
    let old = engine("docker", "20.10.24+dfsg1");
    assert!(info_tells_nothing(&old, &json!([bridge])));
    for (name, scope, ingress) in [
        ("ingress", "swarm", true),
        ("ours", "swarm", false),
        ("docker_gwbridge", "local", false),
    ] {
        let network = json!({"Name": name, "Scope": scope, "Ingress": ingress});
        assert!(!info_tells_nothing(&old, &json!([bridge, network])));
    }
    assert!(!info_tells_nothing(&old, &json!({"message": "no"})));
    assert!(!info_tells_nothing(&old, &json!([{"Name": "odd"}])));
    for (kind, version) in [
        ("docker", "28.0.4"),
        ("docker", "dev"),
        ("docker", ""),
        ("podman", "5.4.2"),
    ] {
        assert!(!info_tells_nothing(
            &engine(kind, version),
            &json!([bridge])
        ));
    }
}

/// What dockerd 20.10.24 answered with four containers, by request.
fn captured() -> Found {
    let text = include_str!("../../../../testdata/docker-20.10.24.json");
    let answers: Value = serde_json::from_str(text).unwrap();
    let mut found = engine(&answers["/version"]);
    info(&answers["/info"], &mut found);
    networks(&answers["/networks"], &mut found);
    containers(&answers["/containers/json"], &mut found);
    for container in &mut found.engine.containers {
        let answer = &answers[format!("/containers/{}/json", container.id)];
        assert!(answer.is_object());
        inspect(answer, container);
    }
    found
}

#[test]
fn where_the_list_tells_all_the_details_add_only_the_process() {
    let text = include_str!("../../../../testdata/docker-20.10.24.json");
    let answers: Value = serde_json::from_str(text).unwrap();
    let mut found = Found::default();
    containers(&answers["/containers/json"], &mut found);
    let mut whole = Vec::new();
    for listed in found.engine.containers {
        if told_whole(&listed) {
            let mut asked = listed.clone();
            let answer = &answers[format!("/containers/{}/json", listed.id)];
            inspect(answer, &mut asked);
            assert!(asked.pid.take().is_some());
            assert_eq!(asked, listed);
            whole.push(listed.name);
        }
    }
    // Not those without a network of their own.
    assert_eq!(whole, ["shop-db-1", "web"]);
}

/// The published ports of a container, as `docker ps` shows them.
fn published(container: &Container) -> Vec<String> {
    container
        .published
        .iter()
        .map(|p| {
            let at = std::net::SocketAddr::new(p.host_ip, p.host_port);
            format!("{at}->{}/{}", p.container_port, p.proto)
        })
        .collect()
}

#[test]
fn what_docker_20_10_answers() {
    let found = captured();
    assert!(found.id.is_some() && found.unseen.is_empty());
    let engine = found.engine;
    assert_eq!(
        (
            engine.kind.as_str(),
            engine.version.as_str(),
            engine.rootless
        ),
        ("docker", "20.10.24+dfsg1", false)
    );
    assert_eq!((engine.firewall_backend, engine.default_ip), (None, None));

    let networks: Vec<_> = engine
        .networks
        .iter()
        .map(|n| {
            let subnets: Vec<_> = n.subnets.iter().map(ToString::to_string).collect();
            let bridge = n.bridge.as_deref().unwrap_or("-");
            format!(
                "{} {} {bridge} {} {}",
                n.name,
                n.driver,
                subnets.join(","),
                n.internal
            )
        })
        .collect();
    let inner = engine.networks.iter().find(|n| n.name == "inner").unwrap();
    assert_eq!(
        networks,
        [
            "bridge bridge docker0 172.17.0.0/16 false",
            "host host -  false",
            &format!(
                "inner bridge br-{} 10.77.0.0/24,fd77::/64 true",
                &inner.id[..12]
            ),
            "none null -  false",
            "shop_default bridge br-own 10.78.0.0/24 false",
        ]
    );

    let [hostmode, shop, side, web] = engine.containers.as_slice() else {
        panic!("{:#?}", engine.containers);
    };
    assert_eq!(
        (hostmode.name.as_str(), hostmode.network_mode.as_str()),
        ("hostmode", "host")
    );
    assert_eq!(side.network_mode, format!("container:{}", web.id));
    assert_eq!(
        published(web),
        [
            "0.0.0.0:11434->80/tcp",
            "127.0.0.1:8081->80/tcp",
            "[::]:11434->80/tcp",
            "0.0.0.0:5353->53/udp",
            "[::]:5353->53/udp"
        ]
    );
    assert_eq!(
        web.exposed,
        [(Proto::Tcp, 80), (Proto::Tcp, 443), (Proto::Udp, 53)]
    );
    assert_eq!(web.image, "web:1");
    assert!(web.pid.is_some() && web.compose.is_none());
    assert_eq!(
        published(shop),
        ["203.0.113.10:9000->9000/tcp", "203.0.113.10:9001->9001/tcp"]
    );
    let addresses: Vec<_> = shop
        .addresses
        .iter()
        .map(|a| format!("{} {}", a.network, a.address))
        .collect();
    assert_eq!(
        addresses,
        ["inner 10.77.0.2", "inner fd77::2", "shop_default 10.78.0.2"]
    );
    assert_eq!(
        shop.compose,
        Some(Compose {
            project: "shop".to_owned(),
            service: "db".to_owned(),
            files: vec![
                "/srv/shop/compose.yml".to_owned(),
                "/srv/shop/over.yml".to_owned()
            ],
        })
    );
}

#[test]
fn secrets_of_containers_are_not_kept() {
    let text = serde_json::to_string(&captured().engine).unwrap();
    let answers = include_str!("../../../../testdata/docker-20.10.24.json");
    for secret in ["hunter2", "hunter3"] {
        assert!(answers.contains(secret) && !text.contains(secret));
    }
}

#[test]
fn newer_engines_and_podman() {
    let mut found = engine(&json!({"Version": "29.0.1", "Components": [{"Name": "Engine"}]}));
    info(
        &json!({
            "ID": "x",
            "FirewallBackend": {"Driver": "nftables"},
            "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
        }),
        &mut found,
    );
    networks(
        &json!([{
            "Name": "bridge", "Id": "00", "Driver": "bridge",
            "Options": {
                "com.docker.network.bridge.default_bridge": "true",
                "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
                "com.docker.network.bridge.gateway_mode_ipv4": "routed",
                "com.docker.network.bridge.gateway_mode_ipv6": "nat-unprotected",
            },
        }]),
        &mut found,
    );
    assert_eq!(found.engine.firewall_backend.as_deref(), Some("nftables"));
    assert!(found.engine.rootless);
    assert_eq!(found.engine.default_ip.as_deref(), Some("127.0.0.1"));
    let network = &found.engine.networks[0];
    assert_eq!(network.gateway_mode_ipv4.as_deref(), Some("routed"));
    assert_eq!(
        network.gateway_mode_ipv6.as_deref(),
        Some("nat-unprotected")
    );
    assert_eq!(network.bridge, None);
    let podman = engine(&json!({"Version": "5.4.2", "Components": [{"Name": "Podman Engine"}]}));
    assert_eq!(podman.engine.kind, "podman");
}

#[test]
fn who_is_root_by_group_docker() {
    let text = "root:x:0:\ndocker:x:999:zoe,adam,root\ndockerish:x:1:eve\n";
    assert_eq!(members(text), ["adam", "zoe"]);
    for none in ["", "docker:x:999:", "docker", "xdocker:x:1:eve"] {
        assert_eq!(members(none), [""; 0], "{none:?}");
    }
}

#[test]
fn sockets_that_containers_hold() {
    let check = |source: &str, held: bool| {
        let mut container = Container::default();
        let json = json!({"Mounts": [{"Type": "bind", "Source": source}]});
        engine_sockets(&json, &mut container);
        assert_eq!(!container.engine_sockets.is_empty(), held, "{source}");
    };
    for source in [
        "/var/run/docker.sock",
        "/run/podman/podman.sock",
        "/",
        "/run",
        "/var/run/",
    ] {
        check(source, true);
    }
    for source in [
        "",
        "/srv/docker.sock.d",
        "/var/lib/docker/volumes/x/_data",
        "/etc",
    ] {
        check(source, false);
    }
}

#[test]
fn what_the_head_of_an_answer_tells() {
    let told = |server: &str| {
        let server = server.to_owned();
        told_by_head(&Said { server }).map(|found| (found.engine.kind, found.engine.version))
    };
    let some = |kind: &str, version: &str| Some((kind.to_owned(), version.to_owned()));
    let debian = "Docker/20.10.24+dfsg1 (linux)";
    assert_eq!(told(debian), some("docker", "20.10.24+dfsg1"));
    assert_eq!(told("Docker/29.0.1 (linux)"), some("docker", "29.0.1"));
    assert_eq!(told("Libpod/5.4.2 (linux)"), some("podman", "5.4.2"));
    for server in ["nginx", "nginx/1.22", "Docker/", "Docker/ 1", ""] {
        assert_eq!(told(server), None, "{server}");
    }
}

#[test]
fn daemon_json() {
    let mut engine = Engine::default();
    settings(
        &json!({"iptables": false, "ip6tables": true, "userland-proxy": false, "ip": "127.0.0.1", "x": 1}),
        &mut engine,
    );
    assert_eq!(
        (engine.iptables, engine.ip6tables, engine.userland_proxy),
        (Some(false), Some(true), Some(false))
    );
    assert_eq!(engine.default_ip.as_deref(), Some("127.0.0.1"));
}

/// One container of a list, as it is read.
fn check(container: Value, expected: &[&str]) {
    let mut container = container;
    container["Id"] = "c0ffee".into();
    let mut found = Found::default();
    containers(&json!([container]), &mut found);
    let got: Vec<String> = found.engine.containers.iter().flat_map(published).collect();
    assert_eq!(got, expected, "{container}");
}

#[test]
fn a_port_that_may_be_published_is_never_lost() {
    let port = |fields: Value| json!({"Ports": [fields]});
    check(
        port(json!({"PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"})),
        &["0.0.0.0:8080->80/tcp", "[::]:8080->80/tcp"],
    );
    check(
        port(json!({"IP": "not an address", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"})),
        &["0.0.0.0:8080->80/tcp", "[::]:8080->80/tcp"],
    );
    check(
        port(json!({"IP": "[::1]", "PrivatePort": 80, "PublicPort": 8080, "Type": "sctp"})),
        &["[::1]:8080->80/sctp"],
    );
    check(
        port(json!({"PrivatePort": 80, "PublicPort": 0, "Type": "tcp"})),
        &[],
    );
    check(
        port(json!({"PrivatePort": 80, "PublicPort": 70000, "Type": "tcp"})),
        &[],
    );
}

#[test]
fn answers_of_a_wrong_shape_take_nothing_with_them() {
    let wrong = [
        json!(null),
        json!(7),
        json!("x"),
        json!([[[]]]),
        json!({"Networks": 1}),
    ];
    for value in &wrong {
        let mut found = engine(value);
        info(value, &mut found);
        networks(value, &mut found);
        containers(value, &mut found);
        let mut container = Container::default();
        inspect(value, &mut container);
        assert_eq!(container, Container::default());
    }
    let mut found = Found::default();
    let long = "n".repeat(100_000);
    containers(
        &json!([
            {"Id": "ok", "Names": 3, "Image": {"a": 1}, "Ports": {"80": 1}, "Labels": []},
            {"Id": "../../secrets", "Names": ["/evil"]},
            {"Id": "a b"},
            {"Id": ""},
            {"Names": ["/x"]},
            {"Id": "long", "Names": [format!("/{long}")]},
            {"Id": "linked", "Names": ["/other/alias", "/real"]},
        ]),
        &mut found,
    );
    let names: Vec<(&str, usize)> = found
        .engine
        .containers
        .iter()
        .map(|c| (c.id.as_str(), c.name.len()))
        .collect();
    assert_eq!(names, [("ok", 0), ("long", MAX_TEXT - 1), ("linked", 4)]);
    assert_eq!(found.unseen, ["4 containers without a usable id"]);
}
