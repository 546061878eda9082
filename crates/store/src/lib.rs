//! Keeps objects crash-safe on one device.
//!
//! The device is a log of segments and is the truth for what is new; an index on RocksDB says where everything is, and is
//! brought up to date from the log when opened. It cannot be made anew from it: segments are used again once the index has
//! what they said, and rows are then in the index alone. To lose the index is to lose the disk. A transaction is one record
//! in the log; all records that wait together become durable by one sync. The log is written past the page cache where
//! the file system can, and read through it. After a failed write or sync a store is in quarantine until a person decides.
//! See `docs/formats/store.md` for the bytes, and `ARCHITECTURE.md` for the why.
//!
//! - [`Engine`]: the synchronous core. No threads, no clock; tests crash it at every IO over [`MemDevice`] and [`MemIndex`].
//! - [`Store`]: the engine with a commit thread and a cleaner, over [`FileDevice`] and [`RocksIndex`].
//!
//! The store knows nothing of placement groups or peers.

mod checksum;
mod device;
mod engine;
mod error;
mod format;
mod index;
mod index_room;
mod key;
mod marker;
mod onode;
mod overlay;
mod store;
mod tx;

pub use device::{Device, Fault, FileDevice, Lie, MemDevice, MemDeviceStats};
pub use engine::{
    BadRange, CleanProgress, Engine, Identity, OnDurable, OnQuarantine, Options, RowPage, SUPPORTED_SEGMENT_BYTES,
    Verified,
};
pub use error::{CleanError, CommitError, Excess, FormatError, OpenError, ReadError, SubmitError};
pub use format::superblock::Superblock;
pub use index::{Batch, Change, Index, IndexError, MemIndex, RocksIndex, Visit};
pub use key::{CollectionId, InvalidObjectKey, OBJECT_KEY_BYTES_MAX, ObjectInfo, ObjectKey, Position, Receipt, Usage};
pub use store::{Store, StoreConfig};
pub use tx::{
    ATTR_NAME_BYTES_MAX, ATTR_VALUE_BYTES_MAX, META_KEY_BYTES_MAX, OBJECT_BYTES_MAX, ROW_KEY_BYTES_MAX,
    TX_INLINE_BYTES_MAX, Transaction, TxOp,
};
