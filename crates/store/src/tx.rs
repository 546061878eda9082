//! What can be changed: [`Transaction`]s, and the limits that a transaction must keep.
//!
//! Payload is `Bytes` and is shared, not copied, from the caller to the device write.

use bytes::Bytes;

use crate::error::{Excess, SubmitError};
use crate::key::{CollectionId, OBJECT_KEY_BYTES_MAX, ObjectKey};

/// Longest row key: an S3 key (1,024 bytes) with room for prefixes, escaped.
pub const ROW_KEY_BYTES_MAX: usize = 4096;
/// Longest key of a collection's metadata.
pub const META_KEY_BYTES_MAX: usize = 1024;
/// Longest attribute name.
pub const ATTR_NAME_BYTES_MAX: usize = 256;
/// Longest attribute value. Attributes live in the onode and are read with it, so they stay small.
pub const ATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Most bytes that keys, rows, attributes and metadata of one transaction may have together. It bounds the part of a
/// record that replay holds in memory; KV groups move in batches well below it.
pub const TX_INLINE_BYTES_MAX: usize = 8 << 20;
/// Largest object. An offset beyond it is a caller's mistake, and never reaches arithmetic that could overflow.
pub const OBJECT_BYTES_MAX: u64 = 1 << 48;

/// One change. `c` is the collection, `o` the object in it.
#[expect(missing_docs, reason = "each variant says what its fields do; c and o are the same in all")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxOp {
    /// Makes an empty collection; it must not exist.
    CreateCollection { c: CollectionId },
    /// Removes a collection with all its objects, rows and metadata.
    RemoveCollection { c: CollectionId },
    /// Makes the collection `into`, which must not exist, of the objects of `c` with keys from `at` on, and of a copy of all
    /// metadata of `c`. It moves no object and costs the same for any number of them. `c` takes no object from `at` on, and
    /// `into` none before it, any more.
    SplitCollection { c: CollectionId, into: CollectionId, at: Vec<u8> },
    /// Makes the object if it does not exist.
    Touch { c: CollectionId, o: ObjectKey },
    /// Replaces `data.len()` bytes at `offset`; makes or extends the object as needed, a gap reads as zeros.
    Write { c: CollectionId, o: ObjectKey, offset: u64, data: Bytes },
    /// Sets the size; makes the object if it does not exist.
    Truncate { c: CollectionId, o: ObjectKey, size: u64 },
    /// Makes `length` bytes at `offset` read as zeros and frees their space; extends the object if needed.
    Zero { c: CollectionId, o: ObjectKey, offset: u64, length: u64 },
    /// Removes the object with its attributes and rows. Nothing happens if it does not exist.
    Remove { c: CollectionId, o: ObjectKey },
    /// Sets one attribute; makes the object if it does not exist.
    SetAttr { c: CollectionId, o: ObjectKey, name: Vec<u8>, value: Bytes },
    /// Removes one attribute. Nothing happens if it or the object does not exist.
    RemoveAttr { c: CollectionId, o: ObjectKey, name: Vec<u8> },
    /// Sets rows of the object; makes it if it does not exist.
    PutRows { c: CollectionId, o: ObjectKey, rows: Vec<(Vec<u8>, Bytes)> },
    /// Removes rows. Those that do not exist are ignored.
    DeleteRows { c: CollectionId, o: ObjectKey, keys: Vec<Vec<u8>> },
    /// Removes the rows in `start..end` (no end: all from `start`).
    DeleteRowRange { c: CollectionId, o: ObjectKey, start: Vec<u8>, end: Option<Vec<u8>> },
    /// Sets one metadata row of the collection.
    PutMeta { c: CollectionId, key: Vec<u8>, value: Bytes },
    /// Removes one metadata row of the collection. Nothing happens if it does not exist.
    DeleteMeta { c: CollectionId, key: Vec<u8> },
    /// Removes the collection's metadata rows in `start..end` (no end: all from `start`).
    DeleteMetaRange { c: CollectionId, start: Vec<u8>, end: Option<Vec<u8>> },
}

impl TxOp {
    /// The collection that the op is about.
    pub fn collection(&self) -> CollectionId {
        match self {
            TxOp::CreateCollection { c }
            | TxOp::RemoveCollection { c }
            | TxOp::SplitCollection { c, .. }
            | TxOp::Touch { c, .. }
            | TxOp::Write { c, .. }
            | TxOp::Truncate { c, .. }
            | TxOp::Zero { c, .. }
            | TxOp::Remove { c, .. }
            | TxOp::SetAttr { c, .. }
            | TxOp::RemoveAttr { c, .. }
            | TxOp::PutRows { c, .. }
            | TxOp::DeleteRows { c, .. }
            | TxOp::DeleteRowRange { c, .. }
            | TxOp::PutMeta { c, .. }
            | TxOp::DeleteMeta { c, .. }
            | TxOp::DeleteMetaRange { c, .. } => *c,
        }
    }

    /// True for ops that leave nothing on the device; a transaction of only these may use the reserve. What they put into
    /// the index passes through the log, and its segments are free again with the next index flush.
    fn may_use_reserve(&self) -> bool {
        match self {
            TxOp::CreateCollection { .. }
            | TxOp::RemoveCollection { .. }
            | TxOp::SplitCollection { .. }
            | TxOp::Touch { .. }
            | TxOp::SetAttr { .. }
            | TxOp::PutRows { .. }
            | TxOp::Truncate { .. }
            | TxOp::Zero { .. }
            | TxOp::Remove { .. }
            | TxOp::RemoveAttr { .. }
            | TxOp::DeleteRows { .. }
            | TxOp::DeleteRowRange { .. }
            | TxOp::PutMeta { .. }
            | TxOp::DeleteMeta { .. }
            | TxOp::DeleteMetaRange { .. } => true,
            TxOp::Write { .. } => false,
        }
    }

    /// Bytes that the op puts beside the payload.
    fn inline_bytes(&self) -> usize {
        match self {
            TxOp::SetAttr { name, value, .. } => name.len() + value.len(),
            TxOp::PutRows { rows, .. } => rows.iter().map(|(key, value)| key.len() + value.len()).sum(),
            TxOp::DeleteRows { keys, .. } => keys.iter().map(Vec::len).sum(),
            TxOp::PutMeta { key, value, .. } => key.len() + value.len(),
            TxOp::CreateCollection { .. }
            | TxOp::RemoveCollection { .. }
            | TxOp::SplitCollection { .. }
            | TxOp::Touch { .. }
            | TxOp::Write { .. }
            | TxOp::Truncate { .. }
            | TxOp::Zero { .. }
            | TxOp::Remove { .. }
            | TxOp::RemoveAttr { .. }
            | TxOp::DeleteRowRange { .. }
            | TxOp::DeleteMeta { .. }
            | TxOp::DeleteMetaRange { .. } => 0,
        }
    }

    fn check(&self) -> Result<(), SubmitError> {
        let limit = |what: Excess, bytes: usize, max: usize| {
            if bytes > max { Err(SubmitError::TooLarge { what, bytes: bytes as u64, max: max as u64 }) } else { Ok(()) }
        };
        let object_end = |offset: u64, length: u64| match offset.checked_add(length) {
            Some(end) if end <= OBJECT_BYTES_MAX => Ok(()),
            _ => Err(SubmitError::TooLarge {
                what: Excess::Object,
                bytes: offset.saturating_add(length),
                max: OBJECT_BYTES_MAX,
            }),
        };
        match self {
            TxOp::Write { offset, data, .. } => object_end(*offset, data.len() as u64),
            TxOp::Truncate { size, .. } => object_end(*size, 0),
            TxOp::Zero { offset, length, .. } => object_end(*offset, *length),
            TxOp::SetAttr { name, value, .. } => {
                limit(Excess::AttrName, name.len(), ATTR_NAME_BYTES_MAX)?;
                limit(Excess::AttrValue, value.len(), ATTR_VALUE_BYTES_MAX)
            }
            TxOp::PutRows { rows, .. } => {
                rows.iter().try_for_each(|(key, _)| limit(Excess::RowKey, key.len(), ROW_KEY_BYTES_MAX))
            }
            TxOp::SplitCollection { at, .. } => limit(Excess::ObjectKey, at.len(), OBJECT_KEY_BYTES_MAX),
            TxOp::PutMeta { key, .. } => limit(Excess::MetaKey, key.len(), META_KEY_BYTES_MAX),
            TxOp::CreateCollection { .. }
            | TxOp::RemoveCollection { .. }
            | TxOp::Touch { .. }
            | TxOp::Remove { .. }
            | TxOp::RemoveAttr { .. }
            | TxOp::DeleteRows { .. }
            | TxOp::DeleteRowRange { .. }
            | TxOp::DeleteMeta { .. }
            | TxOp::DeleteMetaRange { .. } => Ok(()),
        }
    }
}

/// Changes that happen together or not at all, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// The changes.
    pub ops: Vec<TxOp>,
}

impl Transaction {
    /// A transaction of no ops.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// Adds one op.
    pub fn push(&mut self, op: TxOp) {
        self.ops.push(op);
    }

    /// Bytes of all payload.
    pub fn payload_bytes(&self) -> u64 {
        self.ops.iter().map(|op| if let TxOp::Write { data, .. } = op { data.len() as u64 } else { 0 }).sum()
    }

    /// True when no op brings payload: deletes, rows, attributes. Such a transaction may use the reserve of a full device.
    pub fn may_use_reserve(&self) -> bool {
        self.ops.iter().all(TxOp::may_use_reserve)
    }

    /// Checks what can be known without the store's state.
    pub(crate) fn check(&self) -> Result<(), SubmitError> {
        self.ops.iter().try_for_each(TxOp::check)?;
        let inline: usize = self.ops.iter().map(TxOp::inline_bytes).sum();
        if inline > TX_INLINE_BYTES_MAX {
            return Err(SubmitError::TooLarge {
                what: Excess::Transaction,
                bytes: inline as u64,
                max: TX_INLINE_BYTES_MAX as u64,
            });
        }
        Ok(())
    }
}
