//! The end of RocksDB's write-ahead log after the power failed.
//!
//! What was written and not synced then may be there in part, in any order: a record at the end whose bytes are half there
//! is no damage, but RocksDB takes it for such and does not open. Passing over whatever is damaged instead would forget
//! votes and entries that were acknowledged. So each batch says up to where the log was synced when it was written
//! ([`marker`]), and before RocksDB opens, [`cut_torn_end`] reads the log: a bad record behind which nothing says that it was
//! synced is the torn end, and is cut off; any other is damage. Only damage of the very last batch, with nothing written
//! after it, cannot be told from a torn end.
//!
//! The format is RocksDB's (`db/log_format.h`): blocks of 32 KiB, in them fragments of a checksum (CRC-32C, masked), a length
//! of 2 bytes, a type and the bytes; a batch begins with its sequence number and the count of its changes.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// The key that each batch puts first.
const MARKER: &[u8; 16] = b"\xff\xffsynced-through";
/// Of a batch: sequence number and count.
const BATCH_HEADER_BYTES: usize = 12;
/// Of a fragment: checksum, length, type.
const HEADER_BYTES: usize = 7;
const BLOCK_BYTES: usize = 32 << 10;
/// Types of fragments.
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
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
    /// What its marker says; batches of earlier releases have none.
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
        (self.sequence + self.count).saturating_sub(1)
    }
}

/// CRC-32C (Castagnoli), as RocksDB masks it.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The fragment at `at`: its type and bytes, when they are what was written.
fn fragment(log: &[u8], at: usize) -> Option<(u8, &[u8])> {
    let header = log.get(at..at + HEADER_BYTES)?;
    let (checksum, rest) = header.split_at(4);
    let (length, kind) = rest.split_at(2);
    let length = usize::from(u16::from_le_bytes(length.try_into().ok()?));
    let start = at + HEADER_BYTES;
    let end = start + length;
    let ends_in_block = end <= (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
    // The type is the byte before the bytes; both are summed.
    let whole = masked_checksum(log.get(start - 1..end)?) == u32::from_le_bytes(checksum.try_into().ok()?);
    (ends_in_block && whole).then_some((*kind.first()?, log.get(start..end)?))
}

/// What reading a log from its beginning finds.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    /// All before this is whole batches.
    good: usize,
    /// The last sequence number of those; `None` without any.
    last: Option<u64>,
}

fn read(log: &[u8]) -> Read {
    let mut found = Read { good: 0, last: None };
    let mut open: Option<Batch> = None;
    let mut at = 0;
    loop {
        let left = BLOCK_BYTES - at % BLOCK_BYTES;
        if left < HEADER_BYTES {
            at += left; // the end of a block, too short for a header
            continue;
        }
        let Some((kind, bytes)) = fragment(log, at) else { return found };
        at += HEADER_BYTES + bytes.len();
        let whole = match kind {
            FULL => Batch::of(bytes),
            FIRST => {
                open = Batch::of(bytes);
                continue;
            }
            MIDDLE => continue,
            LAST => open.take(),
            _ => None, // no batch, but RocksDB's own
        };
        found.good = at;
        found.last = whole.map(|batch| batch.last()).or(found.last);
    }
}

/// The batches that begin somewhere in these bytes, found by their markers, wherever the chain of fragments is broken.
fn batches_in(log: &[u8], from: usize) -> impl Iterator<Item = Batch> + '_ {
    let before = HEADER_BYTES + BATCH_HEADER_BYTES + 2;
    let marks = log.windows(MARKER.len()).enumerate().skip(from).filter(|(_, bytes)| *bytes == MARKER);
    marks.filter_map(move |(mark, _)| {
        let (kind, bytes) = fragment(log, mark.checked_sub(before)?)?;
        if kind == FULL || kind == FIRST { Batch::of(bytes) } else { None }
    })
}

/// Whether something in these logs, read on from the bad place of the first of them, says that the bad place was synced.
fn was_synced(last: Option<u64>, later: impl Iterator<Item = Batch>) -> bool {
    // Without a batch before the bad place: was one synced that lies behind it?
    let mut limit = last;
    later.into_iter().any(|batch| {
        let synced = limit.zip(batch.synced).is_some_and(|(limit, synced)| synced > limit);
        limit = limit.or(batch.sequence.checked_sub(1));
        synced
    })
}

fn logs(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut logs = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|extension| extension == "log")) {
            logs.push((number, path));
        }
    }
    logs.sort();
    Ok(logs.into_iter().map(|(_, path)| path).collect())
}

/// Cuts off what a power failure has left of batches that were not synced. To be called before RocksDB opens `directory`.
///
/// # Errors
/// `InvalidData` when what is bad was synced, and the log is damaged; else when the disk fails.
pub(super) fn cut_torn_end(directory: &Path) -> io::Result<()> {
    let paths = logs(directory)?;
    let logs = paths.iter().map(std::fs::read).collect::<io::Result<Vec<_>>>()?;
    let mut last = None;
    for (index, log) in logs.iter().enumerate() {
        let found = read(log);
        last = found.last.or(last);
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
        let log = logs(directory.path()).unwrap().pop().unwrap();
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
        let found = read(&written.bytes);
        assert_eq!(found.good, written.bytes.len());
        let batches: Vec<Batch> = batches_in(&written.bytes, 0).collect();
        assert_eq!(batches.last().map(|batch| batch.last()), found.last);
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
}
