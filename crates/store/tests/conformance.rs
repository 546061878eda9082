//! One suite for both indexes, and one for both devices.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use holdfast_store::{Batch, Change, Device, FileDevice, Index, MemDevice, MemIndex, Position, RocksIndex};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn rows(index: &dyn Index, start: &[u8], end: Option<&[u8]>, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    index
        .scan(start, end, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            if rows.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .unwrap();
    rows
}

fn index_suite(index: &dyn Index, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let key = |rng: &mut SmallRng| vec![rng.random_range(0..4u8); rng.random_range(1..4)];
    for position in 1..200 {
        let mut changes = Vec::new();
        for _ in 0..rng.random_range(0..6) {
            let k = key(&mut rng);
            match rng.random_range(0..8) {
                0 => {
                    let end = key(&mut rng);
                    model.retain(|key, _| !(k.as_slice()..end.as_slice()).contains(&key.as_slice()));
                    changes.push(Change::DeleteRange(k.into(), end.into()));
                }
                1..=2 => {
                    model.remove(&k);
                    changes.push(Change::Delete(k.into()));
                }
                _ => {
                    let value = vec![position as u8; rng.random_range(0..9)];
                    model.insert(k.clone(), value.clone());
                    changes.push(Change::Put(k.into(), value.into()));
                }
            }
        }
        index.apply(Batch { changes, position: Position(position) }).unwrap();
        if rng.random_range(0..10) == 0 {
            index.flush().unwrap();
            assert_eq!(index.persisted_position(), Position(position));
        }
        assert!(index.persisted_position() <= Position(position));
        let k = key(&mut rng);
        assert_eq!(index.get(&k).unwrap(), model.get(&k).cloned().map(Bytes::from));
        let (start, end, limit) = (key(&mut rng), key(&mut rng), rng.random_range(1..9));
        let expected: Vec<_> = model
            .iter()
            .filter(|(key, _)| **key >= start && **key < end)
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        assert_eq!(rows(index, &start, Some(&end), limit), expected);
        assert_eq!(rows(index, b"", None, usize::MAX).len(), model.len());
    }
}

#[test]
fn both_indexes_are_ordered_rows() {
    for seed in 0..10 {
        index_suite(&MemIndex::new(), seed);
        let directory = tempfile::tempdir().unwrap();
        index_suite(&RocksIndex::open(directory.path(), 8 << 20).unwrap(), seed);
    }
}

#[test]
fn a_crashed_memory_index_has_what_was_flushed_and_a_prefix_of_the_rest() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let index = MemIndex::new();
        for position in 1..=6u64 {
            let change = Change::Put(Bytes::from_static(b"k"), position.to_string().into());
            index.apply(Batch { changes: vec![change], position: Position(position) }).unwrap();
            if position == 2 {
                index.flush().unwrap();
            }
        }
        let after = index.crash(&mut SmallRng::seed_from_u64(seed));
        assert_eq!(after.get(b"k").unwrap().unwrap(), after.persisted_position().0.to_string());
        seen.insert(after.persisted_position().0);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
}

fn device_suite(device: &dyn Device) {
    let bytes = device.len().unwrap();
    let mut model = vec![0u8; bytes as usize];
    let mut rng = SmallRng::seed_from_u64(5);
    for _ in 0..300 {
        let offset = rng.random_range(0..bytes - 5000);
        let pieces: Vec<Bytes> = (0..rng.random_range(1..4))
            .map(|_| {
                let count = rng.random_range(0..1500);
                common::data(&mut rng, count)
            })
            .collect();
        let slices: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_ref()).collect();
        device.write_at(offset, &slices).unwrap();
        let all = slices.concat();
        model[offset as usize..offset as usize + all.len()].copy_from_slice(&all);
        if rng.random_range(0..5) == 0 {
            device.sync().unwrap();
        }
        let from = rng.random_range(0..bytes - 5000) as usize;
        let mut read = vec![0; 4000];
        device.read_at(from as u64, &mut read).unwrap();
        assert_eq!(read, model[from..from + 4000]);
    }
    device.discard(4096, 8192).unwrap();
    device.allocate(4096, 8192).unwrap();
    let mut beyond = [0; 2];
    assert!(device.read_at(bytes - 1, &mut beyond).is_err());
}

#[test]
fn both_devices_are_numbered_bytes() {
    device_suite(&MemDevice::new(256 << 10));
    let directory = tempfile::tempdir().unwrap();
    device_suite(&FileDevice::create(&directory.path().join("block"), 256 << 10).unwrap());
}

#[test]
fn a_file_device_is_opened_once_and_never_cut() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("block");
    let device = FileDevice::create(&path, 64 << 10).unwrap();
    assert!(FileDevice::open(&path).is_err());
    drop(device);
    assert_eq!(FileDevice::create(&path, 4096).unwrap().len().unwrap(), 64 << 10);
}

#[test]
fn a_device_is_made_only_where_nothing_is_not_even_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let (path, link) = (directory.path().join("gone"), directory.path().join("block"));
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let missing = |made: std::io::Result<FileDevice>| made.unwrap_err().kind() == std::io::ErrorKind::NotFound;
    assert!(missing(FileDevice::create(&link, 4096)) && missing(FileDevice::open_extended(&path, 4096)));
    assert!(!path.exists());
    assert_eq!(FileDevice::create(&path, 4096).unwrap().len().unwrap(), 4096);
    assert_eq!(FileDevice::create(&link, 8192).unwrap().len().unwrap(), 8192);
}
