//! Crashes: at every IO of many random runs, the store reopens to a state that the model allows.
#![allow(clippy::unwrap_used)]

mod common;

use common::{History, IDENTITY, MemEngine, Model, random_tx, reopen, tiny};
use holdfast_store::{Engine, Fault, MemDevice, MemIndex, Options, SubmitError, Superblock, Transaction};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Runs random actions until one fails (the crash) or `steps` are done. The same seed does the same.
fn run(engine: &MemEngine, history: &mut History, model: &mut Model, rng: &mut SmallRng, steps: usize) {
    for _ in 0..steps {
        let ok = match rng.random_range(0..16) {
            0..=8 => {
                let mut after = model.clone();
                let tx: Transaction = random_tx(rng, &mut after, 2500);
                match engine.submit(tx.clone()) {
                    Ok(receipt) => {
                        history.submitted.push((receipt.position, tx));
                        *model = after;
                        true
                    }
                    Err(SubmitError::NoSpace { .. } | SubmitError::TooLarge { .. }) => true,
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
    let engine = match Engine::open(device.clone(), index.clone(), options.clone()) {
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

/// Segments of a few records on a device of eight: long runs use each several times.
fn new_engine(seed: u64) -> (Options, u64, MemDevice, MemIndex, MemEngine) {
    let sector_bytes = if seed.is_multiple_of(2) { 512 } else { 4096 };
    let options = Options { segment_bytes: sector_bytes.max(2048) * 8, ..tiny(sector_bytes) };
    let segments_bytes = 8 * u64::from(options.segment_bytes);
    let (device, index) = (MemDevice::new((128 << 10) + segments_bytes), MemIndex::new());
    let engine = Engine::format(device.clone(), index.clone(), IDENTITY, options.clone()).unwrap();
    (options, segments_bytes, device, index, engine)
}

/// What a campaign has met; see the assertions on it.
#[derive(Debug, Default)]
struct Met {
    crashes: u64,
    /// Crashes after more was written than all segments have bytes.
    wrapped: u64,
    /// Reopenings that found less than was submitted, and those that found more than was acknowledged.
    cut: u64,
    unacknowledged_kept: u64,
}

fn crash_everywhere(seed: u64, met: &mut Met) {
    // Some runs are long enough to go round the device.
    let steps = if seed % 40 < 2 { 200 } else { 12 };
    let mut last_io = u64::MAX;
    let mut crash_at = None;
    loop {
        let (options, segments_bytes, device, index, engine) = new_engine(seed);
        let first = device.io_count();
        let at = crash_at.unwrap_or(first);
        if at > last_io {
            return;
        }
        device.plan(at, Fault::Crash);
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut crashed = Crashed { device: device.clone(), index, history: History::default() };
        run(&engine, &mut crashed.history, &mut Model::default(), &mut rng, steps);
        if device.stats().faults == 0 {
            last_io = device.io_count();
        }
        // A long run is sampled, a short one tried at each IO.
        crash_at = Some(at + if steps > 12 { 11 + (seed / 40) % 7 } else { 1 });
        met.crashes += 1;
        met.wrapped += u64::from(device.stats().bytes_written > segments_bytes);

        let mut rng = SmallRng::seed_from_u64(seed << 16 | at);
        let what = format!("seed {seed}, crash at IO {at}");
        let (mut again, engine, mut model) = recover(&crashed, &options, &mut rng, &what);
        met.cut += u64::from(crashed.history.submitted.last().is_some_and(|(at, _)| *at > again.history.acked));
        met.unacknowledged_kept += u64::from(crashed.history.acked < again.history.acked);
        // A second life: its records follow what the first one left behind, and it crashes too.
        again.device.plan(again.device.io_count() + rng.random_range(0..12), Fault::Crash);
        run(&engine, &mut again.history, &mut model, &mut rng, 8);
        recover(&again, &options, &mut rng, &format!("{what}, second crash"));
    }
}

fn crash_seeds(seeds: std::ops::Range<u64>) {
    let mut met = Met::default();
    seeds.for_each(|seed| crash_everywhere(seed, &mut met));
    println!("{met:?}");
    let enough = met.crashes > 2000 && met.wrapped > 20 && met.cut > 500 && met.unacknowledged_kept > 200;
    assert!(enough, "the campaign has not met enough: {met:?}");
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

/// A life that was closed, one that crashes, and a superblock that rots before the next: nothing acknowledged is lost,
/// and what was cut off stays cut off.
#[test]
fn a_rotten_superblock_copy_after_a_crash_loses_nothing_that_was_acknowledged() {
    let mut rotten = [0, 0];
    for seed in 0..300 {
        let (options, _, device, index, engine) = new_engine(seed);
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut model = Model::default();
        run(&engine, &mut History::default(), &mut model, &mut rng, 6);
        engine.close().unwrap();
        drop(engine);
        let base = model.clone();
        let engine = reopen(&device, &index, &options);
        let history = History { base, submitted: Vec::new(), acked: engine.durable_position() };
        let mut life = (Crashed { device, index, history }, engine, model);
        for round in 0..4 {
            let (crashed, engine, model) = &mut life;
            run(engine, &mut crashed.history, model, &mut rng, 6);
            if crashed.history.submitted.len() > 3 && rng.random_range(0..4) == 0 {
                let _ = engine.close(); // so that the copies say closed in some lives
                crashed.history.acked = crashed.history.acked.max(engine.durable_position());
            }
            let whole = Superblock::read(&crashed.device).unwrap();
            assert!(whole.1, "both copies are as they should be after every opening");
            let newest = rng.random_range(0..3) > 0;
            let copy = (whole.0.generation + u64::from(!newest)) % 2;
            rotten[usize::from(newest)] += 1;
            crashed.device.flip(copy * (64 << 10) + rng.random_range(0..128), rng.random_range(0..8));
            life = recover(
                &life.0,
                &options,
                &mut rng,
                &format!("seed {seed}, round {round}, newest copy rotten: {newest}"),
            );
        }
    }
    assert!(rotten.iter().all(|count| *count > 300), "{rotten:?}");
}

#[test]
fn reads_see_all_that_was_submitted_and_reopening_changes_nothing() {
    for seed in 0..150 {
        let (options, _, device, index, engine) = new_engine(seed);
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut model = Model::default();
        let mut history = History::default();
        for round in 0..20 {
            run(&engine, &mut history, &mut model, &mut rng, 10);
            model.check(&engine, &format!("seed {seed}, round {round}"));
        }
        engine.close().unwrap();
        model.check(&reopen(&device, &index, &options), &format!("seed {seed}, reopened"));
    }
}
