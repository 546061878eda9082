//! From the map that is held, and what a monitor sent, to the next map.

use holdfast_map::{ApplyError, ClusterMap, Increment, MapDecodeError};
use holdfast_types::Epoch;
use holdfast_wire::mon::MapUpdate;

/// What was sent does not lead on from what is held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// It cannot be read.
    #[error("the monitor sent a map that cannot be read")]
    Decode(#[from] MapDecodeError),
    /// An increment does not fit: the full map of `epoch` is needed.
    #[error("increment {epoch} does not fit")]
    NeedFull {
        /// Of the map that the increment should have made.
        epoch: Epoch,
        /// What does not fit.
        #[source]
        source: ApplyError,
    },
    /// A full map of another cluster.
    #[error("the monitor sent a map of another cluster")]
    OtherCluster,
}

/// The newest map that `held` and `update` give; `None` when that is `held`. What is older than `held` is skipped:
/// streams and answers of several monitors may overlap. Whoever holds none yet holds [`ClusterMap::empty`].
///
/// # Errors
/// [`FollowError`].
pub fn follow(held: &ClusterMap, update: &MapUpdate) -> Result<Option<ClusterMap>, FollowError> {
    let mut newest: Option<ClusterMap> = None;
    if let Some(full) = &update.full {
        let full = ClusterMap::decode_full(full)?;
        if held.cluster != full.cluster {
            return Err(FollowError::OtherCluster);
        }
        newest = (held.epoch < full.epoch).then_some(full);
    }
    for increment in &update.increments {
        let increment = Increment::decode(increment)?;
        let base = newest.as_ref().unwrap_or(held);
        if increment.epoch <= base.epoch && increment.cluster == base.cluster {
            continue;
        }
        let next = base.apply(&increment);
        newest = Some(next.map_err(|source| FollowError::NeedFull { epoch: increment.epoch, source })?);
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use holdfast_types::ClusterId;

    use super::*;

    fn next_of(map: &ClusterMap, name: &str) -> ClusterMap {
        let mut next = map.clone();
        next.epoch = map.epoch.next();
        next.mons.insert(holdfast_types::MonId(next.epoch.0), name.to_owned());
        next
    }

    fn chain() -> Vec<ClusterMap> {
        let mut maps = vec![ClusterMap::empty(ClusterId([1; 16]))];
        for number in 0..4 {
            maps.push(next_of(&maps[number], "a:1"));
        }
        maps
    }

    fn increments(maps: &[ClusterMap]) -> MapUpdate {
        let encoded = maps.windows(2).map(|pair| Increment::between(&pair[0], &pair[1]).encode().into());
        MapUpdate { full: None, increments: encoded.collect() }
    }

    #[test]
    fn increments_and_full_maps_lead_to_the_same_map_and_old_ones_are_skipped() {
        let maps = chain();
        assert_eq!(follow(&maps[0], &increments(&maps)).as_ref(), Ok(&Some(maps[4].clone())));
        assert_eq!(follow(&maps[2], &increments(&maps)).as_ref(), Ok(&Some(maps[4].clone())));
        let full = MapUpdate { full: Some(maps[3].encode_full().into()), ..increments(&maps[3..]) };
        assert_eq!(follow(&maps[1], &full).as_ref(), Ok(&Some(maps[4].clone())));
        assert_eq!(follow(&maps[4], &full), Ok(None));
    }

    #[test]
    fn a_gap_or_a_wrong_checksum_asks_for_the_full_map() {
        let maps = chain();
        let gap = follow(&maps[1], &increments(&maps[2..]));
        assert!(matches!(gap, Err(FollowError::NeedFull { epoch: Epoch(3), .. })));
        let mut other = maps[2].clone();
        other.mons.clear();
        let diverged = follow(&other, &increments(&maps[2..]));
        assert!(matches!(
            diverged,
            Err(FollowError::NeedFull { epoch: Epoch(3), source: ApplyError::Diverged { .. } })
        ));
        let foreign = MapUpdate { full: Some(maps[3].encode_full().into()), increments: Vec::new() };
        let ours = ClusterMap::empty(ClusterId([2; 16]));
        assert_eq!(follow(&ours, &foreign), Err(FollowError::OtherCluster));
    }
}
