//! Copies that cannot be read any more, in a placement group of three that hear each other at once.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_map::{ClusterMap, OsdInfo, PgMembers, Pool, PoolKind};
use holdfast_pg::memory::MemoryCollection;
use holdfast_pg::{
    Input, Limits, LocalObjects, ObjectKey, Outbox, Output, Pg, ReplyTo, VERSION_ATTR, answer_without_copy,
};
use holdfast_types::{
    ClientId, ClusterId, DiskUuid, Epoch, Incarnation, ObjectName, OsdId, PgId, PoolId, RequestId, Timestamp,
};
use holdfast_wire::mon::PgReport;
use holdfast_wire::peer::{PeerBody, PeerMessage};
use holdfast_wire::{Blob, ClientOutcome, ClientRequest, ObjectOp, OpError, OpResult};

const PG: PgId = PgId { pool: PoolId(1), seed: 0 };

struct Node {
    /// None while it has no copy.
    pg: Option<Pg>,
    store: MemoryCollection,
    wake_at: Option<Timestamp>,
}

/// The first OSD is the primary.
struct Group {
    nodes: Vec<Node>,
    map: ClusterMap,
    members: PgMembers,
    limits: Limits,
    inputs: VecDeque<(usize, Input)>,
    /// Whose messages to others are lost.
    silent: BTreeSet<usize>,
    sent: Vec<(usize, usize, PeerMessage)>,
    answers: Vec<(ReplyTo, ClientOutcome)>,
    damaged: usize,
    repaired: usize,
    now: Timestamp,
    tid: u64,
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn osd(index: usize) -> OsdId {
    OsdId(u32::try_from(index).unwrap())
}

impl Group {
    /// Of `all` OSDs the first `members` are members.
    fn of(all: usize, members: usize, limits: Limits) -> Group {
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
            answers: Vec::new(),
            damaged: 0,
            repaired: 0,
            now: Timestamp::from_nanos(1),
            tid: 0,
        };
        group.begin();
        group.run_until_clean();
        group
    }

    /// Members without a copy begin one.
    fn begin(&mut self) {
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

    fn publish(&mut self) {
        self.map.epoch = self.map.epoch.next();
        self.begin();
        let (map, members) = (Arc::new(self.map.clone()), self.members.clone());
        for id in 0..self.nodes.len() {
            self.inputs.push_back((id, Input::Map { map: map.clone(), members: members.clone() }));
        }
    }

    /// All inputs, and all that follows from them at once: what is submitted is durable at once.
    fn run(&mut self) {
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
        }
        panic!("it never comes to rest");
    }

    fn perform(&mut self, id: usize, output: Output) {
        match output {
            Output::Submit { txn, ops } => {
                assert!(self.nodes[id].store.takes(&ops), "osd {id} changes what cannot be read: {ops:?}");
                self.nodes[id].store.apply(&ops);
                self.inputs.push_back((id, Input::Durable(txn)));
            }
            Output::Send { to, message } => {
                let message = Arc::unwrap_or_clone(message);
                let to = to.0 as usize;
                self.sent.push((id, to, message.clone()));
                if !self.silent.contains(&id) {
                    let input = Input::Peer { from: osd(id), incarnation: Incarnation(1), message };
                    self.inputs.push_back((to, input));
                }
            }
            Output::Reply { reply_to, reply } => self.answers.push((reply_to, reply.outcome)),
            Output::AskUpThru { at_least } => {
                self.map.osds.get_mut(&osd(id)).unwrap().up_thru = at_least;
                self.publish();
            }
            Output::AskPgTemp { want } => {
                let acting = if want.is_empty() { self.members.up.clone() } else { want };
                if self.members.acting != acting {
                    self.members.acting = acting;
                    self.publish();
                }
            }
            Output::Reserve(slot) => self.inputs.push_back((id, Input::Reserved(slot))),
            Output::Wake { at } if at <= self.now => self.inputs.push_back((id, Input::Tick)),
            Output::Wake { at } => self.nodes[id].wake_at = Some(at),
            Output::Gone => self.nodes[id].pg = None,
            Output::CopyDamaged => self.damaged += 1,
            Output::CopyRepaired => self.repaired += 1,
            _ => {}
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.run();
        while let Some(at) = self.nodes.iter().filter_map(|node| node.wake_at).min().filter(|at| *at <= end) {
            self.now = at;
            for id in 0..self.nodes.len() {
                if self.nodes[id].wake_at == Some(at) {
                    self.nodes[id].wake_at = None;
                    self.inputs.push_back((id, Input::Tick));
                }
            }
            self.run();
        }
        self.now = end;
    }

    fn primary(&self) -> usize {
        self.members.acting[0].0 as usize
    }

    fn report(&self) -> PgReport {
        self.nodes[self.primary()].pg.as_ref().unwrap().report()
    }

    fn is_clean(&self) -> bool {
        self.report().state.clean
    }

    fn run_until_clean(&mut self) {
        for _ in 0..120 {
            self.pass(Duration::from_millis(500));
            if self.is_clean() && self.members.acting == self.members.up {
                return;
            }
        }
        panic!("not clean: {:?}", self.report());
    }

    fn ask(&mut self, object: &str, ops: Vec<ObjectOp>) -> u64 {
        self.tid += 1;
        let id = RequestId { client: ClientId(1), incarnation: Incarnation(1), tid: self.tid };
        let request = ClientRequest {
            id,
            epoch: self.map.epoch,
            pg: PG,
            object: name(object),
            ops,
            lowest_outstanding_tid: self.tid,
            frees_space: None,
        };
        let to = self.primary();
        self.inputs.push_back((to, Input::Client { reply_to: ReplyTo(self.tid), request }));
        self.pass(Duration::from_secs(3));
        self.tid
    }

    fn answer(&mut self, tid: u64) -> Option<ClientOutcome> {
        let at = self.answers.iter().position(|(to, _)| to.0 == tid)?;
        Some(self.answers.remove(at).1)
    }

    fn operate(&mut self, object: &str, ops: Vec<ObjectOp>) -> ClientOutcome {
        let tid = self.ask(object, ops);
        self.answer(tid).expect("answered")
    }

    fn write(&mut self, object: &str) {
        let outcome = self.operate(object, vec![ObjectOp::WriteFull { data: content(object) }]);
        assert!(matches!(outcome, ClientOutcome::Done { .. }), "{outcome:?}");
    }

    /// Writes an object that the log does not tell of any more.
    fn write_before_the_log(&mut self, object: &str) {
        self.write(object);
        for other in 0..10 {
            self.write(&format!("other-{other}"));
        }
    }

    fn read(&mut self, object: &str) -> ClientOutcome {
        self.operate(object, vec![ObjectOp::Read { offset: 0, length: 1 << 20 }])
    }

    fn spoil(&mut self, id: usize, object: &str) {
        let key = ObjectKey::of(&name(object));
        self.nodes[id].store.objects.get_mut(&key).unwrap().unreadable = true;
    }

    fn is_whole(&self, id: usize, object: &str) -> bool {
        let (store, key) = (&self.nodes[id].store, ObjectKey::of(&name(object)));
        let version = store.attr(&key, VERSION_ATTR);
        version.is_ok_and(|version| version.is_some())
            && store.read(&key, 0, 1 << 20).is_ok_and(|bytes| bytes == content(object).0)
    }

    fn is_gone(&self, id: usize, object: &str) -> bool {
        !self.nodes[id].store.objects.contains_key(&ObjectKey::of(&name(object)))
    }
}

fn content(object: &str) -> Blob {
    Bytes::from(object.repeat(30)).into()
}

fn shows(outcome: &ClientOutcome, object: &str) -> bool {
    matches!(outcome, ClientOutcome::Done { results, .. } if results == &[OpResult::Data(content(object))])
}

fn is_unreadable(outcome: &ClientOutcome) -> bool {
    matches!(outcome, ClientOutcome::Failed { error: OpError::Unreadable, .. })
}

fn short_log() -> Limits {
    Limits { log_entries_min: 2, log_entries_max: 4, log_trim_batch: 1, piece_bytes: 64, ..Limits::default() }
}

#[test]
fn an_unreadable_object_that_the_log_has_forgotten_is_fetched_from_a_peer() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    let outcome = group.read("old");
    assert!(shows(&outcome, "old"), "{outcome:?}");
    group.run_until_clean();
    assert!(group.is_whole(0, "old"));
    assert_eq!((group.damaged, group.repaired), (1, 1));
}

#[test]
fn a_write_to_an_unreadable_object_that_the_log_has_forgotten_is_done_on_the_copy_of_a_peer() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    let outcome = group.operate("old", vec![ObjectOp::AssertExists, ObjectOp::Append { data: Blob::default() }]);
    assert!(matches!(outcome, ClientOutcome::Done { .. }), "{outcome:?}");
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "old")));
}

#[test]
fn a_peer_that_cannot_tell_the_version_is_mended_too() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    group.spoil(1, "old");
    let outcome = group.read("old");
    assert!(shows(&outcome, "old"), "{outcome:?}");
    group.run_until_clean();
    assert!(group.is_whole(0, "old"));
    // The replica says what it lacks when it is asked for it.
    group.spoil(0, "old");
    assert!(shows(&group.read("old"), "old"));
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "old")));
}

#[test]
fn the_question_for_a_version_survives_lost_answers() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    group.silent.extend([1, 2]);
    let tid = group.ask("old", vec![ObjectOp::Read { offset: 0, length: 1 << 20 }]);
    assert_eq!(group.answer(tid), None);
    assert!(!group.is_clean(), "U1");
    group.silent.clear();
    group.run_until_clean();
    assert!(group.answer(tid).is_some_and(|outcome| shows(&outcome, "old")));
}

#[test]
fn an_object_that_nobody_can_tell_of_is_unfound_and_stops_nothing_else() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    (0..3).for_each(|id| group.spoil(id, "old"));
    assert!(is_unreadable(&group.read("old")));
    assert!(is_unreadable(&group.read("old")));
    let report = group.report();
    assert_eq!((report.objects_unfound, report.state.clean), (1, false));
    group.write("new");
    // A copy becomes readable again: it is found without a client.
    let key = ObjectKey::of(&name("old"));
    group.nodes[2].store.objects.get_mut(&key).unwrap().unreadable = false;
    group.run_until_clean();
    assert!(group.is_whole(0, "old"));
}

#[test]
fn what_all_peers_say_does_not_exist_is_no_object() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    let key = ObjectKey::of(&name("ghost"));
    let object = holdfast_pg::memory::MemoryObject { unreadable: true, ..Default::default() };
    group.nodes[0].store.objects.insert(key, object);
    let outcome = group.operate("ghost", vec![ObjectOp::AssertAbsent, ObjectOp::WriteFull { data: content("ghost") }]);
    assert!(matches!(outcome, ClientOutcome::Done { .. }), "{outcome:?}");
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "ghost")));
}

#[test]
fn a_write_to_an_object_that_a_replica_cannot_read_leaves_it_missing_there_until_it_is_sent() {
    for effects in 1..4 {
        let mut group = Group::of(3, 3, short_log());
        group.write_before_the_log("old");
        group.spoil(2, "old");
        for _ in 0..effects {
            let outcome = group.operate("old", vec![ObjectOp::Append { data: Blob::default() }, ObjectOp::Stat]);
            assert!(matches!(outcome, ClientOutcome::Done { .. }), "{outcome:?}");
        }
        let set = ObjectOp::SetAttr { name: b"a".to_vec(), value: Bytes::from_static(b"b").into() };
        assert!(matches!(group.operate("old", vec![set]), ClientOutcome::Done { .. }));
        group.run_until_clean();
        assert!((0..3).all(|id| group.is_whole(id, "old")));
    }
}

#[test]
fn a_backfill_goes_on_when_it_meets_an_unreadable_object_that_the_log_has_forgotten() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.run_until_clean();
    assert!(group.members.acting.contains(&osd(3)));
    assert!(group.is_whole(0, "old") && group.is_whole(3, "old"));
}

#[test]
fn a_backfill_does_not_spin_on_an_object_that_nobody_can_read() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    (0..3).for_each(|id| group.spoil(id, "old"));
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.pass(Duration::from_secs(20));
    group.sent.clear();
    group.pass(Duration::from_secs(600));
    assert!(!group.is_clean() && group.report().state.backfilling, "{:?}", group.report());
    let pulls = group.sent.iter().filter(|(_, _, message)| matches!(message.body, PeerBody::Pull(_))).count();
    assert!(pulls < 100, "{pulls} questions in ten minutes");
    assert!(group.is_gone(3, "old"));
}

#[test]
fn an_object_that_nobody_can_read_can_be_removed() {
    for whole in [false, true] {
        let mut group = Group::of(3, 3, short_log());
        group.write_before_the_log("old");
        for id in 0..3 {
            let key = ObjectKey::of(&name("old"));
            let object = group.nodes[id].store.objects.get_mut(&key).unwrap();
            (object.rotten, object.unreadable) = (true, whole);
        }
        assert!(is_unreadable(&group.read("old")));
        let conditional = vec![ObjectOp::CompareExtent { offset: 0, data: Blob::default() }, ObjectOp::Remove];
        assert!(is_unreadable(&group.operate("old", conditional)), "its condition cannot be judged");
        let outcome = group.operate("old", vec![ObjectOp::AssertExists, ObjectOp::Remove]);
        assert!(matches!(outcome, ClientOutcome::Done { .. }), "{outcome:?}");
        group.run_until_clean();
        assert_eq!(group.report().objects_unfound, 0);
        for id in 0..3 {
            assert!(group.is_gone(id, "old"));
            assert!(!group.nodes[id].store.meta.keys().any(|key| key.starts_with(b"m")), "no lack is left");
        }
        group.write("old");
        assert!(shows(&group.read("old"), "old"));
    }
}

#[test]
fn a_target_that_is_full_is_not_sent_the_same_piece_every_second() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(2, "old");
    group.nodes[2].store.full = true;
    let set = ObjectOp::SetAttr { name: b"a".to_vec(), value: Bytes::from_static(b"b").into() };
    assert!(matches!(group.operate("old", vec![set]), ClientOutcome::Done { .. }));
    group.sent.clear();
    group.pass(Duration::from_secs(600));
    let pieces = group.sent.iter().filter(|(_, _, message)| matches!(message.body, PeerBody::Push(_))).count();
    assert!(pieces < 30, "{pieces} pieces in ten minutes");
    assert!(!group.is_clean());
    group.nodes[2].store.full = false;
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "old")));
}
