//! Three members over disks in memory, and a network that does what a test says. What is checked by hand here is attacked
//! at random in `a_storm_of_damage_and_lost_messages_ends_in_equal_copies`.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_map::{ClusterMap, OsdInfo, PgMembers, Pool, PoolKind, ScrubKind, ScrubWish};
use holdfast_types::{
    ClientId, ClusterId, DiskUuid, Epoch, Incarnation, LogVersion, ObjectName, OsdId, PgId, PoolId, RequestId,
    Timestamp,
};
use holdfast_wire::mon::PgReport;
use holdfast_wire::peer::{PeerBody, PeerMessage};
use holdfast_wire::scrub::{CopyFault, PgScrub, ScrubBody, ScrubMessage};
use holdfast_wire::{ClientOutcome, ClientReply, ClientRequest, ObjectOp, Row};

use crate::api::{Input, Limits, Output, ReplyTo, ScrubLimits, Slot, VERSION_ATTR};
use crate::exec;
use crate::key::ObjectKey;
use crate::memory::{MemoryCollection, MemoryObject};
use crate::pg::Pg;

const PG: PgId = PgId { pool: PoolId(1), seed: 0 };
const A: OsdId = OsdId(1);
const B: OsdId = OsdId(2);
const C: OsdId = OsdId(3);
const NOON_MS: u64 = 1_700_000_000_000;
const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Default)]
struct Node {
    pg: Option<Pg>,
    disk: MemoryCollection,
    incarnation: u64,
    wake: Option<Timestamp>,
    damaged: u32,
    repaired: u32,
    slots: Vec<Slot>,
}

/// A kind of damage, and what it does to a copy.
type Damage = (&'static str, fn(&mut MemoryObject));
type Filter = fn(OsdId, OsdId, &PeerBody) -> bool;

struct Cluster {
    map: ClusterMap,
    nodes: BTreeMap<OsdId, Node>,
    mail: VecDeque<(OsdId, OsdId, PeerMessage)>,
    /// What this says yes to is kept back.
    keep: Option<Filter>,
    kept: VecDeque<(OsdId, OsdId, PeerMessage)>,
    replies: Vec<ClientReply>,
    now: Timestamp,
    tid: u64,
    limits: Limits,
}

fn name(object: &str) -> ObjectName {
    ObjectName::new(object).unwrap()
}

fn key(object: &str) -> ObjectKey {
    ObjectKey::of(&name(object))
}

fn object_name(index: u32) -> String {
    format!("object-{index}")
}

fn is_scrub(body: &PeerBody, wanted: fn(&ScrubBody) -> bool) -> bool {
    matches!(body, PeerBody::Scrub(message) if wanted(&message.body))
}

impl Cluster {
    fn start(osds: &[OsdId]) -> Cluster {
        let scrub = ScrubLimits { chunk_objects: 4, piece_bytes: 64, ..ScrubLimits::default() };
        let limits = Limits { piece_bytes: 64, scrub, ..Limits::default() };
        let mut map = ClusterMap::empty(ClusterId([1; 16]));
        let size = u32::try_from(osds.len()).unwrap();
        let kind = PoolKind::Replicated { size, min_size: size.min(2) };
        let (name, application) = ("p".to_owned(), "test".to_owned());
        map.epoch = Epoch(1);
        map.pools.insert(PG.pool, Pool { name, kind, pg_num: 1, rule: 0, created: Epoch(1), application });
        map.next_pool = PoolId(2);
        for osd in osds {
            let info = OsdInfo {
                disk: DiskUuid([u8::try_from(osd.0).unwrap(); 16]),
                incarnation: Incarnation(1),
                address: String::new(),
                up: true,
                in_cluster: true,
                reweight: 0x1_0000,
                up_from: Epoch(1),
                up_thru: Epoch(1),
                down_at: Epoch(0),
                dead_epoch: Epoch(0),
                formatted_at: Epoch(0),
            };
            map.osds.insert(*osd, info);
        }
        let nodes = osds.iter().map(|osd| (*osd, Node { incarnation: 1, ..Node::default() })).collect();
        let mut cluster = Cluster {
            map,
            nodes,
            mail: VecDeque::new(),
            keep: None,
            kept: VecDeque::new(),
            replies: Vec::new(),
            now: Timestamp::from_nanos(1_000_000_000),
            tid: 0,
            limits,
        };
        for osd in osds {
            cluster.boot(*osd);
        }
        cluster.run(5);
        assert!(cluster.report().state.clean, "{:?}", cluster.report());
        cluster
    }

    fn members(&self) -> PgMembers {
        let up: Vec<OsdId> = self.map.osds.iter().filter(|(_, info)| info.up).map(|(osd, _)| *osd).collect();
        let acting = self.map.pg_temp.get(&PG).cloned().unwrap_or_else(|| up.clone());
        PgMembers { up, acting }
    }

    fn primary(&self) -> OsdId {
        self.members().acting[0]
    }

    fn boot(&mut self, osd: OsdId) {
        let (map, members, limits) = (Arc::new(self.map.clone()), self.members(), self.limits);
        let node = self.nodes.get_mut(&osd).unwrap();
        let run = Incarnation(node.incarnation);
        node.pg = Some(if node.disk.exists {
            Pg::load_with(PG, osd, run, map, members, limits, &node.disk).unwrap()
        } else {
            Pg::create_with(PG, osd, run, map, members, limits)
        });
        self.step(osd, Input::Tick);
    }

    fn publish(&mut self, change: impl FnOnce(&mut ClusterMap)) {
        self.map.epoch = self.map.epoch.next();
        change(&mut self.map);
        for osd in self.nodes.keys().copied().collect::<Vec<_>>() {
            let (map, members) = (Arc::new(self.map.clone()), self.members());
            self.step(osd, Input::Map { map, members });
        }
    }

    fn step(&mut self, osd: OsdId, input: Input) {
        let mut inputs = VecDeque::from([input]);
        let mut wishes = Vec::new();
        while let Some(input) = inputs.pop_front() {
            let node = self.nodes.get_mut(&osd).unwrap();
            let Some(pg) = node.pg.as_mut() else { return };
            let mut outbox = Vec::new();
            pg.step(self.now, input, &node.disk, &mut outbox);
            for output in outbox {
                match output {
                    Output::Submit { txn, ops } => {
                        node.disk.apply(&ops);
                        inputs.push_back(Input::Durable(txn));
                    }
                    Output::Send { to, message } => self.mail.push_back((osd, to, Arc::unwrap_or_clone(message))),
                    Output::Reply { reply, .. } => self.replies.push(reply),
                    Output::Reserve(slot) => {
                        node.slots.push(slot);
                        inputs.push_back(Input::Reserved(slot));
                    }
                    Output::Release(slot) => node.slots.retain(|held| *held != slot),
                    Output::Wake { at } => node.wake = Some(at),
                    Output::CopyDamaged => node.damaged += 1,
                    Output::CopyRepaired => node.repaired += 1,
                    wish @ (Output::AskUpThru { .. } | Output::AskPgTemp { .. }) => wishes.push(wish),
                    _ => {}
                }
            }
        }
        for wish in wishes {
            self.publish(|map| match wish {
                Output::AskPgTemp { want } if want.is_empty() => drop(map.pg_temp.remove(&PG)),
                Output::AskPgTemp { want } => drop(map.pg_temp.insert(PG, want)),
                _ => map.osds.get_mut(&osd).unwrap().up_thru = map.epoch,
            });
        }
    }

    fn deliver(&mut self, from: OsdId, to: OsdId, message: PeerMessage) {
        let incarnation = Incarnation(self.nodes[&from].incarnation);
        self.step(to, Input::Peer { from, incarnation, message });
    }

    fn deliver_all(&mut self) {
        while let Some((from, to, message)) = self.mail.pop_front() {
            if self.keep.is_some_and(|keep| keep(from, to, &message.body)) {
                self.kept.push_back((from, to, message));
            } else {
                self.deliver(from, to, message);
            }
        }
    }

    /// Lets so many seconds pass.
    fn run(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        loop {
            self.deliver_all();
            let next = self.nodes.iter().filter_map(|(osd, node)| Some((node.wake?, *osd))).min();
            let Some((at, osd)) = next.filter(|(at, _)| *at <= end) else { break };
            self.now = self.now.max(at);
            self.nodes.get_mut(&osd).unwrap().wake = None;
            self.step(osd, Input::Tick);
        }
        self.now = end;
    }

    fn stop(&mut self, osd: OsdId) {
        let node = self.nodes.get_mut(&osd).unwrap();
        node.pg = None;
        node.slots.clear();
        self.publish(|map| {
            let epoch = map.epoch;
            let info = map.osds.get_mut(&osd).unwrap();
            (info.up, info.down_at) = (false, epoch);
        });
    }

    fn restart(&mut self, osd: OsdId) {
        let node = self.nodes.get_mut(&osd).unwrap();
        node.incarnation += 1;
        node.slots.clear();
        let run = Incarnation(node.incarnation);
        self.boot(osd);
        self.publish(|map| {
            let epoch = map.epoch;
            let info = map.osds.get_mut(&osd).unwrap();
            (info.up, info.up_from, info.incarnation) = (true, epoch, run);
        });
    }

    fn ask(&mut self, object: &str, ops: Vec<ObjectOp>) -> u64 {
        self.tid += 1;
        let id = RequestId { client: ClientId(1), incarnation: Incarnation(1), tid: self.tid };
        let (epoch, object, tid) = (self.map.epoch, name(object), self.tid);
        let request = ClientRequest { id, epoch, pg: PG, object, ops, lowest_outstanding_tid: 0, frees_space: None };
        self.step(self.primary(), Input::Client { reply_to: ReplyTo(tid), request });
        tid
    }

    fn outcome(&self, tid: u64) -> Option<&ClientOutcome> {
        self.replies.iter().find(|reply| reply.id.tid == tid).map(|reply| &reply.outcome)
    }

    fn is_done(&self, tid: u64) -> bool {
        matches!(self.outcome(tid), Some(ClientOutcome::Done { .. }))
    }

    fn put(&mut self, object: &str, value: u8) -> u64 {
        let data = Bytes::from(vec![value; 150]).into();
        let row = Row { key: b"row".to_vec(), value: Bytes::from_static(b"value").into() };
        let attr = ObjectOp::SetAttr { name: b"attr".to_vec(), value: Bytes::from_static(b"v").into() };
        self.ask(object, vec![ObjectOp::WriteFull { data }, attr, ObjectOp::PutRows { rows: vec![row] }])
    }

    fn fill(&mut self, objects: u32) {
        for index in 0..objects {
            let tid = self.put(&object_name(index), u8::try_from(index).unwrap());
            self.deliver_all();
            assert!(self.is_done(tid));
        }
    }

    /// As if the log had long been trimmed: it says nothing of what is there.
    fn forget_log(&mut self) {
        let log = |node: &mut Node| {
            let head = node.pg.as_ref().unwrap().holding.log.head();
            let pg = node.pg.as_mut().unwrap();
            pg.holding.log = crate::log::Log::from_parts(head, Vec::new(), Vec::new(), Vec::new());
            node.disk.meta.retain(|key, _| key[0] != b'l');
            let mut rows = MemoryCollection::default();
            rows.apply(&[crate::rows::put_info(&pg.holding.info())]);
            node.disk.meta.extend(rows.meta);
        };
        self.nodes.values_mut().for_each(log);
    }

    fn damage(&mut self, osd: OsdId, object: &str, change: impl FnOnce(&mut MemoryObject)) {
        change(self.nodes.get_mut(&osd).unwrap().disk.objects.get_mut(&key(object)).unwrap());
    }

    fn lose(&mut self, osd: OsdId, object: &str) {
        self.nodes.get_mut(&osd).unwrap().disk.objects.remove(&key(object)).unwrap();
    }

    fn wish(&mut self, kind: ScrubKind) {
        self.publish(|map| {
            let epoch = map.epoch;
            map.scrub_wishes.insert(PG, ScrubWish { kind, epoch });
        });
    }

    /// Has the placement group scrubbed, and gives what is reported then.
    fn scrub(&mut self, kind: ScrubKind) -> PgScrub {
        self.wish(kind);
        let wished = self.map.epoch;
        self.run(20);
        let scrub = self.report().scrub.unwrap();
        assert_eq!(scrub.served, wished, "{scrub:?}");
        assert_eq!(scrub.running, None);
        scrub
    }

    fn report(&self) -> PgReport {
        self.nodes[&self.primary()].pg.as_ref().unwrap().report()
    }

    fn tell_time(&mut self, unix_ms: u64) {
        for osd in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.step(osd, Input::WallClock { unix_ms });
        }
        self.run(20);
    }

    #[track_caller]
    fn assert_equal_and_clean(&self) {
        let report = self.report();
        assert!(report.state.clean && !report.state.inconsistent, "{report:?}");
        let first = &self.nodes[&A].disk.objects;
        for (osd, node) in &self.nodes {
            assert!(node.disk.objects == *first, "{osd} differs");
            assert!(node.disk.objects.values().all(|object| !object.rotten), "{osd} is rotten");
            assert_eq!(node.slots, [], "{osd} keeps slots");
        }
    }
}

#[test]
fn equal_copies_are_verified_and_counted() {
    let mut cluster = Cluster::start(&[A, B, C]);
    cluster.fill(11);
    for kind in [ScrubKind::Shallow, ScrubKind::Deep, ScrubKind::Repair] {
        let scrub = cluster.scrub(kind);
        assert_eq!((scrub.objects_verified, scrub.objects_inconsistent, scrub.copies_repaired), (11, 0, 0));
    }
    cluster.assert_equal_and_clean();
}

#[test]
fn rot_that_nobody_reads_is_found_by_a_deep_scrub_and_repaired() {
    for osd in [A, B, C] {
        let mut cluster = Cluster::start(&[A, B, C]);
        cluster.fill(9);
        cluster.forget_log();
        cluster.damage(osd, "object-3", |object| object.rotten = true);
        let shallow = cluster.scrub(ScrubKind::Shallow);
        assert_eq!((shallow.objects_verified, shallow.copies_repaired), (9, 0), "no bytes are read");
        let deep = cluster.scrub(ScrubKind::Deep);
        assert_eq!((deep.objects_verified, deep.objects_inconsistent, deep.copies_repaired), (9, 0, 1));
        assert_eq!((cluster.nodes[&osd].damaged, cluster.nodes[&osd].repaired), (1, 1));
        cluster.assert_equal_and_clean();
    }
}

#[test]
fn counts_that_have_drifted_are_put_right_when_nothing_is_written_meanwhile() {
    let mut cluster = Cluster::start(&[A, B, C]);
    cluster.fill(7);
    let before = (cluster.report().objects, cluster.report().bytes);
    assert_eq!(before, (7, 7 * 150));
    let holding = &mut cluster.nodes.get_mut(&A).unwrap().pg.as_mut().unwrap().holding;
    (holding.objects, holding.bytes) = (9, 1);
    cluster.scrub(ScrubKind::Shallow);
    assert_eq!((cluster.report().objects, cluster.report().bytes), before);
    cluster.assert_equal_and_clean();
}

#[test]
fn one_good_copy_of_three_repairs_the_others() {
    let mut cluster = Cluster::start(&[A, B, C]);
    cluster.fill(3);
    cluster.damage(A, "object-1", |object| object.rotten = true);
    cluster.damage(C, "object-1", |object| object.rotten = true);
    assert_eq!(cluster.scrub(ScrubKind::Deep).copies_repaired, 2);
    cluster.assert_equal_and_clean();
}

#[test]
fn every_kind_of_wrong_copy_is_repaired_wherever_it_is() {
    let kinds: [Damage; 6] = [
        ("bytes", |object| object.data[100] ^= 1),
        ("size", |object| object.data.truncate(20)),
        ("attribute", |object| drop(object.attrs.insert(b"attr".to_vec(), Bytes::from_static(b"w")))),
        ("row", |object| drop(object.rows.remove(b"row".as_slice()))),
        ("no version", |object| drop(object.attrs.remove(VERSION_ATTR))),
        ("old version", |object| {
            let old = LogVersion { epoch: Epoch(1), counter: 1 };
            object.attrs.insert(VERSION_ATTR.to_vec(), exec::version_value(old));
        }),
    ];
    for trimmed in [false, true] {
        for osd in [A, B, C] {
            let mut cluster = Cluster::start(&[A, B, C]);
            cluster.fill(20);
            if trimmed {
                cluster.forget_log();
            }
            for (index, (what, change)) in (5..).zip(kinds) {
                cluster.damage(osd, &object_name(index), change);
                let repaired = cluster.scrub(ScrubKind::Deep).copies_repaired;
                assert_eq!(repaired, u64::from(index) - 4, "{what} on {osd}, trimmed: {trimmed}");
                cluster.assert_equal_and_clean();
            }
            cluster.lose(osd, "object-15");
            assert_eq!(cluster.scrub(ScrubKind::Shallow).copies_repaired, 7, "lost on {osd}, trimmed: {trimmed}");
            cluster.assert_equal_and_clean();
        }
    }
}

#[test]
fn a_copy_of_which_not_even_the_version_can_be_read_is_repaired_by_a_shallow_scrub() {
    for trimmed in [false, true] {
        for osd in [A, B, C] {
            let mut cluster = Cluster::start(&[A, B, C]);
            cluster.fill(5);
            if trimmed {
                cluster.forget_log();
            }
            cluster.damage(osd, "object-3", |object| object.unreadable = true);
            assert_eq!(cluster.scrub(ScrubKind::Shallow).copies_repaired, 1, "on {osd}, trimmed: {trimmed}");
            cluster.assert_equal_and_clean();
        }
    }
}

#[test]
fn what_was_deleted_and_is_still_there_is_removed_only_on_the_log_s_word() {
    for osd in [A, B] {
        let mut cluster = Cluster::start(&[A, B, C]);
        cluster.fill(6);
        let zombie = cluster.nodes[&osd].disk.objects[&key("object-2")].clone();
        cluster.ask("object-2", vec![ObjectOp::Remove]);
        cluster.run(1);
        cluster.nodes.get_mut(&osd).unwrap().disk.objects.insert(key("object-2"), zombie.clone());
        assert_eq!(cluster.scrub(ScrubKind::Shallow).copies_repaired, 1);
        cluster.assert_equal_and_clean();
        cluster.forget_log();
        cluster.nodes.get_mut(&osd).unwrap().disk.objects.insert(key("object-2"), zombie);
        let scrub = cluster.scrub(ScrubKind::Deep);
        assert_eq!((scrub.objects_inconsistent, scrub.copies_repaired), (1, 1), "two disks may have lost it");
        assert!(cluster.report().state.inconsistent);
        assert!(cluster.nodes[&osd].disk.objects.contains_key(&key("object-2")), "nothing is touched");
        let scrub = cluster.scrub(ScrubKind::Repair);
        assert_eq!((scrub.objects_inconsistent, scrub.copies_repaired), (0, 3), "the last copy is not given up");
        cluster.assert_equal_and_clean();
        let exists = |cluster: &Cluster, osd: &OsdId| cluster.nodes[osd].disk.objects.contains_key(&key("object-2"));
        assert!([A, B, C].iter().all(|osd| exists(&cluster, osd)));
        cluster.ask("object-2", vec![ObjectOp::Remove]);
        cluster.run(1);
        assert!(![A, B, C].iter().any(|osd| exists(&cluster, osd)), "who meant that deletes it");
    }
}

#[test]
fn without_a_majority_nothing_is_overwritten_and_it_is_reported_until_it_is_right() {
    let mut cluster = Cluster::start(&[A, B]);
    cluster.fill(5);
    cluster.damage(B, "object-4", |object| object.data[7] ^= 1);
    let before = (cluster.nodes[&A].disk.objects.clone(), cluster.nodes[&B].disk.objects.clone());
    for kind in [ScrubKind::Deep, ScrubKind::Repair] {
        let scrub = cluster.scrub(kind);
        assert_eq!((scrub.objects_inconsistent, scrub.copies_repaired), (1, 0));
        assert!(scrub.examples[0].starts_with("object-4: osd."), "{:?}", scrub.examples);
        assert_eq!(before, (cluster.nodes[&A].disk.objects.clone(), cluster.nodes[&B].disk.objects.clone()));
    }
    assert!(cluster.report().state.inconsistent && cluster.report().state.clean);
    assert_eq!(cluster.scrub(ScrubKind::Shallow).objects_inconsistent, 1, "who reads no bytes cannot take it back");
    let kept = cluster.nodes[&B].pg.as_ref().unwrap().scrub.record.clone();
    assert_eq!(kept.inconsistent[0].copies.len(), 1, "the other member knows, too: {kept:?}");
    assert_eq!(kept.inconsistent[0].copies[0].fault, CopyFault::Data);
    cluster.stop(A);
    cluster.restart(A);
    cluster.run(10);
    assert!(cluster.report().state.inconsistent, "a restart does not forget it");
    cluster.put("object-4", 9);
    cluster.run(1);
    assert_eq!(cluster.scrub(ScrubKind::Deep).objects_inconsistent, 0);
    cluster.assert_equal_and_clean();
}

#[test]
fn more_than_a_few_wrong_copies_wait_for_a_person() {
    let mut cluster = Cluster::start(&[A, B, C]);
    cluster.fill(12);
    for index in 0..8 {
        cluster.damage(B, &object_name(index), |object| object.rotten = true);
    }
    let scrub = cluster.scrub(ScrubKind::Deep);
    assert_eq!((scrub.copies_repaired, scrub.objects_inconsistent), (5, 3));
    assert_eq!(scrub.objects_verified, 9);
    let scrub = cluster.scrub(ScrubKind::Repair);
    assert_eq!((scrub.copies_repaired, scrub.objects_inconsistent), (8, 0));
    cluster.assert_equal_and_clean();
}

#[test]
fn a_write_does_not_wait_for_a_scrub_before_it_has_disturbed_it_often_and_then_not_long() {
    let mut cluster = Cluster::start(&[A, B, C]);
    cluster.fill(3);
    // The answers of one member are on their way for ever.
    cluster.keep = Some(|from, _, body| from == C && is_scrub(body, |body| matches!(body, ScrubBody::Map(_))));
    cluster.wish(ScrubKind::Deep);
    cluster.run(1);
    // The first object in key order: a chunk that becomes smaller still has it.
    let first = ["object-0", "object-1", "object-2"].into_iter().min_by_key(|object| key(object)).unwrap();
    for value in 0..4 {
        let tid = cluster.put(first, value);
        cluster.deliver_all();
        assert!(cluster.is_done(tid), "write {value} goes on");
        cluster.run(1);
    }
    let tid = cluster.put(first, 9);
    let read = cluster.ask(first, vec![ObjectOp::Stat]);
    let held_since = cluster.now;
    cluster.deliver_all();
    assert!(!cluster.is_done(tid), "the fifth one waits");
    while cluster.outcome(tid).is_none() || cluster.outcome(read).is_none() {
        assert!(cluster.now.since(held_since) <= super::HOLD_MAX + Duration::from_secs(1), "it waits too long");
        cluster.run(1);
    }
    assert!(cluster.is_done(tid) && cluster.is_done(read));
    cluster.keep = None;
    cluster.kept.clear();
    cluster.run(30);
    assert_eq!(cluster.report().scrub.unwrap().objects_verified, 3);
    cluster.assert_equal_and_clean();
}

#[test]
fn a_chunk_that_is_written_all_the_time_is_compared_all_the_same() {
    let mut cluster = Cluster::start(&[A, B, C]);
    cluster.fill(4);
    cluster.damage(C, "object-1", |object| object.rotten = true);
    cluster.wish(ScrubKind::Deep);
    let wished = cluster.map.epoch;
    let mut rounds = 0;
    while cluster.report().scrub.unwrap().served != wished {
        for index in [0, 2, 3] {
            // Writes arrive between any two messages.
            let tid = cluster.put(&object_name(index), 1);
            for _ in 0..6 {
                if let Some((from, to, message)) = cluster.mail.pop_front() {
                    cluster.deliver(from, to, message);
                }
            }
            cluster.now = cluster.now + Duration::from_millis(3);
            for osd in [A, B, C] {
                cluster.step(osd, Input::Tick);
            }
            let _ = tid;
        }
        rounds += 1;
        assert!(rounds < 3_000, "it never ends");
    }
    cluster.run(5);
    assert_eq!(cluster.report().scrub.unwrap().copies_repaired, 1);
    cluster.assert_equal_and_clean();
}

/// Otherwise primaries that hold each other's next slot wait for ever.
#[test]
fn slots_are_taken_by_id_whatever_answer_comes_late() {
    let mut cluster = Cluster::start(&[A, B, C]);
    cluster.fill(4);
    cluster.keep = Some(|_, to, body| to == B && is_scrub(body, |body| matches!(body, ScrubBody::Reserve)));
    cluster.wish(ScrubKind::Shallow);
    cluster.run(1);
    let (from, _, mut late) = cluster.kept.pop_front().unwrap();
    assert_eq!(from, A, "the first slot is asked for");
    late.body = PeerBody::Scrub(ScrubMessage { number: 0, body: ScrubBody::Reserved });
    cluster.deliver(C, A, late);
    cluster.run(30);
    assert!(!cluster.nodes[&C].slots.contains(&Slot::ScrubIncoming), "the last slot is not taken before the first");
    cluster.keep = None;
    cluster.run(10);
    assert_eq!(cluster.report().scrub.unwrap().objects_verified, 4);
}

#[test]
fn the_death_of_a_member_ends_the_pass_and_a_later_one_serves_the_wish() {
    let mut cluster = Cluster::start(&[A, B, C]);
    cluster.fill(8);
    cluster.keep = Some(|_, _, body| is_scrub(body, |body| matches!(body, ScrubBody::Map(_))));
    cluster.wish(ScrubKind::Deep);
    cluster.run(3);
    assert_eq!(cluster.report().scrub.unwrap().running, Some(ScrubKind::Deep));
    let waiting = cluster.put("object-1", 7);
    cluster.stop(C);
    cluster.run(5);
    let report = cluster.report();
    assert!(report.state.active && !report.state.clean);
    assert!(cluster.is_done(waiting), "writes go on with two");
    let scrub = report.scrub.unwrap_or_default();
    assert_eq!((scrub.running, scrub.deep_scrubbed_ms, scrub.served), (None, 0, Epoch(0)));
    assert!(cluster.nodes.values().all(|node| !node.slots.contains(&Slot::ScrubIncoming)));
    cluster.keep = None;
    cluster.damage(B, "object-5", |object| object.rotten = true);
    cluster.restart(C);
    cluster.run(60);
    let scrub = cluster.report().scrub.unwrap();
    assert_eq!((scrub.objects_verified, scrub.copies_repaired), (8, 1), "the wish was not forgotten");
    cluster.assert_equal_and_clean();
}

#[test]
fn the_next_primary_serves_the_wish_when_the_first_one_dies_and_nobody_serves_it_twice() {
    let mut cluster = Cluster::start(&[A, B, C]);
    cluster.fill(8);
    cluster.keep = Some(|_, _, body| is_scrub(body, |body| matches!(body, ScrubBody::Map(_))));
    cluster.wish(ScrubKind::Deep);
    cluster.run(2);
    cluster.stop(A);
    cluster.keep = None;
    cluster.run(5);
    cluster.restart(A);
    cluster.run(60);
    let scrub = cluster.report().scrub.unwrap();
    assert_eq!((scrub.objects_verified, scrub.running), (8, None));
    let served = scrub.served;
    // The others were told: a change of the primary does not begin it again.
    cluster.stop(A);
    cluster.run(5);
    assert_eq!(cluster.report().scrub.unwrap().served, served);
    cluster.restart(A);
    cluster.run(10);
    let marker = cluster.nodes[&A].pg.as_ref().unwrap().scrub.number;
    cluster.run(30);
    assert_eq!(cluster.nodes[&A].pg.as_ref().unwrap().scrub.number, marker, "nothing is asked any more");
}

#[test]
fn a_copy_that_was_found_bad_is_missing_after_a_crash_and_not_trusted() {
    for crashing in [A, B] {
        let mut cluster = Cluster::start(&[A, B, C]);
        cluster.fill(6);
        cluster.damage(B, "object-2", |object| object.rotten = true);
        // What would repair it is lost.
        cluster.keep = Some(|_, _, body| matches!(body, PeerBody::Push(_)));
        cluster.wish(ScrubKind::Deep);
        cluster.run(3);
        let missing = |cluster: &Cluster| cluster.nodes[&B].pg.as_ref().map(|pg| pg.holding.missing.len());
        assert_eq!(missing(&cluster), Some(1));
        assert_eq!(cluster.report().copies_missing, 1, "it is counted");
        cluster.stop(crashing);
        cluster.kept.clear();
        cluster.restart(crashing);
        assert_eq!(missing(&cluster), Some(1), "its disk knows");
        cluster.keep = None;
        cluster.run(60);
        cluster.assert_equal_and_clean();
    }
}

#[test]
fn a_mark_that_comes_again_does_not_take_a_good_copy_away() {
    let mut cluster = Cluster::start(&[A, B, C]);
    cluster.fill(6);
    cluster.damage(B, "object-2", |object| object.rotten = true);
    cluster.wish(ScrubKind::Deep);
    let mut marks = Vec::new();
    for _ in 0..400 {
        while let Some((from, to, message)) = cluster.mail.pop_front() {
            if is_scrub(&message.body, |body| matches!(body, ScrubBody::Mark(_))) {
                marks.push((from, to, message.clone()));
            }
            cluster.deliver(from, to, message);
        }
        cluster.now = cluster.now + Duration::from_millis(20);
        for osd in [A, B, C] {
            cluster.step(osd, Input::Tick);
        }
    }
    assert!(!marks.is_empty());
    cluster.assert_equal_and_clean();
    for (from, to, message) in marks {
        cluster.deliver(from, to, message);
    }
    assert!(cluster.nodes[&B].pg.as_ref().unwrap().holding.missing.is_empty());
    let tid = cluster.put("object-2", 200);
    cluster.run(2);
    assert!(cluster.is_done(tid));
    cluster.assert_equal_and_clean();
}

#[test]
fn the_calendar_has_each_scrubbed_daily_and_deeply_every_week() {
    let mut cluster = Cluster::start(&[A, B, C]);
    cluster.fill(3);
    cluster.tell_time(NOON_MS);
    let hour_ms = u64::try_from(HOUR.as_millis()).unwrap();
    let (mut scrubs, mut deep) = (Vec::new(), Vec::new());
    for hour in 1..=24 * 30 {
        cluster.tell_time(NOON_MS + hour * hour_ms);
        let scrub = cluster.report().scrub.unwrap();
        assert!(scrub.scrub_age_s <= 25 * 3_600 && scrub.deep_scrub_age_s <= 7 * 25 * 3_600, "{hour}: {scrub:?}");
        if scrubs.last() != Some(&scrub.scrubbed_ms) && scrub.scrubbed_ms > 0 {
            scrubs.push(scrub.scrubbed_ms);
        }
        if deep.last() != Some(&scrub.deep_scrubbed_ms) && scrub.deep_scrubbed_ms > 0 {
            deep.push(scrub.deep_scrubbed_ms);
        }
    }
    assert!((29..=42).contains(&scrubs.len()), "{} in thirty days", scrubs.len());
    assert!((4..=7).contains(&deep.len()), "{} deep ones in thirty days", deep.len());
    let stored = crate::rows::load_scrub(&cluster.nodes[&C].disk).unwrap();
    assert_eq!(stored.scrubbed_ms, *scrubs.last().unwrap(), "the others keep the stamps, too");
    cluster.stop(A);
    cluster.run(5);
    cluster.tell_time(NOON_MS + 24 * 30 * hour_ms);
    assert_eq!(cluster.report().scrub.unwrap().scrubbed_ms, stored.scrubbed_ms);
}

/// A small generator: the same seed gives the same run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(sides)).unwrap()
    }
}

#[test]
fn a_storm_of_damage_and_lost_messages_ends_in_equal_copies() {
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let mut cluster = Cluster::start(&[A, B, C]);
        cluster.fill(12);
        if dice.roll(2) == 0 {
            cluster.forget_log();
        }
        for _ in 0..1 + dice.roll(5) {
            let osd = [A, B, C][dice.roll(3) as usize];
            let object = object_name(dice.roll(4) + 4 * (osd.0 - 1)); // no object twice
            match dice.roll(3) {
                0 => cluster.damage(osd, &object, |object| object.rotten = true),
                1 => cluster.damage(osd, &object, |object| object.data[0] ^= 1),
                _ => cluster.damage(osd, &object, |object| drop(object.attrs.remove(b"attr".as_slice()))),
            }
        }
        cluster.wish(ScrubKind::Repair);
        let mut late: Vec<(OsdId, OsdId, PeerMessage)> = Vec::new();
        let mut pending = Vec::new();
        for _ in 0..1_500 {
            cluster.now = cluster.now + Duration::from_millis(10);
            for _ in 0..8 {
                let Some((from, to, message)) = cluster.mail.pop_front() else { break };
                match dice.roll(20) {
                    0 => {}
                    1 => late.push((from, to, message)),
                    2 => {
                        late.push((from, to, message.clone()));
                        cluster.deliver(from, to, message);
                    }
                    _ => cluster.deliver(from, to, message),
                }
            }
            if !late.is_empty() && dice.roll(10) == 0 {
                let (from, to, message) = late.swap_remove(dice.roll(u32::try_from(late.len()).unwrap()) as usize);
                cluster.deliver(from, to, message);
            }
            for osd in [A, B, C] {
                cluster.step(osd, Input::Tick);
            }
            if dice.roll(40) == 0 {
                let object = object_name(dice.roll(12));
                let data = Bytes::from(vec![u8::try_from(dice.roll(256)).unwrap(); 3]).into();
                pending.push(cluster.ask(&object, vec![ObjectOp::Write { offset: 30, data }]));
            }
        }
        cluster.mail.extend(late);
        cluster.run(120);
        for tid in pending {
            assert!(cluster.outcome(tid).is_some(), "seed {seed}: request {tid} is not answered");
        }
        let scrub = cluster.scrub(ScrubKind::Repair);
        assert_eq!((scrub.objects_verified, scrub.objects_inconsistent), (12, 0), "seed {seed}");
        cluster.assert_equal_and_clean();
    }
}
