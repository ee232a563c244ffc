//! From answers to a name: which questions are asked, in which order, and what is believed.

use super::probe::{Probe, Reply, Talk};
use super::{Service, services};
use serde::{Deserialize, Serialize};
use std::rc::Rc;

/// Origin and host that belong to nobody (RFC 2606): what a foreign page and a rebound name would send.
pub const FOREIGN_HOST: &str = "portcullis.invalid";
/// See [`FOREIGN_HOST`].
pub const FOREIGN_ORIGIN: &str = "http://portcullis.invalid";

/// Something to ask a server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Question {
    /// `GET path`.
    Get {
        /// The path.
        path: String,
        /// In place of the server's own name.
        host: Option<&'static str>,
        /// As a page from elsewhere would send it.
        origin: Option<&'static str>,
    },
    /// Another protocol.
    Talk(Talk),
}

impl Question {
    /// The question of a probe.
    pub fn of(probe: &Probe) -> Self {
        match probe.talk {
            Some(talk) => Question::Talk(talk),
            None => Question::get(&probe.path),
        }
    }

    fn get(path: &str) -> Self {
        Question::Get {
            path: path.to_owned(),
            host: None,
            origin: None,
        }
    }
}

/// Whoever asks: `None` for no answer that makes sense in time.
pub trait Ask {
    /// Asks once; the same question may be asked again and costs nothing then.
    fn ask(&mut self, question: &Question) -> Option<Rc<Reply>>;
}

/// Whether strangers are let in, as the server itself showed.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// It was not seen.
    #[default]
    Unknown,
    /// It answers without a key.
    Open,
    /// It asks for a key.
    Locked,
}

/// What the answers came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Catalog id; `None`: it answered, and as none of the catalog does.
    pub service: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Whether strangers are let in.
    pub access: Access,
    /// Ids of [`super::Hazard`]s that were seen.
    pub hazards: Vec<String>,
    /// Pages from anywhere may read its answers (CORS).
    pub any_origin: bool,
    /// It answers whatever name it is called by (`Host`), so a rebound DNS name reaches it.
    pub any_host: bool,
    /// Something answered at all.
    pub answered: bool,
}

/// How much to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// Only what tells the candidates apart.
    Candidates,
    /// Everything that the catalog knows.
    All,
}

/// A service, the question that named it, and the answer.
type Named = (&'static Service, &'static Probe, Rc<Reply>);

/// Asks until a name is settled. `candidates` are asked first.
pub fn identify(candidates: &[&'static Service], width: Width, asker: &mut dyn Ask) -> Identity {
    let mut found = Identity::default();
    // Another protocol comes first, and only where something suggests it: Redis takes HTTP for an attack and says so in
    // its log.
    let (talkers, mut others): (Vec<_>, Vec<_>) =
        candidates.iter().copied().partition(|s| talks(s));
    let mut named = talkers.into_iter().find_map(|s| by_answer(s, asker));
    if named.is_none() {
        found.answered = asker.ask(&Question::get("/")).is_some();
    }
    if found.answered {
        if width == Width::All {
            let known = |s: &&Service| !talks(s) && !candidates.iter().any(|c| c.id == s.id);
            others.extend(services().iter().filter(known));
        }
        // What is more general is believed only when nothing exact fits.
        others.sort_by_key(|s| s.generic);
        named = others.into_iter().find_map(|s| by_answer(s, asker));
    }
    let Some((service, probe, reply)) = named else {
        return found;
    };
    found.answered = true;
    found.service = Some(service.id.clone());
    found.version = probe.version(&reply).or_else(|| version(service, asker));
    access(service, asker, &mut found);
    for hazard in &service.hazards {
        let reply = asker.ask(&Question::of(&hazard.when));
        if reply.is_some_and(|reply| hazard.when.holds(&reply)) {
            found.hazards.push(hazard.id.clone());
        }
    }
    if probe.talk.is_none() {
        from_elsewhere(probe, asker, &mut found);
    }
    found
}

fn talks(service: &Service) -> bool {
    service.probes.iter().any(|p| p.talk.is_some())
}

/// The first of a service's own questions that is answered as only it does.
fn by_answer(service: &'static Service, asker: &mut dyn Ask) -> Option<Named> {
    service.probes.iter().filter(|p| !p.weak).find_map(|probe| {
        let reply = asker.ask(&Question::of(probe))?;
        probe.holds(&reply).then_some((service, probe, reply))
    })
}

fn version(service: &'static Service, asker: &mut dyn Ask) -> Option<String> {
    service
        .probes
        .iter()
        .filter(|p| p.version.is_some())
        .find_map(|probe| {
            let reply = asker.ask(&Question::of(probe))?;
            probe.holds(&reply).then(|| probe.version(&reply)).flatten()
        })
}

fn access(service: &'static Service, asker: &mut dyn Ask, found: &mut Identity) {
    for access in &service.accesses {
        let Some(reply) = asker.ask(&Question::of(&access.open)) else {
            continue;
        };
        let refused = access
            .locked_body
            .as_ref()
            .is_some_and(|text| reply.body.contains(text.as_str()));
        if refused || access.locked.contains(&reply.status) {
            found.access = Access::Locked;
        } else if access.open.holds(&reply) {
            // One open door is enough.
            found.access = Access::Open;
            return;
        }
    }
}

/// The same question as a page from elsewhere would send it, and as a rebound name would.
fn from_elsewhere(probe: &'static Probe, asker: &mut dyn Ask, found: &mut Identity) {
    let crossed = asker.ask(&Question::Get {
        path: probe.path.clone(),
        host: None,
        origin: Some(FOREIGN_ORIGIN),
    });
    found.any_origin = crossed.is_some_and(|reply| {
        let allowed = reply.header("access-control-allow-origin");
        allowed.is_some_and(|v| v == "*" || v == FOREIGN_ORIGIN)
    });
    let rebound = asker.ask(&Question::Get {
        path: probe.path.clone(),
        host: Some(FOREIGN_HOST),
        origin: None,
    });
    found.any_host = rebound.is_some_and(|reply| probe.holds(&reply));
}
