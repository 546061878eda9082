//! Three OSDs, one placement group, and maps by hand.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_map::{ClusterMap, OsdInfo, PgMembers, Pool, PoolKind};
use holdfast_pg::memory::MemoryCollection;
use holdfast_pg::{Input, Limits, Output, Pg, ReplyTo, answer_without_copy};
use holdfast_types::{
    ClientId, ClusterId, DiskUuid, Epoch, Incarnation, ObjectName, OsdId, PgId, PoolId, RequestId, Timestamp,
};
use holdfast_wire::peer::{PeerBody, PeerMessage};
use holdfast_wire::{ClientOutcome, ClientReply, ClientRequest, ObjectOp, OpResult, RefusedReason};

pub const PG: PgId = PgId { pool: PoolId(1), seed: 0 };
pub const A: OsdId = OsdId(1);
pub const B: OsdId = OsdId(2);
pub const C: OsdId = OsdId(3);

#[derive(Default)]
pub struct Node {
    pub running: bool,
    pub incarnation: Incarnation,
    pub pg: Option<Pg>,
    pub disk: MemoryCollection,
}

/// Three OSDs, one placement group with three copies, all messages delivered in order, each write durable at once.
pub struct World {
    pub maps: Vec<Arc<ClusterMap>>,
    pub nodes: BTreeMap<OsdId, Node>,
    mail: VecDeque<(OsdId, OsdId, PeerMessage)>,
    wishes: Vec<(OsdId, Output)>,
    replies: Vec<ClientReply>,
    pub now: Timestamp,
    /// How long each of the 20 rounds takes in which everything settles.
    pub round: Duration,
    /// Messages of which none arrives.
    pub loses: fn(&PeerBody) -> bool,
    tid: u64,
}

pub fn info(incarnation: u64, at: Epoch) -> OsdInfo {
    OsdInfo {
        disk: DiskUuid([u8::try_from(incarnation).unwrap(); 16]),
        incarnation: Incarnation(incarnation),
        address: "nowhere:1".to_owned(),
        up: true,
        in_cluster: true,
        reweight: 0x1_0000,
        up_from: at,
        up_thru: Epoch::ZERO,
        down_at: Epoch::ZERO,
        dead_epoch: Epoch::ZERO,
        formatted_at: Epoch::ZERO,
    }
}

fn members(map: &ClusterMap) -> PgMembers {
    let has_room = |osd: &OsdId| map.osds.get(osd).is_some_and(|info| info.up && info.reweight > 0);
    let up: Vec<OsdId> = [A, B, C].into_iter().filter(has_room).collect();
    let acting = map.pg_temp.get(&PG).cloned().unwrap_or_else(|| up.clone());
    PgMembers { up, acting }
}

impl World {
    pub fn new() -> World {
        let mut world = World::without_copies();
        for osd in [A, B, C] {
            world.feed(osd);
        }
        world.settle();
        world
    }

    /// The pool is there, and the OSDs hear of it with the map that is published next.
    pub fn without_copies() -> World {
        let nodes = [A, B, C]
            .map(|osd| (osd, Node { running: true, incarnation: Incarnation(u64::from(osd.0)), ..Node::default() }));
        let mut world = World {
            maps: vec![Arc::new(ClusterMap::empty(ClusterId([1; 16])))],
            nodes: nodes.into(),
            mail: VecDeque::new(),
            wishes: Vec::new(),
            replies: Vec::new(),
            now: Timestamp::ZERO,
            round: Duration::from_secs(2),
            loses: |_| false,
            tid: 0,
        };
        let mut map = ClusterMap::clone(&world.newest());
        map.epoch = map.epoch.next();
        let kind = PoolKind::Replicated { size: 3, min_size: 2 };
        let (name, application) = ("p".to_owned(), "test".to_owned());
        map.pools.insert(PG.pool, Pool { name, kind, pg_num: 1, rule: 0, created: map.epoch, application });
        map.next_pool = PoolId(2);
        map.osds.extend([A, B, C].map(|osd| (osd, info(u64::from(osd.0), map.epoch))));
        world.maps.push(Arc::new(map));
        world
    }

    pub fn newest(&self) -> Arc<ClusterMap> {
        self.maps.last().unwrap().clone()
    }

    pub fn publish(&mut self, change: impl FnOnce(&mut ClusterMap)) {
        let mut map = ClusterMap::clone(&self.newest());
        map.epoch = map.epoch.next();
        change(&mut map);
        self.maps.push(Arc::new(map));
        for osd in [A, B, C] {
            if self.nodes[&osd].running {
                self.feed(osd);
            }
        }
    }

    /// Gives all maps that the OSD's placement group does not have.
    fn feed(&mut self, osd: OsdId) {
        let newest = self.newest();
        let node = self.nodes.get_mut(&osd).unwrap();
        if node.pg.is_none() {
            if !members(&newest).acting.contains(&osd) {
                return;
            }
            let of = members(&newest);
            node.pg = Some(Pg::create_with(PG, osd, node.incarnation, newest, of, Limits::default()));
            return self.step(osd, Input::Tick);
        }
        let from = node.pg.as_ref().unwrap().epoch().0 + 1;
        for map in self.maps.iter().filter(|map| map.epoch.0 >= from).cloned().collect::<Vec<_>>() {
            let members = members(&map);
            self.step(osd, Input::Map { map, members });
        }
    }

    pub fn step(&mut self, osd: OsdId, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let node = self.nodes.get_mut(&osd).unwrap();
            let Some(pg) = node.pg.as_mut() else { return };
            let mut outbox = Vec::new();
            pg.step(self.now, input, &node.disk, &mut outbox);
            for output in outbox {
                match output {
                    Output::Submit { txn, ops } => {
                        self.nodes.get_mut(&osd).unwrap().disk.apply(&ops);
                        inputs.push_back(Input::Durable(txn));
                    }
                    Output::Send { to, message } => {
                        self.mail.push_back((osd, to, std::sync::Arc::unwrap_or_clone(message)))
                    }
                    Output::Reply { mut reply, valid_until, .. } => {
                        if valid_until.is_some_and(|until| self.now >= until) {
                            reply.outcome = ClientOutcome::Refused(RefusedReason::Busy);
                        }
                        self.replies.push(reply);
                    }
                    Output::Reserve(slot) => inputs.push_back(Input::Reserved(slot)),
                    wish @ (Output::AskUpThru { .. } | Output::AskPgTemp { .. }) => self.wishes.push((osd, wish)),
                    Output::Gone => self.nodes.get_mut(&osd).unwrap().pg = None,
                    _ => {}
                }
            }
        }
    }

    /// Delivers everything, fulfils every wish, and lets time pass, until nothing can happen any more.
    pub fn settle(&mut self) {
        for _ in 0..20 {
            while !self.mail.is_empty() || !self.wishes.is_empty() {
                if let Some((from, to, message)) = self.mail.pop_front() {
                    if (self.loses)(&message.body) {
                        continue;
                    }
                    let incarnation = self.nodes[&from].incarnation;
                    let node = &self.nodes[&to];
                    if node.running && node.pg.is_some() {
                        self.step(to, Input::Peer { from, incarnation, message });
                    } else if let (true, Some(answer)) =
                        (node.running, answer_without_copy(&message, self.newest().epoch))
                    {
                        self.mail.push_back((to, from, answer));
                    }
                } else if let Some((osd, wish)) = self.wishes.pop() {
                    self.publish(|map| match wish {
                        Output::AskPgTemp { want } if want.is_empty() => drop(map.pg_temp.remove(&PG)),
                        Output::AskPgTemp { want } => drop(map.pg_temp.insert(PG, want)),
                        _ => map.osds.get_mut(&osd).unwrap().up_thru = map.epoch,
                    });
                }
            }
            self.now = self.now + self.round;
            for osd in [A, B, C] {
                if self.nodes[&osd].running {
                    self.step(osd, Input::Tick);
                }
            }
        }
    }

    pub fn stop(&mut self, osd: OsdId) {
        self.stop_all(&[osd]);
    }

    /// Stops several in the same map.
    pub fn stop_all(&mut self, osds: &[OsdId]) {
        for osd in osds {
            self.nodes.get_mut(osd).unwrap().running = false;
        }
        self.publish(|map| {
            let epoch = map.epoch;
            for osd in osds {
                let info = map.osds.get_mut(osd).unwrap();
                (info.up, info.down_at) = (false, epoch);
            }
        });
        self.settle();
    }

    /// Starts an OSD that knows that it has lost its copy.
    pub fn restart_without_copy(&mut self, osd: OsdId, incarnation: u64) {
        let map = self.newest();
        let pg = Pg::create_lost(PG, osd, Incarnation(incarnation), map, Limits::default(), false);
        let disk = MemoryCollection::default();
        self.nodes.insert(osd, Node { running: true, incarnation: Incarnation(incarnation), pg: Some(pg), disk });
        self.announce(osd, incarnation);
    }

    /// Starts an OSD on the disk that it had.
    pub fn restart(&mut self, osd: OsdId, incarnation: u64) {
        let node = self.nodes.get_mut(&osd).unwrap();
        (node.running, node.incarnation, node.pg) = (true, Incarnation(incarnation), None);
        if let Some(epoch) = node.disk.exists.then(|| Pg::stored_epoch(&node.disk).unwrap().unwrap()) {
            let map = self.maps[usize::try_from(epoch.0).unwrap()].clone();
            let of = members(&map);
            let pg = Pg::load_with(PG, osd, node.incarnation, map, of, Limits::default(), &node.disk).unwrap();
            node.pg = Some(pg);
        }
        self.announce(osd, incarnation);
    }

    /// Starts an OSD on the disk that it had; the maps that it has missed are gone.
    pub fn restart_without_maps(&mut self, osd: OsdId, incarnation: u64) {
        let map = self.newest();
        let of = members(&map);
        let node = self.nodes.get_mut(&osd).unwrap();
        (node.running, node.incarnation) = (true, Incarnation(incarnation));
        let pg = Pg::load_with(PG, osd, node.incarnation, map, of, Limits::default(), &node.disk).unwrap();
        node.pg = Some(pg);
        self.announce(osd, incarnation);
    }

    fn announce(&mut self, osd: OsdId, incarnation: u64) {
        self.publish(|map| {
            let epoch = map.epoch;
            let info = map.osds.get_mut(&osd).unwrap();
            (info.up, info.up_from, info.incarnation) = (true, epoch, Incarnation(incarnation));
        });
        self.settle();
    }

    pub fn ask(&mut self, ops: Vec<ObjectOp>) -> Option<ClientOutcome> {
        self.tid += 1;
        let primary = members(&self.newest()).acting[0];
        self.ask_of(primary, 1, self.tid, ops)
    }

    /// Has one client send one request to one OSD.
    pub fn ask_of(&mut self, osd: OsdId, client: u64, tid: u64, ops: Vec<ObjectOp>) -> Option<ClientOutcome> {
        let id = RequestId { client: ClientId(client), incarnation: Incarnation(1), tid };
        let object = ObjectName::new("object".to_owned()).unwrap();
        let epoch = self.newest().epoch;
        let request = ClientRequest { id, epoch, pg: PG, object, ops, lowest_outstanding_tid: tid, frees_space: None };
        self.step(osd, Input::Client { reply_to: ReplyTo(0), request });
        self.settle();
        self.replies.drain(..).find(|reply| reply.id == id).map(|reply| reply.outcome)
    }

    pub fn write(&mut self, value: &'static [u8]) {
        let data = Bytes::from_static(value).into();
        let outcome = self.ask(vec![ObjectOp::WriteFull { data }]);
        assert!(matches!(outcome, Some(ClientOutcome::Done { .. })), "{outcome:?}");
    }

    pub fn read(&mut self) -> Option<Bytes> {
        match self.ask(vec![ObjectOp::Read { offset: 0, length: 100 }])? {
            ClientOutcome::Done { results, .. } => match results.into_iter().next() {
                Some(OpResult::Data(data)) => Some(data.as_ref().to_vec().into()),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}
