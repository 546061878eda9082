//! A shard: one thread that owns placement groups and performs what their steps ask for.
//!
//! Events come in through one channel and are handled in order, some dozens in a turn: of what became durable in it, each
//! placement group is told the newest, at its end, and messages are held until then and written together. The thread never
//! waits for the network; it waits for the store only when the store's queue is full, which is the back-pressure that
//! clients feel (each waiting request holds its connection's permit). The channel itself is unbounded because the store's
//! commit thread writes to it and must never wait; what can be in it is bounded by permits and by the transactions that
//! the store admits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use holdfast_map::{ClusterMap, PgMembers};
use holdfast_net::{Connection, Permit};
use holdfast_pg::{
    EPOCHS_AHEAD_MAX, Input, Limits, Outbox, Output, Pg, ReplyTo, Slot, StoreOp, TxnId, answer_without_copy,
};
use holdfast_store::{Store, SubmitError};
use holdfast_types::{Epoch, Incarnation, OsdId, PgId, Timestamp};
use holdfast_wire::mon::{PgReport, PgTempWish};
use holdfast_wire::peer::{Heartbeat, HeartbeatReply, PeerBody, PeerMessage};
use holdfast_wire::{ClientOutcome, ClientReply, ClientRequest, Kind, RefusedReason};
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use crate::answers::{respond, respond_client};
use crate::awaited::{Awaited, leave_known};
use crate::barrier::BarrierWait;
use crate::counters::Counters;
use crate::heartbeat::HEARTBEAT_GRACE;
use crate::leases::Leases;
use crate::local::{Local, collection_of, to_transaction};
use crate::monitors::Wishes;
use crate::peers::{Held, Outbound, Peers};
use crate::slots::Slots;
use crate::space::{self, PeerSpace};

/// A device that takes nothing for so long hangs. Well above the grace of heartbeats: daemons that share a busy disk would
/// else fall silent together, all at once.
pub(crate) const STALL_GRACE: Duration = Duration::from_secs(3 * HEARTBEAT_GRACE.as_secs());
/// Longest wait of the thread for its next event; it then looks for clients that went away.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// Requests of clients with a newer map than this daemon's that may wait for that map. Each holds a permit.
const WAITING_FOR_MAP_MAX: usize = 4096;
/// Barriers that may wait for a map. Each holds a permit.
const BARRIERS_MAX: usize = 1024;
/// Messages for placement groups that a newer map brings here. What is dropped, the sender repeats.
const EARLY_MESSAGES_MAX: usize = 1024;
/// Ticks in a row that one placement group may ask for "at once" before others get their turn.
const TICKS_AT_ONCE_MAX: usize = 16;
/// How often placement groups are told the time of day. Scrubs are scheduled by the hour.
const TIME_OF_DAY_EVERY: Duration = Duration::from_secs(30);
/// Events handled before what they have to say is sent. More would add latency and save little.
const EVENTS_AT_ONCE_MAX: usize = 32;

/// Nanoseconds on `CLOCK_BOOTTIME`: it goes on during suspend.
pub(crate) fn now() -> Timestamp {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let nanos = u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0);
    Timestamp::from_nanos(nanos)
}

/// One epoch, computed once for all shards.
#[derive(Debug)]
pub struct MapStep {
    /// The map.
    pub map: Arc<ClusterMap>,
    /// Who keeps what.
    pub members: BTreeMap<PgId, PgMembers>,
}

impl MapStep {
    /// Computes who keeps what.
    #[must_use]
    pub fn new(map: Arc<ClusterMap>) -> Arc<MapStep> {
        let members = map.members_of_all().into_iter().collect();
        Arc::new(MapStep { map, members })
    }

    /// Who keeps a placement group; nobody when it does not exist.
    #[must_use]
    pub fn members_of(&self, pg: PgId) -> PgMembers {
        self.members.get(&pg).cloned().unwrap_or_default()
    }
}

/// A client request and the way back.
pub(crate) struct ClientArrival {
    pub(crate) connection: Arc<Connection>,
    pub(crate) request_id: u64,
    pub(crate) request: ClientRequest,
    /// Returns the connection's credit when the request is answered.
    pub(crate) permit: Permit,
}

/// What a shard is told.
#[expect(clippy::large_enum_variant, reason = "most events are the largest; a box would cost each of them")]
pub(crate) enum Event {
    /// The next epoch.
    Map(Arc<MapStep>),
    /// From another OSD.
    Peer { from: OsdId, incarnation: Incarnation, message: PeerMessage, permit: Permit },
    /// From a client.
    Client(ClientArrival),
    /// The store has this and all before it.
    Durable { pg: PgId, txn: TxnId },
    /// The store failed for good.
    StoreFailed { pg: PgId, txn: TxnId, detail: String },
    /// What became of a placement group that the map of this epoch, or one before it, splits off: made of the parent's copy,
    /// or nothing, for there is none here (see `awaited`).
    Child { pg: PgId, epoch: Epoch, made: Option<Box<Pg>> },
    /// A recovery slot became free and is this placement group's.
    Reserved { pg: PgId, slot: Slot },
    /// Say when your placement groups are as far.
    Barrier(Arc<BarrierWait>),
    /// A [`Question`] waits: it is looked at before each event, so this one asks for nothing.
    Asked,
    /// What do you lead, and how is it?
    Report { reply: oneshot::Sender<Vec<PgReport>> },
    /// Dropped when all events before it are handled.
    Reached(#[expect(dead_code, reason = "only dropped")] Sender<()>),
    /// End the thread.
    Stop,
}

/// Are you alive? Passed from shard to shard; the last one answers. It passes all events that wait: a shard with much to
/// do is alive, one that is stuck in an event is not.
pub(crate) struct Question {
    pub(crate) connection: Arc<Connection>,
    pub(crate) request_id: u64,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) permit: Permit,
    /// The newest that a shard had when this came by (`leases`).
    pub(crate) epoch: Epoch,
}

/// What is for one shard.
pub(crate) struct Inbox {
    pub(crate) events: Receiver<Event>,
    questions: Receiver<Question>,
}

/// The way to all shards of a run.
#[derive(Clone)]
pub(crate) struct Shards {
    senders: Arc<Vec<(Sender<Event>, Sender<Question>)>>,
}

impl Shards {
    /// Makes the channels; the receivers go to the threads.
    pub(crate) fn new(count: usize) -> (Shards, Vec<Inbox>) {
        let one = |_| {
            let ((to_events, events), (to_questions, questions)) = (channel(), channel());
            ((to_events, to_questions), Inbox { events, questions })
        };
        let (senders, inboxes): (Vec<_>, Vec<_>) = (0..count.max(1)).map(one).unzip();
        (Shards { senders: Arc::new(senders) }, inboxes)
    }

    pub(crate) fn count(&self) -> usize {
        self.senders.len()
    }

    pub(crate) fn index_of(&self, pg: PgId) -> usize {
        // Neighbouring seeds go to different shards; pools are offset so that small pools do not share one.
        (pg.seed as usize).wrapping_add(usize::try_from(pg.pool.0).unwrap_or(0)) % self.senders.len()
    }

    /// Hands an event to the shard of a placement group. A stopped shard takes nothing; the run is ending then.
    pub(crate) fn send(&self, pg: PgId, event: Event) {
        let _ = self.senders[self.index_of(pg)].0.send(event);
    }

    /// Hands an event to a shard by number.
    pub(crate) fn send_to(&self, index: usize, event: Event) {
        let _ = self.senders[index].0.send(event);
    }

    /// Hands an event to each shard.
    pub(crate) fn send_all(&self, event: impl Fn() -> Event) {
        for (events, _) in self.senders.iter() {
            let _ = events.send(event());
        }
    }

    /// Waits until the shards have handled what they were sent so far. Those that ended are not waited for.
    pub(crate) fn wait(&self) {
        let (reached, all) = channel();
        for index in 0..self.count() {
            self.send_to(index, Event::Reached(reached.clone()));
        }
        drop(reached);
        while all.recv().is_ok() {}
    }

    /// Has the shards from this one on answer a heartbeat.
    pub(crate) fn ask(&self, index: usize, question: Question) {
        let _ = self.senders[index].1.send(question);
        self.send_to(index, Event::Asked);
    }
}

/// What all shards of one run share.
pub(crate) struct Shared {
    pub(crate) osd: OsdId,
    pub(crate) incarnation: Incarnation,
    pub(crate) store: Store,
    pub(crate) shards: Shards,
    pub(crate) peers: Arc<Peers>,
    pub(crate) wishes: Arc<Wishes>,
    pub(crate) slots: Slots,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    /// Up to this epoch the disk has lost all that it held.
    pub(crate) lost_before: Option<Epoch>,
    /// Whether that was found by this process.
    pub(crate) lost_now: bool,
    /// Copies that could not be used when this run began.
    pub(crate) lost_copies: BTreeSet<PgId>,
    /// For so long the device may take nothing and the daemon still answers heartbeats: [`STALL_GRACE`].
    pub(crate) stall_grace: Duration,
    /// Told when the store failed for good: the daemon must end.
    pub(crate) fatal: tokio::sync::mpsc::UnboundedSender<Fatal>,
    /// Who has no room.
    pub(crate) space: PeerSpace,
    /// Read leases, given and got.
    pub(crate) leases: Arc<Leases>,
    /// Told when a report to the monitors is due.
    pub(crate) report_due: Arc<tokio::sync::Notify>,
}

/// Why a run cannot go on.
#[derive(Debug)]
pub(crate) enum Fatal {
    /// The store is not to be used any more.
    Store(String),
    /// The store is whole but did not take what had been let in (no room, an object that cannot be read), or this run does
    /// not know how what is in it came there. The next run takes up what is there, and peers anew.
    NotTaken(String),
}

struct Pending {
    pg: PgId,
    connection: Arc<Connection>,
    request_id: u64,
    _permit: Permit,
}

/// The thread's own state.
pub(crate) struct Shard {
    index: usize,
    shared: Arc<Shared>,
    step: Arc<MapStep>,
    pgs: BTreeMap<PgId, Pg>,
    /// When each placement group wants its next tick, and the same by time.
    wakes: BTreeMap<PgId, Timestamp>,
    wake_order: BTreeSet<(Timestamp, PgId)>,
    /// Bytes of clients' requests that wait in each placement group, if any do.
    waiting: BTreeMap<PgId, u64>,
    /// Client requests that a placement group holds, by the number they were given.
    replies: BTreeMap<u64, Pending>,
    next_reply: u64,
    waiting_for_map: Vec<ClientArrival>,
    early: Vec<(OsdId, Incarnation, PeerMessage)>,
    barriers: Vec<Arc<BarrierWait>>,
    /// Children of splits that other shards are to give.
    awaited: Awaited,
    /// Children that were given while the present map was taken.
    given: BTreeSet<PgId>,
    /// Placement groups of which the store refused a transaction: nothing of them is done any more in this run.
    stopped: BTreeSet<PgId>,
    looked_for_lost_clients: Timestamp,
    /// When the placement groups were last told the time of day.
    told_time: Option<Timestamp>,
    outbox: Outbox,
    held: Held,
    /// The newest durable transaction of each placement group that the present turn was told of.
    durable: BTreeMap<PgId, TxnId>,
}

impl Shard {
    /// `awaited`: children of copies, of this or another shard, that are split before anything else.
    pub(crate) fn new(
        index: usize,
        shared: Arc<Shared>,
        step: Arc<MapStep>,
        pgs: BTreeMap<PgId, Pg>,
        awaited: BTreeSet<PgId>,
    ) -> Shard {
        Shard {
            index,
            shared,
            step,
            pgs,
            wakes: BTreeMap::new(),
            wake_order: BTreeSet::new(),
            waiting: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_reply: 0,
            waiting_for_map: Vec::new(),
            early: Vec::new(),
            barriers: Vec::new(),
            awaited: Awaited::of(awaited),
            given: BTreeSet::new(),
            stopped: BTreeSet::new(),
            looked_for_lost_clients: now(),
            told_time: None,
            outbox: Outbox::default(),
            held: Held::default(),
            durable: BTreeMap::new(),
        }
    }

    /// Runs until [`Event::Stop`].
    pub(crate) fn run(mut self, inbox: &Inbox) {
        let events = &inbox.events;
        loop {
            self.tell_time(inbox);
            self.tick_due(inbox);
            let wait = self.wake_order.first().map_or(IDLE_WAIT, |(at, _)| at.since(now()).min(IDLE_WAIT));
            self.held.flush();
            match events.recv_timeout(wait) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(event) => {
                    self.answer(inbox);
                    self.handle(event, Some(inbox));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            for event in events.try_iter().take(EVENTS_AT_ONCE_MAX) {
                match event {
                    Event::Stop => return self.held.flush(),
                    event => {
                        self.answer(inbox);
                        self.handle(event, Some(inbox));
                    }
                }
            }
            for (pg, txn) in std::mem::take(&mut self.durable) {
                self.answer(inbox);
                self.step_pg(pg, Input::Durable(txn));
            }
            if now().since(self.looked_for_lost_clients) >= IDLE_WAIT {
                self.looked_for_lost_clients = now();
                self.drop_lost_clients();
                self.barriers.retain(|barrier| !barrier.is_given_up());
                self.waiting_for_map.retain(|arrival| !arrival.connection.is_closed());
            }
        }
    }

    /// Nobody waits on a closed connection: its requests' memory is given back.
    fn drop_lost_clients(&mut self) {
        let mut gone = BTreeMap::<PgId, Vec<ReplyTo>>::new();
        self.replies.retain(|number, pending| {
            let closed = pending.connection.is_closed();
            if closed {
                gone.entry(pending.pg).or_default().push(ReplyTo(*number));
            }
            !closed
        });
        for (pg, gone) in gone {
            self.step_pg(pg, Input::ClientsGone(gone));
        }
    }

    /// Tells the placement groups the time of day, by which they schedule scrubs.
    fn tell_time(&mut self, inbox: &Inbox) {
        if self.told_time.is_some_and(|at| now().since(at) < TIME_OF_DAY_EVERY) {
            return;
        }
        self.told_time = Some(now());
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        for pg in self.pgs.keys().copied().collect::<Vec<_>>() {
            self.answer(inbox);
            self.step_pg(pg, Input::WallClock { unix_ms });
        }
    }

    /// `inbox`: heartbeats that come meanwhile are answered, where the event is one for all placement groups.
    fn handle(&mut self, event: Event, inbox: Option<&Inbox>) {
        match event {
            Event::Map(step) => {
                if let Some(step) = self.awaited.admit(step) {
                    self.advance_map(&step, inbox);
                }
            }
            Event::Child { pg, epoch, made } => self.child(pg, epoch, made, inbox),
            Event::Peer { from, incarnation, message, permit } => {
                if let PeerBody::RepOpAck { full, .. } = &message.body {
                    self.shared.space.note(from, full.unwrap_or(false));
                }
                self.peer(from, incarnation, message);
                drop(permit);
            }
            Event::Client(arrival) => self.client(arrival),
            Event::Barrier(barrier) => self.barrier(barrier),
            // The store tells of them in order, and one says all that those before it say.
            Event::Durable { pg, txn } => drop(self.durable.insert(pg, txn)),
            Event::StoreFailed { pg, txn, detail } => {
                error!(osd = %self.shared.osd, %pg, %detail, "the store failed: this daemon ends, its disk needs a look");
                self.step_pg(pg, Input::SubmitFailed(txn));
                let _ = self.shared.fatal.send(Fatal::Store(detail));
            }
            Event::Reserved { pg, slot } => self.reserved(pg, slot),
            Event::Report { reply } => {
                // A run that is ending does not wait for the answer.
                let _ = reply.send(self.pgs.values().filter(|pg| pg.is_primary()).map(Pg::report).collect());
            }
            Event::Asked | Event::Reached(_) | Event::Stop => {}
        }
    }

    /// Answers the heartbeats that wait, or passes them on.
    fn answer(&mut self, inbox: &Inbox) {
        for mut question in inbox.questions.try_iter() {
            question.epoch = question.epoch.max(self.step.map.epoch);
            if self.index + 1 < self.shared.shards.count() {
                self.shared.shards.ask(self.index + 1, question);
                continue;
            }
            // A device that hangs fails nothing: who does not answer is found dead by its peers.
            if self.shared.store.stalled_for() > self.shared.stall_grace {
                continue;
            }
            let Shared { osd, incarnation, .. } = &*self.shared;
            let reply = HeartbeatReply {
                from: *osd,
                incarnation: *incarnation,
                epoch: question.epoch,
                stamp: question.heartbeat.stamp,
                full: (!space::has_room(self.shared.store.engine(), 0)).then_some(true),
            };
            respond(&question.connection, question.request_id, Kind::HeartbeatReply, &reply, &mut self.held);
            self.held.flush();
            drop(question.permit);
        }
    }

    fn peer(&mut self, from: OsdId, incarnation: Incarnation, message: PeerMessage) {
        let pg = message.pg;
        if message.epoch.0 > self.step.map.epoch.0.saturating_add(EPOCHS_AHEAD_MAX) {
            debug!(%pg, %from, epoch = %message.epoch, "message of a map far ahead dropped");
            return;
        }
        if !self.pgs.contains_key(&pg) {
            if message.epoch > self.step.map.epoch || self.awaited.contains(pg) {
                self.shared.wishes.want_map(message.epoch);
                if self.early.len() < EARLY_MESSAGES_MAX {
                    self.early.push((from, incarnation, message));
                }
                return;
            }
            if self.step.map.pools.get(&pg.pool).is_none_or(|pool| pg.seed >= pool.pg_num) {
                debug!(%pg, %from, "message about a placement group that the map does not have dropped");
                return;
            }
            let members = self.step.members_of(pg);
            let is_member = members.up.contains(&self.shared.osd) || members.acting.contains(&self.shared.osd);
            // "No copy" would be taken for the word of one that never had one, or gave it up when it was not needed. What is
            // here and was not taken up cannot be used, and had something once.
            let unusable = self.shared.store.engine().collection_exists(collection_of(pg));
            if !is_member && !unusable && !self.may_have_lost(pg) {
                if let Some(message) = answer_without_copy(&message, self.step.map.epoch) {
                    self.send(from, Outbound::new(Kind::Peer, &message).as_ref());
                }
                return;
            }
            self.create(pg);
        }
        self.step_pg(pg, Input::Peer { from, incarnation, message });
    }

    fn client(&mut self, arrival: ClientArrival) {
        let request = &arrival.request;
        if request.epoch.0 > self.step.map.epoch.0.saturating_add(EPOCHS_AHEAD_MAX) {
            return self.refuse(&arrival, RefusedReason::Busy);
        }
        if request.epoch > self.step.map.epoch || self.awaited.contains(request.pg) {
            self.shared.wishes.want_map(request.epoch);
            if self.waiting_for_map.len() >= WAITING_FOR_MAP_MAX {
                self.refuse(&arrival, RefusedReason::Busy);
            } else {
                self.waiting_for_map.push(arrival);
            }
            return;
        }
        let pg = request.pg;
        if !self.step.map.pools.contains_key(&pg.pool) {
            return self.refuse(&arrival, RefusedReason::PoolGone);
        }
        if !self.pgs.contains_key(&pg) {
            return self.refuse(&arrival, RefusedReason::WrongPrimary);
        }
        self.next_reply += 1;
        let number = self.next_reply;
        let ClientArrival { connection, request_id, request, permit } = arrival;
        self.replies.insert(number, Pending { pg, connection, request_id, _permit: permit });
        self.step_pg(pg, Input::Client { reply_to: ReplyTo(number), request });
    }

    fn barrier(&mut self, barrier: Arc<BarrierWait>) {
        let epoch = self.step.map.epoch;
        let hopeless = barrier.epoch.0 > epoch.0.saturating_add(EPOCHS_AHEAD_MAX);
        // Before a map is settled not all are here that it brings.
        let is_settled = barrier.epoch <= epoch && self.awaited.is_empty();
        if is_settled || hopeless || self.barriers.len() >= BARRIERS_MAX {
            let epoch = if self.awaited.is_empty() { epoch } else { Epoch::ZERO };
            let unsettled = self.pgs.values().filter(|pg| pg.is_primary() && !pg.has_peered()).count();
            return barrier.pass(epoch, unsettled as u64, &mut self.held);
        }
        self.shared.wishes.want_map(barrier.epoch);
        self.barriers.push(barrier);
    }

    fn refuse(&mut self, arrival: &ClientArrival, reason: RefusedReason) {
        let reply =
            ClientReply { id: arrival.request.id, epoch: self.step.map.epoch, outcome: ClientOutcome::Refused(reason) };
        respond_client(&arrival.connection, arrival.request_id, &reply, &mut self.held);
    }

    /// Gives a tick to each placement group whose time has come.
    fn tick_due(&mut self, inbox: &Inbox) {
        let now = now();
        let due: Vec<PgId> = self.wake_order.iter().take_while(|(at, _)| *at <= now).map(|(_, pg)| *pg).collect();
        for pg in due {
            self.answer(inbox);
            for _ in 0..TICKS_AT_ONCE_MAX {
                if self.wakes.get(&pg).is_none_or(|at| *at > now) {
                    break;
                }
                self.set_wake(pg, None);
                self.step_pg(pg, Input::Tick);
            }
        }
    }

    fn set_wake(&mut self, pg: PgId, at: Option<Timestamp>) {
        let before = match at {
            Some(at) => self.wakes.insert(pg, at),
            None => self.wakes.remove(&pg),
        };
        if let Some(before) = before {
            self.wake_order.remove(&(before, pg));
        }
        if let Some(at) = at {
            self.wake_order.insert((at, pg));
        }
    }

    fn reserved(&mut self, pg: PgId, slot: Slot) {
        if self.pgs.contains_key(&pg) {
            self.step_pg(pg, Input::Reserved(slot));
        } else {
            self.release(pg, slot);
        }
    }

    fn release(&self, pg: PgId, slot: Slot) {
        if let Some(next) = self.shared.slots.release(slot, pg) {
            self.shared.shards.send(next, Event::Reserved { pg: next, slot });
        }
    }

    fn step_pg(&mut self, id: PgId, input: Input) {
        if self.stopped.contains(&id) {
            return;
        }
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let view = Local::new(self.shared.store.engine(), id, &self.shared.space, &self.shared.leases);
        pg.step(now(), input, &view, &mut self.outbox);
        let waiting = pg.client_bytes();
        self.note_waiting(id, waiting);
        let mut last_sent: Option<(Arc<PeerMessage>, Option<Outbound>)> = None;
        for output in std::mem::take(&mut self.outbox) {
            if self.stopped.contains(&id) {
                return;
            }
            match output {
                Output::Send { to, message } => {
                    let (_, outbound) = match last_sent.take() {
                        Some(sent) if Arc::ptr_eq(&sent.0, &message) => last_sent.insert(sent),
                        _ => {
                            let outbound = Outbound::new(Kind::Peer, &*message);
                            last_sent.insert((message, outbound))
                        }
                    };
                    self.send(to, outbound.as_ref());
                }
                output => self.perform(id, output),
            }
        }
    }

    /// Takes note of how much waits in a placement group.
    fn note_waiting(&mut self, id: PgId, bytes: u64) {
        let before = if bytes > 0 { self.waiting.insert(id, bytes) } else { self.waiting.remove(&id) };
        let before = before.unwrap_or(0);
        if bytes != before {
            self.shared.space.note_waiting(before, bytes);
        }
    }

    fn send(&mut self, to: OsdId, outbound: Option<&Outbound>) {
        if let Some(outbound) = outbound {
            self.shared.peers.send(to, outbound, &mut self.held);
        }
    }

    fn perform(&mut self, pg: PgId, output: Output) {
        match output {
            Output::Submit { txn, ops } => self.submit(pg, txn, ops),
            Output::Split { txn, ops, children } => self.split(pg, txn, ops, children),
            Output::Send { to, message } => self.send(to, Outbound::new(Kind::Peer, &*message).as_ref()),
            Output::Reply { reply_to, mut reply, valid_until } => {
                if valid_until.is_some_and(|until| now() >= until) {
                    reply.outcome = ClientOutcome::Refused(RefusedReason::Busy);
                }
                if let Some(pending) = self.replies.remove(&reply_to.0) {
                    respond_client(&pending.connection, pending.request_id, &reply, &mut self.held);
                }
            }
            Output::AskUpThru { at_least } => self.shared.wishes.want_up_thru(at_least),
            Output::AskPgTemp { want } => {
                if let Some(seen) = self.pgs.get(&pg).map(|pg| pg.acting().to_vec()) {
                    self.shared.wishes.want_pg_temp(PgTempWish { pg, acting: want, seen: Some(seen) });
                }
            }
            Output::NeedMap { at_least } => self.shared.wishes.want_map(at_least),
            Output::Reserve(slot) => {
                if self.shared.slots.reserve(slot, pg) {
                    self.shared.shards.send(pg, Event::Reserved { pg, slot });
                }
            }
            Output::Release(slot) => self.release(pg, slot),
            Output::ReportChanged => self.shared.report_due.notify_one(),
            Output::CopyDamaged => {
                self.shared.counters.damage_found();
                self.shared.report_due.notify_one();
            }
            Output::CopyRepaired => {
                self.shared.counters.damage_repaired();
                self.shared.report_due.notify_one();
            }
            Output::Wake { at } => self.set_wake(pg, Some(at)),
            Output::Gone => {
                debug!(%pg, "placement group left this OSD");
                self.pgs.remove(&pg);
                self.note_waiting(pg, 0);
                self.set_wake(pg, None);
                self.release(pg, Slot::Incoming);
                self.release(pg, Slot::Outgoing);
                self.release(pg, Slot::ScrubIncoming);
                self.release(pg, Slot::ScrubOutgoing);
                // The map may have brought it back while it was being removed.
                let members = self.step.members_of(pg);
                let mine = members.up.contains(&self.shared.osd) || members.acting.contains(&self.shared.osd);
                if mine && self.step.map.pools.contains_key(&pg.pool) {
                    self.create(pg);
                }
            }
        }
    }

    fn split(&mut self, pg: PgId, txn: TxnId, mut ops: Vec<StoreOp>, mut children: Vec<Pg>) {
        let known = leave_known(self.shared.store.engine(), &mut ops, &mut children);
        self.submit(pg, txn, ops);
        if self.stopped.contains(&pg) {
            return;
        }
        for child in known {
            warn!(%pg, %child, "a copy that was split off before is left as it is");
            self.give(child, None);
        }
        // What a child submits comes after this in the store, so its first transaction of its own says of this one, too,
        // that it is durable.
        for child in children {
            self.give(child.id(), Some(Box::new(child)));
        }
    }

    fn submit(&mut self, pg: PgId, txn: TxnId, ops: Vec<StoreOp>) {
        let transaction = to_transaction(self.shared.store.engine(), pg, ops);
        let shards = self.shared.shards.clone();
        let submitted = self.shared.store.submit(transaction, move |result| {
            let event = match result {
                Ok(()) => Event::Durable { pg, txn },
                Err(error) => Event::StoreFailed { pg, txn, detail: crate::describe(&*error) },
            };
            shards.send(pg, event);
        });
        let Err(error) = submitted else { return };
        // What a placement group does next builds on this: it must not reach the store without it.
        self.stopped.insert(pg);
        let detail = crate::describe(&error);
        let fatal = if matches!(error, SubmitError::CorruptObject { .. }) {
            // One object's error, not the store's: the next run finds that it lacks this write, and has the object mended.
            error!(osd = %self.shared.osd, %pg, %detail, "a write met an object that cannot be read: this run ends");
            Fatal::NotTaken(detail)
        } else if matches!(error, SubmitError::NoSpace { .. }) {
            // More was let in at the same time than is kept free for that. Nothing of it was stored: the copy on the disk
            // is whole, as of the write before, and comes back as a member that lacks an object.
            error!(osd = %self.shared.osd, %pg, %detail, "no room for a write that was let in: this run ends");
            Fatal::NotTaken(detail)
        } else {
            error!(osd = %self.shared.osd, %pg, %detail, "the store failed: this daemon ends, its disk needs a look");
            Fatal::Store(detail)
        };
        let _ = self.shared.fatal.send(fatal);
    }
}

mod maps;
#[cfg(test)]
mod splits;

#[cfg(test)]
mod tests;
