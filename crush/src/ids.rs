//! Which bucket ids are free, and which of them the shadows get.
//!
//! A bucket's id is hashed into every draw that could pick it, so an id that was given stays; only missing ones are
//! given here, by the same order as `crushtool -c`.

use std::collections::BTreeSet;

use crate::model::{ClassId, ItemId, Parts};
use crate::validate::{BUCKET_ID_MIN, InvalidMap};

/// Hands out the free bucket ids, the one nearest to -1 first.
pub(crate) struct FreeIds {
    used: BTreeSet<ItemId>,
    next: ItemId,
}

impl FreeIds {
    /// Those that are neither `used` nor given out yet.
    pub(crate) fn besides(used: BTreeSet<ItemId>) -> FreeIds {
        FreeIds { used, next: -1 }
    }

    /// Those that neither a bucket nor a shadow of `parts` has.
    pub(crate) fn of(parts: &Parts) -> FreeIds {
        let shadows = parts.buckets.values().flat_map(|bucket| bucket.shadow_ids.values());
        FreeIds::besides(parts.buckets.keys().chain(shadows).copied().collect())
    }

    pub(crate) fn take(&mut self) -> Result<ItemId, InvalidMap> {
        while self.used.contains(&self.next) {
            self.next -= 1;
        }
        if self.next < BUCKET_ID_MIN {
            return Err(InvalidMap::BucketIdsExhausted);
        }
        self.used.insert(self.next);
        Ok(self.next)
    }
}

/// Gives an id to each shadow that has none: for each root from the lowest id up, for each class in its order, children
/// before their parent. The map must be free of cycles.
pub(crate) fn allocate_shadow_ids(parts: &mut Parts) -> Result<(), InvalidMap> {
    let classes = parts.classes.len();
    if parts.buckets.values().all(|bucket| bucket.shadow_ids.len() == classes) {
        return Ok(());
    }
    let mut free = FreeIds::of(parts);
    let held: BTreeSet<ItemId> = parts.buckets.values().flat_map(|bucket| &bucket.items).map(|item| item.id).collect();
    let roots: Vec<ItemId> = parts.buckets.keys().copied().filter(|id| !held.contains(id)).collect();
    for root in roots {
        for class in (0..classes).filter_map(|class| ClassId::try_from(class).ok()) {
            allocate_beneath(parts, root, class, &mut free, &mut BTreeSet::new())?;
        }
    }
    Ok(())
}

/// The recursion is as deep as the hierarchy, and enters each bucket once.
fn allocate_beneath(
    parts: &mut Parts,
    id: ItemId,
    class: ClassId,
    free: &mut FreeIds,
    visited: &mut BTreeSet<ItemId>,
) -> Result<(), InvalidMap> {
    let Some(bucket) = parts.buckets.get(&id) else { return Ok(()) };
    if !visited.insert(id) {
        return Ok(());
    }
    let children: Vec<ItemId> = bucket.items.iter().map(|item| item.id).filter(|child| *child < 0).collect();
    for child in children {
        allocate_beneath(parts, child, class, free, visited)?;
    }
    if let Some(bucket) = parts.buckets.get_mut(&id)
        && !bucket.shadow_ids.contains_key(&class)
    {
        bucket.shadow_ids.insert(class, free.take()?);
    }
    Ok(())
}
