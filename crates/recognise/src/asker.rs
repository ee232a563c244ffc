//! One port's conversation: bounded in time and bytes, each question once.

use crate::Options;
use portcullis_core::catalog::{Ask, Question, Reply, Talk};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error};

/// Longest head of an answer, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Headers that are kept of an answer.
const MAX_HEADERS: usize = 100;
/// Silence after which an answer without a length is taken for whole.
const PAUSE: Duration = Duration::from_millis(150);

pub(crate) struct Asker {
    address: SocketAddr,
    agent: Agent,
    options: Options,
    end: Instant,
    told: BTreeMap<Question, Option<Rc<Reply>>>,
    asked: usize,
}

impl Asker {
    pub(crate) fn new(address: SocketAddr, options: &Options) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("")
            .max_response_header_size(MAX_HEAD)
            .input_buffer_size(MAX_HEAD)
            // Both are made and cleared for each connection; a question is a few lines.
            .output_buffer_size(4 * 1024)
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            .build();
        Asker {
            address,
            agent: Agent::with_parts(config, DefaultConnector::default(), Known(address)),
            options: *options,
            end: Instant::now() + options.port,
            told: BTreeMap::new(),
            asked: 0,
        }
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked
    }

    /// The time that one more answer may take; `None` when there is none left.
    fn patience(&self) -> Option<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| left.min(self.options.reply))
    }

    fn get(
        &self,
        path: &str,
        host: Option<&str>,
        origin: Option<&str>,
        patience: Duration,
    ) -> Option<Reply> {
        let end = Instant::now() + patience;
        let url = format!("http://{}{path}", self.address);
        let mut request = self.agent.get(&url);
        if let Some(host) = host {
            request = request.header("Host", host);
        }
        if let Some(origin) = origin {
            request = request.header("Origin", origin);
        }
        let response = request
            .config()
            .timeout_global(Some(patience))
            .build()
            .call()
            .ok()?;
        let (parts, body) = response.into_parts();
        let headers = parts
            .headers
            .iter()
            .take(MAX_HEADERS)
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                (name.as_str().to_owned(), value)
            })
            .collect();
        Some(Reply {
            status: parts.status.as_u16(),
            headers,
            body: text(body.into_reader(), self.options.body, end, None),
        })
    }

    fn talk(&self, talk: Talk, patience: Duration) -> Option<Reply> {
        let end = Instant::now() + patience;
        let mut stream = TcpStream::connect_timeout(&self.address, patience).ok()?;
        stream.set_write_timeout(Some(patience)).ok()?;
        stream.write_all(talk.bytes()).ok()?;
        let bound = |first: bool| {
            let left = end.saturating_duration_since(Instant::now());
            if first { left } else { left.min(PAUSE) }
        };
        stream
            .set_read_timeout(Some(bound(true)).filter(|d| !d.is_zero()))
            .ok()?;
        let handle = stream.try_clone().ok()?;
        let after = move || {
            let left = bound(false);
            // A zero bound would mean "for ever".
            !left.is_zero() && handle.set_read_timeout(Some(left)).is_ok()
        };
        let body = text(&mut stream, self.options.body, end, Some(&after));
        (!body.is_empty()).then(|| Reply {
            body,
            ..Reply::default()
        })
    }
}

/// The address is known, and nothing is looked up. ureq's own resolver would start a thread for each request, which
/// costs more than the request.
#[derive(Debug)]
struct Known(SocketAddr);

impl Resolver for Known {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut known = self.empty();
        known.push(self.0);
        Ok(known)
    }
}

impl Ask for Asker {
    fn ask(&mut self, question: &Question) -> Option<Rc<Reply>> {
        if let Some(told) = self.told.get(question) {
            return told.clone();
        }
        let patience = self.patience()?;
        self.asked += 1;
        let reply = match question {
            Question::Get { path, host, origin } => self.get(path, *host, *origin, patience),
            Question::Talk(talk) => self.talk(*talk, patience),
        };
        let reply = reply.map(Rc::new);
        self.told.insert(question.clone(), reply.clone());
        reply
    }
}

/// As much of an answer as comes within the bounds; what came before an error counts. `after` is called after each
/// piece and says whether to go on.
fn text(
    mut from: impl Read,
    most: usize,
    end: Instant,
    after: Option<&dyn Fn() -> bool>,
) -> String {
    let mut bytes = Vec::new();
    let mut part = [0; 8 * 1024];
    while bytes.len() < most && Instant::now() < end {
        match from.read(&mut part) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&part[..count.min(most - bytes.len())]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
        if after.is_some_and(|more| !more()) {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
