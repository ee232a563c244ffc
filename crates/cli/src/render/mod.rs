//! Values into calm text of at most 80 columns. All outside text is escaped here or before.

pub mod audit;
pub mod bans;
pub mod catalog;
pub mod junit;
pub mod nmap_xml;
pub mod plan;
pub mod reach;
pub mod scan;
pub mod style;
pub mod verify;
pub mod why;

/// Escapes text for XML 1.0, content and attributes; what XML cannot hold becomes `?`.
pub fn xml_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' | '\t' => out.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('?'),
            c => out.push(c),
        }
    }
    out
}
