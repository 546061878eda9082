//! Room that is kept for the index: a file that is given up when its file system is full.
//!
//! RocksDB writes its tables where others write, too. A flush that finds no room fails the store as a whole: with it the
//! deletes, which alone make room again. So a file beside the index, `index-room`, keeps some blocks. They are given up when
//! hardly any others are left, and taken again as soon as there are enough. While fewer are free than the file keeps, or it
//! keeps none, no more is let in ([`Engine::note_index_room`]): the store is full, and lives.
//!
//! What fills the file system within the moment between two looks may still fail a flush. The next open gives the blocks up
//! before RocksDB needs any.
//!
//! [`Engine::note_index_room`]: crate::Engine::note_index_room

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// The file's name, beside the index.
const FILE: &str = "index-room";
/// Part of the device that is kept for its index: it takes a hundredth or so of what it indexes, in objects of 64 KiB.
const DEVICE_SHARE: u64 = 64;
/// A flush on the smallest devices...
const BYTES_MIN: u64 = 4 << 20;
/// ...and the largest memtable on all others.
const BYTES_MAX: u64 = 64 << 20;
/// The blocks are given up when no more than this part of them is free.
const GIVEN_UP_SHARE: u64 = 4;
/// How often is looked, at least while there are commits.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Tells how many bytes are free for the index.
type Free = Box<dyn Fn() -> io::Result<u64> + Send>;

/// See the module.
pub(crate) struct IndexRoom {
    path: PathBuf,
    bytes: u64,
    free: Free,
    /// The file has its blocks, or is on a file system that reserves none.
    held: bool,
    low: bool,
    looked: Instant,
}

impl IndexRoom {
    /// For the index in the directory `index`, of a device of `device_bytes`; looks at once.
    pub(crate) fn open(index: &Path, device_bytes: u64) -> IndexRoom {
        // The index itself may not be there yet.
        let directory = match index.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let free = move || {
            let stat = rustix::fs::statvfs(&directory)?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        };
        IndexRoom::with(index, device_bytes, Box::new(free))
    }

    pub(crate) fn with(index: &Path, device_bytes: u64, free: Free) -> IndexRoom {
        let path = index.with_file_name(FILE);
        let bytes = (device_bytes / DEVICE_SHARE).clamp(BYTES_MIN, BYTES_MAX);
        let held = std::fs::metadata(&path).is_ok_and(|file| file.blocks().saturating_mul(512) >= bytes);
        let mut room = IndexRoom { path, bytes, free, held, low: false, looked: Instant::now() };
        room.look();
        room
    }

    /// Whether so little is free that no more may be let in.
    pub(crate) fn is_low(&self) -> bool {
        self.low
    }

    /// Whether it is time to look again.
    pub(crate) fn is_due(&self) -> bool {
        self.looked.elapsed() >= LOOK_INTERVAL
    }

    /// Looks what is free, and gives the blocks up or takes them accordingly. True when there is more or less room to let
    /// something in than at the last look.
    pub(crate) fn look(&mut self) -> bool {
        self.looked = Instant::now();
        let free = match (self.free)() {
            Ok(free) => free,
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "the free bytes are not known");
                return false;
            }
        };
        let mut left = free;
        if self.held && free < self.bytes / GIVEN_UP_SHARE {
            self.give_up();
        } else if !self.held && free >= 2 * self.bytes {
            self.take();
            left = free - self.bytes;
        }
        // What was low is so until there is half as much again: else each segment that is cleaned lets one write in.
        let enough = if self.low { self.bytes + self.bytes / 2 } else { self.bytes };
        let low = !self.held || left < enough;
        if low == self.low {
            return false;
        }
        self.low = low;
        let index = self.path.display();
        if low {
            tracing::warn!(%index, free, kept = self.bytes, "the file system of the index is nearly full: no more is let in");
        } else {
            tracing::info!(%index, free, "the file system of the index has room again");
        }
        true
    }

    fn give_up(&mut self) {
        match OpenOptions::new().write(true).open(&self.path).and_then(|file| file.set_len(0)) {
            Ok(()) => tracing::warn!(path = %self.path.display(), bytes = self.bytes, "given up for the index"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot be given up for the index");
                return;
            }
        }
        self.held = false;
    }

    fn take(&mut self) {
        let taken = File::create(&self.path)
            .and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.bytes)?));
        match taken {
            Ok(()) => self.held = true,
            // Then what is free is all that can be looked at.
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => self.held = true,
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "no room is kept for the index");
                // What it has got of it is for the index, too.
                self.give_up();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Of 256 MiB: 4 MiB are kept.
    const DEVICE_BYTES: u64 = 256 << 20;
    const KEPT: u64 = 4 << 20;

    fn kept(directory: &Path) -> u64 {
        std::fs::metadata(directory.join(FILE)).map_or(0, |file| file.blocks() * 512)
    }

    fn room(directory: &Path, free: &Arc<AtomicU64>) -> IndexRoom {
        let free = Arc::clone(free);
        IndexRoom::with(&directory.join("index"), DEVICE_BYTES, Box::new(move || Ok(free.load(Ordering::Relaxed))))
    }

    #[test]
    fn blocks_are_kept_while_there_is_room_and_given_up_to_the_index_when_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(100 * KEPT));
        let mut room = room(directory.path(), &free);
        assert!(!room.is_low() && kept(directory.path()) >= KEPT);
        // Little is left: nothing more is let in, and nothing given up yet.
        free.store(KEPT - 1, Ordering::Relaxed);
        assert!(room.look() && room.is_low() && kept(directory.path()) >= KEPT);
        free.store(KEPT / 4 - 1, Ordering::Relaxed);
        assert!(!room.look() && room.is_low());
        assert_eq!(kept(directory.path()), 0);
        // What was given up is free, and no room for writes.
        free.store(2 * KEPT - 1, Ordering::Relaxed);
        assert!(!room.look() && room.is_low() && kept(directory.path()) == 0);
        // First the blocks are taken again...
        free.store(2 * KEPT, Ordering::Relaxed);
        assert!(!room.look() && room.is_low() && kept(directory.path()) >= KEPT);
        // ...and with half as much again something is let in.
        free.store(KEPT + KEPT / 2, Ordering::Relaxed);
        assert!(room.look() && !room.is_low());
    }

    #[test]
    fn an_index_that_opens_on_a_full_file_system_is_given_what_was_kept_for_it_first() {
        let directory = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(100 * KEPT));
        drop(room(directory.path(), &free));
        assert!(kept(directory.path()) >= KEPT);
        free.store(0, Ordering::Relaxed);
        let next = room(directory.path(), &free);
        assert!(next.is_low());
        assert_eq!(kept(directory.path()), 0);
    }

    #[test]
    fn without_room_for_the_blocks_nothing_is_let_in() {
        let directory = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(KEPT));
        assert!(room(directory.path(), &free).is_low());
        assert!(!directory.path().join(FILE).exists());
    }
}
