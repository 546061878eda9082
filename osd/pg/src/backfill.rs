//! Backfill: filling a copy whose log does not reach back far enough, by comparing both sides in key order.
//!
//! One target at a time, one batch at a time:
//!
//! | phase | what is done | next |
//! |---|---|---|
//! | `Scan` | the target lists its objects after the cursor | its digest is compared with the own listing → `Batch` |
//! | `Batch` | those that are here no more are removed, then objects that differ sent | none is left → cursor moves, `Scan` or `Confirm`; those left are unfound → `Confirm` |
//! | `Confirm` | the target is told that it is complete, or which objects nobody could give, or even name the version of (`unnamed`): it lacks them from then on, as others do | it has that durable → `Scan`, or done |
//!
//! A write to an object at or before the cursor, or of the batch and already done, carries its effects to the target; one
//! to an object still to be sent, or beyond the batch, only its log entry; one to an object that is being sent waits, unless
//! it deletes the object: that ends the transfer.
//!
//! A target is left out for a while, and its slots are given back (`slots`), when it does not list for [`SCAN_PATIENCE`], or
//! when nothing is left of a batch but objects for which there is no room here.
//!
//! A listing that cannot be read ends nothing in silence: the primary asks for its place to be given to a member that can
//! list (`peering`), a target gives up what it holds and is filled from the beginning.
//!
//! Invariants: B1 everything at or before the cursor follows the log on the target; B2 the cursor moves only when the
//! whole batch is durable there, and what is stored of it is never ahead of that; B3 what is sent is committed, and so
//! is the deletion of what is not; B4 what is compared is a listing that was made after everything that was sent before
//! it; what may reach the target after that all the same is of the batch.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_types::{LogVersion, OsdId, Timestamp};
use holdfast_wire::peer::{BackfillCursor, BackfillDigest, BackfillProgress, BackfillScan, MissingItem, PeerBody};

use crate::exec;
use crate::key::ObjectKey;
use crate::missing::Lack;
use crate::mutants::{Mutant, on};
use crate::pg::{Pg, Role, Step, TICK};
use crate::slots::Refusal;
use crate::unnamed::Noted;

/// A question that is not answered is asked again after this long.
const RESEND: Duration = Duration::from_secs(1);
/// A target that has not listed its objects for so long, or a listing of the own ones that fails for so long, keeps the
/// slots from others no longer.
const SCAN_PATIENCE: Duration = Duration::from_secs(30);

/// What the comparison found of an object. It says what is done first, not what is done: that is looked up then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Differs {
    /// It is here, and not the same there.
    Sent,
    /// It is not here; the target has it, or may come to have it.
    Removed,
}

#[derive(Debug)]
enum Stage {
    /// `number`: of the listing that is waited for; a late one of earlier does not tell of what was sent since.
    Scan {
        since: Timestamp,
        asked: Timestamp,
        number: u64,
    },
    Batch {
        end: BackfillCursor,
        items: BTreeMap<ObjectKey, Differs>,
    },
    Confirm {
        asked: Timestamp,
        lacking: Vec<MissingItem>,
    },
}

/// See the module document.
#[derive(Debug)]
pub(crate) struct Backfill {
    pub target: OsdId,
    cursor: BackfillCursor,
    stage: Stage,
    /// Objects that may be in neither listing though the target has them, or is to have them: those with writes that were not
    /// committed when the listing was asked for, and those that were deleted since.
    unsettled: BTreeSet<ObjectKey>,
}

impl Backfill {
    /// Whether the object lies in the present batch and the target has it as it is here.
    pub fn is_filled(&self, key: &ObjectKey) -> bool {
        match &self.stage {
            Stage::Batch { end, items } => end.covers(key.as_bytes()) && !items.contains_key(key),
            Stage::Scan { .. } | Stage::Confirm { .. } => false,
        }
    }

    /// Whether the target is being told that it lacks the object: until it knows, it would take none.
    pub fn tells_lack(&self, target: OsdId, key: &ObjectKey) -> bool {
        let Stage::Confirm { lacking, .. } = &self.stage else { return false };
        self.target == target && lacking.iter().any(|item| ObjectKey::of(&item.object) == *key)
    }

    /// Whether nothing is on its way to the target but its listing.
    pub fn is_between_batches(&self) -> bool {
        matches!(self.stage, Stage::Scan { .. })
    }

    /// Whether another target may be filled before this one is complete: what it has then is where its cursor is.
    pub fn can_be_put_off(&self) -> bool {
        !matches!(self.stage, Stage::Confirm { .. })
    }

    /// An object is deleted: while a listing is waited for, that does not tell of it.
    pub fn saw_deletion(&mut self, key: &ObjectKey) {
        if matches!(self.stage, Stage::Scan { .. }) && !self.cursor.covers(key.as_bytes()) {
            self.unsettled.insert(key.clone());
        }
    }

    pub fn item_done(&mut self, key: &ObjectKey) {
        if let Stage::Batch { items, .. } = &mut self.stage {
            items.remove(key);
        }
    }
}

fn cursor_key(cursor: &BackfillCursor) -> Vec<u8> {
    match cursor {
        BackfillCursor::At(key) => key.clone(),
        BackfillCursor::Complete => Vec::new(),
    }
}

impl Pg {
    /// Goes on with the backfill, or starts that of `next`.
    pub(crate) fn backfill(&mut self, next: OsdId, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        if active.backfill.is_none()
            && let Some(peer) = active.peers.get(&next)
        {
            let cursor = peer.cursor.clone();
            active.backfill = Some(Backfill {
                target: next,
                cursor,
                stage: Stage::Scan { since: step.now, asked: step.now, number: 0 },
                unsettled: BTreeSet::new(),
            });
            self.scan(step);
            step.report = true;
        }
        self.fill_batch(step);
    }

    /// Asks for the next listing.
    fn scan(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        active.scans += 1;
        let number = active.scans;
        if let Some(backfill) = &mut active.backfill {
            let is_beyond = |key: &&ObjectKey| !backfill.cursor.covers(key.as_bytes());
            backfill.unsettled = active.uncommitted.keys().filter(is_beyond).cloned().collect();
        }
        self.ask_digest(step.now, number, step);
    }

    fn ask_digest(&mut self, since: Timestamp, number: u64, step: &mut Step<'_>) {
        let limit = u32::try_from(self.limits.backfill_batch).unwrap_or(u32::MAX);
        let Some(active) = self.active() else { return };
        // What was sent of a batch that was put off may still come, and is over.
        let transfer_floor = Some(active.recovery.next_transfer());
        let Some(backfill) = active.backfill.as_mut() else { return };
        backfill.stage = Stage::Scan { since, asked: step.now, number };
        let (target, after) = (backfill.target, cursor_key(&backfill.cursor));
        let scan = BackfillScan { after, limit, number: Some(number), transfer_floor };
        self.send(target, PeerBody::BackfillScan(scan), step);
        self.tick_within(TICK, step);
    }

    /// Compares the target's listing with the own one. Runs in a step that has not changed the store before.
    pub(crate) fn backfill_compared(&mut self, from: OsdId, digest: &BackfillDigest, step: &mut Step<'_>) {
        let limit = self.limits.backfill_batch.max(1);
        let Role::Active(active) = &self.role else { return };
        let Some(backfill) = active.backfill.as_ref().filter(|backfill| backfill.target == from) else { return };
        let Stage::Scan { number, .. } = &backfill.stage else { return };
        let is_late = digest.number.is_some_and(|answered| answered != *number);
        if is_late || cursor_key(&backfill.cursor) != digest.after {
            return;
        }
        let after = (!digest.after.is_empty()).then_some(digest.after.as_slice());
        let own = match step.store.list_objects(after, limit) {
            Ok(own) => own,
            Err(error) => {
                if self.note_listing(Err(&error), step) {
                    // That one shall lead until all are filled.
                    self.let_another_lead(|peer| peer.cursor.is_complete(), step);
                }
                return; // asked again: the device may have erred for a moment only
            }
        };
        let own_end = match own.last() {
            Some(last) if own.len() >= limit => BackfillCursor::At(last.as_bytes().to_vec()),
            _ => BackfillCursor::Complete,
        };
        let end = own_end.min(digest.upto.clone());
        let theirs: BTreeMap<&[u8], LogVersion> =
            digest.objects.iter().map(|item| (item.key.as_slice(), item.version)).collect();
        let mut items = BTreeMap::new();
        self.note_listing(Ok(()), step);
        let in_batch = |key: &[u8]| key > digest.after.as_slice() && end.covers(key);
        for key in own.iter().filter(|key| in_batch(key.as_bytes())) {
            let version = self.own_version(key, step);
            if version == LogVersion::ZERO || theirs.get(key.as_bytes()) != Some(&version) {
                items.insert(key.clone(), Differs::Sent);
            }
        }
        // What is missing here is sent when it has been recovered.
        let lacking = self.holding.missing.iter().map(|(key, _)| key).filter(|key| in_batch(key.as_bytes()));
        items.extend(lacking.map(|key| (key.clone(), Differs::Sent)));
        for key in theirs.keys().filter(|key| in_batch(key)) {
            let Some(key) = ObjectKey::from_bytes(key) else { continue };
            if own.binary_search(&key).is_err() {
                items.entry(key).or_insert(Differs::Removed);
            }
        }
        // A deletion leaves its object out of the own listing. If it is lost with this primary, the object is there, and the
        // target would be complete without it; and what it is to carry out, or what is left of an earlier transfer, may
        // reach the target after its listing. So these are decided when the deletion is committed there, too.
        let Some(backfill) = self.active().and_then(|active| active.backfill.as_mut()) else { return };
        let left_out = |key: &ObjectKey| in_batch(key.as_bytes()) && own.binary_search(key).is_err();
        for key in std::mem::take(&mut backfill.unsettled).into_iter().filter(left_out) {
            items.entry(key).or_insert(Differs::Removed);
        }
        backfill.stage = Stage::Batch { end, items };
        step.report = true;
    }

    /// Sends what is left of the batch; moves the cursor when nothing is.
    fn fill_batch(&mut self, step: &mut Step<'_>) {
        let Role::Active(active) = &self.role else { return };
        let Some(backfill) = &active.backfill else { return };
        let Stage::Batch { end, items } = &backfill.stage else { return };
        let target = backfill.target;
        if items.is_empty() || on(Mutant::CursorEarly) {
            let end = end.clone();
            self.move_cursor(end, Vec::new(), step);
            return;
        }
        let unfound = |key: &ObjectKey| active.recovery.was_unfound(key) && self.holding.missing.contains(key);
        let no_room =
            |key: &ObjectKey| active.recovery.waits_for_room_here(key, step.now) && self.holding.missing.contains(key);
        if items.keys().all(|key| unfound(key) || no_room(key)) {
            if items.keys().any(|key| no_room(key) && !unfound(key)) {
                return self.leave_out(target, Refusal::Stuck, step);
            }
            let end = end.clone();
            let item = |key: &ObjectKey| {
                let need = self.holding.missing.get(key)?.need;
                Some(MissingItem { object: key.name(), need, have: LogVersion::ZERO })
            };
            let lacking = items.keys().filter_map(item).collect();
            self.move_cursor(end, lacking, step);
            return;
        }
        let free = self.background_free(active, step);
        let is_ready = |key: &ObjectKey| {
            !active.recovery.is_pushing_to(key, target)
                && !self.holding.missing.contains(key)
                && !active.is_uncommitted(key)
                && !active.recovery.is_unsettled(key)
                && !step.touched.contains(key)
        };
        let ready = |wanted: Differs| {
            let items = items.iter().filter(move |(key, differs)| **differs == wanted && is_ready(key));
            items.map(|(key, _)| key.clone()).take(free).collect::<Vec<_>>()
        };
        // What is removed makes room, perhaps the only room, for what is sent.
        let mut ready_now = ready(Differs::Removed);
        if ready_now.is_empty() {
            ready_now = ready(Differs::Sent);
        }
        let ready = ready_now;
        for key in ready {
            let stored = step.store.stat(&key).and_then(|size| match size {
                Some(_) => exec::stored_version(step.store, &key).map(Some),
                None => Ok(None),
            });
            match stored {
                Ok(Some(version)) if version != LogVersion::ZERO => {
                    self.push_object(target, &key, Some(version), true, step);
                    continue;
                }
                Ok(None) => {
                    self.push_object(target, &key, None, true, step);
                    continue;
                }
                Ok(Some(_)) => {}
                Err(error) => self.note_damage(&key, &error, step),
            }
            if self.mark_own_missing(&key, step) == Noted::Deleted {
                self.push_object(target, &key, None, true, step);
            }
        }
    }

    /// The target is filled up to `end`, but for what it is told to lack.
    fn move_cursor(&mut self, end: BackfillCursor, lacking: Vec<MissingItem>, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let transfer_floor = active.recovery.next_transfer();
        let Some(backfill) = active.backfill.as_mut() else { return };
        let target = backfill.target;
        backfill.cursor = end.clone();
        let confirm = end.is_complete() || !lacking.is_empty();
        if confirm {
            backfill.stage = Stage::Confirm { asked: step.now, lacking: lacking.clone() };
        }
        // From here on writes of these objects carry their effects, whether or not the target has stored the cursor; those
        // of what it lacks wait.
        if let Some(peer) = active.peers.get_mut(&target) {
            peer.cursor = end.clone();
            for item in &lacking {
                peer.missing.insert(ObjectKey::of(&item.object), Lack { need: item.need, have: LogVersion::ZERO });
            }
        }
        let lacking = Some(lacking).filter(|lacking| !lacking.is_empty());
        let progress = BackfillProgress { cursor: end, transfer_floor, lacking };
        self.send(target, PeerBody::BackfillProgress(progress), step);
        self.tick_within(TICK, step);
        if !confirm {
            self.scan(step);
        }
    }

    pub(crate) fn backfill_progressed(&mut self, from: OsdId, cursor: &BackfillCursor, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let Some(backfill) = active.backfill.as_ref().filter(|backfill| backfill.target == from) else { return };
        if !matches!(backfill.stage, Stage::Confirm { .. }) || *cursor < backfill.cursor {
            return;
        }
        step.rerun = true; // what it was told to lack may be sent now
        if backfill.cursor.is_complete() {
            active.backfill = None;
            step.report = true;
        } else {
            self.scan(step);
        }
    }

    pub(crate) fn resend_backfill(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let transfer_floor = active.recovery.next_transfer();
        let Some(backfill) = active.backfill.as_mut() else { return };
        let target = backfill.target;
        match &mut backfill.stage {
            Stage::Scan { since, .. } if step.now.since(*since) >= SCAN_PATIENCE => {
                tracing::warn!(pg = %self.id, %target, "what is there cannot be compared: others are filled meanwhile");
                self.leave_out(target, Refusal::Stuck, step);
            }
            Stage::Scan { since, asked, number } if step.now.since(*asked) >= RESEND => {
                let (since, number) = (*since, *number);
                self.ask_digest(since, number, step);
            }
            Stage::Confirm { asked, lacking } if step.now.since(*asked) >= RESEND => {
                *asked = step.now;
                // But for what has been deleted since, which is certain when the deletion is committed.
                let peer = active.peers.get(&target);
                let lacks = |item: &&MissingItem| {
                    let key = ObjectKey::of(&item.object);
                    active.uncommitted.contains_key(&key) || peer.is_some_and(|peer| peer.missing.contains(&key))
                };
                let lacking: Vec<MissingItem> = lacking.iter().filter(lacks).cloned().collect();
                let lacking = Some(lacking).filter(|lacking| !lacking.is_empty());
                let progress = BackfillProgress { cursor: backfill.cursor.clone(), transfer_floor, lacking };
                self.send(target, PeerBody::BackfillProgress(progress), step);
            }
            Stage::Scan { .. } | Stage::Batch { .. } | Stage::Confirm { .. } => {}
        }
    }
}
