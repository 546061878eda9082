//! Read leases between OSDs, given by answering heartbeats: see `holdfast_pg`'s `lease` for the protocol and its reasons.
//!
//! Times are those of this OSD's clock ([`crate::shard::now`]). One table for all shards; what a read asks of it is a look
//! under a lock that nobody holds for longer.

use std::collections::{BTreeMap, VecDeque};

use holdfast_pg::{Granted, LEASE, LEASE_GRANTED};
use holdfast_types::{Epoch, Incarnation, OsdId, Timestamp};
use parking_lot::RwLock;

/// Leases of one peer that are remembered: the newest may name an epoch that this OSD does not have yet.
const REMEMBERED: usize = 4;

#[derive(Debug)]
struct Held {
    incarnation: Incarnation,
    /// Ends and the epochs they name, oldest first.
    leases: VecDeque<(Timestamp, Epoch)>,
}

/// What was given and what was got in this run.
#[derive(Debug)]
pub(crate) struct Leases {
    started: Timestamp,
    granted: RwLock<BTreeMap<OsdId, Granted>>,
    held: RwLock<BTreeMap<OsdId, Held>>,
}

impl Leases {
    /// Of a run that starts now.
    pub(crate) fn new(started: Timestamp) -> Leases {
        Leases { started, granted: RwLock::default(), held: RwLock::default() }
    }

    /// A heartbeat came from this run of an OSD. To be called before any shard sees it.
    pub(crate) fn grant(&self, now: Timestamp, to: OsdId, incarnation: Incarnation) {
        self.granted.write().insert(to, Granted { to, incarnation, until: now + LEASE_GRANTED });
    }

    /// A heartbeat that was sent at `asked` was answered in this epoch.
    pub(crate) fn got(&self, from: OsdId, incarnation: Incarnation, epoch: Epoch, asked: Timestamp) {
        let mut held = self.held.write();
        let entry = held.entry(from).or_insert_with(|| Held { incarnation, leases: VecDeque::new() });
        if entry.incarnation > incarnation {
            return;
        }
        if entry.incarnation != incarnation {
            *entry = Held { incarnation, leases: VecDeque::new() };
        }
        if entry.leases.len() >= REMEMBERED {
            entry.leases.pop_front();
        }
        entry.leases.push_back((asked + LEASE, epoch));
    }

    /// Whether this run of an OSD has given a lease that has not ended.
    pub(crate) fn has(&self, now: Timestamp, from: OsdId, incarnation: Incarnation) -> bool {
        self.from(from, incarnation, Epoch(u64::MAX)) > now
    }

    /// The end of the newest lease that names no epoch after `epoch`.
    pub(crate) fn from(&self, osd: OsdId, incarnation: Incarnation, epoch: Epoch) -> Timestamp {
        let held = self.held.read();
        let leases = held.get(&osd).filter(|held| held.incarnation == incarnation).map(|held| &held.leases);
        let usable = leases.into_iter().flatten().filter(|(_, named)| *named <= epoch);
        usable.map(|(until, _)| *until).max().unwrap_or(Timestamp::ZERO)
    }

    /// All that were given in this run, at most one for each OSD.
    pub(crate) fn granted(&self) -> Vec<Granted> {
        self.granted.read().values().copied().collect()
    }

    /// Until then the run before this one may have given some.
    pub(crate) fn forgotten_until(&self) -> Timestamp {
        self.started + LEASE_GRANTED
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PEER: OsdId = OsdId(1);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_that_names_a_newer_epoch_is_of_no_use_until_that_map_is_here() {
        let leases = Leases::new(at(0));
        leases.got(PEER, Incarnation(7), Epoch(10), at(100));
        leases.got(PEER, Incarnation(7), Epoch(12), at(102));
        assert_eq!(leases.from(PEER, Incarnation(7), Epoch(11)), at(104), "the older one");
        assert_eq!(leases.from(PEER, Incarnation(7), Epoch(12)), at(106));
        assert_eq!(leases.from(PEER, Incarnation(7), Epoch(9)), Timestamp::ZERO);
    }

    #[test]
    fn a_new_run_of_the_peer_has_given_nothing() {
        let leases = Leases::new(at(0));
        leases.got(PEER, Incarnation(7), Epoch(10), at(100));
        assert_eq!(leases.from(PEER, Incarnation(8), Epoch(10)), Timestamp::ZERO);
        leases.got(PEER, Incarnation(8), Epoch(10), at(101));
        leases.got(PEER, Incarnation(7), Epoch(10), at(102));
        assert_eq!(leases.from(PEER, Incarnation(8), Epoch(10)), at(105), "late word of the old run changes nothing");
        assert!(leases.has(at(104), PEER, Incarnation(8)) && !leases.has(at(105), PEER, Incarnation(8)));
    }

    #[test]
    fn what_was_given_ends_after_what_was_got() {
        let leases = Leases::new(at(50));
        assert_eq!(leases.forgotten_until(), at(50) + LEASE_GRANTED);
        leases.grant(at(100), PEER, Incarnation(7));
        leases.grant(at(101), PEER, Incarnation(7));
        let until = at(101) + LEASE_GRANTED;
        assert_eq!(leases.granted(), [Granted { to: PEER, incarnation: Incarnation(7), until }]);
        assert!(until > at(101) + LEASE);
    }
}
