//! The index under the store: an ordered map of byte strings that is durable up to some batch.

use bytes::Bytes;

use crate::error::IndexError;

/// Changes that are applied together: `None` deletes.
pub type IndexBatch = Vec<(Vec<u8>, Option<Bytes>)>;

/// An ordered map. Batches are atomic; after a crash it holds the state after some batch, at least that of the last
/// [`Index::flush`].
pub trait Index: Send + Sync {
    /// One value.
    ///
    /// # Errors
    /// [`IndexError`].
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError>;

    /// Visits the entries of `start..end` in order until `visit` returns `false`.
    ///
    /// # Errors
    /// [`IndexError`].
    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), IndexError>;

    /// Applies a batch, visible at once, durable with a later flush.
    ///
    /// # Errors
    /// [`IndexError`].
    fn apply(&self, batch: &IndexBatch) -> Result<(), IndexError>;

    /// Makes all applied batches durable.
    ///
    /// # Errors
    /// [`IndexError`].
    fn flush(&self) -> Result<(), IndexError>;
}
