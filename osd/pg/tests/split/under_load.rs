//! Clients write while the pool is split, OSDs die and come back, and placement follows.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_pg::Limits;
use holdfast_wire::{ClientOutcome, ObjectOp};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::world::{POOL, World};

/// Logs of a few entries: copies trim, lag and are backfilled.
fn small() -> Limits {
    Limits {
        log_entries_min: 4,
        log_entries_max: 12,
        log_trim_batch: 2,
        dups_max: 200,
        backfill_batch: 3,
        piece_bytes: 64,
        ..Limits::default()
    }
}

fn append(number: u64) -> Vec<ObjectOp> {
    vec![ObjectOp::Append { data: number.to_be_bytes().to_vec().into() }]
}

/// What clients believe: each append that was acknowledged is in its object once; those without an answer, at most once.
struct Load {
    objects: Vec<String>,
}

impl Load {
    fn new(objects: usize) -> Load {
        Load { objects: (0..objects).map(|n| format!("object-{n}")).collect() }
    }

    fn write(&self, world: &mut World) {
        let object = self.objects[world.rng.random_range(0..self.objects.len())].clone();
        let number: u64 = world.rng.random();
        world.ask(&object, append(number));
    }

    fn check(&self, world: &mut World) {
        let mut appended: BTreeMap<String, usize> = BTreeMap::new();
        for request in world.requests.values() {
            let done = matches!(request.outcome, Some(ClientOutcome::Done { .. }));
            assert!(done, "{}: {:?}", request.object, request.outcome);
            *appended.entry(request.object.clone()).or_default() += 1;
        }
        for object in &self.objects {
            let bytes = world.read(object).map_or(0, |bytes| bytes.len());
            assert_eq!(bytes, appended.get(object).map_or(0, |count| count * 8), "{object}: each append once");
        }
    }
}

fn storm(seed: u64) -> usize {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (osds, size) = if rng.random() { (3, 3) } else { (5, 3) };
    let first = [1, 2, 3, 4][rng.random_range(0..4)];
    let limits = if rng.random() { small() } else { Limits::default() };
    let mut world = World::new(osds, size, first, limits, rng);
    let load = Load::new(24);
    let mut down: Option<u32> = None;
    for _ in 0..60 {
        load.write(&mut world);
        world.rest();
    }
    for _ in 0..40 {
        match world.rng.random_range(0..12) {
            0..=1 => {
                let pools = world.map.pools[&POOL].pg_num;
                let grown = [pools * 2, pools + 1, pools * 4][world.rng.random_range(0..3)];
                if grown <= 32 && !world.map.placed_as.contains_key(&POOL) {
                    world.split(grown);
                } else if world.rng.random() {
                    let placed = world.map.placed_num(POOL) + world.rng.random_range(1..4);
                    world.publish(|map| {
                        map.spread_pool(POOL, placed);
                    });
                }
            }
            2 if down.is_none() => {
                let osd = world.rng.random_range(0..osds);
                world.kill(osd);
                world.mark_down(osd);
                down = Some(osd);
            }
            3..=4 => {
                if let Some(osd) = down.take() {
                    let gap = world.rng.random_range(0..4) == 0;
                    world.start(osd, gap);
                }
            }
            5 if down.is_none() => {
                // A restart so quick that nobody marked it down first.
                let osd = world.rng.random_range(0..osds);
                world.kill(osd);
                world.start(osd, false);
            }
            6..=7 => world.pass(Duration::from_millis(300)),
            _ => (0..5).for_each(|_| load.write(&mut world)),
        }
        // Rarely to the end: what is under way meets the next change.
        for _ in 0..world.rng.random_range(0..400) {
            if !world.happen() {
                break;
            }
        }
    }
    if let Some(osd) = down {
        world.start(osd, false);
    }
    let pg_num = world.map.pools[&POOL].pg_num;
    world.publish(|map| {
        map.spread_pool(POOL, pg_num);
    });
    world.settle();
    load.check(&mut world);
    world.settle();
    world.idle(Duration::from_secs(2));
    world.check_copies();
    world.splits
}

fn storms(seeds: std::ops::Range<u64>) {
    let splits: usize = seeds
        .map(|seed| {
            let ran = std::panic::catch_unwind(|| storm(seed));
            ran.unwrap_or_else(|panic| {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic)
            })
        })
        .sum();
    assert!(splits > 100, "only {splits} copies were split");
}

#[test]
fn each_append_is_there_once_whatever_is_split_and_whoever_dies_1() {
    storms(0..40);
}

#[test]
fn each_append_is_there_once_whatever_is_split_and_whoever_dies_2() {
    storms(40..80);
}
