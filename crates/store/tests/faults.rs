//! Bad blocks, bad headers, failing IO, full devices.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::*;
use holdfast_store::{
    CommitError, Engine, Fault, MemDevice, OnDurable, OpenError, Options, Position, ReadError, SubmitError,
    Transaction, TxOp,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SEGMENTS_START: u64 = 128 << 10;

fn create(engine: &MemEngine) {
    engine.submit(Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] }).unwrap();
    engine.commit().unwrap();
}

fn write(engine: &MemEngine, name: &str, offset: u64, data: Bytes) -> Result<Position, SubmitError> {
    let op = TxOp::Write { c: collection(0), o: object(name), offset, data };
    engine.submit(Transaction { ops: vec![op] }).map(|receipt| receipt.position)
}

/// All places where `needle` is on the device.
fn find(device: &MemDevice, needle: &[u8]) -> Vec<u64> {
    use holdfast_store::Device;
    let mut bytes = vec![0; device.len().unwrap() as usize];
    device.read_at(0, &mut bytes).unwrap();
    let first = needle[0];
    (0..bytes.len()).filter(|at| bytes[*at] == first && bytes[*at..].starts_with(needle)).map(|at| at as u64).collect()
}

#[test]
fn a_flipped_bit_in_any_stored_block_is_found_on_read() {
    let (device, _, engine) = new_engine(&tiny(512));
    create(&engine);
    let mut rng = SmallRng::seed_from_u64(1);
    let content = data(&mut rng, 5000);
    write(&engine, "a", 0, content.clone()).unwrap();
    write(&engine, "a", 1500, data(&mut rng, 700)).unwrap(); // so that an extent begins and ends within blocks
    engine.commit().unwrap();
    let start = find(&device, &content[..64])[0];
    for at in (0..5000).step_by(97) {
        device.flip(start + at, 3);
        let block = at / 1024 * 1024;
        let (read, mut hit) = (engine.read(collection(0), &object("a"), 0, 5000), false);
        if let Err(ReadError::Corrupt { offset, length, .. }) = &read {
            assert_eq!((*offset, *length), (block, 1024.min(5000 - block as u32)));
            hit = true;
        }
        let verified = engine.verify_object(collection(0), &object("a")).unwrap();
        assert!(!verified.bad.is_empty() && verified.bytes == 5000);
        // Blocks that are wholly overwritten are read by no one: here none is.
        assert!(hit, "flip at {at}: {read:?}");
        device.flip(start + at, 3);
    }
    assert!(engine.read(collection(0), &object("a"), 0, 5000).is_ok());
    assert!(engine.verify_object(collection(0), &object("a")).unwrap().bad.is_empty());
}

#[test]
fn a_flipped_bit_in_a_durable_record_header_is_found_on_open() {
    let options = tiny(512);
    let mut rng = SmallRng::seed_from_u64(2);
    let (device, index, engine) = new_engine(&options);
    let before = index.crash(&mut rng); // the index has nothing of what follows
    create(&engine);
    for group in 0..3 {
        write(&engine, "a", 0, data(&mut rng, 100 + group)).unwrap();
        engine.commit().unwrap();
    }
    // The second group's record is at a sector; its header is 104 bytes.
    let at = find(&device, b"HFrc")[1];
    assert!(at > SEGMENTS_START);
    for flip in 0..104 * 8 {
        let device = device.restart();
        device.flip(at + flip / 8, (flip % 8) as u8);
        let result = Engine::open(device, before.crash(&mut rng), options.clone());
        assert!(
            matches!(result, Err(OpenError::CorruptMiddle { position: Position(2), .. })),
            "bit {flip}: {result:?}"
        );
    }
}

#[test]
fn a_bad_payload_in_the_middle_fails_alone() {
    let options = tiny(512);
    let mut rng = SmallRng::seed_from_u64(3);
    let (device, index, engine) = new_engine(&options);
    let before = index.crash(&mut rng);
    create(&engine);
    let content = data(&mut rng, 900);
    for name in ["a", "b", "c"] {
        write(&engine, name, 0, if name == "b" { content.clone() } else { data(&mut rng, 900) }).unwrap();
        engine.commit().unwrap();
    }
    device.flip(find(&device, &content)[0] + 17, 0);
    let engine = Engine::open(device, before, options).unwrap();
    for name in ["a", "c"] {
        assert!(engine.read(collection(0), &object(name), 0, 900).is_ok());
    }
    assert!(matches!(engine.read(collection(0), &object("b"), 0, 900), Err(ReadError::Corrupt { .. })));
}

#[test]
fn an_index_of_another_disk_is_refused() {
    let options = tiny(512);
    let (device, _, _engine) = new_engine(&options);
    let other = holdfast_store::MemIndex::new();
    assert!(matches!(
        Engine::open(device.clone(), other.clone(), options.clone()),
        Err(OpenError::ForeignIndex { .. })
    ));
    let identity = holdfast_store::Identity { disk: holdfast_types::DiskUuid([1; 16]), ..IDENTITY };
    Engine::format(MemDevice::new(DEVICE_BYTES), other.clone(), identity, options.clone()).unwrap();
    assert!(matches!(Engine::open(device, other, options), Err(OpenError::ForeignIndex { found: Some(_), .. })));
}

#[test]
fn a_failed_write_or_sync_tells_all_who_wait_and_puts_the_store_into_quarantine() {
    for io in 0..2 {
        let (device, index, engine) = new_engine(&tiny(512));
        create(&engine);
        device.plan(device.io_count() + io, Fault::Eio);
        let marked = Arc::new(AtomicU32::new(0));
        let told = Arc::new(AtomicU32::new(0));
        for name in ["a", "b"] {
            let (told, seen) = (Arc::clone(&told), Arc::clone(&marked));
            let tx = Transaction { ops: vec![TxOp::Touch { c: collection(0), o: object(name) }] };
            let on_durable: OnDurable = Box::new(move |result: Result<(), Arc<CommitError>>| {
                assert!(result.is_err() && seen.load(Ordering::SeqCst) == 1, "noted before anyone is told");
                told.fetch_add(1, Ordering::SeqCst);
            });
            engine.submit_then(&tx, &mut Some(on_durable)).unwrap();
        }
        let mark = Arc::clone(&marked);
        engine.on_quarantine(Box::new(move |error| {
            assert!(error.doubts_the_device());
            mark.fetch_add(1, Ordering::SeqCst);
        }));
        assert!(engine.commit().is_err());
        assert_eq!(told.load(Ordering::SeqCst), 2);
        let ios = device.io_count();
        assert!(matches!(write(&engine, "c", 0, Bytes::new()), Err(SubmitError::Poisoned(_))));
        assert!(engine.commit().is_err());
        assert_eq!(device.io_count(), ios, "nothing is tried again");
        // The restart has all pages, and a sync that succeeds: neither says what the device has.
        for _ in 0..2 {
            let opened = Engine::open(device.restart(), index.clone(), tiny(512));
            assert!(matches!(opened, Err(OpenError::Quarantined { durable: Position(1), .. })), "{opened:?}");
        }
    }
}

#[test]
fn a_failed_read_fails_that_read_only() {
    let (device, _, engine) = new_engine(&tiny(512));
    create(&engine);
    write(&engine, "a", 0, Bytes::from(vec![1; 3000])).unwrap();
    engine.commit().unwrap();
    device.plan(device.io_count(), Fault::Eio);
    assert!(matches!(engine.read(collection(0), &object("a"), 0, 10), Err(ReadError::Device { .. })));
    device.plan(device.io_count(), Fault::FlipBit);
    assert!(matches!(engine.read(collection(0), &object("a"), 0, 10), Err(ReadError::Corrupt { .. })));
    assert!(engine.read(collection(0), &object("a"), 0, 10).is_ok());
    assert!(write(&engine, "a", 0, Bytes::new()).is_ok());
}

#[test]
fn callbacks_come_in_the_order_of_submission() {
    let (_, _, engine) = new_engine(&tiny(512));
    create(&engine);
    let order = Arc::new(Mutex::new(Vec::new()));
    for number in 0..20 {
        let order = Arc::clone(&order);
        let tx = Transaction { ops: vec![TxOp::Touch { c: collection(0), o: object("a") }] };
        engine.submit_then(&tx, &mut Some(Box::new(move |_| order.lock().unwrap().push(number)))).unwrap();
        if number % 7 == 0 {
            engine.commit().unwrap();
        }
    }
    engine.commit().unwrap();
    assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
}

#[test]
fn a_refused_transaction_changes_nothing() {
    let (_, _, engine) = new_engine(&tiny(512));
    create(&engine);
    let before = Model::read(&engine);
    let (c, o) = (collection(0), object("a"));
    let refused = [
        vec![TxOp::Touch { c, o: o.clone() }, TxOp::Touch { c: collection(5), o: o.clone() }],
        vec![TxOp::Touch { c, o: o.clone() }, TxOp::CreateCollection { c }],
        vec![
            TxOp::Touch { c, o: o.clone() },
            TxOp::Write { c, o: o.clone(), offset: u64::MAX, data: Bytes::from_static(b"x") },
        ],
        vec![
            TxOp::Touch { c, o: o.clone() },
            TxOp::Write { c, o: o.clone(), offset: 0, data: Bytes::from(vec![0; 70 << 10]) },
        ],
        vec![TxOp::Touch { c, o: o.clone() }, TxOp::SetAttr { c, o, name: vec![0; 300], value: Bytes::new() }],
    ];
    for ops in refused {
        engine.submit(Transaction { ops }).unwrap_err();
        before.check(&engine, "after a refusal");
    }
}

/// Fills until no ordinary write is taken, cleaning whenever that is said to help.
fn fill(engine: &MemEngine, rng: &mut SmallRng, piece: usize, model: &mut Model) -> usize {
    let mut count = 0;
    loop {
        let name = format!("object {count}");
        let tx = Transaction {
            ops: vec![TxOp::Write { c: collection(0), o: object(&name), offset: 0, data: data(rng, piece) }],
        };
        match engine.submit(tx.clone()) {
            Ok(_) => {
                model.apply(&tx);
                count += 1;
                engine.commit().unwrap();
            }
            Err(SubmitError::NoSpace { cleaning_helps: true, .. }) => {
                let progress = engine.clean_step(1 << 20).unwrap();
                assert!(
                    progress.more || progress.freed_segments > 0 || progress.moved_bytes > 0,
                    "cleaning does not help"
                );
            }
            Err(SubmitError::NoSpace { cleaning_helps: false, .. }) => return count,
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn on_a_full_device_deletes_work_and_make_room() {
    for piece in [300, 3000, 9000] {
        let options = tiny(512);
        let (device, index, engine) = new_engine(&options);
        create(&engine);
        let mut rng = SmallRng::seed_from_u64(piece as u64);
        let mut model = Model::default();
        model.apply(&Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] });
        for round in 0..4 {
            let count = fill(&engine, &mut rng, piece, &mut model);
            let usage = engine.usage();
            assert!(usage.live_bytes <= usage.live_bytes_limit && usage.used_bytes <= usage.total_bytes);
            assert!(round > 0 || usage.live_bytes * 2 > usage.total_bytes, "half of the device is usable: {usage:?}");
            model.check(&engine, "full");
            for number in 0..count {
                let (c, o) = (collection(0), object(&format!("object {number}")));
                let tx = Transaction {
                    ops: vec![
                        TxOp::Remove { c, o },
                        TxOp::PutMeta { c, key: b"log".to_vec(), value: data(&mut rng, 50) },
                    ],
                };
                if rng.random_range(0..3) > 0 {
                    // Deletes need no more than a cleaning step now and then.
                    let mut tries = 0;
                    while let Err(error) = engine.submit(tx.clone()) {
                        assert!(matches!(error, SubmitError::NoSpace { cleaning_helps: true, .. }), "{error:?}");
                        engine.clean_step(1 << 20).unwrap();
                        tries += 1;
                        assert!(tries < 100, "no room for a delete");
                    }
                    model.apply(&tx);
                    engine.commit().unwrap();
                }
            }
            model.check(&engine, "after deletes");
        }
        drop(engine);
        model.check(&reopen(&device.restart(), &index, &options), "reopened");
    }
}

#[test]
fn overwriting_for_ever_never_fills_the_device() {
    let options = tiny(4096);
    let (device, index, engine) = new_engine(&options);
    create(&engine);
    let mut rng = SmallRng::seed_from_u64(11);
    let mut model = Model::default();
    model.apply(&Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] });
    for round in 0..3000 {
        let name = format!("object {}", rng.random_range(0..40));
        let offset = rng.random_range(0..3000);
        let content = {
            let count = rng.random_range(1..3000);
            data(&mut rng, count)
        };
        let tx = Transaction { ops: vec![TxOp::Write { c: collection(0), o: object(&name), offset, data: content }] };
        while let Err(error) = engine.submit(tx.clone()) {
            assert!(matches!(error, SubmitError::NoSpace { cleaning_helps: true, .. }), "{error:?}");
            engine.clean_step(8 << 10).unwrap();
        }
        model.apply(&tx);
        if round % 3 == 0 {
            engine.commit().unwrap();
        }
        if engine.wants_cleaning() {
            engine.clean_step(8 << 10).unwrap();
        }
    }
    model.check(&engine, "after all");
    engine.commit().unwrap();
    drop(engine);
    model.check(&reopen(&device.restart(), &index, &options), "reopened");
}

/// Large records and small ones are written over all the time while little is free. They fit into what the cleaner opened for
/// what it moves, and must leave it enough to go on.
#[test]
fn whoever_writes_in_between_leaves_the_cleaner_room_to_go_on() {
    for seed in 0..20 {
        let options = tiny(512);
        let (device, index, mut engine) = new_engine(&options);
        create(&engine);
        let mut rng = SmallRng::seed_from_u64(seed);
        let large = rng.random_range(8_000..30_000);
        let limit = engine.live_bytes().1;
        let count = (limit * rng.random_range(80..98) / 100 / large).max(1);
        for _ in 0..400 {
            let name = format!("large {}", rng.random_range(0..count));
            let content = data(&mut rng, large as usize);
            for attempt in 0.. {
                assert!(attempt < 10_000, "seed {seed}: cleaning goes round for ever at {:?}", engine.live_bytes());
                match write(&engine, &name, 0, content.clone()) {
                    Err(SubmitError::NoSpace { cleaning_helps: true, .. }) => {}
                    Ok(_) | Err(SubmitError::NoSpace { .. }) => break,
                    Err(other) => panic!("{other:?}"),
                }
                let live = engine.live_bytes();
                let step = engine.clean_step(rng.random_range(1..20_000));
                step.unwrap_or_else(|error| panic!("seed {seed}: the cleaner is stuck at {live:?}: {error:?}"));
                if rng.random_bool(0.5) {
                    engine.commit().unwrap();
                }
                // Less than what cleaning gains, or they would take all of it from the large ones.
                if rng.random_bool(0.3) {
                    let bytes = rng.random_range(100..3_000);
                    let content = data(&mut rng, bytes);
                    let _ = write(&engine, &format!("small {}", rng.random_range(0..5)), 0, content);
                }
            }
            if rng.random_bool(0.02) {
                engine.commit().unwrap();
                drop(engine);
                engine = reopen(&device, &index, &options);
            }
        }
    }
}

#[test]
fn what_cannot_be_read_is_left_by_the_cleaner_and_all_else_moves() {
    let options = tiny(512);
    let (device, _, engine) = new_engine(&options);
    create(&engine);
    let mut rng = SmallRng::seed_from_u64(12);
    let bad = data(&mut rng, 2000);
    write(&engine, "bad", 0, bad.clone()).unwrap();
    let good = data(&mut rng, 2000);
    write(&engine, "good", 0, good.clone()).unwrap();
    engine.commit().unwrap();
    for _ in 0..40 {
        write(&engine, "filler", 0, data(&mut rng, 3000)).unwrap();
        engine.commit().unwrap();
    }
    device.flip(find(&device, &bad)[0], 0);
    for _ in 0..20 {
        engine.clean_step(1 << 20).unwrap();
    }
    assert!(matches!(engine.read(collection(0), &object("bad"), 0, 9), Err(ReadError::Corrupt { .. })));
    assert_eq!(engine.read(collection(0), &object("good"), 0, 2000).unwrap(), good);
    // Repaired from elsewhere, the segment becomes free like any other.
    write(&engine, "bad", 0, bad.clone()).unwrap();
    engine.commit().unwrap();
    assert_eq!(engine.read(collection(0), &object("bad"), 0, 2000).unwrap(), bad);
}

/// Opens, stores something without flushing the index, and dies, after a life that was closed properly.
fn second_life(options: &holdfast_store::Options) -> (MemDevice, holdfast_store::MemIndex, Model, u64) {
    let (device, index, engine) = new_engine(options);
    create(&engine);
    write(&engine, "first life", 0, Bytes::from_static(b"one")).unwrap();
    engine.close().unwrap();
    drop(engine);
    let engine = reopen(&device, &index, options);
    write(&engine, "second life", 0, Bytes::from_static(b"two")).unwrap();
    engine.commit().unwrap();
    let model = Model::read(&engine);
    let generation = engine.superblock().generation;
    (device, index, model, generation)
}

#[test]
fn a_lost_newest_superblock_loses_nothing_that_was_acknowledged() {
    let options = tiny(512);
    let (device, index, model, generation) = second_life(&options);
    let newest = (generation % 2) * (64 << 10);
    let mut rng = SmallRng::seed_from_u64(21);
    let unflushed = index.crash(&mut rng);
    for damage in 0..128 * 8 + 1 {
        let device = device.restart();
        match damage {
            0 => device.spoil(newest),
            bit => device.flip(newest + (bit - 1) / 8, ((bit - 1) % 8) as u8),
        }
        let engine = reopen(&device, &unflushed.crash(&mut rng), &options);
        model.check(&engine, &format!("damage {damage}"));
        assert!(engine.superblock().generation > generation, "a generation is never used twice");
    }
    // Nor does it when the one of before is lost, or neither.
    for damaged in [Some((64 << 10) - newest), None] {
        let device = device.restart();
        if let Some(at) = damaged {
            device.flip(at, 0);
        }
        let engine = reopen(&device, &unflushed.crash(&mut rng), &options);
        model.check(&engine, "older copy");
        // Whatever happened, an opening that is cut off leaves a copy to go on from.
        let again = reopen(&device.restart(), &unflushed.crash(&mut rng), &options);
        model.check(&again, "opened again");
    }
}

#[test]
fn what_follows_a_clean_superblock_is_replayed_all_the_same() {
    // The write of the newer superblock was lost without an error: both copies are there, and look closed.
    let options = tiny(512);
    let (device, index, engine) = new_engine(&options);
    create(&engine);
    engine.close().unwrap();
    let generation = engine.superblock().generation + 1;
    drop(engine);
    let mut before = vec![0; 128];
    let place = ((generation + 1) % 2) * (64 << 10);
    holdfast_store::Device::read_at(&device, place, &mut before).unwrap();
    let engine = reopen(&device, &index, &options);
    write(&engine, "a", 0, Bytes::from_static(b"acknowledged")).unwrap();
    engine.commit().unwrap();
    let model = Model::read(&engine);
    let crashed = device.restart();
    holdfast_store::Device::write_at(&crashed, place, &[&before]).unwrap();
    let mut rng = SmallRng::seed_from_u64(22);
    model.check(&reopen(&crashed, &index.crash(&mut rng), &options), "lost superblock write");
}

#[test]
fn a_device_with_data_is_never_formatted() {
    use holdfast_store::{Device, FormatError, Identity, MemIndex};
    let options = tiny(512);
    let format =
        |device: &MemDevice, identity| Engine::format(device.clone(), MemIndex::new(), identity, options.clone());
    let other = Identity { disk: holdfast_types::DiskUuid([1; 16]), ..IDENTITY };
    // Cut off before anything was stored: may be repeated, by the same disk alone.
    let (device, _, engine) = new_engine(&options);
    drop(format(&device.restart(), IDENTITY).unwrap());
    assert!(matches!(format(&device, other), Err(FormatError::InUse { found: Some(IDENTITY), .. })));
    // In use, by whatever sign.
    create(&engine);
    let crashed = device.restart();
    for identity in [IDENTITY, other] {
        let refused = format(&crashed, identity);
        assert!(matches!(refused, Err(FormatError::InUse { found: Some(IDENTITY), .. })), "{refused:?}");
    }
    engine.close().unwrap();
    assert!(matches!(format(&device, IDENTITY), Err(FormatError::InUse { .. })));
    // Both superblocks bad, or another system's data.
    device.flip(0, 0);
    device.flip(64 << 10, 0);
    assert!(matches!(format(&device, IDENTITY), Err(FormatError::InUse { found: None, .. })));
    device.flip(0, 0);
    let foreign = MemDevice::new(DEVICE_BYTES);
    foreign.write_at(1024, &[b"\x53\xef"]).unwrap();
    assert!(matches!(format(&foreign, IDENTITY), Err(FormatError::InUse { found: None, .. })));
}

#[test]
fn a_bad_sector_behind_the_end_of_the_log_does_not_keep_it_from_opening() {
    let options = tiny(512);
    let (device, index, engine) = new_engine(&options);
    create(&engine);
    write(&engine, "a", 0, Bytes::from_static(b"acknowledged")).unwrap();
    engine.commit().unwrap();
    let model = Model::read(&engine);
    let end = find(&device, b"HFrc").last().copied().unwrap() / 512 * 512;
    let mut rng = SmallRng::seed_from_u64(23);
    // The first is where the next record would be: what the power cut tore often cannot be read.
    for sector in [1, 2, 3, 9, 60] {
        let device = device.restart();
        device.spoil(end + sector * 512);
        let engine = reopen(&device, &index.crash(&mut rng), &options);
        model.check(&engine, &format!("bad sector {sector} behind the end"));
        write(&engine, "b", 0, Bytes::from(vec![1; 9000])).unwrap();
        engine.commit().unwrap();
        let model = Model::read(&engine);
        model.check(&reopen(&device.restart(), &index.crash(&mut rng), &options), "and it is written over");
    }
}

#[test]
fn a_bad_sector_within_the_durable_log_is_found_on_open() {
    let options = tiny(512);
    let mut rng = SmallRng::seed_from_u64(25);
    let (device, index, engine) = new_engine(&options);
    let before = index.crash(&mut rng);
    create(&engine);
    for group in 0..3 {
        write(&engine, "a", 0, data(&mut rng, 100 + group)).unwrap();
        engine.commit().unwrap();
    }
    let records = find(&device, b"HFrc");
    let crashed = device.restart();
    crashed.spoil(records[1]);
    let opened = Engine::open(crashed, before.crash(&mut rng), options.clone());
    assert!(matches!(opened, Err(OpenError::CorruptMiddle { position: Position(2), .. })), "{opened:?}");
    // Before the position that the superblock knows, also when nothing follows.
    engine.close().unwrap();
    let closed = device.restart();
    closed.spoil(*records.last().unwrap());
    let opened = Engine::open(closed, before.crash(&mut rng), options);
    assert!(matches!(opened, Err(OpenError::CorruptMiddle { position: Position(4), .. })), "{opened:?}");
}

#[test]
fn a_segment_whose_records_cannot_be_read_is_cleaned_by_the_index() {
    let options = tiny(512);
    let (device, _, engine) = new_engine(&options);
    create(&engine);
    let mut rng = SmallRng::seed_from_u64(24);
    let good = data(&mut rng, 2000);
    write(&engine, "good", 0, good.clone()).unwrap();
    engine.commit().unwrap();
    for _ in 0..40 {
        write(&engine, "filler", 0, data(&mut rng, 3000)).unwrap();
        engine.commit().unwrap();
    }
    device.spoil(SEGMENTS_START + 512); // the first record of the first segment, in which "good" is
    let mut moved = 0;
    for _ in 0..20 {
        moved += engine.clean_step(1 << 20).unwrap().moved_bytes;
    }
    assert!(moved >= 2000, "the segment is emptied all the same");
    assert_eq!(engine.read(collection(0), &object("good"), 0, 2000).unwrap(), good);
}

/// Makes the onode of an object unreadable, as a bad block of the index does.
fn spoil_onode(index: &holdfast_store::MemIndex, name: &str) {
    use holdfast_store::{Batch, Change, Index};
    let mut keys = Vec::new();
    index
        .scan(&[4], Some(&[5]), &mut |key, _| {
            if key.ends_with(name.as_bytes()) {
                keys.push(Bytes::copy_from_slice(key));
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(keys.len(), 1, "{name} is in the index");
    let changes = vec![Change::Put(keys.remove(0), Bytes::from_static(b"\xff\x00 bad"))];
    index.apply(Batch { changes, position: index.persisted_position() }).unwrap();
    index.flush().unwrap();
}

#[test]
fn an_onode_that_cannot_be_read_is_the_error_of_its_object_alone() {
    let options = Options { onode_cache_bytes: 0, ..tiny(512) };
    let (device, index, engine) = new_engine(&options);
    create(&engine);
    for name in ["bad", "good"] {
        write(&engine, name, 0, Bytes::from(vec![1; 3000])).unwrap();
        let rows = vec![(b"row".to_vec(), Bytes::from_static(b"old"))];
        engine.submit(Transaction { ops: vec![TxOp::PutRows { c: collection(0), o: object(name), rows }] }).unwrap();
    }
    engine.commit().unwrap();
    engine.flush_index().unwrap();
    spoil_onode(&index, "bad");
    let (c, o) = (collection(0), object("bad"));
    assert!(matches!(engine.read(c, &o, 0, 9), Err(ReadError::Index(_))));
    let changed = write(&engine, "bad", 0, Bytes::from_static(b"x"));
    assert!(matches!(changed, Err(SubmitError::CorruptObject { ref object, .. }) if *object == o), "{changed:?}");
    write(&engine, "good", 0, Bytes::from_static(b"x")).unwrap();
    engine.commit().unwrap();

    // As recovery does: away with it, and the copy of a peer in its place.
    let ops = vec![
        TxOp::Remove { c, o: o.clone() },
        TxOp::Write { c, o: o.clone(), offset: 0, data: Bytes::from_static(b"from a peer") },
    ];
    engine.submit(Transaction { ops }).unwrap();
    engine.commit().unwrap();
    assert_eq!(engine.read(c, &o, 0, 99).unwrap(), Bytes::from_static(b"from a peer"));
    assert!(engine.rows_scan(c, &o, b"", None, 9, 99).unwrap().rows.is_empty(), "its old rows are gone");
    let model = Model::read(&engine);
    model.check(&reopen(&device.restart(), &index, &options), "reopened");

    engine.flush_index().unwrap();
    spoil_onode(&index, "bad");
    engine.submit(Transaction { ops: vec![TxOp::RemoveCollection { c }] }).unwrap();
    engine.commit().unwrap();
    assert!(Model::read(&engine).0.is_empty(), "a collection with it can be removed");
}

#[test]
fn replay_over_an_onode_that_cannot_be_read_loses_that_object_alone() {
    let options = Options { onode_cache_bytes: 0, ..tiny(512) };
    let mut rng = SmallRng::seed_from_u64(26);
    let (device, index, engine) = new_engine(&options);
    create(&engine);
    for name in ["bad", "good"] {
        write(&engine, name, 0, Bytes::from(vec![1; 3000])).unwrap();
    }
    engine.commit().unwrap();
    engine.flush_index().unwrap();
    let mut before = index.crash(&mut rng);
    while holdfast_store::Index::persisted_position(&before) < Position(3) {
        before = index.crash(&mut rng);
    }
    for name in ["bad", "good"] {
        write(&engine, name, 1000, Bytes::from(vec![2; 500])).unwrap();
    }
    engine.commit().unwrap();
    spoil_onode(&before, "bad");
    let engine = reopen(&device.restart(), &before, &options);
    assert_eq!(engine.durable_position(), Position(5));
    assert_eq!(engine.read(collection(0), &object("good"), 1000, 500).unwrap(), Bytes::from(vec![2; 500]));
    assert!(engine.read(collection(0), &object("bad"), 0, 9).is_err(), "never the bytes of before");
    engine.submit(Transaction { ops: vec![TxOp::Remove { c: collection(0), o: object("bad") }] }).unwrap();
    write(&engine, "bad", 0, Bytes::from_static(b"anew")).unwrap();
    engine.commit().unwrap();
    assert_eq!(engine.read(collection(0), &object("bad"), 0, 9).unwrap(), Bytes::from_static(b"anew"));
}

#[test]
fn a_bad_onode_does_not_keep_the_cleaner_from_all_others() {
    let options = Options { onode_cache_bytes: 0, ..tiny(512) };
    let (device, index, engine) = new_engine(&options);
    create(&engine);
    let mut rng = SmallRng::seed_from_u64(27);
    write(&engine, "bad", 0, data(&mut rng, 2000)).unwrap();
    write(&engine, "good", 0, data(&mut rng, 2000)).unwrap();
    engine.commit().unwrap();
    engine.flush_index().unwrap();
    spoil_onode(&index, "bad");
    // Three times the device: without a cleaner that goes on, it is full long before.
    for round in 0..1200 {
        let name = format!("filler {}", round % 7);
        while let Err(error) = write(&engine, &name, 0, data(&mut rng, 3000)) {
            assert!(matches!(error, SubmitError::NoSpace { cleaning_helps: true, .. }), "round {round}: {error:?}");
            engine.clean_step(1 << 20).unwrap();
        }
        engine.commit().unwrap();
        device.spoil(SEGMENTS_START); // and the header of the first segment is bad as well
        device.spoil(SEGMENTS_START + 512);
        if engine.wants_cleaning() {
            engine.clean_step(1 << 20).unwrap();
        }
    }
    assert!(device.stats().bytes_written > 3 * DEVICE_BYTES / 2);
}

#[test]
fn without_blocks_for_the_next_segment_writes_are_refused_and_deletes_make_room() {
    let options = tiny(512);
    let (device, _, engine) = new_engine(&options);
    create(&engine);
    let mut rng = SmallRng::seed_from_u64(28);
    let mut count = 0;
    device.set_no_blocks(true);
    let refused = loop {
        match write(&engine, &format!("{count}"), 0, data(&mut rng, 3000)) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
        engine.commit().unwrap();
    };
    assert!(matches!(refused, SubmitError::NoSpace { .. }), "{refused:?}");
    assert!((20..32).contains(&count), "those under way find room, and not until the device is full: {count}");
    let (live, limit) = engine.live_bytes();
    let usage = engine.usage();
    assert_eq!((live, limit), (usage.live_bytes, usage.live_bytes_limit), "what is told is what is let in");
    assert_eq!(live, limit);
    assert!(engine.wants_cleaning());
    for number in 0..count {
        let op = TxOp::Remove { c: collection(0), o: object(&format!("{number}")) };
        engine.submit(Transaction { ops: vec![op] }).unwrap();
        engine.commit().unwrap();
    }
    engine.clean_step(1 << 20).unwrap();
    assert!(write(&engine, "again", 0, data(&mut rng, 3000)).is_err(), "the file system is still full");
    device.set_no_blocks(false);
    engine.clean_step(1 << 20).unwrap();
    assert!(engine.live_bytes().1 > limit && engine.usage().live_bytes_limit > limit);
    write(&engine, "again", 0, data(&mut rng, 3000)).unwrap();
    engine.commit().unwrap();
}

#[test]
fn without_blocks_for_the_next_segment_the_cleaner_leaves_deletes_their_room() {
    let (device, _, engine) = new_engine(&tiny(512));
    create(&engine);
    let mut rng = SmallRng::seed_from_u64(29);
    // Segments that are worth cleaning, each with more that is live than fits into what is left of the open one.
    for number in 0..30 {
        write(&engine, &format!("{number}"), 0, data(&mut rng, 16 << 10)).unwrap();
        engine.commit().unwrap();
    }
    device.set_no_blocks(true);
    while write(&engine, "small", 0, data(&mut rng, 2000)).is_ok() {
        engine.commit().unwrap();
    }
    engine.commit().unwrap();
    let (written, mut freed) = (device.stats().bytes_written, 0);
    while let Ok(step) = engine.clean_step(1 << 20)
        && step.moved_bytes + step.freed_segments > 0
    {
        freed += step.freed_segments;
    }
    let moved = device.stats().bytes_written - written;
    assert!(moved == 0 || freed > 0, "{moved} bytes were moved, and took room, and freed nothing");
    // One of each segment: none gets empty by that.
    for number in (0..30).step_by(3) {
        let op = TxOp::Remove { c: collection(0), o: object(&format!("{number}")) };
        engine.submit(Transaction { ops: vec![op] }).unwrap();
        engine.commit().unwrap();
        let _ = engine.clean_step(1 << 20);
    }
}

#[test]
fn a_full_file_system_is_no_reason_for_a_quarantine() {
    let full = CommitError::Write { offset: 0, bytes: 1, source: std::io::ErrorKind::StorageFull.into() };
    assert!(!full.doubts_the_device());
    let failed = CommitError::Write { offset: 0, bytes: 1, source: std::io::Error::from_raw_os_error(5) };
    assert!(failed.doubts_the_device());
    assert!(CommitError::Sync(std::io::ErrorKind::StorageFull.into()).doubts_the_device());
}

#[test]
fn used_bytes_count_the_index() {
    let (_, _, engine) = new_engine(&tiny(512));
    create(&engine);
    let before = engine.usage().used_bytes_with_index();
    for number in 0..50u8 {
        let rows = vec![(vec![number], Bytes::from(vec![1; 1000]))];
        engine.submit(Transaction { ops: vec![TxOp::PutRows { c: collection(0), o: object("o"), rows }] }).unwrap();
        engine.commit().unwrap();
        engine.flush_index().unwrap();
    }
    let usage = engine.usage();
    assert!(usage.used_bytes_with_index() >= before + 50_000, "{before}: {usage:?}");
    assert!(usage.used_bytes_with_index() <= usage.total_bytes);
}

#[test]
fn one_wrong_read_cuts_no_acknowledged_record_off_the_end_of_the_log() {
    let options = tiny(512);
    let (device, index, engine) = new_engine(&options);
    create(&engine);
    engine.flush_index().unwrap();
    write(&engine, "a", 0, Bytes::from(vec![1; 3000])).unwrap();
    engine.commit().unwrap();
    let model = Model::read(&engine);
    let flushed = {
        let mut rng = SmallRng::seed_from_u64(31);
        let mut found = index.crash(&mut rng);
        while holdfast_store::Index::persisted_position(&found) > Position(1) {
            found = index.crash(&mut rng);
        }
        found
    };
    // Whichever read of the opening it is.
    for read in 0..12 {
        for fault in [Fault::FlipBit, Fault::Eio] {
            let device = device.restart();
            device.plan(device.io_count() + read, fault);
            match Engine::open(device, flushed.clone(), options.clone()) {
                Ok(engine) => model.check(&engine, &format!("{fault:?} at read {read}")),
                Err(error) => {
                    assert!(matches!(error, OpenError::Device(_) | OpenError::CorruptMiddle { .. }), "{error:?}")
                }
            }
        }
    }
}
