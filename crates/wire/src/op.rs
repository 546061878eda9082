//! What may be asked of one object, what that answers, and what it does to the object.
//!
//! An op vector is executed in order, atomically: when one op fails, none has an effect. Writes become [`Effect`]s at
//! the primary; only effects are replicated, so replicas never evaluate a condition.

use holdfast_types::LogVersion;
use minicbor::{Decode, Encode};

use crate::payload::{Blob, PayloadContext};

/// One row: key and value.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array, context_bound = "PayloadContext")]
pub struct Row {
    /// The key; rows are ordered by its bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub key: Vec<u8>,
    /// The value.
    #[n(1)]
    pub value: Blob,
}

/// What must hold of a row for the op vector to take effect.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "PayloadContext")]
pub enum RowCondition {
    /// There is no such row.
    #[n(0)]
    Absent,
    /// There is such a row.
    #[n(1)]
    Present,
    /// There is such a row and its value is exactly this.
    #[n(2)]
    Equals(#[n(0)] Blob),
}

/// One step of an op vector.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "PayloadContext")]
pub enum ObjectOp {
    /// Fails unless the object exists.
    #[n(0)]
    AssertExists,
    /// Fails unless the object does not exist.
    #[n(1)]
    AssertAbsent,
    /// Fails unless the object's last write has this version.
    #[n(2)]
    AssertVersion(#[n(0)] LogVersion),
    /// Fails unless the attribute has this value, or is absent when `None`.
    #[n(3)]
    AssertAttr {
        /// Name of the attribute.
        #[cbor(n(0), with = "minicbor::bytes")]
        name: Vec<u8>,
        /// The value it must have.
        #[n(1)]
        expected: Option<Blob>,
    },
    /// Fails unless the condition holds of the row.
    #[n(4)]
    AssertRow {
        /// Key of the row.
        #[cbor(n(0), with = "minicbor::bytes")]
        key: Vec<u8>,
        /// What must hold.
        #[n(1)]
        condition: RowCondition,
    },
    /// Fails when any row lies in `start..end` (`end` `None`: no upper bound).
    #[n(5)]
    AssertRowRangeEmpty {
        /// First key of the range.
        #[cbor(n(0), with = "minicbor::bytes")]
        start: Vec<u8>,
        /// First key after the range.
        #[cbor(n(1), with = "minicbor::bytes")]
        end: Option<Vec<u8>>,
    },
    /// Fails unless the bytes at `offset` are exactly these (missing bytes count as zeros).
    #[n(6)]
    CompareExtent {
        /// Byte offset.
        #[n(0)]
        offset: u64,
        /// What must be there.
        #[n(1)]
        data: Blob,
    },

    /// Size and version. Answers [`OpResult::Stat`].
    #[n(20)]
    Stat,
    /// Up to `length` bytes from `offset`; shorter at the object's end. Answers [`OpResult::Data`].
    #[n(21)]
    Read {
        /// Byte offset.
        #[n(0)]
        offset: u64,
        /// Bytes wanted.
        #[n(1)]
        length: u64,
    },
    /// One attribute. Answers [`OpResult::Attr`].
    #[n(22)]
    GetAttr {
        /// Name of the attribute.
        #[cbor(n(0), with = "minicbor::bytes")]
        name: Vec<u8>,
    },
    /// The values of these rows. Answers [`OpResult::RowValues`], in the order asked.
    #[n(23)]
    GetRows {
        /// Keys of the rows.
        #[n(0)]
        keys: Vec<minicbor::bytes::ByteVec>,
    },
    /// Rows of `start..end` in order of key, until a limit is reached. Answers [`OpResult::RowPage`].
    #[n(24)]
    ScanRows {
        /// First key.
        #[cbor(n(0), with = "minicbor::bytes")]
        start: Vec<u8>,
        /// First key after the range; `None`: no upper bound.
        #[cbor(n(1), with = "minicbor::bytes")]
        end: Option<Vec<u8>>,
        /// At most this many rows.
        #[n(2)]
        limit_rows: u32,
        /// Stop after the row with which keys and values reach this many bytes.
        #[n(3)]
        limit_bytes: u32,
    },

    /// Makes the object if it is missing; with `exclusive`, fails if it exists.
    #[n(40)]
    Create {
        /// Fail if it exists.
        #[n(0)]
        exclusive: bool,
    },
    /// Writes bytes at `offset`; a gap before it reads as zeros.
    #[n(41)]
    Write {
        /// Byte offset.
        #[n(0)]
        offset: u64,
        /// The bytes.
        #[n(1)]
        data: Blob,
    },
    /// Replaces all bytes; attributes and rows stay.
    #[n(42)]
    WriteFull {
        /// The bytes.
        #[n(0)]
        data: Blob,
    },
    /// Writes at the end.
    #[n(43)]
    Append {
        /// The bytes.
        #[n(0)]
        data: Blob,
    },
    /// Makes a range read as zeros, within the present size.
    #[n(44)]
    Zero {
        /// Byte offset.
        #[n(0)]
        offset: u64,
        /// Bytes.
        #[n(1)]
        length: u64,
    },
    /// Sets the size; growth reads as zeros.
    #[n(45)]
    Truncate {
        /// The new size in bytes.
        #[n(0)]
        size: u64,
    },
    /// Removes the object with attributes and rows; fails with [`OpError::NotFound`] if it is missing.
    #[n(46)]
    Remove,
    /// Sets an attribute.
    #[n(47)]
    SetAttr {
        /// Name of the attribute.
        #[cbor(n(0), with = "minicbor::bytes")]
        name: Vec<u8>,
        /// Its value.
        #[n(1)]
        value: Blob,
    },
    /// Removes an attribute, if it is there.
    #[n(48)]
    RemoveAttr {
        /// Name of the attribute.
        #[cbor(n(0), with = "minicbor::bytes")]
        name: Vec<u8>,
    },
    /// Puts rows.
    #[n(49)]
    PutRows {
        /// The rows.
        #[n(0)]
        rows: Vec<Row>,
    },
    /// Deletes rows, those that are there.
    #[n(50)]
    DeleteRows {
        /// Keys of the rows.
        #[n(0)]
        keys: Vec<minicbor::bytes::ByteVec>,
    },
    /// Deletes all rows of `start..end`.
    #[n(51)]
    DeleteRowRange {
        /// First key.
        #[cbor(n(0), with = "minicbor::bytes")]
        start: Vec<u8>,
        /// First key after the range; `None`: no upper bound.
        #[cbor(n(1), with = "minicbor::bytes")]
        end: Option<Vec<u8>>,
    },
    /// Adds to a row that holds a little-endian `i64` (missing: 0). Answers [`OpResult::Counter`].
    #[n(52)]
    AddRow {
        /// Key of the row.
        #[cbor(n(0), with = "minicbor::bytes")]
        key: Vec<u8>,
        /// What to add; overflow fails with [`OpError::Invalid`].
        #[n(1)]
        delta: i64,
    },
    /// Raises a row that holds a little-endian `i64` to at least `value`. Answers [`OpResult::Counter`].
    #[n(53)]
    MaxRow {
        /// Key of the row.
        #[cbor(n(0), with = "minicbor::bytes")]
        key: Vec<u8>,
        /// The lower bound.
        #[n(1)]
        value: i64,
    },
}

impl ObjectOp {
    /// Whether the op may change the object.
    #[must_use]
    pub fn is_write(&self) -> bool {
        match self {
            ObjectOp::AssertExists
            | ObjectOp::AssertAbsent
            | ObjectOp::AssertVersion(_)
            | ObjectOp::AssertAttr { .. }
            | ObjectOp::AssertRow { .. }
            | ObjectOp::AssertRowRangeEmpty { .. }
            | ObjectOp::CompareExtent { .. }
            | ObjectOp::Stat
            | ObjectOp::Read { .. }
            | ObjectOp::GetAttr { .. }
            | ObjectOp::GetRows { .. }
            | ObjectOp::ScanRows { .. } => false,
            ObjectOp::Create { .. }
            | ObjectOp::Write { .. }
            | ObjectOp::WriteFull { .. }
            | ObjectOp::Append { .. }
            | ObjectOp::Zero { .. }
            | ObjectOp::Truncate { .. }
            | ObjectOp::Remove
            | ObjectOp::SetAttr { .. }
            | ObjectOp::RemoveAttr { .. }
            | ObjectOp::PutRows { .. }
            | ObjectOp::DeleteRows { .. }
            | ObjectOp::DeleteRowRange { .. }
            | ObjectOp::AddRow { .. }
            | ObjectOp::MaxRow { .. } => true,
        }
    }

    /// Whether the op only gives space back: admitted on a full cluster.
    #[must_use]
    pub fn frees_space(&self) -> bool {
        matches!(
            self,
            ObjectOp::Remove
                | ObjectOp::RemoveAttr { .. }
                | ObjectOp::DeleteRows { .. }
                | ObjectOp::DeleteRowRange { .. }
        )
    }
}

/// Size and version of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ObjectStat {
    /// Size in bytes.
    #[n(0)]
    pub size: u64,
    /// Version of its last write.
    #[n(1)]
    pub version: LogVersion,
}

/// What one op answers; op `i` of the vector has result `i`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "PayloadContext")]
pub enum OpResult {
    /// Done, nothing to tell.
    #[n(0)]
    Done,
    /// Of [`ObjectOp::Stat`].
    #[n(1)]
    Stat(#[n(0)] ObjectStat),
    /// Of [`ObjectOp::Read`].
    #[n(2)]
    Data(#[n(0)] Blob),
    /// Of [`ObjectOp::GetAttr`]; `None` when it is not set.
    #[n(3)]
    Attr(#[n(0)] Option<Blob>),
    /// Of [`ObjectOp::GetRows`]; `None` for a missing row.
    #[n(4)]
    RowValues(#[n(0)] Vec<Option<Blob>>),
    /// Of [`ObjectOp::ScanRows`].
    #[n(5)]
    RowPage {
        /// The rows, in order.
        #[n(0)]
        rows: Vec<Row>,
        /// Whether a limit ended the scan before the range did.
        #[n(1)]
        more: bool,
    },
    /// Of [`ObjectOp::AddRow`] and [`ObjectOp::MaxRow`]: the new value.
    #[n(6)]
    Counter(#[n(0)] i64),
}

/// Why an op vector had no effect.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[cbor(context_bound = "PayloadContext")]
pub enum OpError {
    /// The object is missing.
    #[n(0)]
    #[error("no such object")]
    NotFound,
    /// The object exists, and must not.
    #[n(1)]
    #[error("the object exists")]
    Exists,
    /// An assert did not hold. `current` is what is there instead, where that is a row or attribute.
    #[n(2)]
    #[error("an asserted condition does not hold")]
    AssertFailed {
        /// The present value of the row or attribute; `None` when it is absent or the assert was of another kind.
        #[n(0)]
        current: Option<Blob>,
    },
    /// The op makes no sense: an argument is out of range, or the object would grow past its limit.
    #[n(3)]
    #[error("invalid operation: {reason}")]
    Invalid {
        /// Why.
        #[n(0)]
        reason: String,
    },
    /// No copy that can be read is intact.
    #[n(4)]
    #[error("the data cannot be read from any copy")]
    Unreadable,
}

/// What a write does to an object: the replicated, condition-free form of the writing ops.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "PayloadContext")]
pub enum Effect {
    /// The object exists from here on.
    #[n(0)]
    Touch,
    /// Bytes at an offset.
    #[n(1)]
    Write {
        /// Byte offset.
        #[n(0)]
        offset: u64,
        /// The bytes.
        #[n(1)]
        data: Blob,
    },
    /// A range of zeros.
    #[n(2)]
    Zero {
        /// Byte offset.
        #[n(0)]
        offset: u64,
        /// Bytes.
        #[n(1)]
        length: u64,
    },
    /// A new size.
    #[n(3)]
    Truncate {
        /// Bytes.
        #[n(0)]
        size: u64,
    },
    /// The object is gone, with attributes and rows.
    #[n(4)]
    Remove,
    /// An attribute.
    #[n(5)]
    SetAttr {
        /// Name of the attribute.
        #[cbor(n(0), with = "minicbor::bytes")]
        name: Vec<u8>,
        /// Its value.
        #[n(1)]
        value: Blob,
    },
    /// No such attribute.
    #[n(6)]
    RemoveAttr {
        /// Name of the attribute.
        #[cbor(n(0), with = "minicbor::bytes")]
        name: Vec<u8>,
    },
    /// Rows.
    #[n(7)]
    PutRows {
        /// The rows.
        #[n(0)]
        rows: Vec<Row>,
    },
    /// No such rows.
    #[n(8)]
    DeleteRows {
        /// Keys of the rows.
        #[n(0)]
        keys: Vec<minicbor::bytes::ByteVec>,
    },
    /// No rows in `start..end`.
    #[n(9)]
    DeleteRowRange {
        /// First key.
        #[cbor(n(0), with = "minicbor::bytes")]
        start: Vec<u8>,
        /// First key after the range; `None`: no upper bound.
        #[cbor(n(1), with = "minicbor::bytes")]
        end: Option<Vec<u8>>,
    },
}
