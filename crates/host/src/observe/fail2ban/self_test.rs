//! What `fail2ban-server -t` has against the settings: half a second of Python, and an apply asks three
//! times. So its answer is kept while no file of the settings has changed, for a minute at most.

use super::complaint;
use crate::exec::Program;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const SETTINGS: &str = "/etc/fail2ban";
/// Logs whose absence is a complaint too; files that others make are why an answer ages.
const LOGS: [&str; 2] = ["/var/log/auth.log", "/var/log/secure"];
const GOOD_FOR: Duration = Duration::from_secs(60);

/// Path, inode, size, and when its content or its inode was last changed, ns.
type File = (PathBuf, u64, u64, i64, i64);

struct Answer {
    files: Vec<File>,
    at: Instant,
    said: Option<String>,
}

static LAST: Mutex<Option<Answer>> = Mutex::new(None);

/// Its first complaint; `None` when it has none, or could not be run.
pub(super) fn said() -> Option<String> {
    let files = files();
    // Another thread's panic leaves an answer that is whole or none.
    let mut last = LAST
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(answer) = &*last
        && answer.files == files
        && answer.at.elapsed() < GOOD_FOR
    {
        return answer.said.clone();
    }
    let said = ask();
    *last = Some(Answer {
        files,
        at: Instant::now(),
        said: said.clone(),
    });
    said
}

fn ask() -> Option<String> {
    let test = Program::new("fail2ban-server")
        .arg("-t")
        // A machine at work with models may take long to give that half second.
        .timeout(Duration::from_secs(20))
        .max_output(1024 * 1024)
        .truncate()
        .output()
        .ok()?;
    if test.success() {
        return None;
    }
    complaint(&format!("{}\n{}", test.stdout_text(), test.stderr_text()))
}

fn files() -> Vec<File> {
    let mut found = Vec::new();
    look(Path::new(SETTINGS), 4, &mut found);
    for log in LOGS {
        look(Path::new(log), 0, &mut found);
    }
    found.sort();
    found
}

/// What cannot be read is not in the list, and is when it can be.
fn look(path: &Path, deep: u32, found: &mut Vec<File>) {
    let Ok(meta) = fs::metadata(path) else {
        return;
    };
    let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000) + nanos;
    // Of a log only its being there counts: it grows all the time.
    let (size, changed, inode_changed) = match path.starts_with(SETTINGS) {
        true => (
            meta.size(),
            nanos(meta.mtime(), meta.mtime_nsec()),
            nanos(meta.ctime(), meta.ctime_nsec()),
        ),
        false => (0, 0, 0),
    };
    found.push((path.to_owned(), meta.ino(), size, changed, inode_changed));
    if deep > 0
        && meta.is_dir()
        && let Ok(entries) = fs::read_dir(path)
    {
        for entry in entries.flatten() {
            look(&entry.path(), deep - 1, found);
        }
    }
}
