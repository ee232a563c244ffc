//! Programs run, bounded and cut off.

use super::*;

fn sh(script: &str) -> Program {
    Program::new("sh").args(["-c", script])
}

/// A program's (stdout, stderr, exit code).
fn check(program: &Program, stdout: &str, stderr: &str, code: i32) {
    let output = program.output().unwrap();
    assert_eq!(output.stdout_text(), stdout);
    assert_eq!(output.stderr_text(), stderr);
    assert_eq!(output.code(), Some(code));
}

#[test]
fn results() {
    check(&sh("echo out; echo err >&2; exit 3"), "out\n", "err\n", 3);
    check(&Program::new("cat"), "", "", 0);
    check(&Program::new("cat").stdin("abc"), "abc", "", 0);
    check(
        &Program::new("/bin/echo").arg("$HOME;`id`"),
        "$HOME;`id`\n",
        "",
        0,
    );
    // A program that ignores its input ends as it likes.
    check(&sh("exit 0").stdin(vec![b'x'; 1 << 20]), "", "", 0);
}

#[test]
fn environment_is_cleared() {
    let output = Program::new("env").env("A", "b").run().unwrap();
    let mut lines: Vec<_> = output.stdout_text().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(
        lines,
        ["A=b", "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    );
}

#[test]
fn only_the_fixed_folders() {
    assert_eq!(find("sh"), Some(PathBuf::from("/usr/bin/sh")));
    for name in [
        "",
        "./sh",
        "../bin/sh",
        "bin/sh",
        "no-such-program",
        "/etc/passwd",
        "/usr",
    ] {
        assert_eq!(find(name), None, "{name:?}");
    }
    let error = Program::new("no-such-program").run().unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "no-such-program is not installed");
}

#[test]
fn failure_says_the_last_line() {
    let error = sh("printf 'one\\ntwo \\033[31mred\\n\\n' >&2; exit 4")
        .run()
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "sh ended with exit status: 4: two  [31mred"
    );
}

#[test]
fn both_pipes_full_is_no_deadlock() {
    let mebi = 1 << 20;
    let input = vec![b'x'; 3 * mebi];
    let output = sh("head -c 2097152 /dev/zero >&2; cat; head -c 2097152 /dev/zero >&2")
        .stdin(input.clone())
        .run()
        .unwrap();
    assert_eq!(output.stdout, input);
    assert_eq!(output.stderr.len(), MAX_STDERR);
    assert!(!output.truncated);
}

#[test]
fn output_is_bounded() {
    let endless = Program::new("cat").arg("/dev/zero").max_output(100_000);
    let error = endless.run().unwrap_err();
    assert!(matches!(error, Error::TooMuchOutput { limit: 100_000, .. }));
    let cut = endless.truncate().output().unwrap();
    assert_eq!((cut.stdout.len(), cut.truncated), (100_000, true));
    let exact = Program::new("echo").arg("abc").max_output(4).run().unwrap();
    assert_eq!(
        (exact.stdout_text().as_str(), exact.truncated),
        ("abc\n", false)
    );
}

#[test]
fn a_timeout_ends_the_whole_group() {
    let begin = Instant::now();
    let error = sh("sleep 100 & echo $!; wait")
        .timeout(Duration::from_millis(200))
        .run()
        .unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    // Closing its outputs does not let a program outlive the bound.
    let error = sh("exec >&- 2>&-; sleep 100")
        .timeout(Duration::from_millis(200))
        .run()
        .unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    // The child of the shell is gone too: it held the only other end of this pipe.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!("sleep 100 & echo $! > {}; wait", file.display());
    sh(&script)
        .timeout(Duration::from_millis(300))
        .run()
        .unwrap_err();
    let pid = std::fs::read_to_string(file).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while alive(pid.trim()) {
        assert!(Instant::now() < deadline, "sleep {pid} still runs");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Running, and not merely waiting to be buried.
fn alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

#[test]
fn a_daemon_that_keeps_the_pipe_does_not_hold_us() {
    let begin = Instant::now();
    let output = sh("setsid sleep 2 & echo started").run().unwrap();
    assert_eq!(output.stdout_text(), "started\n");
    assert!(begin.elapsed() < Duration::from_millis(1500));
}

#[test]
fn shown_as_typed() {
    let program = Program::new("ufw").args(["allow", "22/tcp", "comment", "it's a door"]);
    assert_eq!(
        program.display(),
        "ufw allow 22/tcp comment 'it'\\''s a door'"
    );
}
