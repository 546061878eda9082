//! Processes with random work, and the scheduler that steps, stops and replaces them.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rand::Rng;

use super::world::{Faults, SharedWorld, SimObjects, World};
use crate::testing::actors::{Actor, table_id};
use crate::testing::shape;
use crate::{Affinity, Config, Tables};

const STEPS_MAX: u64 = 400_000;

/// Groups of about seven rows, nobody waits for anybody.
fn config() -> Config {
    Config {
        row_overhead: 100,
        weight_split: 800,
        weight_max: 3000,
        page_rows: 2,
        help_after: Duration::ZERO,
        drop_patience: Duration::from_millis(8),
        cached_groups: 6,
        split_in_background: false,
        ..Config::default()
    }
}

type Process = Pin<Box<dyn Future<Output = ()>>>;

/// A process: a cache of its own and some work.
fn process(world: &SharedWorld, works: u32, drops: bool) -> Process {
    let objects = SimObjects(world.clone());
    Box::pin(async move {
        let actor = Actor::new(objects.clone(), Tables::new(objects, config()), drops);
        for _ in 0..works {
            actor.work().await;
        }
    })
}

/// Steps processes in random order until all are done; stopped ones are replaced by new ones.
fn schedule(world: &SharedWorld, mut processes: Vec<Process>, replace: impl Fn() -> Process) {
    let mut asleep_until = vec![0; processes.len()];
    let mut context = Context::from_waker(std::task::Waker::noop());
    while !processes.is_empty() {
        let (index, crash) = {
            let mut world = world.lock();
            world.step += 1;
            assert!(world.step < STEPS_MAX, "the processes do not come to an end");
            let faults = world.faults;
            if world.chance(faults.late * 2) {
                world.deliver_late(false);
            }
            let index = world.random.random_range(0..processes.len());
            if world.step < asleep_until[index] {
                continue;
            }
            if world.chance(faults.sleep) {
                asleep_until[index] = world.step + world.random.random_range(20..600);
                continue;
            }
            (index, world.chance(faults.crash))
        };
        if crash {
            processes[index] = replace();
        } else if let Poll::Ready(()) = processes[index].as_mut().poll(&mut context) {
            drop(processes.swap_remove(index));
            asleep_until.swap_remove(index);
        }
    }
}

/// Plays a seed to its end, with everything at rest and read once more.
pub fn play(seed: u64) -> SharedWorld {
    let world = World::new(seed, Faults::default());
    let drops = seed.is_multiple_of(3);
    let create = {
        let world = world.clone();
        async move {
            Tables::new(SimObjects(world), config()).create(&table_id(), Affinity::S3).await.unwrap();
        }
    };
    let once = |process: Process| schedule(&world, vec![process], || unreachable!("no crashes now"));
    once(Box::pin(create));

    world.lock().faults = match seed % 5 {
        0 => Faults { sleep: 20, ..Faults::default() },
        1 => Faults { crash: 8, sleep: 10, ..Faults::default() },
        2 => Faults { late: 15, lost_reply: 10, sleep: 10, ..Faults::default() },
        _ => Faults { lost_request: 5, lost_reply: 8, late: 8, crash: 4, sleep: 15 },
    };
    let processes = (0..5).map(|_| process(&world, 16, drops)).collect();
    schedule(&world, processes, || process(&world, 6, drops));

    world.lock().faults = Faults::default();
    world.lock().deliver_late(true);
    let last = {
        let objects = SimObjects(world.clone());
        async move {
            Actor::new(objects.clone(), Tables::new(objects.clone(), config()), false).visit_all().await;
            let found = shape::check(&objects, &table_id()).await.unwrap();
            let there: Vec<_> = objects.0.lock().pool.objects.keys().cloned().collect();
            assert!(found.iter().eq(&there), "an object is left over: {found:?} and {there:?}");
        }
    };
    once(Box::pin(last));
    world
}
