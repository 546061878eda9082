//! Client requests that cannot be executed yet.
//!
//! Invariants: C1 requests for one object are executed in the order in which they came; C2 their number and their bytes are
//! bounded ([`crate::Limits::client_requests_max`], [`crate::Limits::client_bytes_max`], for all of an OSD
//! [`crate::Limits::client_bytes_waiting_max`]); C3 none is forgotten: each is
//! executed, refused, or dropped when its client is gone; one that its client has given up is not kept; C4 a request that
//! writes and was answered without a log entry (it failed, or had nothing to change) gives the same answer when a late copy of it
//! comes, or none (`Forgotten`) when that would have been too much to keep: it does not take effect after its client was
//! told that it had none. Answers are remembered within one leadership, and a copy that was sent before it began is not taken
//! (`Pg::leads_since`): an earlier primary may have answered it. What the log tells of goes first, for a client that hears of
//! another primary drops the answer that it was given, and what that primary executed since has had its effect.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_types::{ClientId, Epoch, Incarnation, ObjectName, RequestId, Timestamp};
use holdfast_wire::{ClientOutcome, ClientReply, ClientRequest, ObjectOp, OpError, RefusedReason};

use crate::api::{Outbox, Output, ReplyTo, WRITE_RESULT_BYTES_MAX};
use crate::exec;
use crate::key::ObjectKey;
use crate::log::SessionId;

/// A request and where its answer goes.
#[derive(Debug)]
pub(crate) struct Queued {
    pub reply_to: ReplyTo,
    pub request: ClientRequest,
}

impl Queued {
    /// What it keeps in memory, nearly.
    pub fn bytes(&self) -> u64 {
        let request = size_of::<Queued>() + self.request.object.as_bytes().len();
        (request + self.request.ops.iter().map(|op| size_of_val(op) + brought(op)).sum::<usize>()) as u64
    }

    /// Whether its client has said since that it was answered or given up.
    fn is_given_up(&self, session: SessionId, lowest_outstanding_tid: u64) -> bool {
        let id = self.request.id;
        (id.client, id.incarnation) == session && id.tid < lowest_outstanding_tid
    }
}

/// Bytes that an op brings along.
fn brought(op: &ObjectOp) -> usize {
    match op {
        ObjectOp::Write { data, .. }
        | ObjectOp::Append { data }
        | ObjectOp::WriteFull { data }
        | ObjectOp::CompareExtent { data, .. } => data.len(),
        ObjectOp::PutRows { rows } => rows.iter().map(|row| size_of_val(row) + row.key.len() + row.value.len()).sum(),
        ObjectOp::GetRows { keys } | ObjectOp::DeleteRows { keys } => {
            keys.iter().map(|key| size_of_val(key) + key.len()).sum()
        }
        ObjectOp::SetAttr { name, value } => name.len() + value.len(),
        _ => 0, // a name or two
    }
}

/// Sessions whose unlogged answers are remembered; the one that has been silent longest goes first.
const SESSIONS_MAX: usize = 1_024;
/// Unlogged answers remembered for one session; those below its watermark go first, then the oldest. Whether those of them
/// were answered is not known any more.
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
    /// Below this one requests may have been answered without anything being kept of it.
    floor: u64,
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
    bytes: u64,
    unlogged: BTreeMap<SessionId, Unlogged>,
    /// Of all answers that are kept.
    unlogged_bytes: usize,
    /// Requests looked up so far.
    looked_up: u64,
    /// When the last request came that could be served.
    pub served_at: Option<Timestamp>,
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
            None if id.tid < unlogged.watermark.max(unlogged.floor) => Remembered::Forgotten,
            None => Remembered::No,
        }
    }

    /// Remembers an answer that leaves no log entry.
    pub fn remember(&mut self, id: RequestId, outcome: &ClientOutcome) {
        let Some(unlogged) = self.unlogged.get_mut(&(id.client, id.incarnation)) else { return };
        self.unlogged_bytes -= unlogged.bytes;
        unlogged.answers.insert(id.tid, Some(outcome.clone()).filter(|outcome| cost(outcome) <= ANSWER_BYTES_MAX));
        if unlogged.answers.len() > ANSWERS_MAX {
            let dropped = unlogged.answers.pop_first();
            // (One that had been under way for long is the oldest when its answer comes.)
            unlogged.floor = unlogged.floor.max(dropped.map_or(0, |(tid, _)| tid + 1));
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
            self.removed(&queued);
            let outcome = ClientOutcome::Refused(RefusedReason::WrongPrimary);
            let reply = ClientReply { id: queued.request.id, epoch, outcome };
            out.push(Output::Reply { reply_to: queued.reply_to, reply, valid_until: None });
        }
    }

    /// Requests held.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn added(&mut self, queued: &Queued) {
        self.count += 1;
        self.bytes += queued.bytes();
    }

    fn removed(&mut self, queued: &Queued) {
        self.count -= 1;
        self.bytes -= queued.bytes();
    }

    /// Takes out what a session has given up: a client does not say so of each, but of what it is still waiting for.
    pub fn take_given_up(&mut self, session: SessionId, lowest_outstanding_tid: u64) -> Vec<Queued> {
        self.take(|queued| queued.is_given_up(session, lowest_outstanding_tid))
    }

    /// Takes out the requests of clients that are gone.
    pub fn take_gone(&mut self, gone: &BTreeSet<ReplyTo>) -> Vec<Queued> {
        self.take(|queued| gone.contains(&queued.reply_to))
    }

    fn take(&mut self, which: impl Fn(&Queued) -> bool) -> Vec<Queued> {
        let mut taken = Vec::new();
        if self.count == 0 {
            return taken;
        }
        let mut from = |queue: &mut VecDeque<Queued>| {
            let before = taken.len();
            if queue.iter().any(&which) {
                let (out, rest): (Vec<_>, Vec<_>) = std::mem::take(queue).into_iter().partition(|queued| which(queued));
                taken.extend(out);
                *queue = rest.into();
            }
            taken.len() > before
        };
        from(&mut self.early);
        from(&mut self.waiting);
        let mut changed = Vec::new();
        self.blocked.retain(|key, queue| {
            if from(queue) {
                changed.push(key.clone());
            }
            !queue.is_empty()
        });
        for key in changed {
            self.wake(&key); // what came behind them need not wait for the same
        }
        for queued in &taken {
            self.removed(queued);
        }
        taken
    }

    pub fn push_early(&mut self, queued: Queued) {
        self.added(&queued);
        self.early.push_back(queued);
    }

    /// Those for maps up to `epoch`.
    pub fn take_early(&mut self, epoch: Epoch) -> Vec<Queued> {
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.early).into_iter().partition(|queued| queued.request.epoch <= epoch);
        self.early = later.into();
        for queued in &now {
            self.removed(queued);
        }
        now
    }

    /// Queues for activation; a resend takes the place of what it repeats, which is given back.
    #[must_use]
    pub fn push_waiting(&mut self, queued: Queued) -> Option<Queued> {
        if let Some(same) = self.waiting.iter_mut().find(|other| other.request.id == queued.request.id) {
            self.bytes += queued.bytes();
            let replaced = std::mem::replace(same, queued);
            self.bytes -= replaced.bytes();
            return Some(replaced);
        }
        self.added(&queued);
        self.waiting.push_back(queued);
        None
    }

    /// Queues behind others of the same object; a resend takes the place of what it repeats, which is given back.
    #[must_use]
    pub fn push_blocked(&mut self, key: ObjectKey, queued: Queued) -> Option<Queued> {
        let mut queue = self.blocked.get_mut(&key).into_iter().flatten();
        if let Some(same) = queue.find(|other| other.request.id == queued.request.id) {
            self.bytes += queued.bytes();
            let replaced = std::mem::replace(same, queued);
            self.bytes -= replaced.bytes();
            return Some(replaced);
        }
        self.added(&queued);
        self.blocked.entry(key).or_default().push_back(queued);
        None
    }

    pub fn is_blocked(&self, key: &ObjectKey) -> bool {
        self.blocked.contains_key(key)
    }

    /// Whether one of a session's requests waits for an object.
    pub fn is_blocked_for(&self, key: &ObjectKey, (client, incarnation): (ClientId, Incarnation)) -> bool {
        let of_session = |id: &RequestId| (id.client, id.incarnation) == (client, incarnation);
        self.blocked.get(key).is_some_and(|queue| queue.iter().any(|queued| of_session(&queued.request.id)))
    }

    /// Takes out the first request for an object that is `such`, unless an earlier one of its session waits before it.
    pub fn pop_blocked(&mut self, key: &ObjectKey, such: impl Fn(&ClientRequest) -> bool) -> Option<Queued> {
        let queue = self.blocked.get_mut(key)?;
        let session = |queued: &Queued| (queued.request.id.client, queued.request.id.incarnation);
        let is_first = |at: usize| queue.iter().take(at).all(|earlier| session(earlier) != session(&queue[at]));
        let at = (0..queue.len()).find(|at| such(&queue[*at].request) && is_first(*at))?;
        let popped = queue.remove(at)?;
        if queue.is_empty() {
            self.blocked.remove(key);
        }
        self.removed(&popped);
        Some(popped)
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
                self.removed(&queued);
                return Some((key, queued));
            }
        }
        None
    }

    /// Puts a request that [`Clients::pop_runnable`] gave back to the front.
    pub fn put_back(&mut self, key: ObjectKey, queued: Queued) {
        self.added(&queued);
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
        for queued in requests.into_iter().rev() {
            self.added(&queued);
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
            self.removed(&queued);
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
            self.removed(&queued);
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
    fn the_late_answer_of_an_early_request_brings_no_forgotten_one_back() {
        let mut clients = Clients::default();
        let many = 3 * ANSWERS_MAX as u64;
        assert!(matches!(clients.remembered(id(1, 5), 5), Remembered::No));
        for tid in 6..many {
            assert!(matches!(clients.remembered(id(1, tid), 5), Remembered::No));
            clients.remember(id(1, tid), &lost(1));
        }
        clients.remember(id(1, 5), &lost(1)); // it was held until something was durable
        assert!((5..many).all(|tid| !matches!(clients.remembered(id(1, tid), 5), Remembered::No)));
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
        for tid in 101..=100 + ANSWERS_MAX as u64 {
            assert!(matches!(clients.remembered(id(99, tid), 1), Remembered::No));
            clients.remember(id(99, tid), &lost(10));
        }
        assert!(matches!(clients.remembered(id(99, 1), 1), Remembered::Forgotten), "too many came after it");
        clients.remember(id(100, 101), &lost(1 << 20));
        assert!(matches!(clients.remembered(id(100, 101), 1), Remembered::Forgotten), "too large");
        for client in 1..=100 {
            clients.remembered(id(client, 900), 900);
        }
        assert_eq!(clients.unlogged_bytes, 0);
    }
}
