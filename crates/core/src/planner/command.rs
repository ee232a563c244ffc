//! A unit's command with one argument of ours in it, for a drop-in.

/// The command, as the unit's file has it, told to listen as `argument` says: what it says about that already goes,
/// `argument` comes last. `None` when words cannot be told apart with certainty or a shell runs the command.
pub(super) fn with_argument(start: &str, argument: &str, instead_of: &[String]) -> Option<String> {
    let odd = |c: char| {
        matches!(c, '"' | '\'' | '\\' | ';' | '`' | '|' | '&' | '<' | '>') || c.is_control()
    };
    if start.contains(odd) {
        return None;
    }
    let words: Vec<&str> = start.split_whitespace().collect();
    // Prefixes of systemd.service(5) are part of the first word.
    let program = words.first()?.trim_start_matches(['@', '-', ':', '+', '!']);
    let name = program.rsplit('/').next()?;
    if !program.starts_with('/')
        || ["sh", "bash", "dash", "zsh", "ash", "env", "script"].contains(&name)
    {
        return None;
    }
    let ours: Vec<&str> = argument.split_whitespace().collect();
    let flags = ours
        .iter()
        .filter(|word| is_flag(word))
        .map(|word| word.split('=').next().unwrap_or(word))
        .chain(instead_of.iter().map(String::as_str));
    // As many values as ours has may follow the flag.
    let most = ours.len().saturating_sub(1).max(1);
    let flags: Vec<&str> = flags.collect();
    let mut kept = Vec::new();
    let mut rest = words.into_iter().peekable();
    while let Some(word) = rest.next() {
        let bare = flags.contains(&word);
        let joined = flags
            .iter()
            .any(|flag| word.strip_prefix(flag).is_some_and(|r| r.starts_with('=')));
        if !(bare || joined) {
            kept.push(word);
            continue;
        }
        for _ in 0..if bare { most } else { 0 } {
            if rest.next_if(|next| is_value(next)).is_none() {
                break;
            }
        }
    }
    kept.extend(ours);
    Some(kept.join(" "))
}

fn is_flag(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| {
        rest.starts_with(|c: char| c == '-' || c.is_ascii_alphabetic()) && rest != "-"
    }) && !word.starts_with("-::")
}

/// An address or a name, as it follows a flag that says where to listen; not the next flag.
fn is_value(word: &str) -> bool {
    !is_flag(word)
        && (word == "localhost"
            || word.starts_with("-::")
            || word.starts_with('*')
            || word.starts_with(':')
            || word.starts_with('$')
            || word.starts_with(|c: char| c.is_ascii_digit())
            || word.contains(':')
            || word.contains(','))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(start: &str, argument: &str, expected: Option<&str>) {
        let found = with_argument(start, argument, &["--ip".to_owned()]);
        assert_eq!(found.as_deref(), expected, "{start}");
        if let Some(once) = found {
            assert_eq!(
                with_argument(&once, argument, &[]).as_deref(),
                Some(once.as_str()),
                "twice"
            );
        }
    }

    #[test]
    fn the_argument_replaces_what_was_said_about_it() {
        let host = "--host 127.0.0.1";
        check(
            "/usr/bin/vllm serve m",
            host,
            Some("/usr/bin/vllm serve m --host 127.0.0.1"),
        );
        check(
            "/usr/bin/vllm serve --host 0.0.0.0 m",
            host,
            Some("/usr/bin/vllm serve m --host 127.0.0.1"),
        );
        check(
            "/usr/bin/vllm serve --host=0.0.0.0 m",
            host,
            Some("/usr/bin/vllm serve m --host 127.0.0.1"),
        );
        check(
            "-/usr/bin/x --host :: --port 1",
            host,
            Some("-/usr/bin/x --port 1 --host 127.0.0.1"),
        );
        // What follows is no address: it stays.
        check(
            "/x --host model.gguf",
            host,
            Some("/x model.gguf --host 127.0.0.1"),
        );
        check(
            "/x --host-header a",
            host,
            Some("/x --host-header a --host 127.0.0.1"),
        );
        check(
            "/py main.py --listen",
            "--listen 127.0.0.1",
            Some("/py main.py --listen 127.0.0.1"),
        );
        check(
            "/py main.py --listen 0.0.0.0,::",
            "--listen 127.0.0.1",
            Some("/py main.py --listen 127.0.0.1"),
        );
        check(
            "/usr/bin/redis-server /etc/redis/redis.conf --supervised systemd --daemonize no",
            "--bind 127.0.0.1 -::1",
            Some(
                "/usr/bin/redis-server /etc/redis/redis.conf --supervised systemd --daemonize no --bind 127.0.0.1 -::1",
            ),
        );
        check(
            "/r --bind 0.0.0.0 -::* --port 1",
            "--bind 127.0.0.1 -::1",
            Some("/r --port 1 --bind 127.0.0.1 -::1"),
        );
        check(
            "/ray start --head --dashboard-host=0.0.0.0",
            "--dashboard-host=127.0.0.1",
            Some("/ray start --head --dashboard-host=127.0.0.1"),
        );
        check(
            "/j lab --ip 0.0.0.0",
            "--ServerApp.ip=127.0.0.1",
            Some("/j lab --ServerApp.ip=127.0.0.1"),
        );
    }

    #[test]
    fn what_cannot_be_read_with_certainty_is_left() {
        for start in [
            "",
            "x --host 0.0.0.0",
            "/bin/sh -c vllm",
            "/usr/bin/env X=1 vllm",
            "/x \"a b\"",
            "/x 'a'",
            "/x a\\ b",
            "/x ; /y",
        ] {
            check(start, "--host 127.0.0.1", None);
        }
    }
}
