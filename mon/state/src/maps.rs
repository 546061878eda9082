//! The maps of the past that somebody may still need: one full map and every increment after it.

use std::collections::BTreeMap;

use holdfast_map::{ClusterMap, Increment};
use holdfast_types::Epoch;
use holdfast_wire::mon::MapUpdate;

/// Most increments that are kept, whatever the placement groups need: a holder that is further behind gets a full map.
const INCREMENTS_MAX: usize = 5_000;
/// Most bytes of increments that are kept.
pub(crate) const INCREMENT_BYTES_MAX: usize = 12 << 20;
/// Most bytes of increments in one answer; the asker asks again.
const UPDATE_BYTES_MAX: usize = 2 << 20;

/// A contiguous run of maps: `base`, then one increment for each later epoch up to the newest.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Maps {
    base: ClusterMap,
    increments: BTreeMap<Epoch, Vec<u8>>,
    bytes: usize,
}

impl Maps {
    pub(crate) fn new(base: ClusterMap) -> Maps {
        Maps { base, increments: BTreeMap::new(), bytes: 0 }
    }

    /// The oldest map that is kept.
    pub(crate) fn base(&self) -> &ClusterMap {
        &self.base
    }

    /// The encoded increments, oldest first.
    pub(crate) fn increments(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.increments.values()
    }

    /// Adds the newest map's increment, and lets the oldest go when there are too many.
    pub(crate) fn push(&mut self, increment: &Increment, newest: &ClusterMap) {
        self.push_encoded(increment.epoch, increment.encode());
        while self.increments.len() > INCREMENTS_MAX || self.bytes > INCREMENT_BYTES_MAX {
            self.advance(newest);
        }
    }

    pub(crate) fn push_encoded(&mut self, epoch: Epoch, encoded: Vec<u8>) {
        self.bytes += encoded.len();
        self.increments.insert(epoch, encoded);
    }

    /// Lets go of everything before `epoch`; `newest`, the newest map, is always kept.
    pub(crate) fn trim(&mut self, epoch: Epoch, newest: &ClusterMap) {
        while self.base.epoch < epoch && !self.increments.is_empty() {
            self.advance(newest);
        }
    }

    fn advance(&mut self, newest: &ClusterMap) {
        let Some((_, encoded)) = self.increments.pop_first() else { return };
        self.bytes -= encoded.len();
        let next = Increment::decode(&encoded).ok().and_then(|increment| self.base.apply(&increment).ok());
        match next {
            Some(next) => self.base = next,
            // Only a snapshot from a broken peer gets here: the past is lost, the newest map is not.
            None => *self = Maps::new(newest.clone()),
        }
    }

    /// What a holder of `after` needs to reach `newest`, as much of it as one answer carries.
    pub(crate) fn since(&self, after: Epoch, newest: &ClusterMap) -> MapUpdate {
        if after >= newest.epoch {
            return MapUpdate::default();
        }
        if after < self.base.epoch || after == Epoch::ZERO {
            return MapUpdate { full: Some(newest.encode_full().into()), increments: Vec::new() };
        }
        let mut update = MapUpdate::default();
        let mut bytes = 0;
        for encoded in self.increments.range(after.next()..).map(|(_, encoded)| encoded) {
            bytes += encoded.len();
            if bytes > UPDATE_BYTES_MAX && !update.increments.is_empty() {
                break;
            }
            update.increments.push(encoded.clone().into());
        }
        update
    }

    /// What the map of exactly this epoch is made of, if it is kept.
    pub(crate) fn at(&self, epoch: Epoch) -> Option<PastMap> {
        let newest = self.increments.keys().next_back().copied().unwrap_or(self.base.epoch);
        if epoch < self.base.epoch || epoch > newest {
            return None;
        }
        let increments = self.increments.range(..=epoch).map(|(_, encoded)| encoded.clone()).collect();
        Some(PastMap { base: self.base.clone(), increments })
    }
}

/// A map of the past, still to be put together: that takes a clone and a checksum for each epoch, and is done where it
/// keeps nobody waiting.
#[derive(Debug, Clone)]
pub struct PastMap {
    base: ClusterMap,
    increments: Vec<Vec<u8>>,
}

impl PastMap {
    pub(crate) fn of(map: ClusterMap) -> PastMap {
        PastMap { base: map, increments: Vec::new() }
    }

    /// The map.
    #[must_use]
    pub fn build(self) -> Option<ClusterMap> {
        let mut map = self.base;
        for encoded in &self.increments {
            map = map.apply(&Increment::decode(encoded).ok()?).ok()?;
        }
        Some(map)
    }
}
