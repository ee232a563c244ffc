//! The command of a unit as its files have it: what a drop-in of ours repeats with one argument changed.

use super::arguments::secrets;
use super::disk;

/// `ExecStart=` of a service: the unit's file, then its drop-ins in their order, ours left out. `None` when there is
/// not exactly one, or when something in it may be a secret: facts hold none.
pub(super) fn start<'a>(files: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut commands = Vec::new();
    for path in files {
        if path.ends_with("/zz-portcullis.conf") {
            continue;
        }
        let bytes = disk::read(path.as_ref(), disk::SETTINGS).ok().flatten()?;
        collect(&String::from_utf8_lossy(&bytes), &mut commands);
    }
    match commands.as_slice() {
        [one] if !may_hold_secrets(one) && one.len() <= 4096 => Some(one.clone()),
        _ => None,
    }
}

/// As systemd.syntax(7) reads it: sections, comments, lines that a backslash joins; an empty value forgets the others.
fn collect(text: &str, commands: &mut Vec<String>) {
    let mut section = String::new();
    let mut joined = String::new();
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with(['#', ';']) || (line.is_empty() && joined.is_empty()) {
            continue;
        }
        if let Some(part) = line.strip_suffix('\\') {
            joined.push_str(part);
            joined.push(' ');
            continue;
        }
        joined.push_str(line);
        let whole = std::mem::take(&mut joined);
        let whole = whole.trim();
        if whole.starts_with('[') {
            whole.clone_into(&mut section);
        } else if section == "[Service]"
            && let Some((key, value)) = whole.split_once('=')
            && key.trim() == "ExecStart"
        {
            if value.trim().is_empty() {
                commands.clear();
            } else {
                commands.push(value.split_whitespace().collect::<Vec<_>>().join(" "));
            }
        }
    }
}

fn may_hold_secrets(command: &str) -> bool {
    let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    // A long word of letters and digits that is no path and no name with dots.
    let random = |word: &String| {
        let value = word.rsplit('=').next().unwrap_or(word);
        let digits = value.bytes().filter(u8::is_ascii_digit).count();
        value.len() >= 20 && digits >= 3 && !value.contains(['/', '.', ':'])
    };
    !secrets(&words).is_empty()
        || words.iter().any(random)
        || words.iter().any(|w| w.contains("://") && w.contains('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], expected: Option<&str>) {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<String> = files
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let path = folder.path().join(format!("{index}.conf"));
                std::fs::write(&path, text).unwrap();
                path.to_str().unwrap().to_owned()
            })
            .collect();
        let found = start(paths.iter().map(String::as_str));
        assert_eq!(found.as_deref(), expected, "{files:?}");
    }

    #[test]
    fn the_command_that_counts() {
        let unit = "[Unit]\nExecStart=no\n[Service]\n# ExecStart=no\nExecStart = /usr/bin/vllm serve \\\n  m --port 8000\n";
        check(&[unit], Some("/usr/bin/vllm serve m --port 8000"));
        check(
            &[unit, "[Service]\nExecStart=\nExecStart=/other\n"],
            Some("/other"),
        );
        check(
            &[unit, "[Service]\nRestart=always\n"],
            Some("/usr/bin/vllm serve m --port 8000"),
        );
        check(&[unit, "[Service]\nExecStart=/other\n"], None);
        check(&["[Service]\nExecStart=\n"], None);
        check(&[], None);
        assert_eq!(start(["/no/such/file"]), None);
    }

    #[test]
    fn a_command_with_a_secret_stays_out_of_the_facts() {
        for argument in [
            "--api-key sk-1",
            "--api-key=sk-1",
            "--x hf_AbCdEfGhIjKlMnOpQrStUv123",
            "--db postgres://u:p@db/x",
            "--ServerApp.token=1",
        ] {
            check(
                &[&format!(
                    "[Service]\nExecStart=/usr/bin/vllm serve m {argument}\n"
                )],
                None,
            );
        }
        check(
            &[
                "[Service]\nExecStart=/usr/bin/vllm serve Qwen/Qwen3-235B-A22B-Instruct --api-key-file /k\n",
            ],
            Some("/usr/bin/vllm serve Qwen/Qwen3-235B-A22B-Instruct --api-key-file /k"),
        );
    }
}
