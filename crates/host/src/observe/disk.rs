//! Files, read with a bound and below a root of choice.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most bytes of a settings file that are read.
pub(super) const SETTINGS: u64 = 8 * 1024 * 1024;

/// Where files are read: `/`, or a folder that stands for it.
#[derive(Debug, Clone)]
pub(super) struct Disk(PathBuf);

impl Disk {
    pub fn new(root: &Path) -> Self {
        Self(root.to_owned())
    }

    /// True when this is the real `/`: only then do programs tell about the same host.
    pub fn is_real(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// The path as this process opens it.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.0.join(absolute.trim_start_matches('/'))
    }

    pub fn exists(&self, absolute: &str) -> bool {
        self.path(absolute).exists()
    }

    /// A regular file's bytes, `None` when there is none; longer than `limit` is an error.
    pub fn bytes(&self, absolute: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        read(&self.path(absolute), limit)
    }

    /// A regular file to read from, `None` when there is none.
    pub fn open(&self, absolute: &str) -> io::Result<Option<File>> {
        open(&self.path(absolute))
    }

    /// A settings file as text; bytes that are no UTF-8 become U+FFFD.
    pub fn text(&self, absolute: &str) -> io::Result<Option<String>> {
        let bytes = self.bytes(absolute, SETTINGS)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Absolute paths of a folder's entries that end in `suffix`, sorted; none when unreadable.
    pub fn list(&self, folder: &str, suffix: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(folder)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(suffix))
            .take(10_000)
            .map(|name| format!("{folder}/{name}"))
            .collect();
        names.sort();
        names
    }
}

/// A regular file; see [`Disk::open`].
fn open(path: &Path) -> io::Result<Option<File>> {
    // Not blocking: opening a FIFO that somebody put there would otherwise wait for a writer.
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path);
    let file = match file {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(Some(file))
}

/// A regular file's bytes; see [`Disk::bytes`].
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open(path)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "too large"));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_is_bounded_and_never_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        assert!(read(&path, 10).unwrap().is_none());
        std::fs::write(&path, "0123456789").unwrap();
        assert_eq!(read(&path, 10).unwrap().unwrap(), b"0123456789");
        assert!(read(&path, 9).is_err());
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&fifo, 10).is_err());
        assert!(read(folder.path(), 10).is_err());
        assert!(read(&path.join("below a file"), 10).unwrap().is_none());
    }
}
