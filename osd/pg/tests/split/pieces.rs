//! Single promises of a split.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_map::{ScrubKind, split_from};
use holdfast_pg::{Input, Limits, Pg};
use holdfast_types::PgId;
use holdfast_wire::{ClientOutcome, ObjectOp};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::world::{POOL, World};

fn world(osds: u32, pg_num: u32, limits: Limits) -> World {
    let mut world = World::new(osds, 3, pg_num, limits, SmallRng::seed_from_u64(9));
    world.settle();
    world
}

fn append(byte: u8) -> Vec<ObjectOp> {
    vec![ObjectOp::Append { data: vec![byte].into() }]
}

#[test]
fn a_request_of_before_the_split_is_answered_as_it_was_and_never_executed_again() {
    // Logs so short that most requests are dups, or remembered by their session only.
    let limits =
        Limits { log_entries_min: 3, log_entries_max: 6, log_trim_batch: 1, dups_max: 30, ..Limits::default() };
    let mut world = world(3, 1, limits);
    world.lowest = Some(1);
    let mut asked = Vec::new();
    for n in 0..60u8 {
        asked.push(world.ask(&format!("object-{}", n % 12), append(n)));
        world.rest();
    }
    let absent = world.ask("absent", vec![ObjectOp::AssertAbsent, ObjectOp::Remove]);
    world.settle();
    let failed = world.requests[&absent].outcome.clone();
    let before: BTreeMap<String, _> =
        (0..12).map(|n| format!("object-{n}")).map(|o| (o.clone(), world.read(&o))).collect();
    for pg_num in [2, 8] {
        world.split(pg_num);
        world.publish(|map| {
            map.spread_pool(POOL, pg_num);
        });
        world.settle();
        let mut forgotten = 0;
        for number in asked.iter().chain([&absent]) {
            let request = world.requests.get_mut(number).unwrap();
            let (first, object) = (request.outcome.take().unwrap(), request.object.clone());
            world.send(*number);
            world.settle();
            let again = world.requests.get_mut(number).unwrap().outcome.replace(first.clone()).unwrap();
            forgotten += usize::from(matches!(again, ClientOutcome::Refused(_)));
            assert!(
                again == first || matches!(again, ClientOutcome::Refused(_)),
                "{object}: {first:?}, then {again:?}"
            );
        }
        assert!(forgotten < asked.len() * 2 / 3, "{forgotten} answers are not kept");
        for (object, bytes) in &before {
            assert_eq!(world.read(object), *bytes, "{object} with {pg_num} placement groups");
        }
    }
    assert!(matches!(failed, Some(ClientOutcome::Failed { .. } | ClientOutcome::Done { .. })));
    world.settle();
    world.idle(Duration::from_secs(1));
    world.check_copies();
}

#[test]
fn counts_that_a_split_has_guessed_become_exact_while_clients_write() {
    let mut world = world(3, 1, Limits { backfill_batch: 1, ..Limits::default() });
    for n in 0..60u8 {
        let sizes_differ = ObjectOp::WriteFull { data: vec![n; usize::from(n) * 7].into() };
        world.ask(&format!("object-{n}"), vec![sizes_differ]);
    }
    world.settle();
    world.split(2);
    world.settle();
    let reported = |world: &World| -> BTreeMap<PgId, (u64, u64)> {
        let pgs = world.nodes.iter().flat_map(|node| &node.pgs).filter(|(_, pg)| pg.is_primary());
        pgs.map(|(id, pg)| (*id, (pg.report().objects, pg.report().bytes))).collect()
    };
    let guessed = reported(&world);
    assert_eq!(guessed.len(), 2);
    // Counting takes three seconds: it is behind and ahead of what changes.
    for n in 0..40u8 {
        let (old, new) = (format!("object-{}", n.wrapping_mul(37) % 60), format!("new-{n}"));
        world.ask(&old, if n % 3 == 0 { vec![ObjectOp::Remove] } else { append(n) });
        world.ask(&new, append(n));
        world.idle(Duration::from_millis(50));
    }
    world.settle();
    world.idle(Duration::from_secs(10));
    world.check_copies();
    assert_ne!(guessed, reported(&world));
}

#[test]
fn scrubs_after_a_split_find_what_is_damaged_and_nothing_else() {
    let mut world = world(3, 1, Limits::default());
    for n in 0..60u8 {
        world.ask(&format!("object-{n}"), append(n));
    }
    world.settle();
    world.split(4);
    world.settle();
    for kind in [ScrubKind::Deep, ScrubKind::Repair] {
        for report in world.scrub(kind) {
            let scrub = report.scrub.unwrap();
            assert_eq!((scrub.objects_inconsistent, scrub.copies_repaired), (0, 0), "{kind:?} of {}", report.pg);
            assert_eq!((scrub.objects_verified, report.state.inconsistent), (report.objects, false));
        }
    }
    // One bad copy in each part: each is mended by a scrub that nobody has asked to repair.
    let parts: Vec<PgId> = world.nodes[1].disk.visible.keys().copied().collect();
    assert_eq!(parts.len(), 4);
    for pg in parts {
        let collection = world.nodes[1].disk.visible.get_mut(&pg).unwrap();
        collection.objects.values_mut().next().expect("an object in each part").rotten = true;
    }
    for report in world.scrub(ScrubKind::Deep) {
        let scrub = report.scrub.unwrap();
        assert_eq!((scrub.objects_inconsistent, scrub.copies_repaired), (0, 1), "{}: {scrub:?}", report.pg);
    }
    world.check_copies();
}

/// Objects in the order of their keys: key and data.
type Objects = Vec<(Vec<u8>, Vec<u8>)>;

/// What is on a disk, apart from how it came there.
fn contents(world: &World, osd: usize) -> BTreeMap<PgId, Objects> {
    let disk = &world.nodes[osd].disk.visible;
    let objects = |collection: &holdfast_pg::memory::MemoryCollection| {
        collection.objects.iter().map(|(key, object)| (key.as_bytes().to_vec(), object.data.clone())).collect()
    };
    disk.iter().map(|(pg, collection)| (*pg, objects(collection))).collect()
}

#[test]
fn several_splits_missed_give_the_same_parts_one_by_one_or_at_once() {
    for gap in [false, true] {
        let mut world = world(3, 3, Limits::default());
        for n in 0..120u8 {
            world.ask(&format!("object-{n}"), append(n));
        }
        world.settle();
        let before = contents(&world, 1);
        world.kill(1);
        world.mark_down(1);
        world.rest();
        for pg_num in [6, 12, 32] {
            world.split(pg_num);
            world.publish(|map| {
                map.spread_pool(POOL, pg_num);
            });
            world.rest();
        }
        // Nothing else is heard: what it has after its start is its own work.
        world.start(1, gap);
        let after = contents(&world, 1);
        assert_eq!(after.len(), 32, "gap: {gap}");
        for (pg, objects) in &before {
            let parts = after.iter().filter(|(part, _)| split_from(**part, 3) == *pg);
            let mut together: Vec<_> = parts.flat_map(|(_, objects)| objects.clone()).collect();
            together.sort();
            assert_eq!(together, *objects, "{pg}");
        }
        for (pg, objects) in &after {
            let here = |key: &[u8]| {
                let key = holdfast_pg::ObjectKey::from_bytes(key).unwrap();
                world.map.pg_of(POOL, &key.name()) == Some(*pg)
            };
            assert!(objects.iter().all(|(key, _)| here(key)), "{pg}");
        }
        world.settle();
        world.idle(Duration::from_secs(1));
        world.check_copies();
    }
}

#[test]
fn a_crash_before_or_after_the_transaction_of_a_split_leaves_one_copy_or_all_parts() {
    for survives in [false, true] {
        let mut world = world(3, 1, Limits::default());
        for n in 0..40u8 {
            world.ask(&format!("object-{n}"), append(n));
        }
        world.settle();
        world.map.epoch = world.map.epoch.next();
        assert!(world.map.split_pool(POOL, 4));
        let map = std::sync::Arc::new(world.map.clone());
        world.maps.insert(map.epoch.0, map.clone());
        let parent = PgId { pool: POOL, seed: 0 };
        world.nodes[1].fed = map.epoch.0;
        world.step(1, parent, Input::Map { map: map.clone(), members: map.members(parent) });
        assert_eq!(world.splits, 1);
        if survives {
            assert!(world.sync(1), "the split comes first");
        }
        world.nodes[1].disk.lose_unsynced();
        world.kill(1);
        let disk = &world.nodes[1].disk.durable;
        assert_eq!(disk.len(), if survives { 4 } else { 1 });
        for (id, collection) in disk {
            let stored = Pg::stored_epoch(collection).unwrap().unwrap();
            assert_eq!(stored == map.epoch, survives, "{id} is as of {stored}");
        }
        world.mark_down(1);
        world.start(1, false);
        world.settle();
        world.idle(Duration::from_secs(1));
        world.check_copies();
    }
}
