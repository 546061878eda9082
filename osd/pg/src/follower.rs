//! A copy that is not the primary: replica, backfill target or stray. It does what the primary of its interval says.
//!
//! An activation is named by number (`peering`). What is of an older one than the own is dropped.
//!
//! | told | not activated, or in an older activation | in this activation |
//! |---|---|---|
//! | `QueryInfo`, `QueryLog` | answer, when all that is submitted is durable | the same |
//! | `Activate` | merge or replace the log, `info_les = e`, acknowledge when durable → activated | acknowledge again |
//! | `RepOp` next in order | `NotActivated` | apply, acknowledge when durable |
//! | `RepOp` of an object that cannot be read here, or is missing | `NotActivated` | log it, the object is missing; when that is durable `NotActivated` → not activated |
//! | `RepOp` already applied / too early | `NotActivated` | acknowledge what is durable / keep (bounded) |
//! | `Push`, scan, progress, reservation, scrub | `NotActivated` | do, acknowledge when durable |
//! | scan of a copy that cannot be listed | `NotActivated` | what is here is given up; when that is durable `NotActivated` → not activated |
//! | `Pull` | answer | the same |
//! | `RemovePg` | remove the copy, if not a member | the same |
//! | `History` | learn it | the same |
//! | nothing: no word that the activation was completed | | tell the primary what is known here, each [`HISTORY_PATIENCE`], until it gives its history |
//!
//! Invariants: R1 an entry is acknowledged only when it is durable here; R2 entries are applied in log order; R3 a push
//! never replaces an object by an older version: it is taken only for the version that the missing set needs, or, in a
//! backfill, once per transfer and beyond the cursor; nor does a late piece of a transfer that the primary has ended
//! disturb a later one of the same object; R4 an object never gets a version that the own log does not have
//! yet; R5 what is told to change an object that cannot be read here leaves it missing, and the primary peers again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_types::{LogVersion, ObjectName, OsdId, Timestamp};
use holdfast_wire::peer::{
    Activate, ActivateAck, BackfillCursor, BackfillDigest, BackfillProgress, BackfillScan, DigestItem, EntryKind,
    LogEntry, LogReply, MissingItem, ObjectPiece, PeerBody, PiecePosition, Pull, Push, PushAck, PushWhat, RepOp,
};
use holdfast_wire::{Effect, RefusedReason};

use crate::api::{Output, ReadError, Slot, StoreOp, VERSION_ATTR};
use crate::exec;
use crate::key::ObjectKey;
use crate::log::follow_on;
use crate::missing::{Lack, UNNAMED};
use crate::mutants::{Mutant, on};
use crate::pg::messages::{EARLY_BYTES_MAX, write_bytes};
use crate::pg::{AfterDurable, Pg, Role, Said, Step};
use crate::rows;
use crate::split;
use crate::transfer;

/// A stray tells the primary of itself again after this long, then after twice as long, up to [`GREETING_MAX`].
const GREETING_MIN: Duration = Duration::from_secs(2);
const GREETING_MAX: Duration = Duration::from_secs(32);
/// A member that was not told the history of the activation that it has taken asks for it this often.
const HISTORY_PATIENCE: Duration = Duration::from_secs(2);
/// Writes kept that came before the one they follow. The primary repeats what is dropped.
const EARLY_WRITES_MAX: usize = 128;
/// What an object that is missing costs in a message beside its name.
const MISSING_ITEM_BYTES: usize = 48;
/// A recovery slot is given back when the primary has not renewed its claim for this long: its release may be lost.
const SLOT_SILENCE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct HeldSlot {
    granted: bool,
    heard: Timestamp,
}

#[derive(Debug)]
struct Arriving {
    transfer: u64,
    position: PiecePosition,
}

#[derive(Debug)]
struct Judged {
    after: LogVersion,
    head: LogVersion,
    found: Option<MissingItem>,
}

/// See the module document.
#[derive(Debug)]
pub(crate) struct Follower {
    /// The primary's activation whose log this copy has taken.
    activated: Option<u64>,
    /// Newest entry of this interval that is durable here.
    durable: LogVersion,
    /// What the primary says is durable everywhere.
    committed_to: LogVersion,
    /// Writes that came too early, by the entry that they follow.
    early: BTreeMap<LogVersion, RepOp>,
    /// The newest transfer of each object that is under way, and where its next piece starts.
    transfers: BTreeMap<ObjectKey, Arriving>,
    /// Backfill transfers that are complete, from `transfer_floor` on.
    transfers_done: BTreeSet<u64>,
    transfer_floor: u64,
    slot: Option<HeldSlot>,
    /// What was found of the objects after an entry, with the log as it was: the question comes again until it is answered.
    judged: Option<Box<Judged>>,
    greet_at: Timestamp,
    greeting_pause: Duration,
}

impl Follower {
    /// Before the first step of a placement group.
    pub fn unstarted() -> Follower {
        Follower::new(Timestamp::ZERO)
    }

    pub fn new(now: Timestamp) -> Follower {
        Follower {
            activated: None,
            durable: LogVersion::ZERO,
            committed_to: LogVersion::ZERO,
            early: BTreeMap::new(),
            transfers: BTreeMap::new(),
            transfers_done: BTreeSet::new(),
            transfer_floor: 0,
            slot: None,
            judged: None,
            greet_at: now,
            greeting_pause: GREETING_MIN,
        }
    }

    pub fn activation(&self) -> Option<u64> {
        self.activated
    }

    pub fn holds_slot(&self) -> bool {
        self.slot.is_some()
    }
}

/// The store operations of one entry: its effects, the object's new version, the log row.
pub(crate) fn entry_ops(key: &ObjectKey, entry: &LogEntry, effects: &[Effect], ops: &mut Vec<StoreOp>) {
    ops.extend(effects.iter().map(|effect| StoreOp::Object { key: key.clone(), effect: effect.clone() }));
    if entry.kind == EntryKind::Modify {
        let effect = Effect::SetAttr { name: VERSION_ATTR.to_vec(), value: exec::version_value(entry.version).into() };
        ops.push(StoreOp::Object { key: key.clone(), effect });
    }
    ops.push(rows::put_log(entry));
}

/// Whether there is room for a piece of an object that is missing here. The first one takes the place of what is left of
/// the old copy.
pub(crate) fn has_room_to_recover(key: &ObjectKey, piece: &ObjectPiece, step: &Step<'_>) -> bool {
    let replaces = piece.position == PiecePosition::default();
    let freed = if replaces { step.store.stat(key).ok().flatten().unwrap_or(0) } else { 0 };
    step.store.has_room_to_recover((piece.data.len() as u64).saturating_sub(freed))
}

impl Pg {
    fn follower(&mut self) -> Option<&mut Follower> {
        match &mut self.role {
            Role::Follower(follower) => Some(follower),
            _ => None,
        }
    }

    fn is_member(&self) -> bool {
        self.members.up.contains(&self.whoami) || self.members.acting.contains(&self.whoami)
    }

    /// A stray with a copy makes itself known: the primary may need it, or have it removed.
    pub(crate) fn greet_primary(&mut self, step: &mut Step<'_>) {
        let Some(primary) = self.members.primary().filter(|osd| *osd != self.whoami && !self.is_member()) else {
            return;
        };
        let notice = PeerBody::Notice(self.notice(step));
        self.send_when_durable(primary, notice, step);
        let Some(follower) = self.follower() else { return };
        let pause = follower.greeting_pause;
        follower.greet_at = step.now + pause;
        follower.greeting_pause = (pause * 2).min(GREETING_MAX);
        self.tick_within(pause, step);
    }

    pub(crate) fn tick_follower(&mut self, step: &mut Step<'_>) {
        let Some(follower) = self.follower() else { return };
        let greet = follower.greet_at <= step.now;
        let silent = follower.slot.as_ref().is_some_and(|slot| step.now.since(slot.heard) >= SLOT_SILENCE_MAX);
        if silent {
            follower.slot = None;
            step.out.push(Output::Release(Slot::Incoming));
        }
        let (holds, greet_in) = (follower.holds_slot(), follower.greet_at.since(step.now));
        if greet {
            self.greet_primary(step);
        } else if !self.is_member() && self.members.primary().is_some() {
            self.tick_within(greet_in, step);
        }
        if holds {
            self.tick_within(SLOT_SILENCE_MAX, step);
        }
        if self.lacks_history() {
            self.ask_history(step);
        }
    }

    /// Whether this member has taken an activation for writes and was not told that it was completed: the primary says so
    /// once. Without that word the intervals before count for this one, and those who were their members would be waited
    /// for, should the others of this interval go.
    fn lacks_history(&self) -> bool {
        let taken = self.holding.last_epoch_started;
        let of_this_interval = taken >= self.interval.first && taken > self.history.last_epoch_started;
        let activated = matches!(&self.role, Role::Follower(follower) if follower.activated.is_some());
        activated && of_this_interval && self.is_member()
    }

    /// Shows the primary what is known here; it gives what it knows more.
    fn ask_history(&mut self, step: &mut Step<'_>) {
        if let Some(primary) = self.members.primary().filter(|osd| *osd != self.whoami) {
            let notice = PeerBody::Notice(self.notice(step));
            self.send_when_durable(primary, notice, step);
            self.tick_within(HISTORY_PATIENCE, step);
        }
    }

    /// What of that which its log tells of after `after` this copy cannot give, read once: the question comes again until it
    /// is answered.
    fn judge_own(&mut self, after: LogVersion, step: &mut Step<'_>) -> Option<MissingItem> {
        let head = self.holding.log.head();
        if let Some(judged) = self.follower().and_then(|follower| follower.judged.as_ref())
            && (judged.after, judged.head) == (after, head)
        {
            return judged.found.clone();
        }
        let found = self.first_ungivable(after, step);
        if let Some(follower) = self.follower() {
            follower.judged = Some(Box::new(Judged { after, head, found: found.clone() }));
        }
        found
    }

    /// The primary of this interval says something.
    pub(crate) fn follow(&mut self, from: OsdId, body: PeerBody, said: Said, step: &mut Step<'_>) {
        let Role::Follower(follower) = &self.role else { return };
        let (start, ours) = (said.start, follower.activated);
        let activated = ours.is_some() && (ours == said.activation || on(Mutant::StaleActivationAccepted));
        match body {
            PeerBody::QueryInfo => {
                let notice = PeerBody::Notice(self.notice(step));
                self.send_when_durable(from, notice, step);
            }
            PeerBody::QueryLog { since, whole_after } => {
                let missing = whole_after.and_then(|after| self.judge_own(after, step));
                let reply = LogReply { missing: missing.into_iter().collect(), ..self.log_reply(since) };
                self.send_when_durable(from, PeerBody::Log(reply), step);
            }
            PeerBody::Activate(_) if activated => self.acknowledge_activation(from, step),
            PeerBody::Activate(activate) if said.activation > ours => {
                self.follow_activate(from, activate, said, step);
            }
            PeerBody::History(history) => self.learn_history(&history, start, step),
            PeerBody::RemovePg if !self.is_member() && !on(Mutant::StrayKept) => {
                tracing::info!(pg = %self.id, osd = %self.whoami, "stray copy removed");
                self.remove_copy(RefusedReason::WrongPrimary, step);
            }
            PeerBody::Pull(pull) => self.serve_pull(from, pull, step),
            PeerBody::RepOp(op) if activated => self.follow_write(from, op, step),
            PeerBody::Push(push) if activated => self.follow_push(from, push, step),
            PeerBody::BackfillScan(scan) if activated => self.follow_scan(from, scan, step),
            PeerBody::BackfillProgress(progress) if activated => self.follow_progress(from, progress, step),
            PeerBody::ReservationRequest if activated => self.follow_reservation(from, step),
            PeerBody::ReservationRelease if activated => self.release_incoming(step),
            PeerBody::Scrub(message) if activated => self.scrub_asked(from, message, step),
            PeerBody::RepOp(_)
            | PeerBody::Push(_)
            | PeerBody::BackfillScan(_)
            | PeerBody::BackfillProgress(_)
            | PeerBody::ReservationRequest
            | PeerBody::Scrub(_)
                if said.activation > ours =>
            {
                self.ask_activation(said.activation.unwrap_or_default(), step);
            }
            _ => tracing::debug!(pg = %self.id, %from, "message without use in this state dropped"),
        }
    }

    /// Tells the primary that its activation is not known here.
    pub(crate) fn ask_activation(&self, activation: u64, step: &mut Step<'_>) {
        let primary = self.members.primary().filter(|osd| *osd != self.whoami && self.is_member());
        if let Some(primary) = primary {
            self.send(primary, PeerBody::NotActivated { activation }, step);
        }
    }

    pub(crate) fn log_reply(&self, since: LogVersion) -> LogReply {
        let log = &self.holding.log;
        let overlaps = since != LogVersion::ZERO && log.joins(since) || log.tail() == since;
        let (entries, dups) = if overlaps {
            (log.after(since).cloned().collect(), Vec::new())
        } else {
            (log.entries().cloned().collect(), log.dups().cloned().collect())
        };
        LogReply {
            since,
            overlaps,
            info: self.holding.info(),
            history: self.history.clone(),
            entries,
            missing: Vec::new(),
            dups,
        }
    }

    // ---- activation ----

    fn follow_activate(&mut self, from: OsdId, activate: Activate, said: Said, step: &mut Step<'_>) {
        if !follow_on(activate.since.unwrap_or(activate.info.log_tail), &activate.entries) {
            tracing::error!(pg = %self.id, %from, "an activation whose entries are not in order is dropped");
            return;
        }
        // What was submitted before tells of entries that may be rewound, whose versions come again.
        self.interval_number += 1;
        let mut ops = Vec::new();
        match activate.since {
            Some(since) if !self.holding.log.joins(since) => {
                tracing::warn!(pg = %self.id, %from, %since, "activation does not join the log here");
                self.ask_activation(said.activation.unwrap_or_default(), step);
                return;
            }
            Some(since) => {
                let auth: Vec<&LogEntry> = activate.entries.iter().collect();
                self.adopt_log(since, &auth, step);
            }
            None => {
                let (tail, sessions) = (activate.info.log_tail, activate.sessions.unwrap_or_default());
                self.replace_log(tail, sessions, activate.dups, activate.entries, step);
            }
        }
        self.holding.take_counts(&activate.info);
        match activate.last_epoch_started {
            Some(epoch) => {
                self.holding.last_epoch_started = epoch;
                self.stand_ins_missed = None;
            }
            // Too few for writes: the log is that of a copy which took part up to then, and so has all until then. Else
            // a copy that is filled now would count for nothing, though it may be the last one some day.
            None => {
                let own = &mut self.holding.last_epoch_started;
                *own = (*own).max(activate.info.last_epoch_started);
            }
        }
        crate::intervals::merge_history(&mut self.history, &activate.history);
        self.learn_beginning(said.start);
        ops.push(rows::put_info(&self.holding.info()));
        self.push_history_row(&mut ops);
        let head = self.holding.log.head();
        self.submit(ops, Some(AfterDurable::Activated(head)), step);
        self.scrub.reset(step.out);
        if let Some(follower) = self.follower() {
            // Nothing that was under way in an earlier activation counts in this one.
            let slot = follower.slot.take();
            *follower = Follower { activated: said.activation, slot, ..Follower::new(step.now) };
        }
        if self.lacks_history() {
            self.tick_within(HISTORY_PATIENCE, step);
        }
        self.acknowledge_activation(from, step);
    }

    pub(crate) fn activation_durable(&mut self, head: LogVersion) {
        if let Some(follower) = self.follower() {
            follower.durable = follower.durable.max(head);
        }
    }

    fn acknowledge_activation(&mut self, from: OsdId, step: &mut Step<'_>) {
        let all = self.holding.missing.to_items();
        let (info, count) = (self.holding.info(), all.len() as u64);
        let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
        for item in all {
            bytes += MISSING_ITEM_BYTES + item.object.as_bytes().len();
            part.push(item);
            if bytes >= self.limits.piece_bytes {
                parts.push(std::mem::take(&mut part));
                bytes = 0;
            }
        }
        if !part.is_empty() || parts.is_empty() {
            parts.push(part);
        }
        let mut first = 0;
        let several = parts.len() > 1;
        for missing in parts {
            let next = first + missing.len() as u64;
            let missing_from = several.then_some(first);
            let ack =
                ActivateAck { info: info.clone(), missing, missing_from, missing_count: several.then_some(count) };
            self.send_when_durable(from, PeerBody::ActivateAck(ack), step);
            first = next;
        }
    }

    // ---- writes ----

    /// Whether a peer's message is about an object of another placement group. No sound peer sends that; the store would
    /// refuse it, and this daemon would take its own disk for the cause.
    fn is_foreign(&self, from: OsdId, object: &ObjectName) -> bool {
        let is_foreign = !split::has(&self.map, self.id)(object);
        if is_foreign {
            tracing::warn!(pg = %self.id, %from, ?object, "message about an object of another placement group dropped");
        }
        is_foreign
    }

    fn follow_write(&mut self, from: OsdId, op: RepOp, step: &mut Step<'_>) {
        if self.is_foreign(from, &op.entry.object) {
            return;
        }
        let head = self.holding.log.head();
        let Some(follower) = self.follower() else { return };
        if op.entry.version <= head {
            if op.entry.version <= follower.durable {
                let version = follower.durable;
                self.acknowledge_write(from, version, step);
            }
            return;
        }
        if op.previous != head && !on(Mutant::WriteGapIgnored) {
            let held: usize = follower.early.values().map(write_bytes).sum();
            let fits = held == 0 || held.saturating_add(write_bytes(&op)) <= EARLY_BYTES_MAX;
            if fits && follower.early.len() < EARLY_WRITES_MAX {
                follower.early.insert(op.previous, op);
            }
            return;
        }
        self.apply_write(op, step);
        loop {
            let head = self.holding.log.head();
            let next = self.follower().filter(|follower| follower.activated.is_some());
            let Some(next) = next.and_then(|follower| follower.early.remove(&head)) else { break };
            self.apply_write(next, step);
        }
    }

    fn apply_write(&mut self, op: RepOp, step: &mut Step<'_>) {
        let key = ObjectKey::of(&op.entry.object);
        let version = op.entry.version;
        if version <= self.holding.log.head() {
            return;
        }
        let mut ops = Vec::with_capacity(op.effects.as_ref().map_or(0, Vec::len) + 4);
        if op.entry.kind == EntryKind::Delete && self.holding.missing.remove(&key).is_some() {
            ops.push(rows::delete_missing(&key)); // nothing of it is needed any more
            if let Some(follower) = self.follower() {
                follower.transfers.remove(&key);
            }
        }
        let mut unfit = false;
        if let Some(effects) = &op.effects {
            if let Err(error) = step.store.stat(&key)
                && effects.first() != Some(&Effect::Remove)
            {
                // The store would not take it. The object becomes missing, and the primary must learn that. Beyond the
                // cursor (backfill had just sent it) nothing is ever missing (MG3): it is compared again.
                self.note_damage(&key, &error, step);
                if self.holding.last_backfill.covers(key.as_bytes()) {
                    self.put_lack(&key, Lack { need: version, have: LogVersion::ZERO }, &mut ops);
                }
                ops.push(rows::put_log(&op.entry));
                unfit = true;
            } else if let Some(lack) = self.holding.missing.get(&key) {
                // The primary waits for the recovery of an object before it writes it; should it be wrong, the object
                // stays missing, at the new version, and the primary must learn that, too.
                tracing::warn!(pg = %self.id, object = ?key, "write to an object that is missing here");
                self.put_lack(&key, Lack { need: version, have: lack.have }, &mut ops);
                ops.push(rows::put_log(&op.entry));
                unfit = true;
            } else {
                self.forget_damage(&key, effects);
                entry_ops(&key, &op.entry, effects, &mut ops);
                if on(Mutant::DeletedRowsKept) {
                    ops.retain(|op| !matches!(op, StoreOp::Object { effect: Effect::DeleteRows { .. }, .. }));
                }
            }
        } else {
            ops.push(rows::put_log(&op.entry));
        }
        self.holding.objects += op.entry.objects_delta;
        self.holding.bytes += op.entry.bytes_delta;
        self.holding.log.append(op.entry);
        self.trim_log(op.trim_to, &mut ops);
        ops.push(rows::put_info(&self.holding.info()));
        if let Some(follower) = self.follower() {
            follower.committed_to = follower.committed_to.max(op.committed_to);
        }
        if unfit {
            self.submit(ops, None, step);
            self.lose_activation(step);
        } else {
            self.submit(ops, Some(AfterDurable::Logged(version)), step);
        }
        if on(Mutant::AckBeforeDurable) {
            self.follower_logged(version, step);
        }
    }

    /// What the primary knows of this copy is not true any more: it must peer again.
    fn lose_activation(&mut self, step: &mut Step<'_>) {
        let activation = self.follower().and_then(|follower| follower.activated.take());
        if let (Some(activation), Some(primary)) = (activation, self.members.primary()) {
            self.send_when_durable(primary, PeerBody::NotActivated { activation }, step);
        }
    }

    /// Trims the log as the primary says. What is missing here does not matter: the missing set has its own rows.
    pub(crate) fn trim_log(&mut self, trim_to: LogVersion, ops: &mut Vec<StoreOp>) {
        let bound = trim_to.min(self.holding.log.head());
        if bound > self.holding.log.tail() {
            let trimmed = self.holding.log.trim_to(bound, &self.limits);
            rows::trim(&trimmed, ops);
        }
    }

    pub(crate) fn put_lack(&mut self, key: &ObjectKey, lack: Lack, ops: &mut Vec<StoreOp>) {
        self.holding.missing.insert(key.clone(), lack);
        ops.push(rows::put_missing(key, lack));
    }

    pub(crate) fn follower_logged(&mut self, version: LogVersion, step: &mut Step<'_>) {
        let Some(follower) = self.follower() else { return };
        follower.durable = follower.durable.max(version);
        if let Some(primary) = self.members.primary() {
            self.acknowledge_write(primary, version, step);
        }
    }

    fn acknowledge_write(&self, to: OsdId, version: LogVersion, step: &mut Step<'_>) {
        let full = (!step.store.has_room(0)).then_some(true);
        self.send(to, PeerBody::RepOpAck { version, full }, step);
    }

    // ---- objects ----

    /// Sends a piece of an object, if it is here in exactly that version.
    pub(crate) fn serve_pull(&mut self, from: OsdId, pull: Pull, step: &mut Step<'_>) {
        if pull.version == LogVersion::ZERO {
            return self.tell_version(from, pull, step);
        }
        let key = ObjectKey::of(&pull.object);
        let piece = transfer::read_piece(step.store, &key, pull.version, &pull.position, self.limits.piece_bytes);
        match piece {
            Ok(Some(piece)) if !step.touched.contains(&key) => {
                self.send(from, PeerBody::PullReply(piece), step);
                return;
            }
            Ok(Some(_)) => {}
            Ok(None) => self.lack_what_was_asked(&key, pull.version, step),
            Err(error) => {
                self.note_damage(&key, &error, step);
                self.lack_what_was_asked(&key, pull.version, step);
            }
        }
        self.send_when_durable(from, PeerBody::PullFailed(pull), step);
    }

    /// An object that should be here in this version cannot be sent: it counts as missing from now on, or the copy that
    /// the primary sends for it would be taken for one that is not needed (R3).
    ///
    /// Only when it is certain that it should be here: a question may come late, when the object has long been written
    /// anew or deleted, and the log does not tell of it any more.
    fn lack_what_was_asked(&mut self, key: &ObjectKey, version: LogVersion, step: &mut Step<'_>) {
        let holding = &self.holding;
        let newest = holding.log.newest_of(&key.name()).map(|entry| entry.version);
        let is_newest = match (newest, exec::stored_version(step.store, key)) {
            (Some(newest), _) => newest == version,
            (None, Ok(stored)) => stored == version,
            (None, Err(_)) => true, // what cannot be read is here: it was not deleted
        };
        // What is not logged here may come to nothing.
        if version <= UNNAMED
            || version > holding.log.head()
            || !is_newest
            || !holding.last_backfill.covers(key.as_bytes())
            || holding.missing.contains(key)
        {
            return;
        }
        let mut ops = Vec::new();
        self.put_lack(key, Lack { need: version, have: LogVersion::ZERO }, &mut ops);
        ops.push(rows::put_info(&self.holding.info()));
        self.submit(ops, None, step);
    }

    fn follow_push(&mut self, from: OsdId, push: Push, step: &mut Step<'_>) {
        let object = match &push.what {
            PushWhat::Piece(piece) => &piece.object,
            PushWhat::Remove(object) => object,
        };
        if self.is_foreign(from, object) {
            return;
        }
        if let Some(ack) = self.take_push(push, step) {
            self.send_when_durable(from, PeerBody::PushAck(ack), step);
        }
    }

    /// Takes a push; gives the answer, or nothing when it must not be answered.
    fn take_push(&mut self, push: Push, step: &mut Step<'_>) -> Option<PushAck> {
        let transfer = push.transfer;
        let send_next = |next| PushAck { transfer, next, no_room: None };
        let Role::Follower(follower) = &self.role else { return None };
        let late_taken = push.backfill && on(Mutant::LateBackfillTaken);
        let over = transfer < follower.transfer_floor || follower.transfers_done.contains(&transfer);
        if push.backfill && over && !late_taken {
            return Some(send_next(None));
        }
        let key = match &push.what {
            PushWhat::Piece(piece) => ObjectKey::of(&piece.object),
            PushWhat::Remove(object) => ObjectKey::of(object),
        };
        let expected = match follower.transfers.get(&key) {
            Some(newest) if newest.transfer > transfer && !late_taken => return None, // the primary has ended this one
            Some(newest) if newest.transfer == transfer => newest.position.clone(),
            Some(_) | None => PiecePosition::default(),
        };
        let piece = match push.what {
            PushWhat::Piece(piece) => piece,
            PushWhat::Remove(_) if push.backfill => {
                self.submit(vec![StoreOp::Object { key: key.clone(), effect: Effect::Remove }], None, step);
                let follower = self.follower()?;
                follower.transfers_done.insert(transfer);
                follower.transfers.insert(key, Arriving { transfer, position: expected });
                return Some(send_next(None));
            }
            PushWhat::Remove(_) => return self.take_that_there_is_none(&key, transfer, step),
        };
        if piece.version > self.holding.log.head() {
            return None; // R4: its entry has not come yet; the primary repeats the push
        }
        if push.backfill {
            let newer = self.holding.log.newest_of(&piece.object).is_some_and(|entry| entry.version > piece.version);
            if newer && !late_taken {
                return Some(send_next(None)); // late: the object was written or deleted since
            }
        } else {
            match self.holding.missing.get(&key) {
                // A newer one than needed: what was needed had been overwritten when it was noticed that it is missing.
                Some(lack) if lack.need <= piece.version => {}
                Some(lack)
                    if self.holding.log.newest_of(&piece.object).is_some_and(|entry| entry.version == lack.need) =>
                {
                    // The log here reaches further back than the primary's, and what is there is not the newest.
                    let (object, version) = (&piece.object, piece.version);
                    tracing::warn!(pg = %self.id, ?object, need = %lack.need, %version, "a newer one is missing here");
                    self.lose_activation(step);
                    return None;
                }
                _ if on(Mutant::OldPushTaken) => {}
                _ => return Some(send_next(None)), // R3: it is here already
            }
        }
        if piece.position != expected {
            return Some(send_next(Some(expected)));
        }
        let bytes = piece.data.len() as u64;
        let has_room = if push.backfill {
            // The room that the old copy of it has comes back; where that is all that is needed, a full OSD has it, too.
            let in_its_place = self.holding.needs_no_more_room() && has_room_to_recover(&key, &piece, step);
            in_its_place || self.may_be_filled() && step.store.has_room(bytes)
        } else {
            has_room_to_recover(&key, &piece, step)
        };
        if !has_room {
            return Some(PushAck { transfer, next: Some(expected), no_room: Some(true) });
        }
        let next = piece.next.clone();
        self.write_piece(&key, piece, step);
        let follower = self.follower()?;
        if next.is_some() || push.backfill {
            let position = next.clone().unwrap_or_default();
            follower.transfers.insert(key, Arriving { transfer, position });
        } else {
            follower.transfers.remove(&key);
        }
        if next.is_none() && push.backfill {
            follower.transfers_done.insert(transfer);
        }
        Some(send_next(next))
    }

    /// The primary has found out that there is no object that is missing here in a version that is not known.
    fn take_that_there_is_none(&mut self, key: &ObjectKey, transfer: u64, step: &mut Step<'_>) -> Option<PushAck> {
        match self.holding.missing.get(key) {
            None => {} // taken before
            Some(lack) if lack.is_unnamed() => {
                self.holding.missing.remove(key);
                let mut ops = vec![StoreOp::Object { key: key.clone(), effect: Effect::Remove }];
                ops.extend([rows::delete_missing(key), rows::put_info(&self.holding.info())]);
                let mended = self.mend(key);
                self.submit(ops, mended, step);
                self.follower()?.transfers.remove(key);
            }
            Some(lack) => {
                // The log here reaches further back than the primary's, and names it.
                tracing::warn!(pg = %self.id, object = ?key, need = %lack.need, "there is one that is missing here");
                self.lose_activation(step);
                return None;
            }
        }
        Some(PushAck { transfer, next: None, no_room: None })
    }

    /// Writes a piece of an object that is missing here, or beyond the backfill cursor; with the last piece the object is
    /// whole.
    pub(crate) fn write_piece(&mut self, key: &ObjectKey, piece: ObjectPiece, step: &mut Step<'_>) {
        let mut ops = Vec::new();
        let last = piece.next.is_none();
        if let Some(lack) = self.holding.missing.get(key) {
            if last {
                self.holding.missing.remove(key);
                ops.push(rows::delete_missing(key));
            } else if lack.have != LogVersion::ZERO {
                self.put_lack(key, Lack { have: LogVersion::ZERO, ..lack }, &mut ops);
            }
        }
        transfer::piece_ops(key, piece, &mut ops);
        let mended = if last {
            ops.push(rows::put_info(&self.holding.info()));
            self.mend(key)
        } else {
            None
        };
        self.submit(ops, mended, step);
    }

    // ---- backfill ----

    fn follow_scan(&mut self, from: OsdId, scan: BackfillScan, step: &mut Step<'_>) {
        self.end_transfers_before(scan.transfer_floor.unwrap_or(0));
        let limit = (scan.limit as usize).clamp(1, 4 * self.limits.backfill_batch.max(1));
        let after = (!scan.after.is_empty()).then_some(scan.after.as_slice());
        let keys = match step.store.list_objects(after, limit) {
            Ok(keys) => keys,
            Err(error) => {
                self.note_listing(Err(&error), step);
                if matches!(error, ReadError::Corrupt { .. }) && self.give_up_unlisted(step) {
                    self.lose_activation(step);
                }
                return;
            }
        };
        self.note_listing(Ok(()), step);
        let upto = match keys.last() {
            Some(last) if keys.len() >= limit => BackfillCursor::At(last.as_bytes().to_vec()),
            _ => BackfillCursor::Complete,
        };
        let item = |key: &ObjectKey| DigestItem {
            key: key.as_bytes().to_vec(),
            // What cannot be read counts as half-written: it is sent anew.
            version: exec::stored_version(step.store, key).unwrap_or(LogVersion::ZERO),
        };
        let objects = keys.iter().map(item).collect();
        let digest = BackfillDigest { after: scan.after, upto, objects, number: scan.number };
        self.send(from, PeerBody::BackfillDigest(digest), step);
    }

    fn follow_progress(&mut self, from: OsdId, progress: BackfillProgress, step: &mut Step<'_>) {
        if progress.cursor > self.holding.last_backfill {
            let mut ops = Vec::new();
            for item in progress.lacking.unwrap_or_default() {
                let key = ObjectKey::of(&item.object);
                let newer = self.holding.log.newest_of(&item.object).filter(|entry| entry.version > item.need);
                // What is newer may have overtaken this, and came with all that it does then: the primary let nobody write
                // the object before it had said this. Or it is from before, logged alone while the object was beyond the
                // cursor: the primary has forgotten it, or has lost what it did.
                let is_here = |entry: &LogEntry| {
                    let stored = || exec::stored_version(step.store, &key).is_ok_and(|held| held == entry.version);
                    step.touched.contains(&key) || stored()
                };
                if newer.is_some_and(|entry| entry.kind == EntryKind::Delete) {
                    ops.push(StoreOp::Object { key, effect: Effect::Remove });
                } else if !newer.is_some_and(is_here) {
                    let need = newer.map_or(item.need, |entry| entry.version);
                    self.put_lack(&key, Lack { need, have: LogVersion::ZERO }, &mut ops);
                }
            }
            if progress.cursor.is_complete() {
                (self.holding.lost, self.holding.replaces_bytes) = (false, None);
            }
            self.holding.last_backfill = progress.cursor;
            ops.push(rows::put_info(&self.holding.info()));
            self.submit(ops, None, step);
            self.end_transfers_before(progress.transfer_floor);
        }
        let cursor = self.holding.last_backfill.clone();
        self.send_when_durable(from, PeerBody::BackfillProgressAck { cursor }, step);
    }

    /// What backfill sends in an earlier transfer than this is late from now on.
    fn end_transfers_before(&mut self, floor: u64) {
        let missing = &self.holding.missing;
        if let Role::Follower(follower) = &mut self.role {
            follower.transfer_floor = follower.transfer_floor.max(floor);
            let floor = follower.transfer_floor;
            follower.transfers_done = follower.transfers_done.split_off(&floor);
            follower.transfers.retain(|key, newest| newest.transfer >= floor || missing.contains(key));
        }
    }

    // ---- reservations ----

    /// Whether the map lets this copy, which is not complete, have more bytes. On an OSD that takes no further copies one
    /// that comes to less than what it takes the place of is filled all the same: that frees room, and an OSD that came
    /// back with what has been deleted since would stay too full for ever.
    fn may_be_filled(&self) -> bool {
        !self.map.takes_no_backfill(self.whoami) || self.holding.needs_no_more_room()
    }

    fn follow_reservation(&mut self, from: OsdId, step: &mut Step<'_>) {
        let now = step.now;
        // What the log says must be here is taken as long as there is any room, and so is what takes the place of an old
        // copy, which may be what frees a full OSD; a copy that is being filled otherwise waits for more.
        let holding = &self.holding;
        let no_more_needed = holding.last_backfill.is_complete() || holding.needs_no_more_room();
        let has_room = no_more_needed || self.may_be_filled() && step.store.has_room(0);
        let Some(follower) = self.follower() else { return };
        if !has_room {
            if follower.slot.take().is_some() {
                step.out.push(Output::Release(Slot::Incoming));
            }
            self.send(from, PeerBody::ReservationReject, step);
            return;
        }
        match &mut follower.slot {
            None => {
                follower.slot = Some(HeldSlot { granted: false, heard: now });
                step.out.push(Output::Reserve(Slot::Incoming));
            }
            Some(slot) => {
                slot.heard = now;
                if slot.granted {
                    self.send(from, PeerBody::ReservationGrant, step);
                }
            }
        }
        self.tick_within(SLOT_SILENCE_MAX, step);
    }

    fn release_incoming(&mut self, step: &mut Step<'_>) {
        if self.follower().and_then(|follower| follower.slot.take()).is_some() {
            step.out.push(Output::Release(Slot::Incoming));
        }
    }

    pub(crate) fn incoming_reserved(&mut self, step: &mut Step<'_>) {
        let primary = self.members.primary();
        let Some(slot) = self.follower().and_then(|follower| follower.slot.as_mut()) else { return };
        slot.granted = true;
        if let Some(primary) = primary {
            self.send(primary, PeerBody::ReservationGrant, step);
        }
    }

    pub(crate) fn incoming_refused(&mut self, step: &mut Step<'_>) {
        let primary = self.members.primary();
        if self.follower().and_then(|follower| follower.slot.take()).is_some()
            && let Some(primary) = primary
        {
            self.send(primary, PeerBody::ReservationReject, step);
        }
    }
}
