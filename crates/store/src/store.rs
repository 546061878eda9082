//! The engine with threads of its own: one commits, one looks after the index and the space.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use holdfast_types::{ClusterId, DiskUuid, OsdId};
use parking_lot::{Condvar, Mutex};

use crate::device::FileDevice;
use crate::engine::{Engine, EngineOptions, Identity};
use crate::error::{CommitError, OpenError, ReadError, SubmitError};
use crate::read::{ObjectInfo, RowsPage, Usage};
use crate::rocks_index::RocksIndex;
use crate::txn::{CollectionId, ObjectKey, Transaction};

/// Bytes of records that may wait for the device: a submitter waits while there are more.
const QUEUE_BYTES_MAX: u64 = 32 << 20;
/// Log that an opening may have to apply again, in bytes: about 0.2 s of reading.
const UNPERSISTED_BYTES_MAX: u64 = 64 << 20;
/// How often space is looked after when nothing else wakes the keeper.
const KEEPER_INTERVAL: Duration = Duration::from_secs(5);

/// Told when a transaction is durable, or never will be.
type OnDurable = Box<dyn FnOnce(Result<(), Arc<CommitError>>) + Send>;
type FileEngine = Engine<FileDevice, RocksIndex>;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The device: a block device or a file.
    pub device: PathBuf,
    /// Directory of the index.
    pub index_dir: PathBuf,
    /// Size of the device file when it is made, in bytes.
    pub capacity_bytes: u64,
    /// Size of a segment at the first formatting, in bytes.
    pub segment_bytes: u64,
    /// Memory for the index and the queues, in bytes.
    pub memory_target: u64,
    /// Whose disk it is.
    pub cluster: ClusterId,
    /// The disk.
    pub disk: DiskUuid,
    /// Its OSD.
    pub osd: OsdId,
}

struct Waiting {
    callbacks: VecDeque<OnDurable>,
    stop: bool,
}

struct Shared {
    engine: FileEngine,
    waiting: Mutex<Waiting>,
    /// Something waits for a commit, or the store is to stop.
    work: Condvar,
    /// A commit has ended: there is room again.
    room: Condvar,
    keeper_stop: Mutex<bool>,
    keeper_wake: Condvar,
}

/// A store with its threads; clones share it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store, or makes it when the device is new.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_or_format(options: &StoreOptions) -> Result<Store, OpenError> {
        let io = |path: &std::path::Path| {
            let path = path.display().to_string();
            move |source| OpenError::Io { path, source }
        };
        if let Some(parent) = options.device.parent() {
            std::fs::create_dir_all(parent).map_err(io(parent))?;
        }
        let formatted = options.index_dir.join("formatted");
        let device = FileDevice::open(&options.device, options.capacity_bytes).map_err(io(&options.device))?;
        let segment_bytes = u32::try_from(options.segment_bytes)
            .map_err(|_| OpenError::Unusable { reason: "segments of 4 GiB or more".to_owned() })?;
        let identity = Identity { cluster: options.cluster, disk: options.disk, osd: options.osd };
        let engine_options = EngineOptions { identity, segment_bytes };
        let is_new = !formatted.exists();
        if is_new && options.index_dir.exists() {
            std::fs::remove_dir_all(&options.index_dir).map_err(io(&options.index_dir))?;
        }
        let index = RocksIndex::open(&options.index_dir, options.memory_target)?;
        let engine = if is_new {
            let engine = Engine::format(device, index, &engine_options)?;
            let file = std::fs::File::create(&formatted).map_err(io(&formatted))?;
            file.sync_all().map_err(io(&formatted))?;
            engine
        } else {
            Engine::open(device, index, &engine_options)?
        };
        Ok(Store::start(engine))
    }

    fn start(engine: FileEngine) -> Store {
        let shared = Arc::new(Shared {
            engine,
            waiting: Mutex::new(Waiting { callbacks: VecDeque::new(), stop: false }),
            work: Condvar::new(),
            room: Condvar::new(),
            keeper_stop: Mutex::new(false),
            keeper_wake: Condvar::new(),
        });
        let committer = shared.clone();
        let keeper = shared.clone();
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(body).expect("the system gives a thread")
        };
        let threads = vec![
            spawn("store-commit", Box::new(move || commit_loop(&committer))),
            spawn("store-keeper", Box::new(move || keep_loop(&keeper))),
        ];
        Store { shared, threads: Arc::new(Mutex::new(threads)) }
    }

    /// Takes a transaction, visible to reads at once; `on_durable` is called in the order of submission, from the
    /// commit thread, which it must not hold up. Waits while too much is queued.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing has changed then and `on_durable` is not called.
    pub fn submit(
        &self,
        transaction: Transaction,
        on_durable: impl FnOnce(Result<(), Arc<CommitError>>) + Send + 'static,
    ) -> Result<(), SubmitError> {
        let mut waiting = self.shared.waiting.lock();
        while self.shared.engine.queue_bytes() > QUEUE_BYTES_MAX && !waiting.stop {
            self.shared.room.wait(&mut waiting);
        }
        match self.shared.engine.submit(transaction) {
            Ok(_) => {
                waiting.callbacks.push_back(Box::new(on_durable));
                self.shared.work.notify_one();
                Ok(())
            }
            Err(error) => {
                if matches!(error, SubmitError::Full { .. }) {
                    self.shared.keeper_wake.notify_one();
                }
                Err(error)
            }
        }
    }

    /// Makes everything durable and ends the threads. Other clones can no longer submit.
    pub fn close(&self) {
        self.shared.waiting.lock().stop = true;
        self.shared.work.notify_all();
        *self.shared.keeper_stop.lock() = true;
        self.shared.keeper_wake.notify_all();
        for thread in self.threads.lock().drain(..) {
            // A thread that panicked has said why.
            let _ = thread.join();
        }
        if let Err(error) = self.shared.engine.flush_index() {
            tracing::warn!(%error, "the index was not flushed; the next start applies the log again");
        }
    }

    /// See [`Engine::stat`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn stat(&self, c: CollectionId, o: &ObjectKey) -> Result<Option<ObjectInfo>, ReadError> {
        self.shared.engine.stat(c, o)
    }

    /// See [`Engine::read`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, c: CollectionId, o: &ObjectKey, offset: u64, length: u64) -> Result<Bytes, ReadError> {
        self.shared.engine.read(c, o, offset, length)
    }

    /// See [`Engine::attr`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn attr(&self, c: CollectionId, o: &ObjectKey, name: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.shared.engine.attr(c, o, name)
    }

    /// See [`Engine::attrs`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn attrs(&self, c: CollectionId, o: &ObjectKey) -> Result<Vec<(Vec<u8>, Bytes)>, ReadError> {
        self.shared.engine.attrs(c, o)
    }

    /// See [`Engine::rows_get`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn rows_get(&self, c: CollectionId, o: &ObjectKey, names: &[&[u8]]) -> Result<Vec<Option<Bytes>>, ReadError> {
        self.shared.engine.rows_get(c, o, names)
    }

    /// See [`Engine::rows_scan`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn rows_scan(
        &self,
        c: CollectionId,
        o: &ObjectKey,
        start: &[u8],
        end: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<RowsPage, ReadError> {
        self.shared.engine.rows_scan(c, o, start, end, limit_rows, limit_bytes)
    }

    /// See [`Engine::list_objects`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn list_objects(
        &self,
        c: CollectionId,
        after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<ObjectKey>, ReadError> {
        self.shared.engine.list_objects(c, after, limit)
    }

    /// See [`Engine::meta_get`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn meta_get(&self, c: CollectionId, name: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.shared.engine.meta_get(c, name)
    }

    /// See [`Engine::meta_scan`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn meta_scan(
        &self,
        c: CollectionId,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, ReadError> {
        self.shared.engine.meta_scan(c, start, end, limit)
    }

    /// See [`Engine::collections`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn collections(&self) -> Result<Vec<CollectionId>, ReadError> {
        self.shared.engine.collections()
    }

    /// See [`Engine::usage`].
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.shared.engine.usage()
    }
}

fn commit_loop(shared: &Shared) {
    loop {
        let callbacks = {
            let mut waiting = shared.waiting.lock();
            while waiting.callbacks.is_empty() && !waiting.stop {
                shared.work.wait(&mut waiting);
            }
            if waiting.callbacks.is_empty() {
                return;
            }
            // Whoever submitted holds a callback here: the group that is cut now has at least all of these.
            std::mem::take(&mut waiting.callbacks)
        };
        let outcome = shared.engine.commit().map(|_| ());
        shared.room.notify_all();
        if shared.engine.unpersisted_bytes() > UNPERSISTED_BYTES_MAX {
            shared.keeper_wake.notify_one();
        }
        for callback in callbacks {
            callback(outcome.clone());
        }
    }
}

fn keep_loop(shared: &Shared) {
    loop {
        {
            let mut stop = shared.keeper_stop.lock();
            if *stop {
                return;
            }
            shared.keeper_wake.wait_for(&mut stop, KEEPER_INTERVAL);
            if *stop {
                return;
            }
        }
        if shared.engine.unpersisted_bytes() > 0
            && let Err(error) = shared.engine.flush_index()
        {
            tracing::error!(%error, "the index cannot be flushed");
        }
    }
}
