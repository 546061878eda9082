//! Recovery by the log: fetching what the primary misses, sending what others miss.
//!
//! An object that a client waits for goes first and needs no slot. The rest needs the OSD's outgoing slot, and what is
//! sent the target's incoming one (`slots`). A transfer is a sequence of pieces, one under way at a time; every piece is
//! repeated until it is answered.
//!
//! | a target has no room for a piece of | what follows |
//! |---|---|
//! | an object that it lacks | the transfer ends and is begun anew later; meanwhile others go on, and writes of the object are refused (`Full`) |
//! | a backfill | the transfer ends, and the target is left out for a while; meanwhile writes of the object only go to its log |
//!
//! So it is here: a transfer that finds no room ends, and is begun anew later, after a longer pause each time. Meanwhile all
//! else goes on, and the slots are not kept for it.
//!
//! A target that lacks only what cannot be sent now (no room there, unfound here) is left out for a while, too: no slot is
//! held without progress.
//!
//! Invariants: V1 what is sent is committed and whole here; V2 at most [`crate::Limits::transfers_max`] background
//! transfers at a time, and no further one beside one while clients are served ([`Pg::background_free`]); V3 an object is written again, or deleted, only after every copy of it is whole
//! (`Active::is_degraded`); a delete does not wait for a copy that has no room, nor for an object that nobody can read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use holdfast_types::{LogVersion, OsdId, Timestamp};
use holdfast_wire::peer::{ObjectPiece, PeerBody, PiecePosition, Pull, Push, PushAck, PushWhat};

use crate::active::{Active, Peer};
use crate::exec;
use crate::follower::has_room_to_recover;
use crate::key::ObjectKey;
use crate::missing::{Lack, Need};
use crate::pg::{AfterDurable, Pg, Role, Step, TICK};
use crate::slots::{Refusal, SLOT_RETRY, Slots, pause_for_room};
use crate::transfer;
use crate::unfound::Unfound;
use crate::unnamed::Unnamed;

/// A piece that is not answered is sent or asked for again after this long.
const RESEND: Duration = Duration::from_secs(1);
/// Each time that a piece is not answered again, the pause is doubled, up to this many times: whoever has no room for it
/// would get megabytes every second otherwise, for as long as it is full.
const RESEND_DOUBLINGS_MAX: u32 = 5;
/// A stray that does not answer is given up after it was asked so often. (A member that does not answer is replaced.)
pub(crate) const ASK_STRAY_MAX: u32 = 5;
/// Missing objects looked at in one step while searching for one to transfer.
const LOOK_MAX: usize = 256;
/// Transfers that clients wait for, beside [`crate::Limits::transfers_max`] of the background: more would fill the connections
/// between two OSDs, which then drop what comes after, writes and their acknowledgements among it.
const URGENT_MAX: usize = 16;

/// So long after a client was served the background holds back. Longer than a client takes from an answer to its next
/// request, and short enough that a pause of theirs is used.
const CLIENTS_FIRST: Duration = Duration::from_millis(100);

/// An object on its way here.
#[derive(Debug)]
struct Incoming {
    version: LogVersion,
    from: OsdId,
    position: PiecePosition,
    sent: Timestamp,
    repeated: u32,
    /// OSDs that cannot give it.
    failed: BTreeSet<OsdId>,
}

/// An object on its way to a peer.
#[derive(Debug)]
struct Outgoing {
    to: OsdId,
    key: ObjectKey,
    /// `None`: the object is to be removed there.
    version: Option<LogVersion>,
    position: PiecePosition,
    backfill: bool,
    sent: Timestamp,
    repeated: u32,
}

/// How long to wait for the answer to a piece that has been sent again so many times.
fn patience(repeated: u32) -> Duration {
    RESEND * (1 << repeated.min(RESEND_DOUBLINGS_MAX))
}

/// There was no room for an object, at a peer that lacks it or here.
#[derive(Debug)]
struct NoRoom {
    at: Timestamp,
    /// How often in a row.
    times: u32,
}

impl NoRoom {
    /// Notes one more time.
    fn again(objects: &mut BTreeMap<ObjectKey, NoRoom>, key: &ObjectKey, now: Timestamp) {
        let no_room = objects.entry(key.clone()).or_insert(NoRoom { at: now, times: 0 });
        no_room.at = now;
        no_room.times = no_room.times.saturating_add(1);
    }

    /// When it is worth another look, though no client waits for that.
    fn over(&self) -> Timestamp {
        self.at + pause_for_room(self.times)
    }
}

/// See the module document.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    pulls: BTreeMap<ObjectKey, Incoming>,
    pushes: BTreeMap<u64, Outgoing>,
    pushing: BTreeMap<ObjectKey, BTreeSet<OsdId>>,
    /// Objects that clients wait for.
    urgent: BTreeSet<ObjectKey>,
    /// Up to where these were looked at last, when they are more than one look takes.
    urgent_after: Option<ObjectKey>,
    /// Objects that nobody who is up has.
    unfound: Unfound,
    /// Objects that were fetched and are not durable here yet.
    landing: BTreeSet<ObjectKey>,
    /// The one of them that is asked for now. It is not among them meanwhile.
    retried: Option<ObjectKey>,
    /// Objects for which peers that lack them had no room.
    no_room: BTreeMap<OsdId, BTreeMap<ObjectKey, NoRoom>>,
    /// Objects for which there was none here.
    no_room_here: BTreeMap<ObjectKey, NoRoom>,
    /// Up to where the missing objects of a peer have been looked through without finding one to send.
    looked_to: BTreeMap<OsdId, Need>,
    /// Objects of which the version is asked for.
    pub unnamed: Unnamed,
    pub slots: Slots,
    last_transfer: u64,
}

impl Recovery {
    /// Puts an object in front, unless nobody has it: who waits for that waits for an OSD to come back.
    pub fn hurry(&mut self, key: &ObjectKey) {
        if !self.unfound.contains(key) {
            self.urgent.insert(key.clone());
        }
    }

    /// The next objects that clients wait for. What stands in front and cannot be helped for long hides nothing behind it.
    fn next_urgent(&mut self, now: Timestamp) -> Vec<ObjectKey> {
        let after = self.urgent_after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.urgent.range::<ObjectKey, _>((after, Bound::Unbounded));
        let worth_a_try = behind.filter(|key| !self.had_no_room_here(key, now));
        let next: Vec<ObjectKey> = worth_a_try.take(LOOK_MAX).cloned().collect();
        self.urgent_after = next.last().filter(|_| next.len() == LOOK_MAX).cloned();
        next
    }

    pub fn is_pushing(&self, key: &ObjectKey) -> bool {
        self.pushing.contains_key(key)
    }

    pub fn is_pushing_to(&self, key: &ObjectKey, to: OsdId) -> bool {
        self.pushing.get(key).is_some_and(|targets| targets.contains(&to))
    }

    pub fn is_busy(&self) -> bool {
        let transfers = !self.pulls.is_empty() || !self.pushes.is_empty() || self.unnamed.is_busy();
        transfers || !self.urgent.is_empty() || self.slots.asked_or_held()
    }

    /// Whether nothing is on its way, to its place on the disk here, or in doubt.
    pub fn is_settled(&self) -> bool {
        self.landing.is_empty() && !self.unnamed.is_busy()
    }

    pub fn is_transferring(&self) -> bool {
        !self.pulls.is_empty() || !self.pushes.is_empty()
    }

    pub fn transfers(&self) -> usize {
        self.pulls.len() + self.pushes.len()
    }

    /// Whether the object is not durable here yet, or its version is asked for: nobody builds on it, and it is sent to nobody.
    pub fn is_unsettled(&self, key: &ObjectKey) -> bool {
        self.landing.contains(key) || self.unnamed.is_asking(key)
    }

    pub fn is_unfound(&self, key: &ObjectKey) -> bool {
        self.unfound.contains(key)
    }

    /// What nobody who is up has, as far as is known.
    pub fn unfound(&self) -> impl Iterator<Item = &ObjectKey> {
        self.unfound.iter().chain(self.under_retry())
    }

    /// Whether nobody who is up has it, as far as is known: one that is asked for once more counts.
    pub fn was_unfound(&self, key: &ObjectKey) -> bool {
        self.unfound.contains(key) || self.under_retry() == Some(key)
    }

    /// What could not be found and is just being asked for once more.
    fn under_retry(&self) -> Option<&ObjectKey> {
        self.retried.as_ref().filter(|key| self.is_fetching(key))
    }

    /// The next object of the round to be asked for again, if none is.
    fn next_retry(&mut self, waited_for: impl Fn(&ObjectKey) -> bool) -> Option<ObjectKey> {
        if self.under_retry().is_some() {
            return None;
        }
        self.retried = self.unfound.next(waited_for);
        self.retried.clone()
    }

    /// Whether an object is on its way here, or its version is asked for.
    fn is_fetching(&self, key: &ObjectKey) -> bool {
        self.pulls.contains_key(key) || self.unnamed.is_asking(key)
    }

    /// Nobody who is up has an object: it is looked for again in a while.
    pub fn is_not_found(&mut self, key: &ObjectKey) {
        self.unfound.insert(key);
        self.urgent.remove(key);
    }

    /// More is known of an object than when nobody had it.
    pub fn may_be_found(&mut self, key: &ObjectKey) {
        self.unfound.remove(key);
    }

    /// A client waits for what could not be found. Whether somebody is still to be asked for it.
    pub fn waits_for_retry(&mut self, key: &ObjectKey) -> bool {
        self.unfound.wait_for(key);
        self.unfound.will_be_retried(key)
    }

    /// Whether somebody will be asked for an object who did not answer and was heard since.
    pub fn will_be_asked_once_more(&self, key: &ObjectKey) -> bool {
        self.unfound.will_be_asked_once_more(key)
    }

    /// Who could not be asked may have what could not be found: what clients wait for goes first again. And it may have what
    /// others are being asked for by now, because it went down before it had given it.
    pub fn appeared(&mut self, from: OsdId, waited_for: impl Fn(&ObjectKey) -> bool) {
        self.urgent.extend(self.unfound.take().into_iter().filter(waited_for));
        self.ask_once_more(from);
    }

    /// Somebody answers who did not: it may have what could not be found, and what others are being asked for by now.
    pub fn answers_again(&mut self, from: OsdId, waited_for: impl Fn(&ObjectKey) -> bool) {
        self.ask_once_more(from);
        self.unfound.begin_round(waited_for);
    }

    /// What one was given up for, and others are being asked for by now, has another turn if they cannot give it.
    fn ask_once_more(&mut self, from: OsdId) {
        let pulls = self.pulls.iter().filter(|(_, incoming)| incoming.failed.contains(&from)).map(|(key, _)| key);
        self.unfound.ask_once_more(pulls.chain(self.unnamed.asked_of(from)).cloned());
    }

    /// Whether a peer has said lately that it has no room for an object that it lacks.
    pub fn has_no_room(&self, osd: OsdId, key: &ObjectKey, now: Timestamp) -> bool {
        let no_room = self.no_room.get(&osd).and_then(|objects| objects.get(key));
        no_room.is_some_and(|no_room| now.since(no_room.at) < SLOT_RETRY)
    }

    /// Whether an object is to be sent again to a peer that had no room for it, though no client waits for it.
    fn may_have_room(&self, osd: OsdId, key: &ObjectKey, now: Timestamp) -> bool {
        let no_room = self.no_room.get(&osd).and_then(|objects| objects.get(key));
        no_room.is_none_or(|no_room| no_room.over() <= now)
    }

    /// Whether an object is not fetched for the time being: there was no room for it here.
    pub fn waits_for_room_here(&self, key: &ObjectKey, now: Timestamp) -> bool {
        self.no_room_here.get(key).is_some_and(|no_room| no_room.over() > now)
    }

    /// Whether that was so just now: then it is not fetched though clients wait for it.
    fn had_no_room_here(&self, key: &ObjectKey, now: Timestamp) -> bool {
        self.no_room_here.get(key).is_some_and(|no_room| now.since(no_room.at) < SLOT_RETRY)
    }

    /// How many wait for room, and when the first of them is looked at again.
    fn waiting_for_room_here(&self, now: Timestamp) -> (usize, Option<Timestamp>) {
        let waiting = self.no_room_here.iter().filter(|(key, _)| !self.was_unfound(key));
        let ends = waiting.map(|(_, no_room)| no_room.over()).filter(|over| *over > now);
        ends.fold((0, None), |(count, first), over| {
            (count + 1, Some(first.map_or(over, |first: Timestamp| first.min(over))))
        })
    }

    /// Ends what a backfill has on its way to a target; gives the objects.
    pub fn end_backfill_to(&mut self, target: OsdId) -> Vec<ObjectKey> {
        let to_target = self.pushes.iter().filter(|(_, push)| push.backfill && push.to == target);
        let transfers: Vec<u64> = to_target.map(|(transfer, _)| *transfer).collect();
        transfers.into_iter().filter_map(|transfer| self.finish_push(transfer)).map(|push| push.key).collect()
    }

    /// Ends what is on its way of an object that is being deleted. Late pieces are not taken: nothing misses them any
    /// more, and the log tells a target that is being filled of the delete.
    pub fn cancel(&mut self, key: &ObjectKey) {
        self.pulls.remove(key);
        self.unfound.remove(key);
        if self.pushing.remove(key).is_some() {
            self.pushes.retain(|_, push| push.key != *key);
        }
        self.urgent.remove(key);
        self.no_room_here.remove(key);
        self.unnamed.forget(key);
    }

    /// The number that the next transfer will have.
    pub fn next_transfer(&self) -> u64 {
        self.last_transfer + 1
    }

    fn finish_push(&mut self, transfer: u64) -> Option<Outgoing> {
        let push = self.pushes.remove(&transfer)?;
        if let Some(targets) = self.pushing.get_mut(&push.key) {
            targets.remove(&push.to);
            if targets.is_empty() {
                self.pushing.remove(&push.key);
            }
        }
        Some(push)
    }
}

impl Pg {
    /// Starts what may be transferred now.
    pub(crate) fn recover(&mut self, step: &mut Step<'_>) {
        self.recover_urgent(step);
        let Role::Active(active) = &self.role else { return };
        let left_out = |osd: &OsdId| active.recovery.slots.is_left_out(*osd, step.now);
        let mut targets: BTreeSet<OsdId> =
            active.peers.iter().filter(|(_, peer)| !peer.missing.is_empty()).map(|(osd, _)| *osd).collect();
        let mut unfilled = active.peers.iter().filter(|(_, peer)| !peer.cursor.is_complete()).map(|(osd, _)| *osd);
        let next = unfilled.find(|osd| !left_out(osd));
        let backfilling = active.backfill.as_ref().map(|backfill| backfill.target).or(next);
        targets.extend(backfilling);
        targets.retain(|osd| !left_out(osd));
        let (no_room, look_again_at) = active.recovery.waiting_for_room_here(step.now);
        let fetchable = self.holding.missing.len() > active.recovery.unfound().count() + no_room;
        if let Some(at) = look_again_at {
            self.tick_within(at.since(step.now), step);
        }
        if targets.is_empty() && !fetchable {
            self.release_all_slots(step);
        } else if self.has_outgoing_slot(step) {
            self.ask_targets(&targets, step);
            self.recover_by_log(backfilling, step);
            let granted = |pg: &mut Pg, osd| pg.active().is_some_and(|active| active.recovery.slots.is_granted(osd));
            if let Some(target) = backfilling.filter(|osd| granted(self, *osd)) {
                self.backfill(target, step);
            }
        }
        self.retry_next(step);
        self.forget_settled();
        self.let_a_whole_one_lead(step);
    }

    /// Asks for the next object that could not be found. What ends at once is followed by another one.
    fn retry_next(&mut self, step: &mut Step<'_>) {
        for _ in 0..LOOK_MAX {
            let Role::Active(active) = &mut self.role else { return };
            let Some(key) = active.recovery.next_retry(|key| self.clients.is_blocked(key)) else { return };
            if self.clients.is_blocked(&key) {
                // Should it have to wait after all, for room or for a write, it does so in front.
                active.recovery.hurry(&key);
            }
            self.start_pull(&key, step);
        }
        self.tick_within(TICK, step);
    }

    /// Without room for what is missing here, one who misses nothing should lead: as soon as there is one.
    fn let_a_whole_one_lead(&mut self, step: &mut Step<'_>) {
        let is_cramped = self.is_cramped();
        let Some(active) = self.active().filter(|active| is_cramped && !active.asks_for_another()) else { return };
        let whole = |peer: &Peer| peer.cursor.is_complete() && peer.missing.is_empty();
        if active.peers.values().any(whole) && self.let_another_lead(whole, step) {
            tracing::info!(pg = %self.id, osd = %self.whoami, "no room for what is missing here: another should lead");
        }
    }

    fn recover_urgent(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        if active.recovery.urgent.is_empty() {
            return;
        }
        let urgent = active.recovery.next_urgent(step.now);
        if active.recovery.urgent_after.is_some() {
            self.tick_within(TICK, step);
        }
        let max = self.limits.transfers_max + URGENT_MAX;
        for key in urgent {
            let Some(active) = self.active() else { return };
            // Counted apart: a slow member that is sent objects keeps none from being fetched from others.
            let (may_pull, may_push) = (active.recovery.pulls.len() < max, active.recovery.pushes.len() < max);
            if self.holding.missing.contains(&key) {
                if may_pull {
                    self.start_pull(&key, step);
                }
                continue;
            }
            let Some(active) = self.active() else { return };
            let lacking: Vec<OsdId> =
                active.peers.iter().filter(|(_, peer)| peer.missing.contains(&key)).map(|(osd, _)| *osd).collect();
            if lacking.is_empty() && !active.recovery.is_pushing(&key) {
                active.recovery.urgent.remove(&key);
                self.clients.wake(&key);
                step.rerun = true;
            }
            for osd in lacking.into_iter().filter(|_| may_push) {
                self.start_push(osd, &key, step);
            }
        }
    }

    /// Transfers that the background may begin. While clients are served one keeps it going, beside what they wait for: each
    /// takes a share of the disks and of the network on both sides. When they pause, the next transfer that ends has others
    /// begin.
    pub(crate) fn background_free(&self, active: &Active, step: &Step<'_>) -> usize {
        let recovery = &active.recovery;
        // What is asked for once more is beside all this.
        let under_way =
            recovery.transfers() + recovery.unnamed.asking() - usize::from(recovery.under_retry().is_some());
        let max = self.limits.transfers_max;
        if self.clients.served_at.is_none_or(|at| step.now.since(at) >= CLIENTS_FIRST) {
            return max.saturating_sub(under_way);
        }
        let retried = recovery.under_retry();
        let waited_for = |key: &ObjectKey| recovery.urgent.contains(key) && Some(key) != retried;
        let pulls = recovery.pulls.keys().filter(|key| waited_for(key)).count();
        let pushes = recovery.pushes.values().filter(|push| waited_for(&push.key)).count();
        let full = recovery.transfers() >= max + URGENT_MAX;
        max.min(1).saturating_sub(under_way - pulls - pushes + usize::from(full))
    }

    fn recover_by_log(&mut self, backfilling: Option<OsdId>, step: &mut Step<'_>) {
        let Role::Active(active) = &self.role else { return };
        let recovery = &active.recovery;
        let free = self.background_free(active, step);
        if free == 0 {
            return;
        }
        let wanted = self.holding.missing.oldest_first();
        let wanted = wanted.filter(|key| !recovery.is_fetching(key) && !recovery.unfound.contains(key));
        let wanted = wanted.filter(|key| !recovery.waits_for_room_here(key, step.now));
        let pulls: Vec<ObjectKey> = wanted.take(free).cloned().collect();
        let mut pushes = Vec::new();
        let fetched = recovery.pulls.len() + recovery.unnamed.asking() - usize::from(recovery.under_retry().is_some());
        let idle = pulls.is_empty() && fetched == 0;
        let (mut looked, mut stuck) = (Vec::new(), Vec::new());
        for (osd, peer) in active.peers.iter().filter(|(osd, _)| recovery.slots.is_granted(**osd)) {
            let free = free.saturating_sub(pulls.len() + pushes.len());
            if peer.missing.is_empty() || free == 0 {
                continue;
            }
            let after = recovery.looked_to.get(osd);
            let window: Vec<&Need> = peer.missing.needed_after(after).take(LOOK_MAX).collect();
            // For a moment only.
            let waits = |key: &ObjectKey| {
                let told = active.backfill.as_ref().is_some_and(|backfill| backfill.tells_lack(*osd, key));
                told || active.is_uncommitted(key) || recovery.is_unsettled(key) || step.touched.contains(key)
            };
            let ready = |key: &ObjectKey| {
                !self.holding.missing.contains(key)
                    && !recovery.is_pushing_to(key, *osd)
                    && recovery.may_have_room(*osd, key, step.now)
                    && !waits(key)
            };
            let before = pushes.len();
            let found = window.iter().map(|(_, key)| key).filter(|key| ready(key));
            pushes.extend(found.take(free).map(|key| (*osd, key.clone())));
            if pushes.len() == before {
                // The next look goes on behind these, or begins anew.
                let last = window.last().filter(|_| window.len() == LOOK_MAX).map(|need| Need::clone(need));
                let waiting = window.iter().any(|(_, key)| waits(key));
                // One that is being filled goes on to be, whatever cannot be sent to it beside: that gives the slots back
                // by itself.
                let idle = idle && Some(*osd) != backfilling;
                if last.is_none() && idle && !waiting && !recovery.pushes.values().any(|push| push.to == *osd) {
                    stuck.push(*osd);
                }
                looked.push((*osd, last));
            }
        }
        if let Some(active) = self.active() {
            for (osd, last) in looked {
                match last {
                    Some(last) => active.recovery.looked_to.insert(osd, last),
                    None => active.recovery.looked_to.remove(&osd),
                };
            }
        }
        for key in pulls {
            self.start_pull(&key, step);
        }
        for (osd, key) in pushes {
            self.start_push(osd, &key, step);
        }
        for osd in stuck {
            // Others may use the slots until it has room, or somebody has what it lacks.
            self.leave_out(osd, Refusal::Slot, step);
        }
    }

    // ---- fetching ----

    fn start_pull(&mut self, key: &ObjectKey, step: &mut Step<'_>) {
        let Some(lack) = self.holding.missing.get(key) else { return };
        let Some(active) = self.active() else { return };
        let recovery = &active.recovery;
        if recovery.is_fetching(key) || recovery.unfound.contains(key) {
            return;
        }
        if recovery.had_no_room_here(key, step.now) {
            return; // whoever waits for it
        }
        if lack.is_unnamed() {
            return self.find_unnamed(key, step);
        }
        self.pull_from_next(key, lack.need, BTreeSet::new(), step);
    }

    /// Asks the next OSD that may have the object; without one it is unfound.
    fn pull_from_next(&mut self, key: &ObjectKey, version: LogVersion, failed: BTreeSet<OsdId>, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let recovery = &active.recovery;
        let holders = active.peers.iter().filter(|(osd, peer)| {
            !peer.missing.contains(key) && peer.cursor.covers(key.as_bytes()) && !failed.contains(osd)
        });
        let (holds, will_hold): (Vec<_>, Vec<_>) = holders.partition(|(_, peer)| peer.acked >= version);
        let answers = |osd: &OsdId| !failed.contains(osd) && !recovery.unnamed.is_silent(*osd, step.now);
        let strays = active.strays.keys().copied().filter(answers);
        // A target that is being filled may have kept what all others lost sight of: it was the only one that had the
        // object, and the log went on without it. It gives out no other version than the one asked for.
        let unfilled = active.peers.iter().filter(|(osd, peer)| {
            !peer.missing.contains(key) && !peer.cursor.covers(key.as_bytes()) && !failed.contains(osd)
        });
        let unfilled = unfilled.map(|(osd, _)| *osd);
        // Last those that are known not to have it, or not to be able to read it: that may have been for a moment only.
        let lack = active.peers.iter().filter(|(osd, peer)| peer.missing.contains(key) && !failed.contains(osd));
        let lack = lack.map(|(osd, _)| *osd).filter(|_| will_hold.is_empty());
        let Some(from) = holds.into_iter().map(|(osd, _)| *osd).chain(strays).chain(unfilled).chain(lack).next() else {
            if will_hold.is_empty() {
                active.recovery.is_not_found(key);
                step.report = true;
                self.tick_within(TICK, step);
                // Who waits for it is told, or waits on for an OSD that is down.
                self.clients.wake(key);
                step.rerun = true;
            }
            // Else the write of this version is on its way to a peer: asked for in the step that sees it acknowledged.
            return;
        };
        let position = PiecePosition::default();
        let incoming = Incoming { version, from, position: position.clone(), sent: step.now, repeated: 0, failed };
        active.recovery.pulls.insert(key.clone(), incoming);
        self.send(from, PeerBody::Pull(Pull { object: key.name(), version, position }), step);
        self.tick_within(TICK, step);
    }

    pub(crate) fn pull_replied(&mut self, from: OsdId, piece: ObjectPiece, step: &mut Step<'_>) {
        let key = ObjectKey::of(&piece.object);
        let Some(active) = self.active() else { return };
        let Some(incoming) = active.recovery.pulls.get_mut(&key) else { return };
        if incoming.from != from || incoming.version != piece.version || incoming.position != piece.position {
            return;
        }
        if !has_room_to_recover(&key, &piece, step) {
            active.recovery.pulls.remove(&key);
            NoRoom::again(&mut active.recovery.no_room_here, &key, step.now);
            self.cramped = true;
            step.rerun = true; // others may be fetched meanwhile, or another lead
            return;
        }
        let (object, version, next) = (piece.object.clone(), piece.version, piece.next.clone());
        match &next {
            Some(position) => {
                incoming.position = position.clone();
                incoming.sent = step.now;
                incoming.repeated = 0;
            }
            None => {
                active.recovery.pulls.remove(&key);
            }
        }
        self.write_piece(&key, piece, step);
        match next {
            Some(position) => self.send(from, PeerBody::Pull(Pull { object, version, position }), step),
            None => self.object_fetched(key, step),
        }
    }

    pub(crate) fn pull_failed(&mut self, from: OsdId, pull: &Pull, step: &mut Step<'_>) {
        let key = ObjectKey::of(&pull.object);
        let Some(active) = self.active() else { return };
        let matches = |incoming: &Incoming| incoming.from == from && incoming.version == pull.version;
        if !active.recovery.pulls.get(&key).is_some_and(matches) {
            return;
        }
        let Some(mut incoming) = active.recovery.pulls.remove(&key) else { return };
        if let Some(peer) = active.peers.get_mut(&from) {
            // A member that cannot give what it should have lacks it, too: it will be sent back to it.
            peer.missing.insert(key.clone(), Lack { need: pull.version, have: LogVersion::ZERO });
        }
        incoming.failed.insert(from);
        self.pull_from_next(&key, incoming.version, incoming.failed, step);
    }

    /// An object is here, and not yet for good. Until it is, nobody builds on it (V5): a write that reaches a replica
    /// replaces the copy that it was fetched from, and so does sending it to one that is being filled; a crash here would
    /// then leave none.
    fn object_fetched(&mut self, key: ObjectKey, step: &mut Step<'_>) {
        if let Some(active) = self.active() {
            active.recovery.landing.insert(key.clone());
        }
        self.when_last_is_durable(AfterDurable::Fetched(key));
        step.report |= self.holding.missing.is_empty();
    }

    pub(crate) fn fetched_durably(&mut self, key: &ObjectKey, step: &mut Step<'_>) {
        if let Some(active) = self.active() {
            active.recovery.landing.remove(key);
        }
        self.clients.wake(key);
        step.rerun = true;
    }

    // ---- sending ----

    fn start_push(&mut self, to: OsdId, key: &ObjectKey, step: &mut Step<'_>) {
        let Role::Active(active) = &self.role else { return };
        let Some(lack) = active.peers.get(&to).and_then(|peer| peer.missing.get(key)) else { return };
        let recovery = &active.recovery;
        let told = active.backfill.as_ref().is_some_and(|backfill| backfill.tells_lack(to, key));
        let waits = told || active.is_uncommitted(key) || recovery.is_unsettled(key);
        if waits || recovery.is_pushing_to(key, to) || recovery.has_no_room(to, key, step.now) {
            return;
        }
        if lack.is_unnamed() {
            return self.push_unnamed(to, key, step);
        }
        self.push_object(to, key, Some(lack.need), false, step);
    }

    /// Begins a transfer. `version` `None` removes the object there (backfill, or what is missing there in a version that is
    /// not known).
    pub(crate) fn push_object(
        &mut self,
        to: OsdId,
        key: &ObjectKey,
        version: Option<LogVersion>,
        backfill: bool,
        step: &mut Step<'_>,
    ) {
        if step.touched.contains(key) {
            step.rerun = true;
            return;
        }
        let Some(active) = self.active() else { return };
        active.recovery.last_transfer += 1;
        let transfer = active.recovery.last_transfer;
        let position = PiecePosition::default();
        let push = Outgoing { to, key: key.clone(), version, position, backfill, sent: step.now, repeated: 0 };
        active.recovery.pushes.insert(transfer, push);
        active.recovery.pushing.entry(key.clone()).or_default().insert(to);
        self.send_piece(transfer, step);
        self.tick_within(TICK, step);
    }

    fn send_piece(&mut self, transfer: u64, step: &mut Step<'_>) {
        let Some(push) = self.active().and_then(|active| active.recovery.pushes.get_mut(&transfer)) else { return };
        push.sent = step.now;
        let (to, key, backfill) = (push.to, push.key.clone(), push.backfill);
        let Some(version) = push.version else {
            let what = PushWhat::Remove(key.name());
            self.send(to, PeerBody::Push(Push { transfer, backfill, what }), step);
            return;
        };
        let position = push.position.clone();
        match transfer::read_piece(step.store, &key, version, &position, self.limits.piece_bytes) {
            Ok(Some(piece)) => {
                let what = PushWhat::Piece(piece);
                self.send(to, PeerBody::Push(Push { transfer, backfill, what }), step);
            }
            outcome => {
                let own = exec::stored_version(step.store, &key);
                let Some(active) = self.active() else { return };
                active.recovery.finish_push(transfer);
                match (&outcome, own) {
                    (Ok(_), Ok(own)) if own > version => {
                        // The peer noticed late that it lacks the object: it was written since.
                        if let Some(peer) = active.peers.get_mut(&to).filter(|_| !backfill) {
                            peer.missing.insert(key.clone(), Lack { need: own, have: LogVersion::ZERO });
                        }
                        self.clients.wake(&key);
                        step.rerun = true;
                        return;
                    }
                    (Ok(_), _) => {
                        tracing::warn!(pg = %self.id, object = ?key, %version, "own copy has another version");
                    }
                    (Err(error), _) => self.note_damage(&key, error, step),
                }
                // The own copy is not what the log says: it is not whole either.
                self.mark_own_missing(&key, step);
            }
        }
    }

    pub(crate) fn push_acknowledged(&mut self, from: OsdId, ack: &PushAck, step: &mut Step<'_>) {
        if ack.no_room == Some(true) {
            return self.push_refused(from, ack, step);
        }
        let Some(active) = self.active() else { return };
        let Some(push) = active.recovery.pushes.get_mut(&ack.transfer).filter(|push| push.to == from) else { return };
        if let Some(next) = &ack.next {
            if push.position != *next {
                push.position = next.clone();
                push.repeated = 0;
                self.send_piece(ack.transfer, step);
            }
            return;
        }
        let Some(push) = active.recovery.finish_push(ack.transfer) else { return };
        if push.backfill {
            active.recovery.slots.found_room(from);
            if let Some(backfill) = active.backfill.as_mut().filter(|backfill| backfill.target == from) {
                backfill.item_done(&push.key);
            }
        } else if let Some(peer) = active.peers.get_mut(&from) {
            peer.missing.remove(&push.key);
            step.report |= peer.missing.is_empty();
        }
        self.clients.wake(&push.key);
        step.rerun = true;
    }

    /// The target has no room for the piece that it was sent last. Nobody waits for that: who would write the object goes
    /// on without this copy, or is told.
    fn push_refused(&mut self, from: OsdId, ack: &PushAck, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let recovery = &mut active.recovery;
        let sent = |push: &Outgoing| push.to == from && ack.next.as_ref() == Some(&push.position);
        if !recovery.pushes.get(&ack.transfer).is_some_and(sent) {
            return; // said of an earlier piece
        }
        let Some(push) = recovery.finish_push(ack.transfer) else { return };
        step.rerun = true;
        if push.backfill {
            self.clients.wake(&push.key);
            return self.leave_out(from, Refusal::Piece, step);
        }
        NoRoom::again(recovery.no_room.entry(from).or_default(), &push.key, step.now);
        recovery.urgent.remove(&push.key);
        recovery.looked_to.extend(push.version.map(|version| (from, (version, push.key.clone()))));
        self.clients.wake(&push.key);
        self.tick_within(TICK, step);
    }

    // ---- time ----

    pub(crate) fn resend_transfers(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let mut pulls = Vec::new();
        for (key, incoming) in &mut active.recovery.pulls {
            if step.now.since(incoming.sent) >= patience(incoming.repeated) {
                incoming.sent = step.now;
                incoming.repeated += 1;
                let (version, position) = (incoming.version, incoming.position.clone());
                pulls.push((incoming.from, Pull { object: key.name(), version, position }));
            }
        }
        let mut late = Vec::new();
        for (transfer, push) in &mut active.recovery.pushes {
            if step.now.since(push.sent) >= patience(push.repeated) {
                push.repeated += 1;
                late.push(*transfer);
            }
        }
        let gone: Vec<ObjectKey> = active
            .recovery
            .pulls
            .iter()
            .filter(|(_, incoming)| {
                let hears = active.strays.contains_key(&incoming.from) && incoming.repeated < ASK_STRAY_MAX;
                !active.peers.contains_key(&incoming.from) && !hears
            })
            .map(|(key, _)| key.clone())
            .collect();
        for (from, pull) in pulls {
            self.send(from, PeerBody::Pull(pull), step);
        }
        for transfer in late {
            self.send_piece(transfer, step);
        }
        for key in gone {
            // The stray that was to give it is down, or silent.
            let Some(active) = self.active() else { return };
            let Some(mut incoming) = active.recovery.pulls.remove(&key) else { continue };
            if active.strays.contains_key(&incoming.from) {
                active.recovery.unnamed.note_silence(incoming.from, step.now);
            }
            incoming.failed.insert(incoming.from);
            self.pull_from_next(&key, incoming.version, incoming.failed, step);
        }
    }

    /// What could not be found or read may only have been out of reach: all holders are asked again now and then.
    pub(crate) fn look_again_for_unfound(&mut self, step: &mut Step<'_>) {
        let Role::Active(active) = &mut self.role else { return };
        let unfound = &mut active.recovery.unfound;
        let is_due = unfound.round_is_due(step.now);
        let next = unfound.round_in(step.now);
        if is_due {
            unfound.begin_round(|key| self.clients.is_blocked(key));
            let unheard: BTreeSet<OsdId> = self.unheard().collect();
            self.send_each(unheard, PeerBody::QueryInfo, step);
        }
        if let Some(next) = next {
            self.tick_within(next, step);
        }
    }

    /// Forgets what was said of objects that are whole by now.
    fn forget_settled(&mut self) {
        let missing = &self.holding.missing;
        if let Role::Active(active) = &mut self.role {
            let recovery = &mut active.recovery;
            let (pulls, unnamed) = (&recovery.pulls, &recovery.unnamed);
            recovery
                .unfound
                .retain(|key| missing.contains(key), |key| pulls.contains_key(key) || unnamed.is_asking(key));
            active.recovery.no_room_here.retain(|key, _| missing.contains(key));
            let peers = &active.peers;
            active.recovery.no_room.retain(|osd, objects| {
                let Some(peer) = peers.get(osd) else { return false };
                objects.retain(|key, _| peer.missing.contains(key));
                !objects.is_empty()
            });
        }
    }

    /// The present version of the own copy of an object; zero when there is none.
    pub(crate) fn own_version(&self, key: &ObjectKey, step: &Step<'_>) -> LogVersion {
        exec::stored_version(step.store, key).unwrap_or(LogVersion::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_types::ObjectName;

    use super::*;

    fn key(number: usize) -> ObjectKey {
        ObjectKey::of(&ObjectName::new(format!("object-{number:03}")).expect("a name"))
    }

    #[test]
    fn what_could_not_be_found_is_asked_for_one_at_a_time_and_each_once_in_a_round() {
        let mut recovery = Recovery::default();
        (0..4).for_each(|number| recovery.is_not_found(&key(number)));
        recovery.unfound.begin_round(|waited_for| *waited_for == key(2));
        let mut retried = Vec::new();
        while let Some(next) = recovery.next_retry(|_| false) {
            let incoming = Incoming {
                version: LogVersion::ZERO,
                from: OsdId(1),
                position: PiecePosition::default(),
                sent: Timestamp::ZERO,
                repeated: 0,
                failed: BTreeSet::new(),
            };
            recovery.pulls.insert(next.clone(), incoming);
            assert_eq!(recovery.next_retry(|_| false), None, "one at a time");
            assert!(recovery.was_unfound(&next) && recovery.unfound().count() == 4);
            recovery.pulls.remove(&next);
            recovery.is_not_found(&next);
            retried.push(next);
        }
        assert_eq!((retried.len(), &retried[0]), (4, &key(2)));
        assert_eq!(retried.into_iter().collect::<BTreeSet<_>>().len(), 4);
    }

    #[test]
    fn one_that_went_down_and_is_back_is_asked_once_more_for_what_others_cannot_give() {
        let mut recovery = Recovery::default();
        for (object, given_up) in [(1, OsdId(3)), (2, OsdId(4))] {
            let incoming = Incoming {
                version: LogVersion::ZERO,
                from: OsdId(0),
                position: PiecePosition::default(),
                sent: Timestamp::ZERO,
                repeated: 0,
                failed: BTreeSet::from([given_up]),
            };
            recovery.pulls.insert(key(object), incoming);
        }
        recovery.appeared(OsdId(3), |_| true);
        assert!(recovery.will_be_asked_once_more(&key(1)) && !recovery.will_be_asked_once_more(&key(2)));
        recovery.pulls.remove(&key(1));
        recovery.is_not_found(&key(1));
        assert!(recovery.waits_for_retry(&key(1)), "nobody is told yet that it cannot be read");
        assert_eq!(recovery.next_retry(|_| true), Some(key(1)));
    }

    #[test]
    fn urgent_objects_that_cannot_be_helped_hide_none_behind_them() {
        let mut recovery = Recovery::default();
        let all: BTreeSet<ObjectKey> = (0..2 * LOOK_MAX + 9).map(key).collect();
        all.iter().for_each(|key| recovery.hurry(key));
        let mut look = || recovery.next_urgent(Timestamp::ZERO);
        let looks: Vec<Vec<ObjectKey>> = (0..4).map(|_| look()).collect();
        assert!(looks.iter().all(|look| look.len() <= LOOK_MAX));
        assert_eq!(looks[..3].concat(), all.into_iter().collect::<Vec<_>>());
        assert_eq!(looks[3], looks[0], "and then from the beginning");
    }
}
