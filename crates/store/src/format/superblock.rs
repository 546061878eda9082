//! The superblock: who this device is, and how it is cut into segments.
//!
//! Two copies; the newest valid one wins. A change writes the older copy and syncs, so one of them is always whole.

use holdfast_types::{ClusterId, DiskUuid, OsdId};

use super::{Fields, SEGMENTS_START, SUPERBLOCK_SPACING};
use crate::checksum::crc32c;
use crate::device::Device;
use crate::error::OpenError;
use crate::key::Position;

const MAGIC: [u8; 8] = *b"HOLDFAST";
/// Version 1: the first. Version 2: `quarantined`, which a program of version 1 would not heed; a superblock without it is
/// read by both.
const VERSION: u16 = 2;
const OLDEST_COMPATIBLE: u16 = 1;
const OLDEST_COMPATIBLE_QUARANTINED: u16 = 2;
/// Bytes of the encoded superblock, checksum included.
pub(crate) const SUPERBLOCK_BYTES: usize = 128;
const CHECKSUM_AT: usize = SUPERBLOCK_BYTES - 4;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The cluster that the device belongs to.
    pub cluster: ClusterId,
    /// The device.
    pub disk: DiskUuid,
    /// Its daemon.
    pub osd: OsdId,
    /// Bytes that the device writes whole; groups of records begin on a multiple.
    pub sector_bytes: u32,
    /// Bytes of each segment.
    pub segment_bytes: u32,
    /// How many segments there are.
    pub segment_count: u32,
    /// Counts the changes of the superblock; the copy with the greater one wins.
    pub generation: u64,
    /// All positions up to this one were durable when the superblock was written: replay that ends before it has found a
    /// bad log, not a torn tail.
    pub durable: Position,
    /// True when the store was closed properly at `durable`: nothing follows it.
    pub clean: bool,
    /// True when a write or a sync failed: what the device holds beyond `durable` is in doubt, and nothing is opened.
    pub quarantined: bool,
}

impl Superblock {
    /// The device byte where `segment` begins.
    pub fn segment_start(&self, segment: u32) -> u64 {
        SEGMENTS_START + u64::from(segment) * u64::from(self.segment_bytes)
    }

    /// Bytes of the device that are used at most.
    pub fn device_bytes(&self) -> u64 {
        self.segment_start(self.segment_count)
    }

    fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = Vec::with_capacity(SUPERBLOCK_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let oldest = if self.quarantined { OLDEST_COMPATIBLE_QUARANTINED } else { OLDEST_COMPATIBLE };
        bytes.extend_from_slice(&oldest.to_le_bytes());
        bytes.extend_from_slice(&(SUPERBLOCK_BYTES as u32).to_le_bytes());
        bytes.extend_from_slice(&self.cluster.0);
        bytes.extend_from_slice(&self.disk.0);
        bytes.extend_from_slice(&self.osd.0.to_le_bytes());
        bytes.extend_from_slice(&self.sector_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.segment_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.segment_count.to_le_bytes());
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.durable.0.to_le_bytes());
        bytes.push(u8::from(self.clean));
        bytes.push(u8::from(self.quarantined));
        bytes.resize(CHECKSUM_AT, 0);
        bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
        let mut encoded = [0; SUPERBLOCK_BYTES];
        encoded.copy_from_slice(&bytes);
        encoded
    }

    /// `None`: not a superblock. An error: one of a later version.
    fn decode(bytes: &[u8]) -> Result<Option<Superblock>, OpenError> {
        let Some((body, sum)) = bytes.split_at_checked(CHECKSUM_AT) else { return Ok(None) };
        let mut fields = Fields(bytes);
        if fields.take::<8>() != Some(MAGIC) || Fields(sum).u32() != Some(crc32c(body)) {
            return Ok(None);
        }
        let (Some(version), Some(oldest), Some(_length)) = (fields.u16(), fields.u16(), fields.u32()) else {
            return Ok(None);
        };
        if oldest > VERSION {
            return Err(OpenError::Version { version, supported: VERSION });
        }
        let decoded = (|| {
            Some(Superblock {
                cluster: ClusterId(fields.take()?),
                disk: DiskUuid(fields.take()?),
                osd: OsdId(fields.u32()?),
                sector_bytes: fields.u32()?,
                segment_bytes: fields.u32()?,
                segment_count: fields.u32()?,
                generation: fields.u64()?,
                durable: Position(fields.u64()?),
                clean: fields.take::<1>()? == [1],
                quarantined: fields.take::<1>()? == [1], // 0 in version 1
            })
        })();
        // The checksum held, so these are what was written; a zero here would still divide by zero later.
        Ok(decoded
            .filter(|s| s.sector_bytes.is_power_of_two() && s.segment_bytes >= s.sector_bytes && s.segment_count > 0))
    }

    /// Reads the newest valid copy. The flag says whether the other copy is as it should be, one generation older. If it
    /// is not, a newer copy than the one found may have been lost.
    ///
    /// # Errors
    /// [`OpenError`] when there is none, it is of a later version, or the device fails.
    pub fn read(device: &dyn Device) -> Result<(Superblock, bool), OpenError> {
        let mut copies = [None, None];
        let mut failure = None;
        for (copy, offset) in copies.iter_mut().zip([0, SUPERBLOCK_SPACING]) {
            let mut bytes = [0; SUPERBLOCK_BYTES];
            match device.read_at(offset, &mut bytes) {
                Ok(()) => *copy = Superblock::decode(&bytes)?,
                Err(error) => failure = Some(error), // the other copy may do
            }
        }
        let whole = match &copies {
            [Some(one), Some(other)] => one.generation.abs_diff(other.generation) == 1,
            _ => false,
        };
        match copies.into_iter().flatten().max_by_key(|superblock| superblock.generation) {
            Some(superblock) => Ok((superblock, whole)),
            None => Err(failure.map_or(OpenError::NoSuperblock, OpenError::Device)),
        }
    }

    /// The generation to write next, to the place of the copy that is not this one. Greater than any that can have been
    /// used: when the other copy is not as it should be, the newest one may have been lost, and records may have its
    /// generation.
    pub(crate) fn next_generation(&self, both_copies: bool) -> u64 {
        self.generation + if both_copies { 1 } else { 3 }
    }

    /// Writes the copy that belongs to this generation. Durable after the next sync.
    pub(crate) fn write(&self, device: &dyn Device) -> std::io::Result<()> {
        device.write_at((self.generation % 2) * SUPERBLOCK_SPACING, &[&self.encode()])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::device::MemDevice;

    fn superblock(generation: u64) -> Superblock {
        Superblock {
            cluster: ClusterId([1; 16]),
            disk: DiskUuid([2; 16]),
            osd: OsdId(3),
            sector_bytes: 4096,
            segment_bytes: 1 << 20,
            segment_count: 9,
            generation,
            durable: Position(77),
            clean: true,
            quarantined: false,
        }
    }

    #[test]
    fn a_superblock_of_version_1_is_read_and_a_quarantined_one_is_none() {
        let device = MemDevice::new(1 << 20);
        let mut bytes = superblock(4).encode();
        assert_eq!(&bytes[8..12], &[2, 0, 1, 0], "version 2, which version 1 can read");
        bytes[8] = 1;
        let sum = crc32c(&bytes[..CHECKSUM_AT]).to_le_bytes();
        bytes[CHECKSUM_AT..].copy_from_slice(&sum);
        device.write_at(0, &[&bytes]).unwrap();
        assert_eq!(Superblock::read(&device).unwrap().0, superblock(4));
        let quarantined = Superblock { quarantined: true, ..superblock(4) };
        assert_eq!(&quarantined.encode()[8..12], &[2, 0, 2, 0], "which version 1 refuses");
        quarantined.write(&device).unwrap();
        assert_eq!(Superblock::read(&device).unwrap().0, quarantined);
    }

    #[test]
    fn the_newest_whole_copy_wins_whichever_bit_is_flipped() {
        for bit in 0..SUPERBLOCK_BYTES * 8 {
            let device = MemDevice::new(1 << 20);
            superblock(4).write(&device).unwrap();
            superblock(5).write(&device).unwrap();
            device.flip(SUPERBLOCK_SPACING + bit as u64 / 8, (bit % 8) as u8);
            let (found, whole) = Superblock::read(&device).unwrap();
            assert_eq!((found, whole), (superblock(4), false), "bit {bit}");
        }
    }

    #[test]
    fn a_blank_device_has_no_superblock() {
        assert!(matches!(Superblock::read(&MemDevice::new(1 << 20)), Err(OpenError::NoSuperblock)));
    }
}
