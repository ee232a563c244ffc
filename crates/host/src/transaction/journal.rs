//! The write-ahead record of a transaction.
//!
//! One file, append only. A record is one line, `LENGTH CHECKSUM JSON\n`: the length of the JSON in
//! bytes (8 hex digits) and the first 16 hex digits of its SHA-256. Each append is on the disk
//! before it returns. The file is made larger than needed at the start (the rest is zero bytes), so
//! that a full disk does not stop a rollback from being recorded.
//!
//! What a crash can leave is a torn last record: it is ignored, and overwritten by the next append.
//! What a bad disk can leave is a damaged record in the middle: the reader steps over it and says
//! so ([`Read::damaged`]); the rollback then restores everything that the snapshot holds instead of
//! only what the journal names.

use super::faults::Faults;
use super::{Confirm, TransactionId, Why};
use crate::change::{Touch, files};
use nix::fcntl::posix_fallocate;
use portcullis_core::host::Session;
use portcullis_core::plan::Plan;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// Version of the record format.
pub const JOURNAL_SCHEMA: u32 = 1;

/// Bytes set aside for the records that follow the first one.
const RESERVE: u64 = 256 * 1024;

/// `LENGTH CHECKSUM `: 8 + 1 + 16 + 1 bytes.
const HEADER: usize = 26;

/// No record is longer; a length beyond it is damage.
const MAX_RECORD: usize = 64 * 1024 * 1024;

/// One thing that happened, or is about to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "record")]
pub enum Record {
    /// The transaction exists; nothing has been changed.
    Begin {
        /// [`JOURNAL_SCHEMA`].
        schema: u32,
        /// Its number.
        id: TransactionId,
        /// When, RFC 3339, UTC, for people.
        at: String,
        /// The boot it runs in.
        boot_id: String,
        /// What is to be done.
        plan: Box<Plan>,
        /// SSH connections at this moment: none of them can confirm.
        sessions: Vec<Session>,
        /// What the transaction waits for at its end.
        confirm: Confirm,
    },
    /// A layer of the snapshot is complete on the disk.
    Snapshot {
        /// 0: before everything. 1: after packages were installed, before anything else.
        layer: u32,
        /// SHA-256 of its manifest.
        sha256: String,
    },
    /// The way back is armed outside this process and said that it is ready.
    Armed {
        /// How.
        watchdog: Watchdog,
        /// When it rolls back, milliseconds since boot.
        deadline: u64,
        /// The boot that `deadline` counts from.
        boot_id: String,
    },
    /// The next thing done is this change.
    Intent {
        /// Index in the plan.
        change: usize,
        /// All that it may alter.
        touches: Vec<Touch>,
    },
    /// The change was made and read back.
    Done {
        /// Index in the plan.
        change: usize,
        /// SHA-256 of the files it altered, as they are now; `None`: absent.
        after: Vec<(String, Option<String>)>,
    },
    /// All changes were made and read back; waiting for the confirmation.
    Applied {
        /// When, RFC 3339, UTC.
        at: String,
        /// SSH connections open at this moment: they came in through half-made changes at best, so
        /// they cannot confirm either.
        sessions: Vec<Session>,
    },
    /// Kept.
    Confirmed {
        /// By which way in.
        by: String,
        /// When, RFC 3339, UTC.
        at: String,
    },
    /// The rollback begins; from here on it can only be finished.
    RollingBack {
        /// Why.
        why: Why,
        /// Packages that this transaction installed are removed as well.
        purge: bool,
        /// When, RFC 3339, UTC.
        at: String,
    },
    /// The state is the one before.
    RolledBack {
        /// What was left as it is, and why.
        left: Vec<String>,
        /// When, RFC 3339, UTC.
        at: String,
    },
}

/// What watches over an unconfirmed transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Watchdog {
    /// A transient systemd timer.
    Timer {
        /// Unit name without suffix.
        unit: String,
    },
    /// A process in a session of its own, child of init.
    Process {
        /// Its process id.
        pid: u32,
    },
}

/// What could be read of a journal.
#[derive(Debug, Default)]
pub struct Read {
    /// The good records, in order.
    pub records: Vec<Record>,
    /// Damaged places before the last good record.
    pub damaged: u32,
    /// The last record was torn off by a crash.
    pub torn: bool,
    /// Where the next record goes.
    end: u64,
}

/// A journal open for appending.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    end: u64,
}

impl Journal {
    /// Makes the file with its first record. The caller syncs the folder.
    pub(crate) fn create(path: &Path, first: &Record, faults: &dyn Faults) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let room = RESERVE + encode(first)?.len() as u64;
        // Without this room a full disk is an error now, before anything has been changed.
        posix_fallocate(file.as_fd(), 0, i64::try_from(room).unwrap_or(i64::MAX))
            .map_err(io::Error::from)?;
        let mut journal = Self { file, end: 0 };
        journal.append(first, faults)?;
        Ok(journal)
    }

    /// Opens it for more records; a torn tail is cut off. On a disk that has turned read-only every
    /// append fails.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Read)> {
        let (mut file, writable) = match File::options().read(true).write(true).open(path) {
            // The kernel lets nobody write any more after an error of the disk. The rules are in
            // memory: a rollback opens the door all the same, and is recorded by a later try.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                (File::open(path)?, false)
            }
            file => (file?, true),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let read = with_aside(path, decode(&bytes));
        if read.torn && writable {
            let zeros = vec![0; bytes.len() - usize::try_from(read.end).unwrap_or(bytes.len())];
            // Overwriting keeps the room that was set aside; cutting the file would give it back.
            file.write_all_at(&zeros, read.end)?;
        }
        let end = read.end;
        Ok((Self { file, end }, read))
    }

    /// Adds a record; it is on the disk when this returns.
    pub(crate) fn append(&mut self, record: &Record, faults: &dyn Faults) -> io::Result<()> {
        faults.point("before a record")?;
        let line = encode(record)?;
        self.file.write_all_at(&line, self.end)?;
        self.file.sync_data()?;
        self.end += line.len() as u64;
        faults.point("after a record")
    }
}

/// Reads a journal that somebody else may be writing.
pub(crate) fn read(path: &Path) -> io::Result<Read> {
    Ok(with_aside(path, decode(&std::fs::read(path)?)))
}

/// The start of a rollback that the journal's own disk blocks did not take. A link has its text in the
/// folder's metadata, which may be well where they are not.
pub(crate) fn note_aside(path: &Path, rolling_back: &Record) -> io::Result<()> {
    let json = serde_json::to_string(rolling_back)?;
    symlink(json, aside(path))?;
    files::sync_parent(path)
}

fn aside(journal: &Path) -> PathBuf {
    journal.with_file_name("rolling-back")
}

/// The records, with the one that was noted aside unless the journal took it in the end.
fn with_aside(path: &Path, mut read: Read) -> Read {
    use Record::{RolledBack, RollingBack};
    let mut records = read.records.iter();
    if !records.any(|record| matches!(record, RollingBack { .. } | RolledBack { .. }))
        && let Ok(text) = std::fs::read_link(aside(path))
        && let Ok(record) = serde_json::from_slice(text.as_os_str().as_bytes())
        && matches!(record, RollingBack { .. })
    {
        read.records.push(record);
    }
    read
}

/// `LENGTH CHECKSUM `.
fn start(json: &[u8]) -> String {
    let checksum = super::hex(&Sha256::digest(json)[..8]);
    format!("{:08x} {checksum} ", json.len())
}

fn encode(record: &Record) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(record)?;
    let mut line = start(&json).into_bytes();
    line.extend_from_slice(&json);
    line.push(b'\n');
    Ok(line)
}

/// The record at the start of `bytes` and its length on disk.
fn one(bytes: &[u8]) -> Option<(Record, usize)> {
    let header = std::str::from_utf8(bytes.get(..HEADER)?).ok()?;
    let length = usize::from_str_radix(header.get(..8)?, 16).ok()?;
    if length > MAX_RECORD {
        return None;
    }
    let json = bytes.get(HEADER..HEADER + length)?;
    // The line break is no part of what is checked, but the next append must not land in front of
    // it.
    if header != start(json) || bytes.len() < HEADER + length + 1 {
        return None;
    }
    let record = serde_json::from_slice(json).ok()?;
    Some((record, HEADER + length + 1))
}

fn decode(bytes: &[u8]) -> Read {
    let mut read = Read::default();
    let mut at = 0;
    let mut damaged = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if let Some((record, length)) = one(rest) {
            at += length;
            read.records.push(record);
            read.damaged += damaged;
            damaged = 0;
            read.end = at as u64;
            continue;
        }
        if rest.iter().all(|byte| *byte == 0) {
            break;
        }
        // Step over the damage to the start of the next line.
        damaged += 1;
        at += rest
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(rest.len(), |line_break| line_break + 1);
    }
    // Damage that no good record follows is what a crash in the middle of a write leaves.
    read.torn = damaged > 0;
    read
}

#[cfg(test)]
mod tests {
    use super::super::faults::NoFaults;
    use super::*;

    fn intent(change: usize) -> Record {
        Record::Intent {
            change,
            touches: vec![Touch::Ufw, Touch::Guard],
        }
    }

    /// A journal of four records on disk.
    fn four() -> (tempfile::TempDir, std::path::PathBuf, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::create(&path, &intent(0), &NoFaults).unwrap();
        for change in 1..4 {
            journal.append(&intent(change), &NoFaults).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        (folder, path, bytes)
    }

    /// What is read from these bytes: the changes named, damaged places, torn.
    fn check(bytes: &[u8], changes: &[usize], damaged: u32, torn: bool) {
        let read = decode(bytes);
        let seen: Vec<usize> = read
            .records
            .iter()
            .map(|record| match record {
                Record::Intent { change, .. } => *change,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            (seen.as_slice(), read.damaged, read.torn),
            (changes, damaged, torn)
        );
    }

    #[test]
    fn what_was_appended_is_read() {
        let (_folder, path, bytes) = four();
        check(&bytes, &[0, 1, 2, 3], 0, false);
        assert!(bytes.len() as u64 > RESERVE, "no room set aside");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(&intent(4), &NoFaults).unwrap();
        check(&std::fs::read(&path).unwrap(), &[0, 1, 2, 3, 4], 0, false);
    }

    #[test]
    fn a_journal_cut_anywhere_keeps_every_whole_record() {
        let (_folder, path, bytes) = four();
        let line = encode(&intent(0)).unwrap().len();
        for cut in 0..=4 * line {
            let whole: Vec<usize> = (0..cut / line).collect();
            check(&bytes[..cut], &whole, 0, cut % line != 0);
            // The same with the zero bytes of the room that was set aside behind it.
            let mut padded = bytes[..cut].to_vec();
            padded.resize(bytes.len(), 0);
            // A record whose line break alone is missing is whole: nothing can be torn off behind
            // the checked part.
            let kept = if cut % line == line - 1 {
                cut / line + 1
            } else {
                cut / line
            };
            let whole: Vec<usize> = (0..kept).collect();
            check(
                &padded,
                &whole,
                0,
                cut % line != 0 && cut % line != line - 1,
            );
            // And the next append leaves a readable journal.
            std::fs::write(&path, &padded).unwrap();
            let (mut journal, _) = Journal::open(&path).unwrap();
            journal.append(&intent(9), &NoFaults).unwrap();
            let mut after = whole.clone();
            after.push(9);
            check(&std::fs::read(&path).unwrap(), &after, 0, false);
        }
    }

    #[test]
    fn a_flipped_bit_costs_one_record_and_is_told() {
        let (_folder, _path, bytes) = four();
        let line = encode(&intent(0)).unwrap().len();
        for byte in 0..4 * line {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[byte] ^= 1 << bit;
                let read = decode(&flipped);
                let hit = byte / line;
                if byte % line == line - 1 {
                    // The line break is not part of a record.
                    assert_eq!(read.records.len(), 4);
                    continue;
                }
                let expected: Vec<Record> =
                    (0..4).filter(|change| *change != hit).map(intent).collect();
                assert_eq!(read.records, expected, "byte {byte} bit {bit}");
                if hit == 3 {
                    assert!(read.torn);
                } else {
                    assert!(read.damaged > 0);
                }
            }
        }
    }

    #[test]
    fn a_rollback_noted_aside_counts_until_the_journal_has_it() {
        let (_folder, path, _bytes) = four();
        let rolling_back = Record::RollingBack {
            why: Why::Asked,
            purge: true,
            at: String::new(),
        };
        note_aside(&path, &rolling_back).unwrap();
        assert_eq!(read(&path).unwrap().records.last(), Some(&rolling_back));
        let (mut journal, there) = Journal::open(&path).unwrap();
        assert_eq!(there.records.len(), 5);
        journal.append(&rolling_back, &NoFaults).unwrap();
        assert_eq!(read(&path).unwrap().records.len(), 5);
        // Anything else in its place is no record.
        std::fs::remove_file(aside(&path)).unwrap();
        symlink("/etc/passwd", aside(&path)).unwrap();
        assert_eq!(read(&path).unwrap().records.len(), 5);
    }

    #[test]
    fn rubbish_is_no_record() {
        check(b"", &[], 0, false);
        check(&[0; 100], &[], 0, false);
        check(b"hello\nworld\n", &[], 0, true);
        check(&[0xff; 4096], &[], 0, true);
        check(b"ffffffff 0000000000000000 {}\n", &[], 0, true);
    }
}
