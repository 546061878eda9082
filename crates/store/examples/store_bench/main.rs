//! Measures the store alone on a real device, beside the device itself: what `write + fdatasync` of the same sizes gives.
//!
//! `cargo run --release -p holdfast-store --example store_bench -- [--dir DIR] [--seconds N] [--segment MIB] [--memory MIB]
//! [--only TEXT]`
//!
//! A transaction is as an OSD's for a write of a whole object: the data, the version attribute, a log row of its placement
//! group and the group's info row; now and then a log is trimmed. CPU is that of the whole process, kernel included. The
//! loop is closed: a new transaction begins when one becomes durable.
#![allow(clippy::unwrap_used)]

mod raw;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_store::{CollectionId, Identity, ObjectKey, Options, Store, StoreConfig, Transaction, TxOp};
use holdfast_types::{ClusterId, DiskUuid, OsdId};

/// Placement groups that the load goes to.
const COLLECTIONS: u32 = 32;
/// Rows of a log that is trimmed, and those that are kept.
const LOG_ROWS: u64 = 200;
/// Bytes of payload that a cell writes at most.
const CELL_BYTES_MAX: u64 = 2 << 30;
const DEVICE_BYTES: u64 = 6 << 30;

/// Process time of all threads, user and system.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Takes the time of ops and prints a line.
struct Cell {
    name: String,
    bytes: usize,
    latencies: Vec<Duration>,
    started: Instant,
    cpu: Duration,
}

impl Cell {
    fn begin(name: String, bytes: usize) -> Cell {
        Cell { name, bytes, latencies: Vec::new(), started: Instant::now(), cpu: cpu() }
    }

    fn goes_on(&self, seconds: f64) -> bool {
        self.started.elapsed().as_secs_f64() < seconds && (self.latencies.len() * self.bytes) as u64 <= CELL_BYTES_MAX
    }

    fn end(mut self) {
        let (elapsed, used) = (self.started.elapsed().as_secs_f64(), cpu() - self.cpu);
        self.latencies.sort();
        let ops = self.latencies.len().max(1);
        let at = |share: usize| self.latencies.get(ops * share / 100).map_or(0, Duration::as_micros);
        println!(
            "{:<28} {:>9.0} ops/s {:>8.1} MB/s  p50 {:>6} us  p99 {:>6} us  {:>7.1} us CPU/op",
            self.name,
            ops as f64 / elapsed,
            (ops * self.bytes) as f64 / elapsed / 1e6,
            at(50),
            at(99),
            used.as_secs_f64() * 1e6 / ops as f64,
        );
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    out.truncate(bytes);
    out
}

struct Load {
    store: Store,
    seconds: f64,
    /// Transactions so far, of all cells: numbers of log rows.
    number: u64,
}

fn object(bytes: usize, number: u64) -> (CollectionId, ObjectKey) {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let c = CollectionId { pool: 1, seed: (mixed >> 40) as u32 % COLLECTIONS };
    (c, ObjectKey::new(format!("{mixed:016x}/{bytes}/object-{number}").into_bytes()).unwrap())
}

fn log_key(number: u64) -> Vec<u8> {
    let mut key = vec![b'l'; 9];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

impl Load {
    fn transaction(&mut self, number: u64, objects: u64, data: &Bytes) -> Transaction {
        let (c, o) = object(data.len(), number % objects);
        self.number += 1;
        let mut ops = Vec::with_capacity(6);
        if number >= objects {
            ops.push(TxOp::Truncate { c, o: o.clone(), size: 0 });
        }
        ops.push(TxOp::Write { c, o: o.clone(), offset: 0, data: data.clone() });
        ops.push(TxOp::SetAttr { c, o, name: b"\0v".to_vec(), value: Bytes::from(vec![7; 16]) });
        ops.push(TxOp::PutMeta { c, key: log_key(self.number), value: Bytes::from(vec![8; 180]) });
        ops.push(TxOp::PutMeta { c, key: b"i".to_vec(), value: Bytes::from(vec![9; 120]) });
        if self.number.is_multiple_of(LOG_ROWS / 4) {
            let end = Some(log_key(self.number.saturating_sub(LOG_ROWS * u64::from(COLLECTIONS))));
            ops.push(TxOp::DeleteMetaRange { c, start: b"l".to_vec(), end });
        }
        Transaction { ops }
    }

    fn write(&mut self, bytes: usize, in_flight: usize, objects: u64) {
        let data = Bytes::from(noise(bytes));
        let (done, finished) = mpsc::channel();
        let mut cell = Cell::begin(format!("store write {bytes} c{in_flight}"), bytes);
        let mut number = 0;
        let mut submit = |load: &mut Load| {
            let tx = load.transaction(number, objects, &data);
            number += 1;
            let (done, at) = (done.clone(), Instant::now());
            load.store.submit(tx, move |result| done.send((at, result.is_ok())).unwrap()).unwrap();
        };
        for _ in 0..in_flight {
            submit(self);
        }
        while cell.goes_on(self.seconds) {
            let (at, ok) = finished.recv().unwrap();
            assert!(ok);
            cell.latencies.push(at.elapsed());
            submit(self);
        }
        let count = in_flight;
        cell.end();
        for _ in 0..count {
            assert!(finished.recv().unwrap().1);
        }
    }

    fn read(&mut self, bytes: usize, threads: u64, objects: u64) {
        let mut cell = Cell::begin(format!("store read {bytes} c{threads}"), bytes);
        let seconds = self.seconds.min(3.0);
        let store = &self.store;
        let all = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..threads)
                .map(|thread| {
                    scope.spawn(move || {
                        let (started, mut latencies) = (Instant::now(), Vec::new());
                        let mut number = thread;
                        while started.elapsed().as_secs_f64() < seconds {
                            let (c, o) = object(bytes, number % objects);
                            let at = Instant::now();
                            assert_eq!(store.read(c, &o, 0, bytes as u64).unwrap().len(), bytes);
                            latencies.push(at.elapsed());
                            number += threads;
                        }
                        latencies
                    })
                })
                .collect();
            readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
        });
        cell.latencies = all;
        cell.end();
    }
}

struct Arguments {
    directory: PathBuf,
    seconds: f64,
    segment: u32,
    memory: u64,
    only: String,
}

fn arguments() -> Arguments {
    let mut given = Arguments {
        directory: std::env::temp_dir(),
        seconds: 5.0,
        segment: Options::default().segment_bytes >> 20,
        memory: 256,
        only: String::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--dir" => given.directory = value.into(),
            "--seconds" => given.seconds = value.parse().unwrap(),
            "--segment" => given.segment = value.parse().unwrap(),
            "--memory" => given.memory = value.parse().unwrap(),
            "--only" => given.only = value,
            other => panic!("unknown option {other}"),
        }
    }
    given
}

fn open(directory: &Path, given: &Arguments) -> (StoreConfig, Store) {
    let options = Options { segment_bytes: given.segment << 20, ..Options::default() };
    let config = StoreConfig { memory_target: given.memory << 20, options, ..StoreConfig::in_directory(directory) };
    let identity = Identity { cluster: ClusterId([1; 16]), disk: DiskUuid([2; 16]), osd: OsdId(0) };
    let store = Store::format(&config, identity, DEVICE_BYTES).unwrap();
    for seed in 0..COLLECTIONS {
        let c = CollectionId { pool: 1, seed };
        store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c }] }).unwrap();
    }
    (config, store)
}

fn main() {
    let given = arguments();
    let directory = given.directory.join("holdfast-store-bench");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    let wanted = |name: &str| name.contains(&given.only);
    for bytes in [4 << 10, 80 << 10, 4 << 20] {
        if wanted("raw") {
            raw::append(&directory, bytes, given.seconds.min(3.0));
        }
    }
    let (config, store) = open(&directory, &given);
    let mut load = Load { store, seconds: given.seconds, number: 0 };
    for (bytes, objects) in [(4 << 10, 20_000), (4 << 20, 300)] {
        for in_flight in [1, 16] {
            if wanted(&format!("write {bytes} c{in_flight} ")) {
                load.write(bytes, in_flight, objects);
            }
        }
        if wanted(&format!("read {bytes} ")) {
            let some = objects.min(64);
            let fill = Load { store: load.store.clone(), seconds: 0.0, number: load.number };
            fill_objects(fill, bytes, some);
            load.number += some;
            for threads in [1, 4] {
                load.read(bytes, threads, some);
            }
        }
    }
    println!("{:?}", load.store.usage());
    load.store.close().unwrap();
    drop(load);
    let started = Instant::now();
    let store = Store::open(&config).unwrap();
    println!("open after close: {:?}", started.elapsed());
    drop(store);
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Writes the objects that are read, so that their content is known to be there.
fn fill_objects(mut load: Load, bytes: usize, objects: u64) {
    let data = Bytes::from(noise(bytes));
    for number in 0..objects {
        let tx = load.transaction(number, objects, &data);
        load.store.submit_and_wait(tx).unwrap();
    }
}
