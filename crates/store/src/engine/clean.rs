//! Cleaning: live extents move out of the emptiest segment, so that it becomes free.
//!
//! Which objects may have extents in a segment is told by the segment's own records; should they not be readable, or not
//! account for all live bytes, the onodes of the whole index are searched. Extents are read and checked, and written anew by an ordinary
//! record with `Relocate` ops, which takes effect only for extents that are still as they were when they were read. Moving
//! is therefore resumable at any point and races with nothing. Only the bytes that are referred to are moved, with new
//! checksum blocks, so a segment with much that is dead always shrinks; and in pieces that are small against a segment, so
//! that little is lost at the end of each.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::Engine;
use super::read::{home_of, lookup_onode};
use super::replay::LogReader;
use super::space::Admission;
use super::stage::decode_onode;
use crate::checksum::{ObjectTag, block_sums};
use crate::device::Device;
use crate::error::{CleanError, OpenError, SubmitError};
use crate::format::record::{LogMove, LogOp, decode_ops, next_starts};
use crate::index::{Index, keys};
use crate::key::{CollectionId, ObjectKey};
use crate::onode::Extent;

/// Pieces of one record at most: bounds the time for which client writes wait behind it.
const MOVE_EXTENTS_MAX: usize = 1024;

/// What a cleaning step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CleanProgress {
    /// Bytes that were moved.
    pub moved_bytes: u64,
    /// Segments that became free.
    pub freed_segments: u64,
    /// True when another step would do more.
    pub more: bool,
}

/// The segment being cleaned, and the objects that are still to be looked at.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    /// With the sequence that it had: between two steps it may become free and be opened anew.
    victim: Option<(u32, u64)>,
    objects: BTreeSet<(CollectionId, ObjectKey)>,
    /// The objects come from the index: what is still live after them could not be read, or changed meanwhile.
    searched_index: bool,
    /// Something in it could not be read.
    met_unreadable: bool,
    moved_bytes: u64,
}

/// A piece of an extent that is moved.
struct Moved {
    c: CollectionId,
    o: ObjectKey,
    extent: Extent,
    bytes: Bytes,
    sums: Vec<u8>,
}

impl<D: Device, I: Index> Engine<D, I> {
    /// Moves up to about `budget_bytes` of live extents out of the emptiest segment, and frees segments that are empty.
    /// Commits. May be called whenever the caller finds it worth the IO; see [`Engine::wants_cleaning`].
    ///
    /// # Errors
    /// [`CleanError`]. Nothing is lost; another step goes on.
    pub fn clean_step(&self, budget_bytes: u64) -> Result<CleanProgress, CleanError> {
        let mut cleaner = self.clean_turn.lock();
        let free_before = self.state.read().space.free.len();
        let mut progress = CleanProgress::default();
        if self.state.read().space.wants_blocks() {
            self.release_segments(); // which gives up what free ones have, and asks again for the next one
        }
        if self.state.read().space.empty_sealed() > 0 {
            self.commit()?;
            self.flush_index()?;
        }
        if let Some((victim, sequence)) = cleaner.victim
            && !self.state.read().space.may_go_on_with(victim, sequence)
        {
            *cleaner = Cleaner::default();
        }
        if cleaner.victim.is_none() {
            let (victim, sequence) = {
                let state = self.state.read();
                let victim = state.space.victim(state.applied);
                let segment = victim.and_then(|victim| state.space.segments.get(victim as usize));
                (victim, segment.map_or(0, |segment| segment.sequence))
            };
            if let Some(victim) = victim {
                let (objects, searched_index) = match self.objects_in_records(victim) {
                    Ok(objects) => (objects, false),
                    Err(CleanError::Device(error)) => {
                        tracing::warn!(segment = victim, %error, "records cannot be read, the index is searched instead");
                        (self.objects_in_index(victim), true)
                    }
                    Err(error) => return Err(error),
                };
                *cleaner = Cleaner { victim: Some((victim, sequence)), objects, searched_index, ..Cleaner::default() };
            }
        }
        if let Some((victim, _)) = cleaner.victim {
            progress.moved_bytes = self.move_out(&mut cleaner, victim, budget_bytes)?;
            cleaner.moved_bytes += progress.moved_bytes;
            self.commit()?;
            let live = self.state.read().space.segments.get(victim as usize).map_or(0, |segment| segment.live);
            if live == 0 {
                *cleaner = Cleaner::default();
                self.flush_index()?;
            } else if cleaner.objects.is_empty() && !cleaner.searched_index {
                cleaner.objects = self.objects_in_index(victim);
                cleaner.searched_index = true;
            } else if cleaner.objects.is_empty() {
                if (cleaner.met_unreadable || cleaner.moved_bytes == 0)
                    && let Some(segment) = self.state.write().space.segments.get_mut(victim as usize)
                {
                    segment.unreadable = true;
                    tracing::warn!(segment = victim, live, "live bytes of a segment cannot be moved");
                }
                *cleaner = Cleaner::default();
            }
        }
        let state = self.state.read();
        progress.freed_segments = state.space.free.len().saturating_sub(free_before) as u64;
        progress.more = cleaner.victim.is_some() || state.space.cleaning_helps();
        Ok(progress)
    }

    fn move_out(&self, cleaner: &mut Cleaner, victim: u32, budget_bytes: u64) -> Result<u64, CleanError> {
        let move_bytes = u64::from(self.state.read().space.move_bytes());
        let mut moved_bytes = 0;
        let mut moves: Vec<Moved> = Vec::new();
        let mut bytes = 0;
        while moved_bytes + bytes < budget_bytes.max(1)
            && let Some((c, o)) = cleaner.objects.first().cloned()
        {
            let (onode, home) = {
                let state = self.state.read();
                if !state.collections.contains(c) {
                    cleaner.objects.pop_first();
                    continue;
                }
                let home = home_of(&state, c);
                let pin = state.space.segments.get(victim as usize).map(|segment| Arc::clone(&segment.pin));
                match lookup_onode(&state, &self.index, c, &o) {
                    Ok(onode) => (onode.zip(pin), home),
                    Err(error) => {
                        tracing::warn!(collection = %c, object = %o, %error, "object not moved");
                        (None, home)
                    }
                }
            };
            if let Some((onode, _pin)) = onode {
                for extent in onode.extents.iter().filter(|extent| extent.segment == victim) {
                    let mut from = extent.logical;
                    while from < extent.end() {
                        let to = extent.end().min(from + move_bytes);
                        let piece = extent.slice(from, to);
                        from = to;
                        let Some(piece) = self.load(c, home, &o, piece) else {
                            cleaner.met_unreadable = true;
                            continue;
                        };
                        bytes += to - piece.extent.logical;
                        moves.push(piece);
                        if bytes >= move_bytes || moves.len() >= MOVE_EXTENTS_MAX {
                            self.submit_moves(&mut moves)?;
                            moved_bytes += std::mem::take(&mut bytes);
                        }
                    }
                }
            }
            cleaner.objects.pop_first();
        }
        self.submit_moves(&mut moves)?;
        Ok(moved_bytes + bytes)
    }

    /// Reads and checks an extent; `None` when that fails: reads of it fail too, and its owner repairs it.
    fn load(&self, c: CollectionId, home: CollectionId, o: &ObjectKey, extent: Extent) -> Option<Moved> {
        let mut bytes = vec![0; extent.length as usize];
        if let Err(error) = self.read_extent(c, o, ObjectTag::new(home, o), &extent, &mut bytes) {
            tracing::warn!(collection = %c, object = %o, %error, "extent not moved");
            return None;
        }
        let sums = block_sums(&bytes, self.options.checksum_block_bytes as usize);
        Some(Moved { c, o: o.clone(), extent, bytes: bytes.into(), sums })
    }

    fn submit_moves(&self, moves: &mut Vec<Moved>) -> Result<(), CleanError> {
        let moved = std::mem::take(moves);
        if moved.is_empty() {
            return Ok(());
        }
        let ops: Vec<LogOp<'_>> = moved
            .chunk_by(|a, b| (a.c, &a.o) == (b.c, &b.o))
            .filter_map(|of_one| {
                let first = of_one.first()?;
                let moves = of_one.iter().map(|piece| LogMove {
                    offset: piece.extent.logical,
                    length: piece.extent.length,
                    old_segment: piece.extent.segment,
                    old_position: piece.extent.position_of(piece.extent.logical),
                    old_version: piece.extent.version,
                    sums: piece.sums.as_slice().into(),
                });
                Some(LogOp::Relocate { c: first.c, o: first.o.as_bytes().into(), moves: moves.collect() })
            })
            .collect();
        let payload: Vec<Bytes> = moved.iter().map(|piece| piece.bytes.clone()).collect();
        match self.submit_ops(&ops, payload.clone(), Admission::Cleaning, &mut None) {
            Ok(_) => {}
            // The log needs a segment now; those that wait for an index flush may give one.
            Err(SubmitError::NoSpace { .. }) => {
                self.commit()?;
                self.flush_index()?;
                self.submit_ops(&ops, payload, Admission::Cleaning, &mut None)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Objects that the records of a segment wrote to. Those behind an unreadable record may be missing.
    fn objects_in_records(&self, victim: u32) -> Result<BTreeSet<(CollectionId, ObjectKey)>, CleanError> {
        let unreadable = |error| match error {
            OpenError::Device(error) => CleanError::Device(error),
            OpenError::Index(error) => CleanError::Index(error),
            // The reader has no other errors.
            other => CleanError::Device(std::io::Error::other(other)),
        };
        let (sequence, collections) = {
            let state = self.state.read();
            let sequence = state.space.segments.get(victim as usize).map_or(0, |segment| segment.sequence);
            (sequence, state.collections.clone())
        };
        // What was written into a collection may have been given to others since; it is still in the same home.
        let owner = |c: CollectionId, o: &ObjectKey| {
            let home = collections.get(c).map_or(c, |place| place.home);
            collections.owner(home, o).or_else(|| collections.owner(c, o)).unwrap_or(c)
        };
        let mut objects = BTreeSet::new();
        let mut reader = LogReader::new(&self.device, &self.layout);
        let sector = self.layout.sector_bytes;
        let mut at = sector;
        while at < self.layout.segment_bytes {
            let mut end = at.saturating_add(1); // nothing here: on to the next sector
            for offset in next_starts(at, sector) {
                let Some((header, _)) = reader.record_header(victim, offset, sequence).map_err(unreadable)? else {
                    continue;
                };
                if let Some(ops) = reader.record_ops(&header).map_err(unreadable)?
                    && let Ok(ops) = decode_ops(&ops, header.payload_bytes, header.block_log2)
                {
                    objects.extend(ops.iter().filter_map(|op| match op {
                        LogOp::Write { c, o, .. } | LogOp::Relocate { c, o, .. } => {
                            let o = ObjectKey::new(Bytes::copy_from_slice(o)).ok()?;
                            Some((owner(*c, &o), o))
                        }
                        _ => None,
                    }));
                }
                end = offset.saturating_add(header.record_bytes() as u32);
                break;
            }
            // After a record the next one may follow at once; after nothing, only at a sector.
            let found_record = end > at.saturating_add(1);
            at = if found_record { end } else { crate::format::round_up(end, sector) };
        }
        Ok(objects)
    }

    /// Objects with extents in a segment, found by looking at all of them. What the index cannot show stays where it is:
    /// one bad onode must not keep all other objects from moving.
    fn objects_in_index(&self, victim: u32) -> BTreeSet<(CollectionId, ObjectKey)> {
        let mut objects = BTreeSet::new();
        let collections = self.state.read().collections.clone();
        // The victim's records are all applied: an onode that the index does not have yet only refers to other segments, or
        // is an older one's with less.
        let scanned = self.index.scan(&[keys::TABLE_ONODE], Some(&[keys::TABLE_ONODE + 1]), &mut |key, value| {
            match decode_onode(key, value) {
                Ok(onode) if onode.extents.iter().any(|extent| extent.segment == victim) => {
                    let found = keys::parse_onode(key);
                    objects.extend(found.and_then(|(home, o)| Some((collections.owner(home, &o)?, o))));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "object not moved"),
            }
            ControlFlow::Continue(())
        });
        if let Err(error) = scanned {
            tracing::warn!(segment = victim, %error, "the index cannot be searched whole");
        }
        objects
    }
}
