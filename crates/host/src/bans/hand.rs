//! The list of bans by hand, from which they come back after a reboot.
//!
//! Lines of address, begin and end in seconds since 1970; an end of 0 is none. fail2ban's action reads
//! the same file (`planner/fail2ban/portcullis.py`).

use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// A ban by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandBan {
    /// Who.
    pub address: IpAddr,
    /// Since when, seconds since 1970.
    pub since: u64,
    /// Until when; `None`: for ever.
    pub until: Option<u64>,
}

/// The file, in the state folder.
#[derive(Debug)]
pub struct HandFile {
    path: PathBuf,
}

impl HandFile {
    /// The list kept in a state folder.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            path: folder.join("bans"),
        }
    }

    /// Bans that have not ended at `now` (seconds since 1970). Lines that are none are left out.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn read(&self, now: u64) -> io::Result<Vec<HandBan>> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(text.lines().filter_map(|line| entry(line, now)).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Reads, alters and replaces the list, one process at a time; on the disk when it returns.
    ///
    /// # Errors
    /// The folder cannot be written to; the list is then as it was.
    pub fn alter(&self, now: u64, alter: impl FnOnce(&mut Vec<HandBan>)) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.path.with_extension("lock"))?;
        let _held = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| io::Error::from(error))?;
        let before = self.read(now)?;
        let mut bans = before.clone();
        alter(&mut bans);
        if bans == before {
            return Ok(());
        }
        bans.sort_by_key(|ban| (ban.address, ban.since));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        for ban in &bans {
            writeln!(
                file,
                "{} {} {}",
                ban.address,
                ban.since,
                ban.until.unwrap_or(0)
            )?;
        }
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    }
}

fn entry(line: &str, now: u64) -> Option<HandBan> {
    let mut words = line.split_whitespace();
    let address = words.next()?.parse().ok()?;
    let since = words.next()?.parse().ok()?;
    let until: u64 = words.next()?.parse().ok()?;
    let until = (until != 0).then_some(until);
    (words.next().is_none() && until.is_none_or(|until| until > now)).then_some(HandBan {
        address,
        since,
        until,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_over_goes() {
        let folder = tempfile::tempdir().unwrap();
        let file = HandFile::in_folder(&folder.path().join("new"));
        assert_eq!(file.read(0).unwrap(), []);
        let ban = |address: &str, until| HandBan {
            address: address.parse().unwrap(),
            since: 5,
            until,
        };
        let both = [ban("192.0.2.1", Some(100)), ban("2001:db8::1", None)];
        file.alter(10, |bans| bans.extend(both.clone())).unwrap();
        assert_eq!(file.read(50).unwrap(), both);
        assert_eq!(file.read(100).unwrap(), both[1..]);
        file.alter(100, |bans| bans.clear()).unwrap();
        assert_eq!(file.read(0).unwrap(), []);
    }

    #[test]
    fn lines_that_are_none_are_left_out() {
        for line in [
            "",
            "x 1 2",
            "192.0.2.1",
            "192.0.2.1 1 2 3",
            "192.0.2.1 -1 0",
            "192.0.2.1 1 9; x",
        ] {
            assert_eq!(entry(line, 0), None, "{line:?}");
        }
    }
}
