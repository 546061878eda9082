//! Taking up what a disk holds, at the start of a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_map::ClusterMap;
use holdfast_pg::{Limits, LoadError, Pg, ReadError};
use holdfast_store::{Device, Engine, Index};
use holdfast_types::{ClusterId, Epoch, Incarnation, OsdId, PgId, PoolId, Timestamp};

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

    /// The oldest map that has the pool.
    fn with_pool(&self, pool: PoolId) -> Option<&Arc<ClusterMap>> {
        self.all().find(|map| map.pools.contains_key(&pool))
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
                let Some(map) = maps.with_pool(pg.pool) else {
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
