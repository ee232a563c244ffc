//! The walk.
use crate::*;

/// Answers `query` for this host: the packet's whole way, the reply direction included.
pub fn reach(_world: World<'_>, query: &Query) -> Answer {
    Answer {
        conditional: query.sources.clone(),
        ..Answer::default()
    }
}

/// Walks the base chains of one hook alone.
pub fn walk_hook(_rules: &Ruleset, _query: &HookQuery) -> Answer {
    Answer::default()
}
