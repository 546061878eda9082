//! One op on one object, from its first sending to its end. The transition table is in the module above.

use std::sync::Arc;
use std::time::Duration;

use holdfast_types::{Epoch, LogVersion, ObjectName, PgId, PoolId, RequestId, Timestamp};
use holdfast_wire::{ClientOutcome, ClientReply, ClientRequest, Encoded, ObjectOp, OpResult, RefusedReason, encode};

use crate::core::view::{MapView, NoTarget, Target};
use crate::error::{Cause, OperateError};

/// First pause before the same request goes to the same primary again.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest pause: what a restarted OSD, or a quiet one, costs at most beyond its own delay.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A map that is waited for is asked for again after this.
const MAP_WAIT: Duration = Duration::from_millis(500);

/// What an op gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Version of the write, or of the object read ([`LogVersion::ZERO`] when it does not exist).
    pub version: LogVersion,
    /// One result for each op.
    pub results: Vec<OpResult>,
}

/// What an op is told.
#[derive(Debug)]
pub enum Input {
    /// The map may be newer, or the time to wait has passed.
    Wake,
    /// An answer to the latest sending.
    Reply(ClientReply),
    /// The latest sending came to nothing.
    Lost(Cause),
}

/// What to do for an op.
#[derive(Debug)]
pub enum Action {
    /// Send [`Op::message`] to this target, giving up an earlier sending; then tell of reply or loss, and of new maps.
    Send(Arc<Target>),
    /// Go on waiting for the answer to what was sent.
    Await,
    /// Wake the op when the map changes, or at `until`.
    Wait {
        /// When.
        until: Timestamp,
        /// A map of at least this epoch is wanted.
        map: Option<Epoch>,
    },
    /// It is over.
    Finish(Result<Outcome, OperateError>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Not sent; to be sent when the map is at least `map` and it is `from` at least.
    Waiting { map: Epoch, from: Timestamp },
    /// Sent to this target.
    InFlight(Arc<Target>),
}

/// One op.
#[derive(Debug)]
pub struct Op {
    request: ClientRequest,
    pool: PoolId,
    started: Timestamp,
    deadline: Timestamp,
    state: State,
    /// Sendings that nothing has been heard of: they were lost, or are still under way. Who executes a request answers one
    /// of its sendings, so what all have been refused of has no effect.
    unanswered: u32,
    /// Losses and refusals that led to a pause; decides how long the next one is.
    pauses: u32,
    cause: Cause,
}

impl Op {
    /// An op that is to be finished by `deadline`. Begin with [`Input::Wake`].
    #[must_use]
    pub fn new(
        id: RequestId,
        pool: PoolId,
        object: ObjectName,
        ops: Vec<ObjectOp>,
        started: Timestamp,
        deadline: Timestamp,
    ) -> Op {
        let pg = PgId { pool, seed: 0 }; // set when a target is chosen
        let (epoch, lowest_outstanding_tid) = (Epoch::ZERO, id.tid);
        let request = ClientRequest { id, epoch, pg, object, ops, lowest_outstanding_tid, frees_space: None };
        let state = State::Waiting { map: Epoch::ZERO, from: Timestamp::ZERO };
        Op { request, pool, started, deadline, state, unanswered: 0, pauses: 0, cause: Cause::NotSent }
    }

    /// The same, marked as one that serves to free space.
    #[must_use]
    pub fn freeing_space(mut self, frees_space: bool) -> Op {
        self.request.frees_space = frees_space.then_some(true);
        self
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.request.id
    }

    /// When it ends at the latest.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// The request as it is to be sent now.
    #[must_use]
    pub fn message(&mut self, lowest_outstanding_tid: u64) -> Encoded {
        debug_assert!(lowest_outstanding_tid <= self.request.id.tid, "the op itself is outstanding");
        self.request.lowest_outstanding_tid = lowest_outstanding_tid;
        encode(&self.request)
    }

    /// Advances by one input.
    pub fn step(&mut self, now: Timestamp, view: &MapView, input: Input) -> Action {
        match input {
            Input::Reply(reply) if reply.id == self.request.id => {
                if let Some(action) = self.on_reply(now, view, reply) {
                    return action;
                }
            }
            Input::Reply(_) => self.pause(now, view, Cause::BadReply),
            Input::Lost(cause) => self.pause(now, view, cause),
            Input::Wake => {}
        }
        self.advance(now, view)
    }

    /// What the present state, map and time call for.
    fn advance(&mut self, now: Timestamp, view: &MapView) -> Action {
        let id = self.request.id;
        if view.map().is_blocklisted(id.client, id.incarnation) {
            return Action::Finish(Err(OperateError::Fenced));
        }
        let target = match view.target(self.pool, &self.request.object) {
            Err(NoTarget::NoPool) => return Action::Finish(Err(OperateError::PoolGone)),
            other => other,
        };
        if now >= self.deadline {
            let after = now.since(self.started);
            return Action::Finish(Err(OperateError::Timeout { after, last_cause: self.cause }));
        }
        match (&self.state, target) {
            (State::InFlight(present), Ok(target)) if *present == target => Action::Await,
            (State::Waiting { map, .. }, _) if view.map().epoch < *map => self.wait(now + MAP_WAIT, Some(*map)),
            (State::Waiting { from, .. }, Ok(_)) if now < *from => self.wait(*from, None),
            (_, Ok(target)) => {
                self.request.epoch = view.map().epoch;
                self.request.pg = target.pg;
                self.state = State::InFlight(Arc::clone(&target));
                self.cause = Cause::NoAnswer;
                self.unanswered = self.unanswered.saturating_add(1);
                Action::Send(target)
            }
            (_, Err(_)) => {
                self.cause = Cause::NoPrimary;
                let newer = view.map().epoch.next();
                self.state = State::Waiting { map: newer, from: now };
                self.wait(now + MAP_WAIT, Some(newer))
            }
        }
    }

    fn wait(&self, until: Timestamp, map: Option<Epoch>) -> Action {
        Action::Wait { until: until.min(self.deadline), map }
    }

    /// `None`: not over yet.
    fn on_reply(&mut self, now: Timestamp, view: &MapView, reply: ClientReply) -> Option<Action> {
        let finish = |result| Some(Action::Finish(result));
        self.unanswered = self.unanswered.saturating_sub(1);
        match reply.outcome {
            ClientOutcome::Done { version, results } if results.len() == self.request.ops.len() => {
                finish(Ok(Outcome { version, results }))
            }
            ClientOutcome::Done { .. } => {
                self.pause(now, view, Cause::BadReply);
                None
            }
            ClientOutcome::Failed { index, error } => finish(Err(OperateError::from_op(index, error))),
            ClientOutcome::Refused(RefusedReason::WrongPrimary) => {
                if reply.epoch > view.map().epoch {
                    self.cause = Cause::WrongPrimary;
                    self.state = State::Waiting { map: reply.epoch, from: now };
                } else if self.request.epoch < reply.epoch {
                    // The map has come since it was sent: under that one it has not been refused yet.
                    self.cause = Cause::WrongPrimary;
                    self.state = State::Waiting { map: Epoch::ZERO, from: now };
                } else {
                    self.pause(now, view, Cause::WrongPrimary);
                }
                None
            }
            ClientOutcome::Refused(RefusedReason::Busy) => {
                self.pause(now, view, Cause::Busy);
                None
            }
            // Nobody remembers this refusal: an earlier sending that is still under way may find room again.
            ClientOutcome::Refused(RefusedReason::Full) if self.unanswered > 0 => {
                finish(Err(OperateError::Timeout { after: now.since(self.started), last_cause: Cause::Full }))
            }
            ClientOutcome::Refused(RefusedReason::Full) => finish(Err(OperateError::Full)),
            ClientOutcome::Refused(RefusedReason::Blocklisted) => finish(Err(OperateError::Fenced)),
            ClientOutcome::Refused(RefusedReason::Forgotten) => finish(Err(OperateError::Forgotten)),
            ClientOutcome::Refused(RefusedReason::PoolGone) => finish(Err(OperateError::PoolGone)),
        }
    }

    /// Not sent again at once, unless the map has moved its target in the meantime.
    fn pause(&mut self, now: Timestamp, view: &MapView, cause: Cause) {
        self.cause = cause;
        let moved = match (&self.state, view.target(self.pool, &self.request.object)) {
            (State::InFlight(sent_to), Ok(target)) => *sent_to != target,
            _ => false,
        };
        let pause = if moved { Duration::ZERO } else { self.next_pause() };
        self.state = State::Waiting { map: Epoch::ZERO, from: now + pause };
    }

    /// Doubles; shortened by up to half depending on the request, so that a thousand waiting requests do not come back
    /// in step.
    fn next_pause(&mut self) -> Duration {
        let pause = (PAUSE_MIN * 2u32.saturating_pow(self.pauses.min(8))).min(PAUSE_MAX);
        self.pauses += 1;
        let spread = self.request.id.tid.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56; // 0..256
        pause - pause / 512 * u32::try_from(spread).unwrap_or(0)
    }
}

#[cfg(test)]
#[path = "op_tests.rs"]
mod tests;
