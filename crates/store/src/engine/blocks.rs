//! Blocks for the segment that the log goes on in, ahead of the writes to it.
//!
//! A sparse file gets its blocks from a file system that others fill too. Were they missing only when a group is written,
//! the store would fail as a whole; so they are asked for while the segment before still has room. Without them there is no
//! next segment: no more writes are let in, those under way have half of the open one, deletes and the cleaner the rest.

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
        state.space.free_have_no_blocks &= missing;
        if std::mem::replace(&mut state.space.next_has_no_blocks, missing) != missing {
            drop(state);
            if missing {
                tracing::warn!(disk = %self.layout.disk, segment, "no blocks for the next segment: the file system is full");
            } else {
                tracing::info!(disk = %self.layout.disk, segment, "the next segment has its blocks");
            }
        }
    }

    /// Asks again when the next segment has no blocks. Those of free segments are given up for it.
    pub(super) fn allocate_again(&self) {
        let (next, free) = {
            let mut state = self.state.write();
            if !state.space.next_has_no_blocks {
                return;
            }
            // Out of `free` while they are discarded, so that none is opened meanwhile.
            // Once: what becomes free meanwhile is discarded then.
            let known = std::mem::replace(&mut state.space.free_have_no_blocks, true);
            (state.space.head.next_segment, if known { Vec::new() } else { state.space.take_free() })
        };
        for segment in &free {
            self.discard_segment(*segment);
        }
        self.state.write().space.set_free(&[], &free);
        self.allocate_next(next);
    }

    pub(super) fn discard_segment(&self, segment: u32) {
        let start = self.layout.segment_start(segment);
        if let Err(error) = self.device.discard(start, u64::from(self.layout.segment_bytes)) {
            tracing::debug!(segment, %error, "segment not discarded");
        }
    }
}
