//! Asks what listens, gently: which AI service, which version, whether it wants a key.
//!
//! Only `GET` of paths that read (the catalog's; a test holds them to that), and for the few that speak another
//! protocol a fixed line that reads. No redirect is followed, no credential sent, nothing stored. The other side may
//! be anybody: every answer is bounded in time and size, and what is kept of it is a name of the catalog and a version
//! made of letters, digits and `.+_-`. What an answer means is decided in `portcullis_core::catalog`, without a network.
//!
//! HTTP is ureq's: it is kept up, blocking, and lets each request have its own bound in time, head and body. Threads do
//! the waiting: fifty ports are asked at once, so they take about as long as the slowest of them.

mod asker;
mod local;

pub use local::{local, targets};

use asker::Asker;
use portcullis_core::catalog::{self, Identity, Service, Sight, Width, identify};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bounds of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Time that one answer gets. A reader that drips gets no more.
    pub reply: Duration,
    /// Time that all answers of one port get together.
    pub port: Duration,
    /// Bytes of an answer's body that are read; the rest is left.
    pub body: usize,
    /// Ports that are asked at the same time.
    pub at_once: usize,
    /// Whether a port is asked for all that the catalog knows, or only for what its number and owner suggest.
    pub width: Width,
}

impl Default for Options {
    /// 1 s and 64 KiB an answer, 3 s a port, 64 ports at a time, everything that the catalog knows.
    fn default() -> Self {
        Options {
            reply: Duration::from_secs(1),
            port: Duration::from_secs(3),
            body: 64 * 1024,
            at_once: 64,
            width: Width::All,
        }
    }
}

/// A port to ask, and whom to expect there: most likely first, may be empty.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    /// Whom to ask for first.
    pub candidates: Vec<&'static Service>,
}

impl Target {
    /// A port of which nothing but the number is known, as from outside.
    pub fn outside(address: SocketAddr) -> Self {
        Target {
            address,
            candidates: catalog::candidates(Sight {
                port: address.port(),
                ..Sight::default()
            }),
        }
    }
}

/// What one port answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recognition {
    /// Where.
    pub address: SocketAddr,
    /// What the answers came to.
    pub identity: Identity,
    /// Questions that went over the wire.
    pub asked: usize,
}

impl Recognition {
    /// The service, for people: its name and version; `None` when no service of the catalog answered.
    pub fn name(&self) -> Option<String> {
        let service = catalog::service(self.identity.service.as_deref()?)?;
        Some(match &self.identity.version {
            Some(version) => format!("{} {version}", service.name),
            None => service.name.clone(),
        })
    }
}

/// Asks open TCP ports from outside, knowing only their numbers. The answers are in the order of the ports; a port that
/// did not answer sensibly has an empty [`Identity`]. A name in an answer is settled: the server itself showed it.
pub fn outside(addresses: &[SocketAddr], options: &Options) -> Vec<Recognition> {
    let targets: Vec<Target> = addresses.iter().copied().map(Target::outside).collect();
    recognise(&targets, options)
}

/// Asks every target, many at a time. The answers are in the order of the targets.
pub fn recognise(targets: &[Target], options: &Options) -> Vec<Recognition> {
    let next = AtomicUsize::new(0);
    let answers: Vec<Mutex<Option<Recognition>>> =
        targets.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        while let Some(index) = take(&next, targets.len()) {
            let (Some(target), Some(answer)) = (targets.get(index), answers.get(index)) else {
                return;
            };
            let found = one(target, options);
            if let Ok(mut slot) = answer.lock() {
                *slot = Some(found);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..options.at_once.min(targets.len()) {
            // When the machine has no more threads, those that there are do the work.
            if std::thread::Builder::new()
                .name("recognise".to_owned())
                .spawn_scoped(scope, work)
                .is_err()
            {
                break;
            }
        }
        work();
    });
    answers
        .into_iter()
        .zip(targets)
        .map(|(answer, target)| {
            let found = answer.into_inner().ok().flatten();
            found.unwrap_or(Recognition {
                address: target.address,
                identity: Identity::default(),
                asked: 0,
            })
        })
        .collect()
}

fn take(next: &AtomicUsize, count: usize) -> Option<usize> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    (index < count).then_some(index)
}

fn one(target: &Target, options: &Options) -> Recognition {
    let mut asker = Asker::new(target.address, options);
    let identity = identify(&target.candidates, options.width, &mut asker);
    Recognition {
        address: target.address,
        identity,
        asked: asker.asked(),
    }
}
