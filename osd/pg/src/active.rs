//! The primary while it serves: admission, execution, replication and commit of client requests.
//!
//! | request | executed when | answered when |
//! |---|---|---|
//! | write | active for writes, object whole on all members and not being filled | its entry is durable on all members |
//! | removal of what cannot be fetched (unfound, or no room) | at once: nothing of the object is needed | its entry is durable on all members |
//! | write seen before | object whole on `min_size` members | with the first result, when that is durable everywhere |
//! | read, failed assert | object whole here and on `min_size` members | its newest write is durable everywhere |
//!
//! Invariants: W1 a write is acknowledged only when every acting member and backfill target has it durable; W2 commits
//! are in log order; W3 what an answer shows of an object is committed (no read of what may be taken back); W4 a request
//! id is executed at most once while its session is remembered; W5 nothing is answered about an object of which fewer
//! than `min_size` acting members hold the newest version: an entry that activation has put into all logs may still be on
//! one disk only; W6 a write is refused before it is logged when a member that carries it out has no room for it, unless
//! it frees space, or when one that lacks the object has no room for the object.
//!
//! What shows an object leaves under the leases of all other acting members (`lease`); writes need none (F1).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use holdfast_map::SpaceLevel;
use holdfast_types::{LogVersion, OsdId, RequestId, Timestamp};
use holdfast_wire::peer::{BackfillCursor, EntryKind, LogEntry, PeerBody, RepOp, StoredResults};
use holdfast_wire::{ClientOutcome, ClientReply, Effect, ObjectOp, OpError, OpResult, RefusedReason};

use crate::api::{Outbox, Output, Slot};
use crate::backfill::Backfill;
use crate::clients::{Queued, Remembered};
use crate::exec::{self, Executed, Stopped};
use crate::follower::entry_ops;
use crate::key::ObjectKey;
use crate::lease;
use crate::log::Answered;
use crate::missing::Missing;
use crate::mutants::{Mutant, on};
use crate::pg::{AfterDurable, Pg, Role, Said, Step, TICK};
use crate::recovery::Recovery;
use crate::rows;
use crate::split::Recount;
use crate::unnamed::Noted;

/// A write that a peer has not acknowledged is sent again after this long.
const RESEND: Duration = Duration::from_secs(1);
/// Writes sent again at a time; the rest follows when these are acknowledged.
const RESEND_WRITES_MAX: usize = 32;
/// Bytes of results that may wait for the commit of what they show; a read beyond that is told to come again.
const HELD_BYTES_MAX: usize = 32 << 20;
/// Most bytes of rows that a request may put beside what it deletes when there is no room: one row of the largest size
/// (the manifest of a deleted object, waiting to be collected), and some small ones.
const ROWS_BESIDE_DELETE_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// The monitors are asked again for another acting set after this long.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What the primary knows of a member or backfill target.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Newest entry that is durable there.
    pub acked: LogVersion,
    pub missing: Missing,
    /// How far it is filled; ahead of what is durable there by what backfill has just completed.
    pub cursor: BackfillCursor,
    pub acting: bool,
}

impl Peer {
    pub fn new(acked: LogVersion, missing: Missing, cursor: BackfillCursor) -> Peer {
        Peer { acked, missing, cursor, acting: false }
    }
}

/// An answer that waits for the commit of a version.
#[derive(Debug)]
struct Held {
    queued: Queued,
    outcome: ClientOutcome,
    /// Whether a log entry tells of it.
    logged: bool,
}

/// What came of holding an answer.
enum Hold {
    /// It waits for the commit.
    Kept,
    /// It waits in the place of an earlier sending of the same request.
    Replaced(Queued),
    /// It may go out now.
    Due(Held),
}

impl Held {
    fn bytes(&self) -> usize {
        match &self.outcome {
            ClientOutcome::Done { results, .. } => results.iter().map(exec::result_bytes).sum(),
            ClientOutcome::Failed { .. } | ClientOutcome::Refused(_) => 0,
        }
    }
}

/// A write that is not yet durable everywhere.
#[derive(Debug)]
struct InFlight {
    version: LogVersion,
    previous: LogVersion,
    key: ObjectKey,
    effects: Vec<Effect>,
    /// Peers that carry it out; the others only log it. Decided once (B1): when it is sent again, backfill may have come
    /// past the object with what later writes made of it.
    carried_out_by: BTreeSet<OsdId>,
    answers: Vec<Held>,
    sent: Timestamp,
}

/// See the module document.
#[derive(Debug)]
pub(crate) struct Active {
    pub writeable: bool,
    pub peers: BTreeMap<OsdId, Peer>,
    /// Other OSDs that hold copies.
    pub strays: BTreeSet<OsdId>,
    /// Objects that somebody wants to read, for want of a lease.
    leaseless: BTreeSet<ObjectKey>,
    /// Listings of backfill targets that were asked for so far.
    pub scans: u64,
    /// Others that have said that they hold none.
    pub without_copy: BTreeSet<OsdId>,
    pub recovery: Recovery,
    pub backfill: Option<Backfill>,
    pub committed_to: LogVersion,
    local_durable: LogVersion,
    in_flight: VecDeque<InFlight>,
    /// Answers that wait in there, and the bytes of their results.
    held: usize,
    held_bytes: usize,
    /// Newest uncommitted version by object.
    uncommitted: BTreeMap<ObjectKey, LogVersion>,
    /// Requests that write, have an answer without a log entry, and wait for a commit to get it.
    unlogged: BTreeSet<RequestId>,
    pub clean: bool,
    pub recount: Recount,
    asked_acting_at: Option<Timestamp>,
    /// Who should serve, because this primary lacks something that it cannot get; it goes on with all else meanwhile.
    better_acting: Option<Vec<OsdId>>,
}

impl Active {
    pub fn new(writeable: bool, head: LogVersion, peers: BTreeMap<OsdId, Peer>, strays: BTreeSet<OsdId>) -> Active {
        Active {
            writeable,
            peers,
            strays,
            leaseless: BTreeSet::new(),
            scans: 0,
            without_copy: BTreeSet::new(),
            recovery: Recovery::default(),
            backfill: None,
            committed_to: head,
            local_durable: head,
            in_flight: VecDeque::new(),
            held: 0,
            held_bytes: 0,
            uncommitted: BTreeMap::new(),
            unlogged: BTreeSet::new(),
            clean: false,
            recount: Recount::default(),
            asked_acting_at: None,
            better_acting: None,
        }
    }

    /// Requests executed but not answered, in the order in which they came.
    pub fn into_requests(self) -> Vec<Queued> {
        self.in_flight.into_iter().flat_map(|write| write.answers).map(|held| held.queued).collect()
    }

    pub fn release_slots(&self, out: &mut Outbox) {
        if self.recovery.slots.asked_or_held() {
            out.push(Output::Release(Slot::Outgoing));
        }
    }

    pub fn is_uncommitted(&self, key: &ObjectKey) -> bool {
        self.uncommitted.contains_key(key)
    }

    /// Whether a write to any such object is not durable everywhere yet.
    pub fn has_uncommitted(&self, which: impl Fn(&ObjectKey) -> bool) -> bool {
        self.uncommitted.keys().any(which)
    }

    /// Keeps an answer until the version is committed.
    fn hold(&mut self, version: LogVersion, held: Held) -> Hold {
        if version <= self.committed_to {
            return Hold::Due(held);
        }
        let at = self.in_flight.partition_point(|write| write.version < version);
        let Some(write) = self.in_flight.get_mut(at) else { return Hold::Due(held) };
        let id = held.queued.request.id;
        if let Some(same) = write.answers.iter_mut().find(|other| other.queued.request.id == id) {
            self.held_bytes = (self.held_bytes + held.bytes()).saturating_sub(same.bytes());
            return Hold::Replaced(std::mem::replace(same, held).queued);
        }
        if !held.logged && held.queued.request.is_write() {
            self.unlogged.insert(id);
        }
        self.held += 1;
        self.held_bytes += held.bytes();
        write.answers.push(held);
        Hold::Kept
    }

    /// A request whose answer is held without a log entry was sent again: the answer goes to the new sending. Gives the
    /// one that it replaces.
    fn redirect(&mut self, queued: Queued) -> Queued {
        let id = queued.request.id;
        let held = self.in_flight.iter_mut().flat_map(|write| &mut write.answers);
        match held.into_iter().find(|held| !held.logged && held.queued.request.id == id) {
            Some(held) => std::mem::replace(&mut held.queued, queued),
            None => queued,
        }
    }

    /// Whether a write of the object must wait: it is missing, or being copied, on a peer.
    fn is_degraded(&self, key: &ObjectKey) -> bool {
        self.recovery.is_pushing(key) || self.peers.values().any(|peer| peer.missing.contains(key))
    }

    /// Whether a peer that lacks the object has just said that it has no room for it.
    fn lacks_room_for(&self, key: &ObjectKey, now: Timestamp) -> bool {
        let lacks =
            |(osd, peer): (&OsdId, &Peer)| peer.missing.contains(key) && self.recovery.has_no_room(*osd, key, now);
        self.peers.iter().any(lacks)
    }

    /// Acting members, this one included, that hold the newest version of an object which is whole here.
    fn copies_held(&self, key: &ObjectKey) -> usize {
        1 + self.peers.values().filter(|peer| peer.acting && !peer.missing.contains(key)).count()
    }

    /// Whether a peer is to carry out a write of the object, or only to log it.
    fn takes_effects(&self, osd: OsdId, peer: &Peer, key: &ObjectKey) -> bool {
        peer.cursor.covers(key.as_bytes())
            || self.backfill.as_ref().is_some_and(|backfill| {
                backfill.target == osd && backfill.is_filled(key) && !on(Mutant::BatchNotWritten)
            })
    }

    /// Whether another acting set has been asked for, in which another leads.
    pub fn asks_for_another(&self) -> bool {
        self.better_acting.is_some()
    }

    /// Everything is where it should be, as far as copies go.
    pub fn all_copied(&self) -> bool {
        self.peers.values().all(|peer| peer.missing.is_empty() && peer.cursor.is_complete())
    }
}

/// What came of trying a request.
enum Tried {
    Done,
    /// Until something else happens to the object.
    Wait(Queued),
    /// In the next step, when the store shows what this one does.
    NextStep(Queued),
}

impl Pg {
    pub(crate) fn active(&mut self) -> Option<&mut Active> {
        match &mut self.role {
            Role::Active(active) => Some(active),
            _ => None,
        }
    }

    // ---- admission ----

    pub(crate) fn on_client(&mut self, queued: Queued, step: &mut Step<'_>) {
        let request = &queued.request;
        let session = (request.id.client, request.id.incarnation);
        for given_up in self.clients.take_given_up(session, request.lowest_outstanding_tid) {
            // Nobody waits for the answer, but the shell holds something for it.
            self.refuse(&given_up, RefusedReason::Busy, step);
        }
        let refuse = |reason, this: &Pg, step: &mut Step<'_>| {
            this.reply(queued.reply_to, request.id, ClientOutcome::Refused(reason), step.out);
        };
        let in_flight = match &self.role {
            Role::Active(active) => active.in_flight.len().max(active.held),
            _ => 0,
        };
        let bytes_left = self.limits.client_bytes_max.saturating_sub(self.clients.bytes());
        let too_large = self.clients.bytes() > 0 && queued.bytes() > bytes_left;
        if too_large || self.clients.len() + in_flight >= self.limits.client_requests_max {
            return refuse(RefusedReason::Busy, self, step);
        }
        if request.epoch > self.map.epoch {
            step.out.push(Output::NeedMap { at_least: request.epoch });
            if self.may_not_wait(&queued, step) {
                return refuse(RefusedReason::Busy, self, step);
            }
            self.clients.push_early(queued);
            return;
        }
        if !self.map.pools.contains_key(&self.id.pool) {
            return refuse(RefusedReason::PoolGone, self, step);
        }
        if !self.is_primary() || self.map.pg_of(self.id.pool, &request.object) != Some(self.id) {
            return refuse(RefusedReason::WrongPrimary, self, step);
        }
        if request.is_write() && request.epoch < self.leads_since {
            // C4: an earlier primary may have answered it, without leaving a trace. Who waits for it sends it again.
            return refuse(RefusedReason::WrongPrimary, self, step);
        }
        if self.map.is_blocklisted(request.id.client, request.id.incarnation) && !on(Mutant::FenceIgnored) {
            return refuse(RefusedReason::Blocklisted, self, step);
        }
        let key = ObjectKey::of(&request.object);
        let serves = matches!(&self.role, Role::Active(active) if active.writeable);
        let waits = !serves || self.clients.is_blocked(&key);
        if waits && self.may_not_wait(&queued, step) {
            return refuse(RefusedReason::Busy, self, step);
        }
        if !serves {
            let replaced = self.clients.push_waiting(queued);
            return self.answer_replaced(replaced, step);
        }
        if waits {
            let replaced = self.clients.push_blocked(key, queued);
            return self.answer_replaced(replaced, step);
        }
        self.try_or_block(key, queued, step);
    }

    /// Whether as much waits on this OSD as may: its memory for requests is for those that can be served, too.
    fn may_not_wait(&self, queued: &Queued, step: &Step<'_>) -> bool {
        let waiting = step.store.client_bytes_waiting();
        waiting > 0 && waiting.saturating_add(queued.bytes()) > self.limits.client_bytes_waiting_max
    }

    /// A resend has taken the place of an earlier sending, for which nobody waits any more: it is answered only so that
    /// the shell gives back what it holds for it.
    fn answer_replaced(&self, replaced: Option<Queued>, step: &mut Step<'_>) {
        if let Some(queued) = replaced {
            self.refuse(&queued, RefusedReason::Busy, step);
        }
    }

    fn try_or_block(&mut self, key: ObjectKey, queued: Queued, step: &mut Step<'_>) {
        match self.try_request(&key, queued, step) {
            Tried::Done => {}
            Tried::Wait(queued) if self.may_not_wait(&queued, step) => self.refuse(&queued, RefusedReason::Busy, step),
            Tried::Wait(queued) => self.clients.put_back(key, queued),
            Tried::NextStep(queued) => {
                self.clients.put_back(key.clone(), queued);
                self.clients.wake(&key);
                step.rerun = true;
            }
        }
    }

    /// Tries the requests that may have become executable.
    fn run_clients(&mut self, step: &mut Step<'_>) {
        // Each object at most once: what could not be done now cannot be done in this step.
        let mut again = Vec::new();
        while let Some((key, queued)) = self.clients.pop_runnable() {
            match self.try_request(&key, queued, step) {
                Tried::Done => self.clients.wake(&key),
                Tried::Wait(queued) => self.clients.put_back(key, queued),
                Tried::NextStep(queued) => {
                    self.clients.put_back(key.clone(), queued);
                    again.push(key);
                }
            }
        }
        step.rerun |= !again.is_empty();
        for key in again {
            self.clients.wake(&key);
        }
    }

    fn try_request(&mut self, key: &ObjectKey, queued: Queued, step: &mut Step<'_>) -> Tried {
        let (client, incarnation) = (queued.request.id.client, queued.request.id.incarnation);
        if self.map.is_blocklisted(client, incarnation) && !on(Mutant::FenceIgnored) {
            // It may have been fenced while it waited.
            self.refuse(&queued, RefusedReason::Blocklisted, step);
            return Tried::Done;
        }
        let writes = queued.request.is_write();
        let missing = self.holding.missing.contains(key) && !on(Mutant::MissingIgnored);
        let min_size = self.interval.min_size as usize;
        let Some(active) = self.active() else { return Tried::Wait(queued) };
        let unknown = active.recovery.unnamed.is_unknown(key);
        let out_of_reach = unknown || missing && active.recovery.is_unfound(key);
        // A removal needs nothing of the object: neither that somebody can read it, nor room for fetching it before.
        let unread = out_of_reach || missing && !step.store.has_room(0);
        let removes_unread = unread && is_removal(&queued.request.ops);
        if out_of_reach && !removes_unread {
            if self.absent_may_have() {
                return Tried::Wait(queued);
            }
            // Every copy there is has been asked for, and none can be read: waiting would be for ever.
            self.answer_unreadable(queued, step);
            return Tried::Done;
        }
        if active.recovery.is_landing(key) || active.recovery.unnamed.is_asking(key) {
            return Tried::Wait(queued);
        }
        let alone = active.copies_held(key) < min_size;
        if !removes_unread && (missing || alone) {
            // W5: what is in all logs but on one disk only must not be shown, nor confirmed to its writer.
            active.recovery.hurry(key);
            return Tried::Wait(queued);
        }
        if writes {
            if active.unlogged.contains(&queued.request.id) {
                // The answer is under way; it goes to where the request came from last.
                let earlier = active.redirect(queued);
                self.refuse(&earlier, RefusedReason::Busy, step);
                return Tried::Done;
            }
            // The log first: an entry proves the effect, a remembered answer only that there was none when it was given.
            // Another primary may have executed a later sending since.
            match self.holding.log.answered(queued.request.id) {
                _ if on(Mutant::DedupOff) => {}
                Answered::Unknown => {}
                Answered::Forgotten => {
                    self.refuse(&queued, RefusedReason::Forgotten, step);
                    return Tried::Done;
                }
                Answered::As(entry) => {
                    let (version, outcome) = (entry.version, stored_outcome(entry));
                    self.answer_at(version, Held { queued, outcome, logged: true }, step);
                    return Tried::Done;
                }
            }
            match self.clients.remembered(queued.request.id, queued.request.lowest_outstanding_tid) {
                Remembered::No => {}
                Remembered::Forgotten => {
                    self.refuse(&queued, RefusedReason::Forgotten, step);
                    return Tried::Done;
                }
                Remembered::As(outcome) => {
                    self.reply(queued.reply_to, queued.request.id, outcome, step.out);
                    return Tried::Done;
                }
            }
            if self.log_is_full() {
                // Writes trim the log; when none is let in any more, this must do it.
                self.trim_alone(step);
            }
            // Only now: what was done before is answered as it was, however full it has become since.
            if let Some(reason) = self.refuse_write(key, &queued, step) {
                self.refuse(&queued, reason, step);
                return Tried::Done;
            }
        }
        let Some(active) = self.active() else { return Tried::Wait(queued) };
        if writes && active.is_degraded(key) && !removes(&queued.request.ops) {
            if active.lacks_room_for(key, step.now) {
                self.refuse(&queued, RefusedReason::Full, step);
                return Tried::Done;
            }
            active.recovery.hurry(key);
            return Tried::Wait(queued);
        }
        if writes && self.scrub_holds(key, step) {
            return Tried::Wait(queued);
        }
        let Some(active) = self.active() else { return Tried::Wait(queued) };
        if !writes && active.held_bytes >= HELD_BYTES_MAX && active.is_uncommitted(key) {
            self.refuse(&queued, RefusedReason::Busy, step);
            return Tried::Done;
        }
        if step.touched.contains(key) {
            return Tried::NextStep(queued);
        }
        // Who cannot vouch for its interval writes nothing either: it would never be committed, and who comes back from
        // a long pause would spoil what may be the last whole copy.
        if self.readable_until(step) <= step.now {
            if let Some(active) = self.active() {
                active.leaseless.insert(key.clone());
            }
            self.tick_within(lease::LOOK_AGAIN, step);
            return Tried::Wait(queued);
        }
        if removes_unread {
            self.remove_unread(key, queued, step);
            return Tried::Done;
        }
        match exec::execute(step.store, key, &queued.request.ops, self.limits.effects_bytes_max) {
            Ok(done) if done.effects.is_empty() => {
                let outcome = ClientOutcome::Done { version: done.prior, results: done.results };
                self.answer_read(key, queued, outcome, step);
            }
            Ok(done) => self.write(key, queued, done, step),
            Err(Stopped::Failed { index, error }) => {
                self.answer_read(key, queued, ClientOutcome::Failed { index, error }, step);
            }
            Err(Stopped::Unreadable(error)) => {
                self.note_damage(key, &error, step);
                match self.mark_own_missing(key, step) {
                    Noted::Lacking | Noted::Asked => return Tried::Wait(queued),
                    Noted::Unknown | Noted::Deleted => self.answer_unreadable(queued, step),
                }
            }
        }
        Tried::Done
    }

    /// Removes an object that is missing here. Its entry says which version it had: should the entry be taken back, that
    /// is what everybody needs again.
    fn remove_unread(&mut self, key: &ObjectKey, queued: Queued, step: &mut Step<'_>) {
        let size = step.store.stat(key).ok().flatten().unwrap_or(0);
        let done = Executed {
            results: vec![OpResult::Done; queued.request.ops.len()],
            effects: vec![Effect::Remove],
            prior: self.holding.missing.get(key).map_or(LogVersion::ZERO, |lack| lack.need),
            exists: false,
            objects_delta: -1,
            bytes_delta: 0_i64.saturating_sub_unsigned(size),
        };
        tracing::info!(pg = %self.id, object = ?key, "removed without being read");
        self.write(key, queued, done, step);
        step.report = true;
    }

    /// Tells that no copy can be read. A request that writes has then had no effect, and never will have one (C4); if it
    /// had one before, its result cannot be confirmed (W5), and it is not said that it had none.
    fn answer_unreadable(&mut self, queued: Queued, step: &mut Step<'_>) {
        if self.readable_until(step) <= step.now {
            // It may have been replaced, and others may have what it lacks. What does not leave is not to be remembered.
            return self.refuse(&queued, RefusedReason::Busy, step);
        }
        let mut outcome = ClientOutcome::Failed { index: 0, error: OpError::Unreadable };
        if queued.request.is_write() {
            let id = queued.request.id;
            match self.holding.log.answered(id) {
                Answered::Unknown => {}
                Answered::Forgotten => return self.refuse(&queued, RefusedReason::Forgotten, step),
                Answered::As(_) => return self.refuse(&queued, RefusedReason::Busy, step),
            }
            match self.clients.remembered(id, queued.request.lowest_outstanding_tid) {
                Remembered::No => {}
                Remembered::Forgotten => return self.refuse(&queued, RefusedReason::Forgotten, step),
                Remembered::As(before) => outcome = before,
            }
        }
        self.answer(Held { queued, outcome, logged: false }, step);
    }

    fn refuse(&self, queued: &Queued, reason: RefusedReason, step: &mut Step<'_>) {
        self.reply(queued.reply_to, queued.request.id, ClientOutcome::Refused(reason), step.out);
    }

    fn log_is_full(&self) -> bool {
        let log = &self.holding.log;
        log.len() >= 2 * self.limits.log_entries_max || log.bytes() >= 2 * self.limits.log_bytes_max
    }

    /// Trims the log without a write.
    fn trim_alone(&mut self, step: &mut Step<'_>) {
        let bound = self.trim_bound();
        if bound > self.holding.log.tail() {
            let mut ops = Vec::new();
            self.trim_log(bound, &mut ops);
            ops.push(rows::put_info(&self.holding.info()));
            self.submit(ops, None, step);
        }
    }

    fn refuse_write(&self, key: &ObjectKey, queued: &Queued, step: &Step<'_>) -> Option<RefusedReason> {
        if self.log_is_full() {
            // What is not durable everywhere cannot be trimmed; it must not grow for ever.
            return Some(RefusedReason::Busy);
        }
        let ops = &queued.request.ops;
        if frees_space(ops, queued.request.frees_space == Some(true)) && !on(Mutant::DeletesRefusedWhenFull) {
            return None;
        }
        // Refused before it is logged: what is logged, every member must be able to take.
        let bytes = ops.iter().map(payload_bytes).sum();
        let full = self.map.flags.full || !step.store.has_room(bytes) || {
            let Role::Active(active) = &self.role else { return None };
            let failsafe = |osd| self.map.space_level(osd) >= Some(SpaceLevel::Failsafe);
            // One that is being filled and only logs this write needs no room for it.
            let takes = |osd: &OsdId, peer: &Peer| active.takes_effects(*osd, peer, key);
            let has_none = |osd: &OsdId| failsafe(*osd) || !step.store.peer_has_room(*osd);
            failsafe(self.whoami) || active.peers.iter().any(|(osd, peer)| takes(osd, peer) && has_none(osd))
        };
        full.then_some(RefusedReason::Full)
    }

    // ---- answers ----

    /// Answers what shows the present state of an object, when that is committed (W3).
    fn answer_read(&mut self, key: &ObjectKey, queued: Queued, outcome: ClientOutcome, step: &mut Step<'_>) {
        debug_assert!(matches!(&self.role, Role::Active(active) if active.writeable), "only an active primary reads");
        let version = self.active().and_then(|active| active.uncommitted.get(key).copied());
        let version = version.filter(|_| !on(Mutant::UncommittedRead));
        self.answer_at(version.unwrap_or(LogVersion::ZERO), Held { queued, outcome, logged: false }, step);
    }

    fn answer_at(&mut self, version: LogVersion, held: Held, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        match active.hold(version, held) {
            Hold::Kept => {}
            Hold::Replaced(earlier) => self.refuse(&earlier, RefusedReason::Busy, step),
            Hold::Due(held) => self.answer(held, step),
        }
    }

    /// Lets an answer out.
    fn answer(&mut self, held: Held, step: &mut Step<'_>) {
        let Held { queued, outcome, logged } = held;
        if !logged && self.readable_until(step) <= step.now && !on(Mutant::AnswerNotJudged) {
            // It may show what another primary has replaced: it does not leave, and so is not to be remembered. (What is
            // judged too late only later was true after its request had come: a resend may be told it.)
            return self.refuse(&queued, RefusedReason::Busy, step);
        }
        if !logged && queued.request.is_write() && !on(Mutant::UnloggedForgotten) {
            self.clients.remember(queued.request.id, &outcome);
        }
        let (reply_to, id) = (queued.reply_to, queued.request.id);
        if logged {
            // It is committed, and that stays so.
            return self.reply(reply_to, id, outcome, step.out);
        }
        let reply = ClientReply { id, epoch: self.map.epoch, outcome };
        let until =
            if on(Mutant::AnswerNotJudged) { Timestamp::from_nanos(u64::MAX) } else { self.readable_until(step) };
        step.out.push(Output::Reply { reply_to, reply, valid_until: Some(until) });
    }

    // ---- writing ----

    fn write(&mut self, key: &ObjectKey, queued: Queued, done: Executed, step: &mut Step<'_>) {
        let previous = self.holding.log.head();
        let version = LogVersion { epoch: self.map.epoch, counter: previous.counter + 1 };
        let request = &queued.request;
        let entry = LogEntry {
            version,
            prior_version: done.prior,
            object: request.object.clone(),
            kind: if done.exists { EntryKind::Modify } else { EntryKind::Delete },
            request: request.id,
            lowest_outstanding_tid: request.lowest_outstanding_tid,
            results: StoredResults::keep(&done.results),
            objects_delta: done.objects_delta,
            bytes_delta: done.bytes_delta,
        };
        let trim_to = self.trim_bound();
        self.forget_damage(key, &done.effects);
        self.scrub_saw_write(key, step.now);
        let mut ops = Vec::with_capacity(done.effects.len() + 4);
        if entry.kind == EntryKind::Delete && self.holding.missing.remove(key).is_some() {
            ops.push(rows::delete_missing(key)); // nothing of it is needed any more
        }
        entry_ops(key, &entry, &done.effects, &mut ops);
        self.holding.objects += entry.objects_delta;
        self.holding.bytes += entry.bytes_delta;
        self.holding.log.append(entry.clone());
        self.trim_log(trim_to, &mut ops);
        ops.push(rows::put_info(&self.holding.info()));

        let outcome = ClientOutcome::Done { version, results: done.results };
        let Some(active) = self.active() else { return };
        active.recount.follow(key, entry.objects_delta, entry.bytes_delta);
        if entry.kind == EntryKind::Delete {
            // What is gone need not be copied any more: a delete does not wait for a copy for which there is no room.
            active.recovery.cancel(key);
            for peer in active.peers.values_mut() {
                peer.missing.remove(key);
            }
        }
        let committed_to = active.committed_to;
        active.uncommitted.insert(key.clone(), version);
        let (filled, unfilled): (Vec<_>, Vec<_>) =
            active.peers.iter().partition(|(osd, peer)| active.takes_effects(**osd, peer, key));
        let osds = |peers: Vec<(&OsdId, &Peer)>| peers.into_iter().map(|(osd, _)| *osd).collect::<Vec<OsdId>>();
        let (filled, unfilled) = (osds(filled), osds(unfilled));
        let rep_op = |entry, effects| PeerBody::RepOp(RepOp { previous, entry, effects, committed_to, trim_to });
        let without_effects = (!unfilled.is_empty()).then(|| rep_op(entry.clone(), None));
        let with_effects = (!filled.is_empty()).then(|| rep_op(entry, Some(done.effects.clone())));
        let own = Held { queued, outcome, logged: true };
        active.held += 1;
        active.held_bytes += own.bytes();
        active.in_flight.push_back(InFlight {
            version,
            previous,
            key: key.clone(),
            effects: done.effects,
            carried_out_by: filled.iter().copied().collect(),
            answers: vec![own],
            sent: step.now,
        });
        for (osds, body) in [(filled, with_effects), (unfilled, without_effects)] {
            if let Some(body) = body {
                self.send_each(osds, body, step);
            }
        }
        self.submit(ops, Some(AfterDurable::Logged(version)), step);
        self.tick_within(TICK, step);
    }

    /// Up to where the log may be trimmed now; the present tail when there is not enough to be worth it.
    fn trim_bound(&self) -> LogVersion {
        let log = &self.holding.log;
        let Role::Active(active) = &self.role else { return log.tail() };
        let whole = self.holding.missing.is_empty() && active.all_copied();
        if on(Mutant::LogUntrimmed) {
            return log.tail();
        }
        let keep = if whole { self.limits.log_entries_min } else { self.limits.log_entries_max };
        if log.len() <= keep + self.limits.log_trim_batch && log.bytes() <= self.limits.log_bytes_max {
            return log.tail();
        }
        let Some(candidate) = log.trim_candidate(keep, self.limits.log_bytes_max) else { return log.tail() };
        // Entries of objects that are missing somewhere may go, too: every member has its missing set apart from its log,
        // and one object that cannot be made whole must not keep the log for ever.
        if on(Mutant::TrimPastMembers) { log.head() } else { candidate.min(active.committed_to).max(log.tail()) }
    }

    pub(crate) fn active_logged(&mut self, version: LogVersion, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        active.local_durable = active.local_durable.max(version);
        self.commit(step);
    }

    fn acknowledged(&mut self, from: OsdId, version: LogVersion, step: &mut Step<'_>) {
        let head = self.holding.log.head();
        let Some(peer) = self.active().and_then(|active| active.peers.get_mut(&from)) else { return };
        if version > peer.acked && version <= head {
            peer.acked = version;
            self.commit(step);
        }
    }

    /// Answers what is now durable on all members.
    fn commit(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let counted = active.peers.values().filter(|_| !on(Mutant::AckBeforeReplicas));
        let acked = counted.map(|peer| peer.acked).fold(active.local_durable, LogVersion::min);
        if acked <= active.committed_to {
            return;
        }
        assert!(acked <= active.local_durable, "W1: committed beyond what is durable here");
        active.committed_to = acked;
        let mut answers = Vec::new();
        let mut settled = Vec::new();
        while active.in_flight.front().is_some_and(|write| write.version <= acked) {
            let Some(write) = active.in_flight.pop_front() else { break };
            if active.uncommitted.get(&write.key) == Some(&write.version) {
                active.uncommitted.remove(&write.key);
                settled.push(write.key);
            }
            answers.extend(write.answers);
        }
        for held in &answers {
            active.held = active.held.saturating_sub(1);
            active.held_bytes = active.held_bytes.saturating_sub(held.bytes());
            active.unlogged.remove(&held.queued.request.id);
        }
        for held in answers {
            self.answer(held, step);
        }
        for key in settled {
            self.clients.wake(&key);
        }
    }

    fn resend_writes(&mut self, step: &mut Step<'_>) {
        let Role::Active(active) = &mut self.role else { return };
        let Some(front) = active.in_flight.front_mut().filter(|write| step.now.since(write.sent) >= RESEND) else {
            return;
        };
        front.sent = step.now;
        let mut messages = Vec::new();
        for (osd, peer) in &active.peers {
            let late = active.in_flight.iter().filter(|write| write.version > peer.acked);
            for write in late.take(RESEND_WRITES_MAX) {
                let Some(entry) = self.holding.log.entry(write.version) else { continue };
                let effects = write.carried_out_by.contains(osd).then(|| write.effects.clone());
                let rep_op = RepOp {
                    previous: write.previous,
                    entry: entry.clone(),
                    effects,
                    committed_to: active.committed_to,
                    trim_to: self.holding.log.tail(),
                };
                messages.push((*osd, rep_op));
            }
        }
        for (osd, rep_op) in messages {
            self.send(osd, PeerBody::RepOp(rep_op), step);
        }
    }

    // ---- the rest of an active primary's life ----

    pub(crate) fn active_heard(&mut self, from: OsdId, body: PeerBody, said: Said, step: &mut Step<'_>) {
        let in_this_activation = said.activation == Some(self.activations);
        match body {
            PeerBody::Notice(notice) if notice.info.is_some() => {
                if let Some(history) = &notice.history {
                    self.learn_history(history, said.start, step);
                }
                self.stray_appeared(from, step);
            }
            PeerBody::Notice(_) => {
                if let Some(active) = self.active() {
                    active.without_copy.insert(from);
                }
            }
            PeerBody::PullReply(piece)
                if self.answers_question(from, &ObjectKey::of(&piece.object), &piece.position) =>
            {
                self.version_told(&ObjectKey::of(&piece.object), in_this_activation.then_some(piece.version), step);
            }
            PeerBody::PullReply(piece) => self.pull_replied(from, piece, step),
            PeerBody::PullFailed(pull) if pull.version == LogVersion::ZERO => {
                let key = ObjectKey::of(&pull.object);
                if self.answers_question(from, &key, &pull.position) {
                    self.version_told(&key, None, step);
                }
            }
            PeerBody::PullFailed(pull) => self.pull_failed(from, &pull, step),
            PeerBody::NotActivated { activation } if activation == self.activations => {
                tracing::info!(pg = %self.id, %from, activation, "a member has lost track, peering again");
                self.peer_again(step);
            }
            _ if !in_this_activation => {
                tracing::debug!(pg = %self.id, %from, ?said, "message of another activation dropped");
            }
            // That the sender is full, the shell has noted: see `LocalObjects::peer_has_room`.
            PeerBody::RepOpAck { version, full: _ } => self.acknowledged(from, version, step),
            PeerBody::PushAck(ack) => self.push_acknowledged(from, &ack, step),
            PeerBody::BackfillDigest(digest) => self.backfill_compared(from, &digest, step),
            PeerBody::BackfillProgressAck { cursor } => self.backfill_progressed(from, &cursor, step),
            PeerBody::ReservationGrant => self.remote_granted(from),
            PeerBody::ReservationReject => self.remote_rejected(from, step),
            PeerBody::Scrub(message) => self.scrub_answered(from, message, step),
            _ => {}
        }
    }

    fn stray_appeared(&mut self, from: OsdId, step: &mut Step<'_>) {
        let Role::Active(active) = &mut self.role else { return };
        if active.peers.contains_key(&from) {
            return;
        }
        if active.clean {
            self.send(from, PeerBody::RemovePg, step);
        } else if active.strays.insert(from) {
            active.recovery.retry_unfound(|key| self.clients.is_blocked(key));
        }
    }

    pub(crate) fn active_saw_map(&mut self) {
        let map = self.map.clone();
        let Some(active) = self.active() else { return };
        active.strays.retain(|osd| map.is_up(*osd));
        active.without_copy.retain(|osd| map.is_up(*osd));
    }

    pub(crate) fn advance_active(&mut self, step: &mut Step<'_>) {
        self.run_clients(step);
        self.count_anew(step);
        let Some(active) = self.active() else { return };
        if active.clean {
            return;
        }
        self.recover(step);
        self.settle(step);
    }

    /// When all copies are whole: clean, or back to the acting set that placement wants.
    fn settle(&mut self, step: &mut Step<'_>) {
        let whole = self.holding.missing.is_empty();
        let up: Vec<OsdId> = self.members.up.clone();
        let (is_up_set, epoch) = (self.members.acting == up, self.map.epoch);
        let size = self.interval.size as usize;
        let acting_len = self.members.acting.len();
        let Some(active) = self.active() else { return };
        let all_copied = active.all_copied() || on(Mutant::CleanTooEarly);
        if !whole || !all_copied || active.backfill.is_some() || !active.recovery.is_settled() {
            return;
        }
        // Placement that has found no room for all copies must not cost one that there is: the members that serve stay, and
        // when they are as many as there shall be, nothing is left to do before a map places all (`active+clean+remapped`).
        let placed = is_up_set || (up.len() < acting_len.min(size) && !on(Mutant::ShortUpSetAsked));
        if !placed {
            if active.asked_acting_at.is_none_or(|at| step.now.since(at) >= ASK_AGAIN) {
                active.asked_acting_at = Some(step.now);
                step.out.push(Output::AskPgTemp { want: Vec::new() });
            }
            self.tick_within(ASK_AGAIN, step);
            return;
        }
        if acting_len < size || !active.writeable {
            return;
        }
        active.clean = true;
        let strays = std::mem::take(&mut active.strays);
        self.history.last_epoch_clean = epoch;
        crate::intervals::forget_superseded(&mut self.history);
        let mut ops = Vec::new();
        self.push_history_row(&mut ops);
        self.submit(ops, None, step);
        self.share_history(step);
        for stray in strays {
            self.send(stray, PeerBody::RemovePg, step);
        }
        tracing::debug!(pg = %self.id, osd = %self.whoami, "clean");
        step.rerun |= self.holding.guessed;
        step.report = true;
    }

    /// Asks for another to lead, who has `what`. Until the map says so this one serves all that it can: the monitors may be
    /// away. Peering then decides, knowing why.
    pub(crate) fn let_another_lead(&mut self, what: impl Fn(&Peer) -> bool, step: &mut Step<'_>) -> bool {
        let all: Vec<OsdId> = self.members.up.iter().chain(&self.members.acting).copied().collect();
        let acting = self.members.acting.clone();
        let Some(active) = self.active() else { return false };
        let may_lead = |osd: &&OsdId| active.peers.get(osd).is_some_and(|peer| peer.acting && what(peer));
        let Some(first) = all.iter().find(may_lead).copied() else { return false };
        let mut want = vec![first];
        for osd in all {
            if acting.contains(&osd) && !want.contains(&osd) {
                want.push(osd);
            }
        }
        active.better_acting = Some(want);
        active.asked_acting_at = None;
        self.ask_better_acting(step);
        true
    }

    fn ask_better_acting(&mut self, step: &mut Step<'_>) {
        let is_wanted = self.is_cramped() || self.unlisted;
        let Some(active) = self.active() else { return };
        if !is_wanted && active.better_acting.take().is_some() {
            active.asked_acting_at = None;
        }
        let Some(want) = &active.better_acting else { return };
        if active.asked_acting_at.is_none_or(|at| step.now.since(at) >= ASK_AGAIN) {
            active.asked_acting_at = Some(step.now);
            step.out.push(Output::AskPgTemp { want: want.clone() });
        }
        self.tick_within(ASK_AGAIN, step);
    }

    pub(crate) fn share_history(&self, step: &mut Step<'_>) {
        let Role::Active(active) = &self.role else { return };
        for osd in active.peers.keys() {
            self.send(*osd, PeerBody::History(self.history.clone()), step);
        }
    }

    pub(crate) fn tick_active(&mut self, step: &mut Step<'_>) {
        let leaseless = self.active().map(|active| std::mem::take(&mut active.leaseless)).unwrap_or_default();
        for key in leaseless {
            self.clients.wake(&key);
            step.rerun = true;
        }
        if !on(Mutant::WritesNotResent) {
            self.resend_writes(step);
        }
        self.resend_transfers(step);
        self.resend_questions(step);
        self.look_again_for_unfound(step);
        self.resend_backfill(step);
        self.renew_slots(step);
        self.ask_better_acting(step);
        let Some(active) = self.active() else { return };
        let busy = !active.in_flight.is_empty() || active.backfill.is_some() || active.recovery.is_busy();
        if busy || active.asked_acting_at.is_some() {
            self.tick_within(TICK, step);
        }
    }
}

/// Bytes of objects that an op brings.
fn payload_bytes(op: &ObjectOp) -> u64 {
    match op {
        ObjectOp::Write { data, .. } | ObjectOp::Append { data } | ObjectOp::WriteFull { data } => data.len() as u64,
        _ => 0,
    }
}

/// Whether a vector frees space, and is let in however full it is: it only deletes; or it deletes something, puts no more
/// than the rows and attributes that belong to that (whoever deletes must note what is left to be cleaned up, and keep counts true), and
/// its sender says that this is what it serves. Without that word it might replace what it deletes, and a cluster that is
/// overwritten all the time would fill to the brim.
fn frees_space(ops: &[ObjectOp], declared: bool) -> bool {
    let mut frees = false;
    let (mut puts, mut rows_bytes) = (false, 0);
    for op in ops.iter().filter(|op| op.is_write()) {
        match op {
            ObjectOp::PutRows { rows } => {
                puts = true;
                rows_bytes += rows.iter().map(|row| row.key.len() + row.value.len()).sum::<usize>();
            }
            ObjectOp::AddRow { key, .. } | ObjectOp::MaxRow { key, .. } => {
                puts = true;
                rows_bytes += key.len() + size_of::<i64>();
            }
            ObjectOp::SetAttr { name, value } => {
                puts = true;
                rows_bytes += name.len() + value.len();
            }
            ObjectOp::Create { .. } => puts = true,
            op if op.frees_space() => frees = true,
            _ => return false,
        }
    }
    frees && (declared || !puts) && rows_bytes <= ROWS_BESIDE_DELETE_BYTES_MAX
}

/// Whether nothing is left of the object after a vector, if it succeeds.
fn removes(ops: &[ObjectOp]) -> bool {
    ops.iter().rev().find(|op| op.is_write()).is_some_and(|op| matches!(op, ObjectOp::Remove))
}

/// Whether a vector does nothing but remove an object that exists.
fn is_removal(ops: &[ObjectOp]) -> bool {
    matches!(ops, [asserts @ .., ObjectOp::Remove] if asserts.iter().all(|op| matches!(op, ObjectOp::AssertExists)))
}

fn stored_outcome(entry: &LogEntry) -> ClientOutcome {
    match entry.results.restore() {
        Ok(results) => ClientOutcome::Done { version: entry.version, results },
        Err(error) => {
            tracing::error!(version = %entry.version, %error, "stored results are malformed");
            ClientOutcome::Failed { index: 0, error: OpError::Unreadable }
        }
    }
}
