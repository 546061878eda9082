//! Segments: which are free, how much in each is live, and where the log goes on.
//!
//! A segment that is not open and has no live bytes is free again when the index is flushed beyond `touched`, the last
//! position that put a record into it or took a live byte out of it: then no replay and no onode needs it. A reader that
//! still holds its pin delays that.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Options;
use crate::format::round_up;
use crate::format::superblock::Superblock;
use crate::key::Position;

/// Free segments that only cleaning may take: a victim's live bytes always fit into one.
const CLEANING_SEGMENTS: usize = 1;
/// Free segments that are kept from ordinary writes at least: one for cleaning, one for deletes, one between.
const RESERVE_SEGMENTS_MIN: usize = 3;
/// Most payload of one record of the cleaner: bounds memory and what waits behind it.
const MOVE_BYTES_MAX: u64 = 1 << 20;
/// Header and ops of a record of the cleaner, for one piece.
const MOVE_OVERHEAD_BYTES: u64 = 256;

/// Free segments may keep their blocks up to this part of the device, and to so many bytes: what a file on a shared file
/// system holds although it is free stays small.
const WARM_SHARE: usize = 16;
const WARM_BYTES_MAX: u64 = 1 << 30;
/// And at least so many.
const WARM_SEGMENTS_MIN: usize = 2;

/// Who asks for space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Ordinary writes: all but the reserve.
    Normal,
    /// Deletes and what they need: also most of the reserve.
    Reserve,
    /// The cleaner: all.
    Cleaning,
}

#[derive(Debug, Clone)]
pub(super) struct Segment {
    /// Incarnation; 0 when never used.
    pub(super) sequence: u64,
    /// Live bytes with all submitted transactions.
    pub(super) live: u64,
    pub(super) touched: Position,
    /// Held by readers of the segment's bytes.
    pub(super) pin: Arc<()>,
    /// Has blocks that cannot be read: cleaning leaves it alone until they are overwritten.
    pub(super) unreadable: bool,
}

/// Where the next record goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// The open segment; [`NO_SEGMENT`] on a new device.
    pub(super) segment: u32,
    pub(super) sequence: u64,
    /// First free byte of it.
    pub(super) offset: u32,
    /// The segment to open when it is full.
    pub(super) next_segment: u32,
    /// Of the next record.
    pub(super) position: Position,
    /// Of the first record that the next sync covers.
    pub(super) group_first: Position,
    /// Checksum of the last record's header.
    pub(super) chain: u32,
}

/// Stands for "no segment is open yet". It is full, so the first record opens `next_segment`.
pub(super) const NO_SEGMENT: u32 = u32::MAX;

/// A place found for a record; taken by [`Space::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) sequence: u64,
    /// The segment is opened by this record; this one comes after it.
    pub(super) opens_with_next: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Space {
    pub(super) segments: Vec<Segment>,
    pub(super) free: BTreeSet<u32>,
    /// Those of the free segments that still have their blocks. They are used first: to write to blocks that are there
    /// costs no allocation, and a discard of what is written again soon is work for nothing.
    warm: BTreeSet<u32>,
    pub(super) head: Head,
    pub(super) live: u64,
    /// The file system had no room for `head.next_segment`.
    pub(super) next_has_no_blocks: bool,
    /// The file system of the index is nearly full.
    index_lacks_room: bool,
    /// And the device is a file on it.
    pub(super) index_wants_blocks: bool,
    /// Since blocks are wanted the free segments were discarded: they have none to give.
    pub(super) free_have_no_blocks: bool,
    /// The free segment that is just being discarded: it must not be opened.
    discarding: Option<u32>,
    segment_bytes: u32,
    sector_bytes: u32,
    reserve_segments: usize,
}

impl Space {
    /// The space of a device of which nothing is known yet: no segment is free.
    pub(super) fn new(superblock: &Superblock, options: &Options, head: Head) -> Space {
        let unused = Segment { sequence: 0, live: 0, touched: Position(0), pin: Arc::new(()), unreadable: false };
        // Not `vec![unused; n]`: each segment needs a pin of its own.
        let segments = (0..superblock.segment_count).map(|_| Segment { pin: Arc::new(()), ..unused.clone() }).collect();
        Space {
            segments,
            free: BTreeSet::new(),
            warm: BTreeSet::new(),
            head,
            live: 0,
            next_has_no_blocks: false,
            index_lacks_room: false,
            index_wants_blocks: false,
            free_have_no_blocks: false,
            discarding: None,
            segment_bytes: superblock.segment_bytes,
            sector_bytes: superblock.sector_bytes,
            reserve_segments: reserve_segments(superblock.segment_count, options.reserve_percent),
        }
    }

    /// Bytes of a segment that records can have.
    pub(super) fn usable_bytes(&self) -> u64 {
        u64::from(self.segment_bytes - self.sector_bytes)
    }

    /// Payload of one record of the cleaner: small against a segment, since so much is lost at its end.
    pub(super) fn move_bytes(&self) -> u32 {
        (self.usable_bytes() / 32).clamp(2048, MOVE_BYTES_MAX) as u32
    }

    /// A segment is worth cleaning when so many of its bytes are dead. More than a freshly cleaned segment can have, in
    /// headers, padding and what did not fit at its end: else cleaning would go round for ever and free nothing.
    fn gain_min(&self) -> u64 {
        let move_bytes = u64::from(self.move_bytes());
        let records = self.usable_bytes() / move_bytes;
        (move_bytes + records * MOVE_OVERHEAD_BYTES + 2 * u64::from(self.sector_bytes)) * 5 / 4
    }

    /// Most live bytes to which writes may be let in: no more than there are while the file system under a sparse file has
    /// no blocks for the next segment, or that of the index is nearly full. What is under way by then has half of the open
    /// segment, or is taken.
    pub(super) fn admission_limit(&self) -> u64 {
        if self.next_has_no_blocks || self.index_lacks_room { self.live } else { self.live_limit() }
    }

    /// Most live bytes after an ordinary write: all segments but the reserve, the open one and its successor, each so full
    /// that it is not worth cleaning. So there is space until all that cleaning can gain is gained.
    pub(super) fn live_limit(&self) -> u64 {
        let segments = self.segments.len().saturating_sub(self.reserve_segments + 2) as u64;
        segments * self.usable_bytes().saturating_sub(self.gain_min())
    }

    pub(super) fn used_bytes(&self) -> u64 {
        (self.segments.len() - self.free.len()) as u64 * u64::from(self.segment_bytes)
    }

    /// A place for a record of `bytes`, which is at most [`Space::usable_bytes`]; `None` when it would need a free segment
    /// that `admission` may not take.
    pub(super) fn plan(&self, bytes: u64, admission: Admission) -> Option<Plan> {
        let head = &self.head;
        if self.next_has_no_blocks && u64::from(head.offset) + bytes > self.end_without_next(admission) {
            return None;
        }
        // While no segment is free, the rest of the open one is what the cleaner needs to empty its victim: whoever took it
        // would leave it none to go on with, for ever. (While the file system has no blocks it is for deletes, as said above.)
        let cleaner_only = self.free.len() < CLEANING_SEGMENTS && !self.next_has_no_blocks && self.cleaning_helps();
        if cleaner_only && admission != Admission::Cleaning {
            return None;
        }
        if head.segment != NO_SEGMENT && u64::from(head.offset) + bytes <= u64::from(self.segment_bytes) {
            let (segment, offset, sequence) = (head.segment, head.offset, head.sequence);
            return Some(Plan { segment, offset, sequence, opens_with_next: None });
        }
        let kept = match admission {
            Admission::Normal => self.reserve_segments,
            Admission::Reserve => CLEANING_SEGMENTS + 1,
            Admission::Cleaning => 0,
        };
        let next = self.warm.iter().chain(&self.free).find(|segment| Some(**segment) != self.discarding);
        let next = next.filter(|_| self.free.len() > kept && !self.next_has_no_blocks)?;
        Some(Plan {
            segment: head.next_segment,
            offset: self.sector_bytes,
            sequence: head.sequence + 1,
            opens_with_next: Some(*next),
        })
    }

    /// Where records in the open segment end while the next one has no blocks: the last quarter is for deletes alone, and
    /// what is between it and the half for the cleaner, too.
    fn end_without_next(&self, admission: Admission) -> u64 {
        let bytes = u64::from(self.segment_bytes);
        match admission {
            Admission::Normal => bytes / 2,
            Admission::Cleaning => bytes / 4 * 3,
            Admission::Reserve => bytes,
        }
    }

    /// Whether the cleaner has room for so many live bytes. While the next segment has no blocks they must find it in the
    /// open one: a part of them that is moved frees nothing, and takes what deletes need.
    fn has_room_to_move(&self, live: u64) -> bool {
        let record = u64::from(self.move_bytes());
        let overhead = MOVE_OVERHEAD_BYTES + u64::from(self.sector_bytes);
        let bytes = live + (live / record + 1) * overhead + record;
        let end = self.end_without_next(Admission::Cleaning);
        !self.next_has_no_blocks || u64::from(self.head.offset) + bytes <= end
    }

    /// Whether cleaning may go on with the segment that it has begun when it had this sequence.
    pub(super) fn may_go_on_with(&self, number: u32, sequence: u64) -> bool {
        let live = self.segments.get(number as usize).map_or(0, |segment| segment.live);
        self.is_sealed_since(number, sequence) && self.has_room_to_move(live)
    }

    /// Takes the place of `plan` for a record of `bytes` with header checksum `chain`.
    pub(super) fn take(&mut self, plan: Plan, bytes: u64, chain: u32) {
        let position = self.head.position;
        if let Some(next) = plan.opens_with_next {
            self.open_segment(plan.segment, plan.sequence, next);
        }
        self.touch(plan.segment, position);
        self.head.offset = plan.offset + bytes as u32;
        self.head.position = position.next();
        self.head.chain = chain;
    }

    /// Makes `segment` the open one and `next` its successor.
    pub(super) fn open_segment(&mut self, segment: u32, sequence: u64, next: u32) {
        for taken in [segment, next] {
            self.free.remove(&taken);
            self.warm.remove(&taken);
        }
        if let Some(opened) = self.segments.get_mut(segment as usize) {
            opened.sequence = sequence;
            opened.live = 0;
            opened.unreadable = false;
        }
        self.head.segment = segment;
        self.head.sequence = sequence;
        self.head.next_segment = next;
    }

    fn touch(&mut self, segment: u32, position: Position) {
        if let Some(segment) = self.segments.get_mut(segment as usize) {
            segment.touched = segment.touched.max(position);
        }
    }

    /// Counts live bytes changed by the transaction at `position`.
    pub(super) fn change_live(&mut self, position: Position, segment: u32, by: i64) {
        self.touch(segment, position);
        if let Some(segment) = self.segments.get_mut(segment as usize) {
            let before = segment.live;
            segment.live = before.saturating_add_signed(by);
            self.live = (self.live + segment.live).saturating_sub(before);
        }
    }

    /// What is written from now on is covered by another sync than what was before.
    pub(super) fn begin_group(&mut self) {
        self.head.offset = round_up(self.head.offset, self.sector_bytes);
        self.head.group_first = self.head.position;
    }

    fn is_sealed(&self, number: u32) -> bool {
        number != self.head.segment && number != self.head.next_segment && !self.free.contains(&number)
    }

    /// True when the segment is sealed and was not opened anew since it had this sequence.
    pub(super) fn is_sealed_since(&self, number: u32, sequence: u64) -> bool {
        self.is_sealed(number) && self.segments.get(number as usize).is_some_and(|s| s.sequence == sequence)
    }

    fn sealed(&self) -> impl Iterator<Item = (u32, &Segment)> {
        self.segments.iter().enumerate().map(|(n, s)| (n as u32, s)).filter(|(n, _)| self.is_sealed(*n))
    }

    /// Segments without live bytes that will be free once the index is flushed.
    pub(super) fn empty_sealed(&self) -> usize {
        self.sealed().filter(|(_, segment)| segment.live == 0).count()
    }

    /// Takes the segments that nothing needs any more out of use, not yet into `free`: first they may be discarded.
    pub(super) fn released(&self, flushed: Position) -> Vec<u32> {
        self.sealed()
            .filter(|(_, s)| s.live == 0 && s.touched <= flushed && Arc::strong_count(&s.pin) == 1)
            .map(|(number, _)| number)
            .collect()
    }

    /// How many of the segments that become free may keep their blocks.
    pub(super) fn warm_room(&self) -> usize {
        let share = self.segments.len() / WARM_SHARE;
        let most = (WARM_BYTES_MAX / u64::from(self.segment_bytes)) as usize;
        share.min(most).max(WARM_SEGMENTS_MIN).saturating_sub(self.warm.len())
    }

    /// True while the file system has better use for the blocks of free segments.
    pub(super) fn wants_blocks(&self) -> bool {
        self.next_has_no_blocks || self.index_wants_blocks
    }

    /// Takes note whether the next segment has no blocks. True when that has changed.
    pub(super) fn note_next_blocks(&mut self, missing: bool) -> bool {
        let changed = self.next_has_no_blocks != missing;
        self.next_has_no_blocks = missing;
        self.free_have_no_blocks = self.free_have_no_blocks && self.wants_blocks();
        changed
    }

    /// Takes note whether the index lacks room, and whether blocks of the device would be room for it.
    pub(super) fn note_index_room(&mut self, lacks_room: bool, wants_blocks: bool) {
        self.index_lacks_room = lacks_room;
        self.index_wants_blocks = wants_blocks;
        self.free_have_no_blocks = self.free_have_no_blocks && self.wants_blocks();
    }

    /// The free segments, which may have blocks, when these are wanted and this is asked for the first time since. What
    /// becomes free later is discarded then.
    pub(super) fn take_to_discard(&mut self) -> Vec<u32> {
        if !self.wants_blocks() || std::mem::replace(&mut self.free_have_no_blocks, true) {
            return Vec::new();
        }
        self.free.iter().copied().collect()
    }

    /// Keeps a free segment from being opened. False when it was opened already.
    pub(super) fn begin_discard(&mut self, segment: u32) -> bool {
        let is_free = self.free.contains(&segment);
        self.discarding = is_free.then_some(segment);
        is_free
    }

    /// The segment has no blocks any more, and may be opened.
    pub(super) fn end_discard(&mut self) {
        if let Some(segment) = self.discarding.take() {
            self.warm.remove(&segment);
        }
    }

    /// Puts segments back among the free ones; `warm` ones have kept their blocks.
    pub(super) fn set_free(&mut self, warm: &[u32], cold: &[u32]) {
        self.warm.extend(warm);
        self.free.extend(warm);
        self.free.extend(cold);
    }

    /// The segment whose cleaning gains most; all of its records must be applied.
    pub(super) fn victim(&self, applied: Position) -> Option<u32> {
        let worth = self.usable_bytes().saturating_sub(self.gain_min());
        self.sealed()
            .filter(|(_, s)| s.live > 0 && s.live <= worth && !s.unreadable && s.touched <= applied)
            .min_by_key(|(number, s)| (s.live, *number))
            .filter(|(_, s)| self.has_room_to_move(s.live))
            .map(|(number, _)| number)
    }

    /// True when cleaning or an index flush will free a segment.
    pub(super) fn cleaning_helps(&self) -> bool {
        self.empty_sealed() > 0 || self.victim(Position(u64::MAX)).is_some()
    }

    /// Free segments below which the cleaner should run.
    pub(super) fn free_target(&self) -> usize {
        self.reserve_segments + 1 + self.segments.len() / 16
    }
}

/// Segments of the reserve on a device with so many.
pub(super) fn reserve_segments(segment_count: u32, reserve_percent: u32) -> usize {
    let share = u64::from(segment_count) * u64::from(reserve_percent.min(50)) / 100;
    (share as usize).max(RESERVE_SEGMENTS_MIN)
}

/// Segments that a device needs at least: the reserve, the open one, its successor, and two to write to.
pub(super) const SEGMENTS_MIN: u64 = RESERVE_SEGMENTS_MIN as u64 + 4;
