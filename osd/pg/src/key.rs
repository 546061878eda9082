//! The key of an object in its placement group's collection.

use std::fmt;

use holdfast_map::object_hash;
use holdfast_types::ObjectName;

/// Bytes of the hash at the front of a key.
const HASH_BYTES: usize = 4;

/// The bit-reversed object hash, big-endian, then the name: key order is hash order.
///
/// Bit-reversed, because a placement group is chosen by the *low* bits of the hash: what a later split moves away is
/// then one contiguous range of keys, and backfill, which walks in key order, spreads over the whole group.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(Box<[u8]>);

impl ObjectKey {
    /// The key of an object.
    #[must_use]
    pub fn of(name: &ObjectName) -> ObjectKey {
        ObjectKey::with_hash(object_hash(name), name)
    }

    /// The key of an object whose hash is known.
    pub(crate) fn with_hash(hash: u32, name: &ObjectName) -> ObjectKey {
        let mut key = Vec::with_capacity(HASH_BYTES + name.as_bytes().len());
        key.extend_from_slice(&hash.reverse_bits().to_be_bytes());
        key.extend_from_slice(name.as_bytes());
        ObjectKey(key.into_boxed_slice())
    }

    /// Takes bytes that came from a store or a peer; `None` when they are not the key of any object.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<ObjectKey> {
        let (hash, name) = bytes.split_at_checked(HASH_BYTES)?;
        let key = ObjectKey::of(&ObjectName::new(name).ok()?);
        (key.0[..HASH_BYTES] == *hash).then_some(key)
    }

    /// The bytes, as a store keeps them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The object's name.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        ObjectName::new(&self.0[HASH_BYTES..]).expect("a key is made of a valid name only")
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectKey({})", self.0[HASH_BYTES..].escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_its_name_back_and_foreign_bytes_are_refused() {
        let name = ObjectName::new("a/b").expect("valid");
        let key = ObjectKey::of(&name);
        assert_eq!(key.name(), name);
        assert_eq!(ObjectKey::from_bytes(key.as_bytes()), Some(key.clone()));
        let mut wrong = key.as_bytes().to_vec();
        wrong[0] ^= 1;
        assert_eq!(ObjectKey::from_bytes(&wrong), None);
        assert_eq!(ObjectKey::from_bytes(b"abcd"), None);
        assert_eq!(ObjectKey::from_bytes(b"abc"), None);
    }
}
