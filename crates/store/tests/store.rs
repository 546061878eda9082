//! The store with its threads, on a file and RocksDB.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use common::*;
use holdfast_store::{
    Fault, FormatError, MemDevice, MemIndex, Options, Store, StoreConfig, SubmitError, Transaction, TxOp,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn config(directory: &Path) -> StoreConfig {
    let options = Options { segment_bytes: 4 << 20, ..Options::default() };
    StoreConfig { memory_target: 16 << 20, options, ..StoreConfig::in_directory(directory) }
}

const DEVICE: u64 = 64 << 20;

fn put(name: &str, data: Bytes) -> Transaction {
    Transaction { ops: vec![TxOp::Write { c: collection(0), o: object(name), offset: 0, data }] }
}

fn fill(store: &Store, seed: u64, count: usize) -> Model {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut model = Model::default();
    let acknowledged = Arc::new(AtomicU64::new(0));
    for _ in 0..count {
        let tx = random_tx(&mut rng, &mut model, 20_000);
        let acknowledged = Arc::clone(&acknowledged);
        store
            .submit(tx, move |result| {
                result.unwrap();
                acknowledged.fetch_add(1, Ordering::SeqCst);
            })
            .unwrap();
    }
    let c = collection(9);
    store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c }] }).unwrap();
    model.apply(&Transaction { ops: vec![TxOp::CreateCollection { c }] });
    assert_eq!(acknowledged.load(Ordering::SeqCst), count as u64, "callbacks come in order");
    model
}

#[test]
fn a_store_dropped_without_close_replays_on_open() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::format(&config(directory.path()), IDENTITY, DEVICE).unwrap();
    let model = fill(&store, 1, 400);
    model.check(&store, "before the drop");
    // What a kill leaves: the files as they are now, the index without its memtables.
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(directory.path().join("block"), copy.path().join("block")).unwrap();
    std::fs::create_dir(copy.path().join("index")).unwrap();
    for entry in std::fs::read_dir(directory.path().join("index")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "LOCK" {
            std::fs::copy(entry.path(), copy.path().join("index").join(entry.file_name())).unwrap();
        }
    }
    drop(store);
    for directory in [directory.path(), copy.path()] {
        let store = Store::open(&config(directory)).unwrap();
        model.check(&store, "reopened");
        store.close().unwrap();
        drop(store);
        model.check(&Store::open(&config(directory)).unwrap(), "closed and reopened");
    }
}

#[test]
fn ten_thousand_objects_open_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::format(&config(directory.path()), IDENTITY, 128 << 20).unwrap();
    store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] }).unwrap();
    for number in 0..10_000 {
        store.submit(put(&format!("{number}"), Bytes::from(vec![1; 500])), |result| result.unwrap()).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let started = Instant::now();
    let store = Store::open(&config(directory.path())).unwrap();
    let elapsed = started.elapsed();
    assert_eq!(store.list_objects(collection(0), None, 20_000).unwrap().len(), 10_000);
    assert!(elapsed.as_millis() < 1000, "opening took {elapsed:?}"); // 20 ms when the machine is idle
}

#[test]
fn readers_and_writers_run_beside_the_cleaner_and_see_whole_objects() {
    let engine =
        holdfast_store::Engine::format(MemDevice::new(DEVICE_BYTES), MemIndex::new(), IDENTITY, tiny(512)).unwrap();
    let store: Store<MemDevice, MemIndex> = Store::run(engine);
    store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] }).unwrap();
    for name in ["a", "b", "c"] {
        store.submit_and_wait(put(name, Bytes::from(vec![0; 4000]))).unwrap();
    }
    std::thread::scope(|scope| {
        for (writer, name) in ["a", "b", "c"].into_iter().enumerate() {
            let writing = store.clone();
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(writer as u64);
                for _ in 0..600 {
                    let fill = rng.random();
                    writing.submit(put(name, Bytes::from(vec![fill; 4000])), |result| result.unwrap()).unwrap();
                }
            });
            let store = store.clone();
            scope.spawn(move || {
                for _ in 0..1500 {
                    let bytes = store.read(collection(0), &object(name), 0, 4000).unwrap();
                    assert!(bytes.len() == 4000 && bytes.iter().all(|byte| *byte == bytes[0]), "a torn read");
                }
            });
        }
    });
    store.close().unwrap();
    assert!(matches!(store.submit(put("a", Bytes::new()), |_| ()), Err(SubmitError::Closed)));
}

#[test]
fn a_failing_device_tells_every_waiting_caller() {
    let device = MemDevice::new(DEVICE_BYTES);
    let engine = holdfast_store::Engine::format(device.clone(), MemIndex::new(), IDENTITY, tiny(512)).unwrap();
    let store = Store::run(engine);
    store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] }).unwrap();
    device.plan(device.io_count() + 1, Fault::Eio);
    let result = store.submit_and_wait(put("a", Bytes::from(vec![1; 100])));
    assert!(matches!(result, Err(SubmitError::Poisoned(_))), "{result:?}");
    assert!(store.submit(put("b", Bytes::new()), |_| ()).is_err());
}

#[test]
fn a_callback_may_submit_and_may_hold_the_last_handle() {
    let engine =
        holdfast_store::Engine::format(MemDevice::new(DEVICE_BYTES), MemIndex::new(), IDENTITY, tiny(512)).unwrap();
    let store = Store::run(engine);
    store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] }).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let again = store.clone();
    store
        .submit(put("a", Bytes::from(vec![1; 100])), move |_| {
            again
                .submit(put("b", Bytes::from(vec![2; 100])), move |result| sender.send(result.is_ok()).unwrap())
                .unwrap();
        })
        .unwrap();
    assert!(receiver.recv().unwrap());
    drop(store);
}

#[test]
fn unsupported_sizes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    config.options.segment_bytes = 1 << 20;
    assert!(matches!(Store::format(&config, IDENTITY, DEVICE), Err(FormatError::SegmentBytes { .. })));
    config.options.segment_bytes = 64 << 20;
    assert!(matches!(Store::format(&config, IDENTITY, DEVICE), Err(FormatError::TooSmall { .. })));
}
