//! What can go wrong, by what was being done.

use std::io;
use std::sync::Arc;

use holdfast_types::{ClusterId, DiskUuid};

use crate::txn::{CollectionId, ObjectKey};

/// The device failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {act} {length} bytes at device byte {offset}")]
pub struct DeviceError {
    /// `read`, `write` or `sync`.
    pub act: &'static str,
    /// Device byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What the system says.
    #[source]
    pub source: Arc<io::Error>,
}

/// The index failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the index cannot {act}: {detail}")]
pub struct IndexError {
    /// What was attempted.
    pub act: &'static str,
    /// In its own words.
    pub detail: String,
}

/// A transaction that was not taken; it has no effect.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SubmitError {
    /// Only what frees space is taken now.
    #[error("the device is full: {free_bytes} bytes are free, all of them reserved")]
    Full {
        /// Free bytes, the reserve included.
        free_bytes: u64,
    },
    /// It makes no sense.
    #[error("invalid transaction: {reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
    /// It does not fit a segment.
    #[error("a transaction of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The largest that fits.
        limit: u64,
    },
    /// The store failed earlier and takes nothing any more.
    #[error("the store has failed")]
    Poisoned(#[source] Arc<CommitError>),
    /// The index could not be read.
    #[error("the transaction's objects cannot be looked up")]
    Index(#[from] IndexError),
    /// A row of the index is not what the store wrote.
    #[error("the index is damaged: {detail}")]
    Damaged {
        /// Where.
        detail: String,
    },
}

/// Transactions could not be made durable. The store takes nothing any more: after a failed sync nobody knows what is
/// on the device (protocol.md §2.5).
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The device.
    #[error("the log cannot be written")]
    Device(#[from] DeviceError),
    /// The index.
    #[error("the index cannot be updated")]
    Index(#[from] IndexError),
}

/// A read that gives no data.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// A block does not match its checksum: rot, a torn or a misdirected write.
    #[error(
        "checksum mismatch in {collection:?}/{object:?} at byte {offset}: stored {stored:#010x}, computed {computed:#010x}"
    )]
    Corrupt {
        /// Where the object is.
        collection: CollectionId,
        /// Which.
        object: ObjectKey,
        /// Byte of the object at which the block begins.
        offset: u64,
        /// What the onode says.
        stored: u32,
        /// What the device gave.
        computed: u32,
    },
    /// A row of the index is not what the store wrote.
    #[error("the index is damaged: {detail}")]
    Damaged {
        /// Where.
        detail: String,
    },
    /// The device.
    #[error("the device cannot be read")]
    Device(#[from] DeviceError),
    /// The index.
    #[error("the index cannot be read")]
    Index(#[from] IndexError),
}

impl ReadError {
    /// Whether the bytes are there but wrong.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self, ReadError::Corrupt { .. } | ReadError::Damaged { .. })
    }
}

/// A store that cannot be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither copy of the superblock is one.
    #[error("{what} holds no store: {detail}")]
    NotAStore {
        /// The device.
        what: String,
        /// What is wrong with both copies.
        detail: String,
    },
    /// It is another cluster's or another disk's.
    #[error("the store belongs to cluster {cluster}, disk {disk}, not to the one asked for")]
    OtherStore {
        /// On the device.
        cluster: ClusterId,
        /// On the device.
        disk: DiskUuid,
    },
    /// Written by a newer release.
    #[error("the store needs a reader of version {needs}")]
    TooNew {
        /// That version.
        needs: u8,
    },
    /// The index is of another state of the device.
    #[error("index and log do not fit: {detail}")]
    IndexMismatch {
        /// How.
        detail: String,
    },
    /// A record in the middle of the log is damaged: later ones, that were acknowledged after it, are intact. This
    /// copy cannot be trusted as it is; it must be filled again from its peers.
    #[error("the log is damaged in segment {segment} at byte {offset}, before later records that are intact")]
    CorruptMiddle {
        /// Segment number.
        segment: u64,
        /// Byte in it.
        offset: u64,
    },
    /// The device is too small or the options make no sense.
    #[error("cannot make a store: {reason}")]
    Unusable {
        /// Why.
        reason: String,
    },
    /// Files and directories.
    #[error("cannot use {path}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device.
    #[error("the device cannot be used")]
    Device(#[from] DeviceError),
    /// The index.
    #[error("the index cannot be used")]
    Index(#[from] IndexError),
    /// Applying the log again failed.
    #[error("the log cannot be applied again")]
    Replay(#[source] SubmitError),
}
