//! The primary before it serves: it learns who has what, takes the authoritative log, and makes every member take it.
//!
//! | phase | leaves when | to |
//! |---|---|---|
//! | `GetInfo` | every live OSD of the prior set has answered, none is missing for an interval with writes | choice of the log; `Down` or `Incomplete` when somebody is missing |
//! | `Down` | an OSD of `blocked_by` is up again (map), or a notice shows a newer `les`; a stand-in (P7) stays away | `GetInfo`; the choice without it |
//! | `Incomplete` | a map or a notice brings a copy that may be chosen | `GetInfo` |
//! | `WaitActing` | the map has the acting set asked for (a new interval), or changes otherwise; no map comes, and the present one can serve, too | new interval, `GetInfo`; as if that were the choice |
//! | `GetLog` | the chosen log has come and is merged; it does not join | `GetMissing`; choice without this copy |
//! | `GetLog`, choice of the own log | its holder cannot give what only it tells of (P7) | choice without it; `Down`, for a minute, if who could take its place is down |
//! | `GetMissing` | all members' logs are known; one does not join | `WaitUpThru`; choice with that member as backfill target |
//! | `WaitUpThru` | `up_thru ≥ interval start` in the map; an earlier primary may still answer reads | `Activating`; `WaitLease` |
//! | `WaitLease` | its lease has ended, it answers, or the map says that it does not run any more | `Activating` |
//! | `Activating` | own activation durable and all members have acknowledged theirs | role `Active` |
//!
//! A source that goes down in `GetLog` or `GetMissing`, or has no copy any more, leads back to `GetInfo`; a member that goes
//! down makes a new interval. Every question is asked again each [`RESEND`].
//!
//! **Activations.** OSDs may miss maps: a primary that did begins anew in an interval that its members think goes on, and a
//! member that did does not know what it was told. So an interval can see several activations, counted by the primary
//! ([`Pg::activations`]) and named in every message (`PeerMessage::activation`):
//!
//! | who missed maps | what follows |
//! |---|---|
//! | primary | it peers again; a member that is told a newer activation than its own merges again, and drops what is of the old one |
//! | member | it answers `NotActivated` to what is of an activation that it does not know; the primary peers again |
//! | all | nobody knows the past: the primary waits until every OSD that may have been a member is up and heard, and goes on if none of them says that its copy was lost, or another has followed an activation since what is known begins (P4); if that one lacks nothing, nobody who is down is waited for (I3) |
//!
//! Invariants: P1 the chosen log is of a complete copy (`last_backfill = MAX`) with `info_les ≥ M`; P2 the placement
//! group goes active for writes only after the map shows `up_thru ≥ interval start` and every member, backfill targets
//! included, has the activation durable; P3 `history.les` is set only after that; P4 a copy that was lost speaks for no
//! interval and never counts as "there is nothing"; P5 an
//! acknowledgement counts only for the activation that it names, and only when the member's log ends where the primary's
//! does: what the primary then confirms as committed is durable on all of them; P6 members are told of no entry that is
//! not durable at the primary: it alone may have the object, and a crash would leave an entry of which nobody has it;
//! P7 a log whose last entries no other whole candidate has is chosen only if its holder can read what they made of their
//! objects, as long as there is such a candidate, or there may be one that is down and has not been waited for (`standby`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_types::{Epoch, LogVersion, ObjectName, OsdId, Timestamp};
use holdfast_wire::peer::{
    Activate, ActivateAck, BackfillCursor, LogEntry, LogReply, MissingItem, Notice, PastInterval, PeerBody, PgInfo,
};

use crate::active::{Active, Peer};
use crate::api::Output;
use crate::intervals;
use crate::lease::Told;
use crate::log::follow_on;
use crate::merge;
use crate::missing::Missing;
use crate::mutants::{Mutant, on};
use crate::pg::{AfterDurable, Pg, Role, Said, Step};
use crate::rows;
use crate::standby;

/// Questions that are not answered are asked again after this long.
const RESEND: Duration = Duration::from_secs(1);

/// A copy that is behind by so many entries, or lacks so many objects, serves only when there are not enough others: who
/// waits for an object that it lacks would wait for a transfer, and it counts for nothing until it has it. (Ceph: the same
/// number decides on asynchronous recovery and on who leads.)
const LAG_MAX: u64 = 100;

/// For so long a better acting set is waited for; then the present one serves if it can: the monitors may be away.
const BETTER_ACTING_PATIENCE: Duration = Duration::from_secs(10);

/// For so long a member that is down is waited for, which may have the version before one that cannot be read (P7). Then the
/// object is left unfound: the others wait for this one.
const STAND_IN_PATIENCE: Duration = Duration::from_secs(60);

/// Where peering stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    GetInfo,
    /// `ungivable`: the object that the source of the log cannot give, if that is why (P7).
    Down {
        blocked_by: BTreeSet<OsdId>,
        ungivable: Option<ObjectName>,
    },
    Incomplete,
    WaitActing {
        want: Vec<OsdId>,
    },
    GetLog {
        from: OsdId,
    },
    GetMissing {
        waiting: BTreeSet<OsdId>,
    },
    WaitUpThru,
    WaitLease {
        until: Timestamp,
    },
    Activating {
        waiting: BTreeSet<OsdId>,
        own_durable: bool,
        epoch: Epoch,
    },
}

/// How a member's log joins the authoritative one.
#[derive(Debug, Clone)]
struct PeerLog {
    /// The last shared entry; `None`: nothing is shared, the member starts afresh.
    since: Option<LogVersion>,
}

/// Parts of what a member misses, by the place of their first item.
#[derive(Debug, Default)]
pub(crate) struct PartialMissing {
    count: u64,
    parts: BTreeMap<u64, Vec<MissingItem>>,
}

impl PartialMissing {
    /// Takes a part; gives all when none is left out. Parts of another set do not mix with these.
    pub fn take(&mut self, ack: ActivateAck) -> Option<Missing> {
        let count = ack.missing_count.unwrap_or(ack.missing.len() as u64);
        if count != self.count {
            *self = PartialMissing { count, parts: BTreeMap::new() };
        }
        self.parts.insert(ack.missing_from.unwrap_or(0), ack.missing);
        let whole = self.parts.values().map(Vec::len).sum::<usize>() as u64 == count;
        whole.then(|| Missing::from_items(&self.parts.values().flatten().cloned().collect::<Vec<_>>()))
    }
}

#[derive(Debug)]
pub(crate) struct Peering {
    phase: Phase,
    notices: BTreeMap<OsdId, Notice>,
    asked: BTreeSet<OsdId>,
    /// Copies whose logs do not join the authoritative one.
    apart: BTreeSet<OsdId>,
    /// Copies that cannot give what only their logs tell of (P7).
    ungiving: BTreeSet<OsdId>,
    /// What the source of the log is asked to be able to give: all that is after this.
    whole_after: Option<LogVersion>,
    /// What was found that they cannot give.
    ungivable: BTreeMap<OsdId, ObjectName>,
    logs: BTreeMap<OsdId, PeerLog>,
    /// What members have said so far that they miss, where it takes several messages.
    partial: BTreeMap<OsdId, PartialMissing>,
    acked: BTreeMap<OsdId, Peer>,
    /// What was said of leases.
    pub told: Told,
    /// What was committed earlier in this interval: every acting member has it, no log without it is taken.
    committed: LogVersion,
    up_thru_asked: Option<Timestamp>,
    /// Since when another acting set is waited for, without a new map.
    acting_asked: Option<Timestamp>,
}

impl Default for Peering {
    fn default() -> Peering {
        Peering {
            phase: Phase::GetInfo,
            notices: BTreeMap::new(),
            asked: BTreeSet::new(),
            apart: BTreeSet::new(),
            ungiving: BTreeSet::new(),
            whole_after: None,
            ungivable: BTreeMap::new(),
            logs: BTreeMap::new(),
            partial: BTreeMap::new(),
            acked: BTreeMap::new(),
            told: Told::new(),
            committed: LogVersion::ZERO,
            up_thru_asked: None,
            acting_asked: None,
        }
    }
}

impl Peering {
    /// Whether members are being told to take the log.
    pub fn is_activating(&self) -> bool {
        matches!(self.phase, Phase::Activating { .. })
    }

    /// Whether an OSD has said what it has, in this interval.
    pub fn has_answered(&self, osd: OsdId) -> bool {
        self.notices.contains_key(&osd)
    }

    pub fn phase(&self) -> &Phase {
        &self.phase
    }
}

/// The choice of log and members.
struct Choice {
    auth: OsdId,
    /// Another log ends here, and could take its place: what is after this, it must be able to give (P7).
    whole_after: Option<LogVersion>,
    want: Vec<OsdId>,
    /// Whether the present members could serve, too: all of them can take that log.
    acting_can: bool,
}

impl Pg {
    fn peering(&mut self) -> Option<&mut Peering> {
        match &mut self.role {
            Role::Peering(peering) => Some(peering),
            _ => None,
        }
    }

    fn enter(&mut self, phase: Phase, step: &mut Step<'_>) {
        if let Some(peering) = self.peering()
            && peering.phase != phase
        {
            tracing::debug!(pg = %self.id, osd = %self.whoami, ?phase, "peering");
            if let Some(peering) = self.peering() {
                peering.phase = phase;
            }
            step.report = true;
            self.tick_within(RESEND, step);
        }
    }

    /// Goes through the phases as far as what is known allows.
    pub(crate) fn advance_peering(&mut self, step: &mut Step<'_>) {
        loop {
            let Role::Peering(peering) = &self.role else { return };
            let before = peering.phase.clone();
            match &before {
                Phase::GetInfo | Phase::Down { .. } | Phase::Incomplete => self.gather_infos(step),
                Phase::GetMissing { waiting } if waiting.is_empty() => self.enter(Phase::WaitUpThru, step),
                Phase::WaitUpThru | Phase::WaitLease { .. } => self.try_activate(step),
                Phase::Activating { waiting, own_durable: true, epoch }
                    if waiting.is_empty() || on(Mutant::ActivateBeforeMembers) =>
                {
                    self.become_active(*epoch, step);
                }
                Phase::WaitActing { .. }
                | Phase::GetLog { .. }
                | Phase::GetMissing { .. }
                | Phase::Activating { .. } => {}
            }
            if self.peering().is_none_or(|peering| peering.phase == before) {
                return;
            }
        }
    }

    // ---- GetInfo ----

    fn gather_infos(&mut self, step: &mut Step<'_>) {
        let prior = intervals::prior_set(&self.history, &self.interval, &self.map, self.whoami);
        let Some(peering) = self.peering() else { return };
        let ask: Vec<OsdId> = prior.probe.iter().copied().filter(|osd| peering.asked.insert(*osd)).collect();
        let waiting = prior.probe.iter().any(|osd| !peering.notices.contains_key(osd));
        for osd in ask {
            self.send(osd, PeerBody::QueryInfo, step);
        }
        self.tick_within(RESEND, step);
        let mut blocked_by = prior.blocked_by;
        if !prior.unknown_with.is_empty() && !self.a_whole_copy_speaks_for_the_unknown() {
            blocked_by.extend(prior.unknown_with);
        }
        if waiting {
            self.enter(Phase::GetInfo, step);
        } else if !blocked_by.is_empty() {
            self.enter(Phase::Down { blocked_by, ungivable: None }, step);
        } else if let Some(absent) = self.unheard_interval() {
            let phase =
                if absent.is_empty() { Phase::Incomplete } else { Phase::Down { blocked_by: absent, ungivable: None } };
            self.enter(phase, step);
        } else if !intervals::is_known(&self.history) && self.somebody_lost_a_copy() && !self.speaks_for_the_unknown() {
            // Everybody has been heard, but what this one knew is not known.
            self.enter(Phase::Incomplete, step);
        } else {
            // Either the past is known and each interval with writes has a witness, or every OSD that may ever have held
            // the placement group is up and has been heard, or a copy speaks for who was not; a copy that one of them
            // lost is not needed then.
            self.choose(step);
        }
    }

    /// P4: an interval in which writes may have been acknowledged is heard only through a member that has not lost its
    /// copy since: a lost one does not know what it acknowledged. Gives the members of the first interval that nobody
    /// speaks for who are down (and may still have it); `None` when all intervals are heard.
    fn unheard_interval(&self) -> Option<BTreeSet<OsdId>> {
        let Role::Peering(peering) = &self.role else { return None };
        let lost = |osd: &OsdId| {
            let said = |notice: &Notice| notice.info.as_ref().is_some_and(|info| info.lost == Some(true));
            if *osd == self.whoami { self.holding.lost } else { peering.notices.get(osd).is_some_and(said) }
        };
        // Members of whom nobody is up, or left, are the prior set's concern.
        let speaks = |osd: &OsdId, past: &PastInterval| {
            self.map.is_up(*osd) && self.map.has_disk_of(*osd, past.first) && !lost(osd)
        };
        let unheard =
            |past: &&PastInterval| past.acting.iter().any(lost) && !past.acting.iter().any(|osd| speaks(osd, past));
        let unheard = intervals::needed(&self.history).find(unheard)?;
        let down = unheard.acting.iter().filter(|osd| self.map.osds.get(osd).is_some_and(|info| !info.up));
        Some(down.copied().collect())
    }

    /// P4: whether an OSD that may have been a member says that it lost what it had. (One that is being filled has lost
    /// nothing: an active primary took it in, which knew all that was acknowledged before.)
    fn somebody_lost_a_copy(&self) -> bool {
        self.copies_heard().any(|(info, _)| info.lost == Some(true))
    }

    /// P4: whether a copy speaks for all that came before the intervals that are known. Whoever had it take part in an
    /// activation had heard all that was acknowledged before, and had it take the log of that. It stays chosen as long
    /// as nobody has one of a later activation ([`Pg::choice`]).
    fn speaks_for_the_unknown(&self) -> bool {
        let known_from = self.history.known_from;
        self.copies_heard().any(|(info, _)| {
            info.lost != Some(true) && info.last_backfill.is_complete() && info.last_epoch_started >= known_from
        })
    }

    /// I3: the same of a copy that lacks nothing and may be chosen. Who may have what it lacks is not known either, so with
    /// one that lacks something whoever is down is waited for.
    fn a_whole_copy_speaks_for_the_unknown(&self) -> bool {
        let complete = self.copies_heard().filter(|(info, _)| info.last_backfill.is_complete());
        let started = complete.map(|(info, _)| info.last_epoch_started).max().unwrap_or(Epoch::ZERO);
        let since = started.max(self.history.last_epoch_started).max(self.history.known_from);
        self.copies_heard().any(|(info, missing)| {
            let took_part = info.last_backfill.is_complete() && info.last_epoch_started >= since;
            info.lost != Some(true) && took_part && missing == 0
        })
    }

    /// The copies that are known, and how many objects each lacks.
    fn copies_heard(&self) -> impl Iterator<Item = (PgInfo, u64)> {
        let notices = match &self.role {
            Role::Peering(peering) => Some(peering.notices.values()),
            _ => None,
        };
        let others = notices.into_iter().flatten();
        let others = others.filter_map(|notice| Some((notice.info.clone()?, notice.missing_count)));
        others.chain([(self.holding.info(), self.holding.missing.len() as u64)])
    }

    // ---- the choice ----

    fn choose(&mut self, step: &mut Step<'_>) {
        let Some(choice) = self.choice() else {
            self.enter(Phase::Incomplete, step);
            return;
        };
        let now = step.now;
        let Some(peering) = self.peering() else { return };
        let waited = peering.acting_asked.is_some_and(|since| now.since(since) >= BETTER_ACTING_PATIENCE);
        if choice.want != self.members.acting && !(waited && choice.acting_can) {
            if let Some(peering) = self.peering() {
                peering.acting_asked.get_or_insert(now);
            }
            let want = if choice.want == self.members.up { Vec::new() } else { choice.want };
            step.out.push(Output::AskPgTemp { want: want.clone() });
            self.enter(Phase::WaitActing { want }, step);
            return;
        }
        let Choice { auth, whole_after, .. } = choice;
        if let Some(absent) = self.stand_ins_to_wait_for(auth, now) {
            let ungivable = self.peering().and_then(|peering| peering.ungivable.get(&auth).cloned());
            self.enter(Phase::Down { blocked_by: absent, ungivable }, step);
            return;
        }
        if auth == self.whoami {
            if let Some(item) = whole_after.and_then(|after| self.first_ungivable(after, step)) {
                return self.go_back(auth, &item, step);
            }
            self.get_missing(step);
        } else {
            let since = self.holding.log.head();
            if let Some(peering) = self.peering() {
                peering.whole_after = whole_after;
            }
            self.enter(Phase::GetLog { from: auth }, step);
            self.send(auth, PeerBody::QueryLog { since, whole_after }, step);
        }
    }

    /// P7: a copy cannot give an object that only its log tells of. Another log takes its place.
    fn go_back(&mut self, from: OsdId, item: &MissingItem, step: &mut Step<'_>) {
        let (object, version) = (&item.object, item.need);
        tracing::warn!(pg = %self.id, %from, ?object, %version, "what was never acknowledged cannot be had: going back");
        if let Some(peering) = self.peering() {
            peering.ungiving.insert(from);
            peering.ungivable.insert(from, item.object.clone());
        }
        self.choose(step);
    }

    /// The authoritative log and the acting set that can serve it; `None` when no copy may be chosen.
    fn choice(&self) -> Option<Choice> {
        let Role::Peering(peering) = &self.role else { return None };
        let own = self.holding.info();
        let others = peering.notices.iter().filter_map(|(osd, notice)| Some((*osd, notice.info.as_ref()?)));
        let copies: BTreeMap<OsdId, &PgInfo> = others.chain([(self.whoami, &own)]).collect();
        let complete = |info: &&PgInfo| info.last_backfill.is_complete() || on(Mutant::IncompleteChosen);
        let started = copies.values().copied().filter(complete).map(|info| info.last_epoch_started).max();
        let floor = started.unwrap_or(Epoch::ZERO).max(self.history.last_epoch_started);
        let candidates = copies.iter().filter(|(_, info)| complete(info) && info.last_epoch_started >= floor);
        let may_be_chosen = candidates.clone().map(|(osd, info)| (*osd, *info));
        let rank =
            |osd: &OsdId, info: &PgInfo| (info.last_update, Reverse(info.log_tail), *osd == self.whoami, Reverse(*osd));
        let shortest =
            on(Mutant::ShortestLogChosen).then(|| candidates.clone().min_by_key(|(osd, info)| rank(osd, info)));
        let (auth, auth_info) = shortest.unwrap_or_else(|| candidates.max_by_key(|(osd, info)| rank(osd, info)))?;
        let reaches = |osd: &OsdId, tail: LogVersion| {
            let info = copies.get(osd);
            !peering.apart.contains(osd) && info.is_some_and(|info| complete(info) && info.last_update >= tail)
        };
        let reaches_auth = |osd: &OsdId| reaches(osd, auth_info.log_tail);
        // A copy that the log alone can make whole, but that lacks much, is filled like an empty one: as a member that does
        // not count, while others serve (as Ceph's asynchronous recovery does).
        let lag = |osd: &OsdId| {
            let lacks = match *osd == self.whoami {
                true => self.holding.missing.len() as u64,
                false => peering.notices.get(osd).map_or(0, |notice| notice.missing_count),
            };
            let behind = copies.get(osd).map(|info| info.last_update.counter);
            auth_info.last_update.counter.saturating_sub(behind.unwrap_or(0)).saturating_add(lacks)
        };
        let is_near = |osd: &OsdId| lag(osd) <= LAG_MAX;
        let by_placement = self.members.up.first().copied().filter(reaches_auth);
        let may_lead = |osd: &OsdId| reaches_auth(osd) && self.map.is_up(*osd);
        let all = by_placement.iter().chain([auth]).chain(&self.members.up).chain(&self.members.acting);
        let near = all.chain(copies.keys()).find(|osd| is_near(osd) && may_lead(osd)).copied();
        let mut first = near.or(by_placement).unwrap_or(*auth);
        // Reads would wait until there is room, and others have all that is asked for.
        let is_cramped = |osd: &OsdId| {
            let cramped = |notice: &Notice| notice.cramped == Some(true);
            if *osd == self.whoami { self.is_cramped() } else { peering.notices.get(osd).is_some_and(cramped) }
        };
        if is_cramped(&first) {
            let missing = |osd: &OsdId| peering.notices.get(osd).map_or(0, |notice| notice.missing_count);
            let whole = |osd: &OsdId| match *osd == self.whoami {
                true => self.holding.missing.is_empty(),
                false => missing(osd) == 0,
            };
            let mut others = self.members.up.iter().chain(&self.members.acting);
            first = others.find(|osd| whole(osd) && is_near(osd) && may_lead(osd)).copied().unwrap_or(first);
        }
        // Somebody must be filled, and that one cannot say with what.
        let lists = |osd: &OsdId| {
            let unlisted = |notice: &Notice| notice.unlisted == Some(true);
            if *osd == self.whoami { !self.unlisted } else { !peering.notices.get(osd).is_some_and(unlisted) }
        };
        if !lists(&first) && !self.members.up.iter().all(reaches_auth) {
            let mut others = self.members.up.iter().chain(&self.members.acting);
            let another = others.find(|osd| lists(osd) && may_lead(osd));
            first = another.copied().unwrap_or(first);
        }
        // The others must join the log that the primary will have, which keeps its own tail: judged by a longer one,
        // a copy would be let in, found apart, and sent out again, for ever.
        let tail = copies.get(&first).map_or(auth_info.log_tail, |info| info.log_tail);
        let joins = |osd: &OsdId| reaches(osd, tail);
        let mut want = vec![first];
        let rest = || self.members.up.iter().chain(&self.members.acting).chain(copies.keys());
        // Those that lack much only where there is nobody else.
        for osd in rest().filter(|osd| is_near(osd)).chain(rest()) {
            if want.len() < self.interval.size as usize && !want.contains(osd) && joins(osd) && self.map.is_up(*osd) {
                want.push(*osd);
            }
        }
        let acting = &self.members.acting;
        let own_tail = copies.get(&self.whoami).map_or(auth_info.log_tail, |info| info.log_tail);
        let all_listed = lists(&self.whoami) || self.members.up.iter().all(reaches_auth);
        let acting_can = acting.len() >= want.len() && reaches_auth(&self.whoami) && all_listed;
        let acting_can = acting_can && acting.iter().all(|osd| reaches(osd, own_tail) && self.map.is_up(*osd));
        // Who serves does not depend on P7, or two primaries with different knowledge would hand over to each other.
        let stands_in = |osd: &OsdId| !peering.ungiving.contains(osd) && !peering.apart.contains(osd);
        let stand_ins = may_be_chosen.filter(|(osd, _)| stands_in(osd));
        let (auth, mut whole_after) = standby::source((*auth, auth_info), &peering.ungiving, stand_ins, rank);
        if whole_after.is_none() && !peering.ungiving.contains(&auth) && !self.absent_stand_ins().is_empty() {
            // Nobody who was heard could take its place, but somebody who is down could.
            let others = copies.iter().filter(|(osd, info)| **osd != auth && complete(info));
            // Where the source lacks something, another that has its log may have been filled from it, and lack the same.
            let lacks = copies.get(&auth).is_some_and(|info| info.last_complete < info.last_update);
            let told = others.map(|(_, info)| if lacks { info.last_complete } else { info.last_update }).max();
            // What the last activation had adopted everybody has who could take its place.
            let adopted = LogVersion { epoch: floor, counter: 0 };
            let ends = copies.get(&auth).map_or(LogVersion::ZERO, |info| info.last_update);
            whole_after = told.map(|told| told.max(adopted)).filter(|after| *after < ends);
        }
        Some(Choice { auth, whole_after, want, acting_can })
    }

    /// P7: the source of the log cannot give what it tells of, nobody who was heard can take its place, and an activation
    /// would leave no way back: members who are down and could are waited for, for a while.
    fn stand_ins_to_wait_for(&mut self, source: OsdId, now: Timestamp) -> Option<BTreeSet<OsdId>> {
        let absent = self.absent_stand_ins();
        self.peering().filter(|peering| peering.ungiving.contains(&source) && !absent.is_empty())?;
        let (since, missed) = self.stand_ins_missed.get_or_insert((now, BTreeSet::new()));
        if !absent.is_subset(missed) {
            *since = now;
            missed.extend(&absent);
        }
        (now.since(*since) < STAND_IN_PATIENCE).then_some(absent)
    }

    // ---- GetLog ----

    fn took_log(&mut self, from: OsdId, reply: LogReply, step: &mut Step<'_>) {
        if reply.since != self.holding.log.head() {
            // The answer to a question of an earlier attempt in this interval: what was written since is not in it, and
            // must not pass for divergent. The question of this attempt is asked again until it is answered.
            tracing::debug!(pg = %self.id, %from, since = %reply.since, "a late log is dropped");
            return;
        }
        let after = if reply.overlaps { reply.since } else { reply.info.log_tail };
        if !follow_on(after, &reply.entries) {
            tracing::error!(pg = %self.id, %from, "a log whose entries are not in order is dropped");
            return;
        }
        let log = &self.holding.log;
        let common = if reply.overlaps && reply.since == log.head() {
            Some(reply.since)
        } else {
            merge::common_version(log, reply.info.log_tail, &reply.entries)
        };
        let Some(peering) = self.peering() else { return };
        if let Some(item) = reply.missing.first().filter(|_| peering.whole_after.is_some()) {
            return self.go_back(from, item, step);
        }
        let Some(common) = common else {
            let other = |peering: &&mut Peering| !peering.ungiving.is_empty() && !peering.ungiving.contains(&from);
            if let Some(peering) = self.peering().filter(other) {
                // The longest log is still there.
                peering.ungiving.insert(from);
                return self.choose(step);
            }
            let whoami = self.whoami;
            tracing::info!(pg = %self.id, %from, "own log does not join the authoritative one");
            if let Some(peering) = self.peering() {
                peering.apart.insert(whoami);
            }
            self.choose(step);
            return;
        };
        if self.peering().is_some_and(|peering| common < peering.committed) {
            tracing::error!(pg = %self.id, %from, %common, "a log that lacks what was committed in this interval is not taken");
            return;
        }
        let auth: Vec<&LogEntry> = reply.entries.iter().filter(|entry| entry.version > common).collect();
        self.adopt_log(common, &auth, step);
        let mut ops = Vec::new();
        self.holding.take_counts(&reply.info);
        ops.push(rows::put_info(&self.holding.info()));
        self.submit(ops, None, step);
        self.get_missing(step);
    }

    // ---- GetMissing ----

    fn get_missing(&mut self, step: &mut Step<'_>) {
        let head = self.holding.log.head();
        let (mut waiting, mut questions) = (BTreeSet::new(), Vec::new());
        let peers = self.peers_wanted();
        let acting = self.members.acting.clone();
        let own_log = &self.holding.log;
        let Role::Peering(peering) = &mut self.role else { return };
        peering.logs.clear();
        for osd in peers {
            let notice = peering.notices.get(&osd);
            let info = notice.and_then(|notice| notice.info.as_ref());
            let is_new = info.is_none_or(|info| info.last_backfill == BackfillCursor::START);
            let current = notice.is_some_and(|notice| notice.missing_count == 0)
                && info.is_some_and(|info| info.last_update == head);
            if peering.apart.contains(&osd) || (is_new && !acting.contains(&osd)) {
                peering.logs.insert(osd, PeerLog { since: None });
            } else if current {
                peering.logs.insert(osd, PeerLog { since: Some(head) });
            } else {
                let since = own_log.floor(info.map_or(LogVersion::ZERO, |info| info.last_update));
                waiting.insert(osd);
                questions.push((osd, since));
            }
        }
        for (osd, since) in questions {
            self.send(osd, PeerBody::QueryLog { since, whole_after: None }, step);
        }
        self.enter(Phase::GetMissing { waiting }, step);
    }

    fn took_peer_log(&mut self, from: OsdId, reply: &LogReply, step: &mut Step<'_>) {
        let own = &self.holding.log;
        let since = if reply.overlaps && own.joins(reply.since) {
            Some(reply.since)
        } else {
            merge::common_version(own, reply.info.log_tail, &reply.entries)
        };
        // What is shared must be in that log too, or the entries sent would not follow on.
        let since = since.filter(|since| *since >= reply.info.log_tail);
        let acting = self.members.acting.contains(&from);
        let Some(peering) = self.peering() else { return };
        if since.is_none() {
            peering.apart.insert(from);
        }
        peering.logs.insert(from, PeerLog { since });
        if let Phase::GetMissing { waiting } = &mut peering.phase {
            waiting.remove(&from);
        }
        if since.is_none() && acting {
            tracing::info!(pg = %self.id, %from, "log of an acting member does not join, it must be backfilled");
            self.choose(step);
        }
    }

    // ---- WaitUpThru, Activating ----

    fn try_activate(&mut self, step: &mut Step<'_>) {
        let writeable = self.interval.has_enough_acting();
        let up_thru = self.map.osds.get(&self.whoami).map_or(Epoch::ZERO, |info| info.up_thru);
        if writeable && up_thru < self.interval.first && !on(Mutant::SkipUpThru) {
            let at_least = self.interval.first;
            let Some(peering) = self.peering() else { return };
            if peering.up_thru_asked.is_none_or(|at| step.now.since(at) >= RESEND) {
                peering.up_thru_asked = Some(step.now);
                step.out.push(Output::AskUpThru { at_least });
            }
            self.tick_within(RESEND, step);
            return;
        }
        if writeable && let Some(until) = self.leases_end(step) {
            tracing::debug!(pg = %self.id, left = ?until.since(step.now), "former primaries may still answer reads");
            self.enter(Phase::WaitLease { until }, step);
            self.tick_within(until.since(step.now), step);
            return;
        }
        let epoch = self.map.epoch;
        if writeable {
            self.holding.last_epoch_started = epoch;
        }
        let mut ops = vec![rows::put_info(&self.holding.info())];
        self.push_history_row(&mut ops);
        self.submit(ops, Some(AfterDurable::OwnActivation), step);
        self.activations += 1;
        let waiting = self.peers_wanted();
        self.enter(Phase::Activating { waiting, own_durable: false, epoch }, step);
    }

    /// Has the members take the log, once it is durable here (P6).
    fn send_activations(&self, step: &mut Step<'_>) {
        let Role::Peering(peering) = &self.role else { return };
        let Phase::Activating { waiting, epoch, own_durable: true } = &peering.phase else { return };
        let last_epoch_started = self.interval.has_enough_acting().then_some(*epoch);
        for osd in waiting {
            let since = peering.logs.get(osd).and_then(|log| log.since);
            let log = &self.holding.log;
            let (entries, dups, sessions) = match since {
                Some(since) => (log.after(since).cloned().collect(), Vec::new(), None),
                None => (log.entries().cloned().collect(), log.dups().cloned().collect(), Some(log.sessions())),
            };
            let (info, history) = (self.holding.info(), self.history.clone());
            let activate = Activate { since, entries, info, history, last_epoch_started, dups, sessions };
            self.send(*osd, PeerBody::Activate(activate), step);
        }
    }

    pub(crate) fn own_activation_durable(&mut self, step: &mut Step<'_>) {
        if let Some(peering) = self.peering()
            && let Phase::Activating { own_durable, .. } = &mut peering.phase
        {
            *own_durable = true;
            self.send_activations(step);
        }
    }

    fn become_active(&mut self, epoch: Epoch, step: &mut Step<'_>) {
        let (acting, map) = (self.members.acting.clone(), self.map.clone());
        let Role::Peering(peering) = &mut self.role else { return };
        let mut peers = std::mem::take(&mut peering.acked);
        for (osd, peer) in &mut peers {
            peer.acting = acting.contains(osd);
        }
        let known = std::mem::take(&mut peering.notices);
        let member = |osd: &OsdId| peers.contains_key(osd);
        // The copy of an acting member follows from here on; any other goes when its OSD does, though it was heard of: also
        // one that is filled, and has what the others lack.
        let has_said_all = |(osd, notice): &(&OsdId, &Notice)| acting.contains(osd) || notice.info.is_none();
        let heard: BTreeSet<OsdId> = known.iter().filter(has_said_all).map(|(osd, _)| *osd).collect();
        // A map may have shown some down since they were heard.
        let strays = known.into_iter().filter(|(osd, _)| !member(osd) && map.is_up(*osd));
        let strays: BTreeMap<OsdId, LogVersion> =
            strays.filter_map(|(osd, notice)| Some((osd, notice.info?.last_update))).collect();
        let head = self.holding.log.head();
        for (osd, peer) in &peers {
            assert_eq!(peer.acked, head, "P5: the log of {osd} does not end where the primary's does");
        }
        let writeable = self.interval.has_enough_acting();
        if writeable {
            self.stand_ins_missed = None;
            self.history.last_epoch_started = epoch;
            if !intervals::is_known(&self.history) {
                // All that may have known the past have been heard, or a whole copy spoke for them, and this activation
                // supersedes it. Who was not heard may still have what others come to lack, and who was and is no member;
                // also who has come up since.
                let prior = intervals::prior_set(&self.history, &self.interval, &map, self.whoami);
                let unheard = prior.probe.union(&prior.unknown_with).filter(|osd| !heard.contains(osd));
                intervals::supersede_unknown(&mut self.history, unheard.copied().collect());
            }
            let mut ops = Vec::new();
            self.push_history_row(&mut ops);
            self.submit(ops, None, step);
        }
        self.role = Role::Active(Box::new(Active::new(writeable, head, peers, strays)));
        if writeable {
            self.share_history(step);
            self.share_scrub_record(step);
            self.clients.activate();
        }
        tracing::debug!(pg = %self.id, osd = %self.whoami, %epoch, %head, writeable, "active");
        step.report = true;
    }

    /// Peers once more in the same interval: a member has lost track.
    pub(crate) fn peer_again(&mut self, step: &mut Step<'_>) {
        let committed = match &self.role {
            Role::Active(active) => active.committed_to,
            Role::Peering(peering) => peering.committed,
            Role::Follower(_) | Role::Removing | Role::Stopped => LogVersion::ZERO,
        };
        self.start_interval(step);
        if let Some(peering) = self.peering() {
            peering.committed = committed;
        }
    }

    // ---- inputs ----

    pub(crate) fn peering_heard(&mut self, from: OsdId, body: PeerBody, said: Said, step: &mut Step<'_>) {
        let (start, in_this_activation) = (said.start, said.activation == Some(self.activations));
        let head = self.holding.log.head();
        match body {
            PeerBody::Notice(notice) => {
                self.leases_told(from, &notice, step);
                if let Some(history) = &notice.history {
                    self.learn_history(history, start, step);
                }
                let Some(peering) = self.peering() else { return };
                if notice.info.is_none() && peering.phase == (Phase::GetLog { from }) {
                    // A stray: its removal, told before this one peered again, is done. Without it the choice is another.
                    peering.notices.insert(from, notice);
                    return self.enter(Phase::GetInfo, step);
                }
                // Once the choice is made, a newer notice can only repeat what is known, or be of a stray.
                let gathering = matches!(peering.phase, Phase::GetInfo | Phase::Down { .. } | Phase::Incomplete);
                if gathering || !peering.notices.contains_key(&from) {
                    peering.notices.insert(from, notice);
                }
            }
            PeerBody::Log(reply) => {
                self.learn_history(&reply.history, start, step);
                let Some(peering) = self.peering() else { return };
                match &peering.phase {
                    Phase::GetLog { from: source } if *source == from => self.took_log(from, reply, step),
                    Phase::GetMissing { waiting } if waiting.contains(&from) => self.took_peer_log(from, &reply, step),
                    _ => {}
                }
            }
            PeerBody::NotActivated { activation }
                if activation == self.activations && self.peering().is_some_and(|peering| peering.is_activating()) =>
            {
                self.peer_again(step);
            }
            PeerBody::ActivateAck(ack) if in_this_activation => {
                if ack.info.last_update != head {
                    let theirs = ack.info.last_update;
                    tracing::error!(pg = %self.id, %from, %head, %theirs, "acknowledgement of another log dropped");
                    return;
                }
                let Some(peering) = self.peering() else { return };
                if let Phase::Activating { waiting, .. } = &mut peering.phase
                    && waiting.contains(&from)
                {
                    let (acked, cursor) = (ack.info.last_update, ack.info.last_backfill.clone());
                    if let Some(missing) = peering.partial.entry(from).or_default().take(ack) {
                        waiting.remove(&from);
                        peering.partial.remove(&from);
                        peering.acked.insert(from, Peer::new(acked, missing, cursor));
                    }
                }
            }
            _ => {}
        }
    }

    /// A map that does not change the members may still change who can be asked.
    pub(crate) fn peering_saw_map(&mut self, step: &mut Step<'_>) {
        let map = self.map.clone();
        let members = self.peers_wanted();
        let Some(peering) = self.peering() else { return };
        if matches!(peering.phase, Phase::Activating { .. } | Phase::WaitUpThru | Phase::WaitLease { .. }) {
            return;
        }
        peering.acting_asked = None;
        // An OSD that went down and came back may have lost what was not durable: forget what it said.
        let gone = |osd: &OsdId| !map.is_up(*osd) || map.osds.get(osd).is_some_and(|info| info.up_from == map.epoch);
        let dropped: Vec<OsdId> = peering.asked.iter().copied().filter(gone).collect();
        for osd in &dropped {
            peering.asked.remove(osd);
            peering.notices.remove(osd);
        }
        peering.notices.retain(|osd, _| !gone(osd));
        let source_lost = match &peering.phase {
            Phase::GetLog { from } => gone(from),
            Phase::GetMissing { waiting } => waiting.iter().any(|osd| gone(osd) && !members.contains(osd)),
            Phase::WaitActing { .. } => true,
            _ => false,
        };
        if source_lost {
            self.enter(Phase::GetInfo, step);
        }
    }

    pub(crate) fn tick_peering(&mut self, step: &mut Step<'_>) {
        let Role::Peering(peering) = &self.role else { return };
        let head = self.holding.log.head();
        match peering.phase.clone() {
            _ if on(Mutant::QuestionsNotResent) => {}
            Phase::GetInfo | Phase::Down { .. } | Phase::Incomplete => {
                let silent: Vec<OsdId> =
                    peering.asked.iter().copied().filter(|osd| !peering.notices.contains_key(osd)).collect();
                for osd in silent {
                    self.send(osd, PeerBody::QueryInfo, step);
                }
            }
            Phase::WaitActing { .. } => self.choose(step),
            Phase::GetLog { from } => {
                let whole_after = peering.whole_after;
                self.send(from, PeerBody::QueryLog { since: head, whole_after }, step);
            }
            Phase::GetMissing { waiting } => {
                for osd in waiting {
                    let info = peering.notices.get(&osd).and_then(|notice| notice.info.as_ref());
                    let since = self.holding.log.floor(info.map_or(LogVersion::ZERO, |info| info.last_update));
                    self.send(osd, PeerBody::QueryLog { since, whole_after: None }, step);
                }
            }
            Phase::WaitLease { .. } => {} // looked at by `try_activate`, too
            Phase::WaitUpThru => {}       // asked again by `try_activate`, which runs in every step
            Phase::Activating { .. } => self.send_activations(step),
        }
        self.tick_within(RESEND, step);
    }
}
