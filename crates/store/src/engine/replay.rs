//! Opening: what the index lacks is read from the log.
//!
//! From the position that the index has, records are followed one by one: each must be where the last one ended (or at the
//! next sector, or at the start of the next segment), with the next position and the right chain checksum. Where no such
//! record is, the log ends, either torn or bad:
//!
//! - A record of a group is known to have been durable when a record of a later group exists, since groups are written one
//!   after the other. So records are held back until their group is known to be complete; those of the last group are
//!   accepted one by one as long as their payload is whole, which cuts a torn tail at the first torn record.
//! - When the log ends although a record exists that was written after the missing one was durable, or before the position
//!   that the superblock says was durable, it is bad in the middle: [`OpenError::CorruptMiddle`].
//!
//! What cannot be read (EIO) is no record, like what does not match its checksum: the rules above then say whether the log
//! may end there. Only when that is so of many places is it the device that fails, not the log.
//!
//! A payload block that is bad in a group known to be durable is no reason to stop: reading it fails, alone.
//!
//! The device is synced first and its cache dropped: records that only a cache has must not be taken for durable, and
//! after a failed sync the page cache holds pages that never reached the device and are not dirty any more. The generation
//! of the superblock is raised before anything is written, so that a record which is lost now and written again has
//! another checksum than in its first life.
//!
//! Replay is left out only when both copies of the superblock are there, the newer one says that the store was closed
//! where the index ends, and no record follows: an older copy that stands in for a lost one tells of an earlier life.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use parking_lot::{Mutex, RwLock};

use super::cache::OnodeCache;
use super::homes::{Collections, Place as Objects};
use super::space::{Head, NO_SEGMENT, Space};
use super::stage::{Place, Stage, StageError};
use super::{CommitSide, Effect, Engine, LogRow, Options, SegmentRow, State, check_options, clean};
use crate::checksum::{crc32c, words};
use crate::device::Device;
use crate::error::OpenError;
use crate::format::record::{RECORD_HEADER_BYTES, RecordHeader, decode_ops, next_starts};
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::format::superblock::Superblock;
use crate::index::{Index, IndexError, keys};
use crate::key::Position;
use crate::overlay::Overlay;

/// Bytes read ahead while following the log.
const READ_AHEAD_BYTES: u32 = 1 << 20;
/// After a read that failed.
const READ_AHEAD_BYTES_MIN: u32 = 4 << 10;
/// Places of a log that may be unreadable: more is not a bad sector but a bad device or cable, which says nothing of where
/// the log ends.
const UNREADABLE_MAX: u32 = 64;
/// Records applied to the index in one batch.
const REPLAY_BATCH: usize = 64;

/// A record found in the log.
pub(super) struct Found {
    pub(super) header: RecordHeader,
    pub(super) chain: u32,
    pub(super) ops: Vec<u8>,
    /// Where the log goes on after it.
    after: LogRow,
}

/// Reads a segment through a window.
pub(super) struct LogReader<'a> {
    device: &'a dyn Device,
    layout: &'a Superblock,
    segment: u32,
    start: u32,
    window: Vec<u8>,
    /// Bytes that the next read takes at least, within the segment.
    ahead: u32,
    /// Places that could not be read.
    unreadable: u32,
}

impl<'a> LogReader<'a> {
    pub(super) fn new(device: &'a dyn Device, layout: &'a Superblock) -> LogReader<'a> {
        let window = Vec::new();
        LogReader { device, layout, segment: NO_SEGMENT, start: 0, window, ahead: READ_AHEAD_BYTES, unreadable: 0 }
    }

    /// Makes the next look read the device again.
    fn forget(&mut self) {
        self.segment = NO_SEGMENT;
    }

    /// `length` bytes at `offset` of `segment`; `None` when they are not all within it.
    pub(super) fn bytes(&mut self, segment: u32, offset: u32, length: u32) -> Result<Option<&[u8]>, OpenError> {
        let segment_bytes = self.layout.segment_bytes;
        if segment >= self.layout.segment_count || u64::from(offset) + u64::from(length) > u64::from(segment_bytes) {
            return Ok(None);
        }
        let held = u64::from(self.start) + self.window.len() as u64;
        let inside = segment == self.segment && offset >= self.start && u64::from(offset + length) <= held;
        if !inside {
            let wanted = length.max(self.ahead).min(segment_bytes - offset);
            self.segment = NO_SEGMENT; // the window is nothing should the read fail
            let start = self.layout.segment_start(segment) + u64::from(offset);
            self.window.resize(wanted as usize, 0);
            if let Err(error) = self.device.read_at(start, &mut self.window) {
                if wanted == length {
                    return Err(error.into());
                }
                // A bad sector further on is no reason to fail: it may hold nothing. It is neared in small steps, since
                // each read of it may take seconds.
                self.ahead = 0;
                self.window.resize(length as usize, 0);
                self.device.read_at(start, &mut self.window)?;
            } else {
                self.ahead = self.ahead.saturating_mul(2).clamp(READ_AHEAD_BYTES_MIN, READ_AHEAD_BYTES);
            }
            (self.segment, self.start) = (segment, offset);
        }
        let from = (offset - self.start) as usize;
        Ok(self.window.get(from..from + length as usize))
    }

    /// The header of a record at this place, of this incarnation of the segment.
    pub(super) fn record_header(
        &mut self,
        segment: u32,
        offset: u32,
        sequence: u64,
    ) -> Result<Option<(RecordHeader, u32)>, OpenError> {
        let (cluster, disk) = (self.layout.cluster, self.layout.disk);
        let segment_bytes = u64::from(self.layout.segment_bytes);
        let Some(bytes) = self.bytes(segment, offset, RECORD_HEADER_BYTES as u32)? else { return Ok(None) };
        Ok(RecordHeader::decode(bytes).filter(|(header, _)| {
            (header.cluster, header.disk) == (cluster, disk)
                && (header.segment, header.offset, header.sequence) == (segment, offset, sequence)
                && u64::from(offset) + header.record_bytes() <= segment_bytes
        }))
    }

    /// The ops of a record; `None` when their checksum is wrong.
    pub(super) fn record_ops(&mut self, header: &RecordHeader) -> Result<Option<Vec<u8>>, OpenError> {
        let offset = header.offset + RECORD_HEADER_BYTES as u32;
        let ops = self.bytes(header.segment, offset, header.ops_bytes)?;
        Ok(ops.filter(|ops| crc32c(ops) == header.ops_crc).map(<[u8]>::to_vec))
    }

    pub(super) fn segment_header(&mut self, segment: u32) -> Result<Option<SegmentHeader>, OpenError> {
        if segment >= self.layout.segment_count {
            return Ok(None);
        }
        let mut bytes = [0; SEGMENT_HEADER_BYTES]; // not through the window, which is in use elsewhere
        self.device.read_at(self.layout.segment_start(segment), &mut bytes)?;
        Ok(SegmentHeader::decode(&bytes).filter(|header| {
            (header.cluster, header.disk, header.segment) == (self.layout.cluster, self.layout.disk, segment)
        }))
    }

    /// The record after `at`: at once, at the next sector, or in the next segment. More than one may look right: one that
    /// an earlier opening cut off because its payload was torn, and the one written in its stead. That of the later
    /// generation is the right one.
    fn next_record(&mut self, at: &LogRow) -> Result<Option<Found>, OpenError> {
        let newest = self.layout.generation.saturating_sub(1); // ours is at least one more, and has written nothing yet
        let mut best: Option<Found> = None;
        if at.segment != NO_SEGMENT {
            for offset in next_starts(at.offset, self.layout.sector_bytes) {
                let found = self.record_after(at, at.segment, offset, at.sequence, at.next_segment)?;
                best = best.into_iter().chain(found).max_by_key(|found| found.header.generation);
                if best.as_ref().is_some_and(|found| found.header.generation >= newest) {
                    return Ok(best);
                }
            }
        }
        let header = self.segment_header(at.next_segment);
        let Some(header) = self.or_nothing(header, at.next_segment, 0)? else { return Ok(best) };
        if (header.sequence, header.first, header.chain) != (at.sequence + 1, at.position.next(), at.chain) {
            return Ok(best);
        }
        let sector = self.layout.sector_bytes;
        let found = self.record_after(at, at.next_segment, sector, header.sequence, header.next)?;
        let found = found.filter(|found| found.header.generation >= header.generation);
        Ok(best.into_iter().chain(found).max_by_key(|found| found.header.generation))
    }

    fn record_after(
        &mut self,
        at: &LogRow,
        segment: u32,
        offset: u32,
        sequence: u64,
        next_segment: u32,
    ) -> Result<Option<Found>, OpenError> {
        let header = self.record_header(segment, offset, sequence);
        let Some((header, chain)) = self.or_nothing(header, segment, offset)? else { return Ok(None) };
        if (header.position, header.chain) != (at.position.next(), at.chain) {
            return Ok(None);
        }
        let ops = self.record_ops(&header);
        let Some(ops) = self.or_nothing(ops, segment, offset)? else { return Ok(None) };
        let after = LogRow {
            disk: at.disk,
            position: header.position,
            segment,
            sequence,
            offset: offset + header.record_bytes() as u32,
            next_segment,
            chain,
        };
        Ok(Some(Found { header, chain, ops, after }))
    }

    /// True when each payload block of the record is what was written.
    fn payload_is_whole(&mut self, found: &Found) -> Result<bool, OpenError> {
        let header = &found.header;
        let Ok(ops) = decode_ops(&found.ops, header.payload_bytes, header.block_log2) else { return Ok(true) };
        let mut offset = header.payload_offset() as u32;
        let block_bytes = 1u32 << header.block_log2;
        for (length, sums) in ops.iter().flat_map(|op| op.payload()) {
            let end = offset + length;
            for sum in words(sums) {
                let bytes = block_bytes.min(end - offset);
                let block = self.bytes(header.segment, offset, bytes).map(|block| block.map(crc32c));
                match self.or_nothing(block, header.segment, offset)? {
                    Some(computed) if computed == sum => offset += bytes,
                    _ => return Ok(false),
                }
            }
        }
        Ok(true)
    }

    /// Takes what cannot be read for something that is no record, as it takes a flipped bit: a sector that the power cut
    /// tore often cannot be read. Whether the log may end there is then judged as ever, by what is found behind it and by
    /// the position that the superblock says was durable.
    fn or_nothing<T>(
        &mut self,
        read: Result<Option<T>, OpenError>,
        segment: u32,
        offset: u32,
    ) -> Result<Option<T>, OpenError> {
        match read {
            Err(OpenError::Device(error)) if self.unreadable < UNREADABLE_MAX => {
                self.unreadable += 1;
                tracing::warn!(segment, offset, %error, "a place where the log may go on cannot be read");
                Ok(None)
            }
            other => other,
        }
    }

    /// True when this place has a record that was written after `missing` was durable.
    fn proves(&mut self, segment: u32, offset: u32, sequence: u64, missing: Position) -> Result<bool, OpenError> {
        let found = self.record_header(segment, offset, sequence);
        let found = self.or_nothing(found, segment, offset)?;
        Ok(found.is_some_and(|(header, _)| header.group_first > missing))
    }

    /// True when a record exists that was written after `missing` was durable. Looks at each sector after the end of the
    /// log, where such a record's group would begin, in this segment and those after it.
    fn was_durable(&mut self, end: &LogRow, missing: Position) -> Result<bool, OpenError> {
        let sector = self.layout.sector_bytes;
        let mut segment = end.segment;
        let mut sequence = end.sequence;
        let mut next_segment = end.next_segment;
        let mut offset = if segment == NO_SEGMENT { u32::MAX } else { end.offset & !(sector - 1) };
        // Each turn is one segment of the log; a stale chain of headers cannot make more than there are segments.
        for _ in 0..=self.layout.segment_count {
            while offset < self.layout.segment_bytes {
                if self.proves(segment, offset, sequence, missing)? {
                    return Ok(true);
                }
                offset = offset.saturating_add(sector);
            }
            segment = next_segment;
            sequence += 1;
            offset = sector;
            let header = self.segment_header(segment);
            match self.or_nothing(header, segment, 0)? {
                Some(header) if header.sequence == sequence => next_segment = header.next,
                _ => {
                    // Its header may be what is bad; the records in it tell.
                    while offset < self.layout.segment_bytes {
                        if self.proves(segment, offset, sequence, missing)? {
                            return Ok(true);
                        }
                        offset = offset.saturating_add(sector);
                    }
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }
}

/// Rows of the index that are needed in memory.
struct Loaded {
    log: LogRow,
    segments: BTreeMap<u32, SegmentRow>,
    collections: Collections,
}

fn malformed(key: &[u8], reason: &'static str) -> IndexError {
    IndexError::Malformed { key: key.to_vec(), reason }
}

fn load(index: &dyn Index, superblock: &Superblock) -> Result<Loaded, OpenError> {
    let foreign = |found| OpenError::ForeignIndex { expected: superblock.disk, found };
    let row = index.get(&keys::log())?.ok_or_else(|| foreign(None))?;
    let log: LogRow = minicbor::decode(&row).map_err(|_| malformed(&keys::log(), "not a log row"))?;
    if log.disk != superblock.disk {
        return Err(foreign(Some(log.disk)));
    }
    let mut segments = BTreeMap::new();
    let mut collections = Collections::default();
    let mut bad = None;
    let tables = [keys::TABLE_SEGMENT, keys::TABLE_COLLECTION];
    for table in tables {
        index.scan(&[table], Some(&[table + 1]), &mut |key, value| {
            let taken = if table == keys::TABLE_SEGMENT {
                let number = keys::parse_segment(key).filter(|number| *number < superblock.segment_count);
                let row = minicbor::decode::<SegmentRow>(value).ok();
                number.zip(row).map(|(number, row)| {
                    segments.insert(number, row);
                })
            } else {
                let c = keys::parse_collection(key);
                c.and_then(|c| Some((c, Objects::decode(c, value)?))).map(|(c, objects)| collections.insert(c, objects))
            };
            match taken {
                Some(()) => ControlFlow::Continue(()),
                None => {
                    bad = Some(malformed(key, "not a row of its table"));
                    ControlFlow::Break(())
                }
            }
        })?;
    }
    match bad {
        Some(error) => Err(error.into()),
        None => Ok(Loaded { log, segments, collections }),
    }
}

impl<D: Device, I: Index> Engine<D, I> {
    /// Opens the store on `device` with its `index`, replaying the log from where the index ends. Segment and sector size
    /// are those of the device, whatever `options` say.
    ///
    /// # Errors
    /// [`OpenError`]. Nothing that is needed later has then been changed.
    pub fn open(device: D, index: I, options: Options) -> Result<Engine<D, I>, OpenError> {
        device.sync()?;
        let (found, both_copies) = Superblock::read(&device)?;
        if found.quarantined {
            return Err(OpenError::Quarantined { disk: found.disk, durable: found.durable });
        }
        let device_bytes = device.len()?;
        if device_bytes < found.device_bytes() {
            return Err(OpenError::Shrunk { device_bytes, expected_bytes: found.device_bytes() });
        }
        let options = Options { segment_bytes: found.segment_bytes, sector_bytes: found.sector_bytes, ..options };
        let options = if check_options(&options).is_ok() { options } else { Options::default() };
        let loaded = load(&index, &found)?;
        let mut superblock = found.clone();
        superblock.generation = found.next_generation(both_copies);
        superblock.clean = false;

        let mut engine = Engine::assemble(device, index, superblock.clone(), options, loaded);
        let was_closed_here = both_copies && found.clean && found.durable == engine.state.get_mut().durable;
        if !was_closed_here || engine.something_follows()? {
            let newest = engine.replay(found.durable)?;
            while superblock.generation <= newest {
                superblock.generation += 2; // the write of a newer superblock was lost; ours goes to the same place
            }
        }
        engine.state.get_mut().space.begin_group();
        superblock.durable = engine.state.get_mut().durable;
        superblock.write(&engine.device)?;
        engine.device.sync()?;
        if !both_copies {
            // Both copies are as they should be before a record has a new generation: should one of them be lost again, no
            // generation that records have is ever taken for a new one.
            superblock.generation += 1;
            superblock.write(&engine.device)?;
            engine.device.sync()?;
        }
        engine.layout = superblock.clone();
        *engine.superblock.get_mut() = superblock;
        let next = engine.state.get_mut().space.head.next_segment;
        engine.allocate_next(next);
        Ok(engine)
    }

    fn assemble(device: D, index: I, layout: Superblock, options: Options, loaded: Loaded) -> Engine<D, I> {
        let log = loaded.log;
        let head = Head {
            segment: log.segment,
            sequence: log.sequence,
            offset: log.offset,
            next_segment: log.next_segment,
            position: log.position.next(),
            group_first: log.position.next(),
            chain: log.chain,
        };
        let mut space = Space::new(&layout, &options, head);
        let mut live = vec![SegmentRow { sequence: 0, live: 0 }; layout.segment_count as usize];
        for (number, row) in loaded.segments {
            if let (Some(segment), Some(applied)) =
                (space.segments.get_mut(number as usize), live.get_mut(number as usize))
            {
                segment.sequence = row.sequence;
                segment.live = row.live;
                space.live += row.live;
                *applied = row;
            }
        }
        // A segment without live bytes has no record that the index lacks, or replay will come by and take it.
        let used = [space.head.segment, space.head.next_segment];
        space.free = (0..layout.segment_count)
            .zip(&live)
            .filter(|(number, row)| row.live == 0 && !used.contains(number))
            .map(|(number, _)| number)
            .collect();
        let state = State {
            overlay: Overlay::default(),
            cache: OnodeCache::new(options.onode_cache_bytes),
            collections: loaded.collections,
            space,
            pending: VecDeque::new(),
            pending_bytes: 0,
            in_memory: BTreeMap::new(),
            durable: log.position,
            applied: log.position,
            flushed: log.position,
            unflushed_bytes: 0,
            failed: None,
            closed: false,
        };
        let clean_turn = Mutex::new(clean::Cleaner::default());
        let commit_turn = Mutex::new(CommitSide { live });
        let superblock = Mutex::new(layout.clone());
        Engine {
            device,
            index,
            superblock,
            layout,
            options,
            clean_turn,
            release_turn: Mutex::new(()),
            commit_turn,
            state: RwLock::new(state),
            on_quarantine: std::sync::OnceLock::new(),
        }
    }

    /// True when the log has a record beyond the index.
    fn something_follows(&self) -> Result<bool, OpenError> {
        let mut reader = LogReader::new(&self.device, &self.layout);
        Ok(reader.next_record(&self.log_end())?.is_some())
    }

    /// Applies all that the log has beyond the index, and gives the newest generation met. `durable` is what the superblock
    /// says.
    fn replay(&self, durable: Position) -> Result<u64, OpenError> {
        self.device.drop_cache();
        let mut reader = LogReader::new(&self.device, &self.layout);
        let mut at = self.log_end();
        let first = at.position;
        let mut newest = 0;
        let mut held: VecDeque<Found> = VecDeque::new();
        let mut effects: Vec<Effect> = Vec::new();
        // The end is looked at twice: what is not found is lost, and a bus or a cache may err once.
        while let Some(found) = match reader.next_record(&at)? {
            None => {
                reader.forget();
                reader.next_record(&at)?
            }
            found => found,
        } {
            at = found.after.clone();
            newest = newest.max(found.header.generation);
            let group_first = found.header.group_first;
            while let Some(complete) = held.pop_front_if(|held| held.header.position < group_first) {
                self.replay_record(&complete, &mut effects)?;
            }
            held.push_back(found);
        }
        // The last group: nothing proves that it was durable. It is cut at the first record that is not whole.
        while let Some(last) = held.pop_front() {
            if last.header.position > durable && !self.is_whole(&mut reader, &last)? {
                let records = held.len() + 1;
                tracing::warn!(disk = %self.layout.disk, at = %last.header.position, records, "torn end of the log cut off");
                break;
            }
            self.replay_record(&last, &mut effects)?;
        }
        self.apply_replayed(&mut effects)?;
        let end = self.log_end();
        let missing = end.position.next();
        if end.position < durable || reader.was_durable(&end, missing)? {
            return Err(OpenError::CorruptMiddle { position: missing, segment: end.segment, offset: end.offset });
        }
        self.state.write().durable = end.position;
        tracing::info!(disk = %self.layout.disk, from = %first, to = %end.position, "replayed the log");
        Ok(newest)
    }

    /// Reads twice before it says no, as above.
    fn is_whole(&self, reader: &mut LogReader<'_>, last: &Found) -> Result<bool, OpenError> {
        if reader.payload_is_whole(last)? {
            return Ok(true);
        }
        self.device.drop_cache();
        reader.forget();
        reader.payload_is_whole(last)
    }

    /// Where the log ends, as far as it is known.
    fn log_end(&self) -> LogRow {
        let state = self.state.read();
        let head = &state.space.head;
        LogRow {
            disk: self.layout.disk,
            position: Position(head.position.0 - 1),
            segment: head.segment,
            sequence: head.sequence,
            offset: head.offset,
            next_segment: head.next_segment,
            chain: head.chain,
        }
    }

    /// Stages one record and takes its effect into the state.
    fn replay_record(&self, found: &Found, effects: &mut Vec<Effect>) -> Result<(), OpenError> {
        let header = &found.header;
        let position = header.position;
        let bad = |reason| OpenError::BadRecord { position, reason };
        let ops = decode_ops(&found.ops, header.payload_bytes, header.block_log2).map_err(bad)?;
        let place = Place {
            position,
            segment: header.segment,
            payload_offset: header.payload_offset() as u32,
            block_log2: header.block_log2 as u8,
        };
        let mut guard = self.state.write();
        let state = &mut *guard;
        let mut stage = Stage::new(&state.overlay, &state.cache, &self.index, &state.collections, place);
        for op in &ops {
            match stage.apply(op) {
                Ok(()) => {}
                Err(StageError::Onode { c, o, source }) => {
                    tracing::warn!(collection = %c, object = %o, error = %source, "object lost: its onode cannot be read");
                    stage.give_up(c, &o);
                }
                Err(StageError::NoSuchCollection(_)) => return Err(bad("its collection does not exist")),
                Err(StageError::Foreign { .. }) => return Err(bad("its object belongs to another collection")),
                Err(StageError::Meta(_, source)) => return Err(source.into()),
                Err(StageError::CollectionExists(_)) => return Err(bad("its collection exists already")),
                Err(StageError::Bad(reason)) => return Err(bad(reason)),
            }
        }
        let (changes, collections_changed) = (stage.changes, stage.collections_changed);
        if found.after.segment != state.space.head.segment {
            state.space.open_segment(found.after.segment, found.after.sequence, found.after.next_segment);
        }
        state.space.head.offset = found.after.offset;
        state.space.head.position = position.next();
        state.space.head.chain = found.chain;
        state.space.change_live(position, header.segment, 0);
        for (segment, by) in &changes.live {
            state.space.change_live(position, *segment, *by);
        }
        state.overlay.add(position, &changes);
        state.collections.change(collections_changed);
        state.unflushed_bytes += header.record_bytes();
        drop(guard);
        effects.push(Effect { position, changes, after: found.after.clone(), payload: Vec::new() });
        if effects.len() >= REPLAY_BATCH { self.apply_replayed(effects) } else { Ok(()) }
    }

    fn apply_replayed(&self, effects: &mut Vec<Effect>) -> Result<(), OpenError> {
        self.apply_effects(&mut self.commit_turn.lock(), effects)?;
        effects.clear();
        Ok(())
    }
}
