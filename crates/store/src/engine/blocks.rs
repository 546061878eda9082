//! Blocks for the segment that the log goes on in, ahead of the writes to it.
//!
//! A sparse file gets its blocks from a file system that others fill too. Were they missing only when a group is written,
//! the store would fail as a whole; so they are asked for while the segment before still has room. Without them there is no
//! next segment: no more writes are let in, and those under way have half of the open one. The cleaner has up to three
//! quarters of it, and moves only what finds room there as a whole; deletes have the rest.
//!
//! Where the index on the same file system lacks room, blocks are wanted, too: no free segment keeps any.

use super::Engine;
use super::quarantine::is_no_space;
use crate::device::Device;
use crate::index::Index;

impl<D: Device, I: Index> Engine<D, I> {
    /// Asks for the blocks of `segment`, the next one.
    pub(super) fn allocate_next(&self, segment: u32) {
        let start = self.layout.segment_start(segment);
        let missing = match self.device.allocate(start, u64::from(self.layout.segment_bytes)) {
            Ok(()) => false,
            Err(error) if is_no_space(&error) => true,
            Err(error) => {
                tracing::debug!(segment, %error, "segment not allocated ahead");
                false
            }
        };
        let mut state = self.state.write();
        if state.space.head.next_segment != segment {
            return;
        }
        if state.space.note_next_blocks(missing) {
            drop(state);
            if missing {
                tracing::warn!(disk = %self.layout.disk, segment, "no blocks for the next segment: the file system is full");
            } else {
                tracing::info!(disk = %self.layout.disk, segment, "the next segment has its blocks");
            }
        }
    }

    /// Asks again when the next segment has no blocks. Called in the release turn: nobody else discards.
    pub(super) fn allocate_again(&self) {
        let next = {
            let state = self.state.read();
            state.space.next_has_no_blocks.then_some(state.space.head.next_segment)
        };
        if let Some(next) = next {
            // It may have some: what is not enough is room for others. Nobody opens it meanwhile.
            self.discard_segment(next);
            self.allocate_next(next);
        }
    }

    /// Gives the blocks of free segments back to the file system, once while these are wanted there. One after the other:
    /// the others can be opened meanwhile. Called in the release turn: else one may be free once more, and in use.
    pub(super) fn discard_free(&self) {
        let free = self.state.write().space.take_to_discard();
        for segment in free {
            if self.state.write().space.begin_discard(segment) {
                self.discard_segment(segment);
                self.state.write().space.end_discard();
            }
        }
    }

    pub(super) fn discard_segment(&self, segment: u32) {
        let start = self.layout.segment_start(segment);
        if let Err(error) = self.device.discard(start, u64::from(self.layout.segment_bytes)) {
            tracing::debug!(segment, %error, "segment not discarded");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use bytes::Bytes;
    use holdfast_types::{ClusterId, DiskUuid, OsdId};
    use parking_lot::Mutex;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use crate::device::{Device, MemDevice};
    use crate::engine::{Engine, Identity, IndexRoomLeft, Options};
    use crate::error::{CleanError, SubmitError};
    use crate::format::SEGMENTS_START;
    use crate::index::MemIndex;
    use crate::index_room::IndexRoom;
    use crate::key::{CollectionId, ObjectKey};
    use crate::tx::{Transaction, TxOp};

    const SEGMENT_BYTES: u64 = 64 << 10;
    const SEGMENTS: u64 = 20;
    /// Bytes that are moved in a step: no group is longer than a segment.
    const STEP_BYTES: u64 = 8 << 10;
    const C: CollectionId = CollectionId { pool: 1, seed: 0 };

    /// A file system with room for some segments; the device and `index-room` are on it.
    struct FileSystem {
        bytes: u64,
        /// Where the segments begin that have blocks.
        segments: Mutex<BTreeSet<u64>>,
        room: PathBuf,
    }

    impl FileSystem {
        fn new(directory: &Path, segments: u64) -> Arc<FileSystem> {
            Arc::new(FileSystem {
                bytes: segments * SEGMENT_BYTES,
                segments: Mutex::new(BTreeSet::new()),
                room: directory.join("index-room"),
            })
        }

        fn held_bytes(&self) -> u64 {
            self.segments.lock().len() as u64 * SEGMENT_BYTES
        }

        fn free_bytes(&self) -> u64 {
            let room_bytes = std::fs::metadata(&self.room).map_or(0, |file| file.len());
            self.bytes.saturating_sub(room_bytes + self.held_bytes())
        }

        /// Gives the segment at byte `offset` its blocks, all of them or none.
        fn take(&self, offset: u64) -> io::Result<()> {
            let Some(within) = offset.checked_sub(SEGMENTS_START) else { return Ok(()) };
            let start = offset - within % SEGMENT_BYTES;
            let has_blocks = self.segments.lock().contains(&start);
            if !has_blocks && self.free_bytes() < SEGMENT_BYTES {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.segments.lock().insert(start);
            Ok(())
        }
    }

    /// A sparse file.
    struct SparseFile {
        file: MemDevice,
        file_system: Arc<FileSystem>,
    }

    impl Device for SparseFile {
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.file.read_at(offset, buffer)
        }

        fn write_at(&self, offset: u64, data: &[&[u8]]) -> io::Result<()> {
            self.file_system.take(offset)?;
            self.file.write_at(offset, data)
        }

        fn sync(&self) -> io::Result<()> {
            self.file.sync()
        }

        fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
            self.file_system.segments.lock().remove(&offset);
            self.file.discard(offset, length)
        }

        fn allocate(&self, offset: u64, _length: u64) -> io::Result<()> {
            self.file_system.take(offset)
        }

        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }
    }

    fn new_engine(file_system: &Arc<FileSystem>) -> Engine<SparseFile, MemIndex> {
        let file = MemDevice::new(SEGMENTS_START + SEGMENTS * SEGMENT_BYTES);
        let device = SparseFile { file, file_system: Arc::clone(file_system) };
        let identity = Identity { cluster: ClusterId([1; 16]), disk: DiskUuid([2; 16]), osd: OsdId(3) };
        let options = Options {
            segment_bytes: SEGMENT_BYTES as u32,
            sector_bytes: 512,
            checksum_block_bytes: 1024,
            ..Options::default()
        };
        let engine = Engine::format(device, MemIndex::new(), identity, options).unwrap();
        commit(&engine, TxOp::CreateCollection { c: C }).unwrap();
        engine
    }

    fn commit(engine: &Engine<SparseFile, MemIndex>, op: TxOp) -> Result<(), SubmitError> {
        engine.submit(Transaction { ops: vec![op] })?;
        engine.commit().unwrap();
        Ok(())
    }

    fn object(number: u64) -> ObjectKey {
        ObjectKey::new(number.to_string().into_bytes()).unwrap()
    }

    fn write(number: u64) -> TxOp {
        TxOp::Write { c: C, o: object(number), offset: 0, data: Bytes::from(vec![number as u8; 3000]) }
    }

    fn remove(number: u64) -> TxOp {
        TxOp::Remove { c: C, o: object(number) }
    }

    fn look(engine: &Engine<SparseFile, MemIndex>, room: &mut IndexRoom) {
        if room.look() {
            engine.note_index_room(room.left());
        }
    }

    /// As the maintenance thread does.
    fn maintain(engine: &Engine<SparseFile, MemIndex>, room: &mut IndexRoom) {
        while engine.wants_cleaning() {
            look(engine, room);
            match engine.clean_step(STEP_BYTES) {
                Ok(step) if step.more && (step.moved_bytes > 0 || step.freed_segments > 0) => {}
                Ok(_) | Err(CleanError::Submit(SubmitError::NoSpace { .. })) => break,
                Err(error) => panic!("{error}"),
            }
        }
        look(engine, room);
    }

    #[test]
    fn a_full_file_system_has_room_for_the_index_and_for_writes_again_when_half_of_the_objects_are_deleted() {
        for seed in 0..10 {
            let directory = tempfile::tempdir().unwrap();
            // The device never lacks free segments; their blocks are what is short.
            let file_system = FileSystem::new(directory.path(), SEGMENTS * 6 / 10);
            let told = Arc::clone(&file_system);
            let free = Box::new(move || Ok(told.free_bytes()));
            let mut room = IndexRoom::with(&directory.path().join("index"), SEGMENT_BYTES, true, free);
            let engine = new_engine(&file_system);
            engine.note_index_room(room.left());
            let mut rng = SmallRng::seed_from_u64(seed);
            let (mut objects, mut written) = (BTreeSet::new(), 0);
            for round in 0..4 {
                while room.left() == IndexRoomLeft::Enough {
                    assert!(written < 10_000, "seed {seed}: the file system is never full");
                    match commit(&engine, write(written)) {
                        Ok(()) => {
                            objects.insert(written);
                        }
                        Err(SubmitError::NoSpace { .. }) => maintain(&engine, &mut room),
                        Err(error) => panic!("{error}"),
                    }
                    written += 1;
                    look(&engine, &mut room);
                }
                let (live, limit) = engine.live_bytes();
                assert_eq!(live, limit, "seed {seed}, round {round}: no more is let in");
                for number in objects.clone() {
                    if rng.random_bool(0.5) {
                        commit(&engine, remove(number)).unwrap();
                        objects.remove(&number);
                        look(&engine, &mut room);
                    }
                }
                for _ in 0..20 {
                    maintain(&engine, &mut room);
                }
                let free = file_system.free_bytes();
                assert_eq!(room.left(), IndexRoomLeft::Enough, "seed {seed}, round {round}: {free} bytes are free");
                let (live, limit) = engine.live_bytes();
                assert!(live < limit, "seed {seed}, round {round}: {live} of {limit}");
            }
            for number in objects {
                assert_eq!(engine.read(C, &object(number), 0, 3000).unwrap(), vec![number as u8; 3000]);
            }
        }
    }

    #[test]
    fn while_the_index_lacks_room_free_segments_keep_no_blocks_and_cleaning_ends_where_it_gains_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file_system = FileSystem::new(directory.path(), SEGMENTS);
        let engine = new_engine(&file_system);
        for number in 0..120 {
            commit(&engine, write(number)).unwrap();
        }
        // The first segments become free, half of what is in the others is dead.
        for number in (0..120).filter(|number| *number < 40 || *number % 2 == 0) {
            commit(&engine, remove(number)).unwrap();
        }
        engine.flush_index().unwrap();
        assert!(file_system.held_bytes() > engine.usage().used_bytes, "free segments are warm");
        assert!(!engine.wants_cleaning(), "there are enough of them");

        engine.note_index_room(IndexRoomLeft::Low { wants_blocks: false });
        assert!(!engine.wants_cleaning(), "it would be no room for the index");

        // Somebody else has filled the file system: whatever is cleaned, it stays low.
        engine.note_index_room(IndexRoomLeft::Low { wants_blocks: true });
        let used = engine.usage().used_bytes;
        for step in 0.. {
            assert!(step < 1000, "cleaning goes on for ever");
            if !engine.wants_cleaning() {
                break;
            }
            engine.clean_step(STEP_BYTES).unwrap();
        }
        assert!(engine.usage().used_bytes < used, "what is half dead was cleaned");
        assert_eq!(file_system.held_bytes(), engine.usage().used_bytes, "no free segment has blocks");
    }
}
