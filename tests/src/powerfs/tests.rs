#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::process::{Command, Stdio};

use rand::Rng as _;
use rustix::fs::{FallocateFlags, OFlags};

use super::disk::Disk;
use super::names::{Kind, Node, ROOT};
use super::*;
use crate::world::skip;

const SECTOR: usize = 512;

fn random(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

/// Named so that `cargo xtask` finds what a killed run has left mounted.
fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix(&format!("holdfast-chaos-{}-", std::process::id())).tempdir().unwrap()
}

fn a_file() -> Node {
    Node { kind: Kind::File, mode: 0o644, uid: 0, gid: 0, links: 1 }
}

/// What a sector of a file may be after a power loss: what was synced, or anything written since.
#[derive(Debug, Default)]
struct Possible {
    sectors: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Possible {
    fn also(&mut self, content: &[u8]) {
        for (number, sector) in content.chunks(SECTOR).enumerate() {
            let versions = self.sectors.entry(number).or_default();
            if versions.last().is_none_or(|last| last != sector) {
                versions.push(sector.to_vec());
            }
        }
    }
}

#[test]
fn what_was_synced_is_there_whole_and_of_the_rest_every_sector_is_old_or_new() {
    let (mut dropped, mut survived, mut torn) = (0, 0, 0);
    for seed in 0..60 {
        let dir = directory();
        let mut random = random(seed);
        let mut disk = Disk::new(dir.path().to_path_buf());
        let ino = disk.create(ROOT, OsStr::new("file"), a_file()).unwrap().ino;
        let size = 64 * 1024;
        let mut now = vec![0; size];
        disk.write(ino, 0, &now).unwrap();
        let sync = disk.begin_sync(ino);
        disk.settle(sync).unwrap();
        let mut possible = Possible::default();
        possible.also(&now);
        for _ in 0..4 {
            for _ in 0..random.random_range(0..30) {
                let from = random.random_range(0..size);
                let to = random.random_range(from..=size.min(from + 20_000));
                if random.random_bool(0.15) {
                    now[from..to].fill(0);
                    disk.punch(ino, from as u64, (to - from) as u64).unwrap();
                } else {
                    random.fill(&mut now[from..to]);
                    disk.write(ino, from as u64, &now[from..to]).unwrap();
                }
                possible.also(&now);
                assert_eq!(disk.read(ino, 0, size).unwrap(), now, "seed {seed}");
                if random.random_bool(0.15) {
                    let sync = disk.begin_sync(ino);
                    if random.random_bool(0.5) {
                        disk.settle(sync).unwrap();
                        possible = Possible::default();
                        possible.also(&now);
                    }
                }
            }
            let lost = disk.lose(&mut random).unwrap();
            (dropped, survived, torn) = (dropped + lost.dropped, survived + lost.survived, torn + lost.torn);
            now = disk.read(ino, 0, size).unwrap();
            assert_eq!(now.len(), size, "seed {seed}: the size was synced");
            for (number, sector) in now.chunks(SECTOR).enumerate() {
                assert!(
                    possible.sectors[&number].iter().any(|version| version == sector),
                    "seed {seed}: sector {number}"
                );
            }
            possible = Possible::default();
            possible.also(&now);
        }
    }
    assert!(dropped > 100 && survived > 100 && torn > 20, "{dropped} dropped, {survived} survived, {torn} torn");
}

#[test]
fn names_are_lost_from_the_last_one_backwards_and_never_before_a_sync() {
    let mut lengths = [0; 3];
    for seed in 0..100 {
        let dir = directory();
        let mut random = random(seed);
        let mut disk = Disk::new(dir.path().to_path_buf());
        let synced = random.random_range(0..20);
        for number in 0..20 {
            let ino = disk.create(ROOT, OsStr::new(&number.to_string()), a_file()).unwrap().ino;
            if number == synced {
                let sync = disk.begin_sync(ino);
                disk.settle(sync).unwrap();
            }
        }
        disk.lose(&mut random).unwrap();
        let there: Vec<bool> =
            (0..20).map(|number: u64| disk.look_up(ROOT, OsStr::new(&number.to_string())).is_ok()).collect();
        let count = there.iter().filter(|there| **there).count();
        assert!(there[..count].iter().all(|there| *there), "seed {seed}: {there:?}");
        assert!(count > synced, "seed {seed}: a synced file has lost its name");
        lengths[if count == synced + 1 {
            0
        } else if count < 20 {
            1
        } else {
            2
        }] += 1;
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), count, "what is gone takes no room");
    }
    assert!(lengths.iter().all(|count| *count > 5), "{lengths:?}");
}

#[test]
fn a_cut_that_is_undone_brings_back_what_it_cut_off_and_nothing_that_was_written_after_it() {
    for seed in 0..100 {
        let dir = directory();
        let mut random = random(seed);
        let mut disk = Disk::new(dir.path().to_path_buf());
        let ino = disk.create(ROOT, OsStr::new("file"), a_file()).unwrap().ino;
        disk.write(ino, 0, &[1; 10_000]).unwrap();
        let sync = disk.begin_sync(ino);
        disk.settle(sync).unwrap();
        disk.truncate(ino, 0).unwrap();
        assert!(disk.read(ino, 0, 10_000).unwrap().is_empty());
        disk.write(ino, 8192, &[2; 100]).unwrap();
        assert_eq!(disk.read(ino, 0, 10_000).unwrap(), [vec![0; 8192], vec![2; 100]].concat());
        disk.lose(&mut random).unwrap();
        let bytes = disk.read(ino, 0, 20_000).unwrap();
        let whole = bytes == [1; 10_000];
        let cut = bytes.is_empty() || (bytes.len() == 8292 && bytes[..8192].iter().all(|byte| *byte == 0));
        assert!(whole || cut, "seed {seed}: {} bytes", bytes.len());
    }
}

#[test]
fn a_replaced_file_is_the_old_one_or_the_new_one() {
    let mut seen = [0; 2];
    for seed in 0..60 {
        let dir = directory();
        let mut random = random(seed);
        let mut disk = Disk::new(dir.path().to_path_buf());
        for (name, byte) in [("file", 1), ("file.new", 2)] {
            let ino = disk.create(ROOT, OsStr::new(name), a_file()).unwrap().ino;
            disk.write(ino, 0, &[byte; 5000]).unwrap();
            let sync = disk.begin_sync(ino);
            disk.settle(sync).unwrap();
        }
        disk.rename((ROOT, OsStr::new("file.new")), (ROOT, OsStr::new("file")), true).unwrap();
        disk.lose(&mut random).unwrap();
        let ino = disk.look_up(ROOT, OsStr::new("file")).unwrap().ino;
        let bytes = disk.read(ino, 0, 5000).unwrap();
        assert!(bytes == [1; 5000] || bytes == [2; 5000], "seed {seed}");
        seen[usize::from(bytes[0]) - 1] += 1;
    }
    assert!(seen.iter().all(|count| *count > 5), "{seen:?}");
}

/// How a program of the test below makes a record durable, before or after it says that it has.
const EARLY: [&str; 4] = ["never", "direct, never", "after", "rename, no directory"];
const LATE: [&str; 4] = ["fdatasync", "dsync", "direct, fdatasync", "rename, directory"];
const RECORD: usize = 4096;

/// Not a test: the program that loses power. It writes records and prints the number of each when it has acknowledged it.
#[test]
#[ignore = "a program that the test below starts"]
fn writer() {
    let (dir, how) = (std::env::var("POWER_DIR").unwrap(), std::env::var("POWER_HOW").unwrap());
    let dir = PathBuf::from(dir);
    let flags = match how.as_str() {
        "dsync" => OFlags::DSYNC,
        "direct, never" | "direct, fdatasync" => OFlags::DIRECT,
        _ => OFlags::empty(),
    };
    let flags = i32::try_from(flags.bits()).unwrap();
    let file =
        OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(dir.join("log")).unwrap();
    file.sync_all().unwrap();
    // Direct writes want aligned memory.
    let memory = vec![0u8; 2 * RECORD];
    let aligned = memory.as_ptr().align_offset(RECORD);
    let mut memory = memory;
    for number in 1u8..=250 {
        let record = &mut memory[aligned..aligned + RECORD];
        record.fill(number);
        if how.starts_with("rename") {
            let new = dir.join("new");
            std::fs::write(&new, &*record).unwrap();
            File::open(&new).unwrap().sync_all().unwrap();
            std::fs::rename(&new, dir.join(number.to_string())).unwrap();
            if how == "rename, directory" {
                File::open(&dir).unwrap().sync_all().unwrap();
            }
        } else {
            file.write_all_at(record, u64::from(number - 1) * RECORD as u64).unwrap();
            if how.ends_with("fdatasync") {
                file.sync_data().unwrap();
            }
        }
        println!("acknowledged {number}");
        std::io::stdout().flush().unwrap();
        if how == "after" {
            file.sync_data().unwrap();
        }
    }
}

/// Runs the program until it has acknowledged about `until`, and takes the power away. Records acknowledged, and of those
/// the ones that are not there.
fn cut_off(how: &str, until: u8, seed: u64) -> (u8, u8) {
    let dir = directory();
    let at = dir.path().join("disk");
    let mut grid = Grid::new(seed);
    grid.mount(&at, &dir.path().join("backing"), SyncTime::DISK).unwrap();
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "powerfs::tests::writer", "--ignored", "--nocapture"])
        .env("POWER_DIR", &at)
        .env("POWER_HOW", how)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut acknowledged = 0;
    let mut number = |line: String| line.split_once("acknowledged ").and_then(|(_, number)| number.parse::<u8>().ok());
    while acknowledged < until {
        acknowledged = lines.next().and_then(&mut number).unwrap_or(acknowledged).max(acknowledged);
    }
    grid.cut();
    program.kill().unwrap();
    grid.release();
    program.wait().unwrap();
    let acknowledged = lines.filter_map(&mut number).last().unwrap_or(acknowledged);
    grid.restore().unwrap();
    let log = std::fs::read(at.join("log")).unwrap();
    let lost = (1..=acknowledged).filter(|number| {
        let record = if how.starts_with("rename") {
            std::fs::read(at.join(number.to_string())).unwrap_or_default()
        } else {
            let start = usize::from(number - 1) * RECORD;
            log.get(start..start + RECORD).unwrap_or_default().to_vec()
        };
        record != [*number; RECORD]
    });
    (acknowledged, u8::try_from(lost.count()).unwrap())
}

#[test]
fn a_program_that_acknowledges_before_the_sync_is_found_out_and_one_that_syncs_first_never_loses() {
    if let Some(obstacle) = obstacle() {
        return skip(&obstacle).unwrap();
    }
    for how in EARLY {
        let found_out = (0..12).any(|seed| cut_off(how, 20 + seed as u8 * 3, seed).1 > 0);
        assert!(found_out, "{how}: nothing was ever lost");
    }
    for how in LATE {
        for seed in 0..5 {
            let (acknowledged, lost) = cut_off(how, 10 + seed as u8 * 11, seed);
            assert_eq!(lost, 0, "{how}, seed {seed}: of {acknowledged} records");
        }
    }
}

#[test]
fn what_the_store_asks_of_a_file_system_is_done() {
    if let Some(obstacle) = obstacle() {
        return skip(&obstacle).unwrap();
    }
    let dir = directory();
    let at = dir.path().join("disk");
    let mut grid = Grid::new(1);
    grid.mount(&at, &dir.path().join("backing"), SyncTime::DISK).unwrap();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(at.join("block")).unwrap();
    file.set_len(64 << 20).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 16 << 20).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    file.write_all_at(&[7; 100_000], 1000).unwrap();
    file.sync_data().unwrap();
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, hole, 0, 50_000).unwrap();
    let mut bytes = vec![1; 110_000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..50_000].iter().all(|byte| *byte == 0) && bytes[101_000..].iter().all(|byte| *byte == 0));
    assert!(bytes[50_000..101_000].iter().all(|byte| *byte == 7));
    file.sync_all().unwrap();
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap(), 49_152);
    let direct =
        OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(at.join("block")).unwrap();
    assert!(direct.write_all_at(&[0; 100], 0).is_err(), "not aligned");
    drop((file, direct));
    std::fs::create_dir(at.join("db")).unwrap();
    std::fs::rename(at.join("block"), at.join("db/block")).unwrap();
    std::fs::hard_link(at.join("db/block"), at.join("again")).unwrap();
    std::fs::remove_file(at.join("db/block")).unwrap();
    std::fs::remove_dir(at.join("db")).unwrap();
    assert_eq!(std::fs::metadata(at.join("again")).unwrap().len(), 64 << 20);
    let open = File::open(at.join("again")).unwrap();
    std::fs::remove_file(at.join("again")).unwrap();
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0);
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[50_000..101_000].iter().all(|byte| *byte == 7), "open files outlive their names");
    assert!(rustix::fs::statvfs(&at).unwrap().f_bavail > 0);
}
