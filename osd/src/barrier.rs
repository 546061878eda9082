//! Barriers: saying when all placement groups of this OSD act by a map or a newer one.
//!
//! A fence is an entry of the map's blocklist and nothing until the OSDs have that map. Who fences another asks each OSD
//! that is up; the answer means that no request of the fenced session is begun here any more. An OSD that is not up may
//! serve on by an older map, as long as all do that served with it: those are cut off together. Where a placement group has
//! peered since, one of them has been heard that does not any more; so it is said how many have not. What was begun before is ordered before whatever is asked later of the same object, as any request is, so that who takes over sees all
//! of it or none (`docs/invariants.md`, X1).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use holdfast_net::{Connection, Permit};
use holdfast_types::Epoch;
use holdfast_wire::{BarrierReached, Kind};

use crate::answers::respond;
use crate::peers::Held;

/// A question that each shard answers when it is as far; the last one sends the answer.
pub(crate) struct BarrierWait {
    /// What is waited for.
    pub(crate) epoch: Epoch,
    connection: Arc<Connection>,
    request_id: u64,
    tally: Tally,
    /// Returns the connection's credit when the question is answered or given up.
    _permit: Permit,
}

impl BarrierWait {
    pub(crate) fn new(
        epoch: Epoch,
        connection: Arc<Connection>,
        request_id: u64,
        permit: Permit,
        shards: usize,
    ) -> Arc<BarrierWait> {
        Arc::new(BarrierWait { epoch, connection, request_id, tally: Tally::of(shards), _permit: permit })
    }

    /// Says that a shard's placement groups all act by `epoch` or newer maps, and how many of those that it leads have not
    /// peered. Each shard says so once.
    pub(crate) fn pass(&self, epoch: Epoch, unsettled: u64, held: &mut Held) {
        if let Some(reached) = self.tally.add(epoch, unsettled) {
            respond(&self.connection, self.request_id, Kind::BarrierReached, &reached, held);
        }
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.connection.is_closed()
    }
}

/// What the shards of one OSD say, put together.
#[derive(Debug)]
struct Tally {
    /// Shards that have not said it.
    left: AtomicUsize,
    /// The oldest map that one of them acts by.
    oldest: AtomicU64,
    newest: AtomicU64,
    /// Placement groups that are led here and have not peered.
    unsettled: AtomicU64,
}

impl Tally {
    fn of(shards: usize) -> Tally {
        let (oldest, newest) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
        Tally { left: AtomicUsize::new(shards), oldest, newest, unsettled: AtomicU64::new(0) }
    }

    /// Adds what a shard says; gives the answer when that was the last one.
    fn add(&self, epoch: Epoch, unsettled: u64) -> Option<BarrierReached> {
        self.oldest.fetch_min(epoch.0, Ordering::AcqRel);
        self.newest.fetch_max(epoch.0, Ordering::AcqRel);
        self.unsettled.fetch_add(unsettled, Ordering::AcqRel);
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return None;
        }
        let (oldest, newest) = (self.oldest.load(Ordering::Acquire), self.newest.load(Ordering::Acquire));
        let unsettled = self.unsettled.load(Ordering::Acquire);
        // Shards that speak of two maps speak of neither: a placement group that the newer one took from here, to an OSD
        // that was not up in the older one, would be counted nowhere. Asked again they will have the same.
        let unsettled = if newest == oldest { unsettled } else { unsettled.max(1) };
        Some(BarrierReached { epoch: Epoch(oldest), unsettled: Some(unsettled) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(shards: &[(u64, u64)]) -> (u64, u64) {
        let tally = Tally::of(shards.len());
        let mut answers: Vec<_> =
            shards.iter().map(|(epoch, unsettled)| tally.add(Epoch(*epoch), *unsettled)).collect();
        let last = answers.pop().flatten().expect("the last one has the answer");
        assert!(answers.iter().all(Option::is_none));
        (last.epoch.0, last.unsettled.unwrap_or_default())
    }

    #[test]
    fn what_shards_say_of_two_maps_settles_nothing() {
        assert_eq!(told(&[(7, 0), (7, 0)]), (7, 0));
        assert_eq!(told(&[(7, 2), (7, 1)]), (7, 3));
        assert_eq!(told(&[(8, 0), (7, 0)]), (7, 1));
        assert_eq!(told(&[(0, 0), (8, 3)]), (0, 3));
    }
}
