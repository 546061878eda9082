//! Committing: one write for each contiguous run of records, one sync, then the index.
//!
//! Failure of a write or of the sync poisons the store. A write is not tried again either: what the device then holds is
//! not known. The store goes into quarantine; see there.

use std::cell::Cell;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{CommitSide, Effect, Engine, OnDurable, Pending, SegmentRow, to_cbor};
use crate::device::Device;
use crate::error::CommitError;
use crate::format::{RECORD_ALIGN, round_up};
use crate::index::{Batch, Index, IndexError, keys};
use crate::key::{Position, Receipt};
use crate::overlay::Value;

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// True on a thread that is just calling an `on_durable`: it must not wait for a commit, which waits for it.
pub(crate) fn in_callback() -> bool {
    IN_CALLBACK.get()
}

fn call(on_durable: OnDurable, result: Result<(), Arc<CommitError>>) {
    IN_CALLBACK.set(true);
    on_durable(result);
    IN_CALLBACK.set(false);
}

const PADDING: [u8; RECORD_ALIGN as usize] = [0; RECORD_ALIGN as usize];

impl<D: Device, I: Index> Engine<D, I> {
    /// Makes all submitted transactions durable with one sync, tells their `on_durable`s, and applies them to the index.
    /// Does no IO when none waits.
    ///
    /// # Errors
    /// [`CommitError`]; the store is then poisoned and all waiting transactions are told.
    pub fn commit(&self) -> Result<Receipt, CommitError> {
        let mut side = self.commit_turn.lock();
        let group: Vec<Pending> = {
            let mut state = self.state.write();
            if let Some(error) = &state.failed {
                return Err(CommitError::Poisoned(Arc::clone(error)));
            }
            if state.pending.is_empty() {
                return Ok(Receipt { position: state.durable });
            }
            state.pending_bytes = 0;
            state.space.begin_group();
            std::mem::take(&mut state.pending).into()
        };
        let last = group.last().map_or(Position(0), |record| record.effect.position);
        let bytes: u64 = group.iter().map(|record| record.bytes + record.copied_bytes).sum();
        let written = self.write_group(&group).and_then(|()| self.device.sync().map_err(CommitError::Sync));
        if let Err(error) = written {
            let told = group.into_iter().filter_map(|record| record.on_durable.map(Mutex::into_inner)).collect();
            return Err(self.poison(error, told));
        }
        {
            let mut state = self.state.write();
            state.durable = last;
            state.unflushed_bytes += bytes;
        }
        let mut effects = Vec::with_capacity(group.len());
        let mut opened_next = None;
        for record in group {
            if record.segment_header.is_some() {
                opened_next = Some(record.effect.after.next_segment);
            }
            effects.push(record.effect);
            if let Some(on_durable) = record.on_durable {
                call(on_durable.into_inner(), Ok(()));
            }
        }
        if let Err(error) = self.apply_effects(&mut side, &effects) {
            return Err(self.poison(CommitError::Index(error), Vec::new()));
        }
        if let Some(segment) = opened_next {
            self.allocate_next(segment);
        }
        Ok(Receipt { position: last })
    }

    fn write_group(&self, group: &[Pending]) -> Result<(), CommitError> {
        let mut run: Vec<&[u8]> = Vec::with_capacity(group.len() * 4);
        let mut run_start = 0;
        let mut run_bytes = 0;
        for record in group {
            let segment_start = self.layout.segment_start(record.segment);
            let start = match &record.segment_header {
                Some(_) => segment_start,
                None => segment_start + u64::from(record.offset),
            };
            if start != run_start + run_bytes {
                self.write_run(run_start, run_bytes, &run)?;
                run.clear();
                (run_start, run_bytes) = (start, 0);
            }
            if let Some(header) = &record.segment_header {
                run.push(header);
                run_bytes += header.len() as u64;
            }
            run.push(&record.header);
            run.push(&record.ops);
            run.extend(record.payload.iter().map(|piece| piece.as_ref()));
            let content: u64 = (record.header.len() + record.ops.len()) as u64
                + record.payload.iter().map(|piece| piece.len() as u64).sum::<u64>();
            run.push(PADDING.get(..(record.bytes - content) as usize).unwrap_or_default());
            run_bytes += record.bytes;
        }
        self.write_run(run_start, run_bytes, &run)
    }

    /// Writes one run and fills its last sector with zeros, so that the device need not read it first.
    fn write_run(&self, offset: u64, bytes: u64, run: &[&[u8]]) -> Result<(), CommitError> {
        if run.is_empty() {
            return Ok(());
        }
        let sector = u64::from(self.layout.sector_bytes);
        let rest = (offset + bytes).next_multiple_of(sector) - (offset + bytes);
        let zeros = vec![0; rest as usize];
        let mut run = run.to_vec();
        run.push(&zeros);
        self.device.write_at(offset, &run).map_err(|source| CommitError::Write { offset, bytes: bytes + rest, source })
    }

    /// Brings the index up to the last of `effects`, which are durable, and takes them out of the overlay.
    pub(super) fn apply_effects(&self, side: &mut CommitSide, effects: &[Effect]) -> Result<(), IndexError> {
        let Some(last) = effects.last() else { return Ok(()) };
        let mut batch = Batch { changes: Vec::with_capacity(effects.len() * 5 + 3), position: last.position };
        let mut touched = std::collections::BTreeSet::new();
        for effect in effects {
            effect.changes.append_to(&mut batch.changes);
            let opened = effect.after.segment;
            if let Some(row) = side.live.get_mut(opened as usize)
                && row.sequence != effect.after.sequence
            {
                *row = SegmentRow { sequence: effect.after.sequence, live: 0 };
                touched.insert(opened);
            }
            for (segment, by) in &effect.changes.live {
                if let Some(row) = side.live.get_mut(*segment as usize) {
                    row.live = row.live.saturating_add_signed(*by);
                    touched.insert(*segment);
                }
            }
        }
        for segment in touched {
            if let Some(row) = side.live.get(segment as usize) {
                batch.changes.push(crate::index::Change::Put(keys::segment(segment), to_cbor(row)));
            }
        }
        batch.changes.push(crate::index::Change::Put(keys::log(), to_cbor(&last.after)));
        self.index.apply(batch)?;
        let mut state = self.state.write();
        let state = &mut *state;
        for effect in effects {
            if !effect.changes.ranges.is_empty() {
                state.cache.clear();
            }
            let cache = &state.cache;
            state.overlay.retire(effect.position, &effect.changes, |key, value| {
                if key.first() == Some(&keys::TABLE_ONODE) {
                    match value {
                        Value::Onode(onode) => cache.put(key.clone(), Some(onode)),
                        Value::Deleted => cache.put(key.clone(), None),
                        Value::Raw(_) => cache.clear(), // an onode is never laid over as bytes
                    }
                }
            });
            for place in &effect.payload {
                state.in_memory.remove(place);
            }
        }
        state.applied = last.position;
        Ok(())
    }

    /// After a panic in [`Engine::commit`] or in what it called: nobody knows how far it came.
    pub(crate) fn fail_after_panic(&self) {
        if self.state.read().failed.is_none() {
            self.poison(CommitError::Panicked, Vec::new());
        }
    }

    /// Stops the store for good and tells all who wait.
    fn poison(&self, error: CommitError, mut told: Vec<OnDurable>) -> CommitError {
        tracing::error!(disk = %self.layout.disk, %error, "the store has failed");
        self.remember(&error);
        let error = Arc::new(error);
        {
            let mut state = self.state.write();
            state.failed = Some(Arc::clone(&error));
            let waiting = std::mem::take(&mut state.pending).into_iter();
            told.extend(waiting.filter_map(|record| record.on_durable.map(Mutex::into_inner)));
            state.pending_bytes = 0;
        }
        for on_durable in told {
            call(on_durable, Err(Arc::clone(&error)));
        }
        CommitError::Poisoned(error)
    }
}

const _: () = assert!(round_up(1, RECORD_ALIGN) == RECORD_ALIGN, "padding never exceeds PADDING");
