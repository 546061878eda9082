//! Room: how full the own store is, and who else has none.
//!
//! A write is refused before it is logged when any member has no room for it. Members say so with each
//! acknowledgement and each heartbeat. What primaries let in before they hear of it lands in the **spare** bytes that
//! admission leaves; should even those not do, the store refuses, the run ends, and the next one comes back without that
//! object. Half of them recovery may use: until an object is whole everywhere, those who would delete it wait. Deletes,
//! rows and the log need none of it: the store keeps a reserve of its own for them.
//!
//! What the monitors are told as "used" is measured against the same limit: full is when writes stop.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_store::{Device, Engine, Index};
use holdfast_types::OsdId;
use holdfast_wire::mon::StoreUsage;
use parking_lot::RwLock;

/// Share of the room that is spare: 1/32, about 3 %.
const SPARE_SHARE: u64 = 32;
/// At least so much is spare, for a handful of the largest objects...
const SPARE_BYTES_MIN: u64 = 32 << 20;
/// ...but never more than a quarter: on a tiny device the run may have to end instead.
const SPARE_SHARE_MAX: u64 = 4;

/// Most live bytes to which writes are let in, of a store that can hold `limit`.
fn admission_limit(limit: u64) -> u64 {
    limit - (limit / SPARE_SHARE).max(SPARE_BYTES_MIN).min(limit / SPARE_SHARE_MAX)
}

/// Whether a write of so many bytes may be let in.
#[must_use]
pub fn has_room<D: Device, I: Index>(engine: &Engine<D, I>, bytes: u64) -> bool {
    let (live, limit) = engine.live_bytes();
    live.saturating_add(bytes) < admission_limit(limit)
}

/// Most live bytes up to which objects that are missing here are recovered.
fn recovery_limit(limit: u64) -> u64 {
    let admitted = admission_limit(limit);
    admitted + (limit - admitted) / 2
}

/// Whether so many bytes of an object that is missing here may be recovered.
pub(crate) fn has_room_to_recover<D: Device, I: Index>(engine: &Engine<D, I>, bytes: u64) -> bool {
    let (live, limit) = engine.live_bytes();
    bytes == 0 || live.saturating_add(bytes) <= recovery_limit(limit)
}

/// What is told of the store. Garbage does not count: it is cleaned as soon as its room is needed. The index does: rows
/// are nowhere else, and its files share a file system with the device file, as a rule.
#[must_use]
pub fn usage<D: Device, I: Index>(engine: &Engine<D, I>) -> StoreUsage {
    let usage = engine.usage();
    let room = u128::from(admission_limit(usage.live_bytes_limit)).max(1);
    let held = u128::from(usage.live_bytes) + u128::from(usage.index_bytes);
    let used = held * u128::from(usage.total_bytes) / room;
    StoreUsage {
        total_bytes: usage.total_bytes,
        used_bytes: u64::try_from(used).unwrap_or(u64::MAX).min(usage.total_bytes),
        live_bytes: usage.live_bytes,
    }
}

/// The others that have said that they have no room, and what waits here.
#[derive(Debug, Default)]
pub struct PeerSpace {
    full: RwLock<BTreeSet<OsdId>>,
    /// Bytes of clients' requests that wait in placement groups.
    waiting: AtomicU64,
}

impl PeerSpace {
    /// What waits in one placement group has become more or less.
    pub fn note_waiting(&self, before: u64, after: u64) {
        if after >= before {
            self.waiting.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.waiting.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    /// Bytes of clients' requests that wait in all placement groups.
    #[must_use]
    pub fn client_bytes_waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes note of what an OSD says of itself.
    pub fn note(&self, osd: OsdId, full: bool) {
        if self.full.read().contains(&osd) == full {
            return;
        }
        let mut all = self.full.write();
        if full {
            all.insert(osd);
        } else {
            all.remove(&osd);
        }
    }

    /// Whether it takes writes, as far as is known.
    #[must_use]
    pub fn has_room(&self, osd: OsdId) -> bool {
        !self.full.read().contains(&osd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_room_is_a_share_of_large_devices_and_bounded_on_small_ones() {
        assert_eq!(admission_limit(3200 << 20), 3100 << 20);
        assert_eq!(admission_limit(320 << 20), 288 << 20);
        assert_eq!(admission_limit(40 << 20), 30 << 20);
        assert_eq!(admission_limit(0), 0);
    }

    #[test]
    fn recovery_leaves_half_of_the_spare_room_to_writes_that_were_let_in() {
        assert_eq!(recovery_limit(3200 << 20), 3150 << 20);
        assert_eq!(recovery_limit(40 << 20), 35 << 20);
        assert_eq!(recovery_limit(0), 0);
    }

    #[test]
    fn a_peer_has_room_until_it_says_otherwise_and_again_when_it_says_so() {
        let peers = PeerSpace::default();
        assert!(peers.has_room(OsdId(1)));
        peers.note(OsdId(1), true);
        assert!(!peers.has_room(OsdId(1)) && peers.has_room(OsdId(2)));
        peers.note(OsdId(1), false);
        assert!(peers.has_room(OsdId(1)));
    }
}
