//! Port lists as people write them: `22`, `80,443`, `1-1024`, `-` for all.

use std::fmt;

/// A sorted set of ports, 1 to 65535.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSet(Vec<(u16, u16)>);

/// A port list that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part:?} is not a port list: {why}")]
pub struct PortSpecError {
    /// The part that is wrong.
    pub part: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl PortSet {
    /// Every port, 1 to 65535.
    pub fn all() -> Self {
        PortSet(vec![(1, u16::MAX)])
    }

    /// Reads `22,80-90`, `-` or `1-`.
    ///
    /// # Errors
    /// An empty list, a port outside 1 to 65535, a range that runs backwards.
    pub fn parse(text: &str) -> Result<Self, PortSpecError> {
        let mut ranges = Vec::new();
        for part in text.split(',') {
            ranges.push(range(part.trim())?);
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(previous) if u32::from(first) <= u32::from(previous.1) + 1 => {
                    previous.1 = previous.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Ok(PortSet(merged))
    }

    /// The ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|&(first, last)| first..=last)
    }

    /// How many ports.
    pub fn len(&self) -> usize {
        self.0
            .iter()
            .map(|&(first, last)| usize::from(last - first) + 1)
            .sum()
    }

    /// Never true for a parsed list.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `port` is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.0
            .iter()
            .any(|&(first, last)| (first..=last).contains(&port))
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let mut ports: Vec<u16> = ports.into_iter().filter(|&port| port != 0).collect();
        ports.sort_unstable();
        ports.dedup();
        PortSet(ports.into_iter().map(|port| (port, port)).collect())
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            if first == last {
                write!(f, "{first}")?;
            } else {
                write!(f, "{first}-{last}")?;
            }
        }
        Ok(())
    }
}

fn range(part: &str) -> Result<(u16, u16), PortSpecError> {
    let wrong = |why| PortSpecError {
        part: part.chars().take(40).collect(),
        why,
    };
    let port = |text: &str, default: u16| -> Result<u16, PortSpecError> {
        if text.is_empty() {
            return Ok(default);
        }
        match text.parse::<u32>() {
            Ok(number @ 1..=65535) => u16::try_from(number).map_err(|_| wrong("too large")),
            Ok(_) => Err(wrong("ports run from 1 to 65535")),
            Err(_) => Err(wrong("a port is a number from 1 to 65535")),
        }
    };
    if part.is_empty() {
        return Err(wrong("it is empty"));
    }
    let (first, last) = match part.split_once('-') {
        None => {
            let only = port(part, 1)?;
            (only, only)
        }
        Some((first, last)) => (port(first, 1)?, port(last, u16::MAX)?),
    };
    if first > last {
        return Err(wrong("the range runs backwards"));
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Result<&str, &str>) {
        match (PortSet::parse(text), expect) {
            (Ok(set), Ok(expect)) => assert_eq!(set.to_string(), expect, "{text}"),
            (Err(error), Err(expect)) => assert_eq!(error.why, expect, "{text}"),
            (got, expect) => panic!("{text}: {got:?}, not {expect:?}"),
        }
    }

    #[test]
    fn lists_are_read_as_people_write_them() {
        check("22", Ok("22"));
        check("443, 22", Ok("22,443"));
        check("-", Ok("1-65535"));
        check("65000-", Ok("65000-65535"));
        check("1-10,5-20,21", Ok("1-21"));
        assert_eq!(PortSet::all().len(), 65535);
    }

    #[test]
    fn what_is_no_port_is_refused() {
        check("", Err("it is empty"));
        check("22,", Err("it is empty"));
        check("0", Err("ports run from 1 to 65535"));
        check("70000", Err("ports run from 1 to 65535"));
        check("ssh", Err("a port is a number from 1 to 65535"));
        check("9-1", Err("the range runs backwards"));
        check("99999999999999", Err("a port is a number from 1 to 65535"));
    }
}
