//! Versions and the ranges that have a hole.

use std::cmp::Ordering;

/// Whether a version is in a range like `>=0.3.0 <0.22.0`; every comparison must hold.
/// `None` when either is not understood: then nothing is claimed.
pub fn within(version: &str, range: &str) -> Option<bool> {
    let version = parse(version)?;
    let mut all = true;
    let mut any = false;
    for part in range.split_whitespace() {
        let digits = part.find(|c: char| !matches!(c, '<' | '>' | '='))?;
        let (sign, bound) = part.split_at(digits);
        let order = compare(&version, &parse(bound)?);
        all &= match sign {
            "<" => order == Ordering::Less,
            "<=" => order != Ordering::Greater,
            ">" => order == Ordering::Greater,
            ">=" => order != Ordering::Less,
            "=" | "==" => order == Ordering::Equal,
            _ => return None,
        };
        any = true;
    }
    any.then_some(all)
}

/// The first version without the hole, where the range says it: `<0.22.0`.
pub fn mended_in(range: &str) -> Option<&str> {
    range
        .split_whitespace()
        .filter_map(|part| part.strip_prefix('<'))
        .find(|bound| !bound.starts_with('='))
}

/// Numbers, and whether it is a version before the one that they name (`1.0rc1`, `2.0.0-beta`).
type Version = (Vec<u64>, bool);

fn parse(text: &str) -> Option<Version> {
    // llama.cpp counts its builds: b6869-5d195f17b.
    let text = text.strip_prefix(['b', 'v']).unwrap_or(text);
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let numbers: Vec<u64> = numbers
        .trim_end_matches('.')
        .split('.')
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    let word: String = rest
        .trim_start_matches(['-', '.', '_'])
        .chars()
        .take_while(char::is_ascii_alphabetic)
        .collect();
    let before = matches!(
        word.as_str(),
        "a" | "b" | "c" | "rc" | "alpha" | "beta" | "dev" | "pre" | "preview" | "nightly"
    );
    Some((numbers, before))
}

fn compare(a: &Version, b: &Version) -> Ordering {
    let length = a.0.len().max(b.0.len());
    let part = |v: &Version, i: usize| v.0.get(i).copied().unwrap_or(0);
    (0..length)
        .map(|i| part(a, i).cmp(&part(b, i)))
        .find(|order| order.is_ne())
        .unwrap_or_else(|| b.1.cmp(&a.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(version: &str, range: &str, expect: Option<bool>) {
        assert_eq!(within(version, range), expect, "{version} in {range}");
    }

    #[test]
    fn ranges() {
        check("0.1.33", "<0.1.34", Some(true));
        check("0.1.34", "<0.1.34", Some(false));
        check("0.1.34-rc1", "<0.1.34", Some(true));
        check("0.10.0", "<0.9.9", Some(false));
        check("0.21.9", ">=0.3.0 <0.22.0", Some(true));
        check("0.2.7", ">=0.3.0 <0.22.0", Some(false));
        check("1.4.1", "<=1.4.1", Some(true));
        check("1.4.1.post1", "<=1.4.1", Some(true));
        check("3.9.0", "=3.9.0", Some(true));
        check("3.9", "=3.9.0", Some(true));
        check("b5661-abc", "<b5662", Some(true));
        check("b11434", "<b8492", Some(false));
        check("2.0.0-beta", "<2.0.0", Some(true));
        check("latest", "<1", None);
        check("1.0", "1.0", None);
        check("1.0", "", None);
        check("1.0", "<x", None);
    }

    #[test]
    fn where_a_hole_ends() {
        assert_eq!(mended_in(">=0.3.0 <0.22.0"), Some("0.22.0"));
        assert_eq!(mended_in("<=1.4.1"), None);
    }
}
