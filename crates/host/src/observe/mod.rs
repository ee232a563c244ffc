//! Reads the machine into a [`Host`].
use portcullis_core::host::{HOST_SCHEMA, Host};

/// Observes the machine this runs on. Never fails: what cannot be read is in `unseen`.
pub fn observe() -> Host {
    Host {
        schema: HOST_SCHEMA,
        ..Host::default()
    }
}
