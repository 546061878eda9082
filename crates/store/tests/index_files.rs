//! The files of the index as a power failure or a flipped bit leaves them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use holdfast_store::{Batch, Change, Index, IndexError, Position, RocksIndex};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

const MEMORY_BYTES: u64 = 16 << 20;
const SECTOR: usize = 512;
/// So long that an edit of the manifest, which has one of them, is in several sectors.
const KEY_BYTES: usize = 2500;

type Files = BTreeMap<String, Vec<u8>>;

fn files(directory: &Path) -> Files {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let named = entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
    named.map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
}

fn in_directory(files: &Files) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

fn name_of(files: &Files, part: &str) -> String {
    files.keys().rfind(|name| name.starts_with(part) || name.ends_with(part)).unwrap().clone()
}

fn key(number: u64) -> Bytes {
    let mut key = number.to_be_bytes().to_vec();
    key.insert(0, 9);
    key.resize(KEY_BYTES, u8::try_from(number % 200).unwrap());
    key.into()
}

/// Applies batch `number`, which says so in its last row, as the engine does.
fn apply(index: &RocksIndex, number: u64) {
    let row = Bytes::from(minicbor::to_vec(BTreeMap::from([(1_u8, number)])).unwrap());
    let changes = vec![Change::Put(key(number), Bytes::from(vec![7; 40])), Change::Put(Bytes::from_static(&[1]), row)];
    index.apply(Batch { changes, position: Position(number) }).unwrap();
}

/// The last batch that is there; all before it must be.
fn last_in(index: &RocksIndex) -> u64 {
    let row = index.get(&[1]).unwrap();
    let row: BTreeMap<u8, u64> = row.map_or_else(BTreeMap::new, |row| minicbor::decode(&row).unwrap());
    let last = row.get(&1).copied().unwrap_or(0);
    for number in 1..=last {
        assert!(index.get(&key(number)).unwrap().is_some(), "batch {number} of {last}");
    }
    last
}

fn opened(files: &Files) -> Result<u64, IndexError> {
    let directory = in_directory(files);
    RocksIndex::open(directory.path(), MEMORY_BYTES).map(|index| last_in(&index))
}

/// The files after `flushes` flushes of three batches each, and after all before the last.
fn written(flushes: u64) -> (Files, Files) {
    let directory = tempfile::tempdir().unwrap();
    let index = RocksIndex::open(directory.path(), MEMORY_BYTES).unwrap();
    let mut before = Files::new();
    for number in 1..=flushes * 3 {
        apply(&index, number);
        if number == flushes * 3 {
            before = files(directory.path());
        }
        if number % 3 == 0 {
            index.flush().unwrap();
        }
    }
    drop(index);
    (before, files(directory.path()))
}

#[test]
fn whatever_the_power_leaves_of_the_manifests_last_edit_the_index_opens_with_all_that_was_flushed() {
    let (before, after) = written(3);
    let manifest = name_of(&before, "MANIFEST");
    let (synced, whole) = (before[&manifest].len(), &after[&manifest]);
    assert!(whole.len() > synced + 3 * SECTOR, "{} bytes after {synced}", whole.len());
    let mut refused_by_rocksdb = 0;
    for seed in 0..50 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut torn = whole.clone();
        for number in synced / SECTOR..=(torn.len() - 1) / SECTOR {
            if random.random_bool(0.4) {
                let end = torn.len().min((number + 1) * SECTOR);
                torn[(number * SECTOR).max(synced)..end].fill(0);
            }
        }
        match random.random_range(0..3) {
            0 => torn.resize(torn.len() + random.random_range(0..70_000), 0),
            1 => torn.truncate(random.random_range(synced..torn.len())),
            _ => {}
        }
        let mut files = before.clone();
        files.insert(manifest.clone(), torn);
        // The table of the flush is there, and not named, or named by an edit that is whole.
        let table = name_of(&after, ".sst");
        files.insert(table.clone(), after[&table].clone());
        let plain = in_directory(&files);
        refused_by_rocksdb += usize::from(rocksdb::DB::open_default(plain.path()).is_err());
        match opened(&files) {
            Ok(last) => assert!(last == 6 || last == 9, "seed {seed}: {last}"),
            Err(error) => panic!("seed {seed}: {error:?}"),
        }
    }
    assert!(refused_by_rocksdb > 10, "RocksDB alone refuses only {refused_by_rocksdb}");
}

#[test]
fn a_flipped_bit_of_the_manifest_is_refused_or_loses_nothing_that_was_flushed() {
    for flushes in [1, 3, 6] {
        let (_, after) = written(flushes);
        let manifest = name_of(&after, "MANIFEST");
        for at in (0..after[&manifest].len()).step_by(67) {
            let mut files = after.clone();
            files.get_mut(&manifest).unwrap()[at] ^= 1 << (at % 8);
            match opened(&files) {
                Ok(last) => assert_eq!(last, flushes * 3, "byte {at}"),
                Err(error) => assert!(error.is_corruption() || at > 0, "byte {at}: {error:?}"),
            }
        }
    }
}

#[test]
fn an_index_that_has_lost_a_flush_is_damaged() {
    let (before, after) = written(2);
    let mut files = before;
    files.insert("persisted".into(), after["persisted"].clone());
    let error = opened(&files).unwrap_err();
    assert!(matches!(error, IndexError::WentBack { persisted: Position(6), found: Position(3) }), "{error:?}");
    assert!(error.is_corruption());
}

#[test]
fn an_index_that_is_made_anew_forgets_what_the_last_one_held() {
    let (_, after) = written(2);
    let directory = in_directory(&after);
    RocksIndex::destroy(directory.path()).unwrap();
    let index = RocksIndex::open(directory.path(), MEMORY_BYTES).unwrap();
    assert_eq!(last_in(&index), 0);
}

#[test]
fn a_current_that_names_no_manifest_is_damage_and_no_empty_index() {
    let (_, after) = written(2);
    let current = after["CURRENT"].clone();
    for bit in 0..current.len() * 8 {
        let mut files = after.clone();
        files.get_mut("CURRENT").unwrap()[bit / 8] ^= 1 << (bit % 8);
        let error = opened(&files).unwrap_err();
        assert!(error.is_corruption(), "bit {bit}: {error:?}");
    }
    // A manifest whose name was lost, which the order of names rules out.
    let mut files = after.clone();
    files.remove(&name_of(&after, "MANIFEST"));
    assert!(opened(&files).unwrap_err().is_corruption());
    let mut files = after;
    files.remove("CURRENT");
    assert!(opened(&files).unwrap_err().is_corruption(), "RocksDB would make a new one");
}

#[test]
fn what_is_not_named_may_be_anything() {
    let (_, after) = written(2);
    let garbage: Vec<u8> = (0..5000_u32).map(|at| u8::try_from(at * at % 251).unwrap()).collect();
    let options = name_of(&after, "OPTIONS");
    let log = name_of(&after, ".log");
    for name in
        ["IDENTITY", "LOG", "000900.sst", "000901.dbtmp", "MANIFEST-000902", "OPTIONS-000903.dbtmp", &options, &log]
    {
        for bytes in [&garbage[..], &[0; 700], &[]] {
            let mut files = after.clone();
            files.insert(name.to_owned(), bytes.to_vec());
            assert_eq!(opened(&files).unwrap(), 6, "{name}: {} bytes", bytes.len());
        }
        let mut files = after.clone();
        files.remove(name);
        assert_eq!(opened(&files).unwrap(), 6, "without {name}");
    }
}
