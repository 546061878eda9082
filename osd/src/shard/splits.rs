//! Tests: an empty child never takes the place of what a copy on this OSD could not be split off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_map::{ClusterMap, OsdInfo, Pool, PoolKind};
use holdfast_pg::{Input, Pg};
use holdfast_store::{Store, Transaction, TxOp};
use holdfast_types::{DiskUuid, Epoch, Incarnation, OsdId, PgId, PoolId};
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;

use super::tests::{CLUSTER, shared_with};
use super::{Event, Fatal, Inbox, MapStep, STALL_GRACE, Shard, Shards};
use crate::copies::{CaughtUp, take_up};
use crate::local::{Local, collection_of};

const ME: OsdId = OsdId(0);
const POOL: PoolId = PoolId(1);
const PARENT: PgId = PgId { pool: POOL, seed: 0 };
const CHILD: PgId = PgId { pool: POOL, seed: 1 };

/// A pool of one placement group, which this OSD keeps alone.
fn map(epoch: u64) -> ClusterMap {
    let mut map = ClusterMap::empty(CLUSTER);
    map.epoch = Epoch(epoch);
    let info = OsdInfo {
        disk: DiskUuid([1; 16]),
        incarnation: Incarnation(1),
        address: "osd-0:0".to_owned(),
        up: true,
        in_cluster: true,
        reweight: 0x1_0000,
        up_from: Epoch(1),
        up_thru: Epoch(1),
        down_at: Epoch(0),
        dead_epoch: Epoch(0),
        formatted_at: Epoch(0),
    };
    map.osds.insert(ME, info);
    let kind = PoolKind::Replicated { size: 1, min_size: 1 };
    let (name, application) = ("pool".to_owned(), "test".to_owned());
    map.pools.insert(POOL, Pool { name, kind, pg_num: 1, rule: 0, created: Epoch(1), application });
    map.next_pool = PoolId(2);
    map.pg_temp.insert(PARENT, vec![ME]);
    map
}

/// The same pool in a later map, split in two.
fn split_map(epoch: u64) -> ClusterMap {
    let mut map = map(epoch);
    assert!(map.split_pool(POOL, 2));
    map
}

/// The shard of the parent and the shard of the child, without their threads.
struct Two {
    _directory: TempDir,
    fatal: UnboundedReceiver<Fatal>,
    parent: Shard,
    child: Shard,
    inboxes: Vec<Inbox>,
}

impl Two {
    /// As of map 1; the copy of the parent has one object in each part.
    fn new() -> Two {
        let directory = tempfile::tempdir().expect("a directory");
        let (shards, inboxes) = Shards::new(2);
        assert_ne!(shards.index_of(PARENT), shards.index_of(CHILD));
        let (fatal, fatal_seen) = tokio::sync::mpsc::unbounded_channel();
        let shared = shared_with(directory.path(), &shards, STALL_GRACE, fatal);
        let shard = |pg| {
            let step = MapStep::new(Arc::new(map(1)));
            Shard::new(shards.index_of(pg), shared.clone(), step, BTreeMap::new(), BTreeSet::new())
        };
        let (parent, child) = (shard(PARENT), shard(CHILD));
        let mut two = Two { _directory: directory, fatal: fatal_seen, parent, child, inboxes };
        two.parent.create(PARENT);
        for first in [0x00, 0x80] {
            let o = holdfast_store::ObjectKey::new(vec![first, 0, 0, 0, b'o']).expect("a key");
            let ops = vec![TxOp::Touch { c: collection_of(PARENT), o }];
            two.store().submit(Transaction { ops }, |_| {}).expect("submitted");
        }
        two
    }

    fn store(&self) -> &Store {
        &self.parent.shared.store
    }

    /// The parent as a run finds it that has no map from before the split.
    fn taken_up(&self) -> Pg {
        let shared = &self.parent.shared;
        let view = Local::new(shared.store.engine(), PARENT, &shared.space, &shared.leases);
        let map = Arc::new(split_map(3));
        Pg::load(PARENT, ME, shared.incarnation, map, shared.limits, &view).expect("a copy")
    }

    /// Gives both shards a map, and has them handle what they have to say to each other about it.
    fn take(&mut self, map: ClusterMap) {
        let step = MapStep::new(Arc::new(map));
        self.parent.handle(Event::Map(step.clone()), None);
        self.child.handle(Event::Map(step), None);
        self.talk();
    }

    fn talk(&mut self) {
        for shard in [&mut self.parent, &mut self.child] {
            let events = &self.inboxes[shard.index].events;
            while let Ok(event) = events.try_recv() {
                shard.handle(event, None);
            }
        }
    }

    fn objects(&self, pg: PgId) -> usize {
        let listed = self.store().list_objects(collection_of(pg), None, 10);
        listed.map_or(0, |objects| objects.len())
    }

    fn child_is_here(&self) -> bool {
        self.child.pgs.contains_key(&CHILD) || self.store().collection_exists(collection_of(CHILD))
    }
}

#[tokio::test]
async fn a_child_gets_its_part_of_the_copy_and_no_other_shard_makes_it() {
    let mut two = Two::new();
    let step = MapStep::new(Arc::new(split_map(2)));
    two.child.handle(Event::Map(step.clone()), None);
    assert!(!two.child_is_here(), "the shard of the parent has not spoken");
    two.parent.handle(Event::Map(step), None);
    two.talk();
    assert!(two.child.pgs.contains_key(&CHILD));
    assert_eq!((two.objects(PARENT), two.objects(CHILD)), (1, 1));
    assert!(two.fatal.try_recv().is_err());
}

#[tokio::test]
async fn no_empty_child_is_made_when_the_store_refuses_the_split() {
    let mut two = Two::new();
    two.store().close().expect("closed");
    two.take(split_map(2));
    assert!(matches!(two.fatal.try_recv(), Ok(Fatal::Store(_))), "this run ends");
    assert!(!two.child_is_here(), "it would hide the half of the copy that the next run splits off");
    assert_eq!(two.objects(PARENT), 2);
}

#[tokio::test]
async fn no_empty_child_is_made_before_a_copy_that_owes_it_has_had_its_turn() {
    let mut two = Two::new();
    two.talk();
    // Fed from map 1 for the sake of other copies; the maps up to 3 are lost, so this one is as of 3 and splits at its first
    // step.
    let loaded = two.taken_up();
    assert_eq!(loaded.owed_children(), [CHILD]);
    two.parent.pgs.insert(PARENT, loaded);
    two.child.awaited = super::Awaited::of(BTreeSet::from([CHILD]));
    two.take(split_map(3));
    assert!(!two.child_is_here());
    two.parent.step_pg(PARENT, Input::Tick);
    two.talk();
    assert!(two.child.pgs.contains_key(&CHILD));
    assert_eq!((two.objects(PARENT), two.objects(CHILD)), (1, 1));
    assert_eq!(two.child.step.map.epoch, Epoch(3), "the map that waited for it is taken");
}

#[tokio::test]
async fn a_child_that_is_here_already_ends_the_run_and_keeps_what_was_split_off() {
    let mut two = Two::new();
    two.parent.handle(Event::Map(MapStep::new(Arc::new(split_map(2)))), None);
    // What no map and no disk can bring about: the shard of the child did not wait.
    let shared = &two.child.shared;
    let early = Pg::create(CHILD, ME, shared.incarnation, Arc::new(split_map(2)), shared.limits);
    two.child.pgs.insert(CHILD, early);
    two.talk();
    assert!(matches!(two.fatal.try_recv(), Ok(Fatal::NotTaken(_))));
    assert!(two.child.stopped.contains(&CHILD), "it says and writes nothing more");
    assert_eq!((two.objects(PARENT), two.objects(CHILD)), (1, 1));
}

#[tokio::test]
async fn children_of_a_copy_that_cannot_be_used_are_lost_where_the_run_begins_after_their_split() {
    let directory = tempfile::tempdir().expect("a directory");
    let (shards, _inboxes) = Shards::new(2);
    let (fatal, _fatal_seen) = tokio::sync::mpsc::unbounded_channel();
    let mut shared = shared_with(directory.path(), &shards, STALL_GRACE, fatal);
    let c = collection_of(PARENT);
    let spoilt = TxOp::PutMeta { c, key: b"i".to_vec(), value: bytes::Bytes::from_static(b"spoilt") };
    let ops = vec![TxOp::CreateCollection { c }, spoilt];
    shared.store.submit_and_wait(Transaction { ops }).expect("written");
    let start = Arc::new(split_map(3));
    let maps = CaughtUp { start: start.clone(), kept: Vec::new(), new: Vec::new() };
    let taken = take_up(shared.store.engine(), ME, shared.incarnation, &maps, shared.limits).expect("taken up");
    let run = Arc::get_mut(&mut shared).expect("no shard has it yet");
    run.lost_copies = taken.lost.iter().map(|(pg, _)| *pg).collect();
    run.lost_now = true;
    let mut child =
        Shard::new(shards.index_of(CHILD), shared.clone(), MapStep::new(start), BTreeMap::new(), BTreeSet::new());
    child.create(CHILD);
    assert_eq!(shared.counters.copies_lost(), 1, "it is no copy that never had anything");
}
