//! The index on RocksDB: one column family, its write-ahead log off.
//!
//! RocksDB writes its memtables out in order, so what it holds after a crash is a prefix of the batches. It is never synced
//! on the write path. Each flush writes down up to where the index is durable now, see [`super::persisted`]; before RocksDB
//! opens, the end of its manifest that a power failure tore is cut off ([`holdfast_kvlog::manifest`]). Keys are short and values small; LZ4 from level 2 on, a bloom filter for the gets of absent objects.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, FlushOptions, Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::{Batch, Change, Index, IndexError, Visit, keys, persisted};
use crate::key::Position;

/// Bits per key of the bloom filter: about 1 % false positives.
const BLOOM_BITS: f64 = 10.0;
/// Part of a memtable's memory that is its bloom filter.
const MEMTABLE_BLOOM_RATIO: f64 = 0.05;
/// Memtables that may exist at once: one filling, two being written out.
const MEMTABLES_MAX: i32 = 3;
/// Bounds of one memtable. Below 2 MiB the files get too many, above 64 MiB a replay takes seconds.
const MEMTABLE_BYTES: std::ops::RangeInclusive<usize> = (2 << 20)..=(64 << 20);

/// Of the row that says up to where the index is complete: the position.
#[derive(minicbor::Decode)]
#[cbor(map)]
struct Complete {
    #[n(1)]
    position: Position,
}

/// See the module.
pub struct RocksIndex {
    db: DB,
    path: PathBuf,
    write_options: WriteOptions,
    applied: AtomicU64,
    persisted: AtomicU64,
}

impl std::fmt::Debug for RocksIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RocksIndex({})", self.db.path().display())
    }
}

impl RocksIndex {
    /// Opens the index in the directory `path`, making it when it does not exist. It uses about `memory_bytes`: half of it
    /// for the cache of blocks, half for memtables.
    ///
    /// # Errors
    /// [`IndexError`] as RocksDB says, and when the index has lost what was durable.
    pub fn open(path: &Path, memory_bytes: u64) -> Result<RocksIndex, IndexError> {
        let memory_bytes = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
        let memtable_bytes =
            (memory_bytes / 2 / MEMTABLES_MAX as usize).clamp(*MEMTABLE_BYTES.start(), *MEMTABLE_BYTES.end());
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(memory_bytes / 2));
        table.set_block_size(8 << 10);
        table.set_bloom_filter(BLOOM_BITS, false);
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        table.set_format_version(5);

        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(memtable_bytes);
        options.set_max_write_buffer_number(MEMTABLES_MAX);
        options.set_compression_per_level(&[
            DBCompressionType::None,
            DBCompressionType::None,
            DBCompressionType::Lz4,
            DBCompressionType::Lz4,
            DBCompressionType::Lz4,
            DBCompressionType::Lz4,
            DBCompressionType::Lz4,
        ]);
        // One thread writes, and most look-ups of a write are of objects that do not exist yet.
        options.set_allow_concurrent_memtable_write(false);
        options.set_enable_write_thread_adaptive_yield(false);
        options.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_RATIO);
        options.set_memtable_whole_key_filtering(true);
        options.set_target_file_size_base(32 << 20);
        options.set_max_background_jobs(2);
        options.set_max_open_files(512); // one store is one of many daemons on a host
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(4 << 20);
        options.set_stats_dump_period_sec(0); // idle is idle
        options.set_stats_persist_period_sec(0);
        options.set_paranoid_checks(true);
        holdfast_kvlog::manifest::cut_torn_end(path)?;
        let durable = persisted::read(path).map_err(|source| failed(path, source))?;
        let db = DB::open(&options, path)?;
        if durable > Position(0) {
            let row = db.get(keys::log())?;
            // What the row is when it cannot be read is for those to say who need it.
            let found = row.map_or(Some(Position(0)), |row| Some(minicbor::decode::<Complete>(&row).ok()?.position));
            if let Some(found) = found.filter(|found| *found < durable) {
                return Err(IndexError::WentBack { persisted: durable, found });
            }
        }
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        let path = path.to_owned();
        Ok(RocksIndex { db, path, write_options, applied: AtomicU64::new(0), persisted: AtomicU64::new(0) })
    }

    /// Removes the index in the directory `path`.
    ///
    /// # Errors
    /// [`IndexError`] as RocksDB says.
    pub fn destroy(path: &Path) -> Result<(), IndexError> {
        persisted::clear(path).map_err(|source| failed(path, source))?;
        Ok(DB::destroy(&Options::default(), path)?)
    }
}

fn failed(path: &Path, source: std::io::Error) -> IndexError {
    IndexError::Persisted { path: path.display().to_string(), source }
}

impl Index for RocksIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        Ok(self.db.get_pinned(key)?.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<(), IndexError> {
        let mut options = ReadOptions::default();
        if let Some(end) = end {
            if start >= end {
                return Ok(());
            }
            options.set_iterate_upper_bound(end);
        }
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek(start);
        while let Some((key, value)) = rows.item() {
            if visit(key, value).is_break() {
                return Ok(());
            }
            rows.next();
        }
        Ok(rows.status()?)
    }

    fn apply(&self, batch: Batch) -> Result<(), IndexError> {
        let bytes = batch.changes.iter().map(|change| match change {
            Change::Put(key, value) => key.len() + value.len() + 16,
            Change::Delete(key) => key.len() + 16,
            Change::DeleteRange(from, to) => from.len() + to.len() + 16,
        });
        let mut writes = WriteBatch::with_capacity_bytes(bytes.sum());
        for change in &batch.changes {
            match change {
                Change::Put(key, value) => writes.put(key, value),
                Change::Delete(key) => writes.delete(key),
                Change::DeleteRange(from, to) => {
                    if from < to {
                        writes.delete_range(from, to);
                    }
                }
            }
        }
        self.db.write_opt(writes, &self.write_options)?;
        self.applied.store(batch.position.0, Ordering::Release);
        Ok(())
    }

    fn flush(&self) -> Result<(), IndexError> {
        let position = self.applied.load(Ordering::Acquire);
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_opt(&options)?;
        if position > self.persisted.load(Ordering::Acquire) {
            persisted::write(&self.path, Position(position)).map_err(|source| failed(&self.path, source))?;
        }
        self.persisted.fetch_max(position, Ordering::AcqRel);
        Ok(())
    }

    fn persisted_position(&self) -> Position {
        Position(self.persisted.load(Ordering::Acquire))
    }

    fn size_bytes(&self) -> u64 {
        let property = |name: &'static std::ffi::CStr| self.db.property_int_value(name).ok().flatten().unwrap_or(0);
        property(c"rocksdb.total-sst-files-size") + property(c"rocksdb.cur-size-all-mem-tables")
    }
}
