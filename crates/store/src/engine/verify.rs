//! Verifying: reads all stored bytes of an object and says which are bad, without stopping at the first.
//!
//! For tests and tools; scrubs of placement groups read like everybody else. Holds one extent at a time.

use std::sync::Arc;

use super::Engine;
use super::read::{home_of, lookup_onode};
use crate::checksum::ObjectTag;
use crate::device::Device;
use crate::error::ReadError;
use crate::index::Index;
use crate::key::{CollectionId, ObjectKey};

/// Bytes of one read while verifying: bounds memory, whatever an extent's length.
const VERIFY_BYTES: u64 = 1 << 20;

/// Bytes of an object that cannot be read.
#[derive(Debug)]
pub struct BadRange {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// Why the first of them cannot be read.
    pub error: ReadError,
}

/// What [`Engine::verify_object`] found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Stored bytes that were read.
    pub bytes: u64,
    /// What is bad; empty when all is well.
    pub bad: Vec<BadRange>,
}

impl<D: Device, I: Index> Engine<D, I> {
    /// Where on the device the bytes of an object are: for tests that spoil them.
    ///
    /// # Errors
    /// As [`Engine::verify_object`].
    pub fn stored_at(&self, c: CollectionId, o: &ObjectKey) -> Result<Vec<std::ops::Range<u64>>, ReadError> {
        let onode = lookup_onode(&self.state.read(), &self.index, c, o)?;
        let onode = onode.ok_or_else(|| ReadError::NoSuchObject { collection: c, object: o.clone() })?;
        let place = |extent: &crate::onode::Extent| {
            let start = self.layout.segment_start(extent.segment) + u64::from(extent.position);
            start..start + u64::from(extent.stored)
        };
        Ok(onode.extents.iter().map(place).collect())
    }

    /// The key of the index row that says what an object is: for tests that spoil it.
    #[must_use]
    pub fn onode_row(c: CollectionId, o: &ObjectKey) -> bytes::Bytes {
        crate::index::keys::onode(c, o)
    }

    /// Reads and checks all stored bytes of an object. What changes meanwhile may be checked or not.
    ///
    /// # Errors
    /// [`ReadError`] when the object does not exist or the index fails; bad bytes are in [`Verified::bad`].
    pub fn verify_object(&self, c: CollectionId, o: &ObjectKey) -> Result<Verified, ReadError> {
        let (onode, home, _pins) = {
            let state = self.state.read();
            let onode = lookup_onode(&state, &self.index, c, o)?
                .ok_or_else(|| ReadError::NoSuchObject { collection: c, object: o.clone() })?;
            let segments = onode.extents.iter().filter_map(|extent| state.space.segments.get(extent.segment as usize));
            let pins: Vec<Arc<()>> = segments.map(|segment| Arc::clone(&segment.pin)).collect();
            (onode, home_of(&state, c), pins)
        };
        let tag = ObjectTag::new(home, o);
        let mut verified = Verified::default();
        let mut buffer = Vec::new();
        for extent in &onode.extents {
            let mut from = extent.logical;
            while from < extent.end() {
                let to = extent.end().min(from + VERIFY_BYTES);
                let piece = extent.slice(from, to);
                buffer.resize(piece.length as usize, 0);
                // What is not on the device yet is in memory, and as good as what was submitted.
                let submitted = self.state.read().applied < piece.version;
                if !submitted && let Err(error) = self.read_extent(c, o, tag, &piece, &mut buffer) {
                    verified.bad.push(BadRange { offset: from, length: to - from, error });
                }
                verified.bytes += to - from;
                from = to;
            }
        }
        Ok(verified)
    }
}
