//! Real HTTP servers on loopback: one that plays a golden reply, and hostile ones.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A file of `golden/`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// The version that must be read.
    pub version: Option<String>,
    /// The access that must be seen.
    pub access: Option<portcullis_core::catalog::Access>,
    /// The hazards that must be seen.
    #[serde(default)]
    pub hazards: Vec<String>,
    /// The replies of the real service.
    #[serde(default, rename = "golden")]
    pub replies: Vec<Reply>,
    /// What it says when it does not speak HTTP.
    pub raw: Option<String>,
    /// Servers that look like it and are not.
    pub near: Vec<Near>,
}

/// A near miss.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Near {
    /// In words.
    pub what: String,
    /// Its replies.
    #[serde(default)]
    pub reply: Vec<Reply>,
    /// What it says when it does not speak HTTP.
    pub raw: Option<String>,
    /// What it is instead, where the catalog knows it.
    pub is: Option<String>,
}

/// One answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    pub path: String,
    #[serde(default = "ok")]
    pub status: u16,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default)]
    pub body: String,
}

fn ok() -> u16 {
    200
}

/// A server on loopback that lives as long as the test's process.
pub struct Server {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
}

/// Serves each connection with `answer`, in a thread of its own.
pub fn serve(answer: impl Fn(TcpStream, &AtomicUsize) + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let (answer, count) = (Arc::new(answer), Arc::clone(&requests));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
            std::thread::spawn(move || answer(stream, &count));
        }
    });
    Server { address, requests }
}

/// Reads one request's head; `None` when the client went away or does not speak HTTP.
pub fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, BTreeMap<String, String>)> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|n| *n > 0)?;
    let path = first.strip_prefix("GET ")?.split(' ').next()?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = line.trim().split_once(':') else {
            return Some((path, headers));
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

/// A server that plays these replies and says 404 to everything else, or, with `raw`, says just that.
pub fn play(replies: Vec<Reply>, raw: Option<String>) -> Server {
    serve(move |mut stream, count| {
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        if let Some(raw) = &raw {
            let _ = stream.write_all(raw.as_bytes());
            let _ = stream.read(&mut [0; 1024]);
            return;
        }
        stream.set_nodelay(true).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some((path, _)) = request(&mut reader) {
            count.fetch_add(1, Ordering::Relaxed);
            let missing = Reply {
                path: path.clone(),
                status: 404,
                headers: BTreeMap::new(),
                body: "not found".into(),
            };
            let reply = replies.iter().find(|r| r.path == path).unwrap_or(&missing);
            let mut text = format!(
                "HTTP/1.1 {} X\r\ncontent-length: {}\r\n",
                reply.status,
                reply.body.len()
            );
            for (name, value) in &reply.headers {
                text += &format!("{name}: {value}\r\n");
            }
            if stream
                .write_all((text + "\r\n" + &reply.body).as_bytes())
                .is_err()
            {
                return;
            }
        }
    })
}

/// All files of `golden/`, by service.
pub fn goldens() -> BTreeMap<String, Golden> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let golden =
                toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (
                path.file_stem().unwrap().to_str().unwrap().to_owned(),
                golden,
            )
        })
        .collect()
}
