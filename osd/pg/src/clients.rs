//! Client requests that cannot be executed yet.
//!
//! Invariants: C1 requests for one object are executed in the order in which they came; C2 their number is bounded
//! ([`crate::Limits::client_requests_max`]); C3 none is forgotten: each is executed or refused; C4 a request that writes and
//! was answered without a log entry (it failed, or had nothing to change) gives the same answer when a late copy of it
//! comes, or none (`Forgotten`) when that would have been too much to keep: it does not take effect after its client was
//! told that it had none.

use std::collections::{BTreeMap, VecDeque};

use holdfast_types::{ClientId, Epoch, Incarnation, ObjectName, RequestId};
use holdfast_wire::{ClientOutcome, ClientReply, ClientRequest, OpError, RefusedReason};

use crate::api::{Outbox, Output, ReplyTo, WRITE_RESULT_BYTES_MAX};
use crate::exec;
use crate::key::ObjectKey;

/// A request and where its answer goes.
#[derive(Debug)]
pub(crate) struct Queued {
    pub reply_to: ReplyTo,
    pub request: ClientRequest,
}

/// Sessions whose unlogged answers are remembered; the one that has been silent longest goes first.
const SESSIONS_MAX: usize = 1_024;
/// Unlogged answers remembered for one session; those below its watermark go first.
const ANSWERS_MAX: usize = 256;

/// A larger answer is not kept; that it was given is.
const ANSWER_BYTES_MAX: usize = WRITE_RESULT_BYTES_MAX;
/// Bytes of all answers kept; beyond that, those of the session that has been silent longest are dropped.
const ANSWERS_BYTES_MAX: usize = 4 << 20;
/// What an answer costs beside its results.
const ANSWER_COST: usize = 128;

/// What was answered to a session without a log entry.
#[derive(Debug, Clone, Default)]
struct Unlogged {
    watermark: u64,
    /// By request; `None` when the answer is not kept.
    answers: BTreeMap<u64, Option<ClientOutcome>>,
    /// Of the answers that are kept.
    bytes: usize,
    /// When it was last looked at, counted in requests.
    used: u64,
}

/// What is remembered of a request that writes.
#[derive(Debug)]
pub(crate) enum Remembered {
    /// Nothing.
    No,
    /// It was answered so, without effect.
    As(ClientOutcome),
    /// Its session has declared it answered, or its answer was not kept.
    Forgotten,
}

#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// For a map that has not come yet.
    early: VecDeque<Queued>,
    /// For the placement group to go active.
    waiting: VecDeque<Queued>,
    /// For their object: to be recovered, or to be executed after others.
    blocked: BTreeMap<ObjectKey, VecDeque<Queued>>,
    /// Objects whose first request may be tried again.
    runnable: VecDeque<ObjectKey>,
    count: usize,
    unlogged: BTreeMap<(ClientId, Incarnation), Unlogged>,
    /// Of all answers that are kept.
    unlogged_bytes: usize,
    /// Requests looked up so far.
    looked_up: u64,
}

fn cost(outcome: &ClientOutcome) -> usize {
    let bytes = match outcome {
        ClientOutcome::Done { results, .. } => {
            results.iter().map(|result| size_of_val(result) + exec::result_bytes(result)).sum()
        }
        ClientOutcome::Failed { error: OpError::AssertFailed { current: Some(current) }, .. } => current.len(),
        ClientOutcome::Failed { error: OpError::Invalid { reason }, .. } => reason.len(),
        ClientOutcome::Failed { .. } | ClientOutcome::Refused(_) => 0,
    };
    ANSWER_COST + bytes
}

impl Unlogged {
    fn count(&mut self) {
        self.bytes = self.answers.values().flatten().map(cost).sum();
    }
}

impl Clients {
    /// Notes a session's watermark, and looks up what a request of it was answered without a log entry.
    pub fn remembered(&mut self, id: RequestId, lowest_outstanding_tid: u64) -> Remembered {
        let session = (id.client, id.incarnation);
        if !self.unlogged.contains_key(&session) && self.unlogged.len() >= SESSIONS_MAX {
            let oldest = self.unlogged.iter().min_by_key(|(_, unlogged)| unlogged.used).map(|(session, _)| *session);
            let dropped = oldest.and_then(|oldest| self.unlogged.remove(&oldest));
            self.unlogged_bytes -= dropped.map_or(0, |unlogged| unlogged.bytes);
        }
        self.looked_up += 1;
        let unlogged = self.unlogged.entry(session).or_default();
        unlogged.used = self.looked_up;
        if lowest_outstanding_tid > unlogged.watermark {
            unlogged.watermark = lowest_outstanding_tid;
            if unlogged.answers.first_key_value().is_some_and(|(tid, _)| *tid < lowest_outstanding_tid) {
                unlogged.answers = unlogged.answers.split_off(&lowest_outstanding_tid);
                self.unlogged_bytes -= unlogged.bytes;
                unlogged.count();
                self.unlogged_bytes += unlogged.bytes;
            }
        }
        match unlogged.answers.get(&id.tid) {
            Some(Some(outcome)) => Remembered::As(outcome.clone()),
            Some(None) => Remembered::Forgotten,
            None if id.tid < unlogged.watermark => Remembered::Forgotten,
            None => Remembered::No,
        }
    }

    /// Remembers an answer that leaves no log entry.
    pub fn remember(&mut self, id: RequestId, outcome: &ClientOutcome) {
        let Some(unlogged) = self.unlogged.get_mut(&(id.client, id.incarnation)) else { return };
        self.unlogged_bytes -= unlogged.bytes;
        unlogged.answers.insert(id.tid, Some(outcome.clone()).filter(|outcome| cost(outcome) <= ANSWER_BYTES_MAX));
        if unlogged.answers.len() > ANSWERS_MAX {
            unlogged.answers.pop_first();
        }
        unlogged.count();
        self.unlogged_bytes += unlogged.bytes;
        while self.unlogged_bytes > ANSWERS_BYTES_MAX {
            let with_bytes = self.unlogged.values_mut().filter(|unlogged| unlogged.bytes > 0);
            let Some(oldest) = with_bytes.min_by_key(|unlogged| unlogged.used) else { return };
            self.unlogged_bytes -= oldest.bytes;
            oldest.bytes = 0;
            oldest.answers.values_mut().for_each(|answer| *answer = None);
        }
    }

    /// What a placement group that is split off remembers: the answers that no log has. Requests are sent to it anew.
    pub fn for_child(&self) -> Clients {
        let unlogged = self.unlogged.iter().map(|(session, unlogged)| (*session, unlogged.clone())).collect();
        Clients { unlogged, unlogged_bytes: self.unlogged_bytes, looked_up: self.looked_up, ..Clients::default() }
    }

    /// Refuses what waits for activation and is about objects that are not `here` any more. (What waits for a newer map is
    /// judged by that one.)
    pub fn refuse_others(&mut self, here: impl Fn(&ObjectName) -> bool, epoch: Epoch, out: &mut Outbox) {
        self.wait_for_activation();
        for queued in std::mem::take(&mut self.waiting) {
            if here(&queued.request.object) {
                self.waiting.push_back(queued);
                continue;
            }
            self.count -= 1;
            let outcome = ClientOutcome::Refused(RefusedReason::WrongPrimary);
            let reply = ClientReply { id: queued.request.id, epoch, outcome };
            out.push(Output::Reply { reply_to: queued.reply_to, reply, valid_until: None });
        }
    }

    /// Requests held.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn push_early(&mut self, queued: Queued) {
        self.count += 1;
        self.early.push_back(queued);
    }

    /// Those for maps up to `epoch`.
    pub fn take_early(&mut self, epoch: Epoch) -> Vec<Queued> {
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.early).into_iter().partition(|queued| queued.request.epoch <= epoch);
        self.early = later.into();
        self.count -= now.len();
        now
    }

    /// Queues for activation; a resend takes the place of what it repeats, which is given back.
    #[must_use]
    pub fn push_waiting(&mut self, queued: Queued) -> Option<Queued> {
        if let Some(same) = self.waiting.iter_mut().find(|other| other.request.id == queued.request.id) {
            return Some(std::mem::replace(same, queued));
        }
        self.count += 1;
        self.waiting.push_back(queued);
        None
    }

    /// Queues behind others of the same object; a resend takes the place of what it repeats, which is given back.
    #[must_use]
    pub fn push_blocked(&mut self, key: ObjectKey, queued: Queued) -> Option<Queued> {
        let queue = self.blocked.entry(key).or_default();
        if let Some(same) = queue.iter_mut().find(|other| other.request.id == queued.request.id) {
            return Some(std::mem::replace(same, queued));
        }
        self.count += 1;
        queue.push_back(queued);
        None
    }

    pub fn is_blocked(&self, key: &ObjectKey) -> bool {
        self.blocked.contains_key(key)
    }

    /// Says that the object's first request may be tried again.
    pub fn wake(&mut self, key: &ObjectKey) {
        if self.blocked.contains_key(key) && !self.runnable.contains(key) {
            self.runnable.push_back(key.clone());
        }
    }

    /// The next request to try.
    pub fn pop_runnable(&mut self) -> Option<(ObjectKey, Queued)> {
        while let Some(key) = self.runnable.pop_front() {
            let Some(queue) = self.blocked.get_mut(&key) else { continue };
            let popped = queue.pop_front();
            if queue.is_empty() {
                self.blocked.remove(&key);
            }
            if let Some(queued) = popped {
                self.count -= 1;
                return Some((key, queued));
            }
        }
        None
    }

    /// Puts a request that [`Clients::pop_runnable`] gave back to the front.
    pub fn put_back(&mut self, key: ObjectKey, queued: Queued) {
        self.count += 1;
        self.blocked.entry(key).or_default().push_front(queued);
    }

    /// Everything that had been let in waits for the next activation.
    pub fn wait_for_activation(&mut self) {
        self.runnable.clear();
        let blocked = std::mem::take(&mut self.blocked).into_values().flatten();
        let rest = std::mem::take(&mut self.waiting);
        self.waiting = blocked.chain(rest).collect();
    }

    /// Requests that had been executed but not answered go to the front: they are looked up or executed again.
    pub fn take_back(&mut self, requests: Vec<Queued>) {
        self.wait_for_activation();
        self.count += requests.len();
        for queued in requests.into_iter().rev() {
            self.waiting.push_front(queued);
        }
    }

    /// The placement group is active: all that waited becomes runnable.
    pub fn activate(&mut self) {
        for queued in std::mem::take(&mut self.waiting) {
            let key = ObjectKey::of(&queued.request.object);
            self.blocked.entry(key.clone()).or_default().push_back(queued);
            self.wake(&key);
        }
    }

    /// Refuses everything that had been let in.
    pub fn refuse_all(&mut self, reason: RefusedReason, epoch: Epoch, out: &mut Outbox) {
        self.wait_for_activation();
        for queued in std::mem::take(&mut self.waiting) {
            self.count -= 1;
            let outcome = ClientOutcome::Refused(reason);
            out.push(Output::Reply {
                reply_to: queued.reply_to,
                reply: ClientReply { id: queued.request.id, epoch, outcome },
                valid_until: None,
            });
        }
    }

    /// Refuses what waits for a newer map.
    pub fn refuse_early(&mut self, reason: RefusedReason, epoch: Epoch, out: &mut Outbox) {
        for queued in std::mem::take(&mut self.early) {
            self.count -= 1;
            let reply = ClientReply { id: queued.request.id, epoch, outcome: ClientOutcome::Refused(reason) };
            out.push(Output::Reply { reply_to: queued.reply_to, reply, valid_until: None });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use holdfast_wire::Blob;

    use super::*;

    fn id(client: u128, tid: u64) -> RequestId {
        RequestId { client: ClientId(client.try_into().unwrap()), incarnation: Incarnation(1), tid }
    }

    fn lost(bytes: usize) -> ClientOutcome {
        let current = Some(Blob(vec![1; bytes].into()));
        ClientOutcome::Failed { index: 0, error: OpError::AssertFailed { current } }
    }

    #[test]
    fn answers_without_effect_are_bounded_in_bytes_and_never_taken_for_new_requests() {
        let mut clients = Clients::default();
        for client in 1..=100 {
            for tid in 1..=100 {
                assert!(matches!(clients.remembered(id(client, tid), 1), Remembered::No));
                clients.remember(id(client, tid), &lost(2_000));
            }
        }
        let counted: usize = clients.unlogged.values().map(|unlogged| unlogged.bytes).sum();
        assert!(clients.unlogged_bytes == counted && counted <= ANSWERS_BYTES_MAX, "{counted}");
        assert!(matches!(clients.remembered(id(1, 1), 1), Remembered::Forgotten), "dropped first");
        assert!(matches!(clients.remembered(id(100, 100), 1), Remembered::As(outcome) if outcome == lost(2_000)));
        clients.remember(id(100, 101), &lost(1 << 20));
        assert!(matches!(clients.remembered(id(100, 101), 1), Remembered::Forgotten), "too large");
        for client in 1..=100 {
            clients.remembered(id(client, 200), 200);
        }
        assert_eq!(clients.unlogged_bytes, 0);
    }
}
