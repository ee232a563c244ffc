//! Engines that hang, lie, or tell it all.

use super::super::http::tests::peer;
use super::*;

fn answer(json: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}",
        json.len()
    )
    .into_bytes()
}

fn observe(answers: Vec<Vec<u8>>, hang: bool) -> (Vec<Engine>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docker.sock");
    peer(&path, answers, hang);
    let disk = Disk::new(folder.path());
    let (engines, gaps) = engines(&disk, &[path], Duration::from_millis(500), Mains::new);
    let gaps = gaps
        .list()
        .iter()
        .map(|gap| {
            assert_eq!(gap.uncertain, Uncertain::Endpoints);
            gap.why.replace(&folder.path().display().to_string(), "")
        })
        .collect();
    (engines, gaps)
}

#[test]
fn no_socket_or_no_listener_is_no_engine_and_no_gap() {
    let folder = tempfile::tempdir().unwrap();
    let stale = folder.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let disk = Disk::new(folder.path());
    let paths = [stale, folder.path().join("none.sock")];
    let (engines, gaps) = engines(&disk, &paths, Duration::from_secs(2), Mains::new);
    assert_eq!((engines.len(), gaps.list().len()), (0, 0));
}

#[test]
fn a_hung_daemon_is_a_gap() {
    let (engines, gaps) = observe(vec![], true);
    assert!(engines.is_empty());
    assert_eq!(gaps, ["/docker.sock: no answer in time"]);
}

#[test]
fn a_daemon_that_hangs_half_way_keeps_what_it_told() {
    let id = "a".repeat(64);
    let list = format!(
        r#"[{{"Id":"{id}","Names":["/web"],"Image":"web:1","HostConfig":{{"NetworkMode":"default"}},
        "Ports":[{{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}}],
        "NetworkSettings":{{"Networks":{{"bridge":{{"IPAddress":"172.17.0.2"}}}}}}}}]"#
    );
    let answers = vec![
        answer("[]"),
        answer(r#"{"Version":"20.10.24","Components":[{"Name":"Engine"}]}"#),
        answer(r#"{"ID":"X"}"#),
        answer(&list),
    ];
    let (engines, gaps) = observe(answers, true);
    assert_eq!(engines[0].containers[0].name, "web");
    assert_eq!(engines[0].containers[0].published[0].host_port, 8080);
    assert_eq!(
        gaps,
        ["/docker.sock: details of some containers are missing: no answer in time"]
    );
}

#[test]
fn an_answer_that_is_no_json_is_a_gap() {
    let html = || answer("<html>");
    let (engines, gaps) = observe(vec![html(), html()], false);
    assert!(engines.is_empty());
    assert_eq!(gaps, ["/docker.sock: the answer makes no sense: no JSON"]);
}

/// Answers by path, on several connections side by side; what it was asked.
fn docker(
    path: &Path,
    networks: &'static str,
    containers: String,
) -> std::sync::Arc<std::sync::Mutex<Vec<String>>> {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, log) = (stream.unwrap(), log.clone());
            let containers = containers.clone();
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                for line in lines.map_while(Result::ok) {
                    let Some(path) = line.strip_prefix("GET ") else {
                        continue;
                    };
                    let path = path.trim_end_matches(" HTTP/1.1").to_owned();
                    let json = match path.as_str() {
                        "/networks" => networks.to_owned(),
                        "/info" => r#"{"ID":"X","Swarm":{"LocalNodeState":"active"}}"#.into(),
                        "/containers/json" => containers.clone(),
                        _ => r#"{"State":{"Pid":7}}"#.to_owned(),
                    };
                    let head = "HTTP/1.1 200 OK\r\nServer: Docker/20.10.24+dfsg1 (linux)\r\n";
                    let size = json.len();
                    log.lock().unwrap().push(path);
                    let answer = format!("{head}Content-Length: {size}\r\n\r\n{json}");
                    if stream.write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            });
        }
    });
    asked
}

#[test]
fn docker_is_asked_no_more_than_is_new() {
    let of_swarm = r#"[{"Name":"docker_gwbridge","Scope":"local","Ingress":false}]"#;
    for (networks, info) in [("[]", !nix::unistd::geteuid().is_root()), (of_swarm, true)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let ids: Vec<String> = (0..30).map(|n| format!(r#"{{"Id":"c{n}"}}"#)).collect();
        let asked = docker(&path, networks, format!("[{}]", ids.join(",")));
        let disk = Disk::new(folder.path());
        let (engines, gaps) = engines(&disk, &[path], Duration::from_secs(20), Mains::new);
        assert_eq!(gaps.list(), []);
        assert_eq!(engines[0].version, "20.10.24+dfsg1");
        assert_eq!(engines[0].swarm, info, "what only /info tells is kept");
        // Every container once, over however many connections.
        assert_eq!(engines[0].containers.len(), 30);
        assert!(engines[0].containers.iter().all(|c| c.pid == Some(7)));
        let mut asked = asked.lock().unwrap().clone();
        asked.sort();
        let mut expected: Vec<String> = (0..30).map(|n| format!("/containers/c{n}/json")).collect();
        expected.push("/containers/json".to_owned());
        expected.extend(info.then(|| "/info".to_owned()));
        expected.push("/networks".to_owned());
        expected.sort();
        assert_eq!(asked, expected);
    }
}

#[test]
fn containers_that_list_and_processes_tell_of_are_not_asked_about() {
    let container = |id: &str, image: &str, rest: &str| {
        let bridge = r#"{"Networks":{"bridge":{"IPAddress":"172.17.0.2"}}}"#;
        format!(r#"{{"Id":"{id}","Image":"{image}","NetworkSettings":{bridge},{rest}}}"#)
    };
    let ports = r#""Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]"#;
    let list = [
        container("whole", "web:1", ports),
        container("nameless", "sha256:0f", ports),
        container("silent", "web:1", r#""Ports":[]"#),
        container("unseen", "web:1", ports),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docker.sock");
    let asked = docker(&path, "[]", format!("[{}]", list.join(",")));
    let disk = Disk::new(folder.path());
    let mains = || {
        let known = ["whole", "nameless", "silent"];
        known.iter().map(|id| ((*id).to_owned(), 5)).collect()
    };
    let (engines, gaps) = engines(&disk, &[path], Duration::from_secs(20), mains);
    assert_eq!(gaps.list(), []);
    let found: Vec<(&str, Option<u32>)> = engines[0]
        .containers
        .iter()
        .map(|c| (c.id.as_str(), c.pid))
        .collect();
    let expected = [("nameless", 7), ("silent", 7), ("unseen", 7), ("whole", 5)];
    assert_eq!(found, expected.map(|(id, pid)| (id, Some(pid))));
    let mut asked = asked.lock().unwrap().clone();
    asked.retain(|path| path.starts_with("/containers/") && path.len() > 16);
    asked.sort();
    let details = ["nameless", "silent", "unseen"].map(|id| format!("/containers/{id}/json"));
    assert_eq!(asked, details);
}

#[test]
fn an_engine_that_hangs_takes_nothing_from_another() {
    let folder = tempfile::tempdir().unwrap();
    let (hangs, answers) = (folder.path().join("a.sock"), folder.path().join("b.sock"));
    peer(&hangs, vec![], true);
    let asked = docker(&answers, "[]", r#"[{"Id":"c1"}]"#.to_owned());
    let disk = Disk::new(folder.path());
    let patience = Duration::from_millis(700);
    // The processes take longer than an engine may.
    let mains = || {
        std::thread::sleep(Duration::from_millis(900));
        Mains::new()
    };
    let (engines, gaps) = engines(&disk, &[hangs, answers], patience, mains);
    assert_eq!(engines[0].containers[0].pid, Some(7));
    let gaps: Vec<&str> = gaps.list().iter().map(|gap| gap.why.as_str()).collect();
    assert!(
        gaps.len() == 1 && gaps[0].ends_with("a.sock: no answer in time"),
        "{gaps:?}"
    );
    assert!(
        asked.lock().unwrap().contains(&"/info".to_owned()),
        "there may be two of one engine"
    );
}

#[test]
fn the_main_process_is_the_first_that_came_from_outside() {
    let container = |id: &str| {
        Some(kernel::ContainerRef {
            runtime: kernel::Runtime::Docker,
            id: id.to_owned(),
        })
    };
    let process = |pid, parent, started, container| kernel::Process {
        pid,
        parent,
        started,
        container,
        ..kernel::Process::default()
    };
    let processes: Processes = [
        process(1, 0, 0, None),
        process(10, 1, 50, None),
        // `docker exec`, later, with a smaller number.
        process(11, 10, 90, container("a")),
        process(20, 10, 60, container("a")),
        process(21, 20, 60, container("a")),
        process(30, 20, 70, container("b")),
        // Its parent has ended.
        process(40, 39, 80, container("c")),
    ]
    .into_iter()
    .collect();
    let expected = [("a", 20), ("b", 30), ("c", 40)];
    let expected = expected.map(|(id, pid)| (id.to_owned(), pid));
    assert_eq!(mains(&processes), Mains::from(expected));
}

#[test]
fn two_names_of_one_socket_are_one_engine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docker.sock");
    let link = folder.path().join("link.sock");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let answers = vec![
        answer("[]"),
        answer(r#"{"Version":"1"}"#),
        answer("{}"),
        answer("[]"),
    ];
    peer(&path, answers, false);
    let disk = Disk::new(folder.path());
    let (engines, gaps) = engines(&disk, &[path, link], Duration::from_secs(2), Mains::new);
    assert_eq!((engines.len(), gaps.list().len()), (1, 0));
}
