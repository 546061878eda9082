//! Crashes: at every IO of many random runs, the store reopens to a state that the model allows.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use holdfast_store::{Fault, MemDevice, MemIndex, Options, SubmitError, Transaction};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Runs random actions until one fails (the crash) or `steps` are done. The same seed does the same.
fn run(engine: &MemEngine, history: &mut History, model: &mut Model, rng: &mut SmallRng, steps: usize) {
    for _ in 0..steps {
        let ok = match rng.random_range(0..16) {
            0..=8 => {
                let mut after = model.clone();
                let tx: Transaction = random_tx(rng, &mut after, 5000);
                match engine.submit(tx.clone()) {
                    Ok(receipt) => {
                        history.submitted.push((receipt.position, tx));
                        *model = after;
                        true
                    }
                    Err(SubmitError::NoSpace { .. }) => true,
                    Err(_) => false,
                }
            }
            9..=12 => match engine.commit() {
                Ok(receipt) => {
                    history.acked = receipt.position;
                    true
                }
                Err(_) => false,
            },
            13 => engine.flush_index().is_ok(),
            _ => {
                let ok = engine.clean_step(8000).is_ok();
                history.acked = history.acked.max(engine.durable_position());
                ok
            }
        };
        if !ok {
            return;
        }
    }
}

struct Crashed {
    device: MemDevice,
    index: MemIndex,
    history: History,
}

/// Reopens after a crash, checks, and gives the engine and its state.
fn recover(crashed: &Crashed, options: &Options, rng: &mut SmallRng, what: &str) -> (Crashed, MemEngine, Model) {
    let device = crashed.device.crash(rng);
    let index = crashed.index.crash(rng);
    let engine = match holdfast_store::Engine::open(device.clone(), index.clone(), options.clone()) {
        Ok(engine) => engine,
        Err(error) => panic!("{what}: does not open: {error:?}"),
    };
    let found = engine.durable_position();
    assert!(found >= crashed.history.acked, "{what}: acknowledged {}, found {found}", crashed.history.acked);
    let model = crashed.history.at(found);
    model.check(&engine, what);
    let history = History { base: model.clone(), submitted: Vec::new(), acked: found };
    (Crashed { device, index, history }, engine, model)
}

fn crash_everywhere(seed: u64) -> u64 {
    let options = tiny(if seed.is_multiple_of(2) { 512 } else { 4096 });
    // Every eighth run is long enough to wrap around the device.
    let steps = if seed.is_multiple_of(8) { 60 } else { 12 };
    let mut crashes = 0;
    let mut last_io = u64::MAX;
    let mut crash_at = None;
    loop {
        let (device, index, engine) = new_engine(&options);
        let first = device.io_count();
        let at = crash_at.unwrap_or(first);
        if at > last_io {
            return crashes;
        }
        device.plan(at, Fault::Crash);
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut crashed = Crashed { device: device.clone(), index, history: History::default() };
        run(&engine, &mut crashed.history, &mut Model::default(), &mut rng, steps);
        if device.stats().faults == 0 {
            last_io = device.io_count();
        }
        // A long run is sampled, a short one tried at each IO.
        crash_at = Some(at + if steps > 12 { 1 + (seed / 8) % 7 } else { 1 });
        crashes += 1;

        let mut rng = SmallRng::seed_from_u64(seed << 16 | at);
        let what = format!("seed {seed}, crash at IO {at}");
        let (mut again, engine, mut model) = recover(&crashed, &options, &mut rng, &what);
        // A second life: its records follow what the first one left behind, and it crashes too.
        again.device.plan(again.device.io_count() + rng.random_range(0..12), Fault::Crash);
        run(&engine, &mut again.history, &mut model, &mut rng, 8);
        recover(&again, &options, &mut rng, &format!("{what}, second crash"));
    }
}

fn crash_seeds(seeds: std::ops::Range<u64>) {
    let crashes: u64 = seeds.map(crash_everywhere).sum();
    assert!(crashes > 500, "only {crashes} crashes");
}

// 2,000 sequences in parts, so that they run beside each other.
#[test]
fn a_crash_at_any_io_leaves_a_prefix_with_all_that_was_acknowledged_1() {
    crash_seeds(0..500);
}

#[test]
fn a_crash_at_any_io_leaves_a_prefix_with_all_that_was_acknowledged_2() {
    crash_seeds(500..1000);
}

#[test]
fn a_crash_at_any_io_leaves_a_prefix_with_all_that_was_acknowledged_3() {
    crash_seeds(1000..1500);
}

#[test]
fn a_crash_at_any_io_leaves_a_prefix_with_all_that_was_acknowledged_4() {
    crash_seeds(1500..2000);
}

#[test]
fn reads_see_all_that_was_submitted_and_reopening_changes_nothing() {
    for seed in 0..150 {
        let options = tiny(512);
        let (device, index, engine) = new_engine(&options);
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut model = Model::default();
        let mut history = History::default();
        for round in 0..12 {
            run(&engine, &mut history, &mut model, &mut rng, 6);
            model.check(&engine, &format!("seed {seed}, round {round}"));
        }
        engine.close().unwrap();
        model.check(&reopen(&device, &index, &options), &format!("seed {seed}, reopened"));
    }
}
