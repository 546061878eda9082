//! Taking up what a disk holds, at the start of a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_map::ClusterMap;
use holdfast_pg::{Limits, LoadError, Pg, ReadError};
use holdfast_store::{Device, Engine, Index};
use holdfast_types::{Epoch, Incarnation, OsdId, PgId, PoolId};

use crate::local::{Local, pg_of};
use crate::space::PeerSpace;

/// The maps that a run begins with.
#[derive(Debug)]
pub struct CaughtUp {
    /// The oldest that any placement group must be fed from; the empty map on a new disk.
    pub start: Arc<ClusterMap>,
    /// All that follow it, up to the monitors' newest.
    pub later: Vec<Arc<ClusterMap>>,
}

impl CaughtUp {
    /// The oldest map that has the pool.
    fn with_pool(&self, pool: PoolId) -> Option<&Arc<ClusterMap>> {
        std::iter::once(&self.start).chain(&self.later).find(|map| map.pools.contains_key(&pool))
    }

    /// The monitors' newest.
    #[must_use]
    pub fn newest(&self) -> &Arc<ClusterMap> {
        self.later.last().unwrap_or(&self.start)
    }

    /// The map of this epoch, or the first later one at hand.
    fn from(&self, epoch: Epoch) -> &Arc<ClusterMap> {
        if self.start.epoch >= epoch {
            return &self.start;
        }
        self.later.iter().find(|map| map.epoch >= epoch).unwrap_or_else(|| self.newest())
    }
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
    let space = PeerSpace::default();
    for pg in engine.collections().into_iter().filter_map(pg_of) {
        let view = Local::new(engine, pg, &space);
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
