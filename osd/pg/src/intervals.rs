//! Intervals: runs of epochs in which a placement group's members do not change, and who of the past must be heard
//! before it may serve.
//!
//! Invariants: I1 two holders of the same maps compute the same intervals; I2 an interval in which writes may have been
//! acknowledged is forgotten only when a later activation (`les`) or a clean state (`lec`) has superseded it; I3 a holder
//! that does not know the past back to `lec` says so (`known_from`) and never goes active on its own word, unless every
//! OSD that may ever have been a member is up and has been heard, or a whole copy took part in an activation since
//! `known_from`; I4 of a past interval speaks only who still has the disk that it had then.

use std::collections::BTreeSet;

use holdfast_map::{ClusterMap, PgMembers};
use holdfast_types::{Epoch, Incarnation, OsdId, PgId};
use holdfast_wire::peer::{PastInterval, PgHistory};
use minicbor::{Decode, Encode};

use crate::mutants::{Mutant, on};

/// A member and its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Member {
    #[n(0)]
    pub osd: OsdId,
    #[n(1)]
    pub incarnation: Incarnation,
}

/// The present interval.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Interval {
    #[n(0)]
    pub first: Epoch,
    #[n(1)]
    pub up: Vec<Member>,
    #[n(2)]
    pub acting: Vec<Member>,
    #[n(3)]
    pub size: u32,
    #[n(4)]
    pub min_size: u32,
    #[n(5)]
    pub pg_num: u32,
    /// Set when the map before `first` was not seen: the interval may have begun, and its primary may have gone active,
    /// before `first`.
    #[n(6)]
    pub may_be_older: Option<bool>,
}

impl Interval {
    /// The interval that a map and its members belong to, if it begins there.
    pub fn beginning(map: &ClusterMap, pg: PgId, members: &PgMembers) -> Interval {
        let with_runs = |osds: &[OsdId]| -> Vec<Member> {
            let run = |osd: &OsdId| map.osds.get(osd).map_or(Incarnation(0), |info| info.incarnation);
            osds.iter().map(|osd| Member { osd: *osd, incarnation: run(osd) }).collect()
        };
        let pool = map.pools.get(&pg.pool);
        Interval {
            first: map.epoch,
            up: with_runs(&members.up),
            acting: with_runs(&members.acting),
            size: pool.map_or(0, holdfast_map::Pool::size),
            min_size: pool.map_or(0, holdfast_map::Pool::min_size),
            pg_num: pool.map_or(0, |pool| pool.pg_num),
            may_be_older: None,
        }
    }

    /// Whether `next` is only a continuation.
    pub fn continues_as(&self, next: &Interval) -> bool {
        Interval { first: next.first, may_be_older: next.may_be_older, ..self.clone() } == *next
    }

    /// This interval when it is over; `last_map` is the last map of it.
    pub fn ended(&self, last_map: &ClusterMap) -> PastInterval {
        let up_thru = self.acting.first().and_then(|primary| last_map.osds.get(&primary.osd)).map(|info| info.up_thru);
        let enough = self.acting.len() >= self.min_size as usize;
        PastInterval {
            first: self.first,
            last: last_map.epoch,
            up: self.up.iter().map(|member| member.osd).collect(),
            acting: self.acting.iter().map(|member| member.osd).collect(),
            maybe_rw: enough && (self.may_be_older() || up_thru.is_some_and(|up_thru| up_thru >= self.first)),
        }
    }

    /// Whether `first` is only the first epoch that was seen.
    pub fn may_be_older(&self) -> bool {
        self.may_be_older == Some(true)
    }

    pub fn has_enough_acting(&self) -> bool {
        self.acting.len() >= self.min_size as usize || on(Mutant::MinSizeIgnored)
    }
}

/// History of a placement group about which nothing is known before `first`.
pub(crate) fn new_history(created: Epoch, first: Epoch) -> PgHistory {
    PgHistory {
        epoch_created: created,
        last_epoch_started: Epoch::ZERO,
        last_epoch_clean: Epoch::ZERO,
        known_from: first,
        past: Vec::new(),
    }
}

/// Whether the past is known as far back as it matters.
pub(crate) fn is_known(history: &PgHistory) -> bool {
    history.known_from <= history.epoch_created.max(history.last_epoch_clean)
}

/// Past intervals kept when a later activation has superseded them: a placement group that never gets clean has a new one
/// whenever an OSD restarts, and they are in every history that is sent.
const PAST_MAX: usize = 64;

/// Drops what does not matter any more.
pub(crate) fn forget_superseded(history: &mut PgHistory) {
    let clean = history.last_epoch_clean;
    history.past.retain(|interval| interval.last >= clean);
    // Those before `les` have no say in the choice of the log; they only tell who may have an old copy.
    let started = history.last_epoch_started;
    // The first may stand for all the time that nobody knows: it stays.
    let kept = usize::from(history.past.first().is_some_and(|first| first.up.is_empty() && !first.maybe_rw));
    let excess = history.past.len().saturating_sub(PAST_MAX);
    let superseded = history.past.iter().skip(kept).take_while(|interval| interval.last < started).count();
    history.past.drain(kept..kept + excess.min(superseded));
}

/// Takes over what `theirs` knows more; both speak of the same present interval. Gives whether anything changed.
pub(crate) fn merge_history(ours: &mut PgHistory, theirs: &PgHistory) -> bool {
    let before = ours.clone();
    // Judged before their `lec` counts: with it alone the past would seem known, and its intervals would be missing.
    let takes_past = theirs.known_from < ours.known_from && !is_known(ours);
    ours.epoch_created = ours.epoch_created.max(theirs.epoch_created);
    ours.last_epoch_started = ours.last_epoch_started.max(theirs.last_epoch_started);
    ours.last_epoch_clean = ours.last_epoch_clean.max(theirs.last_epoch_clean);
    if takes_past {
        ours.known_from = theirs.known_from;
        ours.past = theirs.past.clone();
    }
    forget_superseded(ours);
    *ours != before
}

/// An activation supersedes the past of which nothing is known. It is kept as an interval without writes of those who were
/// not heard: with the other past ones it names who may have an old copy, until all is clean. Of whom that is known is more
/// than had one: all that were up since the placement group began.
pub(crate) fn supersede_unknown(history: &mut PgHistory, unheard: BTreeSet<OsdId>) {
    let (first, last) = (history.epoch_created, Epoch(history.known_from.0.saturating_sub(1)));
    if !unheard.is_empty() {
        let acting = unheard.into_iter().collect();
        history.past.insert(0, PastInterval { first, last, up: Vec::new(), acting, maybe_rw: false });
    }
    history.known_from = first;
}

/// Whom a primary must hear.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PriorSet {
    /// Live OSDs to ask.
    pub probe: BTreeSet<OsdId>,
    /// OSDs of which one must come back: an interval in which writes may have been acknowledged has no live member.
    pub blocked_by: BTreeSet<OsdId>,
    /// OSDs that must come back unless another copy speaks for the time about which nothing is known: they may have been
    /// members then.
    pub unknown_with: BTreeSet<OsdId>,
}

/// The intervals of which a primary must hear: writes may have been acknowledged in them, and no later activation has
/// superseded them.
pub(crate) fn needed(history: &PgHistory) -> impl Iterator<Item = &PastInterval> {
    let started = history.last_epoch_started;
    history.past.iter().filter(move |past| past.maybe_rw && past.last >= started)
}

/// Computes the prior set. An OSD that is in no map any more was removed by an operator: that is the explicit "lost".
/// One whose disk was formatted since is asked, but what it had is not heard by that: it blocks until it is removed.
pub(crate) fn prior_set(history: &PgHistory, interval: &Interval, map: &ClusterMap, whoami: OsdId) -> PriorSet {
    let mut prior = PriorSet::default();
    prior.probe.extend(interval.up.iter().chain(&interval.acting).map(|member| member.osd));
    if !is_known(history) {
        return ask_everyone(prior, history, map, whoami);
    }
    ask_witnesses(&mut prior, history, map);
    prior.probe.remove(&whoami);
    prior
}

/// Whoever may speak for the intervals that are known, and count.
fn ask_witnesses(prior: &mut PriorSet, history: &PgHistory, map: &ClusterMap) {
    for past in needed(history) {
        let live = || past.acting.iter().filter(|osd| map.is_up(**osd));
        if !live().any(|osd| map.has_disk_of(*osd, past.first)) && !on(Mutant::PriorSetIgnored) {
            prior.blocked_by.extend(past.acting.iter().filter(|osd| map.osds.contains_key(osd)));
        }
        prior.probe.extend(live());
    }
}

/// The past is unknown here (a first member of a placement group that nobody else remembers, or a new member): ask all
/// that may have held a copy, and tell of those that are down. One holder's history is enough to do better.
fn ask_everyone(mut prior: PriorSet, history: &PgHistory, map: &ClusterMap, whoami: OsdId) -> PriorSet {
    for (osd, info) in &map.osds {
        if info.up {
            prior.probe.insert(*osd);
        } else if info.up_from > Epoch::ZERO && info.down_at > history.epoch_created {
            prior.unknown_with.insert(*osd);
        }
    }
    // That all are up is not enough where a disk was formatted since (I4).
    ask_witnesses(&mut prior, history, map);
    prior.probe.remove(&whoami);
    prior
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(first: u64, last: u64) -> PastInterval {
        let members = vec![OsdId(0), OsdId(1)];
        PastInterval { first: Epoch(first), last: Epoch(last), up: members.clone(), acting: members, maybe_rw: true }
    }

    fn firsts(history: &PgHistory) -> Vec<u64> {
        history.past.iter().map(|interval| interval.first.0).collect()
    }

    #[test]
    fn an_interval_is_forgotten_only_when_a_later_activation_or_clean_state_superseded_it() {
        let many = PAST_MAX as u64 + 10;
        let mut history = new_history(Epoch(1), Epoch(1));
        history.past = (1..=many).map(|epoch| past(epoch, epoch)).collect();
        forget_superseded(&mut history);
        assert_eq!(history.past.len() as u64, many, "nothing superseded any of them, however many they are");
        history.last_epoch_started = Epoch(6);
        forget_superseded(&mut history);
        assert_eq!(firsts(&history), (6..=many).collect::<Vec<u64>>(), "older ones only, and no more than needed");
        history.last_epoch_clean = Epoch(many - 1);
        forget_superseded(&mut history);
        assert_eq!(firsts(&history), [many - 1, many]);
    }

    #[test]
    fn a_clean_state_that_is_heard_of_does_not_make_an_unknown_past_known() {
        let mut ours = new_history(Epoch(1), Epoch(20));
        assert!(!is_known(&ours));
        let theirs = PgHistory {
            last_epoch_clean: Epoch(10),
            past: vec![past(8, 12), past(13, 19)],
            ..new_history(Epoch(1), Epoch(5))
        };
        assert!(merge_history(&mut ours, &theirs), "it was learnt from");
        assert!(is_known(&ours) && firsts(&ours) == [8, 13], "with the intervals since, not without them");

        let mut ours = new_history(Epoch(1), Epoch(20));
        let as_late = PgHistory { last_epoch_clean: Epoch(10), ..new_history(Epoch(1), Epoch(20)) };
        merge_history(&mut ours, &as_late);
        assert!(!is_known(&ours), "nobody has told of the epochs from 10 to 19");
    }

    #[test]
    fn who_was_not_heard_of_a_past_that_nobody_knows_is_remembered_until_all_is_clean() {
        let mut history = PgHistory { past: vec![past(20, 22)], ..new_history(Epoch(5), Epoch(20)) };
        supersede_unknown(&mut history, BTreeSet::from([OsdId(4)]));
        history.last_epoch_started = Epoch(25);
        assert!(is_known(&history) && firsts(&history) == [5, 20]);
        assert_eq!((history.past[0].last, history.past[0].acting.as_slice()), (Epoch(19), [OsdId(4)].as_slice()));
        history.last_epoch_started = Epoch::ZERO;
        assert!(needed(&history).all(|past| past.first == Epoch(20)), "it holds nobody up");
        history.past.extend((30..40 + PAST_MAX as u64).map(|epoch| past(epoch, epoch)));
        history.last_epoch_started = Epoch(1000);
        forget_superseded(&mut history);
        assert_eq!((firsts(&history)[0], history.past.len()), (5, PAST_MAX), "however many there were since");
        history.last_epoch_started = Epoch::ZERO;
        history.last_epoch_clean = Epoch(1000);
        forget_superseded(&mut history);
        assert!(history.past.is_empty());
    }

    #[test]
    fn whoever_was_formatted_since_speaks_for_no_interval_of_a_past_that_is_known_in_part_only() {
        let mut map = ClusterMap::empty(holdfast_types::ClusterId([1; 16]));
        map.epoch = Epoch(30);
        let info = |formatted_at| holdfast_map::OsdInfo {
            disk: holdfast_types::DiskUuid([1; 16]),
            incarnation: Incarnation(1),
            address: "nowhere:1".to_owned(),
            up: true,
            in_cluster: true,
            reweight: 0x1_0000,
            up_from: Epoch(2),
            up_thru: Epoch(2),
            down_at: Epoch(0),
            dead_epoch: Epoch(0),
            formatted_at,
        };
        map.osds.extend([(OsdId(0), info(Epoch(25))), (OsdId(1), info(Epoch(25))), (OsdId(2), info(Epoch(1)))]);
        let history = PgHistory { past: vec![past(20, 22)], ..new_history(Epoch(1), Epoch(20)) };
        assert!(!is_known(&history));
        let interval =
            Interval::beginning(&map, PgId { pool: holdfast_types::PoolId(1), seed: 0 }, &PgMembers::default());
        let prior = prior_set(&history, &interval, &map, OsdId(2));
        assert_eq!(prior.blocked_by, BTreeSet::from([OsdId(0), OsdId(1)]));
    }
}
