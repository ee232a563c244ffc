//! The pure middle of portcullis: facts, policy, catalog, findings, plans. No IO, no clock.
pub mod catalog;
pub mod finding;
pub mod host;
pub mod plan;
pub mod planner;
pub mod policy;
pub mod text;
pub mod zones;

use sha2::{Digest, Sha256};

/// Hash of the facts a plan depends on: everything but when, by which version and by whose
/// sessions they were taken. Lowercase hex SHA-256.
pub fn facts_hash(host: &host::Host) -> String {
    let mut facts = host.clone();
    facts.taken.clear();
    facts.portcullis.clear();
    facts.sessions.clear();
    // Serialising plain data to a string cannot fail; an empty string would still differ from
    // every real hash input and so refuse the plan.
    let text = serde_json::to_string(&facts).unwrap_or_default();
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
