//! The store in a daemon: the engine, a commit thread and a maintenance thread.
//!
//! Reads go to the engine from any thread. [`Store::submit`] does its part on the caller's thread too; the commit thread
//! takes all that waits, syncs once, and calls back. While it waits for the device, more gathers: groups form by themselves.
//! The maintenance thread flushes the index and cleans. Both sleep when there is nothing to do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::device::{Device, FileDevice};
use crate::engine::blank::check_blank;
use crate::engine::commit::in_callback;
use crate::engine::{Engine, Identity, IndexRoomLeft, OnDurable, Options, SUPPORTED_SEGMENT_BYTES};
use crate::error::{CleanError, CommitError, FormatError, OpenError, SubmitError};
use crate::index::{Index, IndexError, RocksIndex};
use crate::index_room::IndexRoom;
use crate::marker;
use crate::tx::Transaction;

/// Log bytes that may wait for a commit; `submit` blocks beyond. About what a fast device writes in 10 ms: more would only
/// add latency and memory.
const PENDING_BYTES_MAX: u64 = 32 << 20;
/// The index is flushed at least so often when something changed: bounds what a replay has to do after a quiet time.
const INDEX_FLUSH_INTERVAL: Duration = Duration::from_secs(60);
/// How often a store that lacks room looks whether there is some, though nothing happens in it: other users of the file
/// system may have left.
const ROOM_INTERVAL: Duration = Duration::from_secs(10);
/// How often a store in which nothing happens looks whether its index has room.
const IDLE_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that one cleaning step moves; between steps, index flushes and stops are looked at.
const CLEAN_STEP_BYTES: u64 = 4 << 20;
/// Part of the memory that is for decoded onodes: on 64 MiB tens of thousands of small objects.
const ONODE_CACHE_SHARE: u64 = 8;
/// How often a submit waits for the cleaner before it gives up.
const SPACE_WAITS_MAX: u32 = 64;
/// How long each wait for the cleaner is at most.
const SPACE_WAIT: Duration = Duration::from_millis(500);

/// Where a store is, and how much memory it may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// A block device or file for the log.
    pub device: PathBuf,
    /// Whether [`Store::format`] may make the device, as a sparse file, when nothing is there. Not for one that somebody
    /// named: it is then not attached, and under `/dev` a file in memory would be made.
    pub may_make_device: bool,
    /// A directory for the index.
    pub index: PathBuf,
    /// Bytes for the caches of onodes and index and for memtables together. What waits for a commit comes on top (at most
    /// 32 MiB).
    pub memory_target: u64,
    /// Sizes.
    pub options: Options,
}

impl StoreConfig {
    /// A store in the directory `directory`: a file `block` (which may be a link to a device) and the index beside it, with
    /// 1 GiB of memory.
    pub fn in_directory(directory: &Path) -> StoreConfig {
        StoreConfig {
            device: directory.join("block"),
            may_make_device: true,
            index: directory.join("index"),
            memory_target: 1 << 30,
            options: Options::default(),
        }
    }
}

impl StoreConfig {
    /// Opens the index with most of the memory; the rest is the engine's cache.
    fn open_index(&self) -> Result<(RocksIndex, Options), IndexError> {
        let onode_cache_bytes = self.memory_target / ONODE_CACHE_SHARE;
        let index = RocksIndex::open(&self.index, self.memory_target - onode_cache_bytes)?;
        Ok((index, Options { onode_cache_bytes, ..self.options.clone() }))
    }

    fn index_room(&self, device: &FileDevice) -> std::io::Result<IndexRoom> {
        Ok(IndexRoom::open(&self.index, &self.device, device.len()?))
    }

    fn device_error(&self, source: std::io::Error) -> FormatError {
        match source.kind() {
            std::io::ErrorKind::NotFound => FormatError::NoDevice { device: self.device.clone() },
            _ => FormatError::Device(source),
        }
    }
}

#[derive(Debug, Default)]
struct Signals {
    /// Something waits for a commit.
    submitted: bool,
    /// The maintenance thread should look.
    maintain: bool,
    stop: bool,
    /// Counts commits and cleaning steps: a waiting submit looks again when it changes.
    progress: u64,
}

struct Shared<D, I> {
    engine: Engine<D, I>,
    signals: Mutex<Signals>,
    commit_wanted: Condvar,
    maintain_wanted: Condvar,
    progressed: Condvar,
    /// Since when the commit thread is at the group that it has, if any.
    committing_since: Mutex<Option<Instant>>,
    /// None for an index in memory.
    index_room: Option<Mutex<IndexRoom>>,
}

/// Stops and joins the threads when the last handle is gone.
struct Threads<D: Device + 'static, I: Index + 'static> {
    shared: Arc<Shared<D, I>>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    stopped: AtomicBool,
}

/// A handle to an open store; clones are handles to the same one. The last one dropped commits what waits and stops, but
/// only [`Store::close`] spares the next open the replay.
pub struct Store<D: Device + 'static = FileDevice, I: Index + 'static = RocksIndex> {
    shared: Arc<Shared<D, I>>,
    threads: Arc<Threads<D, I>>,
}

impl<D: Device, I: Index> Clone for Store<D, I> {
    fn clone(&self) -> Store<D, I> {
        Store { shared: Arc::clone(&self.shared), threads: Arc::clone(&self.threads) }
    }
}

impl<D: Device, I: Index> std::fmt::Debug for Store<D, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({:?})", self.shared.engine)
    }
}

impl Store {
    /// Makes a new store. The device exists and is blank, or is made as a sparse file of `device_bytes` if it may be; an
    /// index in the directory is removed.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn format(config: &StoreConfig, identity: Identity, device_bytes: u64) -> Result<Store, FormatError> {
        let segment_bytes = config.options.segment_bytes;
        if !SUPPORTED_SEGMENT_BYTES.contains(&segment_bytes) {
            return Err(FormatError::SegmentBytes {
                bytes: u64::from(segment_bytes),
                min: u64::from(*SUPPORTED_SEGMENT_BYTES.start()),
                max: u64::from(*SUPPORTED_SEGMENT_BYTES.end()),
            });
        }
        Store::check_device(config, identity)?; // before a file is made longer or the index goes
        let device = if config.may_make_device {
            FileDevice::create(&config.device, device_bytes)
        } else {
            FileDevice::open_extended(&config.device, device_bytes)
        };
        let device = device.map_err(|source| config.device_error(source))?;
        RocksIndex::destroy(&config.index)?;
        let room = config.index_room(&device).map_err(FormatError::Device)?;
        let (index, options) = config.open_index()?;
        let engine = Engine::format(device, index, identity, options)?;
        marker::clear(&config.index)?; // of a device that was here before
        engine.on_quarantine(marker::marking(&config.index));
        Ok(Store::start(engine, Some(room)))
    }

    /// Passes a device that [`Store::format`] would take for `identity`, or would make. Changes nothing.
    ///
    /// # Errors
    /// [`FormatError::InUse`], [`FormatError::NoDevice`] and [`FormatError::Device`].
    pub fn check_device(config: &StoreConfig, identity: Identity) -> Result<(), FormatError> {
        // Not even a link: what it names may be attached later.
        let is_nothing =
            std::fs::symlink_metadata(&config.device).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        if is_nothing && config.may_make_device {
            return Ok(());
        }
        let device = FileDevice::open(&config.device).map_err(|source| config.device_error(source))?;
        check_blank(&device, identity)
    }

    /// Opens a store.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(config: &StoreConfig) -> Result<Store, OpenError> {
        let device = FileDevice::open(&config.device)?;
        // Before RocksDB needs it, and before anybody writes down that this store is lost.
        let room = config.index_room(&device)?;
        marker::check(&config.index, &device)?;
        let (index, options) = config.open_index()?;
        let engine = Engine::open(device, index, options)?;
        engine.on_quarantine(marker::marking(&config.index));
        Ok(Store::start(engine, Some(room)))
    }
}

impl<D: Device + 'static, I: Index + 'static> Store<D, I> {
    /// Starts the threads of an engine whose index needs no room on a file system.
    pub fn run(engine: Engine<D, I>) -> Store<D, I> {
        Store::start(engine, None)
    }

    fn start(engine: Engine<D, I>, index_room: Option<IndexRoom>) -> Store<D, I> {
        if let Some(room) = &index_room {
            engine.note_index_room(room.left());
        }
        let shared = Arc::new(Shared {
            engine,
            signals: Mutex::new(Signals::default()),
            commit_wanted: Condvar::new(),
            maintain_wanted: Condvar::new(),
            progressed: Condvar::new(),
            committing_since: Mutex::new(None),
            index_room: index_room.map(Mutex::new),
        });
        let commit = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("store-commit".into()).spawn(move || shared.commit_loop())
        };
        let maintain = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("store-maintain".into()).spawn(move || shared.maintain_loop())
        };
        // Without threads there is no daemon; the operating system refuses them only when it refuses all else too.
        let handles = vec![commit.expect("a thread can be started"), maintain.expect("a thread can be started")];
        let threads = Arc::new(Threads {
            shared: Arc::clone(&shared),
            handles: Mutex::new(handles),
            stopped: AtomicBool::new(false),
        });
        Store { shared, threads }
    }

    /// Takes a transaction; see [`Engine::submit`]. `on_durable` is called from a thread of the store, in the order
    /// of submission; it must be quick, and may submit. Blocks while too much waits, or while the cleaner makes room; never
    /// when called from `on_durable`.
    ///
    /// # Errors
    /// [`SubmitError`]; `on_durable` is then never called.
    pub fn submit(
        &self,
        tx: Transaction,
        on_durable: impl FnOnce(Result<(), Arc<CommitError>>) + Send + 'static,
    ) -> Result<(), SubmitError> {
        let shared = &self.shared;
        let may_wait = !in_callback();
        if may_wait {
            shared.wait_for_queue();
        }
        // The engine takes the callback only with a submission that succeeds, so a retry still has it.
        let mut on_durable: Option<OnDurable> = Some(Box::new(on_durable));
        let mut waits = 0;
        loop {
            let progress = shared.signals.lock().progress;
            match shared.engine.submit_then(&tx, &mut on_durable) {
                Ok(_) => {
                    shared.wake_commit();
                    return Ok(());
                }
                Err(SubmitError::NoSpace { cleaning_helps: true, .. }) if may_wait && waits < SPACE_WAITS_MAX => {
                    waits += 1;
                    shared.wait_for_cleaner(progress);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a transaction and waits until it is durable.
    ///
    /// # Errors
    /// [`SubmitError`]; a failed commit is [`SubmitError::Poisoned`].
    pub fn submit_and_wait(&self, tx: Transaction) -> Result<(), SubmitError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.submit(tx, move |result| {
            let _ = sender.send(result); // the receiver waits below
        })?;
        match receiver.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(SubmitError::Poisoned(error)),
            Err(_) => Err(SubmitError::Closed),
        }
    }

    /// How long the oldest group of transactions has been waiting for the device and the index; zero when none is. A
    /// device that hangs fails nothing: this is how it is noticed. Cheap, and never waits.
    pub fn stalled_for(&self) -> Duration {
        self.shared.committing_since.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Leaves a store whose device hangs to itself: nobody waits for room in its queue any more, and dropping it does not
    /// wait for its threads. They end by themselves should the device come back; else they end with the process. What was
    /// not told durable may or may not be found at the next open.
    pub fn abandon(&self) {
        self.threads.stopped.store(true, Ordering::SeqCst);
        self.shared.tell_to_stop();
    }

    /// The engine, for all that reads: `read`, `stat`, `rows_scan`, … Its methods may be called from any thread.
    pub fn engine(&self) -> &Engine<D, I> {
        &self.shared.engine
    }

    /// Commits what waits, flushes the index and stops. Later submits fail with [`SubmitError::Closed`]; reads work.
    ///
    /// # Errors
    /// [`CleanError`]; nothing durable is lost, the next open replays.
    pub fn close(&self) -> Result<(), CleanError> {
        self.threads.stop();
        self.shared.make_room_for_index();
        self.shared.engine.close()
    }
}

/// Reads go to the engine.
impl<D: Device + 'static, I: Index + 'static> std::ops::Deref for Store<D, I> {
    type Target = Engine<D, I>;

    fn deref(&self) -> &Engine<D, I> {
        &self.shared.engine
    }
}

impl<D: Device, I: Index> Shared<D, I> {
    fn wake_commit(&self) {
        let mut signals = self.signals.lock();
        if !std::mem::replace(&mut signals.submitted, true) {
            self.commit_wanted.notify_one();
        }
    }

    fn wait_for_queue(&self) {
        while self.engine.pending_bytes() >= PENDING_BYTES_MAX {
            let mut signals = self.signals.lock();
            if signals.stop || self.engine.pending_bytes() < PENDING_BYTES_MAX {
                return;
            }
            let _ = self.progressed.wait_for(&mut signals, SPACE_WAIT);
        }
    }

    fn wait_for_cleaner(&self, seen: u64) {
        let mut signals = self.signals.lock();
        signals.maintain = true;
        self.maintain_wanted.notify_one();
        if signals.progress == seen && !signals.stop {
            let _ = self.progressed.wait_for(&mut signals, SPACE_WAIT);
        }
    }

    fn tell_to_stop(&self) {
        self.signals.lock().stop = true;
        self.commit_wanted.notify_all();
        self.maintain_wanted.notify_all();
        self.progressed.notify_all();
    }

    fn note_progress(&self) {
        self.signals.lock().progress += 1;
        self.progressed.notify_all();
    }

    fn commit_loop(&self) {
        loop {
            {
                let mut signals = self.signals.lock();
                while !signals.submitted && !signals.stop {
                    self.commit_wanted.wait(&mut signals);
                }
                if !std::mem::take(&mut signals.submitted) {
                    return; // stopped, and nothing waits
                }
            }
            // Who woke this thread is mostly in the middle of something that others wait for, and about to submit more. On a
            // busy machine it goes on first; on an idle one this costs nothing.
            std::thread::yield_now();
            *self.committing_since.lock() = Some(Instant::now());
            let committed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.engine.commit()));
            let Ok(committed) = committed else {
                // A defect, told to all but those of the group that it hit; `committing_since` stays for these.
                self.engine.fail_after_panic();
                self.note_progress();
                return;
            };
            *self.committing_since.lock() = None;
            if let Err(error) = committed {
                // Those who wait have been told; later submits are refused.
                tracing::debug!(%error, "commit failed");
            }
            self.note_progress();
            self.look_at_index_room();
            if self.engine.wants_index_flush() || self.engine.wants_cleaning() {
                self.signals.lock().maintain = true;
                self.maintain_wanted.notify_one();
            }
        }
    }

    /// Notices that others fill the file system of the index, or have left it.
    fn look_at_index_room(&self) {
        // Whoever else is looking notices the same.
        let Some(mut room) = self.index_room.as_ref().and_then(Mutex::try_lock) else { return };
        if room.is_due() {
            self.look_at(&mut room);
        }
    }

    /// Looks at once: the index is about to be flushed, and nobody may look before that is done.
    /// Whether it lacks room even so.
    fn make_room_for_index(&self) -> bool {
        self.index_room.as_ref().is_some_and(|room| {
            let mut room = room.lock();
            self.look_at(&mut room);
            room.left() != IndexRoomLeft::Enough
        })
    }

    fn look_at(&self, room: &mut IndexRoom) {
        if room.look() {
            self.engine.note_index_room(room.left());
        }
    }

    fn maintain_loop(&self) {
        let (mut flushed_at, mut maintained_at) = (Instant::now(), Instant::now());
        loop {
            let interval = if self.engine.wants_cleaning() { ROOM_INTERVAL } else { INDEX_FLUSH_INTERVAL };
            {
                let mut signals = self.signals.lock();
                if !signals.maintain && !signals.stop {
                    let look = if self.index_room.is_some() { IDLE_LOOK_INTERVAL } else { interval };
                    let _ = self.maintain_wanted.wait_for(&mut signals, interval.min(look));
                }
                if signals.stop {
                    return;
                }
                if !std::mem::take(&mut signals.maintain) && maintained_at.elapsed() < interval {
                    drop(signals);
                    self.look_at_index_room();
                    continue;
                }
            }
            maintained_at = Instant::now();
            match self.maintain(&mut flushed_at) {
                Ok(()) => {}
                // Said once, when it began.
                Err(CleanError::Submit(error @ SubmitError::NoSpace { .. })) => {
                    tracing::debug!(%error, "no room to clean");
                }
                Err(error) => tracing::warn!(%error, "maintenance failed"),
            }
            self.note_progress();
        }
    }

    fn maintain(&self, flushed_at: &mut Instant) -> Result<(), CleanError> {
        let due = flushed_at.elapsed() >= INDEX_FLUSH_INTERVAL && self.engine.has_unflushed();
        if due || self.engine.wants_index_flush() {
            self.make_room_for_index();
            self.engine.flush_index()?;
            *flushed_at = Instant::now();
        }
        while self.engine.wants_cleaning() && !self.signals.lock().stop {
            // A step flushes it, and may take a segment before: then only little is left of what was given up.
            if self.make_room_for_index() && self.engine.has_unflushed() {
                self.engine.flush_index()?;
            }
            let progress = self.engine.clean_step(CLEAN_STEP_BYTES)?;
            self.note_progress();
            self.look_at_index_room();
            if !progress.more || (progress.moved_bytes == 0 && progress.freed_segments == 0) {
                break;
            }
        }
        Ok(())
    }
}

impl<D: Device + 'static, I: Index + 'static> Threads<D, I> {
    fn stop(&self) {
        if self.stopped.swap(true, Ordering::SeqCst) {
            return;
        }
        self.shared.tell_to_stop();
        let own = std::thread::current().id();
        for handle in self.handles.lock().drain(..) {
            if handle.thread().id() != own && handle.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

impl<D: Device + 'static, I: Index + 'static> Drop for Threads<D, I> {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::AtomicU64;

    use holdfast_types::{ClusterId, DiskUuid, OsdId};

    use super::*;
    use crate::device::MemDevice;
    use crate::index::MemIndex;
    use crate::key::CollectionId;
    use crate::tx::TxOp;

    /// Far longer than any look takes.
    const NOTICED_MAX: Duration = Duration::from_secs(30);

    /// Commits until the store lets more in, or no more.
    fn commit_until(store: &Store<MemDevice, MemIndex>, lets_in: bool) {
        let since = Instant::now();
        loop {
            let (live, limit) = store.engine().live_bytes();
            if (live < limit) == lets_in {
                return;
            }
            assert!(since.elapsed() < NOTICED_MAX, "{live} of {limit}");
            store.submit_and_wait(Transaction { ops: Vec::new() }).unwrap();
        }
    }

    #[test]
    fn while_the_index_lacks_room_nothing_is_let_in_and_what_was_let_in_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: ClusterId([1; 16]), disk: DiskUuid([2; 16]), osd: OsdId(3) };
        let options = Options { segment_bytes: 64 << 10, ..Options::default() };
        let device = MemDevice::new(4 << 20);
        let free = Arc::new(AtomicU64::new(1 << 30));
        let told = Arc::clone(&free);
        let free_now = Box::new(move || Ok(told.load(Ordering::Relaxed)));
        let room = IndexRoom::with(&directory.path().join("index"), 4 << 20, false, free_now);
        let engine = Engine::format(device, MemIndex::new(), identity, options).unwrap();
        let store = Store::start(engine, Some(room));
        commit_until(&store, true);
        free.store(0, Ordering::Relaxed);
        commit_until(&store, false);
        assert_eq!(store.usage().live_bytes_limit, store.usage().live_bytes);
        let c = CollectionId { pool: 1, seed: 0 };
        store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c }] }).unwrap();
        free.store(1 << 30, Ordering::Relaxed);
        commit_until(&store, true);
    }

    #[test]
    fn the_index_has_its_room_looked_at_before_a_store_is_found_lost() {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: ClusterId([1; 16]), disk: DiskUuid([2; 16]), osd: OsdId(3) };
        let options = Options { segment_bytes: 4 << 20, ..Options::default() };
        let config = StoreConfig { options, ..StoreConfig::in_directory(directory.path()) };
        Store::format(&config, identity, 64 << 20).unwrap().close().unwrap();
        // What a crash left of the room; nobody needs it any more, and it is room for the note that the store is lost.
        let room = directory.path().join("index-room");
        std::fs::write(&room, vec![1; 64 << 10]).unwrap();
        std::fs::write(directory.path().join("index-damaged"), "a test").unwrap();
        assert!(matches!(Store::open(&config), Err(OpenError::IndexDamaged { .. })));
        assert_ne!(std::fs::metadata(&room).unwrap().len(), 64 << 10);
    }
}
