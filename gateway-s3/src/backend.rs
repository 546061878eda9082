//! What the gateway needs of the cluster, and nothing more: ordered rows, immutable blobs, and users' keys.
//!
//! The protocol code is written against these three traits only. `cluster_backend` implements them over the real
//! client; the `testing` module has an in-memory one for protocol tests.
//!
//! # Rows
//! A *table* holds rows ordered by (space, key). Rows whose keys begin with the same *route* always live in the same
//! group, so one [`Tables::batch`] over them is one atomic, durable operation (see [`crate::row`] for the keys).

use std::error::Error;
use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use minicbor::{Decode, Encode};

/// Names one table of rows. Random, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct TableId(#[cbor(with = "minicbor::bytes")] pub [u8; 16]);

/// Names one immutable blob. Random, never reused: a blob id that was once deleted never means other bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct BlobId(#[cbor(with = "minicbor::bytes")] pub [u8; 16]);

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableId({self})")
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobId({self})")
    }
}

/// Where one row is: rows are ordered by space, then by key bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The kind of row (see [`crate::row::space`]).
    pub space: u8,
    /// The key within the space.
    pub key: Vec<u8>,
}

/// What must hold for a batch to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The row does not exist.
    Absent(RowKey),
    /// The row exists.
    Present(RowKey),
    /// The row exists and has exactly these bytes.
    Equals(RowKey, Bytes),
}

/// One change of a batch. Changes are applied in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Writes the row, new or not.
    Put(RowKey, Bytes),
    /// Removes the row if it is there.
    Delete(RowKey),
    /// Removes all rows of `space` in `start..end`. All of them share the batch's route.
    DeleteRange {
        /// The space of the rows.
        space: u8,
        /// First key removed.
        start: Vec<u8>,
        /// First key kept.
        end: Vec<u8>,
    },
}

/// What a batch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To store something, perhaps in the place of something else.
    Store,
    /// To free space: it deletes something for good, and puts at most a note of what is left to be deleted. A full cluster
    /// takes it.
    FreeSpace,
}

/// Which rows a scan returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRange {
    /// The space of the rows.
    pub space: u8,
    /// The first key, inclusive.
    pub start: Vec<u8>,
    /// The first key not returned; `None` means the end of the space.
    pub end: Option<Vec<u8>>,
}

/// How much a scan returns at most. A page has at least one row if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanLimit {
    /// Rows.
    pub rows: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

/// One page of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// Keys and values in key order.
    pub rows: Vec<(Vec<u8>, Bytes)>,
    /// Where to go on; `None` when the range is done.
    pub next: Option<Vec<u8>>,
}

/// A failure of the storage underneath.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The table was dropped.
    #[error("table {0} was dropped")]
    NoTable(TableId),
    /// There is nothing of the table: it was never made, was purged, or cannot be seen at the moment. Nobody may conclude
    /// from it that the table was dropped.
    #[error("nothing is there of table {0}")]
    TableMissing(TableId),
    /// A blob's stripe is not there.
    #[error("blob {blob} has no stripe {stripe}")]
    NoStripe {
        /// The blob.
        blob: BlobId,
        /// The stripe's index.
        stripe: u32,
    },
    /// The cluster has no room for this write.
    #[error("the cluster is full")]
    Full,
    /// The cluster did not answer in time. A write may or may not have been applied.
    #[error("the cluster is unavailable")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// A key is longer than a row's key may be; only keys of many zero bytes are.
    #[error("a key is too long")]
    KeyTooLong,
    /// Stored bytes cannot be understood.
    #[error("stored {what} cannot be read")]
    Corrupt {
        /// What was read.
        what: &'static str,
    },
    /// The storage fails in a way that waiting does not mend. Nothing was changed.
    #[error("the storage failed")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

/// Why a batch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// A condition does not hold; nothing was changed.
    #[error("condition {index} does not hold")]
    ConditionFailed {
        /// Which condition, the first that fails.
        index: usize,
        /// The row of that condition as it is.
        current: Option<Bytes>,
    },
    /// The storage failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl BatchError {
    /// Whether a condition failed because the row has this value. If it is a value that nobody else can have written, the
    /// batch was executed: its answer was lost, and the storage executed it again.
    pub fn shows(&self, value: &Bytes) -> bool {
        matches!(self, BatchError::ConditionFailed { current: Some(current), .. } if current == value)
    }
}

/// Why a table was not dropped.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// One of the spaces has a row; nothing was changed.
    #[error("the table has rows in space {space:#04x}")]
    NotEmpty {
        /// The space.
        space: u8,
    },
    /// The storage failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Ordered rows.
#[async_trait]
pub trait Tables: Send + Sync + 'static {
    /// Makes an empty table. Making one that exists is a success.
    async fn create_table(&self, table: TableId) -> Result<(), BackendError>;

    /// Drops the table if no row is in any of `spaces`. Atomic against batches: a batch either comes before it (and the
    /// table is not empty) or fails with [`BackendError::NoTable`]. Rows of other spaces can be read by
    /// [`Tables::dropped_rows`] until [`Tables::purge_table`]. Dropping a table again is a success or
    /// [`BackendError::NoTable`].
    async fn drop_table_if_empty(&self, table: TableId, spaces: &[u8]) -> Result<(), DropError>;

    /// A page of the rows that a dropped table still has. [`BackendError::TableMissing`] when it was purged, another
    /// error when it was not dropped.
    async fn dropped_rows(
        &self,
        table: TableId,
        space: u8,
        start: Vec<u8>,
        limit: ScanLimit,
    ) -> Result<Page, BackendError>;

    /// Removes what is left of a dropped table. Doing it again is a success.
    async fn purge_table(&self, table: TableId) -> Result<(), BackendError>;

    /// Applies all mutations if all conditions hold, durably and atomically. All keys begin with `route`.
    async fn batch(
        &self,
        table: TableId,
        route: &[u8],
        conditions: Vec<Condition>,
        mutations: Vec<Mutation>,
        purpose: Purpose,
    ) -> Result<(), BatchError>;

    /// Reads rows that share `route`, in one operation if the implementation can: `result[i]` is the row of `keys[i]`.
    async fn get(&self, table: TableId, route: &[u8], keys: Vec<RowKey>) -> Result<Vec<Option<Bytes>>, BackendError>;

    /// Reads a range of rows in order. Each row returned was there at some moment of the call, and every row that was
    /// there for the whole call and lies before [`Page::next`] is returned.
    async fn scan(&self, table: TableId, range: ScanRange, limit: ScanLimit) -> Result<Page, BackendError>;
}

/// Immutable blobs, cut into stripes.
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// A fresh blob id.
    async fn new_id(&self) -> Result<BlobId, BackendError>;

    /// Writes one stripe durably. Writing the same bytes again is a success.
    async fn put_stripe(&self, blob: BlobId, stripe: u32, data: Bytes) -> Result<(), BackendError>;

    /// Writes a part of one stripe durably; what is not written of it yet is undefined. Writing the same bytes again is a
    /// success.
    async fn put_range(&self, blob: BlobId, stripe: u32, offset: u32, data: Bytes) -> Result<(), BackendError>;

    /// Reads `length` bytes at `offset` of one stripe; exactly that many or an error.
    async fn get(&self, blob: BlobId, stripe: u32, offset: u32, length: u32) -> Result<Bytes, BackendError>;

    /// Deletes stripes `0..stripes`, whether they exist or not.
    async fn delete(&self, blob: BlobId, stripes: u32) -> Result<(), BackendError>;

    /// Whether room runs out: writes are refused for want of it, or soon will be.
    async fn is_short_of_room(&self) -> Result<bool, BackendError>;
}

/// What an access key stands for.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// The secret access key.
    pub secret: String,
    /// The stable id of the user; AWS calls it the canonical id.
    pub owner: String,
    /// The name shown for the user.
    pub name: String,
}

impl fmt::Debug for KeyInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyInfo").field("owner", &self.owner).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Users' keys, kept by the monitors.
#[async_trait]
pub trait Keys: Send + Sync + 'static {
    /// Looks an access key up; `None` when there is no such key.
    async fn secret_for(&self, access_key: &str) -> Result<Option<KeyInfo>, BackendError>;
}

/// The storage a gateway stands on.
#[derive(Clone)]
pub struct Backend {
    /// Rows.
    pub tables: std::sync::Arc<dyn Tables>,
    /// Object data.
    pub blobs: std::sync::Arc<dyn Blobs>,
    /// Users' keys.
    pub keys: std::sync::Arc<dyn Keys>,
}
