//! The manifest: RocksDB's log of which files it consists of, one *edit* a record.
//!
//! An edit counts once it is synced, and only then does RocksDB write the next one, and remove files that it makes needless.
//! A new manifest is synced before `CURRENT` names it. So when the power fails, the last edit of the manifest that `CURRENT`
//! names may be there in part, and nothing after it. RocksDB opens when that edit is merely too short, but refuses one of
//! which some sectors are there and others not, and passes in silence over the rest of a block that begins with zeros.
//!
//! [`cut_torn_end`] cuts such an edit off; a bad place with the beginning of a later edit behind it is damage. No later edit is
//! the note that follows each flush under the same sync, and says which logs are needless now. Damage of the very
//! last edit looks the same as a torn end. It must be noticed by what it takes away: RocksDB misses files that a lost
//! compaction had made needless; of a lost flush the user of the database must know up to where its rows were durable.
//!
//! A flush and a compaction may in theory share a sync, when a third edit was just being written. With one thread that flushes
//! and one that compacts, each of which waits for its own, they do not.
//!
//! The other files need nothing. `CURRENT`, `IDENTITY` and `OPTIONS-*` are synced before they are renamed into place, and only
//! the first is needed; a table (`.sst`) is synced before an edit names it, and one that no edit names is removed.
//!
//! Edits are read for two numbers. The encoding is RocksDB's (`db/version_edit.cc`): varint tags, each with its value; what
//! is read here comes before all that is not.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::records::{HEADER_BYTES, Kind, Records, fragment};

/// The manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Reading it or cutting it failed.
    #[error("cannot {act} {path}")]
    Io {
        /// `read` or `cut`.
        act: &'static str,
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `CURRENT` is not what RocksDB wrote.
    #[error("{path} names no manifest")]
    NoManifest {
        /// The file.
        path: String,
    },
    /// What is bad is no torn end.
    #[error("{path} is damaged at byte {at}: {why}")]
    Damaged {
        /// The file.
        path: String,
        /// Up to here it is whole.
        at: usize,
        /// Why it is no torn end.
        why: &'static str,
    },
}

/// What the whole edits of a manifest say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Manifest {
    /// Write-ahead logs of smaller numbers are not needed.
    pub first_log: u64,
    /// The newest change that the tables hold.
    pub last_sequence: u64,
    /// Whether a torn end was cut off.
    pub was_cut: bool,
}

mod tag {
    pub(super) const COMPARATOR: u64 = 1;
    pub(super) const LOG_NUMBER: u64 = 2;
    pub(super) const NEXT_FILE: u64 = 3;
    pub(super) const LAST_SEQUENCE: u64 = 4;
    pub(super) const PREVIOUS_LOG: u64 = 9;
    pub(super) const LOG_TO_KEEP: u64 = 10;
    pub(super) const MAX_COLUMN_FAMILY: u64 = 203;
    pub(super) const DB_ID: u64 = (1 << 13) + 1;
}

/// Of an edit: more than all that is read of it.
const EDIT_HEAD_BYTES: usize = 1 << 10;

fn varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.next()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl Manifest {
    fn take(&mut self, edit: Vec<u8>) {
        let mut bytes = edit.into_iter();
        while let Some(tag) = varint(&mut bytes) {
            let passed = match tag {
                tag::COMPARATOR | tag::DB_ID => {
                    let Some(length) = varint(&mut bytes).and_then(|length| usize::try_from(length).ok()) else {
                        return;
                    };
                    length.checked_sub(1).is_none_or(|last| bytes.nth(last).is_some())
                }
                tag::NEXT_FILE | tag::PREVIOUS_LOG | tag::LOG_TO_KEEP | tag::MAX_COLUMN_FAMILY => {
                    varint(&mut bytes).is_some()
                }
                tag::LOG_NUMBER => {
                    let number = varint(&mut bytes);
                    self.first_log = self.first_log.max(number.unwrap_or(0));
                    number.is_some()
                }
                tag::LAST_SEQUENCE => {
                    let number = varint(&mut bytes);
                    self.last_sequence = self.last_sequence.max(number.unwrap_or(0));
                    number.is_some()
                }
                _ => false,
            };
            if !passed {
                return;
            }
        }
    }
}

/// The path of the manifest in use; `None` without a database.
fn current(directory: &Path) -> Result<Option<PathBuf>, ManifestError> {
    let path = directory.join("CURRENT");
    let shown = path.display().to_string();
    let name = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ManifestError::Io { act: "read", path: shown, source }),
        Ok(name) => String::from_utf8(name).ok(),
    };
    let name = name.as_deref().and_then(|name| name.strip_suffix('\n')).filter(|name| {
        let number = name.strip_prefix("MANIFEST-");
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let manifest = name.map(|name| directory.join(name)).filter(|manifest| manifest.exists());
    manifest.map(Some).ok_or(ManifestError::NoManifest { path: shown })
}

/// Whether an edit only says which logs are needless, as the one does that a flush writes behind its own.
fn is_note_of_flush(edit: &[u8]) -> bool {
    let mut bytes = edit.iter().copied().peekable();
    let mut frees_logs = false;
    while bytes.peek().is_some() {
        let Some(tag) = varint(&mut bytes) else { return false };
        let is_number = matches!(tag, tag::NEXT_FILE | tag::PREVIOUS_LOG | tag::LOG_TO_KEEP | tag::LAST_SEQUENCE);
        if !is_number || varint(&mut bytes).is_none() {
            return false;
        }
        frees_logs |= tag == tag::LOG_TO_KEEP;
    }
    frees_logs
}

/// Whether an edit of a later sync begins somewhere after byte `good`.
fn later_edit_begins_after(log: &[u8], good: usize) -> bool {
    let begins = |kind| kind == Kind::Full || kind == Kind::First;
    // The type first, since few bytes look like one, and summing up is slow.
    let types = log.iter().enumerate().skip(good + HEADER_BYTES).filter(|(_, byte)| begins(Kind::of(**byte)));
    let found = types.filter_map(|(at, _)| fragment(log, at.checked_sub(HEADER_BYTES - 1)?));
    let mut edits = found.filter(|fragment| begins(fragment.kind));
    edits.any(|edit| edit.kind == Kind::First || !is_note_of_flush(edit.bytes))
}

/// Cuts off what a power failure has left of an edit that was not synced, and says what the edits before it tell. To be called
/// before RocksDB opens `directory`; `None` when there is no database yet.
///
/// # Errors
/// [`ManifestError`]; nothing was changed then.
pub fn cut_torn_end(directory: &Path) -> Result<Option<Manifest>, ManifestError> {
    let Some(path) = current(directory)? else { return Ok(None) };
    let shown = || path.display().to_string();
    let failed = |act| move |source: io::Error, path: String| ManifestError::Io { act, path, source };
    let log = std::fs::read(&path).map_err(|error| failed("read")(error, shown()))?;
    let mut manifest = Manifest::default();
    let mut records = Records::of(&log);
    for edit in records.by_ref() {
        manifest.take(edit.first_bytes(EDIT_HEAD_BYTES));
    }
    let good = records.good();
    // RocksDB takes zeros for room that was set aside.
    if log.iter().skip(good).all(|byte| *byte == 0) && good > 0 {
        return Ok(Some(manifest));
    }
    let damaged = |why| ManifestError::Damaged { path: shown(), at: good, why };
    if good == 0 {
        return Err(damaged("its beginning was synced before anything named it"));
    }
    if later_edit_begins_after(&log, good) {
        return Err(damaged("what is behind was written after this was synced"));
    }
    tracing::warn!(manifest = %path.display(), keep = good, bytes = log.len() - good, "torn end of the manifest cut off");
    let cut = || {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(good as u64)?;
        file.sync_all()?;
        File::open(directory)?.sync_all()
    };
    cut().map_err(|error| failed("cut")(error, shown()))?;
    Ok(Some(Manifest { was_cut: true, ..manifest }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use crate::records::tests::{append, record};

    fn database(manifest: &[u8]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("CURRENT"), "MANIFEST-000007\n").unwrap();
        std::fs::write(directory.path().join("MANIFEST-000007"), manifest).unwrap();
        directory
    }

    fn bytes_after(directory: &tempfile::TempDir) -> Vec<u8> {
        std::fs::read(directory.path().join("MANIFEST-000007")).unwrap()
    }

    /// A manifest of records of these lengths, and the end of each.
    fn manifest(lengths: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let mut log = Vec::new();
        let ends = lengths.iter().enumerate().map(|(number, bytes)| {
            append(&mut log, &record(number, *bytes));
            log.len()
        });
        let ends = ends.collect();
        (log, ends)
    }

    #[test]
    fn whatever_sectors_are_left_of_the_last_edit_it_is_cut_off_and_no_other() {
        for last in [30, 700, 1500, 40_000] {
            let (log, ends) = manifest(&[200, 33_000, 300, last]);
            let synced = ends[2];
            let sectors = (log.len() - 1) / 512 - synced / 512 + 1;
            for kept in 0..1_u64 << sectors.min(7) {
                let mut torn = log.clone();
                for number in (0..sectors).filter(|number| kept & (1 << (number % 7)) == 0) {
                    let from = ((synced / 512 + number) * 512).max(synced);
                    let to = ((synced / 512 + number + 1) * 512).min(log.len());
                    torn[from..to].fill(0);
                }
                let is_whole = torn == log;
                let directory = database(&torn);
                let found = cut_torn_end(directory.path()).unwrap().unwrap();
                let after = bytes_after(&directory);
                if is_whole {
                    assert_eq!((after, found.was_cut), (log.clone(), false));
                } else if found.was_cut {
                    assert_eq!(after, log[..synced], "{last} bytes, sectors {kept:b}");
                } else {
                    assert!(after[synced..].iter().all(|byte| *byte == 0), "{last} bytes, sectors {kept:b}");
                }
            }
        }
    }

    #[test]
    fn a_bad_edit_with_a_valid_one_behind_it_is_damage() {
        let (log, ends) = manifest(&[200, 300, 33_000, 300]);
        for at in (0..ends[2]).step_by(137) {
            let mut bad = log.clone();
            bad[at] ^= 4;
            let directory = database(&bad);
            match cut_torn_end(directory.path()) {
                Err(ManifestError::Damaged { at: good, .. }) => assert!(good <= at),
                other => panic!("byte {at}: {other:?}"),
            }
            assert_eq!(bytes_after(&directory), bad, "nothing is changed");
        }
    }

    #[test]
    fn a_manifest_without_a_whole_edit_is_damage_and_no_database_is_none() {
        for log in [vec![], vec![0; 600], vec![7; 600]] {
            let directory = database(&log);
            assert!(matches!(cut_torn_end(directory.path()), Err(ManifestError::Damaged { at: 0, .. })));
        }
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(cut_torn_end(directory.path()).unwrap(), None);
        assert_eq!(cut_torn_end(&directory.path().join("nothing")).unwrap(), None);
    }

    #[test]
    fn a_current_that_names_nothing_is_damage() {
        let (log, _) = manifest(&[200]);
        for name in
            ["", "MANIFEST-000007", "MANIFEST-\n", "MANIFEST-00000w\n", "../MANIFEST-000007\n", "MANIFEST-000009\n"]
        {
            let directory = database(&log);
            std::fs::write(directory.path().join("CURRENT"), name).unwrap();
            assert!(matches!(cut_torn_end(directory.path()), Err(ManifestError::NoManifest { .. })), "{name:?}");
        }
    }

    #[test]
    fn edits_tell_their_log_and_sequence() {
        let mut found = Manifest::default();
        found.take(
            [&[0x81, 0x40, 3][..], b"abc", &[1, 1, b'c', 2, 9, 9, 0, 3, 0x80, 1, 10, 5, 4, 0xac, 2, 6, 1, 1]].concat(),
        );
        assert_eq!(found, Manifest { first_log: 9, last_sequence: 300, was_cut: false });
        found.take(vec![2, 7, 4, 0xff]);
        assert_eq!(found, Manifest { first_log: 9, last_sequence: 300, was_cut: false });
    }

    #[test]
    fn the_note_behind_a_torn_flush_is_cut_off_with_it_and_proves_nothing() {
        let note = [9, 0, 3, 20, 4, 0x80, 2, 10, 12];
        let (synced, _) = manifest(&[200, 300]);
        for (behind, is_torn) in
            [(vec![&note[..]], true), (vec![&note, &[2, 9, 4, 1, 10, 3]], false), (vec![&[]], false)]
        {
            let mut log = synced.clone();
            append(&mut log, &record(5, 700));
            log[synced.len() + 300] ^= 1;
            for edit in behind {
                append(&mut log, edit);
            }
            let directory = database(&log);
            let found = cut_torn_end(directory.path());
            if is_torn {
                assert!(found.unwrap().unwrap().was_cut);
                assert_eq!(bytes_after(&directory), synced);
            } else {
                assert!(matches!(found, Err(ManifestError::Damaged { .. })), "{found:?}");
            }
        }
    }
}
