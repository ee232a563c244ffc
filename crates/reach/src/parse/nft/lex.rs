//! Words and signs of nft's language, as `nft list` prints it.

/// Longest quoted text. Comments have at most 128 bytes, log prefixes 127.
const MAX_QUOTED: usize = 4096;

/// A token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A bare word: `tcp`, `10.0.0.0/8`, `1024-65535`, `@set`, `*`.
    Word,
    /// Text that was in quotes.
    Quoted,
    /// `==`, `!=`, `<`, `&`, `{`, `,`, `:`, `.` standing alone, and so on.
    Sign,
    /// End of line or `;`.
    End,
}

/// A token with its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) line: u32,
}

impl Token<'_> {
    pub(super) fn sign(&self, text: &str) -> bool {
        self.kind == Kind::Sign && self.text == text
    }
    pub(super) fn word(&self, text: &str) -> bool {
        self.kind == Kind::Word && self.text == text
    }
    pub(super) fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Word | Kind::Quoted)
    }
}

/// Reads tokens one by one, with one of lookahead.
#[derive(Clone)]
pub(super) struct Lexer<'a> {
    pub(super) source: &'a str,
    at: usize,
    line: u32,
    peeked: Option<Option<Token<'a>>>,
    /// The latest comment and the line it is on.
    pub(super) comment: Option<(u32, &'a str)>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(source: &'a str) -> Self {
        Lexer {
            source,
            at: 0,
            line: 1,
            peeked: None,
            comment: None,
        }
    }
    pub(super) fn line(&self) -> u32 {
        self.line
    }
    pub(super) fn peek(&mut self) -> Option<Token<'a>> {
        if self.peeked.is_none() {
            self.peeked = Some(self.read());
        }
        self.peeked.flatten()
    }
    pub(super) fn next(&mut self) -> Option<Token<'a>> {
        match self.peeked.take() {
            Some(token) => token,
            None => self.read(),
        }
    }
    /// Takes the next token if it is this sign.
    pub(super) fn take_sign(&mut self, text: &str) -> bool {
        let found = self.peek().is_some_and(|t| t.sign(text));
        if found {
            self.next();
        }
        found
    }
    /// Takes the next token if it is this word.
    pub(super) fn take_word(&mut self, text: &str) -> bool {
        let found = self.peek().is_some_and(|t| t.word(text));
        if found {
            self.next();
        }
        found
    }
    /// Takes the next token if it is a word or quoted.
    pub(super) fn take_text(&mut self) -> Option<&'a str> {
        let token = self.peek()?;
        if !token.is_text() {
            return None;
        }
        self.next();
        Some(token.text)
    }

    fn read(&mut self) -> Option<Token<'a>> {
        let bytes = self.source.as_bytes();
        loop {
            match bytes.get(self.at)? {
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'\\' if bytes.get(self.at + 1) == Some(&b'\n') => {
                    self.at += 2;
                    self.line = self.line.saturating_add(1);
                }
                b'#' => {
                    let rest = &self.source[self.at..];
                    let len = rest.find('\n').unwrap_or(rest.len());
                    self.comment = Some((self.line, &rest[..len]));
                    self.at += len;
                }
                _ => break,
            }
        }
        let start = self.at;
        let line = self.line;
        let first = bytes[start];
        let (kind, len, text) = match first {
            b'\n' => {
                self.line = self.line.saturating_add(1);
                (Kind::End, 1, None)
            }
            b';' => (Kind::End, 1, None),
            b'"' => match self.source[start + 1..].find('"') {
                Some(len) if len <= MAX_QUOTED => {
                    let text = &self.source[start + 1..start + 1 + len];
                    let breaks = text.bytes().filter(|&b| b == b'\n').count();
                    self.line = self
                        .line
                        .saturating_add(u32::try_from(breaks).unwrap_or(u32::MAX));
                    (Kind::Quoted, len + 2, Some(text))
                }
                // A lone quote: no such thing in nft's output.
                _ => (Kind::Sign, 1, None),
            },
            b'{' | b'}' | b'(' | b')' | b',' | b'&' | b'|' | b'^' => (Kind::Sign, 1, None),
            b'=' | b'!' | b'<' | b'>' => {
                let two = match bytes.get(start + 1) {
                    Some(b'=') => true,
                    Some(&second) => second == first && matches!(first, b'<' | b'>'),
                    None => false,
                };
                (Kind::Sign, if two { 2 } else { 1 }, None)
            }
            _ => {
                let rest = &self.source[start..];
                let len = word_len(rest);
                let text = &rest[..len];
                // Standing alone these join or separate; within a word they belong to it.
                let sign = matches!(text, "." | ":" | "/" | "-" | "+");
                (if sign { Kind::Sign } else { Kind::Word }, len, None)
            }
        };
        self.at = start + len;
        Some(Token {
            kind,
            text: text.unwrap_or(&self.source[start..self.at]),
            start,
            end: self.at,
            line,
        })
    }
}

fn word_len(rest: &str) -> usize {
    // `@th,16,16` is one word: raw payload.
    let raw = ["@ll,", "@nh,", "@th,", "@ih,"]
        .iter()
        .any(|base| rest.starts_with(base));
    let end = rest.find(|c: char| match c {
        ' ' | '\t' | '\r' | '\n' | ';' | '"' | '{' | '}' | '(' | ')' | '&' | '|' | '^' | '='
        | '!' | '<' | '>' | '#' => true,
        ',' => !raw,
        _ => false,
    });
    // A separator first cannot happen: the caller has handled those. Never return nothing.
    end.unwrap_or(rest.len())
        .max(rest.chars().next().map_or(1, char::len_utf8))
}
