//! The store with its threads, on a file and RocksDB.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use bytes::Bytes;
use common::*;
use holdfast_store::{
    Device, Fault, FormatError, MemDevice, MemIndex, OpenError, Options, ReadError, Store, StoreConfig, SubmitError,
    Transaction, TxOp,
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

/// A device whose syncs wait while it hangs.
struct Hanging {
    device: MemDevice,
    hangs: Arc<(Mutex<bool>, Condvar)>,
}

impl Device for Hanging {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[&[u8]]) -> io::Result<()> {
        self.device.write_at(offset, data)
    }
    fn sync(&self) -> io::Result<()> {
        let (hangs, changed) = &*self.hangs;
        let hangs = changed.wait_while(hangs.lock().unwrap(), |hangs| *hangs).unwrap();
        drop(hangs);
        self.device.sync()
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.device.discard(offset, length)
    }
    fn len(&self) -> io::Result<u64> {
        self.device.len()
    }
}

#[test]
fn a_device_that_hangs_is_seen_by_the_age_of_what_waits() {
    let hangs = Arc::new((Mutex::new(false), Condvar::new()));
    let device = Hanging { device: MemDevice::new(DEVICE_BYTES), hangs: Arc::clone(&hangs) };
    let engine = holdfast_store::Engine::format(device, MemIndex::new(), IDENTITY, tiny(512)).unwrap();
    let store = Store::run(engine);
    store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] }).unwrap();
    while !store.stalled_for().is_zero() {
        std::thread::yield_now(); // the commit tells its callers before it is through
    }
    *hangs.0.lock().unwrap() = true;
    let (sender, receiver) = std::sync::mpsc::channel();
    store.submit(put("a", Bytes::from(vec![1; 100])), move |result| sender.send(result.is_ok()).unwrap()).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let age = store.stalled_for();
        if seen.last().map_or(!age.is_zero(), |last| age > *last) {
            seen.push(age);
        }
        std::thread::yield_now();
    }
    assert!(receiver.try_recv().is_err(), "nobody was told");
    *hangs.0.lock().unwrap() = false;
    hangs.1.notify_all();
    assert!(receiver.recv().unwrap());
    while !store.stalled_for().is_zero() {
        std::thread::yield_now();
    }
}

#[test]
fn a_quarantined_store_opens_only_when_a_person_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let store = Store::format(&config, IDENTITY, DEVICE).unwrap();
    let model = fill(&store, 3, 20);
    store.close().unwrap();
    drop(store);
    let (marker, wish) = (directory.path().join("quarantined"), directory.path().join("release-quarantine"));
    std::fs::write(&marker, "cannot sync the device\n").unwrap();
    for _ in 0..2 {
        let error = Store::open(&config).unwrap_err();
        assert!(matches!(&error, OpenError::Marked { reason, .. } if reason == "cannot sync the device"), "{error:?}");
        assert!(error.to_string().contains("release-quarantine"), "says what to do: {error}");
    }
    std::fs::write(&wish, "").unwrap();
    let store = Store::open(&config).unwrap();
    model.check(&store, "released");
    assert!(!marker.exists() && !wish.exists());
    store.close().unwrap();
    drop(store);
    drop(Store::open(&config).unwrap());
    // A new device in its place is not the one that was marked.
    std::fs::write(&marker, "cannot sync the device\n").unwrap();
    std::fs::remove_file(&config.device).unwrap();
    drop(Store::format(&config, IDENTITY, DEVICE).unwrap());
    drop(Store::open(&config).unwrap());
}

#[test]
fn the_device_has_the_last_word_on_whether_it_is_formatted() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let store = Store::format(&config, IDENTITY, DEVICE).unwrap();
    let model = fill(&store, 4, 20);
    store.close().unwrap();
    drop(store);
    // A directory that is not mounted, or one of before: index and identity are others or gone, the device is not.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = holdfast_store::Identity { disk: holdfast_types::DiskUuid([1; 16]), ..IDENTITY };
    for (identity, index) in [(other, elsewhere.path().join("index")), (IDENTITY, config.index.clone())] {
        let lost = StoreConfig { index, ..config.clone() };
        let refused = Store::format(&lost, identity, DEVICE).unwrap_err();
        assert!(matches!(refused, FormatError::InUse { found: Some(IDENTITY), .. }), "{refused:?}");
        let text = refused.to_string();
        for part in [IDENTITY.cluster.to_string(), IDENTITY.disk.to_string(), IDENTITY.osd.to_string()] {
            assert!(text.contains(&part), "names {part}: {text}");
        }
    }
    model.check(&Store::open(&config).unwrap(), "untouched");
}

#[test]
fn a_panic_in_the_commit_thread_is_told_and_not_a_silence() {
    let engine =
        holdfast_store::Engine::format(MemDevice::new(DEVICE_BYTES), MemIndex::new(), IDENTITY, tiny(512)).unwrap();
    let store = Store::run(engine);
    store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] }).unwrap();
    store.submit(put("a", Bytes::new()), |_| panic!("planned")).unwrap();
    loop {
        // Taken before it is known, and then told or dropped; or refused.
        let (sender, told) = std::sync::mpsc::channel();
        match store.submit(put("b", Bytes::new()), move |result| sender.send(result.is_err()).unwrap()) {
            Ok(()) => drop(told.recv()),
            Err(error) => {
                assert!(matches!(error, SubmitError::Poisoned(_)), "{error:?}");
                break;
            }
        }
    }
    assert!(!store.stalled_for().is_zero(), "the group that it hit waits for ever");
}

#[test]
fn a_flipped_bit_in_an_index_file_fails_the_objects_that_it_hit_and_they_can_be_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let store = Store::format(&config, IDENTITY, DEVICE).unwrap();
    store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] }).unwrap();
    let content = Bytes::from(vec![7; 300]);
    for number in 0..3000 {
        store.submit(put(&format!("{number:06}"), content.clone()), |result| result.unwrap()).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let files = std::fs::read_dir(&config.index).unwrap().map(|entry| entry.unwrap().path());
    let tables = files.filter(|path| path.extension().is_some_and(|extension| extension == "sst"));
    let table = tables.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&table).unwrap();
    let middle = bytes.len() / 2; // onodes; the rows that opening needs are at the beginning
    bytes[middle] ^= 1;
    std::fs::write(&table, bytes).unwrap();

    let store = Store::open(&config).unwrap();
    let c = collection(0);
    let mut bad = Vec::new();
    for number in 0..3000 {
        let o = object(&format!("{number:06}"));
        match store.read(c, &o, 0, 300) {
            Ok(read) => assert_eq!(read, content),
            Err(ReadError::Index(_)) => bad.push(o),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(!bad.is_empty() && bad.len() < 500, "one block of the index: {}", bad.len());
    for o in &bad {
        let write = TxOp::Write { c, o: o.clone(), offset: 0, data: content.clone() };
        let changed = store.submit(Transaction { ops: vec![write.clone()] }, |_| ());
        assert!(matches!(changed, Err(SubmitError::CorruptObject { .. })), "{changed:?}");
        let anew = Transaction { ops: vec![TxOp::Remove { c, o: o.clone() }, write] };
        store.submit(anew, |result| result.unwrap()).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let store = Store::open(&config).unwrap();
    for o in &bad {
        assert_eq!(store.read(c, o, 0, 300).unwrap(), content);
    }
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

/// Rewrites the same rows, and flushes, until the index has compacted its files; gives the first error.
fn write_until_compacted(store: &Store, rounds: u64) -> Result<(), SubmitError> {
    for round in 0..rounds {
        let mut rng = SmallRng::seed_from_u64(round);
        let rows = (0..200_u32).map(|row| (row.to_be_bytes().to_vec(), data(&mut rng, 1000))).collect();
        let put = TxOp::PutRows { c: collection(0), o: object("rows"), rows };
        store.submit_and_wait(Transaction { ops: vec![put] })?;
        // What a failed flush means, the next write says.
        let _ = store.engine().flush_index();
    }
    Ok(())
}

#[test]
fn a_flipped_bit_that_a_compaction_meets_gives_the_copy_up_and_is_no_endless_loop() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let store = Store::format(&config, IDENTITY, DEVICE).unwrap();
    store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] }).unwrap();
    write_until_compacted(&store, 2).unwrap();
    store.close().unwrap();
    drop(store);
    let tables = std::fs::read_dir(&config.index).unwrap().map(|entry| entry.unwrap().path());
    let tables = tables.filter(|path| path.extension().is_some_and(|extension| extension == "sst"));
    let largest = tables.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&largest, bytes).unwrap();

    let store = Store::open(&config).expect("nothing reads it yet");
    let error = write_until_compacted(&store, 100).expect_err("a compaction reads it");
    let SubmitError::Poisoned(error) = error else { panic!("{error:?}") };
    assert!(error.index_is_damaged() && !error.doubts_the_device(), "{error:?}");
    drop(store);
    for _ in 0..2 {
        let error = Store::open(&config).expect_err("it would fail again");
        assert!(matches!(error, OpenError::IndexDamaged { .. }) && error.copy_is_lost(), "{error:?}");
    }
    std::fs::remove_file(&config.device).unwrap();
    Store::format(&config, IDENTITY, DEVICE).unwrap().close().unwrap();
    Store::open(&config).expect("the mark is gone with what it spoke of");
}

/// Keeps the commit thread of a store where it is, as a device that hangs would; gives it free when dropped.
struct Hung(#[expect(dead_code, reason = "dropped to give it free")] std::sync::mpsc::Sender<()>);

fn hang(store: &Store) -> Hung {
    let (free, freed) = std::sync::mpsc::channel::<()>();
    let (reached, is_reached) = std::sync::mpsc::channel();
    let held = move |_: Result<(), Arc<_>>| {
        reached.send(()).unwrap();
        let _ = freed.recv();
    };
    store.submit(Transaction { ops: vec![TxOp::CreateCollection { c: collection(0) }] }, held).unwrap();
    is_reached.recv().unwrap();
    Hung(free)
}

#[test]
fn nobody_waits_for_a_hung_device_once_its_store_is_abandoned() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::format(&config(directory.path()), IDENTITY, 2 * DEVICE).unwrap();
    let hung = hang(&store);
    assert!(store.stalled_for() > std::time::Duration::ZERO);
    let writer = store.clone();
    let writing = std::thread::spawn(move || {
        for number in 0..20 {
            writer.submit(put(&number.to_string(), Bytes::from(vec![1; 3 << 20])), |_| {}).unwrap();
        }
    });
    while store.engine().pending_bytes() < 32 << 20 {
        std::thread::yield_now();
    }
    assert!(!writing.is_finished(), "it waits for room in the queue");
    store.abandon();
    writing.join().unwrap();
    drop(store); // and this does not wait for the thread that hangs
    drop(hung);
}
