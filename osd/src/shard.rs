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
use crate::awaited::{Awaited, leave_known, split_pairs};
use crate::barrier::BarrierWait;
use crate::copies::may_be_part_of;
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

    fn advance_map(&mut self, step: &Arc<MapStep>, inbox: Option<&Inbox>) {
        let before = std::mem::replace(&mut self.step, step.clone());
        self.given.clear();
        // After a restart a placement group may be ahead of what the others are fed first.
        let behind = |pg: &Pg| pg.epoch() < step.map.epoch;
        let known: Vec<PgId> = self.pgs.iter().filter(|(_, pg)| behind(pg)).map(|(id, _)| *id).collect();
        for pg in known {
            // All of them may be split, or peer anew: that takes longer than peers wait.
            if let Some(inbox) = inbox {
                self.answer(inbox);
            }
            self.step_pg(pg, Input::Map { map: step.map.clone(), members: step.members_of(pg) });
        }
        let is_mine = |shard: &Shard, pg| shard.shared.shards.index_of(pg) == shard.index;
        for (parent, child) in split_pairs(&before.map, &step.map) {
            if is_mine(self, parent) && !self.given.contains(&child) && !self.owes(parent, child) {
                self.give(child, None);
            }
            if is_mine(self, child) && !self.pgs.contains_key(&child) {
                self.awaited.expect(child, step.map.epoch);
            }
        }
        self.awaited.passed(step.map.epoch);
        if self.awaited.is_empty() {
            self.settle_map();
        }
    }

    /// Whether there is a copy to split that cannot be, for the store refuses what is asked of it. An empty child would hide
    /// what the next run splits off. This run ends: nobody is to wait for the answer.
    fn owes(&self, parent: PgId, child: PgId) -> bool {
        let owed = || self.pgs.get(&parent).is_some_and(|pg| pg.owed_children().contains(&child));
        self.stopped.contains(&parent) || owed()
    }

    /// Tells the shard of a child what became of it.
    fn give(&mut self, child: PgId, made: Option<Box<Pg>>) {
        self.given.insert(child);
        self.shared.shards.send(child, Event::Child { pg: child, epoch: self.step.map.epoch, made });
    }

    fn child(&mut self, pg: PgId, epoch: Epoch, made: Option<Box<Pg>>, inbox: Option<&Inbox>) {
        if let Some(made) = made {
            if self.pgs.contains_key(&pg) {
                return self.made_twice(pg);
            }
            debug!(%pg, %epoch, "placement group split off on this OSD");
            self.pgs.insert(pg, *made);
            self.told_time = None;
            self.step_pg(pg, Input::Tick);
        }
        if self.awaited.answered(pg, epoch, self.step.map.epoch) {
            self.settle_map();
            while let Some(step) = self.awaited.next_map() {
                self.advance_map(&step, inbox);
            }
        }
    }

    /// A child has come of a placement group that is here already, which the rules of `awaited` are to exclude. The store has
    /// the part that was split off, the one that is here knows nothing of it: only the next run can take it up.
    fn made_twice(&mut self, pg: PgId) {
        error!(osd = %self.shared.osd, %pg, "split off after it was made anew: this run ends");
        self.stopped.insert(pg);
        let _ = self.shared.fatal.send(Fatal::NotTaken(format!("{pg} was made anew before its parent was split")));
    }

    /// What the present map brings here beside what was here; then what waited for it.
    fn settle_map(&mut self) {
        let (step, me) = (self.step.clone(), self.shared.osd);
        let mine = |members: &PgMembers| members.up.contains(&me) || members.acting.contains(&me);
        let missing: Vec<PgId> = step
            .members
            .iter()
            .filter(|(pg, members)| {
                self.shared.shards.index_of(**pg) == self.index && mine(members) && !self.pgs.contains_key(pg)
            })
            .map(|(pg, _)| *pg)
            .collect();
        for pg in missing {
            self.create(pg);
        }
        for barrier in std::mem::take(&mut self.barriers) {
            self.barrier(barrier);
        }
        for arrival in std::mem::take(&mut self.waiting_for_map) {
            self.client(arrival);
        }
        for (from, incarnation, message) in std::mem::take(&mut self.early) {
            self.peer(from, incarnation, message);
        }
    }

    /// Makes the placement group as of the present map, without a copy on this disk.
    fn create(&mut self, pg: PgId) {
        debug!(%pg, epoch = %self.step.map.epoch, "placement group starts on this OSD");
        let Shared { osd, incarnation, limits, lost_now, .. } = &*self.shared;
        let map = self.step.map.clone();
        // All copies were taken up at the start but those that cannot be used and whose pool no map knew then.
        let unusable = self.shared.store.engine().collection_exists(collection_of(pg));
        let made = if unusable || self.may_have_lost(pg) {
            if *lost_now {
                self.shared.counters.copy_lost();
            }
            Pg::create_lost(pg, *osd, *incarnation, map, *limits, unusable)
        } else {
            Pg::create(pg, *osd, *incarnation, map, *limits)
        };
        self.pgs.insert(pg, made);
        self.told_time = None;
        self.step_pg(pg, Input::Tick);
    }

    /// Whether the placement group may have been here in the disk's earlier life, or in a copy that could not be used.
    fn may_have_lost(&self, pg: PgId) -> bool {
        let created = self.step.map.pools.get(&pg.pool).map_or(Epoch::ZERO, |pool| pool.created);
        self.shared.lost_before.is_some_and(|before| created <= before) || may_be_part_of(&self.shared.lost_copies, pg)
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
        if barrier.epoch <= epoch || hopeless || self.barriers.len() >= BARRIERS_MAX {
            return barrier.pass(epoch, &mut self.held);
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

#[cfg(test)]
mod splits;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use holdfast_net::{
        Endpoint, Handler, Listener, LocalIdentity, Message, NetConfig, NoHandler, Peer, PeerMode, Target,
    };
    use holdfast_store::{Identity, Options, StoreConfig, Transaction, TxOp};
    use holdfast_types::{ClusterId, DiskUuid};
    use holdfast_wire::frame::PeerIdentity;
    use holdfast_wire::{decode, encode};
    use tokio::task::JoinHandle;
    use tokio_util::sync::CancellationToken;

    use super::*;

    pub(super) const CLUSTER: ClusterId = ClusterId([7; 16]);

    fn endpoint(osd: u32) -> Arc<Endpoint> {
        let identity = PeerIdentity::Osd(OsdId(osd));
        let (incarnation, features, features_required) = (Incarnation(1), 0, 0);
        let local = LocalIdentity { cluster: CLUSTER, identity, incarnation, features, features_required };
        Endpoint::new(local, NetConfig::default(), CancellationToken::new())
    }

    pub(super) fn shared(directory: &Path, shards: &Shards, stall_grace: Duration) -> Arc<Shared> {
        shared_with(directory, shards, stall_grace, tokio::sync::mpsc::unbounded_channel().0)
    }

    pub(super) fn shared_with(
        directory: &Path,
        shards: &Shards,
        stall_grace: Duration,
        fatal: tokio::sync::mpsc::UnboundedSender<Fatal>,
    ) -> Arc<Shared> {
        let options = Options { segment_bytes: 4 << 20, ..Options::default() };
        let config = StoreConfig { memory_target: 16 << 20, options, ..StoreConfig::in_directory(directory) };
        let identity = Identity { cluster: CLUSTER, disk: DiskUuid([1; 16]), osd: OsdId(0) };
        Arc::new(Shared {
            osd: OsdId(0),
            incarnation: Incarnation(1),
            store: Store::format(&config, identity, 64 << 20).expect("a store"),
            shards: shards.clone(),
            peers: Arc::new(Peers::new(OsdId(0), endpoint(0))),
            wishes: Arc::default(),
            slots: Slots::default(),
            limits: Limits::default(),
            counters: Arc::default(),
            lost_before: None,
            lost_now: false,
            lost_copies: BTreeSet::new(),
            stall_grace,
            fatal,
            space: PeerSpace::default(),
            leases: Arc::new(Leases::new(now())),
            report_due: Arc::default(),
        })
    }

    /// Lets a shard handle what waits for it, up to a stop.
    fn run(index: usize, shared: &Arc<Shared>, inbox: &Inbox) {
        let step = MapStep::new(Arc::new(ClusterMap::empty(CLUSTER)));
        Shard::new(index, shared.clone(), step, BTreeMap::new(), BTreeSet::new()).run(inbox);
    }

    /// Gives each heartbeat to the test.
    struct Arriving(mpsc::Sender<Question>);

    impl Handler for Arriving {
        fn on_message(&self, from: &Arc<Connection>, message: Message, permit: Permit) {
            let heartbeat = decode(message.kind, &message.body, &message.payload()).expect("a heartbeat");
            let (connection, request_id) = (from.clone(), message.request_id);
            let epoch = Epoch::ZERO;
            self.0.send(Question { connection, request_id, heartbeat, permit, epoch }).expect("the test listens");
        }
    }

    /// A peer that asks, and what it asks.
    struct Asker {
        _listener: Listener,
        peer: Peer,
        questions: mpsc::Receiver<Question>,
    }

    impl Asker {
        async fn new() -> Asker {
            let (arriving, questions) = mpsc::channel();
            let any_port = "127.0.0.1:0".parse().expect("an address");
            let listener = Listener::bind(&endpoint(0), any_port, Arc::new(Arriving(arriving))).await.expect("a port");
            let address = listener.local_address().to_string();
            let target = Target { address, identity: None, incarnation: None };
            let peer = Peer::new(&endpoint(1), target, PeerMode::OnDemand, Arc::new(NoHandler));
            Asker { _listener: listener, peer, questions }
        }

        /// Sends a heartbeat; gives what arrived, and the stamp of the answer to come.
        async fn ask(&self, stamp: u64) -> (Question, JoinHandle<u64>) {
            let heartbeat = Heartbeat { from: OsdId(1), incarnation: Incarnation(1), epoch: Epoch(0), stamp };
            let encoded = encode(&heartbeat);
            let message = Message::new(Kind::Heartbeat as u16, encoded.body, encoded.payload);
            let peer = self.peer.clone();
            let answered = tokio::spawn(async move {
                let deadline = std::time::Instant::now() + Duration::from_secs(120);
                let answer = peer.request(message, deadline).await.expect("an answer");
                let reply: HeartbeatReply = decode(answer.kind, &answer.body, &answer.payload()).expect("a reply");
                reply.stamp
            });
            loop {
                match self.questions.try_recv() {
                    Ok(question) => return (question, answered),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        }
    }

    #[tokio::test]
    async fn a_heartbeat_passes_all_that_waits_for_a_shard_but_none_that_is_stuck() {
        let directory = tempfile::tempdir().expect("a directory");
        let (shards, inboxes) = Shards::new(3);
        let shared = shared(directory.path(), &shards, STALL_GRACE);
        let asker = Asker::new().await;
        // What waits: were the question behind it, the shards would be gone by then.
        for index in 0..3 {
            shards.send_to(index, Event::Asked);
            shards.send_to(index, Event::Stop);
        }
        let (question, answered) = asker.ask(7).await;
        shards.ask(0, question);
        run(0, &shared, &inboxes[0]);
        run(1, &shared, &inboxes[1]);
        let stuck = inboxes[2].questions.try_recv().expect("the last shard has it, and nobody has answered");
        assert_eq!(stuck.heartbeat.stamp, 7);
        tokio::task::yield_now().await;
        assert!(!answered.is_finished());
        shards.ask(2, stuck);
        run(2, &shared, &inboxes[2]);
        assert_eq!(answered.await.expect("answered"), 7);
    }

    #[tokio::test]
    async fn a_heartbeat_is_answered_between_two_placement_groups_that_take_a_map() {
        let directory = tempfile::tempdir().expect("a directory");
        let (shards, inboxes) = Shards::new(1);
        let shared = shared(directory.path(), &shards, STALL_GRACE);
        let map = |epoch| {
            let mut map = ClusterMap::empty(CLUSTER);
            map.epoch = Epoch(epoch);
            Arc::new(map)
        };
        let pg = PgId { pool: holdfast_types::PoolId(1), seed: 0 };
        let copy = Pg::create(pg, OsdId(0), Incarnation(1), map(1), shared.limits);
        let pgs = BTreeMap::from([(pg, copy)]);
        let mut shard = Shard::new(0, shared, MapStep::new(map(1)), pgs, BTreeSet::new());
        let asker = Asker::new().await;
        let (question, answered) = asker.ask(7).await;
        shards.ask(0, question);
        shard.handle(Event::Map(MapStep::new(map(2))), Some(&inboxes[0]));
        assert!(inboxes[0].questions.try_recv().is_err(), "it was not left for later");
        assert_eq!(answered.await.expect("answered"), 7);
    }

    #[tokio::test]
    async fn no_heartbeat_is_answered_while_the_device_hangs() {
        let directory = tempfile::tempdir().expect("a directory");
        let (shards, inboxes) = Shards::new(1);
        let shared = shared(directory.path(), &shards, Duration::ZERO);
        let asker = Asker::new().await;
        let (free, freed) = mpsc::channel::<()>();
        let (reached, is_reached) = mpsc::channel();
        let hang = move |_: Result<(), Arc<_>>| {
            let _ = reached.send(());
            let _ = freed.recv();
        };
        let create = TxOp::CreateCollection { c: collection_of(PgId { pool: holdfast_types::PoolId(1), seed: 0 }) };
        shared.store.submit(Transaction { ops: vec![create] }, hang).expect("submitted");
        is_reached.recv().expect("the commit thread hangs");
        let (question, unanswered) = asker.ask(1).await;
        shards.ask(0, question);
        shards.send_to(0, Event::Stop);
        run(0, &shared, &inboxes[0]);

        drop(free);
        while shared.store.stalled_for() > Duration::ZERO {
            std::thread::yield_now();
        }
        let (question, answered) = asker.ask(2).await;
        shards.ask(0, question);
        shards.send_to(0, Event::Stop);
        run(0, &shared, &inboxes[0]);
        assert_eq!(answered.await.expect("answered"), 2);
        // One connection keeps order: an answer to the first would have come before.
        assert!(!unanswered.is_finished());
        unanswered.abort();
    }

    #[tokio::test]
    async fn what_placement_groups_cannot_serve_leaves_memory_for_what_others_can() {
        let directory = tempfile::tempdir().expect("a directory");
        let (shards, _inboxes) = Shards::new(1);
        let shared = shared(directory.path(), &shards, STALL_GRACE);
        let mut map = ClusterMap::empty(CLUSTER);
        map.epoch = Epoch(1);
        // Of three copies only this one is there.
        let pool = holdfast_map::Pool {
            name: "p".to_owned(),
            kind: holdfast_map::PoolKind::Replicated { size: 3, min_size: 2 },
            pg_num: 16,
            rule: 0,
            created: Epoch(1),
            application: "test".to_owned(),
        };
        map.pools.insert(holdfast_types::PoolId(1), pool);
        map.next_pool = holdfast_types::PoolId(2);
        let info = holdfast_map::OsdInfo {
            disk: DiskUuid([1; 16]),
            incarnation: Incarnation(1),
            address: "nowhere:1".to_owned(),
            up: true,
            in_cluster: true,
            reweight: 0x1_0000,
            up_from: Epoch(1),
            up_thru: Epoch::ZERO,
            down_at: Epoch::ZERO,
            dead_epoch: Epoch::ZERO,
            formatted_at: Epoch::ZERO,
        };
        map.osds.insert(OsdId(0), info);
        map.crush.insert_device(OsdId(0), 0x1_0000, None, &[("host", "h"), ("root", "default")]).expect("a place");
        let step = MapStep::new(Arc::new(map));
        let mut shard = Shard::new(0, shared.clone(), step.clone(), BTreeMap::new(), BTreeSet::new());
        shard.advance_map(&step, None);
        assert_eq!(shard.pgs.len(), 16);
        let max = shared.limits.client_bytes_waiting_max;
        for tid in 1..=200 {
            let object = holdfast_types::ObjectName::new(format!("o-{tid}")).expect("a name");
            let pg = step.map.pg_of(holdfast_types::PoolId(1), &object).expect("a pool");
            let data = bytes::Bytes::from(vec![0; 1 << 20]).into();
            let id =
                holdfast_types::RequestId { client: holdfast_types::ClientId(tid), incarnation: Incarnation(1), tid };
            let ops = vec![holdfast_wire::ObjectOp::WriteFull { data }];
            let request =
                ClientRequest { id, epoch: Epoch(1), pg, object, ops, lowest_outstanding_tid: tid, frees_space: None };
            shard.step_pg(pg, Input::Client { reply_to: ReplyTo(tid), request });
            assert!(shared.space.client_bytes_waiting() <= max, "{tid}");
        }
        assert!(shared.space.client_bytes_waiting() > max / 2);
        assert!(max + (16 << 20) <= NetConfig::default().inbound_bytes_max as u64, "one client's other requests");
        for pg in step.members.keys() {
            shard.step_pg(*pg, Input::ClientsGone((1..=200).map(ReplyTo).collect()));
        }
        assert_eq!(shared.space.client_bytes_waiting(), 0);
    }

    #[test]
    fn who_waits_for_the_shards_waits_for_those_that_live() {
        let (shards, mut inboxes) = Shards::new(2);
        drop(inboxes.pop());
        let inbox = inboxes.pop().expect("two were made");
        let waiting = std::thread::spawn(move || shards.wait());
        let event = inbox.events.recv().expect("sent");
        assert!(matches!(event, Event::Reached(_)) && !waiting.is_finished());
        drop(event);
        waiting.join().expect("ended");
    }
}
