//! Lines and words of iptables-save, as `xtables_save_string` writes and `add_param_to_argv` reads them.
use std::borrow::Cow;

/// Text in quotes that goes on for longer than this has no closing quote: comments have at most 255
/// bytes, patterns of `-m string` 128.
const MAX_QUOTED: usize = 4096;

/// Lines with their number. A quoted text may hold line breaks: iptables-save writes them as they are, so a
/// rule can go on over several lines.
pub(in crate::parse) struct Lines<'a> {
    rest: &'a str,
    next: u32,
    /// Whether a line that begins so may hold quoted text.
    quotes: fn(u8) -> bool,
}

impl<'a> Lines<'a> {
    pub(in crate::parse) fn new(text: &'a str, quotes: fn(u8) -> bool) -> Self {
        Lines {
            rest: text,
            next: 1,
            quotes,
        }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = (u32, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let number = self.next;
        let end = match self.rest.trim_start_matches([' ', '\t']).as_bytes().first() {
            Some(&first) if (self.quotes)(first) => rule_end(self.rest),
            _ => physical_end(self.rest),
        };
        let line = self.rest.get(..end).unwrap_or(self.rest);
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        let breaks = 1 + line.bytes().filter(|&b| b == b'\n').count();
        self.next = self
            .next
            .saturating_add(u32::try_from(breaks).unwrap_or(u32::MAX));
        Some((number, line.trim_end_matches('\r')))
    }
}

fn physical_end(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

/// End of the rule that `text` begins with: the first line break outside quotes. When a quote stays open, the
/// line's end counts.
fn rule_end(text: &str) -> usize {
    let mut quoted_since = None;
    let mut first_break = None;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match (quoted_since, byte) {
            (None, b'\n') => return at,
            (None, b'"') => quoted_since = Some(at),
            (None, _) => {}
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(_), b'"') => quoted_since = None,
            (Some(since), _) => {
                if byte == b'\n' {
                    first_break.get_or_insert(at);
                }
                if at - since > MAX_QUOTED
                    && let Some(end) = first_break
                {
                    return end;
                }
            }
        }
    }
    match quoted_since {
        Some(_) => first_break.unwrap_or(text.len()),
        None => text.len(),
    }
}

/// A word of a line.
#[derive(Debug, Clone)]
pub(in crate::parse) struct Word<'a> {
    pub(in crate::parse) text: Cow<'a, str>,
    /// It was written in quotes: never an option.
    pub(in crate::parse) quoted: bool,
    /// Byte range in the line.
    pub(in crate::parse) span: (usize, usize),
}

impl Word<'_> {
    /// Whether this is the bare word `text`.
    pub(in crate::parse) fn is(&self, text: &str) -> bool {
        !self.quoted && self.text == text
    }
}

/// The words of a line; false when a quote stays open.
pub(in crate::parse) fn words(line: &str) -> (Vec<Word<'_>>, bool) {
    let mut out = Vec::new();
    let bytes = line.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b' ' | b'\t' | b'\r' | b'\n' => at += 1,
            b'"' => {
                let Some((text, end)) = quoted(line, at + 1) else {
                    out.push(Word {
                        text: Cow::Borrowed(&line[at + 1..]),
                        quoted: true,
                        span: (at, line.len()),
                    });
                    return (out, false);
                };
                out.push(Word {
                    text,
                    quoted: true,
                    span: (at, end),
                });
                at = end;
            }
            _ => {
                let len = line[at..]
                    .find([' ', '\t', '\r', '\n', '"'])
                    .unwrap_or(line.len() - at);
                out.push(Word {
                    text: Cow::Borrowed(&line[at..at + len]),
                    quoted: false,
                    span: (at, at + len),
                });
                at += len;
            }
        }
    }
    (out, true)
}

/// The text from `from` up to the closing quote, unescaped, and the position behind that quote.
fn quoted(line: &str, from: usize) -> Option<(Cow<'_, str>, usize)> {
    let mut owned = String::new();
    let mut plain = from;
    let mut chars = line[from..].char_indices();
    while let Some((offset, c)) = chars.next() {
        let at = from + offset;
        match c {
            '"' if owned.is_empty() => return Some((Cow::Borrowed(&line[plain..at]), at + 1)),
            '"' => {
                owned.push_str(&line[plain..at]);
                return Some((Cow::Owned(owned), at + 1));
            }
            '\\' => {
                owned.push_str(&line[plain..at]);
                let (skipped, escaped) = chars.next()?;
                owned.push(escaped);
                plain = from + skipped + escaped.len_utf8();
            }
            _ => {}
        }
    }
    None
}
