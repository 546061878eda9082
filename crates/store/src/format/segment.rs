//! The header of a segment.
//!
//! It is written together with the first record of the segment's incarnation, under the same sync. The sequence number
//! grows with each segment that is opened, so records of an earlier incarnation are known for what they are; `next` is
//! chosen when the segment is opened, so replay finds its way without searching.

use holdfast_types::{ClusterId, DiskUuid};

use super::Fields;
use crate::checksum::crc32c;
use crate::key::Position;

const MAGIC: [u8; 4] = *b"HFsg";
/// Version 1: the first.
const VERSION: u16 = 1;
/// Bytes of the header; the rest of its sector is zero.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 88;
const CHECKSUM_AT: usize = SEGMENT_HEADER_BYTES - 4;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) cluster: ClusterId,
    pub(crate) disk: DiskUuid,
    pub(crate) segment: u32,
    /// The segment that the log goes on in.
    pub(crate) next: u32,
    pub(crate) sequence: u64,
    /// That of the superblock when the segment was opened; its records are of this generation or later. Else the header
    /// of a segment that is opened again after a crash could lead to records that the crash had cut off.
    pub(crate) generation: u64,
    /// Position of the first record.
    pub(crate) first: Position,
    /// Checksum of the header of the record before it.
    pub(crate) chain: u32,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&VERSION.to_le_bytes()); // oldest compatible
        bytes.extend_from_slice(&self.cluster.0);
        bytes.extend_from_slice(&self.disk.0);
        bytes.extend_from_slice(&self.segment.to_le_bytes());
        bytes.extend_from_slice(&self.next.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.first.0.to_le_bytes());
        bytes.extend_from_slice(&self.chain.to_le_bytes());
        bytes.resize(CHECKSUM_AT, 0);
        bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// `None`: not a header of this version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<SegmentHeader> {
        let bytes = bytes.get(..SEGMENT_HEADER_BYTES)?;
        let (body, sum) = bytes.split_at_checked(CHECKSUM_AT)?;
        let mut fields = Fields(bytes);
        if fields.take()? != MAGIC || Fields(sum).u32()? != crc32c(body) {
            return None;
        }
        let (_version, oldest) = (fields.u16()?, fields.u16()?);
        if oldest > VERSION {
            return None;
        }
        Some(SegmentHeader {
            cluster: ClusterId(fields.take()?),
            disk: DiskUuid(fields.take()?),
            segment: fields.u32()?,
            next: fields.u32()?,
            sequence: fields.u64()?,
            generation: fields.u64()?,
            first: Position(fields.u64()?),
            chain: fields.u32()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_round_trips_and_any_flipped_bit_is_found() {
        let header = SegmentHeader {
            cluster: ClusterId([1; 16]),
            disk: DiskUuid([2; 16]),
            segment: 3,
            next: 4,
            sequence: 5,
            generation: 8,
            first: Position(6),
            chain: 7,
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        for bit in 0..SEGMENT_HEADER_BYTES * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bad), None, "bit {bit}");
        }
    }
}
