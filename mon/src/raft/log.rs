//! The Raft log, the vote and the snapshot of one monitor, in RocksDB (`docs/formats/mon.md`).
//!
//! | key | value (CBOR, shapes in `encoding`) |
//! |---|---|
//! | `m/identity` | cluster and monitor id: written first, once |
//! | `m/joining` | there while this monitor, which began without memory, may not vote (`join`) |
//! | `m/vote` | the last vote |
//! | `m/committed` | a log id known to be committed; a hint |
//! | `m/purged` | the last log id that was purged |
//! | `m/snapshot` | meta data and the encoded state |
//! | `l/` + index, big-endian u64 | a log entry |
//!
//! Invariants:
//! - A vote is durable before `save_vote` returns; entries are readable when `append` returns and durable before its
//!   callback fires. So nothing is answered that a power cut could take back.
//! - Writes reach RocksDB's write-ahead log in call order, so one sync makes all earlier ones durable; a torn tail
//!   holds only what was never answered.
//! - A snapshot is durable before the entries it covers are purged, and is never replaced by one that holds less: the
//!   library builds a snapshot beside its other work, and a newer one may have been installed and the log purged up to
//!   it by the time that the older one is written.
//! - The log has no holes: entries are keyed by big-endian index, truncation and purge remove whole ends.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::encoding::{StoredEntry, StoredLogId, StoredSnapshot, StoredVote, decode, encode};
use super::kv::{Kv, Write};
use super::types::{Entry, LogId, TypeConfig, Vote};
use crate::host::{Host, spawn};
use crate::mutants::{Mutant, on};

const KEY_VOTE: &[u8] = b"m/vote";
const KEY_COMMITTED: &[u8] = b"m/committed";
const KEY_PURGED: &[u8] = b"m/purged";
const KEY_SNAPSHOT: &[u8] = b"m/snapshot";
const KEY_IDENTITY: &[u8] = b"m/identity";
const KEY_JOINING: &[u8] = b"m/joining";
const ENTRY_PREFIX: &[u8] = b"l/";
const ENTRIES_END: &[u8] = b"l0"; // '0' follows '/': the first key after all entries

/// The most appends that wait for one sync. The library itself has at most one large append in flight, so this bounds
/// memory only in theory.
const SYNC_QUEUE_MAX: usize = 1024;

fn entry_key(index: u64) -> [u8; 10] {
    let mut key = [0; 10];
    key[..2].copy_from_slice(ENTRY_PREFIX);
    key[2..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The database of one monitor. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Storage<H: Host> {
    db: Arc<Database<H>>,
    sync: mpsc::Sender<IOFlushed<TypeConfig<H>>>,
}

/// The open database. Fields drop in this order: `closed` tells only after the directory's lock is gone.
struct Database<H: Host> {
    kv: H::Kv,
    /// Held from the look at the stored snapshot until the new one is in its place.
    snapshot: Mutex<()>,
    #[cfg(test)]
    broken: Arc<std::sync::atomic::AtomicBool>,
    closed: watch::Sender<()>,
}

impl<H: Host> Database<H> {
    /// Fails when a test has broken the disk.
    fn check(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.broken.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let _ = self;
        Ok(())
    }
}

/// Waits for the database to be closed, without keeping it open.
#[derive(Clone)]
pub(super) struct Watch {
    open: watch::Receiver<()>,
    #[cfg(test)]
    broken: Arc<std::sync::atomic::AtomicBool>,
}

impl Watch {
    /// Returns once the directory can be opened again.
    pub(super) async fn closed(&self) {
        let mut open = self.open.clone();
        while open.changed().await.is_ok() {}
    }

    /// Makes every later write fail, as a full disk does.
    #[cfg(test)]
    pub(super) fn break_disk(&self) {
        self.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

impl<H: Host> Storage<H> {
    /// Opens or creates the database in `directory`.
    pub(super) fn open(directory: &Path) -> io::Result<Storage<H>> {
        H::Kv::open(directory).map(Storage::over)
    }

    fn over(kv: H::Kv) -> Storage<H> {
        let db = Arc::new(Database {
            kv,
            snapshot: Mutex::new(()),
            #[cfg(test)]
            broken: Arc::default(),
            closed: watch::Sender::new(()),
        });
        let (sync, waiting) = mpsc::channel(SYNC_QUEUE_MAX);
        spawn::<H, _>(sync_loop(Arc::clone(&db), waiting));
        Storage { db, sync }
    }

    /// Tells whether the database is still open.
    pub(super) fn watch(&self) -> Watch {
        Watch {
            open: self.db.closed.subscribe(),
            #[cfg(test)]
            broken: Arc::clone(&self.db.broken),
        }
    }

    fn get<T: for<'b> minicbor::Decode<'b, ()>>(&self, key: &[u8]) -> io::Result<Option<T>> {
        self.db.kv.get(key)?.map(|bytes| decode(&bytes)).transpose()
    }

    async fn write_durably(&self, change: Write) -> io::Result<()> {
        let db = Arc::clone(&self.db);
        H::blocking(move || {
            db.check()?;
            db.kv.write(vec![change], true)
        })
        .await
    }

    /// Whether this database holds nothing that a voter must remember.
    pub(super) fn is_blank(&self) -> io::Result<bool> {
        for key in [KEY_VOTE, KEY_COMMITTED, KEY_PURGED, KEY_SNAPSHOT] {
            if self.db.kv.get(key)?.is_some() {
                return Ok(false);
            }
        }
        Ok(self.last_entry()?.is_none())
    }

    /// Whether this monitor began without memory and has not caught up yet.
    pub(super) fn joining(&self) -> io::Result<bool> {
        Ok(self.db.kv.get(KEY_JOINING)?.is_some())
    }

    /// See [`Self::joining`]; durable.
    pub(super) async fn set_joining(&self, joining: bool) -> io::Result<()> {
        let key = KEY_JOINING.to_vec();
        self.write_durably(if joining { Write::Put(key, Vec::new()) } else { Write::Delete(key) }).await
    }

    /// Whether the log was purged beyond what the snapshot holds: what is missing then cannot be applied.
    pub(super) fn check_purged(&self) -> io::Result<()> {
        let purged = self.purged()?;
        let held = self.snapshot()?.and_then(|snapshot| snapshot.meta.last());
        if purged > held {
            let say = |id: Option<LogId>| id.map_or_else(|| "nothing".to_owned(), |id| format!("entry {}", id.index));
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the log was purged up to {}, the snapshot holds up to {}", say(purged), say(held)),
            ));
        }
        Ok(())
    }

    /// The bytes that name whose database this is, as [`Self::save_identity`] wrote them.
    pub(super) fn identity(&self) -> io::Result<Option<Vec<u8>>> {
        self.db.kv.get(KEY_IDENTITY)
    }

    /// Durably names whose database this is.
    pub(super) async fn save_identity(&self, identity: Vec<u8>) -> io::Result<()> {
        self.write_durably(Write::Put(KEY_IDENTITY.to_vec(), identity)).await
    }

    /// The current snapshot.
    pub(super) fn snapshot(&self) -> io::Result<Option<StoredSnapshot>> {
        self.get(KEY_SNAPSHOT)
    }

    /// Replaces the snapshot, durably, unless the stored one holds more.
    pub(super) async fn save_snapshot(&self, snapshot: &StoredSnapshot) -> io::Result<()> {
        let (storage, last, value) = (self.clone(), snapshot.meta.last(), encode(snapshot));
        H::blocking(move || {
            let _turn = storage.db.snapshot.lock();
            let stored = storage.snapshot()?.and_then(|stored| stored.meta.last());
            if stored > last {
                tracing::info!(?stored, ?last, "an older snapshot does not replace the newer one");
                return Ok(());
            }
            storage.db.kv.write(vec![Write::Put(KEY_SNAPSHOT.to_vec(), value)], true)
        })
        .await
    }

    /// Entries of `from..until`, without a hole. Only entries that were purged may be missing at the front.
    fn entries(&self, from: u64, until: Option<u64>) -> io::Result<Vec<Entry>> {
        let end = until.map_or_else(|| ENTRIES_END.to_vec(), |until| entry_key(until).to_vec());
        let mut entries: Vec<Entry> = Vec::new();
        self.db.kv.scan(&entry_key(from), &end, |value| {
            let entry: Entry = decode::<StoredEntry>(value)?.try_into()?;
            let wanted = match entries.last() {
                Some(previous) => previous.log_id.index + 1,
                None if entry.log_id.index == from => from,
                None => from.max(self.purged()?.map_or(0, |purged| purged.index + 1)),
            };
            if wanted != entry.log_id.index {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("hole in the log: entry {wanted} is missing before entry {}", entry.log_id.index),
                ));
            }
            entries.push(entry);
            Ok(())
        })?;
        Ok(entries)
    }

    fn purged(&self) -> io::Result<Option<LogId>> {
        Ok(self.get::<StoredLogId>(KEY_PURGED)?.map(Into::into))
    }

    fn last_entry(&self) -> io::Result<Option<LogId>> {
        match self.db.kv.last(ENTRY_PREFIX, ENTRIES_END)? {
            Some(value) => {
                let entry: Entry = decode::<StoredEntry>(&value)?.try_into()?;
                Ok(Some(entry.log_id))
            }
            None => Ok(None),
        }
    }
}

/// Makes appended entries durable and says so: one sync for all that wait.
async fn sync_loop<H: Host>(db: Arc<Database<H>>, mut waiting: mpsc::Receiver<IOFlushed<TypeConfig<H>>>) {
    while let Some(first) = waiting.recv().await {
        let mut batch = vec![first];
        while batch.len() < SYNC_QUEUE_MAX
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        let syncing = Arc::clone(&db);
        let synced = H::blocking(move || {
            syncing.check()?;
            if on(Mutant::AnswerBeforeSync) { Ok(()) } else { syncing.kv.sync() }
        });
        match synced.await {
            Ok(()) => batch.into_iter().for_each(|done| done.io_completed(Ok(()))),
            Err(error) => {
                tracing::error!(%error, "raft log cannot be made durable; this monitor stops taking part");
                batch
                    .into_iter()
                    .for_each(|done| done.io_completed(Err(io::Error::new(error.kind(), error.to_string()))));
            }
        }
    }
}

impl<H: Host> RaftLogReader<TypeConfig<H>> for Storage<H> {
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

impl<H: Host> RaftLogStorage<TypeConfig<H>> for Storage<H> {
    type LogReader = Storage<H>;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig<H>>> {
        let last_purged_log_id = self.purged()?;
        let last_log_id = self.last_entry()?.or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Storage<H> {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = Write::Put(KEY_VOTE.to_vec(), encode(&StoredVote::from(vote)));
        if on(Mutant::VoteNotSynced) {
            return self.db.kv.write(vec![vote], false);
        }
        self.write_durably(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // Not synced: it only spares the next start from asking the quorum what is committed.
        let hint = match committed {
            Some(id) => Write::Put(KEY_COMMITTED.to_vec(), encode(&StoredLogId::from(&id))),
            None => Write::Delete(KEY_COMMITTED.to_vec()),
        };
        self.db.kv.write(vec![hint], false)
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let committed: Option<LogId> = self.get::<StoredLogId>(KEY_COMMITTED)?.map(Into::into);
        Ok(committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig<H>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter();
        let batch = entries
            .map(|entry| Write::Put(entry_key(entry.log_id.index).to_vec(), encode(&StoredEntry::from(&entry))))
            .collect();
        self.db.kv.write(batch, false)?;
        // The queue can only be full when the disk has stalled; then waiting here is the back-pressure.
        self.sync.send(callback).await.map_err(|error| io::Error::other(error.to_string()))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        let from = if on(Mutant::TruncateOneTooMany) { from.saturating_sub(1) } else { from };
        // Not synced: a truncated tail that comes back after a power cut is a tail that was never committed.
        self.db.kv.write(vec![Write::DeleteRange(entry_key(from).to_vec(), ENTRIES_END.to_vec())], false)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let purged = Write::Put(KEY_PURGED.to_vec(), encode(&StoredLogId::from(&log_id)));
        let entries = Write::DeleteRange(entry_key(0).to_vec(), entry_key(log_id.index + 1).to_vec());
        self.db.kv.write(vec![purged, entries], false)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use openraft::EntryPayload;
    use openraft::type_config::TypeConfigExt;
    use rocksdb::statistics::Ticker;

    use super::super::encoding::StoredMeta;
    use super::super::kv::Rocks;
    use super::super::types::{LeaderId, Proposal, SnapshotMeta, StoredMembership};
    use super::*;
    use crate::host::Production;

    type Storage = super::Storage<Production>;
    type TypeConfig = super::TypeConfig<Production>;

    fn entry(term: u64, index: u64) -> Entry {
        let log_id = LogId { leader_id: LeaderId { term, node_id: 1 }, index };
        Entry { log_id, payload: EntryPayload::Normal(Proposal(vec![7; 10])) }
    }

    async fn append(storage: &mut Storage, entries: Vec<Entry>) {
        let (done, flushed) = TypeConfig::oneshot();
        storage.append(entries, IOFlushed::signal(done)).await.unwrap();
        flushed.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn votes_and_entries_are_synced_before_they_are_answered() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = Rocks::options();
        options.enable_statistics();
        let mut storage = Storage::over(Rocks::open_with(&options, directory.path()).unwrap());
        let syncs = || options.get_ticker_count(Ticker::WalFileSynced);
        for index in 0..10 {
            let before = syncs();
            append(&mut storage, vec![entry(1, index)]).await;
            assert!(syncs() > before, "entry {index} was answered without a sync");
        }
        let before = syncs();
        storage.save_vote(&Vote::new(2, 1)).await.unwrap();
        assert!(syncs() > before, "the vote was answered without a sync");
    }

    #[tokio::test]
    async fn the_log_reopens_as_it_was_and_reads_without_holes() {
        let directory = tempfile::tempdir().unwrap();
        let mut storage = Storage::open(directory.path()).unwrap();
        append(&mut storage, (0..20).map(|index| entry(1, index)).collect()).await;
        storage.truncate_after(Some(entry(1, 14).log_id)).await.unwrap();
        append(&mut storage, (15..18).map(|index| entry(2, index)).collect()).await;
        storage.purge(entry(1, 4).log_id).await.unwrap();
        storage.save_vote(&Vote::new_committed(2, 1)).await.unwrap();
        storage.save_committed(Some(entry(2, 16).log_id)).await.unwrap();
        let watch = storage.watch();
        drop(storage);
        watch.closed().await;
        let mut storage = Storage::open(directory.path()).unwrap();
        let state = storage.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(entry(1, 4).log_id));
        assert_eq!(state.last_log_id, Some(entry(2, 17).log_id));
        assert_eq!(storage.read_vote().await.unwrap(), Some(Vote::new_committed(2, 1)));
        assert_eq!(storage.read_committed().await.unwrap(), Some(entry(2, 16).log_id));
        let indexes = |entries: Vec<Entry>| entries.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>();
        assert_eq!(indexes(storage.try_get_log_entries(..).await.unwrap()), (5..18).collect::<Vec<_>>());
        assert_eq!(indexes(storage.try_get_log_entries(7..9).await.unwrap()), [7, 8]);
        assert_eq!(indexes(storage.try_get_log_entries(7..=9).await.unwrap()), [7, 8, 9]);
        assert!(storage.try_get_log_entries(9..9).await.unwrap().is_empty());
        storage.db.kv.write(vec![Write::Delete(entry_key(10).to_vec())], false).unwrap();
        assert!(storage.try_get_log_entries(..).await.is_err(), "a hole is an error");
        assert!(storage.try_get_log_entries(10..13).await.is_err(), "at the front, too");
        assert_eq!(indexes(storage.try_get_log_entries(3..7).await.unwrap()), [5, 6], "what was purged is no hole");
    }

    fn snapshot(index: u64) -> StoredSnapshot {
        let last = Some(entry(1, index).log_id);
        let meta = SnapshotMeta { last_log_id: last, last_membership: StoredMembership::default() };
        StoredSnapshot { meta: StoredMeta::from(&meta), state: vec![u8::try_from(index).unwrap()].into() }
    }

    #[tokio::test]
    async fn a_snapshot_is_never_replaced_by_one_that_holds_less() {
        let directory = tempfile::tempdir().unwrap();
        let mut storage = Storage::open(directory.path()).unwrap();
        storage.save_snapshot(&snapshot(5)).await.unwrap();
        // Built up to 9 while one up to 20 comes from the leader.
        storage.save_snapshot(&snapshot(20)).await.unwrap();
        storage.purge(entry(1, 20).log_id).await.unwrap();
        storage.save_snapshot(&snapshot(9)).await.unwrap();
        assert_eq!(storage.snapshot().unwrap().unwrap(), snapshot(20));
        storage.check_purged().unwrap();
        storage.save_snapshot(&snapshot(21)).await.unwrap();
        assert_eq!(storage.snapshot().unwrap().unwrap(), snapshot(21));
        storage.purge(entry(1, 30).log_id).await.unwrap();
        assert!(storage.check_purged().is_err(), "what neither the log nor the snapshot holds is noticed at the start");
    }
}
