//! Which slots of the device hold which segments, and how much of each is still referred to.

use std::collections::{BTreeMap, BTreeSet};

use crate::layout::SLOTS_AT;

/// One segment in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) slot: u32,
    /// Bytes that extents refer to, as of all submitted transactions.
    pub(crate) live: u64,
    /// The same as of all durable transactions.
    pub(crate) live_durable: u64,
}

/// The table of slots and segments.
#[derive(Debug, Clone)]
pub(crate) struct Segments {
    pub(crate) by_number: BTreeMap<u64, Segment>,
    free: BTreeSet<u32>,
    next_number: u64,
    slots: u32,
    segment_bytes: u32,
}

impl Segments {
    /// `used` maps slots to segment numbers; all other slots are free.
    pub(crate) fn new(slots: u32, segment_bytes: u32, used: &BTreeMap<u32, u64>) -> Segments {
        let segment = |slot: u32| Segment { slot, live: 0, live_durable: 0 };
        Segments {
            by_number: used.iter().map(|(slot, number)| (*number, segment(*slot))).collect(),
            free: (0..slots).filter(|slot| !used.contains_key(slot)).collect(),
            next_number: used.values().max().map_or(1, |number| number + 1),
            slots,
            segment_bytes,
        }
    }

    /// Numbers given from here on are at least `number`.
    pub(crate) fn number_at_least(&mut self, number: u64) {
        self.next_number = self.next_number.max(number);
    }

    pub(crate) fn segment_bytes(&self) -> u32 {
        self.segment_bytes
    }

    pub(crate) fn free_count(&self) -> u64 {
        self.free.len() as u64
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.free_count() * u64::from(self.segment_bytes)
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        u64::from(self.slots) * u64::from(self.segment_bytes)
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.by_number.values().map(|segment| segment.live_durable).sum()
    }

    /// The number that [`Segments::allocate`] gives next.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Takes a free slot for the next segment: its number.
    pub(crate) fn allocate(&mut self) -> Option<u64> {
        let slot = self.free.pop_first()?;
        let number = self.next_number;
        self.next_number += 1;
        self.by_number.insert(number, Segment { slot, live: 0, live_durable: 0 });
        Some(number)
    }

    /// The slot of segment `number` is free again.
    pub(crate) fn release(&mut self, number: u64) {
        if let Some(segment) = self.by_number.remove(&number) {
            self.free.insert(segment.slot);
        }
    }

    /// Device byte of a segment's beginning.
    pub(crate) fn base(&self, number: u64) -> Option<u64> {
        let segment = self.by_number.get(&number)?;
        Some(slot_base(segment.slot, self.segment_bytes))
    }
}

/// Device byte of a slot's beginning.
pub(crate) fn slot_base(slot: u32, segment_bytes: u32) -> u64 {
    SLOTS_AT + u64::from(slot) * u64::from(segment_bytes)
}
