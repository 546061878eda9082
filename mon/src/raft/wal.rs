//! The end of RocksDB's write-ahead log after the power failed.
//!
//! What was written and not synced then may be there in part, in any order: a record at the end whose bytes are half there
//! is no damage, but RocksDB takes it for such and does not open. Passing over whatever is damaged instead would forget
//! votes and entries that were acknowledged. So each batch says up to where the log was synced when it was written
//! ([`marker`]), and before RocksDB opens, [`cut_torn_end`] reads the log: a bad record behind which nothing says that it was
//! synced is the torn end, and is cut off; any other is damage. Only damage of what
//! the very last sync made durable, with nothing written after that, cannot be told from a torn end.
//!
//! The numbers of changes have no gap: a batch that does not follow on what the tables hold (as the manifest says, whose own torn
//! end is cut off first) and on the batches before it is a bad place, too. Logs that the manifest does not need any more may
//! end in any way.
//!
//! The format of the log is read by `holdfast-kvlog`; a batch begins with its sequence number and the count of its changes.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use holdfast_kvlog::manifest::{self, ManifestError};
use holdfast_kvlog::{HEADER_BYTES, Kind, Records, fragment};

/// The key that each batch puts first.
const MARKER: &[u8; 16] = b"\xff\xffsynced-through";
/// Of a batch: sequence number and count.
const BATCH_HEADER_BYTES: usize = 12;
/// Of a batch: all up to the end of its marker.
const BATCH_HEAD_BYTES: usize = BATCH_HEADER_BYTES + 3 + MARKER.len() + 8;
/// `kTypeValue`: the change sets a key.
const PUT: u8 = 1;

/// Key and value that say up to which sequence number everything is durable.
pub(super) fn marker(synced: u64) -> (&'static [u8], [u8; 8]) {
    (MARKER, synced.to_be_bytes())
}

/// The beginning of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Batch {
    sequence: u64,
    count: u64,
    /// What its marker says; batches of earlier builds have none.
    synced: Option<u64>,
}

impl Batch {
    fn of(bytes: &[u8]) -> Option<Batch> {
        let sequence = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        let count = u32::from_le_bytes(bytes.get(8..BATCH_HEADER_BYTES)?.try_into().ok()?);
        Some(Batch { sequence, count: u64::from(count), synced: Batch::marked(bytes) })
    }

    fn marked(bytes: &[u8]) -> Option<u64> {
        let (kind, rest) = bytes.get(BATCH_HEADER_BYTES..)?.split_first()?;
        let (key_bytes, rest) = rest.split_first()?;
        let rest = rest.strip_prefix(MARKER)?;
        let (value_bytes, rest) = rest.split_first()?;
        let fits = *kind == PUT && usize::from(*key_bytes) == MARKER.len() && *value_bytes == 8;
        fits.then_some(u64::from_be_bytes(rest.get(..8)?.try_into().ok()?))
    }

    fn last(&self) -> u64 {
        self.sequence.saturating_add(self.count).saturating_sub(1)
    }
}

/// What reading a log from its beginning finds.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    /// All before this is whole batches.
    good: usize,
    /// The last sequence number of those and of what was before; 0 without any.
    last: u64,
}

/// Reads batches up to the first bad place. `before`: the last sequence number before this log.
fn read(log: &[u8], before: u64) -> Read {
    let mut found = Read { good: 0, last: before };
    let mut records = Records::of(log);
    while let Some(record) = records.next() {
        let batch = Batch::of(&record.first_bytes(BATCH_HEAD_BYTES));
        if batch.is_some_and(|batch| batch.sequence > found.last.saturating_add(1)) {
            return found;
        }
        found.good = records.good();
        found.last = found.last.max(batch.map_or(0, |batch| batch.last()));
    }
    found.good = records.good(); // notes of RocksDB's own at the end
    found
}

/// The batches that begin somewhere in these bytes, found by their markers, wherever the chain of fragments is broken.
fn batches_in(log: &[u8], from: usize) -> impl Iterator<Item = Batch> + '_ {
    let before = HEADER_BYTES + BATCH_HEADER_BYTES + 2;
    let marks = log.windows(MARKER.len()).enumerate().skip(from).filter(|(_, bytes)| *bytes == MARKER);
    marks.filter_map(move |(mark, _)| {
        let found = fragment(log, mark.checked_sub(before)?)?;
        if found.kind == Kind::Full || found.kind == Kind::First { Batch::of(found.bytes) } else { None }
    })
}

/// Whether one of these batches, which lie behind a bad place, says that it was synced: `last` is the last sequence number
/// before the bad place, in the log or in the tables.
fn was_synced(last: u64, mut later: impl Iterator<Item = Batch>) -> bool {
    later.any(|batch| batch.synced.is_some_and(|synced| synced > last))
}

/// The logs of `directory` from number `first` on, in their order.
fn logs(directory: &Path, first: u64) -> io::Result<Vec<PathBuf>> {
    let mut logs = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        if let Some(number) =
            number.filter(|number| *number >= first && path.extension().is_some_and(|extension| extension == "log"))
        {
            logs.push((number, path));
        }
    }
    logs.sort();
    Ok(logs.into_iter().map(|(_, path)| path).collect())
}

/// The manifest as a power failure left it, its torn end cut off.
fn manifest_of(directory: &Path) -> io::Result<Option<manifest::Manifest>> {
    manifest::cut_torn_end(directory).map_err(|error| match error {
        ManifestError::Io { act, path, source } => {
            io::Error::new(source.kind(), format!("cannot {act} {path}: {source}"))
        }
        damaged => io::Error::new(io::ErrorKind::InvalidData, damaged),
    })
}

/// A directory without `CURRENT` has never been a database: that file is there before the first log or table is. RocksDB would
/// take what else is there for needless, and begin anew.
fn check_unused(directory: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log" || extension == "sst") {
            let detail = format!(
                "{} is there, but CURRENT is not: the database is damaged. Bring its files back, or empty the directory: then \
                 this monitor learns all from the others",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
    }
    Ok(())
}

/// Cuts off what a power failure has left of what was not synced. To be called before RocksDB opens `directory`.
///
/// # Errors
/// `InvalidData` when what is bad was synced, and log or manifest is damaged; else when the disk fails.
pub(super) fn cut_torn_end(directory: &Path) -> io::Result<()> {
    let Some(manifest) = manifest_of(directory)? else { return check_unused(directory) };
    let paths = logs(directory, manifest.first_log)?;
    let logs = paths.iter().map(std::fs::read).collect::<io::Result<Vec<_>>>()?;
    let mut last = manifest.last_sequence;
    for (index, log) in logs.iter().enumerate() {
        let found = read(log, last);
        last = found.last;
        let rest = log.get(found.good..).unwrap_or_default();
        // RocksDB ends a log with nothing, or with room that was set aside.
        if rest.iter().all(|byte| *byte == 0) {
            continue;
        }
        let beyond = logs.iter().skip(index + 1).flat_map(|log| batches_in(log, 0));
        if was_synced(last, batches_in(log, found.good).chain(beyond)) {
            let path = paths.get(index).map(|path| path.display().to_string()).unwrap_or_default();
            let detail = format!("{path} is damaged at byte {}: what is behind was synced later", found.good);
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
        for (number, path) in paths.iter().enumerate().skip(index) {
            let keep = if number == index { found.good as u64 } else { 0 };
            tracing::warn!(log = %path.display(), bytes = keep, "torn end of the log cut off");
            let file = OpenOptions::new().write(true).open(path)?;
            file.set_len(keep)?;
            file.sync_all()?;
        }
        return File::open(directory)?.sync_all();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use std::collections::BTreeMap;

    use rand::rngs::SmallRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::super::kv::{Kv as _, Rocks, Write};
    use super::*;

    const DURABLE: usize = 120;
    const LATER: usize = 30;
    const SECTOR: usize = 512;

    fn key(number: usize) -> Vec<u8> {
        format!("l/{number:04}").into_bytes()
    }

    fn value(number: usize) -> Vec<u8> {
        vec![u8::try_from(number).unwrap(); 1000 + number * 7]
    }

    /// A store with durable batches and, behind them, some that are not: its directory as it is when the power fails, and
    /// how much of its log was synced.
    struct Written {
        directory: tempfile::TempDir,
        log: PathBuf,
        bytes: Vec<u8>,
        synced: usize,
    }

    fn written() -> Written {
        let directory = tempfile::tempdir().unwrap();
        let rocks = Rocks::open(directory.path()).unwrap();
        let write = |number| rocks.write(vec![Write::Put(key(number), value(number))], false).unwrap();
        for number in 0..DURABLE {
            write(number);
            rocks.sync().unwrap();
        }
        let log = logs(directory.path(), 0).unwrap().pop().unwrap();
        let synced = std::fs::read(&log).unwrap().len();
        (DURABLE..DURABLE + LATER).for_each(write);
        let bytes = std::fs::read(&log).unwrap();
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        let log = copy.path().join(log.file_name().unwrap());
        Written { directory: copy, log, bytes, synced }
    }

    /// What opens from this log: the batches that are there.
    fn open(written: &Written, log: &[u8]) -> io::Result<Vec<usize>> {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(written.directory.path()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        std::fs::write(copy.path().join(written.log.file_name().unwrap()), log).unwrap();
        let rocks = Rocks::open(copy.path())?;
        Ok((0..DURABLE + LATER).filter(|number| rocks.get(&key(*number)).unwrap() == Some(value(*number))).collect())
    }

    #[test]
    fn the_log_is_read_as_rocksdb_writes_it() {
        let written = written();
        let found = read(&written.bytes, 0);
        assert_eq!(found.good, written.bytes.len());
        let batches: Vec<Batch> = batches_in(&written.bytes, 0).collect();
        assert_eq!(batches.last().map(Batch::last), Some(found.last));
        assert!(batches.len() >= DURABLE + LATER - 5, "a marker may lie across two blocks: {}", batches.len());
    }

    #[test]
    fn whatever_the_power_leaves_of_what_was_not_synced_the_store_opens_with_all_that_was() {
        let written = written();
        for seed in 0..60 {
            let mut random = SmallRng::seed_from_u64(seed);
            let survives = [0.1, 0.5, 0.9, 0.98][random.random_range(0..4)];
            let mut log = written.bytes.clone();
            for (number, sector) in log.chunks_mut(SECTOR).enumerate() {
                let from = written.synced.saturating_sub(number * SECTOR).min(sector.len());
                if !random.random_bool(survives) {
                    sector[from..].fill(0);
                }
            }
            if random.random_bool(0.3) {
                log.truncate(random.random_range(written.synced..log.len()));
            }
            let there = open(&written, &log).unwrap();
            let prefix: Vec<usize> = (0..there.len()).collect();
            assert_eq!(there, prefix, "seed {seed}: a prefix");
            assert!(there.len() >= DURABLE, "seed {seed}: {} of {DURABLE}", there.len());
        }
    }

    #[test]
    fn damage_to_what_was_synced_is_refused_whatever_lies_behind() {
        let written = written();
        for seed in 0..60 {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut log = written.bytes.clone();
            log[random.random_range(0..written.synced)] ^= 1 << random.random_range(0..8);
            if random.random_bool(0.5) {
                log.truncate(random.random_range(written.synced + 10 * SECTOR..log.len()));
            }
            match open(&written, &log) {
                Err(_) => {}
                // Some bytes at the end of a block are not used.
                Ok(there) => assert!(there.len() >= DURABLE, "seed {seed}: only {} batches", there.len()),
            }
        }
    }

    /// The files of a database, and those of one of its kinds.
    type Files = BTreeMap<String, Vec<u8>>;

    fn files(directory: &Path) -> Files {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let named = entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
        named.map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
    }

    fn name_of(files: &Files, part: &str) -> String {
        let last = files.keys().rfind(|name| name.contains(part) && !name.starts_with("OPTIONS"));
        last.unwrap().clone()
    }

    fn in_directory(files: &Files) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(directory.path().join(name), bytes).unwrap();
        }
        directory
    }

    /// Which of `count` batches are there when a database of these files is opened.
    fn opened(files: &Files, count: usize) -> io::Result<Vec<usize>> {
        let directory = in_directory(files);
        let rocks = Rocks::open(directory.path())?;
        Ok((0..count).filter(|number| rocks.get(&key(*number)).unwrap() == Some(value(*number))).collect())
    }

    /// A database before it writes a table out, and after, with the old log still there; `later` more batches then.
    fn written_out(later: usize) -> (Files, Files) {
        let directory = tempfile::tempdir().unwrap();
        let rocks = Rocks::open(directory.path()).unwrap();
        let write = |number| rocks.write(vec![Write::Put(key(number), value(number))], true).unwrap();
        (0..DURABLE).for_each(write);
        let before = files(directory.path());
        rocks.write_out();
        (DURABLE..DURABLE + later).for_each(write);
        (before, files(directory.path()))
    }

    #[test]
    fn whatever_the_power_leaves_of_the_manifests_last_edit_the_store_opens_with_all_that_was_synced() {
        let (before, after) = written_out(0);
        let manifest = name_of(&before, "MANIFEST");
        let (synced, written) = (before[&manifest].len(), &after[&manifest]);
        assert!(written.len() > synced);
        let mut refused_by_rocksdb = 0;
        for seed in 0..60 {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut torn = written.clone();
            // Smaller than sectors, since the edit is.
            for at in (synced..torn.len()).step_by(16) {
                if random.random_bool(0.5) {
                    let end = torn.len().min(at + 16);
                    torn[at..end].fill(0);
                }
            }
            if random.random_bool(0.3) {
                torn.resize(torn.len() + random.random_range(0..9000), 0);
            }
            let mut files = before.clone();
            files.insert(manifest.clone(), torn);
            let table = name_of(&after, ".sst");
            files.insert(table.clone(), after[&table].clone());
            let plain = in_directory(&files);
            refused_by_rocksdb += usize::from(rocksdb::DB::open(&Rocks::options(), plain.path()).is_err());
            let there = opened(&files, DURABLE).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(there.len(), DURABLE, "seed {seed}");
        }
        assert!(refused_by_rocksdb > 10, "RocksDB alone opens all but {refused_by_rocksdb}");
    }

    #[test]
    fn a_damaged_manifest_is_refused_or_loses_nothing() {
        for later in [0, 5] {
            let (_, after) = written_out(later);
            let manifest = name_of(&after, "MANIFEST");
            for at in (0..after[&manifest].len()).step_by(3) {
                let mut files = after.clone();
                files.get_mut(&manifest).unwrap()[at] ^= 1 << (at % 8);
                if let Ok(there) = opened(&files, DURABLE + later) {
                    // The last edit is lost, and the log that it made needless is gone: nobody can tell when nothing was
                    // written since.
                    let nobody_can_tell = later == 0;
                    assert!(there.len() == DURABLE + later || nobody_can_tell, "byte {at}: {} batches", there.len());
                }
            }
        }
    }

    #[test]
    fn a_damaged_manifest_of_a_store_that_was_opened_again_is_refused_or_loses_nothing() {
        let (_, after) = written_out(5);
        let directory = in_directory(&after);
        drop(Rocks::open(directory.path()).unwrap());
        let reopened = files(directory.path());
        let manifest = name_of(&reopened, "MANIFEST");
        for at in (0..reopened[&manifest].len()).step_by(3) {
            let mut files = reopened.clone();
            files.get_mut(&manifest).unwrap()[at] ^= 1 << (at % 8);
            if let Ok(there) = opened(&files, DURABLE + 5) {
                assert_eq!(there.len(), DURABLE + 5, "byte {at}");
            }
        }
    }

    #[test]
    fn a_log_that_is_not_needed_any_more_may_have_lost_its_end() {
        let (before, mut after) = written_out(3);
        let old = name_of(&before, ".log");
        assert!(!after.contains_key(&old), "it was removed");
        let mut log = before[&old].clone();
        let end = log.len();
        log[end - 3000..end - 1000].fill(0);
        after.insert(old, log);
        assert_eq!(opened(&after, DURABLE + 3).unwrap().len(), DURABLE + 3);
    }

    /// A log begins anew at each start. What is in it: a batch that says that all before was synced, one that was synced, one
    /// that was not, and one that was.
    #[test]
    fn damage_to_the_first_batches_of_a_log_is_refused() {
        let (_, after) = written_out(3);
        let directory = in_directory(&after);
        let rocks = Rocks::open(directory.path()).unwrap();
        let count = DURABLE + 6;
        for (number, durable) in (DURABLE + 3..count).zip([true, false, true]) {
            rocks.write(vec![Write::Put(key(number), value(number))], durable).unwrap();
        }
        let begun = files(directory.path());
        let log = name_of(&begun, ".log");
        let mut ends = Vec::new();
        let mut records = Records::of(&begun[&log]);
        while records.next().is_some() {
            ends.push(records.good());
        }
        assert_eq!(ends.len(), 4);
        for at in (0..ends[1]).step_by(7) {
            let mut files = begun.clone();
            files.get_mut(&log).unwrap()[at] ^= 1 << (at % 8);
            match opened(&files, count) {
                Err(_) => {}
                Ok(there) => assert_eq!(there.len(), count, "byte {at}"),
            }
        }
    }

    #[test]
    fn a_database_that_has_lost_its_current_file_is_no_new_one() {
        let (_, mut files) = written_out(3);
        files.remove("CURRENT");
        assert_eq!(opened(&files, DURABLE + 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
        files.retain(|name, _| !name.ends_with(".log"));
        assert_eq!(opened(&files, DURABLE + 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_log_that_is_missing_between_two_is_noticed() {
        let (_, after) = written_out(3);
        let manifest = name_of(&after, "MANIFEST");
        let mut files = after.clone();
        // As if the edit of the table, and the note behind it, had never been written.
        let whole = &after[&manifest];
        let ends = {
            let mut records = Records::of(whole);
            let mut ends = Vec::new();
            while records.next().is_some() {
                ends.push(records.good());
            }
            ends
        };
        files.insert(manifest, whole[..ends[ends.len() - 3]].to_vec());
        let error = opened(&files, DURABLE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
