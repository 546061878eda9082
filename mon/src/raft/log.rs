//! The Raft log, the vote and the snapshot of one monitor, in RocksDB.
//!
//! Invariants:
//! - A vote is durable before `save_vote` returns; entries are readable when `append` returns and durable before its
//!   callback fires. So nothing is answered that a power cut could take back.
//! - Writes reach RocksDB's write-ahead log in call order, so one sync makes all earlier ones durable; a torn tail
//!   holds only what was never answered.
//! - A snapshot is durable before the entries it covers are purged.
//! - The log has no holes: entries are keyed by big-endian index, truncation and purge remove whole ends.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Weak, mpsc};

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use rocksdb::{DB, DBRecoveryMode, Direction, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions};

use super::encoding::{StoredEntry, StoredLogId, StoredSnapshot, StoredVote, decode, encode};
use super::types::{Entry, LogId, TypeConfig, Vote};

const KEY_VOTE: &[u8] = b"m/vote";
const KEY_COMMITTED: &[u8] = b"m/committed";
const KEY_PURGED: &[u8] = b"m/purged";
const KEY_SNAPSHOT: &[u8] = b"m/snapshot";
const KEY_IDENTITY: &[u8] = b"m/identity";
const ENTRY_PREFIX: &[u8] = b"l/";
const ENTRIES_END: &[u8] = b"l0"; // '0' follows '/': the first key after all entries

/// The most appends that wait for one sync. The library itself has at most one large append in flight, so this bounds
/// memory only in theory.
const SYNC_QUEUE_MAX: usize = 1024;

/// Size of RocksDB's write buffer: the whole monitor state is a few MiB.
const WRITE_BUFFER_BYTES: usize = 8 << 20;

fn entry_key(index: u64) -> [u8; 10] {
    let mut key = [0; 10];
    key[..2].copy_from_slice(ENTRY_PREFIX);
    key[2..].copy_from_slice(&index.to_be_bytes());
    key
}

fn failed(error: rocksdb::Error) -> io::Error {
    io::Error::other(error)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The database of one monitor. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Storage {
    db: Arc<DB>,
    sync: mpsc::SyncSender<IOFlushed<TypeConfig>>,
}

/// Sees whether the database is still open, without keeping it so.
pub(super) struct Watch(Weak<DB>);

impl Watch {
    pub(super) fn is_closed(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl Storage {
    /// Opens or creates the database in `directory`.
    pub(super) fn open(directory: &Path) -> io::Result<Storage> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_total_wal_size(4 * WRITE_BUFFER_BYTES as u64);
        options.set_max_open_files(64);
        options.set_keep_log_file_num(2);
        // Damage before the tail is damage: refuse to start rather than forget votes or entries.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        let db = Arc::new(DB::open(&options, directory).map_err(failed)?);
        let (sync, waiting) = mpsc::sync_channel(SYNC_QUEUE_MAX);
        let syncing = Arc::clone(&db);
        std::thread::Builder::new().name("raft-sync".into()).spawn(move || sync_loop(&syncing, &waiting))?;
        Ok(Storage { db, sync })
    }

    /// Tells whether the database is still open.
    pub(super) fn watch(&self) -> Watch {
        Watch(Arc::downgrade(&self.db))
    }

    fn get<T: for<'b> minicbor::Decode<'b, ()>>(&self, key: &[u8]) -> io::Result<Option<T>> {
        match self.db.get_pinned(key).map_err(failed)? {
            Some(bytes) => decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    async fn put_durably(&self, key: &'static [u8], value: Vec<u8>) -> io::Result<()> {
        let db = Arc::clone(&self.db);
        blocking(move || {
            let mut durable = WriteOptions::default();
            durable.set_sync(true);
            db.put_opt(key, value, &durable).map_err(failed)
        })
        .await
    }

    /// The bytes that name whose database this is, as [`Self::save_identity`] wrote them.
    pub(super) fn identity(&self) -> io::Result<Option<Vec<u8>>> {
        self.db.get(KEY_IDENTITY).map_err(failed)
    }

    /// Durably names whose database this is.
    pub(super) async fn save_identity(&self, identity: Vec<u8>) -> io::Result<()> {
        self.put_durably(KEY_IDENTITY, identity).await
    }

    /// The current snapshot.
    pub(super) fn snapshot(&self) -> io::Result<Option<StoredSnapshot>> {
        self.get(KEY_SNAPSHOT)
    }

    /// Replaces the snapshot, durably.
    pub(super) async fn save_snapshot(&self, snapshot: &StoredSnapshot) -> io::Result<()> {
        self.put_durably(KEY_SNAPSHOT, encode(snapshot)).await
    }

    fn entries(&self, from: u64, until: Option<u64>) -> io::Result<Vec<Entry>> {
        let mut read = ReadOptions::default();
        let end = until.map_or_else(|| ENTRIES_END.to_vec(), |until| entry_key(until).to_vec());
        read.set_iterate_upper_bound(end);
        let start = entry_key(from);
        let mut entries: Vec<Entry> = Vec::new();
        for item in self.db.iterator_opt(IteratorMode::From(&start, Direction::Forward), read) {
            let (_, value) = item.map_err(failed)?;
            let entry: Entry = decode::<StoredEntry>(&value)?.try_into()?;
            if let Some(previous) = entries.last()
                && previous.log_id.index + 1 != entry.log_id.index
            {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("hole in the log between {} and {}", previous.log_id.index, entry.log_id.index),
                ));
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn last_entry(&self) -> io::Result<Option<LogId>> {
        let mut read = ReadOptions::default();
        read.set_iterate_lower_bound(ENTRY_PREFIX);
        let mut newest_first = self.db.iterator_opt(IteratorMode::From(ENTRIES_END, Direction::Reverse), read);
        match newest_first.next() {
            Some(item) => {
                let (_, value) = item.map_err(failed)?;
                let entry: Entry = decode::<StoredEntry>(&value)?.try_into()?;
                Ok(Some(entry.log_id))
            }
            None => Ok(None),
        }
    }
}

/// Makes appended entries durable and says so: one sync for all that wait.
fn sync_loop(db: &DB, waiting: &mpsc::Receiver<IOFlushed<TypeConfig>>) {
    while let Ok(first) = waiting.recv() {
        let mut batch = vec![first];
        batch.extend(waiting.try_iter().take(SYNC_QUEUE_MAX));
        match db.flush_wal(true) {
            Ok(()) => batch.into_iter().for_each(|done| done.io_completed(Ok(()))),
            Err(error) => {
                tracing::error!(%error, "raft log cannot be made durable; this monitor stops taking part");
                batch.into_iter().for_each(|done| done.io_completed(Err(io::Error::other(error.clone()))));
            }
        }
    }
}

impl RaftLogReader<TypeConfig> for Storage {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let until = match range.end_bound() {
            Bound::Included(index) => index.checked_add(1),
            Bound::Excluded(index) => Some(*index),
            Bound::Unbounded => None,
        };
        if until.is_some_and(|until| until <= from) {
            return Ok(Vec::new());
        }
        self.entries(from, until)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.get::<StoredVote>(KEY_VOTE)?.map(Into::into))
    }
}

impl RaftLogStorage<TypeConfig> for Storage {
    type LogReader = Storage;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let last_purged_log_id = self.get::<StoredLogId>(KEY_PURGED)?.map(Into::into);
        let last_log_id = self.last_entry()?.or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Storage {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.put_durably(KEY_VOTE, encode(&StoredVote::from(vote))).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // Not synced: it only spares the next start from asking the quorum what is committed.
        match committed {
            Some(id) => self.db.put(KEY_COMMITTED, encode(&StoredLogId::from(&id))).map_err(failed),
            None => self.db.delete(KEY_COMMITTED).map_err(failed),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let committed: Option<LogId> = self.get::<StoredLogId>(KEY_COMMITTED)?.map(Into::into);
        Ok(committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = WriteBatch::default();
        for entry in entries {
            batch.put(entry_key(entry.log_id.index), encode(&StoredEntry::from(&entry)));
        }
        self.db.write(batch).map_err(failed)?;
        // The queue can only be full when the disk has stalled; then waiting here is the back-pressure.
        match self.sync.try_send(callback) {
            Ok(()) => Ok(()),
            Err(mpsc::TrySendError::Full(callback)) => {
                let sync = self.sync.clone();
                blocking(move || sync.send(callback).map_err(io::Error::other)).await
            }
            Err(error @ mpsc::TrySendError::Disconnected(_)) => Err(io::Error::other(error.to_string())),
        }
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        let mut batch = WriteBatch::default();
        batch.delete_range(entry_key(from).as_slice(), ENTRIES_END);
        // Not synced: a truncated tail that comes back after a power cut is a tail that was never committed.
        self.db.write(batch).map_err(failed)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        batch.put(KEY_PURGED, encode(&StoredLogId::from(&log_id)));
        batch.delete_range(entry_key(0).as_slice(), entry_key(log_id.index + 1).as_slice());
        self.db.write(batch).map_err(failed)
    }
}
