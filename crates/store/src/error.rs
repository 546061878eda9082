//! What can go wrong, one enum for each thing one can ask of a store.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_types::DiskUuid;

use crate::engine::Identity;
use crate::index::IndexError;
use crate::key::{CollectionId, ObjectKey, Position};
use crate::marker::RELEASE_FILE;

/// The part of a transaction that is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// The end of an object.
    Object,
    /// An object's key.
    ObjectKey,
    /// An attribute's name.
    AttrName,
    /// An attribute's value.
    AttrValue,
    /// A row's key.
    RowKey,
    /// A metadata key.
    MetaKey,
    /// The whole.
    Transaction,
}

/// Why a transaction was not taken. It has then changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The collection does not exist.
    #[error("no collection {collection}")]
    NoSuchCollection {
        /// The one named.
        collection: CollectionId,
    },
    /// The collection exists already.
    #[error("collection {collection} exists")]
    CollectionExists {
        /// The one named.
        collection: CollectionId,
    },
    /// The object's key is in a range that a split has given to another collection.
    #[error("{object} does not belong to collection {collection}")]
    ForeignObject {
        /// The collection named.
        collection: CollectionId,
        /// The object.
        object: ObjectKey,
    },
    /// A limit is exceeded.
    #[error("{what:?} of {bytes} bytes exceeds the limit of {max}")]
    TooLarge {
        /// Which limit.
        what: Excess,
        /// The size asked for.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// There is no room (ENOSPC).
    #[error("no space for {needed_bytes} bytes ({live_bytes} of {limit_bytes} in use)")]
    NoSpace {
        /// The size of the record.
        needed_bytes: u64,
        /// Live bytes now.
        live_bytes: u64,
        /// The most live bytes that this kind of transaction may lead to.
        limit_bytes: u64,
        /// True when cleaning will make room: call `clean_step` and try again. False: the device is full.
        cleaning_helps: bool,
    },
    /// What is known of one object cannot be read, so it cannot be changed. It can be removed, and written anew from another
    /// copy in the same transaction. No other object is concerned.
    #[error("cannot read the onode of {object} in {collection}")]
    CorruptObject {
        /// The object's collection.
        collection: CollectionId,
        /// The object.
        object: ObjectKey,
        /// Why.
        #[source]
        source: IndexError,
    },
    /// What the index has does not fit the transaction.
    #[error("cannot read the index")]
    Index(#[from] IndexError),
    /// An earlier failure stopped the store; it must be opened anew.
    #[error("the store has failed and takes no more writes")]
    Poisoned(#[source] Arc<CommitError>),
    /// The store is closing.
    #[error("the store is closed")]
    Closed,
}

/// Why submitted transactions did not become durable. The store is poisoned: nothing is tried again, since after a failed
/// sync the kernel may have dropped the dirty pages and a second sync would succeed without them.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A device write failed.
    #[error("cannot write {bytes} bytes at device byte {offset}")]
    Write {
        /// Where.
        offset: u64,
        /// How many.
        bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The sync failed; what it covered may or may not be on the device.
    #[error("cannot sync the device")]
    Sync(#[source] io::Error),
    /// The records are durable but could not be applied to the index; opening anew replays them.
    #[error("cannot write the index")]
    Index(#[source] IndexError),
    /// An earlier failure stopped the store.
    #[error("the store has failed")]
    Poisoned(#[source] Arc<CommitError>),
    /// A defect: the commit, or what was told of it, panicked. What became of its group is found out when opened anew.
    #[error("the commit panicked")]
    Panicked,
    /// The store was dropped before the transaction was durable; it may or may not be found when opened.
    #[error("the store was closed before the transaction was durable")]
    Closed,
}

/// Why something cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The collection does not exist.
    #[error("no collection {collection}")]
    NoSuchCollection {
        /// The one named.
        collection: CollectionId,
    },
    /// The object does not exist.
    #[error("no object {object} in {collection}")]
    NoSuchObject {
        /// Its collection.
        collection: CollectionId,
        /// Its key.
        object: ObjectKey,
    },
    /// A stored block is not what was written (EIO): bit rot, a torn or a misdirected write. Read it from another copy
    /// and write it anew.
    #[error(
        "checksum mismatch in {object} of {collection} at byte {offset}: stored {stored:#010x}, computed {computed:#010x}"
    )]
    Corrupt {
        /// The object's collection.
        collection: CollectionId,
        /// The object.
        object: ObjectKey,
        /// First byte of the block in the object.
        offset: u64,
        /// Bytes of the block.
        length: u32,
        /// From the onode.
        stored: u32,
        /// Of what was read.
        computed: u32,
    },
    /// The device failed the read (EIO).
    #[error("cannot read {length} bytes at device byte {offset}")]
    Device {
        /// Where.
        offset: u64,
        /// How many.
        length: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The index could not be read.
    #[error("cannot read the index")]
    Index(#[from] IndexError),
}

fn describe_owner(found: &Option<Identity>) -> String {
    found.map_or_else(String::new, |of| format!(" (OSD {} of cluster {}, disk {})", of.osd, of.cluster, of.disk))
}

/// Why a device cannot be formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The segment size is out of bounds or not a multiple of the sector.
    #[error("a segment of {bytes} bytes is not possible ({min} to {max}, a multiple of the sector)")]
    SegmentBytes {
        /// The size asked for.
        bytes: u64,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// The sector or the checksum block is not a power of two in bounds.
    #[error("a block of {bytes} bytes is not possible (a power of two, {min} to {max})")]
    BlockBytes {
        /// The size asked for.
        bytes: u64,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Too few segments for a log, its successor and the reserve.
    #[error("a device of {device_bytes} bytes holds {segments} segments; at least {needed} are needed")]
    TooSmall {
        /// The device's size.
        device_bytes: u64,
        /// Segments that fit.
        segments: u64,
        /// Segments that are needed.
        needed: u64,
    },
    /// Somebody's data is, or may be, on the device.
    #[error(
        "the device is not blank: {reason}{}; if nothing on it is needed, overwrite its first 128 KiB with zeros and try again",
        describe_owner(found)
    )]
    InUse {
        /// Whose it is, where that can be read.
        found: Option<Identity>,
        /// What was seen.
        reason: String,
    },
    /// The device is not there, and must not be made.
    #[error("there is no device {}", device.display())]
    NoDevice {
        /// Where it should be.
        device: PathBuf,
    },
    /// The device failed.
    #[error("cannot write the device")]
    Device(#[from] io::Error),
    /// The index failed.
    #[error("cannot write the index")]
    Index(#[from] IndexError),
    /// The new store does not open.
    #[error("cannot open what was formatted")]
    Open(#[from] OpenError),
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither superblock is valid: blank, foreign or destroyed.
    #[error("no valid superblock")]
    NoSuperblock,
    /// The format is of a later version.
    #[error("format version {version} is newer than this program's {supported}")]
    Version {
        /// On the device.
        version: u16,
        /// Ours.
        supported: u16,
    },
    /// The device is smaller than when it was formatted.
    #[error("the device has {device_bytes} bytes; its superblock says {expected_bytes}")]
    Shrunk {
        /// Now.
        device_bytes: u64,
        /// When formatted.
        expected_bytes: u64,
    },
    /// The index belongs to another device, or is empty.
    #[error("the index belongs to disk {found:?}, the device is {expected}")]
    ForeignIndex {
        /// The device's.
        expected: DiskUuid,
        /// The index's.
        found: Option<DiskUuid>,
    },
    /// A record that had been made durable cannot be read, and later ones exist: what is on this device is not a prefix of
    /// what was acknowledged. This copy is not to be trusted; it rejoins by backfill.
    #[error("the log is bad at position {position} (segment {segment}, byte {offset}), and was durable beyond it")]
    CorruptMiddle {
        /// The position that should be there.
        position: Position,
        /// The segment.
        segment: u32,
        /// Byte in the segment.
        offset: u32,
    },
    /// A record has a good checksum, but does not fit the state: a defect of the program that wrote or reads it.
    #[error("the record at position {position} cannot be applied: {reason}")]
    BadRecord {
        /// Which record.
        position: Position,
        /// What is wrong.
        reason: &'static str,
    },
    /// A write or a sync of the device failed while it was in use. What it holds beyond `durable` is in doubt: entries that
    /// were answered with an error may look durable in the page cache.
    #[error(
        "disk {disk} is in quarantine since a write or sync of it failed (surely durable: position {durable}): replace the \
         device and let its daemon join as a new one; or, when its copies are needed, create the file `{RELEASE_FILE}` \
         beside the index and start again"
    )]
    Quarantined {
        /// Which.
        disk: DiskUuid,
        /// All positions up to this one are durable.
        durable: Position,
    },
    /// As [`Quarantined`](OpenError::Quarantined), by the marker beside the index alone.
    #[error(
        "the store is in quarantine, says {marker}: {reason}; replace the device and let its daemon join as a new one; or, \
         when its copies are needed, create the file `{RELEASE_FILE}` beside it and start again"
    )]
    Marked {
        /// The file.
        marker: String,
        /// What it says.
        reason: String,
    },
    /// The index was found damaged while it was in use, says the marker beside it.
    #[error("the index was found damaged, says {marker}: {reason}")]
    IndexDamaged {
        /// The file.
        marker: String,
        /// What it says.
        reason: String,
    },
    /// The marker of a quarantine cannot be read or removed.
    #[error("cannot use the quarantine marker {marker}")]
    Marker {
        /// The file.
        marker: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device failed.
    #[error("cannot read the device")]
    Device(#[from] io::Error),
    /// The index failed.
    #[error("cannot read the index")]
    Index(#[from] IndexError),
}

impl OpenError {
    /// Whether what is on this disk is certainly not all that it acknowledged: its copies must not be used. Not for
    /// what may be a mistake of an operator (another disk, none at all) or may pass (the device is out of reach), nor for a
    /// quarantined device: that must not be filled again but looked at.
    #[must_use]
    pub fn copy_is_lost(&self) -> bool {
        match self {
            OpenError::CorruptMiddle { .. } | OpenError::IndexDamaged { .. } => true,
            OpenError::Index(error) => error.is_corruption(),
            OpenError::NoSuperblock
            | OpenError::Version { .. }
            | OpenError::Shrunk { .. }
            | OpenError::ForeignIndex { .. }
            | OpenError::BadRecord { .. }
            | OpenError::Quarantined { .. }
            | OpenError::Marked { .. }
            | OpenError::Marker { .. }
            | OpenError::Device(_) => false,
        }
    }
}

/// Why cleaning or a checkpoint stopped.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// The index failed.
    #[error("cannot use the index")]
    Index(#[from] IndexError),
    /// The device failed.
    #[error("cannot use the device")]
    Device(#[from] io::Error),
    /// What was moved could not be made durable.
    #[error("cannot commit")]
    Commit(#[from] CommitError),
    /// What was moved could not be submitted.
    #[error("cannot submit")]
    Submit(#[from] SubmitError),
}
