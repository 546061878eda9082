//! Names of things in a store: collections, objects, log positions.
//!
//! The store knows nothing of placement groups. A [`CollectionId`] is an opaque pair of numbers, an [`ObjectKey`] opaque
//! ordered bytes; the caller chooses both so that their order is the order in which it wants to list.

use std::fmt;

use bytes::Bytes;
use minicbor::{Decode, Encode};

/// Longest object key. Names of users are ≤ 512 bytes elsewhere; this leaves room for a hash, a snapshot id and a name space.
pub const OBJECT_KEY_BYTES_MAX: usize = 600;

/// A set of objects and metadata rows that is listed and removed as one. What it stands for is its owner's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(array)]
pub struct CollectionId {
    /// Orders first.
    #[n(0)]
    pub pool: u64,
    /// Orders second.
    #[n(1)]
    pub seed: u32,
}

impl fmt::Display for CollectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.pool, self.seed)
    }
}

/// An object's key within its collection: 1 to [`OBJECT_KEY_BYTES_MAX`] bytes, ordered as bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(Bytes);

/// Bytes that cannot be an object key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an object key has 1 to {OBJECT_KEY_BYTES_MAX} bytes, not {bytes}")]
pub struct InvalidObjectKey {
    /// The length given.
    pub bytes: usize,
}

impl ObjectKey {
    /// Takes `bytes` as a key.
    ///
    /// # Errors
    /// [`InvalidObjectKey`] when empty or longer than [`OBJECT_KEY_BYTES_MAX`].
    pub fn new(bytes: impl Into<Bytes>) -> Result<ObjectKey, InvalidObjectKey> {
        let bytes = bytes.into();
        if bytes.is_empty() || bytes.len() > OBJECT_KEY_BYTES_MAX {
            return Err(InvalidObjectKey { bytes: bytes.len() });
        }
        Ok(ObjectKey(bytes))
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectKey({self})")
    }
}

/// The number of a record in the log: 1 for the first, one more for each. 0 is before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Position(#[n(0)] pub u64);

impl Position {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Position {
        Position(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What [`submit`](crate::Engine::submit) and [`commit`](crate::Engine::commit) answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Of `submit`: where this transaction is in the log. Of `commit`: all positions up to this one are durable.
    pub position: Position,
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Bytes from offset 0 to the end, holes included.
    pub size: u64,
    /// The transaction that last changed the object's bytes or attributes.
    pub changed_at: Position,
    /// Pieces in which the bytes lie on the device.
    pub extent_count: u32,
    /// Bytes on the device that belong to this object (holes excluded).
    pub stored_bytes: u64,
}

/// Space on the device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// All segments.
    pub total_bytes: u64,
    /// In segments that are not free: live, dead and not yet written bytes.
    pub used_bytes: u64,
    /// Bytes of objects. What cleaning can free is `used_bytes - live_bytes`.
    pub live_bytes: u64,
    /// Upper bound of `live_bytes` for ordinary writes; the rest is the reserve of deletes and cleaning.
    pub live_bytes_limit: u64,
    /// The index's files.
    pub index_bytes: u64,
    /// Bytes that are submitted and not yet durable.
    pub pending_bytes: u64,
}

impl Usage {
    /// Bytes used by segments and index together, at most all: what fills a disk on which both lie. The index counts a
    /// quarter more than its files have, which is what its compactions need for a time.
    pub fn used_bytes_with_index(&self) -> u64 {
        self.used_bytes.saturating_add(self.index_bytes + self.index_bytes / 4).min(self.total_bytes)
    }
}
