//! Keys of the index. The first byte says what an entry is; collections are big-endian, so that theirs lie together.

use crate::txn::{CollectionId, ObjectKey};

/// The log position up to which the index is complete: [`crate::record::Position`].
pub(crate) const POSITION: &[u8] = &[0x00, b'p'];

const SEGMENT: u8 = 0x01;
const COLLECTION: u8 = 0x02;
const META: u8 = 0x03;
const ONODE: u8 = 0x04;
const ROW: u8 = 0x05;

fn of_collection(kind: u8, c: CollectionId, extra: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(13 + extra);
    key.push(kind);
    key.extend_from_slice(&c.pool.to_be_bytes());
    key.extend_from_slice(&c.seed.to_be_bytes());
    key
}

/// The first key after all that begin with `prefix`; `None` when there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// A segment's live bytes.
pub(crate) fn segment(number: u64) -> Vec<u8> {
    let mut key = vec![SEGMENT];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// All segments' rows.
pub(crate) fn segments() -> [u8; 1] {
    [SEGMENT]
}

/// The number in a segment's key.
pub(crate) fn segment_number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.strip_prefix(&[SEGMENT])?.try_into().ok()?))
}

/// A collection exists.
pub(crate) fn collection(c: CollectionId) -> Vec<u8> {
    of_collection(COLLECTION, c, 0)
}

/// All collections.
pub(crate) fn collections() -> [u8; 1] {
    [COLLECTION]
}

/// The id in a collection's key.
pub(crate) fn collection_id(key: &[u8]) -> Option<CollectionId> {
    let rest = key.strip_prefix(&[COLLECTION])?;
    let (pool, seed) = rest.split_at_checked(8)?;
    Some(CollectionId {
        pool: u64::from_be_bytes(pool.try_into().ok()?),
        seed: u32::from_be_bytes(seed.try_into().ok()?),
    })
}

/// A row of the collection itself.
pub(crate) fn meta(c: CollectionId, name: &[u8]) -> Vec<u8> {
    let mut key = of_collection(META, c, name.len());
    key.extend_from_slice(name);
    key
}

/// An object.
pub(crate) fn onode(c: CollectionId, o: &ObjectKey) -> Vec<u8> {
    onode_from(c, o.as_bytes())
}

/// Where objects from these key bytes on begin.
pub(crate) fn onode_from(c: CollectionId, bytes: &[u8]) -> Vec<u8> {
    let mut key = of_collection(ONODE, c, bytes.len());
    key.extend_from_slice(bytes);
    key
}

/// All rows of an object: its key's length stands before it, so that no object's rows lie among another's.
pub(crate) fn rows(c: CollectionId, o: &ObjectKey) -> Vec<u8> {
    let mut key = of_collection(ROW, c, 2 + o.as_bytes().len() + 32);
    let length = u16::try_from(o.as_bytes().len()).expect("keys are checked at submission");
    key.extend_from_slice(&length.to_be_bytes());
    key.extend_from_slice(o.as_bytes());
    key
}

/// One row of an object.
pub(crate) fn row(c: CollectionId, o: &ObjectKey, name: &[u8]) -> Vec<u8> {
    let mut key = rows(c, o);
    key.extend_from_slice(name);
    key
}

/// The prefixes of everything in a collection, its own entry last.
pub(crate) fn all_of(c: CollectionId) -> [Vec<u8>; 4] {
    [META, ROW, ONODE, COLLECTION].map(|kind| of_collection(kind, c, 0))
}

/// Bytes before the object's key in an onode's key, and before the name in a collection row's key.
pub(crate) const COLLECTION_PREFIX_BYTES: usize = 13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_object_never_lie_among_those_of_another() {
        let c = CollectionId { pool: 1, seed: 2 };
        let (short, long) = (ObjectKey::from(&b"ab"[..]), ObjectKey::from(&b"abc"[..]));
        let prefix = rows(c, &short);
        assert!(row(c, &short, b"cx").starts_with(&prefix));
        assert!(!row(c, &long, b"x").starts_with(&prefix));
        assert_eq!(collection_id(&collection(c)), Some(c));
        assert_eq!(after_prefix(&[1, 0xff]), Some(vec![2]));
        assert_eq!(after_prefix(&[0xff]), None);
    }
}
