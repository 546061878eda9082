//! A record: one transaction, self-describing.
//!
//! ```text
//! header (104 bytes, own checksum) | ops (CBOR, checksum in the header) | payload | zeros to a multiple of 8
//! ```
//! `position` and `chain` (the checksum of the record before) tie the records into one sequence; `sequence` ties them to
//! the incarnation of their segment. `group_first` is the first position written under the same sync: since groups are
//! written one after the other, all positions before it were durable when this record was written. Replay uses that to
//! tell a torn tail from a bad middle.

use holdfast_types::{ClusterId, DiskUuid};
use minicbor::bytes::ByteSlice;
use minicbor::{Decode, Encode};

use super::{Fields, RECORD_ALIGN, round_up};
use crate::checksum::{crc32c, words};
use crate::key::{CollectionId, Position};

const MAGIC: [u8; 4] = *b"HFrc";
/// Version 1: the first.
const VERSION: u16 = 1;
/// Bytes of the header.
pub(crate) const RECORD_HEADER_BYTES: usize = 104;
const CHECKSUM_AT: usize = RECORD_HEADER_BYTES - 4;

/// The fixed part of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) cluster: ClusterId,
    pub(crate) disk: DiskUuid,
    /// That of the superblock when the store was opened. A record that was lost in a crash and is then written again, the
    /// same in all else, thereby has another checksum, and those that followed it in its first life do not follow it now.
    pub(crate) generation: u64,
    pub(crate) segment: u32,
    /// Byte in the segment where this record begins.
    pub(crate) offset: u32,
    pub(crate) sequence: u64,
    pub(crate) position: Position,
    pub(crate) group_first: Position,
    pub(crate) chain: u32,
    pub(crate) ops_bytes: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) ops_crc: u32,
    /// Binary logarithm of the bytes that one payload checksum covers.
    pub(crate) block_log2: u32,
}

impl RecordHeader {
    /// The encoded header, and its checksum: the `chain` of the next record.
    pub(crate) fn encode(&self) -> ([u8; RECORD_HEADER_BYTES], u32) {
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&VERSION.to_le_bytes()); // oldest compatible
        bytes.extend_from_slice(&self.cluster.0);
        bytes.extend_from_slice(&self.disk.0);
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.segment.to_le_bytes());
        bytes.extend_from_slice(&self.offset.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.position.0.to_le_bytes());
        bytes.extend_from_slice(&self.group_first.0.to_le_bytes());
        bytes.extend_from_slice(&self.chain.to_le_bytes());
        bytes.extend_from_slice(&self.ops_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.payload_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.ops_crc.to_le_bytes());
        bytes.extend_from_slice(&self.block_log2.to_le_bytes());
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let mut encoded = [0; RECORD_HEADER_BYTES];
        encoded.copy_from_slice(&bytes);
        (encoded, crc)
    }

    /// The header in `bytes` and its checksum; `None` when there is none of this version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(RecordHeader, u32)> {
        let bytes = bytes.get(..RECORD_HEADER_BYTES)?;
        let (body, sum) = bytes.split_at_checked(CHECKSUM_AT)?;
        let mut fields = Fields(bytes);
        let crc = Fields(sum).u32()?;
        if fields.take()? != MAGIC || crc != crc32c(body) {
            return None;
        }
        let (_version, oldest) = (fields.u16()?, fields.u16()?);
        if oldest > VERSION {
            return None;
        }
        let header = RecordHeader {
            cluster: ClusterId(fields.take()?),
            disk: DiskUuid(fields.take()?),
            generation: fields.u64()?,
            segment: fields.u32()?,
            offset: fields.u32()?,
            sequence: fields.u64()?,
            position: Position(fields.u64()?),
            group_first: Position(fields.u64()?),
            chain: fields.u32()?,
            ops_bytes: fields.u32()?,
            payload_bytes: fields.u32()?,
            ops_crc: fields.u32()?,
            block_log2: fields.u32()?,
        };
        (header.block_log2 < 32).then_some((header, crc))
    }

    /// Bytes from the start of the record to that of the next one in the same group.
    pub(crate) fn record_bytes(&self) -> u64 {
        record_bytes(self.ops_bytes as usize, u64::from(self.payload_bytes))
    }

    /// Byte in the segment where the payload begins.
    pub(crate) fn payload_offset(&self) -> u64 {
        u64::from(self.offset) + RECORD_HEADER_BYTES as u64 + u64::from(self.ops_bytes)
    }
}

/// Bytes of a record with so many bytes of ops and payload.
pub(crate) fn record_bytes(ops_bytes: usize, payload_bytes: u64) -> u64 {
    let bytes = (RECORD_HEADER_BYTES + ops_bytes) as u64 + payload_bytes;
    bytes.next_multiple_of(u64::from(RECORD_ALIGN))
}

/// Where the next record may begin after one that ends at `end`: in the same group, or in the next one.
pub(crate) fn next_starts(end: u32, sector_bytes: u32) -> [u32; 2] {
    [round_up(end, RECORD_ALIGN), round_up(end, sector_bytes)]
}

/// One row in [`LogOp::PutRows`].
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct LogRow<'a> {
    #[b(0)]
    pub(crate) key: &'a ByteSlice,
    #[b(1)]
    pub(crate) value: &'a ByteSlice,
}

/// Bytes that the cleaner moved, in [`LogOp::Relocate`]: what they are, where and of which transaction they were, and the
/// checksums of their new blocks.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct LogMove<'a> {
    #[n(0)]
    pub(crate) offset: u64,
    #[n(1)]
    pub(crate) length: u32,
    #[n(2)]
    pub(crate) old_segment: u32,
    /// Byte in the segment of the first byte moved.
    #[n(3)]
    pub(crate) old_position: u32,
    #[n(4)]
    pub(crate) old_version: Position,
    #[b(5)]
    pub(crate) sums: &'a ByteSlice,
}

/// A [`TxOp`](crate::TxOp) as the log has it, payload apart.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
#[rustfmt::skip]
pub(crate) enum LogOp<'a> {
    #[n(0)] CreateCollection { #[n(0)] c: CollectionId },
    #[n(1)] RemoveCollection { #[n(0)] c: CollectionId },
    #[n(2)] Touch { #[n(0)] c: CollectionId, #[b(1)] o: &'a ByteSlice },
    #[n(3)] Write { #[n(0)] c: CollectionId, #[b(1)] o: &'a ByteSlice, #[n(2)] offset: u64, #[n(3)] length: u32, #[b(4)] sums: &'a ByteSlice },
    #[n(4)] Truncate { #[n(0)] c: CollectionId, #[b(1)] o: &'a ByteSlice, #[n(2)] size: u64 },
    #[n(5)] Zero { #[n(0)] c: CollectionId, #[b(1)] o: &'a ByteSlice, #[n(2)] offset: u64, #[n(3)] length: u64 },
    #[n(6)] Remove { #[n(0)] c: CollectionId, #[b(1)] o: &'a ByteSlice },
    #[n(7)] SetAttr { #[n(0)] c: CollectionId, #[b(1)] o: &'a ByteSlice, #[b(2)] name: &'a ByteSlice, #[b(3)] value: &'a ByteSlice },
    #[n(8)] RemoveAttr { #[n(0)] c: CollectionId, #[b(1)] o: &'a ByteSlice, #[b(2)] name: &'a ByteSlice },
    #[n(9)] PutRows { #[n(0)] c: CollectionId, #[b(1)] o: &'a ByteSlice, #[b(2)] rows: Vec<LogRow<'a>> },
    #[n(10)] DeleteRows { #[n(0)] c: CollectionId, #[b(1)] o: &'a ByteSlice, #[b(2)] keys: Vec<&'a ByteSlice> },
    #[n(11)] DeleteRowRange { #[n(0)] c: CollectionId, #[b(1)] o: &'a ByteSlice, #[b(2)] start: &'a ByteSlice, #[b(3)] end: Option<&'a ByteSlice> },
    #[n(12)] PutMeta { #[n(0)] c: CollectionId, #[b(1)] key: &'a ByteSlice, #[b(2)] value: &'a ByteSlice },
    #[n(13)] DeleteMeta { #[n(0)] c: CollectionId, #[b(1)] key: &'a ByteSlice },
    #[n(14)] DeleteMetaRange { #[n(0)] c: CollectionId, #[b(1)] start: &'a ByteSlice, #[b(2)] end: Option<&'a ByteSlice> },
    #[n(16)] SplitCollection { #[n(0)] c: CollectionId, #[n(1)] into: CollectionId, #[b(2)] at: &'a ByteSlice },
    #[n(15)] Relocate { #[n(0)] c: CollectionId, #[b(1)] o: &'a ByteSlice, #[b(2)] moves: Vec<LogMove<'a>> },
}

impl LogOp<'_> {
    /// The pieces of payload that belong to the op: bytes and checksums of each, in order.
    pub(crate) fn payload(&self) -> impl Iterator<Item = (u32, &ByteSlice)> + '_ {
        let (one, many) = match self {
            LogOp::Write { length, sums, .. } => (Some((*length, *sums)), [].as_slice()),
            LogOp::Relocate { moves, .. } => (None, moves.as_slice()),
            _ => (None, [].as_slice()),
        };
        one.into_iter().chain(many.iter().map(|piece| (piece.length, piece.sums)))
    }
}

/// The ops of a record. Checks that the payload has as many bytes and checksums as they say.
pub(crate) fn decode_ops(bytes: &[u8], payload_bytes: u32, block_log2: u32) -> Result<Vec<LogOp<'_>>, &'static str> {
    let ops: Vec<LogOp<'_>> = minicbor::decode(bytes).map_err(|_| "the ops are not those of this version")?;
    let mut payload = 0u64;
    for (length, sums) in ops.iter().flat_map(LogOp::payload) {
        payload += u64::from(length);
        if words(sums).len() as u64 != u64::from(length).div_ceil(1 << block_log2) || length == 0 {
            return Err("an op has not one checksum for each block");
        }
    }
    if payload == u64::from(payload_bytes) { Ok(ops) } else { Err("the payload is not as long as the ops say") }
}
