//! The onode: an object's size, attributes and extents.
//!
//! An extent refers to bytes in a segment. Payload is never overwritten: an overwrite adds an extent and trims what it
//! covers by reference. Payload is checksummed in blocks, counted from its start; an extent keeps all blocks that its bytes
//! lie in, so that each byte read is checked, and `skip` says how far into the first of them it begins.
//!
//! Invariants: extents are sorted by `logical`, do not overlap, are not empty, and end at or before `size`.

use std::collections::BTreeMap;

use bytes::Bytes;
use minicbor::{Decoder, Encoder};

use crate::key::{ObjectKey, Position};

/// Bound checksums of an extent's blocks. Most extents of a fragmented object have one block: no allocation for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sums {
    One(u32),
    Many(Box<[u32]>),
}

impl Sums {
    pub(crate) fn collect(sums: impl ExactSizeIterator<Item = u32>) -> Sums {
        let mut sums = sums;
        match (sums.len(), sums.next()) {
            (1, Some(one)) => Sums::One(one),
            (_, first) => Sums::Many(first.into_iter().chain(sums).collect()),
        }
    }

    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            Sums::One(one) => std::slice::from_ref(one),
            Sums::Many(many) => many,
        }
    }
}

/// Bytes of an object that lie together on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First byte in the object.
    pub(crate) logical: u64,
    /// Bytes of the object.
    pub(crate) length: u32,
    pub(crate) segment: u32,
    /// Byte in the segment where the first kept block begins.
    pub(crate) position: u32,
    /// Bytes of that block before `logical`.
    pub(crate) skip: u32,
    /// Bytes of all kept blocks.
    pub(crate) stored: u32,
    /// The transaction that wrote the blocks; bound into their checksums.
    pub(crate) version: Position,
    pub(crate) block_log2: u8,
    pub(crate) sums: Sums,
}

impl Extent {
    pub(crate) fn end(&self) -> u64 {
        self.logical + u64::from(self.length)
    }

    /// Byte in the segment of the object's byte `offset`, which lies within this extent.
    pub(crate) fn position_of(&self, offset: u64) -> u32 {
        self.position + self.skip + (offset - self.logical) as u32
    }

    /// The object's byte at which the first kept block began when it was written.
    pub(crate) fn blocks_start(&self) -> u64 {
        self.logical.wrapping_sub(u64::from(self.skip))
    }

    /// The part of this extent in `from..to`, which lies within it and is not empty.
    pub(crate) fn slice(&self, from: u64, to: u64) -> Extent {
        assert!(self.logical <= from && from < to && to <= self.end(), "a slice lies within its extent");
        let begin = self.skip + (from - self.logical) as u32;
        let end = begin + (to - from) as u32;
        let first = (begin >> self.block_log2) as usize;
        let last = ((end - 1) >> self.block_log2) as usize;
        let first_byte = (first as u32) << self.block_log2;
        let last_byte = (((last as u64) + 1) << self.block_log2).min(u64::from(self.stored)) as u32;
        Extent {
            logical: from,
            length: end - begin,
            segment: self.segment,
            position: self.position + first_byte,
            skip: begin - first_byte,
            stored: last_byte - first_byte,
            version: self.version,
            block_log2: self.block_log2,
            sums: Sums::collect(self.sums.as_slice().get(first..=last).unwrap_or_default().iter().copied()),
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Onode {
    pub(crate) size: u64,
    /// The transaction that last changed bytes or attributes.
    pub(crate) changed_at: Position,
    /// False: there never was a row. Saves a removal the search for rows.
    pub(crate) has_rows: bool,
    pub(crate) attrs: BTreeMap<Vec<u8>, Bytes>,
    pub(crate) extents: Vec<Extent>,
}

/// What an extent costs beside its bytes when it is moved: its entry in the record of the move. Counted as live, so that
/// "live" is what cleaning can not free, also with many small objects.
const EXTENT_OVERHEAD_BYTES: u64 = 80;

/// Bytes that an extent of `o` counts as live in its segment.
pub(crate) fn charge(o: &ObjectKey, length: u32) -> u64 {
    u64::from(length) + EXTENT_OVERHEAD_BYTES + o.as_bytes().len() as u64
}

impl Onode {
    /// Memory that it takes, about.
    pub(crate) fn memory_bytes(&self) -> usize {
        let attrs: usize = self.attrs.iter().map(|(name, value)| name.len() + value.len() + 80).sum();
        let sums: usize = self.extents.iter().map(|extent| extent.sums.as_slice().len() * 4).sum();
        attrs + self.extents.len() * size_of::<Extent>() + sums
    }

    /// Indices of the extents that have bytes in `start..end`.
    pub(crate) fn overlapping(&self, start: u64, end: u64) -> std::ops::Range<usize> {
        let first = self.extents.partition_point(|extent| extent.end() <= start);
        let last = self.extents.partition_point(|extent| extent.logical < end);
        first..last.max(first)
    }

    /// Takes the bytes of `start..end` away and puts `new` there. `gone` and `kept` are told of the extents that vanish
    /// and of the remainders that come instead.
    pub(crate) fn replace(&mut self, start: u64, end: u64, new: Option<Extent>, mut note: impl FnMut(&Extent, bool)) {
        if start >= end {
            return;
        }
        let range = self.overlapping(start, end);
        let mut instead: Vec<Extent> = Vec::with_capacity(3);
        let mut right = None;
        for old in self.extents.get(range.clone()).unwrap_or_default() {
            note(old, false);
            if old.logical < start {
                instead.push(old.slice(old.logical, start));
            }
            if old.end() > end {
                right = Some(old.slice(end, old.end()));
            }
        }
        instead.extend(new);
        instead.extend(right);
        for extent in &instead {
            note(extent, true);
        }
        self.extents.splice(range, instead);
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut e = Encoder::new(Vec::with_capacity(64 + self.extents.len() * 40));
        // Writing to a Vec cannot fail.
        self.encode_into(&mut e).expect("a Vec takes all bytes");
        e.into_writer().into()
    }

    fn encode_into(&self, e: &mut Encoder<Vec<u8>>) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        e.map(5)?.u8(0)?.u64(self.size)?.u8(1)?.u64(self.changed_at.0)?.u8(2)?.bool(self.has_rows)?;
        e.u8(3)?.map(self.attrs.len() as u64)?;
        for (name, value) in &self.attrs {
            e.bytes(name)?.bytes(value)?;
        }
        e.u8(4)?.array(self.extents.len() as u64)?;
        for x in &self.extents {
            e.array(9)?.u64(x.logical)?.u32(x.length)?.u32(x.segment)?.u32(x.position)?.u32(x.skip)?;
            e.u32(x.stored)?.u64(x.version.0)?.u8(x.block_log2)?;
            match &x.sums {
                Sums::One(one) => e.bytes(&one.to_le_bytes())?,
                Sums::Many(many) => {
                    let bytes: Vec<u8> = many.iter().flat_map(|sum| sum.to_le_bytes()).collect();
                    e.bytes(&bytes)?
                }
            };
        }
        Ok(())
    }

    /// `Err`: what is malformed.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Onode, &'static str> {
        let mut onode = Onode::default();
        onode.decode_from(&mut Decoder::new(bytes)).map_err(|_| "not an onode of this version")?;
        let mut end = 0;
        for extent in &onode.extents {
            let blocks =
                u64::from(extent.stored).div_ceil(1u64.checked_shl(extent.block_log2.into()).unwrap_or(0).max(1));
            let fits = u64::from(extent.skip) + u64::from(extent.length) <= u64::from(extent.stored);
            if extent.length == 0 || extent.logical < end || extent.block_log2 > 30 || !fits {
                return Err("the extents are not in order");
            }
            if extent.sums.as_slice().len() as u64 != blocks
                || extent.logical.checked_add(extent.length.into()).is_none()
            {
                return Err("an extent has not one checksum for each block");
            }
            end = extent.end();
        }
        if end > onode.size { Err("an extent lies beyond the end") } else { Ok(onode) }
    }

    fn decode_from(&mut self, d: &mut Decoder<'_>) -> Result<(), minicbor::decode::Error> {
        let definite = |length: Option<u64>| length.ok_or_else(|| minicbor::decode::Error::message("indefinite"));
        for _ in 0..definite(d.map()?)? {
            match d.u8()? {
                0 => self.size = d.u64()?,
                1 => self.changed_at = Position(d.u64()?),
                2 => self.has_rows = d.bool()?,
                3 => {
                    for _ in 0..definite(d.map()?)? {
                        let name = d.bytes()?.to_vec();
                        self.attrs.insert(name, Bytes::copy_from_slice(d.bytes()?));
                    }
                }
                4 => {
                    let count = definite(d.array()?)?;
                    self.extents.reserve(count.min(4096) as usize);
                    for _ in 0..count {
                        let fields = definite(d.array()?)?;
                        let extent = Extent {
                            logical: d.u64()?,
                            length: d.u32()?,
                            segment: d.u32()?,
                            position: d.u32()?,
                            skip: d.u32()?,
                            stored: d.u32()?,
                            version: Position(d.u64()?),
                            block_log2: d.u8()?,
                            sums: Sums::collect(crate::checksum::words(d.bytes()?)),
                        };
                        for _ in 9..fields {
                            d.skip()?; // of a later version
                        }
                        self.extents.push(extent);
                    }
                }
                _ => d.skip()?,
            }
        }
        if d.position() == d.input().len() {
            return Ok(());
        }
        Err(minicbor::decode::Error::message("bytes after the onode"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn extent(logical: u64, length: u32, version: u64) -> Extent {
        let blocks = length.div_ceil(16);
        Extent {
            logical,
            length,
            segment: version as u32,
            position: 1000,
            skip: 0,
            stored: length,
            version: Position(version),
            block_log2: 4,
            sums: Sums::collect((0..blocks).map(|block| (version as u32) << 16 | block)),
        }
    }

    proptest! {
        /// Each byte of the object knows which byte of which write it is: the model is an array of (version, index).
        #[test]
        fn overwrites_and_holes_leave_each_byte_with_its_last_writer(
            writes in prop::collection::vec((0u64..300, 1u32..120, any::<bool>()), 1..40)
        ) {
            let mut onode = Onode { size: 1000, ..Onode::default() };
            let mut model = vec![None; 1000];
            let mut live = 0i64;
            for (index, (logical, length, hole)) in writes.into_iter().enumerate() {
                let new = extent(logical, length, index as u64 + 1);
                let end = new.end();
                onode.replace(logical, end, (!hole).then_some(new), |extent, is_new| {
                    live += if is_new { i64::from(extent.length) } else { -i64::from(extent.length) };
                });
                for at in logical..end {
                    model[at as usize] = (!hole).then_some((index as u64 + 1, at - logical));
                }
            }
            let mut found = vec![None; 1000];
            for x in &onode.extents {
                let first_block = (x.position - 1000) / 16;
                prop_assert_eq!(x.sums.as_slice()[0], (x.version.0 as u32) << 16 | first_block);
                prop_assert!(x.skip < 16 && x.skip + x.length <= x.stored);
                for at in x.logical..x.end() {
                    let written = u64::from(x.position - 1000 + x.skip) + (at - x.logical);
                    prop_assert!(found[at as usize].replace((x.version.0, written)).is_none());
                }
            }
            prop_assert_eq!(live as usize, model.iter().flatten().count());
            prop_assert_eq!(&found, &model);
            prop_assert_eq!(Onode::decode(&onode.encode()).unwrap(), onode);
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes: Vec<u8>) {
            let _ = Onode::decode(&bytes);
        }
    }
}
