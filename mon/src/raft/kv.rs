//! The ordered key-value store beneath the log: what the log asks of it, and RocksDB as the one that serves.
//!
//! The promise that `log` builds on: a batch is all or nothing, batches survive a power cut in the order in which they were
//! written (a prefix of them), and [`Kv::sync`] or a durable write makes that one and every earlier one survive.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rocksdb::{DB, DBRecoveryMode, Direction, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions};

/// Size of RocksDB's write buffer: the whole monitor state is a few MiB.
const WRITE_BUFFER_BYTES: usize = 8 << 20;

/// One change of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(Vec<u8>, Vec<u8>),
    /// Removes a key.
    Delete(Vec<u8>),
    /// Removes the keys from the first (included) to the second (not included).
    DeleteRange(Vec<u8>, Vec<u8>),
}

/// An ordered key-value store. Calls may wait for the disk.
pub trait Kv: Send + Sync + Sized + 'static {
    /// Opens or creates the store in `directory`.
    ///
    /// # Errors
    /// When another process has it, or it is damaged.
    fn open(directory: &Path) -> io::Result<Self>;

    /// The value of `key`.
    ///
    /// # Errors
    /// When the disk fails.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Hands `each` the values of the keys from `from` (included) to `until` (not included), in order.
    ///
    /// # Errors
    /// When the disk fails, and what `each` says, which ends it.
    fn scan(&self, from: &[u8], until: &[u8], each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>;

    /// The value of the last key from `from` (included) to `until` (not included).
    ///
    /// # Errors
    /// When the disk fails.
    fn last(&self, from: &[u8], until: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Makes all changes or none; `durable`: before it returns.
    ///
    /// # Errors
    /// When the disk fails; then the changes may be there or not.
    fn write(&self, batch: Vec<Write>, durable: bool) -> io::Result<()>;

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// When the disk fails; then nothing may be said to be durable any more.
    fn sync(&self) -> io::Result<()>;
}

/// RocksDB. Each batch says what was durable before it, see the module `wal`.
pub struct Rocks {
    db: DB,
    /// All up to this sequence number is durable.
    synced: AtomicU64,
}

fn failed(error: rocksdb::Error) -> io::Error {
    io::Error::other(error)
}

impl Rocks {
    pub(super) fn options() -> Options {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_total_wal_size(4 * WRITE_BUFFER_BYTES as u64);
        options.set_max_open_files(64);
        options.set_keep_log_file_num(2);
        // Damage before the tail is damage: refuse to start rather than forget votes or entries.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options
    }

    pub(super) fn open_with(options: &Options, directory: &Path) -> io::Result<Rocks> {
        super::wal::cut_torn_end(directory)?;
        let db = DB::open(options, directory).map_err(failed)?;
        // Opening has written out, durably, what the log had, and the log is gone. The new one says so from its first batch on:
        // should the manifest lose what stands for the old one, that is damage and no torn end.
        let rocks = Rocks { synced: AtomicU64::new(db.latest_sequence_number()), db };
        if rocks.synced.load(Ordering::Acquire) > 0 {
            rocks.write(Vec::new(), true)?;
        }
        Ok(rocks)
    }

    /// Writes what is in memory out into a table, as RocksDB does by itself when there is enough.
    #[cfg(test)]
    pub(super) fn write_out(&self) {
        self.db.flush().expect("a table can be written");
    }
}

impl Kv for Rocks {
    fn open(directory: &Path) -> io::Result<Rocks> {
        Rocks::open_with(&Rocks::options(), directory)
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.db.get(key).map_err(failed)
    }

    fn scan(&self, from: &[u8], until: &[u8], mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(until);
        for item in self.db.iterator_opt(IteratorMode::From(from, Direction::Forward), read) {
            let (_, value) = item.map_err(failed)?;
            each(&value)?;
        }
        Ok(())
    }

    fn last(&self, from: &[u8], until: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut read = ReadOptions::default();
        read.set_iterate_lower_bound(from);
        read.set_iterate_upper_bound(until);
        let mut newest_first = self.db.iterator_opt(IteratorMode::End, read);
        let newest = newest_first.next().transpose().map_err(failed)?;
        Ok(newest.map(|(_, value)| value.into_vec()))
    }

    fn write(&self, batch: Vec<Write>, durable: bool) -> io::Result<()> {
        let mut changes = WriteBatch::default();
        let (key, value) = super::wal::marker(self.synced.load(Ordering::Acquire));
        changes.put(key, value);
        for change in batch {
            match change {
                Write::Put(key, value) => changes.put(key, value),
                Write::Delete(key) => changes.delete(key),
                Write::DeleteRange(from, until) => changes.delete_range(from, until),
            }
        }
        self.db.write_opt(changes, &WriteOptions::default()).map_err(failed)?;
        if durable { self.sync() } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let written = self.db.latest_sequence_number();
        self.db.flush_wal(true).map_err(failed)?;
        self.synced.fetch_max(written, Ordering::AcqRel);
        Ok(())
    }
}
