//! A session that is fenced while it writes, and goes on sending as if nothing had happened: after the barrier it must
//! change nothing (X1).
//!
//! One client takes over from itself again and again, as whoever attaches a volume by force does: it has its former session
//! blocklisted, waits until nobody acts by an older map (the barrier of `Client::fence`), reads what is there,
//! looks again later, and only then writes itself. The former sessions never learn of it: they send again what was not
//! answered, and new writes, too. What they began after the barrier must never be answered as done, either.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use holdfast_mon_state::Change;
use holdfast_pg::mutants::{Mutant, on};
use holdfast_types::{ClientId, Epoch, Incarnation, ObjectName, PgId, RequestId, Timestamp};
use holdfast_wire::mon::MonCommand;
use holdfast_wire::{ClientOutcome, ClientReply, ClientRequest, ObjectOp, OpError, OpResult};
use rand::Rng;

use crate::faults::FaultKind;
use crate::monitor::POOL;
use crate::node::Node;
use crate::world::{Event, World};

/// How often sessions send.
const TICK: Duration = Duration::from_millis(40);
/// Objects that they write.
const OBJECTS: usize = 3;
/// Requests that a session has under way at most.
const DEPTH: usize = 4;
/// Fenced sessions that go on sending.
const ZOMBIES_MAX: usize = 2;

/// What an object holds: nothing, or the number of the write that made it.
type Value = Option<u64>;

#[derive(Debug)]
struct Session {
    run: Incarnation,
    epoch: Epoch,
    next_tid: u64,
    outstanding: BTreeMap<u64, (ClientRequest, Timestamp)>,
    /// What it sends from this number on, it sends after the barrier behind its fencing.
    fenced_from: Option<u64>,
}

#[derive(Debug)]
enum Stage {
    /// The newest session writes.
    Working,
    /// It waits until everybody acts by this map.
    Barrier { epoch: Epoch },
    /// It reads all objects: what it has read so far, and what it must be.
    Reading { seen: BTreeMap<ObjectName, Value>, expected: Option<BTreeMap<ObjectName, Value>> },
    /// It waits before it reads again.
    Watching { until: Timestamp, expected: BTreeMap<ObjectName, Value> },
}

/// The sessions of one client, of which all but the newest are fenced.
#[derive(Debug)]
pub(crate) struct Fencing {
    client: ClientId,
    objects: Vec<ObjectName>,
    current: Session,
    zombies: Vec<Session>,
    stage: Stage,
    values: u64,
}

impl Session {
    fn new(run: u64, epoch: Epoch) -> Session {
        Session { run: Incarnation(run), epoch, next_tid: 1, outstanding: BTreeMap::new(), fenced_from: None }
    }

    fn start(&mut self, client: ClientId, object: ObjectName, ops: Vec<ObjectOp>, now: Timestamp) -> u64 {
        let tid = self.next_tid;
        self.next_tid += 1;
        let request = ClientRequest {
            id: RequestId { client, incarnation: self.run, tid },
            epoch: self.epoch,
            pg: PgId { pool: POOL, seed: 0 },
            object,
            ops,
            lowest_outstanding_tid: self.outstanding.keys().next().copied().unwrap_or(tid),
            frees_space: None,
        };
        self.outstanding.insert(tid, (request, now));
        tid
    }
}

impl Fencing {
    pub fn new(clients: u32, objects: Vec<ObjectName>) -> Fencing {
        Fencing {
            client: ClientId(u64::from(clients) + 1),
            objects: objects.into_iter().take(OBJECTS).collect(),
            current: Session::new(1, Epoch(1)),
            zombies: Vec::new(),
            stage: Stage::Working,
            values: 0,
        }
    }

    /// Whether the newest session waits for nothing.
    pub fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Working) && self.current.outstanding.is_empty()
    }

    fn write(&mut self, zombie: Option<usize>, object: usize, now: Timestamp) -> Option<u64> {
        self.values += 1;
        let value = Bytes::copy_from_slice(&self.values.to_le_bytes());
        let (client, object) = (self.client, self.objects.get(object)?.clone());
        let session = match zombie {
            Some(index) => self.zombies.get_mut(index)?,
            None => &mut self.current,
        };
        if session.outstanding.len() >= DEPTH {
            return None;
        }
        Some(session.start(client, object, vec![ObjectOp::WriteFull { data: value.into() }], now))
    }

    /// The fence of this epoch holds.
    fn hold(&mut self, epoch: Epoch, now: Timestamp) {
        for zombie in &mut self.zombies {
            zombie.fenced_from.get_or_insert(zombie.next_tid);
        }
        // Whoever reads need not know the map that fences: after the barrier every OSD does.
        self.current.epoch = Epoch(epoch.0.saturating_sub(1));
        self.read_all(None, now);
    }

    fn read_all(&mut self, expected: Option<BTreeMap<ObjectName, Value>>, now: Timestamp) {
        for object in self.objects.clone() {
            self.current.start(self.client, object, vec![ObjectOp::Read { offset: 0, length: 64 }], now);
        }
        self.stage = Stage::Reading { seen: BTreeMap::new(), expected };
    }
}

/// What a read showed.
fn value_of(outcome: &ClientOutcome) -> Result<Value, String> {
    match outcome {
        ClientOutcome::Done { results, .. } => match results.as_slice() {
            [OpResult::Data(data)] => {
                let bytes = data.as_ref().try_into().map_err(|_| format!("X1: a volume holds {data:?}"))?;
                Ok(Some(u64::from_le_bytes(bytes)))
            }
            other => Err(format!("X1: a read of a volume answered {other:?}")),
        },
        ClientOutcome::Failed { error: OpError::NotFound, .. } => Ok(None),
        other => Err(format!("X1: a read of a volume answered {other:?}")),
    }
}

impl World {
    pub(crate) fn fence_tick(&mut self) {
        let Some(mut fencing) = self.fencing.take() else { return };
        self.schedule(TICK, Event::FenceTick);
        let now = self.now;
        let strikes = self.faults.fences_per_second * TICK.as_secs_f64();
        let newest = self.monitor.map().epoch;
        let mut sends = Vec::new();
        match &fencing.stage {
            Stage::Working if self.working && self.rng.random_bool(strikes.min(1.0)) && !self.monitors_are_gone() => {
                self.fence(&mut fencing);
            }
            Stage::Working if self.working => {
                let object = self.rng.random_range(0..OBJECTS);
                fencing.current.epoch = newest;
                sends.extend(fencing.write(None, object, now).map(|tid| (None, tid)));
            }
            Stage::Working => {}
            Stage::Barrier { epoch } => {
                if self.barrier_is_reached(*epoch) {
                    let epoch = *epoch;
                    fencing.hold(epoch, now);
                    sends.extend(fencing.current.outstanding.keys().map(|tid| (None, *tid)));
                }
            }
            Stage::Reading { .. } => {}
            Stage::Watching { until, expected } => {
                if *until <= now {
                    let expected = expected.clone();
                    fencing.current.epoch = newest;
                    fencing.read_all(Some(expected), now);
                    sends.extend(fencing.current.outstanding.keys().map(|tid| (None, *tid)));
                }
            }
        }
        for zombie in 0..fencing.zombies.len() {
            if self.working && self.rng.random_bool(0.3) {
                let object = self.rng.random_range(0..OBJECTS);
                sends.extend(fencing.write(Some(zombie), object, now).map(|tid| (Some(zombie), tid)));
            }
        }
        let patience = self.config.patience;
        let late = |session: &Session| -> Vec<u64> {
            let late = session.outstanding.iter().filter(|(_, (_, sent))| now.since(*sent) >= patience);
            late.map(|(tid, _)| *tid).collect()
        };
        let late_now = late(&fencing.current);
        if !late_now.is_empty() {
            fencing.current.epoch = newest;
        }
        sends.extend(late_now.into_iter().map(|tid| (None, tid)));
        for (index, zombie) in fencing.zombies.iter().enumerate() {
            sends.extend(late(zombie).into_iter().map(|tid| (Some(index), tid)));
        }
        for (zombie, tid) in sends {
            let session = match zombie {
                Some(index) => fencing.zombies.get_mut(index),
                None => Some(&mut fencing.current),
            };
            if let Some(session) = session {
                self.send_of_session(session, tid);
            }
        }
        self.fencing = Some(fencing);
    }

    /// The newest session is fenced by the next one.
    fn fence(&mut self, fencing: &mut Fencing) {
        let (client, run) = (fencing.client, fencing.current.run);
        if !self.deals(format!("session {run} of {client} is fenced")) {
            return;
        }
        self.propose(Change::Request(MonCommand::BlocklistAdd { client, incarnation: run }));
        self.counts.add(FaultKind::Fenced, 1);
        let epoch = self.monitor.map().epoch;
        let next = Session::new(run.0 + 1, epoch);
        fencing.zombies.push(std::mem::replace(&mut fencing.current, next));
        if fencing.zombies.len() > ZOMBIES_MAX {
            fencing.zombies.remove(0);
        }
        fencing.stage = Stage::Barrier { epoch };
    }

    /// Whether each OSD that is up in the newest map acts by that one, and each placement group has peered (`Client::fence`).
    fn barrier_is_reached(&self, epoch: Epoch) -> bool {
        if on(Mutant::BarrierSkipped) {
            return true;
        }
        let newest = self.monitor.newest();
        let settled = |node: &Node| node.pgs.values().all(|pg| !pg.is_primary() || pg.has_peered());
        let reached = newest.map.osds.iter().filter(|(_, info)| info.up).all(|(osd, info)| {
            let node = self.nodes.get(osd.0 as usize);
            let is_run = |node: &&Node| node.running && node.incarnation == info.incarnation;
            node.filter(is_run).is_some_and(|node| node.epoch() == newest.map.epoch && settled(node))
        });
        reached && newest.map.epoch >= epoch && newest.members.values().all(|members| members.primary().is_some())
    }

    fn send_of_session(&mut self, session: &mut Session, tid: u64) {
        let now = self.now;
        let Some((request, sent)) = session.outstanding.get_mut(&tid) else { return };
        *sent = now;
        request.epoch = session.epoch;
        let Some(step) = self.monitor.step(request.epoch).cloned() else { return };
        let Some(pg) = step.map.pg_of(POOL, &request.object) else { return };
        request.pg = pg;
        let request = request.clone();
        // A fenced session knows old maps only; who leads today is told to it, as an OSD that is not the primary would.
        let newest = self.monitor.newest().members_of(pg).primary();
        let Some(to) = step.members_of(pg).primary().filter(|_| self.rng.random_bool(0.5)).or(newest) else { return };
        let client = self.clients.len();
        for after in self.arrivals() {
            self.schedule(after, Event::Request { to, client, request: Box::new(request.clone()) });
        }
    }

    /// An answer to one of the sessions.
    pub(crate) fn session_replied(&mut self, reply: &ClientReply) {
        let Some(mut fencing) = self.fencing.take() else { return };
        let refused = matches!(reply.outcome, ClientOutcome::Refused(_));
        if let Some(zombie) = fencing.zombies.iter_mut().find(|zombie| zombie.run == reply.id.incarnation) {
            let tid = reply.id.tid;
            let done = matches!(reply.outcome, ClientOutcome::Done { .. });
            if done && zombie.fenced_from.is_some_and(|from| tid >= from) {
                self.violation = Some(format!("X1: {} was begun after the barrier and is done", reply.id));
            }
            if !refused {
                zombie.outstanding.remove(&tid);
            }
        } else if fencing.current.run == reply.id.incarnation && !refused {
            let answered = fencing.current.outstanding.remove(&reply.id.tid);
            if let (Some((request, _)), Stage::Reading { seen, expected }) = (answered, &mut fencing.stage) {
                match value_of(&reply.outcome) {
                    Ok(value) => {
                        seen.insert(request.object, value);
                    }
                    Err(violation) => self.violation = Some(violation),
                }
                if seen.len() == fencing.objects.len() {
                    let (seen, expected) = (std::mem::take(seen), expected.take());
                    fencing.stage = self.seen_all(seen, expected);
                }
            }
        }
        self.fencing = Some(fencing);
    }

    fn seen_all(&mut self, seen: BTreeMap<ObjectName, Value>, expected: Option<BTreeMap<ObjectName, Value>>) -> Stage {
        match expected {
            None => {
                let until = self.now + Duration::from_millis(self.rng.random_range(200..4_000));
                Stage::Watching { until, expected: seen }
            }
            Some(expected) => {
                if expected != seen {
                    let what = format!("X1: after the barrier there was {expected:?}, and later {seen:?}");
                    self.violation = Some(what);
                }
                Stage::Working
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_types::LogVersion;

    use super::*;
    use crate::config::Config;

    #[test]
    fn what_a_fenced_session_began_before_the_barrier_may_be_done_and_nothing_that_it_began_later() {
        let mut world = World::new(1, Config::fence()).expect("a world");
        let mut fencing = world.fencing.take().expect("sessions that fence each other");
        let before = fencing.write(None, 0, world.now).expect("room for a request");
        world.fence(&mut fencing);
        let Stage::Barrier { epoch } = fencing.stage else { panic!("it waits for {:?}", fencing.stage) };
        fencing.hold(epoch, world.now);
        assert!(matches!(fencing.stage, Stage::Reading { .. }));
        let after = fencing.zombies[0].next_tid.max(fencing.zombies[0].fenced_from.expect("it is fenced"));
        let incarnation = fencing.zombies[0].run;
        let done = |tid| ClientReply {
            id: RequestId { client: fencing.client, incarnation, tid },
            epoch: Epoch(1),
            outcome: ClientOutcome::Done { version: LogVersion { epoch: Epoch(1), counter: 1 }, results: Vec::new() },
        };
        let (early, late) = (done(before), done(after));
        world.fencing = Some(fencing);
        world.session_replied(&early);
        assert_eq!(world.violation, None);
        world.session_replied(&late);
        assert!(world.violation.is_some_and(|violation| violation.starts_with("X1: ")));
    }
}
