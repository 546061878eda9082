//! What may be asked of the store: transactions over collections, objects, rows and a collection's own rows.

use std::fmt;

use bytes::Bytes;
use minicbor::{Decode, Encode};

/// Longest object key in bytes. Keys of the index stay below 1 KiB with it.
pub const OBJECT_KEY_BYTES_MAX: usize = 600;

/// A set of objects that is listed and removed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(array)]
pub struct CollectionId {
    /// High part of the name; the store gives it no meaning.
    #[n(0)]
    pub pool: u64,
    /// Low part of the name.
    #[n(1)]
    pub seed: u32,
}

/// Names an object in its collection. Objects are listed in the order of their keys' bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct ObjectKey(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>);

impl ObjectKey {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for ObjectKey {
    fn from(bytes: &[u8]) -> ObjectKey {
        ObjectKey(bytes.to_vec())
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// One step of a transaction. Any step on a missing object but removals makes it first.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "c: the collection, o: the object; the rest says itself")]
pub enum TxOp {
    /// Makes a collection, if it is missing.
    CreateCollection { c: CollectionId },
    /// Removes a collection with all in it. The work grows with its rows and objects.
    RemoveCollection { c: CollectionId },
    /// The object exists from here on.
    Touch { c: CollectionId, o: ObjectKey },
    /// Writes bytes; a gap before them reads as zeros.
    Write { c: CollectionId, o: ObjectKey, offset: u64, data: Bytes },
    /// Sets the size.
    Truncate { c: CollectionId, o: ObjectKey, size: u64 },
    /// Makes a range zeros; the size grows to its end.
    Zero { c: CollectionId, o: ObjectKey, offset: u64, length: u64 },
    /// Removes the object with attributes and rows; nothing when it is missing.
    Remove { c: CollectionId, o: ObjectKey },
    /// Sets an attribute.
    SetAttr { c: CollectionId, o: ObjectKey, name: Vec<u8>, value: Bytes },
    /// Removes an attribute.
    RemoveAttr { c: CollectionId, o: ObjectKey, name: Vec<u8> },
    /// Puts rows of the object.
    PutRows { c: CollectionId, o: ObjectKey, rows: Vec<(Vec<u8>, Bytes)> },
    /// Deletes rows of the object.
    DeleteRows { c: CollectionId, o: ObjectKey, keys: Vec<Vec<u8>> },
    /// Deletes the object's rows in `start..end`.
    DeleteRowRange { c: CollectionId, o: ObjectKey, start: Vec<u8>, end: Option<Vec<u8>> },
    /// Puts a row of the collection itself.
    PutMeta { c: CollectionId, key: Vec<u8>, value: Bytes },
    /// Deletes a row of the collection itself.
    DeleteMeta { c: CollectionId, key: Vec<u8> },
    /// Deletes the collection's own rows in `start..end`.
    DeleteMetaRange { c: CollectionId, start: Vec<u8>, end: Option<Vec<u8>> },
}

/// Steps that take effect together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// In order.
    pub ops: Vec<TxOp>,
}

impl Transaction {
    /// Whether it may use the reserve of a full device: it adds no object data.
    pub(crate) fn frees_space(&self) -> bool {
        self.ops.iter().all(|op| !matches!(op, TxOp::Write { .. }))
    }
}
