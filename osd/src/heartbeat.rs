//! Who of the peers answers: pure accounting, driven by the daemon's heartbeat task.
//!
//! A heartbeat goes to each watched peer every [`HEARTBEAT_INTERVAL`], over a connection of its own: a peer with much to do
//! reads the one that carries data when it comes to it, and is alive. That one is watched by the kernel. A peer that has
//! not answered for [`HEARTBEAT_GRACE`] is reported as silent, and again at each further interval while it
//! stays silent, since a report may be lost with a monitor. (Ceph: 6 s and 20 s.)
//!
//! Who was not running itself judges nobody: on a host without a free processor the answers lie unread. Time in which
//! this table was not looked at as it should be counts as silence of no peer.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_types::{Incarnation, OsdId, Timestamp};

/// Time between heartbeats to one peer.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Silence after which a peer is reported. Five lost heartbeats in a row are not chance.
pub const HEARTBEAT_GRACE: Duration = Duration::from_secs(5);

/// One watched peer.
#[derive(Debug)]
struct Watched {
    incarnation: Incarnation,
    answered: Timestamp,
    reported: Option<Timestamp>,
}

/// A report that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No answer for this long.
    Silent {
        /// Who is silent.
        osd: OsdId,
        /// In which run.
        incarnation: Incarnation,
        /// For how long.
        silence: Duration,
    },
    /// It was reported, and answers again.
    Alive {
        /// Who answers.
        osd: OsdId,
    },
}

/// The peers that this daemon watches.
#[derive(Debug, Default)]
pub struct HeartbeatTable {
    watched: BTreeMap<OsdId, Watched>,
    /// When [`HeartbeatTable::overdue`] was asked last.
    looked: Option<Timestamp>,
}

impl HeartbeatTable {
    /// Watches exactly these peers from now on. A new peer or a new run of one starts with a full grace.
    pub fn watch(&mut self, now: Timestamp, peers: &BTreeMap<OsdId, Incarnation>) {
        self.watched.retain(|osd, entry| peers.get(osd) == Some(&entry.incarnation));
        for (osd, incarnation) in peers {
            let fresh = || Watched { incarnation: *incarnation, answered: now, reported: None };
            self.watched.entry(*osd).or_insert_with(fresh);
        }
    }

    /// Notes an answer; tells when the peer had been reported.
    pub fn answered(&mut self, now: Timestamp, osd: OsdId, incarnation: Incarnation) -> Option<Verdict> {
        let entry = self.watched.get_mut(&osd).filter(|entry| entry.incarnation == incarnation)?;
        entry.answered = now;
        entry.reported.take().map(|_| Verdict::Alive { osd })
    }

    /// The reports that are due. To be asked each [`HEARTBEAT_INTERVAL`]: what a call comes later than that, this
    /// daemon did not run, and gives to each peer.
    pub fn overdue(&mut self, now: Timestamp) -> Vec<Verdict> {
        let since = self.looked.replace(now).map_or(HEARTBEAT_INTERVAL, |looked| now.since(looked));
        let asleep = since.saturating_sub(HEARTBEAT_INTERVAL);
        let asleep = if asleep > HEARTBEAT_INTERVAL { asleep } else { Duration::ZERO };
        let mut due = Vec::new();
        for (osd, entry) in &mut self.watched {
            entry.answered = (entry.answered + asleep).min(now);
            let silence = now.since(entry.answered);
            let repeat = entry.reported.is_none_or(|at| now.since(at) >= HEARTBEAT_INTERVAL);
            if silence >= HEARTBEAT_GRACE && repeat {
                entry.reported = Some(now);
                due.push(Verdict::Silent { osd: *osd, incarnation: entry.incarnation, silence });
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn one_peer(incarnation: u64) -> BTreeMap<OsdId, Incarnation> {
        BTreeMap::from([(OsdId(1), Incarnation(incarnation))])
    }

    #[test]
    fn a_peer_is_reported_after_the_grace_and_until_it_answers() {
        let mut table = HeartbeatTable::default();
        table.watch(at(0), &one_peer(7));
        for second in 1..5 {
            assert_eq!(table.overdue(at(second)), []);
        }
        let silent = |seconds| Verdict::Silent {
            osd: OsdId(1),
            incarnation: Incarnation(7),
            silence: Duration::from_secs(seconds),
        };
        assert_eq!(table.overdue(at(5)), [silent(5)]);
        assert_eq!(table.overdue(at(6)), [silent(6)], "a lost report is repeated");
        assert_eq!(table.answered(at(7), OsdId(1), Incarnation(7)), Some(Verdict::Alive { osd: OsdId(1) }));
        assert_eq!(table.answered(at(8), OsdId(1), Incarnation(7)), None);
        assert_eq!(table.overdue(at(11)), []);
    }

    #[test]
    fn an_answer_of_an_earlier_run_does_not_count() {
        let mut table = HeartbeatTable::default();
        table.watch(at(0), &one_peer(7));
        table.watch(at(3), &one_peer(8));
        assert_eq!(table.answered(at(4), OsdId(1), Incarnation(7)), None);
        for second in 4..8 {
            assert_eq!(table.overdue(at(second)), [], "the new run has its own grace");
        }
        assert_eq!(table.overdue(at(8)).len(), 1);
        table.watch(at(9), &BTreeMap::new());
        assert_eq!(table.overdue(at(20)), [], "a peer that left the map is not watched");
    }

    #[test]
    fn who_did_not_run_itself_accuses_nobody() {
        let mut table = HeartbeatTable::default();
        table.watch(at(0), &one_peer(7));
        for second in 1..4 {
            assert_eq!(table.overdue(at(second)), []);
        }
        assert_eq!(table.overdue(at(20)), [], "sixteen seconds in which this daemon had no processor");
        assert_eq!(table.overdue(at(21)).len(), 1, "three seconds before and two after are five of silence");
    }
}
