//! The maps that this daemon holds: the newest one, and the encoded increments that led to it, for peers that are
//! behind.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_map::{ApplyError, ClusterMap, Increment, MapDecodeError};
use holdfast_types::{ClusterId, Epoch};
use holdfast_wire::mon::MapUpdate;
use minicbor::bytes::ByteVec;

/// Increments kept for peers. A peer further behind asks the monitors.
const INCREMENTS_KEPT: usize = 512;
/// Most increments in one answer to a peer; the rest follows when it asks again.
pub(crate) const INCREMENTS_SHARED_MAX: usize = 64;

/// A map update that cannot be used; the daemon asks for the full map.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapUpdateError {
    /// Bytes that are not a map.
    #[error("a map from the monitors cannot be read")]
    Decode(#[from] MapDecodeError),
    /// It does not follow what this daemon holds.
    #[error("an increment does not apply")]
    Apply(#[from] ApplyError),
    /// It is of another cluster.
    #[error("the map is of cluster {theirs}, this daemon of {ours}")]
    OtherCluster { ours: ClusterId, theirs: ClusterId },
}

/// The newest map and the way to it.
#[derive(Debug)]
pub(crate) struct Maps {
    current: Arc<ClusterMap>,
    increments: VecDeque<(Epoch, Bytes)>,
}

impl Maps {
    pub(crate) fn new(current: Arc<ClusterMap>) -> Maps {
        Maps { current, increments: VecDeque::new() }
    }

    pub(crate) fn current(&self) -> &Arc<ClusterMap> {
        &self.current
    }

    /// Takes what is new in `update`; gives the maps after the present one, in order. What is already held is skipped.
    ///
    /// The maps before one that cannot be used are taken all the same and given beside the error: whoever is fed by this
    /// must get them, since they will not be given again.
    #[must_use = "what was taken is not given again"]
    pub(crate) fn take(&mut self, update: &MapUpdate) -> (Vec<Arc<ClusterMap>>, Result<(), MapUpdateError>) {
        let mut new = Vec::new();
        let result = self.take_into(update, &mut new);
        (new, result)
    }

    fn take_into(&mut self, update: &MapUpdate, new: &mut Vec<Arc<ClusterMap>>) -> Result<(), MapUpdateError> {
        if let Some(bytes) = &update.full {
            let map = ClusterMap::decode_full(bytes)?;
            if map.cluster != self.current.cluster {
                return Err(MapUpdateError::OtherCluster { ours: self.current.cluster, theirs: map.cluster });
            }
            if map.epoch > self.current.epoch {
                self.increments.clear();
                self.current = Arc::new(map);
                new.push(self.current.clone());
            }
        }
        for bytes in &update.increments {
            let increment = Increment::decode(bytes)?;
            if increment.epoch <= self.current.epoch {
                continue;
            }
            self.current = Arc::new(self.current.apply(&increment)?);
            self.increments.push_back((increment.epoch, Bytes::copy_from_slice(bytes)));
            if self.increments.len() > INCREMENTS_KEPT {
                self.increments.pop_front();
            }
            new.push(self.current.clone());
        }
        Ok(())
    }

    /// The increments after `epoch` for a peer that is behind; `None` when they are not kept that far back.
    pub(crate) fn after(&self, epoch: Epoch) -> Option<Vec<ByteVec>> {
        if self.increments.front().is_none_or(|(first, _)| *first > epoch.next()) {
            return None;
        }
        let later = self.increments.iter().filter(|(of, _)| *of > epoch);
        Some(later.take(INCREMENTS_SHARED_MAX).map(|(_, bytes)| ByteVec::from(bytes.to_vec())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(map: &ClusterMap) -> (ClusterMap, ByteVec) {
        let mut next = map.clone();
        next.epoch = map.epoch.next();
        next.flags.near_full = !map.flags.near_full;
        let increment = Increment::between(map, &next).encode();
        (next, ByteVec::from(increment))
    }

    /// The epochs that were taken; when there is an error, none were.
    fn taken(maps: &mut Maps, update: &MapUpdate) -> Result<Vec<Epoch>, MapUpdateError> {
        let (new, result) = maps.take(update);
        assert!(result.is_ok() || new.is_empty(), "{new:?}");
        result.map(|()| new.iter().map(|map| map.epoch).collect())
    }

    #[test]
    fn increments_are_taken_in_order_once_and_shared_on() {
        let first = ClusterMap::empty(ClusterId([1; 16]));
        let mut maps = Maps::new(Arc::new(first.clone()));
        let (second, one) = next(&first);
        let (third, two) = next(&second);
        let update = MapUpdate { full: None, increments: vec![one.clone(), two.clone()] };
        assert_eq!(taken(&mut maps, &update).expect("they apply"), [Epoch(1), Epoch(2)]);
        assert_eq!(**maps.current(), third);
        assert_eq!(taken(&mut maps, &update).expect("already held"), []);
        assert_eq!(maps.after(Epoch(1)), Some(vec![two]));
        assert_eq!(maps.after(Epoch(2)), Some(vec![]));
    }

    #[test]
    fn a_gap_and_garbage_are_errors_that_leave_the_map_as_it_was() {
        let first = ClusterMap::empty(ClusterId([1; 16]));
        let mut maps = Maps::new(Arc::new(first.clone()));
        let (second, _) = next(&first);
        let (_, two) = next(&second);
        let gap = taken(&mut maps, &MapUpdate { full: None, increments: vec![two] });
        assert!(matches!(gap, Err(MapUpdateError::Apply(ApplyError::Gap { .. }))), "{gap:?}");
        let garbage = taken(&mut maps, &MapUpdate { full: Some(ByteVec::from(vec![1, 2, 3])), increments: vec![] });
        assert!(matches!(garbage, Err(MapUpdateError::Decode(_))), "{garbage:?}");
        assert_eq!(**maps.current(), first);
        let foreign = ClusterMap::empty(ClusterId([2; 16])).encode_full();
        let foreign = taken(&mut maps, &MapUpdate { full: Some(ByteVec::from(foreign)), increments: vec![] });
        assert!(matches!(foreign, Err(MapUpdateError::OtherCluster { .. })), "{foreign:?}");
    }
    #[test]
    fn maps_before_one_that_cannot_be_used_are_given_and_the_refetched_one_follows_them() {
        let first = ClusterMap::empty(ClusterId([1; 16]));
        let mut maps = Maps::new(Arc::new(first.clone()));
        let (second, one) = next(&first);
        let (third, two) = next(&second);
        let (_, three) = next(&third);
        // All that the shards are ever fed, in order: what the daemon holds must never be ahead of it.
        let mut fed = vec![first.epoch];
        let mut feed = |maps: &mut Maps, update: &MapUpdate| {
            let (new, result) = maps.take(update);
            fed.extend(new.iter().map(|map| map.epoch));
            assert_eq!(fed.last(), Some(&maps.current().epoch), "nothing stays behind");
            result
        };
        let gap = feed(&mut maps, &MapUpdate { full: None, increments: vec![one.clone(), three.clone()] });
        assert!(matches!(gap, Err(MapUpdateError::Apply(ApplyError::Gap { .. }))), "{gap:?}");
        let garbage = MapUpdate { full: Some(ByteVec::from(third.encode_full())), increments: vec![vec![1].into()] };
        assert!(matches!(feed(&mut maps, &garbage), Err(MapUpdateError::Decode(_))));
        let rest = MapUpdate { full: None, increments: vec![one, two, three] };
        feed(&mut maps, &rest).expect("what is held is skipped, the rest applies");
        assert_eq!(fed, [Epoch(0), Epoch(1), Epoch(2), Epoch(3)]);
    }
}
