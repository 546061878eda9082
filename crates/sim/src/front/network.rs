//! The production client core over the simulated network, maps and time: what `holdfast_client`'s shell does with sockets and
//! timers is done here with events.
//!
//! A connection that breaks is known after a while only: what was sent and not answered by then counts as lost, and the core
//! sends it again under its id. An answer to a sending that was given up is dropped, as there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::core::{Action, FollowError, Input, MapView, Op, Session, Target, follow};
use holdfast_client::{Cause, OperateError};
use holdfast_map::ClusterMap;
use holdfast_types::{ClientId, Epoch, Incarnation, ObjectName, Timestamp};
use holdfast_wire::{ClientReply, ClientRequest, Kind, ObjectOp};
use rand::Rng;

use super::desk::{Answer, CallId, Who};
use super::{Front, FrontEvent};
use crate::disk::CLUSTER;
use crate::faults::FaultKind;
use crate::monitor::POOL;
use crate::world::{Event, World};

/// Set in the number by which an OSD knows whom to answer: the rest is the process and the sending.
const FRONT: usize = 1 << 63;
const PROCESS_SHIFT: u32 = 48;

/// The process and the sending that an answer is for, if it is for a front end.
pub(crate) fn addressee(client: usize) -> Option<(usize, u64)> {
    let sending = client & ((1 << PROCESS_SHIFT) - 1);
    (client & FRONT != 0).then_some(((client & !FRONT) >> PROCESS_SHIFT, sending as u64))
}

struct Running {
    op: Op,
    /// The latest sending; 0: none is under way.
    sending: u64,
    /// The latest timer.
    timer: u64,
}

/// The client of one run of a front end.
pub(crate) struct Client {
    session: Session,
    view: Arc<MapView>,
    ops: BTreeMap<CallId, Running>,
}

impl Client {
    pub fn new(who: Who, id: ClientId) -> Client {
        let view = Arc::new(MapView::new(ClusterMap::empty(CLUSTER)));
        Client { session: Session::new(id, Incarnation(who.run)), view, ops: BTreeMap::new() }
    }

    /// Nobody waits for this one any more: it is not sent again.
    pub fn give_up(&mut self, call: CallId) {
        if let Some(running) = self.ops.remove(&call) {
            self.session.end(running.op.id());
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.view.map().epoch
    }

    /// What it waits for, for people.
    pub fn explain(&self) -> String {
        let ops: Vec<String> = self.ops.values().map(|running| format!("{:?}", running.op)).collect();
        format!("epoch {}, {} ops: {:.600}", self.epoch(), ops.len(), ops.join("; "))
    }
}

impl World {
    pub(crate) fn front_operate(
        &mut self,
        front: &mut Front,
        who: Who,
        call: CallId,
        (object, ops, frees_space): (ObjectName, Vec<ObjectOp>, bool),
    ) {
        let (now, deadline) = (self.now, self.now + self.front_patience(front, who));
        let Some(client) = front.client(who) else { return };
        let id = client.session.begin();
        let op = Op::new(id, POOL, object, ops, now, deadline).freeing_space(frees_space);
        client.ops.insert(call, Running { op, sending: 0, timer: 0 });
        self.schedule(deadline.since(now), Event::Front(FrontEvent::Deadline { who, call }));
        self.front_step(front, who, call, Input::Wake);
    }

    /// One step of the core, and what it asks for.
    pub(crate) fn front_step(&mut self, front: &mut Front, who: Who, call: CallId, input: Input) {
        let now = self.now;
        let Some(client) = front.client(who) else { return };
        let view = Arc::clone(&client.view);
        let Some(running) = client.ops.get_mut(&call) else { return };
        match running.op.step(now, &view, input) {
            Action::Await => {}
            Action::Send(target) => self.front_send(front, who, call, &target),
            Action::Wait { until, map } => {
                running.sending = 0;
                running.timer += 1;
                let number = running.timer;
                self.schedule(until.since(now), Event::Front(FrontEvent::Wake { who, call, number }));
                if map.is_some() {
                    self.front_wants_map(who);
                }
            }
            Action::Finish(result) => {
                client.session.end(running.op.id());
                client.ops.remove(&call);
                self.mix(call ^ now.as_nanos());
                match &result {
                    Err(OperateError::Timeout { .. }) => self.counts.add(FaultKind::AnswerNeverCame, 1),
                    Err(OperateError::Full) => self.counts.add(FaultKind::ClusterFull, 1),
                    _ => {}
                }
                if self.config.trace {
                    self.trace(&format!("front {who:?} call {call} = {result:?}"));
                }
                front.desk.lock().answer(call, Answer::Operated(result));
            }
        }
    }

    fn front_wants_map(&mut self, who: Who) {
        let after = self.delay() + self.delay();
        self.schedule(after, Event::Front(FrontEvent::Maps { who }));
    }

    fn front_send(&mut self, front: &mut Front, who: Who, call: CallId, target: &Target) {
        front.sendings += 1;
        let sending = front.sendings;
        let Some(client) = front.client(who) else { return };
        let lowest = client.session.lowest_outstanding_tid();
        let Some(running) = client.ops.get_mut(&call) else { return };
        running.sending = sending;
        let encoded = running.op.message(lowest);
        let payload: Bytes = encoded.payload.concat().into();
        let request = match holdfast_wire::decode::<ClientRequest>(Kind::ClientRequest as u16, &encoded.body, &payload)
        {
            Ok(request) => request,
            Err(error) => return self.violation = Some(format!("F0: a request is decoded as {error}")),
        };
        if self.config.trace {
            self.trace(&format!("front {who:?} call {call} -> {:?}: {request:?}", target.primary()));
        }
        let (osd, run) = target.primary();
        if self.nodes.get(osd.0 as usize).is_none_or(|node| !node.running || node.incarnation != run) {
            // Nobody listens there, or somebody else.
            let (after, cause) = (self.delay(), Cause::Unreachable);
            return self.schedule(after, Event::Front(FrontEvent::Lost { who, call, sending, cause }));
        }
        let client = FRONT | (who.process << PROCESS_SHIFT) | sending as usize;
        // A connection does not double what it carries. It may hold it for long: then the next sending arrives before.
        let arrivals = self.arrivals();
        if let Some(after) = arrivals.first() {
            let held = if arrivals.len() > 1 { self.config.patience * 2 } else { Duration::ZERO };
            let after = *after + held.mul_f64(self.rng.random_range(0.0..1.0));
            self.schedule(after, Event::Request { to: osd, client, request: Box::new(request) });
        }
        let patience = self.config.patience.mul_f64(self.rng.random_range(0.5..1.5));
        let lost = FrontEvent::Lost { who, call, sending, cause: Cause::Disconnected };
        self.schedule(patience, Event::Front(lost));
    }

    /// An answer arrives at a process.
    pub(crate) fn front_replied(&mut self, front: &mut Front, process: usize, sending: u64, reply: ClientReply) {
        let Some(who) = front.running(process) else { return };
        let Some(client) = front.client(who) else { return };
        let Some(call) = client.ops.iter().find(|(_, running)| running.sending == sending).map(|(call, _)| *call)
        else {
            return;
        };
        self.front_step(front, who, call, Input::Reply(reply));
    }

    pub(crate) fn front_lost(&mut self, front: &mut Front, who: Who, call: CallId, sending: u64, cause: Cause) {
        let Some(client) = front.client(who) else { return };
        if client.ops.get(&call).is_some_and(|running| running.sending == sending) {
            self.front_step(front, who, call, Input::Lost(cause));
            if !self.rng.random_bool(self.faults.client_map_lag) {
                self.front_wants_map(who);
            }
        }
    }

    pub(crate) fn front_wake(&mut self, front: &mut Front, who: Who, call: CallId, number: u64) {
        let Some(client) = front.client(who) else { return };
        if client.ops.get(&call).is_some_and(|running| running.timer == number && running.sending == 0) {
            self.front_step(front, who, call, Input::Wake);
        }
    }

    /// The subscription brings what is newer than what is held.
    pub(crate) fn front_maps(&mut self, front: &mut Front, who: Who) {
        if self.monitors_are_gone() {
            return;
        }
        let Some(client) = front.client(who) else { return };
        let update = self.monitor.maps_since(client.epoch());
        let next = match follow(client.view.map(), &update) {
            Err(FollowError::NeedFull { .. }) => {
                follow(&ClusterMap::empty(CLUSTER), &self.monitor.maps_since(Epoch::ZERO))
            }
            followed => followed,
        };
        match next {
            Ok(None) => {}
            Ok(Some(map)) => {
                client.view = Arc::new(MapView::new(map));
                let calls: Vec<CallId> = client.ops.keys().copied().collect();
                for call in calls {
                    self.front_step(front, who, call, Input::Wake);
                }
            }
            Err(error) => self.violation = Some(format!("Q7: a client cannot follow the maps: {error}")),
        }
    }

    /// A new map is on its way to all front ends.
    pub(crate) fn front_published(&mut self) {
        let Some(front) = &self.front else { return };
        for who in front.all_running() {
            let lag = self.faults.client_map_lag;
            if lag == 0.0 || !self.rng.random_bool(lag) {
                let after = self.delay();
                self.schedule(after, Event::Front(FrontEvent::Maps { who }));
            }
        }
    }
}

/// The time until a moment, not less than a microsecond: events of the same moment must not go in circles.
pub(crate) fn until(now: Timestamp, at: Timestamp) -> Duration {
    at.since(now).max(Duration::from_micros(1))
}
