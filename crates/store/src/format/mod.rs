//! What is on the device, byte by byte: `docs/formats/store.md`. All numbers are little-endian.
//!
//! ```text
//! 0          superblock, first copy (one sector)
//! 64 KiB     superblock, second copy
//! 128 KiB    segment 0, segment 1, …   each: header (one sector), records
//! ```

pub(crate) mod record;
pub(crate) mod segment;
pub(crate) mod superblock;

/// Where the second copy of the superblock is.
pub(crate) const SUPERBLOCK_SPACING: u64 = 64 << 10;
/// Where the first segment begins.
pub(crate) const SEGMENTS_START: u64 = 2 * SUPERBLOCK_SPACING;
/// Records begin on multiples of this within a group; groups begin on a sector.
pub(crate) const RECORD_ALIGN: u32 = 8;

/// Rounds up to a multiple of `align`, a power of two.
pub(crate) const fn round_up(value: u32, align: u32) -> u32 {
    value.saturating_add(align - 1) & !(align - 1)
}

/// Reads fixed fields one after the other; every getter returns `None` at the end.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}
