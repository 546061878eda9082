//! An index in memory that forgets as RocksDB without its log forgets.
//!
//! [`MemIndex::crash`] gives the index as it may be found after a crash: all that was flushed, and a prefix of what was
//! applied since (RocksDB flushes on its own too).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use rand::Rng;

use super::{Batch, Change, Index, IndexError, Visit};
use crate::key::Position;

type Rows = BTreeMap<Bytes, Bytes>;

#[derive(Debug, Default)]
struct Inner {
    rows: Rows,
    position: Position,
    flushed: Rows,
    flushed_position: Position,
    since: VecDeque<Batch>,
    fail_next_apply: bool,
}

/// See the module. Clones share the rows.
#[derive(Debug, Clone, Default)]
pub struct MemIndex {
    inner: Arc<RwLock<Inner>>,
}

fn change_rows(rows: &mut Rows, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Put(key, value) => {
                rows.insert(key.clone(), value.clone());
            }
            Change::Delete(key) => {
                rows.remove(key);
            }
            Change::DeleteRange(from, to) => {
                if from < to {
                    let gone: Vec<Bytes> = rows.range(from.clone()..to.clone()).map(|(key, _)| key.clone()).collect();
                    for key in gone {
                        rows.remove(&key);
                    }
                }
            }
        }
    }
}

impl MemIndex {
    /// An empty index.
    pub fn new() -> MemIndex {
        MemIndex::default()
    }

    /// A new index as it may be found after a crash now: what was flushed and, as `rng` decides, a prefix of the rest.
    pub fn crash(&self, rng: &mut impl Rng) -> MemIndex {
        let inner = self.inner.read();
        let kept = rng.random_range(0..=inner.since.len());
        let mut rows = inner.flushed.clone();
        let mut position = inner.flushed_position;
        for batch in inner.since.iter().take(kept) {
            change_rows(&mut rows, &batch.changes);
            position = batch.position;
        }
        let after = MemIndex::new();
        {
            let mut fresh = after.inner.write();
            fresh.rows = rows.clone();
            fresh.flushed = rows;
            fresh.position = position;
            fresh.flushed_position = position;
        }
        after
    }

    /// Makes one row malformed, as rot does, until it is written anew.
    pub fn spoil(&self, key: &[u8]) {
        let mut inner = self.inner.write();
        let Inner { rows, flushed, .. } = &mut *inner;
        if let Some(value) = rows.get_mut(key) {
            let bad = Bytes::from_static(&[0xff]);
            if let Some(durable) = flushed.get_mut(key).filter(|durable| **durable == *value) {
                *durable = bad.clone();
            }
            *value = bad;
        }
    }

    /// Lets the next `apply` fail.
    pub fn fail_next_apply(&self) {
        self.inner.write().fail_next_apply = true;
    }
}

impl Index for MemIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        Ok(self.inner.read().rows.get(key).cloned())
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<(), IndexError> {
        let inner = self.inner.read();
        if end.is_some_and(|end| start >= end) {
            return Ok(());
        }
        let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
        for (key, value) in inner.rows.range::<[u8], _>((Bound::Included(start), upper)) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, batch: Batch) -> Result<(), IndexError> {
        let mut inner = self.inner.write();
        if std::mem::take(&mut inner.fail_next_apply) {
            return Err(IndexError::Planned);
        }
        change_rows(&mut inner.rows, &batch.changes);
        inner.position = batch.position;
        inner.since.push_back(batch);
        Ok(())
    }

    fn flush(&self) -> Result<(), IndexError> {
        let mut inner = self.inner.write();
        inner.flushed_position = inner.position;
        let batches: Vec<Batch> = inner.since.drain(..).collect();
        for batch in &batches {
            change_rows(&mut inner.flushed, &batch.changes);
        }
        Ok(())
    }

    fn persisted_position(&self) -> Position {
        self.inner.read().flushed_position
    }

    fn size_bytes(&self) -> u64 {
        self.inner.read().rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}
