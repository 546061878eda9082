//! Requests of clients: which are let in, when each is executed, what it is answered. The table is in the module above.

use holdfast_map::SpaceLevel;
use holdfast_types::{LogVersion, OsdId, Timestamp};
use holdfast_wire::peer::LogEntry;
use holdfast_wire::{ClientOutcome, ClientReply, ClientRequest, Effect, ObjectOp, OpError, OpResult, RefusedReason};

use super::{Held, Hold, Peer, Tried};
use crate::api::Output;
use crate::clients::{Queued, Remembered};
use crate::exec::{self, Executed, Stopped};
use crate::key::ObjectKey;
use crate::lease;
use crate::log::Answered;
use crate::mutants::{Mutant, on};
use crate::pg::{Pg, Role, Step};
use crate::rows;
use crate::unnamed::Noted;

/// Bytes of results that may wait for the commit of what they show; a read beyond that is told to come again.
const HELD_BYTES_MAX: usize = 32 << 20;
/// Most bytes of rows that a request may put beside what it deletes when there is no room: one row of the largest size
/// (the manifest of a deleted object, waiting to be collected), and some small ones.
const ROWS_BESIDE_DELETE_BYTES_MAX: usize = (1 << 20) + (64 << 10);

impl Pg {
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
        if serves {
            self.clients.served_at = Some(step.now);
        }
        // What nobody can read may wait for long, and whoever reads it; removing it need not wait with them.
        let removes_unfound = serves && self.removes_unfound(&key, &queued.request);
        let waits = !serves || self.clients.is_blocked(&key) && !removes_unfound;
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

    /// A removal of what could not be found waits for nobody who would read it.
    fn let_removal_pass(&mut self, key: ObjectKey, step: &mut Step<'_>) {
        let is_unfound = matches!(&self.role, Role::Active(active) if active.recovery.is_unfound(&key));
        if !is_unfound {
            return;
        }
        let Some(queued) = self.clients.pop_blocked(&key, |request| is_removal(&request.ops)) else { return };
        match self.try_request(&key, queued, step) {
            Tried::Done => self.clients.wake(&key),
            Tried::Wait(queued) => self.clients.put_back(key, queued),
            Tried::NextStep(queued) => {
                self.clients.put_back(key.clone(), queued);
                self.clients.wake(&key);
                step.rerun = true;
            }
        }
    }

    /// Whether a request removes what could not be found, and no earlier one of its session waits for that.
    fn removes_unfound(&self, key: &ObjectKey, request: &ClientRequest) -> bool {
        let Role::Active(active) = &self.role else { return false };
        let session = (request.id.client, request.id.incarnation);
        is_removal(&request.ops) && active.recovery.is_unfound(key) && !self.clients.is_blocked_for(key, session)
    }

    /// Whether as much waits on this OSD as may: its memory for requests is for those that can be served, too.
    pub(super) fn may_not_wait(&self, queued: &Queued, step: &Step<'_>) -> bool {
        let waiting = step.store.client_bytes_waiting();
        waiting > 0 && waiting.saturating_add(queued.bytes()) > self.limits.client_bytes_waiting_max
    }

    /// A resend has taken the place of an earlier sending, for which nobody waits any more: it is answered only so that
    /// the shell gives back what it holds for it.
    pub(super) fn answer_replaced(&self, replaced: Option<Queued>, step: &mut Step<'_>) {
        if let Some(queued) = replaced {
            self.refuse(&queued, RefusedReason::Busy, step);
        }
    }

    pub(super) fn try_or_block(&mut self, key: ObjectKey, queued: Queued, step: &mut Step<'_>) {
        match self.try_request(&key, queued, step) {
            Tried::Done => self.clients.wake(&key),
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
    pub(super) fn run_clients(&mut self, step: &mut Step<'_>) {
        // Each object at most once: what could not be done now cannot be done in this step.
        let mut again = Vec::new();
        while let Some((key, queued)) = self.clients.pop_runnable() {
            match self.try_request(&key, queued, step) {
                Tried::Done => self.clients.wake(&key),
                Tried::Wait(queued) => {
                    let is_removal = is_removal(&queued.request.ops);
                    self.clients.put_back(key.clone(), queued);
                    if !is_removal {
                        self.let_removal_pass(key, step);
                    }
                }
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

    pub(super) fn try_request(&mut self, key: &ObjectKey, queued: Queued, step: &mut Step<'_>) -> Tried {
        let (client, incarnation) = (queued.request.id.client, queued.request.id.incarnation);
        if self.map.is_blocklisted(client, incarnation) && !on(Mutant::FenceIgnored) {
            // It may have been fenced while it waited.
            self.refuse(&queued, RefusedReason::Blocklisted, step);
            return Tried::Done;
        }
        let writes = queued.request.is_write();
        if writes && queued.request.epoch < self.leads_since {
            // C4: maps were skipped while it waited, and in between another primary may have answered it.
            self.refuse(&queued, RefusedReason::WrongPrimary, step);
            return Tried::Done;
        }
        let missing = self.holding.missing.contains(key) && !on(Mutant::MissingIgnored);
        let min_size = self.interval.min_size as usize;
        let Some(active) = self.active() else { return Tried::Wait(queued) };
        let out_of_reach = missing && active.recovery.is_unfound(key);
        let will_be_retried = out_of_reach && active.recovery.waits_for_retry(key);
        // A removal needs nothing of the object: neither that somebody can read it, nor room for fetching it before.
        let unread = out_of_reach || missing && !step.store.has_room(0);
        let removes_unread = unread && is_removal(&queued.request.ops);
        if out_of_reach && !removes_unread {
            if will_be_retried || self.absent_may_have() {
                return Tried::Wait(queued);
            }
            // Every copy there is has been asked for, and none can be read: waiting would be for ever.
            self.answer_unreadable(queued, step);
            return Tried::Done;
        }
        if active.recovery.is_unsettled(key) {
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
                    // Only while nobody can have taken over: who did may have executed a later sending.
                    self.answer(Held { queued, outcome, logged: false }, step);
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
        if writes && !removes_unread && active.is_degraded(key) {
            // A removal waits, too: it may be taken back, by copies that have never heard of it, and these must have
            // what it removed. Only for what a full member has no room for it does not wait, or nothing could be deleted.
            let removes = removes(&queued.request.ops);
            if !removes && active.lacks_room_for(key, step.now) {
                self.refuse(&queued, RefusedReason::Full, step);
                return Tried::Done;
            }
            if !removes || active.is_to_get(key, step.now) {
                active.recovery.hurry(key);
                return Tried::Wait(queued);
            }
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
    /// is what everybody needs again, and be it in a version that nobody can tell.
    pub(super) fn remove_unread(&mut self, key: &ObjectKey, queued: Queued, step: &mut Step<'_>) {
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
    pub(super) fn answer_unreadable(&mut self, queued: Queued, step: &mut Step<'_>) {
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

    pub(super) fn refuse(&self, queued: &Queued, reason: RefusedReason, step: &mut Step<'_>) {
        self.reply(queued.reply_to, queued.request.id, ClientOutcome::Refused(reason), step.out);
    }

    pub(super) fn log_is_full(&self) -> bool {
        let log = &self.holding.log;
        log.len() >= 2 * self.limits.log_entries_max || log.bytes() >= 2 * self.limits.log_bytes_max
    }

    /// Trims the log without a write.
    pub(super) fn trim_alone(&mut self, step: &mut Step<'_>) {
        let bound = self.trim_bound();
        if bound > self.holding.log.tail() {
            let mut ops = Vec::new();
            self.trim_log(bound, &mut ops);
            ops.push(rows::put_info(&self.holding.info()));
            self.submit(ops, None, step);
        }
    }

    pub(super) fn refuse_write(&self, key: &ObjectKey, queued: &Queued, step: &Step<'_>) -> Option<RefusedReason> {
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
    pub(super) fn answer_read(&mut self, key: &ObjectKey, queued: Queued, outcome: ClientOutcome, step: &mut Step<'_>) {
        debug_assert!(matches!(&self.role, Role::Active(active) if active.writeable), "only an active primary reads");
        let version = self.active().and_then(|active| active.uncommitted.get(key).copied());
        let version = version.filter(|_| !on(Mutant::UncommittedRead));
        self.answer_at(version.unwrap_or(LogVersion::ZERO), Held { queued, outcome, logged: false }, step);
    }

    pub(super) fn answer_at(&mut self, version: LogVersion, held: Held, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        match active.hold(version, held) {
            Hold::Kept => {}
            Hold::Replaced(earlier) => self.refuse(&earlier, RefusedReason::Busy, step),
            Hold::Due(held) => self.answer(held, step),
        }
    }

    /// Lets an answer out.
    pub(super) fn answer(&mut self, held: Held, step: &mut Step<'_>) {
        let Held { queued, outcome, logged } = held;
        if !logged && self.readable_until(step) <= step.now && !on(Mutant::AnswerNotJudged) {
            // It may show what another primary has replaced: it does not leave, and so is not to be remembered. (What is
            // judged too late only later was true after its request had come: a resend may be told it, under leases again.)
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
