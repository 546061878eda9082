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
    /// Shards that have not passed it.
    left: AtomicUsize,
    /// The oldest epoch that a shard passed it with.
    reached: AtomicU64,
    /// Placement groups that are led here and have not peered.
    unsettled: AtomicU64,
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
        let (left, reached, unsettled) = (AtomicUsize::new(shards), AtomicU64::new(u64::MAX), AtomicU64::new(0));
        Arc::new(BarrierWait { epoch, connection, request_id, left, reached, unsettled, _permit: permit })
    }

    /// Says that a shard's placement groups all act by `epoch` or newer maps, and how many of those that it leads have not
    /// peered. Each shard says so once.
    pub(crate) fn pass(&self, epoch: Epoch, unsettled: u64, held: &mut Held) {
        self.reached.fetch_min(epoch.0, Ordering::AcqRel);
        self.unsettled.fetch_add(unsettled, Ordering::AcqRel);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let epoch = Epoch(self.reached.load(Ordering::Acquire));
            let reached = BarrierReached { epoch, unsettled: Some(self.unsettled.load(Ordering::Acquire)) };
            respond(&self.connection, self.request_id, Kind::BarrierReached, &reached, held);
        }
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.connection.is_closed()
    }
}
