//! Read leases between OSDs, given by answering heartbeats: see `holdfast_pg`'s `lease` for the protocol and its reasons.
//!
//! Times are those of this OSD's clock ([`crate::shard::now`]). One table for all shards; what a read asks of it is a look
//! under a lock that nobody holds for longer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_pg::{Granted, LEASE, LEASE_GRANTED};
use holdfast_types::{Epoch, Incarnation, OsdId, Timestamp};
use parking_lot::RwLock;

/// Leases of one peer that are remembered: the newest may name an epoch that this OSD does not have yet.
const REMEMBERED: usize = 4;

/// Time between heartbeats to a peer that has given no lease.
pub const EARLY_HEARTBEAT: Duration = Duration::from_millis(100);
/// Early heartbeats to a peer that does not answer; then the regular ones have to do.
const EARLY_HEARTBEATS_MAX: u32 = 10;

#[derive(Debug)]
struct Held {
    incarnation: Incarnation,
    /// Ends and the epochs they name, oldest first.
    leases: VecDeque<(Timestamp, Epoch)>,
}

/// What was given and what was got in this run.
#[derive(Debug)]
pub struct Leases {
    started: Timestamp,
    /// This run has said that it stops: it goes by no lease any more.
    given_up: AtomicBool,
    granted: RwLock<BTreeMap<OsdId, Granted>>,
    held: RwLock<BTreeMap<OsdId, Held>>,
}

impl Leases {
    /// Of a run that starts now.
    #[must_use]
    pub fn new(started: Timestamp) -> Leases {
        Leases { started, given_up: AtomicBool::new(false), granted: RwLock::default(), held: RwLock::default() }
    }

    /// A heartbeat came from this run of an OSD. To be called before any shard sees it.
    pub fn grant(&self, now: Timestamp, to: OsdId, incarnation: Incarnation) {
        let until = now + LEASE_GRANTED;
        let mut granted = self.granted.write();
        let known = granted.entry(to).or_insert(Granted { to, incarnation, until });
        if known.incarnation < incarnation {
            *known = Granted { to, incarnation, until };
        } else if known.incarnation == incarnation {
            known.until = known.until.max(until);
        } // else it is a late word of a run that has ended
    }

    /// A heartbeat that was sent at `asked` was answered in this epoch.
    pub fn got(&self, from: OsdId, incarnation: Incarnation, epoch: Epoch, asked: Timestamp) {
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
    #[must_use]
    pub fn has(&self, now: Timestamp, from: OsdId, incarnation: Incarnation) -> bool {
        self.from(from, incarnation, Epoch(u64::MAX)) > now
    }

    /// The end of the newest lease that names no epoch after `epoch`.
    #[must_use]
    pub fn from(&self, osd: OsdId, incarnation: Incarnation, epoch: Epoch) -> Timestamp {
        if self.given_up.load(Ordering::SeqCst) {
            return Timestamp::ZERO;
        }
        let held = self.held.read();
        let leases = held.get(&osd).filter(|held| held.incarnation == incarnation).map(|held| &held.leases);
        let usable = leases.into_iter().flatten().filter(|(_, named)| *named <= epoch);
        usable.map(|(until, _)| *until).max().unwrap_or(Timestamp::ZERO)
    }

    /// Goes by none from now on: nothing is read any more. To be called before anybody is told that this run stops.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::SeqCst);
    }

    /// All that were given in this run, at most one for each OSD.
    #[must_use]
    pub fn granted(&self) -> Vec<Granted> {
        self.granted.read().values().copied().collect()
    }

    /// Until then the run before this one may have given some.
    #[must_use]
    pub fn forgotten_until(&self) -> Timestamp {
        self.started + LEASE_GRANTED
    }
}

/// Heartbeats beside the regular ones, to peers of which this OSD holds no lease: nobody waits a whole interval for the
/// first lease of a new run.
#[derive(Debug, Default)]
pub struct EarlyBeats {
    sent: BTreeMap<OsdId, (Incarnation, u32)>,
}

impl EarlyBeats {
    /// The peers that are asked now. To be called each [`EARLY_HEARTBEAT`].
    pub fn due(&mut self, now: Timestamp, watched: &BTreeMap<OsdId, Incarnation>, leases: &Leases) -> Vec<OsdId> {
        let lacks = |osd: OsdId, run: Incarnation| !leases.has(now, osd, run);
        self.sent.retain(|osd, (run, _)| watched.get(osd) == Some(run) && lacks(*osd, *run));
        let mut due = Vec::new();
        for (osd, run) in watched.iter().filter(|(osd, run)| lacks(**osd, **run)) {
            let (_, sent) = self.sent.entry(*osd).or_insert((*run, 0));
            if *sent < EARLY_HEARTBEATS_MAX {
                *sent += 1;
                due.push(*osd);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
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
    fn who_says_that_it_stops_reads_nothing_any_more() {
        let leases = Leases::new(at(0));
        leases.got(PEER, Incarnation(7), Epoch(10), at(100));
        leases.give_up();
        leases.got(PEER, Incarnation(7), Epoch(10), at(101));
        assert_eq!(leases.from(PEER, Incarnation(7), Epoch(10)), Timestamp::ZERO);
    }

    #[test]
    fn a_peer_without_lease_is_asked_early_but_not_for_ever() {
        let (leases, mut early) = (Leases::new(at(0)), EarlyBeats::default());
        let watched = BTreeMap::from([(PEER, Incarnation(7))]);
        for _ in 0..EARLY_HEARTBEATS_MAX {
            assert_eq!(early.due(at(1), &watched, &leases), [PEER]);
        }
        assert_eq!(early.due(at(1), &watched, &leases), []);
        let again = BTreeMap::from([(PEER, Incarnation(8))]);
        assert_eq!(early.due(at(1), &again, &leases), [PEER], "a new run");
        leases.got(PEER, Incarnation(8), Epoch(10), at(1));
        assert_eq!(early.due(at(2), &again, &leases), []);
        assert_eq!(early.due(at(6), &again, &leases), [PEER], "it has ended");
    }

    #[test]
    fn what_was_given_is_never_taken_back() {
        let leases = Leases::new(at(0));
        leases.grant(at(101), PEER, Incarnation(7));
        leases.grant(at(100), PEER, Incarnation(7));
        leases.grant(at(102), PEER, Incarnation(6));
        let until = at(101) + LEASE_GRANTED;
        assert_eq!(leases.granted(), [Granted { to: PEER, incarnation: Incarnation(7), until }]);
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
