//! The envelope of a full map: magic, version, oldest reader, length, checksum; then canonical CBOR.

use holdfast_types::PoolId;
use minicbor::{Decode, Encode};

use crate::cluster::{BLOCKLIST_MAX, ClusterMap, OSD_ID_MAX, PG_TEMP_MEMBERS_MAX, SERVICES_MAX, UPMAP_ITEMS_MAX};

/// `HFMP`.
const MAGIC: [u8; 4] = *b"HFMP";
/// What this build writes.
const VERSION: u8 = 1;
/// The oldest version whose reader understands what this build writes.
const COMPATIBLE: u8 = 1;
/// magic, version, compatible, two zero bytes, u32 length, u32 crc32c of the body.
const HEADER_BYTES: usize = 16;
/// A map of 10,000 OSDs is about 2 MiB; this bounds what a hostile length can make us read.
pub(crate) const BODY_BYTES_MAX: usize = 64 << 20;

/// Bytes that are not a map this build can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapDecodeError {
    /// Too short, or of another kind.
    #[error("not an encoded cluster map")]
    NotAMap,
    /// Written by a newer release that says older ones cannot read it.
    #[error("the map needs a reader of version {compatible}, this one is version {VERSION}")]
    TooNew {
        /// The oldest version that can read it.
        compatible: u8,
    },
    /// Damaged.
    #[error("map checksum mismatch: stored {stored:#010x}, computed {computed:#010x}")]
    Corrupt {
        /// In the header.
        stored: u32,
        /// Of the body.
        computed: u32,
    },
    /// The checksum is right but the content is not a valid map.
    #[error("malformed map: {detail}")]
    Malformed {
        /// What the decoder said.
        detail: String,
    },
}

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(crc).expect("a CRC-32 has 32 bits")
}

pub(crate) fn seal<T: Encode<()>>(magic: [u8; 4], value: &T) -> Vec<u8> {
    let body = minicbor::to_vec(value).expect("encoding to memory cannot fail");
    let length = u32::try_from(body.len()).expect("a map is far below 4 GiB");
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend_from_slice(&magic);
    out.extend_from_slice(&[VERSION, COMPATIBLE, 0, 0]);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&crc32c(&body).to_le_bytes());
    out.extend_from_slice(&body);
    out
}

pub(crate) fn unseal<'b, T: Decode<'b, ()>>(magic: [u8; 4], bytes: &'b [u8]) -> Result<T, MapDecodeError> {
    let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(MapDecodeError::NotAMap)?;
    if header[..4] != magic {
        return Err(MapDecodeError::NotAMap);
    }
    if header[5] > VERSION {
        return Err(MapDecodeError::TooNew { compatible: header[5] });
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if usize::try_from(word(8)).ok() != Some(body.len()) || body.len() > BODY_BYTES_MAX {
        return Err(MapDecodeError::NotAMap);
    }
    let (stored, computed) = (word(12), crc32c(body));
    if stored != computed {
        return Err(MapDecodeError::Corrupt { stored, computed });
    }
    minicbor::decode(body).map_err(|error| MapDecodeError::Malformed { detail: error.to_string() })
}

impl ClusterMap {
    /// The canonical bytes of the map: equal maps give equal bytes.
    #[must_use]
    pub fn encode_full(&self) -> Vec<u8> {
        seal(MAGIC, self)
    }

    /// Reads what [`ClusterMap::encode_full`] wrote, here or in another release.
    ///
    /// # Errors
    /// [`MapDecodeError`]; nothing is trusted before its checksum matched, and a valid checksum does not excuse an
    /// invalid map.
    pub fn decode_full(bytes: &[u8]) -> Result<ClusterMap, MapDecodeError> {
        let map: ClusterMap = unseal(MAGIC, bytes)?;
        map.validate().map_err(|detail| MapDecodeError::Malformed { detail })?;
        Ok(map)
    }

    /// CRC32C of the canonical bytes: holders of the same epoch compare it.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        crc32c(&minicbor::to_vec(self).expect("encoding to memory cannot fail"))
    }

    /// What must hold of every map, whoever made it.
    pub(crate) fn validate(&self) -> Result<(), String> {
        if let Some((osd, _)) = self.osds.last_key_value().filter(|(osd, _)| osd.0 > OSD_ID_MAX) {
            return Err(format!("{osd} is beyond the highest id {OSD_ID_MAX}"));
        }
        if let Some((pg, acting)) = self.pg_temp.iter().find(|(_, acting)| acting.len() > PG_TEMP_MEMBERS_MAX) {
            return Err(format!("{pg} has {} temporary members", acting.len()));
        }
        if let Some((pg, items)) = self.upmap.iter().find(|(_, items)| items.len() > UPMAP_ITEMS_MAX) {
            return Err(format!("{pg} has {} exchanged members", items.len()));
        }
        let fits = |(pool, placed): &(&PoolId, &u32)| {
            self.pools.get(*pool).is_some_and(|info| (1..info.pg_num).contains(*placed))
        };
        if let Some((pool, placed)) = self.placed_as.iter().find(|entry| !fits(entry)) {
            return Err(format!("pool {pool} is placed as if it had {placed} placement groups"));
        }
        if !self.ratios.is_valid() {
            return Err(format!("the levels of fullness do not rise: {:?}", self.ratios));
        }
        if self.blocklist.len() > BLOCKLIST_MAX || self.services.len() > SERVICES_MAX {
            let (fenced, services) = (self.blocklist.len(), self.services.len());
            return Err(format!("{fenced} fenced sessions and {services} services"));
        }
        for (id, pool) in &self.pools {
            if pool.pg_num == 0 || pool.pg_num > crate::PG_NUM_MAX {
                return Err(format!("pool {id} has {} placement groups", pool.pg_num));
            }
            if pool.size() == 0 || pool.size() > 16 || pool.min_size() == 0 || pool.min_size() > pool.size() {
                return Err(format!("pool {id} has size {} and min_size {}", pool.size(), pool.min_size()));
            }
            if *id >= self.next_pool {
                return Err(format!("pool {id} is not below the next id {}", self.next_pool));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Increment, OsdInfo, SpaceLevel, UpmapItem};
    use holdfast_types::{ClusterId, DiskUuid, Epoch, Incarnation, OsdId, PgId, PoolId};

    #[test]
    fn fields_of_this_release_cost_an_older_reader_nothing_until_they_are_used() {
        let plain = ClusterMap::empty(ClusterId([1; 16]));
        let body = minicbor::to_vec(&plain).expect("encodes");
        let keys = minicbor::Decoder::new(&body).map().expect("a map").expect("of known length");
        assert_eq!(keys, 12, "as before upmap, space, ratios, splits and scrubs");
        let mut used = plain.clone();
        used.epoch = Epoch(1);
        used.upmap.insert(PgId { pool: PoolId(1), seed: 0 }, vec![UpmapItem { from: OsdId(1), to: OsdId(2) }]);
        used.space.insert(OsdId(1), SpaceLevel::BackfillFull);
        used.ratios.near_full = 800;
        assert_eq!(ClusterMap::decode_full(&used.encode_full()).as_ref(), Ok(&used));
        let increment = Increment::decode(&Increment::between(&plain, &used).encode()).expect("decodes");
        assert_eq!(plain.apply(&increment).as_ref(), Ok(&used));
        let mut back = plain;
        back.epoch = Epoch(2);
        let increment = Increment::decode(&Increment::between(&used, &back).encode()).expect("decodes");
        assert_eq!(used.apply(&increment).as_ref(), Ok(&back));
    }

    #[test]
    fn a_map_that_asks_for_too_much_is_refused_however_it_comes() {
        let good = ClusterMap::empty(ClusterId([1; 16]));
        assert_eq!(ClusterMap::decode_full(&good.encode_full()).as_ref(), Ok(&good));
        let mut bad = good.clone();
        bad.epoch = Epoch(1);
        let info = OsdInfo {
            disk: DiskUuid([1; 16]),
            incarnation: Incarnation(1),
            address: String::new(),
            up: true,
            in_cluster: true,
            reweight: 0,
            up_from: Epoch(1),
            up_thru: Epoch(1),
            down_at: Epoch(0),
            dead_epoch: Epoch(0),
            formatted_at: Epoch(1),
        };
        // A table of weights up to this id would be 16 GiB.
        bad.osds.insert(OsdId(u32::MAX), info);
        let decoded = ClusterMap::decode_full(&bad.encode_full());
        assert!(matches!(decoded, Err(MapDecodeError::Malformed { .. })), "{decoded:?}");
        let applied = good.apply(&Increment::between(&good, &bad));
        assert!(matches!(applied, Err(crate::ApplyError::Invalid { .. })), "{applied:?}");
    }
}
