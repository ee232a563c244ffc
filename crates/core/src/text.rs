//! Untrusted text made safe to show.

/// Longest piece of untrusted text that is shown, in characters; more is cut with an ellipsis.
pub const SHOWN: usize = 200;

/// Makes untrusted text (container names, rule comments, log lines, interface names) safe to print
/// in one line: escaped as by [`escape`], and cut after [`SHOWN`] characters.
pub fn clean(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => escape(&text[..end]) + "…",
        None => escape(text),
    }
}

/// As [`clean`], at any length: for sentences of our own, whose foreign pieces were cut when they were put in.
/// Control characters, line separators, bidirectional controls and other invisible format characters become
/// `\u{…}` escapes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if deceives(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters that a terminal or a reader would act on instead of showing (Unicode 16: categories
/// Cc, Zl, Zp, the Cf characters in use, tags and variation selectors, unassigned specials).
fn deceives(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// "a", "a and b", "a, b and c".
pub fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, shown: &str) {
        assert_eq!(clean(text), shown);
    }

    #[test]
    fn hostile_text_is_escaped_and_cut() {
        check("web-1", "web-1");
        check("größe 模型", "größe 模型");
        check("a\u{1b}[2Jb", "a\\u{1b}[2Jb");
        check("a\nb\r\tc", "a\\u{a}b\\u{d}\\u{9}c");
        check("a\u{202e}txt.exe", "a\\u{202e}txt.exe");
        check("zero\u{200b}width\u{feff}", "zero\\u{200b}width\\u{feff}");
        check("\u{9b}31m", "\\u{9b}31m");
        let long = clean(&"x".repeat(1000));
        assert_eq!(long.chars().count(), SHOWN + 1);
        assert!(long.ends_with('…'));
        let sentence = "x".repeat(1000) + "\u{1b}";
        assert_eq!(escape(&sentence), "x".repeat(1000) + "\\u{1b}");
    }
}
