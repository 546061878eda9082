//! CRC-32C of payload blocks, bound to where they belong.
//!
//! A checksum that only covers bytes does not notice a block that is whole but not the one asked for (a misdirected or a
//! lost write). So what the onode keeps is `crc32c(bytes) ^ crc32c(object tag, offset, version)`: the same bytes at
//! another place or of another time do not match, with the same odds of 1 in 2^32 as any other error.

use crate::key::{CollectionId, ObjectKey, Position};

/// CRC-32C (Castagnoli).
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// What stands for one object in the binding of its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ObjectTag(u64);

impl ObjectTag {
    pub(crate) fn new(c: CollectionId, o: &ObjectKey) -> ObjectTag {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        digest.update(&c.pool.to_le_bytes());
        digest.update(&c.seed.to_le_bytes());
        digest.update(o.as_bytes());
        ObjectTag(digest.finalize())
    }

    /// Turns a checksum of a block's bytes into the bound one, and back.
    pub(crate) fn bind(self, crc: u32, offset: u64, version: Position) -> u32 {
        let mut binding = [0; 24];
        for (place, word) in binding.chunks_exact_mut(8).zip([self.0, offset, version.0]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        crc ^ crc32c(&binding)
    }
}

/// The checksums of the blocks of `payload`, unbound, as little-endian words.
pub(crate) fn block_sums(payload: &[u8], block_bytes: usize) -> Vec<u8> {
    let mut sums = Vec::with_capacity(payload.len().div_ceil(block_bytes.max(1)) * 4);
    for block in payload.chunks(block_bytes.max(1)) {
        sums.extend_from_slice(&crc32c(block).to_le_bytes());
    }
    sums
}

/// The words of what [`block_sums`] made; a remainder of less than a word is dropped.
pub(crate) fn words(sums: &[u8]) -> impl ExactSizeIterator<Item = u32> + '_ {
    sums.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn crc32c_is_the_standard_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283); // check value of CRC-32/ISCSI in the catalogue of reveng.sourceforge.io
    }

    #[test]
    fn the_same_bytes_elsewhere_or_of_another_time_do_not_match() {
        let c = CollectionId { pool: 1, seed: 2 };
        let tag = ObjectTag::new(c, &ObjectKey::new(b"a".as_slice()).unwrap());
        let other = ObjectTag::new(c, &ObjectKey::new(b"b".as_slice()).unwrap());
        let bound = tag.bind(7, 4096, Position(3));
        assert_eq!(tag.bind(bound, 4096, Position(3)), 7);
        assert_ne!(bound, tag.bind(7, 8192, Position(3)));
        assert_ne!(bound, tag.bind(7, 4096, Position(4)));
        assert_ne!(bound, other.bind(7, 4096, Position(3)));
    }
}
