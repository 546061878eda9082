//! One OSD's disk: the production store engine over a device and an index in memory that fail as real ones do.
//!
//! The engine has no threads and no clock; its commits and its maintenance are events of the simulation. A crash keeps, loses
//! or tears each un-synced sector alone, cuts a commit short at any of its IOs, and takes the index back to any state that
//! RocksDB may leave behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_map::ClusterMap;
use holdfast_osd::parts::{
    Leases, Local, OWN_COLLECTION, PeerSpace, collection_of, map_transactions, own_collection, pg_of, to_transaction,
};
use holdfast_pg::{LocalObjects, ObjectKey, StoreOp, TxnId, version_held};
use holdfast_store::{
    CleanError, CollectionId, Engine, Fault, Identity, Lie, MemDevice, MemIndex, OnDurable, OpenError, Options,
    ReadError, SubmitError, Transaction, TxOp,
};
use holdfast_types::{ClusterId, DiskUuid, Incarnation, LogVersion, OsdId, PgId, Timestamp};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::faults::FaultKind;

/// The engine of a simulated OSD.
pub(crate) type SimEngine = Engine<MemDevice, MemIndex>;

/// The cluster of all simulations.
pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Room of the superblocks.
const SUPERBLOCK_BYTES: u64 = 128 << 10;
/// Small, so that the log goes round many times in a run.
const SEGMENT_BYTES: u32 = 64 << 10;
/// Bytes that one cleaning step moves.
const CLEAN_STEP_BYTES: u64 = 16 << 10;
/// Cleaning steps of one submit that finds no room, as in the production store.
const SPACE_WAITS_MAX: u32 = 64;

/// Bytes of one write of what fills a disk for a while.
const FILL_BYTES: usize = 16 << 10;

/// The object that fills a disk for a while.
fn filler() -> holdfast_store::ObjectKey {
    holdfast_store::ObjectKey::new(b"filler".to_vec()).expect("a short key is one")
}

fn options() -> Options {
    Options {
        segment_bytes: SEGMENT_BYTES,
        sector_bytes: 512,
        checksum_block_bytes: 512,
        reserve_percent: 2,
        index_flush_bytes: 96 << 10,
        onode_cache_bytes: 1 << 20,
    }
}

/// What came of taking away what filled a disk for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emptied {
    /// There was nothing.
    Before,
    Now,
    /// It is still there.
    Refused,
}

/// A transaction that became durable, and in which run it was submitted.
#[derive(Debug, Clone, Copy)]
struct Told {
    run: Incarnation,
    pg: PgId,
    txn: TxnId,
}

/// What a crash did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Damage {
    pub sectors: u64,
    pub torn: u64,
}

/// One OSD's disk.
#[derive(Debug)]
pub(crate) struct Disk {
    device: MemDevice,
    index: MemIndex,
    /// `None` between a crash and the next start of the process.
    engine: Option<SimEngine>,
    durable: Arc<Mutex<Vec<Told>>>,
    /// The last position that a process submitted.
    submitted: u64,
    /// Bits flipped in it, and lies that were planned.
    pub flips: u64,
}

impl Disk {
    /// A new disk of `segments` segments, in its `life`th life.
    pub fn format(osd: OsdId, life: u8, segments: u32) -> Result<Disk, String> {
        let mut disk = [osd.0 as u8; 16];
        disk[0] = 0x5a;
        disk[15] = life;
        let identity = Identity { cluster: CLUSTER, disk: DiskUuid(disk), osd };
        let device = MemDevice::new(SUPERBLOCK_BYTES + u64::from(segments) * u64::from(SEGMENT_BYTES));
        let index = MemIndex::new();
        let engine = Engine::format(device.clone(), index.clone(), identity, options());
        let engine = engine.map_err(|error| format!("{osd} cannot format its disk: {error}"))?;
        let disk = Disk { device, index, engine: Some(engine), durable: Arc::default(), submitted: 0, flips: 0 };
        if let Some(transaction) = own_collection(&disk.engine().collections()) {
            disk.engine().submit(transaction).map_err(|error| format!("{osd} cannot begin: {error}"))?;
            disk.engine().commit().map_err(|error| format!("{osd} cannot begin: {error}"))?;
        }
        Ok(disk)
    }

    /// The engine of the running process.
    pub fn engine(&self) -> &SimEngine {
        self.engine.as_ref().expect("the process runs, so its store is open")
    }

    pub fn is_open(&self) -> bool {
        self.engine.is_some()
    }

    /// Takes a placement group's transaction, as the daemon's shell does.
    pub fn submit(&self, run: Incarnation, pg: PgId, txn: TxnId, ops: Vec<StoreOp>) -> Result<(), SubmitError> {
        let transaction = to_transaction(self.engine(), pg, ops);
        let durable = Arc::clone(&self.durable);
        let told: OnDurable = Box::new(move |result| {
            if result.is_ok() {
                durable.lock().push(Told { run, pg, txn });
            }
        });
        self.submit_then(&transaction, Some(told))
    }

    /// Keeps a map, as the daemon's shell does.
    pub fn keep_map(&self, map: &ClusterMap) -> Result<(), SubmitError> {
        map_transactions(map).iter().try_for_each(|transaction| self.submit_then(transaction, None))
    }

    fn submit_then(&self, transaction: &Transaction, mut told: Option<OnDurable>) -> Result<(), SubmitError> {
        let mut waits = 0;
        loop {
            match self.engine().submit_then(transaction, &mut told) {
                Ok(_) => return Ok(()),
                Err(SubmitError::NoSpace { cleaning_helps: true, .. }) if waits < SPACE_WAITS_MAX => {
                    waits += 1;
                    // The store's own threads would do this while the shard waits.
                    if self.engine().commit().is_err() || self.engine().clean_step(CLEAN_STEP_BYTES).is_err() {
                        waits = SPACE_WAITS_MAX;
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether something waits for a commit, or to be told.
    pub fn has_waiting(&self) -> bool {
        self.engine().pending_bytes() > 0 || !self.durable.lock().is_empty()
    }

    /// Makes durable what waits; gives, for each placement group of this run, the newest of its transactions.
    pub fn commit(&mut self, run: Incarnation) -> Result<BTreeMap<PgId, TxnId>, String> {
        self.engine().commit().map_err(|error| error.to_string())?;
        let told = std::mem::take(&mut *self.durable.lock());
        Ok(told.into_iter().filter(|told| told.run == run).map(|told| (told.pg, told.txn)).collect())
    }

    /// What the store's maintenance thread does; gives the segments that cleaning freed.
    pub fn maintain(&self) -> Result<u64, String> {
        let engine = self.engine();
        let mut freed = 0;
        if engine.wants_index_flush() {
            engine.flush_index().map_err(|error| error.to_string())?;
        }
        while engine.wants_cleaning() {
            let progress = match engine.clean_step(CLEAN_STEP_BYTES) {
                // Only while the file system is full.
                Err(CleanError::Submit(SubmitError::NoSpace { .. })) if self.device.has_no_blocks() => break,
                step => step.map_err(|error| error.to_string())?,
            };
            freed += progress.freed_segments;
            if !progress.more || (progress.moved_bytes == 0 && progress.freed_segments == 0) {
                break;
            }
        }
        Ok(freed)
    }

    pub fn wants_maintenance(&self) -> bool {
        self.engine().wants_index_flush() || self.engine().wants_cleaning()
    }

    /// The process ends now, in the middle of whatever it does; with `power` the device loses what was not synced.
    pub fn crash(&mut self, rng: &mut SmallRng, power: bool) -> Damage {
        let Some(engine) = self.engine.take() else {
            // The power fails while the process is not running: what it had not synced was still in the page cache.
            if power {
                self.device = self.device.crash(rng);
            }
            return self.damage();
        };
        self.submitted = engine.submitted_position().0;
        if engine.pending_bytes() > 0 && rng.random_bool(0.9) {
            // In the middle of a commit: at one of its writes, at its sync, or just after it.
            self.device.plan(self.device.io_count() + rng.random_range(0..4), Fault::Crash);
            let _cut_short = engine.commit();
        }
        self.index = self.index.crash(rng);
        self.device = if power { self.device.crash(rng) } else { self.device.end_process() };
        self.durable.lock().clear();
        self.damage()
    }

    /// What the crash that left this device did to it.
    fn damage(&self) -> Damage {
        let stats = self.device.stats();
        Damage { sectors: stats.sectors_lost, torn: stats.sectors_torn }
    }

    /// Lets the next commit fail at its write or at its sync, if something waits for one. Gives whether it did.
    pub fn fail_commit(&mut self, rng: &mut SmallRng) -> bool {
        if self.engine.is_none() || self.engine().pending_bytes() == 0 {
            return false;
        }
        self.device.plan(self.device.io_count() + rng.random_range(0..2), Fault::Eio);
        self.engine().commit().is_err()
    }

    /// Opens the store as a starting process does; gives how many transactions the crash before cost.
    pub fn open(&mut self) -> Result<u64, OpenError> {
        if self.engine.is_some() {
            return Ok(0);
        }
        let engine = Engine::open(self.device.clone(), self.index.clone(), options())?;
        let recovered = engine.submitted_position().0;
        self.engine = Some(engine);
        Ok(self.submitted.saturating_sub(recovered))
    }

    /// The placement groups with a collection.
    pub fn pgs(&self) -> Vec<PgId> {
        self.engine().collections().into_iter().filter_map(pg_of).collect()
    }

    /// Spoils something: what is known of an object, or one bit, as often as not in the bytes of a live object.
    pub fn rot(&mut self, rng: &mut SmallRng) -> FaultKind {
        if rng.random_bool(0.3)
            && let Some(row) = self.some_onode(rng)
        {
            self.index.spoil(&row);
            self.flips += 1;
            return FaultKind::OnodeSpoiled;
        }
        let live = rng.random_bool(0.5).then(|| self.live_range(rng)).flatten();
        let range = live.unwrap_or(0..SUPERBLOCK_BYTES + self.log_bytes());
        let at = rng.random_range(range);
        self.device.flip(at, rng.random_range(0..8));
        self.flips += 1;
        FaultKind::BitFlipped
    }

    /// The device does not do the next thing of this kind that it says it does: with a place, as often as not, where bytes of a
    /// live object are.
    pub fn lie(&mut self, kind: FaultKind, rng: &mut SmallRng) {
        let live = rng.random_bool(0.5).then(|| self.live_range(rng)).flatten();
        let place = rng.random_range(live.unwrap_or(0..SUPERBLOCK_BYTES + self.log_bytes()));
        self.device.lie(match kind {
            FaultKind::WriteDropped => Lie::WriteDropped,
            FaultKind::WriteMisdirected => Lie::WriteMisdirected { to: place },
            FaultKind::ReadMisdirected => Lie::ReadMisdirected { to: place },
            _ => Lie::SyncsDropped,
        });
        self.flips += 1;
    }

    /// From now on the device does what it says.
    pub fn lie_no_more(&self) {
        self.device.lie_no_more();
    }

    /// The lies told since this was asked last.
    pub fn lies_told(&self) -> Vec<Lie> {
        self.device.lies_told()
    }

    /// Makes a sector with bytes of an object unreadable. Gives whether there is one.
    pub fn spoil(&mut self, rng: &mut SmallRng) -> bool {
        let Some(at) = self.live_range(rng).map(|live| rng.random_range(live)) else { return false };
        self.device.spoil(at);
        self.flips += 1;
        true
    }

    /// The position of what was submitted last.
    pub fn submitted_position(&self) -> u64 {
        self.engine().submitted_position().0
    }

    /// Up to this position all is durable.
    pub fn durable_position(&self) -> u64 {
        self.engine().durable_position().0
    }

    /// The objects of a placement group.
    pub fn keys_of(&self, pg: PgId) -> Vec<ObjectKey> {
        let (space, leases) = (PeerSpace::default(), Leases::new(Timestamp::ZERO));
        let view = self.engine.as_ref().map(|engine| Local::new(engine, pg, &space, &leases));
        view.and_then(|view| view.list_objects(None, usize::MAX).ok()).unwrap_or_default()
    }

    /// The version of an object that is here.
    pub fn version_of(&self, pg: PgId, key: &ObjectKey) -> Option<LogVersion> {
        let (space, leases) = (PeerSpace::default(), Leases::new(Timestamp::ZERO));
        let engine = self.engine.as_ref()?;
        version_held(&Local::new(engine, pg, &space, &leases), key)
    }

    /// All objects of a copy, and the version of each.
    pub fn versions(&self, pg: PgId) -> Result<BTreeMap<ObjectKey, Option<LogVersion>>, holdfast_pg::ReadError> {
        let (space, leases) = (PeerSpace::default(), Leases::new(Timestamp::ZERO));
        let view = Local::new(self.engine(), pg, &space, &leases);
        let keys = view.list_objects(None, usize::MAX)?;
        Ok(keys.into_iter().map(|key| (key.clone(), version_held(&view, &key))).collect())
    }

    /// Whether a sector with bytes of an object cannot be read.
    pub fn has_bad_sector(&self, pg: PgId, key: &ObjectKey) -> bool {
        let Ok(object) = holdfast_store::ObjectKey::new(key.as_bytes().to_vec()) else { return false };
        let verified = self.engine.as_ref().map(|engine| engine.verify_object(collection_of(pg), &object));
        let bad = verified.into_iter().flatten().flat_map(|verified| verified.bad);
        bad.into_iter().any(|bad| matches!(bad.error, ReadError::Device { .. }))
    }

    fn objects(&self) -> Vec<(CollectionId, holdfast_store::ObjectKey)> {
        let pgs = self.engine().collections().into_iter().filter(|collection| pg_of(*collection).is_some());
        let listed = |c| self.engine().list_objects(c, None, usize::MAX).unwrap_or_default();
        pgs.flat_map(|c| listed(c).into_iter().map(move |object| (c, object))).collect()
    }

    fn some_onode(&self, rng: &mut SmallRng) -> Option<Bytes> {
        let objects = self.objects();
        let (collection, object) = objects.get(rng.random_range(0..objects.len().max(1)))?;
        Some(SimEngine::onode_row(*collection, object))
    }

    /// Lets something else fill the device, up to this share of what objects may take. Gives whether there was room for that.
    pub fn fill(&self, percent: u64) -> bool {
        let (live, limit) = self.engine().live_bytes();
        let bytes = (limit * percent / 100).saturating_sub(live);
        let whole = |offset| Transaction {
            ops: vec![TxOp::Write { c: OWN_COLLECTION, o: filler(), offset, data: vec![0x55; FILL_BYTES].into() }],
        };
        let offsets = (0..bytes / FILL_BYTES as u64).map(|chunk| chunk * FILL_BYTES as u64);
        bytes > 0 && offsets.map(whole).all(|transaction| self.submit_then(&transaction, None).is_ok())
    }

    /// Has the file system that the device is a file of be full, or not.
    pub fn set_no_blocks(&self, no_blocks: bool) {
        self.device.set_no_blocks(no_blocks);
    }

    /// Takes away what [`Disk::fill`] wrote.
    pub fn empty(&self) -> Emptied {
        let remove = Transaction { ops: vec![TxOp::Remove { c: OWN_COLLECTION, o: filler() }] };
        match self.engine().stat(OWN_COLLECTION, &filler()) {
            Ok(None) => Emptied::Before,
            Ok(Some(_)) if self.submit_then(&remove, None).is_ok() => Emptied::Now,
            Ok(Some(_)) | Err(_) => Emptied::Refused,
        }
    }

    fn log_bytes(&self) -> u64 {
        u64::from(self.engine().superblock().segment_count) * u64::from(SEGMENT_BYTES)
    }

    fn live_range(&self, rng: &mut SmallRng) -> Option<std::ops::Range<u64>> {
        let mut places = Vec::new();
        for (collection, object) in self.objects() {
            places.extend(self.engine().stored_at(collection, &object).unwrap_or_default());
        }
        places.retain(|range| !range.is_empty());
        if places.is_empty() { None } else { Some(places.swap_remove(rng.random_range(0..places.len()))) }
    }
}
