//! What the daemon counts for the monitors, from its start to its end: runs come and go beneath it.

use std::sync::atomic::{AtomicU64, Ordering};

/// See the module document.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    damaged: AtomicU64,
    repaired: AtomicU64,
    copies_lost: AtomicU64,
}

impl Counters {
    /// A copy of an object on this disk could not be read.
    pub(crate) fn damage_found(&self) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
    }

    /// Such a copy has been written anew.
    pub(crate) fn damage_repaired(&self) {
        self.repaired.fetch_add(1, Ordering::Relaxed);
    }

    /// A whole copy of a placement group was lost, and is filled anew.
    pub(crate) fn copy_lost(&self) {
        self.copies_lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Copies of placement groups lost.
    pub(crate) fn copies_lost(&self) -> u64 {
        self.copies_lost.load(Ordering::Relaxed)
    }

    /// Damaged copies found, and how many of them are whole again.
    pub(crate) fn damage(&self) -> (u64, u64) {
        (self.damaged.load(Ordering::Relaxed), self.repaired.load(Ordering::Relaxed))
    }
}
