//! What the index holds of an object: size, attributes, and where its bytes are.

use std::collections::BTreeMap;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::layout::{BLOCK_BYTES, crc32c};
use crate::txn::{CollectionId, ObjectKey};

/// First byte of an encoded onode.
const VERSION: u8 = 1;

/// A stretch of payload as it was written: its place on the device and a checksum for each block. Never changed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Run {
    /// Segment.
    #[n(0)]
    pub(crate) segment: u64,
    /// Byte in the segment.
    #[n(1)]
    pub(crate) at: u32,
    /// Bytes.
    #[n(2)]
    pub(crate) length: u32,
    /// Byte of the object that it was written to.
    #[n(3)]
    pub(crate) logical: u64,
    /// The transaction that wrote it; part of what the checksums are bound to.
    #[n(4)]
    pub(crate) sequence: u64,
    /// One for each [`BLOCK_BYTES`], the last one for what is left.
    #[n(5)]
    pub(crate) checksums: Vec<u32>,
}

/// Part of an object, and the run that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Extent {
    /// Byte of the object.
    #[n(0)]
    pub(crate) offset: u64,
    /// Bytes; the run covers them all.
    #[n(1)]
    pub(crate) length: u32,
    /// Where they are.
    #[n(2)]
    pub(crate) run: Run,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Onode {
    #[n(0)]
    pub(crate) size: u64,
    #[n(1)]
    pub(crate) attributes: BTreeMap<ByteVec, ByteVec>,
    /// Ordered by offset, without overlap. What no extent covers reads as zeros.
    #[n(2)]
    pub(crate) extents: Vec<Extent>,
}

/// What `checksum` is mixed with, so that the right bytes in the wrong place do not pass.
pub(crate) fn bind(c: CollectionId, o: &ObjectKey, offset: u64, sequence: u64) -> u32 {
    let mut bytes = Vec::with_capacity(28 + o.as_bytes().len());
    bytes.extend_from_slice(&c.pool.to_le_bytes());
    bytes.extend_from_slice(&c.seed.to_le_bytes());
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(o.as_bytes());
    crc32c(&bytes)
}

/// Checksums of the blocks of `data`, not bound yet: the costly part, done before the transaction has its number.
pub(crate) fn checksums(data: &[u8]) -> Vec<u32> {
    data.chunks(BLOCK_BYTES as usize).map(crc32c).collect()
}

/// Binds the checksums of a run to its place.
pub(crate) fn bind_all(checksums: &mut [u32], c: CollectionId, o: &ObjectKey, offset: u64, sequence: u64) {
    // One binding for the run; the block's number is mixed in, so that blocks of a run do not pass for each other.
    let bound = bind(c, o, offset, sequence);
    for (block, checksum) in checksums.iter_mut().enumerate() {
        *checksum ^= bound.wrapping_add(u32::try_from(block).unwrap_or(u32::MAX).wrapping_mul(0x9e37_79b9));
    }
}

impl Onode {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        minicbor::encode(self, &mut bytes).expect("encoding to memory cannot fail");
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Onode, String> {
        match bytes.split_first() {
            Some((&VERSION, body)) => minicbor::decode(body).map_err(|error| error.to_string()),
            Some((version, _)) => Err(format!("onode version {version}")),
            None => Err("an empty onode".to_owned()),
        }
    }

    /// Takes `start..end` out of the extents; `freed` hears of each segment's loss in bytes.
    pub(crate) fn punch(&mut self, start: u64, end: u64, freed: &mut impl FnMut(u64, u64)) {
        if start >= end {
            return;
        }
        let mut kept = Vec::with_capacity(self.extents.len() + 1);
        for extent in self.extents.drain(..) {
            let (first, last) = (extent.offset, extent.offset + u64::from(extent.length));
            if last <= start || first >= end {
                kept.push(extent);
                continue;
            }
            freed(extent.run.segment, last.min(end) - first.max(start));
            let part = |from: u64, to: u64| Extent {
                offset: from,
                length: u32::try_from(to - from).expect("a part of an extent is no longer than it"),
                run: extent.run.clone(),
            };
            if first < start {
                kept.push(part(first, start));
            }
            if last > end {
                kept.push(part(end, last));
            }
        }
        self.extents = kept;
    }

    /// Puts an extent where [`Onode::punch`] has made room.
    pub(crate) fn insert(&mut self, extent: Extent) {
        let at = self.extents.partition_point(|other| other.offset < extent.offset);
        self.extents.insert(at, extent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: u32, segment: u64) -> Extent {
        let run = Run { segment, at: 0, length, logical: offset, sequence: 1, checksums: vec![0] };
        Extent { offset, length, run }
    }

    #[test]
    fn punching_keeps_what_lies_outside_and_counts_what_goes() {
        let mut onode =
            Onode { extents: vec![extent(0, 10, 1), extent(10, 10, 2), extent(30, 5, 3)], ..Onode::default() };
        let mut freed = Vec::new();
        onode.punch(5, 32, &mut |segment, bytes| freed.push((segment, bytes)));
        assert_eq!(freed, [(1, 5), (2, 10), (3, 2)]);
        let left: Vec<(u64, u32)> = onode.extents.iter().map(|extent| (extent.offset, extent.length)).collect();
        assert_eq!(left, [(0, 5), (32, 3)]);
        let mut split = Onode { extents: vec![extent(0, 10, 1)], ..Onode::default() };
        split.punch(4, 6, &mut |_, bytes| assert_eq!(bytes, 2));
        let left: Vec<(u64, u32)> = split.extents.iter().map(|extent| (extent.offset, extent.length)).collect();
        assert_eq!(left, [(0, 4), (6, 4)]);
    }

    #[test]
    fn an_onode_survives_a_round_trip_and_other_versions_are_named() {
        let onode = Onode { size: 10, extents: vec![extent(0, 10, 1)], ..Onode::default() };
        let mut bytes = onode.encode();
        assert_eq!(Onode::decode(&bytes), Ok(onode));
        bytes[0] = 9;
        assert_eq!(Onode::decode(&bytes), Err("onode version 9".to_owned()));
        assert!(Onode::decode(&[]).is_err());
    }
}
