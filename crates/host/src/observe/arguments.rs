//! What a command line tells, without keeping it: what an interpreter runs, and which arguments carry secrets.

/// Programs that run something else, by the beginning of their name.
const INTERPRETERS: [&str; 7] = ["python", "node", "bun", "deno", "java", "ruby", "uv"];

/// What an interpreter runs: script (without folder) or module, then the next word when it names an application
/// (`uvicorn mlflow.server.fastapi_app:app`). `None` for other programs.
pub(super) fn script(cmdline: &[String]) -> Option<String> {
    let mut words = cmdline.iter().map(String::as_str);
    let program = base(words.next()?);
    if !INTERPRETERS.iter().any(|name| program.starts_with(name)) {
        return None;
    }
    let mut found = None;
    while let Some(word) = words.next() {
        match word {
            "-m" => {
                found = Some(words.next()?);
                break;
            }
            // Code on the command line has no name.
            "-c" | "-e" => return None,
            flag if flag.starts_with('-') => {}
            file => {
                found = Some(file);
                break;
            }
        }
    }
    let mut script = base(found?).to_owned();
    let application = words.find(|word| !word.starts_with('-') && word.contains(':'));
    if let Some(word) = application.filter(|word| word.len() < 128 && !word.contains("//")) {
        script.push(' ');
        script.push_str(word);
    }
    Some(script.chars().take(256).collect())
}

/// The names of arguments that carry a secret for everybody to read with ps(1): `--api-key`, `--ServerApp.token`.
/// The values stay here.
pub(super) fn secrets(cmdline: &[String]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (index, word) in cmdline.iter().enumerate().skip(1) {
        if !word.starts_with("--") || word.len() > 512 {
            continue;
        }
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, value),
            None => {
                let next = cmdline.get(index + 1).map_or("", String::as_str);
                (word.as_str(), if next.starts_with('-') { "" } else { next })
            }
        };
        // A file or a variable keeps it from the list of processes.
        let elsewhere = value.is_empty() || value.starts_with(['/', '.', '$', '%']);
        if !elsewhere
            && names_a_secret(name)
            && name.len() <= 64
            && !found.iter().any(|f| f == name)
        {
            found.push(name.to_owned());
        }
    }
    found
}

fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let parts: Vec<&str> = name
        .trim_start_matches('-')
        .split(['-', '_', '.'])
        .collect();
    let Some((last, before)) = parts.split_last() else {
        return false;
    };
    match *last {
        "token" | "password" | "passwd" | "secret" | "apikey" | "requirepass" | "masterauth" => {
            true
        }
        "key" | "keys" => before
            .last()
            .is_some_and(|b| ["api", "admin", "master", "secret", "access", "auth"].contains(b)),
        _ => false,
    }
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn check(text: &str, expected: Option<&str>, hidden: &[&str]) {
        let line = line(text);
        assert_eq!(script(&line).as_deref(), expected, "{text}");
        assert_eq!(secrets(&line), hidden, "{text}");
    }

    #[test]
    fn what_an_interpreter_runs() {
        check(
            "/usr/bin/python3 -m vllm.entrypoints.openai.api_server --model x",
            Some("vllm.entrypoints.openai.api_server"),
            &[],
        );
        check(
            "/venv/bin/python3.11 -u /venv/bin/vllm serve x",
            Some("vllm"),
            &[],
        );
        check(
            "python -m uvicorn --host 0.0.0.0 mlflow.server.fastapi_app:app",
            Some("uvicorn mlflow.server.fastapi_app:app"),
            &[],
        );
        check(
            "node /usr/lib/node_modules/n8n/bin/n8n start",
            Some("n8n"),
            &[],
        );
        check("python3 -c import:os", None, &[]);
        check("/usr/bin/redis-server *:6379", None, &[]);
        check("python3", None, &[]);
    }

    #[test]
    fn secrets_are_named_and_not_kept() {
        check("vllm serve x --api-key sk-123", None, &["--api-key"]);
        check(
            "vllm serve x --api-key=sk-123 --max-tokens 7",
            None,
            &["--api-key"],
        );
        check(
            "jupyter-lab --ServerApp.token=abc",
            None,
            &["--ServerApp.token"],
        );
        check("jupyter-lab --ServerApp.token=", None, &[]);
        check("llama-server --api-key-file /etc/key", None, &[]);
        check(
            "redis-server --requirepass hunter2",
            None,
            &["--requirepass"],
        );
        check(
            "x --ssl-key server.key --sort-key name --tokenizer t",
            None,
            &[],
        );
        check("x --api-key /run/secrets/key --password $PASS", None, &[]);
        check("x --api-key --verbose", None, &[]);
    }
}
