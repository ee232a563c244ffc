//! The few colours, each with one meaning, and text that keeps to its width.

use anstyle::{AnsiColor, Style};
use std::fmt::Display;

/// Columns of a line.
pub const WIDTH: usize = 80;

/// Open to strangers, failed.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// Maybe open, needs a look.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// Closed as wanted, done.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Less important.
pub const DIM: Style = Style::new().dimmed();
/// Headings.
pub const HEAD: Style = Style::new().bold();

/// `text` in `style`; the escapes are stripped later where colour is off.
pub fn paint(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Breaks `text` at spaces into lines of at most `width` characters; longer words stay whole.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let needed = line.chars().count() + usize::from(!line.is_empty()) + word.chars().count();
        if needed > width && !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// `text` cut to `width` characters, the cut shown by an ellipsis.
pub fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// `text` cut or padded to exactly `width` characters.
pub fn cell(text: &str, width: usize) -> String {
    let text = fit(text, width);
    let missing = width.saturating_sub(text.chars().count());
    text + &" ".repeat(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_to_their_width() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("unbreakable", 4), ["unbreakable"]);
        assert!(wrap("", 4).is_empty());
        assert_eq!(cell("abc", 5), "abc  ");
        assert_eq!(cell("abcdef", 4), "abc…");
    }
}
