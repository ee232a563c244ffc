//! Where this machine gets its Debian packages from: read from apt's sources when an image is built, written nowhere.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The environment variable that names the mirror of Debian to build images from, instead of this machine's apt
/// sources.
pub const MIRROR_VARIABLE: &str = "PORTCULLIS_LAB_MIRROR";

/// The address of a mirror of Debian's main archive.
pub(crate) fn mirror() -> Result<String> {
    if let Ok(address) = std::env::var(MIRROR_VARIABLE)
        && !address.is_empty()
    {
        return Ok(address);
    }
    let mut files: Vec<PathBuf> = vec!["/etc/apt/sources.list".into()];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    files
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok().map(|text| (path, text)))
        .find_map(|(path, text)| archive(path, &text))
        .and_then(|address| match address.strip_prefix("mirror+file:") {
            // As on the clouds' images: a file with one mirror a line.
            Some(list) => Some(fs::read_to_string(list).ok()?.split_whitespace().next()?.to_owned()),
            None => Some(address),
        })
        .ok_or_else(|| {
            Error::Invalid(format!(
                "apt's sources name no mirror of Debian to build a machine from; set {MIRROR_VARIABLE}"
            ))
        })
}

/// The first source of a Debian archive in a sources file, in either of apt's formats (sources.list(5)).
fn archive(path: &Path, text: &str) -> Option<String> {
    if path
        .extension()
        .is_some_and(|extension| extension == "sources")
    {
        paragraphs(text).find_map(|fields| {
            let field = |name: &str| {
                fields
                    .iter()
                    .find(|(field, _)| field.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.as_str())
            };
            let deb = field("Types")?.split_whitespace().any(|kind| kind == "deb");
            let on = field("Enabled").is_none_or(|value| !value.eq_ignore_ascii_case("no"));
            let address = field("URIs")?.split_whitespace().next()?;
            (deb && on
                && is_debian(
                    address,
                    field("Suites")?,
                    field("Components").unwrap_or_default(),
                ))
            .then(|| address.to_owned())
        })
    } else {
        text.lines().find_map(|line| {
            let line = line.split('#').next()?.trim();
            let rest = line
                .strip_prefix("deb ")
                .or_else(|| line.strip_prefix("deb\t"))?
                .trim_start();
            let rest = match rest.strip_prefix('[') {
                Some(options) => options.split_once(']')?.1,
                None => rest,
            };
            let mut words = rest.split_whitespace();
            let (address, suite) = (words.next()?, words.next()?);
            let components = words.collect::<Vec<_>>().join(" ");
            is_debian(address, suite, &components).then(|| address.to_owned())
        })
    }
}

/// Debian's main archive has a component `main`, and suites that are neither security fixes nor a folder (`./`).
fn is_debian(address: &str, suites: &str, components: &str) -> bool {
    let suite = |suite: &str| {
        !suite.contains('/') && !suite.contains("-security") && {
            let base = suite.split('-').next().unwrap_or_default();
            [
                "bullseye",
                "bookworm",
                "trixie",
                "forky",
                "sid",
                "stable",
                "oldstable",
                "testing",
                "unstable",
            ]
            .contains(&base)
        }
    };
    components
        .split_whitespace()
        .any(|component| component == "main")
        && suites.split_whitespace().any(suite)
        && (address.trim_end_matches('/').ends_with("/debian")
            || address.starts_with("mirror+file:"))
}

/// The fields of each paragraph of a deb822 file; folded lines are joined.
fn paragraphs(text: &str) -> impl Iterator<Item = Vec<(String, String)>> {
    let mut all: Vec<Vec<(String, String)>> = vec![Vec::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            all.push(Vec::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = all.last_mut().and_then(|fields| fields.last_mut()) {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let (Some((name, value)), Some(fields)) = (line.split_once(':'), all.last_mut()) {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    all.into_iter()
}

#[cfg(test)]
mod tests {
    use super::archive;

    #[track_caller]
    fn check(file: &str, text: &str, expect: Option<&str>) {
        assert_eq!(archive(file.as_ref(), text).as_deref(), expect, "{text}");
    }

    #[test]
    fn one_line_sources() {
        let list = "sources.list";
        check(
            list,
            "deb http://m.example/debian bookworm main\n",
            Some("http://m.example/debian"),
        );
        check(
            list,
            "# deb http://no.example/debian bookworm main\n\
             deb-src http://no.example/debian bookworm main\n\
             deb http://no.example/debian-security bookworm-security main\n\
             deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian/ sid main contrib # best\n",
            Some("http://m.example/debian/"),
        );
        check(
            list,
            "deb http://x.example/apt cloud-sdk-bookworm main\n",
            None,
        );
        check(list, "deb http://x.example/debian ./\n", None);
        check(list, "deb [broken http://x.example/debian sid main\n", None);
        check(list, "", None);
    }

    #[test]
    fn a_list_of_mirrors() {
        let list = "mirror+file:/etc/apt/mirrors/debian.list";
        let text = format!("Types: deb\nURIs: {list}\nSuites: bookworm\nComponents: main\n");
        check("debian.sources", &text, Some(list));
    }

    #[test]
    fn deb822_sources() {
        let sources = "debian.sources";
        check(
            sources,
            "Types: deb deb-src\n# a comment\nURIs: http://m.example/debian\nSuites: bookworm\n bookworm-updates\nComponents: main\n",
            Some("http://m.example/debian"),
        );
        check(
            sources,
            "Types: deb\nURIs: http://no.example/debian\nSuites: sid\nComponents: main\nEnabled: no\n\n\
             Types: deb\nURIs: http://s.example/debian-security\nSuites: bookworm-security\nComponents: main\n\n\
             types: deb\nuris: http://m.example/debian http://other.example/debian\nsuites: trixie\ncomponents: main\n",
            Some("http://m.example/debian"),
        );
        check(
            sources,
            "Types: deb\nURIs: http://n.example/node_20.x\nSuites: nodistro\nComponents: main\n",
            None,
        );
    }
}
