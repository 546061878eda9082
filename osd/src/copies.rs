//! Taking up what a disk holds, at the start of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_map::ClusterMap;
use holdfast_pg::{Limits, LoadError, Pg, ReadError};
use holdfast_store::{Device, Engine, Index};
use holdfast_types::{ClusterId, Epoch, Incarnation, OsdId, PgId, Timestamp};

use crate::daemon::OsdError;
use crate::leases::Leases;
use crate::local::{Local, pg_of, stored_maps};
use crate::space::PeerSpace;

/// The maps that a run begins with.
#[derive(Debug)]
pub struct CaughtUp {
    /// The oldest that any placement group must be fed from; the empty map where there is none.
    pub start: Arc<ClusterMap>,
    /// Those that follow it and are kept already.
    pub kept: Vec<Arc<ClusterMap>>,
    /// Those that follow them, up to the monitors' newest.
    pub new: Vec<Arc<ClusterMap>>,
}

impl CaughtUp {
    fn all(&self) -> impl Iterator<Item = &Arc<ClusterMap>> {
        std::iter::once(&self.start).chain(&self.kept).chain(&self.new)
    }

    /// The oldest map that has the placement group. One that was split off does not begin with its pool: before the split
    /// nobody was its member, and a copy that knew that would know no others who may have written.
    fn with_pg(&self, pg: PgId) -> Option<&Arc<ClusterMap>> {
        self.all().find(|map| map.pools.get(&pg.pool).is_some_and(|pool| pg.seed < pool.pg_num))
    }

    /// The newest of them.
    #[must_use]
    pub fn newest(&self) -> &Arc<ClusterMap> {
        self.new.last().or(self.kept.last()).unwrap_or(&self.start)
    }

    /// The map of this epoch, or the first later one at hand.
    fn from(&self, epoch: Epoch) -> &Arc<ClusterMap> {
        self.all().find(|map| map.epoch >= epoch).unwrap_or_else(|| self.newest())
    }
}

/// The oldest epoch that a copy on this disk was left at; `None` without one. A copy whose epoch cannot be read is not taken
/// up, and needs none.
pub(crate) fn least_epoch<D: Device, I: Index>(engine: &Engine<D, I>) -> Option<Epoch> {
    let (space, leases) = (PeerSpace::default(), Leases::new(Timestamp::ZERO));
    let pgs = engine.collections().into_iter().filter_map(pg_of);
    pgs.filter_map(|pg| Pg::stored_epoch(&Local::new(engine, pg, &space, &leases)).ok().flatten()).min()
}

/// The kept maps from the one on that the oldest copy was left at. Each map costs the placement of all placement groups, at
/// each start and each time that the daemon comes back: those before are not looked at. Who has no copies begins with the
/// monitors' newest.
///
/// # Errors
/// The store cannot read them, or one is none.
pub fn needed_maps<D: Device, I: Index>(engine: &Engine<D, I>, cluster: ClusterId) -> Result<CaughtUp, OsdError> {
    kept_maps(engine, least_epoch(engine), cluster)
}

pub(crate) fn kept_maps<D: Device, I: Index>(
    engine: &Engine<D, I>,
    least: Option<Epoch>,
    cluster: ClusterId,
) -> Result<CaughtUp, OsdError> {
    let mut encoded = Vec::new();
    if let Some(least) = least {
        encoded = stored_maps(engine, least)?;
        if encoded.is_empty() {
            encoded = stored_maps(engine, Epoch::ZERO)?;
        }
    }
    let mut kept = Vec::with_capacity(encoded.len());
    for bytes in encoded {
        kept.push(Arc::new(ClusterMap::decode_full(&bytes).map_err(|error| OsdError::Map(error.into()))?));
    }
    let start = if kept.is_empty() { Arc::new(ClusterMap::empty(cluster)) } else { kept.remove(0) };
    Ok(CaughtUp { start, kept, new: Vec::new() })
}

/// What came of the copies on a disk.
#[derive(Debug, Default)]
pub struct TakenUp {
    /// The placement groups, each as of the map that it last recorded. Those in `lost` begin anew, as lost copies.
    pub pgs: BTreeMap<PgId, Pg>,
    /// Copies that cannot be used.
    pub lost: Vec<(PgId, LoadError)>,
    /// Copies that cannot be used, of pools that were deleted: they are to be removed.
    pub deleted: Vec<PgId>,
}

/// Whether a placement group that has no copy here may have been split off one of these copies, which could not be used: the
/// run may begin at a map after the split, and then nothing else tells that the copy held its objects. Placement groups that
/// were never split off it may be among them; they are then filled like ones that have lost something.
#[must_use]
pub fn may_be_part_of(lost: &BTreeSet<PgId>, pg: PgId) -> bool {
    let mut seed = pg.seed;
    while let Some(highest) = seed.checked_ilog2() {
        // Who was split held the objects of this seed without its highest bit.
        seed &= !(1 << highest);
        if lost.contains(&PgId { pool: pg.pool, seed }) {
            return true;
        }
    }
    false
}

/// Takes up the placement groups that the store has copies of.
///
/// # Errors
/// The device, not what is on it, has failed: a person must look.
pub fn take_up<D: Device, I: Index>(
    engine: &Engine<D, I>,
    whoami: OsdId,
    incarnation: Incarnation,
    maps: &CaughtUp,
    limits: Limits,
) -> Result<TakenUp, (PgId, LoadError)> {
    let mut taken = TakenUp::default();
    let (space, leases) = (PeerSpace::default(), Leases::new(Timestamp::ZERO));
    for pg in engine.collections().into_iter().filter_map(pg_of) {
        let view = Local::new(engine, pg, &space, &leases);
        let load = || {
            let map = maps.from(Pg::stored_epoch(&view)?.unwrap_or(Epoch::ZERO)).clone();
            Pg::load(pg, whoami, incarnation, map, limits, &view)
        };
        let pg_taken = match load() {
            Ok(loaded) => loaded,
            Err(source @ LoadError::Read(ReadError::Device { .. })) => return Err((pg, source)),
            Err(error) => {
                taken.lost.push((pg, error));
                let Some(map) = maps.with_pg(pg) else {
                    // Without a pool there is nothing to fill it from. Only a pool that was deleted is no loss.
                    if maps.newest().is_deleted(pg.pool) {
                        taken.deleted.push(pg);
                    }
                    continue;
                };
                Pg::create_lost(pg, whoami, incarnation, map.clone(), limits, true)
            }
        };
        taken.pgs.insert(pg, pg_taken);
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use holdfast_map::{Pool, PoolKind};
    use holdfast_store::{Identity, Options, Store, StoreConfig, Transaction, TxOp};
    use holdfast_types::{DiskUuid, PoolId};

    use super::*;
    use crate::local::collection_of;

    const POOL: PoolId = PoolId(1);

    /// A pool of one placement group, which epoch 5 splits in two.
    fn map(cluster: ClusterId, epoch: u64) -> Arc<ClusterMap> {
        let mut map = ClusterMap::empty(cluster);
        let kind = PoolKind::Replicated { size: 3, min_size: 2 };
        let (name, application) = ("pool".to_owned(), "test".to_owned());
        map.pools.insert(POOL, Pool { name, kind, pg_num: 1, rule: 0, created: Epoch(1), application });
        map.next_pool = PoolId(2);
        map.epoch = Epoch(epoch);
        if epoch >= 5 {
            assert!(map.split_pool(POOL, 2));
        }
        Arc::new(map)
    }

    #[test]
    fn a_lost_copy_that_was_split_off_begins_at_its_split_and_not_with_its_pool() {
        let directory = tempfile::tempdir().expect("a directory");
        let cluster = ClusterId([7; 16]);
        let options = Options { segment_bytes: 4 << 20, ..Options::default() };
        let config = StoreConfig { memory_target: 16 << 20, options, ..StoreConfig::in_directory(directory.path()) };
        let identity = Identity { cluster, disk: DiskUuid([1; 16]), osd: OsdId(0) };
        let store = Store::format(&config, identity, 64 << 20).expect("a store");
        let (parent, child) = (PgId { pool: POOL, seed: 0 }, PgId { pool: POOL, seed: 1 });
        for pg in [parent, child] {
            let c = collection_of(pg);
            let spoilt = TxOp::PutMeta { c, key: b"i".to_vec(), value: bytes::Bytes::from_static(b"spoilt") };
            let ops = vec![TxOp::CreateCollection { c }, spoilt];
            store.submit_and_wait(Transaction { ops }).expect("written");
        }
        let maps = CaughtUp {
            start: map(cluster, 1),
            kept: (2..=4).map(|epoch| map(cluster, epoch)).collect(),
            new: (5..=7).map(|epoch| map(cluster, epoch)).collect(),
        };
        let taken = take_up(store.engine(), OsdId(0), Incarnation(2), &maps, Limits::default()).expect("taken up");
        assert_eq!(taken.lost.len(), 2);
        // From then on it knows who may have written; of what was before it must hear from the others.
        let begins = |pg| taken.pgs.get(&pg).map(Pg::epoch);
        assert_eq!((begins(parent), begins(child)), (Some(Epoch(1)), Some(Epoch(5))));
        assert!(begins(child) > Some(Epoch(1)), "it does not know all since the pool was made");
    }

    #[test]
    fn what_was_split_off_a_lost_copy_may_be_lost_over_several_splits() {
        let pg = |seed| PgId { pool: POOL, seed };
        let lost = BTreeSet::from([pg(3), PgId { pool: PoolId(2), seed: 0 }]);
        assert!([7, 11, 15, 19].into_iter().all(|seed| may_be_part_of(&lost, pg(seed))));
        assert!([0, 1, 2, 3, 4, 5, 9].into_iter().all(|seed| !may_be_part_of(&lost, pg(seed))));
    }
}
