//! The index: ordered rows that say where everything is.
//!
//! Of what is new the log is the truth; what the log has no more, since its segments are used again, is here alone. Each
//! [`Batch`] carries, as its last row, the log position up to which the index is then complete; after a crash the index
//! holds some prefix of the batches, at least all those before the last [`Index::flush`], and the log is replayed from
//! the position found.

pub(crate) mod keys;
mod mem;
mod persisted;
mod rocks;

pub use mem::MemIndex;
pub use rocks::RocksIndex;

use std::io;
use std::ops::ControlFlow;

use bytes::Bytes;
use holdfast_kvlog::manifest::ManifestError;

use crate::key::Position;

/// The index failed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// RocksDB says so.
    #[error("rocksdb failed")]
    Rocks(#[from] rocksdb::Error),
    /// Its manifest cannot be used.
    #[error("the manifest of the index cannot be used")]
    Manifest(#[from] ManifestError),
    /// The index has lost what was durable.
    #[error("the index goes to position {found} only, it was durable up to {persisted}")]
    WentBack {
        /// Written down after a flush.
        persisted: Position,
        /// What the index says of itself.
        found: Position,
    },
    /// The position up to which it is durable cannot be read or written.
    #[error("cannot use the position beside the index at {path}")]
    Persisted {
        /// Directory of the index.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A row cannot be understood.
    #[error("the index row {} is malformed: {reason}", key.escape_ascii())]
    Malformed {
        /// The row's key.
        key: Vec<u8>,
        /// What is wrong.
        reason: &'static str,
    },
    /// A fault that a test planned.
    #[error("planned fault")]
    Planned,
}

/// `EIO` (and `EREMOTEIO`), `ENODATA` and `EUCLEAN`, as the C libraries put them.
const DEVICE_FAILURES: [&str; 4] = ["Input/output error", "I/O error", "No data available", "Structure needs cleaning"];

/// The same as numbers.
const DEVICE_FAILURE_NUMBERS: [i32; 4] = [5, 121, 61, 117];

impl IndexError {
    /// Whether the rows themselves are damaged, rather than out of reach for now.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        match self {
            IndexError::Rocks(error) => error.kind() == rocksdb::ErrorKind::Corruption,
            IndexError::Manifest(error) => !matches!(error, ManifestError::Io { .. }),
            IndexError::Malformed { .. } | IndexError::WentBack { .. } => true,
            IndexError::Persisted { .. } | IndexError::Planned => false,
        }
    }

    /// Whether what holds the index failed a read or a write, rather than had no room for it, or no descriptor to spare.
    #[must_use]
    pub fn is_device_failure(&self) -> bool {
        match self {
            // RocksDB gives no number, only the words of the C library.
            IndexError::Rocks(error) => {
                let text = error.to_string();
                error.kind() == rocksdb::ErrorKind::IOError
                    && DEVICE_FAILURES.iter().any(|failure| text.contains(failure))
            }
            IndexError::Persisted { source, .. } | IndexError::Manifest(ManifestError::Io { source, .. }) => {
                source.raw_os_error().is_some_and(|number| DEVICE_FAILURE_NUMBERS.contains(&number))
            }
            IndexError::Malformed { .. }
            | IndexError::WentBack { .. }
            | IndexError::Manifest(_)
            | IndexError::Planned => false,
        }
    }
}

/// One change of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets a row.
    Put(Bytes, Bytes),
    /// Removes a row.
    Delete(Bytes),
    /// Removes all rows in `from..to`.
    DeleteRange(Bytes, Bytes),
}

/// Changes that the index makes together, in order.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The changes.
    pub changes: Vec<Change>,
    /// Up to where the log is applied once this batch is.
    pub position: Position,
}

/// Is shown keys and values one by one until it breaks.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Ordered rows. All methods may be called from several threads, `apply` and `flush` from one at a time each.
pub trait Index: Send + Sync {
    /// One row.
    ///
    /// # Errors
    /// [`IndexError`] when the rows cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError>;

    /// Shows the rows in `start..end` in order until `visit` breaks. All of it sees one moment.
    ///
    /// # Errors
    /// [`IndexError`] when the rows cannot be read.
    fn scan(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<(), IndexError>;

    /// Makes the changes of `batch`: visible at once, durable by and by, in order.
    ///
    /// # Errors
    /// [`IndexError`]; the index is then not to be used any more.
    fn apply(&self, batch: Batch) -> Result<(), IndexError>;

    /// Makes all applied batches durable.
    ///
    /// # Errors
    /// [`IndexError`].
    fn flush(&self) -> Result<(), IndexError>;

    /// A position whose batch is surely durable.
    fn persisted_position(&self) -> Position;

    /// Bytes of the index's files, about.
    fn size_bytes(&self) -> u64;
}
