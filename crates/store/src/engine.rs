//! The synchronous core: takes transactions, makes them durable in groups. It has no thread and no clock; the daemon
//! ([`crate::Store`]) and the simulator drive it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_types::{ClusterId, DiskUuid, OsdId};
use parking_lot::Mutex;

use crate::device::Device;
use crate::error::{CommitError, OpenError, SubmitError};
use crate::exec::{self, Changes, Overlay, PayloadPlace};
use crate::index::{Index, IndexBatch};
use crate::keys;
use crate::layout::{
    HEADER_BLOCK_BYTES, RECORD_HEADER_BYTES, RecordHeader, SECTOR_BYTES, SegmentHeader, Superblock, crc32c,
    record_bytes,
};
use crate::record::{Draft, Position};
use crate::segments::Segments;
use crate::txn::Transaction;

/// Part of the device that only transactions which free space, and the cleaner, may use.
const RESERVE_PERCENT: u64 = 2;
/// The reserve is at least this many segments: the cleaner fills one while the log fills another.
const RESERVE_SEGMENTS_MIN: u64 = 3;

/// Whose disk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The disk.
    pub disk: DiskUuid,
    /// The OSD that it belongs to.
    pub osd: OsdId,
}

/// How a device is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Whose disk it is; an existing store must be the same one's.
    pub identity: Identity,
    /// Size of a segment at the first formatting, in bytes; a multiple of 4096.
    pub segment_bytes: u32,
}

/// Names a submitted transaction. Receipts are ordered as their transactions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Receipt(pub(crate) u64);

/// A record on its way to the device.
pub(crate) struct Queued {
    sequence: u64,
    segment: u64,
    at: u32,
    body: Vec<u8>,
    payload: Vec<Bytes>,
    payload_bytes: u32,
    changes: Changes,
    /// Runs of `payload` in `inflight`.
    runs: Vec<u32>,
}

/// What changes with each transaction.
pub(crate) struct Core {
    pub(crate) next_sequence: u64,
    /// Where the next record goes.
    pub(crate) tail_segment: u64,
    pub(crate) tail_offset: u32,
    /// Segments whose header is not on the device yet.
    unwritten_headers: Vec<u64>,
    pub(crate) queue: Vec<Queued>,
    /// Bytes of records in `queue`.
    pub(crate) queue_bytes: u64,
    pub(crate) overlay: Overlay,
    /// Payload that is not on the device yet, by segment and byte.
    pub(crate) inflight: BTreeMap<(u64, u32), Bytes>,
    pub(crate) segments: Segments,
    /// The log up to here is in the index.
    pub(crate) applied: Position,
    /// The log up to here is in the index on disk.
    pub(crate) persisted: Position,
    /// Log written since then.
    pub(crate) unpersisted_bytes: u64,
    /// Segments freed since the last batch: their rows go with the next one.
    freed: Vec<u64>,
    pub(crate) failed: Option<Arc<CommitError>>,
}

/// The store's core over a device and an index.
pub struct Engine<D, I> {
    pub(crate) device: D,
    pub(crate) index: I,
    pub(crate) superblock: Superblock,
    pub(crate) core: Mutex<Core>,
    /// Held by whoever commits: groups reach the device one after the other.
    committing: Mutex<()>,
}

impl<D: Device, I: Index> Engine<D, I> {
    /// Makes an empty store, whatever the device held; the index must be empty.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn format(device: D, index: I, options: &EngineOptions) -> Result<Engine<D, I>, OpenError> {
        let EngineOptions { identity, segment_bytes } = *options;
        if !segment_bytes.is_multiple_of(4096) || segment_bytes < 8 * 4096 {
            let reason = format!("a segment of {segment_bytes} bytes is not a multiple of 4096 of at least 32768");
            return Err(OpenError::Unusable { reason });
        }
        let superblock = Superblock {
            cluster: identity.cluster,
            disk: identity.disk,
            osd: identity.osd,
            segment_bytes,
            generation: 0,
        };
        let slots = crate::replay::slots_of(device.len(), segment_bytes);
        if u64::from(slots) < RESERVE_SEGMENTS_MIN + 2 {
            let reason = format!("a device of {} bytes has too few segments of {segment_bytes}", device.len());
            return Err(OpenError::Unusable { reason });
        }
        // Both copies: what the device held before is no store any more, also after a crash in between.
        let block = superblock.encode();
        device.write_at(0, &[&block, &block])?;
        device.sync()?;
        Engine::open(device, index, options)
    }

    /// Opens a store and applies the log after the index's position again.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(device: D, index: I, options: &EngineOptions) -> Result<Engine<D, I>, OpenError> {
        let (superblock, core) = crate::replay::recover(&device, &index, options)?;
        Ok(Engine { device, index, superblock, core: Mutex::new(core), committing: Mutex::new(()) })
    }

    /// The device, for tests and tools.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The index, for tests and tools.
    pub fn index(&self) -> &I {
        &self.index
    }

    /// Takes a transaction: its effects are visible to reads from here on, and durable after the next
    /// [`Engine::commit`].
    ///
    /// # Errors
    /// [`SubmitError`]; nothing has changed then.
    pub fn submit(&self, transaction: Transaction) -> Result<Receipt, SubmitError> {
        let frees = transaction.frees_space();
        let mut draft = Draft::of(transaction).map_err(|reason| SubmitError::Invalid { reason })?;
        let mut core = self.core.lock();
        core.submit(&self.index, &mut draft, frees)
    }

    /// Makes all submitted transactions durable with one sync; the last of them, or `None` when nothing waited.
    ///
    /// # Errors
    /// [`CommitError`]; the store takes nothing any more after it.
    pub fn commit(&self) -> Result<Option<Receipt>, Arc<CommitError>> {
        let _turn = self.committing.lock();
        let Some(group) = self.core.lock().cut_group(self.superblock.disk)? else { return Ok(None) };
        let outcome = self.write_group(&group).and_then(|()| self.index_group(&group));
        let mut core = self.core.lock();
        match outcome {
            Ok(()) => Ok(Some(core.finish_group(group))),
            Err(error) => {
                let error = Arc::new(error);
                core.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Bytes of records that wait for a commit.
    pub fn queue_bytes(&self) -> u64 {
        self.core.lock().queue_bytes
    }

    /// Log written since the index was last flushed, in bytes: what an opening would apply again.
    pub fn unpersisted_bytes(&self) -> u64 {
        self.core.lock().unpersisted_bytes
    }

    /// Flushes the index, and frees the segments that nothing needs any more; how many.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn flush_index(&self) -> Result<usize, CommitError> {
        let applied = self.core.lock().applied;
        self.index.flush()?;
        let mut core = self.core.lock();
        if applied.sequence >= core.persisted.sequence {
            core.persisted = applied;
            core.unpersisted_bytes = 0;
        }
        Ok(core.free_segments())
    }

    fn write_group(&self, group: &Group) -> Result<(), CommitError> {
        for (base, length, header) in &group.new_segments {
            self.device.prepare(*base, *length)?;
            self.device.write_at(*base, &[header])?;
        }
        for write in &group.writes {
            let parts: Vec<&[u8]> = write.parts.iter().map(|part| part.as_ref()).collect();
            self.device.write_at(write.at, &parts)?;
        }
        self.device.sync()?;
        Ok(())
    }

    fn index_group(&self, group: &Group) -> Result<(), CommitError> {
        self.index.apply(&group.batch)?;
        Ok(())
    }
}

/// One write to the device: parts in a row.
struct GroupWrite {
    at: u64,
    parts: Vec<Bytes>,
}

/// Records that become durable together.
pub(crate) struct Group {
    new_segments: Vec<(u64, u64, Vec<u8>)>,
    writes: Vec<GroupWrite>,
    batch: IndexBatch,
    records: Vec<Queued>,
    position: Position,
    bytes: u64,
}

impl Core {
    /// The state after the log was read up to `position`.
    pub(crate) fn recovered(segments: Segments, position: Position, persisted: Position) -> Core {
        Core {
            next_sequence: position.sequence + 1,
            tail_segment: position.segment,
            tail_offset: position.offset.next_multiple_of(SECTOR_BYTES),
            unwritten_headers: Vec::new(),
            queue: Vec::new(),
            queue_bytes: 0,
            overlay: Overlay::new(),
            inflight: BTreeMap::new(),
            segments,
            applied: position,
            persisted,
            unpersisted_bytes: 0,
            freed: Vec::new(),
            failed: None,
        }
    }

    fn submit<I: Index>(&mut self, index: &I, draft: &mut Draft, frees: bool) -> Result<Receipt, SubmitError> {
        if let Some(error) = &self.failed {
            return Err(SubmitError::Poisoned(error.clone()));
        }
        let sequence = self.next_sequence;
        let body = draft.seal(sequence);
        let bytes = record_bytes(body.len() as u64, draft.payload_bytes);
        let segment_bytes = u64::from(self.segments.segment_bytes());
        let limit = segment_bytes - HEADER_BLOCK_BYTES as u64;
        if bytes > limit {
            return Err(SubmitError::TooLarge { bytes, limit });
        }
        let left = segment_bytes.saturating_sub(u64::from(self.tail_offset));
        let fits = self.tail_segment != 0 && bytes <= left;
        let free_bytes = self.segments.free_bytes() + if fits { left } else { 0 };
        let reserve = if frees { 0 } else { self.reserve_bytes() };
        if free_bytes < bytes + reserve {
            return Err(SubmitError::Full { free_bytes });
        }
        let (segment, at) = if fits {
            (self.tail_segment, self.tail_offset)
        } else {
            // Looked at only: the segment is taken when nothing can fail any more.
            (self.segments.next_number(), HEADER_BLOCK_BYTES as u32)
        };
        let payload_at = at + (RECORD_HEADER_BYTES + body.len()) as u32;
        let place = PayloadPlace { segment, at: payload_at, sequence };
        let changes = exec::apply(&self.overlay, index, place, &draft.ops)?;

        if !fits {
            let Some(number) = self.segments.allocate() else { return Err(SubmitError::Full { free_bytes }) };
            assert_eq!(number, segment, "the next segment has the number that was looked at");
            self.unwritten_headers.push(number);
            self.tail_segment = number;
        }
        self.tail_offset = at + u32::try_from(bytes).expect("a record fits a segment");
        self.next_sequence += 1;
        for (key, value) in &changes.entries {
            self.overlay.insert(key.clone(), (sequence, value.clone()));
        }
        for (number, delta) in &changes.live {
            if let Some(segment) = self.segments.by_number.get_mut(number) {
                segment.live = segment.live.saturating_add_signed(*delta);
            }
        }
        let mut run_at = payload_at;
        let mut runs = Vec::with_capacity(draft.payload.len());
        for run in &draft.payload {
            self.inflight.insert((segment, run_at), run.clone());
            runs.push(run_at);
            run_at += u32::try_from(run.len()).expect("a record fits a segment");
        }
        self.queue_bytes += bytes;
        self.queue.push(Queued {
            sequence,
            segment,
            at,
            body,
            payload: std::mem::take(&mut draft.payload),
            payload_bytes: run_at - payload_at,
            changes,
            runs,
        });
        Ok(Receipt(sequence))
    }

    pub(crate) fn reserve_bytes(&self) -> u64 {
        let share = self.segments.total_bytes() * RESERVE_PERCENT / 100;
        share.max(RESERVE_SEGMENTS_MIN * u64::from(self.segments.segment_bytes()))
    }

    /// Takes what waits, and closes the sector that it ends in.
    fn cut_group(&mut self, disk: DiskUuid) -> Result<Option<Group>, Arc<CommitError>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.queue.is_empty() {
            return Ok(None);
        }
        let records = std::mem::take(&mut self.queue);
        let bytes = std::mem::take(&mut self.queue_bytes);
        self.tail_offset = self.tail_offset.next_multiple_of(SECTOR_BYTES);
        let segment_bytes = u64::from(self.segments.segment_bytes());
        let base = |number: u64| self.segments.base(number).expect("a segment with waiting records is in use");
        let new_segments = std::mem::take(&mut self.unwritten_headers)
            .into_iter()
            .map(|number| (base(number), segment_bytes, SegmentHeader { disk, number }.encode()))
            .collect();

        let group = self.applied.group + 1;
        let count = u32::try_from(records.len()).expect("a group is bounded by the queue");
        let mut position = self.applied;
        let mut writes: Vec<GroupWrite> = Vec::new();
        let mut next_at = None;
        for (place, record) in records.iter().enumerate() {
            let header = RecordHeader {
                disk,
                sequence: record.sequence,
                segment: record.segment,
                group,
                group_index: u32::try_from(place).unwrap_or(u32::MAX),
                group_count: count,
                chain: position.chain,
                body_bytes: u32::try_from(record.body.len()).expect("a record fits a segment"),
                body_crc: crc32c(&record.body),
                payload_bytes: record.payload_bytes,
            };
            let (head, chain) = header.encode();
            let length = header.record_bytes();
            let at = base(record.segment) + u64::from(record.at);
            let padding =
                length - (RECORD_HEADER_BYTES as u64 + record.body.len() as u64 + u64::from(record.payload_bytes));
            if next_at != Some(at) {
                writes.push(GroupWrite { at, parts: Vec::new() });
            }
            let parts = &mut writes.last_mut().expect("one was just made").parts;
            parts.push(Bytes::copy_from_slice(&head));
            parts.push(Bytes::copy_from_slice(&record.body));
            parts.extend(record.payload.iter().cloned());
            parts.push(Bytes::from_static(&[0; 8]).slice(..usize::try_from(padding).unwrap_or(0)));
            next_at = Some(at + length);
            let offset = record.at + u32::try_from(length).expect("a record fits a segment");
            position = Position { segment: record.segment, offset, sequence: record.sequence, chain, group };
        }
        let batch = self.batch_of(&records, position);
        Ok(Some(Group { new_segments, writes, batch, records, position, bytes }))
    }

    /// All changes of the records, the position after them, and the segments' live bytes as of them.
    fn batch_of(&mut self, records: &[Queued], position: Position) -> IndexBatch {
        let mut entries: BTreeMap<&[u8], Option<Bytes>> = BTreeMap::new();
        let mut touched: BTreeMap<u64, ()> = BTreeMap::new();
        for record in records {
            for (key, value) in &record.changes.entries {
                entries.insert(key, value.clone());
            }
            for (number, delta) in &record.changes.live {
                touched.insert(*number, ());
                if let Some(segment) = self.segments.by_number.get_mut(number) {
                    segment.live_durable = segment.live_durable.saturating_add_signed(*delta);
                }
            }
        }
        let mut batch: IndexBatch = entries.into_iter().map(|(key, value)| (key.to_vec(), value)).collect();
        batch.extend(std::mem::take(&mut self.freed).into_iter().map(|number| (keys::segment(number), None)));
        for number in touched.into_keys() {
            if let Some(segment) = self.segments.by_number.get(&number) {
                let live = Bytes::copy_from_slice(&segment.live_durable.to_le_bytes());
                batch.push((keys::segment(number), Some(live)));
            }
        }
        batch.push((keys::POSITION.to_vec(), Some(encode_position(position))));
        batch
    }

    fn finish_group(&mut self, group: Group) -> Receipt {
        for record in group.records {
            for key in record.changes.entries.into_keys() {
                if self.overlay.get(&key).is_some_and(|(sequence, _)| *sequence == record.sequence) {
                    self.overlay.remove(&key);
                }
            }
            for at in record.runs {
                self.inflight.remove(&(record.segment, at));
            }
        }
        self.applied = group.position;
        self.unpersisted_bytes += group.bytes;
        Receipt(group.position.sequence)
    }

    /// S5: frees what lies behind the index on disk and holds nothing live, durably.
    pub(crate) fn free_segments(&mut self) -> usize {
        let behind = self.persisted.segment;
        let idle: Vec<u64> = self
            .segments
            .by_number
            .range(..behind)
            .filter(|(_, segment)| segment.live == 0 && segment.live_durable == 0)
            .map(|(number, _)| *number)
            .collect();
        for number in &idle {
            self.segments.release(*number);
        }
        self.freed.extend(&idle);
        idle.len()
    }
}

pub(crate) fn encode_position(position: Position) -> Bytes {
    let mut bytes = vec![1]; // version
    minicbor::encode(position, &mut bytes).expect("encoding to memory cannot fail");
    bytes.into()
}

pub(crate) fn decode_position(bytes: &[u8]) -> Result<Position, String> {
    match bytes.split_first() {
        Some((1, body)) => minicbor::decode(body).map_err(|error| error.to_string()),
        _ => Err("a position of an unknown version".to_owned()),
    }
}
