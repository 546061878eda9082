//! Onodes that were used lately, decoded; and keys that were looked up lately and have none.
//!
//! A write looks its object up several times, at the placement group and here, and the next write of the object does so
//! again; without the cache each is a search in RocksDB and a decoding.
//!
//! **Invariant.** For a key that the overlay says nothing about, what is cached is what the index has. The cache is filled
//! from the index only under the lock of the state, when the overlay says nothing about the key; and whenever the overlay
//! forgets a value, which happens under the same lock, that value is put here.
//!
//! Two generations instead of a list by age: when the young one has half of the bytes it becomes the old one, and the old
//! one goes. What is found in the old one becomes young.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::onode::Onode;

/// `None`: there is no such object.
type Cached = Option<Arc<Onode>>;

/// Memory of an entry beside its key, attributes and extents, about.
const ENTRY_BYTES: usize = 200;

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Bytes, Cached>,
    old: HashMap<Bytes, Cached>,
    young_bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct OnodeCache {
    generations: Mutex<Generations>,
    young_bytes_max: usize,
}

fn cost(key: &Bytes, value: &Cached) -> usize {
    ENTRY_BYTES + key.len() + value.as_ref().map_or(0, |onode| onode.memory_bytes())
}

impl Generations {
    fn insert(&mut self, key: Bytes, value: Cached, young_bytes_max: usize) {
        let cost = cost(&key, &value);
        if cost > young_bytes_max {
            self.young.remove(&key);
            self.old.remove(&key);
            return;
        }
        if self.young_bytes + cost > young_bytes_max {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.old.remove(&key);
        // What it replaces stays counted until the generation ends: a bound, not a balance.
        self.young_bytes += cost;
        self.young.insert(key, value);
    }
}

impl OnodeCache {
    /// A cache of about `bytes`.
    pub(super) fn new(bytes: u64) -> OnodeCache {
        let young_bytes_max = usize::try_from(bytes / 2).unwrap_or(usize::MAX);
        OnodeCache { generations: Mutex::default(), young_bytes_max }
    }

    /// What is known of the onode with this key; the outer `None`: nothing.
    pub(super) fn get(&self, key: &[u8]) -> Option<Cached> {
        let mut generations = self.generations.lock();
        if let Some(found) = generations.young.get(key) {
            return Some(found.clone());
        }
        let (key, found) = generations.old.remove_entry(key)?;
        generations.insert(key, found.clone(), self.young_bytes_max);
        Some(found)
    }

    /// Takes what the index has, or will have before the overlay forgets it.
    pub(super) fn put(&self, key: Bytes, value: Cached) {
        self.generations.lock().insert(key, value, self.young_bytes_max);
    }

    /// Forgets all; after a range of keys was removed.
    pub(super) fn clear(&self) {
        *self.generations.lock() = Generations::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Bytes {
        Bytes::copy_from_slice(&number.to_be_bytes())
    }

    fn onode(size: u64) -> Cached {
        Some(Arc::new(Onode { size, ..Onode::default() }))
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let cache = OnodeCache::new(100 << 10);
        for number in 0..100_000 {
            cache.put(key(number), onode(u64::from(number)));
            assert_eq!(cache.get(&key(0)), Some(onode(0)), "used all the time, after {number}");
            let generations = cache.generations.lock();
            let entries = generations.young.len() + generations.old.len();
            assert!(entries * ENTRY_BYTES <= 100 << 10, "{entries} entries");
        }
        assert_eq!(cache.get(&key(5)), None);
    }

    #[test]
    fn the_last_value_is_the_one_that_is_found() {
        let cache = OnodeCache::new(4 << 10);
        for round in 0..200 {
            for number in 0..7 {
                let value = if (round + number) % 3 == 0 { None } else { onode(u64::from(round)) };
                cache.put(key(number), value.clone());
                assert_eq!(cache.get(&key(number)), Some(value));
            }
        }
        cache.clear();
        assert_eq!(cache.get(&key(6)), None);
    }
}
