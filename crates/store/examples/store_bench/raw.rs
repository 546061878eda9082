//! The device itself: one `pwrite` to allocated blocks of a file and one `fdatasync`, one after the other.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use crate::{Cell, noise};

/// Bytes of the file; the writes go round in it once its blocks are allocated.
const FILE_BYTES: u64 = 512 << 20;

pub(crate) fn append(directory: &Path, bytes: usize, seconds: f64) {
    let path = directory.join("raw");
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, FILE_BYTES).unwrap();
    let data = noise(bytes);
    file.sync_all().unwrap();
    let mut cell = Cell::begin(format!("raw write+fdatasync {bytes}"), bytes);
    let mut offset = 0;
    while cell.goes_on(seconds) {
        let at = Instant::now();
        file.write_all_at(&data, offset).unwrap();
        file.sync_data().unwrap();
        cell.latencies.push(at.elapsed());
        offset = (offset + bytes as u64) % FILE_BYTES;
    }
    cell.end();
    drop(file);
    std::fs::remove_file(&path).unwrap();
}
