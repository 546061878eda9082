//! Placement groups that a map splits off, while shards find out who has a copy to split.
//!
//! A parent and its children may belong to different shards. Only the shard of the parent knows whether there is a copy to
//! split, so it is asked by nobody and answers each time: for every child of a map it sends the child, made of its copy, or
//! that it has none. Until then the shard of the child neither makes one of its own (it would say that nothing was ever
//! here) nor goes on to the next map.
//!
//! Invariants: one answer for each child of a map, from whoever has the parent's shard, while it handles that map; answers
//! wait for nothing but earlier maps, so shards cannot wait for each other for ever.
//!
//! **Why a child that is given is never here already.** Its shard makes it in three ways: at the start from the disk, then
//! its collection exists and the split leaves it out ([`leave_known`]); anew when a map is settled, which waits for the
//! answer; and anew when it was removed (`Output::Gone`) or a message asks for it, which is after that. Copies of different
//! age on one disk change nothing of it: a run feeds every map that any copy here has seen and that is still kept, in
//! order, so a copy passes each split that its children on this disk have passed. Should it come about all the same, the
//! run ends without a word of either, and the next takes up what the store has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use holdfast_map::{ClusterMap, split_from};
use holdfast_pg::{Pg, StoreOp};
use holdfast_store::{Device, Engine, Index};
use holdfast_types::{Epoch, PgId};

use crate::local::collection_of;
use crate::shard::MapStep;

/// The placement groups that are new in `next`, each with the one that held its objects in `before`.
#[must_use]
pub fn split_pairs(before: &ClusterMap, next: &ClusterMap) -> Vec<(PgId, PgId)> {
    let mut pairs = Vec::new();
    for (pool, info) in &next.pools {
        let Some(old) = before.pools.get(pool).map(|info| info.pg_num) else { continue };
        pairs.extend((old..info.pg_num).map(|seed| {
            let child = PgId { pool: *pool, seed };
            (split_from(child, old), child)
        }));
    }
    pairs
}

/// Leaves out of a split the children whose collections exist; gives which those are. The parent's copy was given up and
/// begins anew, empty, at an older map than that of the child, which was split off it then.
pub fn leave_known<D: Device, I: Index>(
    engine: &Engine<D, I>,
    ops: &mut Vec<StoreOp>,
    children: &mut Vec<Pg>,
) -> BTreeSet<PgId> {
    let exists = |pg: &PgId| engine.collection_exists(collection_of(*pg));
    let known: BTreeSet<PgId> = children.iter().map(Pg::id).filter(exists).collect();
    children.retain(|child| !known.contains(&child.id()));
    ops.retain(|op| !matches!(op, StoreOp::Split { child, .. } if known.contains(child)));
    known
}

/// What one shard waits for.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    children: BTreeSet<PgId>,
    /// Answered before the map came that the answer is about, in whatever way: what was given may be gone again by then.
    early: BTreeMap<PgId, Epoch>,
    /// Maps that came meanwhile.
    maps: VecDeque<Arc<MapStep>>,
}

impl Awaited {
    /// Before the first map: children of copies that are split first of all.
    pub(crate) fn of(children: BTreeSet<PgId>) -> Awaited {
        Awaited { children, ..Awaited::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    pub(crate) fn contains(&self, pg: PgId) -> bool {
        self.children.contains(&pg)
    }

    /// A map has this child, and no copy of it is here: waits for the answer, unless it has come.
    pub(crate) fn expect(&mut self, child: PgId, epoch: Epoch) {
        if self.early.remove(&child) != Some(epoch) {
            self.children.insert(child);
        }
    }

    /// The answer about a child has come; `present` is the map that this shard is at. True when nothing more is waited for.
    pub(crate) fn answered(&mut self, child: PgId, epoch: Epoch, present: Epoch) -> bool {
        if epoch > present {
            self.early.insert(child, epoch);
        }
        self.children.remove(&child) && self.children.is_empty()
    }

    /// This map's children have been asked for: answers about it, and about earlier ones, are of no use any more.
    pub(crate) fn passed(&mut self, present: Epoch) {
        self.early.retain(|_, epoch| *epoch > present);
    }

    /// Gives the map back, if it may be taken now.
    pub(crate) fn admit(&mut self, step: Arc<MapStep>) -> Option<Arc<MapStep>> {
        if self.is_empty() && self.maps.is_empty() {
            return Some(step);
        }
        self.maps.push_back(step);
        None
    }

    /// The next map that waited, if it may be taken now.
    pub(crate) fn next_map(&mut self) -> Option<Arc<MapStep>> {
        if self.is_empty() { self.maps.pop_front() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_map::ClusterMap;
    use holdfast_types::{ClusterId, PoolId};

    use super::*;

    fn pg(seed: u32) -> PgId {
        PgId { pool: PoolId(1), seed }
    }

    fn step(epoch: u64) -> Arc<MapStep> {
        let mut map = ClusterMap::empty(ClusterId([1; 16]));
        map.epoch = Epoch(epoch);
        MapStep::new(Arc::new(map))
    }

    #[test]
    fn maps_wait_for_all_answers_and_are_taken_in_order() {
        let mut awaited = Awaited::default();
        assert!(awaited.admit(step(5)).is_some(), "nothing is waited for");
        awaited.expect(pg(8), Epoch(5));
        awaited.expect(pg(9), Epoch(5));
        assert!(awaited.admit(step(6)).is_none() && awaited.admit(step(7)).is_none());
        assert!(!awaited.answered(pg(8), Epoch(5), Epoch(5)));
        assert!(awaited.next_map().is_none(), "one is still awaited");
        assert!(awaited.answered(pg(9), Epoch(5), Epoch(5)));
        assert_eq!(awaited.next_map().map(|step| step.map.epoch), Some(Epoch(6)));
        awaited.expect(pg(10), Epoch(6));
        assert!(awaited.next_map().is_none());
        assert!(awaited.answered(pg(10), Epoch(6), Epoch(6)));
        assert_eq!(awaited.next_map().map(|step| step.map.epoch), Some(Epoch(7)));
        assert!(!awaited.answered(pg(10), Epoch(6), Epoch(7)), "an answer too many changes nothing");
    }

    #[test]
    fn an_answer_may_come_before_its_map_and_counts_for_that_map_only() {
        let mut awaited = Awaited::default();
        assert!(!awaited.answered(pg(8), Epoch(6), Epoch(5)));
        awaited.expect(pg(8), Epoch(6));
        assert!(awaited.is_empty(), "it was answered");
        awaited.expect(pg(8), Epoch(9));
        assert!(awaited.contains(pg(8)));
    }

    #[test]
    fn a_child_that_came_early_and_is_gone_again_is_not_waited_for() {
        let mut awaited = Awaited::default();
        awaited.expect(pg(3), Epoch(5));
        assert!(awaited.admit(step(6)).is_none(), "another shard is slow");
        assert!(
            !awaited.answered(pg(8), Epoch(6), Epoch(5)),
            "given early, and removed as a stray before its map is taken"
        );
        assert!(awaited.answered(pg(3), Epoch(5), Epoch(5)));
        assert_eq!(awaited.next_map().map(|step| step.map.epoch), Some(Epoch(6)));
        awaited.expect(pg(8), Epoch(6));
        assert!(awaited.is_empty());
    }

    #[test]
    fn answers_about_maps_that_are_passed_are_forgotten() {
        let mut awaited = Awaited::default();
        for child in 0..100 {
            awaited.answered(pg(child), Epoch(u64::from(child) + 1), Epoch(0));
        }
        awaited.passed(Epoch(99));
        assert_eq!(awaited.early.len(), 1);
    }
}
