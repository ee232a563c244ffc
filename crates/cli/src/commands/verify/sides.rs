//! Ports that the policy opens for some and not for others: proven only from both sides.

use super::proof::Word;
use super::seen::Seen;
use portcullis_core::expect::{Expectation, Expected};
use portcullis_core::finding::Zone;
use reach::Proto;
use serde::Serialize;

/// One such port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sides {
    /// Protocol.
    #[serde(serialize_with = "as_text")]
    pub proto: Proto,
    /// Port.
    pub port: u16,
    /// A source that the policy admits and that got in.
    pub admitted: Option<String>,
    /// A source that it does not admit and that did not.
    pub refused: Option<String>,
}

fn as_text<S: serde::Serializer>(proto: &Proto, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(proto)
}

impl Sides {
    /// True when both sides were seen.
    pub fn proven(&self) -> bool {
        self.admitted.is_some() && self.refused.is_some()
    }

    /// In plain words.
    pub fn text(&self) -> String {
        let name = format!("{}/{}", self.proto, self.port);
        match (&self.admitted, &self.refused) {
            (Some(inside), Some(outside)) => {
                format!("{name}: open for {inside}, closed for {outside}, as it should be")
            }
            (Some(inside), None) => format!(
                "{name}: open for {inside}; unproven that it is closed for the others, since none \
                 of them knocked"
            ),
            (None, Some(outside)) => format!(
                "{name}: closed for {outside}; unproven that it is open for those admitted, since \
                 none of them knocked"
            ),
            (None, None) => format!("{name}: unproven from either side"),
        }
    }
}

/// Every port that something serves and that the policy opens for some sources and not for all.
pub fn sides(expectations: &[Expectation], zones: &[Zone], seen: &[Seen]) -> Vec<Sides> {
    let mut out: Vec<Sides> = Vec::new();
    for first in expectations.iter().filter(|e| e.served) {
        let (proto, port) = (first.proto, first.port);
        let known = |side: &Sides| (side.proto, side.port) == (proto, port);
        if out.iter().any(known) {
            continue;
        }
        let mut inside = false;
        let mut outside = false;
        for expectation in expectations {
            let zone = zones.iter().find(|zone| zone.id == expectation.zone);
            let Some(zone) = zone.filter(|zone| zone.id != "containers") else {
                continue;
            };
            if (expectation.proto, expectation.port) == (proto, port) {
                inside |= !expectation.open_for.is_empty();
                outside |= !zone.networks.is_subset(&expectation.open_for);
            }
        }
        if !inside || !outside {
            continue;
        }
        let found = |policy: Expected, knock: Word| {
            seen.iter().find_map(|seen| {
                let source = seen.source?;
                let rows = seen.rows.iter();
                let mut rows = rows.filter(|row| (row.proto, row.port) == (proto, port));
                let wanted = expectations
                    .iter()
                    .find(|e| (e.proto, e.port) == (proto, port) && e.zone == seen.zone)?;
                let right = wanted.for_source(source) == policy;
                (right && rows.any(|row| row.knock == knock)).then(|| source.to_string())
            })
        };
        out.push(Sides {
            proto,
            port,
            admitted: found(Expected::Open, Word::Open),
            refused: found(Expected::Closed, Word::Closed),
        });
    }
    out.sort_by_key(|side| (side.proto, side.port));
    out
}
