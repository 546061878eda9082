//! Fixed structures on the device: the superblock, segment headers and record headers. Little-endian throughout.
//!
//! ```text
//! byte 0       superblock, copy A          4096 bytes
//! byte 4096    superblock, copy B          4096 bytes
//! byte 8192    segment slot 0              segment_bytes
//!              segment slot 1 …
//! ```
//! Slots are filled in any order; what orders segments is the number in their headers.

use holdfast_types::{ClusterId, DiskUuid, OsdId};

/// Of the superblock and of a segment's header.
pub(crate) const HEADER_BLOCK_BYTES: usize = 4096;
/// Where the slots begin.
pub(crate) const SLOTS_AT: u64 = 2 * HEADER_BLOCK_BYTES as u64;
/// Of a record's header.
pub(crate) const RECORD_HEADER_BYTES: usize = 80;
/// A commit never begins in a sector that an earlier one has written: a torn sector cannot harm what was acknowledged.
pub(crate) const SECTOR_BYTES: u32 = 512;
/// Payload under one checksum. Small enough that a 4 KiB read does not drag 64 KiB along, large enough that 4 MiB have
/// 1 KiB of checksums in their onode.
pub(crate) const BLOCK_BYTES: u32 = 16 << 10;

const SUPERBLOCK_MAGIC: &[u8; 8] = b"HFSUPER\0";
const SEGMENT_MAGIC: &[u8; 8] = b"HFSEGMT\0";
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"HFRC");
const VERSION: u8 = 1;

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(crc).expect("a CRC-32 has 32 bits")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn id_at(bytes: &[u8], at: usize) -> [u8; 16] {
    bytes[at..at + 16].try_into().expect("sixteen bytes")
}

/// What a disk says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) cluster: ClusterId,
    pub(crate) disk: DiskUuid,
    pub(crate) osd: OsdId,
    pub(crate) segment_bytes: u32,
    /// Grows with each opening: the newer of two intact copies counts.
    pub(crate) generation: u64,
}

/// Why a block is not a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SuperblockFault {
    Magic,
    Checksum,
    TooNew { needs: u8 },
}

impl Superblock {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0u8; HEADER_BLOCK_BYTES];
        block[..8].copy_from_slice(SUPERBLOCK_MAGIC);
        block[8] = VERSION;
        block[9] = VERSION; // oldest reader
        block[16..32].copy_from_slice(&self.cluster.0);
        block[32..48].copy_from_slice(&self.disk.0);
        block[48..52].copy_from_slice(&self.osd.0.to_le_bytes());
        block[52..56].copy_from_slice(&self.segment_bytes.to_le_bytes());
        block[56..64].copy_from_slice(&self.generation.to_le_bytes());
        let crc = crc32c(&block[..HEADER_BLOCK_BYTES - 4]);
        block[HEADER_BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        block
    }

    pub(crate) fn decode(block: &[u8; HEADER_BLOCK_BYTES]) -> Result<Superblock, SuperblockFault> {
        if &block[..8] != SUPERBLOCK_MAGIC {
            return Err(SuperblockFault::Magic);
        }
        if crc32c(&block[..HEADER_BLOCK_BYTES - 4]) != u32_at(block, HEADER_BLOCK_BYTES - 4) {
            return Err(SuperblockFault::Checksum);
        }
        if block[9] > VERSION {
            return Err(SuperblockFault::TooNew { needs: block[9] });
        }
        Ok(Superblock {
            cluster: ClusterId(id_at(block, 16)),
            disk: DiskUuid(id_at(block, 32)),
            osd: OsdId(u32_at(block, 48)),
            segment_bytes: u32_at(block, 52),
            generation: u64_at(block, 56),
        })
    }
}

/// The head of a segment in use. A slot that is used anew gets a larger number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) disk: DiskUuid,
    pub(crate) number: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0u8; HEADER_BLOCK_BYTES];
        block[..8].copy_from_slice(SEGMENT_MAGIC);
        block[8] = VERSION;
        block[9] = VERSION;
        block[16..32].copy_from_slice(&self.disk.0);
        block[32..40].copy_from_slice(&self.number.to_le_bytes());
        let crc = crc32c(&block[..60]);
        block[60..64].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// The header in the first 64 bytes of a slot; `None` when the slot holds no segment of this disk.
    pub(crate) fn decode(block: &[u8; 64], disk: DiskUuid) -> Option<SegmentHeader> {
        let intact = &block[..8] == SEGMENT_MAGIC && crc32c(&block[..60]) == u32_at(block, 60) && block[9] <= VERSION;
        (intact && id_at(block, 16) == disk.0).then(|| SegmentHeader { disk, number: u64_at(block, 32) })
    }
}

/// The head of one transaction's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) disk: DiskUuid,
    /// Number of the transaction, without gaps.
    pub(crate) sequence: u64,
    /// Segment that it lies in: a record read from elsewhere is none.
    pub(crate) segment: u64,
    /// Number of the commit that wrote it.
    pub(crate) group: u64,
    /// Its place in that commit, and how many records the commit has.
    pub(crate) group_index: u32,
    pub(crate) group_count: u32,
    /// Checksum of the header before it in the log.
    pub(crate) chain: u32,
    pub(crate) body_bytes: u32,
    pub(crate) body_crc: u32,
    pub(crate) payload_bytes: u32,
}

impl RecordHeader {
    /// The bytes, and their checksum: the next record's `chain`.
    pub(crate) fn encode(&self) -> ([u8; RECORD_HEADER_BYTES], u32) {
        let mut bytes = [0u8; RECORD_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        bytes[4] = VERSION;
        bytes[5] = VERSION;
        bytes[8..24].copy_from_slice(&self.disk.0);
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.segment.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.group.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.group_index.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.group_count.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.chain.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[68..72].copy_from_slice(&self.payload_bytes.to_le_bytes());
        let crc = crc32c(&bytes[..76]);
        bytes[76..80].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// An intact header of this disk, with its checksum.
    pub(crate) fn decode(bytes: &[u8; RECORD_HEADER_BYTES], disk: DiskUuid) -> Option<(RecordHeader, u32)> {
        let crc = u32_at(bytes, 76);
        let intact = u32_at(bytes, 0) == RECORD_MAGIC && bytes[5] <= VERSION && crc32c(&bytes[..76]) == crc;
        if !intact || id_at(bytes, 8) != disk.0 {
            return None;
        }
        let header = RecordHeader {
            disk,
            sequence: u64_at(bytes, 24),
            segment: u64_at(bytes, 32),
            group: u64_at(bytes, 40),
            group_index: u32_at(bytes, 48),
            group_count: u32_at(bytes, 52),
            chain: u32_at(bytes, 56),
            body_bytes: u32_at(bytes, 60),
            body_crc: u32_at(bytes, 64),
            payload_bytes: u32_at(bytes, 68),
        };
        Some((header, crc))
    }

    /// Bytes of the whole record. Records follow each other at multiples of 8.
    pub(crate) fn record_bytes(&self) -> u64 {
        record_bytes(u64::from(self.body_bytes), u64::from(self.payload_bytes))
    }
}

/// Bytes of a record with such a body and payload.
pub(crate) fn record_bytes(body: u64, payload: u64) -> u64 {
    (RECORD_HEADER_BYTES as u64 + body + payload).next_multiple_of(8)
}

const _: () = assert!(HEADER_BLOCK_BYTES.is_multiple_of(SECTOR_BYTES as usize), "records begin at a sector");
const _: () = assert!(RECORD_HEADER_BYTES.is_multiple_of(8), "bodies begin at a multiple of 8");
