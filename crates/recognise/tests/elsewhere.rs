//! What web pages from elsewhere could do: CORS and the check of Host, asked of real servers. And gentleness: what is
//! asked, and how often.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Server, request, serve};
use portcullis_core::catalog::{self, FOREIGN_HOST, FOREIGN_ORIGIN};
use recognise::{Options, Recognition, Target, recognise};
use std::io::{BufReader, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn ask(server: &Server, candidate: &str) -> Recognition {
    let patient = Options {
        reply: Duration::from_secs(20),
        port: Duration::from_secs(60),
        ..Options::default()
    };
    let target = Target {
        address: server.address,
        candidates: catalog::service(candidate).into_iter().collect(),
    };
    recognise(&[target], &patient).remove(0)
}

/// Ollama's face. `cors` is the header that allows an origin, with `{origin}` for the one that asks; `strict` refuses
/// foreign names, as Ollama does while it is bound to loopback.
fn ollama(cors: Option<&'static str>, strict: bool, heard: Arc<Mutex<Vec<String>>>) -> Server {
    serve(move |mut stream, _| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some((path, headers)) = request(&mut reader) {
            heard.lock().unwrap().push(format!(
                "{path} {} {}",
                headers["host"],
                headers.get("origin").map_or("-", String::as_str)
            ));
            let mut more = String::new();
            if let (Some(cors), Some(origin)) = (cors, headers.get("origin")) {
                let value = cors.replace("{origin}", origin);
                more = format!("Access-Control-Allow-Origin: {value}\r\n");
            }
            let foreign = strict && headers["host"] == FOREIGN_HOST;
            let (status, body) = match path.as_str() {
                _ if foreign => (403, ""),
                "/" => (200, "Ollama is running"),
                "/api/version" => (200, "{\"version\":\"0.17.4\"}"),
                "/api/tags" => (200, "{\"models\":[]}"),
                _ => (404, ""),
            };
            let head = format!(
                "HTTP/1.1 {status} X\r\n{more}content-length: {}\r\n\r\n",
                body.len()
            );
            if stream.write_all((head + body).as_bytes()).is_err() {
                return;
            }
        }
    })
}

fn check(cors: Option<&'static str>, strict: bool, any_origin: bool, any_host: bool) {
    let found = ask(&ollama(cors, strict, Arc::default()), "ollama");
    let identity = &found.identity;
    assert_eq!(identity.service.as_deref(), Some("ollama"));
    assert_eq!(
        (identity.any_origin, identity.any_host),
        (any_origin, any_host),
        "{cors:?} {strict}"
    );
}

#[test]
fn origins_and_names_from_elsewhere() {
    check(None, true, false, false);
    check(None, false, false, true);
    check(Some("*"), true, true, false);
    check(Some("{origin}"), false, true, true);
    check(Some("http://localhost"), true, false, false);
}

/// A known service hears its own few questions, each once, all of them `GET`, and two as from elsewhere.
#[test]
fn a_known_service_is_asked_little() {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let server = ollama(None, true, Arc::clone(&heard));
    let found = ask(&server, "ollama");
    let own = server.address;
    let expected = [
        format!("/ {own} -"),
        format!("/api/version {own} -"),
        format!("/api/tags {own} -"),
        format!("/ {own} {FOREIGN_ORIGIN}"),
        format!("/ {FOREIGN_HOST} -"),
    ];
    assert_eq!(*heard.lock().unwrap(), expected);
    assert_eq!(found.asked, expected.len());
}
