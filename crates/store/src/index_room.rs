//! Room that is kept for the index: a file that is given up when its file system is full.
//!
//! RocksDB writes its tables where others write, too. A flush that finds no room fails the store as a whole: with it the
//! deletes, which alone make room again. So a file beside the index, `index-room`, keeps as many bytes as one flush writes.
//! While room is low nothing more is let in ([`Engine::note_index_room`]): the store is full, and lives.
//!
//! | the file has its blocks | free bytes, of B that are kept | then |
//! |---|---|---|
//! | yes | less than B | room is low: the blocks are given up, which leaves less than 2 B |
//! | no, at the first look | less than 2 B | room is low |
//! | no, at the first look | 2 B or more | the blocks are taken, which leaves B or more |
//! | no, and room is low | 2.5 B or more | the blocks are taken, which leaves 1.5 B or more: room is not low |
//!
//! So between giving up and taking again half of B must have become free: neither follows from the other. It is looked after
//! commits, every second when there are none, and before each flush that the store asks for: the blocks are there when it
//! begins. Where the device is a file on the same file system it gives back what it can while room is low: free segments
//! keep no blocks, and are made by cleaning. It takes none for what clients write, since nothing is let in; so what it gives
//! back lasts, and the room is taken again. Where the device is elsewhere, or on another subvolume, cleaning is no help and
//! is not done for this.
//!
//! The device's next segment, for deletes and for the cleaner, may take what was given up (without it neither could go on),
//! but for a few MiB: the index is flushed before a step of cleaning, and has little to write after it.
//!
//! Not covered: a segment that deletes alone fill before a flush; what others take within the moment between a look and the
//! flush; what RocksDB writes on its own meanwhile (compactions; on devices below 4 GiB, for which less than the largest
//! memtable is kept, a memtable full of rows). The next open gives the blocks up before RocksDB needs any.
//!
//! [`Engine::note_index_room`]: crate::Engine::note_index_room

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;

use crate::engine::{IndexRoomLeft, is_no_space};

/// The file's name, beside the index.
const FILE: &str = "index-room";
/// Part of the device that is kept for its index: it takes a hundredth or so of what it indexes, in objects of 64 KiB.
const DEVICE_SHARE: u64 = 64;
/// A flush on the smallest devices...
const BYTES_MIN: u64 = 4 << 20;
/// ...and the largest memtable on all others.
const BYTES_MAX: u64 = 64 << 20;
/// How often is looked, at least while there are commits.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Tells how many bytes are free for the index.
type Free = Box<dyn Fn() -> io::Result<u64> + Send>;

/// See the module.
pub(crate) struct IndexRoom {
    path: PathBuf,
    bytes: u64,
    /// The device is a file on the same file system.
    with_device: bool,
    free: Free,
    /// The file has its blocks, or cannot have any.
    held: bool,
    low: bool,
    looked: Instant,
    /// It was said that no blocks can be kept.
    told_not_kept: bool,
    /// It was said that they cannot be given up.
    told_not_given_up: bool,
}

impl IndexRoom {
    /// For the index in the directory `index`, of the device `device`, which has `device_bytes`; looks at once.
    pub(crate) fn open(index: &Path, device: &Path, device_bytes: u64) -> IndexRoom {
        // The index itself may not be there yet.
        let directory = match index.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let file_system = std::fs::metadata(&directory).map(|directory| directory.dev()).ok();
        let with_device =
            std::fs::metadata(device).is_ok_and(|device| device.is_file() && Some(device.dev()) == file_system);
        let free = move || {
            let stat = rustix::fs::statvfs(&directory)?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        };
        let bytes = (device_bytes / DEVICE_SHARE).clamp(BYTES_MIN, BYTES_MAX);
        IndexRoom::with(index, bytes, with_device, Box::new(free))
    }

    pub(crate) fn with(index: &Path, bytes: u64, with_device: bool, free: Free) -> IndexRoom {
        let path = index.with_file_name(FILE);
        let blocks_bytes = std::fs::metadata(&path).map_or(0, |file| file.blocks().saturating_mul(512));
        let mut room = IndexRoom {
            path,
            bytes,
            with_device,
            free,
            held: blocks_bytes >= bytes,
            low: false,
            looked: Instant::now(),
            told_not_kept: false,
            told_not_given_up: false,
        };
        if !room.held && blocks_bytes > 0 {
            // Left by a crash, or taken when the device was smaller: it would be neither kept nor given up.
            room.give_up();
        }
        room.look();
        room
    }

    /// What is left for the index, as of the last look.
    pub(crate) fn left(&self) -> IndexRoomLeft {
        if self.low { IndexRoomLeft::Low { wants_blocks: self.with_device } } else { IndexRoomLeft::Enough }
    }

    /// Whether it is time to look again.
    pub(crate) fn is_due(&self) -> bool {
        self.looked.elapsed() >= LOOK_INTERVAL
    }

    /// Looks what is free, and gives the blocks up or takes them accordingly. True when what is left ([`IndexRoom::left`])
    /// is another than at the last look.
    pub(crate) fn look(&mut self) -> bool {
        self.looked = Instant::now();
        let free = match (self.free)() {
            Ok(free) => free,
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "the free bytes are not known");
                return false;
            }
        };
        // What was low is so until there is half as much again: else each segment that is cleaned lets one write in.
        let enough = if self.low { self.bytes + self.bytes / 2 } else { self.bytes };
        let to_take = if self.held { 0 } else { self.bytes };
        let mut low = free < enough + to_take;
        if low && self.held {
            self.give_up();
        } else if !low && !self.held {
            self.take();
            low = !self.held;
        }
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
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                if !std::mem::replace(&mut self.told_not_given_up, true) {
                    tracing::warn!(path = %self.path.display(), %error,
                        "cannot be given up for the index, although it needs room: remove this file");
                }
            }
            Ok(()) | Err(_) => {
                self.held = false;
                self.told_not_given_up = false;
            }
        }
    }

    fn take(&mut self) {
        let taken = File::create(&self.path)
            .and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.bytes)?));
        match taken {
            Ok(()) => self.held = true,
            Err(error) if is_no_space(&error) => {
                tracing::debug!(path = %self.path.display(), %error, "no room is kept for the index");
                // What it has got of it is for the index, too.
                self.give_up();
            }
            Err(error) => {
                if !std::mem::replace(&mut self.told_not_kept, true) {
                    tracing::warn!(path = %self.path.display(), %error, bytes = self.bytes,
                        "no room can be kept for the index: keep its file system from filling up, or the store may fail");
                }
                // Writes go on: what is free is then all that can be looked at.
                self.held = true;
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

    const KEPT: u64 = 4 << 20;

    fn kept(directory: &Path) -> u64 {
        std::fs::metadata(directory.join(FILE)).map_or(0, |file| file.blocks() * 512)
    }

    fn room(directory: &Path, free: &Arc<AtomicU64>) -> IndexRoom {
        let free = Arc::clone(free);
        let free = Box::new(move || Ok(free.load(Ordering::Relaxed)));
        IndexRoom::with(&directory.join("index"), KEPT, false, free)
    }

    #[test]
    fn blocks_are_kept_while_there_is_room_and_given_up_to_the_index_when_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(100 * KEPT));
        let mut room = room(directory.path(), &free);
        assert!(!room.low && kept(directory.path()) >= KEPT);
        free.store(KEPT, Ordering::Relaxed);
        assert!(!room.look() && !room.low && kept(directory.path()) >= KEPT);
        // One flush may need all that is free, and more.
        free.store(KEPT - 1, Ordering::Relaxed);
        assert!(room.look() && room.low);
        assert_eq!(kept(directory.path()), 0);
        // What was given up is free, and neither room for writes nor taken again at once.
        free.store(2 * KEPT + KEPT / 2 - 1, Ordering::Relaxed);
        assert!(!room.look() && room.low);
        assert_eq!(kept(directory.path()), 0);
        free.store(2 * KEPT + KEPT / 2, Ordering::Relaxed);
        assert!(room.look() && !room.low && kept(directory.path()) >= KEPT);
        // What has been taken is not free any more, and that is still enough.
        free.store(KEPT + KEPT / 2, Ordering::Relaxed);
        assert!(!room.look() && !room.low && kept(directory.path()) >= KEPT);
    }

    #[test]
    fn an_index_that_opens_on_a_full_file_system_is_given_what_was_kept_for_it_first() {
        let directory = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(100 * KEPT));
        drop(room(directory.path(), &free));
        assert!(kept(directory.path()) >= KEPT);
        free.store(0, Ordering::Relaxed);
        let next = room(directory.path(), &free);
        assert!(next.low);
        assert_eq!(kept(directory.path()), 0);
    }

    #[test]
    fn what_a_crash_left_of_the_blocks_is_given_up_too() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join(FILE)).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, KEPT / 2).unwrap();
        assert!(kept(directory.path()) > 0);
        assert!(room(directory.path(), &Arc::new(AtomicU64::new(0))).low);
        assert_eq!(kept(directory.path()), 0);
    }

    #[test]
    fn without_room_for_the_blocks_nothing_is_let_in() {
        let directory = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(2 * KEPT - 1));
        assert!(room(directory.path(), &free).low);
        assert!(!directory.path().join(FILE).exists());
    }

    #[test]
    fn where_no_blocks_can_be_kept_it_is_what_is_free_that_counts() {
        let directory = tempfile::tempdir().unwrap();
        // Neither made, nor cut.
        std::fs::create_dir(directory.path().join(FILE)).unwrap();
        let free = Arc::new(AtomicU64::new(100 * KEPT));
        let mut room = room(directory.path(), &free);
        assert!(!room.low, "writes are let in");
        free.store(KEPT - 1, Ordering::Relaxed);
        assert!(room.look() && room.low);
        free.store(KEPT + KEPT / 2, Ordering::Relaxed);
        assert!(room.look() && !room.low);
    }
}
