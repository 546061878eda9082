//! A pool of several placement groups on a few OSDs whose disks keep transactions in order and lose the newest in a crash.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_crush::{RuleKind, SimpleRule};
use holdfast_map::{ClusterMap, OsdInfo, Pool, PoolKind, ScrubKind, ScrubWish};
use holdfast_pg::memory::MemoryCollection;
use holdfast_pg::{Input, Limits, ObjectKey, Outbox, Output, Pg, ReplyTo, StoreOp, TxnId, answer_without_copy};
use holdfast_types::{
    ClientId, ClusterId, DiskUuid, Epoch, Incarnation, ObjectName, OsdId, PgId, PoolId, RequestId, Timestamp,
};
use holdfast_wire::mon::PgReport;
use holdfast_wire::peer::PeerMessage;
use holdfast_wire::{ClientOutcome, ClientReply, ClientRequest, ObjectOp, OpResult, RefusedReason};
use rand::Rng;
use rand::rngs::SmallRng;

pub const POOL: PoolId = PoolId(1);

pub fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

/// A cluster map with one host for each OSD and one pool.
pub fn map(osds: u32, size: u32, pg_num: u32) -> ClusterMap {
    let mut map = ClusterMap::empty(ClusterId([7; 16]));
    map.epoch = Epoch(1);
    for id in 0..osds {
        let host = format!("h{id}");
        let place = [("host", host.as_str()), ("root", "default")];
        map.crush.insert_device(OsdId(id), 0x1_0000, None, &place).unwrap();
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
        map.osds.insert(OsdId(id), info);
    }
    let kind = RuleKind::Replicated;
    let rule = SimpleRule { name: "r", kind, root: "default", failure_domain: "host", class: None };
    let rule = map.crush.add_rule(rule).unwrap().0;
    let kind = PoolKind::Replicated { size, min_size: size.min(2) };
    let (name, application) = ("pool".to_owned(), "test".to_owned());
    map.pools.insert(POOL, Pool { name, kind, pg_num, rule, created: Epoch(1), application });
    map.next_pool = PoolId(2);
    map
}

type Unsynced = (PgId, TxnId, Vec<PgId>, Vec<StoreOp>);

/// An OSD's disk.
#[derive(Default)]
pub struct Disk {
    pub durable: BTreeMap<PgId, MemoryCollection>,
    pub visible: BTreeMap<PgId, MemoryCollection>,
    unsynced: VecDeque<Unsynced>,
}

fn apply(state: &mut BTreeMap<PgId, MemoryCollection>, pg: PgId, ops: &[StoreOp]) {
    let collection = state.entry(pg).or_default();
    collection.apply(ops);
    let made = std::mem::take(&mut collection.made);
    if !collection.exists {
        state.remove(&pg);
    }
    for (child, made) in made {
        assert!(state.insert(child, made).is_none(), "G1: {child} was there already");
    }
}

impl Disk {
    fn submit(&mut self, pg: PgId, txn: TxnId, children: Vec<PgId>, ops: Vec<StoreOp>) {
        apply(&mut self.visible, pg, &ops);
        self.unsynced.push_back((pg, txn, children, ops));
    }

    /// Power is lost.
    pub fn lose_unsynced(&mut self) {
        self.unsynced.clear();
    }

    fn sync_one(&mut self) -> Option<(PgId, TxnId, Vec<PgId>)> {
        let (pg, txn, children, ops) = self.unsynced.pop_front()?;
        apply(&mut self.durable, pg, &ops);
        Some((pg, txn, children))
    }
}

#[derive(Default)]
pub struct Node {
    pub alive: bool,
    pub incarnation: u64,
    /// Maps up to this epoch were fed.
    pub fed: u64,
    pub pgs: BTreeMap<PgId, Pg>,
    pub disk: Disk,
    pub wakes: BTreeMap<PgId, Timestamp>,
}

enum Event {
    Map { to: u32, map: Arc<ClusterMap> },
    Peer { to: u32, incarnation: u64, from: u32, from_incarnation: u64, message: Box<PeerMessage> },
    Client { to: u32, reply_to: u64, request: ClientRequest },
}

pub struct Request {
    pub object: String,
    ops: Vec<ObjectOp>,
    pub id: RequestId,
    pub outcome: Option<ClientOutcome>,
    sent_in: Epoch,
    sent_at: Timestamp,
}

pub struct World {
    pub nodes: Vec<Node>,
    pub map: ClusterMap,
    pub maps: BTreeMap<u64, Arc<ClusterMap>>,
    events: VecDeque<Event>,
    pub requests: BTreeMap<u64, Request>,
    pub now: Timestamp,
    pub limits: Limits,
    pub rng: SmallRng,
    next_request: u64,
    /// What the client says of the requests that it may still send again, if not the truth.
    pub lowest: Option<u64>,
    /// How many splits of a copy there were.
    pub splits: usize,
}

impl World {
    pub fn new(osds: u32, size: u32, pg_num: u32, limits: Limits, rng: SmallRng) -> World {
        let map = map(osds, size, pg_num);
        let maps = BTreeMap::from([(1, Arc::new(map.clone()))]);
        let mut world = World {
            nodes: (0..osds).map(|_| Node { alive: true, incarnation: 1, ..Node::default() }).collect(),
            map,
            maps,
            events: VecDeque::new(),
            requests: BTreeMap::new(),
            now: Timestamp::from_nanos(1),
            limits,
            rng,
            next_request: 1,
            lowest: None,
            splits: 0,
        };
        for osd in 0..osds {
            world.events.push_back(Event::Map { to: osd, map: world.maps[&1].clone() });
        }
        world
    }

    /// The monitors make a new map.
    pub fn publish(&mut self, change: impl FnOnce(&mut ClusterMap)) {
        self.map.epoch = self.map.epoch.next();
        change(&mut self.map);
        let map = Arc::new(self.map.clone());
        self.maps.insert(map.epoch.0, map.clone());
        for to in 0..self.nodes.len() as u32 {
            self.events.push_back(Event::Map { to, map: map.clone() });
        }
    }

    pub fn split(&mut self, pg_num: u32) {
        self.publish(|map| assert!(map.split_pool(POOL, pg_num)));
    }

    pub fn kill(&mut self, osd: u32) {
        let node = &mut self.nodes[osd as usize];
        let kept = self.rng.random_range(0..=node.disk.unsynced.len());
        for _ in 0..kept {
            node.disk.sync_one();
        }
        node.disk.unsynced.clear();
        node.disk.visible = node.disk.durable.clone();
        (node.alive, node.pgs, node.wakes) = (false, BTreeMap::new(), BTreeMap::new());
    }

    pub fn mark_down(&mut self, osd: u32) {
        self.publish(|map| {
            let epoch = map.epoch;
            let info = map.osds.get_mut(&OsdId(osd)).unwrap();
            (info.up, info.down_at) = (false, epoch);
            map.pg_temp.clear();
        });
    }

    /// Starts a killed OSD: from its disk, with the maps from the oldest that it needs; `gap`: without those in between.
    pub fn start(&mut self, osd: u32, gap: bool) {
        let newest = self.map.epoch.0;
        let node = &mut self.nodes[osd as usize];
        node.incarnation += 1;
        let incarnation = Incarnation(node.incarnation);
        node.alive = true;
        let mut oldest = newest;
        for (id, collection) in &node.disk.visible {
            let stored = Pg::stored_epoch(collection).unwrap().expect("a history row").0;
            let epoch = if gap { newest } else { stored };
            let map = self.maps[&epoch].clone();
            oldest = oldest.min(epoch);
            let pg = Pg::load(*id, OsdId(osd), incarnation, map, self.limits, collection).unwrap();
            node.pgs.insert(*id, pg);
        }
        node.fed = if gap { newest - 1 } else { oldest };
        let loaded: Vec<PgId> = node.pgs.keys().copied().collect();
        for id in loaded {
            self.step(osd, id, Input::Tick);
        }
        let first = self.nodes[osd as usize].fed + 1;
        for epoch in first..=newest {
            self.feed(osd, self.maps[&epoch].clone());
        }
        self.publish(|map| {
            let epoch = map.epoch;
            let info = map.osds.get_mut(&OsdId(osd)).unwrap();
            (info.up, info.incarnation, info.up_from) = (true, incarnation, epoch);
            map.pg_temp.clear();
        });
    }

    /// A map reaches an OSD: what it has first, then what the map brings here.
    fn feed(&mut self, osd: u32, map: Arc<ClusterMap>) {
        let node = &mut self.nodes[osd as usize];
        if !node.alive || map.epoch.0 <= node.fed {
            return;
        }
        node.fed = map.epoch.0;
        let behind: Vec<PgId> = node.pgs.iter().filter(|(_, pg)| pg.epoch() < map.epoch).map(|(id, _)| *id).collect();
        for id in behind {
            self.step(osd, id, Input::Map { map: map.clone(), members: map.members(id) });
        }
        for (id, members) in map.members_of_all() {
            let mine = members.up.contains(&OsdId(osd)) || members.acting.contains(&OsdId(osd));
            if mine && !self.nodes[osd as usize].pgs.contains_key(&id) {
                self.create(osd, id, map.clone());
            }
        }
    }

    fn create(&mut self, osd: u32, id: PgId, map: Arc<ClusterMap>) {
        let node = &mut self.nodes[osd as usize];
        assert!(!node.disk.visible.contains_key(&id), "osd.{osd} has a copy of {id} that it does not know");
        let pg = Pg::create(id, OsdId(osd), Incarnation(node.incarnation), map, self.limits);
        node.pgs.insert(id, pg);
        self.step(osd, id, Input::Tick);
    }

    pub fn step(&mut self, osd: u32, id: PgId, input: Input) {
        let node = &mut self.nodes[osd as usize];
        let Some(pg) = node.pgs.get_mut(&id) else { return };
        let nothing = MemoryCollection::default();
        let mut outbox = Outbox::new();
        pg.step(self.now, input, node.disk.visible.get(&id).unwrap_or(&nothing), &mut outbox);
        for output in outbox {
            self.perform(osd, id, output);
        }
    }

    fn perform(&mut self, osd: u32, id: PgId, output: Output) {
        let (now, incarnation) = (self.now, self.nodes[osd as usize].incarnation);
        let node = &mut self.nodes[osd as usize];
        match output {
            Output::Submit { txn, ops } => node.disk.submit(id, txn, Vec::new(), ops),
            Output::Split { txn, ops, children } => {
                self.splits += 1;
                node.disk.submit(id, txn, children.iter().map(Pg::id).collect(), ops);
                for child in children {
                    let child_id = child.id();
                    assert!(node.pgs.insert(child_id, child).is_none());
                }
                let made: Vec<PgId> = node.disk.unsynced.back().map(|last| last.2.clone()).unwrap();
                for child in made {
                    self.step(osd, child, Input::Tick);
                }
            }
            Output::Send { to, message } => {
                let message = Arc::unwrap_or_clone(message);
                let to_incarnation = self.nodes[to.0 as usize].incarnation;
                self.events.push_back(Event::Peer {
                    to: to.0,
                    incarnation: to_incarnation,
                    from: osd,
                    from_incarnation: incarnation,
                    message: Box::new(message),
                });
            }
            Output::Reply { reply_to, reply, .. } => self.answered(reply_to.0, reply),
            Output::AskUpThru { at_least } => {
                let is_news = self.map.osds[&OsdId(osd)].up_thru < at_least;
                if is_news && self.map.osds[&OsdId(osd)].incarnation == Incarnation(incarnation) {
                    self.publish(|map| map.osds.get_mut(&OsdId(osd)).unwrap().up_thru = at_least);
                }
            }
            Output::AskPgTemp { want } => {
                let present = self.map.pg_temp.get(&id).cloned().unwrap_or_default();
                if present != want {
                    self.publish(|map| match want.is_empty() {
                        true => drop(map.pg_temp.remove(&id)),
                        false => drop(map.pg_temp.insert(id, want)),
                    });
                }
            }
            Output::Reserve(slot) => self.step(osd, id, Input::Reserved(slot)),
            Output::Wake { at } => drop(node.wakes.insert(id, at.max(now))),
            Output::Gone => {
                node.pgs.remove(&id);
                node.wakes.remove(&id);
                let map = self.maps[&node.fed].clone();
                let members = map.members(id);
                if members.up.contains(&OsdId(osd)) || members.acting.contains(&OsdId(osd)) {
                    self.create(osd, id, map);
                }
            }
            Output::NeedMap { .. } | Output::Release(_) | Output::ReportChanged => {}
            Output::CopyDamaged | Output::CopyRepaired => {}
        }
    }

    fn answered(&mut self, number: u64, reply: ClientReply) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        match reply.outcome {
            ClientOutcome::Refused(RefusedReason::WrongPrimary | RefusedReason::Busy) => {}
            outcome => {
                if let Some(before) = &request.outcome {
                    assert_eq!(*before, outcome, "every sending is answered alike");
                }
                request.outcome = Some(outcome);
            }
        }
    }

    /// A client asks; it sends again until it is answered. Gives the number of the request.
    pub fn ask(&mut self, object: &str, ops: Vec<ObjectOp>) -> u64 {
        let number = self.next_request;
        self.next_request += 1;
        let id = RequestId { client: ClientId(1), incarnation: Incarnation(1), tid: number };
        let (sent_in, sent_at) = (Epoch(0), self.now);
        let request = Request { object: object.to_owned(), ops, id, outcome: None, sent_in, sent_at };
        self.requests.insert(number, request);
        self.send(number);
        number
    }

    /// Sends a request, again if it was answered before.
    pub fn send(&mut self, number: u64) {
        let lowest = self.requests.iter().find(|(_, request)| request.outcome.is_none());
        let lowest_outstanding_tid =
            self.lowest.unwrap_or(u64::MAX).min(lowest.map_or(number, |(lowest, _)| *lowest).min(number));
        let request = self.requests.get_mut(&number).unwrap();
        (request.sent_in, request.sent_at) = (self.map.epoch, self.now);
        let object = name(&request.object);
        let pg = self.map.pg_of(POOL, &object).unwrap();
        let message = ClientRequest {
            id: request.id,
            epoch: self.map.epoch,
            pg,
            object,
            ops: request.ops.clone(),
            lowest_outstanding_tid,
            frees_space: None,
        };
        if let Some(to) = self.map.members(pg).primary() {
            self.events.push_back(Event::Client { to: to.0, reply_to: number, request: message });
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Map { to, map } => self.feed(to, map),
            Event::Peer { to, incarnation, from, from_incarnation, message } => {
                let message = *message;
                let node = &self.nodes[to as usize];
                if !node.alive || node.incarnation != incarnation {
                    return;
                }
                if message.epoch.0 > node.fed {
                    // The shell waits for the map; what is dropped is sent again.
                    return;
                }
                let id = message.pg;
                let (from, incarnation) = (OsdId(from), Incarnation(from_incarnation));
                if node.pgs.contains_key(&id) {
                    return self.step(to, id, Input::Peer { from, incarnation, message });
                }
                let map = self.maps[&node.fed].clone();
                if map.pools[&POOL].pg_num <= id.seed {
                    return;
                }
                if let Some(answer) = answer_without_copy(&message, map.epoch) {
                    self.perform(to, id, Output::Send { to: from, message: Arc::new(answer) });
                }
            }
            Event::Client { to, reply_to, request } => {
                if self.nodes[to as usize].alive {
                    self.step(to, request.pg, Input::Client { reply_to: ReplyTo(reply_to), request });
                }
            }
        }
    }

    /// Something that can happen happens: a message, a map, a sync of a disk. False when there is nothing.
    pub fn happen(&mut self) -> bool {
        let disks: Vec<usize> =
            (0..self.nodes.len()).filter(|osd| !self.nodes[*osd].disk.unsynced.is_empty()).collect();
        if !disks.is_empty() && (self.events.is_empty() || self.rng.random_range(0..3) == 0) {
            let osd = disks[self.rng.random_range(0..disks.len())];
            self.sync(osd as u32);
            return true;
        }
        let Some(event) = self.events.pop_front() else { return false };
        self.event(event);
        true
    }

    pub fn sync(&mut self, osd: u32) -> bool {
        let Some((pg, txn, children)) = self.nodes[osd as usize].disk.sync_one() else { return false };
        self.step(osd, pg, Input::Durable(txn));
        for child in children {
            self.step(osd, child, Input::Durable(TxnId(1)));
        }
        true
    }

    pub fn rest(&mut self) {
        for _ in 0..1_000_000 {
            if !self.happen() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Time passes; clients without an answer send again.
    pub fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let now = self.now;
        for osd in 0..self.nodes.len() {
            let due = |(id, at): (&PgId, &Timestamp)| (*at <= now).then_some(*id);
            let due: Vec<PgId> = self.nodes[osd].wakes.iter().filter_map(due).collect();
            for id in due {
                self.nodes[osd].wakes.remove(&id);
                self.step(osd as u32, id, Input::Tick);
            }
        }
        let silent = |request: &Request| {
            let moved = request.sent_in != self.map.epoch || now.since(request.sent_at) > Duration::from_secs(2);
            request.outcome.is_none() && moved
        };
        let again: Vec<u64> =
            self.requests.iter().filter(|(_, request)| silent(request)).map(|(number, _)| *number).collect();
        again.into_iter().for_each(|number| self.send(number));
    }

    fn not_clean(&self) -> Vec<String> {
        let mut not_clean = Vec::new();
        for (id, members) in self.map.members_of_all() {
            let pg = members.primary().and_then(|osd| self.nodes[osd.0 as usize].pgs.get(&id));
            let report = pg.map(Pg::report);
            if !report.as_ref().is_some_and(|report| report.state.clean) {
                not_clean.push(format!("{id} on {members:?}: {report:?}"));
            }
        }
        not_clean
    }

    /// Until every placement group is clean and every request is answered.
    #[track_caller]
    pub fn settle(&mut self) {
        for _ in 0..400 {
            self.pass(Duration::from_millis(250));
            self.rest();
            if self.not_clean().is_empty() && self.requests.values().all(|request| request.outcome.is_some()) {
                return;
            }
        }
        let open: Vec<&String> = self.requests.values().filter(|r| r.outcome.is_none()).map(|r| &r.object).collect();
        panic!("not settled at {}: {:#?}, waiting: {open:?}", self.map.epoch, self.not_clean());
    }

    /// Lets time pass in which nobody asks for anything: primaries count anew what splits have guessed.
    pub fn idle(&mut self, time: Duration) {
        let step = Duration::from_millis(50);
        for _ in 0..time.as_millis() / step.as_millis() {
            self.pass(step);
            self.rest();
        }
    }

    /// Has all placement groups scrubbed, and gives what their primaries report then.
    pub fn scrub(&mut self, kind: ScrubKind) -> Vec<PgReport> {
        let ids: Vec<PgId> = self.map.pgs().collect();
        self.publish(|map| {
            let epoch = map.epoch;
            map.scrub_wishes = ids.iter().map(|id| (*id, ScrubWish { kind, epoch })).collect();
        });
        let wished = self.map.epoch;
        let mut reports = Vec::new();
        for _ in 0..100 {
            self.idle(Duration::from_secs(1));
            let primaries = self.nodes.iter().flat_map(|node| node.pgs.values()).filter(|pg| pg.is_primary());
            reports = primaries.map(Pg::report).collect();
            let is_done = |report: &PgReport| report.scrub.as_ref().is_some_and(|scrub| scrub.served == wished);
            if reports.len() == ids.len() && reports.iter().all(is_done) {
                return reports;
            }
        }
        panic!("not scrubbed: {reports:#?}");
    }

    /// Asks and waits for the answer.
    pub fn operate(&mut self, object: &str, ops: Vec<ObjectOp>) -> ClientOutcome {
        let number = self.ask(object, ops);
        for _ in 0..400 {
            self.rest();
            if let Some(outcome) = self.requests[&number].outcome.clone() {
                return outcome;
            }
            self.pass(Duration::from_millis(250));
        }
        panic!("{object} is never answered: {:#?}", self.not_clean());
    }

    pub fn read(&mut self, object: &str) -> Option<Bytes> {
        match self.operate(object, vec![ObjectOp::Read { offset: 0, length: 1 << 20 }]) {
            ClientOutcome::Done { results, .. } => match &results[..] {
                [OpResult::Data(data)] => Some(data.0.clone()),
                other => panic!("{other:?}"),
            },
            ClientOutcome::Failed { .. } => None,
            other => panic!("{other:?}"),
        }
    }

    /// All copies of a placement group are alike, hold what belongs there and nothing else, and count it right.
    pub fn check_copies(&self) {
        let mut seen = BTreeSet::new();
        for (id, members) in self.map.members_of_all() {
            let disks: Vec<&MemoryCollection> =
                members.up.iter().map(|osd| &self.nodes[osd.0 as usize].disk.visible[&id]).collect();
            for (disk, osd) in disks.iter().zip(&members.up) {
                assert_eq!(disk.objects, disks[0].objects, "{id} on {osd}");
                for key in disk.objects.keys() {
                    assert_eq!(self.map.pg_of(POOL, &key.name()), Some(id), "G1: {key:?} lies in {id}");
                }
            }
            let keys: Vec<&ObjectKey> = disks[0].objects.keys().collect();
            assert!(keys.into_iter().all(|key| seen.insert(key.clone())), "G1: an object in two parts");
            let pg = &self.nodes[members.up[0].0 as usize].pgs[&id];
            let bytes: usize = disks[0].objects.values().map(|object| object.data.len()).sum();
            let report = pg.report();
            assert_eq!((report.objects, report.bytes), (disks[0].objects.len() as u64, bytes as u64), "{id}");
        }
    }
}
