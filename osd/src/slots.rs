//! The daemon's recovery budget: how many placement groups may recover at a time, each way.

use std::collections::VecDeque;

use holdfast_pg::Slot;
use holdfast_types::PgId;
use parking_lot::Mutex;

/// Placement groups that recover at a time, as primary and as target each. Ceph's default is one; ours are many and
/// small, and transfers within one are few, so that one leaves the disk idle between messages.
const SLOTS_EACH_WAY: usize = 3;

/// Placement groups that are scrubbed at a time, each way: what scrubs read comes out of what clients could read.
const SCRUB_SLOTS: usize = 1;

#[derive(Debug, Default)]
struct Way {
    held: Vec<PgId>,
    waiting: VecDeque<PgId>,
}

/// Who recovers and who waits.
#[derive(Debug, Default)]
pub struct Slots {
    outgoing: Mutex<Way>,
    incoming: Mutex<Way>,
    scrub_outgoing: Mutex<Way>,
    scrub_incoming: Mutex<Way>,
}

fn slots_of(slot: Slot) -> usize {
    match slot {
        Slot::Outgoing | Slot::Incoming => SLOTS_EACH_WAY,
        Slot::ScrubOutgoing | Slot::ScrubIncoming => SCRUB_SLOTS,
    }
}

impl Slots {
    fn way(&self, slot: Slot) -> &Mutex<Way> {
        match slot {
            Slot::Outgoing => &self.outgoing,
            Slot::Incoming => &self.incoming,
            Slot::ScrubOutgoing => &self.scrub_outgoing,
            Slot::ScrubIncoming => &self.scrub_incoming,
        }
    }

    /// Takes a slot, or queues for one; whether it is held now. Asking twice changes nothing.
    pub fn reserve(&self, slot: Slot, pg: PgId) -> bool {
        let mut way = self.way(slot).lock();
        if way.held.contains(&pg) {
            return true;
        }
        if way.held.len() < slots_of(slot) {
            way.waiting.retain(|other| *other != pg);
            way.held.push(pg);
            return true;
        }
        if !way.waiting.contains(&pg) {
            way.waiting.push_back(pg);
        }
        false
    }

    /// Gives a slot or a place in the queue back; who holds it now.
    pub fn release(&self, slot: Slot, pg: PgId) -> Option<PgId> {
        let mut way = self.way(slot).lock();
        way.waiting.retain(|other| *other != pg);
        let held = way.held.len();
        way.held.retain(|other| *other != pg);
        if way.held.len() == held {
            return None;
        }
        let next = way.waiting.pop_front()?;
        way.held.push(next);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::PoolId;

    fn pg(seed: u32) -> PgId {
        PgId { pool: PoolId(1), seed }
    }

    #[test]
    fn a_released_slot_goes_to_who_waited_longest() {
        let slots = Slots::default();
        for seed in 0..3 {
            assert!(slots.reserve(Slot::Outgoing, pg(seed)));
        }
        assert!(!slots.reserve(Slot::Outgoing, pg(3)));
        assert!(!slots.reserve(Slot::Outgoing, pg(4)));
        assert!(!slots.reserve(Slot::Outgoing, pg(3)), "asking twice does not queue twice");
        assert!(slots.reserve(Slot::Incoming, pg(3)), "the two ways are apart");
        assert_eq!(slots.release(Slot::Outgoing, pg(9)), None, "who holds nothing gives nothing back");
        assert_eq!(slots.release(Slot::Outgoing, pg(1)), Some(pg(3)));
        assert_eq!(slots.release(Slot::Outgoing, pg(4)), None, "a place in the queue is given back too");
        assert_eq!(slots.release(Slot::Outgoing, pg(0)), None);
        assert!(slots.reserve(Slot::Outgoing, pg(5)));
    }
}
