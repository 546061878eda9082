//! The index on RocksDB: one column family, no write-ahead log (the segments are it).
//!
//! Without a log of its own RocksDB comes back with the state of its last memtable flush, and memtables are flushed
//! in order and whole: a prefix of the batches. That is all the store relies on.

use std::path::Path;

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, FlushOptions, IteratorMode, Options, ReadOptions, WriteBatch,
    WriteOptions,
};

use crate::error::IndexError;
use crate::index::{Index, IndexBatch};

/// RocksDB behind the [`Index`] trait.
pub struct RocksIndex {
    db: DB,
    write: WriteOptions,
}

impl std::fmt::Debug for RocksIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksIndex").field("path", &self.db.path()).finish_non_exhaustive()
    }
}

fn failed(act: &'static str) -> impl FnOnce(rocksdb::Error) -> IndexError {
    move |error| IndexError { act, detail: error.into_string() }
}

impl RocksIndex {
    /// Opens or makes the index in a directory. `memory_target` bounds block cache and write buffers together: a half
    /// for the cache, a quarter for the buffers (the rest of the budget is the engine's).
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn open(dir: &Path, memory_target: u64) -> Result<RocksIndex, IndexError> {
        let bytes = |share: u64, min: u64| usize::try_from((memory_target / share).max(min)).unwrap_or(usize::MAX);
        let cache = Cache::new_lru_cache(bytes(2, 8 << 20));
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&cache);
        table.set_bloom_filter(10.0, false);
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        table.set_format_version(5);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(bytes(12, 4 << 20));
        options.set_max_write_buffer_number(3);
        options.set_max_background_jobs(2);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_max_open_files(256);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_stats_dump_period_sec(0);
        options.set_paranoid_checks(true);
        let db = DB::open(&options, dir).map_err(failed("open"))?;
        let mut write = WriteOptions::default();
        write.disable_wal(true);
        Ok(RocksIndex { db, write })
    }
}

impl Index for RocksIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        let found = self.db.get_pinned(key).map_err(failed("read"))?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), IndexError> {
        let mut options = ReadOptions::default();
        if let Some(end) = end {
            options.set_iterate_upper_bound(end.to_vec());
        }
        let mode = IteratorMode::From(start, rocksdb::Direction::Forward);
        for entry in self.db.iterator_opt(mode, options) {
            let (key, value) = entry.map_err(failed("scan"))?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, batch: &IndexBatch) -> Result<(), IndexError> {
        let mut rows = WriteBatch::default();
        for (key, value) in batch {
            match value {
                Some(value) => rows.put(key, value),
                None => rows.delete(key),
            }
        }
        self.db.write_opt(rows, &self.write).map_err(failed("write"))
    }

    fn flush(&self) -> Result<(), IndexError> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_opt(&options).map_err(failed("flush"))
    }
}
