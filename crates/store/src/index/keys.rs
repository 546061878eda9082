//! Keys of the index. `docs/formats/store-index.md` has the table.
//!
//! One byte of table, then big-endian numbers and raw bytes, so that the order of keys is the order of listings. In the
//! table of rows the object key is followed by a row key and must therefore end itself: 0x00 is written as 0x00 0xff, and
//! 0x00 0x01 ends it; no escaped key is a prefix of another.

use bytes::{BufMut, Bytes, BytesMut};

use crate::key::{CollectionId, ObjectKey};

/// Where replay starts: one row.
pub(crate) const TABLE_LOG: u8 = 0x01;
/// Segments: number → sequence, live bytes.
pub(crate) const TABLE_SEGMENT: u8 = 0x02;
/// Collections that exist.
pub(crate) const TABLE_COLLECTION: u8 = 0x03;
/// Onodes: collection, object.
pub(crate) const TABLE_ONODE: u8 = 0x04;
/// Rows: collection, object, row key.
pub(crate) const TABLE_ROW: u8 = 0x05;
/// Metadata: collection, key.
pub(crate) const TABLE_META: u8 = 0x06;

const COLLECTION_BYTES: usize = 12;

fn table(table: u8, c: CollectionId, more: usize) -> BytesMut {
    let mut key = BytesMut::with_capacity(1 + COLLECTION_BYTES + more);
    key.put_u8(table);
    key.put_u64(c.pool);
    key.put_u32(c.seed);
    key
}

/// The row that says where replay starts.
pub(crate) fn log() -> Bytes {
    Bytes::from_static(&[TABLE_LOG])
}

pub(crate) fn segment(number: u32) -> Bytes {
    let mut key = BytesMut::with_capacity(5);
    key.put_u8(TABLE_SEGMENT);
    key.put_u32(number);
    key.freeze()
}

/// The number in a key of the table of segments.
pub(crate) fn parse_segment(key: &[u8]) -> Option<u32> {
    let (first, rest) = key.split_first()?;
    (*first == TABLE_SEGMENT).then(|| rest.try_into().ok().map(u32::from_be_bytes))?
}

pub(crate) fn collection(c: CollectionId) -> Bytes {
    table(TABLE_COLLECTION, c, 0).freeze()
}

/// The collection in a key of the table of collections.
pub(crate) fn parse_collection(key: &[u8]) -> Option<CollectionId> {
    let rest = key.get(1..1 + COLLECTION_BYTES)?;
    let (pool, seed) = rest.split_at_checked(8)?;
    Some(CollectionId {
        pool: u64::from_be_bytes(pool.try_into().ok()?),
        seed: u32::from_be_bytes(seed.try_into().ok()?),
    })
}

pub(crate) fn onode(c: CollectionId, o: &ObjectKey) -> Bytes {
    let mut key = table(TABLE_ONODE, c, o.as_bytes().len());
    key.put_slice(o.as_bytes());
    key.freeze()
}

/// No smaller than the keys of all onodes of objects before `object`, no larger than all others.
pub(crate) fn onode_bound(c: CollectionId, object: &[u8]) -> Bytes {
    let mut key = table(TABLE_ONODE, c, object.len());
    key.put_slice(object);
    key.freeze()
}

/// As [`onode_bound`], for rows.
pub(crate) fn row_bound(c: CollectionId, object: &[u8]) -> Bytes {
    let mut key = table(TABLE_ROW, c, object.len() + 8);
    put_escaped(&mut key, object);
    key.freeze()
}

fn put_escaped(key: &mut BytesMut, object: &[u8]) {
    for byte in object {
        key.put_u8(*byte);
        if *byte == 0 {
            key.put_u8(0xff);
        }
    }
}

/// The collection and object in a key of the table of onodes.
pub(crate) fn parse_onode(key: &[u8]) -> Option<(CollectionId, ObjectKey)> {
    let c = parse_collection(key)?;
    let object = key.get(1 + COLLECTION_BYTES..)?;
    Some((c, ObjectKey::new(Bytes::copy_from_slice(object)).ok()?))
}

/// What the keys of all rows of an object begin with.
pub(crate) fn row_prefix(c: CollectionId, o: &ObjectKey) -> BytesMut {
    let object = o.as_bytes();
    let mut key = table(TABLE_ROW, c, object.len() + 64);
    put_escaped(&mut key, object);
    key.put_slice(&[0x00, 0x01]);
    key
}

pub(crate) fn row(c: CollectionId, o: &ObjectKey, row: &[u8]) -> Bytes {
    let mut key = row_prefix(c, o);
    key.put_slice(row);
    key.freeze()
}

pub(crate) fn meta(c: CollectionId, meta: &[u8]) -> Bytes {
    let mut key = table(TABLE_META, c, meta.len());
    key.put_slice(meta);
    key.freeze()
}

/// What all keys of a collection in one table begin with.
pub(crate) fn table_prefix(table_byte: u8, c: CollectionId) -> Bytes {
    table(table_byte, c, 0).freeze()
}

/// The smallest key that is greater than all keys with this prefix. All prefixes begin with a table byte < 0xff.
pub(crate) fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = BytesMut::from(prefix);
    while let Some(last) = end.last_mut() {
        if *last < 0xff {
            *last += 1;
            break;
        }
        end.truncate(end.len() - 1);
    }
    end.freeze()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = ObjectKey> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 1..8)
            .prop_map(|bytes| ObjectKey::new(bytes).unwrap())
    }

    proptest! {
        #[test]
        fn the_order_of_keys_is_the_order_of_objects_and_rows(a in key(), b in key(), ra: Vec<u8>, rb: Vec<u8>) {
            let c = CollectionId { pool: 3, seed: 9 };
            prop_assert_eq!(onode(c, &a).cmp(&onode(c, &b)), a.cmp(&b));
            prop_assert_eq!(row(c, &a, &ra).cmp(&row(c, &b, &rb)), (&a, &ra).cmp(&(&b, &rb)));
            prop_assert_eq!(parse_onode(&onode(c, &a)), Some((c, a)));
        }

        #[test]
        fn a_prefix_ends_after_its_keys_and_before_all_others(pool: u64, seed: u32, tail: Vec<u8>) {
            let c = CollectionId { pool, seed };
            let prefix = table_prefix(TABLE_META, c);
            let end = prefix_end(&prefix);
            prop_assert!(meta(c, &tail) < end);
            if let Some(next) = seed.checked_add(1) {
                let other = meta(CollectionId { pool, seed: next }, &tail);
                prop_assert!(other >= end);
            }
        }
    }
}
