//! Servers that mean harm: bounded in time and size, followed nowhere, and nothing of theirs gets to a terminal.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Server, request, serve};
use portcullis_core::catalog::{self, Access};
use recognise::{Options, Recognition, Target, outside, recognise};
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const REPLY: Duration = Duration::from_millis(400);
const PORT: Duration = Duration::from_millis(1200);
/// What a loaded machine may add to a bound.
const SLACK: Duration = Duration::from_secs(20);

fn options() -> Options {
    Options {
        reply: REPLY,
        port: PORT,
        ..Options::default()
    }
}

/// Asks a server that is expected to be Ollama; within the bounds, whatever it does.
fn ask(server: &Server) -> Recognition {
    let begun = Instant::now();
    let target = Target {
        address: server.address,
        candidates: catalog::service("ollama").into_iter().collect(),
    };
    let found = recognise(&[target], &options()).remove(0);
    assert!(begun.elapsed() < PORT + SLACK, "{:?}", begun.elapsed());
    found
}

/// Sends a head, then what `body` writes until the client has had enough; tells how much it took.
fn flood(head: &'static str, piece: Vec<u8>, pause: Duration) -> Server {
    serve(move |mut stream, taken| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        if request(&mut reader).is_none() {
            return;
        }
        let _ = stream.write_all(head.as_bytes());
        let end = Instant::now() + SLACK;
        while Instant::now() < end {
            match stream.write(&piece) {
                Ok(count) => taken.fetch_add(count, Ordering::Relaxed),
                Err(_) => return,
            };
            std::thread::sleep(pause);
        }
    })
}

const OK: &str = "HTTP/1.1 200 OK\r\n";

#[test]
fn an_endless_body_is_cut() {
    let server = flood(
        "HTTP/1.1 200 OK\r\nserver: x\r\n\r\n",
        vec![b'a'; 65536],
        Duration::ZERO,
    );
    assert_eq!(ask(&server).identity.service, None);
    // What a socket's buffers hold of each connection, and the body's bound.
    let taken = server.requests.load(Ordering::Relaxed);
    assert!(taken < 400 << 20, "{taken}");
    let chunked = flood(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        [b"10000\r\n".as_slice(), &[b'a'; 65536], b"\r\n"].concat(),
        Duration::ZERO,
    );
    assert_eq!(ask(&chunked).identity.service, None);
}

#[test]
fn a_slow_drip_gets_no_more_time() {
    let drip = Duration::from_millis(50);
    for head in ["HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", OK, ""] {
        let server = flood(head, b"x".to_vec(), drip);
        assert_eq!(ask(&server).identity.service, None, "{head:?}");
    }
    let silent = serve(|stream, _| {
        let _ = (&stream).read(&mut [0; 1024]);
        std::thread::sleep(SLACK);
    });
    let found = ask(&silent);
    assert!(!found.identity.answered);
    // A port that never answers is asked once, not once for each service.
    assert_eq!(found.asked, 1);
}

#[test]
fn a_flood_of_headers_is_refused() {
    let server = flood(
        OK,
        b"x-filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(64),
        Duration::ZERO,
    );
    assert_eq!(ask(&server).identity.service, None);
    let continued = flood(
        "",
        b"HTTP/1.1 100 Continue\r\n\r\n".repeat(64),
        Duration::ZERO,
    );
    assert_eq!(ask(&continued).identity.service, None);
}

/// Nothing is unpacked: a bomb stays a small body of bytes.
#[test]
fn a_gzip_bomb_is_not_unpacked() {
    let server = serve(|mut stream, _| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some((_, headers)) = request(&mut reader) {
            assert_ne!(
                headers.get("accept-encoding").map(String::as_str),
                Some("gzip")
            );
            // The header of gzip, then a block of zeros as deflate writes ten gigabytes of them.
            let body = [b"\x1f\x8b\x08\0\0\0\0\0\0\x03".as_slice(), &[0; 10_000]].concat();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            if stream
                .write_all(&[head.as_bytes(), &body].concat())
                .is_err()
            {
                return;
            }
        }
    });
    assert_eq!(ask(&server).identity.service, None);
}

/// Answers every request with this.
fn always(answer: String) -> Server {
    serve(move |mut stream, count| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while request(&mut reader).is_some() {
            count.fetch_add(1, Ordering::Relaxed);
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[test]
fn redirects_are_not_followed() {
    let elsewhere = always("HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\nOllama is running".into());
    for status in [301, 302, 303, 307, 308] {
        let server = always(format!(
            "HTTP/1.1 {status} X\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n",
            elsewhere.address
        ));
        assert_eq!(ask(&server).identity.service, None);
        assert!(server.requests.load(Ordering::Relaxed) > 0);
    }
    assert_eq!(elsewhere.requests.load(Ordering::Relaxed), 0);
}

#[test]
fn terminal_escapes_do_not_pass() {
    let body = "{\"version\":\"0.9\u{1b}]0;owned\u{7}\\u001b[31m\u{202e}9\"}";
    let server = serve(move |mut stream, _| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some((path, _)) = request(&mut reader) {
            let body = match path.as_str() {
                "/" => "Ollama is running",
                _ => "{\"version\":\"0.9\\u001b]0;owned\\u0007\\u202e9\"}",
            };
            let head = format!(
                "HTTP/1.1 200 \u{1b}[2J\r\nserver: \u{1b}[2J\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            if stream.write_all((head + body).as_bytes()).is_err() {
                return;
            }
        }
    });
    let found = ask(&server);
    // Whether a head with such bytes is read at all is the HTTP library's choice; nothing of it is shown.
    let shown = format!("{:?} {:?}", found.name(), found.identity.version);
    assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{shown}");
    let all = always(format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert_eq!(ask(&all).identity.version, None);
    let clean = serve(move |mut stream, _| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some((path, _)) = request(&mut reader) {
            let body = match path.as_str() {
                "/" => "Ollama is running",
                _ => "{\"version\":\"0.9\\u001b]0;owned\\u0007\\u202e9\"}",
            };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            if stream.write_all((head + body).as_bytes()).is_err() {
                return;
            }
        }
    });
    assert_eq!(ask(&clean).name().as_deref(), Some("Ollama 0.9"));
}

#[test]
fn what_is_not_http_is_left_alone() {
    let ssh = serve(|mut stream, count| {
        count.fetch_add(1, Ordering::Relaxed);
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.shutdown(Shutdown::Both);
    });
    let found = ask(&ssh);
    assert_eq!(
        (found.identity.service, found.identity.answered),
        (None, false)
    );
    let closed = ask(&Server {
        address: {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        },
        requests: Default::default(),
    });
    assert_eq!(
        (closed.identity.service, closed.identity.access),
        (None, Access::Unknown)
    );
}

/// Fifty ports, each slow: about the time of one, not of fifty.
#[test]
fn fifty_ports_take_the_slowest_ones_time() {
    let slow = Duration::from_millis(300);
    let servers: Vec<Server> = (0..50)
        .map(|_| {
            serve(move |mut stream: TcpStream, _| {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while let Some((path, _)) = request(&mut reader) {
                    if path == "/" {
                        std::thread::sleep(slow);
                    }
                    let body = if path == "/" {
                        "Ollama is running"
                    } else {
                        "{\"version\":\"0.9.2\"}"
                    };
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                    if stream.write_all((head + body).as_bytes()).is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    let patient = Options {
        reply: SLACK,
        port: SLACK,
        ..Options::default()
    };
    let addresses: Vec<_> = servers.iter().map(|s| s.address).collect();
    // `/` is asked three times, twice from elsewhere: the time of one port alone is the measure.
    let begun = Instant::now();
    let alone = outside(&addresses[..1], &patient);
    let one = begun.elapsed();
    let begun = Instant::now();
    let found = outside(&addresses, &patient);
    let all = begun.elapsed();
    println!("one port {one:?}, fifty ports {all:?}");
    assert_eq!(alone[0].name().as_deref(), Some("Ollama 0.9.2"));
    for (found, address) in found.iter().zip(&addresses) {
        assert_eq!(found.address, *address);
        assert_eq!(found.name().as_deref(), Some("Ollama 0.9.2"));
    }
    // One after the other they would take fifty times as long.
    assert!(all < one * 15, "{all:?} against {one:?}");
}
