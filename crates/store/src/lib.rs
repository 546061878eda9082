//! Keeps objects crash-safe on one device: the log is the truth, the index is its summary.
//!
//! One device is cut into **segments**; the engine only appends. A [`Transaction`] becomes one record: the operations,
//! their payload, and checksums. Records that wait together are written together and made durable by **one** sync. The
//! index (RocksDB without a log of its own) maps objects to onodes, rows and log positions; after a crash the records
//! after the index's position are applied again, by the same code that applied them first.
//!
//! Invariants (ids in `docs/invariants.md`):
//! - S1: what [`Engine::commit`] reported durable is there after any crash.
//! - S2: after a crash the state is that of a prefix of the submitted transactions, each whole.
//! - S3: every payload block is verified against a checksum kept apart from it, bound to its object and offset, on each
//!   read; a block that does not match is an error, never data.
//! - S4: space is known at submission: an admitted transaction cannot fail for want of it, and what frees space is
//!   admitted on a full device.
//! - S5: a segment is used anew only when no live extent lies in it and the index on disk is past its last record.
//!
//! The store knows nothing of placement groups or peers. Format: `docs/formats/store.md`.

mod device;
mod engine;
mod error;
mod exec;
mod index;
mod keys;
mod layout;
mod mem_device;
mod mem_index;
mod onode;
mod read;
mod record;
mod replay;
mod rocks_index;
mod segments;
mod store;
mod txn;

pub use device::{Device, FileDevice};
pub use engine::{Engine, EngineOptions, Identity, Receipt};
pub use error::{CommitError, DeviceError, IndexError, OpenError, ReadError, SubmitError};
pub use index::{Index, IndexBatch};
pub use mem_device::{MemDevice, MemFaults};
pub use mem_index::MemIndex;
pub use read::{ObjectInfo, RowsPage, Usage};
pub use rocks_index::RocksIndex;
pub use store::{Store, StoreOptions};
pub use txn::{CollectionId, OBJECT_KEY_BYTES_MAX, ObjectKey, Transaction, TxOp};
