//! Whole files: written so that a reader sees the old or the new content and nothing else.

use super::{Context, Error, Touch};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Largest file that is read or copied, bytes.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// SHA-256 as lowercase hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    crate::transaction::hex(&Sha256::digest(bytes))
}

/// Makes the name of `path` durable: a rename is on the disk only when its folder is.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// Who owns a file and what may be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attributes {
    /// Permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Time of the last change of content: seconds since 1970 and nanoseconds.
    pub mtime: Option<(i64, u32)>,
}

impl Attributes {
    pub(crate) fn of(meta: &fs::Metadata) -> Self {
        Self {
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: u32::try_from(meta.mtime_nsec())
                .ok()
                .map(|nanos| (meta.mtime(), nanos)),
        }
    }

    fn give(&self, file: &File) -> io::Result<()> {
        std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid))?;
        // After the owner: changing that clears the set-id bits.
        file.set_permissions(Permissions::from_mode(self.mode))?;
        if let Some((seconds, nanos)) = self.mtime
            && let Ok(seconds) = u64::try_from(seconds)
        {
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))?;
        }
        Ok(())
    }
}

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Absent,
    File(Vec<u8>, Attributes),
    Link(PathBuf),
    /// A folder, device, socket…: nothing that portcullis replaces.
    Other,
}

/// Reads what `path` is, without following a link.
pub(crate) fn look(path: &Path) -> io::Result<Found> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Found::Absent);
        }
        Err(error) => return Err(error),
    };
    if meta.is_symlink() {
        return Ok(Found::Link(fs::read_link(path)?));
    }
    if !meta.is_file() {
        return Ok(Found::Other);
    }
    if meta.len() > MAX_FILE {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("{} is larger than {MAX_FILE} bytes", path.display()),
        ));
    }
    Ok(Found::File(fs::read(path)?, Attributes::of(&meta)))
}

/// SHA-256 of the file's bytes; `None` when there is none. A link counts as its target's path.
pub(crate) fn fingerprint(path: &Path) -> io::Result<Option<String>> {
    Ok(match look(path)? {
        Found::Absent | Found::Other => None,
        Found::File(bytes, _) => Some(sha256(&bytes)),
        Found::Link(target) => Some(sha256(target.as_os_str().as_encoded_bytes())),
    })
}

/// The name under which a new content waits to take `path`'s place. It is the same every time, so
/// that what a crash left is found again; a leading dot and the ending keep programs that read
/// whole folders (fail2ban's `jail.d`, systemd's drop-ins) from reading it.
pub(crate) fn waiting_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.portcullis-new"))
}

/// Puts `bytes` at `path`: temporary file, fsync, rename, fsync of the folder.
pub(crate) fn replace(path: &Path, bytes: &[u8], attributes: &Attributes) -> io::Result<()> {
    let waiting = waiting_name(path);
    match fs::remove_file(&waiting) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&waiting)?;
        file.write_all(bytes)?;
        attributes.give(&file)?;
        file.sync_all()?;
        fs::rename(&waiting, path)
    })();
    if let Err(error) = written {
        // Also when only the renaming failed: a full disk may refuse that as well.
        let _ = fs::remove_file(&waiting);
        return Err(error);
    }
    sync_parent(path)
}

/// Like [`replace`], for a rollback: on a disk without room it writes in place. A crash then leaves
/// a short file, which the next try mends, for the copy in the snapshot stays until the end.
pub(crate) fn restore(path: &Path, bytes: &[u8], attributes: &Attributes) -> io::Result<()> {
    match replace(path, bytes, attributes) {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded
            ) && fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()) =>
        {
            let mut file = File::options().write(true).truncate(true).open(path)?;
            file.write_all(bytes)?;
            attributes.give(&file)?;
            file.sync_all()
        }
        result => result,
    }
}

/// Puts a link at `path`.
pub(crate) fn restore_link(path: &Path, target: &Path) -> io::Result<()> {
    let waiting = waiting_name(path);
    let _ = fs::remove_file(&waiting);
    std::os::unix::fs::symlink(target, &waiting)?;
    if let Err(error) = fs::rename(&waiting, path) {
        let _ = fs::remove_file(&waiting);
        return Err(error);
    }
    sync_parent(path)
}

/// Removes the file if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The folders above `path` that do not exist, outermost first.
pub(crate) fn missing_parents(path: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> = path
        .ancestors()
        .skip(1)
        .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        .map(Path::to_owned)
        .collect();
    missing.reverse();
    missing
}

fn make_parents(path: &Path) -> io::Result<()> {
    for folder in missing_parents(path) {
        match DirBuilder::new().mode(0o755).create(&folder) {
            Ok(()) => {
                // Not what the umask of the caller happens to be: services must read below it.
                fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
                sync_parent(&folder)?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// An absolute path without `.` and `..`.
fn plain(path: &str) -> Result<PathBuf, Error> {
    let parsed = PathBuf::from(path);
    let straight = parsed
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !parsed.is_absolute() || !straight || parsed.file_name().is_none() || path.contains('\0') {
        return Err(Error::refused(path, "not a plain absolute path"));
    }
    Ok(parsed)
}

pub(super) fn check(path: &str, mode: Option<u32>) -> Result<(), Error> {
    let parsed = plain(path)?;
    if mode.is_some_and(|mode| mode & !0o7777 != 0) {
        return Err(Error::refused(path, "mode bits out of range"));
    }
    match look(&parsed).map_err(|source| Error::io(format!("read {path}"), source))? {
        Found::Other => Err(Error::refused(path, "there is something that is no file")),
        _ => Ok(()),
    }
}

pub(super) fn touches(path: &str) -> Result<Vec<Touch>, Error> {
    let parsed = plain(path)?;
    Ok(vec![Touch::File {
        path: path.to_owned(),
        made_folders: missing_parents(&parsed)
            .iter()
            .map(|folder| folder.to_string_lossy().into_owned())
            .collect(),
    }])
}

pub(super) fn write(path: &str, content: &str, mode: u32, context: &Context) -> Result<(), Error> {
    let parsed = plain(path)?;
    let doing = |source| Error::io(format!("write {path}"), source);
    // Who owns the file that is replaced keeps it; a new one is ours.
    let (uid, gid) = match look(&parsed).map_err(doing)? {
        Found::File(_, old) => (old.uid, old.gid),
        _ => (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        ),
    };
    make_parents(&parsed).map_err(doing)?;
    context.point("file: folders made").map_err(doing)?;
    let attributes = Attributes {
        mode,
        uid,
        gid,
        mtime: None,
    };
    replace(&parsed, content.as_bytes(), &attributes).map_err(doing)?;
    match look(&parsed).map_err(doing)? {
        Found::File(bytes, now) if bytes == content.as_bytes() && now.mode == mode => Ok(()),
        _ => Err(Error::read_back(
            path,
            "the file does not hold what was written",
        )),
    }
}

pub(super) fn delete(path: &str) -> Result<(), Error> {
    let parsed = plain(path)?;
    let doing = |source| Error::io(format!("remove {path}"), source);
    remove(&parsed).map_err(doing)?;
    match look(&parsed).map_err(doing)? {
        Found::Absent => Ok(()),
        _ => Err(Error::read_back(path, "the file is still there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: fn(u32) -> Attributes = |mode| Attributes {
        mode,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        mtime: Some((1_000_000_000, 5)),
    };

    /// The bytes and mode at `path`.
    fn check_file(path: &Path, bytes: &str, mode: u32) {
        let Found::File(found, attributes) = look(path).unwrap() else {
            panic!("{path:?} is no file");
        };
        assert_eq!(String::from_utf8(found).unwrap(), bytes);
        assert_eq!(attributes.mode, mode, "mode of {path:?}");
    }

    #[test]
    fn replaced_with_mode_owner_and_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conf");
        replace(&path, b"one", &MINE(0o640)).unwrap();
        check_file(&path, "one", 0o640);
        restore(&path, b"two", &MINE(0o4711)).unwrap();
        check_file(&path, "two", 0o4711);
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000_000, 5));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crash_left_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conf");
        fs::write(waiting_name(&path), "half").unwrap();
        replace(&path, b"whole", &MINE(0o600)).unwrap();
        check_file(&path, "whole", 0o600);
        assert!(!waiting_name(&path).exists());
    }

    #[test]
    fn a_link_is_replaced_and_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let (target, path) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "theirs").unwrap();
        std::os::unix::fs::symlink("target", &path).unwrap();
        assert_eq!(look(&path).unwrap(), Found::Link("target".into()));
        replace(&path, b"ours", &MINE(0o644)).unwrap();
        check_file(&path, "ours", 0o644);
        check_file(
            &target,
            "theirs",
            fs::metadata(&target).unwrap().mode() & 0o7777,
        );
        restore_link(&path, Path::new("target")).unwrap();
        assert_eq!(look(&path).unwrap(), Found::Link("target".into()));
    }

    #[test]
    fn missing_folders_are_named_outermost_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/c.conf");
        let missing = missing_parents(&path);
        assert_eq!(
            missing,
            [folder.path().join("a"), folder.path().join("a/b")]
        );
        make_parents(&path).unwrap();
        assert_eq!(missing_parents(&path), Vec::<PathBuf>::new());
        remove(&path).unwrap();
        remove(Path::new("/proc/version/x")).unwrap();
    }

    #[test]
    fn only_plain_absolute_paths() {
        for path in [
            "",
            "etc/ufw",
            "/",
            "/etc/../x",
            "/etc/./../x",
            "/a\0b",
            "../x",
        ] {
            assert!(check(path, None).is_err(), "{path:?}");
        }
        assert!(check("/etc", None).is_err(), "a folder");
        assert!(check("/etc/no-such-file", Some(0o100_644)).is_err(), "mode");
        check("/etc/no-such-folder/x", Some(0o644)).unwrap();
    }
}
