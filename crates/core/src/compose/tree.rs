//! A YAML document as events and as a tree, each with its place in the text.

use super::LARGEST;
use saphyr_parser::{Event as Yaml, Parser};
use std::collections::BTreeSet;
use std::ops::Range;

/// Deepest nesting that is read: compose files have eight levels or so.
const DEEPEST: usize = 64;
/// Most events that are read.
const MOST: usize = 200_000;

/// What the parser said, with its place in bytes.
#[derive(Debug, Clone)]
pub(super) struct Event {
    what: What,
    pub(super) start: usize,
    end: usize,
    line: u32,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    Alias(usize),
    Scalar {
        value: String,
        anchor: usize,
        tag: Option<String>,
    },
    Seq(usize, Option<String>),
    EndSeq,
    Map(usize, Option<String>),
    EndMap,
    Document,
}

impl Event {
    pub(super) fn is_scalar(&self) -> bool {
        matches!(self.what, What::Scalar { .. })
    }
    pub(super) fn says(&self, text: &str) -> bool {
        matches!(&self.what, What::Scalar { value, anchor: 0, tag: None } if value == text)
    }
    pub(super) fn same(&self, other: &Event) -> bool {
        self.what == other.what
    }
}

/// A node with its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// 0: none.
    pub(super) anchor: usize,
    pub(super) tagged: bool,
    /// 1 for the first.
    pub(super) line: u32,
}

#[derive(Debug)]
pub(super) enum Kind {
    Scalar {
        value: String,
        raw: Range<usize>,
    },
    Seq(Vec<Node>),
    Map {
        pairs: Vec<(Node, Node)>,
        flow: bool,
    },
    Alias,
}

impl Node {
    pub(super) fn scalar(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { value, .. } => Some(value),
            _ => None,
        }
    }
}

/// Every event of a file with one document.
pub(super) fn events(text: &str) -> Result<Vec<Event>, String> {
    if text.len() > LARGEST {
        return Err(format!("it is larger than {LARGEST} bytes"));
    }
    // The parser counts characters.
    let mut bytes: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    bytes.push(text.len());
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(text.len());
    let mut out = Vec::new();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| format!("it is no YAML: {error}"))?;
        let tag = |t: &Option<_>| t.as_ref().map(|t| format!("{t:?}"));
        let what = match &event {
            Yaml::Alias(anchor) => What::Alias(*anchor),
            Yaml::Scalar(value, _, anchor, t) => What::Scalar {
                value: value.to_string(),
                anchor: *anchor,
                tag: tag(t),
            },
            Yaml::SequenceStart(anchor, t) => What::Seq(*anchor, tag(t)),
            Yaml::SequenceEnd => What::EndSeq,
            Yaml::MappingStart(anchor, t) => What::Map(*anchor, tag(t)),
            Yaml::MappingEnd => What::EndMap,
            Yaml::DocumentStart(_) => {
                documents += 1;
                What::Document
            }
            _ => continue,
        };
        if documents > 1 {
            return Err("it has more than one document".into());
        }
        if out.len() == MOST {
            return Err("it is too long".into());
        }
        out.push(Event {
            what,
            start: byte(span.start.index()),
            end: byte(span.end.index()),
            line: u32::try_from(span.start.line()).unwrap_or(u32::MAX),
        });
    }
    Ok(out)
}

/// Where a scalar's own characters end: the parser's span may run on through blanks and a comment.
fn written(text: &str, value: &str, start: usize, end: usize) -> usize {
    let span = text.get(start..end).unwrap_or_default();
    let quoted = ['"', '\'']
        .map(|q| format!("{q}{value}{q}"))
        .into_iter()
        .find(|q| span.starts_with(q.as_str()));
    start + quoted.map_or_else(|| span.trim_end().len(), |q| q.len())
}

/// Anchors that some alias refers to.
pub(super) fn aliased(events: &[Event]) -> BTreeSet<usize> {
    events
        .iter()
        .filter_map(|e| match e.what {
            What::Alias(anchor) => Some(anchor),
            _ => None,
        })
        .collect()
}

/// The document as a tree.
pub(super) fn build(text: &str, events: &[Event]) -> Result<Node, String> {
    let mut open: Vec<(Node, Vec<Node>)> = Vec::new();
    for event in events {
        let node = |kind, anchor, tagged| Node {
            kind,
            anchor,
            tagged,
            line: event.line,
        };
        let done = match &event.what {
            What::Document => continue,
            What::Alias(_) => node(Kind::Alias, 0, false),
            What::Scalar { value, anchor, tag } => {
                let raw = event.start..written(text, value, event.start, event.end);
                let value = value.clone();
                node(Kind::Scalar { value, raw }, *anchor, tag.is_some())
            }
            What::Seq(anchor, tag) | What::Map(anchor, tag) => {
                if open.len() == DEEPEST {
                    return Err("it is nested too deeply".into());
                }
                let kind = match event.what {
                    What::Seq(..) => Kind::Seq(Vec::new()),
                    // A flow mapping's first key stands behind its brace, a block mapping begins with it.
                    _ => Kind::Map {
                        pairs: Vec::new(),
                        flow: text.as_bytes().get(event.start) == Some(&b'{'),
                    },
                };
                open.push((node(kind, *anchor, tag.is_some()), Vec::new()));
                continue;
            }
            What::EndSeq | What::EndMap => {
                let Some((mut node, children)) = open.pop() else {
                    return Err("it ends before it begins".into());
                };
                match &mut node.kind {
                    Kind::Seq(items) => *items = children,
                    Kind::Map { pairs, .. } => {
                        let mut children = children.into_iter();
                        while let (Some(key), Some(value)) = (children.next(), children.next()) {
                            pairs.push((key, value));
                        }
                    }
                    _ => {}
                }
                node
            }
        };
        match open.last_mut() {
            Some((_, children)) => children.push(done),
            None => return Ok(done),
        }
    }
    Err("it is empty".into())
}
