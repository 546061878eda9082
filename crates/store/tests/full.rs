//! Full devices: whatever is written, however often the power fails, each write is taken or refused for want of space,
//! deletes are taken, and what was deleted can be written again.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::*;
use holdfast_store::{
    Batch, Change, CleanError, Engine, Fault, Index, MemDevice, MemIndex, Options, Position, SubmitError, Transaction,
    TxOp,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Steps of the cleaner for one transaction: each frees something, or moves what it may move in one step.
const STEPS_MAX: u32 = 20_000;

/// A store under test, with what it should hold.
struct World {
    what: String,
    options: Options,
    device: MemDevice,
    index: MemIndex,
    engine: MemEngine,
    history: History,
    model: Model,
    rng: SmallRng,
    /// Bytes that a step of the cleaner moves.
    step_bytes: u64,
    crashes: u32,
}

/// What became of a transaction.
#[derive(Debug, PartialEq)]
enum Outcome {
    Taken,
    /// No space, and cleaning does not help.
    Full,
    /// The power failed meanwhile.
    Crashed,
}

impl World {
    fn new(what: String, options: Options, segments: u64, seed: u64) -> World {
        let device = MemDevice::new((128 << 10) + segments * u64::from(options.segment_bytes));
        let index = MemIndex::new();
        let engine = Engine::format(device.clone(), index.clone(), IDENTITY, options.clone()).unwrap();
        let (history, model) = (History::default(), Model::default());
        let rng = SmallRng::seed_from_u64(seed);
        let mut world =
            World { what, options, device, index, engine, history, model, rng, step_bytes: 1 << 20, crashes: 0 };
        assert_eq!(world.take(Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] }), Outcome::Taken);
        world.commit();
        world
    }

    fn note(&mut self, position: Position, tx: Transaction) {
        self.model.apply(&tx);
        self.history.submitted.push((position, tx));
    }

    /// Reopens after a power cut, and checks what is found.
    fn crash(&mut self) -> Outcome {
        self.crashes += 1;
        self.device = self.device.crash(&mut self.rng);
        self.index = self.index.crash(&mut self.rng);
        self.engine = reopen(&self.device, &self.index, &self.options);
        let found = self.engine.durable_position();
        assert!(found >= self.history.acked, "{}: acknowledged {}, found {found}", self.what, self.history.acked);
        self.model = self.history.at(found);
        self.history = History { base: self.model.clone(), submitted: Vec::new(), acked: found };
        Outcome::Crashed
    }

    /// Compares all there is. Where the power fails, it does so before, not while the test reads.
    fn check(&mut self, power_fails: bool) {
        if power_fails {
            self.crash();
        }
        self.model.check(&self.engine, &self.what);
    }

    fn commit(&mut self) -> Outcome {
        match self.engine.commit() {
            Ok(receipt) => self.history.acked = receipt.position,
            Err(_) => return self.crash(),
        }
        // What is durable needs no history; without this, a crash would replay all of it.
        self.history = History { base: self.model.clone(), submitted: Vec::new(), acked: self.history.acked };
        Outcome::Taken
    }

    /// A step of the cleaner; whether it did anything.
    fn clean(&mut self) -> Result<bool, Outcome> {
        match self.engine.clean_step(self.rng.random_range(1..=self.step_bytes)) {
            Ok(progress) => Ok(progress.moved_bytes > 0 || progress.freed_segments > 0),
            Err(CleanError::Submit(error @ SubmitError::NoSpace { .. })) => {
                panic!("{}: the cleaner is stuck at {:?}: {error}", self.what, self.engine.live_bytes())
            }
            Err(_) => Err(self.crash()),
        }
    }

    /// Submits until the transaction is taken or the store is full.
    fn take(&mut self, tx: Transaction) -> Outcome {
        let bytes = tx.payload_bytes();
        for _ in 0..STEPS_MAX {
            match self.engine.submit(tx.clone()) {
                Ok(receipt) => {
                    self.note(receipt.position, tx);
                    return Outcome::Taken;
                }
                Err(SubmitError::NoSpace { cleaning_helps: false, live_bytes, limit_bytes, .. }) => {
                    // An extent counts a little more than its bytes.
                    assert!(
                        live_bytes + bytes + 200 > limit_bytes,
                        "{}: refused below the limit: {live_bytes} of {limit_bytes}",
                        self.what
                    );
                    return Outcome::Full;
                }
                Err(SubmitError::NoSpace { .. }) => {
                    if let Err(outcome) = self.clean() {
                        return outcome;
                    }
                    if self.rng.random_range(0..4) == 0 && self.commit() == Outcome::Crashed {
                        return Outcome::Crashed;
                    }
                }
                Err(SubmitError::Poisoned(_)) => return self.crash(),
                Err(error) => panic!("{}: {error:?}", self.what),
            }
        }
        panic!("{}: {bytes} bytes wait for ever at {:?}", self.what, self.engine.live_bytes());
    }

    fn put(&mut self, name: &str, bytes: usize) -> Outcome {
        let ops = vec![TxOp::Write { c: collection(0), o: object(name), offset: 0, data: data(&mut self.rng, bytes) }];
        self.take(Transaction { ops })
    }

    /// As placement groups do it: an object goes, and a row of the log says so.
    fn delete(&mut self, name: &str) -> Outcome {
        let (c, o) = (collection(0), object(name));
        let log = TxOp::PutMeta { c, key: b"log".to_vec(), value: data(&mut self.rng, 60) };
        let outcome = self.take(Transaction { ops: vec![TxOp::Remove { c, o }, log] });
        assert_ne!(outcome, Outcome::Full, "{}: a delete is refused at {:?}", self.what, self.engine.live_bytes());
        outcome
    }

    fn names(&self) -> Vec<String> {
        let objects = self.model.0.get(&collection(0)).into_iter().flat_map(|c| c.objects.keys());
        objects.map(|o| String::from_utf8(o.as_bytes().to_vec()).unwrap()).collect()
    }

    fn some_name(&mut self) -> Option<String> {
        let names = self.names();
        (!names.is_empty()).then(|| names[self.rng.random_range(0..names.len())].clone())
    }

    /// Bytes of an object: each order of magnitude as often as the others.
    fn some_bytes(&mut self, most: u64) -> usize {
        let magnitude = self.rng.random_range(6.0..(most as f64).log2());
        2f64.powf(magnitude) as usize
    }

    /// Writes new objects until one of `most` bytes and one of 64 are refused.
    fn fill(&mut self, most: u64) {
        let mut refused = 0;
        while refused < 8 {
            let most_now = if refused < 4 { most } else { 128 };
            let (name, bytes) = (format!("{}", self.rng.random_range(0..1_000_000)), self.some_bytes(most_now));
            refused += u32::from(self.put(&name, bytes) == Outcome::Full);
            if self.rng.random_range(0..3) == 0 {
                self.commit();
            }
        }
    }
}

fn full_seeds(seeds: std::ops::Range<u64>, power_fails: bool) {
    let mut crashes = 0;
    for seed in seeds {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0xf011);
        let sector_bytes = [512, 4096][rng.random_range(0..2)];
        let options = Options { segment_bytes: 16 * sector_bytes.max(2048), ..tiny(sector_bytes) };
        // One object in a few has most of a segment.
        let most = u64::from(options.segment_bytes) * rng.random_range(2..14) / 16;
        let mut world = World::new(format!("seed {seed}"), options, rng.random_range(8..24), seed);
        world.step_bytes = [1, most, 1 << 20][rng.random_range(0..3)];
        let mut lives = Vec::new();
        for _ in 0..2 {
            if power_fails {
                world.device.plan(world.device.io_count() + world.rng.random_range(0..3000), Fault::Crash);
            }
            world.fill(most);
            lives.push(world.engine.live_bytes());
            for _ in 0..150 {
                if power_fails && world.rng.random_range(0..30) == 0 {
                    world.device.plan(world.device.io_count() + world.rng.random_range(0..200), Fault::Crash);
                }
                let name = world.some_name();
                let bytes = world.some_bytes(most);
                match (world.rng.random_range(0..10), name) {
                    (0..=2, Some(name)) => drop(world.delete(&name)),
                    (3..=5, Some(name)) => drop(world.put(&name, bytes)),
                    (6, _) => drop(world.put(&format!("new {bytes}"), bytes)),
                    (7, _) => {
                        let c = collection(0);
                        let rows = (0..world.rng.random_range(1..20)).map(|row| (vec![row], Bytes::from(vec![1; 100])));
                        let op = TxOp::PutRows { c, o: object("rows"), rows: rows.collect() };
                        assert_ne!(
                            world.take(Transaction { ops: vec![op] }),
                            Outcome::Full,
                            "seed {seed}: rows refused"
                        );
                    }
                    _ => drop(world.commit()),
                }
            }
            world.check(power_fails);
            for name in world.names() {
                while world.delete(&name) == Outcome::Crashed {}
                if world.rng.random_range(0..3) == 0 {
                    world.commit();
                }
            }
            // A crash may have brought some of them back.
            while world.commit() == Outcome::Crashed {}
            for name in world.names() {
                while world.delete(&name) == Outcome::Crashed || world.commit() == Outcome::Crashed {}
            }
            if world.names().is_empty() {
                assert_eq!(world.engine.live_bytes().0, 0, "seed {seed}: something stays live");
            }
        }
        // The second time as much fits as the first.
        for (live, limit) in lives {
            assert!(live + 128 + 200 > limit, "seed {seed}: full at {live} of {limit}");
        }
        crashes += world.crashes;
    }
    assert!(!power_fails || crashes > 20, "{crashes}");
}

#[test]
fn a_full_store_takes_or_refuses_each_write_and_takes_all_deletes() {
    full_seeds(0..60, false);
}

#[test]
fn a_full_store_takes_or_refuses_each_write_and_takes_all_deletes_though_the_power_fails() {
    full_seeds(1000..1060, true);
}

/// A row of the index by its fields; see `docs/formats/store-index.md`.
fn fields(index: &MemIndex, key: &[u8]) -> std::collections::BTreeMap<u8, u64> {
    let Some(row) = index.get(key).unwrap() else { return Default::default() };
    let mut decoder = minicbor::Decoder::new(&row);
    let mut fields = std::collections::BTreeMap::new();
    for _ in 0..decoder.map().unwrap().unwrap() {
        let field = decoder.u8().unwrap();
        match decoder.datatype().unwrap() {
            minicbor::data::Type::Bytes | minicbor::data::Type::Array => decoder.skip().unwrap(), // the disk's id
            _ => drop(fields.insert(field, decoder.u64().unwrap())),
        }
    }
    fields
}

fn segment_row(number: u64) -> Vec<u8> {
    [&[2][..], &u32::try_from(number).unwrap().to_be_bytes()].concat()
}

/// As an earlier program could leave a store: no segment is free, the open one is full of ordinary data, and much is dead in
/// those before. For the first, the free ones are said to be full.
fn stuck(seed: u64) -> World {
    let mut world = World::new(format!("stuck, seed {seed}"), tiny(512), 20, seed);
    let bytes = world.rng.random_range(1500..2500);
    let dead = world.rng.random_range(2..4);
    for number in 0..300 {
        assert_eq!(world.put(&format!("{number}"), bytes), Outcome::Taken);
        world.commit();
    }
    for number in (0..300).filter(|number| number % 5 < dead) {
        world.delete(&format!("{number}"));
    }
    let segment_bytes = u64::from(world.options.segment_bytes);
    let log = loop {
        world.commit();
        let log = fields(&world.index, &[1]);
        let rest = segment_bytes - log[&4].next_multiple_of(512);
        if rest < 700 {
            break log;
        }
        let bytes = (rest - 400).min(6000) as usize;
        world.put(&format!("the rest {rest}"), bytes);
    };
    world.engine.flush_index().unwrap();
    let full = segment_bytes - 512;
    let used = [log[&2], log[&5]];
    let live = |number: &u64| fields(&world.index, &segment_row(*number)).get(&1).copied().unwrap_or(0);
    let free: Vec<u64> = (0..20).filter(|number| !used.contains(number) && live(number) == 0).collect();
    assert!((3..12).contains(&free.len()), "{free:?}");
    let row = [&[0xa2, 0x00, 0x01, 0x01, 0x1b][..], &full.to_be_bytes()].concat();
    let changes = free.iter().map(|number| Change::Put(segment_row(*number).into(), Bytes::from(row.clone())));
    let batch = Batch { changes: changes.collect(), position: world.engine.durable_position() };
    world.index.apply(batch).unwrap();
    world.index.flush().unwrap();
    world.engine = reopen(&world.device.restart(), &world.index, &world.options);
    world.device = world.engine.device().clone();
    let usage = world.engine.usage();
    assert_eq!(usage.used_bytes, usage.total_bytes, "no segment is free");
    world
}

#[test]
fn a_store_without_a_free_segment_and_with_a_full_open_one_recovers_by_itself() {
    for seed in 0..40 {
        let mut world = stuck(seed);
        // Every second one is cut off on its way.
        if seed % 2 == 1 {
            world.device.plan(world.device.io_count() + world.rng.random_range(0..150), Fault::Crash);
        }
        world.step_bytes = [2000, 1 << 20][world.rng.random_range(0..2)];
        if seed % 4 < 2 {
            // Whoever comes first: the cleaner alone, or a delete.
            while world.engine.wants_cleaning() && world.clean() != Ok(false) {}
            if seed % 2 == 1 {
                world.crash(); // without power, what is to be moved cannot be read either
                while world.engine.wants_cleaning() && world.clean() != Ok(false) {}
            }
            let usage = world.engine.usage();
            assert!(usage.used_bytes < usage.total_bytes, "seed {seed}: {usage:?}");
        }
        world.check(seed % 2 == 1);
        for round in 0..3 {
            for name in world.names() {
                while world.delete(&name) == Outcome::Crashed {}
                while world.commit() == Outcome::Crashed {}
            }
            assert!(round < 2 || world.names().is_empty(), "seed {seed}");
        }
        world.fill(20_000);
        let (live, limit) = world.engine.live_bytes();
        assert!(live + 400 > limit, "seed {seed}: full at {live} of {limit}");
        world.check(seed % 2 == 1);
    }
}

/// Objects that fill a segment badly if the cleaner writes them in twos: what is lost at the end of each then is worth cleaning,
/// and cleaning goes round for ever. There are 33 in each segment, and one of them goes.
#[test]
fn cleaning_gains_with_every_segment_whatever_the_size_of_the_objects() {
    let options = Options { segment_bytes: 4 << 20, checksum_block_bytes: 16 << 10, ..tiny(4096) };
    let mut world = World::new("objects in twos".to_owned(), options, 24, 1);
    let mut count = 0;
    while world.put(&format!("{count}"), 124_000) == Outcome::Taken {
        world.commit();
        count += 1;
    }
    for number in (0..count).step_by(33) {
        world.delete(&format!("{number}"));
        world.commit();
    }
    assert!(world.engine.wants_cleaning() && count > 33 * 16, "{count}");
    let written = world.device.stats().bytes_written;
    let mut steps = 0;
    while world.engine.wants_cleaning() && world.engine.clean_step(4 << 20).unwrap().more {
        steps += 1;
        let moved = world.device.stats().bytes_written - written;
        assert!(steps < 200, "{moved} bytes moved and no end: {:?}", world.engine.usage());
    }
}
