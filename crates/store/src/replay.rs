//! Opening: which store this is, and applying the log after the index's position again.
//!
//! The log is read record by record: each must be intact, lie in the segment that its header names, carry the next
//! sequence number and the checksum of the header before it. Where that ends, either the log ends (a torn last
//! commit), or it is damaged in the middle. A commit is written only after the one before it is durable, so a record
//! of a commit two or more after the last good one, or of the next one while the last good one is not whole, proves
//! the damage ([`OpenError::CorruptMiddle`]). A torn last commit cannot be told from a damaged one: its intact
//! beginning is kept, and peers have the rest.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::device::Device;
use crate::engine::{Core, EngineOptions, decode_position, encode_position};
use crate::error::OpenError;
use crate::exec::{self, Overlay, PayloadPlace};
use crate::index::Index;
use crate::keys;
use crate::layout::{
    HEADER_BLOCK_BYTES, RECORD_HEADER_BYTES, RecordHeader, SECTOR_BYTES, SLOTS_AT, SegmentHeader, Superblock,
    SuperblockFault, crc32c,
};
use crate::onode::{bind_all, checksums};
use crate::record::{Position, RecordOp, decode_body};
use crate::segments::{Segments, slot_base};

/// Read at a time while following the log.
const CHUNK_BYTES: usize = 1 << 20;
/// Index entries that are gathered before they are applied.
const BATCH_ENTRIES_MAX: usize = 20_000;

/// Slots on a device of that size.
pub(crate) fn slots_of(device_bytes: u64, segment_bytes: u32) -> u32 {
    u32::try_from(device_bytes.saturating_sub(SLOTS_AT) / u64::from(segment_bytes)).unwrap_or(u32::MAX)
}

/// Reads the superblock, the segment headers and the log.
pub(crate) fn recover<D: Device, I: Index>(
    device: &D,
    index: &I,
    options: &EngineOptions,
) -> Result<(Superblock, Core), OpenError> {
    let superblock = open_superblock(device, options)?;
    let used = read_segment_headers(device, &superblock)?;
    let start = match index.get(keys::POSITION)? {
        Some(bytes) => decode_position(&bytes).map_err(|detail| OpenError::IndexMismatch { detail })?,
        None => Position::default(),
    };
    let numbers: BTreeMap<u64, u32> = used.iter().map(|(slot, number)| (*number, *slot)).collect();
    if start.segment != 0 && !numbers.contains_key(&start.segment) {
        let detail = format!("the index is at segment {}, which the device does not have", start.segment);
        return Err(OpenError::IndexMismatch { detail });
    }
    let mut log = Log { device, superblock: &superblock, numbers: &numbers, segment: 0, from: 0, buffer: Vec::new() };
    let mut replay = Replay { index, live: read_live(index)?, position: start, whole: true, overlay: Overlay::new() };
    while let Some(found) = log.next(replay.position)? {
        if !replay.apply(&mut log, &found)? {
            break;
        }
    }
    log.refuse_damage_in_the_middle(replay.position, replay.whole)?;
    replay.settle()?;

    // What lies behind the end of the log was never acknowledged.
    let end = replay.position.segment;
    let kept = used.iter().filter(|(_, number)| **number <= end).map(|(slot, number)| (*slot, *number)).collect();
    let mut segments = Segments::new(slots_of(device.len(), superblock.segment_bytes), superblock.segment_bytes, &kept);
    segments.number_at_least(used.values().max().map_or(1, |number| number + 1));
    for (number, live) in &replay.live {
        if let Some(segment) = segments.by_number.get_mut(number) {
            segment.live = *live;
            segment.live_durable = *live;
        }
    }
    index.flush()?;
    let mut core = Core::recovered(segments, replay.position, replay.position);
    core.free_segments();
    Ok((superblock, core))
}

/// Checks both copies, takes the newer one, and writes it back with a new generation, one copy after the other.
fn open_superblock<D: Device>(device: &D, options: &EngineOptions) -> Result<Superblock, OpenError> {
    let mut best: Option<Superblock> = None;
    let mut faults = Vec::new();
    for copy in 0..2u64 {
        let mut block = [0u8; HEADER_BLOCK_BYTES];
        device.read_at(copy * HEADER_BLOCK_BYTES as u64, &mut block)?;
        match Superblock::decode(&block) {
            Ok(found) if best.is_none_or(|best| found.generation > best.generation) => best = Some(found),
            Ok(_) => {}
            Err(SuperblockFault::TooNew { needs }) => return Err(OpenError::TooNew { needs }),
            Err(fault) => faults.push(format!("copy {copy}: {fault:?}")),
        }
    }
    let Some(mut superblock) = best else {
        return Err(OpenError::NotAStore { what: "the device".to_owned(), detail: faults.join(", ") });
    };
    let identity = options.identity;
    if (superblock.cluster, superblock.disk, superblock.osd) != (identity.cluster, identity.disk, identity.osd) {
        return Err(OpenError::OtherStore { cluster: superblock.cluster, disk: superblock.disk });
    }
    if superblock.segment_bytes < HEADER_BLOCK_BYTES as u32 * 2 {
        return Err(OpenError::Unusable { reason: format!("segments of {} bytes", superblock.segment_bytes) });
    }
    superblock.generation += 1;
    // The copies take turns: one of them is whole at any time.
    let turn = superblock.generation % 2;
    device.write_at(turn * HEADER_BLOCK_BYTES as u64, &[&superblock.encode()])?;
    device.sync()?;
    Ok(superblock)
}

fn read_segment_headers<D: Device>(device: &D, superblock: &Superblock) -> Result<BTreeMap<u32, u64>, OpenError> {
    let mut used = BTreeMap::new();
    for slot in 0..slots_of(device.len(), superblock.segment_bytes) {
        let mut block = [0u8; 64];
        device.read_at(slot_base(slot, superblock.segment_bytes), &mut block)?;
        if let Some(header) = SegmentHeader::decode(&block, superblock.disk) {
            used.insert(slot, header.number);
        }
    }
    Ok(used)
}

fn read_live<I: Index>(index: &I) -> Result<BTreeMap<u64, u64>, OpenError> {
    let mut live = BTreeMap::new();
    let mut wrong = None;
    let start = keys::segments();
    index.scan(&start, keys::after_prefix(&start).as_deref(), &mut |key, value| {
        match (keys::segment_number(key), <[u8; 8]>::try_from(value)) {
            (Some(number), Ok(bytes)) => {
                live.insert(number, u64::from_le_bytes(bytes));
            }
            _ => wrong = Some(format!("a segment row of {} bytes", value.len())),
        }
        true
    })?;
    match wrong {
        Some(detail) => Err(OpenError::IndexMismatch { detail }),
        None => Ok(live),
    }
}

/// The log as a stream of bytes, segment by segment.
struct Log<'a, D> {
    device: &'a D,
    superblock: &'a Superblock,
    numbers: &'a BTreeMap<u64, u32>,
    /// The buffer holds bytes of this segment from `from` on.
    segment: u64,
    from: u64,
    buffer: Vec<u8>,
}

impl<D: Device> Log<'_, D> {
    /// `length` bytes of a segment; fewer at its end, none when there is no such segment.
    fn bytes(&mut self, segment: u64, at: u64, length: usize) -> Result<&[u8], OpenError> {
        let Some(slot) = self.numbers.get(&segment) else { return Ok(&[]) };
        let segment_bytes = u64::from(self.superblock.segment_bytes);
        let wanted = length.min(usize::try_from(segment_bytes.saturating_sub(at)).unwrap_or(usize::MAX));
        let held =
            self.segment == segment && at >= self.from && at + wanted as u64 <= self.from + self.buffer.len() as u64;
        if !held {
            let left = usize::try_from(segment_bytes.saturating_sub(at)).unwrap_or(usize::MAX);
            self.buffer.resize(wanted.max(CHUNK_BYTES).min(left), 0);
            self.device.read_at(slot_base(*slot, self.superblock.segment_bytes) + at, &mut self.buffer)?;
            (self.segment, self.from) = (segment, at);
        }
        let start = usize::try_from(at - self.from).unwrap_or(usize::MAX);
        Ok(&self.buffer[start..start + wanted])
    }

    /// The header at a place, when it is intact and says that it belongs there.
    fn header_at(&mut self, segment: u64, at: u64) -> Result<Option<(RecordHeader, u32)>, OpenError> {
        let disk = self.superblock.disk;
        let bytes = self.bytes(segment, at, RECORD_HEADER_BYTES)?;
        let Ok(bytes) = <&[u8; RECORD_HEADER_BYTES]>::try_from(bytes) else { return Ok(None) };
        Ok(RecordHeader::decode(bytes, disk).filter(|(header, _)| header.segment == segment))
    }

    /// The record that follows `position`: in the same sector, at the next sector, or in the next segment.
    fn next(&mut self, position: Position) -> Result<Option<Found>, OpenError> {
        let here = u64::from(position.offset);
        let sector = here.next_multiple_of(u64::from(SECTOR_BYTES));
        let next_segment = self.numbers.range(position.segment + 1..).next().map(|(number, _)| *number);
        let first = HEADER_BLOCK_BYTES as u64;
        let places = [
            (position.segment != 0).then_some((position.segment, here)),
            (position.segment != 0 && sector != here).then_some((position.segment, sector)),
            next_segment.map(|number| (number, first)),
        ];
        for (segment, at) in places.into_iter().flatten() {
            let Some((header, crc)) = self.header_at(segment, at)? else { continue };
            let follows = header.sequence == position.sequence + 1 && header.chain == position.chain;
            if follows && self.is_whole(&header, segment, at)? {
                return Ok(Some(Found { header, crc, segment, at }));
            }
        }
        Ok(None)
    }

    fn is_whole(&mut self, header: &RecordHeader, segment: u64, at: u64) -> Result<bool, OpenError> {
        let length = header.record_bytes();
        if at + length > u64::from(self.superblock.segment_bytes) {
            return Ok(false);
        }
        let body = self.bytes(segment, at + RECORD_HEADER_BYTES as u64, header.body_bytes as usize)?;
        Ok(crc32c(body) == header.body_crc)
    }

    /// Whether the payload of a record matches the checksums in its body.
    fn payload_is_whole(&mut self, found: &Found, ops: &[RecordOp]) -> Result<bool, OpenError> {
        let header = &found.header;
        let payload_at = found.at + RECORD_HEADER_BYTES as u64 + u64::from(header.body_bytes);
        for op in ops {
            let RecordOp::Write { c, o, offset, length, payload_at: at, checksums: stored } = op else { continue };
            let data = self.bytes(found.segment, payload_at + u64::from(*at), *length as usize)?;
            let mut computed = checksums(data);
            bind_all(&mut computed, *c, o, *offset, header.sequence);
            if computed != *stored {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks for records of later commits behind the end of the log.
    fn refuse_damage_in_the_middle(&mut self, end: Position, whole: bool) -> Result<(), OpenError> {
        let proves = |header: &RecordHeader| {
            header.sequence > end.sequence
                && (header.group >= end.group + 2 || (header.group == end.group + 1 && !whole))
        };
        let damaged = OpenError::CorruptMiddle { segment: end.segment, offset: u64::from(end.offset) };
        let segments: Vec<u64> = self.numbers.range(end.segment..).map(|(number, _)| *number).collect();
        for segment in segments {
            let mut at = if segment == end.segment {
                u64::from(end.offset).next_multiple_of(8)
            } else {
                HEADER_BLOCK_BYTES as u64
            };
            loop {
                let chunk = self.bytes(segment, at, CHUNK_BYTES)?;
                if chunk.len() < RECORD_HEADER_BYTES {
                    break;
                }
                let places: Vec<usize> = (0..=chunk.len() - RECORD_HEADER_BYTES)
                    .step_by(8)
                    .filter(|at| chunk[*at..].starts_with(b"HFRC"))
                    .collect();
                let step = (chunk.len() - RECORD_HEADER_BYTES + 8) as u64;
                for place in places {
                    if self.header_at(segment, at + place as u64)?.is_some_and(|(header, _)| proves(&header)) {
                        return Err(damaged);
                    }
                }
                at += step;
            }
        }
        Ok(())
    }
}

/// A record that follows the log so far, with an intact header and body.
struct Found {
    header: RecordHeader,
    crc: u32,
    segment: u64,
    at: u64,
}

/// The log applied so far.
struct Replay<'a, I> {
    index: &'a I,
    live: BTreeMap<u64, u64>,
    position: Position,
    /// Whether the commit of `position` has all its records.
    whole: bool,
    /// Entries that are applied and not in the index yet.
    overlay: Overlay,
}

impl<I: Index> Replay<'_, I> {
    /// Applies a record; `false` when its payload is damaged and it may be the torn end of the log.
    fn apply<D: Device>(&mut self, log: &mut Log<'_, D>, found: &Found) -> Result<bool, OpenError> {
        let header = &found.header;
        let body = log.bytes(found.segment, found.at + RECORD_HEADER_BYTES as u64, header.body_bytes as usize)?;
        let damaged = OpenError::CorruptMiddle { segment: found.segment, offset: found.at };
        let Ok(ops) = decode_body(body) else { return Err(damaged) };
        if !log.payload_is_whole(found, &ops)? {
            // With a later commit behind it this is rot: reads will say so, and peers have the bytes. Without one it
            // is a commit that was never acknowledged.
            let offset = u32::try_from(found.at + header.record_bytes()).unwrap_or(u32::MAX);
            let after = Position {
                segment: found.segment,
                offset,
                sequence: header.sequence,
                chain: found.crc,
                group: header.group,
            };
            let mut later = None;
            let mut at = after;
            while let Some(next) = log.next(at)? {
                if next.header.group > header.group {
                    later = Some(next.header.group);
                    break;
                }
                let offset = u32::try_from(next.at + next.header.record_bytes()).unwrap_or(u32::MAX);
                at = Position {
                    segment: next.segment,
                    offset,
                    sequence: next.header.sequence,
                    chain: next.crc,
                    ..after
                };
            }
            if later.is_none() {
                return Ok(false);
            }
        }
        let payload_at = found.at + RECORD_HEADER_BYTES as u64 + u64::from(header.body_bytes);
        let place = PayloadPlace {
            segment: found.segment,
            at: u32::try_from(payload_at).unwrap_or(u32::MAX),
            sequence: header.sequence,
        };
        let changes = exec::apply(&self.overlay, self.index, place, &ops).map_err(OpenError::Replay)?;
        for (key, value) in changes.entries {
            self.overlay.insert(key, (header.sequence, value));
        }
        for (number, delta) in changes.live {
            let live = self.live.entry(number).or_default();
            *live = live.saturating_add_signed(delta);
        }
        self.position = Position {
            segment: found.segment,
            offset: u32::try_from(found.at + header.record_bytes()).unwrap_or(u32::MAX),
            sequence: header.sequence,
            chain: found.crc,
            group: header.group,
        };
        self.whole = header.group_index + 1 == header.group_count;
        if self.overlay.len() >= BATCH_ENTRIES_MAX {
            self.settle()?;
        }
        Ok(true)
    }

    /// Puts what was applied into the index, with the position.
    fn settle(&mut self) -> Result<(), OpenError> {
        let entries = std::mem::take(&mut self.overlay);
        let mut batch: Vec<_> = entries.into_iter().map(|(key, (_, value))| (key, value)).collect();
        for (number, live) in &self.live {
            batch.push((keys::segment(*number), Some(Bytes::copy_from_slice(&live.to_le_bytes()))));
        }
        batch.push((keys::POSITION.to_vec(), Some(encode_position(self.position))));
        self.index.apply(&batch)?;
        Ok(())
    }
}
