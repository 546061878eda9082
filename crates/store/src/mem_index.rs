//! An index in memory that crashes like the real one: back to some flushed state.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::IndexError;
use crate::index::{Index, IndexBatch};

#[derive(Debug, Default, Clone)]
struct State {
    rows: BTreeMap<Vec<u8>, Bytes>,
    /// Batches since the flushed state, oldest first: a crash may keep any number of them, from the oldest on.
    since: Vec<IndexBatch>,
    flushed: BTreeMap<Vec<u8>, Bytes>,
}

/// For tests and the simulator.
#[derive(Debug, Default)]
pub struct MemIndex {
    state: Mutex<State>,
}

fn apply_to(rows: &mut BTreeMap<Vec<u8>, Bytes>, batch: &IndexBatch) {
    for (key, value) in batch {
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
    }
}

impl MemIndex {
    /// An empty index.
    #[must_use]
    pub fn new() -> MemIndex {
        MemIndex::default()
    }

    /// What is there after a crash in which `kept` of the batches since the last flush happened to be written out.
    #[must_use]
    pub fn crash(&self, kept: usize) -> MemIndex {
        let state = self.state.lock();
        let mut rows = state.flushed.clone();
        for batch in state.since.iter().take(kept) {
            apply_to(&mut rows, batch);
        }
        MemIndex { state: Mutex::new(State { flushed: rows.clone(), rows, since: Vec::new() }) }
    }

    /// Batches since the last flush.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.state.lock().since.len()
    }
}

impl Index for MemIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        Ok(self.state.lock().rows.get(key).cloned())
    }

    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), IndexError> {
        let state = self.state.lock();
        for (key, value) in state.rows.range::<[u8], _>((std::ops::Bound::Included(start), std::ops::Bound::Unbounded))
        {
            if end.is_some_and(|end| key.as_slice() >= end) || !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, batch: &IndexBatch) -> Result<(), IndexError> {
        let mut state = self.state.lock();
        apply_to(&mut state.rows, batch);
        state.since.push(batch.clone());
        Ok(())
    }

    fn flush(&self) -> Result<(), IndexError> {
        let mut state = self.state.lock();
        state.flushed = state.rows.clone();
        state.since.clear();
        Ok(())
    }
}
