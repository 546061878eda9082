//! Measures the store: 4 KiB transactions (data, one attribute, two metadata rows), some in flight.
//!
//! `cargo run --release -p holdfast-store --example store_bench -- [DIRECTORY] [SECONDS] [IN_FLIGHT]`
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_store::{CollectionId, Identity, ObjectKey, Options, Store, StoreConfig, Transaction, TxOp};
use holdfast_types::{ClusterId, DiskUuid, OsdId};

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from).join("holdfast-store-bench");
    let seconds: u64 = arguments.next().map_or(5, |text| text.parse().unwrap());
    let in_flight: usize = arguments.next().map_or(16, |text| text.parse().unwrap());
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    let options = Options { sector_bytes: 4096, ..Options::default() };
    let config = StoreConfig { memory_target: 256 << 20, options, ..StoreConfig::in_directory(&directory) };
    let identity = Identity { cluster: ClusterId([1; 16]), disk: DiskUuid([2; 16]), osd: OsdId(0) };
    let store = Store::format(&config, identity, 8 << 30).unwrap();
    let c = CollectionId { pool: 1, seed: 0 };
    store.submit_and_wait(Transaction { ops: vec![TxOp::CreateCollection { c }] }).unwrap();

    let payload = Bytes::from((0..4096u32).map(|n| ((n * 31) >> 3) as u8).collect::<Vec<_>>());
    let (done, finished) = mpsc::channel();
    let mut latencies = Vec::new();
    let started = Instant::now();
    let cpu_before = cpu();
    let mut number = 0u64;
    let submit = |number: u64| {
        let key = (number % 200_000).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let o = ObjectKey::new(key.to_vec()).unwrap();
        let tx = Transaction {
            ops: vec![
                TxOp::Write { c, o: o.clone(), offset: 0, data: payload.clone() },
                TxOp::SetAttr { c, o, name: b"oi".to_vec(), value: Bytes::from(vec![7; 100]) },
                TxOp::PutMeta { c, key: number.to_be_bytes().to_vec(), value: Bytes::from(vec![8; 180]) },
                TxOp::PutMeta { c, key: b"info".to_vec(), value: Bytes::from(vec![9; 120]) },
            ],
        };
        let done = done.clone();
        let at = Instant::now();
        store.submit(tx, move |result| done.send((at, result.is_ok())).unwrap()).unwrap();
    };
    for _ in 0..in_flight {
        submit(number);
        number += 1;
    }
    while started.elapsed() < Duration::from_secs(seconds) {
        let (at, ok) = finished.recv().unwrap();
        assert!(ok);
        latencies.push(at.elapsed());
        submit(number);
        number += 1;
        if number.is_multiple_of(5000) {
            // Trim the log as a PG does.
            let end = Some((number - 4000).to_be_bytes().to_vec());
            store.submit(Transaction { ops: vec![TxOp::DeleteMetaRange { c, start: vec![0], end }] }, |_| ()).unwrap();
        }
    }
    let (elapsed, used) = (started.elapsed(), cpu() - cpu_before);
    latencies.sort();
    let at = |share: usize| latencies[latencies.len() * share / 100].as_micros();
    println!(
        "write 4 KiB, {in_flight} in flight: {:.0} op/s, p50 {} us, p99 {} us, {:.1} us CPU/op, {:?}",
        latencies.len() as f64 / elapsed.as_secs_f64(),
        at(50),
        at(99),
        used.as_micros() as f64 / latencies.len() as f64,
        store.usage(),
    );
    let (started, cpu_before, mut reads) = (Instant::now(), cpu(), 0u64);
    while started.elapsed() < Duration::from_secs(2) {
        let key = (reads % number.min(200_000)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let read = store.read(c, &ObjectKey::new(key.to_vec()).unwrap(), 0, 4096).unwrap();
        assert_eq!(read.len(), 4096);
        reads += 1;
    }
    let (elapsed, used) = (started.elapsed(), cpu() - cpu_before);
    println!(
        "read 4 KiB, 1 thread: {:.0} op/s, {:.1} us CPU/op",
        reads as f64 / elapsed.as_secs_f64(),
        used.as_micros() as f64 / reads as f64
    );
    let started = Instant::now();
    store.close().unwrap();
    drop(store);
    println!("close {:?}", started.elapsed());
    let started = Instant::now();
    let store = Store::open(&config).unwrap();
    println!("open {:?}", started.elapsed());
    drop(store);
    std::fs::remove_dir_all(&directory).unwrap();
}
