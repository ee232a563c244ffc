//! x_tables matches and targets: their binary parameters, spelled as iptables-save spells them.
//!
//! The spelling is what people know from their own tools, so it is the text of a witness; and it is
//! read by the same parser as a dump, so that a rule means the same whichever way it was read.
//! Parameters of an unknown revision or shape are spelled as `--info 0x…`, an option that no
//! extension has: the parser then keeps the whole extension as unknown.

mod matches;
mod targets;

use reach::Backend;
use reach::ir::Statement;
use std::collections::HashMap;
use std::net::IpAddr;

pub(crate) use matches::{interface, limit_text, mark_text, match_text, port_option, tcp_flags};
pub(crate) use targets::{nflog, target_text};

/// ipset names by the kernel's index.
pub(crate) type SetNames = HashMap<u16, String>;

/// Most bytes of unknown parameters that are shown.
const SHOWN: usize = 64;

/// Where an extension stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// In ip6tables.
    pub ipv6: bool,
    /// Names of ipsets.
    pub sets: &'a SetNames,
}

/// A kernel structure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blob<'a>(pub &'a [u8]);

impl<'a> Blob<'a> {
    pub fn bytes(self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(len)?)
    }
    pub fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }
    pub fn u16(self, at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(self.bytes(at, 2)?.try_into().ok()?))
    }
    pub fn be16(self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(at, 2)?.try_into().ok()?))
    }
    pub fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes(at, 4)?.try_into().ok()?))
    }
    pub fn u64(self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.bytes(at, 8)?.try_into().ok()?))
    }
    pub fn text(self, at: usize, len: usize) -> Option<String> {
        Some(crate::netlink::text(self.bytes(at, len)?))
    }
    /// union nf_inet_addr: IPv4 lies in its first four bytes.
    pub fn inet(self, at: usize, ipv6: bool) -> Option<IpAddr> {
        crate::netlink::ip(self.bytes(at, if ipv6 { 16 } else { 4 })?)
    }
}

/// As xtables_save_string writes a word.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    // A word that begins with a dash would be read as an option.
    if !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '\'') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// A chain's name as iptables writes it; `None` for a name that iptables could not have written.
pub(crate) fn chain_word(name: &str) -> Option<&str> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '\\');
    let bad = name.is_empty() || name.starts_with(['-', '!', ':', '[', '#']) || name.contains(odd);
    (!bad).then_some(name)
}

/// An interface's name: bare as iptables writes it, unless that could not be read back.
pub(crate) fn name_word(name: &str) -> String {
    match chain_word(name) {
        Some(plain) => plain.to_owned(),
        None => quoted(name),
    }
}

/// `/24`, nothing for a full mask, or the mask itself when it is no prefix.
pub(crate) fn mask_text(mask: &[u8]) -> String {
    let bits = mask.iter().fold(0u128, |v, b| v << 8 | u128::from(*b));
    let width = 8 * mask.len() as u32;
    let ones = bits.count_ones();
    let prefix = ones == 0 || bits == (u128::MAX >> (128 - ones)) << (width - ones);
    match crate::netlink::ip(mask) {
        _ if prefix && ones == width => String::new(),
        _ if prefix => format!("/{ones}"),
        Some(ip) => format!("/{ip}"),
        None => String::new(),
    }
}

/// What is kept of parameters that are not understood.
fn undecoded(flag: &str, name: &str, revision: u32, info: &[u8]) -> String {
    let shown = &info[..info.len().min(SHOWN)];
    let name = quoted(name);
    let hex = crate::nft::hex(shown);
    format!(" {flag} {name} --info {revision}:0x{hex}")
}

/// A rate as iptables prints it: `avg` is `scale` seconds between packets (xt_limit, hashlimit).
pub(crate) fn rate(avg: u64, scale: u64) -> String {
    let (count, unit) = rate_parts(avg, scale);
    format!("{count}/{unit}")
}

fn rate_parts(avg: u64, scale: u64) -> (u64, &'static str) {
    let units = [
        ("day", 86_400 * scale),
        ("hour", 3_600 * scale),
        ("min", 60 * scale),
        ("sec", scale),
    ];
    if avg == 0 {
        return (0, "sec");
    }
    let mut chosen = units[0];
    for unit in &units[1..] {
        if avg > unit.1 || unit.1 / avg < unit.1 % avg {
            break;
        }
        chosen = *unit;
    }
    (chosen.1 / avg, chosen.0)
}

/// The statements that the spelling of one extension stands for.
pub(crate) fn statements(text: &str, ipv6: bool, target: bool) -> (Vec<Statement>, Option<String>) {
    let dump = format!("*filter\n:X - [0:0]\n-A X{text}\nCOMMIT\n");
    let (ruleset, _) = reach::parse::iptables_save(&dump, ipv6, Backend::IptablesNft);
    let chain = ruleset
        .tables
        .into_iter()
        .flat_map(|t| t.chains)
        .find(|c| c.name == "X");
    let rules = chain.map(|c| c.rules).unwrap_or_default();
    match <[_; 1]>::try_from(rules) {
        Ok([rule]) => (rule.statements, rule.comment),
        // Text that does not read back as one rule says nothing.
        Err(_) => {
            let text = text.trim().to_owned();
            let unknown = match target {
                true => Statement::Unknown { text },
                false => Statement::Match(reach::ir::Match::Unknown { text }),
            };
            (vec![unknown], None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_iptables_save_does() {
        assert_eq!(quoted("plain-word_1"), "plain-word_1");
        assert_eq!(quoted(""), "\"\"");
        assert_eq!(quoted("two words"), "\"two words\"");
        assert_eq!(quoted("a\"b\\c'd"), "\"a\\\"b\\\\c\\'d\"");
        assert_eq!(quoted("-j"), "\"-j\"");
    }

    #[test]
    fn rates() {
        let check = |text: &str, avg| assert_eq!(rate(avg, 10_000), text);
        check("3/min", 200_000);
        check("2/sec", 5_000);
        check("1/day", 864_000_000);
        check("5/hour", 7_200_000);
        check("0/sec", 0);
        check("10000/sec", 1);
    }

    #[test]
    fn masks() {
        assert_eq!(mask_text(&[255, 255, 255, 0]), "/24");
        assert_eq!(mask_text(&[255; 4]), "");
        assert_eq!(mask_text(&[0; 4]), "/0");
        assert_eq!(mask_text(&[255, 0, 255, 0]), "/255.0.255.0");
        assert_eq!(mask_text(&[255; 16]), "");
        assert_eq!(mask_text(&[0; 16]), "/0");
    }

    #[test]
    fn hostile_parameters_cannot_end_the_line_that_they_stand_in() {
        let text = format!(
            " -m comment --comment {}",
            quoted("x\nCOMMIT\n-A X -j ACCEPT")
        );
        let (statements, comment) = statements(&text, false, false);
        assert!(statements.is_empty());
        assert_eq!(comment.as_deref(), Some("x\nCOMMIT\n-A X -j ACCEPT"));
    }
}
