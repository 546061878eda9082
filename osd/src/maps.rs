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
    pub(crate) fn take(&mut self, update: &MapUpdate) -> Result<Vec<Arc<ClusterMap>>, MapUpdateError> {
        let mut new = Vec::new();
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
        Ok(new)
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

    #[test]
    fn increments_are_taken_in_order_once_and_shared_on() {
        let first = ClusterMap::empty(ClusterId([1; 16]));
        let mut maps = Maps::new(Arc::new(first.clone()));
        let (second, one) = next(&first);
        let (third, two) = next(&second);
        let update = MapUpdate { full: None, increments: vec![one.clone(), two.clone()] };
        let new: Vec<Epoch> = maps.take(&update).expect("they apply").iter().map(|map| map.epoch).collect();
        assert_eq!(new, [Epoch(1), Epoch(2)]);
        assert_eq!(**maps.current(), third);
        assert!(maps.take(&update).expect("already held").is_empty());
        assert_eq!(maps.after(Epoch(1)), Some(vec![two]));
        assert_eq!(maps.after(Epoch(2)), Some(vec![]));
    }

    #[test]
    fn a_gap_and_garbage_are_errors_that_leave_the_map_as_it_was() {
        let first = ClusterMap::empty(ClusterId([1; 16]));
        let mut maps = Maps::new(Arc::new(first.clone()));
        let (second, _) = next(&first);
        let (_, two) = next(&second);
        let gap = maps.take(&MapUpdate { full: None, increments: vec![two] });
        assert!(matches!(gap, Err(MapUpdateError::Apply(ApplyError::Gap { .. }))), "{gap:?}");
        let garbage = maps.take(&MapUpdate { full: Some(ByteVec::from(vec![1, 2, 3])), increments: vec![] });
        assert!(matches!(garbage, Err(MapUpdateError::Decode(_))), "{garbage:?}");
        assert_eq!(**maps.current(), first);
        let foreign = ClusterMap::empty(ClusterId([2; 16])).encode_full();
        let foreign = maps.take(&MapUpdate { full: Some(ByteVec::from(foreign)), increments: vec![] });
        assert!(matches!(foreign, Err(MapUpdateError::OtherCluster { .. })), "{foreign:?}");
    }
}
