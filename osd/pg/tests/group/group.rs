//! The placement group that these tests drive: what is submitted is durable at once, what is sent is heard at once.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_map::{ClusterMap, OsdInfo, PgMembers, Pool, PoolKind, ScrubKind, ScrubWish};
use holdfast_pg::memory::MemoryCollection;
use holdfast_pg::{
    Input, Limits, LocalObjects, ObjectKey, Outbox, Output, Pg, ReplyTo, Slot, VERSION_ATTR, answer_without_copy,
};
use holdfast_types::{
    ClientId, ClusterId, DiskUuid, Epoch, Incarnation, ObjectName, OsdId, PgId, PoolId, RequestId, Timestamp,
};
use holdfast_wire::mon::PgReport;
use holdfast_wire::peer::{PeerBody, PeerMessage};
use holdfast_wire::{Blob, ClientOutcome, ClientRequest, ObjectOp, OpError, OpResult, RefusedReason};

pub const PG: PgId = PgId { pool: PoolId(1), seed: 0 };

pub struct Node {
    /// None while it has no copy.
    pub pg: Option<Pg>,
    pub store: MemoryCollection,
    pub wake_at: Option<Timestamp>,
}

/// The first OSD is the primary.
pub struct Group {
    pub nodes: Vec<Node>,
    pub map: ClusterMap,
    pub members: PgMembers,
    pub limits: Limits,
    pub inputs: VecDeque<(usize, Input)>,
    /// Whose messages to others are lost.
    pub silent: BTreeSet<usize>,
    pub sent: Vec<(usize, usize, PeerMessage)>,
    /// Whose devices take their time: nothing that these submit becomes durable.
    pub unsynced: BTreeSet<usize>,
    /// What is not durable yet.
    pub submitted: Vec<(usize, Input)>,
    pub answers: Vec<(ReplyTo, ClientOutcome)>,
    pub damaged: usize,
    pub repaired: usize,
    pub now: Timestamp,
    pub tid: u64,
    /// Slots that are held, by whom.
    pub slots: BTreeSet<(usize, Slot)>,
    /// Whether nobody answers wishes for another acting set.
    pub monitors_away: bool,
    /// What this says yes to, when it is sent, stops the run once.
    pub pause_on: Option<fn(&PeerBody) -> bool>,
    pub paused: bool,
    pub maps_wanted: Vec<Epoch>,
}

pub fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

pub fn osd(index: usize) -> OsdId {
    OsdId(u32::try_from(index).unwrap())
}

impl Group {
    /// Of `all` OSDs the first `members` are members.
    pub fn of(all: usize, members: usize, limits: Limits) -> Group {
        let mut map = ClusterMap::empty(ClusterId([7; 16]));
        map.epoch = Epoch(1);
        for id in 0..all {
            let info = OsdInfo {
                disk: DiskUuid([id as u8 + 1; 16]),
                incarnation: Incarnation(1),
                address: format!("osd-{id}:0"),
                up: true,
                in_cluster: true,
                reweight: 0x1_0000,
                up_from: Epoch(1),
                up_thru: Epoch(0),
                down_at: Epoch(0),
                dead_epoch: Epoch(0),
                formatted_at: Epoch(0),
            };
            map.osds.insert(osd(id), info);
        }
        let kind = PoolKind::Replicated { size: members as u32, min_size: members.min(2) as u32 };
        let (name, application) = ("pool".to_owned(), "test".to_owned());
        map.pools.insert(PG.pool, Pool { name, kind, pg_num: 1, rule: 0, created: Epoch(1), application });
        map.next_pool = PoolId(2);
        let acting: Vec<OsdId> = (0..members).map(osd).collect();
        let members = PgMembers { up: acting.clone(), acting };
        let nodes = (0..all).map(|_| Node { pg: None, store: MemoryCollection::default(), wake_at: None }).collect();
        let mut group = Group {
            nodes,
            map,
            members,
            limits,
            inputs: VecDeque::new(),
            silent: BTreeSet::new(),
            sent: Vec::new(),
            unsynced: BTreeSet::new(),
            submitted: Vec::new(),
            answers: Vec::new(),
            damaged: 0,
            repaired: 0,
            now: Timestamp::from_nanos(1),
            tid: 0,
            slots: BTreeSet::new(),
            monitors_away: false,
            pause_on: None,
            paused: false,
            maps_wanted: Vec::new(),
        };
        group.begin();
        group.run_until_clean();
        group
    }

    /// Members without a copy begin one.
    pub fn begin(&mut self) {
        for id in 0..self.nodes.len() {
            let member = self.members.up.contains(&osd(id)) || self.members.acting.contains(&osd(id));
            if member && self.nodes[id].pg.is_none() {
                let (map, members) = (Arc::new(self.map.clone()), self.members.clone());
                let pg = Pg::create_with(PG, osd(id), Incarnation(1), map, members, self.limits);
                self.nodes[id].pg = Some(pg);
                self.inputs.push_back((id, Input::Tick));
            }
        }
    }

    pub fn publish(&mut self) {
        self.map.epoch = self.map.epoch.next();
        self.begin();
        let (map, members) = (Arc::new(self.map.clone()), self.members.clone());
        for id in 0..self.nodes.len() {
            self.inputs.push_back((id, Input::Map { map: map.clone(), members: members.clone() }));
        }
    }

    /// All inputs, and all that follows from them at once: what is submitted is durable at once.
    pub fn run(&mut self) {
        self.paused = false;
        for _ in 0..100_000 {
            let Some((id, input)) = self.inputs.pop_front() else { return };
            let node = &mut self.nodes[id];
            let mut outbox = Outbox::new();
            match (&mut node.pg, input) {
                (Some(pg), input) => pg.step(self.now, input, &node.store, &mut outbox),
                (None, Input::Peer { from, message, .. }) => {
                    let answer = answer_without_copy(&message, self.map.epoch);
                    outbox.extend(answer.map(|answer| Output::Send { to: from, message: Arc::new(answer) }));
                }
                (None, _) => {}
            }
            for output in outbox {
                self.perform(id, output);
            }
            if self.paused {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    pub fn perform(&mut self, id: usize, output: Output) {
        match output {
            Output::Submit { txn, ops } => {
                assert!(self.nodes[id].store.takes(&ops), "osd {id} changes what cannot be read: {ops:?}");
                self.nodes[id].store.apply(&ops);
                if self.unsynced.contains(&id) {
                    self.submitted.push((id, Input::Durable(txn)));
                } else {
                    self.inputs.push_back((id, Input::Durable(txn)));
                }
            }
            Output::Send { to, message } => {
                let message = Arc::unwrap_or_clone(message);
                let to = to.0 as usize;
                if self.pause_on.is_some_and(|pause| pause(&message.body)) {
                    self.pause_on = None;
                    self.paused = true;
                }
                self.sent.push((id, to, message.clone()));
                if !self.silent.contains(&id) {
                    let input = Input::Peer { from: osd(id), incarnation: Incarnation(1), message };
                    self.inputs.push_back((to, input));
                }
            }
            Output::Reply { reply_to, mut reply, valid_until } => {
                if valid_until.is_some_and(|until| self.now >= until) {
                    reply.outcome = ClientOutcome::Refused(RefusedReason::Busy);
                }
                self.answers.push((reply_to, reply.outcome));
            }
            Output::AskUpThru { at_least } => {
                self.map.osds.get_mut(&osd(id)).unwrap().up_thru = at_least;
                self.publish();
            }
            Output::AskPgTemp { .. } if self.monitors_away => {}
            Output::NeedMap { at_least } => self.maps_wanted.push(at_least),
            Output::AskPgTemp { want } => {
                let acting = if want.is_empty() { self.members.up.clone() } else { want };
                if self.members.acting != acting {
                    self.members.acting = acting;
                    self.publish();
                }
            }
            Output::Reserve(slot) => {
                self.slots.insert((id, slot));
                self.inputs.push_back((id, Input::Reserved(slot)));
            }
            Output::Release(slot) => drop(self.slots.remove(&(id, slot))),
            Output::Wake { at } if at <= self.now => self.inputs.push_back((id, Input::Tick)),
            Output::Wake { at } => self.nodes[id].wake_at = Some(at),
            Output::Gone => self.nodes[id].pg = None,
            Output::CopyDamaged => self.damaged += 1,
            Output::CopyRepaired => self.repaired += 1,
            _ => {}
        }
    }

    /// All that was submitted becomes durable.
    pub fn sync(&mut self) {
        self.unsynced.clear();
        self.inputs.extend(self.submitted.drain(..));
    }

    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.run();
        if self.paused {
            return;
        }
        while let Some(at) = self.nodes.iter().filter_map(|node| node.wake_at).min().filter(|at| *at <= end) {
            self.now = at;
            for id in 0..self.nodes.len() {
                if self.nodes[id].wake_at == Some(at) {
                    self.nodes[id].wake_at = None;
                    self.inputs.push_back((id, Input::Tick));
                }
            }
            self.run();
            if self.paused {
                return;
            }
        }
        self.now = end;
    }

    pub fn primary(&self) -> usize {
        self.members.acting[0].0 as usize
    }

    pub fn report(&self) -> PgReport {
        self.nodes[self.primary()].pg.as_ref().unwrap().report()
    }

    pub fn is_clean(&self) -> bool {
        self.report().state.clean
    }

    pub fn run_until_clean(&mut self) {
        for _ in 0..120 {
            self.pass(Duration::from_millis(500));
            if self.is_clean() && self.members.acting == self.members.up {
                return;
            }
        }
        panic!("not clean: {:?}", self.report());
    }

    pub fn ask(&mut self, object: &str, ops: Vec<ObjectOp>) -> u64 {
        self.tid += 1;
        self.send(1, self.tid, object, ops);
        self.pass(Duration::from_secs(3));
        self.tid
    }

    /// Has a client send a request, all before which are answered; the answer goes to the request's number.
    pub fn send(&mut self, client: u64, tid: u64, object: &str, ops: Vec<ObjectOp>) {
        self.send_of(self.map.epoch, client, tid, object, ops);
    }

    /// The same, by a client that has a certain map.
    pub fn send_of(&mut self, epoch: Epoch, client: u64, tid: u64, object: &str, ops: Vec<ObjectOp>) {
        let request = ClientRequest {
            id: RequestId { client: ClientId(client), incarnation: Incarnation(1), tid },
            epoch,
            pg: PG,
            object: name(object),
            ops,
            lowest_outstanding_tid: tid,
            frees_space: None,
        };
        let to = self.primary();
        self.inputs.push_back((to, Input::Client { reply_to: ReplyTo(tid), request }));
    }

    /// Has all copies compared, and what is wrong repaired when a person asks for that.
    pub fn scrub(&mut self, kind: ScrubKind) {
        let epoch = self.map.epoch.next();
        self.map.scrub_wishes.insert(PG, ScrubWish { kind, epoch });
        self.publish();
        self.pass(Duration::from_secs(60));
    }

    /// These OSDs lead and follow, in this order.
    pub fn have_lead(&mut self, acting: &[usize]) {
        let acting: Vec<OsdId> = acting.iter().copied().map(osd).collect();
        self.members = PgMembers { up: acting.clone(), acting };
        self.publish();
        self.run();
    }

    /// An OSD's process ends; what it had submitted is on its disk.
    pub fn kill(&mut self, id: usize) {
        self.nodes[id].pg = None;
        self.nodes[id].wake_at = None;
        self.inputs.retain(|(to, _)| *to != id);
        self.slots.retain(|(holder, _)| *holder != id);
        self.silent.insert(id);
        self.map.osds.get_mut(&osd(id)).unwrap().up = false;
    }

    /// It runs again, with what is on its disk.
    pub fn start(&mut self, id: usize) {
        let store = &self.nodes[id].store;
        let (map, members) = (Arc::new(self.map.clone()), self.members.clone());
        let pg = Pg::load_with(PG, osd(id), Incarnation(1), map, members, self.limits, store).unwrap();
        self.nodes[id].pg = Some(pg);
        self.silent.remove(&id);
        let info = self.map.osds.get_mut(&osd(id)).unwrap();
        (info.up, info.up_from) = (true, self.map.epoch.next());
    }

    pub fn answer(&mut self, tid: u64) -> Option<ClientOutcome> {
        let at = self.answers.iter().position(|(to, _)| to.0 == tid)?;
        Some(self.answers.remove(at).1)
    }

    pub fn operate(&mut self, object: &str, ops: Vec<ObjectOp>) -> ClientOutcome {
        let tid = self.ask(object, ops);
        self.answer(tid).expect("answered")
    }

    pub fn write(&mut self, object: &str) {
        let outcome = self.operate(object, vec![ObjectOp::WriteFull { data: content(object) }]);
        assert!(matches!(outcome, ClientOutcome::Done { .. }), "{outcome:?}");
    }

    /// Writes an object that the log does not tell of any more.
    pub fn write_before_the_log(&mut self, object: &str) {
        self.write(object);
        for other in 0..10 {
            self.write(&format!("other-{other}"));
        }
    }

    pub fn read(&mut self, object: &str) -> ClientOutcome {
        self.operate(object, vec![ObjectOp::Read { offset: 0, length: 1 << 20 }])
    }

    pub fn spoil(&mut self, id: usize, object: &str) {
        let key = ObjectKey::of(&name(object));
        self.nodes[id].store.objects.get_mut(&key).unwrap().unreadable = true;
    }

    /// The bytes of a copy cannot be read, its version can.
    pub fn rot(&mut self, id: usize, object: &str, rotten: bool) {
        let key = ObjectKey::of(&name(object));
        self.nodes[id].store.objects.get_mut(&key).unwrap().rotten = rotten;
    }

    pub fn holds_slots(&self) -> bool {
        let of_recovery = |(_, slot): &(usize, Slot)| matches!(slot, Slot::Outgoing | Slot::Incoming);
        self.slots.iter().any(of_recovery)
    }

    pub fn is_whole(&self, id: usize, object: &str) -> bool {
        let (store, key) = (&self.nodes[id].store, ObjectKey::of(&name(object)));
        let version = store.attr(&key, VERSION_ATTR);
        version.is_ok_and(|version| version.is_some())
            && store.read(&key, 0, 1 << 20).is_ok_and(|bytes| bytes == content(object).0)
    }

    pub fn is_gone(&self, id: usize, object: &str) -> bool {
        !self.nodes[id].store.objects.contains_key(&ObjectKey::of(&name(object)))
    }
}

pub fn content(object: &str) -> Blob {
    Bytes::from(object.repeat(30)).into()
}

pub fn shows(outcome: &ClientOutcome, object: &str) -> bool {
    matches!(outcome, ClientOutcome::Done { results, .. } if results == &[OpResult::Data(content(object))])
}

pub fn is_unreadable(outcome: &ClientOutcome) -> bool {
    matches!(outcome, ClientOutcome::Failed { error: OpError::Unreadable, .. })
}

pub fn short_log() -> Limits {
    Limits { log_entries_min: 2, log_entries_max: 4, log_trim_batch: 1, piece_bytes: 64, ..Limits::default() }
}
