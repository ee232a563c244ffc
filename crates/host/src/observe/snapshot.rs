//! The facts as a file. There is nothing secret in a [`Host`] by construction: of environments
//! and labels only known keys are kept, and no command line.

use portcullis_core::host::{HOST_SCHEMA, Host};

/// Why a text is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not JSON, or not of the shape of a [`Host`].
    #[error("not a snapshot of portcullis")]
    Shape(#[source] serde_json::Error),
    /// Written by another version.
    #[error("a snapshot of format {found}; this version reads format {HOST_SCHEMA}")]
    Version {
        /// The `schema` found.
        found: u64,
    },
    /// It could not be written.
    #[error("the facts could not be written as JSON")]
    Write(#[source] serde_json::Error),
}

/// The facts as JSON, with a newline at the end. The same facts give the same text.
///
/// # Errors
/// [`SnapshotError::Write`], which plain data does not cause.
pub fn snapshot(host: &Host) -> Result<String, SnapshotError> {
    let mut text = serde_json::to_string_pretty(host).map_err(SnapshotError::Write)?;
    text.push('\n');
    Ok(text)
}

/// The facts of a snapshot.
///
/// # Errors
/// [`SnapshotError::Version`] for another format than [`HOST_SCHEMA`], [`SnapshotError::Shape`]
/// for anything else that is no snapshot.
pub fn from_snapshot(text: &str) -> Result<Host, SnapshotError> {
    #[derive(serde::Deserialize)]
    struct Head {
        schema: u64,
    }
    let head: Head = serde_json::from_str(text).map_err(SnapshotError::Shape)?;
    if head.schema != u64::from(HOST_SCHEMA) {
        return Err(SnapshotError::Version { found: head.schema });
    }
    serde_json::from_str(text).map_err(SnapshotError::Shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, error: &str) {
        assert_eq!(
            from_snapshot(text).unwrap_err().to_string(),
            error,
            "{text}"
        );
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        check("", "not a snapshot of portcullis");
        check("[]", "not a snapshot of portcullis");
        check("{\"schema\":1}", "not a snapshot of portcullis");
        check(
            "{\"schema\":2,\"new\":true}",
            "a snapshot of format 2; this version reads format 1",
        );
    }

    #[test]
    fn a_snapshot_is_read_back() {
        let host = Host {
            schema: HOST_SCHEMA,
            hostname: "a\u{1b}[31m\"b".to_owned(),
            ..Host::default()
        };
        let text = snapshot(&host).unwrap();
        assert!(!text.contains('\u{1b}'));
        assert_eq!(from_snapshot(&text).unwrap(), host);
        assert_eq!(snapshot(&host).unwrap(), text);
    }
}
